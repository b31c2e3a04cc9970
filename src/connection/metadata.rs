//! What the native protocol tells a daemon about a request, as JSON that is written once and copied nowhere.

use std::net::SocketAddr;

use serde_json::ser::{CompactFormatter, Formatter as _};

use crate::decision::Handoff;
use crate::http::body::Framing;
use crate::policy::Generation;
use crate::request::{Id, Origin, Peer, Request};

/// What is said beside the request.
pub(super) struct About<'a> {
    pub(super) handoff: &'a Handoff,
    /// The policy that decided; `None`: the route, or an application.
    pub(super) by: Option<&'a Generation>,
    /// Whether somebody has had all of the body.
    pub(super) has_no_body_left: bool,
    /// Whether the gateway writes the response's head.
    pub(super) has_head: bool,
}

/// Writes the object of a HANDOFF. Of the head's fields those with the edits of the policies.
pub(super) fn encode(request: &Request, about: &About<'_>) -> Vec<u8> {
    let mut out = Object::begin(Vec::with_capacity(1024));
    out.text("id", &request.id.to_string());
    if let Some(by) = about.by {
        out.object("policy", |policy| {
            policy.text("name", by.policy());
            policy.number("generation", by.number());
        });
    }
    let head = &request.head;
    out.object("request", |out| {
        out.text("method", head.method());
        out.text("target", head.target());
        out.text("version", head.version().word());
        out.text("scheme", request.scheme());
        out.text("authority", head.authority());
        if about.handoff.include_head {
            out.number("head_bytes", head.bytes().len() as u64);
        }
        out.fields("headers", &request.fields());
    });
    ends(&mut out, &request.origin, request.client_ip());
    out.text("connection", "direct");
    out.object("body", |out| match head.framing() {
        Framing::Length(length) if !about.has_no_body_left => {
            out.text("framing", "length");
            out.number("remaining", length);
        }
        Framing::Chunked if !about.has_no_body_left => out.text("framing", "chunked"),
        _ => {
            out.text("framing", "none");
            out.number("remaining", 0);
        }
    });
    out.object("response", |out| out.boolean("head_sent", about.has_head));
    if let Some(trace) = request.field("traceparent").and_then(|value| std::str::from_utf8(value).ok()) {
        out.object("trace", |out| out.text("traceparent", trace));
    }
    if let Some(timeout) = about.handoff.timeout {
        out.number("deadline_ms", u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
    }
    out.object("metadata", |out| {
        said(out, about.handoff);
        for (name, value) in &request.variables {
            out.bytes(name, value);
        }
        if about.has_no_body_left && head.framing() != Framing::None {
            out.text("request-body", "consumed");
        }
    });
    out.end()
}

/// The same of a connection of which nobody has read a byte: there is no `request`.
pub(super) fn encode_untouched(id: Id, origin: &Origin, handoff: &Handoff, by: &Generation) -> Vec<u8> {
    let mut out = Object::begin(Vec::with_capacity(512));
    out.text("id", &id.to_string());
    out.object("policy", |policy| {
        policy.text("name", by.policy());
        policy.number("generation", by.number());
    });
    ends(&mut out, origin, origin.client_ip());
    out.text("connection", "direct");
    out.object("response", |out| out.boolean("head_sent", false));
    out.object("metadata", |out| said(out, handoff));
    out.end()
}

/// What the policy or the application says.
fn said(out: &mut Object, handoff: &Handoff) {
    handoff.metadata.iter().for_each(|(name, value)| out.text(name, value));
}

/// Who asks, and where. `ip` is the client's as far as proxies are believed.
fn ends(out: &mut Object, origin: &Origin, ip: String) {
    out.object("client", |out| match origin.peer {
        Peer::Tcp(address) => {
            // Behind a proxy the port is the proxy's.
            let port = (ip == address.ip().to_canonical().to_string()).then_some(address.port());
            out.text("ip", &ip);
            if let Some(port) = port {
                out.number("port", port.into());
            }
        }
        Peer::Unix { uid, gid, pid } => {
            if !ip.starts_with("unix:") {
                out.text("ip", &ip);
            }
            out.number("uid", uid.into());
            out.number("gid", gid.into());
            if let Some(pid) = pid {
                out.number("pid", pid.into());
            }
        }
    });
    out.object("server", |out| {
        match origin.local.parse::<SocketAddr>() {
            Ok(address) => {
                out.text("ip", &address.ip().to_canonical().to_string());
                out.number("port", address.port().into());
            }
            Err(_) => out.text("path", &origin.local),
        }
        out.text("listener", &origin.listener);
    });
}

/// A JSON object that is being written.
struct Object {
    out: Vec<u8>,
    is_empty: bool,
}

impl Object {
    fn begin(mut out: Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, is_empty: true }
    }

    fn end(mut self) -> Vec<u8> {
        self.out.push(b'}');
        self.out
    }

    fn name(&mut self, name: &str) {
        if !self.is_empty {
            self.out.push(b',');
        }
        self.is_empty = false;
        put(&mut self.out, name);
        self.out.push(b':');
    }

    fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        put(&mut self.out, value);
    }

    fn bytes(&mut self, name: &str, value: &[u8]) {
        self.name(name);
        put_bytes(&mut self.out, value);
    }

    fn number(&mut self, name: &str, value: u64) {
        self.name(name);
        CompactFormatter.write_u64(&mut self.out, value).expect("memory takes what is written");
    }

    fn boolean(&mut self, name: &str, value: bool) {
        self.name(name);
        self.out.extend_from_slice(if value { b"true" } else { b"false" });
    }

    fn object(&mut self, name: &str, fill: impl FnOnce(&mut Self)) {
        self.name(name);
        let mut inner = Self::begin(std::mem::take(&mut self.out));
        fill(&mut inner);
        self.out = inner.end();
    }

    fn fields(&mut self, name: &str, fields: &[(std::borrow::Cow<'_, str>, &[u8])]) {
        self.name(name);
        self.out.push(b'[');
        for (at, (name, value)) in fields.iter().enumerate() {
            self.out.extend_from_slice(if at == 0 { b"[" } else { b",[" });
            put(&mut self.out, name);
            self.out.push(b',');
            put_bytes(&mut self.out, value);
            self.out.push(b']');
        }
        self.out.push(b']');
    }
}

fn put(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("text is JSON, and memory takes what is written");
}

/// Bytes that are no text travel as `{"base64": ..}`.
fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => put(out, text),
        Err(_) => {
            out.extend_from_slice(b"{\"base64\":\"");
            put_base64(out, bytes);
            out.extend_from_slice(b"\"}");
        }
    }
}

