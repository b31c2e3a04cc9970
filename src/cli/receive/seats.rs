//! How many clients are served at the moment.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Places for clients.
#[derive(Debug, Default)]
pub(super) struct Seats {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    taken: u32,
    is_closed: bool,
}

impl Seats {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn taken(&self) -> u32 {
        self.state().taken
    }

    /// Waits until fewer than that are taken, or until it is closed.
    pub(super) fn wait_for_room(&self, max: u32) {
        let full = |state: &mut State| state.taken >= max && !state.is_closed;
        drop(self.changed.wait_while(self.state(), full).unwrap_or_else(PoisonError::into_inner));
    }

    /// Nobody is waited for any more.
    pub(super) fn close(&self) {
        self.state().is_closed = true;
        self.changed.notify_all();
    }

    /// Waits for the last one, at most so long.
    pub(super) fn wait_until_empty(&self, patience: Duration) {
        let busy = |state: &mut State| state.taken > 0;
        drop(self.changed.wait_timeout_while(self.state(), patience, busy));
    }
}

/// One client's place among [`Seats`], given back when dropped.
#[derive(Debug)]
pub(super) struct Seat(Arc<Seats>);

impl Seat {
    pub(super) fn take(seats: &Arc<Seats>) -> Self {
        seats.state().taken += 1;
        Self(Arc::clone(seats))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.state().taken -= 1;
        self.0.changed.notify_all();
    }
}
