//! A connection to a daemon: packets out and in, and the ledger of who owns whom.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant as Clock};

use nix::errno::Errno;
use nix::sys::socket::{Shutdown, shutdown};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout};

use super::super::error::{Refusal, SendError, Stage};
use super::super::native::frame::{Frame, FrameError, Refusal as DaemonRefusal};
use super::super::native::header::PACKET_BYTES_MAX;
use super::super::native::ledger::{Broken, Cookie, End, Event, Fault, Late, Ledger};
use super::super::seal::{Evidence, Unread};
use super::super::send::BackOff;
use super::super::{ancillary, client, head_bytes};
use super::packed::Packed;
use super::{Channel, Lease, OnEnd, Parts, Permit, Status};

/// Packets that are read before others have their turn.
const PACKETS_MAX: usize = 64;
/// Packets that wait for a daemon that does not read; at more the channel ends.
const UNSENT_MAX: usize = 64;
/// After so long without a word the daemon is asked for one.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// How long a process may take from the end of its channel to its own.
pub(super) const EXIT_PATIENCE: Duration = Duration::from_millis(200);

/// A file, by its device and its number there.
type Place = (u64, u64);

type Book = Ledger<Loan, Box<dyn OnEnd>, OwnedFd>;

/// A connection that speaks the protocol.
#[derive(Debug)]
pub(in super::super) struct Link {
    socket: AsyncFd<OwnedFd>,
    /// The process that listened when it was opened.
    peer: Option<(i32, OwnedFd)>,
    channel: Weak<Channel>,
    path: PathBuf,
    /// The socket's file, as far as there is one.
    place: Option<Place>,
    opened: Clock,
    books: Mutex<Books>,
    /// Somebody has put something into `unsent`, or the link is to be closed, or is over.
    wake: Notify,
}

#[derive(Debug, Default)]
struct Books {
    ledger: Book,
    /// Credits that somebody has and has not used yet.
    permits: u64,
    unsent: VecDeque<Vec<u8>>,
    /// The link is to be closed when nobody is in flight.
    is_closing: bool,
    /// A PING is not answered.
    is_asked: bool,
    is_silent: bool,
    heard: u64,
    /// Clients that came back since the last look.
    returned: u64,
    over: Option<Over>,
}

/// Why it is over, and whoever was lent then.
#[derive(Debug)]
struct Over {
    why: Option<Why>,
    lent: Vec<Loan>,
    is_reported: bool,
}

/// What made a channel end.
#[derive(Debug, thiserror::Error)]
enum Why {
    #[error("{0} descriptors came, {1} belong")]
    Descriptors(usize, usize),
    #[error("a packet that is larger than {PACKET_BYTES_MAX} bytes, or more descriptors than there is room for")]
    Truncated,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Fault(#[from] Fault),
    #[error("it does not read what it is sent")]
    Deaf,
    #[error("the connection broke: {0}")]
    Io(io::Error),
}

/// Whether there is more to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Look {
    Open,
    Over,
}

/// A client that was lent, and who waits for a word of it.
#[derive(Debug)]
pub(super) struct Loan {
    client: OwnedFd,
    evidence: Evidence,
    is_blocking: bool,
    tell: Option<oneshot::Sender<Word>>,
}

/// What became of a client.
#[derive(Debug)]
pub(super) enum Word {
    /// The daemon has it.
    Taken,
    /// The daemon does not want it.
    Refused(Loan, DaemonRefusal),
    /// The daemon is gone, without a word.
    Gone(Loan),
    /// The channel is; the daemon is not.
    Broken(Loan),
}

thread_local! {
    /// Where packets are received: one buffer for all links of a worker, because nothing stays in it.
    static BUFFER: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
}

impl Link {
    pub(super) fn new(
        socket: AsyncFd<OwnedFd>,
        peer: Option<(i32, OwnedFd)>,
        channel: Weak<Channel>,
        path: PathBuf,
        place: Option<Place>,
        opened: Clock,
    ) -> Self {
        Self { socket, peer, channel, path, place, opened, books: Mutex::default(), wake: Notify::new() }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) async fn readable(&self) -> io::Result<()> {
        // Cleared before anybody looks: what arrives after the look is a new event.
        self.socket.readable().await.map(|mut guard| guard.clear_ready())
    }

