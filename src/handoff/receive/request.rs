//! What is known of the request of a client.

use std::borrow::Cow;
use std::ffi::OsString;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Map, Value};

use super::environment::environment;
use super::handoff::Handoff;

impl Handoff {
    /// The handoff's name in the gateway's log; where no gateway tells it, one that is made up, another each time.
    pub fn id(&self) -> Cow<'_, str> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        match self.metadata().get("id").and_then(Value::as_str) {
            Some(id) => Cow::Borrowed(id),
            None => Cow::Owned(format!("{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed))),
        }
    }

    /// The data that a policy or an application sent along; in the dialect `datagram` the request's head, as it came.
    pub fn data(&self) -> &[u8] {
        &self.inner().data
    }

    /// Everything that the gateway says about request, client and body, in the dialect `baton`
    /// ([`native`](super::super::native)); empty in the others.
    pub fn metadata(&self) -> &Map<String, Value> {
        &self.inner().metadata
    }

    /// What the daemon is asked to be, where a policy said so; else empty.
    pub fn role(&self) -> &str {
        self.metadata().get("metadata").and_then(|own| own.get("role")?.as_str()).unwrap_or_default()
    }

    /// The request's method, where it is known.
    pub fn method(&self) -> Option<&str> {
        self.request("method")
    }

    /// The request's target as the client wrote it, where it is known.
    pub fn target(&self) -> Option<&str> {
        self.request("target")
    }

    pub(super) fn request(&self, name: &str) -> Option<&str> {
        self.metadata().get("request")?.get(name)?.as_str()
    }

    /// The request's fields in their order, names in lower case, repeats kept; none where they are not known.
    pub fn headers(&self) -> impl Iterator<Item = (&str, Cow<'_, [u8]>)> {
        headers(self.metadata())
    }

    /// The first field of that name, which is given in lower case; what is not UTF-8 in it is replaced.
    pub fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        let (_, value) = self.headers().find(|(own, _)| *own == name)?;
        Some(match value {
            Cow::Borrowed(bytes) => String::from_utf8_lossy(bytes),
            Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
        })
    }

    /// The request's head, byte for byte, where it was sent along (`include-head`); else empty.
    pub fn head(&self) -> &[u8] {
        &self.inner().head
    }

    /// Whether something that the client sent is here and not in its socket: a body in memory, or what the gateway has read. Whoever reads
    /// the socket itself would miss it.
    pub fn is_body_beside_client(&self) -> bool {
        self.input().is_beside_socket()
    }

    /// Whether the gateway has written the response's head, so that what is written now is its body: in the dialect
    /// `fdpass`, and where `baton` says so. Others cannot tell; there the daemon writes the head, unless whoever configured both ends says otherwise.
    pub fn is_head_sent(&self) -> bool {
        self.inner().output.is_head_sent()
    }

    /// What is known of request and client as CGI variables (RFC 3875), for a program to be started with. Owned: nothing is put
    /// into this process's environment. HANDOFF_DATA is missing when the data has a NUL byte or is longer than 131,058
    /// bytes, which no variable can hold.
    pub fn env(&self) -> Vec<(String, OsString)> {
        environment(self)
    }
}

pub(super) fn headers(metadata: &Map<String, Value>) -> impl Iterator<Item = (&str, Cow<'_, [u8]>)> {
    let all = metadata.get("request").and_then(|request| request.get("headers")?.as_array());
    all.into_iter().flatten().filter_map(|pair| {
        let pair = pair.as_array()?;
        let value = match pair.get(1)? {
            Value::String(text) => Cow::Borrowed(text.as_bytes()),
            other => Cow::Owned(base64(other.get("base64")?.as_str()?)?),
        };
        Some((pair.first()?.as_str()?, value))
    })
}

/// Reads base64 (RFC 4648 §4); a padding that is missing is not missed.
fn base64(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut held, mut bits) = (Vec::new(), 0_u32, 0);
    for character in text.trim_end_matches('=').bytes() {
        let value = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        held = held << 6 | u32::from(value);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from(held >> bits & 0xff).ok()?);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn base64_is_read() {
        for (text, bytes) in
            [("", Some(&b""[..])), ("/w==", Some(b"\xff")), ("AP/+", Some(b"\0\xff\xfe")), ("AP8", Some(b"\0\xff"))]
        {
            assert_eq!(base64(text).as_deref(), bytes, "{text}");
        }
        assert_eq!(base64("A-_A"), None);
    }

    #[test]
    fn fields_come_in_their_order_whatever_their_bytes() {
        let metadata = json!({"request": {"headers": [["a", "1"], ["b", {"base64": "/w=="}], ["a", "2"], ["c"], 5]}});
        let metadata = metadata.as_object().unwrap();
        let all: Vec<_> = headers(metadata).map(|(name, value)| (name, value.into_owned())).collect();
        assert_eq!(all, [("a", b"1".to_vec()), ("b", b"\xff".to_vec()), ("a", b"2".to_vec())]);
    }
}
