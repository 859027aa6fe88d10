//! Recordings: what `exec --record` writes, and what `replay` makes of it.

#[path = "support/client.rs"]
mod client;
mod support;

use std::borrow::Cow;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use ciborium::Value;
use serde_json::Value as Json;

use lodger::sys::signal::SIGKILL;
use lodger::wire::exec::Exec;
use lodger::wire::frame::Frame;
use lodger::wire::record::{Direction, Header, Record};
use lodger::wire::scan::Scanner;

use client::{Done, Running, lodger, noise, read_until, run, run_with_input};
use support::Folder;

const SECOND: i64 = 1_000_000_000;
/// When the recordings that are made here begin.
const START: i64 = 1_700_000_000 * SECOND;

/// The items of a recording.
fn items(bytes: &[u8]) -> Vec<&[u8]> {
    let mut scanner = Scanner::new(8 << 20);
    let (mut rest, mut items) = (bytes, Vec::new());
    while let Some(length) = scanner.find_end(rest).expect("CBOR") {
        items.push(&rest[..length]);
        rest = &rest[length..];
    }
    assert!(rest.is_empty(), "{} bytes behind the last item", rest.len());
    items
}

fn decode(item: &[u8]) -> Record<'_> {
    Record::decode(item).expect("a record")
}

fn start(seq: i64, time_ns: i64) -> Vec<u8> {
    let words = [b"sh".to_vec(), b"-c".to_vec(), b"echo a b".to_vec()];
    let mut exec = Exec { path: words[0].clone(), argv: Some(words.to_vec()), ..Exec::default() };
    exec.extension.terminal = Some((40, 100));
    exec.extension.set_env = vec![b"TERM=xterm".to_vec()];
    Record::Start { seq, start_ns: time_ns, exec }.to_bytes()
}

fn data(seq: i64, time_ns: i64, stream: u32, data: &[u8]) -> Vec<u8> {
    let direction = if stream == 0 { Direction::ToAgent } else { Direction::ToClient };
    Record::Frame { seq, time_ns, direction, frame: Frame::Data { id: 0, stream, data: Cow::Borrowed(data) } }
        .to_bytes()
}

fn end(seq: i64, end_ns: i64) -> Vec<u8> {
    Record::End { seq, end_ns, code: 0 }.to_bytes()
}

fn header() -> Vec<u8> {
    let header = Header { version: "1.3.0".into(), start_ns: START, backend_type: "ssh".into(), ..Header::default() };
    Record::Header(header).to_bytes()
}

fn footer(end_ns: i64, commands: i64) -> Vec<u8> {
    Record::Footer { end_ns, commands }.to_bytes()
}

/// A file of these records.
fn recording(folder: &Folder, records: &[Vec<u8>]) -> PathBuf {
    let path = folder.path("recording");
    fs::write(&path, records.concat()).expect("a file");
    path
}

fn replay(path: &Path, options: &[&str]) -> Done {
    let path = path.to_str().expect("a name that is text");
    run(["replay"].iter().chain(options).chain([&path]))
}

fn record(folder: &Folder, program: &[&str], input: &[u8]) -> (PathBuf, Done) {
    let path = folder.path("recording");
    let text = path.to_str().expect("a name that is text").to_owned();
    let done = run_with_input(["exec", "--record", &text, "--"].iter().chain(program), input);
    (path, done)
}

// Writing

