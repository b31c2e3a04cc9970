//! The numbers that bound guests: those of the engine, and those that the configuration sets for each policy.

use wasmtime::{Config, Enabled, InstanceAllocationStrategy, PoolingAllocationConfig};

/// Instances of all policies together that can exist at one time, besides [`INSTANCES_PER_WORKER`] for each worker. An
/// instance is kept for reuse, or waits for the beginning of a body; what does not fit fails as
/// [`super::PolicyError::Exhausted`].
const INSTANCE_COUNT_BASE: u32 = 1000;
/// Room for a few policies on each route at their bound of idle instances.
const INSTANCES_PER_WORKER: u32 = 64;
/// The address space of a memory costs 4 GiB; this many stay below a quarter of what a process has (47 bits).
const INSTANCE_COUNT_MAX: u32 = 8000;
/// A component is made of core modules, each an instance; componentize-py makes 38, a snapshot adds one.
const CORE_INSTANCES_PER_COMPONENT_MAX: u32 = 64;
/// What most components have room for; the exception shares.
const CORE_INSTANCES_PER_COMPONENT: u32 = 8;
/// Function tables of interpreters hold some ten thousand entries.
const TABLE_ELEMENT_COUNT_MAX: usize = 100_000;
/// What a guest may recurse on; deeper is a trap.
const STACK_BYTES_MAX: usize = 512 << 10;
/// A fiber's stack holds the guest's and that of the imports it calls.
const FIBER_STACK_BYTES: usize = STACK_BYTES_MAX + (512 << 10);
/// Memory that stays with its slot when an instance goes, so that the next one finds it mapped.
const MEMORY_BYTES_KEPT: usize = 2 << 20;
/// The same for tables and stacks.
const TABLE_BYTES_KEPT: usize = 64 << 10;

/// Memories of instances that are gone and wait to be cleared together. More than one saves 1 µs of 5 for each fresh
/// instance, but what waits while its generation is dropped is not purged with it: its image stays mapped, and a
/// descriptor open, for each reload.
const DECOMMIT_BATCH_SIZE: usize = 1;

/// What bounds an instance, besides the engine's own limits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) memory_bytes_max: usize,
    pub(super) decision_bytes_max: usize,
}

/// The engine for `workers` threads that run policies.
pub(super) fn config(workers: usize) -> Config {
    let per_worker = u32::try_from(workers).unwrap_or(u32::MAX).saturating_mul(INSTANCES_PER_WORKER);
    let instances = INSTANCE_COUNT_BASE.saturating_add(per_worker).min(INSTANCE_COUNT_MAX);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        .total_core_instances(instances * CORE_INSTANCES_PER_COMPONENT)
        .total_memories(instances)
        .total_tables(instances * 2)
        .total_stacks(instances)
        .total_gc_heaps(instances)
        .max_core_instances_per_component(CORE_INSTANCES_PER_COMPONENT_MAX)
        .max_memories_per_component(CORE_INSTANCES_PER_COMPONENT_MAX)
        .max_tables_per_component(CORE_INSTANCES_PER_COMPONENT_MAX)
        .max_tables_per_module(8)
        .max_component_instance_size(4 << 20)
        .max_core_instance_size(4 << 20)
        .table_elements(TABLE_ELEMENT_COUNT_MAX)
        // The whole of 32 bits: what one policy may have is its store's limit.
        .max_memory_size(1 << 32)
        .linear_memory_keep_resident(MEMORY_BYTES_KEPT)
        .table_keep_resident(TABLE_BYTES_KEPT)
        .async_stack_keep_resident(TABLE_BYTES_KEPT)
        .decommit_batch_size(DECOMMIT_BATCH_SIZE)
        .pagemap_scan(Enabled::Auto);
    let mut config = Config::new();
    config
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
        // Guests are synchronous; what this would offer makes every call three times as expensive.
        .concurrency_support(false)
        .epoch_interruption(true)
        .max_wasm_stack(STACK_BYTES_MAX)
        .async_stack_size(FIBER_STACK_BYTES)
        .wasm_backtrace_details(wasmtime::WasmBacktraceDetails::Enable);
    config
}

/// Memory of one store, counted over all memories of its component.
#[derive(Debug)]
pub(super) struct MemoryLimit {
    pub(super) bytes_max: usize,
    bytes: usize,
    /// What the guest wanted to have when it was refused.
    pub(super) refused: Option<usize>,
}

impl MemoryLimit {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, bytes: 0, refused: None }
    }

    /// What the guest has.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl wasmtime::ResourceLimiter for MemoryLimit {
    fn memory_growing(&mut self, now: usize, wanted: usize, _max: Option<usize>) -> wasmtime::Result<bool> {
        let bytes = self.bytes.saturating_add(wanted.saturating_sub(now));
        if bytes > self.bytes_max {
            self.refused = Some(bytes);
            return Ok(false);
        }
        self.bytes = bytes;
        Ok(true)
    }

    fn table_growing(&mut self, _now: usize, wanted: usize, _max: Option<usize>) -> wasmtime::Result<bool> {
        Ok(wanted <= TABLE_ELEMENT_COUNT_MAX)
    }
}
