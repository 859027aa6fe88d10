//! Running a program through an agent, with its streams live on this side.

use std::borrow::Cow;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::client::recorder::Recorder;
use crate::client::sink::Sink;
use crate::client::{Connection, Error};
use crate::sys::fd::{self, PollSet};
use crate::sys::signal;
use crate::sys::tty::{self, Window};
use crate::wire::exec::Exec;
use crate::wire::frame::{self, Frame};
use crate::wire::record::Direction;
use crate::wire::{CHUNK_MAX, WINDOW};

/// Bytes that wait for the agent above which no more input is read.
const OUTBOX_HIGH: usize = 512 << 10;

/// So many interrupts within `IMPATIENCE` end the client itself: the program, or the agent, does not answer.
const IMPATIENT_INTERRUPTS: usize = 3;
const IMPATIENCE: Duration = Duration::from_secs(2);

/// The program's streams on this side.
pub struct Wires<'a> {
    /// `None`: the program reads an end of file at once.
    pub stdin: Option<BorrowedFd<'a>>,
    pub stdout: BorrowedFd<'a>,
    pub stderr: BorrowedFd<'a>,
    /// Signals to pass on (`signal::into_pipe`); a change of window size is passed on as such.
    pub signals: Option<&'a OwnedFd>,
    /// The terminal whose size the program's terminal has.
    pub terminal: Option<BorrowedFd<'a>>,
    pub recorder: Option<&'a mut Recorder>,
    /// When to give the program up.
    pub deadline: Option<Instant>,
}

/// What became of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Exit status, or 128 + signal.
    Ended { code: i32 },
    /// It was started detached, and runs under this number.
    Detached { pid: u32 },
    /// The user interrupted again and again, and nothing happened.
    Abandoned,
    /// Its time was over.
    TimedOut,
    /// The command whose terminal it ran on was told to end by this signal.
    HungUp { signal: i32 },
}

impl Connection {
    /// Runs a program to its end with these streams. Without an environment in `exec` it gets the agent's.
    ///
    /// # Errors
    /// `NotStarted` when it does not run; `Lost`, `Refused` and `Protocol` of the connection; `Local` when output cannot be written.
    pub fn exec(&mut self, mut exec: Exec, wires: Wires) -> Result<Outcome, Error> {
        let id = self.new_id();
        exec.extension.credit = WINDOW;
        let mut pump = Pump::new(self, id, exec.extension.detach, wires)?;
        pump.record_start(&exec)?;
        pump.send(Frame::Exec { id, exec })?;
        let result = pump.run();
        let code = if let Ok(Outcome::Ended { code }) = result { i64::from(code) } else { -1 };
        pump.record_end(code)?;
        result
    }
}

/// One of the program's two outputs.
struct Tap {
    stream: u32,
    /// `None` once nobody reads it here.
    sink: Option<Sink>,
    /// Bytes that came since the agent was last granted more.
    owed: usize,
}

struct Pump<'c, 'w> {
    connection: &'c mut Connection,
    id: u32,
    stdin: Option<BorrowedFd<'w>>,
    outputs: [Tap; 2],
    signals: Option<&'w OwnedFd>,
    terminal: Option<BorrowedFd<'w>>,
    deadline: Option<Instant>,
    recorder: Option<(&'w mut Recorder, i64)>,
    /// Input that may be sent.
    credit: u64,
    greeted: bool,
    interrupts: Vec<Instant>,
    detached: bool,
    /// How it all ends, once what has come before is written.
    end: Option<Result<Outcome, Error>>,
}

/// What an entry of the poll set stands for.
enum Source {
    Agent,
    AgentOut,
    Input,
    Signals,
    Output(usize),
}

impl<'c, 'w> Pump<'c, 'w> {
    fn new(connection: &'c mut Connection, id: u32, detached: bool, wires: Wires<'w>) -> Result<Pump<'c, 'w>, Error> {
        let output = |stream, fd| {
            let sink = Sink::new(fd).map_err(Error::local("prepare the output"))?;
            Ok::<_, Error>(Tap { stream, sink: Some(sink), owed: 0 })
        };
        Ok(Pump {
            outputs: [output(1, wires.stdout)?, output(2, wires.stderr)?],
            connection,
            id,
            stdin: wires.stdin,
            signals: wires.signals,
            terminal: wires.terminal,
            deadline: wires.deadline,
            recorder: wires.recorder.map(|recorder| (recorder, 0)),
            credit: 0,
            greeted: false,
            interrupts: Vec::new(),
            detached,
            end: None,
        })
    }

