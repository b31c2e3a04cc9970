//! The operator's address: figures that are true, health, policies and what can be done about them, and who is refused.
#![cfg(feature = "gateway")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::{Answer, Client, Daemon, Gateway, baton, eventually, folder};

/// A guest's text.
fn guest(name: &str) -> String {
    let path = format!("{}/tests/policies/{name}.wat", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A guest that answers with that status.
fn answering(status: u16) -> String {
    guest("answers").replace("(i32.const 231)", &format!("(i32.const {status})"))
}

fn rename_over(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).expect("written");
    fs::rename(new, path).expect("renamed");
}

/// The key, on a port that the kernel chooses.
const ADMIN: &str = "[gateway]\nworkers = 2\nadmin = \"127.0.0.1:0\"\n";

/// One policy `p` that decides everything.
const ONE_POLICY: &str = "LISTEN\n[policy.p]\nmodule = \"DIR/p.wat\"\ndeadline = \"50ms\"\n\
    breaker = { failures = 2, within = \"60s\", pause = \"100ms\" }\n[[route]]\npath = \"/\"\npolicies = [\"p\"]\n";

fn start(policy: &str) -> Gateway {
    let folder = folder();
    fs::write(folder.path().join("p.wat"), policy).expect("written");
    Gateway::start_in(folder, &format!("{ADMIN}{ONE_POLICY}"), |command| command)
}

/// The operator: one connection for each question.
struct Operator(Place);

enum Place {
    Tcp(std::net::SocketAddr),
    Unix(std::path::PathBuf),
}

impl Operator {
    /// Of the address that was said last, from line `from` of the log on.
    #[track_caller]
    fn of_line(gateway: &Gateway, from: usize) -> Self {
        let line = gateway.stderr.wait(from, &["admin on "]);
        let (_, place) = line.split_once("admin on ").expect("it was found by that");
        match place.strip_prefix("unix:") {
            Some(path) => Self(Place::Unix(path.into())),
            None => Self(Place::Tcp(place.strip_prefix("http://").and_then(|a| a.parse().ok()).expect("an address"))),
        }
    }

    #[track_caller]
    fn of(gateway: &Gateway) -> Self {
        Self::of_line(gateway, 0)
    }

    fn tcp(&self) -> std::net::SocketAddr {
        let Place::Tcp(address) = self.0 else { panic!("a TCP address") };
        address
    }

    /// Everything that comes for exactly these bytes.
    fn raw(&self, request: &str) -> String {
        let mut bytes = Vec::new();
        match &self.0 {
            Place::Tcp(address) => {
                let mut client = Client::connect(*address);
                client.send(request);
                return client.rest();
            }
            Place::Unix(path) => {
                let mut stream = UnixStream::connect(path).expect("it listens");
                stream.set_read_timeout(Some(support::patience())).expect("a socket");
                stream.write_all(request.as_bytes()).expect("it reads");
                stream.read_to_end(&mut bytes).expect("it closes");
            }
        }
        String::from_utf8(bytes).expect("text")
    }

    #[track_caller]
    fn ask_with(&self, method: &str, path: &str, fields: &str) -> Answer {
        let all = self.raw(&format!("{method} {path} HTTP/1.1\r\n{fields}Connection: close\r\n\r\n"));
        let (head, body) = all.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {all:?}"));
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status line");
        Answer { status, head: head.to_owned(), body: body.to_owned() }
    }

    #[track_caller]
    fn get(&self, path: &str) -> Answer {
        self.ask_with("GET", path, "Host: localhost\r\n")
    }

    #[track_caller]
    fn post(&self, path: &str) -> (u16, Value) {
        let answer = self.ask_with("POST", path, "Host: localhost\r\nContent-Length: 0\r\n");
        let media_type = if answer.status == 200 { "application/json" } else { "application/problem+json" };
        assert_eq!(answer.header("content-type"), Some(media_type));
        (answer.status, serde_json::from_str(&answer.body).expect("JSON"))
    }

    #[track_caller]
    fn policy(&self, name: &str) -> Value {
        let answer = self.get("/policies");
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
        let all: Value = serde_json::from_str(&answer.body).expect("JSON");
        let found = all["policies"].as_array().expect("a list").iter().find(|policy| policy["name"] == name);
        found.unwrap_or_else(|| panic!("no {name} in {all:#}")).clone()
    }

    #[track_caller]
    fn figures(&self) -> Figures {
        let answer = self.get("/metrics");
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
        Figures::parse(&answer.body)
    }
}

// === Figures ===

/// What `/metrics` says, read strictly.
#[derive(Debug, Default)]
struct Figures {
    /// Kind by name.
    families: BTreeMap<String, String>,
    series: BTreeMap<String, f64>,
}

impl Figures {
    /// Reads the text format: every figure behind its family's HELP and TYPE, no family and no series twice, buckets that
    /// rise up to the number of all.
    #[track_caller]
    fn parse(text: &str) -> Self {
        let is_name = |name: &str| {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && !name.starts_with('_')
        };
        assert!(text.ends_with('\n'));
        let (mut all, mut helped, mut family) = (Self::default(), None, (String::new(), String::new()));
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').expect("a help");
                assert!(is_name(name) && !help.is_empty() && helped.is_none(), "{line}");
                helped = Some(name.to_owned());
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').expect("a kind");
                assert_eq!(helped.take().as_deref(), Some(name), "HELP comes first: {line}");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert!(all.families.insert(name.to_owned(), kind.to_owned()).is_none(), "twice: {line}");
                family = (name.to_owned(), kind.to_owned());
            } else if !line.starts_with('#') {
                let (series, value) = line.rsplit_once(' ').expect("a value");
                let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
                let own = matches!(
                    (&*family.1, name.strip_prefix(&family.0)),
                    ("histogram", Some("_bucket" | "_sum" | "_count")) | ("counter" | "gauge", Some(""))
                );
                assert!(own && helped.is_none(), "{line} stands behind {family:?}");
                let labels = labels.strip_suffix('}').expect("a bracket");
                let names = labels.split("\",").filter(|pair| !pair.is_empty());
                let names: Vec<_> = names.map(|pair| pair.split_once("=\"").expect("a label").0).collect();
                assert!(names.iter().all(|name| is_name(name)), "{line}");
                assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{line}");
                let value = value.parse().expect("a number");
                assert!(all.series.insert(series.to_owned(), value).is_none(), "twice: {line}");
            }
        }
        assert!(helped.is_none());
        all.are_histograms(text);
        all
    }

    fn are_histograms(&self, text: &str) {
        let mut last: Option<(String, f64, f64)> = None;
        let bucket = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            let (rest, bound) = series.strip_suffix("\"}")?.rsplit_once("le=\"")?;
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
            Some((rest.trim_end_matches(['{', ',']).to_owned(), bound, value.parse::<f64>().ok()?))
        };
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            match (last.take(), bucket(line)) {
                (Some((name, bound, value)), Some(next)) if name == next.0 => {
                    assert!(bound < next.1 && value <= next.2, "{line}");
                    last = Some(next);
                }
                (before, next) => {
                    if let Some((name, bound, value)) = before {
                        assert_eq!(bound, f64::INFINITY, "{name}");
                        let (family, labels) = name.split_once("_bucket").expect("a bucket");
                        let labels = if labels.is_empty() { String::new() } else { format!("{labels}}}") };
                        assert_eq!(self.series.get(&format!("{family}_count{labels}")), Some(&value), "{name}");
                        assert!(self.series.contains_key(&format!("{family}_sum{labels}")), "{name}");
                    }
                    last = next;
                }
            }
        }
    }

    #[track_caller]
    fn of(&self, series: &str) -> f64 {
        *self.series.get(series).unwrap_or_else(|| panic!("no {series} in {:#?}", self.series))
    }

    /// Nothing that is counted has become less since `before`.
    #[track_caller]
    fn have_not_fallen_since(&self, before: &Self) {
        for (series, value) in &before.series {
            let name = series.split('{').next().expect("a first one");
            let family = ["_bucket", "_count", "_sum"].iter().find_map(|suffix| name.strip_suffix(suffix));
            let kind = self.families.get(name).or_else(|| self.families.get(family?)).expect("a family");
            assert!(kind == "gauge" || self.of(series) >= *value, "{series}: {value} became {}", self.of(series));
        }
    }
}

