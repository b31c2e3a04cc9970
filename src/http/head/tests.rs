//! What a head is, line by line, and what holds for any input.

use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::http::naive::{SMALL, check_head};

const LIMITS: Limits = Limits { head_bytes_max: 32 << 10, headers_max: 100 };

fn parse(text: &str) -> Result<RequestHead, HeadError> {
    match end(text.as_bytes(), 0, LIMITS)? {
        Some(length) => RequestHead::parse(&text.as_bytes()[..length], LIMITS),
        None => panic!("no end in {text:?}"),
    }
}

fn refused(text: &str, status: u16) {
    match parse(text) {
        Err(error) => assert_eq!(error.status(), status, "{text:?}: {error}"),
        Ok(head) => panic!("{text:?} was accepted: {head:?}"),
    }
}

fn get(fields: &str) -> Result<RequestHead, HeadError> {
    parse(&format!("GET /a HTTP/1.1\r\nHost: x\r\n{fields}\r\n"))
}

#[test]
fn a_head_says_what_it_says() {
    let head =
        parse("POST /A/%62?q=1?2 HTTP/1.1\r\nhOST: Example.ORG:80\r\nX:\r\nContent-Length: 3\r\nX:  b \r\n\r\nabc")
            .expect("well-formed");
    assert_eq!((head.method(), head.target(), head.path()), ("POST", "/A/%62?q=1?2", "/A/b"));
    assert_eq!((head.query(), head.authority(), head.host()), (Some("q=1?2"), "example.org:80", "example.org"));
    assert_eq!((head.framing(), head.persistence()), (Framing::Length(3), Persistence::KeepAlive));
    assert_eq!(head.field_all("x").collect::<Vec<_>>(), [&b""[..], b"b"]);
    assert!(head.bytes().ends_with(b"X:  b \r\n\r\n"));
}

#[test]
fn splitting_anywhere_changes_nothing() {
    let text = b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n\r\nPOST";
    for cut in 0..text.len() {
        let first = end(&text[..cut], 0, LIMITS).expect("well-formed so far");
        let whole = match first {
            Some(length) => Some(length),
            None => end(text, cut, LIMITS).expect("well-formed"),
        };
        assert_eq!(whole, Some(text.len() - 4), "cut at {cut}");
    }
}

#[test]
fn a_head_at_the_limit_fits_and_one_byte_more_does_not() {
    let text = format!("GET / HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "a".repeat(64));
    let limits = |head_bytes_max| Limits { head_bytes_max, headers_max: 2 };
    assert_eq!(end(text.as_bytes(), 0, limits(text.len())), Ok(Some(text.len())));
    assert_eq!(end(text.as_bytes(), 0, limits(text.len() - 1)), Err(HeadError::TooLarge(text.len() - 1)));
    assert_eq!(end(text.as_bytes(), 0, limits(10)), Err(HeadError::TargetTooLong(10)));
    assert!(RequestHead::parse(text.as_bytes(), limits(text.len())).is_ok());
    let fewer = Limits { headers_max: 1, ..limits(text.len()) };
    assert_eq!(RequestHead::parse(text.as_bytes(), fewer).err(), Some(HeadError::TooManyFields(1)));
    let many = Limits { headers_max: 200, ..limits(9000) };
    let text = |n: usize| format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(n - 1));
    assert!(RequestHead::parse(text(200).as_bytes(), many).is_ok());
    assert_eq!(RequestHead::parse(text(201).as_bytes(), many).err(), Some(HeadError::TooManyFields(200)));
}

#[test]
fn line_breaks_are_crlf() {
    refused("GET / HTTP/1.1\nHost: x\r\n\r\n", 400);
    refused("GET / HTTP/1.1\r\nHost: x\n\r\n", 400);
    refused("GET / HTTP/1.1\rHost: x\r\n\r\n", 400);
    refused("GET / HTTP/1.1\r\nHost: x\rA: b\r\n\r\n", 400);
    refused("\nGET / HTTP/1.1\r\n\r\n", 400);
    refused(" GET / HTTP/1.1\r\nHost: x\r\n\r\n", 400);
    refused("\u{16}\u{3}\u{1}", 400);
}

