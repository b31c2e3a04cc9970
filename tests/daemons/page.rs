//! The page against the code: its exchange in bytes, its table of types, its limits.

use baton::handoff::native::frame::{Frame, Handoff, Hello, Memfds, Outcome, Report};
use baton::handoff::native::header::{FLAG_OPTIONAL, MAGIC, PACKET_BYTES_MAX, VERSION};
use serde_json::{Value, json};

const PAGE: &str = include_str!("../../examples/PROTOCOL.md");

/// The packets of the worked exchange, as the page has them.
fn packets() -> Vec<(String, Vec<u8>)> {
    let (_, exchange) = PAGE.split_once("\n## A worked exchange\n").expect("it is there");
    let (exchange, _) = exchange.split_once("\n## ").expect("something behind it");
    let blocks: Vec<&str> = exchange.split("\n```\n").collect();
    let packets = blocks.chunks(2).filter(|pair| pair.len() == 2).map(|pair| {
        let title = pair[0].lines().rfind(|line| line.starts_with("**")).expect("who sends it");
        let mut bytes = Vec::new();
        for line in pair[1].lines() {
            let (offset, rest) = line.split_once("  ").expect("an offset");
            assert_eq!(usize::from_str_radix(offset, 16).expect("a number"), bytes.len(), "{line}");
            let (hexadecimal, text) = rest.split_at(47);
            let row: Vec<u8> =
                hexadecimal.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).expect("a byte")).collect();
            let shown: String =
                row.iter().map(|byte| if (32..127).contains(byte) { char::from(*byte) } else { '.' }).collect();
            assert_eq!(text.trim_start(), shown, "{line}");
            bytes.extend(row);
        }
        (title.to_owned(), bytes)
    });
    packets.collect()
}

fn hello(name: &str, pid: u64, in_flight_max: u64, data_bytes_max: Option<u64>) -> Frame {
    Frame::Hello(Hello { versions: vec![1], name: name.to_owned(), pid, in_flight_max, data_bytes_max, roles: vec![] })
}

fn handoff(id: u64, name: &str, method: &str, target: &str, framing: &str, data: &[u8]) -> Frame {
    let metadata: Value = json!({
        "id": name, "request": {"method": method, "target": target, "version": "1.1", "headers": [["host", "a"]]},
        "body": {"framing": framing, "remaining": 0},
    });
    let memfds = Memfds { body: framing == "memfd", ..Memfds::default() };
    let metadata = metadata.as_object().expect("made above").clone();
    Frame::Handoff { id, handoff: Handoff { metadata, data: data.to_vec(), preread: Vec::new(), memfds } }
}

fn report(bytes_out: u64, duration_us: u64, result: Outcome) -> Report {
    Report { status: Some(200), bytes_out, duration_us, result, message: None }
}

/// Every byte of the exchange is what the gateway reads and writes, and every count in the titles is true.
pub fn the_exchange_is_exact() {
    let answer = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 9\r\n\r\nreturned\n";
    let written = answer.len() as u64;
    assert_eq!(PAGE.matches(&format!("It writes {written} bytes, `HTTP/1.1")).count(), 1);
    assert_eq!(PAGE.matches("It writes 5120 bytes, finds the client gone").count(), 1);
    let expected = [
        vec![hello("baton", 4021, 0, None)],
        vec![hello("chat", 4077, 100, Some(1 << 20))],
        vec![handoff(1, "01JD", "GET", "/return", "none", b"user=7")],
        vec![Frame::Taken { id: 1 }],
        vec![Frame::Return { id: 1, report: report(written, 412, Outcome::Ok), unread: Vec::new() }],
        vec![handoff(2, "01JE", "POST", "/", "memfd", b""), Frame::Ping(b"ok".to_vec())],
        vec![Frame::Pong(b"ok".to_vec()), Frame::Taken { id: 2 }],
        vec![Frame::Done { id: 2, report: report(5120, 90_210, Outcome::ClientGone) }],
        vec![Frame::Draining],
    ];
    let packets = packets();
    assert_eq!(packets.len(), expected.len());
    for ((title, packet), expected) in packets.iter().zip(&expected) {
        let mut frames = Vec::new();
        let mut rest = &packet[..];
        while !rest.is_empty() {
            let frame;
            (frame, rest) = Frame::split(rest).unwrap_or_else(|error| panic!("{title}: {error}"));
            frames.push(frame);
        }
        assert_eq!(&frames, expected, "{title}");
        // An object has no order; all else is as our end writes it.
        let encoded: usize = frames.iter().map(|frame| frame.encode().len()).sum();
        assert_eq!(encoded, packet.len(), "{title}");
        let descriptors: usize = frames.iter().map(Frame::descriptors).sum();
        let said = match () {
            () if title.contains("one descriptor") => 1,
            () if title.contains("two descriptors") => 2,
            () => 0,
        };
        assert_eq!(descriptors, said, "{title}");
    }
}

/// The numbers that the page and the code share.
pub fn the_limits_are_the_codes() {
    for text in [
        format!("at most **{PACKET_BYTES_MAX}** bytes"),
        format!("u8   magic {MAGIC:#04X}").replace("0X", "0x"),
        format!("u8   version {VERSION}\n"),
        format!("{FLAG_OPTIONAL:#04x} set: ignore the frame"),
    ] {
        assert!(PAGE.contains(&text), "the page does not say {text:?}");
    }
    let types =
        ["HELLO", "HANDOFF", "TAKEN", "REFUSED", "DONE", "RETURN", "LOAD", "DRAINING", "REVOKE", "PING", "PONG"];
    for (number, name) in (1..).zip(types) {
        assert!(PAGE.contains(&format!("\n| {number} | [{name}](#")), "the page has no row {number} {name}");
    }
}

/// Each example of JSON on the page is some.
pub fn the_json_is_json() {
    let blocks: Vec<_> = PAGE.split("```json\n").skip(1).filter_map(|rest| rest.split("\n```").next()).collect();
    assert!(blocks.len() >= 4);
    for block in blocks {
        serde_json::from_str::<Value>(block).unwrap_or_else(|error| panic!("{error}: {block}"));
    }
}

/// Links within the page lead somewhere.
pub fn the_links_lead_somewhere() {
    let anchors: Vec<String> = PAGE
        .lines()
        .filter(|line| line.starts_with("##"))
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title.chars().filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-' || *c == '_');
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect();
    let links: Vec<_> = PAGE.split("](#").skip(1).filter_map(|rest| rest.split(')').next()).collect();
    assert!(links.len() > 10);
    for link in links {
        assert!(anchors.iter().any(|anchor| anchor == link), "#{link} is none of {anchors:#?}");
    }
}
