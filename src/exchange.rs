//! One request's exchange with its client: what is left of the body, and how the answer is written.
//!
//! The body stays in the kernel's buffer unless somebody reads it. A policy that wants its beginning is shown it and
//! takes nothing; a body that nobody wanted is drained behind a short answer, or the connection is closed.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::client::Client;
use crate::connection::Limits;
use crate::drain::Guard;
use crate::http::body::{Decoder, Framing};
use crate::http::head::{Expectation, Persistence, RequestHead, Version};
use crate::http::response::{self, Answer, CONTINUE, Context, Presence};

/// A body that nobody wanted is read behind the answer up to this length, or the connection is closed: a client that has
/// more to send would rather be told.
const DRAIN_BYTES_MAX: u64 = 256 << 10;
/// What can be shown of a body: a receive buffer holds it at the system's default sizes, however small its segments.
pub const PREFIX_BYTES_MAX: usize = 32 << 10;
/// A body's minimum rate is asked for after this time.
const RATE_GRACE: Duration = Duration::from_secs(10);
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
}

/// What is left after an answer.
#[derive(Debug)]
pub struct After {
    /// The client, where the connection goes on.
    pub client: Option<Client>,
    /// Written to the client in this exchange.
    pub bytes_out: u64,
    /// Read of the body.
    pub body_bytes: u64,
    /// Why the answer did not reach the client whole.
    pub error: Option<io::Error>,
}

