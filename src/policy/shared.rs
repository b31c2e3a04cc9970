//! What outlives a generation: each policy's store and figures, and what the gateway offers to all of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arc_swap::ArcSwapOption;
use tokio::sync::Semaphore;

use super::metrics::{self, Metrics};
use super::services::Services;
use super::store::Store;
use crate::metrics::Exposition;

/// Instances of all policies together that may wait for callouts at a time. With those that may wait for bodies they are
/// fewer than there is room for, so that a server that hangs cannot keep policies from being asked.
const CALLOUT_WAITS_MAX: usize = 384;

/// What all instances and generations of one policy have in common.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) store: Store,
    pub(super) metrics: Metrics,
}

/// One for each engine.
#[derive(Debug)]
pub(super) struct Registry {
    /// Freed with the last generation of a policy: one that comes back begins anew.
    policies: Mutex<BTreeMap<Arc<str>, Weak<Shared>>>,
    /// Of the configuration in force; none before there is one.
    services: ArcSwapOption<Services>,
    pub(super) callout_waits: Semaphore,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            policies: Mutex::default(),
            services: ArcSwapOption::empty(),
            callout_waits: Semaphore::new(CALLOUT_WAITS_MAX),
        }
    }
}

impl Registry {
    /// What that policy's generations share.
    pub(super) fn of(&self, policy: &Arc<str>) -> Arc<Shared> {
        let mut policies = self.policies.lock().unwrap_or_else(PoisonError::into_inner);
        policies.retain(|_, shared| shared.strong_count() > 0);
        if let Some(shared) = policies.get(policy).and_then(Weak::upgrade) {
            return shared;
        }
        let shared = Arc::new(Shared::default());
        policies.insert(Arc::clone(policy), Arc::downgrade(&shared));
        shared
    }

    pub(super) fn connect(&self, services: Services) {
        self.services.store(Some(Arc::new(services)));
    }

    pub(super) fn services(&self) -> Option<Arc<Services>> {
        self.services.load_full()
    }

    /// Adds every policy's figures.
    pub(super) fn expose(&self, out: &mut Exposition) {
        let policies = self.policies.lock().unwrap_or_else(PoisonError::into_inner);
        let alive: Vec<_> = policies.iter().filter_map(|(name, shared)| Some((&**name, shared.upgrade()?))).collect();
        let metrics: Vec<_> = alive.iter().map(|(name, shared)| (*name, &shared.metrics)).collect();
        metrics::expose(&metrics, out);
    }
}
