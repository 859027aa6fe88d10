//! What the reader of messages takes and what it refuses, and that no input harms it.
//!
//! The rules are those of upstream's decoder (fxamacker/cbor 2.9), line by line; then come random spellings of good
//! frames, and then damaged ones.

use std::alloc::{GlobalAlloc, Layout, System};
use std::borrow::Cow;
use std::cell::Cell;
use std::fmt::Debug;
use std::io;

use ciborium::Value;

use lodger::wire::ITEM_MAX;
use lodger::wire::exec::{Exec, ExecExtension};
use lodger::wire::file::{FileRequest, FileResponse, Stat, Statfs, op};
use lodger::wire::frame::{Config, Frame, Hello, LEVEL_WARN, Log, PathEntry};
use lodger::wire::record::{Direction, Header, Record};
use lodger::wire::scan::{DEPTH_MAX, ELEMENTS_MAX, Refusal, Scanner};

/// Reads one frame as an end of a connection does: scanned first.
fn read(item: &[u8]) -> io::Result<Frame<'_>> {
    match Scanner::new(ITEM_MAX).find_end(item) {
        Ok(Some(end)) if end == item.len() => Frame::decode(item),
        Ok(found) => panic!("{item:02x?} is {} bytes, not one item: {found:?}", item.len()),
        Err(refusal) => Err(io::Error::new(io::ErrorKind::InvalidData, refusal.to_string())),
    }
}

fn accepts(item: &[u8], frame: &Frame) {
    match read(item) {
        Ok(read) => assert_eq!(&read, frame, "from {item:02x?}"),
        Err(error) => panic!("{item:02x?} was refused: {error}"),
    }
}

fn refuses(item: &[u8]) {
    match read(item) {
        Ok(frame) => panic!("{item:02x?} was taken for {frame:?}"),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{item:02x?}"),
    }
}

fn data(stream: u32, data: &'static [u8]) -> Frame<'static> {
    Frame::Data { id: 0, stream, data: Cow::Borrowed(data) }
}

fn exit(code: i64) -> Frame<'static> {
    Frame::Exit { id: 0, code, error: String::new(), errno: 0 }
}

fn error(text: &str) -> Frame<'static> {
    Frame::Error { error: text.into() }
}

fn request(request: FileRequest<'static>) -> Frame<'static> {
    Frame::FileOp(request)
}

#[test]
fn keys_may_come_in_any_order() {
    let members: [&[u8]; 3] = [b"\x61d\x41x", b"\x61s\x01", b"\x61t\x02"];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let item = [&b"\xa3"[..], members[order[0]], members[order[1]], members[order[2]]].concat();
        accepts(&item, &data(1, b"x"));
    }
}

#[test]
fn heads_may_be_longer_than_they_need() {
    accepts(b"\xb8\x02\x78\x01t\x18\x05\x79\x00\x01c\x19\x00\x01", &exit(1));
    accepts(b"\xb9\x00\x02\x7a\x00\x00\x00\x01t\x1a\x00\x00\x00\x05\x61c\x39\x00\x00", &exit(-1));
    let eight = b"\xbb\0\0\0\0\0\0\0\x02\x7b\0\0\0\0\0\0\0\x01t\x1b\0\0\0\0\0\0\0\x02\x61d\x5b\0\0\0\0\0\0\0\x01x";
    accepts(eight, &data(0, b"x"));
    let path_query = b"\xa2\x61t\x09\x61q\xa1\x65paths\x99\x00\x01\x78\x01/";
    accepts(path_query, &Frame::PathQuery { paths: vec![b"/".to_vec()] });
}

#[test]
fn maps_lists_and_strings_may_be_of_open_length() {
    accepts(b"\xbf\x61t\x02\x61d\x5f\x41a\x40\x42bc\xff\xff", &data(0, b"abc"));
    accepts(b"\xa2\x61t\x02\x61d\x5f\xff", &data(0, b""));
    accepts(b"\xa2\x61t\x06\x61e\x7f\x61a\x62bc\xff", &error("abc"));
    accepts(b"\xbf\x7f\x61t\xff\x05\x7f\x60\x61c\x60\xff\x01\xff", &exit(1));
    let paths = Frame::PathQuery { paths: vec![b"/a".to_vec(), b"/b".to_vec()] };
    accepts(b"\xa2\x61t\x09\x61q\xbf\x65paths\x9f\x62/a\x7f\x61/\x61b\xff\xff\xff", &paths);
    accepts(b"\xbf\xff", &Frame::Unknown { kind: 0 });
}

#[test]
fn unknown_keys_may_hold_anything() {
    let values: [&[u8]; 18] = [
        b"\x62\xff\xfe",             // text that is not UTF-8
        b"\x7f\x61\xc3\x61\xa9\xff", // a character cut in two
        b"\x41\xff",
        b"\xf9\x7e\x00",
        b"\xfa\x7f\x80\x00\x00",
        b"\xfb\x3f\xf0\x00\x00\x00\x00\x00\x00",
        b"\xf4",
        b"\xf5",
        b"\xf6",
        b"\xf7",
        b"\xe0",
        b"\xf8\xff",
        b"\x1b\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x3b\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xd9\xd9\xf7\xc1\x00",
        b"\xa3\x61t\x61x\x61t\x02\x41x\x9f\xbf\xff\xff",
        b"\x9f\x81\x80\x5f\xff\x7f\xff\xff",
        b"\xc3\x49\x01\x00\x00\x00\x00\x00\x00\x00\x00",
    ];
    for value in values {
        accepts(&[b"\xa3\x63new", value, b"\x61t\x05\x61c\x07"].concat(), &exit(7));
        let inside = [b"\xa2\x61t\x0b\x63fop\xa3\x62zz", value, b"\x62id\x01\x62op\x04"].concat();
        accepts(&inside, &request(FileRequest { id: 1, op: op::CLOSE, ..FileRequest::default() }));
    }
}

