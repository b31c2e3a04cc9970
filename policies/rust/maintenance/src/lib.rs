//! Answers 503 with a page while something is mended, to everybody but those who mend it.
//!
//! What is decided stands in [`maintenance`], which knows nothing of WebAssembly; what the configuration means in
//! [`config`]. `guest` joins them to the gateway.

#![cfg_attr(not(target_family = "wasm"), allow(dead_code, reason = "some of it is reached by the gateway only"))]

mod config;
mod maintenance;

// The linker pulls these names into a module; a test program on this machine has no gateway to import from.
#[cfg(target_family = "wasm")]
mod guest;
