//! What can be said of a policy while it runs.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use super::breaker::BreakerState;
use super::error::{LoadError, PolicyError};
use super::generation::Digest;

/// A policy as it is now.
#[derive(Clone, Debug)]
pub struct Status {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// The generation in force.
    pub generation: u64,
    /// Of its file.
    pub digest: Digest,
    /// When it was proven.
    pub loaded_at: SystemTime,
    /// The hooks that it exports, by their names in `wit/policy.wit`.
    pub hooks: Vec<&'static str>,
    /// The interfaces that it imports.
    pub imports: Vec<String>,
    /// Instances that exist, of all generations.
    pub instances: usize,
    /// Calls that ended in a trap or at the deadline since the gateway began, also those that were made again.
    pub traps: u64,
    /// Whether it is asked.
    pub breaker: BreakerState,
    /// How a call failed last.
    pub last_error: Option<LastError>,
    /// The last time that its file was found to be another one, or that it was rolled back.
    pub last_reload: Option<LastReload>,
}

/// A call that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastError {
    /// When.
    pub at: SystemTime,
    /// Of which generation.
    pub generation: u64,
    /// Which call.
    pub hook: &'static str,
    /// Why, in one line.
    pub error: String,
}

/// A change of generations, or one that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastReload {
    /// When.
    pub at: SystemTime,
    /// The generation that has been in force since, or why it stayed as it was.
    pub result: Result<u64, LoadError>,
}

/// What is counted of a policy, over all generations and workers.
#[derive(Debug, Default)]
pub(super) struct Tally {
    instances: AtomicUsize,
    traps: AtomicU64,
    last_error: Mutex<Option<LastError>>,
}

impl Tally {
    pub(super) fn instances(&self) -> usize {
        self.instances.load(Ordering::Relaxed)
    }

    pub(super) fn traps(&self) -> u64 {
        self.traps.load(Ordering::Relaxed)
    }

    pub(super) fn last_error(&self) -> Option<LastError> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A call has cost an instance, whether or not it is made again.
    pub(super) fn count(&self, error: &PolicyError) {
        if matches!(error, PolicyError::Trap { .. } | PolicyError::Deadline { .. }) {
            self.traps.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A call has failed for good.
    pub(super) fn failed(&self, generation: u64, hook: &'static str, error: &PolicyError) {
        let last = LastError { at: SystemTime::now(), generation, hook, error: error.to_string() };
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
    }
}

/// An instance that exists.
#[derive(Debug)]
pub(super) struct Alive(Arc<Tally>);

impl Alive {
    pub(super) fn begin(tally: &Arc<Tally>) -> Self {
        tally.instances.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(tally))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.instances.fetch_sub(1, Ordering::Relaxed);
    }
}
