//! While an upstream is asked: the request's body goes there, interim answers come back, and a client that leaves ends it.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use hyper::body::Bytes;
use tokio::time::Instant;

use super::Exchange;
use super::upload::{Progress, Upload, UploadError};
use crate::connection::Limits;
use crate::http::body::Framing;
use crate::http::head::{Expectation, Persistence, Version};
use crate::http::response::{CONTINUE, put_interim};
use crate::pace::Pace;
use crate::spool::Spool;
use crate::upstream::{Fault, Interim, Interims, Source, feed};

/// A body up to this length that is there already goes with its head in one piece.
const AT_ONCE_BYTES_MAX: usize = 32 << 10;
/// How long a client is kept waiting for `100 Continue` by an upstream that may not know it.
const CONTINUE_PATIENCE: Duration = Duration::from_secs(1);

/// Why nobody is asked any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Interrupted {
    /// The client has gone.
    #[error("the client has gone")]
    ClientGone,
    /// The upstream does not answer, or not so that it could be understood.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The request's body is at fault.
    #[error(transparent)]
    Upload(#[from] UploadError),
}

/// What an exchange with an upstream is bounded by, beside the client's limits.
#[derive(Debug)]
pub struct Asking {
    /// From the request's last byte on; each byte of its body begins it anew, and while the client is waited for it stands
    /// still.
    pub head_timeout: Duration,
    /// Of the upstream.
    pub interims: Interims,
    /// Whether the upstream is told that the client waits for `100 Continue`, and may say it.
    pub is_continue_forwarded: bool,
}

impl Exchange {
    /// The request's body, for whoever is asked. It is read while [`asking`](Self::asking), and later, and only as fast as
    /// it is taken.
    ///
    /// # Errors
    /// It is known to be too long.
    pub fn open_body(&mut self, limits: &Limits) -> Result<Source, UploadError> {
        let length = match self.state.framing {
            Framing::None => return Ok(Source::empty()),
            Framing::Chunked => None,
            Framing::Length(length) if length > limits.body_bytes_max => {
                return Err(UploadError::TooLarge(limits.body_bytes_max));
            }
            Framing::Length(length) => Some(length),
        };
        if let Some(whole) = length.and_then(|length| self.whole_body(length)) {
            return Ok(Source::whole(whole));
        }
        let (feed, source) = feed(length);
        self.state.upload = Some(Box::new(Upload::new(self.state.framing, Some(feed), limits)));
        Ok(source)
    }

    /// The request's body, read to its end and kept, for whoever must know its length before its first byte.
    ///
    /// # Errors
    /// As [`asking`](Self::asking).
    ///
    /// # Cancel safety
    /// As [`asking`](Self::asking)'s.
    pub async fn spool_body(&mut self, limits: &Limits) -> Result<Source, Interrupted> {
        let mut source = self.open_body(limits)?;
        if source.length().is_some() {
            return Ok(source);
        }
        let full = |error: std::io::Error| Fault::Unreachable(format!("no room for the request's body: {error}"));
        let keeping = async {
            let mut spool = Spool::new().map_err(full)?;
            // A cut is told by the upload.
            while let Some(Ok(piece)) = poll_fn(|context| source.poll_next(context)).await {
                spool.push(&piece).map_err(full)?;
            }
            Ok(Source::spooled(spool))
        };
        let interims = Interims::new(0);
        let how = Asking { head_timeout: limits.body_timeout, interims, is_continue_forwarded: false };
        self.asking(keeping, &how, limits).await
    }

    /// The body, taken, if it is short and all there.
    fn whole_body(&mut self, length: u64) -> Option<Bytes> {
        let length = usize::try_from(length).ok().filter(|length| *length <= AT_ONCE_BYTES_MAX)?;
        if self.state.expectation == Expectation::Continue {
            return None;
        }
        let mut body = vec![0; length];
        if !matches!(self.client.peek(&mut body), Ok(count) if count == length) {
            return None;
        }
        self.client.take(&mut body).ok()?;
        self.state.read += length as u64;
        self.state.framing = Framing::None;
        Some(body.into())
    }

