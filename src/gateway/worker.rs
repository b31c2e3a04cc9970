//! A worker's thread: its runtime, what it begins, and how it ends.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::connection::{Worker, serve};
use crate::drain::Guard;
use crate::listener::Accept;

/// A worker that runs.
#[derive(Debug)]
pub(super) struct WorkerThread {
    pub(super) worker: Arc<Worker>,
    pub(super) accepts: mpsc::UnboundedSender<Begin>,
    pub(super) thread: std::thread::JoinHandle<()>,
}

/// What a worker is given: a socket to accept from until it is told to stop, and the guard for its clients.
pub(super) type Begin = (Accept, Guard, Guard);

/// How long the end waits for calls that block, each in a thread of its own.
const BLOCKED_TIMEOUT: Duration = Duration::from_secs(1);

/// Begins a worker.
///
/// # Errors
/// The system has no thread for it, or no reactor.
pub(super) fn spawn_worker(worker: Worker) -> io::Result<WorkerThread> {
    let (accepts, mut begins) = mpsc::unbounded_channel::<Begin>();
    let worker = Arc::new(worker);
    let admission = Arc::clone(&worker.admission);
    let idle = Arc::clone(&worker);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().on_thread_park(move || idle.beat.rest()).build()?;
    let (worker, ours) = (Arc::clone(&worker), worker);
    let work = move || {
        runtime.block_on(async {
            let begin = async {
                // Ends when the gateway has drained, or given up: what still runs is dropped with the runtime.
                while let Some((accept, until, clients)) = begins.recv().await {
                    let (worker, admission) = (Arc::clone(&worker), Arc::clone(&admission));
                    clients.spawn(|clients| async move {
                        let begin = |client, origin, place| {
                            let worker = Arc::clone(&worker);
                            clients.spawn(|guard| serve(worker, client, origin, place, guard));
                        };
                        accept.run(admission, until, begin).await;
                    });
                }
            };
            tokio::select! {
                () = begin => {}
                () = worker.beat.run() => {}
            }
        });
        // Whoever has a client of ours goes on with it; what is known of it is written.
        {
            let _runtime = runtime.enter();
            worker.settings.load().targets.leave(worker.index);
        }
        // A file on a dead network, or a name that nobody resolves, is not waited for.
        runtime.shutdown_timeout(BLOCKED_TIMEOUT);
    };
    let thread = std::thread::Builder::new().name(format!("worker-{}", ours.index)).spawn(work)?;
    Ok(WorkerThread { worker: ours, accepts, thread })
}
