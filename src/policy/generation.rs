//! One proven module in force, and its warm instances.

use std::future::Future as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::SystemTime;

use super::body::BodyPort;
use super::error::{LoadError, PolicyError, Stage};
use super::host::{Engine, Instance};
use super::imports::{Call, Identity};
use super::prove::{self, Proven};
use super::{OnError, Options, bindings};
use crate::decision::Decision;
use crate::request::Request;

/// Idle instances that a worker keeps of each policy. One is enough while nobody waits for a body; beyond this, memory
/// would be held for a peak that is over.
const IDLE_COUNT_MAX: usize = 4;

/// A proven, loaded module. A request keeps the generation that it began with; the last user frees it.
#[derive(Debug)]
pub struct Generation {
    proven: Proven,
    identity: Arc<Identity>,
    options: Options,
    reuse_max: u32,
    targets: Option<Vec<String>>,
    digest: Digest,
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
    pub(super) fn prove(engine: &Engine, options: &Options, number: u64, file: &[u8]) -> Result<Self, LoadError> {
        let identity = Arc::new(Identity::new(engine.registry(), options, number));
        let proven = prove::prove(engine, options, &identity, file)?;
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
        identity.put_in_force(targets.clone(), upstreams);
        let uncalled = prove::uncalled(&proven);
        if !uncalled.is_empty() {
            tracing::info!(
                policy = &*options.name,
                generation = number,
                "exports hooks that this version of the gateway does not call: {}",
                uncalled.join(", ")
            );
        }
        let idle = (0..engine.workers()).map(|_| Mutex::default()).collect();
        let (digest, loaded_at) = (Digest::of(file), SystemTime::now());
        Ok(Self { proven, identity, options: options.clone(), reuse_max, targets, digest, loaded_at, idle })
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

    /// Names of all hooks that it exports, as in `wit/policy.wit`; not all are called by this version.
    pub fn hooks(&self) -> &[&'static str] {
        &self.proven.hooks
    }

    /// Whether it may wait, for the beginning of a body or for a callout. If not, no [`BodyPort::open`] is needed.
    pub fn reads_body(&self) -> bool {
        self.proven.template.suspends()
    }

    /// Whether it may name that target or socket path: by the configuration, and by what the module itself asked for.
    pub fn may_name(&self, target: &str) -> bool {
        self.targets.as_ref().is_none_or(|names| names.iter().any(|name| super::is_target_or_member(target, name)))
    }

    /// Whether all targets that it requires are among those of a configuration.
    pub(super) fn fits(&self, known: Option<&[String]>) -> bool {
        // What is allowed by name was judged by the configuration itself.
        let mut required = self.targets.iter().flatten().filter(|_| self.options.targets.is_none());
        known.is_none_or(|known| required.all(|name| known.contains(name)))
    }

    /// Asks it about a request. Guest code runs on the calling thread and is ended at the deadline; `worker` says whose
    /// warm instances to use, `0..workers` of [`Engine::new`]. What the guest asks of the body arrives at the other end
    /// of `body`, and must be served while this future is polled.
    ///
    /// # Errors
    /// The instance that failed is gone, and nothing else is changed; [`Generation::on_error`] decides.
    ///
    /// # Cancel safety
    /// Dropping it ends the guest where it is, and its instance with it.
    pub async fn on_request(
        &self,
        worker: usize,
        request: &Arc<Request>,
        body: &BodyPort,
    ) -> Result<Decision, PolicyError> {
        let call = || Call { request: Arc::clone(request), body: body.clone() };
        let deadline = self.proven.template.deadline(self.options.deadline);
        let mut instance = match self.take_idle(worker) {
            Some(instance) => instance,
            None => self.proven.template.instantiate(deadline).await?,
        };
        let given = match instance.on_request(call(), deadline).await {
            // A trap may be the fault of what an earlier request left behind.
            Err(PolicyError::Trap { .. }) if instance.is_repeatable() => {
                let deadline = instance.deadline();
                drop(instance);
                instance = self.proven.template.instantiate(deadline).await?;
                instance.on_request(call(), deadline).await?
            }
            given => given?,
        };
        let decision = bindings::decision(given, self.options.decision_bytes_max)?;
        self.keep(worker, instance);
        Ok(decision)
    }

    /// The same for a policy that never suspends ([`Generation::reads_body`] is false): without a future, which would take
    /// room in the task of every request.
    ///
    /// # Errors
    /// As [`Generation::on_request`].
    pub fn on_request_at_once(&self, worker: usize, request: &Arc<Request>) -> Result<Decision, PolicyError> {
        let body = BodyPort::empty();
        let mut decision = std::pin::pin!(self.on_request(worker, request, &body));
        match decision.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(decision) => decision,
            Poll::Pending => Err(PolicyError::Exhausted("a policy that cannot suspend did".to_owned())),
        }
    }

    fn take_idle(&self, worker: usize) -> Option<Instance> {
        self.pool(worker).lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn keep(&self, worker: usize, instance: Instance) {
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
