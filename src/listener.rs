//! Addresses that accept clients.
//!
//! Accepting never ends the server: what fails is logged, waited out, and tried again. A gateway that is out of
//! descriptors, or owns `connections_max` clients, leaves new ones in the kernel's queue until one is free.
//!
//! Each worker has a TCP socket of its own (SO_REUSEPORT), and clients are accepted when their first bytes are here, or
//! after a second (TCP_DEFER_ACCEPT). Measured against one socket in every worker's epoll, gateway CPU for each handoff at
//! 64 clients on 2 cores, three rounds: 0.80 to 0.91 with sockets of their own, 0.79 to 0.87 with one but deferred, 0.67 to
//! 0.84 with both. What one socket would give instead: a worker that leaves alone loses nobody (of 40,000 clients under 510
//! leaves, 55 were reset where the worker had a socket of its own, although it had emptied its queue first), and clients do
//! not wait behind one that a policy holds up (1 % of requests blocking 5 ms: 5.6 % of the others were late by over 1 ms,
//! against 2.9 %). So workers never leave alone here: all stop accepting together, after everybody who had connected is in
//! their queues; what blocks one is bounded by the policies' deadline; and the limit on connections is one for all.
//!
//! System calls: socket(2), setsockopt(2), bind(2), listen(2), accept4(2), getsockname(2), unlink(2).

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use crate::admission::{Admission, Place};
use crate::client::Client;
use crate::drain::Guard;
use crate::request::{Origin, Peer};
use crate::unix_socket::{self, BACKLOG, SocketFile};

/// Clients accepted before other tasks of the worker get their turn: a worker that a policy is about to hold up should
/// not have taken clients that another could serve.
const ACCEPT_BATCH: usize = 16;
/// How long accepting pauses when the system has no descriptor or memory for another client.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);
/// A client that has said nothing for this long is accepted all the same, and is ours to wait for.
const DEFER_SECONDS: i32 = 1;
/// How long accepting goes on at its end, for clients that have connected and said nothing: by then the kernel has asked
/// them again (a second after their first packet, RFC 6298 §2) and put them into the queue.
const LAST_WORD: Duration = Duration::from_millis(1250);
/// How long before the listener closes nobody can connect any more; who has begun to, within as much of a round trip, ends up
/// in the queue before the last look at it.
const LAST_CALL: Duration = Duration::from_millis(200);

/// An address that shall accept clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Its name in the log and to policies.
    pub name: Arc<str>,
    /// Where.
    pub address: Address,
}

impl Options {
    /// Whether it is the same address, so that its socket can be kept under whatever name. Each port 0 is another one.
    pub fn is_same_place(&self, other: &Self) -> bool {
        let has_port = !matches!(&self.address, Address::Tcp(address) if address.port() == 0);
        self.address == other.address && (has_port || self.name == other.name)
    }
}

/// Where a listener listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// IPv4 or IPv6; `[::]` takes both unless another listener has the IPv4 port.
    Tcp(SocketAddr),
    /// A Unix socket's path.
    Unix(PathBuf),
}

impl Address {
    /// Reads `127.0.0.1:8080`, `[::]:80` or `unix:/path`.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.len() {
                _ if !path.starts_with('/') => Err(format!("{path:?} is no absolute path")),
                length @ 108.. => Err(format!("path is {length} bytes, a Unix socket address holds 107")),
                _ => Ok(Self::Unix(path.into())),
            };
        }
        if text.starts_with("fd:") {
            return Err("inherited listeners are not served by this version".into());
        }
        let wrong = || format!("{text:?} is no address: write 127.0.0.1:8080, [::]:80 or unix:/run/baton/http.sock");
        text.parse().map(Self::Tcp).map_err(|_| wrong())
    }
}

/// A bound address, with a socket for every worker: TCP sockets of their own (SO_REUSEPORT), or the one Unix socket.
#[derive(Debug)]
pub struct Listener {
    name: Arc<str>,
    local: Address,
    sockets: Vec<OwnedFd>,
    /// Removes the Unix socket that we made.
    _file: Option<SocketFile>,
}

