//! One archive, as `lodger initramfs` makes it, in machines with different ways into them: its agent is reached over each that is there.
//!
//! Nothing on the kernel's command line says where it listens. Beside what tests/guest.rs needs, they need vhost-device-vsock; without it the
//! machines with a vsock are skipped, and LODGER_REQUIRE_GUEST=1 makes that a failure. LODGER_MACHINE=WORDS tries only those with these words in
//! their name.

#[path = "support/guest.rs"]
mod guest;
mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use guest::{Client, hear_ready, kernel, patience, run, text, wait_for_guest};
use support::{Folder, wait_until};

/// The drivers of every way in.
const MODULES: [&str; 3] = ["virtio_pci", "virtio_console", "vmw_vsock_virtio_transport"];

/// How many machines run at a time.
const LANES: usize = 2;

/// Parts of a machine, as options of QEMU. `DIR` is the guest's folder; what has a socket is reached by it, and the console is in its file or
/// in the log of its socket.
const FIRST_UART: &str = "-chardev socket,id=s0,server=on,wait=off,path=DIR/s0,logfile=DIR/console -serial chardev:s0";
const FIRST_UART_TO_FILE: &str = "-serial file:DIR/console";
const SECOND_UART: &str = "-chardev socket,id=s1,server=on,wait=off,path=DIR/s1 -serial chardev:s1";
const BUS: &str = "-device virtio-serial-pci";
const PORT: &str =
    "-chardev socket,id=port,server=on,wait=off,path=DIR/port -device virtserialport,chardev=port,name=org.lodger.0";
const FIRST_CONSOLE: &str = "-chardev null,id=h0 -device virtconsole,chardev=h0";
const FIRST_CONSOLE_TO_FILE: &str = "-chardev file,id=h0,path=DIR/console -device virtconsole,chardev=h0";
const SECOND_CONSOLE: &str = "-chardev socket,id=h1,server=on,wait=off,path=DIR/h1 -device virtconsole,chardev=h1";
const VSOCK: &str = "-chardev socket,id=vsock,path=DIR/device -device vhost-user-vsock-pci,chardev=vsock";

/// A machine, what its kernel is told, and what must be seen.
struct Machine {
    name: &'static str,
    devices: &'static [&'static str],
    append: &'static str,
    /// The ways in, as addresses in which `DIR` is the guest's folder.
    ways: &'static [&'static str],
    /// Everything that the agent listens on besides sockets, sorted.
    opened: &'static str,
    check: fn(&Guest),
}

