//! A connection to a daemon: packets out and in, and the ledger of who owns whom.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant as Clock};

use nix::errno::Errno;
use nix::sys::socket::{Shutdown, shutdown};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::super::error::Refusal;
use super::super::native::frame::{Frame, FrameError};
use super::super::native::header::PACKET_BYTES_MAX;
use super::super::native::ledger::{Broken, Cookie, End, Event, Fault, Late, Ledger};
use super::super::{ancillary, client};
use super::loan::{Loan, Word};
use super::{Channel, OnEnd, Permit, Place, Status};

/// Packets that are read before others have their turn.
const PACKETS_MAX: usize = 64;
/// Packets that wait for a daemon that does not read; at more the channel ends.
const UNSENT_MAX: usize = 64;
/// The same of one that asks for more than it can have read.
const UNREAD_MAX: usize = 4096;

type Book = Ledger<Loan, Box<dyn OnEnd>, OwnedFd>;

/// A connection that speaks the protocol.
#[derive(Debug)]
pub(in super::super) struct Link {
    pub(super) socket: AsyncFd<OwnedFd>,
    /// The process that has said HELLO, where it can be watched.
    pub(super) peer: OnceLock<OwnedFd>,
    pub(super) channel: Weak<Channel>,
    pub(super) path: PathBuf,
    /// The socket's file, as far as there is one.
    place: Option<Place>,
    pub(super) opened: Clock,
    pub(super) books: Mutex<Books>,
    /// Somebody has put something into `unsent`, or the link is to be closed, or is over.
    pub(super) wake: Notify,
}

#[derive(Debug, Default)]
pub(super) struct Books {
    pub(super) ledger: Book,
    /// Credits that somebody has and has not used yet.
    pub(super) permits: u64,
    pub(super) unsent: VecDeque<Vec<u8>>,
    /// The link is to be closed when nobody is in flight.
    pub(super) is_closing: bool,
    /// A PING is not answered.
    pub(super) is_asked: bool,
    pub(super) is_silent: bool,
    pub(super) heard: u64,
    /// Clients that came back since the last look.
    returned: u64,
    pub(super) over: Option<Over>,
}

/// Why it is over, and whoever was lent then.
#[derive(Debug)]
pub(super) struct Over {
    pub(super) why: Option<Why>,
    pub(super) lent: Vec<Loan>,
    /// Of those that were taken, what was kept: no word of them will come.
    pub(super) taken: Vec<Box<dyn OnEnd>>,
    pub(super) is_reported: bool,
}

/// What made a channel end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Why {
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

thread_local! {
    /// Where packets are received: one buffer for all links of a worker, because nothing stays in it.
    static BUFFER: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
}

impl Link {
    pub(super) fn new(
        socket: AsyncFd<OwnedFd>,
        channel: Weak<Channel>,
        path: PathBuf,
        place: Option<Place>,
        opened: Clock,
    ) -> Self {
        Self {
            socket,
            peer: OnceLock::new(),
            channel,
            path,
            place,
            opened,
            books: Mutex::default(),
            wake: Notify::new(),
        }
    }

    pub(super) fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) async fn readable(&self) -> io::Result<()> {
        // Cleared before anybody looks: what arrives after the look is a new event.
        self.socket.readable().await.map(|mut guard| guard.clear_ready())
    }

    /// The process that has said HELLO, by its own word; `None` before.
    pub(super) fn speaker(&self) -> Option<u64> {
        self.books().ledger.hello().map(|hello| hello.pid)
    }

    pub(super) fn place(&self) -> Option<Place> {
        self.place
    }

    pub(super) fn age(&self) -> Duration {
        self.opened.elapsed()
    }

    pub(super) fn is_draining(&self) -> bool {
        self.books().ledger.is_draining()
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
                books.over = Some(Over { why: None, lent: left.lent, taken: Vec::new(), is_reported: false });
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

    /// As [`read`](Self::read), for everybody but the reader: it is woken where there is something for it to do, because
    /// what was read here is no event for it any more.
    pub(in super::super) fn look(self: &Arc<Self>) -> Look {
        let look = self.read();
        let books = self.books();
        if !books.unsent.is_empty() || books.is_closing {
            self.wake.notify_one();
        }
        drop(books);
        look
    }

    /// Reads what has come, and does what it says. At most so many packets: where there may be more, the reader is woken.
    pub(super) fn read(self: &Arc<Self>) -> Look {
        let look = BUFFER.with_borrow_mut(|buffer| {
            // One byte more than there may be, so that more is seen to be.
            buffer.resize(PACKET_BYTES_MAX + 1, 0);
            self.look_with(buffer)
        });
        if self.is_draining()
            && let Some(channel) = self.channel.upgrade()
        {
            channel.drains(self);
        }
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
    pub(super) fn finish(&self, books: &mut Books, why: Option<Why>, buffer: &mut [u8]) {
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
        books.over = Some(Over { why, lent: left.lent, taken: left.taken, is_reported: false });
        self.wake.notify_one();
    }

    /// Sends what waits to be sent.
    pub(super) fn flush(&self, books: &mut Books) -> Result<(), Why> {
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
        if self.unsent.len() > UNREAD_MAX {
            return Err(Why::Deaf);
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

/// A client that came back, as it was before it went, and the kernel's name for it.
fn returned(client: OwnedFd) -> Result<(OwnedFd, Cookie), Why> {
    let cookie = ancillary::cookie(client.as_fd()).map_err(|error| Why::Io(error.into()))?;
    client::set_blocking(client.as_fd(), false).map_err(Why::Io)?;
    Ok((client, cookie))
}
