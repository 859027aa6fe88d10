//! Section 4: signals for processes that run, and for those that do not.

use std::time::{Duration, Instant};

use serde_json::json;

use lodger::proto::clear::registry::Times;

use crate::client::{COMMAND, HYPER, Inside, SIGNAL, exec_command, exited, failure, over, running, success};
use crate::support::{Agent, PATIENCE};

#[test]
fn a_process_that_was_not_started_is_said_to_have_ended_first() {
    let agent = Agent::start();
    let mut runtime = over(&agent);
    for (number, token) in [9, 15].into_iter().zip(runtime.register("vm", 2)) {
        let mut shim = over(&agent);
        shim.connect(&token);
        assert_eq!(shim.ask(SIGNAL, json!({"signalNumber": number})), exited(0));
        assert_eq!(shim.next(), success(SIGNAL));
    }
}

#[test]
fn the_end_of_a_process_comes_before_the_response_to_the_signal() {
    let agent = Agent::start();
    for (id, number) in [("a", 9), ("b", 15)] {
        let (_runtime, mut shim, _) = running(&agent, id, "exec sleep 60");
        assert_eq!(shim.ask(SIGNAL, json!({"signalNumber": number})), exited(128 + number));
        assert_eq!(shim.next(), success(SIGNAL));
        let name = if number == 9 { "killed" } else { "terminated" };
        let why = format!("Could not send the signal {name}: no such process");
        shim.refused(SIGNAL, json!({"signalNumber": number}), &why);
    }
}

#[test]
fn a_process_that_ignores_15_is_not_waited_for_for_long() {
    let agent = Agent::start();
    let (_runtime, mut shim, _) = running(&agent, "vm", "trap '' TERM; echo ready; while :; do sleep 1; done");
    assert_eq!(shim.line(), "ready");
    let start = Instant::now();
    assert_eq!(shim.ask(SIGNAL, json!({"signalNumber": 15})), success(SIGNAL));
    let waited = start.elapsed();
    assert!(waited >= Duration::from_secs(2) && waited < PATIENCE, "{waited:?}");
    // The next command ends the wait.
    shim.send(COMMAND, SIGNAL, json!({"signalNumber": 15}).to_string());
    assert_eq!(shim.ask(SIGNAL, json!({"signalNumber": 9})), success(SIGNAL));
    assert_eq!(shim.next(), exited(137));
    assert_eq!(shim.next(), success(SIGNAL));
}

#[test]
fn programs_can_be_sent_other_signals_and_go_on() {
    let agent = Agent::start();
    let script = "trap 'echo usr1; exit 3' USR1; echo ready; while :; do sleep 0.05; done";
    let (_runtime, mut shim, _) = running(&agent, "vm", script);
    assert_eq!(shim.line(), "ready");
    shim.done(SIGNAL, json!({"signalNumber": 0}));
    shim.send(COMMAND, SIGNAL, json!({"signalNumber": 10}).to_string());
    assert_eq!(shim.next(), success(SIGNAL));
    // The shell tells on its error output how its own program ended, which is in the same process group.
    let (stdout, _, code) = shim.finish();
    assert_eq!((stdout, code), (b"usr1\n".to_vec(), 3));
}

#[test]
fn a_terminal_gets_its_size() {
    let agent = Agent::start();
    let mut runtime = over(&agent);
    let token = runtime.register("vm", 1).remove(0);
    let mut shim = over(&agent);
    shim.connect(&token);
    let mut command = exec_command(&token, "read x; stty size; read y; echo over");
    command["data"]["process"]["terminal"] = json!(true);
    runtime.done(HYPER, command);
    assert_eq!(shim.ask(SIGNAL, json!({"signalNumber": 28, "columns": 101, "rows": 33})), success(SIGNAL));
    // Its end of input is nothing that a terminal has.
    shim.send(2, 0, "");
    shim.send(2, 0, "\n");
    let mut text = String::new();
    while !text.contains("33 101") {
        text += &String::from_utf8_lossy(&shim.next().payload);
    }
    shim.send(2, 0, "\n");
    let (stdout, stderr, code) = shim.finish();
    assert!(stdout.ends_with(b"over\r\n") && stderr.is_empty() && code == 0, "{stdout:?}");
}

