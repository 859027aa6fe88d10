//! The poll that is always open, and a thread for each action that comes of it.

use std::io;
use std::sync::atomic::Ordering;
use std::thread::Scope;
use std::time::Instant;

use crate::http::client::Client;
use crate::http::retry;
use crate::metaservice::{Action, Kind, POLL, RESPONSE_MAX};
use crate::proto::metadata::{Guest, reply, shell, spawn, why};
use crate::sys::fd::{self, PollSet};

/// Actions that are handled at once. Each is a thread, and a shell also some descriptors. One more waits here, and no poll is open then.
pub const ACTIONS_MAX: usize = 32;

/// Polls until everything shall end.
pub fn run<'scope>(guest: &'scope Guest<'scope>, scope: &'scope Scope<'scope, '_>) {
    let mut client = Client::new(guest.config.host.clone());
    let (mut failures, mut said) = (0, String::new());
    while !guest.is_stopped() {
        let begun = Instant::now();
        let result = client.request("GET", POLL, &[], b"", RESPONSE_MAX, guest.within(guest.timers().poll));
        if guest.is_stopped() {
            return;
        }
        let again = retry::is_retried(result.as_ref().map(|(status, _)| *status));
        let late = result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut);
        let wrong = match action(result) {
            Ok(action) => {
                (failures, said) = (0, String::new());
                // Honest hosts say that there is nothing only after a while.
                let is_quick = begun.elapsed() < guest.timers().poll_pause;
                let is_idle = matches!(action.kind, Kind::None | Kind::Unknown(_));
                if !begin(guest, scope, action) {
                    return;
                }
                if is_quick && is_idle && guest.pause(guest.timers().poll_pause) {
                    return;
                }
                continue;
            }
            Err(wrong) => wrong,
        };
        failures += 1;
        if wrong != said {
            log::warn!("poll: {wrong}");
            said = wrong;
        }
        let ending = if again && !late && failures <= guest.timers().retries {
            guest.pause_before_retry(failures)
        } else {
            guest.pause(guest.timers().poll_pause)
        };
        if ending {
            return;
        }
    }
}

fn action(result: io::Result<(u16, Vec<u8>)>) -> Result<Action, String> {
    match result {
        Ok((200, body)) => Action::from_json(str::from_utf8(&body).map_err(|_| "not UTF-8")?),
        Ok((status, _)) => Err(format!("status {status}")),
        Err(error) => Err(why(&error)),
    }
}

/// False when everything shall end.
fn wait_for_a_place(guest: &Guest) -> bool {
    let mut set = PollSet::default();
    loop {
        guest.action_ended.clear();
        if guest.actions.load(Ordering::SeqCst) < ACTIONS_MAX {
            return true;
        }
        set.clear();
        set.watch(guest.stop, fd::READ);
        set.watch(guest.action_ended.watch(), fd::READ);
        if set.wait(None).is_err() || set.ready(0).readable {
            return false;
        }
    }
}

/// Waits for a place for an action and handles it; false when everything shall end.
fn begin<'scope>(guest: &'scope Guest<'scope>, scope: &'scope Scope<'scope, '_>, action: Action) -> bool {
    let handle: fn(&Guest, &Action) = match &action.kind {
        Kind::None => return true,
        Kind::GetArtifact => reply::artifact,
        Kind::ListFolder => reply::folder,
        Kind::ExecShell => shell::run,
        Kind::KillProcess => {
            // Only its reply may have to wait for a place.
            guest.kill();
            reply::kill
        }
        Kind::Unknown(name) => {
            log::error!("the host wants an unknown action: {name}");
            return true;
        }
    };
    if !wait_for_a_place(guest) {
        return false;
    }
    guest.actions.fetch_add(1, Ordering::SeqCst);
    let done = || {
        guest.actions.fetch_sub(1, Ordering::SeqCst);
        guest.action_ended.ring();
    };
    let work = move || {
        handle(guest, &action);
        done();
    };
    if let Err(error) = spawn(scope, work) {
        log::error!("start a thread: {}", why(&error));
        done();
    }
    true
}
