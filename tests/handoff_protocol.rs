//! Both ends of a handoff, and what goes wrong between them, with real sockets. Daemons here are written by hand where
//! they must misbehave; the library's own receiving half is asked the same questions at the end.
//!
//! All of it runs one test at a time: descriptors are counted for the whole process.
#![cfg(feature = "gateway")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use baton::handoff::{
    Acceptor, Address, Beat, Daemon, Deadlines, Dialect, Handoff, HeadBytes, Message, Options, ReceiveError, Refusal,
    Sealed, SendError, Stage, Taken, Unread,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, listen, sendmsg,
    setsockopt, socket, sockopt,
};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

const ANSWER: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
const KINDS: [(Dialect, SockType); 2] =
    [(Dialect::Seqpacket, SockType::SeqPacket), (Dialect::Stream, SockType::Stream)];

/// One test's turn, its folder, and the descriptors that were open when it began.
struct Bench {
    folder: tempfile::TempDir,
    before: BTreeMap<i32, PathBuf>,
    _turn: MutexGuard<'static, ()>,
}

impl Bench {
    fn new() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        // The first runtime opens what the process keeps for signals.
        run(async {});
        Self { folder: tempfile::tempdir().unwrap(), before: ledger(), _turn: turn }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    /// Nothing was left open by what happened since the beginning.
    fn check_ledger(&self) {
        assert_eq!(ledger(), self.before);
    }
}

/// Every open descriptor, and what it is.
fn ledger() -> BTreeMap<i32, PathBuf> {
    let numbers: Vec<i32> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    // The folder itself was open while it was read, and is gone by now.
    let link = |number| Some((number, fs::read_link(format!("/proc/self/fd/{number}")).ok()?));
    numbers.into_iter().filter_map(link).collect()
}

/// A client as the gateway has it, and its far end.
fn tcp_client() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (client, _) = listener.accept().unwrap();
    client.set_nonblocking(true).unwrap();
    (client.into(), far)
}

/// A listening socket without a daemon's manners.
struct Rough(UnixListener);

impl Rough {
    fn listen(path: &Path, kind: SockType, backlog: i32) -> Self {
        let listener = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
        if kind != SockType::Datagram {
            listen(&listener, Backlog::new(backlog).unwrap()).unwrap();
        }
        Self(listener.into())
    }

    /// The socket itself, which is what datagrams are read from.
    fn datagrams(self) -> UnixStream {
        OwnedFd::from(self.0).into()
    }

    fn accept(&self) -> UnixStream {
        self.0.accept().unwrap().0
    }
}

/// Reads at most `bytes_max` of a message; the client, when its descriptor came along.
fn read(connection: &UnixStream, bytes_max: usize) -> (Vec<u8>, Option<TcpStream>) {
    let mut bytes = vec![0; bytes_max];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(connection, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
    let client = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next().map(TcpStream::from),
        _ => None,
    });
    bytes.truncate(received.bytes);
    (bytes, client)
}

fn short() -> Deadlines {
    let short = Duration::from_millis(100);
    Deadlines { connect: short, send: short, acknowledge: short, head: short }
}

fn long() -> Deadlines {
    let long = Duration::from_secs(20);
    Deadlines { connect: long, send: long, acknowledge: long, head: long }
}

fn daemon(path: &Path, dialect: Dialect) -> Daemon {
    Daemon::new(Address::new(path).unwrap(), dialect, Vec::new())
}

fn run<T>(future: impl Future<Output = T> + Send) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// The library's, with a beat of its own.
async fn send(client: OwnedFd, message: &Message, to: &Daemon, deadlines: &Deadlines) -> Result<Taken, SendError> {
    send_behind(None, client, message, to, deadlines).await
}

/// The same behind a response's head.
async fn send_behind(
    head: Option<&mut HeadBytes>,
    client: OwnedFd,
    message: &Message,
    to: &Daemon,
    deadlines: &Deadlines,
) -> Result<Taken, SendError> {
    let beat = Beat::default();
    tokio::select! {
        result = baton::handoff::send(client, message, head, to, deadlines, &beat) => result,
        () = beat.run() => unreachable!("it never ends"),
    }
}

/// Hands over while `act` plays the daemon.
fn hand_over<T: Send>(
    client: OwnedFd,
    message: &[u8],
    to: &Daemon,
    deadlines: Deadlines,
    act: impl FnOnce() -> T + Send,
) -> (Result<Taken, SendError>, T) {
    thread::scope(|scope| {
        let acting = scope.spawn(act);
        let result = run(send(client, &Message::new(message), to, &deadlines));
        (result, acting.join().unwrap())
    })
}

fn rest(far: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    match far.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    rest
}