#[test]
fn a_frame_of_an_unknown_type_is_passed_over_whatever_its_members_are() {
    accepts(b"\xa3\x61t\x18\x63\x62id\x61x\x61n\xf9\x00\x00", &Frame::Unknown { kind: 99 });
    accepts(b"\xa3\x61t\x06\x61e\x61!\x62id\x61x", &error("!"));
}

#[test]
fn keys_that_are_numbers_are_passed_over() {
    accepts(b"\xa4\x00\x61x\x61t\x05\x20\xf6\x1b\xff\xff\xff\xff\xff\xff\xff\xff\x80", &exit(0));
}

#[test]
fn null_is_an_empty_frame() {
    for item in [&b"\xf6"[..], b"\xf7", b"\xa0", b"\xc1\xf6", b"\xd9\xd9\xf7\xa0", b"\xa1\x61t\xf6"] {
        accepts(item, &Frame::Unknown { kind: 0 });
    }
}

#[test]
fn tags_around_anything_are_passed_over() {
    accepts(b"\xd9\xd9\xf7\xc6\xa2\x61t\xc1\x02\x61d\xd8\x18\xd8\x40\x41x", &data(0, b"x"));
    accepts(b"\xa2\xc6\x61t\x06\x61e\xd8\x20\x61a", &error("a"));
    accepts(
        b"\xa2\x61t\x0b\x63fop\xc6\xa2\x62id\x01\x62op\x04",
        &request(FileRequest { id: 1, op: 4, ..Default::default() }),
    );
    let config = Config { env_keep: Some(vec!["A".into()]), env_remove: None };
    accepts(b"\xa2\x61t\x08\x63cfg\xa1\x68env_keep\xc6\x81\xc6\x61A", &Frame::Config(config));
    let response = FileResponse { eof: true, ..FileResponse::default() };
    accepts(b"\xa2\x61t\x0c\x63frp\xa1\x63eof\xc6\xf5", &Frame::FileResp(response));
}

#[test]
fn big_numbers_that_fit_are_numbers() {
    accepts(b"\xa2\x61t\x05\x61c\xc2\x41\x2a", &exit(42));
    accepts(b"\xa2\x61t\x05\x61c\xc2\x40", &exit(0));
    accepts(b"\xa2\x61t\x05\x61c\xc3\x41\x2a", &exit(-43));
    accepts(b"\xa2\x61t\x05\x61c\xc2\x4a\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", &exit(i64::MAX));
    accepts(b"\xa2\x61t\x05\x61c\xc3\x48\x7f\xff\xff\xff\xff\xff\xff\xff", &exit(i64::MIN));
    accepts(b"\xa2\x61t\xc2\x43\0\0\x05\x61c\xc6\xc2\x41\x01", &exit(1));
    refuses(b"\xa2\x61t\x05\x61c\xc2\x48\x80\0\0\0\0\0\0\0");
    refuses(b"\xa2\x61t\x05\x61c\xc3\x48\x80\0\0\0\0\0\0\0");
    refuses(b"\xa2\x61t\x05\x61c\xc2\x49\x01\0\0\0\0\0\0\0\0");
    refuses(b"\xa2\x61t\xc2\x42\x01\x00\x61c\x00");
    refuses(b"\xa2\x61t\x03\x61s\xc3\x40");
}

#[test]
fn a_list_of_small_numbers_is_bytes() {
    accepts(b"\xa2\x61t\x02\x61d\x84\x00\x18\x61\x18\xff\xf6", &data(0, b"\x00a\xff\x00"));
    accepts(b"\xa2\x61t\x02\x61d\x9f\x18\x61\xc1\x18\x62\xff", &data(0, b"ab"));
    accepts(b"\xa2\x61t\x02\x61d\x80", &data(0, b""));
    refuses(b"\xa2\x61t\x02\x61d\x81\x19\x01\x00");
    refuses(b"\xa2\x61t\x02\x61d\x81\x20");
    refuses(b"\xa2\x61t\x02\x61d\x81\x61a");
}

#[test]
fn keys_may_come_in_another_letter_case_unless_the_exact_one_is_there() {
    accepts(b"\xa2\x61T\x05\x61C\x01", &exit(1));
    accepts(b"\xa3\x61C\x02\x61c\x01\x61t\x05", &exit(1));
    accepts(b"\xa3\x61c\x01\x61C\x02\x61t\x05", &exit(1));
    let config = Config { env_keep: None, env_remove: Some(Vec::new()) };
    accepts(b"\xa2\x61t\x08\x63CfG\xa1\x6aEnv_REMOVE\x80", &Frame::Config(config));
}

#[test]
fn of_a_repeated_key_the_first_counts() {
    accepts(b"\xa3\x61c\x01\x61c\x02\x61t\x05", &exit(1));
    accepts(b"\xa4\x61t\x05\x61C\x01\x61C\x02\x61t\x02", &exit(1));
    accepts(b"\xa3\x61c\x01\x61c\x61x\x61t\x05", &exit(1));
}

