//! A daemon that hangs: what its clients get, what others notice, and what it finds when it wakes up.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::handing_over::{at_rest, check_alive, check_sealed, fresh, logged};
use crate::support::{Daemon, Gateway, eventually, waiting_at};
use crate::{CASES, chat, check_logged, configuration, data_field, from, gateway, is_in_the_backlog, request};

#[test]
fn a_stopped_daemon_costs_its_clients_503_and_nobody_else_anything() {
    for (kind, data, _) in CASES {
        let gateway = Gateway::start(&configuration("workers = 1", "ack_timeout = \"1500ms\"", &chat(kind)));
        let before = at_rest(&gateway);
        let daemon = Daemon::start(&gateway.path("d.sock"), kind, "serve", &[]);
        daemon.stop();
        let mut hanging: Vec<_> = (0..10).map(|_| (fresh(), gateway.client())).collect();
        for (path, client) in &mut hanging {
            client.send(request(path, &data_field(data)));
        }
        eventually("they wait", || (waiting_at(&gateway.path("d.sock")) == 10).then_some(()));
        // Fifty others, before any of those is through.
        let mut other = gateway.client();
        for _ in 0..50 {
            check_alive(&mut other);
        }
        assert!(gateway.log().iter().all(|line| line["target"] == "/hello"), "the others had to wait");
        for (path, client) in &mut hanging {
            check_sealed(client);
            let line = check_logged(&gateway, path, "refused", &json!(503), 1);
            assert_eq!(line["error"], "unread at the deadline (ack_timeout)");
        }
        drop(other);
        gateway.ledger_is_back_to(before);
        // Woken up late: the daemon gets every message, and not a byte out.
        daemon.signal(Signal::SIGCONT);
        daemon.wait("client-gone", 10);
        assert!(daemon.events("done").is_empty());
        assert!(daemon.events("client-gone").iter().all(|event| event["errno"] == 32), "EPIPE");
        assert!(gateway.stderr.all().iter().all(|line| !line.contains("conflict")));
    }
}

#[test]
fn a_daemon_that_wakes_up_in_time_is_the_only_one_that_answers() {
    for (kind, data, _) in CASES {
        let gateway = gateway(kind);
        let before = at_rest(&gateway);
        let daemon = Daemon::start(&gateway.path("d.sock"), kind, "serve", &[]);
        daemon.stop();
        let path = fresh();
        let mut client = gateway.client();
        client.send(request(&path, &data_field(data)));
        is_in_the_backlog(&gateway);
        daemon.signal(Signal::SIGCONT);
        assert_eq!(client.rest(), from("daemon"));
        check_logged(&gateway, &path, "handed-off", &Value::Null, 1);
        gateway.ledger_is_back_to(before);
    }
}

#[test]
fn a_policy_can_bound_all_of_it() {
    let gateway = gateway("seqpacket");
    let before = at_rest(&gateway);
    let _daemon = Daemon::start(&gateway.path("d.sock"), "seqpacket", "deaf", &[]);
    let path = fresh();
    let mut client = gateway.client();
    client.send(request(&path, "x-timeout-ms: 50\r\n"));
    check_sealed(&mut client);
    let line = check_logged(&gateway, &path, "refused", &json!(503), 1);
    assert!(line["handoff_us"].as_u64().is_some_and(|us| us >= 50_000), "{line}");
    gateway.ledger_is_back_to(before);
}

#[test]
fn a_client_that_leaves_while_it_is_handed_over_leaves_nothing_behind() {
    for (kind, data, _) in CASES {
        let gateway = Gateway::start(&configuration("", "ack_timeout = \"300ms\"", &chat(kind)));
        let before = at_rest(&gateway);
        let daemon = Daemon::start(&gateway.path("d.sock"), kind, "serve", &[]);
        daemon.stop();
        let path = fresh();
        let mut client = gateway.client();
        client.send(request(&path, &data_field(data)));
        is_in_the_backlog(&gateway);
        client.reset();
        let line = logged(&gateway, &path);
        assert!(["unanswered", "client-gone"].iter().any(|outcome| line["outcome"] == *outcome), "{line}");
        gateway.ledger_is_back_to(before);
        daemon.signal(Signal::SIGCONT);
        daemon.wait("client-gone", 1);
    }
}
