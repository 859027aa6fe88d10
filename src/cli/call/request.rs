//! Requests for the command monitor, as people write them.

use crate::cli::Failure;
use crate::cli::call::pieces::{self, Kind, Pieces};
use crate::json::text;

/// The member that names the command.
const MEMBER: &str = "Command";

/// The request for the command `name` with arguments that are an object.
pub fn from_object(name: &str, object: &str) -> Result<Vec<u8>, Failure> {
    check_object(object)?;
    let mut clashes = None;
    pieces::for_each_member(object.as_bytes(), &mut |member, _| {
        if member.eq_ignore_ascii_case(MEMBER) {
            clashes = Some(member.to_owned());
        }
    });
    match clashes {
        None => Ok(build(name, object)),
        Some(member) => {
            let help = "NAME stands for it; --raw sends an object as it is";
            Err(Failure::new(format!("the arguments have a member {member} of their own: {help}")))
        }
    }
}

/// The same with arguments that are words, `KEY=VALUE` each.
pub fn from_pairs(name: &str, pairs: &[String]) -> Result<Vec<u8>, Failure> {
    let (mut object, mut keys) = (String::from("{"), Vec::new());
    for pair in pairs {
        let (key, value) = pair.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or_else(|| no_pair(pair))?;
        if keys.contains(&key) {
            return Err(Failure::new(format!("{key} is given twice")));
        }
        keys.push(key);
        if object.len() > 1 {
            object.push(',');
        }
        object.push_str(&quote(key));
        object.push(':');
        match pieces::kind(value.as_bytes()) {
            Kind::Json => object.push_str(value),
            // It was meant to be one, or is to be told from one.
            _ if value.starts_with(['[', '{', '"']) => {
                return Err(Failure::new(format!(
                    "{key}: no valid JSON; a text that begins so is written with quotes"
                )));
            }
            Kind::Cut | Kind::NoJson => object.push_str(&quote(value)),
        }
    }
    object.push('}');
    from_object(name, &object)
}

fn no_pair(word: &str) -> Failure {
    let what = match pieces::kind(word.as_bytes()) {
        Kind::Json => "the arguments must be one JSON object",
        Kind::Cut | Kind::NoJson => "neither a JSON object nor KEY=VALUE",
    };
    Failure::new(format!("{word}: {what}"))
}

fn quote(text: &str) -> String {
    // What it gives for text is text.
    String::from_utf8_lossy(&text::quote(text.as_bytes())).into_owned()
}

fn check_object(object: &str) -> Result<(), Failure> {
    let why = match pieces::kind(object.as_bytes()) {
        Kind::Json if object.trim_ascii_start().starts_with('{') => return Ok(()),
        Kind::Json => "no object".to_owned(),
        // It knows the place.
        Kind::Cut | Kind::NoJson => match serde_json::from_str::<serde_json::Value>(object) {
            Ok(_) => "not valid".to_owned(),
            Err(error) => error.to_string(),
        },
    };
    Err(Failure::new(format!("the arguments must be one JSON object: {why}")))
}

/// Puts the name in front of the members of a valid object. The oldest agents count braces in strings too, and know no text but ASCII.
fn build(name: &str, object: &str) -> Vec<u8> {
    let mut request = format!("{{\"{MEMBER}\":");
    push_plain(quote(name).as_bytes(), &mut request);
    let mut pieces = Pieces::of(object.as_bytes()).skip(1).peekable();
    if pieces.peek().is_some_and(|piece| *piece != b"}") {
        request.push(',');
    }
    pieces.for_each(|piece| push_plain(piece, &mut request));
    request.into_bytes()
}

/// Adds a token in ASCII, and a string without braces.
fn push_plain(piece: &[u8], to: &mut String) {
    let is_string = piece.starts_with(b"\"");
    for character in String::from_utf8_lossy(piece).chars() {
        if character.is_ascii() && !(is_string && matches!(character, '{' | '}')) {
            to.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                to.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(text: &str) -> Result<String, String> {
        let request = from_object("a.b", text).map_err(|failure| failure.text)?;
        Ok(String::from_utf8(request).expect("ASCII"))
    }

    fn pairs(words: &[&str]) -> Result<String, String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let request = from_pairs("a.b", &words).map_err(|failure| failure.text)?;
        Ok(String::from_utf8(request).expect("ASCII"))
    }

    #[test]
    fn the_name_comes_first_and_everything_is_ascii() {
        for (text, wanted) in [
            ("{}", r#"{"Command":"a.b"}"#),
            (" { } ", r#"{"Command":"a.b"}"#),
            (r#"{"z":1, "a":{"Command":"x"}}"#, r#"{"Command":"a.b","z":1,"a":{"Command":"x"}}"#),
            ("{\n\"ü\": \"€😀\"}", r#"{"Command":"a.b","\u00fc":"\u20ac\ud83d\ude00"}"#),
            (r#"{"a":"}{\"{"}"#, r#"{"Command":"a.b","a":"\u007d\u007b\"\u007b"}"#),
        ] {
            assert_eq!(object(text).as_deref(), Ok(wanted));
        }
        let named = from_object("ä{\"", "{}").expect("a request");
        assert_eq!(String::from_utf8_lossy(&named), r#"{"Command":"\u00e4\u007b\""}"#);
    }

    #[test]
    fn what_is_no_object_or_has_a_command_already_is_refused() {
        for (text, why) in [
            ("[]", "no object"),
            ("5", "no object"),
            ("", "EOF while parsing"),
            ("{\"a\":}", "line 1 column 6"),
            ("{} {}", "trailing characters"),
            (r#"{"a":1,"cOMMAND":null}"#, "member cOMMAND of their own"),
            (r#"{"\u0043ommand":"x"}"#, "member Command of their own"),
        ] {
            let error = object(text).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn values_are_json_where_they_can_be() {
        let words =
            ["a=5", "b=true", "c=null", "d=\"5\"", "e=[1, {\"x\":\"ü\"}]", "f=two words", "g=", "h=1=2", "i=x{}"];
        let wanted = r#"{"Command":"a.b","a":5,"b":true,"c":null,"d":"5","e":[1,{"x":"\u00fc"}],"f":"two words","g":"","h":"1=2","i":"x\u007b\u007d"}"#;
        assert_eq!(pairs(&words).as_deref(), Ok(wanted));
        assert_eq!(pairs(&[]).as_deref(), Ok(r#"{"Command":"a.b"}"#));
        for (words, why) in [
            (&["a"][..], "a: neither"),
            (&["=x"], "=x: neither"),
            (&["a=1", "5"], "5: the arguments must be one JSON object"),
            (&["a=1", "a=2"], "a is given twice"),
            (&["a=[\"uname\""], "a: no valid JSON; a text that begins so is written with quotes"),
            (&["a={x}"], "a: no valid JSON"),
            (&["command=1"], "member command of their own"),
        ] {
            let error = pairs(words).expect_err(why);
            assert!(error.contains(why), "{error}");
        }
    }
}
