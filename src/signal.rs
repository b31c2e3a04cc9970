//! What the operator's signals mean.

use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// A wish of the operator's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// TERM (systemd, Kubernetes) and INT (Ctrl-C): finish what has begun, then end. A second one cuts.
    Drain,
    /// HUP: read configuration and policies again.
    Reload,
    /// USR1 (logrotate): open the access log again.
    Reopen,
}

/// The signals that are listened to, from its making on.
#[derive(Debug)]
pub struct Signals {
    term: Stream,
    int: Stream,
    hup: Stream,
    usr1: Stream,
}

impl Signals {
    /// Begins to listen, in a tokio runtime: from here on none of them ends the process.
    ///
    /// # Errors
    /// The system's (signal-hook's registry).
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
            usr1: signal(SignalKind::user_defined1())?,
        })
    }

    /// Waits for the next one.
    ///
    /// # Cancel safety
    /// Dropping it loses nothing.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.term.recv() => Signal::Drain,
            _ = self.int.recv() => Signal::Drain,
            _ = self.hup.recv() => Signal::Reload,
            _ = self.usr1.recv() => Signal::Reopen,
        }
    }
}
