//! One connection on which a gateway hands somebody over, until its message is whole and its descriptors are judged.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::socket::{SockType, getsockopt, sockopt};

use super::super::ancillary::{self, Sender};
use super::super::dialect::{Dialect, datagram, fdpass, seqpacket, stream};
use super::super::message::Message;
use super::super::native::frame::FrameError;
use super::options::Allowed;

/// Why a connection was dropped. Every descriptor that came on it is closed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// More than one descriptor.
    #[error("{0} descriptors where one belongs")]
    Descriptors(usize),
    /// A packet of the native protocol that is none. The channel has ended.
    #[error("the channel has ended")]
    Frame(#[source] FrameError),
    /// The kernel's word about the connection.
    #[error("the connection broke")]
    Io(#[source] io::Error),
    /// No descriptor. Closing without a word is also how others ask whether somebody listens here.
    #[error("no descriptor came with the message")]
    NoDescriptor,
    /// The peer runs as a user who may not hand clients over.
    #[error("uid {uid} may not hand over")]
    NotAllowed {
        /// Who it was; `u32::MAX`, which is nobody's, where the kernel did not say.
        uid: u32,
    },
    /// The descriptor is something else than a stream socket.
    #[error("the descriptor is not a stream socket")]
    NotAStream,
    /// Something else than one 0x00 byte in the dialect `fdpass`: whoever sent it speaks another.
    #[error("a message where this dialect has none")]
    NotEmpty,
    /// A gateway broke the native protocol: what it did. The channel has ended.
    #[error("the channel has ended: {0}")]
    Protocol(&'static str),
    /// The message was not whole in time.
    #[error("the message did not arrive in time")]
    TimedOut,
    /// The message or the descriptors beside it are more than there is room for.
    #[error("the message is larger than allowed")]
    TooLarge,
}

/// A connection and what has arrived on it so far.
#[derive(Debug)]
pub(in super::super) struct Incoming {
    pub connection: OwnedFd,
    /// When the message must be whole.
    pub deadline: Instant,
    arrived: Arrived,
}

/// Bytes and descriptor of a message that may not be whole yet.
#[derive(Debug, Default)]
pub(in super::super) struct Arrived {
    bytes: Vec<u8>,
    client: Option<OwnedFd>,
    /// Who sent it, where the kernel was asked to say so.
    sender: Option<Sender>,
}

impl Incoming {
    pub(in super::super) fn new(connection: OwnedFd, deadline: Instant) -> Self {
        Self { connection, deadline, arrived: Arrived::default() }
    }

    /// Reads what is there. The message and the client once they are whole, `None` before.
    pub(in super::super) fn read_on(
        &mut self,
        dialect: Dialect,
        buffer: &mut Buffer,
    ) -> Result<Option<(Message, OwnedFd)>, ReceiveError> {
        let (arrived, connection) = (&mut self.arrived, self.connection.as_fd());
        let is_whole = match dialect {
            Dialect::Auto | Dialect::Baton | Dialect::Fdpass | Dialect::Seqpacket => {
                seqpacket::read_on(arrived, connection, buffer)?
            }
            Dialect::Datagram => datagram::read_on(arrived, connection, buffer)?,
            Dialect::Stream => stream::read_on(arrived, connection, buffer)?,
        };
        is_whole.then(|| std::mem::take(arrived).judge(dialect)).transpose()
    }
}

/// Reads one datagram from a daemon's socket, whose sender must be one who is `allowed`; `None` when none is there.
pub(in super::super) fn read_datagram(
    socket: BorrowedFd<'_>,
    allowed: &Allowed,
    buffer: &mut Buffer,
) -> Result<Option<(Message, OwnedFd)>, ReceiveError> {
    let mut arrived = Arrived::default();
    if !datagram::read_on(&mut arrived, socket, buffer)? {
        return Ok(None);
    }
    let (uid, gid) = arrived.sender.map_or((u32::MAX, u32::MAX), |sender| (sender.uid, sender.gid));
    if !allowed.includes(uid, gid) {
        return Err(ReceiveError::NotAllowed { uid });
    }
    arrived.judge(Dialect::Datagram).map(Some)
}

impl Arrived {
    /// Takes a message that is whole, if it is one.
    fn judge(self, dialect: Dialect) -> Result<(Message, OwnedFd), ReceiveError> {
        let client = self.client.ok_or(ReceiveError::NoDescriptor)?;
        match getsockopt(&client, sockopt::SockType) {
            Ok(SockType::Stream) => {}
            _ => return Err(ReceiveError::NotAStream),
        }
        let message = match dialect {
            Dialect::Fdpass if self.bytes != fdpass::MESSAGE => return Err(ReceiveError::NotEmpty),
            // The bytes are the client's, whatever they are.
            Dialect::Datagram => Message::new(self.bytes),
            _ => Message::decode(self.bytes),
        };
        Ok((message, client))
    }

    /// Receives once and keeps what came; says how much, or `None` when there is nothing at the moment. An end has
    /// neither bytes nor descriptors.
    pub(in super::super) fn receive(
        &mut self,
        connection: BorrowedFd<'_>,
        buffer: &mut Buffer,
    ) -> Result<Option<Step>, ReceiveError> {
        let received = match ancillary::receive(connection, &mut buffer.bytes) {
            Ok(received) => received,
            Err(Errno::EAGAIN) => return Ok(None),
            Err(error) => return Err(ReceiveError::Io(error.into())),
        };
        let step = if received.bytes == 0 && received.descriptors.is_empty() { Step::End } else { Step::Some };
        let count = received.descriptors.len() + usize::from(self.client.is_some());
        if count > 1 {
            return Err(ReceiveError::Descriptors(count));
        }
        if received.is_cut || received.lacks_descriptors || self.bytes.len() + received.bytes > buffer.bytes_max() {
            return Err(ReceiveError::TooLarge);
        }
        self.bytes.extend_from_slice(&buffer.bytes[..received.bytes]);
        self.sender = received.sender;
        self.client = received.descriptors.into_iter().next().or(self.client.take());
        Ok(Some(step))
    }
}

/// What one receive brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Step {
    End,
    Some,
}

/// Where messages are received before it is known how long they are; one for all connections.
#[derive(Debug)]
pub(in super::super) struct Buffer {
    bytes: Vec<u8>,
}

impl Buffer {
    /// A buffer for messages of at most `bytes_max` bytes. Memory is only used as far as messages have filled it.
    pub(in super::super) fn new(bytes_max: usize) -> Self {
        // One byte more, so that a stream that exceeds it is seen to.
        Self { bytes: vec![0; bytes_max + 1] }
    }

    /// Where a packet is received.
    pub(in super::super) fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    fn bytes_max(&self) -> usize {
        self.bytes.len() - 1
    }
}
