//! The native protocol, `baton/1`: packets over a channel that stays. All of it is bytes and states; descriptors and
//! sockets are elsewhere.

pub mod frame;
pub mod header;
#[cfg(feature = "gateway")]
pub mod ledger;
pub mod sections;
mod words;
