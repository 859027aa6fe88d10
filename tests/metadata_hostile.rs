//! The guest's side of the metadata service with hosts and tasks that make it hard to be correct.
#![cfg(feature = "metadata")]

#[path = "support/host.rs"]
mod host;
mod support;

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lodger::http::connection::Connection;
use lodger::metaservice::Kind;
use lodger::proto::metadata::{Ended, Timers};
use lodger::sys::process::effective_user;
use lodger::sys::signal;

use host::{Host, limits, outcome, run_with, sh, short};
use support::{pause, wait_until};

/// Whether a process is there, and no zombie.
fn lives(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

// --- The end of the task ---

#[test]
fn a_kill_ends_what_delays_the_result_of_a_task_that_has_ended() {
    // The first one stays in the session; the second one leaves it, and nobody knows whose it is.
    for holder in ["(while :; do echo x; sleep 0.05; done) &", "setsid sh -c 'while :; do echo x; sleep 0.05; done' &"]
    {
        let host = Host::new(sh(&format!("trap '' HUP; {holder} echo $!; sleep 0.3; exit 0")));
        let _guest = host.guest(&[]);
        wait_until("it runs", || host.log().contains("x\r\n"));
        pause(Duration::from_secs(2));
        let start = Instant::now();
        host.reply(&host.ask(Kind::KillProcess, "", &[], false));
        wait_until("the result comes", || host.requests().iter().any(|request| request.starts_with("PUT")));
        assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
        // Its number stands before or behind the first of its words.
        let holder = host.log().lines().find_map(|line| line.trim().parse().ok()).expect("a number");
        let _ = signal::send(holder, signal::SIGKILL);
    }
}

#[test]
fn what_holds_the_terminal_and_is_slow_to_write_is_in_the_log() {
    let host = Host::new(sh("trap '' HUP; setsid sh -c 'sleep 1.5; echo late' & sleep 0.2; exit 0"));
    let _guest = host.guest(&[]);
    wait_until("the result comes", || host.has_heard("PUT success"));
    assert_eq!(host.log(), "late\r\n");
}

#[test]
fn a_terminal_that_no_part_of_the_task_has_open_may_be_opened_again() {
    let script = "exec </dev/null >/dev/null 2>&1; sleep 1; seq 1 5000 >/dev/tty; sleep 0.5; echo end >/dev/tty";
    let host = Host::new(sh(script));
    let guest = host.guest(&[]);
    wait_until("the result comes", || host.has_heard("PUT success"));
    let numbers = (1..=5000).map(|number| format!("{number}\r\n")).collect::<String>() + "end\r\n";
    assert!(host.log() == numbers, "{} bytes", host.log().len());
    assert!(guest.ticks() < 60, "{} ticks", guest.ticks());
}

#[test]
fn a_guest_that_is_ended_leaves_nothing_of_the_task() {
    let file =
        "setsid sh -c 'trap \"\" HUP; echo $$ > FILE.new; mv FILE.new FILE; while :; do sleep 1; done' & sleep 60";
    let folder = support::Folder::new();
    let file_path = folder.path("pid");
    let host = Host::new(sh(&file.replace("FILE", &file_path.display().to_string())));
    let mut guest = host.guest(&[]);
    wait_until("it runs", || file_path.exists());
    let pid = fs::read_to_string(&file_path).expect("a number");
    let _ = signal::send(guest.0.id() as i32, signal::SIGTERM);
    assert_eq!(guest.wait().code(), Some(0));
    assert!(!lives(&pid));
}

#[test]
fn a_kill_does_not_wait_for_a_host_that_takes_no_log() {
    let host = Host::with(sh("yes"), |shared, request, _| {
        while request.path == "/engine/v1/log" && !shared.over.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    });
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pause(Duration::from_secs(1));
            host.ask(Kind::KillProcess, "", &[], false);
        });
        let timers = Timers { log_patience: Duration::from_secs(5), ..short() };
        assert_eq!(run_with(&host, timers), Ended::Task { success: false });
    });
    assert!(start.elapsed() < Duration::from_secs(9), "{:?}", start.elapsed());
}