#[test]
fn a_recording_holds_everything_in_order_and_only_its_owner_may_read_it() {
    let folder = Folder::new();
    let script = "cat; echo bad >&2; exit 7";
    let (path, done) = record(&folder, &["sh", "-c", script], b"typed\n");
    assert_eq!((done.code, done.stdout(), done.stderr()), (Some(7), "typed\n".into(), "bad\n".into()));
    assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o7777, 0o600);
    let bytes = fs::read(&path).expect("a file");
    let records: Vec<Record> = items(&bytes).into_iter().map(decode).collect();
    let Record::Header(header) = &records[0] else { panic!("{:?}", records[0]) };
    assert_eq!((header.backend_type.as_str(), header.backend_address.as_str()), ("local", "local:"));
    assert!(header.start_ns > START && header.local_pid > 0, "{header:?}");
    let Record::Start { seq: 0, start_ns, exec } = &records[1] else { panic!("{:?}", records[1]) };
    assert_eq!(exec.argv.as_deref().expect("words"), [b"sh".to_vec(), b"-c".to_vec(), script.as_bytes().to_vec()]);
    let Record::Frame { direction: Direction::ToAgent, frame: Frame::Exec { .. }, .. } = &records[2] else {
        panic!("{:?}", records[2])
    };
    let mut frames = Vec::new();
    let mut last_ns = *start_ns;
    for record in &records[3..records.len() - 2] {
        let Record::Frame { seq: 0, time_ns, direction, frame } = record else { panic!("{record:?}") };
        assert!(*time_ns >= last_ns, "times go back");
        last_ns = *time_ns;
        match frame {
            Frame::Data { stream, data, .. } => frames.push((*direction, *stream, data.to_vec())),
            Frame::Eof { stream, .. } => frames.push((*direction, *stream, Vec::new())),
            Frame::Exit { code, .. } => assert_eq!((*direction, *code), (Direction::ToClient, 7)),
            other => panic!("{other:?}"),
        }
    }
    for wanted in [
        (Direction::ToAgent, 0, b"typed\n".to_vec()),
        (Direction::ToAgent, 0, Vec::new()),
        (Direction::ToClient, 1, b"typed\n".to_vec()),
        (Direction::ToClient, 2, b"bad\n".to_vec()),
        (Direction::ToClient, 1, Vec::new()),
        (Direction::ToClient, 2, Vec::new()),
    ] {
        assert!(frames.contains(&wanted), "{wanted:?} is missing in {frames:?}");
    }
    let [Record::End { seq: 0, end_ns, code: 7 }, Record::Footer { end_ns: last, commands: 1 }] =
        &records[records.len() - 2..]
    else {
        panic!("{records:?}")
    };
    assert!(last_ns <= *end_ns && end_ns <= last);
}

#[test]
fn a_file_that_all_may_read_becomes_private_and_is_written_over() {
    let folder = Folder::new();
    let path = folder.path("recording");
    fs::write(&path, vec![b'x'; 100_000]).expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("a mode");
    let (path, done) = record(&folder, &["echo", "hi"], b"");
    assert_eq!(done.good(), b"hi\n");
    assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o7777, 0o600);
    assert!(fs::metadata(&path).expect("a file").len() < 10_000);
    assert_eq!(replay(&path, &["--speed", "max"]).good(), b"hi\n");
}

#[test]
fn a_pipe_that_is_recorded_to_keeps_its_mode() {
    let folder = Folder::new();
    let path = folder.path("pipe");
    let text = path.to_str().expect("text");
    assert!(Command::new("mkfifo").args(["-m", "644", text]).status().expect("mkfifo").success());
    let mut reader = Command::new("cat");
    reader.arg(text);
    let reader = Running::start(reader);
    assert_eq!(run(["exec", "--record", text, "echo", "hi"]).good(), b"hi\n");
    let bytes = reader.finish().good();
    assert!(matches!(decode(items(&bytes).pop().expect("records")), Record::Footer { .. }));
    assert_eq!(fs::metadata(&path).expect("a pipe").permissions().mode() & 0o7777, 0o644);
}

#[test]
fn a_recording_that_cannot_be_written_is_an_error_before_anything_runs() {
    let folder = Folder::new();
    let made = folder.path("made");
    let done = run(["exec", "--record", "/nowhere/recording", "touch", made.to_str().expect("text")]);
    done.bad(125, &["/nowhere/recording", "no such file or directory"]);
    assert!(!made.exists());
}

