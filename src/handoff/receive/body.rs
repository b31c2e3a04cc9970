//! A request's body, from wherever it is: a file in memory, what the gateway has read, then the client's socket, never a
//! byte further than its framing says. What was read and belongs to the next request is kept.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::FileExt as _;

use nix::poll::PollFlags;
use serde_json::{Map, Value};

use super::super::client;
use super::chunked::{Chunked, ChunkedError};
use super::error::ClientError;
use super::handoff::Handoff;

/// Chunks are read in pieces of this size. What belongs to the next request is among them and kept.
const PIECE_BYTES: usize = 16 << 10;
/// Of a body that nobody wants, so much is read so that its client can come back.
const DISCARDED_BYTES_MAX: u64 = 64 << 10;

/// How to tell where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is none, or nobody knows.
    None,
    /// So many bytes are still to come.
    Length(u64),
    /// Chunks, from a size line on.
    Chunked,
    /// In a file; so many bytes, where that was said.
    Memfd(Option<u64>),
}

impl Framing {
    /// As the metadata has it.
    pub(super) fn of(metadata: &Map<String, Value>) -> Result<Self, &'static str> {
        let Some(body) = metadata.get("body") else { return Ok(Self::None) };
        let remaining = body.get("remaining").and_then(Value::as_u64);
        match body.get("framing").and_then(Value::as_str) {
            None | Some("none") => Ok(Self::None),
            Some("length") => remaining.map(Self::Length).ok_or("a body of a length that is not said"),
            Some("chunked") => Ok(Self::Chunked),
            Some("memfd") => Ok(Self::Memfd(remaining)),
            Some(_) => Err("a framing of the body that is not known"),
        }
    }
}

/// Everything of a request that is not its head.
#[derive(Debug)]
pub(super) struct Input {
    /// Read from the client, by the gateway or here, and not used.
    preread: Vec<u8>,
    state: State,
    memfd: Option<File>,
    is_begun: bool,
}

#[derive(Debug)]
enum State {
    Length(u64),
    Memfd { at: u64, length: u64 },
    Chunked(Chunked),
}

impl Input {
    /// What a client has of a body that nothing is known of: none.
    pub(super) fn empty() -> Self {
        Self::new(Vec::new(), Framing::None, None)
    }

    pub(super) fn new(preread: Vec<u8>, framing: Framing, memfd: Option<File>) -> Self {
        let state = match framing {
            Framing::None => State::Length(0),
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Chunked(Chunked::default()),
            Framing::Memfd(length) => State::Memfd { at: 0, length: length.unwrap_or(0) },
        };
        Self { preread, state, memfd, is_begun: false }
    }

    /// Takes what stands in front of the body in what the gateway has read.
    pub(super) fn take_head(&mut self, bytes: usize) -> Vec<u8> {
        let behind = self.preread.split_off(bytes.min(self.preread.len()));
        std::mem::replace(&mut self.preread, behind)
    }

    /// Whether some of it is not where it would be read next from the client's socket.
    pub(super) fn is_beside_socket(&self) -> bool {
        !self.preread.is_empty() || matches!(self.state, State::Memfd { .. })
    }

    /// Whether the body was read to its end.
    pub(super) fn is_at_end(&self) -> bool {
        match &self.state {
            State::Length(left) => *left == 0,
            State::Memfd { at, length } => at == length,
            State::Chunked(chunked) => chunked.is_at_end(),
        }
    }

    /// What the next request begins with, when the body was read to its end.
    pub(super) fn take_unread(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.preread)
    }

    /// Whether bytes of the body, or what follows it, can have come from the client's socket and are its own still.
    pub(super) fn is_on_socket(&self) -> bool {
        !self.is_at_end() && !matches!(self.state, State::Memfd { .. })
    }

    /// The body's length, where that is known.
    pub(super) fn length(&self) -> Option<u64> {
        match &self.state {
            State::Length(left) => Some(*left).filter(|left| *left > 0),
            State::Memfd { length, .. } => Some(*length),
            State::Chunked(_) => None,
        }
    }

    fn read(&mut self, client: &impl Source, buffer: &mut [u8]) -> Result<usize, ClientError> {
        if buffer.is_empty() || self.is_at_end() {
            return Ok(0);
        }
        match &mut self.state {
            State::Length(left) => {
                let wanted = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
                let count = if self.preread.is_empty() {
                    match client.receive(&mut buffer[..wanted])? {
                        0 => return Err(ClientError::Cut),
                        count => count,
                    }
                } else {
                    take_front(&mut self.preread, &mut buffer[..wanted])
                };
                *left -= count as u64;
                Ok(count)
            }
            State::Memfd { at, length } => {
                let file = self.memfd.as_ref().ok_or(ClientError::Cut)?;
                let wanted = usize::try_from(*length - *at).unwrap_or(usize::MAX).min(buffer.len());
                let count = file.read_at(&mut buffer[..wanted], *at).map_err(ClientError::Io)?;
                if count == 0 {
                    return Err(ClientError::Cut);
                }
                *at += count as u64;
                Ok(count)
            }
            State::Chunked(chunked) => loop {
                let (used, count) =
                    chunked.decode(&self.preread, buffer).map_err(|ChunkedError| ClientError::Malformed)?;
                self.preread.drain(..used);
                if count > 0 || chunked.is_at_end() {
                    return Ok(count);
                }
                let mut piece = vec![0; PIECE_BYTES];
                match client.receive(&mut piece)? {
                    0 => return Err(ClientError::Cut),
                    count => self.preread.extend_from_slice(&piece[..count]),
                }
            },
        }
    }
}

