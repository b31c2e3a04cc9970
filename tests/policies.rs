//! Policies through the gateway: what they decide is what clients and daemons get, and what they do wrong stays theirs.
//!
//! Guests are those of `tests/policies`, the shipped policies those that `policies/build` has made. One worker each, so
//! that it is known which instance is asked.
#![cfg(feature = "gateway")]

mod support;

use std::fs;
use std::net::Shutdown;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::shipped::{cases, files, json, shipped, toml};
use support::{Answer, Daemon, Gateway, baton, compile, eventually, folder};
use tempfile::TempDir;

/// Where a guest stands.
fn guest(name: &str) -> String {
    format!("{}/tests/policies/{name}.wat", env!("CARGO_MANIFEST_DIR"))
}

/// A policy of the configuration, and a route of its name that it decides; `rest` are further keys of it.
fn policy(name: &str, module: &str, rest: &str) -> String {
    format!(
        "[policy.{name}]\nmodule = \"{module}\"\ntargets = [\"chat\"]\n{rest}\n\
         [[route]]\npath = \"/{name}\"\npolicies = [\"{name}\"]\ndefault = {{ respond = {{ status = 299 }} }}\n"
    )
}

/// What every configuration here has: one worker, a target `chat`, and a policy that answers 231.
fn basis() -> String {
    let ok = policy("ok", &guest("answers"), "");
    format!("[gateway]\nworkers = 1\n[target.chat]\nsockets = [\"DIR/chat.sock\"]\n{ok}")
}

fn start(policies: &str) -> Gateway {
    start_in(folder(), policies)
}

fn start_in(folder: TempDir, policies: &str) -> Gateway {
    Gateway::start_in(folder, &format!("{}{policies}LISTEN", basis()), |command| command)
}

/// Answers on one connection, in order.
fn statuses(gateway: &Gateway, path: &str, count: usize) -> Vec<u16> {
    let mut client = gateway.client();
    let ask = |_| {
        client.get(path);
        client.answer().status
    };
    (0..count).map(ask).collect()
}

fn text<'a>(line: &'a Value, key: &str) -> &'a str {
    line[key].as_str().unwrap_or_default()
}

/// Lines of the log that are about a request.
fn said_of(gateway: &Gateway, line: &Value) -> Vec<String> {
    let id = text(line, "id");
    assert_eq!(id.len(), 26, "{line}");
    // The log has a thread of its own.
    eventually("a line about the request", || gateway.stderr.all().iter().any(|l| l.contains(id)).then_some(()));
    gateway.stderr.all().into_iter().filter(|l| l.contains(id)).collect()
}

// === The shipped policies ===

/// The same policy in every language.
const SHIPPED: [&str; 7] = [
    "bearer-rust",
    "bearer-rust-wasip2",
    "bearer-assemblyscript",
    "bearer-go",
    "bearer-c",
    "bearer-javascript",
    "bearer-python",
];

/// What a policy needs beyond the defaults, as `policies/README.md` says.
fn limits(module: &str) -> &'static str {
    match module {
        // A token of 8 kB is hashed by an interpreter.
        "bearer-javascript" => "deadline = \"100ms\"\n",
        "bearer-python" => "deadline = \"100ms\"\nmemory_max = \"64MiB\"\nconfigure_deadline = \"20s\"\n",
        _ => "",
    }
}

fn bearer(module: &str, config: &Value) -> String {
    let limits = limits(module);
    let module = shipped(module).display().to_string();
    let config = toml(config);
    format!(
        "[policy.auth]\nmodule = \"{module}\"\n{limits}config = {config}\n[[route]]\npath = \"/\"\npolicies = [\"auth\"]\n"
    )
}

