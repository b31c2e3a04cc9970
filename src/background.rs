//! Work beside the clients: reading, compiling and proving what is reloaded. It runs on threads of a lower priority, so that
//! on a machine without a processor to spare it is the reload that waits, and not the requests.
//!
//! Linux gives each thread a niceness of its own, which the threads that it starts inherit (sched(7), setpriority(2)).

use std::thread;

use rustix::process::setpriority_process;
use tokio::sync::oneshot;

/// A share of about a quarter beside a thread that would use the whole processor; all of it when nobody else wants it.
const NICENESS: i32 = 5;

/// Has the threads that compile in parallel run in the background. Without effect once something was compiled.
pub fn compilers() {
    let pool = rayon::ThreadPoolBuilder::new().thread_name(|index| format!("compile-{index}"));
    // An error says that there is a pool already.
    drop(pool.start_handler(|_| give_way()).build_global());
}

/// Runs `work` on a thread of its own. `None` when it panicked, which was reported, or when there is no thread to be had,
/// which is said here.
pub async fn run<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (tell, told) = oneshot::channel();
    let begun = thread::Builder::new().name(name.to_owned()).spawn(move || {
        give_way();
        // Nobody waits for the answer when the gateway ends meanwhile.
        drop(tell.send(work()));
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
