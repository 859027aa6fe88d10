//! Programs that cannot be started, and what a started one inherits.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use lodger::wire::exec::Exec;
use lodger::wire::frame::Frame;

use crate::support::{Agent, Finished, agent_after, exec, run, shell};

fn refused(finished: &Finished, text: &str) {
    assert_eq!((finished.code, finished.error.as_str()), (127, text));
    assert_eq!((finished.frames, finished.errno), (1, 0), "one frame, and nothing that upstream does not know");
}

/// Writes an executable file. By another process: one that another test starts meanwhile would have it open for writing for a moment, and
/// it could not be executed for that.
fn install(path: &Path, content: &[u8]) {
    let mut command = Command::new("sh");
    command.args(["-c", "cat > \"$0\" && chmod 755 \"$0\""]).arg(path).stdin(Stdio::piped());
    let mut writer = command.spawn().expect("a shell");
    writer.stdin.take().expect("a pipe").write_all(content).expect("it reads");
    assert!(writer.wait().expect("our child").success());
}

#[test]
fn a_start_that_fails_is_told_in_upstreams_words() {
    let agent = Agent::start();
    let file = agent.folder.path("plain");
    fs::write(&file, "#!/bin/sh\n").expect("a file");
    let (file, folder) = (file.to_str().expect("text"), agent.folder.0.to_str().expect("text"));
    let garbage = agent.folder.path("garbage");
    install(&garbage, &[0; 200]);
    let garbage = garbage.to_str().expect("text");
    let missing = format!("{folder}/missing");
    for (path, text) in [
        (missing.as_str(), format!("fork/exec {missing}: no such file or directory")),
        (folder, format!("fork/exec {folder}: permission denied")),
        (file, format!("fork/exec {file}: permission denied")),
        (garbage, format!("fork/exec {garbage}: exec format error")),
        ("no-such-program", "exec: \"no-such-program\": executable file not found in $PATH".to_owned()),
        ("", "exec: no command".to_owned()),
    ] {
        refused(&run(&agent, exec(&[path])), &text);
    }
    let lost = Exec { cwd: missing.clone().into_bytes(), ..exec(&["/bin/true"]) };
    refused(&run(&agent, lost), "fork/exec /bin/true: no such file or directory");
    let bad = Exec { path: b"/bin/tr\0ue".to_vec(), ..Exec::default() };
    refused(&run(&agent, bad), "fork/exec /bin/tr\0ue: invalid argument");
}

#[test]
fn a_program_of_another_processor_is_an_exec_format_error() {
    let agent = Agent::start();
    let path = agent.folder.path("foreign");
    let mut elf = fs::read("/bin/true").expect("a program");
    elf[18..20].copy_from_slice(&[0x16, 0]); // e_machine: s390.
    install(&path, &elf);
    let path = path.to_str().expect("text");
    refused(&run(&agent, exec(&[path])), &format!("fork/exec {path}: exec format error"));
}

#[test]
fn a_hello_client_learns_the_error_number_of_the_program_file_alone() {
    let agent = Agent::start();
    let mut peer = agent.hello();
    let lost = Exec { cwd: b"/missing".to_vec(), ..exec(&["true"]) };
    for (exec, errno, text) in [
        (exec(&["/missing"]), 2, "/missing"),
        (exec(&["/tmp"]), 13, "/tmp"),
        (exec(&["no-such-program"]), 2, "no-such-program"),
        (lost, 0, "/missing"),
    ] {
        peer.send(&Frame::Exec { id: 1, exec });
        let finished = peer.finish(1);
        assert_eq!((finished.code, finished.errno), (127, errno), "{}", finished.error);
        assert!(finished.error.contains(text), "{}", finished.error);
    }
}

#[test]
fn a_name_is_looked_for_on_the_agents_path_and_not_in_relative_directories() {
    let agent = Agent::start_with(|command| {
        command.current_dir("/").env("PATH", "bin:.:/nowhere:/usr/bin:/bin");
    });
    let request = |name: &str| Exec { env: Some(vec![b"PATH=/nowhere".to_vec()]), ..exec(&[name]) };
    assert_eq!(run(&agent, request("true")).code, 0, "the request's PATH does not count");
    let agent = Agent::start_with(|command| {
        command.current_dir("/").env("PATH", "bin:.:usr/bin::");
    });
    let finished = run(&agent, Exec { env: Some(vec![b"PATH=/bin".to_vec()]), ..exec(&["true"]) });
    refused(&finished, "exec: \"true\": executable file not found in $PATH");
}

