//! `network.configure` against the kernel, in namespaces of its own with cards of its own, so that this machine's network, name and files are
//! never touched. Needs root and iproute2, which says what the kernel has.
#![cfg(feature = "openstack")]

mod support;

use std::fs;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lodger::sys::process::effective_user;
use serde_json::{Value, json};
use support::{Folder, pause, wait_until};

const LODGER: &str = env!("CARGO_BIN_EXE_lodger");

/// MAC addresses of the two cards.
const MAC: [&str; 2] = ["fa:16:3e:00:11:22", "fa:16:3e:00:11:33"];

/// Makes the cards `n0` and `n1`, as ends of cables whose other ends are up, so that they have a carrier; what to do before them comes in front.
const CARDS: &str = "ip link set lo up && \
    for n in 0 1; do ip link add n$n address fa:16:3e:00:11:$((22 + 11 * n)) type veth peer name p$n && ip link set p$n up || exit; done";

/// Says why nothing was tested, where that is so.
fn is_possible(test: &str) -> bool {
    let script = "ip link add n0 type veth peer name p0 && nsenter --version";
    let try_out =
        || Command::new("unshare").args(["-n", "-m", "-u", "sh", "-c", script]).stdout(Stdio::null()).status();
    let possible = effective_user() == 0 && try_out().is_ok_and(|status| status.success());
    if !possible {
        eprintln!("skipped {test}: needs root, namespaces of networks, veth, ip and nsenter");
    }
    possible
}

/// A machine of a test: an agent in namespaces of its own.
struct Machine {
    folder: Folder,
    agent: Option<Child>,
}

impl Machine {
    fn new() -> Machine {
        let machine = Machine { folder: Folder::new(), agent: None };
        fs::create_dir(machine.etc("")).expect("a folder");
        machine
    }

