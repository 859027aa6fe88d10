//! The process object of `execcmd`, as hosts write it.
//!
//! `{"id", "user", "group", "additionalGroups": [...], "terminal": bool, "stdio": u64, "stderr": u64, "args": [...], "envs": [{"env",
//! "value"}], "workdir", "rlimits": [{"type", "hard": u64, "soft": u64}], "noNewPrivileges": bool, "capabilities": {"bounding",
//! "effective", "inheritable", "permitted", "ambient": [...]}}`, of which only `args` must be there. Hosts in Go find members whatever the case
//! of their names, write `null` for empty lists and do not tell what is missing from what is empty or 0; so neither does this. Only of a set of
//! capabilities that is missing or null the program has the agent's: the proxy writes null for all that its client says nothing of. But what is
//! not permitted is not effective either. And to a program of root the kernel gives all of its bounding and its inheritable set as it is
//! executed, permitted and effective, whatever was so before. So where `permitted` is there and these are not, it is the bounding set too and
//! the inheritable one is empty, or the program would have more than was asked for; and an effective set of root's that will not be so is an
//! error. Members that nobody knows are passed over.
//! Sources: hyperstart 0.7 and 1.0, the proxy and the agent of Clear Containers 3.0.

use serde_json::{Map, Value};

use crate::exec::{Program, environment, user};
use crate::sys::capability::{self, Capabilities};
use crate::sys::process::{Identity, effective_user};
use crate::sys::rlimit::{Resource, Rlimit};
use crate::sys::tty::Window;

/// What a terminal is taken for when nobody says what it is.
const TERMINAL: &[u8] = b"TERM=xterm";

/// Rows and columns of a terminal until the host tells them, which it does only once the program runs: the size that programs assume
/// themselves. With none at all stty(1) of busybox fails, and editors draw nothing.
const WINDOW: Window = Window { rows: 24, columns: 80 };

/// One program of a host, and the numbers of its streams.
#[derive(Debug)]
pub struct Process {
    pub program: Program,
    /// Its name among the host's; the number of its standard input, where the host gives none.
    pub id: String,
    /// The number of standard input and output; 0: none was given.
    pub stdio: u64,
    /// The number of standard error; 0: none was given.
    pub stderr: u64,
    pub terminal: bool,
}

impl Process {
    /// Whether all of its streams have numbers, as hyperstart wants it: both, and on a terminal, which has one output, the first.
    ///
    /// # Errors
    /// The one that is missing.
    pub fn check_numbers(&self) -> Result<(), String> {
        match (self.stdio, self.stderr) {
            (0, _) => Err("process.stdio is 0".to_owned()),
            (_, 0) if !self.terminal => Err("process.stderr is 0".to_owned()),
            _ => Ok(()),
        }
    }
}

/// The program that the object describes. Its environment is the agent's, USER and HOME of its user, and `envs`; on its PATH there the
/// program is searched for.
///
/// # Errors
/// The member that is missing or of a wrong type, or the user, group, limit or capability that nobody knows.
pub fn read(value: &Value) -> Result<Process, String> {
    let members = Members::of(value, "process")?;
    let mut args = members.texts("args")?.into_iter();
    let path = args.next().filter(|name| !name.is_empty()).ok_or("process.args names no program")?;
    let terminal = members.flag("terminal")?;
    let stdio = members.number("stdio")?;
    let id = members.text("id")?;
    let env = environment(&members, terminal)?;
    let identity = identity(&members)?;
    let capabilities = capabilities(&members, is_roots(identity.as_ref()))?;
    let program = Program {
        path: path.into_bytes(),
        // As execvp(3) does it behind the change of the environment.
        search: env.iter().find_map(|entry| entry.strip_prefix(b"PATH=")).map(<[u8]>::to_vec),
        arguments: args.map(String::into_bytes).collect(),
        env: Some(env),
        cwd: members.text("workdir")?.into_bytes(),
        terminal: terminal.then_some(WINDOW),
        // As hyperstart starts all: what a program does to its session stays among its own.
        own_session: true,
        identity,
        rlimits: rlimits(&members)?,
        no_new_privileges: members.flag("noNewPrivileges")?,
        capabilities,
        ..Program::default()
    };
    let id = if id.is_empty() { stdio.to_string() } else { id };
    Ok(Process { program, id, stdio, stderr: members.number("stderr")?, terminal })
}

