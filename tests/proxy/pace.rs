//! Whoever is slower sets the pace: nothing piles up here, and nobody is waited for for ever.

use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use super::support::upstream::{Serving, Upstream};
use super::support::{Client, eventually, patience};
use super::{OK, OK_RELAYED, before, before_serving, check_closed, check_logged};

/// What a stream may cost, all of its buffers together. What the kernel holds is the kernel's.
const STREAM_BYTES_MAX: u64 = 1 << 20;
const STREAMS: usize = 20;

#[test]
fn a_slow_reader_before_a_fast_upstream_costs_a_bounded_amount() {
    let sent = Arc::<AtomicU64>::default();
    let counted = Arc::clone(&sent);
    let upstream = Serving::start(move |head, peer| {
        if head.starts_with("GET /small") {
            peer.send(OK);
            return true;
        }
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
        let piece = vec![b'a'; 1 << 16];
        while peer.stream.write_all(&piece).is_ok() {
            counted.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
        false
    });
    let gateway = before_serving(&upstream, "", "");
    for _ in 0..50 {
        assert_eq!(gateway.status("/small"), 200);
    }
    let before = gateway.resident_bytes();
    let mut clients: Vec<_> = (0..STREAMS).map(|_| gateway.client()).collect();
    for client in &mut clients {
        client.get("/large");
    }
    // A little is read, again and again; what is under way comes to a standstill each time.
    for round in 0..10 {
        for client in &mut clients {
            client.take(300_000);
        }
        let mut last = u64::MAX;
        eventually("everything stands still", || {
            std::thread::park_timeout(Duration::from_millis(50));
            let now = sent.load(Ordering::Relaxed);
            (std::mem::replace(&mut last, now) == now).then_some(())
        });
        let grown = gateway.resident_bytes().saturating_sub(before);
        assert!(grown < STREAMS as u64 * STREAM_BYTES_MAX, "round {round}: {} KB for {STREAMS} streams", grown >> 10);
        if round == 9 {
            println!("{} KB for each of {STREAMS} streams that stand still", (grown >> 10) / STREAMS as u64);
        }
    }
}

#[test]
fn a_slow_upstream_before_a_fast_client_costs_a_bounded_amount() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "body_bytes_max = \"1GiB\"", "");
    let mut client = gateway.client();
    client.get("/warm");
    let mut peer = upstream.accept();
    peer.head();
    peer.send(OK.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"));
    assert_eq!(client.message(), OK_RELAYED);
    let before = gateway.resident_bytes();
    let sent = Arc::<AtomicU64>::default();
    let stops = Arc::<AtomicBool>::default();
    let mut held = Vec::new();
    for _ in 0..STREAMS {
        let mut client = gateway.client();
        client.send("POST /up HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n");
        client.stream.set_nonblocking(true).expect("a socket");
        let (counted, stopped) = (Arc::clone(&sent), Arc::clone(&stops));
        held.push((
            upstream.accept(),
            std::thread::spawn(move || {
                let piece = vec![b'a'; 1 << 16];
                while !stopped.load(Ordering::Relaxed) {
                    match client.stream.write(&piece) {
                        Ok(count) => drop(counted.fetch_add(count as u64, Ordering::Relaxed)),
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {
                            std::thread::park_timeout(Duration::from_millis(5));
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
            }),
        ));
    }
    let mut last = u64::MAX;
    eventually("everything stands still", || {
        std::thread::park_timeout(Duration::from_millis(100));
        let now = sent.load(Ordering::Relaxed);
        (std::mem::replace(&mut last, now) == now).then_some(())
    });
    let grown = gateway.resident_bytes().saturating_sub(before);
    assert!(grown < STREAMS as u64 * STREAM_BYTES_MAX, "{} KB for {STREAMS} uploads", grown >> 10);
    println!("{} KB for each of {STREAMS} uploads that stand still", (grown >> 10) / STREAMS as u64);
    stops.store(true, Ordering::Relaxed);
    for (peer, writing) in held {
        writing.join().expect("no panic");
        drop(peer);
    }
}

/// A client that reads nothing any more, or next to nothing, is cut: it must not keep the upstream for ever.
#[test]
fn a_client_that_stops_reading_is_cut() {
    let upstream = Serving::start(|_, peer| {
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n");
        let piece = vec![b'a'; 1 << 16];
        while peer.stream.write_all(&piece).is_ok() {}
        false
    });
    let gateway = before_serving(&upstream, "body_timeout = \"1s\"", "");
    let ledger = gateway.sockets();
    let mut client = gateway.client();
    client.get("/stops");
    client.head();
    let began = Instant::now();
    let line = check_logged(&gateway, "/stops", "client-gone", 200);
    assert!(began.elapsed() >= Duration::from_millis(900), "{line}");
    eventually("both connections are closed", || (gateway.sockets() <= ledger).then_some(()));
}

#[test]
fn a_client_that_reads_a_byte_a_second_runs_out() {
    let upstream = Serving::start(|_, peer| {
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n");
        let piece = vec![b'a'; 1 << 16];
        while peer.stream.write_all(&piece).is_ok() {}
        false
    });
    // Faster than its rate, it would take ten seconds of grace and more: a rate of megabytes runs out soon after them.
    let gateway = before_serving(&upstream, "body_rate_min = \"10MB\"\nbody_timeout = \"60s\"", "");
    let mut client = gateway.client();
    setsockopt(&client.stream, sockopt::RcvBuf, &4096).expect("a socket");
    client.get("/drip");
    let began = Instant::now();
    let line = eventually("it is cut", || {
        client.stream.set_nonblocking(true).expect("a socket");
        drop(client.stream.read(&mut [0]));
        std::thread::park_timeout(Duration::from_millis(200));
        gateway.log().into_iter().next()
    });
    assert_eq!((&line["outcome"], &line["status"]), (&"client-gone".into(), &200.into()), "{line}");
    assert!(began.elapsed() >= Duration::from_secs(9) && began.elapsed() < patience(), "{:?}", began.elapsed());
}

#[test]
fn a_client_that_leaves_while_an_answer_is_awaited_ends_the_asking_at_once() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "");
    for (target, resets) in [("/fin", false), ("/reset", true)] {
        let mut client = gateway.client();
        client.get(target);
        let mut peer = upstream.accept();
        peer.head();
        if resets {
            client.reset()
        } else {
            drop(client)
        }
        check_closed(&mut peer);
        check_logged(&gateway, target, "client-gone", serde_json::Value::Null);
    }
    // In the middle of its body.
    let mut client = gateway.client();
    client.send("POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc");
    let mut peer = upstream.accept();
    peer.head();
    assert_eq!(peer.take(3), b"abc");
    drop(client);
    check_closed(&mut peer);
    check_logged(&gateway, "/body", "client-gone", serde_json::Value::Null);
}

/// An upstream that reads nothing holds the body up; a client that resets is gone all the same, and so is one whose time is
/// over.
#[test]
fn a_client_that_leaves_behind_a_full_upstream_is_gone() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "body_bytes_max = \"1GiB\"", "head_timeout = \"60s\"");
    let sockets = gateway.sockets();
    let mut client = gateway.client();
    client.send("POST /full HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n");
    let peer = upstream.accept();
    client.stream.set_nonblocking(true).expect("a socket");
    let mut stuck = 0;
    while stuck < 20 {
        match client.stream.write(&[b'a'; 1 << 16]) {
            Ok(1..) => stuck = 0,
            Ok(0) | Err(_) => {
                stuck += 1;
                std::thread::park_timeout(Duration::from_millis(20));
            }
        }
    }
    client.reset();
    check_logged(&gateway, "/full", "client-gone", serde_json::Value::Null);
    eventually("both connections are closed", || (gateway.sockets() <= sockets).then_some(()));
    drop(peer);
}

