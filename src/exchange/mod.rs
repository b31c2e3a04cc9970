//! One request's exchange with its client: what is left of the body, and how the answer is written.
//!
//! The body stays in the kernel's buffer unless somebody reads it. A policy that wants its beginning is shown it and
//! takes nothing; a body that nobody wanted is drained behind a short answer, or the connection is closed.

mod asking;
mod relay;
mod upload;

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime};

pub use self::asking::{Asking, Interrupted};
pub use self::relay::{CutShort, Head, Relayed};
use self::upload::Upload;
pub use self::upload::UploadError;
use crate::client::Client;
use crate::connection::Limits;
use crate::drain::Guard;
use crate::http::body::{BodyError, Decoder, Framing};
use crate::http::head::{Expectation, Persistence, RequestHead, Version};
use crate::http::response::{self, Answer, CONTINUE, Context, Presence};
use crate::pace::Pace;

/// A body that nobody wanted is read behind the answer up to this length, or the connection is closed: a client that has
/// more to send would rather be told.
const DRAIN_BYTES_MAX: u64 = 256 << 10;
/// What can be shown of a body: a TCP receive buffer holds it at the system's default sizes, however small its segments. A
/// Unix socket counts each write as a few hundred bytes, and its client stops when that has filled its buffer: what is
/// asked for of a body that is written there byte by byte may never be there, which is [`PrefixError::TimedOut`].
pub const PREFIX_BYTES_MAX: usize = 32 << 10;
/// How long a closed connection is read for its client to see the answer; in all, and without a byte.
const LINGER: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(5));
/// The same while the gateway drains.
const LINGER_DRAINING: Duration = Duration::from_secs(1);

/// A client in the middle of a request.
#[derive(Debug)]
pub struct Exchange {
    client: Client,
    state: State,
}

/// What is known of the exchange without the client's socket, while a daemon may be taking it.
#[derive(Debug)]
pub struct State {
    version: Version,
    presence: Presence,
    persistence: Persistence,
    framing: Framing,
    expectation: Expectation,
    written: u64,
    read: u64,
    /// The body while it is on its way to an upstream.
    upload: Option<Box<Upload>>,
    /// Read of the connection before the client came back from a daemon, and not taken yet.
    preread: Vec<u8>,
}

/// An answer that was written, or was to be.
#[derive(Debug)]
pub struct Answered {
    /// Written to the client in this exchange.
    pub bytes_out: u64,
    /// Read of the body so far.
    pub body_bytes: u64,
    /// Why the answer did not reach the client whole.
    pub error: Option<io::Error>,
    /// What is left to do.
    pub then: Then,
}

/// What is left to do when an answer was written.
#[derive(Debug)]
pub enum Then {
    /// Nothing: the client is gone, or has all that it can get.
    Close,
    /// The connection goes on.
    Continue(Client),
    /// The connection goes on behind the body that nobody wanted.
    Drain(Exchange),
    /// The connection ends, in a way that lets the answer arrive.
    Linger(Closing),
}

/// A client whose connection is ending.
#[derive(Debug)]
pub struct Closing(Client);

/// Why a body's beginning cannot be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// The client closed before it was there.
    #[error("the client closed")]
    Closed,
    /// The body breaks its framing.
    #[error("malformed chunks")]
    Malformed,
    /// It is longer than what can be shown, or than `body_bytes_max`, and more was asked for.
    #[error("over {0} bytes")]
    TooLarge(usize),
    /// It came too slowly.
    #[error("too slow")]
    TimedOut,
}

impl Exchange {
    /// Begins the exchange of a request whose head was taken.
    pub fn new(client: Client, head: &RequestHead) -> Self {
        let presence = if head.method() == "HEAD" { Presence::HeadOnly } else { Presence::Whole };
        let state = State {
            version: head.version(),
            presence,
            persistence: head.persistence(),
            framing: head.framing(),
            expectation: head.expectation(),
            written: 0,
            read: 0,
            upload: None,
            preread: Vec::new(),
        };
        Self { client, state }
    }

    /// The exchange of what was no request: it is answered, and the connection closed.
    pub fn of_fault(client: Client, presence: Presence) -> Self {
        let state = State {
            version: Version::Http11,
            presence,
            persistence: Persistence::Close,
            // Whatever follows is not understood; it is read so that the answer arrives, and thrown away.
            framing: Framing::Length(u64::MAX),
            expectation: Expectation::None,
            written: 0,
            read: 0,
            upload: None,
            preread: Vec::new(),
        };
        Self { client, state }
    }

    /// Whether nothing of the body is to be read any more: there was none, or somebody has had it.
    pub fn has_no_body_left(&self) -> bool {
        self.state.framing == Framing::None && self.state.upload.is_none()
    }

    /// Ends the exchange with an answer that is somebody else's to write.
    pub fn into_client(mut self) -> Client {
        self.settle_upload();
        self.client
    }

