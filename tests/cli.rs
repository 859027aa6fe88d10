//! The command line, as its users meet it: the real program, with agents of its own and on a socket.

#[path = "support/client.rs"]
mod client;
mod support;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use lodger::sys::signal::{SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM, SIGUSR1};
use lodger::sys::tty::{self, Window};

use client::{Done, Running, lodger, noise, read_until, run, run_with_input};
use support::{Agent, Folder, lives, status, wait_until};

/// Runs a shell script in the guest.
fn guest(script: &str) -> Done {
    run(["exec", "--", "sh", "-c", script])
}

/// A program of the guest that says `ready`, and then waits for signals.
fn waiting(script: &str) -> Running {
    let script = format!("{script}; echo ready; while :; do sleep 0.02; done");
    let mut running = Running::start(lodger(["exec", "-n", "--", "sh", "-c", &script]));
    let mut stdout = running.stdout();
    read_until(&mut stdout, "ready\n");
    running.child.stdout = Some(stdout);
    running
}

/// The client's own agent: its one child.
fn agent_of(client: u32) -> u32 {
    let path = format!("/proc/{client}/task/{client}/children");
    let children = fs::read_to_string(path).expect("the kernel lists children");
    children.split_whitespace().next().and_then(|pid| pid.parse().ok()).expect("an agent")
}

// Ends

#[test]
fn the_exit_status_is_the_programs_own_with_either_kind_of_agent() {
    let agent = Agent::start();
    for address in ["local:".to_owned(), agent.address()] {
        for (script, code) in
            [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -9 $$", 137), ("kill -15 $$", 143)]
        {
            let done = run(["exec", "--to", &address, "--", "sh", "-c", script]);
            assert_eq!((done.code, done.stderr()), (Some(code), String::new()), "{address}: {script}");
        }
        run(["exec", "--to", &address, "nowhere-to-be-found"]).bad(127, &["nowhere-to-be-found", "not found"]);
        run(["exec", "--to", &address, "/nowhere/x"]).bad(127, &["/nowhere/x", "no such file or directory"]);
        run(["exec", "--to", &address, "/etc/passwd"]).bad(126, &["/etc/passwd", "permission denied"]);
        run(["exec", "--to", &address, "/tmp"]).bad(126, &["/tmp", "permission denied"]);
        run(["exec", "--to", &address, "-C", "/nowhere", "true"]).bad(125, &["/nowhere", "no such file or directory"]);
        run(["exec", "--to", &address, "-u", "no-such-user", "true"]).bad(125, &["no-such-user"]);
    }
}

#[test]
fn what_is_wrong_with_the_arguments_is_said_with_status_125() {
    for (arguments, word) in [
        (&["exec"][..], "a program is missing"),
        (&["exec", "--bogus", "true"], "--bogus"),
        (&["exec", "-x", "true"], "-x"),
        (&["exec", "-e", "NAME", "true"], "-e NAME"),
        (&["exec", "-e", "=x", "true"], "-e =x"),
        (&["exec", "-e"], "-e"),
        (&["exec", "--umask", "8", "true"], "--umask 8"),
        (&["exec", "--umask", "1000", "true"], "--umask 1000"),
        (&["exec", "--detach", "-t", "true"], "--detach"),
        (&["nonsense"], "nonsense"),
        (&["--to", "local:", "ls"], "behind the command"),
        (&["help", "nonsense"], "nonsense"),
        (&["version", "x"], "x"),
        (&["ls", "-z"], "-z"),
        (&["cat"], "a path is missing"),
        (&["mv", "a"], "a path is missing"),
        (&["mv", "a", "b", "c"], "two paths"),
        (&["chmod", "9", "/tmp"], "mode 9"),
        (&["ping", "-c", "x"], "-c x"),
        (&["cp", "a"], "a source and a destination"),
        (&[], "usage: lodger COMMAND"),
    ] {
        run(arguments).bad(125, &[word]);
    }
}

#[test]
fn every_command_explains_itself() {
    let overview = String::from_utf8(run(["help"]).good()).expect("text");
    let names: Vec<&str> = overview.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next()).collect();
    assert!(names.len() > 20 && names.contains(&"exec") && names.contains(&"replay"), "{overview}");
    for name in names {
        let explained = String::from_utf8(run(["help", name]).good()).expect("text");
        assert!(explained.contains(&format!("usage: lodger {name}")), "{explained}");
        assert_eq!(String::from_utf8(run([name, "--help"]).good()).expect("text"), explained);
        let connects = explained.contains("--to ADDR");
        assert_eq!(connects, explained.contains("LODGER_TO"), "{explained}");
        assert!(explained.lines().all(|line| line.chars().count() <= 100), "{explained}");
    }
    assert_eq!(String::from_utf8(run(["--help"]).good()).expect("text"), overview);
    assert!(String::from_utf8(run(["--version"]).good()).expect("text").starts_with("lodger "));
    // Behind the dashes, or the program, it is the program's.
    for words in [&["exec", "--", "printf", "%s", "--help"][..], &["exec", "printf", "%s", "--help"]] {
        assert_eq!(run(words).good(), b"--help");
    }
}

