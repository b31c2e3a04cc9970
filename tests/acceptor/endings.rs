//! How a handoff ends, and what client and gateway see of it.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use baton::handoff::native::frame::Outcome;
use baton::handoff::{ClientError, End, Left, Options, Reason};
use serde_json::json;

use crate::scripted::{Gateway, get, request, with_body};
use crate::{Bench, accept, eventually, options, was_reset, whole};

#[test]
fn a_refused_client_is_the_gateways_again_untouched() {
    let bench = Bench::new();
    let mut acceptor = bench.acceptor();
    let mut gateway = Gateway::greet(&bench.path());
    for (id, reason) in (1..).zip([Reason::Denied, Reason::Draining, Reason::Overloaded, Reason::Unsupported]) {
        let mut far = gateway.hand_over(id, get());
        accept(&mut acceptor).refuse(reason, Some(id), "not today").unwrap();
        let refusal = gateway.refused(id);
        assert_eq!((refusal.reason, refusal.retry_after_s), (reason, Some(id)));
        assert_eq!(refusal.message.as_deref(), Some("not today"));
        // The gateway of this test has kept no copy: nothing was written, and nobody has the client any more.
        assert_eq!(whole(&mut far), "");
    }
    let _far = gateway.hand_over(9, get());
    let handoff = accept(&mut acceptor);
    handoff.take().unwrap();
    let handoff = handoff.refuse(Reason::Denied, None, "too late").unwrap_err();
    handoff.finish(End::ok());
    drop((acceptor, gateway, _far));
    bench.check_ledger();
}

#[test]
fn one_that_is_dropped_is_refused_or_closed() {
    let bench = Bench::new();
    let mut acceptor = bench.acceptor();
    let mut gateway = Gateway::greet(&bench.path());
    let mut far = gateway.hand_over(1, get());
    drop(accept(&mut acceptor));
    assert_eq!(gateway.refused(1).reason, Reason::Overloaded);
    assert_eq!(whole(&mut far), "");

    far = gateway.hand_over(2, get());
    let handoff = accept(&mut acceptor);
    handoff.take().unwrap();
    drop(handoff);
    acceptor.flush();
    gateway.taken(2);
    let report = gateway.done(2);
    assert_eq!((report.result, report.message.as_deref()), (Outcome::Error, Some("not finished")));
    assert_eq!(whole(&mut far), "");

    // Half of an answer that would look whole.
    far = gateway.hand_over(3, get());
    let mut handoff = accept(&mut acceptor);
    handoff.start(200, &[]).unwrap();
    far.read_exact(&mut [0; 10]).unwrap();
    drop(handoff);
    acceptor.flush();
    gateway.taken(3);
    assert_eq!(gateway.done(3).status, Some(200));
    assert!(was_reset(&mut far));
    // Also a thread that panics is one that drops.
    far = gateway.hand_over(4, get());
    let handoff = accept(&mut acceptor);
    std::thread::spawn(move || {
        let _handoff = handoff;
        std::panic::resume_unwind(Box::new("a daemon's fault"));
    })
    .join()
    .unwrap_err();
    gateway.refused(4);
    assert_eq!(whole(&mut far), "");
    drop((acceptor, gateway, far));
    bench.check_ledger();
}

/// The very socket, and it goes on working.
#[test]
fn a_client_comes_back_for_its_next_request() {
    let bench = Bench::new();
    let mut acceptor = bench.acceptor();
    let mut gateway = Gateway::greet(&bench.path());
    let mut far = gateway.hand_over(1, request("GET", "/", &[]));
    let port = far.local_addr().unwrap();
    let mut handoff = accept(&mut acceptor);
    handoff.respond_keep_alive(200, &[], b"one").unwrap();
    handoff.give_back(200);
    gateway.taken(1);
    // At once: the client waits for what it asks next.
    let (report, unread, mut client) = gateway.returned(1);
    assert_eq!((report.status, report.result, &unread[..]), (Some(200), Outcome::Ok, &b""[..]));
    assert_eq!(client.peer_addr().unwrap(), port);
    client.write_all(b"two").unwrap();
    drop(client);
    assert_eq!(whole(&mut far), "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\nonetwo");
    assert_eq!(acceptor.in_flight(), 0);
    drop((acceptor, gateway, far));
    bench.check_ledger();
}

