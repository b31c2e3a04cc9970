//! How many a daemon can bear, who waits, and who is asked instead.

use std::time::{Duration, Instant};

use baton::handoff::native::frame::{Frame, Load, Reason};

use crate::support::native::{Channel, Script, hello, report};
use crate::support::{Client, Gateway, eventually};
use crate::{admin, outcome, start};

/// The figure of a family, of the first line that has these words.
fn figure(gateway: &Gateway, words: &[&str]) -> Option<String> {
    let (_, text) = admin(&gateway.path("admin.sock"), "GET", "/metrics");
    let line =
        text.lines().filter(|line| !line.starts_with('#')).find(|line| words.iter().all(|word| line.contains(word)))?;
    line.rsplit_once(' ').map(|(_, value)| value.to_owned())
}

fn get(gateway: &Gateway, path: &str) -> Client {
    let mut client = gateway.client();
    client.get(path);
    client
}

#[test]
fn never_more_are_in_flight_than_the_daemon_said_and_the_next_one_waits_for_its_turn() {
    let (gateway, scripts) = start(1, "queue_timeout = \"30s\"");
    let mut first = get(&gateway, "/0");
    let channel = &mut scripts[0].accept(2);
    let one = channel.lent();
    let mut second = get(&gateway, "/1");
    let other = channel.lent();
    let mut waiting: Vec<_> = (2..5)
        .map(|n| {
            let client = get(&gateway, &format!("/{n}"));
            let words = ["baton_gateway_target_waiting{", "chat"];
            eventually("it waits", || (figure(&gateway, &words)? == (n - 1).to_string()).then_some(()));
            client
        })
        .collect();
    assert_eq!(figure(&gateway, &["target_in_flight", "chat/0"]).as_deref(), Some("2"));
    // Taken is still in flight.
    channel.take(&one);
    channel.send(&Frame::Ping(b"are you there".to_vec()));
    assert_eq!(channel.frame().0, Frame::Pong(b"are you there".to_vec()), "nobody else was lent before it");
    channel.serve_taken(one);
    assert_eq!(first.answer().body, "taken");
    // Who came first is served first: by whichever way a credit comes free.
    let third = channel.lent();
    assert_eq!(third.metadata("/request/target"), "/2");
    channel.refuse(other, Reason::Overloaded, Some(7));
    let answer = second.answer();
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("7")));
    let fourth = channel.lent();
    assert_eq!(fourth.metadata("/request/target"), "/3");
    channel.serve(third, "third", true);
    let fifth = channel.lent();
    assert_eq!(fifth.metadata("/request/target"), "/4");
    channel.serve(fourth, "fourth", false);
    channel.serve(fifth, "fifth", false);
    for (client, body) in waiting.iter_mut().zip(["third", "fourth", "fifth"]) {
        assert_eq!(client.answer().body, body);
    }
    eventually("nobody is in flight", || (figure(&gateway, &["target_in_flight", "chat/0"])? == "0").then_some(()));
    assert_eq!(figure(&gateway, &["target_waiting{"]).as_deref(), Some("0"));
    let counters =
        || ["taken_total", "refused_total", "returned_total"].map(|name| figure(&gateway, &[name, "chat/0"]));
    eventually("all are counted", || {
        (counters().map(Option::unwrap_or_default) == ["4", "1", "1"].map(str::to_owned)).then_some(())
    });
}

impl Channel {
    fn serve_taken(&self, lent: crate::support::native::Lent) {
        lent.write("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ntaken");
        self.done(lent, crate::support::native::report(200, 43));
    }
}

#[test]
fn who_waits_too_long_or_behind_too_many_is_answered() {
    let (gateway, scripts) = start(1, "queue_timeout = \"300ms\"\nqueue_max = 2");
    let mut first = get(&gateway, "/");
    let channel = &mut scripts[0].accept(1);
    let one = channel.lent();
    channel.take(&one);
    let began = Instant::now();
    let mut waiting = [get(&gateway, "/"), get(&gateway, "/")];
    eventually("two wait", || (figure(&gateway, &["target_waiting{"])? == "2").then_some(()));
    // One past queue_max.
    let answer = get(&gateway, "/").answer();
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    assert!(gateway.log_line(1)["error"].as_str().is_some_and(|error| error.ends_with("(queue_max)")));
    for client in &mut waiting {
        assert_eq!(client.answer().status, 503);
    }
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
    let line = gateway.log_line(3);
    assert!(line["error"].as_str().is_some_and(|error| error.ends_with("(queue_timeout)")), "{line}");
    assert_eq!(outcome(&gateway, 3), ("refused".into(), Some(503), 0));
    channel.serve_taken(one);
    assert_eq!(first.answer().body, "taken");
}

