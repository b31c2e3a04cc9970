//! The gateway's own log, on standard error: text for people, JSON for machines.
//!
//! Lines are written by a thread of their own, so that a slow terminal or a blocked pipe never holds up a client; what
//! does not fit its queue is dropped. The access log is another thing: [`crate::access_log`].

use std::io::IsTerminal;

use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::EnvFilter;

/// The form of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One JSON object.
    Json,
    /// For people; coloured on a terminal.
    #[default]
    Text,
}

/// Begins logging. `level` wins over the environment's `BATON_LOG`, and both over `usual`; they are directives as in
/// `info,policy=debug`. The guard writes what is queued when it is dropped.
///
/// # Errors
/// A directive that is none.
pub fn begin(format: Format, level: Option<&str>, usual: &str) -> Result<WorkerGuard, String> {
    let written = level.map(str::to_owned).or_else(|| std::env::var("BATON_LOG").ok());
    let directives = written.unwrap_or_else(|| usual.to_owned());
    let filter =
        EnvFilter::builder().parse(&directives).map_err(|error| format!("log level {directives:?}: {error}"))?;
    let (writer, guard) = tracing_appender::non_blocking(std::io::stderr());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_target(false);
    match format {
        Format::Json => log.json().flatten_event(true).init(),
        Format::Text => log.with_ansi(std::io::stderr().is_terminal()).init(),
    }
    Ok(guard)
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
