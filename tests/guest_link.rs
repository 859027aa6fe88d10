//! Guests whose only serial line is their console and the way to their agent, over a line that damages what it carries.
//!
//! They need what the other guest tests need, and are skipped without it.

#[path = "support/guest.rs"]
mod guest;
#[path = "support/line.rs"]
mod line;
mod support;
#[path = "support/weather.rs"]
mod weather;

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use lodger::client::Connection;
use lodger::link::opener::{Opener, Wishes};
use lodger::sys::file::{O_CREAT, O_RDONLY, O_WRONLY};
use lodger::transport::serial;

use guest::{Client, Kept};
use line::{Line, Way, Weather};
use support::Folder;
use weather::Dice;

/// How long a transfer may take. Host to guest a UART of QEMU carries about 0.1 MB/s.
const PATIENCE: Duration = Duration::from_secs(180);

/// Lines that the guest's kernel prints meanwhile.
const LINES: usize = 2000;

fn bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut dice = Dice::new(seed);
    (0..count).map(|_| dice.roll() as u8).collect()
}

fn sha256(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().expect("sha256sum runs");
    String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap_or_default().to_owned()
}

fn wishes(console: OwnedFd) -> Wishes {
    Wishes { console: Some(console), ..Wishes::default() }
}

/// A channel on a line, as a connection to the agent.
fn connect(opener: &Opener) -> Connection {
    Connection::open(opener.open().expect("a channel"))
}

