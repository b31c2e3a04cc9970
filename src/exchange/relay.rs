//! Somebody else's answer on its way to the client, piece by piece.
//!
//! What is short and all there goes out in one piece. Of the rest at most a few pieces wait for the client: the upstream is
//! read when there is room, so whoever is slower sets the pace. What is left of the request's body goes the other way
//! meanwhile: an upstream may answer before it has read all of it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hyper::HeaderMap;
use hyper::body::Bytes;
use tokio::time::Instant;

use super::upload::{Upload, UploadError};
use super::{Closing, Drain, Exchange, Then, with_date};
use crate::client::LOOKS_PER_STALL;
use crate::connection::Limits;
use crate::drain::Guard;
use crate::http::body::Framing;
use crate::http::head::{Expectation, Persistence, Version};
use crate::http::response::{Delimiter, Presence, put_relayed_head};
use crate::pace::Pace;
use crate::upstream::{Body, Fault, Piece};

/// What waits for the client before the upstream is not read any more.
const WAITING_BYTES_MAX: usize = 64 << 10;
/// Pieces up to this length are copied together, longer ones are sent from where they are.
const COPIED_BYTES_MAX: usize = 8 << 10;
/// Slices of one sendmsg(2).
const SLICES_MAX: usize = 16;

/// The head of an answer as the client gets it, but for what frames it.
#[derive(Debug)]
pub struct Head {
    /// 200 to 599.
    pub status: u16,
    /// In lower case.
    pub fields: HeaderMap,
    /// Of the body that would follow, where the answer is one to HEAD.
    pub length: Option<u64>,
    /// Whether the client understands fields behind the last chunk (`TE: trailers`, RFC 9110 §6.5.1).
    pub with_trailers: bool,
}

/// An answer that was relayed, or was to be.
#[derive(Debug)]
pub struct Relayed {
    /// Written to the client in this exchange.
    pub bytes_out: u64,
    /// Read of the request's body so far.
    pub body_bytes: u64,
    /// Why the client has not all of it.
    pub cut: Option<CutShort>,
    /// What is left to do.
    pub then: Then,
}

