//! Bounds how often one client may ask, with a token bucket for each in the gateway's store: all workers and all
//! generations of the policy count together.
//!
//! Who a client is stands in [`client`]; what the configuration means in [`config`]. `guest` joins them to the gateway.

#![cfg_attr(not(target_family = "wasm"), allow(dead_code, reason = "some of it is reached by the gateway only"))]

mod client;
mod config;

// The linker pulls these names into a module; a test program on this machine has no gateway to import from.
#[cfg(target_family = "wasm")]
mod guest;
