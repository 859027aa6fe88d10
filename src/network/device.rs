//! One interface by its name, and routes one by one: what is added to the network that is there.

use std::io;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::sync::PoisonError;
use std::time::Instant;

use crate::network::state::{self, Link};
use crate::network::wanted::Network;
use crate::network::{Error, ONE_AT_A_TIME, PATIENCE};
use crate::sys::interface::NAME_MAX;
use crate::sys::netlink::{self, Refusal, Socket};

/// What an interface shall have; `None` and nothing: what it has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// What it is called now.
    pub device: String,
    pub name: Option<String>,
    pub mac: Option<[u8; 6]>,
    /// Bytes of the largest packet.
    pub mtu: Option<u32>,
    pub addresses: Vec<Network>,
}

/// A route to be added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    pub to: Network,
    pub gateway: Option<IpAddr>,
    pub device: Option<String>,
}

/// Whether an interface may be called that.
pub fn is_name(name: &str) -> bool {
    let is_plain = name.bytes().all(|byte| byte.is_ascii_graphic() && !b"/:".contains(&byte));
    (1..=NAME_MAX).contains(&name.len()) && is_plain && name != "." && name != ".."
}

/// Gives an interface what is wished, and switches it on. What it has besides stays. For another name or MAC it is off for a moment.
///
/// # Errors
/// `System`, of the kind `NotFound` where there is no such interface. What was done before stays done.
pub fn set_up(wish: &Wish) -> Result<(), Error> {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut socket = open()?;
    let links = links(&mut socket)?;
    // Where it was renamed before, it is known by the new name.
    let found = find(&links, &wish.device).or_else(|error| {
        let renamed = wish.name.as_deref().and_then(|name| find(&links, name).ok());
        renamed.ok_or(error)
    })?;
    let Link { index, is_up, ref name, mac, .. } = *found;
    let new_name = wish.name.as_deref().filter(|wanted| wanted != name);
    let new_mac = wish.mac.filter(|wanted| *wanted != mac);
    if is_up && (new_name.is_some() || new_mac.is_some()) {
        ask(&mut socket, &format!("switch off {name}"), netlink::NEW_LINK, 0, &state::switch(index, false))?;
    }
    if new_name.is_some() || new_mac.is_some() || wish.mtu.is_some() {
        let body = state::renewed(index, new_name, new_mac, wish.mtu);
        ask(&mut socket, &format!("change {name}"), netlink::NEW_LINK, 0, &body)?;
    }
    let name = new_name.unwrap_or(name);
    ask(&mut socket, &format!("switch on {name}"), netlink::NEW_LINK, 0, &state::switch(index, true))?;
    for network in &wish.addresses {
        let item = state::address_item(index, *network);
        let flags = netlink::CREATE | netlink::REPLACE;
        ask(&mut socket, &format!("add {network} to {name}"), netlink::NEW_ADDRESS, flags, &item.body)?;
    }
    log::info!("{name}: set up");
    Ok(())
}

/// Adds routes; one to the same place with the same metric is replaced.
///
/// # Errors
/// As `set_up`.
pub fn add_routes(ways: &[Way]) -> Result<(), Error> {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut socket = open()?;
    let links = links(&mut socket)?;
    for way in ways {
        let link = way.device.as_deref().map(|device| find(&links, device)).transpose()?.map(|link| link.index);
        let body = state::route_message(way.to, way.gateway, link);
        let what = format!("add the route to {}", way.to);
        ask(&mut socket, &what, netlink::NEW_ROUTE, netlink::CREATE | netlink::REPLACE, &body)?;
    }
    Ok(())
}

/// Removes an interface that is only the kernel's; one of a device is switched off.
///
/// # Errors
/// As `set_up`.
pub fn delete(device: &str) -> Result<(), Error> {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut socket = open()?;
    let links = links(&mut socket)?;
    let index = find(&links, device)?.index;
    ask(&mut socket, &format!("switch off {device}"), netlink::NEW_LINK, 0, &state::switch(index, false))?;
    match socket.request(netlink::DELETE_LINK, 0, &state::renewed(index, None, None, None)) {
        Err(Refusal { error, .. }) if error.kind() == ErrorKind::Unsupported => Ok(()),
        result => result.map_err(|refusal| refused(&format!("delete {device}"), refusal)),
    }
}

fn open() -> Result<Socket, Error> {
    Socket::open(Instant::now() + PATIENCE).map_err(|error| Error::system("open a netlink socket", error))
}

fn links(socket: &mut Socket) -> Result<Vec<Link>, Error> {
    state::links(socket).map_err(|error| Error::system("read interfaces", error))
}

fn find<'a>(links: &'a [Link], name: &str) -> Result<&'a Link, Error> {
    let none = || io::Error::new(ErrorKind::NotFound, "no such interface");
    links.iter().find(|link| link.name == name).ok_or_else(|| Error::system(name, none()))
}

fn ask(socket: &mut Socket, what: &str, kind: u16, flags: u16, body: &[u8]) -> Result<(), Error> {
    socket.request(kind, flags, body).map_err(|refusal| refused(what, refusal))
}

fn refused(what: &str, refusal: Refusal) -> Error {
    let error = Error::system(what, refusal.error);
    if refusal.text.is_empty() { error } else { error.and(&refusal.text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_called_what_the_kernel_takes() {
        for good in ["eth0", "a", "en-p0.s1", &"x".repeat(NAME_MAX)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a:1", "a b", "ä", "a\n", &"x".repeat(NAME_MAX + 1)] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
