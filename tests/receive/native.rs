//! The dialect `baton`: what the gateway is told of a program.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd as _;

use baton::handoff::native::frame::{Frame, Memfds, Report};
use baton::handoff::{Outcome, Reason};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::scripted::{self, Gateway as Script};
use crate::support::{Gateway, eventually};
use crate::{ANSWERED, HEAD, Receiver, gateway, gateway_of, get};

/// A receiver of the dialect, and a gateway that says what it is told to.
pub(crate) fn start(options: &[&str], script: &str) -> (Gateway, Receiver, Script) {
    let gateway = gateway();
    let options: Vec<_> = ["--dialect", "baton"].iter().chain(options).copied().collect();
    let receiver = Receiver::start(&gateway, &options, script);
    let script = Script::greet(&gateway.path("d.sock"));
    (gateway, receiver, script)
}

/// What it has open with this gateway while it serves nobody: once somebody was served, what tells of revocations too.
#[track_caller]
pub(crate) fn open(receiver: &Receiver, script: &mut Script) -> usize {
    eventually("both have said HELLO", || script.has_greeting().then_some(()));
    receiver.descriptors() + 2
}

/// Hands one over and waits for its end.
#[track_caller]
pub(crate) fn ask(script: &mut Script, id: u64) -> (String, Report) {
    let mut far = script.hand_over(id, scripted::get());
    script.taken(id);
    let mut answer = String::new();
    far.read_to_string(&mut answer).expect("not reset");
    drop(far);
    (answer, script.done(id))
}

fn answer_of(status: &str) -> String {
    format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
}

#[test]
fn what_was_written_is_reported() {
    let (_gateway, receiver, mut script) = start(&[], &format!("{HEAD} head -c 100000 /dev/zero | tr '\\0' x"));
    let before = open(&receiver, &mut script);
    for id in 1..=20 {
        let (answer, report) = ask(&mut script, id);
        assert_eq!(answer.len(), ANSWERED.len() + 100_000);
        assert_eq!((report.status, report.result, report.message), (None, Outcome::Ok, None));
        assert_eq!(report.bytes_out, answer.len() as u64);
        assert!(report.duration_us > 0);
    }
    assert_eq!(script.greeting().in_flight_max, 100);
    assert_eq!(script.greeting().name, "sh");
    eventually("the descriptors are back", || (receiver.descriptors() <= before).then_some(()));
}

#[test]
fn a_program_that_fails_is_an_error_with_its_status() {
    for (script, message) in [
        ("true", "nothing was written"),
        ("exit 3", "exit status 3"),
        ("kill -9 $$", "signal 9"),
        ("kill -TERM $$", "signal 15"),
    ] {
        let (_gateway, receiver, mut script) = start(&[], script);
        let (answer, report) = ask(&mut script, 1);
        assert_eq!(answer, answer_of("502 Bad Gateway"));
        assert_eq!(
            (report.status, report.result, report.message.as_deref()),
            (Some(502), Outcome::Error, Some(message))
        );
        assert_eq!(report.bytes_out, answer.len() as u64);
        receiver.stderr.wait(1, &["[01JTEST] sh: ", message]);
    }
    let (_gateway, _receiver, mut script) = start(&[], &format!("{HEAD} echo half; exit 3"));
    let (answer, report) = ask(&mut script, 1);
    assert_eq!(answer, format!("{ANSWERED}half\n"));
    assert_eq!((report.status, report.message.as_deref()), (None, Some("exit status 3")));
    assert_eq!((report.result, report.bytes_out), (Outcome::Error, answer.len() as u64));
}

#[test]
fn a_program_that_cannot_be_run_is_answered_for() {
    let gateway = gateway();
    let receiver =
        Receiver::start_with(&gateway, &["--dialect", "baton"], &["/nonexistent/program"], |command| command);
    let mut script = Script::greet(&gateway.path("d.sock"));
    let (answer, report) = ask(&mut script, 1);
    assert_eq!(answer, answer_of("502 Bad Gateway"));
    assert_eq!((report.status, report.result), (Some(502), Outcome::Error));
    assert!(report.message.is_some_and(|message| message.starts_with("cannot run /nonexistent/program")));
    receiver.stderr.wait(1, &["[01JTEST] cannot run /nonexistent/program"]);
}