#[track_caller]
fn unread(result: Result<Taken, SendError>) -> Unread {
    match result {
        Err(SendError::Unread(unread)) => unread,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn refused(result: Result<Taken, SendError>) -> (OwnedFd, Stage, Refusal) {
    match result {
        Err(SendError::Refused { client, stage, source }) => (client, stage, source),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_bytes_on_the_wire_are_the_data_or_one_zero_byte() {
    for (dialect, kind) in KINDS {
        for (data, wire) in [(&b""[..], &b"\0"[..]), (b"{\"user\":1}", b"{\"user\":1}"), (b"\0\0", b"\0\0")] {
            let bench = Bench::new();
            let listener = Rough::listen(&bench.path(), kind, 8);
            let (client, mut far) = tcp_client();
            let (result, ()) = hand_over(client, data, &daemon(&bench.path(), dialect), long(), || {
                let connection = listener.accept();
                let (bytes, client) = read(&connection, 1 << 16);
                assert_eq!(bytes, wire);
                client.unwrap().write_all(b"from the daemon").unwrap();
            });
            assert_eq!(result.unwrap(), Taken);
            assert_eq!(rest(&mut far), b"from the daemon");
            drop((listener, far));
            bench.check_ledger();
        }
    }
}

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
fn a_stream_of_one_byte_that_is_closed_unread_is_certainly_ours() {
    let bench = Bench::new();
    let listener = Rough::listen(&bench.path(), SockType::Stream, 8);
    let (client, _far) = tcp_client();
    let to = daemon(&bench.path(), Dialect::Stream);
    let (result, ()) = hand_over(client, b"x", &to, long(), || drop(listener.accept()));
    refused(result);
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
    let mut heard = Vec::new();
    far.read_to_end(&mut heard).unwrap();
    assert_eq!(heard, b"");
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

#[test]
fn a_message_that_is_too_large_names_its_size_and_the_limit() {
    let bench = Bench::new();
    let _listener = Rough::listen(&bench.path(), SockType::SeqPacket, 8);
    let (client, _far) = tcp_client();
    // Larger than a packet can be, whatever we are allowed.
    let message = Message::new(vec![b'x'; 64 << 20]);
    let (_, stage, source) = refused(run(send(client, &message, &daemon(&bench.path(), Dialect::Seqpacket), &short())));
    assert_eq!(stage, Stage::Send);
    assert!(matches!(source, Refusal::TooLarge { bytes, bytes_max } if bytes > bytes_max), "{source:?}");
}

#[test]
fn large_messages_arrive_whole_in_both_dialects() {
    for (dialect, _) in KINDS {
        let bench = Bench::new();
        let mut acceptor = Acceptor::bind(bench.path(), dialect, Options::default()).unwrap();
        // More than a send buffer holds by default, less than anybody may raise it to.
        let data: Vec<u8> = (0..300_000_u32).map(|number| number.to_le_bytes()[0]).collect();
        let (client, _far) = tcp_client();
        let (result, handoff) =
            hand_over(client, &data, &daemon(&bench.path(), dialect), long(), || acceptor.accept().unwrap().unwrap());
        assert_eq!(result.unwrap(), Taken);
        assert!(handoff.data() == data);
    }
}

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

// The response's head, written before the descriptor goes.

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

/// Everything until a clean end; a reset is a failure.
#[track_caller]
fn whole(far: &mut TcpStream) -> Vec<u8> {
    let mut whole = Vec::new();
    far.read_to_end(&mut whole).unwrap();
    whole
}

#[track_caller]
fn check_reset(far: &mut TcpStream) {
    let mut bytes = Vec::new();
    assert_eq!(far.read_to_end(&mut bytes).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(HEAD.starts_with(&bytes), "{bytes:?}");
}

fn wait_readable(socket: &UnixStream) {
    poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).unwrap();
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

// Datagrams: no connection tells of a daemon's end.

/// Fills a datagram socket's queue.
fn fill(path: &Path) -> Vec<OwnedFd> {
    let mut senders = Vec::new();
    loop {
        let sender = connect_rough(path, SockType::Datagram);
        let flags = MsgFlags::MSG_DONTWAIT;
        match nix::sys::socket::send(sender.as_raw_fd(), b"other", flags) {
            Ok(_) => senders.push(sender),
            Err(error) => {
                assert_eq!(error, nix::errno::Errno::EAGAIN);
                return senders;
            }
        }
    }
}

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
    let mut heard = Vec::new();
    far.read_to_end(&mut heard).unwrap();
    assert_eq!(heard, b"");
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
    let mut heard = Vec::new();
    far.read_to_end(&mut heard).unwrap();
    assert_eq!(heard, ANSWER);

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

#[test]
fn a_packet_at_the_limit_is_sent_and_one_byte_past_it_names_the_limit() {
    for (dialect, kind) in [(Dialect::Seqpacket, SockType::SeqPacket), (Dialect::Datagram, SockType::Datagram)] {
        let bench = Bench::new();
        let listener = Rough::listen(&bench.path(), kind, 8);
        let to = daemon(&bench.path(), dialect);
        let (client, _far) = tcp_client();
        let (client, _, source) = refused(run(send(client, &Message::new(vec![b'x'; 64 << 20]), &to, &long())));
        let Refusal::TooLarge { bytes_max, .. } = source else { panic!("{source:?}") };
        let (client, _, source) = refused(run(send(client, &Message::new(vec![b'x'; bytes_max + 1]), &to, &long())));
        assert!(matches!(source, Refusal::TooLarge { bytes, .. } if bytes == bytes_max + 1), "{source:?}");
        let (result, (bytes, _kept)) = hand_over(client, &vec![b'x'; bytes_max], &to, long(), || {
            if kind == SockType::Datagram {
                let receiver = listener.datagrams();
                wait_readable(&receiver);
                return (read(&receiver, bytes_max + 1).0.len(), receiver);
            }
            // The connections of those that were refused come first, with nothing on them.
            drop((listener.accept(), listener.accept()));
            let connection = listener.accept();
            wait_readable(&connection);
            (read(&connection, bytes_max + 1).0.len(), connection)
        });
        assert_eq!((result.unwrap(), bytes), (Taken, bytes_max));
    }
}

// The daemon's end against senders that do not keep to the protocol.

/// Sends bytes and descriptors as one message, however wrong.
fn send_rough(connection: &OwnedFd, bytes: &[u8], descriptors: &[i32]) {
    let rights = [ControlMessage::ScmRights(descriptors)];
    let control = if descriptors.is_empty() { &[] } else { &rights[..] };
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(connection.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None).unwrap();
}

fn connect_rough(path: &Path, kind: SockType) -> OwnedFd {
    let connection = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
    connect(connection.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    connection
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
