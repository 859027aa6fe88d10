//! What a guest runs on: a kernel with its modules, and the processor.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::vm::Error;

/// Where initramfs/fetch-kernel.sh unpacks kernels, below the project's folder.
const FETCHED: &str = "build/kernel/boot";

/// A kernel, and where its modules are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    pub image: PathBuf,
    /// `.../lib/modules/RELEASE`; `None`: everything must be built in.
    pub modules: Option<PathBuf>,
}

/// The kernel to boot: the one that is named, the one in the environment variable LODGER_KERNEL, the newest that was fetched (looked for
/// from the working directory and from this program upwards), the newest readable one in /boot.
pub fn find(named: Option<&Path>, modules: Option<&Path>) -> Result<Kernel, Error> {
    let named = named.map(Path::to_owned).or_else(|| env::var_os("LODGER_KERNEL").map(PathBuf::from));
    let image = match named {
        Some(path) => {
            File::open(&path).map_err(|error| Error::File { operation: "open", path: path.clone(), error })?;
            path
        }
        None => fetched().or_else(|| newest(Path::new("/boot"))).ok_or(Error::NoKernel)?,
    };
    let modules = match modules {
        Some(tree) if tree.is_dir() => Some(tree.to_owned()),
        Some(tree) => {
            let error = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(Error::File { operation: "read the modules in", path: tree.to_owned(), error });
        }
        None => modules_of(&image),
    };
    Ok(Kernel { image, modules })
}

fn fetched() -> Option<PathBuf> {
    let starts = [env::current_dir().ok(), env::current_exe().ok()];
    let folders = starts.iter().flatten().flat_map(|start| start.ancestors());
    folders.filter_map(|folder| newest(&folder.join(FETCHED))).next()
}

/// The readable vmlinuz with the highest version in a folder.
fn newest(folder: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    let kernels = entries.filter(|path| release(path).is_some() && File::open(path).is_ok());
    kernels.max_by_key(|path| release(path).map(version))
}

/// `6.1.0-56-cloud-amd64` of `vmlinuz-6.1.0-56-cloud-amd64`.
fn release(image: &Path) -> Option<&str> {
    image.file_name()?.to_str()?.strip_prefix("vmlinuz-")
}

/// The numbers in a version, to be compared one by one: 6.10 is newer than 6.9.
fn version(release: &str) -> Vec<u64> {
    let numbers = release.split(|character: char| !character.is_ascii_digit());
    numbers.filter(|digits| !digits.is_empty()).map(|digits| digits.parse().unwrap_or(u64::MAX)).collect()
}

/// `X/lib/modules/RELEASE` for `X/boot/vmlinuz-RELEASE`.
fn modules_of(image: &Path) -> Option<PathBuf> {
    let root = image.parent()?.parent()?;
    let tree = root.join("lib/modules").join(release(image)?);
    tree.is_dir().then_some(tree)
}

/// How QEMU runs the guest's processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    Kvm,
    /// QEMU's own translation: slower, and everywhere.
    Tcg,
}

/// KVM where it works. A device /dev/kvm can be there on a processor without virtualisation, and QEMU then hangs before the first instruction.
pub fn accelerator() -> Accelerator {
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = processor.lines().find(|line| line.starts_with("flags"));
    let able = flags.is_some_and(|line| line.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"));
    let device = able && File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if device { Accelerator::Kvm } else { Accelerator::Tcg }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_their_numbers() {
        assert!(version("6.10.1-cloud") > version("6.9.12-cloud"));
        assert!(version("6.1.0-56-cloud-amd64") > version("6.1.0-9-cloud-amd64"));
        assert_eq!(release(Path::new("/boot/vmlinuz-6.1.0")), Some("6.1.0"));
        assert_eq!(release(Path::new("/boot/initrd.img-6.1.0")), None);
    }
}
