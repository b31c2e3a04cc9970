//! A beat that many waits share.
//!
//! A handoff that waits to be read is told of the end of its connection by epoll; that its message was read while the
//! daemon keeps the connection open, and that its deadline has passed, it finds out by looking now and then. A timer for
//! each of them would be set and cleared thousands of times a second, so all of a worker's share one, which stands still
//! while nobody waits.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// Between two beats.
const INTERVAL: Duration = Duration::from_millis(5);

/// One worker's beat. Its driver is [`Beat::run`]; without it nobody who waits is ever woken.
#[derive(Debug, Default)]
pub struct Beat {
    waiting: AtomicUsize,
    begun: Notify,
    beats: Notify,
}

/// Counts somebody who waits, until dropped.
struct Waiting<'a>(&'a Beat);

impl Beat {
    /// Beats while somebody waits. Never ends.
    pub async fn run(&self) {
        loop {
            while self.waiting.load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(INTERVAL).await;
                self.beats.notify_waiters();
            }
            self.begun.notified().await;
        }
    }

    /// Waits for `count` beats.
    ///
    /// # Cancel safety
    /// Dropping it changes nothing.
    pub(super) async fn pass(&self, count: u32) {
        let _waiting = Waiting::begin(self);
        for _ in 0..count {
            self.beats.notified().await;
        }
    }
}

impl<'a> Waiting<'a> {
    fn begin(beat: &'a Beat) -> Self {
        if beat.waiting.fetch_add(1, Ordering::Relaxed) == 0 {
            beat.begun.notify_one();
        }
        Self(beat)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
