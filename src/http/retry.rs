//! When a request is made again: the schedule of the metadata service's clients.

use std::io;
use std::time::Duration;

use crate::http::wait::is_stop;

/// Attempts after the first one.
pub const RETRIES_MAX: u32 = 15;

/// The pause before the first retry, in milliseconds. Each further one is twice as long.
const FIRST_MS: u64 = 100;

/// The longest pause, in milliseconds: a service that comes late is noticed within this.
const LONGEST_MS: u64 = 5_000;

/// The pause before the `n`th retry, counted from 1, up to a quarter shorter or longer, so that guests that lost their service at once do
/// not come back at once. `random` is any number, all of it evenly likely.
pub fn delay(n: u32, random: u32) -> Duration {
    let doublings = n.saturating_sub(1).min(16);
    let base_us = (FIRST_MS * 1_000) << doublings;
    let spread_us = base_us / 2 * u64::from(random) / u64::from(u32::MAX);
    Duration::from_micros((base_us - base_us / 4 + spread_us).min(LONGEST_MS * 1_000))
}

/// Whether an attempt that ended so, with this status, is worth another one: errors of the network, and a service that says it has a
/// problem of its own.
pub fn is_retried(result: Result<u16, &io::Error>) -> bool {
    match result {
        Ok(status) => (500..=599).contains(&status),
        Err(error) => !is_stop(error) && error.kind() != io::ErrorKind::InvalidInput,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_from_100_ms_to_5_s_give_or_take_a_quarter() {
        let ms = |n, random| delay(n, random).as_millis();
        let (low, middle, high) = (0, u32::MAX / 2, u32::MAX);
        assert_eq!([ms(1, low), ms(1, middle), ms(1, high)], [75, 99, 125]);
        assert_eq!([ms(2, low), ms(3, low), ms(4, high)], [150, 300, 1_000]);
        assert_eq!([ms(6, low), ms(6, high), ms(7, low), ms(7, high)], [2_400, 4_000, 4_800, 5_000]);
        assert_eq!([ms(8, low), ms(15, low), ms(u32::MAX, high), ms(0, low)], [5_000, 5_000, 5_000, 75]);
    }

    #[test]
    fn what_the_network_or_the_service_did_is_tried_again() {
        let error = |kind: io::ErrorKind| io::Error::from(kind);
        assert!([500, 503, 599].into_iter().all(|status| is_retried(Ok(status))));
        assert!([200, 404, 409, 499, 600].into_iter().all(|status| !is_retried(Ok(status))));
        assert!(is_retried(Err(&error(io::ErrorKind::TimedOut))));
        assert!(is_retried(Err(&error(io::ErrorKind::InvalidData))));
        assert!(is_retried(Err(&io::Error::from_raw_os_error(111))), "ECONNREFUSED");
        assert!(!is_retried(Err(&error(io::ErrorKind::ConnectionAborted))), "stopped");
    }
}