#[test]
fn a_program_that_is_not_there_leaves_a_whole_recording() {
    let folder = Folder::new();
    let (path, done) = record(&folder, &["/nowhere/program"], b"");
    done.bad(127, &["/nowhere/program"]);
    let bytes = fs::read(&path).expect("a file");
    let items = items(&bytes);
    assert!(matches!(decode(items[items.len() - 2]), Record::End { seq: 0, code: -1 | 127, .. }));
    let done = replay(&path, &[]);
    assert_eq!((done.code, done.stdout.len()), (Some(0), 0));
    assert!(done.stderr().contains("/nowhere/program"), "{}", done.stderr());
}

#[test]
fn a_client_that_is_killed_leaves_what_was_until_then() {
    let folder = Folder::new();
    let path = folder.path("recording");
    let script = "echo begun; exec sleep 600";
    let mut running =
        Running::start(lodger(["exec", "-n", "--record", path.to_str().expect("text"), "sh", "-c", script]));
    read_until(&mut running.stdout(), "begun\n");
    running.signal(SIGKILL);
    assert_eq!(running.finish().signal, Some(SIGKILL));
    let bytes = fs::read(&path).expect("a file");
    assert!(matches!(decode(items(&bytes).pop().expect("records")), Record::Frame { .. }));
    let done = replay(&path, &["--speed", "0"]);
    assert_eq!(done.stdout(), "begun\n");
    done.bad(125, &["has no end; command 0 was still running"]);
}

// Playing

#[test]
fn what_is_played_back_is_what_was_said() {
    let folder = Folder::new();
    let input = noise(7, 3 << 20);
    let (path, done) = record(&folder, &["sh", "-c", "tee /dev/stderr"], &input);
    assert_eq!(done.code, Some(0));
    assert!(done.stdout == input && done.stderr == input, "recording changes the streams");
    let played = replay(&path, &["--speed", "max"]);
    assert_eq!(played.code, Some(0));
    assert!(played.stdout == input && played.stderr == input, "replay changes the streams");
}

#[test]
fn a_recording_is_read_from_stdin_too() {
    let records = [header(), start(0, START), data(0, START, 1, b"x"), end(0, START), footer(START, 1)];
    assert_eq!(run_with_input(["replay", "-"], &records.concat()).good(), b"x");
}

fn with_pause(pause_ns: i64) -> Vec<Vec<u8>> {
    let then = START + pause_ns;
    let records = [header(), start(0, START), data(0, START, 1, b"a"), data(0, then, 1, b"b"), end(0, then)];
    [&records[..], &[footer(then, 1)]].concat()
}

#[test]
fn pauses_are_those_of_the_recording() {
    let folder = Folder::new();
    let path = recording(&folder, &with_pause(SECOND / 5));
    for (options, least_ms) in [(&[][..], 200), (&["--speed", "0.5"], 400), (&["--speed", "4"], 50)] {
        let begun = Instant::now();
        assert_eq!(replay(&path, options).good(), b"ab");
        assert!(begun.elapsed() >= Duration::from_millis(least_ms), "{options:?}");
    }
}

#[test]
fn long_pauses_can_be_cut() {
    let folder = Folder::new();
    let path = recording(&folder, &with_pause(3_000_000 * SECOND));
    for options in [&["--speed", "max"][..], &["--speed", "0"], &["--speed=1e9"], &["--idle-limit", "0.05"]] {
        assert_eq!(replay(&path, options).good(), b"ab");
    }
    for (options, word) in [
        (&["--speed", "-1"][..], "--speed -1"),
        (&["--speed", "nan"], "--speed nan"),
        (&["--speed", "fast"], "--speed fast"),
        (&["--idle-limit", "-1"], "--idle-limit -1"),
        (&["--seq", "x"], "--seq x"),
    ] {
        replay(&path, options).bad(125, &[word]);
    }
}

#[test]
fn a_reader_that_goes_ends_a_replay_within_its_pause() {
    let folder = Folder::new();
    let path = recording(&folder, &with_pause(3600 * SECOND));
    let mut running = Running::start(lodger(["replay", path.to_str().expect("text")]));
    read_until(&mut running.stdout(), "a");
    let done = running.finish();
    assert_eq!((done.code, done.stderr()), (Some(125), String::new()));
}

