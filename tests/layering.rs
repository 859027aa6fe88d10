//! The architecture, kept: which module may name which, and what every file holds to.
//!
//! An import that is forbidden here is a change of the architecture: change the table in its own commit, and say why.

use std::fs;
use std::path::{Path, PathBuf};

use regex_lite::Regex;

/// A module, its rank (it may name only modules of lower ranks), and the modules that it may name.
const TABLE: [(&str, u32, &[&str]); 35] = [
    ("sys", 0, &[]),
    ("wire", 0, &[]),
    ("cpio", 0, &[]),
    ("json", 0, &[]),
    // The sum that frames on a line and gzip files have in common.
    ("crc", 0, &[]),
    // Constants of the build.
    ("version", 0, &[]),
    // How the machine ends: what process 1 is asked for, and what the command line and the commands ask it.
    ("power", 1, &["sys"]),
    ("stream", 1, &["sys"]),
    // A file changed as a whole: what the commands inject, and what holds passwords.
    ("replacement", 1, &["sys"]),
    // Its schemes are pure; the shadow file is replaced.
    ("password", 2, &["replacement", "sys"]),
    // Its files are replaced.
    ("network", 2, &["replacement", "sys"]),
    ("link", 2, &["crc", "stream", "sys"]),
    ("exec", 2, &["sys"]),
    ("files", 2, &["sys"]),
    ("websocket", 2, &["stream", "sys"]),
    // `stream`: a connection is one, and has its buffer.
    ("http", 2, &["stream", "sys"]),
    // Pure, as below.
    ("metaservice", 2, &[]),
    // A client of Xen's tree of texts: a stream of its own, which blocks.
    ("xenstore", 2, &["sys"]),
    ("transport", 3, &["link", "stream", "sys"]),
    // Pure: time and bytes are arguments.
    ("shell", 3, &[]),
    // `power`: they end the machine. `version`: it says what it is. `network`, `password`, `replacement`: they set
    // the ones and inject files.
    ("commands", 3, &["exec", "files", "json", "network", "password", "power", "replacement", "sys", "version"]),
    ("engine", 3, &["exec", "files", "stream", "sys"]),
    // `exec`, `files`: operations of one request and one answer need no poll loop between. `version`: it says what it is.
    // `http`, `metaservice`, `shell`, `websocket`: the guest's side of the metadata service speaks them. `password`, `xenstore`: the
    // OpenStack guest agent is sent passwords through that store.
    (
        "proto",
        4,
        &[
            "commands",
            "engine",
            "exec",
            "files",
            "http",
            "json",
            "metaservice",
            "password",
            "shell",
            "stream",
            "sys",
            "version",
            "websocket",
            "wire",
            "xenstore",
        ],
    ),
    // `version`: it says what is ready.
    ("notify", 4, &["sys", "transport", "version"]),
    // `engine`, `exec`: how a connection ended, and how long its programs may still take. `stream`, `sys`: it accepts. `link`: what is
    // accepted on a line comes from there. `notify`: its listeners are open.
    ("server", 5, &["engine", "exec", "link", "notify", "proto", "stream", "sys", "transport"]),
    // `json`: where a response on a bare line ends. `version`: it tells the agent what it is.
    ("client", 5, &["json", "stream", "sys", "version", "wire"]),
    // `client`: output to descriptors that may be slow. `transport`: a unix socket for guests and one for commands.
    ("metadata", 6, &["client", "http", "metaservice", "shell", "stream", "sys", "transport", "websocket"]),
    ("monitor", 6, &["client", "commands", "proto", "server", "sys", "transport"]),
    // `exec`: busybox is asked for its applets. `sys`: what an error number means.
    ("mkinitramfs", 5, &["cpio", "crc", "exec", "sys"]),
    ("init", 6, &["power", "sys"]),
    // `commands`, `proto`, `server`: their settings are what it reads. `exec`: it looks up groups. `transport`: it reads addresses.
    ("config", 6, &["commands", "exec", "proto", "server", "sys", "transport"]),
    // `exec`: QEMU is a program with streams. `link`, `stream`: what it wants of the line. `sys`: it waits for QEMU and the guest at once.
    ("vm", 6, &["client", "exec", "link", "mkinitramfs", "stream", "sys", "transport"]),
    // The command line starts everything that the program can be, and shows what programs, files and recordings say. `json`: people write
    // requests, and read responses.
    (
        "cli",
        7,
        &[
            "client",
            "commands",
            "config",
            "exec",
            "http",
            "init",
            "json",
            "link",
            "metadata",
            "mkinitramfs",
            "power",
            "proto",
            "server",
            "stream",
            "sys",
            "transport",
            "version",
            "vm",
            "wire",
        ],
    ),
    ("lib", 8, &[]),
    ("main", 8, &["cli", "init"]),
];

/// Lines of code in one file, without blank lines, comments and its tests. A longer one answers more than one question.
const LINES_MAX: usize = 400;

/// A source file, as the checks see it.
struct Source {
    /// From the top of the repository, for the messages.
    name: String,
    module: String,
    text: String,
}

impl Source {
    /// The lines that are no comments, with their numbers.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let numbered = self.text.lines().enumerate().map(|(index, line)| (index + 1, line));
        numbered.filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    /// The code in front of the file's own tests.
    fn code_without_tests(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code().take_while(|(_, line)| *line != "#[cfg(test)]")
    }
}

