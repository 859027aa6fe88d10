//! Shims that come late, go early and come back.

use std::time::{Duration, Instant};

use serde_json::json;

use lodger::proto::clear::registry::Times;

use crate::client::{
    COMMAND, CONNECT, DISCONNECT, HYPER, Inside, exec_command, exited, failure, over, running, success,
};
use crate::support::{Agent, children, pause, status, wait_until};

#[test]
fn a_command_waits_for_its_shim() {
    let agent = Agent::start();
    let mut runtime = over(&agent);
    let token = runtime.register("vm", 1).remove(0);
    runtime.send(COMMAND, HYPER, exec_command(&token, "echo hello").to_string());
    assert!(runtime.is_silent(Duration::from_millis(200)));
    let mut shim = over(&agent);
    shim.connect(&token);
    assert_eq!(runtime.next(), success(HYPER));
    assert_eq!(shim.finish(), (b"hello\n".to_vec(), Vec::new(), 0));
}

#[test]
fn input_that_comes_before_its_process_waits_for_it() {
    let agent = Agent::start();
    let mut runtime = over(&agent);
    let token = runtime.register("vm", 1).remove(0);
    let mut shim = over(&agent);
    shim.connect(&token);
    shim.send(2, 0, "early");
    shim.send(2, 0, "");
    runtime.exec(&token, "cat");
    assert_eq!(shim.finish(), (b"early".to_vec(), Vec::new(), 0));
}

#[test]
fn a_shim_that_does_not_come_in_time_is_told_and_the_token_stays_free() {
    let agent = Inside::with(Times { shim: Duration::from_millis(200), ..Times::default() });
    let mut runtime = agent.client();
    let token = runtime.register("vm", 1).remove(0);
    let why = format!("timeout waiting for shim with token {token}");
    assert_eq!(runtime.ask(HYPER, exec_command(&token, "exit 1")), failure(HYPER, &why));
    let mut shim = agent.client();
    shim.connect(&token);
    runtime.exec(&token, "exit 2");
    assert_eq!(shim.next(), exited(2));
}

#[test]
fn a_runtime_that_goes_while_it_waits_leaves_the_token_free() {
    let agent = Agent::start();
    let mut runtime = over(&agent);
    let token = runtime.register("vm", 1).remove(0);
    let is_alone = || status(agent.pid(), "Threads") == 2;
    wait_until("there is nobody else", is_alone);
    let mut other = over(&agent);
    other.attach("vm", 0);
    other.send(COMMAND, HYPER, exec_command(&token, "exit 1").to_string());
    assert!(other.is_silent(Duration::from_millis(100)));
    drop(other);
    // Until its departure is seen, the token is its: then a shim would be told of the other process.
    wait_until("its thread has gone", is_alone);
    let mut shim = over(&agent);
    shim.connect(&token);
    runtime.exec(&token, "exit 2");
    assert_eq!(shim.next(), exited(2));
}

#[test]
fn a_shim_that_comes_back_has_lost_nothing() {
    let agent = Agent::start();
    let (_runtime, mut shim, token) = running(&agent, "vm", "echo one; read x; echo $x; read y; echo $y >&2; exit 6");
    assert_eq!(shim.line(), "one");
    shim.send(2, 0, "two\n");
    assert_eq!(shim.line(), "two");
    for _ in 0..20 {
        drop(shim);
        shim = over(&agent);
        shim.connect(&token);
    }
    shim.send(2, 0, "three\n");
    assert_eq!(shim.finish(), (Vec::new(), b"three\n".to_vec(), 6));
    // Whoever comes once more is told the end once more.
    drop(shim);
    let mut shim = over(&agent);
    shim.connect(&token);
    assert_eq!(shim.next(), exited(6));
}

#[test]
fn output_that_nobody_took_waits_for_the_next_shim() {
    let agent = Agent::start();
    let script = "i=0; while [ $i -lt 200000 ]; do echo line $i; i=$((i+1)); done; exit 8";
    let (_runtime, mut shim, token) = running(&agent, "vm", script);
    let first = shim.next();
    drop(shim);
    pause(Duration::from_millis(300));
    let mut shim = over(&agent);
    shim.connect(&token);
    let (stdout, _, code) = shim.finish();
    assert_eq!(code, 8);
    assert!(stdout.ends_with(b"line 199999\n"));
    // Only what the old connection's socket had taken is gone, and it begins with a whole frame.
    let all: Vec<u8> = (0..200_000).flat_map(|i| format!("line {i}\n").into_bytes()).collect();
    assert!(all.ends_with(&stdout) && all.starts_with(&first.payload), "{} of {}", stdout.len(), all.len());
}

#[test]
fn a_process_ends_when_its_shim_does_not_come_back() {
    let agent = Inside::with(Times { abandoned: Duration::from_millis(300), ..Times::default() });
    let mut runtime = agent.client();
    let token = runtime.register("vm", 1).remove(0);
    let mut shim = agent.client();
    shim.connect(&token);
    runtime.exec(&token, "echo $$; exec sleep 60");
    let pid: u32 = shim.line().parse().expect("a number");
    let start = Instant::now();
    drop(shim);
    wait_until("it is ended", || !children(std::process::id()).contains(&pid));
    assert!(start.elapsed() >= Duration::from_millis(250));
    runtime.refused(CONNECT, json!({"token": token}), &format!("token already claimed: {token}"));
}

#[test]
fn a_process_whose_shim_takes_its_leave_goes_on_unheard() {
    let agent = Agent::start();
    let folder = crate::support::Folder::new();
    let file = folder.path("done");
    let script = format!("echo ready; head -c 1000000 /dev/zero; echo over > {}", file.display());
    let (_runtime, mut shim, _) = running(&agent, "vm", &format!("sleep 0.3; {script}"));
    shim.send(COMMAND, DISCONNECT, "");
    shim.ends();
    wait_until("it has ended", || file.exists() && children(agent.pid()).is_empty());
}

#[test]
fn processes_outlive_their_machine_and_end_with_the_agent() {
    let mut agent = Agent::start();
    let (mut runtime, mut shim, token) = running(&agent, "vm", "echo ready; read x; echo $x; exec sleep 60");
    let other = running(&agent, "other", "exec sleep 60");
    runtime.done(HYPER, json!({"hyperName": "execcmd", "data": {"process": {"args": ["sleep", "60"]}}}));
    runtime.done(1, json!({"containerId": "vm"}));
    assert_eq!(shim.line(), "ready");
    shim.send(2, 0, "on\n");
    assert_eq!(shim.line(), "on");
    drop(shim);
    let mut shim = over(&agent);
    shim.connect(&token);
    drop(shim);
    drop(other.1);
    let processes = children(agent.pid());
    assert_eq!(processes.len(), 3, "{processes:?}");
    let pid = agent.pid().to_string();
    assert!(std::process::Command::new("kill").arg(pid).status().expect("kill(1)").success());
    let start = Instant::now();
    assert!(agent.child.wait().expect("our child").success());
    assert!(start.elapsed() < Duration::from_secs(5));
    for process in processes {
        assert!(!crate::support::lives(process), "{process} lives on");
    }
}
