//! A request's body on its way to an upstream: a feed that the client's side fills, and a source that the upstream drains.
//!
//! One piece waits between the two, so whoever is slower sets the pace.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::body::{Bytes, Frame, SizeHint};
use tokio::sync::mpsc;

/// The end that is filled. Dropped before [`Feed::end`], the body is cut: the upstream must not take it for whole.
#[derive(Debug)]
pub struct Feed(Option<mpsc::Sender<Message>>);

#[derive(Debug)]
enum Message {
    Data(Bytes),
    End,
}

/// The end that is drained.
#[derive(Debug)]
pub struct Source {
    /// Bytes to come, where that is known.
    left: Option<u64>,
    from: From,
}

#[derive(Debug)]
enum From {
    Feed(mpsc::Receiver<Message>),
    Whole(Option<Bytes>),
}

/// The body ends before its end: the client has gone, or broke its framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request's body was cut")]
pub struct Cut;

/// A body that is still to be read from the client; `length` where its head said it.
pub fn feed(length: Option<u64>) -> (Feed, Source) {
    let (sender, receiver) = mpsc::channel(1);
    (Feed(Some(sender)), Source { left: length, from: From::Feed(receiver) })
}

impl Feed {
    /// Waits until there is room for a piece, or nobody wants any more (`false`).
    ///
    /// # Cancel safety
    /// Dropping it changes nothing.
    pub async fn room(&self) -> bool {
        match &self.0 {
            Some(sender) => sender.reserve().await.is_ok(),
            None => false,
        }
    }

    /// Puts a piece in; there must be [room](Self::room). `false` when nobody wants it.
    pub fn put(&self, piece: Bytes) -> bool {
        self.0.as_ref().is_some_and(|sender| sender.try_send(Message::Data(piece)).is_ok())
    }

    /// Says that the body is whole; there must be [room](Self::room).
    pub fn end(&mut self) {
        if let Some(sender) = self.0.take() {
            drop(sender.try_send(Message::End));
        }
    }
}

impl Source {
    /// No body.
    pub fn empty() -> Self {
        Self::whole(Bytes::new())
    }

    /// A body that is all there.
    pub fn whole(bytes: Bytes) -> Self {
        let bytes = Some(bytes).filter(|bytes| !bytes.is_empty());
        Self { left: Some(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)), from: From::Whole(bytes) }
    }

    /// How many bytes are still to come, where that is known.
    pub fn length(&self) -> Option<u64> {
        self.left
    }

    /// The next piece, at least a byte; `None` at the end, which is certain.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        let piece = match &mut self.from {
            From::Whole(bytes) => bytes.take(),
            From::Feed(receiver) => match ready!(receiver.poll_recv(context)) {
                Some(Message::Data(bytes)) => Some(bytes),
                Some(Message::End) => {
                    self.from = From::Whole(None);
                    None
                }
                None => return Poll::Ready(Some(Err(Cut))),
            },
        };
        if let (Some(left), Some(piece)) = (&mut self.left, &piece) {
            *left = left.saturating_sub(piece.len() as u64);
        }
        Poll::Ready(piece.map(Ok))
    }
}

impl hyper::body::Body for Source {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        self.poll_next(context).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.from, From::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
