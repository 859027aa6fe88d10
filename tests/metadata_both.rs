//! Both sides of the metadata service against each other: what the tests of upstream's guest tools want of any guest and any service.
#![cfg(feature = "metadata")]

#[path = "support/service.rs"]
mod service;
mod support;

use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lodger::metadata::actions::{Store, Timers};
use lodger::metadata::control::Control;
use lodger::metadata::service::Service;
use lodger::metadata::shell::{Ending, Order, Wires};
use lodger::stream::Stream;
use lodger::sys::{fd, signal, tty};

use service::{Guest, Host, Noise, lives, output_within, read_soon};
use support::{Folder, PATIENCE, descriptors, pause, wait_until};

/// A host whose task is a script, and its guest.
fn both(script: &str) -> (Host, Guest) {
    let host = Host::start(script);
    let guest = Guest::start(&host.address(), &[]);
    (host, guest)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

// --- The task ---

#[test]
fn the_text_is_in_the_log_and_both_sides_end_with_the_result() {
    for (end, code) in [("true", 0), ("false", 1)] {
        let script = format!("echo \"$TEST_TEXT\" && {end}");
        let mut host = Host::start_with(&[], &["sh", "-c", &script]);
        let mut guest = Guest::start(&host.address(), &["--exit-with-task", "0"]);
        assert_eq!(guest.process.wait().code(), Some(code));
        assert_eq!(host.wait(), Some(code));
        assert_eq!(host.log(), "Hello World\r\n");
        guest.assert_no_errors();
    }
}

#[test]
fn the_log_can_be_read_while_the_command_runs() {
    let folder = Folder::new();
    let go = folder.path("go");
    let script = format!("echo \"$TEST_TEXT\"; until test -e {}; do sleep 0.05; done", go.display());
    let mut host = Host::start_with(&[], &["sh", "-c", &script]);
    let guest = Guest::start(&host.address(), &[]);
    wait_until("the text is there", || host.log() == "Hello World\r\n");
    assert!(!host.process().has_ended(), "the command runs");
    fs::write(&go, "").expect("a file");
    assert_eq!(host.wait(), Some(0));
    guest.assert_no_errors();
}

#[test]
fn a_kill_fails_a_command_that_sleeps_at_once() {
    let mut host = Host::start_with(&[], &["sh", "-c", "echo begun; sleep 20"]);
    let guest = Guest::start(&host.address(), &[]);
    wait_until("it runs", || host.log().contains("begun"));
    let start = Instant::now();
    assert!(host.run(&["kill"], b"").status.success());
    assert_eq!(host.wait(), Some(1));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    guest.assert_no_errors();
}

#[test]
fn a_kill_lets_no_parent_go_on_when_its_child_has_ended() {
    let many = "for n in $(seq 60); do (sleep 30; echo went on) & done; sleep 0.2; echo begun; wait";
    let mut host = Host::start_with(&[], &["sh", "-c", many]);
    let _guest = Guest::start(&host.address(), &[]);
    wait_until("it runs", || host.log().contains("begun"));
    assert!(host.run(&["kill"], b"").status.success());
    assert_eq!(host.wait(), Some(1));
    assert_eq!(host.log(), "begun\r\n");
}

#[test]
fn what_was_killed_has_failed_even_if_it_ends_in_order() {
    let mut host = Host::start_with(&[], &["sh", "-c", "trap 'echo bye; exit 0' TERM; echo begun; sleep 30 & wait"]);
    let _guest = Guest::start(&host.address(), &[]);
    wait_until("it runs", || host.log().contains("begun"));
    assert!(host.run(&["kill"], b"").status.success());
    assert_eq!(host.wait(), Some(1));
    assert_eq!(host.log(), "begun\r\nbye\r\n");
}

#[test]
fn a_guest_says_what_it_does_to_whoever_wants_to_know() {
    let host = Host::start("sleep 60; echo secret");
    let guest = Guest::start_through(&["env", "LODGER_LOG=trace"], &host.address(), &["-e", "PASSWORD=secret"]);
    let file = host.folder.path("file").display().to_string();
    fs::write(&file, "12345").expect("a file");
    assert!(host.run(&["get", &file, "-"], b"").status.success());
    assert!(host.run(&["shell", "--", "echo", "secret"], b"").status.success());
    let sent = format!("artifact {file:?}: sent, 5 bytes");
    // Each line is of a thread of its own.
    for line in ["task: sh, of 3 words", "log: opened", &sent] {
        wait_until(line, || guest.said().contains(&format!("lodger info: {line}\n")));
    }
    wait_until("the shell has ended", || guest.said().contains(": ended\n"));
    let said = guest.said();
    assert!(said.lines().any(|line| line.starts_with("lodger info: shell ") && line.ends_with(": opened")), "{said}");
    assert!(said.lines().all(|line| line.starts_with("lodger info: ") || line.starts_with("lodger debug: ")), "{said}");
    assert!(!said.contains("secret") && !said.contains("Frame"), "{said}");
}

// --- Files ---

#[test]
fn files_that_are_there_come_whole_and_others_are_not_found() {
    let (host, guest) = both("true");
    let path = |name: &str| host.folder.path(name).display().to_string();
    let content = Noise::new().bytes(3_000_001);
    fs::write(path("content"), &content).expect("a file");
    fs::write(path("empty"), "").expect("a file");
    assert_eq!(host.run(&["get", &path("content"), &path("got")], b"").status.code(), Some(0));
    assert!(fs::read(path("got")).expect("a file") == content);
    let empty = host.run(&["get", &path("empty"), "-"], b"");
    assert!(empty.status.success() && empty.stdout.is_empty());
    let missing = host.run(&["get", &path("missing"), &path("never")], b"");
    assert_eq!(missing.status.code(), Some(125));
    assert!(text(&missing.stderr).contains("missing: the guest has no such file"), "{}", text(&missing.stderr));
    assert!(!Path::new(&path("never")).exists());
    guest.assert_no_errors();
}

#[test]
fn folders_are_listed_with_what_is_below_them() {
    let (host, guest) = both("true");
    let path = |name: &str| host.folder.path(name).display().to_string();
    fs::create_dir_all(path("d/sub-folder")).expect("a folder");
    fs::create_dir(path("empty")).expect("a folder");
    fs::write(path("d/hello.txt"), "").expect("a file");
    fs::write(path("d/sub-folder/hello2.txt"), "").expect("a file");
    let list = |asked: &str| {
        let output = host.run(&["ls", asked], b"");
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let d = path("d");
    let both = format!("{d}/hello.txt\n{d}/sub-folder/hello2.txt\n");
    assert_eq!(list(&d), (Some(0), both.clone(), String::new()));
    assert_eq!(list(&format!("{d}/")), (Some(0), both, String::new()));
    assert_eq!(list(&path("empty")), (Some(0), String::new(), String::new()));
    let (code, _, why) = list(&path("missing"));
    assert!(code == Some(125) && why.contains("no such file or folder"), "{why}");
    guest.assert_no_errors();
}

// --- Shells ---

#[test]
fn a_shell_does_what_it_is_told_and_ends_with_its_input() {
    let (host, guest) = both("sleep 60");
    for words in [&["shell"][..], &["shell", "--", "sh"]] {
        let output = host.run(words, b"echo HELLO\n");
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "HELLO\n".to_owned()));
        assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
    }
    guest.assert_no_errors();
}