fn outcome(word: &str) -> String {
    format!("baton_gateway_requests_total{{outcome=\"{word}\"}}")
}

const OUTCOMES: [&str; 8] =
    ["aborted", "client-error", "client-gone", "handed-off", "policy-error", "refused", "responded", "unanswered"];

/// A path for each outcome.
const EVERY_OUTCOME: &str = r#"
LISTEN
[handoff]
retries = 0
ack_timeout = "200ms"
[target.chat]
sockets = ["DIR/d.sock"]
[target.half]
sockets = ["DIR/half.sock"]
dialect = "stream"
[target.absent]
sockets = ["DIR/nobody.sock"]
[policy.fields]
module = "POLICIES/handoff_by_fields.wat"
[policy.traps]
module = "POLICIES/traps.wat"
breaker = { failures = 0 }
[policy.aborts]
module = "POLICIES/aborts.wat"
[policy.passes]
module = "POLICIES/passes.wat"
[[route]]
path = "/chat"
policies = ["fields"]
[[route]]
path = "/traps"
policies = ["traps"]
[[route]]
path = "/aborts"
policies = ["aborts"]
[[route]]
path = "/"
policies = ["passes"]
default = { respond = { body = "ok" } }
"#;

/// One request of each outcome, and a second answer.
fn every_outcome(gateway: &Gateway) {
    let get = |path: &str, field: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n{field}Connection: close\r\n\r\n");
    for (request, status) in [
        (get("/", ""), "200"),
        (get("/chat", ""), "200"),
        (get("/chat", "x-target: absent\r\n"), "503"),
        (get("/chat", "x-target: half\r\nx-data: some data\r\n"), "200"),
        (get("/traps", ""), "503"),
        (get("/aborts", ""), ""),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), "400"),
    ] {
        let answer = gateway.ask(&request);
        assert_eq!(answer.split(' ').nth(1).unwrap_or_default(), status, "{request}: {answer}");
    }
    let mut client = gateway.client();
    client.send("GET / HTTP/1.1\r\nHo");
    client.stream.shutdown(Shutdown::Write).expect("ours");
    client.rest();
}

