//! The hooks beside `on-request`, through the real gateway: whoever connects, whatever no daemon took, what is over, ticks,
//! and the breaker around all of them.
//!
//! Guests are made here, one behaviour each, of what they have in common ([`PRELUDE`]) and the hooks that matter.
#![cfg(feature = "gateway")]

mod support;

use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Client, Daemon, Gateway, eventually, folder};
use tempfile::TempDir;

/// Imports, memory, texts by their place, and the decisions: each is written to 1024.
const PRELUDE: &str = r#"
  (import "baton:policy/log@0.1.0" "write" (func $write (param i32 i32 i32 i32 i32)))
  (import "baton:policy/request@0.1.0" "header" (func $header (param i32 i32 i32)))
  (memory (export "memory") 64)
  (global $free (mut i32) (i32.const 65536))
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    (local $p i32)
    (local.set $p (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
    (global.set $free (i32.add (local.get $p) (local.get 3)))
    (local.get $p))
  (data (i32.const 0) "chat____spare___nope____tick____x-fail__first___second__key_____")
  (func $clear (memory.fill (i32.const 1024) (i32.const 0) (i32.const 88)))
  (func $tag (param i32) (call $clear) (i32.store8 (i32.const 1024) (local.get 0)))
  (func $pass (call $tag (i32.const 0)))
  (func $abort (call $tag (i32.const 4)))
  (func $respond (param $status i32)
    (call $tag (i32.const 3))
    (i32.store16 (i32.const 1028) (local.get $status)))
  (func $hand_over (param $target i32) (param $length i32)
    (call $tag (i32.const 1))
    (i32.store (i32.const 1028) (local.get $target))
    (i32.store (i32.const 1032) (local.get $length))
    (i32.store8 (i32.const 1069) (i32.const 1)))
  (func $carry (param i32 i32)
    (i32.store (i32.const 1096) (local.get 0))
    (i32.store (i32.const 1100) (local.get 1)))
  ;; key = VALUE, a text
  (func $annotate (param i32 i32)
    (i32.store (i32.const 512) (i32.const 56))
    (i32.store (i32.const 516) (i32.const 3))
    (i32.store (i32.const 520) (local.get 0))
    (i32.store (i32.const 524) (local.get 1))
    (i32.store (i32.const 1104) (i32.const 512))
    (i32.store (i32.const 1108) (i32.const 1)))
  (func $say (param i32 i32) (call $write (i32.const 2) (local.get 0) (local.get 1) (i32.const 0) (i32.const 0)))
  (func $spin (loop $again (br $again)))
"#;

/// What every policy has: hands over to `chat`, and gives `first` along.
const TO_CHAT: &str = r#"(func (export "on_request") (result i32)
    (call $hand_over (i32.const 0) (i32.const 4)) (call $carry (i32.const 40) (i32.const 5)) (i32.const 1024))"#;

const PASSES: &str = r#"(func (export "on_request") (result i32) (call $pass) (i32.const 1024))"#;

/// `on_handoff_failed` with its parameters by name.
fn failed(body: &str) -> String {
    format!(
        r#"(func (export "on_handoff_failed") (param $target i32) (param $target_length i32) (param $stage i32)
            (param $has_errno i32) (param $errno i32) (param $message i32) (param $message_length i32)
            (param $attempt i32) (param $retryable i32) (param $carry i32) (param $carry_length i32) (result i32)
            {body} (i32.const 1024))"#
    )
}

fn complete(body: &str) -> String {
    format!(
        r#"(func (export "on_complete") (param $id i32) (param $id_length i32) (param $action i32)
            (param $action_length i32) (param $has_target i32) (param $target i32) (param $target_length i32)
            (param $has_status i32) (param $status i32) (param $us i64) (param $in i64) (param $out i64)
            (param $carry i32) (param $carry_length i32) {body})"#
    )
}

/// Says how it ended: action, target and carry, each a line.
const COMPLETES: &str = r#"
    (call $say (local.get $action) (local.get $action_length))
    (if (local.get $has_target) (then (call $say (local.get $target) (local.get $target_length))))
    (call $say (local.get $carry) (local.get $carry_length))"#;

fn connect(body: &str) -> String {
    let parameters = "(param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32)";
    format!(r#"(func (export "on_connect") {parameters} (result i32) {body} (i32.const 1024))"#)
}

/// Writes a guest into the folder.
fn guest(folder: &TempDir, name: &str, hooks: &[&str]) {
    let text = format!("(module {PRELUDE} {})", hooks.join("\n"));
    let new = folder.path().join(format!("{name}.new"));
    fs::write(&new, text).expect("written");
    fs::rename(new, folder.path().join(format!("{name}.wat"))).expect("renamed");
}

/// A policy of the configuration; `rest` are further keys.
fn policy(name: &str, rest: &str) -> String {
    format!("[policy.{name}]\nmodule = \"DIR/{name}.wat\"\ndeadline = \"50ms\"\n{rest}\n")
}

fn route(path: &str, policies: &[&str]) -> String {
    format!("[[route]]\npath = \"{path}\"\npolicies = {policies:?}\n")
}

/// Two targets of one worker's gateway: daemons are started where a test wants some.
const BASIS: &str = "[gateway]\nworkers = 1\n[handoff]\nretries = 0\nack_timeout = \"200ms\"\n\
    [target.chat]\nsockets = [\"DIR/chat.sock\"]\n[target.spare]\nsockets = [\"DIR/spare.sock\"]\n";

fn start(folder: TempDir, rest: &str) -> Gateway {
    Gateway::start_in(folder, &format!("{BASIS}{rest}LISTEN"), |command| command)
}

fn text<'a>(line: &'a Value, key: &str) -> &'a str {
    line[key].as_str().unwrap_or_default()
}

