//! A scripted client: frames as bytes, and an agent of either kind.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use lodger::commands::table::Table;
use lodger::proto::clear::registry::{Registry, Times};
use lodger::proto::settings::Settings;
use lodger::proto::{self, Circumstances, Opening};
use lodger::stream::Stream;
use lodger::sys::fd;

use crate::support::{Agent, PATIENCE};

pub const COMMAND: u8 = 0;
pub const STREAM: u8 = 2;
pub const NOTIFICATION: u8 = 3;

pub const REGISTER: u8 = 0;
pub const UNREGISTER: u8 = 1;
pub const ATTACH: u8 = 2;
pub const HYPER: u8 = 3;
pub const CONNECT: u8 = 4;
pub const DISCONNECT: u8 = 5;
pub const SIGNAL: u8 = 6;

/// One frame, its type with the flags.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub opcode: u8,
    pub payload: Vec<u8>,
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let shown = String::from_utf8_lossy(&self.payload[..self.payload.len().min(100)]);
        write!(f, "{:#x}/{} {} bytes {shown:?}", self.kind, self.opcode, self.payload.len())
    }
}

pub fn frame(kind: u8, opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 2, 3, 0, 0, 0, kind, opcode];
    bytes.extend((payload.len() as u32).to_be_bytes());
    bytes.extend(payload);
    bytes
}

pub fn exited(code: u8) -> Frame {
    Frame { kind: NOTIFICATION, opcode: 0, payload: vec![code] }
}

pub fn success(opcode: u8) -> Frame {
    Frame { kind: 1, opcode, payload: Vec::new() }
}

