//! The operator's address: figures, health, policies, and what can be done about them. HTTP/1.1 by hyper, on the thread
//! that also reloads; clients of the gateway never come near it.
//!
//! Who may ask is who can connect: a loopback address, or a Unix socket of mode 0600 whose peers are looked at as well
//! (SO_PEERCRED, unix(7)). A browser that was led here says so, by an Origin or by a Host that is a name: it is refused, or any page
//! could reload a policy of who looks at it.

mod answer;
mod view;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::fs::Mode;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::drain::Guard;
use crate::unix_socket::{self, SocketFile};

pub use view::View;

use crate::listener::Address;

/// Connections at a time; more wait.
const CONNECTIONS_MAX: usize = 32;
/// A head that takes longer ends its connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// An answer that takes longer to be taken ends its connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(300);
/// A head that is longer is refused.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// How long accepting pauses when there is no descriptor or memory for a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// What may be asked for at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rights {
    /// Looking, and changing what is in force.
    Change,
    /// Looking: others can reach the address too, and nobody is asked for a password.
    Look,
}

/// The bound address.
#[derive(Debug)]
pub struct Admin {
    socket: OwnedFd,
    local: Address,
    _file: Option<SocketFile>,
}

impl Admin {
    /// Binds the address.
    ///
    /// # Errors
    /// The system's, as bind(2) and listen(2) have it; `AddrInUse` where somebody listens.
    pub fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => {
                let listener = std::net::TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                let local = Address::Tcp(listener.local_addr()?);
                Ok(Self { socket: listener.into(), local, _file: None })
            }
            Address::Unix(path) => {
                let (socket, file) = unix_socket::bind(path, Some(Mode::RUSR | Mode::WUSR))?;
                Ok(Self { socket, local: address.clone(), _file: Some(file) })
            }
        }
    }

    /// Lets that user use it, where it is a file: who may is who owns it.
    ///
    /// # Errors
    /// There is no such user, or the file cannot be given to it.
    pub fn give_to(&self, user: &str) -> nix::Result<()> {
        let Address::Unix(path) = &self.local else { return Ok(()) };
        let user = nix::unistd::User::from_name(user)?.ok_or(nix::Error::ENOENT)?;
        // Not through a link that somebody has put there meanwhile.
        std::os::unix::fs::lchown(path, Some(user.uid.as_raw()), None)
            .map_err(|error| nix::Error::try_from(error).unwrap_or(nix::Error::UnknownErrno))
    }

    /// Begins to answer, until `until` is told to finish: then the address is closed, and what is under way is cut.
    ///
    /// # Errors
    /// The runtime does not take the socket.
    pub fn begin(self, view: Arc<View>, until: &Guard) -> io::Result<()> {
        let socket = self.socket.try_clone()?;
        let listening = match &self.local {
            Address::Tcp(_) => Listening::Tcp(TcpListener::from_std(socket.into())?),
            Address::Unix(_) => Listening::Unix(UnixListener::from_std(socket.into())?),
        };
        let rights = match &self.local {
            Address::Tcp(address) if !address.ip().is_loopback() => Rights::Look,
            _ => Rights::Change,
        };
        until.spawn(|mut until: Guard| async move {
            let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
            loop {
                let next = async {
                    let place = Arc::clone(&places).acquire_owned().await;
                    (place.expect("nobody closes it"), listening.accept().await)
                };
                let mut finish = until.clone();
                let (place, accepted) = tokio::select! {
                    () = finish.draining() => break,
                    next = next => next,
                };
                match accepted {
                    Ok(client) => until.spawn(|until| serve(client, Arc::clone(&view), rights, place, until)),
                    Err(error) => {
                        tracing::debug!(%error, "admin: no connection could be accepted");
                        tokio::select! {
                            () = until.draining() => break,
                            () = tokio::time::sleep(PAUSE) => {}
                        }
                    }
                }
            }
            drop(self);
        });
        Ok(())
    }
}

impl std::fmt::Display for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.local {
            Address::Tcp(address) => write!(f, "http://{address}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

enum Client {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
}

impl Listening {
    async fn accept(&self) -> io::Result<Client> {
        match self {
            Self::Tcp(listener) => listener.accept().await.map(|(client, _)| Client::Tcp(client)),
            Self::Unix(listener) => listener.accept().await.map(|(client, _)| Client::Unix(client)),
        }
    }
}

async fn serve(client: Client, view: Arc<View>, rights: Rights, place: OwnedSemaphorePermit, mut until: Guard) {
    if let Client::Unix(client) = &client
        && let Err(refused) = is_ours(client)
    {
        tracing::warn!("admin: {refused}");
        return;
    }
    let answered = async {
        match client {
            Client::Tcp(client) => http(client, &view, rights).await,
            Client::Unix(client) => http(client, &view, rights).await,
        }
    };
    tokio::select! {
        () = until.draining() => {}
        result = tokio::time::timeout(CONNECTION_TIMEOUT, answered) => {
            if let Ok(Err(error)) = result {
                tracing::debug!(%error, "admin: the connection ended");
            }
        }
    }
    drop(place);
}

async fn http<C: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    client: C,
    view: &Arc<View>,
    rights: Rights,
) -> hyper::Result<()> {
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(
            TokioIo::new(client),
            service_fn(|request| {
                let view = Arc::clone(view);
                async move { Ok::<_, std::convert::Infallible>(answer::answer(&view, rights, &request).await) }
            }),
        )
        .await
}

/// Whether the peer is root or runs as we do.
fn is_ours(client: &tokio::net::UnixStream) -> Result<(), String> {
    let peer = nix::sys::socket::getsockopt(&client.as_fd(), nix::sys::socket::sockopt::PeerCredentials);
    let uid = peer.map_err(|error| format!("a peer without credentials: {error}"))?.uid();
    if uid == 0 || uid == nix::unistd::geteuid().as_raw() {
        Ok(())
    } else {
        Err(format!("a connection of uid {uid} was refused"))
    }
}
