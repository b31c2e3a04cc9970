//! Modules of any language: what they import of WASI is there or is an errno, nothing else, and what is wrong with a
//! file is said with the remedy.
//!
//! Guests are texts made here, one in Go and one in Rust that are built here with the ordinary tools.
#![cfg(feature = "gateway")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use support::{Answer, Gateway, baton, folder};
use tempfile::TempDir;

/// A gateway that asks one policy about everything; `rest` are further keys of it.
fn start(folder: TempDir, module: &Path, rest: &str, change: impl FnOnce(&mut Command) -> &mut Command) -> Gateway {
    let toml = format!(
        "[gateway]\nworkers = 1\n[policy.guest]\nmodule = \"{}\"\ndeadline = \"2s\"\n{rest}\n\
         [[route]]\npath = \"/\"\npolicies = [\"guest\"]\nLISTEN",
        module.display()
    );
    Gateway::start_in(folder, &toml, change)
}

fn ask(gateway: &Gateway, path: &str) -> Answer {
    let mut client = gateway.client();
    client.get(path);
    client.answer()
}

fn body(gateway: &Gateway, path: &str) -> String {
    let answer = ask(gateway, path);
    assert_eq!(answer.status, 200, "{path}: {:?}", gateway.stderr.all());
    answer.body
}

/// The bytes that a guest of [`text`] answers with.
fn bytes(gateway: &Gateway) -> Vec<u8> {
    let body = body(gateway, "/");
    let digits = body.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).expect("ASCII"));
    digits.map(|pair| u8::from_str_radix(pair, 16).expect("hexadecimal")).collect()
}

/// Builds a guest with its language's own compiler.
fn build(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn guests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/policies")
}

// === WASI preview 1 ===

const EBADF: u8 = 8;
const ENOSYS: u8 = 52;

/// Every function of preview 1 that opens, reads, changes or finds something, by its parameters (`l`: 64 bits).
const REFUSED: [(&str, &str, u8); 35] = [
    ("fd_advise", "illi", EBADF),
    ("fd_allocate", "ill", EBADF),
    ("fd_close", "i", EBADF),
    ("fd_datasync", "i", EBADF),
    ("fd_fdstat_set_flags", "ii", EBADF),
    ("fd_fdstat_set_rights", "ill", EBADF),
    ("fd_filestat_get", "ii", EBADF),
    ("fd_filestat_set_size", "il", EBADF),
    ("fd_filestat_set_times", "illi", EBADF),
    ("fd_pread", "iiili", EBADF),
    ("fd_prestat_get", "ii", EBADF),
    ("fd_prestat_dir_name", "iii", EBADF),
    ("fd_pwrite", "iiili", EBADF),
    ("fd_read", "iiii", EBADF),
    ("fd_readdir", "iiili", EBADF),
    ("fd_renumber", "ii", EBADF),
    ("fd_seek", "ilii", EBADF),
    ("fd_sync", "i", EBADF),
    ("fd_tell", "ii", EBADF),
    ("path_create_directory", "iii", EBADF),
    ("path_filestat_get", "iiiii", EBADF),
    ("path_filestat_set_times", "iiiilli", EBADF),
    ("path_link", "iiiiiii", EBADF),
    ("path_open", "iiiiillii", EBADF),
    ("path_readlink", "iiiiii", EBADF),
    ("path_remove_directory", "iii", EBADF),
    ("path_rename", "iiiiii", EBADF),
    ("path_symlink", "iiiii", EBADF),
    ("path_unlink_file", "iii", EBADF),
    ("proc_raise", "i", ENOSYS),
    ("sock_accept", "iii", ENOSYS),
    ("sock_recv", "iiiiii", ENOSYS),
    ("sock_send", "iiiii", ENOSYS),
    ("sock_shutdown", "ii", ENOSYS),
    ("fd_fdstat_get", "ii", EBADF),
];