pub fn failure(opcode: u8, why: &str) -> Frame {
    let quoted = serde_json::to_string(why).expect("a string");
    let quoted = quoted.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
    Frame { kind: 0x11, opcode, payload: format!(r#"{{"msg":{quoted}}}"#).into_bytes() }
}

pub struct Client {
    pub socket: UnixStream,
}

impl Drop for Client {
    /// Ends the connection and not only this descriptor of it: programs that other tests are just starting have copies of all until they run.
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

impl Client {
    pub fn over(socket: UnixStream) -> Client {
        socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        socket.set_write_timeout(Some(PATIENCE)).expect("a time-out");
        Client { socket }
    }

    pub fn write(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).expect("the agent reads");
    }

    pub fn send(&mut self, kind: u8, opcode: u8, payload: impl AsRef<[u8]>) {
        self.write(&frame(kind, opcode, payload.as_ref()));
    }

    /// The next frame; `None` at the end of the connection.
    pub fn receive(&mut self) -> Option<Frame> {
        let mut header = [0; 12];
        let mut filled = 0;
        while filled < header.len() {
            match self.socket.read(&mut header[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                Err(error) => panic!("nothing came from the agent: {error}"),
            }
        }
        if filled == 0 {
            return None;
        }
        assert_eq!(filled, 12, "the header is cut");
        assert_eq!(header[..6], [0, 2, 3, 0, 0, 0]);
        let length = u32::from_be_bytes([header[8], header[9], header[10], header[11]]);
        let mut payload = vec![0; length as usize];
        self.socket.read_exact(&mut payload).expect("the payload is whole");
        Some(Frame { kind: header[6], opcode: header[7], payload })
    }

    pub fn next(&mut self) -> Frame {
        self.receive().expect("a frame")
    }

    /// Whether nothing comes for a while.
    pub fn is_silent(&mut self, time: Duration) -> bool {
        self.socket.set_read_timeout(Some(time)).expect("a time-out");
        let result = self.socket.read(&mut [0; 1]);
        self.socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        result.is_err_and(|error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
    }

    /// Sends a command and gives the next frame.
    pub fn ask(&mut self, opcode: u8, payload: impl ToString) -> Frame {
        self.send(COMMAND, opcode, payload.to_string());
        self.next()
    }

    /// The same for one that succeeds.
    pub fn done(&mut self, opcode: u8, payload: impl ToString) -> Vec<u8> {
        let payload = payload.to_string();
        let answer = self.ask(opcode, &payload);
        assert_eq!((answer.kind, answer.opcode), (1, opcode), "{payload}: {answer:?}");
        answer.payload
    }

    /// The same for one that is refused.
    pub fn refused(&mut self, opcode: u8, payload: impl ToString, why: &str) {
        let payload = payload.to_string();
        assert_eq!(self.ask(opcode, &payload), failure(opcode, why), "{payload}");
    }

    pub fn register(&mut self, id: &str, tokens: i64) -> Vec<String> {
        let command = json!({"containerId": id, "ctlSerial": "/c", "ioSerial": "/i", "numIOStreams": tokens});
        tokens_of(&self.done(REGISTER, command))
    }

    pub fn attach(&mut self, id: &str, tokens: i64) -> Vec<String> {
        tokens_of(&self.done(ATTACH, json!({"containerId": id, "numIOStreams": tokens})))
    }

    /// Output up to the exit: stdout, stderr, code.
    pub fn finish(&mut self) -> (Vec<u8>, Vec<u8>, u8) {
        let mut streams = [Vec::new(), Vec::new()];
        loop {
            let frame = self.next();
            match (frame.kind, frame.opcode) {
                (STREAM, opcode @ 1..=2) => streams[usize::from(opcode) - 1].extend(frame.payload),
                (NOTIFICATION, 0) => {
                    let [stdout, stderr] = streams;
                    return (stdout, stderr, frame.payload[0]);
                }
                _ => panic!("{frame:?}"),
            }
        }
    }

    /// Output of stdout up to the end of a line.
    pub fn line(&mut self) -> String {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let frame = self.next();
            assert_eq!((frame.kind, frame.opcode), (STREAM, 1), "{frame:?}");
            line.extend(frame.payload);
        }
        String::from_utf8_lossy(&line).trim_end().to_owned()
    }

    /// Waits for the end of the connection, with nothing before it.
    pub fn ends(&mut self) {
        assert_eq!(self.receive(), None);
    }

    pub fn connect(&mut self, token: &str) {
        self.done(CONNECT, json!({"token": token}));
    }

    pub fn exec(&mut self, token: &str, script: &str) {
        self.done(HYPER, exec_command(token, script));
    }
}

pub fn tokens_of(payload: &[u8]) -> Vec<String> {
    let answer: Value = serde_json::from_slice(payload).expect("JSON");
    let tokens = answer["io"]["tokens"].as_array().cloned().unwrap_or_default();
    tokens.iter().map(|token| token.as_str().expect("a token").to_owned()).collect()
}

/// A shell's script without a terminal.
pub fn exec_command(token: &str, script: &str) -> Value {
    let process = json!({"args": ["sh", "-c", script]});
    json!({"hyperName": "execcmd", "tokens": [token], "data": {"container": "", "process": process}})
}

pub fn over(agent: &Agent) -> Client {
    Client::over(UnixStream::connect(&agent.socket).expect("the agent accepts"))
}

/// A machine, its runtime, and a shim with a running script.
pub fn running(agent: &Agent, id: &str, script: &str) -> (Client, Client, String) {
    let mut runtime = over(agent);
    let token = runtime.register(id, 1).remove(0);
    let mut shim = over(agent);
    shim.connect(&token);
    runtime.exec(&token, script);
    (runtime, shim, token)
}

/// An agent in this process, whose patience a test chooses.
pub struct Inside {
    settings: Settings,
    stop: Arc<(OwnedFd, OwnedFd)>,
}

impl Drop for Inside {
    fn drop(&mut self) {
        fd::write(self.stop.1.as_fd(), b"!").expect("room");
        self.settings.clear.keepers.finish(lodger::exec::parting::end_deadline());
    }
}

impl Inside {
    pub fn with(times: Times) -> Inside {
        let mut settings = Settings::with(Table::of_agent());
        settings.clear = Arc::new(Registry::with(times));
        Inside { settings, stop: Arc::new(fd::pipe().expect("a pipe")) }
    }

    pub fn client(&self) -> Client {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let (settings, stop) = (self.settings.clone(), Arc::clone(&self.stop));
        thread::spawn(move || {
            let (accepted, stop, settings) = (Instant::now(), stop.0.as_fd(), &settings);
            let circumstances = Circumstances { pinned: None, opening: Opening::Peer, stop, accepted, settings };
            proto::serve(Stream::over(theirs), &[], &circumstances)
        });
        Client::over(ours)
    }
}