/// What a policy said itself, as it came.
fn said_by(gateway: &Gateway, policy: &str) -> Vec<String> {
    let own = |line: &String| {
        let (said, _) = line.split_once(" INFO ")?.1.split_once(&format!(" policy=\"{policy}\" generation="))?;
        Some(said.to_owned())
    };
    gateway.stderr.all().iter().filter_map(own).collect()
}

fn failures_of(gateway: &Gateway, policy: &str, hook: &str) -> Vec<String> {
    let words = ["policy failed", &format!("policy={policy} "), &format!("hook=\"{hook}\"")].map(str::to_owned);
    gateway.stderr.all().into_iter().filter(|line| words.iter().all(|word| line.contains(word))).collect()
}

// === Who connects ===

#[test]
fn a_connection_is_accepted_rejected_or_handed_over_before_a_byte_is_read() {
    let folder = folder();
    guest(&folder, "yes", &[PASSES, &connect("(call $tag (i32.const 0))")]);
    guest(&folder, "no", &[PASSES, &connect("(call $tag (i32.const 1))")]);
    let raw = "(call $hand_over (i32.const 0) (i32.const 4)) (i32.store8 (i32.const 1024) (i32.const 2))
        (i32.store (i32.const 1036) (i32.const 40)) (i32.store (i32.const 1040) (i32.const 5))";
    guest(&folder, "raw", &[PASSES, &connect(raw)]);
    let daemon = Daemon::start(&folder.path().join("chat.sock"), "seqpacket", "serve", &["all=1"]);
    let mut config = [policy("yes", ""), policy("no", ""), policy("raw", "")].concat();
    for (name, policies) in
        [("accepts", "\"yes\", \"yes\""), ("rejects", "\"yes\", \"no\", \"raw\""), ("raw", "\"raw\"")]
    {
        config += &format!("[[listener]]\nname = \"{name}\"\naddress = \"127.0.0.1:0\"\npolicies = [{policies}]\n");
    }
    config += "[[route]]\npath = \"/\"\ndefault = { respond = { status = 299 } }\n";
    let gateway = start(folder, &config);

    let mut client = Client::connect(gateway.address_of("accepts"));
    client.get("/");
    assert_eq!(client.answer().status, 299);
    let line = gateway.log_line(1);
    assert_eq!((text(&line, "outcome"), &line["policy"]), ("responded", &Value::Null), "{line}");

    let mut client = Client::connect(gateway.address_of("rejects"));
    client.get("/");
    assert_eq!(client.rest(), "");
    let line = gateway.log_line(2);
    let found = ["outcome", "policy", "decision", "listener"].map(|key| text(&line, key));
    assert_eq!(found, ["aborted", "no", "reject", "rejects"], "{line}");
    assert_eq!((&line["method"], &line["generation"]), (&Value::Null, &1.into()));

    // Bytes that are no HTTP at all, whole and in their order, also those that come later.
    let mut client = Client::connect(gateway.address_of("raw"));
    client.send(b"\x16\x03\x01 not a line \r\n\r\n\0\x7f");
    let got = |count| daemon.events("got").len() == count;
    assert!(got(0));
    client.send(b"and more");
    client.stream.shutdown(std::net::Shutdown::Write).expect("open");
    let event = daemon.wait("got", 1);
    assert_eq!(event["first"], "\u{16}\u{3}\u{1} not a line \r\n\r\n\0\u{7f}and more");
    assert_eq!(
        (&event["data"], &event["port"], &event["descriptors"]),
        (&"first".into(), &client.port().into(), &1.into())
    );
    assert!(client.rest().ends_with("from daemon\n"));
    let line = gateway.log_line(3);
    let found = ["outcome", "policy", "decision", "to"].map(|key| text(&line, key));
    assert_eq!(found, ["handed-off", "raw", "handoff", "chat"], "{line}");
    assert_eq!((&line["attempts"], &line["bytes_in"], &line["bytes_out"]), (&1.into(), &0.into(), &0.into()));
    assert_eq!(gateway.log().len(), 3);
}

