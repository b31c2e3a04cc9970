//! Upstreams that are slow, gone, or several.

use std::io::Read;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use super::support::upstream::{Serving, Upstream};
use super::support::{Gateway, eventually};
use super::{OK, OK_RELAYED, before, before_serving, check_closed, check_logged, configuration};

/// The address of nobody: something listened there a moment ago.
fn nobody() -> String {
    let listener = TcpListener::bind("127.66.77.88:0").expect("a port");
    format!("http://{}", listener.local_addr().expect("it listens"))
}

fn several(addresses: &[String], upstream: &str) -> Gateway {
    Gateway::start(&configuration("", "", &format!("{addresses:?}"), upstream))
}

#[test]
fn an_upstream_that_is_not_there_is_503_with_a_word_of_when() {
    let gateway = several(&[nobody(), nobody()], "");
    let mut client = gateway.client();
    for _ in 0..2 {
        client.get("/none");
        let answer = client.answer();
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
        assert!(answer.body.contains("503 Service Unavailable") && answer.body.contains("/error.css"), "{answer:?}");
    }
    let line = check_logged(&gateway, "/none", "upstream-error", 503);
    assert_eq!((&line["attempts"], &line["to"]), (&2.into(), &"app".into()), "{line}");
    // A body that was not sent anywhere is drained, and the connection lives.
    client.send("POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc");
    assert_eq!(client.answer().status, 503);
    client.send("POST /chunks HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    assert_eq!(client.answer().status, 503);
    client.get("/behind");
    assert_eq!(client.answer().status, 503);
}

#[test]
fn the_dead_are_passed_over() {
    let alive = Serving::start(|head, peer| {
        if head.contains("content-length: 50000\r\n") {
            peer.take(50_000);
        }
        peer.send(OK);
        true
    });
    let gateway = several(&[nobody(), alive.address(), nobody()], "keep_alive = 0");
    for n in 0..20 {
        assert_eq!(gateway.status(&format!("/{n}")), 200);
    }
    // With a body too, of which nothing went out before.
    let mut client = gateway.client();
    client.send("POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\n");
    client.send([b'a'; 50_000]);
    assert_eq!(client.message(), OK_RELAYED);
    let log = eventually("every line", || Some(gateway.log()).filter(|log| log.len() == 21));
    let attempts: Vec<_> = log.iter().filter_map(|line| line["attempts"].as_u64()).collect();
    // Each of the dead is tried when it is its turn, once; then a while not at all.
    assert!(attempts.iter().sum::<u64>() <= 21 + 4, "{attempts:?}");
    assert_eq!(alive.heads().len(), 21);
}

#[test]
fn servers_take_turns() {
    let servers = [0, 1, 2].map(|_| {
        Serving::start(|_, peer| {
            peer.send(OK);
            true
        })
    });
    let gateway = several(&servers.each_ref().map(Serving::address), "");
    for n in 0..30 {
        assert_eq!(gateway.status(&format!("/{n}")), 200);
    }
    assert_eq!(servers.each_ref().map(|server| server.heads().len()), [10, 10, 10]);
}

/// Whatever becomes of a request of which a byte went out: nobody else is asked, and nobody twice.
#[test]
fn what_was_sent_is_never_sent_again() {
    let dies = || {
        Serving::start(|head, peer| match head.split(' ').nth(1) {
            Some("/reset") => {
                let none = nix::libc::linger { l_onoff: 1, l_linger: 0 };
                nix::sys::socket::setsockopt(&peer.stream, nix::sys::socket::sockopt::Linger, &none).expect("a socket");
                false
            }
            Some("/ok") => {
                peer.send(OK);
                true
            }
            _ => false,
        })
    };
    let servers = [dies(), dies()];
    let gateway = several(&servers.each_ref().map(Serving::address), "");
    let count = |target: &str| {
        let line = |server: &Serving| server.heads().iter().filter(|head| head.contains(target)).count();
        servers.iter().map(line).sum::<usize>()
    };
    for round in 0..5 {
        for target in ["/close", "/reset"] {
            // On connections that were kept, too.
            assert_eq!((gateway.status("/ok"), gateway.status("/ok")), (200, 200));
            let target = format!("{target}?{round}");
            assert_eq!(gateway.status(&target), 502, "{target}");
            assert_eq!(count(&format!("{target} ")), 1, "{target}");
            let mut client = gateway.client();
            client.send(format!("POST {target}post HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"));
            assert_eq!(client.answer().status, 502);
            assert_eq!(count(&format!("{target}post ")), 1, "{target}");
        }
    }
}

#[test]
fn a_kept_connection_that_the_server_closed_is_not_used() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "");
    for n in 0..20 {
        let mut client = gateway.client();
        client.get(&format!("/{n}"));
        let mut peer = upstream.accept();
        assert!(peer.head().starts_with(&format!("GET /{n} ")));
        peer.send(OK);
        assert_eq!(client.message(), OK_RELAYED);
        // Closed without a word, in each of the two ways.
        if n % 2 == 0 { drop(peer) } else { peer.reset() }
    }
}

