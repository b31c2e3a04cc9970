//! What policies may ask of the rest of the gateway, in this module's own words.
//!
//! Guest code cannot reach a socket, and neither can this module: whoever owns the targets and the upstreams implements
//! these traits and is put in here with the configuration, again with each that replaces it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::decision::Field;

/// Targets and upstreams of the configuration in force.
#[derive(Clone, Debug)]
pub struct Services {
    /// Who takes clients.
    pub targets: Arc<dyn Targets>,
    /// Who answers callouts.
    pub callouts: Arc<dyn Callouts>,
}

/// How the daemons behind targets are.
pub trait Targets: fmt::Debug + Send + Sync {
    /// Of a target, or of one of its members; `None` where there is none of that name.
    fn status(&self, name: &str) -> Option<TargetStatus>;

    /// Of each member of a target, in the order of the configuration. A member's name can be handed over to.
    fn members(&self, group: &str) -> Vec<TargetStatus>;

    /// The name of one member that is not down, if there is one.
    fn pick(&self, group: &str, strategy: Strategy, key: Option<&str>) -> Option<String>;

    /// Asks the daemon that has the client of the request `id` to end it, where it is one of a target that `may_name` allows;
    /// whether there is such a client.
    fn revoke(&self, id: &str, reason: &str, may_name: &dyn Fn(&str) -> bool) -> bool;
}

/// A target's or a member's state.
#[derive(Clone, Debug, PartialEq)]
pub struct TargetStatus {
    /// As a handoff may name it.
    pub name: String,
    /// Whether it takes clients.
    pub health: Health,
    /// Clients handed over and not reported finished.
    pub in_flight: u32,
    /// What it said of itself, 0 to 1.
    pub load: Option<f64>,
    /// Why it did not take the last client that it did not take; `None` when it has taken one since.
    pub last_error: Option<String>,
}

/// Whether clients are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// As far as is known.
    Up,
    /// Asked for no more.
    Draining,
    /// It has just failed.
    Down,
    /// Nobody has looked.
    Unknown,
}

/// How a member is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// In turn.
    RoundRobin,
    /// The one with the fewest in flight.
    LeastInFlight,
    /// The one that reports the lowest load.
    LeastLoad,
    /// By the key: the same as long as that member is there and not down.
    Hash,
    /// The one of two at random with fewer in flight.
    RandomTwo,
}

/// Servers that policies ask.
pub trait Callouts: fmt::Debug + Send + Sync {
    /// Sends one request and waits for the whole answer.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection; the server may have seen the request.
    fn fetch(&self, callout: Callout) -> Fetching;
}

/// A callout under way.
pub type Fetching = Pin<Box<dyn Future<Output = Result<CalloutAnswer, CalloutError>> + Send>>;

/// A request that can be sent as it is: its method and the names are tokens, no value has a control character, and no
/// field frames it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Callout {
    /// Its name in the configuration.
    pub upstream: String,
    /// A token.
    pub method: String,
    /// Begins with `/`.
    pub path_and_query: String,
    /// In the order in which they are sent.
    pub headers: Vec<Field>,
    /// All of it.
    pub body: Vec<u8>,
    /// Until the answer is complete.
    pub timeout: Duration,
    /// Fields and body of the answer together.
    pub answer_bytes_max: usize,
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CalloutAnswer {
    /// 200 to 999.
    pub status: u16,
    /// Without those that frame it or belong to the connection.
    pub headers: Vec<Field>,
    /// Without its framing.
    pub body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CalloutError {
    /// No upstream is called that.
    #[error("no such upstream")]
    Unknown,
    /// Not within its time.
    #[error("timed out")]
    TimedOut,
    /// No connection, or one that broke, or an answer that is none.
    #[error("{0}")]
    Unreachable(String),
    /// More than may be kept.
    #[error("the answer is too large")]
    TooLarge,
}
