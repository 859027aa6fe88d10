//! The environment that a program gets.

use std::env;
use std::os::unix::ffi::OsStrExt;

use regex_lite::Regex;

/// The agent's own environment as `NAME=value`.
pub fn own() -> Vec<Vec<u8>> {
    let pair = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        let mut entry = Vec::with_capacity(name.len() + 1 + value.len());
        entry.extend_from_slice(name.as_bytes());
        entry.push(b'=');
        entry.extend_from_slice(value.as_bytes());
        entry
    };
    env::vars_os().map(pair).collect()
}

/// The name of an entry: what stands before its first `=`.
fn name_of(entry: &[u8]) -> &[u8] {
    entry.split(|byte| *byte == b'=').next().unwrap_or(entry)
}

/// Of entries with one name the last stays, in its place. Entries without `=` all stay; empty ones go.
pub fn without_repeats(entries: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let mut seen = std::collections::HashSet::with_capacity(entries.len());
    let mut stay = vec![false; entries.len()];
    for (entry, stay) in entries.iter().zip(&mut stay).rev() {
        *stay = !entry.is_empty() && (!entry.contains(&b'=') || seen.insert(name_of(entry)));
    }
    entries.into_iter().zip(stay).filter_map(|(entry, stays)| stays.then_some(entry)).collect()
}

/// Lists the variables that the user has set on purpose; never passed on itself.
const CHANGED: &[u8] = b"MPROXY_CHANGED_ENVS";

/// A pattern for names: `/regular expression/`, searched anywhere in the name, or a glob over the whole name.
enum Pattern {
    Regex(Regex),
    Glob(Vec<u8>),
}

impl Pattern {
    fn new(text: &str) -> Result<Pattern, String> {
        match text.strip_prefix('/').and_then(|rest| rest.strip_suffix('/')).filter(|inside| !inside.is_empty()) {
            Some(inside) => Regex::new(inside).map(Pattern::Regex).map_err(|error| format!("pattern {text}: {error}")),
            None => Ok(Pattern::Glob(text.as_bytes().to_vec())),
        }
    }

    fn matches(&self, name: &[u8]) -> bool {
        match self {
            Pattern::Regex(regex) => regex.is_match(&String::from_utf8_lossy(name)),
            Pattern::Glob(glob) => glob_matches(glob, name),
        }
    }
}

/// Which variables a client wants passed on.
pub struct Filter {
    keep: Vec<Pattern>,
    remove: Vec<Pattern>,
}

impl Filter {
    /// A regular expression in `keep` that is none keeps nothing. One in `remove` is an error: what it was meant to hide must not pass.
    /// (Upstream ignores it there too, and lets everything through.)
    pub fn new(keep: &[String], remove: &[String]) -> Result<Filter, String> {
        Ok(Filter {
            keep: keep.iter().filter_map(|text| Pattern::new(text).ok()).collect(),
            remove: remove.iter().map(|text| Pattern::new(text)).collect::<Result<_, _>>()?,
        })
    }

    /// The entries that pass, in their order: never the list of changed names itself, nothing that `remove` matches, else what is listed as
    /// changed or what `keep` matches.
    pub fn apply(&self, entries: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        let listing = entries.iter().find(|entry| name_of(entry) == CHANGED && entry.len() > CHANGED.len());
        let listing = listing.map(|entry| entry[CHANGED.len() + 1..].to_vec()).unwrap_or_default();
        let changed =
            |name: &[u8]| !name.is_empty() && listing.split(|byte| *byte == b':').any(|listed| listed == name);
        let passes = |entry: &Vec<u8>| {
            let name = name_of(entry);
            name != CHANGED
                && !self.remove.iter().any(|pattern| pattern.matches(name))
                && (changed(name) || self.keep.iter().any(|pattern| pattern.matches(name)))
        };
        entries.into_iter().filter(|entry| passes(entry)).collect()
    }
}

/// Go's path.Match over bytes: `*` and `?` do not match a slash, `[a-z]` and `[^a-z]` one byte, a backslash takes the next literally. What is
/// no glob matches nothing.
fn glob_matches(glob: &[u8], name: &[u8]) -> bool {
    well_formed(glob) && matches_here(glob, name)
}

fn matches_here<'a>(mut glob: &'a [u8], mut name: &'a [u8]) -> bool {
    // Where to go on when what follows the last star does not fit: one more byte belongs to the star.
    let mut again: Option<(&'a [u8], &'a [u8])> = None;
    loop {
        if let Some((b'*', rest)) = glob.split_first() {
            glob = rest;
            again = Some((rest, name));
            continue;
        }
        if glob.is_empty() && name.is_empty() {
            return true;
        }
        if let Some((rest, left)) = one_matches(glob, name) {
            (glob, name) = (rest, left);
            continue;
        }
        match again {
            Some((rest, from)) if from.first().is_some_and(|byte| *byte != b'/') => {
                again = Some((rest, &from[1..]));
                (glob, name) = (rest, &from[1..]);
            }
            _ => return false,
        }
    }
}

