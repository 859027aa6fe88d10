//! `user.*`: the accounts of the machine.

use std::path::Path;

use crate::commands::arguments::{Arguments, missing};
use crate::commands::{Call, Command, Error, Reply};
use crate::password::hash::{self, PASSWORD_MAX};
use crate::password::shadow;

pub const SET_PASSWORD: Command = Command {
    name: "user.set-password",
    summary: "give a user another password",
    arguments: "\
user: its name (root)
password: in clear, up to 511 bytes without a line break
hash: what crypt(3) made of it, as it stands in /etc/shadow, in place of password",
    run: set_password,
};

/// Where the account files are.
const ETC: &str = "/etc";

fn set_password(arguments: &mut Arguments, call: &Call) -> Result<Reply, Error> {
    let user = arguments.text("user")?.unwrap_or_else(|| "root".to_owned());
    let (password, hash) = (arguments.text("password")?, arguments.text("hash")?);
    arguments.finish()?;
    // Of other lines: of comments, and of those that ask a network for more.
    if user.is_empty() || user.starts_with(['+', '-', '#']) || user.contains([':', '\n', '\0']) {
        return Err(Error::BadArgument(format!("user: {user:?} is no user's name")));
    }
    let hash = match (password, hash) {
        (Some(password), None) => hashed(password.as_bytes())?,
        (None, Some(hash)) if hash::is_hash(&hash) => hash,
        (None, Some(_)) => return Err(Error::BadArgument("hash: none of crypt(3), as $6$SALT$HASH is".to_owned())),
        (None, None) => return Err(missing("password or hash")),
        (Some(_), Some(_)) => return Err(Error::BadArgument("password, hash: only one of them is wanted".to_owned())),
    };
    set(&user, &hash, || call.is_given_up())?;
    Ok(Reply::of([("user", user.into())]))
}

/// A password as it may stand in a shadow file.
///
/// # Errors
/// `BadArgument` for one that nobody could type, or no login would take.
pub fn hashed(password: &[u8]) -> Result<String, Error> {
    let refused = |why: &str| Err(Error::BadArgument(format!("password: {why}")));
    match password {
        [] => refused("is empty"),
        _ if password.len() > PASSWORD_MAX => refused(&format!("is longer than {PASSWORD_MAX} bytes")),
        _ if password.iter().any(|byte| b"\0\n\r".contains(byte)) => refused("has a NUL or a line break in it"),
        _ => hash::crypt(password).map_err(|error| Error::system("hash the password", &error)),
    }
}

/// Gives a user another hash.
///
/// # Errors
/// As the shadow file has them.
pub fn set(user: &str, hash: &str, give_up: impl Fn() -> bool) -> Result<(), Error> {
    shadow::set(Path::new(ETC), user, hash, give_up).map_err(|error| match error {
        shadow::Error::NoShadow | shadow::Error::NoUser(_) => Error::NotFound(error.to_string()),
        shadow::Error::Locked => Error::TimedOut(error.to_string()),
        shadow::Error::System { what, error } => Error::system(what, &error),
    })?;
    log::info!("user {user}: has another password");
    Ok(())
}
