//! Handing over at any position on a connection: what follows the head is left in the socket, however it arrived.

use std::io::Read as _;
use std::net::Shutdown;

use serde_json::{Value, json};

use crate::support::handing_over::{at_rest, fresh};
use crate::support::{Daemon, eventually, holds, inode_of, unread_at_the_gateway};
use crate::{KINDS, check_logged, from, gateway, request};

/// Bodies in each framing, each with a pipelined request behind it; the fields that announce it, and the bytes.
const BODIES: [(&str, &str); 5] = [
    ("", "GET /next HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("Content-Length: 11\r\n", "hello worldGET /next HTTP/1.1\r\nHost: x\r\n\r\n"),
    (
        "Transfer-Encoding: chunked\r\nTrailer: X-T\r\n",
        "5;e=\"1\"\r\nhello\r\n0\r\nX-T: 1\r\n\r\nGET /next HTTP/1.1\r\nHost: x\r\n\r\n",
    ),
    ("Expect: 100-continue\r\nContent-Length: 3\r\n", "abcGET /next HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("Content-Length: 1000000\r\n", "the beginning of much that never comes"),
];

#[test]
fn what_follows_the_head_stays_in_the_socket_at_any_position_on_the_connection() {
    for kind in KINDS {
        let gateway = gateway(kind);
        let before = at_rest(&gateway);
        let daemon = Daemon::start(&gateway.path("d.sock"), kind, "serve", &["all=1"]);
        let mut count = 0;
        for (fields, behind) in BODIES {
            for position in [0, 1, 9] {
                for is_pipelined in [false, true] {
                    let mut client = gateway.client();
                    let hello = request("/hello", "");
                    let path = fresh();
                    let last = format!("POST {path} HTTP/1.1\r\nHost: x\r\n{fields}\r\n{behind}");
                    if is_pipelined {
                        client.send(format!("{}{last}", hello.repeat(position)));
                    }
                    for _ in 0..position {
                        if !is_pipelined {
                            client.send(&hello);
                        }
                        assert_eq!(client.answer().body, "hello");
                    }
                    if !is_pipelined {
                        client.send(last);
                    }
                    count += 1;
                    daemon.wait("accepted", count);
                    client.stream.shutdown(Shutdown::Write).unwrap();
                    assert_eq!(client.rest(), from("daemon"), "{fields:?} at {position}");
                    let got = daemon.wait("got", count);
                    let is = (&got["data"], &got["first"], &got["port"]);
                    assert_eq!(is, (&json!("\0"), &json!(behind), &json!(client.port())), "{fields:?} at {position}");
                    check_logged(&gateway, &path, "handed-off", &Value::Null, 1);
                }
            }
        }
        gateway.ledger_is_back_to(before);
    }
}

/// Each split is one that the gateway has seen: the rest is sent when it has taken the first part of the head, or when the
/// daemon has the client.
#[test]
fn a_request_split_at_any_byte_reaches_the_daemon_as_it_was_sent() {
    let gateway = gateway("auto");
    let before = at_rest(&gateway);
    let daemon = Daemon::start(&gateway.path("d.sock"), "seqpacket", "serve", &["all=1"]);
    let mut count = 0;
    for (at_body, (fields, behind)) in BODIES.into_iter().enumerate() {
        let head = format!("POST /hand HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        let whole = format!("{head}{behind}");
        // The head's parts are the same in all but one.
        let begin = if at_body == 2 { 1 } else { head.len() - 3 };
        for split in begin..whole.len() {
            let mut client = gateway.client();
            client.send(&whole[..split]);
            count += 1;
            if split < head.len() {
                eventually("the head's part is taken", || (unread_at_the_gateway(&client)? == 0).then_some(()));
            } else {
                daemon.wait("accepted", count);
            }
            client.send(&whole[split..]);
            daemon.wait("accepted", count);
            client.stream.shutdown(Shutdown::Write).unwrap();
            assert_eq!(client.rest(), from("daemon"), "{fields:?} split at {split}");
            assert_eq!(daemon.wait("got", count)["first"], behind, "{fields:?} split at {split}");
        }
    }
    gateway.ledger_is_back_to(before);
}

#[test]
fn a_head_that_comes_byte_by_byte_is_followed_by_the_body_untouched() {
    let gateway = gateway("seqpacket");
    let daemon = Daemon::start(&gateway.path("d.sock"), "seqpacket", "serve", &["read=5"]);
    let mut client = gateway.client();
    let head = "POST /hand HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nX-Head: 1\r\n\r\n";
    let (last, bytes) = head.as_bytes().split_last().unwrap();
    for byte in bytes {
        client.send([*byte]);
        eventually("the byte is taken", || (unread_at_the_gateway(&client)? == 0).then_some(()));
    }
    client.send([*last]);
    client.send("hello");
    assert_eq!(client.rest(), from("daemon"));
    let got = daemon.wait("got", 1);
    assert_eq!((&got["data"], &got["first"]), (&json!(head), &json!("hello")));
}

#[test]
fn a_client_that_expects_100_hears_of_it_from_the_daemon_only() {
    for kind in KINDS {
        let gateway = gateway(kind);
        let daemon = Daemon::start(&gateway.path("d.sock"), kind, "serve", &["read=3"]);
        let mut client = gateway.client();
        client.send("POST /hand HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n");
        let inode = inode_of(&client);
        // The daemon has it and waits for the body; nobody has said a word.
        eventually("the gateway lets go", || (!holds(gateway.child.id(), inode)).then_some(()));
        client.stream.set_nonblocking(true).unwrap();
        let silent = client.stream.read(&mut [0]).unwrap_err();
        assert_eq!(silent.kind(), std::io::ErrorKind::WouldBlock);
        client.stream.set_nonblocking(false).unwrap();
        client.send("abc");
        assert_eq!(client.rest(), from("daemon"));
        assert_eq!(daemon.wait("got", 1)["first"], "abc");
    }
}

#[test]
fn http_1_0_clients_are_handed_over_too() {
    for kind in KINDS {
        let gateway = gateway(kind);
        let daemon = Daemon::start(&gateway.path("d.sock"), kind, "serve", &["read=2"]);
        assert_eq!(gateway.ask("POST /hand HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi"), from("daemon"));
        assert_eq!(daemon.wait("got", 1)["first"], "hi");
    }
}