#[test]
fn who_waits_for_a_daemon_that_ends_or_drains_goes_to_its_successor() {
    let (gateway, scripts) = start(1, "queue_timeout = \"60s\"");
    for is_draining in [false, true] {
        let mut first = get(&gateway, "/first");
        let mut channel = scripts[0].accept(1);
        let lent = channel.lent();
        channel.take(&lent);
        let mut second = get(&gateway, "/second");
        eventually("it waits", || (figure(&gateway, &["target_waiting{"])? == "1").then_some(()));
        let old = if is_draining {
            channel.send(&Frame::Draining);
            Some(channel)
        } else {
            drop(channel);
            None
        };
        let began = Instant::now();
        let mut successor = scripts[0].accept(1);
        let other = successor.lent();
        assert_eq!(other.metadata("/request/target"), "/second");
        successor.serve(other, "second", false);
        assert_eq!(second.answer().body, "second");
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        lent.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        assert_eq!(first.answer().body, "ok");
        drop((old, lent, successor));
    }
}

/// One is tried at a time, and what becomes of it is everybody's answer who waited for it.
#[test]
fn a_daemon_that_cannot_be_connected_to_keeps_nobody_longer_than_one() {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    use std::os::fd::AsRawFd as _;
    let (gateway, _scripts) = start(1, "[handoff]\nconnect_timeout = \"400ms\"\nretries = 0");
    let address = UnixAddr::new(&gateway.path("0.sock")).expect("short");
    // Nobody accepts: its queue is full.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let one = || socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).expect("a socket");
    let mut queue = Vec::new();
    loop {
        let socket = one();
        if connect(socket.as_raw_fd(), &address).is_err() {
            break;
        }
        queue.push(socket);
    }
    let began = Instant::now();
    let mut clients: Vec<_> = (0..20).map(|n| get(&gateway, &format!("/{n}"))).collect();
    for client in &mut clients {
        assert_eq!(client.answer().status, 503);
    }
    // One behind the other, they would wait for eight seconds.
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

#[test]
fn a_daemon_that_takes_nobody_gets_nobody() {
    let (gateway, scripts) = start(1, "queue_timeout = \"1ms\"");
    let mut client = get(&gateway, "/");
    let channel = &mut scripts[0].accept(0);
    assert_eq!(client.answer().status, 503);
    channel.send(&Frame::Ping(Vec::new()));
    assert_eq!(channel.frame().0, Frame::Pong(Vec::new()));
}

#[test]
fn whoever_is_refused_goes_to_the_next_and_the_longest_time_is_told() {
    let (gateway, scripts) = start(3, "balance = \"round-robin\"");
    let mut client = get(&gateway, "/");
    let mut channels = Vec::new();
    for (script, seconds) in scripts.iter().zip([Some(3), Some(9), None]) {
        let mut channel = script.accept(10);
        let lent = channel.lent();
        assert_eq!(lent.metadata("/request/target"), "/");
        channel.refuse(lent, Reason::Overloaded, seconds);
        channels.push(channel);
    }
    let answer = client.answer();
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("9")));
    assert_eq!(outcome(&gateway, 1), ("refused".into(), Some(503), 3));
    // The client is intact: it is the last who takes it.
    client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody");
    let lent = channels[1].lent();
    channels[1].refuse(lent, Reason::Unsupported, None);
    let lent = channels[2].lent();
    let mut body = [0; 4];
    lent.client.set_nonblocking(false).expect("a socket");
    std::io::Read::read_exact(&mut &lent.client, &mut body).expect("it is there");
    assert_eq!(&body, b"body");
    channels[2].serve(lent, "mine", true);
    assert_eq!(client.answer().body, "mine");
    assert_eq!(outcome(&gateway, 2), ("returned".into(), Some(200), 2));
}

