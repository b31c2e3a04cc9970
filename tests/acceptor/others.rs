//! The other dialects by the same names: what the native one tells the gateway is told the client.

use std::io::IoSlice;
use std::net::TcpStream;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use baton::handoff::{Acceptor, Dialect, End, Options, Reason};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, socket,
};

use crate::scripted::tcp_client;
use crate::{Bench, accept, options, was_reset, whole};

const DIALECTS: [(Dialect, SockType); 4] = [
    (Dialect::Seqpacket, SockType::SeqPacket),
    (Dialect::Stream, SockType::Stream),
    (Dialect::Fdpass, SockType::Stream),
    (Dialect::Datagram, SockType::Datagram),
];

fn send(bench: &Bench, kind: SockType, client: BorrowedFd<'_>) {
    let connection = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
    connect(connection.as_raw_fd(), &UnixAddr::new(&bench.path()).unwrap()).unwrap();
    let number = [client.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&number)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(connection.as_raw_fd(), &[IoSlice::new(b"\0")], &rights, flags, None).unwrap();
}

fn hand_over(bench: &Bench, kind: SockType) -> TcpStream {
    let (client, far) = tcp_client();
    send(bench, kind, client.as_fd());
    far
}

fn bind(bench: &Bench, dialect: Dialect) -> Acceptor {
    Acceptor::bind(bench.path(), dialect, Options { ..options() }).unwrap()
}

#[test]
fn a_refusal_is_an_answer_and_a_reset_behind_a_head() {
    for (dialect, kind) in DIALECTS {
        let bench = Bench::new();
        let mut acceptor = bind(&bench, dialect);
        for (reason, retry_after, expected) in [
            (Reason::Overloaded, Some(7), "503 Service Unavailable\r\nRetry-After: 7\r\n"),
            (Reason::Draining, None, "503 Service Unavailable\r\nRetry-After: 1\r\n"),
            (Reason::Denied, None, "403 Forbidden\r\n"),
            (Reason::Unsupported, None, "501 Not Implemented\r\n"),
        ] {
            let mut far = hand_over(&bench, kind);
            let handoff = accept(&mut acceptor);
            assert_eq!((handoff.method(), handoff.target(), handoff.metadata().len()), (None, None, 0));
            let far_end = std::thread::spawn(move || {
                if dialect == Dialect::Fdpass {
                    assert!(was_reset(&mut far));
                } else {
                    let answer = whole(&mut far);
                    let rest = "Content-Length: 0\r\nConnection: close\r\n\r\n";
                    assert_eq!(answer, format!("HTTP/1.1 {expected}{rest}"));
                }
            });
            handoff.refuse(reason, retry_after, "as asked").unwrap();
            far_end.join().unwrap();
        }
        // Dropped, untouched.
        let mut far = hand_over(&bench, kind);
        drop(accept(&mut acceptor));
        if dialect == Dialect::Fdpass {
            assert!(was_reset(&mut far));
        } else {
            assert!(whole(&mut far).starts_with("HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n"));
        }
        // Touched: it is whoever touched it who answers.
        far = hand_over(&bench, kind);
        let handoff = accept(&mut acceptor);
        handoff.client();
        handoff.refuse(Reason::Denied, None, "").unwrap_err().finish(End::ok());
        assert_eq!(whole(&mut far), "");
        drop((acceptor, far));
        bench.check_ledger();
    }
}

#[test]
fn an_answer_is_written_and_the_client_closed_where_it_cannot_be_given_back() {
    for (dialect, kind) in DIALECTS {
        let bench = Bench::new();
        let mut acceptor = bind(&bench, dialect);
        let mut far = hand_over(&bench, kind);
        let mut handoff = accept(&mut acceptor);
        let far_end = std::thread::spawn(move || whole(&mut far));
        handoff.take().unwrap();
        handoff.respond_keep_alive(200, &[], b"body").unwrap();
        assert!(!handoff.revoked());
        handoff.give_back(200);
        let answer = far_end.join().unwrap();
        let expected = match dialect {
            Dialect::Fdpass => "body",
            _ => "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody",
        };
        assert_eq!((&*answer, acceptor.in_flight()), (expected, 0));
        drop(acceptor);
        bench.check_ledger();
    }
}

/// What was sent there cannot be taken back by its sender.
#[test]
fn datagrams_that_wait_are_answered_when_it_stops() {
    let bench = Bench::new();
    let mut acceptor = bind(&bench, Dialect::Datagram);
    let fars: Vec<_> = (0..3).map(|_| hand_over(&bench, SockType::Datagram)).collect();
    acceptor.stop_handle().stop();
    let far_ends: Vec<_> = fars.into_iter().map(|mut far| std::thread::spawn(move || whole(&mut far))).collect();
    assert!(acceptor.accept().unwrap().is_none());
    for far_end in far_ends {
        assert!(far_end.join().unwrap().starts_with("HTTP/1.1 503 "));
    }
}
