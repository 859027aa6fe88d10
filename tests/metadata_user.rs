//! Programs that the guest's side of the metadata service starts as somebody else.
#![cfg(feature = "metadata")]

#[path = "support/service.rs"]
mod service;
mod support;

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use service::{Guest, Host};
use support::{Folder, wait_until};

/// Files of users and groups of which a guest in a mount namespace of its own knows, and a home.
struct Users {
    folder: Folder,
}

impl Users {
    /// `None`, and a line that says so, where users cannot be changed.
    fn new() -> Option<Users> {
        let folder = Folder::new();
        let home = folder.path("home");
        fs::create_dir(&home).expect("a folder");
        for path in [&folder.0, &home] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("a mode");
        }
        let home = home.display();
        let passwd = format!(
            "root:x:0:0:root:/root:/bin/sh\nann:x:4001:4002:Ann:{home}:/bin/sh\nlost:x:4003:4002::/no/such/home:/bin/sh\n"
        );
        fs::write(folder.path("passwd"), passwd).expect("a file");
        let group = "root:x:0:\nusers:x:4002:\nvideo:x:4044:bob,ann\naudio:x:4029:joann\n";
        fs::write(folder.path("group"), group).expect("a file");
        let users = Users { folder };
        let can = Command::new("unshare").args(["-m", "sh", "-c", &users.script()]).args(["sh", "true"]).output();
        if can.is_ok_and(|output| output.status.success()) {
            return Some(users);
        }
        let _ = writeln!(io::stderr(), "skipped: only root can have users of its own, by unshare(1)");
        None
    }

    /// Puts the files in place, and becomes the words behind it.
    fn script(&self) -> String {
        let (passwd, group) = (self.folder.path("passwd"), self.folder.path("group"));
        format!(
            "mount --bind {} /etc/passwd && mount --bind {} /etc/group && exec \"$@\"",
            passwd.display(),
            group.display()
        )
    }

    fn guest(&self, host: &Host, options: &[&str]) -> Guest {
        let script = self.script();
        Guest::start_through(&["unshare", "-m", "sh", "-c", &script, "sh"], &host.address(), options)
    }
}

/// Says who runs it, and where. By numbers: the programs' own look at names is not what is tested.
const WHO: &str = "echo uid $(id -u) gid $(id -g) groups $(id -G | tr ' ' '\\n' | sort | tr '\\n' ' ')\
    home $HOME user $USER logname $LOGNAME at $(pwd)";

fn shell(host: &Host, terminal: bool, script: &str) -> (Option<i32>, String) {
    let words = ["shell", "-t", "--", "sh", "-c", script];
    let words: Vec<&str> = words.into_iter().filter(|word| terminal || *word != "-t").collect();
    let output = host.run(&words, b"");
    (output.status.code(), String::from_utf8_lossy(&output.stdout).replace("\r\n", "\n"))
}

#[test]
fn as_root_programs_run_as_the_user() {
    let Some(users) = Users::new() else { return };
    let home = users.folder.path("home").display().to_string();
    let ann = |gid: &str, groups: &str, at: &str| {
        format!("uid 4001 gid {gid} groups {groups} home {home} user ann logname ann at {at}\n")
    };
    for (options, expected) in [
        (&["--user", "ann"][..], ann("4002", "4002 4044", &home)),
        (&["--user", "4001"], ann("4002", "4002 4044", &home)),
        (&["--user", "ann:audio"], ann("4029", "4029", &home)),
        (&["--user", "ann", "--workdir", "/usr"], ann("4002", "4002 4044", "/usr")),
        (
            &["--user", "lost", "--workdir", "/"],
            "uid 4003 gid 4002 groups 4002 home /no/such/home user lost logname lost at /\n".to_owned(),
        ),
    ] {
        let host = Host::start(&format!("{WHO}; sleep 60"));
        let guest = users.guest(&host, options);
        wait_until("the task says who it is", || host.log().ends_with('\n'));
        assert_eq!(host.log().replace("\r\n", "\n"), expected, "{options:?}");
        for terminal in [false, true] {
            assert_eq!(shell(&host, terminal, WHO), (Some(0), expected.clone()), "{options:?}");
        }
        guest.assert_no_errors();
    }
}

