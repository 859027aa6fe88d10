//! The files of an initramfs: which go into it, where they come from, and what is there in any case.
//!
//! What is added by name ([`Image::add`], [`Image::file`]) takes the place of what is there, a file that of a file and the mode of a
//! directory that of a directory. What comes along with something else (libraries, applets, modules, the directories that a system
//! needs) never does, so the order of the calls does not matter to it. A symbolic link in place of a directory, such as `/bin` of a
//! merged `/usr`, must be added before anything is put below it.
//!
//! Every image has this program as `/init`, `/bin/lodger` as a link to it, the directories where the kernel's file systems are
//! mounted, `/root`, `/etc`, `/run` and `/tmp`, and the nodes `/dev/console` (the kernel opens it for `/init` before anything can be
//! mounted) and `/dev/null`. Everything belongs to root, times are 0, entries are sorted: the same input gives the same bytes.
//! A file with several names is stored once for each name.

mod elf;
mod gzip;
mod libraries;
mod modules;
mod output;
mod programs;
mod unpack;
mod xz;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use crate::cpio::Archive;
use crate::sys::errno;

/// Most symbolic links of the image followed for one name, as in the kernel.
const LINK_LIMIT: usize = 40;

/// Where the guest looks for programs.
const GUEST_PATH: [&str; 6] = ["usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin"];

/// The directories of every image.
const DIRECTORIES: [(&str, u32); 8] = [
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
];

/// The list of modules that init loads, one path a line, dependencies first.
pub const MODULE_LIST: &str = "etc/lodger/modules";

/// Why an image cannot be made.
#[derive(Debug)]
pub enum Error {
    /// A file of the host: what was to be done with it, and why that did not work.
    File { operation: &'static str, path: PathBuf, error: io::Error },
    /// A socket, which an archive cannot hold.
    Socket(PathBuf),
    /// A program that is not in any directory of PATH, or not executable.
    NoProgram(PathBuf),
    /// A library that no directory of the loader has.
    NoLibrary { program: PathBuf, library: String },
    /// A kernel module whose dependencies cannot be learned.
    Module(PathBuf),
    /// A file of the guest that is one thing already and cannot become another: a directory in place of a file, or the reverse.
    Conflict { path: PathBuf, reason: &'static str },
}

impl Error {
    fn file(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |error| Error::File { operation, path, error }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, to: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Error::File { operation, path, error } => {
                write!(to, "{operation} {}: {}", path.display(), errno::describe(error))
            }
            Error::Socket(path) => write!(to, "add {}: a socket cannot be in an archive", path.display()),
            Error::NoProgram(name) => write!(to, "find {}: no such program", name.display()),
            Error::NoLibrary { program, library } => {
                write!(to, "add {}: library {library} not found", program.display())
            }
            Error::Module(path) => {
                write!(to, "read {}: not a kernel module, and there is no modules.dep", path.display())
            }
            Error::Conflict { path, reason } => write!(to, "add {}: {reason}", path.display()),
        }
    }
}

impl std::error::Error for Error {}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    Directory,
    Bytes(Vec<u8>),
    /// A file of the host, read when the image is written.
    Host(PathBuf),
    Symlink(PathBuf),
    /// Devices and FIFOs; the kind is in the mode.
    Node(u32, u32),
}

#[derive(Clone, Debug)]
struct Entry {
    mode: u32,
    content: Content,
}

impl Entry {
    fn directory(mode: u32) -> Entry {
        Entry { mode, content: Content::Directory }
    }

    fn symlink(target: impl Into<PathBuf>) -> Entry {
        Entry { mode: 0o777, content: Content::Symlink(target.into()) }
    }

    fn host(path: impl Into<PathBuf>, mode: u32) -> Entry {
        Entry { mode, content: Content::Host(path.into()) }
    }

    fn is_directory(&self) -> bool {
        self.content == Content::Directory
    }
}

/// An image that is being put together.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// By the path below the guest's root.
    entries: BTreeMap<PathBuf, Entry>,
    init: Option<PathBuf>,
    /// Links to busybox. They give way to everything else, so they are put in last.
    applets: Vec<PathBuf>,
    /// What init loads, in order.
    modules: Vec<PathBuf>,
    /// The host's files whose interpreters and libraries are in the image already.
    programs: BTreeSet<PathBuf>,
}

