//! What shims leave behind that go in the wrong moment: signals arrive all the same, and places, tokens and descriptors are given back.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use serde_json::json;

use lodger::proto::clear::frame::PAYLOAD_MAX;

use crate::client::{
    CONNECT, Client, DISCONNECT, HYPER, SIGNAL, UNREGISTER, exec_command, exited, frame, over, running, success,
};
use crate::support::{Agent, PATIENCE, children, descriptors, pause, wait_until};

/// A container whose first process has this token.
fn container(id: &str, token: &str, script: &str) -> serde_json::Value {
    let data = json!({"id": id, "process": {"args": ["sh", "-c", script]}});
    json!({"hyperName": "newcontainer", "tokens": [token], "data": data})
}

fn kill(id: &str) -> serde_json::Value {
    json!({"hyperName": "killcontainer", "data": {"container": id, "signal": 9}})
}

#[test]
fn a_kill_arrives_whatever_the_shim_does_at_that_moment() {
    let agent = Agent::start();
    let mut runtime = over(&agent);
    for (round, token) in runtime.register("vm", 90).into_iter().enumerate() {
        let mut shim = over(&agent);
        shim.connect(&token);
        let id = format!("c{round}");
        runtime.done(HYPER, container(&id, &token, "exec sleep 60"));
        let bytes = frame(0, HYPER, kill(&id).to_string().as_bytes());
        match round % 3 {
            // Two connections at once, in either order.
            0 => {
                shim.send(0, DISCONNECT, "");
                runtime.write(&bytes);
            }
            1 => {
                runtime.write(&bytes);
                shim.send(0, DISCONNECT, "");
            }
            _ => {
                runtime.write(&bytes);
                drop(shim);
            }
        }
        assert_eq!(runtime.next(), success(HYPER), "round {round}");
    }
    wait_until("all have ended", || children(agent.pid()).is_empty());
}

#[test]
fn a_kill_arrives_while_a_shim_that_reads_nothing_is_being_seen_off() {
    let agent = Agent::start();
    let mut runtime = over(&agent);
    let token = runtime.register("vm", 1).remove(0);
    let mut shim = over(&agent);
    shim.connect(&token);
    runtime.done(HYPER, container("c", &token, "exec yes"));
    // Until the pipe and everything behind it is full.
    pause(Duration::from_millis(300));
    shim.socket.shutdown(Shutdown::Write).expect("it is open");
    pause(Duration::from_millis(100));
    assert_eq!(runtime.ask(HYPER, kill("c")), success(HYPER));
    let start = Instant::now();
    let is_dead = |pid: &u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        text.rsplit(')').next().is_none_or(|rest| matches!(rest.trim_start().chars().next(), None | Some('Z')))
    };
    wait_until("it has ended", || children(agent.pid()).iter().all(is_dead));
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_shim_that_has_ended_its_direction_gives_way_to_the_next_one() {
    let agent = Agent::start();
    let (_runtime, mut shim, token) =
        running(&agent, "vm", "i=0; while [ $i -lt 300000 ]; do echo line $i; i=$((i+1)); done");
    // It reads nothing, so its last answers cannot be written.
    pause(Duration::from_millis(500));
    shim.socket.shutdown(Shutdown::Write).expect("it is open");
    pause(Duration::from_millis(50));
    let mut next = over(&agent);
    let start = Instant::now();
    next.connect(&token);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let (rest, _, code) = next.finish();
    assert_eq!(code, 0);
    // What the first connection's socket had taken in whole frames, and what went to the second one, is everything.
    let mut bytes = Vec::new();
    shim.socket.read_to_end(&mut bytes).expect("it was ended");
    let (mut stdout, mut left) = (Vec::new(), &bytes[..]);
    while let Some((header, more)) = left.split_first_chunk::<12>() {
        let length = u32::from_be_bytes([header[8], header[9], header[10], header[11]]) as usize;
        let Some(payload) = more.get(..length) else { break };
        stdout.extend(payload);
        left = &more[length..];
    }
    assert!(!stdout.is_empty() && !rest.is_empty());
    stdout.extend(rest);
    let all: String = (0..300_000).map(|i| format!("line {i}\n")).collect();
    assert!(stdout == all.as_bytes(), "{} of {} bytes", stdout.len(), all.len());
}

#[test]
fn programs_that_end_without_their_shims_give_up_their_places() {
    let agent = Agent::start();
    let mut runtime = over(&agent);
    let tokens = runtime.register("vm", 20);
    for token in &tokens {
        let mut shim = over(&agent);
        shim.connect(token);
        runtime.exec(token, "sleep 0.3; head -c 50000 /dev/zero; echo late >&2; exit 5");
    }
    wait_until("all are buried", || children(agent.pid()).is_empty());
    let command = json!({"hyperName": "execcmd", "data": {"process": {"args": ["sleep", "60"]}}});
    for _ in 0..256 {
        runtime.done(HYPER, &command);
    }
    for token in &tokens {
        let mut shim = over(&agent);
        shim.connect(token);
        assert_eq!(shim.finish(), (vec![0; 50_000], b"late\n".to_vec(), 5));
    }
}