/// Who it runs as. `None`: as the agent.
fn identity(members: &Members) -> Result<Option<Identity>, String> {
    let (mut user, group) = (members.text("user")?, members.text("group")?);
    let more = members.texts("additionalGroups")?;
    if user.is_empty() && group.is_empty() && more.is_empty() {
        return Ok(None);
    }
    if user.is_empty() {
        user = effective_user().to_string();
    }
    let is_whole = group.is_empty();
    let mut identity = user::look_up(&if is_whole { user } else { format!("{user}:{group}") })?;
    for group in &more {
        let gid = user::look_up(&format!(":{group}"))?.gid;
        if !identity.groups.contains(&gid) {
            identity.groups.push(gid);
        }
    }
    // Nobody but root may take on an identity, not even its own.
    let is_ours = effective_user() != 0 && identity.uid == effective_user() && is_whole && more.is_empty();
    Ok((!is_ours).then_some(identity))
}

fn environment(members: &Members, terminal: bool) -> Result<Vec<Vec<u8>>, String> {
    let named = members.text("user")?;
    let user = if named.is_empty() { effective_user().to_string() } else { named.clone() };
    let account = user::name_and_home(&user);
    let is_known = account.is_some();
    let (name, home) = account.unwrap_or_else(|| (user, "/".to_owned()));
    let variables = [format!("USER={name}").into_bytes(), format!("HOME={home}").into_bytes()];
    let mut env = environment::own();
    // Of the agent's own user, of whom no file tells, the agent's environment may tell.
    let place = if is_known || !named.is_empty() { env.len() } else { 0 };
    env.splice(place..place, variables);
    for value in members.list("envs")? {
        let variable = Members::of(value, "process.envs")?;
        let (name, value) = (variable.text("env")?, variable.text("value")?);
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(format!("process.envs: {name:?} is no variable"));
        }
        env.push(format!("{name}={value}").into_bytes());
    }
    if terminal && !env.iter().any(|entry| entry.starts_with(b"TERM=")) {
        env.push(TERMINAL.to_vec());
    }
    Ok(environment::without_repeats(env))
}

fn rlimits(members: &Members) -> Result<Vec<Rlimit>, String> {
    let mut limits: Vec<Rlimit> = Vec::new();
    for value in members.list("rlimits")? {
        let limit = Members::of(value, "process.rlimits")?;
        let name = limit.text("type")?;
        let resource = Resource::by_name(&name).ok_or_else(|| format!("process.rlimits: {name:?} is no limit"))?;
        if limits.iter().any(|other| other.resource == resource) {
            return Err(format!("process.rlimits: {} is there twice", resource.name));
        }
        limits.push(Rlimit { resource, soft: limit.number("soft")?, hard: limit.number("hard")? });
    }
    Ok(limits)
}

/// Whether the program runs as root.
fn is_roots(identity: Option<&Identity>) -> bool {
    effective_user() == 0 && identity.is_none_or(|identity| identity.uid == 0)
}

