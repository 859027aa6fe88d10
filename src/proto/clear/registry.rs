//! What all connections of an agent know: virtual machines, tokens, containers.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use data_encoding::BASE64URL;

use crate::exec::parting;
use crate::proto::clear::keeper::Keepers;
use crate::proto::clear::session::Session;
use crate::proto::clear::{
    CONTAINERS_MAX, DEAD_TOKENS_MAX, ID_MAX, SESSIONS_MAX, TOKENS_MAX, TOKENS_REQUEST_MAX, VMS_MAX,
};
use crate::sys::random;

/// Bytes that a token stands for.
const TOKEN_BYTES: usize = 32;

/// The first number of a machine's first session: 1 and 2 are those of processes without a token.
const IO_BASE_FIRST: u64 = 3;

/// How long the agent waits for what its clients do.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// A command for its shim. Upstream's number.
    pub shim: Duration,
    /// A shim that has sent a signal or input, for its process. Upstream's number.
    pub process: Duration,
    /// A process for its shim to come back.
    pub abandoned: Duration,
    /// The answer to a signal that shall end a process, for the end.
    pub end: Duration,
}

impl Default for Times {
    fn default() -> Times {
        Times {
            shim: Duration::from_secs(30),
            process: Duration::from_secs(30),
            abandoned: Duration::from_secs(600),
            end: Duration::from_secs(2),
        }
    }
}

/// One virtual machine, which is only a name: all of them are the one that the agent runs in.
#[derive(Debug)]
pub struct Vm {
    pub id: String,
    pub number: u64,
}

#[derive(Debug, Default)]
struct State {
    vms: HashMap<String, Arc<Vm>>,
    /// Machines that were ever registered.
    count: u64,
    /// The next session's number in each machine.
    next: HashMap<u64, u64>,
    sessions: HashMap<String, Arc<Session>>,
    /// Tokens whose shim has taken its leave, oldest first.
    dead: VecDeque<String>,
    containers: HashMap<(u64, String), Arc<Session>>,
    /// Of processes whose output nobody wants.
    unheard: Vec<Weak<Session>>,
}

#[derive(Debug)]
pub struct Registry {
    state: Mutex<State>,
    pub keepers: Arc<Keepers>,
    pub times: Times,
}

impl Default for Registry {
    fn default() -> Registry {
        Registry::with(Times::default())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.keepers.finish(parting::end_deadline());
    }
}

/// What stands behind a token.
#[derive(Debug)]
pub enum Token {
    Unknown,
    /// Its shim has taken its leave.
    Dead,
    Of(Arc<Session>),
}

