//! What is said on a channel when everybody keeps to the protocol.

use std::os::fd::AsFd as _;
use std::thread;
use std::time::Duration;

use baton::handoff::native::frame::{Frame, Load, Outcome};
use baton::handoff::{End, Left, Options};

use crate::scripted::{Gateway, get, handoff, hello, request, tcp_client};
use crate::{Bench, accept, eventually, options, reports, whole};

#[test]
fn both_greet_at_once_and_say_what_they_bear() {
    let bench = Bench::new();
    let name = Some("chat".to_owned());
    let options = Options { in_flight_max: 7, data_bytes_max: 9, name, roles: vec!["a".to_owned()], ..options() };
    let mut acceptor = bench.acceptor_with(options);
    let mut gateway = Gateway::connect(&bench.path());
    thread::scope(|scope| {
        let stop = acceptor.stop_handle();
        scope.spawn(move || assert!(acceptor.accept().unwrap().is_none()));
        // Before anything was said by the gateway.
        eventually("a greeting", || gateway.has_greeting().then_some(()));
        let said = gateway.greeting();
        assert_eq!((&said.versions[..], said.in_flight_max, said.data_bytes_max), (&[1][..], 7, Some(9)));
        assert_eq!((&*said.name, &*said.roles[0], said.pid), ("chat", "a", std::process::id().into()));
        gateway.send(&[hello()], &[]);
        stop.stop();
        assert_eq!(gateway.next(), Some(Frame::Draining));
        gateway.ended();
    });
    assert_eq!(reports(), [""; 0]);
    drop(gateway);
    bench.check_ledger();
}

#[test]
fn a_client_is_taken_answered_and_reported() {
    let bench = Bench::new();
    let mut acceptor = bench.acceptor();
    let mut gateway = Gateway::greet(&bench.path());
    let mut far = gateway.hand_over(5, request("GET", "/hello?a=b", &[("x-a", "1"), ("x-a", "2")]));
    let mut handoff = accept(&mut acceptor);
    assert!(gateway.is_silent() && !handoff.is_taken(), "it may still refuse");
    assert_eq!((handoff.method(), handoff.target()), (Some("GET"), Some("/hello?a=b")));
    assert_eq!((&*handoff.id(), handoff.header("x-a").as_deref(), handoff.role()), ("01JTEST", Some("1"), ""));
    assert_eq!(handoff.headers().count(), 2);
    handoff.respond(200, &[("X-B", "c")], b"hello\n").unwrap();
    gateway.taken(5);
    handoff.finish(200);
    acceptor.flush();
    let report = gateway.done(5);
    let answer = whole(&mut far);
    assert_eq!(answer, "HTTP/1.1 200 OK\r\nX-B: c\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n");
    assert_eq!((report.status, report.bytes_out), (Some(200), answer.len() as u64));
    assert_eq!((report.result, report.message), (Outcome::Ok, None));
    assert_eq!(acceptor.in_flight(), 0);
    drop((acceptor, gateway, far));
    bench.check_ledger();
}

/// One thread that is busy: what it has to say about the last client goes with the next one's TAKEN.
#[test]
fn the_end_of_one_client_goes_in_one_packet_with_the_taking_of_the_next() {
    let bench = Bench::new();
    let mut acceptor = bench.acceptor();
    let mut gateway = Gateway::greet(&bench.path());
    let clients: Vec<_> = (1..=4).map(|_| tcp_client()).collect();
    // Two in a packet, twice.
    for ids in [[1, 2], [3, 4]] {
        let descriptors = ids.map(|id: usize| clients[id - 1].0.as_fd());
        gateway.send(&ids.map(|id| handoff(id as u64, get())), &descriptors);
    }
    for _ in 1..=4 {
        let mut handoff = accept(&mut acceptor);
        handoff.respond(200, &[], b"").unwrap();
        handoff.finish(200);
    }
    for id in 1..=4 {
        gateway.taken(id);
        if id == 4 {
            // Now it waits, and has nothing left to say.
            let stop = acceptor.stop_handle();
            thread::spawn(move || acceptor.accept().map(drop));
            gateway.done(4);
            stop.stop();
            break;
        }
        assert_eq!(gateway.done(id).status, Some(200));
    }
    // HELLO, TAKEN, three of two frames, DONE.
    assert_eq!(gateway.packets, 6);
}

/// A thread of its own serves the channels; others serve clients.
#[test]
fn what_is_done_elsewhere_is_said_at_once_while_the_acceptor_waits() {
    let bench = Bench::new();
    let mut acceptor = bench.acceptor();
    let mut gateway = Gateway::greet(&bench.path());
    let _far = gateway.hand_over(1, get());
    let mut handoff = accept(&mut acceptor);
    let stop = acceptor.stop_handle();
    thread::scope(|scope| {
        let waiting = scope.spawn(move || acceptor.accept().unwrap().is_none());
        // It waits once it has answered this.
        gateway.send(&[Frame::Ping(b"are you there".to_vec())], &[]);
        assert_eq!(gateway.next(), Some(Frame::Pong(b"are you there".to_vec())));
        handoff.respond(200, &[], b"").unwrap();
        handoff.finish(200);
        gateway.taken(1);
        gateway.done(1);
        stop.stop();
        assert!(waiting.join().unwrap());
    });
}

