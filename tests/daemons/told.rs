//! What comes beside the client: data, metadata, bodies, memfds.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::Shutdown;
use std::thread;

use baton::handoff::native::frame::{Frame, Reason};
use baton::handoff::native::header::PACKET_BYTES_MAX;
use serde_json::{Value, json};

use crate::broken::Named;
use crate::client::{Lent, Request, memfd};
use crate::gateway::Channel;
use crate::language::{Daemon, Language};
use crate::support::eventually;

/// Every byte value, any length, in the packet and in a memfd.
pub fn gets_the_data_byte_by_byte(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    let all: Vec<u8> = (0..=255).collect();
    for length in [0, 1, 256, 70_001] {
        let data: Vec<u8> = all.iter().copied().cycle().take(length).collect();
        let (response, _) = channel.answered(&Request::get("/data").data(&data));
        assert!(response.body == data, "{length} bytes in the packet");
    }
    for length in [0, 1, 256, 1 << 20] {
        let data: Vec<u8> = all.iter().copied().cycle().take(length).collect();
        let mut request = Request::get("/data");
        request.memfds[1] = Some(memfd(&data));
        let (response, _) = channel.answered(&request);
        assert!(response.body == data, "{length} bytes in a memfd");
    }
}

/// The largest packet there is.
pub fn reads_a_packet_of_the_largest_size(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    let empty = Request::get("/data").frame(1).len();
    let data = vec![b'd'; PACKET_BYTES_MAX - empty];
    let request = Request::get("/data").data(&data);
    assert_eq!(request.frame(1).len(), PACKET_BYTES_MAX);
    let (response, _) = channel.answered(&request);
    assert!(response.body == data);
}

/// What the daemon said that it does not take.
pub fn takes_no_more_data_than_it_said(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    let Some(max) = channel.hello.data_bytes_max else { return };
    let mut request = Request::get("/data");
    request.memfds[1] = Some(memfd(&vec![b'd'; usize::try_from(max).unwrap() + 1]));
    let lent = channel.hand(&request);
    if let Some(refusal) = channel.refused_or_ended(&lent) {
        assert_eq!(refusal.reason, Reason::Unsupported);
    }
    lent.check_untouched(&daemon, b"");
    Channel::open(&daemon).is_alive();
}

/// What was told is what is known: values that are no text, members that nobody knows.
pub fn gets_the_metadata_as_it_is(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    let mut request = Request::get("/meta?a=%20b&c");
    request =
        request.header("x-raw", json!({"base64": "/w=="})).header("x", "1").header("x", "J\u{f6}rg \u{1f600}\\\"");
    let more = json!({
        "id": "01JD8Y6QZ0V6T3H7N2K4M5R8WX", "policy": {"name": "auth", "generation": 7},
        "tls": {"version": "1.3", "sni": "example.org", "client_verified": false},
        "trace": {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}, "deadline_ms": 30000,
        "metadata": {"role": "chat", "user": "7", "": "\u{0}\u{7f}"}, "unknown": [{"a": null}, 1.5, -1, true, {}, []],
    });
    let metadata = request.metadata.as_object_mut().unwrap();
    metadata.extend(more.as_object().unwrap().clone());
    let (response, _) = channel.answered(&request);
    assert_eq!(serde_json::from_slice::<Value>(&response.body).expect("JSON"), request.metadata);
}

