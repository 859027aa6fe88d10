//! What an agent is told: by the options of `serve`, by its own configuration file, and by that of Google's guest agent.
//!
//! An option wins over the files. Google's file is named by an option, so what it says of its command monitor wins over our own file; its
//! listeners come to the others. Where nobody says anything the defaults count, and a wrong word is an error in any case.

mod google;
pub mod ini;
mod own;

use std::fmt;
use std::path::{Path, PathBuf};

use crate::commands::program;
use crate::commands::table::Table;
use crate::config::ini::Text;
use crate::config::own::Own;
use crate::exec::user;
use crate::proto;
#[cfg(feature = "metadata")]
use crate::proto::metadata;
use crate::proto::settings::Settings;
use crate::server::Config;
#[cfg(feature = "openstack")]
use crate::transport::XenStore;
use crate::transport::auto::{self, Console};
use crate::transport::{self, Addr, Carrier};

/// The file that is read when no other is named, if it is there.
const FILE: &str = "/etc/lodger/lodger.conf";

/// One thing to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    Addr(Addr),
    Auto(Console),
}

/// What the options say; as texts, because they are checked as those of the files are.
#[derive(Debug, Default)]
pub struct Options {
    pub listen: Vec<String>,
    /// For when nobody else says anything.
    pub listen_default: Vec<String>,
    pub request_timeout: Option<String>,
    pub commands: Option<PathBuf>,
    pub config: Option<PathBuf>,
    pub google_config: Option<PathBuf>,
    /// `auto`, wherever it stands, leaves the console's line alone.
    pub spare_console: bool,
    /// Where a metadata service is.
    #[cfg(feature = "metadata")]
    pub metadata: Option<String>,
    /// No host may inject files through XenStore, whatever the address says.
    #[cfg(feature = "openstack")]
    pub without_injection: bool,
    /// Every host is told about the guest through XenStore.
    #[cfg(feature = "openstack")]
    pub xen_reports: bool,
}

/// What an agent is to be.
pub struct Told {
    pub config: Config,
    /// Lowest level of the log.
    pub log: Option<&'static str>,
}

/// Why an agent cannot be what it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// An option's value, in a sentence.
    Option(String),
    File(ini::Error),
    /// Google's file wants no listener, and nobody else does.
    Nowhere(PathBuf),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Error::Option(text) => f.write_str(text),
            Error::File(error) => error.fmt(f),
            Error::Nowhere(file) => write!(
                f,
                "{}: command_monitor_enabled is not true in [Unstable], and nothing else says where to listen",
                file.display()
            ),
        }
    }
}

impl From<ini::Error> for Error {
    fn from(error: ini::Error) -> Error {
        Error::File(error)
    }
}

/// Puts together what an agent is told.
///
/// # Errors
/// Whatever is wrong in an option or in a file, and a file that is named and not there.
pub fn read(options: &Options) -> Result<Told, Error> {
    let text = match &options.config {
        Some(file) => Some(Text::read(file)?),
        None => Text::read_if_there(Path::new(FILE))?,
    };
    let own = text.as_ref().map(Own::read).transpose()?.unwrap_or_default();
    let monitor = options.google_config.as_deref().map(google::read).transpose()?.flatten();
    let given = ways_of(&options.listen)?;
    let default = ways_of(&options.listen_default)?;
    let mut ways = if given.is_empty() { own.ways } else { given };
    let mut timeout = own.request_timeout;
    if let Some(monitor) = monitor {
        ways.extend(monitor.addrs.into_iter().map(Way::Addr));
        timeout = monitor.request_timeout.or(timeout);
    }
    if let Some(text) = &options.request_timeout {
        timeout = Some(own::time(text).map_err(|why| Error::Option(format!("--request-timeout {why}")))?);
    }
    if ways.is_empty() {
        ways = default;
    }
    if ways.is_empty() {
        match &options.google_config {
            Some(file) => return Err(Error::Nowhere(file.clone())),
            None => ways.push(way(transport::DEFAULT).map_err(Error::Option)?),
        }
    }
    let directory = options.commands.clone().or(own.commands_directory).unwrap_or_else(|| program::DIRECTORY.into());
    let mut table = Table::of_agent().with_directory(directory);
    if let Some(limit) = own.command_timeout {
        table = table.with_time_limit(limit);
    }
    let mut settings = Settings::with(table);
    settings.request_timeout = timeout.unwrap_or(settings.request_timeout);
    settings.request_max = own.request_size.unwrap_or(settings.request_max);
    let mut config = Config::with(settings);
    config.connections_max = own.connections.unwrap_or(config.connections_max);
    #[cfg(feature = "metadata")]
    {
        let given = options.metadata.as_deref().map(metadata::Config::at).transpose();
        config.metadata = given.map_err(|why| Error::Option(format!("--metadata {why}")))?.or(own.metadata);
    }
    for way in ways {
        match way {
            #[cfg(feature = "openstack")]
            Way::Addr(Addr { carrier: Carrier::XenStore(store), .. }) => {
                let store = XenStore {
                    without_injection: store.without_injection || options.without_injection,
                    reports: store.reports || options.xen_reports,
                    ..store
                };
                config.addrs.push(Addr { carrier: Carrier::XenStore(store), protocol: None });
            }
            Way::Addr(addr) => config.addrs.push(addr),
            Way::Auto(_) if options.spare_console => config.auto = Some(Console::Spared),
            Way::Auto(console) => config.auto = Some(console),
        }
    }
    Ok(Told { config, log: own.log })
}

