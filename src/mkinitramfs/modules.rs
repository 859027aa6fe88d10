//! Kernel modules by name, with the modules they depend on.
//!
//! Compressed modules are unpacked here, so that every kernel can load them. Names are equal when they differ in `-` and `_` only.
//! Dependencies come from `modules.dep`; a kernel package that was unpacked and not installed has none, and there they are in the modules
//! themselves, as `depends=` in the section `.modinfo`.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::mkinitramfs::{Content, Entry, Error, Image, MODULE_LIST, children, unpack};

/// Where a kernel looks for its modules.
const MODULES: &str = "lib/modules";

impl Image {
    /// Adds modules of a kernel, from its `…/lib/modules/RELEASE`, with the ones they depend on, and puts them into the list that
    /// init loads. Returns the names that are neither there nor built into the kernel.
    pub fn modules(&mut self, tree: &Path, names: &[&str]) -> Result<Vec<String>, Error> {
        let tree = fs::canonicalize(tree).map_err(Error::file("open", tree))?;
        let available = Available::of(&tree)?;
        let mut search = Search { available, visited: BTreeSet::new(), order: Vec::new(), missing: Vec::new() };
        for name in names {
            search.visit(&tree, &module_name(name))?;
        }
        let release = Path::new(MODULES).join(tree.file_name().unwrap_or_default());
        for path in search.order {
            let host = tree.join(&path);
            let (guest, entry) = match unpack::unpacked_name(&path) {
                None => (release.join(&path), Entry::host(host, 0o644)),
                Some(name) => {
                    (release.join(name), Entry { mode: 0o644, content: Content::Bytes(unpack::read(&host)?) })
                }
            };
            self.put_absent(&guest, entry)?;
            if !self.modules.contains(&guest) {
                self.modules.push(guest);
            }
        }
        Ok(search.missing)
    }

    /// The list for init.
    pub(super) fn put_modules(&mut self) -> Result<(), Error> {
        if self.modules.is_empty() {
            return Ok(());
        }
        let mut list = Vec::new();
        for path in &self.modules {
            list.push(b'/');
            list.extend(path.as_os_str().as_bytes());
            list.push(b'\n');
        }
        self.put_absent(Path::new(MODULE_LIST), Entry { mode: 0o644, content: Content::Bytes(list) }).map(drop)
    }
}

/// The modules of one kernel by name.
struct Available {
    paths: BTreeMap<String, PathBuf>,
    /// What `modules.dep` says, if it is there.
    dependencies: Option<BTreeMap<String, Vec<String>>>,
    built_in: BTreeSet<String>,
}

impl Available {
    fn of(tree: &Path) -> Result<Available, Error> {
        let mut available = Available { paths: BTreeMap::new(), dependencies: None, built_in: BTreeSet::new() };
        // A kernel without any built-in module has no such file, which is no error.
        let built_in = fs::read_to_string(tree.join("modules.builtin")).unwrap_or_default();
        available.built_in.extend(built_in.lines().map(module_name));
        match fs::read_to_string(tree.join("modules.dep")) {
            Ok(table) => available.read_table(&table),
            Err(_) => available.walk(tree, Path::new(""))?,
        }
        Ok(available)
    }

    fn read_table(&mut self, table: &str) {
        let mut dependencies = BTreeMap::new();
        for (path, needed) in table.lines().filter_map(|line| line.split_once(':')) {
            let name = module_name(path);
            dependencies.insert(name.clone(), needed.split_whitespace().map(module_name).collect());
            self.paths.insert(name, path.into());
        }
        self.dependencies = Some(dependencies);
    }

