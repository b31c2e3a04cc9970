#![no_main]
//! Whatever a policy may answer with: the bytes are one answer, with its fields and its body.
use arbitrary::Arbitrary;
use baton_fuzz::decision::{Field, Respond};
use baton_fuzz::http::fields::is_token_byte;
use baton_fuzz::http::head::{Persistence, Version};
use baton_fuzz::http::naive::check_answer;
use baton_fuzz::http::response::{Context, Presence};
use baton_fuzz::message::Message;
use baton_fuzz::respond;

#[derive(Arbitrary, Debug)]
struct Given {
    status: u16,
    fields: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    is_old: bool,
    is_head: bool,
    closes: bool,
}

libfuzzer_sys::fuzz_target!(|given: Given| {
    // Data for a daemon: what goes out comes in, but for the one value that stands for none.
    let message = Message::new(given.body.clone());
    assert!(!message.encode().is_empty());
    assert_eq!(Message::decode(message.encode().to_vec()) == message, given.body != [0]);

    // What `policy::bindings` lets through.
    let is_usable = |(name, value): &(String, Vec<u8>)| {
        !name.is_empty() && name.bytes().all(is_token_byte) && !value.iter().any(|b| matches!(b, b'\r' | b'\n' | 0))
    };
    let headers = given.fields.into_iter().filter(is_usable);
    let headers = headers.map(|(name, value)| Field { name: name.to_ascii_lowercase(), value }).collect();
    let status = 200 + given.status % 400;
    let answer = respond::answer(&Respond { status, headers, body: given.body });
    let context = Context {
        version: if given.is_old { Version::Http10 } else { Version::Http11 },
        body: if given.is_head { Presence::HeadOnly } else { Presence::Whole },
        persistence: if given.closes { Persistence::Close } else { Persistence::KeepAlive },
    };
    check_answer(&answer, context);
});
