//! Real daemons of XenStore on a machine without Xen, and what a host does with them. `xenbus` has the guest's side.
#![allow(dead_code)] // Each test file uses its own part of this.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use lodger::sys::process::effective_user;
use lodger::xenstore::client::{Client, Error};
use lodger::xenstore::message::{ERROR, Message};

use crate::support::{Folder, PATIENCE, wait_until};

/// The guest, and its directory.
pub const DOMAIN: u32 = 7;
pub const HOME: &str = "/local/domain/7";

/// Types of messages that only a host sends.
const INTRODUCE: u32 = 8;
const SET_PERMS: u32 = 14;

/// The daemons that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    C,
    Ocaml,
}

/// Where `tests/xenstore/fetch.sh` puts them.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("build/xen")
}

fn libraries() -> PathBuf {
    root().join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH))
}

/// Whether a test can run with this daemon; says why not, where that is so.
pub fn is_there(kind: Kind, test: &str) -> bool {
    let namespace = || {
        let status = Command::new("unshare").args([namespaces(), "true"]).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    let program = root().join(program(kind));
    let fetched = program.is_file() && root().join("xen_shim.so").is_file();
    let missing = match kind {
        _ if !fetched => "no daemon of XenStore (tests/xenstore/fetch.sh)",
        Kind::Ocaml if !namespace() => "no mount namespace for its socket",
        _ => return true,
    };
    let text = format!("{test} with {kind:?} was skipped: there is {missing}");
    assert!(std::env::var_os("LODGER_REQUIRE_GUEST").is_none_or(|value| value.is_empty()), "{text}");
    // Straight to the descriptor: the harness would keep the words of a test that passes to itself.
    let _ = writeln!(std::io::stderr(), "{text}");
    false
}

/// Makes two tests of each function: one with the C daemon, one with oxenstored.
macro_rules! with_both_daemons {
    ($($(#[$attribute:meta])* $name:ident,)*) => {
        mod with_the_c_daemon {
            $($(#[$attribute])* #[test]
            fn $name() {
                if $crate::xenstore::is_there($crate::xenstore::Kind::C, stringify!($name)) {
                    super::$name($crate::xenstore::Kind::C);
                }
            })*
        }
        mod with_oxenstored {
            $($(#[$attribute])* #[test]
            fn $name() {
                if $crate::xenstore::is_there($crate::xenstore::Kind::Ocaml, stringify!($name)) {
                    super::$name($crate::xenstore::Kind::Ocaml);
                }
            })*
        }
    };
}

fn program(kind: Kind) -> &'static str {
    match kind {
        Kind::C => "usr/lib/xen-4.17/bin/xenstored",
        Kind::Ocaml => "usr/lib/xen-4.17/bin/oxenstored",
    }
}

fn namespaces() -> &'static str {
    if effective_user() == 0 { "-m" } else { "-rm" }
}

/// A daemon in a folder of its own, ended with the test.
#[derive(Debug)]
pub struct Daemon {
    pub kind: Kind,
    pub folder: Folder,
    /// Lines of oxenstored's configuration.
    quotas: String,
    child: Option<Child>,
}

impl Daemon {
    pub fn start(kind: Kind) -> Daemon {
        Daemon::start_with(kind, "")
    }

    /// With lines of oxenstored's configuration, which count before the usual ones.
    pub fn start_with(kind: Kind, quotas: &str) -> Daemon {
        let mut daemon = Daemon::absent(kind);
        daemon.quotas = quotas.to_owned();
        daemon.run();
        daemon
    }

    /// One that is not started yet.
    pub fn absent(kind: Kind) -> Daemon {
        Daemon { kind, folder: Folder::new(), quotas: String::new(), child: None }
    }

    /// Where it listens, for hosts.
    pub fn socket(&self) -> PathBuf {
        self.folder.path("socket")
    }

    /// Starts it, with an empty store.
    pub fn run(&mut self) {
        let folder = &self.folder;
        fs::write(folder.path("dom0.ring"), [0; 4096]).expect("a ring");
        fs::write(folder.path("xsd_port"), "100").expect("a port");
        let _ = fs::remove_file(self.socket());
        let mut command = match self.kind {
            Kind::C => {
                let mut command = Command::new(root().join(program(self.kind)));
                command.arg("-N").arg("--pid-file").arg(folder.path("pid")).env("XENSTORED_RUNDIR", &folder.0);
                command.env("LD_PRELOAD", root().join("xen_shim.so"));
                command
            }
            Kind::Ocaml => self.oxenstored(),
        };
        let log = File::create(folder.path("log")).expect("a log");
        command.env("XENSHIM_DIR", &folder.0).env("LD_LIBRARY_PATH", libraries());
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        self.child = Some(command.spawn().expect("the daemon starts"));
        wait_until("the daemon listens", || UnixStream::connect(self.socket()).is_ok());
    }

    /// Its socket is compiled in, so its /run is another one.
    fn oxenstored(&self) -> Command {
        let folder = self.folder.0.display();
        let quotas = ["maxentity = 1000", "maxsize = 2048", "maxwatch = 100", "path-max = 1024"];
        let name = |line: &str| format!("quota-{}", line.split(' ').next().unwrap_or_default());
        let usual = quotas.iter().filter(|line| !self.quotas.contains(&name(line)));
        let usual: String = usual.map(|line| format!("quota-{line}\n")).collect();
        let config = format!(
            "pid-file = {folder}/pid\nquota-activate = true\n{usual}{}\nquota-transaction = 10\npersistent = false\n\
             xenstored-log-file = {folder}/own-log\naccess-log-file = {folder}/access-log\n\
             xenstored-kva = {folder}/dom0.ring\nxenstored-port = {folder}/xsd_port\n",
            self.quotas
        );
        fs::write(self.folder.path("conf"), config).expect("a configuration");
        let script = "mount --make-rprivate / && mount -t tmpfs none /run && mkdir /run/xenstored && \
                      mount --bind \"$1\" /run/xenstored && LD_PRELOAD=$2 exec \"$3\" --no-fork --config-file \"$1/conf\"";
        let mut command = Command::new("unshare");
        command.args([namespaces(), "sh", "-c", script, "sh"]).arg(&self.folder.0);
        command.arg(root().join("xen_shim.so")).arg(root().join(program(self.kind)));
        command
    }

    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// What a toolstack makes for a guest, which is then known to the daemon. Its ring must be there.
    pub fn introduce(&self) {
        let own = format!("n{DOMAIN}");
        let shown = format!("r{DOMAIN}");
        let (own, shown) = (&[&*own][..], &["n0", &*shown][..]);
        for (path, permissions) in [
            ("", shown),
            ("/data", own),
            ("/data/host", own),
            ("/data/guest", own),
            ("/attr", own),
            ("/vm-data", shown),
            ("/vm-data/networking", shown),
        ] {
            self.host().client.make_directory(&format!("{HOME}{path}")).expect("dom0 may");
            self.set_permissions(&format!("{HOME}{path}"), permissions);
        }
        self.ask(INTRODUCE, &[&DOMAIN.to_string(), "1", "1"]).expect("dom0 may");
    }

    /// As xenstore-chmod: the owner first, such as n7 or r0.
    pub fn set_permissions(&self, path: &str, permissions: &[&str]) {
        let texts: Vec<&str> = [path].into_iter().chain(permissions.iter().copied()).collect();
        self.ask(SET_PERMS, &texts).expect("dom0 may");
    }

    /// One request of a host, of texts.
    pub fn ask(&self, kind: u32, texts: &[&str]) -> Result<Vec<u8>, String> {
        let mut line = UnixStream::connect(self.socket()).expect("it listens");
        line.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let payload: Vec<u8> = texts.iter().flat_map(|text| [text.as_bytes(), b"\0"].concat()).collect();
        let message = Message::of(kind, 1, &[&payload]).expect("short");
        line.write_all(&message.encode()).expect("it reads");
        let mut input = Vec::new();
        loop {
            let mut piece = [0; 4096];
            let count = line.read(&mut piece).expect("an answer");
            assert!(count > 0, "the daemon hung up");
            input.extend_from_slice(&piece[..count]);
            while let Some(message) = Message::decode(&mut input).expect("a message") {
                match message.kind {
                    ERROR => return Err(String::from_utf8_lossy(&message.payload).trim_end_matches('\0').to_owned()),
                    found if found == kind => return Ok(message.payload),
                    _ => {}
                }
            }
        }
    }

    /// A connection of the host.
    pub fn host(&self) -> Host {
        Host { client: Client::open(&self.socket()).expect("the daemon listens") }
    }

    /// One of the real tools, such as xenstore-write.
    pub fn tool(&self, name: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(root().join("usr/bin").join(name));
        command.args(arguments).env("LD_LIBRARY_PATH", libraries());
        command.env("XENSTORED_PATH", self.socket()).stdin(Stdio::null());
        command.output().expect("the tool starts")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}

/// dom0. Its paths are those below the guest's directory.
#[derive(Debug)]
pub struct Host {
    pub client: Client,
}

impl Host {
    pub fn write(&mut self, path: &str, value: impl AsRef<[u8]>) {
        let result = self.client.write(&format!("{HOME}/{path}"), value.as_ref());
        result.unwrap_or_else(|error| panic!("write {path}: {error}"));
    }

    pub fn read(&mut self, path: &str) -> Option<Vec<u8>> {
        self.client.read_if_there(&format!("{HOME}/{path}")).unwrap_or_else(|error| panic!("read {path}: {error}"))
    }

    pub fn text(&mut self, path: &str) -> Option<String> {
        self.read(path).map(|value| String::from_utf8(value).expect("text"))
    }

    pub fn list(&mut self, path: &str) -> Vec<String> {
        match self.client.list(&format!("{HOME}/{path}")) {
            Err(error) if error.is("ENOENT") => Vec::new(),
            result => result.unwrap_or_else(|error| panic!("list {path}: {error}")),
        }
    }

    pub fn remove(&mut self, path: &str) {
        self.client.remove(&format!("{HOME}/{path}")).unwrap_or_else(|error| panic!("remove {path}: {error}"));
    }

    /// Puts a request there.
    pub fn post(&mut self, id: &str, request: impl AsRef<[u8]>) {
        self.write(&format!("data/host/{id}"), request);
    }

    /// The response to a request, which is waited for.
    pub fn response(&mut self, id: &str) -> String {
        let mut found = None;
        wait_until(&format!("there is a response to {id}"), || {
            found = self.text(&format!("data/guest/{id}"));
            found.is_some()
        });
        found.expect("it was waited for")
    }

    /// A request and its response.
    pub fn ask(&mut self, id: &str, request: impl AsRef<[u8]>) -> String {
        self.post(id, request);
        self.response(id)
    }
}

/// The name of a refusal; what was refused is for the message.
pub fn refusal<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    match result {
        Err(Error::Refused(name)) => name,
        other => panic!("no refusal: {other:?}"),
    }
}
