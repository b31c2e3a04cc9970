//! WebSocket through us: a tunnel from 101 on, and not a byte before it.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::support::upstream::Upstream;
use super::support::{Client, Gateway, eventually, unread_at_the_gateway};
use super::{OK, OK_RELAYED, OURS, before, check_closed, check_logged, configuration};

const WANTS: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const SWITCHES: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nSec-Websocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\
                        Via: 1.1 baton\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

fn wants(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: x\r\n{WANTS}\r\n")
}

/// A tunnel that is open.
#[track_caller]
fn tunnel(gateway: &Gateway, upstream: &Upstream, target: &str) -> (Client, Client) {
    let mut client = gateway.client();
    client.send(wants(target));
    let mut peer = upstream.accept();
    peer.head();
    peer.send(SWITCHES);
    assert_eq!(client.head(), SWITCHED);
    (client, peer)
}

#[test]
fn nothing_behind_the_request_reaches_the_upstream_before_101() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "");
    let mut client = gateway.client();
    client.send(wants("/ws") + "early");
    let mut peer = upstream.accept();
    let head = peer.head();
    let kept = "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    assert_eq!(
        head,
        format!("GET /ws HTTP/1.1\r\nhost: x\r\n{kept}{OURS}upgrade: websocket\r\nconnection: upgrade\r\n\r\n")
    );
    assert_eq!(unread_at_the_gateway(&client), Some(5));
    peer.stream.set_read_timeout(Some(Duration::from_millis(200))).expect("a socket");
    assert!(peer.stream.read(&mut [0]).is_err(), "a byte before 101");
    peer.stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
    // What the server says in one breath with it goes on too.
    peer.send(format!("{SWITCHES}hello"));
    assert_eq!(client.head(), SWITCHED);
    assert_eq!(client.take(5), b"hello");
    assert_eq!(peer.take(5), b"early");
    client.send("more");
    assert_eq!(peer.take(4), b"more");
    peer.send("back");
    assert_eq!(client.take(4), b"back");
    drop(client);
    check_closed(&mut peer);
    drop(peer);
    let line = check_logged(&gateway, "/ws", "proxied", 101);
    assert_eq!(line["bytes_out"], SWITCHED.len() as u64 + 9, "{line}");
    assert_eq!(line["bytes_in"], (wants("/ws").len() + 9) as u64, "{line}");
}

#[test]
fn a_refused_upgrade_is_an_ordinary_answer() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "");
    let mut client = gateway.client();
    client.send(wants("/no") + "GET /next HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut peer = upstream.accept();
    peer.head();
    peer.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
    assert_eq!(client.message(), "HTTP/1.1 403 Forbidden\r\nVia: 1.1 baton\r\nContent-Length: 2\r\n\r\nno");
    // What came behind it is a request like any other.
    assert!(peer.head().starts_with("GET /next "));
    peer.send(OK);
    assert_eq!(client.message(), OK_RELAYED);
    client.send(wants("/ok"));
    peer.head();
    peer.send(OK);
    assert_eq!(client.message(), OK_RELAYED);
    check_logged(&gateway, "/no", "proxied", 403);
    check_logged(&gateway, "/ok", "proxied", 200);
}

#[test]
fn a_server_that_switches_to_something_else_is_at_fault() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "");
    for upgrade in ["Upgrade: h2c\r\n", "", "Upgrade: websocket, h2c\r\n"] {
        let mut client = gateway.client();
        client.send(wants("/other"));
        let mut peer = upstream.accept();
        peer.head();
        peer.send(format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n{upgrade}\r\n"));
        assert_eq!(client.answer().status, 502, "{upgrade}");
        check_closed(&mut peer);
    }
}

