//! How many clients the gateway owns at a time, and what it keeps back to serve them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Descriptors kept free for what clients already accepted need: daemons, files.
const DESCRIPTOR_RESERVE: usize = 64;

/// How many clients the gateway may own, and how many it does. Handed-over clients do not count.
#[derive(Debug)]
pub struct Admission {
    open: AtomicUsize,
    max: AtomicUsize,
    /// Beyond this number a new descriptor eats into the reserve.
    descriptors_max: usize,
    freed: Notify,
}

/// One client's place.
#[derive(Debug)]
pub struct Place(Arc<Admission>);

impl Admission {
    /// `connections_max` clients, in a process that may have `descriptors` open.
    pub fn new(connections_max: usize, descriptors: usize) -> Self {
        Self {
            open: AtomicUsize::new(0),
            max: AtomicUsize::new(connections_max),
            descriptors_max: descriptors - DESCRIPTOR_RESERVE.min(descriptors / 4),
            freed: Notify::new(),
        }
    }

    /// Sets another maximum; clients above it are kept.
    pub fn set_max(&self, connections_max: usize) {
        self.max.store(connections_max, Ordering::Relaxed);
        self.freed.notify_waiters();
    }

    /// How many clients the gateway owns.
    pub fn count(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Takes a place, if there is one.
    pub fn place(self: &Arc<Self>) -> Option<Place> {
        let max = self.max.load(Ordering::Relaxed);
        let take = |open| (open < max).then_some(open + 1);
        self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok().map(|_| Place(Arc::clone(self)))
    }

    /// Takes a place beyond the maximum, for a client that could otherwise never be answered.
    pub fn place_beyond(self: &Arc<Self>) -> Place {
        self.open.fetch_add(1, Ordering::Relaxed);
        Place(Arc::clone(self))
    }

    /// Whether a new descriptor of this number eats into the reserve.
    pub fn is_reserve(&self, number: usize) -> bool {
        number >= self.descriptors_max
    }

    /// Waits until there is a place. Another worker may take it first.
    ///
    /// # Cancel safety
    /// Dropping it changes nothing.
    pub async fn vacancy(&self) {
        loop {
            let freed = self.freed.notified();
            if self.open.load(Ordering::Relaxed) < self.max.load(Ordering::Relaxed) {
                return;
            }
            freed.await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let open = self.0.open.fetch_sub(1, Ordering::Relaxed);
        // All of them: each waits for clients of its own, and who is woken may have none. The next place to be freed is
        // announced only if they have taken this one.
        if open >= self.0.max.load(Ordering::Relaxed) {
            self.0.freed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Two clients leave at the same time, and whoever is woken first has none to accept.
    #[tokio::test]
    async fn places_that_are_freed_together_are_announced_to_everybody_who_waits() {
        let admission = Arc::new(Admission::new(2, 1024));
        let owned = [admission.place(), admission.place()];
        assert!(owned.iter().all(Option::is_some) && admission.place().is_none());
        let (one, other) = (admission.vacancy(), admission.vacancy());
        let both = async {
            tokio::join!(biased; one, other, async { drop(owned) });
        };
        tokio::time::timeout(Duration::from_secs(5), both).await.expect("both are woken");
    }
}
