//! The descriptors, after many, and while many are with their daemons.

use std::thread;

use crate::support::handing_over::at_rest;
use crate::support::{Daemon, Gateway, eventually, holds, inode_of};
use crate::{configuration, gateway, request};

#[test]
fn a_thousand_taken_and_a_thousand_refused_leave_nothing_open() {
    let targets = "[target.taken]\nsockets = [\"DIR/taken.sock\"]\n[target.gone]\nsockets = [\"DIR/gone.sock\"]\n\
                   [target.unread]\nsockets = [\"DIR/unread.sock\"]\n[target.late]\nsockets = [\"DIR/late.sock\"]\n\
                   [limits]\nhandoff_data_bytes_max = \"100B\"\n";
    let gateway = Gateway::start(&configuration("", "retries = 0\nack_timeout = \"60s\"", targets));
    let before = at_rest(&gateway);
    // It keeps its end open, so that only its reading tells the gateway.
    let _taken = Daemon::start(&gateway.path("taken.sock"), "seqpacket", "serve", &["keep=1"]);
    let _unread = Daemon::start(&gateway.path("unread.sock"), "stream", "drop", &[]);
    let _late = Daemon::start(&gateway.path("late.sock"), "seqpacket", "absent", &["backlog=1000"]);
    let rounds = |count: usize, fields: &'static str, status: &'static str| {
        let gateway = &gateway;
        move || {
            for _ in 0..count {
                let answer = gateway.ask(&request("/hand", &format!("Connection: close\r\n{fields}")));
                assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{fields}: {answer}");
            }
        }
    };
    thread::scope(|scope| {
        scope.spawn(rounds(500, "x-target: taken\r\n", "200"));
        scope.spawn(rounds(500, "x-target: taken\r\nx-data: some\r\n", "200"));
        scope.spawn(rounds(500, "x-target: gone\r\n", "503"));
        scope.spawn(rounds(500, "x-target: unread\r\n", "503"));
        scope.spawn(rounds(100, "x-target: unread\r\nx-data: some\r\n", "503"));
        scope.spawn(rounds(20, "x-target: late\r\nx-timeout-ms: 30\r\n", "503"));
        scope.spawn(rounds(100, "x-target: taken\r\nx-bytes: 101\r\n", "500"));
        scope.spawn(rounds(100, "x-target: /etc/passwd\r\n", "403"));
    });
    gateway.ledger_is_back_to(before);
    let lines = eventually("all lines", || Some(gateway.log()).filter(|lines| lines.len() == 2321));
    let count = |outcome: &str| lines.iter().filter(|line| line["outcome"] == outcome).count();
    assert_eq!((count("handed-off"), count("refused"), count("policy-error")), (1000, 1220, 100));
}

#[test]
fn clients_that_are_with_their_daemons_cost_the_gateway_no_descriptor() {
    let gateway = gateway("seqpacket");
    let before = at_rest(&gateway);
    let daemon = Daemon::start(&gateway.path("d.sock"), "seqpacket", "hold", &[]);
    let mut clients: Vec<_> = (0..200).map(|_| gateway.client()).collect();
    for client in &mut clients {
        client.send(request("/hand", ""));
    }
    daemon.wait("got", clients.len());
    gateway.ledger_is_back_to(before);
    assert!(clients.iter().all(|client| holds(daemon.child.id(), inode_of(client))));
}