#[test]
fn as_root_the_user_has_a_terminal_of_its_own_and_nothing_of_ours() {
    let Some(users) = Users::new() else { return };
    let secret = users.folder.path("secret");
    fs::write(&secret, "secret").expect("a file");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("a mode");
    let script = format!(
        "echo opened > /dev/tty; cat {} || echo refused; grep -E '^Cap(Eff|Prm|Inh)' /proc/self/status",
        secret.display()
    );
    let host = Host::start(&format!("{script}; echo end"));
    let _guest = users.guest(&host, &["--user", "ann"]);
    wait_until("the task ends", || host.log().contains("end\r\n"));
    let check = |said: &str| {
        assert!(said.starts_with("opened\n") && said.contains("refused\n"), "{said}");
        assert_eq!(said.matches("\t0000000000000000\n").count(), 3, "{said}");
    };
    check(&host.log().replace("\r\n", "\n"));
    check(&shell(&host, true, &script).1);
}

#[test]
fn as_root_the_user_can_open_its_own_output_by_name() {
    let Some(users) = Users::new() else { return };
    let script = "echo out > /dev/stdout && echo err > /dev/stderr && echo end";
    let host = Host::start(&format!("{script}; sleep 60"));
    let guest = users.guest(&host, &["--user", "ann"]);
    wait_until("the task has said something", || host.log().contains("denied") || host.log().contains("end\r\n"));
    assert_eq!(host.log(), "out\r\nerr\r\nend\r\n");
    let output = host.run(&["shell", "--", "sh", "-c", script], b"");
    assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"out\nend\n"[..], &b"err\n"[..]));
    assert_eq!(shell(&host, true, script), (Some(0), "out\nerr\nend\n".to_owned()));
    guest.assert_no_errors();
}

#[test]
fn as_root_a_user_a_group_or_a_home_that_is_missing_fails_programs_with_a_line() {
    let Some(users) = Users::new() else { return };
    for (options, text) in [
        (&["--user", "eve"][..], "eve"),
        (&["--user", "ann:nobody"], "nobody"),
        (&["--user", "lost"], "/no/such/home"),
        (&["--user", "ann", "--workdir", "/no/such/folder"], "/no/such/folder"),
    ] {
        let marker = users.folder.path("ran");
        let script = format!("touch {}", marker.display());
        let mut host = Host::start_with(&[], &["sh", "-c", &script]);
        let guest = users.guest(&host, options);
        assert_eq!(host.wait(), Some(1), "{options:?}");
        assert!(host.log().starts_with("lodger: ") && host.log().contains(text), "{}", host.log());
        assert!(guest.said().contains(text), "{}", guest.said());
        let host = Host::start("true");
        let guest = users.guest(&host, options);
        for terminal in [false, true] {
            assert_eq!(shell(&host, terminal, &script), (Some(1), String::new()), "{options:?}");
        }
        assert!(guest.said().contains("lodger warn: shell: ") && guest.said().contains(text), "{}", guest.said());
        assert!(!Path::new(&marker).exists(), "nothing runs as root instead");
    }
}

#[test]
fn a_working_folder_that_is_missing_fails_shells_too() {
    let host = Host::start("true");
    let guest = Guest::start(&host.address(), &["--workdir", "/no/such/folder"]);
    wait_until("the task fails with a line", || host.log().contains("/no/such/folder"));
    for terminal in [false, true] {
        assert_eq!(shell(&host, terminal, "echo never"), (Some(1), String::new()));
    }
    assert!(guest.said().contains("lodger warn: shell: "), "{}", guest.said());
}
