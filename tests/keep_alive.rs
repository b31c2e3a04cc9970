//! A thousand requests over one connection, answered by the gateway, by a server behind it, and by a daemon that gives the
//! client back, in turn: one after the other and pipelined, with a daemon in each language. The log has the same thousand
//! outcomes in their order.
#![cfg(feature = "gateway")]
#![allow(unreachable_pub, dead_code, reason = "nothing of a program can be reached, and it needs less than is there")]

#[path = "daemons/language.rs"]
mod language;
mod support;

use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};

use language::{Daemon, Language};
use support::upstream::Upstream;
use support::{Client, Gateway, eventually};

const COUNT: usize = 1000;

/// Who answers the n-th, and what the log says of it.
const KINDS: [&str; 4] = ["responded", "proxied", "returned", "returned"];

fn configuration(upstream: &Upstream) -> String {
    format!(
        "[gateway]\nLISTEN\n[handoff]\nack_timeout = \"60s\"\n\
         [target.chat]\nsockets = [\"DIR/d.sock\"]\ndialect = \"baton\"\n\
         [upstream.app]\naddress = \"{}\"\n\
         [[route]]\npath = \"/responded\"\ndefault = {{ respond = {{ body = \"hello\" }} }}\n\
         [[route]]\npath = \"/proxied\"\ndefault = {{ proxy = \"app\" }}\n\
         [[route]]\npath = \"/\"\ndefault = {{ handoff = \"chat\" }}\n",
        upstream.address()
    )
}

/// The n-th request. A daemon is asked with a body, which it echoes, and without one.
fn request(n: usize) -> String {
    match n % KINDS.len() {
        0 => format!("GET /responded/{n} HTTP/1.1\r\nHost: x\r\n\r\n"),
        1 => {
            let body = format!("to the server {n}");
            format!("POST /proxied/{n} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        }
        2 => format!("GET /return?{n} HTTP/1.1\r\nHost: x\r\n\r\n"),
        _ => {
            let body = echoed(n);
            format!(
                "POST /echo?{n} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
                body.len()
            )
        }
    }
}

fn echoed(n: usize) -> String {
    "to the daemon ".repeat(1 + n % 40) + &n.to_string()
}

fn answer(n: usize) -> String {
    match n % KINDS.len() {
        0 => "hello".to_owned(),
        1 => format!("the server had to the server {n}"),
        2 => "returned\n".to_owned(),
        _ => echoed(n),
    }
}

/// A server that answers with what it was sent, and keeps its connections.
fn serve(mut connection: Client, served: &AtomicUsize) {
    while let Some(head) = connection.next_head() {
        let length = head.to_ascii_lowercase();
        let length = length.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("it has a body");
        let body = connection.take(length.trim().parse().expect("a number"));
        let body = format!("the server had {}", String::from_utf8_lossy(&body));
        served.fetch_add(1, Ordering::Relaxed);
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        if connection.stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// `at_once` requests are sent before their answers are read.
#[track_caller]
fn check(language: Language, at_once: usize) {
    let upstream: &'static Upstream = Box::leak(Box::new(Upstream::new()));
    let served: &'static AtomicUsize = Box::leak(Box::default());
    std::thread::spawn(move || {
        loop {
            match upstream.try_accept() {
                Some(connection) => drop(std::thread::spawn(move || serve(connection, served))),
                None => std::thread::park_timeout(std::time::Duration::from_millis(2)),
            }
        }
    });
    let gateway = Gateway::start(&configuration(upstream));
    let _daemon = Daemon::start(language, &gateway.path("d.sock"), "baton", 2);
    let mut client = gateway.client();
    let port = client.port();
    for first in (0..COUNT).step_by(at_once) {
        let several = first..(first + at_once).min(COUNT);
        client.send(several.clone().map(request).collect::<String>());
        for n in several {
            let got = client.answer();
            assert_eq!((got.status, &*got.body), (200, &*answer(n)), "{}, {n}: {}", language.name, got.head);
            assert_ne!(got.header("connection"), Some("close"), "{}, {n}", language.name);
        }
    }
    assert_eq!(client.port(), port, "one connection");
    client.stream.shutdown(std::net::Shutdown::Write).expect("a socket");
    assert_eq!(client.rest(), "", "and nothing else");
    let log = eventually("a line for each", || Some(gateway.log()).filter(|log| log.len() >= COUNT));
    assert_eq!(log.len(), COUNT);
    for (n, line) in log.iter().enumerate() {
        let number = line["target"].as_str().and_then(|target| target.rsplit(['/', '?']).next());
        assert_eq!(
            (line["outcome"].as_str(), line["status"].as_u64(), number),
            (Some(KINDS[n % KINDS.len()]), Some(200), Some(&*n.to_string())),
            "{}: {line}",
            language.name
        );
        assert!(line["error"].is_null(), "{}: {line}", language.name);
    }
    assert_eq!(served.load(Ordering::Relaxed), COUNT / KINDS.len());
    println!("{}: {COUNT} requests over one connection, {at_once} at a time", language.name);
}

#[test]
fn a_thousand_requests_in_turn_over_one_connection() {
    language::ALL.iter().for_each(|language| check(*language, 1));
}

#[test]
fn a_thousand_requests_pipelined_over_one_connection() {
    language::ALL.iter().for_each(|language| check(*language, 25));
}
