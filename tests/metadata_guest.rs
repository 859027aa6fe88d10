//! The guest's side of the metadata service, as a process, against a small host that does what each test wants.
#![cfg(feature = "metadata")]

#[path = "support/host.rs"]
mod host;
mod support;

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lodger::metaservice::Kind;
use lodger::proto::metadata::Ended;
use lodger::sys::signal;

use host::{Guest, Host, limits, outcome, read_log, run_with, sh, short, task};
use lodger::websocket::socket::Message;
use support::{pause, wait_until};

// --- The task ---

#[test]
fn the_text_is_in_the_log_and_the_result_is_that_of_the_command() {
    for (end, code, result) in [("true", 0, "PUT success"), ("false", 1, "PUT failed")] {
        let host = Host::new(sh(&format!("echo \"$TEST_TEXT\" && {end}")));
        assert_eq!(outcome(&host, &[]), Some(code));
        assert_eq!(host.log(), "Hello World\r\n");
        assert_eq!(host.requests(), ["GET execute", "POST log", result]);
    }
}

#[test]
fn the_log_is_there_while_the_command_runs() {
    let host = Host::new(sh("echo \"$TEST_TEXT\"; sleep 20"));
    let _guest = host.guest(&[]);
    wait_until("the text arrives", || host.log().contains("Hello World\r\n"));
    assert!(!host.requests().iter().any(|request| request.starts_with("PUT")));
}

#[test]
fn the_log_is_opened_before_there_is_any() {
    let host = Host::new(sh("sleep 20"));
    let _guest = host.guest(&[]);
    wait_until("the log opens", || host.has_heard("POST log"));
}

#[test]
fn a_missing_program_folder_or_user_fails_with_a_line_in_the_log() {
    let host = Host::new(task(&["/no/such/program"]));
    assert_eq!(outcome(&host, &[]), Some(1));
    assert!(host.log().contains("/no/such/program: no such file"), "{}", host.log());
    for (options, text) in
        [(["--workdir", "/no/such/folder"], "/no/such/folder"), (["--user", "nobodyatall"], "nobodyatall")]
    {
        let host = Host::new(sh("echo never"));
        assert_eq!(outcome(&host, &options), Some(1));
        assert!(host.log().starts_with("lodger: ") && host.log().contains(text), "{}", host.log());
        assert!(host.has_heard("PUT failed"));
    }
}

#[test]
fn later_environments_win_and_shells_have_all_of_them() {
    let host = Host::new(sh("echo $TEST_TEXT/$A; pwd"));
    let folder = host.folder.0.display().to_string();
    let _guest = host.guest(&["-e", "TEST_TEXT=lost", "-e", "A=1", "--workdir", &folder]);
    wait_until("the result comes", || host.has_heard("PUT success"));
    assert_eq!(host.log(), format!("Hello World/1\r\n{folder}\r\n"));
    let (stdout, ..) = host.shell(&["sh", "-c", "echo $TEST_TEXT/$A; pwd"], false).run(b"", true);
    assert_eq!(stdout, format!("Hello World/1\n{folder}\n").as_bytes());
}

#[test]
fn the_entry_point_stands_in_front() {
    let host = Host::new(task(&["a", "b"]));
    assert_eq!(outcome(&host, &["--entrypoint", "echo", "--entrypoint", "in front"]), Some(0));
    assert_eq!(host.log(), "in front a b\r\n");
}

#[test]
fn a_kill_ends_the_task_and_what_it_has_started() {
    let host = Host::new(sh("sleep 20 & sleep 20; echo not reached"));
    let _guest = host.guest(&[]);
    wait_until("the log opens", || host.has_heard("POST log"));
    pause(Duration::from_millis(100));
    let start = Instant::now();
    let id = host.ask(Kind::KillProcess, "", &[], false);
    assert!(host.reply(&id).body.is_empty());
    wait_until("the result comes", || host.has_heard("PUT failed"));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    let again = host.ask(Kind::KillProcess, "", &[], false);
    host.reply(&again);
}

#[test]
fn a_task_that_ignores_signals_is_killed_all_the_same() {
    let host = Host::new(sh("trap '' TERM HUP; echo deaf; while :; do sleep 9; done"));
    let _guest = host.guest(&[]);
    wait_until("it runs", || host.log().contains("deaf"));
    let start = Instant::now();
    host.ask(Kind::KillProcess, "", &[], false);
    wait_until("the result comes", || host.has_heard("PUT failed"));
    assert!(start.elapsed() >= Duration::from_secs(4) && start.elapsed() < Duration::from_secs(9));
}

// --- Files ---

