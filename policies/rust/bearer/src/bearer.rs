//! Who is asking, and what they get: RFC 6750 over what the gateway read.
//!
//! Pure: bytes in, answer out. The token is taken from the `Authorization` field alone. The `access_token` parameter
//! of RFC 6750 §2.3 is deliberately not looked at: a query stands in access logs, in browser histories, in `Referer`
//! fields and in the handoff's data, and RFC 9700 §4.3.2 forbids it.

use std::hint::black_box;

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::config::Config;

/// SHA-256 of a token.
pub type Digest = [u8; 32];

/// What the daemon is told of the request.
#[derive(Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// `None`: the target had no question mark.
    pub query: Option<String>,
}

/// What becomes of the client.
#[derive(Debug, PartialEq)]
pub enum Answer<'a> {
    /// It is known; `data` goes to the daemon with its socket.
    HandOver { user: &'a str, data: Vec<u8> },
    /// It is answered here.
    Refuse(&'static Refusal),
}

/// An answer to a client that is not let through.
#[derive(Debug, PartialEq)]
pub struct Refusal {
    pub status: u16,
    title: &'static str,
    pub detail: &'static str,
    /// An `error` of RFC 6750 §3.1.
    error: Option<&'static str>,
}

/// No credentials at all, or of another scheme: the challenge carries no error then (RFC 6750 §3).
static NO_TOKEN: Refusal =
    Refusal { status: 401, title: "Unauthorized", detail: "a bearer token is required", error: None };

static MALFORMED: Refusal = Refusal {
    status: 400,
    title: "Bad Request",
    detail: "there must be one Authorization field with one bearer token",
    error: Some("invalid_request"),
};

static UNKNOWN_TOKEN: Refusal = Refusal {
    status: 401,
    title: "Unauthorized",
    detail: "the bearer token is not valid",
    error: Some("invalid_token"),
};

impl Refusal {
    /// The value of `WWW-Authenticate`.
    pub fn challenge(&self, realm: &str) -> String {
        match self.error {
            None => format!("Bearer realm=\"{realm}\""),
            Some(error) => format!("Bearer realm=\"{realm}\", error=\"{error}\""),
        }
    }

    /// Problem details (RFC 9457).
    pub fn body(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Problem {
            title: &'static str,
            status: u16,
            detail: &'static str,
        }
        json(&Problem { title: self.title, status: self.status, detail: self.detail })
    }
}

/// Decides on the values of all `Authorization` fields.
pub fn decide<'a>(config: &'a Config, authorization: &[Vec<u8>], request: &Request) -> Answer<'a> {
    let value = match authorization {
        [] => return Answer::Refuse(&NO_TOKEN),
        [value] => value,
        // Which of them counts would be a guess, and the daemon might guess differently.
        _ => return Answer::Refuse(&MALFORMED),
    };
    let token = match credentials(value) {
        Credentials::Bearer(token) => token,
        Credentials::Malformed => return Answer::Refuse(&MALFORMED),
        Credentials::Other => return Answer::Refuse(&NO_TOKEN),
    };
    match user(config, token) {
        Some(user) => Answer::HandOver { user, data: data(user, request) },
        None => Answer::Refuse(&UNKNOWN_TOKEN),
    }
}

/// Proves the digest with the vectors of FIPS 180-4, one block and two.
pub fn self_test() -> Result<(), String> {
    let vectors: [(&[u8], [u8; 4]); 2] = [
        (b"abc", [0xba, 0x78, 0x16, 0xbf]),
        (b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", [0x24, 0x8d, 0x6a, 0x61]),
    ];
    for (message, start) in vectors {
        if Sha256::digest(message)[..4] != start {
            return Err(format!("SHA-256 of {} bytes is wrong", message.len()));
        }
    }
    Ok(())
}

#[derive(Debug, PartialEq)]
enum Credentials<'a> {
    Bearer(&'a [u8]),
    Malformed,
    Other,
}

/// Takes `Bearer` 1*SP b64token apart (RFC 6750 §2.1); the scheme's case does not matter (RFC 9110 §11.1).
fn credentials(value: &[u8]) -> Credentials<'_> {
    let end = value.iter().position(|&byte| byte == b' ').unwrap_or(value.len());
    let (scheme, rest) = value.split_at(end);
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        return Credentials::Other;
    }
    let start = rest.iter().position(|&byte| byte != b' ').unwrap_or(rest.len());
    let token = &rest[start..];
    if is_b64token(token) { Credentials::Bearer(token) } else { Credentials::Malformed }
}

/// At least one of the characters, then any number of `=`.
fn is_b64token(token: &[u8]) -> bool {
    let padding = token.iter().rev().take_while(|&&byte| byte == b'=').count();
    let body = &token[..token.len() - padding];
    !body.is_empty() && body.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/".contains(byte))
}

