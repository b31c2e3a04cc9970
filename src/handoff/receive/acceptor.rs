//! The listening socket and whoever is in the middle of handing over: wait, adopt, acknowledge by reading, one client after
//! the other. Blocking, without a runtime.

use std::fs;
use std::io::{self, PipeReader, PipeWriter, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Backlog, SockType, getsockopt, listen, setsockopt, sockopt};
use nix::sys::stat::{Mode, fchmod};

use super::super::dialect::{Dialect, SocketKind};
use super::super::resolved::Resolved;
use super::handoff::Handoff;
use super::incoming::{Buffer, Incoming, ReceiveError, read_datagram};
use super::options::{Options, allowed_uids};
use super::socket_file::{SocketFile, remove_stale};

/// Connections whose message has not arrived yet, at most; more wait in the backlog.
const INCOMING_MAX: usize = 64;
/// How long nothing is accepted or read after this process has run out of descriptors or memory: far less than a gateway
/// waits for its message to be read.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(20);

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
                    return Some(Handoff::new(message, client, self.dialect == Dialect::Fdpass));
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
                Ok(Some((message, client))) => return Ok(Some(Handoff::new(message, client, false))),
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

/// The time left, rounded up, so that poll(2) does not return just before it.
fn timeout(deadline: Option<Instant>) -> PollTimeout {
    deadline.map_or(PollTimeout::NONE, |deadline| {
        let left = deadline.saturating_duration_since(Instant::now());
        PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX)
    })
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
