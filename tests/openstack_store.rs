//! The OpenStack agent and its store: what becomes of requests and responses when either does what it should not, or is not there.
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
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lodger::proto::openstack::report::Report;
use lodger::sys::signal;
use lodger::version::VERSION;
use lodger::xenstore::client::Client;
use lodger::xenstore::message::{DIRECTORY, ERROR, Message, READ, RM, WRITE};
use openstack::{Guest, LODGER, parts, request};
use support::{Folder, cpu_ticks, pause, wait_until};
use xenstore::{Daemon, HOME, Kind};

with_both_daemons! {
    requests_that_vanish_are_not_done,
    ids_may_be_all_that_paths_may_be,
    hundreds_of_responses_are_there_to_be_read,
    old_responses_go_at_the_start_and_what_is_anothers_stays,
    a_request_that_cannot_be_removed_is_done_once,
    requests_that_cannot_be_removed_do_not_keep_out_others,
    a_list_that_is_too_long_for_a_message_ends_nothing,
    a_missing_directory_of_requests_is_made_again,
    a_response_outlives_the_end_of_the_daemon,
    a_daemon_may_come_later,
    requests_are_seen_long_before_the_slow_look,
    the_report_is_there_for_the_host,
    what_the_host_does_not_let_us_report_is_complained_of_once,
    addresses_come_and_go_in_the_report,
}

fn version() -> String {
    request("version", "agent")
}

/// Ids of the form that hosts have.
fn uuid(number: usize) -> String {
    format!("{:08x}-cafe-4000-8000-{number:012x}", number * 0x9e37_79b1 % 0xffff_ffff)
}

fn requests_that_vanish_are_not_done(kind: Kind) {
    let guest = Guest::start(kind, "");
    let mut host = guest.host();
    assert_eq!(parts(&host.ask("before", version())).0, "0");
    guest.bus().close_gate(READ);
    host.post("gone", version());
    guest.bus().wait_at_gate();
    host.remove("data/host/gone");
    guest.bus().open_gate();
    assert_eq!(parts(&host.ask("between", version())).0, "0");
    assert_eq!(host.read("data/guest/gone"), None);
    // Here the agent has made up its mind: it is answered, and nothing is stuck.
    guest.bus().close_gate(RM);
    host.post("late", version());
    guest.bus().wait_at_gate();
    host.remove("data/host/late");
    guest.bus().open_gate();
    assert_eq!(parts(&host.response("late")).0, "0");
    assert_eq!(parts(&host.ask("after", version())).0, "0");
}

fn ids_may_be_all_that_paths_may_be(kind: Kind) {
    let guest = Guest::start(kind, "");
    let mut host = guest.host();
    let long = "x".repeat(200);
    for id in ["system-init", "A", "-", "_", "@a", "0", "returncode", &long, &uuid(7).to_uppercase()] {
        assert_eq!(parts(&host.ask(id, version())), ("0".to_owned(), VERSION.to_owned()), "{id}");
        assert_eq!(host.read(&format!("data/host/{id}")), None, "{id}");
    }
}

fn hundreds_of_responses_are_there_to_be_read(kind: Kind) {
    let guest = Guest::start(kind, "");
    let mut host = guest.host();
    for number in 0..200 {
        let id = uuid(number);
        assert_eq!(parts(&host.ask(&id, version())).1, VERSION, "{number}");
        host.remove(&format!("data/guest/{id}"));
    }
    for number in 200..320 {
        assert_eq!(parts(&host.ask(&uuid(number), version())).1, VERSION, "{number}");
    }
    let (left, most) = (host.list("data/guest").len(), if kind == Kind::C { 54 } else { 82 });
    assert!((8..=most).contains(&left), "{left}");
    assert_eq!(host.list("data/host"), Vec::<String>::new());
    let log = guest.log();
    assert!(!log.contains("is lost") && !log.contains("warn"), "{log}");
}

