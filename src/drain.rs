//! Stop, count, wait, give up.
//!
//! Everything that must be finished before the program ends holds a [`Guard`]; a task that serves a client is begun with
//! [`Guard::spawn`] only, so that the count cannot be wrong.

use std::future::Future;
use std::sync::{Arc, Weak};

use tokio::sync::watch;

/// The one who stops. Not `Clone`: a second one could wait for guards that the first still hands out.
#[derive(Debug)]
pub struct Drain(watch::Sender<Phase>);

/// Held by whatever must be finished.
#[derive(Clone, Debug)]
pub struct Guard(Arc<watch::Receiver<Phase>>);

/// What may become a [`Guard`] again, as long as its thread has one.
#[derive(Clone, Debug)]
pub struct WeakGuard(Weak<watch::Receiver<Phase>>);

impl WeakGuard {
    /// `None` when what it guarded is finished.
    pub fn upgrade(&self) -> Option<Guard> {
        self.0.upgrade().map(Guard)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    Draining,
}

impl Drain {
    /// A new one and its first guard.
    pub fn new() -> (Self, Guard) {
        let (sender, receiver) = watch::channel(Phase::Serving);
        (Self(sender), Guard(Arc::new(receiver)))
    }

    /// Tells every guard to finish.
    pub fn start(&self) {
        self.0.send_replace(Phase::Draining);
    }

    /// Waits until the last guard is dropped.
    ///
    /// # Cancel safety
    /// Dropping it changes nothing.
    pub async fn finished(&self) {
        self.0.closed().await;
    }
}

impl Guard {
    /// Begins a task that is waited for.
    pub fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: impl FnOnce(Self) -> F) {
        #[expect(clippy::disallowed_methods, reason = "the one place that begins tasks: the guard goes in with it")]
        tokio::spawn(task(self.clone()));
    }

    /// Begins a task that nobody waits for: it serves others, and ends with them, or with the runtime.
    pub fn attend(&self, task: impl Future<Output = ()> + Send + 'static) {
        #[expect(clippy::disallowed_methods, reason = "as above: what it serves holds guards")]
        tokio::spawn(task);
    }

    /// A guard that holds nothing up, until it is needed again.
    pub fn downgrade(&self) -> WeakGuard {
        WeakGuard(Arc::downgrade(&self.0))
    }

    /// The same, with clones of its own to count: those of one thread then disturb no other's cache.
    #[must_use]
    pub fn apart(&self) -> Self {
        Self(Arc::new(watch::Receiver::clone(&self.0)))
    }

    /// Whether it is time to finish.
    pub fn is_draining(&self) -> bool {
        *self.0.borrow() == Phase::Draining
    }

    /// Waits until it is time to finish.
    ///
    /// # Cancel safety
    /// Dropping it changes nothing.
    pub async fn draining(&mut self) {
        // An error means that the `Drain` is gone: nobody is left to wait for us.
        drop(watch::Receiver::clone(&self.0).wait_for(|phase| *phase == Phase::Draining).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_finished_when_the_last_guard_is_dropped() {
        let (drain, guard) = Drain::new();
        let (started, wait) = tokio::sync::oneshot::channel();
        guard.spawn(async |mut guard: Guard| {
            guard.draining().await;
            started.send(guard).expect("the test waits");
        });
        assert!(!guard.is_draining());
        drain.start();
        assert!(guard.is_draining());
        let last = wait.await.expect("the task was told");
        drop(guard);
        drop(last);
        drain.finished().await;
    }
}
