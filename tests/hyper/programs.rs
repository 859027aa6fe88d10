//! Programs: their starts, ends, windows and signals.

use std::io::{ErrorKind, Read};
use std::time::Duration;

use serde_json::{Value, json};

use crate::rig::{ACK, Agent, Ctl, ERROR, Tty, ctl_message, program};
use crate::support::pause;

const EXECUTE: u32 = 6;
const WINDOW: u32 = 11;
const NEW: u32 = 17;
const KILL: u32 = 18;
const REMOVE: u32 = 22;
const SIGNAL: u32 = 24;

#[test]
fn a_program_says_everything_before_its_end_and_its_code_comes_last() {
    let agent = Agent::start();
    let (mut ctl, mut tty) = agent.both();
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143), ("exit 255", 255)]
    {
        ctl.shell(3, &format!("echo out; echo err >&2; {script}"));
        assert_eq!(tty.finish(3), code, "{script}");
        assert_eq!((tty.text(3).as_str(), tty.text(4).as_str()), ("out\n", "err\n"), "{script}");
    }
    let number = u64::MAX - 1;
    ctl.execute(number, &["printf", "ok\\n"]);
    assert_eq!(tty.receive(), Some((number, b"ok\n".to_vec())));
    assert_eq!(tty.receive(), Some((number, Vec::new())));
    assert_eq!(tty.receive(), Some((number, vec![0])));
}

#[test]
fn what_the_proxy_writes_is_run() {
    let agent = Agent::start();
    let (mut ctl, mut tty) = agent.both();
    let text =
        br#"{"container":"","process":{"terminal":false,"stdio":3,"stderr":4,"args":["sh","-c","pwd; echo $A >&2"],
        "envs":[{"env":"A","value":"b c"}],"workdir":"/","noNewPrivileges":false,"capabilities":{"bounding":null}}}"#;
    assert_eq!(ctl.ask(EXECUTE, text), (ACK, Vec::new()));
    assert_eq!(tty.finish(3), 0);
    assert_eq!((tty.text(3).as_str(), tty.text(4).as_str()), ("/\n", "b c\n"));
}

#[test]
fn a_program_that_cannot_run_is_an_error_and_leaves_nothing_behind() {
    let agent = Agent::start();
    let (mut ctl, mut tty) = agent.both();
    let not_there = ctl.bad(EXECUTE, program(3, &["/no/such/program"]));
    assert_eq!(not_there, "Process could not be started: execute /no/such/program: no such file or directory");
    assert!(ctl.bad(EXECUTE, program(3, &["no-such-program"])).starts_with("Process could not be started: "));
    let with = |stdio: u64, stderr: u64, terminal: bool| {
        json!({ "container": "hyperstart",
        "process": { "stdio": stdio, "stderr": stderr, "terminal": terminal, "args": ["cat"] } })
    };
    assert_eq!(ctl.bad(EXECUTE, with(0, 4, false)), "process.stdio is 0");
    assert_eq!(ctl.bad(EXECUTE, with(3, 0, false)), "process.stderr is 0");
    assert_eq!(ctl.bad(EXECUTE, with(0, 0, true)), "process.stdio is 0");
    let mut elsewhere = with(3, 4, false);
    elsewhere["container"] = json!("x");
    assert_eq!(ctl.bad(EXECUTE, elsewhere), "no such container: x");
    ctl.good(EXECUTE, with(3, 4, false));
    for (stdio, stderr, number) in [(3, 9, 3), (9, 3, 3), (4, 9, 4), (9, 4, 4)] {
        assert_eq!(ctl.bad(EXECUTE, with(stdio, stderr, false)), format!("sequence {number} is taken"));
    }
    let mut named = with(5, 6, false);
    named["process"]["id"] = json!("3");
    assert_eq!(ctl.bad(EXECUTE, named), "process 3 is running already");
    tty.send(3, b"");
    assert_eq!(tty.finish(3), 0);
}

