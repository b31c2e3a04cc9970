//! How a policy sees the beginning of a request's body without ever holding the client.
//!
//! The guest's `body-prefix` becomes a [`Peek`]; the connection, which owns the client's socket, looks at the bytes and
//! answers. The bytes stay where they are. While a peek is open the guest is suspended and its deadline stands still:
//! what bounds the wait is the connection's own limit on bodies.

use tokio::sync::{mpsc, oneshot};

/// Why there is no prefix to be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyError {
    /// The client is gone, or the request is over.
    Closed,
    /// This request's body cannot be looked at.
    NotAvailable,
    /// More was asked for than may be buffered.
    TooLarge,
    /// It came too slowly.
    TimedOut,
}

/// The guest's end: given to [`Generation::on_request`](super::Generation::on_request) for the time of one decision.
#[derive(Clone, Debug, Default)]
pub struct BodyPort(Option<mpsc::Sender<Peek>>);

impl BodyPort {
    /// For requests without a body, and for policies that do not look at it. Costs nothing.
    pub fn empty() -> Self {
        Self(None)
    }

    /// For a body: what the guest asks for arrives at the other end.
    pub fn open() -> (Self, Peeks) {
        // The guest waits for each answer, so there is never a second question.
        let (sender, receiver) = mpsc::channel(1);
        (Self(Some(sender)), Peeks(receiver))
    }

    /// Asks for up to `bytes_max` bytes and waits for the answer.
    ///
    /// # Cancel safety
    /// Dropping it withdraws the question; no byte is lost, because none was taken.
    pub(super) async fn prefix(&self, bytes_max: u32) -> Result<Vec<u8>, BodyError> {
        let Some(sender) = &self.0 else { return Ok(Vec::new()) };
        let (reply, answer) = oneshot::channel();
        sender.send(Peek { bytes_max, reply }).await.map_err(|_| BodyError::Closed)?;
        answer.await.unwrap_or(Err(BodyError::Closed))
    }
}

/// The connection's end. Dropped, it answers every question with [`BodyError::Closed`].
#[derive(Debug)]
pub struct Peeks(mpsc::Receiver<Peek>);

impl Peeks {
    /// The next question; `None` when no port is left to ask one.
    ///
    /// # Cancel safety
    /// Safe to drop: a question is taken only by returning it.
    pub async fn next(&mut self) -> Option<Peek> {
        self.0.recv().await
    }
}

/// One call of `body-prefix`. Dropped unanswered, it answers [`BodyError::Closed`].
#[derive(Debug)]
pub struct Peek {
    bytes_max: u32,
    reply: oneshot::Sender<Result<Vec<u8>, BodyError>>,
}

impl Peek {
    /// What the guest asked for; the answer may be shorter when the body is.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max as usize
    }

    /// Lets the guest go on.
    pub fn answer(self, prefix: Result<Vec<u8>, BodyError>) {
        // Nobody is left to tell when the request was given up meanwhile.
        drop(self.reply.send(prefix));
    }
}