#[test]
fn an_agent_that_is_not_there_is_said_with_what_to_do() {
    let folder = Folder::new();
    let path = folder.path("sock");
    let address = format!("unix:{}", path.display());
    run(["ls", "--to", &address]).bad(125, &[&address, "no such file or directory", "lodger serve"]);
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
    // A neighbour's fork may keep it open for a moment.
    wait_until("nobody listens", || std::os::unix::net::UnixStream::connect(&path).is_err());
    run(["ls", "--to", &address]).bad(125, &[&address, "connection refused", "lodger serve"]);
    run(["ls", "--to", "nonsense"]).bad(125, &["nonsense", "unix:PATH"]);
    run(["ls", "--to", "tcp:1"]).bad(125, &["tcp:1", "unix:"]);
    let mut command = lodger(["ls"]);
    command.env("LODGER_TO", &address);
    Running::start(command).finish().bad(125, &[&address, "lodger serve", "LODGER_TO"]);
    let agent = Agent::start();
    let mut command = lodger(["exec", "echo", "hi"]);
    command.env("LODGER_TO", agent.address());
    assert_eq!(Running::start(command).finish().good(), b"hi\n");
    // Something else listens.
    let listener = std::os::unix::net::UnixListener::bind(folder.path("other")).expect("a socket");
    let other = thread::spawn(move || {
        let (mut socket, _) = listener.accept().expect("a client");
        let _ = socket.write_all(b"SSH-2.0-OpenSSH_9.6 Debian\r\n");
        let _ = socket.read(&mut [0; 64]);
    });
    run(["ls", "--to", &format!("unix:{}", folder.path("other").display())])
        .bad(125, &["not understood", "lodger agent"]);
    other.join().expect("the other ends");
}

// Streams

#[test]
fn streams_are_separate_and_byte_for_byte() {
    let done = guest("printf 'out\\000\\377'; printf 'err\\000\\376' >&2");
    assert_eq!((&done.stdout[..], &done.stderr[..]), (&b"out\0\xff"[..], &b"err\0\xfe"[..]));
    let agent = Agent::start();
    let input = noise(3, 10 << 20);
    for address in ["local:".to_owned(), agent.address()] {
        let done = run_with_input(["exec", "--to", &address, "cat"], &input);
        assert!(done.code == Some(0) && done.stdout == input, "{address}: {} bytes", done.stdout.len());
    }
}

#[test]
fn input_may_be_a_file_nothing_or_closed() {
    let folder = Folder::new();
    let path = folder.path("input");
    fs::write(&path, noise(5, 300_000)).expect("a file");
    let mut command = lodger(["exec", "cat"]);
    command.stdin(File::open(&path).expect("a file"));
    assert_eq!(Running::start(command).finish().good(), fs::read(&path).expect("a file"));
    assert_eq!(run(["exec", "cat"]).good(), b"");
    assert_eq!(run_with_input(["exec", "-n", "cat"], b"not for you").good(), b"");
    for closed in ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"] {
        let mut command = Command::new("sh");
        let script = format!("exec \"$0\" exec --to local: sh -c 'cat; echo said; exit 9' {closed}");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_lodger")]).stdin(Stdio::null());
        let done = Running::start(command).finish();
        assert_eq!((done.code, done.stderr()), (Some(9), String::new()), "{closed}");
        assert_eq!(done.stdout(), if closed.contains(" >") || closed.starts_with('>') { "" } else { "said\n" });
    }
}

