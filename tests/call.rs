//! `lodger call` and `lodger commands`: requests as people write them, and whatever may be the answer.

#[path = "support/client.rs"]
mod client;
#[path = "support/line.rs"]
mod line;
mod support;
#[path = "support/weather.rs"]
mod weather;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lodger::client::monitor::RESPONSE_MAX;
use lodger::sys::tty;

use client::{Done, Running, lodger, read_until, run, run_with_input};
use line::{Line, Weather};
use support::{Agent, Folder, PATIENCE, pause};

/// A server that follows a script: it takes one connection, reads one request of so many bytes, and does with it what the script says.
struct Scripted {
    folder: Folder,
    thread: JoinHandle<Vec<u8>>,
}

/// The longest request that is read before the script goes on.
const REQUEST: &str = r#"{"Command":"x"}"#;

impl Scripted {
    fn start(script: impl FnOnce(UnixStream) + Send + 'static) -> Scripted {
        Scripted::start_with(REQUEST.len(), script)
    }

    fn start_with(request_bytes: usize, script: impl FnOnce(UnixStream) + Send + 'static) -> Scripted {
        let folder = Folder::new();
        let listener = UnixListener::bind(folder.path("sock")).expect("a socket");
        let thread = thread::spawn(move || {
            let (mut socket, _) = listener.accept().expect("a client");
            socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
            let mut request = vec![0; request_bytes];
            socket.read_exact(&mut request).expect("a request");
            script(socket);
            request
        });
        Scripted { folder, thread }
    }

    /// A server that answers with these bytes, and closes.
    fn answering(response: impl Into<Vec<u8>>) -> Scripted {
        let response = response.into();
        Scripted::start(move |mut socket| {
            let _ = socket.write_all(&response);
        })
    }

    fn address(&self, scheme: &str) -> String {
        format!("{scheme}:{}", self.folder.path("sock").display())
    }

    /// Calls the command `x`.
    fn call(self, scheme: &str, options: &[&str]) -> Done {
        let address = self.address(scheme);
        let done = run([&["call", "--to", &address], options, &["x"]].concat());
        assert_eq!(String::from_utf8_lossy(&self.thread.join().expect("the script ends")), REQUEST);
        done
    }
}

/// Waits until the client has gone.
fn wait_for_end(mut socket: UnixStream) {
    let _ = socket.read(&mut [0; 64]);
}

fn good_text(done: Done) -> String {
    String::from_utf8(done.good()).expect("text")
}

// Real agents