#[test]
fn a_daemon_that_drains_is_passed_over_and_finishes_what_it_has() {
    let (gateway, scripts) = start(2, "balance = \"round-robin\"\n[handoff]\nack_timeout = \"20s\"");
    let mut one = get(&gateway, "/one");
    let mut first = scripts[0].accept(10);
    let lent = first.lent();
    first.take(&lent);
    let mut two = get(&gateway, "/two");
    let mut second = scripts[1].accept(10);
    let other = second.lent();
    second.serve(other, "two", false);
    assert_eq!(two.answer().body, "two");
    first.send(&Frame::Draining);
    eventually("it is known", || (figure(&gateway, &["target_up", "chat/0"])? == "0").then_some(()));
    for n in 0..4 {
        let mut client = get(&gateway, &format!("/{n}"));
        let lent = second.lent();
        second.serve(lent, "second", false);
        assert_eq!(client.answer().body, "second");
    }
    first.serve_taken(lent);
    assert_eq!(one.answer().body, "taken");
    assert_eq!(outcome(&gateway, 6).0, "handed-off");
    // Its successor listens at the same place: the channel that ended is opened anew.
    drop(first);
    let mut clients = Vec::new();
    for n in 0..2 {
        clients.push(get(&gateway, &format!("/again/{n}")));
    }
    let mut successor = scripts[0].accept(10);
    let lent = successor.lent();
    successor.serve(lent, "again", false);
    let lent = second.lent();
    second.serve(lent, "again", false);
    assert!(clients.iter_mut().all(|client| client.answer().body == "again"));
}

/// Whom a daemon has may stay for hours. Whoever listens in its place is not kept waiting for that.
#[test]
fn a_successor_is_handed_over_to_while_its_predecessor_drains() {
    let (gateway, scripts) = start(1, "");
    let mut one = get(&gateway, "/one");
    let mut first = scripts[0].accept(10);
    let lent = first.lent();
    first.take(&lent);
    first.send(&Frame::Draining);
    eventually("it is known", || (figure(&gateway, &["target_up", "chat/0"])? == "0").then_some(()));
    assert_eq!(get(&gateway, "/nobody").answer().status, 503);
    let successor = Script::listen(&gateway.path("0.sock"));
    let mut two = get(&gateway, "/two");
    let mut second = successor.accept(10);
    let other = second.lent();
    assert_eq!(other.metadata("/request/target"), "/two");
    second.serve(other, "two", true);
    assert_eq!(two.answer().body, "two");
    // The first has it still, and gives it back for its next request, which is the second's.
    lent.write("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none");
    first.give_back(&lent, report(200, 41), b"");
    drop(lent);
    assert_eq!(one.answer().body, "one");
    one.get("/next");
    let other = second.lent();
    assert_eq!(other.metadata("/request/target"), "/next");
    second.serve(other, "next", false);
    assert_eq!(one.answer().body, "next");
    let log = eventually("all lines", || Some(gateway.log()).filter(|log| log.len() == 4));
    assert!(log.iter().all(|line| line["target"] == "/nobody" || line["status"] == 200), "{log:?}");
}

#[test]
fn the_successor_of_a_daemon_that_drains_takes_over_while_old_streams_go_on() {
    let (gateway, scripts) = start(1, "");
    let mut old = get(&gateway, "/old");
    let mut first = scripts[0].accept(10);
    let lent = first.lent();
    first.take(&lent);
    first.send(&Frame::Draining);
    eventually("it is known", || (figure(&gateway, &["target_up", "chat/0"])? == "0").then_some(()));
    let mut new = get(&gateway, "/new");
    let mut second = scripts[0].accept(10);
    let other = second.lent();
    assert_eq!(other.metadata("/request/target"), "/new");
    second.serve(other, "new", true);
    assert_eq!(new.answer().body, "new");
    eventually("the old stream is in flight, and the daemon is up", || {
        let figures = [figure(&gateway, &["target_in_flight"])?, figure(&gateway, &["target_up", "chat/0"])?];
        (figures == ["1", "1"]).then_some(())
    });
    first.serve_taken(lent);
    assert_eq!(old.answer().body, "taken");
    assert_eq!(outcome(&gateway, 2).0, "handed-off");
    // One that drains as soon as it has said who it is takes nobody, and is not asked for ever.
    second.send(&Frame::Draining);
    eventually("it is known", || (figure(&gateway, &["target_up", "chat/0"])? == "0").then_some(()));
    let mut nobody = get(&gateway, "/nobody");
    let third = scripts[0].accept_silently();
    third.send_with(&[hello(10), Frame::Draining], &[]).expect("the gateway is there");
    assert_eq!(nobody.answer().status, 503);
}

