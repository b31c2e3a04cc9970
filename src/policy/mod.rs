//! Policies: WebAssembly that decides where a client goes.
//!
//! A [`Policy`] is a name in the configuration with its [`Options`]; behind it stands one [`Generation`] at a time, a
//! module that was proven before any request saw it. Asking it ([`Generation::on_request`]) runs guest code on the
//! calling thread, bounded in time, memory, stack and in the size of its answer. Whatever goes wrong in there ends as a
//! [`PolicyError`] and costs one instance; the next request gets another.
//!
//! ```text
//! file -> componentize (text, core module, component) -> compile -> imports and hooks known?
//!      -> start, configure -> snapshot -> start, self-test -> Generation -> swap one Arc
//! ```
//!
//! A component that imports nothing that waits is called without a stack of its own, which is most of what a call
//! costs. Instances are warm: a worker keeps a few of each policy and uses each for one request after the other, up to
//! `reuse_max`. Nothing of a request stays in an instance but what the module itself put into its memory.
//!
//! Deliberately absent: this module holds no client and no socket, and the linker offers none. The beginning of a body
//! comes through [`BodyPort`], from whoever owns the client. No precompiled code is loaded from anywhere.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;

mod bindings;
mod body;
mod componentize;
mod epoch;
mod error;
mod gauge;
mod generation;
mod host;
mod imports;
mod inspect;
mod limits;
mod prove;
mod rehearsal;
mod reload;
mod snapshot;

pub use body::{BodyError, BodyPort, Peek, Peeks};
pub(crate) use error::escape;
pub use error::{BadValue, EngineError, LoadError, Place, PolicyError, Stage};
pub use gauge::Used;
pub use generation::{Digest, Generation};
pub use host::Engine;
pub use inspect::{Inspection, Sizes, inspect};
pub use rehearsal::{Rehearsal, Rehearsed, Speed, Speeds};
pub use reload::Watcher;

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
    /// Targets, and socket paths, that it may name; `None`: any.
    pub targets: Option<Vec<String>>,
    /// All targets of the configuration; a module that requires another is refused. `None`: not judged here.
    pub known_targets: Option<Vec<String>>,
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
            targets: None,
            known_targets: None,
            decision_bytes_max: 1 << 20,
            log_lines_per_second_max: 100,
        }
    }

    /// Whether a module behaves the same under both, provided that it finds the targets that it requires.
    fn differ_only_in_known_targets(&self, other: &Self) -> bool {
        *self == Self { known_targets: self.known_targets.clone(), ..other.clone() }
    }
}

/// A named policy. Its generation can be swapped while requests are being decided.
#[derive(Debug)]
pub struct Policy {
    engine: Engine,
    options: Options,
    current: ArcSwap<Generation>,
    /// The failure that was said last, and the content that it was about. Held for the whole of a reload, so that there
    /// is one at a time.
    last_failure: Mutex<Option<(Option<Digest>, LoadError)>>,
}

/// What a reload did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// The file is what is in force already.
    Unchanged,
    /// Requests that begin from now on are decided by `to`.
    Swapped {
        /// The generation before.
        from: u64,
        /// The generation in force.
        to: u64,
    },
}

impl Policy {
    /// Reads, compiles and proves the module. Blocking: call it off the workers. `previous` is the policy of that name
    /// in the configuration before: its numbers go on, and where neither file nor options have changed, so does its
    /// generation.
    ///
    /// # Errors
    /// The module cannot be used; nothing is changed and nothing logged.
    pub fn load(engine: &Engine, options: Options, previous: Option<&Self>) -> Result<Self, LoadError> {
        let file = read(&options)?;
        let before = previous.map(Self::current);
        let generation = match before {
            Some(before)
                if before.digest() == Digest::of(&file)
                    && before.fits(options.known_targets.as_deref())
                    && previous
                        .is_some_and(|p| p.engine == *engine && p.options.differ_only_in_known_targets(&options)) =>
            {
                before
            }
            before => {
                let number = before.map_or(0, |before| before.number()) + 1;
                Arc::new(Generation::prove(engine, &options, number, &file)?)
            }
        };
        let current = ArcSwap::new(generation);
        Ok(Self { engine: engine.clone(), options, current, last_failure: Mutex::default() })
    }

    /// Reads the file again, and swaps the generation if it is another and can be used. Blocking: call it off the
    /// workers. Says in the log what it did; the same failure of the same content only once.
    ///
    /// # Errors
    /// The file cannot be used; the generation in force stays so.
    pub fn reload(&self) -> Result<Reload, LoadError> {
        let mut last_failure = self.last_failure.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.current();
        let (policy, from) = (&*self.options.name, before.number());
        let read = read(&self.options);
        let digest = read.as_ref().ok().map(|file| Digest::of(file));
        if digest == Some(before.digest()) {
            *last_failure = None;
            return Ok(Reload::Unchanged);
        }
        match read.and_then(|file| Generation::prove(&self.engine, &self.options, from + 1, &file)) {
            Ok(generation) => {
                let to = generation.number();
                self.current.store(Arc::new(generation));
                *last_failure = None;
                tracing::info!(policy, from, to, "policy reloaded");
                Ok(Reload::Swapped { from, to })
            }
            Err(error) => {
                let failure = Some((digest, error.clone()));
                if *last_failure != failure {
                    tracing::warn!(policy, generation = from, "policy not reloaded, generation {from} stays: {error}");
                    *last_failure = failure;
                }
                Err(error)
            }
        }
    }

    /// What the configuration says of it.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The generation in force; a request keeps it to its end.
    pub fn current(&self) -> Arc<Generation> {
        self.current.load_full()
    }
}

/// The whole file in memory: it may be written to while it is looked at.
fn read(options: &Options) -> Result<Vec<u8>, LoadError> {
    std::fs::read(&options.module)
        .map_err(|error| LoadError::new(Stage::Read, format!("{}: {error}", options.module.display())))
}

#[cfg(test)]
mod tests;
