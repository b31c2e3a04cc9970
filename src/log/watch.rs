//! One policy's decisions as they are made, for whoever edits it: a line each, with what it logged below.
//!
//! The gateway tells each decision as an event of the target [`DECISION`]. Unless somebody watches, no subscriber wants it,
//! and a decision costs one look at a static.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Metadata, Subscriber};
use tracing_appender::non_blocking::{NonBlocking, WorkerGuard};
use tracing_subscriber::layer::{Context, Filter, Layer};

/// The target of events that tell a decision.
pub(super) const DECISION: &str = "decision";
/// The target of what policies log.
const POLICY: &str = "policy";
/// Requests whose lines wait for their decision; beyond, they are shown at once.
const WAITING_COUNT_MAX: usize = 1000;

/// Shows what is said about one policy.
pub(super) struct Watch {
    policy: String,
    out: Mutex<NonBlocking>,
    /// What a policy logged about requests that it has not decided yet.
    waiting: Mutex<HashMap<String, String>>,
}

impl Watch {
    pub(super) fn new(policy: &str) -> (Self, WorkerGuard) {
        // Written by a thread of its own: a terminal that is held must not hold a client.
        let (out, guard) = tracing_appender::non_blocking(std::io::stdout());
        (Self { policy: policy.to_owned(), out: Mutex::new(out), waiting: Mutex::default() }, guard)
    }

    fn show(&self, text: &str) {
        drop(self.out.lock().unwrap_or_else(PoisonError::into_inner).write_all(text.as_bytes()));
    }
}

impl<S: Subscriber> Layer<S> for Watch {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut said = Said::default();
        event.record(&mut said);
        if said.policy != self.policy {
            return;
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match event.metadata().target() {
            DECISION => {
                let below = waiting.remove(&said.request).unwrap_or_default();
                let Said { line, decision, decide_us, annotations, generation, .. } = said;
                let annotations = if annotations.is_empty() { annotations } else { format!("  {annotations}") };
                let now = clock();
                self.show(&format!("{now}  {line}  {decision}  {decide_us} µs{annotations}  #{generation}\n{below}"));
            }
            POLICY => {
                let line = format!(
                    "              {:<5} {}\n",
                    event.metadata().level().to_string().to_lowercase(),
                    said.message
                );
                if said.request.is_empty() || waiting.len() >= WAITING_COUNT_MAX {
                    self.show(&line);
                } else {
                    waiting.entry(said.request).or_default().push_str(&line);
                }
            }
            // The decision tells it.
            _ if said.message == "policy failed" => {}
            _ => self.show(&format!("{}  --- {}{}\n", clock(), said.message, said.rest)),
        }
    }
}

/// The time of day in UTC, as in `15:04:05.123`.
fn clock() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs() % 86_400;
    format!("{:02}:{:02}:{:02}.{:03}", seconds / 3600, seconds / 60 % 60, seconds % 60, since.subsec_millis())
}

/// Everything that can be about a policy: its own lines at all levels, decisions, and news from the information level on.
pub(super) struct About;

impl<S> Filter<S> for About {
    fn enabled(&self, event: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        matches!(event.target(), DECISION | POLICY)
            || (event.is_event() && *event.level() <= LevelFilter::INFO && event.fields().field("policy").is_some())
    }
}

/// What is left for the log while a policy is watched: not what it says itself, and no decisions.
pub(super) struct Others(String);

impl Others {
    pub(super) fn new(policy: &str) -> Self {
        Self(policy.to_owned())
    }
}

impl<S> Filter<S> for Others {
    fn enabled(&self, event: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        event.target() != DECISION
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        if event.metadata().target() != POLICY {
            return true;
        }
        let mut said = Said::default();
        event.record(&mut said);
        said.policy != self.0
    }
}

/// The fields of an event.
#[derive(Default)]
struct Said {
    policy: String,
    generation: String,
    request: String,
    line: String,
    decision: String,
    decide_us: String,
    annotations: String,
    message: String,
    rest: String,
}

impl Said {
    fn put(&mut self, field: &Field, value: String) {
        match field.name() {
            "policy" => self.policy = value,
            "generation" => self.generation = value,
            "request" => self.request = value,
            "line" => self.line = value,
            "decision" => self.decision = value,
            "decide_us" => self.decide_us = value,
            "annotations" => self.annotations = value,
            "message" => self.message = value,
            name => drop(write!(self.rest, " {name}={value}")),
        }
    }
}

impl Visit for Said {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
}
