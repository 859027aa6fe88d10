//! The poll that is always open, and a thread for each action that comes of it.

use std::collections::VecDeque;
use std::io;
use std::thread::Scope;
use std::time::{Duration, Instant};

use crate::http::client::Client;
use crate::http::retry;
use crate::metaservice::{Action, Kind, POLL};
use crate::proto::metadata::{Guest, held, reply, shell, spawn, why};
use crate::sys::fd::{self, PollSet};

/// Actions that are handled at once. Each is a thread, and a shell also some descriptors.
pub const ACTIONS_MAX: usize = 32;

/// Actions that wait until one of those has ended. Those of a burst do; a host with more has its actions dropped, and asks again.
pub const WAITING_MAX: usize = 32;

/// Kills whose replies are under way beside all that.
const KILLS_MAX: usize = 4;

/// How long not to poll while no more action may wait: files are sent in less.
const ROOM_PATIENCE: Duration = Duration::from_secs(1);

/// Bytes of one answer: an action has a path and some words. As JSON it takes some times as much memory.
const ANSWER_MAX: usize = 1 << 20;

/// What is being done.
#[derive(Debug, Default)]
pub struct Places {
    running: usize,
    /// With the time when it came.
    waiting: VecDeque<(Instant, Action)>,
    kills: usize,
}

/// Polls until everything shall end.
pub fn run<'scope>(guest: &'scope Guest<'scope>, scope: &'scope Scope<'scope, '_>) {
    let mut client = Client::new(guest.config.host.clone());
    let (mut failures, mut said) = (0, String::new());
    while wait_for_room(guest) {
        let begun = Instant::now();
        let result = client.request("GET", POLL, &[], b"", ANSWER_MAX, guest.within(guest.timers().poll));
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
                begin(guest, scope, action);
                if is_quick && is_idle && guest.pause(guest.timers().poll_pause) {
                    return;
                }
                continue;
            }
            Err(wrong) => wrong,
        };
        failures += 1;
        if wrong != said {
            log::warn!("poll: {}: {wrong}", guest.config.host.host());
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

/// Waits for room, but not for long: a guest that does not poll cannot be told to kill its task. False when everything shall end.
fn wait_for_room(guest: &Guest) -> bool {
    let until = Instant::now() + ROOM_PATIENCE;
    let mut set = PollSet::default();
    loop {
        guest.action_ended.clear();
        let left = until.saturating_duration_since(Instant::now());
        if held(&guest.places).waiting.len() < WAITING_MAX || left.is_zero() {
            return !guest.is_stopped();
        }
        set.clear();
        set.watch(guest.stop, fd::READ);
        set.watch(guest.action_ended.watch(), fd::READ);
        if set.wait(Some(left)).is_err() || set.ready(0).readable {
            return false;
        }
    }
}

fn begin<'scope>(guest: &'scope Guest<'scope>, scope: &'scope Scope<'scope, '_>, action: Action) {
    match &action.kind {
        Kind::None => {}
        Kind::Unknown(name) => log::error!("the host wants an unknown action: {name:?}"),
        Kind::KillProcess => begin_kill(guest, scope, action),
        _ => begin_in_place(guest, scope, action),
    }
}

/// A kill waits for nobody; at worst it goes without its reply.
fn begin_kill<'scope>(guest: &'scope Guest<'scope>, scope: &'scope Scope<'scope, '_>, action: Action) {
    guest.kill();
    let mut places = held(&guest.places);
    if places.kills >= KILLS_MAX {
        return log::warn!("the task is killed; no place for the reply to {}", action.id);
    }
    places.kills += 1;
    drop(places);
    let work = move || {
        reply::kill(guest, &action);
        held(&guest.places).kills -= 1;
    };
    if let Err(error) = spawn(scope, work) {
        log::error!("start a thread: {}", why(&error));
        held(&guest.places).kills -= 1;
    }
}

fn begin_in_place<'scope>(guest: &'scope Guest<'scope>, scope: &'scope Scope<'scope, '_>, action: Action) {
    let mut places = held(&guest.places);
    if places.running >= ACTIONS_MAX {
        if places.waiting.len() < WAITING_MAX {
            places.waiting.push_back((Instant::now(), action));
        } else {
            log::warn!("{ACTIONS_MAX} actions are under way and {WAITING_MAX} wait; {} is dropped", action.id);
        }
        return;
    }
    places.running += 1;
    drop(places);
    if let Err(error) = spawn(scope, move || work(guest, action)) {
        log::error!("start a thread: {}", why(&error));
        held(&guest.places).running -= 1;
    }
}

/// Handles an action, and then those that wait for a place.
fn work(guest: &Guest, first: Action) {
    let mut next = Some(first);
    while let Some(action) = next {
        match action.kind {
            Kind::GetArtifact => reply::artifact(guest, &action),
            Kind::ListFolder => reply::folder(guest, &action),
            Kind::ExecShell => shell::run(guest, &action),
            Kind::None | Kind::KillProcess | Kind::Unknown(_) => {}
        }
        next = next_action(guest);
    }
}

/// The oldest action that waits and that its host still waits for. `None` gives the place back.
fn next_action(guest: &Guest) -> Option<Action> {
    let mut places = held(&guest.places);
    let mut next = None;
    while let Some((since, action)) = places.waiting.pop_front() {
        if guest.is_stopped() {
            continue;
        }
        if since.elapsed() < guest.timers().reply {
            next = Some(action);
            break;
        }
        log::warn!("{} has waited too long for a place, and is dropped", action.id);
    }
    places.running -= usize::from(next.is_none());
    guest.action_ended.ring();
    next
}
