//! What a policy can do to hurt: each abuse by a real guest, many times. Every request is answered, the next policy's at once,
//! the log names who failed and grows by little, and the gateway's memory is what it was.
#![cfg(feature = "gateway")]

mod support;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use support::{Gateway, eventually, folder};

/// Guests of `tests/policies`, with the status of whoever asks them.
const FILES: [(&str, u16); 8] = [
    ("spins", 503),
    ("eats_memory", 503),
    ("traps", 503),
    ("recurses", 503),
    ("giant", 503),
    ("bad_text", 503),
    ("escapes", 503),
    ("no_case", 503),
];

/// The most of a log that one failure may cost: a line of a policy's own and one of ours.
const LOG_BYTES_MAX: u64 = 16 << 10;
const ROUNDS: u64 = 10;
/// What the gateway may have grown by in all rounds: the allocator's doing.
const GROWTH_BYTES_MAX: u64 = 16 << 20;
/// Names that a guest gives to metrics in one call.
const NAMES: u32 = 5000;

/// A guest that calls functions of WASI's preview 1 as their arguments should not be.
fn calls(name: &str, arguments: &[i64]) -> String {
    let parameters = "i32 ".repeat(arguments.len());
    let given = arguments.iter().fold(String::new(), |mut text, argument| {
        write!(text, "(i32.const {argument})").expect("text");
        text
    });
    format!(
        r#"(module
  (import "wasi_snapshot_preview1" "{name}" (func $abuse (param {parameters}) (result i32)))
  (memory (export "memory") 40)
  ;; A vector at 16: two million bytes, each second one ends a line.
  (func (export "on_request") (result i32)
    (local $at i32)
    (loop $next
      (i32.store16 (i32.add (i32.const 65536) (local.get $at)) (i32.const 0x0a61))
      (local.set $at (i32.add (local.get $at) (i32.const 2)))
      (br_if $next (i32.lt_u (local.get $at) (i32.const 2000000))))
    (i32.store (i32.const 16) (i32.const 65536))
    (i32.store (i32.const 20) (i32.const 2000000))
    (loop $again (drop (call $abuse {given})) (br $again))
    (i32.const 1024)))"#
    )
}

/// A guest that runs `code` with two megabytes of `A` from 65536 on.
fn text(imports: &str, code: &str) -> String {
    format!(
        r#"(module {imports}
  (memory (export "memory") 40)
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 8))
  (func (export "on_request") (result i32)
    (local $at i32) (local $left i32) (local $value i32)
    (memory.fill (i32.const 65536) (i32.const 65) (i32.const 2000000))
    {code}
    (i32.const 1024)))"#
    )
}

/// Guests that are made here.
fn made() -> Vec<(&'static str, u16, String)> {
    let write = r#"(import "baton:policy/log@0.1.0" "write" (func $write (param i32 i32 i32 i32 i32)))"#;
    let count = r#"(import "baton:policy/metrics@0.1.0" "count" (func $count (param i32 i32 i32 i32 i64)))
        (global $number (mut i32) (i32.const 0))"#;
    let hand_over = "(i32.store8 (i32.const 1024) (i32.const 1)) (i32.store (i32.const 1028) (i32.const 65536))
        (i32.store8 (i32.const 1069) (i32.const 1))";
    let names = format!(
        "(local.set $left (i32.const {NAMES}))
        (loop $next
          (global.set $number (i32.add (global.get $number) (i32.const 1)))
          (local.set $value (global.get $number))
          (local.set $at (i32.const 64))
          (loop $digit
            (i32.store8 (local.get $at) (i32.add (i32.const 97) (i32.and (local.get $value) (i32.const 15))))
            (local.set $value (i32.shr_u (local.get $value) (i32.const 4)))
            (local.set $at (i32.add (local.get $at) (i32.const 1)))
            (br_if $digit (i32.lt_u (local.get $at) (i32.const 72))))
          (call $count (i32.const 64) (i32.const 8) (i32.const 0) (i32.const 0) (i64.const 1))
          (br_if $next (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))"
    );
    vec![
        ("prints", 503, calls("fd_write", &[2, 16, 1, 32])),
        ("draws", 503, calls("random_get", &[65536, -1])),
        ("waits", 503, calls("poll_oneoff", &[0, 0, -1, 32])),
        (
            "writes",
            503,
            text(
                write,
                "(loop $again (call $write (i32.const 3) (i32.const 65536) (i32.const 2000000) (i32.const 0) (i32.const 0))
                (br $again))",
            ),
        ),
        ("names_metrics", 299, text(count, &names)),
        (
            "labels",
            503,
            text(
                count,
                "(loop $again (call $count (i32.const 65536) (i32.const 1) (i32.const 65536) (i32.const 100000) (i64.const 1))
                (br $again))",
            ),
        ),
        ("names_target", 503, text("", &format!("{hand_over} (i32.store (i32.const 1032) (i32.const 1000000))"))),
        (
            "alternates",
            503,
            text(
                "",
                "(memory.fill (i32.const 65536) (i32.const 0) (i32.const 136))
                (loop $next
                  (i32.store (i32.add (i32.const 65540) (local.get $at)) (i32.const 1))
                  (local.set $at (i32.add (local.get $at) (i32.const 8)))
                  (br_if $next (i32.lt_u (local.get $at) (i32.const 136))))
                (i32.store8 (i32.const 0) (i32.const 120))
                (i32.store8 (i32.const 1024) (i32.const 1)) (i32.store (i32.const 1032) (i32.const 1))
                (i32.store8 (i32.const 1069) (i32.const 1))
                (i32.store (i32.const 1080) (i32.const 65536)) (i32.store (i32.const 1084) (i32.const 17))",
            ),
        ),
        (
            "annotates",
            503,
            text(
                "",
                "(i32.store (i32.const 512) (i32.const 65536)) (i32.store (i32.const 516) (i32.const 1000000))
                (i32.store (i32.const 520) (i32.const 65536)) (i32.store (i32.const 524) (i32.const 1))
                (i32.store (i32.const 1104) (i32.const 512)) (i32.store (i32.const 1108) (i32.const 1))",
            ),
        ),
        ("long_names", 503, text(&format!("(func ${} unreachable)", "N".repeat(500_000)), "(call 0)")),
    ]
}