#[test]
fn one_that_cannot_come_back_is_finished() {
    let bench = Bench::new();
    let mut acceptor = bench.acceptor();
    let mut gateway = Gateway::greet(&bench.path());
    let old = |headers: &[(&str, &str)]| {
        let mut metadata = request("GET", "/", headers);
        metadata["request"]["version"] = "1.0".into();
        metadata
    };
    let length = |remaining: u64| with_body("POST", "/", &[], json!({"framing": "length", "remaining": remaining}));
    let waiting = with_body("POST", "/", &[("expect", "100-Continue")], json!({"framing": "length", "remaining": 5}));
    for (id, (metadata, body, is_back)) in (1..).zip([
        (request("GET", "/", &[("connection", "Close")]), 0, false),
        (request("GET", "/", &[("connection", "TE, close")]), 0, false),
        (old(&[]), 0, false),
        (old(&[("connection", "keep-alive")]), 0, true),
        (length(65_536), 65_536, true),
        (length(65_537), 65_537, false),
        // It will not send the body any more.
        (waiting, 0, false),
    ]) {
        let mut far = gateway.hand_over(id, metadata.clone());
        far.write_all(&vec![b'x'; body]).unwrap();
        let mut handoff = accept(&mut acceptor);
        handoff.respond_keep_alive(200, &[], b"").unwrap();
        handoff.give_back(200);
        gateway.taken(id);
        if is_back {
            let (_, unread, _client) = gateway.returned(id);
            assert_eq!(unread, b"");
        } else {
            far.shutdown(Shutdown::Write).unwrap();
            acceptor.flush();
            assert_eq!(gateway.done(id).result, Outcome::Ok, "{metadata}");
        }
        let answer = whole(&mut far);
        assert_eq!(answer.contains("keep-alive"), is_back, "{metadata}: {answer}");
        assert_eq!(answer.contains("Connection: close"), !is_back);
    }
    // A response that said that it is the last one.
    let _far = gateway.hand_over(100, get());
    let mut handoff = accept(&mut acceptor);
    handoff.respond(200, &[], b"").unwrap();
    handoff.give_back(200);
    acceptor.flush();
    gateway.taken(100);
    gateway.done(100);
}

#[test]
fn behind_the_gateways_head_only_the_body_is_written_and_a_failure_is_a_reset() {
    let bench = Bench::new();
    let mut acceptor = bench.acceptor();
    let mut gateway = Gateway::greet(&bench.path());
    let mut metadata = get();
    metadata["response"]["head_sent"] = true.into();
    let mut far = gateway.hand_over(1, metadata.clone());
    let mut handoff = accept(&mut acceptor);
    assert!(handoff.is_head_sent());
    handoff.respond_keep_alive(404, &[("X-Y", "z")], b"body").unwrap();
    handoff.give_back(404);
    acceptor.flush();
    gateway.taken(1);
    // It is the gateway's status that the client has.
    assert_eq!((gateway.done(1).status, whole(&mut far)), (None, "body".to_owned()));
    let mut far = gateway.hand_over(2, metadata);
    let mut handoff = accept(&mut acceptor);
    handoff.start(200, &[]).unwrap();
    handoff.write(b"half").unwrap();
    far.read_exact(&mut [0; 4]).unwrap();
    handoff.finish(End::error("no more"));
    assert!(was_reset(&mut far));
}