/// It is asked after 5 s without a word, and passed over from the next 5 s on.
#[test]
fn a_daemon_that_does_not_answer_is_passed_over_until_it_speaks() {
    let (gateway, scripts) = start(2, "balance = \"round-robin\"");
    let mut one = get(&gateway, "/one");
    let mut first = scripts[0].accept(10);
    let lent = first.lent();
    first.take(&lent);
    gateway.stderr.wait(0, &["the daemon does not answer"]);
    assert_eq!(figure(&gateway, &["target_up", "chat/0"]).as_deref(), Some("0"));
    let mut two = get(&gateway, "/two");
    let mut second = scripts[1].accept(10);
    let other = second.lent();
    second.serve(other, "two", false);
    assert_eq!(two.answer().body, "two");
    let (ping, _) = first.frame();
    let Frame::Ping(bytes) = ping else { panic!("{ping:?}") };
    first.send(&Frame::Pong(bytes));
    eventually("it is well", || (figure(&gateway, &["target_up", "chat/0"])? == "1").then_some(()));
    first.serve_taken(lent);
    assert_eq!(one.answer().body, "taken");
}

#[test]
fn the_least_loaded_is_chosen_by_what_daemons_say() {
    let (gateway, scripts) = start(2, "balance = \"least-load\"");
    let (_one, _two) = (get(&gateway, "/"), ());
    let mut channels: Vec<Channel> = Vec::new();
    // The other one is asked when the first has something to do.
    channels.push(scripts[0].accept(100));
    let lent = channels[0].lent();
    channels[0].take(&lent);
    let _other = get(&gateway, "/");
    channels.push(scripts[1].accept(100));
    let held = channels[1].lent();
    channels[1].take(&held);
    for (busy, idle) in [(0, 1), (1, 0), (0, 1)] {
        channels[busy].send(&Frame::Load(Load { in_flight: 1, load: 0.75 }));
        channels[idle].send(&Frame::Load(Load { in_flight: 1, load: 0.5 }));
        let member = |at: usize| format!("chat/{at}");
        for (at, load) in [(busy, "0.75"), (idle, "0.5")] {
            eventually("it is known", || (figure(&gateway, &["target_load", &member(at)])? == load).then_some(()));
        }
        for _ in 0..3 {
            let mut client = get(&gateway, "/");
            let lent = channels[idle].lent();
            channels[idle].serve(lent, "idle", false);
            assert_eq!(client.answer().body, "idle");
        }
    }
}

#[test]
fn a_key_stays_with_its_daemon() {
    let (gateway, scripts) = start(3, "balance = \"hash\"");
    let mut client = get(&gateway, "/");
    // All requests of one address go to one daemon; which, the address says.
    let at = eventually("one is connected to", || {
        (0..3)
            .find(|at| figure(&gateway, &["target_channels", &format!("chat/{at}")]).is_some_and(|n| n == "1"))
            .or_else(|| scripts.iter().position(|script| script.has_somebody()))
    });
    let mut channel = scripts[at].accept(10);
    for _ in 0..5 {
        let lent = channel.lent();
        channel.serve(lent, "same", true);
        assert_eq!(client.answer().body, "same");
        client.get("/");
    }
    assert!((0..3).filter(|other| *other != at).all(|other| !scripts[other].has_somebody()));
}

#[test]
fn more_data_than_the_daemon_wants_is_500_and_the_log_names_it() {
    let (gateway, scripts) = start(1, "");
    let ask = |bytes: usize| {
        let mut client = gateway.client();
        client.send(format!("GET /by-fields HTTP/1.1\r\nHost: x\r\nx-bytes: {bytes}\r\n\r\n"));
        client
    };
    let mut client = ask(1000);
    let mut channel = scripts[0].accept_silently();
    let Frame::Hello(hello) = hello(5) else { unreachable!("it is one") };
    channel.send(&Frame::Hello(baton::handoff::native::frame::Hello { data_bytes_max: Some(1000), ..hello }));
    channel.frame();
    let lent = channel.lent();
    assert_eq!(lent.handoff.data.len(), 1000);
    channel.serve(lent, "fits", false);
    assert_eq!(client.answer().body, "fits");
    gateway.log_line(1);
    assert_eq!(ask(1001).answer().status, 500);
    let line = gateway.log_line(2);
    assert_eq!(line["outcome"], "refused");
    assert!(line["error"].as_str().is_some_and(|error| error.contains("1001 bytes of data")), "{line}");
    assert!(line["error"].as_str().is_some_and(|error| error.contains("data_bytes_max of its HELLO")), "{line}");
    // It is known before the client is sent a head.
    let mut client = gateway.client();
    client.send("GET /by-fields HTTP/1.1\r\nHost: x\r\nx-status: 200\r\nx-bytes: 1001\r\n\r\n");
    assert_eq!(client.answer().status, 500);
}
