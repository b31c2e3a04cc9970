//! The author's tools, as they are typed: `baton policy new`, `inspect`, `test`, `bench`, `baton run --watch-log`,
//! `baton completions`, `baton man`.
#![cfg(feature = "gateway")]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use support::{Client, Gateway, Lines, baton, eventually, folder};

const LANGUAGES: [&str; 6] = ["rust", "go", "assemblyscript", "c", "javascript", "python"];

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn wat(name: &str) -> PathBuf {
    root("tests/policies").join(name)
}

fn policy(arguments: &[&str]) -> Output {
    run(baton().arg("policy").args(arguments))
}

/// Writes a file and returns its path as an argument.
fn put(folder: &Path, name: &str, contents: impl AsRef<[u8]>) -> String {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().expect("below the folder")).expect("made");
    std::fs::write(&path, contents).expect("written");
    path.display().to_string()
}

const REQUEST: &str = "GET /v1/chat HTTP/1.1\r\nHost: x\r\n\r\n";

/// `policy test` of a text module on a request, as JSON, and the exit code.
fn tested(module: &Path, more: &[&str]) -> (Option<i32>, Value) {
    let folder = folder();
    let request = put(folder.path(), "a.http", REQUEST);
    let module = module.display().to_string();
    let output = policy(&[&["test", &module, "--request", &request, "--json"], more].concat());
    let said = text(&output.stdout);
    let object = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}\n{}", text(&output.stderr)));
    (output.status.code(), object)
}

#[test]
fn a_decision_is_printed_with_what_it_took_beside_its_limits() {
    let (code, object) = tested(&wat("answers.wat"), &[]);
    assert_eq!(code, Some(0), "{object}");
    assert_eq!(object["decision"]["action"], "respond");
    let limits = &object["limits"];
    assert_eq!((&limits["time_us"], &limits["memory"]), (&json!(5000), &json!(32 << 20)));
    assert!(object["time_us"].as_u64().expect("a number") < 5000, "{object}");
    assert_eq!(object["memory"], 65_536, "one page");
    let fuel = object["fuel"].as_u64().expect("a number");
    assert!((1..1_000_000).contains(&fuel), "{object}");
    for _ in 0..3 {
        assert_eq!(tested(&wat("answers.wat"), &[]).1["fuel"], fuel, "the same in each run");
    }
    let (code, object) = tested(&wat("answers.wat"), &["--deadline", "7ms", "--memory-max", "2MiB"]);
    assert_eq!(
        (code, &object["limits"]["time_us"], &object["limits"]["memory"]),
        (Some(0), &json!(7000), &json!(2 << 20))
    );
}

#[test]
fn log_lines_are_shown_at_every_level() {
    let (code, object) = tested(&wat("logs.wat"), &[]);
    let log = object["log"].as_array().expect("a list");
    assert!(code == Some(0) && !log.is_empty() && log[0]["message"].is_string(), "{object}");
}

#[test]
fn a_policy_that_fails_says_where_and_ends_with_1() {
    let (code, object) = tested(&wat("traps.wat"), &[]);
    assert_eq!((code, &object["decision"]), (Some(1), &Value::Null));
    assert!(object["error"].as_str().expect("text").starts_with("trap: "), "{object}");
    let (code, object) = tested(&wat("spins.wat"), &["--deadline", "20ms"]);
    assert!(code == Some(1) && object["error"].as_str().expect("text").starts_with("deadline of 20ms"), "{object}");
    assert_eq!(object["fuel"], Value::Null, "nobody counted: {object}");
    let (code, object) = tested(&wat("bad_status.wat"), &[]);
    assert!(code == Some(1) && object["error"].as_str().expect("text").starts_with("bad value: "), "{object}");
}

#[test]
fn a_target_that_is_down_or_absent_is_told() {
    let module = wat("hands_over.wat");
    let (_, object) = tested(&module, &[]);
    let target = object["decision"]["target"].as_str().expect("it hands over").to_owned();
    assert_eq!(object.get("refusal"), None, "{object}");
    let (_, object) = tested(&module, &["--target", &format!("{target}=up")]);
    assert_eq!(object.get("refusal"), None, "{object}");
    let (_, object) = tested(&module, &["--target", &format!("{target}=down")]);
    assert!(object["refusal"].as_str().expect("text").contains("503"), "{object}");
    let (_, object) = tested(&module, &["--target", "other=up"]);
    assert!(object["refusal"].as_str().expect("text").contains("403"), "{object}");
}

