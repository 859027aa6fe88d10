//! `file.read`, `file.write`, `network.*` piece by piece and `system.online-cpus`, asked of a real agent. What they change in networks is
//! shown in tests/hyper/pods.rs, in namespaces of their own; here are their refusals, and files.
#![cfg(feature = "clear")]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use data_encoding::BASE64;
use serde_json::{Value, json};

use support::{Agent, Folder};

/// The whole answer to a request of these members.
fn call(agent: &Agent, name: &str, mut arguments: Value) -> Value {
    let mut socket = UnixStream::connect(&agent.socket).expect("the agent accepts");
    socket.set_read_timeout(Some(support::PATIENCE)).expect("a time-out");
    arguments["Command"] = json!(name);
    socket.write_all(arguments.to_string().as_bytes()).expect("the agent reads");
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).expect("an answer");
    serde_json::from_slice(&answer).expect("JSON")
}

/// Status and text of a refusal.
fn refusal(agent: &Agent, name: &str, arguments: Value) -> (u64, String) {
    let answer = call(agent, name, arguments);
    (answer["Status"].as_u64().expect("a number"), answer["StatusMessage"].as_str().expect("a text").to_owned())
}

#[test]
fn a_file_is_written_where_it_stands_and_read() {
    let (agent, folder) = (Agent::start(), Folder::new());
    let path = folder.path("file");
    for content in [&b"\0\xff\n"[..], b""] {
        let written = call(&agent, "file.write", json!({ "path": path, "content_base64": BASE64.encode(content) }));
        assert_eq!((&written["Status"], &written["size_bytes"]), (&json!(0), &json!(content.len())));
        let read = call(&agent, "file.read", json!({ "path": path }));
        assert_eq!(
            (&read["content_base64"], &read["size_bytes"]),
            (&json!(BASE64.encode(content)), &json!(content.len()))
        );
    }
    // In place: its mode stays, and so does a link.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("a mode");
    std::os::unix::fs::symlink("file", folder.path("link")).expect("a link");
    let through = call(&agent, "file.write", json!({ "path": folder.path("link"), "content_base64": "eA==" }));
    assert_eq!(through["Status"], 0, "{through}");
    assert_eq!(fs::read(&path).expect("a file"), b"x");
    assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o700);
}

#[test]
fn files_that_make_no_sense_are_refused_by_what_is_wrong() {
    let (agent, folder) = (Agent::start(), Folder::new());
    let gone = folder.path("none/file");
    for (name, arguments, status, why) in [
        ("file.read", json!({}), 11, "path: is missing"),
        ("file.read", json!({ "path": "relative" }), 12, "does not begin at the root"),
        ("file.read", json!({ "path": gone }), 14, "no such file or directory"),
        ("file.read", json!({ "path": folder.0 }), 12, "is no regular file"),
        ("file.read", json!({ "path": "/dev/zero" }), 12, "is no regular file"),
        ("file.read", json!({ "path": gone, "offset": 1 }), 10, "offset: no such argument"),
        ("file.write", json!({ "path": gone }), 11, "content_base64: is missing"),
        ("file.write", json!({ "path": gone, "content_base64": "?" }), 12, "content_base64: "),
        ("file.write", json!({ "path": gone, "content_base64": "" }), 14, "no such file or directory"),
        ("file.write", json!({ "path": "/dev/null", "content_base64": "" }), 12, "is no regular file"),
    ] {
        let (found, text) = refusal(&agent, name, arguments);
        assert!(found == status && text.contains(why), "{name}: {found} {text}");
    }
}

#[test]
fn a_file_may_have_a_megabyte() {
    let (agent, folder) = (Agent::start(), Folder::new());
    let path = folder.path("file");
    fs::write(&path, vec![b'x'; 1 << 20]).expect("a file");
    assert_eq!(call(&agent, "file.read", json!({ "path": path }))["size_bytes"], 1 << 20);
    fs::write(&path, vec![b'x'; (1 << 20) + 1]).expect("a file");
    let (status, text) = refusal(&agent, "file.read", json!({ "path": path }));
    assert!(status == 1 && text.ends_with("longer than the limit of 1048576 bytes"), "{status} {text}");
}

#[test]
fn networks_that_make_no_sense_are_refused_before_anything_is_done() {
    let agent = Agent::start();
    let many = |value: Value| vec![value; 257];
    let long = json!({ "to": "192.0.2.0/24", "gateway": "192.0.2.1" });
    for (name, arguments, status, why) in [
        ("network.set-interface", json!({ "addresses": [] }), 11, "device: is missing"),
        ("network.set-interface", json!({ "device": "no-such", "mtu": 68 }), 14, "no-such: no such interface"),
        ("network.set-interface", json!({ "device": "no-such", "mtu": 67 }), 12, "mtu: "),
        ("network.set-interface", json!({ "device": "no-such", "mtu": 65536 }), 12, "mtu: "),
        ("network.set-interface", json!({ "device": "no-such", "name": "sixteen-letters-" }), 12, "name: "),
        ("network.set-interface", json!({ "device": "no-such", "mac": "02:00" }), 12, "mac: "),
        ("network.set-interface", json!({ "device": "no-such", "addresses": ["192.0.2.1/33"] }), 12, "addresses: "),
        (
            "network.set-interface",
            json!({ "device": "x", "addresses": many(json!("192.0.2.1")) }),
            12,
            "the limit of 256",
        ),
        ("network.set-interface", json!({ "device": "x", "more": 1 }), 10, "more: no such argument"),
        ("network.add-routes", json!({}), 11, "routes: is missing"),
        ("network.add-routes", json!({ "routes": {} }), 12, "routes: a list is wanted"),
        ("network.add-routes", json!({ "routes": [1] }), 12, "routes: objects are wanted"),
        ("network.add-routes", json!({ "routes": [{ "gateway": "192.0.2.1" }] }), 11, "to: is missing"),
        ("network.add-routes", json!({ "routes": [{ "to": "default" }] }), 11, "gateway or device: is missing"),
        ("network.add-routes", json!({ "routes": [{ "to": "default", "via": "x" }] }), 10, "via: no such argument"),
        ("network.add-routes", json!({ "routes": many(long) }), 12, "the limit of 256"),
        (
            "network.add-routes",
            json!({ "routes": [{ "to": "default", "device": "no-such" }] }),
            14,
            "no such interface",
        ),
        ("network.delete-interface", json!({}), 11, "device: is missing"),
        ("network.delete-interface", json!({ "device": "no-such" }), 14, "no-such: no such interface"),
        ("network.set-dns", json!({}), 11, "servers: is missing"),
        ("network.set-dns", json!({ "servers": ["x"] }), 12, "servers: x is no address"),
        ("network.set-dns", json!({ "servers": [], "search": ["a\nb"] }), 12, "search: "),
        ("network.set-dns", json!({ "servers": many(json!("192.0.2.1")) }), 12, "the limit of 256"),
        ("system.online-cpus", json!({ "cpu": 1 }), 10, "cpu: no such argument"),
        // As many as the limit says are no reason.
        ("network.set-interface", json!({ "device": "no-such", "addresses": vec!["192.0.2.1"; 256] }), 14, "no such"),
        ("network.set-interface", json!({ "device": "no-such", "name": "fifteen-letters" }), 14, "no such"),
        ("network.set-interface", json!({ "device": "no-such", "mtu": 65535 }), 14, "no such"),
    ] {
        let (found, text) = refusal(&agent, name, arguments.clone());
        assert!(found == status && text.contains(why), "{name} {arguments}: {found} {text}");
    }
}
