//! What the daemon gets beside the client: the data, or the head, exactly; and what does not fit.

use serde_json::{Value, json};

use crate::support::handing_over::{at_rest, check_alive, fresh, logged};
use crate::support::{Daemon, Gateway, eventually};
use crate::{KINDS, chat, check_logged, configuration, data_field, from, gateway, request};

#[test]
fn each_dialect_carries_the_data_exactly_or_one_zero_byte() {
    for (dialect, kind) in [("seqpacket", "seqpacket"), ("stream", "stream"), ("auto", "seqpacket"), ("auto", "stream")]
    {
        let gateway = gateway(dialect);
        let before = at_rest(&gateway);
        let daemon = Daemon::start(&gateway.path("d.sock"), kind, "serve", &[]);
        for (count, data) in ["", "{\"user\":1}", "\u{fc}\u{20ac} \\ \" \t%00", "x"].into_iter().enumerate() {
            let path = fresh();
            let mut client = gateway.client();
            client.send(request(&path, &data_field(data)));
            let got = daemon.wait("got", count + 1);
            let wire = if data.is_empty() { "\0" } else { data };
            assert_eq!((&got["data"], &got["descriptors"]), (&json!(wire), &json!(1)), "{dialect} to {kind}");
            assert_eq!((&got["port"], &got["blocking"]), (&json!(client.port()), &json!(false)), "{dialect} to {kind}");
            assert_eq!(client.rest(), from("daemon"), "{dialect} to {kind}");
            check_logged(&gateway, &path, "handed-off", &Value::Null, 1);
        }
        gateway.ledger_is_back_to(before);
    }
}

#[test]
fn long_data_arrives_whole() {
    for kind in KINDS {
        let gateway = gateway(kind);
        let daemon = Daemon::start(&gateway.path("d.sock"), kind, "serve", &[]);
        for (count, bytes) in [128 << 10, 1 << 20].into_iter().enumerate() {
            let answer = gateway.ask(&request(&fresh(), &format!("x-bytes: {bytes}\r\n")));
            // A packet past the kernel's limits is another test's matter.
            if bytes == 128 << 10 || answer == from("daemon") {
                let got = daemon.wait("got", count + 1);
                assert_eq!((&got["bytes"], &got["descriptors"]), (&json!(bytes), &json!(1)), "{kind}");
                assert!(got["data"].as_str().is_some_and(|data| data.bytes().all(|b| b == b'd')));
            } else {
                assert_eq!(kind, "seqpacket");
            }
        }
    }
}

/// A reader that calls recvmsg once is what most daemons of the stream dialect have.
#[test]
fn a_stream_daemon_that_reads_once_sees_the_whole_message() {
    let gateway = gateway("stream");
    let daemon = Daemon::start(&gateway.path("d.sock"), "stream", "serve", &["keep=1"]);
    assert_eq!(gateway.ask(&request(&fresh(), "x-bytes: 16384\r\n")), from("daemon"));
    assert_eq!(daemon.wait("got", 1)["bytes"], 16384);
}

#[test]
fn data_at_the_limit_goes_and_one_byte_past_it_is_answered_500() {
    for kind in KINDS {
        let limits = "[limits]\nhandoff_data_bytes_max = \"1000B\"\n";
        let gateway = Gateway::start(&configuration("", "", &format!("{limits}{}", chat(kind))));
        let before = at_rest(&gateway);
        let daemon = Daemon::start(&gateway.path("d.sock"), kind, "serve", &[]);
        assert_eq!(gateway.ask(&request(&fresh(), "x-bytes: 1000\r\n")), from("daemon"));

        let path = fresh();
        let mut client = gateway.client();
        client.send(request(&path, "x-bytes: 1001\r\n"));
        assert_eq!(client.answer().status, 500);
        check_alive(&mut client);
        check_logged(&gateway, &path, "refused", &json!(500), 0);
        gateway.stderr.wait(0, &["1001", "1000", "handoff_data_bytes_max"]);
        daemon.wait("got", 1);
        assert_eq!(daemon.events("accepted").len(), 1);
        drop(client);
        gateway.ledger_is_back_to(before);
    }
}

