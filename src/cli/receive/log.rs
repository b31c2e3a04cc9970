//! What is said on standard error: by a thread of its own, so that a log that nobody reads holds up no client.

use std::io::Write as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

/// Lines that wait to be written; what comes beyond them is lost, and counted.
const WAITING_MAX: usize = 1024;
/// How long the last lines may take.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

static LOG: OnceLock<SyncSender<Entry>> = OnceLock::new();
/// Lines that found no room.
static LOST: AtomicU64 = AtomicU64::new(0);

enum Entry {
    Line(String),
    /// Everything before it has been written when this is answered.
    Flush(SyncSender<()>),
}

/// Begins writing.
pub(super) fn begin() -> std::io::Result<()> {
    let (sender, entries) = sync_channel(WAITING_MAX);
    if LOG.set(sender).is_ok() {
        thread::Builder::new().name("log".to_owned()).spawn(move || write(&entries))?;
    }
    Ok(())
}

/// Says a line. That nobody reads it is no reason to end or to wait.
pub(super) fn say(line: impl Into<String>) {
    if LOG.get().is_none_or(|log| log.try_send(Entry::Line(line.into())).is_err()) {
        LOST.fetch_add(1, Ordering::Relaxed);
    }
}

/// Waits until everything is written, for a while.
pub(super) fn flush() {
    let Some(log) = LOG.get() else { return };
    let (sender, written) = sync_channel(1);
    if log.try_send(Entry::Flush(sender)).is_ok() {
        let _ = written.recv_timeout(FLUSH_TIMEOUT);
    }
}

fn write(entries: &Receiver<Entry>) {
    for entry in entries {
        let lost = LOST.swap(0, Ordering::Relaxed);
        if lost > 0 {
            crate::cli::say(&format!("{lost} lines were lost"));
        }
        match entry {
            // A line goes out in one piece, also beside those of others.
            Entry::Line(mut line) => {
                line.push('\n');
                drop(std::io::stderr().write_all(line.as_bytes()));
            }
            Entry::Flush(written) => drop(written.try_send(())),
        }
    }
}
