//! What of a message's fields goes on to the next: from a client to an upstream, and back (RFC 9110 §7.6).
//!
//! What belongs to one connection ends with it: the fields that are known to, and those that `Connection` names. They are
//! removed before anything of ours is added, so nobody can name ours and have it removed (CVE-2022-31813). What would be
//! taken for somebody else's word is removed too: who the client is, unless the peer is trusted ([`super::forwarded`]);
//! what an authorizer said; where the client is to be handed to, which no client says, and no client is told.
//!
//! `Proxy-Authenticate` and `Proxy-Authorization` are a matter between a client and the proxy that it chose (RFC 9110
//! §11.7). Nobody chooses us, we ask for nothing, and an application that found them would have been given, or would be
//! asking for, a password that is for somebody else. So they end here, in both directions.
//!
//! `Content-Length` is for everybody and goes on; whoever frames the body anew replaces it.

use std::io::Write as _;

use super::fields::list;
use super::forwarded::Client;
use super::head::Version;

/// Names in the `Connection` fields of one message. Each field is compared with each of them.
pub const OPTIONS_MAX: usize = 100;

/// `Connection` names more fields than [`OPTIONS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {OPTIONS_MAX} options in Connection")]
pub struct TooManyOptions;

/// How a request goes on, besides by its fields.
#[derive(Clone, Copy, Debug)]
pub struct Onward<'a> {
    /// Of the request.
    pub method: &'a str,
    /// In which the request came.
    pub version: Version,
    /// Who asks.
    pub client: &'a Client<'a>,
    /// What `Host` is to say.
    pub host: &'a str,
    /// Whether the upstream is to say when it wants the body, if the client waits for that.
    pub expect: Expect,
    /// The protocol that the upstream is asked to switch to; whatever the client asked for, nothing else is.
    pub upgrade: Option<&'a str>,
}

/// What becomes of `Expect`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// It was dealt with here.
    Drop,
    /// It is the upstream's.
    Keep,
}

/// What a field is to whoever stands between two connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Not trusted from anybody; not given to anybody.
    Banned,
    /// Who the client is, as somebody says.
    Claim(Claim),
    EndToEnd,
    Expect,
    Host,
    HopByHop,
    MaxForwards,
    Te,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    Addresses,
    Elements,
    /// Replaced by what we know.
    Known,
    Other,
}

/// Gives the fields of a request as they go on to `put`, one after the other, `Host` first; ours last. `fields` may have
/// been edited. Field values that nobody changes are not copied.
///
/// # Errors
/// [`TooManyOptions`]; nothing was put then.
pub fn request<'a>(
    fields: impl Iterator<Item = (&'a str, &'a [u8])> + Clone,
    onward: &Onward<'_>,
    mut put: impl FnMut(&str, &[u8]),
) -> Result<(), TooManyOptions> {
    let nominated = Nominated::of(fields.clone())?;
    let client = onward.client;
    let believed = client.believed();
    // Both are made of what came and what is added.
    let (mut addresses, mut elements) = (Vec::new(), Vec::new());
    let mut wants_trailers = false;
    put("host", onward.host.as_bytes());
    for (name, value) in fields {
        match kind_of_request(name) {
            Kind::Te => wants_trailers |= list(value).any(|coding| coding.eq_ignore_ascii_case(b"trailers")),
            Kind::Banned | Kind::Host | Kind::HopByHop => {}
            _ if nominated.has(name) => {}
            Kind::Claim(Claim::Addresses) if believed.addresses => join(&mut addresses, value),
            Kind::Claim(Claim::Elements) if believed.elements => join(&mut elements, value),
            Kind::Claim(Claim::Other) if believed.peer => put(name, value),
            Kind::Claim(_) => {}
            Kind::Expect if onward.expect == Expect::Drop => {}
            Kind::MaxForwards if counts_forwards(onward.method) => match forwards(value) {
                Some(left) => put(name, left.saturating_sub(1).to_string().as_bytes()),
                None => put(name, value),
            },
            Kind::EndToEnd | Kind::Expect | Kind::MaxForwards => put(name, value),
        }
    }
    client.put_addresses(&mut addresses);
    put("x-forwarded-for", &addresses);
    put("x-forwarded-proto", client.scheme.as_bytes());
    if !client.host.is_empty() {
        put("x-forwarded-host", client.host.as_bytes());
    }
    client.put_elements(&mut elements);
    put("forwarded", &elements);
    put("via", via(onward.version).as_bytes());
    // A client of HTTP/1.0 gets no chunks, so no trailers either.
    wants_trailers &= onward.version == Version::Http11;
    if wants_trailers {
        put("te", b"trailers");
    }
    if let Some(protocol) = onward.upgrade {
        put("upgrade", protocol.as_bytes());
    }
    match (wants_trailers, onward.upgrade.is_some()) {
        (false, false) => {}
        (true, false) => put("connection", b"TE"),
        (false, true) => put("connection", b"upgrade"),
        (true, true) => put("connection", b"TE, upgrade"),
    }
    Ok(())
}

