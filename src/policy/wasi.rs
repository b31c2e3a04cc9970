//! WASI 0.2 (`wasi:…@0.2.x`) for components, as Rust's `wasm32-wasip2` and the componentizers of JavaScript and Python
//! import it, in the spirit of `preview1`: two clocks, random bytes, standard output and error as log lines. Whatever
//! else a component imports is there, because its libraries import more than they call, and traps with its own name.
//!
//! What is offered is cut to each component: it finds every interface in the version of 0.2 that it was built for. The
//! whole is a tenth of `wasmtime-wasi`, waits for nothing, and so leaves a policy on the path without a stack of its own.

use wasmtime::StoreContextMut;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, ComponentType, Lift, Linker, LinkerInstance, Lower, Resource, ResourceType};

use super::host::State;
use super::preview1::{exited, monotonic_ns, random, wall_ns};
use super::stdio::Standard;

/// Versions of WASI that a component can have been built for.
const VERSION: &str = "0.2.";
/// What one call may ask for, as `random.bytes` of the contract.
const RANDOM_BYTES_MAX: u64 = 64 << 10;
/// What a guest is told that a stream takes at once; more is a fault of its own.
const WRITE_BYTES_MAX: u64 = 16 << 10;

/// What a guest can have open at one time: each costs memory of ours, not of its own.
const HANDLE_COUNT_MAX: u64 = 1000;

/// Standard output and error, by number as in preview 1.
struct OutputStream;
/// Standard input, which has ended.
struct InputStream;
/// Something to wait for; it is always ready.
struct Pollable;
/// `wasi:io/error`; there are none.
struct IoError;
/// Of interfaces that are not offered: nobody has one.
struct Absent;

#[derive(ComponentType, Lift, Lower)]
#[component(variant)]
enum StreamError {
    #[component(name = "last-operation-failed")]
    Failed(Resource<IoError>),
    #[component(name = "closed")]
    Closed,
}

#[derive(Clone, Copy, ComponentType, Lift, Lower)]
#[component(record)]
struct Datetime {
    seconds: u64,
    nanoseconds: u32,
}

type Store<'a> = StoreContextMut<'a, State>;
type Streamed<T> = Result<T, StreamError>;

/// Whether a component may import that, by its full name.
pub(super) fn is_offered(name: &str) -> bool {
    name.starts_with("wasi:") && name.split_once('@').is_some_and(|(_, version)| version.starts_with(VERSION))
}

/// Offers what `component` imports of it; `None` when that is nothing.
pub(super) fn linker(base: &Linker<State>, component: &Component) -> wasmtime::Result<Option<Linker<State>>> {
    let engine = component.engine();
    let mut linker = None;
    for (name, import) in component.component_type().imports(engine).filter(|(name, _)| is_offered(name)) {
        let ComponentItem::ComponentInstance(wanted) = import.ty else { continue };
        let mut offered = linker.get_or_insert_with(|| base.clone()).instance(name)?;
        let interface = name.split_once('@').map_or(name, |(interface, _)| interface);
        for (item, wanted) in wanted.exports(engine) {
            match wanted.ty {
                ComponentItem::ComponentFunc(_) => function(&mut offered, interface, item)?,
                ComponentItem::Resource(_) => offered.resource(item, resource(item), |mut store, _| {
                    store.data_mut().handles -= 1;
                    Ok(())
                })?,
                _ => {}
            }
        }
    }
    Ok(linker)
}

/// A handle for the guest, which is counted until it drops it.
fn own<T: 'static>(mut store: Store<'_>, number: u32) -> wasmtime::Result<(Resource<T>,)> {
    let handles = &mut store.data_mut().handles;
    if *handles == HANDLE_COUNT_MAX {
        return Err(wasmtime::format_err!("more than {HANDLE_COUNT_MAX} streams and pollables of WASI are open"));
    }
    *handles += 1;
    Ok((Resource::new_own(number),))
}

fn resource(name: &str) -> ResourceType {
    match name {
        "output-stream" => ResourceType::host::<OutputStream>(),
        "input-stream" => ResourceType::host::<InputStream>(),
        "pollable" => ResourceType::host::<Pollable>(),
        "error" => ResourceType::host::<IoError>(),
        _ => ResourceType::host::<Absent>(),
    }
}

