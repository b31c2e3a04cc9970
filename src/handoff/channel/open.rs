//! How a link begins: connect, say HELLO without waiting, and hear it.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Instant as Clock;

use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::Pid;
use tokio::io::Interest;
use tokio::time::{Instant, timeout_at};

use super::super::ancillary;
use super::super::error::{Refusal, Stage};
use super::super::native::frame::{Frame, Hello};
use super::super::native::header;
use super::super::send::{self, Daemon, Deadlines};
use super::Channel;
use super::link::{self, Link, Look};

/// Why there is no link.
pub(super) struct Failure {
    pub stage: Stage,
    pub source: Refusal,
    /// Somebody listens, and is no use.
    pub has_connected: bool,
}

/// Opens a link: it has heard HELLO.
pub(super) async fn open(channel: &Arc<Channel>, to: &Daemon, deadlines: &Deadlines) -> Result<Arc<Link>, Failure> {
    let path = to.address().path();
    // Before: one that is replaced in between is then taken for its own successor, once, and never for itself.
    let place = link::place(path);
    let connected = send::connect(to, deadlines.connect).await;
    let connected = connected.map_err(|(stage, source)| Failure { stage, source, has_connected: false })?;
    let failed = |source: Refusal| Failure { stage: Stage::Connect, source, has_connected: true };
    let socket = connected.connection;
    let peer = peer(&socket);
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
    let channel = Arc::downgrade(channel);
    let link = Arc::new(Link::new(socket, peer, channel, path.to_owned(), place, Clock::now()));
    let deadline = Instant::now() + deadlines.acknowledge;
    loop {
        match timeout_at(deadline, link.readable()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(failed(error.into())),
            Err(_) => return Err(failed(Refusal::Silent)),
        }
        match link.look() {
            Look::Open if link.has_hello() => return Ok(link),
            Look::Open => {}
            Look::Over => return Err(failed(link.why_over().unwrap_or(Refusal::NeverRead))),
        }
    }
}

/// The process that listens, to be asked later whether it still is; `None` where the kernel does not tell.
fn peer(socket: &OwnedFd) -> Option<(i32, OwnedFd)> {
    let pid = getsockopt(socket, sockopt::PeerCredentials).ok()?.pid();
    let descriptor = ancillary::process(Pid::from_raw(pid)).ok()?;
    Some((pid, descriptor))
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self { stage: Stage::Connect, source: error.into(), has_connected: true }
    }
}
