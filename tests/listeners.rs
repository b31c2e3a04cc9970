//! Addresses: what may listen where, and that nobody who has connected is lost when something runs short.
#![cfg(feature = "gateway")]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use support::{Client, Daemon, Gateway, eventually, folder, patience};

const ROUTE: &str = "[[route]]\npath = \"/\"\ndefault = { respond = { body = \"ok\" } }\n";
const LAST: &str = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

fn listener(name: &str, address: &str) -> String {
    format!("[[listener]]\nname = \"{name}\"\naddress = \"{address}\"\n")
}

/// Where the listener of that name listens.
fn address(gateway: &Gateway, name: &str) -> SocketAddr {
    let line = gateway.stderr.wait(0, &["listening on http://", &format!("({name})")]);
    let text = line.trim_start_matches("listening on http://").split(' ').next().expect("an address");
    text.parse().expect("an address")
}

fn ask(mut stream: impl Read + Write) -> String {
    stream.write_all(LAST.as_bytes()).expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it answers");
    text
}

/// Runs a gateway that cannot start; its exit code and what it said.
fn fails(folder: &Path, toml: &str) -> (Option<i32>, String) {
    let file = folder.join("fails.toml");
    std::fs::write(&file, toml).expect("written");
    let output = support::baton().arg("run").arg("-c").arg(&file).stdin(Stdio::null()).output().expect("it runs");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn several_listeners_of_every_kind_serve_the_same_routes() {
    let all = [
        listener("four", "127.0.0.1:0"),
        listener("six", "[::1]:0"),
        listener("both", "[::]:0"),
        listener("file", "unix:DIR/http.sock"),
    ];
    let gateway = Gateway::start(&format!("{}{ROUTE}", all.concat()));
    let both = address(&gateway, "both").port();
    let tcp = |address: SocketAddr| {
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(patience())).expect("a socket");
        stream
    };
    let file = gateway.path("http.sock");
    for (count, (wanted, client, answer)) in [
        ("four", "127.0.0.1", ask(tcp(address(&gateway, "four")))),
        ("six", "::1", ask(tcp(address(&gateway, "six")))),
        ("both", "127.0.0.1", ask(tcp(([127, 0, 0, 1], both).into()))),
        ("both", "::1", ask(tcp(([0, 0, 0, 0, 0, 0, 0, 1], both).into()))),
        ("file", "unix:", ask(UnixStream::connect(&file).expect("it listens"))),
    ]
    .into_iter()
    .enumerate()
    {
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nok"), "{wanted}: {answer}");
        gateway.log_line(count + 1);
        let log = gateway.log();
        let of = |line: &&serde_json::Value| {
            line["listener"] == wanted && line["client"].as_str().is_some_and(|c| c.starts_with(client))
        };
        assert!(log.iter().any(|line| of(&line)), "{wanted}, {client}: {log:?}");
    }
}

#[test]
fn one_port_of_both_families_goes_to_two_listeners() {
    // A port that both families have free: nobody promises that it stays so, hence another try.
    let gateway = (0..20).find_map(|_| {
        let port = TcpListener::bind("[::]:0").expect("a port").local_addr().expect("bound").port();
        let toml = format!(
            "{}{}{ROUTE}",
            listener("six", &format!("[::]:{port}")),
            listener("four", &format!("0.0.0.0:{port}"))
        );
        let free = TcpListener::bind(("0.0.0.0", port)).is_ok();
        free.then(|| (Gateway::start(&toml), port))
    });
    let (gateway, port) = gateway.expect("a free port");
    assert!(ask(TcpStream::connect(("127.0.0.1", port)).expect("it listens")).ends_with("ok"));
    assert_eq!(gateway.log_line(1)["listener"], "four");
    assert!(ask(TcpStream::connect(("::1", port)).expect("it listens")).ends_with("ok"));
    assert_eq!(gateway.log_line(2)["listener"], "six");
}

