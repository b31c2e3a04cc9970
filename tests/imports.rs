//! What policies may import, through the gateway and with real servers behind it.
//!
//! One guest does what a request tells it (`tests/policies/imports.rs`) and answers with a line for each thing it did.
#![cfg(feature = "gateway")]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::{Client, Daemon, Gateway, baton, eventually, folder};
use tempfile::TempDir;

/// The guest, built as the test runs: one file without dependencies.
fn guest(folder: &TempDir) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/policies/imports.rs");
    let output = Command::new("rustc")
        .args(["--edition", "2024", "--target", "wasm32-unknown-unknown", "--crate-type", "cdylib", "-O"])
        .args(["-C", "debuginfo=line-tables-only", "-C", "panic=abort", "-o"])
        .args([&folder.path().join("imports.wasm"), &source])
        .output()
        .expect("rustc runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "policies/build brings the target: {said}");
}

/// A policy with that guest, and a route of its name.
fn policy(name: &str, rest: &str) -> String {
    let deadline = if rest.contains("\ndeadline") { "" } else { "deadline = \"100ms\"\n" };
    format!(
        "[policy.{name}]\nmodule = \"DIR/imports.wasm\"\n{deadline}{rest}\n\
         [[route]]\npath = \"/{name}\"\npolicies = [\"{name}\"]\n"
    )
}

fn start(toml: &str) -> Gateway {
    let folder = folder();
    guest(&folder);
    Gateway::start_in(folder, &whole(toml), |command| command)
}

fn whole(toml: &str) -> String {
    let workers = if toml.contains("workers = ") { "" } else { "[gateway]\nworkers = 2\n" };
    format!("{workers}{toml}LISTEN")
}

/// For tests that have to know which instance is asked.
const ONE_WORKER: &str = "[gateway]\nworkers = 1\n";

/// What the guest says, line by line.
#[track_caller]
fn tell(gateway: &Gateway, policy: &str, commands: &str) -> Vec<String> {
    let answer = ask(&mut gateway.client(), policy, commands);
    assert_eq!(answer.0, 200, "{commands}: {:#?}", gateway.stderr.all());
    answer.1
}

fn ask(client: &mut Client, policy: &str, commands: &str) -> (u16, Vec<String>) {
    client.send(format!("GET /{policy} HTTP/1.1\r\nHost: x\r\nx-do: {commands}\r\n\r\n"));
    let answer = client.answer();
    (answer.status, answer.body.lines().map(str::to_owned).collect())
}

