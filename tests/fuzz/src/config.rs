//! The configuration file as far as it can be read without looking at the machine.

#[path = "../../../src/config/fault.rs"]
mod fault;
#[path = "../../../src/config/file.rs"]
mod file;
#[path = "../../../src/config/units.rs"]
mod units;

use std::path::Path;

/// Whatever the text: it is a configuration, or has faults that can be shown, each in a line of the text.
pub fn check(text: &str) {
    let lines = text.matches('\n').count() + 1;
    let read = fault::Source::parse(Path::new("f.toml"), text).and_then(|source| source.read::<file::ConfigFile>());
    let Err(faults) = read else { return };
    assert!(!faults.0.is_empty());
    for fault in &faults.0 {
        assert!(fault.line.is_some_and(|line| (1..=lines).contains(&line)), "{fault:?} of {lines} lines");
        assert!(!fault.message.contains('\n'), "{fault:?}");
    }
    assert!(!faults.to_string().is_empty());
}
