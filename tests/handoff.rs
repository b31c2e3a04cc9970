//! Handing over, through the real gateway to real daemon processes: what the daemon gets, what the client gets, and what
//! the gateway is left with, whatever dies, hangs or lies in between.

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::{Client, Daemon, Gateway, Lines, eventually, folder, holds, inode_of, is_asleep, patience, waiting_at};

const KINDS: [&str; 2] = ["seqpacket", "stream"];

/// A gateway whose `/hand…` asks the policy that does what the request's fields say, and whose `/hello` answers itself.
/// `gateway` and `handoff` are settings of those tables, `targets` is whole tables.
fn configuration(gateway: &str, handoff: &str, targets: &str) -> String {
    let policy = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/policies/handoff_by_fields.wat");
    format!(
        "[gateway]\n{gateway}\nLISTEN\n[handoff]\n{handoff}\n{targets}\n\
         [policy.by-fields]\nmodule = \"{policy}\"\ndeadline = \"1s\"\ndecision_bytes_max = \"8MiB\"\n\
         [[route]]\npath = \"/hand\"\npolicies = [\"by-fields\"]\n\
         [[route]]\npath = \"/hello\"\ndefault = {{ respond = {{ status = 200, body = \"hello\" }} }}\n"
    )
}

/// One target `chat` on the socket `d.sock`, of that dialect; nothing but the daemon ends a wait.
fn gateway(dialect: &str) -> Gateway {
    let target = format!("[target.chat]\nsockets = [\"DIR/d.sock\"]\ndialect = \"{dialect}\"\n");
    // A head that comes byte by byte, each seen to be taken, takes its time on a busy machine.
    let limits = "[limits]\nhead_timeout = \"60s\"\n";
    Gateway::start(&configuration("", "ack_timeout = \"60s\"", &format!("{limits}{target}")))
}

