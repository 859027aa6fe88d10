//! `system.online-cpus`: processors and memory that were plugged in, put to use.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::commands::arguments::Arguments;
use crate::commands::{Call, Command, Error, Reply};

pub const ONLINE_CPUS: Command = Command {
    name: "system.online-cpus",
    summary: "put processors and memory to use that are there and off",
    arguments: "",
    run,
};

/// Where the kernel shows both.
const DEVICES: &str = "/sys/devices/system";

fn run(arguments: &mut Arguments, _: &Call) -> Result<Reply, Error> {
    arguments.finish()?;
    let mut reply = Reply::default();
    let mut refused = None;
    // All of both are tried before a refusal is told: memory is no worse for a processor that stays off.
    for (name, kind) in [("cpus", "cpu"), ("memory_blocks", "memory")] {
        let Outcome { on, refused: more } = switch_on(Path::new(DEVICES), kind);
        reply.put(name, on);
        refused = refused.or(more);
    }
    match refused {
        Some((switch, error)) => Err(Error::system(&format!("switch on {}", switch.display()), &error)),
        None => Ok(reply),
    }
}

/// What became of the devices of a kind.
#[derive(Debug)]
struct Outcome {
    /// Numbers of those that are on now.
    on: Vec<u64>,
    /// The first switch that the kernel refused.
    refused: Option<(PathBuf, io::Error)>,
}

/// Switches on what is off. Without such a folder there is nothing to switch on.
fn switch_on(devices: &Path, kind: &str) -> Outcome {
    let mut off = Vec::new();
    for entry in fs::read_dir(devices.join(kind)).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(kind)?.parse::<u64>().ok());
        let switch = entry.path().join("online");
        // The first processor often has no switch.
        let (Some(number), Ok(state)) = (number, fs::read(&switch)) else { continue };
        if state.trim_ascii() == b"0" {
            off.push((number, switch));
        }
    }
    // In their order, so that the refusal that is told is the same one each time.
    off.sort_unstable();
    let mut outcome = Outcome { on: Vec::new(), refused: None };
    for (number, switch) in off {
        match fs::write(&switch, "1") {
            Ok(()) => outcome.on.push(number),
            // It has gone meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => outcome.refused = outcome.refused.or(Some((switch, error))),
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_off_is_switched_on_and_nothing_else() {
        let folder = std::env::temp_dir().join(format!("lodger-online-{}", std::process::id()));
        for (name, state) in [("cpu0", None), ("cpu1", Some("1\n")), ("cpu2", Some("0\n")), ("cpufreq", Some("0\n"))] {
            fs::create_dir_all(folder.join("cpu").join(name)).expect("a folder");
            if let Some(state) = state {
                fs::write(folder.join("cpu").join(name).join("online"), state).expect("a switch");
            }
        }
        let state = |name: &str| fs::read_to_string(folder.join("cpu").join(name).join("online")).expect("a switch");
        assert_eq!(switch_on(&folder, "cpu").on, [2]);
        assert!(switch_on(&folder, "cpu").on.is_empty());
        assert_eq!((state("cpu1"), state("cpu2"), state("cpufreq")), ("1\n".into(), "1".into(), "0\n".into()));
        assert!(matches!(switch_on(&folder, "memory"), Outcome { on, refused: None } if on.is_empty()));
        fs::remove_dir_all(&folder).expect("the folder is ours");
    }
}