/// Whose token this is. Looks at every entry and at every byte of it, so that the time tells nothing of how near a guess
/// came.
fn user<'a>(config: &'a Config, token: &[u8]) -> Option<&'a str> {
    let digest: Digest = Sha256::digest(token).into();
    let mut found = None;
    for (known, user) in &config.tokens {
        if is_same(known, &digest) {
            found = Some(user.as_str());
        }
    }
    found
}

/// Compares without an early end. Eight bytes at a time: a library that hides every byte from the compiler takes longer for
/// ten tokens than all the rest of a decision; hiding the sum from it is what keeps the loop whole.
fn is_same(known: &Digest, digest: &Digest) -> bool {
    let pairs = known.as_chunks().0.iter().zip(digest.as_chunks().0);
    let word = |bytes: &[u8; 8]| u64::from_ne_bytes(*bytes);
    black_box(pairs.fold(0, |difference, (known, digest)| difference | (word(known) ^ word(digest)))) == 0
}

fn data(user: &str, request: &Request) -> Vec<u8> {
    #[derive(Serialize)]
    struct Data<'a> {
        user: &'a str,
        method: &'a str,
        path: &'a str,
        query: Option<&'a str>,
    }
    json(&Data { user, method: &request.method, path: &request.path, query: request.query.as_deref() })
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings and numbers always have a JSON form")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tr0ub4dor` is alice's, `c0rrect=` is Zoë's.
    fn config() -> Config {
        let token = |token: &str, user: &str| (Sha256::digest(token).into(), user.to_owned());
        Config {
            target: "chat".to_owned(),
            realm: "demo".to_owned(),
            tokens: vec![token("tr0ub4dor", "alice"), token("c0rrect=", "Zoë \"Z\"")],
        }
    }

    fn request() -> Request {
        Request { method: "GET".to_owned(), path: "/v1/chat".to_owned(), query: None }
    }

    fn refusal(authorization: &[&str]) -> (u16, String) {
        let fields: Vec<_> = authorization.iter().map(|value| value.as_bytes().to_vec()).collect();
        match decide(&config(), &fields, &request()) {
            Answer::Refuse(refusal) => (refusal.status, refusal.challenge("demo")),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_known_token_hands_over() {
        let config = config();
        for value in ["Bearer tr0ub4dor", "bEARER   tr0ub4dor"] {
            let Answer::HandOver { user, data } = decide(&config, &[value.into()], &request()) else {
                panic!("{value} was refused");
            };
            assert_eq!(user, "alice");
            assert_eq!(data, br#"{"user":"alice","method":"GET","path":"/v1/chat","query":null}"#);
        }
    }

    #[test]
    fn the_data_is_json_whatever_it_holds() {
        let request = Request { query: Some("q=\"\\\u{1}".to_owned()), ..request() };
        let config = config();
        let Answer::HandOver { data, .. } = decide(&config, &[b"Bearer c0rrect=".to_vec()], &request) else {
            panic!("was refused");
        };
        assert_eq!(
            String::from_utf8(data).expect("is UTF-8"),
            r#"{"user":"Zoë \"Z\"","method":"GET","path":"/v1/chat","query":"q=\"\\\u0001"}"#
        );
    }

    #[test]
    fn no_token_is_challenged_without_an_error() {
        for fields in [&[][..], &["Basic YWxpY2U6eA=="], &["Bearertr0ub4dor"], &[""]] {
            assert_eq!(refusal(fields), (401, "Bearer realm=\"demo\"".to_owned()), "{fields:?}");
        }
    }

    #[test]
    fn an_unknown_token_is_invalid() {
        for value in ["Bearer tr0ub4dop", "Bearer TR0UB4DOR", "Bearer tr0ub4dor=", "Bearer c0rrect"] {
            assert_eq!(
                refusal(&[value]),
                (401, "Bearer realm=\"demo\", error=\"invalid_token\"".to_owned()),
                "{value}"
            );
        }
    }

    #[test]
    fn what_is_malformed_is_an_invalid_request() {
        let twice = ["Bearer tr0ub4dor", "Bearer tr0ub4dor"];
        for fields in [
            &["Bearer"][..],
            &["Bearer "],
            &["Bearer ="],
            &["Bearer tr0ub4dor "],
            &["Bearer tr0ub4dor c0rrect="],
            &["Bearer tr0ub4dor,"],
            &["Bearer \"tr0ub4dor\""],
            &twice,
        ] {
            assert_eq!(
                refusal(fields),
                (400, "Bearer realm=\"demo\", error=\"invalid_request\"".to_owned()),
                "{fields:?}"
            );
        }
    }

    #[test]
    fn the_self_test_holds() {
        assert_eq!(self_test(), Ok(()));
    }

    #[test]
    fn bodies_are_problem_details() {
        assert_eq!(
            String::from_utf8(NO_TOKEN.body()).expect("is UTF-8"),
            r#"{"title":"Unauthorized","status":401,"detail":"a bearer token is required"}"#
        );
    }
}
