//! How the gateway ends: what is finished, what is closed, what is cut; and the signals that end nothing.
#![cfg(feature = "gateway")]

mod support;

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use support::load::{self, Got};
use support::{Client, Daemon, Gateway, Lines, baton, eventually, folder};

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

/// Twenty reloads and five restarts while clients come all the time and twenty streams go on. Between the end of one
/// gateway and the beginning of the next nobody listens, as long as a listener cannot be inherited: those who come then are
/// refused by the kernel and counted apart. Everybody else is served.
#[test]
fn twenty_reloads_and_five_restarts_under_load_fail_nobody_and_cut_no_stream() {
    let folder = folder();
    let mut daemon = Daemon::start(&folder.path().join("s.sock"), "seqpacket", "stream", &[]);
    let _daemon = Daemon::start(&folder.path().join("d.sock"), "seqpacket", "serve", &["backlog=1000"]);
    // The same for all of them, so that it is known again after a restart.
    let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
    let toml = format!(
        "[[listener]]\nname = \"http\"\naddress = \"127.0.0.1:{port}\"\n[handoff]\nack_timeout = \"20s\"\n\
         [target.s]\nsockets = [\"DIR/s.sock\"]\n[target.d]\nsockets = [\"DIR/d.sock\"]\n{ROUTE}\
         [[route]]\npath = \"/s\"\ndefault = {{ handoff = \"s\" }}\n[[route]]\npath = \"/d\"\ndefault = {{ handoff = \"d\" }}\n"
    );
    let mut gateway = Gateway::start_in(folder, &toml, |command| command);
    let address = gateway.address();
    let mut streams: Vec<_> = (0..20).map(|_| gateway.client()).collect();
    for stream in &mut streams {
        stream.get("/s");
        stream.until("from daemon\n");
    }
    let (ends, is_restarting) = (AtomicBool::new(false), AtomicBool::new(false));
    let client = |n: usize| {
        let path = ["/", "/d"][n % 2];
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let got = load::ask_whoever_listens(address, &request);
        let is_served = !matches!(got, Got::Left | Got::Reset | Got::Closed);
        assert!(is_served || is_restarting.load(Ordering::SeqCst), "{got:?} by a reload");
        got
    };
    let tally = std::thread::scope(|scope| {
        let clients = scope.spawn(|| load::clients_until(&ends, 8, client));
        let acted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for n in 0..20 {
                let from = gateway.reload(&toml.replace("\"ok\"", &format!("\"ok {n}\"")));
                gateway.stderr.wait(from, &["configuration reloaded"]);
            }
            is_restarting.store(true, Ordering::SeqCst);
            for _ in 0..5 {
                gateway.signal(Signal::SIGTERM);
                assert_eq!(gateway.wait().code(), Some(0));
                start_again(&mut gateway);
                // Somebody is served by each.
                assert_eq!(gateway.status("/"), 200);
            }
        }));
        ends.store(true, Ordering::Relaxed);
        let tally = clients.join().expect("everybody was served");
        acted.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        tally
    });
    println!("{tally:?}");
    assert_eq!((tally.of(Got::Closed), tally.of(Got::Reset)), (0, 0), "{tally:?}");
    assert!(tally.of(Got::Daemon) > 100 && tally.of(Got::Gateway(200)) > 100, "{tally:?}");
    assert!(daemon.events("client-gone").is_empty());
    // Every tick there was, from the first gateway's time to the last one's.
    daemon.kill();
    for stream in &mut streams {
        let text = stream.rest();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let mut count = 0;
        for (n, line) in whole.lines().enumerate() {
            assert_eq!(line, format!("tick {n}"));
            count = n;
        }
        assert!(count > 50, "{count} ticks");
    }
}

/// The same program on the same configuration.
fn start_again(gateway: &mut Gateway) {
    let mut child = baton()
        .args(["run", "-c"])
        .arg(gateway.path("baton.toml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    gateway.stderr = Lines::read(child.stderr.take().expect("piped"));
    gateway.child = child;
    gateway.stderr.wait(0, &["listening on"]);
}
