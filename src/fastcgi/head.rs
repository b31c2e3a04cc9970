//! What a program writes in front of its body: fields, then an empty line (RFC 3875 §6). Pure.
//!
//! Lines end with CRLF, or with LF alone: programs write both. Apart from that they are read as strictly as a client's,
//! because what is passed on goes to a client: names are tokens, values have no control characters, nothing is folded.

use memchr::memchr;

use crate::http::fields::{is_token_byte, list};

/// What a head may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes, the empty line included.
    pub head_bytes_max: usize,
    /// Lines in front of it.
    pub headers_max: usize,
}

impl Default for Limits {
    /// The documented ones.
    fn default() -> Self {
        Self { head_bytes_max: 2 << 20, headers_max: 2000 }
    }
}

/// Why a head is none. The first number is its line's, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// In a value.
    #[error("a control character in line {0} of the answer's head")]
    Control(usize),
    /// A line begins with white space.
    #[error("a folded line in the answer's head, line {0}")]
    Folded(usize),
    /// It is no number, or there are two.
    #[error("a Content-Length that is no number, or not the only one, in line {0} of the answer's head")]
    Length(usize),
    /// No name and colon.
    #[error("line {0} of the answer's head is no field")]
    Name(usize),
    /// It is no status of an answer, or there are two.
    #[error("a Status that is none from 200 to 599, or not the only one, in line {0} of the answer's head")]
    Status(usize),
    /// Over `head_bytes_max`.
    #[error("the answer's head has more than {0} bytes (head_bytes_max)")]
    TooLarge(usize),
    /// Over `headers_max`.
    #[error("the answer's head has more than {0} fields (headers_max)")]
    TooMany(usize),
}

/// A field as the program wrote it: some names are variables, in which case counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// A token.
    pub name: String,
    /// Without the white space around it, and without control characters but tabs.
    pub value: Vec<u8>,
}

/// A head that is all there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// 200 to 599: what Status says, else 302 with a Location (RFC 3875 §6.2.3; a local one too, as nginx does), else 200.
    pub status: u16,
    /// All fields but Status and those of a connection, which a program has none of.
    pub fields: Vec<Field>,
    /// What Content-Length says; it is among the fields too.
    pub length: Option<u64>,
}

/// What belongs to a connection (RFC 9110 §7.6.1), and frames what is framed by records here.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "status",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Collects a head to its end.
#[derive(Clone, Debug)]
pub struct Reader {
    limits: Limits,
    bytes: Vec<u8>,
    /// Where the line begins that is being read.
    line: usize,
    count: usize,
}

impl Reader {
    /// In front of a head.
    pub fn new(limits: Limits) -> Self {
        Self { limits, bytes: Vec::new(), line: 0, count: 0 }
    }

    /// Whether anything has come.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Takes what belongs to the head; says how much that was once the head has ended with it.
    ///
    /// # Errors
    /// A limit is passed.
    pub fn push(&mut self, input: &[u8]) -> Result<Option<usize>, HeadError> {
        let mut at = 0;
        while at < input.len() {
            let end = memchr(b'\n', &input[at..]).map(|offset| at + offset + 1);
            let piece = &input[at..end.unwrap_or(input.len())];
            if self.bytes.len() + piece.len() > self.limits.head_bytes_max {
                return Err(HeadError::TooLarge(self.limits.head_bytes_max));
            }
            self.bytes.extend_from_slice(piece);
            at += piece.len();
            if end.is_some() {
                if matches!(&self.bytes[self.line..], b"\n" | b"\r\n") {
                    return Ok(Some(at));
                }
                self.count += 1;
                if self.count > self.limits.headers_max {
                    return Err(HeadError::TooMany(self.limits.headers_max));
                }
                self.line = self.bytes.len();
            }
        }
        Ok(None)
    }

