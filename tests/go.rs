//! Policies in Go: the package `baton` of `policies/go` against the real thing, and the policies that are built on it.
//!
//! `tests/policies/go-everything` asks for everything and decides in every way; it is built here, by the toolchain that
//! `policies/build` uses. What single policies decide is also tested natively, by `go test`.
#![cfg(feature = "gateway")]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use baton::decision::{Action, Decision, Field, RelayMode};
use baton::http::head::{Limits, RequestHead};
use baton::policy::{BodyPort, Engine, Generation, Options, Policy, PolicyError};
use baton::request::{Id, Origin, Peer, Request};
use serde_json::Value;
use support::{Client, Daemon, Gateway, eventually, folder};
use tempfile::TempDir;

static ENGINE: LazyLock<Engine> = LazyLock::new(|| Engine::new(3).expect("an engine"));

/// The guest that is built here, once.
static EVERYTHING: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| build("go-everything"));

fn build(guest: &str) -> (TempDir, PathBuf) {
    let folder = folder();
    let module = folder.path().join("guest.wasm");
    let output = Command::new(go())
        .args(["build", "-buildmode=c-shared", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o"])
        .arg(&module)
        .arg(".")
        .envs([("GOOS", "wasip1"), ("GOARCH", "wasm")])
        .current_dir(root().join("tests/policies").join(guest))
        .output()
        .expect("go runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (folder, module)
}

/// The machine's toolchain, or the one that `policies/build` has brought.
fn go() -> PathBuf {
    let brought = root().join("policies/target/go-toolchain/bin/go");
    if brought.exists() { brought } else { "go".into() }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn shipped(name: &str) -> PathBuf {
    let module = root().join("policies/target").join(name);
    assert!(module.exists(), "{} is not there: run policies/build", module.display());
    module
}

fn options(module: PathBuf, config: Value) -> Options {
    // The machine that runs the tests may be busy with others.
    let (deadline, configure_deadline) = (Duration::from_secs(5), Duration::from_secs(60));
    Options { config, deadline, configure_deadline, reuse_max: u32::MAX, ..Options::new("go", module) }
}

fn load(options: Options) -> Arc<Generation> {
    Policy::load(&ENGINE, options, None).unwrap_or_else(|error| panic!("{error}")).current()
}

/// One generation for all tests: to compile a module takes seconds. The worker says whose instances are used.
static SHARED: LazyLock<Arc<Generation>> =
    LazyLock::new(|| load(options(EVERYTHING.1.clone(), serde_json::json!({ "token": "hush" }))));

fn request(head: &str) -> Arc<Request> {
    let head = RequestHead::parse(head.as_bytes(), Limits::default()).expect("well-formed");
    let peer = Peer::Tcp(SocketAddr::from(([192, 0, 2, 1], 7)));
    let origin = Origin { peer, local: "127.0.0.1:80".into(), listener: "http".into() };
    Arc::new(Request::new(Id::new(), head, Arc::new(origin), None))
}

fn decide(generation: &Generation, path: &str) -> Result<Decision, PolicyError> {
    let request = request(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(generation.on_request(0, &request, &BodyPort::empty()))
}

fn body(generation: &Generation, path: &str) -> String {
    match decide(generation, path).unwrap_or_else(|error| panic!("{path}: {error}")).action {
        Action::Respond(respond) => String::from_utf8(respond.body).expect("text"),
        action => panic!("{path}: {action:?}"),
    }
}

fn field(name: &str, value: &str) -> Field {
    Field { name: name.into(), value: value.as_bytes().to_vec() }
}

#[test]
fn every_decision_arrives_as_it_was_made() {
    let generation = &*SHARED;
    let decision = decide(generation, "/handoff").expect("it decides");
    assert_eq!((&*decision.carry, &decision.annotations), (&b"carried"[..], &vec![("a".into(), "1".into())]));
    let Action::Handoff(handoff) = decision.action else { panic!("no handoff") };
    assert_eq!((&*handoff.target, &*handoff.data, handoff.relay), ("chat", &b"data"[..], RelayMode::Never));
    assert_eq!(handoff.metadata, [("m".to_owned(), "1".to_owned()), ("n".to_owned(), "2".to_owned())]);
    let head = handoff.response_head.expect("a head");
    assert_eq!((head.status, &*head.headers), (207, &[field("x-head", "h")][..]));
    assert_eq!((&*handoff.response_body, handoff.include_head), (&b"beginning"[..], false));
    assert_eq!(
        (handoff.timeout, &*handoff.alternates),
        (Some(Duration::from_millis(2)), &["other", "third"].map(str::to_owned)[..])
    );

    let Action::Handoff(handoff) = decide(generation, "/head").expect("it decides").action else {
        panic!("no handoff")
    };
    assert_eq!((handoff.include_head, handoff.relay, handoff.timeout), (true, RelayMode::Always, None));
    assert!(handoff.data.is_empty() && handoff.response_head.is_none() && handoff.alternates.is_empty());

    let decision = decide(generation, "/pass").expect("it decides");
    let Action::Pass(edits) = decision.action else { panic!("no pass") };
    assert_eq!(edits.remove, ["x-remove"]);
    assert_eq!((&*edits.set, &*edits.append), (&[field("x-set", "s")][..], &[field("x-append", "a")][..]));
    assert_eq!(decision.annotations, [("edited".to_owned(), "yes".to_owned())]);

    assert!(matches!(decide(generation, "/nil").expect("it decides").action, Action::Pass(edits) if edits.is_empty()));
    assert!(matches!(decide(generation, "/abort").expect("it decides").action, Action::Abort));

    let decision = decide(generation, "/many").expect("it decides");
    let Action::Respond(respond) = decision.action else { panic!("no answer") };
    assert_eq!((respond.status, respond.headers.len(), decision.carry.len()), (200, 50, 64 << 10));
    assert_eq!(respond.headers[49], field("x-49", "yyyyyyyy"));
    assert_eq!(decision.annotations[9], ("x-9".to_owned(), "yyyyyyyy".to_owned()));
}

#[test]
fn go_has_clocks_random_numbers_and_goroutines_and_keeps_its_configuration() {
    let generation = &*SHARED;
    assert_eq!(body(generation, "/config"), r#"hush true false false {"token":"hush"}"#);
    let clock = body(generation, "/clock");
    let (now, rest) = clock.split_once(' ').expect("two parts");
    let epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    assert!(epoch.abs_diff(now.parse().expect("seconds")) < 60, "{clock}");
    assert_eq!(rest, "true 32 <nil> true");
    assert_eq!(body(generation, "/goroutine"), "7");
    assert_eq!(
        body(generation, "/recovered"),
        "recovered: runtime error: invalid memory address or nil pointer dereference"
    );
}

#[test]
fn every_fault_refuses_a_module() {
    let refused = |config: Value| {
        let options = options(EVERYTHING.1.clone(), config);
        Policy::load(&ENGINE, options, None).expect_err("it refuses").to_string()
    };
    assert_eq!(refused(serde_json::json!({ "refuse": 1 })), "configure: one fault; another: 2");
    assert_eq!(refused(serde_json::json!({ "fail": 1 })), "self-test: as it was told to");
}

#[test]
fn a_configuration_that_is_larger_than_the_arena_is_refused_with_a_reason() {
    // The arena that stands ready has 2 MiB.
    let config = |bytes: usize| serde_json::json!({ "token": "x".repeat(bytes) });
    assert_eq!(body(&load(options(EVERYTHING.1.clone(), config((2 << 20) - 100))), "/goroutine"), "7");
    let options = options(EVERYTHING.1.clone(), config(2 << 20));
    let error = Policy::load(&ENGINE, options, None).expect_err("there is no room").to_string();
    assert!(error.starts_with("configure: ") && error.contains("beyond end of memory"), "{error}");
}

/// CPU that this thread has used: other tests run beside it.
fn cpu() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").expect("Linux has it");
    Duration::from_nanos(text.split(' ').next().and_then(|ns| ns.parse().ok()).expect("a number"))
}

#[test]
fn a_hundred_thousand_grinding_decisions_leave_memory_flat() {
    let generation = &*SHARED;
    let request = request("GET /grind HTTP/1.1\r\nHost: x\r\n\r\n");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let mut seen = Vec::new();
    for round in 1..=100 * 1024u32 {
        let decision = runtime.block_on(generation.on_request(1, &request, &BodyPort::empty())).expect("it decides");
        let Action::Respond(respond) = decision.action else { panic!("no answer") };
        if round % 1024 == 0 {
            let text = String::from_utf8(respond.body).expect("text");
            let numbers: Vec<u64> = text.split(' ').map(|n| n.parse().expect("a number")).collect();
            // One instance serves all of them.
            assert_eq!(numbers[0], u64::from(round), "{text}");
            seen.push((numbers[1], numbers[2]));
        }
    }
    let ((_, early), (collections, late)) = (seen[9], seen[99]);
    assert!(collections > 1000, "{collections} collections are no test");
    assert_eq!(early, late, "the heap grew: {seen:?}");
}

fn bearer_config() -> Value {
    json(&root().join("policies/cases/bearer/config.json"))
}

fn json(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).expect("a file")).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

const KNOWN: &str = "GET /v1/chat?room=7 HTTP/1.1\r\nHost: example.org\r\nUser-Agent: test\r\nAuthorization: Bearer open-sesame\r\n\r\n";

#[test]
fn a_million_decisions_in_one_instance_need_no_more_memory_than_the_first() {
    // What a module needs to start; whoever grows has to fail.
    let tight = Options { memory_bytes_max: 12 << 20, ..options(shipped("bearer-go.wasm"), bearer_config()) };
    let generation = load(tight);
    let known = request(KNOWN);
    let unknown = request("GET /v1/chat HTTP/1.1\r\nHost: example.org\r\nAuthorization: Bearer nobody\r\n\r\n");
    for round in 0..1_000_000 {
        let (request, status) = if round % 4 == 3 { (&unknown, Some(401)) } else { (&known, None) };
        match generation.on_request_at_once(0, request).unwrap_or_else(|error| panic!("{round}: {error}")).action {
            Action::Handoff(handoff) => assert_eq!((&*handoff.target, handoff.data.len(), status), ("chat", 66, None)),
            Action::Respond(respond) => assert_eq!(Some(respond.status), status),
            action => panic!("{round}: {action:?}"),
        }
    }
}

/// What a decision costs, beside the same policy in Rust: for a person to read. A machine that others use as well tells the
/// two apart by far less than they differ.
#[test]
#[ignore = "a measurement: cargo test --release --test go -- --ignored --nocapture"]
fn what_a_decision_costs() {
    let request = request(KNOWN);
    for module in ["bearer-rust.wasm", "bearer-go.wasm", "bearer-rust.wasm", "bearer-go.wasm"] {
        for (what, reuse_max, rounds) in [("warm", u32::MAX, 200_000), ("fresh", 0, 5000)] {
            let generation = load(Options { reuse_max, ..options(shipped(module), bearer_config()) });
            let decide = || {
                let decision = generation.on_request_at_once(0, &request).expect("it decides");
                assert!(matches!(decision.action, Action::Handoff(_)));
            };
            (0..200).for_each(|_| decide());
            let (wall, before) = (Instant::now(), cpu());
            (0..rounds).for_each(|_| decide());
            println!(
                "{module} {what}: {:?} CPU, {:?} by the clock",
                (cpu() - before) / rounds,
                wall.elapsed() / rounds
            );
        }
    }
}

// === Through the gateway ===

/// A gateway with one worker, a target `chat`, and the policy for every path.
fn start(folder: TempDir, module: &Path, keys: &str) -> Gateway {
    let toml = format!(
        "[gateway]\nworkers = 1\n[target.chat]\nsockets = [\"DIR/chat.sock\"]\n\
         [policy.go]\nmodule = \"{}\"\ndeadline = \"1s\"\nconfigure_deadline = \"60s\"\n{keys}\n\
         [[route]]\npath = \"/\"\npolicies = [\"go\"]\ndefault = {{ respond = {{ status = 299 }} }}\nLISTEN",
        module.display()
    );
    Gateway::start_in(folder, &toml, |command| command)
}

/// One gateway for all of it: to compile a module takes seconds.
#[test]
fn a_policy_in_go_through_the_gateway() {
    let gateway = start(folder(), &EVERYTHING.1, "reuse_max = 1000000");
    every_getter_gives_what_was_sent(&gateway);
    the_beginning_of_a_body_is_read_and_stays_with_the_gateway(&gateway);
    ten_thousand_requests_are_decided_by_one_instance(&gateway);
    what_is_logged_printed_and_panicked_is_in_the_log_and_the_next_request_is_served(&gateway);
}

fn every_getter_gives_what_was_sent(gateway: &Gateway) {
    let mut client = gateway.client();
    client.send(
        "POST /getters?room=x+%C3%BC&r HTTP/1.1\r\nHost: Example.ORG:8080\r\nCookie: a=1; sid=s7\r\nContent-Length: 4\r\n\r\nbody",
    );
    let wanted = [
        "26",
        "POST",
        "/getters?room=x+%C3%BC&r",
        "/getters",
        "room=x+%C3%BC&r",
        "true",
        "x ü",
        "true",
        "s7",
        "true",
        "example.org:8080",
        "http",
        "true",
        "/",
        "true",
        "false",
        "false",
        "true",
        "true",
        "http",
        "true",
        "true",
        "4",
    ];
    assert_eq!(client.answer().body.lines().collect::<Vec<_>>(), wanted);
    client.send("POST /getters HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    let answer = client.answer();
    let lines: Vec<_> = answer.body.lines().collect();
    assert_eq!((lines[4], lines[5], lines[7], lines[9], lines[22]), ("", "false", "false", "false", "-1"));

    client.send("GET /headers HTTP/1.1\r\nHost: x\r\nX-A: 1\r\nx-b:  \r\nX-a: two \r\n\r\n");
    let fields = r#"[["host" "x"] ["x-a" "1"] ["x-b" ""] ["x-a" "two"]]"#;
    let raw = r#""host: x\r\nx-a: 1\r\nx-b: \r\nx-a: two\r\n""#;
    let answer = client.answer();
    let lines: Vec<_> = answer.body.lines().collect();
    assert_eq!(lines[..2], [r#""1""#, r#"["1" "two"]"#]);
    assert!(lines[2].starts_with(r#""" <nil> "#), "{lines:?}");
    assert_eq!(lines[3..], [fields, raw]);
}

fn the_beginning_of_a_body_is_read_and_stays_with_the_gateway(gateway: &Gateway) {
    let body: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
    let sum = |bytes: &[u8]| bytes.iter().fold(0u32, |sum, &b| sum.wrapping_mul(31).wrapping_add(b.into()));
    let mut client = gateway.client();
    for length in [0, 1, 32_767, 32_768, 100_000] {
        client.send(format!("POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"));
        client.send(&body[..length]);
        let prefix = &body[..length.min(32 << 10)];
        assert_eq!(client.answer().body, format!("{} {:x} <nil>", prefix.len(), sum(prefix)));
    }
    client.send(format!("POST /body/past HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len()));
    client.send(&body);
    assert_eq!(client.answer().body, "0 0 baton: the body is too large");
}

fn what_is_logged_printed_and_panicked_is_in_the_log_and_the_next_request_is_served(gateway: &Gateway) {
    let mut client = gateway.client();
    client.get("/log");
    assert_eq!(client.answer().body, "false true");
    gateway.stderr.wait(0, &["written text=a b number=7 error=x odd=", "policy=\"go\""]);
    gateway.stderr.wait(0, &["printed", "policy=\"go\""]);
    assert_eq!(gateway.status("/panic"), 503);
    gateway.stderr.wait(0, &["panic: the policy itself"]);
    // Its stack, with the line.
    let source = include_str!("policies/go-everything/main.go");
    let at = source.lines().position(|line| line.contains("panic(\"the policy")).expect("it panics") + 1;
    gateway.stderr.wait(0, &[&format!("main.go:{at}")]);
    client.get("/goroutine");
    assert_eq!(client.answer().body, "7");
}

fn ten_thousand_requests_are_decided_by_one_instance(gateway: &Gateway) {
    let mut client = gateway.client();
    for round in 1..=10_000 {
        client.get("/grind");
        let answer = client.answer();
        assert_eq!(answer.status, 200);
        assert_eq!(answer.body.split(' ').next(), Some(&*round.to_string()), "the same instance");
    }
}

#[test]
fn bearer_in_go_answers_every_case_on_the_wire() {
    let folder = folder();
    let daemon = Daemon::start(&folder.path().join("chat.sock"), "seqpacket", "serve", &[]);
    // The configuration of the cases has strings only, and those are JSON in TOML too.
    let config = bearer_config();
    let pair = |(key, value): (&String, &Value)| {
        format!("{} = {}", toml::Value::from(key.as_str()), toml::Value::from(value.as_str().expect("a string")))
    };
    let tokens = config["tokens"].as_object().expect("tokens").iter().map(pair).collect::<Vec<_>>().join(", ");
    let keys = format!("config = {{ target = \"chat\", realm = \"demo\", tokens = {{ {tokens} }} }}");
    let gateway = start(folder, &shipped("bearer-go.wasm"), &keys);
    let cases = root().join("policies/cases/bearer");
    let mut files: Vec<_> = fs::read_dir(&cases).expect("cases").map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "http"));
    files.sort();
    let mut handed_over = 0;
    for file in &files {
        let name = file.display();
        let (request, wanted) = (fs::read(file).expect("a case"), json(&file.with_extension("json")));
        let mut client = gateway.client();
        client.send(&request);
        if wanted["action"] == "handoff" {
            handed_over += 1;
            assert_eq!(daemon.wait("got", handed_over)["data"], wanted["data"], "{name}");
            assert!(client.rest().ends_with("\r\n\r\nfrom daemon\n"), "{name}");
            continue;
        }
        let answer = client.answer();
        assert_eq!(answer.status, wanted["status"], "{name}");
        // Authorization is said once: the gateway refuses such a request itself.
        if request.windows(15).filter(|field| field == b"\nAuthorization:").count() > 1 {
            continue;
        }
        for (header, value) in wanted["headers"].as_object().expect("headers") {
            assert_eq!(answer.header(header), value.as_str(), "{name}: {header}");
        }
        assert_eq!(answer.body, wanted["body"], "{name}");
    }
    assert!(files.len() > 25 && handed_over > 10, "{} {handed_over}", files.len());
    assert_eq!(daemon.events("got").len(), handed_over, "nobody was handed over who should not have been");
}

// === The other hooks, and what they ask for ===

/// Answers one request of a callout with its first line.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("somebody asks");
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\nbody") {
            let mut chunk = [0; 4096];
            let count = client.read(&mut chunk).expect("it is sent");
            assert!(count > 0, "{}", String::from_utf8_lossy(&asked));
            asked.extend_from_slice(&chunk[..count]);
        }
        let asked = String::from_utf8(asked).expect("text");
        let line = asked.lines().next().expect("a line");
        assert!(asked.contains("\r\nx-asked: 1\r\n"), "{asked}");
        let head = format!("HTTP/1.1 203 OK\r\nX-Answer: yes\r\nContent-Length: {}\r\nConnection: close", line.len());
        client.write_all(format!("{head}\r\n\r\n{line}").as_bytes()).expect("it is read");
    });
    address
}

#[test]
fn every_hook_and_every_import_is_there_in_go() {
    let (_guest, module) = build("go-hooks");
    let folder = folder();
    let daemon = Daemon::start(&folder.path().join("chat.sock"), "seqpacket", "serve", &["all=1"]);
    let listener =
        |name: &str| format!("[[listener]]\nname = \"{name}\"\naddress = \"127.0.0.1:0\"\npolicies = [\"go\"]\n");
    let toml = format!(
        "[gateway]\nworkers = 1\n[target.chat]\nsockets = [\"DIR/chat.sock\"]\n[target.down]\nsockets = [\"DIR/down.sock\"]\n\
         [upstream.auth]\naddress = \"http://{}\"\n\
         [policy.go]\nmodule = \"{}\"\nupstreams = [\"auth\"]\ndeadline = \"1s\"\nconfigure_deadline = \"60s\"\n\
         [[route]]\npath = \"/\"\npolicies = [\"go\"]\ndefault = {{ respond = {{ status = 299 }} }}\n{}{}{}",
        upstream(),
        module.display(),
        listener("open"),
        listener("closed"),
        listener("raw")
    );
    let gateway = Gateway::start_in(folder, &toml, |command| command);
    let body = |path: &str| {
        let mut client = Client::connect(gateway.address_of("open"));
        client.get(path);
        client.answer().body
    };

    assert_eq!(
        body("/store"),
        "false <nil> one true true true true two -3 true true <nil> [true true false] 65536 true"
    );
    assert_eq!(body("/targets"), "chat 0 true false true true 1 -1 false");
    assert_eq!(body("/metrics"), "counted");
    assert_eq!(body("/callout"), "true 203 yes POST /x?y HTTP/1.1");
    eventually("a tick", || (body("/ticks") == "true <nil>").then_some(()));

    // Nobody took the client: the policy was told why, and with what it had given along.
    assert_eq!(body("/down"), "/down down 1 true 1 true given");
    gateway.stderr.wait(0, &["complete id=", "outcome=responded", "status=200", "took=true", "carry=failed"]);
    gateway.stderr.wait(0, &["connected listener=open ip=127.0.0.1 port=", "local=127.0.0.1:", "sni= alpn=0"]);

    let mut client = Client::connect(gateway.address_of("closed"));
    client.get("/");
    assert_eq!(client.rest(), "");
    let mut client = Client::connect(gateway.address_of("raw"));
    client.send("no line of HTTP");
    client.stream.shutdown(Shutdown::Write).expect("open");
    let got = daemon.wait("got", 1);
    assert_eq!((&got["data"], &got["first"]), (&"untouched".into(), &"no line of HTTP".into()));
}

#[test]
fn sticky_keeps_a_session_with_its_daemon_and_moves_it_when_that_is_gone() {
    let folder = folder();
    let names = ["a", "b", "c"];
    let socket = |name: &str| folder.path().join(format!("{name}.sock"));
    let mut daemons = names.map(|name| Some(Daemon::start(&socket(name), "seqpacket", "serve", &[])));
    let sockets: Vec<_> = names.iter().map(|name| format!("\"{}\"", socket(name).display())).collect();
    let toml = format!(
        "[gateway]\nworkers = 1\n[target.chat]\nsockets = [{}]\n\
         [policy.sticky]\nmodule = \"{}\"\nconfig = {{ target = \"chat\" }}\ntargets = [\"chat\"]\ndeadline = \"1s\"\n\
         configure_deadline = \"60s\"\n[[route]]\npath = \"/\"\npolicies = [\"sticky\"]\nLISTEN",
        sockets.join(", "),
        shipped("sticky-go.wasm").display()
    );
    let gateway = Gateway::start_in(folder, &toml, |command| command);
    // Who took the client, and what that daemon was told.
    let ask = |daemons: &[Option<Daemon>; 3], cookie: &str| {
        let count = |daemon: &Option<Daemon>| daemon.as_ref().map_or(0, |daemon| daemon.events("got").len());
        let before: Vec<_> = daemons.iter().map(count).collect();
        let answer = gateway.ask(&format!("GET / HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\n\r\n"));
        assert!(answer.ends_with("from daemon\n"), "{answer}");
        let took = eventually("one of them took it", || (0..3).find(|&at| count(&daemons[at]) > before[at]));
        let got = daemons[took].as_ref().expect("it runs").wait("got", before[took] + 1);
        let told: Value = serde_json::from_str(got["data"].as_str().expect("text")).expect("JSON");
        (took, told)
    };
    let sessions: Vec<_> = (0..12)
        .map(|_| {
            let (took, told) = ask(&daemons, "theme=dark");
            let session = told["session"].as_str().expect("text").to_owned();
            assert_eq!(told["set_cookie"], format!("sid={session}; Path=/; HttpOnly; SameSite=Lax"));
            (took, session)
        })
        .collect();
    for (took, session) in &sessions {
        let (again, told) = ask(&daemons, &format!("sid={session}"));
        assert_eq!((again, &told["new"], told.get("set_cookie")), (*took, &Value::from(false), None));
    }
    // Its own go to one of the others, and nobody else's.
    let gone = sessions[0].0;
    daemons[gone] = None;
    for (took, session) in &sessions {
        let (again, _) = ask(&daemons, &format!("sid={session}"));
        assert_eq!(again == *took, *took != gone, "{session}");
    }
}
