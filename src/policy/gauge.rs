//! What a guest used of an engine that counts.
//!
//! An instance begins a [`Reading`] when it is ready and ends it when it goes, so that nothing between knows of it; who
//! gives each instance one call finds in the [`Gauge`] what that call took.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What one call took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// From the call to its decision, counting included.
    pub time: Duration,
    /// Instructions of the guest: the same in each run, as long as the guest asks for neither time nor chance.
    pub fuel: u64,
    /// Linear memory of the instance behind the call.
    pub memory_bytes: usize,
}

/// What the last instance used that ended.
#[derive(Clone, Debug, Default)]
pub(super) struct Gauge(Arc<Mutex<Option<Used>>>);

/// An instance that is being watched.
#[derive(Debug)]
pub(super) struct Reading {
    gauge: Gauge,
    since: Instant,
    fuel: u64,
}

impl Gauge {
    /// Begins with what is left in the tank.
    pub(super) fn begin(&self, fuel: u64) -> Reading {
        Reading { gauge: self.clone(), since: Instant::now(), fuel }
    }

    /// Forgets what earlier instances used.
    pub(super) fn take(&self) -> Option<Used> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Reading {
    pub(super) fn end(self, fuel: u64, memory_bytes: usize) {
        let used = Used { time: self.since.elapsed(), fuel: self.fuel.saturating_sub(fuel), memory_bytes };
        *self.gauge.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(used);
    }
}