#[test]
fn beyond_clients_max_the_gateway_keeps_its_client() {
    let (_gateway, _receiver, mut script) = start(&["--clients-max", "2"], &format!("{HEAD} echo here; read word"));
    let mut both = [script.hand_over(1, scripted::get()), script.hand_over(2, scripted::get())];
    let mut taken = [0, 0];
    for id in &mut taken {
        match script.next() {
            Some(Frame::Taken { id: own }) => *id = own,
            other => panic!("{other:?}"),
        }
    }
    taken.sort_unstable();
    assert_eq!((taken, script.greeting().in_flight_max), ([1, 2], 2));
    let mut third = script.hand_over(3, scripted::get());
    assert_eq!(script.refused(3).reason, Reason::Overloaded);
    // Nobody has the other end any more, and nobody has written.
    assert_eq!(third.read_to_string(&mut String::new()).expect("a clean end"), 0);
    both[0].write_all(b"go\n").unwrap();
    both[0].read_to_string(&mut String::new()).expect("whole");
    script.done(1);
    let _fourth = script.hand_over(4, scripted::get());
    script.taken(4);
}

#[test]
fn revoked_it_is_told_to_end_and_then_killed() {
    for (program, is_whole) in [
        // It ends its answer.
        (format!("trap 'echo bye; exit 0' TERM; {HEAD} echo here; while :; do sleep 0.01; done"), true),
        (format!("{HEAD} echo here; sleep 1000"), false),
        // It does not listen.
        (format!("trap '' TERM; {HEAD} echo here; while :; do sleep 0.1; done"), false),
    ] {
        let (_gateway, _receiver, mut script) = start(&[], &program);
        let mut far = script.hand_over(7, scripted::get());
        script.taken(7);
        let mut begun = vec![0; ANSWERED.len() + "here\n".len()];
        far.read_exact(&mut begun).unwrap();
        script.send(&[Frame::Revoke { id: 7, reason: "test".to_owned() }], &[]);
        let mut rest = String::new();
        let end = far.read_to_string(&mut rest);
        assert_eq!((end.is_ok(), &*rest), (is_whole, if is_whole { "bye\n" } else { "" }));
        let report = script.done(7);
        assert_eq!((report.result, report.message.as_deref()), (Outcome::Revoked, Some("revoked")));
        assert_eq!(report.bytes_out, (begun.len() + rest.len()) as u64);
    }
}

#[test]
fn a_client_that_leaves_is_gone() {
    for program in [format!("{HEAD} while echo tick; do sleep 0.01; done"), format!("{HEAD} echo tick; sleep 1000")] {
        let (_gateway, receiver, mut script) = start(&[], &program);
        let before = open(&receiver, &mut script);
        let mut far = script.hand_over(1, scripted::get());
        script.taken(1);
        far.read_exact(&mut vec![0; ANSWERED.len()]).unwrap();
        // What is unread makes it a reset, which a program that says nothing does not have to notice.
        eventually("something is unread", || (far.peek(&mut [0]).unwrap() > 0).then_some(()));
        drop(far);
        assert_eq!(script.done(1).result, Outcome::ClientGone);
        eventually("the descriptors are back", || (receiver.descriptors() <= before).then_some(()));
    }
}

#[test]
fn a_client_that_has_only_ended_its_side_is_served() {
    let (_gateway, _receiver, mut script) = start(&[], &format!("{HEAD} cat; echo end"));
    let mut far = script.hand_over(1, scripted::get());
    far.write_all(b"all").unwrap();
    far.shutdown(Shutdown::Write).unwrap();
    script.taken(1);
    let mut answer = String::new();
    far.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, format!("{ANSWERED}allend\n"));
    assert_eq!(script.done(1).result, Outcome::Ok);
}

/// A client whose body is elsewhere: what the program reads until the end.
fn fed(
    script: &mut Script,
    id: u64,
    body: serde_json::Value,
    preread: &[u8],
    file: Option<&[u8]>,
    sent: &[u8],
) -> String {
    let (client, mut far) = scripted::tcp_client();
    let memfds = Memfds { body: file.is_some(), ..Memfds::default() };
    let file = file.map(|bytes| scripted::memfd(bytes, true));
    let mut descriptors = vec![client.as_fd()];
    descriptors.extend(file.as_ref().map(|file| file.as_fd()));
    let metadata = scripted::with_body("POST", "/", &[], body);
    script.send(&[scripted::handoff_with(id, metadata, b"", preread, memfds)], &descriptors);
    drop(descriptors);
    drop((client, file));
    let mut sender = far.try_clone().unwrap();
    let sent = sent.to_vec();
    // By itself: a pipe and two sockets hold less than this.
    let sending = std::thread::spawn(move || {
        drop(sender.write_all(&sent));
        drop(sender.shutdown(Shutdown::Write));
    });
    script.taken(id);
    let mut answer = String::new();
    far.read_to_string(&mut answer).expect("whole");
    sending.join().unwrap();
    assert_eq!(script.done(id).result, Outcome::Ok);
    answer.strip_prefix(ANSWERED).expect("a head").to_owned()
}

