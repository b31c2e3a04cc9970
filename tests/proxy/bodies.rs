//! Bodies on their way through: each framing, both directions at once, waiting for `100 Continue`, too long, too slow.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use super::support::upstream::{Serving, Upstream, undated};
use super::support::{Client, eventually, unread_at_the_gateway};
use super::{OK, OK_RELAYED, before, before_serving, check_closed, check_logged};

/// The chunks of a body up to the last, taken apart.
fn chunks(client: &mut Client) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let line = client.until("\r\n");
        let size = usize::from_str_radix(line.trim_end(), 16).expect("a size");
        body.extend(client.take(size));
        assert_eq!(client.take(2), b"\r\n");
        if size == 0 {
            return body;
        }
    }
}

#[test]
fn a_body_with_a_length_goes_on_with_it_and_chunks_as_chunks() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "");
    for length in [0, 1, 1000, 32 << 10, (32 << 10) + 1, 1 << 20] {
        let body: Vec<u8> = (0..=250).cycle().take(length).collect();
        let mut client = gateway.client();
        client.send(format!("PUT /l HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"));
        let mut sender = Client::of(client.stream.try_clone().expect("a socket"));
        let sent = body.clone();
        let sending = std::thread::spawn(move || sender.send(sent));
        let mut peer = upstream.accept();
        let head = peer.head();
        assert!(head.contains(&format!("\r\ncontent-length: {length}\r\n")), "{head}");
        assert!(!head.contains("transfer-encoding"), "{head}");
        assert!(peer.take(length) == body, "{length}");
        peer.send(OK.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"));
        assert_eq!(client.message(), OK_RELAYED);
        sending.join().expect("sent");
    }
    let mut client = gateway.client();
    client.send(
        "POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n10\r\n0123456789abcdef\r\n0\r\nX-T: 1\r\n\r\n",
    );
    let mut peer = upstream.accept();
    let head = peer.head();
    assert!(head.ends_with("transfer-encoding: chunked\r\n\r\n") && !head.contains("content-length"), "{head}");
    assert_eq!(chunks(&mut peer), b"abc0123456789abcdef");
    peer.send(OK);
    assert_eq!(client.message(), OK_RELAYED);
    // The next one on both connections.
    client.get("/next");
    assert!(peer.head().starts_with("GET /next "));
    peer.send(OK);
    assert_eq!(client.message(), OK_RELAYED);
}

/// What arrives goes on at once, in both directions.
#[test]
fn nothing_waits_for_the_rest() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "");
    let mut client = gateway.client();
    client.send("POST /p HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    let mut peer = upstream.accept();
    peer.head();
    for (sent, seen) in [("a", "1\r\na\r\n"), ("bc", "2\r\nbc\r\n")] {
        client.send(format!("{:x}\r\n{sent}\r\n", sent.len()));
        assert_eq!(String::from_utf8_lossy(&peer.take(seen.len())), seen);
    }
    peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    peer.send("1\r\nx\r\n");
    assert!(client.head().contains("\r\nConnection: close\r\n"));
    assert_eq!(client.take(6), b"1\r\nx\r\n");
    // The answer has begun, and the request still goes on.
    client.send("1\r\nd\r\n");
    assert_eq!(peer.take(6), b"1\r\nd\r\n");
    peer.send("1\r\ny\r\n");
    assert_eq!(client.take(6), b"1\r\ny\r\n");
    client.send("0\r\n\r\n");
    assert_eq!(peer.take(5), b"0\r\n\r\n");
    peer.send("0\r\n\r\n");
    assert_eq!(client.take(5), b"0\r\n\r\n");
    // Whether the body would come to its end was not known when the answer began: the client's connection ends.
    assert_eq!(client.rest(), "");
    assert!(check_logged(&gateway, "/p", "proxied", 200)["error"].is_null());
    let mut client = gateway.client();
    client.get("/next");
    assert!(peer.head().starts_with("GET /next "), "the upstream's lives");
}

