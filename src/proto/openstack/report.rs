//! What a guest tells about itself in XenStore, for the tools of XenServer and XCP-ng.
//!
//! | path | what |
//! | --- | --- |
//! | `attr/PVAddons/{Major,Minor,Micro,Build}Version`, `attr/PVAddons/Installed` | that there are tools, and which |
//! | `attr/vif/<n>/{ipv4,ipv6}/<i>` | the addresses of the n-th network device |
//! | `data/os_name`, `os_distro`, `os_majorver`, `os_minorver`, `os_uname` | the system |
//! | `data/meminfo_total`, `data/meminfo_free` | KiB |
//! | `data/updated` | changes with all else, and is what the host watches |
//!
//! Source: xe-guest-utilities and xen-guest-agent, what both write.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use crate::sys::name;
use crate::sys::net::{self, Fact};
use crate::version::VERSION;
use crate::xenstore::client::{Client, Error};

/// How often all is told anew.
const EVERY: Duration = Duration::from_secs(60);

/// What the host watches.
const UPDATED: &str = "data/updated";

/// Where addresses are.
const VIFS: &str = "attr/vif";

/// Bytes of the longest value: no daemon takes more than 2015.
const VALUE_MAX: usize = 1024;

/// The report of a machine.
pub struct Report {
    root: PathBuf,
    /// What was told, path to value.
    told: BTreeMap<String, String>,
    /// When all of it was.
    told_at: Option<Instant>,
    /// What the store refused.
    refused: BTreeSet<String>,
}

impl Report {
    /// Of the machine whose files begin here.
    pub fn of(root: PathBuf) -> Report {
        Report { root, told: BTreeMap::new(), told_at: None, refused: BTreeSet::new() }
    }

    /// The store may have forgotten it.
    pub fn forget(&mut self) {
        self.told_at = None;
    }

    /// Whether something is to be told: everything once a while, and changes of it but those of the memory at once.
    pub fn is_due(&self) -> bool {
        let is_lasting = |path: &str| !path.starts_with("data/meminfo");
        let lasting = |facts: &BTreeMap<String, String>| {
            facts.iter().filter(|(path, _)| is_lasting(path)).map(|(a, b)| (a.clone(), b.clone())).collect::<Vec<_>>()
        };
        self.told_at.is_none_or(|at| at.elapsed() >= EVERY) || lasting(&self.told) != lasting(&self.facts())
    }

    /// Tells what has changed, or everything when it is time for that. What the store refuses counts as told: not every toolstack lets a
    /// guest write everywhere.
    ///
    /// # Errors
    /// Of a connection that is lost; what was told until then is known.
    pub fn write(&mut self, client: &mut Client) -> Result<(), Error> {
        let facts = self.facts();
        let all = self.told_at.is_none_or(|at| at.elapsed() >= EVERY);
        if self.told.is_empty() {
            self.told.extend(addresses_of_before(client)?);
        }
        for path in self.told.keys().filter(|path| !facts.contains_key(*path)).cloned().collect::<Vec<_>>() {
            self.accept(&path, client.remove(&path))?;
            self.told.remove(&path);
        }
        for (path, value) in facts {
            if all || self.told.get(&path) != Some(&value) {
                self.accept(&path, client.write(&path, value.as_bytes()))?;
                self.told.insert(path, value);
            }
        }
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
        self.accept(UPDATED, client.write(UPDATED, now.to_string().as_bytes()))?;
        if all {
            self.told_at = Some(Instant::now());
        }
        Ok(())
    }

    /// Each path is complained about once.
    fn accept(&mut self, path: &str, result: Result<(), Error>) -> Result<(), Error> {
        match result {
            Err(Error::Refused(why)) => {
                if self.refused.insert(path.to_owned()) {
                    log::warn!("report {path}: xenstore: {why}");
                }
                Ok(())
            }
            result => result,
        }
    }

    fn facts(&self) -> BTreeMap<String, String> {
        let mut facts = BTreeMap::new();
        let mut put = |path: &str, value: &str| {
            let value: String = value.chars().filter(|character| !character.is_control()).take(VALUE_MAX / 4).collect();
            facts.insert(path.to_owned(), value);
        };
        let mut version = VERSION.split(['.', '-']);
        for part in ["Major", "Minor", "Micro"] {
            put(&format!("attr/PVAddons/{part}Version"), version.next().unwrap_or("0"));
        }
        put("attr/PVAddons/BuildVersion", "0");
        put("attr/PVAddons/Installed", "1");
        self.system(&mut put);
        self.memory(&mut put);
        self.addresses(&mut put);
        facts
    }

