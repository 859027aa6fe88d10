//! Every message as literal bytes, both ways, with what it says in CBOR's diagnostic notation beside it.
//!
//! The first rows of each table were made by upstream's own encoder (fxamacker/cbor 2.9, canonical), the others
//! spelled out from its rules. ciborium reads the same bytes as an independent judge of what they say.

use std::borrow::Cow;
use std::fmt::{Debug, Write};

use ciborium::Value;

use lodger::link::frame::{self as line, Found};
use lodger::link::greeting::{Limits, Role};
use lodger::link::session::Link;
use lodger::link::{self, kind};
use lodger::wire::exec::{Exec, ExecExtension};
use lodger::wire::file::{FileRequest, FileResponse, Stat, Statfs, op};
use lodger::wire::frame::{
    self, Config, Frame, Hello, LEVEL_DEBUG, LEVEL_ERROR, LEVEL_INFO, LEVEL_TRACE, LEVEL_WARN, Log, PathEntry,
};
use lodger::wire::record::{Direction, Header, Record};
use lodger::wire::scan::Scanner;
use lodger::wire::writer::Encoder;
use lodger::wire::{ITEM_MAX, starts_frame};

/// A message in its three forms.
struct Row<T> {
    says: &'static str,
    bytes: Vec<u8>,
    message: T,
}

fn row<T>(says: &'static str, hex: &str, message: T) -> Row<T> {
    Row { says, bytes: unhex(hex), message }
}

fn unhex(hex: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("pairs of hexadecimal digits");
    (0..hex.len()).step_by(2).map(digits).collect()
}

fn strings(list: &[&str]) -> Option<Vec<Vec<u8>>> {
    Some(list.iter().map(|string| string.as_bytes().to_vec()).collect())
}

fn bytes(bytes: &'static [u8]) -> Cow<'static, [u8]> {
    Cow::Borrowed(bytes)
}

fn data(stream: u32, data: &'static [u8]) -> Frame<'static> {
    Frame::Data { id: 0, stream, data: bytes(data) }
}

fn exit(code: i64, error: &str) -> Frame<'static> {
    Frame::Exit { id: 0, code, error: error.into(), errno: 0 }
}

fn log(level: i64, message: &str, attributes: &[&str]) -> Frame<'static> {
    let attributes = attributes.iter().map(|pair| pair.to_string()).collect();
    Frame::Log(Log { level, message: message.into(), attributes })
}

