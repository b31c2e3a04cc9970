//! Messages that nobody has read, or perhaps in part: the client has one answer at most, whoever is late.

use std::io::{ErrorKind, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use baton::handoff::{Deadlines, Dialect, Message, Sealed, SendError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::SockType;

use crate::{
    ANSWER, Bench, KINDS, Rough, daemon, hand_over, long, read, rest, run, send, short, tcp_client, unread, whole,
};

#[test]
fn a_stopped_daemon_is_sealed_and_wakes_up_to_a_dead_client() {
    for (dialect, kind) in KINDS {
        for data in [&b""[..], b"more than a byte"] {
            let bench = Bench::new();
            let listener = Rough::listen(&bench.path(), kind, 8);
            let (client, mut far) = tcp_client();
            let begun = Instant::now();
            let result = run(send(client, &Message::new(data), &daemon(&bench.path(), dialect), &short()));
            assert!(begun.elapsed() < Duration::from_secs(2));
            assert_eq!(unread(result).seal(ANSWER), Sealed::Answered);

            let mut woken = read(&listener.accept(), 100).1.unwrap();
            woken.set_nonblocking(false).unwrap();
            assert_eq!(woken.write(b"late").unwrap_err().kind(), ErrorKind::BrokenPipe);
            assert_eq!(rest(&mut far), ANSWER);
            drop((listener, woken, far));
            bench.check_ledger();
        }
    }
}

#[test]
fn a_client_read_between_the_deadline_and_the_seal_is_the_daemons() {
    for (dialect, kind) in KINDS {
        let bench = Bench::new();
        let listener = Rough::listen(&bench.path(), kind, 8);
        let (client, mut far) = tcp_client();
        let unread = unread(run(send(client, &Message::default(), &daemon(&bench.path(), dialect), &short())));
        let mut late = read(&listener.accept(), 100).1.unwrap();
        assert_eq!(unread.seal(ANSWER), Sealed::LeftUnwritten);
        late.write_all(b"from the daemon").unwrap();
        drop(late);
        assert_eq!(rest(&mut far), b"from the daemon");
    }
}

#[test]
fn a_daemon_that_dies_unread_after_the_deadline_leaves_the_client_to_be_answered() {
    for (dialect, kind) in KINDS {
        let bench = Bench::new();
        let listener = Rough::listen(&bench.path(), kind, 8);
        let (client, mut far) = tcp_client();
        let unread = unread(run(send(client, &Message::default(), &daemon(&bench.path(), dialect), &short())));
        drop(listener);
        assert_eq!(unread.seal(ANSWER), Sealed::Answered);
        assert_eq!(rest(&mut far), ANSWER);
    }
}

/// The daemon reads while the answer is being written: made likely by many tries, and then each outcome must be one in
/// which the client has one answer, or the conflict is known.
#[test]
fn a_daemon_that_reads_during_the_seal_never_goes_unnoticed() {
    for (dialect, kind) in KINDS {
        for _ in 0..200 {
            let bench = Bench::new();
            let listener = Rough::listen(&bench.path(), kind, 8);
            let (client, mut far) = tcp_client();
            let soon = Deadlines { acknowledge: Duration::ZERO, ..long() };
            let unread = unread(run(send(client, &Message::default(), &daemon(&bench.path(), dialect), &soon)));
            let connection = listener.accept();
            let sealed = thread::scope(|scope| {
                scope.spawn(|| {
                    let mut client = read(&connection, 100).1.unwrap();
                    // It may be dead already.
                    drop(client.write_all(b"from the daemon"));
                });
                unread.seal(ANSWER)
            });
            let heard = rest(&mut far);
            match sealed {
                Sealed::Answered => assert_eq!(heard, ANSWER),
                Sealed::LeftUnwritten => assert_eq!(heard, b"from the daemon"),
                Sealed::Conflict => assert!(heard.windows(ANSWER.len()).any(|window| window == ANSWER)),
                Sealed::ClientGone | Sealed::Reset => panic!("{sealed:?}: the client stayed"),
            }
        }
    }
}

#[test]
fn a_stream_read_in_part_by_a_daemon_that_writes_is_never_written_by_us() {
    for closes in [true, false] {
        let bench = Bench::new();
        let listener = Rough::listen(&bench.path(), SockType::Stream, 8);
        let (client, mut far) = tcp_client();
        let to = daemon(&bench.path(), Dialect::Stream);
        let (result, served) = hand_over(client, b"more than a byte", &to, short(), || {
            let connection = listener.accept();
            let mut client = read(&connection, 1).1.unwrap();
            client.write_all(b"from the daemon").unwrap();
            (client, (!closes).then_some(connection))
        });
        assert!(matches!(result, Err(SendError::Unanswered { .. })), "{result:?}");
        drop(served);
        assert_eq!(rest(&mut far), b"from the daemon");
        drop((listener, far));
        bench.check_ledger();
    }
}

#[test]
fn a_stream_read_in_part_by_a_daemon_that_dies_silent_is_answered() {
    let bench = Bench::new();
    let listener = Rough::listen(&bench.path(), SockType::Stream, 8);
    let (client, mut far) = tcp_client();
    let to = daemon(&bench.path(), Dialect::Stream);
    let (result, ()) =
        hand_over(client, b"more than a byte", &to, long(), || drop(read(&listener.accept(), 1).1.unwrap()));
    let unread = unread(result);
    assert!(unread.is_fate_unknown());
    assert_eq!(unread.seal(ANSWER), Sealed::Answered);
    assert_eq!(rest(&mut far), ANSWER);
}

#[test]
fn a_stream_read_in_part_and_written_to_before_the_seal_is_left() {
    let bench = Bench::new();
    let listener = Rough::listen(&bench.path(), SockType::Stream, 8);
    let (client, mut far) = tcp_client();
    let to = daemon(&bench.path(), Dialect::Stream);
    let (result, mut kept) =
        hand_over(client, b"more than a byte", &to, long(), || read(&listener.accept(), 1).1.unwrap());
    let unread = unread(result);
    kept.write_all(b"from the daemon").unwrap();
    assert_eq!(unread.seal(ANSWER), Sealed::LeftUnwritten);
    drop(kept);
    assert_eq!(rest(&mut far), b"from the daemon");
}

#[test]
fn a_unix_client_of_unknown_fate_is_closed_unwritten() {
    let bench = Bench::new();
    let listener = Rough::listen(&bench.path(), SockType::Stream, 8);
    let (client, mut far) = UnixStream::pair().unwrap();
    let to = daemon(&bench.path(), Dialect::Stream);
    let (result, ()) = hand_over(client.into(), b"more than a byte", &to, long(), || {
        let connection = listener.accept();
        // Not before the message is there: one that was never sent has no unknown fate.
        poll(&mut [PollFd::new(connection.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).unwrap();
    });
    assert!(matches!(result, Err(SendError::Unanswered { .. })), "{result:?}");
    assert_eq!(whole(&mut far), b"");
}