#[test]
fn request_lines() {
    for line in [
        "GET /",
        "GET  / HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET /a b HTTP/1.1",
        "GET /a b HTTP/2.0",
        "GET / http/1.1",
        "G@T / HTTP/1.1",
        "GET /\u{7f} HTTP/1.1",
        "GET /é HTTP/1.1",
        "GET /a#b HTTP/1.1",
        "GET a HTTP/1.1",
        "GET * HTTP/1.1",
        "GET ftp://x/ HTTP/1.1",
        "GET / HTTP/1",
        "GET /%zz HTTP/1.1",
        "GET /../x HTTP/1.1",
        "GET http:// HTTP/1.1",
        "GET http://u@x/ HTTP/1.1",
        "GET /\t HTTP/1.1",
    ] {
        refused(&format!("{line}\r\nHost: x\r\n\r\n"), 400);
    }
    for line in ["GET / HTTP/2.0", "GET / HTTP/1.2", "GET / HTTP/0.9", "GET / HTTP/3.1"] {
        refused(&format!("{line}\r\nHost: x\r\n\r\n"), 505);
    }
    refused("CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", 501);
    assert_eq!(parse("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n").map(|h| h.path().to_owned()), Ok("*".into()));
}

#[test]
fn absolute_form_names_the_host_that_host_names() {
    let absolute = |target: &str, host: &str| parse(&format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    let head = absolute("http://Y:81?q", "y:81").expect("well-formed");
    assert_eq!((head.authority(), head.path(), head.query()), ("y:81", "/", Some("q")));
    assert_eq!(absolute("http://x:80/a", "x").map(|h| h.authority().to_owned()), Ok("x:80".into()));
    assert_eq!(absolute("http://x/a", "y").err(), Some(HeadError::Host(HostFault::Conflicting)));
    refused("GET http://y/ HTTP/1.1\r\n\r\n", 400);
    let alone = parse("GET http://y/ HTTP/1.0\r\n\r\n").expect("well-formed");
    assert_eq!((alone.authority(), alone.host()), ("y", "y"));
    let asked =
        |target: &str| parse(&format!("OPTIONS {target} HTTP/1.1\r\nHost: x\r\n\r\n")).map(|h| h.path().to_owned());
    assert_eq!(
        (asked("http://x"), asked("http://x/"), asked("http://x?")),
        (Ok("*".into()), Ok("/".into()), Ok("/".into()))
    );
}

#[test]
fn what_has_one_form_already_is_not_stored_again() {
    let is_made = |text: &Text| matches!(text, Text::Made(_));
    let made = |target: &str, host: &str| {
        let head = parse(&format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")).expect("well-formed");
        (is_made(&head.path), is_made(&head.authority))
    };
    assert_eq!(made("/a/b?c", "example.org:80"), (false, false));
    assert_eq!(made("/", "[::1]"), (false, false));
    assert_eq!(made("/%61", "Example.org"), (true, true));
}

#[test]
fn hosts() {
    refused("GET / HTTP/1.1\r\n\r\n", 400);
    assert_eq!(parse("GET / HTTP/1.0\r\n\r\n").map(|h| h.authority().to_owned()), Ok(String::new()));
    refused("GET / HTTP/1.0\r\nHost: x\r\nHost: x\r\n\r\n", 400);
    for host in ["", "a b", "a/b", "u@x", "x:y", "x:99999", "[::1", "[zz]", "[::1]80", "x:1:2", "a,b c", "\"x\"", "é"]
    {
        refused(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"), 400);
    }
    for (host, name) in [
        ("X", "x"),
        ("x:", "x"),
        ("[::1]:80", "[::1]"),
        ("[::1]", "[::1]"),
        ("127.0.0.1:8", "127.0.0.1"),
        ("x.:80", "x"),
        ("x.", "x"),
    ] {
        let head = parse(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).expect(host);
        assert_eq!(head.host(), name);
    }
}

#[test]
fn field_lines() {
    for line in ["A : b", " A: b", "A", ": b", "A: b\r\n c", "A: \u{1}", "A: b\u{0}", "A\u{b}: b", "é: b", "A: b\u{7f}"]
    {
        assert_eq!(get(&format!("{line}\r\n")).map_err(HeadError::status).err(), Some(400), "{line:?}");
    }
    assert!(get("A: \u{e9}\tb\r\n").is_ok());
}

#[test]
fn framing_has_one_meaning() {
    let framing = |fields: &str| get(fields).map(|h| h.framing()).map_err(HeadError::status);
    assert_eq!(framing(""), Ok(Framing::None));
    assert_eq!(framing("Content-Length: 0\r\n"), Ok(Framing::None));
    assert_eq!(framing("Content-Length: 7\r\n"), Ok(Framing::Length(7)));
    assert_eq!(framing("Content-Length: 9223372036854775807\r\n"), Ok(Framing::Length(i64::MAX as u64)));
    for value in [
        "",
        "+1",
        "-1",
        "-0",
        "007",
        "00",
        "1,1",
        "1 1",
        "0x1",
        "1.0",
        "1_0",
        "9223372036854775808",
        "18446744073709551617",
        "one",
    ] {
        assert_eq!(framing(&format!("Content-Length: {value}\r\n")), Err(400), "{value}");
    }
    assert_eq!(framing("Content-Length: 1\r\nContent-Length: 1\r\n"), Err(400));
    assert_eq!(framing("Transfer-Encoding: chunked\r\n"), Ok(Framing::Chunked));
    assert_eq!(framing("Transfer-Encoding: CHUNKED\r\n"), Ok(Framing::Chunked));
    assert_eq!(framing("Transfer-Encoding: chunked\r\nContent-Length: 1\r\n"), Err(400));
    assert_eq!(framing("Transfer-Encoding: gzip\r\nContent-Length: 1\r\n"), Err(400));
    for value in ["gzip", "identity", "gzip, chunked", "xchunked"] {
        assert_eq!(framing(&format!("Transfer-Encoding: {value}\r\n")), Err(501), "{value}");
    }
    for value in ["", "chunked, gzip", "chunked, chunked", ",chunked", "chunked,", "chunked;q=1", "\"chunked\""] {
        assert_eq!(framing(&format!("Transfer-Encoding: {value}\r\n")), Err(400), "{value}");
    }
    assert_eq!(framing("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), Err(400));
    refused("GET / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", 400);
    refused("TRACE / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n", 400);
    assert_eq!(framing("Upgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 1\r\n"), Err(400));
    assert_eq!(framing("Upgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 0\r\n"), Ok(Framing::None));
    assert_eq!(framing("Expect: something\r\n"), Err(417));
    assert_eq!(framing("Expect: 100-continue\r\nExpect: 100-continue\r\n"), Err(400));
    for name in ["Content_Length", "content.length", "CONTENT+LENGTH", "Transfer_Encoding", "Transfer-Encoding\u{7c}"] {
        let expected = if name.ends_with('|') { Ok(Framing::None) } else { Err(400) };
        assert_eq!(framing(&format!("{name}: 1\r\n")), expected, "{name}");
    }
}

#[test]
fn what_connection_names_is_not_what_everybody_needs() {
    let connection =
        |value: &str| get(&format!("Connection: {value}\r\n")).map(|h| h.persistence()).map_err(HeadError::status);
    for value in ["", "keep-alive", "Upgrade, HTTP2-Settings", "TE", ", x ,", "\tKeep-Alive,x-own"] {
        assert_eq!(connection(value), Ok(Persistence::KeepAlive), "{value:?}");
    }
    assert_eq!(connection("close, keep-alive"), Ok(Persistence::Close));
    for value in [
        "Host",
        "x, Content-Length",
        "TRANSFER-ENCODING",
        "authorization",
        "X-Forwarded-For",
        "\"close\"",
        "close;x",
        "a b",
        "é",
    ] {
        assert_eq!(connection(value), Err(400), "{value:?}");
    }
    let authorized = |count: usize| get(&"Authorization: Bearer x\r\n".repeat(count)).map(drop);
    assert_eq!((authorized(1), authorized(2)), (Ok(()), Err(HeadError::Repeated("Authorization"))));
}

#[test]
fn persistence_is_the_versions_unless_said() {
    let of = |text: &str| parse(text).expect("well-formed").persistence();
    assert_eq!(of("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), Persistence::KeepAlive);
    assert_eq!(of("GET / HTTP/1.1\r\nHost: x\r\nConnection: x, Close\r\n\r\n"), Persistence::Close);
    assert_eq!(of("GET / HTTP/1.0\r\n\r\n"), Persistence::Close);
    assert_eq!(of("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"), Persistence::KeepAlive);
}

const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "OPTIONS", "TRACE", "get", "M-SEARCH"];
const TARGETS: [&str; 12] = [
    "/",
    "*",
    "/a/b?c",
    "/%61/..//b",
    "/a%2fb;c",
    "http://x",
    "http://x:80/a",
    "HTTPS://x?q",
    "http://[0::1]/",
    "/..;/",
    "/a\\b",
    "//x/..",
];
const FIELDS: [&str; 16] = [
    "A: b\r\n",
    "B:\t c \r\n",
    "C:\r\n",
    "Connection: close\r\n",
    "Connection: keep-alive, x\r\n",
    "Content-Length: 5\r\n",
    "Content-Length: 0\r\n",
    "Content_Length: 5\r\n",
    "Expect: 100-continue\r\n",
    "Host: x\r\n",
    "Host: [0:0::1]:80\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: gzip\r\n",
    "Upgrade: h2c\r\n",
    "Cookie: a=b; c=\u{e9}\r\n",
    "Authorization: x\r\n",
];

/// What heads are made of, whole and in splinters.
fn splinter() -> impl Strategy<Value = &'static str> {
    let lines = [
        "GET / HTTP/1.1\r\nHost: x\r\n",
        "POST ",
        " HTTP/1.0\r\n",
        "Host:",
        "Content-Length:",
        "Transfer-Encoding:",
        "Connection:",
        "chunked",
    ];
    let bits = [
        "\r\n", "\r", "\n", "\r\n\r\n", " ", "\t", "0", "7", "+", ",", ":", ";", "/", "..", "%", "2", "f", "x",
        "\u{e9}", "\0", "\u{7f}", "\"", "#", "?", "[",
    ];
    select([&lines[..], &bits, &FIELDS, &TARGETS].concat())
}

proptest! {
    #[test]
    fn no_input_is_read_in_two_ways(bytes in proptest::collection::vec(any::<u8>(), 0..200), piece in 1usize..40) {
        check_head(&bytes, piece, SMALL);
    }

    #[test]
    fn nor_is_one_made_of_a_heads_splinters(parts in proptest::collection::vec(splinter(), 0..40), piece in 1usize..40) {
        check_head(parts.concat().as_bytes(), piece, SMALL);
    }

    #[test]
    fn nor_is_a_head_that_is_nearly_one(
        (method, target, fields) in (select(&METHODS[..]), select(&TARGETS[..]), proptest::collection::vec(select(&FIELDS[..]), 0..6)),
        version in select(&["1.0", "1.1"][..]),
        at in any::<prop::sample::Index>(),
        change in "|[\\x00-\\x7f]|\r\n| |:",
        cut in 0usize..3,
        piece in 1usize..40,
    ) {
        let text = format!("{method} {target} HTTP/{version}\r\nHost: x\r\n{}\r\n", fields.concat());
        check_head(text.as_bytes(), piece, SMALL);
        let at = at.index(text.len());
        let changed = [text.as_bytes().get(..at).unwrap(), change.as_bytes(), text.as_bytes().get(at + cut..).unwrap_or(b"")].concat();
        check_head(&changed, piece, SMALL);
    }

    #[test]
    fn a_kept_head_is_the_bytes(fields in proptest::collection::vec(("[A-Za-z-]{1,12}", "[ -~]{0,30}"), 0..20)) {
        let lines: String = fields.iter().map(|(n, v)| format!("X{n}: {v}\r\n")).collect();
        let text = format!("GET /p HTTP/1.1\r\nHost: h\r\n{lines}\r\n");
        let head = parse(&text).expect("well-formed");
        assert_eq!(head.bytes(), text.as_bytes());
        let got: Vec<_> = head.fields().skip(1).map(|(n, v)| (n[1..].to_owned(), String::from_utf8(v.to_vec()).unwrap())).collect();
        let sent: Vec<_> = fields.iter().map(|(n, v)| (n.clone(), v.trim().to_owned())).collect();
        assert_eq!(got, sent);
    }
}
