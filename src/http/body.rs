//! How a body is delimited, and where it ends (RFC 9112 §6, §7).
//!
//! A decoder is given bytes that were only looked at; it says which of them are data and how many belong to the body, so
//! that exactly those are taken from the socket and the next request stays where it is.

use std::ops::Range;

use super::fields::is_token_byte;

/// How the body behind a head is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Chunks until the empty one (RFC 9112 §7.1).
    Chunked,
    /// That many bytes; never 0.
    Length(u64),
    /// There is none.
    None,
}

/// Why a chunked body is refused (400).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// A chunk line that is malformed, names more than 63 bits, or is longer than [`CHUNK_LINE_BYTES_MAX`].
    #[error("a malformed chunk")]
    Chunk,
    /// A trailer section that is malformed, longer than [`TRAILER_BYTES_MAX`], or has a field that belongs into a head.
    #[error("a malformed trailer")]
    Trailer,
}

/// A chunk's size and its extensions, the line break included. Extensions mean nothing to us, and are where the size of
/// a request can be hidden.
pub const CHUNK_LINE_BYTES_MAX: usize = 256;
/// All trailer fields together.
pub const TRAILER_BYTES_MAX: usize = 8 << 10;

/// What may not stand behind a body, because somebody who merges trailers into the head would understand another request
/// (RFC 9110 §6.5.1): framing, routing, authentication, what the content is.
const HEAD_ONLY: [&str; 16] = [
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-for",
];

/// The longest of them.
const HEAD_ONLY_BYTES_MAX: usize = 17;

/// What the bytes that a decoder was shown turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// How many of them belong to the body, its framing included.
    pub consumed: usize,
    /// Where in them data lies; empty when there is none.
    pub data: Range<usize>,
    /// Whether the body ends behind the consumed bytes.
    pub end: bool,
}

/// Follows a body to its end.
#[derive(Clone, Debug)]
pub struct Decoder {
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// That many bytes of a body with a length.
    Length(u64),
    /// In a chunk's first line: the size so far, its digits, all bytes of the line.
    Size {
        size: u64,
        digits: u8,
        line: usize,
        part: LinePart,
    },
    /// That many bytes of a chunk's data.
    Data(u64),
    /// Behind a chunk's data: the CR, then the LF.
    DataEnd {
        cr: bool,
    },
    /// In the trailer section: bytes of it, and where in a line.
    Trailer {
        bytes: usize,
        part: TrailerPart,
    },
    End,
}

/// Where in a chunk's first line: `size *( ";" [ white space ] name [ "=" ( token / quoted ) ] )`.
///
/// RFC 9112 §7.1.1 knows white space in more places, which it calls bad. Nobody sends it, and readers disagree about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LinePart {
    Digits,
    /// Behind a semicolon.
    Semicolon,
    Name,
    /// Behind an equals sign.
    Equals,
    Value,
    Quoted,
    /// Behind a backslash between quotes.
    Escaped,
    Unquoted,
    Cr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TrailerPart {
    /// In a name: as much of it, in lower case, as the names that are not allowed have, and its length.
    Name([u8; HEAD_ONLY_BYTES_MAX], usize),
    Value,
    /// Behind the CR of a field.
    Cr,
    /// Behind the CR of the empty line.
    LastCr,
}

