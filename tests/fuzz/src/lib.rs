//! The pure modules of Baton, compiled in by path, and what must hold of them for any input.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes_without_reason,
    reason = "each target takes what it needs"
)]

#[path = "../../../src/decision.rs"]
pub mod decision;
#[path = "../../../src/http/mod.rs"]
pub mod http;
#[path = "../../../src/handoff/message.rs"]
pub mod message;
#[path = "../../../src/respond.rs"]
pub mod respond;

pub mod config;
pub mod fastcgi;
pub mod native;