#[test]
fn shipped_policies_answer_every_case_on_the_wire() {
    let config = json(&cases("bearer").join("config.json"));
    for module in SHIPPED {
        let folder = folder();
        let daemon = Daemon::start(&folder.path().join("chat.sock"), "seqpacket", "serve", &[]);
        let toml = format!("{}{}LISTEN", basis(), bearer(module, &config));
        compile(&toml, &folder);
        // Everything that the program can say of itself.
        let gateway = Gateway::start_in(folder, &toml, |c| c.args(["--log-level", "info,baton=trace,policy=trace"]));
        let (mut handed_over, mut tokens) = (0, Vec::new());
        for (at, file) in files(&cases("bearer"), "http").iter().enumerate() {
            let name = format!("{module}: {}", file.file_stem().expect("a name").display());
            let (request, expected) = (fs::read(file).expect("a case"), json(&file.with_extension("json")));
            let mut client = gateway.client();
            client.send(&request);
            if expected["action"] == "respond" {
                let answer = client.answer();
                assert_eq!(answer.status, expected["status"], "{name}");
                // Authorization is said once: the gateway refuses such a request itself.
                if request.windows(15).filter(|field| field == b"\nAuthorization:").count() > 1 {
                    assert_eq!(answer.header("connection"), Some("close"), "{name}");
                    continue;
                }
                for (header, value) in expected["headers"].as_object().expect("headers") {
                    assert_eq!(answer.header(header), value.as_str(), "{name}: {header}");
                }
                assert_eq!(answer.body, expected["body"], "{name}");
            } else {
                handed_over += 1;
                let got = daemon.wait("got", handed_over);
                assert_eq!(got["data"], expected["data"], "{name}");
                assert_eq!(got["port"], client.port(), "{name}");
                assert!(client.rest().ends_with("\r\n\r\nfrom daemon\n"), "{name}");
            }
            let line = gateway.log_line(at + 1);
            let annotations = expected.get("annotations").cloned().unwrap_or_else(|| serde_json::json!({}));
            assert_eq!((&line["annotations"], &line["decision"]), (&annotations, &expected["action"]), "{name}");
            assert_eq!((text(&line, "policy"), &line["generation"]), ("auth", &1.into()), "{name}");
            let own = authorizations(&request);
            assert!(own.iter().all(|token| !line.to_string().contains(token)), "{name}: {line}");
            tokens.extend(own);
        }
        assert_eq!(
            daemon.events("got").len(),
            handed_over,
            "{module}: nobody was handed over who should not have been"
        );
        assert!(handed_over > 10 && tokens.len() > 20, "{handed_over} {tokens:?}");
        gateway.stderr.wait(0, &["configured", "policy=\"auth\"", "generation=1", "realm=demo"]);
        // Neither a token, nor a key of the configuration, nor what the daemon was told.
        let keys = config["tokens"].as_object().expect("tokens").keys().map(String::as_str);
        let data = "\\\"method\\\":";
        let access_log = fs::read_to_string(gateway.path("access.log")).expect("written");
        for secret in keys.chain([data]) {
            assert!(!access_log.contains(secret), "{module}: {secret} in the access log");
            tokens.push(secret.to_owned());
        }
        let said = gateway.stderr.all().join("\n");
        let told: Vec<_> = tokens.iter().filter(|secret| said.contains(secret.as_str())).collect();
        assert!(told.is_empty(), "{module}: {told:?} in the log");
    }
}

/// What stands in the Authorization fields of a request, word by word, as far as it is long enough to be recognized.
fn authorizations(request: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(request);
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    let values = fields.filter(|(name, _)| name.eq_ignore_ascii_case("authorization")).map(|(_, value)| value);
    let words = values.flat_map(str::split_whitespace).filter(|word| word.len() > 8 && word.is_ascii());
    words.map(str::to_owned).collect()
}

#[test]
fn check_refuses_every_faulty_configuration_of_the_shipped_policies_with_each_fault() {
    let folder = folder();
    let file = folder.path().join("baton.toml");
    let listener = "[[listener]]\naddress = \"127.0.0.1:0\"\n[target.chat]\nsockets = [\"/run/chat.sock\"]\n";
    let check = |config: &str| {
        fs::write(&file, format!("{listener}{config}")).expect("written");
        let output = baton().args(["check", "-c"]).arg(&file).output().expect("it runs");
        (
            output.status.code(),
            String::from_utf8(output.stdout).expect("text") + &String::from_utf8_lossy(&output.stderr),
        )
    };
    for module in SHIPPED {
        for case in files(&cases("bearer").join("refused"), "json") {
            let name = format!("{module}: {}", case.file_stem().expect("a name").display());
            let case = json(&case);
            let (code, said) = check(&bearer(module, &case["config"]));
            assert_eq!(code, Some(64), "{name}: {said}");
            let faults: Vec<_> = case["faults"].as_array().expect("faults").iter().filter_map(Value::as_str).collect();
            let expected = format!("baton.toml:6: policy.auth.module: {}", shipped(module).display());
            assert!(said.contains(&expected), "{name}: {said}");
            assert!(said.contains(&format!(": configure: {}\n", faults.join("; "))), "{name}: {said}");
        }
        let (code, said) = check(&bearer(module, &json(&cases("bearer").join("config.json"))));
        // What the policy itself has to say in its `configure` is the policy's.
        let own: Vec<_> = said.lines().filter(|line| !line.contains("INFO configured realm=demo")).collect();
        assert_eq!((code, own), (Some(0), vec![]), "{module}");
    }
}