/// A module whose `on_request` runs `code` and answers with what stands from address 4096 to `$end`, in hexadecimal.
fn text(imports: &str, code: &str) -> String {
    format!(
        r#"(module {imports}
          (memory (export "memory") 2)
          (global $end (mut i32) (i32.const 4096))
          (func $put (param i32)
            (i32.store8 (global.get $end) (local.get 0))
            (global.set $end (i32.add (global.get $end) (i32.const 1))))
          (func $digit (param $at i32) (param $value i32)
            (i32.store8 (local.get $at)
              (i32.add (local.get $value) (select (i32.const 48) (i32.const 87) (i32.lt_u (local.get $value) (i32.const 10))))))
          (func (export "on_request") (result i32) (local $at i32) (local $to i32)
            (global.set $end (i32.const 4096))
            {code}
            (local.set $at (i32.const 4096))
            (local.set $to (i32.const 16384))
            (block $done (loop $next
              (br_if $done (i32.ge_u (local.get $at) (global.get $end)))
              (call $digit (local.get $to) (i32.shr_u (i32.load8_u (local.get $at)) (i32.const 4)))
              (call $digit (i32.add (local.get $to) (i32.const 1)) (i32.and (i32.load8_u (local.get $at)) (i32.const 15)))
              (local.set $to (i32.add (local.get $to) (i32.const 2)))
              (local.set $at (i32.add (local.get $at) (i32.const 1)))
              (br $next)))
            (memory.fill (i32.const 1024) (i32.const 0) (i32.const 88))
            (i32.store8 (i32.const 1024) (i32.const 3))
            (i32.store16 (i32.const 1028) (i32.const 200))
            (i32.store (i32.const 1040) (i32.const 16384))
            (i32.store (i32.const 1044) (i32.sub (local.get $to) (i32.const 16384)))
            (i32.const 1024)))"#
    )
}

fn import(name: &str, parameters: &str) -> String {
    let types: String = parameters.chars().map(|kind| if kind == 'l' { " i64" } else { " i32" }).collect();
    format!("(import \"wasi_snapshot_preview1\" \"{name}\" (func ${name} (param{types}) (result i32)))\n")
}

fn write(folder: &TempDir, text: &str) -> PathBuf {
    let module = folder.path().join("guest.wat");
    fs::write(&module, text).expect("a folder of our own");
    module
}

#[test]
fn whatever_a_guest_tries_of_files_and_sockets_is_an_errno() {
    let imports: String = REFUSED.iter().map(|(name, parameters, _)| import(name, parameters)).collect();
    // With each descriptor that there might be, and one that there cannot be.
    let call = |(name, parameters, _): &(&str, &str, u8), fd: i32| {
        let rest: String =
            parameters[1..].chars().map(|k| if k == 'l' { "(i64.const 1)" } else { "(i32.const 64)" }).collect();
        format!("(call $put (call ${name} (i32.const {fd}) {rest}))\n")
    };
    let descriptors = [0, 3, 4, -1];
    let code: String = descriptors.iter().flat_map(|fd| REFUSED.iter().map(move |tried| call(tried, *fd))).collect();
    let folder = folder();
    let module = write(&folder, &text(&imports, &code));
    let gateway = start(folder, &module, "", |command| command);
    let descriptors_before = gateway.descriptors();
    let errnos = bytes(&gateway);
    assert_eq!(errnos.len(), descriptors.len() * REFUSED.len());
    for (at, errno) in errnos.iter().enumerate() {
        let (name, _, expected) = REFUSED[at % REFUSED.len()];
        assert_eq!(*errno, expected, "{name} of {}", descriptors[at / REFUSED.len()]);
    }
    gateway.ledger_is_back_to(descriptors_before);
}