#[test]
fn a_body_that_is_not_on_the_socket_comes_by_a_pipe() {
    let (_gateway, receiver, mut script) = start(&[], &format!("{HEAD} test -p /dev/stdin && echo pipe; cat"));
    let before = open(&receiver, &mut script);
    let large = vec![b'm'; 1 << 20];
    let text = String::from_utf8(large.clone()).unwrap();
    let memfd = json!({"framing": "memfd", "remaining": large.len()});
    assert_eq!(fed(&mut script, 1, memfd, b"", Some(&large), b""), format!("pipe\n{text}"));
    let length = |bytes: usize| json!({"framing": "length", "remaining": bytes});
    // What follows the body is not of it.
    assert_eq!(fed(&mut script, 2, length(5), b"hel", None, b"loNEXT"), "pipe\nhello");
    assert_eq!(fed(&mut script, 3, length(2), b"heNEXT", None, b""), "pipe\nhe");
    assert_eq!(fed(&mut script, 4, length(1 + large.len()), b"m", None, &large), format!("pipe\nm{text}"));
    let chunked = json!({"framing": "chunked"});
    assert_eq!(fed(&mut script, 5, chunked, b"3\r\nhe", None, b"l\r\n2\r\nlo\r\n0\r\n\r\nNEXT"), "pipe\nhello");
    assert_eq!(fed(&mut script, 6, json!({"framing": "none"}), b"NEXT", None, b""), "pipe\n");
    // All of it is on the socket: no pipe, and whoever reads reads as far as the length says.
    assert_eq!(fed(&mut script, 7, length(0), b"", None, b""), "");
    eventually("the descriptors are back", || (receiver.descriptors() <= before).then_some(()));
}

#[test]
fn a_body_that_breaks_off_is_not_taken_for_whole() {
    let program = "while read -r line; do :; done; echo whole >&2";
    for (framing, sent, status, result) in [
        (json!({"framing": "length", "remaining": 10}), &b"lo"[..], "400 Bad Request", Outcome::ClientGone),
        (json!({"framing": "chunked"}), b"zz\r\n", "400 Bad Request", Outcome::Error),
    ] {
        let (_gateway, receiver, mut script) = start(&[], program);
        let (client, mut far) = scripted::tcp_client();
        let is_chunked = framing["framing"] == "chunked";
        let preread: &[u8] = if is_chunked { b"1\r\na\r\n" } else { b"hel" };
        let metadata = scripted::with_body("POST", "/", &[], framing);
        script.send(&[scripted::handoff_with(1, metadata, b"", preread, Memfds::default())], &[client.as_fd()]);
        drop(client);
        script.taken(1);
        far.write_all(sent).unwrap();
        far.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        far.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, answer_of(status));
        assert_eq!(script.done(1).result, result);
        assert!(!receiver.stderr.all().iter().any(|line| line.contains("whole")));
    }
}

#[test]
fn a_client_that_waits_to_be_asked_for_its_body_is_asked() {
    let (_gateway, _receiver, mut script) = start(&[], &format!("read line; {HEAD} echo $line"));
    let body = json!({"framing": "length", "remaining": 6});
    let mut far = script.hand_over(1, scripted::with_body("POST", "/", &[("expect", "100-continue")], body));
    script.taken(1);
    let mut asked = [0; 25];
    far.read_exact(&mut asked).unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
    far.write_all(b"hello\n").unwrap();
    let mut answer = String::new();
    far.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, format!("{ANSWERED}hello\n"));
    // The question is no part of the answer.
    assert_eq!(script.done(1).bytes_out, answer.len() as u64);
}

