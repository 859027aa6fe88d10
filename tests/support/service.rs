//! Both sides of the metadata service as processes, and a line between them that can be held and cut.
#![allow(dead_code)] // Each test file uses its own part of this.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use lodger::sys::signal;

use crate::support::{Folder, PATIENCE, cpu_ticks, wait_until};

/// A child that is ended with the test.
pub struct Process(pub Child);

impl Process {
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn signal(&self, number: i32) {
        let _ = signal::send(self.0.id() as i32, number);
    }

    pub fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("our child").is_some()
    }

    pub fn wait(&mut self) -> ExitStatus {
        wait_until("a process ends", || self.has_ended());
        self.0.wait().expect("our child")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A guest that is asked to end ends what it has started.
        self.signal(signal::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(3);
        while Instant::now() < deadline && matches!(self.0.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(5));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn lodger(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lodger"));
    command.arg("metadata").args(words).stdin(Stdio::null());
    command
}

/// `lodger metadata serve` with a control socket, which can be killed and started again at the same place.
pub struct Host {
    process: Option<Process>,
    pub folder: Folder,
    options: Vec<String>,
    command: Vec<String>,
    starts: usize,
}

impl Host {
    /// One whose task is a script. It stays for commands behind the result.
    pub fn start(script: &str) -> Host {
        Host::start_with(&["--linger", "600"], &["sh", "-c", script])
    }

    pub fn start_with(options: &[&str], command: &[&str]) -> Host {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let (options, command) = (owned(options), owned(command));
        let mut host = Host { process: None, folder: Folder::new(), options, command, starts: 0 };
        host.start_again();
        host
    }

    pub fn start_again(&mut self) {
        self.starts += 1;
        let path = |name: &str| self.folder.path(name).display().to_string();
        let mut command = lodger(&["serve", "--env", "TEST_TEXT=Hello World"]);
        command.args(["--listen", &self.address(), "--control", &format!("unix:{}", path("control"))]);
        command.args(["--log", &path(&format!("log-{}", self.starts))]).args(&self.options);
        command.arg("--").args(&self.command).stderr(Stdio::null());
        self.process = Some(Process(command.spawn().expect("the host starts")));
        wait_until("the host listens", || UnixStream::connect(self.folder.path("control")).is_ok());
    }

    /// Ends it without a word.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.0.kill().expect("our child");
        process.wait();
    }

    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("it runs")
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").pid()
    }

    /// Its exit status, which is that of the task.
    pub fn wait(&mut self) -> Option<i32> {
        self.process().wait().code()
    }

    pub fn address(&self) -> String {
        format!("unix:{}", self.folder.path("guest").display())
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path("guest")
    }

    pub fn control(&self) -> PathBuf {
        self.folder.path("control")
    }

    /// The log since it was started last.
    pub fn log(&self) -> String {
        let bytes = fs::read(self.folder.path(&format!("log-{}", self.starts))).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// A command for it, with all of its streams in pipes.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = lodger(words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env("LODGER_METADATA_CONTROL", format!("unix:{}", self.control().display()));
        command
    }

    /// Runs a command with this input to its end.
    pub fn run(&self, words: &[&str], input: &[u8]) -> Output {
        let mut child = self.command(words).spawn().expect("the command starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        let input = input.to_vec();
        // A command that wants no input may have ended before it.
        let writer = thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().expect("an end");
        writer.join().expect("the writer ends");
        output
    }
}

/// `lodger metadata run`, with what it says in a file.
pub struct Guest {
    pub process: Process,
    said: PathBuf,
    _folder: Folder,
}

impl Guest {
    pub fn start(host: &str, options: &[&str]) -> Guest {
        Guest::start_through(&[], host, options)
    }

    /// The same, with a program and arguments in front that become it in the end.
    pub fn start_through(wrapper: &[&str], host: &str, options: &[&str]) -> Guest {
        let folder = Folder::new();
        let said = folder.path("said");
        let plain = lodger(&["run", "--host", host]);
        let words: Vec<_> = [plain.get_program()].into_iter().chain(plain.get_args()).collect();
        let mut all = wrapper.iter().map(std::ffi::OsStr::new).chain(words);
        let mut command = Command::new(all.next().expect("a program"));
        command.args(all).args(options).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(&said).expect("a file"));
        Guest { process: Process(command.spawn().expect("the guest starts")), said, _folder: folder }
    }

    /// All that it has said.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.said).expect("a file")
    }

    /// Nothing went wrong as far as it knows.
    pub fn assert_no_errors(&self) {
        let said = self.said();
        assert!(!said.contains("lodger error"), "{said}");
    }

    /// What part of one processor it takes during such a time, in percent.
    pub fn percent_during(&self, time: Duration) -> u64 {
        let (start, before) = (Instant::now(), cpu_ticks(self.process.pid()));
        crate::support::pause(time);
        // A tick has 10 ms.
        (cpu_ticks(self.process.pid()) - before) * 1000 / (start.elapsed().as_millis() as u64).max(1)
    }
}

/// A direction on the line.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    FromGuest,
    FromHost,
}

struct Rule {
    begins: String,
    way: Way,
    after: usize,
}

struct Cable {
    /// What the guest has said first.
    head: Mutex<String>,
    guest: TcpStream,
    host: UnixStream,
    is_cut: AtomicBool,
}

#[derive(Default)]
struct Shared {
    rules: Mutex<Vec<Rule>>,
    cables: Mutex<Vec<Arc<Cable>>>,
    held: AtomicUsize,
    over: AtomicBool,
}