/// A path below `/hand` that nobody else asks for, so that its line of the access log can be found.
fn fresh() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("/hand/{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

fn request(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n{fields}\r\n")
}

/// A field of the policy, unless it is empty.
fn data_field(data: &str) -> String {
    if data.is_empty() { String::new() } else { format!("x-data: {data}\r\n") }
}

/// The one line of the access log about a path.
#[track_caller]
fn logged(gateway: &Gateway, path: &str) -> Value {
    let line = eventually("the request's line", || gateway.log().into_iter().find(|line| line["target"] == path));
    assert_eq!(gateway.log().iter().filter(|line| line["target"] == path).count(), 1, "logged once");
    line
}

#[track_caller]
fn check_logged(gateway: &Gateway, path: &str, outcome: &str, status: &Value, attempts: u32) -> Value {
    let line = logged(gateway, path);
    assert_eq!((&line["outcome"], &line["status"]), (&json!(outcome), status), "{line}");
    assert_eq!((&line["attempts"], &line["to"]), (&json!(attempts), &json!("chat")), "{line}");
    line
}

/// 503 on a connection that goes on.
#[track_caller]
fn check_refused_alive(client: &mut Client) {
    let answer = client.answer();
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{answer:?}");
    assert_eq!(answer.header("connection"), None, "{answer:?}");
    check_alive(client);
}

#[track_caller]
fn check_alive(client: &mut Client) {
    client.get("/hello");
    assert_eq!(client.answer().body, "hello");
}

/// The daemon's answer, whole, once, and nothing else.
fn from(name: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nfrom {name}\n")
}

/// Descriptors of a gateway at rest: after its first request, with no client.
fn at_rest(gateway: &Gateway) -> usize {
    let mut client = gateway.client();
    check_alive(&mut client);
    let inode = inode_of(&client);
    drop(client);
    eventually("the gateway closes", || (!holds(gateway.child.id(), inode)).then_some(()));
    gateway.descriptors()
}

// What the daemon gets.

#[test]
fn each_dialect_carries_the_data_exactly_or_one_zero_byte() {
    for (dialect, kind) in [("seqpacket", "seqpacket"), ("stream", "stream"), ("auto", "seqpacket"), ("auto", "stream")]
    {
        let gateway = gateway(dialect);
        let before = at_rest(&gateway);
        let daemon = Daemon::start(&gateway.path("d.sock"), kind, "serve", &[]);
        for (count, data) in ["", "{\"user\":1}", "\u{fc}\u{20ac} \\ \" \t%00", "x"].into_iter().enumerate() {
            let path = fresh();
            let mut client = gateway.client();
            client.send(request(&path, &data_field(data)));
            let got = daemon.wait("got", count + 1);
            let wire = if data.is_empty() { "\0" } else { data };
            assert_eq!((&got["data"], &got["descriptors"]), (&json!(wire), &json!(1)), "{dialect} to {kind}");
            assert_eq!((&got["port"], &got["blocking"]), (&json!(client.port()), &json!(false)), "{dialect} to {kind}");
            assert_eq!(client.rest(), from("daemon"), "{dialect} to {kind}");
            check_logged(&gateway, &path, "handed-off", &Value::Null, 1);
        }
        gateway.ledger_is_back_to(before);
    }
}

#[test]
fn long_data_arrives_whole() {
    for kind in KINDS {
        let gateway = gateway(kind);
        let daemon = Daemon::start(&gateway.path("d.sock"), kind, "serve", &[]);
        for (count, bytes) in [128 << 10, 1 << 20].into_iter().enumerate() {
            let answer = gateway.ask(&request(&fresh(), &format!("x-bytes: {bytes}\r\n")));
            // A packet past the kernel's limits is another test's matter.
            if bytes == 128 << 10 || answer == from("daemon") {
                let got = daemon.wait("got", count + 1);
                assert_eq!((&got["bytes"], &got["descriptors"]), (&json!(bytes), &json!(1)), "{kind}");
                assert!(got["data"].as_str().is_some_and(|data| data.bytes().all(|b| b == b'd')));
            } else {
                assert_eq!(kind, "seqpacket");
            }
        }
    }
}

/// A reader that calls recvmsg once is what most daemons of the stream dialect have.
#[test]
fn a_stream_daemon_that_reads_once_sees_the_whole_message() {
    let gateway = gateway("stream");
    let daemon = Daemon::start(&gateway.path("d.sock"), "stream", "serve", &["keep=1"]);
    assert_eq!(gateway.ask(&request(&fresh(), "x-bytes: 16384\r\n")), from("daemon"));
    assert_eq!(daemon.wait("got", 1)["bytes"], 16384);
}

#[test]
fn data_at_the_limit_goes_and_one_byte_past_it_is_answered_500() {
    for kind in KINDS {
        let target = format!("[target.chat]\nsockets = [\"DIR/d.sock\"]\ndialect = \"{kind}\"\n");
        let limits = "[limits]\nhandoff_data_bytes_max = \"1000B\"\n";
        let gateway = Gateway::start(&configuration("", "", &format!("{limits}{target}")));
        let before = at_rest(&gateway);
        let daemon = Daemon::start(&gateway.path("d.sock"), kind, "serve", &[]);
        assert_eq!(gateway.ask(&request(&fresh(), "x-bytes: 1000\r\n")), from("daemon"));

        let path = fresh();
        let mut client = gateway.client();
        client.send(request(&path, "x-bytes: 1001\r\n"));
        assert_eq!(client.answer().status, 500);
        check_alive(&mut client);
        check_logged(&gateway, &path, "refused", &json!(500), 0);
        gateway.stderr.wait(0, &["1001", "1000", "handoff_data_bytes_max"]);
        daemon.wait("got", 1);
        assert_eq!(daemon.events("accepted").len(), 1);
        drop(client);
        gateway.ledger_is_back_to(before);
    }
}

/// What a packet can hold at most depends on net.core.wmem_max and on privileges: it is sent whole, or not at all and said.
#[test]
fn data_past_what_the_socket_holds_is_sent_whole_or_answered_500() {
    let limits = "[limits]\nhandoff_data_bytes_max = \"8MiB\"\n";
    let target = "[target.chat]\nsockets = [\"DIR/d.sock\"]\ndialect = \"seqpacket\"\n";
    let gateway = Gateway::start(&configuration("", "ack_timeout = \"60s\"", &format!("{limits}{target}")));
    let before = at_rest(&gateway);
    let daemon = Daemon::start(&gateway.path("d.sock"), "seqpacket", "serve", &[]);
    let mut sent = 0;
    for bytes in [200_000, 220_000, 500_000, 2_000_000, 5_000_000] {
        let path = fresh();
        let mut client = gateway.client();
        client.send(request(&path, &format!("x-bytes: {bytes}\r\n")));
        let answer = client.until("\r\n\r\n");
        if answer.starts_with("HTTP/1.1 200") && bytes < 5_000_000 {
            sent += 1;
            assert_eq!(daemon.wait("got", sent)["bytes"], bytes);
            continue;
        }
        assert!(answer.starts_with("HTTP/1.1 500") && bytes > 200_000, "{bytes}: {answer}");
        check_logged(&gateway, &path, "refused", &json!(500), 1);
        gateway.stderr.wait(0, &[&bytes.to_string(), "net.core.wmem_max"]);
    }
    eventually("whoever connected has sent all or nothing", || {
        let ended = daemon.events("got").len() + daemon.events("no-descriptor").len();
        (daemon.events("accepted").len() == ended).then_some(())
    });
    gateway.ledger_is_back_to(before);
}

#[test]
fn the_head_goes_along_exactly_as_it_came() {
    for kind in KINDS {
        let gateway = gateway(kind);
        let daemon = Daemon::start(&gateway.path("d.sock"), kind, "serve", &["read=4"]);
        let head = "PATCH /hand/a%2Fb?q=%00&r HTTP/1.1\r\nhOST:  x\t\r\nX-Head:1\r\nX-Twice: a\r\nx-twice:b\r\nContent-Length: 4\r\n\r\n";
        assert_eq!(gateway.ask(&format!("{head}body")), from("daemon"));
        let got = daemon.wait("got", 1);
        assert_eq!((&got["data"], &got["first"]), (&json!(head), &json!("body")));
    }
}

#[test]
fn a_head_and_data_do_not_fit_one_message() {
    let gateway = gateway("seqpacket");
    let daemon = Daemon::start(&gateway.path("d.sock"), "seqpacket", "serve", &[]);
    let path = fresh();
    let mut client = gateway.client();
    client.send(request(&path, "x-head: 1\r\nx-data: 1\r\n"));
    assert_eq!(client.answer().status, 503);
    check_alive(&mut client);
    assert_eq!(logged(&gateway, &path)["outcome"], "policy-error");
    gateway.stderr.wait(0, &["by-fields", "include-head with data"]);
    assert!(daemon.events("accepted").is_empty());
}

#[test]
fn auto_follows_a_daemon_that_changes_its_kind_of_socket() {
    let gateway = gateway("auto");
    for kind in ["seqpacket", "stream", "stream", "seqpacket"] {
        let daemon = Daemon::start(&gateway.path("d.sock"), kind, "serve", &[]);
        let path = fresh();
        assert_eq!(gateway.ask(&request(&path, "")), from("daemon"), "{kind}");
        assert_eq!(daemon.wait("got", 1)["data"], "\0");
        check_logged(&gateway, &path, "handed-off", &Value::Null, 1);
    }
}

// Handing over at any position.

/// Bodies in each framing, each with a pipelined request behind it; the fields that announce it, and the bytes.
const BODIES: [(&str, &str); 5] = [
    ("", "GET /next HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("Content-Length: 11\r\n", "hello worldGET /next HTTP/1.1\r\nHost: x\r\n\r\n"),
    (
        "Transfer-Encoding: chunked\r\nTrailer: X-T\r\n",
        "5;e=\"1\"\r\nhello\r\n0\r\nX-T: 1\r\n\r\nGET /next HTTP/1.1\r\nHost: x\r\n\r\n",
    ),
    ("Expect: 100-continue\r\nContent-Length: 3\r\n", "abcGET /next HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("Content-Length: 1000000\r\n", "the beginning of much that never comes"),
];

#[test]
fn what_follows_the_head_stays_in_the_socket_at_any_position_on_the_connection() {
    for kind in KINDS {
        let gateway = gateway(kind);
        let before = at_rest(&gateway);
        let daemon = Daemon::start(&gateway.path("d.sock"), kind, "serve", &["all=1"]);
        let mut count = 0;
        for (fields, behind) in BODIES {
            for position in [0, 1, 9] {
                for is_pipelined in [false, true] {
                    let mut client = gateway.client();
                    let hello = request("/hello", "");
                    let path = fresh();
                    let last = format!("POST {path} HTTP/1.1\r\nHost: x\r\n{fields}\r\n{behind}");
                    if is_pipelined {
                        client.send(format!("{}{last}", hello.repeat(position)));
                    }
                    for _ in 0..position {
                        if !is_pipelined {
                            client.send(&hello);
                        }
                        assert_eq!(client.answer().body, "hello");
                    }
                    if !is_pipelined {
                        client.send(last);
                    }
                    count += 1;
                    daemon.wait("accepted", count);
                    client.stream.shutdown(Shutdown::Write).unwrap();
                    assert_eq!(client.rest(), from("daemon"), "{fields:?} at {position}");
                    let got = daemon.wait("got", count);
                    let is = (&got["data"], &got["first"], &got["port"]);
                    assert_eq!(is, (&json!("\0"), &json!(behind), &json!(client.port())), "{fields:?} at {position}");
                    check_logged(&gateway, &path, "handed-off", &Value::Null, 1);
                }
            }
        }
        gateway.ledger_is_back_to(before);
    }
}

/// What has come to the gateway's end of a connection and was not read by anybody (`/proc/net/tcp`).
fn unread_at_the_gateway(client: &Client) -> Option<u64> {
    let port = |address: std::net::SocketAddr| format!(":{:04X}", address.port());
    let own = port(client.stream.local_addr().unwrap());
    let peer = port(client.stream.peer_addr().unwrap());
    let table = fs::read_to_string("/proc/net/tcp").expect("Linux");
    let of = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let is_it = fields.len() > 9 && fields[1].ends_with(&peer) && fields[2].ends_with(&own) && fields[9] != "0";
        is_it.then(|| fields[4].split_once(':').and_then(|(_, queue)| u64::from_str_radix(queue, 16).ok()))?
    };
    // The table can be long: thousands of connections wait out their time in it.
    table.lines().filter(|line| line.contains(&own)).find_map(of)
}

/// Each split is one that the gateway has seen: the rest is sent when it has taken the first part of the head, or when the
/// daemon has the client.
#[test]
fn a_request_split_at_any_byte_reaches_the_daemon_as_it_was_sent() {
    let gateway = gateway("auto");
    let before = at_rest(&gateway);
    let daemon = Daemon::start(&gateway.path("d.sock"), "seqpacket", "serve", &["all=1"]);
    let mut count = 0;
    for (at_body, (fields, behind)) in BODIES.into_iter().enumerate() {
        let head = format!("POST /hand HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        let whole = format!("{head}{behind}");
        // The head's parts are the same in all but one.
        let begin = if at_body == 2 { 1 } else { head.len() - 3 };
        for split in begin..whole.len() {
            let mut client = gateway.client();
            client.send(&whole[..split]);
            count += 1;
            if split < head.len() {
                eventually("the head's part is taken", || (unread_at_the_gateway(&client)? == 0).then_some(()));
            } else {
                daemon.wait("accepted", count);
            }
            client.send(&whole[split..]);
            daemon.wait("accepted", count);
            client.stream.shutdown(Shutdown::Write).unwrap();
            assert_eq!(client.rest(), from("daemon"), "{fields:?} split at {split}");
            assert_eq!(daemon.wait("got", count)["first"], behind, "{fields:?} split at {split}");
        }
    }
    gateway.ledger_is_back_to(before);
}

#[test]
fn a_head_that_comes_byte_by_byte_is_followed_by_the_body_untouched() {
    let gateway = gateway("seqpacket");
    let daemon = Daemon::start(&gateway.path("d.sock"), "seqpacket", "serve", &["read=5"]);
    let mut client = gateway.client();
    let head = "POST /hand HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nX-Head: 1\r\n\r\n";
    let (last, bytes) = head.as_bytes().split_last().unwrap();
    for byte in bytes {
        client.send([*byte]);
        eventually("the byte is taken", || (unread_at_the_gateway(&client)? == 0).then_some(()));
    }
    client.send([*last]);
    client.send("hello");
    assert_eq!(client.rest(), from("daemon"));
    let got = daemon.wait("got", 1);
    assert_eq!((&got["data"], &got["first"]), (&json!(head), &json!("hello")));
}

#[test]
fn a_client_that_expects_100_hears_of_it_from_the_daemon_only() {
    for kind in KINDS {
        let gateway = gateway(kind);
        let daemon = Daemon::start(&gateway.path("d.sock"), kind, "serve", &["read=3"]);
        let mut client = gateway.client();
        client.send("POST /hand HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n");
        let inode = inode_of(&client);
        // The daemon has it and waits for the body; nobody has said a word.
        eventually("the gateway lets go", || (!holds(gateway.child.id(), inode)).then_some(()));
        client.stream.set_nonblocking(true).unwrap();
        let silent = client.stream.read(&mut [0]).unwrap_err();
        assert_eq!(silent.kind(), std::io::ErrorKind::WouldBlock);
        client.stream.set_nonblocking(false).unwrap();
        client.send("abc");
        assert_eq!(client.rest(), from("daemon"));
        assert_eq!(daemon.wait("got", 1)["first"], "abc");
    }
}

#[test]
fn http_1_0_clients_are_handed_over_too() {
    for kind in KINDS {
        let gateway = gateway(kind);
        let daemon = Daemon::start(&gateway.path("d.sock"), kind, "serve", &["read=2"]);
        assert_eq!(gateway.ask("POST /hand HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi"), from("daemon"));
        assert_eq!(daemon.wait("got", 1)["first"], "hi");
    }
}

/// A client of a listener on a Unix socket.
fn unix_client(gateway: &Gateway) -> UnixStream {
    let client = UnixStream::connect(gateway.path("u.sock")).unwrap();
    client.set_read_timeout(Some(patience())).unwrap();
    client
}

fn with_unix_listener(kind: &str) -> Gateway {
    let listener = "[[listener]]\nname = \"unix\"\naddress = \"unix:DIR/u.sock\"\n";
    let target = format!("[target.chat]\nsockets = [\"DIR/d.sock\"]\ndialect = \"{kind}\"\n");
    Gateway::start(&configuration("", "ack_timeout = \"60s\"", &format!("{listener}{target}")))
}

#[test]
fn clients_of_a_unix_socket_are_handed_over_too() {
    for kind in KINDS {
        let gateway = with_unix_listener(kind);
        let before = at_rest(&gateway);
        let mut daemon = Daemon::start(&gateway.path("d.sock"), kind, "serve", &["read=5"]);
        for data in ["", "some data"] {
            let path = fresh();
            let mut client = unix_client(&gateway);
            let fields = format!("Content-Length: 5\r\n{}", data_field(data));
            write!(client, "{}hello", request(&path, &fields)).unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, from("daemon"));
            check_logged(&gateway, &path, "handed-off", &Value::Null, 1);
        }
        assert_eq!(daemon.wait("got", 1)["data"], "\0");
        let got = daemon.wait("got", 2);
        assert_eq!((&got["data"], &got["first"]), (&json!("some data"), &json!("hello")));
        daemon.kill();
        let mut client = unix_client(&gateway);
        client.write_all(request(&fresh(), "Connection: close\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        gateway.ledger_is_back_to(before);
    }
}

/// Of a Unix socket it cannot be asked whether somebody has written, and a stream of several bytes may have been read in part.
#[test]
fn a_unix_client_of_unknown_fate_is_closed_unwritten() {
    let gateway = with_unix_listener("stream");
    let before = at_rest(&gateway);
    let mut daemon = Daemon::start(&gateway.path("d.sock"), "stream", "deaf", &[]);
    let path = fresh();
    let mut client = unix_client(&gateway);
    client.write_all(request(&path, "x-data: some data\r\n").as_bytes()).unwrap();
    daemon.wait("accepted", 1);
    eventually("the message is sent", || is_asleep(gateway.child.id()).then_some(()));
    daemon.kill();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "");
    check_logged(&gateway, &path, "unanswered", &Value::Null, 1);
    gateway.ledger_is_back_to(before);
}

// After it.

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
        let target = format!("[target.chat]\nsockets = [\"DIR/d.sock\"]\ndialect = \"{kind}\"\nblocking = true\n");
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

// When the daemon dies.

/// The message was sent, and waits with its connection in the daemon's backlog.
#[track_caller]
fn is_in_the_backlog(gateway: &Gateway) {
    let is_sent = || waiting_at(&gateway.path("d.sock")) > 0 && is_asleep(gateway.child.id());
    eventually("the message is in the backlog", || is_sent().then_some(()));
}

/// Each dialect, with no data (one byte) and with some: whether a closed connection proves that nobody has the client.
const CASES: [(&str, &str, bool); 4] =
    [("seqpacket", "", true), ("seqpacket", "some data", true), ("stream", "", true), ("stream", "some data", false)];

/// A daemon that died with the message unread: the client is answered by us. A stream of several bytes may have been read
/// in part, so its client is sealed and not tried elsewhere.
#[track_caller]
fn check_never_read(gateway: &Gateway, client: &mut Client, path: &str, is_certain: bool) {
    if is_certain {
        check_refused_alive(client);
        check_logged(gateway, path, "refused", &json!(503), 3);
    } else {
        check_sealed(client);
        check_logged(gateway, path, "refused", &json!(503), 1);
    }
}

/// 503, whole and once, and the end.
#[track_caller]
fn check_sealed(client: &mut Client) {
    let answer = client.answer();
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{answer:?}");
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(client.rest(), "");
}

#[test]
fn nobody_listens_the_client_is_answered_503_and_goes_on() {
    for (kind, data, _) in CASES {
        let gateway = gateway(kind);
        let before = at_rest(&gateway);
        let mut client = gateway.client();
        for is_stale in [false, true] {
            if is_stale {
                Daemon::start(&gateway.path("d.sock"), kind, "absent", &[]).kill();
                assert!(gateway.path("d.sock").exists());
            }
            let path = fresh();
            client.send(request(&path, &data_field(data)));
            check_refused_alive(&mut client);
            let line = check_logged(&gateway, &path, "refused", &json!(503), 3);
            assert!(line["error"].as_str().is_some_and(|e| e.starts_with("connect: ")), "{line}");
        }
        drop(client);
        gateway.ledger_is_back_to(before);
    }
}

#[test]
fn killed_with_the_client_in_its_backlog() {
    for (kind, data, is_certain) in CASES {
        let gateway = gateway(kind);
        let before = at_rest(&gateway);
        let mut daemon = Daemon::start(&gateway.path("d.sock"), kind, "absent", &[]);
        let path = fresh();
        let mut client = gateway.client();
        client.send(request(&path, &data_field(data)));
        is_in_the_backlog(&gateway);
        assert!(holds(gateway.child.id(), inode_of(&client)), "it must be able to answer");
        daemon.kill();
        check_never_read(&gateway, &mut client, &path, is_certain);
        drop(client);
        gateway.ledger_is_back_to(before);
    }
}

#[test]
fn killed_after_it_accepted_and_before_it_read() {
    for (kind, data, is_certain) in CASES {
        let gateway = gateway(kind);
        let before = at_rest(&gateway);
        let mut daemon = Daemon::start(&gateway.path("d.sock"), kind, "deaf", &[]);
        let path = fresh();
        let mut client = gateway.client();
        client.send(request(&path, &data_field(data)));
        daemon.wait("accepted", 1);
        eventually("the message is sent", || is_asleep(gateway.child.id()).then_some(()));
        daemon.kill();
        check_never_read(&gateway, &mut client, &path, is_certain);
        drop(client);
        gateway.ledger_is_back_to(before);
    }
}

#[test]
fn dying_at_once_after_accepting_or_closing_unread_leaves_the_client_answered() {
    for (kind, data, is_certain) in CASES {
        for mode in ["die-accepted", "drop"] {
            let gateway = gateway(kind);
            let before = at_rest(&gateway);
            let _daemon = Daemon::start(&gateway.path("d.sock"), kind, mode, &[]);
            let path = fresh();
            let mut client = gateway.client();
            client.send(request(&path, &data_field(data)));
            let answer = client.answer();
            assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
            // It may have closed before the message was sent, which is certain in each dialect.
            if is_certain {
                check_alive(&mut client);
            }
            assert_eq!(logged(&gateway, &path)["outcome"], "refused");
            drop(client);
            gateway.ledger_is_back_to(before);
        }
    }
}

/// Once read, the client is the daemon's whatever happens to it: it sees its connection end and hears nothing from us.
#[test]
fn killed_after_it_read_and_before_it_wrote() {
    for (kind, data, _) in CASES {
        for keep in ["keep=1", "name=x"] {
            let gateway = gateway(kind);
            let before = at_rest(&gateway);
            let mut daemon = Daemon::start(&gateway.path("d.sock"), kind, "hold", &[keep]);
            let path = fresh();
            let mut client = gateway.client();
            client.send(request(&path, &data_field(data)));
            daemon.wait("got", 1);
            daemon.kill();
            assert_eq!(client.rest(), "");
            check_logged(&gateway, &path, "handed-off", &Value::Null, 1);
            gateway.ledger_is_back_to(before);
        }
    }
}

#[test]
fn dying_at_once_after_reading_hands_over_and_nothing_is_said() {
    for (kind, data, _) in CASES {
        let gateway = gateway(kind);
        let before = at_rest(&gateway);
        let _daemon = Daemon::start(&gateway.path("d.sock"), kind, "die-read", &[]);
        let path = fresh();
        let mut client = gateway.client();
        client.send(request(&path, &data_field(data)));
        assert_eq!(client.rest(), "");
        check_logged(&gateway, &path, "handed-off", &Value::Null, 1);
        gateway.ledger_is_back_to(before);
    }
}

#[test]
fn killed_in_the_middle_of_a_stream() {
    for (kind, data, _) in CASES {
        let gateway = gateway(kind);
        let before = at_rest(&gateway);
        let mut daemon = Daemon::start(&gateway.path("d.sock"), kind, "stream", &[]);
        let path = fresh();
        let mut client = gateway.client();
        client.send(request(&path, &data_field(data)));
        let begin = client.until("tick 3\n");
        assert_eq!(begin, from("daemon") + "tick 0\ntick 1\ntick 2\ntick 3\n");
        daemon.kill();
        assert!(client.rest().lines().all(|line| line.starts_with("tick ")));
        check_logged(&gateway, &path, "handed-off", &Value::Null, 1);
        gateway.ledger_is_back_to(before);
    }
}

/// It took the client with the first byte and answers; the gateway sees a message that nobody has read to its end.
#[test]
fn a_stream_daemon_that_reads_one_byte_and_answers_is_the_only_one_that_answers() {
    let target = "[target.chat]\nsockets = [\"DIR/d.sock\"]\ndialect = \"stream\"\n";
    let gateway = Gateway::start(&configuration("", "ack_timeout = \"200ms\"", target));
    let before = at_rest(&gateway);
    let _daemon = Daemon::start(&gateway.path("d.sock"), "stream", "stream", &["short=1", "keep=1"]);
    let path = fresh();
    let mut client = gateway.client();
    client.send(request(&path, "x-data: some data\r\n"));
    client.until("tick 1\n");
    check_logged(&gateway, &path, "unanswered", &Value::Null, 1);
    gateway.ledger_is_back_to(before);
    let more = client.until("tick 20\n");
    assert!(more.lines().all(|line| line.starts_with("tick ")), "{more}");
}

// Which daemon.

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

// A daemon that hangs.

#[test]
fn a_stopped_daemon_costs_its_clients_503_and_nobody_else_anything() {
    for (kind, data, _) in CASES {
        let target = format!("[target.chat]\nsockets = [\"DIR/d.sock\"]\ndialect = \"{kind}\"\n");
        let gateway = Gateway::start(&configuration("workers = 1", "ack_timeout = \"1500ms\"", &target));
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
        let target = format!("[target.chat]\nsockets = [\"DIR/d.sock\"]\ndialect = \"{kind}\"\n");
        let gateway = Gateway::start(&configuration("", "ack_timeout = \"300ms\"", &target));
        let before = at_rest(&gateway);
        let daemon = Daemon::start(&gateway.path("d.sock"), kind, "serve", &[]);
        daemon.stop();
        let path = fresh();
        let mut client = gateway.client();
        client.send(request(&path, &data_field(data)));
        is_in_the_backlog(&gateway);
        // A reset, so that writing to it fails.
        nix::sys::socket::setsockopt(
            &client.stream,
            nix::sys::socket::sockopt::Linger,
            &nix::libc::linger { l_onoff: 1, l_linger: 0 },
        )
        .unwrap();
        drop(client);
        let line = logged(&gateway, &path);
        assert!(["unanswered", "client-gone"].iter().any(|outcome| line["outcome"] == *outcome), "{line}");
        gateway.ledger_is_back_to(before);
        daemon.signal(Signal::SIGCONT);
        daemon.wait("client-gone", 1);
    }
}

// Who may be named.

#[test]
fn a_daemon_of_another_user_gets_nothing() {
    for (kind, data, _) in CASES {
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().expect("has a name");
        let target = |name: &str, uids: &str| {
            format!("[target.{name}]\nsockets = [\"DIR/d.sock\"]\ndialect = \"{kind}\"\nallow_uids = [{uids}]\n")
        };
        let own = format!("54321, {:?}", user.name);
        let gateway = Gateway::start(&configuration("", "", &(target("chat", "54321") + &target("own", &own))));
        let before = at_rest(&gateway);
        let daemon = Daemon::start(&gateway.path("d.sock"), kind, "serve", &[]);
        let path = fresh();
        let mut client = gateway.client();
        client.send(request(&path, &data_field(data)));
        check_refused_alive(&mut client);
        let line = check_logged(&gateway, &path, "refused", &json!(503), 3);
        let error = format!("connect: the daemon runs as uid {}, which is not allowed", user.uid);
        assert_eq!(line["error"], json!(error));
        daemon.wait("accepted", 3);
        // Nothing was sent to it: neither data nor descriptor.
        eventually("it sees only ends", || (daemon.events("no-descriptor").len() == 3).then_some(()));
        assert!(daemon.events("no-descriptor").iter().all(|event| event["data"] == ""));
        drop(client);
        assert_eq!(gateway.ask(&request(&fresh(), "x-target: own\r\n")), from("daemon"));
        gateway.ledger_is_back_to(before);
    }
}

#[test]
fn a_policy_names_paths_below_the_prefixes_and_nothing_else() {
    let folder = folder();
    let dir = folder.path().to_owned();
    fs::create_dir(dir.join("ok")).unwrap();
    fs::create_dir(dir.join("okay")).unwrap();
    fs::create_dir(dir.join("ok/sub")).unwrap();
    let link = |to: &str, at: &str| std::os::unix::fs::symlink(to, dir.join(at)).unwrap();
    link("../out.sock", "ok/out-link.sock");
    link("d.sock", "ok/in-link.sock");
    link("..", "ok/dir-link");
    link("sub", "ok/sub-link");
    link("ok", "prefix-link");
    fs::write(dir.join("ok/file"), "").unwrap();
    let toml = configuration(
        "",
        "allowed_prefixes = [\"DIR/ok/\"]\nretries = 0",
        "[target.chat]\nsockets = [\"DIR/out.sock\"]\n[[listener]]\nname = \"x\"\naddress = \"127.0.0.1:0\"\n\
         [policy.narrow]\nmodule = \"MODULE\"\ntargets = [\"chat\"]\n[[route]]\npath = \"/narrow\"\npolicies = [\"narrow\"]",
    );
    let module = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/policies/handoff_by_fields.wat");
    let gateway = Gateway::start_in(folder, &toml.replace("MODULE", module), |command| command);
    let before = at_rest(&gateway);
    let out = Daemon::start(&dir.join("out.sock"), "seqpacket", "serve", &["name=out"]);
    let beside = Daemon::start(&dir.join("okay/d.sock"), "seqpacket", "serve", &["name=beside"]);
    let inside = Daemon::start(&dir.join("ok/d.sock"), "seqpacket", "serve", &["name=in"]);
    let _stream = Daemon::start(&dir.join("ok/sub/s.sock"), "stream", "serve", &["name=sub"]);

    let at = |rest: &str| format!("{}{rest}", dir.display());
    for (target, name) in [("/ok/d.sock", "in"), ("/ok/sub/s.sock", "sub"), ("/ok//./d.sock", "in")] {
        let path = fresh();
        let target = at(target);
        assert_eq!(gateway.ask(&request(&path, &format!("x-target: {target}\r\n"))), from(name));
        let line = logged(&gateway, &path);
        assert_eq!((&line["to"], &line["attempts"]), (&json!(target), &json!(1)));
    }
    inside.wait("got", 2);

    let long = "/x".repeat(5000);
    let forbidden = [
        at("/out.sock"),
        at("/okay/d.sock"),
        at("/ok/../out.sock"),
        at("/ok/sub/../d.sock"),
        at("/ok/sub/../../out.sock"),
        at("/ok/out-link.sock"),
        at("/ok/in-link.sock"),
        at("/ok/dir-link/out.sock"),
        at("/ok/sub-link/s.sock"),
        at("/prefix-link/d.sock"),
        at("/ok"),
        at("/ok/"),
        at(&format!("/ok{long}")),
        at(&format!("/ok/{}", "x".repeat(300))),
        "ok/d.sock".to_owned(),
        "./ok/d.sock".to_owned(),
        "@abstract".to_owned(),
        "/".to_owned(),
        "/etc/passwd".to_owned(),
        "Chat".to_owned(),
        "chat ".trim_end().to_uppercase(),
        "nobody".to_owned(),
    ];
    let mut client = gateway.client();
    for target in forbidden {
        let path = fresh();
        client.send(request(&path, &format!("x-target: {target}\r\n")));
        let answer = client.answer();
        assert_eq!(answer.status, 403, "{target}");
        assert!(!answer.body.contains("sock"), "nothing of the inside is told: {answer:?}");
        let line = logged(&gateway, &path);
        assert_eq!((&line["outcome"], &line["to"]), (&json!("policy-error"), &json!(target)), "{line}");
    }
    // Allowed, and nobody there: not forbidden but unavailable. A path is taken byte by byte, `%2e` is no dot.
    for target in ["/ok/nothing.sock", "/ok/%2e%2e/out.sock", "/ok/nowhere/d.sock", "/ok/file", "/ok/sub"] {
        client.send(request(&fresh(), &format!("x-target: {}\r\n", at(target))));
        check_refused_alive(&mut client);
    }
    // A policy that is confined to targets names no paths, allowed or not.
    client.send(request("/narrow", &format!("x-target: {}\r\n", at("/ok/d.sock"))));
    assert_eq!(client.answer().status, 403);
    // The request itself names nothing: these are fields of applications' answers.
    client.send(request("/hello", &format!("X-Socket-Handoff: {}\r\nX-Handoff-Data: x\r\n", at("/ok/d.sock"))));
    assert_eq!(client.answer().body, "hello");

    assert_eq!(inside.events("accepted").len(), 2);
    assert!(out.events("accepted").is_empty() && beside.events("accepted").is_empty());
    drop(client);
    assert_eq!(gateway.ask(&request("/narrow", "x-target: chat\r\n")), from("out"));
    gateway.ledger_is_back_to(before);
}

/// The name is changed between the socket and a link to a socket outside, all the time.
#[test]
fn swapping_a_socket_for_a_link_while_handing_over_leads_nowhere_outside() {
    let folder = folder();
    let dir = folder.path().to_owned();
    fs::create_dir(dir.join("ok")).unwrap();
    let toml = configuration("", "allowed_prefixes = [\"DIR/ok/\"]\nretries = 0", "");
    let gateway = Gateway::start_in(folder, &toml, |command| command);
    let before = at_rest(&gateway);
    let out = Daemon::start(&dir.join("out.sock"), "seqpacket", "serve", &["name=out"]);
    let _inside = Daemon::start(&dir.join("ok/real.sock"), "seqpacket", "serve", &["name=in"]);
    fs::hard_link(dir.join("ok/real.sock"), dir.join("ok/d.sock")).unwrap();

    let ends = AtomicBool::new(false);
    let (mut inside, mut forbidden) = (0, 0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let (new, name) = (dir.join("ok/new"), dir.join("ok/d.sock"));
            while !ends.load(Ordering::Relaxed) {
                std::os::unix::fs::symlink("../out.sock", &new).unwrap();
                fs::rename(&new, &name).unwrap();
                fs::hard_link(dir.join("ok/real.sock"), &new).unwrap();
                fs::rename(&new, &name).unwrap();
            }
        });
        let fields = format!("Connection: close\r\nx-target: {}\r\n", dir.join("ok/d.sock").display());
        for _ in 0..400 {
            let answer = gateway.ask(&request("/hand", &fields));
            match &answer[..12] {
                "HTTP/1.1 200" => inside += u32::from(answer == from("in")),
                "HTTP/1.1 403" => forbidden += 1,
                _ => assert!(answer.starts_with("HTTP/1.1 503"), "{answer}"),
            }
        }
        ends.store(true, Ordering::Relaxed);
    });
    assert!(inside > 0 && forbidden > 0, "both were met: {inside}, {forbidden}");
    assert!(out.events("accepted").is_empty());
    gateway.ledger_is_back_to(before);
}

