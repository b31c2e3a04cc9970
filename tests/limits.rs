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
fn heads_are_bounded_by_default_and_as_it_is_configured() {
    for (limits, bytes_max, fields_max) in
        [("", 32 << 10, 100), ("head_bytes_max = \"64KiB\"\nheaders_max = 150", 64 << 10, 150)]
    {
        let gateway = start(limits);
        let status = |fields: &str| {
            let mut client = gateway.client();
            client.send(format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n"));
            client.answer().status
        };
        let of_bytes =
            |count: usize| status(&format!("A: {}\r\n", "a".repeat(count - "GET / HTTP/1.1Host: xA: ".len() - 8)));
        assert_eq!((of_bytes(bytes_max), of_bytes(bytes_max + 1)), (200, 431), "{bytes_max} bytes");
        let of_fields = |count: usize| status(&"A: b\r\n".repeat(count - 1));
        assert_eq!((of_fields(fields_max), of_fields(fields_max + 1)), (200, 431), "{fields_max} fields");
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
    // One that asks for no body gets none.
    let answer = drip(&mut gateway.client(), b"HEAD /aaaaaaaaaaaaaaaaaaaa".iter().copied(), Duration::from_millis(50));
    assert!(answer.starts_with("HTTP/1.1 408 Request Timeout\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
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
    let gateway = start("keep_alive_timeout = \"600ms\"");
    let began = Instant::now();
    assert_eq!(gateway.client().rest(), "");
    // Whoever asks again in time goes on.
    let mut client = gateway.client();
    for _ in 0..2 {
        client.get("/");
        assert_eq!(client.answer().status, 200);
        assert!(is_silent(&mut client, Duration::from_millis(200)));
    }
    assert_eq!(client.rest(), "");
    assert!(began.elapsed() >= Duration::from_millis(1400), "{:?}", began.elapsed());
    gateway.log_line(2);
    assert_eq!(gateway.log().len(), 2);
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

/// What `reads_body.wat` answers when there is nothing to be shown: 500 and the number of the error.
const TOO_LARGE: u16 = 500;
const TIMED_OUT: u16 = 501;

/// Beside `/`, policies that look at a body: at 16 bytes (`/looks`), and at all of it (`/wants-all`).
fn with_policies(limits: &str) -> Gateway {
    let folder = folder();
    let guest = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/policies/reads_body.wat");
    let text = std::fs::read_to_string(guest).expect("a guest");
    let all = text.replace("(call $prefix (i32.const 16)", "(call $prefix (i32.const 100000)");
    assert_ne!(all, text);
    std::fs::write(folder.path().join("all.wat"), all).expect("written");
    let policy = |name: &str, module: &str| {
        format!("[policy.{name}]\nmodule = \"{module}\"\n[[route]]\npath = \"/{name}\"\npolicies = [\"{name}\"]\n")
    };
    let policies = policy("looks", guest) + &policy("wants-all", "all.wat");
    let unix = "[[listener]]\nname = \"unix\"\naddress = \"unix:DIR/http.sock\"\n";
    Gateway::start_in(folder, &format!("LISTEN\n{unix}{ROUTE}{policies}[limits]\n{limits}\n"), |command| command)
}

fn post(path: &str, fields: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n")
}

/// Of a body that the gateway reads: to throw it away, or for a policy that wants to see it. What a policy does not ask for
/// stays where it is and may be of any length.
#[test]
fn a_body_is_read_up_to_its_bound_in_either_framing() {
    let gateway = with_policies("body_bytes_max = \"100B\"");
    for (length, fits) in [(100, true), (101, false)] {
        let body = "b".repeat(length);
        let plain = (format!("Content-Length: {length}"), body.clone());
        let chunked =
            ("Transfer-Encoding: chunked".to_owned(), format!("{length:x};a=b\r\n{body}\r\n0\r\nA: b\r\n\r\n"));
        for (fields, body) in [plain, chunked] {
            let ask = |path: &str| {
                let mut client = gateway.client();
                client.send(post(path, &fields) + &body);
                let answer = client.answer();
                if answer.header("connection").is_none() {
                    client.get("/");
                    assert_eq!(client.answer().body, "ok", "{path} {fields}");
                } else {
                    assert_eq!(client.rest(), "", "{path} {fields}");
                }
                (answer.status, answer.body.len(), answer.header("connection").is_none())
            };
            assert_eq!(ask("/"), (200, 2, fits), "{fields}");
            assert_eq!(ask("/looks"), (200, 16, fits), "{fields}");
            assert_eq!(ask("/wants-all"), if fits { (200, 100, true) } else { (TOO_LARGE, 0, false) }, "{fields}");
        }
    }
    // One that says beforehand how long it will be is not told to go on.
    let all = gateway.ask(&post("/wants-all", "Expect: 100-continue\r\nContent-Length: 101"));
    assert!(all.starts_with("HTTP/1.1 500 "), "{all}");
    let mut client = gateway.client();
    client.send(post("/wants-all", "Expect: 100-continue\r\nContent-Length: 100"));
    assert_eq!(client.until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("b".repeat(100));
    assert_eq!(client.answer().body.len(), 100);
}

/// `body_timeout` is the time without a byte; a policy that waits for the body hears of it.
#[test]
fn a_body_that_stalls_is_waited_for_and_no_longer() {
    let gateway = with_policies("body_timeout = \"400ms\"");
    let began = Instant::now();
    let mut client = gateway.client();
    client.send(post("/looks", "Content-Length: 16") + "not all");
    assert_eq!(client.answer().status, TIMED_OUT);
    assert!(began.elapsed() >= Duration::from_millis(400), "{:?}", began.elapsed());
    // Longer in all, but never silent for so long.
    let mut client = gateway.client();
    client.send(post("/looks", "Content-Length: 16"));
    assert_eq!(drip(&mut client, [b'b'; 15], Duration::from_millis(60)), "");
    client.stream.set_read_timeout(Some(patience())).expect("a socket");
    client.send("b");
    assert_eq!(client.answer().body, "b".repeat(16));
}

/// A Unix socket counts each write as a few hundred bytes, so its client comes to a stop after some of them. The policy is
/// told after `body_timeout`; the client is let go on when the body is read away.
#[test]
fn a_unix_client_that_writes_byte_by_byte_is_no_hang() {
    let gateway = with_policies("body_timeout = \"300ms\"");
    let mut client = std::os::unix::net::UnixStream::connect(gateway.path("http.sock")).expect("it listens");
    client.set_read_timeout(Some(patience())).expect("a socket");
    let mut reader = client.try_clone().expect("a socket");
    let writer = std::thread::spawn(move || {
        client.write_all(post("/wants-all", "Content-Length: 5000").as_bytes())?;
        (0..5000).try_for_each(|_| client.write_all(b"b"))?;
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    });
    let mut got = String::new();
    reader.read_to_string(&mut got).expect("answered");
    writer.join().expect("no panic").expect("all of it was taken");
    assert!(got.starts_with("HTTP/1.1 501 ") && got.ends_with("\r\n\r\nok"), "{got}");
}

/// A byte now and then is progress, but too little of it: the rate is asked for after ten seconds. Four clients at the
/// same time, so that the ten seconds pass once: below the rate and above it, for a body that is read away and for one
/// that a policy waits for.
#[test]
fn a_body_that_comes_too_slowly_is_cut() {
    let gateway = with_policies("body_rate_min = \"1KiB\"");
    let pause = Duration::from_millis(100);
    let ask = |path: &str, length: usize| {
        let mut client = gateway.client();
        client.send(post(path, &format!("Content-Length: {length}")));
        client
    };
    let wait = |client: &mut Client, status: u16| {
        client.stream.set_read_timeout(Some(patience())).expect("a socket");
        assert_eq!(client.answer().status, status);
    };
    let began = Instant::now();
    // 150 bytes in each pause: half as much again as is asked for, for twelve seconds.
    let keep_up = |client: &mut Client, length: usize| {
        for sent in 0..length / 150 {
            client.send([b'a'; 150]);
            let next = pause * (u32::try_from(sent).expect("few") + 1);
            while began.elapsed() < next {
                std::thread::park_timeout(next - began.elapsed());
            }
        }
    };
    let in_time = |began: Instant| (9..20).contains(&began.elapsed().as_secs());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = ask("/", 10_000);
            wait(&mut client, 200);
            assert_eq!(drip(&mut client, std::iter::repeat_n(b'a', 10_000), pause), "");
            assert!(in_time(began), "{:?}", began.elapsed());
        });
        scope.spawn(|| {
            let mut client = gateway.client();
            client.send(post("/wants-all", "Connection: close\r\nContent-Length: 10000"));
            let answer = drip(&mut client, std::iter::repeat_n(b'a', 10_000), pause);
            assert!(answer.starts_with("HTTP/1.1 501 ") && in_time(began), "{:?}: {answer}", began.elapsed());
        });
        for (path, waits_first) in [("/", true), ("/wants-all", false)] {
            scope.spawn(move || {
                let length = 150 * 120;
                let mut client = ask(path, length);
                if waits_first {
                    wait(&mut client, 200);
                }
                keep_up(&mut client, length);
                if !waits_first {
                    wait(&mut client, 200);
                }
                client.get("/");
                wait(&mut client, 200);
            });
        }
    });
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
