//! Vsock on a host: the unix socket of a monitor against one that the test plays, and the loopback where this kernel has one.

mod support;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use lodger::sys::vsock;
use support::{Agent, Folder, PATIENCE, wait_until};

/// A process that ends with the test.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn lodger(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lodger"));
    command.args(words).stdin(Stdio::null());
    command
}

/// What a command said on both streams, and its exit status.
fn run(words: &[&str]) -> (Option<i32>, String, String) {
    let output = lodger(words).output().expect("lodger starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// A monitor's socket; each connection to it is given to `answer` with the line that came first.
fn monitor(answer: impl Fn(UnixStream, String) + Send + 'static) -> (Folder, String) {
    let folder = Folder::new();
    let path = folder.path("vm:1.vsock");
    let listener = UnixListener::bind(&path).expect("a socket");
    // It ends with the test's process; nothing waits for it.
    thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
            let mut line = Vec::new();
            let mut byte = [0];
            while !line.ends_with(b"\n") && (&socket).read(&mut byte).is_ok_and(|count| count == 1) {
                line.push(byte[0]);
            }
            answer(socket, String::from_utf8_lossy(&line).into_owned());
        }
    });
    let address = format!("hvsock:{}:1024", path.display());
    (folder, address)
}

/// Carries bytes both ways until one side ends.
fn splice(one: UnixStream, two: UnixStream) {
    let copy = |mut from: UnixStream, mut to: UnixStream| {
        thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(std::net::Shutdown::Write);
        })
    };
    copy(one.try_clone().expect("a descriptor"), two.try_clone().expect("a descriptor"));
    copy(two, one);
}

#[test]
fn an_agent_behind_a_monitors_socket_is_used_like_any_other() {
    let agent = Agent::start();
    let socket = agent.socket.clone();
    let (_folder, address) = monitor(move |client, line| {
        assert_eq!(line, "CONNECT 1024\n");
        (&client).write_all(b"OK 1073741824\n").expect("the client reads");
        splice(client, UnixStream::connect(&socket).expect("the agent listens"));
    });
    let words = ["exec", "--to", &address, "--", "sh", "-c", "echo out; echo err >&2; exit 9"];
    assert_eq!(run(&words), (Some(9), "out\n".to_owned(), "err\n".to_owned()));
    let (code, said, _) = run(&["ping", "-c", "1", "--to", &address]);
    assert_eq!(code, Some(0));
    assert!(said.contains(&address), "{said}");
}

#[test]
fn no_byte_behind_the_answer_of_a_monitor_is_lost() {
    let (_folder, address) = monitor(|client, _| {
        (&client).write_all(b"OK 5\nfirst words of the guest").expect("the client reads");
    });
    let addr = address.parse().expect("an address");
    let stream = lodger::transport::connect(&addr).expect("a stream");
    let mut text = Vec::new();
    while lodger::sys::fd::read_append(stream.input(), &mut text, 64).expect("a read") > 0 {}
    assert_eq!(text, b"first words of the guest");
}

#[test]
fn an_answer_that_comes_in_pieces_is_understood() {
    let agent = Agent::start();
    let socket = agent.socket.clone();
    let (_folder, address) = monitor(move |client, _| {
        for piece in [&b"O"[..], b"K 1", b"2\n"] {
            (&client).write_all(piece).expect("the client reads");
            thread::sleep(Duration::from_millis(20));
        }
        splice(client, UnixStream::connect(&socket).expect("the agent listens"));
    });
    assert_eq!(run(&["exec", "--to", &address, "--", "echo", "here"]).1, "here\n");
}

#[test]
fn a_monitor_that_refuses_is_a_clear_error() {
    for (answer, words) in [
        (
            &b""[..],
            "nobody listens on port 1024 of the guest; `lodger serve --listen vsock:1024` would be an agent there",
        ),
        (b"OK 1", "the monitor answered \"OK 1\" and not OK"),
        (b"ERR no such port\n", "the monitor answered \"ERR no such port\" and not OK"),
        (b"OK \n", "the monitor answered \"OK \" and not OK"),
        (b"OK 12x\n", "the monitor answered \"OK 12x\" and not OK"),
        (b"\x1b[2J\n", "the monitor answered \"\\x1b[2J\" and not OK"),
    ] {
        let (_folder, address) = monitor(move |client, _| (&client).write_all(answer).expect("the client reads"));
        let (code, _, said) = run(&["exec", "--to", &address, "--", "true"]);
        assert_eq!(code, Some(125), "{said}");
        assert!(said.contains(&format!("connect to {address}: ")) && said.contains(words), "{said}");
    }
}

