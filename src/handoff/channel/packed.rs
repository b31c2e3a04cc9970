//! A HANDOFF as it goes onto the wire: nothing of it is copied but what is too long for a packet.

use std::io::IoSlice;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use super::super::ancillary;
use super::super::error::Refusal;
use super::super::native::frame::Memfds;
use super::super::native::header::{HEADER_BYTES, Header, PACKET_BYTES_MAX};
use super::Parts;

/// The type of a HANDOFF.
const HANDOFF: u8 = 2;
/// The lengths of its three sections.
const LENGTHS_BYTES: usize = 12;

/// What is sent, but for the handoff's number and the client.
pub(super) struct Packed<'a> {
    metadata: &'a [u8],
    data: &'a [u8],
    preread: [&'a [u8]; 2],
    memfds: Memfds,
    files: Vec<OwnedFd>,
}

/// Whether what cannot be in a file fits a packet.
pub(super) fn judge(parts: &Parts<'_>) -> Result<(), Refusal> {
    match HEADER_BYTES + LENGTHS_BYTES + parts.metadata.len() {
        bytes if bytes > PACKET_BYTES_MAX => Err(Refusal::TooLarge { bytes, bytes_max: PACKET_BYTES_MAX }),
        _ => Ok(()),
    }
}

impl<'a> Packed<'a> {
    /// Puts into files what is too long.
    ///
    /// # Errors
    /// The metadata alone is too long, or the system has no file for the rest.
    pub(super) fn new(parts: &Parts<'a>) -> Result<Self, Refusal> {
        let Parts { metadata, data, preread, .. } = *parts;
        let mut packed = Self { metadata, data, preread, memfds: Memfds::default(), files: Vec::new() };
        if packed.length() > PACKET_BYTES_MAX && !data.is_empty() {
            packed.files.push(ancillary::sealed_file(&[data])?);
            (packed.memfds.data, packed.data) = (true, &[]);
        }
        if packed.length() > PACKET_BYTES_MAX && !preread.concat().is_empty() {
            packed.files.push(ancillary::sealed_file(&preread)?);
            packed.memfds.preread = true;
            packed.preread = [&[], &[]];
        }
        match packed.length() {
            bytes if bytes > PACKET_BYTES_MAX => Err(Refusal::TooLarge { bytes, bytes_max: PACKET_BYTES_MAX }),
            _ => Ok(packed),
        }
    }

    fn length(&self) -> usize {
        HEADER_BYTES + self.payload_bytes()
    }

    fn payload_bytes(&self) -> usize {
        let preread = self.preread[0].len() + self.preread[1].len();
        LENGTHS_BYTES + self.metadata.len() + self.data.len() + preread
    }

    /// Sends it, whole.
    ///
    /// # Errors
    /// What sendmsg(2) says; nothing was sent then.
    pub(super) fn send(&self, channel: BorrowedFd<'_>, id: u64, client: BorrowedFd<'_>) -> nix::Result<()> {
        let header = Header { kind: HANDOFF, flags: self.memfds.flags(), id }.encode(self.payload_bytes());
        let preread = self.preread[0].len() + self.preread[1].len();
        let [metadata, data, preread] = [self.metadata.len(), self.data.len(), preread].map(length);
        let bytes = [
            IoSlice::new(&header),
            IoSlice::new(&metadata),
            IoSlice::new(self.metadata),
            IoSlice::new(&data),
            IoSlice::new(self.data),
            IoSlice::new(&preread),
            IoSlice::new(self.preread[0]),
            IoSlice::new(self.preread[1]),
        ];
        match &self.files[..] {
            [] => ancillary::send(channel, &bytes, &[client])?,
            [file] => ancillary::send(channel, &bytes, &[client, file.as_fd()])?,
            files => {
                let all: Vec<_> = std::iter::once(client).chain(files.iter().map(|file| file.as_fd())).collect();
                ancillary::send(channel, &bytes, &all)?
            }
        };
        Ok(())
    }
}

fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).expect("it fits a packet").to_le_bytes()
}
