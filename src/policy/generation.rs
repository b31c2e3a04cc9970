//! One proven module in force, and its warm instances.

use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::breaker::{Breaker, BreakerState};
use super::error::{LoadError, Stage};
use super::host::{Engine, Instance};
use super::imports::Identity;
use super::prove::{self, Proven};
use super::status::Tally;
use super::{OnError, Options};

/// Idle instances that a worker keeps of each policy. One is enough while nobody waits for a body; beyond this, memory
/// would be held for a peak that is over.
const IDLE_COUNT_MAX: usize = 4;

/// A policy that ticks more often than this would do nothing else.
const TICK_MS_MIN: u32 = 10;

/// A proven, loaded module. A request keeps the generation that it began with; the last user frees it.
#[derive(Debug)]
pub struct Generation {
    pub(super) proven: Proven,
    identity: Arc<Identity>,
    pub(super) options: Options,
    pub(super) tally: Arc<Tally>,
    /// Of the hooks that decide.
    pub(super) breaker: Breaker,
    /// Of `on-complete`: one that fails there is not worth denying requests for.
    pub(super) complete_breaker: Breaker,
    /// Calls of `on-complete` that wait or run.
    pub(super) completions: AtomicUsize,
    /// How many of them were left out since it was last said.
    pub(super) left_out: AtomicU64,
    reuse_max: u32,
    targets: Option<Vec<String>>,
    digest: Digest,
    file: Arc<[u8]>,
    loaded_at: SystemTime,
    /// By worker.
    idle: Vec<Mutex<Vec<Instance>>>,
}

/// SHA-256 of a module's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest([u8; 32]);

