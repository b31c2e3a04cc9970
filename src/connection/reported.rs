//! A client that a daemon has and will say how it ended: what is left of the request here until then, and what is done
//! when it is known. Nothing of the connection: its task has ended, and its memory with it.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use super::account::{Account, PackedAccount};
use super::{Worker, requests};
use crate::access_log::Record;
use crate::admission::Place;
use crate::arrival::Turn;
use crate::client::Client;
use crate::decision::Outcome;
use crate::drain::{Guard, WeakGuard};
use crate::exchange::Closing;
use crate::handoff::channel::OnEnd;
use crate::handoff::native::frame::{self, Report};
use crate::handoff::native::ledger::End;
use crate::listener;
use crate::request::{Id, Origin};

/// What is kept of a request whose client a daemon has.
#[derive(Debug)]
pub(super) struct Reported {
    account: Option<PackedAccount>,
    /// Not the line's: where nobody wants to know of a request, there is none.
    id: Id,
    listener: Arc<str>,
    worker: Arc<Worker>,
    guard: WeakGuard,
    /// Whether the client means to send another request.
    goes_on: bool,
}

impl Reported {
    pub(super) fn new(
        account: Account,
        id: Id,
        origin: &Origin,
        worker: &Arc<Worker>,
        guard: &Guard,
        goes_on: bool,
    ) -> Self {
        let (account, listener) = (Some(account.pack()), Arc::clone(&origin.listener));
        Self { account, id, listener, worker: Arc::clone(worker), guard: guard.downgrade(), goes_on }
    }
}

impl OnEnd for Reported {
    fn ended(mut self: Box<Self>, end: End<OwnedFd>) {
        let Some(packed) = self.account.take() else { return };
        let mut account = packed.unpack();
        account.set(|record| fill(record, &end.report, end.back.is_some()));
        drop(account);
        let Some((socket, unread)) = end.back else { return };
        // The gateway has finished in between: nobody serves the client any more.
        let Some(guard) = self.guard.upgrade() else { return };
        let Ok(origin) = listener::origin_of(socket.as_fd(), Arc::clone(&self.listener)) else { return };
        let client = Client::with_preread(socket, unread);
        let place = self.worker.admission.place_beyond();
        let worker = Arc::clone(&self.worker);
        if self.goes_on {
            guard.spawn(|guard| go_on(worker, client, origin, place, guard));
        } else {
            guard.spawn(|guard| close(client, place, guard));
        }
    }

    fn is_about(&self, request: &str) -> bool {
        self.id.is(request)
    }
}

/// No word of it will come: the line is written with what is known, and the policies are told.
impl Drop for Reported {
    fn drop(&mut self) {
        drop(self.account.take().map(PackedAccount::unpack));
    }
}

async fn go_on(worker: Arc<Worker>, client: Client, origin: Origin, place: Place, guard: Guard) {
    requests(&worker, client, &Arc::new(origin), Turn::Later, guard, place).await;
}

/// Ends the connection in a way that lets the answer arrive.
async fn close(client: Client, place: Place, mut guard: Guard) {
    Closing::new(client).linger(&mut guard).await;
    drop(place);
}

/// Puts a daemon's report into the line.
pub(super) fn fill(record: &mut Record, report: &Report, comes_back: bool) {
    let said = report.message.as_deref().unwrap_or_default();
    let error = |word: &str| Some(if said.is_empty() { word.to_owned() } else { format!("{word}: {said}") });
    let outcome = if comes_back { Outcome::Returned } else { Outcome::HandedOff };
    (record.outcome, record.error) = match report.result {
        frame::Outcome::Ok => (outcome, None),
        frame::Outcome::ClientGone => (Outcome::ClientGone, error("the client left the daemon")),
        frame::Outcome::Error => (outcome, error("the daemon failed")),
        frame::Outcome::Revoked => (outcome, error("revoked")),
        frame::Outcome::Timeout => (outcome, error("the daemon gave up")),
    };
    record.status = report.status.or(record.status);
    // The daemon's word, whatever it says.
    record.bytes_out = record.bytes_out.saturating_add(report.bytes_out);
}