    /// Gives the client's socket up, to hand it over.
    pub fn release(mut self) -> (OwnedFd, State) {
        self.settle_upload();
        let (socket, preread) = self.client.into_parts();
        self.state.preread = preread;
        (socket, self.state)
    }

    /// Shows up to `max` bytes of the body, decoded, and leaves them in the socket. Fewer where the body is shorter.
    ///
    /// # Errors
    /// [`PrefixError`]; the exchange goes on in each case.
    ///
    /// # Cancel safety
    /// Dropping it takes nothing from the socket.
    pub async fn body_prefix(&mut self, max: usize, limits: &Limits) -> Result<Vec<u8>, PrefixError> {
        let framing = self.state.framing;
        if framing == Framing::None || max == 0 {
            return Ok(Vec::new());
        }
        let shown_max = PREFIX_BYTES_MAX.min(usize::try_from(limits.body_bytes_max).unwrap_or(usize::MAX));
        if max > shown_max && matches!(framing, Framing::Length(length) if length > shown_max as u64) {
            // Known from the head: a client that waits need not send it.
            return Err(PrefixError::TooLarge(shown_max));
        }
        let pace = Pace::new(limits);
        if self.state.expectation == Expectation::Continue {
            self.client.write_all(CONTINUE, &pace).await.map_err(|_| PrefixError::Closed)?;
            self.state.expectation = Expectation::None;
            self.state.written += CONTINUE.len() as u64;
        }
        // Chunk lines and trailers take room of their own.
        let mut buffer = vec![0; if framing == Framing::Chunked { 2 * PREFIX_BYTES_MAX } else { PREFIX_BYTES_MAX }];
        let want = max.min(shown_max);
        let mut seen = Seen::new(framing);
        loop {
            // Asked first: if the client had closed by then, the look after it shows all that will ever come.
            let closed = self.client.has_half_closed();
            let arrived = match self.client.peek(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                result => result.map_err(|_| PrefixError::Closed)?,
            };
            seen.read_on(&buffer[..arrived]).map_err(|_| PrefixError::Malformed)?;
            let count = seen.data.len();
            if max <= shown_max && count >= want || count <= shown_max && seen.decoder.is_at_end() {
                seen.data.truncate(want);
                return Ok(seen.data);
            } else if count > shown_max || arrived == buffer.len() {
                return Err(PrefixError::TooLarge(shown_max));
            } else if closed {
                return Err(PrefixError::Closed);
            }
            match tokio::time::timeout_at(pace.deadline(arrived as u64), self.client.readable()).await {
                Ok(result) => result.map_err(|_| PrefixError::Closed)?,
                Err(_) => return Err(PrefixError::TimedOut),
            }
        }
    }

    /// Writes the answer, and says what is left to do.
    ///
    /// # Cancel safety
    /// Dropping it closes the client.
    pub async fn answer(mut self, answer: &Answer, limits: &Limits, guard: &Guard) -> Answered {
        self.settle_upload();
        let drain = self.drain_plan(limits);
        let persistence = match drain {
            Drain::Close => Persistence::Close,
            _ if guard.is_draining() => Persistence::Close,
            Drain::Behind | Drain::Nothing => self.state.persistence,
        };
        let context = Context { version: self.state.version, body: self.state.presence, persistence };
        let bytes = with_date(|date| response::encode(answer, context, date));
        let sent = self.client.write_all(&bytes, &Pace::new(limits)).await;
        self.state.written += sent.as_ref().map_or_else(|(count, _)| *count, |()| bytes.len()) as u64;
        let (bytes_out, body_bytes) = (self.state.written, self.state.read);
        let then = match (&sent, persistence, drain) {
            (Err(_), ..) => Then::Close,
            (Ok(()), Persistence::KeepAlive, Drain::Behind) => Then::Drain(self),
            (Ok(()), Persistence::KeepAlive, _) => Then::Continue(self.client),
            // Something is there, or may be on its way: a close would answer it with a reset, which could overtake us.
            (Ok(()), Persistence::Close, _) if self.may_send_more() => Then::Linger(Closing(self.client)),
            (Ok(()), Persistence::Close, _) => Then::Close,
        };
        Answered { bytes_out, body_bytes, error: sent.err().map(|(_, error)| error), then }
    }

    fn may_send_more(&self) -> bool {
        self.state.framing != Framing::None
            || self.state.persistence == Persistence::KeepAlive
            || self.client.peek(&mut [0]).is_ok_and(|count| count > 0)
    }

    fn drain_plan(&mut self, limits: &Limits) -> Drain {
        let max = DRAIN_BYTES_MAX.min(limits.body_bytes_max);
        match self.state.framing {
            Framing::None => Drain::Nothing,
            // The client waits for our word and may never send it.
            _ if self.state.expectation == Expectation::Continue => Drain::Close,
            Framing::Length(length) if length <= max => Drain::Behind,
            Framing::Length(_) => Drain::Close,
            // Its length is known only when it is all there.
            Framing::Chunked => self.drain_arrived(limits),
        }
    }

