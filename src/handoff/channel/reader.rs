//! The task that reads a link until it ends.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::super::ancillary;
use super::super::native::frame::Frame;
use super::super::native::header::PACKET_BYTES_MAX;
use super::link::{Link, Why};
use super::loan::Word;

/// After so long without a word the daemon is asked for one.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// How long a process may take from the end of its channel to its own.
const EXIT_PATIENCE: Duration = Duration::from_millis(200);

/// Reads a link until it ends, and says what became of whoever was lent then.
pub(super) async fn run(link: Arc<Link>) {
    let mut silence = tokio::time::interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
    silence.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut heard = 0;
    loop {
        let has_unsent = {
            let mut books = link.books();
            if books.over.is_some() {
                break;
            }
            if let Err(why) = link.flush(&mut books) {
                link.finish(&mut books, Some(why), &mut vec![0; PACKET_BYTES_MAX + 1]);
                break;
            }
            if books.is_closing && books.ledger.is_empty() && books.permits == 0 {
                link.finish(&mut books, None, &mut []);
                break;
            }
            !books.unsent.is_empty()
        };
        tokio::select! {
            readable = link.readable() => {
                if let Err(error) = readable {
                    let mut books = link.books();
                    link.finish(&mut books, Some(Why::Io(error)), &mut vec![0; PACKET_BYTES_MAX + 1]);
                    break;
                }
                link.read();
            }
            writable = link.socket.writable(), if has_unsent => {
                if let Ok(mut guard) = writable {
                    guard.clear_ready();
                }
            }
            () = link.wake.notified() => {
                link.read();
                tokio::task::yield_now().await;
            }
            _ = silence.tick() => heard = link.listen_for_silence(heard),
        }
    }
    let (why, lent, taken) = {
        let mut books = link.books();
        let over = books.over.as_mut().expect("it is over");
        let why = over.why.take().filter(|_| !over.is_reported);
        (why, std::mem::take(&mut over.lent), std::mem::take(&mut over.taken))
    };
    // Each writes its line, and may be the last who knows of a policy, or of this link's channel: not under the lock.
    drop(taken);
    let (daemon, count) = (link.path.display(), lent.len());
    match &why {
        Some(why) => tracing::warn!(%daemon, lent = count, error = %why, "the channel was ended"),
        None => tracing::debug!(%daemon, lent = count, "the channel has ended"),
    }
    if let Some(channel) = link.channel.upgrade() {
        channel.forget(&link);
        // Whoever listens there from now on is somebody else.
        channel.state().has_left(&link);
        if why.is_some() {
            channel.broke(link.age(), link.place());
        }
    }
    if lent.is_empty() {
        return;
    }
    let has_exited = link.has_exited().await;
    for loan in lent {
        loan.tell(if has_exited { Word::Gone } else { Word::Broken });
    }
}

impl Link {
    /// Whether the process that spoke has ended.
    async fn has_exited(&self) -> bool {
        let Some(Ok(descriptor)) = self.peer.get().map(|peer| peer.try_clone()) else { return false };
        let Ok(watched) = ancillary::watch(descriptor, tokio::io::Interest::READABLE) else { return false };
        timeout(EXIT_PATIENCE, watched.readable()).await.is_ok_and(|ready| ready.is_ok())
    }

    /// Asks a daemon that has not said anything since the last time for a word; one that owes it already does not answer.
    fn listen_for_silence(&self, heard: u64) -> u64 {
        let mut books = self.books();
        if books.heard == heard && books.is_asked {
            if !books.is_silent {
                tracing::warn!(daemon = %self.path.display(), "the daemon does not answer");
            }
            books.is_silent = true;
        } else if books.heard == heard {
            books.is_asked = true;
            books.unsent.push_back(Frame::Ping(b"baton".to_vec()).encode());
        }
        books.heard
    }
}
