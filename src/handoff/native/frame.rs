//! What the frames of `baton/1` say. Pure: bytes to values and back; descriptors are counted here and held elsewhere.
//!
//! A receiver is strict about what decides over a client (sections, ids, which descriptors belong to a packet) and
//! lenient about what only tells (a member of an object that it does not know).

use std::fmt;

use serde_json::{Map, Value, json};

use super::header::{FLAG_OPTIONAL, HEADER_BYTES, Header, HeaderError, PACKET_BYTES_MAX};
use super::sections::{self, SectionError};
pub use super::words::{Hello, Load, Outcome, Reason, Refusal, Report};
use super::words::{bytes, cut, object, text, wrong};

/// A frame that was understood.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// The first one on a channel, from each side.
    Hello(Hello),
    /// A client is lent.
    Handoff {
        /// Unique on this channel, never 0.
        id: u64,
        /// The message.
        handoff: Handoff,
    },
    /// The client is the daemon's.
    Taken {
        /// Which.
        id: u64,
    },
    /// The client is the gateway's again; the daemon has closed its copy and written nothing.
    Refused {
        /// Which.
        id: u64,
        /// Why.
        refusal: Refusal,
    },
    /// The client was answered, and is closed.
    Done {
        /// Which.
        id: u64,
        /// How it went.
        report: Report,
    },
    /// The client was answered, and comes back for its next request.
    Return {
        /// Which.
        id: u64,
        /// How it went.
        report: Report,
        /// What the daemon read and did not use; it comes before what is in the socket.
        unread: Vec<u8>,
    },
    /// How busy the daemon is; whenever it likes.
    Load(Load),
    /// No new clients; those in flight finish.
    Draining,
    /// Please end this one.
    Revoke {
        /// Which.
        id: u64,
        /// Why, for people.
        reason: String,
    },
    /// To be answered with the same bytes.
    Ping(Vec<u8>),
    /// The answer.
    Pong(Vec<u8>),
    /// A type that is not known, and need not be.
    Ignored(u8),
}

/// What goes with a client. Its `Debug` form shows lengths: the data may hold secrets.
#[derive(Clone, PartialEq)]
pub struct Handoff {
    /// About request, client and body.
    pub metadata: Map<String, Value>,
    /// The policy's or the application's; empty where it is in a memfd.
    pub data: Vec<u8>,
    /// Read from the client before; empty where it is in a memfd.
    pub preread: Vec<u8>,
    /// What is in memfds, which come behind the client in this order.
    pub memfds: Memfds,
}

/// What of a handoff is in memfds: body, data, preread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memfds {
    /// The request's body.
    pub body: bool,
    /// The data.
    pub data: bool,
    /// What was read from the client before.
    pub preread: bool,
}

/// Why a frame is not understood; the channel ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// It is none of this protocol.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// An id where none belongs, or none where one does.
    #[error("{0} with id {1}")]
    Id(&'static str, u64),
    /// Its JSON is none, or lacks what it must have.
    #[error("{kind}: {what}")]
    Json {
        /// The frame.
        kind: &'static str,
        /// What is wrong.
        what: String,
    },
    /// Bytes where none belong.
    #[error("{0} with a payload")]
    Payload(&'static str),
    /// Its payload is not made of sections.
    #[error("{0}: {1}")]
    Sections(&'static str, #[source] SectionError),
    /// A type that is not known, and has to be.
    #[error("type {0}")]
    Type(u8),
}

impl Memfds {
    const BODY: u8 = 0x01;
    const DATA: u8 = 0x02;
    const PREREAD: u8 = 0x04;

    /// How many descriptors come behind the client.
    pub fn count(self) -> usize {
        usize::from(self.body) + usize::from(self.data) + usize::from(self.preread)
    }

    /// The flags of its frame.
    pub fn flags(self) -> u8 {
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        flag(self.body, Self::BODY) | flag(self.data, Self::DATA) | flag(self.preread, Self::PREREAD)
    }

    fn of(flags: u8) -> Self {
        let is_set = |flag| flags & flag != 0;
        Self { body: is_set(Self::BODY), data: is_set(Self::DATA), preread: is_set(Self::PREREAD) }
    }
}

impl fmt::Debug for Handoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { data, preread, memfds, .. } = self;
        let mut out = f.debug_struct("Handoff");
        out.field("data_bytes", &data.len()).field("preread_bytes", &preread.len()).field("memfds", memfds);
        out.finish_non_exhaustive()
    }
}

impl Frame {
    /// Reads a packet that holds one frame and nothing else.
    ///
    /// # Errors
    /// [`FrameError`]: nothing behind it on this channel can be trusted.
    pub fn decode(packet: &[u8]) -> Result<Self, FrameError> {
        let (frame, rest) = Self::split(packet)?;
        if rest.is_empty() { Ok(frame) } else { Err(HeaderError::Behind(rest.len()).into()) }
    }

    /// Reads the first frame of a packet, and returns what stands behind it: nothing, or further frames.
    ///
    /// # Errors
    /// [`FrameError`]: nothing behind it on this channel can be trusted.
    pub fn split(packet: &[u8]) -> Result<(Self, &[u8]), FrameError> {
        let (header, payload, rest) = Header::split(packet)?;
        Ok((Self::read(header, payload)?, rest))
    }

