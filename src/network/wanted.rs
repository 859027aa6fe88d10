//! What a network shall be, as OpenStack's hosts write it: one object an interface, checked as a whole before anything is changed.
//!
//! Members of an object, after nova and the agent that it wrote them for (specification of the OpenStack guest agent, section 5.4); others
//! do not matter, and `null` and the empty text count as missing:
//!
//! - `mac`: of an interface of this machine, in any case;
//! - `ips`: objects with `ip`, `netmask` (dotted) and `enabled` (1, "1" or true; an address without is not wanted);
//! - `ip6s`: objects with `ip` or `address`, `netmask` (the length of the prefix), `enabled`, and `gateway`;
//! - `gateway`; `gateway6` or `gateway_v6`, which come after the gateways of addresses, of which the last counts;
//! - `routes`: objects with `route`, `netmask` and `gateway`, of one family;
//! - `dns`: addresses.

use std::fmt;
use std::net::IpAddr;

use serde_json::{Map, Value};

use crate::network::Error;

/// Interfaces of one request: a machine of OpenStack has at most as many as it has slots.
pub const INTERFACES_MAX: usize = 32;

/// Addresses of one interface and family.
pub const ADDRESSES_MAX: usize = 64;

/// Routes of one interface.
pub const ROUTES_MAX: usize = 256;

/// Name servers that one interface names; a C library asks three of them.
pub const DNS_MAX: usize = 16;

/// Bytes of the longest host name: what every sethostname(2) takes, with a byte left for those that want a NUL.
pub const HOST_NAME_MAX: usize = 63;

/// What the network shall be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub interfaces: Vec<Interface>,
    /// `None`: the one that is.
    pub host_name: Option<String>,
}

/// What one interface shall have, and nothing else of its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub mac: [u8; 6],
    /// As it was written.
    pub mac_text: String,
    /// IPv4 first; none of them twice.
    pub addresses: Vec<Network>,
    /// The default ones first; none of them twice.
    pub routes: Vec<Route>,
    pub dns: Vec<IpAddr>,
}

/// An address with the length of the prefix that its neighbours have in common with it, or where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    pub address: IpAddr,
    pub prefix_length: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    pub to: Network,
    pub gateway: IpAddr,
}

impl Network {
    /// The network that this address is in.
    pub fn masked(self) -> Network {
        let prefix_length = u32::from(self.prefix_length);
        let address = match self.address {
            IpAddr::V4(address) => {
                IpAddr::V4((u32::from(address) & u32::MAX.checked_shl(32 - prefix_length).unwrap_or(0)).into())
            }
            IpAddr::V6(address) => {
                IpAddr::V6((u128::from(address) & u128::MAX.checked_shl(128 - prefix_length).unwrap_or(0)).into())
            }
        };
        Network { address, ..self }
    }

    /// Whether another address is one of its neighbours; those of links are always.
    pub fn reaches(self, other: IpAddr) -> bool {
        let is_of_link = matches!(other, IpAddr::V6(address) if address.is_unicast_link_local());
        let is_same_family = other.is_ipv4() == self.address.is_ipv4();
        is_of_link || is_same_family && Network { address: other, ..self }.masked() == self.masked()
    }
}

impl Wanted {
    /// Reads what is wanted.
    ///
    /// # Errors
    /// `Bad` when anything in it is wrong, and `UnknownMac` for a MAC address that none can be.
    pub fn read(interfaces: &[Value], host_name: Option<&str>) -> Result<Wanted, Error> {
        if interfaces.len() > INTERFACES_MAX {
            return Err(Error::Bad(format!("interfaces: more than the limit of {INTERFACES_MAX}")));
        }
        let mut wanted = Wanted::default();
        for object in interfaces {
            let interface = interface(object)?;
            if wanted.interfaces.iter().any(|other| other.mac == interface.mac) {
                return Err(Error::Bad(format!("interface {}: is there twice", interface.mac_text)));
            }
            wanted.interfaces.push(interface);
        }
        // A file that it was read from may have a line break.
        wanted.host_name = match host_name.map(str::trim).filter(|name| !name.is_empty()) {
            Some(name) if !is_host_name(name) => {
                let wanted = "up to 63 letters, digits, hyphens and dots are wanted";
                return Err(Error::Bad(format!("hostname: {wanted}, no part beginning or ending with a hyphen")));
            }
            name => name.map(str::to_owned),
        };
        Ok(wanted)
    }
}