#[test]
fn an_answer_may_be_as_long_as_the_limit_and_no_longer() {
    let agent = Agent::start();
    for (digits, works) in [(28, true), (29, false)] {
        let socket = agent.socket.clone();
        let (_folder, address) = monitor(move |client, _| {
            let answer = format!("OK {}\n", "1".repeat(digits));
            (&client).write_all(answer.as_bytes()).expect("the client reads");
            splice(client, UnixStream::connect(&socket).expect("the agent listens"));
        });
        let (code, _, said) = run(&["exec", "--to", &address, "--", "true"]);
        assert_eq!(code, Some(if works { 0 } else { 125 }), "{said}");
        assert_eq!(said.contains("and not OK"), !works, "{said}");
    }
}

#[test]
fn a_monitor_that_says_nothing_is_given_up() {
    // Kept open, and never answered.
    let held = std::sync::Mutex::new(Vec::new());
    let (_folder, address) = monitor(move |client, _| held.lock().expect("a lock").push(client));
    let start = Instant::now();
    let (code, _, said) = run(&["exec", "--to", &address, "--", "true"]);
    assert_eq!(code, Some(125), "{said}");
    assert!(said.contains("the monitor does not answer for port 1024"), "{said}");
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}

#[test]
fn a_monitors_socket_that_is_not_there_or_dead_is_named() {
    let folder = Folder::new();
    let path = folder.path("vm.vsock");
    let address = format!("hvsock:{}:1024", path.display());
    let (code, _, said) = run(&["exec", "--to", &address, "--", "true"]);
    assert_eq!(code, Some(125));
    assert_eq!(said, format!("lodger exec: connect to {address}: no such file or directory\n"));
    drop(UnixListener::bind(&path).expect("a socket"));
    let said = run(&["exec", "--to", &address, "--", "true"]).2;
    assert_eq!(said, format!("lodger exec: connect to {address}: connection refused\n"));
}

#[test]
fn an_address_of_the_other_direction_is_refused() {
    for (address, why) in [
        ("vsock:1024", "vsock:1024: can only be listened on; vsock:CID:PORT says whose port it is"),
        ("stdio:", "stdio: can only be listened on"),
        ("vsock:3:4294967295", "\"4294967295\" is no port"),
    ] {
        let (code, _, said) = run(&["exec", "--to", address, "--", "true"]);
        assert!(code == Some(125) && said.contains(why), "{said}");
    }
    for address in ["vsock:3:1024", "hvsock:/a:1024", "local:"] {
        let (code, _, said) = run(&["serve", "--listen", address]);
        assert!(code == Some(125) && said.contains(&format!("address {address}: can only be connected to")), "{said}");
    }
}

#[test]
fn the_service_manager_is_told_when_all_addresses_are_open() {
    for name in ["path", "abstract"] {
        let folder = Folder::new();
        let abstract_name = format!("lodger-test-notify-{}", std::process::id());
        let (socket, place) = if name == "path" {
            let path = folder.path("notify");
            (UnixDatagram::bind(&path).expect("a socket"), path.display().to_string())
        } else {
            use std::os::linux::net::SocketAddrExt;
            let addr = std::os::unix::net::SocketAddr::from_abstract_name(&abstract_name).expect("a name");
            (UnixDatagram::bind_addr(&addr).expect("a socket"), format!("@{abstract_name}"))
        };
        socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let agent_socket = folder.path("agent");
        let mut command = lodger(&["serve", "--listen", &format!("unix:{}", agent_socket.display())]);
        let _agent = Guard(command.env("NOTIFY_SOCKET", place).spawn().expect("the agent starts"));
        let mut message = [0; 500];
        let count = socket.recv(&mut message).expect("a message");
        UnixStream::connect(&agent_socket).expect("by then it listens");
        let message = String::from_utf8_lossy(&message[..count]).into_owned();
        assert!(message.starts_with("READY=1\nX_LODGER=lodger ") && message.ends_with(")\n"), "{message}");
    }
}

