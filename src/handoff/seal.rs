//! What may still be done with a client whose message nobody has read in time, or of whom it is not known.
//!
//! A message that was sent cannot be taken back: a daemon that was stopped may wake up, read it and write. So whoever
//! answers such a client also shuts its socket down, in the same breath, and whatever comes later meets a dead socket. The
//! order of looks is what keeps two answers apart:
//!
//! 1. Was it read since? Then the daemon owns the client: nothing is written.
//! 2. The answer and `shutdown(SHUT_RDWR)`, one behind the other, without waiting for anything.
//! 3. Was it read between 1 and 2, or, where that tells nothing, is more written than our answer? Then both may have written,
//!    and the log must say so. What is written after 2 fails with EPIPE, so nothing later can harm the client.
//!
//! A client that was sent a response's head has no room for an answer. It is reset instead, which only one can do: there
//! is no 3.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Weak;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, Shutdown, send, shutdown};

use super::acknowledgement::{Look, look};
use super::ancillary::written_bytes;
use super::channel::{Link, is_late_taken};
use super::dialect::{SocketKind, datagram};
use super::head_bytes;
use super::native::ledger::Late;
use super::resolved::Resolved;

/// What will show, of a message that was sent, who has the client.
#[derive(Debug)]
pub(super) struct Evidence {
    delivery: Delivery,
    /// How many bytes had been written to the client before the message was sent. `None`: it was not asked, or cannot be
    /// known of this client.
    written: Option<u64>,
    /// Whether the client was sent a response's head.
    has_head: bool,
}

/// How a message leaves the sender.
#[derive(Debug)]
enum Delivery {
    /// By a datagram to this socket: it is read whole, but one that the receiver had not read when it died looks read.
    Datagram(Box<Resolved>),
    /// By a stream of several bytes: a reader may take the client with the first byte and leave the rest.
    Parts,
    /// Over a channel: as long as the daemon has not said that it takes the client, nobody has it.
    Lease,
    /// By a packet or a stream of one byte: as long as it was not read, nobody has the client.
    Whole,
}

/// Who has the client, as far as a look can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A daemon: it has read the message.
    Taken,
    /// Nobody so far: the message can still be read.
    Unread,
    /// Nobody, and nobody will: the message is gone unread.
    Untaken,
    /// It cannot be told. The message can be read any more, or not.
    Unknown {
        /// Whether it can.
        can_be_read: bool,
    },
}

impl Evidence {
    /// What there will be to go by; taken before anything is sent. `receiver` is the socket that a datagram goes to.
    pub(super) fn before(
        kind: SocketKind,
        bytes: &[u8],
        client: BorrowedFd<'_>,
        receiver: Option<Resolved>,
        has_head: bool,
    ) -> Self {
        let (delivery, written) = match (kind, receiver) {
            (SocketKind::Datagram, Some(receiver)) => (Delivery::Datagram(Box::new(receiver)), written_bytes(client)),
            (SocketKind::Stream, _) if bytes.len() > 1 => (Delivery::Parts, written_bytes(client)),
            _ => (Delivery::Whole, None),
        };
        Self { delivery, written, has_head }
    }

    /// The same of a client that is lent over a channel.
    pub(super) fn of_lease(client: BorrowedFd<'_>, has_head: bool) -> Self {
        Self { delivery: Delivery::Lease, written: written_bytes(client), has_head }
    }

    /// Whether the client was sent a response's head.
    pub(super) fn has_head(&self) -> bool {
        self.has_head
    }

    /// What a look at its connection means in this message's case.
    pub(super) fn verdict(&self, look: Look, connection: BorrowedFd<'_>) -> Verdict {
        match (look, &self.delivery) {
            (Look::Read, Delivery::Datagram(receiver)) if !datagram::is_alive(receiver, connection) => {
                Verdict::Unknown { can_be_read: false }
            }
            (Look::Read, _) => Verdict::Taken,
            (Look::Reset, Delivery::Whole) => Verdict::Untaken,
            (Look::Reset, _) => Verdict::Unknown { can_be_read: false },
            (Look::Unread, Delivery::Parts) => Verdict::Unknown { can_be_read: true },
            (Look::Unread, _) => Verdict::Unread,
        }
    }

    /// Whether nobody has written to the client since; `false` also where that cannot be known.
    pub(super) fn is_untouched(&self, client: BorrowedFd<'_>) -> bool {
        self.written.is_some() && written_bytes(client) == self.written
    }

    /// Whether somebody certainly has written to the client since.
    pub(super) fn is_touched(&self, client: BorrowedFd<'_>) -> bool {
        self.written.zip(written_bytes(client)).is_some_and(|(before, now)| now > before)
    }

    /// Whether nobody but us has, who wrote `count` bytes and then shut down: an end that is still to be sent counts as one.
    fn is_ours_alone(&self, client: BorrowedFd<'_>, count: usize) -> bool {
        let (Some(before), Some(now)) = (self.written, written_bytes(client)) else { return false };
        now.wrapping_sub(before).saturating_sub(count as u64) <= 1
    }
}

/// A client whose message was sent and, as far as can be shown, not acted upon. It can be ended once, by
/// [`seal`](Self::seal) or, where it was sent a head, by [`reset`](Self::reset); dropping it closes our copy, unwritten.
#[derive(Debug)]
pub struct Unread {
    client: OwnedFd,
    message: Message,
    evidence: Evidence,
    /// What is known so far: never [`Verdict::Taken`]. A connection shows a reset once, and then looks as if everything had
    /// been read.
    verdict: Verdict,
}

