//! Standard output and standard error of a guest: lines of its log.
//!
//! They are those of `log.write`, with its escapes, its bound and its limit in a second. What a call leaves without a
//! line's end is a line when the call is over, whether it came back or not: the last words of a panic are its best.

use std::mem;

use super::bindings::log::{self, Host as _};
use super::imports::Imports;

/// What is kept for a line that has not ended; longer ones are several.
const LINE_BYTES_MAX: usize = 4 << 10;

/// Where a guest writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standard {
    /// Level `warn`: panics and failed assertions go there.
    Error,
    /// Level `info`.
    Output,
}

/// Lines of one instance that have not ended.
#[derive(Debug, Default)]
pub(super) struct Stdio {
    error: Vec<u8>,
    output: Vec<u8>,
}

impl Stdio {
    fn pending(&mut self, standard: Standard) -> &mut Vec<u8> {
        match standard {
            Standard::Error => &mut self.error,
            Standard::Output => &mut self.output,
        }
    }

    /// Takes what a guest has written, and says the lines that end in it.
    pub(super) fn write(
        &mut self,
        standard: Standard,
        mut bytes: &[u8],
        imports: &mut Imports,
    ) -> wasmtime::Result<()> {
        while !bytes.is_empty() {
            let pending = self.pending(standard);
            let room = (LINE_BYTES_MAX - pending.len()).min(bytes.len());
            let end = memchr::memchr(b'\n', &bytes[..room]);
            pending.extend(&bytes[..end.unwrap_or(room)]);
            bytes = &bytes[end.map_or(room, |end| end + 1)..];
            if end.is_some() || pending.len() == LINE_BYTES_MAX {
                self.say(standard, imports)?;
            }
        }
        Ok(())
    }

    /// Says what has not ended, because the call has.
    pub(super) fn flush(&mut self, imports: &mut Imports) -> wasmtime::Result<()> {
        self.say(Standard::Output, imports)?;
        self.say(Standard::Error, imports)
    }

    /// A line with nothing in it says nothing.
    fn say(&mut self, standard: Standard, imports: &mut Imports) -> wasmtime::Result<()> {
        let line = mem::take(self.pending(standard));
        let line = line.trim_ascii_end();
        if line.is_empty() {
            return Ok(());
        }
        let level = match standard {
            Standard::Error => log::Level::Warn,
            Standard::Output => log::Level::Info,
        };
        imports.write(level, String::from_utf8_lossy(line).into_owned(), Vec::new())
    }
}
