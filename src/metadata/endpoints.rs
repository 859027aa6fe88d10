//! What the guest asks for: the service's endpoints on one connection.
//!
//! Errors have the body `{"code": string, "message": string}`. JSON is not declared as such, since upstream does not. Bodies are read as
//! they come; only a list of files, of `RESPONSE_MAX` bytes at most, is held whole.

use std::io;
use std::os::fd::AsFd;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::http::connection::Connection;
use crate::http::head::Request;
use crate::http::wait::Limits;
use crate::metadata::actions::{Actions, Claim, Outcome, Ticket};
use crate::metadata::service::{Resolved, Service};
use crate::metaservice::{
    Action, ERROR_HEADER, EXECUTE, FAILED, FILE_NOT_FOUND, Kind, LOG, PING, POLL, REPLY, RESPONSE_MAX, SUCCESS, object,
    strings,
};
use crate::stream::Stream;
use crate::sys::fd::{self, PollSet};
use crate::websocket::key::accept_key;

/// What Go's server finds in short texts; upstream's guest does not look.
const TEXT: (&str, &str) = ("Content-Type", "text/plain; charset=utf-8");

/// Bytes of one read of a log or a file: a chunk of our own guest.
const BLOCK: usize = 256 << 10;

/// Names in a list. Those of a real one have more than 10 bytes, of the `RESPONSE_MAX` that there may be; of shorter ones each takes many
/// times as much memory as it has bytes.
pub const FILES_MAX: usize = 1_000_000;

/// A status, the code that stands for it, and a text for people.
type Refusal = (u16, &'static str, &'static str);

const WRONG_METHOD: Refusal = (405, "MethodNotAllowed", "this endpoint has another method");
const NO_ENDPOINT: Refusal = (404, "NoSuchEndPoint", "there is no such endpoint");
const UNKNOWN_ID: Refusal = (400, "UnknownActionId", "no action with this id waits for a reply");
const CONFLICT: Refusal = (409, "ResourceConflict", "the task has the other result already");
const NO_LOG: Refusal = (500, "InternalError", "the log could not be taken");
const NO_ARTIFACT: Refusal = (500, "InternalError", "the file could not be stored, or broke off");
const NO_BODY: Refusal = (500, "InternalError", "the list could not be read");
const NO_LIST: Refusal = (400, "InvalidPayload", "a list of files is wanted, as application/json");

/// What to do behind a response.
enum Next {
    Respond,
    /// The same, and then tell of the result that came with the request.
    Announce,
    Refuse(Refusal),
    /// Something else has been said already.
    Done,
}

