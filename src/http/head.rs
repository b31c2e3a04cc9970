//! The head of a request: where it ends, and what it says in exactly one way (RFC 9112 §2 to §6).
//!
//! httparse splits the head into tokens; every rule about what may stand in them is here. A head that two
//! implementations could understand differently is refused, because somebody behind us might be the other one. The
//! exact bytes are kept: a handoff can deliver them.

use std::borrow::Cow;

use super::body::Framing;
pub use super::error::{HeadError, HostFault};
use super::fields::{Known, is_token_byte};
use super::path;
use super::target::{Target, authority};

/// What bounds a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Request line, fields and the empty line together.
    pub head_bytes_max: usize,
    /// Field lines.
    pub headers_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { head_bytes_max: 32 << 10, headers_max: 100 }
    }
}

/// HTTP/1.0 or HTTP/1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0: no keep-alive unless asked for.
    Http10,
    /// HTTP/1.1.
    Http11,
}

impl Version {
    /// `1.0` or `1.1`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Http10 => "1.0",
            Self::Http11 => "1.1",
        }
    }
}

/// Whether the client wants to go on after this request (RFC 9112 §9.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// The connection ends with the answer.
    Close,
    /// Another request may follow.
    KeepAlive,
}

/// Whether the client waits for `100 Continue` before it sends its body (RFC 9110 §10.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expectation {
    /// It may be waiting.
    Continue,
    /// It is not.
    None,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    start: u32,
    end: u32,
}

impl Span {
    const EMPTY: Self = Self { start: 0, end: 0 };

    /// Where `part` lies in `whole`, which it was cut from.
    fn of(part: &[u8], whole: &[u8]) -> Self {
        let start = part.as_ptr().addr() - whole.as_ptr().addr();
        let narrow = |n: usize| u32::try_from(n).expect("a head is shorter than 4 GiB: the configuration bounds it");
        Self { start: narrow(start), end: narrow(start + part.len()) }
    }

    fn of_bytes(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.start as usize..self.end as usize]
    }
}

