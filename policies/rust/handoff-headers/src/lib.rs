//! Hands a client over when the application that answered says so: what mod_socket_handoff does, as a policy about answers.
//!
//! What an answer asks for, and whether it may, stands in [`answer`], which knows nothing of WebAssembly; what the
//! configuration means in [`config`]. `guest` joins them to the gateway.

#![cfg_attr(not(target_family = "wasm"), allow(dead_code, reason = "some of it is reached by the gateway only"))]

mod answer;
mod config;

// The linker pulls these names into a module; a test program on this machine has no gateway to import from.
#[cfg(target_family = "wasm")]
mod guest;