#[test]
fn with_oxenstored_a_quota_of_nodes_is_lived_with() {
    if !xenstore::is_there(Kind::Ocaml, "a quota of nodes") {
        return;
    }
    let mut guest = Guest::with_daemon(Daemon::start_with(Kind::Ocaml, "quota-maxentity = 25"));
    guest.run("");
    let mut host = guest.host();
    for number in 0..60 {
        assert_eq!(parts(&host.ask(&uuid(number), version())).1, VERSION, "{number}");
    }
    assert!(!guest.log().contains("is lost"), "{}", guest.log());
}

#[test]
fn with_oxenstored_a_response_that_is_too_long_for_its_quota_is_a_short_one() {
    if !xenstore::is_there(Kind::Ocaml, "a quota of bytes") {
        return;
    }
    let mut guest = Guest::with_daemon(Daemon::start_with(Kind::Ocaml, "quota-maxsize = 100"));
    guest.run("");
    let mut host = guest.host();
    assert_eq!(parts(&host.ask("a", version())).0, "0");
    let response = parts(&host.ask("b", format!(r#"{{"name":"{}"}}"#, "x".repeat(80))));
    assert_eq!(response, ("500".to_owned(), "The response is too long for this store".to_owned()));
    assert!(host.read("data/guest/a").is_some(), "nothing had to go for it");
}

fn old_responses_go_at_the_start_and_what_is_anothers_stays(kind: Kind) {
    let mut guest = Guest::without_agent(kind);
    let mut host = guest.host();
    let others = [("note", "hello"), ("number", r#"{"returncode":0,"message":""}"#), ("zz", r#"{"returncode":"0"}"#)];
    for (id, value) in others {
        host.write(&format!("data/guest/{id}"), value);
    }
    for number in 10..30 {
        host.write(&format!("data/guest/r{number}"), r#"{"message": "", "returncode": "0"}"#);
    }
    guest.run("");
    wait_until("the old ones go", || host.list("data/guest").len() == others.len() + 8);
    for (id, value) in others {
        assert_eq!(host.text(&format!("data/guest/{id}")).as_deref(), Some(value));
    }
    // Here both daemons list them in the order of their making.
    assert!((22..30).all(|number| host.read(&format!("data/guest/r{number}")).is_some()));
    assert_eq!(parts(&host.ask("new", version())).0, "0");
}

/// A request that the guest can read and not remove.
fn post_for_ever(guest: &Guest, id: &str) {
    guest.host().post(id, version());
    guest.daemon.set_permissions(&format!("{HOME}/data/host/{id}"), &["n0", "r7"]);
}

fn a_request_that_cannot_be_removed_is_done_once(kind: Kind) {
    let guest = Guest::start(kind, "");
    let mut host = guest.host();
    assert_eq!(parts(&host.ask("before", version())).0, "0");
    guest.bus().close_gate(READ);
    post_for_ever(&guest, "stuck");
    guest.bus().open_gate();
    assert_eq!(parts(&host.response("stuck")).0, "0");
    host.remove("data/guest/stuck");
    assert_eq!(parts(&host.ask("after", version())).0, "0");
    assert_eq!((host.read("data/guest/stuck"), host.list("data/host")), (None, vec!["stuck".to_owned()]));
    // Another request of the same name is another request.
    host.post("stuck", request("features", ""));
    assert!(parts(&host.response("stuck")).1.contains("version"));
}

fn requests_that_cannot_be_removed_do_not_keep_out_others(kind: Kind) {
    let mut guest = Guest::without_agent(kind);
    let mut host = guest.host();
    for number in 0..70 {
        post_for_ever(&guest, &format!("s{number}"));
    }
    guest.run("");
    assert_eq!(parts(&host.ask("z", version())).0, "0");
    pause(Duration::from_millis(100));
    let (before, lines) = (cpu_ticks(guest.pid()), guest.log().len());
    guest.bus().asked();
    pause(Duration::from_millis(300));
    let asked = guest.bus().asked_count();
    // One look may fall into this time: it reads all of them.
    assert!(asked <= 150, "{asked}");
    assert!(cpu_ticks(guest.pid()) - before <= 3 && guest.log().len() - lines < 4000);
    assert_eq!(guest.log().matches("no more of these").count(), 1);
}

fn a_list_that_is_too_long_for_a_message_ends_nothing(kind: Kind) {
    let mut guest = Guest::without_agent(kind);
    let mut host = guest.host();
    (0..130).for_each(|number| host.post(&uuid(number), version()));
    // The C daemon lets a guest have no more than 54.
    let responses = if kind == Kind::C { 54 } else { 130 };
    for number in 500..500 + responses {
        host.write(&format!("data/guest/{}", uuid(number)), r#"{"returncode":"0","message":""}"#);
    }
    guest.run("");
    wait_until("it is told", || guest.log().contains("look for requests: xenstore: E2BIG"));
    assert_eq!(guest.log().matches("xenstore: E2BIG").count(), if kind == Kind::C { 1 } else { 2 });
    (0..130).filter(|number| number % 3 != 0).for_each(|number| host.remove(&format!("data/host/{}", uuid(number))));
    wait_until("the others are done", || host.list("data/host").is_empty());
    assert_eq!(parts(&host.ask("after", version())).0, "0");
}

fn a_missing_directory_of_requests_is_made_again(kind: Kind) {
    let guest = Guest::start(kind, "");
    let mut host = guest.host();
    assert_eq!(parts(&host.ask("before", version())).0, "0");
    host.remove("data/host");
    wait_until("it is made again", || host.list("data").iter().any(|name| name == "host"));
    let begun = Instant::now();
    assert_eq!(parts(&host.ask("after", version())).0, "0");
    host.remove("data/guest");
    assert_eq!(parts(&host.ask("without-responses", version())).0, "0");
    assert!(begun.elapsed() < Duration::from_secs(4), "the watch still works");
}

fn a_response_outlives_the_end_of_the_daemon(kind: Kind) {
    let mut guest = Guest::start(kind, "");
    guest.bus().close_gate(WRITE);
    guest.host().post("a", version());
    guest.bus().wait_at_gate();
    guest.stop_daemon();
    guest.start_daemon();
    let mut host = guest.host();
    assert_eq!(parts(&host.response("a")).0, "0");
    assert_eq!(parts(&host.ask("b", version())).0, "0");
    let log = guest.log();
    assert!(log.matches("connecting again").count() == 1 && log.contains("xenstore: connected"), "{log}");
}

fn a_daemon_may_come_later(kind: Kind) {
    let mut guest = Guest::without_daemon(kind);
    wait_until("the agent says what is missing", || guest.log().contains("no such file"));
    guest.start_daemon();
    assert_eq!(parts(&guest.host().ask("a", version())).0, "0");
    let log = guest.log();
    assert!(log.matches("no such file").count() == 1 && log.contains("xenstore: connected"), "{log}");
}

fn requests_are_seen_long_before_the_slow_look(kind: Kind) {
    let guest = Guest::start(kind, "");
    let mut host = guest.host();
    host.ask("first", version());
    for number in 0..4 {
        pause(Duration::from_millis(60));
        let begun = Instant::now();
        // Two in a row: the second may be told of while the first is done.
        host.post(&format!("a{number}"), version());
        host.post(&format!("b{number}"), version());
        host.response(&format!("a{number}"));
        host.response(&format!("b{number}"));
        assert!(begun.elapsed() < Duration::from_secs(2), "{number}: {:?}", begun.elapsed());
    }
    pause(Duration::from_millis(100));
    guest.bus().asked();
    pause(Duration::from_millis(800));
    let asked = guest.bus().asked();
    assert!(asked.iter().all(|asked| asked.kind == DIRECTORY) && asked.len() <= 1, "{asked:?}");
}

fn the_report_is_there_for_the_host(kind: Kind) {
    let guest = Guest::start(kind, ",report");
    let mut host = guest.host();
    wait_until("all is told", || host.read("data/updated").is_some());
    let major = VERSION.split('.').next().expect("a number");
    assert_eq!(host.text("attr/PVAddons/MajorVersion").as_deref(), Some(major));
    for path in ["data/os_name", "data/os_distro", "data/os_majorver", "data/os_minorver", "data/os_uname"] {
        assert!(host.text(path).is_some_and(|value| !value.is_empty()), "{path}");
    }
    assert!(host.text("data/meminfo_total").is_some_and(|value| value.parse::<u64>().is_ok()));
    assert_eq!(parts(&host.ask("a", version())).0, "0", "and requests are served");
    assert!(!guest.log().contains("warn"), "{}", guest.log());
}

fn what_the_host_does_not_let_us_report_is_complained_of_once(kind: Kind) {
    let mut guest = Guest::without_agent(kind);
    guest.daemon.set_permissions(&format!("{HOME}/attr"), &["n0", "r7"]);
    guest.run(",report");
    let mut host = guest.host();
    wait_until("the rest is told", || host.read("data/updated").is_some());
    host.remove("data/updated");
    guest.bus().hang_up();
    wait_until("it is told anew", || host.read("data/updated").is_some());
    assert!(host.read("data/os_name").is_some() && host.read("data/meminfo_free").is_some());
    assert_eq!(host.list("attr"), Vec::<String>::new());
    let log = guest.log();
    assert_eq!(log.matches("report attr/PVAddons/MajorVersion").count(), 1, "{log}");
    assert_eq!(parts(&host.ask("a", version())).0, "0");
}

fn addresses_come_and_go_in_the_report(kind: Kind) {
    let guest = Guest::without_agent(kind);
    let mut host = guest.host();
    let mut client = Client::open(&guest.bus().socket).expect("it is there");
    // The loopback, which every machine has, stands for a device of Xen.
    let root = guest.folder.path("root");
    let device = root.join("sys/class/net/lo/device");
    fs::create_dir_all(device.parent().expect("one")).expect("folders");
    symlink("../../../vif-3", &device).expect("a link");
    let mut report = Report::of(root.clone());
    report.write(&mut client).expect("a connection");
    assert_eq!(host.text("attr/vif/3/ipv4/0").as_deref(), Some("127.0.0.1"));
    assert!(!report.is_due());
    fs::remove_file(&device).expect("it is there");
    symlink("../../../vif-1", &device).expect("a link");
    assert!(report.is_due());
    report.write(&mut client).expect("a connection");
    assert_eq!(host.text("attr/vif/1/ipv4/0").as_deref(), Some("127.0.0.1"));
    assert_eq!(host.read("attr/vif/3/ipv4/0"), None);
    // The next agent finds what this one has left.
    fs::remove_file(&device).expect("it is there");
    Report::of(root).write(&mut client).expect("a connection");
    assert_eq!(host.read("attr/vif/1/ipv4/0"), None);
}

/// A store that answers as a test says: a request, and how many came before it on its connection. `None` hangs up.
struct Fake {
    folder: Folder,
    ends: Arc<AtomicBool>,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

type Answer = fn(&Message, usize) -> Option<(u32, &'static [u8])>;

impl Fake {
    fn start(answer: Answer) -> Fake {
        let folder = Folder::new();
        let listener = UnixListener::bind(folder.path("sock")).expect("a socket");
        listener.set_nonblocking(true).expect("a mode");
        let (ends, connections, requests) = <(Arc<AtomicBool>, Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let mine = (Arc::clone(&ends), Arc::clone(&connections), Arc::clone(&requests));
        let thread = thread::spawn(move || {
            while !mine.0.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((mut line, _)) => {
                        mine.1.fetch_add(1, Ordering::Relaxed);
                        serve(&mut line, answer, &mine.0, &mine.2);
                    }
                    Err(_) => thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        Fake { folder, ends, connections, requests, thread: Some(thread) }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

fn serve(line: &mut UnixStream, answer: Answer, ends: &AtomicBool, requests: &AtomicUsize) {
    line.set_nonblocking(false).expect("a mode");
    line.set_read_timeout(Some(Duration::from_millis(20))).expect("a time-out");
    let (mut input, mut before) = (Vec::new(), 0);
    while !ends.load(Ordering::Relaxed) {
        let mut piece = [0; 4096];
        match line.read(&mut piece) {
            Ok(0) => return,
            Ok(count) => input.extend_from_slice(&piece[..count]),
            Err(_) => continue,
        }
        while let Some(request) = Message::decode(&mut input).expect("a message") {
            requests.fetch_add(1, Ordering::Relaxed);
            let Some((kind, payload)) = answer(&request, before) else { return };
            before += 1;
            let reply = Message { kind, request_id: request.request_id, payload: payload.to_vec() };
            if line.write_all(&reply.encode()).is_err() {
                return;
            }
        }
    }
}

/// An agent of a fake store, ended with the test, and where its log is.
struct Alone(Child, std::path::PathBuf);

impl Alone {
    fn start(fake: &Fake) -> Alone {
        let path = fake.folder.path("log");
        let log = fs::File::create(&path).expect("a log");
        let address = format!("xenstore:{}", fake.folder.path("sock").display());
        let mut command = Command::new(LODGER);
        command.args(["serve", "--listen", &address]).env("LODGER_LOG", "debug").stdin(Stdio::null()).stderr(log);
        Alone(command.spawn().expect("the agent starts"), path)
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.1).expect("a log")
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_store_that_hangs_up_all_the_time_is_tried_once_a_second_and_named_once() {
    for answer in [
        (|_: &Message, _: usize| None) as Answer,
        |request, before| (before < 3).then_some((request.kind, &b"OK\0"[..])).filter(|_| request.kind != DIRECTORY),
        |request, before| match request.kind {
            DIRECTORY if before == 2 => Some((DIRECTORY, b"")),
            DIRECTORY | READ => None,
            kind => Some((kind, b"OK\0")),
        },
    ] {
        let fake = Fake::start(answer);
        let start = Instant::now();
        let agent = Alone::start(&fake);
        wait_until("it was tried twice", || fake.connections.load(Ordering::Relaxed) >= 2);
        pause(Duration::from_millis(200));
        let log = agent.log();
        let tried = fake.connections.load(Ordering::Relaxed);
        assert!(tried as u64 <= 2 + start.elapsed().as_secs() && cpu_ticks(agent.0.id()) <= 10, "{tried} times: {log}");
        assert!(log.lines().count() <= 3, "{log}");
    }
}

#[test]
fn a_store_that_refuses_everything_is_left_alone_until_the_next_look() {
    let fake = Fake::start(|_, _| Some((ERROR, b"EACCES\0")));
    let mut agent = Alone::start(&fake);
    wait_until("it was asked for requests", || fake.requests.load(Ordering::Relaxed) >= 4);
    pause(Duration::from_millis(400));
    assert_eq!(fake.requests.load(Ordering::Relaxed), 4, "{}", agent.log());
    assert_eq!(agent.log().matches("look for requests").count(), 1);
    signal::send(agent.0.id() as i32, signal::SIGTERM).expect("it runs");
    assert!(agent.0.wait().expect("its end").success());
}

#[test]
fn a_network_is_not_set_from_a_store_that_was_lost() {
    let fake = Fake::start(|request, _| match request.kind {
        DIRECTORY => Some((DIRECTORY, b"fa163e001122\0")),
        _ => None,
    });
    let path = fake.folder.path("sock");
    let output = Command::new(LODGER).args(["openstack", "resetnetwork", "--xenstore"]).arg(path).output();
    let output = output.expect("lodger");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(125) && text.contains("vm-data/networking/fa163e001122"), "{text}");
}

#[test]
fn addresses_that_make_no_sense_are_refused() {
    for (address, why) in [
        ("xenstore:,what", "unknown option what"),
        ("xenstore:/dev/xen/xenbus,no-injectfiles", "unknown option no-injectfiles"),
        ("xenstore:,mode=600", "unknown option mode=600"),
        ("xenstore:,proto=agentproto", "unknown option proto=agentproto"),
    ] {
        let output = Command::new(LODGER).args(["serve", "--listen", address]).stdin(Stdio::null()).output();
        let output = output.expect("lodger");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(125) && text.contains(why), "{address}: {text}");
    }
    let absent =
        Command::new(LODGER).args(["openstack", "resetnetwork"]).env("XENSTORED_PATH", "/none/at/all").output();
    let absent = absent.expect("lodger");
    let text = String::from_utf8_lossy(&absent.stderr);
    assert!(absent.status.code() == Some(125) && text.contains("no such file"), "{text}");
    let connected = Command::new(LODGER).args(["ping", "-c", "1", "--to", "xenstore:"]).output().expect("lodger");
    assert_eq!(connected.status.code(), Some(125), "it can only be listened on");
}
