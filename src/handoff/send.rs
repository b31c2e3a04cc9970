//! The gateway's end: resolve, connect, send, and learn from the kernel what became of it.
//!
//! System calls of a handoff whose message is read by the time the worker has nothing else to do: `socket`, `connect`,
//! `sendmsg`, `ioctl`, `recv`, `close` twice, and a `sched_yield` for all that were sent since the last one. Another one
//! costs `epoll_ctl`, `ioctl` and `recv` more, and `epoll_ctl` again; no timer is set for one handoff alone (see
//! [`super::beat`]).

use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use super::acknowledgement::{Look, look};
use super::address::Address;
use super::beat::{Beat, Pause};
use super::dialect::{Dialect, SocketKind, make_room_for_packet, stream};
use super::error::{Refusal, SendError, Stage};
use super::head_bytes::{HeadBytes, reset_on_close};
use super::message::Message;
use super::resolved::Resolved;
use super::seal::{Evidence, Unread, Verdict};
use super::{ancillary, client};

/// Waiting for room where no event tells of it begins with this, and doubles.
const BACK_OFF_MIN: Duration = Duration::from_millis(1);
/// Up to this.
const BACK_OFF_MAX: Duration = Duration::from_millis(10);

/// Looks at a message that is not read become rarer up to this many beats.
const BEATS_MAX: u32 = 8;

/// One socket of a target: where it is, how it is spoken to, and whose process may listen there.
#[derive(Debug)]
pub struct Daemon {
    address: Address,
    dialect: Dialect,
    allow_uids: Vec<u32>,
    blocking: bool,
    /// The kind of socket that was found there, as `SocketKind`; it may change with the daemon, so it is only where to
    /// begin. Nothing hangs on its order with other memory.
    kind: AtomicU8,
}

impl Daemon {
    /// A daemon at `address`. Without `allow_uids` it may run as anybody. The kernel does not tell whose socket a datagram
    /// goes to: with `allow_uids` that dialect hands nobody over.
    pub fn new(address: Address, dialect: Dialect, allow_uids: Vec<u32>) -> Self {
        Self { address, dialect, allow_uids, blocking: false, kind: AtomicU8::new(SocketKind::of(dialect) as u8) }
    }

    /// The same, whose clients are handed over blocking. A client that comes back is non-blocking again.
    #[must_use]
    pub fn with_blocking_clients(self) -> Self {
        Self { blocking: true, ..self }
    }

    /// Whether another one is at the same place, spoken to in the same way and trusted as much.
    pub fn is_same(&self, other: &Self) -> bool {
        let key = |daemon: &Self| (daemon.dialect, daemon.blocking, daemon.allow_uids.clone());
        self.address.path() == other.address.path() && key(self) == key(other)
    }

    /// Where it is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// How it is spoken to.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Whether its clients are handed over blocking.
    pub fn has_blocking_clients(&self) -> bool {
        self.blocking
    }

    fn kind(&self) -> SocketKind {
        match self.dialect {
            Dialect::Auto if self.kind.load(Ordering::Relaxed) == SocketKind::Stream as u8 => SocketKind::Stream,
            dialect => SocketKind::of(dialect),
        }
    }
}

/// How long each step may take, from its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// Until the daemon's backlog has room.
    pub connect: Duration,
    /// Until the message has left us.
    pub send: Duration,
    /// Until the daemon has read it.
    pub acknowledge: Duration,
    /// Until the client has taken the response's head, where there is one to be written.
    pub head: Duration,
}

impl Default for Deadlines {
    /// 100 ms, 200 ms, 1 s; 30 s for a client.
    fn default() -> Self {
        Self {
            connect: Duration::from_millis(100),
            send: Duration::from_millis(200),
            acknowledge: Duration::from_secs(1),
            head: Duration::from_secs(30),
        }
    }
}

/// The daemon has read the message and owns the client; our copy is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken;