#[test]
fn commands_that_ran_at_once_are_played_together_or_one_alone() {
    let folder = Folder::new();
    let records = [
        header(),
        start(0, START),
        start(1, START + 1),
        data(0, START + 2, 1, b"a"),
        data(1, START + 3, 1, b"1"),
        data(0, START + 4, 1, b"b"),
        data(0, START + 4, 2, b"!"),
        end(0, START + 5),
        data(1, START + 6, 1, b"2"),
        end(1, START + 7),
        footer(START + 8, 2),
    ];
    let path = recording(&folder, &records);
    let done = replay(&path, &[]);
    assert_eq!((done.code, done.stdout(), done.stderr()), (Some(0), "a1b2".into(), "!".into()));
    assert_eq!(replay(&path, &["--seq", "0"]).stdout(), "ab");
    assert_eq!(replay(&path, &["--seq", "1"]).good(), b"12");
    replay(&path, &["--seq", "2"]).bad(125, &["holds no command 2"]);
    let first = String::from_utf8(replay(&path, &["--asciicast", "-"]).good()).expect("text");
    assert_eq!(first.lines().skip(1).filter(|line| line.contains('a') || line.contains('1')).count(), 1, "{first}");
    let second = String::from_utf8(replay(&path, &["--asciicast", "-", "--seq", "1"]).good()).expect("text");
    assert!(second.contains("\"1\"") && second.contains("\"2\"") && !second.contains("\"a\""), "{second}");
    let listed = String::from_utf8(replay(&path, &["--dump", "--seq", "1"]).good()).expect("text");
    assert_eq!(listed.lines().count(), 6, "{listed}");
}

#[test]
fn every_prefix_of_a_recording_plays_as_far_as_it_is_good() {
    let folder = Folder::new();
    let records = [
        header(),
        start(0, START),
        data(0, START, 1, b"first"),
        data(0, START, 1, b"second"),
        end(0, START),
        footer(START, 1),
    ];
    let bytes = records.concat();
    let boundaries: Vec<usize> = records
        .iter()
        .scan(0, |at, record| Some(std::mem::replace(at, *at + record.len())))
        .chain([bytes.len()])
        .collect();
    let path = folder.path("recording");
    for length in 0..bytes.len() {
        fs::write(&path, &bytes[..length]).expect("a file");
        let done = replay(&path, &[]);
        let expected = match length {
            _ if length >= boundaries[4] => "firstsecond",
            _ if length >= boundaries[3] => "first",
            _ => "",
        };
        assert_eq!(done.stdout(), expected, "{length} bytes");
        let whole = boundaries.iter().skip(1).filter(|at| **at <= length).count();
        let words = match (whole, boundaries.contains(&length)) {
            (0, true) => "it is empty".to_owned(),
            (0, false) => "cut off in its first record".to_owned(),
            (_, true) => "has no end".to_owned(),
            (_, false) => format!("cut off after record {whole} ("),
        };
        done.bad(125, &[&words]);
    }
    fs::write(&path, &bytes).expect("a file");
    assert_eq!(replay(&path, &[]).good(), b"firstsecond");
}

#[test]
fn what_is_no_recording_is_called_so() {
    let folder = Folder::new();
    let path = folder.path("other");
    for bytes in
        [&b"#!/bin/sh\necho hi\n"[..], b"\x7fELF\x02\x01\x01", b"{}", b"\xa0", b"\xa1\x64type\x09", &[0xff; 40]]
    {
        fs::write(&path, bytes).expect("a file");
        replay(&path, &[]).bad(125, &["no recording"]);
    }
    replay(Path::new("/nowhere/recording"), &[]).bad(125, &["/nowhere/recording", "no such file or directory"]);
    replay(&folder.0, &[]).bad(125, &["is a directory"]);
    run(["replay"]).bad(125, &["a recording is missing"]);
}

