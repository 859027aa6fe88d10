//! What the OpenStack guest agent does at boot, as a command.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use lexopt::{Arg, Parser};

use crate::cli::log::log_to_stderr;
use crate::cli::{Command, Failure, no_more};
use crate::commands::table::Table;
use crate::proto::openstack;
use crate::sys::{errno, signal};

pub const OPENSTACK: Command = Command {
    name: "openstack",
    summary: "in a Xen guest: what OpenStack's host wants of it",
    help: "usage: lodger openstack resetnetwork [--xenstore PATH]

Makes the network of this guest what stands in XenStore below vm-data: once, for boot scripts.
Interfaces are found by their MAC addresses; addresses, routes, /etc/resolv.conf, the host name
and its line in /etc/hosts are set. What is right already is not touched.

  --xenstore PATH   the device or socket (default XENSTORED_PATH, /dev/xen/xenbus,
                    /proc/xen/xenbus, a socket in /var/run/xenstored)

`lodger serve --listen xenstore:` serves the host's requests as nova-agent does: version,
features, keyinit and password, resetnetwork, injectfile. With ,no-injectfile behind it (or
--no-injectfile) the host cannot inject files; with ,report (or --xen-report) it is told addresses,
system and memory, as XCP-ng's and XenServer's tools want them. All of it works from
/etc/lodger/lodger.conf and lodger.listen= too.

Exit status: 0 when the network is as it is wanted, 125 when not.
",
    run,
};

fn run(mut parser: Parser) -> Result<ExitCode, Failure> {
    let wrong = || Failure::new("resetnetwork is wanted: there is nothing else");
    match parser.next()? {
        Some(Arg::Value(name)) if name == "resetnetwork" => {}
        Some(Arg::Value(_)) | None => return Err(wrong()),
        Some(other) => return Err(other.unexpected().into()),
    }
    let mut path = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("xenstore") => path = Some(PathBuf::from(parser.value()?)),
            other => return Err(other.unexpected().into()),
        }
    }
    no_more(&mut parser)?;
    log_to_stderr("warn");
    let stop = signal::into_pipe(&[signal::SIGTERM, signal::SIGINT]);
    let stop = stop.map_err(|error| Failure::new(errno::describe(&error)))?;
    let changed = openstack::reset_network(path, Arc::new(Table::of_agent()), stop);
    let changed = changed.map_err(|error| Failure::new(error.to_string()))?;
    log::info!("the network {}", if changed { "was changed" } else { "was right" });
    Ok(ExitCode::SUCCESS)
}