fn program_frames() -> Vec<Row<Frame<'static>>> {
    vec![
        row(
            r#"{"t": 1, "x": {"cwd": "/tmp", "env": ["HOME=/root", "PATH=/usr/bin:/bin"], "fds": [3, 4],
            "argv": ["echo", "hello"], "path": "/bin/echo"}}"#,
            "a26174016178a563637764642f746d7063656e76826a484f4d453d2f726f6f7472504154483d2f7573722f62696e3a2f\
            62696e63666473820304646172677682646563686f6568656c6c6f6470617468692f62696e2f6563686f",
            Frame::Exec {
                id: 0,
                exec: Exec {
                    path: "/bin/echo".into(),
                    argv: strings(&["echo", "hello"]),
                    env: strings(&["HOME=/root", "PATH=/usr/bin:/bin"]),
                    cwd: "/tmp".into(),
                    fds: vec![3, 4],
                    ..Exec::default()
                },
            },
        ),
        row(
            r#"{"t": 1, "x": {"cwd": "", "env": [], "argv": [], "path": "/bin/true"}}"#,
            "a26174016178a4636377646063656e76806461726776806470617468692f62696e2f74727565",
            Frame::Exec {
                id: 0,
                exec: Exec { path: "/bin/true".into(), argv: strings(&[]), env: strings(&[]), ..Exec::default() },
            },
        ),
        row(
            r#"{"t": 1, "x": {"cwd": "/home/\u00fc", "env": ["X=\u00e9"], "fds": [3, 24, 255, 70000], "argv":
            ["a", "\u65e5\u672c\u8a9e", ""], "path": "/opt/\u00fcberprog"}}"#,
            "a26174016178a563637764682f686f6d652fc3bc63656e768164583dc3a9636664738403181818ff1a00011170646172\
            677683616169e697a5e69cace8aa9e6064706174686e2f6f70742fc3bc62657270726f67",
            Frame::Exec {
                id: 0,
                exec: Exec {
                    path: "/opt/überprog".into(),
                    argv: strings(&["a", "日本語", ""]),
                    env: strings(&["X=é"]),
                    cwd: "/home/ü".into(),
                    fds: vec![3, 24, 255, 70000],
                    ..Exec::default()
                },
            },
        ),
        row(
            r#"{"d": h'68656c6c6f20776f726c64', "s": 1, "t": 2}"#,
            "a361644b68656c6c6f20776f726c64617301617402",
            data(1, b"hello world"),
        ),
        row(
            r#"{"d": h'000102030405060708090a0b0c0d0e0f10111213141516ff', "s": 2, "t": 2}"#,
            "a361645818000102030405060708090a0b0c0d0e0f10111213141516ff617302617402",
            data(
                2,
                b"\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10\x11\x12\x13\x14\x15\x16\xff",
            ),
        ),
        row(r#"{"s": 1, "t": 2}"#, "a2617301617402", data(1, b"")),
        row(r#"{"t": 3}"#, "a1617403", Frame::Eof { id: 0, stream: 0 }),
        row(r#"{"t": 4, "sig": 15}"#, "a2617404637369670f", Frame::Signal { id: 0, signal: 15 }),
        row(r#"{"t": 4, "sig": 64}"#, "a2617404637369671840", Frame::Signal { id: 0, signal: 64 }),
        row(r#"{"c": 143, "t": 5}"#, "a26163188f617405", exit(143, "")),
        row(
            r#"{"c": 127, "e": "fork/exec /nonexistent: no such file or directory", "t": 5}"#,
            "a36163187f61657831666f726b2f65786563202f6e6f6e6578697374656e743a206e6f20737563682066696c65206f72\
            206469726563746f7279617405",
            exit(127, "fork/exec /nonexistent: no such file or directory"),
        ),
        row(
            r#"{"e": "something broke", "t": 6}"#,
            "a261656f736f6d657468696e672062726f6b65617406",
            Frame::Error { error: "something broke".into() },
        ),
        row(
            r#"{"t": 1, "x": {"cwd": "", "env": null, "argv": null, "path": ""}}"#,
            "a26174016178a4636377646063656e76f66461726776f6647061746860",
            Frame::Exec { id: 0, exec: Exec::default() },
        ),
        row(r#"{"t": 5}"#, "a1617405", exit(0, "")),
        row(r#"{"c": -1, "t": 5}"#, "a2616320617405", exit(-1, "")),
        row(r#"{"c": -9223372036854775808, "t": 5}"#, "a261633b7fffffffffffffff617405", exit(i64::MIN, "")),
        row(
            r#"{"t": 4, "sig": -9223372036854775808}"#,
            "a2617404637369673b7fffffffffffffff",
            Frame::Signal { id: 0, signal: i64::MIN },
        ),
        row(r#"{"t": 4}"#, "a1617404", Frame::Signal { id: 0, signal: 0 }),
        row(r#"{"d": h'78', "t": 2}"#, "a261644178617402", data(0, b"x")),
        row(r#"{"s": 4294967295, "t": 3}"#, "a261731affffffff617403", Frame::Eof { id: 0, stream: u32::MAX }),
        row(r#"{"t": 6}"#, "a1617406", Frame::Error { error: String::new() }),
    ]
}

fn frames_about_programs() -> Vec<Row<Frame<'static>>> {
    vec![
        row(
            r#"{"l": {"a": ["path=/bin/sh", "argv=[sh -c true]", "cwd=/"], "lvl": -8, "msg": "building
            command"}, "t": 7}"#,
            "a2616ca36161836c706174683d2f62696e2f736871617267763d5b7368202d6320747275655d656377643d2f636c766c\
            27636d7367706275696c64696e6720636f6d6d616e64617407",
            log(LEVEL_TRACE, "building command", &["path=/bin/sh", "argv=[sh -c true]", "cwd=/"]),
        ),
        row(
            r#"{"l": {"lvl": 0, "msg": "plain"}, "t": 7}"#,
            "a2616ca2636c766c00636d736765706c61696e617407",
            log(LEVEL_INFO, "plain", &[]),
        ),
        row(r#"{"l": {"lvl": 8, "msg": ""}, "t": 7}"#, "a2616ca2636c766c08636d736760617407", log(LEVEL_ERROR, "", &[])),
        row(
            r#"{"t": 8, "cfg": {"env_keep": null, "env_remove": []}}"#,
            "a261740863636667a268656e765f6b656570f66a656e765f72656d6f766580",
            Frame::Config(Config { env_keep: None, env_remove: Some(Vec::new()) }),
        ),
        row(
            r#"{"q": {"paths": ["/usr/bin", "/bin"]}, "t": 9}"#,
            "a26171a165706174687382682f7573722f62696e642f62696e617409",
            Frame::PathQuery { paths: vec!["/usr/bin".into(), "/bin".into()] },
        ),
        row(r#"{"t": 9}"#, "a1617409", Frame::PathQuery { paths: vec![] }),
        row(
            r#"{"i": {"entries": [{"mode": 493, "name": "sh", "path": "/bin/sh", "size": 125688, "mtime":
            1700000000123456789}, {"mode": 73, "name": "zero", "path": "/opt/zero", "size": 0}]}, "t": 10}"#,
            "a26169a167656e747269657382a5646d6f64651901ed646e616d656273686470617468672f62696e2f73686473697a65\
            1a0001eaf8656d74696d651b17979cfe3d85cd15a4646d6f64651849646e616d65647a65726f6470617468692f6f7074\
            2f7a65726f6473697a650061740a",
            Frame::PathInfo {
                entries: Some(vec![
                    PathEntry {
                        name: "sh".into(),
                        path: "/bin/sh".into(),
                        mode: 0o755,
                        size: 125_688,
                        modified_ns: 1_700_000_000_123_456_789,
                    },
                    PathEntry { name: "zero".into(), path: "/opt/zero".into(), mode: 0o111, ..PathEntry::default() },
                ]),
            },
        ),
        row(
            r#"{"i": {"entries": []}, "t": 10}"#,
            "a26169a167656e74726965738061740a",
            Frame::PathInfo { entries: Some(vec![]) },
        ),
        row(
            r#"{"l": {"lvl": -4, "msg": "m"}, "t": 7}"#,
            "a2616ca2636c766c23636d7367616d617407",
            log(LEVEL_DEBUG, "m", &[]),
        ),
        row(
            r#"{"l": {"lvl": 4, "msg": "m"}, "t": 7}"#,
            "a2616ca2636c766c04636d7367616d617407",
            log(LEVEL_WARN, "m", &[]),
        ),
        row(
            r#"{"t": 8, "cfg": {"env_keep": ["PATH", "/^LC_/"], "env_remove": null}}"#,
            "a261740863636667a268656e765f6b656570826450415448662f5e4c435f2f6a656e765f72656d6f7665f6",
            Frame::Config(Config { env_keep: Some(vec!["PATH".into(), "/^LC_/".into()]), env_remove: None }),
        ),
        row(
            r#"{"q": {"paths": ["\uefe9"]}, "t": 9}"#,
            "a26171a16570617468738163eebfa9617409",
            Frame::PathQuery { paths: vec![b"\xe9".into()] },
        ),
        row(
            r#"{"i": {"entries": null}, "t": 10}"#,
            "a26169a167656e7472696573f661740a",
            Frame::PathInfo { entries: None },
        ),
        row(
            r#"{"i": {"entries": [{"nb": h'e9', "pb": h'2f622fe9', "mode": 448, "name": "\uefe9", "path":
            "/b/\uefe9", "size": 1}]}, "t": 10}"#,
            "a26169a167656e747269657381a6626e6241e9627062442f622fe9646d6f64651901c0646e616d6563eebfa964706174\
            68662f622feebfa96473697a650161740a",
            Frame::PathInfo {
                entries: Some(vec![PathEntry {
                    name: b"\xe9".into(),
                    path: b"/b/\xe9".into(),
                    mode: 0o700,
                    size: 1,
                    ..PathEntry::default()
                }]),
            },
        ),
    ]
}

fn file_requests() -> Vec<Row<Frame<'static>>> {
    vec![
        row(
            r#"{"t": 11, "fop": {"p": "/etc/hostname", "id": 130, "op": 1}}"#,
            "a261740b63666f70a361706d2f6574632f686f73746e616d656269641882626f7001",
            Frame::FileOp(FileRequest {
                id: 130,
                op: op::OPEN,
                path: "/etc/hostname".into(),
                ..FileRequest::default()
            }),
        ),
        row(
            r#"{"t": 11, "fop": {"p": "/tmp/x", "fl": 1217, "id": 132, "mo": 416, "op": 3}}"#,
            "a261740b63666f70a56170662f746d702f7862666c1904c16269641884626d6f1901a0626f7003",
            Frame::FileOp(FileRequest {
                id: 132,
                op: op::OPEN_FILE,
                path: "/tmp/x".into(),
                flags: 0o2301,
                mode: 0o640,
                ..FileRequest::default()
            }),
        ),
        row(
            r#"{"t": 11, "fop": {"h": 1, "id": 133, "op": 4}}"#,
            "a261740b63666f70a36168016269641885626f7004",
            Frame::FileOp(FileRequest { id: 133, op: op::CLOSE, handle: 1, ..FileRequest::default() }),
        ),
        row(
            r#"{"t": 11, "fop": {"h": 2, "id": 135, "op": 5, "sz": 4096}}"#,
            "a261740b63666f70a46168026269641887626f700562737a191000",
            Frame::FileOp(FileRequest { id: 135, op: op::READ_AT, handle: 2, size: 4096, ..FileRequest::default() }),
        ),
        row(
            r#"{"t": 11, "fop": {"d": h'7061796c6f6164', "h": 3, "id": 136, "of": 17, "op": 6}}"#,
            "a261740b63666f70a56164477061796c6f61646168036269641888626f6611626f7006",
            Frame::FileOp(FileRequest {
                id: 136,
                op: op::WRITE_AT,
                handle: 3,
                offset: 17,
                data: bytes(b"payload"),
                ..FileRequest::default()
            }),
        ),
        row(
            r#"{"t": 11, "fop": {"p": "/tmp", "id": 138, "op": 7}}"#,
            "a261740b63666f70a36170642f746d70626964188a626f7007",
            Frame::FileOp(FileRequest { id: 138, op: op::STAT, path: "/tmp".into(), ..FileRequest::default() }),
        ),
        row(
            r#"{"t": 11, "fop": {"p": "/tmp/lnk", "id": 139, "op": 8}}"#,
            "a261740b63666f70a36170682f746d702f6c6e6b626964188b626f7008",
            Frame::FileOp(FileRequest { id: 139, op: op::LSTAT, path: "/tmp/lnk".into(), ..FileRequest::default() }),
        ),
        row(
            r#"{"t": 11, "fop": {"p": "/tmp/d", "id": 141, "mo": 1023, "op": 10}}"#,
            "a261740b63666f70a46170662f746d702f64626964188d626d6f1903ff626f700a",
            Frame::FileOp(FileRequest {
                id: 141,
                op: op::MKDIR,
                path: "/tmp/d".into(),
                mode: 0o1777,
                ..FileRequest::default()
            }),
        ),
        row(
            r#"{"t": 11, "fop": {"p": "/tmp/a/b/c", "id": 142, "mo": 488, "op": 11}}"#,
            "a261740b63666f70a461706a2f746d702f612f622f63626964188e626d6f1901e8626f700b",
            Frame::FileOp(FileRequest {
                id: 142,
                op: op::MKDIR_ALL,
                path: "/tmp/a/b/c".into(),
                mode: 0o750,
                ..FileRequest::default()
            }),
        ),
        row(
            r#"{"t": 11, "fop": {"p": "/tmp/a", "id": 144, "np": "/tmp/b", "op": 13}}"#,
            "a261740b63666f70a46170662f746d702f616269641890626e70662f746d702f62626f700d",
            Frame::FileOp(FileRequest {
                id: 144,
                op: op::RENAME,
                path: "/tmp/a".into(),
                new_path: "/tmp/b".into(),
                ..FileRequest::default()
            }),
        ),
        row(
            r#"{"t": 11, "fop": {"p": "/tmp/x", "id": 145, "mo": 2541, "op": 14}}"#,
            "a261740b63666f70a46170662f746d702f786269641891626d6f1909ed626f700e",
            Frame::FileOp(FileRequest {
                id: 145,
                op: op::CHMOD,
                path: "/tmp/x".into(),
                mode: 0o4755,
                ..FileRequest::default()
            }),
        ),
        row(
            r#"{"t": 11, "fop": {"id": 147, "op": 16}}"#,
            "a261740b63666f70a26269641893626f7010",
            Frame::FileOp(FileRequest { id: 147, op: op::GETWD, ..FileRequest::default() }),
        ),
        row(
            r#"{"t": 11, "fop": {"h": 4294967295, "id": 148, "op": 17}}"#,
            "a261740b63666f70a361681affffffff6269641894626f7011",
            Frame::FileOp(FileRequest { id: 148, op: op::FSYNC, handle: 4_294_967_295, ..FileRequest::default() }),
        ),
        row(
            r#"{"t": 11, "fop": {"p": "target", "id": 150, "np": "/tmp/lnk", "op": 19}}"#,
            "a261740b63666f70a46170667461726765746269641896626e70682f746d702f6c6e6b626f7013",
            Frame::FileOp(FileRequest {
                id: 150,
                op: op::SYMLINK,
                path: "target".into(),
                new_path: "/tmp/lnk".into(),
                ..FileRequest::default()
            }),
        ),
        row(
            r#"{"t": 11, "fop": {"p": "/tmp/old", "id": 151, "np": "/tmp/hard", "op": 20}}"#,
            "a261740b63666f70a46170682f746d702f6f6c646269641897626e70692f746d702f68617264626f7014",
            Frame::FileOp(FileRequest {
                id: 151,
                op: op::LINK,
                path: "/tmp/old".into(),
                new_path: "/tmp/hard".into(),
                ..FileRequest::default()
            }),
        ),
        row(
            r#"{"t": 11, "fop": {"p": "/tmp/x", "at": -1500000000, "id": 153, "mt": 1700000000456000000, "op":
            22}}"#,
            "a261740b63666f70a56170662f746d702f786261743a59682eff6269641899626d741b17979cfe51580200626f7016",
            Frame::FileOp(FileRequest {
                id: 153,
                op: op::CHTIMES,
                path: "/tmp/x".into(),
                accessed_ns: -1_500_000_000,
                modified_ns: 1_700_000_000_456_000_000,
                ..FileRequest::default()
            }),
        ),
        row(
            r#"{"t": 11, "fop": {"p": "/", "id": 154, "op": 23}}"#,
            "a261740b63666f70a36170612f626964189a626f7017",
            Frame::FileOp(FileRequest { id: 154, op: op::STATFS, path: "/".into(), ..FileRequest::default() }),
        ),
        row(
            r#"{"t": 11, "fop": {"h": 7, "id": 156, "op": 25, "sz": 1099511627776}}"#,
            "a261740b63666f70a4616807626964189c626f70181962737a1b0000010000000000",
            Frame::FileOp(FileRequest {
                id: 156,
                op: op::FTRUNCATE,
                handle: 7,
                size: 1_099_511_627_776,
                ..FileRequest::default()
            }),
        ),
        row(
            r#"{"t": 11, "fop": {"id": 157, "op": 255}}"#,
            "a261740b63666f70a2626964189d626f7018ff",
            Frame::FileOp(FileRequest { id: 157, op: 255, ..FileRequest::default() }),
        ),
        row(
            r#"{"t": 11, "fop": {"id": 0, "op": 0}}"#,
            "a261740b63666f70a262696400626f7000",
            Frame::FileOp(FileRequest { id: 0, op: 0, ..FileRequest::default() }),
        ),
        row(
            r#"{"t": 11, "fop": {"p": "/f", "id": 4294967295, "op": 2}}"#,
            "a261740b63666f70a36170622f666269641affffffff626f7002",
            Frame::FileOp(FileRequest { id: 4294967295, op: op::CREATE, path: "/f".into(), ..FileRequest::default() }),
        ),
        row(
            r#"{"t": 11, "fop": {"p": "/d", "id": 1, "op": 9}}"#,
            "a261740b63666f70a36170622f6462696401626f7009",
            Frame::FileOp(FileRequest { id: 1, op: op::READ_DIR, path: "/d".into(), ..FileRequest::default() }),
        ),
        row(
            r#"{"t": 11, "fop": {"p": "/d", "id": 2, "op": 12}}"#,
            "a261740b63666f70a36170622f6462696402626f700c",
            Frame::FileOp(FileRequest { id: 2, op: op::REMOVE, path: "/d".into(), ..FileRequest::default() }),
        ),
        row(
            r#"{"t": 11, "fop": {"p": "/f", "id": 3, "op": 15, "sz": -1}}"#,
            "a261740b63666f70a46170622f6662696403626f700f62737a20",
            Frame::FileOp(FileRequest {
                id: 3,
                op: op::TRUNCATE,
                path: "/f".into(),
                size: -1,
                ..FileRequest::default()
            }),
        ),
        row(
            r#"{"t": 11, "fop": {"p": "/l", "id": 4, "op": 18}}"#,
            "a261740b63666f70a36170622f6c62696404626f7012",
            Frame::FileOp(FileRequest { id: 4, op: op::READLINK, path: "/l".into(), ..FileRequest::default() }),
        ),
        row(
            r#"{"t": 11, "fop": {"p": "/f", "id": 5, "op": 21, "gid": 100, "uid": 4294967295}}"#,
            "a261740b63666f70a56170622f6662696405626f7015636769641864637569641affffffff",
            Frame::FileOp(FileRequest {
                id: 5,
                op: op::CHOWN,
                path: "/f".into(),
                uid: u32::MAX,
                gid: 100,
                ..FileRequest::default()
            }),
        ),
        row(
            r#"{"t": 11, "fop": {"h": 1, "id": 6, "op": 24}}"#,
            "a261740b63666f70a361680162696406626f701818",
            Frame::FileOp(FileRequest { id: 6, op: op::FSTAT, handle: 1, ..FileRequest::default() }),
        ),
        row(
            r#"{"t": 11, "fop": {"d": h'78', "h": 1, "id": 7, "of": -1, "op": 6}}"#,
            "a261740b63666f70a56164417861680162696407626f6620626f7006",
            Frame::FileOp(FileRequest {
                id: 7,
                op: op::WRITE_AT,
                handle: 1,
                offset: -1,
                data: bytes(b"x"),
                ..FileRequest::default()
            }),
        ),
        row(
            r#"{"t": 11, "fop": {"p": "/f", "fl": -2147483648, "id": 8, "op": 3}}"#,
            "a261740b63666f70a46170622f6662666c3a7fffffff62696408626f7003",
            Frame::FileOp(FileRequest {
                id: 8,
                op: op::OPEN_FILE,
                path: "/f".into(),
                flags: i32::MIN,
                ..FileRequest::default()
            }),
        ),
        row(
            r#"{"t": 11, "fop": {"h": 1, "id": 9, "of": 9223372036854775807, "op": 5, "sz":
            -9223372036854775808}}"#,
            "a261740b63666f70a561680162696409626f661b7fffffffffffffff626f700562737a3b7fffffffffffffff",
            Frame::FileOp(FileRequest {
                id: 9,
                op: op::READ_AT,
                handle: 1,
                offset: i64::MAX,
                size: i64::MIN,
                ..FileRequest::default()
            }),
        ),
    ]
}

