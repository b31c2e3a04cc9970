//! What must hold for any input, told by a second reading.
//!
//! The readers here are as simple as the text of the RFCs: a head is lines, a line is a name, a colon and a value; nothing
//! is streamed, and nothing is fast. They are laxer than ours on purpose. Whatever ours accepts, they must accept, and find
//! the same in it. The property tests call them with made-up input, the fuzzers (`tests/fuzz`) with what they come up with.

#![allow(dead_code, missing_docs, unreachable_pub, reason = "tests and fuzzers each take what they need")]

use super::body::{Decoder, Framing};
use super::head::{self, HeadError, Limits, Persistence, RequestHead, Version, end};
use super::path::{Plus, decode, normalise};
use super::response::{Answer, Context, Presence, encode, is_framing};

/// A head as lines say it.
#[derive(Debug, PartialEq, Eq)]
struct Reading {
    method: String,
    target: String,
    version: String,
    fields: Vec<(String, Vec<u8>)>,
}

/// RFC 9112 §2.1, §3, §5: lines that end with CRLF, the last of them empty.
fn read_head(bytes: &[u8]) -> Reading {
    let text: String = bytes.iter().map(|&b| char::from(b)).collect();
    let mut lines: Vec<&str> = text.split("\r\n").collect();
    assert_eq!(lines.pop(), Some(""), "it ends with a line break");
    assert_eq!(lines.pop(), Some(""), "and with an empty line");
    let words: Vec<&str> = lines[0].split(' ').collect();
    let [method, target, version] = words[..] else { panic!("not three words: {:?}", lines[0]) };
    let field = |line: &&str| {
        let (name, value) = line.split_once(':').expect("a colon in each line");
        let value = value.trim_matches([' ', '\t']);
        (name.to_owned(), value.chars().map(|c| u8::try_from(u32::from(c)).expect("from a byte")).collect())
    };
    Reading {
        method: method.to_owned(),
        target: target.to_owned(),
        version: version.to_owned(),
        fields: lines[1..].iter().map(field).collect(),
    }
}

impl Reading {
    fn all(&self, name: &str) -> Vec<String> {
        let of = |(n, _): &&(String, Vec<u8>)| n.to_lowercase() == name;
        self.fields.iter().filter(of).map(|(_, value)| String::from_utf8_lossy(value).into_owned()).collect()
    }

    /// Members of all fields of a name, as in one list.
    fn list(&self, name: &str) -> Vec<String> {
        let members = self.all(name);
        members.iter().flat_map(|v| v.split(',')).map(|m| m.trim_matches([' ', '\t']).to_lowercase()).collect()
    }

    /// RFC 9112 §6.3, the length of a request.
    fn framing(&self) -> Framing {
        let (lengths, codings) = (self.all("content-length"), self.list("transfer-encoding"));
        match (&lengths[..], &codings[..]) {
            ([], []) => Framing::None,
            ([length], []) => match length.parse().expect("digits") {
                0 => Framing::None,
                length => Framing::Length(length),
            },
            ([], [coding]) if coding == "chunked" => Framing::Chunked,
            other => panic!("accepted in spite of {other:?}"),
        }
    }

    /// RFC 9112 §9.3.
    fn persistence(&self) -> Persistence {
        let options = self.list("connection");
        let says = |option: &str| options.iter().any(|o| o == option);
        if !says("close") && (self.version == "HTTP/1.1" || says("keep-alive")) {
            Persistence::KeepAlive
        } else {
            Persistence::Close
        }
    }

