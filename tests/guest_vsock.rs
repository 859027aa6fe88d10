//! Vsock in real guests: QEMU with vhost-device-vsock, the agent on a vsock port, the host through the unix socket of the device.
//!
//! Beside what tests/guest.rs needs, they need vhost-device-vsock (tests/run.sh installs it). Without it each test says that it was skipped,
//! and LODGER_REQUIRE_GUEST=1 makes that a failure.

#[path = "support/guest.rs"]
mod guest;
mod support;

use std::fs;
#[cfg(feature = "clear")]
use std::io::Read;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
#[cfg(feature = "clear")]
use std::time::Duration;
use std::time::Instant;

use guest::{Client, run, text, wait_for_guest};
use lodger::mkinitramfs::Image;
#[cfg(feature = "clear")]
use support::pause;
use support::{Folder, wait_until};

/// The guest's drivers: the bus, the device, and the way from the guest to itself.
const MODULES: [&str; 3] = ["virtio_pci", "vmw_vsock_virtio_transport", "vsock_loopback"];

/// Port of the host that the guest tells that it is ready.
const READY_PORT: u32 = 9999;

/// The static binary and the vsock device; `None` when the test must be skipped.
fn programs(test: &str) -> Option<(PathBuf, PathBuf)> {
    let lodger = guest::lodger(test)?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::var_os("CARGO_HOME").map(|home| Path::new(&home).join("bin"));
    let folders = std::env::split_paths(&path).chain([root.join("build/tools/bin")]).chain(home);
    let found = folders.map(|folder| folder.join("vhost-device-vsock")).find(|path| path.is_file());
    if found.is_none() {
        let text = format!("{test} was skipped: there is no vhost-device-vsock (tests/run.sh installs it)");
        assert!(std::env::var_os("LODGER_REQUIRE_GUEST").is_none_or(|value| value.is_empty()), "{text}");
        let _ = writeln!(std::io::stderr(), "{text}");
    }
    Some((lodger, found?))
}

/// A guest with a vsock, ended with the test.
struct Guest {
    lodger: PathBuf,
    folder: Folder,
    /// Where it says that it is ready.
    ready: UnixListener,
    // In this order they end: QEMU complains of a device that goes first.
    qemu: std::cell::RefCell<Client>,
    _device: Client,
}

impl Guest {
    /// Boots a guest with these modules, more words on the kernel's command line, and more options of QEMU.
    fn boot(programs: (PathBuf, PathBuf), modules: &[&str], append: &str, options: &[&str]) -> Guest {
        let (lodger, device) = programs;
        let folder = Folder::new();
        let path = |name: &str| folder.path(name).display().to_string();
        let kernel = guest::kernel();
        write_archive(&lodger, &kernel, modules, &folder.path("initramfs.cpio"));
        let ready = UnixListener::bind(format!("{}_{READY_PORT}", path("vm.vsock"))).expect("a socket");
        let mut command = Command::new(device);
        command.arg("--vm").arg(format!("guest-cid=4,uds-path={},socket={}", path("vm.vsock"), path("device")));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let device = Client(command.spawn().expect("the device starts"));
        wait_until("the device listens", || folder.path("device").exists());
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-M", "q35,memory-backend=memory", "-m", "256", "-nodefaults", "-display", "none", "-no-reboot"]);
        qemu.args(["-object", "memory-backend-memfd,id=memory,size=256M,share=on", "-cpu", "max"]);
        qemu.arg("-chardev").arg(format!("socket,id=vsock,path={}", path("device")));
        qemu.args(["-device", "vhost-user-vsock-pci,chardev=vsock"]).args(options);
        qemu.arg("-serial").arg(format!("file:{}", path("console"))).arg("-kernel").arg(kernel);
        qemu.arg("-initrd").arg(path("initramfs.cpio"));
        qemu.arg("-append").arg(format!("console=ttyS0 quiet panic=-1 cryptomgr.notests {append}"));
        let qemu = Client(qemu.stdin(Stdio::null()).spawn().expect("QEMU starts"));
        Guest { lodger, folder, ready, qemu: qemu.into(), _device: device }
    }

    /// What the guest says when it is ready.
    fn wait_until_ready(&self) -> String {
        guest::hear_ready(&self.ready, || assert!(!self.has_ended(), "it has ended: {}", self.console()))
    }

