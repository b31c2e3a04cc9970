//! The request's body has gone to the application, or is read by nobody: whoever gets the client finds the next byte that
//! is none of it.

use serde_json::json;

use super::application::Application;
use super::support::{eventually, folder};
use super::{behind, daemon, hands_over, start, words};

/// What a body looks like on the wire, and what is behind it.
const BEHIND: &str = "GET /next HTTP/1.1\r\nHost: x\r\n\r\n";

#[test]
fn what_the_client_sent_behind_the_request_is_the_daemons() {
    let folder = folder();
    let daemon = daemon(&folder, "d", "seqpacket", &["peek=1"]);
    let socket = folder.path().join("d.sock");
    let application = Application::start(move |_| hands_over(&socket, "d", ""));
    let gateway = start(folder, &behind(&application, ""));
    let body = "b".repeat(100_000);
    let chunks = format!("3\r\nabc\r\n186A0;x=y\r\n{body}\r\n0\r\nX-Sum: x\r\n\r\n");
    let requests = [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 0),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello".to_owned(), 5),
        (format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{body}"), 100_000),
        (format!("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"), 100_003),
    ];
    for (at, (raw, length)) in requests.iter().enumerate() {
        let mut client = gateway.client();
        client.send(format!("{raw}{BEHIND}"));
        let event = daemon.wait("got", at + 1);
        assert_eq!((&event["first"], &event["data"]), (&json!(BEHIND), &json!("d")), "{at}");
        assert!(client.rest().ends_with("from daemon\n"));
        let line = gateway.log_line(at + 1);
        // The head's bytes, and those of the body without its framing.
        let bytes = raw.find("\r\n\r\n").expect("a head") + 4 + length;
        assert_eq!((&line["outcome"], &line["bytes_in"]), (&json!("handed-off"), &json!(bytes)), "{line}");
    }
    let sent: Vec<_> = application.asked().iter().map(|asked| asked.body.len()).collect();
    assert_eq!(sent[..3], [0, 5, 100_000]);
}

/// The application has answered without reading: what is left of the body is read here.
#[test]
fn what_the_application_left_unread_is_drained() {
    let folder = folder();
    let daemon = daemon(&folder, "d", "seqpacket", &["peek=1"]);
    let socket = folder.path().join("d.sock");
    let application = Application::start_without_reading(move |_| hands_over(&socket, "d", ""));
    let gateway = start(folder, &behind(&application, ""));
    // More than all buffers on the way hold.
    let length = 12 << 20;
    let mut client = gateway.client();
    let head = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
    client.send(&head);
    client.send("b".repeat(length));
    client.send(BEHIND);
    assert_eq!(daemon.wait("got", 1)["first"], BEHIND);
    assert!(client.rest().ends_with("from daemon\n"));
    assert_eq!(gateway.log_line(1)["bytes_in"], length + head.len());
}

#[test]
fn what_cannot_be_drained_keeps_the_client_here() {
    let folder = folder();
    let daemon = daemon(&folder, "d", "seqpacket", &[]);
    let socket = folder.path().join("d.sock");
    let application = Application::start_without_reading(move |_| hands_over(&socket, "d", ""));
    let limits = "[limits]\nbody_bytes_max = \"1KiB\"\nbody_timeout = \"300ms\"\n";
    let gateway = start(folder, &format!("{limits}{}", behind(&application, "")));
    let cases: [(&str, String, u16); 5] = [
        // At the limit, and one past it, however that is told.
        ("Content-Length: 1025\r\n", "b".repeat(1025), 413),
        ("Transfer-Encoding: chunked\r\n", format!("401\r\n{}\r\n0\r\n\r\n", "b".repeat(1025)), 413),
        ("Content-Length: 1024\r\n", "b".repeat(1023), 408),
        ("Transfer-Encoding: chunked\r\n", "3\r\nabc\r\nwhat\r\n".to_owned(), 400),
        // Nobody is told to send it, and so it stays between us.
        ("Content-Length: 3\r\nExpect: 100-continue\r\n", String::new(), 413),
    ];
    for (at, (fields, body, status)) in cases.iter().enumerate() {
        let mut client = gateway.client();
        client.send(format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n{body}"));
        let answer = client.answer();
        assert_eq!((answer.status, answer.header("connection")), (*status, Some("close")), "{fields}: {answer:?}");
        let line = gateway.log_line(at + 1);
        assert_eq!(words(&line, ["outcome"]), ["client-error"], "{fields}: {line}");
        assert!(line["error"].is_string(), "{line}");
    }
    assert!(daemon.events("accepted").is_empty());
    let mut client = gateway.client();
    client.send(format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1024\r\n\r\n{}", "b".repeat(1024)));
    assert!(client.rest().ends_with("from daemon\n"));
}

/// A client that waits to be asked for its body is asked when the application reads it, and handed over behind it.
#[test]
fn an_expected_body_is_asked_for_and_read() {
    let folder = folder();
    let daemon = daemon(&folder, "d", "seqpacket", &["peek=1"]);
    let socket = folder.path().join("d.sock");
    let application = Application::start(move |_| hands_over(&socket, "d", ""));
    let gateway = start(folder, &behind(&application, ""));
    let mut client = gateway.client();
    client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    assert!(client.until("\r\n\r\n").starts_with("HTTP/1.1 100 "));
    client.send(format!("hello{BEHIND}"));
    assert_eq!(daemon.wait("got", 1)["first"], BEHIND);
    assert_eq!(application.asked()[0].body, b"hello");
}

/// A client that has left is nobody's.
#[test]
fn a_client_that_leaves_in_its_body_is_not_handed_over() {
    let folder = folder();
    let daemon = daemon(&folder, "d", "seqpacket", &[]);
    let socket = folder.path().join("d.sock");
    let application = Application::start_without_reading(move |_| hands_over(&socket, "d", ""));
    let gateway = start(folder, &behind(&application, ""));
    let before = gateway.sockets();
    let mut client = gateway.client();
    client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\npart");
    eventually("the application was asked", || (!application.asked().is_empty()).then_some(()));
    drop(client);
    assert_eq!(words(&gateway.log_line(1), ["outcome"]), ["client-gone"]);
    eventually("the sockets are back", || (gateway.sockets() == before).then_some(()));
    assert!(daemon.events("accepted").is_empty());
}
