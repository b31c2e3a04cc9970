//! Handing an HTTP client over: the client's own socket travels to another process, with a message beside it.
//!
//! # What a daemon must know of the sockets it gets
//!
//! The client is **non-blocking** unless the target says `blocking = true`: O_NONBLOCK belongs to the open file and travels
//! with it. Close-on-exec does not travel: receive with MSG_CMSG_CLOEXEC. The request's head was read by the gateway and
//! is gone; what follows it, the body in whatever framing and pipelined requests, is unread in the socket, whole. The
//! daemon writes the response from its status line on, and says `Connection: close`, because nobody reads the next
//! request; where the gateway has written the head ([below](#the-responses-head)) it writes the body alone. A close with
//! bytes unread makes the kernel send a reset that can destroy the answer ([`close_gracefully`]). Writing to a client that
//! has left raises SIGPIPE unless it is ignored or MSG_NOSIGNAL is given.
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
//! | dialect | socket | bytes | descriptors | the response's head |
//! |---|---|---|---|---|
//! | `seqpacket` | a new SOCK_SEQPACKET connection per handoff | one packet: the data, exactly; no data is one 0x00 | 1 | the daemon's |
//! | `stream` | a new SOCK_STREAM connection per handoff | the same; the descriptor is on the first byte, the end is EOF | 1 | the daemon's |
//! | `fdpass` | a new SOCK_STREAM connection per handoff | one 0x00, nothing else, no end is waited for | 1 | the gateway's, always |
//! | `datagram` | the daemon's one SOCK_DGRAM socket | one datagram: what was read from the client, which is the request's head, exactly; never empty when it is sent | 1 | the daemon's |
//!
//! The fifth one, `baton`, is [below](#the-native-protocol).
//!
//! `auto` connects in one of the first two and in the other when the kernel says that the socket is of another type
//! (EPROTOTYPE). Neither side sends anything else. A packet or datagram is sent whole or not at all; what exceeds
//! net.core.wmem_max is refused, never cut. A stream is sent in one piece where it fits.
//!
//! A receiver has room for 253 descriptors, the most that can come, adopts all of them and then judges: exactly one, a
//! stream socket, nothing cut off (MSG_TRUNC, MSG_CTRUNC), and in `fdpass` that there is no data, because whoever sent some
//! expects the head of its daemon. Otherwise everything is closed and the peer dropped. Who connects is asked with
//! SO_PEERCRED; who sends a datagram is told by SCM_CREDENTIALS, if the receiver asked for them (SO_PASSCRED) before it was
//! sent. The sender can ask for nobody's name behind a datagram socket, so it cannot be told whose to trust.
//!
//! # The response's head
//!
//! In `fdpass`, and in any other dialect where that is asked for, the gateway writes the response's head: once a daemon is
//! connected and before the descriptor goes, so that a daemon that is absent still costs the client nothing but a 503. It
//! ends with `Connection: close` and announces neither a length nor chunks: the body is what comes until the end. Nothing in
//! a message tells a daemon of it but the dialect `fdpass` itself; whoever asks for it in another one has daemons there that
//! know.
//!
//! It is written once, whichever daemon takes the client in the end. From its first byte on the client cannot be answered:
//! where no daemon takes it, or none has read the message by the deadline, it is reset, because a clean end would make an
//! empty body look whole. Also a gateway that is killed in between resets it. A client over a Unix socket knows no reset:
//! it sees the end. A client that waits for `100 Continue` has its final answer with this head and may keep its body: a
//! daemon that wants bodies is better given the head to write.
//!
//! # Bodies
//!
//! The gateway takes nothing of a body before a handoff: a policy that looks at its beginning is shown what is in the
//! socket, and leaves it there. So no dialect needs a word for it, whatever the framing, and a daemon reads from the
//! first byte behind the head. One thing it must know: where a policy has looked at the body of a client that waits for
//! `100 Continue`, the gateway has sent that, once; a daemon that sends it again does no harm (RFC 9110 §15.2), and one
//! that does not misses nothing.
//!
//! Where a gateway has to read a body itself (TLS in user space, HTTP/2, an application that consumed it), what it has
//! read must travel with the descriptor, or nobody is handed over:
//!
//! | dialect | place for bytes that were read |
//! |---|---|
//! | `datagram` | behind the head, in the one datagram: its message is what was read, up to the size of a datagram |
//! | `seqpacket`, `stream` | none: the message is the data, or the head, and its reader takes the rest from the socket. 413 |
//! | `fdpass` | none. 413 |
//!
//! # The acknowledgement
//!
//! Reading is the acknowledgement: no daemon has to do anything for it. The gateway keeps its socket and watches the
//! kernel's accounts of it.
//!
//! | what the gateway sees | `seqpacket`, or a stream of one byte (`fdpass`) | a longer `stream` | `datagram` |
//! |---|---|---|---|
//! | nothing unread | taken | taken | taken, if the receiver's socket still is there afterwards; else unknown |
//! | closed with something unread | never read: the client is the gateway's | unknown: may have been read in part | is not seen: the queue is destroyed, which looks read |
//! | unread at the deadline | unread: the client is the gateway's, but may be read later | unknown | unread, likewise |
//!
//! Of the unknown it is asked whether anybody has written to the client since (TCP_INFO). If not, and for what is unread
//! at the deadline, the client is *sealed*: answered and shut down at once (behind a head: reset), so that whoever reads the
//! message later meets a dead socket. If so, or if it cannot be asked because the client came over a Unix socket, it is
//! closed, unwritten. A daemon of datagrams that ends right after it has read one, with its client in other hands, may so
//! find that client answered: it keeps its socket for a moment, or writes first.
//!
//! # The native protocol
//!
//! `baton/1`, in [`native`] to the byte; `examples/PROTOCOL.md` is the same for whoever writes a daemon in another language,
//! with the metadata member by member. A daemon listens on SOCK_SEQPACKET. Each worker of a gateway opens one connection, the
//! *channel*, when it has somebody to hand over, and keeps it. A *packet* holds one or more *frames*, each a header of 16
//! bytes (magic 0xB7, version 1, type, flags, u32 length of the payload, u64 id of the handoff; little-endian) and its
//! payload, and is at most 128 KiB long. Descriptors belong to the frames of their packet in order.
//!
//! | type | from | payload | descriptors |
//! |---|---|---|---|
//! | 1 HELLO | both, first | JSON: `versions`, `in_flight_max`; `data_bytes_max`, `name`, `pid`, `roles` | 0 |
//! | 2 HANDOFF | gateway | three sections (u32 length, bytes): JSON metadata, data, preread. Flags: body 0x01, data 0x02, preread 0x04 is in a memfd | the client, then the memfds in that order |
//! | 3 TAKEN | daemon | | 0 |
//! | 4 REFUSED | daemon | JSON: `reason`; `retry_after_s`, `message` | 0 |
//! | 5 DONE | daemon | JSON: `result`, `bytes_out`, `duration_us`; `status`, `message` | 0 |
//! | 6 RETURN | daemon | two sections: as DONE; what was read and not used | the client |
//! | 7 LOAD | daemon | JSON: `in_flight`, `load` | 0 |
//! | 8 DRAINING | daemon | | 0 |
//! | 9 REVOKE | gateway | JSON: `reason` | 0 |
//! | 10 PING, 11 PONG | both | any bytes, echoed | 0 |
//!
//! Types that are not known end the channel, unless flag 0x80 is set: then they are ignored. Of everything else that
//! cannot be, a wrong length, an id that is not under way, a descriptor where none belongs, the channel ends; whoever was
//! taken goes on, and no other channel notices.
//!
//! HANDOFF *lends*; TAKEN *gives*; REFUSED gives back untouched; DONE ends; RETURN gives back after use. A daemon touches a
//! client only after it has sent TAKEN; if that cannot be sent, it closes its copy. So a gateway that has read a channel to
//! its end knows who was never taken:
//!
//! | what the gateway sees | the client |
//! |---|---|
//! | REFUSED | is its own: the next daemon, else 503 |
//! | the channel's end without a word of it, and the process that said HELLO is gone | the same |
//! | the channel's end without a word of it, and that process lives | is sealed: answered 503 and shut down, if nobody has written to it; else closed |
//! | no word by the deadline (`ack_timeout`) | is sealed; its credit is free when the daemon speaks of it |
//! | DONE or RETURN of one that was not taken | may have been written to: it is the daemon's, and the channel ends |
//! | TAKEN, then the channel's end | is the daemon's; what is known of it is logged |
//!
//! `in_flight_max` bounds what was handed over on a channel and not yet refused, done or returned. After DRAINING nobody
//! new is sent; those in flight finish. A RETURN brings back the very socket (SO_COOKIE), never one whose response's head
//! the gateway wrote. A daemon that says nothing for 5 s is sent a PING, and is passed over from the next 5 s on until it
//! speaks. PINGs are answered at once.
//!
//! # The two ends
//!
//! `send` and what belongs to it is the gateway's and needs its feature. [`Acceptor`] is a daemon's and needs nothing but
//! the system:
//!
//! ```no_run
//! use baton::handoff::{Acceptor, Dialect, End, Options};
//!
//! let mut acceptor = Acceptor::bind("/run/hello.sock", Dialect::Baton, Options::default())?;
//! while let Some(mut handoff) = acceptor.accept()? {
//!     let end = match handoff.respond_keep_alive(200, &[("Content-Type", "text/plain")], b"hello\n") {
//!         Ok(()) => End::ok(),
//!         Err(error) => End::from(&error),
//!     };
//!     handoff.give_back(end);
//! }
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! Nothing in here but a daemon's body reader and response writer is about HTTP, and nothing of the rest of the crate is used.

