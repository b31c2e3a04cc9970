//! Every kind of answer that an upstream can send, broken ones most of all (`tests/cases/answers.txt`): every byte that the
//! client gets, what the log says, and that the next request is answered right.

use std::sync::Arc;
use std::time::Duration;

use super::support::upstream::{Serving, undated};
use super::support::{Client, Gateway, eventually};
use super::{before_serving, logged};

const ANSWERS: &str = include_str!("../cases/answers.txt");

/// What answers every other request.
const RIGHT: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nright";
const RIGHT_RELAYED: &str = "HTTP/1.1 200 OK\r\nVia: 1.1 baton\r\nContent-Length: 5\r\n\r\nright";

struct Case {
    name: String,
    request: &'static str,
    expected: Expected,
    bytes: Vec<u8>,
    end: &'static str,
}

enum Expected {
    BadGateway,
    Cut(Vec<u8>),
    Either(Vec<u8>),
    Ok(Vec<u8>),
    Reset(Vec<u8>),
}

fn cases() -> Vec<Case> {
    let mut section = "";
    let mut cases = Vec::new();
    for line in ANSWERS.lines() {
        if let Some(title) = line.strip_prefix("# --- ") {
            section = title;
        } else if !line.is_empty() && !line.starts_with('#') {
            let [name, request, expected, bytes] =
                line.splitn(4, " | ").collect::<Vec<_>>().try_into().expect("four columns");
            let (bytes, end) = bytes.rsplit_once('<').expect("an end");
            let (word, rest) = expected.split_once(' ').unwrap_or((expected, ""));
            let expected = match word {
                "502" => Expected::BadGateway,
                "cut" => Expected::Cut(unescape(rest)),
                "either" => Expected::Either(unescape(rest)),
                "ok" => Expected::Ok(unescape(rest)),
                "reset" => Expected::Reset(unescape(rest)),
                other => panic!("{other}"),
            };
            let name = format!("{section}: {name}");
            cases.push(Case { name, request, expected, bytes: unescape(bytes), end: end.trim_end_matches('>') });
        }
    }
    cases
}

fn unescape(text: &str) -> Vec<u8> {
    if let Some((before, rest)) = text.split_once('{') {
        let (inside, behind) = rest.split_once('}').expect("closed");
        let (count, repeated) = inside.split_once('*').expect("a number and a text");
        let repeated = unescape(repeated).repeat(count.parse().expect("a number"));
        return [unescape(before), repeated, unescape(behind)].concat();
    }
    let (mut out, mut bytes) = (Vec::new(), text.bytes());
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'\\' => match bytes.next().expect("an escape") {
                b'r' => b'\r',
                b'n' => b'\n',
                b'0' => 0,
                b'x' => {
                    let digits = [bytes.next().expect("two"), bytes.next().expect("two")];
                    u8::from_str_radix(std::str::from_utf8(&digits).expect("ASCII"), 16).expect("hexadecimal")
                }
                other => other,
            },
            byte => byte,
        });
    }
    out
}

/// `/whole/N` and `/bytes/N` are answered by the table, everything else right.
fn serving(cases: Arc<Vec<Case>>) -> Serving {
    Serving::start(move |head, peer| {
        let target = head.split(' ').nth(1).expect("a target");
        let Some((manner, number)) = target.trim_start_matches('/').split_once('/') else {
            peer.send(RIGHT);
            return true;
        };
        let case = &cases[number.parse::<usize>().expect("a number")];
        if manner == "whole" {
            drop(std::io::Write::write_all(&mut peer.stream, &case.bytes));
        } else {
            for byte in case.bytes.chunks(1) {
                if std::io::Write::write_all(&mut peer.stream, byte).is_err() {
                    return false;
                }
                // Each is seen alone, or nearly: whichever way it goes, the outcome is the same.
                std::thread::yield_now();
            }
        }
        if case.end == "reset" {
            // What was sent before it is delivered: the gateway has read it.
            eventually("all is read", || (unsent(peer) == 0).then_some(()));
            std::thread::park_timeout(Duration::from_millis(20));
            let none = nix::libc::linger { l_onoff: 1, l_linger: 0 };
            nix::sys::socket::setsockopt(&peer.stream, nix::sys::socket::sockopt::Linger, &none).expect("a socket");
        }
        case.end == "keep"
    })
}

/// Bytes that the other end's kernel has not confirmed.
fn unsent(peer: &Client) -> usize {
    let own = format!(":{:04X}", peer.port());
    let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux");
    let row = table.lines().find(|line| {
        line.split_whitespace().nth(1).is_some_and(|own_column| own_column.ends_with(&own))
            && line.contains(&format!(":{:04X}", peer.stream.peer_addr().map_or(0, |a| a.port())))
    });
    row.and_then(|row| usize::from_str_radix(row.split_whitespace().nth(4)?.split(':').next()?, 16).ok()).unwrap_or(0)
}

fn text(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|byte| std::ascii::escape_default(*byte)).map(char::from).collect()
}

/// The bytes up to so many, but for the line with the date; fewer where the connection ends.
fn read(client: &mut Client, count: usize) -> (Vec<u8>, std::io::Result<()>) {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let plain = strip(&bytes);
        if plain.len() >= count && !holds_half_a_date(&bytes) {
            return (plain, Ok(()));
        }
        match std::io::Read::read(&mut client.stream, &mut chunk) {
            Ok(0) => return (strip(&bytes), Ok(())),
            Ok(read) => bytes.extend_from_slice(&chunk[..read]),
            Err(error) => return (strip(&bytes), Err(error)),
        }
    }
}

