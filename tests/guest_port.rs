//! Virtio ports in a real guest: found by name, left alone while the host is away, served anew for each host; and modules that the host has
//! unpacked. What these tests need is told in tests/guest.rs.

#[path = "support/guest.rs"]
mod guest;
mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use guest::{Client, kernel, lodger, patience, run, text, vm, wait_for_guest};
use support::{Folder, PATIENCE, pause};

/// The name that the port has.
const NAME: &str = "org.lodger.0";

/// A guest whose agent is on a port that it knows by name; ended with the test.
struct Guest {
    lodger: PathBuf,
    folder: Folder,
    _qemu: Client,
}

/// The modules of the kernel that guests boot.
fn modules() -> PathBuf {
    let kernel = kernel();
    let release = kernel.file_name().and_then(|name| name.to_str()?.strip_prefix("vmlinuz-")).expect("a release");
    kernel.parent().and_then(Path::parent).expect("a folder").join("lib/modules").join(release)
}

impl Guest {
    fn start(lodger: &Path, modules: &Path) -> Guest {
        let folder = Folder::new();
        let archive = folder.path("initramfs.cpio");
        let mut build = Command::new(lodger);
        build.args(["initramfs", "--busybox", "--module", "virtio_pci", "--module", "virtio-console", "--modules"]);
        let built = run(build.arg(modules).arg("-o").arg(&archive));
        assert!(built.status.success(), "{}", text(&built.stderr));
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-M", "q35", "-m", "256", "-cpu", "max", "-nodefaults", "-display", "none", "-no-reboot"]);
        qemu.arg("-kernel").arg(kernel()).arg("-initrd").arg(&archive);
        qemu.arg("-append").arg(format!("console=ttyS0 quiet panic=-1 lodger.listen=port:{NAME}"));
        qemu.arg("-serial").arg(format!("file:{}", folder.path("console").display()));
        // Another port stands before ours, so that no guess finds it.
        qemu.args(["-device", "virtio-serial-pci", "-chardev", "null,id=other"]);
        qemu.args(["-device", "virtserialport,chardev=other,name=com.example.other"]);
        let socket = folder.path("port");
        qemu.arg("-chardev").arg(format!("socket,id=port,server=on,wait=off,path={}", socket.display()));
        qemu.args(["-device", &format!("virtserialport,chardev=port,name={NAME},id=line")]);
        qemu.arg("-monitor").arg(format!("unix:{},server=on,wait=off", folder.path("monitor").display()));
        let qemu = Client(qemu.stdin(Stdio::null()).spawn().expect("QEMU starts"));
        let guest = Guest { lodger: lodger.to_owned(), folder, _qemu: qemu };
        let connected = run(&mut guest.command(&["connect", "--wait", &patience()]));
        assert!(connected.status.success(), "{}{}", text(&connected.stderr), guest.console());
        guest
    }

    fn console(&self) -> String {
        fs::read_to_string(self.folder.path("console")).unwrap_or_default()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.lodger);
        command.args(words).env("LODGER_TO", format!("port:{}", self.folder.path("port").display()));
        command.stdin(Stdio::null());
        command
    }

    fn shell(&self, options: &[&str], script: &str) -> String {
        let output = run(&mut self.command(&[&["exec"], options, &["--", "sh", "-c", script]].concat()));
        assert!(output.status.success(), "{script}: {}{}", text(&output.stderr), self.console());
        text(&output.stdout)
    }
}

#[test]
fn a_port_is_found_by_its_name_and_left_alone_while_the_host_is_away() {
    let Some(lodger) = lodger("a_port_is_found_by_its_name_and_left_alone_while_the_host_is_away") else { return };
    let guest = Guest::start(&lodger, &modules());
    assert_eq!(guest.shell(&[], "cat /sys/class/virtio-ports/vport*/name"), format!("com.example.other\n{NAME}\n"));
    // Counted while nobody is connected: by a program that stays behind.
    let count = "cat /proc/$agent/task/*/status | awk '/^voluntary/ { sum += $2 } END { print sum }'";
    let script = format!(
        "agent=$(pidof lodger | tr ' ' '\\n' | while read p; do grep -qa serve /proc/$p/cmdline && echo $p; done); \
         look() {{ cut -d. -f1 /proc/uptime; {count}; }}; \
         sleep 1; look > /root/counts; sleep 5; look >> /root/counts; echo both counted > /dev/console"
    );
    guest.shell(&["--detach"], &script);
    // A look at the port would end what is counted.
    wait_for_guest("the guest has counted", || guest.console().contains("both counted"));
    let said = guest.shell(&[], "cat /root/counts");
    let numbers: Vec<u64> = said.lines().map(|line| line.parse().expect("a number")).collect();
    let [start, before, end, after] = numbers[..] else { panic!("two times and counts are wanted: {said:?}") };
    let (woken, seconds) = (after - before, end - start);
    let _ = writeln!(std::io::stderr(), "{woken} wake-ups in {seconds} s with the host away");
    assert!(before > 0 && woken <= 2 * seconds, "{woken} wake-ups in {seconds} s");
}

