//! What a host may ask for around a program: its limits, privileges, user, groups, environment, directory and terminal.
#![cfg(feature = "clear")]

use std::fs;
use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use lodger::exec::capture::{self, Bounds, Outcome};
use lodger::exec::{self, Program};
use lodger::proto::hyper::process;
use lodger::sys::capability::Capabilities;
use lodger::sys::process::{Status, effective_user};

/// A program that says what it is like, with these members added.
fn process(members: Value) -> Program {
    let mut process = json!({"args": ["sh", "-c", "cat /proc/self/status; ulimit -Sn; ulimit -Hn"]});
    for (name, value) in members.as_object().expect("an object") {
        process[name] = value.clone();
    }
    process::read(&process).expect("a process").program
}

/// What it says.
fn run(program: &Program) -> Result<String, String> {
    let (session, channels) = exec::start(program).map_err(|error| error.text())?;
    let deadline = capture::within(Duration::from_secs(20));
    let bounds = Bounds { stdout_max: 1 << 16, stderr_max: 1 << 16, deadline, ..Bounds::default() };
    let Outcome::Complete(output) = capture::finish(session, channels, &[], &bounds).expect("it ends") else {
        panic!("nobody stopped it")
    };
    let said = String::from_utf8_lossy(&output.stdout.bytes).replace("\r\n", "\n");
    assert_eq!(output.status, Status::Exited(0), "{said}{}", String::from_utf8_lossy(&output.stderr.bytes));
    Ok(said)
}

fn said(members: Value) -> String {
    run(&process(members)).expect("it starts")
}

fn refused(members: Value) -> String {
    run(&process(members)).expect_err("it does not start")
}

/// The line of a status behind its name, without the white space between.
fn line<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{name} in {status}")).trim()
}

fn set(status: &str, name: &str) -> u64 {
    u64::from_str_radix(line(status, name), 16).expect("a mask")
}

fn own_status() -> String {
    fs::read_to_string("/proc/thread-self/status").expect("a status")
}

/// Whether we may do all; else says that a test is skipped.
fn is_root() -> bool {
    // Users, groups and the bounding set.
    let needed = 1 << 6 | 1 << 7 | 1 << 8;
    let is_root = effective_user() == 0 && set(&own_status(), "CapEff") & needed == needed;
    if !is_root {
        let _ = writeln!(io::stderr(), "skipped: only root can give away its privileges");
    }
    is_root
}

/// Calls it in a thread of a user without privileges.
fn as_nobody<T: Send>(call: impl FnOnce() -> T + Send) -> T {
    let call = || {
        if effective_user() == 0 {
            // SAFETY: takes plain integers, and changes the calling thread alone.
            let result = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
            assert_eq!(result, 0, "{}", io::Error::last_os_error());
        }
        call()
    };
    thread::scope(|scope| scope.spawn(call).join().expect("no panic"))
}

fn hard_limit() -> u64 {
    let limits = fs::read_to_string("/proc/self/limits").expect("limits");
    let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
    files.split_whitespace().nth(4).expect("a hard one").parse().expect("a number")
}