#[test]
fn figures_agree_with_the_access_log_after_every_outcome() {
    let gateway = Gateway::start(&format!("{ADMIN}{EVERY_OUTCOME}"));
    let operator = Operator::of(&gateway);
    let before = operator.figures();
    assert_eq!(before.of(&outcome("responded")), 0.0, "a series is there before it is counted");
    let _daemon = Daemon::start(&gateway.path("d.sock"), "seqpacket", "serve", &[]);
    let _half = Daemon::start(&gateway.path("half.sock"), "stream", "serve", &["short=1", "keep=1"]);
    let mut last = before;
    for round in 1..=3 {
        every_outcome(&gateway);
        let log = eventually("all lines", || Some(gateway.log()).filter(|log| log.len() == round * 8));
        let now = operator.figures();
        now.have_not_fallen_since(&last);
        let sum = |key: &str| log.iter().filter_map(|line| line[key].as_f64()).sum::<f64>();
        let lines = |key: &str| log.iter().filter(|line| line[key].is_u64()).count() as f64;
        for word in OUTCOMES {
            let logged = log.iter().filter(|line| line["outcome"] == word).count() as f64;
            assert_eq!((now.of(&outcome(word)), logged), (round as f64, round as f64), "{word}: {log:#?}");
        }
        for class in 2..=5 {
            let logged = log.iter().filter(|line| line["status"].as_u64().is_some_and(|s| s / 100 == class)).count();
            let series = format!("baton_gateway_responses_total{{class=\"{class}xx\"}}");
            assert_eq!(now.of(&series), logged as f64, "{series}");
        }
        assert_eq!(now.of("baton_gateway_handoff_attempts_total"), sum("attempts"));
        assert_eq!(now.of("baton_gateway_received_bytes_total"), sum("bytes_in"));
        assert_eq!(now.of("baton_gateway_sent_bytes_total"), sum("bytes_out"));
        for (family, key) in [("request", "duration_us"), ("decide", "decide_us"), ("handoff", "handoff_us")] {
            let family = format!("baton_gateway_{family}_duration_seconds");
            assert_eq!(now.of(&format!("{family}_count")), lines(key), "{family}");
            let seconds = now.of(&format!("{family}_sum"));
            assert!((seconds - sum(key) / 1e6).abs() < 1e-9, "{family}: {seconds} and {} us", sum(key));
        }
        assert_eq!(now.of("baton_gateway_policy_traps_total{policy=\"traps\"}"), 2.0 * round as f64, "tried twice");
        last = now;
    }
    eventually("every client is gone", || (operator.figures().of("baton_gateway_connections") == 0.0).then_some(()));
    // For a second, which may have passed when the figures are read.
    let up = |target: &str| {
        operator.figures().of(&format!("baton_gateway_target_up{{target=\"{target}\",member=\"{target}/0\"}}"))
    };
    eventually("an absent daemon is down", || {
        gateway.ask("GET /chat HTTP/1.1\r\nHost: x\r\nx-target: absent\r\nConnection: close\r\n\r\n");
        (up("absent") == 0.0).then_some(())
    });
    assert_eq!(up("chat"), 1.0);
    eventually("and then it is up again", || (up("absent") == 1.0).then_some(()));
    // What clients say is no label, and nothing has appeared that was not there from the beginning.
    let now = operator.figures();
    assert_eq!(now.series.keys().collect::<Vec<_>>(), last.series.keys().collect::<Vec<_>>());
    for name in now.families.keys() {
        assert!(name.starts_with("baton_gateway_"), "{name}");
        assert_eq!(name.ends_with("_total"), now.families[name] == "counter", "{name}");
    }
}

#[test]
fn counting_needs_an_admin_address_and_no_access_log() {
    let no_log = |admin: &str| format!("[gateway]\n# no access_log = here\n{admin}{EVERY_OUTCOME}");
    let gateway = Gateway::start(&no_log(""));
    assert!(!gateway.stderr.all().iter().any(|line| line.contains("admin on")));
    let ask = || gateway.status("/");
    assert_eq!(ask(), 200);
    let from = gateway.reload(&no_log("admin = \"127.0.0.1:0\"\n"));
    let operator = Operator::of_line(&gateway, from);
    gateway.stderr.wait(from, &["configuration reloaded"]);
    let responded = outcome("responded");
    assert_eq!(operator.figures().of(&responded), 0.0, "nothing was counted before");
    for count in 1..=3 {
        assert_eq!(ask(), 200);
        eventually("it is counted", || (operator.figures().of(&responded) == f64::from(count)).then_some(()));
    }
    assert!(!gateway.path("access.log").exists());
    // Without the address counting stops, and it goes on where it was: a counter never falls.
    let from = gateway.reload(&no_log(""));
    gateway.stderr.wait(from, &["no admin address any more"]);
    gateway.stderr.wait(from, &["configuration reloaded"]);
    eventually("it is closed", || TcpStream::connect(operator.tcp()).is_err().then_some(()));
    assert_eq!(ask(), 200);
    let from = gateway.reload(&no_log("admin = \"127.0.0.1:0\"\n"));
    let operator = Operator::of_line(&gateway, from);
    assert_eq!(operator.figures().of(&responded), 3.0);
    reloads_are_those_of_the_log(&gateway, &operator);
}

