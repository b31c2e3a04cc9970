//! The daemon's end: listen, adopt, hand out clients one by one, and say what became of them.

mod acceptor;
mod body;
mod channel;
mod chunked;
mod ending;
mod engine;
mod environment;
mod error;
mod handoff;
pub(super) mod incoming;
mod inherited;
mod listener;
mod offer;
mod options;
mod peer;
mod request;
mod response;
mod shared;
mod socket_file;

use std::time::Instant;

use nix::poll::PollTimeout;

pub use acceptor::Acceptor;
pub use body::Body;
pub use ending::{Close, End};
pub use environment::ENVIRONMENT_NAMES;
pub use error::ClientError;
pub use handoff::{Handoff, Left};
pub use incoming::ReceiveError;
pub use listener::Listener;
pub use options::Options;
pub use shared::{Load, Stop};

/// The time left in milliseconds, rounded up so that nobody wakes just before it; -1 without an end.
fn timeout_ms(deadline: Option<Instant>) -> i32 {
    deadline.map_or(-1, |deadline| {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { 0 } else { i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX) }
    })
}

/// The same for poll(2).
fn timeout(deadline: Option<Instant>) -> PollTimeout {
    PollTimeout::try_from(timeout_ms(deadline)).unwrap_or(PollTimeout::NONE)
}
