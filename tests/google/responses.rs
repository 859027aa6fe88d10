//! The server's own responses, byte for byte (section 6).

use lodger::commands::table::Table;

use crate::client::{Shown, assert_bytes};
use crate::monitor::{BAD_JSON, CONNECTION_ERROR, Monitor, NO_HANDLER, PING, PONG, TIMEOUT};

#[test]
fn they_are_as_long_as_upstreams() {
    let lengths = [NO_HANDLER, BAD_JSON, CONNECTION_ERROR, TIMEOUT].map(<[u8]>::len);
    assert_eq!(lengths, [83, 72, 49, 80]);
}

#[test]
fn nothing_behind_the_name_is_101() {
    let monitor = Monitor::of(Table::empty());
    for request in [PING, br#"{"Command":"x"}"#, br#"{"Command":""}"#, br#"{"Command":null}"#, b"{}"] {
        assert_bytes(&monitor.ask(request), NO_HANDLER, &Shown(request));
    }
}

#[test]
fn the_handlers_error_is_105_and_its_text_as_go_escapes_it() {
    let texts: [(&str, &[u8]); 10] = [
        ("always fail", br#"{"Status":105,"StatusMessage":"always fail"}"#),
        ("", br#"{"Status":105,"StatusMessage":""}"#),
        ("<a> & <b>", br#"{"Status":105,"StatusMessage":"\u003ca\u003e \u0026 \u003cb\u003e"}"#),
        ("\u{2028}\u{2029}\u{2027}", "{\"Status\":105,\"StatusMessage\":\"\\u2028\\u2029\u{2027}\"}".as_bytes()),
        (r#"a "b" \c/"#, br#"{"Status":105,"StatusMessage":"a \"b\" \\c/"}"#),
        ("\n\r\t", br#"{"Status":105,"StatusMessage":"\n\r\t"}"#),
        // Go 1.19 has no short forms for the first two.
        ("\u{8}\u{c}\u{b}\u{1b}", br#"{"Status":105,"StatusMessage":"\u0008\u000c\u000b\u001b"}"#),
        ("\0\u{1}\u{1f}\u{7f}", b"{\"Status\":105,\"StatusMessage\":\"\\u0000\\u0001\\u001f\x7f\"}"),
        ("\u{e9}\u{20ac}\u{1f600}", "{\"Status\":105,\"StatusMessage\":\"\u{e9}\u{20ac}\u{1f600}\"}".as_bytes()),
        ("\u{fffd}'`", "{\"Status\":105,\"StatusMessage\":\"\u{fffd}'`\"}".as_bytes()),
    ];
    for (text, response) in texts {
        let monitor = Monitor::of(Table::empty());
        monitor.register("fail", move |_| Err(text.to_owned()));
        assert_bytes(&monitor.ask(br#"{"Command":"fail"}"#), response, &text);
    }
}

#[test]
fn our_own_commands_say_status_and_message_first() {
    let monitor = Monitor::with_echo();
    assert_bytes(&monitor.ask(PING), PONG, &"agent.ping");
    let info = monitor.ask(br#"{"Command":"agent.info"}"#);
    assert!(info.starts_with(br#"{"Status":0,"StatusMessage":"","#), "{:?}", Shown(&info));
    assert!(info.ends_with(b"}"), "{:?}", Shown(&info));
    assert!(serde_json::from_slice::<serde_json::Value>(&info).is_ok_and(|value| value.is_object()));
}

#[test]
fn what_a_command_does_not_take_has_a_status_of_its_own() {
    let monitor = Monitor::with_echo();
    let rows: [(&[u8], &[u8]); 2] = [
        (br#"{"Command":"agent.ping","x":1}"#, br#"{"Status":10,"StatusMessage":"x: no such argument"}"#),
        (br#"{"<x>":1,"command":"agent.ping"}"#, br#"{"Status":10,"StatusMessage":"\u003cx\u003e: no such argument"}"#),
    ];
    for (request, response) in rows {
        assert_bytes(&monitor.ask(request), response, &Shown(request));
    }
}

#[test]
fn every_spelling_of_the_reserved_member_is_no_argument() {
    let monitor = Monitor::with_echo();
    let requests: [&[u8]; 3] = [
        br#"{"COMMAND":"agent.ping"}"#,
        br#"{"Command":"agent.info","command":"agent.ping"}"#,
        br#"{"\u0043ommand":"agent.ping","cOMMAND":null}"#,
    ];
    for request in requests {
        assert_bytes(&monitor.ask(request), PONG, &Shown(request));
    }
}

#[test]
fn bytes_that_are_no_utf8_do_no_harm_to_a_command() {
    let monitor = Monitor::with_echo();
    // What the name of an argument says is told as far as it can be.
    let response = monitor.ask(b"{\"Command\":\"agent.ping\",\"\xff\":1}");
    assert!(response.starts_with(br#"{"Status":10,"StatusMessage":""#), "{:?}", Shown(&response));
    assert_bytes(&monitor.ask(b"{\"Command\":\"agent.ping\xff\"}"), NO_HANDLER, &"a broken name");
}

#[test]
fn numbers_that_no_machine_holds_and_depth_do_no_harm_to_a_command() {
    let monitor = Monitor::with_echo();
    let deep = format!(r#"{{"Command":"agent.ping","a":{}{}}}"#, "[".repeat(9_999), "]".repeat(9_999));
    for request in [r#"{"Command":"agent.ping","a":1e999999}"#, &deep] {
        let response = monitor.ask(request);
        assert!(response.starts_with(br#"{"Status":1"#), "{:?}", Shown(&response));
        assert!(serde_json::from_slice::<serde_json::Value>(&response).is_ok());
    }
}
