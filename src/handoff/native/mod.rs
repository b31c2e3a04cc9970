//! The native protocol, `baton/1`: packets over a channel that stays.

pub mod frame;
pub mod header;
pub mod sections;
