//! Handing an HTTP client over: the client's own socket travels to another process, with a message beside it.
//!
//! # What a daemon must know of the sockets it gets
//!
//! The client is **non-blocking** unless the target says `blocking = true`: O_NONBLOCK belongs to the open file and travels
//! with it. Close-on-exec does not travel: receive with MSG_CMSG_CLOEXEC. The request's head was read by the gateway and
//! is gone; what follows it, the body in whatever framing and pipelined requests, is unread in the socket, whole. The
//! daemon writes the response from its status line on, and says `Connection: close`, because nobody reads the next
//! request. A close with bytes unread makes the kernel send a reset that can destroy the answer
//! ([`close_gracefully`]). Writing to a client that has left raises SIGPIPE unless it is ignored or MSG_NOSIGNAL is
//! given.
//!
//! # Who owns the client
//!
//! At every moment exactly one party may write to a client. The gateway owns it until it knows that a daemon has read the
//! message; from then on the daemon does, and the gateway neither writes, nor reads, nor shuts down, and closes its copy.
//! A gateway that cannot know closes its copy and never writes. A daemon that does not want a client closes the connection
//! *without reading*: then the client goes elsewhere or is answered 503. Once it has read, the client is its own to
//! answer; so it reads when it has the means to serve, not before. Peeking (MSG_PEEK) at a message duplicates the
//! descriptor without the gateway's knowing: it is not allowed.
//!
//! # Dialects, byte by byte
//!
//! | dialect | socket | bytes | descriptors |
//! |---|---|---|---|
//! | `seqpacket` | a new SOCK_SEQPACKET connection per handoff | one packet: the data, exactly; no data is one 0x00 | 1 |
//! | `stream` | a new SOCK_STREAM connection per handoff | the same; the descriptor is on the first byte, the end is EOF | 1 |
//!
//! `auto` connects in one of them and in the other when the kernel says that the socket is of another type (EPROTOTYPE).
//! Neither side sends anything else. A packet is sent whole or not at all; what exceeds net.core.wmem_max is refused, never
//! cut. A stream is sent in one piece where it fits.
//!
//! A receiver has room for 253 descriptors, the most that can come, adopts all of them and then judges: exactly one, a
//! stream socket, nothing cut off (MSG_TRUNC, MSG_CTRUNC). Otherwise everything is closed and the peer dropped.
//!
//! # The acknowledgement
//!
//! Reading is the acknowledgement: no daemon has to do anything for it. The gateway keeps the connection and watches the
//! kernel's accounts of it.
//!
//! | what the gateway sees | `seqpacket`, or a stream of one byte | a longer `stream` |
//! |---|---|---|
//! | nothing unread | taken | taken |
//! | closed with something unread | never read: the client is the gateway's | unknown: may have been read in part |
//! | unread at the deadline | unread: the client is the gateway's, but may be read later | unknown |
//!
//! Of the unknown it is asked whether anybody has written to the client since (TCP_INFO). If not, and for what is unread
//! at the deadline, the client is *sealed*: answered and shut down at once, so that whoever reads the message later meets
//! a dead socket. If so, or if it cannot be asked because the client came over a Unix socket, it is closed, unwritten.
//!
//! # The two ends
//!
//! `send` and what belongs to it is the gateway's and needs its feature. [`Acceptor`] is a daemon's and needs nothing but
//! the system:
//!
//! ```no_run
//! use std::io::Write as _;
//!
//! use baton::handoff::{Acceptor, Dialect, Options};
//!
//! let mut acceptor = Acceptor::bind("/run/hello.sock", Dialect::Seqpacket, Options::default())?;
//! while let Some(handoff) = acceptor.accept()? {
//!     handoff.set_blocking(true)?;
//!     let mut client = handoff.into_stream();
//!     client.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 6\r\n\r\nhello\n")?;
//! }
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! Nothing in here is about HTTP, and nothing of the rest of the crate is used.

#[cfg(feature = "gateway")]
mod acknowledgement;
#[cfg(feature = "gateway")]
mod address;
mod ancillary;
#[cfg(feature = "gateway")]
mod beat;
mod client;
mod dialect;
mod environment;
#[cfg(feature = "gateway")]
mod head_bytes;
mod incoming;
mod message;
mod receive;
mod resolved;
#[cfg(feature = "gateway")]
mod seal;
#[cfg(feature = "gateway")]
mod send;

#[cfg(feature = "gateway")]
pub use address::{Address, AddressError};
pub use ancillary::{close_on_exec_beyond_stderr, written_bytes};
#[cfg(feature = "gateway")]
pub use ancillary::{defer_accept, watch};
#[cfg(feature = "gateway")]
pub use beat::Beat;
pub use client::close_gracefully;
pub use dialect::{Dialect, UnknownDialect};
pub use environment::ENVIRONMENT_NAMES;
#[cfg(feature = "gateway")]
pub use head_bytes::HeadBytes;
pub use incoming::ReceiveError;
pub use message::Message;
pub use receive::{Acceptor, Handoff, Options, Stop};
#[cfg(feature = "gateway")]
pub use seal::{Sealed, Unread};
#[cfg(feature = "gateway")]
pub use send::{Daemon, Deadlines, Refusal, SendError, Stage, Taken, send};