/// Where it shows what became of the message.
#[derive(Debug)]
enum Message {
    /// On the connection that it was sent on.
    Connection(OwnedFd),
    /// In what the daemon says later, on a channel that may have ended.
    Lease(Late, Weak<Link>),
}

/// What became of a client that was to be sealed. Our copy is closed in each case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sealed {
    /// It has our answer, or as much of it as its socket had room for, and nobody else's.
    Answered,
    /// It had gone before it could be answered or reset.
    ClientGone,
    /// It has our answer, but the daemon read the message while it was being written and may have written too.
    Conflict,
    /// A daemon may own it, or it could not be written to: nothing was written or shut down.
    LeftUnwritten,
    /// It was reset, behind the head that it was sent; over a Unix socket, which knows no reset, it sees the end.
    Reset,
}

impl Unread {
    pub(super) fn new(client: OwnedFd, connection: OwnedFd, evidence: Evidence, verdict: Verdict) -> Self {
        Self { client, message: Message::Connection(connection), evidence, verdict }
    }

    /// A client of which its daemon has said nothing. Where there is no `link` any more, it never will.
    pub(super) fn of_lease(client: OwnedFd, evidence: Evidence, late: Late, link: Weak<Link>) -> Self {
        let is_open = link.strong_count() > 0;
        let verdict = if is_open { Verdict::Unread } else { Verdict::Unknown { can_be_read: false } };
        Self { client, message: Message::Lease(late, link), evidence, verdict }
    }

    /// What there is to see now.
    fn look(&self) -> nix::Result<Verdict> {
        match &self.message {
            Message::Connection(connection) => {
                let connection = connection.as_fd();
                look(connection).map(|looked| self.evidence.verdict(looked, connection))
            }
            Message::Lease(late, link) if is_late_taken(late, link) => Ok(Verdict::Taken),
            Message::Lease(..) => Ok(Verdict::Unread),
        }
    }

    /// Whether a daemon may have taken the client, though nobody has written to it; otherwise it is certain that the
    /// message was never read so far.
    pub fn is_fate_unknown(&self) -> bool {
        matches!(self.verdict, Verdict::Unknown { .. })
    }

    /// Answers the client, if that can still be done without a second voice, and ends its connection for everybody who
    /// holds it. `answer` is a whole response with `Connection: close`; what does not fit into the socket at once is lost.
    /// Never blocks.
    pub fn seal(mut self, answer: &[u8]) -> Sealed {
        if self.evidence.has_head() || !self.is_still_ours() {
            return Sealed::LeftUnwritten;
        }
        let client = self.client.as_raw_fd();
        // Held back until the end goes with it: a client that woke up in between would take this thread's processor, and
        // with it the time in which a daemon could write behind the answer.
        let held_back = MsgFlags::from_bits_retain(libc::MSG_MORE);
        let written = match send(client, answer, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL | held_back) {
            Ok(count) => count,
            Err(Errno::EPIPE | Errno::ECONNRESET | Errno::ETIMEDOUT) => return Sealed::ClientGone,
            Err(_) => return Sealed::LeftUnwritten,
        };
        // It fails only where the client has gone.
        let _ = shutdown(client, Shutdown::Both);
        // A reader of a part has left no other trace.
        if self.evidence.written.is_some() && !self.evidence.is_ours_alone(self.client.as_fd(), written) {
            return Sealed::Conflict;
        }
        if !self.can_be_read() {
            return Sealed::Answered;
        }
        match self.look() {
            Ok(Verdict::Unread | Verdict::Untaken) => Sealed::Answered,
            // A stream's reader that closed, or has stopped within the message; a datagram's that died.
            Ok(Verdict::Unknown { .. }) if self.evidence.written.is_some() => Sealed::Answered,
            // A daemon that has just said that it takes the client: it has written nothing, and cannot any more.
            Ok(Verdict::Taken) if self.evidence.written.is_some() && matches!(self.message, Message::Lease(..)) => {
                Sealed::Answered
            }
            Ok(Verdict::Taken | Verdict::Unknown { .. }) | Err(_) => Sealed::Conflict,
        }
    }

    /// Resets a client that was sent a head, if no daemon may be serving it, for everybody who holds it: a clean end would
    /// make an empty body look whole.
    pub fn reset(mut self) -> Sealed {
        if !self.is_still_ours() {
            return Sealed::LeftUnwritten;
        }
        if head_bytes::has_gone(self.client.as_fd()) {
            return Sealed::ClientGone;
        }
        head_bytes::reset(self.client.as_fd());
        Sealed::Reset
    }

    /// Whether the message can still be read; otherwise it is gone, read in part or unread.
    pub fn can_be_read(&self) -> bool {
        matches!(self.verdict, Verdict::Unread | Verdict::Unknown { can_be_read: true })
    }

    /// Looks again, if anything can have changed.
    fn is_still_ours(&mut self) -> bool {
        if self.can_be_read() {
            match self.look() {
                Ok(verdict) => self.verdict = verdict,
                Err(_) => return false,
            }
        }
        match self.verdict {
            Verdict::Taken => false,
            // A daemon that keeps its word has not touched the client; one that does not is found out.
            Verdict::Unread if matches!(self.message, Message::Lease(..)) && self.evidence.written.is_some() => {
                self.evidence.is_untouched(self.client.as_fd())
            }
            Verdict::Unread | Verdict::Untaken => true,
            Verdict::Unknown { .. } => self.evidence.is_untouched(self.client.as_fd()),
        }
    }
}
