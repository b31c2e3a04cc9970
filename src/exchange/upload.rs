//! A request's body on its way from the client's socket to whoever reads it, or to nobody.
//!
//! Exactly the body is taken: where its next bytes are known to be data they are read at once, framing is looked at first,
//! and what follows the body stays in the socket.

use std::io;
use std::task::{Context, Poll, ready};

use hyper::body::Bytes;
use tokio::time::Instant;

use crate::client::Client;
use crate::connection::Limits;
use crate::http::body::{Decoder, Framing};
use crate::pace::Pace;
use crate::upstream::Feed;

/// What is read of a body at once.
const PIECE_BYTES: usize = 32 << 10;

/// A body that is being read.
#[derive(Debug)]
pub(super) struct Upload {
    decoder: Decoder,
    /// `None`: what is read is thrown away.
    feed: Option<Feed>,
    /// Of the client; begun anew whenever it had to wait for us.
    pace: Option<(Pace, u64)>,
    /// Until when it must have sent more, while it is waited for.
    until: Option<Instant>,
    /// Data read so far.
    read: u64,
    bytes_max: u64,
}

/// How an upload went on, or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Some of it moved.
    Moved,
    /// It is whole.
    Whole,
}

/// Why a body is not read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UploadError {
    /// The client closed before its end.
    #[error("the client closed in the middle of its body")]
    Closed,
    /// It breaks its framing: 400.
    #[error("malformed chunks")]
    Malformed,
    /// It is longer than `body_bytes_max`: 413.
    #[error("a body over {0} bytes (body_bytes_max)")]
    TooLarge(u64),
    /// It came too slowly: 408.
    #[error("a body too slow (body_timeout, body_rate_min)")]
    TimedOut,
    /// Whoever it was for takes no more of it. What is left can be drained.
    #[error("nobody wanted the rest of the body")]
    Unwanted,
}

impl UploadError {
    /// The status for its client; `None` where there is nobody, or another answer is to be expected.
    pub fn status(self) -> Option<u16> {
        match self {
            Self::Closed | Self::Unwanted => None,
            Self::Malformed => Some(400),
            Self::TooLarge(_) => Some(413),
            Self::TimedOut => Some(408),
        }
    }
}

impl Upload {
    pub(super) fn new(framing: Framing, feed: Option<Feed>, limits: &Limits) -> Self {
        Self {
            decoder: Decoder::new(framing),
            feed,
            pace: None,
            until: None,
            read: 0,
            bytes_max: limits.body_bytes_max,
        }
    }

    /// What is left, for whoever drains it; `None` where it is lost in the middle of a chunk.
    pub(super) fn rest(&self) -> Option<Framing> {
        self.decoder.rest()
    }

    /// Data read so far.
    pub(super) fn read(&self) -> u64 {
        self.read
    }

    /// From here on what is read is thrown away.
    pub(super) fn unfeed(&mut self) {
        self.feed = None;
    }

    /// Moves a piece. [`Progress::Whole`] is said once.
    ///
    /// # Errors
    /// Why there will be no more. The feed is gone then, and whoever drains it sees a cut.
    pub(super) fn poll(
        &mut self,
        client: &mut Client,
        limits: &Limits,
        context: &mut Context<'_>,
    ) -> Poll<Result<Progress, UploadError>> {
        loop {
            if let Some(feed) = &self.feed {
                match feed.poll_room(context) {
                    Poll::Pending => {
                        (self.pace, self.until) = (None, None);
                        // What it has sent is still unread, so only its reset, or its end on both sides, shows.
                        ready!(client.poll_gone(context));
                        self.feed = None;
                        return Poll::Ready(Err(UploadError::Closed));
                    }
                    Poll::Ready(true) => {}
                    Poll::Ready(false) => {
                        self.feed = None;
                        return Poll::Ready(Err(UploadError::Unwanted));
                    }
                }
            }
            match self.take(client) {
                Ok(Some(progress)) => {
                    self.until = None;
                    return Poll::Ready(Ok(progress));
                }
                Ok(None) => {
                    self.wait(limits);
                    if ready!(client.poll_readable(context)).is_err() {
                        self.feed = None;
                        return Poll::Ready(Err(UploadError::Closed));
                    }
                }
                Err(error) => {
                    self.feed = None;
                    return Poll::Ready(Err(error));
                }
            }
        }
    }

    /// Until when the client must have sent more; `None` while it is not waited for.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.until
    }

    /// Waits for the client from now on, if it was not waited for already; returns until when.
    pub(super) fn wait(&mut self, limits: &Limits) -> Instant {
        let read = self.read;
        let (pace, before) = self.pace.get_or_insert_with(|| (Pace::new(limits), read));
        *self.until.get_or_insert_with(|| pace.deadline(read - *before))
    }

    /// Takes what is there of the body; `None` where nothing is.
    fn take(&mut self, client: &Client) -> Result<Option<Progress>, UploadError> {
        let ahead = usize::try_from(self.decoder.data_ahead()).unwrap_or(usize::MAX);
        let mut piece = vec![0; PIECE_BYTES.min(if ahead == 0 { PIECE_BYTES } else { ahead })];
        let result = if ahead > 0 { client.read(&mut piece) } else { client.peek(&mut piece) };
        let count = match result {
            Ok(0) => return Err(UploadError::Closed),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(_) => return Err(UploadError::Closed),
        };
        piece.truncate(count);
        let mut at = 0;
        // Where chunks are short, several fit into a piece: their data is moved together.
        let mut end = 0;
        while at < count && !self.decoder.is_at_end() {
            let step = self.decoder.step(&piece[at..]).map_err(|_| UploadError::Malformed)?;
            let data = at + step.data.start..at + step.data.end;
            at += step.consumed;
            let length = data.len();
            piece.copy_within(data, end);
            end += length;
        }
        if ahead == 0 {
            client.take(&mut vec![0; at]).map_err(|_| UploadError::Closed)?;
        }
        self.read += end as u64;
        if self.read > self.bytes_max {
            return Err(UploadError::TooLarge(self.bytes_max));
        }
        piece.truncate(end);
        if let Some(feed) = &self.feed
            && !piece.is_empty()
        {
            feed.put(Bytes::from(piece));
        }
        if self.decoder.is_at_end() {
            if let Some(feed) = self.feed.take() {
                feed.end();
            }
            return Ok(Some(Progress::Whole));
        }
        Ok(Some(Progress::Moved))
    }
}
