//! The daemon's end against senders that do not keep to the protocol, and its socket.

use std::fs;
use std::io::{ErrorKind, IoSlice, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use baton::handoff::{Acceptor, Dialect, Handoff, Options, ReceiveError, Taken};
use nix::sys::socket::{ControlMessage, MsgFlags, SockType, sendmsg, setsockopt, sockopt};

use crate::{Bench, KINDS, Rough, connect_rough, daemon, hand_over, ledger, long, refused, rest, tcp_client};

/// Sends bytes and descriptors as one message, however wrong.
fn send_rough(connection: &OwnedFd, bytes: &[u8], descriptors: &[i32]) {
    let rights = [ControlMessage::ScmRights(descriptors)];
    let control = if descriptors.is_empty() { &[] } else { &rights[..] };
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(connection.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None).unwrap();
}

/// Every dialect, the type of its socket, and a message of it.
const DIALECTS: [(Dialect, SockType, &[u8]); 4] = [
    (Dialect::Seqpacket, SockType::SeqPacket, b"good"),
    (Dialect::Stream, SockType::Stream, b"good"),
    (Dialect::Fdpass, SockType::Stream, b"\0"),
    (Dialect::Datagram, SockType::Datagram, b"good"),
];

static REPORTS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn listening(bench: &Bench, dialect: Dialect) -> Acceptor {
    REPORTS.lock().unwrap().clear();
    let report = |error: &ReceiveError| REPORTS.lock().unwrap().push(format!("{error:?}"));
    let receive_timeout = Duration::from_millis(100);
    let options = Options { report, message_bytes_max: 1000, receive_timeout, ..Options::default() };
    Acceptor::bind(bench.path(), dialect, options).unwrap()
}

/// What the acceptor hands out next, after a good client was put behind whatever is there.
fn next_good(bench: &Bench, acceptor: &mut Acceptor, kind: SockType, message: &[u8]) -> Handoff {
    let (good, _far) = UnixStream::pair().unwrap();
    let connection = connect_rough(&bench.path(), kind);
    send_rough(&connection, message, &[good.as_raw_fd()]);
    drop(connection);
    acceptor.accept().unwrap().unwrap()
}

#[test]
fn a_message_with_no_descriptor_or_several_is_dropped_with_all_of_them() {
    for (dialect, kind, good) in DIALECTS {
        for (count, error) in
            [(0, "NoDescriptor"), (2, "Descriptors(2)"), (3, "Descriptors(3)"), (253, "Descriptors(253)")]
        {
            let bench = Bench::new();
            let mut acceptor = listening(&bench, dialect);
            let before = ledger();
            let (stray, _far) = UnixStream::pair().unwrap();
            let connection = connect_rough(&bench.path(), kind);
            send_rough(&connection, b"bad", &vec![stray.as_raw_fd(); count]);
            drop((connection, stray, _far));
            let handoff = next_good(&bench, &mut acceptor, kind, good);
            let is_head_sent = dialect == Dialect::Fdpass;
            assert_eq!((handoff.data(), handoff.is_head_sent()), (if is_head_sent { b"" } else { good }, is_head_sent));
            drop(handoff);
            assert_eq!(*REPORTS.lock().unwrap(), [error]);
            assert_eq!(ledger(), before);
        }
    }
}

#[test]
fn descriptors_on_several_parts_of_a_stream_are_dropped_at_the_second() {
    let bench = Bench::new();
    let mut acceptor = listening(&bench, Dialect::Stream);
    let before = ledger();
    let (stray, far) = UnixStream::pair().unwrap();
    let connection = connect_rough(&bench.path(), SockType::Stream);
    send_rough(&connection, b"a", &[stray.as_raw_fd()]);
    send_rough(&connection, b"b", &[stray.as_raw_fd()]);
    drop((connection, stray, far));
    drop(next_good(&bench, &mut acceptor, SockType::Stream, b"good"));
    assert_eq!(*REPORTS.lock().unwrap(), ["Descriptors(2)"]);
    assert_eq!(ledger(), before);
}

#[test]
fn a_descriptor_that_is_no_stream_socket_is_dropped() {
    for (dialect, kind, good) in DIALECTS {
        let bench = Bench::new();
        let mut acceptor = listening(&bench, dialect);
        let before = ledger();
        let file = fs::File::open("/proc/self/maps").unwrap();
        let datagram = std::os::unix::net::UnixDatagram::unbound().unwrap();
        for number in [file.as_raw_fd(), datagram.as_raw_fd()] {
            send_rough(&connect_rough(&bench.path(), kind), b"bad", &[number]);
        }
        drop((file, datagram));
        drop(next_good(&bench, &mut acceptor, kind, good));
        assert_eq!(*REPORTS.lock().unwrap(), ["NotAStream", "NotAStream"]);
        assert_eq!(ledger(), before);
    }
}

#[test]
fn a_message_past_the_limit_is_dropped_and_one_at_it_arrives() {
    for (dialect, kind, _) in DIALECTS.into_iter().filter(|(dialect, ..)| *dialect != Dialect::Fdpass) {
        let bench = Bench::new();
        let mut acceptor = listening(&bench, dialect);
        let before = ledger();
        for length in [1001, 5000, 1000] {
            let (client, _far) = UnixStream::pair().unwrap();
            send_rough(&connect_rough(&bench.path(), kind), &vec![b'x'; length], &[client.as_raw_fd()]);
        }
        let handoff = acceptor.accept().unwrap().unwrap();
        assert_eq!(handoff.data().len(), 1000);
        drop(handoff);
        assert_eq!(*REPORTS.lock().unwrap(), ["TooLarge", "TooLarge"]);
        assert_eq!(ledger(), before);
    }
}

#[test]
fn a_silent_peer_delays_nobody_and_is_dropped_when_its_time_is_up() {
    for (dialect, kind) in KINDS {
        let bench = Bench::new();
        let mut acceptor = listening(&bench, dialect);
        let silent: Vec<OwnedFd> = (0..5).map(|_| connect_rough(&bench.path(), kind)).collect();
        let begun = Instant::now();
        drop(next_good(&bench, &mut acceptor, kind, b"good"));
        assert!(begun.elapsed() < Duration::from_millis(90));
        let stop = acceptor.stop_handle();
        thread::scope(|scope| {
            scope.spawn(|| {
                for connection in silent {
                    assert_eq!(UnixStream::from(connection).read(&mut [0; 8]).unwrap(), 0);
                }
                stop.stop();
            });
            assert!(acceptor.accept().unwrap().is_none());
        });
        assert_eq!(*REPORTS.lock().unwrap(), ["TimedOut"; 5]);
    }
}

#[test]
fn a_peer_that_is_not_listed_is_dropped() {
    let bench = Bench::new();
    REPORTS.lock().unwrap().clear();
    let uid = nix::unistd::geteuid().as_raw();
    let report = |error: &ReceiveError| REPORTS.lock().unwrap().push(format!("{error:?}"));
    let options = Options { allow_uids: Some(vec![uid + 1]), report, ..Options::default() };
    let mut acceptor = Acceptor::bind(bench.path(), Dialect::Seqpacket, options.clone()).unwrap();
    let (client, _far) = tcp_client();
    let stop = acceptor.stop_handle();
    let (result, ()) = hand_over(client, b"", &daemon(&bench.path(), Dialect::Auto), long(), || {
        thread::scope(|scope| {
            scope.spawn(|| assert!(acceptor.accept().unwrap().is_none()));
            while REPORTS.lock().unwrap().is_empty() {
                thread::yield_now();
            }
            stop.stop();
        });
    });
    refused(result);
    assert_eq!(*REPORTS.lock().unwrap(), [format!("NotAllowed {{ uid: {uid} }}")]);
    drop(acceptor);

    // Of a datagram it is known only when it was read: its client is closed.
    let mut acceptor = Acceptor::bind(bench.path(), Dialect::Datagram, options).unwrap();
    let stop = acceptor.stop_handle();
    let (client, mut far) = tcp_client();
    send_rough(&connect_rough(&bench.path(), SockType::Datagram), b"head", &[client.as_raw_fd()]);
    drop(client);
    thread::scope(|scope| {
        scope.spawn(|| assert!(acceptor.accept().unwrap().is_none()));
        assert_eq!(rest(&mut far), b"");
        stop.stop();
    });
    assert_eq!(*REPORTS.lock().unwrap(), vec![format!("NotAllowed {{ uid: {uid} }}"); 2]);
}

#[test]
fn another_dialects_message_is_dropped_where_only_the_body_would_be_written() {
    for message in [&b"data"[..], b"\0\0", b"x"] {
        let bench = Bench::new();
        let mut acceptor = listening(&bench, Dialect::Fdpass);
        let (client, _far) = UnixStream::pair().unwrap();
        send_rough(&connect_rough(&bench.path(), SockType::Stream), message, &[client.as_raw_fd()]);
        drop(next_good(&bench, &mut acceptor, SockType::Stream, b"\0"));
        assert_eq!(*REPORTS.lock().unwrap(), ["NotEmpty"]);
    }
}

/// Apache's sender closes its end when its request has ended, which may be long after.
#[test]
fn a_message_of_fdpass_is_whole_while_its_sender_keeps_the_connection() {
    let bench = Bench::new();
    let mut acceptor = listening(&bench, Dialect::Fdpass);
    let (client, _far) = UnixStream::pair().unwrap();
    let connection = connect_rough(&bench.path(), SockType::Stream);
    send_rough(&connection, b"\0", &[client.as_raw_fd()]);
    assert!(acceptor.accept().unwrap().unwrap().is_head_sent());
}

#[test]
fn an_empty_datagram_brings_a_client_all_the_same() {
    let bench = Bench::new();
    let mut acceptor = listening(&bench, Dialect::Datagram);
    let (client, _far) = UnixStream::pair().unwrap();
    send_rough(&connect_rough(&bench.path(), SockType::Datagram), b"", &[client.as_raw_fd()]);
    assert_eq!(acceptor.accept().unwrap().unwrap().data(), b"");
    // What stands in the message is the client's, also where it looks like another dialect's nothing.
    send_rough(&connect_rough(&bench.path(), SockType::Datagram), b"\0", &[client.as_raw_fd()]);
    assert_eq!(acceptor.accept().unwrap().unwrap().data(), b"\0");
}

#[test]
fn a_live_socket_is_not_stolen_and_a_stale_one_is_replaced() {
    let bench = Bench::new();
    for (dialect, kind, _) in DIALECTS {
        let first = Acceptor::bind(bench.path(), dialect, Options::default()).unwrap();
        for (other, ..) in DIALECTS {
            let error = Acceptor::bind(bench.path(), other, Options::default()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::AddrInUse);
        }
        drop(first);
        assert!(!bench.path().exists());

        drop(Rough::listen(&bench.path(), kind, 1));
        assert!(bench.path().exists());
        drop(Acceptor::bind(bench.path(), dialect, Options::default()).unwrap());
    }
    fs::write(bench.path(), "a file of somebody's").unwrap();
    let error = Acceptor::bind(bench.path(), Dialect::Auto, Options::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    assert_eq!(fs::read(bench.path()).unwrap(), b"a file of somebody's");
}

#[test]
fn the_socket_has_the_mode_that_was_asked_for() {
    use std::os::unix::fs::PermissionsExt as _;
    for (dialect, ..) in DIALECTS {
        let bench = Bench::new();
        let options = Options { socket_mode: 0o604, ..Options::default() };
        let _acceptor = Acceptor::bind(bench.path(), dialect, options).unwrap();
        assert_eq!(fs::metadata(bench.path()).unwrap().permissions().mode() & 0o777, 0o604);
    }
}

#[test]
fn an_inherited_listener_speaks_the_dialect_of_its_type() {
    let bench = Bench::new();
    let listener = Rough::listen(&bench.path(), SockType::Stream, 8);
    let mut acceptor = Acceptor::from_listener(listener.0.into(), Options::default()).unwrap();
    let (client, _far) = tcp_client();
    let to = daemon(&bench.path(), Dialect::Auto);
    let (result, handoff) = hand_over(client, b"data", &to, long(), || acceptor.accept().unwrap().unwrap());
    assert_eq!(result.unwrap(), Taken);
    assert_eq!(handoff.data(), b"data");

    let (unconnected, _far) = UnixStream::pair().unwrap();
    assert!(Acceptor::from_listener(unconnected.into(), Options::default()).is_err());

    // A datagram socket must have been told to say who sends, before anything was sent.
    let bound = |name: &str| UnixDatagram::bind(bench.folder.path().join(name)).unwrap();
    assert!(Acceptor::from_listener(bound("mute").into(), Options::default()).is_err());
    let telling = bound("telling");
    setsockopt(&telling, sockopt::PassCred, &true).unwrap();
    let mut acceptor = Acceptor::from_listener(telling.into(), Options::default()).unwrap();
    let (client, _far) = tcp_client();
    let to = daemon(&bench.folder.path().join("telling"), Dialect::Datagram);
    let (result, handoff) = hand_over(client, b"head", &to, long(), || acceptor.accept().unwrap().unwrap());
    assert_eq!((result.unwrap(), handoff.data()), (Taken, &b"head"[..]));
}