#[test]
fn a_program_has_the_limits_that_it_is_given() {
    let said = said(json!({"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 17, "hard": 18}]}));
    assert!(said.ends_with("\n17\n18\n"), "{said}");
    let limits = process(json!({"args": ["cat", "/proc/self/limits"], "rlimits": [
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        {"type": "fsize", "soft": 4096, "hard": 8192},
        {"type": "rlimit_cpu", "soft": 100, "hard": 200},
    ]}));
    let limits = run(&limits).expect("it starts");
    let words: Vec<Vec<&str>> = limits.lines().map(|line| line.split_whitespace().collect()).collect();
    for expected in [
        &["core", "file", "size", "0", "0"],
        &["file", "size", "4096", "8192", "bytes"],
        &["cpu", "time", "100", "200", "seconds"],
    ] {
        assert!(words.iter().any(|words| words.windows(5).any(|window| window == expected)), "{expected:?}: {limits}");
    }
}

#[test]
fn a_limit_that_the_kernel_refuses_is_an_error() {
    let shell = "for /usr/bin/sh:";
    let path = lodger::exec::path::resolve(b"sh", None).expect("a shell");
    let shell = shell.replace("/usr/bin/sh", &String::from_utf8_lossy(&path));
    let limit =
        |soft: u64, hard: u64| refused(json!({"rlimits": [{"type": "RLIMIT_NOFILE", "soft": soft, "hard": hard}]}));
    assert_eq!(limit(20, 19), format!("set limit RLIMIT_NOFILE {shell} invalid argument"));
    let refusal = format!("set limit RLIMIT_NOFILE {shell} operation not permitted");
    assert_eq!(limit(17, u64::MAX), refusal, "more than the kernel has for anybody");
    let hard = hard_limit();
    assert_eq!(as_nobody(|| limit(17, hard + 1)), refusal);
    let kept = as_nobody(|| said(json!({"rlimits": [{"type": "nofile", "soft": 17, "hard": hard}]})));
    assert!(kept.ends_with(&format!("\n17\n{hard}\n")), "{kept}");
}

#[test]
fn a_program_may_be_forbidden_new_privileges() {
    let own = line(&own_status(), "NoNewPrivs").to_owned();
    assert_eq!(line(&said(json!({})), "NoNewPrivs"), own);
    assert_eq!(line(&said(json!({"noNewPrivileges": true})), "NoNewPrivs"), "1");
    assert_eq!(line(&as_nobody(|| said(json!({"noNewPrivileges": true}))), "NoNewPrivs"), "1");
}

#[test]
fn without_a_word_about_capabilities_they_are_the_agents() {
    let sets = json!({"bounding": null, "effective": null, "inheritable": null, "permitted": null, "ambient": null});
    let own = own_status();
    for members in [json!({}), json!({"capabilities": sets}), json!({"capabilities": null})] {
        let said = said(members);
        for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(line(&said, name), line(&own, name), "{name}");
        }
    }
}

#[test]
fn as_root_a_program_has_only_the_capabilities_of_its_bounding_set() {
    if !is_root() {
        return;
    }
    let few = said(json!({"capabilities": {"bounding": ["CAP_CHOWN", "CAP_KILL"]}}));
    assert_eq!(["CapBnd", "CapPrm", "CapEff"].map(|name| set(&few, name)), [0x21; 3]);
    let none = said(
        json!({"capabilities": {"bounding": [], "effective": [], "permitted": [], "inheritable": [], "ambient": []}}),
    );
    assert_eq!(["CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb"].map(|name| set(&none, name)), [0; 5]);
}

#[test]
fn as_root_a_program_has_what_is_permitted_and_no_more() {
    if !is_root() {
        return;
    }
    let two = json!(["CAP_CHOWN", "CAP_KILL"]);
    for members in [
        json!({"permitted": two, "effective": two}),
        json!({"permitted": two, "effective": two, "bounding": null, "inheritable": null, "ambient": null}),
        json!({"permitted": two}),
    ] {
        for user in ["", "0"] {
            let said = said(json!({"user": user, "capabilities": members}));
            let sets = ["CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb"].map(|name| set(&said, name));
            assert_eq!(sets, [0x21, 0x21, 0x21, 0, 0], "{members} {user:?}");
        }
    }
    // Root has no permitted ones that are not effective.
    let why = "process.capabilities.effective: a program of root has all of its bounding and inheritable sets";
    for sets in [json!({"permitted": two, "effective": []}), json!({"effective": two})] {
        let value = json!({"args": ["true"], "capabilities": sets});
        assert_eq!(process::read(&value).err().as_deref(), Some(why), "{sets}");
    }
    let none = said(json!({"capabilities": {"permitted": [], "effective": []}}));
    assert_eq!(["CapPrm", "CapEff", "CapBnd"].map(|name| set(&none, name)), [0; 3]);
    // What is said of the bounding set is done, and that is wider.
    let wider = json!({"permitted": [], "bounding": two});
    assert_eq!(set(&said(json!({"capabilities": wider})), "CapPrm"), 0x21);
}

#[test]
fn as_root_another_user_keeps_the_capabilities_of_the_ambient_set() {
    if !is_root() {
        return;
    }
    let net = json!(["CAP_NET_RAW"]);
    let plain = said(json!({"user": "4242"}));
    assert_eq!(["CapPrm", "CapEff", "CapAmb"].map(|name| set(&plain, name)), [0; 3]);
    let members = json!({"inheritable": net, "permitted": net, "effective": net, "ambient": net});
    let said = said(json!({"user": "4242", "capabilities": members}));
    assert_eq!(["CapPrm", "CapEff", "CapInh", "CapAmb"].map(|name| set(&said, name)), [1 << 13; 4]);
    assert_eq!(set(&said, "CapBnd"), set(&own_status(), "CapBnd"), "not a word about it");
    assert_eq!(line(&said, "Uid"), "4242\t4242\t4242\t4242");
}

#[test]
fn as_root_capabilities_that_the_kernel_refuses_are_errors() {
    if !is_root() {
        return;
    }
    let starts = |members: Value, text: &str| {
        let refusal = refused(json!({"user": "4242", "capabilities": members}));
        assert!(refusal.starts_with(text) && refusal.ends_with(": operation not permitted"), "{refusal}");
    };
    starts(json!({"ambient": ["CAP_KILL"]}), "set ambient capabilities for /");
    starts(json!({"permitted": [], "effective": ["CAP_KILL"]}), "set capabilities for /");
    starts(json!({"inheritable": ["CAP_KILL"], "permitted": ["CAP_CHOWN"], "ambient": ["CAP_KILL"]}), "set ambient");
    let lost = thread::spawn(|| {
        // SAFETY: takes plain integers, and changes the calling thread alone.
        assert_eq!(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, 28, 0, 0, 0) }, 0);
        refused(json!({"capabilities": {"bounding": ["CAP_LEASE"]}}))
    });
    let lost = lost.join().expect("no panic");
    assert!(
        lost.starts_with("set bounding capabilities for /") && lost.ends_with(": operation not permitted"),
        "{lost}"
    );
}

