//! How one kind of daemon expects the message and the descriptor to arrive. One file per dialect holds what is particular
//! to it; what they share, the message in one piece with the descriptor on its first byte, is in [`send`](mod@super::send) and
//! [`super::receive`].

pub(super) mod datagram;
pub(super) mod fdpass;
pub(super) mod seqpacket;
pub(super) mod stream;

use std::fmt;
#[cfg(feature = "gateway")]
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::str::FromStr;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
#[cfg(feature = "gateway")]
use nix::sys::socket::{getsockopt, setsockopt, sockopt};

#[cfg(feature = "gateway")]
use super::error::Refusal;

/// A dialect by its name in the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dialect {
    /// `seqpacket` or `stream`, whichever the daemon's socket turns out to be, asked by connecting and remembered. A daemon that is
    /// told to listen in this dialect speaks `seqpacket`, which is what is tried first.
    #[default]
    Auto,
    /// The native protocol ([`native`](super::native)): SOCK_SEQPACKET connections that stay, and on each of them handoffs, what
    /// became of them, and clients that come back.
    Baton,
    /// A datagram per handoff, without a connection: the bytes that were read from the client already.
    Datagram,
    /// A SOCK_STREAM connection per handoff and one byte that says nothing. The gateway has written the response's head;
    /// the daemon writes the body.
    Fdpass,
    /// A SOCK_SEQPACKET connection per handoff; one packet.
    Seqpacket,
    /// A SOCK_STREAM connection per handoff; the message ends where the connection does.
    Stream,
}

/// A name that is no dialect's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("dialect is seqpacket, stream, fdpass, datagram, baton or auto")]
pub struct UnknownDialect;

impl Dialect {
    const ALL: [Self; 6] = [Self::Auto, Self::Baton, Self::Datagram, Self::Fdpass, Self::Seqpacket, Self::Stream];

    /// The name, as configuration and command line write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Baton => "baton",
            Self::Datagram => "datagram",
            Self::Fdpass => "fdpass",
            Self::Seqpacket => "seqpacket",
            Self::Stream => "stream",
        }
    }
}

impl FromStr for Dialect {
    type Err = UnknownDialect;

    fn from_str(name: &str) -> Result<Self, UnknownDialect> {
        Self::ALL.into_iter().find(|dialect| dialect.as_str() == name).ok_or(UnknownDialect)
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The type of socket that a connection is made of: a dialect, once `auto` is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum SocketKind {
    Datagram,
    Seqpacket,
    Stream,
}

impl SocketKind {
    /// The kind to begin with.
    pub(super) fn of(dialect: Dialect) -> Self {
        match dialect {
            Dialect::Auto | Dialect::Baton | Dialect::Seqpacket => Self::Seqpacket,
            Dialect::Datagram => Self::Datagram,
            Dialect::Fdpass | Dialect::Stream => Self::Stream,
        }
    }

    /// The kind that `auto` tries next.
    #[cfg(feature = "gateway")]
    pub(super) fn other(self) -> Self {
        match self {
            Self::Seqpacket => Self::Stream,
            Self::Datagram | Self::Stream => Self::Seqpacket,
        }
    }

    /// A new Unix socket of this kind, non-blocking and close-on-exec.
    pub(super) fn socket(self) -> nix::Result<OwnedFd> {
        let kind = match self {
            Self::Datagram => SockType::Datagram,
            Self::Seqpacket => SockType::SeqPacket,
            Self::Stream => SockType::Stream,
        };
        socket(AddressFamily::Unix, kind, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)
    }
}

/// What the kernel takes off the send buffer for itself before it compares it with a packet's length.
#[cfg(feature = "gateway")]
const OVERHEAD_BYTES: usize = 32;

/// A packet is one piece of the kernel's memory, and this is the largest it has (on x86-64 and arm64).
#[cfg(feature = "gateway")]
const PACKET_BYTES_MAX: usize = 4 << 20;

/// Raises a send buffer until a packet or datagram of `bytes` fits; past net.core.wmem_max only with CAP_NET_ADMIN. At its
/// default it holds about 208 KiB.
///
/// # Errors
/// Too few bytes fit, or the kernel did not say how many.
#[cfg(feature = "gateway")]
pub(super) fn make_room_for_packet(socket: BorrowedFd<'_>, bytes: usize) -> Result<(), Refusal> {
    let buffer = raise_send_buffer(socket, bytes + OVERHEAD_BYTES)?;
    let bytes_max = buffer.saturating_sub(OVERHEAD_BYTES).min(PACKET_BYTES_MAX);
    if bytes_max < bytes { Err(Refusal::TooLarge { bytes, bytes_max }) } else { Ok(()) }
}

/// Makes a connection's send buffer hold `bytes`, if that is allowed; says what it holds now.
#[cfg(feature = "gateway")]
fn raise_send_buffer(connection: BorrowedFd<'_>, bytes: usize) -> nix::Result<usize> {
    // The kernel doubles what it is asked for, and getsockopt shows the doubled value (socket(7)).
    let wanted = bytes.div_ceil(2);
    if setsockopt(&connection, sockopt::SndBufForce, &wanted).is_err() {
        setsockopt(&connection, sockopt::SndBuf, &wanted)?;
    }
    getsockopt(&connection, sockopt::SndBuf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dialect_is_read_by_the_name_it_is_written_with() {
        for dialect in Dialect::ALL {
            assert_eq!(dialect.to_string().parse(), Ok(dialect));
        }
        assert_eq!("Stream".parse::<Dialect>(), Err(UnknownDialect));
    }
}
