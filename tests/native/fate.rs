//! Who has the client when a daemon says nothing, dies, or breaks its word.

use std::io::Read as _;
use std::os::fd::AsFd as _;

use baton::handoff::native::frame::{Frame, Reason, Refusal};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::native::{Channel, report};
use crate::support::{Client, Gateway, eventually};
use crate::{outcome, start};

fn get(gateway: &Gateway, path: &str) -> Client {
    let mut client = gateway.client();
    client.get(path);
    client
}

#[test]
fn a_daemon_that_says_nothing_in_time_finds_a_dead_socket() {
    let (gateway, scripts) = start(1, "[handoff]\nack_timeout = \"200ms\"");
    let mut client = get(&gateway, "/");
    let channel = &mut scripts[0].accept(1);
    let lent = channel.lent();
    let answer = client.answer();
    assert_eq!((answer.status, answer.header("connection")), (503, Some("close")));
    assert_eq!(client.rest(), "");
    assert_eq!(outcome(&gateway, 1), ("refused".into(), Some(503), 1));
    // It was stopped for a while, and goes on as if nothing had happened.
    channel.take(&lent);
    let late = std::io::Write::write(&mut &lent.client, b"HTTP/1.1 200 OK\r\n\r\n");
    assert!(late.is_err(), "{late:?}");
    // Its credit is free when it has spoken of it to the end.
    let mut next = get(&gateway, "/next");
    let mut none = [0];
    channel.done(lent, report(200, 0));
    let lent = channel.lent();
    assert_eq!(lent.metadata("/request/target"), "/next");
    channel.serve(lent, "next", false);
    assert_eq!(next.answer().body, "next");
    assert_eq!(client.stream.read(&mut none).expect("it has ended"), 0);
    assert_eq!(outcome(&gateway, 2).0, "handed-off");
}

/// Ends a channel in one way, which may be about a client that was taken.
type Break = fn(&mut Channel, u64);

/// The daemon's process lives on, so nobody else may write to the client; it has not been written to, so it is answered.
#[test]
fn a_channel_that_breaks_before_a_word_leaves_the_client_to_the_gateway() {
    let breaks: [(&str, Break); 10] = [
        ("", |channel, _| *channel = Channel::to_nobody()),
        ("a frame that begins with 0x00", |channel, _| channel.send_bytes(&[0; 16], &[]).expect("it is read")),
        ("bytes, which are no header", |channel, _| channel.send_bytes(&[0xB7], &[]).expect("it is read")),
        ("type 99", |channel, _| {
            channel.send_bytes(&[0xB7, 1, 99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]).expect("it is read")
        }),
        ("TAKEN for the handoff 77", |channel, _| channel.send(&Frame::Taken { id: 77 })),
        ("which was taken", |channel, id| channel.send(&Frame::Taken { id })),
        ("which was taken", |channel, id| {
            let refusal = Refusal { reason: Reason::Overloaded, retry_after_s: None, message: None };
            channel.send(&Frame::Refused { id, refusal });
        }),
        ("a second HELLO", |channel, _| channel.send(&crate::support::native::hello(1))),
        ("2 descriptors came", |channel, _| {
            let (one, two) = (channel.socket.try_clone().expect("one"), channel.socket.try_clone().expect("two"));
            channel.send_with(&[Frame::Draining], &[one.as_fd(), two.as_fd()]).expect("it is read");
        }),
        ("HANDOFF from a daemon", |channel, _| {
            let bytes = b"\xB7\x01\x02\x00\x0e\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0{}\0\0\0\0\0\0\0\0";
            let socket = channel.socket.try_clone().expect("one");
            channel.send_bytes(bytes, &[socket.as_fd()]).expect("it is read");
        }),
    ];
    for (name, break_it) in breaks {
        let (gateway, scripts) = start(1, "");
        let mut clients = [get(&gateway, "/0"), get(&gateway, "/1")];
        let mut channel = scripts[0].accept(10);
        let (one, two) = (channel.lent(), channel.lent());
        // The first is the daemon's already.
        let (taken, untaken) = if one.metadata("/request/target") == "/0" { (one, two) } else { (two, one) };
        channel.take(&taken);
        break_it(&mut channel, taken.id);
        assert_eq!(clients[1].answer().status, 503, "{name}");
        taken.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        assert_eq!(clients[0].answer().body, "ok", "{name}");
        if !name.is_empty() {
            gateway.stderr.wait(0, &["the channel was ended", name]);
            assert!(channel.has_ended(), "{name}");
        }
        drop((taken, untaken));
        let log = eventually("both lines", || Some(gateway.log()).filter(|log| log.len() == 2));
        let mut outcomes: Vec<_> = log.iter().map(|line| line["outcome"].as_str().expect("text")).collect();
        outcomes.sort_unstable();
        assert_eq!(outcomes, ["handed-off", "refused"], "{name}");
    }
}

