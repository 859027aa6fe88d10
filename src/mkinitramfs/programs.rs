//! Programs of the host with what they need to run: interpreters of scripts, the loader and libraries of the others.
//!
//! A program is in the image where it really is on the host, so that what it looks for beside itself is where it expects it, and
//! every name that leads to it is a link. Where the host has merged `/bin` into `/usr/bin`, both names work in the guest too. What a
//! program loads later by itself (plugins, name services, the modules of a script language) is not known here and must be added.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::exec::capture::{self, Bounds, Outcome};
use crate::exec::{self, Program};
use crate::mkinitramfs::elf::Elf;
use crate::mkinitramfs::{Entry, Error, GUEST_PATH, Image, inside};

impl Image {
    /// Adds a program of the host, found by PATH if its name has no slash, with its interpreter and its libraries. It is found by
    /// its name in the guest.
    pub fn program(&mut self, name: impl AsRef<Path>) -> Result<(), Error> {
        let path = find_program(name.as_ref())?;
        self.put_program(&path)
    }

    /// Adds the host's busybox as `/bin/busybox`, and links for those of its applets that no other program of the image provides.
    pub fn busybox(&mut self) -> Result<(), Error> {
        let path = find_program(Path::new("busybox"))?;
        self.put_program(&path)?;
        let real = fs::canonicalize(&path).map_err(Error::file("find", &path))?;
        self.put_absent(Path::new("bin/busybox"), Entry::symlink(real))?;
        self.applets = applets(&path)?;
        Ok(())
    }

    /// The links to busybox.
    pub(super) fn put_applets(&mut self) -> Result<(), Error> {
        for applet in std::mem::take(&mut self.applets) {
            // A program in another directory of PATH provides the name just as well.
            let name = applet.file_name().unwrap_or_default();
            let provided = GUEST_PATH.iter().any(|path| self.entries.contains_key(&Path::new(path).join(name)));
            if !provided {
                self.put_absent(&applet, Entry::symlink("/bin/busybox"))?;
            }
        }
        Ok(())
    }

    fn put_program(&mut self, path: &Path) -> Result<(), Error> {
        let real = self.put_host_file(path)?;
        for unmerged in [path, &real].into_iter().filter_map(|name| unmerged(name, &real)) {
            self.put_absent(&inside(&unmerged), Entry::symlink(&real))?;
        }
        let directory = inside(path.parent().unwrap_or(path));
        if !GUEST_PATH.iter().any(|known| directory == Path::new(known)) {
            let link = Path::new("usr/local/bin").join(path.file_name().unwrap_or_default());
            self.put_absent(&link, Entry::symlink(Path::new("/").join(inside(path))))?;
        }
        if !self.programs.insert(real.clone()) {
            return Ok(());
        }
        let content = fs::read(&real).map_err(Error::file("read", &real))?;
        if let Some(line) = content.strip_prefix(b"#!") {
            self.put_interpreter(line)
        } else if let Some(elf) = Elf::parse(&content) {
            self.put_libraries(&real, elf)
        } else {
            Ok(())
        }
    }

    /// What the first line of a script names: its interpreter, and the program that `env` shall find.
    fn put_interpreter(&mut self, script: &[u8]) -> Result<(), Error> {
        let line = script.split(|byte| *byte == b'\n').next().unwrap_or(script);
        let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).map(OsStr::from_bytes);
        let Some(interpreter) = words.next().map(Path::new) else { return Ok(()) };
        self.put_program(&find_program(interpreter)?)?;
        if interpreter.file_name() != Some(OsStr::new("env")) {
            return Ok(());
        }
        let is_program = |word: &&OsStr| !word.as_bytes().starts_with(b"-") && !word.as_bytes().contains(&b'=');
        match words.find(is_program) {
            Some(program) => self.put_program(&find_program(Path::new(program))?),
            None => Ok(()),
        }
    }
}

