//! The native protocol, `baton/1`: packets over a channel that stays.

pub mod header;
pub mod packet;
pub mod sections;