#[test]
fn every_host_that_comes_is_greeted_at_once_and_served_anew() {
    let Some(lodger) = lodger("every_host_that_comes_is_greeted_at_once_and_served_anew") else { return };
    let guest = Guest::start(&lodger, &modules());
    for round in 0..50 {
        // Some leave without a farewell, in the middle of a program's output.
        if round % 5 == 0 {
            let mut client = guest.command(&["exec", "--", "yes"]);
            let mut client = Client(client.stdout(Stdio::piped()).spawn().expect("exec starts"));
            let mut piece = [0; 100];
            client.0.stdout.take().expect("a pipe").read_exact(&mut piece).expect("output");
            client.0.kill().expect("it runs");
            client.0.wait().expect("its end");
        }
        assert_eq!(guest.shell(&[], &format!("echo {round}")), format!("{round}\n"));
    }
    let mut times: Vec<Duration> = (0..21)
        .map(|_| {
            // An agent that has not noticed that one host went takes the next for the same, and waits to be greeted by it.
            pause(Duration::from_millis(100));
            let start = Instant::now();
            let mut socket = UnixStream::connect(guest.folder.path("port")).expect("QEMU listens");
            socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
            socket.read_exact(&mut [0]).expect("the agent's greeting");
            start.elapsed()
        })
        .collect();
    times.sort();
    let _ = writeln!(std::io::stderr(), "greeted within {:?} to {:?}, median {:?}", times[0], times[20], times[10]);
    // A look every second would be slower.
    assert!(times[15] < Duration::from_millis(300), "greeted within {times:?}");
}

#[test]
fn a_port_that_is_unplugged_and_plugged_in_again_is_served() {
    let Some(lodger) = lodger("a_port_that_is_unplugged_and_plugged_in_again_is_served") else { return };
    let guest = Guest::start(&lodger, &modules());
    let mut monitor = UnixStream::connect(guest.folder.path("monitor")).expect("QEMU listens");
    monitor.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    let mut tell = |words: &str| {
        monitor.write_all(format!("{words}\n").as_bytes()).expect("QEMU reads");
        let (mut said, mut piece) = (Vec::new(), [0; 1000]);
        while !text(&said).contains(&format!("{words}\r\n")) && !said.ends_with(b"(qemu) ") {
            let count = monitor.read(&mut piece).expect("an answer");
            said.extend_from_slice(&piece[..count]);
        }
    };
    for round in 0..3 {
        tell("device_del line");
        // Its place is free for another one, so that the agent would hold the wrong device if it held on to the old one.
        tell("device_add virtserialport,chardev=port,name=com.example.other,id=wrong,nr=5");
        tell("device_del wrong");
        tell(&format!("device_add virtserialport,chardev=port,name={NAME},id=line,nr={}", 3 + round));
        let connected = run(&mut guest.command(&["connect", "--wait", &patience()]));
        assert!(connected.status.success(), "round {round}: {}{}", text(&connected.stderr), guest.console());
        assert_eq!(guest.shell(&[], "echo again"), "again\n");
    }
}

#[test]
fn compressed_modules_are_loaded_by_a_kernel_that_unpacks_none() {
    let Some(lodger) = lodger("compressed_modules_are_loaded_by_a_kernel_that_unpacks_none") else { return };
    let folder = Folder::new();
    let source = modules();
    let tree = folder.path("modules").join(source.file_name().expect("a release"));
    fs::create_dir_all(tree.join("kernel")).expect("a folder");
    fs::copy(source.join("modules.builtin"), tree.join("modules.builtin")).expect("a list");
    let packers: [&[&str]; 3] = [&["xz", "--check=crc32", "--lzma2=dict=1MiB"], &["zstd", "-q", "--rm"], &["gzip"]];
    let names =
        ["virtio", "virtio_ring", "virtio_console", "virtio_pci", "virtio_pci_modern_dev", "virtio_pci_legacy_dev"];
    for (index, name) in names.iter().enumerate() {
        let found = run(Command::new("find").arg(&source).args(["-name", &format!("{name}.ko")]));
        let copy = tree.join("kernel").join(format!("{name}.ko"));
        fs::copy(text(&found.stdout).trim(), &copy).expect("a module");
        let [program, options @ ..] = packers[index % packers.len()] else { continue };
        match Command::new(program).args(options).arg(&copy).status() {
            Ok(status) => assert!(status.success() && !copy.exists(), "{program} packs {name}"),
            Err(error) => _ = writeln!(std::io::stderr(), "{name} stays as it is: {program}: {error}"),
        }
    }
    let guest = Guest::start(&lodger, &tree);
    let loaded = guest.shell(&[], "cat /proc/modules; find /lib/modules -name '*.ko.*'");
    let loaded: Vec<&str> = loaded.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(names.iter().all(|name| loaded.contains(name)) && loaded.len() == names.len(), "{loaded:?}");
    let complained = guest.console().lines().any(|line| line.contains("lodger: load "));
    assert!(!complained, "{}", guest.console());
}

#[test]
fn a_guest_of_vm_has_the_modules_that_were_asked_for_and_is_waited_for_as_long_as_is_said() {
    let Some(lodger) = lodger("a_guest_of_vm_has_the_modules_that_were_asked_for_and_is_waited_for_as_long_as_is_said")
    else {
        return;
    };
    let script = "grep -c '^vsock ' /proc/modules";
    let output = run(&mut vm(&lodger, &["--busybox", "--module", "vsock"], &["sh", "-c", script]));
    assert_eq!(text(&output.stdout), "1\n", "{}", text(&output.stderr));
    let output = run(&mut vm(&lodger, &["--module", "no_such", "--module", "nor-this"], &["true"]));
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(125) && said.contains("module no_such, nor_this: neither in "), "{said}");
    // Built into this kernel, which is as good.
    let output = run(&mut vm(&lodger, &["--busybox", "--module", "serial_core"], &["true"]));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let output = run(&mut vm(&lodger, &["--wait", "0.1"], &["true"]));
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(125) && said.contains("no agent answered within"), "{said}");
}
