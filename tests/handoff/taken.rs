//! After a handoff: the daemon has the client, and the gateway has nothing to do with it any more.

use std::fs;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::support::handing_over::{at_rest, check_alive, fresh};
use crate::support::{Daemon, Gateway, Lines, eventually, folder, holds, inode_of, is_asleep};
use crate::{KINDS, chat, configuration, data_field, from, gateway, is_in_the_backlog, request};

#[test]
fn once_read_the_daemon_holds_the_client_and_the_gateway_does_not() {
    for kind in KINDS {
        for data in ["", "some data"] {
            let gateway = gateway(kind);
            let before = at_rest(&gateway);
            // It keeps its end of the connection open, too.
            let daemon = Daemon::start(&gateway.path("d.sock"), kind, "stream", &["keep=1"]);
            let mut client = gateway.client();
            client.send(request(&fresh(), &data_field(data)));
            client.until("tick 1\n");
            let inode = inode_of(&client);
            assert!(holds(daemon.child.id(), inode));
            eventually("the gateway lets go", || (!holds(gateway.child.id(), inode)).then_some(()));
            gateway.ledger_is_back_to(before);
            // And nobody else holds or writes to it while it goes on.
            assert!(!client.until("tick 5\n").contains("HTTP/1.1"));
            assert!(holds(daemon.child.id(), inode));
        }
    }
}

#[test]
fn a_client_arrives_blocking_where_the_target_asks_for_it() {
    for kind in KINDS {
        let target = chat(kind) + "blocking = true\n";
        let gateway = Gateway::start(&configuration("", "", &target));
        let daemon = Daemon::start(&gateway.path("d.sock"), kind, "serve", &[]);
        let mut client = gateway.client();
        client.send(request(&fresh(), ""));
        assert_eq!(client.rest(), from("daemon"));
        assert_eq!(daemon.wait("got", 1)["blocking"], true, "{kind}");
    }
}

/// Every system call of the gateway that names the client's socket, as strace sees them.
#[test]
fn once_sent_the_gateway_does_nothing_to_the_client_but_close_it() {
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        eprintln!("NOT SHOWN: strace is not installed");
        assert!(std::env::var_os("CI").is_none(), "tests/run installs strace");
        return;
    }
    let folder = folder();
    let kinds = KINDS.map(|kind| format!("[target.{kind}]\nsockets = [\"DIR/{kind}.sock\"]\ndialect = \"{kind}\"\n"));
    let gateway = Gateway::start(&configuration("", "", &kinds.concat()));
    let traced = folder.path().join("trace");
    let pid = gateway.child.id().to_string();
    let mut strace = Command::new("strace")
        .args(["-f", "-yy", "-s", "16", "-p", &pid, "-o"])
        .arg(&traced)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let said = Lines::read(strace.stderr.take().unwrap());
    let attached = eventually("strace attaches or fails", || {
        let is_attached = said.all().iter().any(|line| line.contains("attached"));
        (is_attached || strace.try_wait().unwrap().is_some()).then_some(is_attached)
    });
    if !attached {
        eprintln!("NOT SHOWN: strace may not trace here: {:?}", said.all());
        return;
    }
    let mut ports = Vec::new();
    for kind in KINDS {
        let daemon = Daemon::start(&gateway.path(&format!("{kind}.sock")), kind, "stream", &["keep=1", "read=4"]);
        for data in ["", "some data"] {
            let mut client = gateway.client();
            // Waited for, and so registered with epoll.
            check_alive(&mut client);
            eventually("the gateway waits", || is_asleep(gateway.child.id()).then_some(()));
            let fields = format!("x-target: {kind}\r\nContent-Length: 4\r\n{}", data_field(data));
            client.send(format!("{}body", request(&fresh(), &fields)));
            client.until("tick 2\n");
            ports.push(client.port());
            drop(client);
            daemon.wait("client-gone", ports.len() - if kind == "stream" { 2 } else { 0 });
        }
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(strace.id().cast_signed()), Signal::SIGINT).unwrap();
    strace.wait().unwrap();
    let trace = fs::read_to_string(traced).unwrap();
    let mut registered = 0;
    for port in ports {
        let names_it = |line: &&str| line.contains(&format!("->127.0.0.1:{port}]"));
        let calls: Vec<_> = trace.lines().filter(names_it).collect();
        let sent = calls.iter().position(|call| call.contains("SCM_RIGHTS")).expect("it was sent");
        // A registration belongs to the open file, and would go on in the daemon.
        let count = |what: &str| calls[..sent].iter().filter(|call| call.contains(what)).count();
        assert_eq!(count("EPOLL_CTL_ADD"), count("EPOLL_CTL_DEL"), "still registered when sent: {calls:#?}");
        registered += count("EPOLL_CTL_ADD");
        assert_eq!(count("sendto(") + count("write(") + count("writev("), 1, "the first answer: {calls:#?}");
        let after = &calls[sent + 1..];
        assert_eq!(after.len(), 1, "{calls:#?}");
        assert!(after[0].contains(" close("), "{calls:#?}");
    }
    assert!(registered >= 4, "clients that were waited for were to be among them");
}

#[test]
fn killing_the_gateway_leaves_a_stream_alone() {
    for kind in KINDS {
        let mut gateway = gateway(kind);
        let daemon = Daemon::start(&gateway.path("d.sock"), kind, "stream", &[]);
        let mut client = gateway.client();
        client.send(request(&fresh(), ""));
        client.until("tick 1\n");
        gateway.signal(Signal::SIGKILL);
        gateway.wait();
        client.until("tick 5\n");
        assert!(daemon.events("client-gone").is_empty());
    }
}

#[test]
fn a_message_outlives_the_gateway_that_sent_it() {
    for kind in KINDS {
        let mut gateway = gateway(kind);
        let daemon = Daemon::start(&gateway.path("d.sock"), kind, "serve", &[]);
        daemon.stop();
        let mut client = gateway.client();
        client.send(request(&fresh(), "x-data: 1\r\n"));
        is_in_the_backlog(&gateway);
        gateway.signal(Signal::SIGKILL);
        gateway.wait();
        daemon.signal(Signal::SIGCONT);
        assert_eq!(client.rest(), from("daemon"));
    }
}