    /// RFC 9112 §3.2, §3.3: of the target, or else of Host; then the path, then the query.
    fn parts(&self) -> (String, String, Option<String>) {
        let (rest, query) = match self.target.split_once('?') {
            Some((rest, query)) => (rest, Some(query.to_owned())),
            None => (&*self.target, None),
        };
        let (authority, path) = match rest.split_once("://") {
            Some((_, rest)) if !self.target.starts_with('/') => {
                rest.split_once('/').map_or((rest, String::new()), |(a, path)| (a, format!("/{path}")))
            }
            _ => ("", rest.to_owned()),
        };
        let hosts = self.all("host");
        assert!(hosts.len() <= 1 && (hosts.len() == 1 || self.version == "HTTP/1.0"), "{hosts:?}");
        let authority =
            if authority.is_empty() { hosts.first().cloned().unwrap_or_default() } else { authority.to_owned() };
        (authority.to_lowercase(), path, query)
    }
}

/// RFC 3986 §6.2.2: escapes of unreserved characters decoded, then segments, then dots.
fn read_path(path: &str) -> String {
    let mut text = String::new();
    let mut rest = path;
    while let Some(first) = rest.chars().next() {
        let escaped = (first == '%').then(|| char::from(u8::from_str_radix(&rest[1..3], 16).expect("two digits")));
        match escaped {
            Some(c) if c.is_ascii_alphanumeric() || "-._~".contains(c) => text.push(c),
            Some(_) => text += &rest[..3].to_uppercase(),
            None => text.push(first),
        }
        rest = &rest[if escaped.is_some() { 3 } else { 1 }..];
    }
    let mut kept: Vec<&str> = Vec::new();
    let ends_in_directory = ["/", "/.", "/.."].iter().any(|end| text.ends_with(end));
    for segment in text.split('/').filter(|s| !s.is_empty() && *s != ".") {
        if segment == ".." {
            kept.pop().expect("never above the root");
        } else {
            kept.push(segment);
        }
    }
    let joined: String = kept.iter().map(|segment| format!("/{segment}")).collect();
    if ends_in_directory || joined.is_empty() { joined + "/" } else { joined }
}

/// What [`end`] says when the bytes come in pieces of `piece`.
fn end_in_pieces(bytes: &[u8], piece: usize, limits: Limits) -> Result<Option<usize>, HeadError> {
    let mut scanned = 0;
    while scanned < bytes.len() {
        let here = bytes.len().min(scanned + piece);
        match end(&bytes[..here], scanned, limits) {
            Ok(None) => scanned = here,
            result => return result,
        }
    }
    Ok(None)
}

/// Whatever the bytes: a head ends in the same place however it arrives, and says one thing or is refused.
pub fn check_head(bytes: &[u8], piece: usize, limits: Limits) {
    let whole = end(bytes, 0, limits);
    assert_eq!(end_in_pieces(bytes, piece.max(1), limits), whole, "in pieces of {piece}");
    let Ok(Some(length)) = whole else { return };
    assert!(length <= limits.head_bytes_max);
    let Ok(head) = RequestHead::parse(&bytes[..length], limits) else { return };
    assert_eq!(head.bytes(), &bytes[..length]);

    let reading = read_head(&bytes[..length]);
    let version = if head.version() == Version::Http11 { "HTTP/1.1" } else { "HTTP/1.0" };
    assert_eq!((head.method(), head.target(), version), (&*reading.method, &*reading.target, &*reading.version));
    let fields: Vec<(String, Vec<u8>)> = head.fields().map(|(n, v)| (n.to_owned(), v.to_vec())).collect();
    assert_eq!(fields, reading.fields);
    assert!(fields.len() <= limits.headers_max);
    assert!(fields.iter().all(|(_, value)| !value.iter().any(|b| b.is_ascii_control() && *b != b'\t')));
    assert_eq!((head.framing(), head.persistence()), (reading.framing(), reading.persistence()));
    check_target(&head, &reading);

    let again = RequestHead::parse(&written_again(&head), limits).expect("what was accepted is accepted");
    assert_eq!(meaning(&again), meaning(&head));
}