fn ways_of(texts: &[String]) -> Result<Vec<Way>, Error> {
    texts.iter().map(|text| way(text).map_err(Error::Option)).collect()
}

/// What a text means by a thing to listen on. All that can be known before it is opened is checked, while the place of the text is known.
fn way(text: &str) -> Result<Way, String> {
    if let Some(console) = auto::meant_by(text) {
        return Ok(Way::Auto(console));
    }
    let addr: Addr = text.parse().map_err(|error| format!("{error}"))?;
    if let Some(name) = &addr.protocol {
        proto::by_name(name).map_err(|why| format!("address {addr}: {why}"))?;
    }
    match &addr.carrier {
        Carrier::Unix { group: Some(group), .. } => {
            user::look_up(&format!(":{group}")).map_err(|why| format!("address {addr}: {why}"))?;
        }
        Carrier::VsockPeer { .. } | Carrier::Hvsock { .. } | Carrier::Local => {
            return Err(format!("address {addr}: can only be connected to"));
        }
        #[cfg(feature = "clear")]
        Carrier::Serial { path, .. } if addr.protocol.as_deref().is_some_and(proto::hyper::is_channel) => {
            let path = path.display();
            return Err(format!("address {addr}: hosts of hyperstart speak on a bare line, which is port:{path}"));
        }
        _ => {}
    }
    Ok(Way::Addr(addr))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_listened_on_is_found_before_it_is_tried() {
        for (text, why) in [
            ("unix:/a,group=no-such-group", "address unix:/a: group no-such-group: no such group"),
            ("local:", "address local:: can only be connected to"),
            ("vsock:3:1", "address vsock:3:1: can only be connected to"),
            ("hvsock:/a:1", "address hvsock:/a:1: can only be connected to"),
        ] {
            assert_eq!(way(text), Err(why.to_owned()));
        }
        let names = if cfg!(feature = "clear") { ", clear, hyper-ctl, hyper-tty" } else { "" };
        let unknown = format!("address unix:/a: unknown protocol x (agentproto, google{names} are known)");
        assert_eq!(way("unix:/a,proto=x"), Err(unknown));
        #[cfg(feature = "clear")]
        for name in ["hyper-ctl", "hyper-tty"] {
            let why = "address serial:/dev/ttyS1: hosts of hyperstart speak on a bare line, which is port:/dev/ttyS1";
            assert_eq!(way(&format!("serial:/dev/ttyS1,proto={name}")), Err(why.to_owned()));
            assert!(way(&format!("port:/dev/ttyS1,proto={name}")).is_ok());
        }
        assert_eq!(way("auto"), Ok(Way::Auto(Console::Taken)));
        assert!(matches!(way("stdio:"), Ok(Way::Addr(_))));
    }
}