// === Containment ===

/// Guests that fail, and what is said of it.
const FAILING: [(&str, &str); 11] = [
    ("spins", "deadline of 20ms exceeded at decide"),
    ("eats_memory", "trap: wasm `unreachable` instruction executed (memory_max of 33554432 bytes was reached"),
    ("traps", "trap: wasm `unreachable` instruction executed at give_up < decide"),
    ("recurses", "trap: call stack exhausted at dig < dig"),
    ("giant", "bad value: the decision is larger than 1048576 bytes (decision_bytes_max)"),
    ("bad_status", "bad value: status 999 is outside 200 to 599"),
    ("splits", "bad value: value of field x-a contains a control character"),
    ("bad_text", "bad value: invalid utf-8"),
    ("proxies", "bad value: path-and-query"),
    ("escapes", "is no token"),
    ("no_case", "bad value: "),
];

#[test]
fn whatever_a_policy_does_wrong_is_answered_by_on_error_and_costs_nobody_else_anything() {
    let mut config = String::new();
    for (name, _) in FAILING {
        config += &policy(name, &guest(name), "deadline = \"20ms\"");
        config += &policy(&format!("{name}-pass"), &guest(name), "deadline = \"20ms\"\non_error = \"pass\"");
    }
    let gateway = start(&config);
    let mut lines = 0;
    let mut ask = |path: &str| {
        let status = gateway.status(path);
        lines += 1;
        (status, gateway.log_line(lines))
    };
    for (name, reason) in FAILING {
        for (policy, expected) in
            [(name.to_owned(), (503, "policy-error")), (format!("{name}-pass"), (299, "responded"))]
        {
            // The same policy is asked again: what failed is not in the way of the next request.
            for _ in 0..2 {
                let (status, line) = ask(&format!("/{policy}"));
                assert_eq!((status, text(&line, "outcome")), expected, "{policy}: {line}");
                assert_eq!((text(&line, "policy"), &line["generation"]), (&*policy, &1.into()), "{line}");
                assert_eq!(line["decision"], Value::Null, "{policy}: it decided nothing: {line}");
                assert!(text(&line, "error").contains(reason), "{policy}: {line}");
                let said = said_of(&gateway, &line);
                assert_eq!(said.len(), 1, "{policy}: {said:#?}");
                for word in ["WARN policy failed", &format!("policy={policy} generation=1 request="), reason] {
                    assert!(said[0].contains(word), "{policy}: no {word:?} in {said:#?}");
                }
            }
            let (status, line) = ask("/ok");
            assert_eq!((status, line["error"].is_null()), (231, true), "after {policy}: {line}");
            assert!(gateway.stderr.all().iter().all(|l| !l.contains(text(&line, "id"))), "{line}");
        }
    }
    let all = gateway.stderr.all();
    assert!(all.iter().all(|line| !line.chars().any(char::is_control)), "{all:#?}");
    let escaped = all.iter().find(|line| line.contains("policy=escapes ")).expect("said above");
    assert!(escaped.contains(r"\\r\\n\\u{1b}[31mred"), "{escaped}");
}

#[test]
fn memory_stays_bounded_whatever_a_policy_takes() {
    let gateway = start(&policy("eats_memory", &guest("eats_memory"), "deadline = \"1s\""));
    let warm = statuses(&gateway, "/eats_memory", 5);
    let before = gateway.resident_bytes();
    assert_eq!((warm, statuses(&gateway, "/eats_memory", 40)), (vec![503; 5], vec![503; 40]));
    // One instance may have its 32 MiB while it is asked; 40 of them would have more than a gigabyte.
    let after = gateway.resident_bytes();
    assert!(after < before + (64 << 20), "{before} to {after} bytes");
}

