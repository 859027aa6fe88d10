//! Rows about the metadata service: what a task says, what its guest has, and what a shell carries. Both sides are processes of ours, with
//! TCP over the loopback between them; so are those of the floors.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lodger::metadata::actions::Store;
use lodger::metadata::control::Control;
use lodger::metadata::host::{self, Host};
use lodger::metadata::listener::Listener;
use lodger::metadata::service::Service;
use lodger::metadata::shell::{Ending, Wires};
use lodger::sys::{fd, signal, tty};

use crate::agent::Agent;
use crate::files::MemoryFile;
use crate::floor::{CHUNK, Partner, ROLE_OPTION};
use crate::{Measured, Skipped, alternate, throughput};

const FILE_BYTES: u64 = 256 << 20;
const FILE_ROUNDS: usize = 9;

/// Bytes that a task says. A terminal puts a carriage return into each line of them.
const LOG_BYTES: u64 = 64 << 20;
const LOG_ROUNDS: usize = 3;

/// As a program writes them that knows that somebody is watching.
const LINE: &[u8] = b"2025-01-01T00:00:00Z info: one of the lines that a build says while it is built\n";
const LINES_AT_ONCE: usize = 100;

const SHELL_BYTES: u64 = 64 << 20;
const SHELL_ROUNDS: usize = 5;

/// How long the host may take to listen for commands.
const PATIENCE: Duration = Duration::from_secs(10);

/// A host and its guest, which end with this.
struct Pair {
    host: Child,
    guest: Child,
    folder: PathBuf,
    /// Somebody may want to say something more.
    _stderr: BufReader<ChildStderr>,
}

impl Pair {
    /// Starts both, with a task of these words. Behind its end they stay for `linger_s` seconds.
    fn start(agent: &Agent, linger_s: u32, words: &[&str]) -> Pair {
        let folder = agent.path("metadata");
        fs::create_dir(&folder).expect("a new folder");
        let control = format!("unix:{}", folder.join("control").display());
        let mut host = Command::new(&agent.binary);
        host.args(["metadata", "serve", "--listen", "127.0.0.1:0", "--log", "/dev/null", "--control", &control]);
        host.args(["--linger", &linger_s.to_string(), "--"]).args(words);
        let mut host = host.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the host starts");
        let mut stderr = BufReader::new(host.stderr.take().expect("it was asked for"));
        let mut line = String::new();
        stderr.read_line(&mut line).expect("the host says where it listens");
        let address = line.trim_end().rsplit(' ').next().unwrap_or_default();
        let mut guest = Command::new(&agent.binary);
        let guest = guest.args(["metadata", "run", "--host", address]).stdin(Stdio::null()).stderr(Stdio::null());
        let guest = guest.spawn().expect("the guest starts");
        Pair { host, guest, folder, _stderr: stderr }
    }