#[test]
fn a_program_that_does_not_read_its_input_ends_all_the_same() {
    assert_eq!(run_with_input(["exec", "true"], &noise(1, 4 << 20)).code, Some(0));
    assert_eq!(run_with_input(["exec", "head", "-c3"], b"abcdef").good(), b"abc");
}

#[test]
fn a_reader_that_goes_ends_the_program_quietly() {
    let mut running = Running::start(lodger(["exec", "yes"]));
    read_until(&mut running.stdout(), "y\n");
    let done = running.finish();
    assert_eq!((done.code, done.stderr()), (Some(141), String::new()));
    for arguments in [&["ls", "/proc"][..], &["cat", "/etc/passwd"], &["path"], &["help"], &["ls", "-l", "/dev"]] {
        let mut running = Running::start(lodger(arguments));
        drop(running.stdout());
        assert_eq!(running.finish().stderr(), "", "{arguments:?}");
    }
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    for arguments in
        [&["exec", "echo", "hi"][..], &["exec", "yes"], &["ls", "/"], &["cat", "/etc/passwd"], &["path"], &["help"]]
    {
        let mut command = lodger(arguments);
        command.stdout(OpenOptions::new().write(true).open("/dev/full").expect("a device")).stderr(Stdio::piped());
        Running::start_as_is(command).finish().bad(125, &["write the output", "no space left on device"]);
    }
}

#[test]
fn a_slow_reader_gets_everything_and_costs_no_memory() {
    let mut running = Running::start(lodger(["exec", "head", "-c", "30000000", "/dev/zero"]));
    let mut stdout = running.stdout();
    let (mut total, mut buffer) = (0, vec![0; 1 << 20]);
    for _ in 0..10 {
        total += stdout.read(&mut buffer).expect("output");
        thread::sleep(Duration::from_millis(10));
    }
    for pid in [running.pid(), agent_of(running.pid())] {
        assert!(status(pid, "VmRSS") < 24_000, "{} kB", status(pid, "VmRSS"));
    }
    loop {
        match stdout.read(&mut buffer).expect("output") {
            0 => break,
            count => total += count,
        }
    }
    assert_eq!((running.finish().code, total), (Some(0), 30_000_000));
}

// Options

#[test]
fn the_options_reach_the_program() {
    assert_eq!(run(["exec", "-C", "/usr", "pwd"]).good(), b"/usr\n");
    assert_eq!(run(["exec", "-e", "A=1 2", "-e", "B=", "sh", "-c", "echo \"$A-${B-unset}\""]).good(), b"1 2-\n");
    assert_eq!(run(["exec", "--umask", "027", "sh", "-c", "umask"]).good(), b"0027\n");
    assert_eq!(run(["exec", "echo", "-C", "-n", "--to"]).good(), b"-C -n --to\n");
    // What comes from us stands behind the agent's environment.
    let mut command = lodger(["exec", "-e", "HOME=/x", "sh", "-c", "echo $HOME $OTHER"]);
    command.env("HOME", "/y").env("OTHER", "kept");
    assert_eq!(Running::start(command).finish().good(), b"/x kept\n");
    let ids = fs::metadata("/proc/self").expect("proc");
    if ids.uid() == 0 {
        let words = ["exec", "-u", "65534:12", "sh", "-c", "echo $(id -u):$(id -g)"];
        assert_eq!(run(words).good(), b"65534:12\n");
    } else {
        run(["exec", "-u", "0", "true"]).bad(125, &["operation not permitted"]);
    }
}

#[test]
fn a_detached_program_outlives_its_client() {
    let folder = Folder::new();
    let mark = folder.path("mark");
    let script = format!("while ! [ -e {0} ]; do sleep 0.02; done; mv {0} {0}.seen", mark.display());
    let pid = String::from_utf8(run(["exec", "--detach", "sh", "-c", &script]).good()).expect("text");
    let pid: u32 = pid.trim().parse().expect("a number");
    assert!(lives(pid));
    fs::write(&mark, "").expect("a file");
    wait_until("the detached program has ended", || folder.path("mark.seen").exists() && !lives(pid));
    run(["exec", "--detach", "/nowhere/x"]).bad(127, &["/nowhere/x"]);
}