fn file_answers() -> Vec<Row<Frame<'static>>> {
    vec![
        row(
            r#"{"t": 12, "frp": {"h": 1, "id": 159}}"#,
            "a261740c63667270a2616801626964189f",
            Frame::FileResp(FileResponse { id: 159, handle: 1, ..FileResponse::default() }),
        ),
        row(
            r#"{"t": 12, "frp": {"d": h'63646566', "n": 4, "id": 160, "eof": true}}"#,
            "a261740c63667270a461644463646566616e0462696418a063656f66f5",
            Frame::FileResp(FileResponse {
                id: 160,
                count: 4,
                data: bytes(b"cdef"),
                eof: true,
                ..FileResponse::default()
            }),
        ),
        row(
            r#"{"t": 12, "frp": {"n": 1048576, "id": 162}}"#,
            "a261740c63667270a2616e1a0010000062696418a2",
            Frame::FileResp(FileResponse { id: 162, count: 1_048_576, ..FileResponse::default() }),
        ),
        row(
            r#"{"t": 12, "frp": {"p": "/work", "id": 163}}"#,
            "a261740c63667270a26170652f776f726b62696418a3",
            Frame::FileResp(FileResponse { id: 163, path: "/work".into(), ..FileResponse::default() }),
        ),
        row(
            r#"{"t": 12, "frp": {"id": 165, "st": {"d": true, "m": 2148532735, "n": "/", "s": 4096, "t": 1,
            "bs": 4096, "nl": 24, "ino": 2}}}"#,
            "a261740c63667270a262696418a5627374a86164f5616d1a801001ff616e612f6173191000617401626273191000626e\
            6c181863696e6f02",
            Frame::FileResp(FileResponse {
                id: 165,
                stat: Some(Stat {
                    name: "/".into(),
                    size: 4096,
                    mode: 0o41777,
                    modified_ns: 1,
                    links: 24,
                    block_bytes: 4096,
                    inode: 2,
                    ..Stat::default()
                }),
                ..FileResponse::default()
            }),
        ),
        row(
            r#"{"t": 12, "frp": {"id": 166, "st": {"m": 134218239, "n": "lnk", "s": 6, "nl": 1, "ino": 77}}}"#,
            "a261740c63667270a262696418a6627374a5616d1a080001ff616e636c6e6b617306626e6c0163696e6f184d",
            Frame::FileResp(FileResponse {
                id: 166,
                stat: Some(Stat {
                    name: "lnk".into(),
                    size: 6,
                    mode: 0o120777,
                    links: 1,
                    inode: 77,
                    ..Stat::default()
                }),
                ..FileResponse::default()
            }),
        ),
        row(
            r#"{"t": 12, "frp": {"en": [{"st": {"m": 416, "n": "hello.txt", "s": 11, "t": 1700000000456000000,
            "at": 1700000001000000000, "bl": 8, "bs": 4096, "ct": 1700000002000000001, "nl": 1, "gid": 100,
            "ino": 9223372036854775813, "uid": 1000}}, {"st": {"m": 134218239, "n": "lnk", "s": 6, "nl": 1,
            "ino": 77}}], "id": 168}}"#,
            "a261740c63667270a262656e82a1627374ac616d1901a0616e6968656c6c6f2e74787461730b61741b17979cfe515802\
            006261741b17979cfe71c4ca0062626c086262731910006263741b17979cfead5f9401626e6c0163676964186463696e\
            6f1b8000000000000005637569641903e8a1627374a5616d1a080001ff616e636c6e6b617306626e6c0163696e6f184d\
            62696418a8",
            Frame::FileResp(FileResponse {
                id: 168,
                entries: vec![
                    Stat {
                        name: "hello.txt".into(),
                        size: 11,
                        mode: 0o100640,
                        modified_ns: 1_700_000_000_456_000_000,
                        accessed_ns: 1_700_000_001_000_000_000,
                        changed_ns: 1_700_000_002_000_000_001,
                        uid: 1000,
                        gid: 100,
                        links: 1,
                        blocks: 8,
                        block_bytes: 4096,
                        inode: 9_223_372_036_854_775_813,
                        ..Stat::default()
                    },
                    Stat { name: "lnk".into(), size: 6, mode: 0o120777, links: 1, inode: 77, ..Stat::default() },
                ],
                ..FileResponse::default()
            }),
        ),
        row(
            r#"{"t": 12, "frp": {"id": 169}}"#,
            "a261740c63667270a162696418a9",
            Frame::FileResp(FileResponse { id: 169, ..FileResponse::default() }),
        ),
        row(
            r#"{"t": 12, "frp": {"em": "open /missing: no such file or directory", "er": 2, "id": 171}}"#,
            "a261740c63667270a362656d78286f70656e202f6d697373696e673a206e6f20737563682066696c65206f7220646972\
            6563746f72796265720262696418ab",
            Frame::FileResp(FileResponse {
                id: 171,
                errno: 2,
                error: "open /missing: no such file or directory".into(),
                ..FileResponse::default()
            }),
        ),
        row(
            r#"{"t": 12, "frp": {"em": "unknown file op", "er": 38, "id": 172}}"#,
            "a261740c63667270a362656d6f756e6b6e6f776e2066696c65206f70626572182662696418ac",
            Frame::FileResp(FileResponse {
                id: 172,
                errno: 38,
                error: "unknown file op".into(),
                ..FileResponse::default()
            }),
        ),
        row(
            r#"{"t": 12, "frp": {"id": 1, "sf": {"b": 1, "f": 4, "ba": 3, "bf": 2, "bs": 4096, "ff": 5, "fr":
            512, "nl": 255}}}"#,
            "a261740c63667270a262696401627366a861620161660462626103626266026262731910006266660562667219020062\
            6e6c18ff",
            Frame::FileResp(FileResponse {
                id: 1,
                file_system: Some(Statfs {
                    blocks: 1,
                    blocks_free: 2,
                    blocks_available: 3,
                    files: 4,
                    files_free: 5,
                    block_bytes: 4096,
                    fragment_bytes: 512,
                    name_length: 255,
                }),
                ..FileResponse::default()
            }),
        ),
        row(
            r#"{"t": 12, "frp": {"id": 1, "sf": {}}}"#,
            "a261740c63667270a262696401627366a0",
            Frame::FileResp(FileResponse { id: 1, file_system: Some(Statfs::default()), ..FileResponse::default() }),
        ),
        row(
            r#"{"t": 12, "frp": {"n": -1, "er": 4294967295, "id": 1}}"#,
            "a261740c63667270a3616e206265721affffffff62696401",
            Frame::FileResp(FileResponse { id: 1, count: -1, errno: u32::MAX, ..FileResponse::default() }),
        ),
        row(
            r#"{"t": 12, "frp": {"id": 1, "st": {"m": 69206416, "n": "tty", "s": 0, "t": -1, "rd": 34816}}}"#,
            "a261740c63667270a262696401627374a5616d1a04200190616e63747479617300617420627264198800",
            Frame::FileResp(FileResponse {
                id: 1,
                stat: Some(Stat {
                    name: "tty".into(),
                    mode: 0o020_620,
                    device: 0x8800,
                    modified_ns: -1,
                    ..Stat::default()
                }),
                ..FileResponse::default()
            }),
        ),
        row(
            r#"{"t": 12, "frp": {"id": 1, "st": {"m": 13631999, "n": "s", "s": 9223372036854775807, "ino":
            18446744073709551615}}}"#,
            "a261740c63667270a262696401627374a4616d1a00d001ff616e617361731b7fffffffffffffff63696e6f1bffffffff\
            ffffffff",
            Frame::FileResp(FileResponse {
                id: 1,
                stat: Some(Stat {
                    name: "s".into(),
                    mode: 0o107_777,
                    size: i64::MAX,
                    inode: u64::MAX,
                    ..Stat::default()
                }),
                ..FileResponse::default()
            }),
        ),
        row(
            r#"{"t": 12, "frp": {"id": 1, "st": {"m": 524288, "n": "", "s": 0}}}"#,
            "a261740c63667270a262696401627374a3616d1a00080000616e60617300",
            Frame::FileResp(FileResponse { id: 1, stat: Some(Stat::default()), ..FileResponse::default() }),
        ),
    ]
}

