//! `system.info`: what can be found out about the machine, and what cannot.

use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};

use crate::commands::Reply;
use crate::commands::system::{interfaces, texts};
use crate::sys::{clock, errno, file, name, net};

/// Mounts that are listed. A machine of containers may have thousands, and nobody reads so many.
pub const MOUNTS_MAX: usize = 512;

/// Interfaces that are listed, for the same reason.
pub const INTERFACES_MAX: usize = 512;

/// Bytes that are read of one file: far more than the lists above need.
const TEXT_MAX: u64 = 1 << 20;

/// What is found, and a sentence about everything that is not.
#[derive(Default)]
struct Findings {
    reply: Reply,
    missing: Vec<String>,
}

impl Findings {
    /// Takes note of a finding, or names it as missing and says why.
    fn put(&mut self, name: &str, found: Result<Value, String>) {
        match found {
            Ok(value) => self.reply.put(name, value),
            Err(why) => self.missing.push(format!("{name}: {why}")),
        }
    }

    /// A list of no more than `max`, and whether it was longer.
    fn put_list(&mut self, name: &str, found: Result<Vec<Value>, String>, max: usize) {
        if let Ok(list) = &found {
            self.reply.put(&format!("{name}_truncated"), list.len() > max);
        }
        self.put(name, found.map(|list| Value::Array(list.into_iter().take(max).collect())));
    }
}

/// Everything, with the files below `root`.
pub fn gather(root: &Path) -> Reply {
    let mut findings = Findings::default();
    let names = name::uname().map_err(|error| said("uname", &error));
    let kernel = |names: &name::Names| {
        object([
            ("release", names.release.as_str().into()),
            ("version", names.version.as_str().into()),
            ("machine", names.machine.as_str().into()),
        ])
    };
    findings.put("kernel", names.as_ref().map(kernel).map_err(Clone::clone));
    findings.put("hostname", names.map(|names| names.host.into()));
    findings.put("os_release", os_release(root));
    cpus(root, &mut findings);
    memory(root, &mut findings);
    let loads = || {
        let text = read(root, "proc/loadavg")?;
        texts::loads(&text)
            .map(|three| three.map(Value::from).to_vec().into())
            .ok_or_else(|| "not in /proc/loadavg".to_owned())
    };
    findings.put("load", loads());
    let uptime = clock::since_boot().map(|time| time.as_secs().into());
    findings.put("uptime_seconds", uptime.map_err(|error| said("read the clock", &error)));
    findings.put_list("mounts", mounts(root), MOUNTS_MAX);
    let entries = net::entries().map_err(|error| said("getifaddrs", &error));
    let interfaces = entries.map(|entries| interfaces::grouped(&entries, |name| net::mtu(name).ok()));
    findings.put_list("interfaces", interfaces, INTERFACES_MAX);
    findings.reply.put("missing", findings.missing);
    findings.reply
}

/// An object of these members.
fn object<const N: usize>(members: [(&str, Value); N]) -> Value {
    Value::Object(Reply::of(members).members)
}

fn said(what: &str, error: &std::io::Error) -> String {
    format!("{what}: {}", errno::describe(error))
}

