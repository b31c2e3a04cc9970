//! From a request's path to the name of a file below a folder.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

/// What a directory is asked for.
const INDEX: &str = "index.html";

/// The one hidden name that is meant to be seen: at the beginning (RFC 8615 §3).
const WELL_KNOWN: &[u8] = b".well-known";

/// Returns the name that a normalised path means, relative to the folder, decoded once; a directory's is that of its index.
/// Empty: the folder itself, asked for without its slash. `None`: no file has a name that could be meant, or it is hidden
/// (`.git`, `.env`, `.htaccess`), which nobody but a mistake puts below a folder that is served.
pub(super) fn name(below: &str, is_directory: bool) -> Option<OsString> {
    let below = below.strip_prefix('/').unwrap_or(below);
    let mut name = Vec::with_capacity(below.len() + INDEX.len());
    if !below.is_empty() {
        let is_tail = |rest: &str| rest.is_empty();
        let mut segments = below.split('/').peekable();
        while let Some(segment) = segments.next() {
            if is_tail(segment) && segments.peek().is_none() {
                break;
            }
            if !name.is_empty() {
                name.push(b'/');
            }
            let begin = name.len();
            decode(segment, &mut name)?;
            let is_hidden = name[begin..].starts_with(b".") && (begin > 0 || name != WELL_KNOWN);
            if is_hidden || begin == name.len() {
                return None;
            }
        }
    }
    if is_directory {
        if !name.is_empty() {
            name.push(b'/');
        }
        name.extend_from_slice(INDEX.as_bytes());
    }
    Some(OsString::from_vec(name))
}

/// Appends a segment's bytes. An escaped slash is no boundary, so no file is meant; nor does anybody mean a control character.
fn decode(segment: &str, out: &mut Vec<u8>) -> Option<()> {
    let mut rest = segment.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let byte = match first {
            b'%' => {
                let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
                // A sign is no digit, though a number may have one.
                let byte = u8::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))?;
                rest = &tail[2..];
                byte
            }
            byte => {
                rest = tail;
                byte
            }
        };
        if byte == b'/' || byte.is_ascii_control() {
            return None;
        }
        out.push(byte);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    fn check(below: &str, expected: Option<&[u8]>) {
        let found = name(below, below.ends_with('/'));
        assert_eq!(found.as_ref().map(|name| name.as_bytes()), expected, "{below}");
    }

    #[test]
    fn a_path_is_decoded_once() {
        check("a", Some(b"a"));
        check("/a/b.txt", Some(b"a/b.txt"));
        check("/a%20b/%C3%A9%e9", Some(b"a b/\xc3\xa9\xe9"));
        check("/%252e%252e/x", Some(b"%2e%2e/x"));
        check("/a%5Cb+c", Some(b"a\\b+c"));
        check("/a.b/..c", None);
        check("", Some(b""));
        assert_eq!(name("", true), Some("index.html".into()));
    }

    #[test]
    fn a_directory_is_its_index() {
        check("/", Some(b"index.html"));
        check("a/b/", Some(b"a/b/index.html"));
    }

    #[test]
    fn names_that_nobody_means_are_none() {
        for below in ["/a%2Fb", "/a%2fb", "/%00", "/a%00.html", "/a%0Ab", "/a%7F", "/%", "/%4", "/%zz", "/%+1", "/a%é"]
        {
            check(below, None);
        }
        for below in ["//a", "/a//b", "/..", "/../a", "/a/../b", "/a/..", "/.", "/a/./b", "/%2e%2e/a", "/a/%2E%2E"] {
            check(below, None);
        }
    }

    #[test]
    fn hidden_names_are_none_but_what_is_well_known() {
        for below in [
            "/.git/config",
            "/.env",
            "/a/.htaccess",
            "/.well-known/.git",
            "/a/.well-known/b",
            "/.well-knownx",
            "/%2eenv",
        ] {
            check(below, None);
        }
        check("/.well-known/security.txt", Some(b".well-known/security.txt"));
        check("/%2Ewell-known/x", Some(b".well-known/x"));
        check("/.well-known/", Some(b".well-known/index.html"));
    }

    proptest::proptest! {
        #[test]
        fn no_name_leaves_the_folder(below in "(/|\\.|\\.\\.|%2[eEfF]|%00|%|a|[ -~]|é){0,16}", is_directory: bool) {
            if let Some(name) = name(&below, is_directory) {
                let mut parts = std::path::Path::new(&name).components();
                assert!(parts.all(|part| matches!(part, std::path::Component::Normal(_))), "{name:?}");
                assert!(!name.as_bytes().contains(&0), "{name:?}");
            }
        }
    }
}