#[test]
fn only_websocket_is_asked_for_and_only_where_the_route_allows_it() {
    let upstream = Upstream::new();
    let address = format!("\"{}\"", upstream.address());
    let toml = configuration("", "", &address, "")
        + "[[route]]\npath = \"/plain\"\nupgrade = false\ndefault = { proxy = \"app\" }\n";
    let gateway = Gateway::start(&toml);
    for request in [
        wants("/plain"),
        "GET /h2c HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n".to_owned(),
    ] {
        let mut client = gateway.client();
        client.send(&request);
        let mut peer = upstream.accept();
        let head = peer.head();
        assert!(!head.contains("upgrade") && !head.contains("connection:") && !head.contains("http2"), "{head}");
        peer.send(OK.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"));
        assert_eq!(client.message(), OK_RELAYED);
    }
    for framing in ["Content-Length: 3\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"] {
        let all = gateway.ask(&format!("POST /body HTTP/1.1\r\nHost: x\r\n{WANTS}{framing}"));
        assert!(all.starts_with("HTTP/1.1 400 ") && all.contains("\r\nConnection: close\r\n"), "{all}");
    }
    assert!(upstream.try_accept().is_none());
}

#[test]
fn a_tunnel_may_be_silent_for_so_long_and_no_longer() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "tunnel_timeout = \"600ms\"");
    let (mut client, mut peer) = tunnel(&gateway, &upstream, "/t");
    let began = Instant::now();
    for n in 0..4 {
        std::thread::park_timeout(Duration::from_millis(300));
        let (from, to) = if n % 2 == 0 { (&mut client, &mut peer) } else { (&mut peer, &mut client) };
        from.send("a");
        assert_eq!(to.take(1), b"a");
    }
    check_closed(&mut client);
    check_closed(&mut peer);
    assert!(began.elapsed() >= Duration::from_millis(1800), "{:?}", began.elapsed());
    let line = check_logged(&gateway, "/t", "proxied", 101);
    assert!(line["error"].as_str().is_some_and(|error| error.contains("tunnel_timeout")), "{line}");
}

#[test]
fn the_end_of_either_side_is_told_to_the_other() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "");
    let sockets = gateway.sockets();
    // The client ends its side, and still gets what the server has to say.
    let (mut client, mut peer) = tunnel(&gateway, &upstream, "/client");
    client.send("bye");
    client.stream.shutdown(std::net::Shutdown::Write).expect("connected");
    assert_eq!(peer.rest(), "bye");
    peer.send("and bye");
    drop(peer);
    assert_eq!(client.rest(), "and bye");
    // The server.
    let (mut client, mut peer) = tunnel(&gateway, &upstream, "/server");
    peer.send("bye");
    peer.stream.shutdown(std::net::Shutdown::Write).expect("connected");
    assert_eq!(client.rest(), "bye");
    client.send("and bye");
    drop(client);
    assert_eq!(peer.rest(), "and bye");
    // Either, without a word.
    let (client, mut peer) = tunnel(&gateway, &upstream, "/client-reset");
    client.reset();
    check_closed(&mut peer);
    let (mut client, peer) = tunnel(&gateway, &upstream, "/server-reset");
    peer.reset();
    check_closed(&mut client);
    drop(client);
    for target in ["/client", "/server", "/client-reset", "/server-reset"] {
        check_logged(&gateway, target, "proxied", 101);
    }
    eventually("nothing is left open", || (gateway.sockets() <= sockets).then_some(()));
}

/// Both directions at once, each faster than the other end reads.
#[test]
fn twenty_megabytes_go_each_way_at_once() {
    const LENGTH: usize = 20 << 20;
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "");
    let (client, peer) = tunnel(&gateway, &upstream, "/bulk");
    let resident = gateway.resident_bytes();
    let run = |mut end: Client, byte: u8| {
        let mut writer = end.stream.try_clone().expect("a socket");
        let writing = std::thread::spawn(move || {
            for _ in 0..LENGTH >> 16 {
                writer.write_all(&[byte; 1 << 16]).expect("the other end reads");
            }
        });
        std::thread::spawn(move || {
            for _ in 0..LENGTH >> 16 {
                assert!(end.take(1 << 16).iter().all(|got| *got == 1 - byte));
            }
            writing.join().expect("no panic");
            end
        })
    };
    let (one, two) = (run(client, 0), run(peer, 1));
    drop((one.join().expect("no panic"), two.join().expect("no panic")));
    let line = check_logged(&gateway, "/bulk", "proxied", 101);
    assert_eq!(line["bytes_out"], (SWITCHED.len() + LENGTH) as u64, "{line}");
    let grown = gateway.resident_bytes().saturating_sub(resident);
    assert!(grown < 4 << 20, "{} KB", grown >> 10);
}

