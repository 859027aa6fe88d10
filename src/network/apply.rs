//! From the network that is to the one that is wanted, by the fewest changes, or back.
//!
//! Of each interface go its addresses of global scope that are not wanted, and its routes in the main table that an administrator, a start
//! script or a DHCP client made. Routes of the kernel (to the networks of addresses), of routers' advertisements and of routing programs stay,
//! and so do IPv6 addresses that have an end, as those from advertisements have; unless they are what is wanted in all but that. A route that
//! says that nobody is there goes where a wanted one leads and would be asked after it.
//!
//! Of two wanted routes to the same place, as default routes of two interfaces are, the first is used; the others have higher metrics. So has
//! one to where a route leads that stays; but one from an advertisement on the same interfaces stays behind what is wanted. A gateway in no network of the addresses is taken for a neighbour all the same, as subnets with
//! gateways from outside of them need it.

use std::io::ErrorKind;
use std::time::Instant;

use crate::network::state::{self, Item, Key, Link, Owner};
use crate::network::wanted::{Interface, Network, Route};
use crate::network::{Error, PATIENCE};
use crate::sys::file::ESRCH;
use crate::sys::netlink::{self, Refusal, Socket};

/// How often changes are compared with what they led to. The kernel takes more away than it is told: with the first IPv4 address of a network
/// the others in it, with the last one of an interface all its routes, with any the routes that name it as source. The next round puts that
/// right; what is not right in the end, somebody else keeps changing. Four are the most that are needed.
const ROUNDS_MAX: usize = 8;

/// Metric of routes: the kernel's own for those without one.
const IPV4_METRIC: u32 = 0;
const IPV6_METRIC: u32 = 1024;

/// Interfaces that are set up together.
struct Setup<'a> {
    socket: &'a mut Socket,
    interfaces: &'a [(Link, &'a Interface)],
    /// The changes so far, in words.
    done: Vec<String>,
    /// Of the present round: somebody else has added it meanwhile, or something that cannot be told from it.
    exists: Option<Error>,
}

/// What is not as it shall be.
#[derive(Default)]
struct Difference<'a> {
    /// Addresses beside which missing ones cannot be, whoever made them.
    in_the_way: Vec<&'a Item>,
    /// Missing ones.
    addresses: Vec<&'a Item>,
    routes: Vec<&'a Item>,
    /// Routes, and then addresses.
    unwanted: Vec<&'a Item>,
}

/// Makes the interfaces what they shall be; gives the changes in words, none where they are that already.
///
/// # Errors
/// `System` with the operation; everything is as it was then, or the text says that it is not.
pub fn apply(socket: &mut Socket, interfaces: &[(Link, &Interface)]) -> Result<Vec<String>, Error> {
    let mut setup = Setup { socket, interfaces, done: Vec::new(), exists: None };
    let before = setup.items()?;
    let goal = setup.goal(&before);
    let result = setup.switch_on().and_then(|()| setup.reach(&goal));
    if let Err(error) = result {
        // What was wanted may have used up all of the time.
        setup.socket.set_deadline(Instant::now() + PATIENCE);
        return Err(if setup.undo(before, &goal).is_ok() {
            error
        } else {
            error.and("earlier changes are not undone")
        });
    }
    Ok(setup.done)
}

