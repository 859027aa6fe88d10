//! The two programs that process 1 starts: the agent, again and again, and the one of `lodger.exec=`.

use std::ffi::CString;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::init::console::{self, Console};
use crate::init::options::Options;
use crate::sys::boot;
use crate::sys::capability::Capabilities;
use crate::sys::errno::describe;
use crate::sys::file::{EACCES, ENOENT, ENOTDIR, c_string};
use crate::sys::process::{Group, Launch, StartError, Status, Step, start};
use crate::sys::signal;

const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Our own file, also when it was deleted or replaced; the second one is for a guest without /proc.
const AGENT_FILES: [&str; 2] = ["/proc/self/exe", "/init"];

/// First pause before a start, after one start at once; then each is twice as long.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_LONGEST: Duration = Duration::from_secs(10);

/// An agent that lived so long starts afresh at once.
const LONG_LIFE: Duration = Duration::from_secs(10);

/// Exit code for a program that is there and cannot be executed, and for one that is not there, as shells have them.
const NOT_EXECUTABLE: i32 = 126;
const NOT_FOUND: i32 = 127;

/// The environment of both programs.
pub fn environment(options: &Options) -> Vec<CString> {
    let home = if Path::new("/root").is_dir() { "/root" } else { "/" };
    let mut entries = vec![["PATH=", SEARCH_PATH].concat(), ["HOME=", home].concat(), "TERM=linux".to_owned()];
    entries.extend(options.log.as_ref().map(|level| ["LODGER_LOG=", level].concat()));
    entries.iter().filter_map(|entry| c_string(entry).ok()).collect()
}

/// How long to wait before the next start of a program that ends again and again.
#[derive(Default)]
struct BackOff {
    next: Duration,
}

impl BackOff {
    fn pause_after(&mut self, lived: Duration) -> Duration {
        let pause = if lived < LONG_LIFE { self.next } else { Duration::ZERO };
        self.next = (pause * 2).clamp(PAUSE_FIRST, PAUSE_LONGEST);
        pause
    }
}

enum State {
    Runs { pid: i32, since: Instant },
    Waits { until: Instant },
}

/// The agent of this machine, which always runs or is about to.
pub struct Agent {
    argv: Vec<CString>,
    back_off: BackOff,
    state: State,
}

impl Agent {
    /// An agent that is due for its first start.
    pub fn new(options: &Options, now: Instant) -> Agent {
        let listen = options.listen.iter().flat_map(|address| ["--listen", address]);
        let default = options.listen_default.iter().flat_map(|address| ["--listen-default", address]);
        // A program on the console has its line to itself, whoever else says `auto`: the agent's own file may.
        let spare = options.exec.as_ref().map(|_| "--spare-console");
        let words = ["lodger", "serve"].into_iter().chain(spare).chain(listen).chain(default);
        #[cfg(feature = "metadata")]
        let words = words.chain(options.metadata.iter().flat_map(|address| ["--metadata", address]));
        let argv = words.filter_map(|word| c_string(word).ok()).collect();
        Agent { argv, back_off: BackOff::default(), state: State::Waits { until: now } }
    }

    /// When the agent is to be started; `None` while it runs.
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Runs { .. } => None,
            State::Waits { until } => Some(until),
        }
    }

    /// Starts the agent if its time has come.
    pub fn start_if_due(&mut self, now: Instant, env: &[CString], console: &mut Console) {
        if self.deadline().is_none_or(|until| now < until) {
            return;
        }
        self.state = match start_agent(&self.argv, env) {
            Ok(pid) => State::Runs { pid, since: now },
            Err(error) => {
                let pause = self.back_off.pause_after(Duration::ZERO);
                console.line(&format!("start the agent: {}; next try in {} ms", describe(&error), pause.as_millis()));
                State::Waits { until: now + pause }
            }
        };
    }

    /// Takes note of a process that has ended, if it was the agent.
    pub fn ended(&mut self, ended: i32, status: Status, now: Instant, console: &mut Console) {
        let State::Runs { pid, since } = self.state else { return };
        if pid != ended {
            return;
        }
        let pause = self.back_off.pause_after(now.saturating_duration_since(since));
        let how = match status {
            Status::Exited(code) => format!("ended with {code}"),
            Status::Killed(signal) => format!("killed by {}", signal::name(signal)),
        };
        console.line(&format!("agent {how}; next start in {} ms", pause.as_millis()));
        self.state = State::Waits { until: now + pause };
    }
}

fn start_agent(argv: &[CString], env: &[CString]) -> io::Result<i32> {
    let (input, output) = (console::nothing()?, console::for_program()?);
    let descriptors = [(0, input.as_fd()), (1, output.as_fd()), (2, output.as_fd())];
    let mut result = Err(io::Error::from_raw_os_error(ENOENT));
    for file in AGENT_FILES {
        let program = c_string(file)?;
        let launch =
            Launch { program: &program, argv, env: Some(env), descriptors: &descriptors, ..plain(Group::Session) };
        result = start(&launch).map(|child| child.pid).map_err(|failed| failed.error);
        if result.is_ok() {
            break;
        }
    }
    result
}

