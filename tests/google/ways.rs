//! Every way to an agent: the same test body goes over all of them.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lodger::link::opener::{Opener, Wishes};
use lodger::transport::{Addr, Carrier, serial};

use crate::client::{Client, Ending};
use crate::line::{Line, Weather};
use crate::monitor::{Monitor, PING, PONG};
use crate::support::{Agent, Folder, descriptors, status, wait_until};

/// One transport with an agent behind it.
pub struct Way {
    pub name: &'static str,
    connect: Box<dyn Fn() -> Client + Sync>,
}

impl Way {
    pub fn connect(&self) -> Client {
        (self.connect)()
    }
}

/// Those where the address pins the protocol.
pub fn pinned() -> Vec<Way> {
    vec![
        unix_pinned(),
        way("stdio:,proto=google", || stdio("stdio:,proto=google")),
        line(",proto=google", "serial:,proto=google"),
        pair("pair, pinned", Monitor::connect),
    ]
}

/// Those where the first byte chooses it.
pub fn unpinned() -> Vec<Way> {
    vec![unix(), way("stdio:", || stdio("stdio:")), line("", "serial:"), pair("pair", Monitor::connect_unpinned)]
}

fn way(name: &'static str, connect: impl Fn() -> Client + Sync + 'static) -> Way {
    Way { name, connect: Box::new(connect) }
}

fn unix() -> Way {
    let agent = Agent::start();
    way("unix:", move || over_unix(&agent.socket))
}

fn unix_pinned() -> Way {
    let agent = PinnedAgent::start();
    way("unix:,proto=google", move || agent.connect())
}

fn pair(name: &'static str, connect: fn(&Monitor) -> Client) -> Way {
    let monitor = Monitor::with_echo();
    way(name, move || connect(&monitor))
}

fn stdio(address: &str) -> Client {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lodger"));
    command.args(["serve", "--listen", address]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("the agent starts");
    let (rd, wr) = (child.stdout.take().expect("a pipe"), child.stdin.take().expect("a pipe"));
    Client::over_two(rd, wr).with_agent(Ending(child))
}

fn line(protocol: &str, name: &'static str) -> Way {
    let line = Line::start(Weather::clear());
    let mut command = Command::new(env!("CARGO_BIN_EXE_lodger"));
    command.args(["serve", "--listen", &format!("{}{protocol}", line.guest_address())]).stdin(Stdio::null());
    let agent = Ending(command.spawn().expect("the agent starts"));
    let addr: Addr = line.host_address().parse().expect("an address");
    let Carrier::Serial { path, settings } = addr.carrier else { panic!("it is a line") };
    let stream = serial::connect(&path, &settings).expect("a terminal");
    let opener = Opener::start(stream, "line", Wishes::default()).expect("a thread");
    way(name, move || {
        // They live as long as the way.
        let _ = (&line, &agent);
        Client::over(opener.open().expect("a channel"))
    })
}

pub fn over_unix(path: &Path) -> Client {
    let socket = UnixStream::connect(path).expect("the agent accepts");
    let copy = socket.try_clone().expect("a descriptor");
    Client::over_two(socket, copy)
}

/// An agent with a socket for the command monitor alone.
pub struct PinnedAgent {
    agent: Agent,
    socket: PathBuf,
    _folder: Folder,
}

impl PinnedAgent {
    pub fn start() -> PinnedAgent {
        let folder = Folder::new();
        let socket = folder.path("commands.sock");
        let address = format!("unix:{},proto=google", socket.display());
        let agent = Agent::start_with(|command| _ = command.args(["--listen", &address]));
        wait_until("the second socket is there", || UnixStream::connect(&socket).is_ok());
        PinnedAgent { agent, socket, _folder: folder }
    }

    pub fn pid(&self) -> u32 {
        self.agent.pid()
    }

    pub fn connect(&self) -> Client {
        over_unix(&self.socket)
    }

    /// Numbers of its descriptors and threads.
    pub fn numbers(&self) -> (usize, u64) {
        (descriptors(self.pid()), status(self.pid(), "Threads"))
    }

    /// The same while nobody is connected.
    pub fn settled(&self) -> (usize, u64) {
        // Whoever looked whether the agent is there came before this, and is accepted before it.
        assert_eq!(self.connect().ask(PING), PONG);
        wait_until("the agent has settled", || self.numbers().1 == 1);
        self.numbers()
    }
}
