//! A gateway's end of the native protocol: one channel for each worker and daemon, opened when somebody is to be handed
//! over, and kept.
//!
//! | who | does |
//! |---|---|
//! | [`Channel`] | knows whether there is a link, opens one, and has the queue of those who wait for the daemon's credit |
//! | `Link` | the connection: packets out and in, and the [ledger](super::native::ledger) of who owns whom |
//! | [`Permit`] | one credit of a link, given back when it is dropped |
//! | [`Lease`] | a client that was lent: what became of it is waited for here |
//! | [`Taken`] | a client that a daemon has: its end is asked for, or somebody is left behind to account for it |
//!
//! A channel is opened by whoever needs it first, so that a daemon that a service manager starts by its socket is started
//! then, and not before. One that breaks soon after it was opened is opened again after a pause that doubles; where nobody
//! listens, each handoff asks anew, because asking costs nothing. A daemon that drains may do so for hours: its
//! link goes on until its last client has ended, beside another one to whoever listens in its place.
//!
//! System calls of a handoff: `getsockopt` twice (the client's cookie, and what was written to it), `sendmsg`, `close`; and
//! a `recvmsg` for each packet of the daemon, which may hold words about many clients.

mod lease;
mod link;
mod loan;
mod open;
mod packed;
mod reader;

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

pub use self::lease::{Lease, Taken};
pub(super) use self::link::Link;
pub(super) use self::loan::is_late_taken;
use super::error::{Refusal, SendError, Stage};
use super::native::frame::Load;
use super::native::ledger::End;
use super::send::{Daemon, Deadlines};

/// The first pause after a link that broke.
const BACK_OFF: Duration = Duration::from_millis(10);
/// The longest.
const BACK_OFF_MAX: Duration = Duration::from_secs(1);
/// After so long a daemon that drains may have a successor at the very same socket.
const SUCCESSOR_PAUSE: Duration = Duration::from_secs(1);
/// The same of one that drained as soon as it was there.
const SUCCESSOR_PAUSE_LONG: Duration = Duration::from_secs(5);
/// A link that lasted so long was no failure.
const LASTING: Duration = Duration::from_secs(1);

/// Begins the task that reads a link. It ends when the link does.
pub type Begin<'a> = &'a (dyn Fn(Pin<Box<dyn Future<Output = ()> + Send>>) + Send + Sync);

/// Accounts for a client that a daemon has taken, when its end is known. Dropped where no word of it will come.
pub trait OnEnd: Send + Sync + fmt::Debug {
    /// The client was answered, and is closed or comes back.
    fn ended(self: Box<Self>, end: End<OwnedFd>);

    /// The request's name, by which it can be revoked.
    fn is_about(&self, request: &str) -> bool;
}

/// One worker's channel to one daemon.
#[derive(Debug, Default)]
pub struct Channel {
    state: Mutex<State>,
    returned: AtomicU64,
    opening: tokio::sync::Mutex<()>,
    /// Links that could not be opened.
    failures: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    link: Option<Arc<Link>>,
    /// Links of daemons that take nobody any more and have clients yet; their successors listen at the same place.
    draining: Vec<Weak<Link>>,
    /// Where somebody new may listen in the place of one that drains.
    successor: Option<Successor>,
    waiting: VecDeque<Arc<Waiting>>,
    broken: Option<Broken>,
}

/// A link that did not last: nothing is tried until then, unless another socket stands there.
#[derive(Clone, Copy, Debug)]
struct Broken {
    until: Instant,
    pause: Duration,
    place: Option<Place>,
}

/// Who comes after a daemon that drains: expected as soon as another socket stands there, and otherwise, because the
/// socket may be a service manager's, from that moment on.
#[derive(Clone, Copy, Debug)]
struct Successor {
    due: Instant,
    place: Option<Place>,
}

/// A socket's file, by its device and its number there.
type Place = (u64, u64);

/// What stands at a path.
fn place(path: &Path) -> Option<Place> {
    std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

impl State {
    /// A daemon that drained has ended: its successor is due.
    fn has_left(&mut self, link: &Arc<Link>) {
        let count = self.draining.len();
        self.draining.retain(|other| other.upgrade().is_some_and(|other| !Arc::ptr_eq(&other, link)));
        if self.draining.len() < count && self.draining.is_empty() {
            self.successor = None;
        }
    }

    /// Whether it is not worth trying to open a link to what stands at `path` now, and why.
    fn hindrance(&self, path: &Path) -> Option<Refusal> {
        let now = Instant::now();
        let is_same = |before: Option<Place>| place(path).is_none_or(|now| Some(now) == before);
        if self.successor.is_some_and(|successor| now < successor.due && is_same(successor.place)) {
            return Some(Refusal::Draining);
        }
        self.broken.is_some_and(|broken| now < broken.until && is_same(broken.place)).then_some(Refusal::Broken)
    }
}

/// How a channel stands, for whoever chooses among several.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Status {
    /// Clients that the daemon has, lent or taken.
    pub in_flight: u64,
    /// What it says of itself.
    pub load: Option<Load>,
    /// It takes nobody any more.
    pub is_draining: bool,
    /// It does not answer.
    pub is_silent: bool,
}