/// A policy that hands over to `chat` with the carry `first`, and does `failed` when nobody took the client. It has
/// `$hand_over`, `$respond`, `$pass` and `$abort`, and knows of the failure `$attempt`, `$errno`, `$target` and `$carry` with
/// its length.
fn with_failure_hook(folder: &Path, failed: &str) -> PathBuf {
    let text = format!(
        r#"(module
          (memory (export "memory") 1)
          (global $free (mut i32) (i32.const 8192))
          (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
            (local $p i32)
            (local.set $p (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
            (global.set $free (i32.add (local.get $p) (local.get 3)))
            (local.get $p))
          (data (i32.const 0) "chat____spare___nope____first___second__")
          (func $tag (param i32) (memory.fill (i32.const 1024) (i32.const 0) (i32.const 88)) (i32.store8 (i32.const 1024) (local.get 0)))
          (func $pass (call $tag (i32.const 0)))
          (func $abort (call $tag (i32.const 4)))
          (func $respond (param i32) (call $tag (i32.const 3)) (i32.store16 (i32.const 1028) (local.get 0)))
          (func $hand_over (param i32 i32)
            (call $tag (i32.const 1))
            (i32.store (i32.const 1028) (local.get 0))
            (i32.store (i32.const 1032) (local.get 1))
            (i32.store8 (i32.const 1069) (i32.const 1)))
          (func $give_along (param i32 i32)
            (i32.store (i32.const 1096) (local.get 0)) (i32.store (i32.const 1100) (local.get 1)))
          (func (export "on_connect") (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
            (call $pass) (i32.const 1024))
          (func (export "on_request") (result i32)
            (call $hand_over (i32.const 0) (i32.const 4)) (call $give_along (i32.const 24) (i32.const 5)) (i32.const 1024))
          (func (export "on_handoff_failed") (param $target i32) (param i32 i32 i32) (param $errno i32)
            (param i32 i32) (param $attempt i32) (param $retryable i32) (param $carry i32) (param $length i32) (result i32)
            {failed} (i32.const 1024)))"#
    );
    let file = folder.join("hooked.wat");
    std::fs::write(&file, text).expect("written");
    file
}

#[test]
fn a_policy_is_asked_about_a_daemon_that_is_down_as_the_gateway_asks() {
    let folder = folder();
    let asked = |failed: &str, more: &[&str]| {
        let module = with_failure_hook(folder.path(), failed);
        tested(&module, &[&["--target", "chat=down", "--target", "spare=up"], more].concat())
    };
    // What it was told: the attempt, and the errno of a socket that nobody listens at.
    let told = "(call $respond (i32.add (i32.const 200) (i32.add (local.get $attempt) (local.get $errno))))
        (call $give_along (local.get $carry) (local.get $length))";
    let (code, object) = asked(told, &[]);
    assert_eq!(
        (code, &object["decision"]["target"], object.get("refusal")),
        (Some(0), &json!("chat"), None),
        "{object}"
    );
    let failures = object["failures"].as_array().expect("a list");
    assert_eq!((failures.len(), &failures[0]["target"]), (1, &json!("chat")), "{object}");
    let decision = &failures[0]["decision"];
    assert_eq!([&decision["status"], &decision["carry"]], [&json!(312), &json!("first")], "{object}");
    assert!(failures[0]["time_us"].is_u64(), "{object}");
    let (_, object) = tested(&with_failure_hook(folder.path(), told), &["--target", "chat=up"]);
    assert_eq!(object.get("failures"), None, "nothing failed: {object}");

    let (code, object) = asked("(call $hand_over (i32.const 8) (i32.const 5))", &[]);
    assert_eq!(
        (code, object.get("refusal"), object["failures"].as_array().map(Vec::len)),
        (Some(0), None, Some(1)),
        "{object}"
    );
    let (_, object) = asked("(call $hand_over (i32.const 16) (i32.const 4))", &[]);
    assert!(object["refusal"].as_str().expect("text").contains("403"), "{object}");
    // The carry of one attempt comes back in the next, and after the third nobody is asked any more.
    let again = "(if (i32.ne (local.get $length) (i32.add (i32.const 5) (i32.gt_u (local.get $attempt) (i32.const 1))))
            (then (unreachable)))
        (call $hand_over (i32.const 0) (i32.const 4)) (call $give_along (i32.const 32) (i32.const 6))";
    let (code, object) = asked(again, &[]);
    assert_eq!((code, object["failures"].as_array().map(Vec::len)), (Some(0), Some(3)), "{object}");
    assert!(object["refusal"].as_str().expect("text").contains("503"), "{object}");
    for (no_opinion, expected) in [("(call $pass)", 0), ("(unreachable)", 1)] {
        let (code, object) = asked(no_opinion, &[]);
        assert_eq!((code, object["failures"].as_array().map(Vec::len)), (Some(expected), Some(1)), "{object}");
        assert!(object["refusal"].as_str().expect("text").contains("503"), "{object}");
    }
    let (_, object) = asked("(call $abort)", &[]);
    assert_eq!(
        (object.get("refusal"), &object["failures"][0]["decision"]["action"]),
        (None, &json!("abort")),
        "{object}"
    );

    let expected = |status: u16| {
        let failures = json!([{"target": "chat", "decision": {"action": "respond", "status": status}}]);
        put(folder.path(), "expected.json", json!({"action": "handoff", "failures": failures}).to_string())
    };
    assert_eq!(asked(told, &["--expect", &expected(312)]).0, Some(0));
    let (code, object) = asked(told, &["--expect", &expected(313)]);
    assert_eq!(code, Some(1));
    assert_eq!(object["differences"], json!(["failures.0.decision.status: expected 313, found 312"]));
    let request = put(folder.path(), "a.http", REQUEST);
    let module = with_failure_hook(folder.path(), told).display().to_string();
    let said = text(&policy(&["test", &module, "--request", &request, "--target", "chat=down"]).stdout);
    assert!(said.contains("chat is down, so: respond 312"), "{said}");
}

#[test]
fn people_read_text() {
    let folder = folder();
    let request = put(folder.path(), "a.http", REQUEST);
    let output = policy(&["test", &wat("answers.wat").display().to_string(), "--request", &request]);
    let said = text(&output.stdout);
    for word in ["a.http: GET /v1/chat", "respond", "time ", " µs of 5000 µs", "memory  64.0 KiB of 32.0 MiB", "fuel "]
    {
        assert!(said.contains(word), "{word}: {said}");
    }
}

#[test]
fn what_differs_from_what_was_expected_is_told_and_ends_with_1() {
    let folder = folder();
    let (_, found) = tested(&wat("answers.wat"), &[]);
    let status = found["decision"]["status"].as_u64().expect("it answers");
    let good = put(folder.path(), "good.json", json!({"action": "respond", "status": status}).to_string());
    assert_eq!(tested(&wat("answers.wat"), &["--expect", &good]).0, Some(0));
    let bad = put(folder.path(), "bad.json", r#"[{"action": "handoff", "status": 204, "target": "chat"}]"#);
    let (code, object) = tested(&wat("answers.wat"), &["--expect", &bad]);
    assert_eq!(code, Some(1));
    assert_eq!(
        object["differences"],
        json!([
            "action: expected \"handoff\", found \"respond\"",
            format!("status: expected 204, found {status}"),
            "target: expected \"chat\", found nothing",
        ])
    );
    let request = put(folder.path(), "a.http", REQUEST);
    let output = policy(&["test", &wat("answers.wat").display().to_string(), "--request", &request, "--expect", &bad]);
    assert!(text(&output.stdout).contains("DIFFERS action: expected \"handoff\""), "{output:?}");
}

#[test]
fn a_folder_of_cases_is_run_as_tap() {
    let folder = folder();
    let (_, found) = tested(&wat("answers.wat"), &[]);
    let decision = found["decision"].to_string();
    put(folder.path(), "cases/a.http", REQUEST);
    put(folder.path(), "cases/a.json", &decision);
    put(folder.path(), "cases/below/b.http", REQUEST);
    put(folder.path(), "cases/below/b.json", r#"{"action": "respond"}"#);
    let cases = folder.path().join("cases").display().to_string();
    let module = wat("answers.wat").display().to_string();
    let output = policy(&["test", &module, &cases]);
    let all_well = "TAP version 14\nok 1 - a\nok 2 - below/b\n1..2\n# 2 passed, 0 failed\n";
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), all_well.to_owned()), "{output:?}");
    let output = policy(&["test", &module, "--request", &cases, "--expect", &cases]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), all_well.to_owned()), "{output:?}");

    put(folder.path(), "cases/below/b.json", r#"{"action": "pass"}"#);
    let output = policy(&["test", &module, &cases]);
    let failed = "TAP version 14\nok 1 - a\nnot ok 2 - below/b\n# action: expected \"pass\", found \"respond\"\n1..2\n\
        # 1 passed, 1 failed\n";
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), failed.to_owned()), "{output:?}");

    put(folder.path(), "cases/c.json", "{}");
    let output = policy(&["test", &module, &cases]);
    assert!(output.status.code() == Some(2) && text(&output.stderr).contains("c.json"), "{output:?}");
    std::fs::remove_file(folder.path().join("cases/c.json")).expect("it was there");
    std::fs::remove_file(folder.path().join("cases/a.json")).expect("it was there");
    let output = policy(&["test", &module, &cases]);
    assert!(output.status.code() == Some(2) && text(&output.stderr).contains("a.http: no expectation"), "{output:?}");
    let empty = put(folder.path(), "empty/.keep", "");
    let output = policy(&["test", &module, Path::new(&empty).parent().expect("its folder").to_str().expect("text")]);
    assert!(output.status.code() == Some(2) && text(&output.stderr).contains("no CASE.http"), "{output:?}");
}

