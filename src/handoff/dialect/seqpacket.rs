//! `seqpacket`: one SOCK_SEQPACKET connection per handoff, and on it one packet: the message, with the client beside it.
//!
//! The kernel keeps a packet whole: it is sent as one or not at all, and read as one even into a buffer that is too small
//! (what does not fit is lost and MSG_TRUNC says so). So a connection that is reset proves that its packet was never read,
//! and a packet that still counts as unread is in nobody's hands.

use std::os::fd::BorrowedFd;

use super::super::receive::incoming::{Arrived, Buffer, ReceiveError};

/// Reads the one packet; `false` when it is not there yet.
pub(in super::super) fn read_on(
    arrived: &mut Arrived,
    connection: BorrowedFd<'_>,
    buffer: &mut Buffer,
) -> Result<bool, ReceiveError> {
    Ok(arrived.receive(connection, buffer)?.is_some())
}
