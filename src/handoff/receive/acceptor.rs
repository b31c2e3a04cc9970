//! The listening socket and whoever is in the middle of handing over: wait, adopt, one client after the other. Without a
//! runtime, and for any.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use nix::sys::socket::{SockType, getsockopt, sockopt};

use super::super::ancillary::Epoll;
use super::super::dialect::{Dialect, SocketKind};
use super::engine::{Engine, Until};
use super::handoff::Handoff;
use super::inherited::{Inherited, inherited};
use super::listener::Listener;
use super::options::{Allowed, Options};
use super::shared::{Load, Shared, Stop};

/// A listening socket that clients are handed over on.
///
/// Dropping it closes the socket, upon which the gateway takes back every client that nobody has accepted, and removes
/// the socket's file if it is still the one that was bound. Clients that were accepted, and what is to be said of them, are not touched
/// by that.
///
/// In the dialect `baton` it serves the gateways' channels whenever it is asked for a client: a thread that calls
/// [`accept`](Self::accept) in a loop answers PING and learns of REVOKE while others serve clients. A program with one thread does so
/// whenever it calls this or a handoff. What nobody waits for (DONE) is sent with the next TAKEN or before `accept` waits; whoever waits elsewhere
/// between two clients calls [`flush`](Self::flush) before.
///
/// # Any runtime
/// Its descriptor ([`AsFd`]) is readable when there may be something to accept; [`try_accept`](Self::try_accept) never waits. So a runtime
/// that can wait for a descriptor needs nothing else; with tokio:
///
/// ```no_run
/// # #[cfg(feature = "gateway")]
/// # mod example {
/// use std::os::fd::AsFd as _;
/// use std::task::Poll;
///
/// use baton::handoff::{Acceptor, Handoff, watch};
/// use tokio::io::{Interest, unix::AsyncFd};
///
/// /// What tells that there may be something to accept. `watch` is `AsyncFd::register_with_interest`, and the gateway feature's.
/// fn readiness(acceptor: &Acceptor) -> std::io::Result<AsyncFd<std::os::fd::OwnedFd>> {
///     let copy = acceptor.as_fd().try_clone_to_owned()?;
///     watch(copy, Interest::READABLE).map_err(|(_, error)| error)
/// }
///
/// async fn accept(acceptor: &mut Acceptor, readiness: &AsyncFd<std::os::fd::OwnedFd>) -> std::io::Result<Option<Handoff>> {
///     loop {
///         let mut ready = readiness.readable().await?;
///         match acceptor.try_accept()? {
///             Poll::Ready(handoff) => return Ok(handoff),
///             Poll::Pending => ready.clear_ready(),
///         }
///     }
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Acceptor {
    shared: Arc<Shared>,
}

impl Acceptor {
    /// Listens at `path`. A socket file that nobody listens on any more is replaced; a live one is not.
    ///
    /// # Errors
    /// AddrInUse when somebody listens there, or something else than a socket stands there; InvalidInput when
    /// `BATON_GATEWAY_UIDS` is no list of numbers; otherwise what the system says.
    pub fn bind(path: impl AsRef<Path>, dialect: Dialect, options: Options) -> io::Result<Self> {
        // Nothing is made before it is known who may use it.
        let allowed = Allowed::new(&options)?;
        let listener = Listener::bind(path.as_ref(), dialect, &options)?;
        Self::new(Some(listener), dialect, options, allowed)
    }

