//! What commands do to containers and to the whole pod.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{
    COMMAND, CONNECT, Client, DISCONNECT, HYPER, NOTIFICATION, SIGNAL, exec_command, exited, failure, frame, over,
    running, success,
};
use crate::support::{Agent, pause, wait_until};

const SAYS_WHEN_SIGNALLED: &str = "exec 2>/dev/null; trap 'echo parent' USR1; \
    sh -c 'trap \"echo child\" USR1; echo ready; while :; do sleep 0.05; done' & while :; do sleep 0.05; done";

fn new_container(id: &str, token: &str, script: &str) -> Value {
    let process = json!({"args": ["sh", "-c", script]});
    json!({"hyperName": "newcontainer", "tokens": [token], "data": {"id": id, "process": process}})
}

/// The first process of a container, and another one there, both of which have said that they are ready.
fn container(agent: &Agent, id: &str) -> (Client, Client, Client) {
    let mut runtime = over(agent);
    let tokens = runtime.register("vm", 2);
    let mut shims = tokens.iter().map(|token| {
        let mut shim = over(agent);
        shim.connect(token);
        shim
    });
    let (mut first, mut second) = (shims.next().expect("one"), shims.next().expect("two"));
    runtime.done(HYPER, new_container(id, &tokens[0], SAYS_WHEN_SIGNALLED));
    let mut further = exec_command(&tokens[1], SAYS_WHEN_SIGNALLED);
    further["data"]["container"] = json!(id);
    runtime.done(HYPER, further);
    assert_eq!((first.line(), second.line()), ("ready".to_owned(), "ready".to_owned()));
    (runtime, first, second)
}