/// An address of the network that leads to a unix socket.
pub struct Line {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Line {
    pub fn to(socket: &Path) -> Line {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let (shared, target) = (Arc::<Shared>::default(), socket.to_owned());
        let all = Arc::clone(&shared);
        thread::spawn(move || {
            for guest in listener.incoming().flatten() {
                if all.over.load(Ordering::SeqCst) {
                    return;
                }
                // Nobody there: what the guest sees is a connection that ends.
                let Ok(host) = UnixStream::connect(&target) else { continue };
                let cable = Arc::new(Cable { head: Mutex::default(), guest, host, is_cut: AtomicBool::new(false) });
                all.cables.lock().expect("cables").push(Arc::clone(&cable));
                for way in [Way::FromGuest, Way::FromHost] {
                    let (shared, cable) = (Arc::clone(&all), Arc::clone(&cable));
                    thread::spawn(move || carry(&shared, &cable, way));
                }
            }
        });
        Line { address, shared }
    }

    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Lets so many bytes pass of each connection that begins like this, and holds the rest.
    pub fn hold(&self, begins: &str, way: Way, after: usize) {
        self.shared.rules.lock().expect("rules").push(Rule { begins: begins.to_owned(), way, after });
    }

    /// Waits until something is held.
    pub fn wait_until_held(&self) {
        wait_until("something is held", || self.shared.held.load(Ordering::SeqCst) > 0);
    }

    /// Holds nothing any more; what was held goes on where it is not cut.
    pub fn release(&self) {
        self.shared.rules.lock().expect("rules").clear();
    }

    /// Cuts all connections that begin like this; how many.
    pub fn cut(&self, begins: &str) -> usize {
        let mut cables = self.shared.cables.lock().expect("cables");
        let before = cables.len();
        cables.retain(|cable| {
            let is_other = !cable.head.lock().expect("a head").starts_with(begins);
            if !is_other {
                cable.cut();
            }
            is_other
        });
        before - cables.len()
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.release();
        self.shared.over.store(true, Ordering::SeqCst);
        self.cut("");
        // The one who accepts looks.
        let _ = TcpStream::connect(self.address);
    }
}

impl Cable {
    fn cut(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
        let _ = self.guest.shutdown(Shutdown::Both);
        let _ = self.host.shutdown(Shutdown::Both);
    }
}

fn carry(shared: &Shared, cable: &Cable, way: Way) {
    let (mut block, mut passed) = (vec![0; 16 << 10], 0);
    loop {
        let result = match way {
            Way::FromGuest => (&cable.guest).read(&mut block),
            Way::FromHost => (&cable.host).read(&mut block),
        };
        let Ok(count @ 1..) = result else { return cable.cut() };
        if way == Way::FromGuest && passed == 0 {
            *cable.head.lock().expect("a head") = String::from_utf8_lossy(&block[..count.min(200)]).into_owned();
        }
        let write = |bytes: &[u8]| match way {
            Way::FromGuest => (&cable.host).write_all(bytes),
            Way::FromHost => (&cable.guest).write_all(bytes),
        };
        let mut sent = 0;
        if let Some(after) = limit(shared, cable, way)
            && passed + count > after
        {
            sent = after.saturating_sub(passed);
            if write(&block[..sent]).is_err() {
                return cable.cut();
            }
            shared.held.fetch_add(1, Ordering::SeqCst);
            while limit(shared, cable, way).is_some() && !cable.is_cut.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(2));
            }
            shared.held.fetch_sub(1, Ordering::SeqCst);
        }
        if cable.is_cut.load(Ordering::SeqCst) || write(&block[sent..count]).is_err() {
            return cable.cut();
        }
        passed += count;
    }
}

fn limit(shared: &Shared, cable: &Cable, way: Way) -> Option<usize> {
    let rules = shared.rules.lock().expect("rules");
    let head = cable.head.lock().expect("a head");
    rules.iter().find(|rule| rule.way == way && head.starts_with(&rule.begins)).map(|rule| rule.after)
}

/// Reproducible noise.
pub struct Noise(u64);

impl Noise {
    /// From the variable LODGER_SEED, else another one each time; it is printed.
    pub fn new() -> Noise {
        let time =
            || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |time| time.as_nanos());
        let seed = std::env::var("LODGER_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| time() as u64) | 1;
        let _ = writeln!(std::io::stderr(), "LODGER_SEED={seed}");
        Noise(seed)
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut all = Vec::with_capacity(count + 8);
        while all.len() < count {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            all.extend_from_slice(&self.0.to_le_bytes());
        }
        all.truncate(count);
        all
    }
}

/// Whether a process is there, and no zombie, by a number in text.
pub fn lives(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// What a file says as soon as it is there; it must be moved into its place.
pub fn read_soon(path: &Path) -> String {
    wait_until("a file appears", || path.exists());
    fs::read_to_string(path).expect("a file")
}

/// Waits for a child that is killed with the test, for as long as anything may take.
pub fn output_within(child: Child, time: Duration) -> Output {
    let pid = child.id();
    let waiting = thread::spawn(move || child.wait_with_output().expect("an end"));
    let deadline = Instant::now() + time.min(PATIENCE);
    while !waiting.is_finished() {
        if Instant::now() >= deadline {
            let _ = signal::send(pid as i32, signal::SIGKILL);
            panic!("a command has not ended within {time:?}");
        }
        thread::sleep(Duration::from_millis(5));
    }
    waiting.join().expect("the one who waits ends")
}
