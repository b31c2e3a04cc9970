//! What the gateway offers to policies: one file for each interface of `wit/policy.wit`.
//!
//! A [`Call`] is what stands behind the getters during one hook. Outside of a hook there is none, and they trap.

mod callout;
mod clock;
mod config;
mod log;
mod metrics;
mod random;
mod request;
mod response;
mod store;
mod targets;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use self::log::LineLimit;
use super::bindings::types;
use super::body::BodyPort;
use super::epoch::Deadline;
use super::services::Services;
use super::shared::{Registry, Shared};
use super::{Options, Secret, UpstreamHead};
use crate::request::Request;

/// What all instances of one generation have in common.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) policy: Arc<str>,
    pub(super) generation: u64,
    config: HashMap<String, String>,
    secrets: BTreeMap<String, Secret>,
    upstreams: Vec<String>,
    known_targets: Option<Vec<String>>,
    metric_series_max: usize,
    store_bytes_max: usize,
    callouts_max: u32,
    callout_bytes_max: usize,
    lines: LineLimit,
    registry: Arc<Registry>,
    /// With the policy's other generations.
    shared: Arc<Shared>,
    /// What a module that is being proved has instead: it must not be seen by requests.
    scratch: Shared,
    is_configured: AtomicBool,
    /// The targets that it may name, `None` for any; set when it is proved.
    targets: OnceLock<Option<Vec<String>>>,
}

impl Identity {
    pub(super) fn new(registry: &Arc<Registry>, options: &Options, generation: u64) -> Self {
        Self {
            policy: Arc::clone(&options.name),
            generation,
            config: config::entries(&options.config),
            secrets: options.secrets.clone(),
            upstreams: options.upstreams.clone(),
            known_targets: options.known_targets.clone(),
            metric_series_max: options.metric_series_max,
            store_bytes_max: options.store_bytes_max,
            callouts_max: options.callouts_max,
            callout_bytes_max: options.callout_bytes_max,
            lines: LineLimit::new(options.log_lines_per_second_max),
            registry: Arc::clone(registry),
            shared: registry.of(&options.name),
            scratch: Shared::default(),
            is_configured: AtomicBool::new(false),
            targets: OnceLock::new(),
        }
    }

    /// What is made from here on starts configured, and may see secrets.
    pub(super) fn set_configured(&self) {
        self.is_configured.store(true, Ordering::Relaxed);
    }

    /// The module is proved: from here on it is asked about requests, and may name these targets.
    pub(super) fn put_in_force(&self, targets: Option<Vec<String>>) {
        self.scratch.store.clear();
        // Nobody does it twice.
        drop(self.targets.set(targets));
    }

    fn is_configured(&self) -> bool {
        self.is_configured.load(Ordering::Relaxed)
    }

    fn is_in_force(&self) -> bool {
        self.targets.get().is_some()
    }

    fn may_name(&self, target: &str) -> bool {
        let is_named = |names: &Option<Vec<String>>| {
            names.as_ref().is_none_or(|names| names.iter().any(|name| super::is_target_or_member(target, name)))
        };
        self.targets.get().is_none_or(is_named)
    }

    fn shared(&self) -> &Shared {
        if self.is_in_force() { &self.shared } else { &self.scratch }
    }

    fn registry(&self) -> &Registry {
        &self.registry
    }

    fn services(&self) -> Option<Arc<Services>> {
        self.registry.services()
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
    /// Whether anything but `request`, `config`, `clock` and `random` was called: then the call cannot be made a second
    /// time.
    pub(super) spoke: bool,
    /// Callouts of the call that is running.
    pub(super) callouts: u32,
}

impl Imports {
    fn call(&self, getter: &'static str) -> wasmtime::Result<&Call> {
        self.call.as_ref().ok_or_else(|| wasmtime::format_err!("request.{getter} was called outside of a hook"))
    }
}

impl types::Host for Imports {}