#[test]
fn an_address_that_is_taken_ends_the_start() {
    let folder = folder();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    let free = folder.path().join("free.sock");
    let toml = format!("{}{}{ROUTE}", listener("a", &format!("unix:{}", free.display())), listener("b", &address));
    let (code, said) = fails(folder.path(), &toml);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("fails.toml:6: listener[1].address: ") && said.contains("in use"), "{said}");
    assert!(!free.exists(), "what was bound before is taken back");
    let (code, said) = fails(folder.path(), &format!("{}{ROUTE}", listener("a", "192.0.2.1:0")));
    assert!(code == Some(1) && said.contains("listener[0].address"), "{code:?} {said}");
}

#[test]
fn a_unix_socket_is_replaced_when_nobody_listens_and_removed_at_the_end() {
    let folder = folder();
    let path = folder.path().join("http.sock");
    drop(UnixListener::bind(&path).expect("bound"));
    assert!(path.exists(), "left behind, as after a crash");
    let toml = format!("{}{ROUTE}", listener("file", &format!("unix:{}", path.display())));
    let mut gateway = Gateway::start_in(folder, &toml, |command| command);
    assert!(ask(UnixStream::connect(&path).expect("it listens")).ends_with("ok"));

    // A living one is its owner's.
    let (code, said) = fails(gateway.folder.path(), &toml);
    assert!(code == Some(1) && said.contains("listener[0].address: ") && said.contains("in use"), "{code:?} {said}");
    assert!(ask(UnixStream::connect(&path).expect("it still listens")).ends_with("ok"));

    gateway.signal(Signal::SIGTERM);
    assert_eq!(gateway.wait().code(), Some(0));
    assert!(!path.exists());
}

#[test]
fn what_is_no_socket_or_not_ours_is_left_alone() {
    let folder = folder();
    let path = folder.path().join("http.sock");
    std::fs::write(&path, "precious").expect("written");
    let toml = format!("{}{ROUTE}", listener("file", &format!("unix:{}", path.display())));
    let (code, said) = fails(folder.path(), &toml);
    assert!(code == Some(1) && said.contains("listener[0].address"), "{code:?} {said}");
    assert_eq!(std::fs::read_to_string(&path).expect("there"), "precious");

    // Whoever has taken the path over in the meantime keeps it.
    std::fs::remove_file(&path).expect("ours");
    let mut gateway = Gateway::start_in(folder, &toml, |command| command);
    std::fs::remove_file(&path).expect("ours");
    let successor = UnixListener::bind(&path).expect("bound");
    gateway.signal(Signal::SIGTERM);
    gateway.wait();
    assert!(path.exists());
    drop(successor);
}

/// The command, with at most that many descriptors: the program raises the soft limit to the hard one.
fn limited(command: &mut Command, descriptors: usize) -> &mut Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("ulimit -n {descriptors}; exec \"$@\""), "sh"]);
    shell.arg(command.get_program()).args(command.get_args());
    shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    *command = shell;
    command
}

/// Processor time, in ticks of 10 ms.
fn ticks(gateway: &Gateway) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", gateway.child.id())).expect("it runs");
    let behind_name = stat.rsplit_once(") ").expect("a name in parentheses").1;
    behind_name.split(' ').skip(11).take(2).map(|n| n.parse::<u64>().expect("a number")).sum()
}

/// Takes out whoever has its answer.
fn answered(waiting: &mut Vec<Client>) -> Vec<Client> {
    let has_answer = |client: &mut Client| {
        client.stream.set_nonblocking(true).expect("a socket");
        let seen = client.stream.peek(&mut [0]);
        client.stream.set_nonblocking(false).expect("a socket");
        match seen {
            Ok(count) => {
                assert_ne!(count, 0, "closed without an answer");
                true
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "lost");
                false
            }
        }
    };
    let mut ready: Vec<_> = waiting.extract_if(.., has_answer).collect();
    for client in &mut ready {
        assert_eq!(client.answer().status, 200);
    }
    ready
}

