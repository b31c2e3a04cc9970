//! The machine that policies run on: engine, linker, stores and their limits. Guest code runs nowhere else.
//!
//! A [`Template`] is a compiled module with everything resolved that can be resolved beforehand; an [`Instance`]
//! (`host/instance.rs`) is its memory and its functions in a store of its own. What a guest can do is what the linker holds (`imports/`), and each
//! of its resources has a number: time by epochs, memory by the store's limiter, stack and table sizes by the engine,
//! what it can make the host allocate by the store's fuel for host calls.

mod instance;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use wasmtime::component::{Component, ComponentExportIndex, HasSelf, InstancePre, Linker};
use wasmtime::{Store, UpdateDeadline};

use super::bindings::World;
use super::componentize::{LIFECYCLE, REQUEST_HOOK};
use super::epoch::{Deadline, Ticker};
use super::error::{EngineError, LoadError, PolicyError, Stage, one_line};
use super::gauge::Gauge;
use super::imports::{Identity, Imports};
use super::limits::{self, Limits, MemoryLimit};
use super::preview1;
use super::prove::{COMPLETE_HOOK, CONNECTION_HOOK, FAILURE_HOOK, RESPONSE_HOOK};
use super::services::Services;
use super::shared::Registry;
use super::status::Tally;
use super::stdio::{Standard, Stdio};
use super::{cache, wasi};
use crate::metrics::Exposition;

pub(super) use self::instance::{Instance, Question};

/// Beside twice the decision's limit, what one call may make the host allocate: names, list headers, a log line.
const HOST_CALL_BYTES_BASE: usize = 64 << 10;

/// One for each process; clones are the same engine.
#[derive(Clone)]
pub struct Engine(Arc<Machine>);

struct Machine {
    wasmtime: wasmtime::Engine,
    linker: Linker<State>,
    ticker: Ticker,
    registry: Arc<Registry>,
    workers: usize,
    /// Only for [`super::Rehearsal`]: counting costs time.
    gauge: Option<Gauge>,
}

/// What a store holds.
pub(super) struct State {
    imports: Imports,
    stdio: Stdio,
    memory: MemoryLimit,
    decision_bytes_max: usize,
    /// Of WASI's resources, in the guest's hands.
    pub(super) handles: u64,
}

impl State {
    /// Takes what the guest writes to one of its standard streams.
    pub(super) fn write(&mut self, standard: Standard, bytes: &[u8]) -> wasmtime::Result<()> {
        self.stdio.write(standard, bytes, &mut self.imports)
    }

    /// The call is over, and with it a line that was not ended.
    fn flush(&mut self) {
        // That lines cannot be written has been said, and costs nobody an answer.
        drop(self.stdio.flush(&mut self.imports));
    }
}

impl Engine {
    /// Prepares for `workers` threads that run policies.
    ///
    /// # Errors
    /// Where the operating system denies address space or a thread.
    pub fn new(workers: usize) -> Result<Self, EngineError> {
        Self::with(&limits::config(workers), workers, None)
    }

    /// An engine that counts what guests do, for rehearsals.
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn counting() -> Result<Self, EngineError> {
        Self::with(limits::config(1).consume_fuel(true), 1, Some(Gauge::default()))
    }

    fn with(config: &wasmtime::Config, workers: usize, gauge: Option<Gauge>) -> Result<Self, EngineError> {
        let fault = |error: wasmtime::Error| EngineError::Wasmtime(one_line(&format!("{error:#}")));
        let mut config = config.clone();
        config.cache(cache::open());
        let wasmtime = wasmtime::Engine::new(&config).map_err(fault)?;
        let mut linker = Linker::new(&wasmtime);
        World::add_to_linker::<_, HasSelf<Imports>>(&mut linker, |state: &mut State| &mut state.imports)
            .map_err(fault)?;
        preview1::add_to_linker(&mut linker).map_err(fault)?;
        let ticker = Ticker::start(wasmtime.clone()).map_err(EngineError::Thread)?;
        let registry = Arc::default();
        Ok(Self(Arc::new(Machine { wasmtime, linker, ticker, registry, workers: workers.max(1), gauge })))
    }

    /// What policies may ask of the gateway from here on.
    pub fn connect(&self, services: Services) {
        self.0.registry.connect(services);
    }

    /// Adds what policies have counted.
    pub fn expose(&self, out: &mut Exposition) {
        self.0.registry.expose(out);
    }

    pub(super) fn registry(&self) -> &Arc<Registry> {
        &self.0.registry
    }

    pub(super) fn workers(&self) -> usize {
        self.0.workers
    }

    /// Where instances leave what they used; `None` where nothing is counted.
    pub(super) fn gauge(&self) -> Option<&Gauge> {
        self.0.gauge.as_ref()
    }

    pub(super) fn compile(&self, component: &[u8]) -> Result<Component, LoadError> {
        Component::from_binary(&self.0.wasmtime, component).map_err(|error| {
            let said = format!("{error:#}");
            // What WASI 0.3 added to components is what the engine does without.
            let remedy = if said.contains("component model async") { "; build for WASI 0.2" } else { "" };
            LoadError::new(Stage::Compile, said + remedy)
        })
    }
}

impl PartialEq for Engine {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("workers", &self.0.workers).finish_non_exhaustive()
    }
}

