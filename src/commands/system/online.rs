//! `system.online-cpus`: processors and memory that were plugged in, put to use.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::Value;

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
    for (name, kind) in [("cpus", "cpu"), ("memory_blocks", "memory")] {
        reply.put(name, switch_on(Path::new(DEVICES), kind)?);
    }
    Ok(reply)
}

/// Switches on what is off; gives the numbers of those that are on now. Without such a folder there is nothing to switch on.
fn switch_on(devices: &Path, kind: &str) -> Result<Vec<Value>, Error> {
    let (mut numbers, mut refused) = (Vec::new(), None);
    for entry in fs::read_dir(devices.join(kind)).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(kind)?.parse::<u64>().ok());
        let switch = entry.path().join("online");
        // The first processor often has no switch.
        let (Some(number), Ok(state)) = (number, fs::read(&switch)) else { continue };
        if state.trim_ascii() != b"0" {
            continue;
        }
        match fs::write(&switch, "1") {
            Ok(()) => numbers.push(number),
            Err(error) => refused = Some((switch, error)),
        }
    }
    if let Some((switch, error)) = refused.filter(|(_, error)| error.kind() != io::ErrorKind::NotFound) {
        return Err(Error::system(&format!("switch on {}", switch.display()), &error));
    }
    numbers.sort_unstable();
    Ok(numbers.into_iter().map(Value::from).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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
        assert_eq!(switch_on(&folder, "cpu").map(Value::from), Ok(json!([2])));
        assert_eq!(switch_on(&folder, "cpu").map(Value::from), Ok(json!([])));
        assert_eq!((state("cpu1"), state("cpu2"), state("cpufreq")), ("1\n".into(), "1".into(), "0\n".into()));
        assert_eq!(switch_on(&folder, "memory"), Ok(Vec::new()));
        fs::remove_dir_all(&folder).expect("the folder is ours");
    }
}
