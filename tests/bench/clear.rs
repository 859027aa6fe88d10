//! Rows about the frames of the Clear Containers proxy.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::agent::Agent;
use crate::floor::CHUNK;
use crate::programs::{OUTPUT_BYTES, OUTPUT_ROUNDS, OUTPUT_WORDS, Output};
use crate::{Measured, Skipped, alternate, throughput};

/// Version 2, and a header of three words.
const BEGINNING: [u8; 6] = [0, 2, 3, 0, 0, 0];

/// The types of frames.
const RESPONSE: u8 = 1;
const STREAM: u8 = 2;
const NOTIFICATION: u8 = 3;

/// The opcodes of commands.
const REGISTER: u8 = 0;
const ATTACH: u8 = 2;
const HYPER: u8 = 3;
const CONNECT: u8 = 4;

/// How long an agent that speaks another protocol may keep silent.
const PATIENCE: Duration = Duration::from_secs(5);

struct Client {
    socket: UnixStream,
    input: BufReader<UnixStream>,
}

impl Client {
    fn connect(agent: &Agent) -> Client {
        let socket = UnixStream::connect(agent.socket()).expect("the agent listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time");
        let input = BufReader::with_capacity(CHUNK, socket.try_clone().expect("a descriptor"));
        Client { socket, input }
    }

    /// The type, the opcode and the length of the next frame.
    fn header(&mut self) -> Option<(u8, u8, usize)> {
        let mut header = [0; 12];
        self.input.read_exact(&mut header).ok().filter(|()| header.starts_with(&BEGINNING))?;
        let length = u32::from_be_bytes([header[8], header[9], header[10], header[11]]);
        Some((header[6], header[7], length as usize))
    }

    /// Sends a command; what it is answered, if it succeeds.
    fn ask(&mut self, opcode: u8, payload: &Value) -> Option<Vec<u8>> {
        let payload = payload.to_string();
        let length = (payload.len() as u32).to_be_bytes();
        let frame = [&BEGINNING[..], &[0, opcode], &length, payload.as_bytes()].concat();
        self.socket.write_all(&frame).ok()?;
        let (kind, answered, length) = self.header()?;
        let mut answer = vec![0; length];
        self.input.read_exact(&mut answer).ok()?;
        ((kind, answered) == (RESPONSE, opcode)).then_some(answer)
    }

    fn token(&mut self, opcode: u8, payload: &Value) -> Option<String> {
        let answer: Value = serde_json::from_slice(&self.ask(opcode, payload)?).ok()?;
        Some(answer["io"]["tokens"][0].as_str()?.to_owned())
    }

    /// Puts the output of a program into the file, up to its end.
    fn finish(&mut self, file: &mut File) -> u8 {
        loop {
            let (kind, opcode, mut left) = self.header().expect("a frame");
            if kind == NOTIFICATION {
                let mut code = [0];
                self.input.read_exact(&mut code).expect("a code");
                return code[0];
            }
            assert_eq!((kind, opcode), (STREAM, 1));
            while left > 0 {
                let piece = self.input.fill_buf().expect("a payload");
                let count = piece.len().min(left);
                file.write_all(&piece[..count]).expect("/dev/null takes everything");
                self.input.consume(count);
                left -= count;
            }
        }
    }
}

/// Output in frames; its floor is the same output in our own protocol.
pub fn output(agent: &Agent) -> Result<Measured, Skipped> {
    let mut runtime = Client::connect(agent);
    let machine = json!({"containerId": "bench", "ctlSerial": "/ctl", "ioSerial": "/tty", "numIOStreams": 1});
    // A second attempt at this row finds the machine of the first one.
    if runtime.token(REGISTER, &machine).or_else(|| runtime.token(ATTACH, &machine)).is_none() {
        return Err(Skipped("the agent does not speak these frames".to_owned()));
    }
    let mut null = File::options().write(true).open("/dev/null").expect("/dev/null");
    let ours = || {
        let token = runtime.token(ATTACH, &machine).expect("a token");
        let mut shim = Client::connect(agent);
        shim.ask(CONNECT, &json!({"token": token})).expect("the token is free");
        let data = json!({"container": "bench", "process": {"args": OUTPUT_WORDS}});
        runtime.ask(HYPER, &json!({"hyperName": "execcmd", "tokens": [token], "data": data})).expect("it starts");
        assert_eq!(shim.finish(&mut null), 0);
    };
    let mut cbor = Output::of(agent);
    Ok(throughput(alternate(OUTPUT_ROUNDS, ours, || cbor.run()), OUTPUT_BYTES))
}
