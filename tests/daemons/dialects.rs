//! The other dialects, behind the real gateway: the same assertions for each daemon in each dialect that it speaks.

use std::fs::Permissions;
use std::io::{IoSlice, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::thread;

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, shutdown, socket,
};
use nix::unistd::User;
use serde_json::Value;

use crate::language::{Daemon, Language, PYTHON};
use crate::support::{Client, Gateway, eventually, peers};

/// Data goes along, where the dialect has a place for it.
fn carries_data(kind: &str) -> bool {
    matches!(kind, "baton" | "seqpacket" | "stream")
}

/// `auto` where that finds the dialect, too.
fn gateway(kind: &str) -> Gateway {
    let dialect = if matches!(kind, "seqpacket" | "stream") { "auto" } else { kind };
    // Each worker has a channel, from its first handoff on: where descriptors are counted, that is one.
    let workers = if kind == "baton" { "[gateway]\nworkers = 1\n" } else { "" };
    let policy = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/policies/handoff_by_fields.wat");
    Gateway::start(&format!(
        "{workers}LISTEN\n[handoff]\nack_timeout = \"30s\"\n[target.chat]\nsockets = [\"DIR/d.sock\"]\ndialect = \"{dialect}\"\n\
         [policy.by-fields]\nmodule = \"{policy}\"\ndeadline = \"1s\"\n\
         [[route]]\npath = \"/\"\npolicies = [\"by-fields\"]\n"
    ))
}

/// Asks for data to be sent along, and checks the answer.
#[track_caller]
fn check_served(gateway: &Gateway, kind: &str, data: &str) {
    let field = if data.is_empty() || !carries_data(kind) { String::new() } else { format!("x-data: {data}\r\n") };
    let mut client = gateway.client();
    client.send(get(&field));
    check_answer(&whole(&mut client), kind, &first_text(kind, data, &get(&field)));
}

/// What a daemon's first event has: the data, or the head, or nothing.
fn first_text(kind: &str, data: &str, head: &str) -> String {
    match kind {
        "datagram" => head.to_owned(),
        "fdpass" => String::new(),
        _ => data.to_owned(),
    }
}

/// The whole answer: a head, ten events of which the first has the data, and `done`.
#[track_caller]
pub fn check_answer(answer: &str, kind: &str, data: &str) {
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let mut fields = head.split("\r\n");
    assert_eq!(fields.next(), Some("HTTP/1.1 200 OK"));
    let fields: Vec<_> = fields.collect();
    if kind == "fdpass" {
        assert!(fields[0].starts_with("Date: ") && fields[1..] == ["Connection: close"], "{fields:?}");
    } else {
        assert_eq!(fields, ["Content-Type: text/event-stream", "Cache-Control: no-store", "Connection: close"]);
    }
    let events: Vec<_> = body.split_terminator("\n\n").collect();
    assert_eq!(events.len(), 11, "{body}");
    for (n, event) in (1..=10).zip(&events) {
        let event: Value = serde_json::from_str(event.strip_prefix("data: ").expect("data")).expect("JSON");
        let text = if n == 1 { data } else { "hello" };
        assert_eq!(event, serde_json::json!({"n": n, "text": text}));
    }
    assert_eq!(events[10], "event: done\ndata: {}");
    assert!(body.ends_with("\n\n"));
}

/// All bytes until the end, which must not be a reset.
#[track_caller]
fn whole(client: &mut Client) -> String {
    let mut answer = String::new();
    client.stream.read_to_string(&mut answer).expect("not reset");
    answer
}

fn get(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n")
}

/// The type of a dialect's socket.
fn socket_type(kind: &str) -> SockType {
    match kind {
        "datagram" => SockType::Datagram,
        "baton" | "seqpacket" => SockType::SeqPacket,
        _ => SockType::Stream,
    }
}