    fn drain_arrived(&mut self, limits: &Limits) -> Drain {
        let mut buffer = vec![0; 2 * PREFIX_BYTES_MAX];
        let arrived = self.client.peek(&mut buffer).unwrap_or(0);
        let mut seen = Seen::new(self.state.framing);
        let is_whole = seen.read_on(&buffer[..arrived]).is_ok() && seen.decoder.is_at_end();
        if is_whole
            && seen.data.len() as u64 <= limits.body_bytes_max
            && self.client.take(&mut buffer[..seen.at]).is_ok()
        {
            self.state.read += seen.at as u64;
            self.state.framing = Framing::None;
            Drain::Nothing
        } else {
            Drain::Close
        }
    }

    /// Reads a body with a length to its end. Returns how much was read of it, and the client if the connection goes on.
    ///
    /// # Cancel safety
    /// Dropping it closes the client.
    pub async fn drain(mut self, limits: &Limits) -> (u64, Option<Client>) {
        let pace = Pace::new(limits);
        while let Framing::Length(left) = self.state.framing {
            let moved = match self.drain_some(left) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let more = tokio::time::timeout_at(pace.deadline(self.state.read), self.client.readable()).await;
                    more.unwrap_or_else(|late| Err(late.into()))
                }
                result => result,
            };
            if moved.is_err() {
                return (self.state.read, None);
            }
        }
        (self.state.read, Some(self.client))
    }

    /// Takes what has arrived of the `left` bytes of a body. The buffer is on the stack of this call, not in the task.
    fn drain_some(&mut self, left: u64) -> io::Result<()> {
        let mut buffer = [0; 8 << 10];
        let room = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = self.client.peek(&mut buffer[..room])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.client.take(&mut buffer[..count])?;
        self.state.read += count as u64;
        self.state.framing = match left - count as u64 {
            0 => Framing::None,
            left => Framing::Length(left),
        };
        Ok(())
    }
}

impl Closing {
    /// Reads away what the client still sends until it closes, so that nothing it sent resets the connection before it has
    /// read its answer; not for ever, and shorter when the gateway drains.
    ///
    /// # Cancel safety
    /// Dropping it closes the client.
    pub async fn linger(self, guard: &mut Guard) {
        let stop = async {
            guard.draining().await;
            tokio::time::sleep(LINGER_DRAINING).await;
        };
        self.0.linger(LINGER.1, LINGER.0, stop).await;
    }
}

impl State {
    /// Takes the client back that no daemon took.
    pub fn resume(self, socket: OwnedFd) -> Exchange {
        let mut state = self;
        let preread = std::mem::take(&mut state.preread);
        Exchange { client: Client::with_preread(socket, preread), state }
    }

    /// What was read of the connection behind the head and not taken.
    pub fn preread(&self) -> &[u8] {
        &self.preread
    }

    /// Read of the request's body so far.
    pub fn body_bytes(&self) -> u64 {
        self.read
    }

    /// Returns the answer's bytes for a client that is closed with it.
    pub fn encode_last(&self, answer: &Answer) -> Vec<u8> {
        let context = Context { version: self.version, body: self.presence, persistence: Persistence::Close };
        with_date(|date| response::encode(answer, context, date))
    }
}

/// What happens to a body that nobody wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drain {
    Behind,
    Close,
    Nothing,
}

/// A body as far as it was looked at. Each look shows it from its beginning; what was read of it before is not read again,
/// or a body that comes byte by byte would cost its length squared.
struct Seen {
    decoder: Decoder,
    data: Vec<u8>,
    at: usize,
}

impl Seen {
    fn new(framing: Framing) -> Self {
        Self { decoder: Decoder::new(framing), data: Vec::new(), at: 0 }
    }

    fn read_on(&mut self, bytes: &[u8]) -> Result<(), BodyError> {
        while self.at < bytes.len() && !self.decoder.is_at_end() {
            let step = self.decoder.step(&bytes[self.at..])?;
            self.data.extend_from_slice(&bytes[self.at..][step.data]);
            self.at += step.consumed;
        }
        Ok(())
    }
}

/// Calls `use_date` with the current IMF-fixdate, which is made once a second on each thread.
fn with_date<T>(use_date: impl FnOnce(&str) -> T) -> T {
    thread_local! {
        static DATE: std::cell::RefCell<(u64, String)> = const { std::cell::RefCell::new((0, String::new())) };
    }
    let now = SystemTime::now();
    let second = now.duration_since(SystemTime::UNIX_EPOCH).map_or(1, |since| since.as_secs());
    DATE.with_borrow_mut(|(made, text)| {
        if *made != second {
            (*made, *text) = (second, httpdate::fmt_http_date(now));
        }
        use_date(text)
    })
}