    fn run(&mut self) -> Result<Outcome, Error> {
        if self.stdin.is_none() {
            self.send(Frame::Eof { id: self.id, stream: 0 })?;
        }
        let mut set = PollSet::default();
        let mut sources = Vec::new();
        loop {
            if self.end.is_none()
                && let Err(error) = self.talk()
            {
                self.end = Some(Err(error));
            }
            let written = self.outputs.iter().all(|output| output.sink.as_ref().is_none_or(|sink| sink.queued() == 0));
            // Whatever the end is, what has come before it is written; only who has lost patience does not wait for that.
            let at_once = matches!(self.end, Some(Ok(Outcome::Abandoned | Outcome::HungUp { .. })));
            if (written || at_once)
                && let Some(end) = self.end.take()
            {
                return end;
            }
            set.clear();
            sources.clear();
            self.watch(&mut set, &mut sources);
            let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(Outcome::TimedOut);
            }
            set.wait(left).map_err(Error::local("wait"))?;
            for (index, source) in sources.iter().enumerate() {
                let ready = set.ready(index);
                if (ready.readable || ready.writable || ready.hung_up)
                    && let Err(error) = self.handle(source, ready)
                {
                    self.end.get_or_insert(Err(error));
                }
            }
        }
    }

    /// Takes what the agent has said, and tells it what there is to tell.
    fn talk(&mut self) -> Result<(), Error> {
        while self.take_frame()? {}
        self.greet();
        self.flush_agent()
    }

    fn watch(&self, set: &mut PollSet, sources: &mut Vec<Source>) {
        let mut add = |fd: BorrowedFd, events, source| {
            set.watch(fd, events);
            sources.push(source);
        };
        let stream = &self.connection.stream;
        if self.end.is_none() {
            let wants_room = if self.connection.outbox.is_empty() { 0 } else { fd::WRITE };
            if stream.is_one() {
                add(stream.input(), fd::READ | wants_room, Source::Agent);
            } else {
                add(stream.input(), fd::READ, Source::Agent);
                add(stream.output(), wants_room, Source::AgentOut);
            }
            if let Some(stdin) = self.stdin
                && self.credit > 0
                && self.connection.outbox.len() < OUTBOX_HIGH
            {
                add(stdin, fd::READ, Source::Input);
            }
        }
        if let Some(signals) = self.signals {
            add(signals.as_fd(), fd::READ, Source::Signals);
        }
        for (index, output) in self.outputs.iter().enumerate() {
            if let Some(sink) = &output.sink {
                add(sink.watch(), if sink.queued() > 0 { fd::WRITE } else { fd::HANG_UP }, Source::Output(index));
            }
        }
    }

    fn handle(&mut self, source: &Source, ready: fd::Ready) -> Result<(), Error> {
        match *source {
            Source::Agent => {
                // The other direction has its turn, if there is something, before the next poll anyway.
                if ready.readable { self.connection.fill() } else { Ok(()) }
            }
            Source::AgentOut => self.flush_agent(),
            Source::Input => self.read_input(),
            Source::Signals => self.take_signals(),
            // A terminal that hangs up makes SIGHUP; a pipe that nobody reads any more is found out here, before more is sent for it.
            Source::Output(index) if ready.hung_up => self.close_output(index),
            Source::Output(index) => {
                let flushed = self.outputs[index].sink.as_mut().map_or(Ok(()), Sink::flush);
                self.after_output(index, flushed)
            }
        }
    }

