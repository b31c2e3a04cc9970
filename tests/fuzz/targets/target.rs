#![no_main]
//! Any text as a path, a query, a host and a list of media types: the request target in all forms within a head that is
//! otherwise plain.
use baton_fuzz::http::head::Limits;
use baton_fuzz::http::naive::{check_head, check_path};
use baton_fuzz::respond::Form;

libfuzzer_sys::fuzz_target!(|text: &str| {
    check_path(text);
    let (target, host) = text.split_once('\n').unwrap_or((text, "x"));
    for (method, target) in [("GET", target), ("OPTIONS", target), ("POST", &format!("http://{target}"))] {
        for version in ["1.0", "1.1"] {
            let head = format!("{method} {target} HTTP/{version}\r\nHost: {host}\r\n\r\n");
            check_head(head.as_bytes(), 7, Limits::default());
        }
    }
    Form::wanted([text.as_bytes(), b"text/plain"].into_iter());
});
