//! What came with a client on a channel, judged: a stream socket, memfds that nobody can change any more, and as many
//! bytes in them as were announced.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use serde_json::{Map, Value};

use super::super::native::frame;
use super::body::{Framing, Input};
use super::incoming::ReceiveError;

/// A client, and what is said of it.
#[derive(Debug)]
pub(super) struct Offer {
    pub client: OwnedFd,
    pub metadata: Map<String, Value>,
    pub data: Vec<u8>,
    pub input: Input,
}

/// Why nobody is offered.
#[derive(Debug)]
pub(super) enum Misfit {
    /// The gateway is told to try another.
    TooLarge { bytes: u64 },
    /// The gateway broke the protocol.
    Wrong(ReceiveError),
}

impl From<ReceiveError> for Misfit {
    fn from(error: ReceiveError) -> Self {
        Self::Wrong(error)
    }
}

impl Offer {
    /// Judges a handoff and its descriptors, of which there are as many as it said.
    pub(super) fn judge(
        handoff: frame::Handoff,
        descriptors: &mut impl Iterator<Item = OwnedFd>,
        data_bytes_max: usize,
    ) -> Result<Self, Misfit> {
        let frame::Handoff { metadata, mut data, mut preread, memfds } = handoff;
        let mut next = || descriptors.next().ok_or(ReceiveError::NoDescriptor);
        let client = next()?;
        let mut memfd = |is_there: bool| is_there.then(|| Memfd::of(next()?)).transpose();
        let (body, data_memfd, preread_memfd) = (memfd(memfds.body)?, memfd(memfds.data)?, memfd(memfds.preread)?);
        match getsockopt(&client, sockopt::SockType) {
            Ok(SockType::Stream) => {}
            _ => return Err(ReceiveError::NotAStream.into()),
        }
        if let Some(memfd) = data_memfd {
            data = memfd.read(data_bytes_max)?;
        }
        if data.len() > data_bytes_max {
            return Err(Misfit::TooLarge { bytes: data.len() as u64 });
        }
        if let Some(memfd) = preread_memfd {
            preread = memfd.read(data_bytes_max)?;
        }
        if let Some(head_bytes) = metadata.get("request").and_then(|request| request.get("head_bytes"))
            && head_bytes.as_u64().is_none_or(|bytes| bytes > preread.len() as u64)
        {
            return Err(ReceiveError::Protocol("a head that is not among what was read").into());
        }
        let framing = Framing::of(&metadata).map_err(ReceiveError::Protocol)?;
        let input = match (body, framing) {
            (None, Framing::Memfd(_)) => {
                return Err(ReceiveError::Protocol("no memfd for a body that is in one").into());
            }
            (Some(_), framing) if !matches!(framing, Framing::Memfd(_)) => {
                return Err(ReceiveError::Protocol("a memfd for a body that is in none").into());
            }
            (Some(memfd), Framing::Memfd(said)) => {
                if said.is_some_and(|said| said > memfd.bytes) {
                    return Err(ReceiveError::Protocol("a memfd that is shorter than the body").into());
                }
                Input::new(preread, Framing::Memfd(Some(said.unwrap_or(memfd.bytes))), Some(memfd.file))
            }
            (_, framing) => Input::new(preread, framing, None),
        };
        Ok(Self { client, metadata, data, input })
    }
}

/// A file in memory that is as it is for ever.
struct Memfd {
    file: File,
    bytes: u64,
}

impl Memfd {
    fn of(descriptor: OwnedFd) -> Result<Self, ReceiveError> {
        let wanted = SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
        // What is no file in memory has no seals and says so.
        let seals = fcntl(&descriptor, FcntlArg::F_GET_SEALS).map_or(SealFlag::empty(), SealFlag::from_bits_retain);
        if !seals.contains(wanted) {
            return Err(ReceiveError::Protocol("a memfd that is not sealed"));
        }
        let file = File::from(descriptor);
        let bytes = file.metadata().map_err(ReceiveError::Io)?.len();
        Ok(Self { file, bytes })
    }

    /// All of it, from its beginning, wherever whoever filled it has left its position.
    fn read(self, bytes_max: usize) -> Result<Vec<u8>, Misfit> {
        let length = usize::try_from(self.bytes).ok().filter(|bytes| *bytes <= bytes_max);
        let length = length.ok_or(Misfit::TooLarge { bytes: self.bytes })?;
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, 0).map_err(ReceiveError::Io)?;
        Ok(bytes)
    }
}