/// The next two lines, which may come in one frame, in the order of the alphabet.
fn two_lines(shim: &mut Client) -> Vec<String> {
    let mut text = String::new();
    while text.lines().count() < 2 {
        text += &shim.line();
        text.push('\n');
    }
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn kill(id: &str, signal: i32, all: bool) -> Value {
    json!({"hyperName": "killcontainer", "data": {"container": id, "signal": signal, "allProcesses": all}})
}

#[test]
fn a_signal_is_for_the_first_process_or_for_all_of_a_container() {
    let agent = Agent::start();
    let (mut runtime, mut first, mut second) = container(&agent, "c");
    for signal in [0, 10] {
        runtime.done(HYPER, kill("c", signal, false));
    }
    assert_eq!(first.line(), "parent");
    assert_eq!(first.ask(SIGNAL, json!({"signalNumber": 10})), success(SIGNAL));
    assert_eq!(first.line(), "parent");
    // Its child would have said something by now, and so would the other one.
    runtime.done(HYPER, kill("c", 10, true));
    for shim in [&mut first, &mut second] {
        assert_eq!(two_lines(shim), ["child", "parent"]);
    }
    // A process that was started later gets its own with its group, as before.
    assert_eq!(second.ask(SIGNAL, json!({"signalNumber": 10})), success(SIGNAL));
    assert_eq!(two_lines(&mut second), ["child", "parent"]);
    let children = crate::support::children(agent.pid());
    let grandchildren: Vec<u32> = children.iter().flat_map(|pid| crate::support::children(*pid)).collect();
    assert!(grandchildren.len() >= 2, "{grandchildren:?}");
    runtime.done(HYPER, kill("c", 9, false));
    assert_eq!(first.finish().2, 137);
    runtime.done(HYPER, kill("c", 9, true));
    assert_eq!(second.finish().2, 137);
    wait_until("their children have ended", || grandchildren.iter().all(|pid| !crate::support::lives(*pid)));
}

#[test]
fn nobody_in_its_process_group_outlives_the_first_process_of_a_container() {
    let agent = Agent::start();
    let mut runtime = over(&agent);
    let tokens = runtime.register("vm", 4);
    // Of those that its end finds asleep, of those that write, and of those that do not end by themselves.
    let scripts = [
        ("sleep 1000 & echo $!; read x", None),
        ("yes >&2 & echo $!; read x", None),
        ("trap '' TERM; sleep 1000 & trap - TERM; echo $!; sleep 1000", Some(15)),
        ("sleep 1000 & echo $!; exec sleep 1000", Some(9)),
    ];
    for (index, (script, signal)) in scripts.into_iter().enumerate() {
        let id = format!("c{index}");
        let mut shim = over(&agent);
        shim.connect(&tokens[index]);
        runtime.done(HYPER, new_container(&id, &tokens[index], script));
        let left = loop {
            let frame = shim.next();
            if frame.opcode == 1 {
                break String::from_utf8_lossy(&frame.payload).trim().parse().expect("a number");
            }
        };
        match signal {
            Some(signal) => assert_eq!(runtime.done(HYPER, kill(&id, signal, false)), b""),
            None => shim.send(2, 0, "\n"),
        }
        assert_eq!(i32::from(shim.finish().2), signal.map_or(0, |signal| 128 + signal), "{script}");
        wait_until("nobody is left", || !crate::support::lives(left));
    }
    // Any other process leaves what it leaves.
    let (_other, mut shim, _) = running(&agent, "other", "sleep 1000 >/dev/null 2>&1 & echo $!");
    let left = shim.line().parse().expect("a number");
    assert_eq!(shim.finish().2, 0);
    assert!(crate::support::lives(left));
    lodger::sys::signal::send(left as i32, 9).expect("it is there");
}

#[test]
fn processes_are_listed_by_container() {
    let agent = Agent::start();
    let (mut runtime, _first, _second) = container(&agent, "c");
    let list =
        |id: &str, format: &str| json!({"hyperName": "pscontainer", "data": {"container": id, "format": format}});
    let pids = |payload: Vec<u8>| serde_json::from_slice::<Vec<u32>>(&payload).expect("a list of numbers");
    let children = crate::support::children(agent.pid());
    let listed = pids(runtime.done(HYPER, list("c", "json")));
    assert!(children.iter().all(|pid| listed.contains(pid)), "{children:?} in {listed:?}");
    assert!(listed.len() >= 4 && !listed.contains(&agent.pid()), "with their children, and nothing else: {listed:?}");
    for id in ["", "hyperstart", "vm"] {
        assert!(pids(runtime.done(HYPER, list(id, "json"))).contains(&agent.pid()), "{id}");
    }
    let table = String::from_utf8(runtime.done(HYPER, list("c", "table"))).expect("text");
    assert!(table.starts_with("  UID     PID    PPID COMMAND\n") && table.contains("trap"), "{table}");
    assert!(!table.contains("serve"), "{table}");
    let why = "ERROR received from VM agent, control msg received : no such container";
    runtime.refused(HYPER, list("other", "json"), why);
}

#[test]
fn a_process_begins_at_the_root_and_its_texts_are_read_as_go_reads_them() {
    let agent = Agent::start();
    let mut runtime = over(&agent);
    for (process, said) in [
        (r#"{"args":["pwd"]}"#.to_owned(), "/\n".to_owned()),
        (r#"{"args":["pwd"],"workdir":""}"#.to_owned(), "/\n".to_owned()),
        (r#"{"args":["pwd"],"WorkDir":"/proc"}"#.to_owned(), "/proc\n".to_owned()),
        (r#"{"id":5,"args":["printf","%s","a\ud800b"],"x":1e999}"#.to_owned(), "a\u{fffd}b".to_owned()),
        (r#"{"args":["echo","1"],"ARGS":["echo","2"]}"#.to_owned(), "2\n".to_owned()),
        (r#"{"args":["pwd"],"workdir":"/proc","WORKDIR":null}"#.to_owned(), "/proc\n".to_owned()),
        (format!(r#"{{"args":["echo","deep"],"x":{}{}}}"#, "[".repeat(500), "]".repeat(500)), "deep\n".to_owned()),
    ] {
        let token = match runtime.ask(2, json!({"containerId": "vm", "numIOStreams": 1})) {
            frame if frame.kind == 1 => crate::client::tokens_of(&frame.payload).remove(0),
            _ => runtime.register("vm", 1).remove(0),
        };
        let mut shim = over(&agent);
        shim.connect(&token);
        let command = format!(r#"{{"hyperName":"execcmd","tokens":["{token}"],"data":{{"process":{process}}}}}"#);
        runtime.done(HYPER, command);
        assert_eq!(shim.finish(), (said.into_bytes(), Vec::new(), 0), "{process}");
    }
}

#[test]
fn what_upstream_does_not_send_to_its_agent_is_refused() {
    let agent = Agent::start();
    let mut runtime = over(&agent);
    let token = runtime.register("vm", 1).remove(0);
    // With its quotes.
    let data = |bytes: usize| json!({"hyperName": "ping", "data": "x".repeat(bytes - 2)});
    runtime.done(HYPER, data(10_232));
    for bytes in [10_233, 20_000] {
        runtime.refused(HYPER, data(bytes), &format!("message too long {}", bytes + 8));
    }
    let name = json!({"hyperName": "what", "data": "x".repeat(20_000)});
    runtime.refused(HYPER, name, "unknown command 'what'");
    // Before the agent sees it.
    let mut unknown = exec_command(&token, &"x".repeat(20_000));
    unknown["data"]["container"] = json!("nope");
    assert!(runtime.ask(HYPER, unknown).payload.starts_with(br#"{"msg":"message too long 20"#));
    let mut shim = over(&agent);
    shim.connect(&token);
    let answer = runtime.ask(HYPER, exec_command(&token, &format!(": {}", "x".repeat(20_000))));
    assert!(answer.kind == 0x11 && answer.payload.starts_with(br#"{"msg":"message too long 20"#));
    // The token is free, and the machine answers.
    runtime.exec(&token, "exit 3");
    assert_eq!(shim.finish().2, 3);
}

#[test]
fn the_size_of_a_terminal_that_has_just_gone_is_passed_over() {
    let agent = Agent::start();
    let (_runtime, mut shim, _) = running(&agent, "vm", "exit 0");
    assert_eq!(shim.next(), exited(0));
    assert_eq!(shim.ask(SIGNAL, json!({"signalNumber": 28, "columns": 3, "rows": 4})), success(SIGNAL));
    let gone = "Could not send the signal user defined signal 1: no such process";
    assert_eq!(shim.ask(SIGNAL, json!({"signalNumber": 10})), failure(SIGNAL, gone));
}

/// An agent that sees no processes but its own, so that the end of its machine is theirs; `None` where that is forbidden.
fn agent_of_a_pod() -> Option<Agent> {
    agent_of_a_pod_under(&[])
}

/// The same, run by these words.
fn agent_of_a_pod_under(tracer: &[&str]) -> Option<Agent> {
    // Whether the numbers of processes are others there is looked at again below: nobody wants to end this machine.
    let words = ["-p", "-f", "--mount-proc", "--kill-child"];
    let works = Command::new("unshare").args(words).arg("true").stderr(Stdio::null()).status();
    if !works.is_ok_and(|status| status.success()) {
        return None;
    }
    let ours = fs::read_link("/proc/self/ns/pid").expect("a namespace");
    let script =
        format!("if [ \"$(readlink /proc/self/ns/pid)\" = '{}' ]; then exit 1; fi; \"$@\" & wait", ours.display());
    Some(Agent::start_with(|command| {
        let lodger: Vec<_> =
            [command.get_program()].into_iter().chain(command.get_args()).map(ToOwned::to_owned).collect();
        let mut unshare = Command::new("unshare");
        unshare.args(words).args(["sh", "-c", &script, "sh"]).args(tracer).args(lodger).stdin(Stdio::null());
        *command = unshare;
    }))
}

#[test]
fn programs_end_before_the_machine_and_their_shims_hear_of_it() {
    let Some(mut agent) = agent_of_a_pod() else {
        return eprintln!(
            "skipped programs_end_before_the_machine_and_their_shims_hear_of_it: needs root and namespaces"
        );
    };
    let mut runtime = over(&agent);
    let tokens = runtime.register("vm", 4);
    let scripts = [
        "exec 2>/dev/null; trap 'echo bye; sleep 0.5; exit 6' TERM; echo ready; while :; do sleep 0.05; done",
        // Killed at once, and not after the time that others have.
        "trap '' TERM; echo ready; while :; do sleep 0.05; done",
        "echo ready; exec sleep 1000",
    ];
    let mut shims = Vec::new();
    for (token, script) in tokens.iter().zip(scripts) {
        let mut shim = over(&agent);
        shim.connect(token);
        runtime.exec(token, script);
        assert_eq!(shim.line(), "ready");
        shims.push(shim);
    }
    // One whose shim has gone, one that never had any, and one that is only claimed.
    let mut lost = over(&agent);
    lost.connect(&tokens[3]);
    runtime.exec(&tokens[3], "exec sleep 1000");
    drop(lost);
    let sleep = json!({"args": ["sleep", "1000"]});
    runtime.done(HYPER, json!({"hyperName": "execcmd", "data": {"process": sleep}}));
    let mut idle = over(&agent);
    idle.done(CONNECT, json!({"token": runtime.attach("vm", 1)[0]}));
    assert_eq!(runtime.done(HYPER, json!({"hyperName": "destroypod"})), b"");
    // All of it was on its way before the answer.
    assert_eq!(shims[0].finish(), (b"bye\n".to_vec(), Vec::new(), 6));
    assert_eq!(shims[1].finish().2, 137);
    assert_eq!(shims[2].finish().2, 143);
    wait_until("the machine has ended", || agent.child.try_wait().expect("our child").is_some());
}

/// How long a pod may take whose programs end within a second: less than those are given that do not.
const SOON: Duration = Duration::from_secs(4);

/// Ends half a second after SIGTERM.
const SLOW: &str =
    "exec 2>/dev/null; trap 'echo term; sleep 0.5; exit 6' TERM; echo ready; while :; do sleep 0.05; done";

#[test]
fn a_pod_ends_as_soon_as_its_programs_have_whoever_leaves_meanwhile() {
    for is_own_shim in [false, true] {
        // A machine with other work may stand still for a while, but not whenever this is tried.
        let mut times = Vec::new();
        while times.iter().all(|time| *time >= SOON) {
            assert!(times.len() < 3, "{is_own_shim}: {times:?}");
            let Some(time) = time_of_a_pods_end(is_own_shim) else {
                return eprintln!(
                    "skipped a_pod_ends_as_soon_as_its_programs_have_whoever_leaves_meanwhile: needs root and namespaces"
                );
            };
            times.push(time);
        }
    }
}

/// How long a pod takes to end whose programs end within a second, while one of its clients leaves: one that has a process itself, and asks for
/// the end, or another one. `None` where there can be none.
fn time_of_a_pods_end(is_own_shim: bool) -> Option<Duration> {
    let mut agent = agent_of_a_pod()?;
    let mut runtime = over(&agent);
    let tokens = runtime.register("vm", 3);
    let mut shim = over(&agent);
    shim.connect(&tokens[0]);
    runtime.exec(&tokens[0], SLOW);
    assert_eq!(shim.line(), "ready");
    let start = Instant::now();
    let mut asking = if is_own_shim {
        let mut asking = over(&agent);
        asking.attach("vm", 0);
        asking.connect(&tokens[1]);
        runtime.exec(&tokens[1], SLOW);
        assert_eq!(asking.line(), "ready");
        asking
    } else {
        runtime
    };
    asking.send(COMMAND, HYPER, json!({"hyperName": "destroypod"}).to_string());
    assert_eq!(shim.line(), "term");
    // Nothing starts any more.
    let mut other = over(&agent);
    other.attach("vm", 0);
    let late = json!({"hyperName": "execcmd", "data": {"process": {"args": ["sleep", "1000"]}}});
    other.refused(HYPER, late, "ERROR received from VM agent, control msg received : the machine is about to end");
    if is_own_shim {
        drop(asking);
        assert_eq!(shim.finish().2, 6);
    } else {
        shim.send(COMMAND, DISCONNECT, "");
        shim.ends();
        assert_eq!(asking.next(), success(HYPER));
    }
    wait_until("the machine has ended", || agent.child.try_wait().expect("our child").is_some());
    Some(start.elapsed())
}

#[test]
fn nobody_keeps_the_machine_by_reading_nothing() {
    let Some(mut agent) = agent_of_a_pod() else {
        return eprintln!("skipped nobody_keeps_the_machine_by_reading_nothing: needs root and namespaces");
    };
    let mut runtime = over(&agent);
    let token = runtime.register("vm", 1).remove(0);
    let mut asking = over(&agent);
    asking.attach("vm", 0);
    asking.connect(&token);
    // More than its socket takes, and less than keeps it from being listened to.
    let written = agent.folder.path("written");
    runtime.exec(&token, &format!("head -c 600000 /dev/zero; : > {}; exec sleep 1000", written.display()));
    wait_until("the output is written", || written.exists());
    asking.send(COMMAND, HYPER, json!({"hyperName": "destroypod"}).to_string());
    wait_until("the machine has ended", || agent.child.try_wait().expect("our child").is_some());
}

#[test]
fn whoever_reads_slowly_is_told_all_before_the_machine_ends() {
    let Some(mut agent) = agent_of_a_pod() else {
        return eprintln!(
            "skipped whoever_reads_slowly_is_told_all_before_the_machine_ends: needs root and namespaces"
        );
    };
    let mut asking = over(&agent);
    let token = asking.register("vm", 1).remove(0);
    asking.connect(&token);
    let written = agent.folder.path("written");
    let script = format!("head -c 500000 /dev/zero; : > {}; exec sleep 1000", written.display());
    asking.send(COMMAND, HYPER, exec_command(&token, &script).to_string());
    wait_until("the output is written", || written.exists());
    asking.send(COMMAND, HYPER, json!({"hyperName": "destroypod"}).to_string());
    // For longer than one may take nothing.
    let (mut said, mut piece) = (Vec::new(), vec![0; 32 << 10]);
    while let Ok(count @ 1..) = asking.socket.read(&mut piece) {
        said.extend_from_slice(&piece[..count]);
        pause(Duration::from_millis(1500));
    }
    let end = [frame(NOTIFICATION, 0, &[143]), frame(1, HYPER, b"")].concat();
    assert!(said.len() > 500_000 && said.ends_with(&end), "{} bytes", said.len());
    wait_until("the machine has ended", || agent.child.try_wait().expect("our child").is_some());
}

#[test]
fn nothing_behind_the_end_of_the_pod_puts_it_off() {
    let Some(mut agent) = agent_of_a_pod() else {
        return eprintln!("skipped nothing_behind_the_end_of_the_pod_puts_it_off: needs root and namespaces");
    };
    let mut runtime = over(&agent);
    let token = runtime.register("vm", 1).remove(0);
    runtime.connect(&token);
    // Each of these would wait for a process for half a minute.
    let mut frames = frame(COMMAND, HYPER, json!({"hyperName": "destroypod"}).to_string().as_bytes());
    for _ in 0..3 {
        frames.extend(frame(COMMAND, SIGNAL, br#"{"signalNumber":10}"#));
    }
    runtime.write(&frames);
    let start = Instant::now();
    assert_eq!(runtime.next(), success(HYPER));
    wait_until("the machine has ended", || agent.child.try_wait().expect("our child").is_some());
    assert!(start.elapsed() < Duration::from_secs(25), "{:?}", start.elapsed());
}

/// How many processes have this path among their words.
fn processes_that_name(path: &Path) -> usize {
    let words =
        fs::read_dir("/proc").expect("proc").filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok());
    let path = path.to_str().expect("text");
    words.filter(|words| String::from_utf8_lossy(words).contains(path)).count()
}

#[test]
fn a_program_that_is_about_to_start_ends_with_the_pod() {
    let name = "a_program_that_is_about_to_start_ends_with_the_pod";
    let can_trace = Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).status();
    if !can_trace.is_ok_and(|status| status.success()) {
        return eprintln!("skipped {name}: needs strace and the right to trace");
    }
    // Each program takes a second to start, this agent too.
    let words =
        ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=execve", "-e", "inject=execve:delay_enter=1000000"];
    let Some(mut agent) = agent_of_a_pod_under(&words) else {
        return eprintln!("skipped {name}: needs root and namespaces");
    };
    let mut runtime = over(&agent);
    let token = runtime.register("vm", 1).remove(0);
    let mut shim = over(&agent);
    shim.connect(&token);
    let mut asking = over(&agent);
    asking.attach("vm", 0);
    // Until it has become the program, it looks like the agent.
    let agents = || processes_that_name(&agent.socket);
    let before = agents();
    runtime.send(COMMAND, HYPER, exec_command(&token, "exec sleep 1000").to_string());
    wait_until("it is about to start", || agents() > before);
    asking.send(COMMAND, HYPER, json!({"hyperName": "destroypod"}).to_string());
    assert_eq!(runtime.next(), success(HYPER));
    assert_eq!(shim.finish().2, 143);
    wait_until("the machine has ended", || agent.child.try_wait().expect("our child").is_some());
}

#[test]
fn the_name_of_a_container_that_was_not_wanted_in_the_end_is_free() {
    let agent = Agent::start();
    let mut runtime = over(&agent);
    runtime.register("vm", 0);
    let mut left = 0;
    // The shim leaves while its process is being started, more or less.
    for round in 0..200 {
        let id = format!("c{round}");
        let token = runtime.attach("vm", 1).remove(0);
        let mut shim = over(&agent);
        shim.connect(&token);
        runtime.send(COMMAND, HYPER, new_container(&id, &token, "exit 0").to_string());
        std::thread::sleep(Duration::from_micros(20 * (round % 50)));
        shim.send(COMMAND, DISCONNECT, "");
        if runtime.next() == success(HYPER) {
            continue;
        }
        left += 1;
        let token = runtime.attach("vm", 1).remove(0);
        let mut shim = over(&agent);
        shim.connect(&token);
        runtime.done(HYPER, new_container(&id, &token, "exit 3"));
        assert_eq!(shim.finish().2, 3, "{id}");
        shim.send(COMMAND, DISCONNECT, "");
    }
    println!("{left} of 200 were not wanted in the end");
}
