//! How files are printed.

use std::io::{self, IsTerminal, Write};

use crate::wire::file::Stat;

/// `drwxr-xr-x`, as ls(1) prints an `st_mode`.
pub fn mode(mode: u32) -> String {
    let kind = match mode & 0o170_000 {
        0o040_000 => 'd',
        0o120_000 => 'l',
        0o060_000 => 'b',
        0o020_000 => 'c',
        0o010_000 => 'p',
        0o140_000 => 's',
        0o100_000 => '-',
        _ => '?',
    };
    let mut text = String::from(kind);
    for (shift, special, set, unset) in [(6, 0o4000, 's', 'S'), (3, 0o2000, 's', 'S'), (0, 0o1000, 't', 'T')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => set,
            (true, false) => unset,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// `2026-11-21 03:44:05`, in UTC: a guest's time zone is not known here.
pub fn time(ns: i64) -> String {
    let seconds = ns.div_euclid(1_000_000_000);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = date(days);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar. Years begin in March here, so that the day that comes
/// and goes is the last of its year (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

/// Writes a name as it is; on a terminal with `?` for what would steer it.
pub fn write_name(out: &mut impl Write, name: &[u8]) -> io::Result<()> {
    if !io::stdout().is_terminal() {
        return out.write_all(name);
    }
    let text = String::from_utf8_lossy(name);
    let shown: String = text.chars().map(|character| if character.is_control() { '?' } else { character }).collect();
    out.write_all(shown.as_bytes())
}

/// One line of `ls -l`, without its end.
pub fn long_line(out: &mut impl Write, stat: &Stat, target: Option<&[u8]>) -> io::Result<()> {
    let is_device = matches!(stat.mode & 0o170_000, 0o020_000 | 0o060_000);
    let size = if is_device { device(stat.device) } else { stat.size.to_string() };
    let Stat { links, uid, gid, .. } = stat;
    write!(out, "{} {links:>3} {uid:>5} {gid:>5} {size:>10} {} ", mode(stat.mode), time(stat.modified_ns))?;
    write_name(out, &stat.name)?;
    if let Some(target) = target {
        write!(out, " -> ")?;
        write_name(out, target)?;
    }
    Ok(())
}

/// `major, minor` of a device number that was cut to 32 bits.
pub fn device(number: u32) -> String {
    let (major, minor) = (number >> 8 & 0xfff, number & 0xff | number >> 12 & 0xfff00);
    format!("{major}, {minor}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_look_as_ls_prints_them() {
        for (number, text) in [
            (0o040755, "drwxr-xr-x"),
            (0o104711, "-rws--x--x"),
            (0o102644, "-rw-r-Sr--"),
            (0o041777, "drwxrwxrwt"),
            (0o120777, "lrwxrwxrwx"),
            (0o020000, "c---------"),
        ] {
            assert_eq!(mode(number), text);
        }
    }

    #[test]
    fn times_are_dates_before_and_after_1970() {
        assert_eq!(time(0), "1970-01-01 00:00:00");
        assert_eq!(time(-1), "1969-12-31 23:59:59");
        assert_eq!(time(951_782_400_000_000_000), "2000-02-29 00:00:00");
        assert_eq!(time(1_700_000_000_000_000_000), "2023-11-14 22:13:20");
    }
}
