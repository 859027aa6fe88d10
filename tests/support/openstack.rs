//! A guest with the OpenStack agent: a real daemon, the guest's way to it, and the agent.
#![allow(dead_code)] // Each test file uses its own part of this.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use lodger::password::agreement::Agreement;
use lodger::sys::process::effective_user;
use lodger::sys::signal;
use serde_json::Value;

use crate::support::{Folder, wait_until};
use crate::xenbus::Bus;
use crate::xenstore::{Daemon, Host, Kind};

pub const LODGER: &str = env!("CARGO_BIN_EXE_lodger");

/// Responses must be shorter than this.
pub const RESPONSE_END: usize = 2000;

/// A daemon, the way to it, and the agent.
pub struct Guest {
    // The agent goes first, then its way.
    agent: Option<Child>,
    pub bus: Option<Bus>,
    pub daemon: Daemon,
    /// Its log, a unix socket that it may serve, an `/etc` that it may have.
    pub folder: Folder,
}

impl Guest {
    /// Everything, with these options behind the address, each with a comma before it.
    pub fn start(kind: Kind, options: &str) -> Guest {
        let mut guest = Guest::without_agent(kind);
        guest.run(options);
        guest
    }

    pub fn without_agent(kind: Kind) -> Guest {
        Guest::with_daemon(Daemon::start(kind))
    }

    /// One with this daemon, which runs, and without an agent.
    pub fn with_daemon(daemon: Daemon) -> Guest {
        let bus = Some(Bus::start(&daemon));
        Guest { agent: None, bus, daemon, folder: Folder::new() }
    }

    /// Only an agent, which finds nothing until `start_daemon`.
    pub fn without_daemon(kind: Kind) -> Guest {
        let mut guest = Guest { agent: None, bus: None, daemon: Daemon::absent(kind), folder: Folder::new() };
        guest.run("");
        guest
    }

    /// One whose `/etc` is a folder of its own with this shadow file, and whose network and host name are its own, too. Needs root.
    pub fn with_etc(kind: Kind, shadow: &str) -> Guest {
        let mut guest = Guest::without_agent(kind);
        fs::create_dir(guest.folder.path("etc")).expect("a folder");
        fs::write(guest.etc("passwd"), "root:x:0:0:root:/root:/bin/sh\n").expect("a file");
        fs::write(guest.etc("shadow"), shadow).expect("a file");
        fs::set_permissions(guest.etc("shadow"), Permissions::from_mode(0o640)).expect("a mode");
        let script = format!(
            "mount --make-rprivate / && mount --bind '{}' /etc && exec '{LODGER}' serve --listen '{}' --listen 'unix:{}'",
            guest.etc("").display(),
            guest.address(),
            guest.folder.path("sock").display(),
        );
        guest.spawn(Command::new("unshare").args(["-m", "-n", "-u", "sh", "-c", &script]));
        guest
    }

    pub fn etc(&self, name: &str) -> PathBuf {
        self.folder.path("etc").join(name)
    }

    pub fn address(&self) -> String {
        format!("xenstore:{}", self.daemon.folder.path("guest").display())
    }

    pub fn run(&mut self, options: &str) {
        self.run_with(options, None);
    }

    /// With another word for the agent's command line.
    pub fn run_with(&mut self, options: &str, word: Option<&str>) {
        let address = self.address() + options;
        self.spawn(Command::new(LODGER).args(["serve", "--listen", &address]).args(word));
    }

    fn spawn(&mut self, command: &mut Command) {
        let log = File::options().create(true).append(true).open(self.folder.path("log")).expect("a log");
        command.env("LODGER_LOG", "trace").stdin(Stdio::null()).stderr(log);
        self.agent = Some(command.spawn().expect("the agent starts"));
    }

    pub fn pid(&self) -> u32 {
        self.agent.as_ref().expect("it runs").id()
    }

    pub fn bus(&self) -> &Bus {
        self.bus.as_ref().expect("it is there")
    }