fn check_target(head: &RequestHead, reading: &Reading) {
    let (authority, path, query) = reading.parts();
    assert_eq!(head.query(), query.as_deref());
    match head.path() {
        "*" => assert!(head.method() == "OPTIONS" && matches!(&*path, "*" | "")),
        own => {
            assert_eq!(own, read_path(&path));
            assert_eq!(normalise(own).as_deref(), Ok(own), "one spelling has one spelling");
            assert!(own.starts_with('/') && !own.contains("//") && !own.contains("/../") && !own.contains("/./"));
        }
    }
    // An IPv6 address has a shortest form; everything else stands there as it was said.
    if !authority.starts_with('[') {
        assert_eq!(head.authority(), authority);
    }
    assert!(head.authority().starts_with(head.host()) && !head.host().bytes().any(|b| b.is_ascii_uppercase()));
    assert!(head.host().bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.[]:".contains(&b)), "{}", head.host());
}

/// The head from what we understood of it, in the plainest form.
fn written_again(head: &RequestHead) -> Vec<u8> {
    let version = head.version().word();
    let mut out = format!("{} {} HTTP/{version}\r\n", head.method(), head.target()).into_bytes();
    for (name, value) in head.fields() {
        out.extend_from_slice(&[name.as_bytes(), b":", value, b"\r\n"].concat());
    }
    [&out[..], b"\r\n"].concat()
}

fn meaning(head: &RequestHead) -> impl PartialEq + std::fmt::Debug + use<> {
    let fields: Vec<_> = head.fields().map(|(n, v)| (n.to_owned(), v.to_vec())).collect();
    let target = (head.path().to_owned(), head.query().map(str::to_owned), head.authority().to_owned());
    (head.method().to_owned(), target, fields, (head.framing(), head.persistence(), head.expectation()))
}

/// What became of a body: its data and how many bytes it took, or that it did not end, or that it was refused.
type Read = Result<Option<(Vec<u8>, usize)>, ()>;

fn decode_in_pieces(framing: Framing, bytes: &[u8], piece: usize) -> Read {
    let (mut decoder, mut data, mut at) = (Decoder::new(framing), Vec::new(), 0);
    while !decoder.is_at_end() && at < bytes.len() {
        let shown = &bytes[at..bytes.len().min(at + piece)];
        let step = decoder.step(shown).map_err(drop)?;
        assert!(step.consumed > 0 && step.consumed <= shown.len(), "it gets on");
        assert_eq!(step.end, decoder.is_at_end());
        data.extend_from_slice(&shown[step.data]);
        at += step.consumed;
    }
    Ok(decoder.is_at_end().then_some((data, at)))
}

/// RFC 9112 §7.1, over bytes that are all there: size line, data, line break; after size 0 lines until an empty one.
fn read_chunks(bytes: &[u8]) -> (Vec<u8>, usize) {
    let line = |from: usize| {
        let length = bytes[from..].windows(2).position(|w| w == b"\r\n").expect("a line break");
        (std::str::from_utf8(&bytes[from..from + length]), from + length + 2)
    };
    let (mut data, mut at) = (Vec::new(), 0);
    loop {
        let (text, behind) = line(at);
        // Quoted extensions may hold what is no UTF-8; the size stands before them.
        let size = match text {
            Ok(text) => text.split(';').next().expect("a first part").to_owned(),
            Err(_) => bytes[at..].iter().map(|&b| char::from(b)).take_while(|&c| c != ';').collect(),
        };
        let size = usize::from_str_radix(&size, 16).expect("hexadecimal");
        at = behind;
        if size == 0 {
            break;
        }
        data.extend_from_slice(&bytes[at..at + size]);
        assert_eq!(&bytes[at + size..at + size + 2], b"\r\n");
        at += size + 2;
    }
    loop {
        let from = at;
        (_, at) = line(from);
        if at == from + 2 {
            return (data, at);
        }
        let field: String = bytes[from..at].iter().map(|&b| char::from(b)).collect();
        let (name, _) = field.split_once(':').expect("a trailer is a field");
        assert!(!["content-length", "transfer-encoding", "host"].contains(&&*name.to_lowercase()));
    }
}

/// Whatever the bytes: a body ends in the same place however it arrives, and its data is what the second reader finds.
pub fn check_body(framing: Framing, bytes: &[u8], piece: usize) {
    let whole = decode_in_pieces(framing, bytes, bytes.len().max(1));
    assert_eq!(decode_in_pieces(framing, bytes, piece.max(1)), whole, "in pieces of {piece}");
    let Ok(Some((data, length))) = whole else { return };
    match framing {
        Framing::Chunked => assert_eq!((data, length), read_chunks(&bytes[..length])),
        Framing::Length(n) => assert_eq!((&data[..], length as u64), (&bytes[..length], n)),
        Framing::None => assert_eq!((data.len(), length), (0, 0)),
    }
}

/// Requests of one client until the first that is refused, or is not all there: method, target and body of each; and why it
/// ended. The bytes come in pieces of `piece`, each looked at as soon as it is there.
fn read_connection(bytes: &[u8], piece: usize, limits: Limits) -> (Vec<(String, String, Vec<u8>)>, String) {
    let (mut requests, mut at, mut here) = (Vec::new(), 0, 0);
    loop {
        let mut scanned = 0;
        let head = loop {
            match end(&bytes[at..here], scanned, limits) {
                Ok(Some(length)) => break RequestHead::parse(&bytes[at..at + length], limits),
                Ok(None) if here == bytes.len() => return (requests, format!("{} bytes of a head", here - at)),
                Ok(None) => (scanned, here) = (here - at, bytes.len().min(here + piece)),
                Err(error) => break Err(error),
            }
        };
        let head = match head {
            Ok(head) => head,
            Err(error) => return (requests, format!("{error} at {at}")),
        };
        at += head.bytes().len();
        let (mut decoder, mut data) = (Decoder::new(head.framing()), Vec::new());
        while !decoder.is_at_end() {
            if at == here {
                if here == bytes.len() {
                    return (requests, format!("{} bytes of a body", data.len()));
                }
                here = bytes.len().min(here + piece);
            }
            match decoder.step(&bytes[at..here]) {
                Ok(step) => {
                    data.extend_from_slice(&bytes[at..here][step.data]);
                    at += step.consumed;
                }
                Err(error) => return (requests, format!("{error} behind {} bytes", data.len())),
            }
        }
        requests.push((head.method().to_owned(), head.target().to_owned(), data));
    }
}

/// Whatever the bytes: several requests of one client are the same requests however they arrive.
pub fn check_connection(bytes: &[u8], piece: usize) {
    let whole = read_connection(bytes, bytes.len().max(1), SMALL);
    assert_eq!(read_connection(bytes, piece.max(1), SMALL), whole, "in pieces of {piece}");
}

/// Whatever the text: a path has one spelling, which has no other, and decoding neither panics nor grows.
pub fn check_path(text: &str) {
    for plus in [Plus::Literal, Plus::Space] {
        // A byte that is no UTF-8 becomes a character of three.
        assert!(decode(text, plus).len() <= 3 * text.len());
    }
    if !text.starts_with('/') || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return;
    }
    let Ok(path) = normalise(text) else { return };
    assert!(path.len() <= text.len() + 1);
    assert_eq!(normalise(&path).as_deref(), Ok(&*path));
    assert_eq!(path, read_path(text));
    let decoded_once = decode(&path, Plus::Literal).replace('\\', "/");
    let has_dots = |path: &str| path.split('/').any(|s| matches!(s.split(';').next(), Some("." | "..")));
    assert!(!has_dots(&decoded_once), "{path} hides a dot segment");
}

