//! Which environment a program gets.

use lodger::wire::exec::Exec;
use lodger::wire::frame::{Config, Frame};

use crate::support::{Agent, Finished, exec, run};

const ENV: &str = "/usr/bin/env";

fn list(texts: &[&str]) -> Option<Vec<Vec<u8>>> {
    Some(texts.iter().map(|text| text.as_bytes().to_vec()).collect())
}

fn agent() -> Agent {
    Agent::start_with(|command| {
        command.env_clear().env("A", "1").env("PATH", "/bin:/usr/bin").env("LODGER_LOG", "off");
    })
}

fn sorted(text: &str) -> Vec<String> {
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn null_is_the_agents_environment_and_an_empty_list_is_none() {
    let agent = agent();
    let own = ["A=1", "LODGER_LOG=off", "PATH=/bin:/usr/bin"];
    assert_eq!(sorted(&run(&agent, exec(&[ENV])).stdout()), own);
    let there = Exec { cwd: b"/usr/lib".to_vec(), ..exec(&[ENV]) };
    assert_eq!(sorted(&run(&agent, there).stdout()), [&own[..2], &["PATH=/bin:/usr/bin", "PWD=/usr/lib"]].concat());
    assert_eq!(run(&agent, Exec { env: list(&[]), ..exec(&[ENV]) }).stdout(), "");
}

#[test]
fn a_list_is_the_environment_with_the_last_of_each_name() {
    let agent = agent();
    let env = list(&["A=old", "no equals sign", "B=2", "A=new", "EMPTY="]);
    let finished = run(&agent, Exec { env, cwd: b"/".to_vec(), ..exec(&[ENV]) });
    assert_eq!(finished.stdout(), "no equals sign\nB=2\nA=new\nEMPTY=\n");
}

#[test]
fn a_nul_in_the_environment_is_a_start_error() {
    let agent = agent();
    let finished = run(&agent, Exec { env: list(&["A=1", "B=\0"]), ..exec(&[ENV]) });
    assert_eq!((finished.code, finished.frames), (127, 1));
    assert!(!finished.error.is_empty());
}

fn filtered(agent: &Agent, keep: &[&str], remove: &[&str], env: Option<Vec<Vec<u8>>>) -> Finished {
    let texts = |texts: &[&str]| Some(texts.iter().map(|text| (*text).to_owned()).collect());
    let mut peer = agent.connect();
    peer.send(&Frame::Config(Config { env_keep: texts(keep), env_remove: texts(remove) }));
    peer.send(&Frame::Exec { id: 0, exec: Exec { env, ..exec(&[ENV]) } });
    peer.finish(0)
}

#[test]
fn a_filter_passes_what_it_keeps_or_what_was_changed_and_nothing_that_it_removes() {
    let agent = agent();
    let env =
        || list(&["MPROXY_CHANGED_ENVS=SET:TOKEN", "SET=1", "TOKEN=x", "LC_ALL=C", "LANG=C", "A_KEY=y", "KEEP=2"]);
    assert_eq!(filtered(&agent, &["LC_*", "/EE/"], &["TOKEN"], env()).stdout(), "SET=1\nLC_ALL=C\nKEEP=2\n");
    assert_eq!(filtered(&agent, &["*"], &["/KEY$/", "L*"], env()).stdout(), "SET=1\nTOKEN=x\nKEEP=2\n");
    assert_eq!(filtered(&agent, &[], &[], env()).stdout(), "SET=1\nTOKEN=x\n");
    assert_eq!(filtered(&agent, &["/(/", "[", "KEEP"], &[], env()).stdout(), "SET=1\nTOKEN=x\nKEEP=2\n");
}

#[test]
fn with_a_filter_null_is_an_empty_environment() {
    let agent = agent();
    assert_eq!(filtered(&agent, &["*"], &[], None).stdout(), "");
}

#[test]
fn a_pattern_to_remove_that_is_none_refuses_the_program() {
    let agent = agent();
    let finished = filtered(&agent, &["*"], &["/(/"], list(&["SECRET=1"]));
    assert_eq!((finished.code, finished.frames), (127, 1));
    assert!(finished.error.contains("/(/"), "{}", finished.error);
}

#[test]
fn variables_can_be_set_on_top_of_the_environment() {
    let agent = agent();
    let mut request = Exec { env: list(&["A=list", "B=list"]), ..exec(&[ENV]) };
    request.extension.set_env = list(&["B=top", "C=\u{ef80}"]).unwrap_or_default();
    request.extension.set_env.push(b"RAW=\xff".to_vec());
    let finished = run(&agent, request);
    assert_eq!(finished.stream(1), b"A=list\nB=top\nC=\xee\xbe\x80\nRAW=\xff\n");
}

#[test]
fn bytes_that_are_no_text_travel_in_names_arguments_and_values() {
    let agent = agent();
    let request = Exec {
        env: Some(vec![b"B=\xfe".to_vec()]),
        argv: Some(vec![Vec::new(), b"\xff".to_vec()]),
        ..exec(&["/bin/echo"])
    };
    assert_eq!(run(&agent, request).stream(1), b"\xff\n");
}
