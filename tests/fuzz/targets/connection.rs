#![no_main]
//! Any bytes as what one client sends: the same requests and the same end, however they arrive. The first byte says how the
//! rest is cut.
use baton_fuzz::http::naive::check_connection;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((&piece, bytes)) = bytes.split_first() else { return };
    check_connection(bytes, usize::from(piece));
});
