//! The command monitor as a library: a program's own commands on a socket, in the protocol of Google's guest agent, and the calling of them.
//!
//! ```
//! use std::time::Duration;
//!
//! use lodger::monitor::Monitor;
//!
//! let folder = std::env::temp_dir().join(format!("lodger-doc-{}", std::process::id()));
//! std::fs::create_dir(&folder)?;
//! let addr = format!("unix:{}", folder.join("commands.sock").display()).parse()?;
//!
//! let monitor = Monitor::default();
//! monitor.register("example.echo", |request| Ok::<_, String>(request.to_vec()))?;
//! monitor.register("example.fail", |_| Err::<Vec<u8>, _>("out of luck"))?;
//! monitor.start(&addr)?;
//!
//! let send = |request: &[u8]| Monitor::send(&addr, request, Duration::from_secs(10));
//! let request = br#"{"Command":"example.echo","Text":"hello"}"#;
//! assert_eq!(send(request)?, request);
//! let failed = send(br#"{"Command":"example.fail"}"#)?;
//! assert_eq!(failed, br#"{"Status":105,"StatusMessage":"out of luck"}"#);
//!
//! monitor.close()?;
//! std::fs::remove_dir(&folder)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::client::monitor::{self, End};
use crate::commands::table::{NameError, Table};
use crate::proto;
use crate::proto::settings::Settings;
use crate::server::{self, Config, Service};
use crate::sys::{errno, fd};
use crate::transport::{self, Addr};

/// Why a monitor does not start, end or answer.
#[derive(Debug)]
pub enum Error {
    /// It was started before, and not closed.
    AlreadyListening,
    NotListening,
    Listen(server::Error),
    /// Nobody is there, or the connection broke before the response was whole, or the time was over.
    Send {
        addr: Addr,
        why: String,
    },
    System(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Error::AlreadyListening => f.write_str("server already listening"),
            Error::NotListening => f.write_str("server is not listening"),
            Error::Listen(error) => write!(f, "{error}"),
            Error::Send { addr, why } => write!(f, "{addr}: {why}"),
            Error::System(error) => f.write_str(&errno::describe(error)),
        }
    }
}

impl std::error::Error for Error {}

/// A monitor that serves.
struct Running {
    /// The service ends when this is closed.
    stop: OwnedFd,
    thread: JoinHandle<io::Result<()>>,
}

/// A table of commands, and the socket where they are called. Handlers may be registered before it is started and at any time after, also by
/// handlers: the table is not locked while one runs. Each request is served in a thread of its own, with a stack of 256 KiB; a handler that
/// panics answers with its panic's text (unless the program aborts on panics).
pub struct Monitor {
    settings: Settings,
    running: Mutex<Option<Running>>,
}

impl Default for Monitor {
    /// Without any command, and with upstream's limits.
    fn default() -> Monitor {
        Monitor::with(Settings::with(Table::empty()))
    }
}

impl Monitor {
    /// With these commands and limits.
    pub fn with(settings: Settings) -> Monitor {
        Monitor { settings, running: Mutex::default() }
    }

    /// Registers a command. The handler gets the whole text of the request, and what it gives is the whole response; the text of its error
    /// is answered with status 105. The empty name stands for requests that name no command.
    ///
    /// # Errors
    /// The name is taken; its handler stays.
    pub fn register<E: fmt::Display>(
        &self,
        name: &str,
        handler: impl Fn(&[u8]) -> Result<Vec<u8>, E> + Send + Sync + 'static,
    ) -> Result<(), NameError> {
        self.settings.commands.register(name, Arc::new(move |request| handler(request).map_err(|e| e.to_string())))
    }

    /// Forgets a command. Calls that run go on.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn unregister(&self, name: &str) -> Result<(), NameError> {
        self.settings.commands.unregister(name)
    }

    /// Listens, and serves in the background until `close`. Everything but the protocol may be said in the address.
    ///
    /// # Errors
    /// `AlreadyListening`; `Listen`.
    pub fn start(&self, addr: &Addr) -> Result<(), Error> {
        let mut running = self.running();
        if running.is_some() {
            return Err(Error::AlreadyListening);
        }
        let (stopped, stop) = fd::pipe().map_err(Error::System)?;
        let addr = Addr { protocol: Some(proto::google::NAME.to_owned()), ..addr.clone() };
        let config = Config { addrs: vec![addr], ..Config::with(self.settings.clone()) };
        let service = Service::open(config, stopped).map_err(Error::Listen)?;
        let serve = move || service.run();
        let thread = thread::Builder::new().name("monitor".to_owned()).spawn(serve).map_err(Error::System)?;
        *running = Some(Running { stop, thread });
        Ok(())
    }

    /// Ends what `start` began: nobody can connect any more, clients that have not sent their whole request are left, and handlers that run
    /// get a few seconds to end. It may be started again. Must not be called by a handler, which would wait for itself.
    ///
    /// # Errors
    /// `NotListening`; `System` when the service had failed before.
    pub fn close(&self) -> Result<(), Error> {
        let Running { stop, thread } = self.running().take().ok_or(Error::NotListening)?;
        drop(stop);
        let ended = thread.join().unwrap_or_else(|_| Err(io::Error::other("the monitor's thread panicked")));
        ended.map_err(Error::System)
    }

    /// Sends a request to a monitor, ours or another's, and gives its response, within the time.
    ///
    /// # Errors
    /// `Send`.
    pub fn send(addr: &Addr, request: &[u8], timeout: Duration) -> Result<Vec<u8>, Error> {
        let failed = |why: String| Error::Send { addr: addr.clone(), why };
        let stream = transport::connect(addr).map_err(|error| failed(errno::describe(&error)))?;
        let response = monitor::ask(stream, request, End::WithStream, Some(timeout));
        match response.fault {
            None => Ok(response.bytes),
            Some(fault) => Err(failed(fault.to_string())),
        }
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        // Nothing panics while it is locked.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.close();
    }
}
