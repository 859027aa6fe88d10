//! The commands of the OpenStack guest agent: its names, its words, and our commands behind them.
//!
//! | name | value | success |
//! | --- | --- | --- |
//! | `version` | – | our version |
//! | `features` | – | the names, with commas between |
//! | `keyinit` | the host's public key | code `D0`, our public key |
//! | `password` | base 64 of the encrypted password of root | – |
//! | `resetnetwork` | –; what is wanted stands in `vm-data` | – |
//! | `injectfile` | base 64 of `path,content` | – |

use std::io;
use std::path::Path;
use std::sync::Arc;

use data_encoding::BASE64;
use serde_json::{Map, Value};

use crate::commands::arguments::Arguments;
use crate::commands::table::{Entry, Table};
use crate::commands::{Call, Error, file, network, user};
use crate::password::agreement::{self, Agreement};
use crate::password::cipher;
use crate::proto::openstack::exchange::Carrier;
use crate::proto::openstack::request::{self, Response};
use crate::sys::random;
use crate::version::VERSION;

/// Whose password hosts set.
const USER: &str = "root";

/// Where hosts put what a guest's network shall be: a node for each interface, named by its MAC, and the host name.
const INTERFACES: &str = "vm-data/networking";
const HOST_NAME: &str = "vm-data/hostname";

/// The command that sets a network.
const CONFIGURE: &str = "network.configure";

/// The commands, with the state that they have between them.
pub struct Commands {
    table: Arc<Table>,
    /// Whether hosts may inject files.
    injects: bool,
    /// Of the last `keyinit`, until a password was set with it.
    agreed: Option<(Agreement, u128)>,
}

impl Commands {
    pub fn new(table: Arc<Table>, injects: bool) -> Commands {
        Commands { table, injects, agreed: None }
    }

    /// The response to a request. What the values are is said to nobody: passwords and files are among them.
    pub fn answer(&mut self, data: &[u8], carrier: &mut dyn Carrier) -> Vec<u8> {
        let response = match request::read(data) {
            Ok((name, value)) => {
                let response = guarded(|| self.run(&name, &value, carrier));
                match response.code {
                    "500" => log::warn!("command {name:?}: {}", response.text()),
                    code => log::info!("command {name:?}: {code}"),
                }
                response
            }
            Err(response) => {
                log::warn!("a request that is none: {}", response.text());
                response
            }
        };
        response.encode()
    }

    fn run(&mut self, name: &str, value: &Value, carrier: &mut dyn Carrier) -> Response {
        match name {
            "version" => Response::done(VERSION),
            "features" => Response::done(self.features()),
            "keyinit" => self.agree(value),
            "password" => self.set_password(value, carrier).unwrap_or_else(Response::failed),
            "resetnetwork" => match reset_network(&self.table, carrier) {
                Ok(_) => Response::done(""),
                Err(error) => Response::failed(error.to_string()),
            },
            "injectfile" if self.injects => inject(value).unwrap_or_else(Response::failed),
            _ => Response::unknown(name),
        }
    }

    fn features(&self) -> String {
        let names = ["features", "injectfile", "keyinit", "password", "resetnetwork", "version"];
        names.into_iter().filter(|name| self.injects || *name != "injectfile").collect::<Vec<_>>().join(",")
    }

    /// Hosts send their key as a text or as a number.
    fn agree(&mut self, value: &Value) -> Response {
        let key = match value {
            Value::String(text) => agreement::public_key(text),
            Value::Number(number) => agreement::public_key(&number.to_string()),
            _ => None,
        };
        let Some(theirs) = key else { return Response::failed("The public key is no number that a key can be") };
        match random::getrandom() {
            Ok(private) => {
                let agreement = Agreement::of(private);
                let message = agreement.public().to_string();
                self.agreed = Some((agreement, theirs));
                Response { code: "D0", message }
            }
            Err(error) => Response::failed(Error::system("find a private key", &error).to_string()),
        }
    }

    fn set_password(&mut self, value: &Value, carrier: &dyn Carrier) -> Result<Response, String> {
        let sealed = decoded(value).ok_or("Couldn't decode base64 data")?;
        let (agreement, theirs) = self.agreed.as_ref().ok_or("Password without key exchange")?;
        let phrase = agreement.secret(*theirs).to_string();
        let plain = cipher::decrypt(&phrase, &sealed).map_err(|error| match error {
            cipher::Error::Length => format!("The password data is no whole number of {} bytes", cipher::BLOCK),
            cipher::Error::Damaged => "Invalid password data received".to_owned(),
        })?;
        let hash = user::hashed(plain.trim_matches('\n').as_bytes()).map_err(|error| error.to_string())?;
        let call = Call { table: &self.table, caller: None, stop: Some(carrier.stop()) };
        user::set(USER, &hash, || call.is_given_up()).map_err(|error| error.to_string())?;
        self.agreed = None;
        Ok(Response::done(""))
    }
}

