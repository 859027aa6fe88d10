//! Hyperstart's channels in a real guest, on the virtio ports or the serial lines that its hosts give it. What these tests need is told in tests/guest.rs.
#![cfg(feature = "clear")]

#[path = "support/guest.rs"]
mod guest;
#[path = "hyper/rig.rs"]
mod rig;
mod support;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use guest::{Client, GUEST_PATIENCE, kernel, lodger, run, text};
use rig::{ACK, Ctl, Tty, ctl_message, tty_message};
use serde_json::json;
use support::{Folder, PATIENCE, pause, wait_until};

/// A guest with both ports; ended with the test.
struct Guest {
    folder: Folder,
    qemu: Client,
}

impl Drop for Guest {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", fs::read_to_string(self.folder.path("console")).unwrap_or_default());
        }
    }
}

/// What carries the channels.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lines {
    Virtio,
    /// The second and the third serial port; the first one is the console.
    Serial,
}

impl Guest {
    fn start(lodger: &Path, lines: Lines) -> Guest {
        let kernel = kernel();
        let release = kernel.file_name().and_then(|name| name.to_str()?.strip_prefix("vmlinuz-")).expect("a release");
        let modules = kernel.parent().and_then(Path::parent).expect("a folder").join("lib/modules").join(release);
        let folder = Folder::new();
        let archive = folder.path("initramfs.cpio");
        let mut build = Command::new(lodger);
        build.args(["initramfs", "--busybox", "--module", "virtio_pci", "--module", "virtio-console", "--modules"]);
        let built = run(build.arg(modules).arg("-o").arg(&archive));
        assert!(built.status.success(), "{}", text(&built.stderr));
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-M", "q35", "-m", "256", "-cpu", "max", "-nodefaults", "-display", "none", "-no-reboot"]);
        qemu.arg("-kernel").arg(kernel).arg("-initrd").arg(&archive);
        let [ctl, tty] = match lines {
            Lines::Virtio => ["sh.hyper.channel.0", "sh.hyper.channel.1"],
            Lines::Serial => ["/dev/ttyS1", "/dev/ttyS2"],
        };
        let listen = format!("lodger.listen=port:{ctl},proto=hyper-ctl lodger.listen=port:{tty},proto=hyper-tty");
        qemu.arg("-append").arg(format!("console=ttyS0 quiet panic=-1 {listen}"));
        qemu.arg("-serial").arg(format!("file:{}", folder.path("console").display()));
        if lines == Lines::Virtio {
            qemu.args(["-device", "virtio-serial-pci"]);
        }
        for (index, name) in ["ctl", "tty"].iter().enumerate() {
            let socket = folder.path(name);
            qemu.arg("-chardev").arg(format!("socket,id={name},server=on,wait=off,path={}", socket.display()));
            match lines {
                Lines::Virtio => {
                    qemu.args(["-device", &format!("virtserialport,chardev={name},name=sh.hyper.channel.{index}")])
                }
                Lines::Serial => qemu.arg("-serial").arg(format!("chardev:{name}")),
            };
        }
        let qemu = Client(qemu.stdin(Stdio::null()).spawn().expect("QEMU starts"));
        let guest = Guest { folder, qemu };
        wait_until("QEMU listens", || guest.folder.path("ctl").exists() && guest.folder.path("tty").exists());
        guest
    }

    fn both(&self) -> (Ctl, Tty) {
        let mut ctl = Ctl::open(&self.folder.path("ctl"));
        ctl.socket.set_read_timeout(Some(GUEST_PATIENCE)).expect("a time-out");
        assert_eq!(ctl.receive(), Some((8, Vec::new())), "READY");
        ctl.socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        (ctl, Tty::new(&self.folder.path("tty")))
    }
}

