//! From an Exec frame to a program.

use std::env;
use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::exec::environment::{self, Filter};
use crate::exec::{NotStarted, Program, user};
use crate::sys::errno;
use crate::sys::process::Identity;
use crate::sys::tty::Window;
use crate::wire::exec::Exec;
use crate::wire::frame::Config;

/// The program that the frame describes, by upstream's rules: `argv[0]` is ignored, and the environment is exactly the list, but null
/// means the agent's own when there is no filter and nothing when there is one.
pub fn program(exec: Exec, config: Option<&Config>) -> Result<Program, NotStarted> {
    let extension = exec.extension;
    let env = match (&exec.env, config) {
        // The usual case, without a copy.
        (None, None) if exec.cwd.is_empty() && extension.set_env.is_empty() => None,
        _ => {
            let env = environment(exec.env, &exec.cwd, config)?;
            Some(environment::without_repeats(env.into_iter().chain(extension.set_env).collect()))
        }
    };
    let identity = match extension.user.as_str() {
        "" => sudo_identity()?,
        user => Some(user::look_up(user).map_err(NotStarted::Refused)?),
    };
    let mut arguments = exec.argv.unwrap_or_default();
    arguments.drain(..arguments.len().min(1));
    Ok(Program {
        path: exec.path,
        arguments,
        env,
        cwd: exec.cwd,
        extra: exec.fds,
        terminal: extension.terminal.map(|(rows, columns)| Window { rows, columns }),
        detached: extension.detach,
        identity,
        umask: extension.umask,
        ..Program::default()
    })
}

fn environment(env: Option<Vec<Vec<u8>>>, cwd: &[u8], config: Option<&Config>) -> Result<Vec<Vec<u8>>, NotStarted> {
    if let Some(config) = config {
        let patterns = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        let filter = Filter::new(&patterns(&config.env_keep), &patterns(&config.env_remove));
        return Ok(filter.map_err(NotStarted::Refused)?.apply(env.unwrap_or_default()));
    }
    Ok(env.unwrap_or_else(|| {
        let mut own = environment::own();
        if !cwd.is_empty() {
            let here = env::current_dir().unwrap_or_default().join(OsStr::from_bytes(cwd));
            own.push([b"PWD=", &here.into_os_string().into_vec()[..]].concat());
        }
        own
    }))
}

/// An agent that was started through sudo runs programs as the user who called it.
fn sudo_identity() -> Result<Option<Identity>, NotStarted> {
    let Some(uid) = env::var_os("SUDO_UID") else { return Ok(None) };
    let number = |name: &str, text: &OsStr| {
        let number = text.to_str().and_then(|text| text.parse::<u32>().ok());
        number.ok_or_else(|| NotStarted::Refused(format!("{name} is no user number: {}", text.to_string_lossy())))
    };
    let uid = number("SUDO_UID", &uid)?;
    let gid = env::var_os("SUDO_GID").map_or(Ok(uid), |gid| number("SUDO_GID", &gid))?;
    Ok(Some(Identity { uid, gid, groups: Vec::new() }))
}

/// The error text that upstream's agent, written in Go, gives.
pub fn upstream_text(why: &NotStarted) -> String {
    match why {
        NotStarted::Nameless => "exec: no command".to_owned(),
        NotStarted::NotOnPath(name) => {
            format!("exec: \"{}\": executable file not found in $PATH", String::from_utf8_lossy(name))
        }
        NotStarted::System { path, error, .. } => {
            format!("fork/exec {}: {}", String::from_utf8_lossy(path), errno::describe(error))
        }
        NotStarted::Descriptor(text) | NotStarted::Refused(text) => text.clone(),
    }
}