    /// Understands a head that has ended.
    ///
    /// # Errors
    /// A line of it cannot be passed on.
    pub fn finish(self) -> Result<Head, HeadError> {
        let mut fields = Vec::new();
        let (mut status, mut length, mut has_location) = (None, None, false);
        for (at, line) in self.bytes[..self.line].split_inclusive(|&b| b == b'\n').enumerate() {
            let number = at + 1;
            let field = field(line, number)?;
            if field.name.eq_ignore_ascii_case("status") && status.replace(code(&field.value, number)?).is_some() {
                return Err(HeadError::Status(number));
            }
            if field.name.eq_ignore_ascii_case("content-length")
                && length.replace(decimal(&field.value).ok_or(HeadError::Length(number))?).is_some()
            {
                return Err(HeadError::Length(number));
            }
            has_location |= field.name.eq_ignore_ascii_case("location");
            fields.push(field);
        }
        let options = fields.iter().filter(|field| field.name.eq_ignore_ascii_case("connection"));
        let options: Vec<_> = options.flat_map(|field| list(&field.value)).map(<[u8]>::to_ascii_lowercase).collect();
        fields.retain(|field| {
            let name = field.name.to_ascii_lowercase();
            // A program that could name its length away would have it unchecked.
            let is_named = name != "content-length" && options.iter().any(|option| *option == name.as_bytes());
            !is_named && !HOP_BY_HOP.contains(&name.as_str())
        });
        let status = status.unwrap_or(if has_location { 302 } else { 200 });
        Ok(Head { status, fields, length })
    }
}

fn field(line: &[u8], number: usize) -> Result<Field, HeadError> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(HeadError::Folded(number));
    }
    let colon = memchr(b':', line).filter(|&at| at > 0).ok_or(HeadError::Name(number))?;
    let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
    if !name.iter().copied().all(is_token_byte) {
        return Err(HeadError::Name(number));
    }
    // What is around a value may be trimmed, but is no control character either.
    if line.iter().any(|&b| (b < 0x20 && b != b'\t') || b == 0x7F) {
        return Err(HeadError::Control(number));
    }
    let name = name.iter().map(|&b| char::from(b)).collect();
    Ok(Field { name, value: value.to_vec() })
}

/// `404`, `404 Not Found` (RFC 3875 §6.3.3).
fn code(value: &[u8], number: usize) -> Result<u16, HeadError> {
    let fault = HeadError::Status(number);
    let digits = value.split(|&b| b == b' ' || b == b'\t').next().filter(|digits| digits.len() == 3).ok_or(fault)?;
    let code = decimal(digits).and_then(|code| u16::try_from(code).ok());
    code.filter(|code| (200..=599).contains(code)).ok_or(fault)
}

fn decimal(digits: &[u8]) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let number: u64 = is_number.then(|| std::str::from_utf8(digits).ok()?.parse().ok()).flatten()?;
    // More would be negative for many.
    i64::try_from(number).is_ok().then_some(number)
}

#[cfg(test)]
mod tests {
    use super::super::naive;
    use super::*;
    use proptest::prelude::*;

    fn read(text: &[u8]) -> Result<Head, HeadError> {
        let mut reader = Reader::new(Limits::default());
        assert_eq!(reader.push(text)?, Some(text.len()), "{}", String::from_utf8_lossy(text));
        reader.finish()
    }

    #[track_caller]
    fn check(text: &str, status: u16, fields: &[(&str, &str)]) {
        let head = read(text.as_bytes()).expect("a head");
        let found: Vec<_> = head.fields.iter().map(|f| (&f.name[..], String::from_utf8_lossy(&f.value))).collect();
        assert_eq!(head.status, status, "{text:?}");
        assert_eq!(found, fields.iter().map(|&(n, v)| (n, v.into())).collect::<Vec<_>>(), "{text:?}");
    }

    #[test]
    fn heads_are_what_cgi_says() {
        check("Content-Type: text/html\r\n\r\n", 200, &[("Content-Type", "text/html")]);
        check("Status: 404 Not Found\nA:1\n\n", 404, &[("A", "1")]);
        check("sTATUS:599\r\n\n", 599, &[]);
        check("Status: 200\n\r\n", 200, &[]);
        check("\r\n", 200, &[]);
        check("\n", 200, &[]);
        check("Location: https://x/\n\n", 302, &[("Location", "https://x/")]);
        check("Location: /x\n\n", 302, &[("Location", "/x")]);
        check("Location: /x\nStatus: 201 Created\n\n", 201, &[("Location", "/x")]);
        check("A: \t v w\t \nA:\n\n", 200, &[("A", "v w"), ("A", "")]);
        check("Variable-AUTH_METHOD: x\n\n", 200, &[("Variable-AUTH_METHOD", "x")]);
        check("Content-Length: 12\n\n", 200, &[("Content-Length", "12")]);
        assert_eq!(read(b"content-length: 9223372036854775807\n\n").map(|h| h.length), Ok(Some(i64::MAX as u64)));
    }

    #[test]
    fn what_is_the_connections_is_nobodys_here() {
        check(
            "Connection: close, X-Own, Content-Length\nKeep-Alive: 1\nProxy-Connection: x\nTE: x\nTrailer: x\n\
             Transfer-Encoding: chunked\nUpgrade: h2c\nProxy-Authenticate: x\nx-own: 1\nContent-Length: 1\nB: 2\n\n",
            200,
            &[("Content-Length", "1"), ("B", "2")],
        );
    }

