//! What hyperstart's hosts say of networks, as the commands of the table want it.

use std::fs::File;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::proto::hyper::process::Members;
use crate::sys::errno;

/// Written to, it makes the kernel look for PCI devices that were plugged in without a word to it.
const RESCAN: &str = "/sys/bus/pci/rescan";

/// Makes the kernel look for new devices, where it has a PCI bus. It has them when this returns; a refusal is only a line of the log.
pub fn look_for_devices() {
    if let Err(error) = write_one(Path::new(RESCAN)) {
        log::warn!("write {RESCAN}: {}", errno::describe(&error));
    }
}

/// Writes 1 to a file that may be missing, and is not made.
fn write_one(path: &Path) -> io::Result<()> {
    match File::options().write(true).open(path).and_then(|mut file| file.write_all(b"1")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// The arguments of `network.set-interface` for an interface; the older form has its one address in the object itself.
pub fn interface(value: &Value) -> Result<Value, String> {
    let members = Members::of(value, "interface")?;
    let mut addresses = Vec::new();
    for address in members.list("ipAddresses")? {
        addresses.extend(address_of(&Members::of(address, "ipAddresses")?)?);
    }
    if addresses.is_empty() {
        addresses.extend(address_of(&members)?);
    }
    let mut arguments = Map::new();
    for (name, member) in [("device", "device"), ("name", "newDeviceName"), ("mac", "macAddr")] {
        let text = members.text(member)?;
        if !text.is_empty() {
            arguments.insert(name.to_owned(), text.into());
        }
    }
    let mtu = members.number("mtu")?;
    if mtu > 0 {
        arguments.insert("mtu".to_owned(), mtu.into());
    }
    arguments.insert("addresses".to_owned(), addresses.into());
    Ok(Value::Object(arguments))
}

/// The arguments of `network.add-routes` for routes; `None` when there are none.
pub fn routes(members: &Members) -> Result<Option<Value>, String> {
    let mut routes = Vec::new();
    for route in members.list("routes")? {
        let route = Members::of(route, "routes")?;
        let to = route.text("dest")?;
        let mut object = Map::new();
        object.insert("to".to_owned(), if to.is_empty() { "default".into() } else { to.into() });
        for name in ["gateway", "device"] {
            let text = route.text(name)?;
            if !text.is_empty() {
                object.insert(name.to_owned(), text.into());
            }
        }
        routes.push(Value::Object(object));
    }
    Ok((!routes.is_empty()).then(|| json!({ "routes": routes })))
}

/// The arguments of `network.set-dns` for a pod; `None` when it names no server.
pub fn name_servers(members: &Members) -> Result<Option<Value>, String> {
    let servers = members.texts("dns")?;
    let (search, options) = (members.texts("dnsSearch")?, members.texts("dnsOptions")?);
    Ok((!servers.is_empty()).then(|| json!({ "servers": servers, "search": search, "options": options })))
}

/// `ADDRESS/BITS` of an object with `ipAddress` and `netMask`, where it has one.
fn address_of(members: &Members) -> Result<Option<String>, String> {
    let address = members.text("ipAddress")?;
    if address.is_empty() || address.contains('/') {
        return Ok(Some(address).filter(|address| !address.is_empty()));
    }
    let mask = match members.get("netMask") {
        Some(Value::Number(number)) => number.to_string(),
        _ => members.text("netMask")?,
    };
    if mask.is_empty() {
        return Ok(Some(address));
    }
    let bits = bits_of(&mask).ok_or_else(|| format!("netMask: {mask} is no mask"))?;
    Ok(Some(format!("{address}/{bits}")))
}

/// The length of a mask that is written as one, or as that length.
fn bits_of(mask: &str) -> Option<u32> {
    if let Ok(bits) = mask.parse() {
        return Some(bits);
    }
    let (ones, zeros) = match mask.parse().ok()? {
        IpAddr::V4(mask) => (u32::from(mask).leading_ones(), u32::from(mask).trailing_zeros()),
        IpAddr::V6(mask) => (u128::from(mask).leading_ones(), u128::from(mask).trailing_zeros()),
    };
    let most = if mask.contains(':') { 128 } else { 32 };
    (ones + zeros == most).then_some(ones)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_that_is_missing_is_not_made_and_no_error() {
        let path = std::env::temp_dir().join(format!("lodger-rescan-{}", std::process::id()));
        assert!(write_one(&path).is_ok() && !path.exists());
        std::fs::write(&path, "").expect("a file");
        assert!(write_one(&path).is_ok());
        assert_eq!(std::fs::read(&path).expect("a file"), b"1");
        std::fs::remove_file(&path).expect("the file is ours");
        assert!(write_one(&std::env::temp_dir()).is_err());
    }

    #[test]
    fn a_mask_is_a_length_or_ones_in_front() {
        for (mask, bits) in [
            ("24", Some(24)),
            ("255.255.255.0", Some(24)),
            ("0.0.0.0", Some(0)),
            ("255.255.255.255", Some(32)),
            ("ffff:ffff::", Some(32)),
            ("255.0.255.0", None),
            ("x", None),
            ("-1", None),
        ] {
            assert_eq!(bits_of(mask), bits, "{mask}");
        }
    }

    #[test]
    fn both_forms_of_an_interface_are_read() {
        let new = json!({ "device": "eth0", "newDeviceName": "net0", "mtu": 1400, "macAddr": "02:00:00:00:00:01",
            "ipAddresses": [{ "ipAddress": "192.0.2.2", "netMask": "24" }, { "ipAddress": "2001:db8::2", "netMask": "64" }] });
        let wanted = json!({ "device": "eth0", "name": "net0", "mtu": 1400, "mac": "02:00:00:00:00:01",
            "addresses": ["192.0.2.2/24", "2001:db8::2/64"] });
        assert_eq!(interface(&new), Ok(wanted));
        let old = json!({ "device": "eth0", "ipAddress": "192.0.2.2", "netMask": "255.255.0.0", "mtu": 0 });
        assert_eq!(interface(&old), Ok(json!({ "device": "eth0", "addresses": ["192.0.2.2/16"] })));
        assert!(interface(&json!({ "device": 1 })).is_err() && interface(&json!([])).is_err());
    }
}
