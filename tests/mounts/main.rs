//! Mounts, as libwebsockets has them: a prefix of paths that an application behind a Unix socket answers. What the application
//! is asked and what its client gets, behind libwebsockets and behind us, in the order of its documentation.
//!
//! `tests/lws` builds libwebsockets 4.1 from Debian's source, without HTTP/2 (what Debian ships has no reverse proxy at all).
//! Its translation to HTTP/2 is therefore not compared; the gateway's own clients speak HTTP/1.1.
#![cfg(feature = "gateway")]

#[path = "../support/mod.rs"]
mod support;

mod tls;
mod websocket;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use support::{Client, Gateway, Lines, eventually, folder};

/// A process that ends with its handle.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Starts a program that says `ready`, and what follows that.
fn ready(mut command: Command) -> (Process, String) {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("it starts");
    let lines = Lines::read(child.stdout.take().expect("piped"));
    let process = Process(child);
    let said = lines.wait(0, &["ready"]);
    (process, said.trim_start_matches("ready").trim().to_owned())
}

/// The application of the example.
fn app(address: &str, more: &[&Path]) -> (Process, String) {
    let mut command = Command::new("python3");
    command.arg(repository().join("examples/moving-in/libwebsockets/app.py")).arg(address).args(more);
    ready(command)
}

/// libwebsockets with one mount; it ends with this value.
struct Lws {
    _process: Process,
    address: SocketAddr,
}

impl Lws {
    /// `None` where it is not built, and then it says so.
    fn start(mountpoint: &str, origin: &str) -> Option<Self> {
        let program = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("lws/mount");
        if !program.exists() {
            eprintln!(
                "NOT SHOWN: libwebsockets is not built: tests/lws {}",
                program.parent().expect("a folder").display()
            );
            assert!(std::env::var_os("CI").is_none(), "tests/run builds libwebsockets");
            return None;
        }
        // It takes no port of the kernel's choice: it gets one that was free a moment ago, and another where it is not.
        for _ in 0..10 {
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let mut command = Command::new(&program);
            command.args([&address.port().to_string(), mountpoint, origin]);
            let mut process = Process(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts"));
            let serves = eventually("it listens or ends", || {
                let has_ended = process.0.try_wait().unwrap().is_some();
                (has_ended || TcpStream::connect(address).is_ok()).then_some(!has_ended)
            });
            if serves {
                return Some(Self { _process: process, address });
            }
        }
        panic!("libwebsockets does not start");
    }
}

/// A gateway with the configuration of the example, whose `/run` is its folder.
fn gateway() -> Gateway {
    let text = std::fs::read_to_string(repository().join("examples/moving-in/libwebsockets/baton.toml")).unwrap();
    let folder = folder();
    std::fs::copy(repository().join("examples/moving-in/libwebsockets/error.css"), folder.path().join("error.css"))
        .unwrap();
    Gateway::start_in(folder, &text.replace("/run/", "DIR/").replace("127.0.0.1:8080", "127.0.0.1:0"), |command| {
        command
    })
}

/// One request on a connection of its own, and what came until the end or the answer's length.
fn ask(address: SocketAddr, method: &str, target: &str, fields: &str, body: &str) -> (u16, String, String) {
    let mut client = Client::connect(address);
    client.send(format!("{method} {target} HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n{fields}\r\n{body}"));
    let answer = client.rest();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line");
    (status, head.to_owned(), body.to_owned())
}

/// What the application was asked. Of an answer with a length no more is read than that: libwebsockets 4.1 writes the end of
/// chunks behind it.
#[track_caller]
fn asked(address: SocketAddr, method: &str, target: &str, fields: &str, body: &str) -> Value {
    let (status, head, said) = ask(address, method, target, fields, body);
    assert_eq!(status, 200, "{method} {target}: {head}");
    let length = header(&head, "content-length").map_or(said.len(), |length| length.parse().expect("a number"));
    serde_json::from_str(&said[..length]).expect("JSON")
}

fn field<'a>(asked: &'a Value, name: &str) -> Option<&'a str> {
    let fields = asked["fields"].as_array().expect("a list");
    let found = fields.iter().find(|field| field[0].as_str().is_some_and(|own| own.eq_ignore_ascii_case(name)));
    found.and_then(|field| field[1].as_str())
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let lines = head.lines().skip(1).filter_map(|line| line.split_once(": "));
    lines.filter(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
}

