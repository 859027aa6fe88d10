//! What the kernel says of links, addresses and routes, and how it is told.

use std::fmt;
use std::io;
use std::net::IpAddr;

use crate::network::wanted::{Network, Route};
use crate::sys::net::{LOOPBACK, UP};
use crate::sys::netlink::{self, IPV4, IPV6, Socket, attributes, put, u16_at, u32_at};

/// An Ethernet interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mac: [u8; 6],
    pub is_up: bool,
    /// It is a part of another one, as those of bridges and bonds are.
    pub is_part: bool,
}

/// What an address or a route is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// `peer`: the other end, where it is no network. `scope`: that of IPv4; IPv6 addresses have theirs in themselves.
    Address {
        link: u32,
        network: Network,
        peer: Option<IpAddr>,
        scope: u8,
    },
    Route {
        link: u32,
        to: Network,
        gateway: Option<IpAddr>,
        metric: u32,
    },
}

/// Who sees after an address or a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Whoever sets up the network: people, start scripts, DHCP clients, we.
    Setup,
    Kernel,
    /// A router that advertises itself, or a DHCP server for IPv6.
    Router,
    /// A routing program.
    Program,
}

/// An address, or a route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub key: Key,
    pub owner: Owner,
    /// Whether it has no end, and is no address that nothing new uses.
    pub is_lasting: bool,
    /// Whether it is a route that says that nobody is there.
    pub is_barrier: bool,
    /// All links that it goes over.
    pub links: Vec<u32>,
    /// The message that makes it, and takes it away.
    pub body: Vec<u8>,
}

impl Key {
    /// The interface that it belongs to.
    pub fn link(&self) -> u32 {
        let (Key::Address { link, .. } | Key::Route { link, .. }) = self;
        *link
    }

    pub fn is_address(&self) -> bool {
        matches!(self, Key::Address { .. })
    }
}

/// Bytes of the fixed parts of messages: struct ifinfomsg, ifaddrmsg, rtmsg.
const LINK_BYTES: usize = 16;
const ADDRESS_BYTES: usize = 8;
const ROUTE_BYTES: usize = 12;

/// Reads the Ethernet interfaces.
pub fn links(socket: &mut Socket) -> io::Result<Vec<Link>> {
    Ok(socket.dump(netlink::GET_LINK, &[0; LINK_BYTES])?.iter().filter_map(|body| link(body)).collect())
}

/// Reads all addresses, and the routes of the main table.
pub fn items(socket: &mut Socket) -> io::Result<Vec<Item>> {
    let mut items: Vec<Item> =
        socket.dump(netlink::GET_ADDRESS, &[0; ADDRESS_BYTES])?.into_iter().filter_map(address).collect();
    items.extend(socket.dump(netlink::GET_ROUTE, &[0; ROUTE_BYTES])?.into_iter().filter_map(route));
    Ok(items)
}

/// The message that switches a link on or off.
pub fn switch(link: u32, on: bool) -> Vec<u8> {
    let mut body = vec![0; LINK_BYTES];
    body[4..8].copy_from_slice(&link.to_ne_bytes());
    body[8..12].copy_from_slice(&(if on { UP } else { 0 }).to_ne_bytes());
    body[12..16].copy_from_slice(&UP.to_ne_bytes());
    body
}

/// The message that changes what a link is called, its MAC or its MTU.
pub fn renewed(link: u32, name: Option<&str>, mac: Option<[u8; 6]>, mtu: Option<u32>) -> Vec<u8> {
    let mut body = vec![0; LINK_BYTES];
    body[4..8].copy_from_slice(&link.to_ne_bytes());
    if let Some(name) = name {
        put(&mut body, netlink::LINK_NAME, &[name.as_bytes(), b"\0"].concat());
    }
    if let Some(mac) = mac {
        put(&mut body, netlink::LINK_ADDRESS, &mac);
    }
    if let Some(mtu) = mtu {
        put(&mut body, netlink::LINK_MTU, &mtu.to_ne_bytes());
    }
    body
}

