//! What keeps a policy that fails and fails from being asked: too many failures within a while open the breaker, and for
//! a pause nobody asks; then one call is a trial, and what becomes of it closes the breaker or opens it again.
//!
//! While it is closed, asking costs one look at a flag that is hardly ever written; only failures read a clock.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::error::PolicyError;

/// When it opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerOptions {
    /// So many failures open it; 0: it never opens.
    pub failures: u32,
    /// Within this time.
    pub within: Duration,
    /// How long nobody is asked then.
    pub pause: Duration,
}

impl Default for BreakerOptions {
    fn default() -> Self {
        Self { failures: 10, within: Duration::from_secs(10), pause: Duration::from_secs(5) }
    }
}

/// Whether a policy is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// It is.
    Closed,
    /// One call is made, to see.
    HalfOpen,
    /// It is not.
    Open,
}

impl BreakerState {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half-open",
            Self::Open => "open",
        }
    }
}

/// What a failure, or the end of a trial, did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Closed,
    Nothing,
    Opened,
}

#[derive(Debug)]
pub(super) struct Breaker {
    options: BreakerOptions,
    is_open: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// When it failed, not longer ago than what counts.
    failures: VecDeque<Instant>,
    open_until: Option<Instant>,
    trials: u32,
}

impl Breaker {
    pub(super) fn new(options: BreakerOptions) -> Self {
        Self { options, is_open: AtomicBool::new(false), inner: Mutex::default() }
    }

    /// Asks whether to ask. A trial is to be [ended](Trial::end); one that is dropped leaves it to the next call.
    pub(super) fn enter(&self) -> Result<Option<Trial<'_>>, PolicyError> {
        if self.is_open.load(Ordering::Relaxed) { self.enter_open(Instant::now()) } else { Ok(None) }
    }

    #[cold]
    fn enter_open(&self, now: Instant) -> Result<Option<Trial<'_>>, PolicyError> {
        let mut inner = self.lock();
        match inner.open_until {
            // Closed in this moment.
            None => Ok(None),
            Some(until) if now < until => Err(PolicyError::BreakerOpen),
            // One at a time, but for one that takes longer than a pause: it may wait for a body that a client holds back.
            Some(_) => {
                inner.open_until = Some(now + self.options.pause);
                inner.trials += 1;
                Ok(Some(Trial { breaker: self, unended: Some(now) }))
            }
        }
    }

    /// A call outside of a trial has failed.
    pub(super) fn failed(&self, now: Instant) -> Change {
        let mut inner = self.lock();
        // While it is open, those end that had begun before.
        if self.options.failures == 0 || inner.open_until.is_some() {
            return Change::Nothing;
        }
        while inner.failures.front().is_some_and(|&first| now.duration_since(first) > self.options.within) {
            inner.failures.pop_front();
        }
        inner.failures.push_back(now);
        if inner.failures.len() < self.options.failures as usize {
            return Change::Nothing;
        }
        self.open(&mut inner, now)
    }

    pub(super) fn state(&self) -> BreakerState {
        let inner = self.lock();
        match (inner.open_until, inner.trials) {
            (None, _) => BreakerState::Closed,
            (Some(_), 0) => BreakerState::Open,
            (Some(_), _) => BreakerState::HalfOpen,
        }
    }

    pub(super) fn options(&self) -> BreakerOptions {
        self.options
    }

    fn open(&self, inner: &mut Inner, now: Instant) -> Change {
        inner.failures.clear();
        inner.open_until = Some(now + self.options.pause);
        self.is_open.store(true, Ordering::Relaxed);
        Change::Opened
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The one call that is made to see.
#[derive(Debug)]
pub(super) struct Trial<'a> {
    breaker: &'a Breaker,
    /// When it began; `None` when it has been ended.
    unended: Option<Instant>,
}

impl Trial<'_> {
    pub(super) fn end(mut self, is_success: bool, now: Instant) -> Change {
        self.unended = None;
        let mut inner = self.breaker.lock();
        if inner.open_until.is_none() {
            // Another trial has closed it.
            return Change::Nothing;
        }
        if !is_success {
            return self.breaker.open(&mut inner, now);
        }
        inner.open_until = None;
        self.breaker.is_open.store(false, Ordering::Relaxed);
        Change::Closed
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        let mut inner = self.breaker.lock();
        inner.trials -= 1;
        if let Some(began) = self.unended
            && inner.open_until.is_some()
        {
            inner.open_until = Some(began);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaker(failures: u32) -> Breaker {
        let (within, pause) = (Duration::from_secs(10), Duration::from_secs(5));
        Breaker::new(BreakerOptions { failures, within, pause })
    }

    #[test]
    fn so_many_failures_within_the_time_open_it_and_one_fewer_does_not() {
        let (breaker, began) = (breaker(3), Instant::now());
        let at = |seconds| began + Duration::from_secs(seconds);
        assert_eq!([0, 1, 11].map(|s| breaker.failed(at(s))), [Change::Nothing; 3], "the first is too long ago");
        assert_eq!(breaker.state(), BreakerState::Closed);
        assert!(matches!(breaker.enter(), Ok(None)));
        assert_eq!(breaker.failed(at(11)), Change::Opened);
        assert_eq!((breaker.state(), breaker.failed(at(11))), (BreakerState::Open, Change::Nothing));
        assert_eq!(breaker.enter_open(at(15)).expect_err("it is open"), PolicyError::BreakerOpen);
    }

    #[test]
    fn after_the_pause_one_call_decides() {
        let (breaker, began) = (breaker(1), Instant::now());
        let at = |seconds| began + Duration::from_secs(seconds);
        assert_eq!(breaker.failed(at(0)), Change::Opened);
        let trial = breaker.enter_open(at(5)).expect("the pause is over").expect("a trial");
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        assert!(breaker.enter_open(at(6)).is_err(), "there is one trial at a time");
        assert_eq!(trial.end(false, at(7)), Change::Opened);
        assert!(breaker.enter_open(at(11)).is_err(), "another pause");
        drop(breaker.enter_open(at(12)).expect("over").expect("a trial that nobody ends"));
        let trial = breaker.enter_open(at(12)).expect("over").expect("a trial again");
        assert_eq!(trial.end(true, at(12)), Change::Closed);
        assert_eq!(breaker.state(), BreakerState::Closed);
        assert!(matches!(breaker.enter(), Ok(None)));
    }

    #[test]
    fn a_trial_that_takes_longer_than_a_pause_is_not_waited_for() {
        let (breaker, began) = (breaker(1), Instant::now());
        let at = |seconds| began + Duration::from_secs(seconds);
        breaker.failed(at(0));
        let slow = breaker.enter_open(at(5)).expect("the pause is over").expect("a trial");
        assert!(breaker.enter_open(at(9)).is_err(), "there is one trial at a time");
        let other = breaker.enter_open(at(10)).expect("a pause is over").expect("a trial");
        assert_eq!(other.end(true, at(10)), Change::Closed);
        assert_eq!((slow.end(false, at(11)), breaker.state()), (Change::Nothing, BreakerState::Closed));
    }

    #[test]
    fn it_can_be_switched_off() {
        let (breaker, now) = (breaker(0), Instant::now());
        assert!((0..100).all(|_| breaker.failed(now) == Change::Nothing));
    }
}
