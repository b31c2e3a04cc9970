//! `seqpacket`: one SOCK_SEQPACKET connection per handoff, and on it one packet: the message, with the client beside it.
//!
//! The kernel keeps a packet whole: it is sent as one or not at all, and read as one even into a buffer that is too small
//! (what does not fit is lost and MSG_TRUNC says so). So a connection that is reset proves that its packet was never read,
//! and a packet that still counts as unread is in nobody's hands.

use std::os::fd::BorrowedFd;

use super::super::incoming::{Arrived, Buffer, ReceiveError};
#[cfg(feature = "gateway")]
use super::super::send::Refusal;

/// What the kernel takes off the send buffer for itself before it compares it with a packet's length.
#[cfg(feature = "gateway")]
const OVERHEAD_BYTES: usize = 32;

/// A packet is one piece of the kernel's memory, and this is the largest it has (on x86-64 and arm64).
#[cfg(feature = "gateway")]
const PACKET_BYTES_MAX: usize = 4 << 20;

/// Raises the send buffer of a connection until a packet of `bytes` fits; past net.core.wmem_max only with
/// CAP_NET_ADMIN. At its default it holds about 208 KiB.
///
/// # Errors
/// Too few bytes fit, or the kernel did not say how many.
#[cfg(feature = "gateway")]
pub(in super::super) fn make_room(connection: BorrowedFd<'_>, bytes: usize) -> Result<(), Refusal> {
    let buffer = super::raise_send_buffer(connection, bytes + OVERHEAD_BYTES)?;
    let bytes_max = buffer.saturating_sub(OVERHEAD_BYTES).min(PACKET_BYTES_MAX);
    if bytes_max < bytes { Err(Refusal::TooLarge { bytes, bytes_max }) } else { Ok(()) }
}

/// Reads the one packet; `false` when it is not there yet.
pub(in super::super) fn read_on(
    arrived: &mut Arrived,
    connection: BorrowedFd<'_>,
    buffer: &mut Buffer,
) -> Result<bool, ReceiveError> {
    Ok(arrived.receive(connection, buffer)?.is_some())
}