/// A part of the head that has one form. Most clients send it in that form already: then it is not stored again.
#[derive(Clone, Debug)]
enum Text {
    /// Stands nowhere in the head, or need not.
    Implied(&'static str),
    Made(Box<str>),
    Received(Span),
}

impl Text {
    fn of(text: Cow<'_, str>, whole: &[u8]) -> Self {
        match text {
            Cow::Borrowed(part) => Self::Received(Span::of(part.as_bytes(), whole)),
            Cow::Owned(made) => Self::Made(made.into()),
        }
    }
}

/// A complete, checked request head and the exact bytes that it was read from.
#[derive(Clone, Debug)]
pub struct RequestHead {
    bytes: Box<[u8]>,
    method: Span,
    target: Span,
    query: Option<Span>,
    version: Version,
    fields: Box<[(Span, Span)]>,
    path: Text,
    authority: Text,
    framing: Framing,
    persistence: Persistence,
    expectation: Expectation,
}

/// Returns the length of the head that `bytes` begins with, the empty line included, or `None` when its end is not there
/// yet. Bytes before `scanned` were looked at by an earlier call that returned `None`.
///
/// # Errors
/// What can be seen before the end: a first byte that begins no method, bare line breaks, too many bytes. `bytes` may go
/// on behind the head; nothing there is looked at.
pub fn end(bytes: &[u8], scanned: usize, limits: Limits) -> Result<Option<usize>, HeadError> {
    match bytes.first() {
        None => return Ok(None),
        Some(&first) if !is_token_byte(first) => return Err(HeadError::RequestLine),
        Some(_) => {}
    }
    let within = &bytes[..bytes.len().min(limits.head_bytes_max)];
    // The last three bytes of what was scanned may belong to the end.
    let from = scanned.saturating_sub(3);
    for at in memchr::memchr2_iter(b'\r', b'\n', &within[from..]).map(|at| from + at) {
        if within[at] == b'\r' {
            if within.get(at + 1).is_some_and(|&next| next != b'\n') {
                return Err(HeadError::BareLineBreak);
            }
        } else if at == 0 || within[at - 1] != b'\r' {
            return Err(HeadError::BareLineBreak);
        } else if at >= 3 && within[at - 2] == b'\n' {
            return Ok(Some(at + 1));
        }
    }
    if bytes.len() < limits.head_bytes_max {
        return Ok(None);
    }
    Err(if memchr::memchr(b'\n', within).is_none() {
        HeadError::TargetTooLong(limits.head_bytes_max)
    } else {
        HeadError::TooLarge(limits.head_bytes_max)
    })
}

impl RequestHead {
    /// Reads a complete head: `bytes` ends with its empty line ([`end`]).
    ///
    /// # Errors
    /// Whatever makes the head no HTTP/1 request that has one meaning; the first fault found.
    pub fn parse(bytes: &[u8], limits: Limits) -> Result<Self, HeadError> {
        let mut slots = [const { std::mem::MaybeUninit::uninit() }; HEADERS_ON_STACK];
        let mut many;
        let slots = if limits.headers_max <= HEADERS_ON_STACK {
            &mut slots[..limits.headers_max]
        } else {
            many = vec![std::mem::MaybeUninit::uninit(); limits.headers_max];
            &mut many[..]
        };
        let mut tokens = httparse::Request::new(&mut []);
        match tokens.parse_with_uninit_headers(bytes, slots) {
            Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
            // Shorter: httparse saw an end before ours, which `end` excludes. Partial: no end at all.
            Ok(_) => return Err(HeadError::RequestLine),
            Err(error) => return Err(from_tokenizer(error, bytes, limits)),
        }
        let method = tokens.method.ok_or(HeadError::RequestLine)?;
        let target = tokens.path.ok_or(HeadError::RequestLine)?;
        let version = if tokens.version == Some(1) { Version::Http11 } else { Version::Http10 };
        if method == "CONNECT" {
            return Err(HeadError::Connect);
        }

        let known = Known::read(tokens.headers)?;
        let framing = known.framing(version)?;
        let target_parts = Target::split(method, target)?;
        let host = known.host.map(authority).transpose()?;
        if host.is_none() && version == Version::Http11 {
            return Err(HeadError::Host(HostFault::Missing));
        }
        // Absolute-form replaces Host (RFC 9112 §3.2.2). Somebody behind us who reads only one of them must not find
        // another host than we did.
        let authority = match target_parts.absolute {
            Some(absolute) => {
                let own = authority(absolute.authority.as_bytes())?;
                if host.is_some_and(|host| !absolute.agree(&own, &host)) {
                    return Err(HeadError::Host(HostFault::Conflicting));
                }
                Some(own)
            }
            None => host,
        };
        if framing != Framing::None {
            if known.upgrade {
                return Err(HeadError::UnwantedBody("Upgrade"));
            }
            if method == "TRACE" {
                return Err(HeadError::UnwantedBody("TRACE"));
            }
        }

        Ok(Self {
            method: Span::of(method.as_bytes(), bytes),
            target: Span::of(target.as_bytes(), bytes),
            query: target_parts.query.map(|q| Span::of(q.as_bytes(), bytes)),
            version,
            fields: tokens
                .headers
                .iter()
                .map(|h| {
                    let value = if h.value.is_empty() { Span::EMPTY } else { Span::of(h.value, bytes) };
                    (Span::of(h.name.as_bytes(), bytes), value)
                })
                .collect(),
            path: match target_parts.path {
                "*" => Text::Implied("*"),
                "/" => Text::Implied("/"),
                path => Text::of(path::normalise(path)?, bytes),
            },
            authority: authority.map_or(Text::Implied(""), |text| Text::of(text, bytes)),
            framing,
            persistence: known.persistence(version),
            expectation: if known.expects_continue && version == Version::Http11 && framing != Framing::None {
                Expectation::Continue
            } else {
                Expectation::None
            },
            bytes: bytes.into(),
        })
    }

