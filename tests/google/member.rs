//! Which member names the command, and how (section 6).

use std::sync::Arc;

use lodger::commands::table::Table;

use crate::client::{Shown, assert_bytes};
use crate::monitor::{BAD_JSON, Monitor, NO_HANDLER};

/// A monitor whose handlers answer with what they are called.
fn named(names: &[&'static str]) -> Monitor {
    let monitor = Monitor::of(Table::empty());
    for name in names {
        monitor.register(name, |_| Ok(name.as_bytes().to_vec()));
    }
    monitor
}

fn routed(monitor: &Monitor, rows: &[(&[u8], &[u8])]) {
    for (request, response) in rows {
        assert_bytes(&monitor.ask(request), response, &Shown(request));
    }
}

#[test]
fn the_members_name_is_matched_without_regard_to_ascii_case() {
    routed(
        &named(&["a"]),
        &[
            (br#"{"Command":"a"}"#, b"a"),
            (br#"{"command":"a"}"#, b"a"),
            (br#"{"COMMAND":"a"}"#, b"a"),
            (br#"{"cOmMaNd":"a"}"#, b"a"),
            (br#"{"\u0043omm\u0061nd":"a"}"#, b"a"),
            (br#"{"\u0063OMMAND":"a"}"#, b"a"),
        ],
    );
}

#[test]
fn other_names_do_not_count() {
    routed(
        &named(&["a"]),
        &[
            (br#"{"Name":"a"}"#, NO_HANDLER),
            (br#"{"Comman":"a"}"#, NO_HANDLER),
            (br#"{"Commands":"a"}"#, NO_HANDLER),
            (br#"{" Command":"a"}"#, NO_HANDLER),
            (br#"{"Command ":"a"}"#, NO_HANDLER),
            (br#"{"Command\u0000":"a"}"#, NO_HANDLER),
            (br#"{"":"a"}"#, NO_HANDLER),
            (br#"{"x":"Command","y":"a"}"#, NO_HANDLER),
            // Look like letters of the name, one even after case folding of another letter.
            ("{\"\u{421}ommand\":\"a\"}".as_bytes(), NO_HANDLER),
            ("{\"Comm\u{e1}nd\":\"a\"}".as_bytes(), NO_HANDLER),
            (b"{\"Comm\xe1nd\":\"a\"}", NO_HANDLER),
            (b"{\"Command\xff\":\"a\"}", NO_HANDLER),
            // U+0143 modulo 256 is a `C`.
            ("{\"\u{143}ommand\":\"a\"}".as_bytes(), NO_HANDLER),
            (br#"{"\u0143ommand":"a"}"#, NO_HANDLER),
        ],
    );
}

#[test]
fn the_last_one_in_the_text_wins_whatever_its_case() {
    routed(
        &named(&["a", "b"]),
        &[
            (br#"{"Command":"a","command":"b"}"#, b"b"),
            (br#"{"command":"b","Command":"a"}"#, b"a"),
            (br#"{"Command":"a","Command":"b"}"#, b"b"),
            (br#"{"Command":"nobody","x":{},"COMMAND":"b"}"#, b"b"),
            (br#"{"Command":"a","command":"nobody"}"#, NO_HANDLER),
            (br#"{"Command":"a","command":""}"#, NO_HANDLER),
        ],
    );
}

#[test]
fn null_leaves_it_as_it_was() {
    routed(
        &named(&["a", ""]),
        &[
            (br#"{"Command":"a","command":null}"#, b"a"),
            (br#"{"Command":null,"command":"a"}"#, b"a"),
            (br#"{"Command":null}"#, b""),
        ],
    );
    routed(&named(&["null"]), &[(br#"{"Command":null}"#, NO_HANDLER)]);
}

#[test]
fn nested_members_do_not_count() {
    routed(
        &named(&["a", "b"]),
        &[
            (br#"{"x":{"Command":"a"}}"#, NO_HANDLER),
            (br#"{"x":[{"Command":"a"}]}"#, NO_HANDLER),
            (br#"{"Command":"b","x":{"Command":"a"}}"#, b"b"),
            (br#"{"x":{"Command":5},"Command":"b"}"#, b"b"),
            (br#"{"x":"{\"Command\":\"a\"}"}"#, NO_HANDLER),
        ],
    );
}

#[test]
fn a_value_that_is_no_string_is_refused_as_it_begins() {
    let requests: [&[u8]; 10] = [
        br#"{"Command":5"#,
        br#"{"Command":-"#,
        br#"{"Command":true"#,
        br#"{"Command":f"#,
        br#"{"Command":{"#,
        br#"{"Command":["#,
        br#"{"cOMMAND": ["#,
        br#"{"Command":"a","command":5}"#,
        br#"{"Command":5,"command":"a"}"#,
        br#"{"Command":["a"]}"#,
    ];
    routed(&named(&["a", "", "5"]), &requests.map(|request| (request, BAD_JSON)));
}

#[test]
fn values_are_compared_exactly_after_their_escapes_are_undone() {
    routed(
        &named(&["test.Echo", "\u{e9}\u{1f600}", "a\"\\/\u{8}\u{c}\n\r\t\0", "a\u{fffd}"]),
        &[
            (br#"{"Command":"test.Echo"}"#, b"test.Echo"),
            (br#"{"Command":"test.\u0045cho"}"#, b"test.Echo"),
            (br#"{"Command":"\u0074\u0065\u0073\u0074.Echo"}"#, b"test.Echo"),
            (br#"{"Command":"test.echo"}"#, NO_HANDLER),
            (br#"{"Command":"TEST.ECHO"}"#, NO_HANDLER),
            (br#"{"Command":" test.Echo"}"#, NO_HANDLER),
            (br#"{"Command":"test.Echo "}"#, NO_HANDLER),
            (br#"{"Command":"test.Ech"}"#, NO_HANDLER),
            (br#"{"Command":"test.Echo\u0000"}"#, NO_HANDLER),
            (br#"{"Command":"\u00e9\ud83d\ude00"}"#, "\u{e9}\u{1f600}".as_bytes()),
            ("{\"Command\":\"\u{e9}\u{1f600}\"}".as_bytes(), "\u{e9}\u{1f600}".as_bytes()),
            ("{\"Command\":\"e\u{301}\u{1f600}\"}".as_bytes(), NO_HANDLER),
            (br#"{"Command":"a\"\\\/\b\f\n\r\t\u0000"}"#, b"a\"\\/\x08\x0c\n\r\t\0"),
            // Go reads halves of pairs and what is no UTF-8 as U+FFFD.
            (br#"{"Command":"a\ud83d"}"#, "a\u{fffd}".as_bytes()),
            (b"{\"Command\":\"a\xff\"}", "a\u{fffd}".as_bytes()),
        ],
    );
}

#[test]
fn the_empty_name_catches_requests_without_a_command() {
    let monitor = named(&["", "a"]);
    routed(&monitor, &[(b"{}", b""), (br#"{"Command":"a"}"#, b"a"), (br#"{"Command":"b"}"#, NO_HANDLER)]);
    monitor.settings.commands.unregister("").expect("it is there");
    routed(&monitor, &[(b"{}", NO_HANDLER), (br#"{"Command":""}"#, NO_HANDLER)]);
    monitor.register("", |request| Ok([b"caught ", request].concat()));
    routed(
        &monitor,
        &[
            (b"{}", b"caught {}"),
            (br#"{"Command":""}"#, br#"caught {"Command":""}"#),
            (br#"{"Name":"a"}"#, br#"caught {"Name":"a"}"#),
            (br#"{"x":{"Command":"a"}}"#, br#"caught {"x":{"Command":"a"}}"#),
        ],
    );
}

#[test]
fn known_names_and_unknown_ones_are_told_in_upstreams_words() {
    let table = Table::empty();
    let register = |text: &'static [u8]| table.register("x", Arc::new(move |_: &[u8]| Ok(text.to_vec())));
    assert!(register(b"first").is_ok());
    assert_eq!(register(b"second").expect_err("taken").to_string(), "cmd x is already handled");
    assert_eq!(table.unregister("y").expect_err("unknown").to_string(), "cmd y is not registered");
    assert!(table.unregister("x").is_ok());
    assert_eq!(table.unregister("x").expect_err("gone").to_string(), "cmd x is not registered");
    let monitor = Monitor::of(table);
    assert_bytes(&monitor.ask(br#"{"Command":"x"}"#), NO_HANDLER, &"it was unregistered");
}
