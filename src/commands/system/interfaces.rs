//! Network interfaces, each with its addresses.

use serde_json::Value;

use crate::commands::Reply;
use crate::sys::net::{Entry, Fact, LOOPBACK, RUNNING, UP};

/// Bytes of the hardware addresses that are MAC addresses.
const MAC_BYTES: usize = 6;

/// One interface for each that the entries name, in their order. `mtu` finds out what is not in them; it may not.
pub fn grouped(entries: &[Entry], mtu: impl Fn(&str) -> Option<i32>) -> Vec<Value> {
    let mut groups: Vec<(&str, Vec<&Entry>)> = Vec::new();
    for entry in entries {
        // No interface has a colon in its name, but labels of its addresses have.
        let name = entry.name.split(':').next().unwrap_or_default();
        match groups.iter_mut().find(|(other, _)| *other == name) {
            Some((_, group)) => group.push(entry),
            None => groups.push((name, vec![entry])),
        }
    }
    groups.iter().map(|(name, group)| interface(name, group, mtu(name))).collect()
}

fn interface(name: &str, entries: &[&Entry], mtu: Option<i32>) -> Value {
    let is = |flag| entries.iter().any(|entry| entry.flags & flag != 0);
    let mut found = Reply::of([
        ("name", name.into()),
        ("up", is(UP).into()),
        ("running", is(RUNNING).into()),
        ("loopback", is(LOOPBACK).into()),
    ]);
    let mut addresses = Vec::new();
    for entry in entries {
        match &entry.fact {
            Fact::Link { index, hardware_address } => {
                found.put("index", *index);
                if hardware_address.len() == MAC_BYTES {
                    let pairs: Vec<String> = hardware_address.iter().map(|byte| format!("{byte:02x}")).collect();
                    found.put("mac", pairs.join(":"));
                }
            }
            Fact::Address { address, prefix_length } => {
                addresses.push(Value::Object(
                    Reply::of([("address", address.to_string().into()), ("prefix_length", (*prefix_length).into())])
                        .members,
                ));
            }
        }
    }
    found.put("addresses", addresses);
    if let Some(mtu) = mtu {
        found.put("mtu", mtu);
    }
    Value::Object(found.members)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn entries_of_one_interface_come_together_whatever_their_labels_are() {
        let link = |name: &str, index, flags, hardware_address: &[u8]| {
            let fact = Fact::Link { index, hardware_address: hardware_address.to_vec() };
            Entry { name: name.to_owned(), flags, fact }
        };
        let address = |name: &str, flags, text: &str, prefix_length| {
            let fact = Fact::Address { address: text.parse().expect("an address"), prefix_length };
            Entry { name: name.to_owned(), flags, fact }
        };
        let entries = [
            link("lo", 1, UP | RUNNING | LOOPBACK, &[0; 6]),
            link("ib0", 7, 0, &[1; 8]),
            address("lo", UP | RUNNING | LOOPBACK, "127.0.0.1", 8),
            address("lo:x", UP | RUNNING | LOOPBACK, "127.0.0.2", 32),
            address("lo", UP | RUNNING | LOOPBACK, "::1", 128),
        ];
        let lo = json!({
            "name": "lo", "index": 1, "up": true, "running": true, "loopback": true, "mac": "00:00:00:00:00:00", "mtu": 65536,
            "addresses": [
                { "address": "127.0.0.1", "prefix_length": 8 },
                { "address": "127.0.0.2", "prefix_length": 32 },
                { "address": "::1", "prefix_length": 128 },
            ],
        });
        let ib0 =
            json!({ "name": "ib0", "index": 7, "up": false, "running": false, "loopback": false, "addresses": [] });
        assert_eq!(grouped(&entries, |name| (name == "lo").then_some(65536)), [lo, ib0]);
    }
}