/// The message that adds a route, over the link where one is named, through the gateway where there is one.
pub fn route_message(to: Network, gateway: Option<IpAddr>, link: Option<u32>) -> Vec<u8> {
    /// What has no gateway is on the link itself.
    const SCOPE_LINK: u8 = 253;
    let scope = if gateway.is_some() { 0 } else { SCOPE_LINK };
    let (main, by) = (netlink::MAIN_TABLE, netlink::BY_ADMINISTRATOR);
    let mut body = vec![family(to.address), to.prefix_length, 0, 0, main, by, scope, netlink::UNICAST, 0, 0, 0, 0];
    if to.prefix_length > 0 {
        put(&mut body, netlink::ROUTE_TO, &bytes_of(to.address));
    }
    if let Some(gateway) = gateway {
        put(&mut body, netlink::ROUTE_GATEWAY, &bytes_of(gateway));
    }
    if let Some(link) = link {
        put(&mut body, netlink::ROUTE_OVER, &link.to_ne_bytes());
    }
    body
}

/// An address as it is wanted: without an end, and with its broadcast address.
pub fn address_item(link: u32, network: Network) -> Item {
    let mut body = vec![family(network.address), network.prefix_length, 0, 0];
    body.extend_from_slice(&link.to_ne_bytes());
    put(&mut body, netlink::ADDRESS_LOCAL, &bytes_of(network.address));
    put(&mut body, netlink::ADDRESS, &bytes_of(network.address));
    if let (IpAddr::V4(address), ..=30) = (network.address, network.prefix_length) {
        let broadcast = u32::from(address) | u32::MAX >> network.prefix_length;
        put(&mut body, netlink::ADDRESS_BROADCAST, &broadcast.to_be_bytes());
    }
    let key = Key::Address { link, network, peer: None, scope: 0 };
    Item { key, owner: Owner::Setup, is_lasting: true, is_barrier: false, links: vec![link], body }
}

/// A route as it is wanted; `is_near` where an address says that the gateway is a neighbour. Gateways of IPv4 are called neighbours always: the
/// route to the network of the address, by which the kernel would know it, may have been taken away.
pub fn route_item(link: u32, route: Route, metric: u32, is_near: bool) -> Item {
    let Route { to, gateway } = route;
    let by = netlink::BY_ADMINISTRATOR;
    let mut body = vec![family(gateway), to.prefix_length, 0, 0, netlink::MAIN_TABLE, by, 0, netlink::UNICAST];
    body.extend_from_slice(&(if is_near && gateway.is_ipv6() { 0 } else { netlink::ON_LINK }).to_ne_bytes());
    if to.prefix_length > 0 {
        put(&mut body, netlink::ROUTE_TO, &bytes_of(to.address));
    }
    put(&mut body, netlink::ROUTE_GATEWAY, &bytes_of(gateway));
    put(&mut body, netlink::ROUTE_OVER, &link.to_ne_bytes());
    put(&mut body, netlink::ROUTE_METRIC, &metric.to_ne_bytes());
    let key = Key::Route { link, to, gateway: Some(gateway), metric };
    Item { key, owner: Owner::Setup, is_lasting: true, is_barrier: false, links: vec![link], body }
}

/// `None` for what is no Ethernet, and for the loopback.
fn link(body: &[u8]) -> Option<Link> {
    let flags = u32_at(body, 8)?;
    if u16_at(body, 2)? != netlink::ETHERNET || flags & LOOPBACK != 0 {
        return None;
    }
    let (mut name, mut mac, mut is_part) = (None, None, false);
    for (kind, value) in attributes(body.get(LINK_BYTES..)?) {
        match kind {
            netlink::LINK_NAME => name = Some(netlink::text_of(value)),
            netlink::LINK_ADDRESS => mac = value.try_into().ok(),
            netlink::LINK_MASTER => is_part = true,
            _ => {}
        }
    }
    Some(Link { index: u32_at(body, 4)?, name: name?, mac: mac?, is_up: flags & UP != 0, is_part })
}

