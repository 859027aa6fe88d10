//! The responses that are in a store, and how there is room for more of them.
//!
//! Hosts read responses and leave them there, and the store holds few: some 50 of them in the C daemon, where the names of all children of a
//! node share its 2 KiB. So old ones are removed.

use std::collections::VecDeque;

use serde_json::Value;

use crate::proto::openstack::request::Response;
use crate::xenstore::client::{Client, Error};

/// Where they are.
pub const RESPONSES: &str = "data/guest";

/// Responses that stay when old ones are removed: hosts may not have read the last ones.
const KEPT: usize = 8;

/// Bytes of the ids that are known. Above it the oldest goes, which the host may have removed long ago: a list of names that is longer than
/// a message, 4096 bytes, nobody gets any more, and others have names there, too.
const KNOWN_MAX: usize = 3000;

/// The ids of responses, oldest first. The host may have removed some of them.
#[derive(Default)]
pub struct Responses {
    ids: VecDeque<String>,
}

impl Responses {
    /// Finds those that are there already, of whatever agent, and removes the oldest.
    ///
    /// # Errors
    /// Of a connection that is lost.
    pub fn adopt(&mut self, client: &mut Client) -> Result<(), Error> {
        let names = match client.list(RESPONSES) {
            Ok(names) => names,
            // The first response makes it.
            Err(error) if error.is("ENOENT") => Vec::new(),
            Err(error) => return told("list responses", error),
        };
        self.ids.retain(|id| names.contains(id));
        let mut older = VecDeque::new();
        for id in names {
            if self.ids.contains(&id) {
                continue;
            }
            match client.read(&format!("{RESPONSES}/{id}")) {
                Ok(value) if is_response(&value) => older.push_back(id),
                Err(Error::Lost(error)) => return Err(Error::Lost(error)),
                _ => {}
            }
        }
        // The C daemon lists them in the order of their making.
        older.append(&mut self.ids);
        self.ids = older;
        self.prune(client, KEPT)
    }

    /// Puts a response there. Where there is no room for it, older ones go; where it is too long, another one says that.
    ///
    /// # Errors
    /// As the store has it, once no older one is left.
    pub fn put(&mut self, client: &mut Client, id: &str, response: &[u8]) -> Result<(), Error> {
        self.ids.retain(|known| known != id);
        while self.ids.iter().map(|known| known.len() + 1).sum::<usize>() > KNOWN_MAX {
            self.prune(client, self.ids.len() - 1)?;
        }
        let path = format!("{RESPONSES}/{id}");
        let short = Response::failed("The response is too long for this store").encode();
        let (mut response, mut kept) = (response, KEPT);
        loop {
            match client.write(&path, response) {
                // Of a value that is too long, whatever else is there.
                Err(error) if error.is("E2BIG") && response.len() > short.len() => {
                    log::warn!("response {id:?}: {error}");
                    response = &short;
                }
                Err(error) if error.is_full() && !error.is("E2BIG") && !self.ids.is_empty() => {
                    self.prune(client, kept)?;
                    // When that was not enough the next ones go, too.
                    kept = kept.min(self.ids.len()).saturating_sub(1);
                }
                Err(error) => return Err(error),
                Ok(()) => {
                    self.ids.push_back(id.to_owned());
                    return Ok(());
                }
            }
        }
    }

    /// Takes those in that another one has found meanwhile.
    pub fn join(&mut self, others: Responses) {
        let new = others.ids.into_iter().filter(|id| !self.ids.contains(id)).collect::<Vec<_>>();
        // They were there before the last one of these.
        new.into_iter().rev().for_each(|id| self.ids.push_front(id));
    }

    /// Removes the oldest, until so many are left.
    fn prune(&mut self, client: &mut Client, kept: usize) -> Result<(), Error> {
        while self.ids.len() > kept {
            let Some(id) = self.ids.front() else { break };
            match client.remove(&format!("{RESPONSES}/{id}")) {
                // The host has removed all of them.
                Err(error) if error.is("ENOENT") => {}
                Err(error) => told(&format!("remove response {id:?}"), error)?,
                Ok(()) => {}
            }
            self.ids.pop_front();
        }
        Ok(())
    }
}

/// An error of the store is told, and is none any more; that of a connection is one still.
pub fn told(what: &str, error: Error) -> Result<(), Error> {
    match error {
        Error::Lost(_) => Err(error),
        Error::Refused(_) => {
            log::warn!("{what}: {error}");
            Ok(())
        }
    }
}

/// Whether a value is a response of this protocol: others may keep their own things there.
fn is_response(value: &[u8]) -> bool {
    let value: Result<Value, _> = serde_json::from_slice(value);
    value.is_ok_and(|value| value["returncode"].is_string() && value["message"].is_string())
}