    #[test]
    fn what_cannot_be_passed_on_is_refused() {
        for (text, error) in [
            ("A: 1\n B: 2\n\n", HeadError::Folded(2)),
            ("\tA: 1\n\n", HeadError::Folded(1)),
            ("A 1\n\n", HeadError::Name(1)),
            (": 1\n\n", HeadError::Name(1)),
            ("A : 1\n\n", HeadError::Name(1)),
            ("A\u{e9}: 1\n\n", HeadError::Name(1)),
            ("HTTP/1.1 200 OK\n\n", HeadError::Name(1)),
            ("A: 1\rB: 2\n\n", HeadError::Control(1)),
            ("A: 1\r\r\n\n", HeadError::Control(1)),
            ("A: \0\n\n", HeadError::Control(1)),
            ("A: \x7f\n\n", HeadError::Control(1)),
            ("A: \x0b1\n\n", HeadError::Control(1)),
            ("Status: 100 Continue\n\n", HeadError::Status(1)),
            ("Status: 199\n\n", HeadError::Status(1)),
            ("Status: 600\n\n", HeadError::Status(1)),
            ("Status: 20\n\n", HeadError::Status(1)),
            ("Status: 2000\n\n", HeadError::Status(1)),
            ("Status: OK\n\n", HeadError::Status(1)),
            ("Status:\n\n", HeadError::Status(1)),
            ("Status: 200\nStatus: 200\n\n", HeadError::Status(2)),
            ("Content-Length: 1\nContent-Length: 1\n\n", HeadError::Length(2)),
            ("Content-Length: 1, 1\n\n", HeadError::Length(1)),
            ("Content-Length: +1\n\n", HeadError::Length(1)),
            ("Content-Length:\n\n", HeadError::Length(1)),
            ("Content-Length: 9223372036854775808\n\n", HeadError::Length(1)),
        ] {
            assert_eq!(read(text.as_bytes()), Err(error), "{text:?}");
        }
    }

    #[test]
    fn limits_hold_at_their_number_and_not_past_it() {
        let push =
            |head_bytes_max, headers_max, text: &[u8]| Reader::new(Limits { head_bytes_max, headers_max }).push(text);
        assert_eq!(push(7, 9, b"A: 1\r\n\n"), Ok(Some(7)));
        assert_eq!(push(6, 9, b"A: 1\r\n\n"), Err(HeadError::TooLarge(6)));
        assert_eq!(push(6, 9, b"A: 12345"), Err(HeadError::TooLarge(6)));
        assert_eq!(push(99, 2, b"A: 1\nB: 2\n\n"), Ok(Some(11)));
        assert_eq!(push(99, 1, b"A: 1\nB: 2\n\n"), Err(HeadError::TooMany(1)));
        let large = [b"A: ", &[b'v'; (2 << 20) - 5][..], b"\n\n"].concat();
        assert_eq!(push(2 << 20, 2000, &large), Ok(Some(large.len())));
        assert_eq!(push((2 << 20) - 1, 2000, &large), Err(HeadError::TooLarge((2 << 20) - 1)));
    }

    #[test]
    fn a_head_split_anywhere_is_the_same() {
        naive::check_head(b"Status: 404 Not Found\r\nContent-Type: text/html\n\r\nbody\n\n", 1, Limits::default());
        for piece in 1..60 {
            naive::check_head(
                b"Status: 404 Not Found\r\nContent-Type: text/html\n\r\nbody\n\n",
                piece,
                Limits::default(),
            );
        }
    }

    proptest! {
        #[test]
        fn lines_mean_what_a_reader_of_lines_finds(
            text in "((Status: ?[0-9]{3}|Content-Length: [0-9]{1,3}|[A-Za-z -]{1,5}:[ -~\\t\\r]{0,6}|Connection: [a-z,]{1,4}|[a-z :]{0,3})\r?\n){0,5}\r?\n?.{0,5}",
            piece in 1..30_usize,
        ) {
            naive::check_head(text.as_bytes(), piece, Limits::default());
            naive::check_head(text.as_bytes(), piece, Limits { head_bytes_max: 40, headers_max: 2 });
        }

        #[test]
        fn anything_may_come(bytes in prop::collection::vec(any::<u8>(), 0..60), piece in 1..9_usize) {
            naive::check_head(&bytes, piece, Limits::default());
        }
    }
}