#[test]
fn garbage_behind_good_records_is_told_after_them() {
    let folder = Folder::new();
    let path = recording(&folder, &[header(), start(0, START), data(0, START, 1, b"good"), vec![0xff; 9]]);
    let done = replay(&path, &[]);
    assert_eq!(done.stdout(), "good");
    done.bad(125, &["nothing to be read after record 3"]);
}

#[test]
fn upstreams_files_play_and_what_came_later_is_left_out_with_a_note() {
    let folder = Folder::new();
    let text = |text: &str| Value::Text(text.to_owned());
    let map =
        |pairs: Vec<(&str, Value)>| Value::Map(pairs.into_iter().map(|(key, value)| (text(key), value)).collect());
    let number = |number: i64| Value::Integer(number.into());
    let record = |kind: i64, name: &str, pairs| map(vec![("type", number(kind)), (name, map(pairs))]);
    let frame = |direction: i64, frame: Value| {
        record(
            3,
            "frame",
            vec![("ts", number(START)), ("dir", number(direction)), ("seq", number(0)), ("frame", frame)],
        )
    };
    let of_data = vec![("d", Value::Bytes(b"hi\n".to_vec())), ("s", number(1)), ("t", number(2))];
    let log = map(vec![("lvl", number(-8)), ("msg", text("child started"))]);
    let exec = vec![("cwd", text("")), ("env", Value::Array(vec![])), ("argv", Value::Null), ("path", text("ls"))];
    let header = vec![("version", text("1.2")), ("ssh_addr", text("host:22")), ("ssh_user", text("me"))];
    let items = [
        record(1, "header", header),
        record(2, "cmd_start", vec![("seq", number(0)), ("exec", map(exec)), ("start_time", number(START))]),
        frame(1, map(vec![("t", number(8)), ("cfg", map(vec![("env_keep", Value::Null)]))])),
        frame(2, map(vec![("l", log), ("t", number(7))])),
        frame(2, map(of_data)),
        frame(2, map(vec![("t", number(99)), ("new", Value::Bytes(vec![0xff]))])),
        record(9, "news", vec![("x", number(1))]),
        frame(2, map(vec![("t", number(5))])),
        record(4, "cmd_end", vec![("seq", number(0)), ("end_time", number(START)), ("exit_code", number(0))]),
        record(5, "footer", vec![("end_time", number(START)), ("command_count", number(1))]),
    ];
    let items = items.map(|item| {
        let mut bytes = Vec::new();
        ciborium::into_writer(&item, &mut bytes).expect("memory takes everything");
        bytes
    });
    let path = recording(&folder, &items);
    let done = replay(&path, &[]);
    assert_eq!((done.code, done.stdout()), (Some(0), "hi\n".into()));
    assert!(done.stderr().contains("unknown types, left out: 1"), "{}", done.stderr());
    let listed = replay(&path, &["--dump"]).stdout();
    let listed: Vec<Json> = listed.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(listed[0]["header"]["ssh_addr"], "host:22");
    assert_eq!((&listed[5]["kind"], &listed[5]["frame"]["frame"]["t"]), (&"unknown frame".into(), &99.into()));
    assert_eq!(listed[5]["frame"]["frame"]["new"]["base64"], "/w==");
    assert_eq!((&listed[6]["kind"], &listed[6]["type"]), (&"unknown".into(), &9.into()));
}

// Listing and exporting

#[test]
fn a_listing_is_one_json_object_a_record() {
    let folder = Folder::new();
    let (path, done) = record(&folder, &["printf", "a\\nb\\377"], b"");
    assert_eq!(done.good(), b"a\nb\xff");
    let text = String::from_utf8(replay(&path, &["--dump"]).good()).expect("text");
    let listed: Vec<Json> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let bytes = fs::read(&path).expect("a file");
    assert_eq!(listed.len(), items(&bytes).len());
    for (index, line) in listed.iter().enumerate() {
        assert_eq!(line["record"], index + 1);
    }
    assert_eq!((&listed[0]["kind"], &listed[1]["kind"]), (&"header".into(), &"start".into()));
    assert_eq!(listed[1]["cmd_start"]["exec"]["argv"][1], "a\\nb\\377");
    assert!(listed[1]["cmd_start"]["start_time"].as_i64().is_some_and(|time| time > START));
    let output = listed.iter().find(|line| line["kind"] == "stdout").expect("output");
    assert_eq!(output["frame"]["frame"]["d"]["base64"], "YQpi/w==");
    assert_eq!(listed.last().expect("lines")["kind"], "footer");
}