#[test]
fn a_connection_hook_that_fails_closes_or_accepts_as_on_error_says() {
    let folder = folder();
    let head = "(call $hand_over (i32.const 0) (i32.const 4)) (i32.store8 (i32.const 1024) (i32.const 2))";
    let cases = [
        ("traps", "(unreachable)".to_owned(), "trap: "),
        ("spins", "(call $spin)".to_owned(), "deadline of 50ms exceeded"),
        ("nocase", "(call $tag (i32.const 9))".to_owned(), "bad value: "),
        (
            "heads",
            format!("{head} (i32.store8 (i32.const 1068) (i32.const 1))"),
            "include-head in the handoff of an untouched",
        ),
        (
            "answers",
            format!(
                "{head} (i32.store8 (i32.const 1052) (i32.const 1)) (i32.store16 (i32.const 1056) (i32.const 200))"
            ),
            "response-head in the handoff of an untouched",
        ),
        // It asks for what there is not: a request.
        ("asks", "(call $header (i32.const 32) (i32.const 6) (i32.const 512))".to_owned(), "outside of a hook"),
    ];
    let mut config = String::new();
    for (name, hook, _) in &cases {
        guest(&folder, name, &[PASSES, &connect(hook)]);
        for on_error in ["deny", "pass"] {
            config += &policy(name, &format!("on_error = \"{on_error}\""))
                .replace(&format!("policy.{name}"), &format!("policy.{name}-{on_error}"));
            config += &format!(
                "[[listener]]\nname = \"{name}-{on_error}\"\naddress = \"127.0.0.1:0\"\npolicies = [\"{name}-{on_error}\"]\n"
            );
        }
    }
    config += "[[route]]\npath = \"/\"\ndefault = { respond = { status = 299 } }\n";
    let gateway = start(folder, &config);
    for (at, (name, _, reason)) in cases.iter().enumerate() {
        let mut client = Client::connect(gateway.address_of(&format!("{name}-deny")));
        client.get("/");
        assert_eq!(client.rest(), "", "{name}");
        let line = gateway.log_line(2 * at + 1);
        assert_eq!(
            (text(&line, "outcome"), text(&line, "policy")),
            ("policy-error", &*format!("{name}-deny")),
            "{line}"
        );
        assert!(text(&line, "error").contains(reason), "{line}");
        let said = eventually("the log's line", || failures_of(&gateway, &format!("{name}-deny"), "on-connect").pop());
        for word in [reason, "generation=1", &*format!("request={}", text(&line, "id"))] {
            assert!(said.contains(word), "no {word} in {said}");
        }
        let mut client = Client::connect(gateway.address_of(&format!("{name}-pass")));
        client.get("/");
        assert_eq!(client.answer().status, 299, "{name}");
        assert_eq!(text(&gateway.log_line(2 * at + 2), "outcome"), "responded");
    }
}

#[test]
fn a_connection_that_no_daemon_takes_is_closed() {
    let folder = folder();
    let raw =
        |target: &str| connect(&format!("(call $hand_over {target}) (i32.store8 (i32.const 1024) (i32.const 2))"));
    guest(&folder, "absent", &[PASSES, &raw("(i32.const 0) (i32.const 4)")]);
    guest(&folder, "unknown", &[PASSES, &raw("(i32.const 16) (i32.const 4)")]);
    guest(&folder, "unread", &[PASSES, &raw("(i32.const 8) (i32.const 5)")]);
    let daemon = Daemon::start(&folder.path().join("spare.sock"), "seqpacket", "deaf", &[]);
    let mut config = String::new();
    for name in ["absent", "unknown", "unread"] {
        config += &policy(name, "");
        config += &format!("[[listener]]\nname = \"{name}\"\naddress = \"127.0.0.1:0\"\npolicies = [\"{name}\"]\n");
    }
    let gateway = start(folder, &config);
    let cases = [("absent", "refused", "chat"), ("unknown", "policy-error", "nope"), ("unread", "refused", "spare")];
    for (at, (name, outcome, to)) in cases.into_iter().enumerate() {
        let mut client = Client::connect(gateway.address_of(name));
        client.send("x");
        assert_eq!(client.rest(), "", "{name}");
        let line = gateway.log_line(at + 1);
        assert_eq!(["outcome", "to", "policy"].map(|key| text(&line, key)), [outcome, to, name], "{line}");
    }
    assert_eq!(daemon.events("accepted").len(), 1);
}

