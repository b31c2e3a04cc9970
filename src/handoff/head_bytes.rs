//! A response's head that the gateway writes before it lets go of the client: once, whichever daemon takes the client then.
//!
//! From its first byte on the client can be given to a daemon or be reset, and nothing else: a clean end would make an
//! empty body look whole. So the socket is set to reset when it is closed (SO_LINGER of no time, socket(7)) before that
//! byte is written, which covers also a gateway that is cut or killed; and set back before the descriptor goes, because
//! the setting belongs to the open file and the daemon's close must not reset. A gateway that is killed from then on,
//! with the message unread, leaves a client whose end looks clean if the daemon dies unread as well.
//!
//! System calls: poll, setsockopt(SO_LINGER) twice, send; connect(AF_UNSPEC) for a reset that others' copies of the socket
//! cannot prevent.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, Shutdown, send, setsockopt, shutdown, sockopt};
use tokio::time::{Instant, sleep_until};

/// When a client that takes nothing is looked at again; later each time.
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(5);
/// At most so late.
const LOOK_INTERVAL_MAX: Duration = Duration::from_millis(100);

/// A response's head as it goes onto the wire, and how much of it the client has been sent.
#[derive(Debug)]
pub struct HeadBytes {
    bytes: Vec<u8>,
    written: usize,
}

impl HeadBytes {
    /// A head that nobody was sent yet, with its empty line.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, written: 0 }
    }

    /// How much the client was sent. Anything but 0 means that it cannot be answered any more.
    pub fn written(&self) -> usize {
        self.written
    }

    pub(super) fn is_written(&self) -> bool {
        self.written == self.bytes.len()
    }

    /// Writes what the client was not sent yet, when its socket has room; nothing where it has it all.
    ///
    /// # Errors
    /// `TimedOut`, or what the system says.
    ///
    /// # Cancel safety
    /// As for [`send`](fn@super::send): the client is to be closed.
    pub async fn write_whole(&mut self, client: &OwnedFd, until: Instant) -> io::Result<()> {
        if !self.is_written() {
            Self::wait_for_room(client.as_fd(), until).await?;
            self.write(client.as_fd(), until).await?;
        }
        Ok(())
    }

    /// Waits until the client's socket has room. A client that has yet to read what it was sent before must not keep a
    /// daemon waiting on an open connection.
    ///
    /// # Errors
    /// `TimedOut`, or what poll(2) says.
    pub(super) async fn wait_for_room(client: BorrowedFd<'_>, until: Instant) -> io::Result<()> {
        let mut interval = LOOK_INTERVAL_MIN;
        loop {
            let mut ask = [PollFd::new(client, PollFlags::POLLOUT)];
            match poll(&mut ask, PollTimeout::ZERO) {
                Ok(0) => look_later(until, &mut interval).await?,
                // Also of a client that has gone: writing tells more.
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes what the client was not sent yet.
    ///
    /// # Errors
    /// `TimedOut`, or what send(2) says.
    ///
    /// # Cancel safety
    /// Dropping it leaves a part written, which [`written`](Self::written) knows.
    pub(super) async fn write(&mut self, client: BorrowedFd<'_>, until: Instant) -> io::Result<()> {
        reset_on_close(client, true)?;
        let mut interval = LOOK_INTERVAL_MIN;
        while !self.is_written() {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(client.as_raw_fd(), &self.bytes[self.written..], flags) {
                Ok(count) => (self.written, interval) = (self.written + count, LOOK_INTERVAL_MIN),
                Err(Errno::EAGAIN) => look_later(until, &mut interval).await?,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

async fn look_later(until: Instant, interval: &mut Duration) -> io::Result<()> {
    let now = Instant::now();
    if now >= until {
        return Err(io::ErrorKind::TimedOut.into());
    }
    sleep_until(until.min(now + *interval)).await;
    *interval = (*interval * 2).min(LOOK_INTERVAL_MAX);
    Ok(())
}

/// Makes the last close of a client, whoever's it is, reset it, or end it cleanly again. Clients over a Unix socket know
/// no reset: they see an end in either case.
pub(super) fn reset_on_close(client: BorrowedFd<'_>, reset: bool) -> nix::Result<()> {
    setsockopt(&client, sockopt::Linger, &libc::linger { l_onoff: reset.into(), l_linger: 0 })
}

/// Whether a client has reset its connection.
pub(super) fn has_gone(client: BorrowedFd<'_>) -> bool {
    // What tells of an error or of an end in both directions is told unasked.
    let mut ask = [PollFd::new(client, PollFlags::empty())];
    poll(&mut ask, PollTimeout::ZERO).is_ok_and(|count| count > 0)
}

/// Resets a client now, for everybody who holds it (tcp(7): connect with AF_UNSPEC disconnects). One over a Unix socket
/// is shut down instead.
pub(super) fn reset(client: BorrowedFd<'_>) {
    if rustix::net::connect_unspec(client).is_err() {
        // It fails only where the client has gone.
        let _ = shutdown(client.as_raw_fd(), Shutdown::Both);
    }
}
