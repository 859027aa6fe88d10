//! What no honest client sends: each gets its documented answer, and the agent serves the others meanwhile.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::client::{Shown, assert_bytes};
use crate::monitor::{BAD_JSON, CONNECTION_ERROR, Monitor, NO_HANDLER, PING, PONG, REQUEST_MAX, TOO_LONG};
use crate::support::{PATIENCE, status, wait_until};
use crate::ways::PinnedAgent;

/// The most memory that an agent may ever have had in these tests, in kB: what it has at the start is about a quarter of it.
const PEAK_KB: u64 = 24 << 10;

/// Runs `bad` while another client calls again and again, and is answered in time.
fn beside_a_good_client(agent: &PinnedAgent, bad: impl FnOnce()) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let good = scope.spawn(|| {
            let mut slowest = Duration::ZERO;
            for round in 0.. {
                let since = Instant::now();
                assert_bytes(&agent.connect().ask(PING), PONG, &("a good client", round));
                slowest = slowest.max(since.elapsed());
                if over.load(Ordering::Acquire) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            slowest
        });
        let done = Done(&over);
        bad();
        drop(done);
        let slowest = good.join().expect("the good client is answered");
        assert!(slowest < PATIENCE / 3, "a good client waited for {slowest:?}");
    });
    let peak = status(agent.pid(), "VmHWM");
    println!("peak {peak} kB");
    assert!(peak < PEAK_KB, "the agent has had {peak} kB");
}

