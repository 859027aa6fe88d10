//! The commands of the OpenStack agent, asked for by a host through real daemons of XenStore.
#![cfg(feature = "openstack")]

#[path = "support/openstack.rs"]
mod openstack;
mod support;
#[path = "support/xenbus.rs"]
mod xenbus;
#[macro_use]
#[path = "support/xenstore.rs"]
mod xenstore;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use lodger::sys::file;
use lodger::version::VERSION;
use openstack::{Guest, LODGER, agree, is_possible, parts, request, root_hash, sealed, verifies};
use support::{cpu_ticks, pause, wait_until};
use xenstore::{HOME, Kind};

with_both_daemons! {
    requests_that_are_none_get_upstreams_words,
    a_poison_request_is_answered_once_and_goes,
    version_and_features_are_told,
    responses_come_through_xenstore_read_as_they_are,
    files_are_injected,
    every_file_that_was_replaced_is_kept,
    a_host_that_may_not_inject_files_is_told_so,
    as_root_a_network_becomes_what_the_store_says,
    as_root_a_network_that_cannot_be_set_is_a_failure,
    as_root_a_password_is_set_end_to_end,
    as_root_a_bad_password_is_refused_and_the_key_kept,
    as_root_wrapped_base_64_comes_through_xenstore_write,
    as_root_a_command_that_waits_holds_up_nothing_else,
    as_root_the_end_of_the_agent_ends_a_command_that_waits,
}

fn requests_that_are_none_get_upstreams_words(kind: Kind) {
    let guest = Guest::start(kind, "");
    let mut host = guest.host();
    let malformed = ("500", "Request is malformed");
    for (id, data, (code, message)) in [
        ("empty", &b""[..], malformed),
        ("nul", b"\0", malformed),
        ("text", b"nonsense", malformed),
        ("cut", b"{\"name\":\"version\"", malformed),
        ("nameless", b"{\"value\":\"agent\"}", ("500", "Request is missing 'name' key")),
        ("unknown", b"{\"name\":\"agentupdate\"}", ("404", "No such agent command 'agentupdate'")),
        ("kms", b"{\"name\":\"kmsactivate\",\"value\":{\"a\":[]}}", ("404", "No such agent command 'kmsactivate'")),
        ("null", b"{\"name\":null}", ("404", "No such agent command 'None'")),
        ("array", b"{\"name\":[]}", ("500", "The name of a command is no text")),
        ("object", b"{\"name\":{}}", ("500", "The name of a command is no text")),
        ("list", b"[1]", malformed),
        ("number", b"7", malformed),
        ("string", b"\"version\"", malformed),
        ("exception", b"{\"name\":\"injectfile\"}", ("500", "No comma between path and content")),
    ] {
        let response = host.ask(id, data);
        assert_eq!(parts(&response), (code.to_owned(), message.to_owned()), "{id}");
    }
    assert_eq!(host.list("data/host"), Vec::<String>::new());
}

