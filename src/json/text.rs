//! JSON strings.

pub fn quote(text: &[u8]) -> Vec<u8> {
    serde_json::to_vec(&String::from_utf8_lossy(text)).unwrap_or_default()
}

pub fn unquote(text: &[u8]) -> String {
    serde_json::from_slice(text).unwrap_or_default()
}
