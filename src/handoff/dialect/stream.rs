//! `stream`: one SOCK_STREAM connection per handoff. The client rides on the first byte; the message ends with EOF.
//!
//! A reader may stop anywhere. One that takes a single byte has the client, and yet the message counts as unread and its
//! closing resets the connection. So only a message of one byte tells by its reset, or by being unread, that nobody has
//! the client; of a longer one it has to be asked whether anybody wrote into the client ([`super::super::Unread`]).
//! A reader that reads once must find everything, so it is sent at once as far as the buffer allows: the kernel never
//! glues two sends together where a descriptor is between them.

use std::os::fd::BorrowedFd;

use super::super::receive::incoming::{Arrived, Buffer, ReceiveError, Step};

/// Up to here a message fits into a send buffer of the default size, whatever the kernel adds for each of its parts.
#[cfg(feature = "gateway")]
pub(in super::super) const FITS_BYTES: usize = 64 << 10;

/// Raises the send buffer as far as it is allowed, so that a large message goes out in one piece if it can.
#[cfg(feature = "gateway")]
pub(in super::super) fn make_room(connection: BorrowedFd<'_>, bytes: usize) -> nix::Result<()> {
    if bytes <= FITS_BYTES {
        return Ok(());
    }
    // Memory is counted, not bytes: half as much again for the parts' headers and their rounding.
    super::raise_send_buffer(connection, bytes + bytes / 2 + FITS_BYTES).map(drop)
}

/// Reads what is there; `true` at the end of the stream.
pub(in super::super) fn read_on(
    arrived: &mut Arrived,
    connection: BorrowedFd<'_>,
    buffer: &mut Buffer,
) -> Result<bool, ReceiveError> {
    while let Some(step) = arrived.receive(connection, buffer)? {
        if step == Step::End {
            return Ok(true);
        }
    }
    Ok(false)
}