impl Decoder {
    /// A decoder at the beginning of a body.
    pub fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::Chunked => State::SIZE,
            Framing::Length(0) | Framing::None => State::End,
            Framing::Length(length) => State::Length(length),
        };
        Self { state }
    }

    /// Whether the body's end was seen.
    pub fn is_at_end(&self) -> bool {
        self.state == State::End
    }

    /// How many of the bytes that come next are data for certain: they can be taken without a look.
    pub fn data_ahead(&self) -> u64 {
        match self.state {
            State::Length(left) | State::Data(left) => left,
            _ => 0,
        }
    }

    /// What is left of the body, as a framing of its own; `None` where no framing says it, in the middle of chunks.
    pub fn rest(&self) -> Option<Framing> {
        match self.state {
            State::End => Some(Framing::None),
            State::Length(left) => Some(Framing::Length(left)),
            State::SIZE => Some(Framing::Chunked),
            _ => None,
        }
    }

    /// Reads on until there is data, an end, or nothing more in `input`. Call it again with what was not consumed.
    ///
    /// # Errors
    /// The body breaks its framing; nothing behind it can be understood.
    pub fn step(&mut self, input: &[u8]) -> Result<Step, BodyError> {
        let mut at = 0;
        while at < input.len() {
            self.state = match self.state {
                State::End => break,
                State::Length(left) | State::Data(left) => {
                    let here = (input.len() - at).min(usize::try_from(left).unwrap_or(usize::MAX));
                    let left = left - here as u64;
                    self.state = match (self.state, left) {
                        (State::Length(_), 0) => State::End,
                        (State::Length(_), _) => State::Length(left),
                        (_, 0) => State::DataEnd { cr: false },
                        _ => State::Data(left),
                    };
                    let end = self.state == State::End;
                    return Ok(Step { consumed: at + here, data: at..at + here, end });
                }
                state => state.after(input[at])?,
            };
            at += 1;
        }
        Ok(Step { consumed: at, data: at..at, end: self.is_at_end() })
    }
}

impl State {
    const SIZE: Self = Self::Size { size: 0, digits: 0, line: 0, part: LinePart::Digits };
    const TRAILER: Self = Self::Trailer { bytes: 0, part: TrailerPart::LINE };

    /// The state behind one byte of framing.
    fn after(self, byte: u8) -> Result<Self, BodyError> {
        match self {
            Self::Size { size, digits, line, part } => Self::after_size(size, digits, line + 1, part, byte),
            Self::DataEnd { cr: false } if byte == b'\r' => Ok(Self::DataEnd { cr: true }),
            Self::DataEnd { cr: true } if byte == b'\n' => Ok(Self::SIZE),
            Self::Trailer { bytes, .. } if bytes >= TRAILER_BYTES_MAX => Err(BodyError::Trailer),
            Self::Trailer { part: TrailerPart::LastCr, .. } if byte == b'\n' => Ok(Self::End),
            Self::Trailer { bytes, part } => Ok(Self::Trailer { bytes: bytes + 1, part: part.after(byte)? }),
            _ => Err(BodyError::Chunk),
        }
    }

    fn after_size(size: u64, digits: u8, line: usize, part: LinePart, byte: u8) -> Result<Self, BodyError> {
        if line > CHUNK_LINE_BYTES_MAX {
            return Err(BodyError::Chunk);
        }
        match (part, byte) {
            (LinePart::Digits, _) if byte.is_ascii_hexdigit() && digits < 16 => {
                let digit = u64::from(char::from(byte).to_digit(16).ok_or(BodyError::Chunk)?);
                let size = size << 4 | digit;
                // Where it does not fit a signed number, others find a negative one.
                if size > i64::MAX as u64 {
                    Err(BodyError::Chunk)
                } else {
                    Ok(Self::Size { size, digits: digits + 1, line, part })
                }
            }
            (LinePart::Digits, _) if digits == 0 => Err(BodyError::Chunk),
            (LinePart::Cr, b'\n') if size == 0 => Ok(Self::TRAILER),
            (LinePart::Cr, b'\n') => Ok(Self::Data(size)),
            _ => Ok(Self::Size { size, digits, line, part: part.after(byte)? }),
        }
    }
}

impl LinePart {
    /// The part behind one byte that is no digit of the size.
    fn after(self, byte: u8) -> Result<Self, BodyError> {
        match (self, byte) {
            (Self::Digits | Self::Name | Self::Value | Self::Unquoted, b';') => Ok(Self::Semicolon),
            (Self::Digits | Self::Name | Self::Value | Self::Unquoted, b'\r') => Ok(Self::Cr),
            (Self::Semicolon, b' ' | b'\t') => Ok(Self::Semicolon),
            (Self::Name, b'=') => Ok(Self::Equals),
            (Self::Semicolon | Self::Name, _) if is_token_byte(byte) => Ok(Self::Name),
            (Self::Equals, b'"') => Ok(Self::Quoted),
            (Self::Equals | Self::Value, _) if is_token_byte(byte) => Ok(Self::Value),
            (Self::Quoted, b'"') => Ok(Self::Unquoted),
            (Self::Quoted, b'\\') => Ok(Self::Escaped),
            (Self::Quoted | Self::Escaped, b'\t' | b' '..=b'~' | 0x80..) => Ok(Self::Quoted),
            _ => Err(BodyError::Chunk),
        }
    }
}

