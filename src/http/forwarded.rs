//! Who the client is when proxies stand in front of us, and how that is said to whoever stands behind (RFC 7239;
//! `X-Forwarded-For`, `-Proto` and `-Host` as everybody writes them).
//!
//! Anybody can write these fields, so they count only as far as those who wrote them are trusted: from the peer of the
//! socket on, from the right to the left, until an address that is not trusted. That one is the client; what stands to its
//! left is its own word. Where both kinds of fields came, `X-Forwarded-For` counts: nearly every proxy keeps it, and a proxy
//! that knows only one kind lets the client's own of the other kind pass.

use std::borrow::Cow;
use std::io::Write as _;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::fields::{is_token_byte, trim};
use super::target::authority;

/// Proxies in a row that are believed. More is a loop, or a field that is to keep us busy.
pub const HOPS_MAX: usize = 32;

/// An end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// Over TCP; an IPv4 address is never in its IPv6 form.
    Ip(IpAddr),
    /// Over a Unix socket.
    Unix,
}

impl Node {
    /// The end of a TCP connection.
    pub fn ip(address: IpAddr) -> Self {
        Self::Ip(address.to_canonical())
    }

    /// As X-Forwarded-For has it.
    fn put_plain(self, out: &mut Vec<u8>) {
        match self {
            Self::Ip(address) => put(out, format_args!("{address}")),
            Self::Unix => out.extend_from_slice(b"unknown"),
        }
    }

    /// As an element of Forwarded (RFC 7239 §6): an IPv6 address in brackets and quotes, and no name but an invented one
    /// for what has no address.
    fn put_element(self, out: &mut Vec<u8>) {
        match self {
            Self::Ip(IpAddr::V4(address)) => put(out, format_args!("for={address}")),
            Self::Ip(IpAddr::V6(address)) => put(out, format_args!("for=\"[{address}]\"")),
            Self::Unix => out.extend_from_slice(b"for=_unix"),
        }
    }
}

fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("memory takes everything");
}

/// Whose word counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies {
    networks: Vec<Network>,
    unix: bool,
}

/// The addresses that begin with these bits; those of IPv4 in their IPv6 form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    bits: u128,
    length: u32,
}

/// Why an entry names nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// A network by the address of one of its members.
    #[error("{entry:?} is an address inside a network: write {network:?} for all of it, or the address alone")]
    Inside {
        /// As it was written.
        entry: String,
        /// What was meant, perhaps.
        network: String,
    },
    /// Neither address nor network.
    #[error(
        "{0:?} is no address: write \"10.0.0.1\", \"10.0.0.0/8\", \"fd00::/8\", or \"unix\" for whoever comes over a Unix socket"
    )]
    Malformed(String),
}

impl TrustedProxies {
    /// Reads addresses, networks, and `unix`.
    ///
    /// # Errors
    /// The first entry that is none of them.
    pub fn parse<T: AsRef<str>>(entries: &[T]) -> Result<Self, TrustError> {
        let mut trusted = Self::default();
        for entry in entries.iter().map(AsRef::as_ref) {
            if entry == "unix" {
                trusted.unix = true;
            } else {
                trusted.networks.push(Network::parse(entry)?);
            }
        }
        Ok(trusted)
    }

    /// Whether nobody's word counts.
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty() && !self.unix
    }

    /// Whether its word counts.
    pub fn has(&self, node: Node) -> bool {
        match node {
            Node::Ip(address) => self.networks.iter().any(|network| network.has(address)),
            Node::Unix => self.unix,
        }
    }
}

impl Network {
    fn parse(entry: &str) -> Result<Self, TrustError> {
        let malformed = || TrustError::Malformed(entry.to_owned());
        let (address, length) = match entry.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (entry, None),
        };
        let address: IpAddr = address.parse().map_err(|_| malformed())?;
        // `::ffff:10.0.0.0/104` and `10.0.0.0/8` are one network.
        let (bits, before) = match address {
            IpAddr::V4(v4) => (v4.to_ipv6_mapped().to_bits(), MAPPED),
            IpAddr::V6(v6) => (v6.to_bits(), 0),
        };
        let is_number =
            |text: &str| text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
        let length = match length {
            None => 128,
            Some(text) if is_number(text) => before + text.parse::<u32>().map_err(|_| malformed())?,
            Some(_) => return Err(malformed()),
        };
        if length > 128 {
            return Err(malformed());
        }
        let network = Self { bits: bits & mask(length), length };
        if network.bits == bits {
            return Ok(network);
        }
        let first = Ipv6Addr::from_bits(network.bits);
        let first = if before == 0 { IpAddr::V6(first) } else { first.to_canonical() };
        Err(TrustError::Inside { entry: entry.to_owned(), network: format!("{first}/{}", length - before) })
    }

    fn has(self, address: IpAddr) -> bool {
        let bits = match address.to_canonical() {
            // `::/0` is every address of IPv6, and none of IPv4.
            IpAddr::V4(_) if self.length < MAPPED => return false,
            IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        bits & mask(self.length) == self.bits
    }
}