fn extension_frames_of_programs() -> Vec<Row<Frame<'static>>> {
    vec![
        row(
            r#"{"t": 1, "x": {"cwd": "", "env": null, "argv": null, "cred": 1048576, "mask": 0, "path": "a",
            "user": "www:adm", "detach": true, "setenv": [h'413dff', h''], "window": [24, 80]}, "id": 7}"#,
            "a36174016178aa636377646063656e76f66461726776f664637265641a00100000646d61736b00647061746861616475\
            736572677777773a61646d66646574616368f566736574656e768243413dff406677696e646f77821818185062696407",
            Frame::Exec {
                id: 7,
                exec: Exec {
                    path: "a".into(),
                    extension: ExecExtension {
                        credit: 1 << 20,
                        terminal: Some((24, 80)),
                        detach: true,
                        user: "www:adm".into(),
                        umask: Some(0),
                        set_env: vec![b"A=\xff".into(), b"".into()],
                    },
                    ..Exec::default()
                },
            },
        ),
        row(
            r#"{"t": 1, "x": {"cwd": "/\uefe9", "env": ["A=\uefff", "B"], "argv": ["\uefee\uefbe\uef80"],
            "cwdb": h'2fe9', "envb": [h'413dff', h'42'], "path": "\uef80", "argvb": [h'eebe80'], "pathb":
            h'80'}}"#,
            "a26174016178a863637764642feebfa963656e768265413deebfbf614264617267768169eebfaeeebebeeebe80646377\
            6462422fe964656e76628243413dff4142647061746863eebe806561726776628143eebe806570617468624180",
            Frame::Exec {
                id: 0,
                exec: Exec {
                    path: b"\x80".into(),
                    argv: Some(vec!["\u{ef80}".into()]),
                    env: Some(vec![b"A=\xff".into(), b"B".into()]),
                    cwd: b"/\xe9".into(),
                    ..Exec::default()
                },
            },
        ),
        row(
            r#"{"t": 1, "x": {"cwd": "", "env": null, "argv": null, "mask": 511, "path": "", "window": [0,
            65535]}}"#,
            "a26174016178a6636377646063656e76f66461726776f6646d61736b1901ff6470617468606677696e646f77820019ff\
            ff",
            Frame::Exec {
                id: 0,
                exec: Exec {
                    extension: ExecExtension {
                        terminal: Some((0, u16::MAX)),
                        umask: Some(0o777),
                        ..ExecExtension::default()
                    },
                    ..Exec::default()
                },
            },
        ),
        row(
            r#"{"d": h'78', "s": 1, "t": 2, "id": 24}"#,
            "a4616441786173016174026269641818",
            Frame::Data { id: 24, stream: 1, data: bytes(b"x") },
        ),
        row(r#"{"t": 3, "id": 256}"#, "a2617403626964190100", Frame::Eof { id: 256, stream: 0 }),
        row(
            r#"{"t": 4, "id": 65536, "sig": 9}"#,
            "a36174046269641a000100006373696709",
            Frame::Signal { id: 65536, signal: 9 },
        ),
        row(
            r#"{"c": 127, "e": "no", "t": 5, "er": 2, "id": 4294967295}"#,
            "a56163187f6165626e6f617405626572026269641affffffff",
            Frame::Exit { id: u32::MAX, code: 127, error: "no".into(), errno: 2 },
        ),
        row(
            r#"{"n": 4294967295, "s": 2, "t": 225, "id": 1}"#,
            "a4616e1affffffff617302617418e162696401",
            Frame::Credit { id: 1, stream: 2, bytes: u32::MAX },
        ),
        row(r#"{"t": 225}"#, "a1617418e1", Frame::Credit { id: 0, stream: 0, bytes: 0 }),
        row(
            r#"{"t": 226, "id": 1, "cols": 80, "rows": 65535}"#,
            "a4617418e26269640164636f6c73185064726f777319ffff",
            Frame::Resize { id: 1, rows: u16::MAX, columns: 80 },
        ),
        row(
            r#"{"t": 226, "cols": 0, "rows": 0}"#,
            "a3617418e264636f6c730064726f777300",
            Frame::Resize { id: 0, rows: 0, columns: 0 },
        ),
        row(
            r#"{"t": 227, "id": 1, "pid": 4321}"#,
            "a3617418e362696401637069641910e1",
            Frame::Started { id: 1, pid: 4321 },
        ),
    ]
}

