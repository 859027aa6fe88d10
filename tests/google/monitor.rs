//! The monitor as a library: one thread a connection, over socket pairs.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use lodger::commands::table::{Handler, Table};
use lodger::engine::Ended;
use lodger::proto::settings::Settings;
use lodger::proto::{self, Circumstances, Opening};
use lodger::stream::Stream;
use lodger::sys::fd;

use crate::client::Client;

/// Request and response of the shortest call.
pub const PING: &[u8] = br#"{"Command":"agent.ping"}"#;
pub const PONG: &[u8] = br#"{"Status":0,"StatusMessage":""}"#;

/// Section 6.
pub const NO_HANDLER: &[u8] = br#"{"Status":101,"StatusMessage":"Could not find a handler for the requested command"}"#;
pub const BAD_JSON: &[u8] = br#"{"Status":102,"StatusMessage":"Could not parse valid JSON from request"}"#;
pub const CONNECTION_ERROR: &[u8] = br#"{"Status":103,"StatusMessage":"Connection error"}"#;
pub const TIMEOUT: &[u8] = br#"{"Status":104,"StatusMessage":"Connection timeout before reading valid request"}"#;
pub const TOO_LONG: &[u8] =
    br#"{"Status":107,"StatusMessage":"The request is longer than the limit of 1048576 bytes"}"#;

/// Bytes of the longest request, unless a test says otherwise.
pub const REQUEST_MAX: usize = 1_048_576;

/// A monitor. Its connections may outlive it.
pub struct Monitor {
    pub settings: Settings,
    stop: Arc<(OwnedFd, OwnedFd)>,
}

impl Monitor {
    pub fn of(table: Table) -> Monitor {
        Monitor { settings: Settings::with(table), stop: Arc::new(fd::pipe().expect("a pipe")) }
    }

    /// The agent's commands, and `echo`, whose response is the whole request.
    pub fn with_echo() -> Monitor {
        let monitor = Monitor::of(Table::of_agent());
        monitor.register("echo", |request| Ok(request.to_vec()));
        monitor
    }

    pub fn register(&self, name: &str, handler: impl Fn(&[u8]) -> Result<Vec<u8>, String> + Send + Sync + 'static) {
        let handler: Handler = Arc::new(handler);
        self.settings.commands.register(name, handler).expect("a new name");
    }

    /// A connection whose protocol is pinned.
    pub fn connect(&self) -> Client {
        self.connect_to(Some("google"), Opening::Peer)
    }

    /// A line that has no connections, pinned.
    pub fn line(&self) -> Client {
        self.connect_to(Some("google"), Opening::Agent)
    }

    /// A connection whose first byte chooses.
    pub fn connect_unpinned(&self) -> Client {
        self.connect_to(None, Opening::Peer)
    }

    fn connect_to(&self, protocol: Option<&str>, opening: Opening) -> Client {
        let (ours, theirs) = Stream::pair().expect("a socket pair");
        let (settings, stop) = (self.settings.clone(), Arc::clone(&self.stop));
        let pinned = protocol.map(|name| proto::by_name(name).expect("a protocol"));
        let serve = move || -> io::Result<Ended> {
            let (accepted, stop, settings) = (Instant::now(), stop.0.as_fd(), &settings);
            proto::serve(theirs, &[], &Circumstances { pinned, opening, stop, accepted, settings })
        };
        Client::over(ours).with_server(thread::spawn(serve))
    }

    /// The response to a request on a connection of its own.
    pub fn ask(&self, request: impl AsRef<[u8]>) -> Vec<u8> {
        self.connect().ask(request.as_ref())
    }
}
