//! The machine that policies run on: engine, linker, stores and their limits. The only file that runs guest code.
//!
//! A [`Template`] is a compiled module with everything resolved that can be resolved beforehand; an [`Instance`] is its
//! memory and its functions in a store of its own. What a guest can do is what the linker holds (`imports/`), and each
//! of its resources has a number: time by epochs, memory by the store's limiter, stack and table sizes by the engine,
//! what it can make the host allocate by the store's fuel for host calls.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use wasmtime::component::{
    Component, ComponentExportIndex, ComponentNamedList, HasSelf, InstancePre, Lift, Linker, Lower, TypedFunc, WasmList,
};
use wasmtime::{Store, UpdateDeadline};

use super::bindings::{Requirements, World, types};
use super::componentize::{LIFECYCLE, REQUEST_HOOK};
use super::epoch::{Deadline, Ticker};
use super::error::{BadValue, EngineError, LoadError, Place, PolicyError, Stage, one_line};
use super::gauge::{Gauge, Reading};
use super::imports::{Call, Identity, Imports};
use super::limits::{self, Limits, MemoryLimit};

/// Beside twice the decision's limit, what one call may make the host allocate: names, list headers, a log line.
const HOST_CALL_BYTES_BASE: usize = 64 << 10;

/// One for each process; clones are the same engine.
#[derive(Clone)]
pub struct Engine(Arc<Machine>);

struct Machine {
    wasmtime: wasmtime::Engine,
    linker: Linker<State>,
    ticker: Ticker,
    workers: usize,
    /// Only for [`super::Rehearsal`]: counting costs time.
    gauge: Option<Gauge>,
}

/// What a store holds.
struct State {
    imports: Imports,
    memory: MemoryLimit,
    decision_bytes_max: usize,
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
        let wasmtime = wasmtime::Engine::new(config).map_err(fault)?;
        let mut linker = Linker::new(&wasmtime);
        World::add_to_linker::<_, HasSelf<Imports>>(&mut linker, |state: &mut State| &mut state.imports)
            .map_err(fault)?;
        let ticker = Ticker::start(wasmtime.clone()).map_err(EngineError::Thread)?;
        Ok(Self(Arc::new(Machine { wasmtime, linker, ticker, workers: workers.max(1), gauge })))
    }

    pub(super) fn workers(&self) -> usize {
        self.0.workers
    }

    /// Where instances leave what they used; `None` where nothing is counted.
    pub(super) fn gauge(&self) -> Option<&Gauge> {
        self.0.gauge.as_ref()
    }

    pub(super) fn compile(&self, component: &[u8]) -> Result<Component, LoadError> {
        Component::from_binary(&self.0.wasmtime, component)
            .map_err(|error| LoadError::new(Stage::Compile, format!("{error:#}")))
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
    exports: Exports,
    limits: Limits,
    /// Whether it imports something that waits. Only then do its calls run on a stack of their own.
    suspends: bool,
}

#[derive(Clone, Copy)]
struct Exports {
    on_request: ComponentExportIndex,
    configure: Option<ComponentExportIndex>,
    self_test: Option<ComponentExportIndex>,
}