const MACHINES: [Machine; 9] = [
    Machine {
        name: "everything at once",
        devices: &[FIRST_UART, SECOND_UART, BUS, FIRST_CONSOLE, SECOND_CONSOLE, PORT, VSOCK],
        append: "console=ttyS0",
        ways: &["serial:DIR/s0", "serial:DIR/s1", "serial:DIR/port", "serial:DIR/h1", "hvsock:DIR/vsock:1074"],
        opened: "/dev/hvc1 /dev/ttyS0 /dev/ttyS1 /dev/vport",
        check: every_way_is_used_at_once,
    },
    Machine {
        name: "one UART, which is the console too",
        devices: &[FIRST_UART],
        append: "console=ttyS0",
        ways: &["serial:DIR/s0"],
        opened: "/dev/ttyS0",
        check: |_| {},
    },
    Machine {
        name: "two UARTs",
        devices: &[FIRST_UART_TO_FILE, SECOND_UART],
        append: "console=ttyS0",
        ways: &["serial:DIR/s1"],
        opened: "/dev/ttyS0 /dev/ttyS1",
        check: console_is_text,
    },
    Machine {
        name: "a virtio port",
        devices: &[FIRST_UART_TO_FILE, BUS, PORT],
        append: "console=ttyS0",
        ways: &["serial:DIR/port"],
        opened: "/dev/ttyS0 /dev/vport",
        check: console_is_text,
    },
    // vhost-device-vsock 0.3.0 ends the thread of its queues when a host connects while the guest's driver sets them up, and every later
    // connection hangs. So a guest with no other way in says itself that its driver is there, and no host connects before.
    Machine {
        name: "a vsock",
        devices: &[FIRST_UART_TO_FILE, VSOCK],
        append: "console=ttyS0 vmm.notify_socket=vsock:2:9999",
        ways: &["hvsock:DIR/vsock:1074"],
        opened: "/dev/ttyS0",
        check: console_is_text,
    },
    Machine {
        name: "two virtio consoles and no UART",
        devices: &[BUS, FIRST_CONSOLE_TO_FILE, SECOND_CONSOLE],
        append: "console=hvc0",
        ways: &["serial:DIR/h1"],
        opened: "/dev/hvc0 /dev/hvc1",
        check: console_is_text,
    },
    Machine {
        name: "two virtio consoles beside the console",
        devices: &[FIRST_UART_TO_FILE, BUS, FIRST_CONSOLE, SECOND_CONSOLE],
        append: "console=ttyS0",
        ways: &["serial:DIR/h1"],
        opened: "/dev/hvc1 /dev/ttyS0",
        check: console_is_text,
    },
    Machine {
        name: "a program on the console",
        devices: &[FIRST_UART, BUS, PORT],
        append: "console=ttyS0 quiet lodger.exec=\"sh -c 'echo one; echo two; while read a; do echo got $a; done'\"",
        ways: &["serial:DIR/port"],
        opened: "/dev/vport",
        check: console_is_the_programs,
    },
    Machine {
        name: "somebody on the second UART",
        devices: &[FIRST_UART, SECOND_UART],
        append: "console=ttyS0 rdinit=/first",
        ways: &["serial:DIR/s0"],
        opened: "/dev/ttyS0",
        check: second_uart_is_left_alone,
    },
];

/// Process 1 of the last machine.
const FIRST: &str = "#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
sleep 1000 < /dev/ttyS1 > /dev/null 2>&1 &
until readlink /proc/$!/fd/0 | grep -q ttyS1; do usleep 10000; done
exec /bin/lodger serve --listen auto
";

/// A machine that runs, ended with the test.
struct Guest {
    lodger: PathBuf,
    folder: Folder,
    machine: &'static Machine,
    /// Where it says that it is ready, if it was told to.
    ready: Option<UnixListener>,
    _qemu: Client,
    _device: Option<Client>,
}

