//! Which of several daemons is asked, in which order, and how often.

use serde_json::json;

use crate::support::handing_over::{at_rest, fresh, logged};
use crate::support::{Daemon, Gateway, eventually, waiting_at};
use crate::{KINDS, check_logged, check_refused_alive, configuration, from, is_in_the_backlog, request};

/// Three daemons that answer by their names, on `0.sock` to `2.sock`.
fn three(gateway: &Gateway, modes: [(&str, &str); 3]) -> Vec<Daemon> {
    let start = |(at, (kind, mode)): (usize, (&str, &str))| {
        Daemon::start(&gateway.path(&format!("{at}.sock")), kind, mode, &[&format!("name={at}")])
    };
    modes.into_iter().enumerate().map(start).collect()
}

fn of_three(more: &str) -> Gateway {
    let target = format!("[target.chat]\nsockets = [\"DIR/0.sock\", \"DIR/1.sock\", \"DIR/2.sock\"]\n{more}\n");
    Gateway::start(&configuration("workers = 1", "ack_timeout = \"60s\"", &target))
}

#[test]
fn the_next_socket_is_tried_until_one_takes_the_client() {
    let gateway = of_three("balance = \"round-robin\"");
    let before = at_rest(&gateway);
    // `drop` closes unread; the other is not there any more.
    let mut daemons = three(&gateway, [("seqpacket", "drop"), ("stream", "serve"), ("seqpacket", "serve")]);
    daemons[1].kill();
    let mut attempts = Vec::new();
    for _ in 0..3 {
        let path = fresh();
        assert_eq!(gateway.ask(&request(&path, "x-data: 1\r\n")), from("2"));
        let line = logged(&gateway, &path);
        assert_eq!(line["outcome"], "handed-off");
        attempts.push(line["attempts"].as_u64().unwrap());
    }
    // In turn each is the first, and the others follow in their order.
    assert_eq!(attempts, [3, 2, 1]);
    daemons[2].wait("got", 3);
    gateway.ledger_is_back_to(before);
}

#[test]
fn daemons_take_turns() {
    for balance in ["round-robin", "least-in-flight"] {
        let gateway = of_three(&format!("balance = \"{balance}\""));
        let _daemons = three(&gateway, [("seqpacket", "serve"), ("stream", "serve"), ("seqpacket", "serve")]);
        let answers: Vec<_> = (0..6).map(|_| gateway.ask(&request(&fresh(), ""))).collect();
        assert_eq!(answers, ["0", "1", "2", "0", "1", "2"].map(from));
    }
}

#[test]
fn the_daemon_with_the_fewest_unread_is_asked_first() {
    let gateway = of_three("balance = \"least-in-flight\"");
    let _daemons = three(&gateway, [("seqpacket", "absent"), ("seqpacket", "serve"), ("seqpacket", "serve")]);
    // One in turn goes to the daemon that never reads, and stays there.
    let mut waiting = gateway.client();
    waiting.send(request(&fresh(), ""));
    eventually("it waits", || (waiting_at(&gateway.path("0.sock")) == 1).then_some(()));
    for _ in 0..6 {
        let answer = gateway.ask(&request(&fresh(), ""));
        assert!(answer == from("1") || answer == from("2"), "{answer}");
    }
}