#[test]
fn hosts_of_hyperstart_run_programs_on_its_ports_and_end_the_guest() {
    let Some(lodger) = lodger("hosts_of_hyperstart_run_programs_on_its_ports_and_end_the_guest") else { return };
    let mut guest = Guest::start(&lodger, Lines::Virtio);
    let (mut ctl, mut tty) = guest.both();
    ctl.good(1, json!({ "hostname": "pod", "containers": [] }));
    ctl.shell(3, "uname -n; echo err >&2; exit 7");
    assert_eq!((tty.finish(3), tty.text(3).as_str(), tty.text(4).as_str()), (7, "pod\n", "err\n"));
    // Bulk data in both directions, beside a program that waits.
    ctl.execute(5, &["cat"]);
    ctl.execute(3, &["cat"]);
    let piece: Vec<u8> = (0..10_000u32).map(|n| (n ^ (n >> 8)) as u8).collect();
    let (mut socket, message, rounds) = (tty.socket.try_clone().expect("a descriptor"), tty_message(3, &piece), 400);
    let start = Instant::now();
    let writer = thread::spawn(move || {
        for _ in 0..rounds {
            socket.write_all(&message).expect("QEMU reads");
        }
        socket.write_all(&tty_message(3, b"")).expect("QEMU reads");
    });
    assert_eq!(tty.finish(3), 0);
    writer.join().expect("all is written");
    assert!(tty.output.remove(&3).expect("output") == piece.repeat(rounds), "it is what was sent");
    let _ = writeln!(std::io::stderr(), "4 MB there and back in {:?}", start.elapsed());
    ctl.on_terminal(3, &["sh", "-c", "read line; stty size"]);
    ctl.good(11, json!({ "seq": 3, "row": 30, "column": 100 }));
    tty.send(3, b"\n");
    assert_eq!(tty.finish(3), 0);
    assert!(tty.text(3).contains("30 100"));
    ctl.good(24, json!({ "container": "hyperstart", "process": "5", "signal": 15 }));
    assert_eq!(tty.finish(5), 143);
    // The largest file there and back, in pieces as runV sends them, each when the one before is acknowledged.
    let object = json!({ "container": "", "file": "/root/large" }).to_string();
    let content: Vec<u8> = (0..1u32 << 20).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
    let start = Instant::now();
    for piece in ctl_message(15, &[object.as_bytes(), &content].concat()).chunks(512) {
        ctl.send(piece);
        while ctl.owed > 0 {
            assert!(ctl.acknowledged());
        }
    }
    assert_eq!(ctl.answer(), Some((ACK, Vec::new())));
    assert!(ctl.ask(16, object.as_bytes()) == (ACK, content), "it is what was sent");
    let _ = writeln!(std::io::stderr(), "1 MB in pieces of 512 bytes in {:?}", start.elapsed());
    // A bus to look at, and a card that is on none.
    ctl.good(8, json!(null));
    assert_eq!(ctl.bad(20, json!({ "device": "none" })), "none: no such interface");
    // Another host, and nothing of the first.
    ctl.shell(3, "trap '' PIPE; trap 'echo > /root/hung-up; exit' HUP; echo ready; while :; do sleep 1; done");
    tty.until(3, "ready\n");
    for _ in 0..3 {
        drop((ctl, tty));
        // The kernel of a guest does not tell of a host that goes and comes in one moment.
        pause(Duration::from_secs(1));
        (ctl, tty) = guest.both();
    }
    ctl.shell(3, "until [ -e /root/hung-up ]; do sleep 1; done; echo it was");
    assert_eq!((tty.finish(3), tty.text(3).as_str()), (0, "it was\n"));
    ctl.good(19, json!(null));
    // The machine ends behind its programs, and they behind their last words.
    ctl.shell(3, "trap 'echo term; sleep 1; echo bye >&2; exit 9' TERM; echo ready; while :; do sleep 0.05; done");
    tty.until(3, "ready\n");
    let start = Instant::now();
    ctl.send(&ctl_message(4, b"null"));
    assert_eq!(tty.finish(3), 9);
    assert_eq!(tty.text(3), "ready\nterm\n");
    assert!(tty.text(4).ends_with("bye\n"), "some shells say first how its sleep ended");
    assert_eq!(ctl.answer(), Some((ACK, Vec::new())));
    assert!(start.elapsed() > Duration::from_secs(1), "the answer has waited for the end of the program");
    wait_until("the guest ends", || guest.qemu.0.try_wait().expect("our child").is_some());
    let console = fs::read_to_string(guest.folder.path("console")).unwrap_or_default();
    assert!(!console.contains("panic"), "{console}");
}

#[test]
fn hosts_of_hyperstart_run_programs_over_serial_lines() {
    let Some(lodger) = lodger("hosts_of_hyperstart_run_programs_over_serial_lines") else { return };
    let mut guest = Guest::start(&lodger, Lines::Serial);
    let (mut ctl, mut tty) = guest.both();
    assert_eq!(ctl.ask(0, b""), (ACK, 4242u32.to_be_bytes().to_vec()));
    // Bytes that a terminal would change, or act on.
    ctl.shell(3, "head -c 512 | tee /root/taken; echo err >&2; exit 7");
    let all: Vec<u8> = (0..=255).chain((0..=255).rev()).collect();
    tty.send(3, &all);
    assert_eq!(tty.finish(3), 7);
    assert_eq!((tty.output.remove(&3), tty.text(4).as_str()), (Some(all.clone()), "err\n"));
    // In runV's way, which no receiver of a UART is too small for.
    let object = json!({ "container": "", "file": "/root/file" }).to_string();
    let content = all.repeat(64);
    for piece in ctl_message(15, &[object.as_bytes(), &content].concat()).chunks(512) {
        ctl.send(piece);
        while ctl.owed > 0 {
            assert!(ctl.acknowledged());
        }
    }
    assert_eq!(ctl.answer(), Some((ACK, Vec::new())));
    assert!(ctl.ask(16, object.as_bytes()) == (ACK, content.clone()), "it is what was sent");
    ctl.execute(3, &["sh", "-c", "for i in 1 2 3 4 5 6 7 8; do cat /root/file; done"]);
    assert_eq!(tty.finish(3), 0);
    assert!(tty.output.remove(&3) == Some(content.repeat(8)), "all of the output");
    ctl.send(&ctl_message(4, b"null"));
    assert_eq!(ctl.answer(), Some((ACK, Vec::new())));
    wait_until("the guest ends", || guest.qemu.0.try_wait().expect("our child").is_some());
}