/// Whether that can be the name of a machine, by RFC 1123.
pub fn is_host_name(name: &str) -> bool {
    let is_label = |label: &str| {
        let plain = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        plain && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    name.len() <= HOST_NAME_MAX && name.split('.').all(is_label)
}

fn interface(object: &Value) -> Result<Interface, Error> {
    let members = object.as_object().ok_or_else(|| Error::Bad("interface: an object is wanted".to_owned()))?;
    let mac = given(members, "mac").ok_or_else(|| Error::Bad("No MAC found in config".to_owned()))?;
    let mac = mac.as_str().map_or_else(|| mac.to_string(), str::to_owned);
    let Some(bytes) = mac_bytes(&mac) else { return Err(Error::UnknownMac(mac)) };
    let within = |why: String| Error::Bad(format!("interface {mac}: {why}"));
    let (ips, ip6s) = (list(members, "ips", ADDRESSES_MAX), list(members, "ip6s", ADDRESSES_MAX));
    let (ips, ip6s) = (ips.map_err(within)?, ip6s.map_err(within)?);
    if ips.is_empty() && ip6s.is_empty() {
        return Err(Error::Bad("No IPs found for interface".to_owned()));
    }
    let addresses = addresses(ips, ip6s).map_err(within)?;
    let routes = routes(members, ip6s, &addresses).map_err(within)?;
    let mut dns = Vec::new();
    for server in list(members, "dns", DNS_MAX).map_err(within)? {
        dns.push(address_of("dns", server).map_err(within)?);
    }
    Ok(Interface { mac: bytes, mac_text: mac, addresses, routes, dns })
}

/// A MAC address; `None` for what is none.
pub fn mac_bytes(text: &str) -> Option<[u8; 6]> {
    let mut parts = text.split(':');
    let mut bytes = [0; 6];
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(bytes)
}

/// Those that are enabled.
fn addresses(ips: &[Value], ip6s: &[Value]) -> Result<Vec<Network>, String> {
    let mut found: Vec<Network> = Vec::new();
    for (name, rows, is_ipv6) in [("ips", ips, false), ("ip6s", ip6s, true)] {
        for row in rows {
            let row = object(name, row)?;
            let address = given(row, "ip").or_else(|| given(row, "address").filter(|_| is_ipv6));
            let address = address_of(name, address.ok_or_else(|| wrong(name, &"an ip", "is missing"))?)?;
            if address.is_ipv6() != is_ipv6 {
                return Err(wrong(name, &address, "is of the other family"));
            }
            let network = Network { address, prefix_length: prefix_length(name, row, address)? };
            if is_enabled(name, row)? && !found.contains(&network) {
                if found.iter().any(|other| other.address == address) {
                    return Err(wrong(name, &address, "is there with two masks"));
                }
                found.push(network);
            }
        }
    }
    Ok(found)
}

/// Default routes, of families that have an address, and then the others.
fn routes(members: &Map<String, Value>, ip6s: &[Value], addresses: &[Network]) -> Result<Vec<Route>, String> {
    let mut gateway6 = None;
    for row in ip6s.iter().filter_map(Value::as_object) {
        if let Some(gateway) = given(row, "gateway").filter(|_| is_enabled("ip6s", row) == Ok(true)) {
            gateway6 = Some(gateway);
        }
    }
    let gateway6 = gateway6.or_else(|| given(members, "gateway6")).or_else(|| given(members, "gateway_v6"));
    let mut found: Vec<Route> = Vec::new();
    for (gateway, is_ipv6) in [(given(members, "gateway"), false), (gateway6, true)] {
        let Some(gateway) = gateway.map(|gateway| address_of("gateway", gateway)).transpose()? else { continue };
        if gateway.is_ipv6() != is_ipv6 {
            return Err(wrong("gateway", &gateway, "is of the other family"));
        }
        if addresses.iter().any(|network| network.address.is_ipv6() == is_ipv6) {
            let everywhere = Network { address: gateway, prefix_length: 0 };
            found.push(Route { to: everywhere.masked(), gateway });
        }
    }
    for row in list(members, "routes", ROUTES_MAX)? {
        let row = object("routes", row)?;
        let [Some(to), Some(gateway)] = ["route", "gateway"].map(|name| given(row, name)) else {
            return Err(wrong("routes", &"a route or its gateway", "is missing"));
        };
        let (to, gateway) = (plain_address("routes", to)?, address_of("routes", gateway)?);
        let to = Network { address: to, prefix_length: prefix_length("routes", row, to)? };
        if to.masked() != to {
            return Err(wrong("routes", &to.address, "is longer than its netmask"));
        }
        if to.address.is_ipv6() != gateway.is_ipv6() {
            return Err(wrong("routes", &gateway, "is of the other family"));
        }
        let route = Route { to, gateway };
        // Hosts name the gateway here once more.
        if !found.contains(&route) {
            found.push(route);
        }
    }
    // The kernel takes its own IPv4 addresses for gateways, and nothing leaves the machine.
    match found.iter().find(|route| addresses.iter().any(|network| network.address == route.gateway)) {
        Some(route) => Err(wrong("gateway", &route.gateway, "is the interface itself")),
        None => Ok(found),
    }
}

/// A member that says something.
fn given<'a>(members: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    members.get(name).filter(|value| !value.is_null() && value.as_str() != Some(""))
}