/// Ends the good client, also when the bad one's test has failed.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn floods_are_refused_and_told_so_behind_their_last_byte() {
    let agent = PinnedAgent::start();
    let ten: usize = 10 << 20;
    let string = [br#"{"Command":"agent.ping","a":""#, vec![b'a'; ten].as_slice(), br#""}"#].concat();
    let name = [br#"{""#, vec![b'a'; ten].as_slice(), br#"":1}"#].concat();
    let command = [br#"{"Command":""#, vec![b'a'; ten].as_slice(), br#""}"#].concat();
    let members = [b"{", br#""a":1,"#.repeat(ten / 6).as_slice(), br#""Command":"agent.ping"}"#].concat();
    let rows: [(&[u8], &[u8]); 10] = [
        (&vec![b'{'; ten], BAD_JSON),
        (&br#"{"a":"#.repeat(ten / 5), BAD_JSON),
        (&[br#"{"a":"#, vec![b'['; ten].as_slice()].concat(), BAD_JSON),
        (&vec![0; ten], BAD_JSON),
        (&vec![0xff; ten], BAD_JSON),
        (&string, TOO_LONG),
        (&name, TOO_LONG),
        (&command, TOO_LONG),
        (&members, TOO_LONG),
        (&vec![b' '; ten], TOO_LONG),
    ];
    for (request, response) in rows {
        beside_a_good_client(&agent, || assert_bytes(&agent.connect().ask(request), response, &Shown(request)));
    }
}

#[test]
fn a_flood_without_end_is_not_taken_in_for_ever() {
    let agent = PinnedAgent::start();
    // As much as is taken in, nearly, and far more.
    let most = vec![b'{'; 30 << 20];
    assert_bytes(&agent.connect().ask(&most), BAD_JSON, &"30 MiB");
    let mut client = agent.connect();
    let written = client.write(&most).and_then(|()| client.write(&most));
    assert!(written.is_err(), "60 MiB were taken");
    assert_bytes(&agent.connect().ask(PING), PONG, &"a good client");
}

#[test]
fn a_trickle_on_a_pipe_ends_with_the_time_for_it() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lodger"));
    command.args(["serve", "--listen", "stdio:,proto=google"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::null()).spawn().expect("lodger");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(b"x}").expect("it reads");
    let start = Instant::now();
    // Until nobody reads any more.
    while stdin.write_all(b"x").is_ok() {
        assert!(start.elapsed() < PATIENCE, "it is read for ever");
        std::thread::sleep(Duration::from_millis(30));
    }
    assert!(child.wait().is_ok());
}

#[test]
fn many_long_requests_cost_no_more_than_the_limit_says() {
    let agent = PinnedAgent::start();
    let before = status(agent.pid(), "VmHWM");
    let flood = [br#"{"a":""#, vec![b'a'; REQUEST_MAX - 7].as_slice()].concat();
    let mut clients: Vec<_> = (0..8).map(|_| agent.connect()).collect();
    clients.iter_mut().for_each(|client| client.write(&flood).expect("it reads up to the limit"));
    assert_bytes(&agent.connect().ask(PING), PONG, &"a good client");
    clients.iter_mut().for_each(|client| client.end_writing());
    for client in &mut clients {
        assert_bytes(&client.rest(), CONNECTION_ERROR, &"a flood that ended");
    }
    // A buffer that doubles itself has at most twice what is in it, and for a moment the old one beside the new one.
    let grown = status(agent.pid(), "VmHWM").saturating_sub(before);
    assert!(grown < 8 * 3 * 1024 + 4096, "{grown} kB for 8 requests of 1 MiB");
}

#[test]
fn the_limit_counts_up_to_and_with_the_last_brace() {
    let agent = PinnedAgent::start();
    let request = |length: usize| {
        let (start, end) = (r#"{"a":""#, r#"","Command":"nobody"}"#);
        format!("{start}{}{end}", "x".repeat(length - start.len() - end.len())).into_bytes()
    };
    let behind = |length: usize| [request(length).as_slice(), b"\n  garbage"].concat();
    let rows = [
        (request(REQUEST_MAX - 1), NO_HANDLER),
        (request(REQUEST_MAX), NO_HANDLER),
        (behind(REQUEST_MAX), NO_HANDLER),
        (request(REQUEST_MAX + 1), TOO_LONG),
        (behind(REQUEST_MAX + 1), TOO_LONG),
        // White space in front counts, and what is not complete is too long as soon as it is longer.
        ([b" ", request(REQUEST_MAX).as_slice()].concat(), TOO_LONG),
        (vec![b' '; REQUEST_MAX + 1], TOO_LONG),
        (request(2 * REQUEST_MAX)[..REQUEST_MAX + 1].to_vec(), TOO_LONG),
    ];
    for (request, response) in rows {
        assert_bytes(&agent.connect().ask(&request), response, &Shown(&request));
    }
}

#[test]
fn the_limit_is_what_the_settings_say() {
    let mut monitor = Monitor::with_echo();
    monitor.settings.request_max = PING.len();
    assert_bytes(&monitor.ask(PING), PONG, &"at the limit");
    monitor.settings.request_max = PING.len() - 1;
    let why = br#"{"Status":107,"StatusMessage":"The request is longer than the limit of 23 bytes"}"#;
    assert_bytes(&monitor.ask(PING), why, &"one past it");
    assert_bytes(&monitor.ask(b"{}"), NO_HANDLER, &"a short one");
}

#[test]
fn odd_bytes_are_each_answered_beside_a_good_client() {
    let agent = PinnedAgent::start();
    let argument = br#"{"Status":10,"StatusMessage":"a: no such argument"}"#;
    let nested = |depth: usize| format!(r#"{{"a":{}{}}}"#, "[".repeat(depth), "]".repeat(depth)).into_bytes();
    let rows: [(&[u8], &[u8]); 9] = [
        (b"\0", BAD_JSON),
        (b"\0\0\0\0{\"Command\":\"agent.ping\"}", BAD_JSON),
        (b"{\"Command\":\"agent.ping\0\"}", BAD_JSON),
        (b"{\"Command\"\0:\"agent.ping\"}", BAD_JSON),
        (b"{\"Command\":\"agent.ping\",\"a\":\"\xff\xfe\x80\xc0\xc1\xf5\"}", argument),
        (b"{\"Command\":\"agent.ping\",\xff:1}", BAD_JSON),
        (&nested(9_999), NO_HANDLER),
        (&nested(10_000), BAD_JSON),
        (&nested(100_000), BAD_JSON),
    ];
    beside_a_good_client(&agent, || {
        for (request, response) in rows {
            assert_bytes(&agent.connect().ask(request), response, &Shown(request));
        }
    });
}

#[test]
fn no_request_within_the_limit_makes_much_more_of_itself() {
    let filled = |open: &str, piece: &str, close: &str| {
        let count = (REQUEST_MAX - open.len() - close.len()) / piece.len();
        format!("{open}{}{close}", piece.repeat(count)).into_bytes()
    };
    let rows = [
        filled(r#"{"Command":"nobody","a":[0"#, r#",{"":0}"#, "]}"),
        filled(r#"{"Command":"agent.ping","a":[0"#, ",0", "]}"),
        filled(r#"{"Command":"agent.ping","a":[0"#, ",[0]", "]}"),
        filled(r#"{"Command":"agent.ping","a":[0"#, r#",{"":0}"#, "]}"),
        filled(r#"{"Command":"agent.ping","a":""#, r"\u0000", r#""}"#),
    ];
    for request in rows {
        let agent = PinnedAgent::start();
        beside_a_good_client(&agent, || {
            let response = agent.connect().ask(&request);
            assert!(response.starts_with(br#"{"Status":1"#), "{:?}: {:?}", Shown(&request), Shown(&response));
        });
    }
}

#[test]
fn deep_arguments_do_not_use_up_the_stack_of_a_thread() {
    let agent = PinnedAgent::start();
    for depth in [100, 126, 127, 128, 129, 9_999] {
        for (open, close) in [("[", "]"), (r#"{"a":["#, "]}")] {
            let depth = depth / open.bytes().filter(|byte| b"[{".contains(byte)).count();
            let (open, close) = (open.repeat(depth), close.repeat(depth));
            let request = format!(r#"{{"Command":"agent.ping","a":{open}{close}}}"#);
            let response = agent.connect().ask(request.as_bytes());
            assert!(response.starts_with(br#"{"Status":1"#), "{depth}: {:?}", Shown(&response));
        }
    }
    assert_bytes(&agent.connect().ask(PING), PONG, &"the next call");
}

#[test]
fn clients_that_go_away_at_any_byte_leave_nothing_behind() {
    let agent = PinnedAgent::start();
    let before = agent.settled();
    beside_a_good_client(&agent, || {
        for length in (0..=PING.len()).chain(0..=PING.len()) {
            let mut client = agent.connect();
            client.write(&PING[..length]).expect("it reads");
            drop(client);
        }
    });
    wait_until("everything is given back", || agent.numbers() == before);
}
