//! Whether a URL was signed by somebody who has the key, and is still good.
//!
//! `/v1/report?user=alice&expires=1790000000&signature=HEX`: the signature is the last parameter, and it is HMAC-SHA256,
//! in lower-case hexadecimal digits, over everything before `&signature=` as it is written. So it covers the path, the
//! user, the time, and whatever else stands there; nothing has to be decoded or sorted before it is known to be ours,
//! and nothing can be put behind it.

use hmac::{Hmac, Mac as _};
use serde::Serialize;
use sha2::Sha256;

/// A shorter key could be guessed.
pub const KEY_BYTES_MIN: usize = 16;

const MARK: &str = "&signature=";

/// What is asked for.
#[derive(Debug)]
pub struct Request {
    pub method: String,
    /// As the client wrote it.
    pub request_target: String,
    pub path: String,
    /// Of the query, decoded.
    pub user: Option<String>,
    /// Of the query, decoded: seconds since 1970.
    pub expires: Option<String>,
}

/// What becomes of the client.
#[derive(Debug, PartialEq)]
pub enum Answer<'a> {
    /// The URL is good; `data` goes to the daemon with the client's socket.
    HandOver { user: Option<&'a str>, data: Vec<u8> },
    /// It is answered 403, with this detail.
    Refuse(&'static str),
}

/// Decides at a time, in milliseconds since 1970.
pub fn decide<'a>(key: &[u8], now_ms: u64, request: &'a Request) -> Answer<'a> {
    let Some((signed, signature)) = request.request_target.rsplit_once(MARK) else {
        return Answer::Refuse("the link is not signed");
    };
    // The signature first: of a link that is not ours nothing else is worth a word.
    if !is_signature(key, signed.as_bytes(), signature) {
        return Answer::Refuse("the signature of the link is not valid");
    }
    match request.expires.as_deref().and_then(seconds) {
        None => return Answer::Refuse("the link does not say when it expires"),
        Some(expires) if now_ms / 1000 >= expires => return Answer::Refuse("the link has expired"),
        Some(_) => {}
    }
    let user = request.user.as_deref();
    Answer::HandOver { user, data: data(request) }
}

/// Compares in a time that tells nothing of how near a guess came.
fn is_signature(key: &[u8], signed: &[u8], hex: &str) -> bool {
    let Some(signature) = from_hex(hex) else { return false };
    let mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.chain_update(signed).verify_slice(&signature).is_ok()
}

/// 64 lower-case digits: one spelling only, so that one link is one link.
fn from_hex(hex: &str) -> Option<[u8; 32]> {
    let digits: &[u8; 64] = hex.as_bytes().try_into().ok()?;
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(bytes)
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// Digits and nothing else: `parse` alone would take a sign.
fn seconds(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn data(request: &Request) -> Vec<u8> {
    #[derive(Serialize)]
    struct Data<'a> {
        user: Option<&'a str>,
        method: &'a str,
        path: &'a str,
    }
    let data = Data { user: request.user.as_deref(), method: &request.method, path: &request.path };
    serde_json::to_vec(&data).expect("strings always have a JSON form")
}

/// Proves the code with a vector of RFC 4231 (4.3).
pub fn self_test() -> Result<(), String> {
    let signature = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
    let is_right = is_signature(b"Jefe", b"what do ya want for nothing?", signature);
    if is_right { Ok(()) } else { Err("HMAC-SHA256 is wrong".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8] = b"a key of enough bytes";
    const NOW_MS: u64 = 1_790_000_000_000;

    fn sign(target: &str) -> String {
        let code = Hmac::<Sha256>::new_from_slice(KEY).expect("any length").chain_update(target).finalize();
        let hex: String = code.into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{target}{MARK}{hex}")
    }

    fn request(target: &str) -> Request {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let of = |name: &str| {
            query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
        };
        Request {
            method: "GET".into(),
            request_target: target.into(),
            path: path.into(),
            user: of("user"),
            expires: of("expires"),
        }
    }

    fn refused(target: &str) -> &'static str {
        match decide(KEY, NOW_MS, &request(target)) {
            Answer::Refuse(detail) => detail,
            answer => panic!("{target}: {answer:?}"),
        }
    }

    const INVALID: &str = "the signature of the link is not valid";

    #[test]
    fn a_signed_link_hands_over_until_it_expires() {
        let target = sign("/a?user=alice&expires=1790000001");
        let request = request(&target);
        let Answer::HandOver { user, data } = decide(KEY, NOW_MS, &request) else { panic!("was refused") };
        assert_eq!(user, Some("alice"));
        assert_eq!(data, br#"{"user":"alice","method":"GET","path":"/a"}"#);
        let at = |now_ms| decide(KEY, now_ms, &request);
        assert!(matches!(at(1_790_000_000_999), Answer::HandOver { .. }));
        assert_eq!(at(1_790_000_001_000), Answer::Refuse("the link has expired"));
    }

    #[test]
    fn a_link_needs_no_user() {
        let target = sign("/a?expires=1790000001");
        let request = request(&target);
        let Answer::HandOver { user, data } = decide(KEY, NOW_MS, &request) else { panic!("was refused") };
        assert_eq!((user, &*data), (None, &br#"{"user":null,"method":"GET","path":"/a"}"#[..]));
    }

    #[test]
    fn whatever_is_changed_is_noticed() {
        let good = sign("/a?user=alice&expires=1790000001");
        for at in 0..good.len() {
            let mut bytes = good.clone().into_bytes();
            bytes[at] ^= 1;
            let changed = String::from_utf8(bytes).expect("ASCII");
            let detail = refused(&changed);
            assert!([INVALID, "the link is not signed"].contains(&detail), "{changed}: {detail}");
        }
        assert_eq!(refused(&good.to_uppercase().replace("&SIGNATURE=", MARK)), INVALID);
    }

    #[test]
    fn nothing_can_stand_behind_the_signature() {
        let good = sign("/a?user=alice&expires=1790000001");
        for more in ["&", "&user=bob", "%20", "&signature=", &format!("{MARK}{}", "0".repeat(64))] {
            assert_eq!(refused(&format!("{good}{more}")), INVALID, "{more}");
        }
    }

    #[test]
    fn what_is_not_signed_is_refused() {
        for target in ["/a", "/a?", "/a?expires=1790000001", "/a?signature=00", "/a?expires=1790000001&Signature=00"] {
            assert_eq!(refused(target), "the link is not signed", "{target}");
        }
        assert_eq!(refused("/a?expires=1790000001&signature="), INVALID);
    }

    #[test]
    fn a_signed_link_says_when_it_expires() {
        for query in
            ["", "expires=", "expires=+1790000001", "expires=-1", "expires=99999999999999999999", "expires=1e10"]
        {
            assert_eq!(refused(&sign(&format!("/a?{query}"))), "the link does not say when it expires", "{query}");
        }
    }

    #[test]
    fn the_self_test_holds() {
        assert_eq!(self_test(), Ok(()));
    }
}
