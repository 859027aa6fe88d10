//! The libraries of a program, looked for as its loader would.
//!
//! A library is looked for in the run paths of who needs it, then in the system's directories: for glibc those of `/etc/ld.so.conf`
//! and the ones compiled into the loader, for musl those of `/etc/ld-musl-ARCH.path` or a fixed list. Guests have no
//! `ld.so.cache`, so a library from a directory of `ld.so.conf` also gets a link in the loader's own first directory.
//!
//! Source: ld.so(8); glibc `elf/dl-load.c`; musl `ldso/dynlink.c`.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};

use crate::mkinitramfs::elf::Elf;
use crate::mkinitramfs::{Entry, Error, Image, children, inside};

/// Deepest nesting of includes in `/etc/ld.so.conf`. One that includes itself must end somewhere.
const INCLUDE_LIMIT: usize = 8;

/// Libraries that musl's loader is itself, whatever comes behind the first dot.
const MUSL_OWN: [&str; 7] = ["libc.", "libpthread.", "librt.", "libm.", "libdl.", "libutil.", "libxnet."];

/// Where glibc's loader looks if nothing else can be learned from it.
const GLIBC_DIRECTORIES: [&str; 4] = ["/lib64", "/usr/lib64", "/lib", "/usr/lib"];

impl Image {
    /// Adds the loader and the libraries of a program.
    pub(super) fn put_libraries(&mut self, program: &Path, elf: Elf) -> Result<(), Error> {
        let Some(interpreter) = elf.interpreter.clone().map(PathBuf::from) else { return Ok(()) };
        self.put_host_file(&interpreter)?;
        let loader = Loader::of(&interpreter)?;
        if let Some(table) = &loader.table {
            self.put_host_file(table)?;
        }
        let mut known = BTreeSet::new();
        let mut open = VecDeque::from([Object::new(program, elf.clone(), &[], &loader)]);
        while let Some(object) = open.pop_front() {
            for name in &object.elf.needed {
                if !known.insert(name.clone()) || loader.is(name) {
                    continue;
                }
                let missing = || Error::NoLibrary { program: object.path.clone(), library: name.clone() };
                let (path, library) = loader.find(name, &object, &elf).ok_or_else(missing)?;
                self.put_library(&path, &loader)?;
                open.push_back(Object::new(&path, library, &object.inherited, &loader));
            }
        }
        Ok(())
    }

    fn put_library(&mut self, path: &Path, loader: &Loader) -> Result<(), Error> {
        self.put_directories(path)?;
        let real = self.put_host_file(path)?;
        let directory = path.parent().unwrap_or(path);
        if loader.configured.iter().any(|known| known == directory)
            && let (Some(own), Some(name)) = (loader.own.first(), path.file_name())
            && !loader.own.iter().any(|known| known == directory)
        {
            self.put_absent(&inside(&own.join(name)), Entry::symlink(real))?;
        }
        Ok(())
    }

    /// Makes the directories that a path such as `/opt/x/lib/../y` goes through and comes back from.
    fn put_directories(&mut self, path: &Path) -> Result<(), Error> {
        for before in path.ancestors().filter(|before| before.ends_with("..")) {
            if let Some(directory) = before.parent() {
                self.put_absent(&inside(directory), Entry::directory(0o755))?;
            }
        }
        Ok(())
    }
}

/// A program or library whose libraries are to be found.
struct Object {
    path: PathBuf,
    elf: Elf,
    /// Run paths that its own libraries are looked for in.
    search: Vec<PathBuf>,
    /// Run paths that it hands on to its libraries.
    inherited: Vec<PathBuf>,
}

impl Object {
    fn new(path: &Path, elf: Elf, inherited: &[PathBuf], loader: &Loader) -> Object {
        let origin = path.parent().unwrap_or(path);
        let own = run_path(elf.runpath.as_ref().or(elf.rpath.as_ref()).map_or("", String::as_str), origin);
        let with_inherited = [own.as_slice(), inherited].concat();
        // In glibc, DT_RUNPATH is for the object alone and turns DT_RPATH off for it; in musl the two are the same.
        let (search, inherited) = match elf.runpath.is_some() && !loader.is_musl {
            true => (own, inherited.to_vec()),
            false => (with_inherited.clone(), with_inherited),
        };
        Object { path: path.to_owned(), elf, search, inherited }
    }
}