#[test]
fn files_are_sent_and_what_is_none_is_not_found_at_once() {
    let host = Host::new(sh("true"));
    let _guest = host.guest(&[]);
    let content: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    fs::write(host.folder.path("file"), &content).expect("a file");
    let status = Command::new("mkfifo").arg(host.folder.path("fifo")).status().expect("mkfifo");
    assert!(status.success());
    let path = |name: &str| host.folder.path(name).display().to_string();
    let id = host.ask(Kind::GetArtifact, &path("file"), &[], false);
    let reply = host.reply(&id);
    assert!(reply.whole && reply.body == content);
    assert!(!reply.headers.iter().any(|(name, _)| name == "content-type"));
    for missing in [path("missing"), path("fifo"), path(""), "/dev/zero".to_owned(), "/dev/tty".to_owned()] {
        let id = host.ask(Kind::GetArtifact, &missing, &[], false);
        let reply = host.reply(&id);
        let header = ("x-taskcluster-worker-error".to_owned(), "file-not-found".to_owned());
        assert!(reply.headers.contains(&header) && reply.body.is_empty(), "{missing}: {reply:?}");
    }
}

#[test]
fn a_file_that_cannot_be_read_breaks_its_body_off() {
    let host = Host::new(sh("true"));
    let guest = host.guest(&[]);
    // Opens, and fails to be read at address 0.
    let id = host.ask(Kind::GetArtifact, &format!("/proc/{}/mem", guest.0.id()), &[], false);
    assert!(!host.reply(&id).whole);
}