/// Where the bytes come from that nobody has read yet.
trait Source {
    /// Waits for some; 0 at the end.
    fn receive(&self, buffer: &mut [u8]) -> Result<usize, ClientError>;
}

fn take_front(from: &mut Vec<u8>, to: &mut [u8]) -> usize {
    let count = from.len().min(to.len());
    to[..count].copy_from_slice(&from[..count]);
    from.drain(..count);
    count
}

/// Reads a request's body; see [`Handoff::body`].
#[derive(Debug)]
pub struct Body<'a> {
    handoff: &'a mut Handoff,
}

/// The client's socket, and how long it is waited for.
struct Socket<'a>(&'a Handoff);

impl Source for Socket<'_> {
    fn receive(&self, buffer: &mut [u8]) -> Result<usize, ClientError> {
        let socket: BorrowedFd<'_> = self.0.input_socket()?.as_fd();
        loop {
            match client::receive(socket, buffer) {
                Ok(count) => return Ok(count),
                Err(nix::errno::Errno::EAGAIN) => {
                    self.0.wait_for(PollFlags::POLLIN, self.0.shared().options.body_timeout)?;
                }
                Err(error) => return Err(ClientError::of(error)),
            }
        }
    }
}

impl Handoff {
    /// The request's body, decoded: from the gateway's file in memory, then what the gateway has read, then the client's socket,
    /// as its framing says, and not a byte further. Where the dialect does not tell how the body is framed, it is empty here,
    /// and unread in the [`client`](Self::client)'s socket. Reading takes the client ([`take`](Self::take)), and sends `100 Continue` to one that waits
    /// for it.
    ///
    /// # Errors
    /// Of its reads, by [`ErrorKind`](io::ErrorKind): UnexpectedEof where the body ends too early, InvalidData where its chunks are none,
    /// TimedOut where the client sends nothing for `body_timeout`, ConnectionAborted where the gateway has revoked the client or could not be told that it was taken.
    pub fn body(&mut self) -> Body<'_> {
        Body { handoff: self }
    }

    fn read_body(&mut self, buffer: &mut [u8]) -> Result<usize, ClientError> {
        self.take()?;
        if !std::mem::replace(&mut self.input_mut().is_begun, true) {
            self.invite()?;
        }
        // Both are the handoff's, which cannot be lent as a whole and in part.
        let mut input = std::mem::replace(self.input_mut(), Input::empty());
        let result = input.read(&Socket(self), buffer);
        *self.input_mut() = input;
        result
    }

    /// Tells a client that waits for `100 Continue` to go on, as the first read of the [`body`](Self::body) does: for whoever has it read
    /// by somebody else. One that was told before by the gateway does not mind (RFC 9110 §15.2).
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn invite(&mut self) -> Result<(), ClientError> {
        if self.may_be_waited_for() && !self.has_begun_to_answer() {
            self.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            // That is no answer.
            self.inner_mut().output.bytes = 0;
        }
        Ok(())
    }

    /// Whether the client may keep the body until it is asked for it.
    fn may_be_waited_for(&self) -> bool {
        let waits = self.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue"));
        let is_known_to_it = self.request("version") != Some("1.0");
        waits && is_known_to_it && self.input().is_on_socket() && self.input().preread.is_empty()
    }

    /// Whether what is left of the body is so little, as far as is known, that it can be read and dropped.
    pub(super) fn can_read_to_end(&self) -> bool {
        let input = self.input();
        let is_short = match &input.state {
            State::Length(left) => *left <= DISCARDED_BYTES_MAX,
            State::Chunked(_) | State::Memfd { .. } => true,
        };
        is_short && (input.is_begun || !self.may_be_waited_for())
    }

    /// Reads and drops what is left of the body, unless it is too much; says whether it is at its end.
    pub(super) fn discard_body(&mut self) -> bool {
        let mut discarded = 0;
        let mut buffer = [0; PIECE_BYTES];
        while self.input().is_on_socket() && discarded <= DISCARDED_BYTES_MAX {
            match self.read_body(&mut buffer) {
                Ok(count) => discarded += count as u64,
                Err(_) => return false,
            }
        }
        !self.input().is_on_socket()
    }
}

impl Read for Body<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.handoff.read_body(buffer).map_err(io::Error::from)
    }
}
