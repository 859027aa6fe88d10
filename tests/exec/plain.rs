//! A connection without Hello: one program, by upstream's rules.

use std::net::Shutdown;
use std::time::Duration;

use lodger::wire::exec::Exec;
use lodger::wire::file::{FileRequest, op};
use lodger::wire::frame::{Config, Frame, LEVEL_ERROR, LEVEL_WARN};

use crate::support::{Agent, Peer, StdioAgent, data, exec, lives, run, shell, wait_until};

/// An Exit frame of upstream's for 0: no `c` at all.
const EXIT_0: &[u8] = b"\xa1\x61t\x05";

#[test]
fn standard_output_and_error_come_apart() {
    let agent = Agent::start();
    let finished = run(&agent, shell("echo out; echo err >&2; exit 3"));
    assert_eq!((finished.stdout(), finished.stderr()), ("out\n".into(), "err\n".into()));
    assert_eq!((finished.code, finished.error.as_str(), finished.errno), (3, "", 0));
}

#[test]
fn the_exit_frame_has_the_status_or_128_and_the_signal() {
    let agent = Agent::start();
    for code in [0, 1, 42, 127, 255] {
        let finished = run(&agent, shell(&format!("exit {code}")));
        assert_eq!((finished.code, finished.error.as_str()), (code, ""));
    }
    for (signal, code) in [("KILL", 137), ("TERM", 143), ("PIPE", 141), ("SEGV", 139)] {
        assert_eq!(run(&agent, shell(&format!("kill -{signal} $$"))).code, code, "{signal}");
    }
}

#[test]
fn every_stream_ends_before_the_exit_and_the_frames_are_upstreams_bytes() {
    let agent = Agent::start();
    let mut peer = agent.connect();
    peer.send(&Frame::Exec { id: 0, exec: shell("echo x") });
    let mut items: Vec<_> = (0..4).map(|_| peer.receive().expect("a frame")).collect();
    assert_eq!(items.pop().as_deref(), Some(EXIT_0));
    items.sort();
    assert_eq!(
        items,
        [&b"\xa2\x61s\x01\x61t\x03"[..], b"\xa2\x61s\x02\x61t\x03", b"\xa3\x61d\x42x\n\x61s\x01\x61t\x02"]
    );
    assert_eq!(peer.receive_within(Duration::from_millis(50)), None, "the agent lingers in silence");
    peer.socket.shutdown(Shutdown::Write).expect("a shutdown");
    assert_eq!(peer.receive(), None);
}

#[test]
fn the_program_sees_its_path_as_its_name_whatever_argv_says() {
    let agent = Agent::start();
    let words = |path: &str, argv: &[&str]| Exec {
        path: path.into(),
        argv: Some(argv.iter().map(|word| word.as_bytes().to_vec()).collect()),
        ..Exec::default()
    };
    let finished = run(&agent, words("cat", &["liar", "/proc/self/cmdline"]));
    assert_eq!(finished.stdout(), "cat\0/proc/self/cmdline\0");
    for argv in [None, Some(Vec::new()), Some(vec![b"liar".to_vec()])] {
        let mut peer = agent.connect();
        peer.send(&Frame::Exec { id: 0, exec: Exec { path: b"/bin/sh".to_vec(), argv, ..Exec::default() } });
        peer.send(&data(0, 0, b"echo $0 $#\n"));
        peer.send(&Frame::Eof { id: 0, stream: 0 });
        assert_eq!(peer.finish(0).stdout(), "/bin/sh 0\n");
    }
}

#[test]
fn a_program_runs_in_its_directory_and_a_relative_path_starts_there() {
    let agent = Agent::start();
    let cwd = agent.folder.0.to_str().expect("text").as_bytes().to_vec();
    std::os::unix::fs::symlink("/bin/pwd", agent.folder.path("where")).expect("a link");
    let finished =
        run(&agent, Exec { path: b"./where".to_vec(), env: Some(Vec::new()), cwd: cwd.clone(), ..Exec::default() });
    assert_eq!(finished.stdout().trim_end().as_bytes(), cwd, "{}", finished.error);
}

