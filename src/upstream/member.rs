//! One server of an upstream, and whether it seems to be there.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::kept::Program;
use super::pool::Pool;
use super::{Address, Options, Protocol, Server};

/// How long a server that could not be connected to is tried after the others.
const PAUSE: Duration = Duration::from_secs(5);

/// A server and the connections that are kept to it.
#[derive(Debug)]
pub(super) struct Member {
    kind: Kind,
    address: Address,
    down_until: Mutex<Option<Instant>>,
}

/// What it speaks.
#[derive(Debug)]
pub(super) enum Kind {
    /// HTTP.
    Http(Arc<Pool>),
    /// FastCGI.
    Program(Program),
}

impl Member {
    pub(super) fn new(server: &Server, options: &Options) -> Self {
        let kind = match server.address.protocol {
            Protocol::FastCgi => Kind::Program(Program::new(server.clone(), options)),
            Protocol::Http | Protocol::Https => Kind::Http(Arc::new(Pool::new(server.clone(), options))),
        };
        Self { kind, address: server.address.clone(), down_until: Mutex::default() }
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    pub(super) fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Whether it could be connected to when that was tried last, or that was a while ago.
    pub(super) fn seems_up(&self) -> bool {
        let down_until = self.down_until.lock().unwrap_or_else(PoisonError::into_inner);
        down_until.is_none_or(|until| Instant::now() >= until)
    }

    /// It has answered.
    pub(super) fn is_up(&self) {
        *self.down_until.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// It could not be connected to, or took nothing.
    pub(super) fn is_down(&self) {
        *self.down_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + PAUSE);
    }
}
