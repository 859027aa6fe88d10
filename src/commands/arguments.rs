//! The arguments of a command: members of an object that are taken out one by one.

use serde_json::{Map, Value};

use crate::commands::Error;
use crate::json::scan::Scanner;

/// Values in the arguments of one command, those inside of lists and objects too. Each costs up to a kilobyte as a tree, where it may cost
/// two bytes as text; the longest lists that make sense are those of a program's words.
pub const VALUES_MAX: usize = 4096;

/// Arguments that have not been taken yet.
#[derive(Debug, Default)]
pub struct Arguments {
    members: Map<String, Value>,
}

impl Arguments {
    /// The members of a request, but not those whose name is `envelope` in whatever case.
    ///
    /// # Errors
    /// `BadArgument` for a text that is no object, is nested deeper than 127 levels, or has more than `VALUES_MAX` values.
    pub fn read(request: &[u8], envelope: &str) -> Result<Arguments, Error> {
        // Bytes that are no UTF-8 are taken for replacement characters, as Go's decoder takes them.
        let text = String::from_utf8_lossy(request);
        let bad = |why: String| Error::BadArgument(format!("arguments: {why}"));
        let mut scanner = Scanner::value();
        // What is no JSON is told so, with its place, by the parser.
        let _ = scanner.feed(request);
        if scanner.values() > VALUES_MAX {
            return Err(bad(format!("more than the limit of {VALUES_MAX} values")));
        }
        let value = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        let Value::Object(mut members) = value else { return Err(bad("no object".to_owned())) };
        members.retain(|name, _| !name.eq_ignore_ascii_case(envelope));
        Ok(Arguments { members })
    }

    /// These, which come from no request.
    #[cfg(any(feature = "clear", feature = "openstack"))]
    pub fn of(members: Map<String, Value>) -> Arguments {
        Arguments { members }
    }

    /// Takes an argument of any type; `null` counts as missing.
    pub fn value(&mut self, name: &str) -> Option<Value> {
        self.members.remove(name).filter(|value| !value.is_null())
    }

    /// Takes a text. Whole numbers and truth values are taken as they are written, for callers that cannot tell.
    ///
    /// # Errors
    /// `BadArgument` for what else is there; also for other numbers, because nobody knows any more how they were written: a password may be
    /// `1.10`.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, Error> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(Value::Number(number)) if number.is_f64() => {
                Err(Error::BadArgument(format!("{name}: a text is wanted, and not a number; put it into quotes")))
            }
            Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(Some(value.to_string())),
            Some(_) => Err(Error::BadArgument(format!("{name}: a text is wanted"))),
        }
    }

    /// Takes a whole number, also one that is written as a text.
    ///
    /// # Errors
    /// `BadArgument` for what else is there, and for a number that is not in the range of the type.
    pub fn number<T: TryFrom<i64>>(&mut self, name: &str) -> Result<Option<T>, Error> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let found = match &value {
            Value::Number(number) => number.as_i64(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        let number = found.and_then(|number| T::try_from(number).ok());
        let bad = || Error::BadArgument(format!("{name}: a whole number in its range is wanted, and not {value}"));
        number.ok_or_else(bad).map(Some)
    }

    /// Takes a truth value; a missing one is false.
    ///
    /// # Errors
    /// `BadArgument` for what else is there.
    pub fn flag(&mut self, name: &str) -> Result<bool, Error> {
        match self.value(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(_) => Err(Error::BadArgument(format!("{name}: true or false is wanted"))),
        }
    }

    /// Takes a list of texts.
    ///
    /// # Errors
    /// `BadArgument` for what else is there.
    pub fn texts(&mut self, name: &str) -> Result<Option<Vec<String>>, Error> {
        let bad = || Error::BadArgument(format!("{name}: a list of texts is wanted"));
        let Some(value) = self.value(name) else { return Ok(None) };
        let Value::Array(list) = value else { return Err(bad()) };
        let texts = list.into_iter().map(|value| match value {
            Value::String(text) => Ok(text),
            _ => Err(bad()),
        });
        texts.collect::<Result<_, _>>().map(Some)
    }

    /// Refuses what nobody took: it may be a misspelt word that would have changed the meaning.
    ///
    /// # Errors
    /// `UnknownArgument`.
    pub fn finish(&mut self) -> Result<(), Error> {
        match self.members.keys().next() {
            None => Ok(()),
            Some(name) => Err(Error::UnknownArgument(format!("{name}: no such argument"))),
        }
    }
}

/// What a missing argument that must be there is told.
pub fn missing(name: &str) -> Error {
    Error::MissingArgument(format!("{name}: is missing"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(text: &str) -> Arguments {
        Arguments::read(text.as_bytes(), "Command").expect("an object")
    }

    #[test]
    fn each_type_takes_what_can_only_be_meant() {
        let mut given = arguments(r#"{"COMMAND":"x","command":1,"a":"t","b":5,"c":true,"d":"7","e":null,"f":["x"]}"#);
        assert_eq!(given.text("a"), Ok(Some("t".to_owned())));
        assert_eq!(given.text("b"), Ok(Some("5".to_owned())));
        assert_eq!(given.flag("c"), Ok(true));
        assert_eq!(given.number::<u8>("d"), Ok(Some(7)));
        assert_eq!(given.text("e"), Ok(None));
        assert_eq!(given.texts("f"), Ok(Some(vec!["x".to_owned()])));
        assert_eq!(given.finish(), Ok(()));
        assert_eq!(given.flag("c"), Ok(false));
    }

    #[test]
    fn a_wrong_type_and_a_left_over_argument_are_errors_of_their_own() {
        let mut given = arguments(r#"{"a":{},"b":256,"c":1,"d":[1],"e":1.5,"f":2}"#);
        assert_eq!(given.text("a").map_err(|error| error.code()), Err(12));
        assert_eq!(given.number::<u8>("b").map_err(|error| error.code()), Err(12));
        assert_eq!(given.flag("c").map_err(|error| error.code()), Err(12));
        assert_eq!(given.texts("d").map_err(|error| error.code()), Err(12));
        assert_eq!(given.number::<u8>("e").map_err(|error| error.code()), Err(12));
        assert_eq!(given.finish(), Err(Error::UnknownArgument("f: no such argument".to_owned())));
        assert_eq!(missing("g").code(), 11);
    }

    #[test]
    fn what_is_no_object_or_too_deep_is_a_bad_argument() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(200), "]".repeat(200));
        for text in ["[]", "{", &deep] {
            assert_eq!(Arguments::read(text.as_bytes(), "x").map_err(|error| error.code()).err(), Some(12), "{text}");
        }
        let list = |count: usize| format!("{{\"a\":[{}0]}}", "0,".repeat(count - 3));
        assert!(Arguments::read(list(VALUES_MAX).as_bytes(), "x").is_ok());
        let over = Arguments::read(list(VALUES_MAX + 1).as_bytes(), "x").map_err(|error| error.to_string());
        assert_eq!(over.err().as_deref(), Some("arguments: more than the limit of 4096 values"));
        let mut lossy = Arguments::read(b"{\"a\":\"\xff\"}", "x").expect("an object");
        assert_eq!(lossy.text("a"), Ok(Some("\u{fffd}".to_owned())));
    }
}
