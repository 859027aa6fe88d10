//! The host's side of the metadata service: one task for one guest.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lexopt::{Arg, Parser};

use crate::cli::log::log_to_stderr;
use crate::cli::metadata_commands::{heeded, socket};
use crate::cli::output::Log;
use crate::cli::{Failure, OUR_ERROR, seconds, text};
use crate::metadata::host::{self, Host, News};
use crate::metadata::listener::{Listener, Network};
use crate::metadata::service::Service;
use crate::sys::errno;
use crate::sys::fd;
use crate::sys::signal::{self, SIGHUP, SIGINT, SIGTERM};
use crate::transport::unix;

/// What `serve` is told.
#[derive(Default)]
struct Request {
    listen: Option<String>,
    env: Vec<(String, String)>,
    log: Option<PathBuf>,
    from: Vec<Network>,
    control: Option<PathBuf>,
    linger: Duration,
    command: Vec<String>,
}

pub fn serve(mut parser: Parser) -> Result<ExitCode, Failure> {
    let mut request = Request::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("listen") => {
                if request.listen.replace(text(parser.value()?)?).is_some() {
                    return Err(Failure::new("--listen stands twice: a task has one address"));
                }
            }
            Arg::Short('e') | Arg::Long("env") => request.env.push(variable(text(parser.value()?)?)?),
            Arg::Long("log") => request.log = Some(parser.value()?.into()).filter(|path| path != Path::new("-")),
            Arg::Long("from") => request.from.push(network(&text(parser.value()?)?)?),
            Arg::Long("control") => request.control = Some(socket(&parser.value()?)?),
            Arg::Long("linger") => request.linger = seconds(parser.value()?, "--linger")?,
            Arg::Value(first) => {
                request.command.push(text(first)?);
                for word in parser.raw_args()? {
                    request.command.push(text(word)?);
                }
            }
            other => return Err(other.unexpected().into()),
        }
    }
    log_to_stderr("warn");
    host(request)
}

fn host(request: Request) -> Result<ExitCode, Failure> {
    let system = |error: io::Error| Failure::new(format!("serve: {}", errno::describe(&error)));
    let address = request.listen.ok_or_else(|| Failure::new("--listen is missing"))?;
    if request.command.is_empty() {
        return Err(Failure::new("the command of the task is missing"));
    }
    if !request.from.is_empty() && address.starts_with("unix:") {
        return Err(Failure::new(format!("--from names networks, and who comes to {address} has no address")));
    }
    // Scripts start it in the background, where shells ignore SIGINT, and mean one that they send.
    let signals = [vec![SIGINT, SIGTERM], heeded(&[SIGHUP])].concat();
    let signals = signal::into_pipe(&signals).map_err(system)?;
    let listener = Listener::open(&address).map_err(|error| listening(&address, &error))?;
    let control = request.control.as_deref().map(|path| {
        unix::Listener::open(path, 0o600, None).map_err(|error| listening(&path.display().to_string(), &error))
    });
    let control = control.transpose()?;
    let bell = host::bell().map_err(system)?;
    let wake = Arc::clone(&bell.1);
    let resolved = Box::new(move |_| drop(fd::write(wake.as_fd(), b"x")));
    // Behind what may be in use: then another one is running, and that may be its log.
    let is_lost = Arc::new(AtomicBool::new(false));
    let (is_unread, unread) = unread(&bell.1);
    let log = Log::open("metadata", request.log.as_deref(), &is_lost, unread)?;
    let service = Service::new(&request.command, &request.env, Box::new(log), resolved).map_err(system)?;
    let shown = listener.address().map_or(address, |address| address.to_string());
    let _ = writeln!(io::stderr(), "lodger metadata: waiting for a guest at {shown}");
    let (service, from, linger) = (Arc::new(service), request.from, request.linger);
    let host = Host { service: Arc::clone(&service), listener, from, control, linger, bell, is_unread, tell };
    let success = host.run(&signals).map_err(system)?;
    verdict(&service, success, &is_lost)
}

/// What makes a host end its task, and what is to be called for that by a log that nobody reads.
pub fn unread(bell: &Arc<OwnedFd>) -> (Arc<AtomicBool>, Box<dyn FnMut() + Send>) {
    let (is_unread, bell) = (Arc::new(AtomicBool::new(false)), Arc::clone(bell));
    let flag = Arc::clone(&is_unread);
    let call = move || {
        flag.store(true, Ordering::SeqCst);
        // Full is the pipe only when somebody is about to look.
        let _ = fd::write(bell.as_fd(), b"x");
    };
    (is_unread, Box::new(call))
}

/// The exit status for a result. A guest may bring one that is not ours: that of a task of somebody who was at our address before.
pub fn verdict(service: &Service, success: bool, is_lost: &AtomicBool) -> Result<ExitCode, Failure> {
    if service.result().is_some() && !service.was_asked() {
        return Err(Failure::new("the result is not of this task: no guest has asked for it"));
    }
    Ok(ExitCode::from(if is_lost.load(Ordering::SeqCst) { OUR_ERROR } else { u8::from(!success) }))
}

fn tell(news: News) {
    let _ = match news {
        News::Guest(Some(ip)) => writeln!(io::stderr(), "lodger metadata: guest at {ip}"),
        News::Guest(None) => writeln!(io::stderr(), "lodger metadata: a guest has connected"),
        News::Killing => {
            writeln!(io::stderr(), "lodger metadata: killing the task; a second signal does not wait")
        }
        News::Gone => writeln!(io::stderr(), "lodger metadata: the guest has gone; waiting for it to come back"),
        News::Refused(ip) => writeln!(io::stderr(), "lodger metadata: refused {ip}: in no network of --from"),
    };
}

fn variable(text: String) -> Result<(String, String), Failure> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let pair = pair.map(|(name, value)| (name.to_owned(), value.to_owned()));
    pair.ok_or_else(|| Failure::new(format!("--env {text}: NAME=VALUE wanted")))
}

fn network(text: &str) -> Result<Network, Failure> {
    text.parse().map_err(|error| Failure::new(format!("--from {text}: {error}")))
}

pub fn listening(address: &str, error: &io::Error) -> Failure {
    Failure::new(format!("listen on {address}: {}", errno::describe(error)))
}