#[test]
fn as_many_programs_run_as_the_limit_says() {
    let agent = Agent::start();
    let (mut ctl, mut tty) = agent.both();
    for index in 0..64 {
        ctl.execute(10 + 2 * index, &["cat"]);
    }
    assert_eq!(ctl.bad(EXECUTE, program(3, &["cat"])), "more programs than the limit of 64");
    tty.send(10, b"");
    assert_eq!(tty.finish(10), 0);
    ctl.execute(3, &["cat"]);
}

#[test]
fn containers_are_names_that_programs_share() {
    let agent = Agent::start();
    let (mut ctl, mut tty) = agent.both();
    let first = json!({ "id": "c1", "rootfs": "r", "image": "i", "process": process("init", 3, "sleep 1000") });
    ctl.good(NEW, first.clone());
    assert_eq!(ctl.bad(NEW, first), "container c1 exists already");
    assert_eq!(ctl.bad(NEW, json!({ "id": "" })), "newcontainer.id is missing");
    let bad = json!({ "id": "c2", "process": { "stdio": 7, "stderr": 8, "args": ["/no/such"] } });
    assert!(ctl.bad(NEW, bad).starts_with("Process could not be started: "));
    assert_eq!(ctl.bad(REMOVE, json!({ "container": "c2" })), "no such container: c2");
    let second = json!({ "container": "c1", "process": process("second", 5, "sleep 1000") });
    ctl.good(EXECUTE, second);
    assert_eq!(ctl.bad(REMOVE, json!({ "container": "c1" })), "container c1 is running");
    // The first one, as a host means it that knows no other.
    ctl.good(KILL, json!({ "container": "c1", "signal": 15, "allProcesses": false }));
    assert_eq!(tty.finish(3), 143);
    ctl.good(SIGNAL, json!({ "container": "c1", "process": "second", "signal": 9 }));
    assert_eq!(tty.finish(5), 137);
    ctl.good(REMOVE, json!({ "container": "c1" }));
    assert_eq!(ctl.bad(REMOVE, json!({ "container": "c1" })), "no such container: c1");
}

#[test]
fn a_container_is_signalled_by_its_first_program_or_as_a_whole() {
    let agent = Agent::start();
    let (mut ctl, mut tty) = agent.both();
    let script = "exec 2>/dev/null; trap 'echo parent' USR1; \
        sh -c 'trap \"echo child\" USR1; echo ready; while :; do sleep 0.05; done' & while :; do sleep 0.05; done";
    ctl.good(NEW, json!({ "id": "c", "process": process("init", 3, script) }));
    ctl.good(EXECUTE, json!({ "container": "c", "process": process("second", 5, script) }));
    tty.until(3, "ready\n");
    tty.until(5, "ready\n");
    let kill = |signal: u32, all: bool| json!({ "container": "c", "signal": signal, "allProcesses": all });
    ctl.good(KILL, kill(10, false));
    tty.until(3, "parent\n");
    ctl.good(KILL, kill(10, true));
    // Each but the first has heard of one signal only.
    tty.until(3, "child\n");
    while String::from_utf8_lossy(&tty.output[&3]).matches("parent\n").count() < 2 {
        tty.step();
    }
    tty.until(5, "child\n");
    tty.until(5, "parent\n");
    ctl.good(KILL, kill(9, false));
    assert_eq!(tty.finish(3), 137);
    ctl.good(KILL, kill(9, true));
    assert_eq!(tty.finish(5), 137);
    let said = tty.text(3);
    assert_eq!((said.matches("child").count(), said.matches("parent").count()), (1, 2), "{said}");
    let said = tty.text(5);
    assert_eq!((said.matches("child").count(), said.matches("parent").count()), (1, 1), "{said}");
}

/// A command that starts a program of a container, and one that makes a container with it.
fn process(id: &str, stdio: u64, script: &str) -> Value {
    json!({ "id": id, "stdio": stdio, "stderr": stdio + 1, "args": ["sh", "-c", script] })
}