/// Splits `HOST[:GUEST]` at the last colon. A name that exists as a whole is not split.
pub fn split_added(text: &OsStr) -> (PathBuf, Option<PathBuf>) {
    let bytes = text.as_bytes();
    let colon = bytes.iter().rposition(|byte| *byte == b':');
    match colon.filter(|_| fs::symlink_metadata(text).is_err()) {
        None => (text.into(), None),
        Some(at) => {
            let path = |bytes: &[u8]| PathBuf::from(OsString::from_vec(bytes.to_vec()));
            (path(&bytes[..at]), Some(path(&bytes[at + 1..])))
        }
    }
}

impl Image {
    pub fn new() -> Image {
        Image::default()
    }

    /// Takes this file as `/init` instead of the running program.
    pub fn init(&mut self, program: impl Into<PathBuf>) {
        self.init = Some(program.into());
    }

    /// Adds a file, a link or a tree of the host with its modes, as `guest` or under the same absolute path.
    pub fn add(&mut self, host: &Path, guest: Option<&Path>) -> Result<(), Error> {
        let absolute = std::path::absolute(host).map_err(Error::file("find", host))?;
        let guest = inside(guest.unwrap_or(&absolute));
        self.add_tree(&absolute, &guest)
    }

    /// Adds a file with this content.
    pub fn file(&mut self, guest: impl AsRef<Path>, bytes: impl Into<Vec<u8>>, mode: u32) -> Result<(), Error> {
        self.put(&inside(guest.as_ref()), Entry { mode, content: Content::Bytes(bytes.into()) })
    }

    /// Writes the archive, not compressed.
    pub fn write(&self, out: impl Write) -> Result<(), Error> {
        let mut archive = Archive::new(io::BufWriter::with_capacity(1 << 16, out));
        for (path, entry) in &self.complete()?.entries {
            write_entry(&mut archive, path, entry)?;
        }
        let mut out = archive.finish().map_err(Error::file("write", "the archive"))?;
        out.flush().map_err(Error::file("write", "the archive"))
    }

    fn add_tree(&mut self, host: &Path, guest: &Path) -> Result<(), Error> {
        let metadata = fs::symlink_metadata(host).map_err(Error::file("find", host))?;
        self.put(guest, host_entry(host, &metadata)?)?;
        if metadata.is_dir() {
            for child in children(host)? {
                self.add_tree(&host.join(&child), &guest.join(&child))?;
            }
        }
        Ok(())
    }

    /// Puts an entry in place of what is there.
    fn put(&mut self, guest: &Path, entry: Entry) -> Result<(), Error> {
        let path = self.locate(guest, entry.is_directory())?;
        let conflict = |reason| Err(Error::Conflict { path: Path::new("/").join(guest), reason });
        match self.entries.get(&path) {
            Some(old) if old.is_directory() && !entry.is_directory() => conflict("a directory is there already"),
            Some(old) if !old.is_directory() && entry.is_directory() => conflict("a file is there already"),
            _ if path.as_os_str().is_empty() && !entry.is_directory() => conflict("a directory is there already"),
            _ => {
                // The root has no entry of its own: the kernel made it.
                if !path.as_os_str().is_empty() {
                    self.entries.insert(path, entry);
                }
                Ok(())
            }
        }
    }

    /// Puts an entry where nothing is. True when it did.
    fn put_absent(&mut self, guest: &Path, entry: Entry) -> Result<bool, Error> {
        let path = self.locate(guest, true)?;
        let absent = !path.as_os_str().is_empty() && !self.entries.contains_key(&path);
        if absent {
            self.entries.insert(path, entry);
        }
        Ok(absent)
    }

    /// Puts a file of the host where it is on the host, with a link at the path that led there. Nothing that is there is replaced.
    /// Returns where it is.
    fn put_host_file(&mut self, path: &Path) -> Result<PathBuf, Error> {
        let real = fs::canonicalize(path).map_err(Error::file("find", path))?;
        let metadata = fs::metadata(&real).map_err(Error::file("find", path))?;
        self.put_absent(&inside(&real), Entry::host(&real, metadata.mode() & 0o7777))?;
        // Nothing happens here when the path is real, or leads to the file through links of the image.
        self.put_absent(&inside(path), Entry::symlink(&real))?;
        Ok(real)
    }