// What is left on the connection when nobody took the client.

#[test]
fn a_refused_request_leaves_its_connection_in_step() {
    let gateway = gateway("seqpacket");
    let before = at_rest(&gateway);
    for (fields, body) in [
        ("", ""),
        ("Content-Length: 5\r\n", "hello"),
        ("Content-Length: 100000\r\n", &"GET /hand ".repeat(10_000)),
        ("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n"),
    ] {
        let path = fresh();
        let mut client = gateway.client();
        client.send(format!("POST {path} HTTP/1.1\r\nHost: x\r\n{fields}\r\n{body}{}", request("/hello", "")));
        let answer = client.answer();
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{fields:?}");
        assert_eq!(answer.header("connection"), None, "{fields:?}");
        assert_eq!(client.answer().body, "hello", "{fields:?}");
        check_alive(&mut client);
        check_logged(&gateway, &path, "refused", &json!(503), 3);
    }
    // Not asked for, or too much: answered, and closed so that the answer arrives.
    for (fields, body) in [
        ("Expect: 100-continue\r\nContent-Length: 5\r\n", ""),
        ("Content-Length: 100000000\r\n", "the beginning"),
        ("Transfer-Encoding: chunked\r\n", "5\r\nhel"),
    ] {
        let mut client = gateway.client();
        client.send(format!("POST {} HTTP/1.1\r\nHost: x\r\n{fields}\r\n{body}", fresh()));
        let answer = client.answer();
        assert_eq!((answer.status, answer.header("connection")), (503, Some("close")), "{fields:?}");
        assert_eq!(client.rest(), "", "{fields:?}");
    }
    gateway.ledger_is_back_to(before);
}

#[test]
fn a_client_that_was_refused_is_handed_over_when_it_asks_again() {
    for kind in KINDS {
        let gateway = gateway(kind);
        let mut client = gateway.client();
        for _ in 0..3 {
            client.send(request(&fresh(), "x-data: 1\r\n"));
            check_refused_alive(&mut client);
        }
        let daemon = Daemon::start(&gateway.path("d.sock"), kind, "serve", &["read=5"]);
        client.send(format!("{}hello", request(&fresh(), "x-data: 1\r\nContent-Length: 5\r\n")));
        assert_eq!(client.rest(), from("daemon"));
        let got = daemon.wait("got", 1);
        assert_eq!((&got["first"], &got["port"]), (&json!("hello"), &json!(client.port())));
    }
}

// The ledger.

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