fn extension_frames_of_connections() -> Vec<Row<Frame<'static>>> {
    vec![
        row(
            r#"{"t": 224, "hi": {"log": -8, "rev": 1, "mark": 18446744073709551615, "prog": "lodger 0.1.0"}}"#,
            "a2617418e0626869a4636c6f67276372657601646d61726b1bffffffffffffffff6470726f676c6c6f6467657220302e\
            312e30",
            Frame::Hello(Hello {
                revision: 1,
                program: "lodger 0.1.0".into(),
                log_level: Some(LEVEL_TRACE),
                window: 0,
                mark: u64::MAX,
            }),
        ),
        row(
            r#"{"t": 224, "hi": {"rev": 1, "win": 4294967295, "prog": ""}}"#,
            "a2617418e0626869a363726576016377696e1affffffff6470726f6760",
            Frame::Hello(Hello { revision: 1, window: u32::MAX, ..Hello::default() }),
        ),
        row(
            r#"{"t": 224, "hi": {"log": 0, "rev": 4294967295, "prog": ""}}"#,
            "a2617418e0626869a3636c6f6700637265761affffffff6470726f6760",
            Frame::Hello(Hello { revision: u32::MAX, log_level: Some(0), ..Hello::default() }),
        ),
        row(r#"{"t": 228}"#, "a1617418e4", Frame::Goodbye),
        row(r#"{"t": 0}"#, "a1617400", Frame::Unknown { kind: 0 }),
        row(r#"{"t": 255}"#, "a1617418ff", Frame::Unknown { kind: 255 }),
        row(r#"{"t": 12}"#, "a161740c", Frame::Incomplete { kind: 12 }),
    ]
}

fn extension_frames_of_files() -> Vec<Row<Frame<'static>>> {
    vec![
        row(
            r#"{"t": 11, "fop": {"h": 3, "id": 1, "of": 4096, "op": 200}}"#,
            "a261740b63666f70a461680362696401626f66191000626f7018c8",
            Frame::FileOp(FileRequest { id: 1, op: op::NEXT_DATA, handle: 3, offset: 4096, ..FileRequest::default() }),
        ),
        row(
            r#"{"t": 12, "frp": {"n": 4096, "id": 1, "end": 1099511627776}}"#,
            "a261740c63667270a3616e1910006269640163656e641b0000010000000000",
            Frame::FileResp(FileResponse { id: 1, count: 4096, end: 1 << 40, ..FileResponse::default() }),
        ),
        row(
            r#"{"t": 11, "fop": {"p": "/l", "id": 2, "nf": true, "op": 22}}"#,
            "a261740b63666f70a46170622f6c62696402626e66f5626f7016",
            Frame::FileOp(FileRequest {
                id: 2,
                op: op::CHTIMES,
                path: "/l".into(),
                no_follow: true,
                ..FileRequest::default()
            }),
        ),
        row(
            r#"{"t": 11, "fop": {"p": "/d", "id": 3, "op": 9, "pg": true}}"#,
            "a261740b63666f70a46170622f6462696403626f7009627067f5",
            Frame::FileOp(FileRequest {
                id: 3,
                op: op::READ_DIR,
                path: "/d".into(),
                paged: true,
                ..FileRequest::default()
            }),
        ),
        row(
            r#"{"t": 12, "frp": {"en": [{"st": {"m": 420, "n": "\uefe9", "s": 0, "nb": h'e9'}}], "id": 3,
            "more": true}}"#,
            "a261740c63667270a362656e81a1627374a4616d1901a4616e63eebfa9617300626e6241e962696403646d6f7265f5",
            Frame::FileResp(FileResponse {
                id: 3,
                entries: vec![Stat { name: b"\xe9".into(), mode: 0o100_644, ..Stat::default() }],
                more: true,
                ..FileResponse::default()
            }),
        ),
        row(
            r#"{"t": 11, "fop": {"p": "a\ueffe", "id": 4, "np": "b\ueffe", "op": 13, "pb": h'61fe', "npb":
            h'62fe'}}"#,
            "a261740b63666f70a661706461eebfbe62696404626e706462eebfbe626f700d6270624261fe636e70624262fe",
            Frame::FileOp(FileRequest {
                id: 4,
                op: op::RENAME,
                path: b"a\xfe".into(),
                new_path: b"b\xfe".into(),
                ..FileRequest::default()
            }),
        ),
        row(
            r#"{"t": 12, "frp": {"p": "a\ueffe", "id": 5, "pb": h'61fe'}}"#,
            "a261740c63667270a361706461eebfbe626964056270624261fe",
            Frame::FileResp(FileResponse { id: 5, path: b"a\xfe".into(), ..FileResponse::default() }),
        ),
    ]
}