// Signals

#[test]
fn signals_are_passed_on_and_the_programs_answer_is_ours() {
    for (number, name) in [(SIGINT, "INT"), (SIGTERM, "TERM"), (SIGHUP, "HUP"), (SIGQUIT, "QUIT"), (SIGUSR1, "USR1")] {
        let running = waiting(&format!("trap 'echo {name}; exit 42' {name}"));
        running.signal(number);
        let done = running.finish();
        // The shell may have words of its own on stderr.
        assert_eq!((done.code, done.stdout()), (Some(42), format!("{name}\n")), "{}", done.stderr());
    }
    let running = waiting(":");
    running.signal(SIGTERM);
    assert_eq!(running.finish().code, Some(143));
}

#[test]
fn interrupts_that_nobody_heeds_end_the_client() {
    let running = waiting("trap '' INT");
    let agent = agent_of(running.pid());
    let pid = running.pid();
    wait_until("the client has had enough", || {
        running.signal(SIGINT);
        thread::sleep(Duration::from_millis(20));
        !lives(pid)
    });
    let done = running.finish();
    done.bad(130, &["interrupted"]);
    wait_until("the agent has followed", || !lives(agent));
}

#[test]
fn a_client_that_is_killed_takes_agent_and_program_with_it() {
    let running = waiting("echo $$");
    let agent = agent_of(running.pid());
    let program = agent_of(agent);
    running.signal(SIGKILL);
    assert_eq!(running.finish().signal, Some(SIGKILL));
    wait_until("nobody is left", || !lives(agent) && !lives(program));
}

#[test]
fn an_agent_that_dies_is_said() {
    let running = waiting(":");
    let agent = agent_of(running.pid());
    let program = agent_of(agent);
    lodger::sys::signal::send(agent as i32, SIGKILL).expect("the agent is there");
    // Nobody is left who would end it.
    lodger::sys::signal::send(program as i32, SIGKILL).expect("the program is there");
    running.finish().bad(125, &["the agent closed the connection"]);
}

// Terminals

/// A command on a terminal that is its own, and controls it; and the terminal's other side.
struct OnTerminal {
    running: Running,
    master: File,
    slave: std::os::fd::OwnedFd,
    before: Vec<u8>,
}

impl OnTerminal {
    fn start(arguments: &[&str]) -> OnTerminal {
        let (master, slave) = tty::open_pair().expect("a terminal");
        tty::set_window(master.as_fd(), Window { rows: 33, columns: 77 }).expect("a size");
        let before = settings(&slave);
        let mut command = Command::new("setsid");
        command.args(["--ctty", env!("CARGO_BIN_EXE_lodger")]).args(arguments).env("LODGER_TO", "local:");
        let end = || slave.try_clone().expect("a descriptor");
        command.stdin(end()).stdout(end()).stderr(end());
        OnTerminal { running: Running::start_as_is(command), master: File::from(master), slave, before }
    }

    fn expect(&mut self, text: &str) {
        read_until(&mut self.master, text);
    }

    fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("the terminal takes it");
    }

    /// The command's status; its terminal must be as before.
    fn finish(self) -> Option<i32> {
        let code = self.running.finish().code;
        assert_eq!(settings(&self.slave), self.before, "the terminal is left in another mode");
        code
    }
}

fn settings(terminal: &std::os::fd::OwnedFd) -> Vec<u8> {
    let stdin = terminal.try_clone().expect("a descriptor");
    let output = Command::new("stty").arg("-g").stdin(stdin).output().expect("stty");
    assert!(output.status.success());
    output.stdout
}

#[test]
fn a_program_on_a_terminal_has_the_size_of_ours_and_its_changes() {
    let script = "trap 'stty size; exit 5' WINCH; stty size; tty; echo $TERM; while :; do sleep 0.02; done";
    let mut on = OnTerminal::start(&["exec", "-t", "-e", "TERM=vt220", "--", "sh", "-c", script]);
    on.expect("33 77\r\n/dev/pts/");
    on.expect("vt220\r\n");
    assert_ne!(settings(&on.slave), on.before, "the terminal is not raw");
    tty::set_window(on.master.as_fd(), Window { rows: 20, columns: 50 }).expect("a size");
    on.expect("20 50\r\n");
    assert_eq!(on.finish(), Some(5));
}

