//! Datagrams: no connection tells of a daemon's end.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::{Duration, Instant};

use baton::handoff::{Address, Daemon, Dialect, Message, Refusal, Sealed, SendError, Stage, Taken};
use nix::sys::socket::SockType;

use crate::{
    ANSWER, Bench, Rough, daemon, fill, hand_over, long, read, refused, rest, run, send, short, tcp_client, unread,
    wait_readable, whole,
};

#[test]
fn a_datagram_is_the_bytes_and_one_descriptor_and_its_reading_is_seen() {
    for bytes in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], b"\0", b"x"] {
        let bench = Bench::new();
        let receiver = Rough::listen(&bench.path(), SockType::Datagram, 0).datagrams();
        let (client, mut far) = tcp_client();
        let to = daemon(&bench.path(), Dialect::Datagram);
        let (result, ()) = hand_over(client, bytes, &to, long(), || {
            wait_readable(&receiver);
            let (read, client) = read(&receiver, 1 << 16);
            assert_eq!(read, bytes);
            client.unwrap().write_all(b"from the daemon").unwrap();
        });
        assert_eq!(result.unwrap(), Taken);
        assert_eq!(whole(&mut far), b"from the daemon");
        drop((receiver, far));
        bench.check_ledger();
    }
}

#[test]
fn a_receiver_that_dies_with_the_datagram_unread_leaves_the_client_to_be_answered() {
    for path_is_replaced in [false, true] {
        let bench = Bench::new();
        let receiver = Rough::listen(&bench.path(), SockType::Datagram, 0).datagrams();
        let (client, mut far) = tcp_client();
        let to = daemon(&bench.path(), Dialect::Datagram);
        let path = bench.path();
        let (result, _successor) = hand_over(client, b"head", &to, long(), move || {
            wait_readable(&receiver);
            // Whoever stands at the path now is not the one that was sent to.
            let successor = path_is_replaced.then(|| {
                fs::remove_file(&path).unwrap();
                UnixDatagram::bind(&path).unwrap()
            });
            drop(receiver);
            successor
        });
        let unread = unread(result);
        assert!(unread.is_fate_unknown());
        assert_eq!(unread.seal(ANSWER), Sealed::Answered);
        assert_eq!(whole(&mut far), ANSWER);
        drop((far, _successor));
        bench.check_ledger();
    }
}

#[test]
fn a_receiver_that_reads_writes_and_dies_is_the_only_one_that_writes() {
    let bench = Bench::new();
    let receiver = Rough::listen(&bench.path(), SockType::Datagram, 0).datagrams();
    let (client, mut far) = tcp_client();
    let to = daemon(&bench.path(), Dialect::Datagram);
    let (result, _kept) = hand_over(client, b"head", &to, long(), move || {
        wait_readable(&receiver);
        let mut client = read(&receiver, 100).1.unwrap();
        client.write_all(b"from the daemon").unwrap();
        client
    });
    // Seen before the receiver was gone, or after.
    assert!(matches!(result, Ok(Taken) | Err(SendError::Unanswered { .. })), "{result:?}");
    drop(_kept);
    assert_eq!(rest(&mut far), b"from the daemon");
}

/// Of a Unix socket it cannot be asked whether somebody has written.
#[test]
fn a_unix_client_of_a_receiver_that_died_is_closed_unwritten() {
    let bench = Bench::new();
    let receiver = Rough::listen(&bench.path(), SockType::Datagram, 0).datagrams();
    let (client, mut far) = UnixStream::pair().unwrap();
    let to = daemon(&bench.path(), Dialect::Datagram);
    let (result, ()) = hand_over(client.into(), b"head", &to, long(), move || wait_readable(&receiver));
    assert!(matches!(result, Err(SendError::Unanswered { .. })), "{result:?}");
    assert_eq!(whole(&mut far), b"");
}