    /// Where a path leads in the image: its directories are made where they are missing, links in place of directories followed, and
    /// a link at its end too if `follow_last`.
    fn locate(&mut self, guest: &Path, follow_last: bool) -> Result<PathBuf, Error> {
        let conflict = |reason| Error::Conflict { path: Path::new("/").join(guest), reason };
        let mut left: Vec<OsString> = guest.iter().rev().map(OsStr::to_owned).collect();
        let mut found = PathBuf::new();
        let mut links = 0;
        while let Some(name) = left.pop() {
            if name == ".." {
                found.pop();
                continue;
            }
            found.push(&name);
            let last = left.is_empty();
            match self.entries.get(&found).map(|entry| &entry.content) {
                Some(Content::Symlink(target)) if !last || follow_last => {
                    links += 1;
                    if links > LINK_LIMIT {
                        return Err(conflict("too many levels of symbolic links"));
                    }
                    found.pop();
                    if target.is_absolute() {
                        found.clear();
                    }
                    left.extend(target.iter().rev().filter(|name| *name != "/" && *name != ".").map(OsStr::to_owned));
                }
                Some(Content::Directory) => {}
                Some(_) if !last => return Err(conflict("a file is in place of one of its directories")),
                None if !last => drop(self.entries.insert(found.clone(), Entry::directory(usual_mode(&found)))),
                _ => {}
            }
        }
        Ok(found)
    }

    /// The image with everything that gives way to what was added.
    fn complete(&self) -> Result<Image, Error> {
        let mut image = self.clone();
        for (path, _) in DIRECTORIES {
            image.put_absent(Path::new(path), Entry::directory(usual_mode(Path::new(path))))?;
        }
        image.put_absent(Path::new("dev/console"), Entry { mode: 0o020600, content: Content::Node(5, 1) })?;
        image.put_absent(Path::new("dev/null"), Entry { mode: 0o020666, content: Content::Node(1, 3) })?;
        let program = Entry::host(self.init.as_deref().unwrap_or(Path::new("/proc/self/exe")), 0o755);
        // Somebody else's /init may want to start this program, so it is in the image in any case.
        if image.put_absent(Path::new("init"), program.clone())? {
            image.put_absent(Path::new("bin/lodger"), Entry::symlink("/init"))?;
        } else {
            image.put_absent(Path::new("bin/lodger"), program)?;
        }
        // One archive for all machines; a word on the kernel's command line comes before it.
        let listen = Entry { mode: 0o644, content: Content::Bytes(b"auto\n".to_vec()) };
        image.put_absent(Path::new("etc/lodger/listen"), listen)?;
        image.put_modules()?;
        image.put_applets()?;
        Ok(image)
    }
}

/// The mode of a directory that nobody gave one.
fn usual_mode(directory: &Path) -> u32 {
    let found = DIRECTORIES.iter().find(|(path, _)| directory == Path::new(path));
    found.map_or(0o755, |(_, mode)| *mode)
}

/// A path as it is below the guest's root: no leading slash, `.` or `..`.
fn inside(path: &Path) -> PathBuf {
    let mut inside = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => inside.push(name),
            Component::ParentDir => _ = inside.pop(),
            _ => {}
        }
    }
    inside
}

/// The names in a directory of the host, sorted.
fn children(directory: &Path) -> Result<Vec<OsString>, Error> {
    let entries = fs::read_dir(directory).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let mut names: Vec<_> =
        entries.map_err(Error::file("read", directory))?.iter().map(|entry| entry.file_name()).collect();
    names.sort();
    Ok(names)
}

fn host_entry(host: &Path, metadata: &Metadata) -> Result<Entry, Error> {
    let kind = metadata.file_type();
    let mode = metadata.mode() & 0o7777;
    Ok(if kind.is_dir() {
        Entry::directory(mode)
    } else if kind.is_symlink() {
        Entry::symlink(fs::read_link(host).map_err(Error::file("read", host))?)
    } else if kind.is_file() {
        Entry::host(host, mode)
    } else if kind.is_socket() {
        return Err(Error::Socket(host.to_owned()));
    } else {
        let (major, minor) = device_numbers(metadata.rdev());
        Entry { mode: metadata.mode(), content: Content::Node(major, minor) }
    })
}

/// The two parts of a device number in the layout of Linux's C libraries.
fn device_numbers(device: u64) -> (u32, u32) {
    let major = (device >> 8) & 0xfff | (device >> 32) & 0xffff_f000;
    let minor = device & 0xff | (device >> 12) & 0xffff_ff00;
    (major as u32, minor as u32)
}

