//! How a request's head arrives: looked at in the socket, and exactly the head taken.
//!
//! Bytes are taken only when it is known that they belong to the head: either its end was seen, or it was not, and then
//! everything seen so far is head. What follows stays in the kernel's buffer for whoever owns the socket next.

use std::cell::RefCell;
use std::io;
use std::time::Duration;

use tokio::time::Instant;

use crate::access_log::Line;
use crate::client::Client;
use crate::connection::Limits;
use crate::drain::Guard;
use crate::http::head::{self, HeadError, RequestHead};
use crate::http::response::Presence;

/// How long a client that has never sent a byte may still send its first one while the gateway drains: its request may
/// be under way.
const NEWCOMER_GRACE: Duration = Duration::from_millis(250);

/// What came.
#[derive(Debug)]
pub enum Arrival {
    /// What came is answered with an error, and the connection closed.
    Fault(Fault, Presence, Line),
    /// The client left in the middle of a head.
    Gone(Line),
    /// A complete head.
    Head(RequestHead, Line),
    /// Not a byte of a head: the client left, was idle for too long, or the gateway drains.
    Nothing,
}

/// Why a head is answered with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It is no request.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// Its end did not come in time.
    #[error("the head took over {0:?} (head_timeout)")]
    Slow(Duration),
}

impl Fault {
    /// The status that the client is answered with.
    pub fn status(self) -> u16 {
        match self {
            Self::Head(error) => error.status(),
            Self::Slow(_) => 408,
        }
    }
}

/// Which request of its connection is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The first.
    First,
    /// A later one.
    Later,
}

