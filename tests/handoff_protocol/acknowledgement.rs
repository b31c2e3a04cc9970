//! What the kernel tells the sender of its message while it waits: read, or never read.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::thread;
use std::time::Duration;

use baton::handoff::{Dialect, Refusal, Sealed, Stage, Taken};
use nix::sys::socket::SockType;

use crate::{ANSWER, Bench, KINDS, Rough, daemon, hand_over, long, read, refused, rest, short, tcp_client, unread};

#[test]
fn a_daemon_that_keeps_its_end_open_is_seen_to_have_read() {
    for (dialect, kind) in KINDS {
        let bench = Bench::new();
        let listener = Rough::listen(&bench.path(), kind, 8);
        let (client, _far) = tcp_client();
        let (result, _kept) = hand_over(client, b"data", &daemon(&bench.path(), dialect), long(), || {
            let connection = listener.accept();
            // Long after the gateway has begun to wait.
            #[expect(
                clippy::disallowed_methods,
                reason = "that the gateway waits cannot be seen from here, only be likely"
            )]
            thread::sleep(Duration::from_millis(30));
            let client = read(&connection, 100).1.unwrap();
            (connection, client)
        });
        assert_eq!(result.unwrap(), Taken);
    }
}

#[test]
fn a_daemon_that_says_it_will_not_write_has_not_read_yet() {
    for (dialect, kind) in KINDS {
        let bench = Bench::new();
        let listener = Rough::listen(&bench.path(), kind, 8);
        let (client, mut far) = tcp_client();
        let (result, connection) = hand_over(client, b"", &daemon(&bench.path(), dialect), short(), || {
            let connection = listener.accept();
            connection.shutdown(std::net::Shutdown::Write).unwrap();
            connection
        });
        assert_eq!(unread(result).seal(ANSWER), Sealed::Answered);
        assert_eq!(rest(&mut far), ANSWER);
        drop(connection);
    }
}

#[test]
fn a_client_never_read_comes_back_untouched() {
    for (dialect, kind) in KINDS {
        for accepts in [true, false] {
            let bench = Bench::new();
            let listener = Rough::listen(&bench.path(), kind, 8);
            let (client, mut far) = tcp_client();
            let inode = fs::read_link(format!("/proc/self/fd/{}", client.as_raw_fd())).unwrap();
            let to = daemon(&bench.path(), dialect);
            let path = bench.path();
            let (result, ()) = hand_over(client, b"", &to, long(), move || {
                let wait_for = |connections: usize| {
                    // A connection is in the backlog once the kernel lists a second socket with the path.
                    while fs::read_to_string("/proc/net/unix").unwrap().matches(path.to_str().unwrap()).count()
                        <= connections
                    {
                        thread::yield_now();
                    }
                };
                wait_for(1);
                if accepts {
                    drop(listener.accept());
                }
                drop(listener);
            });
            let (client, stage, source) = refused(result);
            assert!(stage == Stage::Acknowledge || stage == Stage::Send, "{stage:?}");
            assert!(matches!(source, Refusal::NeverRead | Refusal::Io(_)), "{source:?}");
            assert_eq!(fs::read_link(format!("/proc/self/fd/{}", client.as_raw_fd())).unwrap(), inode);
            TcpStream::from(client).write_all(ANSWER).unwrap();
            assert_eq!(rest(&mut far), ANSWER);
            drop(far);
            bench.check_ledger();
        }
    }
}

#[test]
fn a_stream_of_one_byte_that_is_closed_unread_is_certainly_ours() {
    let bench = Bench::new();
    let listener = Rough::listen(&bench.path(), SockType::Stream, 8);
    let (client, _far) = tcp_client();
    let to = daemon(&bench.path(), Dialect::Stream);
    let (result, ()) = hand_over(client, b"x", &to, long(), || drop(listener.accept()));
    refused(result);
}
