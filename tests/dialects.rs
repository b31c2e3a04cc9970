//! The dialects beside `seqpacket` and `stream`, and heads that the gateway writes, through the real gateway to real daemon
//! processes: what the daemon gets, what the client gets at each way that it can go wrong, and what the log says.

mod support;

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::handing_over::{at_rest, check_alive, check_sealed, fresh, logged};
use support::{
    Client, Daemon, Gateway, eventually, holds, inode_of, is_asleep, patience, unread_at_the_gateway, waiting_at,
};

const DIALECTS: [&str; 4] = ["seqpacket", "stream", "fdpass", "datagram"];
/// Those whose loss the kernel tells of by a reset of the connection.
const CONNECTED: [&str; 3] = ["seqpacket", "stream", "fdpass"];

/// A target for each dialect, called as it is and on a socket of that name; a second of `fdpass`, `other`. `/hand…` does
/// what the request's fields say.
fn configuration(handoff: &str, more: &str) -> String {
    let policy = "POLICIES/handoff_by_fields.wat";
    let target = |name: &str, dialect: &str| {
        format!("[target.{name}]\nsockets = [\"DIR/{name}.sock\"]\ndialect = \"{dialect}\"\n")
    };
    let targets: String = DIALECTS.iter().map(|dialect| target(dialect, dialect)).collect();
    format!(
        "LISTEN\n[[listener]]\nname = \"unix\"\naddress = \"unix:DIR/u.sock\"\n[handoff]\nretries = 0\n{handoff}\n{targets}{}\
         [policy.by-fields]\nmodule = \"{policy}\"\ndeadline = \"1s\"\nbreaker = {{ failures = 0 }}\n{more}\
         [[route]]\npath = \"/hand\"\npolicies = [\"by-fields\"]\n\
         [[route]]\npath = \"/hello\"\ndefault = {{ respond = {{ body = \"hello\" }} }}\n\
         [[route]]\npath = \"/default\"\ndefault = {{ handoff = \"fdpass\" }}\n\
         [[route]]\npath = \"/events\"\ndefault = {{ handoff = \"seqpacket\", response_head = {{ status = 201, \
         headers = {{ Content-Type = \"text/event-stream\" }} }} }}\n\
         [[route]]\npath = \"/first\"\ndefault = {{ handoff = \"fdpass\", response_head = {{ \
         headers = {{ X-By = \"route\" }}, body = \"<ul>\" }} }}\n",
        target("other", "fdpass")
    )
}

/// Nothing but the daemon ends a wait.
fn gateway() -> Gateway {
    Gateway::start(&configuration("ack_timeout = \"60s\"", ""))
}

/// A daemon that nobody wakes up is given up soon.
fn impatient() -> Gateway {
    Gateway::start(&configuration("ack_timeout = \"200ms\"", ""))
}

fn start(gateway: &Gateway, name: &str, kind: &str, mode: &str, options: &[&str]) -> Daemon {
    Daemon::start(&gateway.path(&format!("{name}.sock")), kind, mode, options)
}

fn request(path: &str, target: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\nx-target: {target}\r\n{fields}\r\n")
}

#[track_caller]
fn check_logged(gateway: &Gateway, path: &str, outcome: &str, status: impl Into<Value>) -> Value {
    let line = logged(gateway, path);
    assert_eq!((&line["outcome"], &line["status"]), (&json!(outcome), &status.into()), "{line}");
    line
}

/// Takes the date out of a head that was written by the gateway; it must have one.
#[track_caller]
fn undated(answer: &str) -> String {
    let mut dates = 0;
    let keep = |line: &&str| {
        let is_date = line.starts_with("Date: ") && line.ends_with(" GMT\r\n");
        dates += u32::from(is_date);
        !is_date
    };
    let rest = answer.split_inclusive('\n').filter(keep).collect();
    assert_eq!(dates, 1, "{answer:?}");
    rest
}

/// Everything until a clean end, without the gateway's date.
#[track_caller]
fn whole(client: &mut Client) -> String {
    let mut answer = String::new();
    client.stream.read_to_string(&mut answer).expect("not reset");
    undated(&answer)
}

/// What a head is without anybody's wishes.
const HEAD: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
/// What the policy wishes with `x-status: 202`.
const WISHED: &str = "HTTP/1.1 202 Accepted\r\nX-By: policy\r\nConnection: close\r\n\r\n";

/// A daemon's answer in a dialect where it writes all of it.
const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nfrom daemon\n";

/// The head and a reset.
#[track_caller]
fn check_reset(client: &mut Client, head: &str) {
    assert_eq!(undated(&client.until("\r\n\r\n")), head);
    assert!(client.was_reset(), "a clean end would look like an empty body");
}

