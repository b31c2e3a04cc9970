//! The daemon's end: listen, adopt, acknowledge by reading, hand out clients one by one. Blocking, without a runtime.

use std::ffi::OsString;
use std::io::{self, PipeReader, PipeWriter, Write as _};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, fmt, fs};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Backlog, SockType, getsockopt, listen, setsockopt, sockopt};
use nix::sys::stat::{Mode, fchmod};

use super::client;
use super::dialect::{Dialect, SocketKind};
use super::environment::environment;
use super::incoming::{Buffer, Incoming, ReceiveError, read_datagram};
use super::message::Message;
use super::resolved::Resolved;

/// Connections whose message has not arrived yet, at most; more wait in the backlog.
const INCOMING_MAX: usize = 64;
/// How long nothing is accepted or read after this process has run out of descriptors or memory: far less than a gateway
/// waits for its message to be read.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(20);

/// How an [`Acceptor`] listens and whom it believes.
#[derive(Clone, Debug)]
pub struct Options {
    /// Who may hand clients over, by SO_PEERCRED, or with datagrams by SCM_CREDENTIALS (unix(7)). `None`: the uids in the environment variable
    /// `BATON_GATEWAY_UIDS`, separated by commas, or without it this process's own and root.
    pub allow_uids: Option<Vec<u32>>,
    /// Handoffs that may wait to be accepted; net.core.somaxconn bounds it too. Of datagrams as many wait as
    /// net.unix.max_dgram_qlen says.
    pub backlog: u16,
    /// The longest message, in bytes.
    pub message_bytes_max: usize,
    /// How long a peer may take from its connection to a whole message. Others are received in the meantime.
    pub receive_timeout: Duration,
    /// Told of every connection that was dropped, and why.
    pub report: fn(&ReceiveError),
    /// Permission bits of the socket file. Whoever may write to it may connect; `allow_uids` is asked after that.
    pub socket_mode: u32,
}

impl Default for Options {
    /// 128 handoffs in the backlog, messages of 1 MiB within 5 s, mode 0660, and nobody told.
    fn default() -> Self {
        Self {
            allow_uids: None,
            backlog: 128,
            message_bytes_max: 1 << 20,
            receive_timeout: Duration::from_secs(5),
            report: |_| {},
            socket_mode: 0o660,
        }
    }
}

/// A listening socket that clients are handed over on.
///
/// Dropping it closes the socket, upon which the gateway takes back every client that nobody has accepted, and removes
/// the socket's file if it is still the one that was bound.
#[derive(Debug)]
pub struct Acceptor {
    /// In the dialect `datagram` nothing is accepted from it: it is read.
    listener: UnixListener,
    dialect: Dialect,
    allow_uids: Vec<u32>,
    options: Options,
    incoming: Vec<Incoming>,
    buffer: Buffer,
    stop_asked: PipeReader,
    stop: Stop,
    file: Option<SocketFile>,
}

impl Acceptor {
    /// Listens at `path`. A socket file that nobody listens on any more is replaced; a live one is not.
    ///
    /// # Errors
    /// AddrInUse when somebody listens there, or something else than a socket stands there; InvalidInput when
    /// `BATON_GATEWAY_UIDS` is no list of numbers; otherwise what the system says.
    pub fn bind(path: impl AsRef<Path>, dialect: Dialect, options: Options) -> io::Result<Self> {
        let (path, kind) = (path.as_ref(), SocketKind::of(dialect));
        remove_stale(path, kind)?;
        let listener = kind.socket()?;
        if kind == SocketKind::Datagram {
            // The kernel says who sent a datagram if it was asked to before that.
            setsockopt(&listener, sockopt::PassCred, &true)?;
        }
        // The file is made with no more than this, whatever the umask is, so that nobody slips in before it has its mode.
        fchmod(&listener, Mode::from_bits_truncate(options.socket_mode))?;
        Resolved::in_directory(path)?.bind(listener.as_fd())?;
        let file = SocketFile::of(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(options.socket_mode))?;
        if kind != SocketKind::Datagram {
            listen(&listener, Backlog::new(i32::from(options.backlog))?)?;
        }
        Self::new(listener, dialect, options, Some(file))
    }