/// Whether somebody can be lent.
#[derive(Debug)]
pub enum Entry {
    /// At once.
    Free(Permit),
    /// The daemon has as many as it can bear.
    Full,
}

/// One client that the daemon can bear. Whoever waits gets it when it is dropped unused.
#[derive(Debug)]
pub struct Permit(Option<Arc<Link>>);

/// Waits for a credit of any of several channels.
#[derive(Debug)]
struct Waiting(Mutex<Option<oneshot::Sender<Permit>>>);

/// What travels with a client.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// A JSON object.
    pub metadata: &'a [u8],
    /// The policy's or the application's.
    pub data: &'a [u8],
    /// Read from the client before, in this order.
    pub preread: [&'a [u8]; 2],
    /// Whether the client was sent its response's head. Then it cannot come back.
    pub has_head: bool,
}

impl Channel {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn link(&self) -> Option<Arc<Link>> {
        self.state().link.clone()
    }

    /// Its links, the one that takes clients first.
    fn links(&self) -> Vec<Arc<Link>> {
        let state = self.state();
        state.link.iter().cloned().chain(state.draining.iter().filter_map(Weak::upgrade)).collect()
    }

    /// How it stands; `None` while there is no link.
    pub fn status(&self, path: &Path) -> Option<Status> {
        let state = self.state();
        let is_left = state.link.is_none() && state.successor.is_some();
        let is_draining = is_left && state.hindrance(path).is_some();
        drop(state);
        let all: Vec<_> = self.links().iter().map(|link| link.status()).collect();
        let in_flight = all.iter().map(|status| status.in_flight).sum();
        // Nobody is left of a daemon that has just said that it drains.
        let gone = is_draining.then_some(Status { in_flight: 0, load: None, is_draining, is_silent: false });
        all.first().copied().or(gone).map(|first| Status { in_flight, is_draining, ..first })
    }

    /// The daemon takes nobody any more: whoever comes next is for its successor.
    fn drains(&self, link: &Arc<Link>) {
        if !self.forget(link) {
            return;
        }
        let mut state = self.state();
        state.draining.retain(|link| link.strong_count() > 0);
        state.draining.push(Arc::downgrade(link));
        // One that drains as soon as it is there is not asked again at once.
        let pause = if link.age() < LASTING { SUCCESSOR_PAUSE_LONG } else { SUCCESSOR_PAUSE };
        state.successor = Some(Successor { due: Instant::now() + pause, place: link.place() });
    }

    /// Nobody is lent over that link any more, if it is the one: those who wait for its credits have to look elsewhere,
    /// because nobody else would open another for them.
    fn forget(&self, link: &Arc<Link>) -> bool {
        let mut state = self.state();
        if !state.link.as_ref().is_some_and(|own| Arc::ptr_eq(own, link)) {
            return false;
        }
        state.link = None;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.iter().for_each(|waiting| waiting.send_away());
        true
    }

    /// Clients that came back over it.
    pub fn returned(&self) -> u64 {
        self.returned.load(Ordering::Relaxed)
    }

    /// A credit, of a link that is opened where there is none. Whoever has nobody else to ask (`insists`) asks also where a
    /// daemon has just begun to drain: its successor may have the same socket from a service manager.
    ///
    /// # Errors
    /// How far it came and why: nobody listens, or it does not speak the protocol, or takes nobody any more.
    pub async fn enter(
        self: &Arc<Self>,
        to: &Daemon,
        deadlines: &Deadlines,
        insists: bool,
        begin: Begin<'_>,
    ) -> Result<Entry, (Stage, Refusal)> {
        let link = match self.link() {
            Some(link) => link,
            None => self.open(to, deadlines, insists, begin).await?,
        };
        if link.is_draining() {
            // It has just said so.
            return Err((Stage::Connect, Refusal::Draining));
        }
        Ok(link.permit().map_or(Entry::Full, Entry::Free))
    }

