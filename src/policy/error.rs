//! What can go wrong with a policy, said for the log: one line, without control characters.

use std::borrow::Cow;
use std::fmt::{self, Display, Write as _};
use std::time::Duration;

/// What a message holds at most; a policy that fails for each request could otherwise write a megabyte for each.
const MESSAGE_BYTES_MAX: usize = 4 << 10;
/// What is shown of a name that a guest gave.
const NAME_BYTES_MAX: usize = 256;

/// The machine that runs policies cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The thread that ends overlong calls cannot be started.
    #[error("cannot start the thread that keeps deadlines")]
    Thread(#[source] std::io::Error),
    /// wasmtime refuses: this processor or these resource limits do not allow it.
    #[error("cannot start the WebAssembly engine: {0}")]
    Wasmtime(String),
}

/// How far a module came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Reading the file.
    Read,
    /// Understanding WebAssembly text.
    Text,
    /// Making a component of a core module.
    Componentize,
    /// Compiling.
    Compile,
    /// Looking for the hooks.
    Exports,
    /// Looking at what it wants of the gateway.
    Imports,
    /// Making an instance, start functions included.
    Instantiate,
    /// `configure`, and keeping its state.
    Configure,
    /// `self-test`.
    SelfTest,
}

impl Stage {
    /// The word for it in the log.
    pub fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Text => "text",
            Self::Componentize => "componentize",
            Self::Compile => "compile",
            Self::Exports => "exports",
            Self::Imports => "imports",
            Self::Instantiate => "instantiate",
            Self::Configure => "configure",
            Self::SelfTest => "self-test",
        }
    }
}

/// A module that cannot become a generation, and why. What was running before goes on running.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", stage.word())]
pub struct LoadError {
    stage: Stage,
    reason: String,
}

impl LoadError {
    pub(super) fn new(stage: Stage, reason: impl Display) -> Self {
        Self { stage, reason: one_line(&reason.to_string()) }
    }

    /// How far it came.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// What is wrong and, where there is one, the remedy.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

/// A policy that cannot be rolled back. What is in force stays so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RollbackError {
    /// What was in force before cannot be used any more.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// No generation of another digest was in force before.
    #[error("no generation of another digest was in force before")]
    NothingBefore,
}

/// A hook that did not end in a decision that can be used; the policy's `on_error` decides instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// It decided something that cannot be done.
    #[error("bad value: {0}")]
    BadValue(#[from] BadValue),
    /// It failed too often, and is not asked for a while (`breaker`).
    #[error("not asked: the breaker is open after too many failures")]
    BreakerOpen,
    /// It ran for longer than its `deadline`.
    #[error("deadline of {deadline:?} exceeded{place}")]
    Deadline {
        /// The limit.
        deadline: Duration,
        /// Where it was.
        place: Place,
    },
    /// No room for another instance.
    #[error("no instance to be had: {0}")]
    Exhausted(String),
    /// Its handoff cannot be made as it is: what whoever makes it says of that.
    #[error("{0}")]
    Misfit(&'static str),
    /// It stopped in the middle.
    #[error("trap: {reason}{place}")]
    Trap {
        /// What the machine says, and whether `memory_max` had been reached.
        reason: String,
        /// Where it was.
        place: Place,
    },
}

/// What is wrong with a decision.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadValue {
    /// More alternates than a client can be made to wait for.
    #[error("{count} alternates, {count_max} are allowed")]
    Alternates {
        /// Their number.
        count: usize,
        /// The limit.
        count_max: usize,
    },
    /// Annotations that are too long together.
    #[error("annotations of {bytes} bytes, {bytes_max} are allowed")]
    Annotations {
        /// Of all keys and values.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// A `carry` that is too long.
    #[error("carry of {bytes} bytes, {bytes_max} are allowed")]
    Carry {
        /// Its length.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// A field name that is no token.
    #[error("field name \"{}\" is no token", brief(name))]
    FieldName {
        /// As the policy gave it.
        name: String,
    },
    /// A field value that would break the line.
    #[error("value of field {} contains a control character", brief(name))]
    FieldValue {
        /// The field.
        name: String,
    },
    /// Not even of the contract's types: text that is not UTF-8, a pointer beyond the memory, a case that does not exist.
    #[error("{0}")]
    Malformed(String),
    /// What no server can be asked for.
    #[error("path-and-query \"{}\" does not begin with /, or has a character that stands in no URI", brief(text))]
    PathAndQuery {
        /// As the policy gave it.
        text: String,
    },
    /// Too much of everything.
    #[error("the decision is larger than {bytes_max} bytes (decision_bytes_max)")]
    Size {
        /// The limit.
        bytes_max: usize,
    },
    /// A status that no final answer has.
    #[error("status {status} is outside 200 to 599")]
    Status {
        /// As the policy gave it.
        status: u16,
    },
    /// A part of a handoff that a client of whom nothing was read cannot have.
    #[error("{field} in the handoff of an untouched connection")]
    Untouched {
        /// The part.
        field: &'static str,
    },
    /// An upstream that no configuration can name.
    #[error("upstream \"{}\" is empty, longer than any name, or contains NUL", brief(upstream))]
    Upstream {
        /// As the policy gave it.
        upstream: String,
    },
    /// A target that no configuration can name.
    #[error("target \"{}\" is empty, longer than any name, or contains NUL", brief(target))]
    Target {
        /// As the policy gave it.
        target: String,
    },
}

/// Where a guest was when it stopped, innermost first, on one line: ` at decide (src/lib.rs:12:5) < on_request`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place(String);

/// More than these say nothing new.
const FRAME_COUNT_MAX: usize = 8;

impl Place {
    /// Of the error that a call ended with; empty where the guest was not running.
    pub(super) fn of(error: &wasmtime::Error) -> Self {
        let Some(trace) = error.downcast_ref::<wasmtime::WasmBacktrace>() else { return Self::default() };
        let mut frames = Vec::new();
        for frame in trace.frames() {
            let fallback = || frame.func_name().map_or_else(|| format!("function {}", frame.func_index()), demangled);
            if frame.symbols().is_empty() {
                frames.push((fallback(), None));
            }
            for symbol in frame.symbols() {
                let line = symbol.line().map_or_else(String::new, |line| format!(":{line}"));
                let place = symbol.file().map(|file| format!("{file}{line}"));
                frames.push((symbol.name().map_or_else(fallback, demangled), place));
            }
        }
        // A panic goes through a dozen functions of Rust's own before it traps, and none of them says whose it was.
        let own = frames.iter().position(|(name, _)| !is_rusts_own(name)).unwrap_or(0);
        let mut out = String::new();
        for (at, (name, place)) in frames[own..].iter().enumerate() {
            out.push_str(if at == 0 { " at " } else { " < " });
            if at == FRAME_COUNT_MAX {
                out.push('…');
                break;
            }
            out.push_str(&brief(name));
            if let Some(place) = place {
                // A String takes everything that is written to it.
                let _ = write!(out, " ({})", brief(place));
            }
        }
        Self(out)
    }
}

impl Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a function belongs to Rust's standard library or to its runtime.
fn is_rusts_own(name: &str) -> bool {
    let name = name.trim_start_matches('<');
    ["alloc::", "core::", "std::", "__rust"].iter().any(|own| name.starts_with(own))
}

fn demangled(name: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(name))
}

/// `text` with what cannot be seen in its escaped form, so that it can neither end a line, nor move a cursor, nor show
/// itself in another order than it is in.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unseen) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_unseen(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    Cow::Owned(out)
}

