//! Gateways that break the protocol, or die in the middle of it: the channel ends, what came is closed, and nobody else
//! notices.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::thread;
use std::time::Duration;

use baton::handoff::native::frame::{Frame, Hello, Load, Memfds, Outcome, Reason, Refusal, Report};
use baton::handoff::{Acceptor, ClientError, Options};
use serde_json::json;

use crate::scripted::{Gateway, empty, get, handoff, handoff_with, hello, memfd, tcp_client, with_body};
use crate::{Bench, REPORTS, accept, eventually, options, reports, whole};

/// Somebody else's client gets through, so what came before was dealt with.
#[track_caller]
fn another(bench: &Bench, acceptor: &mut Acceptor) {
    let mut gateway = Gateway::greet(&bench.path());
    let mut far = gateway.hand_over(77, get());
    let mut handoff = accept(acceptor);
    // Of one whose gateway has died since nobody knows before.
    while handoff.take().is_err() {
        handoff = accept(acceptor);
    }
    handoff.respond(200, &[], b"fine").unwrap();
    handoff.finish(200);
    gateway.taken(77);
    assert!(whole(&mut far).ends_with("fine"));
}

fn report() -> Report {
    Report { status: None, bytes_out: 0, duration_us: 0, result: Outcome::Ok, message: None }
}

fn versions(versions: Vec<u64>) -> Frame {
    let (name, roles) = (String::new(), Vec::new());
    Frame::Hello(Hello { versions, name, pid: 1, in_flight_max: 0, data_bytes_max: None, roles })
}

#[test]
fn whoever_breaks_the_protocol_loses_the_channel_and_nobody_else_does() {
    let refusal = Refusal { reason: Reason::Denied, retry_after_s: None, message: None };
    let ping = Frame::Ping(vec![b'x'; 100]).encode();
    let handoff = || handoff(1, get());
    let encoded = |frames: &[Frame]| frames.iter().flat_map(Frame::encode).collect::<Vec<u8>>();
    for (bytes, descriptors, why) in [
        (encoded(&[Frame::Ping(Vec::new())]), 0, "something before its HELLO"),
        (encoded(&[hello(), hello()]), 0, "a second HELLO"),
        (encoded(&[versions(vec![2, 3])]), 0, "no version that is spoken here"),
        (encoded(&[hello(), Frame::Taken { id: 1 }]), 0, "a daemon's to say"),
        (encoded(&[hello(), Frame::Refused { id: 1, refusal }]), 0, "a daemon's to say"),
        (encoded(&[hello(), Frame::Done { id: 1, report: report() }]), 0, "a daemon's to say"),
        (encoded(&[hello(), Frame::Return { id: 1, report: report(), unread: Vec::new() }]), 1, "a daemon's to say"),
        (encoded(&[hello(), Frame::Load(Load { in_flight: 0, load: 0.0 })]), 0, "a daemon's to say"),
        (encoded(&[hello(), Frame::Draining]), 0, "a daemon's to say"),
        // Descriptors: none, too many, and where none belong.
        (encoded(&[hello(), handoff()]), 0, "another number of descriptors"),
        (encoded(&[hello(), handoff()]), 2, "another number of descriptors"),
        (encoded(&[hello(), handoff()]), 253, "another number of descriptors"),
        (encoded(&[hello()]), 1, "another number of descriptors"),
        (encoded(&[hello(), Frame::Ping(Vec::new())]), 1, "another number of descriptors"),
        // Two of the same name.
        (encoded(&[hello(), handoff(), handoff()]), 2, "an id that is in flight"),
        // Bytes that are no frames.
        ([encoded(&[hello()]), ping[..ping.len() - 1].to_vec()].concat(), 0, "99 bytes behind a header that says 100"),
        ([encoded(&[hello()]), vec![0; 5]].concat(), 0, "which are no header"),
        ([encoded(&[hello(), handoff()]), vec![0xb7; 15]].concat(), 1, "which are no header"),
        (vec![b'x'; 30], 1, "begins with 0x78"),
        ([&ping[..1], &[2], &ping[2..]].concat(), 0, "version 2"),
        (
            [encoded(&[hello()]), vec![0; (128 << 10) + 1 - encoded(&[hello()]).len()]].concat(),
            0,
            "larger than allowed",
        ),
        (vec![0; (128 << 10) + 2], 1, "larger than allowed"),
    ] {
        let bench = Bench::new();
        let mut acceptor = bench.acceptor();
        let before = crate::ledger();
        let mut gateway = Gateway::connect(&bench.path());
        let (client, far) = tcp_client();
        gateway.send_bytes(&bytes, &vec![client.as_fd(); descriptors]);
        drop((client, far));
        another(&bench, &mut acceptor);
        gateway.ended();
        let reports = reports();
        assert!(reports.len() == 1 && reports[0].contains(why), "{why}: {reports:?}");
        assert_eq!(acceptor.in_flight(), 0);
        drop(gateway);
        assert!(acceptor.try_accept().unwrap().is_pending());
        assert_eq!(crate::ledger(), before, "{why}");
        drop(acceptor);
        bench.check_ledger();
    }
}