#[test]
fn a_program_leads_a_group_of_its_own_in_the_agents_session() {
    let agent = Agent::start();
    let fields = |text: String| text.split_whitespace().map(|field| field.parse::<i64>().expect("a number")).collect();
    let stat = "cut -d' ' -f5,6 /proc/$$/stat";
    let own: Vec<i64> = fields(run(&agent, shell(&format!("echo $$; {stat}"))).stdout());
    let agents: Vec<i64> = fields(run(&agent, shell(&format!("cut -d' ' -f5,6 /proc/{}/stat", agent.pid()))).stdout());
    assert_eq!((own[0], own[2]), (own[1], agents[1]));
}

#[test]
fn a_signal_reaches_the_whole_group() {
    let agent = Agent::start();
    let mut peer = agent.connect();
    peer.send(&Frame::Exec { id: 0, exec: shell("sleep 60 & echo $!; wait") });
    let grandchild = peer.line(0, 1).parse().expect("a number");
    assert!(lives(grandchild));
    peer.send(&Frame::Signal { id: 0, signal: 15 });
    assert_eq!(peer.finish(0).code, 143);
    wait_until("the grandchild has gone", || !lives(grandchild));
}

#[test]
fn a_signal_that_is_none_does_no_harm() {
    let agent = Agent::start();
    let mut peer = agent.connect();
    peer.send(&Frame::Exec { id: 0, exec: exec(&["cat"]) });
    for signal in [0, -1, 65, 1 << 40, i64::MIN] {
        peer.send(&Frame::Signal { id: 0, signal });
    }
    peer.send(&data(0, 0, b"still here"));
    peer.send(&Frame::Eof { id: 0, stream: 0 });
    let finished = peer.finish(0);
    assert_eq!((finished.stdout().as_str(), finished.code), ("still here", 0));
}

#[test]
fn a_signal_after_the_exit_is_answered_by_a_log_frame_and_ends_the_connection() {
    let agent = Agent::start();
    let mut peer = agent.connect();
    peer.send(&Frame::Exec { id: 0, exec: exec(&["true"]) });
    peer.finish(0);
    let item = peer.ask(&Frame::Signal { id: 0, signal: 15 });
    assert!(matches!(Frame::decode(&item), Ok(Frame::Log(log)) if log.level >= LEVEL_WARN));
    assert_eq!(peer.receive(), None);
}

#[test]
fn a_second_job_during_a_program_is_dropped_without_an_answer() {
    let agent = Agent::start();
    let mut peer = agent.connect();
    peer.send(&Frame::Exec { id: 0, exec: exec(&["cat"]) });
    peer.send(&Frame::Exec { id: 0, exec: exec(&["echo", "second"]) });
    peer.send(&Frame::FileOp(FileRequest { id: 1, op: op::GETWD, ..FileRequest::default() }));
    peer.send(&Frame::PathQuery { paths: Vec::new() });
    peer.send(&data(0, 0, b"first"));
    peer.send(&Frame::Eof { id: 0, stream: 0 });
    let finished = peer.finish(0);
    assert_eq!((finished.stdout().as_str(), finished.frames), ("first", 4), "data, two ends, exit");
}

#[test]
fn what_means_nothing_is_passed_over() {
    let agent = Agent::start();
    let mut peer = agent.connect();
    peer.send(&Frame::Exec { id: 0, exec: exec(&["cat"]) });
    peer.send_bytes(b"\xf6\xa0\xa1\x61t\x18\x63\xa2\x61t\x18\xc8\x63new\x01");
    for stream in [1, 2, 3, 77] {
        peer.send(&data(0, stream, b"nobody reads this"));
        peer.send(&Frame::Eof { id: 0, stream });
    }
    peer.send(&data(9, 0, b"nor this"));
    peer.send(&data(0, 0, b""));
    peer.send(&data(0, 0, b"but this"));
    peer.send(&Frame::Eof { id: 0, stream: 0 });
    peer.send(&Frame::Eof { id: 0, stream: 0 });
    peer.send(&data(0, 0, b"and not what comes behind the end"));
    assert_eq!(peer.finish(0).stdout(), "but this");
}

#[test]
fn frames_may_come_one_byte_at_a_time() {
    let agent = Agent::start();
    let mut peer = agent.connect();
    let config = Frame::Config(Config { env_keep: Some(vec!["*".into()]), env_remove: None });
    let mut exec = exec(&["/bin/sh", "-c", "echo $A; cat"]);
    exec.env = Some(vec![b"A=slow".to_vec()]);
    for frame in [config, Frame::Exec { id: 0, exec }, data(0, 0, b"input"), Frame::Eof { id: 0, stream: 0 }] {
        frame.to_bytes().iter().for_each(|byte| peer.send_bytes(&[*byte]));
    }
    assert_eq!(peer.finish(0).stdout(), "slow\ninput");
}

