//! The ctl channel: one command after the other, each with its answer.

use std::io;
use std::sync::Arc;

use crate::commands::Call;
use crate::engine::Ended;
use crate::proto::Circumstances;
use crate::proto::bell::Bell;
use crate::proto::hyper::commands::{self, Answer, NO_CALLBACK};
use crate::proto::hyper::ending;
use crate::proto::hyper::message::{self, Assembly, Message};
use crate::proto::hyper::pair::{Channel, Pair};
use crate::proto::hyper::programs;
use crate::stream::Stream;
use crate::sys::fd::{self, PollSet};

/// For `,proto=NAME` in an address.
pub const NAME: &str = "hyper-ctl";

/// Bytes of one read. Commands are short; a file comes in as many reads as it needs.
const READ_BYTES: usize = 16 << 10;

/// The codes of commands, and their names.
const CODES: [(u32, &str); 18] = [
    (0, "version"),
    (1, "startpod"),
    (4, "destroypod"),
    (6, "execcmd"),
    (8, "ready"),
    (11, "winsize"),
    (12, "ping"),
    (15, "writefile"),
    (16, "readfile"),
    (17, "newcontainer"),
    (18, "killcontainer"),
    (19, "onlinecpumem"),
    (20, "setupinterface"),
    (21, "setuproute"),
    (22, "removecontainer"),
    (23, "pscontainer"),
    // These two are of hyperstart 1.x, and nothing else in our dialect.
    (24, "signalprocess"),
    (25, "deleteinterface"),
];

/// The message to a host for whom there is no place.
pub fn refusal(why: &str) -> Vec<u8> {
    message::encode(message::ERROR, why.as_bytes())
}

/// Serves the channel until it ends.
///
/// # Errors
/// Those of the stream.
pub fn serve(stream: Stream, head: &[u8], circumstances: &Circumstances) -> io::Result<Ended> {
    stream.set_nonblocking(true)?;
    let pair = &circumstances.settings.hyper;
    let Some(seat) = pair.enter(Channel::Ctl, &stream)? else {
        stream.end();
        return Ok(Ended::Broken("there is another ctl channel".to_owned()));
    };
    let bell = Arc::clone(&seat.bell);
    let mut ctl = Ctl { stream, bell, circumstances, out: Vec::new(), assembly: Assembly::default(), was_used: false };
    let ended = match ctl.converse(head) {
        Err(error) if is_departure(&error) => Ok(ctl.regular()),
        ended => ended,
    };
    ctl.stream.end();
    pair.hang_up(seat.leave(Vec::new()), circumstances.stop);
    ended
}

fn is_departure(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected)
}

struct Ctl<'a> {
    stream: Stream,
    bell: Arc<Bell>,
    circumstances: &'a Circumstances<'a>,
    /// What is to be written next.
    out: Vec<u8>,
    assembly: Assembly,
    was_used: bool,
}

impl Ctl<'_> {
    fn converse(&mut self, head: &[u8]) -> io::Result<Ended> {
        self.out.extend(message::encode(message::READY, b""));
        if let Some(ended) = self.take(head)? {
            return Ok(ended);
        }
        let mut piece = vec![0; READ_BYTES];
        loop {
            let count = match self.wait(fd::READ)? {
                true => fd::read(self.stream.input(), &mut piece),
                false => return Ok(self.regular()),
            };
            match count {
                Ok(0) if self.assembly.is_within() => {
                    return Ok(Ended::Broken("the channel ended inside of a message".to_owned()));
                }
                Ok(0) => return Ok(self.regular()),
                Ok(count) => {
                    if let Some(ended) = self.take(&piece[..count])? {
                        return Ok(ended);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// A line that nobody has used is looked at again only after a pause.
    fn regular(&self) -> Ended {
        if self.was_used { Ended::Regular } else { Ended::Unused }
    }

    /// Acts on what has come. Not `None`: the channel is over.
    fn take(&mut self, mut bytes: &[u8]) -> io::Result<Option<Ended>> {
        while !bytes.is_empty() {
            self.was_used = true;
            let (count, message) = self.assembly.take(bytes);
            bytes = &bytes[count..];
            self.out.extend(message::encode(message::NEXT, &(count as u32).to_be_bytes()));
            let ended = match message {
                Ok(None) => None,
                Ok(Some(message)) => self.act(&message)?,
                Err(why) => {
                    self.out.extend(message::encode(message::ERROR, why.as_bytes()));
                    self.flush()?;
                    Some(Ended::Broken(why))
                }
            };
            if ended.is_some() {
                return Ok(ended);
            }
        }
        Ok(if self.flush()? { None } else { Some(self.regular()) })
    }

    /// Runs a command and sends its answer.
    fn act(&mut self, message: &Message) -> io::Result<Option<Ended>> {
        // A command may take its time, and what has come has come.
        if !self.flush()? {
            return Ok(Some(self.regular()));
        }
        let found = CODES.iter().find(|(code, _)| *code == message.code);
        let result = found.map_or(Err(NO_CALLBACK.to_owned()), |(_, name)| self.run(name, &message.payload));
        let afterwards = match result {
            Ok(Answer { bytes, afterwards }) => {
                self.out.extend(message::encode(message::ACK, &bytes));
                afterwards
            }
            Err(why) => {
                log::debug!("command {}: {why}", message.code);
                self.out.extend(message::encode(message::ERROR, why.as_bytes()));
                None
            }
        };
        let sent = self.flush();
        if let Some(afterwards) = afterwards {
            afterwards();
        }
        Ok(if sent? { None } else { Some(self.regular()) })
    }

    fn run(&self, name: &str, payload: &[u8]) -> Result<Answer, String> {
        let settings = self.circumstances.settings;
        let pair: &Arc<Pair> = &settings.hyper;
        let call =
            Call { table: &settings.commands, caller: Some(self.stream.output()), stop: Some(self.circumstances.stop) };
        match (name, programs::run(name, payload, pair)) {
            (_, Some(result)) => result,
            // Where the machine does not end, its programs do not either.
            ("destroypod", None) => commands::run(name, payload, &call)
                .inspect(|_| ending::end_programs(pair, &self.bell, ending::PATIENCE, self.circumstances.stop)),
            ("pscontainer", None) => programs::list(payload, pair, &call),
            ("writefile", None) => commands::write_file(payload, &call),
            (name, None) => commands::run(name, payload, &call),
        }
    }

    /// Writes all that waits. `false`: the agent ends.
    fn flush(&mut self) -> io::Result<bool> {
        let mut written = 0;
        while written < self.out.len() {
            match fd::write(self.stream.output(), &self.out[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !self.wait(fd::WRITE)? {
                        return Ok(false);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.out.shrink_to(READ_BYTES);
        Ok(true)
    }

    /// Waits until the channel can be read or written. `false`: the agent ends.
    fn wait(&self, events: i16) -> io::Result<bool> {
        let fd = if events == fd::READ { self.stream.input() } else { self.stream.output() };
        let mut set = PollSet::default();
        loop {
            set.clear();
            set.watch(self.circumstances.stop, fd::READ);
            set.watch(fd, events);
            set.wait(None)?;
            let ready = set.ready(1);
            match () {
                () if set.ready(0).readable => return Ok(false),
                // A port whose host has gone takes nothing, and would wake us for ever.
                () if ready.hung_up && events == fd::WRITE => return Err(io::ErrorKind::BrokenPipe.into()),
                () if ready.readable || ready.writable || ready.hung_up => return Ok(true),
                () => {}
            }
        }
    }
}
