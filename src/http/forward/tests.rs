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
    for (value, left, is_the_last) in
        [("5", "5", false), ("0", "0", true), ("99999999999", "4294967294", false), ("x", "x", false), ("", "", false)]
    {
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
