#![no_main]
//! Any text as a configuration file: no panic, and every fault in a line of it.
libfuzzer_sys::fuzz_target!(|text: &str| baton_fuzz::config::check(text));
