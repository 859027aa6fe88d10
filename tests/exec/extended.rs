//! A connection with Hello: many programs, credit, and no upstream limits.

use std::io::Write;
use std::time::Duration;

use lodger::sys::process::signal_group;
use lodger::sys::signal::SIGKILL;
use lodger::wire::exec::Exec;
use lodger::wire::file::{FileRequest, op};
use lodger::wire::frame::{Frame, Hello, LEVEL_TRACE};

use crate::support::{Agent, Peer, children, data, exec, lives, shell, status, wait_until, wait_until_at_rest};

fn with_credit(exec: Exec, credit: u32) -> Exec {
    let mut exec = exec;
    exec.extension.credit = credit;
    exec
}

/// Waits for so many bytes of a stream, and then for 100 ms in which no more of them may come.
fn receive_exactly(peer: &mut Peer, id: u32, stream: u32, count: usize) {
    let (mut sum, mut is_silent) = (0, false);
    while !is_silent {
        let item = if sum < count { peer.receive() } else { peer.receive_within(Duration::from_millis(100)) };
        assert!(item.is_some() || sum >= count, "the connection ended after {sum} bytes");
        is_silent = item.is_none();
        if let Some(Ok(Frame::Data { id: of, stream: from, data })) = item.as_deref().map(Frame::decode)
            && (of, from) == (id, stream)
        {
            sum += data.len();
        }
    }
    assert_eq!(sum, count);
}

#[test]
fn many_programs_and_file_operations_share_a_connection() {
    let agent = Agent::start();
    let mut peer = agent.hello();
    for id in 0..20 {
        peer.send(&Frame::Exec { id, exec: shell(&format!("read line; echo {id} $line; exit {id}")) });
        peer.send(&Frame::FileOp(FileRequest {
            id: 100 + id,
            op: op::STAT,
            path: b"/".to_vec(),
            ..FileRequest::default()
        }));
    }
    (0..20).rev().for_each(|id| peer.send(&data(id, 0, b"line\n")));
    let (mut exits, mut answers, mut output) = (Vec::new(), Vec::new(), vec![Vec::new(); 20]);
    while exits.len() < 20 || answers.len() < 20 {
        match Frame::decode(&peer.receive().expect("a frame")).expect("a frame") {
            Frame::Data { id, stream: 1, data } => output[id as usize].extend_from_slice(&data),
            Frame::Exit { id, code, .. } => exits.push((i64::from(id), code)),
            Frame::FileResp(answer) => answers.push(answer.id),
            _ => {}
        }
    }
    assert_eq!(answers, (100..120).collect::<Vec<_>>(), "file operations are answered in order");
    exits.sort_unstable();
    assert_eq!(exits, (0..20).map(|id| (id, id)).collect::<Vec<_>>());
    for (id, output) in output.iter().enumerate() {
        assert_eq!(String::from_utf8_lossy(output), format!("{id} line\n"));
    }
}

#[test]
fn no_more_is_sent_than_was_granted_and_credit_lets_it_go_on() {
    let agent = Agent::start();
    let mut peer = agent.hello();
    peer.send(&Frame::Exec { id: 1, exec: with_credit(exec(&["head", "-c", "300000", "/dev/zero"]), 1000) });
    receive_exactly(&mut peer, 1, 1, 1000);
    for bytes in [1, 70_000, 4096] {
        peer.send(&Frame::Credit { id: 1, stream: 1, bytes });
        receive_exactly(&mut peer, 1, 1, bytes as usize);
    }
    peer.send(&Frame::Credit { id: 1, stream: 1, bytes: u32::MAX });
    let finished = peer.finish(1);
    assert_eq!((finished.stream(1).len(), finished.code), (300_000 - 75_097, 0));
}

#[test]
fn a_stream_that_nobody_grants_anything_does_not_stop_the_others() {
    let agent = Agent::start();
    let mut peer = agent.hello();
    peer.send(&Frame::Exec { id: 1, exec: with_credit(exec(&["cat", "/dev/zero"]), 10) });
    let talk = "head -c 3000000 /dev/zero >&2; echo through";
    peer.send(&Frame::Exec { id: 2, exec: shell(talk) });
    let finished = peer.finish(2);
    assert_eq!((finished.stream(2).len(), finished.stdout().as_str()), (3_000_000, "through\n"));
    peer.send(&Frame::Signal { id: 1, signal: 9 });
    peer.send(&Frame::Credit { id: 1, stream: 1, bytes: 1 << 30 });
    assert_eq!(peer.finish(1).code, 137);
}

