//! How the gateway ends: what is finished, what is closed, what is cut; and the signals that end nothing.
#![cfg(feature = "gateway")]

mod support;

use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use support::{Client, Daemon, Gateway, eventually, folder};

const ROUTE: &str = "[[route]]\npath = \"/\"\ndefault = { respond = { body = \"ok\" } }\n";

fn start(gateway: &str) -> Gateway {
    Gateway::start(&format!("[gateway]\n{gateway}\nLISTEN\n{ROUTE}"))
}

/// A client in the middle of a head that the gateway has begun to read: it is served by the one worker before this
/// returns.
fn busy(gateway: &Gateway) -> Client {
    let mut client = gateway.client();
    client.send("GET /busy HTTP/1.1\r\nHost: x\r\n");
    assert_eq!(gateway.status("/"), 200);
    client
}

#[test]
fn idle_clients_are_closed_and_busy_ones_finished() {
    let mut gateway = start("workers = 1");
    let address = gateway.address();
    let (mut idle, mut fresh, mut busy) = (gateway.client(), gateway.client(), busy(&gateway));
    idle.get("/");
    assert_eq!(idle.answer().status, 200);
    gateway.signal(Signal::SIGTERM);
    let began = Instant::now();
    assert_eq!((idle.rest(), fresh.rest()), (String::new(), String::new()));
    assert!(began.elapsed() < Duration::from_secs(5), "at once: {:?}", began.elapsed());
    eventually("connects are refused", || {
        TcpStream::connect(address).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused).then_some(())
    });
    assert!(gateway.child.try_wait().expect("ours").is_none(), "somebody is busy");
    busy.send("\r\n");
    let answer = busy.answer();
    assert_eq!((answer.status, answer.header("connection"), answer.body.as_str()), (200, Some("close"), "ok"));
    assert_eq!(busy.rest(), "");
    assert_eq!(gateway.wait().code(), Some(0));
    assert_eq!(gateway.log().last().map(|line| line["target"].clone()), Some("/busy".into()), "the log is complete");
}

#[test]
fn int_drains_as_well() {
    let mut gateway = start("");
    assert_eq!(gateway.status("/"), 200);
    gateway.signal(Signal::SIGINT);
    assert_eq!(gateway.wait().code(), Some(0));
}

#[test]
fn who_waits_in_the_kernels_queue_is_served() {
    let mut gateway = start("[limits]\nconnections_max = 1");
    let mut owner = gateway.client();
    owner.get("/");
    assert_eq!(owner.answer().status, 200);
    let mut queued: Vec<_> = (0..20).map(|_| gateway.client()).collect();
    queued.iter_mut().for_each(|client| client.get("/"));
    gateway.signal(Signal::SIGTERM);
    for client in &mut queued {
        assert_eq!(client.answer().status, 200);
        assert_eq!(client.rest(), "");
    }
    assert_eq!(owner.rest(), "");
    assert_eq!(gateway.wait().code(), Some(0));
}

#[test]
fn who_was_handed_over_is_not_waited_for_and_not_cut() {
    let folder = folder();
    let _daemon = Daemon::start(&folder.path().join("d.sock"), "seqpacket", "stream", &[]);
    let toml =
        "LISTEN\n[target.d]\nsockets = [\"DIR/d.sock\"]\n[[route]]\npath = \"/\"\ndefault = { handoff = \"d\" }\n";
    let mut gateway = Gateway::start_in(folder, toml, |command| command);
    let mut client = gateway.client();
    client.get("/");
    client.until("tick 0\n");
    gateway.log_line(1);
    let began = Instant::now();
    gateway.signal(Signal::SIGTERM);
    assert_eq!(gateway.wait().code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(10), "not waited for: {:?}", began.elapsed());
    // What comes now was written after the gateway's end.
    let ended = Instant::now();
    while ended.elapsed() < Duration::from_millis(200) {
        client.until("tick ");
    }
}

/// Ends with two clients in the middle of a request; they were cut, counted and logged.
#[track_caller]
fn was_cut(mut gateway: Gateway, mut clients: [Client; 2], words: &[&str]) {
    assert_eq!(gateway.wait().code(), Some(0), "the operator asked");
    gateway.stderr.wait(0, &[&["cut", "requests=2"], words].concat());
    clients.iter_mut().for_each(|client| assert_eq!(client.rest(), ""));
    let log = gateway.log();
    assert_eq!(log.iter().filter(|line| line["outcome"] == "aborted").count(), 2, "{log:?}");
}

#[test]
fn after_the_deadline_what_is_left_is_cut_and_counted() {
    let gateway = start("workers = 1\ndrain_timeout = \"300ms\"");
    let clients = [busy(&gateway), busy(&gateway)];
    let began = Instant::now();
    gateway.signal(Signal::SIGTERM);
    was_cut(gateway, clients, &["drain_timeout"]);
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
}

#[test]
fn a_second_signal_cuts() {
    for second in [Signal::SIGTERM, Signal::SIGINT] {
        let gateway = start("workers = 1\ndrain_timeout = \"1h\"");
        let mut idle = gateway.client();
        let clients = [busy(&gateway), busy(&gateway)];
        gateway.signal(Signal::SIGTERM);
        assert_eq!(idle.rest(), "", "it drains");
        gateway.signal(second);
        was_cut(gateway, clients, &["second"]);
    }
}

#[test]
fn a_reload_while_it_drains_changes_nothing() {
    let mut gateway = start("workers = 1");
    let (mut idle, mut busy) = (gateway.client(), busy(&gateway));
    gateway.signal(Signal::SIGTERM);
    assert_eq!(idle.rest(), "", "it drains");
    gateway.signal(Signal::SIGHUP);
    gateway.signal(Signal::SIGUSR1);
    busy.send("\r\n");
    assert_eq!(busy.answer().body, "ok");
    drop(busy);
    assert_eq!(gateway.wait().code(), Some(0));
}

#[test]
fn usr1_opens_the_access_log_again() {
    let gateway = start("");
    assert_eq!(gateway.status("/before"), 200);
    gateway.log_line(1);
    let old = gateway.path("old.log");
    std::fs::rename(gateway.path("access.log"), &old).expect("renamed");
    assert_eq!(gateway.status("/between"), 200);
    let lines = |path: &std::path::Path| std::fs::read_to_string(path).unwrap_or_default().lines().count();
    eventually("the old file is written to", || (lines(&old) == 2).then_some(()));
    gateway.signal(Signal::SIGUSR1);
    eventually("there is a new file", || gateway.path("access.log").exists().then_some(()));
    assert_eq!(gateway.status("/after"), 200);
    assert_eq!(gateway.log_line(1)["target"], "/after");
    assert_eq!(lines(&old), 2);
    // Where it cannot be opened, the old one stays.
    std::fs::rename(gateway.path("access.log"), gateway.path("newer.log")).expect("renamed");
    std::fs::create_dir(gateway.path("access.log")).expect("made");
    gateway.signal(Signal::SIGUSR1);
    gateway.stderr.wait(0, &["access log", "opened again"]);
    assert_eq!(gateway.status("/still"), 200);
    eventually("the old file is written to", || (lines(&gateway.path("newer.log")) == 2).then_some(()));
}

#[test]
fn hup_closes_no_connection() {
    let gateway = start("");
    let mut client = gateway.client();
    client.get("/");
    assert_eq!(client.answer().body, "ok");
    gateway.reload(&format!("[gateway]\n\nLISTEN\n{}", ROUTE.replace("ok", "new")));
    eventually("the new configuration", || {
        client.get("/");
        (client.answer().body == "new").then_some(())
    });
}
