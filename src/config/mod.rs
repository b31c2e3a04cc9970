//! The configuration: [`ConfigFile`] is what one may write, [`Config`] what the program runs on.
//!
//! Everything is resolved here: defaults applied, names looked up, paths made absolute. Nothing is bound, opened or loaded
//! but the pages of `[error_pages]`. What is no TOML is found first, then every key that is
//! unknown or has a value of the wrong kind, then everything else: each time all of it, by key and line.

mod fault;
mod file;
mod resolve;
mod routes;
mod servers;
mod services;

pub(crate) mod units;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use fault::{Fault, Faults};
pub use file::ConfigFile;

use crate::handoff::Daemon;
use crate::http::forwarded::TrustedProxies;
use crate::respond::ErrorPages;
use crate::route::{HostPattern, PathPattern, Standard};
use crate::{access_log, connection, listener, policy, target, upstream};

/// A configuration without faults of its own. Policies are not loaded yet.
#[derive(Debug)]
pub struct Config {
    /// Threads that serve clients; at least 1.
    pub workers: usize,
    /// How long requests under way may take after TERM.
    pub drain_timeout: Duration,
    /// Whom to become after binding.
    pub user: Option<String>,
    /// Where requests are logged.
    pub access_log: Option<access_log::Options>,
    /// Where the operator asks, and the place of that in the file.
    pub admin: Option<(listener::Address, Fault)>,
    /// Clients that the gateway owns at a time.
    pub connections_max: usize,
    /// What bounds a client.
    pub limits: connection::Limits,
    /// Addresses that accept clients; at least one.
    pub listeners: Vec<Listener>,
    /// How clients are handed over.
    pub handoff: target::Options,
    /// Directories below which policies may name sockets by path.
    pub prefixes: Vec<PathBuf>,
    /// Daemons that take clients.
    pub targets: Vec<Target>,
    /// Whose word about clients counts.
    pub trusted_proxies: TrustedProxies,
    /// Servers that answer through us.
    pub upstreams: Vec<upstream::Options>,
    /// Policies, by name.
    pub policies: Vec<Policy>,
    /// Routes, in the order of the file.
    pub routes: Vec<Route>,
    /// Pages that replace the built-in ones.
    pub pages: ErrorPages,
}

/// `[[listener]]`, resolved.
#[derive(Debug)]
pub struct Listener {
    /// What it is bound with.
    pub options: listener::Options,
    /// Where its address is written; the message is for whoever cannot bind it to fill in.
    pub address: Fault,
    /// Names of policies, all of them configured, and where each is written.
    pub policies: Vec<(String, Fault)>,
}

/// `[target.NAME]`, resolved.
#[derive(Debug)]
pub struct Target {
    /// Its name.
    pub name: String,
    /// At least one.
    pub daemons: Vec<Daemon>,
    /// Which is tried first.
    pub balance: policy::Strategy,
    /// How clients wait for it.
    pub waiting: target::Waiting,
}

/// `[policy.NAME]`, resolved.
#[derive(Debug)]
pub struct Policy {
    /// What it is loaded with.
    pub options: policy::Options,
    /// Where its module is named; the message is for whoever cannot load it to fill in.
    pub module: Fault,
}

/// `[[route]]`, resolved.
#[derive(Clone, Debug)]
pub struct Route {
    /// The path as it was written.
    pub name: String,
    /// Which hosts.
    pub host: HostPattern,
    /// Which paths.
    pub path: PathPattern,
    /// Which methods; `None`: any.
    pub methods: Option<Vec<String>>,
    /// Names of policies, all of them configured.
    pub policies: Vec<String>,
    /// Whether a WebSocket may begin here.
    pub upgrade: bool,
    /// Whether only other routes' answers lead here.
    pub internal: bool,
    /// A FastCGI authorizer that is asked before them: an upstream's name.
    pub authorizer: Option<String>,
    /// A FastCGI filter over what the default yields: an upstream's name.
    pub filter: Option<String>,
    /// What happens when all of them pass.
    pub default: Option<Standard>,
}

/// Reads the text of a configuration file.
///
/// # Errors
/// That it cannot be read.
pub fn text(file: &Path) -> Result<String, Faults> {
    std::fs::read_to_string(file).map_err(|error| {
        let message = format!("cannot be read: {error}");
        Faults(vec![Fault { file: file.to_owned(), line: None, key: String::new(), message }])
    })
}

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// Every fault of the file; or that it cannot be read.
    pub fn read(file: &Path) -> Result<Self, Faults> {
        Self::parse(file, &text(file)?)
    }

    /// Reads a configuration's text; `file` names it, and relative paths begin beside it.
    ///
    /// # Errors
    /// Every fault of the text.
    pub fn parse(file: &Path, text: &str) -> Result<Self, Faults> {
        let source = fault::Source::parse(file, text)?;
        let written = source.read::<ConfigFile>()?;
        resolve::Resolver::new(&source, file).resolve(&written)
    }

    /// The JSON Schema of the file.
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(ConfigFile).to_value()
    }
}