    fn walk(&mut self, tree: &Path, below: &Path) -> Result<(), Error> {
        for name in children(&tree.join(below))? {
            let path = below.join(&name);
            // Links lead to the kernel's sources.
            match fs::symlink_metadata(tree.join(&path)) {
                Ok(found) if found.is_dir() => self.walk(tree, &path)?,
                Ok(found) if found.is_file() && is_module(&name) => {
                    self.paths.insert(module_name(&name.to_string_lossy()), path);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn dependencies(&self, tree: &Path, name: &str, path: &Path) -> Result<Vec<String>, Error> {
        if let Some(table) = &self.dependencies {
            return Ok(table.get(name).cloned().unwrap_or_default());
        }
        let path = tree.join(path);
        let module = unpack::read(&path)?;
        depends(&module).ok_or(Error::Module(path))
    }
}

struct Search {
    available: Available,
    visited: BTreeSet<String>,
    /// Paths in the tree, dependencies first.
    order: Vec<PathBuf>,
    missing: Vec<String>,
}

impl Search {
    fn visit(&mut self, tree: &Path, name: &str) -> Result<(), Error> {
        if !self.visited.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(path) = self.available.paths.get(name).cloned() else {
            if !self.available.built_in.contains(name) {
                self.missing.push(name.to_owned());
            }
            return Ok(());
        };
        for needed in self.available.dependencies(tree, name, &path)? {
            self.visit(tree, &needed)?;
        }
        self.order.push(path);
        Ok(())
    }
}

/// The name that the kernel gives to the module in this file.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// Whether a file is a module, compressed or not.
fn is_module(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    [".ko", ".ko.gz", ".ko.xz", ".ko.zst"].iter().any(|ending| name.ends_with(ending))
}

/// The names behind `depends=`, which every module has; `None` for what is not a module as the kernel takes it.
fn depends(module: &[u8]) -> Option<Vec<String>> {
    const KEY: &[u8] = b"\0depends=";
    let start = module.windows(KEY.len()).position(|bytes| bytes == KEY)? + KEY.len();
    let length = module[start..].iter().position(|byte| *byte == 0)?;
    let names = String::from_utf8_lossy(&module[start..][..length]);
    Some(names.split(',').filter(|name| !name.is_empty()).map(module_name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::io::Write;

    use crate::mkinitramfs::gzip::Gzip;
    use crate::mkinitramfs::tests::Directory;

    fn module(depends: &str) -> String {
        format!("\x7fELF...\0license=GPL\0depends={depends}\0retpoline=Y\0")
    }

    fn tree() -> Directory {
        let tree = Directory::new();
        tree.file("6.1/kernel/drivers/char/virtio_console.ko", &module("virtio_ring,virtio"));
        tree.file("6.1/kernel/drivers/virtio/virtio.ko", &module("virtio_ring"));
        tree.file("6.1/kernel/drivers/virtio/virtio_ring.ko", &module(""));
        tree.file("6.1/kernel/net/with-dash.ko", &module("virtio-ring,ext4"));
        tree.file("6.1/modules.builtin", "kernel/fs/ext4.ko\nkernel/drivers/tty/serial-core.ko\n");
        tree
    }

    fn loaded(tree: &Directory, names: &[&str]) -> (Vec<String>, Vec<String>) {
        let mut image = Image::new();
        let missing = image.modules(&tree.path("6.1"), names).unwrap();
        let paths = image.modules.iter().map(|path| path.to_string_lossy().into_owned());
        (paths.collect(), missing)
    }

    #[test]
    fn modules_come_behind_the_ones_they_depend_on() {
        let expected = [
            "lib/modules/6.1/kernel/drivers/virtio/virtio_ring.ko",
            "lib/modules/6.1/kernel/drivers/virtio/virtio.ko",
            "lib/modules/6.1/kernel/drivers/char/virtio_console.ko",
            "lib/modules/6.1/kernel/net/with-dash.ko",
        ];
        let tree = tree();
        assert_eq!(loaded(&tree, &["virtio-console", "with_dash"]), (expected.map(String::from).to_vec(), vec![]));

        tree.file(
            "6.1/modules.dep",
            "kernel/drivers/virtio/virtio_ring.ko:\nkernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko\n\
             kernel/drivers/char/virtio_console.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko\n\
             kernel/net/with-dash.ko:\n",
        );
        assert_eq!(loaded(&tree, &["virtio-console", "with_dash"]), (expected.map(String::from).to_vec(), vec![]));
    }

    #[test]
    fn built_in_modules_are_left_out_and_unknown_ones_named() {
        let tree = tree();
        assert_eq!(loaded(&tree, &["ext4", "serial_core", "nosuch", "nosuch"]), (vec![], vec!["nosuch".to_owned()]));
    }

    #[test]
    fn what_is_no_module_is_refused_by_name() {
        let tree = tree();
        tree.file("6.1/kernel/no.ko", "?");
        let error = Image::new().modules(&tree.path("6.1"), &["no"]).unwrap_err();
        assert!(error.to_string().ends_with("/no.ko: not a kernel module, and there is no modules.dep"), "{error}");
        tree.file("6.1/kernel/no.ko.xz", "?");
        fs::remove_file(tree.path("6.1/kernel/no.ko")).unwrap();
        let error = Image::new().modules(&tree.path("6.1"), &["no"]).unwrap_err();
        assert!(error.to_string().ends_with("/no.ko.xz: this is no .xz file"), "{error}");
    }

    #[test]
    fn a_compressed_module_is_in_the_image_as_what_it_was() {
        let tree = tree();
        let needing = module("virtio_ring");
        let mut packed = Vec::new();
        let mut gzip = Gzip::new(&mut packed).unwrap();
        gzip.write_all(needing.as_bytes()).unwrap();
        gzip.finish().unwrap();
        fs::write(tree.path("6.1/kernel/packed.ko.gz"), packed).unwrap();
        let mut image = Image::new();
        assert!(image.modules(&tree.path("6.1"), &["packed"]).unwrap().is_empty());
        let paths: Vec<&str> = image.modules.iter().filter_map(|path| path.to_str()).collect();
        assert_eq!(paths, ["lib/modules/6.1/kernel/drivers/virtio/virtio_ring.ko", "lib/modules/6.1/kernel/packed.ko"]);
        let content = &image.entries[Path::new("lib/modules/6.1/kernel/packed.ko")].content;
        assert_eq!(*content, Content::Bytes(needing.into_bytes()));
    }
}