/// First frames that name no job, and pieces of one.
fn bad_openings() -> Vec<(&'static str, Vec<u8>)> {
    let config = Frame::Config(Config::default()).to_bytes();
    let whole = Frame::Exec { id: 0, exec: exec(&["true"]) }.to_bytes();
    vec![
        ("config twice", [config.clone(), config.clone()].concat()),
        ("config without its member", b"\xa1\x61t\x08".to_vec()),
        ("config and no more", config),
        ("exec without its member", b"\xa1\x61t\x01".to_vec()),
        ("data", data(0, 0, b"x").to_bytes()),
        ("signal", Frame::Signal { id: 0, signal: 9 }.to_bytes()),
        ("null", vec![0xf6]),
        ("a number", vec![0x01]),
        ("text", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("a stray break", vec![0xff]),
        ("a reserved length", vec![0xbc, 0, 0]),
        ("a map with a reserved length within", vec![0xa1, 0x61, b't', 0x1c]),
        ("text that is not UTF-8", b"\xa2\x61t\x05\x61e\x61\xff".to_vec()),
        ("half a frame", whole[..whole.len() / 2].to_vec()),
        ("nothing", Vec::new()),
    ]
}

#[test]
fn a_first_frame_that_names_no_job_is_answered_by_one_log_frame() {
    let agent = Agent::start();
    for (what, bytes) in bad_openings() {
        let mut peer: Peer = agent.connect();
        peer.send_bytes(&bytes);
        if matches!(what, "half a frame" | "nothing" | "config and no more" | "text") {
            peer.socket.shutdown(Shutdown::Write).expect("a shutdown");
        }
        let item = peer.receive().expect(what);
        let frame = Frame::decode(&item).expect(what);
        assert!(matches!(&frame, Frame::Log(log) if log.level == LEVEL_ERROR), "{what}: {frame:?}");
        assert_eq!(peer.receive(), None, "{what}");
    }
    assert_eq!(run(&agent, exec(&["true"])).code, 0);
}

#[test]
fn over_pipes_the_agent_ends_with_0_after_its_job() {
    let mut agent = StdioAgent::start();
    agent.send_bytes(&Frame::Exec { id: 0, exec: exec(&["cat"]) }.to_bytes());
    agent.send_bytes(&data(0, 0, b"piped").to_bytes());
    assert_eq!(agent.receive().as_deref(), Some(&b"\xa3\x61d\x45piped\x61s\x01\x61t\x02"[..]));
    agent.send_bytes(&Frame::Eof { id: 0, stream: 0 }.to_bytes());
    let items: Vec<_> = (0..3).map(|_| agent.receive().expect("a frame")).collect();
    assert_eq!(items[2], EXIT_0);
    assert_eq!(agent.leave(), Some(0));
}

#[test]
fn over_pipes_the_agent_ends_with_127_when_no_job_is_named() {
    for (what, bytes) in bad_openings() {
        let mut agent = StdioAgent::start();
        agent.send_bytes(&bytes);
        drop(agent.child.stdin.take());
        let item = agent.receive().expect(what);
        assert!(matches!(Frame::decode(&item), Ok(Frame::Log(log)) if log.level == LEVEL_ERROR), "{what}");
        assert_eq!(agent.receive(), None, "{what}");
        assert_eq!(agent.leave(), Some(127), "{what}");
    }
}

#[test]
fn over_pipes_a_lost_client_ends_the_program_and_the_agent() {
    let mut agent = StdioAgent::start();
    agent.send_bytes(&Frame::Exec { id: 0, exec: shell("echo $$; exec sleep 60") }.to_bytes());
    let item = agent.receive().expect("the number");
    let Ok(Frame::Data { data, .. }) = Frame::decode(&item) else { panic!("no data") };
    let pid = String::from_utf8_lossy(&data).trim_end().parse().expect("a number");
    drop(agent.child.stdout.take());
    wait_until("the program is ended though stdin is open", || !lives(pid));
    assert_eq!(agent.leave(), Some(0));
}
