//! The clock that ends overlong calls: one thread for each engine, asleep while no guest runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often guests are looked at; a call may run over its deadline by about this much.
const TICK: Duration = Duration::from_millis(1);

/// Ticks without a guest after which the thread goes to sleep. Short enough that an idle gateway costs nothing, long
/// enough that a busy one seldom pays for waking it.
const IDLE_TICK_COUNT_MAX: u32 = 100;

/// When a guest's time is up, and how much of it there was.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    allowed: Duration,
    until: Instant,
}

impl Deadline {
    /// Begins to run now.
    pub(super) fn after(allowed: Duration) -> Self {
        Self { allowed, until: Instant::now() + allowed }
    }

    /// What the guest was given.
    pub(super) fn allowed(self) -> Duration {
        self.allowed
    }

    /// Gives back time that the guest was not running for.
    pub(super) fn put_off(&mut self, by: Duration) {
        self.until += by;
    }

    /// Ticks until it has to be looked at again; 0 when the time is up.
    pub(super) fn ticks(self) -> u64 {
        let left = self.until.saturating_duration_since(Instant::now());
        u64::try_from(left.as_nanos().div_ceil(TICK.as_nanos())).unwrap_or(u64::MAX >> 1)
    }
}

#[derive(Debug)]
pub(super) struct Ticker {
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    running: AtomicUsize,
    asleep: AtomicBool,
    stopped: AtomicBool,
}

impl Ticker {
    pub(super) fn start(engine: wasmtime::Engine) -> std::io::Result<Self> {
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let thread = thread::Builder::new().name("policy-epoch".into()).spawn(move || shared.tick(&engine))?;
        Ok(Self { state, thread: Some(thread) })
    }

    /// Keeps the clock going until the guard is dropped.
    pub(super) fn run(&self) -> Running<'_> {
        // Either this sees the thread asleep, or the thread sees this guest before it falls asleep: both sides write
        // their own flag first and then read the other's, in one order for all (SeqCst).
        self.state.running.fetch_add(1, Ordering::SeqCst);
        if self.state.asleep.load(Ordering::SeqCst)
            && let Some(thread) = &self.thread
        {
            thread.thread().unpark();
        }
        Running(&self.state)
    }

    #[cfg(test)]
    fn is_asleep(&self) -> bool {
        self.state.asleep.load(Ordering::SeqCst)
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic of that thread has been printed already, and nothing else can be done about it.
            let _: Result<(), _> = thread.join();
        }
    }
}

impl State {
    fn tick(&self, engine: &wasmtime::Engine) {
        let mut idle = 0;
        while !self.stopped.load(Ordering::SeqCst) {
            if self.running.load(Ordering::SeqCst) > 0 {
                idle = 0;
            } else {
                idle += 1;
            }
            if idle > IDLE_TICK_COUNT_MAX {
                self.asleep.store(true, Ordering::SeqCst);
                if self.running.load(Ordering::SeqCst) == 0 && !self.stopped.load(Ordering::SeqCst) {
                    thread::park();
                }
                self.asleep.store(false, Ordering::SeqCst);
                idle = 0;
            }
            // Also ended by `unpark`, which only makes one tick early; deadlines are judged by the clock.
            thread::park_timeout(TICK);
            engine.increment_epoch();
        }
    }
}

/// A guest that runs.
#[derive(Debug)]
pub(super) struct Running<'a>(&'a State);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
        let patience = Instant::now() + Duration::from_secs(10);
        while !condition() {
            assert!(Instant::now() < patience, "{what}");
            thread::yield_now();
        }
    }

    #[test]
    fn it_sleeps_while_no_guest_runs_and_wakes_for_the_next() {
        let ticker = Ticker::start(wasmtime::Engine::default()).expect("a thread");
        eventually("it falls asleep", || ticker.is_asleep());
        let running = ticker.run();
        eventually("it wakes up", || !ticker.is_asleep());
        drop(running);
        eventually("it falls asleep again", || ticker.is_asleep());
    }
}
