//! Each number of `[limits]`, at it and one past it, and what a client that goes beyond it is told.
#![cfg(feature = "gateway")]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use support::{Client, Daemon, Gateway, eventually, folder, patience};

const ROUTE: &str = "[[route]]\npath = \"/\"\ndefault = { respond = { body = \"ok\" } }\n";

fn start(limits: &str) -> Gateway {
    Gateway::start(&format!("LISTEN\n{ROUTE}[limits]\n{limits}\n"))
}

/// Sends one byte after the other until something comes back, or the other end is gone; returns what came.
fn drip(client: &mut Client, bytes: impl IntoIterator<Item = u8>, pause: Duration) -> String {
    client.stream.set_read_timeout(Some(pause)).expect("a socket");
    let mut got = Vec::new();
    for byte in bytes {
        if client.stream.write_all(&[byte]).is_err() {
            break;
        }
        match client.stream.read_to_end(&mut got) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            _ => break,
        }
    }
    String::from_utf8_lossy(&got).into_owned()
}

/// Whether nothing comes for `time`, and the connection stays open.
fn is_silent(client: &mut Client, time: Duration) -> bool {
    client.stream.set_read_timeout(Some(time)).expect("a socket");
    let silent = client.stream.peek(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
    client.stream.set_read_timeout(Some(patience())).expect("a socket");
    silent
}

#[test]
fn a_head_may_be_longer_than_a_receive_buffer() {
    let gateway = start("head_bytes_max = \"1MiB\"");
    for (length, status) in [(1 << 20, 200), ((1 << 20) + 1, 431)] {
        let start = "GET / HTTP/1.1\r\nHost: x\r\nA: ";
        let mut client = gateway.client();
        client.send(format!("{start}{}\r\n\r\n", "a".repeat(length - start.len() - 4)));
        assert_eq!(client.answer().status, status, "{length}");
    }
}

#[test]
fn a_head_that_comes_byte_by_byte_runs_out() {
    let gateway = start("head_timeout = \"500ms\"");
    let mut client = gateway.client();
    let began = Instant::now();
    let answer =
        drip(&mut client, b"GET /".iter().copied().chain(std::iter::repeat_n(b'a', 600)), Duration::from_millis(50));
    assert!(answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{answer}");
    assert!(answer.contains("\r\nConnection: close\r\n") && answer.ends_with("</html>\n"), "{answer}");
    assert!(began.elapsed() >= Duration::from_millis(500), "{:?}", began.elapsed());
    let line = gateway.log_line(1);
    assert_eq!((line["outcome"].as_str(), &line["status"]), (Some("client-error"), &408.into()), "{line}");
    assert!(line["error"].as_str().is_some_and(|e| e.contains("head_timeout")), "{line}");
    // The same pace is no fault of a head that is short enough; nor is the time before its first byte.
    let mut client = gateway.client();
    client.get("/");
    assert_eq!(client.answer().status, 200);
    assert!(is_silent(&mut client, Duration::from_millis(700)));
    client.get("/");
    assert_eq!(client.answer().status, 200);
}

#[test]
fn an_idle_connection_is_closed_silently() {
    let gateway = start("keep_alive_timeout = \"300ms\"");
    let began = Instant::now();
    assert_eq!(gateway.client().rest(), "");
    let mut client = gateway.client();
    client.get("/");
    assert_eq!(client.answer().status, 200);
    assert_eq!(client.rest(), "");
    assert!(began.elapsed() >= Duration::from_millis(600), "{:?}", began.elapsed());
    gateway.log_line(1);
    assert_eq!(gateway.log().len(), 1);
}

#[test]
fn one_client_too_many_waits_until_another_leaves() {
    let gateway = start("connections_max = 2");
    let mut owned = [gateway.client(), gateway.client()];
    for client in &mut owned {
        client.get("/");
        assert_eq!(client.answer().status, 200);
    }
    let mut third = gateway.client();
    third.get("/");
    assert!(is_silent(&mut third, Duration::from_millis(300)));
    let [first, mut second] = owned;
    drop(first);
    assert_eq!(third.answer().status, 200);
    second.get("/");
    assert_eq!(second.answer().status, 200);
    // A reload with more places lets the next one in.
    let mut fourth = gateway.client();
    fourth.get("/");
    assert!(is_silent(&mut fourth, Duration::from_millis(100)));
    gateway.reload(&format!("LISTEN\n{ROUTE}[limits]\nconnections_max = 3\n"));
    assert_eq!(fourth.answer().status, 200);
}

/// Two clients leave together. The first listener waits for a place and finds that nobody wants one; the other, where
/// somebody does, must hear of it as well.
#[test]
fn a_burst_at_the_maximum_leaves_nothing_behind() {
    let gateway = Gateway::start(&format!(
        "[gateway]\nworkers = 1\n[limits]\nconnections_max = 2\nLISTEN\n\
         [[listener]]\nname = \"other\"\naddress = \"unix:DIR/other.sock\"\n{ROUTE}"
    ));
    let last = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    for _ in 0..50 {
        let mut owned = [gateway.client(), gateway.client()];
        for client in &mut owned {
            client.get("/");
            assert_eq!(client.answer().status, 200);
        }
        let mut other = std::os::unix::net::UnixStream::connect(gateway.path("other.sock")).expect("it listens");
        other.set_read_timeout(Some(patience())).expect("a socket");
        other.write_all(last).expect("the kernel takes it");
        drop(owned);
        let mut got = String::new();
        other.read_to_string(&mut got).expect("served");
        assert!(got.starts_with("HTTP/1.1 200 "), "{got}");
    }
}

#[test]
fn a_client_that_was_handed_over_has_left_its_place() {
    let folder = folder();
    let daemon = Daemon::start(&folder.path().join("d.sock"), "seqpacket", "stream", &[]);
    let toml = "LISTEN\n[limits]\nconnections_max = 1\n[target.d]\nsockets = [\"DIR/d.sock\"]\n\
                [[route]]\npath = \"/\"\ndefault = { handoff = \"d\" }\n";
    let gateway = Gateway::start_in(folder, toml, |command| command);
    let mut clients: Vec<_> = (0..5).map(|_| gateway.client()).collect();
    for client in &mut clients {
        client.get("/");
        client.until("tick 0\n");
    }
    for client in &mut clients {
        client.until("tick 2\n");
    }
    assert_eq!(daemon.events("got").len(), 5);
}

#[test]
fn a_body_that_is_drained_has_a_deadline_and_a_bound() {
    let gateway = start("body_timeout = \"300ms\"\nbody_bytes_max = \"100B\"");
    for (length, lives) in [(100, true), (101, false)] {
        let mut client = gateway.client();
        client.send(format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{}", "a".repeat(length)));
        let answer = client.answer();
        assert_eq!((answer.status, answer.header("connection").is_none()), (200, lives), "{length}");
    }
    let mut client = gateway.client();
    client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc");
    assert_eq!(client.answer().status, 200);
    let began = Instant::now();
    assert_eq!(client.rest(), "");
    assert!(began.elapsed() > Duration::from_millis(200), "{:?}", began.elapsed());
}

/// A byte now and then is progress, but too little of it: the rate is asked for after ten seconds.
#[test]
fn a_body_that_comes_too_slowly_is_cut() {
    let gateway = start("body_rate_min = \"1KiB\"");
    let mut client = gateway.client();
    client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n\r\n");
    assert_eq!(client.answer().status, 200);
    let began = Instant::now();
    assert_eq!(drip(&mut client, std::iter::repeat_n(b'a', 10_000), Duration::from_millis(100)), "");
    assert!((9..20).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[test]
fn data_for_a_daemon_has_a_bound_that_the_log_names() {
    let folder = folder();
    let daemon = Daemon::start(&folder.path().join("d.sock"), "seqpacket", "serve", &[]);
    let toml = concat!(
        "LISTEN\n[limits]\nhandoff_data_bytes_max = \"16B\"\n[target.chat]\nsockets = [\"DIR/d.sock\"]\n",
        "[policy.p]\nmodule = \"",
        env!("CARGO_MANIFEST_DIR"),
        "/tests/policies/hands_over.wat\"\n[[route]]\npath = \"/\"\npolicies = [\"p\"]\n"
    );
    let gateway = Gateway::start_in(folder, toml, |command| command);
    let ask =
        |length: usize| gateway.ask(&format!("GET / HTTP/1.1\r\nHost: x\r\nX-Data: {}\r\n\r\n", "d".repeat(length)));
    assert!(ask(16).ends_with("from daemon\n"));
    let mut client = gateway.client();
    client.send(format!("GET / HTTP/1.1\r\nHost: x\r\nX-Data: {}\r\n\r\n", "d".repeat(17)));
    assert_eq!(client.answer().status, 500);
    let named = |line: &serde_json::Value| line["error"].as_str().is_some_and(|e| e.contains("handoff_data_bytes_max"));
    eventually("a line names it", || gateway.log().iter().any(named).then_some(()));
    gateway.stderr.wait(0, &["handoff_data_bytes_max"]);
    assert_eq!(daemon.events("got").len(), 1);
}

const BIG: usize = 8 << 20;

fn big(body_timeout: &str) -> Gateway {
    let body = "a".repeat(BIG);
    Gateway::start(&format!(
        "LISTEN\n[limits]\nbody_timeout = \"{body_timeout}\"\n[[route]]\npath = \"/\"\ndefault = {{ respond = {{ body = \"{body}\" }} }}\n"
    ))
}

#[test]
fn a_client_that_does_not_read_is_cut() {
    let gateway = big("500ms");
    let sockets = gateway.sockets();
    let mut all = gateway.client();
    all.get("/");
    assert_eq!(all.answer().body.len(), BIG);
    drop(all);
    let before = gateway.resident_bytes();
    let mut clients: Vec<_> = (0..4).map(|_| gateway.client()).collect();
    for client in &mut clients {
        client.get("/");
    }
    for client in &mut clients {
        client.until("\r\n\r\n");
    }
    // While they stall, each costs its answer and no more.
    assert!(gateway.resident_bytes() < before + 4 * 3 * BIG as u64, "{before} to {}", gateway.resident_bytes());
    let log = eventually("all are logged", || Some(gateway.log()).filter(|log| log.len() == 5));
    for line in &log[1..] {
        assert_eq!(line["outcome"], "client-gone", "{line}");
        assert!(line["bytes_out"].as_u64().is_some_and(|n| n < BIG as u64) && line["error"].is_string(), "{line}");
    }
    eventually("the sockets are closed", || (gateway.sockets() <= sockets).then_some(()));
    // What was cut does not look whole.
    for client in &mut clients {
        assert!(client.rest().len() < BIG);
    }
}

/// The socket is not reported writable until a third of its buffer has gone. At this pace that takes longer than
/// `body_timeout`; the client is no less alive.
#[test]
fn a_client_that_reads_slowly_but_steadily_gets_everything() {
    let gateway = big("400ms");
    let mut client = gateway.client();
    client.get("/");
    client.until("\r\n\r\n");
    let (mut read, mut piece) = (0, vec![0; 128 << 10]);
    let began = Instant::now();
    // Beside what `until` took already.
    while read < BIG - 4096 {
        match client.stream.read(&mut piece) {
            Ok(0) => panic!("closed after {read} bytes"),
            Ok(count) => read += count,
            Err(error) => panic!("{error} after {read} bytes"),
        }
        // The pace: 1.3 MB a second.
        while began.elapsed() < Duration::from_millis(read as u64 * 100 / piece.len() as u64) {
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
    let line = gateway.log_line(1);
    assert_eq!(line["outcome"], "responded", "{line}");
}
