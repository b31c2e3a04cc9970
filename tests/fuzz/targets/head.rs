#![no_main]
//! Any bytes as a request's head: split anywhere, understood once, against the naive reader. The first byte says how the
//! rest is cut.
use baton_fuzz::http::head::Limits;
use baton_fuzz::http::naive::{SMALL, check_head};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((&piece, bytes)) = bytes.split_first() else { return };
    check_head(bytes, usize::from(piece), Limits::default());
    check_head(bytes, usize::from(piece), SMALL);
});
