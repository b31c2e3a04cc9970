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
    put("via", via(onward.version));
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
    put("via", via(version));
    Ok(())
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
fn via(version: Version) -> &'static [u8] {
    match version {
        Version::Http10 => b"1.0 baton",
        Version::Http11 => b"1.1 baton",
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
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http::forwarded::{Node, TrustedProxies};

    type Fields<'a> = &'a [(&'a str, &'a str)];

    fn as_bytes<'a>(fields: Fields<'a>) -> impl Iterator<Item = (&'a str, &'a [u8])> + Clone {
        fields.iter().map(|&(name, value)| (name, value.as_bytes()))
    }

    fn collect(lines: &mut Vec<String>) -> impl FnMut(&str, &[u8]) {
        |name, value| lines.push(format!("{name}: {}", String::from_utf8_lossy(value)))
    }

    fn onward<'a>(client: &'a Client<'a>) -> Onward<'a> {
        Onward { method: "GET", version: Version::Http11, client, host: "x", expect: Expect::Drop, upgrade: None }
    }

    /// What a request of 192.0.2.1 for `x` goes on with, but for what is always the same at its beginning.
    fn sent(fields: Fields<'_>, trusted: &[&str], change: impl FnOnce(&mut Onward<'_>)) -> Vec<String> {
        let trusted = TrustedProxies::parse(trusted).expect("networks");
        let peer = Node::ip("192.0.2.1".parse().expect("one"));
        let client = Client::direct(peer, "http", "x").behind(as_bytes(fields), &trusted);
        let mut onward = onward(&client);
        change(&mut onward);
        let mut lines = Vec::new();
        request(as_bytes(fields), &onward, collect(&mut lines)).expect("few options");
        assert_eq!(lines.remove(0), "host: x");
        lines
    }

    const OURS: [&str; 5] = [
        "x-forwarded-for: 192.0.2.1",
        "x-forwarded-proto: http",
        "x-forwarded-host: x",
        "forwarded: for=192.0.2.1;host=x;proto=http",
        "via: 1.1 baton",
    ];

    fn check(fields: Fields<'_>, kept: &[&str]) {
        assert_eq!(sent(fields, &[], |_| {}), [kept, &OURS].concat(), "{fields:?}");
    }

    #[test]
    fn what_is_for_everybody_goes_on_as_it_is() {
        check(
            &[
                ("Host", "X"),
                ("Accept", "a"),
                ("ACCEPT", "b"),
                ("x_y", ""),
                ("Content-Length", "5"),
                ("Via", "1.0 a"),
                ("Max-Forwards", "0"),
                ("Authorization", "Basic eDp5"),
            ],
            &[
                "Accept: a",
                "ACCEPT: b",
                "x_y: ",
                "Content-Length: 5",
                "Via: 1.0 a",
                "Max-Forwards: 0",
                "Authorization: Basic eDp5",
            ],
        );
    }

    #[test]
    fn what_belongs_to_the_connection_ends_with_it() {
        check(
            &[
                ("Connection", "close, X-Mine ,,x-forwarded-host"),
                ("X-mine", "1"),
                ("Keep-Alive", "1"),
                ("Proxy-Connection", "x-kept"),
                ("X-Kept", "1"),
                ("TE", "gzip"),
                ("Trailer", "a"),
                ("Transfer-Encoding", "chunked"),
                ("Upgrade", "h2c"),
                ("HTTP2-Settings", "AA"),
                ("Proxy-Authorization", "Basic eDp5"),
                ("CONNECTION", "via"),
                ("Via", "1.1 forged"),
            ],
            &["X-Kept: 1"],
        );
    }

    #[test]
    fn what_others_have_to_say_no_client_says() {
        check(
            &[
                ("X-Socket-Handoff", "/run/a"),
                ("x_socket_handoff", "/run/a"),
                ("X-Handoff-Data", "d"),
                ("Proxy", "http://evil"),
                ("Variable-USER", "root"),
                ("Variable_USER", "root"),
                ("X-Forwarded-For", "127.0.0.1"),
                ("X_Forwarded_For", "127.0.0.1"),
                ("X-Forwarded-Port", "443"),
                ("X-Forwarded-Proto", "https"),
                ("Forwarded", "for=127.0.0.1"),
                ("X-Real-IP", "127.0.0.1"),
                ("X-Forward", "kept"),
            ],
            &["X-Forward: kept"],
        );
    }

    #[test]
    fn a_trusted_proxys_word_is_given_on_with_ours_behind() {
        let fields = [
            ("X-Forwarded-For", "203.0.113.9, 198.51.100.1"),
            ("x-forwarded-for", "198.51.100.2"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Port", "443"),
            ("X_Forwarded_For", "127.0.0.1"),
            ("X-Real-IP", "198.51.100.2"),
            ("Forwarded", "for=198.51.100.2;proto=https"),
        ];
        let lines = sent(&fields, &["192.0.2.0/24"], |_| {});
        assert_eq!(
            lines,
            [
                "X-Forwarded-Port: 443",
                "X-Real-IP: 198.51.100.2",
                "x-forwarded-for: 203.0.113.9, 198.51.100.1, 198.51.100.2, 192.0.2.1",
                "x-forwarded-proto: https",
                "x-forwarded-host: x",
                "forwarded: for=198.51.100.2;proto=https, for=192.0.2.1",
                "via: 1.1 baton",
            ]
        );
        let forged = [("X-Forwarded-For", "198.51.100.2"), ("Forwarded", "for=127.0.0.1")];
        let lines = sent(&forged, &["192.0.2.1"], |_| {});
        assert_eq!(lines[3], "forwarded: for=198.51.100.2;host=x;proto=http, for=192.0.2.1");
    }

    #[test]
    fn options_are_added_for_what_is_asked_of_the_next_connection() {
        let te = [("TE", "gzip;q=0.5, Trailers"), ("Connection", "TE")];
        assert_eq!(sent(&te, &[], |_| {})[5..], ["te: trailers", "connection: TE"]);
        assert_eq!(sent(&te, &[], |onward| onward.version = Version::Http10)[4..], ["via: 1.0 baton"]);
        let fields = [("Upgrade", "h2c, websocket"), ("Connection", "upgrade"), ("TE", "trailers")];
        let lines = sent(&fields, &[], |onward| onward.upgrade = Some("websocket"));
        assert_eq!(lines[5..], ["te: trailers", "upgrade: websocket", "connection: TE, upgrade"]);
        let lines = sent(&[], &[], |onward| onward.upgrade = Some("websocket"));
        assert_eq!(lines[5..], ["upgrade: websocket", "connection: upgrade"]);
    }

    #[test]
    fn an_expectation_goes_on_when_it_is_the_upstreams() {
        let fields = [("Expect", "100-continue")];
        check(&fields, &[]);
        assert_eq!(sent(&fields, &[], |onward| onward.expect = Expect::Keep)[0], "Expect: 100-continue");
    }

    #[test]
    fn a_request_that_counts_its_forwards_is_counted() {
        for (value, left, is_the_last) in [
            ("5", "5", false),
            ("0", "0", true),
            ("99999999999", "4294967294", false),
            ("x", "x", false),
            ("", "", false),
        ] {
            let fields = [("Max-Forwards", value)];
            assert_eq!(sent(&fields, &[], |_| {})[0], format!("Max-Forwards: {value}"));
            assert!(!is_last("GET", as_bytes(&fields)));
            let left = if value == "5" { "4" } else { left };
            assert_eq!(sent(&fields, &[], |onward| onward.method = "TRACE")[0], format!("Max-Forwards: {left}"));
            assert_eq!(is_last("OPTIONS", as_bytes(&fields)), is_the_last, "{value}");
        }
    }

    #[test]
    fn an_answer_loses_what_is_not_the_clients() {
        let fields = [
            ("connection", "keep-alive, x-mine"),
            ("x-mine", "1"),
            ("x-socket-handoff", "/run/a"),
            ("X-Handoff_Data", "d"),
            ("x-accel-redirect", "/internal"),
            ("X-Accel-Buffering", "no"),
            ("transfer-encoding", "chunked"),
            ("proxy-authenticate", "Basic"),
            ("content-length", "5"),
            ("set-cookie", "a"),
            ("set-cookie", "b"),
            ("via", "1.1 inner"),
        ];
        let mut lines = Vec::new();
        answer(as_bytes(&fields), Version::Http10, collect(&mut lines)).expect("few options");
        let kept = ["content-length: 5", "set-cookie: a", "set-cookie: b", "via: 1.1 inner", "via: 1.0 baton"];
        assert_eq!(lines, kept);
    }

    #[test]
    fn trailers_are_what_nobody_needs_to_know_before() {
        let fields = [
            ("Checksum", "1"),
            ("content-length", "5"),
            ("Transfer-Encoding", "chunked"),
            ("X-Socket-Handoff", "/run/a"),
            ("x-accel-redirect", "/a"),
            ("host", "x"),
            ("set-cookie", "a"),
            ("connection", "close"),
            ("x-forwarded-for", "::1"),
            ("server-timing", "a"),
        ];
        let mut lines = Vec::new();
        trailers(as_bytes(&fields), collect(&mut lines));
        assert_eq!(lines, ["Checksum: 1", "server-timing: a"]);
    }

    #[test]
    fn connection_names_so_many_fields_and_no_more() {
        for (count, is_allowed) in [(OPTIONS_MAX, true), (OPTIONS_MAX + 1, false)] {
            let value = ["a"; OPTIONS_MAX + 1][..count].join(",");
            let fields = [("Connection", &value[..])];
            let client = Client::direct(Node::Unix, "http", "x");
            let mut lines = Vec::new();
            assert_eq!(request(as_bytes(&fields), &onward(&client), collect(&mut lines)).is_ok(), is_allowed);
            assert_eq!(lines.is_empty(), !is_allowed);
            assert_eq!(answer(as_bytes(&fields), Version::Http11, |_, _| {}).is_ok(), is_allowed);
        }
    }

    const NAMES: [&str; 26] = [
        "accept",
        "connection",
        "cookie",
        "expect",
        "forwarded",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "variable-a",
        "via",
        "x-accel-redirect",
        "x-forwarded-for",
        "x-forwarded-port",
        "x-handoff-data",
        "x-handoff_data",
        "x-mine",
        "x-real-ip",
        "x-socket-handoff",
    ];

    const NEVER: [&str; 9] = [
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "trailer",
        "transfer-encoding",
        "x-handoff-data",
        "x-socket-handoff",
    ];

    fn any_field() -> impl Strategy<Value = (String, String)> {
        let name = (proptest::sample::select(&NAMES[..]), any::<bool>())
            .prop_map(|(name, upper)| if upper { name.to_ascii_uppercase() } else { name.to_owned() });
        let named = proptest::collection::vec(proptest::sample::select(&NAMES[..]), 0..4);
        (name, named).prop_map(|(name, named)| (name, named.join(" ,\t")))
    }

    proptest! {
        #[test]
        fn whatever_comes_in_nothing_of_the_connection_comes_out(
            fields in proptest::collection::vec(any_field(), 0..20),
            is_trusted in any::<bool>(),
        ) {
            let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (&name[..], &value[..])).collect();
            let nominated: Vec<_> = fields.iter().filter(|(name, _)| name.eq_ignore_ascii_case("connection"))
                .flat_map(|(_, value)| list(value.as_bytes())).map(<[u8]>::to_vec).collect();
            let is_ours = |line: &&String| line.ends_with(": 1.1 baton")
                || ["x-forwarded-", "forwarded: "].iter().any(|name| line.starts_with(name))
                || ["te: trailers", "connection: TE"].contains(&&line[..]);
            let may_be = |line: &str| {
                let (name, _) = line.split_once(": ").expect("a line");
                let name = name.to_ascii_lowercase().replace('_', "-");
                !NEVER.contains(&&name[..]) && !["connection", "te", "upgrade", "proxy", "variable-a"].contains(&&name[..])
                    && !nominated.iter().any(|named| named == name.as_bytes())
            };
            let lines = sent(&fields, if is_trusted { &["192.0.2.1"] } else { &[] }, |_| {});
            for line in lines.iter().filter(|line| !is_ours(line)) {
                prop_assert!(may_be(line), "{line}");
            }
            let count = |start: &str| lines.iter().filter(|line| line.to_ascii_lowercase().starts_with(start)).count();
            prop_assert_eq!((count("x-forwarded-for:"), count("forwarded:")), (1, 1));
            prop_assert!(is_trusted || count("x-real-ip:") + count("x-forwarded-port:") == 0);

            let mut lines = Vec::new();
            answer(as_bytes(&fields), Version::Http11, collect(&mut lines)).expect("few options");
            trailers(as_bytes(&fields), |name, value| {
                if !nominated.iter().any(|named| named.eq_ignore_ascii_case(name.as_bytes())) {
                    collect(&mut lines)(name, value);
                }
            });
            let wanted_of_requests_only = ["proxy", "variable-a"];
            for line in lines.iter().filter(|line| line.as_str() != "via: 1.1 baton") {
                let (name, _) = line.split_once(": ").expect("a line");
                prop_assert!(may_be(line) || wanted_of_requests_only.contains(&&name.to_ascii_lowercase()[..]), "{line}");
                prop_assert!(!name.to_ascii_lowercase().starts_with("x-accel-"), "{line}");
            }
        }
    }
}