/// A call ran for longer than it may.
#[derive(Debug, thiserror::Error)]
#[error("deadline exceeded")]
struct DeadlineExceeded;

/// A compiled module, ready to be instantiated.
pub(super) struct Template {
    engine: Engine,
    pre: InstancePre<State>,
    identity: Arc<Identity>,
    tally: Arc<Tally>,
    exports: Exports,
    limits: Limits,
    /// Whether it imports something that waits. Only then do its calls run on a stack of their own.
    suspends: bool,
}

/// The hooks that a module exports.
#[derive(Clone, Copy)]
pub(super) struct Exports {
    on_request: ComponentExportIndex,
    configure: Option<ComponentExportIndex>,
    self_test: Option<ComponentExportIndex>,
    pub(super) on_complete: Option<ComponentExportIndex>,
    pub(super) on_connect: Option<ComponentExportIndex>,
    pub(super) on_handoff_failed: Option<ComponentExportIndex>,
    pub(super) on_response: Option<ComponentExportIndex>,
    pub(super) on_tick: Option<ComponentExportIndex>,
}

impl Template {
    /// Resolves imports and hooks. That `component` imports nothing foreign and has a request hook was looked at before;
    /// what can still be wrong is the type of a function.
    pub(super) fn new(
        engine: &Engine,
        component: &Component,
        identity: Arc<Identity>,
        tally: Arc<Tally>,
        limits: Limits,
        suspends: bool,
    ) -> Result<Self, LoadError> {
        let fault = |error: wasmtime::Error| LoadError::new(Stage::Imports, format!("{error:#}"));
        let linker = wasi::linker(&engine.0.linker, component).map_err(fault)?;
        let pre = linker.as_ref().unwrap_or(&engine.0.linker).instantiate_pre(component).map_err(fault)?;
        let on_request = hook(component, REQUEST_HOOK, "on-request")
            .ok_or_else(|| LoadError::new(Stage::Exports, "exports an empty request-hook"))?;
        let exports = Exports {
            on_request,
            configure: hook(component, LIFECYCLE, "configure"),
            self_test: hook(component, LIFECYCLE, "self-test"),
            on_complete: hook(component, COMPLETE_HOOK, "on-complete"),
            on_connect: hook(component, CONNECTION_HOOK, "on-connect"),
            on_handoff_failed: hook(component, FAILURE_HOOK, "on-handoff-failed"),
            on_response: hook(component, RESPONSE_HOOK, "on-response"),
            on_tick: hook(component, LIFECYCLE, "on-tick"),
        };
        Ok(Self { engine: engine.clone(), pre, identity, tally, exports, limits, suspends })
    }

    pub(super) fn exports(&self) -> &Exports {
        &self.exports
    }

    pub(super) fn suspends(&self) -> bool {
        self.suspends
    }

    /// A deadline that begins to run now, on this thread.
    pub(super) fn deadline(&self, allowed: Duration) -> Deadline {
        self.engine.0.ticker.deadline(allowed)
    }

    /// Makes an instance; start functions run, for as long as `deadline` allows.
    pub(super) async fn instantiate(&self, deadline: Deadline) -> Result<Instance, PolicyError> {
        if !self.suspends {
            return self.instantiate_at_once(deadline);
        }
        let mut store = self.store(deadline);
        let running = self.engine.0.ticker.run();
        let instance = self.pre.instantiate_async(&mut store).await;
        drop(running);
        self.instance(store, instance)
    }

    /// The same for a module that [never suspends](Self::suspends).
    pub(super) fn instantiate_at_once(&self, deadline: Deadline) -> Result<Instance, PolicyError> {
        let mut store = self.store(deadline);
        let running = self.engine.0.ticker.run();
        let instance = self.pre.instantiate(&mut store);
        drop(running);
        self.instance(store, instance)
    }

    fn store(&self, deadline: Deadline) -> Store<State> {
        let imports = Imports { identity: Arc::clone(&self.identity), call: None, deadline, spoke: false, callouts: 0 };
        let memory = MemoryLimit::new(self.limits.memory_bytes_max);
        let decision_bytes_max = self.limits.decision_bytes_max;
        let mut store = Store::new(
            &self.engine.0.wasmtime,
            State { imports, stdio: Stdio::default(), memory, decision_bytes_max, handles: 0 },
        );
        store.limiter(|state| &mut state.memory);
        store.set_hostcall_fuel(decision_bytes_max.saturating_mul(2).saturating_add(HOST_CALL_BYTES_BASE));
        store.epoch_deadline_callback(|context| match context.data().imports.deadline.ticks() {
            0 => Err(DeadlineExceeded.into()),
            ticks => Ok(UpdateDeadline::Continue(ticks)),
        });
        store.set_epoch_deadline(deadline.ticks());
        if self.engine.0.gauge.is_some() {
            // Never used up: it is the deadline that ends a guest.
            store.set_fuel(u64::MAX).expect("an engine with a gauge counts");
        }
        store
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Template").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// Looks for a function of an exported interface.
pub(super) fn hook(component: &Component, interface: &str, function: &str) -> Option<ComponentExportIndex> {
    let interface = component.get_export_index(None, interface)?;
    component.get_export_index(Some(&interface), function)
}
