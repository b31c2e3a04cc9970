//! The daemon's end: listen, adopt, acknowledge by reading, hand out clients one by one.

mod acceptor;
mod environment;
mod handoff;
pub(super) mod incoming;
mod options;
mod socket_file;

pub use acceptor::{Acceptor, Stop};
pub use environment::ENVIRONMENT_NAMES;
pub use handoff::Handoff;
pub use incoming::ReceiveError;
pub use options::Options;
