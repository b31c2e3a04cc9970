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
    /// Each word there is for one.
    pub const WORDS: [&str; 2] = ["1.0", "1.1"];

    /// `1.0` or `1.1`.
    pub fn word(self) -> &'static str {
        Self::WORDS[match self {
            Self::Http10 => 0,
            Self::Http11 => 1,
        }]
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
    pub fn fields(&self) -> impl Iterator<Item = (&str, &[u8])> + Clone {
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
mod tests;
