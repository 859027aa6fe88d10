//! MachineProxy's agentproto, the agent's side. Byte layout, extensions and limits are in `wire`.
//!
//! First byte: a CBOR map, a tag or null (`wire::starts_frame`).
//!
//! A client that says Hello first has a connection for as many programs and file operations as it likes. One that does not lives by upstream's
//! rules (specification of agentproto, section 4): [Config], then one Exec, one PathQuery, or file operations until it closes. What upstream does
//! badly there is mended where no client can tell: a bad `env_remove` pattern refuses the Exec, input that a program does not read does not
//! hold up a Signal, a lost client's program is ended.

mod exec;
mod files;

use std::io;

use crate::engine::{self, Action, Codec, Ended, Event, Step};
use crate::exec::path;
use crate::files::Files;
use crate::proto::cbor::files::PendingListing;
use crate::proto::{Circumstances, Opening};
use crate::stream::Stream;
use crate::stream::outbox::Outbox;
use crate::sys::tty::Window;
use crate::wire::frame::{self, Config, Frame, Hello, Log, PathEntry};
use crate::wire::scan::{Refusal, Scanner};
use crate::wire::writer::Encoder;
use crate::wire::{ITEM_MAX, REVISION};

/// Bytes of a program's unread input that a client with credit may have under way on each stream. Less than the other way, because the agent
/// keeps them, for each of up to 64 programs, in a small guest.
const INPUT_WINDOW: u32 = 256 << 10;

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing has come yet.
    First,
    /// The one frame of the job must come.
    Job,
    /// One program, without Hello.
    Exec,
    /// That program's Exit has been sent: one more frame ends the connection.
    Exited,
    /// File operations, without Hello.
    Files,
    /// Everything, after Hello.
    Mixed,
    Done,
}

struct Agent {
    phase: Phase,
    scanner: Scanner,
    scratch: Encoder,
    files: Files,
    listing: Option<PendingListing>,
    config: Option<Config>,
    /// Lowest level of messages that the client wants to have; `None`: ours is the place for them.
    log_level: Option<i64>,
    opening: Opening,
    /// The client's, from its Hello.
    mark: u64,
}

/// Serves one connection.
///
/// # Errors
/// Those of the stream. A client that breaks the protocol is no error but `Ended::Broken`.
pub fn serve(stream: Stream, head: &[u8], circumstances: &Circumstances) -> io::Result<Ended> {
    stream.enlarge();
    let mut agent = Agent {
        phase: Phase::First,
        scanner: Scanner::new(ITEM_MAX),
        scratch: Encoder::default(),
        files: Files::default(),
        listing: None,
        config: None,
        log_level: None,
        opening: circumstances.opening,
        mark: 0,
    };
    let ended = engine::run(stream, head, &mut agent, circumstances.stop)?;
    if ended == Ended::Regular && matches!(agent.phase, Phase::First | Phase::Job) {
        return Ok(Ended::Unused);
    }
    Ok(ended)
}

/// An Error frame.
pub fn refusal(why: &str) -> Vec<u8> {
    Frame::Error { error: why.to_owned() }.to_bytes()
}

impl Codec for Agent {
    fn begin(&mut self, out: &mut Outbox) {
        if self.opening == Opening::Agent {
            self.hello(0, out);
        }
    }

