//! A carrier of records and a parser of them, joined: requests come one by one, each is taken away, answered, and its response put where the
//! host looks for it.
//!
//! Upstream's rule is that the request goes before the response comes. Here it goes before it is even looked at: so none is done twice, and
//! none that ends the agent can do so again when the agent is back.

use std::io;
use std::os::fd::BorrowedFd;

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What the host calls it; the response has the same name.
    pub id: String,
    pub data: Vec<u8>,
}

/// Whether a request is still to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    Done,
    /// The host has taken it back.
    Gone,
    /// Everything shall end.
    Stopped,
}

/// Where requests come from and responses go to. It stays connected by itself: its calls wait until it is, or everything shall end.
pub trait Carrier {
    /// The next request. `None`: everything shall end.
    fn next(&mut self) -> Option<Request>;

    /// Takes a request away, so that it does not come again.
    fn take(&mut self, request: &Request) -> Taken;

    /// Puts the response to a request where the host looks for it.
    fn respond(&mut self, request: &Request, response: &[u8]);

    /// What the host has put at a path beside the requests, if anything.
    ///
    /// # Errors
    /// `Interrupted` when everything shall end: what is not known then is not the same as nothing.
    fn read(&mut self, path: &str) -> io::Result<Option<Vec<u8>>>;

    /// The names below such a path.
    ///
    /// # Errors
    /// As `read`.
    fn list(&mut self, path: &str) -> io::Result<Vec<String>>;

    /// Readable when everything shall end.
    fn stop(&self) -> BorrowedFd<'_>;
}

/// Joins them until everything shall end.
pub fn run(carrier: &mut dyn Carrier, mut parse: impl FnMut(&[u8], &mut dyn Carrier) -> Vec<u8>) {
    while let Some(request) = carrier.next() {
        match carrier.take(&request) {
            Taken::Done => {
                let response = parse(&request.data, carrier);
                carrier.respond(&request, &response);
            }
            Taken::Gone => log::info!("request {:?}: the host has taken it back", request.id),
            Taken::Stopped => return,
        }
    }
}
