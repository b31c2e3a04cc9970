//! What an acceptor, its handoffs and whoever stops it have in common.

use std::fmt;
use std::io::{self, PipeReader, PipeWriter, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::dup3;

use super::super::ancillary::Epoll;
use super::super::client::set_blocking;
use super::super::dialect::Dialect;
use super::engine::Engine;
use super::options::Options;

/// How often a thread that serves a client looks after the channels, where no other thread does.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// No load was said: no number between 0 and 1 has these bits.
const UNSAID: u64 = u64::MAX;

/// Locked in this order: the engine, then a channel.
pub(super) struct Shared {
    pub options: Options,
    pub dialect: Dialect,
    pub epoll: Epoll,
    /// Whoever has it serves the channels; `None` once the acceptor is gone.
    engine: Mutex<Option<Engine>>,
    in_flight: AtomicUsize,
    places: AtomicUsize,
    is_stopping: AtomicBool,
    /// Whether nobody will send soon what is left behind for later.
    is_waiting: AtomicBool,
    load: AtomicU64,
    /// A socket of which nobody has the other end.
    dead: OwnedFd,
    begun: Instant,
    /// When the channels were last looked after by whoever is not the acceptor, in milliseconds since `begun`.
    looked_ms: AtomicU64,
    revocations: Mutex<Option<(Arc<PipeReader>, PipeWriter)>>,
    wake: PipeWriter,
}

impl Shared {
    pub(super) fn new(options: Options, dialect: Dialect, epoll: Epoll, wake: PipeWriter) -> io::Result<Self> {
        set_blocking(wake.as_fd(), false)?;
        Ok(Self {
            options,
            dialect,
            epoll,
            engine: Mutex::new(None),
            in_flight: AtomicUsize::new(0),
            places: AtomicUsize::new(0),
            is_stopping: AtomicBool::new(false),
            is_waiting: AtomicBool::new(true),
            load: AtomicU64::new(UNSAID),
            dead: UnixStream::pair()?.0.into(),
            begun: Instant::now(),
            looked_ms: AtomicU64::new(0),
            revocations: Mutex::new(None),
            wake,
        })
    }

    pub(super) fn engine(&self) -> MutexGuard<'_, Option<Engine>> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The engine, where nobody serves the channels at the moment.
    pub(super) fn idle_engine(&self) -> Option<MutexGuard<'_, Option<Engine>>> {
        let guard = match self.engine.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        guard.is_some().then_some(guard)
    }

    /// Looks after the channels, where nobody else does: a program with one thread answers PING and learns of REVOKE
    /// whenever it calls the library.
    pub(super) fn look(self: &Arc<Self>) {
        if self.dialect != Dialect::Baton {
            return;
        }
        let now_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let interval_ms = u64::try_from(LOOK_INTERVAL.as_millis()).unwrap_or(u64::MAX);
        if now_ms.saturating_sub(self.looked_ms.load(Ordering::Relaxed)) < interval_ms {
            return;
        }
        self.looked_ms.store(now_ms, Ordering::Relaxed);
        self.look_now();
    }

    pub(super) fn look_now(self: &Arc<Self>) {
        let Some(mut engine) = self.idle_engine() else { return };
        if let Some(engine) = &mut *engine {
            engine.look(self);
        }
    }

    /// Wakes whoever waits for the acceptor, by itself or by a runtime.
    pub(super) fn wake(&self) {
        // A pipe that is full wakes too.
        drop((&self.wake).write(&[0]));
    }

    /// Closes a client that must not be touched, and puts a socket in its place that has ended.
    pub(super) fn replace_by_dead(&self, mut client: OwnedFd) -> OwnedFd {
        // It can be refused for a moment while another thread opens something at the same number, which the client has.
        while dup3(&self.dead, &mut client, OFlag::O_CLOEXEC) == Err(Errno::EBUSY) {}
        client
    }

    pub(super) fn stop(&self) {
        self.is_stopping.store(true, Ordering::SeqCst);
        self.wake();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::SeqCst)
    }

    pub(super) fn set_waiting(&self, is_waiting: bool) {
        self.is_waiting.store(is_waiting, Ordering::SeqCst);
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.is_waiting.load(Ordering::SeqCst)
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Places that are taken. One is left a moment before its client is not in flight any more: before the gateway hears of it.
    pub(super) fn places_taken(&self) -> usize {
        self.places.load(Ordering::SeqCst)
    }

    pub(super) fn leave_place(&self) {
        self.places.fetch_sub(1, Ordering::SeqCst);
    }

    pub(super) fn begin_one(&self) {
        self.places.fetch_add(1, Ordering::SeqCst);
        self.in_flight.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn end_one(&self) {
        let before = self.in_flight.fetch_sub(1, Ordering::SeqCst);
        if before == 1 && self.is_stopping() {
            self.wake();
        }
    }

    /// Notes what is to be said about the load, by whoever serves the channels.
    pub(super) fn say_load(&self, load: f64) {
        self.load.store(load.clamp(0.0, 1.0).to_bits(), Ordering::SeqCst);
        self.wake();
    }

    pub(super) fn take_load(&self) -> Option<f64> {
        if self.load.load(Ordering::Relaxed) == UNSAID {
            return None;
        }
        Some(self.load.swap(UNSAID, Ordering::SeqCst)).filter(|bits| *bits != UNSAID).map(f64::from_bits)
    }

    /// A pipe that ends when somebody is revoked, for threads to wait for beside their client; each revocation ends one and
    /// the next asks for another. `None` where there is no descriptor for it.
    pub(super) fn revocation(&self) -> Option<Arc<PipeReader>> {
        let mut revocations = self.revocations.lock().unwrap_or_else(PoisonError::into_inner);
        if revocations.is_none() {
            let (reader, writer) = io::pipe().ok()?;
            *revocations = Some((Arc::new(reader), writer));
        }
        revocations.as_ref().map(|(reader, _)| Arc::clone(reader))
    }

    pub(super) fn tell_of_revocation(&self) {
        *self.revocations.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("dialect", &self.dialect)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

/// Asks an [`Acceptor`](super::Acceptor) to stop.
#[derive(Clone, Debug)]
pub struct Stop {
    pub(super) shared: Arc<Shared>,
}

impl Stop {
    /// Ends the acceptor's `accept`, now and from now on. It may be called in a signal handler.
    pub fn stop(&self) {
        self.shared.stop();
    }
}

/// Tells the gateways how busy this daemon is, in the dialect `baton`; a gateway may prefer those that are less so.
#[derive(Clone, Debug)]
pub struct Load {
    pub(super) shared: Arc<Shared>,
}

impl Load {
    /// Says so: 0 is idle, 1 is as busy as can be; what is outside is cut.
    pub fn say(&self, load: f64) {
        self.shared.say_load(load);
    }
}