    fn system(&self, put: &mut impl FnMut(&str, &str)) {
        let release = fs::read_to_string(self.root.join("etc/os-release"));
        let release = release.or_else(|_| fs::read_to_string(self.root.join("usr/lib/os-release"))).unwrap_or_default();
        let value = |name: &str| {
            let line = release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.map(|value| value.trim_matches(['"', '\'']).to_owned())
        };
        put("data/os_name", &value("PRETTY_NAME").or_else(|| value("NAME")).unwrap_or_else(|| "Linux".to_owned()));
        put("data/os_distro", &value("ID").unwrap_or_else(|| "linux".to_owned()));
        let id = value("VERSION_ID").unwrap_or_default();
        let (major, minor) = id.split_once('.').unwrap_or((&id, ""));
        put("data/os_majorver", if major.is_empty() { "0" } else { major });
        put("data/os_minorver", if minor.is_empty() { "0" } else { minor });
        if let Ok(found) = name::uname() {
            put("data/os_uname", &found.release);
        }
    }

    fn memory(&self, put: &mut impl FnMut(&str, &str)) {
        let text = fs::read_to_string(self.root.join("proc/meminfo")).unwrap_or_default();
        let kibibytes = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        if let Some(total) = kibibytes("MemTotal") {
            put("data/meminfo_total", &total.to_string());
        }
        if let Some(free) = kibibytes("MemAvailable").or_else(|| kibibytes("MemFree")) {
            put("data/meminfo_free", &free.to_string());
        }
    }

    /// Those of devices that Xen has numbered.
    fn addresses(&self, put: &mut impl FnMut(&str, &str)) {
        let mut counts: BTreeMap<(u32, &str), u32> = BTreeMap::new();
        for entry in net::entries().unwrap_or_default() {
            let Fact::Address { address, .. } = entry.fact else { continue };
            let interface = entry.name.split(':').next().unwrap_or_default();
            let Some(number) = self.vif(interface) else { continue };
            let family = match address {
                IpAddr::V4(_) => "ipv4",
                IpAddr::V6(_) => "ipv6",
            };
            let count = counts.entry((number, family)).or_default();
            put(&format!("{VIFS}/{number}/{family}/{count}"), &address.to_string());
            *count += 1;
        }
    }

    /// Xen's number of an interface: its device is called `vif-NUMBER`.
    fn vif(&self, interface: &str) -> Option<u32> {
        let device = fs::read_link(self.root.join("sys/class/net").join(interface).join("device")).ok()?;
        device.file_name()?.to_str()?.strip_prefix("vif-")?.parse().ok()
    }
}

/// Addresses that an agent before this one told, without their values: those that are no more must go.
fn addresses_of_before(client: &mut Client) -> Result<Vec<(String, String)>, Error> {
    let mut list = |path: &str| match client.list(path) {
        Err(Error::Refused(_)) => Ok(Vec::new()),
        result => result,
    };
    let mut found = Vec::new();
    for number in list(VIFS)? {
        for family in ["ipv4", "ipv6"] {
            let folder = format!("{VIFS}/{number}/{family}");
            let paths = list(&folder)?.into_iter().map(|index| (format!("{folder}/{index}"), String::new()));
            found.extend(paths);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_machine_is_told_by_its_files() {
        let root = std::env::temp_dir().join(format!("lodger-report-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        for folder in ["etc", "proc", "sys/class/net/lo"] {
            fs::create_dir_all(root.join(folder)).expect("a folder");
        }
        let release = "NAME=Debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_ID=\"12.5\"\n";
        fs::write(root.join("etc/os-release"), release).expect("a file");
        let meminfo = "MemTotal:  2048 kB\nMemFree: 1 kB\nMemAvailable:    1024 kB\n";
        fs::write(root.join("proc/meminfo"), meminfo).expect("a file");
        // The loopback, which every machine has, stands for a device of Xen.
        symlink("../../../vif-3", root.join("sys/class/net/lo/device")).expect("a link");
        let mut report = Report::of(root.clone());
        let facts = report.facts();
        for (path, value) in [
            ("data/os_name", "Debian GNU/Linux 12 (bookworm)"),
            ("data/os_distro", "debian"),
            ("data/os_majorver", "12"),
            ("data/os_minorver", "5"),
            ("data/meminfo_total", "2048"),
            ("data/meminfo_free", "1024"),
            ("attr/vif/3/ipv4/0", "127.0.0.1"),
            ("attr/PVAddons/Installed", "1"),
        ] {
            assert_eq!(facts.get(path).map(String::as_str), Some(value), "{path}: {facts:?}");
        }
        assert!(facts.contains_key("data/os_uname") && facts.contains_key("attr/PVAddons/MajorVersion"));
        assert!(report.is_due(), "nothing was told yet");
        (report.told, report.told_at) = (facts, Some(Instant::now()));
        assert!(!report.is_due(), "all was told");
        fs::write(root.join("proc/meminfo"), "MemTotal: 2048 kB\nMemFree: 2 kB\n").expect("a file");
        assert!(!report.is_due(), "the memory alone changes all the time");
        fs::remove_file(root.join("sys/class/net/lo/device")).expect("it is there");
        assert!(report.is_due(), "an address has gone");
        fs::remove_dir_all(&root).expect("it is there");
    }
}