#[test]
fn an_agent_answers_in_order_and_with_its_status() {
    let agent = Agent::start();
    for address in [agent.address(), "local:".to_owned()] {
        let call = |words: &[&str]| run([&["call", "--to", &address], words].concat());
        assert_eq!(call(&["agent.ping"]).good(), br#"{"Status":0,"StatusMessage":""}"#);
        assert_eq!(call(&["agent.ping", "{}"]).good(), br#"{"Status":0,"StatusMessage":""}"#);
        assert_eq!(call(&["--raw", r#" {"command":"agent.ping"}"#]).good(), br#"{"Status":0,"StatusMessage":""}"#);
        let info = good_text(call(&["agent.info"]));
        assert!(info.starts_with(r#"{"Status":0,"StatusMessage":"","#), "{info}");
        let unknown = call(&["no.such.command"]);
        let wanted = r#"{"Status":101,"StatusMessage":"Could not find a handler for the requested command"}"#;
        assert_eq!((unknown.code, unknown.stdout(), unknown.stderr()), (Some(101), wanted.to_owned(), String::new()));
        let wrong = call(&["agent.ping", "bogus=1"]);
        assert_eq!((wrong.code, wrong.stderr()), (Some(10), String::new()));
        assert!(wrong.stdout().contains("bogus"), "{}", wrong.stdout());
        assert_eq!(call(&["--raw", "[]"]).code, Some(102));
    }
}

#[test]
fn requests_come_from_stdin_too() {
    let call = |words: &[&str], input: &str| run_with_input([&["call"], words].concat(), input.as_bytes());
    assert_eq!(call(&["agent.ping", "-"], " {\n}\n").good(), br#"{"Status":0,"StatusMessage":""}"#);
    assert_eq!(call(&["agent.ping", "-"], r#"{"bogus":1}"#).code, Some(10));
    assert_eq!(call(&["--raw", "-"], r#"{"Command":"agent.ping"}"#).good(), br#"{"Status":0,"StatusMessage":""}"#);
    call(&["agent.ping", "-"], "[1]").bad(125, &["must be one JSON object: no object"]);
}

#[test]
fn what_the_guest_offers_is_listed() {
    let agent = Agent::start();
    let list = good_text(run(["commands", "--to", &agent.address()]));
    let ping = list.lines().find(|line| line.starts_with("agent.ping ")).expect("a line");
    assert!(ping.ends_with("  answer, and nothing else"), "{list}");
    let column = |line: &str| line.find("  ").map(|at| at + line[at..].len() - line[at..].trim_start().len());
    let columns: Vec<_> = list.lines().filter(|line| line.starts_with("agent.")).map(column).collect();
    assert!(columns.len() >= 3 && columns.windows(2).all(|pair| pair[0] == pair[1]), "{list}");
    let long = good_text(run(["commands", "--long"]));
    assert!(list.lines().all(|line| long.lines().any(|other| line == other)), "{long}");
}

#[test]
fn an_agent_that_cannot_tell_what_it_offers_is_told_as_such() {
    let request = br#"{"Command":"agent.commands"}"#.len();
    for (response, code, words) in [
        (r#"{"Status":101,"StatusMessage":"no handler"}"#, 1, &["no command agent.commands"][..]),
        (r#"{"Status":105,"StatusMessage":"bro\nken"}"#, 1, &["agent.commands: bro?ken"]),
        (r#"[]"#, 1, &["without a list"]),
        (r#"{"Status":0,"commands":5}"#, 1, &["without a list"]),
        ("", 125, &["without a response"]),
        ("hello", 125, &["no JSON"]),
    ] {
        let scripted = Scripted::start_with(request, move |mut socket| _ = socket.write_all(response.as_bytes()));
        let done = run(["commands", "--to", &scripted.address("unix")]);
        done.bad(code, words);
        assert!(done.stdout.is_empty() && done.stderr().lines().count() == 1, "{response}: {}", done.stderr());
        scripted.thread.join().expect("the script ends");
    }
}

#[test]
fn an_agent_that_comes_later_is_waited_for() {
    let folder = Folder::new();
    let address = format!("unix:{}", folder.path("sock").display());
    let running = Running::start(lodger(["call", "--wait", "20", "--to", &address, "agent.ping"]));
    pause(Duration::from_millis(300));
    let _agent = Guard::serving(&address);
    running.finish().good();
    let nobody = folder.path("nobody").display().to_string();
    run(["call", "--wait", "0.2", "--to", &format!("unix:{nobody}"), "x"]).bad(125, &[&nobody, "; waited 0.2 s"]);
    run(["call", "--to", &format!("unix:{nobody}"), "x"]).bad(125, &[&nobody, "lodger serve"]);
}

/// An agent that ends with the test.
struct Guard(Child);

impl Guard {
    fn serving(address: &str) -> Guard {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lodger"));
        Guard(command.args(["serve", "--listen", address]).stdin(Stdio::null()).spawn().expect("the agent starts"))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// Lines

#[test]
fn an_agent_at_the_end_of_a_line_answers() {
    let line = Line::start(Weather::clear());
    let _agent = Guard::serving(&line.guest_address());
    for _ in 0..5 {
        let done = run(["call", "--to", &line.host_address(), "agent.ping"]);
        assert_eq!(done.good(), br#"{"Status":0,"StatusMessage":""}"#);
    }
    assert_eq!(run(["call", "--to", &line.host_address(), "nothing"]).code, Some(101));
    assert!(good_text(run(["commands", "--to", &line.host_address()])).contains("agent.ping"));
}

#[test]
fn a_line_without_an_agent_is_told_as_such() {
    for options in [&[][..], &["--timeout", "0"], &["--wait", "1"]] {
        let (line, start) = (Line::start(Weather::clear()), Instant::now());
        let address = line.host_address();
        let done = run([&["call", "--to", &address], options, &["agent.ping"]].concat());
        done.bad(125, &[&format!("no agent answered on {address}; nothing came at all")]);
        assert!(done.stderr().lines().count() == 1 && start.elapsed() < Duration::from_secs(12), "{}", done.stderr());
    }
}

#[test]
fn a_line_whose_agent_comes_late_is_waited_for() {
    let line = Line::start(Weather::clear());
    let running = Running::start(lodger(["call", "--wait", "20", "--to", &line.host_address(), "agent.ping"]));
    pause(Duration::from_millis(500));
    let _agent = Guard::serving(&line.guest_address());
    running.finish().good();
}

#[test]
fn a_bare_line_with_the_right_protocol_answers() {
    let line = Line::start(Weather::clear());
    let _agent = Guard::serving(&format!("port:{},proto=google", line.guest.display()));
    let address = format!("port:{}", line.host.display());
    for _ in 0..3 {
        let done = run(["call", "--to", &address, "--timeout", "10", "agent.ping"]);
        assert_eq!(done.good(), br#"{"Status":0,"StatusMessage":""}"#);
    }
}

#[test]
fn a_response_on_a_bare_line_ends_with_its_last_brace() {
    let scripted = Scripted::start(|mut socket| {
        for piece in [&b" {\"a\":\"}\",\"b\":{"[..], b"}", b"}\n{\"next\":1}"] {
            socket.write_all(piece).expect("the client reads");
            pause(Duration::from_millis(30));
        }
        wait_for_end(socket);
    });
    assert_eq!(good_text(scripted.call("port", &[])), " {\"a\":\"}\",\"b\":{}}");
}

#[test]
fn a_bare_line_that_says_nothing_or_nonsense_is_told_what_is_missing() {
    let silent = Scripted::start(wait_for_end).call("port", &["--timeout", "0.3"]);
    silent.bad(125, &["no whole response within 0.3 s", ",proto=google"]);
    let other = Scripted::start(|mut socket| {
        socket.write_all(b"\xa2\x64kind").expect("the client reads");
        wait_for_end(socket);
    });
    let other = other.call("port", &[]);
    other.bad(125, &["no JSON", ",proto=google"]);
    assert_eq!(other.stdout, b"\xa2\x64kind");
}

// Scripted servers

#[test]
fn the_exit_status_is_the_responses() {
    for (response, code) in [
        (r#"{"Status":0}"#, 0),
        (r#"{"x":{"Status":3},"Status":5,"StatusMessage":"five"}"#, 5),
        (r#"{"Status":120}"#, 120),
        (r#"{"Status":121}"#, 121),
        (r#"{"Status":500}"#, 121),
        (r#"{"Status":-1}"#, 121),
        (r#"[{"Status":501,"StatusMessage":"plugin not running"}]"#, 0),
        (r#" {"a" : 1}  "#, 0),
        ("null\n", 0),
        ("17", 0),
    ] {
        let done = Scripted::answering(response).call("unix", &[]);
        assert_eq!((done.code, done.stdout(), done.stderr()), (Some(code), response.into(), String::new()));
    }
}

#[test]
fn what_is_no_response_is_printed_and_complained_of() {
    for (response, why) in [
        (&br#"{"Status":"text"}"#[..], "the response's Status is no whole number"),
        (b"hello\x1b[31m\xff\n", "the response is no JSON"),
        (b"{} {}", "the response is no JSON"),
        (br#"{"Status":0,"a":[1,"#, "the response ends in the middle of its JSON"),
        (b"", "the agent closed the connection without a response"),
    ] {
        let done = Scripted::answering(response).call("unix", &[]);
        done.bad(125, &["lodger call: unix:", why]);
        assert_eq!((done.stdout, done.stderr.iter().filter(|byte| **byte == b'\n').count()), (response.to_vec(), 1));
    }
}

#[test]
fn a_reset_spares_a_whole_response_and_nothing_else() {
    // What is left unread resets the connection.
    let script = |response: &'static [u8]| {
        Scripted::start_with(REQUEST.len() - 1, move |mut socket| socket.write_all(response).expect("room"))
    };
    let call = |scripted: Scripted| {
        let done = run(["call", "--to", &scripted.address("unix"), "x"]);
        scripted.thread.join().expect("the script ends");
        done
    };
    let whole = call(script(br#"{"Status":7}"#));
    assert_eq!((whole.code, whole.stdout(), whole.stderr()), (Some(7), r#"{"Status":7}"#.to_owned(), String::new()));
    let half = call(script(br#"{"Status":7"#));
    half.bad(125, &["connection lost: connection reset"]);
    assert_eq!(half.stdout, br#"{"Status":7"#);
    call(script(b"")).bad(125, &["connection lost without a response: connection reset"]);
}

#[test]
fn a_server_that_does_not_end_its_response_costs_the_time_out_and_no_more() {
    let after = |response: &'static [u8]| {
        Scripted::start(move |mut socket| {
            socket.write_all(response).expect("the client reads");
            wait_for_end(socket);
        })
    };
    let start = Instant::now();
    let silent = after(b"").call("unix", &["--timeout", "0.3"]);
    silent.bad(125, &["lodger call: unix:", "no whole response within 0.3 s"]);
    assert!(silent.stdout.is_empty() && start.elapsed() >= Duration::from_millis(300));
    // Time enough for the server on a busy machine.
    let half = after(b"{\"a\":").call("unix", &["--timeout", "6"]);
    half.bad(125, &["no whole response within 6.0 s"]);
    assert_eq!(half.stdout, b"{\"a\":");
    let whole = after(br#"{"Status":3}"#).call("unix", &["--timeout", "6"]);
    assert_eq!((whole.code, whole.stdout(), whole.stderr()), (Some(3), r#"{"Status":3}"#.to_owned(), String::new()));
    assert!(start.elapsed() < Duration::from_secs(40), "{:?}", start.elapsed());
}

/// A JSON string of so many bytes.
fn long_response(bytes: usize) -> Vec<u8> {
    let mut response = vec![b'x'; bytes];
    (response[0], response[bytes - 1]) = (b'"', b'"');
    response
}

#[test]
fn a_response_is_taken_up_to_the_limit_and_not_beyond() {
    let most = long_response(RESPONSE_MAX);
    let done = Scripted::answering(most.clone()).call("unix", &[]);
    assert_eq!((done.code, done.stderr()), (Some(0), String::new()));
    assert!(done.stdout == most);
    for bytes in [RESPONSE_MAX + 1, RESPONSE_MAX + (1 << 20)] {
        let done = Scripted::answering(long_response(bytes)).call("unix", &[]);
        done.bad(125, &["the response is longer than 67108864 bytes"]);
        assert!(done.stdout.is_empty());
    }
}

#[test]
fn an_answer_to_a_request_that_is_not_read_to_its_end_is_heard() {
    let folder = Folder::new();
    let listener = UnixListener::bind(folder.path("sock")).expect("a socket");
    let server = thread::spawn(move || {
        let (mut socket, _) = listener.accept().expect("a client");
        socket.read_exact(&mut [0; 100]).expect("a beginning");
        socket.write_all(br#"{"Status":107}"#).expect("room");
    });
    let input = format!("{{\"a\":\"{}\"}}", "x".repeat(4 << 20));
    let words = ["call", "--to", &format!("unix:{}", folder.path("sock").display()), "x", "-"];
    let done = run_with_input(words, input.as_bytes());
    assert_eq!((done.code, done.stdout(), done.stderr()), (Some(107), r#"{"Status":107}"#.to_owned(), String::new()));
    server.join().expect("the server ends");
}

#[test]
fn requests_are_ascii_unless_they_are_raw() {
    let sent = |words: &[&str], wanted: &str| {
        let scripted = Scripted::start_with(wanted.len(), |mut socket| {
            socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a time-out");
            assert!(socket.read(&mut [0]).is_err(), "more came");
            socket.write_all(b"{}").expect("room");
        });
        run([&["call", "--to", &scripted.address("unix")], words].concat()).good();
        assert_eq!(String::from_utf8_lossy(&scripted.thread.join().expect("the script ends")), wanted);
    };
    sent(
        &["a.b", "argv=[\"uname\", \"-a\"]", "name=Jürgen", "brace=a{", "count=5"],
        r#"{"Command":"a.b","argv":["uname","-a"],"name":"J\u00fcrgen","brace":"a\u007b","count":5}"#,
    );
    sent(&["a.b", "\n{ \"x\" : \"}😀\" }"], r#"{"Command":"a.b","x":"\u007d\ud83d\ude00"}"#);
    sent(&["--raw", " {\"ü\": {x}"], " {\"ü\": {x}");
}

#[test]
fn what_is_wrong_with_a_call_is_said_before_anything_is_connected() {
    for (words, why) in [
        (&["call"][..], "a command's NAME is missing"),
        (&["call", "x", "y"], "y: neither a JSON object nor KEY=VALUE"),
        (&["call", "x", "=y"], "=y: neither"),
        (&["call", "x", "[1]"], "the arguments must be one JSON object"),
        (&["call", "x", "{"], "the arguments must be one JSON object: EOF"),
        (&["call", "x", "{} {}"], "the arguments must be one JSON object: trailing"),
        (&["call", "x", "{}", "a=1"], "either one JSON object or all KEY=VALUE"),
        (&["call", "x", "{\"command\":1}"], "a member command of their own"),
        (&["call", "x", "a=1", "a=2"], "a is given twice"),
        (&["call", "--raw", "{}", "x"], "--raw takes the whole request"),
        (&["call", "--raw"], "--raw"),
        (&["call", "--bogus", "x"], "--bogus"),
        (&["call", "-l", "x"], "-l"),
        (&["call", "--timeout", "soon", "x"], "--timeout soon"),
        (&["call", "--timeout", "-1", "x"], "--timeout -1"),
        (&["commands", "x"], "x"),
        (&["commands", "--short"], "--short"),
    ] {
        let mut command = lodger(words);
        command.env("LODGER_TO", "unix:/nowhere/to/be/found");
        let done = Running::start(command).finish();
        done.bad(125, &[why]);
        assert!(!done.stderr().contains("/nowhere"), "{}", done.stderr());
    }
}

#[test]
fn a_signal_ends_a_call_at_once() {
    let folder = Folder::new();
    let listener = UnixListener::bind(folder.path("sock")).expect("a socket");
    let address = format!("unix:{}", folder.path("sock").display());
    let running = Running::start(lodger(["call", "--timeout", "0", "--to", &address, "x"]));
    let (mut socket, _) = listener.accept().expect("a client");
    socket.read_exact(&mut [0; REQUEST.len()]).expect("a request");
    running.signal(lodger::sys::signal::SIGTERM);
    assert_eq!(running.finish().signal, Some(lodger::sys::signal::SIGTERM));
}

#[test]
fn a_response_on_a_terminal_is_indented_and_harmless() {
    let on_terminal = |response: &'static [u8], shown: &str| {
        let scripted = Scripted::answering(response);
        let (master, slave) = tty::open_pair().expect("a terminal");
        let mut command = lodger(["call", "--to", &scripted.address("unix"), "x"]);
        command.stdout(slave.try_clone().expect("a descriptor")).stderr(Stdio::null());
        let running = Running::start_as_is(command);
        read_until(&mut File::from(master), shown);
        drop(slave);
        scripted.thread.join().expect("the script ends");
        running.finish().code
    };
    let response = "{\"Status\":3,\"StatusMessage\":\"n\u{9b}o\",\"list\":[1,{}],\"a\":null}".as_bytes();
    let shown = "{\r\n  \"Status\": 3,\r\n  \"StatusMessage\": \"n\\u009bo\",\r\n  \"list\": [\r\n    1,\r\n    {}\r\n  ],\r\n  \"a\": null\r\n}\r\n";
    assert_eq!(on_terminal(response, shown), Some(3));
    assert_eq!(on_terminal(b"oh \x1b[31mno\xff", "oh ?[31mno\u{fffd}\r\n"), Some(125));
}