fn cast(text: &str) -> (Json, Vec<(f64, String, String)>) {
    let mut lines = text.lines().map(|line| serde_json::from_str::<Json>(line).expect("JSON"));
    let header = lines.next().expect("a header");
    let text = |value: &Json| value.as_str().expect("text").to_owned();
    let events = lines.map(|event| (event[0].as_f64().expect("a time"), text(&event[1]), text(&event[2])));
    (header, events.collect())
}

fn joined(events: &[(f64, String, String)], kind: &str) -> String {
    events.iter().filter(|(_, of, _)| of == kind).map(|(_, _, text)| text.as_str()).collect()
}

#[test]
fn an_asciicast_holds_what_was_said() {
    let folder = Folder::new();
    let (path, done) = record(&folder, &["cat"], "Grüße, 世界 😀\n".repeat(20_000).as_bytes());
    let said = done.stdout();
    let out = folder.path("cast");
    let done = replay(&path, &["--asciicast", out.to_str().expect("text")]);
    assert!(done.good().is_empty());
    let (header, events) = cast(&fs::read_to_string(&out).expect("a file"));
    assert_eq!((&header["version"], &header["width"], &header["height"]), (&2.into(), &80.into(), &24.into()));
    assert_eq!(header["command"], "cat");
    assert!(events.is_sorted_by(|a, b| a.0 <= b.0), "times go back");
    assert!(joined(&events, "o") == said && joined(&events, "i") == said, "the text is another");
    let own = replay(&path, &["--asciicast", path.to_str().expect("text")]);
    own.bad(125, &["is the recording itself"]);
    assert_eq!(replay(&path, &["--speed", "max"]).stdout(), said);
    replay(&path, &["--asciicast", "-", "--dump"]).bad(125, &["exclude"]);
    replay(&path, &["--asciicast", "/nowhere/cast"]).bad(125, &["/nowhere/cast"]);
    replay(&path, &["--asciicast", "/dev/full"]).bad(125, &["/dev/full", "no space left"]);
}

#[test]
fn characters_that_were_cut_are_joined_and_bad_ones_replaced() {
    let folder = Folder::new();
    let resize = Frame::Resize { id: 0, rows: 50, columns: 132 };
    let resize =
        Record::Frame { seq: 0, time_ns: START + SECOND / 2, direction: Direction::ToAgent, frame: resize }.to_bytes();
    let records = [
        header(),
        start(0, START),
        data(0, START + SECOND / 4, 1, b"\xe2\x82"),
        resize,
        data(0, START + SECOND, 1, b"\xac \xff"),
        data(0, START + 2 * SECOND, 0, b"\xc3"),
        data(0, START + 2 * SECOND, 1, b"\xc3"),
        data(0, START + 3 * SECOND, 0, b"\xa4"),
        end(0, START + 100 * SECOND),
        footer(START, 1),
    ];
    let path = recording(&folder, &records);
    let text = String::from_utf8(replay(&path, &["--asciicast", "-", "--idle-limit", "10"]).good()).expect("text");
    let (header, events) = cast(&text);
    assert_eq!((&header["width"], &header["height"]), (&100.into(), &40.into()));
    assert_eq!((&header["timestamp"], &header["env"]["TERM"]), (&1_700_000_000.into(), &"xterm".into()));
    assert_eq!(header["command"], "sh -c 'echo a b'");
    let event = |time: f64, kind: &str, text: &str| (time, kind.to_owned(), text.to_owned());
    let expected =
        [event(0.5, "r", "132x50"), event(1.0, "o", "€ \u{fffd}"), event(3.0, "i", "ä"), event(13.0, "o", "\u{fffd}")];
    assert_eq!(events, expected);
}