/// Matches one element of the glob with one byte; gives what is left of both.
fn one_matches<'a>(glob: &'a [u8], name: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let (&byte, left) = name.split_first()?;
    let (&first, rest) = glob.split_first()?;
    let (fits, rest) = match first {
        b'?' => (byte != b'/', rest),
        b'[' => class_matches(rest, byte)?,
        b'\\' => (*rest.first()? == byte, &rest[1..]),
        _ => (first == byte, rest),
    };
    fits.then_some((rest, left))
}

/// Behind a `[`: whether the byte is in the class, and the glob behind its `]`. `None` for a class that does not end.
fn class_matches(class: &[u8], byte: u8) -> Option<(bool, &[u8])> {
    let (negated, mut rest) = class.strip_prefix(b"^").map_or((false, class), |rest| (true, rest));
    let mut found = false;
    let mut empty = true;
    loop {
        if rest.first()? == &b']' && !empty {
            return Some((found != negated, &rest[1..]));
        }
        empty = false;
        let low = class_byte(&mut rest)?;
        let high = match rest.strip_prefix(b"-") {
            Some(behind) => {
                rest = behind;
                class_byte(&mut rest)?
            }
            None => low,
        };
        found |= (low..=high).contains(&byte);
    }
}

fn class_byte(rest: &mut &[u8]) -> Option<u8> {
    if let Some(behind) = rest.strip_prefix(b"\\") {
        *rest = behind;
    } else if matches!(rest.first(), Some(b'-' | b']')) {
        return None;
    }
    let (&byte, behind) = rest.split_first()?;
    *rest = behind;
    Some(byte)
}

fn well_formed(mut glob: &[u8]) -> bool {
    while let Some((&first, rest)) = glob.split_first() {
        glob = match first {
            b'[' => match class_matches(rest, 0) {
                Some((_, rest)) => rest,
                None => return false,
            },
            b'\\' if rest.is_empty() => return false,
            b'\\' => &rest[1..],
            _ => rest,
        };
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_as_go_matches_them() {
        let yes = [
            ("*", "PATH"),
            ("LC_*", "LC_ALL"),
            ("?", "A"),
            ("[A-C]x", "Bx"),
            ("[^a]", "b"),
            ("\\*", "*"),
            ("a*b*c", "aXbYbc"),
            ("", ""),
        ];
        let no = [
            ("*", "a/b"),
            ("LC_", "LC_ALL"),
            ("?", "/"),
            ("[^a]", "a"),
            ("[a", "a"),
            ("a\\", "a"),
            ("a*b", "abc"),
            ("[]", "]"),
            ("x[", "y"),
        ];
        yes.iter().for_each(|(glob, name)| assert!(glob_matches(glob.as_bytes(), name.as_bytes()), "{glob} {name}"));
        no.iter().for_each(|(glob, name)| assert!(!glob_matches(glob.as_bytes(), name.as_bytes()), "{glob} {name}"));
    }

    fn apply(keep: &[&str], remove: &[&str], env: &[&str]) -> Vec<String> {
        let strings = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let filter = Filter::new(&strings(keep), &strings(remove)).expect("patterns");
        let left = filter.apply(env.iter().map(|entry| entry.as_bytes().to_vec()).collect());
        left.into_iter().map(|entry| String::from_utf8(entry).expect("text")).collect()
    }

    #[test]
    fn the_filter_follows_its_four_rules_in_order() {
        let env = ["A=1", "SECRET=x", "B=2", "MPROXY_CHANGED_ENVS=B:SECRET", "LC_ALL=C", "A=3", "plain"];
        assert_eq!(apply(&[], &[], &env), ["SECRET=x", "B=2"]);
        assert_eq!(apply(&["A", "LC_*"], &["/^SEC/"], &env), ["A=1", "B=2", "LC_ALL=C", "A=3"]);
        assert_eq!(apply(&["*"], &["/E/", "LC_*", "B"], &env), ["A=1", "A=3", "plain"]);
        assert_eq!(apply(&["/(/"], &[], &["A=1"]), [""; 0], "a broken pattern keeps nothing");
        assert_eq!(apply(&["//"], &[], &["A=1", "//=2"]), ["//=2"], "two slashes are a glob");
    }

    #[test]
    fn a_broken_pattern_of_what_to_remove_is_refused() {
        assert!(Filter::new(&[], &["/(/".to_owned()]).is_err());
    }

    #[test]
    fn of_one_name_the_last_entry_stays() {
        let list = |entries: &[&str]| entries.iter().map(|entry| entry.as_bytes().to_vec()).collect::<Vec<_>>();
        assert_eq!(without_repeats(list(&["A=1", "B=2", "x", "A=3", "x", ""])), list(&["B=2", "x", "A=3", "x"]));
    }
}
