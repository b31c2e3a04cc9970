//! `datagram`: no connection; one datagram per handoff to the daemon's one socket, and in it what was read from the client,
//! which is the request's head, with the client beside it.
//!
//! A datagram is sent and read whole, like a packet. But it waits in the receiver's own queue, and a receiver that dies
//! destroys it: for the sender that looks as if it had been read, because there is no connection to be reset. What tells is
//! whether the receiver lives *afterwards*. A socket that is closed is taken out of the kernel's table first and gives its
//! queue up then (unix_release_sock), so one that can still be connected to had not given up anything when the count was
//! taken. The sender therefore keeps the file of the socket that it has sent to (O_PATH), and asks that very socket by
//! connecting to it once more: whatever stands at the path by then is not asked. It connects the socket that it has sent
//! with, because there may be no descriptor for another, and a daemon that lives would be taken for dead.

use std::os::fd::BorrowedFd;

use super::super::receive::incoming::{Arrived, Buffer, ReceiveError, Step};
#[cfg(feature = "gateway")]
use super::super::resolved::Resolved;

/// Whether the socket that `connection` has sent to still has its queue; `false` also where that cannot be found out.
#[cfg(feature = "gateway")]
pub(in super::super) fn is_alive(receiver: &Resolved, connection: BorrowedFd<'_>) -> bool {
    receiver.connect(connection).is_ok()
}

/// Reads one datagram; `false` when none is there. One without bytes is one all the same.
pub(in super::super) fn read_on(
    arrived: &mut Arrived,
    socket: BorrowedFd<'_>,
    buffer: &mut Buffer,
) -> Result<bool, ReceiveError> {
    Ok(matches!(arrived.receive(socket, buffer)?, Some(Step::Some | Step::End)))
}