impl Template {
    /// Resolves imports and hooks. That `component` imports nothing foreign and has a request hook was looked at before;
    /// what can still be wrong is the type of a function.
    pub(super) fn new(
        engine: &Engine,
        component: &Component,
        identity: Arc<Identity>,
        limits: Limits,
        suspends: bool,
    ) -> Result<Self, LoadError> {
        let pre = engine
            .0
            .linker
            .instantiate_pre(component)
            .map_err(|error| LoadError::new(Stage::Imports, format!("{error:#}")))?;
        let on_request = hook(component, REQUEST_HOOK, "on-request")
            .ok_or_else(|| LoadError::new(Stage::Exports, "exports an empty request-hook"))?;
        let exports = Exports {
            on_request,
            configure: hook(component, LIFECYCLE, "configure"),
            self_test: hook(component, LIFECYCLE, "self-test"),
        };
        Ok(Self { engine: engine.clone(), pre, identity, exports, limits, suspends })
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
        let imports = Imports { identity: Arc::clone(&self.identity), call: None, deadline, spoke: false };
        let memory = MemoryLimit::new(self.limits.memory_bytes_max);
        let decision_bytes_max = self.limits.decision_bytes_max;
        let mut store = Store::new(&self.engine.0.wasmtime, State { imports, memory, decision_bytes_max });
        store.limiter(|state| &mut state.memory);
        store.set_hostcall_fuel(decision_bytes_max.saturating_mul(2).saturating_add(HOST_CALL_BYTES_BASE));
        store.epoch_deadline_callback(|context| match context.data().imports.deadline.ticks() {
            0 => Err(DeadlineExceeded.into()),
            ticks => Ok(UpdateDeadline::Continue(ticks)),
        });
        store.set_epoch_deadline(deadline.ticks());
        if self.engine.0.gauge.is_some() {
            // Never used up: it is the deadline that ends a guest.
            store.set_fuel(u64::MAX).map_err(|error| PolicyError::Exhausted(error.to_string()))?;
        }
        let running = self.engine.0.ticker.run();
        let instance =
            if self.suspends { self.pre.instantiate_async(&mut store).await } else { self.pre.instantiate(&mut store) };
        drop(running);
        let on_request = instance.and_then(|instance| {
            Ok((instance, instance.get_typed_func::<(), (types::Decision,)>(&mut store, self.exports.on_request)?))
        });
        match on_request {
            Ok((instance, on_request)) => Ok(Instance {
                reading: self.engine.0.gauge.as_ref().map(|gauge| gauge.begin(store.get_fuel().unwrap_or(0))),
                store,
                instance,
                on_request,
                exports: self.exports,
                engine: self.engine.clone(),
                suspends: self.suspends,
                calls: 0,
            }),
            Err(error) => Err(failure(&store, &error)),
        }
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

/// One memory and its functions. It makes one call at a time, and is dropped as soon as one fails.
pub(super) struct Instance {
    store: Store<State>,
    instance: wasmtime::component::Instance,
    on_request: TypedFunc<(), (types::Decision,)>,
    exports: Exports,
    engine: Engine,
    suspends: bool,
    calls: u32,
    reading: Option<Reading>,
}

/// What an instance used from its beginning on is told when it ends: a rehearsal gives it one call.
impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(reading) = self.reading.take() {
            reading.end(self.store.get_fuel().unwrap_or(0), self.store.data().memory.bytes());
        }
    }
}

impl Instance {
    /// Calls `on-request`.
    pub(super) async fn on_request(&mut self, call: Call, deadline: Deadline) -> Result<types::Decision, PolicyError> {
        self.store.data_mut().imports.call = Some(call);
        let function = self.on_request;
        let (decision,) = self.call(function, (), deadline).await?;
        self.store.data_mut().imports.call = None;
        self.calls += 1;
        Ok(decision)
    }

    /// Calls `configure`; `None` when the module has none.
    pub(super) async fn configure(
        &mut self,
        config: &str,
        deadline: Deadline,
    ) -> Result<Option<Result<Requirements, Vec<String>>>, PolicyError> {
        let Some(index) = self.exports.configure else { return Ok(None) };
        let function = self.typed::<(&str,), (Result<Requirements, Vec<String>>,)>(index)?;
        self.call(function, (config,), deadline).await.map(|(answer,)| Some(answer))
    }

    /// Calls `self-test`, with `call` as the request; passes when the module has none.
    pub(super) async fn self_test(
        &mut self,
        call: Call,
        deadline: Deadline,
    ) -> Result<Result<(), String>, PolicyError> {
        let Some(index) = self.exports.self_test else { return Ok(Ok(())) };
        let function = self.typed::<(), (Result<(), String>,)>(index)?;
        self.store.data_mut().imports.call = Some(call);
        self.call(function, (), deadline).await.map(|(answer,)| answer)
    }

    /// How many requests it has decided.
    pub(super) fn calls(&self) -> u32 {
        self.calls
    }

    /// Whether the last call can be made again elsewhere without anybody seeing it twice.
    pub(super) fn is_repeatable(&self) -> bool {
        !self.store.data().imports.spoke
    }

    /// That of the last call; put off when the guest had to wait for us.
    pub(super) fn deadline(&self) -> Deadline {
        self.store.data().imports.deadline
    }