#[test]
fn a_mount_begins_at_a_boundary_and_is_replaced_by_the_path_inside() {
    let gateway = gateway();
    let socket = gateway.path("app.sock");
    let (_app, _) = app(socket.to_str().unwrap(), &[]);
    let lws = Lws::start("/app", &format!("+{}:/inside", socket.display()));
    // What libwebsockets 4.1 makes of the same: the mountpoint alone is sent to the one with a slash, and what is escaped in a
    // path is not when it goes on, so that a slash in a name becomes one between two.
    let moved = Err(301);
    for (target, inside, theirs) in [
        ("/app/x?q=1&r=%20", "/inside/x?q=1&r=%20", None),
        ("/app/", "/inside/", Some(Ok("/inside/"))),
        ("/app", "/inside", Some(moved)),
        ("/app?q", "/inside?q", Some(moved)),
        ("/app/x/../y", "/inside/y", Some(Ok("/inside/y"))),
        ("/%61pp/%7Ex", "/inside/~x", Some(Ok("/inside/~x"))),
        ("/app/a%2Fb", "/inside/a%2Fb", Some(Ok("/inside/a/b"))),
    ] {
        assert_eq!(asked(gateway.address(), "GET", target, "", "")["target"], inside, "{target}");
        match (&lws, theirs) {
            (Some(lws), Some(Ok(inside))) => {
                assert_eq!(
                    asked(lws.address, "GET", target, "", "")["target"],
                    inside,
                    "{target} behind libwebsockets"
                );
            }
            (Some(lws), Some(Err(status))) => {
                assert_eq!(ask(lws.address, "GET", target, "", "").0, status, "{target} behind libwebsockets");
            }
            _ => {}
        }
    }
    for (target, status) in [("/application", 404), ("/ap", 404), ("/", 404)] {
        assert_eq!(gateway.status(target), status, "{target}");
        if let Some(lws) = &lws {
            assert_eq!(ask(lws.address, "GET", target, "", "").0, status, "{target} behind libwebsockets");
        }
    }
    // The longest mount wins: a hole answers by itself, and its neighbours are the application's.
    for (target, status) in
        [("/app/private", 403), ("/app/private/x", 403), ("/app/x/../private/", 403), ("/app/privates", 200)]
    {
        assert_eq!(gateway.status(target), status, "{target}");
    }
}

#[test]
fn a_mount_of_one_path_has_nothing_below_it_and_may_lead_to_an_abstract_socket() {
    let name = format!("@baton-{}", std::process::id());
    let (_app, _) = app(&name, &[]);
    let gateway = Gateway::start(&format!(
        "LISTEN\n[upstream.app]\naddress = \"+{name}:/inside\"\n[upstream.plain]\naddress = \"unix:{name}\"\n\
         [[route]]\npath = \"=/app\"\ndefault = {{ proxy = \"app\" }}\n\
         [[route]]\npath = \"/plain\"\ndefault = {{ proxy = \"plain\" }}\n"
    ));
    assert_eq!(asked(gateway.address(), "GET", "/app?q", "", "")["target"], "/inside?q");
    // Without a path inside the target is what the client wrote.
    assert_eq!(asked(gateway.address(), "GET", "/plain/%7ex//y", "", "")["target"], "/plain/%7ex//y");
    assert_eq!(gateway.status("/app/"), 404);
    assert_eq!(gateway.status("/app/x"), 404);
    if let Some(lws) = Lws::start("/app", &format!("+{name}:/inside")) {
        assert_eq!(asked(lws.address, "GET", "/app/x", "", "")["target"], "/inside/x");
    }
}

