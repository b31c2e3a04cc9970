//! TERM and INT: the first drains, the second or the end of the drain's time cuts.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::signal::unix::{SignalKind, signal};

/// Something that happens once, and that any thread can wait for beside other descriptors.
#[derive(Debug)]
pub(super) struct Event {
    happened: PipeReader,
    /// Until then.
    pending: Mutex<Option<PipeWriter>>,
}

impl Event {
    fn new() -> io::Result<Self> {
        let (happened, pending) = io::pipe()?;
        Ok(Self { happened, pending: Mutex::new(Some(pending)) })
    }

    fn happen(&self) {
        drop(self.pending.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    pub(super) fn has_happened(&self) -> bool {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Waits for it, at most so long.
    pub(super) fn wait(&self, patience: Duration) {
        let mut ready = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        // Woken too early, whoever waits looks again.
        let _ = poll(&mut ready, PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX));
    }
}

impl AsFd for Event {
    /// Ready, in any way, once it has happened.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.happened.as_fd()
    }
}

/// How far the end has come.
#[derive(Debug)]
pub(super) struct Stopping {
    /// Nobody new.
    pub stop: Event,
    /// Whoever still runs is ended.
    pub cut: Event,
}

impl Stopping {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { stop: Event::new()?, cut: Event::new()? })
    }

    /// Listens for signals from now on, by handlers: a mask would be inherited by programs, which could not be ended by TERM then. `on_stop` is called at the first, `on_cut` when whoever still runs is to be ended.
    pub(super) fn listen(
        self: &Arc<Self>,
        drain_timeout: Duration,
        on_stop: impl FnOnce() + Send + 'static,
        on_cut: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let (asked, asks) = channel();
        let own = Arc::clone(self);
        let end = move || {
            // Without a first signal there is nothing to do; it comes before the time begins.
            if asks.recv().is_ok() {
                own.stop.happen();
                on_stop();
                // A second signal, or the end of the time.
                let _ = asks.recv_timeout(drain_timeout);
                on_cut();
                own.cut.happen();
            }
        };
        thread::Builder::new().name("drain".to_owned()).spawn(end)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let (mut term, mut int) = {
            let _inside = runtime.enter();
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
        };
        let wait = async move {
            loop {
                tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
                if asked.send(()).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("signals".to_owned()).spawn(move || runtime.block_on(wait))?;
        Ok(())
    }
}
