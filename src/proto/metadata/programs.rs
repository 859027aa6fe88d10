//! How the task's command and shells are started: as whom, where, and with which environment.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::exec::{self, Channel, Program, Session, environment, user};
use crate::proto::metadata::{Guest, held};
use crate::sys::process::{Identity, effective_group, effective_user};
use crate::sys::tty::Window;

/// A variable of the task's environment: its name and its value.
pub type Variable = (String, String);

/// Starts a program; the error says in one line why it does not run.
pub fn start(guest: &Guest, argv: &[String], terminal: Option<Window>) -> Result<(Session, Vec<Channel>), String> {
    let [name, arguments @ ..] = argv else { return Err("no program is named".to_owned()) };
    let config = guest.config;
    let wanted = config.user.as_deref().map(|text| user::look_up(text).map(|identity| (text, identity))).transpose()?;
    let account = Account::of(wanted.as_ref().map(|(text, identity)| (*text, identity.uid)));
    let identity = wanted.map(|(text, identity)| permitted(text, identity)).transpose()?.flatten();
    let variables = account.variables();
    let mut env = environment::own();
    if config.user.is_some() {
        env.extend(variables);
    } else {
        // Only what is missing.
        env.splice(0..0, variables);
    }
    env.extend(config.env.iter().map(|entry| entry.clone().into_bytes()));
    for variable in held(&guest.env).iter() {
        env.push(entry(variable)?);
    }
    let cwd = match &config.workdir {
        Some(workdir) => workdir.as_os_str().as_bytes().to_vec(),
        None if config.user.is_some() => account.home.into_bytes(),
        None => own_home(account.home),
    };
    let program = Program {
        path: name.clone().into_bytes(),
        arguments: arguments.iter().map(|argument| argument.clone().into_bytes()).collect(),
        env: Some(environment::without_repeats(env)),
        cwd,
        terminal,
        identity,
        ..Program::default()
    };
    exec::start(&program).map_err(|error| error.text())
}

/// The identity to take on. Only root can take one on; whoever else it is must be that already.
fn permitted(text: &str, identity: Identity) -> Result<Option<Identity>, String> {
    if effective_user() == 0 {
        return Ok(Some(identity));
    }
    let names_group = text.contains(':');
    let is_other = identity.uid != effective_user() || (names_group && identity.gid != effective_group());
    if is_other { Err(format!("user {text}: only root can become another user or group")) } else { Ok(None) }
}

/// What a program may want to know of its user.
struct Account {
    name: String,
    home: String,
}

impl Account {
    /// That of a user as it is named and with its number, or else our own. Without an entry of its own a user has its number for a name.
    fn of(wanted: Option<(&str, u32)>) -> Account {
        let uid = wanted.map_or_else(effective_user, |(_, uid)| uid).to_string();
        let by_name = wanted.and_then(|(text, _)| user::name_and_home(text));
        let found = by_name.or_else(|| user::name_and_home(&uid));
        let (name, home) = found.unwrap_or_else(|| (uid, "/".to_owned()));
        Account { name, home: if home.is_empty() { "/".to_owned() } else { home } }
    }

    fn variables(&self) -> [Vec<u8>; 3] {
        [("HOME", &self.home), ("USER", &self.name), ("LOGNAME", &self.name)]
            .map(|(name, value)| [name, "=", value].concat().into_bytes())
    }
}

/// A variable as programs get it; the error says which one cannot be passed on, and why.
fn entry((name, value): &Variable) -> Result<Vec<u8>, String> {
    let why = if name.is_empty() {
        "a name must not be empty"
    } else if name.contains('=') {
        "a name must not contain ="
    } else if name.contains('\0') || value.contains('\0') {
        "a NUL cannot be passed on"
    } else {
        return Ok([name, "=", value].concat().into_bytes());
    };
    Err(format!("environment variable {name:?}: {why}"))
}

/// The variable's, where it is a folder; else that of the account, where that is one.
fn own_home(home: String) -> Vec<u8> {
    let named = std::env::var_os("HOME").map(|home| home.as_bytes().to_vec());
    let is_folder = |home: &Vec<u8>| Path::new(OsStr::from_bytes(home)).is_dir();
    named
        .filter(is_folder)
        .unwrap_or_else(|| Some(home.into_bytes()).filter(is_folder).unwrap_or_else(|| b"/".to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_that_cannot_be_passed_on_are_named() {
        let of = |name: &str, value: &str| entry(&(name.to_owned(), value.to_owned()));
        assert_eq!(of("A", "b=c"), Ok(b"A=b=c".to_vec()));
        assert_eq!(of("A", ""), Ok(b"A=".to_vec()));
        let wrong = |name, value| of(name, value).expect_err("it is wrong");
        assert_eq!(wrong("", "x"), "environment variable \"\": a name must not be empty");
        assert_eq!(wrong("A=B", "x"), "environment variable \"A=B\": a name must not contain =");
        assert_eq!(wrong("A", "x\0y"), "environment variable \"A\": a NUL cannot be passed on");
        assert!(of("A\0", "").is_err());
    }

    #[test]
    fn a_user_without_an_entry_has_its_number_for_a_name_and_the_root_for_a_home() {
        let Account { name, home } = Account::of(Some(("4242424", 4_242_424)));
        assert_eq!((name.as_str(), home.as_str()), ("4242424", "/"));
    }

    #[test]
    fn nobody_but_root_becomes_somebody_else() {
        let own = Identity { uid: effective_user(), gid: effective_group(), groups: Vec::new() };
        let other = |uid, gid| permitted("x:y", Identity { uid, gid, groups: Vec::new() });
        let is_root = own.uid == 0;
        assert_eq!(other(own.uid, own.gid).map(|identity| identity.is_some()), Ok(is_root));
        assert_eq!(other(own.uid + 1, own.gid).is_err(), !is_root);
        assert_eq!(other(own.uid, own.gid + 1).is_err(), !is_root);
    }
}