/// Runs a command whose panic is an answer like another.
#[cfg(panic = "unwind")]
fn guarded(run: impl FnOnce() -> Response) -> Response {
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
    result.unwrap_or_else(|_| Response::failed("The command panicked"))
}

/// Runs a command. Its panic ends the agent, whose process 1 starts it again; the request is taken away by then.
#[cfg(not(panic = "unwind"))]
fn guarded(run: impl FnOnce() -> Response) -> Response {
    run()
}

/// Base 64, as loosely as upstream reads it: what is none of its characters is skipped, because lines may be wrapped.
fn decoded(value: &Value) -> Option<Vec<u8>> {
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=".contains(byte);
    let digits: Vec<u8> = value.as_str()?.bytes().filter(is_digit).collect();
    BASE64.decode(&digits).ok()
}

fn inject(value: &Value) -> Result<Response, String> {
    let both = decoded(value).ok_or("Error doing base64 decoding of data")?;
    let comma = both.iter().position(|byte| *byte == b',').ok_or("No comma between path and content")?;
    let path = str::from_utf8(&both[..comma]).map_err(|_| "The path is not UTF-8")?;
    file::put(Path::new(path), &both[comma + 1..]).map_err(|error| error.to_string())?;
    Ok(Response::done(""))
}

/// Makes the network what the host wants it to be. Whether anything was changed.
///
/// # Errors
/// As those of `network.configure`, `BadArgument` for a node that is no JSON, and `Interrupted` or `Failed` when not all could be read.
pub fn reset_network(table: &Arc<Table>, carrier: &mut dyn Carrier) -> Result<bool, Error> {
    let mut interfaces = Vec::new();
    let failed = |path: &str, error: io::Error| match error.kind() {
        io::ErrorKind::Interrupted => Error::Interrupted(format!("read {path}: {error}")),
        _ => Error::Failed(format!("read {path}: {error}")),
    };
    for name in carrier.list(INTERFACES).map_err(|error| failed(INTERFACES, error))? {
        let path = format!("{INTERFACES}/{name}");
        // It may have gone since.
        let Some(text) = carrier.read(&path).map_err(|error| failed(&path, error))? else { continue };
        let object = request::object(&text).ok_or_else(|| Error::BadArgument(format!("{path}: no JSON object")))?;
        interfaces.push(Value::Object(object));
    }
    let mut wanted = Map::new();
    wanted.insert("interfaces".to_owned(), interfaces.into());
    let host_name = carrier.read(HOST_NAME).map_err(|error| failed(HOST_NAME, error))?;
    let host_name = host_name.map(|text| String::from_utf8_lossy(&text).trim().to_owned());
    match host_name.filter(|name| !name.is_empty()) {
        Some(name) if network::is_host_name(&name) => drop(wanted.insert("hostname".to_owned(), name.into())),
        // Hosts let people choose it, and a machine needs its network all the same.
        Some(name) => log::warn!("{HOST_NAME}: {name:?} is no name of a machine; it keeps the one that it has"),
        None => {}
    }
    let Some(Entry::BuiltIn(command)) = table.find(CONFIGURE)? else {
        return Err(Error::Unsupported(format!("{CONFIGURE}: is not in this agent")));
    };
    let call = Call { table, caller: None, stop: Some(carrier.stop()) };
    let reply = (command.run)(&mut Arguments::of(wanted), &call)?;
    Ok(reply.members.get("changed").and_then(Value::as_bool).unwrap_or(true))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn base_64_is_read_loosely() {
        for text in ["aGVsbG8=", " aGVs\nbG8=\n", "aGVs-bG8="] {
            assert_eq!(decoded(&json!(text)).as_deref(), Some(&b"hello"[..]), "{text}");
        }
        for none in [json!("aGVsbG8"), json!("a"), json!("===="), json!(7), json!(null)] {
            assert_eq!(decoded(&none), None, "{none}");
        }
        assert_eq!(decoded(&json!("")).as_deref(), Some(&b""[..]));
    }
}
