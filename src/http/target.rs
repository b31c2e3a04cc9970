//! What a request is for: the request target in its forms, and the host that it names (RFC 9112 §3.2, RFC 3986 §3.2).

use std::borrow::Cow;
use std::net::Ipv6Addr;

use super::head::{HeadError, HostFault};

/// A request target taken apart (RFC 9112 §3.2).
pub(super) struct Target<'a> {
    pub(super) absolute: Option<Absolute<'a>>,
    pub(super) path: &'a str,
    pub(super) query: Option<&'a str>,
}

/// What only absolute-form says.
#[derive(Clone, Copy)]
pub(super) struct Absolute<'a> {
    pub(super) authority: &'a str,
    /// The port that its scheme stands for.
    port: &'static str,
}

impl<'a> Target<'a> {
    pub(super) fn split(method: &str, target: &'a str) -> Result<Self, HeadError> {
        // A fragment is never sent; whoever reads one cuts elsewhere than we do.
        if !target.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
            return Err(HeadError::Target);
        }
        if target == "*" {
            let asked = method == "OPTIONS";
            return if asked { Ok(Self { absolute: None, path: "*", query: None }) } else { Err(HeadError::Target) };
        }
        let (absolute, rest) = if target.starts_with('/') {
            (None, target)
        } else {
            let (absolute, rest) = Absolute::split(target)?;
            (Some(absolute), rest)
        };
        let (path, query) = match rest.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (rest, None),
        };
        let path = match (path, query) {
            // The server as a whole, said through a proxy (RFC 9112 §3.2.4).
            ("", None) if method == "OPTIONS" => "*",
            ("", _) => "/",
            (path, _) => path,
        };
        Ok(Self { absolute, path, query })
    }
}

impl<'a> Absolute<'a> {
    fn split(target: &'a str) -> Result<(Self, &'a str), HeadError> {
        let (scheme, rest) = target.split_once("://").ok_or(HeadError::Target)?;
        let port = match scheme {
            _ if scheme.eq_ignore_ascii_case("http") => "80",
            _ if scheme.eq_ignore_ascii_case("https") => "443",
            _ => return Err(HeadError::Target),
        };
        let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        Ok((Self { authority, port }, rest))
    }

    /// Whether two authorities, as [`authority`] gives them, are the same one (RFC 9112 §3.2.2: they have to be).
    pub(super) fn agree(self, own: &str, host: &str) -> bool {
        let short = |text: &'_ str| {
            let end = text.strip_suffix(self.port).unwrap_or(text);
            end.strip_suffix(':').map_or(text.len(), str::len)
        };
        own[..short(own)] == host[..short(host)]
    }
}

/// `host[:port]` in lower case (RFC 3986 §3.2.2): a name, an IPv4 address, or an IPv6 address in brackets and in its
/// shortest form, so that two spellings of one address are one host.
///
/// A name is made of letters, digits, hyphens, underscores and single dots. The grammar allows more, and no name of the
/// DNS has it: escapes that one reader decodes and another does not, commas where two fields were joined, empty labels.
pub(super) fn authority(text: &[u8]) -> Result<Cow<'_, str>, HeadError> {
    let invalid = HeadError::Host(HostFault::Invalid);
    let text = std::str::from_utf8(text).map_err(|_| invalid)?;
    if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']').ok_or(invalid)?;
        let shortest = address.parse::<Ipv6Addr>().map_err(|_| invalid)?.to_string();
        let is_port = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return match (is_port, shortest == address) {
            (false, _) => Err(invalid),
            (true, true) => Ok(Cow::Borrowed(text)),
            (true, false) => Ok(Cow::Owned(format!("[{shortest}]{port}"))),
        };
    }
    let (host, port) = text.split_once(':').unwrap_or((text, ""));
    let (mut before, mut upper) = (b'.', false);
    for byte in host.bytes() {
        upper |= byte.is_ascii_uppercase();
        let fits = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') || (byte == b'.' && before != b'.');
        if !fits {
            return Err(invalid);
        }
        before = byte;
    }
    if host.is_empty() || !is_port(port) {
        return Err(invalid);
    }
    Ok(if upper { Cow::Owned(text.to_ascii_lowercase()) } else { Cow::Borrowed(text) })
}

/// A host without a port, spelt as requests have it when they are looked up: lower case, without the dot that may end a
/// name, an IPv6 address in its shortest form. `None`: no request can have it.
pub fn host(text: &str) -> Option<Cow<'_, str>> {
    let host = authority(text.as_bytes()).ok()?;
    let has_port = if host.starts_with('[') { !host.ends_with(']') } else { host.contains(':') };
    (!has_port && !host.ends_with('.')).then_some(host)
}

/// What may stand behind the colon: nothing, or a number that everybody reads as the same.
fn is_port(text: &str) -> bool {
    let is_number = text.bytes().all(|b| b.is_ascii_digit()) && (text.len() == 1 || !text.starts_with('0'));
    text.is_empty() || (is_number && text.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<&str>) {
        assert_eq!(authority(text.as_bytes()).ok().as_deref(), expected, "{text:?}");
    }

    #[test]
    fn a_host_has_one_spelling() {
        for same in ["x", "x.", "a-b_c.example.org:8080", "127.0.0.1:0", "[::1]", "[2001:db8::1]:80", "x:"] {
            check(same, Some(same));
        }
        check("Example.ORG:80", Some("example.org:80"));
        check("[2001:DB8:0:0::1]:80", Some("[2001:db8::1]:80"));
        check("[::ffff:127.0.0.1]", Some("[::ffff:127.0.0.1]"));
        check("[::ffff:7f00:1]", Some("[::ffff:127.0.0.1]"));
    }

    #[test]
    fn what_is_no_host_is_none() {
        for text in [
            "",
            ".",
            "..",
            ".x",
            "x..y",
            "x..",
            ":80",
            "x:080",
            "x:00",
            "x:65536",
            "x:+80",
            "x: 80",
            "x:80:80",
            "x,y",
            "x%2ey",
            "x~",
            "x!",
            "x@y",
            "x/",
            "x\\",
            "[::1",
            "::1",
            "[::1]80",
            "[::1]:080",
            "[fe80::1%25eth0]",
            "[v1.x]",
            "[x]",
            "[]",
            "*",
            "é",
        ] {
            check(text, None);
        }
    }

    #[test]
    fn hosts_agree_but_for_the_schemes_own_port() {
        let agree = |target, host| Absolute::split(target).is_ok_and(|(a, _)| a.agree(a.authority, host));
        for (target, host, expected) in [
            ("http://x/", "x", true),
            ("http://x:80/", "x", true),
            ("http://x/", "x:80", true),
            ("http://x:/", "x", true),
            ("http://x:80/", "x:", true),
            ("https://x:443/", "x", true),
            ("http://[::1]:80/", "[::1]", true),
            ("http://x:443/", "x", false),
            ("https://x:80/", "x", false),
            ("http://x:8080/", "x", false),
            ("http://x80/", "x", false),
            ("http://x/", "y", false),
            ("http://x/", "x.", false),
        ] {
            assert_eq!(agree(target, host), expected, "{target} {host}");
        }
    }
}