#[test]
fn many_bytes_come_back_on_stdout_as_they_were_sent() {
    let (host, guest) = both("sleep 60");
    let bytes = Noise::new().bytes((42 << 20) + 7);
    let output = host.run(&["shell", "--", "sh", "-c", "exec cat -"], &bytes);
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
    assert!(output.stdout == bytes, "{} bytes", output.stdout.len());
    guest.assert_no_errors();
}

#[test]
fn many_bytes_come_back_on_stderr_and_only_there() {
    let (host, guest) = both("sleep 60");
    let bytes = Noise::new().bytes((4 << 20) + 37);
    let output = host.run(&["shell", "--", "sh", "-c", "exec cat - >&2"], &bytes);
    assert!(output.status.success() && output.stdout.is_empty());
    assert!(output.stderr == bytes, "{} bytes", output.stderr.len());
    guest.assert_no_errors();
}

#[test]
fn both_outputs_are_exact_and_apart_and_a_failure_is_no_error() {
    let (host, guest) = both("sleep 60");
    let output = host.run(&["shell", "--", "sh", "-c", "echo out; echo err >&2; echo more"], b"");
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("out\nmore\n".to_owned(), "err\n".to_owned()));
    assert_eq!(output.status.code(), Some(0));
    let output = host.run(&["shell", "--", "sh", "-c", "exit 1"], b"");
    assert_eq!((output.status.code(), output.stdout.len(), output.stderr.len()), (Some(1), 0, 0));
    guest.assert_no_errors();
}