/// Far more clients than descriptors, and they stay: those beyond the reserve wait in the kernel.
#[test]
fn without_descriptors_clients_wait_and_what_is_under_way_goes_on() {
    let folder = folder();
    let _daemon = Daemon::start(&folder.path().join("d.sock"), "seqpacket", "serve", &[]);
    let toml = format!(
        "[gateway]\nworkers = 1\nLISTEN\n{ROUTE}[[route]]\npath = \"/d\"\ndefault = {{ handoff = \"d\" }}\n\
         [target.d]\nsockets = [\"DIR/d.sock\"]\n"
    );
    let gateway = Gateway::start_in(folder, &toml, |command| limited(command, 64));
    let mut waiting: Vec<_> = (0..120).map(|_| gateway.client()).collect();
    waiting.iter_mut().for_each(|client| client.get("/"));
    gateway.stderr.wait(0, &["cannot accept for now"]);
    let mut owned = Vec::new();
    eventually("the descriptors are used up", || {
        owned.append(&mut answered(&mut waiting));
        (gateway.descriptors() >= 48).then_some(())
    });
    // What it does while nothing changes: not much, and the reserve stays.
    let (before, window) = (ticks(&gateway), Instant::now() + Duration::from_millis(800));
    while Instant::now() < window {
        std::thread::park_timeout(Duration::from_millis(50));
        owned.append(&mut answered(&mut waiting));
    }
    assert!(ticks(&gateway) - before < 16, "{} ticks in 0.8 s", ticks(&gateway) - before);
    assert!(gateway.descriptors() <= 50, "{} of 64 descriptors", gateway.descriptors());
    let mut one = owned.pop().expect("some are owned");
    one.get("/d");
    assert!(one.rest().ends_with("from daemon\n"), "a daemon can still be reached");
    // As the owned ones leave, everybody is served.
    let count = 119 - owned.len();
    let mut served = 0;
    drop(owned);
    eventually("all are served", || {
        served += answered(&mut waiting).len();
        waiting.is_empty().then_some(())
    });
    assert_eq!(served, count);
    assert!(!gateway.stderr.all().iter().any(|line| line.contains("panicked")));
}

/// The limit falls below what is open already, so that accept(2) itself fails.
#[test]
fn a_failing_accept_ends_nothing_and_loses_nobody() {
    let mut gateway = Gateway::start(&format!("[gateway]\nworkers = 2\nLISTEN\n{ROUTE}"));
    assert_eq!(gateway.status("/"), 200);
    let limit = |number: usize| {
        let pid = gateway.child.id().to_string();
        let status = Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={number}:1000")]).status();
        assert!(status.expect("util-linux").success());
    };
    limit(5);
    let mut waiting: Vec<_> = (0..40).map(|_| gateway.client()).collect();
    waiting.iter_mut().for_each(|client| client.get("/"));
    gateway.stderr.wait(0, &["cannot accept for now", "open files"]);
    let before = ticks(&gateway);
    std::thread::park_timeout(Duration::from_millis(500));
    assert!(ticks(&gateway) - before < 10, "{} ticks in 0.5 s", ticks(&gateway) - before);
    assert!(answered(&mut waiting).is_empty());
    limit(1000);
    eventually("all are served", || {
        answered(&mut waiting);
        waiting.is_empty().then_some(())
    });
    // Nor does the end lose those who wait at that time.
    limit(5);
    let mut waiting: Vec<_> = (0..40).map(|_| gateway.client()).collect();
    waiting.iter_mut().for_each(|client| client.get("/"));
    gateway.signal(Signal::SIGTERM);
    std::thread::park_timeout(Duration::from_millis(300));
    assert!(answered(&mut waiting).is_empty());
    limit(1000);
    for client in &mut waiting {
        assert!(client.rest().starts_with("HTTP/1.1 200 "));
    }
    drop(waiting);
    assert_eq!(gateway.wait().code(), Some(0));
}

#[test]
fn clients_that_reset_before_they_are_served_leave_nothing_behind() {
    let gateway = Gateway::start(&format!("LISTEN\n{ROUTE}"));
    let before = gateway.sockets();
    for round in 0..200 {
        let mut client = gateway.client();
        match round % 3 {
            0 => {}
            1 => client.send("GET / HTTP/1.1\r\nHo"),
            _ => client.get("/"),
        }
        client.reset();
    }
    assert_eq!(gateway.status("/"), 200);
    eventually("the sockets are closed", || (gateway.sockets() <= before).then_some(()));
}