impl Registry {
    pub fn with(times: Times) -> Registry {
        Registry { state: Mutex::default(), keepers: Arc::new(Keepers::new()), times }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is locked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a machine, if its name passes `check`, and gives it so many tokens.
    ///
    /// # Errors
    /// The text for the client; then nothing has changed.
    pub fn register(
        &self,
        id: &str,
        tokens: i64,
        check: impl FnOnce() -> Result<(), String>,
    ) -> Result<(Arc<Vm>, Vec<String>), String> {
        let fresh = fresh(tokens);
        let mut state = self.state();
        if state.vms.contains_key(id) {
            return Err(format!("{id}: container already registered"));
        }
        check()?;
        if id.len() > ID_MAX {
            return Err(format!("containerId of {} bytes is over the limit of {ID_MAX}", id.len()));
        }
        if state.vms.len() >= VMS_MAX {
            return Err(format!("{id}: more virtual machines than the limit of {VMS_MAX}"));
        }
        let number = state.count;
        state.next.insert(number, IO_BASE_FIRST);
        match state.allocate(number, tokens, fresh) {
            Ok(tokens) => {
                state.count += 1;
                let vm = Arc::new(Vm { id: id.to_owned(), number });
                state.vms.insert(id.to_owned(), Arc::clone(&vm));
                Ok((vm, tokens))
            }
            Err(why) => {
                state.next.remove(&number);
                Err(why)
            }
        }
    }

    /// The machine of that name, with so many more tokens.
    ///
    /// # Errors
    /// The text for the client.
    pub fn attach(&self, id: &str, tokens: i64) -> Result<(Arc<Vm>, Vec<String>), String> {
        let fresh = fresh(tokens);
        let mut state = self.state();
        let vm = state.vms.get(id).cloned().ok_or_else(|| unknown(id))?;
        let tokens = state.allocate(vm.number, tokens, fresh)?;
        Ok((vm, tokens))
    }

    /// Forgets the machine of that name, and its tokens that nobody uses. The others live on until their processes have ended.
    ///
    /// # Errors
    /// The text for the client.
    pub fn unregister(&self, id: &str) -> Result<(), String> {
        let mut state = self.state();
        let vm = state.vms.remove(id).ok_or_else(|| unknown(id))?;
        state.next.remove(&vm.number);
        state.sessions.retain(|_, session| session.vm != vm.number || !session.is_unused());
        state.containers.retain(|(number, _), session| *number != vm.number || !session.has_ended());
        Ok(())
    }

    /// Looks a token up, whatever its machine.
    pub fn token(&self, token: &str) -> Token {
        let state = self.state();
        match state.sessions.get(token) {
            Some(session) => Token::Of(Arc::clone(session)),
            None if state.dead.iter().any(|dead| dead == token) => Token::Dead,
            None => Token::Unknown,
        }
    }

    /// The session of a token of this machine.
    pub fn session(&self, vm: &Vm, token: &str) -> Option<Arc<Session>> {
        self.state().sessions.get(token).filter(|session| session.vm == vm.number).cloned()
    }

    /// The session of this machine whose standard input and output, or error output, has that number; of 1 and 2 those of all its processes
    /// without a token.
    pub fn numbered(&self, vm: &Vm, number: u64) -> Vec<Arc<Session>> {
        let has_it = |session: &Session| session.io_base == number || session.io_base + 1 == number;
        self.all().filter(|session| session.vm == vm.number && has_it(session)).collect()
    }

    /// The sessions of all processes that were started in a container of this machine.
    pub fn in_container(&self, vm: &Vm, id: &str) -> Vec<Arc<Session>> {
        self.all().filter(|session| session.vm == vm.number && session.is_in(id)).collect()
    }

    /// The sessions of all machines whose processes may run.
    pub fn all(&self) -> impl Iterator<Item = Arc<Session>> {
        let state = self.state();
        let all = state.sessions.values().cloned().chain(state.unheard.iter().filter_map(Weak::upgrade));
        all.collect::<Vec<_>>().into_iter()
    }

    /// Remembers the session of a process whose output nobody wants, so that it can be signalled. There are `PROCESSES_MAX` of them at most.
    pub fn remember(&self, session: &Arc<Session>) {
        let mut state = self.state();
        state.unheard.retain(|other| other.upgrade().is_some_and(|other| !other.has_ended()));
        state.unheard.push(Arc::downgrade(session));
    }

    /// Forgets a session whose shim has taken its leave, but not its token at once.
    pub fn bury(&self, session: &Session) {
        let mut state = self.state();
        if state.sessions.remove(&session.token).is_some() {
            state.dead.push_back(session.token.clone());
            if state.dead.len() > DEAD_TOKENS_MAX {
                state.dead.pop_front();
            }
        }
    }

    /// Remembers the session of a container's first process.
    ///
    /// # Errors
    /// There is a container of that name, which was not removed.
    pub fn contain(&self, vm: &Vm, id: &str, session: &Arc<Session>) -> Result<(), String> {
        let mut state = self.state();
        if state.containers.len() >= CONTAINERS_MAX {
            state.sweep();
        }
        let key = (vm.number, id.to_owned());
        if state.containers.contains_key(&key) {
            return Err(format!("container {id} exists already"));
        }
        state.containers.insert(key, Arc::clone(session));
        Ok(())
    }

    /// Forgets a container that was not started, or has ended, if it is that of this session still.
    pub fn uncontain(&self, vm: &Vm, id: &str, session: &Arc<Session>) {
        let key = (vm.number, id.to_owned());
        let mut state = self.state();
        if state.containers.get(&key).is_some_and(|other| Arc::ptr_eq(other, session)) {
            state.containers.remove(&key);
        }
    }

    /// The session of a container's first process.
    pub fn container(&self, vm: &Vm, id: &str) -> Option<Arc<Session>> {
        self.state().containers.get(&(vm.number, id.to_owned())).cloned()
    }
}

fn unknown(id: &str) -> String {
    format!("unknown containerID: {id}")
}

impl State {
    /// So many new tokens of a machine, which are these; none for a number below 1.
    fn allocate(&mut self, vm: u64, count: i64, fresh: io::Result<Vec<String>>) -> Result<Vec<String>, String> {
        let count = usize::try_from(count).unwrap_or(0);
        if count == 0 {
            return Ok(Vec::new());
        }
        if count > TOKENS_REQUEST_MAX {
            return Err(format!("{count} tokens at once are over the limit of {TOKENS_REQUEST_MAX}"));
        }
        if self.is_full(vm, count).is_some() {
            let next = &self.next;
            // A shim that has gone again may have kept one of a machine that is no more.
            let is_orphan = |session: &Session| session.is_unused() && !next.contains_key(&session.vm);
            self.sessions.retain(|_, session| !session.is_history() && !is_orphan(session));
        }
        if let Some(why) = self.is_full(vm, count) {
            return Err(why);
        }
        let mut next = *self.next.get(&vm).ok_or("the virtual machine is not registered any more")?;
        let tokens = fresh.map_err(|error| format!("make a token: {error}"))?;
        for token in &tokens {
            self.sessions.insert(token.clone(), Arc::new(Session::new(token.clone(), next, vm)));
            next += 2;
        }
        self.next.insert(vm, next);
        Ok(tokens)
    }

