//! `clock`: for modules that are built without WASI. Reading it has no effect, so a trap behind it can be tried again.

use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::Imports;
use crate::policy::bindings::clock;

/// The zero of the clock that is never set.
static ZERO: LazyLock<Instant> = LazyLock::new(Instant::now);

impl clock::Host for Imports {
    fn wall_ms(&mut self) -> wasmtime::Result<u64> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn monotonic_us(&mut self) -> wasmtime::Result<u64> {
        Ok(u64::try_from(ZERO.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}