/// How many there are is not ours to say: HUP reads once more what the watcher has just read.
#[track_caller]
fn reloads_are_those_of_the_log(gateway: &Gateway, operator: &Operator) {
    eventually("each is counted", || {
        let said = gateway.stderr.all().iter().filter(|line| line.contains("INFO configuration reloaded")).count();
        let counted = operator.figures().of("baton_gateway_configuration_reloads_total{result=\"done\"}");
        (counted == said as f64 && said > 0).then_some(())
    });
}

/// Counts each request as `hits`, and what it takes as `seconds`, with a label that a client chose.
const COUNTS: &str = r#"(module
  (import "baton:policy/metrics@0.1.0" "count" (func $count (param i32 i32 i32 i32 i64)))
  (import "baton:policy/metrics@0.1.0" "observe" (func $observe (param i32 i32 i32 i32 f64)))
  (import "baton:policy/request@0.1.0" "path" (func $path (param i32)))
  (memory (export "memory") 1)
  (global $free (mut i32) (i32.const 4096))
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    (local $p i32)
    (local.set $p (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
    (global.set $free (i32.add (local.get $p) (local.get 3)))
    (local.get $p))
  (data (i32.const 0) "hits    seconds path")
  (func (export "on_request") (result i32)
    (call $path (i32.const 520))
    (i32.store (i32.const 512) (i32.const 16))
    (i32.store (i32.const 516) (i32.const 4))
    (call $count (i32.const 0) (i32.const 4) (i32.const 512) (i32.const 1) (i64.const 1))
    (call $observe (i32.const 8) (i32.const 7) (i32.const 0) (i32.const 0) (f64.const 0.3))
    (memory.fill (i32.const 1024) (i32.const 0) (i32.const 88))
    (i32.const 1024)))"#;

#[test]
fn what_policies_count_is_shown_and_bounded() {
    let folder = folder();
    fs::write(folder.path().join("p.wat"), COUNTS).expect("written");
    let toml = format!("{ADMIN}{ONE_POLICY}").replace("[[route]]", "metric_series_max = 4\n[[route]]");
    let gateway = Gateway::start_in(folder, &toml, |command| command);
    let operator = Operator::of(&gateway);
    for path in ["/a", "/b", "/a", "/c", "/d", "/e"] {
        assert_eq!(gateway.status(path), 404);
    }
    let now = operator.figures();
    assert_eq!(now.families["baton_policy_hits"], "counter");
    assert_eq!(now.of("baton_policy_hits{policy=\"p\",path=\"/a\"}"), 2.0);
    assert_eq!(now.of("baton_policy_seconds_bucket{policy=\"p\",le=\"0.25\"}"), 0.0);
    assert_eq!(now.of("baton_policy_seconds_bucket{policy=\"p\",le=\"0.5\"}"), 6.0);
    assert_eq!(now.series.keys().filter(|series| series.starts_with("baton_policy_hits")).count(), 3);
    assert_eq!(now.of("baton_gateway_policy_series_dropped_total{policy=\"p\"}"), 2.0);
    assert_eq!(now.of("baton_gateway_policy_metrics_refused_total{policy=\"p\"}"), 0.0);
    assert_eq!(operator.policy("p")["imports"], json!(["baton:policy/request@0.1.0", "baton:policy/metrics@0.1.0"]));
}

/// The README's table is what a scrape brings, name by name, kind by kind and label by label.
#[test]
fn the_manual_lists_every_family() {
    let gateway = Gateway::start(&format!("{ADMIN}{EVERY_OUTCOME}"));
    let figures = Operator::of(&gateway).figures();
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).expect("it is there");
    let rows = readme.lines().filter_map(|line| line.strip_prefix("| `baton_gateway_"));
    let documented: BTreeSet<_> = rows
        .map(|row| {
            let cells: Vec<_> = row.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect();
            (format!("baton_gateway_{}", cells[0]), cells[1].clone(), cells[2].replace('`', ""))
        })
        .collect();
    let labels = |family: &str| {
        let of = |series: &&String| series.split('{').next().is_some_and(|name| name == family);
        let bucket = format!("{family}_bucket");
        let is_bucket = |series: &&String| series.starts_with(&bucket);
        let Some(one) = figures.series.keys().find(of).or_else(|| figures.series.keys().find(is_bucket)) else {
            // A figure that only daemons of the native dialect say, and there is none.
            assert_eq!(family, "baton_gateway_target_load");
            return "target, member".to_owned();
        };
        let pairs = one.split_once('{').map_or("", |(_, labels)| labels.trim_end_matches('}'));
        let names = pairs.split("\",").filter_map(|pair| pair.split_once("=\"")).map(|(name, _)| name);
        names.filter(|name| *name != "le").collect::<Vec<_>>().join(", ")
    };
    let real: BTreeSet<_> =
        figures.families.iter().map(|(name, kind)| (name.clone(), kind.clone(), labels(name))).collect();
    assert_eq!(documented, real);
}

// === Health ===

