//! What the gateway offers to policies: one file for each interface of `wit/policy.wit`.
//!
//! A [`Call`] is what stands behind the getters during one hook. Outside of a hook there is none, and they trap.

mod config;
mod log;
mod request;
mod response;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use self::log::LineLimit;
use super::bindings::types;
use super::body::BodyPort;
use super::epoch::Deadline;
use super::{Options, UpstreamHead};
use crate::request::Request;

/// What all instances of one generation have in common.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) policy: Arc<str>,
    pub(super) generation: u64,
    config: HashMap<String, String>,
    lines: LineLimit,
}

impl Identity {
    pub(super) fn new(options: &Options, generation: u64) -> Self {
        Self {
            policy: Arc::clone(&options.name),
            generation,
            config: config::entries(&options.config),
            lines: LineLimit::new(options.log_lines_per_second_max),
        }
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        self.lines.say_left_out(&self.policy, self.generation, Instant::now(), log::Window::Ended);
    }
}

/// The request that a hook is asked about.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) request: Arc<Request>,
    pub(super) body: BodyPort,
    /// During `on-response` only.
    pub(super) response: Option<Arc<UpstreamHead>>,
}

/// What the imports see of the store that they are called from.
#[derive(Debug)]
pub(super) struct Imports {
    pub(super) identity: Arc<Identity>,
    /// During a hook only.
    pub(super) call: Option<Call>,
    /// Of the call that is running.
    pub(super) deadline: Deadline,
    /// Whether anything but `request` and `config` was called: then the call cannot be made a second time.
    pub(super) spoke: bool,
}

impl Imports {
    fn call(&self, getter: &'static str) -> wasmtime::Result<&Call> {
        self.call.as_ref().ok_or_else(|| wasmtime::format_err!("request.{getter} was called outside of a hook"))
    }
}

impl types::Host for Imports {}