#[test]
fn ignored_and_blocked_signals_of_the_agent_are_not_the_programs() {
    let agent = agent_after("trap '' INT HUP QUIT USR1");
    let own = fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("a status");
    assert!(!own.contains("SigIgn:\t0000000000000000"), "the agent itself ignores some");
    let finished = run(&agent, exec(&["cat", "/proc/self/status"])).stdout();
    for name in ["SigBlk:", "SigIgn:"] {
        let line = finished.lines().find(|line| line.starts_with(name)).expect(name);
        let mask = u64::from_str_radix(line[name.len()..].trim(), 16).expect("a mask");
        // Signals 32 to 34 are the C library's own: it lets nobody touch them.
        assert_eq!(mask & !0x3_8000_0000, 0, "{line}");
    }
    assert_eq!(run(&agent, shell("kill -INT $$; sleep 1")).code, 130);
    assert_eq!(run(&agent, shell("kill -HUP $$; sleep 1")).code, 129);
}

#[test]
fn a_program_has_the_soft_limit_of_descriptors_that_the_agent_was_started_with() {
    let agent = agent_after("ulimit -Sn 200");
    assert_eq!(run(&agent, shell("ulimit -Sn")).stdout(), "200\n");
    let own = run(&agent, shell(&format!("grep 'open files' /proc/{}/limits", agent.pid()))).stdout();
    assert!(!own.contains(" 200 "), "the agent has raised its own: {own}");
}

#[test]
fn a_program_has_the_agents_umask_or_the_one_it_is_given() {
    let agent = agent_after("umask 027");
    assert_eq!(run(&agent, shell("umask")).stdout(), "0027\n");
    let mut exec = shell("umask");
    exec.extension.umask = Some(0o77);
    assert_eq!(run(&agent, exec).stdout(), "0077\n");
}

#[test]
fn no_descriptor_of_the_agent_is_seen_by_a_program() {
    let agent = agent_after("exec 7</dev/null 9</dev/null");
    let _others: Vec<_> = (0..5).map(|_| agent.hello()).collect();
    assert_eq!(run(&agent, exec(&["ls", "/proc/self/fd"])).stdout(), "0\n1\n2\n3\n", "3 is the directory itself");
}

#[test]
fn root_under_sudo_runs_programs_as_the_caller() {
    let id = |set: &[(&str, &str)]| {
        let agent = Agent::start_with(|command| {
            command.envs(set.iter().copied());
        });
        run(&agent, shell("id -u; id -g; id -G"))
    };
    assert_eq!(id(&[("SUDO_UID", "1234"), ("SUDO_GID", "5678")]).stdout(), "1234\n5678\n5678\n");
    assert_eq!(id(&[("SUDO_UID", "1234")]).stdout(), "1234\n1234\n1234\n");
    let malformed = id(&[("SUDO_UID", "ann")]);
    assert_eq!((malformed.code, malformed.frames), (127, 1));
    assert!(malformed.error.contains("SUDO_UID"), "{}", malformed.error);
}

#[test]
fn root_runs_a_program_as_any_user_and_an_unknown_one_is_refused() {
    let agent = Agent::start();
    let mut peer = agent.hello();
    let mut as_user = |user: &str| {
        let mut exec = shell("id -u; id -g; id -G");
        exec.extension.user = user.to_owned();
        peer.send(&Frame::Exec { id: 7, exec });
        peer.finish(7)
    };
    assert_eq!(as_user("4242").stdout(), "4242\n4242\n4242\n");
    assert_eq!(as_user("4242:17").stdout(), "4242\n17\n17\n");
    assert_eq!(as_user("nobody").stdout().lines().next(), Some("65534"));
    let unknown = as_user("nobody-knows-me");
    assert_eq!((unknown.code, unknown.error.as_str()), (127, "user nobody-knows-me: no such user"));
}

#[test]
fn a_list_of_arguments_that_is_too_long_is_a_clean_error() {
    let agent = Agent::start();
    let mut exec = exec(&["/bin/true"]);
    exec.argv = Some(vec![vec![b'x'; 200 << 10]; 2]);
    refused(&run(&agent, exec), "fork/exec /bin/true: argument list too long");
}

#[test]
fn a_thousand_arguments_and_an_environment_of_100_kb_arrive() {
    let agent = Agent::start();
    let mut words =
        vec!["sh".to_owned(), "-c".to_owned(), "echo $# ${1000} ${#BIG1} ${#BIG2}".to_owned(), "sh".to_owned()];
    words.extend((1..=1000).map(|number| number.to_string()));
    let mut exec = exec(&words.iter().map(String::as_str).collect::<Vec<_>>());
    exec.env = Some((1..=2).map(|number| format!("BIG{number}={}", "v".repeat(50_000)).into_bytes()).collect());
    assert_eq!(run(&agent, exec).stdout(), "1000 1000 50000 50000\n");
}