#[test]
fn configurations_that_are_to_be_refused_are_cases_too() {
    let folder = folder();
    let module = wat("configure_refuses.wat").display().to_string();
    let refused = policy(&["inspect", &module]);
    assert_eq!(refused.status.code(), Some(0), "inspecting asks for no configuration: {refused:?}");
    let request = put(folder.path(), "a.http", REQUEST);
    let output = policy(&["test", &module, "--request", &request]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{said}");
    let fault = said.split("configure: ").nth(1).expect("the stage").trim().to_owned();
    put(folder.path(), "cases/refused/all.json", json!({"config": {}, "faults": [fault]}).to_string());
    put(folder.path(), "cases/refused/other.json", json!({"config": {}, "faults": ["no such"]}).to_string());
    let output = policy(&["test", &module, &folder.path().join("cases").display().to_string()]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("ok 1 - refused/all\nnot ok 2 - refused/other\n# faults: expected \"no such\""), "{said}");
}

#[test]
fn a_request_that_no_policy_would_see_is_told_by_line_and_byte() {
    let folder = folder();
    let module = wat("answers.wat").display().to_string();
    for (contents, fault) in [
        (
            "GET / HTTP/1.1\r\nHost: x\r\nA : 1\r\n\r\n",
            "bad.http:3: byte 25: a malformed field line; the gateway answers 400",
        ),
        ("GET / HTTP/1.1\r\nHost: x\r\n", "bad.http:3: byte 25: the empty line that ends a head is missing"),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhello", "bad.http:5: byte 52: the body ends here"),
    ] {
        let request = put(folder.path(), "bad.http", contents);
        let output = policy(&["test", &module, "--request", &request]);
        assert!(output.status.code() == Some(64) && text(&output.stderr).contains(fault), "{fault}: {output:?}");
    }
    let request = put(folder.path(), "lf.http", "GET / HTTP/1.1\nHost: x\n\n");
    let output = policy(&["test", &module, "--request", &request]);
    assert!(output.status.success() && text(&output.stdout).contains("read as CR LF"), "{output:?}");
    for (contents, fault) in [
        (&b"GET / HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n"[..], "bad.http:3: byte 25: a malformed field line"),
        (b"", "bad.http:1: byte 0: the empty line that ends a head is missing"),
        (b"\x1b[2JGET / HTTP/1.1\r\nHost: x\r\n\r\n", "bad.http:1: byte 0: a malformed request line"),
        (&[0xff; 10_000_000], "bad.http:1: byte 10000000: the empty line that ends a head is missing"),
    ] {
        let request = put(folder.path(), "bad.http", contents);
        let output = policy(&["test", &module, "--request", &request]);
        let stderr = text(&output.stderr);
        assert!(output.status.code() == Some(64) && stderr.contains(fault), "{fault}: {stderr:.500}");
        assert!(stderr.lines().count() == 1 && !stderr.contains('\x1b'), "{stderr:.500}");
    }
    let (at_limit, past) = (64 << 20, (64 << 20) + 1);
    for (length, fault) in [(at_limit, "the empty line that ends a head is missing"), (past, "is larger than 64 MiB")] {
        let file = std::fs::File::create(folder.path().join("bad.http")).expect("created");
        file.set_len(length).expect("it is sparse");
        let output = policy(&["test", &module, "--request", &request.replace("lf.http", "bad.http")]);
        assert!(output.status.code() == Some(64) && text(&output.stderr).contains(fault), "{fault}: {output:?}");
    }
    // It has no end.
    let output = policy(&["test", &module, "--request", "/dev/zero"]);
    assert!(output.status.code() == Some(64) && text(&output.stderr).contains("/dev/zero: is larger"), "{output:?}");
}

#[test]
fn wrong_uses_end_with_2_and_bad_modules_with_64() {
    let folder = folder();
    let module = wat("answers.wat").display().to_string();
    let request = put(folder.path(), "a.http", REQUEST);
    let two = put(folder.path(), "two.json", "[{}, {}]");
    let broken = put(folder.path(), "broken.json", "{\"a\":\n}");
    let dir = folder.path().display().to_string();
    for (arguments, said) in [
        (&["test", &module][..], "--help"),
        (&["test"], "--help"),
        (&["new", "--lang", "cobol", "x"], "cobol"),
        (&["new", "x"], "--lang"),
        (&["new", "--lang", "rust", &dir], "is not empty"),
        (&["new", "--lang", "rust", &request], "a.http"),
        (&["bench", &module], "--request"),
        (&["test", &module, "--request", &request, "--target", "chat=sideways"], "chat=up or chat=down"),
        (&["test", &module, "--request", &request, "--deadline", "5"], "as in \"100ms\""),
        (&["test", &module, "--request", &request, "--config", "{nonsense"], "--config"),
        (&["test", &module, "--request", &request, "--config", &broken], "broken.json:2:1"),
        (&["test", &module, "--request", &request, "--expect", &two], "2 decisions for 1 requests"),
        (&["test", &module, "--request", &dir], "needs --expect"),
        (&["test", &module, &dir, "--request", &request], "--help"),
    ] {
        let output = policy(arguments);
        let stderr = text(&output.stderr);
        assert!(output.status.code() == Some(2) && stderr.contains(said), "{arguments:?} {said}: {output:?}");
    }
    let none = folder.path().join("none.wasm").display().to_string();
    for module in [&wat("wrong_world.wat").display().to_string(), &none] {
        for arguments in [
            &["inspect", module][..],
            &["test", module, "--request", &request],
            &["bench", module, "--request", &request],
        ] {
            let output = policy(arguments);
            let stderr = text(&output.stderr);
            assert!(output.status.code() == Some(64) && stderr.contains(module.as_str()), "{arguments:?}: {output:?}");
        }
    }
    let output = policy(&["inspect", &wat("wrong_world.wat").display().to_string()]);
    assert!(text(&output.stderr).contains("neither on_request nor"), "{output:?}");
}

#[test]
fn a_hostile_module_is_refused_in_one_short_line() {
    let folder = folder();
    let request = put(folder.path(), "a.http", REQUEST);
    let nested = "(".repeat(10_000_000);
    for (contents, said) in [
        (&[0x80; 3000][..], "neither WebAssembly (\\0asm) nor text (UTF-8)"),
        (&[0; 10_000_000], "neither WebAssembly (\\0asm) nor text (UTF-8)"),
        (b"", "the file is empty"),
        (b"\0asm", "componentize: unexpected end-of-file"),
        (b"\0asm\x01\0\0\0garbage", "componentize: unexpected end-of-file"),
        (nested.as_bytes(), "text: expected valid module field --> <anon>:1:2"),
    ] {
        let module = put(folder.path(), "bad.wasm", contents);
        for arguments in [&["inspect", &module][..], &["test", &module, "--request", &request]] {
            let output = policy(arguments);
            let stderr = text(&output.stderr);
            assert!(output.status.code() == Some(64) && stderr.contains(said), "{said}: {stderr:.500}");
            assert!(stderr.lines().count() == 1 && stderr.len() < 500, "{said}: {stderr:.500}");
        }
    }
    for module in [folder.path(), Path::new("/dev/zero")] {
        let output = policy(&["test", &module.display().to_string(), "--request", &request]);
        assert!(output.status.code() == Some(64) && text(&output.stderr).contains("is no regular file"), "{output:?}");
    }
}

#[test]
fn what_is_expected_has_to_be_json_and_cases_a_folder() {
    let folder = folder();
    let module = wat("answers.wat").display().to_string();
    let request = put(folder.path(), "a.http", REQUEST);
    for (contents, said) in [
        (&b"{"[..], "e.json:1:1: EOF while parsing an object\n"),
        (b"", "e.json:1:0: EOF while parsing a value\n"),
        (b"\xff\0", "e.json:1:1: expected value\n"),
        (&[b'['; 100_000], "e.json:1:128: recursion limit exceeded\n"),
    ] {
        let file = put(folder.path(), "e.json", contents);
        let output = policy(&["test", &module, "--request", &request, "--expect", &file]);
        let stderr = text(&output.stderr);
        assert!(output.status.code() == Some(2) && stderr.ends_with(said), "{said}: {stderr:.500}");
    }
    for (arguments, said) in [
        (&["test", &module, &request][..], "a.http: is no folder of cases; --request FILE asks about one request"),
        (&["test", &module, "--request", &request, "--expect", "/none.json"], "/none.json: No such file"),
        (&["test", &module, "/none"], "/none: No such file"),
    ] {
        let output = policy(arguments);
        assert!(output.status.code() == Some(2) && text(&output.stderr).contains(said), "{said}: {output:?}");
    }
    // What is JSON and no decision differs from every decision.
    let file = put(folder.path(), "e.json", "7");
    let output = policy(&["test", &module, "--request", &request, "--expect", &file]);
    assert!(
        output.status.code() == Some(1) && text(&output.stdout).contains("DIFFERS decision: expected 7"),
        "{output:?}"
    );
}

fn wat_to_binary(text: &str) -> Vec<u8> {
    ::wat::parse_str(text).expect("well-formed")
}

#[test]
fn a_module_is_inspected() {
    let output = policy(&["inspect", "--json", &wat("many_hooks.wat").display().to_string()]);
    let object: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let keys: Vec<_> = object.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["language", "hooks", "imports", "sizes", "digest"]);
    assert_eq!(object["language"], "WebAssembly text");
    assert!(object["hooks"].as_array().expect("a list").len() > 1, "{object}");
    let file = std::fs::metadata(wat("many_hooks.wat")).expect("there").len();
    assert_eq!((&object["sizes"]["file"], &object["sizes"]["memory_initial"]), (&json!(file), &json!(65_536)));
    assert_eq!(object["digest"].as_str().expect("text").len(), 64);
    let output = policy(&["inspect", "--json", &wat("logs.wat").display().to_string()]);
    let object: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(object["imports"].as_array().expect("a list").contains(&json!("log.write")), "{object}");
    let folder = folder();
    let marked = std::fs::read_to_string(wat("passes.wat")).expect("there").replacen(
        "(module",
        "(module (func (export \"baton_language_C\"))",
        1,
    );
    let binary = wat_to_binary(&marked);
    let file = folder.path().join("marked.wasm");
    std::fs::write(&file, binary).expect("written");
    let object: Value =
        serde_json::from_slice(&policy(&["inspect", "--json", &file.display().to_string()]).stdout).expect("JSON");
    assert_eq!(object["language"], "C");
    let said = text(&policy(&["inspect", &wat("logs.wat").display().to_string()]).stdout);
    assert!(said.contains("imports   log.") && said.contains("64.0 KiB at the beginning"), "{said}");
}