#[test]
fn a_daemon_that_answers_before_it_has_taken_is_not_answered_after() {
    let (gateway, scripts) = start(1, "");
    let mut client = get(&gateway, "/");
    let channel = &mut scripts[0].accept(1);
    let lent = channel.lent();
    lent.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nmy");
    channel.done(lent, report(200, 40));
    assert_eq!(client.answer().body, "my");
    assert_eq!(client.rest(), "");
    assert_eq!(outcome(&gateway, 1), ("handed-off".into(), None, 1));
    gateway.stderr.wait(0, &["the channel was ended", "DONE for the handoff 1, which was not taken"]);

    // Nor one that has written, said nothing, and closed the channel.
    let mut client = get(&gateway, "/");
    let mut channel = scripts[0].accept(1);
    let lent = channel.lent();
    lent.write("half an ans");
    drop(channel);
    drop(lent);
    assert_eq!(client.rest(), "half an ans");
    assert_eq!(outcome(&gateway, 2).0, "unanswered");
}

/// Whoever writes before it takes breaks its word, and is found out by what was written: nobody writes behind it.
#[test]
fn a_daemon_that_writes_and_then_lets_go_is_not_written_behind() {
    let (gateway, scripts) = start(2, "");
    // It says that it does not want the client that it has written to.
    let mut client = get(&gateway, "/");
    let mut channel = scripts[0].accept(1);
    let lent = channel.lent();
    lent.write("half an ans");
    channel.refuse(lent, Reason::Overloaded, None);
    assert_eq!(client.rest(), "half an ans");
    assert_eq!(outcome(&gateway, 1), ("unanswered".into(), None, 1));

    // It ends, with its process.
    let mut process = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().expect("cat");
    let mut client = get(&gateway, "/");
    let mut channel = scripts[1].accept_silently();
    let Frame::Hello(hello) = crate::support::native::hello(1) else { unreachable!("it is one") };
    channel.send(&Frame::Hello(baton::handoff::native::frame::Hello { pid: process.id().into(), ..hello }));
    channel.frame();
    let lent = channel.lent();
    lent.write("half an ans");
    drop(process.stdin.take());
    process.wait().expect("it ends");
    drop(channel);
    drop(lent);
    assert_eq!(client.rest(), "half an ans");
    assert_eq!(outcome(&gateway, 2), ("unanswered".into(), None, 1));
}

/// Whether its process has ended is asked for a moment, and the client's own deadline may come first.
#[test]
fn a_channel_that_breaks_shortly_before_the_deadline_leaves_the_client_to_the_gateway() {
    let (gateway, scripts) = start(1, "[handoff]\nack_timeout = \"150ms\"");
    let mut client = get(&gateway, "/");
    let mut channel = scripts[0].accept(1);
    let lent = channel.lent();
    drop(channel);
    assert_eq!(client.answer().status, 503);
    assert_eq!(outcome(&gateway, 1), ("refused".into(), Some(503), 1));
    drop(lent);
}

/// It asks and asks, and never reads an answer.
#[test]
fn a_daemon_that_does_not_read_what_it_is_sent_loses_its_channel_and_nothing_else() {
    let (gateway, scripts) = start(1, "");
    let mut client = get(&gateway, "/");
    let mut channel = scripts[0].accept(10);
    let lent = channel.lent();
    channel.take(&lent);
    let asks = vec![Frame::Ping(Vec::new()); 1000];
    // Some of the answers fit the socket, some wait, and then it is enough.
    let said = (0..1000).find(|_| channel.send_with(&asks, &[]).is_err());
    assert!(said.is_some(), "a million answers wait");
    gateway.stderr.wait(0, &["the channel was ended", "it does not read what it is sent"]);
    lent.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    assert_eq!(client.answer().body, "ok");
    assert_eq!(outcome(&gateway, 1).0, "handed-off");
    assert_eq!(gateway.status("/answer"), 200);
}