/// An upstream that answers while it reads, behind a client that writes everything before it reads anything: whoever is in
/// between must not wait for one while it holds the other up for ever. As long as the sockets hold what is under way, all of
/// it comes back; and a client that reads at the same time gets it in any case.
#[test]
fn fifty_megabytes_come_back_as_they_went() {
    const LENGTH: usize = 50 << 20;
    let pieces = || (0..=250).cycle().take(LENGTH >> 16);
    let upstream = Serving::start(|head, peer| {
        assert!(head.contains(&format!("content-length: {LENGTH}\r\n")), "{head}");
        peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n"));
        let mut left = LENGTH;
        while left > 0 {
            let piece = peer.take(left.min(64 << 10));
            left -= piece.len();
            peer.send(&piece);
        }
        true
    });
    let gateway = before_serving(&upstream, "body_bytes_max = \"64MiB\"", "");
    let mut client = gateway.client();
    let mut sender = Client::of(client.stream.try_clone().expect("a socket"));
    let began = Instant::now();
    let sending = std::thread::spawn(move || {
        sender.send(format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {LENGTH}\r\n\r\n"));
        for byte in pieces() {
            sender.send([byte; 1 << 16]);
        }
    });
    assert!(client.head().contains(&format!("Content-Length: {LENGTH}\r\n")));
    for (at, byte) in pieces().enumerate() {
        assert!(client.take(1 << 16).iter().all(|got| *got == byte), "in piece {at}");
    }
    sending.join().expect("sent");
    println!("50 MiB there and back in {:?}, {} KB resident", began.elapsed(), gateway.resident_bytes() >> 10);
    let line = check_logged(&gateway, "/echo", "proxied", 200);
    assert!(line["bytes_out"].as_u64() > Some(LENGTH as u64) && line["bytes_in"].as_u64() > Some(LENGTH as u64));
    client.get("/x");
}

/// As above, but the answer begins when all was read: a client that writes everything before it reads.
#[test]
fn a_client_may_write_everything_before_it_reads() {
    const LENGTH: usize = 50 << 20;
    let upstream = Serving::start(|_, peer| {
        // It answers a part at once, which nobody reads yet.
        peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n"));
        let mut writer = Client::of(peer.stream.try_clone().expect("a socket"));
        let writing = std::thread::spawn(move || {
            for _ in 0..LENGTH >> 16 {
                writer.send([b'a'; 1 << 16]);
            }
        });
        let mut left = LENGTH;
        while left > 0 {
            left -= peer.take(left.min(1 << 16)).len();
        }
        writing.join().is_ok()
    });
    let gateway = before_serving(&upstream, "body_bytes_max = \"64MiB\"", "");
    let mut client = gateway.client();
    client.send(format!("POST /all HTTP/1.1\r\nHost: x\r\nContent-Length: {LENGTH}\r\n\r\n"));
    for _ in 0..LENGTH >> 16 {
        client.send([b'b'; 1 << 16]);
    }
    assert!(client.head().starts_with("HTTP/1.1 200 OK\r\n"));
    for _ in 0..LENGTH >> 16 {
        client.take(1 << 16);
    }
    check_logged(&gateway, "/all", "proxied", 200);
}

const EXPECTS: &str = "POST /e HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";

#[test]
fn a_client_that_waits_is_told_by_the_upstream_to_go_on() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "");
    let mut client = gateway.client();
    client.send(EXPECTS);
    let mut peer = upstream.accept();
    let head = peer.head();
    assert!(head.contains("\r\nexpect: 100-continue\r\n"), "{head}");
    let began = Instant::now();
    peer.send(CONTINUE);
    assert_eq!(client.head(), CONTINUE);
    assert!(began.elapsed() < Duration::from_millis(900), "by its word, not by the clock");
    // Once, whoever says it.
    peer.send(CONTINUE);
    client.send("abc");
    assert_eq!(peer.take(3), b"abc");
    peer.send(OK);
    assert_eq!(client.message(), OK_RELAYED);
    client.get("/next");
    assert!(peer.head().starts_with("GET /next "));
}

#[test]
fn a_client_that_waits_for_an_upstream_that_says_nothing_is_told_after_a_second() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "");
    let mut client = gateway.client();
    let began = Instant::now();
    client.send(EXPECTS);
    let mut peer = upstream.accept();
    peer.head();
    assert_eq!(client.head(), CONTINUE);
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    client.send("abc");
    assert_eq!(peer.take(3), b"abc");
    peer.send(OK);
    assert_eq!(client.message(), OK_RELAYED);
}

#[test]
fn a_client_that_waits_may_be_refused_before_its_body() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "");
    for status in ["417 Expectation Failed", "413 Content Too Large", "401 Unauthorized", "200 OK"] {
        let mut client = gateway.client();
        client.send(EXPECTS);
        let mut peer = upstream.accept();
        peer.head();
        peer.send(format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nno"));
        // Whether its body follows nobody knows, so the connection ends.
        let wanted = format!("HTTP/1.1 {status}\r\nVia: 1.1 baton\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno");
        assert_eq!(client.message(), wanted);
        check_closed(&mut client);
        check_closed(&mut peer);
    }
}