/// The CGI variables, each with its source; none that nobody knows.
pub fn makes_an_environment(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    let mut request = Request::post("/env?x=1&y=%3f?", 5).data(b"user=7");
    request = request.header("content-type", "text/plain; a=b").header("content-length", "5");
    request = request.header("x-two", "1").header("cookie", "a=b").header("x-two", "2").header("x_two", "3");
    let metadata = request.metadata.as_object_mut().unwrap();
    metadata.insert("client".to_owned(), json!({"ip": "2001:db8::9", "port": 40312}));
    metadata.insert("server".to_owned(), json!({"ip": "198.51.100.2", "port": 443, "listener": "https"}));
    metadata.insert("metadata".to_owned(), json!({"role": "chat"}));
    metadata["request"]["scheme"] = "https".into();
    metadata["request"]["authority"] = "example.org:8443".into();
    let mut lent = channel.prepare();
    lent.far.send("hello");
    channel.hand_again(&mut lent, &request);
    let variables = variables(&channel.answered_again(&mut lent).body);
    for (name, value) in [
        ("GATEWAY_INTERFACE", "CGI/1.1"),
        ("REQUEST_METHOD", "POST"),
        ("REQUEST_URI", "/env?x=1&y=%3f?"),
        ("QUERY_STRING", "x=1&y=%3f?"),
        ("SERVER_PROTOCOL", "HTTP/1.1"),
        ("CONTENT_LENGTH", "5"),
        ("CONTENT_TYPE", "text/plain; a=b"),
        ("REMOTE_ADDR", "2001:db8::9"),
        ("REMOTE_PORT", "40312"),
        ("SERVER_NAME", "example.org"),
        ("SERVER_PORT", "443"),
        ("HTTPS", "on"),
        ("HTTP_HOST", "a"),
        ("HTTP_COOKIE", "a=b"),
        ("HTTP_X_TWO", "1, 2"),
        ("HANDOFF_DATA", "user=7"),
        ("HANDOFF_ID", "01JDSUITE"),
        ("HANDOFF_ROLE", "chat"),
    ] {
        assert_eq!(variables.get(name).map(String::as_str), Some(value), "{name} in {variables:#?}");
    }
    for name in ["HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH", "HANDOFF_HEAD_SENT"] {
        assert_eq!(variables.get(name), None, "{name}");
    }
}

pub fn makes_an_environment_of_what_is_known_only(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    let request = Request::get("/env").header("proxy", "evil").header("x-raw", json!({"base64": "/w=="}));
    let known = variables(&channel.answered(&request.data(b"a\0b")).0.body);
    for name in ["HTTPS", "CONTENT_LENGTH", "CONTENT_TYPE", "HANDOFF_DATA", "HANDOFF_HEAD_SENT", "HTTP_PROXY"] {
        assert_eq!(known.get(name), None, "{name}");
    }
    assert_eq!(known.get("QUERY_STRING").map(String::as_str), Some(""));
    assert_eq!(known.get("HANDOFF_ROLE").map(String::as_str), Some("responder"));
    assert_eq!(known.get("HTTP_X_RAW").map(String::as_str), Some("\u{fffd}"));
    let variables = variables(&channel.answered(&Request::memfd("/env", b"seven77")).0.body);
    assert_eq!(variables.get("CONTENT_LENGTH").map(String::as_str), Some("7"));
}

fn variables(body: &[u8]) -> BTreeMap<String, String> {
    serde_json::from_slice(body).expect("a JSON object of texts")
}

/// A body in each framing, in pieces, in front of the next request, and in memfds.
pub fn reads_a_body_of_known_length(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    let body: Vec<u8> = (0..=255).cycle().take(300_007).collect();
    for length in [0, 1, 5, body.len()] {
        echo(&mut channel, &Request::post("/echo", length), &[&body[..length]], &body[..length]);
    }
    echo(&mut channel, &Request::post("/echo", 5), &[b"h", b"el", b"l", b"o"], b"hello");
    echo(&mut channel, &Request::get("/echo"), &[], b"");
}

pub fn reads_a_chunked_body(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    let long = vec![b'x'; 70_000];
    let mut large = b"11170\r\n".to_vec();
    large.extend(&long);
    large.extend(b"\r\n0\r\n\r\n");
    let wire: &[(&[u8], &[u8])] = &[
        (b"0\r\n\r\n", b""),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"2\r\nhe\r\n00003\r\nllo\r\n000\r\n\r\n", b"hello"),
        (b"A;name=value;b=\"c\"\r\n0123456789\r\n0;x\r\n\r\n", b"0123456789"),
        (b"a\r\n01\r\n345\r\n9\r\n0\r\nA: b\r\nLonger-Name: with words\r\n\r\n", b"01\r\n345\r\n9"),
        (&large, &long),
    ];
    for (wire, body) in wire {
        echo(&mut channel, &Request::chunked("/echo"), &[wire], body);
    }
    // Cut at every byte.
    let (wire, body) = (b"3;a\r\nhel\r\n2\r\nlo\r\n0\r\nA: b\r\n\r\n", b"hello");
    for at in 1..wire.len() {
        echo(&mut channel, &Request::chunked("/echo"), &[&wire[..at], &wire[at..]], body);
    }
    let bytes: Vec<_> = wire.chunks(1).collect();
    echo(&mut channel, &Request::chunked("/echo"), &bytes, body);
}