#[test]
fn speed_is_measured_warm_and_fresh() {
    let folder = folder();
    let request = put(folder.path(), "a.http", REQUEST);
    let module = wat("answers.wat").display().to_string();
    let output = policy(&["bench", &module, "--request", &request, "--time", "50ms", "--json"]);
    let object: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let number = |of: &str, key: &str| object[of][key].as_f64().expect("a number");
    for of in ["warm", "fresh"] {
        assert!(number(of, "decisions_per_s") > 0.0 && number(of, "p50_ns") <= number(of, "p99_ns"), "{object}");
    }
    assert!(number("warm", "decisions_per_s") > number("fresh", "decisions_per_s"), "{object}");
    let output = policy(&["bench", &wat("traps.wat").display().to_string(), "--request", &request]);
    assert!(output.status.code() == Some(1) && text(&output.stderr).contains("trap: "), "{output:?}");
}

#[test]
fn completions_and_manual_pages_are_printed() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = run(baton().args(["completions", shell]));
        let said = text(&output.stdout);
        assert!(output.status.success() && said.contains("baton") && said.contains("inspect"), "{shell}: {said}");
    }
    assert_eq!(run(baton().args(["completions", "tcsh"])).status.code(), Some(2));
    let page = text(&run(baton().arg("man")).stdout);
    assert!(page.contains(".TH baton 1") && page.contains("policy"), "{page}");
    let page = text(&run(baton().args(["man", "policy", "test"])).stdout);
    assert!(page.contains("\\-\\-expect") && page.contains("TAP"), "{page}");
    let output = run(baton().args(["man", "policy", "nonsense"]));
    assert!(output.status.code() == Some(2) && text(&output.stderr).contains("nonsense"), "{output:?}");
}