#[test]
fn health_is_503_while_it_drains_and_until_it_has() {
    let folder = folder();
    let admin = format!("unix:{}/admin.sock", folder.path().display());
    let toml = format!("[gateway]\nadmin = \"{admin}\"\n{EVERY_OUTCOME}");
    let mut gateway = Gateway::start_in(folder, &toml, |command| command);
    let operator = Operator::of(&gateway);
    let health = operator.get("/healthz");
    assert_eq!((health.status, &*health.body), (200, "ok\n"));
    assert_eq!(operator.figures().of("baton_gateway_draining"), 0.0);
    let mut client = gateway.client();
    client.send("GET / HTTP/1.1\r\nHost: x\r\n");
    let connections = || operator.figures().of("baton_gateway_connections");
    eventually("the client is accepted", || (connections() == 1.0).then_some(()));
    gateway.signal(Signal::SIGTERM);
    eventually("it drains", || (operator.get("/healthz").status == 503).then_some(()));
    let health = operator.get("/healthz");
    assert_eq!((health.status, &*health.body), (503, "draining\n"));
    assert_eq!(operator.figures().of("baton_gateway_draining"), 1.0);
    assert_eq!(connections(), 1.0);
    client.send("\r\n");
    assert!(client.rest().starts_with("HTTP/1.1 200"));
    assert_eq!(gateway.wait().code(), Some(0));
    assert!(!gateway.path("admin.sock").exists(), "its file is removed");
}

// === Policies ===

#[test]
fn a_policy_is_shown_as_it_is() {
    let gateway = start(&guest("answers"));
    let operator = Operator::of(&gateway);
    let shown = operator.policy("p");
    let keys: Vec<_> = shown.as_object().expect("an object").keys().map(String::as_str).collect();
    let expected = ["breaker", "digest", "generation", "hooks", "imports", "instances", "last_error", "last_reload"];
    let mut all = expected.to_vec();
    all.extend(["loaded_at", "name", "traps"]);
    assert_eq!(keys.iter().copied().collect::<BTreeSet<_>>(), all.into_iter().collect());
    assert_eq!((&shown["generation"], &shown["traps"], &shown["breaker"]), (&json!(1), &json!(0), &json!("closed")));
    assert_eq!((&shown["last_error"], &shown["last_reload"]), (&Value::Null, &Value::Null));
    assert_eq!(shown["hooks"], json!(["on-request"]));
    let sum = Command::new("sha256sum").arg(gateway.path("p.wat")).output().expect("coreutils");
    assert_eq!(shown["digest"].as_str(), String::from_utf8_lossy(&sum.stdout).split(' ').next());
    let age = humantime::parse_rfc3339(shown["loaded_at"].as_str().expect("a time")).expect("a time").elapsed();
    assert!(age.expect("not in the future") < Duration::from_secs(60));
    assert_eq!(gateway.status("/"), 231);
    eventually("an instance that is kept", || (operator.policy("p")["instances"] == 1).then_some(()));

    // Traps, tried twice each, open the breaker; a version that does not fail closes it.
    let failing = guest("traps");
    rename_over(&gateway.path("p.wat"), &failing);
    gateway.stderr.wait(0, &["policy reloaded", "to=2"]);
    assert_eq!([gateway.status("/"), gateway.status("/")], [503, 503]);
    let shown = operator.policy("p");
    assert_eq!((&shown["breaker"], &shown["traps"], &shown["generation"]), (&json!("open"), &json!(4), &json!(2)));
    assert_eq!(operator.figures().of("baton_gateway_policy_breaker{policy=\"p\"}"), 2.0);
    let error = &shown["last_error"];
    assert_eq!((&error["generation"], &error["hook"]), (&json!(2), &json!("on-request")), "{error}");
    assert!(error["error"].as_str().is_some_and(|error| error.contains("trap") && !error.contains('\n')), "{error}");
    assert_eq!(shown["last_reload"]["generation"], 2);
    assert_eq!(shown["instances"], 0, "none is kept behind a trap");

    // A file that cannot be used, and then the one in force again.
    rename_over(&gateway.path("p.wat"), "(module (oops))");
    gateway.stderr.wait(0, &["policy not reloaded", "generation 2 stays"]);
    let shown = operator.policy("p");
    assert!(shown["last_reload"]["error"].as_str().is_some_and(|error| error.contains("oops")), "{shown:#}");
    assert_eq!(shown["generation"], 2);
    assert_eq!(operator.figures().of("baton_gateway_policy_reload_failed{policy=\"p\"}"), 1.0);
    rename_over(&gateway.path("p.wat"), &failing);
    eventually("the alarm ends", || {
        (operator.figures().of("baton_gateway_policy_reload_failed{policy=\"p\"}") == 0.0).then_some(())
    });
    assert_eq!(operator.policy("p")["last_reload"]["generation"], 2);
    rename_over(&gateway.path("p.wat"), &answering(232));
    gateway.stderr.wait(0, &["policy reloaded", "from=2", "to=3"]);
    assert_eq!((gateway.status("/"), &operator.policy("p")["breaker"]), (232, &json!("closed")));
}

