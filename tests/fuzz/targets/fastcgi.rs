#![no_main]
//! Any bytes as what a program writes: as records, as pairs, as the head of an answer, as a path; split anywhere, against
//! the naive reader. The first byte says how the rest is cut.
use baton_fuzz::fastcgi::head::Limits;
use baton_fuzz::fastcgi::naive::{check_head, check_pairs, check_path, check_records};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((&piece, bytes)) = bytes.split_first() else { return };
    let piece = usize::from(piece);
    check_records(bytes, piece);
    check_pairs(bytes);
    check_head(bytes, piece, Limits::default());
    check_head(bytes, piece, Limits { head_bytes_max: 64, headers_max: 3 });
    if let Ok(text) = std::str::from_utf8(bytes) {
        check_path(text);
    }
});
