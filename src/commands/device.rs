//! `network.add-routes`, `network.delete-interface`, `network.set-dns`, `network.set-interface`: the network, one piece after the other.

use std::net::IpAddr;
use std::path::Path;

use serde_json::Value;

use crate::commands::arguments::{Arguments, missing};
use crate::commands::{Call, Command, Error, Reply};
use crate::network::device::{self, Way, Wish};
use crate::network::wanted::Network;
use crate::network::{self, Error as NetworkError};

pub const ADD_ROUTES: Command = Command {
    name: "network.add-routes",
    summary: "add routes to those that are there",
    arguments: "routes: objects with to (ADDRESS/BITS or default), gateway and device; one of the last two may be missing",
    run: add_routes,
};

pub const DELETE_INTERFACE: Command = Command {
    name: "network.delete-interface",
    summary: "remove an interface, or switch off one that a device stands behind",
    arguments: "device: its name",
    run: delete_interface,
};

pub const SET_DNS: Command = Command {
    name: "network.set-dns",
    summary: "name the servers that know host names, in /etc/resolv.conf",
    arguments: "\
servers: list of addresses
search: list of domains (none)
options: list of words (none)",
    run: set_dns,
};

pub const SET_INTERFACE: Command = Command {
    name: "network.set-interface",
    summary: "give an interface a name, a MAC, an MTU and more addresses, and switch it on",
    arguments: "\
device: what it is called now
name: what it shall be called (the same)
mac: its MAC address (the one that it has)
mtu: bytes of its largest packet, 68 to 65535 (what it has)
addresses: list of ADDRESS/BITS, added to those that it has (none)",
    run: set_interface,
};

/// Where the files are.
const ETC: &str = "/etc";

/// Entries of each list: more than any host has sent.
const LISTED_MAX: usize = 256;

fn set_interface(arguments: &mut Arguments, _: &Call) -> Result<Reply, Error> {
    let device = arguments.text("device")?;
    let (name, mac, mtu) = (arguments.text("name")?, arguments.text("mac")?, arguments.number::<u32>("mtu")?);
    let addresses = bounded("addresses", arguments.texts("addresses")?)?;
    arguments.finish()?;
    let device = device.ok_or_else(|| missing("device"))?;
    if let Some(name) = name.as_ref().filter(|name| !device::is_name(name)) {
        return Err(Error::BadArgument(format!("name: no interface can be called {name:?}")));
    }
    if let Some(mtu) = mtu.filter(|mtu| !(68..=65_535).contains(mtu)) {
        return Err(Error::BadArgument(format!("mtu: a number from 68 to 65535 is wanted, and not {mtu}")));
    }
    let no_mac = |mac: &str| Error::BadArgument(format!("mac: {mac} is no MAC address"));
    let mac = mac.map(|mac| network::wanted::mac_bytes(&mac).ok_or_else(|| no_mac(&mac))).transpose()?;
    let addresses = addresses.iter().map(|text| network_of("addresses", text)).collect::<Result<_, _>>()?;
    device::set_up(&Wish { device, name, mac, mtu, addresses }).map_err(error)?;
    Ok(Reply::default())
}

fn add_routes(arguments: &mut Arguments, _: &Call) -> Result<Reply, Error> {
    let routes = arguments.value("routes");
    arguments.finish()?;
    let routes = match routes.ok_or_else(|| missing("routes"))? {
        Value::Array(routes) => bounded("routes", Some(routes))?,
        _ => return Err(Error::BadArgument("routes: a list is wanted".to_owned())),
    };
    let ways = routes.into_iter().map(way).collect::<Result<Vec<Way>, Error>>()?;
    device::add_routes(&ways).map_err(error)?;
    Ok(Reply::default())
}

fn way(value: Value) -> Result<Way, Error> {
    let Value::Object(members) = value else {
        return Err(Error::BadArgument("routes: objects are wanted".to_owned()));
    };
    let mut members = Arguments::of(members);
    let (to, gateway, device) = (members.text("to")?, members.text("gateway")?, members.text("device")?);
    members.finish()?;
    let to = to.ok_or_else(|| missing("to"))?;
    let gateway = gateway.map(|text| address_of("gateway", &text)).transpose()?;
    if gateway.is_none() && device.is_none() {
        return Err(missing("gateway or device"));
    }
    let everywhere = gateway.unwrap_or(IpAddr::from([0, 0, 0, 0]));
    let to = match to.as_str() {
        "default" => Network { address: everywhere, prefix_length: 0 }.masked(),
        to => network_of("to", to)?.masked(),
    };
    if gateway.is_some_and(|gateway| gateway.is_ipv4() != to.address.is_ipv4()) {
        return Err(Error::BadArgument("gateway: is of the other family".to_owned()));
    }
    Ok(Way { to, gateway, device })
}

fn delete_interface(arguments: &mut Arguments, _: &Call) -> Result<Reply, Error> {
    let device = arguments.text("device")?;
    arguments.finish()?;
    device::delete(&device.ok_or_else(|| missing("device"))?).map_err(error)?;
    Ok(Reply::default())
}

fn set_dns(arguments: &mut Arguments, _: &Call) -> Result<Reply, Error> {
    let servers = arguments.texts("servers")?;
    let (search, options) = (arguments.texts("search")?, arguments.texts("options")?);
    arguments.finish()?;
    let servers = bounded("servers", Some(servers.ok_or_else(|| missing("servers"))?))?;
    let servers = servers.iter().map(|text| address_of("servers", text)).collect::<Result<Vec<_>, _>>()?;
    let (search, options) = (words("search", search)?, words("options", options)?);
    let changed = network::set_name_servers(&servers, &search, &options, Path::new(ETC)).map_err(error)?;
    Ok(Reply::of([("changed", changed.into())]))
}

fn words(name: &str, list: Option<Vec<String>>) -> Result<Vec<String>, Error> {
    let words = bounded(name, list)?;
    match words.iter().find(|word| word.is_empty() || !word.bytes().all(|byte| byte.is_ascii_graphic())) {
        Some(word) => Err(Error::BadArgument(format!("{name}: {word:?} is no word"))),
        None => Ok(words),
    }
}

fn bounded<T>(name: &str, list: Option<Vec<T>>) -> Result<Vec<T>, Error> {
    let list = list.unwrap_or_default();
    if list.len() > LISTED_MAX {
        return Err(Error::BadArgument(format!("{name}: more than the limit of {LISTED_MAX}")));
    }
    Ok(list)
}

/// `ADDRESS/BITS`; an address alone is that one alone.
fn network_of(name: &str, text: &str) -> Result<Network, Error> {
    let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
    let address = address_of(name, address)?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let length = bits.map_or(Some(most), |bits| bits.parse().ok()).filter(|length| *length <= most);
    let bad = || Error::BadArgument(format!("{name}: {text} is no address with the bits of its network"));
    Ok(Network { address, prefix_length: length.ok_or_else(bad)? })
}

fn address_of(name: &str, text: &str) -> Result<IpAddr, Error> {
    text.parse().map_err(|_| Error::BadArgument(format!("{name}: {text} is no address")))
}

fn error(error: NetworkError) -> Error {
    match error {
        NetworkError::System { what, error } => Error::system(&what, &error),
        other => Error::BadArgument(other.to_string()),
    }
}