    async fn open(
        self: &Arc<Self>,
        to: &Daemon,
        deadlines: &Deadlines,
        insists: bool,
        begin: Begin<'_>,
    ) -> Result<Arc<Link>, (Stage, Refusal)> {
        // One at a time; the others find what it has opened, or share its failure: or each would wait behind the other's.
        let failures = self.failures.load(Ordering::Relaxed);
        let one = self.opening.lock().await;
        if let Some(link) = self.link() {
            return Ok(link);
        }
        if failures != self.failures.load(Ordering::Relaxed) {
            return Err((Stage::Connect, Refusal::Broken));
        }
        let path = to.address().path();
        let hindrance = self.state().hindrance(path);
        if let Some(hindrance) = hindrance.filter(|hindrance| !insists || matches!(hindrance, Refusal::Broken)) {
            return Err((Stage::Connect, hindrance));
        }
        let before = place(path);
        let opened = open::open(self, to, deadlines, before).await;
        match opened {
            Ok(link) => {
                let mut state = self.state();
                (state.link, state.successor) = (Some(Arc::clone(&link)), None);
                drop(state);
                begin(Box::pin(reader::run(Arc::clone(&link))));
                if link.is_draining() {
                    // It has said so in the same breath.
                    self.drains(&link);
                }
                drop(one);
                link.share_out();
                Ok(link)
            }
            Err(failure) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                if failure.has_connected {
                    self.broke(Duration::ZERO, before);
                }
                Err((failure.stage, failure.source))
            }
        }
    }

    /// A link that was open for so long is gone.
    fn broke(&self, lasted: Duration, place: Option<Place>) {
        let mut state = self.state();
        state.broken = (lasted < LASTING).then(|| {
            let pause = state.broken.map_or(BACK_OFF, |broken| (broken.pause * 2).min(BACK_OFF_MAX));
            Broken { until: Instant::now() + pause, pause, place }
        });
    }

    /// Ends it now. Whoever is accounted for is so with what is known.
    pub fn leave(&self) {
        self.links().iter().for_each(|link| link.leave());
    }

    /// Asks the daemon to end what it does for a request; whether there is such a client.
    pub fn revoke(&self, request: &str, reason: &str) -> bool {
        self.links().iter().any(|link| link.revoke(request, reason))
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.links().iter().for_each(|link| link.close_when_empty());
    }
}

/// Waits for a credit of one of the channels, first come, first served. `None`: one of them has lost its link, and whoever
/// waits had better ask all of them anew.
///
/// # Cancel safety
/// Dropping it gives the place in the queue up.
pub async fn wait_for_credit(channels: impl Iterator<Item = Arc<Channel>>) -> Option<Permit> {
    let (sender, receiver) = oneshot::channel();
    let waiting = Arc::new(Waiting(Mutex::new(Some(sender))));
    for channel in channels {
        let link = {
            let mut state = channel.state();
            // Those in front who have gone or been served elsewhere.
            state.waiting.retain(|waiting| waiting.is_waiting());
            state.waiting.push_back(Arc::clone(&waiting));
            state.link.clone()
        };
        // A credit may have come free since it was asked for.
        if let Some(link) = link {
            link.share_out();
        }
    }
    drop(waiting);
    receiver.await.ok()
}

impl Waiting {
    fn place(&self) -> MutexGuard<'_, Option<oneshot::Sender<Permit>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is no use in waiting any more.
    fn send_away(&self) {
        drop(self.place().take());
    }

    fn is_waiting(&self) -> bool {
        self.place().as_ref().is_some_and(|sender| !sender.is_closed())
    }

    /// Gives it a credit, or gives that back.
    fn give(&self, permit: Permit) -> Result<(), Permit> {
        match self.place().take() {
            Some(sender) => sender.send(permit),
            None => Err(permit),
        }
    }
}

impl Permit {
    /// Whether it is one of that channel's.
    pub fn is_of(&self, channel: &Arc<Channel>) -> bool {
        self.0.as_ref().is_some_and(|link| link.is_of(channel))
    }

    /// Whether it can be sent at all: to be asked before the client is sent a head.
    ///
    /// # Errors
    /// The metadata is longer than a packet, or the data than what the daemon wants.
    pub fn judge(&self, parts: &Parts<'_>) -> Result<(), Refusal> {
        packed::judge(parts)?;
        let link = self.0.as_ref().expect("a permit is used once");
        let bytes_max = link.books().ledger.hello().and_then(|hello| hello.data_bytes_max);
        let bytes_max = bytes_max.map_or(usize::MAX, |max| usize::try_from(max).unwrap_or(usize::MAX));
        match parts.data.len() {
            bytes if bytes > bytes_max => Err(Refusal::TooMuchData { bytes, bytes_max }),
            _ => Ok(()),
        }
    }

    /// Lends `client` to the daemon, which wants as much: see [`judge`](Self::judge).
    ///
    /// # Errors
    /// As [`Lease::settle`]: it was not sent.
    ///
    /// # Cancel safety
    /// Dropping it closes the client.
    pub async fn lend(
        mut self,
        client: OwnedFd,
        parts: &Parts<'_>,
        is_blocking: bool,
        deadlines: &Deadlines,
    ) -> Result<Lease, SendError> {
        let link = self.0.take().expect("a permit is used once");
        let credit = Self(Some(Arc::clone(&link)));
        loan::lend(link, credit, client, parts, is_blocking, deadlines.send).await
    }

    /// It has become an entry of the ledger.
    fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(link) = self.0.take() {
            link.spend_permit();
            link.share_out();
        }
    }
}