#[test]
fn clocks_and_random_bytes_are_real_and_nothing_else_is_found() {
    let imports = [
        import("clock_time_get", "ili"),
        import("clock_res_get", "ii"),
        import("random_get", "ii"),
        import("args_sizes_get", "ii"),
        import("environ_sizes_get", "ii"),
        import("poll_oneoff", "iiii"),
        import("sched_yield", ""),
    ]
    .concat()
    .replace(" (param)", "");
    // Each errno, then 16 bytes of wall clock and monotonic clock, 13 of random, 16 of counts.
    let code = r#"
        (call $put (call $clock_time_get (i32.const 0) (i64.const 1) (i32.const 4112)))
        (call $put (call $clock_time_get (i32.const 1) (i64.const 1) (i32.const 4120)))
        (call $put (call $clock_time_get (i32.const 2) (i64.const 1) (i32.const 0)))
        (call $put (call $clock_res_get (i32.const 1) (i32.const 0)))
        (call $put (call $random_get (i32.const 4129) (i32.const 13)))
        (memory.fill (i32.const 4144) (i32.const 255) (i32.const 16))
        (call $put (call $args_sizes_get (i32.const 4144) (i32.const 4148)))
        (call $put (call $environ_sizes_get (i32.const 4152) (i32.const 4156)))
        ;; An hour from now, and standard input.
        (i64.store (i32.const 64) (i64.const 7))
        (i64.store (i32.const 88) (i64.const 3600000000000))
        (i64.store (i32.const 112) (i64.const 9))
        (i32.store8 (i32.const 120) (i32.const 1))
        (call $put (call $poll_oneoff (i32.const 64) (i32.const 4160) (i32.const 2) (i32.const 4224)))
        (call $put (call $poll_oneoff (i32.const 64) (i32.const 4160) (i32.const 0) (i32.const 4224)))
        (call $put (call $sched_yield))
        (global.set $end (i32.const 4228))"#;
    let folder = folder();
    let module = write(&folder, &text(&imports, code));
    let gateway = start(folder, &module, "", |command| command);
    let (first, second) = (bytes(&gateway), bytes(&gateway));
    assert_eq!(first[..10], [0, 0, 28, 0, 0, 0, 0, 0, 28, 0], "errnos");
    let word = |body: &[u8], at: usize| u64::from_le_bytes(body[at..at + 8].try_into().expect("8 bytes"));
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("after 1970");
    assert!(now.abs_diff(Duration::from_nanos(word(&first, 16))) < Duration::from_secs(60));
    assert!(word(&second, 24) > word(&first, 24), "monotonic");
    assert!(word(&second, 24) - word(&first, 24) < 60_000_000_000);
    assert_ne!(first[33..46], second[33..46], "13 random bytes");
    assert_eq!((first[32], first[46], first[47]), (0, 0, 0), "and not one more");
    assert_eq!(first[48..64], [0; 16], "no arguments, no environment");
    assert_eq!((word(&first, 64), word(&first, 72)), (7, 0), "an hour is over at once");
    assert_eq!((word(&first, 96), word(&first, 104)), (9, 0x1_0000 | u64::from(EBADF)), "no standard input");
    assert_eq!(first[128], 2);
}

/// What a module does while it allocates for the gateway must not call out of it.
#[test]
fn a_clock_can_be_read_while_the_gateway_is_given_memory() {
    let imports = [import("clock_time_get", "ili"), import("fd_write", "iiii"), import("random_get", "ii")].concat()
        + "(import \"baton:policy/request@0.1.0\" \"path\" (func $path (param i32)))";
    let mut module = text(
        &imports,
        r#"(global.set $end (i32.const 4098))
           (drop (call $clock_time_get (i32.const 1) (i64.const 1) (i32.const 4104)))
           (call $path (i32.const 512))
           (drop (call $clock_time_get (i32.const 1) (i64.const 1) (i32.const 4128)))
           (global.set $end (i32.const 4136))"#,
    );
    // Reads the clock twice, then prints and draws random bytes: those cannot be had here.
    let realloc = r#"
        (data (i32.const 0) "\10\00\00\00\06\00\00\00")
        (data (i32.const 16) "unheard")
        (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
          (drop (call $clock_time_get (i32.const 1) (i64.const 1) (i32.const 4112)))
          (drop (call $clock_time_get (i32.const 1) (i64.const 1) (i32.const 4120)))
          (i32.store8 (i32.const 4096) (call $fd_write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 1000)))
          (i32.store8 (i32.const 4097) (call $random_get (i32.const 1000) (i32.const 8)))
          (i32.const 2048))
        (func (export "on_request_post") (param i32)
          (drop (call $clock_time_get (i32.const 0) (i64.const 1) (i32.const 1000)))))"#;
    module.truncate(module.rfind(')').expect("the module's end"));
    module.push_str(realloc);
    let folder = folder();
    let module = write(&folder, &module);
    let gateway = start(folder, &module, "", |command| command);
    for _ in 0..3 {
        let body = bytes(&gateway);
        let word = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().expect("8 bytes"));
        assert_eq!(body[..2], [0, 6], "what is printed is dropped, and there are no random bytes");
        assert_eq!((word(16) - word(8), word(24) - word(16)), (1000, 1000), "a microsecond at each look");
        assert!(word(32) >= word(24), "and never backwards");
    }
    assert!(!gateway.stderr.all().iter().any(|line| line.contains("unheard")));
}

