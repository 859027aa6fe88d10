//! The agent that is measured: the static release binary on a unix socket.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lodger::client::Connection;
use lodger::transport;

/// How long the agent may take to listen.
const PATIENCE: Duration = Duration::from_secs(10);

/// A program that does nothing but end with 0: one segment, `mov eax, 60; xor edi, edi; syscall`.
const TRUE: [&[u8]; 4] = [
    b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0\x78\0\x40\0\0\0\0\0\x40\0\0\0\0\0\0\0",
    b"\0\0\0\0\0\0\0\0\0\0\0\0\x40\0\x38\0\x01\0\0\0\0\0\0\0\x01\0\0\0\x05\0\0\0\0\0\0\0\0\0\0\0",
    b"\0\0\x40\0\0\0\0\0\0\0\x40\0\0\0\0\0\x81\0\0\0\0\0\0\0\x81\0\0\0\0\0\0\0\0\x10\0\0\0\0\0\0",
    b"\xb8\x3c\0\0\0\x31\xff\x0f\x05",
];

/// A running agent and its folder; both end with this.
pub struct Agent {
    pub binary: PathBuf,
    child: Child,
    folder: PathBuf,
}

/// The static release binary, built now; or why there is none.
pub fn binary() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("LODGER_STATIC") {
        return Ok(PathBuf::from(path));
    }
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.current_dir(manifest).args(["build", "--quiet", "--release", "--bin", "lodger", "--target", &target]);
    if !build.status().is_ok_and(|status| status.success()) {
        return Err(format!("no static binary: cargo build --release --target {target} fails (rustup target add?)"));
    }
    let built = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| manifest.join("target"), PathBuf::from);
    Ok(built.join(target).join("release/lodger"))
}

impl Agent {
    /// Starts an agent in a folder named after its purpose, and waits until it listens.
    pub fn start(binary: PathBuf, purpose: &str) -> Agent {
        let folder = std::env::temp_dir().join(format!("lodger-bench-{}-{purpose}", std::process::id()));
        fs::create_dir(&folder).expect("a new folder");
        let program = folder.join("true");
        fs::write(&program, TRUE.concat()).expect("the folder can be written");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("it is our file");
        let address = format!("unix:{}", folder.join("agent.sock").display());
        let mut command = Command::new(&binary);
        let child =
            command.args(["serve", "--listen", &address]).stdin(Stdio::null()).spawn().expect("the agent starts");
        let agent = Agent { binary, child, folder };
        let deadline = Instant::now() + PATIENCE;
        while fs::metadata(agent.folder.join("agent.sock")).is_err() {
            assert!(Instant::now() < deadline, "the agent does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        agent
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A file of that name in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("agent.sock")
    }

    pub fn connect(&self) -> Connection {
        let address = format!("unix:{}", self.socket().display()).parse().expect("an address");
        Connection::open(transport::connect(&address).expect("the agent listens"))
    }

    /// The program that only ends. `None` on a processor that it was not written for.
    pub fn program(&self) -> Option<PathBuf> {
        cfg!(target_arch = "x86_64").then(|| self.folder.join("true"))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
