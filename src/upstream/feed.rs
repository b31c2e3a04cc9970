//! A request's body on its way to an upstream: a feed that the client's side fills, and a source that the upstream drains.
//!
//! One piece waits between the two, so whoever is slower sets the pace.

use std::fs::File;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use hyper::body::{Bytes, Frame, SizeHint};

use super::{Body, Piece};
use crate::spool::{self, Spool};

/// Read at once of a body that was kept.
const SPOOL_PIECE_BYTES: usize = 64 << 10;

/// The end that is filled. Dropped before [`Feed::end`], the body is cut: the upstream must not take it for whole.
#[derive(Debug)]
pub struct Feed(Arc<Mutex<Between>>);

/// What is between the two ends.
#[derive(Debug, Default)]
struct Between {
    piece: Option<Bytes>,
    /// No more will come, and the body is whole.
    is_whole: bool,
    /// No more will come.
    is_over: bool,
    /// Nobody takes any more.
    is_unwanted: bool,
    feed: Option<Waker>,
    source: Option<Waker>,
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
    Body(Box<dyn Body>),
    Feed(Taker),
    /// From a place in it on.
    Spool(File, u64),
    Whole(Option<Bytes>),
}

/// Tells the feed when nobody takes any more.
#[derive(Debug)]
struct Taker(Arc<Mutex<Between>>);

/// The body ends before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cut {
    /// It was kept here, or is a file or somebody else's answer.
    #[error("what was to be sent was cut")]
    Ours,
    /// The client has gone, or broke its framing.
    #[error("the request's body was cut")]
    Request,
}

/// A body that is still to be read from the client; `length` where its head said it.
pub fn feed(length: Option<u64>) -> (Feed, Source) {
    let between = Arc::<Mutex<Between>>::default();
    (Feed(Arc::clone(&between)), Source { left: length, from: From::Feed(Taker(between)) })
}

impl Feed {
    /// Whether a piece is wanted: there is room for one, or never will be (`false`).
    pub fn poll_room(&self, context: &mut Context<'_>) -> Poll<bool> {
        let mut between = lock(&self.0);
        match &between.piece {
            _ if between.is_unwanted => Poll::Ready(false),
            None => Poll::Ready(true),
            Some(_) => {
                between.feed = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Puts a piece in, of at least a byte; there must be room.
    pub fn put(&self, piece: Bytes) {
        let mut between = lock(&self.0);
        debug_assert!(between.piece.is_none() && !piece.is_empty(), "a piece, and room for it");
        between.piece = Some(piece);
        wake(&mut between.source);
    }

    /// Says that the body is whole.
    pub fn end(self) {
        lock(&self.0).is_whole = true;
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        let mut between = lock(&self.0);
        between.is_over = true;
        wake(&mut between.source);
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        let mut between = lock(&self.0);
        between.is_unwanted = true;
        wake(&mut between.feed);
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

    /// An answer's body, for whoever changes it.
    pub fn body(body: Box<dyn Body>) -> Self {
        Self { left: body.length(), from: From::Body(body) }
    }

    /// A body that was kept until its length was known.
    pub fn spooled(spool: Spool) -> Self {
        let (file, bytes) = spool.into_file();
        Self { left: Some(bytes), from: From::Spool(file, 0) }
    }

    /// How many bytes are still to come, where that is known.
    pub fn length(&self) -> Option<u64> {
        self.left
    }

    /// The next piece, at least a byte; `None` at the end, which is certain.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        let piece = match &mut self.from {
            From::Whole(bytes) => bytes.take(),
            From::Body(body) => loop {
                match ready!(body.poll_next(context)) {
                    Some(Ok(Piece::Data(bytes))) => break Some(bytes),
                    Some(Ok(Piece::Trailers(_))) => {}
                    Some(Err(_)) => return Poll::Ready(Some(Err(Cut::Ours))),
                    None => break None,
                }
            },
            From::Spool(file, at) => match spool::read(file, *at, SPOOL_PIECE_BYTES) {
                Ok(piece) if piece.is_empty() => None,
                Ok(piece) => {
                    *at += piece.len() as u64;
                    Some(piece.into())
                }
                Err(_) => return Poll::Ready(Some(Err(Cut::Ours))),
            },
            From::Feed(taker) => {
                let mut between = lock(&taker.0);
                match between.piece.take() {
                    Some(piece) => {
                        wake(&mut between.feed);
                        Some(piece)
                    }
                    None if between.is_whole => None,
                    None if between.is_over => return Poll::Ready(Some(Err(Cut::Request))),
                    None => {
                        between.source = Some(context.waker().clone());
                        return Poll::Pending;
                    }
                }
            }
        };
        match (&mut self.left, &piece) {
            (Some(left), Some(piece)) => *left = left.saturating_sub(piece.len() as u64),
            (left, None) => *left = Some(0),
            (None, Some(_)) => {}
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

fn lock(between: &Mutex<Between>) -> MutexGuard<'_, Between> {
    between.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(source: &mut Source) -> Poll<Option<Result<Bytes, Cut>>> {
        source.poll_next(&mut Context::from_waker(Waker::noop()))
    }

    fn room(feed: &Feed) -> Poll<bool> {
        feed.poll_room(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn one_piece_waits_at_a_time() {
        let (feed, mut source) = feed(Some(5));
        assert_eq!((next(&mut source), room(&feed)), (Poll::Pending, Poll::Ready(true)));
        feed.put(Bytes::from_static(b"abc"));
        assert_eq!(room(&feed), Poll::Pending);
        assert_eq!(next(&mut source), Poll::Ready(Some(Ok(Bytes::from_static(b"abc")))));
        assert_eq!((source.length(), room(&feed)), (Some(2), Poll::Ready(true)));
        feed.put(Bytes::from_static(b"de"));
        feed.end();
        assert_eq!(next(&mut source), Poll::Ready(Some(Ok(Bytes::from_static(b"de")))));
        assert_eq!(next(&mut source), Poll::Ready(None));
    }

    #[test]
    fn a_body_that_was_not_ended_is_cut() {
        let (feed, mut source) = feed(None);
        feed.put(Bytes::from_static(b"abc"));
        drop(feed);
        assert!(matches!(next(&mut source), Poll::Ready(Some(Ok(_)))));
        assert_eq!(next(&mut source), Poll::Ready(Some(Err(Cut::Request))));
    }

    #[test]
    fn a_feed_learns_that_nobody_takes_any_more() {
        let (feed, source) = feed(None);
        feed.put(Bytes::from_static(b"abc"));
        drop(source);
        assert_eq!(room(&feed), Poll::Ready(false));
    }
}