/// The fields of a request that a program is told of, which gets them one by one and nothing of ours: what is nobody's word
/// is not among them, nor a claim about the client that is not believed.
pub fn for_program<'a, N: AsRef<str>>(
    fields: impl Iterator<Item = (N, &'a [u8])>,
    client: &Client<'_>,
) -> impl Iterator<Item = (N, &'a [u8])> {
    let believed = client.believed();
    fields.filter(move |(name, _)| match kind_of_request(name.as_ref()) {
        Kind::Banned => false,
        Kind::Claim(Claim::Addresses) => believed.addresses,
        Kind::Claim(Claim::Elements) => believed.elements,
        Kind::Claim(_) => believed.peer,
        _ => true,
    })
}

/// Gives the fields of an answer, an interim one too, as they go on to `put`, ours last. `version` is the one in which it
/// came.
///
/// # Errors
/// [`TooManyOptions`]; nothing was put then.
pub fn answer<'a>(
    fields: impl Iterator<Item = (&'a str, &'a [u8])> + Clone,
    version: Version,
    mut put: impl FnMut(&str, &[u8]),
) -> Result<(), TooManyOptions> {
    let nominated = Nominated::of(fields.clone())?;
    for (name, value) in fields {
        if kind_of_answer(name) == Kind::EndToEnd && !nominated.has(name) {
            put(name, value);
        }
    }
    put("via", via(version).as_bytes());
    Ok(())
}

/// Whether a field of an answer goes on, if the answer's `Connection` does not name it; `Connection` itself does not.
pub fn is_end_to_end(name: &str) -> bool {
    kind_of_answer(name) == Kind::EndToEnd
}

/// Gives the trailers of an answer, or of a request, that go on to `put`. What decides how a message is framed, routed,
/// authorized or understood is none (RFC 9110 §6.5.1): it comes too late, and somebody might merge it.
pub fn trailers<'a>(fields: impl Iterator<Item = (&'a str, &'a [u8])>, mut put: impl FnMut(&str, &[u8])) {
    for (name, value) in fields {
        let is_known = || HEAD_ONLY.iter().any(|known| name.eq_ignore_ascii_case(known));
        if kind_of_answer(name) == Kind::EndToEnd && kind_of_request(name) == Kind::EndToEnd && !is_known() {
            put(name, value);
        }
    }
}

/// What counts in a head only, and is given on there.
const HEAD_ONLY: [&str; 22] = [
    "age",
    "authorization",
    "cache-control",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "expires",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "location",
    "range",
    "retry-after",
    "set-cookie",
    "vary",
    "via",
    "www-authenticate",
];

/// Whether a request goes no further than here, because whoever sent it allows no more (`Max-Forwards: 0`, RFC 9110
/// §7.6.2): it is answered as if we were its last recipient.
pub fn is_last<'a>(method: &str, mut fields: impl Iterator<Item = (&'a str, &'a [u8])>) -> bool {
    counts_forwards(method)
        && fields.any(|(name, value)| name.eq_ignore_ascii_case("max-forwards") && forwards(value) == Some(0))
}

fn counts_forwards(method: &str) -> bool {
    matches!(method, "OPTIONS" | "TRACE")
}

fn forwards(value: &[u8]) -> Option<u32> {
    let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    // More than there is room for is as good as the most.
    is_number.then(|| std::str::from_utf8(value).ok()?.parse().ok()).map(|number| number.unwrap_or(u32::MAX))
}

/// Our element, by the version of what we received (RFC 9110 §7.6.3).
pub fn via(version: Version) -> &'static str {
    match version {
        Version::Http10 => "1.0 baton",
        Version::Http11 => "1.1 baton",
    }
}

/// Puts a value and a comma behind the values that are there.
fn join(out: &mut Vec<u8>, value: &[u8]) {
    if !value.is_empty() {
        out.write_all(value).and_then(|()| out.write_all(b", ")).expect("memory takes everything");
    }
}