#[test]
fn idle_connections_are_closed_in_time_and_only_so_many_are_kept() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "keep_alive = 2\nkeep_alive_timeout = \"300ms\"");
    let mut clients: Vec<_> = (0..3).map(|_| gateway.client()).collect();
    let mut peers = Vec::new();
    for client in &mut clients {
        client.get("/");
        let mut peer = upstream.accept();
        peer.head();
        peers.push(peer);
    }
    for (client, peer) in clients.iter_mut().zip(&mut peers) {
        peer.send(OK);
        assert_eq!(client.message(), OK_RELAYED);
    }
    let began = Instant::now();
    // One is one too many.
    eventually("one is closed", || {
        let closed = |peer: &super::Client| {
            peer.stream.set_nonblocking(true).expect("a socket");
            matches!(peer.stream.peek(&mut [0]), Ok(0))
        };
        (peers.iter().filter(|peer| closed(peer)).count() == 1).then_some(())
    });
    for peer in &mut peers {
        peer.stream.set_nonblocking(false).expect("a socket");
        check_closed(peer);
    }
    assert!(began.elapsed() >= Duration::from_millis(200) && began.elapsed() < Duration::from_secs(10));
}

#[test]
fn nobody_waits_longer_for_a_connection_than_connect_timeout() {
    // Its backlog is full: whoever connects now waits (listen(2)).
    let listener = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Stream,
        nix::sys::socket::SockFlag::empty(),
        None,
    )
    .expect("a socket");
    let any: nix::sys::socket::SockaddrIn = "127.0.0.1:0".parse().expect("an address");
    nix::sys::socket::bind(std::os::fd::AsRawFd::as_raw_fd(&listener), &any).expect("bound");
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1).expect("few")).expect("listens");
    let address: nix::sys::socket::SockaddrIn =
        nix::sys::socket::getsockname(std::os::fd::AsRawFd::as_raw_fd(&listener)).expect("bound");
    let address: std::net::SocketAddr = address.to_string().parse().expect("an address");
    let mut held = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        held.push(stream);
        assert!(held.len() < 100, "it has no end");
    }
    let gateway = several(&[format!("http://{address}")], "connect_timeout = \"300ms\"");
    let began = Instant::now();
    assert_eq!(gateway.status("/c"), 503);
    assert!(began.elapsed() >= Duration::from_millis(300) && began.elapsed() < Duration::from_secs(10));
    let line = check_logged(&gateway, "/c", "upstream-error", 503);
    assert!(line["error"].as_str().is_some_and(|error| error.contains("connect_timeout")), "{line}");
    // Another server is asked instead.
    let alive = Serving::start(|_, peer| {
        peer.send(OK);
        true
    });
    let gateway = several(&[format!("http://{address}"), alive.address()], "connect_timeout = \"300ms\"");
    assert_eq!(gateway.status("/other"), 200);
}