#[test]
fn the_environment_is_a_cgi_programs() {
    let gateway = gateway();
    let program = format!("{HEAD} env");
    let options = ["--dialect", "baton"];
    let _receiver = Receiver::start_with(&gateway, &options, &["sh", "-c", &program], |command| {
        command.env("HTTP_X_STALE", "stale").env("REQUEST_METHOD", "stale").env("LISTEN_FDS", "1")
    });
    let script = Script::greet(&gateway.path("d.sock"));
    let headers = [("x-own", "1"), ("cookie", "a=1"), ("cookie", "b=2"), ("proxy", "evil")];
    let mut metadata = scripted::request("GET", "/a%20b?c=d", &headers);
    metadata["metadata"] = json!({"role": "chat"});
    let mut far = script.hand_over(1, metadata);
    let mut answer = String::new();
    far.read_to_string(&mut answer).unwrap();
    let value = |name: &str| answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    for (name, expected) in [
        ("HANDOFF_ID", Some("01JTEST")),
        ("HANDOFF_ROLE", Some("chat")),
        ("HANDOFF_DATA", Some("")),
        ("HANDOFF_HEAD_SENT", None),
        ("REQUEST_METHOD", Some("GET")),
        ("REQUEST_URI", Some("/a%20b?c=d")),
        ("QUERY_STRING", Some("c=d")),
        ("SERVER_NAME", Some("example.org")),
        ("REMOTE_ADDR", Some("203.0.113.9")),
        ("HTTP_X_OWN", Some("1")),
        ("HTTP_COOKIE", Some("a=1; b=2")),
        ("HTTP_PROXY", None),
        ("HTTP_X_STALE", None),
        ("LISTEN_FDS", None),
        ("CONTENT_LENGTH", None),
    ] {
        assert_eq!(value(name), expected, "{name}: {answer}");
    }
}

#[test]
fn behind_a_head_of_the_gateway_the_body_is_the_programs() {
    for (program, body, is_clean, result) in [
        ("echo $HANDOFF_HEAD_SENT", "1\n", true, Outcome::Ok),
        ("true", "", true, Outcome::Ok),
        ("exit 3", "", false, Outcome::Error),
    ] {
        let (_gateway, _receiver, mut script) = start(&[], program);
        let mut metadata = scripted::get();
        metadata["response"] = json!({"head_sent": true});
        let mut far = script.hand_over(1, metadata);
        let mut answer = String::new();
        assert_eq!(far.read_to_string(&mut answer).is_ok(), is_clean, "{program}");
        assert_eq!(answer, body);
        script.taken(1);
        let report = script.done(1);
        assert_eq!((report.result, report.status), (result, None));
    }
}

#[test]
fn a_mebibyte_of_data_is_in_the_file_and_one_byte_more_is_refused() {
    let (_gateway, _receiver, mut script) = start(&[], &format!("{HEAD} cat $HANDOFF_DATA_FILE"));
    for (id, bytes) in [(1, 1 << 20), (2, (1 << 20) + 1)] {
        let data = vec![b'd'; bytes];
        let (client, mut far) = scripted::tcp_client();
        let file = scripted::memfd(&data, true);
        let memfds = Memfds { data: true, ..Memfds::default() };
        let frame = scripted::handoff_with(id, scripted::get(), b"", b"", memfds);
        script.send(&[frame], &[client.as_fd(), file.as_fd()]);
        drop((client, file));
        if bytes > 1 << 20 {
            assert_eq!(script.refused(id).reason, Reason::Unsupported);
            continue;
        }
        script.taken(id);
        let mut answer = Vec::new();
        far.read_to_end(&mut answer).unwrap();
        assert!(answer.strip_prefix(ANSWERED.as_bytes()) == Some(&data[..]));
        script.done(id);
    }
}

/// It is not waited for, and not killed: what it started is its own affair. But the client has ended.
#[test]
fn what_a_program_leaves_behind_does_not_keep_its_client() {
    let (_gateway, receiver, mut script) = start(&[], &format!("{HEAD} sleep 1000 & echo $!"));
    let before = open(&receiver, &mut script);
    let (answer, report) = ask(&mut script, 1);
    let left = answer.strip_prefix(ANSWERED).unwrap().trim().parse().unwrap();
    assert_eq!(report.result, Outcome::Ok);
    eventually("the descriptors are back", || (receiver.descriptors() <= before).then_some(()));
    kill(Pid::from_raw(left), Signal::SIGKILL).expect("it runs");
}