const WATCHED: &str = "LISTEN\n[policy.first]\nmodule = \"first.wat\"\n[policy.second]\nmodule = \"second.wat\"\n\
    [[route]]\npath = \"/\"\npolicies = [\"first\"]\n[[route]]\npath = \"/second\"\npolicies = [\"second\"]\n";

#[test]
fn decisions_are_shown_as_they_are_made() {
    let folder = folder();
    for name in ["first.wat", "second.wat"] {
        std::fs::copy(wat("logs.wat"), folder.path().join(name)).expect("copied");
    }
    let mut gateway =
        Gateway::start_in(folder, WATCHED, |command| command.args(["--watch-log", "first"]).stdout(Stdio::piped()));
    let shown = Lines::read(gateway.child.stdout.take().expect("piped"));
    gateway.status("/second/a");
    gateway.status("/b?c=d");
    let line = shown.wait(0, &["GET /b?c=d"]);
    assert!(line.contains(" µs") && line.ends_with("#1"), "{line}");
    let all = eventually("its log lines", || Some(shown.all()).filter(|all| all.len() > 1));
    assert!(all[1].starts_with("    ") && !all.iter().any(|line| line.contains("/second")), "{all:#?}");
    let logged = |policy: &str| gateway.stderr.all().iter().any(|line| line.contains(&format!("policy=\"{policy}\"")));
    eventually("the other policy's lines are in the log", || logged("second").then_some(()));
    assert!(!logged("first"), "{:#?}", gateway.stderr.all());

    std::fs::copy(wat("traps.wat"), gateway.path("new.wat")).expect("copied");
    std::fs::rename(gateway.path("new.wat"), gateway.path("first.wat")).expect("renamed");
    shown.wait(0, &["--- policy reloaded", "from=1", "to=2"]);
    assert_eq!(gateway.status("/e"), 503);
    let line = shown.wait(0, &["GET /e", "FAILED trap: "]);
    assert!(line.ends_with("#2"), "{line}");
    std::fs::write(gateway.path("new.wat"), "(module").expect("written");
    std::fs::rename(gateway.path("new.wat"), gateway.path("first.wat")).expect("renamed");
    shown.wait(0, &["--- policy not reloaded, generation 2 stays: text: "]);
}