#[test]
fn a_shell_on_a_terminal_ends_while_its_input_is_open() {
    let (host, guest) = both("sleep 60");
    let mut child = host.command(&["shell", "-t", "--", "sh", "-c", "exit 0"]).spawn().expect("a shell");
    let open = child.stdin.take();
    assert_eq!(output_within(child, Duration::from_secs(10)).status.code(), Some(0));
    drop(open);
    guest.assert_no_errors();
}

#[test]
fn a_terminal_in_the_guest_has_the_size_of_ours() {
    let (host, guest) = both("sleep 60");
    let (master, slave) = tty::open_pair().expect("a terminal");
    tty::set_window(master.as_fd(), tty::Window { rows: 100, columns: 50 }).expect("a size");
    // The size is sent before the guest has opened its terminal, or soon after.
    let script = "until test \"$(stty size)\" = '100 50'; do sleep 0.05; done; stty size";
    let mut command = host.command(&["shell", "-t", "--", "sh", "-c", script]);
    let [stdin, stderr] = [0; 2].map(|_| Stdio::from(slave.try_clone().expect("a descriptor")));
    let child = command.stdin(stdin).stderr(stderr).spawn().expect("a shell");
    let output = output_within(child, Duration::from_secs(20));
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "100 50\r\n".to_owned()));
    guest.assert_no_errors();
}

/// Opens a shell that says its number and sleeps, and gives it with that number. By then it can be interrupted.
fn sleeping_shell(host: &Host) -> (Child, String) {
    let mut shell = host.command(&["shell", "--", "sh", "-c", "echo $$; sleep 60; true"]).spawn().expect("a shell");
    let mut line = String::new();
    BufReader::new(shell.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
    (shell, line)
}

#[test]
fn a_sleeping_shell_that_is_aborted_is_gone() {
    let (host, guest) = both("sleep 60");
    let (shell, pid) = sleeping_shell(&host);
    signal::send(shell.id() as i32, signal::SIGINT).expect("a signal");
    assert_eq!(output_within(shell, Duration::from_secs(10)).status.code(), Some(130));
    wait_until("the shell is gone", || !lives(&pid));
    guest.assert_no_errors();
}

#[test]
fn a_host_that_is_ended_fails_the_task_and_aborts_its_shells() {
    let mut host = Host::start("echo $$; sleep 60");
    let guest = Guest::start(&host.address(), &[]);
    wait_until("it runs", || host.log().ends_with("\r\n"));
    let task = host.log();
    let (shell, pid) = sleeping_shell(&host);
    host.process().signal(signal::SIGTERM);
    assert_eq!(host.wait(), Some(1));
    assert_eq!(output_within(shell, Duration::from_secs(10)).status.code(), Some(125));
    wait_until("both are gone", || !lives(&pid) && !lives(&task));
    guest.assert_no_errors();
}

// --- The library's side of the host ---

/// A service of ours, at a socket.
struct Served {
    service: Arc<Service>,
    folder: Folder,
}

impl Served {
    fn start(script: &str) -> Served {
        Served::with_timers(script, Timers::default())
    }

    fn with_timers(script: &str, timers: Timers) -> Served {
        let folder = Folder::new();
        let command = ["sh", "-c", script].map(str::to_owned);
        let service = Service::new(&command, &[], Box::new(io::sink()), Box::new(drop)).expect("a service");
        let service = Arc::new(service.with_timers(timers));
        let listener = UnixListener::bind(folder.path("guest")).expect("a socket");
        let all = Arc::clone(&service);
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let service = Arc::clone(&all);
                thread::spawn(move || service.serve_connection(Stream::over(socket)));
            }
        });
        Served { service, folder }
    }

    fn address(&self) -> String {
        format!("unix:{}", self.folder.path("guest").display())
    }

    fn guest(&self) -> Guest {
        Guest::start(&self.address(), &[])
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.service.close();
    }
}

