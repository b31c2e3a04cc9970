//! The header of a frame: sixteen bytes, integers in little-endian. A packet holds one or more frames, each behind the
//! last; nothing is left over.
//!
//! ```text
//! 0   u8   magic 0xB7
//! 1   u8   version 1
//! 2   u8   type
//! 3   u8   flags
//! 4   u32  payload length
//! 8   u64  handoff id; 0 where none applies
//! ```

/// What every frame begins with.
pub const MAGIC: u8 = 0xB7;
/// The version of all frames; what the payloads mean is agreed on by HELLO.
pub const VERSION: u8 = 1;
/// The header's length.
pub const HEADER_BYTES: usize = 16;
/// All frames of a packet together. What would make a packet longer goes into a memfd.
pub const PACKET_BYTES_MAX: usize = 128 << 10;

/// Whoever does not know the type ignores the frame; without this flag the channel ends.
pub const FLAG_OPTIONAL: u8 = 0x80;

/// A header that was understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the payload is.
    pub kind: u8,
    /// What they mean depends on the type, but for [`FLAG_OPTIONAL`].
    pub flags: u8,
    /// Of one handoff on one channel; 0 where the frame is about none.
    pub id: u64,
}

/// Why a frame has no header; the channel ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// More than one frame, where one was expected.
    #[error("{0} bytes behind a frame")]
    Behind(usize),
    /// The packet ends before the payload does.
    #[error("{found} bytes behind a header that says {said}")]
    Length {
        /// What is there.
        found: usize,
        /// What was announced.
        said: u32,
    },
    /// Another protocol.
    #[error("a frame that begins with {0:#04x}")]
    Magic(u8),
    /// Not even a header.
    #[error("{0} bytes, which are no header")]
    Short(usize),
    /// A version that was not agreed on.
    #[error("version {0}")]
    Version(u8),
}

impl Header {
    /// Writes it in front of a payload of that length.
    ///
    /// # Panics
    /// The payload does not fit a packet: whoever made it has put what is too long into a memfd.
    pub fn encode(self, payload_bytes: usize) -> [u8; HEADER_BYTES] {
        assert!(payload_bytes <= PACKET_BYTES_MAX - HEADER_BYTES, "a payload of {payload_bytes} bytes");
        let length = u32::try_from(payload_bytes).expect("it was compared above");
        let mut out = [0; HEADER_BYTES];
        out[..4].copy_from_slice(&[MAGIC, VERSION, self.kind, self.flags]);
        out[4..8].copy_from_slice(&length.to_le_bytes());
        out[8..].copy_from_slice(&self.id.to_le_bytes());
        out
    }

    /// Reads a frame's, at the beginning of `packet`; returns it, the frame's payload, and what stands behind the frame.
    ///
    /// # Errors
    /// It is none of this protocol.
    pub fn split(packet: &[u8]) -> Result<(Self, &[u8], &[u8]), HeaderError> {
        let Some((header, behind)) = packet.split_first_chunk::<HEADER_BYTES>() else {
            return Err(HeaderError::Short(packet.len()));
        };
        let [magic, version, kind, flags, rest @ ..] = *header;
        if magic != MAGIC {
            return Err(HeaderError::Magic(magic));
        }
        if version != VERSION {
            return Err(HeaderError::Version(version));
        }
        let [a, b, c, d, id @ ..] = rest;
        let said = u32::from_le_bytes([a, b, c, d]);
        let length = HeaderError::Length { found: behind.len(), said };
        let bytes = usize::try_from(said).map_err(|_| length)?;
        let (payload, rest) = behind.split_at_checked(bytes).ok_or(length)?;
        Ok((Self { kind, flags, id: u64::from_le_bytes(id) }, payload, rest))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_header_stands_as_the_page_has_it() {
        let header = Header { kind: 2, flags: 0x81, id: 0x0102_0304_0506_0708 };
        let mut packet = header.encode(3).to_vec();
        assert_eq!(packet, [0xB7, 1, 2, 0x81, 3, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(Header::split(&packet), Err(HeaderError::Length { found: 0, said: 3 }));
        packet.extend(b"abc");
        assert_eq!(Header::split(&packet), Ok((header, &b"abc"[..], &b""[..])));
        packet.push(0);
        assert_eq!(Header::split(&packet), Ok((header, &b"abc"[..], &b"\0"[..])));
        packet[1] = 2;
        assert_eq!(Header::split(&packet), Err(HeaderError::Version(2)));
        packet[0] = 0;
        assert_eq!(Header::split(&packet), Err(HeaderError::Magic(0)));
        assert_eq!(Header::split(&packet[..15]), Err(HeaderError::Short(15)));
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(kind: u8, flags: u8, id: u64, payload: Vec<u8>, behind: Vec<u8>) {
            let header = Header { kind, flags, id };
            let packet = [&header.encode(payload.len())[..], &payload, &behind].concat();
            prop_assert_eq!(Header::split(&packet), Ok((header, &payload[..], &behind[..])));
        }
    }
}
