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
//! comes through [`BodyPort`], from whoever owns the client; callouts and the state of targets come through
//! [`Services`], from whoever owns those. Of WASI there are clocks, random bytes, and a log behind standard output and
//! error (`preview1`, `wasi`): no files, no sockets. Compiled code is loaded from a private folder of our own (`cache`)
//! and from nowhere else.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use nix::libc::O_NONBLOCK;

mod bindings;
mod body;
mod breaker;
mod cache;
mod componentize;
mod core;
mod epoch;
mod error;
mod gauge;
mod generation;
mod hooks;
mod host;
mod imports;
mod inspect;
mod limits;
mod metrics;
mod preview1;
mod prove;
mod rehearsal;
mod reload;
mod secret;
mod services;
mod shared;
mod snapshot;
mod status;
mod stdio;
mod store;
mod tick;
mod wasi;

pub use body::{BodyError, BodyPort, Peek, Peeks};
pub use breaker::{BreakerOptions, BreakerState};
pub use cache::give as give_cache;
pub(crate) use error::escape;
pub use error::{BadValue, EngineError, LoadError, Place, PolicyError, RollbackError, Stage};
pub use gauge::Used;
pub use generation::{Digest, Generation};
pub use hooks::{Admittance, Completion, FailureStage, HandoffFailure, Summary, UpstreamHead};
pub use host::Engine;
pub use inspect::{Inspection, Sizes, inspect};
pub use rehearsal::{Rehearsal, Rehearsed, Speed, Speeds};
pub use reload::Watcher;
pub use secret::Secret;
pub use services::{
    Callout, CalloutAnswer, CalloutError, Callouts, Fetching, Health, Services, Strategy, TargetStatus, Targets,
};
pub use status::{LastError, LastReload, Status};

use status::Tally;
use tick::Ticks;

/// A module's file; interpreters of JavaScript and Python have some 20 MiB.
const MODULE_BYTES_MAX: u64 = 128 << 20;

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
    /// When it is not asked any more for a while.
    pub breaker: BreakerOptions,
    /// By the names that `config.secret` is asked for.
    pub secrets: BTreeMap<String, Secret>,
    /// What its callouts may reach.
    pub upstreams: Vec<String>,
    /// Of all of its metrics together, in this process.
    pub metric_series_max: usize,
    /// Keys, values and what they cost beside.
    pub store_bytes_max: usize,
    /// Callouts of one hook.
    pub callouts_max: u32,
    /// Fields and body of one answer to a callout.
    pub callout_bytes_max: usize,
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
            breaker: BreakerOptions::default(),
            secrets: BTreeMap::new(),
            upstreams: Vec::new(),
            metric_series_max: 1000,
            store_bytes_max: 16 << 20,
            callouts_max: 8,
            callout_bytes_max: 1 << 20,
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
    tally: Arc<Tally>,
    /// Held for the whole of a reload, so that there is one at a time.
    history: Mutex<History>,
    last_reload: Mutex<Option<LastReload>>,
    ticks: Mutex<Ticking>,
}

/// What came before the generation in force.
#[derive(Clone, Debug, Default)]
struct History {
    /// The highest number that was given.
    number: u64,
    /// The last generation of another digest.
    before: Option<Past>,
    /// What was rolled back from; not loaded again until the file is another one.
    left: Option<Digest>,
    /// The failure that was said last, and the content that it was about.
    last_failure: Option<(Option<Digest>, LoadError)>,
}

#[derive(Clone, Debug)]
struct Past {
    number: u64,
    file: Arc<[u8]>,
}

/// Ticks belong to the generation in force of a policy in force.
#[derive(Debug, Default)]
enum Ticking {
    /// Its configuration is not in force.
    #[default]
    Not,
    InForce(#[expect(dead_code, reason = "dropped, it ends")] Option<Ticks>),
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
        let mut file = read(&options)?;
        let mut history = previous.map(|policy| policy.history().clone()).unwrap_or_default();
        let (before, tally) = previous.map(|policy| (policy.current(), Arc::clone(&policy.tally))).unzip();
        let tally = tally.unwrap_or_default();
        match &before {
            Some(before) if history.left == Some(Digest::of(&file)) => file = Arc::clone(before.file()),
            _ => history.left = None,
        }
        let digest = Digest::of(&file);
        let generation = match before {
            Some(before)
                if before.digest() == digest
                    && before.fits(options.known_targets.as_deref())
                    && previous
                        .is_some_and(|p| p.engine == *engine && p.options.differ_only_in_known_targets(&options)) =>
            {
                before
            }
            before => {
                let generation = Generation::prove(engine, &options, history.number + 1, file, &tally)?;
                history.follow(before.as_deref(), &generation);
                Arc::new(generation)
            }
        };
        // What failed before has been mended, or it would fail here.
        history.last_failure = None;
        let is_same = |last: &LastReload| last.result.as_ref() == Ok(&generation.number());
        let last_reload = previous.map(|policy| match policy.last_reload() {
            None if policy.current().number() == generation.number() => None,
            Some(last) if is_same(&last) => Some(last),
            _ => Some(LastReload { at: SystemTime::now(), result: Ok(generation.number()) }),
        });
        Ok(Self {
            engine: engine.clone(),
            options,
            current: ArcSwap::new(generation),
            tally,
            history: Mutex::new(history),
            last_reload: Mutex::new(last_reload.flatten()),
            ticks: Mutex::default(),
        })
    }