    /// Takes a socket that already listens, for example one that a service manager passed on. Its type tells the dialect;
    /// its file, mode and backlog are its maker's. A SOCK_STREAM socket speaks `stream`; for `fdpass`, which has the same
    /// type, bind one.
    ///
    /// # Errors
    /// InvalidInput when it is of no dialect's type or does not listen, or is a datagram socket that is not told who sends
    /// (SO_PASSCRED, `PassCredentials=yes`), or as for [`bind`](Self::bind).
    pub fn from_listener(listener: OwnedFd, options: Options) -> io::Result<Self> {
        let (dialect, is_ready) = match getsockopt(&listener, sockopt::SockType)? {
            SockType::Datagram => (Dialect::Datagram, getsockopt(&listener, sockopt::PassCred)?),
            SockType::SeqPacket => (Dialect::Seqpacket, getsockopt(&listener, sockopt::AcceptConn)?),
            SockType::Stream => (Dialect::Stream, getsockopt(&listener, sockopt::AcceptConn)?),
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        if !is_ready {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Self::new(listener, dialect, options, None)
    }

    fn new(listener: OwnedFd, dialect: Dialect, options: Options, file: Option<SocketFile>) -> io::Result<Self> {
        let listener = UnixListener::from(listener);
        listener.set_nonblocking(true)?;
        let (stop_asked, ask) = io::pipe()?;
        Ok(Self {
            listener,
            dialect,
            allow_uids: allowed_uids(&options)?,
            incoming: Vec::new(),
            buffer: Buffer::new(options.message_bytes_max),
            options,
            stop_asked,
            stop: Stop { ask: Arc::new(ask) },
            file,
        })
    }

    /// A handle that ends [`accept`](Self::accept), from any thread.
    pub fn stop_handle(&self) -> Stop {
        self.stop.clone()
    }

    /// Waits for the next client; `None` once asked to stop. Having read its message is the acknowledgement: the client
    /// is this process's from now on, and nobody else will write to it or close it.
    ///
    /// A peer that breaks the protocol, stays silent or may not hand over is dropped with everything it sent, reported,
    /// and not waited for. While this process is out of descriptors, clients wait in the backlog.
    ///
    /// # Errors
    /// The listening socket is unusable. It is not the peers' doing, and trying again will not help.
    pub fn accept(&mut self) -> io::Result<Option<Handoff>> {
        loop {
            let ready = self.wait()?;
            if ready.stop {
                self.incoming.clear();
                return Ok(None);
            }
            if let Some(handoff) = self.read_on_if_possible()? {
                return Ok(Some(handoff));
            }
            if ready.listener && self.dialect == Dialect::Datagram {
                if let Some(handoff) = self.read_datagrams()? {
                    return Ok(Some(handoff));
                }
            } else if ready.listener {
                self.accept_one()?;
                // Whoever hands over sends at once: mostly the message is there already.
                if let Some(handoff) = self.read_on_if_possible()? {
                    return Ok(Some(handoff));
                }
            }
        }
    }

    /// Waits until there is something to do, or the first peer's time is up.
    fn wait(&self) -> io::Result<Ready> {
        let first = self.incoming.iter().map(|incoming| incoming.deadline).min();
        let mut interests = Vec::with_capacity(2 + self.incoming.len());
        interests.push(PollFd::new(self.stop_asked.as_fd(), PollFlags::POLLIN));
        let accepts = if self.incoming.len() < INCOMING_MAX { PollFlags::POLLIN } else { PollFlags::empty() };
        interests.push(PollFd::new(self.listener.as_fd(), accepts));
        interests.extend(self.incoming.iter().map(|one| PollFd::new(one.connection.as_fd(), PollFlags::POLLIN)));
        match poll(&mut interests, timeout(first)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Ready { stop: interests[0].any() == Some(true), listener: interests[1].any() == Some(true) })
    }

    /// Reads from everybody whose message is not whole, until one is.
    fn read_on(&mut self) -> Option<Handoff> {
        let mut index = 0;
        while let Some(one) = self.incoming.get_mut(index) {
            let read = match one.read_on(self.dialect, &mut self.buffer) {
                Ok(None) if one.deadline <= Instant::now() => Err(ReceiveError::TimedOut),
                read => read,
            };
            match read {
                Ok(None) => index += 1,
                Ok(Some((message, client))) => {
                    self.incoming.remove(index);
                    return Some(Handoff { message, client, is_head_sent: self.dialect == Dialect::Fdpass });
                }
                Err(error) => {
                    self.incoming.remove(index);
                    (self.options.report)(&error);
                }
            }
        }
        None
    }

    /// Reads from everybody, unless there is no descriptor for a client: then it waits a little. A message that is read
    /// while none is free arrives without its client, who is closed for ever, and its reading has told the gateway that the
    /// client is ours.
    fn read_on_if_possible(&mut self) -> io::Result<Option<Handoff>> {
        if self.incoming.is_empty() {
            return Ok(None);
        }
        match self.has_room() {
            Ok(()) => Ok(self.read_on()),
            Err(error) => self.pause_if_exhausted(error).map(|()| None),
        }
    }

    /// Reads what waits in a datagram socket, until one is a client.
    fn read_datagrams(&mut self) -> io::Result<Option<Handoff>> {
        loop {
            if let Err(error) = self.has_room() {
                return self.pause_if_exhausted(error).map(|()| None);
            }
            match read_datagram(self.listener.as_fd(), &self.allow_uids, &mut self.buffer) {
                Ok(None) => return Ok(None),
                Ok(Some((message, client))) => return Ok(Some(Handoff { message, client, is_head_sent: false })),
                // There is no connection that could have broken: it is the socket itself.
                Err(ReceiveError::Io(error)) => return Err(error),
                Err(error) => (self.options.report)(&error),
            }
        }
    }

    fn accept_one(&mut self) -> io::Result<()> {
        let connection = match self.listener.accept() {
            Ok((connection, _)) => OwnedFd::from(connection),
            Err(error) => return self.pause_if_exhausted(error),
        };
        let peer = getsockopt(&connection, sockopt::PeerCredentials)?;
        if self.allow_uids.contains(&peer.uid()) {
            self.incoming.push(Incoming::new(connection, Instant::now() + self.options.receive_timeout));
        } else {
            (self.options.report)(&ReceiveError::NotAllowed { uid: peer.uid() });
        }
        Ok(())
    }

    /// Whether the descriptor of a client could be received: the kernel drops what does not fit into the process's table,
    /// and the message is read all the same.
    fn has_room(&self) -> io::Result<()> {
        self.listener.as_fd().try_clone_to_owned().map(drop)
    }

    /// Waits for a while where this process has run out of something, so that others take the clients or they wait.
    fn pause_if_exhausted(&self, error: io::Error) -> io::Result<()> {
        match error.raw_os_error().map(Errno::from_raw) {
            // Gone again, or taken by another thread or process that listens on the same socket.
            Some(Errno::EAGAIN | Errno::ECONNABORTED | Errno::EINTR | Errno::EPERM) => Ok(()),
            Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => {
                let mut stop = [PollFd::new(self.stop_asked.as_fd(), PollFlags::POLLIN)];
                match poll(&mut stop, timeout(Some(Instant::now() + EXHAUSTED_PAUSE))) {
                    Ok(_) | Err(Errno::EINTR) => Ok(()),
                    Err(error) => Err(error.into()),
                }
            }
            _ => Err(error),
        }
    }
}

/// Clients, until asked to stop.
impl Iterator for Acceptor {
    type Item = io::Result<Handoff>;

    fn next(&mut self) -> Option<Self::Item> {
        self.accept().transpose()
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            file.remove();
        }
    }
}

struct Ready {
    stop: bool,
    listener: bool,
}

/// Asks an [`Acceptor`] to stop.
#[derive(Clone, Debug)]
pub struct Stop {
    ask: Arc<PipeWriter>,
}

impl Stop {
    /// Ends the acceptor's `accept`, now and from now on.
    pub fn stop(&self) {
        // The byte stays in the pipe; one is enough, and a pipe that is full of them has said it.
        drop((&*self.ask).write(&[0]));
    }
}

/// A client, and what was said of it. Dropping it closes the client.
///
/// The client's socket is as the gateway had it: **non-blocking**, unless the target asks otherwise. O_NONBLOCK belongs to
/// the open file and travels with it, so say what you need with [`set_blocking`](Self::set_blocking).
pub struct Handoff {
    message: Message,
    client: OwnedFd,
    is_head_sent: bool,
}

impl Handoff {
    /// The data that a policy or an application sent along; in the dialect `datagram` the request's head, as it came.
    pub fn data(&self) -> &[u8] {
        self.message.data()
    }

