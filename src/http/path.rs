//! The request target's path as routes and policies see it.
//!
//! Two spellings of one path must not reach two routes: what a policy guards as `/admin/` is not to be had as
//! `//admin/`, `/x/../admin/` or `/%61dmin/`. Where the other spelling is another path to us and the same to programs
//! that decode more than we do, it is refused: `/x/..%2Fadmin/`, `/x/..;/admin/`, `/x\..\admin/`. The bytes that the client
//! sent are kept beside it, untouched.

use std::borrow::Cow;

/// Why a path cannot be understood in one way only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// `..` leads above the root.
    #[error("the path leads above the root")]
    AboveRoot,
    /// A slash to some, and no character of a path (RFC 3986 §3.3).
    #[error("a backslash in the path")]
    Backslash,
    /// A percent sign without two hexadecimal digits (RFC 3986 §2.1).
    #[error("a percent sign without two hexadecimal digits")]
    BadEscape,
    /// An encoded control character.
    #[error("an encoded control character in the path")]
    Control,
    /// `.` or `..` between encoded slashes, or with a parameter: a dot segment to whoever decodes or cuts first.
    #[error("a hidden dot segment in the path")]
    HiddenDots,
    /// An ASCII character in two or more bytes (RFC 3629 §3).
    #[error("an overlong character in the path")]
    Overlong,
}

/// Returns `path` with unreserved characters decoded, remaining escapes in upper case, repeated slashes merged and dot
/// segments resolved (RFC 3986 §6.2.2). `path` begins with `/` and holds visible ASCII only.
///
/// An encoded slash (`%2F`) stays encoded: it is data inside a segment, not a boundary.
///
/// # Errors
/// [`PathError`]: whatever somebody could take for another path.
pub fn normalise(path: &str) -> Result<Cow<'_, str>, PathError> {
    let mut before = 0;
    let is_normal = path.bytes().all(|byte| {
        let is_odd = matches!((before, byte), (_, b'%' | b'\\') | (b'/', b'/' | b'.'));
        before = byte;
        !is_odd
    });
    if is_normal {
        return Ok(Cow::Borrowed(path));
    }
    resolve_dots(&decode_unreserved(path)?).map(Cow::Owned)
}

/// Returns `text` with every escape decoded, and `+` as a space where `plus` says so. Malformed escapes stay as they are.
pub fn decode(text: &str, plus: Plus) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'%' => {
                if let Some(byte) = bytes.get(at + 1..at + 3).and_then(hex_pair) {
                    out.push(byte);
                    at += 3;
                    continue;
                }
                out.push(b'%');
            }
            b'+' if plus == Plus::Space => out.push(b' '),
            byte => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// What `+` means while decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plus {
    /// Itself, as in paths and cookies.
    Literal,
    /// A space, as in form-encoded queries.
    Space,
}

fn decode_unreserved(path: &str) -> Result<String, PathError> {
    let bytes = path.as_bytes();
    let mut out = String::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'\\' {
            return Err(PathError::Backslash);
        }
        if bytes[at] != b'%' {
            out.push(char::from(bytes[at]));
            at += 1;
            continue;
        }
        let byte = bytes.get(at + 1..at + 3).and_then(hex_pair).ok_or(PathError::BadEscape)?;
        match byte {
            0..=0x1F | 0x7F => return Err(PathError::Control),
            b'-' | b'.' | b'_' | b'~' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => out.push(char::from(byte)),
            _ => {
                out.push('%');
                out.push_str(&path[at + 1..at + 3].to_ascii_uppercase());
            }
        }
        at += 3;
    }
    if has_overlong(&out) { Err(PathError::Overlong) } else { Ok(out) }
}

/// Whether what must not be hidden is written in two, three or four bytes: control characters, `%`, `.`, `/`, `;`, `\`. All
/// other bytes that are no UTF-8 are somebody's Latin-1 or GBK.
fn has_overlong(path: &str) -> bool {
    const BEGIN: [&str; 3] = ["%C", "%E0%8", "%F0%80%8"];
    const END: [&str; 8] = ["0%8", "0%9", "0%A5", "0%AE", "0%AF", "0%BB", "1%9C", "1%BF"];
    BEGIN.iter().any(|begin| {
        path.match_indices(begin).any(|(at, _)| END.iter().any(|end| path[at + begin.len()..].starts_with(end)))
    })
}