/// What a packet can hold at most depends on net.core.wmem_max and on privileges: it is sent whole, or not at all and said.
#[test]
fn data_past_what_the_socket_holds_is_sent_whole_or_answered_500() {
    let limits = "[limits]\nhandoff_data_bytes_max = \"8MiB\"\n";
    let gateway =
        Gateway::start(&configuration("", "ack_timeout = \"60s\"", &format!("{limits}{}", chat("seqpacket"))));
    let before = at_rest(&gateway);
    let daemon = Daemon::start(&gateway.path("d.sock"), "seqpacket", "serve", &[]);
    let mut sent = 0;
    for bytes in [200_000, 220_000, 500_000, 2_000_000, 5_000_000] {
        let path = fresh();
        let mut client = gateway.client();
        client.send(request(&path, &format!("x-bytes: {bytes}\r\n")));
        let answer = client.until("\r\n\r\n");
        if answer.starts_with("HTTP/1.1 200") && bytes < 5_000_000 {
            sent += 1;
            assert_eq!(daemon.wait("got", sent)["bytes"], bytes);
            continue;
        }
        assert!(answer.starts_with("HTTP/1.1 500") && bytes > 200_000, "{bytes}: {answer}");
        check_logged(&gateway, &path, "refused", &json!(500), 1);
        gateway.stderr.wait(0, &[&bytes.to_string(), "net.core.wmem_max"]);
    }
    eventually("whoever connected has sent all or nothing", || {
        let ended = daemon.events("got").len() + daemon.events("no-descriptor").len();
        (daemon.events("accepted").len() == ended).then_some(())
    });
    gateway.ledger_is_back_to(before);
}

#[test]
fn the_head_goes_along_exactly_as_it_came() {
    for kind in KINDS {
        let gateway = gateway(kind);
        let daemon = Daemon::start(&gateway.path("d.sock"), kind, "serve", &["read=4"]);
        let head = "PATCH /hand/a%2Fb?q=%00&r HTTP/1.1\r\nhOST:  x\t\r\nX-Head:1\r\nX-Twice: a\r\nx-twice:b\r\nContent-Length: 4\r\n\r\n";
        assert_eq!(gateway.ask(&format!("{head}body")), from("daemon"));
        let got = daemon.wait("got", 1);
        assert_eq!((&got["data"], &got["first"]), (&json!(head), &json!("body")));
    }
}

#[test]
fn a_head_and_data_do_not_fit_one_message() {
    let gateway = gateway("seqpacket");
    let daemon = Daemon::start(&gateway.path("d.sock"), "seqpacket", "serve", &[]);
    let path = fresh();
    let mut client = gateway.client();
    client.send(request(&path, "x-head: 1\r\nx-data: 1\r\n"));
    assert_eq!(client.answer().status, 503);
    check_alive(&mut client);
    assert_eq!(logged(&gateway, &path)["outcome"], "policy-error");
    gateway.stderr.wait(0, &["by-fields", "include-head with data"]);
    assert!(daemon.events("accepted").is_empty());
}

#[test]
fn auto_follows_a_daemon_that_changes_its_kind_of_socket() {
    let gateway = gateway("auto");
    for kind in ["seqpacket", "stream", "stream", "seqpacket"] {
        let daemon = Daemon::start(&gateway.path("d.sock"), kind, "serve", &[]);
        let path = fresh();
        assert_eq!(gateway.ask(&request(&path, "")), from("daemon"), "{kind}");
        assert_eq!(daemon.wait("got", 1)["data"], "\0");
        check_logged(&gateway, &path, "handed-off", &Value::Null, 1);
    }
}
