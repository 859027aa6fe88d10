//! The OpenStack Unix guest agent (nova-agent): requests of the host in a record exchange, and their responses.
//!
//! A carrier of records (`exchange::Carrier`; XenStore is the only one) and a parser of their JSON are joined by one loop: one request at a
//! time, each taken away before it is done. `request` has the JSON, `commands` the commands, `store` the paths, `responses` what becomes of
//! those, `report` what the guest tells about itself. Source: openstack-guest-agents-unix 1.39.1, and the toolstacks of XenServer and XCP-ng for the report.

mod commands;
pub mod exchange;
pub mod report;
pub mod request;
mod responses;
mod store;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use crate::commands::Error;
use crate::commands::table::Table;
use crate::proto::openstack::commands::Commands;
use crate::proto::openstack::report::Report;
use crate::proto::openstack::store::Store;

/// How to serve a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The device or the socket; the usual one for none.
    pub path: Option<PathBuf>,
    /// Whether the host may inject files.
    pub injects: bool,
    /// Whether to tell the host what XCP-ng's and XenServer's tools show.
    pub reports: bool,
}

/// Serves until `stop` is readable. A store that is not there, or goes, is waited for.
pub fn run(config: &Config, table: Arc<Table>, stop: OwnedFd) {
    let report = config.reports.then(|| Report::of("/".into()));
    let mut store = Store::new(config.path.clone(), stop, report);
    let mut commands = Commands::new(table, config.injects);
    exchange::run(&mut store, |data, carrier| commands.answer(data, carrier));
}

/// Makes the network what the store says, once. Whether anything was changed.
///
/// # Errors
/// As those of `network.configure`.
pub fn reset_network(path: Option<PathBuf>, table: Arc<Table>, stop: OwnedFd) -> Result<bool, Error> {
    let mut store = Store::to_read(path, stop).map_err(|error| Error::NotFound(error.to_string()))?;
    commands::reset_network(&table, &mut store)
}
