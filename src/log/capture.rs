//! What policies log while something runs on this thread, for whoever wants to show it.

use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

/// A line of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// In lower case.
    pub level: String,
    /// The message and its fields.
    pub message: String,
}

/// Runs something, and returns what policies logged on this thread meanwhile, down to `level`. Nothing of it reaches the
/// log.
pub fn capture<T>(level: tracing::Level, run: impl FnOnce() -> T) -> (T, Vec<Line>) {
    let lines = Arc::default();
    let capture = Capture(Arc::clone(&lines)).with_filter(LevelFilter::from_level(level));
    let subscriber = tracing_subscriber::registry().with(capture);
    let result = tracing::subscriber::with_default(subscriber, run);
    let lines = std::mem::take(&mut *lines.lock().unwrap_or_else(PoisonError::into_inner));
    (result, lines)
}

struct Capture(Arc<Mutex<Vec<Line>>>);

impl<S: Subscriber> Layer<S> for Capture {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == "policy" {
            let mut message = Message::default();
            event.record(&mut message);
            let line = Line { level: event.metadata().level().to_string().to_lowercase(), message: message.0 };
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
    }
}

#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}