fn resolve_dots(path: &str) -> Result<String, PathError> {
    let mut segments: Vec<&str> = Vec::new();
    let mut directory = false;
    for segment in path.split('/') {
        directory = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop().ok_or(PathError::AboveRoot)?;
            }
            name if hides_dots(name) => return Err(PathError::HiddenDots),
            name => segments.push(name),
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in &segments {
        out.push('/');
        out.push_str(segment);
    }
    if directory {
        out.push('/');
    }
    Ok(out)
}

/// Whether a segment is a dot segment, or several, to a program that takes escaped slashes for slashes or cuts parameters
/// off. Its escapes are in upper case.
fn hides_dots(segment: &str) -> bool {
    let pieces = segment.split("%2F").flat_map(|piece| piece.split("%5C"));
    let names = pieces.map(|piece| piece.split("%3B").next().unwrap_or(piece).split(';').next().unwrap_or(piece));
    names.into_iter().any(|name| matches!(name, "." | ".."))
}

fn hex_pair(pair: &[u8]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, expected: Result<&str, PathError>) {
        assert_eq!(normalise(path), expected.map(Cow::Borrowed), "{path}");
    }

    #[test]
    fn one_path_has_one_spelling() {
        check("/", Ok("/"));
        check("/a/b", Ok("/a/b"));
        check("/a/b/", Ok("/a/b/"));
        check("//a///b//", Ok("/a/b/"));
        check("/a/./b/.", Ok("/a/b/"));
        check("/a/../b", Ok("/b"));
        check("/a/b/..", Ok("/a/"));
        check("/%61dmin", Ok("/admin"));
        check("/%2e%2E/x", Err(PathError::AboveRoot));
        check("/a/%2e%2e/b", Ok("/b"));
        check("/a%2fb", Ok("/a%2Fb"));
        check("/.hidden", Ok("/.hidden"));
        check("/..a", Ok("/..a"));
        check("/a;x=1", Ok("/a;x=1"));
        check("/a%2f%2Fb%5c", Ok("/a%2F%2Fb%5C"));
        check("/..a%2F.b%2F...;.", Ok("/..a%2F.b%2F...;."));
        check("/%e0%e9/%C0", Ok("/%E0%E9/%C0"));
        check("/%c0%b4%C0%A0%c1%a1", Ok("/%C0%B4%C0%A0%C1%A1"));
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        check("/..", Err(PathError::AboveRoot));
        check("/a/../../b", Err(PathError::AboveRoot));
        check("/%", Err(PathError::BadEscape));
        check("/%4", Err(PathError::BadEscape));
        check("/%zz", Err(PathError::BadEscape));
        check("/%00", Err(PathError::Control));
        check("/a%0d%0ab", Err(PathError::Control));
        check("/a%7f", Err(PathError::Control));
        check("/a\\..\\b", Err(PathError::Backslash));
        for hidden in
            ["/..%2fb", "/a%2F..", "/a%5c..%5cb", "/%2e%2E%2Fb", "/.%2fb", "/..;/b", "/a/..;x=1/b", "/.;/b", "/..%3b/b"]
        {
            check(hidden, Err(PathError::HiddenDots));
        }
        for overlong in ["/%c0%ae%c0%ae/b", "/a%c0%afb", "/%C1%9C", "/%e0%80%af", "/%F0%80%80%AF"] {
            check(overlong, Err(PathError::Overlong));
        }
    }

    #[test]
    fn decoding_leaves_malformed_escapes_alone() {
        assert_eq!(decode("a%20b+c%", Plus::Literal), "a b+c%");
        assert_eq!(decode("a%20b+c%zz", Plus::Space), "a b c%zz");
    }

    proptest::proptest! {
        #[test]
        fn no_path_has_two_spellings(text in "/[!-~]{0,40}") {
            super::super::naive::check_path(&text);
        }

        #[test]
        fn nor_one_of_dots_slashes_and_escapes(text in "(/|\\.|\\.\\.|//|;|%2[efEF]|%5[cC]|%3[bB]|%25|%[0-9A-Fa-f]{2}|%c0%ae|\\\\|a){0,16}") {
            super::super::naive::check_path(&format!("/{text}"));
        }

        #[test]
        fn anything_is_decoded(text in ".{0,40}") {
            super::super::naive::check_path(&text);
        }
    }
}