/// Who ended an answer before its end.
#[derive(Debug, thiserror::Error)]
pub enum CutShort {
    /// The client left, or was too slow.
    #[error("{0}")]
    Client(#[source] io::Error),
    /// The upstream: the client saw that the answer is not whole.
    #[error("{0}")]
    Upstream(#[source] Fault),
}

impl Exchange {
    /// Relays an answer, whose body may be silent for `silence`.
    ///
    /// # Errors
    /// The upstream's part ended before a byte of the answer was sent: the client can be answered otherwise.
    ///
    /// # Cancel safety
    /// Dropping it closes the client.
    pub async fn relay(
        mut self,
        head: &Head,
        mut body: Box<dyn Body>,
        silence: Duration,
        limits: &Limits,
        guard: &Guard,
    ) -> Result<Relayed, (Box<Self>, Fault)> {
        let has_body = self.state.presence == Presence::Whole && !matches!(head.status, 204 | 304);
        let delimiter = match body.length() {
            _ if matches!(head.status, 204 | 304) => Delimiter::Nothing,
            _ if self.state.presence == Presence::HeadOnly => head.length.map_or(Delimiter::Nothing, Delimiter::Length),
            Some(length) => Delimiter::Length(length),
            None if self.state.version == Version::Http11 => Delimiter::Chunked,
            None => Delimiter::Close,
        };
        let drain = self.plan_behind_relay(limits);
        let persistence = match drain {
            Drain::Close => Persistence::Close,
            _ if guard.is_draining() || delimiter == Delimiter::Close => Persistence::Close,
            Drain::Behind | Drain::Nothing => self.state.persistence,
        };
        let mut out = Out::with_room_for(head.fields.len(), delimiter);
        let fields = head.fields.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        let end = (self.state.version, persistence);
        with_date(|date| put_relayed_head(&mut out.tail, head.status, fields, delimiter, end, date));
        let mut relay = Relay {
            out,
            delimiter,
            with_trailers: head.with_trailers && delimiter == Delimiter::Chunked,
            is_over: !has_body,
            pace: None,
            until: None,
            heard: None,
        };
        let before = self.state.written;
        let cut = relay.run(&mut self, &mut *body, silence, limits).await.err();
        // An upstream that was not read to its end learns that nobody will.
        drop(body);
        self.settle_upload();
        let cut = match cut {
            Some(CutShort::Upstream(fault)) if self.state.written == before => return Err((Box::new(self), fault)),
            cut => cut,
        };
        let (bytes_out, body_bytes) = (self.state.written, self.state.read);
        let then = match (&cut, persistence, self.state.framing) {
            (Some(CutShort::Upstream(_)), ..) => {
                if delimiter == Delimiter::Close {
                    // Its end would look like the answer's.
                    self.client.reset();
                }
                Then::Close
            }
            (Some(CutShort::Client(_)), ..) => Then::Close,
            (None, Persistence::KeepAlive, Framing::None) => Then::Continue(self.client),
            (None, Persistence::KeepAlive, Framing::Length(_)) if drain == Drain::Behind => Then::Drain(self),
            (None, ..) if self.may_send_more() => Then::Linger(Closing(self.client)),
            (None, ..) => Then::Close,
        };
        Ok(Relayed { bytes_out, body_bytes, cut, then })
    }

    /// As [`drain_plan`](Self::drain_plan), where the body may still be on its way to the upstream.
    fn plan_behind_relay(&mut self, limits: &Limits) -> Drain {
        match &self.state.upload {
            None => self.drain_plan(limits),
            // The client waits for our word and may never send it.
            Some(_) if self.state.expectation == Expectation::Continue => Drain::Close,
            Some(upload) => match upload.rest() {
                Some(Framing::Length(left)) if left <= super::DRAIN_BYTES_MAX => Drain::Behind,
                _ => Drain::Close,
            },
        }
    }
}

/// What is to be sent.
#[derive(Debug, Default)]
struct Out {
    queue: VecDeque<Bytes>,
    /// Behind the queue.
    tail: Vec<u8>,
    bytes: usize,
}

impl Out {
    /// For a head of so many fields, and a body behind it that is short.
    fn with_room_for(field_count: usize, delimiter: Delimiter) -> Self {
        let body = match delimiter {
            Delimiter::Length(length) if length <= COPIED_BYTES_MAX as u64 => length as usize,
            _ => 0,
        };
        Self { tail: Vec::with_capacity(128 + 64 * field_count + body), ..Self::default() }
    }

    fn put(&mut self, piece: Bytes) {
        if piece.len() <= COPIED_BYTES_MAX {
            self.tail.extend_from_slice(&piece);
        } else {
            self.flush_tail();
            self.bytes += piece.len();
            self.queue.push_back(piece);
        }
    }

    fn flush_tail(&mut self) {
        if !self.tail.is_empty() {
            self.bytes += self.tail.len();
            self.queue.push_back(std::mem::take(&mut self.tail).into());
        }
    }

    fn len(&self) -> usize {
        self.bytes + self.tail.len()
    }

    fn sent(&mut self, mut count: usize) {
        self.bytes -= count;
        while let Some(first) = self.queue.front_mut() {
            if count < first.len() {
                bytes_advance(first, count);
                return;
            }
            count -= first.len();
            self.queue.pop_front();
        }
    }
}

fn bytes_advance(bytes: &mut Bytes, count: usize) {
    drop(bytes.split_to(count));
}

/// An answer that is being relayed.
struct Relay {
    out: Out,
    delimiter: Delimiter,
    with_trailers: bool,
    /// Everything of the body is in `out`, or was.
    is_over: bool,
    /// Of the client, and how much had been written when it began; `None` while the client is not waited for.
    pace: Option<(Pace, u64)>,
    /// Until when the client must have taken more, while it is waited for.
    until: Option<Instant>,
    /// When the upstream was heard last; `None` until it was waited for.
    heard: Option<Instant>,
}

/// What a wait ended with.
enum Event {
    Gone,
    Piece(Option<Result<Piece, Fault>>),
    Sent(io::Result<usize>),
    Uploaded(Result<super::upload::Progress, UploadError>),
    Woken,
}

impl Relay {
    async fn run(
        &mut self,
        exchange: &mut Exchange,
        body: &mut dyn Body,
        silence: Duration,
        limits: &Limits,
    ) -> Result<(), CutShort> {
        self.gather(body)?;
        let mut clock = std::pin::pin!(tokio::time::sleep_until(Instant::now() + silence));
        while !self.is_over || self.out.len() > 0 {
            self.out.flush_tail();
            let event = poll_fn(|context| {
                if let Poll::Ready(event) = self.poll(exchange, body, limits, context) {
                    return Poll::Ready(event);
                }
                // Only now it is known who is waited for.
                let wake = self.wake(exchange, silence);
                if clock.deadline() != wake {
                    clock.as_mut().reset(wake);
                }
                clock.as_mut().poll(context).map(|()| Event::Woken)
            });
            match event.await {
                Event::Woken => {
                    let now = Instant::now();
                    if exchange
                        .state
                        .upload
                        .as_deref()
                        .and_then(Upload::deadline)
                        .is_some_and(|deadline| now >= deadline)
                    {
                        exchange.settle_upload();
                    } else if now >= self.deadline(silence) {
                        return Err(match self.out.bytes {
                            0 => CutShort::Upstream(Fault::TimedOut { key: "body_timeout", limit: silence }),
                            _ => CutShort::Client(io::ErrorKind::TimedOut.into()),
                        });
                    }
                }
                Event::Gone => return Err(CutShort::Client(io::ErrorKind::ConnectionReset.into())),
                Event::Piece(piece) => {
                    self.heard = None;
                    self.take(piece)?;
                    self.gather(body)?;
                }
                Event::Sent(result) => {
                    let count = result.map_err(CutShort::Client)?;
                    self.out.sent(count);
                    exchange.state.written += count as u64;
                    self.until = None;
                    if self.out.len() == 0 {
                        self.pace = None;
                    }
                }
                Event::Uploaded(Ok(super::upload::Progress::Moved)) => {}
                Event::Uploaded(_) => exchange.settle_upload(),
            }
            // An upstream and a client that are as fast as we are do not keep the worker.
            tokio::task::coop::consume_budget().await;
        }
        Ok(())
    }

    /// Until when whoever is waited for must have moved: the client, where something is there for it.
    fn deadline(&mut self, silence: Duration) -> Instant {
        match self.until {
            Some(until) => until,
            None => *self.heard.get_or_insert_with(Instant::now) + silence,
        }
    }

    /// When to look again, if nothing happens before.
    fn wake(&mut self, exchange: &Exchange, silence: Duration) -> Instant {
        let deadline = self.deadline(silence);
        let upload_deadline = exchange.state.upload.as_deref().and_then(Upload::deadline);
        let look = self.pace.as_ref().map(|(pace, _)| Instant::now() + pace.stall() / LOOKS_PER_STALL);
        [upload_deadline, look].into_iter().flatten().fold(deadline, Instant::min)
    }

    /// Takes what is there of the body without waiting, so that what is short goes out in one piece.
    fn gather(&mut self, body: &mut dyn Body) -> Result<(), CutShort> {
        while !self.is_over && self.out.len() < WAITING_BYTES_MAX {
            match body.poll_next(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(piece) => self.take(piece)?,
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    fn poll(
        &mut self,
        exchange: &mut Exchange,
        body: &mut dyn Body,
        limits: &Limits,
        context: &mut Context<'_>,
    ) -> Poll<Event> {
        let Exchange { client, state } = exchange;
        if self.out.bytes > 0 {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut count = 0;
            for (slice, piece) in slices.iter_mut().zip(&self.out.queue) {
                *slice = IoSlice::new(piece);
                count += 1;
            }
            match client.poll_send(context, &slices[..count]) {
                Poll::Ready(result) => return Poll::Ready(Event::Sent(result)),
                Poll::Pending => {
                    let written = state.written;
                    let (pace, before) = self.pace.get_or_insert_with(|| (Pace::new(limits), written));
                    self.until.get_or_insert_with(|| pace.deadline(written - *before));
                }
            }
        }
        if !self.is_over
            && self.out.bytes < WAITING_BYTES_MAX
            && let Poll::Ready(piece) = body.poll_next(context)
        {
            return Poll::Ready(Event::Piece(piece));
        }
        match &mut state.upload {
            Some(upload) => upload.poll(client, limits, context).map(Event::Uploaded),
            // What is left has been read for it: whether it gets there, the writing says.
            None if self.is_over => Poll::Pending,
            None => client.poll_gone(context).map(|()| Event::Gone),
        }
    }

    fn take(&mut self, piece: Option<Result<Piece, Fault>>) -> Result<(), CutShort> {
        let is_chunked = self.delimiter == Delimiter::Chunked;
        match piece {
            Some(Ok(Piece::Data(data))) => {
                if is_chunked {
                    self.out.tail.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
                }
                self.out.put(data);
                if is_chunked {
                    self.out.tail.extend_from_slice(b"\r\n");
                }
            }
            Some(Ok(Piece::Trailers(trailers))) => self.end(Some(&trailers)),
            Some(Err(fault)) => return Err(CutShort::Upstream(fault)),
            None => self.end(None),
        }
        Ok(())
    }

    fn end(&mut self, trailers: Option<&HeaderMap>) {
        self.is_over = true;
        if self.delimiter == Delimiter::Chunked {
            self.out.tail.extend_from_slice(b"0\r\n");
            for (name, value) in trailers.into_iter().flatten().filter(|_| self.with_trailers) {
                self.out.tail.extend_from_slice(name.as_str().as_bytes());
                self.out.tail.extend_from_slice(b": ");
                self.out.tail.extend_from_slice(value.as_bytes());
                self.out.tail.extend_from_slice(b"\r\n");
            }
            self.out.tail.extend_from_slice(b"\r\n");
        }
    }
}