/// What `check` says of a configuration.
fn check(folder: &TempDir, toml: &str) -> (Option<i32>, String) {
    let file = folder.path().join("check.toml");
    let dir = folder.path().display().to_string();
    let toml = toml.replace("DIR", &dir) + "[[listener]]\naddress = \"127.0.0.1:0\"\n";
    std::fs::write(&file, toml).expect("written");
    let output = baton().args(["check", "-c"]).arg(&file).output().expect("it runs");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

// === clock, random ===

#[test]
fn clocks_go_on_and_random_bytes_are_bounded() {
    let gateway = start(&policy("p", "config = { configure = \"random 16\" }"));
    let said = tell(&gateway, "p", "wall;monotonic;random 0;random 65536;random 16;configured;wall;monotonic");
    let number = |at: usize| said[at].parse::<u64>().expect("a number");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_millis();
    assert!(u128::from(number(0)).abs_diff(now) < 60_000 && number(7) >= number(1), "{said:?}");
    assert_eq!((&*said[2], said[3].split(' ').next()), ("0 ", Some("65536")));
    assert_ne!(said[4], tell(&gateway, "p", "random 16")[0]);
    assert_eq!(said[5], tell(&gateway, "p", "configured")[0], "what configure draws is the same in every instance");
    assert_eq!(ask(&mut gateway.client(), "p", "random 65537").0, 503);
    gateway.stderr.wait(0, &["trap: random.bytes: 65537 bytes are asked for, 65536 can be had at once"]);
}

/// A trap may be the fault of what an earlier request left behind: it is tried again where nobody would see it twice.
#[test]
fn a_trap_behind_clock_and_random_is_tried_again_and_behind_the_others_not() {
    let upstream = Upstream::start();
    let gateway = start(&(ONE_WORKER.to_owned() + &calling(&upstream, "")));
    for (command, status) in [
        ("wall", 200),
        ("monotonic", 200),
        ("random 4", 200),
        ("secret x", 200),
        ("get a", 503),
        ("count a 1", 503),
        ("status a", 503),
        ("fetch app GET /bytes/1 20000", 503),
    ] {
        tell(&gateway, "p", "mark");
        assert_eq!(ask(&mut gateway.client(), "p", &format!("{command};trap-if-marked")).0, status, "{command}");
    }
}

// === config.secret ===

#[test]
fn secrets_are_read_at_load_seen_by_requests_only_and_never_said() {
    let folder = folder();
    guest(&folder);
    std::fs::write(folder.path().join("db"), "file-sesame\n").expect("written");
    let keys = "secrets = { api = { env = \"BATON_TEST_SECRET\" }, db = { file = \"db\" } }\n\
                config = { configure = \"secret api\", secrets = \"no key\" }";
    let toml = whole(&policy("p", keys));
    let gateway = Gateway::start_in(folder, &toml, |command| {
        command.env("BATON_TEST_SECRET", "env-sesame").args(["--log-level", "info,baton=trace,policy=trace"])
    });
    assert_eq!(
        tell(&gateway, "p", "secret api;secret db;secret none;configured"),
        ["env-sesame", "file-sesame", "none", "none|"]
    );
    // Another one is seen after a reload.
    std::fs::write(gateway.path("db"), "later-sesame\r\n").expect("written");
    let from = gateway.reload(&toml);
    gateway.stderr.wait(from, &["configuration reloaded"]);
    assert_eq!(tell(&gateway, "p", "secret db"), ["later-sesame"]);
    std::fs::remove_file(gateway.path("db")).expect("removed");
    let from = gateway.reload(&toml);
    gateway.stderr.wait(from, &["policy.p.secrets.db: db: No such file", "the old one stays in force"]);
    assert_eq!(ask(&mut gateway.client(), "p", "secret db;panic").0, 503);
    gateway.stderr.wait(0, &["policy failed"]);
    let said = gateway.stderr.all().join("\n") + &std::fs::read_to_string(gateway.path("access.log")).expect("written");
    assert!(!said.contains("sesame"), "{said}");
}

#[test]
fn a_secret_that_cannot_be_read_is_a_fault_of_its_key() {
    let folder = folder();
    guest(&folder);
    std::fs::write(folder.path().join("largest"), [b'x'; 64 << 10]).expect("written");
    std::fs::write(folder.path().join("larger"), [b'x'; (64 << 10) + 1]).expect("written");
    std::fs::write(folder.path().join("empty"), "\n").expect("written");
    std::fs::write(folder.path().join("bytes"), [0xff, 0xfe]).expect("written");
    for (secret, fault) in [
        ("{ file = \"largest\" }", None),
        ("{ env = \"PATH\" }", None),
        ("{ file = \"larger\" }", Some("larger: more than 65536 bytes")),
        ("{ file = \"empty\" }", Some("empty")),
        ("{ file = \"bytes\" }", Some("bytes: not UTF-8")),
        ("{ file = \"absent\" }", Some("absent: No such file or directory (os error 2)")),
        ("{ env = \"BATON_TEST_ABSENT\" }", Some("the environment has no BATON_TEST_ABSENT")),
        ("{}", Some("either env or file")),
        ("{ env = \"PATH\", file = \"largest\" }", Some("either env or file")),
    ] {
        let (code, said) = check(&folder, &policy("p", &format!("secrets = {{ s = {secret} }}")));
        match fault {
            None => assert_eq!((code, said), (Some(0), String::new()), "{secret}"),
            Some(fault) => {
                let expected = format!("check.toml:4: policy.p.secrets.s: {fault}\n");
                assert!(code == Some(64) && said.ends_with(&expected), "{secret}: {said}");
            }
        }
    }
}

// === metrics ===

#[test]
fn metrics_beyond_the_limits_are_dropped_and_said_within_limits() {
    let gateway = start(&policy("p", "metric_series_max = 100\nlog_lines_per_second = 5\ndeadline = \"2s\""));
    tell(&gateway, "p", "count a 1 x=*256;gauge b 0.5;observe c NaN;observe c 1");
    assert_eq!(gateway.stderr.all().iter().filter(|line| line.contains("metric")).count(), 0);
    tell(&gateway, "p", "count-many n 97;count n0 1");
    assert_eq!(gateway.stderr.all().iter().filter(|line| line.contains("metric")).count(), 0, "at the limit");
    // A million names cost nothing but the calls.
    let before = gateway.resident_bytes();
    tell(&gateway, "p", "count-many m 10000");
    tell(&gateway, "p", "count-many o 10000");
    let said = gateway.stderr.wait(0, &["metric not recorded: more series than metric_series_max"]);
    assert!(said.contains("policy=\"p\" generation=1"), "{said}");
    assert!(gateway.resident_bytes() < before + (8 << 20));
    let all = gateway.stderr.all();
    assert_eq!(all.iter().filter(|line| line.contains("metric_series_max")).count(), 1, "{all:#?}");
    let from = gateway.stderr.count();
    for _ in 0..10 {
        tell(&gateway, "p", "count A 1;count x 1 le=1;count y 1 a=*257;gauge a 1");
    }
    for reason in ["a metric's name has 1 to 64", "the labels policy and le", "a label's value has up to 256"] {
        gateway.stderr.wait(from, &["metric not recorded", reason]);
    }
}

// === store ===

#[test]
fn every_function_of_the_store_gives_every_result() {
    let gateway = start(&policy("p", ""));
    let lines = |commands: &str| tell(&gateway, "p", commands).join(" ");
    assert_eq!(
        lines("get a;set a v -;get a;cas a 0 w -;cas a 1 w -;cas a 1 x -;get a"),
        "none 1 v@1 conflict 2 conflict w@2"
    );
    assert_eq!(lines("delete a;get a;cas a 2 x -;cas a 0 x -;get a"), "done none conflict 3 x@3");
    assert_eq!(lines("increment n 5;increment n -7;get n;increment a 1"), "5 -2 -2@5 conflict");
    assert_eq!(lines("set m 9223372036854775807 -;increment m 1;increment m 0"), "6 conflict 9223372036854775807");
    assert_eq!(lines("set e v 0;get e;increment f 1 0;increment f 1 0"), "8 none 1 1");
    assert_eq!(lines("take b 0 2 1;take b 0 2 1;take b 0 2 1;delete b;take b 0 2 2"), "true true false done true");
    let taken = |command| lines(command) == "true";
    assert!(taken("take r 1000 1 1"));
    eventually("it refills", || taken("take r 1000 1 1").then_some(()));
    assert_eq!(lines("set s v 20;get s"), "11 v@11");
    eventually("it expires", || (lines("get s") == "none").then_some(()));
    assert_eq!(lines("set *1024 *65536 -;set *1025 v -;set k *65537 -;get *1025"), "12 too-large too-large none");
}

#[test]
fn a_store_is_full_at_its_limit_and_takes_more_when_something_expires() {
    // An entry with a key of five bytes and no value is 133.
    let gateway = start(&policy("p", &format!("store_bytes_max = \"{}B\"\ndeadline = \"1s\"", 133 * 500)));
    assert_eq!(tell(&gateway, "p", "fill k;take b 1 1 1;set k0000 v -"), ["500 full", "false", "full"]);
    assert_eq!(
        tell(&gateway, "p", "delete k0000;set k0001 *100 -;set k0002 *34 -;set k0002 *33 -"),
        ["done", "501", "full", "502"]
    );
    assert_eq!(
        tell(&gateway, "p", "delete k0001;delete k0003;set s *33 50;set t *33 -"),
        ["done", "done", "503", "504"]
    );
    eventually("it expires", || (tell(&gateway, "p", "set u *60 -") != ["full"]).then_some(()));
}

#[test]
fn policies_do_not_see_each_others_store_and_reloads_leave_it() {
    let both = policy("p", "") + &policy("q", "");
    let gateway = start(&both);
    tell(&gateway, "p", "set k p -;increment n 1;count c 1");
    assert_eq!(tell(&gateway, "q", "get k;set k q -;get k"), ["none", "1", "q@1"]);
    assert_eq!(tell(&gateway, "p", "get k"), ["p@1"]);
    // A new generation of the policy.
    let module = gateway.path("imports.wasm");
    let mut other = std::fs::read(&module).expect("built");
    other.extend([0, 5, 4, b'n', b'o', b't', b'e']);
    std::fs::write(gateway.path("new"), other).expect("written");
    std::fs::rename(gateway.path("new"), &module).expect("renamed");
    gateway.stderr.wait(0, &["policy reloaded", "policy=\"p\"", "to=2"]);
    assert_eq!(tell(&gateway, "p", "get k;increment n 1"), ["p@1", "2"]);
    // A new configuration, with which the policy is loaded again.
    let changed = policy("p", "store_bytes_max = \"1kB\"") + &policy("q", "");
    let from = gateway.reload(&whole(&changed));
    gateway.stderr.wait(from, &["configuration reloaded"]);
    assert_eq!(tell(&gateway, "p", "get k;increment n 1;set v *1024 -"), ["p@1", "3", "full"]);
    // One that cannot be proved had a scratch of its own.
    let from = gateway.reload(&whole(
        &(policy("p", "config = { test = \"get k;set k t -;increment n 1;get k\" }") + &policy("q", "")),
    ));
    gateway.stderr.wait(from, &["self-test: none 1 1 t@1", "the old one stays in force"]);
    let from =
        gateway.reload(&whole(&(policy("p", "config = { configure = \"get k;set k c -\" }") + &policy("q", ""))));
    gateway.stderr.wait(from, &["configuration reloaded"]);
    assert_eq!(tell(&gateway, "p", "configured;get k;get n"), ["none|1|", "p@1", "3@4"]);
    // Gone from the configuration, and back: nobody is left who could have it.
    let from = gateway.reload(&whole(&policy("q", "")));
    gateway.stderr.wait(from, &["configuration reloaded"]);
    // The settings before are freed when the last client that had them is gone.
    eventually("it begins anew", || {
        let from = gateway.reload(&whole(&both));
        gateway.stderr.wait(from, &["configuration reloaded"]);
        if tell(&gateway, "p", "get k") == ["none"] {
            return Some(());
        }
        let from = gateway.reload(&whole(&policy("q", "")));
        gateway.stderr.wait(from, &["configuration reloaded"]);
        None
    });
    assert_eq!(tell(&gateway, "q", "get k"), ["q@1"]);
}

#[test]
fn increments_from_all_workers_are_all_counted() {
    let gateway = start(&policy("p", "reuse_max = 100"));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = gateway.client();
                for _ in 0..250 {
                    assert_eq!(ask(&mut client, "p", "increment n 1;increment n 1").0, 200);
                }
            });
        }
    });
    assert_eq!(tell(&gateway, "p", "increment n 0"), ["4000"]);
}