    /// Lifts the limits on memory and on what is passed, for the accessors that a snapshot is read with.
    pub(super) fn open_for_snapshot(&mut self) {
        self.store.data_mut().memory.bytes_max = usize::MAX;
        self.store.set_hostcall_fuel(usize::MAX);
    }

    /// Calls one of the accessors that a snapshot is read with, for a number.
    pub(super) async fn read<R: Lift + Send + Sync + 'static>(
        &mut self,
        interface: &str,
        name: &str,
    ) -> Result<R, PolicyError> {
        let deadline = self.deadline();
        let function = self.accessor::<(R,)>(interface, name)?;
        self.call(function, (), deadline).await.map(|(value,)| value)
    }

    /// Calls one of the accessors that a snapshot is read with, for a memory.
    pub(super) async fn read_memory(
        &mut self,
        interface: &str,
        name: &str,
        contents: impl FnOnce(&[u8]) + Send,
    ) -> Result<(), PolicyError> {
        let list = self.read::<WasmList<u8>>(interface, name).await?;
        contents(list.as_le_slice(&self.store));
        Ok(())
    }

    fn accessor<R: ComponentNamedList + Lift + Send + Sync + 'static>(
        &mut self,
        interface: &str,
        name: &str,
    ) -> Result<TypedFunc<(), R>, PolicyError> {
        let interface = self.instance.get_export_index(&mut self.store, None, interface);
        let index = interface.and_then(|i| self.instance.get_export_index(&mut self.store, Some(&i), name));
        let index = index.ok_or_else(|| BadValue::Malformed(format!("there is no accessor {name}")))?;
        self.typed(index)
    }

    fn typed<P, R>(&mut self, index: ComponentExportIndex) -> Result<TypedFunc<P, R>, PolicyError>
    where
        P: ComponentNamedList + Lower + Send + Sync,
        R: ComponentNamedList + Lift + Send + Sync + 'static,
    {
        let function = self.instance.get_typed_func(&mut self.store, index);
        function.map_err(|error| BadValue::Malformed(one_line(&format!("{error:#}"))).into())
    }

    async fn call<P, R>(&mut self, function: TypedFunc<P, R>, given: P, deadline: Deadline) -> Result<R, PolicyError>
    where
        P: ComponentNamedList + Lower + Send + Sync,
        R: ComponentNamedList + Lift + Send + Sync + 'static,
    {
        let imports = &mut self.store.data_mut().imports;
        imports.deadline = deadline;
        imports.spoke = false;
        self.store.set_epoch_deadline(deadline.ticks());
        let running = self.engine.0.ticker.run();
        let result = if self.suspends {
            function.call_async(&mut self.store, given).await
        } else {
            function.call(&mut self.store, given)
        };
        drop(running);
        result.map_err(|error| failure(&self.store, &error))
    }
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance").field("calls", &self.calls).finish_non_exhaustive()
    }
}

/// What a failed call says of the policy.
fn failure(store: &Store<State>, error: &wasmtime::Error) -> PolicyError {
    let place = Place::of(error);
    if error.is::<DeadlineExceeded>() {
        return PolicyError::Deadline { deadline: store.data().imports.deadline.allowed(), place };
    }
    if let Some(limit) = error.downcast_ref::<wasmtime::PoolConcurrencyLimitError>() {
        return PolicyError::Exhausted(limit.to_string());
    }
    let memory = &store.data().memory;
    let said = one_line(&error.root_cause().to_string());
    let refused = memory.refused.map_or_else(String::new, |wanted| {
        format!(" (memory_max of {} bytes was reached: {wanted} bytes were wanted)", memory.bytes_max)
    });
    if error.is::<wasmtime::WasmBacktrace>() || memory.refused.is_some() {
        let reason = said.trim_start_matches("wasm trap: ").to_owned() + &refused;
        return PolicyError::Trap { reason, place };
    }
    // The guest had returned: it is what it returned that cannot be read.
    if said.contains("fuel allocated for hostcalls") {
        return BadValue::Size { bytes_max: store.data().decision_bytes_max }.into();
    }
    BadValue::Malformed(said).into()
}
