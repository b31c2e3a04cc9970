//! How one kind of daemon expects the message and the descriptor to arrive. One file per dialect holds what is particular
//! to it; what they share, the message in one piece with the descriptor on its first byte, is in [`send`](mod@super::send) and
//! [`super::receive`].

pub(super) mod seqpacket;
pub(super) mod stream;

use std::fmt;
#[cfg(feature = "gateway")]
use std::os::fd::BorrowedFd;
use std::os::fd::{AsFd, OwnedFd};
use std::str::FromStr;

#[cfg(feature = "gateway")]
use nix::sys::socket::setsockopt;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socket, sockopt};

/// A dialect by its name in the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dialect {
    /// Whichever of the others the daemon's socket turns out to be, asked by connecting and remembered. A daemon that is
    /// told to listen in this dialect speaks `seqpacket`, which is what is tried first.
    #[default]
    Auto,
    /// A SOCK_SEQPACKET connection per handoff; one packet.
    Seqpacket,
    /// A SOCK_STREAM connection per handoff; the message ends where the connection does.
    Stream,
}

/// A name that is no dialect's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("dialect is seqpacket, stream or auto")]
pub struct UnknownDialect;

impl Dialect {
    /// The name, as configuration and command line write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Seqpacket => "seqpacket",
            Self::Stream => "stream",
        }
    }
}

impl FromStr for Dialect {
    type Err = UnknownDialect;

    fn from_str(name: &str) -> Result<Self, UnknownDialect> {
        [Self::Auto, Self::Seqpacket, Self::Stream]
            .into_iter()
            .find(|dialect| dialect.as_str() == name)
            .ok_or(UnknownDialect)
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
    Seqpacket,
    Stream,
}

impl SocketKind {
    /// The kind to begin with.
    pub(super) fn of(dialect: Dialect) -> Self {
        match dialect {
            Dialect::Auto | Dialect::Seqpacket => Self::Seqpacket,
            Dialect::Stream => Self::Stream,
        }
    }

    /// The kind of a socket that somebody else has made; `None` when no dialect is spoken on such a socket.
    pub(super) fn of_socket(socket: &impl AsFd) -> nix::Result<Option<Self>> {
        Ok(match getsockopt(socket, sockopt::SockType)? {
            SockType::SeqPacket => Some(Self::Seqpacket),
            SockType::Stream => Some(Self::Stream),
            _ => None,
        })
    }

    /// The kind that `auto` tries next.
    #[cfg(feature = "gateway")]
    pub(super) fn other(self) -> Self {
        match self {
            Self::Seqpacket => Self::Stream,
            Self::Stream => Self::Seqpacket,
        }
    }

    /// A new Unix socket of this kind, non-blocking and close-on-exec.
    pub(super) fn socket(self) -> nix::Result<OwnedFd> {
        let kind = match self {
            Self::Seqpacket => SockType::SeqPacket,
            Self::Stream => SockType::Stream,
        };
        socket(AddressFamily::Unix, kind, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)
    }
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
        for dialect in [Dialect::Auto, Dialect::Seqpacket, Dialect::Stream] {
            assert_eq!(dialect.to_string().parse(), Ok(dialect));
        }
        assert_eq!("Stream".parse::<Dialect>(), Err(UnknownDialect));
    }
}
