//! A connection to a server: over TCP, a Unix socket or an abstract name, and inside of TLS.
//!
//! System calls: socket(2), bind(2), connect(2), setsockopt(2) by way of tokio; for Unix sockets our own, because a full
//! backlog is an error there that goes away, and because a path may be longer than an address holds (unix(7)): then the
//! file is opened as a name only (O_PATH), and `/proc/self/fd/N` is connected to.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use super::tls::Tls;
use super::{Address, Protocol, Transport};

/// How it is connected to, besides where.
#[derive(Clone, Debug, Default)]
pub struct ConnectOptions {
    /// The address that a connection over TCP comes from; absent: the system's choice.
    pub source: Option<IpAddr>,
    /// How `https` knows the right server; it must be there for it.
    pub tls: Option<Arc<Tls>>,
}

/// Why a server is not connected to; not a byte of a request has gone to it.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    /// The name is not known.
    #[error("{0} cannot be looked up")]
    Lookup(String, #[source] io::Error),
    /// No address of the name is of the source's kind.
    #[error("{host} has no address that can be reached from {from}: source is of the other kind of IP")]
    OtherFamily {
        /// The name.
        host: String,
        /// The source.
        from: IpAddr,
    },
    /// The source is no address of this machine.
    #[error("source {0} cannot be used")]
    Source(IpAddr, #[source] io::Error),
    /// It did not prove to be the one.
    #[error("no TLS with {0}")]
    Tls(Transport, #[source] io::Error),
    /// It is not there.
    #[error("{0}")]
    Unreachable(Transport, #[source] io::Error),
    /// `https` without [`ConnectOptions::tls`].
    #[error("{0} wants TLS, and nothing says how")]
    WithoutTls(Transport),
}

/// A connected stream of bytes.
#[derive(Debug)]
pub enum Stream {
    /// In clear text over TCP.
    Tcp(TcpStream),
    /// Inside of TLS, over one of the others.
    Tls(Box<TlsStream<Self>>),
    /// In clear text over a Unix socket.
    Unix(UnixStream),
}

/// Connects. The caller bounds the time: a full backlog is waited for without end.
///
/// # Errors
/// Any of [`ConnectError`]; of several addresses of one name, the last one's.
///
/// # Cancel safety
/// Dropping it closes what has been connected.
pub(super) async fn connect(address: &Address, options: &ConnectOptions) -> Result<Stream, ConnectError> {
    let transport = &address.transport;
    let unreachable = |error: io::Error| ConnectError::Unreachable(transport.clone(), error);
    let stream = match transport {
        Transport::Abstract(name) => {
            let named = SocketAddrUnix::new_abstract_name(name).map_err(|error| unreachable(error.into()))?;
            Stream::Unix(connect_unix(&named).await.map_err(unreachable)?)
        }
        Transport::Tcp { host, port } => Stream::Tcp(connect_tcp(transport, host, *port, options.source).await?),
        Transport::Unix(path) => {
            let (named, kept) = address_of(path).map_err(unreachable)?;
            let stream = connect_unix(&named).await;
            drop(kept);
            Stream::Unix(stream.map_err(unreachable)?)
        }
    };
    if address.protocol != Protocol::Https {
        return Ok(stream);
    }
    let Some(tls) = &options.tls else { return Err(ConnectError::WithoutTls(transport.clone())) };
    let stream = tls.connector.connect(tls.name.clone(), stream).await;
    Ok(Stream::Tls(Box::new(stream.map_err(|error| ConnectError::Tls(transport.clone(), error))?)))
}

async fn connect_tcp(
    transport: &Transport,
    host: &str,
    port: u16,
    source: Option<IpAddr>,
) -> Result<TcpStream, ConnectError> {
    let unknown = |error| ConnectError::Lookup(host.to_owned(), error);
    let is_of_kind = |to: &SocketAddr| source.is_none_or(|from| from.is_ipv4() == to.is_ipv4());
    let mut last = match source {
        Some(from) => ConnectError::OtherFamily { host: host.to_owned(), from },
        None => unknown(io::ErrorKind::NotFound.into()),
    };
    for to in tokio::net::lookup_host((host, port)).await.map_err(unknown)?.filter(is_of_kind) {
        match connect_from(source, to).await {
            Ok(stream) => return Ok(stream),
            Err((Step::Bind(from), error)) => return Err(ConnectError::Source(from, error)),
            Err((Step::Connect, error)) => last = ConnectError::Unreachable(transport.clone(), error),
        }
    }
    Err(last)
}

/// What failed.
enum Step {
    Bind(IpAddr),
    Connect,
}

async fn connect_from(source: Option<IpAddr>, to: SocketAddr) -> Result<TcpStream, (Step, io::Error)> {
    let failed = |error| (Step::Connect, error);
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(failed)?;
    if let Some(from) = source {
        socket.bind(SocketAddr::new(from, 0)).map_err(|error| (Step::Bind(from), error))?;
    }
    let stream = socket.connect(to).await.map_err(failed)?;
    // A request is written in one piece where it can be. Without the option the rest of it would only be slower.
    drop(stream.set_nodelay(true));
    Ok(stream)
}

/// What to connect to for a path, and what must stay open until that has happened.
fn address_of(path: &Path) -> io::Result<(SocketAddrUnix, Option<OwnedFd>)> {
    match SocketAddrUnix::new(path) {
        Ok(address) => Ok((address, None)),
        Err(Errno::NAMETOOLONG) => {
            let socket = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            let short = Path::new("/proc/self/fd").join(socket.as_raw_fd().to_string());
            Ok((SocketAddrUnix::new(short)?, Some(socket)))
        }
        Err(error) => Err(error.into()),
    }
}

/// Between two looks at a full backlog, at first and at most.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(16));

async fn connect_unix(address: &SocketAddrUnix) -> io::Result<UnixStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let (mut pause, pause_max) = BACK_OFF;
    loop {
        match rustix::net::connect(&socket, address) {
            Ok(()) => return UnixStream::from_std(socket.into()),
            // The backlog is full. There is no event for that.
            Err(Errno::AGAIN) => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(pause_max);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, into),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, into),
            Self::Unix(stream) => Pin::new(stream).poll_read(context, into),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
            Self::Unix(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, pieces),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(context, pieces),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(context, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
        }
    }
}

#[cfg(test)]
mod tests;