// --- The log ---

/// How the guest fares with a host that does this with each of its logs, counted from 0; false: it is taken.
fn with_log(
    script: &str,
    timers: Timers,
    act: impl Fn(usize, &mut Connection) -> bool + Send + Sync + 'static,
) -> Host {
    let count = AtomicUsize::new(0);
    let host = Host::with(sh(script), move |_, request, connection| {
        request.path == "/engine/v1/log" && act(count.fetch_add(1, Ordering::SeqCst), connection)
    });
    assert_eq!(run_with(&host, timers), Ended::Task { success: true });
    host
}

#[test]
fn a_host_that_is_slow_while_the_program_runs_gets_the_log_whole() {
    let host = with_log("head -c 2000000 /dev/zero; sleep 3", short(), |_, _| {
        pause(Duration::from_secs(2));
        false
    });
    assert_eq!((host.log().len(), host.shared.logs.load(Ordering::SeqCst)), (2_000_000, 1));
}

#[test]
fn an_interim_response_that_nobody_has_asked_for_leaves_the_log_whole() {
    let host = with_log("for n in 1 2 3; do echo $n; sleep 0.3; done", short(), |_, connection| {
        for status in [100, 102] {
            connection.respond_head(status, &[], limits()).expect("a guest");
        }
        false
    });
    assert_eq!((host.log().as_str(), host.shared.logs.load(Ordering::SeqCst)), ("1\r\n2\r\n3\r\n", 1));
}

#[test]
fn a_mark_on_a_connection_that_dies_is_made_again() {
    let host = with_log("for n in 1 2 3 4 5 6; do echo $n; sleep 0.4; done", short(), |number, connection| {
        if number == 0 {
            let mut body = connection.body();
            let _ = connection.read_body(&mut body, &mut [0; 99], limits());
        }
        // What is sent meanwhile is with the kernel, and nobody reads it.
        pause(Duration::from_millis(300));
        number < 2
    });
    let log = host.log();
    assert!(log.starts_with("\r\n[lodger: the connection of this log broke here;") && log.ends_with("6\r\n"), "{log}");
}

#[test]
fn the_number_of_lost_bytes_on_a_connection_that_dies_is_said_again() {
    let script = "head -c 9000000 /dev/zero; sleep 4; echo end";
    let host = with_log(script, short(), |number, _| {
        pause(Duration::from_millis(if number == 0 { 2500 } else { 300 }));
        number < 2
    });
    let log = host.log();
    let lost = log.find(" bytes of this log are missing here]").expect("a number");
    let number: usize = log[..lost].rsplit(' ').next().expect("a word").parse().expect("a number");
    assert!(number > 4_000_000 && log.ends_with("end\r\n"), "{number}");
}

#[test]
fn an_answer_before_the_end_of_a_file_ends_its_sending() {
    let gone = Arc::new(AtomicBool::new(false));
    let is_gone = Arc::clone(&gone);
    let host = Host::with(sh("sleep 60"), move |shared, request, connection| {
        if request.path != "/engine/v1/reply" {
            return false;
        }
        let _ = connection.respond_head(400, &[("Content-Length", "0")], limits());
        while !connection.peer_hung_up() && !shared.over.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        is_gone.store(true, Ordering::SeqCst);
        true
    });
    let _guest = host.guest(&[]);
    let path = host.folder.path("large");
    fs::File::create(&path).and_then(|file| file.set_len(1 << 30)).expect("a file");
    host.ask(Kind::GetArtifact, &path.display().to_string(), &[], false);
    wait_until("the guest gives up", || gone.load(Ordering::SeqCst));
}

// --- More than the guest can do at once ---

#[test]
fn a_kill_is_served_and_others_wait_while_as_many_shells_are_open_as_may_be() {
    let host = Host::new(sh("sleep 60"));
    let _guest = host.guest(&[]);
    let mut shells: Vec<_> = (0..32).map(|_| host.shell_stream(&["sleep", "60"], false)).collect();
    let waiting = host.ask(Kind::GetArtifact, "/no/such/file", &[], false);
    let start = Instant::now();
    host.reply(&host.ask(Kind::KillProcess, "", &[], false));
    wait_until("the result comes", || host.has_heard("PUT failed"));
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    assert!(!host.shared.replies.lock().expect("replies").iter().any(|reply| reply.id == waiting));
    shells.pop();
    host.reply(&waiting);
}