/// Sends a message with copies of `descriptors` to a daemon, as a gateway never would, and says no more.
fn send_rough(path: &Path, kind: &str, bytes: &[u8], descriptors: &[i32]) -> OwnedFd {
    let connection = socket(AddressFamily::Unix, socket_type(kind), SockFlag::SOCK_CLOEXEC, None).unwrap();
    connect(connection.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    let rights = [ControlMessage::ScmRights(descriptors)];
    let control = if descriptors.is_empty() { &[] } else { &rights[..] };
    sendmsg::<()>(connection.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None).unwrap();
    shutdown(connection.as_raw_fd(), nix::sys::socket::Shutdown::Write).unwrap();
    connection
}

pub fn streams_ten_events_with_the_data_in_the_first(language: Language) {
    for kind in language.kinds {
        let gateway = gateway(kind);
        let _daemon = Daemon::start(language, &gateway.path("d.sock"), kind, 2);
        let strange = "{\"user\":\"J\u{f6}rg \\ \u{20ac} \u{1f600}\",\t\"n\":1} </script> %s %n";
        for data in ["", "plain", strange] {
            check_served(&gateway, kind, data);
        }
        if !carries_data(kind) {
            continue;
        }
        // The head as the data, line ends and all; in `baton` it has a place of its own.
        let head = get("x-head: 1\r\nX-Quote: \"\\\"\r\n");
        check_answer(&gateway.ask(&head), kind, if *kind == "baton" { "" } else { &head });
        let mut client = gateway.client();
        client.send(get("x-bytes: 50000\r\n"));
        check_answer(&whole(&mut client), kind, &"d".repeat(50_000));
    }
}

/// All have their second event before the first has its last: one after the other would take a minute.
pub fn serves_many_at_once(language: Language) {
    thread::scope(|scope| {
        for kind in language.kinds {
            scope.spawn(move || many_at_once(language, kind));
        }
    });
}

fn many_at_once(language: Language, kind: &str) {
    let gateway = gateway(kind);
    let _daemon = Daemon::start(language, &gateway.path("d.sock"), kind, 300);
    let mut clients: Vec<_> = (0..20).map(|_| gateway.client()).collect();
    let data = |n: usize| if carries_data(kind) { format!("x-data: client {n}\r\n") } else { format!("x-n: {n}\r\n") };
    for (n, client) in clients.iter_mut().enumerate() {
        client.send(get(&data(n)));
    }
    let begins: Vec<_> = clients.iter_mut().map(|client| client.until("\"n\":2,")).collect();
    let mut arrived = [0; 4096];
    clients[0].stream.set_nonblocking(true).unwrap();
    let count = clients[0].stream.peek(&mut arrived).unwrap_or(0);
    clients[0].stream.set_nonblocking(false).unwrap();
    assert!(!String::from_utf8_lossy(&arrived[..count]).contains("done"));
    for (n, (begin, client)) in begins.iter().zip(&mut clients).enumerate() {
        let text = first_text(kind, &format!("client {n}"), &get(&data(n)));
        check_answer(&format!("{begin}{}", client.rest()), kind, &text);
    }
}

/// A body that the daemon has not read must not make the kernel reset the connection under its answer.
pub fn an_unread_body_does_not_cost_the_answer(language: Language) {
    for kind in language.kinds {
        let gateway = gateway(kind);
        let _daemon = Daemon::start(language, &gateway.path("d.sock"), kind, 1);
        let mut client = gateway.client();
        let field = if carries_data(kind) { "x-data: a body\r\n" } else { "" };
        let head = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n{field}\r\n");
        client.send(&head);
        let mut sender = client.stream.try_clone().unwrap();
        let sending = thread::spawn(move || sender.write_all(&[b'x'; 200_000]));
        check_answer(&whole(&mut client), kind, &first_text(kind, "a body", &head));
        sending.join().unwrap().expect("taken");
    }
}

pub fn replaces_a_stale_socket_and_no_live_one(language: Language) {
    for kind in language.kinds {
        let gateway = gateway(kind);
        let path = gateway.path("d.sock");
        drop(Daemon::start(language, &path, kind, 1));
        assert!(path.exists(), "it was killed");
        let _daemon = Daemon::start(language, &path, kind, 1);
        let mut second = (language.command)();
        second.arg(&path).arg(kind).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut second = second.spawn().unwrap();
        let status = eventually("the second gives up", || second.try_wait().unwrap());
        assert!(!status.success());
        check_served(&gateway, kind, "alive");
    }
}

pub fn closes_what_should_not_have_come(language: Language) {
    for kind in language.kinds {
        let gateway = gateway(kind);
        let path = gateway.path("d.sock");
        let daemon = Daemon::start(language, &path, kind, 1);
        check_served(&gateway, kind, "");
        let before = eventually("it rests", || {
            let first = daemon.descriptors();
            thread::yield_now();
            (daemon.descriptors() == first).then_some(first)
        });
        // What is held by the daemon when everything here is closed shows on the other end of the pipe.
        let (mut end, stray) = std::io::pipe().unwrap();
        let mut connections = Vec::new();
        for count in [0, 2, 3, 253] {
            let numbers = vec![stray.as_raw_fd(); count];
            connections.push(send_rough(&path, kind, b"x", &numbers));
        }
        drop(stray);
        // It ends only when nobody holds a copy any more, of daemon and children.
        nix::fcntl::fcntl(&end, nix::fcntl::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
        eventually("every copy is closed", || end.read(&mut [0]).is_ok_and(|count| count == 0).then_some(()));
        eventually("the descriptors are back", || (daemon.descriptors() <= before).then_some(()));
        check_served(&gateway, kind, "next");
    }
}

/// A gateway that dies or stalls within its message must not keep the others waiting.
pub fn a_silent_peer_delays_nobody(language: Language) {
    for kind in language.kinds {
        let gateway = gateway(kind);
        let path = gateway.path("d.sock");
        let _daemon = Daemon::start(language, &path, kind, 1);
        let silent = socket(AddressFamily::Unix, socket_type(kind), SockFlag::SOCK_CLOEXEC, None).unwrap();
        connect(silent.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        for _ in 0..3 {
            check_served(&gateway, kind, "others");
        }
    }
}

pub fn outlives_clients_that_leave(language: Language) {
    for kind in language.kinds {
        let gateway = gateway(kind);
        let daemon = Daemon::start(language, &gateway.path("d.sock"), kind, 5);
        check_served(&gateway, kind, "");
        let before = daemon.descriptors();
        for _ in 0..10 {
            let mut client = gateway.client();
            client.send(get(""));
            client.until("\"n\":1,");
        }
        eventually("their descriptors are back", || (daemon.descriptors() <= before).then_some(()));
        check_served(&gateway, kind, "next");
    }
}

pub fn refuses_what_it_does_not_understand(language: Language) {
    let mut child =
        (language.command)().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let status = eventually("it ends", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(2));
}

/// What only the native dialect can: the connection goes on behind a handoff, between requests that the gateway answers
/// and with the next ones already there; and the log has what the daemon said.
pub fn keeps_the_connection_behind_the_real_gateway(language: Language) {
    let policy = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/policies/handoff_by_fields.wat");
    let gateway = Gateway::start(&format!(
        "LISTEN\n[handoff]\nack_timeout = \"30s\"\n[target.chat]\nsockets = [\"DIR/d.sock\"]\ndialect = \"baton\"\n\
         [policy.by-fields]\nmodule = \"{policy}\"\ndeadline = \"1s\"\n\
         [[route]]\npath = \"/\"\npolicies = [\"by-fields\"]\n\
         [[route]]\npath = \"/answer\"\ndefault = {{ respond = {{ status = 200, body = \"ours\\n\" }} }}\n"
    ));
    let daemon = Daemon::start(language, &gateway.path("d.sock"), "baton", 1);
    let mut client = gateway.client();
    let mut lines = Vec::new();
    for round in 0..5 {
        for (method, path, fields, body, expected) in [
            ("GET", "/return", "", "", "returned\n"),
            ("GET", "/answer", "", "", "ours\n"),
            ("POST", "/echo?a=b", "Content-Length: 5\r\n", "hello", "hello"),
            ("POST", "/echo", "Transfer-Encoding: chunked\r\n", "3\r\nhel\r\n2;x\r\nlo\r\n0\r\n\r\n", "hello"),
            ("POST", "/unread", "Content-Length: 5\r\n", "hello", "unread\n"),
            ("GET", "/data", "X-Data: user=7\r\n", "", "user=7"),
        ] {
            lines.push((format!("{method} {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n{body}"), path, expected));
            // One after the other at first, then all of a round behind each other.
            if round < 2 {
                let (request, _, expected) = &lines[lines.len() - 1];
                client.send(request);
                assert_eq!(client.answer().body, *expected, "{request}");
            }
        }
        if round >= 2 {
            let requests = &lines[lines.len() - 6..];
            client.send(requests.iter().map(|(request, ..)| request.as_str()).collect::<String>());
            for (request, _, expected) in requests {
                assert_eq!(client.answer().body, *expected, "{request}");
            }
        }
    }
    client.send("GET /hello HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(whole(&mut client).ends_with("\r\n\r\nhello\n"));
    // Whoever keeps a copy of a client would be the second party that can write to it.
    for (at, (_, path, expected)) in lines.iter().enumerate() {
        let line = gateway.log_line(at + 1);
        assert_eq!((&line["target"], &line["status"]), (&(*path).into(), &200.into()), "{line}");
        assert!(line["bytes_out"].as_u64().is_some_and(|bytes| bytes > expected.len() as u64), "{line}");
        assert_eq!(line["outcome"], if *path == "/answer" { "responded" } else { "returned" }, "{line}");
    }
    let mut client = gateway.client();
    client.get("/refuse?reason=overloaded&retry_after=7");
    let refused = client.answer();
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("7")), "{}", refused.head);
    // A kept connection is whole behind a refusal, too.
    client.get("/return");
    assert_eq!(client.answer().body, "returned\n");
    drop(daemon);
}

/// A daemon for Apache's mod_proxy_fdpass needs no change: what its client sees is the same behind both.
pub fn behind_apache_and_behind_us_is_the_same() {
    if !peers::is_installed("apache2") {
        return;
    }
    let gateway = gateway("fdpass");
    let socket = gateway.path("d.sock");
    // Who connects for Apache: another user, where we are root.
    let own = nix::unistd::geteuid();
    let theirs = if own.is_root() { User::from_name("www-data").unwrap().expect("Debian's").uid } else { own };
    let _daemon = Daemon::start_with(PYTHON, &socket, "fdpass", 1, |command| {
        command.env("BATON_GATEWAY_UIDS", format!("{own},{theirs}"))
    });
    // Apache serves as another user, and finds the socket below its documents, by the request's path.
    let allow = |path: &Path, mode| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    allow(gateway.folder.path(), 0o755);
    allow(&socket, 0o666);
    let everything = "DocumentRoot DIR\n<Location \"/\">\nSetHandler \"proxy:fd://\"\n</Location>";
    let apache = peers::apache(gateway.folder.path(), &["proxy", "proxy_fdpass"], everything);
    // A POST and an old client as well: neither's body nor version is anybody's matter but the daemon's.
    for (method, version, fields, body) in
        [("GET", "1.1", "", ""), ("POST", "1.1", "Content-Length: 5\r\n", "hello"), ("GET", "1.0", "", "")]
    {
        let raw = format!("{method} /d.sock HTTP/{version}\r\nHost: x\r\n{fields}\r\n{body}");
        let [theirs, ours] = [apache.address, gateway.address()].map(|address| {
            let mut client = Client::connect(address);
            client.send(&raw);
            let answer = whole(&mut client);
            check_answer(&answer.replace(&server(&answer), ""), "fdpass", "");
            let own = |line: &&str| !line.starts_with("Date: ") && !line.starts_with("Server: ");
            answer.split_inclusive('\n').filter(own).collect::<String>()
        });
        assert_eq!(theirs, ours, "{raw:?}");
    }
}

/// The line in which Apache names itself, which we do not.
fn server(answer: &str) -> String {
    answer.split_inclusive('\n').find(|line| line.starts_with("Server: ")).unwrap_or("\0").to_owned()
}