/// Hands `client` over: sends `message` with it to the daemon `to`, and waits until it was read. If there is a `head`, the
/// client is sent what is left of it first, once the daemon is connected.
///
/// Takes the client, which must not be registered with any epoll any more: a registration belongs to the open file and
/// would live on in the daemon. But for the head it is not written to, read from or shut down. Whether to try another
/// socket, and when, is the caller's matter; each call is one connection. Once read, our copy is closed before this
/// returns.
///
/// # Errors
/// See [`SendError`]: each variant says who owns the client. One that comes back behind a head resets when it is closed,
/// and cannot be answered.
///
/// # Cancel safety
/// Dropping the future closes our copy of the client: unwritten, or with a reset if it was sent a head. If the message was
/// sent by then, the daemon may read it and serve the client; otherwise the client sees its connection end.
///
/// # Panics
/// Outside a tokio runtime with I/O and time.
pub async fn send(
    client: OwnedFd,
    message: &Message,
    head: Option<&mut HeadBytes>,
    to: &Daemon,
    deadlines: &Deadlines,
    beat: &Beat,
) -> Result<Taken, SendError> {
    let has_head = head.is_some();
    let unwritten = head.filter(|head| !head.is_written()).map(|head| (head, Instant::now() + deadlines.head));
    if let Some((_, until)) = &unwritten
        && let Err(source) = HeadBytes::wait_for_room(client.as_fd(), *until).await
    {
        return Err(SendError::ClientGone { source });
    }
    let Connected { connection, kind, receiver } = match connect(to, deadlines.connect).await {
        Ok(connected) => connected,
        Err((stage, source)) => return Err(SendError::Refused { client, stage, source }),
    };
    let bytes = message.encode();
    if let Some((head, until)) = unwritten {
        // Before a head is written, what can be found out must be.
        if kind != SocketKind::Stream
            && bytes.len() > stream::FITS_BYTES
            && let Err(source) = make_room_for_packet(connection.as_fd(), bytes.len())
        {
            return Err(SendError::Refused { client, stage: Stage::Send, source });
        }
        if let Err(source) = head.write(client.as_fd(), until).await {
            return Err(SendError::ClientGone { source });
        }
    }
    let evidence = Evidence::before(kind, bytes, client.as_fd(), receiver, has_head);
    if to.blocking
        && let Err(error) = client::set_blocking(client.as_fd(), true)
    {
        return Err(SendError::Refused { client, stage: Stage::Send, source: error.into() });
    }
    let sent = Sent { client, connection, evidence, blocking: to.blocking };
    let cut = if has_head { Cut::of(&sent, kind, bytes) } else { None };
    let result = match sent.write(bytes, kind, deadlines.send).await {
        Ok(sent) => sent.wait(deadlines.acknowledge, beat).await,
        Err(error) => Err(error),
    };
    if let Some(cut) = cut {
        cut.call_off();
    }
    result
}

/// Resets a client that was sent a head when its handoff is dropped in the middle, which a gateway does that is told to end
/// at once: a clean end would make an empty body look whole. It has descriptors of its own, because those of the handoff
/// are in use until then.
struct Cut(Option<Unread>);

impl Cut {
    /// `None` where there are no descriptors for it.
    fn of(sent: &Sent, kind: SocketKind, bytes: &[u8]) -> Option<Self> {
        let (client, connection) = (sent.client.try_clone().ok()?, sent.connection.try_clone().ok()?);
        let evidence = Evidence::before(kind, bytes, client.as_fd(), None, true);
        Some(Self(Some(Unread::new(client, connection, evidence, Verdict::Unread))))
    }

    fn call_off(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        if let Some(unread) = self.0.take() {
            // Nobody is left to be told.
            let _ = unread.reset();
        }
    }
}

/// A socket that the message can be sent on.
pub(super) struct Connected {
    pub connection: OwnedFd,
    kind: SocketKind,
    /// The one socket that a datagram will go to.
    receiver: Option<Resolved>,
}

/// Connects, within `patience`, to a process that may receive clients.
pub(super) async fn connect(to: &Daemon, patience: Duration) -> Result<Connected, (Stage, Refusal)> {
    let is_datagram = to.dialect == Dialect::Datagram;
    let address = if is_datagram { to.address.pin() } else { to.address.resolve() };
    let address = address.map_err(|error| (Stage::Resolve, error.into()))?;
    let (connection, kind) = connect_to(&address, to, patience).await.map_err(|error| (Stage::Connect, error))?;
    if !to.allow_uids.is_empty() {
        let peer = getsockopt(&connection, sockopt::PeerCredentials).map_err(|error| (Stage::Connect, error.into()))?;
        if !to.allow_uids.contains(&peer.uid()) {
            return Err((Stage::Connect, Refusal::NotAllowed { uid: peer.uid() }));
        }
    }
    Ok(Connected { connection, kind, receiver: is_datagram.then_some(address) })
}

