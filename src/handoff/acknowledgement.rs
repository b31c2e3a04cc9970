//! What the kernel tells the sender about its message, without a word from the daemon (unix(7)).
//!
//! The message is memory that belongs to the sender's socket until a reader takes it; `SIOCOUTQ` counts that memory. When
//! the reader closes with something unread, the kernel marks the sender's socket as reset *before* it frees anything.
//! Hence the order of a look: first how much is unread, then a `recv` that would show the mark.
//!
//! The event comes a little before the count is down: the kernel gives the memory back but for one byte, says that there
//! is room, and only then gives back the last (sock_wfree). Whoever looks in between sees 1, and no further event will
//! come. No message is that small in memory, so 1 is as good as 0.
//!
//! | unread | recv | meaning |
//! |---|---|---|
//! | > 1 | EAGAIN | not read yet |
//! | > 1 | EOF, twice | not read yet: the daemon has only said, by `shutdown`, that it will not write |
//! | 0 or 1 | EAGAIN or EOF | read |
//! | any | ECONNRESET | closed before everything was read |

use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, getsockopt, recv, sockopt};

use super::ancillary;

/// What can be known about a message that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// All of it was read.
    Read,
    /// The other end was closed, or its process has ended, before all of it was read. The kernel says so once.
    Reset,
    /// Not all of it was read, and it still can be.
    Unread,
}

/// What is counted when everything was read, at the moment of the event; no message counts as little.
const UNREAD_BYTES_AT_EVENT: usize = 1;

/// How often a daemon is listened to on a connection where nothing is to be said, in one look.
const BABBLE_LOOKS_MAX: usize = 16;