#[test]
fn the_other_hooks_decisions_are_shown_too() {
    let folder = folder();
    with_failure_hook(folder.path(), "(call $respond (i32.const 242))");
    let config = "LISTEN\n[target.chat]\nsockets = [\"chat.sock\"]\n[policy.hooked]\nmodule = \"hooked.wat\"\n\
        [[listener]]\nname = \"gated\"\naddress = \"127.0.0.1:0\"\npolicies = [\"hooked\"]\n\
        [[route]]\npath = \"/\"\npolicies = [\"hooked\"]\n";
    let mut gateway =
        Gateway::start_in(folder, config, |command| command.args(["--watch-log", "hooked"]).stdout(Stdio::piped()));
    let shown = Lines::read(gateway.child.stdout.take().expect("piped"));
    assert_eq!(gateway.status("/a"), 242);
    shown.wait(0, &["  GET /a  handoff to chat with 0 bytes"]);
    let line = shown.wait(0, &["  GET /a, chat having failed  respond 242 with 0 bytes"]);
    assert!(line.contains(" µs") && line.ends_with("#1"), "{line}");
    assert!(!shown.all().iter().any(|line| line.contains("client")), "nobody was asked: {:#?}", shown.all());
    drop(Client::connect(gateway.address_of("gated")));
    shown.wait(0, &["  client 127.0.0.1  accept", "#1"]);
}