#[test]
fn a_trap_after_a_log_line_is_not_repeated_and_a_flood_is_cut() {
    let gateway = start(&policy("logs", &guest("logs"), "deadline = \"1s\"\nlog_lines_per_second = 5"));
    // It writes 1,000 lines and passes; the second call of an instance writes them and traps; then comes a new instance.
    let got = statuses(&gateway, "/logs", 4);
    assert_eq!(got, [299, 503, 299, 503]);
    let line = gateway.log_line(2);
    let is_failure = |l: &&String| l.contains("policy failed");
    assert_eq!(said_of(&gateway, &line).iter().filter(is_failure).count(), 1);
    let all = gateway.stderr.all();
    let own: Vec<_> = all.iter().filter(|line| line.contains("first")).collect();
    // Four requests take seconds only on a machine that stands still, and each second has its five.
    assert!((5..=50).contains(&own.len()), "{}", own.len());
    assert!(own.iter().all(|l| l.contains(r"first\r\nsecond\u{1b}[31m") && l.contains("request=01")), "{own:#?}");
    assert!(all.iter().all(|line| !line.chars().any(char::is_control)), "{all:#?}");
    assert_eq!(gateway.status("/ok"), 231);
    // How many were left out is said with the first line of a later second.
    let words = ["lines left out: more than 5 in a second", "policy=\"logs\" generation=1"];
    eventually("what was left out", || {
        gateway.status("/logs");
        gateway.stderr.all().iter().any(|line| words.iter().all(|word| line.contains(word))).then_some(())
    });
}

#[test]
fn while_a_policy_loops_others_wait_no_longer_than_its_deadline() {
    const ROUNDS: usize = 30;
    let gateway = start(&policy("spins", &guest("spins"), "deadline = \"20ms\""));
    let mut looping = gateway.client();
    let mut other = gateway.client();
    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        // Both are there at once, on one worker.
        looping.get("/spins");
        let began = Instant::now();
        other.get("/ok");
        assert_eq!(other.answer().status, 231);
        took.push(began.elapsed());
        assert_eq!(looping.answer().status, 503);
    }
    took.sort();
    // The deadline counts the guest's own time, and others may have the processor; the loop alone would last for ever.
    assert!(took[ROUNDS / 2] < Duration::from_millis(200), "{took:?}");
    assert!(took[ROUNDS - 1] < Duration::from_secs(2), "{took:?}");
}

#[test]
fn targets_that_a_policy_cannot_name_are_403() {
    let folder = folder();
    let other = folder.path().join("other.sock");
    let daemon = Daemon::start(&other, "seqpacket", "serve", &[]);
    // Text without a toolchain: the same guest with another target of five letters.
    let named = |name: &str, target: &str| {
        let text = fs::read_to_string(guest("hands_over")).expect("a guest");
        let text = text.replace("\"chatx-data\"", &format!("\"{target}x-data\""));
        assert!(text.contains(target));
        fs::write(folder.path().join(format!("{name}.wat")), text).expect("written");
    };
    named("unknown", "nope");
    named("forbidden", "fora");
    named("path", "/etc");
    let mut config = format!("[target.fora]\nsockets = [\"{}\"]\n", other.display());
    for (name, keys) in [("unknown", ""), ("path", ""), ("forbidden", "targets = [\"chat\"]")] {
        config += &format!("[policy.{name}]\nmodule = \"DIR/{name}.wat\"\non_error = \"pass\"\n{keys}\n");
        config += &format!("[[route]]\npath = \"/{name}\"\npolicies = [\"{name}\"]\n");
    }
    let gateway = start_in(folder, &config);
    for (at, (name, target)) in [("unknown", "nope"), ("forbidden", "fora"), ("path", "/etc")].iter().enumerate() {
        assert_eq!(gateway.status(&format!("/{name}")), 403, "{name}");
        let line = gateway.log_line(at + 1);
        assert_eq!((text(&line, "outcome"), text(&line, "policy")), ("policy-error", *name), "{line}");
        assert_eq!((text(&line, "to"), text(&line, "decision"), &line["attempts"]), (*target, "handoff", &0.into()));
        let said = said_of(&gateway, &line);
        assert!(said.len() == 1 && said[0].contains(target), "{said:#?}");
    }
    assert!(daemon.events("accepted").is_empty(), "nobody was asked");
}