// === targets ===

#[test]
fn what_targets_yields_can_be_handed_over_to_and_failures_are_seen() {
    let folder = folder();
    guest(&folder);
    let daemons: Vec<_> = ["a", "b"]
        .map(|name| Daemon::start(&folder.path().join(name), "seqpacket", "serve", &[&format!("name={name}")]))
        .into();
    let targets = "[handoff]\nretries = 0\n[target.chat]\nsockets = [\"DIR/a\", \"DIR/b\"]\n\
                   [target.gone]\nsockets = [\"DIR/c\"]\n[target.other]\nsockets = [\"DIR/a\"]\n";
    let toml = whole(&(targets.to_owned() + &policy("p", "targets = [\"chat\", \"gone\"]") + &policy("any", "")));
    let gateway = Gateway::start_in(folder, &toml, |command| command);
    let lines = |commands: &str| tell(&gateway, "p", commands);
    assert_eq!(
        lines("status chat;status chat/1;status chat/2;status other;status nothing;status /run/x"),
        ["chat up 0 - -", "chat/1 up 0 - -", "none", "none", "none", "none"]
    );
    assert_eq!(lines("members chat;members chat/0;members other"), ["chat/0 up 0 - -, chat/1 up 0 - -", "", ""]);
    assert_eq!(tell(&gateway, "any", "status other;members other"), ["other up 0 - -", "other/0 up 0 - -"]);
    assert_eq!(lines("revoke 01ARZ3NDEKTSV4RRFFQ69G5FAV"), ["false"]);
    let picked = lines(
        "pick chat hash k;pick chat hash k;pick other hash k;pick chat/0 hash k;pick chat round-robin;pick chat round-robin",
    );
    assert_eq!((&picked[0], &*picked[2], &*picked[3]), (&picked[1], "none", "none"));
    assert_ne!(picked[4], picked[5]);
    // Every name that it yields, with a policy that may name the group only.
    let handed = |policy: &str, to: &str| {
        let mut client = gateway.client();
        client.send(format!("GET /{policy} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nx-do: handoff {to}\r\n\r\n"));
        client.rest()
    };
    assert!(handed("p", "chat/0").ends_with("from a\n") && handed("p", "chat/1").ends_with("from b\n"));
    let own = if picked[0] == "chat/0" { "from a\n" } else { "from b\n" };
    assert!(handed("p", "pick chat hash k").ends_with(own));
    for name in ["chat/2", "chat/00", "chat/", "other", "other/0", "chat/0/0"] {
        assert!(handed("p", name).starts_with("HTTP/1.1 403"), "{name}");
    }
    let log = eventually("all are logged", || {
        Some(gateway.log()).filter(|log| log.iter().any(|line| line["to"] == "chat/1"))
    });
    assert!(log.iter().any(|line| line["to"] == "chat/0" && line["outcome"] == "handed-off"));
    // A daemon that fails is down, and up again when a moment has passed.
    assert!(handed("p", "gone").starts_with("HTTP/1.1 503"));
    let down = lines("status gone;members gone;pick gone hash k");
    assert!(
        down[0].starts_with("gone down 0 - ") && down[1].starts_with("gone/0 down 0 - ") && down[2] == "none",
        "{down:?}"
    );
    eventually("it is up again", || (lines("pick gone hash k") == ["gone/0"]).then_some(()));
    assert!(
        lines("status gone")[0].starts_with("gone up 0 - ") && lines("status gone")[0].len() > 15,
        "its last error stays"
    );
    drop(daemons);
    // What is proved sees names, and no more.
    let test = policy(
        "p",
        "config = { test = \"status chat;status nothing;members chat;pick chat hash k;fetch app GET / 100;secret x\" }",
    );
    let from = gateway.reload(&whole(&(targets.to_owned() + &test)));
    gateway.stderr.wait(from, &["self-test: chat unknown 0 - - none none not-allowed none"]);
}