/// The bits in front of an IPv4 address in its IPv6 form (RFC 4291 §2.5.5.2).
const MAPPED: u32 = 96;

fn mask(length: u32) -> u128 {
    u128::MAX.checked_shl(128 - length).unwrap_or(0)
}

/// Who asks, and for what, as far as anybody knows whom we trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client<'a> {
    /// Its address.
    pub node: Node,
    /// `http` or `https`: how it asked.
    pub scheme: &'static str,
    /// Whom it asked, with the port, in lower case; empty where it did not say (HTTP/1.0).
    pub host: Cow<'a, str>,
    peer: Node,
    believed: Believed,
}

/// Which of the fields that came are given on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Believed {
    /// Whether the peer is trusted.
    pub(super) peer: bool,
    /// X-Forwarded-For: what we know is added behind it.
    pub(super) addresses: bool,
    /// Forwarded.
    pub(super) elements: bool,
}

impl<'a> Client<'a> {
    /// What the connection itself says: its peer, its scheme, and the authority of the request.
    pub fn direct(peer: Node, scheme: &'static str, authority: &'a str) -> Self {
        Self { node: peer, scheme, host: Cow::Borrowed(authority), peer, believed: Believed::default() }
    }

    /// Looks behind the peer, if that one is trusted, by what the `fields` of the request say.
    pub fn behind(self, fields: impl Iterator<Item = (&'a str, &'a [u8])>, trusted: &TrustedProxies) -> Self {
        if trusted.has(self.peer) { self.look_behind(&Claims::of(fields), trusted) } else { self }
    }

    fn look_behind(mut self, claims: &Claims<'_>, trusted: &TrustedProxies) -> Self {
        let addresses = walk(self.peer, claims.addresses(), trusted);
        let elements = walk(self.peer, claims.elements().map(|element| element?.node), trusted);
        let (has_addresses, has_elements) = (!claims.forwarded_for.is_empty(), !claims.forwarded.is_empty());
        let (node, hops) = if has_addresses { addresses } else { elements };
        self.node = node;
        // Where the two name different clients, nobody keeps the second.
        let agree = has_elements && elements.0 == node;
        self.believed = Believed {
            peer: true,
            addresses: has_addresses,
            // What is added behind an open quote would be part of it.
            elements: agree && claims.elements().all(|element| element.is_some()),
        };
        // The furthest of the elements that count speaks of the client; the nearer ones fill in what it leaves out.
        let counted = if agree { elements.1.max(1) } else { 0 };
        for element in claims.elements().take(counted).flatten() {
            self.scheme = element.scheme.unwrap_or(self.scheme);
            self.host = element.host.map_or(self.host, Cow::Owned);
        }
        // As many values as proxies: one of each. Fewer: the proxies replace what they find.
        if let Some(scheme) = nth_last(&claims.scheme, hops).and_then(scheme) {
            self.scheme = scheme;
        }
        if let Some(host) = nth_last(&claims.host, hops).and_then(host) {
            self.host = Cow::Owned(host);
        }
        self
    }

    pub(super) fn believed(&self) -> Believed {
        self.believed
    }

    /// Writes the value of X-Forwarded-For behind what was believed of it.
    pub(super) fn put_addresses(&self, out: &mut Vec<u8>) {
        if self.node != self.peer && !self.believed.addresses {
            self.node.put_plain(out);
            out.extend_from_slice(b", ");
        }
        self.peer.put_plain(out);
    }

    /// Writes the elements of Forwarded behind what was believed of it.
    pub(super) fn put_elements(&self, out: &mut Vec<u8>) {
        if self.believed.elements {
            return self.peer.put_element(out);
        }
        self.node.put_element(out);
        if !self.host.is_empty() {
            let quote = if self.host.bytes().all(is_token_byte) { "" } else { "\"" };
            put(out, format_args!(";host={quote}{}{quote}", self.host));
        }
        put(out, format_args!(";proto={}", self.scheme));
        if self.node != self.peer {
            out.extend_from_slice(b", ");
            self.peer.put_element(out);
        }
    }
}