    /// The head as it was received, request line to empty line.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Case-sensitive (RFC 9110 §9.1).
    pub fn method(&self) -> &str {
        self.text(self.method)
    }

    /// As the client wrote it, in whatever form.
    pub fn target(&self) -> &str {
        self.text(self.target)
    }

    /// Normalised, without the query; `*` for a request about the server as a whole.
    pub fn path(&self) -> &str {
        self.read(&self.path)
    }

    /// Behind the first `?`, as the client wrote it.
    pub fn query(&self) -> Option<&str> {
        self.query.map(|span| self.text(span))
    }

    /// Of absolute-form or Host, in lower case with its port; empty in an HTTP/1.0 request without either.
    pub fn authority(&self) -> &str {
        self.read(&self.authority)
    }

    /// The authority without its port, and without the dot that may end a name: `example.org.` is the same host, and
    /// must not reach another route.
    pub fn host(&self) -> &str {
        let authority = self.authority();
        let host = match authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
            _ => authority,
        };
        host.strip_suffix('.').unwrap_or(host)
    }

    /// HTTP/1.0 or HTTP/1.1.
    pub fn version(&self) -> Version {
        self.version
    }

    /// How the body behind the head is delimited.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// What the client wants of the connection.
    pub fn persistence(&self) -> Persistence {
        self.persistence
    }

    /// Whether the client may wait before it sends the body.
    pub fn expectation(&self) -> Expectation {
        self.expectation
    }

    /// All fields in order: name as it was written, value without surrounding white space.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.fields.iter().map(|&(name, value)| (self.text(name), value.of_bytes(&self.bytes)))
    }

    /// Values of all fields of that name, in order.
    pub fn field_all(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.fields().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    fn read<'a>(&'a self, text: &'a Text) -> &'a str {
        match text {
            Text::Implied(text) => text,
            Text::Made(made) => made,
            Text::Received(span) => self.text(*span),
        }
    }

    fn text(&self, span: Span) -> &str {
        std::str::from_utf8(span.of_bytes(&self.bytes)).expect("httparse gave this span as text")
    }
}

/// Enough for the default `headers_max`, so that an ordinary head is split without an allocation.
const HEADERS_ON_STACK: usize = 100;

fn from_tokenizer(error: httparse::Error, bytes: &[u8], limits: Limits) -> HeadError {
    match error {
        httparse::Error::TooManyHeaders => HeadError::TooManyFields(limits.headers_max),
        httparse::Error::Version if names_another_version(bytes) => HeadError::Version,
        httparse::Error::Token | httparse::Error::Version | httparse::Error::Status => HeadError::RequestLine,
        _ => HeadError::Field,
    }
}