#[test]
fn what_is_printed_is_a_line_of_the_log_and_an_exit_is_a_trap() {
    let imports = import("fd_write", "iiii")
        + "(import \"wasi_snapshot_preview1\" \"proc_exit\" (func $exit (param i32)))
           (data (i32.const 0) \"\\20\\00\\00\\00\\0a\\00\\00\\00\\2a\\00\\00\\00\\0f\\00\\00\\00\")
           (data (i32.const 32) \"one\\0atwo\\1bth\\ffree\\0a\\0alast words\")";
    let code = r#"
        (if (call $fd_write (i32.const 1) (i32.const 0) (i32.const 2) (i32.const 1000)) (then unreachable))
        (if (i32.ne (i32.load (i32.const 1000)) (i32.const 25)) (then unreachable))
        ;; 64 KiB without an end of the line, to standard error.
        (memory.fill (i32.const 65536) (i32.const 120) (i32.const 65536))
        (i64.store (i32.const 16) (i64.const 0x1000000010000))
        (if (call $fd_write (i32.const 2) (i32.const 16) (i32.const 1) (i32.const 1000)) (then unreachable))
        (if (i32.ne (call $fd_write (i32.const 3) (i32.const 0) (i32.const 1) (i32.const 1000)) (i32.const 8))
          (then unreachable))
        (call $exit (i32.const 7))"#;
    let folder = folder();
    let module = write(&folder, &text(&imports, code));
    let gateway = start(folder, &module, "log_lines_per_second = 10", |command| command);
    assert_eq!(ask(&gateway, "/").status, 503);
    let failed = gateway.stderr.wait(0, &["policy failed"]);
    assert!(failed.contains("trap: the module ended itself with status 7"), "{failed}");
    let said = gateway.stderr.all();
    let at =
        |words: &str| said.iter().position(|line| line.contains(words)).unwrap_or_else(|| panic!("{words}: {said:?}"));
    assert!(at(" INFO one policy=\"guest\" generation=1 request=") < at(" INFO two\\u{1b}th\u{fffd}ree policy="));
    assert!(at("policy=") < at(" WARN xxxx"));
    let xs: Vec<_> = said.iter().filter(|line| line.contains(" WARN xxxx")).collect();
    assert_eq!(xs.len(), 8, "ten lines in a second, two were said before");
    assert!(xs.iter().all(|line| line.len() < 4400 && line.len() > 4096));
    assert!(!said.iter().any(|line| line.contains("last words")), "above the limit");
}

// === Languages ===

/// Whether Go is installed; CI has it.
fn go(folder: &TempDir) -> Option<PathBuf> {
    if Command::new("go").arg("version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "Go is not installed");
        eprintln!("not tried: Go is not installed");
        return None;
    }
    let module = folder.path().join("guest.wasm");
    build(
        Command::new("go")
            .args(["build", "-buildmode=c-shared", "-ldflags=-s -w", "-o"])
            .arg(&module)
            .arg(".")
            .env("GOOS", "wasip1")
            .env("GOARCH", "wasm")
            .current_dir(guests().join("go-collects")),
    );
    Some(module)
}

/// Fields of the Go guest's answer: calls, collections, bytes of memory, seed, random bytes, year, and an error.
fn fields(body: &str) -> Vec<String> {
    body.splitn(7, ' ').map(str::to_owned).collect()
}

#[test]
fn go_decides_a_hundred_thousand_times_while_its_collector_runs() {
    let folder = folder();
    let Some(module) = go(&folder) else { return };
    let limits = "configure_deadline = \"60s\"\nmemory_max = \"64MiB\"\nreuse_max = 1000000000";
    let gateway = start(folder, &module, limits, |command| command);
    let mut client = gateway.client();
    let count = 100_000;
    let in_flight = 100;
    let request = "GET /a/path HTTP/1.1\r\nHost: x\r\n\r\n".repeat(in_flight);
    for _ in 0..count / in_flight {
        client.send(&request);
        for _ in 0..in_flight {
            assert_eq!(client.answer().status, 200, "{:?}", gateway.stderr.all());
        }
    }
    let first = fields(&body(&gateway, "/memory"));
    // One instance: a trap would have cost it, though another would have answered.
    assert_eq!(first[0], (count + 1).to_string(), "{first:?}");
    assert!(first[1].parse::<u32>().expect("a number") > 100, "collections: {first:?}");
    assert!(first[2].parse::<u64>().expect("a number") < 64 << 20, "memory: {first:?}");
    assert!(first[6].contains("Bad file number"), "{first:?}");

    body(&gateway, "/say");
    for words in
        [" INFO to standard output policy=", " INFO and no end policy=", " WARN to standard error\\u{1b}[31m policy="]
    {
        gateway.stderr.wait(0, &[words]);
    }
    assert_eq!(ask(&gateway, "/panic").status, 503);
    gateway.stderr.wait(0, &[" WARN panic: as asked policy="]);
    assert_eq!(ask(&gateway, "/exit").status, 503);
    gateway.stderr.wait(0, &["the module ended itself with status 3"]);
    let began = Instant::now();
    assert_eq!(ask(&gateway, "/sleep").status, 503);
    gateway.stderr.wait(0, &["deadline of 2s exceeded"]);
    assert!(began.elapsed() < Duration::from_secs(60), "not an hour");

    // Each of these took its instance with it.
    let second = fields(&body(&gateway, "/"));
    assert_eq!(second[0], "1", "a fresh instance, configured");
    assert_eq!(second[3], first[3], "what configure drew is in all of them");
    assert_ne!(second[3], "00000000000000000000000000000000");
    assert_ne!(second[4], first[4], "what a hook draws is not");
}

#[test]
fn a_component_of_rusts_wasip2_finds_clocks_random_bytes_and_a_log() {
    let folder = folder();
    let module = folder.path().join("guest.wasm");
    let contract =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("wit/policy.wit")).expect("it is there");
    let (types, _) = contract.split_once("/// Everything a policy may import").expect("its worlds");
    let world = folder.path().join("guest.wit");
    fs::write(&world, format!("{types}world guest {{ import request; export request-hook; export lifecycle; }}\n"))
        .expect("our folder");
    build(
        Command::new("rustc")
            .args([
                "--edition",
                "2024",
                "--crate-type",
                "cdylib",
                "--target",
                "wasm32-wasip2",
                "-O",
                "-C",
                "strip=symbols",
            ])
            .arg(format!("-Clink-arg=--component-type={}", world.display()))
            .arg("-o")
            .arg(&module)
            .arg(guests().join("wasip2.rs")),
    );
    let begin = |folder| start(folder, &module, "config = { realm = \"demo\" }\nreuse_max = 0", |command| command);
    let gateway = begin(support::folder());
    let configured = body(&gateway, "/configured");
    assert!(configured.starts_with("Some((\"{\\\"realm\\\":\\\"demo\\\"}\", "), "{configured}");
    assert_eq!(body(&gateway, "/configured"), configured, "every instance is the configured one");
    assert_ne!(body(&begin(support::folder()), "/configured"), configured, "the next load draws something else");
    let (first, second) = (body(&gateway, "/now"), body(&gateway, "/now"));
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_secs() / 1000;
    assert!(first.starts_with(&format!("Ok({now}")), "{first}");
    assert_ne!(first, second, "time goes on");
    assert_eq!(body(&gateway, "/environment"), "0 0 0");
    assert_eq!(body(&gateway, "/input"), "Ok(\"\") 0");
    assert!(body(&gateway, "/reads").starts_with("Err("), "{}", body(&gateway, "/reads"));
    body(&gateway, "/says");
    for words in
        [" INFO to standard output policy=", " INFO and no end policy=", " WARN to standard error\\u{1b}[31m policy="]
    {
        gateway.stderr.wait(0, &[words]);
    }
    assert_eq!(ask(&gateway, "/connects").status, 503);
    let said = gateway.stderr.wait(0, &["is not offered to policies"]);
    assert!(said.contains("trap: wasi:sockets/"), "{said}");
    assert_eq!(ask(&gateway, "/panics").status, 503);
    gateway.stderr.wait(0, &["panicked at"]);
    assert_eq!(ask(&gateway, "/exits").status, 503);
    gateway.stderr.wait(0, &["the module ended itself with status 1"]);
    assert_eq!(body(&gateway, "/opens-1000"), "1000 0");
    assert_eq!(ask(&gateway, "/opens-1001").status, 503);
    gateway.stderr.wait(0, &["more than 1000 streams and pollables of WASI are open"]);
    let began = Instant::now();
    assert!([200, 503].contains(&ask(&gateway, "/sleeps").status));
    assert!(began.elapsed() < Duration::from_secs(60), "not an hour");
    body(&gateway, "/now");

    // What `configure` prints is said; but the stream that it opened is not in what is kept of it.
    let toml = gateway.folder.path().join("prints.toml");
    let config = format!(
        "[policy.guest]\nmodule = \"{}\"\nconfig = {{ print = true }}\n\
         [[listener]]\nname = \"http\"\naddress = \"127.0.0.1:0\"\n",
        module.display()
    );
    fs::write(&toml, config).expect("its folder");
    let output = support::baton().arg("check").arg("-c").arg(&toml).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("it has opened standard output or error") && said.contains("use log.write"), "{said}");
}

