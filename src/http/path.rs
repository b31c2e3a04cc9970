//! The request target's path as routes and policies see it.
//!
//! Two spellings of one path must not reach two routes: what a policy guards as `/admin/` is not to be had as
//! `//admin/`, `/x/../admin/` or `/%61dmin/`. The bytes that the client sent are kept beside it, untouched.

/// Why a path cannot be understood in one way only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// `..` leads above the root.
    #[error("the path leads above the root")]
    AboveRoot,
    /// A percent sign without two hexadecimal digits (RFC 3986 §2.1).
    #[error("a percent sign without two hexadecimal digits")]
    BadEscape,
    /// An encoded control character.
    #[error("an encoded control character in the path")]
    Control,
}

/// Returns `path` with unreserved characters decoded, remaining escapes in upper case, repeated slashes merged and dot
/// segments resolved (RFC 3986 §6.2.2). `path` begins with `/` and holds visible ASCII only.
///
/// An encoded slash (`%2F`) stays encoded: it is data inside a segment, not a boundary.
pub fn normalise(path: &str) -> Result<String, PathError> {
    let clean =
        !path.bytes().zip(path.bytes().skip(1)).any(|pair| matches!(pair, (b'/', b'/' | b'.'))) && !path.contains('%');
    if clean {
        return Ok(path.to_owned());
    }
    resolve_dots(&decode_unreserved(path)?)
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
    Ok(out)
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

fn hex_pair(pair: &[u8]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, expected: Result<&str, PathError>) {
        assert_eq!(normalise(path), expected.map(str::to_owned), "{path}");
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
    }

    #[test]
    fn decoding_leaves_malformed_escapes_alone() {
        assert_eq!(decode("a%20b+c%", Plus::Literal), "a b+c%");
        assert_eq!(decode("a%20b+c%zz", Plus::Space), "a b c%zz");
    }
}
