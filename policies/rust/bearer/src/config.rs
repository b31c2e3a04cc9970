//! What the policy is told once, as JSON.
//!
//! ```json
//! {"target": "chat", "realm": "demo", "tokens": {"<SHA-256 of a token, in hex>": "alice"}}
//! ```
//!
//! Tokens stand there as digests, so that neither the configuration nor its backups hold anything that opens a door.
//! That is safe for tokens that a program made at random; words that people chose can be guessed from their digest.

use serde_json::{Map, Value};

use crate::bearer::Digest;

/// Who may pass, and where to.
#[derive(Debug)]
pub struct Config {
    /// Who takes the clients.
    pub target: String,
    /// Names the protected space in challenges (RFC 9110 §11.5).
    pub realm: String,
    /// Digest of each token, and whose it is.
    pub tokens: Vec<(Digest, String)>,
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    /// Every fault, not only the first: whoever has to mend it wants to go there once.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        let Ok(value) = serde_json::from_str::<Value>(text) else {
            return Err(vec!["config: not JSON".to_owned()]);
        };
        let Value::Object(mut object) = value else {
            return Err(vec!["config: must be an object".to_owned()]);
        };
        let mut faults = Vec::new();
        let target = printable(&mut object, "target", &mut faults);
        let realm = printable(&mut object, "realm", &mut faults);
        let tokens = tokens(&mut object, &mut faults);
        faults.extend(object.keys().map(|key| format!("{key}: unknown key")));
        if faults.is_empty() { Ok(Self { target, realm, tokens }) } else { Err(faults) }
    }
}

/// Takes a string that can stand between the quotes of a header field as it is (RFC 9110 §5.6.4).
fn printable(object: &mut Map<String, Value>, key: &str, faults: &mut Vec<String>) -> String {
    match object.remove(key) {
        None => faults.push(format!("{key}: missing")),
        Some(Value::String(text)) if is_printable(&text) => return text,
        Some(_) => faults.push(format!("{key}: must be a string of printable ASCII without quotes and backslashes")),
    }
    String::new()
}

fn is_printable(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\')
}

fn tokens(object: &mut Map<String, Value>, faults: &mut Vec<String>) -> Vec<(Digest, String)> {
    let entries = match object.remove("tokens") {
        None => {
            faults.push("tokens: missing".to_owned());
            return Vec::new();
        }
        Some(Value::Object(entries)) if !entries.is_empty() => entries,
        Some(_) => {
            faults.push("tokens: must be an object with at least one entry".to_owned());
            return Vec::new();
        }
    };
    let mut tokens = Vec::with_capacity(entries.len());
    for (key, value) in entries {
        let user = value.as_str().filter(|user| !user.is_empty() && !user.chars().any(is_control));
        // A key that is no digest may be the token itself, put there by mistake: it is never repeated in a message.
        match (digest(&key), user) {
            (Some(digest), Some(user)) => tokens.push((digest, user.to_owned())),
            (None, Some(user)) => faults.push(format!(
                "tokens: the key of \"{user}\" must be 64 lower-case hexadecimal digits, the SHA-256 of the token"
            )),
            (Some(_), None) => faults.push(format!(
                "tokens: the user of {}... must be a string without control characters, and not empty",
                &key[..8]
            )),
            (None, None) => faults.push("tokens: an entry has neither a SHA-256 as its key nor a user".to_owned()),
        }
    }
    tokens
}

fn is_control(c: char) -> bool {
    c < ' ' || c == '\x7f'
}

/// Reads 64 lower-case hexadecimal digits, as `sha256sum` prints them. One spelling only: two for one token would be two
/// entries.
fn digest(hex: &str) -> Option<Digest> {
    let digits: &[u8; 64] = hex.as_bytes().try_into().ok()?;
    let mut digest = Digest::default();
    for (byte, pair) in digest.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(digest)
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn faults(text: &str) -> Vec<String> {
        Config::parse(text).expect_err(text)
    }

    #[test]
    fn a_good_one_is_read() {
        let config =
            Config::parse(&format!(r#"{{"target": "chat", "realm": "demo", "tokens": {{"{DIGEST}": "alice"}}}}"#))
                .expect("is good");
        assert_eq!((config.target.as_str(), config.realm.as_str()), ("chat", "demo"));
        assert_eq!(config.tokens.len(), 1);
        assert_eq!(config.tokens[0].0[..3], [0xba, 0x78, 0x16]);
        assert_eq!(config.tokens[0].1, "alice");
    }

    #[test]
    fn text_that_is_no_object_is_one_fault() {
        assert_eq!(faults("{"), ["config: not JSON"]);
        assert_eq!(faults("[]"), ["config: must be an object"]);
    }

    #[test]
    fn nesting_ends_before_the_stack_does() {
        assert_eq!(faults(&"[".repeat(10_000)), ["config: not JSON"]);
    }

    #[test]
    fn a_mistaken_token_is_not_repeated() {
        let said = faults(r#"{"target": "chat", "realm": "demo", "tokens": {"s3cret": "alice", "s4cret": 1}}"#);
        assert_eq!(said.len(), 2);
        assert!(!said.concat().contains("cret"), "{said:?}");
    }

    #[test]
    fn a_digest_has_one_spelling() {
        assert!(digest(DIGEST).is_some());
        for wrong in [&DIGEST[1..], &DIGEST.to_uppercase(), &DIGEST.replace('b', "g"), &DIGEST.replace("ba", "é")] {
            assert_eq!(digest(wrong), None, "{wrong}");
        }
    }
}