fn a_poison_request_is_answered_once_and_goes(kind: Kind) {
    let guest = Guest::start(kind, "");
    let mut host = guest.host();
    // What the daemon takes from a host: oxenstored no more than 2048.
    let room = if kind == Kind::C { 3900 } else { 2000 };
    let nested = ["[".repeat(room / 2), "]".repeat(room / 2)].concat();
    let in_value = format!(r#"{{"name":"version","value":{}1{}}}"#, "[".repeat(900), "]".repeat(900));
    let long_name = format!(r#"{{"name":"{}"}}"#, "\u{1}\"\\é"[..1].repeat(room - 20));
    let poison: [(&str, Vec<u8>); 10] = [
        ("garbage", (0..room).map(|byte| (byte * 131 % 251) as u8).collect()),
        ("zeros", vec![0; room]),
        ("bytes", vec![0xff; room]),
        ("nested", nested.into_bytes()),
        ("value", in_value.into_bytes()),
        ("name", long_name.into_bytes()),
        ("quotes", b"\"\\\"\\".to_vec()),
        ("control", b"{\"name\":\"\x01\x02\x1b[31m\n\",\"value\":\"\x07\"}".to_vec()),
        ("utf-8", b"{\"name\":\"\xc3\x28\"}".to_vec()),
        ("digits", format!(r#"{{"name":"keyinit","value":{}}}"#, "9".repeat(room - 50)).into_bytes()),
    ];
    for (id, data) in &poison {
        let (code, message) = parts(&host.ask(id, data));
        assert!(code == "500" || code == "404", "{id}: {code} {message}");
        host.remove(&format!("data/guest/{id}"));
    }
    assert_eq!(parts(&host.ask("after", request("version", ""))).0, "0", "the agent lives");
    host.remove("data/guest/after");
    guest.bus().asked();
    let before = cpu_ticks(guest.pid());
    pause(Duration::from_millis(400));
    assert!(cpu_ticks(guest.pid()) - before <= 2, "the agent rests");
    // One look may fall into this time.
    let asked = guest.bus().asked();
    assert!(asked.len() <= 2, "{asked:?}");
    assert_eq!((host.list("data/host"), host.list("data/guest")), (Vec::new(), Vec::new()), "nothing came again");
    assert!(!guest.log().contains('\u{1b}'), "the log is for terminals, too");
}

fn version_and_features_are_told(kind: Kind) {
    let guest = Guest::start(kind, "");
    let mut host = guest.host();
    assert_eq!(parts(&host.ask("system-init", request("version", "agent"))), ("0".to_owned(), VERSION.to_owned()));
    let (code, features) = parts(&host.ask("b", request("features", "agent")));
    assert_eq!(code, "0");
    let mut names: Vec<&str> = features.split(',').collect();
    names.sort_unstable();
    assert_eq!(names, ["features", "injectfile", "keyinit", "password", "resetnetwork", "version"]);
}

fn responses_come_through_xenstore_read_as_they_are(kind: Kind) {
    let guest = Guest::start(kind, "");
    let mut host = guest.host();
    // The tool undoes the escapes: what arrives are a quote, a backslash and bytes that are no ASCII in the name.
    let written = r#"{"name":"a\\\"b\\\\c\\u00e9 \xc3\xa9","value":""}"#;
    let path = format!("{HOME}/data/host/odd");
    assert!(guest.daemon.tool("xenstore-write", &[&path, written]).status.success());
    let response = host.response("odd");
    let long = host.ask("long", request(&"x".repeat(1990), ""));
    assert_eq!(long.len(), 1999);
    for (id, response) in [("odd", response), ("long", long)] {
        assert_eq!(parts(&response).0, "404", "{response}");
        let read = guest.daemon.tool("xenstore-read", &[&format!("{HOME}/data/guest/{id}")]);
        assert_eq!(String::from_utf8_lossy(&read.stdout), format!("{response}\n"));
    }
}

fn files_are_injected(kind: Kind) {
    let guest = Guest::start(kind, "");
    let mut host = guest.host();
    let mut inject = |id: &str, both: &[u8]| {
        let response = host.ask(id, request("injectfile", &BASE64.encode(both)));
        parts(&response)
    };
    let folder = guest.folder.path("new/.ssh");
    let place = folder.join("authorized_keys");
    let content: Vec<u8> = [b"\n,", &(0..=255).collect::<Vec<u8>>()[..], b",\n"].concat();
    let both = [place.to_str().expect("text").as_bytes(), b",", &content].concat();
    assert_eq!(inject("a", &both), ("0".to_owned(), String::new()));
    assert_eq!(fs::read(&place).expect("a file"), content);
    let mode = |path| fs::metadata(path).expect("it").permissions().mode() & 0o7777;
    assert_eq!((mode(&place), mode(&folder)), (0o600, 0o700));
    fs::set_permissions(&place, fs::Permissions::from_mode(0o640)).expect("a mode");
    assert_eq!(inject("b", format!("{},two", place.display()).as_bytes()).0, "0");
    assert_eq!((fs::read(&place).expect("a file"), mode(&place)), (b"two".to_vec(), 0o640));
    let names = fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("it").file_name());
    let backup = names.map(|name| name.to_string_lossy().into_owned()).find(|name| name.contains(".bak."));
    assert_eq!(fs::read(folder.join(backup.expect("the old one is kept"))).expect("a file"), content);
    for (id, both, why) in [
        ("c", &b"/no/comma"[..], "No comma"),
        ("d", b"relative/path,x", "does not begin at the root"),
        ("e", b",x", "does not begin at the root"),
        ("f", b"/tmp/a\0b,x", "NUL"),
        ("g", b"/,x", "names no file"),
        ("h", b"/proc/none/at/all,x", "/proc/none"),
        ("i", b"/tmp/\xff,x", "UTF-8"),
        ("j", b"/proc,x", "is no regular file"),
        ("k", b"/dev/null,x", "is no regular file"),
    ] {
        let (code, message) = inject(id, both);
        assert!(code == "500" && message.contains(why), "{id}: {message}");
    }
    let lines = inject("l", format!("{}/a\nlodger error: forged,x", place.display()).as_bytes());
    assert_eq!(lines.0, "500");
    assert!(!guest.log().contains("\nlodger error: forged"), "a path is no line of the log");
    let (code, message) = parts(&host.ask("m", request("injectfile", "a")));
    assert_eq!((code.as_str(), message.as_str()), ("500", "Error doing base64 decoding of data"));
    assert!(!guest.log().contains("two"), "contents are not told");
}

fn every_file_that_was_replaced_is_kept(kind: Kind) {
    let guest = Guest::start(kind, "");
    let mut host = guest.host();
    let place = guest.folder.path("file");
    // All within a few hundredths of a second, which the names of the old ones have.
    (0..6).for_each(|number| host.post(&number.to_string(), inject_request(&place, &number.to_string())));
    (0..6).for_each(|number| assert_eq!(parts(&host.response(&number.to_string())).0, "0"));
    let entries = fs::read_dir(&guest.folder.0).expect("a folder").map(|entry| entry.expect("it").path());
    let files = entries.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("file")));
    let mut contents: Vec<String> = files.map(|path| fs::read_to_string(path).expect("text")).collect();
    contents.sort_unstable();
    assert_eq!(contents, ["0", "1", "2", "3", "4", "5"]);
}

fn inject_request(place: &Path, content: &str) -> String {
    request("injectfile", &BASE64.encode(format!("{},{content}", place.display()).as_bytes()))
}

fn a_host_that_may_not_inject_files_is_told_so(kind: Kind) {
    // As an option of the address, and of the command for all addresses.
    for (option, word) in [(",no-injectfile", None), ("", Some("--no-injectfile"))] {
        let mut guest = Guest::without_agent(kind);
        guest.run_with(option, word);
        let mut host = guest.host();
        let (_, features) = parts(&host.ask("a", request("features", "")));
        assert!(features.contains("version") && !features.contains("injectfile"), "{features}");
        let place = guest.folder.path("injected");
        let response = parts(&host.ask("b", inject_request(&place, "x")));
        assert_eq!(response, ("404".to_owned(), "No such agent command 'injectfile'".to_owned()));
        assert!(!place.exists());
    }
}

/// What nova writes for one interface.
const INTERFACE: &str = r#"{"label":"public","mac":"fa:16:3e:00:11:22","gateway":"192.0.2.1","broadcast":"192.0.2.255","ips":[{"ip":
"192.0.2.10","enabled":"1","netmask":"255.255.255.0","gateway":"192.0.2.1"}],"gateway_v6":"2001:db8::1","ip6s":[{"ip":"2001:db8::10",
"enabled":"1","netmask":64,"gateway":"2001:db8::1"}],"routes":[{"route":"10.0.0.0","netmask":"255.0.0.0","gateway":"192.0.2.2"}],
"dns":["192.0.2.53"]}"#;