#[test]
fn a_service_manager_that_is_late_is_told_too() {
    let folder = Folder::new();
    let place = folder.path("notify");
    let agent_socket = folder.path("agent");
    let mut command = lodger(&["serve", "--listen", &format!("unix:{}", agent_socket.display())]);
    let _agent = Guard(command.env("NOTIFY_SOCKET", &place).spawn().expect("the agent starts"));
    wait_until("the agent listens", || UnixStream::connect(&agent_socket).is_ok());
    let socket = UnixDatagram::bind(&place).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    let mut message = [0; 500];
    let count = socket.recv(&mut message).expect("a message");
    assert!(message[..count].starts_with(b"READY=1\n"));
}

#[test]
fn a_notification_that_cannot_be_sent_is_one_line_of_the_log_and_no_more() {
    let folder = Folder::new();
    let agent_socket = folder.path("agent");
    let mut command = lodger(&["serve", "--listen", &format!("unix:{}", agent_socket.display())]);
    let mut child = command.env("NOTIFY_SOCKET", "vsock-dgram:2:1").stderr(Stdio::piped()).spawn().expect("a start");
    let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
    let _agent = Guard(child);
    let mut line = String::new();
    stderr.read_line(&mut line).expect("a line");
    assert_eq!(line, "lodger warn: notify vsock-dgram:2:1: only vsock:CID:PORT and unix sockets are known\n");
    assert_eq!(run(&["exec", "--to", &format!("unix:{}", agent_socket.display()), "--", "echo", "x"]).1, "x\n");
}

/// Whether a vsock of this machine reaches the machine itself. A test that needs it says that it was skipped.
fn has_loopback(test: &str) -> bool {
    use std::os::fd::AsFd;
    let attempt = || {
        let listener = vsock::socket(vsock::Kind::Stream)?;
        vsock::bind(listener.as_fd(), 55_017)?;
        vsock::listen(listener.as_fd(), 1)?;
        lodger::transport::connect(&"vsock:1:55017".parse().expect("an address")).map(drop)
    };
    let result: io::Result<()> = attempt();
    if let Err(error) = &result {
        let _ = writeln!(io::stderr(), "{test} was skipped: this kernel has no vsock loopback ({error})");
    }
    result.is_ok()
}

#[test]
fn an_agent_on_a_vsock_port_serves_the_machine_itself() {
    if !has_loopback("an_agent_on_a_vsock_port_serves_the_machine_itself") {
        return;
    }
    let port = 40_000 + std::process::id() % 10_000;
    let _agent =
        Guard(lodger(&["serve", "--listen", &format!("vsock:{port},cid=1")]).spawn().expect("the agent starts"));
    let address = format!("vsock:1:{port}");
    wait_until("the agent listens", || run(&["exec", "--to", &address, "--", "true"]).0 == Some(0));
    assert_eq!(run(&["exec", "--to", &address, "--", "sh", "-c", "echo $((6*7)); exit 3"]).1, "42\n");
}

#[test]
fn a_vsock_port_that_is_taken_is_an_error_of_the_start() {
    use std::os::fd::AsFd;
    let port = 50_000 + std::process::id() % 5_000;
    let taken = || {
        let socket = vsock::socket(vsock::Kind::Stream)?;
        vsock::bind(socket.as_fd(), port).map(|()| socket)
    };
    let address = format!("vsock:{port}");
    let _socket = taken();
    let (code, _, said) = run(&["serve", "--listen", &address]);
    assert_eq!(code, Some(125), "{said}");
    let why = match &_socket {
        Ok(_) => "address already in use",
        // A kernel without vsock says so, which is an error of the start too.
        Err(_) => "this kernel has no vsock, or its module is not loaded",
    };
    assert!(said.contains(&format!("listen on {address}: ")) && said.contains(why), "{said}");
}