fn address(body: Vec<u8>) -> Option<Item> {
    let &[family, prefix_length, flags, scope] = body.first_chunk()?;
    let (link, mut flags) = (u32_at(&body, 4)?, u32::from(flags));
    let (mut local, mut peer) = (None, None);
    for (kind, value) in attributes(body.get(ADDRESS_BYTES..)?) {
        match kind {
            netlink::ADDRESS_LOCAL => local = address_of(family, value),
            netlink::ADDRESS => peer = address_of(family, value),
            netlink::ADDRESS_FLAGS => flags = u32_at(value, 0)?,
            _ => {}
        }
    }
    let is_permanent = flags & netlink::PERMANENT != 0;
    // An IPv6 address with an end comes from a router or a DHCP server, and would come again.
    let owner = match () {
        () if scope != 0 => Owner::Kernel,
        () if is_permanent || family == IPV4 => Owner::Setup,
        () => Owner::Router,
    };
    let (address, scope) = (local.or(peer)?, if family == IPV4 { scope } else { 0 });
    let peer = peer.filter(|peer| *peer != address);
    let key = Key::Address { link, network: Network { address, prefix_length }, peer, scope };
    let is_lasting = is_permanent && flags & netlink::DEPRECATED == 0;
    Some(Item { key, owner, is_lasting, is_barrier: false, links: vec![link], body })
}

/// `None` for a route to this machine or to many others, for one that is only for some packets, and for one of another table.
fn route(body: Vec<u8>) -> Option<Item> {
    let &[family, prefix_length, source_length, service, table, by, _, kind] = body.first_chunk()?;
    let flags = u32_at(&body, 8)?;
    let is_barrier = netlink::BARRIERS.contains(&kind);
    let is_plain = source_length == 0 && service == 0 && flags & netlink::CLONED == 0;
    if !is_plain || !is_barrier && kind != netlink::UNICAST || table != netlink::MAIN_TABLE {
        return None;
    }
    let nowhere = address_of(family, &[0; 16][..if family == IPV4 { 4 } else { 16 }])?;
    let (mut to, mut gateway, mut metric, mut links, mut left) = (nowhere, None, 0, Vec::new(), 0);
    for (kind, value) in attributes(body.get(ROUTE_BYTES..)?) {
        match kind {
            netlink::ROUTE_TO => to = address_of(family, value)?,
            netlink::ROUTE_GATEWAY => gateway = address_of(family, value),
            netlink::ROUTE_METRIC => metric = u32_at(value, 0)?,
            netlink::ROUTE_CACHE => left = u32_at(value, 8)?.cast_signed(),
            netlink::ROUTE_OVER => links.push(u32_at(value, 0)?),
            netlink::ROUTE_MULTIPATH => links.extend(next_hops(value)),
            _ => {}
        }
    }
    let owner = match by {
        netlink::BY_NOBODY | netlink::BY_BOOT | netlink::BY_ADMINISTRATOR | netlink::BY_DHCP => Owner::Setup,
        netlink::BY_KERNEL | netlink::BY_REDIRECT => Owner::Kernel,
        netlink::BY_ADVERTISEMENT => Owner::Router,
        _ => Owner::Program,
    };
    let mut body = without_states(&body);
    if left != 0 {
        put(&mut body, netlink::ROUTE_EXPIRES, &left.max(1).cast_unsigned().div_ceil(100).to_ne_bytes());
    }
    // Barriers of IPv4 have no link.
    let link = links.first().copied().or(is_barrier.then_some(0))?;
    let key = Key::Route { link, to: Network { address: to, prefix_length }, gateway, metric };
    Some(Item { key, owner, is_lasting: left == 0, is_barrier, links, body })
}

