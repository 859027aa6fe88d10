//! `system.*`: the machine that the agent runs on.

mod info;
mod interfaces;
#[cfg(feature = "clear")]
pub mod online;
mod texts;

use std::time::{SystemTime, UNIX_EPOCH};

use crate::commands::arguments::{Arguments, missing};
use crate::commands::{Call, Command, Error, Reply};
use crate::power::{self, End};
use crate::sys::file::EINVAL;
use crate::sys::{boot, clock, errno, name};

pub const HOSTNAME: Command = Command {
    name: "system.hostname",
    summary: "the host name, or another one from now on",
    arguments: "name: up to 64 letters, digits, hyphens and dots; missing: only says it",
    run: hostname,
};

pub const INFO: Command = Command {
    name: "system.info",
    summary: "what can be found out about the machine: system, processors, memory, mounts, network",
    arguments: "",
    run: |arguments, _| arguments.finish().map(|()| info::gather("/".as_ref())),
};

pub const SET_TIME: Command = Command {
    name: "system.set-time",
    summary: "set the clock",
    arguments: "seconds: since 1970\nnanoseconds: beyond them, up to 999999999; missing: 0",
    run: set_time,
};

pub const SHUTDOWN: Command = Command {
    name: "system.shutdown",
    summary: "end the machine, once this is answered",
    arguments: "mode: poweroff, reboot or halt",
    run: shutdown,
};

pub const SYNC: Command = Command {
    name: "system.sync",
    summary: "write all that waits to be written to disks",
    arguments: "",
    run: |arguments, _| arguments.finish().map(|()| boot::sync()).map(|()| Reply::default()),
};

/// Bytes of the longest host name: the kernel's limit.
const HOST_NAME_MAX: usize = 64;

/// Bytes of the longest part of a host name between dots, by RFC 1123.
const LABEL_MAX: usize = 63;

fn hostname(arguments: &mut Arguments, _: &Call) -> Result<Reply, Error> {
    let wanted = arguments.text("name")?;
    arguments.finish()?;
    let before = name::uname().map_err(|error| Error::system("uname", &error))?.host;
    let Some(name) = wanted else { return Ok(Reply::of([("name", before.into())])) };
    if !is_host_name(&name) {
        let wanted = "up to 64 letters, digits, hyphens and dots are wanted, no part beginning or ending with a hyphen";
        return Err(Error::BadArgument(format!("name: {wanted}")));
    }
    boot::set_host_name(&name).map_err(|error| Error::system(&format!("set the host name to {name}"), &error))?;
    Ok(Reply::of([("before", before.into()), ("name", name.into())]))
}

fn is_host_name(name: &str) -> bool {
    let is_label = |label: &str| {
        let plain = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        plain && (1..=LABEL_MAX).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
    };
    name.len() <= HOST_NAME_MAX && name.split('.').all(is_label)
}

fn set_time(arguments: &mut Arguments, _: &Call) -> Result<Reply, Error> {
    let seconds = arguments.number::<i64>("seconds")?;
    let nanoseconds = arguments.number::<u32>("nanoseconds")?.unwrap_or(0);
    arguments.finish()?;
    let seconds = seconds.ok_or_else(|| missing("seconds"))?;
    if seconds < 0 {
        return Err(Error::BadArgument(format!("seconds: a number from 0 on is wanted, and not {seconds}")));
    }
    if nanoseconds > 999_999_999 {
        return Err(Error::BadArgument(format!("nanoseconds: at most 999999999 are wanted, and not {nanoseconds}")));
    }
    // The kernel's clock is never set before 1970.
    let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    clock::set_real_time(seconds, nanoseconds).map_err(|error| match error.raw_os_error() {
        // The kernel's clocks must not have begun before 1970, nor overflow in a few hundred years.
        Some(EINVAL) => Error::BadArgument(format!("seconds: the kernel does not take {seconds}")),
        _ => Error::system("set the clock", &error),
    })?;
    Ok(Reply::of([("before_seconds", before.as_secs().into())]))
}

fn shutdown(arguments: &mut Arguments, _: &Call) -> Result<Reply, Error> {
    let mode = arguments.text("mode")?;
    arguments.finish()?;
    let mode = mode.ok_or_else(|| missing("mode"))?;
    let end = match mode.as_str() {
        "poweroff" => End::PowerOff,
        "reboot" => End::Reboot,
        "halt" => End::Halt,
        _ => return Err(Error::BadArgument(format!("mode: poweroff, reboot or halt is wanted, and not {mode}"))),
    };
    let way = power::way(end).map_err(|error| Error::system(&mode, &error))?;
    let mut reply = Reply::of([("how", way.to_string().into())]);
    reply.afterwards = Some(Box::new(move || {
        log::info!("{mode} through {way}");
        if let Err(error) = power::bring(end, way) {
            log::error!("{mode} through {way}: {}", errno::describe(&error));
        }
    }));
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_is_what_rfc_1123_says() {
        let label = "a".repeat(63);
        for good in ["a", "3com", "a-b.example.org", &label, &format!("{}.{}", &label[..31], &label[..32])] {
            assert!(is_host_name(good), "{good}");
        }
        let long = format!("{}.{}", &label[..32], &label[..32]);
        for bad in ["", ".", "a.", ".a", "a..b", "-a", "a-", "a.-b", "a_b", "a b", "ä", "a\0", &"a".repeat(64), &long]
        {
            assert!(!is_host_name(bad), "{bad}");
        }
    }
}
