//! When messages that were sent are looked at.
//!
//! First when the worker has nothing else to do. A daemon that was just woken reads at once when it gets a processor, so
//! the worker offers its own (sched_yield(2)) and then looks: most messages are read by then, and epoll is never told of
//! their connections. Going to sleep would have given the processor away as well. Where the daemon has a processor of its
//! own, nothing is read so soon; where others compute, the processor is gone for a whole slice. The worker notices both and
//! stops offering, but for a try now and then.
//!
//! What is unread then is watched. Of the end of a connection epoll tells; that a message was read while the daemon keeps
//! the connection open, and that a deadline has passed, is found out by looking now and then. A timer for each handoff
//! would be set and cleared thousands of times a second, so all of a worker's share one beat, which stands still while
//! nobody waits.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Between two beats.
const INTERVAL: Duration = Duration::from_millis(5);

/// So many pauses in a row that were too short, and it is refrained from them.
const TRUST_MAX: u32 = 16;

/// Every so many handoffs a pause is tried all the same.
const TRY_INTERVAL: u32 = 64;

/// The same, at most: it doubles with each try that comes back late.
const TRY_INTERVAL_MAX: u32 = 8192;

/// A processor that comes back later than this, for each message that was to be read, went to somebody who computes: the
/// scheduler's slices last some milliseconds.
const YIELD_MAX: Duration = Duration::from_millis(1);

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
    /// How likely it is that a pause is long enough: 0 to [`TRUST_MAX`].
    trust: AtomicU32,
    /// How many pauses were not made because it is not, since the last try.
    refrained: AtomicU32,
    /// After how many of them the next try is due.
    try_interval: AtomicU32,
    /// Whether the processor that was offered last came back late.
    was_late: AtomicBool,
}

/// What a pause turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// The message was read, or never will be.
    LongEnough,
    /// It was still unread.
    TooShort,
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
        let (trust, try_interval) = (AtomicU32::new(TRUST_MAX), AtomicU32::new(TRY_INTERVAL));
        Self { has_rests: true, trust, try_interval, ..Self::default() }
    }

    /// To be called by the worker's thread whenever it is about to sleep: offers the processor to whoever may read what was
    /// sent since the last time, and has it looked at.
    pub fn rest(&self) {
        let fresh = self.fresh.load(Ordering::Relaxed);
        if fresh == 0 {
            return;
        }
        let began = Instant::now();
        std::thread::yield_now();
        self.came_back(began.elapsed(), fresh);
        self.look();
    }

    fn look(&self) {
        self.fresh.store(0, Ordering::Relaxed);
        self.rests.notify_waiters();
    }

    /// Waits until the worker has nothing else to do, or for a beat, if it is likely that a message is read by then; says
    /// whether it waited. What was found then is to be [learnt](Self::learn).
    ///
    /// # Cancel safety
    /// Dropping it changes nothing.
    pub(super) async fn pause(&self) -> bool {
        let pays = self.has_rests && (self.trust.load(Ordering::Relaxed) > 0 || self.is_try());
        if pays {
            let _waiting = Waiting::begin(self);
            self.fresh.fetch_add(1, Ordering::Relaxed);
            self.rests.notified().await;
        }
        pays
    }

    fn is_try(&self) -> bool {
        let is_due = self.refrained.fetch_add(1, Ordering::Relaxed) + 1 >= self.try_interval.load(Ordering::Relaxed);
        if is_due {
            self.refrained.store(0, Ordering::Relaxed);
        }
        is_due
    }

    /// Takes note of how long the processor was away, for how many messages.
    fn came_back(&self, after: Duration, fresh: usize) {
        let is_late = after > YIELD_MAX.saturating_mul(u32::try_from(fresh).unwrap_or(u32::MAX));
        self.was_late.store(is_late, Ordering::Relaxed);
        if is_late {
            // Once, it may have been chance.
            let trust = self.trust.load(Ordering::Relaxed);
            self.trust.store(trust.saturating_sub(TRUST_MAX / 2), Ordering::Relaxed);
            let interval = self.try_interval.load(Ordering::Relaxed) * if trust == 0 { 2 } else { 1 };
            self.try_interval.store(interval.min(TRY_INTERVAL_MAX), Ordering::Relaxed);
        } else {
            self.try_interval.store(TRY_INTERVAL, Ordering::Relaxed);
        }
    }

    /// Takes note of whether a pause was long enough for a message to be read.
    pub(super) fn learn(&self, pause: Pause) {
        let trust = self.trust.load(Ordering::Relaxed);
        let trust = match pause {
            _ if self.was_late.load(Ordering::Relaxed) => trust,
            // Tries are rare: one that succeeds says that things have changed.
            Pause::LongEnough if trust == 0 => TRUST_MAX,
            Pause::LongEnough => (trust + 1).min(TRUST_MAX),
            Pause::TooShort => trust.saturating_sub(1),
        };
        self.trust.store(trust, Ordering::Relaxed);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pauses_that_are_too_short_are_refrained_from_but_for_a_try() {
        let beat = Beat::with_rests();
        let pauses = || async { tokio::join!(biased; beat.pause(), async { beat.look() }).0 };
        for _ in 0..TRUST_MAX {
            assert!(pauses().await);
            beat.learn(Pause::TooShort);
        }
        for _ in 1..TRY_INTERVAL {
            assert!(!pauses().await);
        }
        assert!(pauses().await, "a try");
        beat.learn(Pause::LongEnough);
        for _ in 0..TRUST_MAX {
            assert!(pauses().await);
            beat.learn(Pause::TooShort);
        }
        assert!(!pauses().await);
    }

    #[tokio::test]
    async fn a_processor_that_comes_back_late_is_offered_ever_more_rarely() {
        let beat = Beat::with_rests();
        beat.came_back(Duration::from_secs(1), 1);
        assert_eq!(beat.trust.load(Ordering::Relaxed), TRUST_MAX / 2, "once may be chance");
        let refrained = || {
            beat.came_back(YIELD_MAX * 3 + Duration::from_nanos(1), 3);
            beat.learn(Pause::LongEnough);
            (1..).find(|_| beat.trust.load(Ordering::Relaxed) > 0 || beat.is_try())
        };
        let intervals: Vec<_> = (0..10).map(|_| refrained()).collect();
        assert_eq!(intervals, [64, 128, 256, 512, 1024, 2048, 4096, 8192, 8192, 8192].map(Some));
        beat.came_back(YIELD_MAX * 3, 3);
        beat.learn(Pause::LongEnough);
        assert_eq!(
            (beat.trust.load(Ordering::Relaxed), beat.try_interval.load(Ordering::Relaxed)),
            (TRUST_MAX, TRY_INTERVAL)
        );
    }
}