#[test]
fn a_slash_in_a_targets_name_is_a_fault() {
    let folder = folder();
    let (code, said) = check(&folder, "[target.\"a/0\"]\nsockets = [\"/run/a\"]\n");
    assert!(code == Some(64) && said.contains("check.toml:1: target.a/0: a / in a name"), "{said}");
}

// === callout ===

/// A server of HTTP/1.1 that does what the path says.
struct Upstream {
    address: SocketAddr,
    open: Arc<Mutex<Vec<TcpStream>>>,
    accepted: Arc<AtomicUsize>,
    is_killed: Arc<AtomicBool>,
}

impl Upstream {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let upstream = Self { address, open: Arc::default(), accepted: Arc::default(), is_killed: Arc::default() };
        let (open, accepted, is_killed) =
            (Arc::clone(&upstream.open), Arc::clone(&upstream.accepted), Arc::clone(&upstream.is_killed));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if is_killed.load(Ordering::SeqCst) {
                    return;
                }
                accepted.fetch_add(1, Ordering::SeqCst);
                open.lock().expect("no panic").push(stream.try_clone().expect("a descriptor"));
                let open = Arc::clone(&open);
                std::thread::spawn(move || {
                    let own = stream.peer_addr().ok();
                    drop(serve(stream.try_clone().expect("a descriptor"), stream));
                    open.lock()
                        .expect("no panic")
                        .retain(|other| other.peer_addr().ok() != own && other.peer_addr().is_ok());
                });
            }
        });
        upstream
    }

    fn toml(&self, name: &str, rest: &str) -> String {
        format!("[upstream.{name}]\naddress = \"http://{}\"\n{rest}\n", self.address)
    }

    fn open(&self) -> usize {
        self.open.lock().expect("no panic").iter().filter(|stream| stream.peer_addr().is_ok()).count()
    }

    /// As a process that is killed: nobody listens, and every connection ends.
    fn kill(&self) {
        self.is_killed.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
        for stream in self.open.lock().expect("no panic").drain(..) {
            drop(stream.shutdown(Shutdown::Both));
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Answers requests until the client closes.
fn serve(from: impl Read, mut to: impl Write) -> std::io::Result<()> {
    let mut from = BufReader::new(from);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if from.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let length =
            head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned));
        let mut body = vec![0; length.map_or(0, |length| length.parse().expect("a number"))];
        from.read_exact(&mut body)?;
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let (word, rest) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
        match word {
            "bytes" => {
                let body = "y".repeat(rest.parse().expect("a number"));
                write!(to, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
            }
            "chunks" => {
                write!(to, "HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n")?;
                write!(
                    to,
                    "HTTP/1.1 201 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-t\r\nConnection: x-hop\r\nX-Hop: 1\r\n"
                )?;
                write!(to, "Set-Cookie: a\r\nSet-Cookie: b\r\n\r\n3\r\nabc\r\n2;e=1\r\nde\r\n0\r\nx-t: 1\r\n\r\n")?;
            }
            "endless" => {
                write!(to, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
                loop {
                    write!(to, "400\r\n{}\r\n", "z".repeat(1024))?;
                }
            }
            "until-close" => {
                write!(to, "HTTP/1.0 200 OK\r\n\r\nall of it")?;
                return Ok(());
            }
            "cut" => {
                write!(to, "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbegun")?;
                return Ok(());
            }
            "close" => return Ok(()),
            "nonsense" => write!(to, "hello there\r\n\r\n")?,
            "both" => write!(to, "HTTP/1.1 200 OK\r\ncontent-length: 1, 2\r\n\r\nab")?,
            "switch" => write!(to, "HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n")?,
            "hang" => return from.read(&mut [0; 1]).map(drop),
            "hang-body" => {
                write!(to, "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbegun")?;
                return from.read(&mut [0; 1]).map(drop);
            }
            "last" => {
                write!(to, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")?;
                return Ok(());
            }
            _ => {
                let said = head.replace("\r\n", "|") + &String::from_utf8_lossy(&body);
                let length = if head.starts_with("HEAD ") { 0 } else { said.len() };
                write!(to, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{}", said.len(), &said[..length])?;
            }
        }
        to.flush()?;
    }
}

fn calling(upstream: &Upstream, rest: &str) -> String {
    upstream.toml("app", "head_timeout = \"5s\"\nbody_timeout = \"5s\"")
        + &policy("p", &format!("upstreams = [\"app\"]\n{rest}"))
}

#[test]
fn a_callout_sends_what_it_was_told_and_gives_the_whole_answer() {
    let upstream = Upstream::start();
    let gateway = start(&calling(&upstream, ""));
    let host = upstream.address;
    let said = |commands: &str| tell(&gateway, "p", commands);
    assert_eq!(said("fetch app GET /a%20b?c 20000"), [format!("200 [] GET /a%20b?c HTTP/1.1|host: {host}||")]);
    let post = "fetch app POST / 20000 body x-a=1 X-A=2 host=else content-length=99 connection=x-a te=trailers transfer-encoding=chunked upgrade=x";
    let got = &said(post)[0];
    for part in ["POST / HTTP/1.1|", "|x-a: 1|", "|x-a: 2|", "|host: else|", "|content-length: 4|", "||body"] {
        assert!(got.contains(part), "{part}: {got}");
    }
    for part in ["99", "te:", "chunked", "upgrade", "connection", &host.to_string()] {
        assert!(!got.contains(part), "{part}: {got}");
    }
    assert_eq!(said("fetch app HEAD / 20000"), ["200 [] "]);
    assert_eq!(said("fetch app GET /chunks 20000"), ["201 [set-cookie=a set-cookie=b] abcde"]);
    assert_eq!(said("fetch app GET /until-close 20000"), ["200 [] all of it"]);
    assert_eq!(said("fetch app GET /last 20000;fetch app GET /last 20000"), ["200 [] ok"; 2]);
}

#[test]
fn a_callout_over_a_unix_socket_has_the_inside_path_in_front() {
    let folder = folder();
    guest(&folder);
    let listener = UnixListener::bind(folder.path().join("app.sock")).expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || serve(stream.try_clone().expect("a descriptor"), stream));
        }
    });
    let upstreams =
        "[upstream.plain]\naddress = \"unix:DIR/app.sock\"\n[upstream.inner]\naddress = \"unix:app.sock:/inside/\"\n";
    let toml = whole(&(upstreams.to_owned() + &policy("p", "upstreams = [\"plain\", \"inner\"]")));
    let gateway = Gateway::start_in(folder, &toml, |command| command);
    assert_eq!(
        tell(&gateway, "p", "fetch plain GET /a?b 20000;fetch inner GET /a?b 20000"),
        ["200 [] GET /a?b HTTP/1.1|host: localhost||", "200 [] GET /inside/a?b HTTP/1.1|host: localhost||",]
    );
}