/// The text of a file of a known size at most.
fn read(root: &Path, path: &str) -> Result<String, String> {
    let path = root.join(path);
    let mut bytes = Vec::new();
    let opened = file::open(&path, file::O_RDONLY | file::O_NONBLOCK | file::O_NOCTTY, 0)
        .map_err(|error| said(&format!("open {}", path.display()), &error))?;
    let taken = opened.take(TEXT_MAX).read_to_end(&mut bytes);
    taken.map_err(|error| said(&format!("read {}", path.display()), &error))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn os_release(root: &Path) -> Result<Value, String> {
    // The first is the usual place, and what is missing is missing there.
    let text = read(root, "etc/os-release").or_else(|why| read(root, "usr/lib/os-release").map_err(|_| why))?;
    Ok(Value::Object(texts::os_release(&text).map(|(name, value)| (name, Value::String(value))).collect()))
}

fn cpus(root: &Path, findings: &mut Findings) {
    let cpuinfo = read(root, "proc/cpuinfo");
    let mut found = Map::new();
    let listed = read(root, "sys/devices/system/cpu/online");
    let described = || cpuinfo.as_ref().ok().and_then(|text| texts::described(text));
    let online = listed.and_then(|text| texts::listed(&text).ok_or_else(|| "the list in /sys is no list".to_owned()));
    match online.or_else(|why| described().ok_or(why)) {
        Ok(count) => drop(found.insert("online".to_owned(), count.into())),
        Err(why) => findings.missing.push(format!("cpus.online: {why}")),
    }
    let model = cpuinfo
        .and_then(|text| texts::model(&text).map(str::to_owned).ok_or_else(|| "not in /proc/cpuinfo".to_owned()));
    match model {
        Ok(model) => drop(found.insert("model".to_owned(), model.into())),
        Err(why) => findings.missing.push(format!("cpus.model: {why}")),
    }
    findings.reply.put("cpus", found);
}

fn memory(root: &Path, findings: &mut Findings) {
    const LINES: [(&str, &str); 5] = [
        ("total_bytes", "MemTotal"),
        ("free_bytes", "MemFree"),
        ("available_bytes", "MemAvailable"),
        ("swap_total_bytes", "SwapTotal"),
        ("swap_free_bytes", "SwapFree"),
    ];
    let text = match read(root, "proc/meminfo") {
        Ok(text) => text,
        Err(why) => return findings.missing.push(format!("memory: {why}")),
    };
    let mut found = Map::new();
    for (name, line) in LINES {
        match texts::memory_bytes(&text, line) {
            Some(bytes) => drop(found.insert(name.to_owned(), bytes.into())),
            None => findings.missing.push(format!("memory.{name}: no {line} in /proc/meminfo")),
        }
    }
    findings.reply.put("memory", found);
}

fn mounts(root: &Path) -> Result<Vec<Value>, String> {
    let text = read(root, "proc/self/mounts")?;
    // One more than are listed tells that there are more.
    let found = texts::mounts(&text).take(MOUNTS_MAX + 1);
    let value = |mount: texts::Mount| {
        object([
            ("source", mount.source.into()),
            ("target", mount.target.into()),
            ("type", mount.kind.into()),
            ("options", mount.options.into()),
        ])
    };
    Ok(found.map(value).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    #[test]
    fn what_has_no_file_is_missing_and_the_rest_is_there() {
        let root = Path::new("/no/such/root");
        let reply = gather(root);
        let missing: Vec<&str> =
            reply.members["missing"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
        let wanted = [
            "os_release: open /no/such/root/etc/os-release: no such file or directory",
            "cpus.online: open /no/such/root/sys/devices/system/cpu/online: no such file or directory",
            "cpus.model: open /no/such/root/proc/cpuinfo: no such file or directory",
            "memory: open /no/such/root/proc/meminfo: no such file or directory",
            "load: open /no/such/root/proc/loadavg: no such file or directory",
            "mounts: open /no/such/root/proc/self/mounts: no such file or directory",
        ];
        assert_eq!(missing, wanted);
        for name in ["kernel", "hostname", "uptime_seconds", "interfaces"] {
            assert!(reply.members.contains_key(name), "{name}");
        }
    }

    #[test]
    fn the_list_of_mounts_ends_at_its_limit_and_says_so() {
        let root = std::env::temp_dir().join(format!("lodger-info-{}", std::process::id()));
        fs::create_dir_all(root.join("proc/self")).expect("a folder");
        let listed = |count: usize| {
            fs::write(root.join("proc/self/mounts"), "a /b c rw 0 0\n".repeat(count)).expect("a file");
            let members = gather(&root).members;
            (members["mounts"].as_array().map(Vec::len), members["mounts_truncated"].clone())
        };
        let at_limit = listed(MOUNTS_MAX);
        let beyond = listed(MOUNTS_MAX + 1);
        fs::remove_dir_all(&root).expect("it is ours");
        assert_eq!(at_limit, (Some(MOUNTS_MAX), false.into()));
        assert_eq!(beyond, (Some(MOUNTS_MAX), true.into()));
    }

    #[test]
    fn a_list_says_when_it_was_longer_than_its_limit() {
        let mut findings = Findings::default();
        findings.put_list("a", Ok(vec![Value::from(1); 3]), 3);
        findings.put_list("b", Ok(vec![Value::from(1); 4]), 3);
        let members = findings.reply.members;
        assert_eq!(
            json!(members),
            json!({ "a": [1, 1, 1], "a_truncated": false, "b": [1, 1, 1], "b_truncated": true })
        );
    }
}
