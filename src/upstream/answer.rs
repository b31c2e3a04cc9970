//! What comes back from an upstream: a head, then pieces of a body until an end that is certain.

use std::task::{Context, Poll};

use hyper::HeaderMap;
use hyper::body::Bytes;

use super::Fault;
use crate::http::head::Version;

/// An answer whose head has come.
#[derive(Debug)]
pub struct Answer {
    /// In which it came; 1.1 where it did not come in HTTP.
    pub version: Version,
    /// 200 to 599.
    pub status: u16,
    /// As they came; what is the connection's is among them.
    pub fields: HeaderMap,
    /// The rest.
    pub body: Box<dyn Body>,
}

/// A piece of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// At least one byte.
    Data(Bytes),
    /// The fields behind the last chunk; nothing follows.
    Trailers(HeaderMap),
}

/// A body that is being read. Dropped before its end, whoever writes it is told so, as far as its protocol has a word for
/// that: the connection is closed, a FastCGI request aborted.
pub trait Body: Send + std::fmt::Debug {
    /// The next piece; `None` is the end, and certain: a body that is cut ends in a fault. What is not polled is not read,
    /// but for what fits into one buffer.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Piece, Fault>>>;

    /// How many bytes of data are still to come, where that is known.
    fn length(&self) -> Option<u64>;

    /// Closes the connection that it comes over, also where it is at its end: it may occupy whoever made the answer.
    fn abandon(&mut self) {}
}

/// A body that is all there.
#[derive(Debug)]
pub struct Whole(Option<Bytes>);

impl Whole {
    /// Of these bytes.
    pub fn new(bytes: Bytes) -> Self {
        Self(Some(bytes).filter(|bytes| !bytes.is_empty()))
    }
}

impl Body for Whole {
    fn poll_next(&mut self, _context: &mut Context<'_>) -> Poll<Option<Result<Piece, Fault>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Piece::Data(bytes))))
    }

    fn length(&self) -> Option<u64> {
        Some(self.0.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}
