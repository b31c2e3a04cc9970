//! The fields of a request that decide how the rest of it is understood (RFC 9112 §3.2, §6, §9.3).

use super::body::Framing;
use super::head::{HeadError, HostFault, Persistence, Version};

/// The fields that decide how the rest is understood.
#[derive(Default)]
pub(super) struct Known<'a> {
    pub(super) host: Option<&'a [u8]>,
    pub(super) length: Option<u64>,
    codings: Option<Codings>,
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
    pub(super) expects_continue: bool,
    is_authorized: bool,
}

/// The members of all Transfer-Encoding fields together.
#[derive(Clone, Copy, Default)]
struct Codings {
    count: usize,
    chunked_count: usize,
    is_chunked_last: bool,
    /// One is empty, or more than a token.
    is_malformed: bool,
}

/// Fields for every recipient. Whoever removes what Connection names (RFC 9110 §7.6.1) would understand another request
/// than who does not: one without its length, its host, or what somebody in front of us has vouched for.
const END_TO_END: [&str; 13] = [
    "authorization",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "transfer-encoding",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
];

/// What many programs hold a length in. More would be negative for them.
const LENGTH_MAX: u64 = i64::MAX as u64;

impl<'a> Known<'a> {
    pub(super) fn read(fields: &[httparse::Header<'a>]) -> Result<Self, HeadError> {
        let mut known = Self::default();
        for field in fields {
            let value = field.value;
            // Lengths first: most fields are ruled out by one comparison.
            match field.name.len() {
                4 if field.name.eq_ignore_ascii_case("host") && known.host.replace(value).is_some() => {
                    return Err(HeadError::Host(HostFault::Repeated));
                }
                6 if field.name.eq_ignore_ascii_case("expect") => {
                    if !value.eq_ignore_ascii_case(b"100-continue") {
                        return Err(HeadError::UnknownExpectation);
                    }
                    if std::mem::replace(&mut known.expects_continue, true) {
                        return Err(HeadError::Repeated("Expect"));
                    }
                }
                7 if field.name.eq_ignore_ascii_case("upgrade") => known.upgrade = true,
                10 if field.name.eq_ignore_ascii_case("connection") => known.read_options(value)?,
                // One that is checked and another that is used would let anybody in.
                13 if field.name.eq_ignore_ascii_case("authorization")
                    && std::mem::replace(&mut known.is_authorized, true) =>
                {
                    return Err(HeadError::Repeated("Authorization"));
                }
                14 if is_spelled_like(field.name, "content-length")?
                    && known.length.replace(length(value)?).is_some() =>
                {
                    return Err(HeadError::Length);
                }
                17 if is_spelled_like(field.name, "transfer-encoding")? => {
                    let codings = known.codings.get_or_insert_default();
                    value.split(|&b| b == b',').map(trim).for_each(|coding| codings.add(coding));
                }
                _ => {}
            }
        }
        Ok(known)
    }

    fn read_options(&mut self, value: &[u8]) -> Result<(), HeadError> {
        for option in list(value) {
            if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if !option.iter().all(|&b| is_token_byte(b))
                || END_TO_END.iter().any(|name| option.eq_ignore_ascii_case(name.as_bytes()))
            {
                return Err(HeadError::Connection);
            }
        }
        Ok(())
    }

    pub(super) fn framing(&self, version: Version) -> Result<Framing, HeadError> {
        let Some(codings) = &self.codings else {
            return Ok(match self.length {
                None | Some(0) => Framing::None,
                Some(length) => Framing::Length(length),
            });
        };
        if self.length.is_some() {
            return Err(HeadError::LengthAndCoding);
        }
        if version == Version::Http10 {
            return Err(HeadError::TransferEncoding);
        }
        match (codings.count, codings.chunked_count) {
            (1, 1) => Ok(Framing::Chunked),
            _ if codings.is_malformed => Err(HeadError::TransferEncoding),
            (_, 0) => Err(HeadError::UnknownCoding),
            (_, 1) if codings.is_chunked_last => Err(HeadError::UnknownCoding),
            _ => Err(HeadError::TransferEncoding),
        }
    }

    pub(super) fn persistence(&self, version: Version) -> Persistence {
        match version {
            _ if self.close => Persistence::Close,
            Version::Http11 => Persistence::KeepAlive,
            Version::Http10 if self.keep_alive => Persistence::KeepAlive,
            Version::Http10 => Persistence::Close,
        }
    }
}

impl Codings {
    fn add(&mut self, coding: &[u8]) {
        self.is_chunked_last = coding.eq_ignore_ascii_case(b"chunked");
        self.count += 1;
        self.chunked_count += usize::from(self.is_chunked_last);
        self.is_malformed |= coding.is_empty() || !coding.iter().all(|&b| is_token_byte(b));
    }
}

/// Digits only: `+5`, `5, 5`, ` ` and what exceeds 63 bits are no lengths (RFC 9110 §8.6). Nor is `010`: a program that
/// reads numbers as C does finds 8 in it.
fn length(value: &[u8]) -> Result<u64, HeadError> {
    let is_number = match value {
        [] | [b'0', _, ..] => false,
        digits => digits.iter().all(u8::is_ascii_digit),
    };
    let parsed = || std::str::from_utf8(value).ok()?.parse().ok();
    is_number.then(parsed).flatten().filter(|&length| length <= LENGTH_MAX).ok_or(HeadError::Length)
}

/// Whether `name` is the one asked for, of the same length, in any case.
///
/// # Errors
/// It is so only where punctuation does not count. In the environment of a program `Content_Length` and `Content-Length`
/// are one name (RFC 3875 §4.1.18); nobody sends the first in good faith.
fn is_spelled_like(name: &str, asked: &'static str) -> Result<bool, HeadError> {
    if name.eq_ignore_ascii_case(asked) {
        return Ok(true);
    }
    let is_same = |(a, b): (u8, u8)| a.eq_ignore_ascii_case(&b) || (b == b'-' && !a.is_ascii_alphanumeric());
    if name.bytes().zip(asked.bytes()).all(is_same) { Err(HeadError::Disguised(asked)) } else { Ok(false) }
}

/// The members of a comma-separated list, empty ones left out (RFC 9110 §5.6.1.2).
pub fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&b| b == b',').map(trim).filter(|member| !member.is_empty())
}

/// Without spaces and tabs around it (OWS, RFC 9110 §5.6.3).
pub(super) fn trim(member: &[u8]) -> &[u8] {
    let blank = |b: &u8| matches!(b, b' ' | b'\t');
    let start = member.iter().position(|b| !blank(b)).unwrap_or(member.len());
    let end = member.iter().rposition(|b| !blank(b)).map_or(start, |last| last + 1);
    &member[start..end]
}

/// `tchar` (RFC 9110 §5.6.2).
pub fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