/// The message was sent and waits to be read.
#[track_caller]
fn is_waiting(gateway: &Gateway, daemon: &Daemon, target: &str) {
    eventually("the message waits", || {
        let is_there = target == "datagram"
            || waiting_at(&gateway.path(&format!("{target}.sock"))) > 0
            || !daemon.events("accepted").is_empty();
        (is_there && is_asleep(gateway.child.id())).then_some(())
    });
}

// fdpass.

#[test]
fn fdpass_is_one_zero_byte_and_the_head_is_ours() {
    let gateway = gateway();
    let before = at_rest(&gateway);
    let daemon = start(&gateway, "fdpass", "fdpass", "serve", &[]);
    for count in 1..=3 {
        let path = fresh();
        let mut client = gateway.client();
        // From any position on the connection.
        for _ in 1..count {
            check_alive(&mut client);
        }
        client.send(request(&path, "fdpass", ""));
        assert_eq!(whole(&mut client), format!("{HEAD}from daemon\n"));
        let got = daemon.wait("got", count);
        assert_eq!((&got["data"], &got["descriptors"], &got["blocking"]), (&json!("\0"), &json!(1), &json!(false)));
        assert_eq!(got["port"], client.port());
        let line = check_logged(&gateway, &path, "handed-off", 200);
        let head_bytes = HEAD.len() + "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n".len();
        assert_eq!(
            (&line["bytes_out"], &line["attempts"], &line["error"]),
            (&json!(head_bytes), &json!(1), &Value::Null)
        );
    }
    gateway.ledger_is_back_to(before);
}