/// Control characters, and those of Unicode that have no shape of their own: line and paragraph separators, marks of
/// direction (UAX #9), what has no width, annotations and tags.
fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{feff}')
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
        || matches!(c, '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// A message of several lines as one: runs of white space become one space, other control characters are escaped. It is a
/// guest's as often as ours, so it has an end.
pub(super) fn one_line(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    cut(&escape(&text), MESSAGE_BYTES_MAX).into_owned()
}

/// A name that a guest gave, [escaped](escape), and so long that it can be recognised.
fn brief(name: &str) -> String {
    cut(&escape(name), NAME_BYTES_MAX).into_owned()
}

/// `text` up to a length; whether there was more can be seen.
fn cut(text: &str, bytes_max: usize) -> Cow<'_, str> {
    if text.len() <= bytes_max {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("{}… ({} bytes)", &text[..text.floor_char_boundary(bytes_max)], text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_escaped() {
        for unseen in [
            "\0\n\u{7f}\u{85}\u{ad}\u{61c}\u{180e}\u{feff}",
            "\u{200b}\u{200c}\u{200d}\u{200e}\u{200f}\u{2028}\u{2029}",
            "\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2060}\u{2066}\u{2067}\u{2068}\u{2069}\u{206f}",
            "\u{fff9}\u{e0001}\u{e0041}",
        ] {
            let shown = escape(unseen);
            assert!(shown.bytes().all(|b| b.is_ascii_graphic()), "{shown}");
            assert_eq!(shown.matches('\\').count(), unseen.chars().count(), "{shown}");
        }
        let seen = "user=J\u{f6}rg \u{5d0}\u{627} \u{2010}\u{2027}\u{2030}\u{205f}\u{1f600}\u{fffd}";
        assert!(matches!(escape(seen), Cow::Borrowed(same) if same == seen));
    }

    #[test]
    fn a_message_is_one_line_without_control_characters() {
        let error = LoadError::new(Stage::Configure, "first\n  second\u{1b}[31m\u{7}");
        assert_eq!(error.to_string(), "configure: first second\\u{1b}[31m\\u{7}");
        let longest = "ü".repeat(MESSAGE_BYTES_MAX / 2);
        assert_eq!(one_line(&longest), longest);
        assert_eq!(one_line(&format!("{longest}ü")), format!("{longest}… (4098 bytes)"));
        for bad in [
            BadValue::FieldName { name: "a".repeat(1 << 20) },
            BadValue::FieldValue { name: "a".repeat(1 << 20) },
            BadValue::Target { target: "\0".repeat(1 << 20) },
        ] {
            assert!(bad.to_string().len() < 2 * NAME_BYTES_MAX, "{bad}");
        }
        let bad = PolicyError::from(BadValue::FieldName { name: "a\r\nb".into() });
        assert_eq!(bad.to_string(), "bad value: field name \"a\\r\\nb\" is no token");
    }
}