    fn address(&self, port: u32) -> String {
        format!("hvsock:{}:{port}", self.folder.path("vm.vsock").display())
    }

    /// A command on the agent at a port of the guest.
    fn command(&self, port: u32, words: &[&str]) -> Command {
        let mut command = Command::new(&self.lodger);
        command.args(words).env("LODGER_TO", self.address(port)).stdin(Stdio::null());
        command
    }

    fn shell(&self, script: &str) -> Output {
        run(&mut self.command(1024, &["exec", "--", "sh", "-c", script]))
    }

    fn has_ended(&self) -> bool {
        self.qemu.borrow_mut().0.try_wait().expect("our child").is_some()
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.path("console")).unwrap_or_default()).into_owned()
    }
}

fn write_archive(lodger: &Path, kernel: &Path, modules: &[&str], archive: &Path) {
    let release = kernel.file_name().map(|name| name.to_string_lossy().replace("vmlinuz-", "")).expect("a name");
    let folder = kernel.parent().and_then(Path::parent).expect("a kernel lies in boot");
    let mut image = Image::new();
    image.init(lodger);
    image.busybox().expect("busybox");
    let missing = image.modules(&folder.join("lib/modules").join(release), modules).expect("modules");
    assert!(missing.is_empty(), "the kernel has no {missing:?}");
    image.write_file(archive).expect("an archive");
}

fn sum(bytes: &[u8]) -> String {
    let mut command = Command::new("sha256sum");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("sha256sum");
    child.stdin.take().expect("a pipe").write_all(bytes).expect("it reads");
    let output = child.wait_with_output().expect("an end");
    text(&output.stdout).split(' ').next().unwrap_or_default().to_owned()
}

