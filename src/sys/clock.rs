//! Clocks that `std` does not have, and setting one.

use std::io;
use std::time::Duration;

use crate::sys::check;

/// clock_gettime(2) of CLOCK_BOOTTIME: the time since the machine started, asleep or not.
pub fn since_boot() -> io::Result<Duration> {
    // SAFETY: the kernel fills the structure.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        check(libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time))?;
        time
    };
    Ok(Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0)))
}

/// clock_settime(2) of CLOCK_REALTIME, since 1970. EINVAL for a time that the kernel does not take, EPERM without CAP_SYS_TIME.
#[allow(clippy::useless_conversion)] // time_t is narrower on some targets.
pub fn set_real_time(seconds: i64, nanoseconds: u32) -> io::Result<()> {
    let invalid = |_| io::Error::from_raw_os_error(libc::EINVAL);
    // SAFETY: zeroes are valid in it; some targets have members without a name beside these two.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    time.tv_sec = seconds.try_into().map_err(invalid)?;
    time.tv_nsec = nanoseconds as _;
    // SAFETY: the kernel reads the structure.
    check(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &time) }).map(drop)
}