fn capabilities(members: &Members, is_roots: bool) -> Result<Capabilities, String> {
    let Some(value) = members.get("capabilities") else { return Ok(Capabilities::default()) };
    let sets = Members::of(value, "process.capabilities")?;
    let set = |name: &str| {
        let is_given = sets.get(name).is_some();
        let mask = sets.texts(name)?.into_iter().try_fold(0, |mask, text| {
            let unknown = || format!("process.capabilities.{name}: {text:?} is no capability");
            capability::by_name(&text).map(|number| mask | 1u64 << number).ok_or_else(unknown)
        })?;
        Ok::<_, String>(is_given.then_some(mask))
    };
    let permitted = set("permitted")?;
    let limit = permitted.filter(|_| is_roots);
    let (bounding, inheritable) = (set("bounding")?.or(limit), set("inheritable")?.or(limit.map(|_| 0)));
    let effective = set("effective")?;
    if let Some(effective) = effective.filter(|_| is_roots && !members.flag("noNewPrivileges").unwrap_or_default())
        && bounding.map(|bounding| bounding | inheritable.unwrap_or(0)) != Some(effective)
    {
        return Err(
            "process.capabilities.effective: a program of root has all of its bounding and inheritable sets".to_owned()
        );
    }
    // What is not permitted cannot be effective.
    Ok(Capabilities { bounding, effective: effective.or(permitted), inheritable, permitted, ambient: set("ambient")? })
}

/// The members of an object. What is null counts as missing, and what is missing as empty.
pub struct Members<'a> {
    map: &'a Map<String, Value>,
    /// What it is called in errors.
    object: &'static str,
}

