//! The fields of a request that decide how the rest of it is understood (RFC 9112 §3.2, §6, §9.3).

use super::body::Framing;
use super::head::{HeadError, HostFault, Persistence, Version};

/// The fields that decide how the rest is understood.
#[derive(Default)]
pub(super) struct Known<'a> {
    pub(super) host: Option<&'a [u8]>,
    pub(super) length: Option<u64>,
    pub(super) codings: Option<Vec<&'a [u8]>>,
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
    pub(super) expects_continue: bool,
}

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
                    known.expects_continue = true;
                }
                7 if field.name.eq_ignore_ascii_case("upgrade") => known.upgrade = true,
                10 if field.name.eq_ignore_ascii_case("connection") => {
                    for option in list(value) {
                        known.close |= option.eq_ignore_ascii_case(b"close");
                        known.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                    }
                }
                14 if field.name.eq_ignore_ascii_case("content-length")
                    && known.length.replace(length(value)?).is_some() =>
                {
                    return Err(HeadError::Length);
                }
                17 if field.name.eq_ignore_ascii_case("transfer-encoding") => {
                    known.codings.get_or_insert_default().extend(value.split(|&b| b == b',').map(trim));
                }
                _ => {}
            }
        }
        Ok(known)
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
        let is_chunked = |coding: &&[u8]| coding.eq_ignore_ascii_case(b"chunked");
        match codings.iter().filter(|c| is_chunked(c)).count() {
            1 if codings.len() == 1 => Ok(Framing::Chunked),
            _ if codings.iter().any(|c| c.is_empty() || !c.iter().all(|&b| is_token_byte(b))) => {
                Err(HeadError::TransferEncoding)
            }
            0 => Err(HeadError::UnknownCoding),
            1 if codings.last().is_some_and(is_chunked) => Err(HeadError::UnknownCoding),
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

/// Digits only: `+5`, `5, 5`, ` ` and what exceeds 64 bits are no lengths (RFC 9110 §8.6).
fn length(value: &[u8]) -> Result<u64, HeadError> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(HeadError::Length);
    }
    std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok()).ok_or(HeadError::Length)
}

/// The members of a comma-separated list, empty ones left out (RFC 9110 §5.6.1.2).
pub fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&b| b == b',').map(trim).filter(|member| !member.is_empty())
}

fn trim(member: &[u8]) -> &[u8] {
    let blank = |b: &u8| matches!(b, b' ' | b'\t');
    let start = member.iter().position(|b| !blank(b)).unwrap_or(member.len());
    let end = member.iter().rposition(|b| !blank(b)).map_or(start, |last| last + 1);
    &member[start..end]
}

/// `tchar` (RFC 9110 §5.6.2).
pub fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
