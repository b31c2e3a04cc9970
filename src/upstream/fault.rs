//! Why an upstream did not answer, or not to its end.

use std::time::Duration;

/// What went wrong, in words for the log; none of them reach a client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The request cannot be told to it: 400.
    #[error("{0}")]
    BadRequest(String),
    /// It broke its protocol: 502.
    #[error("{0}")]
    Broken(String),
    /// The client's part of the exchange ended it: nobody waits for an answer.
    #[error("the client has gone")]
    ClientGone,
    /// It said that it does not take the request, of which it has done nothing (FastCGI's END_REQUEST): 503, or another
    /// server.
    #[error("{0}")]
    Refused(String),
    /// It took longer than the named limit: 504.
    #[error("over {limit:?} ({key})")]
    TimedOut {
        /// The key of the configuration.
        key: &'static str,
        /// Its value.
        limit: Duration,
    },
    /// It cannot be connected to, and not a byte of the request went out: 503, or another server.
    #[error("{0}")]
    Unreachable(String),
}

impl Fault {
    /// The status for a client of whom nothing was answered yet; `None` for one that is gone.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::BadRequest(_) => Some(400),
            Self::Broken(_) => Some(502),
            Self::ClientGone => None,
            Self::Refused(_) | Self::Unreachable(_) => Some(503),
            Self::TimedOut { .. } => Some(504),
        }
    }

    /// Whether the request can be given to another server: this one has done nothing with it.
    pub fn is_before_request(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Unreachable(_))
    }
}