#[test]
fn keys_go_to_the_programs_terminal() {
    let script = "trap 'echo interrupted; exit 42' INT; read -r line; echo \"[$line]\"; while :; do sleep 0.02; done";
    let mut on = OnTerminal::start(&["exec", "-t", "--", "sh", "-c", script]);
    on.type_in("hallö\r");
    // Once from the echo of the program's terminal; ours is raw.
    on.expect("hallö\r\n[hallö]\r\n");
    on.type_in("\x03");
    on.expect("^Cinterrupted\r\n");
    assert_eq!(on.finish(), Some(42));
}

#[test]
fn the_terminals_interrupt_without_t_reaches_the_program_and_spares_the_agent() {
    let script = "trap 'exit 42' INT; echo ready; while :; do sleep 0.02; done";
    let mut on = OnTerminal::start(&["exec", "--", "sh", "-c", script]);
    on.expect("ready\r\n");
    on.type_in("\x03");
    assert_eq!(on.finish(), Some(42));
}

#[test]
fn our_terminal_is_restored_whatever_happens() {
    let on = OnTerminal::start(&["exec", "-t", "--", "/nowhere/x"]);
    assert_eq!(on.finish(), Some(127));
    let script = "echo ready; while :; do sleep 0.02; done";
    let mut on = OnTerminal::start(&["exec", "-t", "--", "sh", "-c", script]);
    on.expect("ready\r\n");
    lodger::sys::signal::send(agent_of(on.running.pid()) as i32, SIGKILL).expect("the agent is there");
    on.expect("the agent closed the connection");
    assert_eq!(on.finish(), Some(125));
    let mut on = OnTerminal::start(&["exec", "-t", "--", "sh", "-c", script]);
    on.expect("ready\r\n");
    on.running.signal(SIGTERM);
    assert_eq!(on.finish(), Some(143));
}

#[test]
fn a_terminal_is_had_without_one_of_our_own() {
    let done = run(["exec", "-t", "stty", "size"]);
    assert_eq!((done.code, done.stdout()), (Some(0), "24 80\r\n".into()));
}

#[test]
fn a_shell_is_found_and_used() {
    let mut on = OnTerminal::start(&["shell", "-e", "PS1=guest> ", "--", "/bin/sh"]);
    on.expect("guest> ");
    on.type_in("stty size; exit 6\r");
    on.expect("33 77\r\n");
    assert_eq!(on.finish(), Some(6));
    let mut on = OnTerminal::start(&["shell"]);
    on.type_in("echo $((20+3)); exit\r");
    on.expect("23\r\n");
    assert_eq!(on.finish(), Some(0));
}

// Files

/// A folder with a few things in it, and the address of an agent.
fn furnished() -> (Folder, String) {
    let folder = Folder::new();
    fs::write(folder.path("file"), "content\n").expect("a file");
    fs::set_permissions(folder.path("file"), fs::Permissions::from_mode(0o4750)).expect("a mode");
    fs::write(folder.path(".hidden"), "").expect("a file");
    fs::create_dir(folder.path("below")).expect("a folder");
    std::os::unix::fs::symlink("file", folder.path("link")).expect("a link");
    let path = folder.0.to_str().expect("text").to_owned();
    (folder, path)
}

