//! Servers that answer through us, by the names of the configuration. In this version they answer callouts of policies.
//!
//! An upstream is an address, its limits, and the connections that are kept to it. Each worker keeps its own: a
//! connection lives where it was made. One callout takes a connection, or makes one, sends its request and reads the whole
//! answer; a connection that is whole afterwards is kept for the next. Nothing is tried again once a byte of a request went
//! out: only a connection that turns out to be closed before that is replaced.

mod address;
mod answer;
mod connect;
mod fault;
mod feed;
mod fetch;
mod pool;
mod tls;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

pub use address::{Address, AddressError, Protocol, Transport};
pub use answer::{Answer, Body, Piece, Whole};
pub use connect::ConnectOptions;
pub use fault::Fault;
pub use feed::{Cut, Feed, Source, feed};
pub use tls::{Tls, TlsError};

use self::pool::Pool;
use crate::policy::{Callout, CalloutError, Callouts, Fetching};

/// What the configuration says of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Its name there.
    pub name: String,
    /// Where it listens.
    pub address: Address,
    /// Until it is connected.
    pub connect_timeout: Duration,
    /// From the request's beginning to the answer's head.
    pub head_timeout: Duration,
    /// Without a byte of the answer's body.
    pub body_timeout: Duration,
    /// Idle connections that each worker keeps.
    pub keep_alive: usize,
    /// How long an idle connection is kept.
    pub keep_alive_timeout: Duration,
}

impl Options {
    /// The documented defaults.
    pub fn new(name: &str, address: Address) -> Self {
        Self {
            name: name.to_owned(),
            address,
            connect_timeout: Duration::from_secs(1),
            head_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(60),
            keep_alive: 32,
            keep_alive_timeout: Duration::from_secs(30),
        }
    }
}

/// A server and the connections that are kept to it.
#[derive(Debug)]
struct Upstream {
    options: Options,
    pool: Pool,
}

/// All upstreams of one configuration. When it goes, so do its idle connections.
#[derive(Debug, Default)]
pub struct Table(HashMap<String, Arc<Upstream>>);

impl Table {
    /// A table of the configuration's upstreams.
    pub fn new(upstreams: Vec<Options>) -> Self {
        let upstream = |options: Options| {
            let pool = Pool::new(options.keep_alive, options.keep_alive_timeout);
            (options.name.clone(), Arc::new(Upstream { options, pool }))
        };
        Self(upstreams.into_iter().map(upstream).collect())
    }
}

impl Callouts for Table {
    fn fetch(&self, callout: Callout) -> Fetching {
        let Some(upstream) = self.0.get(&callout.upstream).map(Arc::clone) else {
            return Box::pin(std::future::ready(Err(CalloutError::Unknown)));
        };
        Box::pin(async move {
            // A timer of no time is looked at after what it is to end, which may be done at once.
            if callout.timeout.is_zero() {
                return Err(CalloutError::TimedOut);
            }
            let answer = tokio::time::timeout(callout.timeout, upstream.fetch(callout));
            answer.await.unwrap_or(Err(CalloutError::TimedOut))
        })
    }
}
