//! Every limit, at it and one past it.

use serde_json::json;

use lodger::proto::clear::registry::Times;
use lodger::sys::process::raise_descriptor_limit;

use crate::client::{ATTACH, DISCONNECT, HYPER, Inside, REGISTER, UNREGISTER, over};
use crate::support::{Agent, status};

#[test]
fn there_may_be_so_many_machines() {
    let agent = Agent::start();
    let mut client = over(&agent);
    for number in 0..64 {
        client.register(&number.to_string(), 0);
    }
    let one = json!({"containerId": "64", "ctlSerial": "/c", "ioSerial": "/i"});
    client.refused(REGISTER, &one, "64: more virtual machines than the limit of 64");
    client.done(UNREGISTER, json!({"containerId": "7"}));
    client.done(REGISTER, &one);
    client.done(UNREGISTER, json!({"containerId": "8"}));
    let long = |length: usize| json!({"containerId": "x".repeat(length), "ctlSerial": "/c", "ioSerial": "/i"});
    client.refused(REGISTER, long(256), "containerId of 256 bytes is over the limit of 255");
    client.done(REGISTER, long(255));
}

#[test]
fn there_may_be_so_many_tokens() {
    let agent = Agent::start();
    let mut client = over(&agent);
    let command = json!({"containerId": "vm", "ctlSerial": "/c", "ioSerial": "/i", "numIOStreams": 257});
    client.refused(REGISTER, command, "257 tokens at once are over the limit of 256");
    // The name is free still.
    client.register("vm", 256);
    for _ in 0..3 {
        client.attach("vm", 256);
    }
    let one = json!({"containerId": "vm", "numIOStreams": 1});
    client.refused(ATTACH, &one, "more tokens than the limit of 1024 of a virtual machine");
    for id in ["b", "c", "d"] {
        client.register(id, 256);
        (0..3).for_each(|_| drop(client.attach(id, 256)));
    }
    client.register("e", 0);
    client.refused(ATTACH, json!({"containerId": "e", "numIOStreams": 1}), "more tokens than the limit of 4096");
    client.done(UNREGISTER, json!({"containerId": "b"}));
    client.attach("e", 256);
}

#[test]
fn tokens_that_were_used_make_room() {
    let agent = Agent::start();
    let mut client = over(&agent);
    client.register("vm", 256);
    (0..2).for_each(|_| drop(client.attach("vm", 256)));
    let tokens = client.attach("vm", 256);
    // One whose shim has taken its leave, and one whose shim has only gone.
    for (token, leaves) in [(&tokens[0], true), (&tokens[1], false)] {
        let mut shim = over(&agent);
        shim.connect(token);
        client.exec(token, "exit 1");
        assert_eq!(shim.finish().2, 1);
        if leaves {
            shim.send(0, DISCONNECT, "");
            shim.ends();
        }
        drop(shim);
        let one = json!({"containerId": "vm", "numIOStreams": 1});
        crate::support::wait_until("there is room", || client.ask(ATTACH, &one).kind == 1);
        client.refused(ATTACH, &one, "more tokens than the limit of 1024 of a virtual machine");
    }
}

#[test]
fn a_frame_may_have_so_many_values() {
    let agent = Agent::start();
    let mut client = over(&agent);
    client.register("vm", 0);
    // Three are the object, the name and the list.
    let ping = |member: &str, count: usize| {
        let list = vec!["1"; count - 3].join(",");
        format!(r#"{{"hyperName":"ping","{member}":[{list}]}}"#)
    };
    client.done(HYPER, ping("data", 4096));
    for member in ["data", "tokens", "other"] {
        client.refused(HYPER, ping(member, 4097), "more than the limit of 4096 values");
    }
    // A megabyte of them costs no more than itself.
    let before = status(agent.pid(), "VmHWM");
    for payload in [ping("tokens", 500_000), format!(r#"{{"data":{{"process":{{"args":{}}}}}"#, "[".repeat(1_000_000))]
    {
        let mut clients: Vec<_> = (0..10).map(|_| over(&agent)).collect();
        for client in &mut clients {
            client.send(0, HYPER, &payload);
        }
        for client in &mut clients {
            assert_eq!(client.next().kind, 0x11);
        }
    }
    let grown = status(agent.pid(), "VmHWM").saturating_sub(before);
    assert!(grown < 40 << 10, "{grown} KiB");
}

#[test]
fn there_may_be_so_many_processes() {
    // The agent is in this process, whose other tests have descriptors too.
    raise_descriptor_limit().expect("the hard limit can be reached");
    let agent = Inside::with(Times::default());
    let mut client = agent.client();
    client.register("vm", 0);
    let command = json!({"hyperName": "execcmd", "data": {"process": {"args": ["sleep", "60"]}}});
    for _ in 0..256 {
        client.done(HYPER, &command);
    }
    let why = "ERROR received from VM agent, control msg received : more processes than the limit of 256";
    client.refused(HYPER, &command, why);
}
