//! The benchmarks, so that they do not rot: they run, count every client and say so. No figure is judged that depends on
//! how busy the machine is.
#![cfg(feature = "gateway")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn tests() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests"))
}

/// Runs a benchmark with a policy in text; also what it wrote as JSON, if it came to that.
fn measured(tool: &str, policy: &str, arguments: &[&str]) -> (Output, Option<Value>) {
    let folder = tempfile::Builder::new().prefix("bt").tempdir_in("/tmp").expect("a temporary folder");
    let json = folder.path().join("json");
    let output = Command::new(tests().join("bench").join(tool))
        .args(arguments)
        .arg("--policy")
        .arg(tests().join(policy))
        .arg("--json")
        .arg(&json)
        .env("BATON_BIN", env!("CARGO_BIN_EXE_baton"))
        .output()
        .expect("it runs");
    let said = fs::read(json).ok().map(|bytes| serde_json::from_slice(&bytes).expect("JSON"));
    (output, said)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const RUN: [&str; 8] = ["--rounds", "1", "--requests", "200", "--warmup", "20", "--clients", "4"];

#[test]
fn a_run_counts_every_client_and_prints_its_tables() {
    let peers = ["floor", "floor-read", "baton"];
    let (output, json) = measured("run", "bench/policy.wat", &[&RUN[..], &["--peers"], &peers].concat());
    let (said, complained) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{said}\n{complained}");
    let heads: Vec<&str> = said.lines().filter(|line| line.starts_with("4 clients: ")).collect();
    assert_eq!(
        heads,
        [
            "4 clients: median [quartiles] of 1 rounds",
            "4 clients: ratio to floor-read, taken round by round",
            "4 clients: ratio to floor, taken round by round",
        ]
    );
    let rows = |peer: &str| said.lines().filter(|line| line.split_whitespace().nth(1) == Some(peer)).count();
    assert_eq!(peers.map(rows), [2, 2, 3], "a peer has no ratio to itself: {said}");
    assert!(said.contains("conditions: {"), "{said}");

    let json = json.expect("written");
    for peer in peers {
        let measured = &json["rounds"][0][peer]["4"];
        assert_eq!(
            (measured["count"].as_u64(), measured["faults"].as_u64()),
            (Some(200), Some(0)),
            "{peer}: {measured}"
        );
        assert!(measured["gateway_cpu_us"].as_f64().is_some_and(|us| us > 0.0), "{peer}: {measured}");
    }
}

#[test]
fn a_run_in_which_the_daemon_answers_nobody_fails() {
    let (output, _) = measured("run", "policies/passes.wat", &[&RUN[..], &["--peers", "baton"]].concat());
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    let complained = text(&output.stderr);
    assert!(complained.contains("baton, 4 clients: 0 errors, 200 not 200, 220 not from the daemon"), "{complained}");
}

#[test]
fn the_native_protocol_is_measured_with_clients_that_leave_and_that_come_back() {
    let peers = ["baton-native", "bare-native", "bare-native-pairs", "bare-native-words", "bare-native-library"];
    let cases = ["--rounds", "1", "--requests", "200", "--warmup", "20", "--clients", "4", "--cases", "closed", "kept"];
    let folder = tempfile::Builder::new().prefix("bt").tempdir_in("/tmp").expect("a temporary folder");
    let json = folder.path().join("json");
    let output = Command::new(tests().join("bench/native"))
        .args(cases)
        .arg("--peers")
        .args(peers)
        .arg("--json")
        .arg(&json)
        .env("BATON_BIN", env!("CARGO_BIN_EXE_baton"))
        .output()
        .expect("it runs");
    let (said, complained) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{said}\n{complained}");
    assert!(said.contains("conditions: {"), "{said}");

    let json: Value = serde_json::from_slice(&fs::read(json).expect("written")).expect("JSON");
    for case in ["closed, 4 clients", "kept, 4 clients"] {
        for peer in peers {
            let measured = &json["rounds"][0][case][peer];
            let counts = ["count", "faults", "strayed"].map(|name| measured[name].as_u64());
            assert_eq!(counts, [Some(200), Some(0), Some(0)], "{case}, {peer}: {measured}");
            let is_measured = |name: &str| measured[name].as_f64().is_some_and(|us| us > 0.0);
            assert!(is_measured("gateway_cpu_us") && is_measured("daemon_cpu_us"), "{case}, {peer}: {measured}");
        }
    }
}

#[test]
fn held_streams_are_counted_and_cost_no_descriptor() {
    let (output, json) =
        measured("hold", "bench/policy.wat", &["--streams", "40", "--seconds", "1", "--peers", "baton"]);
    let (said, complained) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{said}\n{complained}");
    assert!(said.starts_with("40 event streams, a message a second each"), "{said}");

    let json = json.expect("written");
    let measured = &json["peers"]["baton"];
    assert_eq!(measured["descriptors_per_stream"].as_f64(), Some(0.0), "{measured}");
    assert_eq!((measured["failed"].as_u64(), measured["ended"].as_u64()), (Some(0), Some(0)), "{measured}");
    assert_eq!(measured["daemon"]["streams"].as_u64(), Some(40), "{measured}");
    assert!(measured["messages_per_stream_s"].as_f64().is_some_and(|rate| rate > 0.0), "{measured}");
}

#[test]
fn a_run_over_languages_measures_warm_and_fresh() {
    let output = Command::new(tests().join("bench/decisions"))
        .args(["--rounds", "1", "--time", "50ms", "--languages", "rust", "assemblyscript"])
        .env("BATON_BIN", env!("CARGO_BIN_EXE_baton"))
        .output()
        .expect("it runs");
    let (said, complained) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{said}\n{complained}");
    for head in ["warm instance, us: ", "fresh instance, us: ", "conditions: {"] {
        assert!(said.contains(head), "{said}");
    }
    let rows = |language: &str| said.lines().filter(|line| line.split_whitespace().nth(1) == Some(language)).count();
    assert_eq!(["rust", "assemblyscript"].map(rows), [2, 2], "{said}");
}
