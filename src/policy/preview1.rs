//! WASI preview 1 (`wasi_snapshot_preview1`) for core modules, as Go, C and Rust's `wasm32-wasip1` import it.
//!
//! A module is linked to an adapter of our own, `preview1.wat`, when it is wrapped. It tells real time, gives real random
//! bytes, and makes log lines of standard output and error. There are no files, sockets, arguments or environment, and
//! nothing sleeps: such calls get an errno. The adapter asks the gateway through an interface that wants no memory of
//! the module, so that it can be called whatever the module's allocator is at.

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use wasmtime::StoreContextMut;
use wasmtime::component::Linker;
use wit_component::StringEncoding;
use wit_parser::Resolve;

use super::core::Core;
use super::host::State;
use super::stdio::Standard;

/// What a core module imports it from.
pub(super) const MODULE: &str = "wasi_snapshot_preview1";
/// What the adapter imports.
pub(super) const INTERFACE: &str = "baton:host/preview1@0.1.0";

/// The adapter as `wit-component` takes it.
pub(super) static ADAPTER: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut module = wat::parse_str(include_str!("preview1.wat")).expect("the adapter is well-formed");
    let mut resolve = Resolve::default();
    let package = resolve.push_str("preview1.wit", include_str!("preview1.wit")).expect("its interface is well-formed");
    let world = resolve.select_world(&[package], Some("adapter")).expect("it has this world");
    wit_component::embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)
        .expect("the adapter fits its world");
    module
});

static FUNCTIONS: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
    let core = Core::read(&ADAPTER).expect("the adapter is well-formed");
    core.exports.keys().map(|&name| name.to_owned()).collect()
});

/// Whether preview 1 has a function of that name.
pub(super) fn has(name: &str) -> bool {
    FUNCTIONS.contains(name)
}

/// Offers what the adapter imports.
pub(super) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    let mut interface = linker.instance(INTERFACE)?;
    interface.func_wrap("wall-ns", |_: StoreContextMut<'_, State>, ()| Ok((wall_ns(),)))?;
    interface.func_wrap("monotonic-ns", |_: StoreContextMut<'_, State>, ()| Ok((monotonic_ns(),)))?;
    interface.func_wrap("random", |_: StoreContextMut<'_, State>, ()| Ok((random()?,)))?;
    interface.func_wrap("write", |mut store: StoreContextMut<'_, State>, (stream, bytes): (u32, Vec<u8>)| {
        let stream = if stream == 1 { Standard::Output } else { Standard::Error };
        store.data_mut().write(stream, &bytes)
    })?;
    interface.func_wrap("exit", |_: StoreContextMut<'_, State>, (status,): (u32,)| -> wasmtime::Result<()> {
        Err(exited(status))
    })
}

/// A policy has nothing that it could end.
pub(super) fn exited(status: u32) -> wasmtime::Error {
    wasmtime::format_err!("the module ended itself with status {status}")
}

/// Since 1970; can be set, forwards and backwards.
pub(super) fn wall_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Since some time that this process remembers; never 0, which a guest may take for no time at all.
pub(super) fn monotonic_ns() -> u64 {
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(BEGAN.elapsed().as_nanos()).unwrap_or(u64::MAX).saturating_add(1_000_000_000)
}

/// Of the operating system.
pub(super) fn random() -> wasmtime::Result<u64> {
    getrandom::u64().map_err(|error| wasmtime::format_err!("no random bytes: {error}"))
}