#[test]
fn a_guest_polls_on_when_no_more_actions_may_wait() {
    let host = Host::new(sh("sleep 60"));
    let _guest = host.guest(&[]);
    let shells: Vec<_> = (0..32).map(|_| host.shell_stream(&["sleep", "60"], false)).collect();
    // One more than may wait.
    let asked: Vec<String> = (0..33).map(|_| host.ask(Kind::GetArtifact, "/no/such/file", &[], false)).collect();
    host.reply(&host.ask(Kind::KillProcess, "", &[], false));
    drop(shells);
    asked[..32].iter().for_each(|id| drop(host.reply(id)));
    assert!(!host.shared.replies.lock().expect("replies").iter().any(|reply| reply.id == asked[32]));
}

#[test]
fn an_answer_to_a_poll_that_is_no_action_by_its_size_takes_no_memory() {
    let host = Host::new(sh("sleep 60"));
    let guest = host.guest(&[]);
    host.reply(&host.ask(Kind::GetArtifact, "/no/such/file", &[], false));
    let before = guest.memory_kib();
    let large = format!(r#"{{"id":"x","type":"none","z":[{}0]}}"#, "0,".repeat(4 << 20));
    host.shared.actions.lock().expect("actions").push_back(large);
    host.reply(&host.ask(Kind::GetArtifact, "/no/such/file", &[], false));
    let status = fs::read_to_string(format!("/proc/{}/status", guest.0.id())).expect("a process");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line");
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(peak < before + 8192, "{before} KiB before, {peak} at most");
}

#[test]
fn an_action_with_an_id_that_would_change_the_request_is_refused() {
    let host = Host::new(sh("true"));
    let _guest = host.guest(&[]);
    for id in ["a b", "a&id=b", "a\\r\\nX: y"] {
        let action = format!(r#"{{"id":"{id}","type":"list-folder","path":"/etc"}}"#);
        host.shared.actions.lock().expect("actions").push_back(action);
    }
    host.reply(&host.ask(Kind::GetArtifact, "/no/such/file", &[], false));
    assert_eq!(host.shared.replies.lock().expect("replies").len(), 1);
}

#[test]
fn a_reply_that_nobody_waits_for_any_more_is_not_sent_again() {
    let times = Arc::new(Mutex::new(Vec::new()));
    let all = Arc::clone(&times);
    let host = Host::with(sh("sleep 12"), move |_, request, connection| {
        if request.path == "/engine/v1/reply" {
            all.lock().expect("times").push(Instant::now());
            let _ = connection.respond(500, &[], b"", limits());
        }
        request.path == "/engine/v1/reply"
    });
    host.ask(Kind::ListFolder, "/no/such/folder", &[], false);
    let timers = Timers { reply: Duration::from_secs(3), ..Timers::default() };
    assert_eq!(run_with(&host, timers), Ended::Task { success: true });
    let times = times.lock().expect("times");
    let time = *times.last().expect("a reply") - times[0];
    assert!(times.len() > 2 && time < Duration::from_secs(8), "{} in {time:?}", times.len());
}

// --- Lists ---

#[test]
fn what_is_no_folder_is_not_found_where_its_path_does_not_fit() {
    let host = Host::new(sh("true"));
    let _guest = host.guest(&[]);
    let path = |name: &str| host.folder.path(name).display().to_string();
    fs::write(host.folder.path("file"), "").expect("a file");
    assert!(Command::new("mkfifo").arg(host.folder.path("fifo")).status().expect("mkfifo").success());
    for asked in [path("file") + "/", String::new(), path("fifo"), "/dev/null".to_owned(), path("file/x")] {
        let reply = host.reply(&host.ask(Kind::ListFolder, &asked, &[], false));
        assert_eq!(String::from_utf8_lossy(&reply.body), r#"{"files":[],"notFound":true}"#, "{asked:?}");
    }
}

#[test]
fn a_list_that_is_too_long_does_not_look_like_one() {
    let host = Host::new(sh("true"));
    let _guest = host.guest(&[]);
    // So deep that few files are enough: each path has about 2,900 bytes.
    let mut folder = host.folder.path("deep");
    for _ in 0..12 {
        folder.push("d".repeat(240));
    }
    fs::create_dir_all(&folder).expect("folders");
    for number in 0..3_800 {
        fs::write(folder.join(number.to_string()), "").expect("a file");
    }
    let asked = host.folder.path("deep").display().to_string();
    let reply = host.reply(&host.ask(Kind::ListFolder, &asked, &[], false));
    assert!(!reply.headers.iter().any(|(_, value)| value == "application/json"), "{:?}", reply.headers);
    assert_eq!(String::from_utf8_lossy(&reply.body), "the list is too long");
}

// --- Programs ---

#[test]
fn what_a_program_should_know_of_its_user_is_there_where_it_was_missing() {
    let host = Host::new(sh("echo \"[$HOME] [$USER] [$LOGNAME]\"; pwd; eval echo ~$USER"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_lodger"));
    command.args(["metadata", "run", "--host", &host.address(), "--exit-with-task", "0"]).env_clear();
    command.env("PATH", std::env::var_os("PATH").expect("a PATH"));
    assert!(command.status().expect("the guest").success());
    let log = host.log();
    let [variables, folder, home] = log.lines().collect::<Vec<_>>()[..] else { panic!("{log}") };
    let user = Command::new("id").arg("-un").output().expect("id").stdout;
    let user = String::from_utf8_lossy(&user).trim().to_owned();
    assert_eq!(variables.trim(), format!("[{}] [{user}] [{user}]", home.trim()));
    assert!(folder.trim() == home.trim() || folder.trim() == "/", "{log}");
}

#[test]
fn a_variable_that_cannot_be_passed_on_fails_the_task_by_name() {
    for (env, text) in
        [(r#""A":"x\u0000y""#, "\"A\": a NUL"), (r#""":"x""#, "\"\": a name"), (r#""A=B":"x""#, "\"A=B\": a name")]
    {
        let host = Host::new(format!(r#"{{"env":{{{env}}},"command":["true"]}}"#));
        assert_eq!(outcome(&host, &[]), Some(1));
        assert!(host.log().contains(text), "{}", host.log());
    }
}

#[test]
fn a_task_without_a_command_is_a_shell_on_a_terminal() {
    let host = Host::new(r#"{"env":null,"command":null}"#.to_owned());
    let guest = host.guest(&["--shell", "sh"]);
    let wanted = if fs::exists("/bin/bash").expect("a look") { "/bin/bash" } else { "sh" };
    let children = || {
        let path = format!("/proc/{0}/task", guest.0.id());
        let tasks = fs::read_dir(path).expect("a process").flatten();
        let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
        lists.flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect::<Vec<_>>()
    };
    let is_it = |pid: &String| {
        fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.trim_end_matches('\0') == wanted)
    };
    wait_until("the shell runs", || children().iter().any(is_it));
}

#[test]
fn an_agent_on_its_stdin_refuses_the_metadata_service() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lodger"));
    command.args(["serve", "--listen", "stdio:", "--metadata", "unix:/no/such/host"]);
    let output = command.stdin(std::process::Stdio::null()).output().expect("the agent");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("no metadata service"), "{text}");
}

#[test]
fn a_group_that_is_named_counts_for_root_and_nobody_else_may_name_another() {
    for user in ["0:1", "0", "1:1"] {
        let host = Host::new(sh("echo $(id -u):$(id -g)"));
        let code = outcome(&host, &["--user", user, "--workdir", "/"]);
        if effective_user() == 0 {
            let wanted = if user == "0" { "0:0" } else { user };
            assert_eq!((code, host.log()), (Some(0), format!("{wanted}\r\n")));
        } else if user != "1:1" || effective_user() != 1 {
            assert_eq!(code, Some(1));
            assert!(host.log().contains("only root"), "{}", host.log());
        }
    }
}