#[test]
fn an_absent_list_is_told_from_an_empty_one() {
    let frame = |argv, env| Frame::Exec { id: 0, exec: Exec { argv, env, ..Exec::default() } };
    accepts(b"\xa2\x61t\x01\x61x\xa0", &frame(None, None));
    accepts(b"\xa2\x61t\x01\x61x\xa2\x64argv\xf7\x63env\x80", &frame(None, Some(Vec::new())));
    accepts(b"\xa2\x61t\x01\x61x\xa2\x64argv\x9f\xff\x63env\xf6", &frame(Some(Vec::new()), None));
    accepts(b"\xa2\x61t\x01\x61x\xa1\x64argv\x82\xf6\x60", &frame(Some(vec![Vec::new(); 2]), None));
    accepts(b"\xa2\x61t\x0a\x61i\xa0", &Frame::PathInfo { entries: None });
    accepts(b"\xa2\x61t\x0a\x61i\xa1\x67entries\x80", &Frame::PathInfo { entries: Some(Vec::new()) });
}

#[test]
fn a_known_type_without_its_payload_is_incomplete() {
    for kind in [1, 7, 8, 10, 11, 12, 224] {
        for payload in [&b"\xa0"[..], b"\xf6", b"\xf7", b"\xc1\xf6"] {
            let head = if kind < 24 { vec![kind] } else { vec![0x18, kind] };
            let item = [b"\xa2\x61t", &head[..], b"\x61y", payload].concat();
            accepts(&item, &Frame::Incomplete { kind });
        }
    }
    accepts(b"\xa2\x61t\x01\x61x\xf6", &Frame::Incomplete { kind: 1 });
    accepts(b"\xa2\x61t\x0c\x63frp\xc1\xf7", &Frame::Incomplete { kind: 12 });
}

#[test]
fn text_is_no_bytes_and_bytes_are_no_text() {
    refuses(b"\xa2\x61t\x02\x61d\x61x");
    refuses(b"\xa2\x61t\x02\x61d\x7f\xff");
    refuses(b"\xa2\x61t\x06\x61e\x41x");
    refuses(b"\xa2\x61t\x06\x61e\x80");
    refuses(b"\xa2\x61t\x06\x61e\x01");
    refuses(b"\xa2\x61t\x01\x61x\xa1\x64path\x41x");
    refuses(b"\xa2\x61t\x01\x61x\xa1\x64argv\x81\x41x");
    refuses(b"\xa2\x61t\x01\x61x\xa1\x63env\x41x");
    refuses(b"\xa2\x61t\x0b\x63fop\xa1\x61p\x40");
    refuses(b"\xa2\x61t\x0b\x63fop\xa1\x61d\x60");
}

#[test]
fn floats_and_truth_values_are_no_numbers() {
    let no_numbers: [&[u8]; 10] = [
        b"\xf9\x00\x00",
        b"\xfa\x00\x00\x00\x00",
        b"\xfb\x00\x00\x00\x00\x00\x00\x00\x00",
        b"\xf4",
        b"\xf5",
        b"\x61\x31",
        b"\x41\x01",
        b"\x80",
        b"\xa0",
        b"\xe0",
    ];
    for value in no_numbers {
        refuses(&[b"\xa2\x61t\x05\x61c", value].concat());
        refuses(&[b"\xa1\x61t", value].concat());
        refuses(&[b"\xa2\x61t\x03\x61s", value].concat());
        refuses(&[b"\xa2\x61t\x0b\x63fop\xa1\x62id", value].concat());
    }
    for value in [&b"\x01"[..], b"\x00", b"\x61\x31", b"\xf9\x00\x00", b"\xe0"] {
        refuses(&[b"\xa2\x61t\x0c\x63frp\xa1\x63eof", value].concat());
    }
}

#[test]
fn numbers_out_of_range_are_refused() {
    const PAST: [&[u8]; 4] = [b"\x19\x01\x00", b"\x1b\0\0\0\x01\0\0\0\0", b"\x1a\x80\0\0\0", b"\x1b\x80\0\0\0\0\0\0\0"];
    const BELOW: [&[u8]; 3] = [b"\x20", b"\x3a\x80\0\0\0", b"\x3b\x80\0\0\0\0\0\0\0"];
    let [u8_past, u32_past, i32_past, i64_past] = PAST;
    let [unsigned_below, i32_below, i64_below] = BELOW;
    let check = |before: &[u8], past: &[u8], below: &[u8]| {
        refuses(&[before, past].concat());
        refuses(&[before, below].concat());
    };
    check(b"\xa1\x61t", u8_past, unsigned_below);
    check(b"\xa2\x61t\x03\x61s", u32_past, unsigned_below);
    check(b"\xa2\x61t\x03\x62id", u32_past, unsigned_below);
    check(b"\xa2\x61t\x04\x63sig", i64_past, i64_below);
    check(b"\xa2\x61t\x05\x61c", i64_past, i64_below);
    check(b"\xa2\x61t\x07\x61l\xa1\x63lvl", i64_past, i64_below);
    check(b"\xa2\x61t\x01\x61x\xa1\x63fds\x81", u32_past, unsigned_below);
    check(b"\xa2\x61t\x0a\x61i\xa1\x67entries\x81\xa1\x64mode", u32_past, unsigned_below);
    check(b"\xa2\x61t\x0b\x63fop\xa1\x62op", u8_past, unsigned_below);
    check(b"\xa2\x61t\x0b\x63fop\xa1\x62fl", i32_past, i32_below);
    for name in [&b"\x61h"[..], b"\x62id", b"\x62mo", b"\x63uid", b"\x63gid"] {
        check(&[b"\xa2\x61t\x0b\x63fop\xa1", name].concat(), u32_past, unsigned_below);
    }
    for name in [&b"\x62of"[..], b"\x62sz", b"\x62at", b"\x62mt"] {
        check(&[b"\xa2\x61t\x0b\x63fop\xa1", name].concat(), i64_past, i64_below);
    }
    check(b"\xa2\x61t\x0c\x63frp\xa1\x62er", u32_past, unsigned_below);
    check(b"\xa2\x61t\x0c\x63frp\xa1\x61n", i64_past, i64_below);
    check(b"\xa2\x61t\x0c\x63frp\xa1\x62st\xa1\x61m", u32_past, unsigned_below);
    check(b"\xa2\x61t\x0c\x63frp\xa1\x62st\xa1\x63ino", b"\xc2\x49\x01\0\0\0\0\0\0\0\0", unsigned_below);
    check(b"\xa2\x61t\x18\xe2\x64rows", b"\x1a\0\x01\0\0", unsigned_below);
}

