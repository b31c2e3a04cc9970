//! `fdpass`: one SOCK_STREAM connection per handoff, and on it one 0x00 byte with the client. It has no place for data.
//!
//! The gateway writes the response's head before the descriptor goes ([`HeadBytes`](super::super::HeadBytes)), the daemon
//! writes the body, and the end of the connection ends it. The first byte is the message: nobody waits for an end, because
//! senders of this dialect keep their end open for a while. So it is received like a packet.

/// The bytes of every message. Others are another dialect's, whose daemon was to write the head.
pub(in super::super) const MESSAGE: &[u8] = &[0x00];
