//! What an upstream is asked for: the client's target, or a path inside of the upstream in place of the route's.
//!
//! A path inside is made of the normalised path, by which the route was found, and of nothing else: in it there is no dot
//! segment and nothing that anybody decodes to one ([`super::path`]), so it stays below what the configuration wrote.

use std::borrow::Cow;

use super::head::RequestHead;

/// The target for an upstream, in origin-form or asterisk-form (RFC 9112 §3.2): a server that is not asked as a proxy need
/// not understand absolute-form.
///
/// Without `inside` it is what the client wrote, byte for byte, from the path on. With it, `mount`, the route's path, is
/// replaced by it, and the query follows as the client wrote it.
pub fn target<'a>(head: &'a RequestHead, mount: &str, inside: Option<&str>) -> Cow<'a, str> {
    match inside {
        Some(inside) => Cow::Owned(replace(head.path(), head.query(), mount, inside)),
        None => as_written(head),
    }
}

/// That path and query with `inside` in place of `mount`. A path that is not below the mount, as one that a policy wrote, is
/// put behind `inside` as a whole. `path` is normalised; `inside` is empty, or begins with a slash and ends without one.
pub fn replace(path: &str, query: Option<&str>, mount: &str, inside: &str) -> String {
    if path == "*" {
        return path.to_owned();
    }
    let mount = mount.trim_end_matches('/');
    let rest = path.strip_prefix(mount).filter(|rest| rest.is_empty() || rest.starts_with('/')).unwrap_or(path);
    let (mark, query) = query.map_or(("", ""), |query| ("?", query));
    let root = if inside.is_empty() && rest.is_empty() { "/" } else { "" };
    [inside, rest, root, mark, query].concat()
}

fn as_written(head: &RequestHead) -> Cow<'_, str> {
    let target = head.target();
    if target.starts_with('/') || target == "*" {
        return Cow::Borrowed(target);
    }
    let (_, rest) = target.split_once("://").unwrap_or(("", target));
    let rest = rest.find(['/', '?']).map_or("", |at| &rest[at..]);
    match rest.as_bytes() {
        [] if head.path() == "*" => Cow::Borrowed("*"),
        [] => Cow::Borrowed("/"),
        [b'/', ..] => Cow::Borrowed(rest),
        _ => Cow::Owned(["/", rest].concat()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http::head::Limits;

    fn asked(target: &str, mount: &str, inside: Option<&str>) -> String {
        let bytes = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
        let head = RequestHead::parse(bytes.as_bytes(), Limits::default()).expect(target);
        super::target(&head, mount, inside).into_owned()
    }

    #[test]
    fn the_mount_is_replaced_by_the_path_inside() {
        for (target, mount, inside, expected) in [
            ("/mount/x?q", "/mount", "/inside", "/inside/x?q"),
            ("/mount", "/mount", "/inside", "/inside"),
            ("/mount?q", "/mount", "/inside", "/inside?q"),
            ("/mount/", "/mount", "/inside", "/inside/"),
            ("/mount/x", "/mount/", "/inside", "/inside/x"),
            ("/mount/", "/mount/", "/inside", "/inside/"),
            ("/mount/x?a/../b", "/mount", "", "/x?a/../b"),
            ("/mount", "/mount", "", "/"),
            ("/mount?", "/mount", "", "/?"),
            ("/", "/", "/inside", "/inside/"),
            ("/x", "/", "/inside", "/inside/x"),
            ("/", "/", "", "/"),
            ("/%6dount/%7ex", "/mount", "/inside", "/inside/~x"),
            ("/x/../mount//y/./z", "/mount", "/inside", "/inside/y/z"),
            ("/mount/a%2fb", "/mount", "/inside", "/inside/a%2Fb"),
            ("http://x/mount/y?q", "/mount", "/inside", "/inside/y?q"),
            ("http://x?q", "/", "/inside", "/inside/?q"),
            ("/mountain", "/mount", "/inside", "/inside/mountain"),
        ] {
            assert_eq!(asked(target, mount, Some(inside)), expected, "{target} {mount} {inside:?}");
        }
    }

    #[test]
    fn without_a_path_inside_the_target_is_what_the_client_wrote() {
        for (target, expected) in [
            ("/mount/x?q", "/mount/x?q"),
            ("/%6dount//a/../b?%zz", "/%6dount//a/../b?%zz"),
            ("http://x/%61?q", "/%61?q"),
            ("http://x", "/"),
            ("http://x?q=/", "/?q=/"),
            ("http://x//a", "//a"),
        ] {
            assert_eq!(asked(target, "/mount", None), expected, "{target}");
        }
    }

    #[test]
    fn the_server_as_a_whole_stays_a_star() {
        for target in ["*", "http://x"] {
            let bytes = format!("OPTIONS {target} HTTP/1.1\r\nHost: x\r\n\r\n");
            let head = RequestHead::parse(bytes.as_bytes(), Limits::default()).expect(target);
            for inside in [None, Some(""), Some("/inside")] {
                assert_eq!(super::target(&head, "/", inside), "*", "{target} {inside:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_path_climbs_out(parts in proptest::collection::vec(proptest::sample::select(vec![
            "/", "//", ".", "..", "%2e", "%2E%2e", "%2f", "%5c", ";", "%3b", "mount", "x", "?", "\\", "%", "%25", "%c0%ae", "http://x",
        ]), 0..12), inside in proptest::sample::select(vec!["", "/inside", "/in/side"])) {
            let bytes = format!("GET /mount/{} HTTP/1.1\r\nHost: x\r\n\r\n", parts.concat());
            if let Ok(head) = RequestHead::parse(bytes.as_bytes(), Limits::default()) {
                let asked = super::target(&head, "/mount", Some(inside));
                let path = asked.split('?').next().unwrap_or_default();
                let rest = path.strip_prefix(inside).expect("inside");
                prop_assert!(rest.starts_with('/') || (rest.is_empty() && !inside.is_empty()), "{asked}");
                let is_normal = crate::http::path::normalise(path).is_ok_and(|normal| normal == path);
                prop_assert!(is_normal, "{asked}");
            }
        }
    }
}
