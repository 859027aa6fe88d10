//! Processes: what they leave behind, and how many there may be.

use serde_json::json;

use crate::client::{DISCONNECT, HYPER, UNREGISTER, over, running};
use crate::support::{Agent, children, descriptors, status, wait_until};

#[test]
fn five_hundred_machines_come_and_go_and_leave_nothing() {
    let agent = Agent::start();
    let numbers = || (descriptors(agent.pid()), status(agent.pid(), "Threads"), children(agent.pid()).len());
    over(&agent).register("another", 0);
    wait_until("the agent has settled", || numbers().1 == 1);
    let before = numbers();
    for round in 0..500 {
        let (mut runtime, mut shim, _) = running(&agent, "vm", "read x; echo $x; exit 3");
        shim.send(2, 0, format!("{round}\n"));
        assert_eq!(shim.finish(), (format!("{round}\n").into_bytes(), Vec::new(), 3));
        if round % 2 == 0 {
            shim.send(0, DISCONNECT, "");
            shim.ends();
        }
        runtime.done(UNREGISTER, json!({"containerId": "vm"}));
    }
    wait_until("everything is given back", || numbers() == before);
}

#[test]
fn the_output_of_a_process_without_a_token_is_thrown_away_and_it_has_no_input() {
    let agent = Agent::start();
    let mut runtime = over(&agent);
    runtime.register("vm", 0);
    let folder = crate::support::Folder::new();
    let file = folder.path("done");
    let script =
        format!("cat; head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2; echo over > {}", file.display());
    runtime.done(HYPER, json!({"hyperName": "execcmd", "data": {"process": {"args": ["sh", "-c", script]}}}));
    wait_until("it has ended", || file.exists() && children(agent.pid()).is_empty());
}

#[test]
fn all_output_comes_before_the_end() {
    let agent = Agent::start();
    let script = "head -c 300000 /dev/zero >&2; head -c 300000 /dev/zero; (sleep 0.02; echo last) & exit 1";
    // What is left behind may wait for a processor for so long that it comes too late, but not each time.
    let is_complete = |round: usize| {
        let (_runtime, mut shim, _) = running(&agent, &format!("vm{round}"), script);
        let (stdout, stderr, code) = shim.finish();
        assert!(stdout.len() >= 300_000, "{}", stdout.len());
        assert_eq!((stderr.len(), code), (300_000, 1));
        stdout.ends_with(b"\0last\n")
    };
    assert!((0..5).any(is_complete));
}
