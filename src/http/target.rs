//! What a request is for: the request target in its forms, and the host that it names (RFC 9112 §3.2, RFC 3986 §3.2).

use super::head::{HeadError, HostFault};

/// A request target taken apart (RFC 9112 §3.2).
pub(super) struct Target<'a> {
    pub(super) authority: Option<&'a str>,
    pub(super) path: &'a str,
    pub(super) query: Option<&'a str>,
}

impl<'a> Target<'a> {
    pub(super) fn split(method: &str, target: &'a str) -> Result<Self, HeadError> {
        // A fragment is never sent; whoever reads one cuts elsewhere than we do.
        if !target.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
            return Err(HeadError::Target);
        }
        if target == "*" {
            let asked = method == "OPTIONS";
            return if asked { Ok(Self { authority: None, path: "*", query: None }) } else { Err(HeadError::Target) };
        }
        let (authority, rest) = if target.starts_with('/') {
            (None, target)
        } else {
            let (scheme, rest) = target.split_once("://").ok_or(HeadError::Target)?;
            if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
                return Err(HeadError::Target);
            }
            let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
            (Some(authority), rest)
        };
        let (path, query) = match rest.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (rest, None),
        };
        Ok(Self { authority, path: if path.is_empty() { "/" } else { path }, query })
    }
}

/// `host[:port]` in lower case (RFC 3986 §3.2.2): a name, an IPv4 address, or an IPv6 address in brackets.
pub(super) fn authority(text: &[u8]) -> Result<String, HeadError> {
    let invalid = HeadError::Host(HostFault::Invalid);
    let text = std::str::from_utf8(text).map_err(|_| invalid)?;
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']').ok_or(invalid)?;
        address.parse::<std::net::Ipv6Addr>().map_err(|_| invalid)?;
        (&text[..address.len() + 2], port.strip_prefix(':').or_else(|| port.is_empty().then_some("")))
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, Some("")),
        }
    };
    let port = port.ok_or(invalid)?;
    let port_fits = port.is_empty() || (port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok());
    let is_name_byte = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%".contains(&b);
    if host.is_empty() || !port_fits || !(host.starts_with('[') || host.bytes().all(is_name_byte)) {
        return Err(invalid);
    }
    Ok(text.to_ascii_lowercase())
}