/// Preread bytes come first, wherever the body is cut.
pub fn reads_preread_bytes_before_the_socket(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    let head = b"POST /echo HTTP/1.1\r\nHost: a\r\n\r\n";
    let chunked = b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n";
    for at in 0..=chunked.len() {
        let mut request = Request::chunked("/echo");
        request.preread = chunked[..at].to_vec();
        echo(&mut channel, &request, &[&chunked[at..]], b"hello");
    }
    for at in 0..=5 {
        for is_memfd in [false, true] {
            let mut request = Request::post("/echo", 5);
            let preread = [head, &b"hello"[..at]].concat();
            request.metadata["request"]["head_bytes"] = head.len().into();
            if is_memfd {
                request.memfds[2] = Some(memfd(&preread))
            } else {
                request.preread = preread
            }
            echo(&mut channel, &request, &[&b"hello"[at..]], b"hello");
        }
    }
}

pub fn reads_a_body_in_a_memfd(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    for length in [0, 1, 1 << 20] {
        let body: Vec<u8> = (0..=255).cycle().take(length).collect();
        echo(&mut channel, &Request::memfd("/echo", &body), &[], &body);
    }
}

/// All three at once, in their order.
pub fn tells_memfds_apart(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    for (target, text) in [("/echo", "the body"), ("/data", "the data")] {
        let mut request = Request::memfd(target, b"the body");
        request.memfds[1] = Some(memfd(b"the data"));
        request.memfds[2] = Some(memfd(b"GET /next"));
        let mut lent = channel.hand(&request);
        channel.taken(&mut lent);
        assert_eq!(lent.far.response().text(), text);
        assert_eq!(channel.back(&mut lent).1, b"GET /next");
    }
}

/// Nothing of it stays open, taken or refused.
pub fn closes_memfds(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    channel.answered(&Request::memfd("/echo", b"body"));
    let before = daemon.descriptors_at_rest();
    for target in ["/echo", "/hello", "/refuse?reason=denied", "/unread", "/drop"] {
        for _ in 0..10 {
            let mut request = Request::memfd(target, b"body");
            request.memfds[1] = Some(memfd(b"data"));
            request.memfds[2] = Some(memfd(b"GET /"));
            let mut lent = channel.hand(&request);
            if target.starts_with("/refuse") {
                channel.refused(&lent);
                continue;
            }
            channel.taken(&mut lent);
            if target == "/hello" || target == "/drop" {
                channel.ended(lent);
            } else {
                lent.far.response();
                channel.back(&mut lent);
            }
        }
    }
    eventually("all memfds are closed", || (daemon.descriptors() <= before).then_some(()));
}

/// A body that ends before its end, and one that is none: no answer as if it were whole, and the client is closed.
pub fn takes_no_cut_body_for_a_whole_one(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    for (request, sent) in [
        (Request::post("/echo", 6), "hello"),
        (Request::chunked("/echo"), "6\r\nhello"),
        (Request::chunked("/echo"), "5\r\nhello\r\n"),
        (Request::chunked("/echo"), "5\r\nhello\r\n0\r\n"),
        (Request::chunked("/echo"), "zz\r\nhello\r\n0\r\n\r\n"),
        (Request::chunked("/echo"), "-5\r\nhello\r\n0\r\n\r\n"),
        (Request::chunked("/echo"), "\r\nhello\r\n0\r\n\r\n"),
        (Request::chunked("/echo"), "5\r\nhelloX\r\n0\r\n\r\n"),
        (Request::chunked("/echo"), "FFFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n"),
        // Seventeen digits of a small number.
        (Request::chunked("/echo"), "00000000000000005\r\nhello\r\n0\r\n\r\n"),
    ] {
        let mut lent = channel.prepare();
        lent.far.send(sent);
        lent.far.0.shutdown(Shutdown::Write).unwrap();
        channel.hand_again(&mut lent, &request);
        channel.taken(&mut lent);
        let (answer, report) = channel.ended(lent);
        assert!(!answer.starts_with(b"HTTP/1.1 2"), "{sent:?}: {}", String::from_utf8_lossy(&answer));
        assert_ne!(report.result.word(), "ok", "{sent:?}: {report:?}");
    }
    channel.is_alive();
}

