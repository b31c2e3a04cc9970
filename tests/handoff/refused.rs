//! What is left on the connection when nobody took the client.

use serde_json::json;

use crate::support::Daemon;
use crate::support::handing_over::{at_rest, check_alive, fresh};
use crate::{KINDS, check_logged, check_refused_alive, from, gateway, request};

#[test]
fn a_refused_request_leaves_its_connection_in_step() {
    let gateway = gateway("seqpacket");
    let before = at_rest(&gateway);
    for (fields, body) in [
        ("", ""),
        ("Content-Length: 5\r\n", "hello"),
        ("Content-Length: 100000\r\n", &"GET /hand ".repeat(10_000)),
        ("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n"),
    ] {
        let path = fresh();
        let mut client = gateway.client();
        client.send(format!("POST {path} HTTP/1.1\r\nHost: x\r\n{fields}\r\n{body}{}", request("/hello", "")));
        let answer = client.answer();
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{fields:?}");
        assert_eq!(answer.header("connection"), None, "{fields:?}");
        assert_eq!(client.answer().body, "hello", "{fields:?}");
        check_alive(&mut client);
        check_logged(&gateway, &path, "refused", &json!(503), 3);
    }
    // Not asked for, or too much: answered, and closed so that the answer arrives.
    for (fields, body) in [
        ("Expect: 100-continue\r\nContent-Length: 5\r\n", ""),
        ("Content-Length: 100000000\r\n", "the beginning"),
        ("Transfer-Encoding: chunked\r\n", "5\r\nhel"),
    ] {
        let mut client = gateway.client();
        client.send(format!("POST {} HTTP/1.1\r\nHost: x\r\n{fields}\r\n{body}", fresh()));
        let answer = client.answer();
        assert_eq!((answer.status, answer.header("connection")), (503, Some("close")), "{fields:?}");
        assert_eq!(client.rest(), "", "{fields:?}");
    }
    gateway.ledger_is_back_to(before);
}

#[test]
fn a_client_that_was_refused_is_handed_over_when_it_asks_again() {
    for kind in KINDS {
        let gateway = gateway(kind);
        let mut client = gateway.client();
        for _ in 0..3 {
            client.send(request(&fresh(), "x-data: 1\r\n"));
            check_refused_alive(&mut client);
        }
        let daemon = Daemon::start(&gateway.path("d.sock"), kind, "serve", &["read=5"]);
        client.send(format!("{}hello", request(&fresh(), "x-data: 1\r\nContent-Length: 5\r\n")));
        assert_eq!(client.rest(), from("daemon"));
        let got = daemon.wait("got", 1);
        assert_eq!((&got["first"], &got["port"]), (&json!("hello"), &json!(client.port())));
    }
}