#[cfg(feature = "gateway")]
mod acknowledgement;
#[cfg(feature = "gateway")]
mod address;
mod ancillary;
#[cfg(feature = "gateway")]
mod beat;
#[cfg(feature = "gateway")]
pub mod channel;
mod client;
mod dialect;
#[cfg(feature = "gateway")]
mod error;
#[cfg(feature = "gateway")]
mod head_bytes;
mod message;
pub mod native;
mod receive;
mod resolved;
#[cfg(feature = "gateway")]
mod seal;
#[cfg(feature = "gateway")]
mod send;

#[cfg(feature = "gateway")]
pub use address::{Address, AddressError};
#[cfg(feature = "gateway")]
pub use ancillary::{Share, defer_accept, ignore_newcomers, set_share, watch};
pub use ancillary::{close_on_exec_beyond_stderr, progress, written_bytes};
#[cfg(feature = "gateway")]
pub use beat::Beat;
pub use client::close_gracefully;
pub use dialect::{Dialect, UnknownDialect};
#[cfg(feature = "gateway")]
pub use error::{Refusal, SendError, Stage};
#[cfg(feature = "gateway")]
pub use head_bytes::HeadBytes;
pub use message::Message;
pub use native::frame::{Outcome, Reason};
pub use receive::{
    Acceptor, Body, ClientError, Close, ENVIRONMENT_NAMES, End, Handoff, Left, Listener, Load, Options, ReceiveError,
    Stop,
};
#[cfg(feature = "gateway")]
pub use seal::{Sealed, Unread};
#[cfg(feature = "gateway")]
pub use send::{Daemon, Deadlines, Taken, send};