fn records() -> Vec<Row<Record<'static>>> {
    vec![
        row(
            r#"{"type": 1, "header": {"version": "1.3.0", "local_pid": 4242, "agent_path": "/tmp/mproxy-agent",
            "local_user": "tester", "start_time": 1700000000000000000, "backend_addr":
            "unix:///var/run/docker.sock", "backend_type": "docker"}}"#,
            "a264747970650166686561646572a76776657273696f6e65312e332e30696c6f63616c5f7069641910926a6167656e74\
            5f70617468712f746d702f6d70726f78792d6167656e746a6c6f63616c5f75736572667465737465726a73746172745f\
            74696d651b17979cfe362a00006c6261636b656e645f61646472781b756e69783a2f2f2f7661722f72756e2f646f636b\
            65722e736f636b6c6261636b656e645f7479706566646f636b6572",
            Record::Header(Header {
                version: "1.3.0".into(),
                local_user: "tester".into(),
                backend_type: "docker".into(),
                backend_address: "unix:///var/run/docker.sock".into(),
                agent_path: "/tmp/mproxy-agent".into(),
                start_ns: 1_700_000_000_000_000_000,
                local_pid: 4242,
            }),
        ),
        row(
            r#"{"type": 1, "header": {"version": "", "local_pid": 0, "agent_path": "", "local_user": "",
            "start_time": 0}}"#,
            "a264747970650166686561646572a56776657273696f6e60696c6f63616c5f706964006a6167656e745f70617468606a\
            6c6f63616c5f75736572606a73746172745f74696d6500",
            Record::Header(Header::default()),
        ),
        row(
            r#"{"type": 3, "frame": {"ts": 1700000000000000002, "dir": 1, "seq": 0, "frame": {"t": 1, "x":
            {"cwd": "", "env": null, "argv": ["false"], "path": "/bin/false"}}}}"#,
            "a2647479706503656672616d65a46274731b17979cfe362a000263646972016373657100656672616d65a26174016178\
            a4636377646063656e76f66461726776816566616c736564706174686a2f62696e2f66616c7365",
            Record::Frame {
                seq: 0,
                time_ns: 1_700_000_000_000_000_002,
                direction: Direction::ToAgent,
                frame: Frame::Exec {
                    id: 0,
                    exec: Exec { path: "/bin/false".into(), argv: strings(&["false"]), ..Exec::default() },
                },
            },
        ),
        row(
            r#"{"type": 3, "frame": {"ts": 1700000000000000003, "dir": 2, "seq": 1, "frame": {"d":
            h'68656c6c6f0a', "s": 1, "t": 2}}}"#,
            "a2647479706503656672616d65a46274731b17979cfe362a000363646972026373657101656672616d65a36164466865\
            6c6c6f0a617301617402",
            Record::Frame {
                seq: 1,
                time_ns: 1_700_000_000_000_000_003,
                direction: Direction::ToClient,
                frame: data(1, b"hello\x0a"),
            },
        ),
        row(
            r#"{"type": 4, "cmd_end": {"seq": 2, "end_time": 1700000000000000005, "exit_code": -1}}"#,
            "a264747970650467636d645f656e64a3637365710268656e645f74696d651b17979cfe362a000569657869745f636f64\
            6520",
            Record::End { seq: 2, end_ns: 1_700_000_000_000_000_005, code: -1 },
        ),
        row(
            r#"{"type": 5, "footer": {"end_time": 1700000000000000006, "command_count": 3}}"#,
            "a264747970650566666f6f746572a268656e645f74696d651b17979cfe362a00066d636f6d6d616e645f636f756e7403",
            Record::Footer { end_ns: 1_700_000_000_000_000_006, commands: 3 },
        ),
        row(
            r#"{"type": 2, "cmd_start": {"seq": 0, "exec": {"cwd": "", "env": null, "argv": ["ls"], "path":
            "ls"}, "start_time": 1}}"#,
            "a264747970650269636d645f7374617274a363736571006465786563a4636377646063656e76f6646172677681626c73\
            6470617468626c736a73746172745f74696d6501",
            Record::Start {
                seq: 0,
                start_ns: 1,
                exec: Exec { path: "ls".into(), argv: strings(&["ls"]), ..Exec::default() },
            },
        ),
        row(
            r#"{"type": 4, "cmd_end": {"seq": 0, "end_time": -1, "exit_code": 0}}"#,
            "a264747970650467636d645f656e64a3637365710068656e645f74696d652069657869745f636f646500",
            Record::End { seq: 0, end_ns: -1, code: 0 },
        ),
        row(
            r#"{"type": 3, "frame": {"ts": 1, "dir": 2, "seq": 0, "frame": {"t": 5, "id": 1}}}"#,
            "a2647479706503656672616d65a46274730163646972026373657100656672616d65a261740562696401",
            Record::Frame {
                seq: 0,
                time_ns: 1,
                direction: Direction::ToClient,
                frame: Frame::Exit { id: 1, code: 0, error: String::new(), errno: 0 },
            },
        ),
    ]
}