#[test]
fn memory_of_the_garbage_collection_proposal_counts_as_memory() {
    let module = r#"(module
      (type $array (array (mut i64)))
      (table $kept 1000 (ref null $array))
      (memory (export "memory") 1)
      (func (export "on_request") (result i32) (local $at i32)
        (loop $next
          (table.set $kept (local.get $at) (array.new_default $array (i32.const 131072)))
          (local.set $at (i32.add (local.get $at) (i32.const 1)))
          (br_if $next (i32.lt_u (local.get $at) (i32.const 1000))))
        (i32.const 0)))"#;
    let folder = folder();
    let module = write(&folder, module);
    let gateway = start(folder, &module, "", |command| command);
    assert_eq!(ask(&gateway, "/").status, 503);
    let said = gateway.stderr.wait(0, &["policy failed"]);
    assert!(said.contains("GC heap out of memory") && said.contains("memory_max of 33554432 bytes"), "{said}");
    assert_eq!(ask(&gateway, "/").status, 503);
}

// === Compiled code ===

/// Compiled components in a folder, by their last change.
fn compiled(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(compiled(&path));
        } else if !path.to_string_lossy().contains(".stats") && !path.to_string_lossy().contains("/.cleanup") {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn compiled_code_is_kept_in_a_private_folder_or_not_at_all() {
    let base = folder();
    let caches = base.path().join("caches");
    let begin = || {
        let guest = guests().join("answers.wat");
        start(folder(), &guest, "", |command| command.env("CACHE_DIRECTORY", &caches))
    };
    assert_eq!(ask(&begin(), "/").status, 231);
    let kept = caches.join("compiled");
    assert_eq!(fs::metadata(&kept).expect("it was made").permissions().mode() & 0o777, 0o700);
    let first = compiled(&kept);
    assert_eq!(first.len(), 1, "{first:?}");
    let written = fs::metadata(&first[0]).expect("kept").modified().expect("a time");
    assert_eq!(ask(&begin(), "/").status, 231);
    assert_eq!(compiled(&kept), first);
    assert_eq!(fs::metadata(&first[0]).expect("kept").modified().expect("a time"), written, "compiled once");
    // Damaged, it is compiled again.
    fs::write(&first[0], b"no code").expect("ours");
    assert_eq!(ask(&begin(), "/").status, 231);
    // Open to others, nothing in it is looked at.
    fs::set_permissions(&kept, fs::Permissions::from_mode(0o755)).expect("ours");
    fs::remove_file(&first[0]).expect("ours");
    let gateway = begin();
    assert_eq!(ask(&gateway, "/").status, 231);
    let said = gateway.stderr.wait(0, &["compiled policies are not kept"]);
    assert!(said.contains("can be changed by others (mode 755)"), "{said}");
    assert!(compiled(&kept).is_empty());
    // Where no folder can be made, neither.
    fs::remove_dir_all(&caches).expect("ours");
    fs::write(&caches, b"a file").expect("ours");
    let gateway = begin();
    assert_eq!(ask(&gateway, "/").status, 231);
    gateway.stderr.wait(0, &["compiled policies are not kept"]);
}

#[test]
fn compiled_code_belongs_to_whom_the_gateway_becomes() {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "needs root");
        eprintln!("left out: needs root");
        return;
    }
    let nobody = nix::unistd::User::from_name("nobody").expect("a list of users").expect("one of them").uid.as_raw();
    let base = folder();
    let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
    set(base.path(), 0o755);
    let (caches, module) = (base.path().join("caches"), base.path().join("p.wat"));
    let write = |status: usize| {
        let guest = fs::read_to_string(guests().join("answers.wat")).expect("a guest");
        fs::write(&module, guest.replace("(i32.const 231)", &format!("(i32.const {status})"))).expect("written");
    };
    let toml = format!(
        "[gateway]\nuser = \"nobody\"\n[policy.guest]\nmodule = \"{}\"\ndeadline = \"2s\"\n\
         [[route]]\npath = \"/\"\npolicies = [\"guest\"]\nLISTEN",
        module.display()
    );
    let begin = || Gateway::start_in(folder(), &toml, |command| command.env("CACHE_DIRECTORY", &caches));
    let kept = caches.join(nobody.to_string()).join("compiled");
    write(231);
    let gateway = begin();
    assert_eq!(ask(&gateway, "/").status, 231);
    assert_eq!(compiled(&kept).len(), 1, "{:#?}", gateway.stderr.all());
    // What is loaded later is kept beside it, and found by the next start.
    write(232);
    gateway.stderr.wait(0, &["policy reloaded"]);
    let both = compiled(&kept);
    assert_eq!((ask(&gateway, "/").status, both.len()), (232, 2));
    assert_eq!(compiled(&caches), both, "and nothing elsewhere");
    let written = |path: &PathBuf| {
        let found = fs::metadata(path).expect("kept");
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&found), nobody, "{}", path.display());
        found.modified().expect("a time")
    };
    let times: Vec<_> = both.iter().map(written).collect();
    drop(gateway);
    let gateway = begin();
    assert_eq!(ask(&gateway, "/").status, 232);
    assert_eq!((compiled(&kept), both.iter().map(written).collect()), (both.clone(), times), "compiled once");
    assert!(!gateway.stderr.all().iter().any(|line| line.contains("kept")), "{:#?}", gateway.stderr.all());
    drop(gateway);
    // One that cannot be written is said.
    set(&kept, 0o500);
    let gateway = begin();
    gateway.stderr.wait(0, &["compiled policies are not kept: ", "compiled: Permission denied"]);
    drop(gateway);
    // A module that it could not read at a reload is none that it starts with.
    set(&module, 0o600);
    let file = base.path().join("baton.toml");
    fs::write(&file, toml.replace("LISTEN", "[[listener]]\naddress = \"127.0.0.1:0\"\n")).expect("written");
    let output = baton().args(["run", "-c"]).arg(&file).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(64) && said.contains("p.wat") && said.contains("Permission denied"), "{said}");
}