#[test]
fn nobody_becomes_the_first_program_of_a_container_after_it() {
    let agent = Agent::start();
    let (mut ctl, mut tty) = agent.both();
    let kill = json!({ "container": "c1", "signal": 15, "allProcesses": false });
    for _ in 0..2 {
        ctl.good(NEW, json!({ "id": "c1", "process": process("init", 3, "read line") }));
        ctl.good(EXECUTE, json!({ "container": "c1", "process": process("second", 5, "sleep 1000") }));
        tty.send(3, b"");
        assert_eq!(tty.finish(3), 1);
        assert_eq!(ctl.bad(KILL, kill.clone()), "no such process");
        ctl.good(SIGNAL, json!({ "container": "c1", "process": "second", "signal": 9 }));
        assert_eq!(tty.finish(5), 137);
        // One that begins where nothing runs is not the first one either.
        ctl.good(EXECUTE, json!({ "container": "c1", "process": process("third", 3, "sleep 1000") }));
        assert_eq!(ctl.bad(KILL, kill.clone()), "no such process");
        assert_eq!(ctl.bad(REMOVE, json!({ "container": "c1" })), "container c1 is running");
        ctl.good(KILL, json!({ "container": "c1", "signal": 9, "allProcesses": true }));
        assert_eq!(tty.finish(3), 137);
        ctl.good(REMOVE, json!({ "container": "c1" }));
        assert_eq!(ctl.bad(KILL, kill.clone()), "no such container");
        // The same name again: only its own first program is meant.
        ctl.good(NEW, json!({ "id": "c1", "process": process("init", 3, "sleep 1000") }));
        ctl.good(KILL, kill.clone());
        assert_eq!(tty.finish(3), 143);
        ctl.good(REMOVE, json!({ "container": "c1" }));
    }
}

#[test]
fn the_end_of_a_program_does_not_wait_for_the_start_of_another() {
    let agent = Agent::start();
    let (mut ctl, mut tty) = agent.both();
    ctl.execute(3, &["cat"]);
    // Its search takes a while: through as many folders as a message can name.
    let process = json!({ "stdio": 5, "stderr": 6, "args": ["none"], "envs": [{ "env": "PATH", "value": "/:".repeat(515_000) }] });
    ctl.send(&ctl_message(EXECUTE, json!({ "process": process }).to_string().as_bytes()));
    while ctl.owed > 0 {
        assert!(ctl.acknowledged(), "all has come, and none of it is answered");
    }
    pause(Duration::from_millis(100));
    tty.send(3, b"");
    assert_eq!(tty.finish(3), 0);
    ctl.socket.set_nonblocking(true).expect("a socket");
    let answer = ctl.socket.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(answer, Err(ErrorKind::WouldBlock), "the other one is still searched for");
    ctl.socket.set_nonblocking(false).expect("a socket");
    assert_eq!(ctl.answer().map(|(code, _)| code), Some(ERROR));
    // What did not start has taken nothing.
    ctl.shell(5, "exit 5");
    assert_eq!(tty.finish(5), 5);
}

