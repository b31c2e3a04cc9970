//! What goes wrong with a client that was handed over.

use std::io;

use nix::errno::Errno;

/// Why a client cannot be read from, written to or taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The channel has ended before the gateway could be told that the client is taken: it is the gateway's, and was not
    /// touched.
    #[error("the gateway could not be told that the client is taken")]
    ChannelEnded,
    /// The request's body ends before it is whole.
    #[error("the client ended its request's body too early")]
    Cut,
    /// The client has left.
    #[error("the client has left")]
    Gone(#[source] io::Error),
    /// A name or a value that would end its line, or a status that is none.
    #[error("a head that cannot be written")]
    Head,
    /// The system's word about the client's socket.
    #[error("the client's socket failed")]
    Io(#[source] io::Error),
    /// The chunks of the request's body are none.
    #[error("the request's body is not made of chunks")]
    Malformed,
    /// The gateway has asked to end this one.
    #[error("the gateway has revoked the client")]
    Revoked,
    /// The client has not sent or taken a byte for as long as it may.
    #[error("the client makes no progress")]
    TimedOut,
}

impl ClientError {
    pub(super) fn of(error: Errno) -> Self {
        match error {
            Errno::EPIPE | Errno::ECONNRESET | Errno::ECONNABORTED | Errno::ETIMEDOUT | Errno::EHOSTUNREACH => {
                Self::Gone(error.into())
            }
            error => Self::Io(error.into()),
        }
    }
}

impl From<ClientError> for io::Error {
    fn from(error: ClientError) -> Self {
        let kind = match &error {
            ClientError::ChannelEnded | ClientError::Revoked => io::ErrorKind::ConnectionAborted,
            ClientError::Cut => io::ErrorKind::UnexpectedEof,
            ClientError::Gone(cause) | ClientError::Io(cause) => cause.kind(),
            ClientError::Head => io::ErrorKind::InvalidInput,
            ClientError::Malformed => io::ErrorKind::InvalidData,
            ClientError::TimedOut => io::ErrorKind::TimedOut,
        };
        Self::new(kind, error)
    }
}
