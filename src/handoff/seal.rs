//! What may still be done with a client whose message nobody has read in time, or of whom it is not known.
//!
//! A message that was sent cannot be taken back: a daemon that was stopped may wake up, read it and write. So whoever
//! answers such a client also shuts its socket down, in the same breath, and whatever comes later meets a dead socket. The
//! order of looks is what keeps two answers apart:
//!
//! 1. Was it read since? Then the daemon owns the client: nothing is written.
//! 2. The answer and `shutdown(SHUT_RDWR)`, one behind the other, without waiting for anything.
//! 3. Was it read between 1 and 2? Then both may have written, and the log must say so. What is written after 2 fails with
//!    EPIPE, so nothing later can harm the client.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use nix::sys::socket::{MsgFlags, Shutdown, send, shutdown};

use super::acknowledgement::{Look, look};
use super::ancillary::written_bytes;
use super::dialect::SocketKind;

/// What shows that no daemon has touched a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Evidence {
    /// The message itself: as long as it was not read whole, nobody has the client. A packet is like that, and a stream
    /// of one byte.
    Certain,
    /// How many bytes had been written to the client before the message was sent. A reader of a longer stream may have
    /// taken the client with the first byte and left the rest. `None`: it cannot be known of this client.
    Written(Option<u64>),
}

impl Evidence {
    /// What there will be to go by; taken before anything is sent.
    pub(super) fn before(kind: SocketKind, bytes: &[u8], client: BorrowedFd<'_>) -> Self {
        match kind {
            SocketKind::Stream if bytes.len() > 1 => Self::Written(written_bytes(client)),
            SocketKind::Seqpacket | SocketKind::Stream => Self::Certain,
        }
    }

    /// Whether an unread message of this evidence shows a client that nobody has written to.
    pub(super) fn is_untouched(self, client: BorrowedFd<'_>) -> bool {
        match self {
            Self::Certain => true,
            Self::Written(None) => false,
            Self::Written(before) => written_bytes(client) == before,
        }
    }
}

/// A client whose message was sent and, as far as can be shown, not acted upon. It can be answered once, by
/// [`seal`](Self::seal); dropping it closes our copy, unwritten.
#[derive(Debug)]
pub struct Unread {
    client: OwnedFd,
    connection: OwnedFd,
    evidence: Evidence,
    /// The connection has shown a reset. It does so once, and then looks as if everything had been read.
    was_reset: bool,
}

/// What became of a client that was to be sealed. Our copy is closed in each case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sealed {
    /// It has our answer, or as much of it as its socket had room for, and nobody else's.
    Answered,
    /// It has our answer, but the daemon read the message while it was being written and may have written too.
    Conflict,
    /// A daemon may own it, or it could not be written to: nothing was written or shut down.
    LeftUnwritten,
}

impl Unread {
    pub(super) fn new(client: OwnedFd, connection: OwnedFd, evidence: Evidence, was_reset: bool) -> Self {
        Self { client, connection, evidence, was_reset }
    }

    /// Whether a daemon may have taken the client, though nobody has written to it; otherwise it is certain that the
    /// message was never read so far.
    pub fn is_fate_unknown(&self) -> bool {
        self.evidence != Evidence::Certain
    }

    /// Answers the client, if that can still be done without a second voice, and ends its connection for everybody who
    /// holds it. `answer` is a whole response with `Connection: close`; what does not fit into the socket at once is lost.
    /// Never blocks.
    pub fn seal(self, answer: &[u8]) -> Sealed {
        let mut can_be_read = !self.was_reset;
        if can_be_read {
            match look(self.connection.as_fd()) {
                Ok(Look::Unread) => {}
                Ok(Look::Reset) => can_be_read = false,
                Ok(Look::Read) | Err(_) => return Sealed::LeftUnwritten,
            }
        }
        if !self.evidence.is_untouched(self.client.as_fd()) {
            return Sealed::LeftUnwritten;
        }
        let client = self.client.as_raw_fd();
        if send(client, answer, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL).is_err() {
            return Sealed::LeftUnwritten;
        }
        // It fails only where the client has gone.
        let _ = shutdown(client, Shutdown::Both);
        match can_be_read.then(|| look(self.connection.as_fd())) {
            None | Some(Ok(Look::Reset | Look::Unread)) => Sealed::Answered,
            Some(Ok(Look::Read) | Err(_)) => Sealed::Conflict,
        }
    }
}
