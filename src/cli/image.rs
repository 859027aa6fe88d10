//! `initramfs`: archives with this program as /init.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use lexopt::{Arg, Parser};

use crate::cli::{Command, Failure, no_more, text};
use crate::mkinitramfs::{self, Image};
use crate::vm::kernel;

pub const INITRAMFS: Command = Command {
    name: "initramfs",
    summary: "build an initramfs with this program as /init",
    help: "usage: lodger initramfs -o FILE [--add HOST[:GUEST]]... [--bin PROGRAM]... [--busybox]
                        [--module NAME]... [--modules DIR]

  -o FILE              the archive: gzip for .gz, zstd for .zst, else as it is
  --add HOST[:GUEST]   a file or tree, at the same path in the guest or at GUEST
  --bin PROGRAM        a program of this machine, with the libraries it needs
  --busybox            this machine's busybox, with all its applets
  --module NAME        a module of the kernel, with the modules it depends on; they are loaded in
                       their order before the agent starts, and compressed ones are unpacked here
  --modules DIR        the kernel's lib/modules/RELEASE (default: that of the kernel that
                       `lodger vm` would boot)

The same inputs give the same bytes. Boot it with any kernel: -initrd FILE.
",
    run: initramfs,
};

/// What goes into an archive besides this program.
#[derive(Debug, Default)]
pub struct Content {
    pub added: Vec<OsString>,
    pub programs: Vec<OsString>,
    pub busybox: bool,
    /// Kernel modules; not put in by `put_into`.
    pub modules: Vec<String>,
}

impl Content {
    /// Puts it all into an image. Added trees come first: one of them may have a link where another thing would need a directory.
    pub fn put_into(&self, image: &mut Image) -> Result<(), mkinitramfs::Error> {
        for text in &self.added {
            let (host, guest) = mkinitramfs::split_added(text);
            image.add(&host, guest.as_deref())?;
        }
        self.programs.iter().try_for_each(|program| image.program(program))?;
        if self.busybox { image.busybox() } else { Ok(()) }
    }

    /// Puts the modules in, from the kernel's `lib/modules/RELEASE`.
    pub fn put_modules_into(&self, image: &mut Image, tree: Option<&Path>) -> Result<(), Failure> {
        let Some(first) = self.modules.first() else { return Ok(()) };
        let tree = tree.ok_or_else(|| {
            Failure::new(format!(
                "module {first}: the kernel has no modules beside it; --modules DIR names their folder"
            ))
        })?;
        let names: Vec<&str> = self.modules.iter().map(String::as_str).collect();
        let missing = image.modules(tree, &names)?;
        if missing.is_empty() {
            return Ok(());
        }
        let names = missing.join(", ");
        Err(Failure::new(format!("module {names}: neither in {} nor built into that kernel", tree.display())))
    }
}

impl From<mkinitramfs::Error> for Failure {
    fn from(error: mkinitramfs::Error) -> Failure {
        Failure::new(error.to_string())
    }
}

fn initramfs(mut parser: Parser) -> Result<ExitCode, Failure> {
    let (mut content, mut output, mut modules) = (Content::default(), None, None);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Short('o') => output = Some(PathBuf::from(parser.value()?)),
            Arg::Long("add") => content.added.push(parser.value()?),
            Arg::Long("bin") => content.programs.push(parser.value()?),
            Arg::Long("busybox") => content.busybox = true,
            Arg::Long("module") => content.modules.push(text(parser.value()?)?),
            Arg::Long("modules") => modules = Some(PathBuf::from(parser.value()?)),
            other => return Err(other.unexpected().into()),
        }
    }
    no_more(&mut parser)?;
    let output = output.ok_or_else(|| Failure::new("-o FILE is missing"))?;
    let mut image = Image::new();
    content.put_into(&mut image)?;
    if modules.is_none() && !content.modules.is_empty() {
        modules = kernel::find(None, None).ok().and_then(|kernel| kernel.modules);
    }
    content.put_modules_into(&mut image, modules.as_deref())?;
    image.write_file(&output)?;
    Ok(ExitCode::SUCCESS)
}
