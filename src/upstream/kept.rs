//! Connections to a FastCGI program, and those of them that are kept.
//!
//! A connection is closed behind each request unless the configuration says otherwise: a kept one occupies a process of
//! PHP-FPM for as long as it is kept. Where it says so, a program is asked once how many connections it takes
//! (FCGI_MAX_CONNS), and no more are kept than that.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::thread::ThreadId;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OnceCell, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::connect::{Stream, connect};
use super::{Fault, Options, Server};
use crate::fastcgi;

/// A program, and the connections that are kept to it.
#[derive(Debug)]
pub(super) struct Program {
    server: Server,
    kept: Arc<Kept>,
    /// How many it takes; asked once.
    connections_max: OnceCell<usize>,
    tasks: Mutex<JoinSet<()>>,
    keep_alive: usize,
    keep_alive_timeout: Duration,
}

/// Connections that wait for their next request.
#[derive(Debug, Default)]
struct Kept {
    idle: Mutex<VecDeque<Idle>>,
    /// Those, and those that are in use and are to be kept.
    count: AtomicUsize,
}

#[derive(Debug)]
struct Idle {
    /// Told when it is taken, so that its time does not run out.
    taken: oneshot::Sender<()>,
    thread: ThreadId,
    stream: Held,
}

/// A connection that is counted while it is there.
#[derive(Debug)]
pub(super) struct Held {
    stream: Stream,
    counted: Option<Arc<Kept>>,
}

impl Program {
    pub(super) fn new(server: Server, options: &Options) -> Self {
        Self {
            server,
            kept: Arc::default(),
            connections_max: OnceCell::new(),
            tasks: Mutex::default(),
            keep_alive: options.keep_alive,
            keep_alive_timeout: options.keep_alive_timeout,
        }
    }

    /// A connection: one that was kept, or a new one.
    pub(super) async fn connection(&self, options: &Options) -> Result<Held, Fault> {
        while let Some(mut held) = self.kept.take() {
            // What had come would be no answer to the next request.
            if fastcgi::is_quiet(&mut held).await {
                return Ok(held);
            }
        }
        let may_keep = self.keep_alive > 0 && self.connections_max(options).await? > 0;
        let stream = self.connect(options.connect_timeout).await?;
        let counted = may_keep && {
            let max = self.connections_max.get().copied().unwrap_or(0).min(self.keep_alive);
            let take = |count| (count < max).then_some(count + 1);
            self.kept.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
        };
        Ok(Held { stream, counted: counted.then(|| Arc::clone(&self.kept)) })
    }

    async fn connect(&self, limit: Duration) -> Result<Stream, Fault> {
        match timeout(limit, connect(&self.server.address, &self.server.connect)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(Fault::Unreachable(crate::log::chain(&error))),
            Err(_) => Err(Fault::Unreachable(format!("not connected within {limit:?} (connect_timeout)"))),
        }
    }

    /// How many connections may be kept. A program that does not say is believed to take as many as the configuration keeps.
    /// One that is not there is asked when it is.
    async fn connections_max(&self, options: &Options) -> Result<usize, Fault> {
        let ask = async || {
            let stream = self.connect(options.connect_timeout).await?;
            let values = timeout(options.connect_timeout, fastcgi::ask_values(stream)).await.unwrap_or_default();
            Ok(values.connections_max.map_or(usize::MAX, |max| usize::try_from(max).unwrap_or(usize::MAX)))
        };
        self.connections_max.get_or_try_init(ask).await.copied()
    }

    /// Where a connection goes that the program has kept; `None` where it is not to.
    pub(super) fn keeping(&self, held: &Held) -> Option<oneshot::Sender<Held>> {
        held.counted.as_ref()?;
        let (sender, receiver) = oneshot::channel::<Held>();
        let (kept, limit) = (Arc::clone(&self.kept), self.keep_alive_timeout);
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            let Ok(stream) = receiver.await else { return };
            let (taken, mut is_taken) = oneshot::channel();
            kept.put(Idle { taken, thread: std::thread::current().id(), stream });
            if timeout(limit, &mut is_taken).await.is_err() {
                is_taken.close();
                kept.forget_abandoned();
            }
        });
        Some(sender)
    }
}

impl Kept {
    fn put(&self, idle: Idle) {
        lock(&self.idle).push_back(idle);
    }

    /// The connection of this thread that was used last, or another one's: it occupies a process that somebody waits for.
    fn take(&self) -> Option<Held> {
        let own = std::thread::current().id();
        loop {
            let idle = {
                let mut all = lock(&self.idle);
                let at = all.iter().rposition(|idle| idle.thread == own).or(all.len().checked_sub(1))?;
                all.remove(at)?
            };
            let Idle { taken, stream, .. } = idle;
            if taken.send(()).is_ok() {
                return Some(stream);
            }
        }
    }

    /// Closes those whose time has run out.
    fn forget_abandoned(&self) {
        lock(&self.idle).retain(|idle| !idle.taken.is_closed());
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(kept) = &self.counted {
            kept.count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl AsyncRead for Held {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Held {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
