//! The response's head, written before the descriptor goes: once, to whoever is handed over, and cut visibly otherwise.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use baton::handoff::{Dialect, HeadBytes, Message, Refusal, Sealed, SendError, Stage, Taken};
use nix::sys::socket::{SockType, setsockopt, sockopt};

use crate::{
    ANSWER, Bench, Rough, daemon, fill, long, read, refused, rest, run, send_behind, short, tcp_client, unread,
    wait_readable, whole,
};

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";

/// What is there of it, without waiting for more.
fn arrived(far: &TcpStream) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 16];
    far.set_nonblocking(true).unwrap();
    let count = far.peek(&mut bytes).unwrap_or(0);
    far.set_nonblocking(false).unwrap();
    bytes.truncate(count);
    bytes
}

#[track_caller]
fn check_reset(far: &mut TcpStream) {
    let mut bytes = Vec::new();
    assert_eq!(far.read_to_end(&mut bytes).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(HEAD.starts_with(&bytes), "{bytes:?}");
}

#[test]
fn the_head_is_there_before_the_descriptor_and_the_body_ends_cleanly() {
    for (dialect, kind) in [
        (Dialect::Fdpass, SockType::Stream),
        (Dialect::Seqpacket, SockType::SeqPacket),
        (Dialect::Stream, SockType::Stream),
    ] {
        let bench = Bench::new();
        let listener = Rough::listen(&bench.path(), kind, 8);
        let (client, mut far) = tcp_client();
        let watched = far.try_clone().unwrap();
        let mut head = HeadBytes::new(HEAD.to_vec());
        let to = daemon(&bench.path(), dialect);
        thread::scope(|scope| {
            let (listener, watched) = (&listener, &watched);
            scope.spawn(move || {
                let connection = listener.accept();
                wait_readable(&connection);
                assert_eq!(arrived(watched), HEAD);
                let (bytes, client) = read(&connection, 100);
                assert_eq!(bytes, b"\0");
                client.unwrap().write_all(b"body").unwrap();
            });
            let taken = run(send_behind(Some(&mut head), client, &Message::default(), &to, &long()));
            assert_eq!(taken.unwrap(), Taken);
        });
        assert_eq!((head.written(), whole(&mut far)), (HEAD.len(), [HEAD, b"body"].concat()));
        drop((listener, far, watched));
        bench.check_ledger();
    }
}

#[test]
fn a_head_is_written_once_whoever_takes_the_client_at_last() {
    let bench = Bench::new();
    let listener = Rough::listen(&bench.path(), SockType::Stream, 8);
    let (mut client, mut far) = tcp_client();
    let mut head = HeadBytes::new(HEAD.to_vec());
    let to = daemon(&bench.path(), Dialect::Fdpass);
    thread::scope(|scope| {
        let listener = &listener;
        scope.spawn(move || {
            for _ in 0..2 {
                let connection = listener.accept();
                wait_readable(&connection);
            }
            read(&listener.accept(), 1).1.unwrap().write_all(b"body").unwrap();
        });
        for _ in 0..2 {
            let result = run(send_behind(Some(&mut head), client, &Message::default(), &to, &long()));
            let (back, stage, source) = refused(result);
            assert!(matches!((stage, source), (Stage::Acknowledge, Refusal::NeverRead)));
            assert_eq!(head.written(), HEAD.len());
            client = back;
        }
        run(send_behind(Some(&mut head), client, &Message::default(), &to, &long())).unwrap();
    });
    assert_eq!(whole(&mut far), [HEAD, b"body"].concat());
    drop((listener, far));
    bench.check_ledger();
}

#[test]
fn nobody_connected_means_that_nothing_was_written() {
    let bench = Bench::new();
    let (client, far) = tcp_client();
    let mut head = HeadBytes::new(HEAD.to_vec());
    let to = daemon(&bench.path(), Dialect::Fdpass);
    let result = run(send_behind(Some(&mut head), client, &Message::default(), &to, &long()));
    let (client, stage, _) = refused(result);
    assert_eq!((stage, head.written(), arrived(&far)), (Stage::Connect, 0, vec![]));
    let mut far = far;
    TcpStream::from(client).write_all(ANSWER).unwrap();
    assert_eq!(whole(&mut far), ANSWER);
}

#[test]
fn a_client_that_comes_back_behind_its_head_is_reset_when_it_is_closed() {
    let bench = Bench::new();
    let listener = Rough::listen(&bench.path(), SockType::Stream, 8);
    let (client, mut far) = tcp_client();
    let mut head = HeadBytes::new(HEAD.to_vec());
    let to = daemon(&bench.path(), Dialect::Fdpass);
    thread::scope(|scope| {
        scope.spawn(|| wait_readable(&listener.accept()));
        let result = run(send_behind(Some(&mut head), client, &Message::default(), &to, &long()));
        drop(refused(result).0);
    });
    check_reset(&mut far);
    drop((listener, far));
    bench.check_ledger();
}

#[test]
fn behind_a_head_a_stopped_daemons_client_is_reset_and_dead_when_it_wakes_up() {
    for (dialect, kind, message) in [
        (Dialect::Fdpass, SockType::Stream, &b""[..]),
        (Dialect::Stream, SockType::Stream, b"more than a byte"),
        (Dialect::Seqpacket, SockType::SeqPacket, b"data"),
        (Dialect::Datagram, SockType::Datagram, b"head"),
    ] {
        let bench = Bench::new();
        let listener = Rough::listen(&bench.path(), kind, 8);
        let (client, mut far) = tcp_client();
        let mut head = HeadBytes::new(HEAD.to_vec());
        let to = daemon(&bench.path(), dialect);
        let result = run(send_behind(Some(&mut head), client, &Message::new(message), &to, &short()));
        assert_eq!(unread(result).reset(), Sealed::Reset);
        check_reset(&mut far);
        let connection = if kind == SockType::Datagram { listener.datagrams() } else { { listener }.accept() };
        let mut woken = read(&connection, 100).1.unwrap();
        let error = woken.write(b"late").unwrap_err().kind();
        assert!(matches!(error, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
        drop((connection, woken, far));
        bench.check_ledger();
    }
}

#[test]
fn behind_a_head_no_answer_is_written_and_what_a_daemon_took_is_not_reset() {
    let bench = Bench::new();
    let listener = Rough::listen(&bench.path(), SockType::Stream, 8);
    let to = daemon(&bench.path(), Dialect::Fdpass);
    for answers in [true, false] {
        let (client, mut far) = tcp_client();
        let mut head = HeadBytes::new(HEAD.to_vec());
        let result = run(send_behind(Some(&mut head), client, &Message::default(), &to, &short()));
        let unread = unread(result);
        let mut late = read(&listener.accept(), 1).1.unwrap();
        assert_eq!(if answers { unread.seal(ANSWER) } else { unread.reset() }, Sealed::LeftUnwritten);
        late.write_all(b"body").unwrap();
        drop(late);
        assert_eq!(whole(&mut far), [HEAD, b"body"].concat());
    }
}

/// What a client has not read yet fills its socket; nobody is connected to before there is room.
#[test]
fn a_client_that_takes_nothing_is_gone_at_the_deadline_and_nobody_was_disturbed() {
    let bench = Bench::new();
    let listener = Rough::listen(&bench.path(), SockType::Stream, 8);
    listener.0.set_nonblocking(true).unwrap();
    let (client, mut far) = tcp_client();
    let mut stream = TcpStream::from(client);
    let mut filled = 0;
    while let Ok(count) = stream.write(&[b'x'; 1 << 16]) {
        filled += count;
    }
    let mut head = HeadBytes::new(HEAD.to_vec());
    let to = daemon(&bench.path(), Dialect::Fdpass);
    let result = run(send_behind(Some(&mut head), stream.into(), &Message::default(), &to, &short()));
    match result {
        Err(SendError::ClientGone { source }) => assert_eq!(source.kind(), ErrorKind::TimedOut),
        other => panic!("{other:?}"),
    }
    assert_eq!(head.written(), 0);
    assert_eq!(listener.0.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    assert!(rest(&mut far).len() <= filled);
}

#[test]
fn a_head_larger_than_the_clients_socket_is_waited_for_and_arrives_whole() {
    let bench = Bench::new();
    let listener = Rough::listen(&bench.path(), SockType::Stream, 8);
    let (client, mut far) = tcp_client();
    let long_head: Vec<u8> = (0..20 << 20_u32).map(|number: u32| number.to_le_bytes()[1]).collect();
    let mut head = HeadBytes::new(long_head.clone());
    let to = daemon(&bench.path(), Dialect::Fdpass);
    let heard = thread::scope(|scope| {
        let hearing = scope.spawn(|| whole(&mut far));
        scope.spawn(|| read(&listener.accept(), 1).1.unwrap().write_all(b"body").unwrap());
        run(send_behind(Some(&mut head), client, &Message::default(), &to, &long())).unwrap();
        hearing.join().unwrap()
    });
    assert!(heard == [&long_head[..], b"body"].concat());
}

#[test]
fn a_client_that_stops_within_a_head_is_reset_and_one_that_has_left_is_gone() {
    let bench = Bench::new();
    let listener = Rough::listen(&bench.path(), SockType::Stream, 8);
    let to = daemon(&bench.path(), Dialect::Fdpass);
    let (client, mut first_far) = tcp_client();
    let mut head = HeadBytes::new(vec![b'h'; 20 << 20]);
    let result = run(send_behind(Some(&mut head), client, &Message::default(), &to, &short()));
    assert!(matches!(result, Err(SendError::ClientGone { .. })), "{result:?}");
    assert!((1..20 << 20).contains(&head.written()));
    assert_eq!(first_far.read_to_end(&mut Vec::new()).unwrap_err().kind(), ErrorKind::ConnectionReset);
    // The daemon sees a connection on which nothing came.
    assert_eq!(listener.accept().read(&mut [0; 8]).unwrap(), 0);

    let (client, far) = tcp_client();
    setsockopt(&far, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
    drop(far);
    let mut head = HeadBytes::new(HEAD.to_vec());
    let result = run(send_behind(Some(&mut head), client, &Message::default(), &to, &long()));
    assert!(matches!(result, Err(SendError::ClientGone { .. })), "{result:?}");
    drop((listener, first_far));
    bench.check_ledger();
}

#[test]
fn a_message_that_does_not_fit_is_found_before_the_head_is_written() {
    for (dialect, kind) in [(Dialect::Seqpacket, SockType::SeqPacket), (Dialect::Datagram, SockType::Datagram)] {
        let bench = Bench::new();
        let _listener = Rough::listen(&bench.path(), kind, 8);
        let (client, far) = tcp_client();
        let mut head = HeadBytes::new(HEAD.to_vec());
        let message = Message::new(vec![b'x'; 64 << 20]);
        let result = run(send_behind(Some(&mut head), client, &message, &daemon(&bench.path(), dialect), &short()));
        let (_client, _, source) = refused(result);
        assert!(matches!(source, Refusal::TooLarge { .. }), "{source:?}");
        assert_eq!((head.written(), arrived(&far)), (0, vec![]));
    }
}

#[test]
fn a_handoff_dropped_behind_its_head_resets_the_client() {
    let bench = Bench::new();
    // A queue that is full: the head is written, and the message waits for its turn.
    let receiver = Rough::listen(&bench.path(), SockType::Datagram, 0);
    let _others = fill(&bench.path());
    let (client, mut far) = tcp_client();
    let mut head = HeadBytes::new(HEAD.to_vec());
    let to = daemon(&bench.path(), Dialect::Datagram);
    run(async {
        let (message, deadlines) = (Message::new("head"), long());
        let sending = send_behind(Some(&mut head), client, &message, &to, &deadlines);
        assert!(tokio::time::timeout(Duration::from_millis(20), sending).await.is_err());
    });
    check_reset(&mut far);
    drop(receiver);
}
