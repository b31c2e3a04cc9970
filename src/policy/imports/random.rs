//! `random`: bytes of the operating system that nobody can foresee. Drawing some has no effect that anybody could see.

use super::Imports;
use crate::policy::bindings::random;

/// In one call.
const BYTES_MAX: usize = 64 << 10;

impl random::Host for Imports {
    fn bytes(&mut self, count: u32) -> wasmtime::Result<Vec<u8>> {
        let count = count as usize;
        if count > BYTES_MAX {
            return Err(wasmtime::format_err!(
                "random.bytes: {count} bytes are asked for, {BYTES_MAX} can be had at once"
            ));
        }
        let mut bytes = vec![0; count];
        getrandom::fill(&mut bytes).map_err(|error| wasmtime::format_err!("random.bytes: {error}"))?;
        Ok(bytes)
    }
}
