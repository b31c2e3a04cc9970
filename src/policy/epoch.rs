//! The clock that ends overlong calls: one thread for each engine, asleep while no guest runs.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// How often guests are looked at; a call may run over its deadline by about this much.
const TICK: Duration = Duration::from_millis(1);

/// The same while no guest is seen to run: what begins in between is noticed that much later, and thousands of calls of
/// some microseconds do not cost a thousand wakes a second.
const TICK_AT_REST: Duration = Duration::from_millis(4);

/// Ticks without a guest after which the thread goes to sleep. Short enough that an idle gateway costs nothing, long
/// enough that a busy one seldom pays for waking it.
const IDLE_TICK_COUNT_MAX: u32 = 25;

/// How many times its deadline a guest may take by the clock on the wall when it does not get the processor.
const WALL_FACTOR: u32 = 20;

/// When a guest's time is up, and how much of it there was.
///
/// What counts is the time that the guest's thread ran, because a busy machine or a container's quota can stop any
/// thread for longer than a deadline. Reading that clock costs more than most decisions, so it is read when the time is
/// up on the wall, and at the beginning only once a tick. A call stays on its thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    allowed: Duration,
    began: Instant,
    /// That of the thread, at the beginning or up to a tick earlier.
    began_thread: Duration,
}

impl Deadline {
    /// Begins to run now, on this thread.
    pub(super) fn after(allowed: Duration) -> Self {
        Self { allowed, began: Instant::now(), began_thread: thread_time() }
    }

    /// Begins to run at `began`, which is now. How old the thread's clock is that it starts from is told by the clock on the
    /// wall and not by counting ticks: a ticker that gets no processor counts none, and what this thread has run meanwhile
    /// would be the guest's.
    fn beginning(allowed: Duration, began: Instant) -> Self {
        thread_local! {
            static LAST: Cell<Option<(Instant, Duration)>> = const { Cell::new(None) };
        }
        let fresh = |(at, _): &(Instant, Duration)| began.saturating_duration_since(*at) < TICK;
        let (_, began_thread) = LAST.get().filter(fresh).unwrap_or_else(|| {
            let read = (began, thread_time());
            LAST.set(Some(read));
            read
        });
        Self { allowed, began, began_thread }
    }

    /// What the guest was given.
    pub(super) fn allowed(self) -> Duration {
        self.allowed
    }

    /// Waits for something with the clocks stopped.
    pub(super) async fn stopped<F: Future>(&mut self, future: F) -> F::Output {
        let (began, began_thread) = (Instant::now(), thread_time());
        let output = future.await;
        self.began += began.elapsed();
        self.began_thread += thread_time().saturating_sub(began_thread);
        output
    }

    /// Ticks until it has to be looked at again; 0 when the time is up.
    pub(super) fn ticks(self) -> u64 {
        let on_wall = self.began.elapsed();
        let mut left = self.allowed.saturating_sub(on_wall);
        if left.is_zero() {
            let hard = self.allowed.saturating_mul(WALL_FACTOR).saturating_sub(on_wall);
            left = self.allowed.saturating_sub(thread_time().saturating_sub(self.began_thread)).min(hard);
        }
        u64::try_from(left.as_nanos().div_ceil(TICK.as_nanos())).unwrap_or(u64::MAX >> 1)
    }
}

/// How long this thread has run.
fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every thread has this clock");
    time.into()
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

    /// A deadline that begins to run now, on this thread.
    pub(super) fn deadline(&self, allowed: Duration) -> Deadline {
        Deadline::beginning(allowed, Instant::now())
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
            drop(thread.join());
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
            thread::park_timeout(if idle == 0 { TICK } else { TICK_AT_REST });
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
    fn time_that_a_thread_does_not_get_is_not_counted() {
        let deadline = Deadline::after(Duration::from_millis(20));
        #[expect(clippy::disallowed_methods, reason = "what is tested is that time passing is not counted")]
        thread::sleep(Duration::from_millis(60));
        assert!(deadline.ticks() > 0, "it was asleep");
        let running = Instant::now();
        eventually("it ran", || running.elapsed() > Duration::from_millis(60) && deadline.ticks() == 0);
        let deadline = Deadline::after(Duration::from_millis(1));
        #[expect(clippy::disallowed_methods, reason = "what is tested is the limit on time passing")]
        thread::sleep(Duration::from_millis(1) * (WALL_FACTOR + 5));
        assert_eq!(deadline.ticks(), 0, "there is an end to patience");
    }

    #[test]
    fn what_ran_before_a_call_is_not_the_calls() {
        // This one's ticker never got the processor: nothing has told this thread that time passed.
        let first = Deadline::beginning(Duration::from_millis(5), Instant::now());
        let running = Instant::now();
        eventually("it ran", || running.elapsed() > Duration::from_millis(40) && first.ticks() == 0);
        let second = Deadline::beginning(Duration::from_millis(5), Instant::now());
        #[expect(clippy::disallowed_methods, reason = "what is tested is that time passing is not counted")]
        thread::sleep(Duration::from_millis(10));
        assert!(second.ticks() > 0, "it was asleep, and before it others ran");
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