impl Listener {
    /// Binds the address for `workers` threads. `others` are all addresses of the configuration.
    ///
    /// A Unix socket that nobody listens on any more is replaced; a living one is not taken from its owner.
    ///
    /// # Errors
    /// The system's, as bind(2) and listen(2) have it; `AddrInUse` where somebody listens.
    pub fn bind(options: &Options, others: &[Options], workers: usize) -> io::Result<Self> {
        let (socket, local, file) = match &options.address {
            Address::Tcp(address) => {
                // Alone, or two programs of one user would share the clients. The others of ours may join when it listens.
                let socket = bind_tcp(*address, others, Sharing::Not)?;
                sockopt::set_socket_reuseport(&socket, true)?;
                let local = rustix::net::getsockname(&socket)?;
                (socket, Address::Tcp(tcp_address(&local).unwrap_or(*address)), None)
            }
            Address::Unix(path) => {
                let (socket, file) = unix_socket::bind(path, None)?;
                (socket, options.address.clone(), Some(file))
            }
        };
        let mut sockets = Vec::with_capacity(workers);
        for _ in 1..workers {
            sockets.push(match &local {
                Address::Tcp(address) => bind_tcp(*address, others, Sharing::WithOurs)?,
                Address::Unix(_) => socket.try_clone()?,
            });
        }
        sockets.push(socket);
        Ok(Self { name: Arc::clone(&options.name), local, sockets, _file: file })
    }

    /// Takes out one worker's socket; there are as many as workers.
    pub fn socket(&mut self) -> Option<Accept> {
        let local = match &self.local {
            Address::Tcp(address) if !address.ip().is_unspecified() => Some(address.to_string().into()),
            Address::Tcp(_) => None,
            Address::Unix(path) => Some(path.display().to_string().into()),
        };
        Some(Accept { socket: self.sockets.pop()?, name: Arc::clone(&self.name), local })
    }
}

impl std::fmt::Display for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.local {
            Address::Tcp(address) => write!(f, "http://{address} ({})", self.name),
            Address::Unix(path) => write!(f, "unix:{} ({})", path.display(), self.name),
        }
    }
}

/// Whether a socket may listen where another does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sharing {
    Not,
    /// With those of the same user that allow it (SO_REUSEPORT, socket(7)).
    WithOurs,
}

fn bind_tcp(address: SocketAddr, others: &[Options], sharing: Sharing) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    // Inherited by every accepted client: tokens are small, and each shall leave at once.
    sockopt::set_tcp_nodelay(&socket, true)?;
    // One for each worker: the kernel spreads clients over them and wakes one worker for each, not all.
    sockopt::set_socket_reuseport(&socket, sharing == Sharing::WithOurs)?;
    crate::handoff::defer_accept(socket.as_fd(), DEFER_SECONDS)?;
    if address.is_ipv6() {
        // Two times port 0 are two ports.
        let has_v4 = |o: &Options| matches!(&o.address, Address::Tcp(a) if a.is_ipv4() && a.port() == address.port());
        sockopt::set_ipv6_v6only(&socket, address.port() != 0 && others.iter().any(has_v4))?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

fn tcp_address(any: &SocketAddrAny) -> Option<SocketAddr> {
    SocketAddr::try_from(any.clone()).ok()
}

/// Where a client comes from that was accepted before, as its socket says.
///
/// # Errors
/// The kernel does not say who it is.
pub fn origin_of(client: BorrowedFd<'_>, listener: Arc<str>) -> Result<Origin, Errno> {
    origin(client, rustix::net::getpeername(client)?, listener, None)
}

fn origin(
    client: BorrowedFd<'_>,
    peer: Option<SocketAddrAny>,
    listener: Arc<str>,
    local: Option<Arc<str>>,
) -> Result<Origin, Errno> {
    let peer = match peer.as_ref().and_then(tcp_address) {
        Some(address) => Peer::Tcp(address),
        None => {
            let who = sockopt::socket_peercred(client)?;
            let pid = u32::try_from(who.pid.as_raw_nonzero().get()).ok();
            Peer::Unix { uid: who.uid.as_raw(), gid: who.gid.as_raw(), pid }
        }
    };
    let own = || {
        let address = rustix::net::getsockname(client).ok()?;
        let path = || Some(SocketAddrUnix::try_from(address.clone()).ok()?.path()?.to_string_lossy().into_owned());
        tcp_address(&address).map(|address| address.to_string()).or_else(path)
    };
    let local = local.unwrap_or_else(|| own().unwrap_or_default().into());
    Ok(Origin { peer, local, listener })
}

/// One worker's end of a listener.
#[derive(Debug)]
pub struct Accept {
    socket: OwnedFd,
    name: Arc<str>,
    /// `None` where it is each client's own: the listener is bound to every address.
    local: Option<Arc<str>>,
}

/// What is done at the end of accepting.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Nobody can connect any more.
    Shut,
    /// The queue is looked at for the last time.
    LookOnce,
}