#[test]
fn containers_that_have_ended_keep_no_descriptors() {
    let agent = Agent::start();
    let mut runtime = over(&agent);
    let tokens = runtime.register("vm", 50);
    wait_until("the agent has settled", || children(agent.pid()).is_empty());
    let before = descriptors(agent.pid());
    for (number, token) in tokens.iter().enumerate() {
        runtime.done(HYPER, {
            let data = json!({"id": format!("a{number}"), "process": {"args": ["true"]}});
            json!({"hyperName": "newcontainer", "data": data})
        });
        let mut shim = over(&agent);
        shim.connect(token);
        runtime.done(HYPER, container(&format!("b{number}"), token, "exit 0"));
        assert_eq!(shim.next(), exited(0));
        if number % 2 == 0 {
            shim.send(0, DISCONNECT, "");
            shim.ends();
        }
    }
    wait_until("they have ended", || children(agent.pid()).is_empty());
    // The waiting command had made a bell for its own connection.
    wait_until("their descriptors are closed", || descriptors(agent.pid()) <= before + 2);
}

/// A shim whose process reads nothing of what it is sent, which is more than may wait for it.
fn stuffed(agent: &Agent) -> (Client, Client, String) {
    let (runtime, mut shim, token) = running(agent, "vm", "exec sleep 60");
    shim.socket.set_nonblocking(true).expect("a socket");
    let input = frame(2, 0, &[b'x'; 8192]);
    let (mut count, mut stuck) = (0, 0);
    let start = Instant::now();
    // Until the agent has taken nothing for a while, and not because it had no time.
    while stuck < 20 || count <= 1 << 20 && start.elapsed() < PATIENCE {
        match shim.socket.write(&input) {
            Ok(written) => (count, stuck) = (count + written, 0),
            Err(_) => {
                stuck += 1;
                pause(Duration::from_millis(10));
            }
        }
        assert!(count < 8 << 20, "there is a limit");
    }
    assert!(count > 1 << 20, "{count}");
    (runtime, shim, token)
}

#[test]
fn a_process_that_reads_nothing_can_be_signalled_from_elsewhere() {
    let agent = Agent::start();
    let (mut runtime, shim, _) = stuffed(&agent);
    runtime.done(HYPER, json!({"hyperName": "signalprocess", "data": {"process": "3", "signal": 9}}));
    wait_until("it has ended", || children(agent.pid()).is_empty());
    drop(shim);
}

#[test]
fn a_shim_that_cannot_get_its_signal_through_comes_back_with_it() {
    let agent = Agent::start();
    let (_runtime, shim, token) = stuffed(&agent);
    drop(shim);
    let mut shim = over(&agent);
    shim.connect(&token);
    assert_eq!(shim.ask(SIGNAL, json!({"signalNumber": 15})), exited(143));
    assert_eq!(shim.next(), success(SIGNAL));
}

#[test]
fn a_token_can_be_used_again_by_whoever_comes_while_its_process_is_guarded() {
    let agent = Agent::start();
    let (mut runtime, shim, token) = running(&agent, "vm", "exec sleep 60");
    let mut shim = Some(shim);
    // Faster than the one who guards the process between two shims can look.
    for _ in 0..200 {
        drop(shim.take());
        let mut next = over(&agent);
        next.connect(&token);
        shim = Some(next);
    }
    runtime.refused(
        HYPER,
        exec_command(&token, "true"),
        &format!("token {token} has its process, or is about to have it"),
    );
    let mut other = over(&agent);
    other.refused(CONNECT, json!({"token": token}), &format!("token already claimed: {token}"));
    let mut shim = shim.expect("the last one");
    assert_eq!(shim.ask(SIGNAL, json!({"signalNumber": 9})), exited(137));
}

#[test]
fn a_process_that_leaves_a_writer_behind_keeps_no_place() {
    let agent = Agent::start();
    let script = "echo $$; read x; yes & sleep 0.2; echo last >&2; echo $! >&2; exit 2";
    let (_runtime, mut shim, token) = running(&agent, "vm", script);
    let _ = shim.line();
    shim.send(2, 0, "\n");
    drop(shim);
    // It writes more than is kept for a shim.
    wait_until("the process is buried", || children(agent.pid()).is_empty());
    let mut shim = over(&agent);
    shim.connect(&token);
    let (stdout, stderr, code) = shim.finish();
    assert_eq!(code, 2);
    assert!(stdout.chunks(2).all(|line| line == b"y\n"[..line.len()].as_ref()), "it is what was written");
    // What the process itself has said is all there.
    let stderr = String::from_utf8_lossy(&stderr);
    let writer = stderr.strip_prefix("last\n").and_then(|rest| rest.trim().parse().ok()).expect("a number");
    wait_until("nobody reads what the writer writes", || !crate::support::lives(writer));
}

