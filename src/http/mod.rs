//! HTTP/1.x as bytes: heads in, framing of bodies, answers out (RFC 9110, RFC 9112).
//!
//! Everything here is pure and bounded: no sockets, no clock. Whoever holds a client's socket decides how many of the
//! bytes that these functions looked at are taken from it.

pub mod body;
mod error;
pub mod fields;
pub mod forward;
pub mod forwarded;
pub mod head;
pub mod mount;
#[cfg(any(test, fuzzing))]
pub mod naive;
pub mod path;
pub mod response;
pub mod target;