/// What the `Connection` fields of a message name, but for the options that are no fields and the fields that are
/// hop-by-hop in any case: usually nothing.
struct Nominated<'a>(Vec<&'a [u8]>);

impl<'a> Nominated<'a> {
    fn of(fields: impl Iterator<Item = (&'a str, &'a [u8])>) -> Result<Self, TooManyOptions> {
        let mut count = 0;
        let mut names = Vec::new();
        for (name, value) in fields {
            if !name.eq_ignore_ascii_case("connection") {
                continue;
            }
            for option in list(value) {
                count += 1;
                if count > OPTIONS_MAX {
                    return Err(TooManyOptions);
                }
                let usual: [&[u8]; 4] = [b"close", b"keep-alive", b"te", b"upgrade"];
                if !usual.iter().any(|known| option.eq_ignore_ascii_case(known)) {
                    names.push(option);
                }
            }
        }
        Ok(Self(names))
    }

    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|named| named.eq_ignore_ascii_case(name.as_bytes()))
    }
}

fn kind_of_request(name: &str) -> Kind {
    let is = |asked: &str| name.eq_ignore_ascii_case(asked);
    // Lengths first: most fields are ruled out by one comparison.
    let kind = match name.len() {
        4 if is("host") => Kind::Host,
        // httpoxy: a program in the manner of CGI takes it for its own setting (CVE-2016-5385).
        5 if is("proxy") => Kind::Banned,
        6 if is("expect") => Kind::Expect,
        9 if is("forwarded") => Kind::Claim(Claim::Elements),
        9 if is("x-real-ip") => Kind::Claim(Claim::Other),
        9 if is_like(name, "x-real-ip") => Kind::Banned,
        12 if is("max-forwards") => Kind::MaxForwards,
        12.. if starts_like(name, "x-forwarded-") => match name.len() {
            // Some programs find `X_Forwarded_For` and `X-Forwarded-For` under one name. No proxy writes the first.
            _ if !name[..12].eq_ignore_ascii_case("x-forwarded-") => Kind::Banned,
            15 if is("x-forwarded-for") => Kind::Claim(Claim::Addresses),
            16 if is("x-forwarded-host") => Kind::Claim(Claim::Known),
            17 if is("x-forwarded-proto") => Kind::Claim(Claim::Known),
            _ => Kind::Claim(Claim::Other),
        },
        _ => Kind::EndToEnd,
    };
    match kind {
        Kind::EndToEnd if starts_like(name, "variable-") || names_handoff(name) => Kind::Banned,
        Kind::EndToEnd => hop_by_hop(name),
        kind => kind,
    }
}

fn kind_of_answer(name: &str) -> Kind {
    // What an application tells the server in front of it, in nginx's words.
    if names_handoff(name) || starts_like(name, "x-accel-") { Kind::Banned } else { hop_by_hop(name) }
}

fn hop_by_hop(name: &str) -> Kind {
    let is = |asked: &str| name.eq_ignore_ascii_case(asked);
    let is_hop_by_hop = match name.len() {
        2 if is("te") => return Kind::Te,
        7 => is("trailer") || is("upgrade"),
        10 => is("connection") || is("keep-alive"),
        // What was said with an Upgrade to h2c, which is not passed on (RFC 7540 §3.2.1).
        14 => is("http2-settings"),
        16 => is("proxy-connection"),
        17 => is("transfer-encoding"),
        18 => is("proxy-authenticate"),
        19 => is("proxy-authorization"),
        25 => is("proxy-authentication-info"),
        _ => false,
    };
    if is_hop_by_hop { Kind::HopByHop } else { Kind::EndToEnd }
}

fn names_handoff(name: &str) -> bool {
    match name.len() {
        14 => is_like(name, "x-handoff-data"),
        16 => is_like(name, "x-socket-handoff"),
        _ => false,
    }
}

fn starts_like(name: &str, asked: &str) -> bool {
    name.get(..asked.len()).is_some_and(|start| is_like(start, asked))
}

/// Whether a program that keeps fields in its environment (RFC 3875 §4.1.18), where punctuation does not count, would find
/// `name` as the one asked for, which is of the same length and in lower case.
fn is_like(name: &str, asked: &str) -> bool {
    let is_same = |(a, b): (u8, u8)| a.eq_ignore_ascii_case(&b) || (b == b'-' && !a.is_ascii_alphanumeric());
    name.bytes().zip(asked.bytes()).all(is_same)
}

#[cfg(test)]
mod tests;