fn function(offered: &mut LinkerInstance<'_, State>, interface: &str, name: &str) -> wasmtime::Result<()> {
    match (interface, name) {
        ("wasi:cli/environment", "get-environment") => {
            offered.func_wrap(name, |_: Store<'_>, ()| Ok((Vec::<(String, String)>::new(),)))
        }
        ("wasi:cli/environment", "get-arguments") => {
            offered.func_wrap(name, |_: Store<'_>, ()| Ok((Vec::<String>::new(),)))
        }
        ("wasi:cli/environment", "initial-cwd") => offered.func_wrap(name, |_: Store<'_>, ()| Ok((None::<String>,))),
        ("wasi:cli/exit", "exit") => {
            offered.func_wrap(name, |_: Store<'_>, (status,): (Result<(), ()>,)| -> wasmtime::Result<()> {
                Err(exited(status.is_err().into()))
            })
        }
        ("wasi:cli/exit", "exit-with-code") => offered
            .func_wrap(name, |_: Store<'_>, (status,): (u8,)| -> wasmtime::Result<()> { Err(exited(status.into())) }),
        ("wasi:cli/stdin", "get-stdin") => offered.func_wrap(name, |store: Store<'_>, ()| own::<InputStream>(store, 0)),
        ("wasi:cli/stdout", "get-stdout") => {
            offered.func_wrap(name, |store: Store<'_>, ()| own::<OutputStream>(store, 1))
        }
        ("wasi:cli/stderr", "get-stderr") => {
            offered.func_wrap(name, |store: Store<'_>, ()| own::<OutputStream>(store, 2))
        }
        ("wasi:cli/terminal-stdin" | "wasi:cli/terminal-stdout" | "wasi:cli/terminal-stderr", _) => {
            offered.func_wrap(name, |_: Store<'_>, ()| Ok((None::<Resource<Absent>>,)))
        }
        ("wasi:io/streams", _) => stream(offered, name),
        ("wasi:io/poll", "[method]pollable.ready") => {
            offered.func_wrap(name, |_: Store<'_>, _: (Resource<Pollable>,)| Ok((true,)))
        }
        ("wasi:io/poll", "[method]pollable.block") => {
            offered.func_wrap(name, |_: Store<'_>, _: (Resource<Pollable>,)| Ok(()))
        }
        ("wasi:io/poll", "poll") => offered.func_wrap(name, |_: Store<'_>, (these,): (Vec<Resource<Pollable>>,)| {
            Ok(((0u32..).take(these.len()).collect::<Vec<_>>(),))
        }),
        ("wasi:clocks/monotonic-clock", "now") => offered.func_wrap(name, |_: Store<'_>, ()| Ok((monotonic_ns(),))),
        ("wasi:clocks/monotonic-clock", "resolution") => offered.func_wrap(name, |_: Store<'_>, ()| Ok((1u64,))),
        ("wasi:clocks/monotonic-clock", "subscribe-instant" | "subscribe-duration") => {
            offered.func_wrap(name, |store: Store<'_>, _: (u64,)| own::<Pollable>(store, 0))
        }
        ("wasi:clocks/wall-clock", "now") => offered.func_wrap(name, |_: Store<'_>, ()| {
            let now = wall_ns();
            let nanoseconds = u32::try_from(now % 1_000_000_000).unwrap_or_default();
            Ok((Datetime { seconds: now / 1_000_000_000, nanoseconds },))
        }),
        ("wasi:clocks/wall-clock", "resolution") => {
            offered.func_wrap(name, |_: Store<'_>, ()| Ok((Datetime { seconds: 0, nanoseconds: 1 },)))
        }
        ("wasi:random/random", "get-random-bytes") | ("wasi:random/insecure", "get-insecure-random-bytes") => offered
            .func_wrap(name, |_: Store<'_>, (count,): (u64,)| {
                if count > RANDOM_BYTES_MAX {
                    return Err(wasmtime::format_err!("{count} random bytes are more than {RANDOM_BYTES_MAX}"));
                }
                let words = (0..count.div_ceil(8)).map(|_| random()).collect::<wasmtime::Result<Vec<_>>>()?;
                let bytes = words.into_iter().flat_map(u64::to_le_bytes);
                Ok((bytes.take(usize::try_from(count)?).collect::<Vec<_>>(),))
            }),
        ("wasi:random/random", "get-random-u64") | ("wasi:random/insecure", "get-insecure-random-u64") => {
            offered.func_wrap(name, |_: Store<'_>, ()| Ok((random()?,)))
        }
        ("wasi:random/insecure-seed", _) => offered.func_wrap(name, |_: Store<'_>, ()| Ok(((random()?, random()?),))),
        ("wasi:filesystem/preopens", "get-directories") => {
            offered.func_wrap(name, |_: Store<'_>, ()| Ok((Vec::<(Resource<Absent>, String)>::new(),)))
        }
        _ => absent(offered, interface, name),
    }
}

fn stream(offered: &mut LinkerInstance<'_, State>, name: &str) -> wasmtime::Result<()> {
    match name {
        "[method]output-stream.check-write" => {
            offered.func_wrap(name, |_: Store<'_>, _: (Resource<OutputStream>,)| Ok((Streamed::Ok(WRITE_BYTES_MAX),)))
        }
        "[method]output-stream.write" | "[method]output-stream.blocking-write-and-flush" => {
            offered.func_wrap(name, |mut store: Store<'_>, (to, bytes): (Resource<OutputStream>, Vec<u8>)| {
                if bytes.len() as u64 > WRITE_BYTES_MAX {
                    let reason = format!("{} bytes are more than check-write allows ({WRITE_BYTES_MAX})", bytes.len());
                    return Err(wasmtime::format_err!("{reason}"));
                }
                let standard = if to.rep() == 1 { Standard::Output } else { Standard::Error };
                store.data_mut().write(standard, &bytes)?;
                Ok((Streamed::Ok(()),))
            })
        }
        "[method]output-stream.flush" | "[method]output-stream.blocking-flush" => {
            offered.func_wrap(name, |_: Store<'_>, _: (Resource<OutputStream>,)| Ok((Streamed::Ok(()),)))
        }
        "[method]output-stream.subscribe" => {
            offered.func_wrap(name, |store: Store<'_>, _: (Resource<OutputStream>,)| own::<Pollable>(store, 0))
        }
        "[method]input-stream.subscribe" => {
            offered.func_wrap(name, |store: Store<'_>, _: (Resource<InputStream>,)| own::<Pollable>(store, 0))
        }
        "[method]input-stream.read" | "[method]input-stream.blocking-read" => offered
            .func_wrap(name, |_: Store<'_>, _: (Resource<InputStream>, u64)| {
                Ok((Streamed::<Vec<u8>>::Err(StreamError::Closed),))
            }),
        _ => absent(offered, "wasi:io/streams", name),
    }
}

/// There, but not offered: nothing fails before it is called.
fn absent(offered: &mut LinkerInstance<'_, State>, interface: &str, name: &str) -> wasmtime::Result<()> {
    let said = format!("{interface} {name} is not offered to policies");
    offered.func_new(name, move |_, _, _, _| Err(wasmtime::format_err!("{said}")))
}