/// The watcher looks at the file as well: who comes first does not matter to what is in force behind the answer.
#[test]
fn a_policy_is_reloaded_and_rolled_back_when_told_to() {
    let gateway = start(&answering(231));
    let operator = Operator::of(&gateway);
    let (reload, rollback) = ("/policies/p/reload", "/policies/p/rollback");
    let first = operator.policy("p")["digest"].clone();
    let same = json!({ "policy": "p", "changed": false, "generation": 1, "digest": first });
    assert_eq!(operator.post(reload), (200, same));
    let (status, problem) = operator.post(rollback);
    assert_eq!((status, &problem["status"]), (409, &json!(409)));
    assert_eq!(problem["detail"], "no generation of another digest was in force before");

    rename_over(&gateway.path("p.wat"), &answering(232));
    let (status, done) = operator.post(reload);
    // The watcher may have been faster.
    assert_eq!((status, &done["generation"]), (200, &json!(2)), "{done}");
    assert_eq!(gateway.status("/"), 232);

    rename_over(&gateway.path("p.wat"), "(module (oops))");
    for _ in 0..2 {
        let (status, problem) = operator.post(reload);
        assert_eq!((status, &problem["title"]), (422, &json!("Unprocessable Entity")));
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("oops")), "{problem}");
        assert_eq!(gateway.status("/"), 232, "the old one is in force");
    }
    rename_over(&gateway.path("p.wat"), &answering(232));
    assert_eq!(operator.post(reload).1["changed"], false);

    let (status, done) = operator.post(rollback);
    assert_eq!((status, &done["changed"], &done["digest"]), (200, &json!(true), &first));
    assert_eq!(gateway.status("/"), 231);
    assert_eq!(operator.policy("p")["last_reload"]["generation"], done["generation"]);
    // Nothing but another file ends it: not a reload, not HUP, not the same content written again.
    assert_eq!(operator.post(rollback).0, 409);
    assert_eq!(operator.post(reload).1["changed"], false);
    rename_over(&gateway.path("p.wat"), &answering(232));
    let from = gateway.stderr.count();
    gateway.signal(Signal::SIGHUP);
    gateway.stderr.wait(from, &["configuration reloaded"]);
    assert_eq!(operator.post(reload).1["changed"], false);
    assert_eq!(gateway.status("/"), 231);
    rename_over(&gateway.path("p.wat"), &answering(233));
    let (status, done) = operator.post(reload);
    assert_eq!((status, &done["generation"]), (200, &json!(3)), "{done}");
    assert_eq!(gateway.status("/"), 233);

    for path in ["/policies/%70/reload", "/policies/p/reload?x=1"] {
        assert_eq!(operator.post(path).0, 200, "{path}");
    }
    for (method, path) in [("POST", "/policies/q/reload"), ("POST", "/policies/q/rollback"), ("POST", "/policies/p/x")]
    {
        assert_eq!(operator.ask_with(method, path, "Host: localhost\r\nContent-Length: 0\r\n").status, 404, "{path}");
    }
}

/// Rollbacks, reloads, the watcher and HUP at once: each answer is one of those that may be, the numbers go on, and in
/// the end the last file decides.
#[test]
fn those_who_reload_do_not_get_in_each_others_way() {
    let gateway = start(&answering(231));
    let operator = Operator::of(&gateway);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for act in ["reload", "rollback"] {
            let (operator, is_over) = (&operator, &is_over);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let (status, answer) = operator.post(&format!("/policies/p/{act}"));
                    let may_be = if act == "reload" { [200, 200] } else { [200, 409] };
                    assert!(may_be.contains(&status), "{act}: {status} {answer}");
                }
            });
        }
        for round in 0..30_u16 {
            rename_over(&gateway.path("p.wat"), &answering(232 + round));
            if round % 3 == 0 {
                let deadline = ["50ms", "60ms"][usize::from(round / 3 % 2)];
                gateway.reload(&format!("{ADMIN}{ONE_POLICY}").replace("50ms", deadline));
            }
            let status = gateway.status("/");
            assert!((231..=232 + round).contains(&status), "{status}");
        }
        is_over.store(true, Ordering::Relaxed);
    });
    // Another file than any before: whatever was rolled back from, this one is taken.
    rename_over(&gateway.path("p.wat"), &answering(299));
    eventually("the last file decides", || (gateway.status("/") == 299).then_some(()));
}

// === Who is answered, and what ===

#[test]
fn methods_and_paths_are_what_they_are() {
    let gateway = start(&guest("answers"));
    let operator = Operator::of(&gateway);
    for path in ["/", "/healthz", "/metrics", "/policies"] {
        assert_eq!(operator.get(path).status, 200, "{path}");
        let head = operator.ask_with("HEAD", path, "Host: localhost\r\n");
        assert_eq!((head.status, &*head.body), (200, ""), "{path}");
        for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
            let answer = operator.ask_with(method, path, "Host: localhost\r\n");
            assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")), "{method} {path}");
        }
    }
    for path in ["/policies/p/reload", "/policies/p/rollback"] {
        for method in ["GET", "HEAD", "PUT", "DELETE"] {
            let answer = operator.ask_with(method, path, "Host: localhost\r\n");
            assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")), "{method} {path}");
        }
    }
    for path in ["/x", "/policies/", "/policies/p", "/policies/p/", "/metrics/", "//metrics", "*"] {
        let answer = operator.get(path);
        assert_eq!((answer.status, answer.header("content-type")), (404, Some("application/problem+json")), "{path}");
    }
    // The page for people names all of them.
    let page = operator.get("/").body;
    for word in ["/healthz", "/metrics", "/policies", "/policies/NAME/reload", "/policies/NAME/rollback"] {
        assert!(page.contains(word), "{page}");
    }
    assert!(operator.raw("not HTTP\r\n\r\n").starts_with("HTTP/1.1 400"));
    let long = format!("GET /?{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(20 << 10));
    let refused = operator.raw(&long);
    assert!(refused.starts_with("HTTP/1.1 4"), "{refused}");
}