#[test]
fn folders_are_listed_in_order() {
    let host = Host::new(sh("true"));
    let _guest = host.guest(&[]);
    let path = |name: &str| host.folder.path(name).display().to_string();
    fs::create_dir_all(host.folder.path("d/sub-folder")).expect("a folder");
    fs::create_dir(host.folder.path("empty")).expect("a folder");
    fs::write(host.folder.path("d/hello.txt"), "").expect("a file");
    fs::write(host.folder.path("d/sub-folder/hello2.txt"), "").expect("a file");
    std::os::unix::fs::symlink("hello.txt", host.folder.path("d/link")).expect("a link");
    std::os::unix::fs::symlink("d", host.folder.path("linked")).expect("a link");
    let list = |asked: &str| {
        let reply = host.reply(&host.ask(Kind::ListFolder, asked, &[], false));
        assert!(reply.headers.contains(&("content-type".to_owned(), "application/json".to_owned())));
        String::from_utf8(reply.body).expect("text")
    };
    let d = path("d");
    let both = format!(r#"{{"files":["{d}/hello.txt","{d}/sub-folder/hello2.txt"],"notFound":false}}"#);
    assert_eq!(list(&d), both);
    assert_eq!(list(&format!("{d}/")), both);
    assert_eq!(list(&path("empty")), r#"{"files":[],"notFound":false}"#);
    assert_eq!(list(&path("linked")), r#"{"files":[],"notFound":false}"#);
    let linked = path("linked");
    let followed = format!(r#"{{"files":["{linked}/hello.txt","{linked}/sub-folder/hello2.txt"],"notFound":false}}"#);
    assert_eq!(list(&format!("{linked}/")), followed);
    assert_eq!(list(&path("missing")), r#"{"files":[],"notFound":true}"#);
    assert_eq!(list(&path("d/hello.txt/")), r#"{"files":[],"notFound":true}"#);
    assert_eq!(list(""), r#"{"files":[],"notFound":true}"#);
    assert_eq!(list(&path("d/hello.txt")), format!(r#"{{"files":["{d}/hello.txt"],"notFound":false}}"#));
}

#[test]
fn ten_thousand_files_leave_no_descriptor_behind() {
    let host = Host::new(sh("true"));
    let guest = host.guest(&[]);
    fs::write(host.folder.path("file"), "content").expect("a file");
    let path = host.folder.path("file").display().to_string();
    host.reply(&host.ask(Kind::GetArtifact, &path, &[], false));
    wait_until("the task has ended", || host.has_heard("PUT success"));
    pause(Duration::from_millis(300));
    let before = guest.descriptors();
    for _ in 0..10_000 {
        host.ask(Kind::GetArtifact, &path, &[], false);
    }
    let count = || host.shared.replies.lock().expect("replies").len();
    let start = Instant::now();
    while count() < 10_001 {
        assert!(start.elapsed() < Duration::from_secs(100), "{} so far", count());
        std::thread::sleep(Duration::from_millis(20));
    }
    wait_until("the descriptors are closed", || guest.descriptors() <= before);
}

// --- Shells ---

#[test]
fn a_shell_echoes_and_says_the_bytes_of_the_specification() {
    let host = Host::new(sh("sleep 20"));
    let _guest = host.guest(&[]);
    let mut shell = host.shell(&[], false);
    let (stdout, stderr, success) = shell.run(b"echo HELLO\n", true);
    assert_eq!((stdout.as_slice(), stderr.as_slice(), success), (&b"HELLO\n"[..], &b""[..], true));
    let mut said = shell.raw;
    let exit = said.pop().expect("an exit");
    said.sort();
    assert_eq!(said, [vec![0, 1], vec![0, 2], vec![1, 0, 0, 0, 0, 11]]);
    assert_eq!(exit, [5, 0]);
}

#[test]
fn a_shell_that_cannot_start_says_so() {
    let host = Host::new(sh("sleep 20"));
    let _guest = host.guest(&[]);
    for tty in [false, true] {
        let mut shell = host.shell(&["/no/such/program"], tty);
        assert!(!shell.run(b"", false).2);
        assert_eq!(shell.raw, [vec![0, 1], vec![0, 2], vec![5, 1]]);
    }
}

#[test]
fn many_bytes_come_back_unchanged() {
    let host = Host::new(sh("sleep 60"));
    let _guest = host.guest(&[]);
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let input: Vec<u8> = (0..(42 << 20) + 7).map(|_| random()).collect();
    let (stdout, stderr, success) = host.shell(&["sh", "-c", "exec cat -"], false).run(&input, true);
    assert!(stdout == input && stderr.is_empty() && success, "{} bytes", stdout.len());
    let (stdout, stderr, success) = host.shell(&["sh", "-c", "head -c 4194341 /dev/zero >&2"], false).run(b"", false);
    assert!(stderr == vec![0; (4 << 20) + 37] && stdout.is_empty() && success, "{} bytes", stderr.len());
}

#[test]
fn an_exit_waits_for_nobodys_input_and_for_no_background_process() {
    let host = Host::new(sh("sleep 20"));
    let _guest = host.guest(&[]);
    let start = Instant::now();
    let (stdout, _, success) = host.shell(&["sh", "-c", "setsid sleep 15 & echo done; exit 3"], false).run(b"", false);
    assert_eq!((stdout.as_slice(), success), (&b"done\n"[..], false));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn input_that_the_program_does_not_want_is_acknowledged() {
    let host = Host::new(sh("sleep 20"));
    let _guest = host.guest(&[]);
    let input = vec![b'x'; 500_000];
    let mut shell = host.shell(&["sh", "-c", "exec <&-; sleep 1; exit 0"], false);
    assert!(shell.run(&input, true).2);
    let acks = shell.raw.iter().filter(|message| message[0] == 1);
    let sum: u32 = acks.map(|ack| u32::from_be_bytes([ack[2], ack[3], ack[4], ack[5]])).sum();
    assert_eq!(sum, 500_000);
}

#[test]
fn a_shell_on_a_terminal_has_a_size_and_ends_with_its_input() {
    let host = Host::new(sh("sleep 20"));
    let _guest = host.guest(&[]);
    assert!(host.shell(&["sh", "-c", "exit 0"], true).run(b"", false).2);
    let mut shell = host.shell(&["sh", "-c", "read word; stty size; exec cat"], true);
    let size = shell.client.size(50, 100);
    assert_eq!(size, [3, 0, 50, 0, 100]);
    shell.send(size);
    let (stdout, stderr, success) = shell.run(b"go\n", true);
    let text = String::from_utf8_lossy(&stdout);
    assert!(text.contains("100 50\r\n"), "{text}");
    assert!(success && stderr.is_empty());
}

#[test]
fn an_abort_and_a_lost_connection_kill_the_shell_and_its_children() {
    let host = Host::new(sh("sleep 60"));
    let _guest = host.guest(&[]);
    for abort in [true, false] {
        let file = host.folder.path(if abort { "aborted" } else { "lost" });
        let script = format!("sleep 60 & echo $! > {0}.new; mv {0}.new {0}; wait", file.display());
        let mut shell = host.shell(&["sh", "-c", &script], false);
        wait_until("it runs", || file.exists());
        let pid = fs::read_to_string(&file).expect("a number").trim().to_owned();
        if abort {
            shell.send(vec![4]);
            let mut last = None;
            wait_until("it says its end", || {
                while let Ok(Some(message)) = shell.socket.receive() {
                    if let Message::Binary(bytes) = message {
                        last = Some(bytes);
                    }
                }
                last.is_some()
            });
            assert_eq!(last, Some(vec![5, 1]));
        } else {
            drop(shell);
        }
        let gone = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        };
        wait_until("the child is gone", gone);
    }
}

// --- What goes wrong ---

#[test]
fn a_log_whose_connection_breaks_is_continued() {
    let broken = AtomicBool::new(false);
    let host =
        Host::with(sh("echo first; sleep 1; echo second; sleep 1; echo third"), move |shared, request, connection| {
            if request.path != "/engine/v1/log" || broken.swap(true, Ordering::SeqCst) {
                return false;
            }
            let _ = read_log(shared, connection, 1);
            true
        });
    assert_eq!(outcome(&host, &[]), Some(0));
    let log = host.log();
    assert!(log.starts_with("first\r\n") && log.ends_with("second\r\nthird\r\n") && log.contains("[lodger: "), "{log}");
}

#[test]
fn a_lost_log_fails_the_task_where_that_is_wanted() {
    for (options, code) in [(&[][..], 0), (&["--fail-on-lost-log"][..], 1)] {
        let host = Host::with(sh("echo hello"), |_, request, connection| {
            if request.path == "/engine/v1/log" {
                let _ = connection.respond(403, &[], b"", limits());
            }
            request.path == "/engine/v1/log"
        });
        assert_eq!(outcome(&host, options), Some(code));
    }
}

#[test]
fn a_program_is_not_stopped_by_a_host_that_takes_no_log() {
    let host = Host::with(sh("head -c 30000000 /dev/zero; exit 0"), |shared, request, _| {
        while request.path == "/engine/v1/log" && !shared.over.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    });
    let start = Instant::now();
    assert_eq!(run_with(&host, short()), Ended::Task { success: true });
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}

#[test]
fn a_host_that_never_answers_is_given_up_within_the_timers() {
    let host = Host::with(sh("true"), |shared, request, _| {
        while request.path == "/engine/v1/success" && !shared.over.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    });
    let start = Instant::now();
    assert_eq!(run_with(&host, short()), Ended::Unreported);
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    assert_eq!(host.requests().iter().filter(|request| *request == "PUT success").count(), 4);
}

#[test]
fn a_host_that_says_nonsense_is_asked_again_without_haste() {
    let asked = AtomicUsize::new(0);
    let host = Host::with(sh("true"), move |_, request, connection| {
        let large = vec![b' '; 11 << 20];
        let answers = [(500, &b""[..]), (403, b""), (200, b"{\"env\":"), (200, &large), (409, b"")];
        let wanted = request.path == "/engine/v1/execute";
        let Some((status, body)) = answers.get(asked.load(Ordering::SeqCst)).filter(|_| wanted) else { return false };
        asked.fetch_add(1, Ordering::SeqCst);
        let _ = connection.respond(*status, &[], body, limits());
        true
    });
    assert_eq!(outcome(&host, &[]), Some(0));
}

#[test]
fn nothing_spins_while_polls_are_answered_badly_or_nobody_is_there() {
    for answer in [Some((200, "{\"id\":")), Some((200, r#"{"id":"x","type":"none"}"#)), Some((500, "")), None] {
        let host = Host::with("{".to_owned(), move |_, request, connection| {
            let Some((status, body)) = answer.filter(|_| request.path == "/engine/v1/poll") else { return true };
            let _ = connection.respond(status, &[], body.as_bytes(), limits());
            true
        });
        let guest = host.guest(&[]);
        pause(Duration::from_secs(3));
        let (polls, ticks) = (host.shared.polls.load(Ordering::SeqCst), guest.ticks());
        assert!((2..=8).contains(&polls), "{polls} polls answered with {answer:?}");
        assert!(ticks <= 20, "{ticks} ticks with {answer:?}");
    }
    let guest = Guest::start("unix:/no/such/host", &[]);
    pause(Duration::from_secs(2));
    assert!(guest.ticks() <= 10, "{} ticks", guest.ticks());
}

#[test]
fn an_unknown_action_is_passed_over() {
    let host = Host::new(sh("true"));
    let _guest = host.guest(&[]);
    host.ask(Kind::Unknown("dance".to_owned()), "", &[], false);
    let id = host.ask(Kind::GetArtifact, "/no/such/file", &[], false);
    host.reply(&id);
}

#[test]
fn a_guest_that_is_ended_ends_what_it_has_started() {
    let host = Host::new(sh("echo $$; exec sleep 60"));
    let mut guest = host.guest(&[]);
    wait_until("it runs", || host.log().ends_with("\r\n"));
    let pid = host.log().trim().to_owned();
    let _ = signal::send(guest.0.id() as i32, signal::SIGTERM);
    assert_eq!(guest.wait().code(), Some(0));
    assert!(!fs::exists(format!("/proc/{pid}")).expect("a look"));
    assert!(!host.requests().iter().any(|request| request.starts_with("PUT")));
}

#[test]
fn an_agent_does_it_beside_its_other_work() {
    let host = Host::new(sh("echo beside"));
    let _agent = support::Agent::start_with(|command| {
        command.args(["--metadata", &host.address()]);
    });
    wait_until("the result comes", || host.has_heard("PUT success"));
    assert_eq!(host.log(), "beside\r\n");
}