fn policy(name: &str, module: &str) -> String {
    format!(
        "[policy.{name}]\nmodule = \"{module}\"\ndeadline = \"50ms\"\nbreaker = {{ failures = 0 }}\n\
         [[route]]\npath = \"/{name}\"\npolicies = [\"{name}\"]\ndefault = {{ respond = {{ status = 299 }} }}\n"
    )
}

fn bytes(file: &Path) -> u64 {
    fs::metadata(file).expect("it is there").len()
}

#[test]
fn whatever_a_guest_does_the_next_request_is_served_and_memory_is_back() {
    let folder = folder();
    let mut toml =
        "[gateway]\nworkers = 1\nLISTEN\n[[route]]\npath = \"/ok\"\ndefault = { respond = { status = 231 } }\n"
            .to_owned();
    let mut guests: Vec<(&str, u16)> = FILES.to_vec();
    for (name, _) in FILES {
        toml += &policy(name, &format!("POLICIES/{name}.wat"));
    }
    for (name, status, text) in made() {
        fs::write(folder.path().join(format!("{name}.wat")), text).expect("written");
        toml += &policy(name, &format!("DIR/{name}.wat"));
        guests.push((name, status));
    }
    let gateway = Gateway::start_in(folder, &toml, |command| command);
    let mut lines = 0;
    let mut once = || {
        for (name, status) in &guests {
            let before = gateway.stderr.count();
            let logged = bytes_of(&gateway);
            assert_eq!((gateway.status(&format!("/{name}")), gateway.status("/ok")), (*status, 231), "{name}");
            lines += 2;
            let line = gateway.log_line(lines - 1);
            let id = line["id"].as_str().expect("an id").to_owned();
            gateway.log_line(lines);
            assert!(bytes_of(&gateway) - logged < LOG_BYTES_MAX, "{name} fills the access log");
            if *status == 503 {
                assert_eq!((line["policy"].as_str(), line["generation"].as_u64()), (Some(*name), Some(1)), "{line}");
                gateway.stderr.wait(before, &["policy failed", name, "generation=1", &id]);
            }
            // Up to a hundred lines a second are the policy's own; each of them, and each of ours, has an end.
            let said = &gateway.stderr.all()[before..];
            assert!(said.iter().all(|line| (line.len() as u64) < LOG_BYTES_MAX), "{name} fills the log");
        }
    };
    once();
    once();
    let (ledger, before) = (gateway.ledger(), gateway.resident_bytes());
    (0..ROUNDS).for_each(|_| once());
    gateway.ledger_is(&ledger);
    let after = gateway.resident_bytes();
    assert!(after <= before + GROWTH_BYTES_MAX, "{before} bytes became {after}");
    assert!(!gateway.stderr.all().iter().any(|line| line.contains("panicked")));
}

fn bytes_of(gateway: &Gateway) -> u64 {
    bytes(&gateway.path("access.log"))
}

#[test]
fn a_module_that_is_no_file_or_has_no_end_holds_up_nobody() {
    let folder = folder();
    let module = |status: u32| {
        format!(
            "(module (memory (export \"memory\") 1) (func (export \"on_request\") (result i32)
            (i32.store8 (i32.const 1024) (i32.const 3)) (i32.store16 (i32.const 1028) (i32.const {status})) (i32.const 1024)))"
        )
    };
    for name in ["hostile", "other"] {
        fs::write(folder.path().join(format!("{name}.wat")), module(240)).expect("written");
    }
    let toml = format!("LISTEN\n{}{}", policy("hostile", "DIR/hostile.wat"), policy("other", "DIR/other.wat"));
    let gateway = Gateway::start_in(folder, &toml, |command| command);
    let (hostile, other) = (gateway.path("hostile.wat"), gateway.path("other.wat"));
    let mut status = 240;
    let mut check = |reason: &str| {
        gateway.signal(Signal::SIGHUP);
        // Once for the same reason.
        gateway.stderr.wait(0, &["hostile.wat", reason]);
        // The other one goes its way.
        status += 1;
        fs::write(&other, module(status)).expect("written");
        eventually("the other policy is reloaded", || (u32::from(gateway.status("/other")) == status).then_some(()));
        assert_eq!(gateway.status("/hostile"), 240);
        fs::remove_file(&hostile).expect("there");
    };
    fs::remove_file(&hostile).expect("there");
    mkfifo(&hostile, Mode::S_IRWXU).expect("made");
    check("is no regular file");
    std::os::unix::fs::symlink("/dev/zero", &hostile).expect("made");
    check("is no regular file");
    let large = fs::File::create(&hostile).expect("made");
    large.set_len((128 << 20) + 1).expect("sparse");
    check("is larger than 128 MiB");
}
