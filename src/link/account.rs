//! What was seen of a line, for people.

/// Longest part of a line that is kept, in bytes.
const LINE_MAX: usize = 160;

/// What has happened on a line that is worth telling when it goes wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Greeted by a peer, ever.
    pub met: bool,
    /// Bytes that were no frame.
    pub text_bytes: u64,
    /// The line that is being printed, and the last one that was not empty; their beginnings, if they are long.
    line: Vec<u8>,
    last_line: Vec<u8>,
    /// Our own frames came back.
    pub echo: bool,
    /// The other end is what we are.
    pub same_role: bool,
    /// Why the last session, or a channel, was ended.
    pub end: Option<&'static str>,
}

impl Account {
    /// Takes a piece of text.
    pub fn text(&mut self, bytes: &[u8]) {
        self.text_bytes += bytes.len() as u64;
        for byte in bytes {
            match byte {
                b'\n' | b'\r' => {
                    if !self.line.trim_ascii().is_empty() {
                        std::mem::swap(&mut self.line, &mut self.last_line);
                    }
                    self.line.clear();
                }
                _ if self.line.len() < LINE_MAX => self.line.push(*byte),
                _ => {}
            }
        }
    }

    /// One sentence about what was seen of a line of this name; `None` when nothing is wrong.
    pub fn explain(&self, name: &str) -> Option<String> {
        if let Some(end) = self.end {
            return Some(format!("{name}: {end}"));
        }
        if self.met {
            return None;
        }
        let what = match (self.text_bytes, self.echo, self.same_role) {
            (_, true, _) => "our own frames came back: the line echoes".to_owned(),
            (_, _, true) => "another client is at the other end of the line".to_owned(),
            (0, ..) => "nothing came at all".to_owned(),
            (count, ..) => {
                let line =
                    [self.line.trim_ascii(), self.last_line.trim_ascii()].into_iter().find(|line| !line.is_empty());
                let line = String::from_utf8_lossy(line.unwrap_or_default()).into_owned();
                format!("{} bytes of console text arrived, last line: {line}", grouped(count))
            }
        };
        Some(format!("no agent answered on {name}; {what}"))
    }
}

/// A number with commas between its thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_line_is_told_with_what_it_said_instead() {
        let mut account = Account { text_bytes: 1_234_480, ..Account::default() };
        let told = |account: &Account| account.explain("serial:/dev/x").unwrap_or_default();
        account.text(b"[    0.1] booting\r\n\r\n");
        let last = |account: &Account| told(account).rsplit("last line: ").next().map(str::to_owned);
        assert_eq!(last(&account).as_deref(), Some("[    0.1] booting"));
        account.text(&[b'x'; 60]);
        account.text(b"\r\nlogin: ");
        let wanted = "no agent answered on serial:/dev/x; 1,234,570 bytes of console text arrived, last line: login:";
        assert_eq!(told(&account), wanted);
        account.text(&[b'y'; 1000]);
        assert!(account.line.len() == LINE_MAX);
        account.echo = true;
        assert!(told(&account).ends_with("the line echoes"));
        account.met = true;
        assert_eq!(account.explain("x"), None);
        account.end = Some("the agent fell silent");
        assert_eq!(told(&account), "serial:/dev/x: the agent fell silent");
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!([0, 999, 1000, 12_345, 1_234_567].map(grouped), ["0", "999", "1,000", "12,345", "1,234,567"]);
    }
}
