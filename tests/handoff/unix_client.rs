//! Clients that connected to a Unix socket.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

use crate::support::handing_over::{at_rest, fresh};
use crate::support::{Daemon, Gateway, eventually, is_asleep, patience};
use crate::{KINDS, chat, check_logged, configuration, data_field, from, request};

/// A client of a listener on a Unix socket.
fn unix_client(gateway: &Gateway) -> UnixStream {
    let client = UnixStream::connect(gateway.path("u.sock")).unwrap();
    client.set_read_timeout(Some(patience())).unwrap();
    client
}

fn with_unix_listener(kind: &str) -> Gateway {
    let listener = "[[listener]]\nname = \"unix\"\naddress = \"unix:DIR/u.sock\"\n";
    Gateway::start(&configuration("", "ack_timeout = \"60s\"", &format!("{listener}{}", chat(kind))))
}

#[test]
fn clients_of_a_unix_socket_are_handed_over_too() {
    for kind in KINDS {
        let gateway = with_unix_listener(kind);
        let before = at_rest(&gateway);
        let mut daemon = Daemon::start(&gateway.path("d.sock"), kind, "serve", &["read=5"]);
        for data in ["", "some data"] {
            let path = fresh();
            let mut client = unix_client(&gateway);
            let fields = format!("Content-Length: 5\r\n{}", data_field(data));
            write!(client, "{}hello", request(&path, &fields)).unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, from("daemon"));
            check_logged(&gateway, &path, "handed-off", &Value::Null, 1);
        }
        assert_eq!(daemon.wait("got", 1)["data"], "\0");
        let got = daemon.wait("got", 2);
        assert_eq!((&got["data"], &got["first"]), (&json!("some data"), &json!("hello")));
        daemon.kill();
        let mut client = unix_client(&gateway);
        client.write_all(request(&fresh(), "Connection: close\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        gateway.ledger_is_back_to(before);
    }
}

/// Of a Unix socket it cannot be asked whether somebody has written, and a stream of several bytes may have been read in part.
#[test]
fn a_unix_client_of_unknown_fate_is_closed_unwritten() {
    let gateway = with_unix_listener("stream");
    let before = at_rest(&gateway);
    let mut daemon = Daemon::start(&gateway.path("d.sock"), "stream", "deaf", &[]);
    let path = fresh();
    let mut client = unix_client(&gateway);
    client.write_all(request(&path, "x-data: some data\r\n").as_bytes()).unwrap();
    daemon.wait("accepted", 1);
    eventually("the message is sent", || is_asleep(gateway.child.id()).then_some(()));
    daemon.kill();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "");
    check_logged(&gateway, &path, "unanswered", &Value::Null, 1);
    gateway.ledger_is_back_to(before);
}