#[test]
fn processes_that_nobody_hears_can_be_signalled() {
    let agent = Agent::start();
    let (mut runtime, mut shim, _) = running(&agent, "vm", "exec sleep 60");
    shim.send(0, DISCONNECT, "");
    shim.ends();
    for _ in 0..2 {
        runtime.done(HYPER, json!({"hyperName": "execcmd", "data": {"process": {"args": ["sleep", "60"]}}}));
    }
    let kill = |number: &str| json!({"hyperName": "signalprocess", "data": {"process": number, "signal": 9}});
    runtime.done(HYPER, kill("3"));
    wait_until("one has ended", || children(agent.pid()).len() == 2);
    runtime.done(HYPER, kill("1"));
    wait_until("all have ended", || children(agent.pid()).is_empty());
    let why = "ERROR received from VM agent, control msg received : no such process";
    wait_until("they are forgotten", || runtime.ask(HYPER, kill("1")).kind == 0x11);
    runtime.refused(HYPER, kill("1"), why);
}

#[test]
fn a_shim_that_has_ended_its_direction_gets_the_answer_to_its_signal() {
    let agent = Agent::start();
    let (_runtime, mut shim, _) = running(&agent, "vm", "exec sleep 60");
    shim.send(0, SIGNAL, json!({"signalNumber": 9}).to_string());
    shim.socket.shutdown(Shutdown::Write).expect("it is open");
    assert_eq!(shim.next(), exited(137));
    assert_eq!(shim.next(), success(SIGNAL));
    shim.ends();
    // One that does not end from it is answered all the same, in time.
    let (_runtime, mut shim, _) = running(&agent, "other", "trap '' TERM; echo ready; sleep 60");
    assert_eq!(shim.line(), "ready");
    shim.send(0, SIGNAL, json!({"signalNumber": 15}).to_string());
    shim.socket.shutdown(Shutdown::Write).expect("it is open");
    assert_eq!(shim.next(), success(SIGNAL));
    shim.ends();
}

#[test]
fn input_that_was_sent_before_the_client_went_reaches_its_process() {
    let agent = Agent::start();
    // More than may wait, but what the kernel takes of it without anybody who reads.
    let bytes: Vec<u8> = [frame(2, 0, &[b'x'; 8192]).repeat(140), frame(2, 0, b"")].concat();
    let folder = crate::support::Folder::new();
    // No process reads before its client has gone.
    let waiting = |id: &str| format!("until [ -e {} ]; do sleep 0.05; done", folder.path(id).display());
    let go = |id: &str| std::fs::write(folder.path(id), "").expect("a file");
    for (id, half) in [("half", true), ("whole", false)] {
        let (_runtime, mut shim, token) = running(&agent, id, &format!("{}; wc -c", waiting(id)));
        shim.write(&bytes);
        if half {
            shim.socket.shutdown(Shutdown::Write).expect("it is open");
            pause(Duration::from_millis(50));
        } else {
            drop(shim);
        }
        let mut next = over(&agent);
        next.connect(&token);
        go(id);
        assert_eq!(next.finish(), (format!("{}\n", 140 * 8192).into_bytes(), Vec::new(), 0), "{id}");
    }
    // Also without another shim.
    let file = folder.path("count");
    let counting = |id: &str| format!("{}; wc -c > {}", waiting(id), file.display());
    let (_runtime, mut shim, token) = running(&agent, "alone", &counting("alone"));
    shim.write(&bytes);
    drop(shim);
    go("alone");
    let count = || std::fs::read_to_string(&file).unwrap_or_default();
    wait_until("it has counted", || count() == format!("{}\n", 140 * 8192));
    let mut next = over(&agent);
    next.connect(&token);
    assert_eq!(next.next(), exited(0));
    // And when it takes its leave, the process has it too.
    let (_runtime, mut shim, _) = running(&agent, "leaves", &counting("leaves"));
    shim.write(&frame(2, 0, &[b'x'; 8192]).repeat(100));
    shim.send(0, DISCONNECT, "");
    shim.ends();
    go("leaves");
    wait_until("it has counted", || count() == format!("{}\n", 100 * 8192));
}

