//! On the way to a daemon: who is not there, which kind of socket it is, a full backlog, whose process it is.

use std::fs;
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use baton::handoff::{Address, Daemon, Dialect, Message, Refusal, Stage, Taken};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use crate::{Bench, KINDS, Rough, daemon, hand_over, long, read, refused, run, send, short, tcp_client};

#[test]
fn nobody_listening_and_no_file_are_refused_at_connect() {
    let bench = Bench::new();
    for kind in [SockType::SeqPacket, SockType::Stream] {
        drop(Rough::listen(&bench.path(), kind, 1));
        let (client, _far) = tcp_client();
        let result = run(send(client, &Message::default(), &daemon(&bench.path(), Dialect::Auto), &long()));
        assert_eq!(refused(result).1, Stage::Connect);
        fs::remove_file(bench.path()).unwrap();
    }
    let (client, _far) = tcp_client();
    let result = run(send(client, &Message::default(), &daemon(&bench.path(), Dialect::Auto), &long()));
    assert_eq!(refused(result).1, Stage::Connect);
}

#[test]
fn auto_finds_the_kind_of_socket_and_follows_its_change() {
    let bench = Bench::new();
    let to = daemon(&bench.path(), Dialect::Auto);
    for kind in [SockType::Stream, SockType::Stream, SockType::SeqPacket, SockType::Stream] {
        let listener = Rough::listen(&bench.path(), kind, 8);
        let (client, _far) = tcp_client();
        let (result, ()) = hand_over(client, b"data", &to, long(), || drop(read(&listener.accept(), 100)));
        assert_eq!(result.unwrap(), Taken);
        fs::remove_file(bench.path()).unwrap();
    }
}

#[test]
fn a_full_backlog_is_waited_for_until_the_deadline() {
    for (dialect, kind) in KINDS {
        let bench = Bench::new();
        let listener = Rough::listen(&bench.path(), kind, 0);
        let fill = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
        connect(fill.as_raw_fd(), &UnixAddr::new(&bench.path()).unwrap()).unwrap();
        let to = daemon(&bench.path(), dialect);

        let (client, _far) = tcp_client();
        let begun = Instant::now();
        let (client, stage, source) = refused(run(send(client, &Message::default(), &to, &short())));
        assert!((Duration::from_millis(100)..Duration::from_secs(2)).contains(&begun.elapsed()));
        assert_eq!(stage, Stage::Connect);
        assert!(matches!(source, Refusal::TimedOut));

        let (result, ()) = hand_over(client, b"", &to, long(), || {
            drop(listener.accept());
            drop(read(&listener.accept(), 100));
        });
        assert_eq!(result.unwrap(), Taken);
    }
}

#[test]
fn a_daemon_of_another_user_gets_nothing() {
    let bench = Bench::new();
    let listener = Rough::listen(&bench.path(), SockType::SeqPacket, 8);
    let uid = nix::unistd::geteuid().as_raw();
    let to = Daemon::new(Address::new(bench.path()).unwrap(), Dialect::Auto, vec![uid + 1]);
    let (client, _far) = tcp_client();
    let (_, stage, source) = refused(run(send(client, &Message::default(), &to, &long())));
    assert_eq!(stage, Stage::Connect);
    assert!(matches!(source, Refusal::NotAllowed { uid: found } if found == uid));
    assert_eq!(listener.accept().read(&mut [0; 8]).unwrap(), 0);
}
