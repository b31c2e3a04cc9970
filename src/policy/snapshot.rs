//! The state that `configure` leaves behind, written into the module itself.
//!
//! Later instances then start configured, without running `configure` in a worker. The module is instrumented so that
//! its memories and globals can be read, configured, read, and rewritten with what was found as its initial data. What
//! cannot be kept that way (tables that change at run time, vectors in mutable globals, a memory at its declared
//! maximum) makes a module with `configure` unusable, and the refusal says so: to run `configure` in every instance
//! instead would turn its cost into a surprise under load.

use wasmtime_wizer::{ComponentContext, ComponentInstanceState, Wizer};

use super::error::{LoadError, PolicyError, Stage};
use super::host::Instance;

/// A component that was prepared for being read.
pub(super) struct Prepared<'a> {
    wizer: Wizer,
    context: ComponentContext<'a>,
    /// Runs as the component does, and can be read.
    pub(super) instrumented: Vec<u8>,
}

/// Prepares a component.
pub(super) fn prepare(component: &[u8]) -> Result<Prepared<'_>, LoadError> {
    let mut wizer = Wizer::new();
    wizer.keep_init_func(true);
    match wizer.instrument_component(component) {
        Ok((context, instrumented)) => Ok(Prepared { wizer, context, instrumented }),
        Err(error) => Err(unusable(&format!("{error:#}"))),
    }
}

impl Prepared<'_> {
    /// The component as `instance`, which is one of the instrumented component, has made it.
    pub(super) async fn take(&self, instance: &mut Instance) -> Result<Vec<u8>, LoadError> {
        // A library keeps the number of a stream that it has used, and a new instance knows no such number.
        if instance.handles() > 0 {
            let reason = "it has opened standard output or error, and would write to what later instances do not have";
            let remedy = "print in hooks only, or use log.write";
            return Err(LoadError::new(
                Stage::Configure,
                format!("the state after configure cannot be kept: {reason}; {remedy}"),
            ));
        }
        instance.open_for_snapshot();
        let mut reader = Reader { instance, fault: None };
        let component = self.wizer.snapshot_component(&self.context, &mut reader).await;
        match (reader.fault, component) {
            (Some(fault), _) => Err(unusable(&fault.to_string())),
            (None, Err(error)) => Err(unusable(&format!("{error:#}"))),
            (None, Ok(component)) => Ok(component),
        }
    }
}

fn unusable(reason: &str) -> LoadError {
    LoadError::new(
        Stage::Configure,
        format!("the state after configure cannot be kept: {reason}; use config.get in on_request instead"),
    )
}

/// Reads an instance. The trait has no place for errors: the first one is kept, and empty values are given from then on.
struct Reader<'a> {
    instance: &'a mut Instance,
    fault: Option<PolicyError>,
}

impl Reader<'_> {
    async fn number<R>(&mut self, interface: &str, name: &str) -> R
    where
        R: wasmtime::component::Lift + Default + Send + Sync + 'static,
    {
        let read = self.instance.read(interface, name).await;
        read.unwrap_or_else(|error| {
            self.fault.get_or_insert(error);
            R::default()
        })
    }
}

impl ComponentInstanceState for Reader<'_> {
    async fn call_func_ret_list_u8(&mut self, instance: &str, func: &str, contents: impl FnOnce(&[u8]) + Send) {
        let mut contents = Some(contents);
        let read = self.instance.read_memory(instance, func, |bytes| {
            if let Some(contents) = contents.take() {
                contents(bytes);
            }
        });
        if let Err(error) = read.await {
            self.fault.get_or_insert(error);
        }
        if let Some(contents) = contents {
            contents(&[]);
        }
    }

    async fn call_func_ret_s32(&mut self, instance: &str, func: &str) -> i32 {
        self.number(instance, func).await
    }

    async fn call_func_ret_s64(&mut self, instance: &str, func: &str) -> i64 {
        self.number(instance, func).await
    }

    async fn call_func_ret_f32(&mut self, instance: &str, func: &str) -> u32 {
        self.number::<f32>(instance, func).await.to_bits()
    }

    async fn call_func_ret_f64(&mut self, instance: &str, func: &str) -> u64 {
        self.number::<f64>(instance, func).await.to_bits()
    }
}
