//! The command monitor as a library: names, starting and closing, and handlers that do what they like.

mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::Duration;

use lodger::monitor::{Error, Monitor};
use lodger::transport::Addr;

use support::{Folder, PATIENCE};

const NOT_FOUND: &[u8] = br#"{"Status":101,"StatusMessage":"Could not find a handler for the requested command"}"#;

fn address(folder: &Folder) -> Addr {
    format!("unix:{}", folder.path("commands.sock").display()).parse().expect("an address")
}

fn send(addr: &Addr, request: &str) -> Vec<u8> {
    Monitor::send(addr, request.as_bytes(), PATIENCE).expect("a response")
}

fn answers(text: &'static str) -> impl Fn(&[u8]) -> Result<Vec<u8>, String> {
    move |_| Ok(text.as_bytes().to_vec())
}

#[test]
fn names_are_registered_once_and_unregistered_once() {
    let monitor = Monitor::default();
    assert!(monitor.register("a", answers("1")).is_ok());
    let taken = monitor.register("a", answers("2")).map_err(|error| error.to_string());
    assert_eq!(taken, Err("cmd a is already handled".to_owned()));
    let folder = Folder::new();
    monitor.start(&address(&folder)).expect("it listens");
    assert_eq!(send(&address(&folder), r#"{"Command":"a"}"#), b"1", "the first handler stays");
    assert_eq!(monitor.unregister("a"), Ok(()));
    assert_eq!(send(&address(&folder), r#"{"Command":"a"}"#), NOT_FOUND);
    let unknown = monitor.unregister("a").map_err(|error| error.to_string());
    assert_eq!(unknown, Err("cmd a is not registered".to_owned()));
    assert!(monitor.register("a", answers("3")).is_ok());
    assert_eq!(send(&address(&folder), r#"{"Command":"a"}"#), b"3");
    assert!(monitor.register("", answers("nameless")).is_ok());
    assert_eq!(send(&address(&folder), "{}"), b"nameless");
}

#[test]
fn a_handler_may_have_the_name_of_a_command_that_is_not_there() {
    let (monitor, folder) = (Monitor::default(), Folder::new());
    let slow = |_: &[u8]| {
        thread::sleep(Duration::from_millis(100));
        Ok::<_, String>(thread::current().name().unwrap_or_default().as_bytes().to_vec())
    };
    monitor.register("agent.ping", slow).expect("a new name");
    monitor.start(&address(&folder)).expect("it listens");
    // In a thread of its own, and not where connections are accepted.
    assert_eq!(send(&address(&folder), r#"{"Command":"agent.ping"}"#), b"");
}

#[test]
fn a_monitor_starts_once_and_again_after_it_was_closed() {
    let (monitor, folder) = (Monitor::default(), Folder::new());
    let addr = address(&folder);
    assert!(matches!(monitor.close(), Err(Error::NotListening)));
    monitor.start(&addr).expect("it listens");
    let twice = monitor.start(&addr).map_err(|error| error.to_string());
    assert_eq!(twice, Err("server already listening".to_owned()));
    assert!(matches!(Monitor::default().start(&addr), Err(Error::Listen(_))), "somebody else listens there");
    assert_eq!(send(&addr, "{}"), NOT_FOUND);
    monitor.close().expect("it listened");
    assert!(!folder.path("commands.sock").exists());
    assert!(matches!(Monitor::send(&addr, b"{}", PATIENCE), Err(Error::Send { .. })));
    monitor.start(&addr).expect("it listens again");
    assert_eq!(send(&addr, "{}"), NOT_FOUND);
    drop(monitor);
    assert!(!folder.path("commands.sock").exists(), "a dropped monitor is closed");
}

#[test]
fn a_handler_that_panics_answers_and_harms_nothing() {
    let (monitor, folder) = (Monitor::default(), Folder::new());
    monitor.register("panic", |_| -> Result<Vec<u8>, String> { panic!("no <luck>") }).expect("a new name");
    monitor.register("fine", answers("fine")).expect("a new name");
    monitor.start(&address(&folder)).expect("it listens");
    let expected = br#"{"Status":105,"StatusMessage":"the command handler panicked: no \u003cluck\u003e"}"#;
    for _ in 0..3 {
        assert_eq!(send(&address(&folder), r#"{"Command":"panic"}"#), expected);
        assert_eq!(send(&address(&folder), r#"{"Command":"fine"}"#), b"fine");
    }
}

#[test]
fn handlers_register_and_unregister_while_others_run() {
    let (monitor, folder) = (Arc::new(Monitor::default()), Folder::new());
    let weak = Arc::downgrade(&monitor);
    let replace = move |_: &[u8]| {
        let monitor = weak.upgrade().ok_or("it has gone")?;
        monitor.unregister("replace").map_err(|_| "it was replaced before")?;
        monitor.register("replace", answers("the new one")).map_err(|_| "somebody was faster")?;
        Ok::<_, &str>(b"replaced".to_vec())
    };
    monitor.register("replace", replace).expect("a new name");
    let (both, others) = (Arc::new(Barrier::new(2)), address(&folder));
    let meet = Arc::clone(&both);
    let wait = move |_: &[u8]| {
        meet.wait();
        Ok::<_, String>(b"met".to_vec())
    };
    monitor.register("meet", wait).expect("a new name");
    monitor.start(&others).expect("it listens");
    let waiting = thread::spawn(move || send(&others, r#"{"Command":"meet"}"#));
    assert_eq!(send(&address(&folder), r#"{"Command":"replace"}"#), b"replaced");
    assert_eq!(send(&address(&folder), r#"{"Command":"replace"}"#), b"the new one");
    both.wait();
    assert_eq!(waiting.join().expect("an answer"), b"met");
}

#[test]
fn a_closed_monitor_leaves_silent_clients_and_lets_a_handler_end() {
    let (monitor, folder) = (Monitor::default(), Folder::new());
    let (began, begun) = mpsc::channel();
    let slow = move |_: &[u8]| {
        let _ = began.send(());
        thread::sleep(Duration::from_millis(100));
        Ok::<_, String>(b"late".to_vec())
    };
    monitor.register("slow", slow).expect("a new name");
    monitor.start(&address(&folder)).expect("it listens");
    let connect = || UnixStream::connect(folder.path("commands.sock")).expect("it listens");
    let (mut silent, mut half, mut busy) = (connect(), connect(), connect());
    half.write_all(b"{\"Command\"").expect("it reads");
    busy.write_all(br#"{"Command":"slow"}"#).expect("it reads");
    begun.recv_timeout(PATIENCE).expect("the handler runs");
    monitor.close().expect("it listened");
    let read = |socket: &mut UnixStream| {
        let mut bytes = Vec::new();
        socket.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        // One that is left with a request unread sees a reset.
        let _ = socket.read_to_end(&mut bytes);
        bytes
    };
    assert_eq!(read(&mut busy), b"late");
    assert_eq!((read(&mut silent), read(&mut half)), (Vec::new(), Vec::new()));
}