/// Why accepting stopped for now.
#[derive(Debug)]
enum Pause {
    /// Other tasks of the worker get their turn.
    Batch,
    /// Nobody is waiting.
    Empty,
    /// No descriptor or memory for another client; without an error, only the reserve is left.
    Exhausted(Option<Errno>),
    /// `connections_max` clients are owned.
    Full,
}

impl Accept {
    /// Accepts clients until the drain begins, and gives each to `serve` with its place. At the end it goes on for a moment
    /// and empties the kernel's queue: whoever connected before the end is served.
    pub async fn run(self, admission: Arc<Admission>, guard: Guard, serve: impl Fn(Client, Origin, Place)) {
        let Self { socket, name, local } = self;
        match crate::handoff::watch(socket, Interest::READABLE) {
            // Every client counts itself into the names: a worker that has them to itself waits for nobody's cache.
            Ok(socket) => {
                let accepting = Accepting { socket, name: Arc::from(&*name), local: local.map(|l| Arc::from(&*l)) };
                accepting.run(admission, guard, serve).await;
            }
            Err((_, error)) => tracing::error!(listener = %name, %error, "cannot wait for clients"),
        }
    }
}

/// The same, registered with the worker's reactor.
struct Accepting {
    socket: AsyncFd<OwnedFd>,
    name: Arc<str>,
    local: Option<Arc<str>>,
}

impl Accepting {
    async fn run(self, admission: Arc<Admission>, mut guard: Guard, serve: impl Fn(Client, Origin, Place)) {
        let mut exhausted = false;
        loop {
            let pause = match exhausted.then(|| self.exhaustion(&admission)).flatten() {
                Some(still) => still,
                None => self.accept_some(&admission, &serve),
            };
            if let Pause::Exhausted(error) = &pause
                && !exhausted
            {
                let error =
                    error.map_or_else(|| "only the reserve of descriptors is left".to_owned(), |e| e.to_string());
                tracing::error!(listener = %self.name, error, "cannot accept for now");
            }
            exhausted = matches!(pause, Pause::Exhausted(_));
            let wait = async {
                match pause {
                    Pause::Batch => tokio::task::yield_now().await,
                    // Cleared before the next look: who comes after the look is a new event.
                    Pause::Empty => drop(self.socket.readable().await.map(|mut guard| guard.clear_ready())),
                    Pause::Exhausted(_) => tokio::time::sleep(EXHAUSTED_PAUSE).await,
                    Pause::Full => admission.vacancy().await,
                }
            };
            tokio::select! {
                biased;
                () = guard.draining() => break,
                () = wait => {}
            }
        }
        self.accept_last(&admission, &serve).await;
    }

    /// Accepts whoever has connected already. A client that has not said anything is not in the queue yet, would not be told
    /// of the end, and would be reset when it speaks: so the kernel is told to defer no more, and gets the time to bring
    /// it. Who connects meanwhile is served too. Who would come between the last look and the close would be reset as well:
    /// so at last nobody can connect any more, and finds the next gateway, or none, with the next try of its kernel.
    ///
    /// Beyond the maximum if need be: a place that is never free would be a client that is never answered.
    async fn accept_last(&self, admission: &Arc<Admission>, serve: &impl Fn(Client, Origin, Place)) {
        let is_tcp = crate::handoff::defer_accept(self.socket.as_fd(), 0).is_ok();
        let mut steps = VecDeque::new();
        if is_tcp {
            let end = Instant::now() + LAST_WORD;
            steps.extend([(end - LAST_CALL, Step::Shut), (end, Step::LookOnce)]);
        }
        loop {
            match self.accept() {
                Ok((client, peer)) => {
                    self.give(client, peer, admission.place_beyond(), serve);
                }
                Err(Errno::AGAIN) => {
                    let Some(&(until, step)) = steps.front() else { return };
                    match tokio::time::timeout_at(until, self.socket.readable()).await {
                        Ok(Ok(mut guard)) => guard.clear_ready(),
                        _ => {
                            steps.pop_front();
                            if step == Step::Shut
                                && let Err(error) = crate::handoff::ignore_newcomers(self.socket.as_fd())
                            {
                                tracing::debug!(listener = %self.name, %error, "who connects in the last moment is reset");
                            }
                        }
                    }
                }
                Err(error) if is_exhaustion(error) => tokio::time::sleep(EXHAUSTED_PAUSE).await,
                Err(error) => self.lost(error),
            }
        }
    }