#[test]
fn capabilities_that_the_kernel_does_not_know_are_errors() {
    let unknown = Some(1 << 63);
    let refusal = |capabilities| run(&Program { capabilities, ..process(json!({})) }).expect_err("refused");
    let none = Capabilities::default;
    for (capabilities, text) in [
        (Capabilities { inheritable: unknown, ..none() }, "set capabilities for /"),
        (Capabilities { ambient: unknown, ..none() }, "set ambient capabilities for /"),
    ] {
        let refusal = refusal(capabilities);
        assert!(refusal.starts_with(text) && refusal.ends_with(": invalid argument"), "{refusal}");
    }
    let bounding = Some(set(&own_status(), "CapBnd") | 1 << 63);
    let refusal = refusal(Capabilities { bounding, ..none() });
    assert!(
        refusal.starts_with("set bounding capabilities for /") && refusal.ends_with(": invalid argument"),
        "{refusal}"
    );
}

#[test]
fn who_has_no_privileges_can_neither_give_them_away_nor_become_another_user() {
    for (members, text) in [
        (json!({"capabilities": {"bounding": []}}), "set bounding capabilities for /"),
        (json!({"capabilities": {"permitted": ["CAP_CHOWN"]}}), "set capabilities for /"),
        (json!({"user": "4242"}), "change user for /"),
        (json!({"group": "4242"}), "change user for /"),
        (json!({"additionalGroups": ["4242"]}), "change user for /"),
    ] {
        let refusal = as_nobody(|| refused(members));
        assert!(refusal.starts_with(text) && refusal.ends_with(": operation not permitted"), "{refusal}");
    }
    let own = as_nobody(|| {
        said(json!({"user": effective_user().to_string(), "capabilities": {"permitted": [], "effective": []}}))
    });
    assert_eq!(set(&own, "CapPrm"), 0);
}