impl Setup<'_> {
    fn items(&mut self) -> Result<Vec<Item>, Error> {
        state::items(self.socket).map_err(|error| Error::system("read addresses and routes", error))
    }

    fn has(&self, link: u32) -> bool {
        self.interfaces.iter().any(|(own, _)| own.index == link)
    }

    /// Whether it goes when it is not wanted.
    fn is_ours(&self, item: &Item) -> bool {
        let Key::Route { to, metric, .. } = item.key else { return self.is_of_setup(item) };
        if !item.is_barrier {
            return self.is_of_setup(item);
        }
        // One that is asked after what is wanted is left to whoever made it.
        let mut routes = self.interfaces.iter().flat_map(|(_, wanted)| &wanted.routes);
        item.owner == Owner::Setup && routes.any(|route| route.to == to && metric <= usual_metric(route))
    }

    fn is_of_setup(&self, item: &Item) -> bool {
        item.owner == Owner::Setup && item.links.iter().all(|link| self.has(*link))
    }

    /// Addresses and routes that shall be there, in the order in which they are added.
    fn goal(&self, before: &[Item]) -> Vec<Item> {
        let mut goal = Vec::new();
        // The kernel makes one of two IPv6 routes to one place with one metric, but of those that it has from advertisements itself.
        let mut taken: Vec<(Network, u32)> = Vec::new();
        let mut advertised: Vec<(Network, u32)> = Vec::new();
        for item in before.iter().filter(|item| !self.is_ours(item)) {
            let Key::Route { link, to, metric, .. } = item.key else { continue };
            // Those of the kernel come and go with our addresses.
            if item.owner != Owner::Kernel || !self.has(link) {
                taken.push((to, metric));
            }
            if item.owner == Owner::Router && self.has(link) {
                advertised.push((to, metric));
            }
        }
        for (link, wanted) in self.interfaces {
            goal.extend(wanted.addresses.iter().map(|network| state::address_item(link.index, *network)));
            taken.extend(wanted.addresses.iter().map(|network| (network.masked(), IPV4_METRIC)));
        }
        for (link, wanted) in self.interfaces {
            for route in &wanted.routes {
                let is_near = wanted.addresses.iter().any(|network| network.reaches(route.gateway));
                let metric = free_metric(&mut taken, &advertised, route);
                goal.push(state::route_item(link.index, *route, metric, is_near));
            }
        }
        goal
    }

    fn switch_on(&mut self) -> Result<(), Error> {
        for (link, _) in self.interfaces.iter().filter(|(link, _)| !link.is_up) {
            let body = state::switch(link.index, true);
            let answer = self.socket.request(netlink::NEW_LINK, 0, &body);
            answer.map_err(|refusal| refused(format!("switch on {}", link.name), refusal))?;
            self.done.push(format!("{}: switched on", link.name));
        }
        Ok(())
    }

    /// Changes the kernel's state until it is the goal: addresses until they stay, and only then routes, whose gateways must be neighbours of
    /// the new addresses, and none of the old ones.
    fn reach(&mut self, goal: &[Item]) -> Result<(), Error> {
        for _ in 0..ROUNDS_MAX {
            let found = self.items()?;
            let Difference { in_the_way, addresses, routes, unwanted } = self.difference(&found, goal);
            if in_the_way.len() + addresses.len() + routes.len() + unwanted.len() == 0 {
                return Ok(());
            }
            self.exists = None;
            let is_stable = addresses.is_empty() && unwanted.is_empty();
            in_the_way.into_iter().try_for_each(|item| self.remove(item))?;
            addresses.into_iter().try_for_each(|item| self.add(item))?;
            unwanted.into_iter().try_for_each(|item| self.remove(item))?;
            if is_stable {
                routes.into_iter().try_for_each(|item| self.add(item))?;
            }
        }
        let busy = || Error::system("set up the network, which keeps changing", ErrorKind::ResourceBusy.into());
        Err(self.exists.take().unwrap_or_else(busy))
    }

    fn difference<'a>(&self, found: &'a [Item], goal: &'a [Item]) -> Difference<'a> {
        let mut difference = Difference::default();
        for item in goal {
            if !found.iter().any(|other| other.key == item.key && other.is_lasting == item.is_lasting) {
                let missing = if item.key.is_address() { &mut difference.addresses } else { &mut difference.routes };
                missing.push(item);
            }
        }
        // Routes may need the addresses.
        for are_addresses in [false, true] {
            for item in found.iter().filter(|item| item.key.is_address() == are_addresses) {
                // An address gets other lifetimes as it is.
                let is_same =
                    |other: &Item| other.key == item.key && (are_addresses || other.is_lasting == item.is_lasting);
                if difference.addresses.iter().any(|other| is_in_the_way(&item.key, &other.key)) {
                    difference.in_the_way.push(item);
                } else if self.is_ours(item) && !goal.iter().any(is_same) {
                    difference.unwanted.push(item);
                }
            }
        }
        difference
    }

    fn add(&mut self, item: &Item) -> Result<(), Error> {
        let (kind, flags) = match item.key.is_address() {
            // Its lifetimes may be others.
            true => (netlink::NEW_ADDRESS, netlink::CREATE | netlink::REPLACE),
            false => (netlink::NEW_ROUTE, netlink::CREATE),
        };
        match self.socket.request(kind, flags, &item.body) {
            Ok(()) => self.done.push(format!("{}: {} added", self.name(item), item.key)),
            Err(refusal) => {
                let is_there = refusal.error.kind() == ErrorKind::AlreadyExists;
                let error = refused(format!("add {} to {}", item.key, self.name(item)), refusal);
                if !is_there {
                    return Err(error);
                }
                self.exists = Some(error);
            }
        }
        Ok(())
    }

    fn remove(&mut self, item: &Item) -> Result<(), Error> {
        let kind = if item.key.is_address() { netlink::DELETE_ADDRESS } else { netlink::DELETE_ROUTE };
        match self.socket.request(kind, 0, &item.body) {
            Ok(()) => self.done.push(format!("{}: {} removed", self.name(item), item.key)),
            // It went with another one.
            Err(Refusal { error, .. })
                if error.raw_os_error() == Some(ESRCH) || error.kind() == ErrorKind::AddrNotAvailable => {}
            Err(refusal) => return Err(refused(format!("remove {} from {}", item.key, self.name(item)), refusal)),
        }
        Ok(())
    }

    /// Back to what was there. What was switched on is last: with it go the IPv6 addresses and all routes.
    /// Addresses of others that were wanted with other lifetimes, or were in the way, come back too.
    fn undo(&mut self, mut before: Vec<Item>, goal: &[Item]) -> Result<(), Error> {
        let was_changed =
            |item: &Item| goal.iter().any(|other| other.key == item.key || is_in_the_way(&item.key, &other.key));
        before.retain(|item| self.is_ours(item) || item.key.is_address() && was_changed(item));
        self.reach(&before)?;
        for (link, _) in self.interfaces.iter().filter(|(link, _)| !link.is_up) {
            let body = state::switch(link.index, false);
            let answer = self.socket.request(netlink::NEW_LINK, 0, &body);
            answer.map_err(|refusal| refused(format!("switch off {}", link.name), refusal))?;
        }
        Ok(())
    }

    fn name(&self, item: &Item) -> &str {
        let found = self.interfaces.iter().find(|(link, _)| link.index == item.key.link());
        // A barrier is before all of them.
        found.map_or("all", |(link, _)| &link.name)
    }
}

