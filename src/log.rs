//! The gateway's own log, on standard error: text for people, JSON for machines.
//!
//! Lines are written by a thread of their own, so that a slow terminal or a blocked pipe never holds up a client; what
//! does not fit its queue is dropped. The access log is another thing: [`crate::access_log`].

mod capture;
mod watch;

use std::io::IsTerminal;

use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::filter::{FilterExt as _, LevelFilter};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, filter};

pub use capture::{Line, capture};

/// The form of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One JSON object.
    Json,
    /// For people; coloured on a terminal.
    #[default]
    Text,
}

/// Writes what is queued when it is dropped.
#[derive(Debug)]
pub struct Guard {
    _log: WorkerGuard,
    _watch: Option<WorkerGuard>,
}

/// Begins logging. `level` wins over the environment's `BATON_LOG`, and both over `usual`; they are directives as in
/// `info,policy=debug`. With `watched`, what that policy decides and says is shown on standard output instead.
///
/// # Errors
/// A directive that is none.
pub fn begin(format: Format, level: Option<&str>, usual: &str, watched: Option<&str>) -> Result<Guard, String> {
    let written = level.map(str::to_owned).or_else(|| std::env::var("BATON_LOG").ok());
    let directives = written.unwrap_or_else(|| usual.to_owned());
    let filter =
        EnvFilter::builder().parse(&directives).map_err(|error| format!("log level {directives:?}: {error}"))?;
    let (writer, guard) = tracing_appender::non_blocking(std::io::stderr());
    let log = tracing_subscriber::fmt::layer().with_writer(writer).with_target(false);
    let log = match format {
        Format::Json => log.json().flatten_event(true).boxed(),
        Format::Text => log.with_ansi(std::io::stderr().is_terminal()).boxed(),
    };
    let Some(policy) = watched else {
        // Decisions are the access log's business; here they are shown to whoever watches.
        let others = filter::filter_fn(|event| event.target() != watch::DECISION);
        // One filter of both: of two, one within the other, tracing would take anything for wanted.
        let log = log.with_filter(filter.and(others.with_max_level_hint(LevelFilter::TRACE)));
        tracing_subscriber::registry().with(log).init();
        return Ok(Guard { _log: guard, _watch: None });
    };
    let (watch, watch_guard) = watch::Watch::new(policy);
    let log = log.with_filter(filter.and(watch::Others::new(policy)));
    tracing_subscriber::registry().with(log).with(watch.with_filter(watch::About)).init();
    Ok(Guard { _log: guard, _watch: Some(watch_guard) })
}

/// An error and its sources, joined for one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
