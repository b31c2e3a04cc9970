//! Connections to one server, and those of them that are idle.
//!
//! A connection is a task that moves its bytes, and a sender that requests go into. The task ends when the server closes,
//! when the sender is dropped, or when nobody has used it for too long. It belongs to the pool: with the pool it ends too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::connect::{ConnectOptions, Stream, connect};
use super::{Address, Protocol, Source};
use crate::policy::CalloutError;

/// One connection, in use; dropped, it is closed.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) sender: http1::SendRequest<Source>,
    idle_since: Arc<IdleSince>,
}

/// When it was put back; `None` while it is in use.
type IdleSince = Mutex<Option<Instant>>;

#[derive(Debug)]
pub(super) struct Pool {
    idle_count_max: usize,
    idle_timeout: Duration,
    /// By the thread that made them: the task of a connection runs there, so nobody else takes it at the same time.
    idle: Mutex<HashMap<ThreadId, Vec<Connection>>>,
    tasks: Mutex<JoinSet<()>>,
}

impl Pool {
    pub(super) fn new(idle_count_max: usize, idle_timeout: Duration) -> Self {
        Self { idle_count_max, idle_timeout, idle: Mutex::default(), tasks: Mutex::default() }
    }

    /// The idle connection that was used last, if the server has not closed it.
    pub(super) async fn take(&self) -> Option<Connection> {
        loop {
            let mut connection = {
                let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
                let connection = idle.get_mut(&std::thread::current().id())?.pop()?;
                *lock(&connection.idle_since) = None;
                connection
            };
            if connection.sender.ready().await.is_ok() {
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
    pub(super) async fn connect(&self, address: &Address) -> Result<Connection, CalloutError> {
        if address.protocol == Protocol::FastCgi {
            return Err(CalloutError::Unreachable("a callout speaks HTTP, and the upstream FastCGI".to_owned()));
        }
        let stream = connect(address, &ConnectOptions::default()).await.map_err(unreachable)?;
        self.begin(stream).await
    }

    async fn begin(&self, stream: Stream) -> Result<Connection, CalloutError> {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(unreachable)?;
        let idle_since = Arc::new(IdleSince::default());
        let (since, timeout) = (Arc::clone(&idle_since), self.idle_timeout);
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            tokio::select! {
                // What is wrong with it, whoever uses it is told.
                result = connection => drop(result),
                () = idle_for(timeout, &since) => {}
            }
        });
        Ok(Connection { sender, idle_since })
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

/// Says why there is no answer, with everything that is behind it.
pub(super) fn unreachable(error: impl std::error::Error + 'static) -> CalloutError {
    CalloutError::Unreachable(crate::log::chain(&error))
}