/// The other name of a program in `/usr` on a host where the directories outside are links to those inside.
fn unmerged(name: &Path, real: &Path) -> Option<PathBuf> {
    let other = Path::new("/").join(name.strip_prefix("/usr").ok()?);
    fs::canonicalize(&other).is_ok_and(|found| found == real).then_some(other)
}

/// The absolute path of an executable file.
fn find_program(name: &Path) -> Result<PathBuf, Error> {
    let path = env::var_os("PATH").unwrap_or_default();
    let candidates: Vec<PathBuf> = if name.as_os_str().as_bytes().contains(&b'/') {
        vec![name.to_owned()]
    } else {
        env::split_paths(&path).map(|directory| directory.join(name)).collect()
    };
    let executable =
        |path: &PathBuf| fs::metadata(path).is_ok_and(|found| found.is_file() && found.mode() & 0o111 != 0);
    let found = candidates.into_iter().find(executable).ok_or_else(|| Error::NoProgram(name.to_owned()))?;
    std::path::absolute(&found).map_err(Error::file("find", found))
}

/// Bytes of busybox's list of itself; today's complete one has 6,000.
const APPLETS_BYTES: usize = 1 << 20;

/// Where busybox would install the names it goes by.
fn applets(busybox: &Path) -> Result<Vec<PathBuf>, Error> {
    let program = Program {
        path: busybox.as_os_str().as_bytes().to_vec(),
        arguments: vec![b"--list-full".to_vec()],
        ..Program::default()
    };
    let start = || exec::start(&program).map_err(|why| io::Error::from_raw_os_error(why.errno()));
    let bounds = Bounds { stdout_max: APPLETS_BYTES, ..Bounds::default() };
    let run = start().and_then(|(session, channels)| capture::finish(session, channels, &[], &bounds));
    let Outcome::Complete(output) = run.map_err(Error::file("run", busybox))? else { return Ok(Vec::new()) };
    Ok(String::from_utf8_lossy(&output.stdout.bytes).lines().map(|line| inside(Path::new(line))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::mkinitramfs::tests::Directory;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_script_brings_its_interpreter() {
        let directory = Directory::new();
        let script = directory.file("script", "#! /usr/bin/env -S A=1 sh -e\n");
        let error = Image::new().program(&script).unwrap_err().to_string();
        assert_eq!(error, format!("find {}: no such program", script.display()), "not executable");

        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let mut image = Image::new();
        image.program(&script).unwrap();
        assert!(image.entries.contains_key(&inside(&script)));
        assert!(image.entries.contains_key(Path::new("usr/local/bin/script")));
        for name in ["/usr/bin/env", "/bin/sh"] {
            let real = fs::canonicalize(name).unwrap();
            assert!(image.entries.contains_key(&inside(Path::new(name))), "{name}");
            assert!(image.entries.contains_key(&inside(&real)), "{name}");
        }
    }

    #[test]
    fn what_was_added_by_name_stays() {
        let mut image = Image::new();
        image.file("/bin/sh", "mine", 0o755).unwrap();
        image.program("/bin/sh").unwrap();
        assert_eq!(image.entries[Path::new("bin/sh")].content, crate::mkinitramfs::Content::Bytes(b"mine".to_vec()));
    }

    #[test]
    fn applets_give_way_to_programs_of_the_same_name_anywhere_in_path() {
        let mut image = Image::new();
        image.applets = ["bin/ls", "usr/bin/cut", "sbin/init"].map(PathBuf::from).to_vec();
        image.file("/usr/local/bin/ls", "mine", 0o755).unwrap();
        let image = image.complete().unwrap();
        assert!(!image.entries.contains_key(Path::new("bin/ls")));
        let link = &image.entries[Path::new("usr/bin/cut")].content;
        assert_eq!(*link, crate::mkinitramfs::Content::Symlink("/bin/busybox".into()));
    }

    #[test]
    fn a_program_that_is_nowhere_is_named() {
        let error = Image::new().program("no-such-program").unwrap_err().to_string();
        assert_eq!(error, "find no-such-program: no such program");
    }
}