fn write_entry(archive: &mut Archive<impl Write>, path: &Path, entry: &Entry) -> Result<(), Error> {
    let result = match &entry.content {
        Content::Directory => archive.directory(path, entry.mode),
        Content::Bytes(bytes) => archive.file(path, entry.mode, bytes.len() as u64, bytes.as_slice()),
        Content::Host(host) => return write_host_file(archive, path, entry.mode, host),
        Content::Symlink(target) => archive.symlink(path, target),
        Content::Node(major, minor) => archive.node(path, entry.mode, (*major, *minor)),
    };
    result.map_err(Error::file("archive", Path::new("/").join(path)))
}

fn write_host_file(archive: &mut Archive<impl Write>, path: &Path, mode: u32, host: &Path) -> Result<(), Error> {
    let file = File::open(host).map_err(Error::file("open", host))?;
    let size = file.metadata().map_err(Error::file("read", host))?.len();
    archive.file(path, mode, size, file).map_err(Error::file("archive", host))
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A directory of one test, removed at its end.
    pub struct Directory(PathBuf);

    impl Directory {
        pub fn new() -> Directory {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let name = format!("lodger-image-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            Directory(path)
        }

        pub fn path(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }

        pub fn file(&self, name: &str, content: &str) -> PathBuf {
            let path = self.path(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
            path
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn bytes(image: &Image) -> Vec<u8> {
        let mut bytes = Vec::new();
        image.write(&mut bytes).unwrap();
        bytes
    }

    fn content<'a>(image: &'a Image, path: &str) -> Option<&'a Content> {
        image.entries.get(Path::new(path)).map(|entry| &entry.content)
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        let directory = Directory::new();
        directory.file("tree/b", "2");
        directory.file("tree/a/x", "1");
        let image = |first: &str, second: &str| {
            let mut image = Image::new();
            image.init(directory.path("tree/b"));
            for name in [first, second] {
                image.file(name, "content", 0o644).unwrap();
            }
            image.add(&directory.path("tree"), Some(Path::new("/t"))).unwrap();
            bytes(&image)
        };
        assert!(image("one", "two") == image("/two", "/one"));
    }

    #[test]
    fn every_image_has_what_a_system_needs() {
        let image = Image::new().complete().unwrap();
        assert_eq!(content(&image, "init"), Some(&Content::Host("/proc/self/exe".into())));
        assert_eq!(content(&image, "bin/lodger"), Some(&Content::Symlink("/init".into())));
        assert_eq!(content(&image, "dev/console"), Some(&Content::Node(5, 1)));
        assert_eq!(image.entries[Path::new("tmp")].mode, 0o1777);
    }

    #[test]
    fn a_directory_nobody_gave_a_mode_has_its_usual_one() {
        let mut image = Image::new();
        image.file("/tmp/deep/file", "", 0o644).unwrap();
        let image = image.complete().unwrap();
        assert_eq!(image.entries[Path::new("tmp")].mode, 0o1777);
        assert_eq!(image.entries[Path::new("tmp/deep")].mode, 0o755);
    }

    #[test]
    fn beside_another_init_this_program_is_a_file() {
        let mut image = Image::new();
        image.file("/init", "#!/bin/sh\n", 0o755).unwrap();
        let image = image.complete().unwrap();
        assert_eq!(content(&image, "init"), Some(&Content::Bytes(b"#!/bin/sh\n".to_vec())));
        assert_eq!(content(&image, "bin/lodger"), Some(&Content::Host("/proc/self/exe".into())));
    }

    #[test]
    fn a_tree_keeps_its_modes_links_and_kinds() {
        let directory = Directory::new();
        fs::set_permissions(directory.file("t/bin/run", ""), fs::Permissions::from_mode(0o4750)).unwrap();
        fs::set_permissions(directory.path("t/bin"), fs::Permissions::from_mode(0o700)).unwrap();
        symlink("bin/run", directory.path("t/link")).unwrap();
        let mut image = Image::new();
        image.add(&directory.path("t"), Some(Path::new("/"))).unwrap();
        image.add(Path::new("/dev/null"), None).unwrap();
        assert_eq!(image.entries[Path::new("bin/run")].mode, 0o4750);
        assert_eq!(image.entries[Path::new("bin")].mode, 0o700);
        assert_eq!(content(&image, "link"), Some(&Content::Symlink("bin/run".into())));
        assert_eq!(content(&image, "dev/null"), Some(&Content::Node(1, 3)));
        assert_eq!(content(&image.complete().unwrap(), "bin/lodger"), Some(&Content::Symlink("/init".into())));
    }

    #[test]
    fn a_socket_is_refused_by_name() {
        let directory = Directory::new();
        let path = directory.path("s");
        let _socket = UnixListener::bind(&path).unwrap();
        let error = Image::new().add(&path, None).unwrap_err().to_string();
        assert_eq!(error, format!("add {}: a socket cannot be in an archive", path.display()));
    }

    #[test]
    fn the_last_file_wins_and_a_directory_stays_one() {
        let mut image = Image::new();
        image.file("/etc/a", "1", 0o644).unwrap();
        image.file("etc/a", "2", 0o600).unwrap();
        assert_eq!(content(&image, "etc/a"), Some(&Content::Bytes(b"2".to_vec())));
        let error = image.file("/etc", "", 0o644).unwrap_err().to_string();
        assert_eq!(error, "add /etc: a directory is there already");
        assert!(image.file("/", "", 0o644).is_err());
        let error = image.file("/etc/a/b", "", 0o644).unwrap_err().to_string();
        assert_eq!(error, "add /etc/a/b: a file is in place of one of its directories");
        assert!(image.add(Path::new("/proc/self/fd"), Some(Path::new("etc/a"))).is_err());
    }

    #[test]
    fn links_in_place_of_directories_are_followed_and_circles_refused() {
        let directory = Directory::new();
        fs::create_dir(directory.path("t")).unwrap();
        symlink("usr/bin", directory.path("t/bin")).unwrap();
        symlink("loop", directory.path("t/loop")).unwrap();
        let mut image = Image::new();
        image.add(&directory.path("t"), Some(Path::new("/"))).unwrap();
        image.file("/bin/tool", "x", 0o755).unwrap();
        assert!(content(&image, "usr/bin/tool").is_some());
        let complete = image.complete().unwrap();
        assert_eq!(content(&complete, "bin"), Some(&Content::Symlink("usr/bin".into())));
        assert_eq!(content(&complete, "usr/bin/lodger"), Some(&Content::Symlink("/init".into())));
        assert!(
            image.file("/loop/x", "", 0o644).unwrap_err().to_string().ends_with("too many levels of symbolic links")
        );
    }

    #[test]
    fn a_name_with_a_colon_is_split_only_where_no_such_file_exists() {
        let directory = Directory::new();
        let whole = directory.file("a:b", "");
        assert_eq!(split_added(whole.as_os_str()), (whole, None));
        assert_eq!(split_added(OsStr::new("/no:such:/x")), ("/no:such".into(), Some("/x".into())));
        assert_eq!(split_added(OsStr::new("/etc")), ("/etc".into(), None));
    }

    #[test]
    fn a_file_is_compressed_as_its_name_says_and_whole_or_not_there() {
        let directory = Directory::new();
        let mut image = Image::new();
        image.init(directory.file("i", &"text ".repeat(100_000)));
        let starts: [(&str, &[u8]); 3] = [("x.cpio", b"070701"), ("x.gz", b"\x1f\x8b"), ("x.zst", b"\x28\xb5\x2f\xfd")];
        for (name, start) in starts {
            let path = directory.path(name);
            image.write_file(&path).unwrap();
            let first = fs::read(&path).unwrap();
            assert!(first.starts_with(start), "{name}");
            image.write_file(&path).unwrap();
            assert_eq!(first, fs::read(&path).unwrap());
        }
        image.init("/no/such/program");
        let error = image.write_file(&directory.path("y.zst")).unwrap_err().to_string();
        assert_eq!(error, "open /no/such/program: no such file or directory");
        assert_eq!(children(&directory.0).unwrap(), ["i", "x.cpio", "x.gz", "x.zst"]);
    }

    #[test]
    fn an_output_that_is_full_is_an_error_of_every_format() {
        for name in ["x.cpio", "x.gz", "x.zst"] {
            let directory = Directory::new();
            symlink("/dev/full", directory.path(name)).unwrap();
            let mut image = Image::new();
            image.init("/bin/sh");
            // The ending counts, not the device's name.
            let error = image.write_file(&directory.path(name)).unwrap_err().to_string();
            assert_eq!(error, format!("write {}: no space left on device", directory.path(name).display()));
        }
    }
}