struct Loader {
    is_musl: bool,
    /// The file that tells musl's loader its directories.
    table: Option<PathBuf>,
    /// The directories of `/etc/ld.so.conf`, which the loader of the guest does not know.
    configured: Vec<PathBuf>,
    /// The directories that the loader knows in the guest too.
    own: Vec<PathBuf>,
}

impl Loader {
    fn of(interpreter: &Path) -> Result<Loader, Error> {
        let name = interpreter.file_name().unwrap_or_default().to_string_lossy();
        if let Some(architecture) = name.strip_prefix("ld-musl-").and_then(|rest| rest.split('.').next()) {
            return Ok(Loader::musl(Path::new(&format!("/etc/ld-musl-{architecture}.path"))));
        }
        let program = fs::read(interpreter).map_err(Error::file("read", interpreter))?;
        let configured = configured(Path::new("/etc/ld.so.conf"), INCLUDE_LIMIT);
        Ok(Loader { is_musl: false, table: None, configured, own: glibc_directories(&program) })
    }

    fn musl(table: &Path) -> Loader {
        let found = fs::read_to_string(table).ok();
        let list = found.as_deref().unwrap_or("/lib:/usr/local/lib:/usr/lib");
        let own = list.split([':', '\n']).filter(|entry| !entry.is_empty()).map(PathBuf::from).collect();
        Loader { is_musl: true, table: found.is_some().then(|| table.to_owned()), configured: Vec::new(), own }
    }

    /// Whether the loader itself is this library.
    fn is(&self, library: &str) -> bool {
        self.is_musl && MUSL_OWN.iter().any(|own| library.starts_with(own))
    }

    /// The first library of this name that fits the program.
    fn find(&self, name: &str, object: &Object, program: &Elf) -> Option<(PathBuf, Elf)> {
        let fitting = |path: PathBuf| {
            let library = Elf::parse(&fs::read(&path).ok()?)?;
            program.fits(&library).then_some((path, library))
        };
        if name.contains('/') {
            return fitting(name.into());
        }
        let directories = object.search.iter().chain(&self.configured).chain(&self.own);
        directories.map(|directory| directory.join(name)).find_map(fitting)
    }
}

/// The directories that are compiled into glibc's loader: strings that begin and end with a slash.
fn glibc_directories(loader: &[u8]) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for text in loader.split(|byte| *byte == 0).filter_map(|bytes| std::str::from_utf8(bytes).ok()) {
        let plain = text.len() > 1 && text.starts_with('/') && text.ends_with('/') && text.contains("/lib");
        let directory = PathBuf::from(text.trim_end_matches('/'));
        if plain && !found.contains(&directory) {
            found.push(directory);
        }
    }
    if found.is_empty() { GLIBC_DIRECTORIES.map(PathBuf::from).to_vec() } else { found }
}

/// The directories of a run path. The loader's own variables are left out, except `$ORIGIN`: nobody else uses them.
fn run_path(list: &str, origin: &Path) -> Vec<PathBuf> {
    let origin = origin.to_string_lossy();
    let expanded = list.split(':').map(|entry| entry.replace("${ORIGIN}", &origin).replace("$ORIGIN", &origin));
    // An empty or relative entry means the current directory of whoever starts the program.
    expanded.filter(|entry| entry.starts_with('/') && !entry.contains('$')).map(PathBuf::from).collect()
}

/// The directories of a file like `/etc/ld.so.conf`. One that cannot be read has none.
fn configured(file: &Path, depth_left: usize) -> Vec<PathBuf> {
    let mut directories = Vec::new();
    let text = fs::read_to_string(file).unwrap_or_default();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or(line).trim();
        if let Some(patterns) = line.strip_prefix("include").filter(|rest| rest.starts_with(char::is_whitespace)) {
            for pattern in patterns.split_whitespace().filter(|_| depth_left > 0) {
                let pattern = file.with_file_name("").join(pattern);
                directories.extend(matching(&pattern).iter().flat_map(|file| configured(file, depth_left - 1)));
            }
        } else if line.starts_with('/') {
            directories.push(line.split('=').next().unwrap_or(line).trim_end_matches('/').into());
        }
    }
    directories
}

