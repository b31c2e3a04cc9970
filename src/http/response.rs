//! Answers as bytes: status line, fields, framing (RFC 9112 §4, §6).

use super::head::{Persistence, Version};
use crate::decision::Field;

/// An answer with its whole body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// 200 to 599.
    pub status: u16,
    /// In the order in which they go onto the wire. Framing fields among them are left out: [`encode`] writes its own.
    pub fields: Vec<Field>,
    /// Left out for HEAD, 204, 205 and 304.
    pub body: Vec<u8>,
}

/// What of the request decides how an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The request's.
    pub version: Version,
    /// Whether the method was HEAD.
    pub body: Presence,
    /// Whether the connection goes on behind this answer.
    pub persistence: Persistence,
}

/// Whether an answer's body is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Presence {
    /// The request was HEAD: the fields say what the body would be (RFC 9110 §9.3.2).
    HeadOnly,
    /// Everything is sent.
    #[default]
    Whole,
}

impl Presence {
    /// What a head that is at fault asked for, so far as it came. Whoever sent HEAD would read a body as the next answer.
    pub fn asked(head: &[u8]) -> Self {
        if head.starts_with(b"HEAD ") { Self::HeadOnly } else { Self::Whole }
    }
}

/// `100 Continue`, sent when somebody is about to read a body whose client waits (RFC 9110 §15.2.1).
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Returns the answer's bytes. `date` is an IMF-fixdate (RFC 9110 §5.6.7).
pub fn encode(answer: &Answer, context: Context, date: &str) -> Vec<u8> {
    let Answer { status, fields, body } = answer;
    let mut out = Vec::with_capacity(head_bytes(fields) + body.len());
    put_head(&mut out, *status, fields, date);
    // 205 has no content either, but says so (RFC 9110 §15.3.6).
    let body = if *status == 205 { &[][..] } else { body };
    let has_content = !matches!(status, 204 | 304);
    if has_content {
        out.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
    }
    put_connection(&mut out, context.version, context.persistence);
    out.extend_from_slice(b"\r\n");
    if has_content && context.body == Presence::Whole {
        out.extend_from_slice(body);
    }
    out
}

/// Returns the head of a response whose body somebody else writes and ends by closing: no length, no chunks.
pub fn encode_head(status: u16, fields: &[Field], date: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(head_bytes(fields));
    put_head(&mut out, status, fields, date);
    out.extend_from_slice(b"Connection: close\r\n\r\n");
    out
}

/// How the end of a relayed body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delimiter {
    /// By the last chunk.
    Chunked,
    /// By the end of the connection.
    Close,
    /// By its length; of HEAD: by what it would be.
    Length(u64),
    /// There is none.
    Nothing,
}

/// Writes the head of an answer that somebody else made, in front of a body that comes piece by piece. Fields that frame it
/// are left out: they were the connection's to whoever made it.
pub fn put_relayed_head<'a>(
    out: &mut Vec<u8>,
    status: u16,
    fields: impl Iterator<Item = (&'a str, &'a [u8])>,
    delimiter: Delimiter,
    (version, persistence): (Version, Persistence),
    date: &str,
) {
    put_status_line(out, status);
    let mut is_dated = false;
    for (name, value) in fields.filter(|(name, _)| !is_framing(name)) {
        // There is one date (RFC 9110 §6.6.1).
        if name.eq_ignore_ascii_case("date") && std::mem::replace(&mut is_dated, true) {
            continue;
        }
        put_field(out, name, value);
    }
    if !is_dated {
        put_field(out, "date", date.as_bytes());
    }
    match delimiter {
        Delimiter::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        Delimiter::Length(length) => put_field(out, "content-length", length.to_string().as_bytes()),
        Delimiter::Close | Delimiter::Nothing => {}
    }
    put_connection(out, version, persistence);
    out.extend_from_slice(b"\r\n");
}

/// Writes an interim answer (RFC 9110 §15.2): a head that another one follows.
pub fn put_interim<'a>(out: &mut Vec<u8>, status: u16, fields: impl Iterator<Item = (&'a str, &'a [u8])>) {
    put_status_line(out, status);
    fields.filter(|(name, _)| !is_framing(name)).for_each(|(name, value)| put_field(out, name, value));
    out.extend_from_slice(b"\r\n");
}

/// Writes the head that says that the connection is a WebSocket's from here on (RFC 9110 §15.2.2, RFC 6455 §4.2.2).
pub fn put_switch<'a>(out: &mut Vec<u8>, fields: impl Iterator<Item = (&'a str, &'a [u8])>) {
    put_status_line(out, 101);
    fields.filter(|(name, _)| !is_framing(name)).for_each(|(name, value)| put_field(out, name, value));
    out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
}

/// How long a head of these fields is, about.
fn head_bytes(fields: &[Field]) -> usize {
    160 + fields.iter().map(|f| f.name.len() + f.value.len() + 4).sum::<usize>()
}

/// Writes the status line and the fields, but those of the framing.
fn put_head(out: &mut Vec<u8>, status: u16, fields: &[Field], date: &str) {
    put_status_line(out, status);
    // Whoever made the answer may have dated it; there is one date (RFC 9110 §6.6.1).
    let is_date = |field: &Field| field.name.eq_ignore_ascii_case("date");
    let mut is_dated = fields.iter().any(is_date);
    if !is_dated {
        put_field(out, "date", date.as_bytes());
    }
    for field in fields.iter().filter(|field| !is_framing(&field.name)) {
        if is_date(field) && !std::mem::take(&mut is_dated) {
            continue;
        }
        put_field(out, &field.name, &field.value);
    }
}

