//! What `lodger serve` makes of its files and options: errors with their places, and that what they say is so.

#[path = "support/client.rs"]
mod client;
mod support;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lodger::sys::signal::SIGTERM;

use client::{Running, lodger};
use support::{Folder, PATIENCE, pause, wait_until};

const TIMEOUT: &str = r#"{"Status":104,"StatusMessage":"Connection timeout before reading valid request"}"#;
const TOO_LONG: &str = r#"{"Status":107,"StatusMessage":"The request is longer than the limit of 1024 bytes"}"#;
const PONG: &str = r#"{"Status":0,"StatusMessage":""}"#;
const PING: &str = r#"{"Command":"agent.ping"}"#;

/// A folder in which `lodger serve` is run with files of it.
struct Place(Folder);

impl Place {
    fn new() -> Place {
        Place(Folder::new())
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        fs::write(self.0.path(name), content).expect("a file");
        self.path(name)
    }

    fn path(&self, name: &str) -> String {
        self.0.path(name).display().to_string()
    }

    /// `lodger serve` in this folder, with F in the arguments for it.
    fn serve(&self, arguments: &[&str]) -> Command {
        let folder = self.0.0.display().to_string();
        let arguments = arguments.iter().map(|word| word.replace("F/", &format!("{folder}/")));
        let mut command = lodger(["serve".to_owned()].into_iter().chain(arguments));
        command.current_dir(&self.0.0).env_remove("LODGER_LOG");
        command
    }

    /// The error of an agent that does not start, with F for the folder.
    #[track_caller]
    fn refused(&self, arguments: &[&str]) -> String {
        let done = Running::start(self.serve(arguments)).finish();
        let said = done.stderr().replace(&self.0.0.display().to_string(), "F");
        assert_eq!((done.code, done.stdout().as_str()), (Some(125), ""), "{said}");
        let said = said.strip_suffix('\n').and_then(|said| said.strip_prefix("lodger serve: "));
        said.expect("one line of the command").to_owned()
    }

    /// The error of an agent with this file.
    #[track_caller]
    fn refused_file(&self, content: impl AsRef<[u8]>) -> String {
        self.write("conf", content);
        self.refused(&["--config", "F/conf"])
    }

    /// The error of an agent with this file of Google's.
    #[track_caller]
    fn refused_google(&self, content: impl AsRef<[u8]>) -> String {
        self.write("cfg", content);
        self.refused(&["--google-config", "F/cfg"])
    }

    /// An agent that listens on these sockets of the folder.
    #[track_caller]
    fn start(&self, arguments: &[&str], sockets: &[&str]) -> Running {
        let mut command = self.serve(arguments);
        command.stdout(Stdio::null());
        let running = Running::start_as_is(command);
        for socket in sockets {
            wait_until("the agent listens", || UnixStream::connect(self.0.path(socket)).is_ok());
        }
        running
    }
}

/// Sends bytes, keeps the connection open and reads to its end: what came and how long it took.
fn ask(socket: &Path, bytes: &[u8]) -> (String, Duration) {
    let start = Instant::now();
    let mut stream = UnixStream::connect(socket).expect("the agent accepts");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    // A refused request may not be taken to its end.
    let _ = stream.write_all(bytes);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    (answer, start.elapsed())
}