impl Digest {
    pub(super) fn of(file: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(file).into())
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Generation {
    /// Proves `file` as generation `number` of the policy that `options` describe.
    pub(super) fn prove(
        engine: &Engine,
        options: &Options,
        number: u64,
        file: Arc<[u8]>,
        tally: &Arc<Tally>,
    ) -> Result<Self, LoadError> {
        let identity = Arc::new(Identity::new(engine.registry(), options, number));
        let proven = prove::prove(engine, options, &identity, tally, &file)?;
        let mut reuse_max = options.reuse_max;
        let mut targets = options.targets.clone();
        let mut upstreams = options.upstreams.clone();
        if let Some(requirements) = &proven.requirements {
            reuse_max = reuse_max.min(requirements.max_reuse);
            let is_upstream = |name: &String| options.upstreams.contains(name);
            let is_target = |name: &String| options.known_targets.as_ref().is_some_and(|known| known.contains(name));
            let (called, mut named) = requirements.targets.iter().cloned().partition::<Vec<_>, _>(is_upstream);
            named.extend(called.iter().filter(|name| is_target(name)).cloned());
            targets = narrow(targets, options.known_targets.as_deref(), &named)?;
            if !called.is_empty() {
                upstreams = called;
            }
        }
        if let Some(ms) = proven.tick_ms()
            && ms < TICK_MS_MIN
        {
            let reason = format!("requires a tick every {ms} ms; {TICK_MS_MIN} ms is the shortest interval");
            return Err(LoadError::new(Stage::Configure, reason));
        }
        identity.put_in_force(targets.clone(), upstreams);
        let idle = (0..engine.workers()).map(|_| Mutex::default()).collect();
        Ok(Self {
            proven,
            identity,
            options: options.clone(),
            tally: Arc::clone(tally),
            breaker: Breaker::new(options.breaker),
            complete_breaker: Breaker::new(options.breaker),
            completions: AtomicUsize::new(0),
            left_out: AtomicU64::new(0),
            reuse_max,
            targets,
            digest: Digest::of(&file),
            file,
            loaded_at: SystemTime::now(),
            idle,
        })
    }

    /// Counts the modules that were in force under this policy's name, from 1.
    pub fn number(&self) -> u64 {
        self.identity.generation
    }

    /// The policy's name in the configuration.
    pub fn policy(&self) -> &Arc<str> {
        &self.identity.policy
    }

    /// What decides when it fails.
    pub fn on_error(&self) -> OnError {
        self.options.on_error
    }

    /// Of the file that it was made from.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// When it was proven.
    pub fn loaded_at(&self) -> SystemTime {
        self.loaded_at
    }

    /// What it was made from.
    pub(super) fn file(&self) -> &Arc<[u8]> {
        &self.file
    }

    /// Interfaces that it imports.
    pub fn imports(&self) -> &[String] {
        &self.proven.imports
    }

    /// Whether it is asked, where it decides.
    pub fn breaker(&self) -> BreakerState {
        self.breaker.state()
    }

    /// Whether it is told how requests ended.
    pub fn completes(&self) -> bool {
        self.proven.template.exports().on_complete.is_some()
    }

    /// Whether it is asked when no daemon took a client.
    pub fn hears_of_failures(&self) -> bool {
        self.proven.template.exports().on_handoff_failed.is_some()
    }

    /// Whether it is asked about the answers of upstreams.
    pub fn sees_responses(&self) -> bool {
        self.proven.template.exports().on_response.is_some()
    }

    /// How often its `on-tick` is called.
    pub(super) fn tick_interval(&self) -> Option<Duration> {
        let ms = self.proven.tick_ms()?;
        self.proven.template.exports().on_tick.map(|_| Duration::from_millis(ms.into()))
    }

    /// Names of all hooks that it exports, as in `wit/policy.wit`.
    pub fn hooks(&self) -> &[&'static str] {
        &self.proven.hooks
    }

    /// Whether it may wait, for the beginning of a body or for a callout. If not, no
    /// [`BodyPort::open`](super::BodyPort::open) is needed.
    pub fn reads_body(&self) -> bool {
        self.proven.template.suspends()
    }

    /// Whether it may name that target or socket path: by the configuration, and by what the module itself asked for.
    pub fn may_name(&self, target: &str) -> bool {
        self.targets.as_ref().is_none_or(|names| names.iter().any(|name| super::is_target_or_member(target, name)))
    }

    /// Whether it may let that upstream answer: where the configuration says what its callouts may reach, that alone.
    pub fn may_proxy_to(&self, upstream: &str) -> bool {
        self.options.upstreams.is_empty() || self.options.upstreams.iter().any(|name| name == upstream)
    }

    /// Whether all targets that it requires are among those of a configuration.
    pub(super) fn fits(&self, known: Option<&[String]>) -> bool {
        // What is allowed by name was judged by the configuration itself.
        let mut required = self.targets.iter().flatten().filter(|_| self.options.targets.is_none());
        known.is_none_or(|known| required.all(|name| known.contains(name)))
    }

    pub(super) fn take_idle(&self, worker: usize) -> Option<Instance> {
        self.pool(worker).lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    pub(super) fn keep(&self, worker: usize, instance: Instance) {
        if instance.calls() >= self.reuse_max {
            return;
        }
        let mut idle = self.pool(worker).lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_COUNT_MAX {
            idle.push(instance);
        }
    }

    fn pool(&self, worker: usize) -> &Mutex<Vec<Instance>> {
        &self.idle[worker % self.idle.len()]
    }
}

/// What a module asked for can only narrow what the configuration allows; nothing asked for is no narrowing.
pub(super) fn narrow(
    allowed: Option<Vec<String>>,
    known: Option<&[String]>,
    wanted: &[String],
) -> Result<Option<Vec<String>>, LoadError> {
    if wanted.is_empty() {
        return Ok(allowed);
    }
    let judge = allowed.as_deref().or(known);
    if let Some(unknown) = wanted.iter().find(|name| judge.is_some_and(|names| !names.contains(name))) {
        let reason = format!("requires target {unknown}, which the configuration does not have or does not allow it");
        return Err(LoadError::new(Stage::Configure, reason));
    }
    Ok(Some(wanted.to_vec()))
}

#[cfg(test)]
mod tests;
