//! An [`Instance`]: one memory and its functions, and how they are called.

use std::fmt;

use wasmtime::Store;
use wasmtime::component::{ComponentExportIndex, ComponentNamedList, Lift, Lower, TypedFunc, WasmList};

use super::{DeadlineExceeded, Engine, Exports, State, Template};
use crate::policy::bindings::{Requirements, types};
use crate::policy::epoch::Deadline;
use crate::policy::error::{BadValue, Place, PolicyError, one_line};
use crate::policy::gauge::Reading;
use crate::policy::imports::Call;
use crate::policy::status::Alive;

/// One memory and its functions. It makes one call at a time, and is dropped as soon as one fails.
pub(in crate::policy) struct Instance {
    store: Store<State>,
    instance: wasmtime::component::Instance,
    on_request: TypedFunc<(), (types::Decision,)>,
    exports: Exports,
    engine: Engine,
    suspends: bool,
    calls: u32,
    reading: Option<Reading>,
    _alive: Alive,
}

impl Template {
    /// An instance, if it could be made.
    pub(super) fn instance(
        &self,
        mut store: Store<State>,
        instance: wasmtime::Result<wasmtime::component::Instance>,
    ) -> Result<Instance, PolicyError> {
        store.data_mut().flush();
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
                _alive: Alive::begin(&self.tally),
            }),
            Err(error) => Err(failure(&store, &error)),
        }
    }
}

/// What an instance used from its beginning on is told when it ends: a rehearsal gives it one call.
impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(reading) = self.reading.take() {
            reading.end(self.store.get_fuel().unwrap_or(0), self.store.data().memory.bytes());
        }
    }
}

/// One call of a hook: what it is called with, and the request that its imports show.
pub(in crate::policy) struct Question<P, R> {
    /// Its name in `wit/policy.wit`.
    pub(in crate::policy) hook: &'static str,
    pub(in crate::policy) function: fn(&mut Instance) -> Result<TypedFunc<P, R>, PolicyError>,
    pub(in crate::policy) given: P,
    pub(in crate::policy) call: Option<Call>,
}

impl Instance {
    /// The function `on-request`, which every policy has.
    pub(in crate::policy) fn on_request(&mut self) -> Result<TypedFunc<(), (types::Decision,)>, PolicyError> {
        Ok(self.on_request)
    }

    /// One of the functions that a policy may have.
    pub(in crate::policy) fn hook<P, R>(
        &mut self,
        which: fn(&Exports) -> Option<ComponentExportIndex>,
    ) -> Result<TypedFunc<P, R>, PolicyError>
    where
        P: ComponentNamedList + Lower + Send + Sync,
        R: ComponentNamedList + Lift + Send + Sync + 'static,
    {
        let absent = || BadValue::Malformed("there is no such hook".to_owned());
        let index = which(&self.exports).ok_or_else(absent)?;
        self.typed(index)
    }

    /// Asks it.
    pub(in crate::policy) async fn ask<P, R>(
        &mut self,
        question: &Question<P, R>,
        deadline: Deadline,
    ) -> Result<R, PolicyError>
    where
        P: ComponentNamedList + Lower + Copy + Send + Sync,
        R: ComponentNamedList + Lift + Send + Sync + 'static,
    {
        let function = self.begin(question)?;
        let answer = self.call(function, question.given, deadline).await;
        self.end(answer)
    }

    /// The same, for a module that [never suspends](Template::suspends).
    pub(in crate::policy) fn ask_at_once<P, R>(
        &mut self,
        question: &Question<P, R>,
        deadline: Deadline,
    ) -> Result<R, PolicyError>
    where
        P: ComponentNamedList + Lower + Copy + Send + Sync,
        R: ComponentNamedList + Lift + Send + Sync + 'static,
    {
        let function = self.begin(question)?;
        let answer = self.call_at_once(function, question.given, deadline);
        self.end(answer)
    }

    fn begin<P, R>(&mut self, question: &Question<P, R>) -> Result<TypedFunc<P, R>, PolicyError> {
        self.store.data_mut().imports.call.clone_from(&question.call);
        (question.function)(self)
    }