    fn decode<'a>(&mut self, input: &'a [u8], out: &mut Outbox) -> Step<'a> {
        if let Some(listing) = self.listing.take() {
            self.listing = self.continue_listing(listing, out);
            return Step::Message { used: 0, action: Action::None };
        }
        let used = match self.scanner.find_end(input) {
            Ok(Some(used)) => used,
            Ok(None) => return Step::Incomplete { expected: self.scanner.known_length() },
            // What upstream's decoder refuses too is answered as upstream answers it; a limit of ours is named.
            Err(refused @ Refusal::Malformed(_)) => return self.broken(refused.to_string(), out),
            Err(refused) => {
                let why = refused.to_string();
                out.push(&refusal(&why));
                return Step::Broken { why };
            }
        };
        match Frame::decode(&input[..used]) {
            Ok(frame) => self.take(frame, used, out),
            Err(error) => self.broken(format!("frame cannot be read: {error}"), out),
        }
    }

    fn encode(&mut self, event: Event, out: &mut Outbox) {
        let extended = self.phase == Phase::Mixed;
        match event {
            Event::Started { id, pid, detached } => {
                self.trace("child started", vec![format!("pid={pid}")], out);
                if extended {
                    out.push(&Frame::Started { id, pid: pid as u32 }.to_bytes());
                } else if detached {
                    self.exit(Frame::Exit { id, code: 0, error: String::new(), errno: 0 }, out);
                }
            }
            Event::NotStarted { id, why } => {
                self.trace("start command failed", vec![format!("error={}", why.text())], out);
                let errno = if extended && why.is_about_the_program() { why.errno() as u32 } else { 0 };
                let error = if extended { why.text() } else { exec::upstream_text(why) };
                self.exit(Frame::Exit { id, code: 127, error, errno }, out);
            }
            Event::OutputEnded { id, stream } => out.push(&Frame::Eof { id, stream }.to_bytes()),
            // Only of standard input: an extra descriptor's other direction may still have something to say under the same number.
            Event::InputClosed { id, stream: 0 } if extended => out.push(&Frame::Eof { id, stream: 0 }.to_bytes()),
            Event::InputClosed { .. } => {}
            Event::Granted { id, stream, bytes } => out.push(&Frame::Credit { id, stream, bytes }.to_bytes()),
            Event::Ended { id, status } => {
                let code = i64::from(status.code());
                self.trace("child exited", vec![format!("code={code}")], out);
                self.exit(Frame::Exit { id, code, error: String::new(), errno: 0 }, out);
            }
            Event::Note { level, text } => self.log(level, text, Vec::new(), out),
        }
    }

    fn around(&mut self, id: u32, stream: u32, length: usize) -> (&[u8], &[u8]) {
        self.scratch.out.clear();
        frame::data_around(&mut self.scratch, id, stream, length);
        self.scratch.out.split_at(self.scratch.gap.unwrap_or_default())
    }

    fn window(&self) -> Option<u32> {
        (self.phase == Phase::Mixed).then_some(INPUT_WINDOW)
    }

    fn end_of_input(&mut self, out: &mut Outbox) {
        if matches!(self.phase, Phase::First | Phase::Job) {
            self.say(log::Level::Error, "the connection was closed before a job was named", out);
        }
    }

    fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }
}