    fn etc(&self, name: &str) -> PathBuf {
        self.folder.path("etc").join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.etc(name)).unwrap_or_default()
    }

    /// Starts the agent; `options` of mount(8) for its `/etc`, and a script to run before.
    fn start(&mut self, options: &str, script: &str) {
        let (etc, socket) = (self.folder.path("etc"), self.folder.path("sock"));
        let script = format!(
            "mount --make-rprivate / && mount --bind '{0}' /etc && mount -o remount,bind,{options} /etc && \
             hostname before && {CARDS} && {script} exec '{LODGER}' serve --listen 'unix:{1}'",
            etc.display(),
            socket.display()
        );
        let log = fs::File::create(self.folder.path("log")).expect("a log");
        let mut agent = Command::new("unshare");
        agent.args(["-n", "-m", "-u", "sh", "-c", &script]).stderr(log).stdin(Stdio::null());
        self.agent = Some(agent.spawn().expect("unshare"));
        // The file is there a moment before anybody listens.
        wait_until("the agent listens", || UnixStream::connect(&socket).is_ok());
    }

    fn running() -> Machine {
        let mut machine = Machine::new();
        machine.start("rw", "");
        machine
    }

    /// A program in the machine, under this one's files.
    fn inside(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        let pid = self.agent.as_ref().expect("it runs").id().to_string();
        command.args(["-n", "-u", "-t", &pid]).args(words).stdin(Stdio::null());
        command
    }

    fn run(&self, words: &str) -> String {
        let words: Vec<&str> = words.split(' ').collect();
        let output = self.inside(&words).output().expect("nsenter");
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What ip(8) says with `-j`.
    fn ip(&self, words: &str) -> Vec<Value> {
        let text = self.run(&format!("ip -j {words}"));
        if text.trim().is_empty() { Vec::new() } else { serde_json::from_str(&text).expect("JSON") }
    }

    /// The addresses of a card, without those that the kernel gives it by itself.
    fn addresses(&self, card: &str) -> Vec<String> {
        let found = self.ip(&format!("addr show {card}"));
        let rows = found[0]["addr_info"].as_array().expect("addresses").iter();
        let rows = rows.filter(|row| row["scope"] == "global");
        rows.map(|row| format!("{}/{}", row["local"].as_str().expect("an address"), row["prefixlen"])).collect()
    }

    /// The routes over a card, without those of the kernel: where to, through what, with which metric.
    fn routes(&self, card: &str) -> Vec<String> {
        let rows =
            [self.ip(&format!("-4 route show dev {card}")), self.ip(&format!("-6 route show dev {card}"))].concat();
        let text = |row: &Value, name: &str| row[name].as_str().unwrap_or("-").to_owned();
        let rows = rows.iter().filter(|row| row["protocol"] != "kernel");
        let mut routes: Vec<String> = rows
            .map(|row| format!("{} {} {}", text(row, "dst"), text(row, "gateway"), row["metric"].as_u64().unwrap_or(0)))
            .collect();
        routes.sort();
        routes
    }

    /// The exit status and the answer of a call.
    fn call(&self, interfaces: &Value, host_name: &str) -> (Option<i32>, Value) {
        let to = format!("unix:{}", self.folder.path("sock").display());
        let arguments = json!({ "interfaces": interfaces, "hostname": host_name }).to_string();
        let output = Command::new(LODGER)
            .args(["call", "--to", &to, "network.configure", &arguments])
            .stdin(Stdio::null())
            .output()
            .expect("lodger");
        let answer = serde_json::from_slice(&output.stdout);
        let why = || fs::read_to_string(self.folder.path("log")).unwrap_or_default();
        (
            output.status.code(),
            answer.unwrap_or_else(|_| panic!("{}, {}", String::from_utf8_lossy(&output.stderr), why())),
        )
    }

    /// The changes of a call that succeeds.
    fn changes(&self, interfaces: &Value) -> Vec<String> {
        let (code, answer) = self.call(interfaces, "");
        assert_eq!(code, Some(0), "{answer}");
        let changes = answer["changes"].as_array().expect("a list").iter();
        let changes: Vec<String> = changes.map(|change| change.as_str().expect("a text").to_owned()).collect();
        assert_eq!(answer["changed"], json!(!changes.is_empty()));
        changes
    }

    /// The text of a call that is refused with this code.
    fn refusal(&self, interfaces: &Value, code: i32) -> String {
        let (status, answer) = self.call(interfaces, "");
        assert_eq!(status, Some(code), "{answer}");
        answer["StatusMessage"].as_str().expect("a text").to_owned()
    }

    /// Everything that the kernel says of the two cards.
    fn all(&self) -> String {
        let of = ["-br link show", "-o addr show", "-4 route show table all dev", "-6 route show table all dev"];
        of.iter().flat_map(|what| ["n0", "n1"].map(|card| self.run(&format!("ip {what} {card}")))).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(agent) = &mut self.agent {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

/// An object as it is sent, with addresses `A.B.C.D/LENGTH` and `A::B/LENGTH` of few lengths.
fn interface(mac: &str, addresses: &[&str], more: Value) -> Value {
    let (mut ips, mut ip6s) = (Vec::new(), Vec::new());
    for address in addresses {
        let (ip, length) = address.split_once('/').expect("a length");
        match length {
            "16" => ips.push(json!({ "ip": ip, "netmask": "255.255.0.0", "enabled": 1 })),
            "24" => ips.push(json!({ "ip": ip, "netmask": "255.255.255.0", "enabled": 1 })),
            "32" => ips.push(json!({ "ip": ip, "netmask": "255.255.255.255", "enabled": 1 })),
            length => ip6s.push(json!({ "ip": ip, "netmask": length, "enabled": 1 })),
        }
    }
    let mut object = json!({ "mac": mac, "ips": ips, "ip6s": ip6s });
    for (name, value) in more.as_object().expect("members") {
        object[name] = value.clone();
    }
    object
}

fn nova() -> Value {
    json!([{"label":"public","mac":"fa:16:3e:00:11:22","gateway":"192.0.2.1","broadcast":"192.0.2.255",
        "ips":[{"ip":"192.0.2.10","enabled":"1","netmask":"255.255.255.0","gateway":"192.0.2.1"}],
        "gateway_v6":"2001:db8::1","ip6s":[{"ip":"2001:db8::10","enabled":"1","netmask":64,"gateway":"2001:db8::1"}],
        "routes":[{"route":"10.0.0.0","netmask":"255.0.0.0","gateway":"192.0.2.2"}],"dns":["192.0.2.53"]}])
}

#[test]
fn as_root_what_nova_writes_comes_true_and_the_second_time_nothing_happens() {
    if !is_possible("nova's example") {
        return;
    }
    let machine = Machine::running();
    let (code, answer) = machine.call(&nova(), "after");
    assert_eq!((code, &answer["changed"]), (Some(0), &json!(true)), "{answer}");
    assert_eq!(answer["changes"].as_array().expect("a list").len(), 10, "{answer}");
    // An IPv6 address is there while the kernel still asks whether somebody else has it, so that nothing here waits for the answer.
    assert_eq!(machine.addresses("n0"), ["192.0.2.10/24", "2001:db8::10/64"]);
    assert_eq!(machine.routes("n0"), ["10.0.0.0/8 192.0.2.2 0", "default 192.0.2.1 0", "default 2001:db8::1 1024"]);
    let found = &machine.ip("addr show n0")[0];
    assert!(found["flags"].as_array().expect("flags").contains(&json!("UP")));
    assert_eq!(found["addr_info"][0]["broadcast"], "192.0.2.255");
    assert_eq!(machine.addresses("n1"), [""; 0], "the other card");
    assert_eq!(machine.run("hostname"), "after\n");
    assert_eq!(machine.text("hostname"), "after\n");
    assert_eq!(machine.text("hosts"), "192.0.2.10 after\n");
    assert_eq!(machine.text("resolv.conf"), "# Written by lodger\nnameserver 192.0.2.53\n");
    assert_eq!(fs::read_dir(machine.etc("")).expect("a folder").count(), 3, "and no file that was forgotten");

    // Until it is found that nobody has them, which is told to who listens.
    wait_until("addresses are no longer tentative", || !machine.run("ip addr").contains("tentative"));
    let before = (machine.all(), fs::metadata(machine.etc("hosts")).expect("it").modified().expect("a time"));
    let heard = machine.folder.path("heard");
    let mut monitor = machine.inside(&["ip", "monitor", "link", "address", "route"]);
    let mut monitor = monitor.stdout(fs::File::create(&heard).expect("a file")).spawn().expect("ip monitor");
    let says = |what: &str| fs::read_to_string(&heard).expect("a file").contains(what);
    wait_until("the monitor hears", || {
        machine.run("ip link set p1 alias listening");
        says("p1")
    });
    pause(Duration::from_millis(50));
    fs::write(&heard, "").expect("a file");
    let (code, answer) = machine.call(&nova(), "after");
    assert_eq!((code, &answer["changed"], &answer["changes"]), (Some(0), &json!(false), &json!([])));
    // The kernel tells of changes in their order.
    machine.run("ip link set p1 alias end");
    wait_until("the monitor hears the end", || says("p1"));
    let _ = monitor.kill();
    let _ = monitor.wait();
    assert!(!says("n0") && !says("192.0.2") && !says("2001:db8"), "{}", fs::read_to_string(&heard).expect("it"));
    assert_eq!((machine.all(), fs::metadata(machine.etc("hosts")).expect("it").modified().expect("a time")), before);
}

#[test]
fn as_root_an_address_that_stays_is_not_touched_and_others_come_and_go() {
    if !is_possible("changes of addresses") {
        return;
    }
    let machine = Machine::running();
    let first = ["192.0.2.10/24", "198.51.100.1/32", "2001:db8::10/64"];
    machine.changes(&json!([interface(MAC[0], &first, json!({ "gateway": "192.0.2.1" }))]));
    // A lifetime that is not begun anew, and what only a person gives.
    machine.run("ip addr add 203.0.113.7/24 dev n0");
    machine.run("ip route add 10.9.0.0/16 dev n0");
    machine.run("ip route add 10.8.0.0/16 via 192.0.2.9 proto dhcp metric 100");
    machine.run("ip route add 10.7.0.0/16 via 192.0.2.9 proto bird");
    machine.run("ip -6 route add 2001:db8:7::/48 via fe80::7 dev n0 proto ra");
    machine.run("ip -6 addr add 2001:db8:7::1/64 dev n0 valid_lft 1000 preferred_lft 1000");
    let heard = machine.folder.path("heard");
    let mut monitor = machine.inside(&["ip", "monitor", "address"]);
    let mut monitor = monitor.stdout(fs::File::create(&heard).expect("a file")).spawn().expect("ip monitor");
    let says = |what: &str| fs::read_to_string(&heard).expect("a file").contains(what);
    wait_until("the monitor hears", || {
        machine.run("ip addr replace 203.0.113.8/32 dev p1");
        machine.run("ip addr del 203.0.113.8/32 dev p1");
        says("203.0.113.8")
    });
    let second = ["192.0.2.10/24", "192.0.2.11/24", "2001:db8::11/64"];
    let changes = machine.changes(&json!([interface(MAC[0], &second, json!({ "gateway": "192.0.2.1" }))]));
    for change in [
        "n0: address 192.0.2.11/24 added",
        "n0: address 2001:db8::11/64 added",
        "n0: address 198.51.100.1/32 removed",
        "n0: address 2001:db8::10/64 removed",
        "n0: address 203.0.113.7/24 removed",
        "n0: route 10.9.0.0/16 removed",
        "n0: route 10.8.0.0/16 via 192.0.2.9 removed",
    ] {
        assert!(changes.iter().any(|found| found == change), "{change}: {changes:?}");
    }
    assert_eq!(changes.iter().filter(|change| change.starts_with("n0")).count(), 7, "{changes:?}");
    // One with an end is a router's, and so is a route of an advertisement; a routing program has its own.
    assert_eq!(machine.addresses("n0"), ["192.0.2.10/24", "192.0.2.11/24", "2001:db8::11/64", "2001:db8:7::1/64"]);
    assert_eq!(
        machine.routes("n0"),
        ["10.7.0.0/16 192.0.2.9 0", "2001:db8:7::/48 fe80::7 1024", "default 192.0.2.1 0"]
    );
    wait_until("the monitor has heard the last", || says("2001:db8::10/64"));
    let _ = monitor.kill();
    let _ = monitor.wait();
    assert!(!says("192.0.2.10/24"), "{}", fs::read_to_string(&heard).expect("it"));
}

#[test]
fn as_root_what_the_kernel_takes_with_the_first_address_of_a_network_comes_back() {
    if !is_possible("secondary addresses") {
        return;
    }
    let machine = Machine::running();
    let routes = json!({ "gateway": "192.0.2.1", "routes": [
        { "route": "10.0.0.0", "netmask": "255.0.0.0", "gateway": "192.0.2.2" },
        { "route": "2001:db8:9::", "netmask": "ffff:ffff:ffff::", "gateway": "fe80::9" },
    ] });
    machine.changes(&json!([interface(MAC[0], &["192.0.2.10/24", "192.0.2.11/24", "192.0.2.12/24"], routes.clone())]));
    let wanted = json!([interface(MAC[0], &["192.0.2.12/24", "192.0.2.13/24"], routes)]);
    machine.changes(&wanted);
    assert_eq!(machine.addresses("n0"), ["192.0.2.12/24", "192.0.2.13/24"]);
    let expected = ["10.0.0.0/8 192.0.2.2 0", "2001:db8:9::/48 fe80::9 1024", "default 192.0.2.1 0"];
    assert_eq!(machine.routes("n0"), expected);
    assert_eq!(machine.changes(&wanted), [""; 0]);
    // All of another network, and other lengths of the same addresses.
    machine.changes(&json!([interface(
        MAC[0],
        &["192.0.2.12/16", "2001:db8::1/48"],
        json!({ "gateway": "192.0.9.1" })
    )]));
    assert_eq!(machine.routes("n0"), ["default 192.0.9.1 0"]);
    machine.changes(&json!([interface(MAC[0], &["192.0.2.12/24", "2001:db8::1/64"], json!({}))]));
    assert_eq!(machine.addresses("n0"), ["192.0.2.12/24", "2001:db8::1/64"]);
    assert_eq!(machine.routes("n0"), [""; 0]);
    // Not one is enabled.
    machine.changes(&json!([{ "mac": MAC[0], "ips": [{ "ip": "192.0.2.1", "netmask": "255.0.0.0", "enabled": 0 }] }]));
    assert_eq!(machine.addresses("n0"), [""; 0]);
}

#[test]
fn as_root_an_address_with_an_end_becomes_one_without() {
    if !is_possible("leases") {
        return;
    }
    let machine = Machine::running();
    machine.run("ip link set n0 up");
    for address in ["192.0.2.10/24", "2001:db8::10/64"] {
        machine.run(&format!("ip addr add {address} dev n0 valid_lft 500 preferred_lft 500"));
    }
    let wanted = json!([interface(MAC[0], &["192.0.2.10/24", "2001:db8::10/64"], json!({}))]);
    assert_eq!(machine.changes(&wanted)[..2], ["n0: address 192.0.2.10/24 added", "n0: address 2001:db8::10/64 added"]);
    assert_eq!(machine.run("ip addr show n0").matches("valid_lft forever").count(), 3, "with the link's own");
    assert_eq!(machine.changes(&wanted), [""; 0]);
}

#[test]
fn as_root_two_cards_have_two_gateways_and_the_first_is_used() {
    if !is_possible("two cards") {
        return;
    }
    let machine = Machine::running();
    let gateways =
        |last: u8| json!({ "gateway": format!("192.0.{last}.1"), "gateway_v6": format!("2001:db8:{last}::1") });
    let wanted = json!([
        interface(&MAC[1].to_uppercase(), &["192.0.2.10/24", "2001:db8:2::10/64"], gateways(2)),
        interface(MAC[0], &["192.0.3.10/24", "2001:db8:3::10/64"], gateways(3)),
    ]);
    machine.changes(&wanted);
    assert_eq!(machine.routes("n1"), ["default 192.0.2.1 0", "default 2001:db8:2::1 1024"]);
    assert_eq!(machine.routes("n0"), ["default 192.0.3.1 1", "default 2001:db8:3::1 1025"]);
    assert_eq!(machine.ip("route get 198.51.100.1")[0]["dev"], "n1");
    assert_eq!(machine.changes(&wanted), [""; 0]);
    // One alone leaves the other as it is, and its route in the first place.
    machine.changes(&json!([interface(MAC[0], &["192.0.4.10/24"], json!({ "gateway": "192.0.4.1" }))]));
    assert_eq!(machine.routes("n0"), ["default 192.0.4.1 1"]);
    assert_eq!(machine.routes("n1").len(), 2);
    assert_eq!(machine.text("hosts"), "192.0.2.10 before\n192.0.3.10 before\n192.0.4.10 before\n");
}

#[test]
fn as_root_a_gateway_may_be_in_no_network_and_may_have_been_this_machine() {
    if !is_possible("odd gateways") {
        return;
    }
    let machine = Machine::running();
    let gateways = json!({ "gateway": "203.0.113.1", "gateway_v6": "2001:db8:9::1" });
    let wanted = json!([interface(MAC[0], &["192.0.2.1/32", "2001:db8::1/128"], gateways)]);
    machine.changes(&wanted);
    assert_eq!(machine.routes("n0"), ["default 2001:db8:9::1 1024", "default 203.0.113.1 0"]);
    assert_eq!(machine.run("ip route get 198.51.100.1").matches("203.0.113.1").count(), 1);
    assert_eq!(machine.changes(&wanted), [""; 0]);
    let gateways = json!({ "gateway": "192.0.2.1", "gateway_v6": "2001:db8::1" });
    let wanted = json!([interface(MAC[0], &["192.0.2.2/24", "2001:db8::2/64"], gateways)]);
    machine.changes(&wanted);
    assert_eq!(machine.routes("n0"), ["default 192.0.2.1 0", "default 2001:db8::1 1024"]);
    assert_eq!(machine.changes(&wanted), [""; 0]);
}

#[test]
fn as_root_a_gateway_is_set_though_the_route_to_its_network_is_missing() {
    if !is_possible("a missing route to a network") {
        return;
    }
    let machine = Machine::running();
    let wanted = json!([interface(MAC[0], &["192.0.2.10/24"], json!({ "gateway": "192.0.2.1" }))]);
    machine.changes(&wanted);
    machine.run("ip -4 route flush table main dev n0");
    assert_eq!(machine.changes(&wanted), ["n0: route 0.0.0.0/0 via 192.0.2.1 added"]);
    assert_eq!(machine.changes(&wanted), [""; 0]);
    // A route that was made in another way is the same one.
    machine.run("ip route add 192.0.2.0/24 dev n0 proto kernel scope link src 192.0.2.10");
    machine.run("ip route replace default via 192.0.2.1");
    assert_eq!(machine.changes(&wanted), [""; 0]);
}

#[test]
fn as_root_a_gateway_comes_before_those_of_advertisements() {
    if !is_possible("advertised gateways") {
        return;
    }
    let machine = Machine::running();
    machine.run("ip link set n0 up");
    machine.run("ip -6 addr add 2001:db8::5/64 dev n0 nodad");
    // As programs write them that read advertisements in place of the kernel.
    machine.run("ip -6 route add default via fe80::1 dev n0 proto ra metric 1024 expires 1800");
    for gateway in ["2001:db8::1", "fe80::1"] {
        let wanted = json!([interface(MAC[0], &["2001:db8::10/64"], json!({ "gateway6": gateway }))]);
        machine.changes(&wanted);
        assert_eq!(machine.routes("n0"), [format!("default {gateway} 1023"), "default fe80::1 1024".to_owned()]);
        assert!(machine.run("ip -6 route show default proto ra").contains("expires"), "it still has its end");
        assert_eq!(machine.changes(&wanted), [""; 0]);
    }
}

#[test]
fn as_root_an_address_of_a_router_keeps_its_end_when_the_change_is_refused() {
    if !is_possible("restored addresses of routers") {
        return;
    }
    let machine = Machine::running();
    machine.run("ip link set n0 up");
    machine.run("ip -6 addr add 2001:db8::10/64 dev n0 valid_lft 3000 preferred_lft 2000 nodad");
    machine.run("ip -6 addr add 2001:db8:1::10/128 dev n0 valid_lft 3000 preferred_lft 2000 nodad");
    let addresses = ["192.0.2.10/24", "2001:db8::10/64", "2001:db8:1::10/64"];
    let odd = json!([interface(MAC[0], &addresses, json!({ "gateway": "192.0.2.255" }))]);
    let text = machine.refusal(&odd, 1);
    assert!(text.starts_with("add route 0.0.0.0/0 via 192.0.2.255 to n0") && !text.contains("not undone"), "{text}");
    let found = machine.addresses("n0");
    assert!(found.len() == 2 && found.contains(&"2001:db8:1::10/128".to_owned()), "{found:?}");
    let ends = machine.run("ip -6 addr show dev n0 scope global");
    assert!(ends.matches("valid_lft").count() == 2 && !ends.contains("forever"), "{ends}");
}

#[test]
fn as_root_what_has_an_end_or_is_of_another_kind_does_not_count() {
    if !is_possible("addresses and routes that are almost wanted") {
        return;
    }
    let machine = Machine::running();
    machine.run("ip link set n0 up");
    machine.run("ip addr add 192.0.2.10/24 dev n0 scope link");
    machine.run("ip addr add 192.0.3.10/24 dev n0 valid_lft forever preferred_lft 0");
    machine.run("ip addr add 192.0.4.10 peer 192.0.4.11/32 dev n0");
    machine.run("ip -6 addr add 2001:db8::10/128 dev n0 valid_lft 3000 preferred_lft 2000 nodad");
    machine.run("ip -6 route add 2001:db8:9::/48 via fe80::9 dev n0 proto static expires 1800");
    let addresses = ["192.0.2.10/24", "192.0.3.10/24", "192.0.4.10/32", "2001:db8::10/64"];
    let route = json!({ "route": "2001:db8:9::", "netmask": "48", "gateway": "fe80::9" });
    let wanted = json!([interface(MAC[0], &addresses, json!({ "routes": [route] }))]);
    machine.changes(&wanted);
    let mut found = machine.addresses("n0");
    found.sort();
    assert_eq!(found, addresses);
    let text = machine.run("ip addr show dev n0") + &machine.run("ip -6 route show 2001:db8:9::/48");
    assert!(!["peer", "deprecated", "expires", "sec "].iter().any(|word| text.contains(word)), "{text}");
    assert!(!text.contains("192.0.2.10/24 scope link") && !text.contains("sec\n"), "{text}");
    assert_eq!(machine.changes(&wanted), [""; 0]);
}

#[test]
fn as_root_routes_that_say_that_nobody_is_there_make_room() {
    if !is_possible("barriers") {
        return;
    }
    let machine = Machine::running();
    machine.run("ip route add unreachable default");
    machine.run("ip -6 route add unreachable default metric 1024");
    machine.run("ip route add unreachable default metric 4000");
    machine.run("ip route add blackhole 10.0.0.0/8");
    let barriers = || [machine.run("ip route show type unreachable"), machine.run("ip -6 route show type unreachable")];
    let before = barriers();
    let addresses = ["192.0.2.10/24", "2001:db8::10/64"];
    let odd = json!([interface(MAC[0], &addresses, json!({ "gateway": "192.0.2.255", "gateway6": "2001:db8::1" }))]);
    machine.refusal(&odd, 1);
    assert_eq!(barriers(), before);
    let gateways = json!({ "gateway": "192.0.2.1", "gateway6": "2001:db8::1" });
    let wanted = json!([interface(MAC[0], &addresses, gateways)]);
    let changes = machine.changes(&wanted);
    assert!(changes.contains(&"all: route 0.0.0.0/0 removed".to_owned()), "{changes:?}");
    assert_eq!(machine.ip("route get 198.51.100.1")[0]["gateway"], "192.0.2.1");
    assert_eq!(machine.ip("-6 route get 2001:db8:5::1")[0]["gateway"], "2001:db8::1");
    // What is asked after the wanted ones, or leads elsewhere, stays.
    assert!(barriers()[0].contains("metric 4000") && machine.run("ip route").contains("blackhole 10.0.0.0/8"));
    assert_eq!(machine.changes(&wanted), [""; 0]);
}

#[test]
fn as_root_routes_over_several_gateways_make_room() {
    if !is_possible("multipath routes") {
        return;
    }
    let machine = Machine::running();
    let addresses = ["192.0.2.10/24", "2001:db8::10/64"];
    machine.changes(&json!([interface(MAC[0], &addresses, json!({}))]));
    machine.run("ip route add default nexthop via 192.0.2.1 nexthop via 192.0.2.2");
    machine.run("ip -6 route add default nexthop via 2001:db8::1 nexthop via 2001:db8::2");
    let gateways = json!({ "gateway": "192.0.2.1", "gateway6": "2001:db8::1" });
    let wanted = json!([interface(MAC[0], &addresses, gateways)]);
    machine.changes(&wanted);
    assert_eq!(machine.routes("n0"), ["default 192.0.2.1 0", "default 2001:db8::1 1024"]);
    assert_eq!(machine.changes(&wanted), [""; 0]);
}

#[test]
fn as_root_thousands_of_routes_and_addresses_that_change_all_the_time_do_not_matter() {
    if !is_possible("many routes") {
        return;
    }
    let machine = Machine::running();
    machine.changes(&nova());
    // An answer of many datagrams.
    let routes = (0..5000).map(|n| format!("route add 172.16.{}.{}/32 via 192.0.2.9 proto bird\n", n / 250, n % 250));
    let batch = machine.folder.path("batch");
    fs::write(&batch, routes.collect::<String>()).expect("a file");
    machine.run(&format!("ip -batch {}", batch.display()));
    let churn = "while :; do ip addr add 203.0.113.9/32 dev p0; ip addr del 203.0.113.9/32 dev p0; done";
    let mut churn = machine.inside(&["sh", "-c", churn]).spawn().expect("a shell");
    for last in 20..40 {
        let more = json!({ "gateway": "192.0.2.1" });
        let changes =
            machine.changes(&json!([interface(MAC[0], &["192.0.2.10/24", &format!("192.0.2.{last}/24")], more)]));
        assert!(changes.contains(&format!("n0: address 192.0.2.{last}/24 added")), "{changes:?}");
    }
    let _ = churn.kill();
    let _ = churn.wait();
    assert_eq!(machine.addresses("n0"), ["192.0.2.10/24", "192.0.2.39/24"]);
    assert_eq!(machine.run("ip route show proto bird").lines().count(), 5000);
}

#[test]
fn as_root_what_is_wrong_changes_nothing() {
    if !is_possible("refused requests") {
        return;
    }
    let machine = Machine::running();
    machine.changes(&nova());
    wait_until("addresses are no longer tentative", || !machine.run("ip addr").contains("tentative"));
    let before = machine.all();
    let good = interface(MAC[0], &["198.51.100.1/24"], json!({}));
    let unknown = json!([good, interface("00:00:5e:00:53:01", &["192.0.2.77/24"], json!({}))]);
    assert_eq!(machine.refusal(&unknown, 14), "Unknown interface MAC 00:00:5e:00:53:01");
    // The loopback has a MAC too.
    machine.refusal(&json!([interface("00:00:00:00:00:00", &["192.0.2.77/24"], json!({}))]), 14);
    let no_mac = json!([good, { "ips": [] }]);
    assert_eq!(machine.refusal(&no_mac, 12), "No MAC found in config");
    assert_eq!(machine.refusal(&json!([good, { "mac": MAC[1] }]), 12), "No IPs found for interface");
    machine.refusal(&json!({}), 12);
    assert_eq!(machine.call(&json!([good]), "a b").0, Some(12));
    assert_eq!(machine.all(), before);

    // Both cards have their addresses, and the old routes are gone, when the kernel finds the second gateway to be this machine; the second
    // card was off.
    let good = interface(MAC[0], &["198.51.100.1/24", "2001:db8:1::1/64"], json!({}));
    let odd = json!({ "gateway_v6": "2001:db8:1::1", "dns": ["192.0.2.99"] });
    let refused = json!([good, interface(MAC[1], &["192.0.3.10/24", "2001:db8:2::1/64"], odd)]);
    assert_eq!(
        machine.refusal(&refused, 1),
        "add route ::/0 via 2001:db8:1::1 to n1 (Gateway can not be a local address): invalid argument"
    );
    // An IPv6 address that comes back is asked for again.
    wait_until("everything is as it was", || machine.all() == before);
    assert_eq!(machine.text("resolv.conf"), "# Written by lodger\nnameserver 192.0.2.53\n");
}

#[test]
fn as_root_what_was_removed_before_a_refusal_comes_back_whole() {
    if !is_possible("restored routes") {
        return;
    }
    let machine = Machine::running();
    machine.changes(&json!([interface(MAC[0], &["192.0.2.10/24", "192.0.3.10/24", "2001:db8::10/48"], json!({}))]));
    machine.run("ip route add 10.9.0.0/16 via 192.0.2.9 src 192.0.3.10 mtu 1400 metric 7");
    machine.run("ip -6 route add 2001:db8:9::/48 via 2001:db8::9 mtu 1300");
    machine.run("ip route add 10.8.0.0/16 nexthop via 192.0.2.8 weight 2 nexthop via 192.0.3.8");
    // Over a link that has no carrier, which the kernel says of the next hop.
    machine.run("ip link set p1 down");
    machine.run("ip link set n1 up");
    machine.run("ip addr add 203.0.113.7/24 dev n1");
    machine.run("ip route add 10.7.0.0/16 nexthop via 192.0.2.8 nexthop via 203.0.113.8 dev n1");
    machine.run("ip addr add 198.51.100.7 peer 198.51.100.8/32 dev n0");
    wait_until("addresses are no longer tentative", || !machine.run("ip addr").contains("tentative"));
    let routes = || machine.run("ip route") + &machine.run("ip -6 route show dev n0");
    let before = (machine.addresses("n0"), routes());
    // Routes are added when all that is old has gone.
    let odd = json!({ "gateway_v6": "2001:db8:1::1" });
    let wanted = [
        interface(MAC[1], &["2001:db8:1::1/64"], json!({})),
        interface(MAC[0], &["192.0.4.10/24", "2001:db8::10/64"], odd),
    ];
    let text = machine.refusal(&json!(wanted), 1);
    assert!(text.starts_with("add route ::/0 via 2001:db8:1::1 to n0 ("), "{text}");
    assert_eq!((machine.addresses("n0"), routes()), before);
}

#[test]
fn as_root_a_switched_off_ipv6_is_an_error_and_nothing_is_left_behind() {
    if !is_possible("IPv6 that is off") {
        return;
    }
    let mut machine = Machine::new();
    // The files of the kernel's switches are those of the namespace in which they are looked at.
    machine.start("rw", "echo 1 > /proc/sys/net/ipv6/conf/n0/disable_ipv6 &&");
    let before = machine.all();
    let text = machine.refusal(&json!([interface(MAC[0], &["192.0.2.10/24", "2001:db8::1/64"], json!({}))]), 15);
    assert!(text.contains("add address 2001:db8::1/64 to n0") && text.contains("permission denied"), "{text}");
    assert_eq!(machine.all(), before);
}

#[test]
fn as_root_a_card_without_a_carrier_is_set_up_all_the_same() {
    if !is_possible("a card without a carrier") {
        return;
    }
    let mut machine = Machine::new();
    machine.start("rw", "ip link set p0 down &&");
    machine.changes(&nova());
    assert_eq!(machine.addresses("n0"), ["192.0.2.10/24", "2001:db8::10/64"]);
    assert_eq!(machine.routes("n0").len(), 3);
    assert_eq!(machine.changes(&nova()), [""; 0]);
}

#[test]
fn as_root_a_part_of_a_bridge_leaves_the_addresses_to_the_bridge() {
    if !is_possible("bridges") {
        return;
    }
    let machine = Machine::running();
    machine.run("ip link add br0 type bridge");
    machine.run("ip link set n0 master br0");
    assert_eq!(machine.ip("link show br0")[0]["address"], MAC[0]);
    machine.changes(&json!([interface(MAC[0], &["192.0.2.10/24"], json!({}))]));
    assert_eq!((machine.addresses("br0"), machine.addresses("n0")), (vec!["192.0.2.10/24".to_owned()], vec![]));
}

#[test]
fn as_root_links_are_written_through_where_their_targets_can_be_written() {
    if !is_possible("links") {
        return;
    }
    let mut machine = Machine::new();
    let run = machine.folder.path("run");
    fs::create_dir(&run).expect("a folder");
    symlink(run.join("stub"), machine.etc("resolv.conf")).expect("a link");
    symlink("real-hosts", machine.etc("hosts")).expect("a link");
    fs::write(machine.etc("real-hosts"), "127.0.0.1 localhost\n192.0.2.10 old\n").expect("a file");
    machine.start("rw", "");
    machine.changes(&nova());
    assert!(fs::symlink_metadata(machine.etc("resolv.conf")).expect("it").is_symlink());
    let resolv_conf = "# Written by lodger\nnameserver 192.0.2.53\n";
    assert_eq!(fs::read_to_string(run.join("stub")).expect("the target"), resolv_conf);
    assert!(fs::symlink_metadata(machine.etc("hosts")).expect("it").is_symlink());
    assert_eq!(machine.text("real-hosts"), "127.0.0.1 localhost\n192.0.2.10 before\n");
    assert!(!machine.etc("hostname").exists(), "none was asked for");

    // A file of a system that is mounted for reading only, as /proc and others have them.
    fs::remove_file(machine.etc("resolv.conf")).expect("it was there");
    symlink("/proc/version", machine.etc("resolv.conf")).expect("a link");
    let text = machine.refusal(&nova(), 14);
    assert!(text.starts_with("write /etc/resolv.conf, a link to /proc/version: "), "{text}");
    assert_eq!(machine.addresses("n0").len(), 2, "the network stays");
}

#[test]
fn as_root_files_that_are_no_regular_ones_are_refused_and_stay() {
    if !is_possible("odd files") {
        return;
    }
    let machine = Machine::running();
    // A FIFO would hold the call, and all after it, until somebody writes.
    assert!(Command::new("mkfifo").arg(machine.etc("hosts")).status().expect("mkfifo").success());
    let only = json!([interface(MAC[0], &["192.0.2.10/24"], json!({}))]);
    for _ in 0..2 {
        assert_eq!(machine.refusal(&only, 1), "read /etc/hosts: not a regular file");
    }
    assert_eq!(machine.addresses("n0"), ["192.0.2.10/24"], "the network stays");
    fs::remove_file(machine.etc("hosts")).expect("it was there");
    // As people do who want it to be empty; the folder of the device can be written.
    assert!(Command::new("mknod").arg(machine.etc("null")).args(["c", "1", "3"]).status().expect("mknod").success());
    symlink("null", machine.etc("resolv.conf")).expect("a link");
    assert_eq!(machine.refusal(&nova(), 1), "write /etc/resolv.conf: not a regular file");
    assert!(fs::metadata(machine.etc("null")).expect("it").file_type().is_char_device());
    // Whoever makes the folder writes the file.
    fs::remove_file(machine.etc("resolv.conf")).expect("it was there");
    symlink("missing/stub", machine.etc("resolv.conf")).expect("a link");
    assert_eq!(machine.changes(&nova()), [""; 0]);
    assert!(fs::symlink_metadata(machine.etc("resolv.conf")).expect("it").is_symlink());
}

#[test]
fn as_root_read_only_files_are_an_error_and_the_network_is_there() {
    if !is_possible("a read-only root") {
        return;
    }
    let mut machine = Machine::new();
    machine.start("ro", "");
    let (code, answer) = machine.call(&nova(), "after");
    assert_eq!(code, Some(1), "{answer}");
    assert_eq!(answer["StatusMessage"], "write /etc/resolv.conf: read-only file system");
    assert_eq!(machine.addresses("n0"), ["192.0.2.10/24", "2001:db8::10/64"]);
    assert_eq!(machine.run("hostname"), "after\n");
    // Where nothing is to be written, that is no error.
    let only = json!([interface(MAC[0], &["192.0.2.10/24"], json!({}))]);
    assert_eq!(machine.refusal(&only, 1), "write /etc/hosts: read-only file system");
    fs::write(machine.etc("hosts"), "192.0.2.10 after\n").expect("a file");
    assert_eq!(machine.changes(&only), [""; 0]);
}

#[test]
fn as_root_many_calls_at_once_end_in_one_of_what_they_wanted() {
    if !is_possible("calls at once") {
        return;
    }
    let machine = Machine::running();
    std::thread::scope(|scope| {
        for number in 1..=8 {
            let machine = &machine;
            scope.spawn(move || {
                let addresses = [format!("192.0.{number}.10/24"), format!("192.0.{number}.11/24")];
                let addresses = addresses.each_ref().map(String::as_str);
                let gateway = json!({ "gateway": format!("192.0.{number}.1") });
                machine.changes(&json!([interface(MAC[0], &addresses, gateway)]));
            });
        }
    });
    let found = machine.addresses("n0");
    let number = found[0].split('.').nth(2).expect("a number");
    assert_eq!(found, [format!("192.0.{number}.10/24"), format!("192.0.{number}.11/24")]);
    assert_eq!(machine.routes("n0"), [format!("default 192.0.{number}.1 0")]);
}