    /// Takes a socket that already listens, for example one that a service manager passed on. Its type tells the dialect;
    /// its file, mode and backlog are its maker's. A SOCK_STREAM socket speaks `stream` and a SOCK_SEQPACKET socket `seqpacket`; for others of
    /// these types there is [`from_listener_of`](Self::from_listener_of).
    ///
    /// # Errors
    /// InvalidInput when it is of no dialect's type or does not listen, or is a datagram socket that is not told who sends
    /// (SO_PASSCRED, `PassCredentials=yes`), or as for [`bind`](Self::bind).
    pub fn from_listener(listener: OwnedFd, options: Options) -> io::Result<Self> {
        let dialect = match getsockopt(&listener, sockopt::SockType)? {
            SockType::Datagram => Dialect::Datagram,
            SockType::SeqPacket => Dialect::Seqpacket,
            SockType::Stream => Dialect::Stream,
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        Self::from_listener_of(listener, dialect, options)
    }

    /// The same, in the dialect that is named.
    ///
    /// # Errors
    /// As for [`from_listener`](Self::from_listener); InvalidInput too when the socket is of another type than the dialect's.
    pub fn from_listener_of(listener: OwnedFd, dialect: Dialect, options: Options) -> io::Result<Self> {
        let allowed = Allowed::new(&options)?;
        let is_ready = match (SocketKind::of(dialect), getsockopt(&listener, sockopt::SockType)?) {
            (SocketKind::Datagram, SockType::Datagram) => getsockopt(&listener, sockopt::PassCred)?,
            (SocketKind::Seqpacket, SockType::SeqPacket) | (SocketKind::Stream, SockType::Stream) => {
                getsockopt(&listener, sockopt::AcceptConn)?
            }
            _ => false,
        };
        if !is_ready {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Self::new(Some(Listener { socket: UnixListener::from(listener), file: None }), dialect, options, allowed)
    }

    /// Takes what this process was started with: a listener that a service manager has passed on (`LISTEN_FDS` and
    /// `LISTEN_PID`, or standard input), or, for one handoff, then the end, a gateway's connection on standard input (`Accept=yes`), a client there (inetd,
    /// `baton receive`), or the request of a server that starts CGI programs. `dialect` is what a listener or a
    /// gateway's connection speaks. A client's request is known as far as the environment tells; inetd's has not been read by anybody, its head included.
    ///
    /// # Errors
    /// NotFound when there is none of these, NotConnected or PermissionDenied for a gateway's connection that is none or not from one who may hand over, or as for
    /// [`from_listener_of`](Self::from_listener_of).
    pub fn inherited(dialect: Dialect, options: Options) -> io::Result<Self> {
        let connection = match inherited()? {
            Inherited::Listener(listener) => return Self::from_listener_of(listener, dialect, options),
            Inherited::Client(client) => {
                let acceptor = Self::new(None, dialect, options, Allowed::nobody())?;
                if let Some(engine) = &mut *acceptor.shared.engine() {
                    engine.give_one(Handoff::inherited(&acceptor.shared, *client));
                }
                return Ok(acceptor);
            }
            Inherited::Connection(connection) => connection,
        };
        let allowed = Allowed::new(&options)?;
        let peer = getsockopt(&connection, sockopt::PeerCredentials)?;
        if !allowed.includes(peer.uid(), peer.gid()) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        // The gateway is told not to send a second.
        let acceptor = Self::new(None, dialect, Options { in_flight_max: 1, ..options }, allowed)?;
        if let Some(engine) = &mut *acceptor.shared.engine() {
            engine.take_one(&acceptor.shared, connection)?;
        }
        Ok(acceptor)
    }

    fn new(listener: Option<Listener>, dialect: Dialect, options: Options, allowed: Allowed) -> io::Result<Self> {
        let (woken, wake) = io::pipe()?;
        let shared = Arc::new(Shared::new(options, dialect, Epoll::new()?, wake)?);
        let engine = Engine::new(&shared, listener, allowed, woken)?;
        *shared.engine() = Some(engine);
        Ok(Self { shared })
    }

    /// A handle that ends [`accept`](Self::accept), from any thread.
    pub fn stop_handle(&self) -> Stop {
        Stop { shared: Arc::clone(&self.shared) }
    }

    /// A handle that tells the gateways how busy this daemon is, from any thread.
    pub fn load_handle(&self) -> Load {
        Load { shared: Arc::clone(&self.shared) }
    }

    /// Waits for the next client; `None` once asked to stop. In the dialects without TAKEN, having read its message is the
    /// acknowledgement: the client is this process's from now on, and nobody else will write to it or close it.
    ///
    /// A peer that breaks the protocol, stays silent or may not hand over is dropped with everything it sent, reported,
    /// and not waited for. While this process is out of descriptors, clients wait in the backlog; those on a channel are refused.
    ///
    /// # Errors
    /// The listening socket is unusable. It is not the peers' doing, and trying again will not help.
    pub fn accept(&mut self) -> io::Result<Option<Handoff>> {
        loop {
            if let Poll::Ready(accepted) = self.next(Until::Forever)? {
                return Ok(accepted);
            }
        }
    }

    /// The next client if there is one, `Ready(None)` once asked to stop, `Pending` when there is nothing at the moment: then this is asked again when the descriptor
    /// is readable, or at [`deadline`](Self::deadline).
    ///
    /// # Errors
    /// As for [`accept`](Self::accept).
    pub fn try_accept(&mut self) -> io::Result<Poll<Option<Handoff>>> {
        self.next(Until::Now)
    }

    /// When [`try_accept`](Self::try_accept) should be asked at the latest although nothing has happened, so that a peer that stays
    /// silent is dropped; `None`: never. Nothing but that depends on it.
    pub fn deadline(&self) -> Option<Instant> {
        self.shared.engine().as_ref().and_then(|engine| engine.first_deadline(Until::Forever))
    }

    fn next(&mut self, until: Until) -> io::Result<Poll<Option<Handoff>>> {
        match &mut *self.shared.engine() {
            Some(engine) => engine.next(&self.shared, until),
            None => Ok(Poll::Ready(None)),
        }
    }

    /// Sends what was left for the next TAKEN or the next wait. [`accept`](Self::accept) does it when it waits.
    pub fn flush(&mut self) {
        if let Some(engine) = &mut *self.shared.engine() {
            engine.flush(&self.shared);
        }
    }

    /// Stops, as [`Stop::stop`] does, and waits for the clients in flight, at most so long; says whether all have ended. Gateways are told
    /// not to send any more (DRAINING), and what they have sent is refused.
    ///
    /// # Errors
    /// As for [`accept`](Self::accept).
    pub fn drain(&mut self, timeout: Duration) -> io::Result<bool> {
        let now = Instant::now();
        // A time that no clock reaches is long enough.
        let deadline = now.checked_add(timeout).unwrap_or(now + Duration::from_secs(u64::from(u32::MAX)));
        match &mut *self.shared.engine() {
            Some(engine) => engine.drain(&self.shared, deadline),
            None => Ok(true),
        }
    }

    /// Clients that were handed over and are neither finished, given back nor refused, those that wait to be accepted among them.
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight()
    }
}

/// Clients, until asked to stop.
impl Iterator for Acceptor {
    type Item = io::Result<Handoff>;

    fn next(&mut self) -> Option<Self::Item> {
        self.accept().transpose()
    }
}

impl AsFd for Acceptor {
    /// What a runtime waits for: readable when [`try_accept`](Self::try_accept) has something to do. Nothing else is done with it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.epoll.as_fd()
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        let engine = self.shared.engine().take();
        if let Some(mut engine) = engine {
            engine.stop(&self.shared);
        }
    }
}