    fn read(header: Header, payload: &[u8]) -> Result<Self, FrameError> {
        let Header { kind, flags, id } = header;
        let name = name(kind);
        let about_one = |is_about_one: bool| match (is_about_one, id) {
            (true, 0) | (false, 1..) => Err(FrameError::Id(name, id)),
            _ => Ok(id),
        };
        let empty = || if payload.is_empty() { Ok(()) } else { Err(FrameError::Payload(name)) };
        Ok(match kind {
            1 => {
                about_one(false)?;
                Self::Hello(Hello::read(&object(name, payload)?)?)
            }
            2 => {
                let id = about_one(true)?;
                let [metadata, data, preread] =
                    sections::read(payload).map_err(|error| FrameError::Sections(name, error))?;
                let metadata = object(name, metadata)?;
                let (data, preread) = (data.to_vec(), preread.to_vec());
                let memfds = Memfds::of(flags);
                if memfds.data && !data.is_empty() || memfds.preread && !preread.is_empty() {
                    return Err(wrong(name, "what is in a memfd is in the packet too"));
                }
                Self::Handoff { id, handoff: Handoff { metadata, data, preread, memfds } }
            }
            3 => {
                empty()?;
                Self::Taken { id: about_one(true)? }
            }
            4 => Self::Refused { id: about_one(true)?, refusal: Refusal::read(&object(name, payload)?)? },
            5 => Self::Done { id: about_one(true)?, report: Report::read(name, &object(name, payload)?)? },
            6 => {
                let id = about_one(true)?;
                let [report, unread] = sections::read(payload).map_err(|error| FrameError::Sections(name, error))?;
                let report = Report::read(name, &object(name, report)?)?;
                Self::Return { id, report, unread: unread.to_vec() }
            }
            7 => {
                about_one(false)?;
                Self::Load(Load::read(&object(name, payload)?)?)
            }
            8 => {
                about_one(false)?;
                empty()?;
                Self::Draining
            }
            9 => {
                let object = object(name, payload)?;
                Self::Revoke { id: about_one(true)?, reason: text(&object, "reason").unwrap_or_default() }
            }
            10 => Self::Ping(payload.to_vec()),
            11 => Self::Pong(payload.to_vec()),
            kind if flags & FLAG_OPTIONAL != 0 => Self::Ignored(kind),
            kind => return Err(FrameError::Type(kind)),
        })
    }

    /// Writes it.
    ///
    /// # Panics
    /// It is longer than [`PACKET_BYTES_MAX`]: [`Handoff::fits`] says whether a handoff is, and a ping is its sender's.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, flags, id, payload) = match self {
            Self::Hello(hello) => (1, 0, 0, hello.write()),
            Self::Handoff { id, handoff } => (2, handoff.memfds.flags(), *id, handoff.write()),
            Self::Taken { id } => (3, 0, *id, Vec::new()),
            Self::Refused { id, refusal } => (4, 0, *id, refusal.write()),
            Self::Done { id, report } => (5, 0, *id, report.write()),
            Self::Return { id, report, unread } => {
                let mut payload = Vec::new();
                sections::put(&mut payload, &report.write());
                sections::put(&mut payload, unread);
                (6, 0, *id, payload)
            }
            Self::Load(load) => (7, 0, 0, load.write()),
            Self::Draining => (8, 0, 0, Vec::new()),
            Self::Revoke { id, reason } => (9, 0, *id, bytes(&json!({ "reason": cut(reason) }))),
            Self::Ping(bytes) => (10, 0, 0, bytes.clone()),
            Self::Pong(bytes) => (11, 0, 0, bytes.clone()),
            Self::Ignored(kind) => (*kind, FLAG_OPTIONAL, 0, Vec::new()),
        };
        let mut frame = Header { kind, flags, id }.encode(payload.len()).to_vec();
        frame.extend_from_slice(&payload);
        frame
    }

    /// Descriptors that belong to it: with any other number the channel ends.
    pub fn descriptors(&self) -> usize {
        match self {
            Self::Handoff { handoff, .. } => 1 + handoff.memfds.count(),
            Self::Return { .. } => 1,
            _ => 0,
        }
    }
}

impl Handoff {
    /// Whether it fits a packet as it is.
    pub fn fits(&self) -> bool {
        let metadata = bytes(&Value::Object(self.metadata.clone())).len();
        HEADER_BYTES + 12 + metadata + self.data.len() + self.preread.len() <= PACKET_BYTES_MAX
    }

    fn write(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        sections::put(&mut payload, &bytes(&Value::Object(self.metadata.clone())));
        sections::put(&mut payload, &self.data);
        sections::put(&mut payload, &self.preread);
        payload
    }
}

/// A type's name, for messages.
fn name(kind: u8) -> &'static str {
    const NAMES: [&str; 11] =
        ["HELLO", "HANDOFF", "TAKEN", "REFUSED", "DONE", "RETURN", "LOAD", "DRAINING", "REVOKE", "PING", "PONG"];
    NAMES.get(usize::from(kind).wrapping_sub(1)).copied().unwrap_or("a packet")
}

#[cfg(test)]
mod tests;