#[test]
fn who_waits_for_a_process_that_is_not_started_waits_so_long() {
    let agent = Inside::with(Times { process: Duration::from_millis(300), ..Times::default() });
    let mut runtime = agent.client();
    let tokens = runtime.register("vm", 2);
    let mut shim = agent.client();
    shim.connect(&tokens[0]);
    let why = format!("timeout waiting for process with token {}", tokens[0]);
    assert_eq!(shim.ask(SIGNAL, json!({"signalNumber": 10})), failure(SIGNAL, &why));
    assert_eq!(shim.ask(SIGNAL, json!({"signalNumber": 28, "columns": 1, "rows": 1})), failure(SIGNAL, &why));
    // Input ends the connection, and its token is free.
    shim.send(2, 0, "too early");
    shim.ends();
    let mut shim = agent.client();
    shim.connect(&tokens[0]);
    runtime.exec(&tokens[0], "exit 9");
    assert_eq!(shim.next(), exited(9));
}

#[test]
fn a_container_is_signalled_by_its_name() {
    let agent = Agent::start();
    let mut runtime = over(&agent);
    let token = runtime.register("vm", 1).remove(0);
    let mut shim = over(&agent);
    shim.connect(&token);
    let new = |id: &str, tokens: serde_json::Value| {
        let data = json!({"id": id, "rootfs": "x", "process": {"args": ["sleep", "60"]}});
        json!({"hyperName": "newcontainer", "tokens": tokens, "data": data})
    };
    runtime.done(HYPER, new("one", json!([token])));
    runtime.done(HYPER, new("two", json!(null)));
    let why_two = "ERROR received from VM agent, control msg received : container two exists already";
    runtime.refused(HYPER, new("two", json!(null)), why_two);
    let kill =
        |id: &str, signal: i32| json!({"hyperName": "killcontainer", "data": {"container": id, "signal": signal}});
    let why = "ERROR received from VM agent, control msg received : invalid signal";
    runtime.refused(HYPER, kill("one", 65), why);
    runtime.done(HYPER, kill("one", 9));
    runtime.done(HYPER, kill("two", 15));
    assert_eq!(shim.next(), exited(137));
    let gone = || over(&agent);
    let mut other = gone();
    other.attach("vm", 0);
    crate::support::wait_until("the other one has ended", || other.ask(HYPER, kill("two", 0)).kind == 0x11);
    // It is there until it is removed.
    runtime.refused(HYPER, new("two", json!(null)), why_two);
    runtime.done(HYPER, json!({"hyperName": "removecontainer", "data": {"container": "two"}}));
    runtime.done(HYPER, new("two", json!(null)));
}

#[test]
fn the_agents_commands_find_processes_by_their_numbers_and_containers_by_their_names() {
    let agent = Agent::start();
    let mut runtime = over(&agent);
    let tokens = runtime.register("vm", 2);
    let (mut shim, mut terminal) = (over(&agent), over(&agent));
    shim.connect(&tokens[0]);
    terminal.connect(&tokens[1]);
    let data = json!({"id": "c", "process": {"args": ["sleep", "60"]}});
    runtime.done(HYPER, json!({"hyperName": "newcontainer", "tokens": [tokens[0]], "data": data}));
    let mut command = exec_command(&tokens[1], "echo ready; read x; stty size");
    command["data"]["process"]["terminal"] = json!(true);
    runtime.done(HYPER, command);
    assert_eq!(terminal.line(), "ready");
    let hyper = |name: &str, data: serde_json::Value| json!({"hyperName": name, "data": data});
    for seq in [5, 99] {
        runtime.done(HYPER, hyper("winsize", json!({"seq": seq, "row": 1, "column": 2})));
    }
    // The other form; and neither harms who has no terminal.
    for process in ["5", "3", "99", ""] {
        let data = json!({"container": "c", "process": process, "row": 12, "column": 34});
        runtime.done(HYPER, hyper("winsize", data));
    }
    crate::support::pause(Duration::from_millis(100));
    terminal.send(2, 0, "\n");
    let (stdout, ..) = terminal.finish();
    assert!(stdout.ends_with(b"12 34\r\n"), "{stdout:?}");
    let mut fails = |name: &str, data: serde_json::Value, why: &str| {
        runtime.refused(
            HYPER,
            hyper(name, data),
            &format!("ERROR received from VM agent, control msg received : {why}"),
        );
    };
    fails("removecontainer", json!({"container": "c"}), "container c is running");
    fails("removecontainer", json!({"container": "d"}), "no such container");
    fails("signalprocess", json!({"container": "c", "process": "99", "signal": 9}), "no such process");
    fails("signalprocess", json!({"container": "c", "process": "3", "signal": 65}), "invalid signal");
    runtime.done(HYPER, hyper("signalprocess", json!({"container": "c", "process": "3", "signal": 9})));
    assert_eq!(shim.next(), exited(137));
    runtime.done(HYPER, hyper("removecontainer", json!({"container": "c"})));
    runtime.done(HYPER, json!({"hyperName": "ready"}));
    assert_eq!(runtime.done(HYPER, json!({"hyperName": "version"})), 4242_u32.to_be_bytes());
}
