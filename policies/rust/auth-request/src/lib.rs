//! Asks an HTTP service whether a request may pass, as nginx's auth_request does.
//!
//! What is asked and what the answer means stands in [`verdict`], which knows nothing of WebAssembly; what the
//! configuration means in [`config`]. `guest` joins them to the gateway.

#![cfg_attr(not(target_family = "wasm"), allow(dead_code, reason = "some of it is reached by the gateway only"))]

mod config;
mod verdict;

// The linker pulls these names into a module; a test program on this machine has no gateway to import from.
#[cfg(target_family = "wasm")]
mod guest;