/// Whatever the fields that a policy may give: what is written is one answer, with these fields and this body.
pub fn check_answer(answer: &Answer, context: Context) {
    let bytes = encode(answer, context, "Sun, 06 Nov 1994 08:49:37 GMT");
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").expect("an empty line") + 4;
    let text: String = bytes[..end].iter().map(|&b| char::from(b)).collect();
    let lines: Vec<&str> = text.trim_end_matches("\r\n").split("\r\n").collect();
    assert!(lines[0].starts_with(&format!("HTTP/1.1 {} ", answer.status)));
    assert!(!text.contains('\0') && text.matches('\n').count() == lines.len() + 1, "each ends a line");
    let field = |line: &&str| {
        let (name, value) = line.split_once(": ").expect("a field");
        (name.to_lowercase(), value.to_owned())
    };
    let written: Vec<(String, String)> = lines[1..].iter().map(field).collect();
    let given = answer.fields.iter().filter(|f| !is_framing(&f.name));
    let given = given.map(|f| (f.name.to_lowercase(), f.value.iter().map(|&b| char::from(b)).collect::<String>()));
    let own: Vec<_> = written.iter().filter(|(n, _)| !is_framing(n)).cloned().collect();
    let (dates, given): (Vec<_>, Vec<_>) = given.partition(|(name, _)| name == "date");
    assert_eq!(own.iter().filter(|(name, _)| name == "date").count(), 1, "one date, whoever gave {dates:?}");
    assert_eq!(own.into_iter().filter(|(name, _)| name != "date").collect::<Vec<_>>(), given);

    let all = |name: &str| written.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect::<Vec<_>>();
    let closes = context.persistence == Persistence::Close;
    assert_eq!(all("connection").contains(&"close"), closes);
    assert!(all("transfer-encoding").is_empty());
    let body = &bytes[end..];
    let length = match &all("content-length")[..] {
        [] => None,
        [length] => Some(length.parse::<usize>().expect("digits")),
        several => panic!("{several:?}"),
    };
    match (answer.status, context.body) {
        (204 | 304, _) => assert_eq!((length, body), (None, &b""[..])),
        (205, _) => assert_eq!((length, body), (Some(0), &b""[..])),
        (_, Presence::HeadOnly) => assert_eq!((length, body), (Some(answer.body.len()), &b""[..])),
        (_, Presence::Whole) => assert_eq!((length, body), (Some(answer.body.len()), &answer.body[..])),
    }
}

