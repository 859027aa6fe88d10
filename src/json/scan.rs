//! Where a JSON value ends.

/// Finds the end of one value.
#[derive(Debug)]
pub struct Scanner {
    seen: Vec<u8>,
    member: &'static str,
}

/// Why a text is no such value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    Syntax,
}

impl Scanner {
    pub fn object(member: &'static str) -> Scanner {
        Scanner { seen: Vec::new(), member }
    }

    pub fn feed(&mut self, bytes: &[u8]) -> Result<Option<usize>, Invalid> {
        self.seen.extend_from_slice(bytes);
        let mut values = serde_json::Deserializer::from_slice(&self.seen).into_iter::<serde_json::Value>();
        match values.next() {
            Some(Ok(_)) => Ok(Some(bytes.len())),
            Some(Err(error)) if error.is_eof() => Ok(None),
            None => Ok(None),
            Some(Err(_)) => Err(Invalid::Syntax),
        }
    }

    pub fn found(&self) -> Option<std::ops::Range<usize>> {
        let text = String::from_utf8_lossy(&self.seen);
        let at = text.find(&format!("\"{}\":\"", self.member))? + self.member.len() + 3;
        let end = text[at + 1..].find('"')? + at + 2;
        Some(at..end)
    }
}