#[test]
fn a_stopped_receivers_client_is_sealed_over_tcp_and_unix() {
    let bench = Bench::new();
    let receiver = Rough::listen(&bench.path(), SockType::Datagram, 0).datagrams();
    let to = daemon(&bench.path(), Dialect::Datagram);
    let (client, mut far) = tcp_client();
    let unread_one = unread(run(send(client, &Message::new("head"), &to, &short())));
    assert!(!unread_one.is_fate_unknown());
    assert_eq!(unread_one.seal(ANSWER), Sealed::Answered);
    assert_eq!(whole(&mut far), ANSWER);
    let mut woken = read(&receiver, 100).1.unwrap();
    assert_eq!(woken.write(b"late").unwrap_err().kind(), ErrorKind::BrokenPipe);

    let (client, mut far) = UnixStream::pair().unwrap();
    let unread_one = unread(run(send(client.into(), &Message::new("head"), &to, &short())));
    assert_eq!(unread_one.seal(ANSWER), Sealed::Answered);
    assert_eq!(whole(&mut far), ANSWER);

    // Dead between the deadline and the seal: nobody has read it.
    drop(read(&receiver, 100));
    let (client, mut far) = tcp_client();
    let unread_one = unread(run(send(client, &Message::new("head"), &to, &short())));
    drop(receiver);
    assert_eq!(unread_one.seal(ANSWER), Sealed::Answered);
    assert_eq!(whole(&mut far), ANSWER);
}

#[test]
fn a_full_queue_is_waited_for_until_the_deadline() {
    let bench = Bench::new();
    let receiver = Rough::listen(&bench.path(), SockType::Datagram, 0).datagrams();
    let others = fill(&bench.path());
    let to = daemon(&bench.path(), Dialect::Datagram);
    let (client, _far) = tcp_client();
    let begun = Instant::now();
    let (client, stage, source) = refused(run(send(client, &Message::new("head"), &to, &short())));
    assert!((Duration::from_millis(100)..Duration::from_secs(2)).contains(&begun.elapsed()));
    assert!(matches!((stage, source), (Stage::Send, Refusal::TimedOut)));
    let (result, ()) = hand_over(client, b"head", &to, long(), || {
        for _ in &others {
            assert_eq!(read(&receiver, 100).0, b"other");
        }
        assert_eq!(read(&receiver, 100).0, b"head");
    });
    assert_eq!(result.unwrap(), Taken);
}

#[test]
fn a_receiver_that_is_not_there_or_cannot_be_checked_gets_nothing() {
    let bench = Bench::new();
    let to = daemon(&bench.path(), Dialect::Datagram);
    let (client, _far) = tcp_client();
    let (client, stage, _) = refused(run(send(client, &Message::new("head"), &to, &long())));
    assert_eq!(stage, Stage::Resolve);
    drop(Rough::listen(&bench.path(), SockType::Datagram, 0));
    let (client, stage, _) = refused(run(send(client, &Message::new("head"), &to, &long())));
    assert_eq!(stage, Stage::Connect);
    fs::remove_file(bench.path()).unwrap();
    let listener = Rough::listen(&bench.path(), SockType::Stream, 8);
    let (client, stage, _) = refused(run(send(client, &Message::new("head"), &to, &long())));
    assert_eq!(stage, Stage::Connect);
    drop(listener);
    fs::remove_file(bench.path()).unwrap();

    let receiver = Rough::listen(&bench.path(), SockType::Datagram, 0);
    let uid = nix::unistd::geteuid().as_raw();
    let checked = Daemon::new(Address::new(bench.path()).unwrap(), Dialect::Datagram, vec![uid]);
    let (_, stage, source) = refused(run(send(client, &Message::new("head"), &checked, &long())));
    assert_eq!(stage, Stage::Connect);
    assert!(matches!(source, Refusal::NotAllowed { .. }));
    receiver.0.set_nonblocking(true).unwrap();
    assert_eq!(receiver.datagrams().read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
}
