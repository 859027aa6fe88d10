//! The `lodger.*` options of the kernel command line.
//!
//! `lodger.listen=ADDRESS` (may repeat), `lodger.log=LEVEL`, `lodger.hostname=NAME`, `lodger.address=[INTERFACE:]ADDRESS/BITS`,
//! `lodger.metadata=ADDRESS`, `lodger.exec=COMMAND`. A word with spaces is quoted as the kernel wants it: `lodger.exec="sh -c 'echo hi'"` or `"lodger.exec=sh -c 'echo hi'"`. The kernel knows no escape:
//! a value cannot hold a double quote and a space at once.

use crate::init::address::{self, Address};

/// What the kernel command line asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Addresses in their order; none for those of the agent's own file.
    pub listen: Vec<String>,
    /// Addresses for when that has none either. Not from the command line.
    pub listen_default: Vec<String>,
    pub log: Option<String>,
    /// Where a metadata service is.
    #[cfg(feature = "metadata")]
    pub metadata: Option<String>,
    pub hostname: Option<String>,
    /// For a network interface.
    pub address: Option<Address>,
    /// Program and arguments; empty when the value makes no command, which counts as a program that cannot be started: whoever
    /// asked for it waits for its end.
    pub exec: Option<Vec<String>>,
    /// A sentence about each option that could not be used.
    pub complaints: Vec<String>,
}

/// Reads the options out of a kernel command line; the last of a repeated one counts.
pub fn parse(command_line: &str) -> Options {
    let mut options = Options::default();
    #[cfg(feature = "metadata")]
    let metadata = &mut options.metadata;
    let (listen, log, hostname) = (&mut options.listen, &mut options.log, &mut options.hostname);
    let network = &mut options.address;
    let (exec, complaints) = (&mut options.exec, &mut options.complaints);
    for (name, value) in parameters(command_line) {
        let Some(option) = name.strip_prefix("lodger.") else { continue };
        match (option, value) {
            ("listen" | "log" | "hostname" | "address" | "exec", None | Some("")) => {
                complaints.push(format!("{name}: no value"));
            }
            ("listen", Some(value)) => listen.push(value.to_owned()),
            #[cfg(feature = "metadata")]
            ("metadata", None | Some("")) => complaints.push(format!("{name}: no value")),
            #[cfg(feature = "metadata")]
            ("metadata", Some(value)) => *metadata = Some(value.to_owned()),
            ("log", Some(value)) => *log = Some(value.to_owned()),
            ("address", Some(value)) => match address::parse(value) {
                Some(address) => *network = Some(address),
                None => complaints.push(format!("{name}: {value} is no [INTERFACE:]ADDRESS/BITS of version 4")),
            },
            ("hostname", Some(value)) => *hostname = Some(value.to_owned()),
            ("exec", Some(value)) => {
                let words = words(value).unwrap_or_default();
                if words.is_empty() {
                    complaints.push(format!("{name}: no command or an open quote in {value}"));
                }
                *exec = Some(words);
            }
            _ => complaints.push(format!("{name}: unknown option")),
        }
    }
    options
}

/// Name and value of each parameter, exactly as `next_arg` of the kernel cuts them: a double quote anywhere switches the meaning of
/// blanks, and quotes are dropped only around the whole parameter or the whole value.
fn parameters(command_line: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    let mut rest = command_line.trim_start();
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut quoted = false;
        let end = rest.find(|letter: char| {
            quoted ^= letter == '"';
            letter.is_ascii_whitespace() && !quoted
        });
        let (parameter, behind) = rest.split_at(end.unwrap_or(rest.len()));
        rest = behind.trim_start();
        let parameter = unquoted(parameter);
        Some(match parameter.split_once('=') {
            Some((name, value)) => (name, Some(unquoted(value))),
            None => (parameter, None),
        })
    })
}

fn unquoted(text: &str) -> &str {
    text.strip_prefix('"').map_or(text, |inner| inner.strip_suffix('"').unwrap_or(inner))
}

/// Splits a command into words as a shell does, with both quotes and the backslash, but expands nothing. `None` when a quote or a
/// backslash is left open.
fn words(command: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut letters = command.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match letters.next()? {
                        '\'' => break,
                        letter => word.push(letter),
                    }
                }
            }
            '"' => double_quoted(&mut letters, word.get_or_insert_default())?,
            '\\' => word.get_or_insert_default().push(letters.next()?),
            blank if blank.is_ascii_whitespace() => words.extend(word.take()),
            letter => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    Some(words)
}