    /// Whether the gateway has written the response's head, so that what is written now is its body: in the dialect
    /// `fdpass`. Others cannot tell; there the daemon writes the head, unless whoever configured both ends says otherwise.
    pub fn is_head_sent(&self) -> bool {
        self.is_head_sent
    }

    /// The client's socket, kept by the handoff.
    pub fn client(&self) -> BorrowedFd<'_> {
        self.client.as_fd()
    }

    /// The client's socket, now the caller's to close.
    pub fn into_client(self) -> OwnedFd {
        self.client
    }

    /// The client's socket as the standard library reads and writes streams: without SIGPIPE. For a client that came
    /// over a Unix socket, what is about TCP or addresses fails; the rest works.
    pub fn into_stream(self) -> TcpStream {
        self.client.into()
    }

    /// Makes reads and writes of the client wait, or not. All holders of this socket share the setting.
    ///
    /// # Errors
    /// What fcntl(2) says.
    pub fn set_blocking(&self, blocking: bool) -> io::Result<()> {
        client::set_blocking(self.client.as_fd(), blocking)
    }

    /// What is known of the client as CGI variables (RFC 3875), for a program to be started with. Owned: nothing is put
    /// into this process's environment. HANDOFF_DATA is missing when the data has a NUL byte or is longer than 131,058
    /// bytes, which no variable can hold.
    pub fn env(&self) -> Vec<(&'static str, OsString)> {
        environment(self.client.as_fd(), self.data(), self.is_head_sent)
    }
}

