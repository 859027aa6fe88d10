//! Real guests: a Debian kernel under QEMU, with the static binary as process 1.
//!
//! They need QEMU, a kernel (initramfs/fetch-kernel.sh), a static busybox and the static binary; without one of these each test says that it
//! was skipped and why, and LODGER_REQUIRE_GUEST=1 makes that a failure. LODGER_BOOTS is how often a guest is booted in a row.

#[path = "support/guest.rs"]
mod guest;
mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use guest::{Client, Kept, kernel, lodger, processes_with, run, text, vm};
use support::{Folder, wait_until};

#[test]
fn a_program_in_a_guest_has_its_streams_and_its_exit_status() {
    let Some(lodger) = lodger("a_program_in_a_guest_has_its_streams_and_its_exit_status") else { return };
    let script = "cat; echo to stderr >&2; echo $0 $1 $NAME; exit 7";
    let mut command = vm(&lodger, &["--busybox", "-e", "NAME=value"], &["sh", "-c", script, "zero", "one two"]);
    let mut child =
        Client(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("vm"));
    let input: Vec<u8> = (0..1_000_000u32).map(|number| (number % 251) as u8).collect();
    let mut stdin = child.0.stdin.take().expect("stdin");
    let writer = std::thread::spawn({
        let input = input.clone();
        move || stdin.write_all(&input)
    });
    let (mut stdout, mut stderr) = (Vec::new(), String::new());
    child.0.stdout.take().expect("stdout").read_to_end(&mut stdout).expect("output");
    child.0.stderr.take().expect("stderr").read_to_string(&mut stderr).expect("errors");
    writer.join().expect("a thread").expect("all input is taken");
    assert_eq!(child.0.wait().expect("an end").code(), Some(7), "{stderr}");
    assert_eq!(stderr, "to stderr\n");
    assert!(stdout == [&input[..], b"zero one two value\n"].concat(), "{} bytes came back", stdout.len());
}

#[test]
fn a_program_that_is_missing_or_killed_is_told_from_one_that_fails() {
    let Some(lodger) = lodger("a_program_that_is_missing_or_killed_is_told_from_one_that_fails") else { return };
    let guest = Kept::start(&lodger, &["--busybox"]);
    let status = |words: &[&str]| run(&mut guest.command(&[&["exec", "--"], words].concat())).status.code();
    assert_eq!(status(&["no-such-program"]), Some(127));
    assert_eq!(status(&["/etc"]), Some(126));
    assert_eq!(status(&["sh", "-c", "kill -SEGV $$"]), Some(128 + 11));
    assert_eq!(status(&["false"]), Some(1));
    assert_eq!(status(&["true"]), Some(0));
}

