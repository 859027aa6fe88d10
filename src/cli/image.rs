//! `initramfs`: archives with this program as /init.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use lexopt::{Arg, Parser};

use crate::cli::{Command, Failure, no_more};
use crate::mkinitramfs::{self, Image};

pub const INITRAMFS: Command = Command {
    name: "initramfs",
    summary: "build an initramfs with this program as /init",
    help: "usage: lodger initramfs -o FILE [--add HOST[:GUEST]]... [--bin PROGRAM]... [--busybox]

  -o FILE              the archive: gzip for .gz, zstd for .zst, else as it is
  --add HOST[:GUEST]   a file or tree, at the same path in the guest or at GUEST
  --bin PROGRAM        a program of this machine, with the libraries it needs
  --busybox            this machine's busybox, with all its applets

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
}

impl From<mkinitramfs::Error> for Failure {
    fn from(error: mkinitramfs::Error) -> Failure {
        Failure::new(error.to_string())
    }
}

fn initramfs(mut parser: Parser) -> Result<ExitCode, Failure> {
    let (mut content, mut output) = (Content::default(), None);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Short('o') => output = Some(PathBuf::from(parser.value()?)),
            Arg::Long("add") => content.added.push(parser.value()?),
            Arg::Long("bin") => content.programs.push(parser.value()?),
            Arg::Long("busybox") => content.busybox = true,
            other => return Err(other.unexpected().into()),
        }
    }
    no_more(&mut parser)?;
    let output = output.ok_or_else(|| Failure::new("-o FILE is missing"))?;
    let mut image = Image::new();
    content.put_into(&mut image)?;
    image.write_file(&output)?;
    Ok(ExitCode::SUCCESS)
}
