//! A client that is lent: how it goes out, and what can be done with it when it is the gateway's again.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::Duration;

use nix::errno::Errno;
use tokio::sync::oneshot;

use super::super::error::{Refusal, SendError, Stage};
use super::super::native::frame::Refusal as DaemonRefusal;
use super::super::native::ledger::Late;
use super::super::seal::{Evidence, Unread};
use super::super::send::BackOff;
use super::super::{ancillary, client, head_bytes};
use super::link::Link;
use super::packed::Packed;
use super::{Lease, Parts, Permit};

/// A client that was lent, and who waits for a word of it.
#[derive(Debug)]
pub(super) struct Loan {
    pub(super) client: OwnedFd,
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

impl Loan {
    /// Tells whoever waits; where nobody does any more, the client is closed.
    pub(super) fn tell(mut self, word: impl FnOnce(Self) -> Word) {
        if let Some(tell) = self.tell.take()
            && let Err(Word::Refused(loan, _) | Word::Gone(loan) | Word::Broken(loan)) = tell.send(word(self))
        {
            loan.cut();
        }
    }

    /// Whether somebody has written to the client since it was lent, as far as that can be known.
    pub(super) fn is_touched(&self) -> bool {
        self.evidence.is_touched(self.client.as_fd())
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
