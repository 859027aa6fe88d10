//! Section 2: the golden bytes, and one whole conversation.

use serde_json::{Value, json};

use crate::client::{CONNECT, Client, DISCONNECT, HYPER, REGISTER, exec_command, exited, over, running, success};
use crate::support::Agent;

fn answered(client: &mut Client, bytes: &[u8], expected: &[u8]) {
    use std::io::Read;
    client.write(bytes);
    let mut answer = vec![0; expected.len()];
    client.socket.read_exact(&mut answer).expect("an answer");
    assert_eq!(answer, expected, "{}", String::from_utf8_lossy(&answer));
}

#[test]
fn the_golden_bytes_are_read_and_written() {
    let agent = Agent::start();
    let mut client = over(&agent);
    let attach = b"\0\x02\x03\0\0\0\0\x02\0\0\0\x02{}";
    answered(&mut client, attach, b"\0\x02\x03\0\0\0\x11\x02\0\0\0\x1f{\"msg\":\"unknown containerID: \"}");
    client.register("vm0", 0);
    let ping = b"\0\x02\x03\0\0\0\0\x03\0\0\0\x22{\"hyperName\":\"ping\",\"tokens\":null}";
    answered(&mut client, ping, b"\0\x02\x03\0\0\0\x01\x03\0\0\0\0");
    let unregister = b"\0\x02\x03\0\0\0\0\x01\0\0\0\x15{\"containerId\":\"vm0\"}";
    answered(&mut client, unregister, b"\0\x02\x03\0\0\0\x01\x01\0\0\0\0");
    let (_runtime, mut shim, _) = running(&agent, "vm0", "read x; printf 'out\\n'; exit 7");
    let input = b"\0\x02\x03\0\0\0\x02\0\0\0\0\x01\n";
    let output = b"\0\x02\x03\0\0\0\x02\x01\0\0\0\x04out\n\0\x02\x03\0\0\0\x03\0\0\0\0\x01\x07";
    answered(&mut shim, input, output);
}

#[test]
fn a_machine_a_token_a_shim_and_a_process() {
    let agent = Agent::start();
    let mut runtime = over(&agent);
    let command = json!({"containerId": "vm0", "ctlSerial": "/a", "ioSerial": "/b", "console": "", "numIOStreams": 1});
    let answer: Value = serde_json::from_slice(&runtime.done(REGISTER, command)).expect("JSON");
    assert_eq!(answer["io"]["URL"], format!("unix://{}", agent.socket.display()));
    let token = answer["io"]["tokens"][0].as_str().expect("a token").to_owned();
    assert!(token.len() == 44 && token.ends_with('='), "{token}");
    let mut shim = over(&agent);
    shim.connect(&token);
    runtime.done(HYPER, exec_command(&token, "echo out; echo err >&2; exit 5"));
    assert_eq!(shim.finish(), (b"out\n".to_vec(), b"err\n".to_vec(), 5));
    shim.send(0, DISCONNECT, "");
    shim.ends();
    let mut late = over(&agent);
    late.refused(CONNECT, json!({"token": token}), &format!("token already claimed: {token}"));
}

#[test]
fn split_frames_and_longer_headers_are_taken() {
    let agent = Agent::start();
    let mut client = over(&agent);
    client.register("vm0", 0);
    let payload = br#"{"hyperName":"ping"}"#;
    let mut bytes = vec![0, 2, 6, 0xff, 0xff, 0xff, 0xf0, HYPER, 0, 0, 0, payload.len() as u8];
    bytes.extend([0xaa; 12]);
    bytes.extend(payload);
    for byte in &bytes {
        client.write(&[*byte]);
    }
    assert_eq!(client.next(), success(HYPER));
    client.write(&[bytes.as_slice(), &bytes, &bytes].concat());
    for _ in 0..3 {
        assert_eq!(client.next(), success(HYPER));
    }
}

#[test]
fn a_death_by_a_signal_is_128_and_its_number() {
    let agent = Agent::start();
    let (_runtime, mut shim, _) = running(&agent, "vm0", "kill -9 $$");
    assert_eq!(shim.next(), exited(137));
}
