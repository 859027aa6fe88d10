//! What the texts in /proc, /sys and /etc say.

/// A mounted file system, as /proc/self/mounts lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub source: String,
    pub target: String,
    pub kind: String,
    pub options: String,
}

/// The lines of /proc/self/mounts in their order.
pub fn mounts(text: &str) -> impl Iterator<Item = Mount> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(' ').map(without_octal);
        Some(Mount { source: fields.next()?, target: fields.next()?, kind: fields.next()?, options: fields.next()? })
    })
}

/// Blanks and backslashes are written as a backslash and three octal digits there.
fn without_octal(field: &str) -> String {
    let bytes = field.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let digits = bytes.get(at + 1..at + 4).filter(|_| *byte == b'\\').and_then(|three| str::from_utf8(three).ok());
        match digits.and_then(|three| u8::from_str_radix(three, 8).ok()) {
            Some(meant) => {
                plain.push(meant);
                at += 4;
            }
            None => {
                plain.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// The pairs of os-release(5), without their quotes.
pub fn os_release(text: &str) -> impl Iterator<Item = (String, String)> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once('=')).map(|(name, value)| (name.to_owned(), without_quotes(value)))
}

/// A value in the notation of shells: each kind of quotes, and backslashes outside of single ones.
fn without_quotes(value: &str) -> String {
    let mut plain = String::with_capacity(value.len());
    let mut quote = None;
    let mut letters = value.chars();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            ('\'' | '"', None) => quote = Some(letter),
            (_, Some(open)) if letter == open => quote = None,
            ('\\', Some('"')) => match letters.next() {
                Some(meant @ ('"' | '$' | '`' | '\\')) => plain.push(meant),
                other => plain.extend(['\\'].into_iter().chain(other)),
            },
            ('\\', None) => plain.extend(letters.next()),
            _ => plain.push(letter),
        }
    }
    plain
}

/// The bytes that a line of /proc/meminfo tells.
pub fn memory_bytes(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kibibytes: u64 = rest.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// How many processors a list such as `0-3,5` names.
pub fn listed(text: &str) -> Option<usize> {
    let mut count = 0usize;
    for range in text.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        count = count.checked_add(last.checked_sub(first)?)?.checked_add(1)?;
    }
    Some(count)
}

/// How many processors /proc/cpuinfo describes; `None` when it has another form.
pub fn described(text: &str) -> Option<usize> {
    Some(text.lines().filter(|line| line.starts_with("processor")).count()).filter(|count| *count > 0)
}

/// What the first processor is; on some architectures /proc/cpuinfo does not say it.
pub fn model(text: &str) -> Option<&str> {
    ["model name", "cpu model", "Model"]
        .iter()
        .find_map(|name| text.lines().find_map(|line| line.split_once(':').filter(|(key, _)| key.trim() == *name)))
        .map(|(_, value)| value.trim())
}

/// The three loads of /proc/loadavg, as they are written.
pub fn loads(text: &str) -> Option<[&str; 3]> {
    let mut words = text.split_ascii_whitespace();
    Some([words.next()?, words.next()?, words.next()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_without_their_escapes() {
        let text = "/dev/vda1 / ext4 rw,relatime 0 0\n//a/b\\040c /mnt/x\\134y\\011z cifs ro,user=\\303\\244 0 0\nhalf a\n\
                    tmpfs /a\\9b\\04 tmpfs rw 0 0\n";
        let found: Vec<Mount> = mounts(text).collect();
        let mount = |[source, target, kind, options]: [&str; 4]| Mount {
            source: source.to_owned(),
            target: target.to_owned(),
            kind: kind.to_owned(),
            options: options.to_owned(),
        };
        let wanted = [
            ["/dev/vda1", "/", "ext4", "rw,relatime"],
            ["//a/b c", "/mnt/x\\y\tz", "cifs", "ro,user=ä"],
            ["tmpfs", "/a\\9b\\04", "tmpfs", "rw"],
        ];
        assert_eq!(found, wanted.map(mount));
    }

    #[test]
    fn os_release_has_its_values_unquoted() {
        let text = "# a comment\nNAME=\"Debian GNU/Linux\"\nID=debian\n\nVERSION='12 (it'\\''s)'\nX=\"a\\\"b\\$c\\d\"\nno pair\n\
                    EMPTY=\nURL=\"https://x/?a=b\"\n";
        let found: Vec<(String, String)> = os_release(text).collect();
        let wanted = [
            ("NAME", "Debian GNU/Linux"),
            ("ID", "debian"),
            ("VERSION", "12 (it's)"),
            ("X", "a\"b$c\\d"),
            ("EMPTY", ""),
            ("URL", "https://x/?a=b"),
        ];
        assert_eq!(found, wanted.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn memory_is_told_in_bytes() {
        let text = "MemTotal:         234868 kB\nMemFree:          190000 kB\nHugePages_Total:       0\n";
        assert_eq!(memory_bytes(text, "MemTotal"), Some(234_868 * 1024));
        assert_eq!(memory_bytes(text, "Mem"), None);
        assert_eq!(memory_bytes(text, "MemAvailable"), None);
        assert_eq!(memory_bytes(text, "HugePages_Total"), None);
        assert_eq!(memory_bytes("MemTotal: 18446744073709551615 kB", "MemTotal"), None);
    }

    #[test]
    fn processors_are_counted_from_either_text() {
        for (text, count) in [("0\n", Some(1)), ("0-3,5\n", Some(5)), ("\n", None), ("3-1", None), ("0-x", None)] {
            assert_eq!(listed(text), count, "{text:?}");
        }
        assert_eq!(listed(&format!("0-{},0", usize::MAX)), None);
        let x86 = "processor\t: 0\nmodel name\t: A  CPU: fast\n\nprocessor\t: 1\nmodel name\t: B\n";
        assert_eq!((described(x86), model(x86)), (Some(2), Some("A  CPU: fast")));
        let arm = "processor\t: 0\nBogoMIPS\t: 50.00\nCPU part\t: 0xd0c\n";
        assert_eq!((described(arm), model(arm)), (Some(1), None));
        assert_eq!((described(""), model("")), (None, None));
    }

    #[test]
    fn loads_stay_as_they_are_written() {
        assert_eq!(loads("0.20 0.18 12.00 1/80 11206\n"), Some(["0.20", "0.18", "12.00"]));
        assert_eq!(loads("0.20 0.18"), None);
    }
}