#[test]
fn a_stopped_stream_is_not_taken_for_a_silent_one() {
    let agent = Agent::start();
    let mut peer = agent.hello();
    peer.send(&Frame::Exec { id: 1, exec: with_credit(shell("printf 0123456789abcdef; sleep 5 & exit 4"), 10) });
    receive_exactly(&mut peer, 1, 1, 10);
    for _ in 0..4 {
        // What may come is the end of the input, some time behind the output.
        let item = peer.receive_within(Duration::from_millis(100));
        let frame = item.as_deref().map(|item| Frame::decode(item).expect("a frame"));
        assert!(matches!(frame, None | Some(Frame::Eof { stream: 0, .. })), "before the rest is fetched: {frame:?}");
    }
    peer.send(&Frame::Credit { id: 1, stream: 1, bytes: 100 });
    let finished = peer.finish(1);
    assert_eq!((finished.stdout().as_str(), finished.code), ("abcdef", 4));
}

#[test]
fn a_client_hears_when_a_program_closes_its_input() {
    let agent = Agent::start();
    let mut peer = agent.hello();
    peer.send(&Frame::Exec { id: 3, exec: shell("exec <&-; read x <&1; sleep 60") });
    loop {
        if let Ok(Frame::Eof { id: 3, stream: 0 }) = Frame::decode(&peer.receive().expect("a frame")) {
            break;
        }
    }
    peer.send(&Frame::Signal { id: 3, signal: 9 });
    assert_eq!(peer.finish(3).code, 137);
}

#[test]
fn a_program_whose_output_the_client_has_closed_meets_a_broken_pipe() {
    let agent = Agent::start();
    let mut peer = agent.hello();
    peer.send(&Frame::Exec { id: 1, exec: with_credit(exec(&["yes"]), 100) });
    peer.output(1, 1);
    peer.send(&Frame::Eof { id: 1, stream: 1 });
    assert_eq!(peer.finish(1).code, 141);
}

#[test]
fn input_is_granted_again_as_the_program_reads_it() {
    let agent = Agent::start();
    let mut peer = agent.connect();
    peer.send(&Frame::Hello(Hello { revision: 1, ..Hello::default() }));
    let window = match Frame::decode(&peer.receive().expect("hello")) {
        Ok(Frame::Hello(hello)) => hello.window as usize,
        other => panic!("{other:?}"),
    };
    peer.send(&Frame::Exec { id: 1, exec: exec(&["wc", "-c"]) });
    let (mut left, mut credit) = (3_000_000, window);
    while left > 0 {
        let piece = vec![b'x'; left.min(credit).min(30_000)];
        if piece.is_empty() {
            if let Ok(Frame::Credit { id: 1, stream: 0, bytes }) = Frame::decode(&peer.receive().expect("credit")) {
                credit += bytes as usize;
            }
            continue;
        }
        peer.send(&data(1, 0, &piece));
        (left, credit) = (left - piece.len(), credit - piece.len());
    }
    peer.send(&Frame::Eof { id: 1, stream: 0 });
    assert_eq!(peer.finish(1).stdout(), "3000000\n");
}

#[test]
fn a_signal_overtakes_input_that_a_program_does_not_read() {
    let agent = Agent::start();
    let mut peer = agent.hello();
    peer.send(&Frame::Exec { id: 1, exec: exec(&["sleep", "60"]) });
    peer.send(&data(1, 0, &vec![0; 256 << 10]));
    peer.send(&Frame::Signal { id: 1, signal: 15 });
    assert_eq!(peer.finish(1).code, 143);
}

#[test]
fn a_client_that_breaks_its_window_is_refused() {
    let agent = Agent::start();
    let mut peer = agent.hello();
    peer.send(&Frame::Exec { id: 1, exec: shell("echo $$; exec sleep 60") });
    let pid = peer.line(1, 1).parse().expect("a number");
    // The window, what the pipe holds, and one byte more.
    for _ in 0..5 {
        peer.send(&data(1, 0, &vec![0; 64 << 10]));
    }
    peer.send(&data(1, 0, &[0]));
    while peer.receive().is_some() {}
    wait_until("the program is ended", || !lives(pid));
    assert!(agent.hello().receive_within(Duration::from_millis(10)).is_none(), "the agent lives");
}