/// Waits for a request's head. The deadline is one for the whole head, from its first byte on: a byte a second runs out.
/// `begin` makes the log line when the first byte is there.
///
/// # Cancel safety
/// Dropping it loses what was taken of an unfinished head: close the client.
pub async fn next(
    client: &mut Client,
    turn: Turn,
    limits: &Limits,
    guard: &mut Guard,
    begin: impl FnOnce() -> Line,
) -> Arrival {
    let mut partial = Partial::default();
    let first = loop {
        match partial.look(client, limits.head) {
            Seen::Nothing => {}
            Seen::End => return Arrival::Nothing,
            seen => break seen,
        }
        let idle = async {
            match tokio::time::timeout(limits.keep_alive_timeout, client.readable()).await {
                Ok(Ok(())) => More::Perhaps,
                // Out of time, or the reactor cannot take it: trying again would be trying for ever.
                _ => More::No,
            }
        };
        let drained = async {
            guard.draining().await;
            if turn == Turn::First {
                tokio::time::sleep(NEWCOMER_GRACE).await;
            }
        };
        // The client first: a request that has come is served, whatever else happens at the same time.
        let more = tokio::select! {
            biased;
            more = idle => more,
            () = drained => More::No,
        };
        if more == More::No {
            // It may have come in the very last moment.
            match partial.look(client, limits.head) {
                Seen::Nothing | Seen::End => return Arrival::Nothing,
                seen => break seen,
            }
        }
    };

    let line = begin();
    // Most heads are whole at the first look, and need no clock.
    let mut deadline = None;
    let mut seen = first;
    loop {
        match seen {
            Seen::Head(head) => return Arrival::Head(head, line),
            Seen::Fault(error) => return Arrival::Fault(error.into(), partial.presence, line),
            // An empty line alone was no request.
            Seen::End if partial.bytes.is_empty() => {
                line.forget();
                return Arrival::Nothing;
            }
            Seen::End => return Arrival::Gone(line),
            Seen::Nothing | Seen::Part => {}
        }
        let deadline = *deadline.get_or_insert_with(|| Instant::now() + limits.head_timeout);
        match tokio::time::timeout_at(deadline, client.readable()).await {
            Ok(Ok(())) => seen = partial.look(client, limits.head),
            Ok(Err(_)) => return Arrival::Gone(line),
            Err(_) => return Arrival::Fault(Fault::Slow(limits.head_timeout), Presence::asked(&partial.bytes), line),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum More {
    No,
    Perhaps,
}

/// What a look at the socket showed.
enum Seen {
    /// The client has closed, or its socket failed.
    End,
    Fault(HeadError),
    Head(RequestHead),
    Nothing,
    /// More of a head, without its end.
    Part,
}

/// A head as far as it has come.
#[derive(Default)]
struct Partial {
    bytes: Vec<u8>,
    empty_line: EmptyLine,
    /// What a head at fault asked for.
    presence: Presence,
}

/// How much of an empty line stood before the head: one is allowed (RFC 9112 §2.2).
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum EmptyLine {
    #[default]
    None,
    /// Its carriage return. Taken, like everything that was seen: what stays in the socket of a client that has closed
    /// would be seen for ever.
    Half,
    Whole,
}

thread_local! {
    /// Where heads are looked at: one buffer for all of a worker's clients, because none keeps bytes here between looks.
    static LOOKED_AT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Partial {
    fn look(&mut self, client: &Client, limits: head::Limits) -> Seen {
        LOOKED_AT.with_borrow_mut(|buffer| {
            if buffer.len() < limits.head_bytes_max {
                buffer.resize(limits.head_bytes_max, 0);
            }
            loop {
                // Never empty: with `head_bytes_max` bytes and no end, the head was a fault.
                let room = &mut buffer[..limits.head_bytes_max - self.bytes.len()];
                let count = match client.peek(room) {
                    Ok(0) => return Seen::End,
                    Ok(count) => count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        let began = !self.bytes.is_empty() || self.empty_line != EmptyLine::None;
                        return if began { Seen::Part } else { Seen::Nothing };
                    }
                    Err(_) => return Seen::End,
                };
                match self.take(client, &mut room[..count], limits) {
                    Ok(Some(seen)) => return seen,
                    Ok(None) => {}
                    Err(_) => return Seen::End,
                }
            }
        })
    }

    /// Takes from the socket what of the peeked bytes is head; `None`: look again.
    fn take(&mut self, client: &Client, peeked: &mut [u8], limits: head::Limits) -> io::Result<Option<Seen>> {
        let before = self.bytes.len();
        let expected = match self.empty_line {
            EmptyLine::None => Some((b'\r', EmptyLine::Half)).filter(|_| before == 0 && peeked[0] == b'\r'),
            EmptyLine::Half => Some((b'\n', EmptyLine::Whole)),
            EmptyLine::Whole => None,
        };
        if let Some((byte, then)) = expected {
            if peeked[0] != byte {
                return Ok(Some(Seen::Fault(HeadError::BareLineBreak)));
            }
            client.take(&mut peeked[..1])?;
            self.empty_line = then;
            return Ok(None);
        }
        // Most heads come whole, and are read where they were looked at.
        let end = if before == 0 {
            head::end(peeked, 0, limits)
        } else {
            self.bytes.extend_from_slice(peeked);
            head::end(&self.bytes, before, limits)
        };
        let length = match end {
            Ok(Some(length)) => length,
            Ok(None) => {
                client.take(peeked)?;
                if before == 0 {
                    self.bytes.extend_from_slice(peeked);
                }
                return Ok(Some(Seen::Part));
            }
            Err(error) => {
                self.presence = Presence::asked(if before == 0 { peeked } else { &self.bytes });
                return Ok(Some(Seen::Fault(error)));
            }
        };
        client.take(&mut peeked[..length - before])?;
        let whole = if before == 0 { &peeked[..length] } else { &self.bytes[..length] };
        Ok(Some(match RequestHead::parse(whole, limits) {
            Ok(head) => Seen::Head(head),
            Err(error) => {
                self.presence = Presence::asked(whole);
                Seen::Fault(error)
            }
        }))
    }
}
