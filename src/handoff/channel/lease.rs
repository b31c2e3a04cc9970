//! A client that was lent, and one that a daemon has: what becomes of them is waited for here.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::beat::{Beat, Pause};
use super::super::error::{Refusal, SendError, Stage};
use super::super::native::ledger::{End, Late};
use super::OnEnd;
use super::link::Link;
use super::loan::Word;

/// A client that was lent. Dropping it takes the client back and closes it, if no daemon has it by then; with a reset
/// where its response had begun.
#[derive(Debug)]
pub struct Lease {
    pub(super) link: Arc<Link>,
    pub(super) id: u64,
    pub(super) word: oneshot::Receiver<Word>,
    pub(super) is_settled: bool,
}

/// A client that a daemon has.
#[derive(Debug)]
pub struct Taken {
    pub(super) link: Arc<Link>,
    pub(super) id: u64,
    is_accounted: bool,
}

impl Lease {
    /// Waits until the daemon says that it takes the client or refuses it, for so long.
    ///
    /// # Errors
    /// [`SendError::Refused`] gives the client back: the daemon has refused it, or has died without a word of it.
    /// [`SendError::Unread`]: no word in time, or the channel broke while the daemon lives.
    pub async fn settle(mut self, patience: Duration, beat: &Beat) -> Result<Taken, SendError> {
        let deadline = Instant::now() + patience;
        if beat.pause().await {
            // Whoever looked before has read the words about all.
            let word = self.word.try_recv().or_else(|_| {
                self.link.look();
                self.word.try_recv()
            });
            match word {
                Ok(word) => {
                    beat.learn(Pause::LongEnough);
                    return self.judge(word);
                }
                Err(_) => beat.learn(Pause::TooShort),
            }
        }
        match tokio::time::timeout_at(deadline, &mut self.word).await {
            Ok(Ok(word)) => self.judge(word),
            // The link has gone without a word; it never does.
            Ok(Err(_)) => self.give_up().await,
            Err(_) => {
                // It may be here.
                self.link.look();
                match self.word.try_recv() {
                    Ok(word) => self.judge(word),
                    Err(_) => self.give_up().await,
                }
            }
        }
    }

    fn judge(mut self, word: Word) -> Result<Taken, SendError> {
        self.is_settled = true;
        match word {
            Word::Taken => Ok(Taken { link: Arc::clone(&self.link), id: self.id, is_accounted: false }),
            // It has broken its word: nobody writes behind it.
            Word::Refused(loan, _) | Word::Gone(loan) if loan.is_touched() => {
                Err(loan.unread(Late::default(), Weak::new()))
            }
            Word::Refused(loan, refusal) => Err(loan.refused(Stage::Acknowledge, Refusal::Daemon(Box::new(refusal)))),
            Word::Gone(loan) => Err(loan.refused(Stage::Acknowledge, Refusal::NeverRead)),
            Word::Broken(loan) => Err(loan.unread(Late::default(), Weak::new())),
        }
    }

    async fn give_up(mut self) -> Result<Taken, SendError> {
        match self.link.withdraw(self.id) {
            Some((loan, late)) => {
                self.is_settled = true;
                Err(loan.unread(late, Arc::downgrade(&self.link)))
            }
            // The link has ended, and whoever reads it is about to say what became of the client.
            None => match (&mut self.word).await {
                Ok(word) => self.judge(word),
                Err(_) => {
                    self.is_settled = true;
                    Err(SendError::Unanswered { source: std::io::ErrorKind::BrokenPipe.into() })
                }
            },
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.is_settled {
            return;
        }
        self.link.look();
        if let Some((loan, _)) = self.link.withdraw(self.id) {
            loan.cut();
        }
    }
}

impl Taken {
    /// How it ended, if it has.
    pub fn end(&mut self) -> Option<End<OwnedFd>> {
        let end = self.link.end_of(self.id);
        self.is_accounted |= end.is_some();
        end
    }

    /// Leaves somebody behind to account for the client.
    ///
    /// # Errors
    /// No word of it will come: the channel has ended.
    pub fn keep(mut self, account: Box<dyn OnEnd>) -> Result<(), Box<dyn OnEnd>> {
        self.is_accounted = true;
        match self.link.end_of(self.id) {
            Some(end) => {
                account.ended(end);
                Ok(())
            }
            None => self.link.keep(self.id, account),
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if !self.is_accounted {
            // Whoever comes back to nobody is closed.
            drop(self.link.end_of(self.id).map_or_else(|| self.link.keep(self.id, Box::new(Nobody)), |_| Ok(())));
        }
    }
}

/// Nobody wants to know how it ended.
#[derive(Debug)]
struct Nobody;

impl OnEnd for Nobody {
    fn ended(self: Box<Self>, _: End<OwnedFd>) {}

    fn is_about(&self, _: &str) -> bool {
        false
    }
}