impl Guest {
    fn boot(lodger: &Path, archive: &Path, vsock: &Path, machine: &'static Machine) -> Guest {
        let folder = Folder::new();
        let here = |text: &str| text.replace("DIR", &folder.0.display().to_string());
        let says_ready = machine.append.contains("notify_socket");
        let ready = says_ready.then(|| UnixListener::bind(folder.path("vsock_9999")).expect("a socket"));
        let device = machine.devices.contains(&VSOCK).then(|| {
            let mut command = Command::new(vsock);
            command.args(["--vm", &here("guest-cid=4,uds-path=DIR/vsock,socket=DIR/device")]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let device = Client(command.spawn().expect("the device starts"));
            wait_until("the device listens", || folder.path("device").exists());
            device
        });
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-M", "q35,memory-backend=memory", "-m", "256", "-cpu", "max", "-nodefaults", "-display", "none"]);
        qemu.args(["-object", "memory-backend-memfd,id=memory,size=256M,share=on", "-no-reboot"]);
        machine.devices.iter().for_each(|part| _ = qemu.args(here(part).split(' ')));
        qemu.arg("-kernel").arg(kernel()).arg("-initrd").arg(archive);
        qemu.arg("-append").arg(format!("panic=-1 cryptomgr.notests {}", machine.append));
        let qemu = Client(qemu.stdin(Stdio::null()).spawn().expect("QEMU starts"));
        Guest { lodger: lodger.to_owned(), folder, machine, ready, _qemu: qemu, _device: device }
    }

    fn ways(&self) -> Vec<String> {
        self.machine.ways.iter().map(|way| way.replace("DIR", &self.folder.0.display().to_string())).collect()
    }

    /// What a script prints, by one of the ways in. The agent may not be there yet; its exit status must arrive.
    fn shell(&self, way: &str, script: &str) -> String {
        let script = format!("{script}\nexit 7");
        let mut command = Command::new(&self.lodger);
        command.args(["exec", "--wait", &patience(), "--to", way, "--", "sh", "-c", &script]).stdin(Stdio::null());
        let output = run(&mut command);
        let said = format!("{way}: {}", text(&output.stderr));
        assert_eq!(output.status.code(), Some(7), "{said}\n{}", self.console());
        text(&output.stdout)
    }

    fn console(&self) -> String {
        text(&fs::read(self.folder.path("console")).unwrap_or_default())
    }
}

/// Every way is used by a program that waits for those on the others.
fn every_way_is_used_at_once(guest: &Guest) {
    let ways = guest.ways();
    thread::scope(|scope| {
        for (number, way) in ways.iter().enumerate() {
            let script = format!(
                "touch /tmp/way{number}; until [ $(ls /tmp/way* | wc -l) = {} ]; do usleep 50000; done",
                ways.len()
            );
            let script = format!("{script}; echo {number}");
            scope.spawn(move || assert_eq!(guest.shell(way, &script), format!("{number}\n")));
        }
    });
}

/// The agent is on the console's line too, but says nothing there before somebody speaks to it.
fn console_is_text(guest: &Guest) {
    guest.shell(&guest.ways()[0], "echo '<3>the kernel speaks' > /dev/kmsg");
    wait_until("the kernel's line is there", || guest.console().contains("the kernel speaks\r\n"));
    let console = fs::read(guest.folder.path("console")).expect("the console's file");
    let is_text = |byte: &u8| matches!(byte, b' '..=b'~' | b'\t' | b'\r' | b'\n');
    assert!(console.iter().all(is_text), "{:?}", text(&console));
}

fn console_is_the_programs(guest: &Guest) {
    wait_until("the program has spoken", || guest.console().ends_with("two\r\n"));
    assert!(guest.console().ends_with("one\r\ntwo\r\n"), "{:?}", guest.console());
    let mut socket = UnixStream::connect(guest.folder.path("s0")).expect("QEMU listens");
    socket.write_all(b"words\r").expect("QEMU reads");
    let expected = "one\r\ntwo\r\nwords\r\ngot words\r\n";
    wait_until("the program has answered", || guest.console().contains("got"));
    assert_eq!(guest.shell(&guest.ways()[0], "echo beside"), "beside\n");
    assert!(guest.console().ends_with(expected), "{:?}", guest.console());
}

fn second_uart_is_left_alone(guest: &Guest) {
    let settings = guest.shell(&guest.ways()[0], "stty -a < /dev/ttyS1");
    assert!(settings.contains(" icanon") && settings.contains(" echo "), "{settings}");
    let mut socket = UnixStream::connect(guest.folder.path("s1")).expect("QEMU listens");
    socket.set_nonblocking(true).expect("a socket");
    let error = socket.read(&mut [0; 100]).expect_err("nothing was said");
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
}

/// Boots a machine and looks at it.
fn look_at(lodger: &Path, archive: &Path, vsock: &Path, machine: &'static Machine) {
    let start = Instant::now();
    let guest = Guest::boot(lodger, archive, vsock, machine);
    let ways = guest.ways();
    if let Some(ready) = &guest.ready {
        hear_ready(ready, || ());
    }
    assert_eq!(guest.shell(&ways[0], "echo $((6 * 7))"), "42\n");
    let reached = start.elapsed();
    // The agent is the shell's parent. The path of a port has numbers that do not matter.
    let script = "for fd in /proc/$PPID/fd/*; do readlink $fd; done | grep -E '^/dev/(tty|hvc|vport)' \\
        | sed 's/vport.*/vport/' | sort -u";
    // Ports come one after the other, on a busy machine seconds later, and the agent looks for them again and again.
    let mut opened = String::new();
    wait_for_guest("the agent has found every way", || {
        opened = guest.shell(&ways[0], script).trim().replace('\n', " ");
        opened.len() >= machine.opened.len()
    });
    assert_eq!(opened, machine.opened);
    (machine.check)(&guest);
    let Machine { name, .. } = machine;
    let (reached, all) = (reached.as_secs_f32(), start.elapsed().as_secs_f32());
    let _ = writeln!(std::io::stderr(), "{name}: reached after {reached:.1} s, all done after {all:.1} s");
}

fn vsock_device() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::var_os("CARGO_HOME").map(|home| Path::new(&home).join("bin"));
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("build/tools/bin");
    let mut folders = std::env::split_paths(&path).chain([tools]).chain(home);
    folders.find_map(|folder| Some(folder.join("vhost-device-vsock")).filter(|path| path.is_file()))
}