#[test]
fn pages_of_others_are_refused() {
    let gateway = start(&answering(231));
    let operator = Operator::of(&gateway);
    rename_over(&gateway.path("p.wat"), &answering(232));
    eventually("it is reloaded", || (gateway.status("/") == 232).then_some(()));
    let port = operator.tcp().port();
    let ask =
        |fields: &str| operator.ask_with("POST", "/policies/p/rollback", &format!("{fields}Content-Length: 0\r\n"));
    let hosts =
        ["evil.org", "127.0.0.1.evil.org", "localhost.evil.org", "evil.org:80", "localhost:80:80", "", "[::1].x"];
    for host in hosts {
        assert_eq!(ask(&format!("Host: {host}\r\n")).status, 403, "{host}");
    }
    assert_eq!(ask("").status, 403, "no Host");
    assert_eq!(ask("Host: localhost\r\nHost: evil.org\r\n").status, 403, "two of them");
    assert_eq!(ask("Host: evil.org\r\nHost: localhost\r\n").status, 403, "two of them");
    for origin in ["http://evil.org", "null", "http://localhost", ""] {
        let answer = ask(&format!("Host: localhost\r\nOrigin: {origin}\r\n"));
        assert_eq!(answer.status, 403, "{origin}");
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
    assert_eq!(gateway.status("/"), 232, "nothing was done");
    let good = ["localhost", "LOCALHOST", "127.0.0.1", "[::1]"].map(|host| [host.to_owned(), format!("{host}:{port}")]);
    for host in good.into_iter().flatten() {
        assert_eq!(operator.ask_with("GET", "/healthz", &format!("Host: {host}\r\n")).status, 200, "{host}");
    }
    assert_eq!(ask("Host: localhost\r\n").status, 200);
}

// === The address ===

#[test]
fn a_unix_socket_is_its_owners_alone() {
    let folder = folder();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    let toml = format!("[gateway]\nadmin = \"unix:DIR/a.sock\"\n{EVERY_OUTCOME}");
    let mut gateway = Gateway::start_in(folder, &toml, |command| command);
    let operator = Operator::of(&gateway);
    let socket = gateway.path("a.sock");
    let file = fs::symlink_metadata(&socket).expect("it is there");
    assert!(file.file_type().is_socket());
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    assert_eq!(operator.get("/healthz").status, 200);
    if nix::unistd::geteuid().is_root() {
        let ask = || {
            let url = "http://localhost/healthz";
            let mut command = Command::new("setpriv");
            command.args(["--reuid", "54321", "--regid", "54321", "--clear-groups", "curl", "-s", "--max-time", "10"]);
            command.arg("--unix-socket").arg(&socket).arg(url).output().expect("setpriv and curl")
        };
        assert_eq!(ask().status.code(), Some(7), "the file's mode");
        // And where somebody has opened the file.
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).expect("ours");
        let output = ask();
        assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
        gateway.stderr.wait(0, &["WARN", "admin: a connection of uid 54321 was refused"]);
    }
    gateway.signal(Signal::SIGTERM);
    assert_eq!(gateway.wait().code(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn who_the_gateway_becomes_owns_the_socket() {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "needs root");
        eprintln!("left out: needs root");
        return;
    }
    let folder = folder();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("ours");
    let toml = format!("[gateway]\nuser = \"nobody\"\nadmin = \"unix:DIR/a.sock\"\n{EVERY_OUTCOME}");
    let mut gateway = Gateway::start_in(folder, &toml, |command| command);
    let nobody = nix::unistd::User::from_name("nobody").expect("a list of users").expect("one of them").uid;
    let socket = gateway.path("a.sock");
    let file = fs::symlink_metadata(&socket).expect("it is there");
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&file), nobody.as_raw());
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    assert_eq!(Operator::of(&gateway).get("/healthz").status, 200, "root may as well");
    gateway.signal(Signal::SIGTERM);
    gateway.wait();
    assert!(!socket.exists());
}

#[test]
fn a_socket_that_may_not_be_removed_at_the_end_is_replaced_at_the_next_start() {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "needs root");
        eprintln!("left out: needs root");
        return;
    }
    let place = folder();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    let socket = place.path().join("a.sock");
    let admin = format!("[gateway]\nuser = \"nobody\"\nadmin = \"unix:{}\"\n", socket.display());
    for _ in 0..2 {
        let own = folder();
        fs::set_permissions(own.path(), fs::Permissions::from_mode(0o755)).expect("ours");
        let toml = format!("{admin}LISTEN[[route]]\npath = \"/\"\ndefault = {{ respond = {{ body = \"ok\" }} }}\n");
        let mut gateway = Gateway::start_in(own, &toml, |command| command.env("BATON_LOG", "debug"));
        assert!(socket.exists());
        gateway.signal(Signal::SIGTERM);
        gateway.wait();
        gateway.stderr.wait(0, &["a.sock stays behind", "Permission denied"]);
        assert!(socket.exists());
    }
}