async fn connect_to(address: &Resolved, to: &Daemon, patience: Duration) -> Result<(OwnedFd, SocketKind), Refusal> {
    let mut kind = to.kind();
    let mut connection = kind.socket()?;
    let mut is_other_kind_untried = to.dialect == Dialect::Auto;
    let mut back_off = BackOff::new(patience);
    loop {
        match address.connect(connection.as_fd()) {
            Ok(()) => {
                to.kind.store(kind as u8, Ordering::Relaxed);
                return Ok((connection, kind));
            }
            // The backlog is full; a datagram finds out about its queue when it is sent. There is no event for that.
            Err(Errno::EAGAIN) => back_off.wait().await?,
            Err(Errno::EINTR) => {}
            Err(Errno::EPROTOTYPE) if is_other_kind_untried => {
                is_other_kind_untried = false;
                kind = kind.other();
                connection = kind.socket()?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// A client whose message is being sent or has been, with everything that is needed to say what became of it.
struct Sent {
    client: OwnedFd,
    connection: OwnedFd,
    evidence: Evidence,
    blocking: bool,
}

impl Sent {
    /// Sends the message, the descriptor on its first byte.
    async fn write(self, bytes: &[u8], kind: SocketKind, patience: Duration) -> Result<Self, SendError> {
        let mut back_off = BackOff::new(patience);
        let mut sent = 0;
        let mut has_raised = false;
        if kind == SocketKind::Stream {
            // Where it cannot be raised, the message goes out in parts.
            let _ = stream::make_room(self.connection.as_fd(), bytes.len());
        }
        loop {
            let descriptor = (sent == 0).then_some(self.client.as_fd());
            if sent == 0
                && let Err(source) = self.reset_on_close(false)
            {
                return Err(self.refused(Stage::Send, source.into()));
            }
            let parts = [IoSlice::new(&bytes[sent..])];
            let refusal = match ancillary::send(self.connection.as_fd(), &parts, descriptor.as_slice()) {
                Ok(count) => {
                    sent += count;
                    if sent == bytes.len() {
                        return Ok(self);
                    }
                    continue;
                }
                // No room: for bytes, in the receiver's queue of datagrams, or for descriptors on their way, of which other handoffs have too many.
                Err(Errno::EAGAIN | Errno::ETOOMANYREFS) => {
                    if sent == 0 {
                        // It fails only where the setting is not known, and so was never made.
                        let _ = self.reset_on_close(true);
                    }
                    match back_off.wait().await {
                        Ok(()) => continue,
                        Err(late) => late,
                    }
                }
                Err(Errno::EMSGSIZE) if !has_raised => {
                    has_raised = true;
                    match make_room_for_packet(self.connection.as_fd(), bytes.len()) {
                        Ok(()) => continue,
                        Err(refusal) => refusal,
                    }
                }
                Err(error) => error.into(),
            };
            if sent == 0 {
                return Err(self.refused(Stage::Send, refusal));
            }
            // The descriptor went with the first byte, so the daemon may have the client, whatever it does with a
            // message that has no end.
            let source = io::ErrorKind::BrokenPipe.into();
            return Err(self.unsettled(Verdict::Unknown { can_be_read: true }, source));
        }
    }

    /// Waits for the message to be read, in the kernel's words.
    async fn wait(self, patience: Duration, beat: &Beat) -> Result<Taken, SendError> {
        if beat.pause().await {
            match look(self.connection.as_fd()) {
                Ok(Look::Unread) => beat.learn(Pause::TooShort),
                looked => {
                    beat.learn(Pause::LongEnough);
                    return self.judge(looked);
                }
            }
        }
        let deadline = Instant::now() + patience;
        let Self { client, connection, evidence, blocking } = self;
        let connection = match ancillary::watch(connection, Interest::READABLE) {
            Ok(connection) => connection,
            // Epoll is out of memory or watches: nothing is lost by it but the waiting.
            Err((connection, _)) => return Err(Self { client, connection, evidence, blocking }.unread()),
        };
        let looked = wake_and_look(&connection, deadline, beat).await;
        Self { client, connection: connection.into_inner(), evidence, blocking }.judge(looked)
    }

    /// Says who owns the client, from what was seen.
    fn judge(self, looked: nix::Result<Look>) -> Result<Taken, SendError> {
        let verdict = match looked {
            Ok(look) => self.evidence.verdict(look, self.connection.as_fd()),
            Err(error) => return Err(SendError::Unanswered { source: error.into() }),
        };
        match verdict {
            Verdict::Taken => Ok(Taken),
            Verdict::Untaken => Err(self.refused(Stage::Acknowledge, Refusal::NeverRead)),
            Verdict::Unread => Err(self.unread()),
            Verdict::Unknown { can_be_read } => {
                let source = if can_be_read { io::ErrorKind::TimedOut.into() } else { Errno::ECONNRESET.into() };
                Err(self.unsettled(verdict, source))
            }
        }
    }

    /// Gives the client back as it was before it was let go.
    fn refused(self, stage: Stage, source: Refusal) -> SendError {
        let client = self.client.as_fd();
        let taken_back = if self.blocking { client::set_blocking(client, false) } else { Ok(()) };
        match taken_back.and_then(|()| Ok(self.reset_on_close(true)?)) {
            Ok(()) => SendError::Refused { client: self.client, stage, source },
            Err(source) => SendError::Unanswered { source },
        }
    }

    /// What a close means for a client that was sent a head: nothing of it is anybody's but ours, or a daemon may have it.
    fn reset_on_close(&self, is_ours: bool) -> nix::Result<()> {
        if self.evidence.has_head() { reset_on_close(self.client.as_fd(), is_ours) } else { Ok(()) }
    }

    /// Unread at the deadline, or not waited for.
    fn unread(self) -> SendError {
        let verdict = self.evidence.verdict(Look::Unread, self.connection.as_fd());
        self.unsettled(verdict, io::ErrorKind::TimedOut.into())
    }

    /// To be sealed, if it can be shown that nobody has written.
    fn unsettled(self, verdict: Verdict, source: io::Error) -> SendError {
        let is_ours = verdict == Verdict::Unread || self.evidence.is_untouched(self.client.as_fd());
        if is_ours {
            SendError::Unread(Unread::new(self.client, self.connection, self.evidence, verdict))
        } else {
            SendError::Unanswered { source }
        }
    }
}

/// Waits until the message is not unread any more, or the deadline has passed.
///
/// Most daemons close the connection when they have read, and of that epoll tells at once. One that keeps it open is found
/// to have read at a beat: epoll could tell of it too, by EPOLLOUT, but tells so first of every connection that is added,
/// and that wake costs each handoff more than a late look costs the few.
///
/// # Cancel safety
/// A look that says [`Look::Reset`] says so once; there is no await between it and the return.
async fn wake_and_look(connection: &AsyncFd<OwnedFd>, deadline: Instant, beat: &Beat) -> nix::Result<Look> {
    let mut is_telling = true;
    let mut beats = 1;
    loop {
        tokio::select! {
            biased;
            ready = connection.readable(), if is_telling => {
                // The guard's error is the runtime's end: no event will come.
                ready.map_err(|_| Errno::ECANCELED)?.clear_ready();
                // If this look shows nothing, the daemon has said something, or that it will not, and might do so for ever.
                is_telling = false;
            }
            () = beat.pass(beats) => beats = (beats * 2).min(BEATS_MAX),
        }
        match look(connection.as_fd()) {
            Ok(Look::Unread) if Instant::now() < deadline => {}
            looked => return looked,
        }
    }
}

/// Waits between attempts, longer each time, until a deadline. The clock is not asked before the first.
pub(super) struct BackOff {
    patience: Duration,
    pause: Duration,
    deadline: Option<Instant>,
}

impl BackOff {
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, pause: BACK_OFF_MIN, deadline: None }
    }

    /// # Errors
    /// The deadline has passed.
    pub(super) async fn wait(&mut self) -> Result<(), Refusal> {
        let now = Instant::now();
        let deadline = *self.deadline.get_or_insert(now + self.patience);
        if now >= deadline {
            return Err(Refusal::TimedOut);
        }
        sleep_until(deadline.min(now + self.pause)).await;
        self.pause = (self.pause * 2).min(BACK_OFF_MAX);
        Ok(())
    }
}