/// A route's message without the flags that say how its links are, which are refused when they come back.
fn without_states(body: &[u8]) -> Vec<u8> {
    let (fixed, rest) = body.split_at(ROUTE_BYTES);
    let mut clean = fixed.to_vec();
    clean[8..].iter_mut().zip(netlink::ON_LINK.to_ne_bytes()).for_each(|(flags, kept)| *flags &= kept);
    for (kind, value) in attributes(rest) {
        let mut value = value.to_vec();
        let mut at = if kind == netlink::ROUTE_MULTIPATH { 0 } else { value.len() };
        while let Some(length) = u16_at(&value, at) {
            value.iter_mut().skip(at + 2).take(1).for_each(|flags| *flags &= netlink::ON_LINK as u8);
            at += usize::from(length).next_multiple_of(4).max(8);
        }
        put(&mut clean, kind, &value);
    }
    clean
}

/// The links of a route that has many: length u16, flags u8, weight u8, link u32, attributes; one after the other.
fn next_hops(mut bytes: &[u8]) -> Vec<u32> {
    let mut links = Vec::new();
    while let (Some(length), Some(link)) = (u16_at(bytes, 0), u32_at(bytes, 4)) {
        links.push(link);
        bytes = bytes.get(usize::from(length).next_multiple_of(4).max(8)..).unwrap_or_default();
    }
    links
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { IPV4 } else { IPV6 }
}