/// What an upstream did not read when its time was over is nobody's any more: its connection ends with the request.
#[test]
fn an_upstream_that_reads_nothing_and_says_nothing_is_given_up() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "body_bytes_max = \"1GiB\"\nbody_timeout = \"1s\"", "head_timeout = \"500ms\"");
    let sockets = gateway.sockets();
    let mut client = gateway.client();
    client.send("POST /full HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n");
    let mut peer = upstream.accept();
    client.stream.set_nonblocking(true).expect("a socket");
    eventually("it is given up", || {
        drop(client.stream.write(&[b'a'; 1 << 16]));
        std::thread::park_timeout(Duration::from_millis(1));
        (!gateway.log().is_empty()).then_some(())
    });
    check_logged(&gateway, "/full", "upstream-error", 504);
    client.stream.set_nonblocking(false).expect("a socket");
    assert!(client.rest().starts_with("HTTP/1.1 504 "));
    drop(client);
    eventually("both connections are closed", || (gateway.sockets() <= sockets).then_some(()));
    let mut bytes = Vec::new();
    drop(peer.stream.read_to_end(&mut bytes));
}

#[test]
fn a_client_that_leaves_in_the_middle_of_an_answer_ends_it_at_once() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "");
    for (target, resets) in [("/fin", false), ("/reset", true)] {
        let mut client = gateway.client();
        client.get(target);
        let mut peer = upstream.accept();
        peer.head();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nab");
        client.head();
        client.take(2);
        if resets {
            client.reset()
        } else {
            drop(client)
        }
        check_closed(&mut peer);
        check_logged(&gateway, target, "client-gone", 200);
    }
}