#[test]
fn known_text_must_be_utf8() {
    refuses(b"\xa2\x61t\x06\x61e\x61\xff");
    refuses(b"\xa2\x61t\x06\x61e\x7f\x61a\x61\xff\xff");
    refuses(b"\xa2\x61t\x06\x61e\x63\xed\xa0\x80");
    refuses(b"\xa2\x61t\x01\x61x\xa1\x64argv\x81\x61\xc3");
    refuses(b"\xa2\x61t\x01\x61x\xa1\x64path\x61\x80");
    refuses(b"\xa2\x61t\x0b\x63fop\xa1\x61p\x61\xe9");
}

#[test]
fn a_key_that_is_a_byte_string_is_refused() {
    refuses(b"\xa2\x61t\x05\x41c\x01");
    refuses(b"\xa2\x61t\x05\x5f\x41c\xff\x01");
    refuses(b"\xa2\x61t\x01\x61x\xa1\x40\x01");
}

#[test]
fn what_is_no_cbor_is_refused() {
    let items: [&[u8]; 15] = [
        b"\xff",
        b"\x1c",
        b"\x3d",
        b"\x5e",
        b"\x1f",
        b"\xdf",
        b"\xfc",
        b"\xf8\x16",
        b"\xf8\x1f",
        b"\x81\xff",
        b"\xc1\xff",
        b"\xbf\x01\xff",
        b"\x5f\x61a\xff",
        b"\x5f\x5f\xff\xff",
        b"\x7f\xc1\x61a\xff",
    ];
    for item in items {
        let inside = [b"\xa2\x61t\x05\x61u", item].concat();
        for item in [item, &inside] {
            assert!(matches!(Scanner::new(ITEM_MAX).find_end(item), Err(Refusal::Malformed(_))), "{item:02x?}");
        }
    }
}

#[test]
fn a_frame_is_a_map() {
    let items: [&[u8]; 9] =
        [b"\x00", b"\x20", b"\x40", b"\x60", b"\x80", b"\xf5", b"\xf9\x00\x00", b"\xc1\x00", b"\xe0"];
    items.into_iter().for_each(refuses);
    for payload in [&b"\x80"[..], b"\x60", b"\x01", b"\xf5"] {
        refuses(&[b"\xa2\x61t\x01\x61x", payload].concat());
        refuses(&[b"\xa2\x61t\x0c\x63frp", payload].concat());
        refuses(&[b"\xa2\x61t\x09\x61q", payload].concat());
    }
}

#[test]
fn a_frame_nested_at_the_limit_passes_and_one_level_more_does_not() {
    // The frame's own map is the first level.
    let around = |open: &[u8], inner: &[u8], levels: usize| {
        [b"\xa2\x61t\x05\x61u", &open.repeat(levels - 1)[..], inner].concat()
    };
    for (open, inner) in [(&b"\x81"[..], &b"\x01"[..]), (b"\xa1\x01", b"\x01"), (b"\xc1", b"\x01"), (b"\x81", b"\x61x")]
    {
        accepts(&around(open, inner, DEPTH_MAX), &exit(0));
        refuses(&around(open, inner, DEPTH_MAX + 1));
    }
}

#[test]
fn as_many_elements_as_the_limit_pass_and_one_more_does_not() {
    let argv = |count: u32| {
        [b"\xa2\x61t\x01\x61x\xa1\x64argv\x9a", &count.to_be_bytes()[..], &vec![0x60; count as usize]].concat()
    };
    let map = |count: u32| {
        [b"\xa2\x61t\x05\x61u\xba", &count.to_be_bytes()[..], &b"\x61x\x00".repeat(count as usize)].concat()
    };
    let limit = ELEMENTS_MAX as u32;
    let all = Exec { argv: Some(vec![Vec::new(); limit as usize]), ..Exec::default() };
    assert!(read(&argv(limit)).is_ok_and(|frame| frame == Frame::Exec { id: 0, exec: all }));
    accepts(&map(limit), &exit(0));
    let bytes = argv(limit + 1);
    assert!(matches!(Scanner::new(ITEM_MAX).find_end(&bytes), Err(Refusal::TooManyElements { .. })));
    refuses(&map(limit + 1)[..]);
}