#[test]
fn as_root_groups_are_those_of_the_user_and_the_additional_ones() {
    if !is_root() {
        return;
    }
    let groups = |members: Value| {
        let said = said(members);
        let mut groups: Vec<u32> =
            line(&said, "Groups").split_whitespace().map(|gid| gid.parse().expect("a number")).collect();
        groups.sort_unstable();
        let gid = line(&said, "Gid").split_whitespace().next().map(|gid| gid.parse().expect("a number"));
        (gid.unwrap_or(0u32), groups)
    };
    assert_eq!(groups(json!({"user": "4242"})), (4242, vec![4242]));
    assert_eq!(groups(json!({"user": "4242", "group": "17"})), (17, vec![17]));
    assert_eq!(
        groups(json!({"user": "4242", "group": "17", "additionalGroups": ["18", "17", "19"]})),
        (17, vec![17, 18, 19])
    );
    assert_eq!(groups(json!({"group": "17", "additionalGroups": ["18"]})), (17, vec![17, 18]));
}

#[test]
fn environment_directory_and_terminal_are_as_they_are_given() {
    let members = |terminal: bool| {
        let script =
            "echo $VALUE; pwd; test -t 0 && test -t 1 && test -t 2 && echo terminal; env | grep -c ^TERM=; true";
        json!({"args": ["sh", "-c", script], "envs": [{"env": "VALUE", "value": "one two"}], "workdir": "/usr", "terminal": terminal})
    };
    assert_eq!(said(members(true)), "one two\n/usr\nterminal\n1\n");
    assert!(said(members(false)).starts_with("one two\n/usr\n"));
    assert_eq!(refused(json!({"workdir": "/missing"})), "change to directory /missing: no such file or directory");
    let missing = refused(json!({"args": ["/missing"], "noNewPrivileges": true}));
    assert_eq!(missing, "execute /missing: no such file or directory");
}

#[test]
fn a_program_leads_a_session_and_a_group_of_its_own() {
    for terminal in [false, true] {
        let stat = said(json!({"args": ["sh", "-c", "read line < /proc/$$/stat; echo $line"], "terminal": terminal}));
        let fields: Vec<&str> = stat.split_whitespace().collect();
        // Behind its name, its state and its parent.
        assert_eq!((fields[4], fields[5]), (fields[0], fields[0]), "{terminal}: {stat}");
    }
}

#[test]
fn a_program_is_searched_for_where_its_own_path_says() {
    let path = |path: &str| json!({"args": ["sh", "-c", "echo $0 $PATH"], "envs": [{"env": "PATH", "value": path}]});
    assert_eq!(said(path("/nowhere:/bin")), "sh /nowhere:/bin\n");
    assert!(refused(path("/nowhere")).starts_with("sh: not found"));
    assert!(said(json!({"args": ["sh", "-c", "echo $0"]})).starts_with("sh\n"), "the agent's, where nothing is said");
}

#[test]
fn as_root_all_of_it_together_and_the_agent_stays_what_it_is() {
    if !is_root() {
        return;
    }
    let own = || {
        let status = own_status();
        let names = ["Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs"];
        let limits = fs::read_to_string("/proc/self/limits").expect("limits");
        (names.map(|name| line(&status, name).to_owned()), limits)
    };
    let before = own();
    let caps = json!(["CAP_NET_RAW", "CAP_KILL"]);
    let mut members = json!({"terminal": true, "stdio": 5, "workdir": "/", "user": "4242", "group": "17", "additionalGroups": ["18"],
        "envs": [{"env": "A", "value": "b"}], "noNewPrivileges": true,
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 17, "hard": 18}, {"type": "RLIMIT_CORE"}],
        "capabilities": {"bounding": caps, "effective": caps, "inheritable": caps, "permitted": caps, "ambient": ["CAP_KILL"]}});
    let all = said(members.clone());
    let sets = ["CapBnd", "CapInh", "CapPrm", "CapEff", "CapAmb"].map(|name| set(&all, name));
    let both = 1 << 5 | 1 << 13;
    assert_eq!(sets, [both, both, 1 << 5, 1 << 5, 1 << 5]);
    assert_eq!(
        (line(&all, "NoNewPrivs"), line(&all, "Uid"), line(&all, "Groups")),
        ("1", "4242\t4242\t4242\t4242", "17 18")
    );
    assert!(all.ends_with("\n17\n18\n"), "{all}");
    members["workdir"] = json!("/missing");
    assert_eq!(refused(members), "change to directory /missing: no such file or directory");
    assert_eq!(own(), before);
}