fn plain(group: Group) -> Launch<'static> {
    Launch {
        program: c"",
        argv: &[],
        env: None,
        cwd: None,
        descriptors: &[],
        group,
        identity: None,
        umask: None,
        rlimits: &[],
        capabilities: Capabilities::default(),
        no_new_privileges: false,
        detached: false,
        death_signal: None,
    }
}

/// Starts the program of `lodger.exec=` on the console: its pid, or the exit code that stands for the start that did not succeed,
/// after a line about it.
pub fn start_exec(words: &[String], env: &[CString], console: &mut Console) -> Result<i32, i32> {
    let Some(name) = words.first() else { return Err(NOT_EXECUTABLE) };
    start_on_console(name, words, env).map_err(|error| {
        console.line(&format!("exec {name}: {}", describe(&error)));
        if is_missing(&error) { NOT_FOUND } else { NOT_EXECUTABLE }
    })
}

/// The program gets a group of its own in a session that *process 1* leads: at the end of a session's leader, be it only an attempt
/// in one directory of the search path, the kernel hangs up the terminal for all who have it open.
fn start_on_console(name: &str, words: &[String], env: &[CString]) -> io::Result<i32> {
    // EPERM when we lead one already.
    let _ = boot::lead_session();
    let terminal = console::terminal().and_then(|terminal| boot::take_terminal(terminal.as_fd()).map(|()| terminal));
    let (terminal, group) = match terminal {
        Ok(terminal) => (terminal, Group::Foreground),
        Err(_) => (console::for_program()?, Group::Own),
    };
    let fd = terminal.as_fd();
    let descriptors = [(0, fd), (1, fd), (2, fd)];
    let argv = words.iter().map(c_string).collect::<io::Result<Vec<_>>>()?;
    let attempt = |path: &CString, group| {
        start(&Launch { program: path, argv: &argv, env: Some(env), descriptors: &descriptors, ..plain(group) })
    };
    let mut worst = io::Error::from_raw_os_error(ENOENT);
    for path in candidates(name) {
        let path = c_string(path)?;
        let result = match attempt(&path, group) {
            Err(StartError { step: Step::Terminal, .. }) => attempt(&path, Group::Own),
            result => result,
        };
        match result {
            Ok(child) => return Ok(child.pid),
            Err(failed) if is_missing(&failed.error) => {}
            // As execvp(3): a file that may not be executed does not hide one behind it in the search.
            Err(failed) if failed.error.raw_os_error() == Some(EACCES) => worst = failed.error,
            Err(failed) => return Err(failed.error),
        }
    }
    Err(worst)
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(ENOENT | ENOTDIR))
}

/// The files that a program's name stands for: itself with a slash in it, otherwise one in each directory of the search path.
fn candidates(name: &str) -> Vec<String> {
    if name.contains('/') {
        return vec![name.to_owned()];
    }
    SEARCH_PATH.split(':').map(|directory| [directory, "/", name].concat()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_and_a_long_life_ends_them() {
        let short = Duration::from_millis(1);
        let mut back_off = BackOff::default();
        let pauses: Vec<_> = (0..10).map(|_| back_off.pause_after(short).as_millis()).collect();
        assert_eq!(pauses, [0, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(back_off.pause_after(LONG_LIFE - short).as_millis(), 10_000);
        assert_eq!(back_off.pause_after(LONG_LIFE).as_millis(), 0);
        assert_eq!(back_off.pause_after(short).as_millis(), 100);
    }

    #[test]
    fn the_agent_gets_each_address_with_its_commas() {
        let options =
            Options { listen: vec!["unix:/a,mode=0600".to_owned(), "vsock:1".to_owned()], ..Options::default() };
        let agent = Agent::new(&options, Instant::now());
        assert_eq!(
            agent.argv,
            [c"lodger", c"serve", c"--listen", c"unix:/a,mode=0600", c"--listen", c"vsock:1"].map(CString::from)
        );
        let auto = Options { listen_default: vec!["auto".to_owned()], ..Options::default() };
        assert_eq!(Agent::new(&auto, Instant::now()).argv[2..], [c"--listen-default", c"auto"].map(CString::from));
    }

    #[test]
    fn the_agent_is_told_when_a_program_has_the_console() {
        let options = Options { exec: Some(vec!["sh".to_owned()]), ..Options::default() };
        let agent = Agent::new(&options, Instant::now());
        // No address: its own file's count.
        assert_eq!(agent.argv, [c"lodger", c"serve", c"--spare-console"].map(CString::from));
    }

    #[test]
    fn an_agent_that_ended_is_due_again_and_others_ends_are_not_its_own() {
        let (start, mut console) = (Instant::now(), Console::nowhere());
        let mut agent = Agent::new(&Options::default(), start);
        assert_eq!(agent.deadline(), Some(start));
        agent.state = State::Runs { pid: 7, since: start };
        agent.ended(8, Status::Exited(0), start, &mut console);
        assert_eq!(agent.deadline(), None);
        agent.ended(7, Status::Killed(9), start, &mut console);
        assert_eq!(agent.deadline(), Some(start));
    }

    #[test]
    fn a_name_with_a_slash_is_not_searched() {
        assert_eq!(candidates("./a"), ["./a"]);
        assert_eq!(candidates("sh").last().map(String::as_str), Some("/bin/sh"));
    }
}