#[test]
fn a_policy_that_there_is_not_cannot_be_watched() {
    let folder = folder();
    std::fs::copy(wat("passes.wat"), folder.path().join("first.wat")).expect("copied");
    let file = put(
        folder.path(),
        "baton.toml",
        "[[listener]]\naddress = \"127.0.0.1:0\"\n[policy.first]\nmodule = \"first.wat\"\n[[route]]\npath = \"/\"\npolicies = [\"first\"]\n",
    );
    let output = run(baton().args(["run", "-c", &file, "--watch-log", "frist"]));
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("frist") && said.contains("first"), "{said}");
}

/// Logs and annotates what the client has sent in `x-a`.
const REPEATS: &str = r#"(module
    (import "baton:policy/request@0.1.0" "header" (func $header (param i32 i32 i32)))
    (import "baton:policy/log@0.1.0" "write" (func $log (param i32 i32 i32 i32 i32)))
    (memory (export "memory") 1)
    (data (i32.const 16) "x-a") (data (i32.const 24) "said")
    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096))
    (func (export "on_request") (result i32)
        (memory.fill (i32.const 1024) (i32.const 0) (i32.const 88))
        (call $header (i32.const 16) (i32.const 3) (i32.const 272))
        (call $log (i32.const 3) (i32.load (i32.const 276)) (i32.load (i32.const 280)) (i32.const 0) (i32.const 0))
        (i64.store (i32.const 512) (i64.const 0x400000018))
        (i64.store (i32.const 520) (i64.load (i32.const 276)))
        (i64.store (i32.const 1104) (i64.const 0x100000200))
        (i32.const 1024)))"#;

/// A terminal obeys control characters, in one byte or two; what a client chooses reaches it only escaped.
#[test]
fn what_a_client_sends_cannot_steer_the_terminal_of_who_watches() {
    let folder = folder();
    put(folder.path(), "first.wat", REPEATS);
    std::fs::copy(wat("logs.wat"), folder.path().join("second.wat")).expect("copied");
    let mut gateway =
        Gateway::start_in(folder, WATCHED, |command| command.args(["--watch-log", "first"]).stdout(Stdio::piped()));
    let shown = Lines::read(gateway.child.stdout.take().expect("piped"));
    let mut asked = 0;
    for target in ["/plain", "/%1b[2J%0a---", "/\x1b[2J", "/\u{9b}2J", "/\u{202e}"] {
        for value in ["plain", "\u{9b}2J", "\u{85}--- policy", "\u{202e}drawkcab", "\u{2028}", "a\tb", "\x1b[2J"] {
            let mut client = gateway.client();
            client.send(format!("GET {target} HTTP/1.1\r\nHost: x\r\nX-A: {value}\r\nConnection: close\r\n\r\n"));
            // What no policy is asked about is 400, and not shown at all.
            asked += usize::from(!client.rest().starts_with("HTTP/1.1 400"));
        }
    }
    assert!(asked > 5, "{asked}");
    let shown = eventually("two lines for each", || Some(shown.all()).filter(|all| all.len() == 2 * asked));
    let steers = |c: char| c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    for line in &shown {
        assert!(!line.contains(steers) && !line.starts_with("---"), "{line:?}");
    }
    assert!(shown.iter().any(|line| line.contains("drawkcab")), "{shown:#?}");
}

/// A new project in that language.
struct Project {
    folder: tempfile::TempDir,
    /// What is said to `make` beyond what an author says.
    arguments: Vec<String>,
}