fn list<'a>(members: &'a Map<String, Value>, name: &str, limit: usize) -> Result<&'a [Value], String> {
    let Some(value) = given(members, name) else { return Ok(&[]) };
    let list = value.as_array().ok_or_else(|| wrong(name, value, "is no list"))?;
    if list.len() > limit {
        return Err(wrong(name, &limit, "is the limit, and there are more"));
    }
    Ok(list)
}

/// One that a machine can have.
fn address_of(what: &str, value: &Value) -> Result<IpAddr, String> {
    let address = plain_address(what, value)?;
    let is_broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() && what != "dns" || is_broadcast {
        return Err(wrong(what, &address, "is not of a machine"));
    }
    Ok(address)
}

fn plain_address(what: &str, value: &Value) -> Result<IpAddr, String> {
    let address = value.as_str().and_then(|text| text.parse().ok());
    address.ok_or_else(|| wrong(what, value, "is no address"))
}

/// What a netmask says of an address: a mask, or for IPv6 also the length itself.
fn prefix_length(what: &str, row: &Map<String, Value>, address: IpAddr) -> Result<u8, String> {
    let value = given(row, "netmask").ok_or_else(|| wrong(what, &address, "has no netmask"))?;
    let mask = value.as_str().and_then(|text| text.parse().ok());
    let length = match (address, mask) {
        (IpAddr::V4(_), Some(IpAddr::V4(mask))) => {
            let mask = u32::from(mask);
            Some(mask.leading_ones()).filter(|ones| mask.checked_shl(*ones).unwrap_or(0) == 0)
        }
        (IpAddr::V6(_), Some(IpAddr::V6(mask))) => {
            let mask = u128::from(mask);
            Some(mask.leading_ones()).filter(|ones| mask.checked_shl(*ones).unwrap_or(0) == 0)
        }
        (IpAddr::V6(_), None) => {
            let number = value.as_u64().or_else(|| value.as_str().and_then(|text| text.parse().ok()));
            number.filter(|number| *number <= 128).map(|number| number as u32)
        }
        _ => None,
    };
    length.map(|length| length as u8).ok_or_else(|| wrong(what, value, "is no netmask of that family"))
}

