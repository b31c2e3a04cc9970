#![no_main]
//! Any bytes as a body in each framing: split anywhere, one data, one end, against the naive reader. The first byte says
//! how the rest is cut.
use baton_fuzz::http::body::Framing;
use baton_fuzz::http::naive::check_body;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((&piece, bytes)) = bytes.split_first() else { return };
    for framing in [Framing::Chunked, Framing::Length(u64::from(piece)), Framing::None] {
        check_body(framing, bytes, usize::from(piece));
    }
});