fn frames() -> Vec<Row<Frame<'static>>> {
    let tables = [
        program_frames(),
        frames_about_programs(),
        file_requests(),
        file_answers(),
        extension_frames_of_programs(),
        extension_frames_of_connections(),
        extension_frames_of_files(),
    ];
    tables.into_iter().flatten().collect()
}

/// Diagnostic notation without spaces.
fn diagnose(value: &Value, out: &mut String) {
    let list = |out: &mut String, around: [char; 2], items: &mut dyn Iterator<Item = Vec<&Value>>| {
        out.push(around[0]);
        for (index, item) in items.enumerate() {
            out.push_str(if index > 0 { "," } else { "" });
            for (part, value) in item.into_iter().enumerate() {
                out.push_str(if part > 0 { ":" } else { "" });
                diagnose(value, out);
            }
        }
        out.push(around[1]);
    };
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(truth) => out.push_str(if *truth { "true" } else { "false" }),
        Value::Integer(number) => out.push_str(&i128::from(*number).to_string()),
        Value::Text(text) => {
            let json = serde_json::to_string(text).expect("text is JSON");
            // Only ASCII, because private characters cannot be seen.
            json.chars().for_each(|c| match c {
                '\0'..='\x7f' => out.push(c),
                _ => write!(out, "\\u{:04x}", u32::from(c)).expect("a string takes everything"),
            });
        }
        Value::Bytes(bytes) => {
            let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            write!(out, "h'{digits}'").expect("a string takes everything");
        }
        Value::Array(items) => list(out, ['[', ']'], &mut items.iter().map(|item| vec![item])),
        Value::Map(pairs) => list(out, ['{', '}'], &mut pairs.iter().map(|(key, value)| vec![key, value])),
        other => panic!("{other:?} has no place in a message"),
    }
}

/// Keys rise by length, then by bytes, in every map; so none comes twice.
fn check_key_order(value: &Value, says: &str) {
    match value {
        Value::Map(pairs) => {
            let keys: Vec<&str> = pairs.iter().map(|(key, _)| key.as_text().expect("keys are text")).collect();
            let rises = keys.windows(2).all(|pair| (pair[0].len(), pair[0]) < (pair[1].len(), pair[1]));
            assert!(rises, "{keys:?} of {says}");
            pairs.iter().for_each(|(_, value)| check_key_order(value, says));
        }
        Value::Array(items) => items.iter().for_each(|item| check_key_order(item, says)),
        _ => {}
    }
}

/// What an independent reader makes of the bytes; and its writer, too, would have chosen exactly them.
fn check_by_ciborium(bytes: &[u8], says: &str) {
    let value: Value = ciborium::from_reader(bytes).expect("ciborium reads it");
    let mut notation = String::new();
    diagnose(&value, &mut notation);
    let spaceless = |text: &str| text.split_whitespace().collect::<String>();
    assert_eq!(spaceless(&notation), spaceless(says));
    check_key_order(&value, says);
    let mut again = Vec::new();
    ciborium::into_writer(&value, &mut again).expect("memory takes everything");
    assert_eq!(bytes, again, "definite lengths and shortest heads in {says}");
}

fn check_rows<T: Debug + PartialEq>(rows: &[Row<T>], encode: fn(&T) -> Vec<u8>) {
    for Row { says, bytes, message } in rows {
        assert_eq!(&encode(message), bytes, "{says} is written");
        assert_eq!(Scanner::new(ITEM_MAX).find_end(bytes), Ok(Some(bytes.len())), "{says} is one item");
        check_by_ciborium(bytes, says);
    }
}

#[test]
fn every_frame_has_these_bytes() {
    let rows = frames();
    check_rows(&rows, Frame::to_bytes);
    for Row { says, bytes, message } in &rows {
        assert_eq!(&Frame::decode(bytes).expect(says), message, "{says} is read");
        assert!(starts_frame(bytes[0]), "{says}");
    }
}

#[test]
fn every_record_has_these_bytes() {
    let rows = records();
    check_rows(&rows, Record::to_bytes);
    for Row { says, bytes, message } in &rows {
        assert_eq!(&Record::decode(bytes).expect(says), message, "{says} is read");
    }
}

#[test]
fn a_query_without_paths_may_come_with_or_without_its_payload() {
    let query = Frame::PathQuery { paths: Vec::new() };
    for hex in ["a1617409", "a26171a0617409", "a26171f6617409", "a26171a165706174687380617409"] {
        assert_eq!(Frame::decode(&unhex(hex)).expect(hex), query, "{hex}");
    }
}

