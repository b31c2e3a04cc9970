//! A request's body, wherever it is, and what belongs to the next request.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::thread;
use std::time::Duration;

use baton::handoff::native::frame::Memfds;
use baton::handoff::{Handoff, Options};
use serde_json::{Value, json};

use crate::scripted::{Gateway, handoff_with, memfd, tcp_client, with_body};
use crate::{Bench, accept, options};

fn post(body: Value) -> Value {
    with_body("POST", "/", &[], body)
}

fn read(handoff: &mut Handoff) -> Vec<u8> {
    let mut body = Vec::new();
    handoff.body().read_to_end(&mut body).unwrap();
    body
}

/// Where a body is: what of it was read before, what is in the socket, and what of the next request is where.
#[test]
fn a_body_is_read_from_wherever_it_is_and_not_a_byte_further() {
    let chunked = "5\r\nhello\r\n6;x=y\r\n, worl\r\n1\r\nd\r\n0\r\nT: x\r\n\r\n";
    for (id, (body, preread, sent, expected, unread, left)) in (1..).zip([
        (json!({"framing": "none"}), "", "", "", "", ""),
        (json!({"framing": "none"}), "GET", " /", "", "GET", " /"),
        (json!({"framing": "length", "remaining": 5}), "", "hello", "hello", "", ""),
        (json!({"framing": "length", "remaining": 5}), "", "helloGET", "hello", "", "GET"),
        (json!({"framing": "length", "remaining": 5}), "he", "lloGET", "hello", "", "GET"),
        (json!({"framing": "length", "remaining": 5}), "helloGET", " /", "hello", "GET", " /"),
        (json!({"framing": "length", "remaining": 0}), "", "GET", "", "", "GET"),
        (json!({"framing": "chunked"}), "", chunked, "hello, world", "", ""),
        (json!({"framing": "chunked"}), "5\r\nhel", "lo\r\n0\r\n\r\n", "hello", "", ""),
        (json!({"framing": "chunked"}), "5\r\nhello\r\n0\r\n\r\nGET", " /", "hello", "GET", " /"),
    ]) {
        let bench = Bench::new();
        let mut acceptor = bench.acceptor();
        let mut gateway = Gateway::greet(&bench.path());
        let (client, mut far) = tcp_client();
        far.write_all(sent.as_bytes()).unwrap();
        let frame = handoff_with(id, post(body.clone()), b"", preread.as_bytes(), Memfds::default());
        gateway.send(&[frame], &[client.as_fd()]);
        drop(client);
        let mut handoff = accept(&mut acceptor);
        assert_eq!(read(&mut handoff), expected.as_bytes(), "{body}");
        assert_eq!(read(&mut handoff), b"", "it is at its end");
        handoff.respond_keep_alive(200, &[], b"").unwrap();
        handoff.give_back(200);
        gateway.taken(id);
        let (_, bytes, mut client) = gateway.returned(id);
        assert_eq!(bytes, unread.as_bytes(), "{body}");
        client.set_nonblocking(false).unwrap();
        far.shutdown(Shutdown::Write).unwrap();
        let mut rest = String::new();
        client.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, left, "{body}");
        drop((client, far, gateway, acceptor));
        bench.check_ledger();
    }
}

/// What was read behind the chunks, because a piece was read, goes back.
#[test]
fn pipelined_bytes_behind_chunks_go_back_with_the_client() {
    let bench = Bench::new();
    let mut acceptor = bench.acceptor();
    let mut gateway = Gateway::greet(&bench.path());
    let mut far = gateway.hand_over(1, post(json!({"framing": "chunked"})));
    far.write_all(b"5\r\nhello\r\n0\r\n\r\nGET /next HTTP/1.1\r\n\r\n").unwrap();
    let mut handoff = accept(&mut acceptor);
    handoff.respond_keep_alive(200, &[], b"").unwrap();
    // Unread: it is read to its end all the same.
    handoff.give_back(200);
    gateway.taken(1);
    let (_, unread, _client) = gateway.returned(1);
    assert_eq!(unread, b"GET /next HTTP/1.1\r\n\r\n");
}