/// The lowest metric with which no other route leads to the same place; it begins before those of routes from advertisements.
fn free_metric(taken: &mut Vec<(Network, u32)>, advertised: &[(Network, u32)], route: &Route) -> u32 {
    let mut metric = usual_metric(route);
    for (_, other) in advertised.iter().filter(|(to, _)| *to == route.to) {
        // The kernel takes 0 for its own.
        metric = metric.min(other.saturating_sub(1).max(1));
    }
    while taken.contains(&(route.to, metric)) {
        metric += 1;
    }
    taken.push((route.to, metric));
    metric
}

fn usual_metric(route: &Route) -> u32 {
    if route.gateway.is_ipv4() { IPV4_METRIC } else { IPV6_METRIC }
}

/// Whether an address cannot be beside a missing one: an interface has an IPv6 address only once, and one of IPv4 once with each mask.
fn is_in_the_way(one: &Key, missing: &Key) -> bool {
    match (one, missing) {
        (Key::Address { link, network, .. }, Key::Address { link: other_link, network: other, .. }) => {
            let is_once = network.address.is_ipv6() || network.prefix_length == other.prefix_length;
            link == other_link && network.address == other.address && one != missing && is_once
        }
        _ => false,
    }
}

fn refused(what: String, refusal: Refusal) -> Error {
    let error = Error::system(&what, refusal.error);
    if refusal.text.is_empty() { error } else { error.and(&refusal.text) }
}