#[test]
fn a_listener_has_policies_with_that_hook_only_and_a_reload_changes_them() {
    let folder = folder();
    guest(&folder, "no", &[PASSES, &connect("(call $tag (i32.const 1))")]);
    guest(&folder, "none", &[PASSES]);
    let listener = |policies: &str| format!("[[listener]]\nname = \"http\"\naddress = \"127.0.0.1:0\"\n{policies}\n");
    let rest = format!(
        "{BASIS}{}{}[[route]]\npath = \"/\"\ndefault = {{ respond = {{}} }}\n",
        policy("no", ""),
        policy("none", "")
    );
    let gateway = Gateway::start_in(folder, &format!("{rest}{}", listener("")), |c| c);
    assert_eq!(gateway.status("/"), 200);
    gateway.reload(&format!("{rest}{}", listener("policies = [\"none\"]")));
    gateway.stderr.wait(0, &["listener[0].policies[0]", "policy \"none\" has no on-connect"]);
    assert_eq!(gateway.status("/"), 200);
    let before = gateway.reload(&format!("{rest}{}", listener("policies = [\"no\"]")));
    gateway.stderr.wait(before, &["configuration reloaded"]);
    assert_eq!(gateway.ask("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), "");
    // A module that loses the hook while it is asked closes: nobody is let in by a mistake.
    guest(&gateway.folder, "no", &[PASSES]);
    gateway.stderr.wait(before, &["policy reloaded", "policy=\"no\""]);
    assert_eq!(gateway.ask("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), "");
    gateway.stderr.wait(before, &["policy failed", "hook=\"on-connect\"", "there is no such hook"]);
    let before = gateway.reload(&format!("{rest}{}", listener("")));
    gateway.stderr.wait(before, &["configuration reloaded"]);
    assert_eq!(gateway.status("/"), 200);
}

// === What no daemon took ===

#[test]
fn a_failed_handoff_is_answered_as_the_policy_says() {
    let folder = folder();
    let cases = [
        ("answers", "(call $respond (i32.const 242))", 242, "responded", "respond"),
        ("passes", "(call $pass)", 503, "refused", "handoff"),
        ("unknown", "(call $hand_over (i32.const 16) (i32.const 4))", 403, "policy-error", "handoff"),
        (
            "again",
            "(call $say (i32.const 0) (i32.const 4)) (call $hand_over (i32.const 0) (i32.const 4))",
            503,
            "refused",
            "handoff",
        ),
        ("traps", "(unreachable)", 503, "refused", "handoff"),
        ("spins", "(call $spin)", 503, "refused", "handoff"),
        ("bad", "(call $respond (i32.const 999))", 503, "refused", "handoff"),
    ];
    let mut config = String::new();
    for (name, hook, ..) in cases {
        guest(&folder, name, &[TO_CHAT, &failed(hook)]);
        config += &(policy(name, "") + &route(&format!("/{name}"), &[name]));
    }
    guest(&folder, "aborts", &[TO_CHAT, &failed("(call $abort)")]);
    config += &(policy("aborts", "") + &route("/aborts", &["aborts"]));
    config += "[[route]]\npath = \"/default\"\npolicies = []\ndefault = { handoff = \"chat\" }\n";
    let gateway = start(folder, &config);
    for (at, (name, _, status, outcome, decision)) in cases.into_iter().enumerate() {
        // The connection goes on: a client that nobody took is as it was.
        let mut client = gateway.client();
        client.send(format!("GET /{name} HTTP/1.1\r\nHost: x\r\n\r\nGET /default HTTP/1.1\r\nHost: x\r\n\r\n"));
        assert_eq!(client.answer().status, status, "{name}");
        assert_eq!(client.answer().status, 503, "{name}: and of a route nobody is asked");
        let line = gateway.log_line(2 * at + 1);
        assert_eq!(["outcome", "decision", "policy"].map(|key| text(&line, key)), [outcome, decision, name], "{line}");
        assert_eq!(line["status"], status, "{line}");
    }
    let count = cases.len() * 2;
    assert_eq!(gateway.ask("GET /aborts HTTP/1.1\r\nHost: x\r\n\r\n"), "");
    let line = gateway.log_line(count + 1);
    assert_eq!(["outcome", "decision"].map(|key| text(&line, key)), ["aborted", "abort"], "{line}");

    assert_eq!(said_by(&gateway, "again"), ["chat"; 3], "three times and not more");
    for (name, reason) in [("traps", "trap: "), ("spins", "deadline of 50ms"), ("bad", "status 999 is outside")] {
        let said = failures_of(&gateway, name, "on-handoff-failed");
        assert!(said.len() == 1 && said[0].contains(reason) && said[0].contains("request=01"), "{said:#?}");
        let line = gateway.log().into_iter().find(|line| text(line, "policy") == name).expect("logged");
        let error = text(&line, "error");
        assert!(error.contains("; on-handoff-failed: ") && error.contains(reason), "{line}");
    }
}

#[test]
fn a_policy_is_told_what_failed_and_names_another_target_with_what_it_carried() {
    let folder = folder();
    // Says target, message and carry; hands over to `spare` with the carry as data, and gives `second` along.
    let hook = failed(
        "(call $say (local.get $target) (local.get $target_length))
         (call $say (local.get $message) (local.get $message_length))
         (call $say (local.get $carry) (local.get $carry_length))
         (call $hand_over (i32.const 8) (i32.const 5))
         (i32.store (i32.const 1036) (local.get $carry)) (i32.store (i32.const 1040) (local.get $carry_length))
         (call $carry (i32.const 48) (i32.const 6)) (call $annotate (i32.const 48) (i32.const 6))",
    );
    guest(&folder, "names", &[TO_CHAT, &hook, &complete(COMPLETES)]);
    // 200, and 1 for each attempt, 10 for each stage, 50 if it can be tried again, 100 and the errno if there is one.
    let told = failed(
        "(call $respond (i32.add (i32.const 200) (i32.add (local.get $attempt) (i32.add
            (i32.mul (local.get $stage) (i32.const 10)) (i32.add (i32.mul (local.get $retryable) (i32.const 50))
            (i32.mul (local.get $has_errno) (i32.add (i32.const 100) (local.get $errno))))))))",
    );
    guest(&folder, "told", &[TO_CHAT, &told]);
    let config =
        [policy("names", ""), route("/names", &["names"]), policy("told", ""), route("/told", &["told"])].concat();
    let daemon = Daemon::start(&folder.path().join("spare.sock"), "seqpacket", "serve", &["peek=1"]);
    let gateway = start(folder, &config);

    let mut client = gateway.client();
    client.send("POST /names HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhelloGET");
    assert!(client.rest().ends_with("from daemon\n"));
    let event = daemon.wait("got", 1);
    assert_eq!((&event["data"], &event["first"]), (&"first".into(), &"helloGET".into()), "{event}");
    let line = gateway.log_line(1);
    assert_eq!(["outcome", "to", "decision"].map(|key| text(&line, key)), ["handed-off", "spare", "handoff"], "{line}");
    assert_eq!((&line["attempts"], &line["annotations"]["key"]), (&2.into(), &"second".into()), "{line}");
    let said = eventually("it was told of the end", || Some(said_by(&gateway, "names")).filter(|said| said.len() == 6));
    assert_eq!((&*said[0], &*said[2]), ("chat", "first"), "{said:?}");
    assert!(said[1].contains("No such file or directory"), "{said:?}");
    assert_eq!(said[3..], ["handed-off", "spare", "second"], "the new carry goes on");

    // ENOENT at connect, then ECONNREFUSED.
    assert_eq!(gateway.status("/told"), 200 + 1 + 10 + 50 + 100 + 2);
    drop(std::os::unix::net::UnixListener::bind(gateway.path("chat.sock")).expect("bound"));
    assert_eq!(gateway.status("/told"), 200 + 1 + 10 + 50 + 100 + 111);
    // Closed unread, behind the message or before it (EPIPE at send); the client is ours.
    let _daemon = Daemon::start(&gateway.path("chat.sock"), "seqpacket", "drop", &[]);
    let told = gateway.status("/told");
    assert!([200 + 1 + 30 + 50, 200 + 1 + 20 + 50 + 100 + 32].contains(&told), "{told}");
}

