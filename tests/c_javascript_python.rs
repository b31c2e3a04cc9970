//! Policies in C, JavaScript and Python: a million decisions in each (and in Rust; Go and AssemblyScript have theirs in files
//! of their own), traps, and the header that the first of them stands on. What they
//! decide is held to the same cases as everybody's in `policies.rs`. `policies/build` has made the modules.
#![cfg(feature = "gateway")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{array, thread};

use baton::decision::{Action, Decision};
use baton::http::head::{Limits, RequestHead};
use baton::policy::{Engine, Options, Policy, PolicyError};
use baton::request::{Id, Origin, Peer, Request};
use support::folder;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The policy in that language, with room for whatever it needs: limits are for `policies.rs`.
fn bearer(language: &str) -> Policy {
    let module = root().join(format!("policies/target/bearer-{language}.wasm"));
    assert!(module.exists(), "{} is not there: run policies/build", module.display());
    let config = fs::read(root().join("policies/cases/bearer/config.json")).expect("a configuration");
    load(Options {
        config: serde_json::from_slice(&config).expect("JSON"),
        memory_bytes_max: 128 << 20,
        ..Options::new("bearer", module)
    })
}

fn load(options: Options) -> Policy {
    // The machine that runs the tests may be busy with others.
    let (deadline, configure_deadline) = (Duration::from_secs(5), Duration::from_secs(60));
    let options = Options { deadline, configure_deadline, reuse_max: u32::MAX, ..options };
    Policy::load(&Engine::new(THREAD_COUNT).expect("an engine"), options, None)
        .unwrap_or_else(|error| panic!("{error}"))
}

fn request(raw: &[u8]) -> Option<Arc<Request>> {
    let head = RequestHead::parse(raw, Limits::default()).ok()?;
    let peer = Peer::Tcp(([192, 0, 2, 1], 7).into());
    let origin = Origin { peer, local: "127.0.0.1:80".into(), listener: "http".into() };
    Some(Arc::new(Request::new(Id::new(), head, Arc::new(origin), None)))
}

fn decide(policy: &Policy, request: &Arc<Request>) -> Result<Decision, PolicyError> {
    policy.current().on_request_at_once(0, request)
}

/// Every case that a gateway would let through to a policy; the longest would take all of the time.
fn requests() -> Vec<Arc<Request>> {
    let cases = fs::read_dir(root().join("policies/cases/bearer")).expect("cases");
    let files =
        cases.map(|entry| entry.expect("an entry").path()).filter(|path| path.extension().is_some_and(|e| e == "http"));
    let requests: Vec<_> = files
        .map(|file| fs::read(file).expect("a case"))
        .filter(|raw| raw.len() < 1000)
        .filter_map(|raw| request(&raw))
        .collect();
    assert!(requests.len() > 20, "{}", requests.len());
    requests
}

fn resident_kb() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("readable");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// One at a time: what is compared is the memory of this whole process.
static MEASURING: Mutex<()> = Mutex::new(());

/// What each language decides, by as many threads as a small gateway has workers: an interpreter takes 90 s of one.
const DECISION_COUNT: usize = 1_000_000;
const THREAD_COUNT: usize = 2;

/// One instance on each thread decides half of a million, and the process is no larger after the last nine tenths than
/// after the first.
fn decides_a_million_times_in_the_same_memory(language: &str) {
    let _alone = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
    let (policy, requests) = (bearer(language), requests());
    let decide_some = |worker: usize, count: usize| -> usize {
        let decisions = requests.iter().cycle().take(count).map(|request| {
            let decision = policy.current().on_request_at_once(worker, request);
            decision.unwrap_or_else(|error| panic!("{language}: {error}"))
        });
        decisions.filter(|decision| matches!(decision.action, Action::Handoff(_))).count()
    };
    let decide_together = |count: usize| -> usize {
        thread::scope(|scope| {
            let threads: [_; THREAD_COUNT] =
                array::from_fn(|worker| scope.spawn(move || decide_some(worker, count / THREAD_COUNT)));
            threads.map(|thread| thread.join().expect("no decision failed")).iter().sum()
        })
    };
    let began = Instant::now();
    let mut handed_over = decide_together(DECISION_COUNT / 10);
    let before = resident_kb();
    handed_over += decide_together(DECISION_COUNT - DECISION_COUNT / 10);
    let after = resident_kb();
    println!("{language}: {DECISION_COUNT} decisions in {:.1?}, {before} kB, then {after} kB", began.elapsed());
    assert!(after < before + (4 << 10), "{language}: {before} to {after} kB");
    assert!(handed_over > DECISION_COUNT / 4 && handed_over < DECISION_COUNT, "{language}: {handed_over}");
}

#[test]
fn rust_decides_a_million_times() {
    decides_a_million_times_in_the_same_memory("rust");
}

#[test]
fn c_decides_a_million_times() {
    decides_a_million_times_in_the_same_memory("c");
}

#[test]
fn javascript_decides_a_million_times() {
    decides_a_million_times_in_the_same_memory("javascript");
}

#[test]
fn python_decides_a_million_times() {
    decides_a_million_times_in_the_same_memory("python");
}

#[test]
fn the_header_is_what_the_contract_says() {
    let output = run(Command::new("python3").arg(root().join("policies/c/generate")).arg("--check"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Compiles a guest in C as `policies/build` does, with further options.
fn compile(source: &str, options: &[&str], to: &Path) {
    let tools = run(Command::new(root().join("policies/build")).args(["--tools", "c"]));
    let tools = PathBuf::from(String::from_utf8(tools.stdout).expect("a path").trim());
    let output = run(Command::new(tools.join("python"))
        .args(["-m", "ziglang", "cc", "--target=wasm32-freestanding", "-std=c11", "-nostdlib", "-Wl,--no-entry"])
        .args(["-Wall", "-Wextra", "-Werror"])
        .args(options)
        .arg(root().join("tests/policies").join(source))
        .arg("-o")
        .arg(to));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_trap_in_c_names_function_file_and_line() {
    let folder = folder();
    let module = folder.path().join("traps.wasm");
    let request = request(b"GET /v1 HTTP/1.1\r\nHost: x\r\n\r\n").expect("well-formed");
    let said = |options: &[&str]| {
        compile("traps.c", options, &module);
        decide(&load(Options::new("traps", module.clone())), &request).expect_err("it traps").to_string()
    };
    let with_lines = said(&["-O1", "-g"]);
    assert!(with_lines.contains("give_up"), "{with_lines}");
    assert!(with_lines.contains("traps.c:7"), "{with_lines}");
    assert!(!said(&["-O1", "-s"]).contains("traps.c"));
}
