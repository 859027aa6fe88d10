//! Agents that come late, go, or say nothing: `--wait`, `connect` and `ping`; and lines that are away.

#[path = "support/client.rs"]
mod client;
mod support;

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::time::{Duration, Instant};

use lodger::sys::fd::{READ, wait_for};
use lodger::sys::signal::{self, SIGINT, SIGKILL, SIGTERM};
use lodger::sys::tty;
use lodger::wire::file::FileResponse;
use lodger::wire::frame::{Frame, Hello};

use client::{Running, lodger, read_until, run};
use support::{Agent, Folder, Peer, pause, wait_until};

/// An agent on another address than a socket's, ended with the test.
fn agent_at(address: &str) -> Running {
    let mut command = lodger(["serve", "--listen", address]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    Running::start_as_is(command)
}

/// Wake-ups of a process until now, of all its threads.
fn wake_ups(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("a process").flatten();
    let texts = tasks.map(|task| fs::read_to_string(task.path().join("status")).unwrap_or_default());
    let counts =
        texts.filter_map(|text| text.split("\nvoluntary_ctxt_switches:").nth(1)?.lines().next().map(str::to_owned));
    counts.filter_map(|count| count.trim().parse::<u64>().ok()).sum()
}

#[test]
fn ping_shows_every_answer_and_sums_up() {
    let agent = Agent::start();
    let said =
        String::from_utf8(run(["ping", "--to", &agent.address(), "-c", "4", "-i", "0.02"]).good()).expect("text");
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("lodger ") && lines[0].contains(&agent.address()), "{said}");
    for (index, line) in lines[1..5].iter().enumerate() {
        let (start, time) = line.split_once(" time=").expect("a time");
        assert_eq!(start, format!("answer from {} seq={}", agent.address(), index + 1));
        assert!(time.strip_suffix(" ms").is_some_and(|time| time.parse::<f64>().is_ok()), "{said}");
    }
    assert_eq!(lines[5..7], [format!("--- {} ---", agent.address()), "4 sent, 4 answered, 0% lost".to_owned()]);
    let figures =
        lines[7].strip_prefix("min/median/max = ").and_then(|rest| rest.strip_suffix(" ms")).expect("figures");
    let figures: Vec<f64> = figures.split('/').map(|text| text.parse().expect("a number")).collect();
    assert!(figures.len() == 3 && figures.is_sorted() && lines.len() == 8, "{said}");
    // As fast as the agent answers.
    run(["ping", "--to", &agent.address(), "-c", "500", "-i", "0"]).good();
    for arguments in [["-c", "0"], ["-c", "-1"], ["-i", "-1"], ["-i", "x"], ["-i", "nan"]] {
        run([&["ping"][..], &arguments].concat()).bad(125, &[arguments[0]]);
    }
}

#[test]
fn ping_goes_on_until_it_is_interrupted() {
    let interrupted = |interval: &str, answer: &str| {
        let mut ping = Running::start(lodger(["ping", "-i", interval]));
        let mut stdout = ping.stdout();
        read_until(&mut stdout, answer);
        ping.signal(SIGINT);
        read_until(&mut stdout, "% lost\nmin/median/max = ");
        ping.finish()
    };
    // The interrupt may come between a question and its answer; where it cannot, nothing is lost.
    let code = interrupted("0.02", "seq=3 time=").code;
    assert!(matches!(code, Some(0 | 1)), "{code:?}");
    interrupted("1000", "seq=1 time=").good();
}

#[test]
fn ping_tells_of_an_agent_that_is_lost_and_of_one_that_is_silent() {
    let agent = Agent::start();
    // No second question, which an agent that has read it might leave unanswered, or not have read.
    let mut ping = Running::start(lodger(["ping", "--to", &agent.address(), "-i", "1000"]));
    let mut stdout = ping.stdout();
    read_until(&mut stdout, "seq=1 time=");
    signal::send(agent.pid() as i32, SIGKILL).expect("the agent is there");
    read_until(&mut stdout, "\n1 sent, 1 answered, 0% lost\nmin/median/max = ");
    ping.finish().bad(1, &["the agent closed the connection"]);

    // One that hears the second question, and says nothing more.
    let folder = Folder::new();
    let socket = UnixListener::bind(folder.path("agent")).expect("a socket");
    let address = format!("unix:{}", folder.path("agent").display());
    let mut ping = Running::start(lodger(["ping", "--to", &address, "-i", "0.05"]));
    let mut agent = Peer::new(socket.accept().expect("a client").0);
    let mut hears = |number: u64| loop {
        let item = agent.receive().expect("a frame");
        match Frame::decode(&item).expect("the client speaks our language") {
            Frame::Hello(Hello { mark, .. }) => {
                agent.send(&Frame::Hello(Hello { revision: 1, program: "silent".into(), mark, ..Hello::default() }));
            }
            Frame::FileOp(request) if number == 1 => {
                let answer = FileResponse { id: request.id, ..FileResponse::default() };
                break agent.send(&Frame::FileResp(answer));
            }
            Frame::FileOp(_) => break,
            _ => {}
        }
    };
    hears(1);
    hears(2);
    ping.signal(SIGINT);
    read_until(&mut ping.stdout(), "% lost\nmin/median/max = ");
    ping.finish().bad(1, &[]);
}