#[test]
fn alternates_are_tried_in_their_order_when_a_target_took_nobody() {
    let targets = "[target.a]\nsockets = [\"DIR/a.sock\"]\n[target.b]\nsockets = [\"DIR/b.sock\"]\ndialect = \"stream\"\n\
                   [target.c]\nsockets = [\"DIR/c.sock\"]\n";
    let gateway = Gateway::start(&configuration("", "retries = 1\nack_timeout = \"60s\"", targets));
    let before = at_rest(&gateway);
    let _a = Daemon::start(&gateway.path("a.sock"), "seqpacket", "drop", &[]);
    let c = Daemon::start(&gateway.path("c.sock"), "seqpacket", "serve", &["name=c"]);
    let path = fresh();
    let fields = "x-target: a\r\nx-alternate: b\r\nx-alternate: c\r\nx-data: 1\r\nContent-Length: 0\r\n";
    assert_eq!(gateway.ask(&request(&path, fields)), from("c"));
    let line = logged(&gateway, &path);
    assert_eq!((&line["outcome"], &line["to"], &line["attempts"]), (&json!("handed-off"), &json!("c"), &json!(5)));
    assert_eq!(c.wait("got", 1)["data"], "1");

    // One that is unknown is not even looked at when the first would do: nobody is asked.
    let path = fresh();
    assert_eq!(
        gateway.ask(&request(&path, "x-target: c\r\nx-alternate: d\r\nConnection: close\r\n"))[..12],
        *"HTTP/1.1 403"
    );
    assert_eq!(c.events("accepted").len(), 1);

    // None of them: the last one's name stands in the log.
    let path = fresh();
    let mut client = gateway.client();
    client.send(request(&path, "x-target: b\r\nx-alternate: a\r\n"));
    check_refused_alive(&mut client);
    let line = logged(&gateway, &path);
    assert_eq!((&line["outcome"], &line["to"], &line["attempts"]), (&json!("refused"), &json!("a"), &json!(4)));
    drop(client);
    gateway.ledger_is_back_to(before);
}

#[test]
fn retries_are_as_many_as_configured_with_pauses_that_double() {
    for (retries, pauses_ms) in [(0, 0), (1, 10), (4, 150)] {
        let target = "[target.chat]\nsockets = [\"DIR/d.sock\", \"DIR/e.sock\"]\n";
        let gateway = Gateway::start(&configuration("", &format!("retries = {retries}"), target));
        let path = fresh();
        let mut client = gateway.client();
        client.send(request(&path, ""));
        check_refused_alive(&mut client);
        let line = check_logged(&gateway, &path, "refused", &json!(503), 2 * (retries + 1));
        assert!(line["handoff_us"].as_u64().is_some_and(|us| us >= pauses_ms * 1000), "{line}");
    }
}

#[test]
fn a_daemon_that_comes_back_between_retries_gets_the_client() {
    let target = "[target.chat]\nsockets = [\"DIR/d.sock\"]\n";
    // 10, 20, 40, … ms, then a second each: in all about four seconds, so a start fits in.
    let gateway = Gateway::start(&configuration("", "retries = 10", target));
    let path = fresh();
    let mut client = gateway.client();
    client.send(request(&path, ""));
    let _daemon = Daemon::start(&gateway.path("d.sock"), "seqpacket", "serve", &[]);
    assert_eq!(client.rest(), from("daemon"));
    assert_eq!(logged(&gateway, &path)["outcome"], "handed-off");
}

#[test]
fn a_full_backlog_is_waited_for_until_the_deadline_and_then_passed_over() {
    for kind in KINDS {
        let targets = format!(
            "[target.chat]\nsockets = [\"DIR/d.sock\"]\ndialect = \"{kind}\"\n\
             [target.two]\nsockets = [\"DIR/d.sock\", \"DIR/free.sock\"]\nbalance = \"round-robin\"\ndialect = \"{kind}\"\n"
        );
        let handoff = "connect_timeout = \"50ms\"\nretries = 1\nack_timeout = \"60s\"";
        let gateway = Gateway::start(&configuration("", handoff, &targets));
        let before = at_rest(&gateway);
        let mut daemon = Daemon::start(&gateway.path("d.sock"), kind, "absent", &["backlog=0"]);
        let _free = Daemon::start(&gateway.path("free.sock"), kind, "serve", &["name=free"]);
        let mut first = gateway.client();
        first.send(request(&fresh(), ""));
        is_in_the_backlog(&gateway);

        let path = fresh();
        let mut second = gateway.client();
        second.send(request(&path, ""));
        check_refused_alive(&mut second);
        let line = check_logged(&gateway, &path, "refused", &json!(503), 2);
        assert_eq!(line["error"], "connect: no room until the deadline");
        assert!(line["handoff_us"].as_u64().is_some_and(|us| us >= 100_000), "{line}");

        assert_eq!(gateway.ask(&request(&fresh(), "x-target: two\r\n")), from("free"));
        // The first is still waited for, and is answered when it is clear that nobody has read.
        daemon.kill();
        check_refused_alive(&mut first);
        drop((first, second));
        gateway.ledger_is_back_to(before);
    }
}
