//! Hands a client over when it carries a known bearer token (RFC 6750), and answers 401 when it does not.
//!
//! What is decided stands in [`bearer`], which knows nothing of WebAssembly; what the configuration means in
//! [`config`]. This file joins them to the gateway: it reads the request, and turns the answer into a decision.

mod bearer;
mod config;

// The linker pulls these names into a module; a test program on this machine has no gateway to import from.
#[cfg(target_family = "wasm")]
mod guest;