#[test]
fn an_agent_that_comes_later_is_waited_for() {
    let folder = Folder::new();
    let address = format!("unix:{}", folder.path("agent").display());
    let waiting = ["exec", "connect", "path"].map(|name| {
        let words = [name, "--wait", "20", "--to", &address];
        let program: &[&str] = if name == "exec" { &["echo", "here"] } else { &[] };
        Running::start(lodger([&words, program].concat()))
    });
    pause(Duration::from_millis(300));
    let _agent = agent_at(&address);
    let [exec, connect, path] = waiting.map(|command| String::from_utf8(command.finish().good()).expect("text"));
    assert_eq!(exec, "here\n");
    assert!(connect.starts_with("lodger ") && connect.contains(&address) && connect.lines().count() == 1, "{connect}");
    assert!(path.lines().any(|program| program == "sh"), "{path}");
}

#[test]
fn a_wait_ends_when_its_time_is_over() {
    let folder = Folder::new();
    // Nobody; a listener that accepts and is no agent; a line on which nobody speaks.
    let _mute = UnixListener::bind(folder.path("mute")).expect("a socket");
    let at = |scheme: &str, name: &str| format!("{scheme}:{}", folder.path(name).display());
    for (address, why) in [
        (at("unix", "nothing"), "no such file or directory; waited 0.3 s"),
        (at("unix", "mute"), "no agent answered"),
        (at("port", "mute"), "no agent answered"),
        ("port:no.such.port".to_owned(), "no virtio port has this name"),
    ] {
        let start = Instant::now();
        let done = run(["connect", "--wait", "0.3", "--to", &address]);
        let took = start.elapsed();
        done.bad(125, &[&address, why, "; waited 0.3 s"]);
        assert_eq!(done.stderr().lines().count(), 1);
        assert!(took > Duration::from_millis(300) && took < Duration::from_secs(5), "{address}: {took:?}");
    }
}

#[test]
fn what_no_waiting_helps_against_is_told_at_once() {
    let folder = Folder::new();
    fs::write(folder.path("file"), "").expect("a file");
    let below_a_file = format!("unix:{}/file/agent", folder.0.display());
    let start = Instant::now();
    let done = run(["connect", "--wait", "20", "--to", &below_a_file]);
    done.bad(125, &["not a directory"]);
    assert!(!done.stderr().contains("waited"), "{}", done.stderr());
    run(["connect", "--wait", "20", "--to", "tcp:1"]).bad(125, &["unknown scheme"]);
    run(["connect", "--wait", "20", "--to", "stdio:"]).bad(125, &["can only be listened on"]);
    // Nor does anybody wait who was not told to.
    run(["connect", "--to", &format!("unix:{}", folder.path("nothing").display())]).bad(125, &["--wait SECONDS"]);
    for value in ["-1", "x", "nan", "1e9"] {
        run(["connect", "--wait", value]).bad(125, &["--wait"]);
    }
    assert!(start.elapsed() < Duration::from_secs(10), "it took {:?}", start.elapsed());
}

#[test]
fn a_wait_can_be_interrupted() {
    let folder = Folder::new();
    let address = format!("unix:{}", folder.path("nothing").display());
    let waiting = Running::start(lodger(["connect", "--wait", "100", "--to", &address]));
    pause(Duration::from_millis(100));
    // Not SIGINT, which a shell has its background jobs ignore, and a whole test run may be one.
    waiting.signal(SIGTERM);
    assert_eq!(waiting.finish().signal, Some(SIGTERM));
}