fn put_status_line(out: &mut Vec<u8>, status: u16) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend([status / 100, status / 10 % 10, status % 10].map(|digit| b'0' + (digit % 10) as u8));
    out.push(b' ');
    out.extend_from_slice(phrase(status).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// `content-type` as `Content-Type`: names mean the same in any case, and old clients know this one.
fn put_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    let start = out.len();
    out.extend_from_slice(name.as_bytes());
    let mut before = b'-';
    for byte in &mut out[start..] {
        if before == b'-' {
            byte.make_ascii_uppercase();
        }
        before = *byte;
    }
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn put_connection(out: &mut Vec<u8>, version: Version, persistence: Persistence) {
    match (persistence, version) {
        (Persistence::Close, _) => out.extend_from_slice(b"Connection: close\r\n"),
        (Persistence::KeepAlive, Version::Http10) => out.extend_from_slice(b"Connection: keep-alive\r\n"),
        (Persistence::KeepAlive, Version::Http11) => {}
    }
}

/// Whether a field is the gateway's to write, whoever else names it.
pub fn is_framing(name: &str) -> bool {
    ["connection", "content-length", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"]
        .iter()
        .any(|framing| name.eq_ignore_ascii_case(framing))
}

/// The standard phrase of a status (RFC 9110 §15), or the class's for one that has none.
pub fn phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        102 => "Processing",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        511 => "Network Authentication Required",
        _ => match status / 100 {
            1 => "Informational",
            2 => "Success",
            3 => "Redirection",
            4 => "Client Error",
            _ => "Server Error",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

    fn check(status: u16, context: Context, expected: &str) {
        let fields = vec![Field { name: "x-a".into(), value: b"b".to_vec() }];
        let answer = Answer { status, fields, body: b"hello".to_vec() };
        assert_eq!(String::from_utf8_lossy(&encode(&answer, context, DATE)), expected.replace('|', "\r\n"));
    }

    #[test]
    fn an_answer_is_framed_by_what_was_asked() {
        let whole = Context { version: Version::Http11, body: Presence::Whole, persistence: Persistence::KeepAlive };
        let date = format!("Date: {DATE}");
        check(200, whole, &format!("HTTP/1.1 200 OK|{date}|X-A: b|Content-Length: 5||hello"));
        check(299, whole, &format!("HTTP/1.1 299 Success|{date}|X-A: b|Content-Length: 5||hello"));
        check(204, whole, &format!("HTTP/1.1 204 No Content|{date}|X-A: b||"));
        check(304, whole, &format!("HTTP/1.1 304 Not Modified|{date}|X-A: b||"));
        check(205, whole, &format!("HTTP/1.1 205 Reset Content|{date}|X-A: b|Content-Length: 0||"));
        let head = Context { body: Presence::HeadOnly, ..whole };
        check(200, head, &format!("HTTP/1.1 200 OK|{date}|X-A: b|Content-Length: 5||"));
        let close = Context { persistence: Persistence::Close, ..whole };
        check(200, close, &format!("HTTP/1.1 200 OK|{date}|X-A: b|Content-Length: 5|Connection: close||hello"));
        let old = Context { version: Version::Http10, ..whole };
        check(200, old, &format!("HTTP/1.1 200 OK|{date}|X-A: b|Content-Length: 5|Connection: keep-alive||hello"));
    }

    #[test]
    fn a_head_for_somebody_elses_body_says_nothing_of_its_length() {
        let field = |name: &str, value: &str| Field { name: name.into(), value: value.into() };
        let kind = field("content-type", "text/event-stream");
        let expected = format!("HTTP/1.1 201 Created|Date: {DATE}|Content-Type: text/event-stream|Connection: close||");
        assert_eq!(encode_head(201, &[kind], DATE), expected.replace('|', "\r\n").into_bytes());
        let dated = encode_head(200, &[field("date", "then")], DATE);
        assert_eq!(dated, b"HTTP/1.1 200 OK\r\nDate: then\r\nConnection: close\r\n\r\n");
    }

    #[test]
    fn an_answer_has_one_date_and_one_framing() {
        let context = Context { version: Version::Http11, body: Presence::Whole, persistence: Persistence::KeepAlive };
        let field = |name: &str, value: &str| Field { name: name.into(), value: value.into() };
        let dates = ["date", "Date"].map(|name| field(name, "Mon, 07 Nov 1994 08:49:37 GMT"));
        let framing = ["Content-Length", "connection", "transfer-encoding", "Keep-Alive"].map(|name| field(name, "5"));
        let answer = Answer { status: 204, fields: dates.into_iter().chain(framing).collect(), body: vec![] };
        let bytes = encode(&answer, context, DATE);
        assert_eq!(bytes, b"HTTP/1.1 204 No Content\r\nDate: Mon, 07 Nov 1994 08:49:37 GMT\r\n\r\n");
    }

    proptest::proptest! {
        #[test]
        fn an_answer_is_one_answer_whatever_is_in_it(
            status in 200_u16..600,
            fields in proptest::collection::vec(("[!#-'*+.0-9A-Z^-z|~-]{1,12}|[Dd]ate|Connection|content-length", "[^\r\n\0]{0,20}"), 0..8),
            body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..60),
            bits in 0..8,
        ) {
            let fields = fields.into_iter().map(|(name, value)| Field { name, value: value.into_bytes() }).collect();
            let pick = |bit: i32| bits & bit == 0;
            let context = Context {
                version: if pick(1) { Version::Http10 } else { Version::Http11 },
                body: if pick(2) { Presence::HeadOnly } else { Presence::Whole },
                persistence: if pick(4) { Persistence::Close } else { Persistence::KeepAlive },
            };
            super::super::naive::check_answer(&Answer { status, fields, body }, context);
        }
    }
}