/// A client need not wait: what is there goes on.
#[test]
fn a_client_that_says_it_waits_and_does_not_is_understood() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "");
    let mut client = gateway.client();
    client.send(format!("{EXPECTS}abc"));
    let mut peer = upstream.accept();
    peer.head();
    peer.send(CONTINUE);
    assert_eq!(client.head(), CONTINUE);
    assert_eq!(peer.take(3), b"abc");
    peer.send(OK);
    assert_eq!(client.message(), OK_RELAYED);
}

#[test]
fn a_body_may_be_so_long_and_no_longer() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "body_bytes_max = \"100KiB\"", "");
    let max = 100 << 10;
    let mut client = gateway.client();
    client.send(format!("POST /at HTTP/1.1\r\nHost: x\r\nContent-Length: {max}\r\n\r\n"));
    client.send(vec![b'a'; max]);
    let mut peer = upstream.accept();
    peer.head();
    peer.take(max);
    peer.send(OK.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"));
    assert_eq!(client.message(), OK_RELAYED);
    // One more: nobody is asked.
    let all = gateway.ask(&format!("POST /past HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", max + 1));
    assert!(all.starts_with("HTTP/1.1 413 ") && all.contains("\r\nConnection: close\r\n"), "{all}");
    check_logged(&gateway, "/past", "client-error", 413);
    assert!(upstream.try_accept().is_none());
    // Chunks, and it shows in the middle: the upstream sees a cut.
    for (target, extra, status) in [("/chunks-at", 0, 200), ("/chunks-past", 1, 413)] {
        let mut client = gateway.client();
        client.send(format!("POST {target} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"));
        client.send(format!("{max:x}\r\n{}\r\n", "a".repeat(max)));
        let mut peer = upstream.accept();
        peer.head();
        if extra == 1 {
            client.send("1\r\na\r\n");
            let answer = client.answer();
            assert_eq!((answer.status, answer.header("connection")), (413, Some("close")));
            let mut rest = Vec::new();
            drop(peer.stream.read_to_end(&mut rest));
            assert!(!rest.ends_with(b"0\r\n\r\n"), "it must not look whole");
        } else {
            client.send("0\r\n\r\n");
            assert_eq!(chunks(&mut peer).len(), max);
            peer.send(OK.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"));
            assert_eq!(client.answer().status, 200);
        }
        check_logged(&gateway, target, if status == 200 { "proxied" } else { "client-error" }, status);
    }
}

#[test]
fn a_body_that_breaks_its_framing_reaches_nobody_as_whole() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "");
    for (target, body) in [("/size", "3\r\nabc\r\nxyz\r\n"), ("/break", "3\r\nabcd\r\n0\r\n\r\n")] {
        let mut client = gateway.client();
        client.send(format!("POST {target} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{body}"));
        let answer = client.answer();
        assert_eq!((answer.status, answer.header("connection")), (400, Some("close")), "{target}");
        let mut bytes = Vec::new();
        drop(upstream.accept().stream.read_to_end(&mut bytes));
        assert!(!bytes.ends_with(b"0\r\n\r\n"), "{}", String::from_utf8_lossy(&bytes));
        check_logged(&gateway, target, "client-error", 400);
    }
}

#[test]
fn a_body_too_slow_is_answered_408() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "body_timeout = \"300ms\"", "");
    for (target, framing) in [("/l", "Content-Length: 100"), ("/c", "Transfer-Encoding: chunked")] {
        let mut client = gateway.client();
        client.send(format!("POST {target} HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n1"));
        let mut peer = upstream.accept();
        peer.head();
        let answer = client.answer();
        assert_eq!((answer.status, answer.header("connection")), (408, Some("close")));
        drop(peer.stream.read_to_end(&mut Vec::new()));
        check_logged(&gateway, target, "client-error", 408);
    }
}

/// A head that is not whole is no reason to look at it over and over again.
#[test]
fn half_a_chunks_size_costs_nothing() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "");
    let mut client = gateway.client();
    client.send("POST /half HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1");
    let mut peer = upstream.accept();
    peer.head();
    let (before, began) = (gateway.cpu_ticks(), Instant::now());
    while began.elapsed() < Duration::from_millis(500) {
        std::thread::park_timeout(Duration::from_millis(50));
    }
    assert!(gateway.cpu_ticks() - before <= 10, "{} ticks of 10 ms", gateway.cpu_ticks() - before);
    client.send("\r\na\r\n0\r\n\r\n");
    assert_eq!(chunks(&mut peer), b"a");
    peer.send(OK);
    assert_eq!(client.message(), OK_RELAYED);
}

