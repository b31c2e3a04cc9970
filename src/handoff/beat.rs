//! When messages that were sent are looked at.
//!
//! First when the worker has nothing else to do. A daemon that was just woken reads at once when it gets a processor, so
//! the worker offers its own (sched_yield(2)) and then looks: most messages are read by then, and epoll is never told of
//! their connections. Going to sleep would have given the processor away as well.
//!
//! What is unread then is watched. Of the end of a connection epoll tells; that a message was read while the daemon keeps
//! the connection open, and that a deadline has passed, is found out by looking now and then. A timer for each handoff
//! would be set and cleared thousands of times a second, so all of a worker's share one beat, which stands still while
//! nobody waits.

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
    /// How many messages were sent since the worker had nothing else to do.
    fresh: AtomicUsize,
    rests: Notify,
    has_rests: bool,
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
                self.look();
            }
            self.begun.notified().await;
        }
    }

    /// A beat whose worker says when it has nothing else to do ([`Beat::rest`]).
    pub fn with_rests() -> Self {
        Self { has_rests: true, ..Self::default() }
    }

    /// To be called by the worker's thread whenever it is about to sleep: offers the processor to whoever may read what was
    /// sent since the last time, and has it looked at.
    pub fn rest(&self) {
        if self.fresh.load(Ordering::Relaxed) == 0 {
            return;
        }
        std::thread::yield_now();
        self.look();
    }

    fn look(&self) {
        self.fresh.store(0, Ordering::Relaxed);
        self.rests.notify_waiters();
    }

    /// Waits until the worker has nothing else to do, or for a beat; says whether that was worth waiting for.
    ///
    /// # Cancel safety
    /// Dropping it changes nothing.
    pub(super) async fn pause(&self) -> bool {
        if self.has_rests {
            let _waiting = Waiting::begin(self);
            self.fresh.fetch_add(1, Ordering::Relaxed);
            self.rests.notified().await;
        }
        self.has_rests
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