/// A client that has sent more, and then ended its side, may still be reading.
#[test]
fn requests_behind_a_request_are_not_a_close() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "");
    let mut client = gateway.client();
    client.get("/a");
    client.get("/b");
    client.stream.shutdown(std::net::Shutdown::Write).expect("connected");
    let mut peer = upstream.accept();
    assert!(peer.head().starts_with("GET /a "));
    check_rests(&gateway);
    peer.send(OK);
    assert_eq!(client.message(), OK_RELAYED);
    // Behind the last one nothing more comes, so nobody reads.
    check_closed(&mut client);
    check_logged(&gateway, "/a", "proxied", 200);
    check_logged(&gateway, "/b", "client-gone", serde_json::Value::Null);
}

/// The same in the middle of a body that is held up: all of it is there, and nothing is to be done until there is room.
#[test]
fn a_client_that_has_sent_everything_is_waited_with() {
    const LENGTH: usize = 512 << 10;
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "");
    let mut warm = gateway.client();
    let mut client = gateway.client();
    client.send(format!("POST /held HTTP/1.1\r\nHost: x\r\nContent-Length: {LENGTH}\r\n\r\n"));
    let peer = upstream.accept();
    setsockopt(&peer.stream, sockopt::RcvBuf, &4096).expect("a socket");
    client.stream.set_nonblocking(true).expect("a socket");
    let mut sent = 0;
    eventually("all is sent", || {
        sent += client.stream.write(&vec![b'a'; (LENGTH - sent).min(1 << 14)]).unwrap_or(0);
        (sent == LENGTH).then_some(())
    });
    client.stream.set_nonblocking(false).expect("a socket");
    client.stream.shutdown(std::net::Shutdown::Write).expect("connected");
    check_rests(&gateway);
    let mut peer = peer;
    // Behind its last byte nothing more comes, so nobody reads: as behind a request without a body.
    drop(peer.stream.read_to_end(&mut Vec::new()));
    check_closed(&mut client);
    check_logged(&gateway, "/held", "client-gone", serde_json::Value::Null);
    warm.get("/warm");
    let mut peer = upstream.accept();
    peer.head();
    peer.send(OK);
    assert_eq!(warm.message(), OK_RELAYED);
}

/// A worker that spins would use all of the time that passes here; one at rest uses hardly any.
#[track_caller]
fn check_rests(gateway: &super::Gateway) {
    let (before, began) = (gateway.cpu_ticks(), Instant::now());
    while began.elapsed() < Duration::from_millis(500) {
        std::thread::park_timeout(Duration::from_millis(50));
    }
    let ticks = gateway.cpu_ticks() - before;
    assert!(ticks <= 10, "{ticks} ticks of 10 ms in half a second");
}

/// One worker, one client that never stops, one upstream that never stops: the others are served in between.
#[test]
fn an_endless_answer_does_not_starve_the_others() {
    let upstream = Serving::start(|head, peer| {
        if head.starts_with("GET /small") {
            peer.send(OK);
            return true;
        }
        peer.send("HTTP/1.1 200 OK\r\n\r\n");
        let piece = vec![b'a'; 1 << 16];
        while peer.stream.write_all(&piece).is_ok() {}
        false
    });
    let gateway = before_serving(&upstream, "", "");
    let mut greedy = gateway.client();
    greedy.get("/endless");
    let mut answers = Client::of(greedy.stream.try_clone().expect("a socket"));
    let reader =
        std::thread::spawn(move || while answers.stream.read(&mut [0; 1 << 16]).is_ok_and(|count| count > 0) {});
    let began = Instant::now();
    for _ in 0..20 {
        assert_eq!(gateway.status("/small"), 200);
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    greedy.stream.shutdown(std::net::Shutdown::Both).expect("connected");
    reader.join().expect("no panic");
}