    /// Waits for `asking`'s answer, and meanwhile does what is the client's part of it.
    ///
    /// # Errors
    /// [`Interrupted`]; but for a client that has gone, the exchange can be answered.
    ///
    /// # Cancel safety
    /// Dropping it loses what was taken of the body: close the client.
    pub async fn asking<T>(
        &mut self,
        asking: impl Future<Output = Result<T, Fault>>,
        how: &Asking,
        limits: &Limits,
    ) -> Result<T, Interrupted> {
        enum Event<T> {
            Answer(Result<T, Fault>),
            Gone,
            Interim(Result<Interim, Fault>),
            Late,
            Upload(Result<Progress, UploadError>),
        }
        let mut asking = std::pin::pin!(asking);
        let mut progressed = Instant::now();
        // Who waits for a word of the upstream is not kept waiting for ever.
        let patience = if how.is_continue_forwarded { CONTINUE_PATIENCE } else { Duration::ZERO };
        let mut until_continue = (self.state.upload.is_some() && self.state.expectation == Expectation::Continue)
            .then(|| progressed + patience);
        let mut clock = std::pin::pin!(tokio::time::sleep_until(progressed + how.head_timeout));
        loop {
            let Self { client, state } = self;
            let is_uploading = state.upload.is_some() && until_continue.is_none();
            let event = poll_fn(|context| {
                if let Poll::Ready(answer) = asking.as_mut().poll(context) {
                    return Poll::Ready(Event::Answer(answer));
                }
                if let Poll::Ready(interim) = how.interims.poll_next(context) {
                    return Poll::Ready(Event::Interim(interim));
                }
                let waiting = match &mut state.upload {
                    Some(upload) if is_uploading => upload.poll(client, limits, context).map(Event::Upload),
                    _ => client.poll_gone(context).map(|()| Event::Gone),
                };
                if waiting.is_ready() {
                    return waiting;
                }
                // Only now it is known who is waited for. The upstream's time begins when it has what there is.
                let client_deadline = state.upload.as_deref().filter(|_| is_uploading).and_then(Upload::deadline);
                let deadline = until_continue.or(client_deadline).unwrap_or(progressed + how.head_timeout);
                if clock.deadline() != deadline {
                    clock.as_mut().reset(deadline);
                }
                clock.as_mut().poll(context).map(|()| Event::Late)
            });
            match event.await {
                Event::Answer(answer) => {
                    // They came before it, if only by a moment.
                    while let Some(interim) = how.interims.take() {
                        let interim = interim?;
                        if interim.status != 100 {
                            self.pass_on(&interim, limits).await?;
                        }
                    }
                    return Ok(answer?);
                }
                Event::Gone => return Err(Interrupted::ClientGone),
                Event::Interim(interim) => {
                    let interim = interim?;
                    if interim.status != 100 {
                        self.pass_on(&interim, limits).await?;
                    } else if until_continue.take().is_some() {
                        self.say_continue(limits).await?;
                        progressed = Instant::now();
                    }
                }
                Event::Upload(Ok(Progress::Moved)) => {
                    progressed = Instant::now();
                    // A client that sends as fast as it is read does not keep the worker.
                    tokio::task::coop::consume_budget().await;
                }
                Event::Upload(Ok(Progress::Whole)) => {
                    progressed = Instant::now();
                    self.settle_upload();
                }
                // Its answer will say why.
                Event::Upload(Err(UploadError::Unwanted)) => self.settle_upload(),
                Event::Upload(Err(UploadError::Closed)) => return Err(Interrupted::ClientGone),
                Event::Upload(Err(error)) => {
                    self.settle_upload();
                    self.state.persistence = Persistence::Close;
                    return Err(error.into());
                }
                Event::Late => {
                    if until_continue.take().is_some() {
                        self.say_continue(limits).await?;
                        progressed = Instant::now();
                    } else if self.state.upload.as_deref().and_then(Upload::deadline).is_some() {
                        self.settle_upload();
                        self.state.persistence = Persistence::Close;
                        return Err(UploadError::TimedOut.into());
                    } else {
                        return Err(Fault::TimedOut { key: "head_timeout", limit: how.head_timeout }.into());
                    }
                }
            }
        }
    }

    /// Waits until the client has gone, with nothing behind it that is unread.
    ///
    /// # Cancel safety
    /// Dropping it changes nothing.
    pub async fn gone(&mut self) {
        poll_fn(|context| self.client.poll_gone(context)).await;
    }

    /// An upload is over, or given up: what is left of the body is known by its framing again.
    pub(super) fn settle_upload(&mut self) {
        if let Some(upload) = self.state.upload.take() {
            self.state.read += upload.read();
            // Lost in the middle of a chunk, nothing behind it is understood.
            self.state.framing = upload.rest().unwrap_or(Framing::Length(u64::MAX));
        }
    }

    /// Reads what the upstream left of the body, and throws it away: then the client can be given to somebody else.
    ///
    /// # Errors
    /// The client is closed, or has to be: the rest of its body is too long, too slow or malformed.
    ///
    /// # Cancel safety
    /// As [`asking`](Self::asking)'s.
    pub async fn finish_body(&mut self, limits: &Limits) -> Result<(), UploadError> {
        if self.state.framing == Framing::None {
            return Ok(());
        }
        let mut upload = match self.state.upload.take() {
            Some(upload) => upload,
            None => Box::new(Upload::new(self.state.framing, None, limits)),
        };
        upload.unfeed();
        if self.state.expectation == Expectation::Continue {
            // It waits for our word, and nobody wants to give it.
            self.state.upload = Some(upload);
            self.settle_upload();
            return Err(UploadError::Unwanted);
        }
        let result = loop {
            let deadline = upload.wait(limits);
            let moved = poll_fn(|context| upload.poll(&mut self.client, limits, context));
            match tokio::time::timeout_at(deadline, moved).await.unwrap_or(Err(UploadError::TimedOut)) {
                Ok(Progress::Moved) => tokio::task::coop::consume_budget().await,
                Ok(Progress::Whole) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.state.upload = Some(upload);
        self.settle_upload();
        if result.is_err() {
            self.state.persistence = Persistence::Close;
        }
        result
    }

    async fn say_continue(&mut self, limits: &Limits) -> Result<(), Interrupted> {
        self.state.expectation = Expectation::None;
        self.write_interim(CONTINUE, limits).await
    }

    async fn pass_on(&mut self, interim: &Interim, limits: &Limits) -> Result<(), Interrupted> {
        // HTTP/1.0 knows none (RFC 9110 §15.2).
        if self.state.version == Version::Http10 {
            return Ok(());
        }
        let mut head = Vec::new();
        put_interim(
            &mut head,
            interim.status,
            interim.fields.iter().map(|(name, value)| (name.as_str(), value.as_bytes())),
        );
        self.write_interim(&head, limits).await
    }

    async fn write_interim(&mut self, head: &[u8], limits: &Limits) -> Result<(), Interrupted> {
        self.client.write_all(head, &Pace::new(limits)).await.map_err(|_| Interrupted::ClientGone)?;
        self.state.written += head.len() as u64;
        Ok(())
    }
}