impl Agent {
    fn take<'a>(&mut self, frame: Frame<'a>, used: usize, out: &mut Outbox) -> Step<'a> {
        let action = match (self.phase, frame) {
            // An agent's own greeting, come back over a line that echoes, or from another agent at its other end.
            (Phase::First | Phase::Mixed, Frame::Hello(hello)) if hello.window != 0 => Action::None,
            (Phase::First, Frame::Hello(hello)) => {
                self.phase = Phase::Mixed;
                self.log_level = hello.log_level;
                self.mark = hello.mark;
                self.hello(hello.mark, out);
                Action::None
            }
            (Phase::First, Frame::Config(config)) => {
                self.phase = Phase::Job;
                self.config = Some(config);
                Action::None
            }
            // A line that noise or a lost client has been on; whoever waits there hears from us as soon as it speaks up.
            (Phase::First, Frame::Goodbye) => Action::Close,
            (Phase::First | Phase::Job, frame) => return self.first_job(frame, used, out),
            (Phase::Exec, frame) => self.during_exec(frame, out),
            (Phase::Exited, frame) => {
                if let Frame::Signal { signal, .. } = frame {
                    self.say(log::Level::Warn, &format!("signal {signal} came after the program's end"), out);
                }
                self.phase = Phase::Done;
                Action::None
            }
            (Phase::Files, Frame::FileOp(request)) => self.file_operation(request, out),
            (Phase::Files, Frame::Exit { .. }) => Action::Close,
            (Phase::Files | Phase::Done, _) => Action::None,
            (Phase::Mixed, frame) => self.mixed(frame, out),
        };
        Step::Message { used, action }
    }

    /// The frame that tells upstream's agent what the connection is for.
    fn first_job<'a>(&mut self, frame: Frame<'a>, used: usize, out: &mut Outbox) -> Step<'a> {
        let action = match frame {
            Frame::Exec { id, exec } => {
                self.phase = Phase::Exec;
                self.start(id, exec)
            }
            Frame::PathQuery { paths } => {
                self.phase = Phase::Done;
                self.path_info(&paths, out)
            }
            Frame::FileOp(request) => {
                self.phase = Phase::Files;
                self.file_operation(request, out)
            }
            _ => return self.broken("the first frame names no job".to_owned(), out),
        };
        Step::Message { used, action }
    }

    fn during_exec<'a>(&mut self, frame: Frame<'a>, out: &mut Outbox) -> Action<'a> {
        match frame {
            // Their answers could not be told from the running program's.
            Frame::Exec { .. } | Frame::FileOp(_) | Frame::PathQuery { .. } => {
                self.log(
                    log::Level::Warn,
                    "a second job on a connection without hello is dropped".into(),
                    Vec::new(),
                    out,
                );
                Action::None
            }
            frame => stream_action(frame),
        }
    }

    fn mixed<'a>(&mut self, frame: Frame<'a>, out: &mut Outbox) -> Action<'a> {
        match frame {
            Frame::Hello(hello) => {
                let another = hello.mark != self.mark;
                if another {
                    // On a line that cannot tell us that the client before has gone: what was that one's ends. Its output that waits is still
                    // sent, as half a message would be worse; the new client passes over it.
                    (self.files, self.listing, self.config) = (Files::default(), None, None);
                    self.mark = hello.mark;
                }
                self.log_level = hello.log_level;
                self.hello(hello.mark, out);
                if another { Action::HangUp } else { Action::None }
            }
            Frame::Config(config) => {
                self.config = Some(config);
                Action::None
            }
            Frame::Exec { id, exec } => self.start(id, exec),
            Frame::PathQuery { paths } => self.path_info(&paths, out),
            Frame::FileOp(request) => self.file_operation(request, out),
            Frame::Goodbye => Action::Close,
            frame => stream_action(frame),
        }
    }

    fn start<'a>(&mut self, id: u32, exec: crate::wire::exec::Exec) -> Action<'a> {
        let credit = Some(u64::from(exec.extension.credit)).filter(|credit| *credit > 0);
        Action::Start { id, program: exec::program(exec, self.config.as_ref()).map(Box::new), credit }
    }

    fn path_info<'a>(&mut self, paths: &[Vec<u8>], out: &mut Outbox) -> Action<'a> {
        let found = path::enumerate(paths).into_iter().take(crate::wire::scan::ELEMENTS_MAX as usize);
        let entries: Vec<PathEntry> = found
            .map(|found| PathEntry {
                name: found.name,
                path: found.path,
                mode: found.mode,
                size: i64::try_from(found.size).unwrap_or(i64::MAX),
                modified_ns: found.modified_ns,
            })
            .collect();
        out.push(&Frame::PathInfo { entries: Some(entries).filter(|entries| !entries.is_empty()) }.to_bytes());
        Action::None
    }

    fn hello(&mut self, mark: u64, out: &mut Outbox) {
        let program = crate::version::PROGRAM.to_owned();
        let hello = Hello { revision: REVISION, program, log_level: None, window: INPUT_WINDOW, mark };
        out.push(&Frame::Hello(hello).to_bytes());
    }

    fn exit(&mut self, frame: Frame, out: &mut Outbox) {
        out.push(&frame.to_bytes());
        if self.phase == Phase::Exec {
            self.phase = Phase::Exited;
        }
    }

    /// The connection cannot go on. Upstream answers a bad first frame with a Log frame, and nothing else with anything.
    fn broken<'a>(&mut self, why: String, out: &mut Outbox) -> Step<'a> {
        if matches!(self.phase, Phase::First | Phase::Job) {
            self.say(log::Level::Error, &why, out);
        } else {
            out.push(&refusal(&why));
        }
        Step::Broken { why }
    }

    /// Sends a message whatever level the client wants.
    fn say(&mut self, level: log::Level, text: &str, out: &mut Outbox) {
        let log = Log { level: slog_level(level), message: text.to_owned(), attributes: Vec::new() };
        out.push(&Frame::Log(log).to_bytes());
    }

    fn trace(&mut self, text: &str, attributes: Vec<String>, out: &mut Outbox) {
        self.log(log::Level::Trace, text.to_owned(), attributes, out);
    }

    fn log(&mut self, level: log::Level, message: String, attributes: Vec<String>, out: &mut Outbox) {
        match self.log_level {
            None => log::log!(level, "{message} {}", attributes.join(" ")),
            Some(lowest) if slog_level(level) >= lowest => {
                out.push(&Frame::Log(Log { level: slog_level(level), message, attributes }).to_bytes());
            }
            Some(_) => {}
        }
    }
}

fn slog_level(level: log::Level) -> i64 {
    match level {
        log::Level::Error => frame::LEVEL_ERROR,
        log::Level::Warn => frame::LEVEL_WARN,
        log::Level::Info => frame::LEVEL_INFO,
        log::Level::Debug => frame::LEVEL_DEBUG,
        log::Level::Trace => frame::LEVEL_TRACE,
    }
}

/// What a frame about a running program asks for; everything else is ignored, as upstream ignores it.
fn stream_action(frame: Frame) -> Action {
    match frame {
        Frame::Data { id, stream, data } => Action::Input { id, stream, data },
        Frame::Eof { id, stream } => Action::EndInput { id, stream },
        Frame::Signal { id, signal } => Action::Signal { id, signal },
        Frame::Resize { id, rows, columns } => Action::Resize { id, window: Window { rows, columns } },
        Frame::Credit { id, stream, bytes } => Action::Credit { id, stream, bytes },
        _ => Action::None,
    }
}
