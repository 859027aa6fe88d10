//! The program: process 1 where it is started as such, else one of the commands.

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use lodger::{cli, init};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    let as_init = Path::new(&name).file_name() == Some(OsStr::new("init"));
    if std::process::id() == 1 || as_init {
        return init::run();
    }
    cli::run(arguments)
}
