//! `process.list`, `process.signal` and `process.run`, asked of a real agent.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use lodger::commands::table::Table;
use lodger::proto::settings::Settings;
use lodger::proto::{self, Circumstances, Opening};
use lodger::stream::Stream;
use support::{Agent, Folder, lives, status, wait_until};

/// A program that ends with the test.
struct Guard(Child);

impl Guard {
    fn start(command: &mut Command) -> Guard {
        Guard(command.stdin(Stdio::null()).spawn().expect("the program starts"))
    }

    /// The signal that ended it.
    fn signal(&mut self) -> Option<i32> {
        self.0.wait().expect("our child").signal()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn sleeper() -> Guard {
    Guard::start(Command::new("sleep").arg("100"))
}

/// The whole answer to a request of these members.
fn call(agent: &Agent, name: &str, arguments: Value) -> Value {
    let mut socket = send(agent, name, arguments);
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).expect("an answer");
    serde_json::from_slice(&answer).expect("JSON")
}

fn send(agent: &Agent, name: &str, mut arguments: Value) -> UnixStream {
    let mut socket = UnixStream::connect(&agent.socket).expect("the agent accepts");
    socket.set_read_timeout(Some(support::PATIENCE)).expect("a time-out");
    arguments["Command"] = json!(name);
    socket.write_all(arguments.to_string().as_bytes()).expect("the agent reads");
    socket
}

fn run(agent: &Agent, script: &str, mut arguments: Value) -> Value {
    arguments["argv"] = json!(["sh", "-c", script]);
    let answer = call(agent, "process.run", arguments);
    assert_eq!(answer["Status"], 0, "{answer}");
    answer
}

/// Sends the arguments and gives status and text.
fn refusal(agent: &Agent, name: &str, arguments: Value) -> (u64, String) {
    let answer = call(agent, name, arguments);
    let text = answer["StatusMessage"].as_str().expect("a text").to_owned();
    (answer["Status"].as_u64().expect("a number"), text)
}

#[test]
fn the_list_says_what_a_process_is() {
    let agent = Agent::start();
    // It waits for its input, which ends with it, and starts nobody else.
    let mut command = Command::new("sh");
    command.args(["-c", "read line; exit", "a (b) c"]).process_group(0).stdin(Stdio::piped());
    let child = Guard(command.spawn().expect("the program starts"));
    let pid = child.0.id();
    // The shell is there before it has become one.
    wait_until("it is a shell", || {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| words.starts_with(b"sh\0"))
    });
    let answer = call(&agent, "process.list", json!({}));
    assert_eq!((&answer["Status"], &answer["truncated"]), (&json!(0), &json!(false)));
    let find = |pid: u32| {
        let list = answer["processes"].as_array().expect("a list");
        list.iter().find(|process| process["pid"] == pid).cloned().unwrap_or_default()
    };
    let found = find(pid);
    assert_eq!(found["parent_pid"], std::process::id());
    assert_eq!(found["group"], pid);
    assert_eq!(found["session"], find(std::process::id())["session"]);
    assert_eq!(found["command"], json!(["sh", "-c", "read line; exit", "a (b) c"]));
    assert_eq!(found["uid"], find(std::process::id())["uid"]);
    assert_eq!(found["threads"], 1);
    assert!(found["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 4096), "{found}");
    assert!(find(agent.pid())["name"] == "lodger" && found["state"].as_str().is_some_and(|state| state.len() == 1));
    let unknown = refusal(&agent, "process.list", json!({"all": true}));
    assert_eq!(unknown, (10, "all: no such argument".to_owned()));
}

#[test]
fn signals_go_by_name_and_number_to_process_group_and_session() {
    let agent = Agent::start();
    // None of those that a test started by nohup(1) or in a shell's background would pass on as ignored: HUP, INT, QUIT.
    for (signal, number, name) in [
        (json!("usr1"), 10, "SIGUSR1"),
        (json!("SIGALRM"), 14, "SIGALRM"),
        (json!(9), 9, "SIGKILL"),
        (json!("12"), 12, "SIGUSR2"),
    ] {
        let mut child = sleeper();
        let answer = call(&agent, "process.signal", json!({"pid": child.0.id(), "signal": signal}));
        assert_eq!(answer, json!({"Status": 0, "StatusMessage": "", "signal": number, "signal_name": name}));
        assert_eq!(child.signal(), Some(number));
    }
    let mut child = sleeper();
    let looked = call(&agent, "process.signal", json!({"pid": child.0.id(), "signal": 0}));
    assert_eq!(looked, json!({"Status": 0, "StatusMessage": "", "signal": 0}));
    assert!(lives(child.0.id()));
    call(&agent, "process.signal", json!({"pid": child.0.id()}));
    assert_eq!(child.signal(), Some(15), "TERM is what is meant");

    let mut leader = Guard::start(Command::new("sleep").arg("100").process_group(0));
    let group = leader.0.id();
    let mut member = Guard::start(Command::new("sleep").arg("100").process_group(group as i32));
    assert_eq!(call(&agent, "process.signal", json!({"group": group, "signal": "USR1"}))["Status"], 0);
    assert_eq!((leader.signal(), member.signal()), (Some(10), Some(10)));

    let folder = Folder::new();
    // A session of its own, which that of the leader does not count: setsid leads no group here, and so becomes the program itself.
    let script = format!("setsid sleep 0; sleep 100 & echo $! > {}; wait", folder.path("pid").display());
    let mut leader = Guard::start(Command::new("setsid").args(["sh", "-c", &script]));
    let session = leader.0.id();
    let other = || fs::read_to_string(folder.path("pid")).ok().and_then(|text| text.trim().parse().ok());
    wait_until("both run", || other().is_some_and(lives));
    let answer = call(&agent, "process.signal", json!({"session": session, "signal": "KILL"}));
    assert_eq!(answer["signalled"], 2, "{answer}");
    assert_eq!(leader.signal(), Some(9));
    let other = other().expect("a number");
    wait_until("the other is gone too", || !lives(other));
    let none = refusal(&agent, "process.signal", json!({"session": session}));
    assert_eq!(none, (14, format!("signal session {session}: no such process")));
}

#[test]
fn signals_that_make_no_sense_are_refused() {
    let agent = Agent::start();
    let mut child = sleeper();
    let pid = child.0.id();
    let refused = |arguments: Value, code: u64, text: &str| {
        assert_eq!(refusal(&agent, "process.signal", arguments), (code, text.to_owned()));
    };
    refused(json!({}), 11, "pid, group or session: is missing");
    refused(json!({"pid": pid, "group": pid}), 12, "pid, group, session: only one of them is wanted");
    refused(json!({"pid": 1, "signal": 0}), 12, "pid: 1 is the system itself, which ends by system.shutdown");
    refused(json!({"group": 1, "signal": 0}), 12, "group: 1 is the system itself, which ends by system.shutdown");
    refused(json!({"session": 1, "signal": 0}), 12, "session: 1 is the system itself, which ends by system.shutdown");
    refused(json!({"pid": 0, "signal": 0}), 12, "pid: a number above 1 is wanted, and not 0");
    refused(json!({"group": -1, "signal": 0}), 12, "group: a number above 1 is wanted, and not -1");
    let range = "pid: a whole number in its range is wanted, and not 2147483648";
    refused(json!({"pid": 2147483648u64, "signal": 0}), 12, range);
    for (signal, text) in [(json!("NOPE"), "NOPE"), (json!(65), "65"), (json!(-1), "-1"), (json!(""), "")] {
        let wanted = format!("signal: a name or a number from 0 to 64 is wanted, and not {text}");
        refused(json!({"pid": pid, "signal": signal}), 12, &wanted);
    }
    refused(json!({"pid": pid, "signal": 9, "sig": 1}), 10, "sig: no such argument");
    assert!(lives(pid), "nothing was done");
    child.0.kill().and_then(|()| child.0.wait()).expect("our child");
    refused(json!({"pid": pid, "signal": 0}), 14, &format!("signal process {pid}: no such process"));
}

#[test]
fn a_run_gives_status_and_output() {
    let agent = Agent::start();
    let answer = run(&agent, "echo out; echo err >&2; exit 3", json!({}));
    let wanted = json!({
        "Status": 0, "StatusMessage": "", "exit_code": 3, "timed_out": false,
        "stdout": "out\n", "stdout_truncated": false, "stderr": "err\n", "stderr_truncated": false,
    });
    assert_eq!(answer, wanted);
    let killed = run(&agent, "kill -SEGV $$", json!({}));
    assert_eq!((&killed["signal"], &killed["signal_name"]), (&json!(11), &json!("SIGSEGV")));
    assert!(killed.get("exit_code").is_none());
    let bytes = run(&agent, r"printf '\377\000'", json!({}));
    assert_eq!((&bytes["stdout_base64"], &bytes["stderr"]), (&json!("/wA="), &json!("")));
    assert!(bytes.get("stdout").is_none());
}

#[test]
fn a_run_takes_place_environment_user_and_input() {
    let agent = Agent::start_with(|command| {
        command.env("OLD", "1").env("BOTH", "1");
    });
    let added = run(&agent, "echo $OLD $BOTH $NEW; pwd", json!({"env": {"BOTH": "2", "NEW": "a=b c"}, "cwd": "/usr"}));
    assert_eq!(added["stdout"], "1 2 a=b c\n/usr\n");
    let arguments = json!({"argv": ["env"], "clear_env": true, "env": {"A": "1"}});
    assert_eq!(call(&agent, "process.run", arguments)["stdout"], "A=1\n");
    assert_eq!(call(&agent, "process.run", json!({"argv": ["env"], "clear_env": true}))["stdout"], "");
    assert_eq!(run(&agent, "cat", json!({"stdin": "täxt"}))["stdout"], "täxt");
    assert_eq!(run(&agent, "cat", json!({"stdin_base64": "/wA="}))["stdout_base64"], "/wA=");
    assert_eq!(run(&agent, "cat", json!({}))["stdout"], "", "no input is its end");
    if status(agent.pid(), "Uid") == 0 {
        assert_eq!(run(&agent, "id -u; id -g", json!({"user": "4242:17"}))["stdout"], "4242\n17\n");
    }
}

#[test]
fn a_run_that_makes_no_sense_is_refused() {
    let agent = Agent::start();
    let refused = |arguments: Value, code: u64, text: &str| {
        assert_eq!(refusal(&agent, "process.run", arguments), (code, text.to_owned()));
    };
    let echo = |name: &str, value: Value| json!({"argv": ["echo"], name: value});
    refused(json!({}), 11, "argv: is missing");
    refused(json!({"argv": "echo"}), 12, "argv: a list of texts is wanted");
    refused(json!({"argv": []}), 12, "argv: the program is missing");
    refused(json!({"argv": [""]}), 14, "no program is named");
    refused(json!({"argv": ["no-such-one"]}), 14, "no-such-one: not found on the guest's PATH");
    refused(json!({"argv": ["/no/such"]}), 14, "execute /no/such: no such file or directory");
    refused(json!({"argv": ["/etc/passwd"]}), 15, "execute /etc/passwd: permission denied");
    refused(
        json!({"argv": ["echo", "a\0b"]}),
        12,
        "execute /bin/echo: invalid argument".replace("/bin/echo", &which("echo")).as_str(),
    );
    refused(echo("cwd", json!("/no/such")), 14, "change to directory /no/such: no such file or directory");
    refused(echo("user", json!("no-such-user")), 12, "user no-such-user: no such user");
    refused(echo("env", json!(["A=1"])), 12, "env: an object of texts is wanted");
    refused(echo("env", json!({"A": 1})), 12, "env: an object of texts is wanted");
    refused(echo("env", json!({"A=B": "1"})), 12, "env: \"A=B\" cannot be set");
    refused(echo("env", json!({"": "1"})), 12, "env: \"\" cannot be set");
    refused(echo("env", json!({"A": "\0"})), 12, "env: \"A\" cannot be set");
    refused(echo("clear_env", json!(1)), 12, "clear_env: true or false is wanted");
    refused(echo("stdin_base64", json!("x")), 12, "stdin_base64: invalid length at 0");
    refused(
        json!({"argv": ["cat"], "stdin": "", "stdin_base64": ""}),
        12,
        "stdin, stdin_base64: only one of them is wanted",
    );
    for seconds in [0, 86401] {
        let text = format!("timeout_seconds: a number from 1 to 86400 is wanted, and not {seconds}");
        refused(echo("timeout_seconds", json!(seconds)), 12, &text);
    }
    let text = "output_max_bytes: a number from 0 to 1048576 is wanted, and not 1048577";
    refused(echo("output_max_bytes", json!(1048577)), 12, text);
    refused(json!({"argv": ["touch", "/no/where"], "x": 1}), 10, "x: no such argument");
    assert_eq!(run(&agent, "exit 0", json!({"timeout_seconds": 86400, "output_max_bytes": 1048576}))["exit_code"], 0);
}

fn which(name: &str) -> String {
    let output =
        Command::new("sh").args(["-c", &format!("command -v {name}; which {name}")]).output().expect("a shell");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().find(|line| line.starts_with('/')).unwrap_or_default().to_owned()
}

#[test]
fn output_is_cut_at_its_limit_and_never_within_a_character() {
    let agent = Agent::start();
    let cut = |script: &str, max: usize| {
        let answer = run(&agent, script, json!({"output_max_bytes": max}));
        (answer["stdout"].as_str().unwrap_or("bytes").to_owned(), answer["stdout_truncated"].as_bool())
    };
    assert_eq!(cut("printf 1234", 4), ("1234".to_owned(), Some(false)));
    assert_eq!(cut("printf 12345", 4), ("1234".to_owned(), Some(true)));
    assert_eq!(cut("printf 1", 0), (String::new(), Some(true)));
    assert_eq!(cut("printf 123ä5", 4), ("123".to_owned(), Some(true)));
    assert_eq!(cut("printf '123\\303'", 4), ("bytes".to_owned(), Some(false)), "it ended so itself");
    let usual =
        run(&agent, "head -c 65537 /dev/zero | tr '\\0' x; head -c 65536 /dev/zero | tr '\\0' y >&2", json!({}));
    assert_eq!((usual["stdout"].as_str().map(str::len), &usual["stdout_truncated"]), (Some(65536), &json!(true)));
    assert_eq!((usual["stderr"].as_str().map(str::len), &usual["stderr_truncated"]), (Some(65536), &json!(false)));
}

#[test]
fn a_flood_neither_stops_nor_fills_the_agent() {
    let agent = Agent::start();
    let flood = run(&agent, "head -c 100000000 /dev/zero; echo $? >&2", json!({}));
    assert_eq!((&flood["exit_code"], &flood["stderr"]), (&json!(0), &json!("0\n")));
    assert_eq!(flood["stdout_truncated"], true);
    let peak = status(agent.pid(), "VmHWM");
    assert!(peak < 32 << 10, "{peak} kB");
}

#[test]
fn a_mebibyte_of_input_comes_back_whole() {
    let text: String = (0..(1 << 20)).map(|index: u32| char::from(b'a' + (index % 23) as u8)).collect();
    let settings = Settings { request_max: 2 << 20, ..Settings::with(Table::of_agent()) };
    let (mut ours, theirs) = UnixStream::pair().expect("a pair");
    let (stop, _never) = lodger::sys::fd::pipe().expect("a pipe");
    let agent = thread::spawn(move || {
        let stop = std::os::fd::AsFd::as_fd(&stop);
        let circumstances =
            Circumstances { pinned: None, opening: Opening::Peer, stop, accepted: Instant::now(), settings: &settings };
        proto::serve(Stream::over(theirs), &[], &circumstances)
    });
    let request = json!({"Command": "process.run", "argv": ["cat"], "stdin": text, "output_max_bytes": 1 << 20});
    ours.write_all(request.to_string().as_bytes()).expect("the agent reads");
    let mut answer = Vec::new();
    ours.read_to_end(&mut answer).expect("an answer");
    agent.join().expect("no panic").expect("no error");
    let answer: Value = serde_json::from_slice(&answer).expect("JSON");
    assert!(answer["stdout"] == text.as_str() && answer["stdout_truncated"] == false);
}

#[test]
fn input_that_nobody_reads_is_no_error() {
    let agent = Agent::start();
    let text = "x".repeat(300_000);
    assert_eq!(run(&agent, "exit 4", json!({"stdin": text}))["exit_code"], 4);
    assert_eq!(run(&agent, "sleep 0.05; exit 5", json!({"stdin": text}))["exit_code"], 5);
}

#[test]
fn a_time_limit_ends_what_ignores_signals_and_keeps_its_output() {
    let agent = Agent::start();
    let start = Instant::now();
    let script = "trap '' HUP TERM INT; echo $$; while :; do sleep 9; done";
    let answer = run(&agent, script, json!({"timeout_seconds": 1}));
    assert!(start.elapsed() >= Duration::from_secs(1) && start.elapsed() < Duration::from_secs(8));
    assert_eq!((&answer["timed_out"], &answer["signal_name"]), (&json!(true), &json!("SIGKILL")));
    let pid = answer["stdout"].as_str().and_then(|text| text.trim().parse().ok()).expect("its number");
    assert!(!lives(pid));
}

#[test]
fn a_grandchild_that_keeps_the_output_open_delays_no_answer() {
    let agent = Agent::start();
    let start = Instant::now();
    let answer = run(&agent, "setsid sleep 60 & echo $!", json!({}));
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    assert_eq!((&answer["exit_code"], &answer["timed_out"]), (&json!(0), &json!(false)));
    let pid: u32 = answer["stdout"].as_str().and_then(|text| text.trim().parse().ok()).expect("its number");
    assert_eq!(call(&agent, "process.signal", json!({"pid": pid, "signal": 9}))["Status"], 0, "it was left alone");
}

#[test]
fn a_caller_that_goes_ends_its_program_and_so_does_the_agents_end() {
    let agent = Agent::start();
    let start = |name: &str| {
        let file = agent.folder.path(name);
        let script = format!("trap '' HUP; sleep 100 & echo $$ $! > {0}.new; mv {0}.new {0}; wait", file.display());
        let socket = send(&agent, "process.run", json!({"argv": ["sh", "-c", script]}));
        wait_until("it runs", || file.exists());
        let text = fs::read_to_string(&file).expect("its numbers");
        (socket, text.split_whitespace().map(|pid| pid.parse().expect("a number")).collect::<Vec<u32>>())
    };
    let (socket, pids) = start("first");
    assert!(pids.len() == 2 && pids.iter().all(|pid| lives(*pid)));
    drop(socket);
    wait_until("both are gone", || !pids.iter().any(|pid| lives(*pid)));

    let (mut socket, pids) = start("second");
    lodger::sys::signal::send(agent.pid() as i32, lodger::sys::signal::SIGTERM).expect("our agent");
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).expect("an answer");
    let answer: Value = serde_json::from_slice(&answer).expect("JSON");
    assert_eq!((&answer["Status"], &answer["StatusMessage"]), (&json!(18), &json!("run sh: the agent ends")));
    // SIGKILL was sent before the answer; a busy machine takes a moment to carry it out.
    wait_until("both are gone", || !pids.iter().any(|pid| lives(*pid)));
}