impl fmt::Debug for Handoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handoff").field("message", &self.message).field("client", &self.client).finish()
    }
}

/// The time left, rounded up, so that poll(2) does not return just before it.
fn timeout(deadline: Option<Instant>) -> PollTimeout {
    deadline.map_or(PollTimeout::NONE, |deadline| {
        let left = deadline.saturating_duration_since(Instant::now());
        PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX)
    })
}

/// Whose handoffs are taken. Anything unclear is an error: rather nobody than the wrong one.
fn allowed_uids(options: &Options) -> io::Result<Vec<u32>> {
    if let Some(uids) = &options.allow_uids {
        return Ok(uids.clone());
    }
    let Some(listed) = env::var_os("BATON_GATEWAY_UIDS") else {
        return Ok(vec![nix::unistd::geteuid().as_raw(), 0]);
    };
    let numbers = listed.to_str().and_then(|listed| listed.split(',').map(|uid| uid.trim().parse().ok()).collect());
    numbers.ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, "BATON_GATEWAY_UIDS is a list of user ids separated by commas")
    })
}

/// Makes way at `path`, unless somebody listens there.
fn remove_stale(path: &Path, kind: SocketKind) -> io::Result<()> {
    let standing = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        standing => standing?,
    };
    if !standing.file_type().is_socket() {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    match Resolved::in_directory(path)?.connect(kind.socket()?.as_fd()) {
        Err(Errno::ECONNREFUSED) => fs::remove_file(path),
        Err(Errno::ENOENT) => Ok(()),
        // EAGAIN is a full backlog, EPROTOTYPE another type of socket, EPERM one that talks to somebody else: all alive.
        Ok(()) | Err(Errno::EAGAIN | Errno::EPERM | Errno::EPROTOTYPE) => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) => Err(error.into()),
    }
}

/// A socket's file, recognised by its inode.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        let standing = fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_path_buf(), inode: (standing.dev(), standing.ino()) })
    }

    /// Removes it, unless a successor has already put its own in its place. Nobody can be told if that fails, and the
    /// next to bind removes what is left.
    fn remove(&self) {
        if Self::of(&self.path).is_ok_and(|standing| standing.inode == self.inode) {
            drop(fs::remove_file(&self.path));
        }
    }
}
