//! What else is said on the line: every word of it, and none to a program.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use lodger::client::Connection;
use lodger::link::opener::{Opener, Wishes};
use lodger::transport::serial;

use crate::client::noise;
use crate::line::{Way, Weather};
use crate::rig::Rig;
use crate::support::wait_until;

/// Text that the line may have added behind the last bytes that a client waited for.
const TAIL: usize = 8 << 10;

/// Fails unless all text is in the console's, line by line in order, but for what may have come too late.
#[track_caller]
fn complete(console: &[u8], text: &[u8], what: &str) {
    let (mut from, mut found) = (0, 0);
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let Some(at) = console[from..].windows(line.len()).position(|window| window == line) else {
            assert!(text.len() - found < TAIL, "{what}: missing {:?}", String::from_utf8_lossy(line));
            break;
        };
        from += at + line.len();
        found += line.len();
    }
    assert!(found > 0, "{what}: nothing came");
}

fn wishes(console: OwnedFd) -> Wishes {
    Wishes { console: Some(console), ..Wishes::default() }
}

/// Sends a file through a program in the guest, and gives the console's text.
fn through_flood(weather: Weather, count: usize, what: &str) -> (Rig, Vec<u8>) {
    let rig = Rig::start(weather);
    let (bytes, console) = (noise(7, count), rig.folder.path("console"));
    let line = serial::open(&rig.line.host, &serial::Settings::default()).expect("the line");
    let file = OwnedFd::from(File::create(&console).expect("a file"));
    let opener = Opener::start(line, rig.line.host_address(), wishes(file)).expect("a thread");
    let mut connection = Connection::open(opener.open().expect("a channel"));
    let path = rig.folder.path("content");
    fs::write(&path, &bytes).expect("a file");
    let output = connection.output(["cat", path.to_str().expect("text")]).expect("cat runs");
    assert!(output.stdout == bytes, "{what}: {} bytes came", output.stdout.len());
    drop((connection, opener));
    let text = fs::read(&console).expect("the console");
    (rig, text)
}

#[test]
fn lines_of_a_kernel_in_the_middle_of_everything_are_all_there() {
    for (seed, percent) in [(1, 5), (2, 15), (3, 33), (4, 33), (5, 33)] {
        let what = format!("seed {seed}, {percent} %");
        let (rig, console) = through_flood(Weather::flood(seed, percent), 1 << 20, &what);
        let text = rig.line.text();
        let share = text.len() as f64 / rig.line.passed(Way::ToHost) as f64;
        assert!((share * 100.0 - f64::from(percent)).abs() < 5.0, "{what}: {share}");
        complete(&console, &text, &what);
        // Frames with text in them need not be sent again.
        let taken = rig.line.taken(Way::ToHost);
        assert!(taken < (1 << 20) * 5 / 4, "{what}: {taken} bytes for 1 MiB");
    }
}

#[test]
fn a_line_that_only_prints_now_and_then_has_its_text_byte_for_byte() {
    let rig = Rig::start(Weather::clear());
    let mut guest = File::options().write(true).open(&rig.line.guest).expect("the guest's end");
    let console = rig.folder.path("console");
    let line = serial::open(&rig.line.host, &serial::Settings::default()).expect("the line");
    let file = OwnedFd::from(File::create(&console).expect("a file"));
    let opener = Opener::start(line, rig.line.host_address(), wishes(file)).expect("a thread");
    let mut connection = Connection::open(opener.open().expect("a channel"));
    let mut expected = Vec::new();
    for round in 0..50u8 {
        // Bytes of all kinds, but none that could begin a frame.
        let text = [format!("{round} text without an end").as_bytes(), b"\x1b[0m \x80\xff\t", &[round.max(1)]].concat();
        guest.write_all(&text).expect("the line takes it");
        expected.extend_from_slice(&text);
        let output = connection.output(["echo", "x"]).expect("echo runs");
        assert_eq!(output.stdout, b"x\n");
    }
    wait_until("all text is there", || fs::read(&console).expect("the console").len() >= expected.len());
    assert_eq!(String::from_utf8_lossy(&fs::read(&console).expect("the console")), String::from_utf8_lossy(&expected));
}

#[test]
fn programs_do_not_see_what_is_printed_and_trees_are_copied_through_it() {
    let rig = Rig::start(Weather::flood(11, 33));
    crate::programs::copy_a_tree_both_ways(&rig, "33 % text");
    assert_eq!(rig.cat(&noise(9, 200_000)).good(), noise(9, 200_000));
}

#[test]
fn text_and_damage_at_once_lose_nothing_of_a_program() {
    let weather = Weather { text_percent: 33, ..Weather::noise(12, 10_000) };
    let (rig, _) = through_flood(weather, 300_000, "text and damage");
    assert!(rig.line.harm(Way::ToHost).count() > 0);
}

#[test]
fn a_console_that_nobody_reads_stops_nobody() {
    let rig = Rig::start(Weather::flood(13, 33));
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let line = serial::open(&rig.line.host, &serial::Settings::default()).expect("the line");
    let opener = Opener::start(line, rig.line.host_address(), wishes(writer.into())).expect("a thread");
    let mut connection = Connection::open(opener.open().expect("a channel"));
    let output = connection.output(["head", "-c", "1000000", "/dev/zero"]).expect("head runs");
    assert_eq!(output.stdout.len(), 1_000_000);
    drop((connection, opener));
    assert!(reader.as_fd().try_clone_to_owned().is_ok());
    let mut first = [0; 60];
    reader.read_exact(&mut first).expect("the beginning");
    assert!(rig.line.text().starts_with(&first[..20]) || !rig.line.text().is_empty());
}

/// Runs a command with `--console FILE`.
fn with_console(rig: &Rig, file: &Path, words: &[&str]) -> crate::client::Done {
    rig.run(&[&["exec", "--console", file.to_str().expect("text"), "--"], words].concat())
}

#[test]
fn a_command_writes_the_console_to_a_file() {
    let rig = Rig::start(Weather::flood(14, 33));
    let (console, content) = (rig.folder.path("console"), rig.folder.path("content"));
    let bytes = noise(8, 500_000);
    fs::write(&content, &bytes).expect("a file");
    let done = with_console(&rig, &console, &["cat", content.to_str().expect("text")]);
    assert!(done.good() == bytes);
    complete(&fs::read(&console).expect("the console"), &rig.line.text(), "--console");
}
