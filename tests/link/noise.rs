//! Lines that damage what they carry.

use crate::client::noise;
use crate::line::{Way, Weather};
use crate::programs::copy_a_tree_both_ways;
use crate::rig::Rig;

/// Sends bytes to a guest and back again; they must be the same, though the line has done its worst.
#[track_caller]
fn survives(one_in: u32, count: usize, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let rig = Rig::start(Weather::noise(seed, one_in));
        let bytes = noise(seed, count);
        let done = rig.cat(&bytes);
        assert_eq!((done.code, done.stderr().as_str()), (Some(0), ""), "seed {seed}");
        assert!(done.stdout == bytes, "seed {seed}: {} bytes came back", done.stdout.len());
        assert_eq!(rig.shell("exit 42").code, Some(42), "seed {seed}");
        let harm = [Way::ToGuest, Way::ToHost].map(|way| rig.line.harm(way).count());
        assert!(harm.iter().all(|count| *count > 0), "seed {seed}: the weather was good");
    }
}

#[test]
fn nothing_is_lost_with_a_byte_in_a_hundred_thousand_damaged() {
    survives(100_000, 2 << 20, 1..3);
}

#[test]
fn nothing_is_lost_with_a_byte_in_ten_thousand_damaged() {
    survives(10_000, 1 << 20, 11..14);
}

#[test]
fn nothing_is_lost_with_a_byte_in_a_thousand_damaged() {
    survives(1000, 200_000, 21..24);
}

#[test]
fn nothing_is_lost_when_only_one_direction_is_bad() {
    for seed in 31..33 {
        for (to_guest, to_host) in [(Some(500), None), (None, Some(500))] {
            let weather = Weather { damage_to_guest: to_guest, damage_to_host: to_host, seed, ..Weather::clear() };
            let (rig, bytes) = (Rig::start(weather), noise(seed, 100_000));
            let done = rig.cat(&bytes);
            assert!(done.code == Some(0) && done.stdout == bytes, "seed {seed}: {}", done.stderr());
        }
    }
}

#[test]
fn trees_are_copied_through_noise() {
    for seed in [41, 42] {
        copy_a_tree_both_ways(&Rig::start(Weather::noise(seed, 5000)), &format!("seed {seed}"));
    }
}

#[test]
fn exit_statuses_come_through_noise() {
    for seed in [51, 52] {
        let rig = Rig::start(Weather::noise(seed, 2000));
        for code in 0..20 {
            let done = rig.shell(&format!("echo {code}; exit {code}"));
            assert_eq!((done.code, done.stdout()), (Some(code), format!("{code}\n")), "seed {seed}: {}", done.stderr());
        }
    }
}

#[test]
fn a_slow_line_with_noise_and_a_kernel_that_prints_loses_nothing() {
    let weather = Weather { text_percent: 20, bytes_per_second: Some(11_520), ..Weather::noise(61, 3000) };
    let (rig, bytes) = (Rig::start(weather), noise(6, 12_000));
    let done = rig.cat(&bytes);
    assert!(done.code == Some(0) && done.stdout == bytes, "{} bytes: {}", done.stdout.len(), done.stderr());
}