#[test]
fn a_guest_says_that_it_is_ready_and_serves_the_host_over_vsock() {
    let Some(programs) = programs("a_guest_says_that_it_is_ready_and_serves_the_host_over_vsock") else { return };
    let append = format!("lodger.listen=vsock:1024 vmm.notify_socket=vsock:2:{READY_PORT}");
    let guest = Guest::boot(programs, &MODULES, &append, &[]);
    let message = guest.wait_until_ready();
    assert!(message.starts_with("READY=1\nX_LODGER=lodger ") && message.ends_with(")\n"), "{message}");

    // Ready means that the first attempt works.
    let output = guest.shell("echo out; echo err >&2; exit 9");
    assert_eq!(
        (output.status.code(), text(&output.stdout), text(&output.stderr)),
        (Some(9), "out\n".into(), "err\n".into())
    );

    let bytes: Vec<u8> = (0..4u32 << 20).map(|number| (number.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let (here, back) = (guest.folder.path("here"), guest.folder.path("back"));
    fs::write(&here, &bytes).expect("a file");
    let start = Instant::now();
    let mut command = guest.command(1024, &["exec", "--", "sh", "-c", "tee /root/file | sha256sum"]);
    let output = run(command.stdin(fs::File::open(&here).expect("the file")));
    assert_eq!(text(&output.stdout).split(' ').next(), Some(sum(&bytes).as_str()), "{}", text(&output.stderr));
    let there = start.elapsed();
    let start = Instant::now();
    let output = run(&mut guest.command(1024, &["cp", "guest:/root/file", &back.display().to_string()]));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let _ = writeln!(
        std::io::stderr(),
        "4 MiB with their sum into the guest in {there:?}, out of it in {:?}",
        start.elapsed()
    );
    assert_eq!(sum(&fs::read(&back).expect("the copy")), sum(&bytes));

    // Nobody listens there.
    let output = run(&mut guest.command(1025, &["exec", "--", "true"]));
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(said.contains("nobody listens on port 1025 of the guest"), "{said}");
}

/// A client of the Clear Containers proxy, on a vsock port of a guest.
#[cfg(feature = "clear")]
struct ClearClient(std::os::unix::net::UnixStream);

#[cfg(feature = "clear")]
impl ClearClient {
    fn new(guest: &Guest, port: u32) -> ClearClient {
        let mut socket = std::os::unix::net::UnixStream::connect(guest.folder.path("vm.vsock")).expect("the device");
        socket.set_read_timeout(Some(guest::GUEST_PATIENCE)).expect("a time-out");
        // In one piece: the device reads once, and closes when that is not all.
        socket.write_all(format!("CONNECT {port}\n").as_bytes()).expect("it reads");
        let mut byte = [0];
        while byte != *b"\n" {
            socket.read_exact(&mut byte).expect("the device says OK");
        }
        ClearClient(socket)
    }

    fn send(&mut self, kind: u8, opcode: u8, payload: &[u8]) {
        let header = [&[0, 2, 3, 0, 0, 0, kind, opcode], &(payload.len() as u32).to_be_bytes()[..]].concat();
        self.0.write_all(&[&header, payload].concat()).expect("the guest reads");
    }

    /// Type, opcode and payload of the next frame.
    fn next(&mut self) -> (u8, u8, Vec<u8>) {
        let mut header = [0; 12];
        self.0.read_exact(&mut header).expect("a frame");
        let length = u32::from_be_bytes([header[8], header[9], header[10], header[11]]);
        let mut payload = vec![0; length as usize];
        self.0.read_exact(&mut payload).expect("its payload");
        (header[6], header[7], payload)
    }

    fn done(&mut self, opcode: u8, payload: &str) -> String {
        self.send(0, opcode, payload.as_bytes());
        let (kind, answered, payload) = self.next();
        let payload = text(&payload);
        assert_eq!((kind, answered), (1, opcode), "{payload}");
        payload
    }
}

#[cfg(feature = "clear")]
#[test]
fn runtimes_and_shims_of_clear_containers_run_programs_in_a_guest() {
    let Some(programs) = programs("runtimes_and_shims_of_clear_containers_run_programs_in_a_guest") else { return };
    // The ports of hyperstart's agents on vsock.
    let channels = "lodger.listen=vsock:2718,proto=hyper-ctl lodger.listen=vsock:2719,proto=hyper-tty";
    let append = format!("lodger.listen=vsock:1024 {channels} vmm.notify_socket=vsock:2:{READY_PORT}");
    let guest = Guest::boot(programs, &MODULES, &append, &[]);
    guest.wait_until_ready();
    let mut runtime = ClearClient::new(&guest, 1024);
    let answer = runtime.done(0, r#"{"containerId":"pod","ctlSerial":"/a","ioSerial":"/b","numIOStreams":1}"#);
    let token = answer.strip_prefix(r#"{"io":{"URL":"unix:","tokens":[""#).and_then(|rest| rest.get(..44));
    let token = token.unwrap_or_else(|| panic!("{answer}"));
    runtime.done(3, r#"{"hyperName":"startpod","data":{"hostname":"pod","containers":[]}}"#);
    let mut shim = ClearClient::new(&guest, 1024);
    shim.done(4, &format!(r#"{{"token":"{token}"}}"#));
    let process = r#"{"args":["sh","-c","cat; uname -n >&2; exit 5"],"user":"0","envs":[]}"#;
    let command = format!(r#""data":{{"id":"one","process":{process}}},"tokens":["{token}"]"#);
    runtime.done(3, &format!(r#"{{"hyperName":"newcontainer",{command}}}"#));
    let input: Vec<u8> = (0..1 << 20).map(|number: u32| (number ^ (number >> 8)) as u8).collect();
    let mut writer = ClearClient(shim.0.try_clone().expect("a descriptor"));
    let bytes = input.clone();
    let writer = std::thread::spawn(move || {
        bytes.chunks(8192).for_each(|piece| writer.send(2, 0, piece));
        writer.send(2, 0, b"");
    });
    let mut streams = [Vec::new(), Vec::new()];
    let code = loop {
        match shim.next() {
            (2, opcode @ 1..=2, payload) => streams[usize::from(opcode) - 1].extend(payload),
            (3, 0, payload) => break payload,
            other => panic!("{other:?}"),
        }
    };
    writer.join().expect("all is written");
    assert!(streams[0] == input, "it is what was sent");
    assert_eq!((text(&streams[1]).as_str(), code), ("pod\n", vec![5]));
    runtime.done(3, r#"{"hyperName":"removecontainer","data":{"container":"one"}}"#);
    // A runtime that goes while its command waits for a shim leaves nothing to start, though a vsock does not hang up.
    let answer = runtime.done(2, r#"{"containerId":"pod","numIOStreams":1}"#);
    let token = answer.split('"').find(|word| word.len() == 44).unwrap_or_else(|| panic!("{answer}"));
    let echo = |word: &str| {
        let process = format!(r#"{{"args":["echo","{word}"]}}"#);
        format!(r#"{{"hyperName":"execcmd","data":{{"process":{process}}},"tokens":["{token}"]}}"#)
    };
    let mut leaving = ClearClient::new(&guest, 1024);
    leaving.done(2, r#"{"containerId":"pod","numIOStreams":0}"#);
    leaving.send(0, 3, echo("first").as_bytes());
    pause(Duration::from_secs(1));
    drop(leaving);
    pause(Duration::from_secs(3));
    let mut shim = ClearClient::new(&guest, 1024);
    shim.done(4, &format!(r#"{{"token":"{token}"}}"#));
    runtime.done(3, &echo("second"));
    assert_eq!(shim.next(), (2, 1, b"second\n".to_vec()));
    assert_eq!(shim.next(), (3, 0, vec![0]));
    // The agent's own client meanwhile, on the same port.
    assert_eq!(guest.shell("exit 9").status.code(), Some(9));
    // Hyperstart's channels, beside both.
    let (mut ctl, mut tty) = (ClearClient::new(&guest, 2718).0, ClearClient::new(&guest, 2719).0);
    let mut ready = [0; 8];
    ctl.read_exact(&mut ready).expect("READY");
    assert_eq!(ready, [0, 0, 0, 8, 0, 0, 0, 8]);
    let command = r#"{"container":"hyperstart","process":{"args":["uname","-n"],"stdio":3,"stderr":4}}"#;
    let header = [6u32.to_be_bytes(), (8 + command.len() as u32).to_be_bytes()].concat();
    ctl.write_all(&[&header, command.as_bytes()].concat()).expect("the guest reads");
    let expected = b"\0\0\0\0\0\0\0\x03\0\0\0\x10pod\n\0\0\0\0\0\0\0\x03\0\0\0\x0c\0\0\0\0\0\0\0\x03\0\0\0\x0d\0";
    let mut said = vec![0; expected.len()];
    tty.read_exact(&mut said).expect("output, end and exit code");
    assert_eq!(said, expected);
    assert_eq!(runtime.done(3, r#"{"hyperName":"destroypod"}"#), "");
    wait_for_guest("the guest ends", || guest.has_ended());
}

#[test]
fn a_guest_reaches_its_own_agent_and_only_those_that_are_named_may_connect() {
    let Some(programs) = programs("a_guest_reaches_its_own_agent_and_only_those_that_are_named_may_connect") else {
        return;
    };
    let append = format!("lodger.listen=vsock:1024 vmm.notify_socket=vsock-stream:2:{READY_PORT}");
    let guest = Guest::boot(programs, &MODULES, &append, &[]);
    guest.wait_until_ready();
    let output = guest.shell("/bin/lodger exec --to vsock:1:1024 -- sh -c 'echo $((6*7)); exit 3'");
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(3), "42\n".to_owned()), "{}", text(&output.stderr));
    let output = guest.shell("/bin/lodger exec --to vsock:1:1025 -- true");
    assert!(text(&output.stderr).contains("`lodger serve --listen vsock:1025` would be an agent there"), "{output:?}");

    // Other agents, whose peers are others.
    let script = "for port in 2000,cid=7 2001,cid=2 2002,cid=any; do
        /bin/lodger serve --listen vsock:$port 2> /tmp/log.${port%,*} &
      done; wait";
    let mut command = guest.command(1024, &["exec", "--", "sh", "-c", script]);
    let others = Client(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a client"));
    let from_host = |port: u32| run(&mut guest.command(port, &["exec", "--", "echo", "host"]));
    wait_for_guest("the third agent serves everybody", || from_host(2002).status.success());
    wait_for_guest("the second agent serves the host", || from_host(2001).status.success());
    // Who may not connect learns that somebody listens.
    wait_for_guest("the first agent is there", || !text(&from_host(2000).stderr).contains("nobody listens"));
    let from_guest =
        |port: u32| text(&guest.shell(&format!("/bin/lodger exec --to vsock:1:{port} -- echo guest")).stdout);
    let reached = [2000, 2001, 2002].map(|port| (text(&from_host(port).stdout), from_guest(port)));
    let said = |host: &str, guest: &str| (host.to_owned(), guest.to_owned());
    assert_eq!(reached, [said("", ""), said("host\n", ""), said("host\n", "guest\n")]);
    let said = text(&from_host(2000).stderr);
    assert!(said.contains("the agent closed the connection") || said.contains("connection lost"), "{said}");
    let log = |port: u32| text(&guest.shell(&format!("cat /tmp/log.{port}")).stdout);
    let refused = |cid: u32| format!("lodger warn: refused a connection from CID {cid}: it may not connect\n");
    assert!(log(2000).contains(&refused(1)) && log(2000).contains(&refused(2)), "{}", log(2000));
    assert!(log(2001).contains(&refused(1)) && !log(2001).contains(&refused(2)), "{}", log(2001));
    assert_eq!(log(2002), "");
    drop(others);
}

#[test]
fn a_transport_that_is_reset_ends_sessions_and_the_agent_listens_on() {
    let Some(programs) = programs("a_transport_that_is_reset_ends_sessions_and_the_agent_listens_on") else { return };
    let folder = Folder::new();
    // A way in that is not reset. The vsock is the first virtio device, the port is on the second.
    let port = folder.path("port").display().to_string();
    let chardev = format!("socket,id=port,server=on,wait=off,path={port}");
    // The credential as systemd-vmspawn gives it: vsock-stream:2:9999.
    let credential = "type=11,value=io.systemd.credential.binary:vmm.notify_socket=dnNvY2stc3RyZWFtOjI6OTk5OQ==";
    let options = ["-smbios", credential, "-device", "virtio-serial-pci", "-chardev", &chardev];
    let options = [&options[..], &["-device", "virtserialport,chardev=port"]].concat();
    let append = "lodger.listen=vsock:1024 lodger.listen=port:/dev/vport1p1";
    let modules = [&MODULES[..], &["virtio_console"]].concat();
    let guest = Guest::boot(programs, &modules, append, &options);
    guest.wait_until_ready();

    let mut command = guest.command(1024, &["exec", "--", "sh", "-c", "echo $$ > /tmp/sleeper; exec sleep 1000"]);
    let _sleeper = Client(command.stderr(Stdio::null()).spawn().expect("a client"));
    let sleeps = || guest.shell("kill -0 $(cat /tmp/sleeper)").status.success();
    wait_for_guest("the program runs", sleeps);
    let driver = |script: &str| {
        let script = format!("cd /sys/bus/virtio/drivers/vmw_vsock_virtio_transport; {script}");
        let words = ["exec", "--to", &format!("port:{port}"), "--", "sh", "-c", &script];
        let output = run(Command::new(&guest.lodger).args(words).stdin(Stdio::null()));
        assert!(output.status.success(), "{script}: {}", text(&output.stderr));
    };
    // The kernel does the same to all connections as after a snapshot was restored.
    driver("echo virtio0 > unbind; while kill -0 $(cat /tmp/sleeper) 2> /dev/null; do sleep 0.1; done");
    // The device may not have its queues yet when the driver says so, and a host that connects before ends it (tests/guest_auto.rs): the guest
    // connects first.
    std::thread::scope(|scope| {
        scope.spawn(|| driver(&format!("echo virtio0 > bind; /bin/lodger connect --to vsock:2:{READY_PORT} || true")));
        wait_for_guest("the guest connects", || guest.ready.accept().is_ok());
    });
    let output = guest.shell("exit 7");
    assert_eq!(output.status.code(), Some(7), "{}{}", text(&output.stderr), guest.console());
    assert!(!guest.console().contains("agent ended"), "{}", guest.console());
}

#[test]
fn an_agent_in_a_guest_without_the_driver_says_what_is_missing() {
    let Some(programs) = programs("an_agent_in_a_guest_without_the_driver_says_what_is_missing") else { return };
    let guest = Guest::boot(programs, &["virtio_pci"], "lodger.listen=vsock:1024", &[]);
    let why = "listen on vsock:1024: address family not supported by protocol; this kernel has no vsock, or its module is not loaded";
    wait_for_guest("the console says so", || guest.console().contains(why));
    // Process 1 tries again, later and later.
    wait_for_guest("the agent is started again", || guest.console().matches(why).count() > 2);
}