/// Without the date, and with two chunks that came one by one in one.
fn strip(bytes: &[u8]) -> Vec<u8> {
    let lines = bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| !line.starts_with(b"Date: "));
    let mut plain: Vec<u8> = lines.flatten().copied().collect();
    let (apart, together) = (b"1\r\no\r\n1\r\nk\r\n", b"2\r\nok\r\n");
    if let Some(at) = plain.windows(apart.len()).position(|window| window == apart) {
        plain.splice(at..at + apart.len(), together.iter().copied());
    }
    plain
}

fn holds_half_a_date(bytes: &[u8]) -> bool {
    bytes
        .split_inclusive(|byte| *byte == b'\n')
        .next_back()
        .is_some_and(|line| line.starts_with(b"Date: ") && !line.ends_with(b"\n"))
}

fn check(gateway: &Gateway, case: &Case, target: &str) -> Result<(), String> {
    let name = &case.name;
    let (method, version) = match case.request {
        "1.0" => ("GET", "1.0"),
        method => (method, "1.1"),
    };
    let mut client = gateway.client();
    client.send(format!("{method} {target} HTTP/{version}\r\nHost: x\r\n\r\n"));
    let line = || logged(gateway, target);
    let lives;
    let wrong = |what: String| Err(format!("{name} ({target}): {what}"));
    let mut expected = &case.expected;
    let as_cut;
    if let Expected::Either(head) = expected {
        let mut first = [0; 12];
        drop(client.stream.peek(&mut first));
        as_cut = if first.ends_with(b"502") { Expected::BadGateway } else { Expected::Cut(head.clone()) };
        expected = &as_cut;
    }
    match expected {
        Expected::Either(_) => unreachable!("decided above"),
        Expected::BadGateway => {
            let head = client.next_head().unwrap_or_default();
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok()).unwrap_or(0);
            let body = if method == "HEAD" { Vec::new() } else { client.take(length) };
            let body = String::from_utf8_lossy(&body).into_owned();
            if !head.starts_with("HTTP/1.1 502 Bad Gateway\r\n")
                || method != "HEAD" && !body.contains("502 Bad Gateway")
            {
                return wrong(format!("no page: {head}{body}"));
            }
            lives = version == "1.1";
            let line = line();
            if line["outcome"] != "upstream-error" || line["status"] != 502 || !line["error"].is_string() {
                return wrong(format!("logged as {line}"));
            }
        }
        Expected::Ok(expected) => {
            let (got, end) = read(&mut client, expected.len());
            if got != *expected || end.is_err() {
                return wrong(format!("{end:?}\n  got      {}\n  expected {}", text(&got), text(expected)));
            }
            lives = !expected.windows(17).any(|window| window == b"Connection: close");
            let line = line();
            if line["outcome"] != "proxied" || !line["error"].is_null() {
                return wrong(format!("logged as {line}"));
            }
        }
        Expected::Cut(bytes) | Expected::Reset(bytes) => {
            let (got, end) = read(&mut client, usize::MAX);
            let is_reset = matches!(expected, Expected::Reset(_));
            // A reset may take with it what was not read yet.
            let is_it = if is_reset { bytes.starts_with(&got) } else { got == *bytes };
            if !is_it || is_reset && end.is_ok() {
                return wrong(format!("{end:?}\n  got      {}\n  expected {}", text(&got), text(bytes)));
            }
            lives = false;
            let line = line();
            let error = line["error"].as_str().unwrap_or_default();
            if line["outcome"] != "upstream-error" || line["status"] != 200 || !error.starts_with("cut: ") {
                return wrong(format!("logged as {line}"));
            }
        }
    }
    // On the same connection where it lives, and on another one: the next request gets its own answer.
    if lives {
        client.get("/next");
        let (got, _) = read(&mut client, RIGHT_RELAYED.len());
        if got != RIGHT_RELAYED.as_bytes() {
            return wrong(format!("the next one on the connection got {}", text(&got)));
        }
    }
    let next = undated(&gateway.ask("GET /next HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
    if next != RIGHT_RELAYED.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n") {
        return wrong(format!("the next one got {next}"));
    }
    Ok(())
}

fn check_all(manner: &str) {
    let cases = Arc::new(cases());
    let upstream = serving(Arc::clone(&cases));
    let settings = "head_bytes_max = \"4KiB\"\nheaders_max = 20\ninterim_max = 3\nhead_timeout = \"60s\"\n";
    let gateway = before_serving(&upstream, "", settings);
    let mut faults = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        // Byte by byte a long one shows no more than a short one; and what comes behind an answer when the next request has
        // been sent is that one's answer, to whoever reads it.
        let is_shown = case.bytes.len() < 10_000 && !case.name.starts_with("Bytes behind the answer");
        if manner == "whole" || is_shown {
            faults.extend(check(&gateway, case, &format!("/{manner}/{number}")).err());
        }
    }
    let count = faults.len();
    assert!(faults.is_empty(), "{count} of {}:\n{}", cases.len(), faults.join("\n"));
    println!("{} cases", cases.len());
}

#[test]
fn whatever_an_upstream_sends_the_client_gets_one_right_answer_or_sees_its_end() {
    check_all("whole");
}

#[test]
fn the_same_byte_by_byte() {
    check_all("bytes");
}