#[test]
fn where_bytes_have_gone_only_pass_and_abort_are_honoured_and_of_unknown_fate_nobody_is_asked() {
    let folder = folder();
    // Says `tick` if it can be tried again, `key` if not.
    let says = "(if (local.get $retryable) (then (call $say (i32.const 24) (i32.const 4))) (else (call $say (i32.const 56) (i32.const 3))))";
    let mut config = String::new();
    for (name, action) in
        [("answers", "(call $respond (i32.const 242))"), ("passes", "(call $pass)"), ("aborts", "(call $abort)")]
    {
        guest(&folder, name, &[TO_CHAT, &failed(&format!("{says}{action}"))]);
        config += &(policy(name, "") + &route(&format!("/{name}"), &[name]));
    }
    let data = TO_CHAT.replace(
        "(call $carry",
        "(i32.store (i32.const 1036) (i32.const 40)) (i32.store (i32.const 1040) (i32.const 5)) (call $carry",
    );
    guest(&folder, "parts", &[&data, &failed(&format!("{says}(call $respond (i32.const 242))"))]);
    config += &(policy("parts", "") + &route("/parts", &["parts"]));
    let chat = folder.path().join("chat.sock");
    let mut toml = format!("{BASIS}{config}LISTEN");

    // Stopped daemons: the message can be read later, so the client is ended.
    let daemon = Daemon::start(&chat, "seqpacket", "deaf", &[]);
    let gateway = Gateway::start_in(folder, &toml, |command| command);
    let told = |name: &str, count: usize| {
        let said = eventually("it was asked", || Some(said_by(&gateway, name)).filter(|said| said.len() >= count));
        assert_eq!(said, vec!["key"; count], "{name}");
    };
    let ask = |path: &str| gateway.ask(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
    for name in ["answers", "passes"] {
        assert!(ask(&format!("/{name}")).starts_with("HTTP/1.1 503 "), "{name}");
        told(name, 1);
    }
    gateway.stderr.wait(0, &["respond cannot be done any more", "policy=answers"]);
    assert_eq!(ask("/aborts"), "");
    told("aborts", 1);
    assert_eq!(["outcome", "decision"].map(|key| text(&gateway.log_line(3), key).to_owned()), ["aborted", "abort"]);
    drop(daemon);

    // A reader of a part that has gone: nobody can know.
    let daemon = Daemon::start(&chat, "stream", "serve", &["short=1"]);
    drop(ask("/parts"));
    daemon.wait("got", 1);
    let line = gateway.log_line(4);
    assert_ne!(text(&line, "outcome"), "responded", "{line}");
    assert!(said_by(&gateway, "parts").is_empty(), "nobody was asked: {line}");
    drop(daemon);

    // Behind a head that was written nothing can be answered: it is reset.
    let _daemon = Daemon::start(&chat, "fdpass", "drop", &[]);
    toml = toml.replace("chat.sock\"]\n", "chat.sock\"]\ndialect = \"fdpass\"\n");
    let before = gateway.reload(&toml);
    gateway.stderr.wait(before, &["configuration reloaded"]);
    for (at, (name, outcome)) in
        [("answers", "refused"), ("passes", "refused"), ("aborts", "aborted")].into_iter().enumerate()
    {
        let mut client = gateway.client();
        client.get(&format!("/{name}"));
        assert!(client.until("\r\n\r\n").starts_with("HTTP/1.1 200 "), "{name}");
        assert!(client.was_reset(), "{name}");
        told(name, 2);
        let line = gateway.log_line(5 + at);
        assert_eq!((text(&line, "outcome"), &line["status"]), (outcome, &200.into()), "{line}");
    }
}

#[test]
fn a_failure_hook_sees_the_body_as_long_as_it_can_be_shown() {
    let folder = folder();
    let import = r#"(import "baton:policy/request@0.1.0" "body-prefix" (func $prefix (param i32 i32)))"#;
    // Answers with the beginning of the body; otherwise says `nope`, and 500 and the error's number.
    let hook = failed(
        "(call $prefix (i32.const 5) (i32.const 600))
         (if (i32.load8_u (i32.const 600))
            (then (call $say (i32.const 16) (i32.const 4))
                (call $respond (i32.add (i32.const 500) (i32.load8_u (i32.const 604)))))
            (else (call $respond (i32.const 242)) (i64.store (i32.const 1040) (i64.load (i32.const 604)))))",
    );
    let module = format!("(module {import} {PRELUDE} {TO_CHAT} {hook})");
    fs::write(folder.path().join("reads.wat"), module).expect("written");
    let gateway = start(folder, &(policy("reads", "") + &route("/", &["reads"])));
    let mut client = gateway.client();
    let head = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n";
    for expects in ["", "Expect: 100-continue\r\n"] {
        client.send(format!("{head}{expects}\r\n"));
        if !expects.is_empty() {
            assert_eq!(client.until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
        }
        client.send("hello world");
        let answer = client.answer();
        assert_eq!((answer.status, &*answer.body), (242, "hello"));
    }
    // Sent, and unread at the deadline: there is nobody any more who could show it.
    let _daemon = Daemon::start(&gateway.path("chat.sock"), "seqpacket", "deaf", &[]);
    assert!(gateway.ask(&format!("{head}\r\nhello world")).starts_with("HTTP/1.1 503 "));
    let said = || said_by(&gateway, "reads");
    eventually("not available", || (!said().is_empty()).then_some(()));
    assert_eq!(said(), ["nope"]);
}

// === What is over ===

/// A daemon of the native dialect says how it ended; where it ends without a word, the policies are told all the same.
#[test]
fn a_policy_is_told_of_the_end_also_where_the_daemon_says_nothing_of_it() {
    let folder = folder();
    guest(&folder, "told", &[TO_CHAT, &complete(COMPLETES)]);
    let config = [policy("told", ""), route("/", &["told"])].concat();
    let script = support::native::Script::listen(&folder.path().join("chat.sock"));
    let basis = BASIS.replace("chat.sock\"]\n", "chat.sock\"]\ndialect = \"baton\"\n");
    let gateway = Gateway::start_in(folder, &format!("{basis}{config}LISTEN"), |command| command);
    let mut channel = None;
    for (count, is_done) in [(3, true), (6, false)] {
        let mut client = gateway.client();
        client.get("/");
        let mut one = channel.take().unwrap_or_else(|| script.accept(10));
        let lent = one.lent();
        one.take(&lent);
        lent.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        // The daemon may go on with the client when its channel has ended.
        if is_done {
            one.done(lent, support::native::report(200, 40));
            channel = Some(one);
        } else {
            drop(one);
        }
        let said = eventually("it was told", || Some(said_by(&gateway, "told")).filter(|said| said.len() == count));
        assert_eq!(said[count - 3..], ["handed-off", "chat", "first"]);
    }
}

#[test]
fn every_policy_that_was_asked_is_told_of_the_end_with_its_own_carry() {
    let folder = folder();
    let gives = |offset: u32, length: u32, decision: &str| {
        format!(
            r#"(func (export "on_request") (result i32) {decision}
            (call $carry (i32.const {offset}) (i32.const {length})) (i32.const 1024))"#
        )
    };
    let told = complete(COMPLETES);
    guest(&folder, "one", &[&gives(40, 5, "(call $pass)"), &told]);
    guest(&folder, "two", &[&gives(48, 6, "(call $hand_over (i32.const 0) (i32.const 4))"), &told]);
    guest(&folder, "late", &[&gives(24, 4, "(call $respond (i32.const 242))"), &told]);
    guest(&folder, "gives_up", &[r#"(func (export "on_request") (result i32) (unreachable))"#, &told]);
    let mut config = ["one", "two", "late", "gives_up"].map(|name| policy(name, "")).concat();
    config += &route("/handed", &["one", "two", "late"]);
    config += &route("/answered", &["late", "one"]);
    config += &route("/denied", &["one", "gives_up"]);
    config += "[[route]]\npath = \"/big\"\npolicies = [\"one\"]\ndefault = { respond = { body = \"BIG\" } }\n";
    let big = "b".repeat(4 << 20);
    let daemon = Daemon::start(&folder.path().join("chat.sock"), "seqpacket", "serve", &[]);
    let gateway = start(folder, &config.replace("BIG", &big));
    let told = |policy: &str, count: usize| {
        eventually(&format!("{policy} was told"), || Some(said_by(&gateway, policy)).filter(|said| said.len() == count))
    };

    assert!(gateway.ask("GET /handed HTTP/1.1\r\nHost: x\r\n\r\n").ends_with("from daemon\n"));
    assert_eq!(told("one", 3), ["handed-off", "chat", "first"]);
    assert_eq!(told("two", 3), ["handed-off", "chat", "second"]);
    assert!(said_by(&gateway, "late").is_empty(), "it was not asked");

    assert_eq!(gateway.status("/answered"), 242);
    assert_eq!(told("late", 2), ["responded", "tick"]);

    assert_eq!(gateway.status("/denied"), 503);
    assert_eq!(told("one", 5)[3..], ["policy-error", "first"]);
    assert_eq!(told("gives_up", 2), ["policy-error", ""], "it was asked, and gave nothing along");

    drop(daemon);
    assert_eq!(gateway.status("/handed"), 503);
    assert_eq!(told("two", 6)[3..], ["refused", "chat", "second"]);
    assert_eq!(told("one", 8)[5..], ["refused", "chat", "first"]);

    let mut client = gateway.client();
    client.get("/big");
    client.until("bbbb");
    drop(client);
    assert_eq!(told("one", 10)[8..], ["client-gone", "first"]);
}

#[test]
fn without_an_access_log_the_end_is_told_all_the_same() {
    let folder = folder();
    let answers = r#"(func (export "on_request") (result i32) (call $respond (i32.const 242)) (i32.const 1024))"#;
    // Its action if the status, the bytes and the time are those of this request.
    let counted = complete(
        "(if (i32.and (i32.eq (local.get $status) (i32.const 242)) (i32.and (i64.eq (local.get $in) (i64.const 27))
            (i32.and (i64.gt_u (local.get $out) (i64.const 50)) (i64.gt_u (local.get $us) (i64.const 0)))))
            (then (call $say (local.get $action) (local.get $action_length)))
            (else (call $say (i32.const 16) (i32.const 4))))",
    );
    guest(&folder, "told", &[answers, &counted]);
    let config = policy("told", "") + &route("/", &["told"]) + "# access_log = is not there\n";
    let gateway = start(folder, &config);
    assert_eq!(gateway.status("/"), 242);
    let told = eventually("it was told", || Some(said_by(&gateway, "told")).filter(|said| !said.is_empty()));
    assert_eq!(told, ["responded"]);
    assert!(!gateway.path("access.log").exists());
}