    fn end<R>(&mut self, answer: Result<R, PolicyError>) -> Result<R, PolicyError> {
        // Whoever asks gets the request back.
        self.store.data_mut().imports.call = None;
        self.calls += 1;
        answer
    }

    /// Calls `configure`; `None` when the module has none.
    pub(in crate::policy) async fn configure(
        &mut self,
        config: &str,
        deadline: Deadline,
    ) -> Result<Option<Result<Requirements, Vec<String>>>, PolicyError> {
        let Some(index) = self.exports.configure else { return Ok(None) };
        let function = self.typed::<(&str,), (Result<Requirements, Vec<String>>,)>(index)?;
        self.call(function, (config,), deadline).await.map(|(answer,)| Some(answer))
    }

    /// Calls `self-test`, with `call` as the request; passes when the module has none.
    pub(in crate::policy) async fn self_test(
        &mut self,
        call: Call,
        deadline: Deadline,
    ) -> Result<Result<(), String>, PolicyError> {
        let Some(index) = self.exports.self_test else { return Ok(Ok(())) };
        let function = self.typed::<(), (Result<(), String>,)>(index)?;
        self.store.data_mut().imports.call = Some(call);
        self.call(function, (), deadline).await.map(|(answer,)| answer)
    }

    /// How often it was asked.
    pub(in crate::policy) fn calls(&self) -> u32 {
        self.calls
    }

    /// Whether the last call can be made again elsewhere without anybody seeing it twice.
    pub(in crate::policy) fn is_repeatable(&self) -> bool {
        !self.store.data().imports.spoke
    }

    /// That of the last call; put off when the guest had to wait for us.
    pub(in crate::policy) fn deadline(&self) -> Deadline {
        self.store.data().imports.deadline
    }

    /// WASI's resources that the guest has, and that no other instance would know.
    pub(in crate::policy) fn handles(&self) -> u64 {
        self.store.data().handles
    }

    /// Lifts the limits on memory and on what is passed, for the accessors that a snapshot is read with.
    pub(in crate::policy) fn open_for_snapshot(&mut self) {
        self.store.data_mut().memory.bytes_max = usize::MAX;
        self.store.set_hostcall_fuel(usize::MAX);
    }

    /// Calls one of the accessors that a snapshot is read with, for a number.
    pub(in crate::policy) async fn read<R: Lift + Send + Sync + 'static>(
        &mut self,
        interface: &str,
        name: &str,
    ) -> Result<R, PolicyError> {
        let deadline = self.deadline();
        let function = self.accessor::<(R,)>(interface, name)?;
        self.call(function, (), deadline).await.map(|(value,)| value)
    }

    /// Calls one of the accessors that a snapshot is read with, for a memory.
    pub(in crate::policy) async fn read_memory(
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

    pub(in crate::policy) fn exports(&self) -> &Exports {
        &self.exports
    }

    /// The function at `index`, if it has that type.
    pub(in crate::policy) fn typed<P, R>(&mut self, index: ComponentExportIndex) -> Result<TypedFunc<P, R>, PolicyError>
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
        if !self.suspends {
            return self.call_at_once(function, given, deadline);
        }
        self.set_deadline(deadline);
        let running = self.engine.0.ticker.run();
        let result = function.call_async(&mut self.store, given).await;
        drop(running);
        self.store.data_mut().flush();
        result.map_err(|error| failure(&self.store, &error))
    }

    fn call_at_once<P, R>(&mut self, function: TypedFunc<P, R>, given: P, deadline: Deadline) -> Result<R, PolicyError>
    where
        P: ComponentNamedList + Lower + Send + Sync,
        R: ComponentNamedList + Lift + Send + Sync + 'static,
    {
        self.set_deadline(deadline);
        let running = self.engine.0.ticker.run();
        let result = function.call(&mut self.store, given);
        drop(running);
        self.store.data_mut().flush();
        result.map_err(|error| failure(&self.store, &error))
    }

    fn set_deadline(&mut self, deadline: Deadline) {
        let imports = &mut self.store.data_mut().imports;
        imports.deadline = deadline;
        imports.spoke = false;
        imports.callouts = 0;
        self.store.set_epoch_deadline(deadline.ticks());
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
