//! FastCGI 1.0, the client's side: one request over one connection, to a responder, an authorizer or a filter.
//!
//! What goes over the wire is understood by pure modules: [`record`] frames, [`pairs`] are variables, [`head`] is what a
//! program writes in front of its body, [`environment`] and [`script`] say what it is told. [`ask`] moves the bytes: it writes a
//! request while it reads its answer, because a program may answer before it has read everything, or nothing of it.
//!
//! Nothing here connects, waits for a deadline or begins a task. Whoever asks gives a connected stream, bounds the wait
//! for the head and for each piece of the body, and says what becomes of the connection. Everything is done by being polled:
//! while nobody polls the answer's body, nothing of the request's is sent, and nothing read but what one buffer holds.

mod client;
pub mod environment;
mod exchange;
pub mod head;
mod input;
#[cfg(any(test, fuzzing))]
pub mod naive;
mod output;
pub mod pairs;
pub mod record;
pub mod script;
mod sending;
mod stderr;
mod values;

pub use client::{Complain, Request, Settings, Unanswered, Verdict, ask, authorize, is_quiet};
pub use environment::{Facts, Purpose, Variables};
pub use head::Limits;
pub use input::Input;
pub use record::Role;
pub use script::Scripts;
pub use values::{Values, ask_values};

use tokio::io::{AsyncRead, AsyncWrite};

/// A connection to a program.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + std::fmt::Debug + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + std::fmt::Debug + 'static> Stream for S {}