    pub(super) fn has_hello(&self) -> bool {
        self.books().ledger.hello().is_some()
    }

    pub(super) fn is_draining(&self) -> bool {
        self.books().ledger.is_draining()
    }

    /// Whether another socket stands where this one's did.
    pub(super) fn has_successor(&self) -> bool {
        place(&self.path).is_some_and(|now| Some(now) != self.place)
    }

    pub(super) fn status(&self) -> Status {
        let books = self.books();
        Status {
            in_flight: books.ledger.in_flight(),
            load: books.ledger.load(),
            is_draining: books.ledger.is_draining(),
            is_silent: books.is_silent,
        }
    }

    pub(super) fn why_over(&self) -> Option<Refusal> {
        let mut books = self.books();
        let over = books.over.as_mut()?;
        over.is_reported = true;
        over.why.take().map(|why| Refusal::Protocol(Box::new(why)))
    }

    /// A credit, if there is one that nobody has.
    pub(super) fn permit(self: &Arc<Self>) -> Option<Permit> {
        let mut books = self.books();
        if books.ledger.credits() <= books.permits {
            return None;
        }
        books.permits += 1;
        drop(books);
        Some(Permit(Some(Arc::clone(self))))
    }

    pub(super) fn spend_permit(&self) {
        self.books().permits -= 1;
    }

    /// Gives the credits that nobody has to whoever waits for one.
    pub(super) fn share_out(self: &Arc<Self>) {
        let Some(channel) = self.channel.upgrade() else { return };
        loop {
            let waiting = {
                let mut state = channel.state();
                if state.waiting.is_empty() {
                    return;
                }
                // Asked in this order only: first who waits, then what there is.
                let Some(permit) = self.permit() else { return };
                state.waiting.pop_front().map(|waiting| (waiting, permit))
            };
            let Some((waiting, permit)) = waiting else { return };
            if let Err(mut permit) = waiting.give(permit) {
                // He is served already, or has gone; the next one may have it.
                permit.0 = None;
                self.spend_permit();
            }
        }
    }

    pub(super) fn is_of(&self, channel: &Arc<Channel>) -> bool {
        self.channel.upgrade().is_some_and(|own| Arc::ptr_eq(&own, channel))
    }

    pub(super) fn leave(&self) {
        let taken = {
            let mut books = self.books();
            // What they write is not written under the lock.
            let left = books.ledger.end();
            if books.over.is_none() {
                books.over = Some(Over { why: None, lent: left.lent, is_reported: false });
            }
            left.taken
        };
        drop(taken);
        self.wake.notify_one();
    }

    pub(super) fn close_when_empty(&self) {
        self.books().is_closing = true;
        self.wake.notify_one();
    }

    pub(super) fn end_of(&self, id: u64) -> Option<End<OwnedFd>> {
        self.books().ledger.end_of(id)
    }

    pub(super) fn keep(&self, id: u64, account: Box<dyn OnEnd>) -> Result<(), Box<dyn OnEnd>> {
        self.books().ledger.keep(id, account)
    }

    pub(super) fn withdraw(&self, id: u64) -> Option<(Loan, Late)> {
        self.books().ledger.withdraw(id)
    }

    /// Asks the daemon to end one that it has taken.
    pub(super) fn revoke(&self, request: &str, reason: &str) -> bool {
        let mut books = self.books();
        let Some(id) = books.ledger.kept().find(|(_, account)| account.is_about(request)).map(|(id, _)| id) else {
            return false;
        };
        books.unsent.push_back(Frame::Revoke { id, reason: reason.to_owned() }.encode());
        drop(books);
        self.wake.notify_one();
        true
    }

    /// Reads what has come, and does what it says. At most so many packets: where there may be more, the reader is woken.
    pub(in super::super) fn look(self: &Arc<Self>) -> Look {
        let look = BUFFER.with_borrow_mut(|buffer| {
            // One byte more than there may be, so that more is seen to be.
            buffer.resize(PACKET_BYTES_MAX + 1, 0);
            self.look_with(buffer)
        });
        self.share_out();
        let returned = std::mem::take(&mut self.books().returned);
        if returned > 0
            && let Some(channel) = self.channel.upgrade()
        {
            channel.returned.fetch_add(returned, Ordering::Relaxed);
        }
        look
    }

