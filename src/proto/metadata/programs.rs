//! How the task's command and shells are started: as whom, where, and with which environment.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::exec::{self, Channel, Program, Session, environment, user};
use crate::proto::metadata::{Guest, held};
use crate::sys::process::effective_user;
use crate::sys::tty::Window;

/// Starts a program; the error says in one line why it does not run.
pub fn start(guest: &Guest, argv: &[String], terminal: Option<Window>) -> Result<(Session, Vec<Channel>), String> {
    let [name, arguments @ ..] = argv else { return Err("no program is named".to_owned()) };
    let config = guest.config;
    let known = config.user.as_deref().and_then(user::name_and_home);
    let identity = config.user.as_deref().map(user::look_up).transpose()?;
    let mut env = environment::own();
    if let Some((name, home)) = &known {
        env.extend([("HOME", home), ("USER", name), ("LOGNAME", name)].map(|(name, value)| pair(name, value)));
    }
    env.extend(config.env.iter().chain(held(&guest.env).iter()).map(|entry| entry.clone().into_bytes()));
    let cwd = match (&config.workdir, &known) {
        (Some(workdir), _) => workdir.as_os_str().as_bytes().to_vec(),
        (None, Some((_, home))) => home.clone().into_bytes(),
        (None, None) => own_home(),
    };
    let program = Program {
        path: name.clone().into_bytes(),
        arguments: arguments.iter().map(|argument| argument.clone().into_bytes()).collect(),
        env: Some(environment::without_repeats(env)),
        cwd,
        terminal,
        // Only root may change its groups, and nobody else needs it to stay who it is.
        identity: identity.filter(|identity| identity.uid != effective_user()),
        ..Program::default()
    };
    exec::start(&program).map_err(|error| error.text())
}

fn pair(name: &str, value: &str) -> Vec<u8> {
    [name, "=", value].concat().into_bytes()
}

/// Ours, where it is one.
fn own_home() -> Vec<u8> {
    let home = std::env::var_os("HOME").map(|home| home.as_bytes().to_vec());
    home.filter(|home| Path::new(OsStr::from_bytes(home)).is_dir()).unwrap_or_else(|| b"/".to_vec())
}