/// The upstream's time to answer begins when it has the request: a client that is slow, but not too slow, is not its fault.
#[test]
fn a_slow_client_does_not_use_up_the_upstreams_time() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "body_timeout = \"20s\"", "head_timeout = \"200ms\"");
    let mut client = gateway.client();
    client.send("POST /s HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\na");
    let mut peer = upstream.accept();
    peer.head();
    assert_eq!(peer.take(1), b"a");
    let began = Instant::now();
    client.stream.set_read_timeout(Some(Duration::from_millis(800))).expect("a socket");
    let early = client.stream.read(&mut [0]);
    assert!(early.is_err() && began.elapsed() >= Duration::from_millis(700), "answered: {early:?}");
    client.stream.set_read_timeout(Some(super::support::patience())).expect("a socket");
    client.send("bc");
    assert_eq!(peer.take(2), b"bc");
    peer.send(OK);
    assert_eq!(client.message(), OK_RELAYED);
}

#[test]
fn an_answer_before_the_request_was_read_is_delivered() {
    let upstream = Serving::start(|head, peer| {
        // It reads nothing of a body.
        peer.send(OK);
        head.starts_with("GET ")
    });
    let gateway = before_serving(&upstream, "", "");
    for framing in ["Content-Length: 10000000", "Transfer-Encoding: chunked"] {
        let mut client = gateway.client();
        client.send(format!("POST /early HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n"));
        let mut sender = client.stream.try_clone().expect("a socket");
        let sending = std::thread::spawn(move || {
            let piece = b"1000\r\n".iter().copied().chain([b'a'; 0x1000]).chain(*b"\r\n").collect::<Vec<_>>();
            for _ in 0..500 {
                if sender.write_all(&piece).is_err() {
                    return;
                }
            }
        });
        let answer = client.answer();
        assert_eq!((answer.status, answer.body.as_str(), answer.header("connection")), (200, "ok", Some("close")));
        drop(client);
        sending.join().expect("no panic");
        assert_eq!(gateway.status("/next"), 200);
    }
}

/// While a client still sends what an upstream does not want any more, nobody else waits for that connection.
#[test]
fn a_connection_on_which_a_body_is_under_way_is_nobody_elses() {
    let upstream = Serving::start(|head, peer| {
        peer.send(OK);
        if head.starts_with("POST ") {
            // It reads on, slowly: as long as the client sends.
            while std::io::Read::read(&mut peer.stream, &mut [0; 1]).is_ok_and(|count| count > 0) {}
            return false;
        }
        true
    });
    let gateway = before_serving(&upstream, "", "");
    let mut slow = gateway.client();
    slow.send("POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\na");
    assert!(slow.head().starts_with("HTTP/1.1 200 OK\r\n"));
    assert_eq!(slow.take(2), b"ok");
    let began = Instant::now();
    assert_eq!(gateway.status("/other"), 200);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    slow.send(vec![b'a'; 999]);
    slow.get("/behind");
    assert_eq!(slow.message(), OK_RELAYED);
}

/// Bytes of the next request are not the body's: they stay where they are until it is their turn.
#[test]
fn a_request_behind_a_body_is_the_next_one() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "");
    let mut client = gateway.client();
    client.send("POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut peer = upstream.accept();
    peer.head();
    assert_eq!(chunks(&mut peer), b"abc");
    eventually("nothing of the next one is read", || {
        (unread_at_the_gateway(&client) == Some("GET /b HTTP/1.1\r\nHost: x\r\n\r\n".len() as u64)).then_some(())
    });
    peer.send(OK);
    assert_eq!(client.message(), OK_RELAYED);
    assert!(peer.head().starts_with("GET /b "));
    peer.send(OK);
    assert_eq!(client.message(), OK_RELAYED);
}

#[test]
fn trailers_reach_who_asked_for_them() {
    let upstream = Serving::start(|_, peer| {
        peer.send(
            "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\nContent-Length: 9\r\n\
             Set-Cookie: a\r\nX-Socket-Handoff: /run/x\r\n\r\n",
        );
        true
    });
    let gateway = before_serving(&upstream, "", "");
    let head = "HTTP/1.1 200 OK\r\nVia: 1.1 baton\r\nTransfer-Encoding: chunked\r\n";
    let ask = |fields: &str| undated(&gateway.ask(&format!("GET /t HTTP/1.1\r\nHost: x\r\n{fields}\r\n")));
    let with = ask("TE: trailers\r\nConnection: TE, close\r\n");
    assert_eq!(with, format!("{head}Connection: close\r\n\r\n2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n"));
    let without = ask("Connection: close\r\n");
    assert_eq!(without, format!("{head}Connection: close\r\n\r\n2\r\nok\r\n0\r\n\r\n"));
    let line = gateway.status("/next");
    assert_eq!((line, upstream.connections()), (200, 1), "the connection lives behind trailers");
}