/// Who leaves within the body has left, in whatever framing and wherever in it.
pub fn takes_a_cut_body_for_a_client_that_left(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    for (request, sent) in [
        (Request::post("/echo", 6), "hello"),
        (Request::post("/echo", 6), ""),
        (Request::chunked("/echo"), ""),
        (Request::chunked("/echo"), "6"),
        (Request::chunked("/echo"), "6\r\nhello"),
        (Request::chunked("/echo"), "5\r\nhello"),
        (Request::chunked("/echo"), "5\r\nhello\r\n"),
        (Request::chunked("/echo"), "5\r\nhello\r\n0\r\nA: b\r\n"),
    ] {
        let mut lent = channel.prepare();
        lent.far.send(sent);
        lent.far.0.shutdown(Shutdown::Write).unwrap();
        channel.hand_again(&mut lent, &request);
        channel.taken(&mut lent);
        let (_, report) = channel.ended(lent);
        assert_eq!(report.result.word(), "client-gone", "{sent:?}: {report:?}");
    }
}

/// What cannot be read is not taken.
pub fn takes_no_framing_that_it_does_not_know(language: Language) {
    let daemon = Daemon::native(language);
    let strange = |framing: &str| {
        let mut request = Request::get("/echo");
        request.metadata["body"] = json!({"framing": framing, "remaining": 0});
        request
    };
    let mut unasked = Request::post("/echo", 4);
    unasked.memfds[0] = Some(memfd(b"body"));
    let length = |remaining: Value| {
        let mut request = Request::post("/echo", 0);
        request.metadata["body"]["remaining"] = remaining;
        request
    };
    let head = |bytes: Value, preread: &[u8]| {
        let mut request = Request::get("/echo");
        request.metadata["request"]["head_bytes"] = bytes;
        request.preread = preread.to_vec();
        request
    };
    let all = [
        strange("carrier-pigeon"),
        strange("Chunked"),
        strange("memfd"),
        unasked,
        length((-1).into()),
        length("5".into()),
        length(1.5.into()),
        head((-1).into(), b"GET / HTTP/1.1\r\n\r\n"),
        head("1".into(), b"GET / HTTP/1.1\r\n\r\n"),
        head(5.into(), b"GET "),
        head(1.into(), b""),
    ];
    for request in all {
        let _what = Named(&request.metadata.to_string());
        let mut channel = Channel::open(&daemon);
        let lent = channel.hand(&request);
        if let Some(refusal) = channel.refused_or_ended(&lent) {
            assert_eq!(refusal.reason, Reason::Unsupported);
        }
        lent.check_untouched(&daemon, b"");
    }
}

/// Several clients and a question in one packet, each with its own descriptors.
pub fn reads_packets_of_several_frames(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    let requests = [
        Request::memfd("/echo", b"first"),
        Request::get("/data").data(b"second"),
        Request::memfd("/echo", b"third"),
        Request::get("/refuse?reason=denied"),
    ];
    let mut all: Vec<Lent> = requests.iter().map(|_| channel.prepare()).collect();
    let mut packet = Frame::Ping(b"in front".to_vec()).encode();
    let mut descriptors = Vec::new();
    for (request, lent) in requests.iter().zip(&all) {
        packet.extend(request.frame(lent.id));
        descriptors.extend(lent.descriptors(request));
    }
    packet.extend(Frame::Revoke { id: 4711, reason: String::new() }.encode());
    channel.send(&packet, &descriptors);
    drop(descriptors);
    assert_eq!(channel.pong(), b"in front");
    for (lent, text) in all.iter_mut().zip(["first", "second", "third"]) {
        assert_eq!(channel.answered_again(lent).text(), text);
    }
    channel.refused(&all[3]);
}

/// Sends the client's bytes piece by piece, and has them back.
#[track_caller]
fn echo(channel: &mut Channel, request: &Request, pieces: &[&[u8]], body: &[u8]) {
    let mut lent = channel.hand(request);
    let mut sender = lent.far.0.try_clone().unwrap();
    let response = thread::scope(|scope| {
        scope.spawn(move || {
            for piece in pieces {
                sender.write_all(piece).expect("it is read");
                if pieces.len() > 1 {
                    // Not a promise, but the daemon gets a chance to see the first alone.
                    thread::yield_now();
                }
            }
        });
        channel.answered_again(&mut lent)
    });
    assert!(response.body == body, "{} bytes for {}: {:.200}", response.body.len(), body.len(), response.head);
}
