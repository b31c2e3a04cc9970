//! Hands a client over when its URL carries a valid signature that has not expired, and answers 403 when it does not.
//!
//! What is decided stands in [`signature`], which knows nothing of WebAssembly; what the configuration means in
//! [`config`]. `guest` joins them to the gateway.

#![cfg_attr(not(target_family = "wasm"), allow(dead_code, reason = "some of it is reached by the gateway only"))]

mod config;
mod signature;

// The linker pulls these names into a module; a test program on this machine has no gateway to import from.
#[cfg(target_family = "wasm")]
mod guest;