#[test]
fn a_complete_hook_that_fails_is_nobodys_matter_but_the_logs() {
    let folder = folder();
    for (name, body) in [("traps", "(unreachable)"), ("spins", "(call $spin)")] {
        let answers = r#"(func (export "on_request") (result i32) (call $respond (i32.const 242)) (i32.const 1024))"#;
        guest(&folder, name, &[answers, &complete(body)]);
    }
    let breaker = "breaker = { failures = 3, within = \"60s\", pause = \"60s\" }";
    let config: String = ["traps", "spins"].map(|n| policy(n, breaker) + &route(&format!("/{n}"), &[n])).concat();
    let gateway = start(folder, &config);
    for name in ["traps", "spins"] {
        let mut client = gateway.client();
        for _ in 0..20 {
            client.get(&format!("/{name}"));
            assert_eq!(client.answer().status, 242, "{name}");
        }
        let opened = ["breaker opened", &format!("policy={name}"), "hook=\"on-complete\"", "generation=1"];
        gateway.stderr.wait(0, &opened);
        let said = failures_of(&gateway, name, "on-complete");
        // The one that opened it is said when it has.
        assert!(matches!(said.len(), 2 | 3), "{said:#?}");
        assert!(said.iter().all(|line| line.contains("request=01") && line.contains("generation=1")), "{said:#?}");
    }
}