#[test]
fn a_head_is_the_policys_the_routes_or_the_plain_one() {
    let gateway = gateway();
    let _fdpass = start(&gateway, "fdpass", "fdpass", "serve", &[]);
    let _seqpacket = start(&gateway, "seqpacket", "seqpacket", "serve", &["body=1"]);
    let _stream = start(&gateway, "stream", "stream", "serve", &["body=1"]);
    let _datagram = start(&gateway, "datagram", "datagram", "serve", &["body=1"]);
    for dialect in DIALECTS {
        let path = fresh();
        let mut client = gateway.client();
        client.send(request(&path, dialect, "x-status: 202\r\n"));
        assert_eq!(whole(&mut client), format!("{WISHED}from daemon\n"), "{dialect}");
        check_logged(&gateway, &path, "handed-off", 202);
    }
    let mut client = gateway.client();
    client.get("/default");
    assert_eq!(whole(&mut client), format!("{HEAD}from daemon\n"));
    let mut client = gateway.client();
    client.get("/events");
    let head = "HTTP/1.1 201 Created\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
    assert_eq!(whole(&mut client), format!("{head}from daemon\n"));
    // What a flusher of one's own would have written, in the configuration: fields, and the first bytes of the body.
    let head = "HTTP/1.1 200 OK\r\nX-By: route\r\nConnection: close\r\n\r\n";
    let mut client = gateway.client();
    client.get("/first");
    assert_eq!(whole(&mut client), format!("{head}<ul>from daemon\n"));
    let mut client = gateway.client();
    client.send("HEAD /first HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(whole(&mut client), head);
}

#[test]
fn the_body_in_any_framing_and_what_is_behind_stays_for_the_daemon() {
    let gateway = gateway();
    let daemon = start(&gateway, "fdpass", "fdpass", "serve", &["all=1"]);
    let next = "GET /next HTTP/1.1\r\nHost: x\r\n\r\n";
    let bodies = [
        ("", next.to_owned()),
        ("Content-Length: 5\r\n", format!("hello{next}")),
        ("Transfer-Encoding: chunked\r\n", format!("5;a=b\r\nhello\r\n0\r\nX-T: 1\r\n\r\n{next}")),
        ("Expect: 100-continue\r\nContent-Length: 3\r\n", "abc".to_owned()),
    ];
    for (at, (fields, behind)) in bodies.iter().enumerate() {
        for version in ["1.1", "1.0"] {
            if version == "1.0" && fields.contains("chunked") {
                continue;
            }
            let done = daemon.events("got").len();
            let mut client = gateway.client();
            client.send(format!(
                "POST {} HTTP/{version}\r\nHost: x\r\nx-target: fdpass\r\n{fields}\r\n{behind}",
                fresh()
            ));
            daemon.wait("accepted", done + 1);
            client.stream.shutdown(Shutdown::Write).unwrap();
            assert_eq!(whole(&mut client), format!("{HEAD}from daemon\n"), "body {at}");
            assert_eq!(daemon.wait("got", done + 1)["first"], *behind, "body {at}");
        }
    }
}

/// One client is all that a daemon has ever seen.
#[track_caller]
fn check_only(daemon: &Daemon) {
    daemon.wait("done", 1);
    assert_eq!(daemon.events("got").len(), 1);
    assert!(daemon.events("accepted").len() <= 1 && daemon.events("no-descriptor").is_empty());
}

#[test]
fn first_bytes_of_the_body_stand_between_the_head_and_what_the_daemon_writes() {
    let gateway = gateway();
    let before = at_rest(&gateway);
    for dialect in DIALECTS {
        let body: &[&str] = if dialect == "fdpass" { &[] } else { &["body=1"] };
        let daemon = start(&gateway, dialect, dialect, "serve", body);
        let path = fresh();
        let mut client = gateway.client();
        client.send(request(&path, dialect, "x-status: 202\r\nx-first: <ul>\r\n"));
        assert_eq!(whole(&mut client), format!("{WISHED}<ul>from daemon\n"), "{dialect}");
        drop(client);
        check_logged(&gateway, &path, "handed-off", 202);
        let mut client = gateway.client();
        client.send(request(&fresh(), dialect, "x-status: 202\r\nx-first: <ul>\r\n").replacen("GET", "HEAD", 1));
        assert_eq!(whole(&mut client), WISHED, "an answer to HEAD has no body");
        drop(client);
        check_only(&daemon);
    }
    gateway.ledger_is_back_to(before);
}

#[test]
fn head_is_answered_with_the_head_and_nobody_is_handed_over() {
    let gateway = gateway();
    let before = at_rest(&gateway);
    let fdpass = start(&gateway, "fdpass", "fdpass", "serve", &[]);
    let seqpacket = start(&gateway, "seqpacket", "seqpacket", "serve", &[]);
    let with_head = "HTTP/1.1 201 Created\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
    for (path, fields, head) in [
        ("/default", "", HEAD),
        ("/events", "", with_head),
        ("/hand/a", "x-target: fdpass\r\n", HEAD),
        ("/hand/b", "x-target: seqpacket\r\nx-status: 202\r\n", WISHED),
    ] {
        let mut client = gateway.client();
        // What is behind it cannot reset the connection under the answer.
        client.send(format!("HEAD {path} HTTP/1.1\r\nHost: x\r\n{fields}\r\nGET /hello HTTP/1.1\r\nHost: x\r\n\r\n"));
        assert_eq!(whole(&mut client), head, "{path}");
        drop(client);
        let line = logged(&gateway, path);
        let status: u16 = head[9..12].parse().unwrap();
        assert_eq!((&line["outcome"], &line["status"]), (&json!("responded"), &json!(status)), "{line}");
    }
    // Where the daemon writes the head, HEAD is its matter.
    assert_eq!(gateway.ask("HEAD /hand/c HTTP/1.1\r\nHost: x\r\nx-target: seqpacket\r\n\r\n"), ANSWER);
    assert!(gateway.ask(&request(&fresh(), "fdpass", "")).ends_with("from daemon\n"));
    for daemon in [&fdpass, &seqpacket] {
        check_only(daemon);
    }
    gateway.ledger_is_back_to(before);
}

#[test]
fn parts_that_do_not_fit_are_the_policys_fault_and_nothing_is_written() {
    let gateway = gateway();
    let daemons: Vec<_> = DIALECTS.iter().map(|dialect| start(&gateway, dialect, dialect, "serve", &[])).collect();
    for (target, fields, said) in [
        ("fdpass", "x-data: 1\r\n", "data in the dialect fdpass"),
        ("fdpass", "x-head: 1\r\n", "include-head in the dialect fdpass"),
        ("datagram", "x-data: 1\r\n", "data in the dialect datagram"),
        ("seqpacket", "x-data: 1\r\nx-alternate: fdpass\r\n", "data in the dialect fdpass"),
        ("seqpacket", "x-status: 204\r\n", "a status that has no body"),
        ("fdpass", "x-status: 304\r\n", "a status that has no body"),
        ("fdpass", "x-first: 1\r\n", "response-body without a response-head"),
        ("seqpacket", "x-status: 205\r\n", "a status that has no body"),
        ("fdpass", "x-alternate: seqpacket\r\n", "among alternates that do not"),
        ("stream", "x-alternate: fdpass\r\n", "among alternates that do not"),
    ] {
        let path = fresh();
        let mut client = gateway.client();
        client.send(request(&path, target, fields));
        assert_eq!(client.answer().status, 503, "{target} {fields}");
        check_alive(&mut client);
        let line = check_logged(&gateway, &path, "policy-error", 503);
        assert!(line["error"].as_str().is_some_and(|error| error.contains(said)), "{line}");
    }
    for (daemon, dialect) in daemons.iter().zip(DIALECTS) {
        assert!(gateway.ask(&request(&fresh(), dialect, "")).ends_with("from daemon\n"));
        check_only(daemon);
    }
}

#[test]
fn where_nobody_is_connected_the_client_is_answered_503_and_lives() {
    let gateway = gateway();
    let before = at_rest(&gateway);
    for dialect in DIALECTS {
        for is_stale in [false, true] {
            if is_stale {
                start(&gateway, dialect, dialect, "absent", &[]).kill();
            }
            for fields in ["", "x-status: 202\r\n"] {
                let path = fresh();
                let mut client = gateway.client();
                client.send(request(&path, dialect, fields));
                let answer = client.answer();
                assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{dialect} {answer:?}");
                check_alive(&mut client);
                let line = check_logged(&gateway, &path, "refused", 503);
                assert_eq!(line["attempts"], 1);
            }
        }
    }
    gateway.ledger_is_back_to(before);
}

/// Killed with the client in its backlog, or accepted and unread: the kernel says that it was never read.
#[test]
fn killed_unread_behind_the_head_the_client_is_reset() {
    for dialect in CONNECTED {
        for mode in ["absent", "deaf"] {
            let gateway = gateway();
            let before = at_rest(&gateway);
            let mut daemon = start(&gateway, dialect, dialect, mode, &[]);
            let path = fresh();
            let mut client = gateway.client();
            client.send(request(&path, dialect, "x-status: 202\r\n"));
            is_waiting(&gateway, &daemon, dialect);
            assert!(holds(gateway.child.id(), inode_of(&client)));
            daemon.kill();
            check_reset(&mut client, WISHED);
            let line = check_logged(&gateway, &path, "refused", 202);
            let error = line["error"].as_str().unwrap_or_default();
            assert!(error.contains("closed unread") && error.contains("reset behind"), "{line}");
            drop(client);
            gateway.ledger_is_back_to(before);
        }
    }
}

#[test]
fn closing_unread_sends_the_client_to_the_next_with_one_head() {
    for (mode, alternate) in [("drop", "other"), ("die-accepted", "other")] {
        let gateway = gateway();
        let before = at_rest(&gateway);
        let _first = start(&gateway, "fdpass", "fdpass", mode, &[]);
        let other = start(&gateway, "other", "fdpass", "serve", &["name=other"]);
        let path = fresh();
        let mut client = gateway.client();
        client.send(request(&path, "fdpass", &format!("x-alternate: {alternate}\r\n")));
        assert_eq!(whole(&mut client), format!("{HEAD}from other\n"));
        other.wait("got", 1);
        let line = check_logged(&gateway, &path, "handed-off", 200);
        assert_eq!((&line["to"], &line["attempts"]), (&json!("other"), &json!(2)));
        drop(client);
        gateway.ledger_is_back_to(before);
    }
}

/// With a head of its own each daemon writes the body, whatever its dialect: so they can stand in for each other.
#[test]
fn alternates_of_several_dialects_are_alike_behind_one_head() {
    let gateway = gateway();
    let _first = start(&gateway, "fdpass", "fdpass", "drop", &[]);
    let mut second = start(&gateway, "seqpacket", "seqpacket", "drop", &[]);
    second.kill();
    let datagram = start(&gateway, "datagram", "datagram", "serve", &["body=1"]);
    let path = fresh();
    let mut client = gateway.client();
    let asked = request(&path, "fdpass", "x-status: 202\r\nx-alternate: seqpacket\r\nx-alternate: datagram\r\n");
    client.send(&asked);
    assert_eq!(whole(&mut client), format!("{WISHED}from daemon\n"));
    assert_eq!(datagram.wait("got", 1)["data"], asked);
    assert_eq!(logged(&gateway, &path)["attempts"], 3);
    // None of them: a reset, and the log names the last.
    drop(datagram);
    let path = fresh();
    let mut client = gateway.client();
    client.send(request(&path, "fdpass", "x-status: 202\r\nx-alternate: seqpacket\r\nx-alternate: datagram\r\n"));
    check_reset(&mut client, WISHED);
    assert_eq!(check_logged(&gateway, &path, "refused", 202)["to"], "datagram");
}

#[test]
fn a_stopped_daemons_client_is_reset_behind_a_head_and_dead_when_it_wakes_up() {
    for dialect in DIALECTS {
        let gateway = impatient();
        let before = at_rest(&gateway);
        let daemon = start(&gateway, dialect, dialect, "stream", &["body=1"]);
        daemon.stop();
        let path = fresh();
        let mut client = gateway.client();
        client.send(request(&path, dialect, "x-status: 202\r\n"));
        check_reset(&mut client, WISHED);
        let line = check_logged(&gateway, &path, "refused", 202);
        assert!(line["error"].as_str().is_some_and(|error| error.contains("ack_timeout")), "{line}");
        gateway.ledger_is_back_to(before);
        daemon.signal(Signal::SIGCONT);
        daemon.wait("client-gone", 1);
    }
}

#[test]
fn killed_after_it_read_the_client_is_its_daemons() {
    for dialect in CONNECTED {
        let gateway = gateway();
        let before = at_rest(&gateway);
        let mut daemon = start(&gateway, dialect, dialect, "hold", &[]);
        let path = fresh();
        let mut client = gateway.client();
        client.send(request(&path, dialect, "x-status: 202\r\n"));
        daemon.wait("got", 1);
        check_logged(&gateway, &path, "handed-off", 202);
        gateway.ledger_is_back_to(before);
        daemon.kill();
        // Its end, and no doing of ours.
        assert_eq!(whole(&mut client), WISHED);
    }
}

/// The message outlives its sender: so the head must not be undone by the sender's end.
#[test]
fn killing_the_gateway_leaves_the_client_to_a_daemon_that_has_the_message() {
    for dialect in DIALECTS {
        let mut gateway = gateway();
        let daemon = start(&gateway, dialect, dialect, "serve", &["body=1"]);
        daemon.stop();
        let mut client = gateway.client();
        client.send(request(&fresh(), dialect, "x-status: 202\r\n"));
        let head = client.until("\r\n\r\n");
        is_waiting(&gateway, &daemon, dialect);
        gateway.signal(Signal::SIGKILL);
        gateway.wait();
        daemon.signal(Signal::SIGCONT);
        assert_eq!(undated(&(head + &client.rest())), format!("{WISHED}from daemon\n"), "{dialect}");
    }
}

/// Whoever tells it to end at once does not wait for the daemon: its clients must not see an empty body either.
#[test]
fn a_gateway_that_is_cut_resets_who_waits_behind_a_head() {
    for dialect in CONNECTED {
        let mut gateway = gateway();
        let mut daemon = start(&gateway, dialect, dialect, "serve", &["body=1"]);
        daemon.stop();
        let mut client = gateway.client();
        client.send(request(&fresh(), dialect, "x-status: 202\r\n"));
        assert_eq!(undated(&client.until("\r\n\r\n")), WISHED);
        is_waiting(&gateway, &daemon, dialect);
        eventually("it is cut", || {
            gateway.signal(Signal::SIGTERM);
            gateway.child.try_wait().unwrap()
        });
        daemon.kill();
        assert!(client.was_reset(), "{dialect}: a clean end would look like an empty body");
    }
}

/// Between two daemons nobody but us has the client: dying then must not look like an empty body.
#[test]
fn a_gateway_killed_between_daemons_resets_the_client() {
    let mut gateway = Gateway::start(&configuration("ack_timeout = \"60s\"\nconnect_timeout = \"60s\"", ""));
    let _first = start(&gateway, "fdpass", "fdpass", "drop", &[]);
    let other = start(&gateway, "other", "fdpass", "absent", &["backlog=0"]);
    // Its backlog is full, so the gateway waits to connect.
    let filling = UnixStream::connect(gateway.path("other.sock")).unwrap();
    let mut client = gateway.client();
    client.send(request(&fresh(), "fdpass", "x-alternate: other\r\n"));
    assert_eq!(undated(&client.until("\r\n\r\n")), HEAD);
    gateway.stderr.wait(0, &["not handed over", "target_name=\"fdpass\""]);
    gateway.signal(Signal::SIGKILL);
    gateway.wait();
    assert!(client.was_reset());
    drop((filling, other));
}

#[test]
fn a_client_that_resets_while_its_message_waits_is_said_to_be_gone() {
    for dialect in DIALECTS {
        for fields in ["", "x-status: 202\r\n"] {
            let gateway = impatient();
            let before = at_rest(&gateway);
            let daemon = start(&gateway, dialect, dialect, "serve", &["body=1"]);
            daemon.stop();
            let path = fresh();
            let mut client = gateway.client();
            client.send(request(&path, dialect, fields));
            is_waiting(&gateway, &daemon, dialect);
            client.reset();
            let line = logged(&gateway, &path);
            assert_eq!(line["outcome"], "client-gone", "{dialect} {line}");
            gateway.ledger_is_back_to(before);
            daemon.signal(Signal::SIGCONT);
            daemon.wait("client-gone", 1);
        }
    }
}

/// Asks for large answers, one after the other, and reads none: as many as the gateway could write, at most `count_max`.
fn fill_with_answers(gateway: &Gateway, client: &mut Client, count_max: usize) -> usize {
    let before = gateway.log().len();
    for count in 0..count_max {
        client.get("/big");
        let end = Instant::now() + Duration::from_millis(300);
        while gateway.log().len() == before + count {
            if Instant::now() > end {
                return count;
            }
            thread::park_timeout(Duration::from_millis(1));
        }
    }
    count_max
}

/// Its socket is full of answers that it does not read, so the head finds no room: no daemon is troubled with it.
#[test]
fn a_client_that_reads_nothing_is_given_up_without_a_daemon() {
    let limits = "[limits]\nbody_timeout = \"1s\"\n";
    let body = "b".repeat(64 << 10);
    let big = format!("[[route]]\npath = \"/big\"\ndefault = {{ respond = {{ body = \"{body}\" }} }}\n");
    let gateway = Gateway::start(&configuration("", &format!("{big}{limits}")));
    let before = at_rest(&gateway);
    let daemon = start(&gateway, "fdpass", "fdpass", "serve", &[]);
    let small = || {
        let client = gateway.client();
        nix::sys::socket::setsockopt(&client.stream, nix::sys::socket::sockopt::RcvBuf, &4096).unwrap();
        client
    };
    let mut first = small();
    let room = fill_with_answers(&gateway, &mut first, 1000);
    drop(first);
    eventually("it is given up", || gateway.log().into_iter().find(|line| line["outcome"] == "client-gone"));
    // One answer less leaves too little room to go on.
    let path = fresh();
    let mut client = small();
    assert_eq!(fill_with_answers(&gateway, &mut client, room - 1), room - 1);
    client.send(request(&path, "fdpass", ""));
    let line = check_logged(&gateway, &path, "client-gone", Value::Null);
    assert!(line["error"].as_str().is_some_and(|error| error.contains("did not take the response's head")), "{line}");
    assert_eq!(line["bytes_out"], 0);
    assert!(daemon.events("accepted").is_empty());
    drop(client);
    gateway.ledger_is_back_to(before);
}

#[test]
fn blocking_clients_and_users_are_settled_before_the_head_goes() {
    let target = |name: &str, dialect: &str, more: &str| {
        format!("[target.{name}]\nsockets = [\"DIR/{dialect}.sock\"]\ndialect = \"{dialect}\"\n{more}\n")
    };
    let targets = target("b-fdpass", "fdpass", "blocking = true")
        + &target("b-datagram", "datagram", "blocking = true")
        + &target("foreign", "fdpass", "allow_uids = [54321]");
    let gateway = Gateway::start(&configuration("ack_timeout = \"60s\"", &targets));
    let fdpass = start(&gateway, "fdpass", "fdpass", "serve", &[]);
    let datagram = start(&gateway, "datagram", "datagram", "serve", &[]);
    assert!(gateway.ask(&request(&fresh(), "b-fdpass", "")).ends_with("from daemon\n"));
    assert_eq!(gateway.ask(&request(&fresh(), "b-datagram", "")), ANSWER);
    for daemon in [&fdpass, &datagram] {
        assert_eq!(daemon.wait("got", 1)["blocking"], true);
    }
    let path = fresh();
    let mut client = gateway.client();
    client.send(request(&path, "foreign", ""));
    assert_eq!(client.answer().status, 503);
    check_alive(&mut client);
    check_logged(&gateway, &path, "refused", 503);
}

#[test]
fn a_client_over_a_unix_socket_is_handed_over_and_ends_where_nobody_takes_it() {
    let gateway = gateway();
    let before = at_rest(&gateway);
    let mut daemon = start(&gateway, "fdpass", "fdpass", "serve", &["read=5"]);
    let ask = |path: &str| {
        let mut client = UnixStream::connect(gateway.path("u.sock")).unwrap();
        client.set_read_timeout(Some(patience())).unwrap();
        write!(client, "{}hello", request(path, "fdpass", "Content-Length: 5\r\n")).unwrap();
        client
    };
    let mut answer = String::new();
    ask(&fresh()).read_to_string(&mut answer).unwrap();
    assert_eq!(undated(&answer), format!("{HEAD}from daemon\n"));
    daemon.kill();
    fs::remove_file(gateway.path("fdpass.sock")).unwrap();

    let mut daemon = start(&gateway, "fdpass", "fdpass", "deaf", &[]);
    let path = fresh();
    let mut client = ask(&path);
    daemon.wait("accepted", 1);
    eventually("the message is sent", || is_asleep(gateway.child.id()).then_some(()));
    daemon.kill();
    let mut answer = String::new();
    // The rest of its request is unread, which a Unix socket does reset for.
    let ended = client.read_to_string(&mut answer);
    assert!(ended.is_ok() || ended.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    check_logged(&gateway, &path, "refused", 200);
    drop(client);
    gateway.ledger_is_back_to(before);
}

// datagram.

#[test]
fn a_datagram_is_the_head_as_it_came_and_the_rest_stays_in_the_socket() {
    let gateway = gateway();
    let before = at_rest(&gateway);
    let daemon = start(&gateway, "datagram", "datagram", "serve", &["read=4"]);
    for (count, fields) in ["", "x-head: 1\r\n"].into_iter().enumerate() {
        let path = fresh();
        let head = format!(
            "PATCH {path} HTTP/1.1\r\nhOST:  x\t\r\nX-Target: datagram\r\nX-Twice: a\r\nx-twice:b\r\n{fields}Content-Length: 4\r\n\r\n"
        );
        let mut client = gateway.client();
        check_alive(&mut client);
        client.send(format!("{head}body"));
        assert_eq!(client.rest(), ANSWER);
        let got = daemon.wait("got", count + 1);
        assert_eq!((&got["data"], &got["first"], &got["descriptors"]), (&json!(head), &json!("body"), &json!(1)));
        assert_eq!((&got["port"], &got["blocking"]), (&json!(client.port()), &json!(false)));
        let line = check_logged(&gateway, &path, "handed-off", Value::Null);
        assert_eq!((&line["attempts"], &line["bytes_out"]), (&json!(1), &json!(0)));
    }
    gateway.ledger_is_back_to(before);
}

#[test]
fn a_request_split_at_any_byte_is_one_datagram_and_the_rest() {
    let gateway = gateway();
    let before = at_rest(&gateway);
    let daemon = start(&gateway, "datagram", "datagram", "serve", &["all=1"]);
    let head = "POST /hand HTTP/1.1\r\nHost: x\r\nx-target: datagram\r\nContent-Length: 5\r\n\r\n";
    let whole = format!("{head}helloGET /next HTTP/1.1\r\nHost: x\r\n\r\n");
    for split in 1..whole.len() {
        let mut client = gateway.client();
        client.send(&whole[..split]);
        if split < head.len() {
            eventually("the head's part is taken", || (unread_at_the_gateway(&client)? == 0).then_some(()));
        }
        client.send(&whole[split..]);
        client.stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.rest(), ANSWER, "split at {split}");
        let got = daemon.wait("got", split);
        assert_eq!((&got["data"], &got["first"]), (&json!(head), &json!(&whole[head.len()..])), "split at {split}");
    }
    gateway.ledger_is_back_to(before);
}

#[test]
fn the_longest_head_is_a_datagram_too_and_one_past_the_datas_limit_is_500() {
    let limits = "[limits]\nhead_bytes_max = \"1MiB\"\nhandoff_data_bytes_max = \"1000000B\"\n";
    let gateway = Gateway::start(&configuration("ack_timeout = \"60s\"", limits));
    let daemon = start(&gateway, "datagram", "datagram", "serve", &[]);
    for (bytes, status) in [(1_000_000, 200), (1_000_001, 500)] {
        let path = fresh();
        let rest = request(&path, "datagram", "x-fill: \r\n").len();
        let asked = request(&path, "datagram", &format!("x-fill: {}\r\n", "f".repeat(bytes - rest)));
        assert_eq!(asked.len(), bytes);
        let mut client = gateway.client();
        let mut sending = client.stream.try_clone().unwrap();
        let sent = thread::spawn(move || sending.write_all(asked.as_bytes()));
        assert!(client.until("\r\n\r\n").starts_with(&format!("HTTP/1.1 {status}")), "{bytes}");
        sent.join().unwrap().unwrap();
        let status = if status == 200 { Value::Null } else { json!(status) };
        check_logged(&gateway, &path, if status.is_null() { "handed-off" } else { "refused" }, status);
    }
    assert_eq!(daemon.wait("got", 1)["bytes"], 1_000_000);
    assert_eq!(daemon.events("got").len(), 1);
    gateway.stderr.wait(0, &["1000001", "1000000", "handoff_data_bytes_max"]);
}

/// The kernel does not say whether a datagram was read or destroyed with its receiver: nobody has written, so we may.
#[test]
fn a_receiver_killed_with_the_datagram_unread_leaves_its_client_sealed() {
    let gateway = gateway();
    let before = at_rest(&gateway);
    let mut daemon = start(&gateway, "datagram", "datagram", "absent", &[]);
    let path = fresh();
    let mut client = gateway.client();
    client.send(request(&path, "datagram", "x-alternate: seqpacket\r\n"));
    is_waiting(&gateway, &daemon, "datagram");
    daemon.kill();
    check_sealed(&mut client);
    assert_eq!(check_logged(&gateway, &path, "refused", 503)["attempts"], 1);
    drop(client);
    gateway.ledger_is_back_to(before);
}

#[test]
fn a_stopped_receivers_client_is_sealed_and_dead_when_it_wakes_up() {
    let gateway = impatient();
    let before = at_rest(&gateway);
    let daemon = start(&gateway, "datagram", "datagram", "stream", &[]);
    daemon.stop();
    let path = fresh();
    let mut client = gateway.client();
    client.send(request(&path, "datagram", ""));
    check_sealed(&mut client);
    check_logged(&gateway, &path, "refused", 503);
    daemon.signal(Signal::SIGCONT);
    daemon.wait("client-gone", 1);
    drop(client);
    gateway.ledger_is_back_to(before);
}

#[test]
fn a_receiver_that_wakes_up_in_time_is_the_only_one_that_answers() {
    let gateway = gateway();
    let daemon = start(&gateway, "datagram", "datagram", "serve", &[]);
    daemon.stop();
    let path = fresh();
    let mut client = gateway.client();
    client.send(request(&path, "datagram", ""));
    is_waiting(&gateway, &daemon, "datagram");
    daemon.signal(Signal::SIGCONT);
    assert_eq!(client.rest(), ANSWER);
    check_logged(&gateway, &path, "handed-off", Value::Null);
}

#[test]
fn a_receiver_killed_after_it_read_keeps_its_client_to_the_end() {
    let gateway = gateway();
    let before = at_rest(&gateway);
    let mut daemon = start(&gateway, "datagram", "datagram", "stream", &[]);
    let path = fresh();
    let mut client = gateway.client();
    client.send(request(&path, "datagram", ""));
    client.until("tick 3\n");
    check_logged(&gateway, &path, "handed-off", Value::Null);
    gateway.ledger_is_back_to(before);
    daemon.kill();
    assert!(client.rest().lines().all(|line| line.starts_with("tick ")));
}

/// Whether it was read cannot be known, once its receiver is dead; either way the client has one answer at most, and the log
/// says which.
#[test]
fn a_receiver_that_dies_at_once_after_reading_leaves_one_answer_at_most() {
    let gateway = gateway();
    let before = at_rest(&gateway);
    let _daemon = start(&gateway, "datagram", "datagram", "die-read", &[]);
    let path = fresh();
    let mut client = gateway.client();
    client.send(request(&path, "datagram", ""));
    let heard = client.rest();
    let line = logged(&gateway, &path);
    match line["outcome"].as_str() {
        Some("handed-off") => assert_eq!(heard, ""),
        Some("refused") => assert!(heard.starts_with("HTTP/1.1 503") && heard.matches("HTTP/1.1").count() == 1),
        _ => panic!("{line}"),
    }
    drop(client);
    gateway.ledger_is_back_to(before);
}

/// Fills a datagram socket's queue with what is no handoff.
fn fill(path: &Path) -> Vec<UnixDatagram> {
    let mut senders = Vec::new();
    loop {
        let sender = UnixDatagram::unbound().unwrap();
        sender.set_nonblocking(true).unwrap();
        sender.connect(path).unwrap();
        match sender.send(b"x") {
            Ok(_) => senders.push(sender),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                return senders;
            }
        }
    }
}