/// RFC 4648 §4, with padding.
fn put_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for chunk in bytes.chunks(3) {
        let three = [chunk[0], chunk.get(1).copied().unwrap_or(0), chunk.get(2).copied().unwrap_or(0)];
        let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for digit in 0..4 {
            let is_there = digit <= chunk.len();
            out.push(if is_there { DIGITS[(bits >> (18 - 6 * digit)) as usize & 63] } else { b'=' });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_the_rfcs() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")] {
            let mut out = Vec::new();
            put_base64(&mut out, bytes.as_bytes());
            assert_eq!(out, text.as_bytes());
        }
    }

    #[test]
    fn what_is_written_is_json_whatever_the_bytes() {
        let mut object = Object::begin(Vec::new());
        object.text("a\"\n", "\u{7f}\\\u{1}");
        object.object("o", |object| object.number("n", u64::MAX));
        object.fields("f", &[("x".into(), b"\xff\xfe"), ("y".into(), b"caf\xc3\xa9")]);
        object.boolean("b", false);
        let value: serde_json::Value = serde_json::from_slice(&object.end()).expect("JSON");
        let expected = serde_json::json!({
            "a\"\n": "\u{7f}\\\u{1}", "o": { "n": u64::MAX },
            "f": [["x", { "base64": "//4=" }], ["y", "café"]], "b": false,
        });
        assert_eq!(value, expected);
    }
}
