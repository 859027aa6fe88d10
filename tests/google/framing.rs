//! Where a request ends (sections 3, 4 and 10): each row with its literal bytes, whole and byte by byte.

use crate::client::{Client, Shown, assert_bytes};
use crate::monitor::{BAD_JSON, CONNECTION_ERROR, Monitor, NO_HANDLER};

/// Writes bytes in one piece, or each on its own.
const MANNERS: [fn(&mut Client, &[u8]); 2] = [Client::write_what_it_takes, |client, bytes| {
    bytes.chunks(1).for_each(|byte| client.write_what_it_takes(byte));
}];

/// What the server does with a request; the client never ends its direction.
fn answered(rows: &[(&[u8], &[u8])]) {
    let monitor = Monitor::with_echo();
    for (request, response) in rows {
        for write in MANNERS {
            let mut client = monitor.connect();
            write(&mut client, request);
            assert_bytes(&client.rest(), response, &Shown(request));
        }
    }
}

#[test]
fn a_request_is_complete_with_its_last_brace_and_nothing_more_is_waited_for() {
    answered(&[
        (br#"{"Command":"echo"}"#, br#"{"Command":"echo"}"#),
        (b"{\"Command\":\"echo\"}\n", br#"{"Command":"echo"}"#),
        (b"{\"Command\":\"echo\"} \t\r\n", br#"{"Command":"echo"}"#),
        (b"{}", NO_HANDLER),
        (b"{ }", NO_HANDLER),
    ]);
}

#[test]
fn members_come_in_any_order_and_reach_the_handler_verbatim() {
    answered(&[
        // Upstream's own test has the command last.
        (br#"{"ArbitraryData":1234,"Command":"echo"}"#, br#"{"ArbitraryData":1234,"Command":"echo"}"#),
        (
            b"{\n  \"Command\" : \"echo\",\r\n\t\"a\": {\"b\": [1, -0.5e+3, true, null, {}]}\n}\n",
            b"{\n  \"Command\" : \"echo\",\r\n\t\"a\": {\"b\": [1, -0.5e+3, true, null, {}]}\n}",
        ),
        (br#"{"Command":"echo","a":1,"a":2,"":{}}"#, br#"{"Command":"echo","a":1,"a":2,"":{}}"#),
    ]);
}

#[test]
fn white_space_in_front_is_passed_on() {
    answered(&[
        (b" {\"Command\":\"echo\"}", b" {\"Command\":\"echo\"}"),
        (b"\n\r\t {\"Command\":\"echo\"}\n", b"\n\r\t {\"Command\":\"echo\"}"),
    ]);
}

#[test]
fn braces_inside_strings_do_not_count() {
    answered(&[
        (br#"{"a":"}","Command":"echo"}"#, br#"{"a":"}","Command":"echo"}"#),
        (br#"{"a":"{","Command":"echo"}"#, br#"{"a":"{","Command":"echo"}"#),
        (br#"{"a":"{}","Command":"echo"}"#, br#"{"a":"{}","Command":"echo"}"#),
        (br#"{"a":"}{","Command":"echo"}"#, br#"{"a":"}{","Command":"echo"}"#),
        (br#"{"}{":"\"}\\","Command":"echo"}"#, br#"{"}{":"\"}\\","Command":"echo"}"#),
        (br#"{"a":"\\\"}","Command":"echo"}"#, br#"{"a":"\\\"}","Command":"echo"}"#),
        (br#"{"a":"\u007b\u007D","Command":"echo"}"#, br#"{"a":"\u007b\u007D","Command":"echo"}"#),
        // The rows as they stand: no command.
        (br#"{"a":"}"}"#, NO_HANDLER),
        (br#"{"a":"{"}"#, NO_HANDLER),
        (br#"{"a":"{}"}"#, NO_HANDLER),
        (br#"{"a":"}{"}"#, NO_HANDLER),
    ]);
}

#[test]
fn bytes_beyond_ascii_are_not_damaged() {
    answered(&[
        // Stored modulo 256, U+0122 would be a quote and U+017B a brace.
        (
            "{\"a\":\"\u{e9}\u{20ac}\u{122}\u{17b}\u{1f600}\u{2028}\",\"Command\":\"echo\"}".as_bytes(),
            "{\"a\":\"\u{e9}\u{20ac}\u{122}\u{17b}\u{1f600}\u{2028}\",\"Command\":\"echo\"}".as_bytes(),
        ),
        (
            b"{\"a\":\"\xff\xfe\xc3\x80\xed\xa0\x80\xf8\x7f\",\"\xe9\":0,\"Command\":\"echo\"}",
            b"{\"a\":\"\xff\xfe\xc3\x80\xed\xa0\x80\xf8\x7f\",\"\xe9\":0,\"Command\":\"echo\"}",
        ),
    ]);
}

#[test]
fn what_follows_a_request_is_not_looked_at() {
    answered(&[
        (br#"{"Command":"echo"}{"Command":"agent.ping"}"#, br#"{"Command":"echo"}"#),
        (br#"{"Command":"echo"}}"#, br#"{"Command":"echo"}"#),
        (b"{\"Command\":\"echo\"}\0\xff]garbage", br#"{"Command":"echo"}"#),
    ]);
}

#[test]
fn what_can_never_become_a_request_is_refused_at_once() {
    // Nothing ends here, so nothing but the syntax can be the reason.
    let requests: [&[u8]; 44] = [
        // What is no object.
        b"[",
        b"[{\"Command\":\"echo\"}]",
        b"\"",
        b"\"s\"",
        b"n",
        b"null",
        b"true",
        b"false",
        b"1",
        b"12",
        b"-",
        b" [",
        b"\n12",
        // What is no JSON at all.
        b"x",
        b"}",
        b"}{",
        b"}}{{",
        b"\0",
        b"\xef\xbb\xbf{\"Command\":\"echo\"}",
        b"\xff",
        b"\x0b{}",
        b"\xc2\xa0{}",
        b"{x",
        b"{x}",
        b"{{",
        b"{]",
        b"{,",
        b"{1",
        b"{'Command'",
        b"{\"a\"}",
        b"{\"a\",",
        b"{\"a\"::",
        b"{\"a\":}",
        b"{\"a\":1 1",
        b"{\"a\":1]",
        b"{\"a\":[1}",
        b"{\"Command\":\"echo\",}",
        b"{\"a\":[1,]",
        b"{//",
        b"{\"a\":/*",
        b"{\"a\":\"\\x",
        b"{\"a\":\"\\u12g",
        b"{\"a\":\"\n",
        b"{\"a\":\"\0",
    ];
    answered(&requests.map(|request| (request, BAD_JSON)));
}

#[test]
fn numbers_and_words_are_strict() {
    let values: [&[u8]; 14] = [
        b"01",
        b"+1",
        b".5",
        b"1.}",
        b"1e}",
        b"-}",
        b"1.e",
        b"0x",
        b"nul}",
        b"True",
        b"trux",
        b"NaN",
        b"Infinity",
        b"--",
    ];
    for value in values {
        let request = [b"{\"a\":", value].concat();
        answered(&[(&request, BAD_JSON)]);
    }
    answered(&[(
        br#"{"a":[0,-0,1E+400,1e-7,123456789012345678901234567890.5],"Command":"echo"}"#,
        br#"{"a":[0,-0,1E+400,1e-7,123456789012345678901234567890.5],"Command":"echo"}"#,
    )]);
}

#[test]
fn an_end_inside_of_a_request_is_a_connection_error() {
    let monitor = Monitor::with_echo();
    let requests: [&[u8]; 13] = [
        b"",
        b" ",
        b"{",
        b"{\"",
        b"{\"Comm",
        b"{\"Command\"",
        b"{\"Command\":",
        b"{\"Command\":\"echo",
        b"{\"Command\":\"echo\"",
        b"{\"Command\":\"echo\",\"a\":{}",
        b"{\"a\":\"\\",
        b"{\"a\":\"}",
        b"{\"a\":1",
    ];
    for request in requests {
        for write in MANNERS {
            let mut client = monitor.connect();
            write(&mut client, request);
            assert!(!client.hears_within(std::time::Duration::from_millis(2)), "{:?}", Shown(request));
            client.end_writing();
            assert_bytes(&client.rest(), CONNECTION_ERROR, &Shown(request));
        }
    }
}

#[test]
fn an_end_behind_a_request_changes_nothing() {
    let monitor = Monitor::with_echo();
    let mut client = monitor.connect();
    client.write(br#"{"Command":"echo"}"#).expect("it reads");
    client.end_writing();
    assert_bytes(&client.rest(), br#"{"Command":"echo"}"#, &"half-closed");
}

#[test]
fn a_request_in_pieces_of_any_size_is_one_request() {
    let monitor = Monitor::with_echo();
    // Around what is read before the protocol is chosen, and what is read at once.
    for length in [511, 512, 513, 1024, 1025, 16_383, 16_384, 16_385, 40_000] {
        let (start, end) = (r#"{"a":"\"}\u00e9","b":""#, r#"","Command":"echo"}"#);
        let request = format!("{start}{}{end}", "x".repeat(length - start.len() - end.len())).into_bytes();
        for size in [length, 512, 511, 1024, 16_384, 333, length - 1] {
            for mut client in [monitor.connect(), monitor.connect_unpinned()] {
                for piece in request.chunks(size) {
                    client.write(piece).expect("it reads");
                    std::thread::yield_now();
                }
                assert_bytes(&client.rest(), &request, &(length, size));
            }
        }
    }
}

#[test]
fn levels_are_counted_to_ten_thousand() {
    let monitor = Monitor::with_echo();
    let nested = |lists: usize| {
        let (open, close) = ("[".repeat(lists), "]".repeat(lists));
        format!(r#"{{"Command":"echo","a":{open}{close}}}"#).into_bytes()
    };
    let deepest = nested(9_999);
    assert_bytes(&monitor.ask(&deepest), &deepest, &"10,000 levels");
    assert_bytes(&monitor.ask(nested(10_000)), BAD_JSON, &"10,001 levels");
    // Refused with the bracket itself, not when the text is complete.
    let only_open = format!(r#"{{"a":{}"#, "[".repeat(10_000));
    assert_bytes(&monitor.ask(only_open), BAD_JSON, &"10,001 open levels");
    let objects = format!("{}1{}", r#"{"a":"#.repeat(10_000), "}".repeat(10_000));
    assert_bytes(&monitor.ask(objects), NO_HANDLER, &"10,000 objects");
    assert_bytes(&monitor.ask(r#"{"a":"#.repeat(10_001)), BAD_JSON, &"10,001 objects");
    assert_bytes(&monitor.ask(nested(100_000)), BAD_JSON, &"100,001 levels");
}