/// A frame of each type with every member set, and what else is written in a way of its own.
fn full_frames() -> Vec<Frame<'static>> {
    let extension = ExecExtension {
        credit: 70_000,
        terminal: Some((24, 300)),
        detach: true,
        user: "www:adm".into(),
        umask: Some(0o22),
        set_env: vec![b"A=\xff".to_vec()],
    };
    let raw = Exec {
        path: b"/Caf\xe9".to_vec(),
        argv: Some(vec![b"\xff".to_vec(), b"x".to_vec()]),
        env: Some(vec![b"A=\x80".to_vec()]),
        cwd: b"/\xfe".to_vec(),
        fds: vec![3, 24, 70_000],
        extension,
    };
    let plain = Exec { path: b"/bin/sh".to_vec(), argv: Some(vec![b"sh".to_vec()]), ..Exec::default() };
    let log = Log { level: LEVEL_WARN, message: "grün".into(), attributes: vec!["a=b".into(), String::new()] };
    let entry =
        PathEntry { name: b"sh".to_vec(), path: b"/bin/sh".to_vec(), mode: 0o755, size: 1 << 40, modified_ns: -1 };
    vec![
        Frame::Exec { id: 7, exec: raw },
        Frame::Exec { id: 0, exec: plain },
        Frame::Data { id: 300, stream: 1, data: Cow::Borrowed(b"some \x00 bytes \xff") },
        Frame::Eof { id: 1, stream: 2 },
        Frame::Signal { id: 1, signal: 15 },
        Frame::Exit { id: 1, code: 127, error: "no".into(), errno: 2 },
        error("something"),
        Frame::Log(log),
        Frame::Config(Config { env_keep: Some(vec!["PATH".into()]), env_remove: Some(Vec::new()) }),
        Frame::PathQuery { paths: vec![b"/bin".to_vec(), b"/\xff".to_vec()] },
        Frame::PathInfo { entries: Some(vec![entry, PathEntry { name: b"\xe9".to_vec(), ..PathEntry::default() }]) },
        Frame::Hello(Hello { revision: 1, program: "p".into(), log_level: Some(-8), window: 1 << 20, mark: u64::MAX }),
        Frame::Credit { id: 1, stream: 2, bytes: u32::MAX },
        Frame::Resize { id: 1, rows: 24, columns: 80 },
        Frame::Started { id: 1, pid: 4321 },
        Frame::Goodbye,
        full_request(),
        full_response(),
    ]
}

fn full_request() -> Frame<'static> {
    request(FileRequest {
        id: u32::MAX,
        op: op::WRITE_AT,
        path: b"/a\xff".to_vec(),
        new_path: b"/b\xff".to_vec(),
        flags: -2,
        mode: 0o644,
        uid: 1,
        gid: 2,
        handle: 3,
        offset: -1,
        size: i64::MAX,
        accessed_ns: i64::MIN,
        modified_ns: 1,
        data: Cow::Borrowed(b"payload"),
        no_follow: true,
        paged: true,
    })
}

fn full_response() -> Frame<'static> {
    let stat = Stat {
        name: b"caf\xe9".to_vec(),
        size: 1,
        mode: 0o041_777,
        modified_ns: -2,
        accessed_ns: 3,
        changed_ns: 4,
        uid: 5,
        gid: 6,
        links: 7,
        device: 8,
        blocks: 9,
        block_bytes: 4096,
        inode: u64::MAX,
    };
    let file_system = Statfs {
        blocks: 1,
        blocks_free: 2,
        blocks_available: 3,
        files: 4,
        files_free: 5,
        block_bytes: 6,
        fragment_bytes: 7,
        name_length: 8,
    };
    Frame::FileResp(FileResponse {
        id: 1,
        errno: 2,
        error: "em".into(),
        handle: 3,
        data: Cow::Borrowed(b"data"),
        count: 4,
        eof: true,
        path: b"/p\xff".to_vec(),
        stat: Some(stat.clone()),
        file_system: Some(file_system),
        entries: vec![stat, Stat { name: b"b".to_vec(), mode: 0o100_644, ..Stat::default() }],
        end: 5,
        more: true,
    })
}

fn full_records() -> Vec<Record<'static>> {
    let header = Header {
        version: "1.3.0".into(),
        start_ns: 1 << 60,
        local_user: "u".into(),
        local_pid: 1,
        backend_type: "ssh".into(),
        backend_address: "h".into(),
        agent_path: "/a".into(),
    };
    let mut records = vec![
        Record::Header(header),
        Record::Start { seq: 1, start_ns: 2, exec: Exec { argv: Some(vec![b"\xff".to_vec()]), ..Exec::default() } },
        Record::End { seq: 1, end_ns: 3, code: -1 },
        Record::Footer { end_ns: 4, commands: 5 },
    ];
    let frames = full_frames().into_iter();
    records.extend(frames.map(|frame| Record::Frame { seq: 1, time_ns: 2, direction: Direction::ToAgent, frame }));
    records
}

fn as_value(bytes: &[u8]) -> Value {
    ciborium::from_reader(bytes).expect("a message of ours")
}

type Change<'a> = &'a dyn Fn(&mut Vec<(Value, Value)>, usize);

/// Calls `each` with the value once for each map member in it, that member being changed by `change`.
fn change_each_member(value: &Value, change: Change, each: &mut dyn FnMut(Value)) {
    match value {
        Value::Map(pairs) => {
            for index in 0..pairs.len() {
                let mut changed = pairs.clone();
                change(&mut changed, index);
                each(Value::Map(changed));
                change_each_member(&pairs[index].1, change, &mut |inner| {
                    let mut changed = pairs.clone();
                    changed[index].1 = inner;
                    each(Value::Map(changed));
                });
            }
        }
        Value::Array(items) => {
            for index in 0..items.len() {
                change_each_member(&items[index], change, &mut |inner| {
                    let mut changed = items.clone();
                    changed[index] = inner;
                    each(Value::Array(changed));
                });
            }
        }
        _ => {}
    }
}