/// The limits that arbitrary input is read with: small enough to be reached.
pub const SMALL: Limits = head::Limits { head_bytes_max: 512, headers_max: 8 };

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What conversations are made of: whole requests, bodies that fit, and splinters.
    fn part() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec![
            "GET /a HTTP/1.1\r\nHost: x\r\n\r\n",
            "POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n",
            "POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HEAD /d HTTP/1.0\r\n\r\n",
            "hello",
            "5\r\nhello\r\n",
            "5;a=\"b\"\r\nGET /\r\n",
            "0\r\n\r\n",
            "0\r\nA: b\r\n\r\n",
            "\r\n",
            "\r",
            "\n",
            "G",
            "0",
            " ",
        ])
    }

    proptest! {
        #[test]
        fn a_conversation_is_the_same_however_it_arrives(parts in prop::collection::vec(part(), 0..24), piece in 1usize..60) {
            check_connection(parts.concat().as_bytes(), piece);
        }
    }

    #[test]
    fn a_conversation_is_read_as_what_it_is() {
        let text = "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcPOST /b HTTP/1.1\r\nHost: x\r\n\
                    Transfer-Encoding: chunked\r\n\r\n2\r\nde\r\n0\r\n\r\nGET / HTTP/2.0\r\n\r\n";
        let (requests, why) = read_connection(text.as_bytes(), 3, SMALL);
        let request = |target: &str, body: &str| ("POST".to_owned(), target.to_owned(), body.as_bytes().to_vec());
        assert_eq!(requests, [request("/a", "abc"), request("/b", "de")]);
        assert_eq!(why, "not HTTP/1.0 or HTTP/1.1 at 120");
    }
}