#[test]
fn somebody_elses_socket_does_not_come_back() {
    let (gateway, scripts) = start(1, "");
    let mut client = get(&gateway, "/");
    let channel = &mut scripts[0].accept(1);
    let lent = channel.lent();
    channel.take(&lent);
    let (other, _far) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let frame = Frame::Return { id: lent.id, report: report(200, 0), unread: Vec::new() };
    channel.send_with(&[frame], &[other.as_fd()]).expect("sent");
    assert!(channel.has_ended());
    gateway.stderr.wait(0, &["the channel was ended", "with another socket"]);
    lent.write("it is still mine");
    drop(lent);
    assert_eq!(client.rest(), "it is still mine");
    let line = gateway.log_line(1);
    assert_eq!((&line["outcome"], &line["status"]), (&"handed-off".into(), &json!(null)));
}

#[test]
fn what_is_no_daemon_of_this_protocol_is_said_and_left_alone() {
    let (gateway, scripts) = start(1, "[handoff]\nack_timeout = \"200ms\"\nretries = 0");
    // It listens and says nothing.
    let mut client = get(&gateway, "/");
    let silent = scripts[0].accept_silently();
    assert_eq!(client.answer().status, 503);
    assert!(gateway.log_line(1)["error"].as_str().is_some_and(|error| error.contains("no HELLO in time")));
    // It speaks another version; by then it is left alone for a moment.
    let mut lines = 1;
    let mut client = eventually("it is tried again", || {
        let mut client = get(&gateway, "/");
        lines += 1;
        eventually("its fate", || {
            scripts[0].has_somebody().then_some(()).or_else(|| (gateway.log().len() >= lines).then_some(()))
        });
        if scripts[0].has_somebody() {
            return Some(client);
        }
        assert_eq!(client.answer().status, 503);
        let line = gateway.log_line(lines);
        assert!(line["error"].as_str().is_some_and(|error| error.contains("its channel broke a moment ago")), "{line}");
        None
    });
    let other = scripts[0].accept_silently();
    let Frame::Hello(hello) = crate::support::native::hello(5) else { unreachable!("it is one") };
    other.send(&Frame::Hello(baton::handoff::native::frame::Hello { versions: vec![2], ..hello }));
    assert_eq!(client.answer().status, 503);
    let line = gateway.log_line(lines);
    assert!(line["error"].as_str().is_some_and(|error| error.contains("without a version that is known")), "{line}");
    drop((silent, other));
}

#[test]
fn nobody_is_lent_to_whoever_speaks_before_hello() {
    let (gateway, scripts) = start(1, "[handoff]\nretries = 0");
    let mut client = get(&gateway, "/");
    let rude = scripts[0].accept_silently();
    rude.send_with(&[Frame::Ping(Vec::new()), crate::support::native::hello(1)], &[]).expect("the gateway is there");
    assert_eq!(client.answer().status, 503);
    let line = gateway.log_line(1);
    assert!(line["error"].as_str().is_some_and(|error| error.contains("a word before HELLO")), "{line}");
}

#[test]
fn a_gateway_that_ends_writes_what_it_knows_and_streams_go_on() {
    let (mut gateway, scripts) = start(1, "");
    let mut clients = [get(&gateway, "/0"), get(&gateway, "/1")];
    let channel = &mut scripts[0].accept(10);
    let lent = [channel.lent(), channel.lent()];
    lent.iter().for_each(|lent| channel.take(lent));
    // The second comes back while the gateway ends: nobody reads its next request.
    gateway.signal(Signal::SIGTERM);
    assert_eq!(gateway.wait().code(), Some(0));
    assert!(channel.has_ended());
    for (lent, client) in lent.iter().zip(&mut clients) {
        lent.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        assert_eq!(client.answer().body, "ok");
    }
    let log = gateway.log();
    assert_eq!(log.len(), 2, "{log:#?}");
    assert!(log.iter().all(|line| line["outcome"] == "handed-off" && line["to"] == "chat"), "{log:#?}");
}