    /// Whether there is still no descriptor but the reserve's. A new one gets the lowest free number, so asking for one
    /// tells. Otherwise every pause would end with one more client, and eat the reserve up slowly.
    fn exhaustion(&self, admission: &Admission) -> Option<Pause> {
        match rustix::io::fcntl_dupfd_cloexec(self.socket.get_ref(), 0) {
            Ok(lowest) => admission.is_reserve(number(&lowest)).then_some(Pause::Exhausted(None)),
            Err(error) => Some(Pause::Exhausted(Some(error))),
        }
    }

    fn accept_some(&self, admission: &Arc<Admission>, serve: &impl Fn(Client, Origin, Place)) -> Pause {
        for _ in 0..ACCEPT_BATCH {
            let Some(place) = admission.place() else { return Pause::Full };
            match self.accept() {
                Ok((client, peer)) => {
                    let number = number(&client);
                    self.give(client, peer, place, serve);
                    if admission.is_reserve(number) {
                        return Pause::Exhausted(None);
                    }
                }
                Err(Errno::AGAIN) => return Pause::Empty,
                Err(error) if is_exhaustion(error) => return Pause::Exhausted(Some(error)),
                Err(error) => self.lost(error),
            }
        }
        Pause::Batch
    }

    /// The client was gone before it was accepted, or its network reported an error (accept(2)).
    fn lost(&self, error: Errno) {
        tracing::debug!(listener = %self.name, %error, "a client was lost before it was accepted");
    }

    fn accept(&self) -> Result<(OwnedFd, Option<SocketAddrAny>), Errno> {
        loop {
            match rustix::net::acceptfrom_with(self.socket.get_ref(), SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Err(Errno::INTR) => {}
                result => return result,
            }
        }
    }

    fn give(&self, client: OwnedFd, peer: Option<SocketAddrAny>, place: Place, serve: &impl Fn(Client, Origin, Place)) {
        match origin(client.as_fd(), peer, Arc::clone(&self.name), self.local.clone()) {
            Ok(origin) => serve(Client::new(client), origin, place),
            Err(error) => tracing::debug!(listener = %self.name, %error, "a client without credentials"),
        }
    }
}

fn is_exhaustion(error: Errno) -> bool {
    matches!(error, Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)
}

fn number(descriptor: &OwnedFd) -> usize {
    usize::try_from(descriptor.as_raw_fd()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each binds several sockets to the address, and none of them may slip in between another's.
    #[test]
    fn of_gateways_that_start_together_one_gets_the_address() {
        let options = |port| Options { name: "http".into(), address: Address::Tcp(([127, 0, 0, 1], port).into()) };
        let free = Listener::bind(&options(0), &[], 1).expect("some port");
        let Address::Tcp(address) = free.local else { panic!("it was asked for TCP") };
        drop(free);
        for _ in 0..100 {
            let barrier = std::sync::Barrier::new(4);
            let bound = std::thread::scope(|scope| {
                let bind = || {
                    barrier.wait();
                    let bound = Listener::bind(&options(address.port()), &[], 8);
                    barrier.wait();
                    bound.is_ok()
                };
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(bind)).collect();
                threads.into_iter().map(|t| t.join().expect("no panic")).filter(|&is_bound| is_bound).count()
            });
            assert_eq!(bound, 1);
        }
    }
}
