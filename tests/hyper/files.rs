//! Files, whole, over the ctl channel.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use crate::rig::{ACK, Agent, ERROR};

const WRITE: u32 = 15;
const READ: u32 = 16;

#[test]
fn a_file_is_written_behind_its_object_and_read_to_its_end() {
    let agent = Agent::start();
    let mut ctl = agent.ctl();
    let path = agent.path("a file");
    let object = json!({ "container": "hyperstart", "file": path }).to_string();
    let content: Vec<u8> = (0..=255).chain(*b"}{\"}").collect();
    for content in [content.as_slice(), b"short", b""] {
        assert_eq!(ctl.ask(WRITE, &[object.as_bytes(), content].concat()), (ACK, Vec::new()));
        assert_eq!(fs::read(&path).expect("a file"), content);
        assert_eq!(ctl.ask(READ, object.as_bytes()), (ACK, content.to_vec()));
        // White space in front belongs to the object, and none behind it.
        assert_eq!(ctl.ask(WRITE, &[b"\n ", object.as_bytes(), b" ", content].concat()), (ACK, Vec::new()));
        assert_eq!(fs::read(&path).expect("a file"), [b" ", content].concat());
    }
    assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o644);
    // Those say of themselves that they are empty, and have several pages.
    for file in ["proc/version", "/proc/filesystems", "/proc/iomem"] {
        let wanted = fs::read(format!("/{file}")).expect("Linux");
        assert_eq!(ctl.good(READ, json!({ "container": "any", "file": file })), wanted, "{file}");
    }
}

#[test]
fn the_largest_file_is_a_megabyte() {
    let agent = Agent::start();
    let mut ctl = agent.ctl();
    let path = agent.path("large");
    let object = json!({ "file": path }).to_string();
    let content: Vec<u8> = (0..1u32 << 20).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
    assert_eq!(ctl.ask(WRITE, &[object.as_bytes(), &content].concat()), (ACK, Vec::new()));
    assert_eq!(ctl.ask(READ, object.as_bytes()), (ACK, content.clone()));
    let over = [content.as_slice(), b"x"].concat();
    let (code, text) = ctl.ask(WRITE, &[object.as_bytes(), &over].concat());
    assert_eq!((code, text.as_slice()), (ERROR, &b"content_base64: more than the limit of 1048576 bytes"[..]));
    assert_eq!(fs::read(&path).expect("a file"), content);
    fs::write(&path, over).expect("a file");
    assert!(ctl.bad(READ, json!({ "file": path })).ends_with("longer than the limit of 1048576 bytes"));
}

#[test]
fn what_is_no_file_is_refused_and_blocks_nobody() {
    let agent = Agent::start();
    let mut ctl = agent.ctl();
    let pipe = agent.path("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
    assert!(made.success());
    for (path, why) in [
        (pipe.to_str().expect("a text"), "is no regular file"),
        ("/dev/zero", "is no regular file"),
        ("/", "is"),
        ("/no/such/file", "no such file or directory"),
        ("/a\0b", "does not begin at the root"),
    ] {
        for (code, object) in [(READ, json!({ "file": path })), (WRITE, json!({ "file": path }))] {
            let text = ctl.bad(code, object);
            assert!(text.contains(why) || text.contains("no such device"), "{path}: {text}");
        }
    }
    assert_eq!(ctl.bad(READ, json!({})), "file is missing");
    assert_eq!(ctl.bad(WRITE, json!({})), "file is missing");
    assert_eq!(ctl.ask(WRITE, b"x").0, ERROR);
}
