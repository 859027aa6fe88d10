//! Section 4 and 5: each command, its checks in their order, and its error texts.

use serde_json::json;

use crate::client::{
    ATTACH, CONNECT, Client, DISCONNECT, HYPER, REGISTER, SIGNAL, UNREGISTER, exec_command, failure, over, running,
};
use crate::support::Agent;

const AGENT: &str = "ERROR received from VM agent, control msg received : ";

fn vm(id: &str) -> serde_json::Value {
    json!({"containerId": id, "ctlSerial": "/c", "ioSerial": "/i"})
}

#[test]
fn register_vm_takes_each_name_once() {
    let agent = Agent::start();
    let mut client = over(&agent);
    let url = format!("unix://{}", agent.socket.display());
    let answer = client.done(REGISTER, vm("a<&>b"));
    assert_eq!(String::from_utf8_lossy(&answer), format!(r#"{{"io":{{"URL":"{url}","tokens":null}}}}"#));
    let again = client.ask(REGISTER, vm("a<&>b"));
    assert_eq!(again.payload, br#"{"msg":"a\u003c\u0026\u003eb: container already registered"}"#);
    assert_eq!(client.register("negative", -1), Vec::<String>::new());
    client.refused(REGISTER, json!({}), "dial unix: missing address");
    client.refused(REGISTER, json!({"containerId": "x", "ctlSerial": "/c"}), "dial unix: missing address");
    client.refused(REGISTER, json!({"containerId": "x", "ioSerial": "/c"}), "dial unix: missing address");
    client.refused(REGISTER, json!({"ctlSerial": "/c", "ioSerial": "/i"}), "malformed RegisterVM command");
    client.done(REGISTER, r#" {"CONTAINERID":"x","ctlserial":"no file","IOSerial":"-","unknown":[1,{}]} "#);
    let mut other = over(&agent);
    other.refused(REGISTER, vm("x"), "x: container already registered");
    other.done(UNREGISTER, json!({"containerId": "x"}));
    other.done(REGISTER, vm("x"));
}

#[test]
fn what_is_no_json_of_the_right_type_is_told_as_go_tells_it() {
    let agent = Agent::start();
    let (_runtime, mut shim, _) = running(&agent, "vm", "read x");
    for opcode in [REGISTER, UNREGISTER, ATTACH, HYPER, CONNECT, SIGNAL] {
        shim.refused(opcode, "", "unexpected end of JSON input");
        shim.refused(opcode, "{", "unexpected end of JSON input");
        shim.refused(opcode, "x", "invalid character 'x' looking for beginning of value");
        shim.refused(opcode, "{} {}", "invalid character '{' after top-level value");
    }
    let rows = [
        (REGISTER, r#"{"containerId":1}"#, "number into Go struct field RegisterVM.containerId of type string"),
        (REGISTER, r#"{"numIOStreams":"1"}"#, "string into Go struct field RegisterVM.numIOStreams of type int"),
        (REGISTER, "[]", "array into Go value of type api.RegisterVM"),
        (UNREGISTER, r#"{"containerId":[]}"#, "array into Go struct field UnregisterVM.containerId of type string"),
        (ATTACH, r#"{"numIOStreams":1.5}"#, "number 1.5 into Go struct field AttachVM.numIOStreams of type int"),
        (HYPER, r#"{"hyperName":true}"#, "bool into Go struct field Hyper.hyperName of type string"),
        (HYPER, r#"{"tokens":"x"}"#, "string into Go struct field Hyper.tokens of type []string"),
        (CONNECT, r#"{"token":{}}"#, "object into Go struct field ConnectShim.token of type string"),
        (SIGNAL, r#"{"signalNumber":"9"}"#, "string into Go struct field Signal.signalNumber of type int"),
    ];
    for (opcode, payload, why) in rows {
        shim.refused(opcode, payload, &format!("json: cannot unmarshal {why}"));
    }
}

#[test]
fn attach_vm_gives_more_tokens_and_unregister_vm_forgets() {
    let agent = Agent::start();
    let (mut client, mut other) = (over(&agent), over(&agent));
    client.refused(ATTACH, json!({"containerId": "vm"}), "unknown containerID: vm");
    let mut tokens = client.register("vm", 2);
    tokens.extend(other.attach("vm", 3));
    assert_eq!(other.attach("vm", 0), Vec::<String>::new());
    tokens.sort();
    tokens.dedup();
    assert_eq!(tokens.len(), 5);
    over(&agent).refused(UNREGISTER, json!({"containerId": "no"}), "unknown containerID: no");
    client.done(UNREGISTER, json!({"containerId": "vm"}));
    client.refused(UNREGISTER, json!({"containerId": "vm"}), "unknown containerID: vm");
    client.refused(HYPER, json!({"hyperName": "ping"}), "client not attached to a vm");
    // The other one is attached still.
    other.done(HYPER, json!({"hyperName": "ping"}));
    let token = &tokens[0];
    other.refused(CONNECT, json!({"token": token}), &format!("unknown token: {token}"));
    other.refused(HYPER, exec_command(token, "true"), &format!("unknown token {token}"));
}

#[test]
fn hyper_checks_in_upstreams_order() {
    let agent = Agent::start();
    let mut client = over(&agent);
    client.refused(HYPER, json!({"hyperName": "nobody", "tokens": ["x"]}), "client not attached to a vm");
    let token = client.register("vm", 1).remove(0);
    client.done(HYPER, json!({"hyperName": "ping"}));
    client.done(HYPER, json!({"HYPERNAME": "ping", "tokens": []}));
    let many = json!({"hyperName": "ping", "tokens": [token, "b"]});
    client.refused(HYPER, many, "ping doesn't need tokens but 2 token(s) were given");
    client.refused(HYPER, json!({"hyperName": "nobody"}), "unknown command 'nobody'");
    // What leaves a stale waiter behind upstream.
    client.done(HYPER, json!({"hyperName": "ping"}));
    client.refused(HYPER, json!({"hyperName": "ping", "data": "x".repeat(20_000), "tokens": ["y"]}), {
        "ping doesn't need tokens but 1 token(s) were given"
    });
    let mut two = exec_command(&token, "true");
    two["tokens"] = json!([token, token]);
    client.refused(HYPER, two, "expected 0 or 1 token, got 2");
    client.refused(HYPER, exec_command("no", "true"), "unknown token no");
    // The tokens come before the data.
    client.refused(HYPER, json!({"hyperName": "execcmd", "tokens": ["a", "b"]}), "expected 0 or 1 token, got 2");
    client.refused(HYPER, json!({"hyperName": "newcontainer", "tokens": ["a"], "data": [1]}), "unknown token a");
    for (name, shown) in [("stdio", "Stdio"), ("stderr", "Stderr"), ("STDIO", "Stdio")] {
        let mut filled = exec_command(&token, "true");
        filled["data"]["process"][name] = json!(7);
        client.refused(HYPER, filled, &format!("expected process.{shown} to be 0, got 7"));
    }
    client.refused(HYPER, json!({"hyperName": "execcmd"}), "unexpected end of JSON input");
    client.refused(HYPER, json!({"hyperName": "execcmd", "data": null}), &format!("{AGENT}process is no object"));
    client.done(HYPER, json!({"hyperName": "ping", "data": null}));
    for name in ["newcontainer", "execcmd"] {
        for data in [json!({"id": "c"}), json!({"id": "c", "process": null})] {
            client.refused(HYPER, json!({"hyperName": name, "data": data}), &format!("{AGENT}process is no object"));
        }
    }
    let process = json!({"args": ["true"]});
    for data in [json!({"process": process}), json!({"id": "", "process": process})] {
        let new = json!({"hyperName": "newcontainer", "data": data});
        client.refused(HYPER, new, &format!("{AGENT}newcontainer.id is missing"));
    }
    for name in ["", "hyperstart", "vm"] {
        client.done(HYPER, json!({"hyperName": "execcmd", "data": {"container": name, "process": process}}));
        client.done(HYPER, json!({"hyperName": "pscontainer", "data": {"container": name, "format": "json"}}));
    }
    for name in ["execcmd", "pscontainer"] {
        let data = json!({"container": "other", "format": "json", "process": process});
        client.refused(HYPER, json!({"hyperName": name, "data": data}), &format!("{AGENT}no such container"));
    }
    for (name, value, why) in [
        ("args", json!("x"), "string into Go struct field Process.args of type []string"),
        ("user", json!(0), "number into Go struct field Process.user of type string"),
        ("terminal", json!("yes"), "string into Go struct field Process.terminal of type bool"),
        ("stdio", json!(-1), "number -1 into Go struct field Process.stdio of type uint64"),
    ] {
        let data = json!({"process": {name: value}});
        let why = format!("json: cannot unmarshal {why}");
        client.refused(HYPER, json!({"hyperName": "execcmd", "data": data}), &why);
    }
    let nobody = json!({"hyperName": "execcmd", "data": {"process": {"args": ["/no/such/program"]}}});
    let why = "Process could not be started: execute /no/such/program: no such file or directory";
    client.refused(HYPER, nobody, &format!("{AGENT}{why}"));
    let kill = json!({"hyperName": "killcontainer", "data": {"container": "c", "signal": 9}});
    client.refused(HYPER, kill, &format!("{AGENT}no such container"));
}

#[test]
fn an_error_of_the_start_leaves_the_token_free() {
    let agent = Agent::start();
    let mut runtime = over(&agent);
    let token = runtime.register("vm", 1).remove(0);
    let mut shim = over(&agent);
    shim.connect(&token);
    let mut bad = exec_command(&token, "");
    bad["data"]["process"]["args"] = json!(["/no/such/program"]);
    assert_eq!(runtime.ask(HYPER, bad).kind, 0x11);
    runtime.exec(&token, "exit 3");
    assert_eq!(shim.finish(), (Vec::new(), Vec::new(), 3));
}

#[test]
fn connect_and_disconnect_shim_tell_who_has_no_business() {
    let agent = Agent::start();
    let mut runtime = over(&agent);
    let tokens = runtime.register("vm", 2);
    let (mut shim, mut other) = (over(&agent), over(&agent));
    shim.refused(CONNECT, json!({"token": "x<y"}), "unknown token: x<y");
    shim.refused(DISCONNECT, "", "client isn't a shim");
    shim.refused(SIGNAL, "no json", "client isn't a shim");
    shim.connect(&tokens[0]);
    let claimed = format!("token already claimed: {}", tokens[0]);
    other.refused(CONNECT, json!({"token": tokens[0]}), &claimed);
    shim.refused(CONNECT, json!({"token": tokens[0]}), &claimed);
    shim.refused(CONNECT, json!({"token": tokens[1]}), "client is the shim of another token");
    other.connect(&tokens[1]);
    other.send(0, DISCONNECT, "");
    other.ends();
    shim.send(0, DISCONNECT, "");
    shim.ends();
    over(&agent).refused(CONNECT, json!({"token": tokens[0]}), &claimed);
}

#[test]
fn signals_are_checked_in_upstreams_order() {
    let agent = Agent::start();
    let (_runtime, mut shim, _) = running(&agent, "vm", "read x");
    let mut is = |payload: serde_json::Value, why: &str| shim.refused(SIGNAL, payload, why);
    for number in [-1_i64, 31, 32, 64, 1 << 40] {
        is(json!({"signalNumber": number, "columns": 1}), &format!("invalid signal number {number}"));
    }
    is(json!({"signalNumber": 28}), "received SIGWINCH but terminal size is invalid (0,0)");
    is(json!({"signalNumber": 28, "columns": 80}), "received SIGWINCH but terminal size is invalid (80,0)");
    is(json!({"signalNumber": 28, "rows": 25}), "received SIGWINCH but terminal size is invalid (0,25)");
    is(json!({"signalNumber": 10, "columns": 80, "rows": 25}), {
        "received a terminal size (80,25) for signal user defined signal 1"
    });
    is(json!({"signalNumber": 0, "rows": 1}), "received a terminal size (0,1) for signal signal 0");
    is(json!({"signalNumber": 15, "rows": 1}), "received a terminal size (0,1) for signal terminated");
}

#[test]
fn log_entries_are_taken_without_an_answer_and_bad_ones_end_the_connection() {
    let agent = Agent::start();
    let mut client = over(&agent);
    client.register("vm", 0);
    for level in ["debug", "info", "warn", "error"] {
        let entry = json!({"source": "shim", "containerId": "vm", "level": level, "msg": "text"});
        client.send(2, 3, entry.to_string());
        client.send(2, 3, json!({"SOURCE": "runtime", "level": level, "msg": "text"}).to_string());
    }
    client.done(HYPER, json!({"hyperName": "ping"}));
    for bad in [
        "",
        "{}",
        r#"{"source":"proxy","level":"info","msg":"x"}"#,
        r#"{"source":"shim","level":"panic","msg":"x"}"#,
        r#"{"source":"shim","level":"info","msg":""}"#,
        r#"{"source":"shim","level":"info"}"#,
        r#"{"source":"shim","level":"info","msg":1}"#,
    ] {
        let mut client: Client = over(&agent);
        client.send(2, 3, bad);
        client.ends();
    }
    assert_eq!(client.ask(DISCONNECT, ""), failure(DISCONNECT, "client isn't a shim"));
}

#[test]
fn where_there_is_no_path_the_url_has_none() {
    let agent = crate::client::Inside::with(lodger::proto::clear::registry::Times::default());
    let answer = agent.client().done(REGISTER, vm("vm"));
    assert_eq!(String::from_utf8_lossy(&answer), r#"{"io":{"URL":"unix:","tokens":null}}"#);
}