#[test]
fn whoever_left_is_noticed_without_writing() {
    let bench = Bench::new();
    let mut acceptor = bench.acceptor();
    let gateway = Gateway::greet(&bench.path());
    type Leave = fn(TcpStream) -> Option<TcpStream>;
    let leave: [(&str, Leave); 3] = [
        ("closed", |_| None),
        ("reset", |far| {
            let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
            nix::sys::socket::setsockopt(&far, nix::sys::socket::sockopt::Linger, &linger).unwrap();
            None
        }),
        ("ended its sending side", |far| {
            far.shutdown(Shutdown::Write).unwrap();
            Some(far)
        }),
    ];
    for (id, (how, leave)) in (1..).zip(leave) {
        let far = gateway.hand_over(id, get());
        let handoff = accept(&mut acceptor);
        handoff.take().unwrap();
        assert!(!handoff.client_gone());
        assert_eq!(handoff.wait_until_left(Duration::from_millis(10)), None);
        let _far = leave(far);
        assert_eq!(handoff.wait_until_left(Duration::MAX), Some(Left::Client), "{how}");
        assert!(handoff.client_gone(), "{how}");
        handoff.finish(End::of(Outcome::ClientGone));
    }
    // What it has sent is to be read, whatever stands behind it.
    let mut far = gateway.hand_over(9, get());
    let handoff = accept(&mut acceptor);
    far.write_all(b"next request").unwrap();
    far.shutdown(Shutdown::Write).unwrap();
    eventually("it has arrived", || {
        let mut seen = [0; 20];
        let flags = nix::sys::socket::MsgFlags::MSG_PEEK | nix::sys::socket::MsgFlags::MSG_DONTWAIT;
        let client = std::os::fd::AsRawFd::as_raw_fd(&handoff.client());
        nix::sys::socket::recv(client, &mut seen, flags).ok().filter(|count| *count == 12)
    });
    assert!(!handoff.client_gone());
    assert_eq!(handoff.wait_until_left(Duration::from_millis(20)), None);
}

#[test]
fn a_client_that_takes_nothing_and_one_that_left_are_errors_of_writing() {
    let bench = Bench::new();
    let write_timeout = Duration::from_millis(100);
    let mut acceptor = bench.acceptor_with(Options { write_timeout, ..options() });
    let mut gateway = Gateway::greet(&bench.path());
    let mut far = gateway.hand_over(1, get());
    let mut handoff = accept(&mut acceptor);
    handoff.start(200, &[]).unwrap();
    let error = loop {
        if let Err(error) = handoff.write(&[b'a'; 1 << 16]) {
            break error;
        }
    };
    assert!(matches!(error, ClientError::TimedOut), "{error:?}");
    handoff.finish(&error);
    acceptor.flush();
    gateway.taken(1);
    let report = gateway.done(1);
    assert_eq!(report.result, Outcome::Timeout);
    assert!(report.bytes_out > 1 << 16 && was_reset(&mut far));

    drop(far);
    let far = gateway.hand_over(2, get());
    let mut handoff = accept(&mut acceptor);
    handoff.start(200, &[]).unwrap();
    drop(far);
    let error = loop {
        if let Err(error) = handoff.write(b"a") {
            break error;
        }
    };
    assert!(matches!(error, ClientError::Gone(_)), "{error:?}");
    handoff.finish(&error);
    acceptor.flush();
    gateway.taken(2);
    assert_eq!(gateway.done(2).result, Outcome::ClientGone);
    drop((acceptor, gateway));
    bench.check_ledger();
}

#[test]
fn the_socket_itself_can_be_had() {
    let bench = Bench::new();
    let mut acceptor = bench.acceptor();
    let mut gateway = Gateway::greet(&bench.path());
    let mut far = gateway.hand_over(1, get());
    let handoff = accept(&mut acceptor);
    handoff.set_blocking(true).unwrap();
    let mut client = handoff.into_stream();
    acceptor.flush();
    gateway.taken(1);
    gateway.done(1);
    client.write_all(b"raw").unwrap();
    drop(client);
    assert_eq!(whole(&mut far), "raw");
    // Where it cannot be taken, whoever has it has nothing.
    far = gateway.hand_over(2, get());
    let handoff = accept(&mut acceptor);
    drop(gateway);
    let mut client = handoff.into_stream();
    client.write_all(b"raw").unwrap_err();
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(whole(&mut far), "");
    drop((acceptor, client, far));
    bench.check_ledger();
}

#[test]
fn a_message_for_people_is_cut_where_it_is_too_long() {
    let bench = Bench::new();
    let mut acceptor = bench.acceptor();
    let mut gateway = Gateway::greet(&bench.path());
    for (id, length) in [(1, 1024), (2, 1025)] {
        let _far = gateway.hand_over(id, get());
        accept(&mut acceptor).finish(End::error("\u{1}".repeat(length)));
        acceptor.flush();
        gateway.taken(id);
        assert_eq!(gateway.done(id).message.map(|message| message.len()), Some(1024));
    }
}
