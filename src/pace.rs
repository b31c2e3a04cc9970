//! How slow a client may be: some bytes in each stretch of time, and enough of them over the whole.

use std::time::Duration;

use tokio::time::Instant;

use crate::connection::Limits;

/// The minimum rate is asked for after this time.
const RATE_GRACE: Duration = Duration::from_secs(10);

/// The pace of one body or one answer, from its making on.
#[derive(Debug)]
pub struct Pace {
    began: Instant,
    stall: Duration,
    rate: u64,
}

impl Pace {
    /// Nothing for `body_timeout`, or less than `body_rate_min` a second after the first ten seconds, is too slow.
    pub fn new(limits: &Limits) -> Self {
        Self { began: Instant::now(), stall: limits.body_timeout, rate: limits.body_rate_min }
    }

    /// How long nothing may move.
    pub fn stall(&self) -> Duration {
        self.stall
    }

    /// Until when more than `moved` bytes must have moved in all.
    pub fn deadline(&self, moved: u64) -> Instant {
        self.deadline_at(Instant::now(), moved)
    }

    fn deadline_at(&self, now: Instant, moved: u64) -> Instant {
        let stall = now + self.stall;
        match moved.checked_div(self.rate) {
            // A rate of 0 asks for nothing.
            None => stall,
            Some(seconds) => stall.min(self.began + RATE_GRACE + Duration::from_secs(seconds.min(u64::from(u32::MAX)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_now_and_then_runs_out() {
        let seconds = Duration::from_secs;
        let pace = Pace::new(&Limits::default());
        let after = |now: u64, moved| (pace.deadline_at(pace.began + seconds(now), moved) - pace.began).as_secs();
        assert_eq!((after(0, 0), after(0, 500), after(0, 1_000_000)), (10, 11, 30));
        assert_eq!((after(100, 45_000), after(100, 45_500), after(100, 1_000_000)), (100, 101, 130));
        let steady = Pace::new(&Limits { body_rate_min: 0, ..Limits::default() });
        assert_eq!(steady.deadline_at(steady.began + seconds(100), 1), steady.began + seconds(130));
    }
}
