//! Work beside the clients: reading, compiling and proving what is reloaded. It runs on threads of a lower priority, so that
//! on a machine without a processor to spare it is the reload that waits, and not the requests.
//!
//! Linux gives each thread a niceness of its own, which the threads that it starts inherit (sched(7), setpriority(2)). But
//! niceness says how often a thread has the processor, not for how long: what wakes up meanwhile waits for the end of a slice
//! of some milliseconds, and one in fifty requests did. The compiler, which wants seconds of every processor, therefore runs
//! on threads that give way at once. They could wait for ever where others want all there is. So threads that are merely
//! nice join them after a while; where the system allows it, the idle ones become so too, for what they have begun.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::{Pid, gettid};
use rustix::process::setpriority_process;
use tokio::sync::oneshot;

use crate::handoff::{Share, set_share};

/// A share of about a quarter beside a thread that would use the whole processor; all of it when nobody else wants it.
const NICENESS: i32 = 5;
/// For so long only idle threads compile.
const PATIENCE: Duration = Duration::from_secs(7);

/// How many idle threads there are, and as many that join them; nothing where others compile.
static IDLE_COUNT: OnceLock<usize> = OnceLock::new();
/// The idle threads.
static IDLE: Mutex<Vec<Pid>> = Mutex::new(Vec::new());
/// What runs in the background now.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// Has the threads that compile in parallel run in the background. Without effect once something was compiled.
pub fn compilers() {
    let count = thread::available_parallelism().map_or(1, NonZero::get);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2 * count).thread_name(|index| format!("compile-{index}"));
    let pool = pool.start_handler(move |index| {
        give_way();
        if index < count {
            IDLE.lock().unwrap_or_else(PoisonError::into_inner).push(gettid());
        }
    });
    // An error says that there is a pool already.
    if pool.build_global().is_ok() {
        IDLE_COUNT.get_or_init(|| count);
    }
}

/// Runs `work` on a thread of its own. `None` when it panicked, which was reported, or when there is no thread to be had,
/// which is said here.
pub async fn run<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (tell, told) = oneshot::channel();
    let begun = thread::Builder::new().name(name.to_owned()).spawn(move || {
        give_way();
        let running = Running::begin();
        let done = work();
        drop(running);
        // Nobody waits for the answer when the gateway ends meanwhile.
        drop(tell.send(done));
    });
    match begun {
        Ok(_) => told.await.ok(),
        Err(error) => {
            tracing::warn!(%error, "no thread to {name} on: what is in force stays");
            None
        }
    }
}

/// Lowers the priority of this thread, which anybody may do.
fn give_way() {
    if let Err(error) = setpriority_process(None, NICENESS) {
        tracing::debug!(%error, "this thread keeps its priority");
    }
}

/// Before clients are served, the idle threads are as the others.
fn share(share: Share) {
    for &thread in IDLE.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        if let Err(error) = set_share(thread, share) {
            tracing::debug!(%error, "a thread that compiles cannot be {share:?}");
        }
    }
}

/// Work in the background. While the first of it runs, the idle threads compile alone, for as long as [`PATIENCE`] lasts.
/// What begins beside it waits for nobody, or there would always be something that has just begun.
struct Running(Arc<Hold>);

#[derive(Default)]
struct Hold {
    is_over: Mutex<bool>,
    over: Condvar,
}

impl Running {
    fn begin() -> Self {
        let hold = Arc::<Hold>::default();
        if RUNNING.fetch_add(1, Ordering::Relaxed) == 0
            && let Some(&idle_count) = IDLE_COUNT.get()
        {
            share(Share::Idle);
            hold_back(idle_count, Arc::clone(&hold));
        }
        Self(hold)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::Relaxed);
        *self.0.is_over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.over.notify_all();
    }
}

/// Gives the threads that are not idle something else to do, which is to wait.
fn hold_back(idle_count: usize, hold: Arc<Hold>) {
    let until = Instant::now() + PATIENCE;
    rayon::spawn_broadcast(move |compiler| {
        if compiler.index() < idle_count {
            return;
        }
        let is_over = hold.is_over.lock().unwrap_or_else(PoisonError::into_inner);
        let left = until.saturating_duration_since(Instant::now());
        let waited = hold.over.wait_timeout_while(is_over, left, |is_over| !*is_over);
        if compiler.index() == idle_count && !*waited.unwrap_or_else(PoisonError::into_inner).0 {
            share(Share::Fair);
        }
    });
}

#[cfg(test)]
mod tests {
    use rustix::process::getpriority_process;

    use super::*;

    fn now<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
    }

    #[test]
    fn work_runs_at_a_lower_priority_and_others_keep_theirs() {
        let ours = getpriority_process(None).expect("every thread has one");
        let theirs = now(run("nice", || getpriority_process(None).expect("every thread has one")));
        assert_eq!(theirs, Some(NICENESS));
        assert_eq!(getpriority_process(None).expect("every thread has one"), ours);
    }

    #[test]
    fn a_panic_is_no_answer() {
        assert_eq!(now(run("panics", || panic!("on purpose"))), None::<()>);
    }
}