    fn look_with(&self, buffer: &mut [u8]) -> Look {
        let mut books = self.books();
        if books.over.is_some() {
            return Look::Over;
        }
        for _ in 0..PACKETS_MAX {
            let why = match ancillary::receive(self.descriptor(), buffer) {
                Ok(received) if received.bytes == 0 && received.descriptors.is_empty() => None,
                Ok(received) if received.is_cut || received.lacks_descriptors || received.bytes > PACKET_BYTES_MAX => {
                    Some(Why::Truncated)
                }
                Ok(received) => match books.packet(&buffer[..received.bytes], received.descriptors) {
                    Ok(()) => continue,
                    Err(why) => Some(why),
                },
                Err(Errno::EAGAIN) => return Look::Open,
                // Said once; what came before it is still there.
                Err(Errno::ECONNRESET) => continue,
                Err(error) => Some(Why::Io(error.into())),
            };
            self.finish(&mut books, why, buffer);
            return Look::Over;
        }
        self.wake.notify_one();
        Look::Open
    }

    /// Ends it: nothing more goes out, and what has come before is read to its end.
    fn finish(&self, books: &mut Books, why: Option<Why>, buffer: &mut [u8]) {
        // It fails only where the other side has gone.
        let _ = shutdown(self.descriptor().as_raw_fd(), Shutdown::Both);
        if why.is_some() {
            for _ in 0..PACKETS_MAX * PACKETS_MAX {
                match ancillary::receive(self.descriptor(), buffer) {
                    Ok(received) if received.bytes == 0 && received.descriptors.is_empty() => break,
                    // Words behind a wrong one count as far as they can be understood.
                    Ok(received) => drop(books.packet(&buffer[..received.bytes], received.descriptors)),
                    Err(Errno::ECONNRESET) => {}
                    Err(_) => break,
                }
            }
        }
        let left = books.ledger.end();
        books.unsent.clear();
        books.over = Some(Over { why, lent: left.lent, is_reported: false });
        // Each writes its line.
        drop(left.taken);
        self.wake.notify_one();
    }

