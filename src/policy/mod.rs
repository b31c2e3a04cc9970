//! Policies: WebAssembly that decides. (Being written.)

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What decides when the policy itself fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// The request is answered 503.
    #[default]
    Deny,
    /// As if it had passed without edits.
    Pass,
}

/// A policy of the configuration, and what bounds it.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// Absolute path of a component, a core module, or text (`.wat`).
    pub module: PathBuf,
    /// Handed to `configure` as JSON, and key by key to `config.get`.
    pub config: serde_json::Value,
    /// What a failure means.
    pub on_error: OnError,
    /// Guest time of one hook.
    pub deadline: Duration,
    /// Start, configure and self-test together.
    pub configure_deadline: Duration,
    /// Linear memory of one instance.
    pub memory_bytes_max: usize,
    /// Requests that one instance serves; 0: a fresh one for each.
    pub reuse_max: u32,
    /// All strings and lists of one decision together.
    pub decision_bytes_max: usize,
    /// Lines that it may log; more are counted and left out.
    pub log_lines_per_second_max: u32,
}

impl Options {
    /// The documented defaults.
    pub fn new(name: &str, module: PathBuf) -> Self {
        Self {
            name: name.into(),
            module,
            config: serde_json::Value::Object(serde_json::Map::new()),
            on_error: OnError::Deny,
            deadline: Duration::from_millis(5),
            configure_deadline: Duration::from_secs(5),
            memory_bytes_max: 32 << 20,
            reuse_max: 1000,
            decision_bytes_max: 1 << 20,
            log_lines_per_second_max: 100,
        }
    }
}