/// The guest in Rust, built as the test runs: one file without dependencies, in half a second.
fn echo(folder: &TempDir) -> String {
    let module = folder.path().join("echo.wasm");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/policies/echo.rs");
    let output = Command::new("rustc")
        .args(["--edition", "2024", "--target", "wasm32-unknown-unknown", "--crate-type", "cdylib", "-O"])
        .args(["-C", "debuginfo=line-tables-only", "-C", "panic=abort"])
        .arg("-o")
        .arg(&module)
        .arg(&source)
        .output()
        .expect("rustc runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "policies/build brings the target: {said}");
    module.display().to_string()
}

#[test]
fn with_debug_information_a_trap_names_function_file_and_line() {
    let folder = folder();
    let module = echo(&folder);
    let gateway = start_in(folder, &policy("panic", &module, "deadline = \"100ms\""));
    assert_eq!(gateway.status("/panic"), 503);
    let line = gateway.log_line(1);
    let source = include_str!("policies/echo.rs");
    let at = source.lines().position(|line| line.contains("panic!(")).expect("it panics") + 1;
    let said = said_of(&gateway, &line);
    assert!(said.len() == 1 && said[0].contains("fall_over"), "{said:#?}");
    assert!(said[0].contains(&format!("echo.rs:{at}")), "no line {at}: {said:#?}");
}

// === What policies see ===

#[test]
fn every_getter_gives_what_was_sent() {
    let folder = folder();
    let module = echo(&folder);
    let config = policy("echo", &module, "deadline = \"100ms\"");
    let gateway = start_in(folder, &config);
    let mut client = gateway.client();
    let head = "POST /echo//a/./b%20c?q=x+%C3%BC&r HTTP/1.1\r\nHost: Example.ORG:8080\r\nX-A: 1\r\nx-b:  \r\nX-a: two \r\n\
                Cookie: a=1; b=2\r\nCookie: b=3\r\nContent-Length: 4\r\n\r\n";
    client.send(format!("{head}body"));
    let answer = client.answer();
    let port = client.port();
    let local = gateway.address();
    let id = text(&gateway.log_line(1), "id").to_owned();
    let raw = "host: Example.ORG:8080\r\nx-a: 1\r\nx-b: \r\nx-a: two\r\ncookie: a=1; b=2\r\ncookie: b=3\r\ncontent-length: 4\r\n";
    let fields: Vec<(&str, &str)> = raw.lines().map(|line| line.split_once(": ").expect("a field")).collect();
    let expected = [
        format!("id={id:?}"),
        "method=\"POST\"".into(),
        "path=\"/echo/a/b%20c\"".into(),
        "request-target=\"/echo//a/./b%20c?q=x+%C3%BC&r\"".into(),
        "query=Some(\"q=x+%C3%BC&r\")".into(),
        "authority=\"example.org:8080\"".into(),
        "scheme=\"http\"".into(),
        "version=\"1.1\"".into(),
        "route=Some(\"/echo\")".into(),
        "param=None".into(),
        "header=Some(\"1\")".into(),
        "header-absent=None".into(),
        "header-all=[\"1\", \"two\"]".into(),
        "header-many=[Some(\"\"), None, Some(\"1\")]".into(),
        format!("headers={fields:?}"),
        format!("headers-raw={raw:?}"),
        "cookie=Some(\"2\")".into(),
        "query-param=Some(\"x ü\")".into(),
        format!("peer=(\"127.0.0.1\", {port})"),
        "client-ip=\"127.0.0.1\"".into(),
        format!("local-address=\"{local}\""),
        "listener=\"http\"".into(),
        "tls=0".into(),
        "client-certificate=None".into(),
        "passability=\"direct\"".into(),
        "content-length=Some(4)".into(),
    ];
    assert_eq!(answer.body.lines().collect::<Vec<_>>(), expected);

    // The smallest request, and a chunked one: what is absent is absent.
    client.get("/echo");
    let answer = client.answer();
    let line = |answer: &Answer, name: &str| {
        let found = answer.body.lines().find_map(|line| line.strip_prefix(&format!("{name}=")));
        found.expect(name).to_owned()
    };
    let asked = ["query", "cookie", "query-param", "header-all", "content-length"].map(|name| line(&answer, name));
    assert_eq!(asked, ["None", "None", "None", "[]", "Some(0)"]);
    client.send("POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    assert_eq!(line(&client.answer(), "content-length"), "None");
    client.send("GET /echo HTTP/1.0\r\n\r\n");
    let answer = client.answer();
    assert_eq!([line(&answer, "version"), line(&answer, "authority")], ["\"1.0\"", "\"\""]);
}

#[test]
fn a_unix_clients_credentials_are_seen() {
    use std::io::{Read as _, Write as _};
    let folder = folder();
    let module = echo(&folder);
    let unix = "[[listener]]\nname = \"local\"\naddress = \"unix:DIR/http.sock\"\n";
    let gateway = start_in(folder, &(policy("echo", &module, "deadline = \"100ms\"") + unix));
    let mut client = std::os::unix::net::UnixStream::connect(gateway.path("http.sock")).expect("it listens");
    client.write_all(b"GET /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("written");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an answer");
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let expected = [
        format!("peer=({uid}, {gid}, Some({}))", std::process::id()),
        format!("client-ip=\"unix:{uid}\""),
        format!("local-address=\"{}\"", gateway.path("http.sock").display()),
        "listener=\"local\"".into(),
    ];
    for line in expected {
        assert!(answer.lines().any(|l| l == line), "no {line} in {answer}");
    }
}

// === The chain ===

fn route(path: &str, policies: &[&str], default: &str) -> String {
    format!("[[route]]\npath = \"{path}\"\npolicies = {policies:?}\n{default}\n")
}

#[test]
fn policies_are_asked_in_order_until_one_decides() {
    let folder = folder();
    let module = echo(&folder);
    let mut config = String::new();
    for name in ["passes", "edits", "frames", "traps", "counts"] {
        config += &policy(name, &guest(name), "on_error = \"pass\"");
    }
    config += &policy("echo", &module, "deadline = \"100ms\"");
    config += &route("/edited", &["edits", "passes", "echo"], "");
    config += &route("/first", &["passes", "ok", "counts"], "");
    config +=
        &route("/default", &["passes", "passes"], "default = { respond = { status = 298, body = \"all passed\" } }");
    config += &route("/none", &["edits", "passes"], "");
    config += &route("/annotated", &["edits", "frames"], "");
    config += &route("/over", &["traps", "ok"], "");
    let gateway = start_in(folder, &config);
    let mut client = gateway.client();

    client.send(
        "GET /edited HTTP/1.1\r\nHost: x\r\nX-Secret: s\r\nx-list: first\r\nX-USER: mallory\r\nx-secret: t\r\n\r\n",
    );
    let answer = client.answer();
    let seen = answer.body.lines().find(|line| line.starts_with("headers-raw=")).expect("all fields");
    assert_eq!(seen, r#"headers-raw="host: x\r\nx-list: first\r\nx-user: alice\r\nx-list: last\r\n""#);
    let line = gateway.log_line(1);
    assert_eq!((text(&line, "policy"), text(&line, "decision")), ("echo", "respond"), "{line}");
    assert_eq!(line["annotations"], serde_json::json!({"team": "b"}), "the last value of a key wins");
    assert!(
        line["decide_us"].as_u64().is_some_and(|us| us > 0 && us <= line["duration_us"].as_u64().unwrap_or(0)),
        "{line}"
    );

    client.get("/first");
    assert_eq!(client.answer().status, 231);
    let line = gateway.log_line(2);
    assert_eq!((text(&line, "policy"), text(&line, "route")), ("ok", "/first"), "{line}");
    assert_eq!(statuses(&gateway, "/counts", 1), [200], "it was not asked before");

    client.get("/default");
    let answer = client.answer();
    assert_eq!((answer.status, &*answer.body), (298, "all passed"));
    let line = gateway.log_line(4);
    assert_eq!((text(&line, "policy"), text(&line, "decision")), ("passes", "pass"), "{line}");
    client.get("/none");
    assert_eq!(client.answer().status, 404);
    let line = gateway.log_line(5);
    assert_eq!((text(&line, "policy"), text(&line, "decision"), &line["status"]), ("passes", "pass", &404.into()));
    assert_eq!(line["annotations"], serde_json::json!({"team": "b"}), "{line}");

    client.get("/annotated");
    assert_eq!(client.answer().body, "body");
    assert_eq!(gateway.log_line(6)["annotations"], serde_json::json!({"team": "c"}));
    client.get("/over");
    assert_eq!(client.answer().status, 231, "one that fails and may be passed over does not end the chain");
    let line = gateway.log_line(7);
    assert_eq!((text(&line, "policy"), text(&line, "decision"), &line["generation"]), ("ok", "respond", &1.into()));
}

#[test]
fn an_answers_framing_is_the_gateways_and_the_connection_goes_on() {
    let gateway = start(&policy("frames", &guest("frames"), ""));
    let mut client = gateway.client();
    for _ in 0..2 {
        client.get("/frames");
        let answer = client.answer();
        let names: Vec<_> = answer.head.lines().skip(1).filter_map(|line| line.split_once(':')).collect();
        let all = |name: &str| names.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).count();
        assert_eq!([all("content-length"), all("transfer-encoding"), all("connection"), all("x-kept")], [1, 0, 0, 1]);
        assert_eq!(
            (answer.header("content-length"), answer.header("x-kept"), &*answer.body),
            (Some("4"), Some("yes"), "body")
        );
    }
}

#[test]
fn an_abort_closes_without_a_byte() {
    let gateway = start(&policy("aborts", &guest("aborts"), ""));
    assert_eq!(gateway.ask("GET /aborts HTTP/1.1\r\nHost: x\r\n\r\n"), "");
    let line = gateway.log_line(1);
    assert_eq!((text(&line, "outcome"), text(&line, "decision"), &line["bytes_out"]), ("aborted", "abort", &0.into()));
    assert_eq!(line["status"], Value::Null);
    assert_eq!(gateway.status("/ok"), 231);
}

// === The beginning of a body ===

const LONG: &str = "0123456789abcdefghijklmnopqrstuvwxyzABCD";

#[test]
fn a_body_is_shown_decoded_and_belongs_to_whoever_answers() {
    let gateway = start(&policy("reads", &guest("reads_body"), ""));
    let mut client = gateway.client();
    let post = |fields: &str, body: &str| format!("POST /reads HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n{body}");
    // Each answer is followed by the next on the same connection: not a byte of a body was taken for a request.
    let asked = [
        (post("Content-Length: 40", LONG), &LONG[..16]),
        (post("Content-Length: 5", "hello"), "hello"),
        (post("Content-Length: 0", ""), ""),
        ("GET /reads HTTP/1.1\r\nHost: x\r\n\r\n".into(), ""),
        (post("Transfer-Encoding: chunked", "3\r\nabc\r\n0\r\n\r\n"), "abc"),
        (
            post("Transfer-Encoding: chunked", "8;x=y\r\n01234567\r\n10\r\n89abcdefghijklmn\r\n0\r\nT: v\r\n\r\n"),
            &LONG[..16],
        ),
    ];
    for (request, expected) in &asked {
        client.send(request);
        let answer = client.answer();
        assert_eq!((answer.status, &*answer.body), (200, *expected), "{request:?}");
    }
    // The same in one piece: the next request's first byte is never shown as the body's last.
    client.send(asked.iter().map(|(request, _)| &**request).collect::<String>());
    for (request, expected) in &asked {
        assert_eq!(client.answer().body, *expected, "{request:?} in a row");
    }
    // And byte by byte, with the body in two halves.
    client.send(post("Content-Length: 40", &LONG[..7]));
    client.send(&LONG[7..]);
    assert_eq!(client.answer().body, &LONG[..16]);
}

#[test]
fn after_a_look_the_daemon_gets_every_byte() {
    let folder = folder();
    let socket = folder.path().join("chat.sock");
    let chunked = format!("28\r\n{LONG}\r\n0\r\n\r\n");
    let next = "GET /pipelined HTTP/1.1\r\nHost: x\r\n\r\n";
    let gateway = start_in(folder, &policy("reads", &guest("reads_then_hands_over"), ""));
    for (at, (fields, body)) in [
        ("Content-Length: 40", LONG.to_owned()),
        ("Transfer-Encoding: chunked", chunked.clone()),
        ("Content-Length: 40", format!("{LONG}{next}")),
    ]
    .into_iter()
    .enumerate()
    {
        let read = format!("read={}", body.len());
        let daemon = Daemon::start(&socket, "seqpacket", "serve", &[&read]);
        let mut client = gateway.client();
        client.send(format!("POST /reads HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n{body}"));
        let got = daemon.wait("got", 1);
        assert_eq!((text(&got, "data"), text(&got, "first")), (&LONG[..16], &*body), "{fields}");
        assert!(client.rest().ends_with("from daemon\n"));
        assert_eq!(text(&gateway.log_line(at + 1), "outcome"), "handed-off");
    }
}

#[test]
fn a_client_that_waits_for_100_gets_it_when_the_body_is_wanted_and_not_before() {
    let folder = folder();
    let socket = folder.path().join("chat.sock");
    let daemon = Daemon::start(&socket, "seqpacket", "serve", &["read=40"]);
    let gateway = start_in(folder, &policy("reads", &guest("reads_then_hands_over"), ""));
    let head =
        |path: &str| format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\nExpect: 100-continue\r\n\r\n");
    let mut client = gateway.client();
    client.send(head("/reads"));
    assert_eq!(client.until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
    assert!(daemon.events("accepted").is_empty(), "it waits for the body");
    client.send(LONG);
    let got = daemon.wait("got", 1);
    assert_eq!((text(&got, "data"), text(&got, "first")), (&LONG[..16], LONG));
    assert!(client.rest().starts_with("HTTP/1.1 200 OK"), "one 100 and no more");
    let mut client = gateway.client();
    client.send(head("/ok"));
    assert_eq!(client.answer().status, 231, "nobody looks at the body: the answer comes at once");
}

#[test]
fn a_body_that_cannot_be_shown_is_an_error_that_the_policy_sees() {
    const TOO_LARGE: u16 = 500;
    const TIMED_OUT: u16 = 501;
    const CLOSED: u16 = 502;
    const NOT_AVAILABLE: u16 = 503;
    let folder = folder();
    let reads = fs::read_to_string(guest("reads_body")).expect("a guest");
    let much = reads.replace("(call $prefix (i32.const 16)", "(call $prefix (i32.const 100000)");
    assert_ne!(much, reads);
    fs::write(folder.path().join("much.wat"), much).expect("written");
    let much = folder.path().join("much.wat").display().to_string();
    let limits = "[limits]\nbody_timeout = \"300ms\"\n";
    let config = policy("reads", &guest("reads_body"), "") + &policy("much", &much, "memory_max = \"8MiB\"") + limits;
    let gateway = start_in(folder, &config);
    let descriptors = gateway.descriptors();
    let post =
        |path: &str, length: usize| format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");

    let mut client = gateway.client();
    client.send(post("/much", 20 << 10) + &"b".repeat(20 << 10));
    let answer = client.answer();
    assert_eq!(
        (answer.status, answer.body.len()),
        (200, 20 << 10),
        "all of it, when it is shorter than what was asked for"
    );
    client.send(post("/much", 40 << 10) + &"b".repeat(40 << 10));
    assert_eq!(client.answer().status, TOO_LARGE);

    client = gateway.client();
    let began = Instant::now();
    client.send(post("/reads", 40) + "not all");
    assert_eq!(client.answer().status, TIMED_OUT);
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());

    client = gateway.client();
    client.send(post("/reads", 40) + "not all");
    client.stream.shutdown(Shutdown::Write).expect("ours");
    assert_eq!(client.answer().status, CLOSED);

    client = gateway.client();
    client.send("POST /reads HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\n");
    assert_eq!(client.answer().status, NOT_AVAILABLE);

    // One that is gone altogether, in the middle of the policy's call.
    client = gateway.client();
    client.send(post("/reads", 40) + "not all");
    drop(client);
    let line = gateway.log_line(6);
    assert!(["client-gone", "responded"].contains(&text(&line, "outcome")), "{line}");
    assert_eq!(gateway.status("/reads"), 200);
    gateway.ledger_is_back_to(descriptors);
}

#[test]
fn while_a_policy_waits_for_a_body_others_are_served() {
    let gateway = start(&policy("reads", &guest("reads_body"), "deadline = \"50ms\""));
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let mut client = gateway.client();
            client.send("POST /reads HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\n\r\n");
            client
        })
        .collect();
    // On one worker: nobody sits on it while waiting, and the same policy serves others.
    assert_eq!((gateway.status("/ok"), gateway.status("/reads")), (231, 200));
    for mut client in waiting {
        client.send(LONG);
        assert_eq!(client.answer().body, &LONG[..16]);
    }
}

