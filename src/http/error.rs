//! Why a head is refused, and what the client is told.

use super::path::PathError;

/// Why a head is refused. `status` says what the client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeadError {
    /// A carriage return without line feed, or the reverse (RFC 9112 §2.2).
    #[error("a bare carriage return or line feed")]
    BareLineBreak,
    /// CONNECT asks for a tunnel, which this server is not (RFC 9110 §9.3.6).
    #[error("method CONNECT")]
    Connect,
    /// A Connection option that is no token, or names a field for every recipient (RFC 9110 §7.6.1).
    #[error("a faulty Connection option")]
    Connection,
    /// A field whose name some programs take for one that delimits the body.
    #[error("{0} in disguise")]
    Disguised(&'static str),
    /// A field line that is none: white space before the colon, folding, a character that may not stand there.
    #[error("a malformed field line")]
    Field,
    /// Several Host fields, one that is no host or another than the target's, or none in HTTP/1.1 (RFC 9112 §3.2).
    #[error("{0} Host")]
    Host(HostFault),
    /// Content-Length is no number of at most 63 bits, a list, or said twice (RFC 9112 §6.3).
    #[error("invalid Content-Length")]
    Length,
    /// Content-Length beside Transfer-Encoding (RFC 9112 §6.1).
    #[error("Content-Length with Transfer-Encoding")]
    LengthAndCoding,
    /// The path has no single meaning.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A field that can be said once only (RFC 9110 §5.3).
    #[error("more than one {0}")]
    Repeated(&'static str),
    /// The request line is none.
    #[error("a malformed request line")]
    RequestLine,
    /// A request target in a form that its method does not have (RFC 9112 §3.2).
    #[error("a malformed request target")]
    Target,
    /// The request line alone is longer than a head may be.
    #[error("a request line of over {0} bytes")]
    TargetTooLong(usize),
    /// More bytes than `head_bytes_max`.
    #[error("a head of over {0} bytes (head_bytes_max)")]
    TooLarge(usize),
    /// More fields than `headers_max`.
    #[error("over {0} fields (headers_max)")]
    TooManyFields(usize),
    /// Transfer-Encoding that does not end in one `chunked`, or in HTTP/1.0 (RFC 9112 §6.1).
    #[error("faulty Transfer-Encoding")]
    TransferEncoding,
    /// A transfer coding other than chunked (RFC 9112 §6.1).
    #[error("unknown transfer coding")]
    UnknownCoding,
    /// An expectation other than 100-continue (RFC 9110 §10.1.1).
    #[error("unknown expectation")]
    UnknownExpectation,
    /// A body where a change of protocol is asked for, or on TRACE.
    #[error("{0} with a body")]
    UnwantedBody(&'static str),
    /// A version that is not 1.0 or 1.1.
    #[error("not HTTP/1.0 or HTTP/1.1")]
    Version,
}

/// What is wrong with Host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostFault {
    /// It is not the host of an absolute-form target.
    Conflicting,
    /// It is no `host[:port]`.
    Invalid,
    /// HTTP/1.1 without it.
    Missing,
    /// Said more than once.
    Repeated,
}

impl std::fmt::Display for HostFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Conflicting => "conflicting",
            Self::Invalid => "invalid",
            Self::Missing => "no",
            Self::Repeated => "more than one",
        })
    }
}

impl HeadError {
    /// The status that the client is answered with, after which the connection is closed.
    pub fn status(self) -> u16 {
        match self {
            Self::Connect | Self::UnknownCoding => 501,
            Self::TargetTooLong(_) => 414,
            Self::TooLarge(_) | Self::TooManyFields(_) => 431,
            Self::UnknownExpectation => 417,
            Self::Version => 505,
            _ => 400,
        }
    }
}