/// Whether the request line is one but for a well-formed version other than ours (`HTTP/2.0`), as opposed to none.
fn names_another_version(bytes: &[u8]) -> bool {
    let line = bytes.split(|&b| b == b'\r').next().unwrap_or_default();
    let mut words = line.split(|&b| b == b' ').skip(2);
    matches!((words.next(), words.next()), (Some(&[b'H', b'T', b'T', b'P', b'/', major, b'.', minor]), None)
        if major.is_ascii_digit() && minor.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::super::naive::{SMALL, check_head};
    use super::*;

    const LIMITS: Limits = Limits { head_bytes_max: 32 << 10, headers_max: 100 };

    fn parse(text: &str) -> Result<RequestHead, HeadError> {
        match end(text.as_bytes(), 0, LIMITS)? {
            Some(length) => RequestHead::parse(&text.as_bytes()[..length], LIMITS),
            None => panic!("no end in {text:?}"),
        }
    }

    fn refused(text: &str, status: u16) {
        match parse(text) {
            Err(error) => assert_eq!(error.status(), status, "{text:?}: {error}"),
            Ok(head) => panic!("{text:?} was accepted: {head:?}"),
        }
    }

    fn get(fields: &str) -> Result<RequestHead, HeadError> {
        parse(&format!("GET /a HTTP/1.1\r\nHost: x\r\n{fields}\r\n"))
    }

    #[test]
    fn a_head_says_what_it_says() {
        let head =
            parse("POST /A/%62?q=1?2 HTTP/1.1\r\nhOST: Example.ORG:80\r\nX:\r\nContent-Length: 3\r\nX:  b \r\n\r\nabc")
                .expect("well-formed");
        assert_eq!((head.method(), head.target(), head.path()), ("POST", "/A/%62?q=1?2", "/A/b"));
        assert_eq!((head.query(), head.authority(), head.host()), (Some("q=1?2"), "example.org:80", "example.org"));
        assert_eq!((head.framing(), head.persistence()), (Framing::Length(3), Persistence::KeepAlive));
        assert_eq!(head.field_all("x").collect::<Vec<_>>(), [&b""[..], b"b"]);
        assert!(head.bytes().ends_with(b"X:  b \r\n\r\n"));
    }

    #[test]
    fn splitting_anywhere_changes_nothing() {
        let text = b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n\r\nPOST";
        for cut in 0..text.len() {
            let first = end(&text[..cut], 0, LIMITS).expect("well-formed so far");
            let whole = match first {
                Some(length) => Some(length),
                None => end(text, cut, LIMITS).expect("well-formed"),
            };
            assert_eq!(whole, Some(text.len() - 4), "cut at {cut}");
        }
    }

    #[test]
    fn a_head_at_the_limit_fits_and_one_byte_more_does_not() {
        let text = format!("GET / HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "a".repeat(64));
        let limits = |head_bytes_max| Limits { head_bytes_max, headers_max: 2 };
        assert_eq!(end(text.as_bytes(), 0, limits(text.len())), Ok(Some(text.len())));
        assert_eq!(end(text.as_bytes(), 0, limits(text.len() - 1)), Err(HeadError::TooLarge(text.len() - 1)));
        assert_eq!(end(text.as_bytes(), 0, limits(10)), Err(HeadError::TargetTooLong(10)));
        assert!(RequestHead::parse(text.as_bytes(), limits(text.len())).is_ok());
        let fewer = Limits { headers_max: 1, ..limits(text.len()) };
        assert_eq!(RequestHead::parse(text.as_bytes(), fewer).err(), Some(HeadError::TooManyFields(1)));
        let many = Limits { headers_max: 200, ..limits(9000) };
        let text = |n: usize| format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(n - 1));
        assert!(RequestHead::parse(text(200).as_bytes(), many).is_ok());
        assert_eq!(RequestHead::parse(text(201).as_bytes(), many).err(), Some(HeadError::TooManyFields(200)));
    }

    #[test]
    fn line_breaks_are_crlf() {
        refused("GET / HTTP/1.1\nHost: x\r\n\r\n", 400);
        refused("GET / HTTP/1.1\r\nHost: x\n\r\n", 400);
        refused("GET / HTTP/1.1\rHost: x\r\n\r\n", 400);
        refused("GET / HTTP/1.1\r\nHost: x\rA: b\r\n\r\n", 400);
        refused("\nGET / HTTP/1.1\r\n\r\n", 400);
        refused(" GET / HTTP/1.1\r\nHost: x\r\n\r\n", 400);
        refused("\u{16}\u{3}\u{1}", 400);
    }

    #[test]
    fn request_lines() {
        for line in [
            "GET /",
            "GET  / HTTP/1.1",
            "GET / HTTP/1.1 ",
            "GET /a b HTTP/1.1",
            "GET /a b HTTP/2.0",
            "GET / http/1.1",
            "G@T / HTTP/1.1",
            "GET /\u{7f} HTTP/1.1",
            "GET /é HTTP/1.1",
            "GET /a#b HTTP/1.1",
            "GET a HTTP/1.1",
            "GET * HTTP/1.1",
            "GET ftp://x/ HTTP/1.1",
            "GET / HTTP/1",
            "GET /%zz HTTP/1.1",
            "GET /../x HTTP/1.1",
            "GET http:// HTTP/1.1",
            "GET http://u@x/ HTTP/1.1",
            "GET /\t HTTP/1.1",
        ] {
            refused(&format!("{line}\r\nHost: x\r\n\r\n"), 400);
        }
        for line in ["GET / HTTP/2.0", "GET / HTTP/1.2", "GET / HTTP/0.9", "GET / HTTP/3.1"] {
            refused(&format!("{line}\r\nHost: x\r\n\r\n"), 505);
        }
        refused("CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", 501);
        assert_eq!(parse("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n").map(|h| h.path().to_owned()), Ok("*".into()));
    }

    #[test]
    fn absolute_form_names_the_host_that_host_names() {
        let absolute = |target: &str, host: &str| parse(&format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        let head = absolute("http://Y:81?q", "y:81").expect("well-formed");
        assert_eq!((head.authority(), head.path(), head.query()), ("y:81", "/", Some("q")));
        assert_eq!(absolute("http://x:80/a", "x").map(|h| h.authority().to_owned()), Ok("x:80".into()));
        assert_eq!(absolute("http://x/a", "y").err(), Some(HeadError::Host(HostFault::Conflicting)));
        refused("GET http://y/ HTTP/1.1\r\n\r\n", 400);
        let alone = parse("GET http://y/ HTTP/1.0\r\n\r\n").expect("well-formed");
        assert_eq!((alone.authority(), alone.host()), ("y", "y"));
        let asked =
            |target: &str| parse(&format!("OPTIONS {target} HTTP/1.1\r\nHost: x\r\n\r\n")).map(|h| h.path().to_owned());
        assert_eq!(
            (asked("http://x"), asked("http://x/"), asked("http://x?")),
            (Ok("*".into()), Ok("/".into()), Ok("/".into()))
        );
    }

    #[test]
    fn what_has_one_form_already_is_not_stored_again() {
        let is_made = |text: &Text| matches!(text, Text::Made(_));
        let made = |target: &str, host: &str| {
            let head = parse(&format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")).expect("well-formed");
            (is_made(&head.path), is_made(&head.authority))
        };
        assert_eq!(made("/a/b?c", "example.org:80"), (false, false));
        assert_eq!(made("/", "[::1]"), (false, false));
        assert_eq!(made("/%61", "Example.org"), (true, true));
    }

    #[test]
    fn hosts() {
        refused("GET / HTTP/1.1\r\n\r\n", 400);
        assert_eq!(parse("GET / HTTP/1.0\r\n\r\n").map(|h| h.authority().to_owned()), Ok(String::new()));
        refused("GET / HTTP/1.0\r\nHost: x\r\nHost: x\r\n\r\n", 400);
        for host in
            ["", "a b", "a/b", "u@x", "x:y", "x:99999", "[::1", "[zz]", "[::1]80", "x:1:2", "a,b c", "\"x\"", "é"]
        {
            refused(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"), 400);
        }
        for (host, name) in [
            ("X", "x"),
            ("x:", "x"),
            ("[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
            ("127.0.0.1:8", "127.0.0.1"),
            ("x.:80", "x"),
            ("x.", "x"),
        ] {
            let head = parse(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).expect(host);
            assert_eq!(head.host(), name);
        }
    }

    #[test]
    fn field_lines() {
        for line in
            ["A : b", " A: b", "A", ": b", "A: b\r\n c", "A: \u{1}", "A: b\u{0}", "A\u{b}: b", "é: b", "A: b\u{7f}"]
        {
            assert_eq!(get(&format!("{line}\r\n")).map_err(HeadError::status).err(), Some(400), "{line:?}");
        }
        assert!(get("A: \u{e9}\tb\r\n").is_ok());
    }

    #[test]
    fn framing_has_one_meaning() {
        let framing = |fields: &str| get(fields).map(|h| h.framing()).map_err(HeadError::status);
        assert_eq!(framing(""), Ok(Framing::None));
        assert_eq!(framing("Content-Length: 0\r\n"), Ok(Framing::None));
        assert_eq!(framing("Content-Length: 7\r\n"), Ok(Framing::Length(7)));
        assert_eq!(framing("Content-Length: 9223372036854775807\r\n"), Ok(Framing::Length(i64::MAX as u64)));
        for value in [
            "",
            "+1",
            "-1",
            "-0",
            "007",
            "00",
            "1,1",
            "1 1",
            "0x1",
            "1.0",
            "1_0",
            "9223372036854775808",
            "18446744073709551617",
            "one",
        ] {
            assert_eq!(framing(&format!("Content-Length: {value}\r\n")), Err(400), "{value}");
        }
        assert_eq!(framing("Content-Length: 1\r\nContent-Length: 1\r\n"), Err(400));
        assert_eq!(framing("Transfer-Encoding: chunked\r\n"), Ok(Framing::Chunked));
        assert_eq!(framing("Transfer-Encoding: CHUNKED\r\n"), Ok(Framing::Chunked));
        assert_eq!(framing("Transfer-Encoding: chunked\r\nContent-Length: 1\r\n"), Err(400));
        assert_eq!(framing("Transfer-Encoding: gzip\r\nContent-Length: 1\r\n"), Err(400));
        for value in ["gzip", "identity", "gzip, chunked", "xchunked"] {
            assert_eq!(framing(&format!("Transfer-Encoding: {value}\r\n")), Err(501), "{value}");
        }
        for value in ["", "chunked, gzip", "chunked, chunked", ",chunked", "chunked,", "chunked;q=1", "\"chunked\""] {
            assert_eq!(framing(&format!("Transfer-Encoding: {value}\r\n")), Err(400), "{value}");
        }
        assert_eq!(framing("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), Err(400));
        refused("GET / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", 400);
        refused("TRACE / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n", 400);
        assert_eq!(framing("Upgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 1\r\n"), Err(400));
        assert_eq!(framing("Upgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 0\r\n"), Ok(Framing::None));
        assert_eq!(framing("Expect: something\r\n"), Err(417));
        assert_eq!(framing("Expect: 100-continue\r\nExpect: 100-continue\r\n"), Err(400));
        for name in
            ["Content_Length", "content.length", "CONTENT+LENGTH", "Transfer_Encoding", "Transfer-Encoding\u{7c}"]
        {
            let expected = if name.ends_with('|') { Ok(Framing::None) } else { Err(400) };
            assert_eq!(framing(&format!("{name}: 1\r\n")), expected, "{name}");
        }
    }

    #[test]
    fn what_connection_names_is_not_what_everybody_needs() {
        let connection =
            |value: &str| get(&format!("Connection: {value}\r\n")).map(|h| h.persistence()).map_err(HeadError::status);
        for value in ["", "keep-alive", "Upgrade, HTTP2-Settings", "TE", ", x ,", "\tKeep-Alive,x-own"] {
            assert_eq!(connection(value), Ok(Persistence::KeepAlive), "{value:?}");
        }
        assert_eq!(connection("close, keep-alive"), Ok(Persistence::Close));
        for value in [
            "Host",
            "x, Content-Length",
            "TRANSFER-ENCODING",
            "authorization",
            "X-Forwarded-For",
            "\"close\"",
            "close;x",
            "a b",
            "é",
        ] {
            assert_eq!(connection(value), Err(400), "{value:?}");
        }
        let authorized = |count: usize| get(&"Authorization: Bearer x\r\n".repeat(count)).map(drop);
        assert_eq!((authorized(1), authorized(2)), (Ok(()), Err(HeadError::Repeated("Authorization"))));
    }

    #[test]
    fn persistence_is_the_versions_unless_said() {
        let of = |text: &str| parse(text).expect("well-formed").persistence();
        assert_eq!(of("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), Persistence::KeepAlive);
        assert_eq!(of("GET / HTTP/1.1\r\nHost: x\r\nConnection: x, Close\r\n\r\n"), Persistence::Close);
        assert_eq!(of("GET / HTTP/1.0\r\n\r\n"), Persistence::Close);
        assert_eq!(of("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"), Persistence::KeepAlive);
    }

    const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "OPTIONS", "TRACE", "get", "M-SEARCH"];
    const TARGETS: [&str; 12] = [
        "/",
        "*",
        "/a/b?c",
        "/%61/..//b",
        "/a%2fb;c",
        "http://x",
        "http://x:80/a",
        "HTTPS://x?q",
        "http://[0::1]/",
        "/..;/",
        "/a\\b",
        "//x/..",
    ];
    const FIELDS: [&str; 16] = [
        "A: b\r\n",
        "B:\t c \r\n",
        "C:\r\n",
        "Connection: close\r\n",
        "Connection: keep-alive, x\r\n",
        "Content-Length: 5\r\n",
        "Content-Length: 0\r\n",
        "Content_Length: 5\r\n",
        "Expect: 100-continue\r\n",
        "Host: x\r\n",
        "Host: [0:0::1]:80\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Upgrade: h2c\r\n",
        "Cookie: a=b; c=\u{e9}\r\n",
        "Authorization: x\r\n",
    ];

    /// What heads are made of, whole and in splinters.
    fn splinter() -> impl Strategy<Value = &'static str> {
        let lines = [
            "GET / HTTP/1.1\r\nHost: x\r\n",
            "POST ",
            " HTTP/1.0\r\n",
            "Host:",
            "Content-Length:",
            "Transfer-Encoding:",
            "Connection:",
            "chunked",
        ];
        let bits = [
            "\r\n", "\r", "\n", "\r\n\r\n", " ", "\t", "0", "7", "+", ",", ":", ";", "/", "..", "%", "2", "f", "x",
            "\u{e9}", "\0", "\u{7f}", "\"", "#", "?", "[",
        ];
        select([&lines[..], &bits, &FIELDS, &TARGETS].concat())
    }

    proptest! {
        #[test]
        fn no_input_is_read_in_two_ways(bytes in proptest::collection::vec(any::<u8>(), 0..200), piece in 1usize..40) {
            check_head(&bytes, piece, SMALL);
        }

        #[test]
        fn nor_is_one_made_of_a_heads_splinters(parts in proptest::collection::vec(splinter(), 0..40), piece in 1usize..40) {
            check_head(parts.concat().as_bytes(), piece, SMALL);
        }

        #[test]
        fn nor_is_a_head_that_is_nearly_one(
            (method, target, fields) in (select(&METHODS[..]), select(&TARGETS[..]), proptest::collection::vec(select(&FIELDS[..]), 0..6)),
            version in select(&["1.0", "1.1"][..]),
            at in any::<prop::sample::Index>(),
            change in "|[\\x00-\\x7f]|\r\n| |:",
            cut in 0usize..3,
            piece in 1usize..40,
        ) {
            let text = format!("{method} {target} HTTP/{version}\r\nHost: x\r\n{}\r\n", fields.concat());
            check_head(text.as_bytes(), piece, SMALL);
            let at = at.index(text.len());
            let changed = [text.as_bytes().get(..at).unwrap(), change.as_bytes(), text.as_bytes().get(at + cut..).unwrap_or(b"")].concat();
            check_head(&changed, piece, SMALL);
        }

        #[test]
        fn a_kept_head_is_the_bytes(fields in proptest::collection::vec(("[A-Za-z-]{1,12}", "[ -~]{0,30}"), 0..20)) {
            let lines: String = fields.iter().map(|(n, v)| format!("X{n}: {v}\r\n")).collect();
            let text = format!("GET /p HTTP/1.1\r\nHost: h\r\n{lines}\r\n");
            let head = parse(&text).expect("well-formed");
            assert_eq!(head.bytes(), text.as_bytes());
            let got: Vec<_> = head.fields().skip(1).map(|(n, v)| (n[1..].to_owned(), String::from_utf8(v.to_vec()).unwrap())).collect();
            let sent: Vec<_> = fields.iter().map(|(n, v)| (n.clone(), v.trim().to_owned())).collect();
            assert_eq!(got, sent);
        }
    }
}
