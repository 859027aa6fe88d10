//! The agent's end of a line.

use std::io;
use std::os::fd::BorrowedFd;

use crate::link::Reason;
use crate::link::greeting::Role;
use crate::link::pump::Pump;
use crate::stream::Stream;

/// Serves a line: `accept` is given a stream for every channel that is opened on it. Returns when the agent
/// shall stop (`stop` can be read), all streams are closed, and what was said on them has arrived. `quiet`: nothing is
/// sent before a client speaks.
///
/// # Errors
/// Those of the line, when it ends: `UnexpectedEof`, or what the system says.
pub fn serve(line: &Stream, stop: BorrowedFd, quiet: bool, accept: &mut dyn FnMut(Stream)) -> io::Result<()> {
    let mut pump = Pump::new(line, Role::Acceptor, None, None)?;
    if quiet {
        pump.link.keep_quiet();
    }
    let mut stopping = false;
    loop {
        let result = pump.work().and_then(|()| pump.wait((!stopping).then_some(stop)));
        match result {
            Ok(woken) => stopping |= woken,
            Err(error) => {
                pump.end();
                return Err(error);
            }
        }
        while let Some(id) = pump.link.take_opened() {
            match pump.local(id) {
                Ok(theirs) if !stopping => accept(Stream::over(theirs)),
                _ => pump.link.mux().reset(id, Reason::NoRoom),
            }
        }
        // Clients may keep their side open until they see the machine's end.
        if stopping && pump.link.has_told_all() {
            return Ok(());
        }
    }
}
