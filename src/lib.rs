//! Baton (being written).
#![deny(unsafe_code)]
#[cfg(feature = "gateway")]
pub mod decision;
pub mod handoff;
#[cfg(feature = "gateway")]
pub mod http;
#[cfg(feature = "gateway")]
pub mod policy;
#[cfg(feature = "gateway")]
pub mod request;