    fn flush_agent(&mut self) -> Result<(), Error> {
        match self.connection.outbox.write_to(self.connection.stream.output()) {
            // What the agent said before it went may still be there to be read, and tell more.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.connection.outbox.clear();
                Ok(())
            }
            result => result.map_err(Error::Lost),
        }
    }

    /// The window for input comes with the agent's greeting.
    fn greet(&mut self) {
        if let Some(agent) = self.connection.agent.as_ref().filter(|_| !self.greeted) {
            self.greeted = true;
            self.credit += u64::from(agent.window);
        }
    }

    /// Acts on one frame. `false`: none is there.
    fn take_frame(&mut self) -> Result<bool, Error> {
        let id = self.id;
        let Some(frame) = self.connection.next_frame()? else { return Ok(false) };
        if let Some((recorder, seq)) = &mut self.recorder
            && is_recorded(&frame, id)
        {
            recorder.frame(*seq, Direction::ToClient, frame.clone()).map_err(Error::local("write the recording"))?;
        }
        match frame {
            Frame::Data { id: of, stream, data } if of == id => {
                let Some(index) = self.outputs.iter().position(|output| output.stream == stream) else {
                    return Ok(true);
                };
                let output = &mut self.outputs[index];
                output.owed += data.len();
                if output.owed > WINDOW as usize {
                    return Err(Error::Protocol("more output than was granted".to_owned()));
                }
                let taken = output.sink.as_mut().map_or(Ok(()), |sink| sink.take(&data));
                self.after_output(index, taken)?;
            }
            // The program reads no more, so there is no use in sending.
            Frame::Eof { id: of, stream: 0 } if of == id => self.stdin = None,
            Frame::Credit { id: of, stream: 0, bytes } if of == id => self.credit += u64::from(bytes),
            Frame::Started { id: of, pid } if of == id => self.started(pid),
            Frame::Exit { id: of, code, error, errno } if of == id => {
                if !error.is_empty() {
                    return Err(Error::NotStarted { errno: errno as i32, text: error });
                }
                self.end = Some(Ok(Outcome::Ended { code: code as i32 }));
                return Ok(false);
            }
            _ => {}
        }
        Ok(true)
    }

    fn started(&mut self, pid: u32) {
        if self.detached {
            self.end = Some(Ok(Outcome::Detached { pid }));
        }
    }

    /// Grants the agent more once half of its window has really been written, and stops listening to what nobody reads.
    fn after_output(&mut self, index: usize, result: io::Result<()>) -> Result<(), Error> {
        match result {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return self.close_output(index),
            Err(error) => {
                self.outputs[index].sink = None;
                return Err(Error::Local { what: "write the output".to_owned(), error });
            }
            Ok(()) => {}
        }
        let output = &mut self.outputs[index];
        let queued = output.sink.as_ref().map_or(0, Sink::queued);
        let consumed = output.owed - queued.min(output.owed);
        if consumed >= WINDOW as usize / 2 && self.end.is_none() {
            output.owed -= consumed;
            let frame = Frame::Credit { id: self.id, stream: output.stream, bytes: consumed as u32 };
            self.connection.send(&frame);
        }
        Ok(())
    }

    /// Nobody reads the output here, so the program shall meet a broken pipe there.
    fn close_output(&mut self, index: usize) -> Result<(), Error> {
        self.outputs[index].sink = None;
        let stream = self.outputs[index].stream;
        self.send(Frame::Eof { id: self.id, stream })
    }

    fn read_input(&mut self) -> Result<(), Error> {
        let Some(stdin) = self.stdin else { return Ok(()) };
        let limit = self.credit.min(CHUNK_MAX as u64) as usize;
        let outbox = &mut self.connection.outbox;
        // The bytes themselves are wanted only by a recording.
        let mut copy = Vec::new();
        let recording = self.recorder.is_some();
        let result = outbox.fill(|bytes| {
            let held = bytes.len();
            let result = fd::read_append(stdin, bytes, limit);
            if recording {
                copy.extend_from_slice(&bytes[held..]);
            }
            result
        });
        match result {
            Ok(count @ 1..) => {
                let mut encoder = crate::wire::writer::Encoder::default();
                frame::data_around(&mut encoder, self.id, 0, count);
                let (head, tail) = encoder.out.split_at(encoder.gap.unwrap_or_default());
                outbox.seal(head, tail);
                self.credit -= count as u64;
                if recording {
                    self.record(&Frame::Data { id: self.id, stream: 0, data: Cow::Owned(copy) })?;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => outbox.discard(),
            // A terminal that is gone reads as an error; for the program it is an end.
            Ok(0) | Err(_) => {
                outbox.discard();
                self.stdin = None;
                self.send(Frame::Eof { id: self.id, stream: 0 })?;
            }
        }
        Ok(())
    }

    fn take_signals(&mut self) -> Result<(), Error> {
        let Some(signals) = self.signals else { return Ok(()) };
        for number in signal::take(signals) {
            if number == signal::SIGWINCH {
                if let Some(Window { rows, columns }) = self.terminal.and_then(|terminal| tty::window(terminal).ok()) {
                    self.send(Frame::Resize { id: self.id, rows, columns })?;
                }
                continue;
            }
            if self.terminal.is_some() && matches!(number, signal::SIGTERM | signal::SIGHUP) {
                // As when a line is cut: an interactive shell ignores SIGTERM, and would hold us for ever.
                self.end = Some(Ok(Outcome::HungUp { signal: number }));
                return Ok(());
            }
            self.send(Frame::Signal { id: self.id, signal: i64::from(number) })?;
            if number == signal::SIGINT {
                let now = Instant::now();
                self.interrupts.retain(|at| now - *at < IMPATIENCE);
                self.interrupts.push(now);
                if self.interrupts.len() >= IMPATIENT_INTERRUPTS {
                    self.end = Some(Ok(Outcome::Abandoned));
                }
            }
        }
        Ok(())
    }

    fn send(&mut self, frame: Frame) -> Result<(), Error> {
        self.connection.send(&frame);
        self.record(&frame)
    }

    fn record(&mut self, frame: &Frame) -> Result<(), Error> {
        match &mut self.recorder {
            Some((recorder, seq)) => {
                let written = recorder.frame(*seq, Direction::ToAgent, frame.clone());
                written.map_err(Error::local("write the recording"))
            }
            None => Ok(()),
        }
    }

    fn record_start(&mut self, exec: &Exec) -> Result<(), Error> {
        if let Some((recorder, seq)) = &mut self.recorder {
            *seq = recorder.start(exec).map_err(Error::local("write the recording"))?;
        }
        Ok(())
    }

    fn record_end(&mut self, code: i64) -> Result<(), Error> {
        match &mut self.recorder {
            Some((recorder, seq)) => recorder.end(*seq, code).map_err(Error::local("write the recording")),
            None => Ok(()),
        }
    }
}

/// Whether a frame belongs into a recording: it is about the program, and no matter of flow control.
fn is_recorded(frame: &Frame, id: u32) -> bool {
    match frame {
        Frame::Data { id: of, .. } | Frame::Eof { id: of, .. } | Frame::Exit { id: of, .. } => *of == id,
        _ => false,
    }
}
