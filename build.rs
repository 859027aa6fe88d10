//! Puts the version into the program (the package's, git's description of the source, and the target), and leaves the unwinding tables
//! out of the static binary.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Absent outside of a checkout (a packaged crate); then the package's version stands alone.
    for path in [".git/HEAD", ".git/index"] {
        if std::path::Path::new(path).exists() {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    let described = Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=10"]).output();
    let description = described.ok().filter(|output| output.status.success()).map(|output| output.stdout);
    let description = description.and_then(|text| String::from_utf8(text).ok()).unwrap_or_default();
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    // Cargo tells build scripts of no panic strategy; of our profiles only the release one aborts.
    if is("CARGO_CFG_TARGET_ENV", "musl") && is("PROFILE", "release") {
        let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo:rerun-if-changed=src/no-unwind.ld");
        println!("cargo:rustc-link-arg-bins=-T{folder}/src/no-unwind.ld");
    }
    println!("cargo:rustc-env=LODGER_GIT={}", description.trim());
    println!("cargo:rustc-env=LODGER_TARGET={}", std::env::var("TARGET").unwrap_or_default());
}
