//! `lodger vm --metadata`: a real guest whose agent does one task over QEMU's own network.
//!
//! What the tests with a guest need is said in tests/guest.rs.
#![cfg(feature = "metadata")]

#[path = "support/guest.rs"]
mod guest;
mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use guest::{Client, kernel, lodger, processes_with, run, text, vm};
use support::{Folder, wait_until};

/// `lodger vm --metadata` with these options and a shell script as its task.
fn task(lodger: &Path, options: &[&str], script: &str) -> Command {
    vm(lodger, &[&["--metadata", "--busybox"], options].concat(), &["sh", "-c", script, "zero"])
}

/// The same, started; and its stdout.
fn start(command: &mut Command) -> (Client, BufReader<ChildStdout>) {
    let mut client = Client(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("vm starts"));
    let stdout = client.0.stdout.take().expect("stdout");
    (client, BufReader::new(stdout))
}

/// What was said on stderr, and the status.
fn end(mut client: Client) -> (Option<i32>, String) {
    let mut said = String::new();
    client.0.stderr.take().expect("stderr").read_to_string(&mut said).expect("text");
    (client.0.wait().expect("an end").code(), said)
}

fn line(from: &mut impl BufRead) -> String {
    let mut line = String::new();
    from.read_line(&mut line).expect("a line");
    plain(&line)
}

/// A log without what the task's terminal puts in.
fn plain(log: &str) -> String {
    log.replace("\r\n", "\n")
}

#[test]
fn a_task_has_its_environment_and_its_log_and_can_be_looked_at_while_it_runs() {
    let name = "a_task_has_its_environment_and_its_log_and_can_be_looked_at_while_it_runs";
    let Some(lodger) = lodger(name) else { return };
    let folder = Folder::new();
    let control = format!("unix:{}", folder.path("control").display());
    // It takes the words of a further shell to end it, so that it runs while we look.
    let script = "echo $0 $NAME; echo to stderr >&2; mkdir -p out/deep; echo one > out/a; echo two > out/deep/b; \
                  cat /proc/cmdline > out/words; mkfifo go; echo ready; cat go; echo done";
    let options = ["-e", "NAME=a=b c", "--control", &control, "--linger", "0"];
    let (client, mut stdout) = start(&mut task(&lodger, &options, script));
    // The log is live.
    assert_eq!(line(&mut stdout), "zero a=b c\n");
    assert_eq!(line(&mut stdout), "to stderr\n");
    assert_eq!(line(&mut stdout), "ready\n");
    let ask = |words: &[&str]| -> Output {
        run(Command::new(&lodger).arg("metadata").args(words).env("LODGER_METADATA_CONTROL", &control))
    };
    let files = ask(&["ls", "/root/out/"]);
    assert_eq!(text(&files.stdout), "/root/out/a\n/root/out/deep/b\n/root/out/words\n", "{}", text(&files.stderr));
    assert_eq!(text(&ask(&["get", "/root/out/deep/b", "-"]).stdout), "two\n");
    let missing = ask(&["get", "/root/out/c", "-"]);
    assert!(missing.status.code() == Some(125) && text(&missing.stderr).contains("no such file"));
    let words = text(&ask(&["get", "/root/out/words", "-"]).stdout);
    assert!(words.contains("lodger.metadata=169.254.169.254:80") && words.contains("lodger.address=169.254.1.2/16"));
    let shell = ask(&["shell", "--", "sh", "-c", "echo from the shell; exec echo let go > /root/go"]);
    assert_eq!((shell.status.code(), text(&shell.stdout)), (Some(0), "from the shell\n".to_owned()));
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).expect("text");
    assert_eq!(plain(&rest), "let go\ndone\n");
    assert_eq!(end(client), (Some(0), String::new()));
    assert!(!folder.path("control").exists(), "the socket goes with its service");
}

#[test]
fn a_task_that_fails_makes_the_status_one_wherever_the_files_are() {
    let Some(lodger) = lodger("a_task_that_fails_makes_the_status_one_wherever_the_files_are") else { return };
    let folder = Folder::new();
    // All that QEMU and libslirp cut their options at.
    let strange = folder.path("it's a, \"strange\" place");
    fs::create_dir(&strange).expect("a folder");
    let program = strange.join("lodger");
    // By another process: a neighbour's fork would keep it open for writing, and it could not be executed.
    assert!(Command::new("cp").arg(&lodger).arg(&program).status().expect("cp(1)").success());
    let log = folder.path("log");
    let log_text = log.display().to_string();
    let options = ["--log", &log_text, "--append", "lodger.address=eth0:169.254.7.7/16"];
    let mut command = task(&program, &options, "ip addr show eth0; seq 1 50000; exit 3");
    let output = run(command.env("TMPDIR", &strange));
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "");
    let log = plain(&fs::read_to_string(log).expect("the log"));
    let numbers: String = (1..=50_000).map(|number| format!("{number}\n")).collect();
    assert!(log.contains("inet 169.254.7.7/16 ") && log.ends_with(&numbers), "{} bytes of log", log.len());
    assert_eq!(fs::read_dir(&strange).expect("the folder").count(), 1, "something is left beside the program");
}