fn bytes_of(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn address_of(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        IPV4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        IPV6 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_length)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Key::Address { network, .. } => write!(f, "address {network}"),
            Key::Route { to, gateway: Some(gateway), .. } => write!(f, "route {to} via {gateway}"),
            Key::Route { to, .. } => write!(f, "route {to}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(address: &str, prefix_length: u8) -> Network {
        Network { address: address.parse().expect("an address"), prefix_length }
    }

    #[test]
    fn what_is_wanted_is_read_back_as_it_was_written() {
        for wanted in [network("192.0.2.10", 24), network("192.0.2.10", 32), network("2001:db8::10", 64)] {
            let mut item = address_item(7, wanted);
            assert_eq!(address(item.body.clone()).map(|item| item.is_lasting), Some(false));
            put(&mut item.body, netlink::ADDRESS_FLAGS, &netlink::PERMANENT.to_ne_bytes());
            assert_eq!(address(item.body.clone()), Some(item));
        }
        for (to, gateway) in [(network("0.0.0.0", 0), "192.0.2.1"), (network("2001:db8::", 32), "fe80::1")] {
            let item =
                route_item(7, Route { to, gateway: gateway.parse().expect("an address") }, 5, to.prefix_length > 0);
            assert_eq!(route(item.body.clone()), Some(item));
        }
    }

    #[test]
    fn an_address_is_these_bytes() {
        let (length, local) = (u16::to_ne_bytes, [192, 0, 2, 10]);
        let mut bytes = [&[2, 24, 0, 0][..], &7u32.to_ne_bytes()].concat();
        for (kind, value) in [(2, local), (1, local), (4, [192, 0, 2, 255])] {
            bytes.extend([&length(8)[..], &length(kind), &value].concat());
        }
        assert_eq!(address_item(7, network("192.0.2.10", 24)).body, bytes);
    }

    #[test]
    fn owners_of_addresses_and_routes_are_told_from_each_other() {
        let owner = |network, scope, flags: u32| {
            let mut body = address_item(7, network).body;
            body[3] = scope;
            put(&mut body, netlink::ADDRESS_FLAGS, &flags.to_ne_bytes());
            address(body).expect("an address").owner
        };
        assert_eq!(owner(network("192.0.2.1", 24), 0, 0), Owner::Setup, "a lease of DHCP");
        assert_eq!(owner(network("2001:db8::1", 64), 0, netlink::PERMANENT), Owner::Setup);
        assert_eq!(owner(network("2001:db8::1", 64), 0, 0), Owner::Router);
        assert_eq!(owner(network("fe80::1", 64), 253, netlink::PERMANENT), Owner::Kernel);
        let made_by = |by, at: usize, other| {
            let to = network("10.0.0.0", 8);
            let mut body = route_item(7, Route { to, gateway: "192.0.2.1".parse().expect("it") }, 0, true).body;
            (body[5], body[at]) = (by, other);
            route(body).map(|item| item.owner)
        };
        for (by, owner) in [(0, Owner::Setup), (3, Owner::Setup), (16, Owner::Setup), (2, Owner::Kernel)] {
            assert_eq!(made_by(by, 0, 2), Some(owner), "{by}");
        }
        assert_eq!((made_by(9, 0, 2), made_by(12, 0, 2)), (Some(Owner::Router), Some(Owner::Program)));
        // A source, a service, another table, another kind.
        for (at, other) in [(2, 8), (3, 8), (4, 255), (7, 2)] {
            assert_eq!(made_by(3, at, other), None, "{at}");
        }
    }

    #[test]
    fn ends_peers_scopes_and_barriers_are_seen() {
        let mut item = address_item(7, network("192.0.2.10", 24));
        item.body[3] = 253;
        item.body[20..24].copy_from_slice(&[192, 0, 2, 11]);
        put(&mut item.body, netlink::ADDRESS_FLAGS, &(netlink::PERMANENT | netlink::DEPRECATED).to_ne_bytes());
        let found = address(item.body).expect("an address");
        let peer = Some("192.0.2.11".parse().expect("an address"));
        assert_eq!(found.key, Key::Address { link: 7, network: network("192.0.2.10", 24), peer, scope: 253 });
        assert!(!found.is_lasting, "nothing new uses it");
        let wanted = Route { to: network("2001:db8::", 32), gateway: "fe80::1".parse().expect("an address") };
        let mut body = route_item(7, wanted, 5, true).body;
        let before = body.len();
        put(&mut body, netlink::ROUTE_CACHE, &[0u32, 0, 250, 0].map(u32::to_ne_bytes).concat());
        let found = route(body).expect("a route");
        assert!(!found.is_lasting && !found.is_barrier);
        assert_eq!(attributes(&found.body[before..]).last(), Some((netlink::ROUTE_EXPIRES, &3u32.to_ne_bytes()[..])));
        for (kind, expected) in [(6, true), (7, true), (8, true), (9, true), (10, false)] {
            let body = vec![2, 0, 0, 0, netlink::MAIN_TABLE, 3, 0, kind, 0, 0, 0, 0];
            assert_eq!(route(body).is_some_and(|item| item.is_barrier && item.links.is_empty()), expected, "{kind}");
        }
    }

    #[test]
    fn a_route_over_many_links_has_them_all_and_messages_that_are_cut_are_none() {
        let hop = |link: u32| [&8u16.to_ne_bytes()[..], &[16 | 4, 3], &link.to_ne_bytes()].concat();
        let mut body = vec![2, 0, 0, 0, netlink::MAIN_TABLE, 3, 0, netlink::UNICAST, 16, 0, 0, 0];
        put(&mut body, netlink::ROUTE_MULTIPATH, &[hop(7), hop(9)].concat());
        let item = route(body.clone()).expect("a route");
        assert_eq!((&item.links[..], item.key.link(), item.body[8]), (&[7, 9][..], 7, 0), "and no state of the link");
        let hops = attributes(&item.body[ROUTE_BYTES..]).next().expect("them").1;
        assert_eq!(
            (&hops[2..4], &hops[10..12]),
            (&[4, 3][..], &[4, 3][..]),
            "only that they are on the link, and weights"
        );
        assert_eq!(next_hops(&[0; 20]), [0, 0], "a length of 0 ends too");
        for end in 0..body.len() {
            assert_eq!(route(body[..end].to_vec()), None, "{end}");
        }
        let whole = address_item(7, network("192.0.2.1", 24)).body;
        (0..ADDRESS_BYTES + 8).for_each(|end| assert_eq!(address(whole[..end].to_vec()), None, "{end}"));
        (0..40).for_each(|end| assert_eq!(link(&vec![0; end]), None, "{end}"));
    }
}