fn as_root_a_network_becomes_what_the_store_says(kind: Kind) {
    if !is_possible("a network that is set", "ip") {
        return;
    }
    let guest = Guest::with_etc(kind, SHADOW);
    let mut host = guest.host();
    let inside = |words: &str| {
        let pid = guest.pid().to_string();
        let output = Command::new("nsenter").args(["-t", &pid, "-n", "-u"]).args(words.split(' ')).output();
        let output = output.expect("nsenter");
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    wait_until("the agent serves", || guest.bus().asked_count() > 0);
    inside("ip link add eth0 address fa:16:3e:00:11:22 type veth peer name eth1");
    inside("ip link set eth1 up");
    host.write("vm-data/networking/fa163e001122", INTERFACE);
    host.write("vm-data/hostname", "box1");
    let done = ("0".to_owned(), String::new());
    assert_eq!(parts(&host.ask("a", request("resetnetwork", ""))), done);
    let addresses = inside("ip -o addr show dev eth0");
    assert!(addresses.contains("inet 192.0.2.10/24") && addresses.contains("inet6 2001:db8::10/64"), "{addresses}");
    let routes = inside("ip route");
    assert!(
        routes.contains("default via 192.0.2.1 dev eth0") && routes.contains("10.0.0.0/8 via 192.0.2.2"),
        "{routes}"
    );
    assert!(inside("ip -6 route").contains("default via 2001:db8::1 dev eth0"));
    assert_eq!(inside("uname -n"), "box1\n");
    let file = |name: &str| fs::read_to_string(guest.etc(name)).expect("a file");
    assert!(file("resolv.conf").contains("nameserver 192.0.2.53\n") && file("hosts").contains("192.0.2.10 box1\n"));
    assert_eq!(file("hostname"), "box1\n");
    // The name goes from the store after the first boot, and stays in the guest.
    host.remove("vm-data/hostname");
    assert_eq!(parts(&host.ask("b", request("resetnetwork", ""))), done);
    assert_eq!((inside("uname -n"), file("hostname")), ("box1\n".to_owned(), "box1\n".to_owned()));
    // One that none can be does not stand in the way of the network.
    for bad in ["my_box", &"a".repeat(64)] {
        inside("ip addr flush dev eth0");
        host.write("vm-data/hostname", bad);
        assert_eq!(parts(&host.ask(&format!("c{}", bad.len()), request("resetnetwork", ""))), done);
        assert!(inside("ip -o addr show dev eth0").contains("inet 192.0.2.10/24"));
        assert_eq!((inside("uname -n"), file("hostname")), ("box1\n".to_owned(), "box1\n".to_owned()));
        assert!(guest.log().contains(&format!("vm-data/hostname: {bad:?} is no name")));
    }
    assert!(guest.log().contains("192.0.2.10/24"), "changes are told in the log");
}

fn as_root_a_network_that_cannot_be_set_is_a_failure(kind: Kind) {
    if !is_possible("a network that cannot be set", "true") {
        return;
    }
    // Its own network in any case: this machine's is none of a test's business.
    let guest = Guest::with_etc(kind, SHADOW);
    let mut host = guest.host();
    let done = ("0".to_owned(), String::new());
    assert_eq!(parts(&host.ask("a", request("resetnetwork", ""))), done, "nothing is wanted");
    host.write("vm-data/networking/fa163e001122", r#"{"mac":"FA:16:3E:00:11:22","ips":[]}"#);
    let unknown = ("500".to_owned(), "Unknown interface MAC FA:16:3E:00:11:22".to_owned());
    let empty = ("500".to_owned(), "No IPs found for interface".to_owned());
    assert_eq!(parts(&host.ask("empty", request("resetnetwork", ""))), empty);
    let address = r#"[{"ip":"192.0.2.10","netmask":"255.255.255.0","enabled":"1"}]"#;
    host.write("vm-data/networking/fa163e001122", format!(r#"{{"mac":"FA:16:3E:00:11:22","ips":{address}}}"#));
    assert_eq!(parts(&host.ask("unknown", request("resetnetwork", ""))), unknown);
    host.write("vm-data/networking/fa163e001122", "nonsense");
    let (code, message) = parts(&host.ask("b", request("resetnetwork", "")));
    assert!(code == "500" && message.contains("vm-data/networking/fa163e001122"), "{code} {message}");
    guest.daemon.set_permissions(&format!("{HOME}/vm-data/networking"), &["n0"]);
    let (code, message) = parts(&host.ask("c", request("resetnetwork", "")));
    assert!(code == "500" && message.contains("EACCES"), "what cannot be read is not absent: {code} {message}");
    let command = |path: &str| {
        let output = Command::new(LODGER).args(["openstack", "resetnetwork", "--xenstore", path]).output();
        let output = output.expect("lodger");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, text) = command(guest.folder.path("none").to_str().expect("text"));
    assert!(code == Some(125) && text.contains("no such file"), "{code:?} {text}");
}

const SHADOW: &str = "root:!:19000:0:99999:7:::\n";

fn as_root_a_password_is_set_end_to_end(kind: Kind) {
    if !is_possible("a password from end to end", "openssl") {
        return;
    }
    let guest = Guest::with_etc(kind, SHADOW);
    let mut host = guest.host();
    for (id, digest, password) in [("a", "md5", "S3cret: pässwörd"), ("b", "sha256", "Other s3cret")] {
        let phrase = agree(&mut host, &format!("key-{id}"));
        let secret = sealed(&format!("{password}\n"), &phrase, &["-A", "-md", digest]);
        let response = host.ask(id, request("password", &secret));
        assert_eq!(parts(&response), ("0".to_owned(), String::new()), "{digest}");
        let hash = root_hash(&guest.etc("shadow"));
        assert!(hash.starts_with("$6$") && verifies(password, &hash), "{digest}: {hash}");
        let again = host.ask(&format!("{id}-again"), request("password", &secret));
        assert_eq!(parts(&again), ("500".to_owned(), "Password without key exchange".to_owned()), "{digest}");
        let log = guest.log();
        let secrets = [password, &hash, &phrase, &secret];
        assert!(secrets.iter().all(|secret| !log.contains(*secret)), "{log}");
    }
}

fn as_root_a_bad_password_is_refused_and_the_key_kept(kind: Kind) {
    if !is_possible("bad passwords", "openssl") {
        return;
    }
    let guest = Guest::with_etc(kind, SHADOW);
    let mut host = guest.host();
    let mut password = |id: &str, value: &str| parts(&host.ask(id, request("password", value)));
    let failed = |message: &str| ("500".to_owned(), message.to_owned());
    assert_eq!(password("a", "AAAA"), failed("Password without key exchange"));
    assert_eq!(password("b", "AAA"), failed("Couldn't decode base64 data"));
    for (id, key) in [("c", "0"), ("d", "x"), ("e", "-1"), ("f", "162259276829213363391578010288127")] {
        assert_eq!(parts(&host.ask(id, request("keyinit", key))).0, "500", "{key}");
    }
    let phrase = agree(&mut host, "key");
    let mut password = |id: &str, value: &str| parts(&host.ask(id, request("password", value)));
    assert_eq!(password("g", "AAA"), failed("Couldn't decode base64 data"));
    assert_eq!(password("h", "AAAA"), failed("The password data is no whole number of 16 bytes"));
    let unpadded = sealed("sixteen bytes ..", &phrase, &["-A", "-md", "md5", "-nopad"]);
    assert_eq!(password("i", &unpadded), failed("Invalid password data received"));
    let last_byte_alone = sealed("fourteen bytes\u{1}\u{2}", &phrase, &["-A", "-md", "md5", "-nopad"]);
    assert_eq!(password("j", &last_byte_alone), failed("Invalid password data received"));
    for (id, empty) in [("k", ""), ("l", "\n"), ("m", "\n\n")] {
        let (code, message) = password(id, &sealed(empty, &phrase, &["-A", "-md", "md5"]));
        assert!(code == "500" && message.contains("is empty"), "{message}");
    }
    let (code, message) = password("n", &sealed("a\nb\n", &phrase, &["-A", "-md", "md5"]));
    assert!(code == "500" && message.contains("line break"), "{message}");
    assert_eq!(fs::read_to_string(guest.etc("shadow")).expect("it"), SHADOW, "nothing was changed");
    assert_eq!(password("z", &sealed("good\n", &phrase, &["-A", "-md", "md5"])).0, "0", "the key was kept");
    assert!(verifies("good", &root_hash(&guest.etc("shadow"))));
}

fn as_root_wrapped_base_64_comes_through_xenstore_write(kind: Kind) {
    if !is_possible("wrapped base 64", "openssl") {
        return;
    }
    let guest = Guest::with_etc(kind, SHADOW);
    let mut host = guest.host();
    let phrase = agree(&mut host, "key");
    let password = "long enough for two lines of base 64, ".repeat(3);
    let secret = sealed(&format!("{password}\n"), &phrase, &["-md", "md5"]);
    assert!(secret.contains('\n'));
    // As agent-client.py: JSON's escape, which the tool undoes.
    let written = request("password", &secret.replace('\n', "\\n"));
    assert!(guest.daemon.tool("xenstore-write", &[&format!("{HOME}/data/host/a"), &written]).status.success());
    assert_eq!(parts(&host.response("a")).0, "0");
    assert!(verifies(&password, &root_hash(&guest.etc("shadow"))));
}

/// A password whose setting waits for the lock of the password files.
fn waiting_password(guest: &Guest) -> fs::File {
    let lock = fs::File::create(guest.etc(".pwd.lock")).expect("a lock file");
    assert!(file::lock_whole(lock.as_fd()).expect("a lock"));
    let mut host = guest.host();
    let phrase = agree(&mut host, "key");
    host.post("slow", request("password", &sealed("x\n", &phrase, &["-A", "-md", "md5"])));
    wait_until("the request is taken", || host.read("data/host/slow").is_none());
    lock
}

fn as_root_a_command_that_waits_holds_up_nothing_else(kind: Kind) {
    if !is_possible("a command that waits", "openssl") {
        return;
    }
    let guest = Guest::with_etc(kind, SHADOW);
    let lock = waiting_password(&guest);
    let mut host = guest.host();
    host.post("next", request("version", ""));
    let to = format!("unix:{}", guest.folder.path("sock").display());
    let begun = Instant::now();
    let pinged = Command::new(LODGER).args(["ping", "-c", "1", "--to", &to]).stdout(Stdio::null()).status();
    assert!(pinged.expect("lodger").success(), "the other listener is served");
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(host.list("data/guest"), ["key"], "one request at a time");
    drop(lock);
    assert_eq!(parts(&host.response("slow")).0, "0");
    assert_eq!(parts(&host.response("next")).0, "0");
}

fn as_root_the_end_of_the_agent_ends_a_command_that_waits(kind: Kind) {
    if !is_possible("the end of a command that waits", "openssl") {
        return;
    }
    let mut guest = Guest::with_etc(kind, SHADOW);
    let _lock = waiting_password(&guest);
    let mut host = guest.host();
    host.post("later", request("version", ""));
    let begun = Instant::now();
    assert!(guest.stop_agent().success());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(parts(&host.response("slow")).0, "500", "what was begun is answered");
    assert_eq!(fs::read_to_string(guest.etc("shadow")).expect("it"), SHADOW);
    assert_eq!(host.list("data/host"), ["later"], "what was not begun waits for the next agent");
}