impl TrailerPart {
    const LINE: Self = Self::Name([0; HEAD_ONLY_BYTES_MAX], 0);

    /// The part behind one byte.
    fn after(self, byte: u8) -> Result<Self, BodyError> {
        match (self, byte) {
            (Self::Name(_, 0), b'\r') => Ok(Self::LastCr),
            (Self::Name(name, length), b':') if length > 0 => {
                let is_head_only =
                    name.get(..length).is_some_and(|name| HEAD_ONLY.iter().any(|n| n.as_bytes() == name));
                if is_head_only { Err(BodyError::Trailer) } else { Ok(Self::Value) }
            }
            (Self::Name(mut name, length), _) if is_token_byte(byte) => {
                if let Some(place) = name.get_mut(length) {
                    // In the environment of a program they are one name, as in a head.
                    *place = if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' };
                }
                Ok(Self::Name(name, length + 1))
            }
            (Self::Value, b'\r') => Ok(Self::Cr),
            (Self::Value, b'\t' | b' '..=b'~' | 0x80..) => Ok(Self::Value),
            (Self::Cr, b'\n') => Ok(Self::LINE),
            _ => Err(BodyError::Trailer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Data and length of the body that `input` begins with, read in pieces of `piece` bytes.
    fn read(framing: Framing, input: &[u8], piece: usize) -> Result<Option<(Vec<u8>, usize)>, BodyError> {
        let (mut decoder, mut data, mut at) = (Decoder::new(framing), Vec::new(), 0);
        while !decoder.is_at_end() && at < input.len() {
            let shown = &input[at..input.len().min(at + piece)];
            let step = decoder.step(shown)?;
            data.extend_from_slice(&shown[step.data]);
            at += step.consumed;
        }
        Ok(decoder.is_at_end().then_some((data, at)))
    }

    fn check(input: &str, expected: Option<(&str, usize)>) {
        for piece in 1..=input.len() {
            let got = read(Framing::Chunked, input.as_bytes(), piece).ok().flatten();
            assert_eq!(got, expected.map(|(data, length)| (data.into(), length)), "{input:?} in pieces of {piece}");
        }
    }

    #[test]
    fn a_chunked_body_ends_where_it_ends() {
        check("0\r\n\r\nGET", Some(("", 5)));
        check("5\r\nhello\r\n0\r\n\r\nGET / ", Some(("hello", 15)));
        check("A;x=\"y\"\r\n0123456789\r\n00\r\nA: b\r\nC:\r\n\r\n!", Some(("0123456789", 37)));
        check("000000000000000a\r\n0123456789\r\n0\r\n\r\n", Some(("0123456789", 35)));
        check(
            "5; a=b;c;d=\"\\\"; \t\\é\"\r\nhello\r\n0;z\r\nHosts: y\r\nX-Content-Length-And-More: z\r\n\r\n",
            Some(("hello", 77)),
        );
        check("7fffffffffffffff\r\nhel", None);
        check("5\r\nhel", None);
    }

    #[test]
    fn a_chunk_has_one_meaning() {
        for input in [
            "\r\n",
            "x\r\n",
            "5\nhello\r\n",
            "5 \r\nhello\r\n",
            "-5\r\n",
            "0x5\r\n",
            "5\r\nhelloo\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "5\r\rhello",
            ";x\r\n",
            "0\r\n: b\r\n\r\n",
            "0\r\nA b: c\r\n\r\n",
            "0\r\nA\r\n\r\n",
            "0\r\n\n",
            "0\r\r\r\n",
            "5;\u{1}\r\n",
            "5;\r\nhello\r\n",
            "5;a;;b\r\nhello\r\n",
            "5;a=\r\nhello\r\n",
            "5;a=\"b\r\nhello\r\n",
            "5;a=\"b\"c\r\nhello\r\n",
            "5;a =b\r\nhello\r\n",
            "5;é\r\nhello\r\n",
            "5;a\rb\r\nhello\r\n",
            "5;a=\"\n\"\r\nhello\r\n",
            "8000000000000000\r\n",
            "ffffffffffffffff\r\n",
            "5_0\r\n",
            "0\r\nContent-Length: 5\r\n\r\n",
            "0\r\nX: y\r\ntransfer_encoding: chunked\r\n\r\n",
            "0\r\nHOST: y\r\n\r\n",
            "0\r\nA: b\rc\r\n\r\n",
            "0\r\nA: \0\r\n\r\n",
            "5;a\nb\r\nhello\r\n",
            "11111111111111111\r\n",
            " 5\r\nhello\r\n0\r\n\r\n",
            "0\r\n A: b\r\n\r\n",
            "0\r\nA: b\n\r\n",
        ] {
            check(input, None);
            assert!(read(Framing::Chunked, input.as_bytes(), 1).is_err(), "{input:?} is only incomplete");
        }
    }

    #[test]
    fn chunk_lines_and_trailers_have_a_bound() {
        let line = |n: usize| format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(n - 4));
        assert!(read(Framing::Chunked, line(CHUNK_LINE_BYTES_MAX).as_bytes(), 7).is_ok());
        assert!(read(Framing::Chunked, line(CHUNK_LINE_BYTES_MAX + 1).as_bytes(), 7).is_err());
        let trailer = |n: usize| format!("0\r\nA:{}\r\n\r\n", "x".repeat(n - 6));
        assert!(read(Framing::Chunked, trailer(TRAILER_BYTES_MAX).as_bytes(), 99).is_ok());
        assert!(read(Framing::Chunked, trailer(TRAILER_BYTES_MAX + 1).as_bytes(), 99).is_err());
    }

    #[test]
    fn a_length_is_a_length() {
        assert_eq!(read(Framing::Length(3), b"abcdef", 2), Ok(Some((b"abc".to_vec(), 3))));
        assert_eq!(read(Framing::None, b"abcdef", 2), Ok(Some((vec![], 0))));
    }

    proptest::proptest! {
        #[test]
        fn what_was_chunked_comes_out(chunks in proptest::collection::vec(proptest::collection::vec(proptest::prelude::any::<u8>(), 1..50), 0..8), piece in 1usize..60) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                wire.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\n\r\n");
            let length = wire.len();
            wire.extend_from_slice(b"GET / HTTP/1.1");
            assert_eq!(read(Framing::Chunked, &wire, piece), Ok(Some((chunks.concat(), length))));
        }

        #[test]
        fn no_input_is_read_in_two_ways(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..100), piece in 1usize..20) {
            for framing in [Framing::Chunked, Framing::Length(50), Framing::None] {
                super::super::naive::check_body(framing, &bytes, piece);
            }
        }

        #[test]
        fn nearly_chunked_bodies_are_not_read_in_two_ways(parts in proptest::collection::vec(part(), 0..30), piece in 1usize..20) {
            super::super::naive::check_body(Framing::Chunked, parts.concat().as_bytes(), piece);
        }
    }

    /// What chunked bodies are made of, whole and in splinters.
    fn part() -> impl proptest::strategy::Strategy<Value = &'static str> {
        proptest::sample::select(vec![
            "5\r\nhello\r\n",
            "1;a\r\nx\r\n",
            "0\r\n",
            "0;a=\"b;\"\r\n",
            "\r\n",
            "\r",
            "\n",
            "0",
            "1",
            "a",
            "F",
            ";",
            "=",
            "\"",
            "\\",
            " ",
            "x",
            "hello",
            "A: b\r\n",
            "Content-Length: 1\r\n",
            ":",
            "\u{e9}",
            "\0",
            "0\r\n\r\n",
        ])
    }
}