#[test]
fn null_or_undefined_in_any_field_is_the_same_as_its_absence() {
    // ciborium has no undefined, so a text that occurs nowhere else stands for it until the bytes are there.
    const PLACE: &[u8] = b"\x63\x00?\x00";
    for frame in full_frames() {
        let value = as_value(&frame.to_bytes());
        let collect = |change: Change| {
            let mut changed = Vec::new();
            change_each_member(&value, change, &mut |value| {
                let mut bytes = Vec::new();
                ciborium::into_writer(&value, &mut bytes).expect("memory takes everything");
                changed.push(bytes);
            });
            changed
        };
        let absent = collect(&|pairs, index| drop(pairs.remove(index)));
        let places = collect(&|pairs, index| pairs[index].1 = Value::Text("\0?\0".into()));
        assert_eq!(absent.len(), places.len());
        for (absent, places) in absent.iter().zip(&places) {
            let at = places.windows(PLACE.len()).position(|part| part == PLACE).expect("the place");
            for nothing in [&b"\xf6"[..], b"\xf7", b"\xc1\xf6"] {
                let item = [&places[..at], nothing, &places[at + PLACE.len()..]].concat();
                match (read(&item), read(absent)) {
                    (Ok(nothing), Ok(absent)) => assert_eq!(nothing, absent, "{item:02x?}"),
                    // A Hello needs its revision.
                    (Err(_), Err(_)) if matches!(frame, Frame::Hello(_)) => {}
                    (nothing, absent) => panic!("{item:02x?}: {nothing:?} but {absent:?}"),
                }
            }
        }
    }
}

/// xorshift64*, so that a run can be repeated from the seed that a failure prints.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// Below `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}

/// A seed of its own for each part of a run; `LODGER_SEED` repeats one.
fn seed(default: u64) -> u64 {
    std::env::var("LODGER_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Prints the seed when the test that holds it panics.
struct Telltale<'a>(u64, &'a Cell<usize>);

impl Drop for Telltale<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("repeat with LODGER_SEED={} (round {})", self.0, self.1.get());
        }
    }
}

fn spell_head(random: &mut Random, major: u8, value: u64, out: &mut Vec<u8>) {
    let smallest = match value {
        0..=23 => 0,
        24..=0xff => 1,
        0x100..=0xffff => 2,
        0x1_0000..=0xffff_ffff => 3,
        _ => 4,
    };
    let size = if random.one_in(3) { smallest + random.below(5 - smallest) } else { smallest };
    let major = major << 5;
    match size {
        0 => out.push(major | value as u8),
        1 => out.extend([major | 24, value as u8]),
        2 => out.extend([&[major | 25], &(value as u16).to_be_bytes()[..]].concat()),
        3 => out.extend([&[major | 26], &(value as u32).to_be_bytes()[..]].concat()),
        _ => out.extend([&[major | 27], &value.to_be_bytes()[..]].concat()),
    }
}

/// A string in one piece or several, cut between characters.
fn spell_string(random: &mut Random, major: u8, string: &[u8], out: &mut Vec<u8>) {
    if !random.one_in(5) {
        spell_head(random, major, string.len() as u64, out);
        out.extend_from_slice(string);
        return;
    }
    out.push(major << 5 | 31);
    let mut rest = string;
    while !rest.is_empty() {
        let mut cut = 1 + random.below(rest.len());
        while major == 3 && str::from_utf8(&rest[..cut]).is_err() {
            cut += 1;
        }
        spell_head(random, major, cut as u64, out);
        out.extend_from_slice(&rest[..cut]);
        rest = &rest[cut..];
    }
    out.push(0xff);
}

/// The parts of a map or list, by count or until a break.
fn spell_parts(random: &mut Random, major: u8, count: usize, parts: &[Vec<u8>], out: &mut Vec<u8>) {
    let open = random.one_in(4);
    if open {
        out.push(major << 5 | 31);
    } else {
        spell_head(random, major, count as u64, out);
    }
    out.extend(parts.concat());
    if open {
        out.push(0xff);
    }
}

fn spell_number(random: &mut Random, number: i128, out: &mut Vec<u8>) {
    let (sign, magnitude) = if number < 0 { (1, (-1 - number) as u64) } else { (0, number as u64) };
    if random.one_in(6) {
        let digits = magnitude.to_be_bytes();
        let zeros = random.below(1 + magnitude.leading_zeros() as usize / 8);
        out.push(0xc2 + sign);
        spell_head(random, 2, 8 - zeros as u64, out);
        out.extend_from_slice(&digits[zeros..]);
    } else {
        spell_head(random, sign, magnitude, out);
    }
}

fn spell_map(random: &mut Random, pairs: &[(Value, Value)], out: &mut Vec<u8>) {
    let mut members: Vec<Vec<u8>> = Vec::new();
    let mut repeated: Vec<Vec<u8>> = Vec::new();
    for (key, value) in pairs {
        let key = key.as_text().expect("keys are text");
        let mut member = Vec::new();
        if random.one_in(4) {
            let other = if random.one_in(2) { key.to_uppercase() } else { key.to_owned() };
            spell_string(random, 3, other.as_bytes(), &mut member);
            spell(random, value, &mut member);
            // A second one, of which nobody takes notice.
            let mut again = Vec::new();
            spell_string(random, 3, other.as_bytes(), &mut again);
            again.extend(random.pick(&[&b"\x01"[..], b"\x61\xff", b"\x80", b"\xf5"]));
            repeated.push(again);
        } else {
            spell_string(random, 3, key.as_bytes(), &mut member);
            spell(random, value, &mut member);
        }
        members.push(member);
    }
    while random.one_in(4) {
        let key: &[u8] = random.pick(&[&b"\x05"[..], b"\x39\x01\x00", b"\x63zzz", b"\x7f\x62zz\xff", b"\x60"]);
        let value =
            random.pick(&[&b"\x61\xff"[..], b"\xf9\x7c\x00", b"\x9f\xa1\x41x\xf7\xff", b"\xc1\x00", b"\xf8\x20"]);
        members.push([key, value].concat());
    }
    for left in (1..members.len()).rev() {
        members.swap(left, random.below(left + 1));
    }
    members.append(&mut repeated);
    spell_parts(random, 5, members.len(), &members, out);
}

