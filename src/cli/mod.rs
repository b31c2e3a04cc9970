//! The commands, one file each.
//!
//! Exit codes: 0 asked to stop, 1 failed while running, 2 usage, 64 bad configuration or policy.

pub mod check;
pub mod completions;
pub mod demo;
pub mod policy;
pub mod receive;
pub mod run;

use std::path::PathBuf;
use std::process::ExitCode;

/// Bad configuration or policy (`EX_USAGE` of sysexits.h).
pub const BAD_CONFIGURATION: u8 = 64;

/// The file that was named, or the first of the default ones that exists.
fn configuration(named: Option<PathBuf>) -> PathBuf {
    let here = PathBuf::from("baton.toml");
    named.unwrap_or_else(|| if here.exists() { here } else { "/etc/baton/baton.toml".into() })
}

/// Writes a line on standard error. That nobody reads it is no reason to end.
fn say(line: &str) {
    use std::io::Write;
    drop(writeln!(std::io::stderr(), "{line}"));
}

/// Prints a configuration's faults, one line each.
fn faults(faults: &crate::config::Faults) -> ExitCode {
    say(&faults.to_string());
    ExitCode::from(BAD_CONFIGURATION)
}