#[test]
fn every_way_in_which_a_callout_fails_is_told_apart() {
    let upstream = Upstream::start();
    let absent = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port that nobody listens on");
    let more = upstream.toml("other", "") + &format!("[upstream.absent]\naddress = \"http://{absent}\"\n");
    let toml = calling(&upstream, "").replace("[\"app\"]", "[\"app\", \"absent\"]");
    let gateway = start(
        &(more
            + &toml
            + &policy("none", "")
            + &policy("limited", "upstreams = [\"app\"]\ncallouts_max = 2\ncallout_bytes_max = \"1000B\"")),
    );
    let said = |commands: &str| tell(&gateway, "p", commands);
    assert_eq!(said("fetch other GET / 20000;fetch nothing GET / 20000"), ["not-allowed"; 2]);
    assert_eq!(tell(&gateway, "none", "fetch app GET / 20000"), ["not-allowed"]);
    assert_eq!(said("fetch app GET /hang 50;fetch app GET /hang-body 50;fetch app GET / 0"), ["timed-out"; 3]);
    let refused = said("fetch absent GET / 20000");
    assert!(refused[0].starts_with(&format!("unreachable: {absent}: Connection refused")), "{refused:?}");
    for path in ["cut", "close", "nonsense", "both", "switch"] {
        let said = said(&format!("fetch app GET /{path} 20000"));
        assert!(said[0].starts_with("unreachable: ") && said[0].len() > 15, "{path}: {said:?}");
    }
    let limited = |commands: &str| tell(&gateway, "limited", commands);
    assert_eq!(
        limited("fetch app GET /bytes/1000 20000;fetch app GET /bytes/1001 20000"),
        ["200 [] 1000 bytes", "too-large"]
    );
    assert_eq!(
        limited("fetch app GET /endless 20000;fetch app GET /bytes/1 20000;fetch app GET /bytes/1 20000"),
        ["too-large", "200 [] y", "budget"]
    );
    assert_eq!(limited("fetch app GET /bytes/1 20000"), ["200 [] y"], "each hook has its own");
    let default = "fetch app GET /bytes/1 20000;".repeat(9);
    assert_eq!(said(&default)[7..], ["200 [] y", "budget"]);
    assert_eq!(
        said("fetch app GET /bytes/1048576 20000;fetch app GET /bytes/1048577 20000"),
        ["200 [] 1048576 bytes", "too-large"]
    );
    // The upstream's own limits, whatever the policy asks for.
    let began = Instant::now();
    assert_eq!(said("fetch app GET /hang 60000"), ["timed-out"]);
    assert!((5..60).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    // What would break the wire is a fault of the policy.
    for call in [
        "fetch app G(T / 1000",
        "fetch app GET a 1000",
        "fetch app GET /# 20000",
        "fetch app CONNECT / 20000",
        "fetch app GET / 20000 - a(b=1",
        "fetch app GET / 20000 - host=a host=b",
    ] {
        let from = gateway.stderr.count();
        assert_eq!(ask(&mut gateway.client(), "p", call).0, 503, "{call}");
        gateway.stderr.wait(from, &["policy failed policy=p generation=1 request=", "trap: callout.fetch: "]);
    }
}

#[test]
fn connections_are_kept_and_closed_when_their_time_is_over() {
    let upstream = Upstream::start();
    let toml =
        upstream.toml("app", "keep_alive = 1\nkeep_alive_timeout = \"300ms\"") + &policy("p", "upstreams = [\"app\"]");
    let gateway = start(&(ONE_WORKER.to_owned() + &toml));
    let before = gateway.ledger();
    let mut client = gateway.client();
    for _ in 0..5 {
        assert_eq!(ask(&mut client, "p", "fetch app GET /bytes/1 20000;fetch app GET /bytes/2 20000").0, 200);
    }
    assert_eq!(upstream.accepted.load(Ordering::SeqCst), 1, "one worker, one connection");
    eventually("it is closed", || (upstream.open() == 0).then_some(()));
    drop(client);
    gateway.ledger_is(&before);
    // One that the server closes meanwhile is replaced without a word.
    let mut client = gateway.client();
    for _ in 0..20 {
        assert_eq!(ask(&mut client, "p", "fetch app GET /bytes/1 20000"), (200, vec!["200 [] y".into()]));
        for stream in upstream.open.lock().expect("no panic").drain(..) {
            drop(stream.shutdown(Shutdown::Both));
        }
    }
}

#[test]
fn only_the_asking_instance_waits() {
    let upstream = Upstream::start();
    let gateway = start(&(ONE_WORKER.to_owned() + &calling(&upstream, "deadline = \"20ms\"")));
    let mut waiting: Vec<_> = (0..20).map(|_| gateway.client()).collect();
    for client in &mut waiting {
        client.send("GET /p HTTP/1.1\r\nHost: x\r\nx-do: fetch app GET /hang 4500;increment n 1\r\n\r\n");
    }
    eventually("all are waiting", || (upstream.open() == 20).then_some(()));
    let mut times: Vec<_> = (0..50)
        .map(|_| {
            let began = Instant::now();
            assert_eq!(tell(&gateway, "p", "get n;fetch app GET /bytes/1 20000")[1], "200 [] y");
            began.elapsed()
        })
        .collect();
    times.sort();
    assert!(times[25] < Duration::from_millis(200), "{times:?}");
    // They waited for longer than their deadline, which is time that a guest runs for, and went on.
    for client in &mut waiting {
        let answer = client.answer();
        assert_eq!((answer.status, answer.body.lines().next()), (200, Some("timed-out")));
    }
    assert_eq!(tell(&gateway, "p", "increment n 0"), ["20"]);
    // What runs too long after a callout is ended all the same.
    assert_eq!(ask(&mut gateway.client(), "p", "fetch app GET /bytes/1 20000;spin").0, 503);
    gateway.stderr.wait(0, &["deadline of 20ms exceeded"]);
}

#[test]
fn a_policy_whose_server_hangs_leaves_the_others_their_share() {
    let upstream = Upstream::start();
    let toml = upstream.toml("app", "head_timeout = \"60s\"\nkeep_alive = 0")
        + &["p", "q"].map(|name| policy(name, "upstreams = [\"app\"]\ndeadline = \"5s\"")).concat();
    let gateway = start(&toml);
    // Alone it may have half of 384, beside one that has them half of what is left.
    let mut waiting = Vec::new();
    for (name, places) in [("p", 192), ("q", 96)] {
        let hang = format!("GET /{name} HTTP/1.1\r\nHost: x\r\nx-do: fetch app GET /hang 60000\r\n\r\n");
        let before = waiting.len();
        waiting.extend((0..places).map(|_| {
            let mut client = gateway.client();
            client.send(&hang);
            client
        }));
        eventually("all wait", || (upstream.open() == before + places).then_some(()));
        assert_eq!(tell(&gateway, name, "fetch app GET /bytes/1 20000"), ["budget"], "one more of {name}");
        if name == "p" {
            assert_eq!(tell(&gateway, "q", "fetch app GET /bytes/1 20000"), ["200 [] y"]);
            eventually("its connection is closed", || (upstream.open() == places).then_some(()));
        }
    }
    upstream.kill();
    for client in &mut waiting {
        let answer = client.answer();
        assert_eq!(answer.status, 200);
        assert!(answer.body.starts_with("unreachable: "), "{}", answer.body);
    }
}

#[test]
fn a_server_that_is_killed_in_the_middle_of_a_thousand_callouts_leaves_nothing_behind() {
    let upstream = Upstream::start();
    let gateway = start(&calling(&upstream, ""));
    let before = gateway.ledger();
    let asked = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| {
                let mut client = gateway.client();
                for _ in 0..100 {
                    let (status, said) = ask(&mut client, "p", "fetch app GET /bytes/100 2000");
                    assert_eq!(status, 200);
                    let is_one = said[0].starts_with("200 [] yyy") || said[0].starts_with("unreachable: ");
                    assert!(is_one, "{said:?}");
                    asked.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        eventually("half of them", || (asked.load(Ordering::SeqCst) >= 500).then_some(()));
        upstream.kill();
    });
    assert_eq!(asked.load(Ordering::SeqCst), 1000);
    let said = tell(&gateway, "p", "fetch app GET / 20000");
    assert!(said[0].starts_with("unreachable: "), "{said:?}");
    gateway.ledger_is(&before);
}

#[test]
fn upstreams_are_resolved_with_every_fault() {
    let folder = folder();
    guest(&folder);
    for (toml, faults) in [
        ("[upstream.a]\naddress = \"http://127.0.0.1:9000\"\n", vec![]),
        ("[upstream.a]\n", vec!["1: upstream.a: no address"]),
        (
            "[upstream.a]\naddress = [\"http://a\", \"fcgi://b:1\"]\n",
            vec!["2: upstream.a.address: FastCGI and HTTP in one list"],
        ),
        ("[upstream.a]\naddress = []\n", vec!["2: upstream.a.address: empty"]),
        (
            "[upstream.a]\naddress = \"h2://a\"\n",
            vec!["2: upstream.a.address: \"h2://a\" asks for HTTP/2, which is not spoken to upstreams"],
        ),
        (
            "[upstream.a]\naddress = \"http://a\"\nrole = \"filter\"\nca = \"x\"\n",
            vec!["3: upstream.a.role: it goes with fcgi", "4: upstream.a.ca: it goes with https"],
        ),
        ("[upstream.a]\naddress = \"127.0.0.1:80\"\n", vec!["2: upstream.a.address: \"127.0.0.1:80\" is no address"]),
        (
            "[upstream.a]\naddress = \"http://a\"\nhead_timeout = \"0s\"\nhost = \"x/\"\n",
            vec!["3: upstream.a.head_timeout: longer than 0", "4: upstream.a.host: a host, with a port or without"],
        ),
    ] {
        let (code, said) = check(&folder, toml);
        assert_eq!(code, Some(if faults.is_empty() { 0 } else { 64 }), "{said}");
        assert!(faults.iter().all(|fault| said.contains(&format!("check.toml:{fault}"))), "{toml}: {said}");
        assert_eq!(said.lines().count(), faults.len(), "{said}");
    }
    let (code, said) = check(&folder, &policy("p", "upstreams = [\"a\"]"));
    assert!(code == Some(64) && said.contains("policy.p.upstreams[0]: no upstream is called \"a\""), "{said}");
}
