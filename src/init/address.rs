//! The address of a network interface, for guests whose kernel sets none: `lodger.address=[INTERFACE:]ADDRESS/BITS`.

use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::init::console::Console;
use crate::sys::errno::describe;
use crate::sys::interface::{self, NAME_MAX};
use crate::sys::net::{self, Fact};

/// How long the interface may take to come: its driver may have been loaded a moment ago.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often to look for it. The kernel tells of it by netlink, which is not worth its code for a machine's first seconds.
const LOOK: Duration = Duration::from_millis(50);

/// An address for an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// `None`: the Ethernet interface with the lowest number.
    interface: Option<String>,
    address: Ipv4Addr,
    /// Of the network, 1 to 32.
    bits: u32,
}

/// Reads `[INTERFACE:]ADDRESS/BITS`.
pub fn parse(text: &str) -> Option<Address> {
    let (interface, network) = match text.split_once(':') {
        Some((name, network)) => (Some(name.to_owned()), network),
        None => (None, text),
    };
    let is_name = |name: &String| !name.is_empty() && name.len() <= NAME_MAX && !name.contains('/');
    let (address, bits) = network.split_once('/')?;
    // `parse` would take a sign.
    let digits = bits.bytes().all(|byte| byte.is_ascii_digit());
    let bits = bits.parse().ok().filter(|bits| digits && (1..=32).contains(bits))?;
    interface.iter().all(is_name).then_some(Address { interface, address: address.parse().ok()?, bits })
}

/// An address that is to be set as soon as its interface is there.
pub struct Wish {
    address: Address,
    /// The next look, and when to give up.
    next: Instant,
    until: Instant,
}

impl Wish {
    pub fn new(address: Address, now: Instant) -> Wish {
        Wish { address, next: now, until: now + PATIENCE }
    }

    /// When to look again.
    pub fn deadline(&self) -> Instant {
        self.next
    }

    /// Sets the address if its time has come and the interface is there; what is left to wish.
    pub fn fulfil_if_due(mut self, now: Instant, console: &mut Console) -> Option<Wish> {
        if now < self.next {
            return Some(self);
        }
        let name = self.address.interface.clone().or_else(first_ethernet);
        let result = match &name {
            Some(name) => self.address.set(name),
            None => Err(io::Error::from_raw_os_error(interface::ENODEV)),
        };
        let error = result.err()?;
        if error.raw_os_error() == Some(interface::ENODEV) && now < self.until {
            self.next = now + LOOK;
            return Some(self);
        }
        let what = name.unwrap_or_else(|| "an Ethernet interface".to_owned());
        console.line(&format!("set the address of {what} to {}: {}", self.address.address, describe(&error)));
        None
    }
}

impl Address {
    fn set(&self, name: &str) -> io::Result<()> {
        let mask = u32::MAX << (32 - self.bits);
        interface::set_address(name, self.address)?;
        interface::set_mask(name, Ipv4Addr::from(mask))?;
        interface::switch_on(name)
    }
}

fn first_ethernet() -> Option<String> {
    let links = net::entries().unwrap_or_default().into_iter().filter_map(|entry| match entry.fact {
        Fact::Link { index, .. } => Some((index, entry.name)),
        Fact::Address { .. } => None,
    });
    let ethernet = links.filter(|(_, name)| interface::is_ethernet(name).unwrap_or(false));
    ethernet.min().map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_the_bits_of_its_network_and_perhaps_an_interface() {
        let found = |interface: Option<&str>, address: [u8; 4], bits| {
            Some(Address { interface: interface.map(str::to_owned), address: address.into(), bits })
        };
        assert_eq!(parse("169.254.1.2/16"), found(None, [169, 254, 1, 2], 16));
        assert_eq!(parse("eth1:10.0.0.2/32"), found(Some("eth1"), [10, 0, 0, 2], 32));
        assert_eq!(parse("name-of-15-byte:10.0.0.2/1"), found(Some("name-of-15-byte"), [10, 0, 0, 2], 1));
    }

    #[test]
    fn what_is_no_address_is_none() {
        for wrong in ["", "10.0.0.2", "10.0.0/8", "10.0.0.2/", "10.0.0.2/0", "10.0.0.2/33", "10.0.0.2/+8", "::1/64"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        for wrong in [":10.0.0.2/8", "name-of-16-bytes:10.0.0.2/8", "a/b:10.0.0.2/8", "eth0:fe80::1/64"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_interface_that_is_not_there_is_waited_for_and_then_given_up() {
        let (start, mut console) = (Instant::now(), Console::nowhere());
        let address = parse("no-such-device:10.0.0.2/8").expect("an address");
        let wish = Wish::new(address, start).fulfil_if_due(start, &mut console).expect("it may come");
        assert_eq!(wish.deadline(), start + LOOK);
        let wish = wish.fulfil_if_due(start, &mut console).expect("it is not due");
        assert!(wish.fulfil_if_due(start + PATIENCE, &mut console).is_none());
    }
}
