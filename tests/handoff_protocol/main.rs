//! Both ends of a handoff, and what goes wrong between them, with real sockets. Daemons here are written by hand where
//! they must misbehave; the library's own receiving half is asked the same questions at the end.
//!
//! All of it runs one test at a time: descriptors are counted for the whole process.
#![cfg(feature = "gateway")]

mod acceptor;
mod acknowledgement;
mod connect;
mod datagram;
mod descriptor;
mod head;
mod message;
mod seal;

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use baton::handoff::{
    Address, Beat, Daemon, Deadlines, Dialect, HeadBytes, Message, Refusal, SendError, Stage, Taken, Unread,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};
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

/// Everything until a clean end; a reset is a failure.
#[track_caller]
fn whole(far: &mut impl Read) -> Vec<u8> {
    let mut whole = Vec::new();
    far.read_to_end(&mut whole).unwrap();
    whole
}

fn wait_readable(socket: &UnixStream) {
    poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).unwrap();
}

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

fn connect_rough(path: &Path, kind: SockType) -> OwnedFd {
    let connection = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
    connect(connection.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    connection
}
