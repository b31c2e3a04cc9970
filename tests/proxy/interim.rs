//! Interim answers that cost more than they are worth.

use super::support::upstream::Upstream;
use super::{OK, OK_RELAYED, before, check_logged};

#[test]
fn interim_answers_go_on_as_they_come() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "");
    let mut client = gateway.client();
    client.get("/i");
    let mut peer = upstream.accept();
    peer.head();
    peer.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x-a\r\nX-A: 1\r\nX-Handoff-Data: d\r\n\r\n");
    assert_eq!(client.head(), "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nVia: 1.1 baton\r\n\r\n");
    peer.send("HTTP/1.1 102 Processing\r\n\r\n");
    assert_eq!(client.head(), "HTTP/1.1 102 Processing\r\nVia: 1.1 baton\r\n\r\n");
    peer.send(OK);
    assert_eq!(client.message(), OK_RELAYED);
    check_logged(&gateway, "/i", "proxied", 200);
}

#[test]
fn a_hundred_are_passed_on_and_no_more() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "");
    for (count, status) in [(100, 200), (101, 502)] {
        let mut client = gateway.client();
        client.get(&format!("/{count}"));
        let mut peer = upstream.accept();
        peer.head();
        for _ in 0..count {
            peer.send("HTTP/1.1 102 Processing\r\n\r\n");
        }
        peer.send(OK.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"));
        let mut seen = 0;
        let last = loop {
            let head = client.head();
            if !head.starts_with("HTTP/1.1 102 ") {
                break head;
            }
            seen += 1;
        };
        assert!(last.starts_with(&format!("HTTP/1.1 {status} ")), "{last}");
        assert!(if status == 200 { seen == 100 } else { seen <= 100 }, "{seen}");
        let outcome = if status == 200 { "proxied" } else { "upstream-error" };
        check_logged(&gateway, &format!("/{count}"), outcome, status);
    }
}

/// A client that does not read them must not make the gateway keep them all: together they are bounded as one head is.
#[test]
fn large_ones_are_bounded_together() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "head_bytes_max = \"64KiB\"");
    // Two of them, each a field of `link: `, its value and a line break.
    for (target, length, status) in [("/at", (32 << 10) - 8, 200), ("/past", (32 << 10) - 7, 502)] {
        let mut client = gateway.client();
        client.get(target);
        let mut peer = upstream.accept();
        peer.head();
        let large = format!("HTTP/1.1 103 Early Hints\r\nLink: {}\r\n\r\n", "a".repeat(length));
        peer.send(&large);
        peer.send(&large);
        if status == 200 {
            peer.send(OK.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"));
        }
        let mut head = client.head();
        while head.starts_with("HTTP/1.1 103 ") {
            head = client.head();
        }
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        let outcome = if status == 200 { "proxied" } else { "upstream-error" };
        let line = check_logged(&gateway, target, outcome, status);
        let names_it = line["error"].as_str().is_some_and(|error| error.contains("head_bytes_max"));
        assert_eq!(names_it, status == 502, "{line}");
    }
}