#[test]
fn an_abort_behind_the_exit_waits_no_longer_for_the_reader() {
    let served = Served::start("sleep 60");
    let guest = served.guest();
    let file = served.folder.path("pid");
    let script = format!("echo $$ > {0}.new; mv {0}.new {0}; echo last words", file.display());
    let shell = served.service.exec_shell(&["sh".into(), "-c".into(), script], false).expect("a shell");
    let ((mut stdout, full), (orders, order)) =
        (fd::pipe().map(into_files).expect("a pipe"), fd::pipe().expect("a pipe"));
    // What the shell says does not fit, so that it is not over for us before somebody reads.
    fd::never_block(full.as_fd()).expect("a flag");
    while fd::write(full.as_fd(), &[b'x'; 4096]).is_ok() {}
    fd::never_block(orders.as_fd()).expect("a flag");
    let running = thread::spawn(move || {
        let mut next = || (fd::read(orders.as_fd(), &mut [0]).ok() == Some(1)).then_some(Order::Abort);
        let (null, out) = (fs::File::create("/dev/null").expect("a device"), full);
        let orders = Some((orders.as_fd(), &mut next as &mut dyn FnMut() -> Option<Order>));
        shell.run(Wires { stdin: None, stdout: out.as_fd(), stderr: null.as_fd(), orders }).expect("a shell runs")
    });
    let pid = read_soon(&file);
    wait_until("it has ended", || !lives(&pid));
    // The exit is on its way; nothing here shows when it has arrived.
    pause(Duration::from_secs(1));
    fd::write(order.as_fd(), b"a").expect("an order");
    wait_until("it is over", || running.is_finished());
    let mut all = Vec::new();
    stdout.read_to_end(&mut all).expect("output");
    assert!(matches!(running.join().expect("an end"), Ending::Aborted));
    assert!(all.iter().all(|byte| *byte == b'x'), "what waited is dropped");
    guest.assert_no_errors();
}

fn into_files<T: Into<fs::File>>((rd, wr): (T, T)) -> (fs::File, fs::File) {
    (rd.into(), wr.into())
}

// --- Much at once ---

#[test]
fn shells_and_artifacts_come_whole_while_the_log_streams() {
    let count = 200_000;
    let (host, guest) = both(&format!("i=0; while test $i -lt {count}; do i=$((i+1)); echo line $i; done"));
    let mut noise = Noise::new();
    let contents: Vec<Vec<u8>> = [5_000_000, 6_000_001, 7_000_003].map(|size| noise.bytes(size)).into();
    let inputs: Vec<Vec<u8>> = [8_000_009, 9_000_001].map(|size| noise.bytes(size)).into();
    let path = |name: String| host.folder.path(&name).display().to_string();
    wait_until("the log streams", || host.log().contains("line 100\r\n"));
    thread::scope(|scope| {
        for (number, content) in contents.iter().enumerate() {
            let (source, target) = (path(format!("source-{number}")), path(format!("target-{number}")));
            let host = &host;
            scope.spawn(move || {
                fs::write(&source, content).expect("a file");
                assert!(host.run(&["get", &source, &target], b"").status.success());
                assert!(fs::read(&target).expect("a file") == *content, "artifact {number}");
            });
        }
        for input in &inputs {
            let host = &host;
            scope.spawn(move || {
                let output = host.run(&["shell", "--", "sh", "-c", "tee /dev/stderr"], input);
                assert!(output.status.success() && output.stdout == *input && output.stderr == *input);
            });
        }
    });
    let last = format!("line {count}\r\n");
    wait_until("the log is complete", || host.log().ends_with(&last));
    let log = host.log();
    assert_eq!(log.len(), (1..=count).map(|number: usize| format!("line {number}\r\n").len()).sum::<usize>());
    assert!(log.lines().enumerate().all(|(at, line)| line == format!("line {}", at + 1)));
    guest.assert_no_errors();
}