/// Writes the value in one of the many ways that mean the same.
fn spell(random: &mut Random, value: &Value, out: &mut Vec<u8>) {
    if random.one_in(8) {
        spell_head(random, 6, random_tag(random.0), out);
    }
    match value {
        Value::Integer(number) => spell_number(random, i128::from(*number), out),
        Value::Bytes(bytes) if random.one_in(5) => {
            let numbers = bytes.iter().map(|byte| {
                let mut number = Vec::new();
                spell_number(random, i128::from(*byte), &mut number);
                number
            });
            let numbers: Vec<Vec<u8>> = numbers.collect();
            spell_parts(random, 4, numbers.len(), &numbers, out);
        }
        Value::Bytes(bytes) => spell_string(random, 2, bytes, out),
        Value::Text(text) => spell_string(random, 3, text.as_bytes(), out),
        Value::Array(items) => {
            let parts = items.iter().map(|item| {
                let mut part = Vec::new();
                spell(random, item, &mut part);
                part
            });
            let parts: Vec<Vec<u8>> = parts.collect();
            spell_parts(random, 4, parts.len(), &parts, out);
        }
        Value::Map(pairs) => spell_map(random, pairs, out),
        Value::Null => out.push(if random.one_in(2) { 0xf6 } else { 0xf7 }),
        Value::Bool(truth) => out.push(0xf4 + u8::from(*truth)),
        other => panic!("{other:?} has no place in a message"),
    }
}

/// A tag other than those that make a byte string a number.
fn random_tag(state: u64) -> u64 {
    [0, 1, 4, 24, 55_799, u64::MAX][(state % 6) as usize]
}

#[test]
fn a_frame_is_the_same_however_it_is_spelled() {
    let (seed, round) = (seed(0x517e_1100), Cell::new(0));
    let _telltale = Telltale(seed, &round);
    let mut random = Random(seed.max(1));
    let frames: Vec<(Frame, Value)> =
        full_frames().into_iter().map(|frame| (frame.clone(), as_value(&frame.to_bytes()))).collect();
    for number in 0..5_000 {
        round.set(number);
        let (frame, value) = &frames[number % frames.len()];
        let mut item = Vec::new();
        spell(&mut random, value, &mut item);
        accepts(&item, frame);
    }
}

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// Counts what each thread holds.
struct Counting;

fn count(bytes: isize) {
    // A thread that ends has no counter any more.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: everything is handed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the rules of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: `place` came from `alloc` above with this layout.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What `work` returns, and how many bytes it held at most.
fn peak_of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = work();
    (result, (PEAK.get() - before) as usize)
}

/// Bytes that may be held for each byte of input: an empty file entry is 1 byte there and more than 100 here, twice
/// while its list grows.
const MEMORY_FACTOR: usize = 400;

/// The ends of the items in `bytes`, and what came behind them, `window` bytes more each time.
fn ends(bytes: &[u8], window: usize, limit: usize) -> (Vec<usize>, Result<(), Refusal>) {
    let mut scanner = Scanner::new(limit);
    let (mut start, mut arrived, mut ends) = (0, 0, Vec::new());
    loop {
        match scanner.find_end(&bytes[start..arrived]) {
            Ok(Some(length)) => {
                assert!(length > 0 && length <= limit && start + length <= arrived, "an item of {length} bytes");
                start += length;
                ends.push(start);
            }
            Ok(None) if arrived == bytes.len() => return (ends, Ok(())),
            Ok(None) => arrived = bytes.len().min(arrived + window),
            Err(refusal) => return (ends, Err(refusal)),
        }
    }
}

/// Decodes what may be anything; what is understood must come back the same from what we write of it.
fn check_round_trip<'a, T: Debug + PartialEq>(
    item: &'a [u8],
    decode: fn(&'a [u8]) -> io::Result<T>,
    encode: impl Fn(&T) -> Vec<u8>,
    same: impl Fn(&T, &[u8]) -> bool,
) {
    let (message, peak) = peak_of(|| decode(item));
    assert!(peak <= 2048 + item.len() * MEMORY_FACTOR, "{peak} bytes held for {} bytes: {item:02x?}", item.len());
    match message {
        Ok(message) => {
            let bytes = encode(&message);
            assert_eq!(Scanner::new(ITEM_MAX).find_end(&bytes), Ok(Some(bytes.len())), "{message:?}");
            assert!(same(&message, &bytes), "{message:?} from {item:02x?} became {bytes:02x?}");
        }
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{item:02x?}"),
    }
}

fn check_item(item: &[u8]) {
    let same_frame = |frame: &Frame, bytes: &[u8]| Frame::decode(bytes).is_ok_and(|again| again == *frame);
    check_round_trip(item, Frame::decode, |frame| frame.to_bytes(), same_frame);
    // Most damaged items are no records, so look only at what is close to one.
    if item.windows(5).any(|part| part == b"\x64type") {
        let same_record = |record: &Record, bytes: &[u8]| Record::decode(bytes).is_ok_and(|again| again == *record);
        check_round_trip(item, Record::decode, |record| record.to_bytes(), same_record);
    }
}

