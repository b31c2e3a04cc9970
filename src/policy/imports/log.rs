//! `log`: lines of a policy, in the gateway's log under the target `policy`.
//!
//! Whatever a policy writes stays one line, and it cannot flood: lines above the limit of a second are counted, and one
//! line says how many were left out.

use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::Level;

use super::Imports;
use crate::policy::bindings::log;
use crate::policy::error::escape;

/// What a single line may hold; the rest is cut off and the line says so.
const LINE_BYTES_MAX: usize = 8 << 10;

/// Counts the lines of one generation in all workers.
#[derive(Debug)]
pub(super) struct LineLimit {
    per_second_max: u32,
    window: Mutex<Counts>,
}

#[derive(Debug)]
struct Counts {
    since: Instant,
    written: u32,
    left_out: u64,
}

/// Whether the second that is looked at is over by definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Window {
    Ended,
    Running,
}

impl LineLimit {
    pub(super) fn new(per_second_max: u32) -> Self {
        Self { per_second_max, window: Mutex::new(Counts { since: Instant::now(), written: 0, left_out: 0 }) }
    }

    /// Tells how many lines were left out in the second that is over.
    pub(super) fn say_left_out(&self, policy: &str, generation: u64, now: Instant, window: Window) {
        let left_out = {
            let mut counts = self.window.lock().unwrap_or_else(PoisonError::into_inner);
            if window == Window::Running && now.duration_since(counts.since) < Duration::from_secs(1) {
                return;
            }
            let left_out = counts.left_out;
            *counts = Counts { since: now, written: 0, left_out: 0 };
            left_out
        };
        if left_out > 0 {
            tracing::warn!(
                target: "policy",
                policy, generation, "{left_out} lines left out: more than {} in a second", self.per_second_max
            );
        }
    }

    fn allow(&self) -> bool {
        let mut counts = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.written < self.per_second_max {
            counts.written += 1;
            return true;
        }
        counts.left_out += 1;
        false
    }
}

impl super::Identity {
    /// Says what the gateway thinks of what the policy does, within the policy's own limit.
    pub(super) fn warn(&self, message: &str) {
        self.lines.say_left_out(&self.policy, self.generation, Instant::now(), Window::Running);
        if self.lines.allow() {
            let (policy, generation) = (&*self.policy, self.generation);
            tracing::warn!(target: "policy", policy, generation, "{}", escape(message));
        }
    }
}

impl log::Host for Imports {
    fn enabled(&mut self, level: log::Level) -> wasmtime::Result<bool> {
        self.spoke = true;
        Ok(enabled(level))
    }

    fn write(&mut self, level: log::Level, message: String, fields: Vec<(String, String)>) -> wasmtime::Result<()> {
        self.spoke = true;
        let identity = &*self.identity;
        identity.lines.say_left_out(&identity.policy, identity.generation, Instant::now(), Window::Running);
        if !enabled(level) || !identity.lines.allow() {
            return Ok(());
        }
        let line = line(&message, &fields);
        let request = self.call.as_ref().map(|call| tracing::field::display(call.request.id));
        macro_rules! event {
            ($level:expr) => {
                tracing::event!(
                    target: "policy",
                    $level, policy = &*identity.policy, generation = identity.generation, request, "{line}"
                )
            };
        }
        match level {
            log::Level::Trace => event!(Level::TRACE),
            log::Level::Debug => event!(Level::DEBUG),
            log::Level::Info => event!(Level::INFO),
            log::Level::Warn => event!(Level::WARN),
            log::Level::Error => event!(Level::ERROR),
        }
        Ok(())
    }
}

fn enabled(level: log::Level) -> bool {
    match level {
        log::Level::Trace => tracing::enabled!(target: "policy", Level::TRACE),
        log::Level::Debug => tracing::enabled!(target: "policy", Level::DEBUG),
        log::Level::Info => tracing::enabled!(target: "policy", Level::INFO),
        log::Level::Warn => tracing::enabled!(target: "policy", Level::WARN),
        log::Level::Error => tracing::enabled!(target: "policy", Level::ERROR),
    }
}

/// The message and its fields as `message key=value key=value`.
fn line(message: &str, fields: &[(String, String)]) -> String {
    // What cannot be in the line is not escaped first: the worker would wait for it.
    let head = |text: &'_ str| escape(&text[..text.floor_char_boundary(LINE_BYTES_MAX + 4)]).into_owned();
    let mut line = head(message);
    for (key, value) in fields {
        if line.len() > LINE_BYTES_MAX {
            break;
        }
        // A String takes everything that is written to it.
        let _ = write!(line, " {}={}", head(key), head(value));
    }
    if line.len() > LINE_BYTES_MAX {
        line.truncate(line.floor_char_boundary(LINE_BYTES_MAX));
        line.push_str(" (cut)");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_one_line_of_bounded_length() {
        let fields = [("k\n".to_owned(), "v\u{1b}".to_owned())];
        assert_eq!(line("a\r\nb", &fields), "a\\r\\nb k\\n=v\\u{1b}");
        assert!(line(&"ü".repeat(1 << 20), &fields).len() < LINE_BYTES_MAX + 10);
    }

    #[test]
    fn lines_above_the_limit_of_a_second_are_counted() {
        let limit = LineLimit::new(2);
        assert_eq!([limit.allow(), limit.allow(), limit.allow(), limit.allow()], [true, true, false, false]);
        assert_eq!(limit.window.lock().expect("nobody panicked").left_out, 2);
        let later = Instant::now() + Duration::from_secs(2);
        limit.say_left_out("p", 1, later, Window::Running);
        assert!(limit.allow());
        assert_eq!(limit.window.lock().expect("nobody panicked").left_out, 0);
    }
}