/// Why a body's beginning cannot be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// The client closed before it was there.
    #[error("the client closed")]
    Closed,
    /// The body breaks its framing.
    #[error("malformed chunks")]
    Malformed,
    /// It is longer than what can be shown, and more was asked for.
    #[error("over {PREFIX_BYTES_MAX} bytes")]
    TooLarge,
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
        };
        Self { client, state }
    }

    /// The exchange of what was no request: it is answered, and the connection closed.
    pub fn of_fault(client: Client) -> Self {
        let state = State {
            version: Version::Http11,
            presence: Presence::Whole,
            persistence: Persistence::Close,
            // Whatever follows is not understood; it is read so that the answer arrives, and thrown away.
            framing: Framing::Length(u64::MAX),
            expectation: Expectation::None,
            written: 0,
            read: 0,
        };
        Self { client, state }
    }

    /// Gives the client's socket up, to hand it over.
    pub fn release(self) -> (OwnedFd, State) {
        (self.client.into_socket(), self.state)
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
        if framing == Framing::None {
            return Ok(Vec::new());
        }
        let pace = Pace::new(limits);
        if self.state.expectation == Expectation::Continue {
            self.client.write_all(CONTINUE, limits.body_timeout).await.map_err(|_| PrefixError::Closed)?;
            self.state.expectation = Expectation::None;
            self.state.written += CONTINUE.len() as u64;
        }
        // Chunk lines and trailers take room of their own.
        let mut buffer = vec![0; if framing == Framing::Chunked { 2 * PREFIX_BYTES_MAX } else { PREFIX_BYTES_MAX }];
        let want = max.min(PREFIX_BYTES_MAX);
        loop {
            // Asked first: if the client had closed by then, the look after it shows all that will ever come.
            let closed = self.client.has_half_closed();
            let arrived = match self.client.peek(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                result => result.map_err(|_| PrefixError::Closed)?,
            };
            let (data, end) = decode(framing, &buffer[..arrived]).map_err(|_| PrefixError::Malformed)?;
            match end {
                _ if data.len() >= want && max <= PREFIX_BYTES_MAX => return Ok(data[..want].to_vec()),
                End::Seen => return Ok(data),
                End::Ahead if data.len() >= want || arrived == buffer.len() => return Err(PrefixError::TooLarge),
                End::Ahead if closed => return Err(PrefixError::Closed),
                End::Ahead => {}
            }
            match tokio::time::timeout_at(pace.deadline(arrived as u64), self.client.readable()).await {
                Ok(result) => result.map_err(|_| PrefixError::Closed)?,
                Err(_) => return Err(PrefixError::TimedOut),
            }
        }
    }

    /// Writes the answer; then the body that nobody wanted is drained, or the connection closed in a way that lets the
    /// answer arrive.
    ///
    /// # Cancel safety
    /// Dropping it closes the client.
    pub async fn answer(mut self, answer: &Answer, limits: &Limits, guard: &mut Guard) -> After {
        let drain = self.drain_plan(limits);
        let persistence = match drain {
            Drain::Close => Persistence::Close,
            _ if guard.is_draining() => Persistence::Close,
            Drain::Behind | Drain::Nothing => self.state.persistence,
        };
        let context = Context { version: self.state.version, body: self.state.presence, persistence };
        let bytes = with_date(|date| response::encode(answer, context, date));
        let sent = self.client.write_all(&bytes, limits.body_timeout).await;
        if let Err((count, error)) = sent {
            self.state.written += count as u64;
            return self.after(None, Some(error));
        }
        self.state.written += bytes.len() as u64;
        if persistence == Persistence::KeepAlive {
            if drain == Drain::Behind && Box::pin(self.drain(limits)).await.is_err() {
                return self.after(None, None);
            }
            let Self { client, state } = self;
            return state.after(Some(client), None);
        }
        let Self { client, state } = self;
        if state.framing != Framing::None || client.peek(&mut [0]).is_ok_and(|count| count > 0) {
            let stop = async {
                guard.draining().await;
                tokio::time::sleep(LINGER_DRAINING).await;
            };
            // Rare, and large beside the rest of the task: so it gets memory of its own.
            Box::pin(client.linger(LINGER.1, LINGER.0, stop)).await;
        }
        state.after(None, None)
    }

    fn after(self, client: Option<Client>, error: Option<io::Error>) -> After {
        self.state.after(client, error)
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
            Framing::Chunked => self.drain_arrived(),
        }
    }

    fn drain_arrived(&mut self) -> Drain {
        let mut buffer = vec![0; 2 * PREFIX_BYTES_MAX];
        let arrived = self.client.peek(&mut buffer).unwrap_or(0);
        let mut decoder = Decoder::new(self.state.framing);
        let mut at = 0;
        while at < arrived && !decoder.is_at_end() {
            match decoder.step(&buffer[at..arrived]) {
                Ok(step) => at += step.consumed,
                Err(_) => return Drain::Close,
            }
        }
        if decoder.is_at_end() && self.client.take(&mut buffer[..at]).is_ok() {
            self.state.read += at as u64;
            self.state.framing = Framing::None;
            Drain::Nothing
        } else {
            Drain::Close
        }
    }

    /// Reads a body with a length to its end.
    async fn drain(&mut self, limits: &Limits) -> io::Result<()> {
        let pace = Pace::new(limits);
        while let Framing::Length(left) = self.state.framing {
            match self.drain_some(left) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tokio::time::timeout_at(pace.deadline(self.state.read), self.client.readable()).await??;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
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

impl State {
    /// Takes the client back that no daemon took.
    pub fn resume(self, socket: OwnedFd) -> Exchange {
        Exchange { client: Client::new(socket), state: self }
    }

    /// Returns the answer's bytes for a client that is closed with it.
    pub fn encode_last(&self, answer: &Answer) -> Vec<u8> {
        let context = Context { version: self.version, body: self.presence, persistence: Persistence::Close };
        with_date(|date| response::encode(answer, context, date))
    }

    fn after(self, client: Option<Client>, error: Option<io::Error>) -> After {
        After { client, bytes_out: self.written, body_bytes: self.read, error }
    }
}

/// What happens to a body that nobody wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drain {
    Behind,
    Close,
    Nothing,
}

#[derive(Clone, Copy)]
enum End {
    Ahead,
    Seen,
}

fn decode(framing: Framing, bytes: &[u8]) -> Result<(Vec<u8>, End), crate::http::body::BodyError> {
    let (mut decoder, mut data, mut at) = (Decoder::new(framing), Vec::new(), 0);
    while at < bytes.len() && !decoder.is_at_end() {
        let step = decoder.step(&bytes[at..])?;
        data.extend_from_slice(&bytes[at..][step.data]);
        at += step.consumed;
    }
    Ok((data, if decoder.is_at_end() { End::Seen } else { End::Ahead }))
}

/// When a body is too slow: nothing for `body_timeout`, or less than `body_rate_min` a second after its first seconds.
struct Pace {
    began: Instant,
    stall: Duration,
    rate: u64,
}

impl Pace {
    fn new(limits: &Limits) -> Self {
        Self { began: Instant::now(), stall: limits.body_timeout, rate: limits.body_rate_min }
    }

    fn deadline(&self, received: u64) -> Instant {
        let stall = Instant::now() + self.stall;
        match received.checked_div(self.rate) {
            Some(seconds) => stall.min(self.began + RATE_GRACE + Duration::from_secs(seconds.min(u64::from(u32::MAX)))),
            None => stall,
        }
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
