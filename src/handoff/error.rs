//! Why a daemon did not take a client, and who owns the client then.

use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;

use super::address::AddressError;
use super::native::frame;
use super::seal::Unread;

/// How far a handoff came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// The message was sent, and was to be read.
    Acknowledge,
    /// The daemon's socket was to be connected to.
    Connect,
    /// Its path was to be found.
    Resolve,
    /// The message was to be sent.
    Send,
}

impl Stage {
    /// The word for logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Acknowledge => "acknowledge",
            Self::Connect => "connect",
            Self::Resolve => "resolve",
            Self::Send => "send",
        }
    }
}

/// Why a daemon certainly did not take a client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// There is no way to its path. [`AddressError::is_forbidden`] tells 403 from 503.
    #[error("no way to the socket")]
    Address(#[from] AddressError),
    /// Its last channel did not last, and the next one is not due yet.
    #[error("its channel broke a moment ago")]
    Broken,
    /// The daemon's word (REFUSED).
    #[error("the daemon refuses: {}{}", .0.reason.word(), .0.message.as_deref().map(|text| format!(" ({text})")).unwrap_or_default())]
    Daemon(Box<frame::Refusal>),
    /// The daemon takes nobody any more (DRAINING).
    #[error("the daemon drains")]
    Draining,
    /// It has as many clients as it can bear, and so many wait already, or for so long.
    #[error("every daemon has as many clients as it can bear ({0})")]
    Full(&'static str),
    /// The kernel's word: nobody listens, no permission, no descriptors left here.
    #[error("the socket did not take it")]
    Io(#[from] io::Error),
    /// The daemon closed the connection, or died, with the message unread.
    #[error("closed unread")]
    NeverRead,
    /// Somebody else listens there.
    #[error("the daemon runs as uid {uid}, which is not allowed")]
    NotAllowed {
        /// Who.
        uid: u32,
    },
    /// What listens there does not speak the native protocol.
    #[error("no word of the protocol: {0}")]
    Protocol(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It did not say HELLO in time.
    #[error("no HELLO in time")]
    Silent,
    /// There was no room until the deadline: in the daemon's backlog, or for more descriptors on their way.
    #[error("no room until the deadline")]
    TimedOut,
    /// More data than this daemon wants (500).
    #[error("{bytes} bytes of data, and the daemon takes at most {bytes_max} (data_bytes_max of its HELLO)")]
    TooMuchData {
        /// The data.
        bytes: usize,
        /// The daemon's limit.
        bytes_max: usize,
    },
    /// The message is longer than this dialect can carry: no other socket will do either (500).
    #[error("the message has {bytes} bytes, at most {bytes_max} can be sent (net.core.wmem_max)")]
    TooLarge {
        /// The message.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
}

impl From<Errno> for Refusal {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

/// A handoff that was not taken, or may not have been. Whoever gets it must look at who owns the client now.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The client has gone, or did not take the response's head in time: our copy is closed, and nothing was sent.
    #[error("the client did not take the response's head")]
    ClientGone {
        /// What its socket said.
        source: io::Error,
    },
    /// Not sent, or never read: the client is ours, as it was.
    #[error("not taken ({})", stage.as_str())]
    Refused {
        /// The client, untouched.
        client: OwnedFd,
        /// How far it came.
        stage: Stage,
        /// Why.
        source: Refusal,
    },
    /// A daemon may own the client: our copy is closed, unwritten.
    #[error("fate unknown, closed unwritten")]
    Unanswered {
        /// What the kernel said last.
        source: io::Error,
    },
    /// Sent and unread at the deadline, or of unknown fate with nobody having written so far. The client may be answered
    /// once, by [`Unread::seal`], and by nothing else; or be reset by [`Unread::reset`], if it was sent a head.
    #[error("unread")]
    Unread(Unread),
}