#[test]
fn an_address_that_cannot_be_had_is_named() {
    let folder = folder();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().map(|address| (address, taken)).expect("an address");
    let file = folder.path().join("baton.toml");
    let listens =
        "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\npath = \"/\"\ndefault = { respond = { body = \"ok\" } }\n";
    let say = |admin: &str, rest: &str| {
        fs::write(&file, format!("[gateway]\nadmin = \"{admin}\"\n{rest}{listens}")).expect("written");
        let output = baton().args(["run", "-c"]).arg(&file).output().expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = say(&taken.0.to_string(), "");
    assert_eq!(code, Some(1));
    assert!(said.contains("baton.toml:2: gateway.admin: ") && said.contains("in use"), "{said}");
    let same = format!("[[listener]]\naddress = \"{}\"\n", taken.0);
    for (admin, rest, words) in [
        ("9901", "", "\"9901\" is no address"),
        ("localhost:9901", "", "is no address"),
        ("unix:admin.sock", "", "is no absolute path"),
        (&format!("unix:/{}", "x".repeat(107)), "", "108 bytes, a Unix socket address holds 107"),
        (&taken.0.to_string(), &same, "a listener has this address"),
    ] {
        let (code, said) = say(admin, rest);
        assert_eq!(code, Some(64), "{admin}: {said}");
        assert!(said.contains("baton.toml:2: gateway.admin: ") && said.contains(words), "{said}");
    }
}

#[test]
fn the_address_moves_with_the_configuration() {
    let gateway = Gateway::start(EVERY_OUTCOME);
    let before = gateway.ledger();
    let with = |admin: &str| format!("[gateway]\nadmin = \"{admin}\"\n{EVERY_OUTCOME}");
    let moved = |admin: &str| {
        let from = gateway.reload(&with(admin));
        let operator = Operator::of_line(&gateway, from);
        assert_eq!(operator.get("/healthz").status, 200);
        gateway.stderr.wait(from, &["configuration reloaded"]);
        operator
    };
    let first = moved("127.0.0.1:0");
    moved("unix:DIR/a.sock");
    eventually("the first is closed", || TcpStream::connect(first.tcp()).is_err().then_some(()));
    moved("unix:DIR/b.sock");
    eventually("its file is removed", || (!gateway.path("a.sock").exists()).then_some(()));
    // One that cannot be had leaves everything as it was, and the log says where.
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let from = gateway.reload(&with(&taken.local_addr().expect("an address").to_string()));
    gateway.stderr.wait(from, &["configuration not reloaded", "gateway.admin", "in use"]);
    let still = Operator(Place::Unix(gateway.path("b.sock")));
    assert!(still.figures().of("baton_gateway_configuration_reloads_total{result=\"failed\"}") >= 1.0);
    reloads_are_those_of_the_log(&gateway, &still);
    if TcpListener::bind("[::1]:0").is_ok() {
        assert!(moved("[::1]:0").tcp().is_ipv6());
        moved("unix:DIR/b.sock");
    }
    let from = gateway.reload(EVERY_OUTCOME);
    gateway.stderr.wait(from, &["no admin address any more"]);
    eventually("its file is removed", || (!gateway.path("b.sock").exists()).then_some(()));
    gateway.ledger_is(&before);
}

/// The slow hold a place for ten seconds at most, and those who come meanwhile are answered then.
#[test]
fn who_says_nothing_is_cut_and_who_waits_is_answered() {
    let gateway = start(&guest("answers"));
    let operator = Operator::of(&gateway);
    let before = gateway.ledger();
    let began = Instant::now();
    let slow: Vec<_> = (0..32).map(|_| Client::connect(operator.tcp())).collect();
    // Half of them begin to speak.
    let mut slow: Vec<_> = slow.into_iter().enumerate().collect();
    for (at, client) in &mut slow {
        if *at % 2 == 0 {
            client.send("GET / HTTP/1.1\r\nHo");
        }
    }
    let with = |ledger: &support::Ledger| ledger.get("socket").copied().unwrap_or_default();
    eventually("all places are taken", || (with(&gateway.ledger()) == with(&before) + 32).then_some(()));
    let mut waiting = Client::connect(operator.tcp());
    waiting.send("GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert!(waiting.rest().ends_with("ok\n"));
    let waited = began.elapsed();
    assert!((Duration::from_secs(9)..Duration::from_secs(20)).contains(&waited), "{waited:?}");
    for (_, mut client) in slow {
        drop(client.rest());
    }
    gateway.ledger_is(&before);
    assert_eq!(gateway.status("/"), 231);
}

#[test]
fn at_an_address_that_others_can_reach_nothing_is_changed() {
    let folder = folder();
    fs::write(folder.path().join("p.wat"), answering(231)).expect("written");
    let config = format!("{}{ONE_POLICY}", ADMIN.replace("127.0.0.1:0", "0.0.0.0:0"));
    let gateway = Gateway::start_in(folder, &config, |command| command);
    let said = gateway.stderr.wait(0, &["admin on http://0.0.0.0:"]);
    let port = said.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let operator = Operator(Place::Tcp(std::net::SocketAddr::from(([127, 0, 0, 1], port))));
    gateway.stderr.wait(0, &["changes are for loopback"]);
    assert_eq!((operator.get("/metrics").status, operator.get("/policies").status), (200, 200));
    for act in ["reload", "rollback"] {
        let (status, said) = operator.post(&format!("/policies/p/{act}"));
        assert_eq!((status, &said["detail"]), (403, &json!("changes are for a loopback address or a Unix socket")));
    }
    assert_eq!(operator.policy("p")["generation"], 1);
}