#[test]
fn older_recordings_name_their_host_under_keys_that_are_passed_over() {
    let bytes = b"\xa2\x64type\x01\x66header\xa2\x67version\x631.0\x68ssh_addr\x61h";
    let header = Header { version: "1.0".into(), ..Header::default() };
    assert_eq!(Record::decode(bytes).expect("a header"), Record::Header(header));
}

/// Lengths on both sides of each change of the head's size.
const LENGTHS: [usize; 9] = [0, 1, 23, 24, 255, 256, 65_535, 65_536, 262_144];

/// The bytes with `payload` put into the encoder's gap.
fn with_gap_filled(encoder: &Encoder, payload: &[u8]) -> Vec<u8> {
    let (head, tail) = encoder.out.split_at(encoder.gap.unwrap_or_default());
    [head, payload, tail].concat()
}

#[test]
fn a_frame_around_bytes_from_elsewhere_is_the_plain_frame() {
    let payload = vec![0xa5; 262_144];
    let mut encoder = Encoder::default();
    // Downwards as well, so that a gap of an earlier, longer frame is found if it is left behind.
    for length in LENGTHS.into_iter().chain(LENGTHS.into_iter().rev()) {
        let data = || Cow::Borrowed(&payload[..length]);
        let mut check = |fill: &dyn Fn(&mut Encoder), plain: Frame| {
            encoder.out.clear();
            fill(&mut encoder);
            assert!(
                with_gap_filled(&encoder, &payload[..length]) == plain.to_bytes(),
                "{length} bytes around {plain:.99?}"
            );
        };
        for (id, stream) in [(0, 0), (0, 1), (24, 0), (u32::MAX, 70_000)] {
            let plain = Frame::Data { id, stream, data: data() };
            check(&|encoder| frame::data_around(encoder, id, stream, length), plain);
        }
        let request = FileRequest { id: 5, op: op::WRITE_AT, handle: 1, offset: 70_000, ..FileRequest::default() };
        let plain = Frame::FileOp(FileRequest { data: data(), ..request.clone() });
        check(&|encoder| frame::file_request_around(encoder, &request, length), plain);
        let count = length as i64;
        let response = FileResponse { id: 5, count, eof: true, ..FileResponse::default() };
        let plain = Frame::FileResp(FileResponse { data: data(), ..response.clone() });
        check(&|encoder| frame::file_response_around(encoder, &response, length), plain);
    }
}

#[test]
fn every_width_of_a_number_has_the_shortest_head() {
    for (stream, head) in [
        (23, "17"),
        (24, "1818"),
        (255, "18ff"),
        (256, "190100"),
        (65_535, "19ffff"),
        (65_536, "1a00010000"),
        (u32::MAX, "1affffffff"),
    ] {
        assert_eq!(Frame::Eof { id: 0, stream }.to_bytes(), unhex(&format!("a26173{head}617403")));
    }
    for (code, head) in [
        (1 << 32, "1b0000000100000000"),
        (i64::MAX, "1b7fffffffffffffff"),
        (-24, "37"),
        (-25, "3818"),
        (-256, "38ff"),
        (-257, "390100"),
        (-(1 << 32), "3affffffff"),
        (-(1 << 32) - 1, "3b0000000100000000"),
    ] {
        let bytes = exit(code, "").to_bytes();
        assert_eq!(bytes, unhex(&format!("a26163{head}617405")));
        assert_eq!(Frame::decode(&bytes).expect("a frame of ours"), exit(code, ""));
    }
}

/// What it says; kind; acknowledged number, own number, channel; payload; the bytes on the line.
type LineFrame = (&'static str, u8, [u16; 3], &'static [u8], &'static str);

/// The sessions are 0x11223344 and 0x55667788. The bytes were made by another program (Python's zlib for the sum).
const LINE_FRAMES: [LineFrame; 8] = [
    (
        "HELLO of a client: answer wanted; 1,024 bytes a frame, window 131,072, credit 262,144; to no session yet",
        kind::HELLO,
        [0, 0, 0],
        b"\x01\x00\x04\x00\x00\x02\x00\x00\x00\x04\x00",
        "0004fe010b054433221101010101010101010102010204010202010102040520e6e8f200",
    ),
    (
        "HELLO of an agent: accepts channels; the same numbers",
        kind::HELLO,
        [0, 0, 0],
        b"\x02\x00\x04\x00\x00\x02\x00\x00\x00\x04\x00",
        "0004fe010b0944332211887766550101010101020202040102020101020405ef3549d400",
    ),
    (
        "ACK: damage seen, answer wanted; the first and the third behind the expected one are there",
        kind::ACK,
        [7, 0, 0],
        b"\x03\x05",
        "0004fe02020a4433221188776655070101010107030546941ca500",
    ),
    (
        "OPEN: credit 262,144",
        kind::OPEN,
        [0, 0, 1],
        b"\x00\x00\x04\x00",
        "0004fe0804094433221188776655010101020101010204053efd1f0c00",
    ),
    (
        "DATA with a zero byte in it",
        kind::DATA,
        [0x102, 0x304, 1],
        b"one\0two",
        "0004fe09070e44332211887766550201040301046f6e650874776f91b1a0af00",
    ),
    ("END", kind::END, [1, 2, 1], b"", "0003fe0a010a44332211887766550102020201059975fa2c00"),
    (
        "RESET: too many channels",
        kind::RESET,
        [1, 3, 1],
        b"\x01",
        "0004fe0b010a4433221188776655010203020106019c5a6e7900",
    ),
    (
        "CREDIT: 131,072 more",
        kind::CREDIT,
        [1, 4, 1],
        b"\x00\x00\x02\x00",
        "0004fe0c040a443322118877665501020402010101020205c73b342300",
    ),
];

#[test]
fn frames_on_a_line_are_these_bytes() {
    for (says, kind, [ack, seq, channel], payload, hex) in LINE_FRAMES {
        let to = if says.contains("no session") { 0 } else { 0x5566_7788 };
        let header = line::Header { kind, from: 0x1122_3344, to, ack, seq, channel };
        let mut bytes = Vec::new();
        line::encode(&header, payload, &mut bytes);
        assert_eq!(bytes, unhex(hex), "{says}");
        let mut found = 0;
        line::Scanner::new(link::FRAME_BYTES).scan(&bytes, &mut |item| {
            assert_eq!(item, Found::Frame(header, payload), "{says}");
            found += 1;
        });
        assert_eq!(found, 1, "{says}");
    }
}

#[test]
fn both_ends_of_a_line_greet_with_what_they_take() {
    let now = std::time::Instant::now();
    let limits = Limits { frame: link::FRAME_BYTES, window: link::WINDOW_BYTES };
    for (role, row) in [(Role::Opener, &LINE_FRAMES[0]), (Role::Acceptor, &LINE_FRAMES[1])] {
        let mut end = Link::new(role, limits, 1, now);
        if role == Role::Opener {
            end.open(now);
        }
        end.on_time(now);
        let mut bytes = Vec::new();
        assert!(end.transmit(now, &mut bytes));
        line::Scanner::new(link::FRAME_BYTES).scan(&bytes, &mut |item| {
            let Found::Frame(header, payload) = item else { panic!("{item:?}") };
            assert_eq!((header.kind, header.to, payload), (kind::HELLO, 0, row.3));
        });
    }
}