#[test]
fn a_program_with_one_thread_answers_and_learns_whenever_it_calls_the_library() {
    let bench = Bench::new();
    let mut acceptor = bench.acceptor();
    let mut gateway = Gateway::greet(&bench.path());
    let _far = gateway.hand_over(1, get());
    let mut handoff = accept(&mut acceptor);
    handoff.start(200, &[]).unwrap();
    gateway.taken(1);
    gateway.send(&[Frame::Ping(b"1".to_vec())], &[]);
    eventually("the answer", || {
        handoff.write(b"more").unwrap();
        (!gateway.is_silent()).then_some(())
    });
    assert_eq!(gateway.next(), Some(Frame::Pong(b"1".to_vec())));
    // Also while it waits for its client, at once.
    thread::scope(|scope| {
        scope.spawn(|| {
            gateway.send(&[Frame::Ping(b"2".to_vec())], &[]);
            assert_eq!(gateway.next(), Some(Frame::Pong(b"2".to_vec())));
            gateway.send(&[Frame::Revoke { id: 1, reason: "quota".to_owned() }], &[]);
        });
        assert_eq!(handoff.wait_until_left(Duration::MAX), Some(Left::Revoked));
    });
    assert!(handoff.revoked());
    let error = handoff.write(b"more").unwrap_err();
    handoff.finish(&error);
    acceptor.flush();
    assert_eq!(gateway.done(1).result, Outcome::Revoked);
    // Whoever was handed over meanwhile is there.
    gateway.send(&[Frame::Revoke { id: 1, reason: String::new() }], &[]);
    let _far = gateway.hand_over(2, get());
    accept(&mut acceptor).finish(End::ok());
}

#[test]
fn a_revocation_wakes_the_one_it_is_about() {
    let bench = Bench::new();
    let mut acceptor = bench.acceptor();
    let mut gateway = Gateway::greet(&bench.path());
    let fars: Vec<_> = (1..=3).map(|id| gateway.hand_over(id, get())).collect();
    let mut handoffs: Vec<_> = (0..3).map(|_| accept(&mut acceptor)).collect();
    let stop = acceptor.stop_handle();
    thread::scope(|scope| {
        scope.spawn(move || acceptor.accept().unwrap().is_none());
        let threads: Vec<_> = handoffs
            .drain(..)
            .map(|handoff| {
                scope.spawn(move || {
                    handoff.take().unwrap();
                    let left = handoff.wait_until_left(Duration::MAX);
                    handoff.finish(End::of(match left {
                        Some(Left::Revoked) => Outcome::Revoked,
                        _ => Outcome::ClientGone,
                    }));
                    left
                })
            })
            .collect();
        let mut taken: Vec<_> = (0..3).map(|_| gateway.next().unwrap()).collect();
        taken.sort_by_key(|frame| if let Frame::Taken { id } = frame { *id } else { panic!("{frame:?}") });
        gateway.send(&[Frame::Revoke { id: 2, reason: String::new() }], &[]);
        assert_eq!(gateway.done(2).result, Outcome::Revoked);
        assert!(gateway.is_silent());
        gateway.send(&[Frame::Revoke { id: 3, reason: String::new() }], &[]);
        assert_eq!(gateway.done(3).result, Outcome::Revoked);
        drop(fars);
        assert_eq!(gateway.done(1).result, Outcome::ClientGone);
        let left: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert_eq!(left, [Some(Left::Client), Some(Left::Revoked), Some(Left::Revoked)]);
        stop.stop();
    });
}

#[test]
fn a_gateway_has_a_channel_for_each_of_its_workers() {
    let bench = Bench::new();
    let mut acceptor = bench.acceptor();
    let mut gateways: Vec<_> = (0..20).map(|_| Gateway::greet(&bench.path())).collect();
    // The same id on each: it is one channel's.
    let mut fars: Vec<_> = gateways.iter().map(|gateway| gateway.hand_over(1, get())).collect();
    for _ in 0..20 {
        let mut handoff = accept(&mut acceptor);
        handoff.respond(200, &[], b"x").unwrap();
        handoff.finish(200);
    }
    acceptor.flush();
    for (gateway, far) in gateways.iter_mut().zip(&mut fars) {
        gateway.taken(1);
        gateway.done(1);
        assert!(whole(far).ends_with("\r\n\r\nx"));
    }
    // One that leaves takes nobody with it.
    drop(gateways.split_off(1));
    let _far = gateways[0].hand_over(2, get());
    drop(accept(&mut acceptor));
    gateways[0].refused(2);
    drop((acceptor, gateways, fars, _far));
    bench.check_ledger();
}

#[test]
fn a_load_is_told_to_everybody() {
    let bench = Bench::new();
    let mut acceptor = bench.acceptor();
    let mut gateways = [Gateway::greet(&bench.path()), Gateway::greet(&bench.path())];
    let _far = gateways[0].hand_over(1, get());
    let handoff = accept(&mut acceptor);
    let (load, stop) = (acceptor.load_handle(), acceptor.stop_handle());
    thread::scope(|scope| {
        scope.spawn(move || acceptor.accept().unwrap().is_none());
        for gateway in &mut gateways {
            eventually("a greeting", || gateway.has_greeting().then_some(()));
        }
        for (said, told) in [(0.25, 0.25), (7.0, 1.0), (-1.0, 0.0)] {
            load.say(said);
            for gateway in &mut gateways {
                assert_eq!(gateway.next(), Some(Frame::Load(Load { in_flight: 1, load: told })));
            }
        }
        drop(handoff);
        stop.stop();
    });
}