#[test]
fn what_drains_waits_for_complete_hooks() {
    let folder = folder();
    let answers = r#"(func (export "on_request") (result i32) (call $respond (i32.const 242)) (i32.const 1024))"#;
    guest(&folder, "told", &[answers, &complete(COMPLETES)]);
    let mut gateway = start(folder, &(policy("told", "") + &route("/", &["told"])));
    let mut clients: Vec<_> = (0..20).map(|_| gateway.client()).collect();
    clients.iter_mut().for_each(|client| client.get("/"));
    gateway.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(clients.iter_mut().all(|client| client.answer().status == 242));
    drop(clients);
    assert!(gateway.wait().success());
    let told = eventually("all were told", || Some(said_by(&gateway, "told")).filter(|said| said.len() == 40));
    assert!(told.chunks(2).all(|pair| pair == ["responded", ""]), "{told:?}");
}

// === Ticks ===

/// `configure` that asks for ticks every so many milliseconds.
fn ticks(ms: u32, hook: &str) -> String {
    // result<requirements, list<string>>: the tag at 2048; max-reuse, interval and targets behind it.
    format!(
        r#"(func (export "configure") (param i32 i32) (result i32)
            (i32.store (i32.const 2052) (i32.const 1000)) (i32.store (i32.const 2056) (i32.const {ms})) (i32.const 2048))
           (func (export "on_tick") {hook})"#
    )
}

#[test]
fn ticks_go_on_under_load_and_end_with_their_generation() {
    let folder = folder();
    let says = |offset: u32, length: u32| ticks(20, &format!("(call $say (i32.const {offset}) (i32.const {length}))"));
    guest(&folder, "ticks", &[PASSES, &says(24, 4)]);
    let config = policy("ticks", "") + "[[route]]\npath = \"/\"\npolicies = [\"ticks\"]\ndefault = { respond = {} }\n";
    let gateway = start(folder, &config);
    let mut client = gateway.client();
    let count = |word: &str| said_by(&gateway, "ticks").iter().filter(|said| *said == word).count();
    let mut requests = 0;
    eventually("ten ticks under load", || {
        client.get("/");
        assert_eq!(client.answer().status, 200);
        requests += 1;
        (count("tick") >= 10).then_some(())
    });
    assert!(requests >= 10, "{requests}");
    guest(&gateway.folder, "ticks", &[PASSES, &says(48, 6)]);
    gateway.stderr.wait(0, &["policy reloaded", "policy=\"ticks\""]);
    let old = eventually("the new one ticks", || (count("second") >= 2).then(|| count("tick")));
    eventually("it goes on", || (count("second") >= 8).then_some(()));
    assert_eq!(count("tick"), old, "the old one has ended");
    // Away with the policy: then nobody ticks.
    let before = gateway.reload(&format!("{BASIS}LISTEN"));
    gateway.stderr.wait(before, &["configuration reloaded"]);
    let threads = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", gateway.child.id())).expect("it runs").flatten();
        tasks
            .filter(|t| fs::read_to_string(t.path().join("comm")).is_ok_and(|name| name.trim() == "policy-tick"))
            .count()
    };
    eventually("its thread ends", || (threads() == 0).then_some(()));
}

#[test]
fn a_tick_that_fails_costs_an_instance_and_a_line_and_becomes_rare() {
    let folder = folder();
    guest(&folder, "traps", &[PASSES, &ticks(10, "(unreachable)")]);
    // The third call of an instance fails: it has lost its memory then.
    let third = "(global.set $calls (i32.add (global.get $calls) (i32.const 1)))
        (if (i32.eq (global.get $calls) (i32.const 3)) (then (unreachable))) (call $say (i32.const 24) (i32.const 4))";
    guest(&folder, "third", &["(global $calls (mut i32) (i32.const 0))", PASSES, &ticks(10, third)]);
    let gateway = start(folder, &[policy("traps", ""), policy("third", ""), route("/", &["traps"])].concat());
    eventually("it goes on", || (said_by(&gateway, "third").len() >= 6).then_some(()));
    let said = failures_of(&gateway, "traps", "on-tick");
    assert!(said.len() == 1 && said[0].contains("generation=1") && said[0].contains("trap: "), "{said:#?}");
    assert!(failures_of(&gateway, "third", "on-tick").len() >= 2, "said again when it had worked in between");
    assert_eq!(gateway.status("/"), 404, "requests do not care");
}