    pub fn host(&self) -> Host {
        self.daemon.host()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path("log")).expect("a log")
    }

    /// Ends the agent as a service manager does, and waits for that.
    pub fn stop_agent(&mut self) -> ExitStatus {
        self.ask_agent_to_stop();
        self.agent_end()
    }

    pub fn ask_agent_to_stop(&self) {
        signal::send(self.pid() as i32, signal::SIGTERM).expect("it runs");
    }

    pub fn agent_end(&mut self) -> ExitStatus {
        let mut agent = self.agent.take().expect("it runs");
        let mut status = None;
        wait_until("the agent ends", || {
            status = agent.try_wait().expect("our child");
            status.is_some()
        });
        status.expect("it ended")
    }

    /// Ends the daemon, with all that it knew.
    pub fn stop_daemon(&mut self) {
        self.daemon.stop();
        self.bus = None;
    }

    pub fn start_daemon(&mut self) {
        self.daemon.run();
        self.bus = Some(Bus::start(&self.daemon));
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(agent) = &mut self.agent {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

/// Whether an agent can have an `/etc` of its own, and there is `tool`; says why not.
pub fn is_possible(test: &str, tool: &str) -> bool {
    let works = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        let status = command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    let there = Command::new(tool).arg("-v").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let possible = effective_user() == 0 && works("unshare", &["-m", "-n", "-u", "true"]) && there.is_ok();
    if !possible {
        let _ = writeln!(std::io::stderr(), "{test} was skipped: it needs root, namespaces and {tool}");
    }
    possible
}

/// Code and message of a response, which is what a response must be.
pub fn parts(response: &str) -> (String, String) {
    assert!(response.len() < RESPONSE_END, "{} bytes", response.len());
    assert!(response.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b'\\'), "{response}");
    let value: Value = serde_json::from_str(response).unwrap_or_else(|error| panic!("{error}: {response}"));
    assert_eq!(value.as_object().map(|members| members.len()), Some(2), "{response}");
    let text = |name: &str| value[name].as_str().expect("a text").to_owned();
    (text("returncode"), text("message"))
}

/// A request of a name and a text.
pub fn request(name: &str, value: &str) -> String {
    format!(r#"{{"name":"{name}","value":"{value}"}}"#)
}

/// A host's side of the key exchange.
pub fn host_key() -> Agreement {
    let mut private = [0; 16];
    private[6..].copy_from_slice(b"0123456789");
    Agreement::of(private)
}

/// Agrees on a phrase with the agent, as a host does.
pub fn agree(host: &mut Host, id: &str) -> String {
    let key = host_key();
    let (code, message) = parts(&host.ask(id, request("keyinit", &key.public().to_string())));
    assert_eq!(code, "D0", "{message}");
    key.secret(message.parse().expect("a decimal number")).to_string()
}

/// What a host makes of a password, by the program that hosts use; `options` such as -A and -md.
pub fn sealed(password: &str, phrase: &str, options: &[&str]) -> String {
    let mut command = Command::new("openssl");
    command.args(["enc", "-aes-128-cbc", "-a", "-nosalt", "-pass", &format!("pass:{phrase}")]).args(options);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("openssl");
    child.stdin.take().expect("a pipe").write_all(password.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("its end");
    assert!(output.status.success(), "openssl {options:?}");
    String::from_utf8(output.stdout).expect("base 64").trim_end().to_owned()
}

/// The hash of root in a shadow file.
pub fn root_hash(shadow: &Path) -> String {
    let text = fs::read_to_string(shadow).expect("a shadow file");
    let line = text.lines().find_map(|line| line.strip_prefix("root:")).expect("a line of root");
    line.split(':').next().unwrap_or_default().to_owned()
}

/// Whether the system's own crypt(3) takes the password for that hash.
pub fn verifies(password: &str, hash: &str) -> bool {
    let script = "exit(crypt($ARGV[0], $ARGV[1]) eq $ARGV[1] ? 0 : 1)";
    Command::new("perl").args(["-e", script, password, hash]).status().expect("perl").success()
}