/// Actions that a guest handles at once.
const ACTIONS_MAX: usize = 32;

/// Has as many shells as the limit allows, does something, and ends a shell each time that it is told to.
fn with_all_places_taken(served: &Served, check: impl FnOnce(&mut dyn FnMut())) {
    let running = AtomicUsize::new(0);
    let gates: Vec<_> = (0..ACTIONS_MAX).map(|_| fd::pipe().expect("a pipe")).collect();
    let (readers, writers): (Vec<_>, Vec<_>) = gates.into_iter().unzip();
    thread::scope(|scope| {
        // In here they are closed also when the check fails, or the shells would never end.
        let mut writers = writers;
        for gate in readers {
            let (service, running) = (&served.service, &running);
            scope.spawn(move || {
                let shell = service.exec_shell(&["cat".to_owned()], false).expect("a shell");
                running.fetch_add(1, Ordering::SeqCst);
                let null = fs::File::create("/dev/null").expect("a device");
                let wires =
                    Wires { stdin: Some(gate.as_fd()), stdout: null.as_fd(), stderr: null.as_fd(), orders: None };
                assert!(matches!(shell.run(wires).expect("a shell runs"), Ending::Succeeded));
            });
        }
        wait_until("the limit is reached", || running.load(Ordering::SeqCst) == ACTIONS_MAX);
        check(&mut || drop(writers.pop()));
        writers.clear();
    });
}

#[test]
fn as_many_actions_as_the_limit_run_and_one_more_waits() {
    let served = Served::start("sleep 60");
    let guest = served.guest();
    let folder = served.folder.path("empty").display().to_string();
    fs::create_dir(&folder).expect("a folder");
    with_all_places_taken(&served, |end_one| {
        let service = Arc::clone(&served.service);
        let folder = folder.clone();
        let further = thread::spawn(move || service.list_folder(&folder).expect("a list"));
        pause(Duration::from_millis(700));
        assert!(!further.is_finished(), "one above the limit waits");
        assert!(guest.percent_during(Duration::from_secs(1)) <= 3, "and nothing spins meanwhile");
        end_one();
        wait_until("it has a place", || further.is_finished());
        assert_eq!(further.join().expect("a list"), Vec::<String>::new());
    });
    guest.assert_no_errors();
}

#[test]
fn a_kill_needs_no_place_to_end_the_task_and_to_be_answered() {
    let served = Served::start("sleep 60");
    let guest = served.guest();
    with_all_places_taken(&served, |_| {
        let service = Arc::clone(&served.service);
        let kill = thread::spawn(move || service.kill_process());
        wait_until("the task has failed", || served.service.result() == Some(false));
        wait_until("it is answered", || kill.is_finished());
        assert!(kill.join().expect("an answer").is_ok());
    });
    guest.assert_no_errors();
}

