//! Answers with what every getter of `interface request` gives, a line each; panics where the path asks for it.
//!
//! One file and no dependency: `rustc --target wasm32-unknown-unknown` builds it as the test runs. Values cross as the
//! canonical ABI has it: texts and lists are an address and a length, an option a tag and its value 4 bytes behind it.

use std::fmt::Debug;

#[link(wasm_import_module = "baton:policy/request@0.1.0")]
unsafe extern "C" {
    fn id(at: *mut Answer);
    fn method(at: *mut Answer);
    fn path(at: *mut Answer);
    #[link_name = "request-target"]
    fn request_target(at: *mut Answer);
    fn query(at: *mut Answer);
    fn authority(at: *mut Answer);
    fn scheme(at: *mut Answer);
    fn version() -> i32;
    fn route(at: *mut Answer);
    fn param(name: *const u8, length: usize, at: *mut Answer);
    fn header(name: *const u8, length: usize, at: *mut Answer);
    #[link_name = "header-all"]
    fn header_all(name: *const u8, length: usize, at: *mut Answer);
    #[link_name = "header-many"]
    fn header_many(names: *const [usize; 2], length: usize, at: *mut Answer);
    fn headers(at: *mut Answer);
    #[link_name = "headers-raw"]
    fn headers_raw(at: *mut Answer);
    fn cookie(name: *const u8, length: usize, at: *mut Answer);
    #[link_name = "query-param"]
    fn query_param(name: *const u8, length: usize, at: *mut Answer);
    fn peer(at: *mut Answer);
    #[link_name = "client-ip"]
    fn client_ip(at: *mut Answer);
    #[link_name = "local-address"]
    fn local_address(at: *mut Answer);
    fn listener(at: *mut Answer);
    fn tls(at: *mut Answer);
    #[link_name = "client-certificate"]
    fn client_certificate(at: *mut Answer);
    fn passability() -> i32;
    #[link_name = "content-length"]
    fn content_length(at: *mut Answer);
}

/// Room for what a getter gives.
#[repr(C, align(8))]
#[derive(Clone, Copy, Default)]
struct Answer([u32; 22]);

impl Answer {
    fn of(get: unsafe extern "C" fn(*mut Self)) -> Self {
        let mut answer = Self::default();
        unsafe { get(&mut answer) };
        answer
    }

    fn named(get: unsafe extern "C" fn(*const u8, usize, *mut Self), name: &str) -> Self {
        let mut answer = Self::default();
        unsafe { get(name.as_ptr(), name.len(), &mut answer) };
        answer
    }

    /// The text whose address stands at that word.
    fn text(&self, word: usize) -> String {
        text(self.0[word], self.0[word + 1])
    }

    fn option(&self) -> Option<String> {
        (self.0[0] & 0xff != 0).then(|| self.text(1))
    }

    fn list<const WORDS: usize>(&self) -> Vec<[u32; WORDS]> {
        (0..self.0[1] as usize).map(|at| unsafe { *(self.0[0] as *const [u32; WORDS]).add(at) }).collect()
    }
}

fn text(at: u32, length: u32) -> String {
    String::from_utf8_lossy(unsafe { std::slice::from_raw_parts(at as *const u8, length as usize) }).into_owned()
}

#[unsafe(no_mangle)]
extern "C" fn cabi_realloc(_old: usize, _old_bytes: usize, align: usize, bytes: usize) -> *mut u8 {
    unsafe { std::alloc::alloc(std::alloc::Layout::from_size_align(bytes.max(1), align).unwrap()) }
}

#[unsafe(no_mangle)]
extern "C" fn on_request() -> *const Answer {
    if Answer::of(path).text(0) == "/panic" {
        fall_over();
    }
    let lines = getters().into_boxed_str();
    let mut decision = Answer::default();
    decision.0[0] = 3; // respond
    decision.0[1] = 200;
    decision.0[4] = lines.as_ptr() as u32;
    decision.0[5] = lines.len() as u32;
    std::mem::forget(lines);
    Box::leak(Box::new(decision))
}

#[inline(never)]
fn fall_over() {
    panic!("told to");
}

fn getters() -> String {
    let mut out = String::new();
    let mut say = |name: &str, value: &dyn Debug| out += &format!("{name}={value:?}\n");
    say("id", &Answer::of(id).text(0));
    say("method", &Answer::of(method).text(0));
    say("path", &Answer::of(path).text(0));
    say("request-target", &Answer::of(request_target).text(0));
    say("query", &Answer::of(query).option());
    say("authority", &Answer::of(authority).text(0));
    say("scheme", &Answer::of(scheme).text(0));
    say("version", &["1.0", "1.1", "2", "3"][unsafe { version() } as usize]);
    say("route", &Answer::of(route).option());
    say("param", &Answer::named(param, "a").option());
    say("header", &Answer::named(header, "X-A").option());
    say("header-absent", &Answer::named(header, "x-absent").option());
    let all = Answer::named(header_all, "x-a").list::<2>();
    say("header-all", &all.iter().map(|&[at, length]| text(at, length)).collect::<Vec<_>>());
    let names = ["x-b", "x-absent", "X-A"].map(|name| [name.as_ptr() as usize, name.len()]);
    let mut many = Answer::default();
    unsafe { header_many(names.as_ptr(), names.len(), &mut many) };
    let option = |&[tag, at, length]: &[u32; 3]| (tag & 0xff != 0).then(|| text(at, length));
    say("header-many", &many.list::<3>().iter().map(option).collect::<Vec<_>>());
    let fields = Answer::of(headers).list::<4>();
    let field = |&[name, name_length, value, length]: &[u32; 4]| (text(name, name_length), text(value, length));
    say("headers", &fields.iter().map(field).collect::<Vec<_>>());
    say("headers-raw", &Answer::of(headers_raw).text(0));
    say("cookie", &Answer::named(cookie, "b").option());
    say("query-param", &Answer::named(query_param, "q").option());
    let from = Answer::of(peer);
    match from.0[0] & 0xff {
        0 => say("peer", &(from.text(1), from.0[3] & 0xffff)),
        _ => say("peer", &(from.0[1], from.0[2], (from.0[3] & 0xff != 0).then_some(from.0[4]))),
    }
    say("client-ip", &Answer::of(client_ip).text(0));
    say("local-address", &Answer::of(local_address).text(0));
    say("listener", &Answer::of(listener).text(0));
    say("tls", &(Answer::of(tls).0[0] & 0xff));
    say("client-certificate", &Answer::of(client_certificate).option());
    say("passability", &["direct", "ktls", "relay-only"][unsafe { passability() } as usize]);
    let length = Answer::of(content_length);
    let bytes = u64::from(length.0[3]) << 32 | u64::from(length.0[2]);
    say("content-length", &(length.0[0] & 0xff != 0).then_some(bytes));
    out
}