fn shell(connection: &mut Connection, script: &str) -> (i32, String) {
    let output = connection.output(["sh", "-c", script]).unwrap_or_else(|error| panic!("{script}: {error}"));
    (output.code, String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}

/// The lines of the kernel in what came from the guest, in order, and where each of them begins and ends.
fn printed(all: &[u8]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for number in 0..LINES {
        let mark = format!("lodger-test line {number:06} ");
        let Some(at) = all.windows(mark.len()).position(|window| window == mark.as_bytes()) else { continue };
        let begin = all[..at].iter().rposition(|byte| *byte == b'[').unwrap_or(at);
        let end = all[at..].iter().position(|byte| *byte == b'\n').map_or(all.len(), |end| at + end + 1);
        found.push((begin, end));
    }
    found
}

fn bad_line_with(cpus: &str, seed: u64, lodger: &Path) {
    let folder = Folder::new();
    let guest = Kept::start(lodger, &["--busybox", "--single-serial", "--cpus", cpus]);
    let chardev = PathBuf::from(guest.address.strip_prefix("serial:").expect("a serial line"));
    let weather = Weather { keeps_all: true, ..Weather::noise(seed, 10_000) };
    let line = Line::start_behind(&chardev, &folder.path("line"), weather);
    let console = folder.path("console");
    let host = serial::open(&line.host, &serial::Settings::default()).expect("the line");
    let file = OwnedFd::from(File::create(&console).expect("a file"));
    let opener = Opener::start(host, line.host_address(), wishes(file)).expect("a thread");
    let mut printing = connect(&opener);
    let setting = shell(&mut printing, "echo on > /proc/sys/kernel/printk_devkmsg; exit 17");
    assert_eq!(setting, (17, String::new()), "seed {seed}");
    let printer = thread::spawn(move || {
        let script = format!(
            "i=0; while [ $i -lt {LINES} ]; do printf '<3>lodger-test line %06d of many words\\n' $i > /dev/kmsg; \
             i=$((i+1)); [ $((i % 20)) -ne 0 ] || usleep 100000; done; exit 23"
        );
        (shell(&mut printing, &script), printing)
    });
    let mut connection = connect(&opener);
    let (sent, start) = (folder.path("sent"), Instant::now());
    let content = bytes(seed, 1 << 20);
    fs::write(&sent, &content).expect("a file");
    let handle = connection.open_file(b"/root/in", O_WRONLY | O_CREAT, 0o644).expect("a file in the guest");
    let give = |buffer: &mut Vec<u8>, offset: i64, limit: usize| {
        let rest = &content[offset as usize..];
        let count = rest.len().min(limit);
        buffer.extend_from_slice(&rest[..count]);
        Ok(count)
    };
    assert_eq!(connection.upload(handle, 0, 1 << 20, give).expect("a copy in"), 1 << 20, "seed {seed}");
    connection.close_file(handle).expect("our handle");
    let into = start.elapsed();
    let (code, sum) = shell(&mut connection, "sha256sum < /root/in; exit 5");
    assert_eq!((code, sum.split(' ').next()), (5, Some(sha256(&sent).as_str())), "seed {seed}: 1 MiB in");
    let script = "head -c 4194304 /dev/urandom > /root/out; sha256sum < /root/out";
    let (_, sum) = shell(&mut connection, script);
    let (mut out, start) = (Vec::new(), Instant::now());
    let handle = connection.open_file(b"/root/out", O_RDONLY, 0).expect("a file in the guest");
    let take = |_, data: &[u8]| {
        out.extend_from_slice(data);
        Ok(())
    };
    assert_eq!(connection.download(handle, 0, i64::MAX, take).expect("a copy out"), 4 << 20, "seed {seed}");
    let out_of = start.elapsed();
    let got = folder.path("got");
    fs::write(&got, &out).expect("a file");
    assert_eq!(sum.split(' ').next(), Some(sha256(&got).as_str()), "seed {seed}: 4 MiB out");
    let (ended, printing) = printer.join().expect("the printer");
    assert_eq!(ended, (23, String::new()), "seed {seed}");
    assert_eq!(shell(&mut connection, "kill -SEGV $$").0, 128 + 11, "seed {seed}");
    drop((connection, printing, opener));
    complete(&line, &fs::read(&console).expect("the console"), seed);
    let harm = [Way::ToGuest, Way::ToHost].map(|way| line.harm(way).count());
    eprintln!("{cpus} CPUs, seed {seed}: in {into:?}, out {out_of:?}, damaged bytes {harm:?}");
    assert!(into + out_of < PATIENCE && harm.iter().all(|count| *count > 10), "seed {seed}: {harm:?}");
}

/// Fails unless each line of the kernel that the line did not damage is in the console's file, in order.
fn complete(line: &Line, console: &[u8], seed: u64) {
    let (all, places) = (line.all_from_guest(), line.harm(Way::ToHost).places);
    let printed = printed(&all);
    assert_eq!(printed.len(), LINES, "seed {seed}: the guest has printed less");
    let (mut from, mut whole) = (0, 0);
    for (begin, end) in printed {
        if places.iter().any(|place| (begin as u64..end as u64).contains(place)) {
            continue;
        }
        let text = &all[begin..end];
        let at = console[from..].windows(text.len()).position(|window| window == text);
        let at = at.unwrap_or_else(|| panic!("seed {seed}: missing {:?}", String::from_utf8_lossy(text)));
        from += at + text.len();
        whole += 1;
    }
    assert!(whole > LINES * 9 / 10, "seed {seed}: {whole}");
}

#[test]
fn a_guest_with_one_bad_line_and_a_kernel_that_prints_on_it_loses_nothing() {
    let name = "a_guest_with_one_bad_line_and_a_kernel_that_prints_on_it_loses_nothing";
    let Some(lodger) = guest::lodger(name) else { return };
    bad_line_with("1", 1, &lodger);
}

#[test]
fn a_guest_of_two_processors_with_one_bad_line_loses_nothing() {
    let Some(lodger) = guest::lodger("a_guest_of_two_processors_with_one_bad_line_loses_nothing") else { return };
    bad_line_with("2", 2, &lodger);
}

#[test]
fn an_agent_that_stands_still_loses_nothing_of_what_is_sent_to_it() {
    let Some(lodger) = guest::lodger("an_agent_that_stands_still_loses_nothing_of_what_is_sent_to_it") else { return };
    let (folder, guest) = (Folder::new(), Kept::start(&lodger, &["--busybox", "--single-serial"]));
    let sent = folder.path("sent");
    fs::write(&sent, bytes(3, 2_000_000)).expect("a file");
    guest.shell("setsid sh -c \"sleep 2; kill -STOP $PPID; sleep 20; kill -CONT $PPID\" </dev/null >/dev/null 2>&1 &");
    let start = Instant::now();
    let mut command = guest.command(&["exec", "--", "sh", "-c", "cat > /root/in; exit 9"]);
    let input = File::open(&sent).expect("the file");
    let mut client = Client(command.stdin(input).stderr(Stdio::inherit()).spawn().expect("lodger starts"));
    let status = loop {
        if let Some(status) = client.0.try_wait().expect("our child") {
            break status;
        }
        assert!(start.elapsed() < PATIENCE, "it hangs");
        thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(status.code(), Some(9));
    assert!(start.elapsed() > Duration::from_secs(20), "the agent did not stand still: {:?}", start.elapsed());
    assert_eq!(guest.shell("sha256sum < /root/in").split(' ').next(), Some(sha256(&sent).as_str()));
    let counters = guest.shell("cat /proc/tty/driver/serial");
    let line = counters.lines().find(|line| line.starts_with("0:")).expect("the line's counters");
    assert!(!line.contains(" bo:"), "the terminal has lost input: {line}");
    eprintln!("2 MB in {:?}: {line}", start.elapsed());
}