// === Instances ===

#[test]
fn an_instance_serves_as_many_requests_as_it_may() {
    let mut config = String::new();
    for reuse in [0, 1, 3, 1000] {
        config += &policy(&format!("counts-{reuse}"), &guest("counts"), &format!("reuse_max = {reuse}"));
    }
    let gateway = start(&config);
    assert_eq!(statuses(&gateway, "/counts-0", 4), [200; 4], "a fresh one each time");
    assert_eq!(statuses(&gateway, "/counts-1", 4), [200; 4]);
    assert_eq!(statuses(&gateway, "/counts-3", 7), [200, 201, 202, 200, 201, 202, 200]);
    let many = statuses(&gateway, "/counts-1000", 50);
    assert_eq!(many, (200..250).collect::<Vec<_>>());
    // On another connection it is the same instance: it belongs to the worker and not to the client.
    assert_eq!(gateway.status("/counts-1000"), 250);
}

#[test]
fn what_configure_left_is_in_every_instance() {
    // The module wants two requests for each instance; each starts from the memory that configure left.
    let config = policy("configured", &guest("configured"), "config = { realm = \"demo\", max = 3 }");
    let gateway = start(&config);
    let mut client = gateway.client();
    for _ in 0..5 {
        client.get("/configured");
        assert_eq!(client.answer().body, r#"{"max":3,"realm":"demo"}"#);
    }
}