/// The first node from the peer on that is not trusted, or the last that is known, and how many proxies told of it.
fn walk(peer: Node, nodes: impl Iterator<Item = Option<Node>>, trusted: &TrustedProxies) -> (Node, usize) {
    let (mut node, mut hops) = (peer, 0);
    for next in nodes.take(HOPS_MAX) {
        let Some(next) = next.filter(|_| trusted.has(node)) else { break };
        node = next;
        hops += 1;
    }
    (node, hops)
}

/// The fields that speak of the client.
#[derive(Debug, Default)]
struct Claims<'a> {
    forwarded_for: Vec<&'a [u8]>,
    forwarded: Vec<&'a [u8]>,
    scheme: Vec<&'a [u8]>,
    host: Vec<&'a [u8]>,
}

impl<'a> Claims<'a> {
    fn of(fields: impl Iterator<Item = (&'a str, &'a [u8])>) -> Self {
        let mut claims = Self::default();
        for (name, value) in fields {
            let place = match name.len() {
                9 if name.eq_ignore_ascii_case("forwarded") => &mut claims.forwarded,
                15 if name.eq_ignore_ascii_case("x-forwarded-for") => &mut claims.forwarded_for,
                16 if name.eq_ignore_ascii_case("x-forwarded-host") => &mut claims.host,
                17 if name.eq_ignore_ascii_case("x-forwarded-proto") => &mut claims.scheme,
                _ => continue,
            };
            place.push(value);
        }
        claims
    }

    /// From the nearest on; `None` is none.
    fn addresses(&self) -> impl Iterator<Item = Option<Node>> {
        members_from_last(&self.forwarded_for).map(|text| node(std::str::from_utf8(text).ok()?))
    }

    /// From the nearest on; `None` is malformed.
    fn elements(&self) -> impl Iterator<Item = Option<Element>> {
        members_from_last(&self.forwarded).map(Element::read)
    }
}

/// The members of all values together. A comma counts also inside of quotes: nothing that we look for holds one, and so
/// nobody's open quote can swallow what a proxy wrote behind it.
fn members_from_last<'a>(values: &[&'a [u8]]) -> impl Iterator<Item = &'a [u8]> {
    values.iter().rev().flat_map(|value| value.rsplit(|&b| b == b',')).map(trim).filter(|member| !member.is_empty())
}

fn nth_last<'a>(values: &[&'a [u8]], hops: usize) -> Option<&'a [u8]> {
    members_from_last(values).take(hops.max(1)).last()
}

fn scheme(text: &[u8]) -> Option<&'static str> {
    ["http", "https"].into_iter().find(|scheme| text.eq_ignore_ascii_case(scheme.as_bytes()))
}

fn host(text: &[u8]) -> Option<String> {
    Some(authority(text).ok()?.into_owned())
}

/// An address, in brackets or not, with a port or without.
fn node(text: &str) -> Option<Node> {
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok().map(IpAddr::V6);
    text.parse().ok().or_else(with_port).or_else(in_brackets).map(Node::ip)
}

/// What one proxy says of whoever it was asked by (RFC 7239 §4).
#[derive(Debug, Default)]
struct Element {
    node: Option<Node>,
    scheme: Option<&'static str>,
    host: Option<String>,
}

impl Element {
    fn read(text: &[u8]) -> Option<Self> {
        let mut element = Self::default();
        let mut seen = Vec::new();
        for pair in text.split(|&b| b == b';') {
            let at = pair.iter().position(|&b| b == b'=')?;
            let (name, value) = (pair[..at].trim_ascii_start().to_ascii_lowercase(), pair[at + 1..].trim_ascii_end());
            let value = match value {
                [b'"', inner @ .., b'"'] if !inner.iter().any(|b| b"\"\\".contains(b)) => inner,
                token if !token.is_empty() && token.iter().all(|&b| is_token_byte(b)) => token,
                _ => return None,
            };
            match &name[..] {
                b"for" => element.node = node(std::str::from_utf8(value).ok()?),
                b"host" => element.host = host(value),
                b"proto" => element.scheme = scheme(value),
                name if !name.is_empty() && name.iter().all(|&b| is_token_byte(b)) => {}
                _ => return None,
            }
            if seen.len() == PAIRS_MAX || seen.contains(&name) {
                return None;
            }
            seen.push(name);
        }
        Some(element)
    }
}

/// In one element; four are known.
const PAIRS_MAX: usize = 8;

#[cfg(test)]
mod tests;
