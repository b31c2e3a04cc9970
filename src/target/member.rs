//! One daemon of a target: what is known of it, and each worker's channel to it where it speaks the native protocol.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::status::LastFailure;
use crate::handoff::channel::{Channel, Status};
use crate::handoff::{Daemon, Dialect};

#[derive(Debug)]
pub(super) struct Member {
    pub(super) daemon: Daemon,
    /// Messages that were begun and not yet read, in the dialects that say no more.
    pub(super) in_flight: AtomicU32,
    pub(super) last_failure: LastFailure,
    /// Clients that it has taken.
    pub(super) taken: AtomicU64,
    /// Clients that it has refused, in words.
    pub(super) refused: AtomicU64,
    /// One for each worker; none in other dialects.
    channels: Vec<Arc<Channel>>,
}

/// Counts a message until it is dropped.
pub(super) struct InFlight<'a>(&'a AtomicU32);

impl Member {
    pub(super) fn new(daemon: Daemon, workers: usize) -> Self {
        let count = if daemon.dialect() == Dialect::Baton { workers } else { 0 };
        Self {
            daemon,
            in_flight: AtomicU32::new(0),
            last_failure: LastFailure::default(),
            taken: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            channels: (0..count).map(|_| Arc::default()).collect(),
        }
    }

    /// A message is under way as long as this is kept.
    pub(super) fn begin(&self) -> InFlight<'_> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(&self.in_flight)
    }

    /// A worker's channel to it.
    ///
    /// # Panics
    /// It speaks another dialect.
    pub(super) fn channel(&self, worker: usize) -> &Arc<Channel> {
        &self.channels[worker]
    }

    /// How its open channels stand.
    pub(super) fn channels(&self) -> impl Iterator<Item = Status> {
        self.channels.iter().filter_map(|channel| channel.status(self.daemon.address().path()))
    }

    /// Clients that it has, as far as is known.
    pub(super) fn in_flight(&self) -> u32 {
        let lent: u64 = self.channels().map(|status| status.in_flight).sum();
        self.in_flight.load(Ordering::Relaxed).saturating_add(u32::try_from(lent).unwrap_or(u32::MAX))
    }

    /// Clients that it has given back.
    pub(super) fn returned(&self) -> u64 {
        self.channels.iter().map(|channel| channel.returned()).sum()
    }

    /// How busy it says it is, at most.
    pub(super) fn load(&self) -> Option<f64> {
        self.channels().filter_map(|status| Some(status.load?.load)).reduce(f64::max)
    }

    pub(super) fn leave(&self, worker: usize) {
        if let Some(channel) = self.channels.get(worker) {
            channel.leave();
        }
    }

    pub(super) fn revoke(&self, request: &str, reason: &str) -> bool {
        self.channels.iter().any(|channel| channel.revoke(request, reason))
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