#[test]
fn a_full_queue_is_waited_for_and_then_passed_over() {
    let gateway = Gateway::start(&configuration("send_timeout = \"100ms\"\nack_timeout = \"60s\"", ""));
    let before = at_rest(&gateway);
    let daemon = start(&gateway, "datagram", "datagram", "serve", &[]);
    let _seqpacket = start(&gateway, "seqpacket", "seqpacket", "serve", &[]);
    daemon.stop();
    let others = fill(&gateway.path("datagram.sock"));
    let path = fresh();
    let mut client = gateway.client();
    client.send(request(&path, "datagram", "x-alternate: seqpacket\r\n"));
    assert_eq!(client.rest(), ANSWER);
    let line = check_logged(&gateway, &path, "handed-off", Value::Null);
    assert_eq!((&line["to"], &line["attempts"]), (&json!("seqpacket"), &json!(2)));
    assert!(line["handoff_us"].as_u64().is_some_and(|us| us >= 100_000), "{line}");
    // With room again it takes clients again.
    daemon.signal(Signal::SIGCONT);
    daemon.wait("no-descriptor", others.len());
    assert_eq!(gateway.ask(&request(&fresh(), "datagram", "")), ANSWER);
    drop(client);
    gateway.ledger_is_back_to(before);
}

// All of them.

#[test]
fn hundreds_of_each_leave_nothing_open() {
    let gateway = gateway();
    let before = at_rest(&gateway);
    let daemons: Vec<_> = DIALECTS.iter().map(|dialect| start(&gateway, dialect, dialect, "serve", &[])).collect();
    let _dropping = start(&gateway, "other", "fdpass", "drop", &[]);
    for _ in 0..300 {
        for dialect in DIALECTS {
            assert!(gateway.ask(&request("/hand", dialect, "")).ends_with("from daemon\n"));
        }
        // Refused behind the head.
        gateway.ask(&request("/hand", "other", ""));
    }
    for daemon in &daemons {
        daemon.wait("got", 300);
        assert_eq!(daemon.events("got").len(), 300);
    }
    gateway.ledger_is_back_to(before);
}