#[test]
fn a_leave_behind_the_longest_frame_counts_and_all_its_bytes_do() {
    let agent = Agent::start();
    let folder = crate::support::Folder::new();
    let (file, go) = (folder.path("count"), folder.path("go"));
    let script = format!("until [ -e {} ]; do sleep 0.05; done; wc -c > {}", go.display(), file.display());
    let (_runtime, mut shim, token) = running(&agent, "vm", &script);
    shim.write(&frame(2, 0, &[b'x'; 8192]).repeat(25));
    shim.write(&frame(2, 0, &vec![b'x'; PAYLOAD_MAX]));
    shim.send(0, DISCONNECT, "");
    drop(shim);
    std::fs::write(go, "").expect("a file");
    let count = || std::fs::read_to_string(&file).unwrap_or_default();
    wait_until("it has counted", || count() == format!("{}\n", 25 * 8192 + PAYLOAD_MAX));
    over(&agent).refused(CONNECT, json!({"token": token}), &format!("token already claimed: {token}"));
}

#[test]
fn a_leave_that_was_taken_before_the_client_went_counts() {
    let agent = Agent::start();
    let folder = crate::support::Folder::new();
    let file = folder.path("done");
    // Behind more output than can be sent to one that reads nothing, and behind more input than can wait.
    let script = format!("head -c 5000000 /dev/zero; wc -c > {}", file.display());
    let (_runtime, mut shim, token) = running(&agent, "vm", &script);
    pause(Duration::from_millis(100));
    shim.write(&frame(2, 0, &[b'x'; 8192]).repeat(10));
    shim.send(0, DISCONNECT, "");
    drop(shim);
    let count = || std::fs::read_to_string(&file).unwrap_or_default();
    wait_until("it has ended", || count() == format!("{}\n", 10 * 8192));
    over(&agent).refused(CONNECT, json!({"token": token}), &format!("token already claimed: {token}"));
    let (_runtime, mut shim, token) = running(&agent, "other", "sleep 0.5");
    shim.write(&frame(2, 0, &[b'x'; 8192]).repeat(140));
    shim.send(0, DISCONNECT, "");
    drop(shim);
    wait_until("it has ended", || children(agent.pid()).is_empty());
    over(&agent).refused(CONNECT, json!({"token": token}), &format!("token already claimed: {token}"));
}

#[test]
fn containers_are_there_until_they_are_removed() {
    let agent = Agent::start();
    let mut runtime = over(&agent);
    let token = runtime.register("vm", 1).remove(0);
    let remove = |id: &str| json!({"hyperName": "removecontainer", "data": {"container": id}});
    let start = |id: &str, program: &str| json!({"hyperName": "newcontainer", "data": {"id": id, "process": {"args": [program]}}});
    runtime.done(HYPER, start("a", "true"));
    wait_until("it has ended", || children(agent.pid()).is_empty());
    // Neither a second one of its name nor the end of another machine takes it away.
    for program in ["true", "/no/such/program"] {
        let why = "ERROR received from VM agent, control msg received : container a exists already";
        runtime.refused(HYPER, start("a", program), why);
    }
    let mut other = over(&agent);
    other.register("other", 0);
    other.done(UNREGISTER, json!({"containerId": "other"}));
    let process = json!({"args": ["true"]});
    runtime.done(HYPER, json!({"hyperName": "execcmd", "data": {"container": "a", "process": process}}));
    runtime.done(HYPER, remove("a"));
    // One that was killed is over, though its shim has not read so far.
    let mut shim = over(&agent);
    shim.connect(&token);
    runtime.done(HYPER, container("b", &token, "exec yes"));
    pause(Duration::from_millis(100));
    runtime.done(HYPER, kill("b"));
    wait_until("it has ended", || runtime.ask(HYPER, remove("b")).kind == 1);
    runtime.done(HYPER, start("b", "true"));
}

#[test]
fn output_goes_on_while_a_command_of_the_same_connection_waits() {
    let agent = Agent::start();
    let mut runtime = over(&agent);
    let tokens = runtime.register("vm", 2);
    let mut shim = over(&agent);
    shim.connect(&tokens[0]);
    shim.attach("vm", 0);
    runtime.exec(&tokens[0], "read x; echo one; read x; echo two; exit 4");
    shim.send(2, 0, "\n");
    shim.send(0, HYPER, exec_command(&tokens[1], "exit 0").to_string());
    assert_eq!(shim.line(), "one");
    let mut other = over(&agent);
    other.connect(&tokens[1]);
    assert_eq!(shim.next(), success(HYPER));
    shim.send(2, 0, "\n");
    assert_eq!(shim.finish(), (b"two\n".to_vec(), Vec::new(), 4));
    assert_eq!(other.next(), exited(0));
}
