//! Ten thousand of each way in which an exchange can end early: what every client got, what the log says, and the gateway as
//! it was before, descriptor by descriptor.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use super::support::upstream::Serving;
use super::support::{Gateway, eventually, patience};
use super::{OK, before_serving, configuration};

const COUNT: usize = 10_000;
const AT_ONCE: usize = 50;
/// As in `failures.rs`: the allocator's doing.
const GROWTH_BYTES_MAX: u64 = 8 << 20;

/// Runs `one` so many times, so many at a time.
fn all(count: usize, one: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= count {
                        return;
                    }
                    one(n);
                }
            });
        }
    });
}

fn connect(gateway: &Gateway) -> TcpStream {
    let stream = TcpStream::connect(gateway.address()).expect("it listens");
    stream.set_read_timeout(Some(patience())).expect("a socket");
    stream
}

/// One request to the end; what came, and whether it ended by a reset.
fn ask(gateway: &Gateway, request: &str) -> (String, bool) {
    let mut stream = connect(gateway);
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut bytes = Vec::new();
    let end = stream.read_to_end(&mut bytes);
    (String::from_utf8_lossy(&bytes).into_owned(), end.is_err())
}

fn closes_at_once(stream: &TcpStream) {
    setsockopt(stream, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 }).expect("a socket");
}

fn outcomes(gateway: &Gateway, from: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for line in &gateway.log()[from..] {
        *counts.entry(format!("{} {}", line["outcome"].as_str().unwrap_or("?"), line["status"])).or_default() += 1;
    }
    counts
}

/// Warms up, runs, and looks at what is left.
fn measured(gateway: &Gateway, what: &str, run: impl FnOnce()) -> BTreeMap<String, usize> {
    all(1000, |_| {
        let (got, _) = ask(gateway, "GET /ok HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        assert!(got.starts_with("HTTP/1.1 200 "), "{got}");
    });
    let lines = gateway.log().len().max(1000);
    eventually("all lines", || (gateway.log().len() == lines).then_some(()));
    // Connections to the upstream that are kept end by themselves.
    let settled = || {
        let mut last = gateway.ledger();
        eventually("it has come to rest", || {
            std::thread::park_timeout(Duration::from_millis(600));
            let now = gateway.ledger();
            (std::mem::replace(&mut last, now.clone()) == now).then_some(())
        });
        last
    };
    let (ledger, bytes) = (settled(), gateway.resident_bytes());
    let began = Instant::now();
    run();
    let path = gateway.path("access.log");
    eventually("a line for each", || {
        let text = std::fs::read(&path).ok()?;
        (text.iter().filter(|byte| **byte == b'\n').count() >= lines + COUNT).then_some(())
    });
    let took = began.elapsed();
    gateway.ledger_is(&ledger);
    let after = gateway.resident_bytes();
    let counts = outcomes(gateway, lines);
    println!("{COUNT} {what} in {took:?}: {counts:?}; {} to {} KB resident; {ledger:?}", bytes >> 10, after >> 10);
    assert!(after <= bytes + GROWTH_BYTES_MAX, "{what}: {bytes} bytes became {after}");
    assert_eq!(gateway.log().len(), lines + COUNT, "a line for every request, and no other");
    assert!(!gateway.stderr.all().iter().any(|line| line.contains("panicked")));
    counts
}

fn serving() -> Serving {
    Serving::start(|head, peer| {
        match head.split(' ').nth(1).expect("a target") {
            "/gone/head" => return false,
            "/gone/in-head" => {
                peer.send("HTTP/1.1 200 OK\r\nContent-");
                return false;
            }
            "/gone/body" => {
                peer.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nab");
                return false;
            }
            "/gone/reset" => {
                closes_at_once(&peer.stream);
                return false;
            }
            // Answers nothing, and waits for the other end.
            "/late/head" | "/client/head" => {}
            "/late/body" | "/client/body" => peer.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nab"),
            _ => peer.send(OK),
        }
        true
    })
}

/// An idle connection to the upstream ends soon, so that what is left of the others can be told.
const SETTINGS: &str = "keep_alive_timeout = \"400ms\"";

#[test]
fn ten_thousand_clients_leave() {
    let upstream = serving();
    let gateway = before_serving(&upstream, "", SETTINGS);
    let counts = measured(&gateway, "clients gone", || {
        all(COUNT, |n| {
            let mut stream = connect(&gateway);
            let target = ["/client/head", "/client/body"][n % 2];
            stream.write_all(format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).expect("it reads");
            if n % 2 == 1 {
                let mut bytes = [0; 400];
                let mut count = 0;
                while !bytes[..count].ends_with(b"\r\n\r\nab") {
                    count += stream.read(&mut bytes[count..]).expect("an answer's beginning");
                }
            }
            if n % 4 < 2 {
                closes_at_once(&stream);
            }
        });
    });
    assert_eq!(
        counts,
        BTreeMap::from([("client-gone null".to_owned(), COUNT / 2), ("client-gone 200".to_owned(), COUNT / 2)])
    );
}

#[test]
fn ten_thousand_upstreams_leave() {
    let upstream = serving();
    let gateway = before_serving(&upstream, "", SETTINGS);
    let targets = ["/gone/head", "/gone/in-head", "/gone/body", "/gone/reset"];
    let counts = measured(&gateway, "upstreams gone", || {
        all(COUNT, |n| {
            let target = targets[n % 4];
            let (got, _) = ask(&gateway, &format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
            if target == "/gone/body" {
                assert!(got.starts_with("HTTP/1.1 200 OK\r\n") && got.ends_with("\r\n\r\nab"), "{got}");
            } else {
                assert!(got.starts_with("HTTP/1.1 502 Bad Gateway\r\n") && got.contains("502 Bad Gateway</"), "{got}");
            }
        });
    });
    let wanted = [("upstream-error 502".to_owned(), COUNT / 4 * 3), ("upstream-error 200".to_owned(), COUNT / 4)];
    assert_eq!(counts, BTreeMap::from(wanted));
}

#[test]
fn ten_thousand_time_out() {
    let upstream = serving();
    // What is only late because the machine is busy is none of the late ones.
    let address = upstream.address();
    let late = |name: &str| {
        format!(
            "[upstream.{name}]\naddress = \"{address}\"\n{SETTINGS}\n{name}_timeout = \"100ms\"\n\
             [[route]]\npath = \"/late/{name}\"\ndefault = {{ proxy = \"{name}\" }}\n"
        )
    };
    let toml = configuration("", "", &format!("\"{address}\""), SETTINGS) + &late("head") + &late("body");
    let gateway = Gateway::start(&toml);
    let counts = measured(&gateway, "time-outs", || {
        all(COUNT, |n| {
            let target = ["/late/head", "/late/body"][n % 2];
            let (got, _) = ask(&gateway, &format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
            if n % 2 == 0 {
                assert!(got.starts_with("HTTP/1.1 504 Gateway Timeout\r\n"), "{got}");
            } else {
                assert!(got.starts_with("HTTP/1.1 200 OK\r\n") && got.ends_with("\r\n\r\nab"), "{got}");
            }
        });
    });
    let wanted = [("upstream-error 504".to_owned(), COUNT / 2), ("upstream-error 200".to_owned(), COUNT / 2)];
    assert_eq!(counts, BTreeMap::from(wanted));
}