#[test]
fn ticks_that_are_too_frequent_refuse_the_module() {
    let folder = folder();
    let file = folder.path().join("baton.toml");
    let check = |ms| {
        guest(&folder, "ticks", &[PASSES, &ticks(ms, "")]);
        let toml = format!("[[listener]]\naddress = \"127.0.0.1:0\"\n{}", policy("ticks", ""));
        fs::write(&file, toml.replace("DIR", &folder.path().display().to_string())).expect("written");
        let output = support::baton().args(["check", "-c"]).arg(&file).output().expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(check(10).0, Some(0));
    let (code, said) = check(9);
    assert_eq!(code, Some(64));
    assert!(said.contains("requires a tick every 9 ms; 10 ms is the shortest interval"), "{said}");
}

// === The breaker ===

#[test]
fn a_policy_that_fails_too_often_is_not_asked_for_a_while_and_then_once() {
    let folder = folder();
    // Says `tick` and then fails where the request has x-fail.
    let hook = r#"(func (export "on_request") (result i32)
        (call $say (i32.const 24) (i32.const 4))
        (call $header (i32.const 32) (i32.const 6) (i32.const 512))
        (if (i32.load8_u (i32.const 512)) (then (unreachable)))
        (call $respond (i32.const 242)) (i32.const 1024))"#;
    let mut config = String::new();
    for on_error in ["deny", "pass"] {
        guest(&folder, on_error, &[hook]);
        let breaker = "breaker = { failures = 3, within = \"60s\", pause = \"1s\" }";
        config += &policy(on_error, &format!("on_error = \"{on_error}\"\n{breaker}"));
        config += &format!(
            "[[route]]\npath = \"/{on_error}\"\npolicies = [\"{on_error}\"]\ndefault = {{ respond = {{ status = 299 }} }}\n"
        );
    }
    let gateway = start(folder, &config);
    let ask = |path: &str, field: &str| {
        let mut client = gateway.client();
        client.send(format!("GET /{path} HTTP/1.1\r\nHost: x\r\n{field}\r\n"));
        client.answer().status
    };
    for (name, otherwise) in [("deny", 503), ("pass", 299)] {
        let asked = || said_by(&gateway, name).len();
        assert_eq!(
            [ask(name, "X-Fail: 1\r\n"), ask(name, "X-Fail: 1\r\n"), ask(name, "")],
            [otherwise, otherwise, 242]
        );
        assert_eq!(ask(name, "X-Fail: 1\r\n"), otherwise, "the third failure");
        let began = Instant::now();
        let opened = ["ERROR", "breaker opened", &format!("policy={name} "), "is not asked for 1s"];
        gateway.stderr.wait(0, &opened);
        let before = asked();
        let status = ask(name, "");
        if began.elapsed() < Duration::from_secs(1) {
            assert_eq!((status, asked()), (otherwise, before), "nobody asked it");
            let said = "not asked: the breaker is open after too many failures";
            let is_it = |line: &Value| text(line, "policy") == name && text(line, "error") == said;
            eventually("it is said of the request", || gateway.log().iter().any(is_it).then_some(()));
        }
        // The trial fails, and there is another pause; the next trial does not.
        eventually("a trial", || {
            ask(name, "X-Fail: 1\r\n");
            (asked() > before).then_some(())
        });
        let is_opening = |line: &&String| opened.iter().all(|word| line.contains(word));
        eventually("it opens again", || (gateway.stderr.all().iter().filter(is_opening).count() == 2).then_some(()));
        eventually("a trial that succeeds", || (ask(name, "") == 242).then_some(()));
        gateway.stderr.wait(0, &["INFO", "breaker closed", &format!("policy={name} ")]);
        assert_eq!([ask(name, ""), ask(name, "X-Fail: 1\r\n"), ask(name, "")], [242, otherwise, 242]);
        // A line for each failure; who was not asked has another one.
        let count = || failures_of(&gateway, name, "on-request").len();
        eventually("five failures", || (count() >= 5).then_some(()));
        assert_eq!(count(), 5);
    }
}

// === Nothing is left ===

#[test]
fn ten_thousand_requests_with_failing_hooks_leave_nothing_behind() {
    let folder = folder();
    let traps = "(unreachable)";
    guest(&folder, "fails", &[TO_CHAT, &failed(traps), &complete(traps)]);
    guest(&folder, "denies", &[r#"(func (export "on_request") (result i32) (unreachable))"#, &complete(traps)]);
    let off = "breaker = { failures = 0 }";
    let config =
        [policy("fails", off), policy("denies", off), route("/fails", &["fails"]), route("/denies", &["denies"])];
    let toml = format!("{BASIS}{}LISTEN", config.concat());
    let gateway = Gateway::start_in(folder, &toml, |command| command.args(["--log-level", "off"]));
    let mut client = gateway.client();
    let mut ask = |path: &str| {
        client.get(path);
        assert_eq!(client.answer().status, 503);
    };
    (0..100).for_each(|_| ["/fails", "/denies"].into_iter().for_each(&mut ask));
    let (before, memory) = (gateway.ledger(), gateway.resident_bytes());
    (0..5000).for_each(|_| ["/fails", "/denies"].into_iter().for_each(&mut ask));
    gateway.ledger_is(&before);
    let after = gateway.resident_bytes();
    assert!(after < memory + (32 << 20), "{memory} to {after} bytes");
}