#[test]
fn a_client_that_is_none_and_memfds_that_can_change_or_are_short_end_the_channel() {
    // The turn comes first: descriptors are everybody's.
    let bench = Bench::new();
    let data = Memfds { data: true, ..Memfds::default() };
    let body = Memfds { body: true, ..Memfds::default() };
    let in_memfd = |remaining: u64| with_body("POST", "/", &[], json!({"framing": "memfd", "remaining": remaining}));
    let framing = |framing: &str| with_body("POST", "/", &[], json!({"framing": framing}));
    let (client, _far) = tcp_client();
    let datagram = std::os::unix::net::UnixDatagram::unbound().unwrap();
    let file: OwnedFd = std::fs::File::open("/proc/self/maps").unwrap().into();
    let (sealed, open) = (memfd(b"hello", true), memfd(b"hello", false));
    let (fd, none) = (client.as_fd(), Memfds::default());
    let cases: [(_, _, &[BorrowedFd<'_>], _); 11] = [
        (get(), none, &[datagram.as_fd()], "not a stream socket"),
        (get(), none, &[file.as_fd()], "not a stream socket"),
        (get(), none, &[sealed.as_fd()], "not a stream socket"),
        (get(), data, &[fd, open.as_fd()], "not sealed"),
        (get(), data, &[fd, file.as_fd()], "not sealed"),
        (get(), data, &[fd, fd], "not sealed"),
        (get(), data, &[sealed.as_fd(), fd], "not sealed"),
        (in_memfd(6), body, &[fd, sealed.as_fd()], "shorter than the body"),
        (in_memfd(5), none, &[fd], "no memfd for a body that is in one"),
        (get(), body, &[fd, sealed.as_fd()], "a memfd for a body that is in none"),
        (framing("length"), none, &[fd], "a length that is not said"),
    ];
    for (metadata, memfds, descriptors, why) in cases {
        let before = crate::ledger();
        REPORTS.lock().unwrap().clear();
        let mut acceptor = bench.acceptor();
        let mut gateway = Gateway::greet(&bench.path());
        gateway.send(&[handoff_with(1, metadata, b"", b"", memfds)], descriptors);
        another(&bench, &mut acceptor);
        gateway.ended();
        assert!(reports().len() == 1 && reports()[0].contains(why), "{why}: {:?}", reports());
        drop((gateway, acceptor));
        assert_eq!(crate::ledger(), before);
    }
    // Lenient where nothing depends on it.
    let mut acceptor = bench.acceptor();
    let gateway = Gateway::greet(&bench.path());
    gateway.send(&[handoff(1, empty()), Frame::Ignored(200), Frame::Pong(b"unasked".to_vec())], &[fd]);
    let handoff = accept(&mut acceptor);
    assert_eq!((handoff.method(), handoff.headers().count(), handoff.role()), (None, 0, ""));
}

/// Whoever waits in the queue goes with the channel; whoever was taken does not.
#[test]
fn a_gateway_that_breaks_the_protocol_takes_back_whom_nobody_has_taken() {
    let bench = Bench::new();
    let mut acceptor = bench.acceptor();
    let mut gateway = Gateway::greet(&bench.path());
    let mut fars: Vec<_> = (1..=2).map(|id| gateway.hand_over(id, get())).collect();
    let mut taken = accept(&mut acceptor);
    taken.start(200, &[]).unwrap();
    let offered = accept(&mut acceptor);
    let (client, far) = tcp_client();
    fars.push(far);
    gateway.send(&[handoff(3, get()), hello()], &[client.as_fd()]);
    drop(client);
    another(&bench, &mut acceptor);
    gateway.ended();
    // The second was in somebody's hands, the third in the queue.
    assert!(matches!(offered.take(), Err(ClientError::ChannelEnded)));
    drop(offered);
    assert_eq!((whole(&mut fars[1]), whole(&mut fars[2])), (String::new(), String::new()));
    taken.write(b"goes on").unwrap();
    taken.give_back(200);
    assert!(whole(&mut fars[0]).ends_with("close\r\n\r\ngoes on"));
    assert_eq!(acceptor.in_flight(), 0);
    drop((acceptor, gateway, fars));
    bench.check_ledger();
}

#[test]
fn a_gateway_that_dies_at_any_step_harms_nobody() {
    for step in 0..6 {
        let bench = Bench::new();
        let mut acceptor = bench.acceptor();
        let gateway = Gateway::connect(&bench.path());
        if step > 0 {
            gateway.send(&[hello()], &[]);
        }
        if step > 1 {
            let mut far = gateway.hand_over(1, get());
            let mut handoff = if step > 2 { Some(accept(&mut acceptor)) } else { None };
            if let Some(handoff) = handoff.as_mut().filter(|_| step > 3) {
                handoff.take().unwrap();
                if step > 4 {
                    handoff.respond_keep_alive(200, &[], b"answer").unwrap();
                }
            }
            drop(gateway);
            if let Some(handoff) = handoff {
                if step == 3 {
                    assert!(matches!(handoff.take(), Err(ClientError::ChannelEnded)));
                }
                handoff.give_back(200);
            } else {
                another(&bench, &mut acceptor);
            }
            let answer = whole(&mut far);
            assert_eq!(answer.ends_with("answer"), step > 4, "{step}: {answer}");
        } else {
            drop(gateway);
        }
        another(&bench, &mut acceptor);
        assert_eq!((reports(), acceptor.in_flight()), (Vec::new(), 0));
        drop(acceptor);
        bench.check_ledger();
    }
}

#[test]
fn one_that_says_nothing_is_dropped_in_time_and_delays_nobody() {
    let bench = Bench::new();
    let mut acceptor = bench.acceptor_with(Options { receive_timeout: Duration::from_millis(100), ..options() });
    let mut silent: Vec<_> = (0..3).map(|_| Gateway::connect(&bench.path())).collect();
    another(&bench, &mut acceptor);
    let stop = acceptor.stop_handle();
    thread::scope(|scope| {
        scope.spawn(move || assert!(acceptor.accept().unwrap().is_none()));
        for gateway in &mut silent {
            gateway.ended();
        }
        stop.stop();
    });
    assert_eq!(reports(), ["the message did not arrive in time"; 3]);
}

#[test]
fn one_who_may_not_is_not_even_greeted() {
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    for (uids, gids, is_allowed) in [
        (vec![uid + 1], vec![], false),
        (vec![], vec![gid + 1], false),
        (vec![uid + 1], vec![gid], true),
        (vec![uid], vec![], true),
    ] {
        let bench = Bench::new();
        let mut acceptor = bench.acceptor_with(Options { allow_uids: Some(uids), allow_gids: gids, ..options() });
        let mut gateway = Gateway::connect(&bench.path());
        let stop = acceptor.stop_handle();
        thread::scope(|scope| {
            scope.spawn(move || assert!(acceptor.accept().unwrap().is_none()));
            if is_allowed {
                eventually("a greeting", || gateway.has_greeting().then_some(()));
            } else {
                gateway.ended();
            }
            stop.stop();
        });
        assert_eq!(reports().len(), usize::from(!is_allowed));
    }
}

/// A gateway that pings and does not read what comes back cannot make the daemon hoard it.
#[test]
fn one_that_does_not_read_is_given_up() {
    let bench = Bench::new();
    let mut acceptor = bench.acceptor();
    let gateway = Gateway::greet(&bench.path());
    let stop = acceptor.stop_handle();
    thread::scope(|scope| {
        scope.spawn(move || assert!(acceptor.accept().unwrap().is_none()));
        let ping = Frame::Ping(vec![b'x'; 64 << 10]).encode();
        let flags = nix::sys::socket::MsgFlags::MSG_NOSIGNAL;
        let socket = std::os::fd::AsRawFd::as_raw_fd(&gateway.socket);
        let sent = (0..).take_while(|_| nix::sys::socket::send(socket, &ping, flags).is_ok()).count();
        assert!(sent > 16, "{sent}");
        stop.stop();
    });
    drop((gateway, stop));
    bench.check_ledger();
}

#[test]
fn a_revocation_of_nobody_is_ignored() {
    let bench = Bench::new();
    let mut acceptor = bench.acceptor();
    let mut gateway = Gateway::greet(&bench.path());
    gateway.send(&[Frame::Revoke { id: 99, reason: "late".to_owned() }], &[]);
    let _far = gateway.hand_over(1, get());
    let handoff = accept(&mut acceptor);
    assert!(!handoff.revoked());
    drop(handoff);
    gateway.refused(1);
    eventually("nothing", || reports().is_empty().then_some(()));
}
