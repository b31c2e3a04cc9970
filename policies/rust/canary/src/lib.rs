//! Sends some of the clients to another target, and always the same ones.
//!
//! Who is chosen stands in [`canary`], which knows nothing of WebAssembly; what the configuration means in [`config`].
//! `guest` joins them to the gateway.

#![cfg_attr(not(target_family = "wasm"), allow(dead_code, reason = "some of it is reached by the gateway only"))]

mod canary;
mod config;

// The linker pulls these names into a module; a test program on this machine has no gateway to import from.
#[cfg(target_family = "wasm")]
mod guest;