#[test]
fn every_method_is_kept() {
    let gateway = gateway();
    let socket = gateway.path("app.sock");
    let (_app, _) = app(socket.to_str().unwrap(), &[]);
    for (method, body) in
        [("GET", ""), ("POST", "hello"), ("PUT", "hello"), ("PATCH", "hello"), ("DELETE", ""), ("OPTIONS", "")]
    {
        let fields = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let asked = asked(gateway.address(), method, "/app/x", &fields, body);
        assert_eq!((&asked["method"], &asked["body"]), (&json!(method), &json!(body)));
    }
    let (status, head, body) = ask(gateway.address(), "HEAD", "/app/x", "", "");
    assert_eq!((status, &body[..]), (200, ""));
    let length: usize = header(&head, "content-length").unwrap().parse().unwrap();
    let Some(lws) = Lws::start("/app", &format!("+{}:/inside", socket.display())) else { return };
    // There HEAD is asked for as GET, and the body is sent along; the others are nobody's.
    let (status, head, body) = ask(lws.address, "HEAD", "/app/x", "", "");
    assert!(status == 200 && body.contains("\"GET\""), "{head}\n\n{body}");
    assert_ne!(header(&head, "content-length").unwrap().parse::<usize>().unwrap(), length);
    assert_eq!(ask(lws.address, "OPTIONS", "/app/x", "", "").0, 404);
    assert_eq!(ask(lws.address, "DELETE", "/app/x", "", "").0, 404);
}