/// How long an unfinished request is waited for.
#[track_caller]
fn patience_of(socket: &Path) -> Duration {
    let (answer, time) = ask(socket, br#"{"Command":"#);
    assert_eq!(answer, TIMEOUT);
    time
}

#[test]
fn a_wrong_line_is_named_with_file_number_and_key() {
    let place = Place::new();
    for (content, said) in [
        ("\n# x\nrequest-timeout = 10\n", "F/conf:3: request-timeout: \"10\": a unit is missing (ms, s or m)"),
        ("request-timeout = 0s", "F/conf:1: request-timeout: \"0s\": must be above zero"),
        ("request-timeout = 1 day", "F/conf:1: request-timeout: \"1 day\": unknown unit (ms, s or m)"),
        ("request-timeout =", "F/conf:1: request-timeout: \"\": no number with a unit (ms, s or m)"),
        ("command-timeout = x", "F/conf:1: command-timeout: \"x\": no number with a unit (ms, s or m)"),
        ("request-size = 1023", "F/conf:1: request-size: \"1023\": out of range (1 KiB to 64 MiB)"),
        ("request-size = 65 MiB", "F/conf:1: request-size: \"65 MiB\": out of range (1 KiB to 64 MiB)"),
        ("request-size = 1 MB", "F/conf:1: request-size: \"1 MB\": unknown unit (none, KiB or MiB)"),
        ("connections = 0", "F/conf:1: connections: \"0\": no number from 1 to 4096"),
        ("connections = 4097", "F/conf:1: connections: \"4097\": no number from 1 to 4096"),
        ("commands-directory = x", "F/conf:1: commands-directory: \"x\": no absolute path"),
        ("log = loud", "F/conf:1: log: \"loud\": no level (off, error, warn, info, debug, trace are)"),
        ("listen = unix:/a,group=no-such", "F/conf:1: listen: address unix:/a: group no-such: no such group"),
        ("listen = local:", "F/conf:1: listen: address local:: can only be connected to"),
        ("log = warn\r\n\r\nlog = warn\r\n", "F/conf:3: log: already in line 1"),
        ("log = warn\nhello\n", "F/conf:2: \"hello\": neither key = value nor a comment"),
        ("[section]\n", "F/conf:1: \"[section]\": neither key = value nor a comment"),
        ("log = warn\nlog\0= warn", "F/conf:2: a NUL byte, which no text has"),
    ] {
        assert_eq!(place.refused_file(content), said, "{content:?}");
    }
    let refused = place.refused_file("listen = unix:/a,proto=x");
    assert!(refused.starts_with("F/conf:1: listen: address unix:/a: unknown protocol x (agentproto, "), "{refused}");
    let last = if cfg!(feature = "metadata") { ", metadata" } else { "" };
    let keys =
        format!("listen, request-timeout, request-size, connections, commands-directory, command-timeout, log{last}");
    for (content, key) in [("a = b", "a: "), ("Log = warn", "Log: "), ("= b", "")] {
        assert_eq!(place.refused_file(content), format!("F/conf:1: {key}unknown key ({keys} are known)"));
    }
    assert!(place.refused_file("listen = x").starts_with("F/conf:1: listen: address \"x\": a scheme is missing ("));
    assert_eq!(place.refused_file(b"\n\nlog = \xff\n"), "F/conf:3: not UTF-8");
}

#[test]
fn a_file_that_is_none_is_refused() {
    let place = Place::new();
    assert_eq!(place.refused(&["--config", "F/none"]), "F/none: no such file or directory");
    assert_eq!(place.refused(&["--google-config", "F/none"]), "F/none: no such file or directory");
    fs::create_dir(place.0.path("folder")).expect("a folder");
    assert_eq!(place.refused(&["--config", "F/folder"]), "F/folder: is a directory");
    assert_eq!(place.refused(&["--google-config", "F/folder"]), "F/folder: is a directory");
    let large = "#".repeat(1 << 20);
    assert_eq!(
        place.refused_file(format!("{large}#")),
        "F/conf: larger than 1048576 bytes, the limit of a configuration file"
    );
    // At the limit it is read, to the wrong line.
    assert_eq!(place.refused_file(format!("{}\nx", &large[2..])), "F/conf:2: \"x\": neither key = value nor a comment");
    // A device without end is not read to it.
    assert!(place.refused(&["--config", "/dev/zero"]).starts_with("/dev/zero: larger than"));
    place.write("cfg", "[Unstable]\ncommand_monitor_enabled = true\n");
    fs::create_dir(place.0.path("cfg.distro")).expect("a folder");
    assert_eq!(place.refused(&["--google-config", "F/cfg"]), "F/cfg.distro: is a directory");
}

#[test]
fn wrong_options_are_refused() {
    let place = Place::new();
    let none = place.write("conf", "");
    let with = |more: &[&str]| place.refused(&[&["--config", &none][..], more].concat());
    assert_eq!(with(&["--request-timeout", "10"]), "--request-timeout \"10\": a unit is missing (ms, s or m)");
    assert!(with(&["--listen", "unix:/a,proto=x"]).starts_with("address unix:/a: unknown protocol x (agentproto, "));
    assert!(with(&["--commands", ""]).starts_with("--commands : "));
}

#[test]
fn the_time_of_a_request_is_that_of_the_option_else_of_the_file() {
    let place = Place::new();
    // With everything that a file may have, and another system's line ends.
    place.write(
        "conf",
        format!("\u{feff}# first\r\n\r\n listen = unix:{}   # here\r\nrequest-timeout=300ms\r\n", place.path("a")),
    );
    let agent = place.start(&["--config", "F/conf"], &["a"]);
    let time = patience_of(&place.0.path("a"));
    assert!((Duration::from_millis(300)..Duration::from_secs(5)).contains(&time), "{time:?}");
    drop(agent);
    let _agent = place.start(&["--config", "F/conf", "--request-timeout", "700ms"], &["a"]);
    let time = patience_of(&place.0.path("a"));
    assert!((Duration::from_millis(700)..Duration::from_secs(5)).contains(&time), "{time:?}");
}

#[test]
fn a_request_above_the_size_is_refused_and_one_at_it_is_served() {
    let place = Place::new();
    place.write("conf", format!("listen = unix:{}\nrequest-size = 1 KiB\n", place.path("a")));
    let _agent = place.start(&["--config", "F/conf"], &["a"]);
    let of_size = |size: usize| format!("{}{PING}", " ".repeat(size - PING.len()));
    assert_eq!(ask(&place.0.path("a"), of_size(1024).as_bytes()).0, PONG);
    assert_eq!(ask(&place.0.path("a"), of_size(1025).as_bytes()).0, TOO_LONG);
}

#[test]
fn one_connection_above_the_limit_is_told_so() {
    let place = Place::new();
    let address = format!("unix:{},proto=google", place.path("a"));
    // Unfinished requests hold the places until the end of the test.
    place.write("conf", format!("listen = {address}\nconnections = 2\nrequest-timeout = 10m\n"));
    let _agent = place.start(&["--config", "F/conf"], &["a"]);
    // To be told that there is no such command takes a place; agent.ping is answered without one.
    let answer = || ask(&place.0.path("a"), br#"{"Command":"x"}"#).0;
    let full = r#"{"Status":108,"StatusMessage":"more connections than the limit of 2"}"#;
    let mut held = Vec::new();
    wait_until("both places are taken", || {
        let mut connection = UnixStream::connect(place.0.path("a")).expect("the agent accepts");
        connection.write_all(b"{").expect("the agent reads");
        held.push(connection);
        // The agent takes connections in their order: with this answer those before it have a place, or have been told that there is none.
        // One that has ended counts for a moment more, and may be the reason.
        answer();
        held.retain(is_silent);
        held.len() == 2
    });
    // Nothing but the two shall count, and nothing tells when that is so.
    pause(Duration::from_millis(100));
    assert_eq!(answer(), full);
    held.pop();
    wait_until("there is a place again", || answer() != full);
}

/// Whether nothing has come on a connection, nor its end.
fn is_silent(mut connection: &UnixStream) -> bool {
    connection.set_nonblocking(true).expect("a socket");
    connection.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

#[test]
fn a_client_for_whom_there_is_no_place_is_told_so_in_its_own_protocol() {
    let place = Place::new();
    place.write("conf", format!("listen = unix:{}\nconnections = 1\n", place.path("a")));
    let _agent = place.start(&["--config", "F/conf"], &["a"]);
    let full = r#"{"Status":108,"StatusMessage":"more connections than the limit of 1"}"#;
    let mut held = Vec::new();
    wait_until("the place is taken", || {
        // The one before may count for a moment after its answer, and then this is refused.
        let mut connection = UnixStream::connect(place.0.path("a")).expect("the agent accepts");
        let _ = connection.write_all(br#"{"Command":"process.run","argv":["sleep","30"]}"#);
        held.push(connection);
        ask(&place.0.path("a"), br#"{"Command":"process.list"}"#).0 == full
    });
}

#[test]
fn more_connections_than_open_files_allow_are_refused() {
    let place = Place::new();
    place.write("conf", format!("listen = unix:{}\nconnections = 500\n", place.path("a")));
    let mut command = Command::new("sh");
    let program = env!("CARGO_BIN_EXE_lodger");
    let script = format!("ulimit -n 1000; exec {program} serve --config {}", place.path("conf"));
    command.args(["-c", &script]).stdin(Stdio::null());
    let said = format!("{}:2: connections: \"500\": the limit of 1000 open files allows 404", place.path("conf"));
    Running::start(command).finish().bad(125, &[&said]);
}

#[test]
fn listeners_of_options_replace_those_of_the_file() {
    let place = Place::new();
    place.write("conf", format!("listen = unix:{}\nlisten=unix:{},mode=0660\n", place.path("a"), place.path("new/b")));
    let agent = place.start(&["--config", "F/conf"], &["a", "new/b"]);
    let mode = |name: &str| fs::metadata(place.0.path(name)).expect("it is there").mode() & 0o777;
    assert_eq!([mode("a"), mode("new/b")], [0o600, 0o660]);
    agent.signal(SIGTERM);
    assert_eq!(agent.finish().code, Some(0));
    assert!(!place.0.path("a").exists() && !place.0.path("new/b").exists() && place.0.path("new").is_dir());
    let _agent = place.start(&["--config", "F/conf", "--listen", "unix:F/c", "--listen", "unix:F/d"], &["c", "d"]);
    assert!(!place.0.path("a").exists() && !place.0.path("new/b").exists());
}

#[test]
fn a_default_listener_is_for_when_nobody_says_anything() {
    let place = Place::new();
    place.write("conf", format!("listen = unix:{}\n", place.path("a")));
    let agent = place.start(&["--config", "F/conf", "--listen-default", "unix:F/b"], &["a"]);
    assert!(!place.0.path("b").exists());
    drop(agent);
    place.write("conf", "");
    let _agent = place.start(&["--config", "F/conf", "--listen-default", "unix:F/b"], &["b"]);
}

#[test]
fn the_log_has_the_level_of_the_environment_else_of_the_file() {
    let place = Place::new();
    place.write("conf", format!("listen = unix:{}\nlog = info\n", place.path("a")));
    let said = |environment: Option<&str>| {
        let mut command = place.serve(&["--config", "F/conf"]);
        environment.map(|level| command.env("LODGER_LOG", level));
        let agent = Running::start(command);
        wait_until("the agent listens", || UnixStream::connect(place.0.path("a")).is_ok());
        agent.signal(SIGTERM);
        agent.finish().stderr()
    };
    assert!(said(None).contains("lodger info: listening on unix:"));
    assert_eq!(said(Some("error")), "");
}

#[test]
fn a_socket_that_cannot_be_made_is_told_with_its_reason() {
    let place = Place::new();
    let none = place.write("conf", "");
    let with = |socket: &str| place.refused(&["--config", &none, "--listen", &format!("unix:{socket}")]);
    place.write("file", "text");
    assert_eq!(with("F/file"), "listen on unix:F/file: a regular file is there, and stays");
    assert_eq!(with("F/file/a"), "listen on unix:F/file/a: not a directory");
    let long = "x".repeat(200);
    let said = with(&format!("/{long}"));
    assert_eq!(said, format!("listen on unix:/{long}: the path has 201 bytes, and a unix socket's may have 107"));
    let _agent = place.start(&["--config", "F/conf", "--listen", "unix:F/live"], &["live"]);
    assert_eq!(with("F/live"), "listen on unix:F/live: address already in use");
}

#[test]
fn googles_file_says_where_and_how_to_listen() {
    let place = Place::new();
    let (path, gid) = (place.path("run/commands.sock"), fs::metadata(&place.0.0).expect("a folder").gid());
    place.write(
        "cfg",
        format!(
            "; Google's\n[Accounts]\ndeprovision_remove = yes\nno delimiter here\n[ unSTABLE ]\nother = 1\n\
             Command_Monitor_Enabled = True ; on\ncommand_pipe_path: \"{path}\"\r\ncommand_pipe_mode = 660\n\
             command_pipe_group = {gid}\nCOMMAND_REQUEST_TIMEOUT = 1m\n[Daemons]\ncommand_pipe_mode = rwx\n"
        ),
    );
    // The later files win, also over what is wrong in an earlier one.
    place.write("cfg.distro", "[Unstable]\ncommand_request_timeout = never\n");
    place.write("cfg.template", "[Unstable]\ncommand_request_timeout = 0.4s\n");
    let conf = place.write("conf", "request-timeout = 5m\nrequest-size = 1KiB");
    let arguments = ["--config", &conf, "--google-config", "F/cfg"];
    let agent = place.start(&arguments, &["run/commands.sock"]);
    let socket = place.0.path("run/commands.sock");
    let found = fs::metadata(&socket).expect("it is there");
    assert_eq!((found.mode() & 0o777, found.gid()), (0o660, gid));
    let time = patience_of(&socket);
    assert!((Duration::from_millis(400)..Duration::from_secs(5)).contains(&time), "{time:?}");
    // The protocol is pinned: what begins another one is no request.
    assert!(ask(&socket, b"\xa1").0.starts_with(r#"{"Status":102"#));
    drop(agent);
    // Beside other listeners, and with the option's time.
    let more = ["--listen", "unix:F/a", "--request-timeout", "900ms"];
    let _agent = place.start(&[&arguments[..], &more].concat(), &["a", "run/commands.sock"]);
    assert!(patience_of(&socket) >= Duration::from_millis(900));
    assert_eq!(ask(&place.0.path("a"), PING.as_bytes()).0, PONG);
}

#[test]
fn a_directory_in_googles_file_means_two_sockets() {
    let place = Place::new();
    fs::create_dir(place.0.path("run")).expect("a folder");
    fs::set_permissions(place.0.path("run"), fs::Permissions::from_mode(0o711)).expect("it is ours");
    place.write("cfg", format!("[Unstable]\ncommand_monitor_enabled=1\ncommand_pipe_path={}\n", place.path("run")));
    let _agent = place.start(&["--google-config", "F/cfg"], &["run/guestagent", "run/coreplugin"]);
    let mode = |name: &str| fs::metadata(place.0.path(name)).expect("it is there").mode() & 0o777;
    assert_eq!([mode("run"), mode("run/guestagent"), mode("run/coreplugin")], [0o711, 0o770, 0o770]);
    for name in ["run/guestagent", "run/coreplugin"] {
        let mut stream = UnixStream::connect(place.0.path(name)).expect("the agent accepts");
        stream.write_all(PING.as_bytes()).expect("the agent reads");
        stream.shutdown(Shutdown::Write).expect("a socket");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert_eq!(answer, PONG);
    }
}

#[test]
fn wrong_values_of_googles_file_are_named_with_their_places() {
    let place = Place::new();
    for (line, said) in [
        ("command_monitor_enabled = maybe", "command_monitor_enabled: \"maybe\": neither true nor false"),
        ("command_monitor_enabled =", "command_monitor_enabled: \"\": neither true nor false"),
        ("command_pipe_path = run/x", "command_pipe_path: \"run/x\": no absolute path"),
        ("command_pipe_mode = 0o770", "command_pipe_mode: \"0o770\": no octal digits up to 777"),
        ("command_pipe_mode = 1770", "command_pipe_mode: \"1770\": no octal digits up to 777"),
        ("Command_Pipe_Mode =", "Command_Pipe_Mode: \"\": no octal digits up to 777"),
        ("command_pipe_group = no-such", "command_pipe_group: group no-such: no such group"),
        (
            "command_request_timeout = 1500",
            "command_request_timeout: \"1500\": a unit is missing (ns, us, ms, s, m or h)",
        ),
        ("command_request_timeout = 0s", "command_request_timeout: \"0s\": must be above zero"),
        ("command_request_timeout = -1s", "command_request_timeout: \"-1s\": no duration"),
        ("hello", "\"hello\": neither key = value nor a comment"),
        ("[Unstable", "the ] of the section is missing"),
    ] {
        let found = place.refused_google(format!("[Unstable]\n# x\n{line}\n"));
        assert_eq!(found, format!("F/cfg:3: {said}"));
    }
    // Also in the files behind it.
    place.write("cfg.template", "\n[unstable]\ncommand_pipe_mode = 8\n");
    let found = place.refused_google("[Unstable]\ncommand_pipe_mode = 0660\n");
    assert_eq!(found, "F/cfg.template:3: command_pipe_mode: \"8\": no octal digits up to 777");
}

#[test]
fn googles_file_without_a_monitor_needs_another_listener() {
    let place = Place::new();
    let nowhere = "F/cfg: command_monitor_enabled is not true in [Unstable], and nothing else says where to listen";
    for content in ["", "[Unstable]\ncommand_monitor_enabled = off\n", "command_monitor_enabled = true\n"] {
        assert_eq!(place.refused_google(content), nowhere);
    }
    place.write("conf", format!("listen = unix:{}\n", place.path("a")));
    let _agent = place.start(&["--config", "F/conf", "--google-config", "F/cfg"], &["a"]);
    assert_eq!(ask(&place.0.path("a"), PING.as_bytes()).0, PONG);
}

#[test]
fn the_help_names_every_key() {
    let help = client::run(["help", "serve"]).good();
    let help = String::from_utf8(help).expect("text");
    let keys = "listen request-timeout request-size connections commands-directory command-timeout log";
    for key in keys.split(' ') {
        assert!(help.contains(&format!("\n  {key} = ")), "{key} is missing");
    }
    for key in ["command_monitor_enabled", "command_pipe_path", "command_pipe_mode", "command_pipe_group"] {
        assert!(help.contains(key), "{key} is missing");
    }
}