    fn control(&self) -> Control {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Control::connect(&self.folder.join("control")) {
                Ok(control) => return control,
                Err(error) => assert!(Instant::now() < deadline, "no control socket: {error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for child in [&mut self.guest, &mut self.host] {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Waits for somebody at a port of the loopback, which is said on stdin's socket.
pub fn accept_one(mut socket: impl Write) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("it is bound").port();
    socket.write_all(&port.to_ne_bytes()).expect("somebody wants to know");
    let (stream, _) = listener.accept().expect("somebody comes");
    stream
}

/// The other process of a floor, which plays this role over TCP, and the connection to it.
fn over_tcp(role: &str) -> (Partner, TcpStream) {
    let mut partner = Partner::start(&format!("tcp:{role}"));
    let mut port = [0; 2];
    partner.socket.read_exact(&mut port).expect("it listens");
    let stream = TcpStream::connect(("127.0.0.1", u16::from_ne_bytes(port))).expect("it accepts");
    (partner, stream)
}

/// Sends back what comes, through cat.
pub fn cat(socket: TcpStream) {
    let theirs = || OwnedFd::from(socket.try_clone().expect("a descriptor"));
    let _ = Command::new("cat").stdin(theirs()).stdout(theirs()).status();
}

/// The task of the rows about logs: lines on stdout, so many bytes of them.
pub fn say_lines(bytes: u64) {
    let lines = LINE.repeat(LINES_AT_ONCE);
    let (mut out, mut left) = (io::stdout().lock(), bytes);
    while left > 0 {
        let count = left.min(lines.len() as u64);
        out.write_all(&lines[..count as usize]).and_then(|()| out.flush()).expect("somebody reads");
        left -= count;
    }
}

/// From the start of both sides to the end of the host, which has the whole log and the result then.
fn log_once(agent: &Agent) {
    let own = std::env::current_exe().expect("the path of this program");
    let own = own.to_str().expect("a path in UTF-8");
    let mut pair = Pair::start(agent, 0, &[own, ROLE_OPTION, &format!("lines:{LOG_BYTES}")]);
    assert!(pair.host.wait().is_ok_and(|status| status.success()), "the task succeeds");
}

/// The same program on a terminal, each read of which goes into the connection.
fn relay_a_terminal(sink: &mut TcpStream, buffer: &mut [u8]) {
    let (master, slave) = tty::open_pair().expect("a pty");
    let own = std::env::current_exe().expect("the path of this program");
    let mut command = Command::new(own);
    let child = command.args([ROLE_OPTION, &format!("lines:{LOG_BYTES}")]).stdout(slave).spawn();
    let (mut child, mut master) = (child.expect("it starts again"), File::from(master));
    // Nobody but the program has the slave, whose end is an error here.
    drop(command);
    let said = LOG_BYTES + LOG_BYTES / LINE.len() as u64;
    sink.write_all(&said.to_ne_bytes()).expect("the partner reads");
    let mut total = 0;
    while let Ok(count @ 1..) = master.read(buffer) {
        sink.write_all(&buffer[..count]).expect("the partner reads");
        total += count as u64;
    }
    assert_eq!(total, said);
    assert!(child.wait().is_ok_and(|status| status.success()));
    sink.read_exact(&mut [0]).expect("the partner answers");
}

/// What a task says, beside the same program on a terminal of its own, from which it is only copied into a bare connection. The task is on a
/// terminal because upstream's is, and the kernel's work in there is the limit: alone, with nobody behind it, it gives 50 to 90 MiB/s of
/// such lines where a bare connection has 2,700 MiB/s. So what our two sides cost shows beside a terminal only.
pub fn log(agent: &Agent) -> Result<Measured, Skipped> {
    let (_partner, mut sink) = over_tcp("receive:/dev/null");
    let mut buffer = vec![0; CHUNK];
    let floor = || relay_a_terminal(&mut sink, &mut buffer);
    Ok(throughput(alternate(LOG_ROUNDS, || log_once(agent), floor), LOG_BYTES))
}

/// The same beside so many bytes in a bare connection without a terminal, which tells mostly what the terminal costs (see `log`).
pub fn log_and_no_terminal(agent: &Agent) -> Result<Measured, Skipped> {
    let (_partner, mut sink) = over_tcp("receive:/dev/null");
    let chunk = vec![b'x'; CHUNK];
    let floor = || {
        sink.write_all(&LOG_BYTES.to_ne_bytes()).expect("the partner reads");
        for _ in 0..LOG_BYTES / CHUNK as u64 {
            sink.write_all(&chunk).expect("the partner reads");
        }
        sink.read_exact(&mut [0]).expect("the partner answers");
    };
    Ok(throughput(alternate(LOG_ROUNDS, || log_once(agent), floor), LOG_BYTES))
}

/// A host in this process, as a program has it that uses the library, and its guest. Both end with this.
struct HostHere {
    service: Arc<Service>,
    guest: Child,
    signals: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl HostHere {
    /// Its task is over at once, and it stays.
    fn start(agent: &Agent) -> io::Result<HostHere> {
        let listener = Listener::open("127.0.0.1:0")?;
        let address = listener.address().expect("it has a port").to_string();
        let bell = host::bell()?;
        let wake = Arc::clone(&bell.1);
        let resolved = Box::new(move |_| drop(fd::write(wake.as_fd(), b"x")));
        let service = Arc::new(Service::new(&["true".to_owned()], &[], Box::new(io::sink()), resolved)?);
        let (taken, signals) = fd::pipe()?;
        let linger = Duration::from_secs(3600);
        let host = Host {
            service: Arc::clone(&service),
            listener,
            from: Vec::new(),
            control: None,
            linger,
            bell,
            is_unread: Arc::default(),
            tell: |_| (),
        };
        let run = move || {
            let _ = host.run(&taken);
        };
        let mut guest = Command::new(&agent.binary);
        let guest = guest.args(["metadata", "run", "--host", &address]).stdin(Stdio::null()).stderr(Stdio::null());
        Ok(HostHere { service, guest: guest.spawn()?, signals, thread: Some(std::thread::spawn(run)) })
    }
}

impl Drop for HostHere {
    fn drop(&mut self) {
        let _ = fd::write(self.signals.as_fd(), &[signal::SIGTERM as u8]);
        let _ = self.thread.take().map(JoinHandle::join);
        let _ = self.guest.kill();
        let _ = self.guest.wait();
    }
}

/// Counts what comes.
#[derive(Clone, Default)]
struct Count(Arc<AtomicU64>);

impl Store for Count {
    fn begin(&mut self) -> io::Result<()> {
        self.0.store(0, Ordering::SeqCst);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        Ok(())
    }
}

/// A file of the guest, beside the same file in a bare connection: two processes here and there.
pub fn artifact(agent: &Agent) -> Result<Measured, Skipped> {
    let host = HostHere::start(agent).map_err(|error| Skipped(error.to_string()))?;
    fetched(|path, count| host.service.get_artifact(path, Box::new(count)).expect("it is there"))
}

/// The same through the host's control socket: three processes beside two, and each byte goes over a socket once more.
pub fn artifact_by_control(agent: &Agent) -> Result<Measured, Skipped> {
    let pair = Pair::start(agent, 3600, &["true"]);
    fetched(|path, mut count| pair.control().get(path, &mut count).expect("it is there"))
}

fn fetched(fetch: impl Fn(&str, Count)) -> Result<Measured, Skipped> {
    let file = MemoryFile::new("artifact")?;
    file.fill()?;
    let path = file.path().to_str().expect("a path of ours");
    let (_partner, mut source) = over_tcp(&format!("send:{path}"));
    let mut buffer = vec![0; CHUNK];
    let ours = || {
        let count = Count::default();
        fetch(path, count.clone());
        assert_eq!(count.0.load(Ordering::SeqCst), FILE_BYTES);
    };
    let floor = || {
        source.write_all(&[0]).expect("the partner reads");
        let mut total = 0;
        while total < FILE_BYTES {
            total += source.read(&mut buffer).expect("the partner writes") as u64;
        }
    };
    Ok(throughput(alternate(FILE_ROUNDS, ours, floor), FILE_BYTES))
}

/// Bytes through cat in a shell, beside those through cat at a bare connection.
pub fn shell(agent: &Agent) -> Result<Measured, Skipped> {
    let pair = Pair::start(agent, 3600, &["true"]);
    let chunk = vec![b'x'; CHUNK];
    let pour = |to: &mut dyn Write| {
        (0..SHELL_BYTES / CHUNK as u64).try_for_each(|_| to.write_all(&chunk)).expect("somebody reads")
    };
    let drain = |from: &mut dyn Read| {
        let counted = io::copy(from, &mut io::sink()).expect("it can be read");
        assert_eq!(counted, SHELL_BYTES);
    };
    let ours = || {
        let shell = pair.control().shell(&["cat".to_owned()], false).expect("cat starts");
        let ((stdin, mut input), (mut output, stdout)) = (io::pipe().expect("a pipe"), io::pipe().expect("a pipe"));
        let stderr = File::options().write(true).open("/dev/null").expect("/dev/null");
        std::thread::scope(|scope| {
            scope.spawn(move || {
                pour(&mut input);
            });
            scope.spawn(move || drain(&mut output));
            let wires =
                Wires { stdin: Some(stdin.as_fd()), stdout: stdout.as_fd(), stderr: stderr.as_fd(), orders: None };
            assert!(matches!(shell.run(wires), Ok(Ending::Succeeded)));
            drop(stdout);
        });
    };
    let floor = || {
        let (_partner, mut socket) = over_tcp("cat");
        let mut input = socket.try_clone().expect("a descriptor");
        std::thread::scope(|scope| {
            scope.spawn(move || {
                pour(&mut input);
                let _ = input.shutdown(Shutdown::Write);
            });
            drain(&mut socket);
        });
    };
    Ok(throughput(alternate(SHELL_ROUNDS, ours, floor), SHELL_BYTES))
}