    /// Which limit so many more tokens would break.
    fn is_full(&self, vm: u64, count: usize) -> Option<String> {
        let of_vm = self.sessions.values().filter(|session| session.vm == vm).count();
        match (of_vm + count > TOKENS_MAX, self.sessions.len() + count > SESSIONS_MAX) {
            (true, _) => Some(format!("more tokens than the limit of {TOKENS_MAX} of a virtual machine")),
            (false, true) => Some(format!("more tokens than the limit of {SESSIONS_MAX}")),
            (false, false) => None,
        }
    }

    /// Forgets containers that have ended.
    fn sweep(&mut self) {
        self.containers.retain(|_, session| !session.has_ended());
    }
}

/// So many tokens, if a request may ask for that many. Made before anything is locked: early in its boot a machine may have to wait for random
/// bytes.
fn fresh(count: i64) -> io::Result<Vec<String>> {
    let count = usize::try_from(count).unwrap_or(0);
    let count = if count > TOKENS_REQUEST_MAX { 0 } else { count };
    (0..count).map(|_| Ok(BASE64URL.encode(&random::getrandom::<TOKEN_BYTES>()?))).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::proto::bell::Bell;
    use crate::stream::Stream;

    #[test]
    fn tokens_whose_shims_have_left_are_known_for_a_while() {
        let registry = Registry::default();
        let (vm, _) = registry.register("vm", 0, || Ok(())).expect("a machine");
        let mut first = None;
        for count in 0..=DEAD_TOKENS_MAX {
            let (_, mut tokens) = registry.attach("vm", 1).expect("a token");
            let token = tokens.remove(0);
            let session = registry.session(&vm, &token).expect("its session");
            assert_eq!(session.io_base, 3 + 2 * count as u64);
            registry.bury(&session);
            let first = first.get_or_insert(token);
            let is_known = matches!(registry.token(first), Token::Dead);
            assert_eq!(is_known, count < DEAD_TOKENS_MAX, "after {count} more");
        }
    }

    #[test]
    fn containers_are_remembered_until_there_are_too_many_that_have_ended() {
        let registry = Registry::default();
        let (vm, _) = registry.register("vm", 0, || Ok(())).expect("a machine");
        let session = || Arc::new(Session::without_shim(vm.number));
        let ended = session();
        ended.end(0);
        registry.contain(&vm, "ended", &ended).expect("a name");
        for number in 1..CONTAINERS_MAX {
            registry.contain(&vm, &number.to_string(), &session()).expect("a new name");
        }
        assert!(registry.container(&vm, "ended").is_some());
        registry.contain(&vm, "more", &session()).expect("a new name");
        assert!(registry.container(&vm, "ended").is_none() && registry.container(&vm, "1").is_some());
        assert_eq!(registry.contain(&vm, "1", &session()), Err("container 1 exists already".to_owned()));
    }
    #[test]
    fn tokens_of_machines_that_are_no_more_are_given_back() {
        let registry = Registry::default();
        let (socket, _other) = UnixStream::pair().expect("a socket pair");
        let stream = Arc::new(Stream::over(socket));
        let bell = Arc::new(Bell::new().expect("a pipe"));
        for round in 0..5 {
            let (vm, mut tokens) = registry.register("vm", 256, || Ok(())).expect("a machine");
            for _ in 0..3 {
                tokens.extend(registry.attach("vm", 256).unwrap_or_else(|why| panic!("round {round}: {why}")).1);
            }
            let sessions: Vec<_> =
                tokens.iter().map(|token| registry.session(&vm, token).expect("a session")).collect();
            for session in &sessions {
                session.claim(&bell, &stream).expect("nobody else wants it");
            }
            registry.unregister("vm").expect("it is registered");
            for session in sessions {
                assert!(!session.release(None, Default::default(), &bell));
            }
        }
    }
}