fn build_archive(lodger: &Path, folder: &Folder) -> PathBuf {
    let (archive, first) = (folder.path("initramfs.cpio"), folder.path("first"));
    fs::write(&first, FIRST).expect("a script");
    assert!(Command::new("chmod").arg("755").arg(&first).status().expect("chmod runs").success());
    let kernel = kernel();
    let release = kernel.file_name().and_then(|name| name.to_str()?.strip_prefix("vmlinuz-")).expect("a release");
    let modules = kernel.parent().and_then(Path::parent).expect("a folder").join("lib/modules").join(release);
    let mut build = Command::new(lodger);
    build.args(["initramfs", "--busybox", "--add", &format!("{}:/first", first.display())]);
    build.args(MODULES.iter().flat_map(|module| ["--module", module])).arg("--modules").arg(modules);
    let built = run(build.arg("-o").arg(&archive));
    assert!(built.status.success(), "{}", text(&built.stderr));
    archive
}

#[test]
fn one_archive_is_reached_over_every_way_into_its_machine() {
    let name = "one_archive_is_reached_over_every_way_into_its_machine";
    let Some(lodger) = guest::lodger(name) else { return };
    let vsock = vsock_device();
    if vsock.is_none() {
        let text =
            format!("{name} skips machines with a vsock: there is no vhost-device-vsock (tests/run.sh installs it)");
        assert!(std::env::var_os("LODGER_REQUIRE_GUEST").is_none_or(|value| value.is_empty()), "{text}");
        let _ = writeln!(std::io::stderr(), "{text}");
    }
    let folder = Folder::new();
    let archive = build_archive(&lodger, &folder);
    let only = std::env::var("LODGER_MACHINE").unwrap_or_default();
    let machines = MACHINES.iter().filter(|machine| vsock.is_some() || !machine.devices.contains(&VSOCK));
    let machines = Mutex::new(machines.filter(|machine| machine.name.contains(&only)));
    let failed = Mutex::new(Vec::new());
    let lane = || {
        let next = || machines.lock().unwrap_or_else(PoisonError::into_inner).next();
        while let Some(machine) = next() {
            let vsock = vsock.as_deref().unwrap_or(Path::new(""));
            // The panic of one does not stop the others.
            let looked = thread::scope(|scope| scope.spawn(|| look_at(&lodger, &archive, vsock, machine)).join());
            if looked.is_err() {
                failed.lock().unwrap_or_else(PoisonError::into_inner).push(machine.name);
            }
        }
    };
    thread::scope(|scope| (0..LANES).for_each(|_| drop(scope.spawn(lane))));
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    assert!(failed.is_empty(), "{failed:?}");
}