impl Service {
    /// Serves a connection until it ends, or the service.
    ///
    /// # Errors
    /// Of the connection. They are nobody's fault but the guest's.
    pub fn serve_connection(&self, stream: Stream) -> io::Result<()> {
        let mut connection = Connection::over(stream)?;
        let (mut patience, mut has_asked) = (self.timers.first, false);
        loop {
            if !self.rest(&connection, std::mem::replace(&mut patience, self.timers.rest))? {
                return Ok(());
            }
            let request = match connection.request(self.limits().until(Instant::now() + self.timers.head)) {
                Ok(Some(request)) => request,
                Ok(None) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return connection.respond(400, &[], b"", self.response_limits());
                }
                Err(error) => return Err(error),
            };
            if request.path == REPLY {
                let Some(rest) = self.reply(connection, &request)? else { return Ok(()) };
                connection = rest;
                continue;
            }
            if request.path == EXECUTE && request.method == "GET" && !std::mem::replace(&mut has_asked, true) {
                self.note_question();
            }
            let next = self.answer(&mut connection, &request)?;
            let is_result = matches!(next, Next::Announce);
            let responded = self.respond(&mut connection, next);
            // Behind the response, since whoever is told may end the process. So it is not for another connection to tell, not even for one
            // that repeats the result.
            if is_result {
                self.announce();
            }
            responded?;
        }
    }

    /// Waits for the next request; false when the connection was cut meanwhile.
    fn rest(&self, connection: &Connection, patience: Duration) -> io::Result<bool> {
        let number = self.rest.begin(connection.watch())?;
        let begun = connection.wait_for_message(self.limits().until(Instant::now() + patience));
        let is_ours = self.rest.end(number);
        begun.map(|()| is_ours)
    }

    fn limits(&self) -> Limits<'_> {
        Limits { deadline: None, stop: Some(self.stop()) }
    }

    fn response_limits(&self) -> Limits<'_> {
        self.limits().until(Instant::now() + self.timers.response)
    }

    fn respond(&self, connection: &mut Connection, next: Next) -> io::Result<()> {
        match next {
            Next::Respond | Next::Announce => connection.respond(200, &[], b"", self.response_limits()),
            Next::Refuse((status, code, message)) => {
                let body = format!(r#"{{"code":"{code}","message":"{message}"}}"#);
                connection.respond(status, &[TEXT], body.as_bytes(), self.response_limits())
            }
            Next::Done => Ok(()),
        }
    }

    fn answer(&self, connection: &mut Connection, request: &Request) -> io::Result<Next> {
        let method = match request.path.as_str() {
            PING | EXECUTE | POLL => "GET",
            LOG => "POST",
            SUCCESS | FAILED => "PUT",
            path if request.method == "GET" && path.contains("//") => {
                let location = location(request);
                connection.respond(301, &[("Location", &location)], b"", self.response_limits())?;
                return Ok(Next::Done);
            }
            _ => return Ok(Next::Refuse(NO_ENDPOINT)),
        };
        if request.method != method {
            return Ok(Next::Refuse(WRONG_METHOD));
        }
        match request.path.as_str() {
            EXECUTE => {
                connection.respond(200, &[TEXT], self.execute.as_bytes(), self.response_limits())?;
                Ok(Next::Done)
            }
            POLL => self.poll(connection).map(|()| Next::Done),
            LOG => Ok(self.take_log(connection)),
            path @ (SUCCESS | FAILED) => Ok(match self.resolve(path == SUCCESS) {
                Resolved::Now => Next::Announce,
                Resolved::Before => Next::Respond,
                Resolved::Otherwise => Next::Refuse(CONFLICT),
            }),
            _ => Ok(Next::Respond),
        }
    }

    /// Copies a body to the log, each piece as it comes.
    fn take_log(&self, connection: &mut Connection) -> Next {
        let (mut body, mut block) = (connection.body(), vec![0; BLOCK]);
        self.is_log_broken.store(false, Ordering::SeqCst);
        loop {
            let count = match connection.read_body(&mut body, &mut block, self.limits()) {
                Ok(0) => return Next::Respond,
                Ok(count) => count,
                Err(_) => {
                    self.is_log_broken.store(true, Ordering::SeqCst);
                    return Next::Refuse(NO_LOG);
                }
            };
            let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
            if log.write_all(&block[..count]).and_then(|()| log.flush()).is_err() {
                return Next::Refuse(NO_LOG);
            }
        }
    }

    fn poll(&self, connection: &mut Connection) -> io::Result<()> {
        let ticket = self.actions.queue()?;
        let is_there = self.wait_for_action(connection, &ticket);
        let given = self.actions.leave(&ticket);
        let result = is_there.and_then(|()| {
            let action = match &given {
                Some(action) => action.to_json(),
                None => Actions::nothing()?.to_json(),
            };
            connection.respond(200, &[TEXT], action.as_bytes(), self.response_limits())
        });
        if let (Some(Action { id, kind, .. }), Ok(())) = (&given, &result) {
            log::debug!("action {id}: {kind:?} is with the guest");
        }
        match &result {
            Ok(()) => self.actions.taken(&ticket),
            Err(_) => self.actions.give_back(&ticket),
        }
        result
    }

    /// Waits until the poll has an action, or has waited long enough.
    fn wait_for_action(&self, connection: &Connection, ticket: &Ticket) -> io::Result<()> {
        let deadline = Instant::now() + self.timers.idle;
        let mut set = PollSet::default();
        loop {
            set.clear();
            let called = set.watch(ticket.called.as_fd(), fd::READ);
            let peer = set.watch(connection.watch(), fd::PEER_ENDED);
            let stop = set.watch(self.stop(), fd::READ);
            let left = deadline.saturating_duration_since(Instant::now());
            set.wait(Some(left))?;
            if set.ready(peer).hung_up || set.ready(stop).readable {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            if set.ready(called).readable || left.is_zero() {
                return Ok(());
            }
        }
    }

    /// Deals with the reply to an action. Gives the connection back, unless it has become a shell's or has ended.
    fn reply(&self, mut connection: Connection, request: &Request) -> io::Result<Option<Connection>> {
        let id = request.query_value("id").unwrap_or_default();
        let Some(mut claim) = self.actions.claim(id, connection.watch()) else {
            self.respond(&mut connection, Next::Refuse(UNKNOWN_ID))?;
            return Ok(Some(connection));
        };
        if claim.action.kind == Kind::ExecShell {
            return self.shake_hands(connection, request, claim);
        }
        let (next, outcome) = if request.method != "POST" {
            (Next::Refuse(WRONG_METHOD), Outcome::Broken("a reply with another method than POST"))
        } else {
            match claim.action.kind {
                Kind::GetArtifact => self.take_artifact(&mut connection, request, &mut claim),
                Kind::ListFolder => self.take_list(&mut connection, request),
                _ => (Next::Respond, Outcome::Done),
            }
        };
        // Behind the response, since whoever is told may end the process.
        let responded = self.respond(&mut connection, next);
        claim.end(outcome);
        responded.map(|()| Some(connection))
    }

    fn take_artifact(&self, connection: &mut Connection, request: &Request, claim: &mut Claim) -> (Next, Outcome) {
        if request.headers.get(ERROR_HEADER) == Some(FILE_NOT_FOUND) {
            return (Next::Respond, Outcome::NotFound);
        }
        let (mut body, mut block) = (connection.body(), vec![0; BLOCK]);
        loop {
            let count = match connection.read_body(&mut body, &mut block, self.limits()) {
                Ok(0) => return (Next::Respond, Outcome::Done),
                Ok(count) => count,
                Err(_) => return (Next::Refuse(NO_ARTIFACT), Outcome::Broken("the file broke off")),
            };
            if let Some(Err(error)) = claim.store.as_mut().map(|store| store.append(&block[..count])) {
                return (Next::Refuse(NO_ARTIFACT), Outcome::Unstored(error));
            }
        }
    }

    fn take_list(&self, connection: &mut Connection, request: &Request) -> (Next, Outcome) {
        let why = "the reply is no list of files; guests refuse one of more than 10 MiB";
        let invalid = || (Next::Refuse(NO_LIST), Outcome::Broken(why));
        if request.headers.get("content-type") != Some("application/json") {
            return invalid();
        }
        let mut body = connection.body();
        let bytes = match connection.body_within(&mut body, RESPONSE_MAX, self.limits()) {
            Ok(bytes) => bytes,
            // Upstream reads that much of a longer list, which is no JSON then.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return invalid(),
            Err(_) => return (Next::Refuse(NO_BODY), Outcome::Broken("the list of files broke off")),
        };
        let text = std::str::from_utf8(&bytes).ok().filter(|text| has_at_most(FILES_MAX, text));
        let Some(list) = text.and_then(|text| object(text).ok()) else { return invalid() };
        match list.get("notFound") {
            Some(Value::Bool(true)) => return (Next::Respond, Outcome::NotFound),
            None | Some(Value::Null | Value::Bool(false)) => {}
            Some(_) => return invalid(),
        }
        strings(&list, "files").map_or_else(|_| invalid(), |files| (Next::Respond, Outcome::Files(files)))
    }

    /// The server's side of a WebSocket's handshake.
    fn shake_hands(
        &self,
        mut connection: Connection,
        request: &Request,
        claim: Claim,
    ) -> io::Result<Option<Connection>> {
        let key = match upgrade_key(request) {
            Ok(key) => key,
            Err(status) => {
                // Plain text, as of upstream's library.
                let text = match status {
                    405 => "Method Not Allowed\n",
                    403 => "Forbidden\n",
                    _ => "Bad Request\n",
                };
                let headers = [TEXT, ("Sec-WebSocket-Version", "13")];
                let responded = connection.respond(status, &headers, text.as_bytes(), self.response_limits());
                claim.end(Outcome::Broken("the guest's reply is no proper handshake of a WebSocket"));
                return responded.map(|()| Some(connection));
            }
        };
        let accept = accept_key(&key);
        let headers = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", accept.as_str())];
        connection.respond_head(101, &headers, self.response_limits())?;
        let (stream, leftover) = connection.into_parts();
        claim.end(Outcome::Shell(stream, leftover));
        Ok(None)
    }
}

/// Where a request with empty segments in its path should have gone.
fn location(request: &Request) -> String {
    let mut path = String::new();
    for character in request.path.chars() {
        if character != '/' || !path.ends_with('/') {
            path.push(character);
        }
    }
    if request.query.is_empty() { path } else { format!("{path}?{}", request.query) }
}

/// Whether a JSON text has no more items than that, in all that it holds together.
fn has_at_most(items: usize, text: &str) -> bool {
    let (mut commas, mut is_string, mut is_escaped) = (0, false, false);
    for byte in text.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = is_string,
            b'"' => is_string = !is_string,
            b',' if !is_string => commas += 1,
            _ => {}
        }
    }
    commas < items
}

/// The key of a request that wants a WebSocket; else the status of its refusal.
fn upgrade_key(request: &Request) -> Result<String, u16> {
    let headers = &request.headers;
    if request.method != "GET" {
        return Err(405);
    }
    let is_upgrade = headers.is("connection", "upgrade") && headers.is("upgrade", "websocket");
    if !is_upgrade || headers.get("sec-websocket-version") != Some("13") {
        return Err(400);
    }
    // A page in a browser that can reach us must not speak to us in the name of somebody.
    if let Some(origin) = headers.get("origin") {
        let host = origin.split_once("://").map(|(_, host)| host.split(['/', '?', '#']).next().unwrap_or_default());
        if !host.is_some_and(|host| headers.get("host").is_some_and(|own| own.eq_ignore_ascii_case(host))) {
            return Err(403);
        }
    }
    let key = headers.get("sec-websocket-key").filter(|key| !key.is_empty());
    key.map(str::to_owned).ok_or(400)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_counted_outside_of_names() {
        assert!(has_at_most(1, r#"["a,b\",c\\"]"#) && has_at_most(2, r#"["a\\","b"]"#));
        assert!(!has_at_most(1, r#"["a\\","b"]"#) && !has_at_most(2, r#"["a","b",""]"#));
    }
}
