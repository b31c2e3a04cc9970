//! A policy for `wasm32-wasip2`, of the standard library alone: what a component imports of WASI, it imports by it.

use std::alloc::Layout;
use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::io::Write as _;
use std::sync::OnceLock;
use std::time::{Instant, SystemTime};

#[link(wasm_import_module = "baton:policy/request@0.1.0")]
unsafe extern "C" {
    #[link_name = "path"]
    fn path(result: *mut [usize; 2]);
}

#[link(wasm_import_module = "wasi:cli/stdout@0.2.4")]
unsafe extern "C" {
    #[link_name = "get-stdout"]
    safe fn get_stdout() -> u32;
}

#[unsafe(no_mangle)]
extern "C" fn cabi_realloc(_old: *mut u8, _old_size: usize, align: usize, size: usize) -> *mut u8 {
    // SAFETY: the layout is the caller's, and is not empty: what is asked for is a path.
    unsafe { std::alloc::alloc(Layout::from_size_align(size.max(1), align).expect("a layout")) }
}

/// What `configure` was given, and what it drew.
static CONFIGURED: OnceLock<(String, u64)> = OnceLock::new();

#[unsafe(export_name = "baton:policy/lifecycle@0.1.0#configure")]
extern "C" fn configure(at: *mut u8, length: usize) -> *const [usize; 8] {
    // SAFETY: the gateway has written that many bytes where `cabi_realloc` said.
    let config = unsafe { Vec::from_raw_parts(at, length, length) };
    if config.starts_with(b"{\"print") {
        println!("configured");
    }
    let drawn = RandomState::new().hash_one(0);
    CONFIGURED.set((String::from_utf8(config).expect("it is JSON"), drawn)).expect("once");
    // Ok, any number of requests, no ticks, any target.
    &[0, 1 << 30, 0, 4, 0, 0, 0, 0]
}

#[unsafe(export_name = "baton:policy/lifecycle@0.1.0#on-tick")]
extern "C" fn on_tick() {}

#[unsafe(export_name = "baton:policy/lifecycle@0.1.0#self-test")]
extern "C" fn self_test() -> *const [usize; 3] {
    &[0; 3]
}

#[unsafe(export_name = "baton:policy/request-hook@0.1.0#on-request")]
extern "C" fn on_request() -> *const [usize; 22] {
    let mut given = [0; 2];
    // SAFETY: the gateway writes address and length of what `cabi_realloc` allocated, with an alignment of 1.
    let path = unsafe {
        path(&raw mut given);
        String::from_utf8(Vec::from_raw_parts(given[0] as *mut u8, given[1], given[1])).expect("a path is text")
    };
    let began = Instant::now();
    let said = match &*path {
        "/says" => {
            println!("to standard output");
            print!("and no end");
            std::io::stdout().flush().expect("it is taken");
            eprintln!("to standard error\x1b[31m");
            String::new()
        }
        "/reads" => format!("{:?}", std::fs::read("/etc/passwd").map_err(|error| error.kind())),
        "/connects" => format!("{:?}", std::net::TcpStream::connect("127.0.0.1:80").is_ok()),
        "/environment" => format!("{} {}", std::env::vars().count(), std::env::args().count()),
        "/input" => format!("{:?}", std::io::read_to_string(std::io::stdin()).map_err(|error| error.kind())),
        "/configured" => format!("{:?}", CONFIGURED.get()),
        // Never given back; `/opens-1000`.
        path if path.starts_with("/opens-") => {
            let count: usize = path["/opens-".len()..].parse().expect("a number");
            format!("{}", (0..count).map(|_| get_stdout()).count())
        }
        "/panics" => panic!("as asked"),
        "/exits" => std::process::exit(1),
        "/sleeps" => {
            std::thread::sleep(std::time::Duration::from_secs(3600));
            String::new()
        }
        _ => {
            let shuffled: HashMap<u32, u32> = (0..100).map(|at| (at, at)).collect();
            format!("{:?} {:?}", SystemTime::now().duration_since(SystemTime::UNIX_EPOCH), shuffled.keys())
        }
    };
    let said = format!("{said} {}", began.elapsed().as_secs()).leak();
    let mut decision = Box::new([0; 22]);
    decision[0] = 3;
    decision[1] = 200;
    decision[4] = said.as_ptr() as usize;
    decision[5] = said.len();
    Box::leak(decision)
}