fn sources() -> Vec<Source> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    collect(&top.join("src"), &mut paths);
    paths.sort();
    let read = |path: PathBuf| {
        let inside = path.strip_prefix(top.join("src")).expect("found there").with_extension("");
        let module = inside.iter().next().expect("a file has a name").to_string_lossy().into_owned();
        let name = path.strip_prefix(top).expect("found there").display().to_string();
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {name}: {error}"));
        Source { name, module, text }
    };
    paths.into_iter().map(read).collect()
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the sources are readable") {
        let path = entry.expect("the sources are readable").path();
        if path.is_dir() {
            collect(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
}

/// The modules that code names from the top of the crate: `crate::a::b`, and `crate::{a::{b, c}, d}`, which names two.
fn named_modules(code: &str) -> Vec<String> {
    let top = Regex::new(r"\b(?:crate|lodger)::").expect("a regular expression");
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut modules = Vec::new();
    for found in top.find_iter(code) {
        let rest = &code[found.end()..];
        let Some(group) = rest.strip_prefix('{') else {
            modules.push(word(rest));
            continue;
        };
        let mut depth = 0;
        let mut expected = true;
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => expected = true,
                c if expected && !c.is_whitespace() => {
                    modules.push(word(&group[at..]));
                    expected = false;
                }
                _ => {}
            }
        }
    }
    modules
}

fn row(module: &str) -> Option<&'static (&'static str, u32, &'static [&'static str])> {
    TABLE.iter().find(|(name, ..)| *name == module)
}

fn report(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn a_module_names_only_what_the_table_allows() {
    let mut complaints = Vec::new();
    for source in sources() {
        let Some((_, _, allowed)) = row(&source.module) else {
            complaints.push(format!("{}: module {} is not in the table", source.name, source.module));
            continue;
        };
        let code: Vec<&str> = source.code().map(|(_, line)| line).collect();
        for named in named_modules(&code.join("\n")) {
            if named != source.module && !allowed.contains(&named.as_str()) {
                complaints.push(format!("{}: {} may not name {named}", source.name, source.module));
            }
        }
    }
    report(complaints);
}

#[test]
fn a_rank_names_only_ranks_below() {
    let mut complaints = Vec::new();
    for (module, rank, allowed) in TABLE {
        for named in allowed {
            match row(named) {
                Some((_, below, _)) if *below < rank => {}
                Some((_, other, _)) => {
                    complaints.push(format!("{module} of rank {rank} names {named} of rank {other}"))
                }
                None => complaints.push(format!("{module} names {named}, which is not in the table")),
            }
        }
    }
    report(complaints);
}

#[test]
fn imports_are_found_however_they_are_written() {
    let code =
        "use crate::sys::fd;\nlet a = crate::wire::mode::to_go(1);\nuse lodger::{cli, init::{self, run},\n  vm};";
    assert_eq!(named_modules(code), ["sys", "wire", "cli", "init", "vm"]);
    assert!(named_modules("use crates::x; mycrate::y; std::io::z").is_empty());
}

/// Complains of each line of code outside of tests that `pattern` finds in a file that `applies` is true for.
fn complain_of(pattern: &str, applies: fn(&Source) -> bool, why: &str) -> Vec<String> {
    let pattern = Regex::new(pattern).expect("a regular expression");
    let mut complaints = Vec::new();
    for source in sources().into_iter().filter(applies) {
        let found = source.code_without_tests().filter(|(_, line)| pattern.is_match(line));
        complaints.extend(found.map(|(number, line)| format!("{}:{number}: {why}: {}", source.name, line.trim())));
    }
    complaints
}

#[test]
fn only_sys_calls_the_system() {
    report(complain_of(r"\bunsafe\b|\blibc::|\buse libc\b", |source| source.module != "sys", "this belongs into sys"));
}

#[test]
fn nothing_unwraps_outside_of_tests() {
    report(complain_of(r"\.unwrap\(\)", |_| true, "use expect and say why it cannot happen"));
}

#[test]
fn nothing_outside_of_tests_imports_from_above_or_everything_or_again() {
    report(complain_of(
        r"\bsuper::|^\s*use .*::\*|^\s*pub(\(\w+\))? use ",
        |_| true,
        "name it from crate::, one by one",
    ));
}

#[test]
fn a_file_is_no_longer_than_one_question_takes() {
    let mut complaints = Vec::new();
    for source in sources() {
        let lines = source.code_without_tests().filter(|(_, line)| !line.trim().is_empty()).count();
        if lines > LINES_MAX {
            complaints.push(format!("{}: {lines} lines of code, and {LINES_MAX} is the limit", source.name));
        }
    }
    report(complaints);
}

#[test]
fn every_file_says_in_its_first_line_what_it_is_for() {
    let silent = sources().into_iter().filter(|source| !source.text.starts_with("//! "));
    report(silent.map(|source| format!("{}: the first line is no //! line", source.name)).collect());
}

#[test]
fn the_table_names_no_module_that_is_gone() {
    let sources = sources();
    let gone = TABLE.iter().filter(|(module, ..)| !sources.iter().any(|source| source.module == *module));
    report(gone.map(|(module, ..)| format!("{module} is no module")).collect());
}