#[test]
fn a_tree_goes_into_a_guest_and_comes_back_the_same() {
    let Some(lodger) = lodger("a_tree_goes_into_a_guest_and_comes_back_the_same") else { return };
    let guest = Kept::start(&lodger, &["--busybox"]);
    let folder = Folder::new();
    let tree = folder.path("tree");
    fs::create_dir_all(tree.join("deep/er")).expect("folders");
    let bytes: Vec<u8> = (0..3_000_000u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(tree.join("big"), &bytes).expect("a file");
    fs::write(tree.join("deep/er/script"), "#!/bin/sh\necho ran\n").expect("a file");
    fs::set_permissions(tree.join("deep/er/script"), fs::Permissions::from_mode(0o751)).expect("a mode");
    std::os::unix::fs::symlink("deep/er", tree.join("link")).expect("a link");
    let hole = fs::File::create(tree.join("hole")).expect("a file");
    hole.set_len(50 << 20).expect("a hole");
    let copy = |from: &str, to: &str| {
        let output = run(&mut guest.command(&["cp", "-r", from, to]));
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    copy(&tree.display().to_string(), "guest:/root/tree");
    let sum = run(Command::new("sha256sum").arg(tree.join("big")));
    let here = text(&sum.stdout);
    assert_eq!(guest.shell("sha256sum /root/tree/big").split(' ').next(), here.split(' ').next());
    assert_eq!(guest.shell("/root/tree/link/script"), "ran\n");
    let back = folder.path("back");
    copy("guest:/root/tree", &back.display().to_string());
    assert!(fs::read(back.join("big")).expect("the file") == bytes);
    let same = |name: &str| {
        let (one, two) = (fs::symlink_metadata(tree.join(name)), fs::symlink_metadata(back.join(name)));
        let (one, two) = (one.expect("the original"), two.expect("the copy"));
        let times = |found: &fs::Metadata| (found.mtime(), found.mtime_nsec());
        assert_eq!((one.mode(), one.len(), times(&one)), (two.mode(), two.len(), times(&two)), "{name}");
    };
    ["big", "deep", "deep/er", "deep/er/script", "link", "hole"].iter().for_each(|name| same(name));
    assert!(fs::metadata(back.join("hole")).expect("the file").blocks() < 100, "the hole stayed one");
}

#[test]
fn a_virtio_port_wakes_the_agent_for_every_message() {
    let Some(lodger) = lodger("a_virtio_port_wakes_the_agent_for_every_message") else { return };
    let guest = Kept::start(&lodger, &["--busybox"]);
    let folder = Folder::new();
    let (large, small) = (folder.path("large"), folder.path("small"));
    fs::write(&large, vec![7; 600_000]).expect("a file");
    fs::write(&small, "x").expect("a file");
    // With the port twice in one poll(2) one of these in twenty never ended.
    for round in 0..60 {
        let paths = [large.display().to_string(), small.display().to_string()];
        let copy = guest.command(&["cp", &paths[0], &paths[1], "guest:/root"]).spawn();
        let mut client = Client(copy.expect("cp starts"));
        let mut status = None;
        wait_until(&format!("copy {round} has ended"), || {
            status = client.0.try_wait().expect("a status");
            status.is_some()
        });
        assert!(status.is_some_and(|status| status.success()), "copy {round}");
    }
}

#[test]
fn an_agent_that_is_killed_comes_back() {
    let Some(lodger) = lodger("an_agent_that_is_killed_comes_back") else { return };
    let guest = Kept::start(&lodger, &["--busybox"]);
    let agent = "ps | grep '[l]odger serve' | awk '{print $1}'";
    let before = guest.shell(agent);
    for _ in 0..3 {
        // The client loses the agent under it, of course.
        let killed = run(&mut guest.command(&["exec", "--", "sh", "-c", "kill -9 $PPID; sleep 10"]));
        assert_eq!(killed.status.code(), Some(125), "{}", text(&killed.stderr));
        wait_until("the agent is back", || run(&mut guest.command(&["exec", "--", "true"])).status.success());
    }
    assert_ne!(guest.shell(agent), before);
}

#[test]
fn orphans_are_buried() {
    let Some(lodger) = lodger("orphans_are_buried") else { return };
    let script = "i=0; while [ $i -lt 500 ]; do (sh -c : &); i=$((i+1)); done; \
                  zombies() { grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l; }; \
                  for i in $(seq 20); do sleep 1; [ $(zombies) = 0 ] && break; done; zombies";
    let output = run(&mut vm(&lodger, &["--busybox"], &["sh", "-c", script]));
    assert_eq!(text(&output.stdout).trim(), "0", "zombies; {}", text(&output.stderr));
}

#[test]
fn a_panic_is_reported_as_one() {
    let Some(lodger) = lodger("a_panic_is_reported_as_one") else { return };
    let crash = "echo c > /proc/sysrq-trigger; sleep 60";
    let output = run(&mut vm(&lodger, &["--busybox"], &["sh", "-c", crash]));
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(said.contains("the guest's kernel panicked") && said.contains("Kernel panic - not syncing"), "{said}");
}

#[test]
fn a_kernel_without_init_ends_in_an_error_and_not_in_a_hang() {
    let Some(lodger) = lodger("a_kernel_without_init_ends_in_an_error_and_not_in_a_hang") else { return };
    let start = Instant::now();
    let output = run(&mut vm(&lodger, &["--append", "rdinit=/no/such/init"], &["true"]));
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(said.contains("panicked") && said.contains("console"), "{said}");
    assert!(start.elapsed() < Duration::from_secs(60), "it took {:?}", start.elapsed());
}

#[test]
fn a_guest_that_powers_off_by_itself_is_no_panic() {
    let Some(lodger) = lodger("a_guest_that_powers_off_by_itself_is_no_panic") else { return };
    let output = run(&mut vm(&lodger, &["--busybox"], &["sh", "-c", "/bin/lodger poweroff; sleep 60"]));
    let said = text(&output.stderr);
    // The program ends by the SIGTERM that everybody gets, or the line goes first.
    assert!(matches!(output.status.code(), Some(125 | 129 | 137 | 143)), "{:?}: {said}", output.status);
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn the_time_limit_ends_a_guest() {
    let Some(lodger) = lodger("the_time_limit_ends_a_guest") else { return };
    let folder = Folder::new();
    let console = folder.path("console").display().to_string();
    let mut command = Command::new(&lodger);
    command.args(["vm", "-q", "--timeout", "8", "--busybox", "--console", &console, "--", "sleep", "1000"]);
    let output = run(command.stdin(Stdio::null()));
    assert_eq!(output.status.code(), Some(124), "{}", text(&output.stderr));
    assert!(processes_with(&console).is_empty(), "QEMU is left");
}

#[test]
fn an_interrupt_leaves_no_qemu_behind() {
    let Some(lodger) = lodger("an_interrupt_leaves_no_qemu_behind") else { return };
    let folder = Folder::new();
    let console = folder.path("console").display().to_string();
    // Once while it boots, once while the program runs.
    for (script, started) in [("echo never", ""), ("trap 'exit 42' INT; echo ready; sleep 1000 & wait", "ready\n")] {
        let mut command = vm(&lodger, &["--busybox", "--console", &console], &["sh", "-c", script]);
        let mut client = Client(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("vm"));
        wait_until("QEMU runs", || !processes_with(&format!("path={console}")).is_empty());
        let mut line = String::new();
        if !started.is_empty() {
            BufReader::new(client.0.stdout.take().expect("stdout")).read_line(&mut line).expect("a line");
            assert_eq!(line, started);
        }
        Command::new("kill").args(["-INT", &client.0.id().to_string()]).status().expect("kill");
        let code = client.0.wait().expect("an end").code();
        assert_eq!(code, Some(if started.is_empty() { 130 } else { 42 }), "{script}");
        wait_until("QEMU is gone", || processes_with(&format!("path={console}")).is_empty());
    }
    let mut command = vm(&lodger, &["--busybox", "--console", &console], &["sleep", "1000"]);
    // What a killed client leaves in its folder for temporary files goes with ours.
    command.env("TMPDIR", &folder.0);
    let mut client = Client(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("vm"));
    wait_until("QEMU runs", || !processes_with(&format!("path={console}")).is_empty());
    client.0.kill().expect("kill");
    wait_until("QEMU is gone with its killed client", || processes_with(&format!("path={console}")).is_empty());
}

#[test]
fn a_guest_without_virtio_is_reached_over_its_second_serial_line() {
    let Some(lodger) = lodger("a_guest_without_virtio_is_reached_over_its_second_serial_line") else { return };
    let folder = Folder::new();
    let no_modules = folder.0.display().to_string();
    let guest = Kept::start(&lodger, &["--busybox", "--modules", &no_modules]);
    assert_eq!(guest.shell("cat /proc/modules; tty < /dev/ttyS1; echo $((6*7))"), "/dev/ttyS1\n42\n");
    let output = run(&mut guest.command(&["exec", "--", "sh", "-c", "seq 1 20000; exit 9"]));
    assert_eq!(output.status.code(), Some(9));
    let numbers: String = (1..=20_000).map(|number| format!("{number}\n")).collect();
    assert!(text(&output.stdout) == numbers, "{} bytes came", output.stdout.len());
    let file = folder.path("file");
    fs::write(&file, vec![0xff; 50_000]).expect("a file");
    let copied = run(&mut guest.command(&["cp", &file.display().to_string(), "guest:/root/file"]));
    assert!(copied.status.success(), "{}", text(&copied.stderr));
    assert_eq!(guest.shell("wc -c < /root/file").trim(), "50000");
}

#[test]
fn a_program_on_the_kernel_command_line_reports_its_status_without_any_agent() {
    let name = "a_program_on_the_kernel_command_line_reports_its_status_without_any_agent";
    let Some(lodger) = lodger(name) else { return };
    let folder = Folder::new();
    let (archive, console) = (folder.path("initramfs.cpio.gz"), folder.path("console"));
    let built = run(Command::new(&lodger).args(["initramfs", "--busybox", "-o"]).arg(&archive));
    assert!(built.status.success(), "{}", text(&built.stderr));
    let kernel = kernel();
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-M", "q35", "-m", "256", "-nodefaults", "-display", "none", "-no-reboot"]);
    qemu.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(&archive);
    qemu.arg("-serial").arg(format!("file:{}", console.display()));
    qemu.args(["-append", "console=ttyS0 quiet panic=-1 lodger.exec=\"sh -c 'echo I am $0; exit 5' here\""]);
    let mut child = Client(qemu.stdin(Stdio::null()).spawn().expect("QEMU starts"));
    let deadline = Instant::now() + Duration::from_secs(90);
    let status = loop {
        if let Some(status) = child.0.try_wait().expect("a status") {
            break status;
        }
        assert!(Instant::now() < deadline, "QEMU hangs");
        std::thread::sleep(Duration::from_millis(50));
    };
    let said = fs::read_to_string(&console).unwrap_or_default();
    assert_eq!(status.code(), Some(5 * 2 + 1), "{said}");
    assert!(said.contains("I am here") && said.contains("lodger: exec ended with 5"), "{said}");
}

#[test]
fn guests_boot_again_and_again() {
    let Some(lodger) = lodger("guests_boot_again_and_again") else { return };
    let boots = std::env::var("LODGER_BOOTS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let mut times = Vec::new();
    for boot in 1..=boots {
        let start = Instant::now();
        let output = run(&mut vm(&lodger, &[], &["/bin/lodger", "version"]));
        assert!(output.status.success(), "boot {boot} of {boots}: {}", text(&output.stderr));
        assert!(text(&output.stdout).starts_with("lodger "), "boot {boot} of {boots}");
        times.push(start.elapsed());
    }
    times.sort();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    let _ = writeln!(std::io::stderr(), "{boots} boots without a failure, {median:?} each from start to end");
}