#[test]
fn fields_that_are_for_the_application_reach_it_and_its_own_come_back() {
    let gateway = gateway();
    let socket = gateway.path("app.sock");
    let (_app, _) = app(socket.to_str().unwrap(), &[]);
    let lws = Lws::start("/app", &format!("+{}:/inside", socket.display()));
    let fields = "If-None-Match: \"one\"\r\nAccept-Language: de\r\nAccept-Encoding: br\r\nCookie: c=1\r\n\
                  Authorization: Bearer x\r\nCache-Control: no-cache\r\nX-Own: 1\r\nRange: bytes=0-1\r\n";
    let ours = asked(gateway.address(), "GET", "/app/x", fields, "");
    for line in fields.lines() {
        let (name, value) = line.split_once(": ").unwrap();
        assert_eq!(field(&ours, name), Some(value), "{name}");
    }
    assert_eq!(field(&ours, "Host"), Some("example.org"));
    assert_eq!(field(&ours, "X-Forwarded-For"), Some("127.0.0.1"));
    assert_eq!(field(&ours, "Forwarded"), Some("for=127.0.0.1;host=example.org;proto=http"));
    assert_eq!(field(&ours, "Via"), Some("1.1 baton"));
    let (_, head, _) = ask(gateway.address(), "GET", "/app/x", "", "");
    for (name, value) in
        [("etag", "\"one\""), ("set-cookie", "a=1"), ("x-own", "kept"), ("content-type", "application/json")]
    {
        assert_eq!(header(&head, name), Some(value), "{head}");
    }
    let Some(lws) = lws else { return };
    // Whatever reaches the application there reaches it here, with the same value. Of these two the value is another's: the
    // name and port of the listener are put behind Host there.
    let theirs = asked(lws.address, "GET", "/app/x", fields, "");
    for pair in theirs["fields"].as_array().unwrap() {
        let (name, value) = (pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
        if !["host", "connection", "pragma"].contains(&&name.to_ascii_lowercase()[..]) {
            assert_eq!(field(&ours, name), Some(value), "{name}");
        }
    }
    assert_eq!((field(&theirs, "X-Own"), field(&theirs, "Range"), field(&theirs, "Via")), (None, None, None));
    let (_, head, _) = ask(lws.address, "GET", "/app/x", "", "");
    assert_eq!((header(&head, "x-own"), header(&head, "etag")), (None, Some("\"one\"")));
}

#[test]
fn an_application_that_restarts_costs_a_503_and_a_page_in_its_own_style() {
    let gateway = gateway();
    let socket = gateway.path("app.sock");
    let lws = Lws::start("/app", &format!("+{}:/inside", socket.display()));
    let addresses: Vec<_> =
        [Some(gateway.address()), lws.as_ref().map(|lws| lws.address)].into_iter().flatten().collect();
    for round in 0..3 {
        // Down: its socket is gone at first, and then there without a listener.
        for &address in &addresses {
            let (status, head, body) = ask(address, "GET", "/app/x", "", "");
            assert_eq!(status, 503, "{round}: {head}");
            assert!(body.contains("/error.css"), "{body}");
        }
        let (process, _) = app(socket.to_str().unwrap(), &[]);
        for &address in &addresses {
            assert_eq!(asked(address, "GET", "/app/x", "", "")["target"], "/inside/x", "{round}");
        }
        drop(process);
    }
    let (status, head, _) = ask(gateway.address(), "GET", "/app/x", "", "");
    assert_eq!((status, header(&head, "retry-after")), (503, Some("1")));
    // Whoever keeps its connection keeps it, and is served on it again.
    let mut client = gateway.client();
    client.get("/app/x");
    assert_eq!(client.answer().status, 503);
    let (_app, _) = app(socket.to_str().unwrap(), &[]);
    client.get("/app/x");
    assert_eq!(client.answer().status, 200);
    // The page's style sheet is a file of ours.
    client.get("/error.css");
    let style = client.answer();
    assert_eq!((style.status, style.header("content-type")), (200, Some("text/css; charset=utf-8")));
    assert!(style.body.starts_with("body {"), "{style:?}");
}

/// An application that dies with a request in its hands: libwebsockets closes the client then.
#[test]
fn an_application_that_dies_before_its_answer_is_a_502_on_a_connection_that_lives() {
    let gateway = gateway();
    let listener = UnixListener::bind(gateway.path("app.sock")).unwrap();
    let mut client = gateway.client();
    client.get("/app/x");
    let (mut connection, _) = listener.accept().unwrap();
    read_head(&mut connection);
    drop(connection);
    let answer = client.answer();
    assert_eq!(answer.status, 502, "{answer:?}");
    client.get("/app/private");
    assert_eq!(client.answer().status, 403);
}

fn read_head(connection: &mut impl Read) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        connection.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// 64 MB for a client that does not read: the application is made to wait, long before it has written them. Then the client
/// reads, and has them all.
#[test]
fn the_slower_side_sets_the_pace() {
    const LENGTH: usize = 64 << 20;
    let gateway = gateway();
    let listener = UnixListener::bind(gateway.path("app.sock")).unwrap();
    let mut client = gateway.client();
    client.get("/app/large");
    let (mut connection, _) = listener.accept().unwrap();
    read_head(&mut connection);
    let before = gateway.resident_bytes();
    write!(connection, "HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n").unwrap();
    let piece: Vec<u8> = (0..=255).cycle().take(64 << 10).collect();
    let mut written = 0;
    // Nobody takes more for half a second: everything between the two is full.
    connection.set_write_timeout(Some(std::time::Duration::from_millis(500))).unwrap();
    loop {
        match connection.write(&piece[written % piece.len()..]) {
            Ok(count) => written += count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
            Err(error) => panic!("{error}"),
        }
        assert!(written < LENGTH / 2, "the application is not made to wait");
    }
    let held = gateway.resident_bytes().saturating_sub(before);
    assert!(held < 4 << 20, "{held} bytes are held for one client");
    connection.set_write_timeout(None).unwrap();
    let rest = std::thread::spawn(move || {
        while written < LENGTH {
            let at = written % piece.len();
            let end = piece.len().min(at + LENGTH - written);
            written += connection.write(&piece[at..end]).unwrap();
        }
    });
    client.until("\r\n\r\n");
    let mut at = 0;
    while at < LENGTH {
        let bytes = client.take((LENGTH - at).min(1 << 20));
        assert!(bytes.iter().enumerate().all(|(n, &byte)| usize::from(byte) == (at + n) % 256));
        at += bytes.len();
    }
    rest.join().unwrap();
}