#[test]
fn a_detached_program_outlives_the_connection_and_leaves_no_zombie() {
    let agent = Agent::start();
    let mut peer = agent.hello();
    let file = agent.folder.path("done");
    let mut exec = shell(&format!("sleep 0.3; id -u > {}; sleep 60", file.display()));
    exec.extension.detach = true;
    peer.send(&Frame::Exec { id: 5, exec });
    let pid = match Frame::decode(&peer.receive().expect("started")).expect("a frame") {
        Frame::Started { id: 5, pid } => pid,
        other => panic!("{other:?}"),
    };
    assert!(lives(pid));
    assert_eq!(children(agent.pid()), [0u32; 0], "neither the program nor a zombie is the agent's");
    assert_eq!(u64::from(pid), session(pid), "it has a session of its own");
    drop(peer);
    wait_until("it has written its file", || file.exists());
    signal_group(pid as i32, SIGKILL).expect("a group");
    wait_until("it has gone", || !lives(pid));
    let mut peer = agent.hello();
    let mut missing = crate::support::exec(&["/missing"]);
    missing.extension.detach = true;
    peer.send(&Frame::Exec { id: 6, exec: missing });
    assert_eq!((peer.finish(6).code, children(agent.pid())), (127, Vec::new()));
}

fn session(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(3)?.parse().ok()).expect("a session")
}

#[test]
fn a_number_is_free_again_after_the_exit_and_refused_while_it_is_taken() {
    let agent = Agent::start();
    let mut peer = agent.hello();
    for round in 0..3 {
        peer.send(&Frame::Exec { id: 9, exec: shell(&format!("exit {round}")) });
        assert_eq!(peer.finish(9).code, round);
    }
    peer.send(&Frame::Exec { id: 9, exec: exec(&["cat"]) });
    peer.send(&Frame::Exec { id: 9, exec: exec(&["true"]) });
    let refused = peer.finish(9);
    assert_eq!((refused.code, refused.error.contains("number 9 is taken")), (127, true), "{}", refused.error);
    peer.send(&data(9, 0, b"still the first"));
    peer.send(&Frame::Eof { id: 9, stream: 0 });
    assert_eq!(peer.finish(9).stdout(), "still the first");
}

#[test]
fn log_frames_come_to_who_asks_for_them_and_to_nobody_else() {
    let agent = Agent::start_with(|command| {
        command.env("LODGER_LOG", "off");
    });
    let logs = |level: Option<i64>| {
        let mut peer = agent.connect();
        peer.send(&Frame::Hello(Hello { revision: 1, log_level: level, ..Hello::default() }));
        peer.send(&Frame::Exec { id: 1, exec: exec(&["cat"]) });
        peer.send(&Frame::Signal { id: 1, signal: 999 });
        peer.send(&Frame::Eof { id: 1, stream: 0 });
        let mut logs = Vec::new();
        loop {
            match Frame::decode(&peer.receive().expect("a frame")).expect("a frame") {
                Frame::Log(log) => logs.push(log.message),
                Frame::Exit { .. } => return logs,
                _ => {}
            }
        }
    };
    assert_eq!(logs(None), [""; 0]);
    let all = logs(Some(LEVEL_TRACE));
    assert!(all.contains(&"child started".into()) && all.iter().any(|log| log.contains("999")), "{all:?}");
    assert_eq!(logs(Some(4)).len(), 1, "the warning alone");
}

#[test]
fn a_goodbye_ends_the_connection_and_its_programs() {
    let agent = Agent::start();
    let mut peer = agent.hello();
    peer.send(&Frame::Exec { id: 1, exec: exec(&["sleep", "60"]) });
    peer.receive().expect("started");
    peer.send(&Frame::Goodbye);
    while peer.receive().is_some() {}
    wait_until("nothing is left", || children(agent.pid()).is_empty());
}

#[test]
fn a_stalled_connection_costs_no_processor_time() {
    let agent = Agent::start();
    let (mut with, mut without) = (agent.hello(), agent.connect());
    // No credit on the one, nobody reading the other, unread input on both, closed inputs and ended outputs.
    with.send(&Frame::Exec { id: 1, exec: with_credit(exec(&["yes"]), 10) });
    with.send(&data(1, 0, &vec![0; 200_000]));
    with.send(&Frame::Exec { id: 2, exec: shell("exec <&- >&-; exec sleep 60") });
    with.send(&Frame::Exec {
        id: 3,
        exec: Exec { fds: vec![3, 4], ..shell("exec 3<&- <&- 2>&-; exec sleep 60 4<&-") },
    });
    let mut terminal = exec(&["sleep", "60"]);
    terminal.extension.terminal = Some((24, 80));
    with.send(&Frame::Exec { id: 4, exec: terminal });
    with.send(&data(4, 0, &vec![b'\n'; 200_000]));
    without.send(&Frame::Exec { id: 0, exec: exec(&["yes"]) });
    // As much as it takes: when its output is stuck first, that is not all.
    without.socket.set_write_timeout(Some(Duration::from_millis(500))).expect("a time-out");
    let _ = without.socket.write_all(&data(0, 0, &vec![0; 1_000_000]).to_bytes());
    wait_until_at_rest(agent.pid());
    assert!(status(agent.pid(), "VmRSS") < 16 << 10);
}