fn check_input(bytes: &[u8], random: &mut Random) {
    let limit = if random.one_in(8) { 1 + random.below(64) } else { ITEM_MAX };
    let whole = ends(bytes, bytes.len(), limit);
    assert_eq!(whole, ends(bytes, 1, limit), "{bytes:02x?} in one piece and byte by byte, limit {limit}");
    let mut start = 0;
    for end in whole.0 {
        let item = &bytes[start..end];
        if random.one_in(16) {
            let mut rest = item;
            // Where ciborium can read it at all, it finds the same end.
            if ciborium::from_reader::<Value, _>(&mut rest).is_ok() {
                assert_eq!(rest.len(), 0, "{item:02x?}");
            }
        }
        check_item(item);
        start = end;
    }
    // Nobody decodes what was not scanned, but a mistake there shall not end the agent.
    check_item(bytes);
}

/// Heads and values that decoders stumble over.
const STUMBLES: [&[u8]; 22] = [
    b"\xff",
    b"\x9f",
    b"\xbf",
    b"\x5f",
    b"\x7f",
    b"\xf6",
    b"\xf7",
    b"\xc2\x41\x05",
    b"\xc3\x48\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xd9\xd9\xf7",
    b"\xf8\x16",
    b"\xf8\x20",
    b"\xf9\x00\x00",
    b"\x1b\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x3b\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x5b\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x7b\x80\x00\x00\x00\x00\x00\x00\x00",
    b"\x9b\x00\x00\x00\x01\x00\x00\x00\x00",
    b"\xbb\x80\x00\x00\x00\x00\x00\x00\x00",
    b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x9a\x00\x02\x00\x00",
    &[0x81; DEPTH_MAX],
];

fn damage(bytes: &mut Vec<u8>, random: &mut Random, corpus: &[Vec<u8>]) {
    let at = random.below(bytes.len() + 1);
    let behind = at + random.below(bytes.len() - at + 1);
    match random.below(8) {
        0 => bytes.truncate(at),
        1 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        2 if at < bytes.len() => bytes[at] = random.next() as u8,
        3 => drop(bytes.splice(at..at, random.pick(&STUMBLES).iter().copied())),
        4 if at < bytes.len() => drop(bytes.splice(at..=at, random.pick(&STUMBLES).iter().copied())),
        5 => drop(bytes.drain(at..behind)),
        6 => {
            let part = bytes[at..behind].to_vec();
            let to = random.below(bytes.len() + 1);
            drop(bytes.splice(to..to, part));
        }
        _ => {
            let other = &corpus[random.below(corpus.len())];
            let from = random.below(other.len());
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
    }
}

/// 200,000 damaged, random and cut off inputs in two threads.
#[test]
fn no_input_harms_the_scanner_or_the_reader() {
    let start = seed(0x10d6_e500);
    let halves = [start, start + 1].map(|seed| std::thread::spawn(move || fuzz(seed, 100_000)));
    halves.into_iter().for_each(|half| half.join().expect("no input does harm"));
}

fn fuzz(seed: u64, rounds: usize) {
    let round = Cell::new(0);
    let _telltale = Telltale(seed, &round);
    let mut random = Random(seed.max(1));
    let mut corpus: Vec<Vec<u8>> = full_frames().iter().map(Frame::to_bytes).collect();
    corpus.extend(full_records().iter().map(Record::to_bytes));
    // Long ones are here too often for the time they take.
    corpus.sort_by_key(Vec::len);
    for number in 0..rounds {
        round.set(number);
        let mut bytes = match random.below(10) {
            0 => (0..random.below(40)).map(|_| random.next() as u8).collect(),
            1 => (0..random.below(12)).flat_map(|_| random.pick(&STUMBLES).to_vec()).collect(),
            2 => {
                let mut spelled = Vec::new();
                let place = random.below(corpus.len());
                spell(&mut random, &as_value(&corpus[place]), &mut spelled);
                spelled
            }
            _ => corpus[random.below(corpus.len()).min(random.below(corpus.len()))].clone(),
        };
        for _ in 0..=random.below(3) {
            damage(&mut bytes, &mut random, &corpus);
        }
        check_input(&bytes, &mut random);
    }
}

#[test]
fn an_item_as_large_as_the_limit_takes_memory_in_proportion() {
    // {"t": 12, "frp": {"en": [{}, {}, ...]}}, the form that grows most.
    let entries =
        [&b"\xa2\x61t\x0c\x63frp\xa1\x62en\x9a\x00\x02\x00\x00"[..], &vec![0xa0; ELEMENTS_MAX as usize]].concat();
    // A map of many members.
    let members = [&b"\xba\x00\x02\x00\x00"[..], &b"\x60\x00".repeat(ELEMENTS_MAX as usize)].concat();
    for item in [entries, members] {
        let (frame, peak) = peak_of(|| read(&item).map(drop));
        frame.expect("a frame");
        assert!(peak <= item.len() * MEMORY_FACTOR, "{peak} bytes held for {} bytes", item.len());
    }
}

#[test]
fn an_item_that_nobody_scanned_does_not_overflow_the_stack() {
    for open in [&b"\x81"[..], b"\x9f", b"\xc1", b"\xa1\x61x", b"\xbf\x61x"] {
        let nested = [b"\xa2\x61u", &open.repeat(1_000_000)[..]].concat();
        assert!(Frame::decode(&nested).is_err());
    }
    // An undeclared end and counts past every memory.
    let items: [&[u8]; 7] = [
        b"\xa1\xff\x01",
        b"\xa1\x01\xff",
        b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff\x61t",
        b"\xa1\x61u\xbb\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xa1\x61u\x5b\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xa2\x61t\x02\x61d\x5f\xa0\xff",
        b"\xa2\x61t\x02\x61d\x5f\x5f\xff",
    ];
    items.into_iter().for_each(|item| assert!(Frame::decode(item).is_err(), "{item:02x?}"));
}