#[test]
fn a_greeting_that_was_lost_before_the_agent_opened_the_line_is_said_again() {
    let folder = Folder::new();
    let line = UnixListener::bind(folder.path("line")).expect("QEMU's end of a line");
    let address = format!("port:{}", folder.path("line").display());
    let start = Instant::now();
    let waiting = Running::start(lodger(["connect", "--to", &address]));
    let mut agent = Peer::new(line.accept().expect("a client").0);
    let lost = agent.receive().expect("a greeting");
    // This is how an agent opens a line.
    let hello = |mark| Frame::Hello(Hello { revision: 1, program: "late".into(), mark, ..Hello::default() });
    agent.send(&hello(0));
    let again = agent.receive().expect("another greeting");
    let (Ok(Frame::Hello(first)), Ok(Frame::Hello(second))) = (Frame::decode(&lost), Frame::decode(&again)) else {
        panic!("these are no greetings: {lost:?} {again:?}");
    };
    assert_ne!(first.mark, second.mark);
    agent.send(&hello(second.mark));
    let said = String::from_utf8(waiting.finish().good()).expect("text");
    assert!(said.starts_with(&format!("late at {address}, connected in ")), "{said}");
    assert!(start.elapsed() < Duration::from_secs(4), "it took {:?}", start.elapsed());
}

#[test]
fn the_rest_of_somebody_elses_output_does_not_swallow_the_agents_greeting() {
    let folder = Folder::new();
    let line = UnixListener::bind(folder.path("line")).expect("QEMU's end of a line");
    let waiting = Running::start(lodger(["connect", "--to", &format!("port:{}", folder.path("line").display())]));
    let mut agent = Peer::new(line.accept().expect("a client").0);
    // What was under way to a client that was killed, from the middle of a message on: as CBOR, the beginning of 2,681 bytes of text.
    agent.send_bytes(&b"y\n".repeat(50));
    while let Some(item) = agent.receive() {
        if let Ok(Frame::Hello(greeting)) = Frame::decode(&item) {
            let hello = Hello { revision: 1, program: "there".into(), mark: greeting.mark, ..Hello::default() };
            // A client that has its answer may have gone.
            let _ = agent.socket.write_all(&Frame::Hello(hello).to_bytes());
        }
    }
    let said = String::from_utf8(waiting.finish().good()).expect("text");
    assert!(said.starts_with("there at "), "{said}");
}

#[test]
fn a_line_that_is_away_costs_the_agent_one_wake_up_a_second() {
    let folder = Folder::new();
    // A line that goes, one that was never there, one that ends as soon as it is opened.
    let (master, slave) = tty::open_pair().expect("a terminal");
    let terminal = fs::read_link(format!("/proc/self/fd/{}", slave.as_raw_fd())).expect("a name");
    // By a link, which goes before it: the next terminal of the system gets the same name.
    std::os::unix::fs::symlink(&terminal, folder.path("going")).expect("a link");
    let opened = agent_at(&format!("port:{}", folder.path("going").display()));
    wait_until("the agent has opened the terminal", || {
        let open = fs::read_dir(format!("/proc/{}/fd", opened.pid())).expect("descriptors").flatten();
        open.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|path| path == terminal)
    });
    fs::remove_file(folder.path("going")).expect("our link");
    drop((master, slave));
    let agents = [opened, agent_at(&format!("port:{}", folder.path("line").display())), agent_at("port:/dev/null")];
    pause(Duration::from_millis(1500));
    let start = Instant::now();
    let before = agents.each_ref().map(|agent| wake_ups(agent.pid()));
    pause(Duration::from_secs(3));
    for (agent, before) in agents.iter().zip(before) {
        let woken = wake_ups(agent.pid()) - before;
        let seconds = start.elapsed().as_secs();
        // One more where the count begins or ends, and one for a busy machine.
        assert!(woken <= seconds + 2, "{woken} wake-ups in {seconds} s");
    }
}

#[test]
fn a_line_that_comes_later_is_served() {
    let folder = Folder::new();
    let address = format!("port:{}", folder.path("line").display());
    let _agent = agent_at(&address);
    pause(Duration::from_millis(300));
    let (master, slave) = tty::open_pair().expect("a terminal");
    let name = fs::read_link(format!("/proc/self/fd/{}", slave.as_raw_fd())).expect("a name");
    std::os::unix::fs::symlink(&name, folder.path("line")).expect("a link");
    // What an agent says when it opens a line.
    wait_until("the agent has greeted", || {
        let readable = wait_for(master.as_fd(), READ, Some(Duration::from_millis(50)));
        readable.is_ok_and(|ready| ready.readable)
    });
}