#[test]
fn a_body_in_a_memfd_is_read_from_its_beginning() {
    for (remaining, expected) in [(json!(5), "hello"), (json!(null), "hello, world")] {
        let bench = Bench::new();
        let mut acceptor = bench.acceptor();
        let mut gateway = Gateway::greet(&bench.path());
        let (client, mut far) = tcp_client();
        far.write_all(b"GET /next").unwrap();
        let memfds = Memfds { body: true, data: true, preread: true };
        let mut metadata = post(json!({"framing": "memfd", "remaining": remaining}));
        metadata["request"]["head_bytes"] = 6.into();
        let frame = handoff_with(1, metadata, b"", b"", memfds);
        let files = [memfd(b"hello, world", true), memfd(b"data", true), memfd(b"POST /more", true)];
        let descriptors = [client.as_fd(), files[0].as_fd(), files[1].as_fd(), files[2].as_fd()];
        gateway.send(&[frame], &descriptors);
        drop((client, files));
        let mut handoff = accept(&mut acceptor);
        assert_eq!((handoff.data(), handoff.head()), (&b"data"[..], &b"POST /"[..]));
        let length = handoff.env().into_iter().find(|(name, _)| name == "CONTENT_LENGTH").unwrap().1;
        assert_eq!(length.to_str().unwrap(), expected.len().to_string());
        assert_eq!(read(&mut handoff), expected.as_bytes());
        handoff.respond_keep_alive(200, &[], b"").unwrap();
        handoff.give_back(200);
        gateway.taken(1);
        let (_, unread, client) = gateway.returned(1);
        assert_eq!(unread, b"more");
        drop((client, far, gateway, acceptor));
        bench.check_ledger();
    }
}

#[test]
fn what_waits_for_100_continue_is_told_to_go_on_once() {
    let bench = Bench::new();
    let mut acceptor = bench.acceptor();
    let mut gateway = Gateway::greet(&bench.path());
    let metadata = with_body("POST", "/", &[("expect", "100-continue")], json!({"framing": "length", "remaining": 5}));
    let mut far = gateway.hand_over(1, metadata);
    let mut handoff = accept(&mut acceptor);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut told = [0; 25];
            far.read_exact(&mut told).unwrap();
            assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
            far.write_all(b"hello").unwrap();
        });
        assert_eq!(read(&mut handoff), b"hello");
    });
    handoff.respond_keep_alive(200, &[], b"").unwrap();
    handoff.give_back(200);
    gateway.taken(1);
    let (report, ..) = gateway.returned(1);
    let mut answer = String::new();
    far.read_to_string(&mut answer).ok();
    assert_eq!(report.bytes_out, answer.len() as u64, "{answer}");
    assert!(!answer.contains("100"));
}

#[test]
fn a_body_that_is_cut_slow_or_not_chunked_is_an_error() {
    let bench = Bench::new();
    let mut acceptor = bench.acceptor_with(Options { body_timeout: Duration::from_millis(50), ..options() });
    let mut gateway = Gateway::greet(&bench.path());
    for (id, (body, sent, ends, kind)) in (1..).zip([
        (json!({"framing": "length", "remaining": 5}), "hell", true, ErrorKind::UnexpectedEof),
        (json!({"framing": "length", "remaining": 5}), "hell", false, ErrorKind::TimedOut),
        (json!({"framing": "chunked"}), "5\r\nhello\r\n", true, ErrorKind::UnexpectedEof),
        (json!({"framing": "chunked"}), "5\r\nhello\r\n0\r\n", false, ErrorKind::TimedOut),
        (json!({"framing": "chunked"}), "five\r\n", false, ErrorKind::InvalidData),
    ]) {
        let mut far = gateway.hand_over(id, post(body.clone()));
        far.write_all(sent.as_bytes()).unwrap();
        if ends {
            far.shutdown(Shutdown::Write).unwrap();
        }
        let mut handoff = accept(&mut acceptor);
        let error = handoff.body().read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), kind, "{body}: {error}");
        // It cannot go on with another request.
        handoff.give_back(200);
        acceptor.flush();
        gateway.taken(id);
        gateway.done(id);
    }
    drop((acceptor, gateway));
    bench.check_ledger();
}
