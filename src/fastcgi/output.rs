//! The body of an answer, as a program writes it.

use std::task::{Context, Poll, ready};

use hyper::body::Bytes;

use super::Stream;
use super::exchange::{Event, Exchange, broken};
use super::record::Ending;
use crate::upstream::{Body, Fault, Piece};

/// Whether there is a body for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// What the program writes; that many bytes, if it said so.
    Given(Option<u64>),
    /// Whatever the program writes, there is none (RFC 9110 §6.4.1).
    None,
}

/// Ends with END_REQUEST, and with nothing else.
#[derive(Debug)]
pub(super) struct Output<S: Stream> {
    /// `None` when it is over.
    exchange: Option<Exchange<S>>,
    /// What came in one piece with the head.
    first: Bytes,
    content: Content,
}

impl<S: Stream> Output<S> {
    pub(super) fn new(exchange: Exchange<S>, first: Bytes, content: Content) -> Self {
        Self { exchange: Some(exchange), first, content }
    }

    /// The next bytes, or the end.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Fault>>> {
        loop {
            let Some(exchange) = &mut self.exchange else { return Poll::Ready(None) };
            let bytes = if self.first.is_empty() {
                match ready!(exchange.poll_event(context))? {
                    Event::Output(bytes) => bytes,
                    Event::End(ending) => return Poll::Ready(self.check_end(ending).err().map(Err)),
                }
            } else {
                std::mem::take(&mut self.first)
            };
            match &mut self.content {
                Content::None => continue,
                Content::Given(None) => {}
                Content::Given(Some(left)) => match left.checked_sub(bytes.len() as u64) {
                    Some(rest) => *left = rest,
                    None => return Poll::Ready(Some(Err(broken("more bytes than its Content-Length says")))),
                },
            }
            return Poll::Ready(Some(Ok(bytes)));
        }
    }

    fn check_end(&mut self, ending: Ending) -> Result<(), Fault> {
        self.exchange = None;
        match (ending, self.content) {
            (Ending::Complete(_), Content::Given(Some(left @ 1..))) => {
                Err(Fault::Broken(format!("{left} bytes fewer than its Content-Length says")))
            }
            (Ending::Complete(_), _) => Ok(()),
            (ending, _) => Err(Fault::Broken(format!("{ending:?} in the middle of its answer"))),
        }
    }
}

impl<S: Stream> Body for Output<S> {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Piece, Fault>>> {
        let next = ready!(self.poll(context));
        if !matches!(next, Some(Ok(_))) {
            self.exchange = None;
        }
        Poll::Ready(next.map(|next| next.map(Piece::Data)))
    }

    fn length(&self) -> Option<u64> {
        match self.content {
            Content::Given(left) => left,
            Content::None => Some(0),
        }
    }
}
