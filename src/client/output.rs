//! Running a small program through an agent, without streams on this side.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::client::{Connection, Error};
use crate::wire::exec::Exec;
use crate::wire::frame::Frame;

/// A program's end and all that it said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Connection {
    /// Asks for a program, without input, and does not wait for anything about it. What cannot be sent at once goes with the next request.
    pub fn request<S: AsRef<OsStr>>(&mut self, argv: impl IntoIterator<Item = S>) {
        self.begin(argv);
        let _ = self.outbox.write_to(self.stream.output());
    }

    fn begin<S: AsRef<OsStr>>(&mut self, argv: impl IntoIterator<Item = S>) -> u32 {
        let argv: Vec<Vec<u8>> = argv.into_iter().map(|word| word.as_ref().as_bytes().to_vec()).collect();
        let id = self.new_id();
        let path = argv.first().cloned().unwrap_or_default();
        self.send(&Frame::Exec { id, exec: Exec { path, argv: Some(argv), ..Exec::default() } });
        self.send(&Frame::Eof { id, stream: 0 });
        id
    }

    /// Runs a program to its end, without input, and gives all that it says. Meant for short outputs: they are kept in memory.
    ///
    /// # Errors
    /// As `exec`.
    pub fn output<S: AsRef<OsStr>>(&mut self, argv: impl IntoIterator<Item = S>) -> Result<Output, Error> {
        let id = self.begin(argv);
        let mut output = Output::default();
        loop {
            match self.receive()? {
                Frame::Data { id: of, stream: 1, data } if of == id => output.stdout.extend_from_slice(&data),
                Frame::Data { id: of, stream: 2, data } if of == id => output.stderr.extend_from_slice(&data),
                Frame::Exit { id: of, code, error, errno } if of == id => {
                    if !error.is_empty() {
                        return Err(Error::NotStarted { errno: errno as i32, text: error });
                    }
                    output.code = code as i32;
                    return Ok(output);
                }
                _ => {}
            }
        }
    }
}
