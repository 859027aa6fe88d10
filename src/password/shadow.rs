//! The second field of a line of /etc/shadow.
//!
//! A line: `name:hash:last change:min:max:warn:inactive:expire:`, the last change in days since 1970; 0 there means that the password must be
//! changed at the next login. Whoever changes the file holds a lock on /etc/.pwd.lock, as lckpwdf(3) does.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::replacement::{self, Old};
use crate::sys::errno::describe;
use crate::sys::file::{self, EROFS, O_CREAT, O_WRONLY};

/// How long somebody else may hold the lock: what lckpwdf(3) waits.
pub const LOCK_PATIENCE: Duration = Duration::from_secs(15);

/// How often to ask for the lock. Nothing tells when it is free but a wait without an end.
const LOCK_LOOK: Duration = Duration::from_millis(50);

/// Bytes of the longest file that is read: some 600,000 accounts.
const SHADOW_MAX: u64 = 64 << 20;

/// The permissions of a lock file that is not there yet.
const LOCK_MODE: u32 = 0o600;

/// The permissions of a shadow file, which is never made: it must be there.
const SHADOW_MODE: u32 = 0o600;

/// Why a password could not be set.
#[derive(Debug)]
pub enum Error {
    /// There is no shadow file.
    NoShadow,
    /// It has no line of that user.
    NoUser(String),
    /// Somebody has held the lock all the time.
    Locked,
    /// `what` is the operation with its object.
    System { what: &'static str, error: io::Error },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Error::NoShadow => f.write_str("shadow: no such file"),
            Error::NoUser(user) => write!(f, "user {user}: has no line in the shadow file"),
            Error::Locked => write!(f, "the password files are locked, and were for {} s", LOCK_PATIENCE.as_secs()),
            Error::System { what, error } => write!(f, "{what}: {}", describe(error)),
        }
    }
}

/// Gives a user another hash. `etc` is the directory of the files; `give_up` is asked while somebody else holds the lock.
///
/// # Errors
/// As the variants say; the file is as it was then.
pub fn set(etc: &Path, user: &str, hash: &str, give_up: impl Fn() -> bool) -> Result<(), Error> {
    let failed = |what: &'static str| move |error: io::Error| Error::System { what, error };
    let path = etc.join("shadow");
    if !path.exists() {
        return Err(Error::NoShadow);
    }
    let _lock = lock(&etc.join(".pwd.lock"), give_up)?;
    // A link, as some read-only systems have it, stays one.
    let path = fs::canonicalize(&path).map_err(failed("find shadow"))?;
    if fs::metadata(&path).map_err(failed("look at shadow"))?.len() > SHADOW_MAX {
        return Err(Error::System { what: "read shadow", error: io::ErrorKind::FileTooLarge.into() });
    }
    let before = fs::read(&path).map_err(failed("read shadow"))?;
    let after = with_hash(&before, user, hash, today()).ok_or_else(|| Error::NoUser(user.to_owned()))?;
    replacement::write(&path, &after, SHADOW_MODE, Old::Gone).map_err(failed("write shadow"))
}

/// Days since 1970. 0 would mean something else, and a clock that was never set may say it.
fn today() -> u64 {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    (since.as_secs() / 86_400).max(1)
}

/// The file with the hash in it; everything else as it was. `None`: nobody has that name.
fn with_hash(shadow: &[u8], user: &str, hash: &str, today: u64) -> Option<Vec<u8>> {
    let mut found = false;
    let mut after = Vec::with_capacity(shadow.len() + hash.len());
    for line in shadow.split_inclusive(|byte| *byte == b'\n') {
        let end = line.len() - usize::from(line.ends_with(b"\n"));
        let mut fields: Vec<&[u8]> = line[..end].split(|byte| *byte == b':').collect();
        let day = today.to_string();
        if fields[0] != user.as_bytes() || fields.len() < 2 {
            after.extend_from_slice(line);
            continue;
        }
        found = true;
        fields[1] = hash.as_bytes();
        if let Some(changed) = fields.get_mut(2).filter(|field| !field.is_empty() && **field != b"0") {
            *changed = day.as_bytes();
        }
        after.extend_from_slice(&fields.join(&b':'));
        after.extend_from_slice(&line[end..]);
    }
    found.then_some(after)
}

/// Takes the lock; it is given back when the file is closed. `None`: there can be none.
fn lock(path: &Path, give_up: impl Fn() -> bool) -> Result<Option<File>, Error> {
    let failed = |what: &'static str| move |error: io::Error| Error::System { what, error };
    let lock = match file::open(path, O_WRONLY | O_CREAT, LOCK_MODE) {
        // There nobody else can have it either; the shadow file may be a link to where one can write.
        Err(error) if error.raw_os_error() == Some(EROFS) => return Ok(None),
        result => result.map_err(failed("open .pwd.lock"))?,
    };
    let until = Instant::now() + LOCK_PATIENCE;
    while !file::lock_whole(lock.as_fd()).map_err(failed("lock .pwd.lock"))? {
        if Instant::now() >= until || give_up() {
            return Err(Error::Locked);
        }
        thread::sleep(LOCK_LOOK);
    }
    Ok(Some(lock))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(shadow: &str, user: &str) -> Option<String> {
        let after = with_hash(shadow.as_bytes(), user, "$6$new", 20_000)?;
        Some(String::from_utf8(after).expect("text"))
    }

    #[test]
    fn one_field_changes_and_the_day() {
        let shadow = "# root:x:1::\nroot:$y$j9T$a$b:19000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\n";
        let after = "# root:x:1::\nroot:$6$new:20000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\n";
        assert_eq!(changed(shadow, "root").as_deref(), Some(after));
        for (before, after) in [
            ("root:!:0:0:99999:7:::\n", "root:$6$new:0:0:99999:7:::\n"),
            ("root::::::::\n", "root:$6$new:::::::\n"),
            ("root:*", "root:$6$new"),
            ("root:x:5\nend", "root:$6$new:20000\nend"),
            ("a:b\n\nroot:x:1:\n", "a:b\n\nroot:$6$new:20000:\n"),
        ] {
            assert_eq!(changed(before, "root").as_deref(), Some(after), "{before}");
        }
    }

    #[test]
    fn who_has_no_line_gets_none() {
        for shadow in ["", "\n", "root", "roots:x:1:\n", "#root:x:1:\n", "+root:x\n"] {
            assert_eq!(changed(shadow, "root"), None, "{shadow:?}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_stay() {
        let after = with_hash(b"a:\xff\xfe:1\nroot:\xff:1:\xff\n", "root", "h", 9);
        assert_eq!(after.as_deref(), Some(&b"a:\xff\xfe:1\nroot:h:9:\xff\n"[..]));
    }
}
