//! The client's descriptor: as what it arrives and comes back, and that none is left.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use baton::handoff::{Acceptor, Dialect, Message, Options, Taken};
use nix::sys::socket::SockType;

use crate::{Bench, Rough, daemon, hand_over, long, refused, rest, run, send, tcp_client};

#[test]
fn clients_are_handed_over_as_they_are_or_blocking_and_come_back_non_blocking() {
    let is_blocking = |client: &OwnedFd| {
        let flags = nix::fcntl::fcntl(client, nix::fcntl::FcntlArg::F_GETFL).unwrap();
        flags & nix::fcntl::OFlag::O_NONBLOCK.bits() == 0
    };
    for blocking in [false, true] {
        let bench = Bench::new();
        let mut acceptor = Acceptor::bind(bench.path(), Dialect::Auto, Options::default()).unwrap();
        let mut to = daemon(&bench.path(), Dialect::Auto);
        if blocking {
            to = to.with_blocking_clients();
        }
        let (client, _far) = tcp_client();
        let (result, handoff) = hand_over(client, b"", &to, long(), || acceptor.accept().unwrap().unwrap());
        assert_eq!(result.unwrap(), Taken);
        assert_eq!(is_blocking(&handoff.into_client()), blocking);
        drop(acceptor);

        let listener = Rough::listen(&bench.path(), SockType::SeqPacket, 8);
        let (client, _far) = tcp_client();
        let (result, ()) = hand_over(client, b"", &to, long(), || drop(listener.accept()));
        assert!(!is_blocking(&refused(result).0));
    }
}

#[test]
fn ten_thousand_handoffs_leave_nothing_open() {
    let bench = Bench::new();
    let mut acceptor = Acceptor::bind(bench.path(), Dialect::Seqpacket, Options::default()).unwrap();
    let stop = acceptor.stop_handle();
    let to = daemon(&bench.path(), Dialect::Auto);
    thread::scope(|scope| {
        let taking = scope.spawn(move || acceptor.by_ref().map(Result::unwrap).count());
        run(async {
            for _ in 0..10_000 {
                let (client, _far) = UnixStream::pair().unwrap();
                send(client.into(), &Message::new("data"), &to, &long()).await.unwrap();
            }
        });
        stop.stop();
        assert_eq!(taking.join().unwrap(), 10_000);
    });
    drop(stop);
    bench.check_ledger();
}

#[test]
fn dropping_a_handoff_midway_closes_the_client_unwritten() {
    let bench = Bench::new();
    let listener = Rough::listen(&bench.path(), SockType::SeqPacket, 8);
    let (client, mut far) = tcp_client();
    let to = daemon(&bench.path(), Dialect::Auto);
    run(async {
        let message = Message::default();
        let deadlines = long();
        let sending = send(client, &message, &to, &deadlines);
        assert!(tokio::time::timeout(Duration::from_millis(20), sending).await.is_err());
    });
    drop(listener);
    assert_eq!(rest(&mut far), b"");
    drop(far);
    bench.check_ledger();
}
