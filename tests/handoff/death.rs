//! The daemon is not there, or dies: before it has read, after it, and in the middle of its answer.

use serde_json::{Value, json};

use crate::support::handing_over::{at_rest, check_alive, check_sealed, fresh, logged};
use crate::support::{Client, Daemon, Gateway, eventually, holds, inode_of, is_asleep};
use crate::{
    CASES, chat, check_logged, check_refused_alive, configuration, data_field, from, gateway, is_in_the_backlog,
    request,
};

/// A daemon that died with the message unread: the client is answered by us. A stream of several bytes may have been read
/// in part, so its client is sealed and not tried elsewhere.
#[track_caller]
fn check_never_read(gateway: &Gateway, client: &mut Client, path: &str, is_certain: bool) {
    if is_certain {
        check_refused_alive(client);
        check_logged(gateway, path, "refused", &json!(503), 3);
    } else {
        check_sealed(client);
        check_logged(gateway, path, "refused", &json!(503), 1);
    }
}

#[test]
fn nobody_listens_the_client_is_answered_503_and_goes_on() {
    for (kind, data, _) in CASES {
        let gateway = gateway(kind);
        let before = at_rest(&gateway);
        let mut client = gateway.client();
        for is_stale in [false, true] {
            if is_stale {
                Daemon::start(&gateway.path("d.sock"), kind, "absent", &[]).kill();
                assert!(gateway.path("d.sock").exists());
            }
            let path = fresh();
            client.send(request(&path, &data_field(data)));
            check_refused_alive(&mut client);
            let line = check_logged(&gateway, &path, "refused", &json!(503), 3);
            assert!(line["error"].as_str().is_some_and(|e| e.starts_with("connect: ")), "{line}");
        }
        drop(client);
        gateway.ledger_is_back_to(before);
    }
}

/// Kills a daemon in a mode in which it reads nothing, once the message is with it.
#[track_caller]
fn check_killed_unread(mode: &str, wait_for_the_message: impl Fn(&Gateway, &Daemon, &Client)) {
    for (kind, data, is_certain) in CASES {
        let gateway = gateway(kind);
        let before = at_rest(&gateway);
        let mut daemon = Daemon::start(&gateway.path("d.sock"), kind, mode, &[]);
        let path = fresh();
        let mut client = gateway.client();
        client.send(request(&path, &data_field(data)));
        wait_for_the_message(&gateway, &daemon, &client);
        daemon.kill();
        check_never_read(&gateway, &mut client, &path, is_certain);
        drop(client);
        gateway.ledger_is_back_to(before);
    }
}

#[test]
fn killed_with_the_client_in_its_backlog() {
    check_killed_unread("absent", |gateway, _, client| {
        is_in_the_backlog(gateway);
        assert!(holds(gateway.child.id(), inode_of(client)), "it must be able to answer");
    });
}

#[test]
fn killed_after_it_accepted_and_before_it_read() {
    check_killed_unread("deaf", |gateway, daemon, _| {
        daemon.wait("accepted", 1);
        eventually("the message is sent", || is_asleep(gateway.child.id()).then_some(()));
    });
}

#[test]
fn dying_at_once_after_accepting_or_closing_unread_leaves_the_client_answered() {
    for (kind, data, is_certain) in CASES {
        for mode in ["die-accepted", "drop"] {
            let gateway = gateway(kind);
            let before = at_rest(&gateway);
            let _daemon = Daemon::start(&gateway.path("d.sock"), kind, mode, &[]);
            let path = fresh();
            let mut client = gateway.client();
            client.send(request(&path, &data_field(data)));
            let answer = client.answer();
            assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
            // It may have closed before the message was sent, which is certain in each dialect.
            if is_certain {
                check_alive(&mut client);
            }
            assert_eq!(logged(&gateway, &path)["outcome"], "refused");
            drop(client);
            gateway.ledger_is_back_to(before);
        }
    }
}

/// Once read, the client is the daemon's whatever happens to it: it sees its connection end and hears nothing from us.
#[test]
fn killed_after_it_read_and_before_it_wrote() {
    for (kind, data, _) in CASES {
        for keep in ["keep=1", "name=x"] {
            let gateway = gateway(kind);
            let before = at_rest(&gateway);
            let mut daemon = Daemon::start(&gateway.path("d.sock"), kind, "hold", &[keep]);
            let path = fresh();
            let mut client = gateway.client();
            client.send(request(&path, &data_field(data)));
            daemon.wait("got", 1);
            daemon.kill();
            assert_eq!(client.rest(), "");
            check_logged(&gateway, &path, "handed-off", &Value::Null, 1);
            gateway.ledger_is_back_to(before);
        }
    }
}

#[test]
fn dying_at_once_after_reading_hands_over_and_nothing_is_said() {
    for (kind, data, _) in CASES {
        let gateway = gateway(kind);
        let before = at_rest(&gateway);
        let _daemon = Daemon::start(&gateway.path("d.sock"), kind, "die-read", &[]);
        let path = fresh();
        let mut client = gateway.client();
        client.send(request(&path, &data_field(data)));
        assert_eq!(client.rest(), "");
        check_logged(&gateway, &path, "handed-off", &Value::Null, 1);
        gateway.ledger_is_back_to(before);
    }
}

#[test]
fn killed_in_the_middle_of_a_stream() {
    for (kind, data, _) in CASES {
        let gateway = gateway(kind);
        let before = at_rest(&gateway);
        let mut daemon = Daemon::start(&gateway.path("d.sock"), kind, "stream", &[]);
        let path = fresh();
        let mut client = gateway.client();
        client.send(request(&path, &data_field(data)));
        let begin = client.until("tick 3\n");
        assert_eq!(begin, from("daemon") + "tick 0\ntick 1\ntick 2\ntick 3\n");
        daemon.kill();
        assert!(client.rest().lines().all(|line| line.starts_with("tick ")));
        check_logged(&gateway, &path, "handed-off", &Value::Null, 1);
        gateway.ledger_is_back_to(before);
    }
}

/// It took the client with the first byte and answers; the gateway sees a message that nobody has read to its end.
#[test]
fn a_stream_daemon_that_reads_one_byte_and_answers_is_the_only_one_that_answers() {
    let gateway = Gateway::start(&configuration("", "ack_timeout = \"200ms\"", &chat("stream")));
    let before = at_rest(&gateway);
    let _daemon = Daemon::start(&gateway.path("d.sock"), "stream", "stream", &["short=1", "keep=1"]);
    let path = fresh();
    let mut client = gateway.client();
    client.send(request(&path, "x-data: some data\r\n"));
    client.until("tick 1\n");
    check_logged(&gateway, &path, "unanswered", &Value::Null, 1);
    gateway.ledger_is_back_to(before);
    let more = client.until("tick 20\n");
    assert!(more.lines().all(|line| line.starts_with("tick ")), "{more}");
}
