//! A raw HTTP/1.1 request in a file: what is wrong with it is told by line and byte, because it was written by hand.

use std::borrow::Cow;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use crate::http::body::{Decoder, Framing};
use crate::http::head::{HeadError, Limits, RequestHead};
use crate::request::{Id, Origin, Peer, Request};

/// A request, complete with its body.
#[derive(Debug)]
pub(super) struct RequestFile {
    pub(super) request: Arc<Request>,
    /// Without its framing.
    pub(super) body: Vec<u8>,
    /// Something that was put right in reading.
    pub(super) note: Option<&'static str>,
}

impl RequestFile {
    /// Reads it as the gateway would read it from a client, except that line ends may all be bare line feeds: editors
    /// write those.
    pub(super) fn read(file: &Path) -> Result<Self, String> {
        Self::parse(&super::read(file)?).map_err(|fault| format!("{}:{fault}", file.display()))
    }

    /// The fault begins with its line.
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let find = |text: &[u8]| memchr::memmem::find(bytes, text);
        let (end, bare) = match (find(b"\r\n\r\n"), find(b"\n\n")) {
            (Some(end), bare) if bare.is_none_or(|bare| bare > end) => (end + 4, false),
            (_, Some(end)) => (end + 2, !bytes[..end].contains(&b'\r')),
            _ => {
                let line = bytes.split(|&byte| byte == b'\n').count();
                return Err(format!("{line}: byte {}: the empty line that ends a head is missing", bytes.len()));
            }
        };
        let (head, body) = bytes.split_at(end);
        let text = if bare { Cow::Owned(with_carriage_returns(head)) } else { Cow::Borrowed(head) };
        let head = parse_head(&text).map_err(|error| {
            let line = faulty_line(&text, error);
            let at: usize = head.split_inclusive(|&byte| byte == b'\n').take(line - 1).map(<[u8]>::len).sum();
            format!("{line}: byte {at}: {error}; the gateway answers {} and asks no policy", error.status())
        })?;
        let body = read_body(&head, body).map_err(|(at, fault)| {
            let before = &bytes[..end + at];
            let line = 1 + memchr::memchr_iter(b'\n', before).count();
            format!("{line}: byte {}: {fault}", before.len())
        })?;
        let peer = Peer::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 50000)));
        let origin = Origin { peer, local: "127.0.0.1:8080".into(), listener: "http".into() };
        let request = Arc::new(Request::new(Id::new(), head, Arc::new(origin), Some("/".into())));
        let note = bare.then_some("its lines end in LF; read as CR LF, which a client has to send");
        Ok(Self { request, body, note })
    }
}

fn parse_head(text: &[u8]) -> Result<RequestHead, HeadError> {
    let limits = Limits::default();
    // The end is looked for first in the gateway too, and finds bare line breaks.
    crate::http::head::end(text, 0, limits)?;
    RequestHead::parse(text, limits)
}

fn with_carriage_returns(head: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(head.len() + 32);
    for &byte in head {
        if byte == b'\n' {
            out.push(b'\r');
        }
        out.push(byte);
    }
    out
}

/// The line, from 1, without which a head would not have this fault.
fn faulty_line(head: &[u8], error: HeadError) -> usize {
    let lines: Vec<_> = head.split_inclusive(|&byte| byte == b'\n').collect();
    let is_host = |line: &&[u8]| line.get(..5).is_some_and(|name| name.eq_ignore_ascii_case(b"host:"));
    for count in 1..lines.len() {
        let mut part = lines[..count].concat();
        // One that only comes further down is no fault here.
        if !lines[..count].iter().any(is_host) && lines.iter().any(is_host) {
            part.extend_from_slice(b"Host: localhost\r\n");
        }
        part.extend_from_slice(b"\r\n");
        if parse_head(&part).is_err_and(|found| found == error) {
            return count;
        }
    }
    1
}

/// The whole body without its framing, or where in `bytes` it goes wrong.
fn read_body(head: &RequestHead, bytes: &[u8]) -> Result<Vec<u8>, (usize, String)> {
    let mut decoder = Decoder::new(head.framing());
    let (mut body, mut at) = (Vec::new(), 0);
    while !decoder.is_at_end() {
        let step = decoder.step(&bytes[at..]).map_err(|error| (at, error.to_string()))?;
        if step.consumed == 0 {
            return Err((bytes.len(), missing(head.framing(), body.len())));
        }
        body.extend_from_slice(&bytes[at..][step.data]);
        at += step.consumed;
    }
    // A line feed that an editor puts at the end of every file is nobody's second request.
    match &bytes[at..] {
        b"" | b"\n" | b"\r\n" => Ok(body),
        rest => Err((at, format!("{} bytes behind the request's end; a file holds one request", rest.len()))),
    }
}

fn missing(framing: Framing, found: usize) -> String {
    match framing {
        Framing::Length(length) => {
            format!("the body ends here, {found} bytes of the {length} that Content-Length says")
        }
        _ => "the body ends here, in the middle of its chunks".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        RequestFile::parse(text.as_bytes()).expect_err("it is refused")
    }

    #[test]
    fn a_fault_is_told_by_line_and_byte() {
        let said = refused("GET / HTTP/1.1\r\nHost: x\r\nA : 1\r\n\r\n");
        assert!(said.starts_with("3: byte 25: a malformed field line"), "{said}");
        let said = refused("GET / HTTP/1.1\nHost: x\nHost: y\n\n");
        assert!(said.starts_with("3: byte 23: more than one Host"), "{said}");
        let said = refused("GET / HTTP/1.1\r\nA: b\r\n\r\n");
        assert!(said.starts_with("1: byte 0: no Host"), "{said}");
        assert!(refused("GET  / HTTP/1.1\r\nHost: x\r\n\r\n").starts_with("1: byte 0: a malformed request line"));
        assert!(refused("GET / HTTP/1.1\r\nHost: x\r\n").starts_with("3: byte 25: the empty line"));
        assert!(refused("").starts_with("1: byte 0: the empty line"));
        let said = refused("GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n");
        assert!(said.contains("a bare carriage return or line feed"), "{said}");
    }

    #[test]
    fn a_body_is_read_to_its_end_and_no_further() {
        let read = |text: &str| RequestFile::parse(text.as_bytes());
        let head = "POST / HTTP/1.1\r\nHost: x\r\n";
        let whole = read(&format!("{head}Content-Length: 5\r\n\r\nhello")).expect("whole");
        assert_eq!((&whole.body[..], whole.note), (&b"hello"[..], None));
        let chunked = read(&format!("{head}Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"));
        assert_eq!(chunked.expect("whole").body, b"hello");
        let short = refused(&format!("{head}Content-Length: 9\r\n\r\nhello"));
        assert!(short.starts_with("5: byte 52: the body ends here, 5 bytes of the 9"), "{short}");
        let long = refused(&format!("{head}Content-Length: 2\r\n\r\nhello"));
        assert!(long.starts_with("5: byte 49: 3 bytes behind the request's end"), "{long}");
        assert!(read(&format!("{head}Content-Length: 5\r\n\r\nhello\n")).is_ok(), "an editor's last line feed");
        assert!(read("GET / HTTP/1.1\nHost: x\n\n").expect("whole").note.is_some());
    }
}
