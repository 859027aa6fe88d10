//! Defects that were there once.

mod support;

use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lodger::sys::signal::{SIGINT, send};
use lodger::wire::frame::{Frame, Hello};
use support::{Agent, cpu_ticks, exec, lives, shell, status, wait_until};

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

fn hello(mark: u64) -> Frame<'static> {
    Frame::Hello(Hello { revision: 1, program: "test".into(), mark, ..Hello::default() })
}

#[test]
fn a_client_with_a_slow_reader_keeps_no_more_than_its_window() {
    let size = 40 << 20;
    let mut command = lodger(&["exec", "--to", "local:", "-n", "--", "head", "-c", &size.to_string(), "/dev/zero"]);
    let mut client = Guard(command.stdout(Stdio::piped()).spawn().expect("the client starts"));
    let mut stdout = client.0.stdout.take().expect("a pipe");
    let (mut buffer, mut total, mut most) = (vec![0; 128 << 10], 0, 0);
    loop {
        let count = stdout.read(&mut buffer).expect("a read");
        if count == 0 {
            break;
        }
        total += count;
        most = most.max(status(client.0.id(), "VmRSS"));
        std::thread::sleep(Duration::from_micros(500));
    }
    assert_eq!(total, size);
    assert!(most < 16 << 10, "the client took {most} kB");
}

/// Whether a process has been sent an interrupt that none of its threads has taken yet. Another one would be lost.
fn has_pending_interrupt(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("our child");
    let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:")).expect("a mask");
    u64::from_str_radix(pending.trim(), 16).expect("a mask") >> (SIGINT - 1) & 1 == 1
}

#[test]
fn three_interrupts_end_a_client_whose_output_nobody_takes() {
    let mut command = lodger(&["exec", "--to", "local:", "-n", "--", "sh", "-c", "trap '' INT; yes"]);
    let mut client = Guard(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the client starts"));
    let mut first = [0];
    client.0.stdout.as_mut().expect("a pipe").read_exact(&mut first).expect("a byte");
    for _ in 0..3 {
        send(client.0.id() as i32, SIGINT).expect("our child");
        wait_until("it has come", || !has_pending_interrupt(client.0.id()));
    }
    let mut code = None;
    wait_until("the client has ended", || {
        code = client.0.try_wait().expect("a status").map(|status| status.code());
        code.is_some()
    });
    assert_eq!(code, Some(Some(130)));
}

#[test]
fn a_line_that_ends_at_once_costs_next_to_nothing() {
    let agent =
        Guard(lodger(&["serve", "--listen", "port:/dev/null"]).stderr(Stdio::null()).spawn().expect("an agent"));
    let start = Instant::now();
    wait_until("half a second is over", || start.elapsed() > Duration::from_millis(500));
    assert!(lives(agent.0.id()), "it goes on trying");
    assert!(cpu_ticks(agent.0.id()) < 10, "{} ticks in half a second", cpu_ticks(agent.0.id()));
}

#[test]
fn an_agent_does_not_answer_another_agents_greeting() {
    let agent = Agent::start();
    let mut peer = agent.connect();
    peer.send(&Frame::Hello(Hello { revision: 1, program: "lodger".into(), window: 5, mark: 9, log_level: None }));
    let item = peer.ask(&hello(4));
    assert!(matches!(Frame::decode(&item), Ok(Frame::Hello(hello)) if hello.mark == 4));
}

#[test]
fn another_client_on_the_same_line_ends_what_the_one_before_left() {
    let agent = Agent::start();
    let mut peer = agent.connect();
    peer.ask(&hello(1));
    peer.send(&Frame::Exec { id: 1, exec: shell("echo $$; exec sleep 1000") });
    let pid = loop {
        let item = peer.receive().expect("a frame");
        if let Ok(Frame::Data { data, .. }) = Frame::decode(&item) {
            break String::from_utf8_lossy(&data).trim().parse::<u32>().expect("a number");
        }
    };
    let item = peer.ask(&hello(1));
    assert!(matches!(Frame::decode(&item), Ok(Frame::Hello(_))) && lives(pid), "the same client may greet twice");
    let item = peer.ask(&hello(2));
    assert!(matches!(Frame::decode(&item), Ok(Frame::Hello(hello)) if hello.mark == 2));
    wait_until("the program has ended", || !lives(pid));
    peer.send(&Frame::Exec { id: 1, exec: exec(&["true"]) });
    assert_eq!((peer.finish(1).code, peer.socket.peer_addr().is_ok()), (0, true), "its number is free again");
}

#[test]
fn the_end_of_input_within_a_line_ends_it_on_a_terminal() {
    let agent = Agent::start();
    let mut peer = agent.hello();
    let mut cat = exec(&["cat"]);
    cat.extension.terminal = Some((24, 80));
    peer.send(&Frame::Exec { id: 1, exec: cat });
    peer.send(&Frame::Data { id: 1, stream: 0, data: b"abc"[..].into() });
    peer.send(&Frame::Eof { id: 1, stream: 0 });
    let finished = peer.finish(1);
    assert_eq!(finished.code, 0);
    assert!(finished.stdout().ends_with("abc"), "{:?}", finished.stdout());
}

#[test]
fn a_shell_without_a_terminal_ends_with_its_input() {
    let output = lodger(&["shell", "--to", "local:"]).output().expect("a shell");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn programs_have_the_usual_scheduling_policy() {
    let agent = Agent::start();
    let mut peer = agent.hello();
    // The 41st field of /proc/PID/stat; 0 is SCHED_OTHER.
    peer.send(&Frame::Exec { id: 1, exec: shell("cut -d ' ' -f 41 /proc/$$/stat") });
    assert_eq!(peer.finish(1).stdout(), "0\n");
}

#[test]
fn exit_codes_are_known_though_whoever_starts_the_agent_ignores_the_ends_of_children() {
    // A shell does not hand that on.
    let agent = support::agent_after(r#"exec perl -e '$SIG{CHLD} = "IGNORE"; exec @ARGV' "$@""#);
    let mut peer = agent.hello();
    peer.send(&Frame::Exec { id: 1, exec: shell("exit 7") });
    assert_eq!(peer.finish(1).code, 7);
}