#[test]
fn term_drains_the_channel() {
    let (gateway, mut receiver, mut script) = start(&[], &format!("{HEAD} echo here; read word; echo $word"));
    let mut far = script.hand_over(1, scripted::get());
    script.taken(1);
    far.read_exact(&mut vec![0; ANSWERED.len() + 5]).unwrap();
    receiver.signal(Signal::SIGTERM);
    assert_eq!(script.next(), Some(Frame::Draining));
    assert!(!gateway.path("d.sock").exists());
    let _late = script.hand_over(2, scripted::get());
    assert_eq!(script.refused(2).reason, Reason::Draining);
    // It is heard all the time.
    script.send(&[Frame::Ping(b"there?".to_vec())], &[]);
    assert_eq!(script.next(), Some(Frame::Pong(b"there?".to_vec())));
    far.write_all(b"goodbye\n").unwrap();
    let mut answer = String::new();
    far.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "goodbye\n");
    drop(far);
    assert_eq!(script.done(1).result, Outcome::Ok);
    script.ended();
    assert_eq!(receiver.wait().code(), Some(0));
    assert_eq!(fs::read_dir(gateway.path("tmp")).unwrap().count(), 0, "nothing is left of it");
}

#[test]
fn a_drain_that_takes_too_long_ends_with_term_then_kill() {
    for program in ["sleep 1000", "trap '' TERM; while :; do sleep 0.1; done"] {
        let (_gateway, mut receiver, mut script) = start(&["--drain-timeout", "50ms"], program);
        let mut far = script.hand_over(1, scripted::get());
        script.taken(1);
        receiver.signal(Signal::SIGTERM);
        let mut answer = String::new();
        far.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, answer_of("503 Service Unavailable"));
        drop(far);
        assert_eq!(script.next(), Some(Frame::Draining));
        let report = script.done(1);
        assert_eq!((report.result, report.message.as_deref()), (Outcome::Error, Some("stopping")));
        assert_eq!(receiver.wait().code(), Some(0));
    }
}

/// Its channel may end; a client that was taken is its program's.
#[test]
fn a_gateway_that_dies_leaves_the_taken_to_their_programs() {
    let (_gateway, _receiver, mut script) = start(&[], &format!("{HEAD} echo here; read word; echo $word"));
    let mut far = script.hand_over(1, scripted::get());
    script.taken(1);
    far.read_exact(&mut vec![0; ANSWERED.len() + 5]).unwrap();
    drop(script);
    far.write_all(b"still\n").unwrap();
    let mut answer = String::new();
    far.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "still\n");
}

#[test]
fn the_real_gateway_logs_what_the_program_did() {
    let gateway = gateway_of("baton");
    let _receiver = Receiver::start(
        &gateway,
        &["--dialect", "baton"],
        &format!("test $REQUEST_URI != /fails || exit 3; {HEAD} cat; echo end"),
    );
    let mut client = gateway.client();
    client.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello");
    client.stream.shutdown(Shutdown::Write).unwrap();
    let answer = client.rest();
    assert_eq!(answer, format!("{ANSWERED}helloend\n"));
    let failed = gateway.ask(&get("").replace("GET /", "GET /fails"));
    assert_eq!(failed, answer_of("502 Bad Gateway"));
    let line =
        |target: &str| eventually("it is logged", || gateway.log().into_iter().find(|line| line["target"] == target));
    let whole = line("/echo");
    assert_eq!((&whole["outcome"], &whole["bytes_out"]), (&json!("handed-off"), &json!(answer.len())));
    let half = line("/fails");
    assert_eq!((&half["outcome"], &half["status"]), (&json!("handed-off"), &json!(502)));
    assert!(half["error"].as_str().is_some_and(|error| error.contains("exit status 3")), "{half}");
}

/// Whatever the peer does, at whatever moment, one answer and every descriptor back.
#[test]
fn kill_9_of_programs_leaves_nothing_behind() {
    let (_gateway, receiver, mut script) = start(&[], &format!("{HEAD} echo $$; read word"));
    let before = open(&receiver, &mut script);
    for id in 1..=20 {
        let mut far: TcpStream = script.hand_over(id, scripted::get());
        script.taken(id);
        let mut text = String::new();
        while !text.ends_with('\n') || !text.contains("\r\n\r\n") || text.ends_with("\r\n\r\n") {
            let mut byte = [0];
            far.read_exact(&mut byte).unwrap();
            text.push(char::from(byte[0]));
        }
        let pid = text.strip_prefix(ANSWERED).unwrap().trim().parse().unwrap();
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        far.read_to_string(&mut text).unwrap();
        drop(far);
        assert_eq!(script.done(id).message.as_deref(), Some("signal 9"));
    }
    eventually("the descriptors are back", || (receiver.descriptors() <= before).then_some(()));
}
