//! An agent at the guest's end of a line, and commands at the host's.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::client::{Done, Running, lodger};
use crate::line::{Line, Way, Weather};
use crate::support::{Folder, PATIENCE, children, descriptors, pause, status, wait_until};

/// A line with an agent, which ends with this.
pub struct Rig {
    pub line: Line,
    pub folder: Folder,
    agent: Child,
}

impl Rig {
    pub fn start(weather: Weather) -> Rig {
        Rig::on(Line::start(weather), Folder::new())
    }

    /// The host's end is a unix socket, as QEMU has it.
    pub fn start_with_socket(weather: Weather) -> Rig {
        let folder = Folder::new();
        Rig::on(Line::start_with_socket(weather, &folder.path("chardev")), folder)
    }

    fn on(line: Line, folder: Folder) -> Rig {
        let agent = start_agent(&line);
        Rig { line, folder, agent }
    }

    pub fn agent(&self) -> u32 {
        self.agent.id()
    }

    /// Ends the agent as nothing else does.
    pub fn kill_agent(&mut self) {
        self.agent.kill().expect("our child");
        self.agent.wait().expect("our child");
    }

    pub fn restart_agent(&mut self) {
        self.kill_agent();
        self.agent = start_agent(&self.line);
    }

    /// A command that goes over the line.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = lodger(words);
        command.env("LODGER_TO", self.line.host_address());
        command
    }

    pub fn run(&self, words: &[&str]) -> Done {
        Running::start(self.command(words)).finish()
    }

    /// Runs a script in the guest.
    pub fn shell(&self, script: &str) -> Done {
        self.run(&["exec", "--", "sh", "-c", script])
    }

    /// Sends bytes through `cat` in the guest.
    pub fn cat(&self, bytes: &[u8]) -> Done {
        let mut command = self.command(&["exec", "--", "cat"]);
        command.stdin(Stdio::piped());
        let mut running = Running::start(command);
        let (mut stdin, bytes) = (running.stdin(), bytes.to_vec());
        let writer = std::thread::spawn(move || drop(std::io::Write::write_all(&mut stdin, &bytes)));
        let done = running.finish();
        writer.join().expect("the writer ends");
        done
    }

    /// The numbers of descriptors and threads that the agent has now.
    pub fn numbers(&self) -> (usize, u64) {
        (descriptors(self.agent()), status(self.agent(), "Threads"))
    }

    /// The same of an agent that no client has come to yet.
    pub fn numbers_at_first(&self) -> (usize, u64) {
        wait_until("the agent has greeted", || self.line.taken(Way::ToHost) > 0);
        // Nothing tells when it has opened everything: the numbers stay the same. They are counted, because time goes by on a machine that
        // stands still, too.
        let (mut last, mut same) = (self.numbers(), 0);
        wait_until("the agent has started", || {
            pause(Duration::from_millis(20));
            let now = self.numbers();
            same = if now == last { same + 1 } else { 0 };
            last = now;
            same > 50
        });
        last
    }

    /// Waits until the agent has nothing left of any client: no programs, and no more descriptors and threads than these.
    pub fn wait_until_left_with(&self, most: (usize, u64)) {
        let start = Instant::now();
        loop {
            let (children, (descriptors, threads)) = (children(self.agent()), self.numbers());
            if children.is_empty() && descriptors <= most.0 && threads <= most.1 {
                return;
            }
            // A thread waits a second for the next connection before it ends, and on a busy machine longer. What is half open goes by
            // itself only after half a minute of questions to nobody, and shall not need that.
            let left =
                format!("{descriptors} descriptors and {threads} threads instead of {most:?}, programs {children:?}");
            assert!(start.elapsed() < Duration::from_secs(15), "{left}");
            wait_for(Duration::from_millis(20));
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

pub fn start_agent(line: &Line) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lodger"));
    command.args(["serve", "--listen", &line.guest_address()]).stdin(Stdio::null());
    command.spawn().expect("the agent starts")
}

/// Waits until a moment has come, in steps that hurry nobody.
pub fn wait_for(time: Duration) {
    let until = Instant::now() + time.min(PATIENCE);
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(2));
    }
}