impl<'a> Members<'a> {
    /// Those of a value, if it is an object.
    pub fn of(value: &'a Value, object: &'static str) -> Result<Members<'a>, String> {
        let map = value.as_object().ok_or_else(|| format!("{object} is no object"))?;
        Ok(Members { map, object })
    }

    /// The member of that name, or else of one that differs only in case.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        let alike = || self.map.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value);
        self.map.get(name).or_else(alike).filter(|value| !value.is_null())
    }

    fn is_no(&self, name: &str, what: &str) -> String {
        format!("{}.{name} is no {what}", self.object)
    }

    pub fn text(&self, name: &str) -> Result<String, String> {
        let text = |value: &Value| value.as_str().map(str::to_owned).ok_or_else(|| self.is_no(name, "text"));
        self.get(name).map_or(Ok(String::new()), text)
    }

    pub fn number(&self, name: &str) -> Result<u64, String> {
        self.get(name)
            .map_or(Ok(0), |value| value.as_u64().ok_or_else(|| self.is_no(name, "number from 0 to 2^64 - 1")))
    }

    pub fn flag(&self, name: &str) -> Result<bool, String> {
        self.get(name).map_or(Ok(false), |value| value.as_bool().ok_or_else(|| self.is_no(name, "true or false")))
    }

    pub fn list(&self, name: &str) -> Result<&'a [Value], String> {
        let list = |value: &'a Value| value.as_array().map(Vec::as_slice).ok_or_else(|| self.is_no(name, "list"));
        self.get(name).map_or(Ok(&[]), list)
    }

    pub fn texts(&self, name: &str) -> Result<Vec<String>, String> {
        let text = |value: &Value| value.as_str().map(str::to_owned).ok_or_else(|| self.is_no(name, "list of texts"));
        self.list(name)?.iter().map(text).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn env_of(process: &Process) -> Vec<String> {
        let env = process.program.env.as_ref().expect("an environment");
        env.iter().map(|entry| String::from_utf8_lossy(entry).into_owned()).collect()
    }

    #[test]
    fn what_the_proxy_of_clear_containers_writes_is_read() {
        let text = r#"{"terminal":false,"stdio":3,"stderr":4,"args":["sh","-c","true"],"workdir":"/","noNewPrivileges":false,
            "capabilities":{"bounding":null,"effective":null,"inheritable":null,"permitted":null,"ambient":null}}"#;
        let process = read(&serde_json::from_str(text).expect("JSON")).expect("a process");
        assert_eq!((process.id.as_str(), process.stdio, process.stderr, process.terminal), ("3", 3, 4, false));
        assert_eq!(process.check_numbers(), Ok(()));
        let program = process.program;
        assert_eq!((program.path.as_slice(), program.cwd.as_slice()), (&b"sh"[..], &b"/"[..]));
        assert_eq!(program.arguments, [b"-c".to_vec(), b"true".to_vec()]);
        assert_eq!((program.capabilities, program.no_new_privileges), (Capabilities::default(), false));
        assert!(
            program.rlimits.is_empty() && program.identity.is_none() && program.terminal.is_none() && !program.detached
        );
    }

    #[test]
    fn names_of_members_may_be_of_any_case_and_unknown_ones_are_passed_over() {
        let process = read(&json!({"Args": ["a"], "STDIO": 7, "Id": "x", "other": [1], "stdio": 5, "envs": null}));
        let process = process.expect("a process");
        assert_eq!((process.id.as_str(), process.stdio, process.stderr), ("x", 5, 0), "the exact name comes first");
    }

    #[test]
    fn the_environment_is_the_agents_the_users_and_the_given_one() {
        let value = json!({"args": ["a"], "user": "4242", "terminal": true,
            "envs": [{"env": "HOME", "value": "/given"}, {"ENV": "EMPTY"}, {"env": "TWICE", "value": "1"}, {"env": "TWICE", "value": "a=b"}]});
        let env = env_of(&read(&value).expect("a process"));
        for entry in ["USER=4242", "HOME=/given", "EMPTY=", "TWICE=a=b"] {
            assert!(env.iter().any(|other| other == entry), "{entry} in {env:?}");
        }
        assert!(env.iter().any(|entry| entry.starts_with("PATH=")), "inherited");
        assert_eq!(env.iter().filter(|entry| entry.starts_with("HOME=")).count(), 1);
        assert_eq!(env.iter().filter(|entry| entry.starts_with("TERM=")).count(), 1);
        let value = json!({"args": ["a"], "terminal": true, "envs": [{"env": "TERM", "value": "vt100"}]});
        assert!(env_of(&read(&value).expect("a process")).contains(&"TERM=vt100".to_owned()));
    }

    #[test]
    fn users_and_groups_have_names_or_numbers() {
        let identity = |value: Value| read(&value).map(|process| process.program.identity.expect("an identity"));
        let is = |uid, gid, groups: &[u32]| Ok(Identity { uid, gid, groups: groups.to_vec() });
        let own = effective_user();
        assert_eq!(identity(json!({"args": ["a"], "user": "4242"})), is(4242, 4242, &[4242]));
        assert_eq!(identity(json!({"args": ["a"], "user": "4242", "group": "17"})), is(4242, 17, &[17]));
        let more = json!({"args": ["a"], "user": "4242", "additionalGroups": ["5005", "4242", "5006"]});
        assert_eq!(identity(more), is(4242, 4242, &[4242, 5005, 5006]));
        assert_eq!(identity(json!({"args": ["a"], "group": "17"})), is(own, 17, &[17]));
        for (member, text) in [
            (json!({"user": "nobody-knows-me"}), "user nobody-knows-me: no such user"),
            (json!({"group": "nobody-knows-us"}), "group nobody-knows-us: no such group"),
            (json!({"additionalGroups": ["nobody-knows-us"]}), "group nobody-knows-us: no such group"),
            (json!({"additionalGroups": [""]}), "group : no such group"),
        ] {
            let mut value = member;
            value["args"] = json!(["a"]);
            assert_eq!(identity(value), Err(text.to_owned()));
        }
    }

    #[test]
    fn limits_and_privileges_are_read() {
        let value = json!({"args": ["a"], "NoNewPrivileges": true, "rlimits": [
                {"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20},
                {"Type": "core"},
                {"type": "rlimit_stack", "soft": u64::MAX, "hard": u64::MAX}],
            "capabilities": {"Bounding": ["CAP_CHOWN", "cap_checkpoint_restore", "CAP_CHOWN"], "effective": [], "ambient": null}});
        let program = read(&value).expect("a process").program;
        let limits: Vec<_> =
            program.rlimits.iter().map(|limit| (limit.resource.name, limit.soft, limit.hard)).collect();
        let all = u64::MAX;
        assert_eq!(limits, [("RLIMIT_NOFILE", 10, 20), ("RLIMIT_CORE", 0, 0), ("RLIMIT_STACK", all, all)]);
        assert!(program.no_new_privileges);
        let sets = Capabilities { bounding: Some(1 | 1 << 40), effective: Some(0), ..Capabilities::default() };
        assert_eq!(program.capabilities, sets);
    }

    #[test]
    fn a_program_without_streams_that_have_numbers_is_told_apart() {
        let check = |value: Value| read(&value).expect("a process").check_numbers();
        assert_eq!(check(json!({"args": ["a"], "stderr": 4})), Err("process.stdio is 0".to_owned()));
        assert_eq!(check(json!({"args": ["a"], "stdio": 4})), Err("process.stderr is 0".to_owned()));
        assert_eq!(check(json!({"args": ["a"], "stdio": 4, "terminal": true})), Ok(()));
        assert_eq!(check(json!({"args": ["a"], "stdio": u64::MAX, "stderr": 1})), Ok(()));
    }

    #[test]
    fn wrong_types_and_programs_without_a_name_are_errors() {
        for value in [json!(null), json!([]), json!("sh"), json!(1)] {
            assert_eq!(read(&value).err().as_deref(), Some("process is no object"), "{value}");
        }
        for value in [json!({}), json!({"args": null}), json!({"args": []}), json!({"args": [""]})] {
            assert_eq!(read(&value).err().as_deref(), Some("process.args names no program"), "{value}");
        }
        for (name, values) in [
            ("args", vec![json!("sh"), json!(["sh", 1]), json!(["sh", null]), json!({"0": "sh"})]),
            ("id", vec![json!(1), json!(["x"])]),
            ("user", vec![json!(0), json!(true)]),
            ("group", vec![json!(0), json!({})]),
            ("additionalGroups", vec![json!("0"), json!([0])]),
            ("terminal", vec![json!(1), json!("true")]),
            ("stdio", vec![json!("3"), json!(-1), json!(1.5), json!(18_446_744_073_709_551_616.0)]),
            ("stderr", vec![json!("4"), json!(-1), json!([4])]),
            ("workdir", vec![json!(["/"]), json!(0)]),
            ("envs", vec![json!({"A": "1"}), json!(["A=1"]), json!([{"env": 1}]), json!([{"env": "A", "value": 1}])]),
            (
                "envs",
                vec![
                    json!([{}]),
                    json!([{"env": "A=B"}]),
                    json!([{"env": "A\0"}]),
                    json!([{"env": "A", "value": "\0"}]),
                ],
            ),
            (
                "rlimits",
                vec![json!({}), json!([1]), json!([{}]), json!([{"type": 7}]), json!([{"type": "RLIMIT_FILES"}])],
            ),
            ("rlimits", vec![json!([{"type": "AS", "soft": "1"}]), json!([{"type": "AS", "hard": -1}])]),
            ("rlimits", vec![json!([{"type": "RLIMIT_AS"}, {"type": "as"}])]),
            ("noNewPrivileges", vec![json!(1), json!("true")]),
            (
                "capabilities",
                vec![json!([]), json!("CAP_KILL"), json!({"ambient": "CAP_KILL"}), json!({"ambient": [5]})],
            ),
            ("capabilities", vec![json!({"bounding": ["CAP_ALL"]}), json!({"permitted": [""]})]),
        ] {
            for wrong in values {
                let mut value = json!({"args": ["sh"]});
                value[name] = wrong;
                let error = read(&value).err().unwrap_or_default();
                assert!(error.starts_with(&format!("process.{name}")), "{value}: {error}");
            }
        }
    }
}