#[test]
fn a_guest_that_has_no_descriptors_left_refuses_shells_and_goes_on() {
    let reply = Duration::from_secs(2);
    let served = Served::with_timers("sleep 60", Timers { reply, ..Timers::default() });
    let limited = ["sh", "-c", "ulimit -n 64; exec \"$@\"", "sh"];
    let guest = Guest::start_through(&limited, &served.address(), &[]);
    let (running, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let gates: Vec<_> = (0..20).map(|_| fd::pipe().expect("a pipe")).collect();
    let (readers, writers): (Vec<_>, Vec<_>) = gates.into_iter().unzip();
    thread::scope(|scope| {
        // In here they are closed also when something fails.
        let writers = writers;
        for gate in readers {
            let (service, running, refused) = (&served.service, &running, &refused);
            scope.spawn(move || {
                let Ok(shell) = service.exec_shell(&["cat".to_owned()], false) else {
                    refused.fetch_add(1, Ordering::SeqCst);
                    return;
                };
                running.fetch_add(1, Ordering::SeqCst);
                let null = fs::File::create("/dev/null").expect("a device");
                let wires =
                    Wires { stdin: Some(gate.as_fd()), stdout: null.as_fd(), stderr: null.as_fd(), orders: None };
                if !matches!(shell.run(wires).expect("a shell runs"), Ending::Succeeded) {
                    refused.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        wait_until("some are refused", || refused.load(Ordering::SeqCst) > 0);
        assert!(guest.percent_during(Duration::from_secs(1)) <= 5, "nothing spins meanwhile");
        drop(writers);
    });
    assert!(running.load(Ordering::SeqCst) > 3 && !guest.said().is_empty(), "{}", guest.said());
    let file = fs::File::create(served.folder.path("got")).expect("a file");
    served.service.get_artifact("/proc/self/limits", Box::new(file)).expect("all is well again");
    assert!(text(&fs::read(served.folder.path("got")).expect("a file")).contains("Max open files            64"));
}

/// Bytes of the longest list, with `{"files":[` in front and `],"notFound":false}` behind.
const LIST_MAX: usize = 10 << 20;

#[test]
fn a_list_of_the_longest_size_comes_whole_and_one_byte_more_is_refused() {
    let (host, guest) = both("true");
    let root = host.folder.path("l");
    let mut deep = root.clone();
    (0..14).for_each(|_| deep.push("d".repeat(250)));
    fs::create_dir_all(&deep).expect("folders");
    // Quotes and a comma are around each name; there is none in front of the first.
    let item = |folder: &Path, length: usize| folder.display().to_string().len() + 1 + length + 3;
    let name = |number: usize, length: usize| format!("z{number:0digits$}", digits = length - 1);
    let mut left = LIST_MAX - r#"{"files":["#.len() - r#"],"notFound":false}"#.len() + 1;
    let mut count = 0;
    while left > 2 * item(&deep, 240) {
        fs::write(deep.join(name(count, 240)), "").expect("a file");
        left -= item(&deep, 240);
        count += 1;
    }
    // Short paths make the sum exact.
    let short = left.div_ceil(item(&root, 240));
    for number in 0..short {
        let share = left / (short - number);
        fs::write(root.join(name(number, share - item(&root, 0))), "").expect("a file");
        left -= share;
    }
    count += short;
    let list = || Control::connect(&host.control()).expect("a host").list(&root.display().to_string());
    let names = list().expect("a list");
    assert_eq!(names.len(), count);
    assert_eq!(names.iter().map(|name| name.len() + 3).sum::<usize>() + 10 + 19 - 1, LIST_MAX);
    guest.assert_no_errors();
    let last = names.last().expect("a name");
    fs::rename(last, format!("{last}0")).expect("a file");
    let why = format!("{:?}", list().expect_err("no list"));
    assert!(why.contains("the reply is no list of files"), "{why}");
    assert!(guest.said().contains("longer than 10485760 bytes"), "{}", guest.said());
}

/// An artifact that is not worth a file.
#[derive(Default)]
struct Memory(Vec<u8>);

impl Store for Memory {
    fn begin(&mut self) -> io::Result<()> {
        self.0.clear();
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

#[test]
fn ten_thousand_artifacts_leave_no_descriptor_behind_on_either_side() {
    let (host, guest) = both("true");
    let path = host.folder.path("file");
    fs::write(&path, "content").expect("a file");
    let path = path.display().to_string();
    let get = || {
        let mut got = Memory::default();
        Control::connect(&host.control()).expect("a host").get(&path, &mut got).expect("an artifact");
        assert_eq!(got.0, b"content");
    };
    get();
    pause(Duration::from_millis(300));
    let before = [descriptors(host.pid()), descriptors(guest.process.pid())];
    let start = Instant::now();
    thread::scope(|scope| {
        let get = &get;
        (0..4).for_each(|_| drop(scope.spawn(move || (0..2_500).for_each(|_| get()))));
    });
    assert!(start.elapsed() < 4 * PATIENCE, "{:?}", start.elapsed());
    wait_until("the descriptors are closed", || {
        [descriptors(host.pid()), descriptors(guest.process.pid())].iter().zip(before).all(|(now, then)| *now <= then)
    });
    guest.assert_no_errors();
}
