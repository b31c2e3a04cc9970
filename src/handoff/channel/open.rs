//! How a link begins: connect, say HELLO without waiting, and hear it.

use std::io::{self, IoSlice};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Instant as Clock;

use nix::unistd::Pid;
use tokio::io::Interest;
use tokio::time::{Instant, timeout_at};

use super::super::ancillary;
use super::super::error::{Refusal, Stage};
use super::super::native::frame::{Frame, Hello};
use super::super::native::header;
use super::super::send::{self, Daemon, Deadlines};
use super::link::{Link, Look};
use super::{Channel, Place};

/// Why there is no link.
pub(super) struct Failure {
    pub stage: Stage,
    pub source: Refusal,
    /// Somebody listens, and is no use.
    pub has_connected: bool,
}

/// Opens a link: it has heard HELLO.
pub(super) async fn open(
    channel: &Arc<Channel>,
    to: &Daemon,
    deadlines: &Deadlines,
    place: Option<Place>,
) -> Result<Arc<Link>, Failure> {
    let connected = send::connect(to, deadlines.connect).await;
    let connected = connected.map_err(|(stage, source)| Failure { stage, source, has_connected: false })?;
    let failed = |source: Refusal| Failure { stage: Stage::Connect, source, has_connected: true };
    let socket = connected.connection;
    let hello = Frame::Hello(Hello {
        versions: vec![header::VERSION.into()],
        name: concat!("baton ", env!("CARGO_PKG_VERSION")).to_owned(),
        pid: std::process::id().into(),
        in_flight_max: 0,
        data_bytes_max: None,
        roles: vec!["gateway".to_owned()],
    });
    ancillary::send(socket.as_fd(), &[IoSlice::new(&hello.encode())], &[]).map_err(|error| failed(error.into()))?;
    let watched = ancillary::watch(socket, Interest::READABLE | Interest::WRITABLE);
    let socket = watched.map_err(|(_, error)| failed(error.into()))?;
    let link =
        Arc::new(Link::new(socket, Arc::downgrade(channel), to.address().path().to_owned(), place, Clock::now()));
    let deadline = Instant::now() + deadlines.acknowledge;
    loop {
        match timeout_at(deadline, link.readable()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(failed(error.into())),
            Err(_) => return Err(failed(Refusal::Silent)),
        }
        match link.look() {
            Look::Open => {
                if let Some(speaker) = link.speaker() {
                    watch(&link, speaker);
                    return Ok(link);
                }
            }
            Look::Over => return Err(failed(link.why_over().unwrap_or(Refusal::NeverRead))),
        }
    }
}

/// Keeps hold of the process that speaks, to be asked later whether it still is there. It is taken at its word: whoever
/// listens may be another one, which a service manager is, or the parent of whoever serves.
fn watch(link: &Link, speaker: u64) {
    let process = i32::try_from(speaker).ok().filter(|process| *process > 0).map(Pid::from_raw);
    if let Some(Ok(descriptor)) = process.map(ancillary::process) {
        // It is set here only.
        drop(link.peer.set(descriptor));
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self { stage: Stage::Connect, source: error.into(), has_connected: true }
    }
}