#[test]
fn listings_show_what_is_there() {
    let (folder, path) = furnished();
    let text = |done: Done| String::from_utf8(done.good()).expect("text");
    assert_eq!(text(run(["ls", &path])), "below\nfile\nlink\n");
    assert_eq!(text(run(["ls", "-a", &path])), ".hidden\nbelow\nfile\nlink\n");
    let long = text(run(["ls", "-l", &path]));
    let lines: Vec<&str> = long.lines().collect();
    assert!(lines[0].starts_with("drwx") && lines[0].ends_with(" below"), "{long}");
    assert!(lines[1].starts_with("-rwsr-x---") && lines[1].contains("  8 2"), "{long}");
    assert!(lines[2].starts_with("lrwxrwxrwx") && lines[2].ends_with(" link -> file"), "{long}");
    assert!(text(run(["ls", "-l", "/dev/null"])).contains("1, 3"));
    let file = folder.path("file");
    let file = file.to_str().expect("text");
    assert_eq!(text(run(["ls", file])), format!("{file}\n"));
    let done = run(["ls", "/nowhere", &path]);
    done.bad(125, &["/nowhere", "no such file or directory"]);
    assert!(done.stdout().ends_with("below\nfile\nlink\n"));
    let found = text(run(["stat", file]));
    for line in ["mode: -rwsr-x--- (4750)", "size: 8 bytes", "links: 1"] {
        assert!(found.contains(line), "{found}");
    }
    assert!(text(run(["stat", &format!("{path}/link")])).contains("link -> file"));
    assert!(text(run(["stat", "-L", &format!("{path}/link")])).contains("size: 8 bytes"));
    assert_eq!(text(run(["cat", file, file])), "content\ncontent\n");
    assert!(text(run(["cat", "/proc/self/status"])).starts_with("Name:"));
    run(["cat", &path]).bad(125, &[&path, "is a directory"]);
    run(["cat", "/nowhere"]).bad(125, &["/nowhere", "no such file or directory"]);
}

#[test]
fn files_are_made_moved_and_removed() {
    let (folder, path) = furnished();
    let at = |name: &str| format!("{path}/{name}");
    run(["mkdir", &at("a/b")]).bad(125, &["a/b", "no such file or directory"]);
    run(["mkdir", "-p", &at("a/b/c"), &at("a/b")]).good();
    run(["mkdir", "-m", "1711", &at("sticky")]).good();
    assert_eq!(fs::metadata(folder.path("sticky")).expect("a folder").permissions().mode() & 0o7777, 0o1711);
    run(["mkdir", &at("a")]).bad(125, &["file exists"]);
    run(["mv", &at("file"), &at("a")]).good();
    assert!(folder.path("a/file").is_file());
    run(["mv", &at("a/file"), &at("renamed")]).good();
    run(["mv", &at("nothing"), &at("x")]).bad(125, &["nothing", "no such file or directory"]);
    run(["ln", "-s", "renamed", &at("soft")]).good();
    run(["ln", &at("renamed"), &at("hard")]).good();
    assert_eq!(fs::read_link(folder.path("soft")).expect("a link").as_os_str(), "renamed");
    assert_eq!(fs::metadata(folder.path("hard")).expect("a file").nlink(), 2);
    run(["ln", "-s", "renamed", &at("soft")]).bad(125, &["file exists"]);
    run(["chmod", "2604", &at("renamed")]).good();
    assert_eq!(fs::metadata(folder.path("renamed")).expect("a file").permissions().mode() & 0o7777, 0o2604);
    run(["rm", &at("a")]).bad(125, &["is a directory", "-r"]);
    run(["rm", &at("nothing")]).bad(125, &["nothing", "no such file or directory"]);
    run(["rm", "-f", &at("nothing"), &at("hard")]).good();
    assert!(!folder.path("hard").exists());
    // A link in the tree is removed, not followed.
    std::os::unix::fs::symlink("../sticky", folder.path("a/b/out")).expect("a link");
    fs::write(folder.path("sticky/kept"), "").expect("a file");
    run(["rm", "-r", &at("a")]).good();
    assert!(!folder.path("a").exists() && folder.path("sticky/kept").exists());
    run(["rm", "-rf", "/"]).bad(125, &["refused"]);
}

#[test]
fn the_guest_itself_is_looked_at() {
    let text = |done: Done| String::from_utf8(done.good()).expect("text");
    let listed = text(run(["df", "/"]));
    assert!(listed.lines().count() == 2 && listed.ends_with("%  /\n"), "{listed}");
    assert!(text(run(["df"])).lines().count() >= 2);
    run(["df", "/nowhere"]).bad(125, &["/nowhere", "no such file or directory"]);
    assert!(text(run(["path"])).lines().any(|name| name == "sh"));
    let found = text(run(["path", "sh"]));
    assert!(found.lines().next().is_some_and(|path| path.starts_with('/') && path.ends_with("/sh")), "{found}");
    assert!(text(run(["path", "-l", "sh"])).starts_with("-rwx"));
    run(["path", "no-such-program"]).bad(127, &["no-such-program", "not found"]);
}
