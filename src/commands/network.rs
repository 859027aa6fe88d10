//! `network.*`: the network of the machine, set up as OpenStack's hosts want it.

use std::path::Path;

use serde_json::Value;

use crate::commands::arguments::{Arguments, missing};
use crate::commands::{Call, Command, Error, Reply};
use crate::network::wanted::{self, Wanted};
use crate::network::{self, Error as NetworkError};

pub const CONFIGURE: Command = Command {
    name: "network.configure",
    summary: "give interfaces addresses, routes and name servers, and the machine its name; all of them or none",
    arguments: "\
interfaces: objects as OpenStack writes them: mac, ips, ip6s, gateway, gateway_v6, routes, dns; others stay as they are
hostname: up to 63 letters, digits, hyphens and dots; missing: the one that it has",
    run: configure,
};

/// Where the files are.
const ETC: &str = "/etc";

/// Whether `network.configure` takes it for the name of a machine.
pub fn is_host_name(name: &str) -> bool {
    wanted::is_host_name(name)
}

fn configure(arguments: &mut Arguments, _: &Call) -> Result<Reply, Error> {
    let (interfaces, host_name) = (arguments.value("interfaces"), arguments.text("hostname")?);
    arguments.finish()?;
    let interfaces = match interfaces.ok_or_else(|| missing("interfaces"))? {
        Value::Array(interfaces) => interfaces,
        _ => return Err(Error::BadArgument("interfaces: a list is wanted".to_owned())),
    };
    let wanted = Wanted::read(&interfaces, host_name.as_deref()).map_err(error)?;
    let changes = network::configure(&wanted, Path::new(ETC)).map_err(error)?.changes;
    Ok(Reply::of([("changed", (!changes.is_empty()).into()), ("changes", changes.into())]))
}

fn error(error: NetworkError) -> Error {
    match error {
        NetworkError::Bad(text) => Error::BadArgument(text),
        NetworkError::UnknownMac(_) => Error::NotFound(error.to_string()),
        NetworkError::System { what, error } => Error::system(&what, &error),
    }
}