    /// Sends what waits to be sent.
    fn flush(&self, books: &mut Books) -> Result<(), Why> {
        while let Some(packet) = books.unsent.front() {
            match ancillary::send(self.descriptor(), &[IoSlice::new(packet)], &[]) {
                Ok(_) => drop(books.unsent.pop_front()),
                Err(Errno::EAGAIN | Errno::ETOOMANYREFS) if books.unsent.len() > UNSENT_MAX => return Err(Why::Deaf),
                // The end is found by reading, with all that came before it.
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    /// Whether the process that listened has ended, which is known only if it is the one that spoke.
    async fn has_exited(&self) -> bool {
        let Some((pid, descriptor)) = &self.peer else { return false };
        let spoke = self.books().ledger.hello().map(|hello| hello.pid);
        if spoke != u64::try_from(*pid).ok() {
            return false;
        }
        let Ok(descriptor) = descriptor.try_clone() else { return false };
        let Ok(watched) = ancillary::watch(descriptor, tokio::io::Interest::READABLE) else { return false };
        timeout(EXIT_PATIENCE, watched.readable()).await.is_ok_and(|ready| ready.is_ok())
    }
}

impl Books {
    /// Reads a packet and does what it says.
    fn packet(&mut self, packet: &[u8], descriptors: Vec<OwnedFd>) -> Result<(), Why> {
        (self.is_asked, self.is_silent) = (false, false);
        self.heard += 1;
        let count = descriptors.len();
        let mut descriptors = descriptors.into_iter();
        let mut rest = packet;
        let mut belong = 0;
        loop {
            let (frame, behind) = Frame::split(rest)?;
            belong += frame.descriptors();
            self.returned += u64::from(matches!(frame, Frame::Return { .. }));
            let back = match frame {
                Frame::Return { .. } => Some(returned(descriptors.next().ok_or(Why::Descriptors(count, belong))?)?),
                _ => None,
            };
            match self.ledger.receive(frame, back) {
                Ok(event) => self.event(event),
                Err(Broken { fault, touched }) => {
                    if let Some(loan) = touched {
                        // It is not ours: whoever waits is told that it is gone, and nobody answers it.
                        loan.tell(|_| Word::Taken);
                    }
                    return Err(fault.into());
                }
            }
            rest = behind;
            if rest.is_empty() {
                break;
            }
        }
        if descriptors.next().is_some() { Err(Why::Descriptors(count, belong)) } else { Ok(()) }
    }

    fn event(&mut self, event: Event<Loan, Box<dyn OnEnd>, OwnedFd>) {
        match event {
            Event::Hello | Event::Nothing => {}
            Event::Answer(frame) => self.unsent.push_back(frame.encode()),
            Event::Ended(account, end) => account.ended(end),
            // Our copy is closed here.
            Event::Taken(loan) => loan.tell(|_| Word::Taken),
            Event::Refused(loan, refusal) => loan.tell(|loan| Word::Refused(loan, refusal)),
        }
    }
}

/// What stands at a path.
pub(super) fn place(path: &Path) -> Option<Place> {
    std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// A client that came back, as it was before it went, and the kernel's name for it.
fn returned(client: OwnedFd) -> Result<(OwnedFd, Cookie), Why> {
    let cookie = ancillary::cookie(client.as_fd()).map_err(|error| Why::Io(error.into()))?;
    client::set_blocking(client.as_fd(), false).map_err(Why::Io)?;
    Ok((client, cookie))
}

impl Loan {
    /// Tells whoever waits; where nobody does any more, the client is closed.
    fn tell(mut self, word: impl FnOnce(Self) -> Word) {
        if let Some(tell) = self.tell.take()
            && let Err(Word::Refused(loan, _) | Word::Gone(loan) | Word::Broken(loan)) = tell.send(word(self))
        {
            loan.cut();
        }
    }

    /// Gives the client back as it was before it was lent.
    pub(super) fn refused(self, stage: Stage, source: Refusal) -> SendError {
        let client = self.client.as_fd();
        let taken_back = if self.is_blocking { client::set_blocking(client, false) } else { Ok(()) };
        let taken_back = taken_back.and_then(|()| match self.evidence.has_head() {
            true => Ok(head_bytes::reset_on_close(client, true)?),
            false => Ok(()),
        });
        match taken_back {
            Ok(()) => SendError::Refused { client: self.client, stage, source },
            Err(source) => SendError::Unanswered { source },
        }
    }

    /// A client of which no word came.
    pub(super) fn unread(self, late: Late, link: Weak<Link>) -> SendError {
        SendError::Unread(Unread::of_lease(self.client, self.evidence, late, link))
    }

    /// Closes it, because nobody waits for it any more.
    pub(super) fn cut(self) {
        if self.evidence.has_head() {
            head_bytes::reset(self.client.as_fd());
        }
    }
}

/// Whether a daemon has taken a client after it was withdrawn, as far as can be known now.
pub(in super::super) fn is_late_taken(late: &Late, link: &Weak<Link>) -> bool {
    if let Some(link) = link.upgrade() {
        link.look();
    }
    late.is_taken()
}

/// Sends a HANDOFF, and enters the client into the ledger in the same breath.
pub(super) async fn lend(
    link: Arc<Link>,
    permit: Permit,
    client: OwnedFd,
    parts: &Parts<'_>,
    is_blocking: bool,
    patience: Duration,
) -> Result<Lease, SendError> {
    let evidence = Evidence::of_lease(client.as_fd(), parts.has_head);
    let (tell, word) = oneshot::channel();
    let loan = Loan { client, evidence, is_blocking, tell: Some(tell) };
    let data_bytes_max = link.books().ledger.hello().and_then(|hello| hello.data_bytes_max);
    if data_bytes_max.is_some_and(|max| parts.data.len() as u64 > max) {
        let bytes_max = usize::try_from(data_bytes_max.unwrap_or_default()).unwrap_or(usize::MAX);
        return Err(loan.refused(Stage::Send, Refusal::TooMuchData { bytes: parts.data.len(), bytes_max }));
    }
    let packet = match Packed::new(parts) {
        Ok(packet) => packet,
        Err(error) => return Err(loan.refused(Stage::Send, error)),
    };
    let cookie = match (!parts.has_head).then(|| ancillary::cookie(loan.client.as_fd())).transpose() {
        Ok(cookie) => cookie,
        Err(error) => return Err(loan.refused(Stage::Send, error.into())),
    };
    if is_blocking && let Err(error) = client::set_blocking(loan.client.as_fd(), true) {
        return Err(loan.refused(Stage::Send, error.into()));
    }
    if loan.evidence.has_head()
        && let Err(error) = head_bytes::reset_on_close(loan.client.as_fd(), false)
    {
        return Err(loan.refused(Stage::Send, error.into()));
    }
    let mut back_off = BackOff::new(patience);
    let mut loan = Some(loan);
    loop {
        let failed = {
            let mut books = link.books();
            let id = books.ledger.next_id();
            let lent = loan.as_ref().expect("it is lent once");
            if books.over.is_some() || books.ledger.is_draining() {
                Err(Errno::EPIPE)
            } else {
                match packet.send(link.descriptor(), id, lent.client.as_fd()) {
                    Ok(()) => {
                        books.permits -= 1;
                        books.ledger.lend(loan.take().expect("it was looked at above"), cookie);
                        drop(books);
                        permit.forget();
                        return Ok(Lease { link, id, word, is_settled: false });
                    }
                    Err(error) => Err::<(), _>(error),
                }
            }
        };
        let refusal = match failed {
            // No room in the daemon's queue, or too many descriptors on their way: there is an event for neither that
            // tells whose room it is.
            Err(Errno::EAGAIN | Errno::ETOOMANYREFS) => match back_off.wait().await {
                Ok(()) => continue,
                Err(late) => late,
            },
            Err(error) => error.into(),
            Ok(()) => unreachable!("it returned"),
        };
        return Err(loan.take().expect("it was not lent").refused(Stage::Send, refusal));
    }
}

/// Reads a link until it ends, and says what became of whoever was lent then.
pub(super) async fn run(link: Arc<Link>) {
    let mut silence = tokio::time::interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
    silence.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut heard = 0;
    loop {
        let has_unsent = {
            let mut books = link.books();
            if books.over.is_some() {
                break;
            }
            if let Err(why) = link.flush(&mut books) {
                link.finish(&mut books, Some(why), &mut vec![0; PACKET_BYTES_MAX + 1]);
                break;
            }
            if books.is_closing && books.ledger.is_empty() && books.permits == 0 {
                link.finish(&mut books, None, &mut []);
                break;
            }
            !books.unsent.is_empty()
        };
        tokio::select! {
            readable = link.readable() => {
                if let Err(error) = readable {
                    let mut books = link.books();
                    link.finish(&mut books, Some(Why::Io(error)), &mut vec![0; PACKET_BYTES_MAX + 1]);
                    break;
                }
                link.look();
            }
            writable = link.socket.writable(), if has_unsent => {
                if let Ok(mut guard) = writable {
                    guard.clear_ready();
                }
            }
            () = link.wake.notified() => {
                link.look();
                tokio::task::yield_now().await;
            }
            _ = silence.tick() => heard = link.listen_for_silence(heard),
        }
    }
    let (why, lent) = {
        let mut books = link.books();
        let over = books.over.as_mut().expect("it is over");
        (over.why.take().filter(|_| !over.is_reported), std::mem::take(&mut over.lent))
    };
    let (daemon, count) = (link.path.display(), lent.len());
    match &why {
        Some(why) => tracing::warn!(%daemon, lent = count, error = %why, "the channel was ended"),
        None => tracing::debug!(%daemon, lent = count, "the channel has ended"),
    }
    if let Some(channel) = link.channel.upgrade() {
        let mut state = channel.state();
        if state.link.as_ref().is_some_and(|own| Arc::ptr_eq(own, &link)) {
            state.link = None;
        }
        state.leaving.retain(|own| !Arc::ptr_eq(own, &link));
        drop(state);
        if why.is_some() {
            channel.broke(link.opened.elapsed());
        }
    }
    if lent.is_empty() {
        return;
    }
    let has_exited = link.has_exited().await;
    for loan in lent {
        loan.tell(if has_exited { Word::Gone } else { Word::Broken });
    }
}

impl Link {
    /// Asks a daemon that has not said anything since the last time for a word; one that owes it already does not answer.
    fn listen_for_silence(&self, heard: u64) -> u64 {
        let mut books = self.books();
        if books.heard == heard && books.is_asked {
            if !books.is_silent {
                tracing::warn!(daemon = %self.path.display(), "the daemon does not answer");
            }
            books.is_silent = true;
        } else if books.heard == heard {
            books.is_asked = true;
            books.unsent.push_back(Frame::Ping(b"baton".to_vec()).encode());
        }
        books.heard
    }
}