fn is_enabled(what: &str, row: &Map<String, Value>) -> Result<bool, String> {
    let Some(value) = given(row, "enabled") else { return Ok(false) };
    match (value.as_bool(), value.as_u64(), value.as_str()) {
        (Some(true), ..) | (_, Some(1), _) | (.., Some("1")) => Ok(true),
        (Some(false), ..) | (_, Some(0), _) | (.., Some("0")) => Ok(false),
        _ => Err(wrong(what, value, "is neither 0 nor 1, for enabled")),
    }
}

fn object<'a>(what: &str, value: &'a Value) -> Result<&'a Map<String, Value>, String> {
    value.as_object().ok_or_else(|| wrong(what, value, "is no object"))
}

/// One way to say it, because each costs some hundred bytes of the program.
fn wrong(what: &str, value: &dyn fmt::Display, why: &str) -> String {
    format!("{what}: {value} {why}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// An interface with a good address of each family, and these members in place of its own.
    fn with(members: Value) -> Result<Interface, String> {
        let mut object = json!({
            "mac": "00:11:22:aa:BB:cc",
            "ips": [{ "ip": "192.0.2.10", "netmask": "255.255.255.0", "enabled": "1" }],
            "ip6s": [{ "ip": "2001:db8::10", "netmask": 64, "enabled": "1" }],
        });
        for (name, value) in members.as_object().expect("members") {
            object[name] = value.clone();
        }
        let mut wanted = Wanted::read(&[object], None).map_err(|error| error.to_string())?;
        Ok(wanted.interfaces.remove(0))
    }

    fn network(text: &str) -> Network {
        let (address, length) = text.split_once('/').expect("a prefix");
        Network { address: address.parse().expect("an address"), prefix_length: length.parse().expect("a length") }
    }

    fn route(to: &str, gateway: &str) -> Route {
        Route { to: network(to), gateway: gateway.parse().expect("an address") }
    }

    /// The addresses, with this member in place of the only enabled address.
    fn ip(name: &str, value: Value) -> Result<Vec<Network>, String> {
        let mut row = json!({ "ip": "192.0.2.10", "netmask": "255.255.255.0", "enabled": "1" });
        row[name] = value;
        with(json!({ "ips": [row], "ip6s": null })).map(|interface| interface.addresses)
    }

    fn ip6(row: Value) -> Result<Vec<Network>, String> {
        with(json!({ "ips": [], "ip6s": [row] })).map(|interface| interface.addresses)
    }

    #[test]
    fn what_nova_writes_is_read() {
        let object = json!({"label":"public","mac":"fa:16:3e:00:11:22","gateway":"192.0.2.1","broadcast":"192.0.2.255",
            "ips":[{"ip":"192.0.2.10","enabled":"1","netmask":"255.255.255.0","gateway":"192.0.2.1"}],
            "gateway_v6":"2001:db8::1","ip6s":[{"ip":"2001:db8::10","enabled":"1","netmask":64,"gateway":"2001:db8::1"}],
            "routes":[{"route":"10.0.0.0","netmask":"255.0.0.0","gateway":"192.0.2.2"}],"dns":["192.0.2.53"]});
        let wanted = Wanted::read(&[object], Some("host-1.example.org\n")).expect("it is good");
        assert_eq!(wanted.host_name.as_deref(), Some("host-1.example.org"));
        let expected = Interface {
            mac: [0xfa, 0x16, 0x3e, 0, 0x11, 0x22],
            mac_text: "fa:16:3e:00:11:22".to_owned(),
            addresses: vec![network("192.0.2.10/24"), network("2001:db8::10/64")],
            routes: vec![
                route("0.0.0.0/0", "192.0.2.1"),
                route("::/0", "2001:db8::1"),
                route("10.0.0.0/8", "192.0.2.2"),
            ],
            dns: vec!["192.0.2.53".parse().expect("an address")],
        };
        assert_eq!(wanted.interfaces, [expected]);
    }

    #[test]
    fn a_mac_must_be_there_and_be_one_in_any_case() {
        assert_eq!(with(json!({})).expect("good").mac, [0, 0x11, 0x22, 0xaa, 0xbb, 0xcc]);
        for missing in [json!(null), json!("")] {
            assert_eq!(with(json!({ "mac": missing })), Err("No MAC found in config".to_owned()));
        }
        for wrong in ["001122aabbcc", "00:11:22:aa:bb", "00:11:22:aa:bb:cc:dd", "00:11:22:aa:bb:+c", "x"] {
            assert_eq!(with(json!({ "mac": wrong })), Err(format!("Unknown interface MAC {wrong}")));
        }
        let one = json!({ "mac": "00:11:22:aa:bb:cc", "ips": [{ "ip": "192.0.2.1", "netmask": "255.0.0.0" }] });
        let other = json!({ "mac": "00:11:22:AA:BB:CC", "ips": [{ "ip": "192.0.2.1", "netmask": "255.0.0.0" }] });
        let twice = Wanted::read(&[one, other], None).expect_err("it is there twice").to_string();
        assert_eq!(twice, "interface 00:11:22:AA:BB:CC: is there twice");
        assert!(Wanted::read(&[json!("x")], None).is_err());
        assert_eq!(Wanted::read(&[], None).expect("nothing is wanted"), Wanted::default());
    }

    #[test]
    fn an_interface_without_lists_of_addresses_is_an_error_and_one_with_none_enabled_has_none() {
        for none in [json!(null), json!([]), json!("")] {
            let found = with(json!({ "ips": none, "ip6s": none }));
            assert_eq!(found, Err("No IPs found for interface".to_owned()));
        }
        assert!(with(json!({ "ips": {} })).is_err() && with(json!({ "ips": ["192.0.2.1"] })).is_err());
        for enabled in [json!("1"), json!(1), json!(true)] {
            assert_eq!(ip("enabled", enabled), Ok(vec![network("192.0.2.10/24")]));
        }
        for disabled in [json!("0"), json!(0), json!(false), json!(null)] {
            assert_eq!(ip("enabled", disabled), Ok(vec![]));
        }
        for wrong in [json!("yes"), json!("true"), json!(2), json!([])] {
            assert!(ip("enabled", wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_ipv4_address_has_a_dotted_mask_without_holes() {
        for (mask, length) in [("255.255.255.255", 32), ("255.255.254.0", 23), ("128.0.0.0", 1), ("0.0.0.0", 0)] {
            assert_eq!(ip("netmask", json!(mask)), Ok(vec![network(&format!("192.0.2.10/{length}"))]));
        }
        for wrong in [json!("255.0.255.0"), json!("0.0.0.255"), json!("24"), json!(24), json!(null), json!("ffff::")] {
            assert!(ip("netmask", wrong.clone()).is_err(), "{wrong}");
        }
        for wrong in
            ["192.0.2", "192.0.2.010", "0.0.0.0", "224.0.0.1", "127.0.0.1", "255.255.255.255", "2001:db8::1", "a"]
        {
            assert!(ip("ip", json!(wrong)).is_err(), "{wrong}");
        }
        assert!(ip("ip", json!(null)).is_err() && ip("ip", json!(5)).is_err());
        // Only of IPv6.
        assert!(with(json!({ "ips": [{ "address": "192.0.2.1", "netmask": "255.0.0.0" }] })).is_err());
    }

    #[test]
    fn an_ipv6_address_has_two_names_and_its_mask_is_a_number_in_any_form() {
        for mask in [json!(64), json!("64"), json!("ffff:ffff:ffff:ffff::")] {
            let found = ip6(json!({ "address": "2001:DB8::1", "netmask": mask, "enabled": 1 }));
            assert_eq!(found, Ok(vec![network("2001:db8::1/64")]), "{mask}");
        }
        let of = |mask| ip6(json!({ "ip": "2001:db8::1", "netmask": mask, "enabled": 1 }));
        assert!(of(json!(128)).is_ok() && of(json!(0)).is_ok());
        for wrong in [json!(129), json!(-1), json!(64.5), json!("255.0.0.0"), json!("ffff:0:ffff::"), json!(null)] {
            assert!(of(wrong.clone()).is_err(), "{wrong}");
        }
        for wrong in ["192.0.2.1", "::", "::1", "ff02::1", "fe80::1%eth0"] {
            assert!(ip6(json!({ "ip": wrong, "netmask": 64, "enabled": 1 })).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_address_counts_once_and_has_one_mask() {
        let row = |mask| json!({ "ip": "192.0.2.1", "netmask": mask, "enabled": 1 });
        let same = with(json!({ "ips": [row("255.0.0.0"), row("255.0.0.0")], "ip6s": [] })).expect("good");
        assert_eq!(same.addresses, [network("192.0.2.1/8")]);
        assert!(with(json!({ "ips": [row("255.0.0.0"), row("255.255.0.0")] })).is_err());
    }

    #[test]
    fn the_ipv6_gateway_is_the_last_of_the_addresses_or_one_of_two_members() {
        let row = |gateway: &str, enabled: u8| json!({ "ip": format!("2001:db8::a{enabled}{gateway}"), "netmask": 64, "enabled": enabled, "gateway": format!("fe80::{gateway}") });
        let of = |members| with(members).map(|interface| interface.routes);
        let all =
            json!({ "ip6s": [row("1", 1), row("2", 1), row("3", 0)], "gateway6": "fe80::6", "gateway_v6": "fe80::5" });
        assert_eq!(of(all), Ok(vec![route("::/0", "fe80::2")]));
        assert_eq!(of(json!({ "gateway6": "fe80::6", "gateway_v6": "fe80::5" })), Ok(vec![route("::/0", "fe80::6")]));
        assert_eq!(of(json!({ "gateway6": null, "gateway_v6": "fe80::5" })), Ok(vec![route("::/0", "fe80::5")]));
        assert_eq!(of(json!({ "gateway": null, "gateway6": "" })), Ok(vec![]));
        assert_eq!(of(json!({ "ip6s": [], "gateway_v6": "fe80::5" })), Ok(vec![]), "no address of the family");
        for wrong in [json!("fe80::1"), json!("x"), json!(1), json!("0.0.0.0")] {
            assert!(of(json!({ "gateway": wrong })).is_err());
        }
        assert!(of(json!({ "gateway_v6": "192.0.2.1" })).is_err());
        // Its own address.
        assert!(of(json!({ "gateway": "192.0.2.10" })).is_err() && of(json!({ "gateway6": "2001:db8::10" })).is_err());
    }

    #[test]
    fn neighbours_have_the_prefix_in_common_and_the_family() {
        let reaches = |own: &str, other: &str| network(own).reaches(other.parse().expect("an address"));
        assert!(reaches("192.0.2.10/24", "192.0.2.255") && !reaches("192.0.2.10/24", "192.0.3.1"));
        assert!(reaches("192.0.2.10/0", "198.51.100.1") && !reaches("192.0.2.10/32", "192.0.2.11"));
        assert!(reaches("2001:db8::10/64", "2001:db8::1") && !reaches("2001:db8::10/128", "2001:db8::1"));
        assert!(reaches("2001:db8::10/0", "::2") && reaches("192.0.2.1/32", "fe80::1"));
        assert!(!reaches("2001:db8::10/128", "192.0.2.1") && !reaches("192.0.2.1/0", "2001:db8::1"));
    }

    #[test]
    fn a_route_has_three_members_of_one_family_and_the_gateway_is_none() {
        let row = |to: &str, mask: &str, gateway: &str| json!({ "route": to, "netmask": mask, "gateway": gateway });
        let of = |rows: Value| {
            with(json!({ "gateway": "192.0.2.1", "routes": rows })).map(|interface| interface.routes[1..].to_vec())
        };
        assert_eq!(of(json!([row("0.0.0.0", "0.0.0.0", "192.0.2.1")])), Ok(vec![]));
        assert_eq!(of(json!([row("0.0.0.0", "0.0.0.0", "192.0.2.2")])), Ok(vec![route("0.0.0.0/0", "192.0.2.2")]));
        let twice = json!([row("10.0.0.0", "255.0.0.0", "192.0.2.2"), row("10.0.0.0", "255.0.0.0", "192.0.2.2")]);
        assert_eq!(of(twice), Ok(vec![route("10.0.0.0/8", "192.0.2.2")]));
        for mask in ["32", "ffff:ffff::"] {
            assert_eq!(of(json!([row("2001:db8::", mask, "fe80::1")])), Ok(vec![route("2001:db8::/32", "fe80::1")]));
        }
        for wrong in [
            row("10.0.0.0", "255.0.0.0", ""),
            row("10.0.0.0", "", "192.0.2.2"),
            row("", "255.0.0.0", "192.0.2.2"),
            row("10.0.0.1", "255.0.0.0", "192.0.2.2"),
            row("10.0.0.0", "255.0.255.0", "192.0.2.2"),
            row("10.0.0.0", "8", "192.0.2.2"),
            row("2001:db8::", "255.0.0.0", "fe80::1"),
            row("2001:db8::", "32", "192.0.2.2"),
            row("10.0.0.0", "255.0.0.0", "224.0.0.1"),
            json!("10.0.0.0"),
        ] {
            assert!(of(json!([wrong.clone()])).is_err(), "{wrong}");
        }
    }

    #[test]
    fn name_servers_are_addresses_and_may_be_this_machine() {
        let of = |dns| with(json!({ "dns": dns })).map(|interface| interface.dns.len());
        assert_eq!(of(json!(["192.0.2.53", "2001:db8::53", "127.0.0.53", "192.0.2.53"])), Ok(4));
        assert_eq!((of(json!([])), of(json!(null))), (Ok(0), Ok(0)));
        for wrong in [json!(["dns.example.org"]), json!("192.0.2.53"), json!([null]), json!(["0.0.0.0"])] {
            assert!(of(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn each_list_ends_at_its_limit() {
        let addresses = |count: usize| -> Value {
            (0..count).map(|n| json!({ "ip": format!("10.0.0.{}", n + 1), "netmask": "255.0.0.0" })).collect()
        };
        let routes = |count: usize| -> Value {
            (0..count)
                .map(|n| json!({ "route": format!("10.{n}.0.0"), "netmask": "255.255.0.0", "gateway": "192.0.2.1" }))
                .collect()
        };
        let servers = |count: usize| -> Value { (0..count).map(|n| json!(format!("10.0.0.{}", n + 1))).collect() };
        assert!(with(json!({ "ips": addresses(ADDRESSES_MAX) })).is_ok());
        assert!(with(json!({ "ips": addresses(ADDRESSES_MAX + 1) })).is_err());
        assert!(with(json!({ "routes": routes(ROUTES_MAX) })).is_ok());
        assert!(with(json!({ "routes": (0..=ROUTES_MAX).map(|_| json!(null)).collect::<Value>() })).is_err());
        assert!(with(json!({ "dns": servers(DNS_MAX) })).is_ok());
        assert!(with(json!({ "dns": servers(DNS_MAX + 1) })).is_err());
        let interfaces = |count: usize| -> Vec<Value> {
            (0..count).map(|n| json!({ "mac": format!("00:11:22:33:44:{n:02x}"), "ips": addresses(1) })).collect()
        };
        assert!(Wanted::read(&interfaces(INTERFACES_MAX), None).is_ok());
        assert!(Wanted::read(&interfaces(INTERFACES_MAX + 1), None).is_err());
    }

    #[test]
    fn a_host_name_has_at_most_63_bytes_and_an_empty_one_is_none() {
        let name = |name: &str| Wanted::read(&[], Some(name)).map(|wanted| wanted.host_name);
        let long = "a".repeat(HOST_NAME_MAX);
        for good in ["RESCUE-host", "3com.example.org", &long] {
            assert_eq!(name(good).expect("good").as_deref(), Some(good));
        }
        assert_eq!(name(" \n").expect("none"), None);
        for bad in ["a b", "a.", ".a", "-a", "a-", "a_b", "a\"b", "ä", &format!("{long}a")] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }
}