    /// Its configuration is in force from now on: background work begins.
    pub fn begin(&self) {
        let mut ticks = self.ticks.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*ticks, Ticking::Not) {
            *ticks = Ticking::InForce(Ticks::begin(&self.current()));
        }
    }

    /// Its configuration is in force no more: background work ends, though connections that are idle still know the policy.
    pub fn end(&self) {
        *self.ticks.lock().unwrap_or_else(PoisonError::into_inner) = Ticking::Not;
    }

    /// Reads the file again, and swaps the generation if it is another and can be used. Blocking: call it off the
    /// workers. Says in the log what it did; the same failure of the same content only once.
    ///
    /// # Errors
    /// The file cannot be used; the generation in force stays so.
    pub fn reload(&self) -> Result<Reload, LoadError> {
        let mut history = self.history();
        let before = self.current();
        let (policy, from) = (&*self.options.name, before.number());
        let read = read(&self.options);
        let digest = read.as_ref().ok().map(|file| Digest::of(file));
        let is_left = digest.is_some() && digest == history.left;
        if digest.is_some() && !is_left {
            history.left = None;
        }
        if is_left || digest == Some(before.digest()) {
            if history.last_failure.take().is_some() {
                self.set_last_reload(Ok(from));
            }
            return Ok(Reload::Unchanged);
        }
        let number = history.number + 1;
        match read.and_then(|file| Generation::prove(&self.engine, &self.options, number, file, &self.tally)) {
            Ok(generation) => {
                let to = generation.number();
                history.follow(Some(&before), &generation);
                history.last_failure = None;
                self.swap(generation);
                tracing::info!(policy, from, to, "policy reloaded");
                Ok(Reload::Swapped { from, to })
            }
            Err(error) => {
                let failure = Some((digest, error.clone()));
                if history.last_failure != failure {
                    tracing::warn!(policy, generation = from, "policy not reloaded, generation {from} stays: {error}");
                    history.last_failure = failure;
                    self.set_last_reload(Err(error.clone()));
                }
                Err(error)
            }
        }
    }

    /// Puts the last generation of another digest into force again, proved anew. It stays until the file is another one
    /// than was rolled back from. Blocking: call it off the workers.
    ///
    /// # Errors
    /// There is none before, or it cannot be used any more; the generation in force stays so.
    pub fn rollback(&self) -> Result<Reload, RollbackError> {
        let mut history = self.history();
        let current = self.current();
        let (policy, from) = (&*self.options.name, current.number());
        let Some(Past { number, file }) = history.before.clone() else { return Err(RollbackError::NothingBefore) };
        let generation = Generation::prove(&self.engine, &self.options, number, file, &self.tally)?;
        let to = generation.number();
        (history.before, history.left, history.last_failure) = (None, Some(current.digest()), None);
        self.swap(generation);
        tracing::info!(policy, from, to, "policy rolled back");
        Ok(Reload::Swapped { from, to })
    }

    /// The machine that it runs on.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// What the configuration says of it.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The generation in force; a request keeps it to its end.
    pub fn current(&self) -> Arc<Generation> {
        self.current.load_full()
    }

    /// How it is now. Never waits for a reload.
    pub fn status(&self) -> Status {
        let generation = self.current();
        Status {
            name: Arc::clone(generation.policy()),
            generation: generation.number(),
            digest: generation.digest(),
            loaded_at: generation.loaded_at(),
            hooks: generation.hooks().to_vec(),
            imports: generation.imports().to_vec(),
            instances: self.tally.instances(),
            traps: self.tally.traps(),
            breaker: generation.breaker(),
            last_error: self.tally.last_error(),
            last_reload: self.last_reload(),
        }
    }

    fn swap(&self, generation: Generation) {
        let number = generation.number();
        let generation = Arc::new(generation);
        self.current.store(Arc::clone(&generation));
        let mut ticks = self.ticks.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*ticks, Ticking::InForce(_)) {
            // The old one first: two of them would do the same work.
            *ticks = Ticking::InForce(None);
            *ticks = Ticking::InForce(Ticks::begin(&generation));
        }
        self.set_last_reload(Ok(number));
    }

    fn set_last_reload(&self, result: Result<u64, LoadError>) {
        let last = LastReload { at: SystemTime::now(), result };
        *self.last_reload.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
    }

    fn last_reload(&self) -> Option<LastReload> {
        self.last_reload.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl History {
    /// `next` comes into force behind `before`.
    fn follow(&mut self, before: Option<&Generation>, next: &Generation) {
        self.number = next.number();
        if let Some(before) = before.filter(|before| before.digest() != next.digest()) {
            self.before = Some(Past { number: before.number(), file: Arc::clone(before.file()) });
        }
    }
}

/// Whether `named` is the target of that name, or one of its members, which are called `NAME/INDEX`: whoever may name all of
/// them may name each.
fn is_target_or_member(named: &str, target: &str) -> bool {
    let Some(rest) = named.strip_prefix(target) else { return false };
    let is_index = |index: &str| !index.is_empty() && index.bytes().all(|b| b.is_ascii_digit());
    rest.is_empty() || !target.starts_with('/') && rest.strip_prefix('/').is_some_and(is_index)
}

/// The whole file in memory: it may be written to while it is looked at. Who writes policies is not who runs the gateway: a
/// pipe would hold up every reload, and a device without an end would cost all memory.
fn read(options: &Options) -> Result<Arc<[u8]>, LoadError> {
    let fault =
        |reason: &dyn std::fmt::Display| LoadError::new(Stage::Read, format!("{}: {reason}", options.module.display()));
    let opened = std::fs::OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(&options.module);
    let opened = opened.and_then(|file| Ok((file.metadata()?, file)));
    let (found, file) = opened.map_err(|error| fault(&error))?;
    if !found.is_file() {
        return Err(fault(&"is no regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MODULE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| fault(&error))?;
    if bytes.len() as u64 > MODULE_BYTES_MAX {
        return Err(fault(&format_args!("is larger than {} MiB", MODULE_BYTES_MAX >> 20)));
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests;