fn double_quoted(letters: &mut std::str::Chars, word: &mut String) -> Option<()> {
    loop {
        match letters.next()? {
            '"' => return Some(()),
            '\\' => {
                let next = letters.next()?;
                if !matches!(next, '"' | '\\' | '$' | '`') {
                    word.push('\\');
                }
                word.push(next);
            }
            letter => word.push(letter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn options_are_found_between_those_of_others() {
        let found = parse(
            "console=ttyS0 quiet lodger.listen=unix:/a,mode=0660 lodger.listen=vsock:1 lodger.log=debug panic=-1 lodger.hostname=box\n",
        );
        assert_eq!(
            found,
            Options {
                listen: strings(&["unix:/a,mode=0660", "vsock:1"]),
                log: Some("debug".to_owned()),
                hostname: Some("box".to_owned()),
                ..Options::default()
            }
        );
    }

    #[test]
    fn a_command_is_quoted_around_the_value_or_around_the_parameter() {
        for line in [r#"a lodger.exec="sh -c 'echo  hi'" b"#, r#"a "lodger.exec=sh -c 'echo  hi'" b"#] {
            assert_eq!(parse(line).exec, Some(strings(&["sh", "-c", "echo  hi"])), "{line}");
        }
    }

    #[test]
    fn parameters_are_cut_as_the_kernel_cuts_them() {
        let cut = |line| parameters(line).map(|(name, value)| format!("{name}:{value:?}")).collect::<Vec<_>>();
        assert_eq!(cut("  a  b=1\tc=\"x y\" "), [r#"a:None"#, r#"b:Some("1")"#, r#"c:Some("x y")"#]);
        assert_eq!(cut(r#""d=x y" e=x" "y"#), [r#"d:Some("x y")"#, r#"e:Some("x\" \"y")"#]);
        assert_eq!(cut(r#"f="open end"#), [r#"f:Some("open end")"#]);
        assert_eq!(cut("g= h=i=j"), [r#"g:Some("")"#, r#"h:Some("i=j")"#]);
        assert_eq!(cut(" \n"), [""; 0]);
    }

    #[test]
    fn what_cannot_be_used_is_named_and_the_rest_counts() {
        let found = parse("lodger.listen lodger.log= lodger.colour=red lodger lodger.hostname=a lodger.hostname=b");
        assert_eq!(
            found.complaints,
            ["lodger.listen: no value", "lodger.log: no value", "lodger.colour: unknown option"]
        );
        assert_eq!(found.hostname.as_deref(), Some("b"));
    }

    #[test]
    fn an_address_that_is_none_is_named_and_does_not_replace_one_that_is() {
        let found = parse("lodger.address=eth0:10.0.0.2/8 lodger.address=10.0.0.3");
        assert_eq!(found.address, address::parse("eth0:10.0.0.2/8"));
        assert_eq!(found.complaints, ["lodger.address: 10.0.0.3 is no [INTERFACE:]ADDRESS/BITS of version 4"]);
    }

    #[test]
    fn a_command_with_an_open_quote_is_still_a_wish_for_one() {
        for line in ["lodger.exec='sh", "lodger.exec=\"sh 'a b\"", "lodger.exec=\" \""] {
            let found = parse(line);
            assert_eq!(found.exec, Some(Vec::new()), "{line}");
            assert_eq!(found.complaints.len(), 1, "{line}");
        }
    }

    #[test]
    fn commands_are_split_as_a_shell_splits_them() {
        for (command, expected) in [
            ("a  b\tc", &["a", "b", "c"][..]),
            ("a''b '' \"\"", &["ab", "", ""]),
            (r#"'a "b' "c 'd""#, &["a \"b", "c 'd"]),
            (r#"a\ b \'c "d\"e\\f\g""#, &["a b", "'c", r#"d"e\f\g"#]),
            ("$HOME *", &["$HOME", "*"]),
            ("", &[]),
        ] {
            assert_eq!(words(command), Some(strings(expected)), "{command}");
        }
        for open in ["'a", "\"a", "a\\", "\"a\\"] {
            assert_eq!(words(open), None, "{open}");
        }
    }
}