/// Looks, without waiting. Each change that leads to another answer than [`Look::Unread`] makes the connection writable or
/// closes it: whoever waits for the close alone must look now and then as well.
///
/// # Errors
/// What ioctl(2) and recv(2) say, other than the above; nothing is known then.
pub(super) fn look(connection: BorrowedFd<'_>) -> nix::Result<Look> {
    let mut babble = [0; 4096];
    let mut ends = 0;
    for _ in 0..BABBLE_LOOKS_MAX {
        let unread = ancillary::unread(connection)?;
        match recv(connection.as_raw_fd(), &mut babble, MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EAGAIN) | Ok(0) if unread <= UNREAD_BYTES_AT_EVENT => return Ok(Look::Read),
            Err(Errno::EAGAIN) => return Ok(Look::Unread),
            // Read and closed since the count was taken, or closed unread since, or only half closed: the next look tells.
            Ok(0) if ends == 0 => ends = 1,
            Ok(0) => return Ok(Look::Unread),
            Err(Errno::ECONNRESET) => return Ok(Look::Reset),
            // What it says means nothing here, but it may stand before a reset.
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
    // On a stream the mark shows only behind all that was said, so it is asked for.
    let unread = ancillary::unread(connection)?;
    match getsockopt(&connection, sockopt::SocketError)? {
        0 if unread <= UNREAD_BYTES_AT_EVENT => Ok(Look::Read),
        0 => Ok(Look::Unread),
        mark if mark == Errno::ECONNRESET as i32 => Ok(Look::Reset),
        mark => Err(Errno::from_raw(mark)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::os::fd::{AsFd as _, OwnedFd};

    use nix::sys::socket::{AddressFamily, Shutdown, SockFlag, SockType, shutdown, socketpair};

    use super::*;

    const KINDS: [SockType; 2] = [SockType::SeqPacket, SockType::Stream];

    /// A connection with a message of 40 bytes and a descriptor on it: the sender's end, the daemon's.
    fn sent(kind: SockType) -> (OwnedFd, OwnedFd) {
        let (gateway, daemon) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let (client, _) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(ancillary::send(gateway.as_fd(), &[IoSlice::new(&[b'x'; 40])], &[client.as_fd()]), Ok(40));
        (gateway, daemon)
    }

    fn say(daemon: &OwnedFd, bytes: &[u8]) {
        ancillary::send(daemon.as_fd(), &[IoSlice::new(bytes)], &[]).unwrap();
    }

    #[test]
    fn a_message_that_waits_is_unread() {
        for kind in KINDS {
            let (gateway, _daemon) = sent(kind);
            assert_eq!(look(gateway.as_fd()), Ok(Look::Unread));
        }
    }

    #[test]
    fn a_message_is_read_while_the_daemon_keeps_its_end() {
        for kind in KINDS {
            let (gateway, daemon) = sent(kind);
            ancillary::receive(daemon.as_fd(), &mut [0; 100]).unwrap();
            assert_eq!(look(gateway.as_fd()), Ok(Look::Read));
        }
    }

    #[test]
    fn a_message_is_read_when_the_daemon_has_closed_after_it() {
        for kind in KINDS {
            let (gateway, daemon) = sent(kind);
            ancillary::receive(daemon.as_fd(), &mut [0; 100]).unwrap();
            drop(daemon);
            assert_eq!(look(gateway.as_fd()), Ok(Look::Read));
        }
    }

    #[test]
    fn closing_unread_is_a_reset() {
        for kind in KINDS {
            let (gateway, daemon) = sent(kind);
            drop(daemon);
            assert_eq!(look(gateway.as_fd()), Ok(Look::Reset));
        }
    }

    #[test]
    fn a_short_read_of_a_stream_tells_nothing_and_its_close_is_a_reset() {
        let (gateway, daemon) = sent(SockType::Stream);
        let received = ancillary::receive(daemon.as_fd(), &mut [0; 1]).unwrap();
        assert_eq!(received.descriptors.len(), 1);
        assert_eq!(look(gateway.as_fd()), Ok(Look::Unread));
        drop(daemon);
        assert_eq!(look(gateway.as_fd()), Ok(Look::Reset));
    }

    #[test]
    fn a_short_read_of_a_packet_reads_it_whole() {
        let (gateway, daemon) = sent(SockType::SeqPacket);
        ancillary::receive(daemon.as_fd(), &mut [0; 1]).unwrap();
        assert_eq!(look(gateway.as_fd()), Ok(Look::Read));
    }

    #[test]
    fn a_daemon_that_will_not_write_has_not_read() {
        for kind in KINDS {
            let (gateway, daemon) = sent(kind);
            shutdown(daemon.as_raw_fd(), Shutdown::Write).unwrap();
            assert_eq!(look(gateway.as_fd()), Ok(Look::Unread));
            ancillary::receive(daemon.as_fd(), &mut [0; 100]).unwrap();
            assert_eq!(look(gateway.as_fd()), Ok(Look::Read));

            let (gateway, daemon) = sent(kind);
            shutdown(daemon.as_raw_fd(), Shutdown::Write).unwrap();
            drop(daemon);
            assert_eq!(look(gateway.as_fd()), Ok(Look::Reset));
        }
    }

    #[test]
    fn what_a_daemon_says_changes_nothing() {
        for kind in KINDS {
            let (gateway, daemon) = sent(kind);
            say(&daemon, b"hello");
            assert_eq!(look(gateway.as_fd()), Ok(Look::Unread));
            say(&daemon, b"hello");
            drop(daemon);
            assert_eq!(look(gateway.as_fd()), Ok(Look::Reset));

            let (gateway, daemon) = sent(kind);
            ancillary::receive(daemon.as_fd(), &mut [0; 100]).unwrap();
            say(&daemon, b"hello");
            assert_eq!(look(gateway.as_fd()), Ok(Look::Read));
        }
    }

    #[test]
    fn a_daemon_that_says_more_than_is_listened_to_hides_nothing() {
        let babble = |daemon: &OwnedFd| (0..BABBLE_LOOKS_MAX + 4).for_each(|_| say(daemon, &[b'x'; 4096]));
        for kind in KINDS {
            let (gateway, daemon) = sent(kind);
            babble(&daemon);
            assert_eq!(look(gateway.as_fd()), Ok(Look::Unread), "{kind:?}");

            let (gateway, daemon) = sent(kind);
            ancillary::receive(daemon.as_fd(), &mut [0; 100]).unwrap();
            babble(&daemon);
            assert_eq!(look(gateway.as_fd()), Ok(Look::Read), "{kind:?}");

            let (gateway, daemon) = sent(kind);
            babble(&daemon);
            drop(daemon);
            assert_eq!(look(gateway.as_fd()), Ok(Look::Reset), "{kind:?}");
        }
    }
}