impl Project {
    fn new(language: &str) -> Self {
        let folder = folder();
        let path = folder.path().join("p");
        let output = policy(&["new", "--lang", language, &path.display().to_string()]);
        let said = text(&output.stdout);
        assert!(output.status.success(), "{output:?}");
        for word in ["next:", "make test", "make run", "Makefile", "README.md"] {
            assert!(said.contains(word), "{word}: {said}");
        }
        let mut arguments = Vec::new();
        // A hundred megabytes that would be installed into each project are there already: the same list names them.
        if ["c", "python"].contains(&language) {
            let list = |folder: &str| std::fs::read(root(folder).join("requirements.txt")).expect("there");
            assert_eq!(list(&path.display().to_string()), list(&format!("policies/{language}")));
            let output = run(Command::new(root("policies/build")).args(["--tools", language]));
            assert!(output.status.success(), "{output:?}");
            let programs = PathBuf::from(text(&output.stdout).trim());
            let tools = programs.parent().expect("an environment of Python").display().to_string();
            arguments = vec![format!("VENV={tools}"), "--old-file=requirements.txt".to_owned()];
        }
        Self { folder, arguments }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("p").join(name)
    }

    fn make(&self, goals: &[&str]) -> String {
        let mut command = Command::new("make");
        // What this test was started with is no author's environment.
        for name in ["CARGO_TARGET_DIR", "CARGO_INCREMENTAL", "RUSTFLAGS", "MAKEFLAGS", "MFLAGS", "MAKELEVEL"] {
            command.env_remove(name);
        }
        // Where the machine has no Go, `policies/build` has brought it.
        let path = std::env::var("PATH").expect("there is one");
        command.env("PATH", format!("{path}:{}", root("policies/target/go-toolchain/bin").display()));
        command.args(goals).args(&self.arguments).env("BATON", env!("CARGO_BIN_EXE_baton")).current_dir(self.path(""));
        let output = run(&mut command);
        assert!(output.status.success(), "make {goals:?}: {}\n{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }
}

/// A new project, built and tested as its author would: `baton policy new`, `make`, `make test`.
fn template(language: &str) -> Project {
    let project = Project::new(language);
    project.make(&[]);
    let built = || std::fs::metadata(project.path("policy.wasm")).and_then(|file| file.modified()).expect("built");
    let before = built();
    let tested = project.make(&["test"]);
    assert_eq!(built(), before, "what is built is not built again");
    assert!(tested.contains("ok 1 - ") && tested.contains("15 passed, 0 failed"), "{tested}");
    let module = project.path("policy.wasm").display().to_string();
    let object: Value = serde_json::from_slice(&policy(&["inspect", "--json", &module]).stdout).expect("JSON");
    assert_eq!(object["language"].as_str().expect("text").to_lowercase(), language, "{object}");
    // As it was written, it is loaded with the configuration that came along.
    let checked = run(baton().arg("check").current_dir(project.path("")));
    assert_eq!((checked.status.code(), text(&checked.stderr)), (Some(0), String::new()));
    project
}

#[test]
fn every_template_has_what_its_author_needs() {
    for language in LANGUAGES {
        let project = Project::new(language);
        for file in ["Makefile", "README.md", ".gitignore", "baton.toml", "serve", "cases/the-token.http"] {
            assert!(project.path(file).exists(), "{language}: {file}");
        }
        assert!(!project.path("manifest").exists());
        let readme = std::fs::read_to_string(project.path("README.md")).expect("there");
        assert!(readme.lines().count() <= 40 && readme.contains("make test"), "{language}: {readme}");
    }
}

#[test]
fn a_project_in_rust_builds_and_its_cases_pass_and_its_traps_name_function_file_and_line() {
    let project = template("rust");
    let source = project.path("src/lib.rs");
    let code = std::fs::read_to_string(&source).expect("there");
    let line = "let path = request::path();";
    let broken = code.replace(line, &format!("{line} assert!(path.len() < 4, \"too long\");"));
    assert_ne!(code, broken);
    std::fs::write(&source, &broken).expect("written");
    let at = 1 + broken.lines().position(|l| l.contains("too long")).expect("it was put there");
    project.make(&[]);
    let (code, object) = tested(&project.path("policy.wasm"), &[]);
    let error = object["error"].as_str().expect("text");
    assert_eq!(code, Some(1));
    assert!(error.contains("on_request") && error.contains(&format!("src/lib.rs:{at}")), "{error}");
}

#[test]
fn a_project_in_go_builds_and_its_cases_pass() {
    template("go");
}

#[test]
fn a_project_in_assemblyscript_builds_and_its_cases_pass() {
    template("assemblyscript");
}

#[test]
fn a_project_in_c_builds_and_its_cases_pass() {
    template("c");
}

#[test]
fn a_project_in_javascript_builds_and_its_cases_pass() {
    template("javascript");
}

#[test]
fn a_project_in_python_builds_and_its_cases_pass() {
    template("python");
}
