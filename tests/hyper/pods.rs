//! Commands for the machine, in namespaces of their own: the name, the network, the processes, the end.

use std::process::Command;

use serde_json::{Value, json};

use crate::rig::Agent;

const START: u32 = 1;
const PROCESSES: u32 = 23;

/// What a program says inside of the agent's namespaces.
fn inside(agent: &Agent, words: &str) -> String {
    let pid = agent.child.id().to_string();
    let output = Command::new("nsenter").args(["-n", "-m", "-u", "-t", &pid]).args(words.split(' ')).output();
    let output = output.expect("nsenter");
    assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn ip(agent: &Agent, words: &str) -> Value {
    let text = inside(agent, &format!("ip -j {words}"));
    if text.trim().is_empty() { json!([]) } else { serde_json::from_str(&text).expect("JSON") }
}

const CARDS: &str = "mount --make-rprivate /; mount -t tmpfs none /etc; ip link set lo up; \
    ip link add n0 type veth peer name p0; ip link set p0 up; ip link add d0 type veth peer name d1";

fn agent(test: &str) -> Option<Agent> {
    namespaced(test, CARDS)
}

fn namespaced(test: &str, script: &str) -> Option<Agent> {
    let agent = Agent::in_namespaces(script);
    if agent.is_none() {
        eprintln!("skipped {test}: needs root, namespaces and ip");
    }
    agent
}

#[test]
fn a_pod_gives_the_machine_its_name_and_network_as_often_as_it_likes() {
    let Some(agent) = agent("a_pod_gives_the_machine_its_name_and_network_as_often_as_it_likes") else { return };
    let mut ctl = agent.ctl();
    let pod = json!({ "hostname": "pod-1", "containers": null, "shareDir": "", "whatever": {},
        "dns": ["192.0.2.53"], "dnsSearch": ["example.org", "example.net"], "dnsOptions": ["ndots:2"],
        "interfaces": [{ "device": "n0", "newDeviceName": "eth0", "mtu": 1400, "macAddr": "02:00:00:00:00:07",
            "ipAddresses": [{ "ipAddress": "192.0.2.2", "netMask": "24" }, { "ipAddress": "198.51.100.2", "netMask": "255.255.0.0" }] }],
        "routes": [{ "dest": "default", "gateway": "192.0.2.1", "device": "eth0" },
            { "dest": "203.0.113.0/24", "gateway": "", "device": "eth0" }],
        "portmappingWhiteLists": { "internalNetworks": null } });
    for _ in 0..2 {
        assert_eq!(ctl.good(START, pod.clone()), b"");
    }
    assert_eq!(inside(&agent, "uname -n"), "pod-1\n");
    let card = ip(&agent, "addr show eth0");
    assert_eq!((card[0]["mtu"].as_u64(), card[0]["address"].as_str()), (Some(1400), Some("02:00:00:00:00:07")));
    let addresses = card[0]["addr_info"].as_array().expect("addresses").iter();
    let addresses: Vec<String> = addresses
        .filter(|row| row["family"] == "inet")
        .map(|row| format!("{}/{}", row["local"].as_str().expect("one"), row["prefixlen"]))
        .collect();
    assert_eq!(addresses, ["192.0.2.2/24", "198.51.100.2/16"]);
    let routes = ip(&agent, "-4 route show proto static");
    let route = |index: usize, name: &str| routes[index][name].as_str().unwrap_or("-").to_owned();
    assert_eq!((route(0, "dst"), route(0, "gateway")), ("default".into(), "192.0.2.1".into()));
    assert_eq!((route(1, "dst"), route(1, "gateway")), ("203.0.113.0/24".into(), "-".into()));
    let text = "# Written by lodger\nnameserver 192.0.2.53\nsearch example.org example.net\noptions ndots:2\n";
    assert_eq!(inside(&agent, "cat /etc/resolv.conf"), text);
    ctl.good(START, json!({}));
}

#[test]
fn interfaces_and_routes_come_and_go_one_by_one() {
    let Some(agent) = agent("interfaces_and_routes_come_and_go_one_by_one") else { return };
    let mut ctl = agent.ctl();
    ctl.good(20, json!({ "device": "n0", "ipAddress": "192.0.2.2", "netMask": "255.255.255.0" }));
    ctl.good(21, json!({ "routes": [{ "dest": "10.0.0.0/8", "gateway": "192.0.2.9" }] }));
    ctl.good(21, json!({ "routes": [] }));
    let route = &ip(&agent, "-4 route show proto static")[0];
    assert_eq!((route["dst"].as_str(), route["dev"].as_str()), (Some("10.0.0.0/8"), Some("n0")));
    ctl.good(25, json!({ "device": "d0" }));
    assert_eq!(ctl.bad(25, json!({ "device": "d0" })), "d0: no such interface");
    for (code, arguments, why) in [
        (20, json!({ "device": "no" }), "no: no such interface"),
        (20, json!({}), "device: is missing"),
        (20, json!({ "device": "n0", "newDeviceName": "a/b" }), "name: no interface can be called \"a/b\""),
        (20, json!({ "device": "n0", "mtu": 67 }), "mtu: a number from 68 to 65535 is wanted, and not 67"),
        (20, json!({ "device": "n0", "macAddr": "x" }), "mac: x is no MAC address"),
        (
            20,
            json!({ "device": "n0", "ipAddress": "192.0.2.2", "netMask": "33" }),
            "addresses: 192.0.2.2/33 is no address with the bits of its network",
        ),
        (20, json!({ "device": "n0", "ipAddress": "x" }), "addresses: x is no address"),
        (21, json!({ "routes": [{ "dest": "10.0.0.0/8" }] }), "gateway or device: is missing"),
        (21, json!({ "routes": [{ "dest": "x", "gateway": "192.0.2.1" }] }), "to: x is no address"),
        (
            21,
            json!({ "routes": [{ "dest": "10.0.0.0/8", "gateway": "2001:db8::1" }] }),
            "gateway: is of the other family",
        ),
        (1, json!({ "dns": ["x"] }), "servers: x is no address"),
        (1, json!({ "hostname": "a b" }), "name: up to 64 letters"),
    ] {
        let text = ctl.bad(code, arguments);
        assert!(text.starts_with(why), "{text}");
    }
}

/// Devices that are off; the kernel refuses two of them. And a PCI bus that keeps what is written to it.
const DEVICES: &str = "mount --make-rprivate /; mount -t tmpfs none /sys/devices/system; mount -t tmpfs none /sys/bus; \
    mkdir /sys/bus/pci; echo 0 > /sys/bus/pci/rescan; cd /sys/devices/system; \
    for device in cpu/cpu1 cpu/cpu2 memory/memory7 memory/memory8; do mkdir -p $device; echo 0 > $device/online; done; \
    for device in cpu/cpu1 memory/memory7; do \
        mount --bind $device/online $device/online; mount -o remount,bind,ro $device/online; done; cd /; \
    ip link add n0 type veth peer name p0";

#[test]
fn all_that_is_off_is_tried_and_a_refusal_is_no_error_of_hyperstarts_command() {
    let test = "all_that_is_off_is_tried_and_a_refusal_is_no_error_of_hyperstarts_command";
    let Some(agent) = namespaced(test, DEVICES) else { return };
    let mut ctl = agent.ctl();
    let states = || {
        inside(
            &agent,
            "cat /sys/devices/system/cpu/cpu1/online /sys/devices/system/cpu/cpu2/online \
        /sys/devices/system/memory/memory7/online /sys/devices/system/memory/memory8/online",
        )
    };
    let answer = agent.call("system.online-cpus");
    let refusal = "switch on /sys/devices/system/cpu/cpu1/online: read-only file system";
    assert_eq!((&answer["Status"], &answer["StatusMessage"]), (&json!(1), &json!(refusal)));
    assert_eq!(states(), "0\n10\n1");
    inside(&agent, "cp /sys/devices/system/cpu/cpu1/online /sys/devices/system/memory/memory8/online");
    assert_eq!(ctl.good(19, json!(null)), b"");
    assert_eq!(states(), "0\n10\n1");
}

#[test]
fn an_interface_is_looked_for_on_the_bus_first() {
    let Some(agent) = namespaced("an_interface_is_looked_for_on_the_bus_first", DEVICES) else { return };
    let mut ctl = agent.ctl();
    let rescan = || {
        let text = inside(&agent, "cat /sys/bus/pci/rescan");
        inside(&agent, "cp /sys/devices/system/cpu/cpu1/online /sys/bus/pci/rescan");
        text.trim_end().to_owned()
    };
    assert_eq!(ctl.good(12, json!(null)), b"");
    assert_eq!(rescan(), "0");
    ctl.good(20, json!({ "device": "n0" }));
    assert_eq!(rescan(), "1");
    ctl.good(START, json!({ "interfaces": [] }));
    assert_eq!(rescan(), "0");
    ctl.good(START, json!({ "interfaces": [{ "device": "n0" }] }));
    assert_eq!(rescan(), "1");
    // As hosts of 1.x ask for it alone.
    assert_eq!(ctl.good(8, json!(null)), b"");
    assert_eq!(rescan(), "1");
    // One that makes no sense is looked for nowhere.
    ctl.bad(20, json!({ "device": 1 }));
    assert_eq!(rescan(), "0");
    // Nobody has such a bus, and everything else goes on.
    inside(&agent, "rm /sys/bus/pci/rescan");
    ctl.good(20, json!({ "device": "n0" }));
    assert_eq!(inside(&agent, "ls /sys/bus/pci"), "");
    inside(&agent, "mkdir /sys/bus/pci/rescan");
    ctl.good(20, json!({ "device": "n0" }));
}

#[test]
fn processes_are_listed_in_both_formats() {
    let agent = Agent::start();
    let mut ctl = agent.ctl();
    let pids = ctl.good(PROCESSES, json!({ "container": "hyperstart", "format": "json", "psargs": ["-ef"] }));
    let pids: Vec<u32> = serde_json::from_slice(&pids).expect("numbers");
    assert!(pids.contains(&agent.child.id()) && pids.contains(&std::process::id()));
    let table = String::from_utf8(ctl.good(PROCESSES, json!({ "format": "table" }))).expect("a text");
    assert!(table.starts_with("  UID     PID    PPID COMMAND\n"), "{table}");
    let own = agent.child.id().to_string();
    let row = table.lines().find(|line| line.split_whitespace().nth(1) == Some(&own)).expect("the agent");
    assert!(row.contains("proto=hyper-ctl"), "{row}");
    for format in ["", "xml"] {
        assert_eq!(ctl.bad(PROCESSES, json!({ "format": format })), "invalid format option");
    }
    let of = |container: &str| json!({ "container": container, "format": "json" });
    assert_eq!(ctl.bad(PROCESSES, of("zz")), "no such container: zz");
    ctl.good(17, json!({ "id": "zz", "process": { "stdio": 3, "stderr": 4, "args": ["cat"] } }));
    let mut list =
        |container: &str| -> Vec<u32> { serde_json::from_slice(&ctl.good(PROCESSES, of(container))).expect("numbers") };
    assert_eq!(list("zz"), crate::support::children(agent.child.id()), "its program, and nothing else");
    for container in ["hyperstart", ""] {
        assert!(list(container).contains(&agent.child.id()), "{container}");
    }
    assert_eq!(ctl.bad(PROCESSES, json!([])), "pscontainer is no object");
}