#[test]
fn a_program_that_ends_at_once_is_found_by_nobody_afterwards() {
    let agent = Agent::start();
    let (mut ctl, mut tty) = agent.both();
    for round in 0..200 {
        ctl.execute(3, &["true"]);
        if round % 2 == 0 {
            // Before its end is told it may be there or not, and then it is not.
            ctl.ask(SIGNAL, br#"{"process":"3","signal":10}"#);
        }
        let code = tty.finish(3);
        assert!(code == 0 || (round % 2 == 0 && code == 138), "{code}");
        assert_eq!(ctl.bad(SIGNAL, json!({ "process": "3", "signal": 9 })), "no such process");
    }
}

#[test]
fn names_have_a_limit() {
    let agent = Agent::start();
    let (mut ctl, mut tty) = agent.both();
    let (longest, longer) = ("x".repeat(255), "x".repeat(256));
    ctl.good(NEW, json!({ "id": longest, "process": process(&longest, 3, "exit 2") }));
    assert_eq!(tty.finish(3), 2);
    let text = ctl.bad(NEW, json!({ "id": longer, "process": process("p", 3, "exit 2") }));
    assert_eq!(text, "container id of 256 bytes is over the limit of 255");
    let text = ctl.bad(NEW, json!({ "id": "c", "process": process(&longer, 3, "exit 2") }));
    assert_eq!(text, "process id of 256 bytes is over the limit of 255");
    assert_eq!(ctl.bad(REMOVE, json!({ "container": "c" })), "no such container: c");
}

#[test]
fn a_signal_that_is_not_permitted_is_an_error_and_reaches_the_others() {
    let agent = Agent::behind(&["setpriv", "--bounding-set=-kill"]);
    let (mut ctl, mut tty) = agent.both();
    let mut other = program(3, &["cat"]);
    other["process"]["user"] = json!("4242");
    let (code, text) = ctl.ask(EXECUTE, other.to_string().as_bytes());
    if code == ERROR {
        eprintln!("skipped: needs root: {}", String::from_utf8_lossy(&text));
        return;
    }
    ctl.execute(5, &["cat"]);
    assert_eq!(ctl.bad(SIGNAL, json!({ "process": "3", "signal": 9 })), "no permission");
    let all = json!({ "container": "hyperstart", "signal": 9, "allProcesses": true });
    assert_eq!(ctl.bad(KILL, all), "no permission");
    assert_eq!(tty.finish(5), 137);
    tty.send(3, b"");
    assert_eq!(tty.finish(3), 0);
}

#[test]
fn stopped_programs_go_on_and_can_be_killed() {
    let agent = Agent::start();
    let (mut ctl, mut tty) = agent.both();
    for stdio in [3, 5] {
        ctl.execute(stdio, &["cat"]);
        ctl.good(SIGNAL, json!({ "process": stdio.to_string(), "signal": 19 }));
        tty.send(stdio, b"late");
        tty.send(stdio, b"");
    }
    ctl.good(SIGNAL, json!({ "process": "5", "signal": 9 }));
    assert_eq!((tty.finish(5), tty.text(5).as_str()), (137, ""));
    ctl.good(SIGNAL, json!({ "process": "3", "signal": 18 }));
    assert_eq!((tty.finish(3), tty.text(3).as_str()), (0, "late"));
}

#[test]
fn a_child_that_keeps_the_output_open_does_not_hold_up_the_end() {
    let agent = Agent::start();
    let (mut ctl, mut tty) = agent.both();
    ctl.shell(3, "sleep 1000 & echo $!; exit 4");
    assert_eq!(tty.finish(3), 4);
    let child = tty.text(3).trim().parse().expect("a number");
    lodger::sys::signal::send(child, lodger::sys::signal::SIGKILL).expect("it lives on");
    ctl.on_terminal(3, &["sh", "-c", "trap '' HUP; sleep 2 & exit 5"]);
    assert_eq!(tty.finish(3), 5);
}

#[test]
fn containers_have_a_limit() {
    let agent = Agent::start();
    let (mut ctl, mut tty) = agent.both();
    let new =
        |index: usize| json!({ "id": format!("c{index}"), "process": { "stdio": 3, "stderr": 4, "args": ["true"] } });
    for index in 0..256 {
        ctl.good(NEW, new(index));
        assert_eq!(tty.finish(3), 0);
    }
    assert_eq!(ctl.bad(NEW, new(256)), "more containers than the limit of 256");
}

#[test]
fn signals_reach_the_process_group() {
    let agent = Agent::start();
    let (mut ctl, mut tty) = agent.both();
    let script = "trap 'echo parent' USR1; \
        sh -c 'trap \"echo child; exit\" USR1; echo ready; while :; do sleep 0.05; done' & wait; wait; exit 5";
    ctl.shell(3, script);
    tty.until(3, "ready");
    ctl.good(SIGNAL, json!({ "container": "hyperstart", "process": "3", "signal": 10 }));
    assert_eq!(tty.finish(3), 5);
    let text = tty.text(3);
    assert!(text.contains("child\n") && text.contains("parent\n"), "{text}");
    for stdio in [3, 5, 7] {
        ctl.shell(stdio, "sleep 1000");
    }
    let kill = |members: Value| {
        let mut object = json!({ "container": "hyperstart", "process": "3", "signal": 9 });
        object.as_object_mut().expect("one").extend(members.as_object().expect("one").clone());
        object
    };
    // Nothing is sent, and it is there.
    ctl.good(KILL, kill(json!({ "process": "5", "signal": 0 })));
    ctl.good(KILL, kill(json!({ "process": "5" })));
    assert_eq!(tty.finish(5), 137);
    for (members, why) in [
        (json!({ "signal": 65 }), "invalid signal"),
        (json!({ "signal": u64::MAX }), "invalid signal"),
        (json!({ "process": "5" }), "no such process"),
        (json!({ "process": "" }), "no such process"),
        (json!({ "container": "x" }), "no such container"),
    ] {
        assert_eq!(ctl.bad(KILL, kill(members)), why);
    }
    assert_eq!(ctl.bad(SIGNAL, kill(json!({ "process": "9" }))), "no such process");
    ctl.good(KILL, kill(json!({ "allProcesses": true })));
    assert_eq!((tty.finish(3), tty.finish(7)), (137, 137));
}

/// What `stty size` says on the terminal.
fn size(tty: &mut Tty) -> String {
    tty.output.clear();
    tty.send(3, b"stty size\n");
    // Behind the echo.
    tty.until(3, "stty size\r\n");
    loop {
        let text = String::from_utf8_lossy(&tty.output[&3]).into_owned();
        let mut lines = text.split("\r\n").filter(|line| line.split(' ').all(|word| word.parse::<u16>().is_ok()));
        match lines.find(|line| !line.is_empty() && text.contains(&format!("{line}\r\n"))) {
            Some(line) => return line.to_owned(),
            None => tty.step(),
        }
    }
}

fn resize(ctl: &mut Ctl, members: Value) {
    assert_eq!(ctl.good(WINDOW, members), b"");
}

#[test]
fn a_terminal_has_its_window_and_one_output_and_no_end_of_input() {
    let agent = Agent::start();
    let (mut ctl, mut tty) = agent.both();
    ctl.on_terminal(3, &["sh", "-c", "PS1= exec sh"]);
    assert_eq!(size(&mut tty), "24 80");
    resize(&mut ctl, json!({ "seq": 3, "row": 30, "column": 100 }));
    assert_eq!(size(&mut tty), "30 100");
    resize(&mut ctl, json!({ "container": "hyperstart", "process": "3", "row": 31, "column": 65536 + 101 }));
    assert_eq!(size(&mut tty), "31 101");
    // Unknown, or without a terminal: nothing happens.
    resize(&mut ctl, json!({ "seq": 99, "row": 1, "column": 1 }));
    resize(&mut ctl, json!({ "container": "x", "process": "y", "row": 1, "column": 1 }));
    ctl.shell(5, "read line");
    resize(&mut ctl, json!({ "seq": 5, "row": 1, "column": 1 }));
    tty.send(3, b"");
    assert_eq!(size(&mut tty), "31 101");
    tty.send(3, b"echo error >&2; exit 6\n");
    assert_eq!(tty.finish(3), 6);
    assert!(tty.text(3).contains("error\r\n"));
    assert!(!tty.output.contains_key(&4) && !tty.output.contains_key(&0));
}