/// A program that knows the protocol and nothing of us, on both sides: Python's standard library and nothing else.
#[test]
fn frames_are_echoed_through_the_tunnel() {
    const ECHO: &str = r#"
import base64, hashlib, os, socket, struct, sys

def exactly(stream, count):
    data = b""
    while len(data) < count:
        piece = stream.recv(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data

def head(stream):
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        data += exactly(stream, 1)
    return data.decode()

def frame(opcode, payload, masked):
    length = len(payload)
    first = bytes([0x80 | opcode])
    mask = os.urandom(4) if masked else b""
    bit = 0x80 if masked else 0
    if length < 126:
        size = bytes([bit | length])
    elif length < 65536:
        size = bytes([bit | 126]) + struct.pack(">H", length)
    else:
        size = bytes([bit | 127]) + struct.pack(">Q", length)
    if masked:
        payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
    return first + size + mask + payload

def read(stream):
    first, second = exactly(stream, 2)
    length = second & 0x7F
    if length == 126:
        (length,) = struct.unpack(">H", exactly(stream, 2))
    elif length == 127:
        (length,) = struct.unpack(">Q", exactly(stream, 8))
    mask = exactly(stream, 4) if second & 0x80 else None
    payload = exactly(stream, length)
    if mask:
        payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
    return first & 0x0F, payload

def accept(key):
    return base64.b64encode(hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()).decode()

if sys.argv[1] == "server":
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    stream, _ = listener.accept()
    fields = dict(line.lower().split(": ", 1) for line in head(stream).split("\r\n")[1:] if line)
    assert fields["upgrade"] == "websocket" and "upgrade" in fields["connection"], fields
    key = sys.argv[2]
    assert fields["sec-websocket-key"] == key.lower(), fields
    stream.sendall(f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept(key)}\r\n\r\n".encode())
    while True:
        opcode, payload = read(stream)
        if opcode == 8:
            stream.sendall(frame(8, payload, False))
            break
        stream.sendall(frame(10 if opcode == 9 else opcode, payload, False))
    stream.close()
else:
    stream = socket.create_connection(("127.0.0.1", int(sys.argv[3])))
    key = sys.argv[2]
    stream.sendall(f"GET /echo HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode())
    answer = head(stream)
    assert answer.startswith("HTTP/1.1 101 ") and f": {accept(key)}\r\n" in answer, answer
    for opcode, payload in [(1, b"hello"), (2, os.urandom(200)), (2, os.urandom(100000)), (1, b"")]:
        stream.sendall(frame(opcode, payload, True))
        assert read(stream) == (opcode, payload)
    stream.sendall(frame(9, b"ping", True))
    assert read(stream) == (10, b"ping")
    stream.sendall(frame(8, b"\x03\xe8", True))
    assert read(stream) == (8, b"\x03\xe8")
    assert stream.recv(1) == b""
    print("echoed")
"#;
    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    let python = |arguments: &[&str]| {
        let mut command = Command::new("python3");
        command.args(["-c", ECHO]).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        command.spawn().expect("Python is there")
    };
    let mut server = python(&["server", KEY]);
    let lines = super::support::Lines::read(server.stdout.take().expect("piped"));
    let port = lines.wait(0, &[""]);
    let gateway = Gateway::start(&configuration("", "", &format!("\"http://127.0.0.1:{port}\""), ""));
    let client = python(&["client", KEY, &gateway.address().port().to_string()]);
    let output = client.wait_with_output().expect("it ends");
    assert!(output.status.success() && output.stdout == b"echoed\n", "{output:?}");
    assert!(server.wait().expect("it ends").success());
    check_logged(&gateway, "/echo", "proxied", 101);
}
