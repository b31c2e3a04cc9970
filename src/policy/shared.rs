//! What outlives a generation: each policy's store and figures, and what the gateway offers to all of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arc_swap::ArcSwapOption;
use tokio::sync::{Semaphore, SemaphorePermit};

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
    /// Its instances that wait for callouts.
    callout_waits: AtomicUsize,
}

/// One for each engine.
#[derive(Debug)]
pub(super) struct Registry {
    /// Freed with the last generation of a policy: one that comes back begins anew.
    policies: Mutex<BTreeMap<Arc<str>, Weak<Shared>>>,
    /// Of the configuration in force; none before there is one.
    services: ArcSwapOption<Services>,
    callout_waits: Semaphore,
}

/// Leave to wait for a callout, until it is dropped.
#[derive(Debug)]
pub(super) struct CalloutPlace<'a> {
    _of_all: SemaphorePermit<'a>,
    shared: &'a Shared,
}

impl Drop for CalloutPlace<'_> {
    fn drop(&mut self) {
        self.shared.callout_waits.fetch_sub(1, Ordering::Relaxed);
    }
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

    /// A place to wait for a callout, if there is one for a policy that has so many. It may have as many as it leaves free:
    /// one that asks a server that hangs takes half of them, a second one half of what is left, so that those who
    /// ask others always find some.
    pub(super) fn callout_place<'a>(&'a self, shared: &'a Shared) -> Option<CalloutPlace<'a>> {
        let of_all = self.callout_waits.try_acquire().ok()?;
        let own = shared.callout_waits.fetch_add(1, Ordering::Relaxed) + 1;
        let place = CalloutPlace { _of_all: of_all, shared };
        (own <= self.callout_waits.available_permits()).then_some(place)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// How many that policy can take beside those that are taken.
    fn take<'a>(registry: &'a Registry, shared: &'a Shared) -> Vec<CalloutPlace<'a>> {
        std::iter::from_fn(|| registry.callout_place(shared)).take(CALLOUT_WAITS_MAX + 1).collect()
    }

    #[test]
    fn a_policy_may_wait_in_as_many_places_as_it_leaves_free() {
        let (registry, policies) = (Registry::default(), [(); 5].map(|()| Shared::default()));
        let mut places: Vec<_> = policies.iter().map(|policy| take(&registry, policy)).collect();
        assert_eq!(places.iter().map(Vec::len).collect::<Vec<_>>(), [192, 96, 48, 24, 12]);
        assert!(registry.callout_place(&policies[0]).is_none(), "one more");
        // What one gives back, it may have again, and so may others.
        places[0].truncate(100);
        let more = take(&registry, &policies[4]);
        assert_eq!((more.len(), take(&registry, &policies[0]).len()), (46, 0));
        drop((places, more));
        assert_eq!(registry.callout_waits.available_permits(), CALLOUT_WAITS_MAX);
        assert_eq!(take(&registry, &policies[3]).len(), 192);
    }
}