#[test]
fn a_guest_that_panics_or_powers_off_ends_the_command_with_what_it_said() {
    let Some(lodger) = lodger("a_guest_that_panics_or_powers_off_ends_the_command_with_what_it_said") else { return };
    let crash = "echo last words; sleep 3; echo c > /proc/sysrq-trigger; sleep 60";
    let output = run(&mut task(&lodger, &[], crash));
    let said = text(&output.stderr);
    assert_eq!((output.status.code(), plain(&text(&output.stdout))), (Some(125), "last words\n".to_owned()), "{said}");
    assert!(said.contains("the guest's kernel panicked") && said.contains("Kernel panic - not syncing"), "{said}");
    let output = run(&mut task(&lodger, &[], "echo last words; sleep 3; poweroff -f; sleep 60"));
    let said = text(&output.stderr);
    assert_eq!((output.status.code(), plain(&text(&output.stdout))), (Some(125), "last words\n".to_owned()), "{said}");
    assert!(said.contains("the guest powered off by itself"), "{said}");
}

#[test]
fn a_guest_that_never_asks_for_its_task_ends_the_command() {
    let Some(lodger) = lodger("a_guest_that_never_asks_for_its_task_ends_the_command") else { return };
    let start = Instant::now();
    // This includes the boot.
    let astray = ["--wait", "30", "--append", "lodger.address=nowhere lodger.metadata=169.254.1.99:80"];
    let output = run(&mut task(&lodger, &astray, "true"));
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(said.contains("the guest has not asked for its task within 30 s"), "{said}");
    assert!(said.contains("lodger.address: nowhere is no"), "{said}");
    assert!(start.elapsed() < Duration::from_secs(80), "it took {:?}", start.elapsed());
}

#[test]
fn an_interrupt_kills_the_task_and_the_time_limit_the_guest() {
    let Some(lodger) = lodger("an_interrupt_kills_the_task_and_the_time_limit_the_guest") else { return };
    let folder = Folder::new();
    // In the command lines of QEMU and of the relays.
    let name = folder.0.display().to_string();
    let (client, mut stdout) = start(task(&lodger, &[], "echo ready; sleep 1000").env("TMPDIR", &folder.0));
    assert_eq!(line(&mut stdout), "ready\n");
    assert!(processes_with(&format!("unix:{name}")).len() > 1, "QEMU and a relay at least");
    lodger::sys::signal::send(client.0.id() as i32, lodger::sys::signal::SIGINT).expect("it lives");
    assert_eq!(end(client), (Some(1), String::new()));
    wait_until("nothing is left", || processes_with(&name).is_empty());
    let mut command = Command::new(&lodger);
    command.args(["vm", "-q", "--timeout", "8", "--metadata", "--busybox", "--", "sleep", "1000"]);
    let output = run(command.env("TMPDIR", &folder.0).stdin(Stdio::null()));
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(124), "{said}");
    // The second one on a machine that is too slow for the task to begin.
    assert!(said.contains("the time is over") || said.contains("has not asked for its task"), "{said}");
    wait_until("nothing is left", || processes_with(&name).is_empty());
    assert_eq!(fs::read_dir(&folder.0).expect("the folder").count(), 0);
}

#[test]
fn an_interface_that_comes_late_gets_its_address() {
    let Some(lodger) = lodger("an_interface_that_comes_late_gets_its_address") else { return };
    let release = kernel().file_name().expect("a name").to_string_lossy().replace("vmlinuz-", "");
    let root = kernel().parent().and_then(Path::parent).expect("a root").to_owned();
    let driver = root.join("lib/modules").join(release).join("kernel/drivers/net/dummy.ko");
    let add = format!("{}:/dummy.ko", driver.display());
    let options = ["--busybox", "--add", &add, "--append", "lodger.address=10.9.8.7/24"];
    let script = "insmod /dummy.ko; until ip addr show dummy0 | grep 'inet '; do sleep 0.1; done";
    let output = run(&mut vm(&lodger, &options, &["sh", "-c", script]));
    let said = text(&output.stdout);
    assert!(said.trim().starts_with("inet 10.9.8.7/24 brd 10.9.8.255 "), "{said}{}", text(&output.stderr));
}

#[test]
fn options_that_make_no_sense_together_are_refused_before_anything_starts() {
    let refusal = |options: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lodger"));
        let output = run(command.arg("vm").args(options).args(["--", "true"]).stdin(Stdio::null()));
        assert_eq!(output.status.code(), Some(125), "{options:?}");
        text(&output.stderr)
    };
    for option in [&["-t"][..], &["-n"], &["-C", "/"], &["--record", "f"], &["--keep"], &["--single-serial"]] {
        let said = refusal(&[&["--metadata"], option].concat());
        assert!(said.contains(&format!("{} cannot stand with --metadata", option[0])), "{said}");
    }
    for option in [["--log", "-"], ["--control", "unix:/x"], ["--linger", "1"]] {
        let said = refusal(&option);
        assert!(said.contains(&format!("{} stands only with --metadata", option[0])), "{said}");
    }
    let folder = Folder::new();
    let (kernel, modules) = (folder.path("vmlinuz"), folder.0.display().to_string());
    fs::write(&kernel, "").expect("a file");
    let kernel = kernel.display().to_string();
    let said = refusal(&["--metadata", "--kernel", &kernel]);
    assert!(said.contains("virtio_pci: the kernel has no modules beside it"), "{said}");
    let said = refusal(&["--metadata", "--kernel", &kernel, "--modules", &modules]);
    assert!(said.contains("virtio_net: neither in"), "{said}");
}
