//! Connections to one server, and those of them that are idle.
//!
//! A connection is a task that moves its bytes, and a sender that requests go into. The task ends when the server closes,
//! when the sender is dropped, or when nobody has used it for too long. It belongs to the pool: with the pool it ends too.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread::ThreadId;
use std::time::Duration;

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf, Take};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::connect::{Stream, connect};
use super::{Fault, Options, Server, Source};

/// What is read of a connection at once, and so about what is held of it for a client that is slower.
const READ_BYTES_MAX: usize = 64 << 10;

/// One connection, in use; dropped, it is closed.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) sender: http1::SendRequest<Source>,
    idle_since: Arc<IdleSince>,
    task: AbortHandle,
}

impl Drop for Connection {
    /// Left alone it would first write what it was given, to a server that may never read it.
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// When it was put back; `None` while it is in use.
type IdleSince = Mutex<Option<Instant>>;

#[derive(Debug)]
pub(super) struct Pool {
    server: Server,
    builder: http1::Builder,
    idle_count_max: usize,
    idle_timeout: Duration,
    /// By the thread that made them: the task of a connection runs there, so nobody else takes it at the same time.
    idle: Mutex<HashMap<ThreadId, Vec<Connection>>>,
    tasks: Mutex<JoinSet<()>>,
}

impl Pool {
    pub(super) fn new(server: Server, options: &Options) -> Self {
        let mut builder = http1::Builder::new();
        builder.max_headers(options.headers_max).max_header_size(options.head_bytes_max);
        builder.max_buf_size(options.head_bytes_max.max(2 * READ_BYTES_MAX));
        Self {
            server,
            builder,
            idle_count_max: options.keep_alive,
            idle_timeout: options.keep_alive_timeout,
            idle: Mutex::default(),
            tasks: Mutex::default(),
        }
    }

    /// The idle connection that was used last, if the server has not closed it. One that is still busy, with a request's body
    /// of which its server wanted no more, is closed: nobody waits for somebody else's client.
    pub(super) fn take(&self) -> Option<Connection> {
        loop {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            let connection = idle.get_mut(&std::thread::current().id())?.pop()?;
            drop(idle);
            if connection.sender.is_ready() {
                *lock(&connection.idle_since) = None;
                return Some(connection);
            }
        }
    }

    /// Keeps a connection for the next request, if there is room.
    pub(super) fn keep(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let own = idle.entry(std::thread::current().id()).or_default();
        own.retain(|connection| !connection.sender.is_closed());
        if own.len() < self.idle_count_max && !connection.sender.is_closed() {
            *lock(&connection.idle_since) = Some(Instant::now());
            own.push(connection);
        }
    }

    /// Connects.
    pub(super) async fn connect(&self) -> Result<Connection, Fault> {
        let stream = connect(&self.server.address, &self.server.connect).await;
        let stream = stream.map_err(|error| Fault::Unreachable(crate::log::chain(&error)))?;
        let handshake = self.builder.handshake(TokioIo::new(InPieces::new(stream))).await;
        let (sender, connection) = handshake.map_err(|error| Fault::Unreachable(crate::log::chain(&error)))?;
        let idle_since = Arc::new(IdleSince::default());
        let (since, timeout) = (Arc::clone(&idle_since), self.idle_timeout);
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        let task = tasks.spawn(async move {
            tokio::select! {
                // What is wrong with it, whoever uses it is told.
                result = connection.with_upgrades() => drop(result),
                () = idle_for(timeout, &since) => {}
            }
        });
        Ok(Connection { sender, idle_since, task })
    }
}

/// A connection of which so much is read at once: hyper's buffer grows with what it can read, and a client may be slow.
///
/// A server that has answered before it read the whole request, and closed, has reset the connection: what is still written
/// to it fails, and its answer is there to be read. So a write that fails is none, and reading says what is left to say.
#[derive(Debug)]
pub(super) struct InPieces(Take<Stream>);

impl InPieces {
    pub(super) fn new(stream: Stream) -> Self {
        Self(stream.take(0))
    }

    pub(super) fn into_inner(self) -> Stream {
        self.0.into_inner()
    }
}

/// The outcome of a write to somebody who may have closed.
fn unheard(written: Poll<io::Result<usize>>, count: usize) -> Poll<io::Result<usize>> {
    match written {
        Poll::Ready(Err(error))
            if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
        {
            Poll::Ready(Ok(count))
        }
        written => written,
    }
}

impl AsyncRead for InPieces {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = &mut self.get_mut().0;
        // Of each read anew: nothing of the buffer has to be written before it is read into.
        stream.set_limit(READ_BYTES_MAX as u64);
        Pin::new(stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for InPieces {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        unheard(Pin::new(self.get_mut().0.get_mut()).poll_write(context, bytes), bytes.len())
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().0.get_mut()).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().0.get_mut()).poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let count = slices.iter().map(|slice| slice.len()).sum();
        unheard(Pin::new(self.get_mut().0.get_mut()).poll_write_vectored(context, slices), count)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.get_ref().is_write_vectored()
    }
}

/// Ends when it has been idle for so long.
async fn idle_for(timeout: Duration, since: &IdleSince) {
    loop {
        let began = lock(since).unwrap_or_else(Instant::now);
        tokio::time::sleep_until(began + timeout).await;
        if lock(since).is_some_and(|since| since.elapsed() >= timeout) {
            return;
        }
    }
}

fn lock(since: &IdleSince) -> std::sync::MutexGuard<'_, Option<Instant>> {
    since.lock().unwrap_or_else(PoisonError::into_inner)
}