#[test]
fn a_head_may_take_so_long_and_no_longer() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "head_timeout = \"1s\"");
    // Within it, in pieces.
    let mut client = gateway.client();
    client.get("/in-time");
    let mut peer = upstream.accept();
    peer.head();
    std::thread::park_timeout(Duration::from_millis(300));
    peer.send("HTTP/1.1 200 OK\r\nConten");
    std::thread::park_timeout(Duration::from_millis(300));
    peer.send("t-Length: 2\r\n\r\nok");
    assert_eq!(client.message(), OK_RELAYED);
    // Past it: whether nothing came, or a byte now and then, or interim answers.
    for (target, trickle) in [("/nothing", ""), ("/bytes", "H"), ("/interim", "HTTP/1.1 102 Processing\r\n\r\n")] {
        let mut client = gateway.client();
        client.get(target);
        let mut peer = if target == "/nothing" { peer_of(&mut peer) } else { upstream.accept() };
        peer.head();
        let began = Instant::now();
        let mut at = 0;
        let whole = "HTTP/1.1 200 OK\r\nX-A: ".to_owned() + &"a".repeat(10_000);
        eventually("it is cut", || {
            let piece = if trickle == "H" { &whole[at..=at] } else { trickle };
            at += 1;
            std::thread::park_timeout(Duration::from_millis(50));
            if piece.is_empty() {
                peer.stream.set_nonblocking(true).expect("a socket");
                return matches!(peer.stream.peek(&mut [0]), Ok(0) | Err(_)).then_some(()).filter(|()| {
                    !matches!(peer.stream.peek(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
                });
            }
            std::io::Write::write_all(&mut peer.stream, piece.as_bytes()).is_err().then_some(())
        });
        assert!(began.elapsed() >= Duration::from_millis(900) && began.elapsed() < Duration::from_secs(10));
        let mut head = client.head();
        while head.starts_with("HTTP/1.1 102 ") {
            head = client.head();
        }
        assert!(head.starts_with("HTTP/1.1 504 Gateway Timeout\r\n"), "{target}: {head}");
        let line = check_logged(&gateway, target, "upstream-error", 504);
        assert!(line["error"].as_str().is_some_and(|error| error.contains("head_timeout")), "{line}");
    }
}

/// The connection that was kept is used again.
fn peer_of(peer: &mut super::Client) -> super::Client {
    super::Client::of(peer.stream.try_clone().expect("a socket"))
}

#[test]
fn a_body_may_be_silent_for_so_long_and_no_longer() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "body_timeout = \"500ms\"");
    for (target, framing, cut) in [
        ("/length", "Content-Length: 100", false),
        ("/chunks", "Transfer-Encoding: chunked", false),
        ("/end", "X-A: b", true),
    ] {
        let mut client = gateway.client();
        let version = if cut { "1.0" } else { "1.1" };
        client.send(format!("GET {target} HTTP/{version}\r\nHost: x\r\n\r\n"));
        let mut peer = upstream.accept();
        peer.head();
        peer.send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n"));
        // Three silences within the limit are together past it.
        let began = Instant::now();
        for _ in 0..3 {
            std::thread::park_timeout(Duration::from_millis(250));
            peer.send(if framing.contains("chunked") { "1\r\na\r\n" } else { "a" });
        }
        let mut bytes = Vec::new();
        let end = client.stream.read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes);
        assert!(began.elapsed() >= Duration::from_millis(1200), "{target}: {:?}", began.elapsed());
        assert!(!text.ends_with("0\r\n\r\n"), "{target}: {text}");
        assert_eq!(end.is_err(), cut, "{target}: {end:?} {text}");
        if !cut {
            assert!(text.ends_with('a') || text.ends_with("a\r\n"), "{target}: {text}");
        }
        let line = check_logged(&gateway, target, "upstream-error", 200);
        assert!(line["error"].as_str().is_some_and(|error| error.contains("body_timeout")), "{line}");
        drop(peer.stream.read_to_end(&mut Vec::new()));
    }
}

/// Nothing of a body was sent yet: the client can be told.
#[test]
fn a_body_that_never_begins_is_504() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "body_timeout = \"300ms\"");
    let mut client = gateway.client();
    client.get("/b");
    let mut peer = upstream.accept();
    peer.head();
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
    let mut bytes = Vec::new();
    let end = client.stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    // Its head has gone out, for a client that waits for it, before the body was due: so it sees a cut, and no second answer.
    assert!(text.matches("HTTP/1.1 ").count() == 1, "{end:?} {text}");
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\n"), "{text}");
    check_logged(&gateway, "/b", "upstream-error", 200);
}

/// The server's death is found out when it is asked, and forgotten when it is back.
#[test]
fn a_server_that_comes_back_is_asked_again() {
    let address = nobody();
    let gateway = several(std::slice::from_ref(&address), "");
    assert_eq!(gateway.status("/a"), 503);
    let port: std::net::SocketAddr = address.trim_start_matches("http://").parse().expect("an address");
    let back = Serving::start_at(port, |_, peer| {
        peer.send(OK);
        true
    });
    assert_eq!(gateway.status("/b"), 200);
    drop(back);
}

#[test]
fn an_upstream_killed_and_started_again_costs_one_request_at_most() {
    let first = Serving::start(|_, peer| {
        peer.send(OK);
        true
    });
    let gateway = before_serving(&first, "", "");
    assert_eq!(gateway.status("/a"), 200);
    assert_eq!((gateway.status("/b"), first.connections()), (200, 1));
}