/// The files whose last name matches the one of a pattern, in which `*` stands for anything.
fn matching(pattern: &Path) -> Vec<PathBuf> {
    let name = pattern.file_name().unwrap_or_default().to_string_lossy();
    let Some((start, end)) = name.split_once('*') else { return vec![pattern.to_owned()] };
    let directory = pattern.parent().unwrap_or(pattern);
    let fits = |name: &str| name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end);
    let names = children(directory).unwrap_or_default();
    names.iter().filter(|name| fits(&name.to_string_lossy())).map(|name| directory.join(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::mkinitramfs::tests::Directory;

    #[test]
    fn included_files_are_read_in_order_and_a_circle_ends() {
        let directory = Directory::new();
        let main = directory.file("ld.so.conf", "# text\n/first # more\ninclude conf.d/*.conf\ninclude ld.so.conf\n");
        directory.file("conf.d/b.conf", "/b/\nhwcap 1 x\n");
        directory.file("conf.d/a.conf", "/a\n");
        directory.file("conf.d/c.txt", "/c\n");
        assert_eq!(configured(&main, 0), [Path::new("/first")]);
        let found = configured(&main, INCLUDE_LIMIT);
        assert_eq!(&found[..4], ["/first", "/a", "/b", "/first"].map(PathBuf::from));
        assert_eq!(found.len(), 3 * INCLUDE_LIMIT + 1);
    }

    #[test]
    fn run_paths_are_absolute_with_the_origin_in_place() {
        let found = run_path("$ORIGIN/../lib::${ORIGIN}:/a:$LIB/x:rel", Path::new("/opt/bin"));
        assert_eq!(found, ["/opt/bin/../lib", "/opt/bin", "/a"].map(PathBuf::from));
    }

    #[test]
    fn musl_is_its_own_c_library_and_has_a_list_where_there_is_no_table() {
        let loader = Loader::musl(Path::new("/no/such/table"));
        assert_eq!(loader.own, ["/lib", "/usr/local/lib", "/usr/lib"].map(PathBuf::from));
        assert!(loader.is("libc.musl-x86_64.so.1") && loader.is("libpthread.so.0") && !loader.is("libcap.so.2"));
    }

    #[test]
    fn a_program_inherits_run_paths_as_its_loader_says() {
        let loader = |is_musl| Loader { is_musl, ..Loader::musl(Path::new("/no/such/table")) };
        let object = |is_musl, rpath: Option<&str>, runpath: Option<&str>| {
            let elf = Elf { rpath: rpath.map(String::from), runpath: runpath.map(String::from), ..Elf::default() };
            let object = Object::new(Path::new("/x"), elf, &[PathBuf::from("/parent")], &loader(is_musl));
            let text =
                |paths: &[PathBuf]| paths.iter().map(|path| path.to_string_lossy()).collect::<Vec<_>>().join(":");
            (text(&object.search), text(&object.inherited))
        };
        let pair = |search: &str, inherited: &str| (search.to_owned(), inherited.to_owned());
        assert_eq!(object(false, Some("/r"), None), pair("/r:/parent", "/r:/parent"));
        assert_eq!(object(false, Some("/r"), Some("/n")), pair("/n", "/parent"));
        assert_eq!(object(true, Some("/r"), Some("/n")), pair("/n:/parent", "/n:/parent"));
        assert_eq!(object(false, None, None), pair("/parent", "/parent"));
    }

    #[test]
    fn the_running_test_finds_its_libraries() {
        let program = fs::canonicalize("/proc/self/exe").unwrap();
        let elf = Elf::parse(&fs::read(&program).unwrap()).unwrap();
        let mut image = Image::new();
        image.put_libraries(&program, elf.clone()).unwrap();
        for path in elf.interpreter.iter().map(|path| fs::canonicalize(path).unwrap()) {
            assert!(image.entries.contains_key(&inside(&path)));
        }
        let is_library = |name: &String| image.entries.keys().any(|path| path.ends_with(name));
        assert!(elf.needed.iter().all(is_library));
    }

    #[test]
    fn a_missing_library_is_named_with_who_needs_it() {
        let program = Path::new("/proc/self/exe");
        let mut elf = Elf::parse(&fs::read(program).unwrap()).unwrap();
        elf.needed = vec!["libnosuch.so.1".into()];
        if elf.interpreter.is_some() {
            let error = Image::new().put_libraries(program, elf).unwrap_err().to_string();
            assert_eq!(error, "add /proc/self/exe: library libnosuch.so.1 not found");
        }
    }
}
