//! What changes while the gateway runs: policies and the configuration, each all or nothing, and nobody notices but by the
//! answers.
#![cfg(feature = "gateway")]

mod support;

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::signal::Signal;
use serde_json::Value;
use support::{Client, Daemon, Gateway, eventually, folder};

/// A guest's text.
fn guest(name: &str) -> String {
    let path = format!("{}/tests/policies/{name}.wat", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A guest that answers with that status.
fn answering(status: u16) -> String {
    let text = guest("answers");
    assert!(text.contains("(i32.const 231)"));
    text.replace("(i32.const 231)", &format!("(i32.const {status})"))
}

/// Replaces a file as a whole.
fn rename_over(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).expect("written");
    fs::rename(new, path).expect("renamed");
}

/// One route that the policy `p` decides.
const ONE_POLICY: &str =
    "LISTEN\n[policy.p]\nmodule = \"DIR/p.wat\"\ndeadline = \"50ms\"\n[[route]]\npath = \"/\"\npolicies = [\"p\"]\n";

fn start(text: &str) -> Gateway {
    let folder = folder();
    fs::write(folder.path().join("p.wat"), text).expect("written");
    Gateway::start_in(folder, ONE_POLICY, |command| command)
}

#[track_caller]
fn becomes(gateway: &Gateway, path: &str, status: u16) {
    eventually(&format!("{path} is answered {status}"), || (gateway.status(path) == status).then_some(()));
}

/// The line of the access log that was written last.
fn last(gateway: &Gateway) -> Value {
    let count = gateway.log().len();
    gateway.log_line(count)
}

fn count(gateway: &Gateway, from: usize, words: &[&str]) -> usize {
    gateway.stderr.all()[from..].iter().filter(|line| words.iter().all(|word| line.contains(word))).count()
}

// === Policies ===

#[test]
fn a_changed_policy_decides_the_next_request_however_it_was_changed() {
    let gateway = start(&answering(231));
    let module = gateway.path("p.wat");
    assert_eq!(gateway.status("/"), 231);
    assert_eq!(gateway.log_line(1)["generation"], 1);
    let mut client = gateway.client();
    for (generation, status) in [(2, 232), (3, 233), (4, 234), (5, 235)] {
        match status % 2 {
            0 => rename_over(&module, &answering(status)),
            _ => fs::write(&module, answering(status)).expect("written"),
        }
        let (from, to) = (format!("from={}", generation - 1), format!("to={generation}"));
        gateway.stderr.wait(0, &["policy reloaded policy=\"p\"", &from, &to]);
        // Once it is said it is in force, and on a connection that was there before.
        client.get("/");
        assert_eq!(client.answer().status, status);
        eventually("its line", || (last(&gateway)["generation"] == generation).then_some(()));
    }
}

#[test]
fn links_and_whole_folders_can_be_swapped() {
    let folder = folder();
    let root = folder.path().to_owned();
    let version = |status: u16| {
        fs::create_dir(root.join(format!("..{status}"))).expect("created");
        fs::write(root.join(format!("..{status}/p.wat")), answering(status)).expect("written");
        symlink(format!("..{status}"), root.join("..new")).expect("linked");
        fs::rename(root.join("..new"), root.join("..data")).expect("swapped");
    };
    version(231);
    symlink("..data/p.wat", root.join("p.wat")).expect("linked");
    fs::create_dir(root.join("policies")).expect("created");
    fs::write(root.join("policies/q.wat"), answering(241)).expect("written");
    let other = "[policy.q]\nmodule = \"DIR/policies/q.wat\"\n[[route]]\npath = \"/q\"\npolicies = [\"q\"]\n";
    let gateway = Gateway::start_in(folder, &format!("{ONE_POLICY}{other}"), |command| command);
    assert_eq!((gateway.status("/"), gateway.status("/q")), (231, 241));
    for status in [232, 233] {
        version(status);
        becomes(&gateway, "/", status);
        fs::create_dir(root.join("new")).expect("created");
        fs::write(root.join("new/q.wat"), answering(status + 10)).expect("written");
        fs::rename(root.join("policies"), root.join(format!("old{status}"))).expect("moved away");
        fs::rename(root.join("new"), root.join("policies")).expect("moved in");
        becomes(&gateway, "/q", status + 10);
    }
}

#[test]
fn a_configuration_and_its_policies_behind_one_link_change_together() {
    // As Kubernetes mounts a ConfigMap: every file is replaced at once, also those that are the same.
    let folder = folder();
    let root = folder.path().to_owned();
    let version = |status: u16| {
        let new = root.join(format!("..{status}"));
        fs::create_dir(&new).expect("created");
        fs::write(new.join("p.wat"), answering(status)).expect("written");
        if let Ok(configuration) = fs::read(root.join("baton.toml")) {
            fs::write(new.join("baton.toml"), configuration).expect("written");
        }
        symlink(format!("..{status}"), root.join("..new")).expect("linked");
        fs::rename(root.join("..new"), root.join("..data")).expect("swapped");
    };
    version(231);
    symlink("..data/p.wat", root.join("p.wat")).expect("linked");
    symlink("..data/baton.toml", root.join("baton.toml")).expect("linked");
    let gateway = Gateway::start_in(folder, ONE_POLICY, |command| command);
    assert_eq!(gateway.status("/"), 231);
    for status in [232, 233, 234] {
        version(status);
        becomes(&gateway, "/", status);
    }
}

#[test]
fn a_broken_policy_leaves_the_old_one_and_is_said_once() {
    let gateway = start(&answering(231));
    let module = gateway.path("p.wat");
    let configure_spins = guest("configure_spins");
    let missing = guest("wants_nothing");
    let broken: [(&str, &str, &str); 10] = [
        ("no text", "no text at all", "text: expected `(`"),
        ("truncated", &answering(232)[..200], "text: unexpected token"),
        ("empty", "", "text: the file is empty"),
        ("wrong world", &guest("wrong_world"), "exports: "),
        ("configure refuses", &guest("configure_refuses"), "configure: realm is missing; secret is too short"),
        ("configure traps", &guest("configure_asks"), "configure: trap: request.path was called outside of a hook"),
        ("self-test fails", &guest("self_test_fails"), "self-test: two and two are five"),
        ("start traps", &guest("start_traps"), "instantiate: trap: "),
        ("missing import", &missing, "imports: imports baton:policy/nothing@0.1.0"),
        ("configure never ends", &configure_spins, "configure: deadline of "),
    ];
    for (at, (name, text, reason)) in broken.iter().enumerate() {
        let from = gateway.stderr.count();
        rename_over(&module, text);
        let words = ["policy not reloaded, generation 1 stays: ", "policy=\"p\""];
        let line = gateway.stderr.wait(from, &words);
        assert!(line.contains(reason), "{name}: {line}");
        assert_eq!(gateway.status("/"), 231, "{name}");
        // The same content again, by another way, is nothing new. What comes after it shows that it was looked at.
        if at == 0 {
            rename_over(&module, text);
            gateway.signal(Signal::SIGHUP);
            gateway.stderr.wait(from, &["configuration reloaded"]);
        }
    }
    for (name, _, reason) in broken {
        assert_eq!(
            count(&gateway, 0, &["policy not reloaded", reason]),
            if reason == "text: " { 2 } else { 1 },
            "{name}"
        );
    }
    fs::remove_file(&module).expect("removed");
    gateway.stderr.wait(0, &["generation 1 stays: read: ", "p.wat"]);
    assert_eq!(gateway.status("/"), 231);
    rename_over(&module, &answering(239));
    becomes(&gateway, "/", 239);
    gateway.stderr.wait(0, &["policy reloaded policy=\"p\" from=1 to=2"]);
}

#[test]
fn a_request_under_way_ends_with_the_generation_it_began_with() {
    let gateway = start(&guest("reads_body"));
    let mut waiting = gateway.client();
    waiting.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    // The policy is asked, and waits for the body.
    assert_eq!(waiting.until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
    rename_over(&gateway.path("p.wat"), &answering(232));
    becomes(&gateway, "/", 232);
    eventually("a line of the new one", || gateway.log().iter().any(|l| l["generation"] == 2).then_some(()));
    waiting.send("hello");
    let answer = waiting.answer();
    assert_eq!((answer.status, &*answer.body), (200, "hello"));
    let old = |line: &Value| line["method"] == "POST" && line["generation"] == 1;
    eventually("its line", || gateway.log().iter().any(old).then_some(()));
    // And its next request is the new one's.
    waiting.get("/");
    assert_eq!(waiting.answer().status, 232);
}

// === The configuration ===

fn responding(status: u16) -> String {
    format!("LISTEN\n[[route]]\npath = \"/a\"\ndefault = {{ respond = {{ status = {status} }} }}\n")
}

#[test]
fn hup_reads_configuration_and_policies_again_and_so_does_saving_the_file() {
    let folder = folder();
    fs::write(folder.path().join("p.wat"), answering(231)).expect("written");
    let with = |status| format!("{}{}", responding(status), ONE_POLICY.trim_start_matches("LISTEN"));
    let gateway = Gateway::start_in(folder, &with(201), |command| command);
    assert_eq!((gateway.status("/a"), gateway.status("/")), (201, 231));
    let before = gateway.reload(&with(202));
    gateway.stderr.wait(before, &["configuration reloaded"]);
    assert_eq!((gateway.status("/a"), gateway.status("/")), (202, 231));
    // Saved and nothing else.
    gateway.configure(&with(203));
    becomes(&gateway, "/a", 203);
    let file = gateway.path("baton.toml");
    let text = fs::read_to_string(&file).expect("there").replace("203", "204");
    fs::write(file, text).expect("written in place");
    becomes(&gateway, "/a", 204);
    // The policy was the same all the time.
    gateway.status("/");
    // A worker that answered before may write its line behind it.
    let line = || gateway.log().into_iter().rfind(|line| line["target"] == "/");
    assert_eq!(eventually("its line", line)["generation"], 1);
    assert_eq!(count(&gateway, 0, &["policy reloaded"]), 0);
}

#[test]
fn a_configuration_is_taken_as_a_whole_or_not_at_all() {
    let gateway = Gateway::start(&responding(201));
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("bound");
    let second = format!("[[listener]]\nname = \"second\"\naddress = \"{taken}\"\n");
    let fine = "[[listener]]\nname = \"fine\"\naddress = \"unix:DIR/fine.sock\"\n";
    let route = |default: &str| format!("[[route]]\npath = \"/b\"\ndefault = {default}\n");
    let faulty = [
        (route("{ handoff = \"nowhere\" }"), "route[1].default.handoff: no target is called \"nowhere\""),
        ("nonsense = [".into(), "no TOML"),
        ("[limits]\nhead_bites_max = 3\n".into(), "limits.head_bites_max"),
        ("[policy.p]\nmodule = \"absent.wat\"\n".into(), "policy.p.module"),
        (format!("{fine}{second}"), "listener[2].address"),
    ];
    for (fault, words) in &faulty {
        let from = gateway.reload(&format!("{}{fault}", responding(202)));
        let said = gateway.stderr.wait(from, &["configuration not reloaded: the old one stays in force", words]);
        let place = said.split("baton.toml:").nth(1).unwrap_or_else(|| panic!("no line in {said}"));
        assert!(place.starts_with(|c: char| c.is_ascii_digit()), "{said}");
        assert_eq!(gateway.status("/a"), 201, "{words}");
        assert_eq!(gateway.status("/b"), 404, "{words}");
        assert!(!gateway.path("fine.sock").exists(), "what was bound is given back");
    }
    let from = gateway.reload(&responding(203));
    gateway.stderr.wait(from, &["configuration reloaded"]);
    assert_eq!(gateway.status("/a"), 203);
}

#[test]
fn a_configuration_that_keeps_failing_is_said_once_and_heals_with_what_it_failed_for() {
    let gateway = start(&answering(231));
    let faulty =
        format!("{ONE_POLICY}[policy.q]\nmodule = \"DIR/q.wat\"\n[[route]]\npath = \"/q\"\npolicies = [\"q\"]\n");
    fs::write(gateway.path("q.wat"), guest("self_test_fails")).expect("written");
    let from = gateway.configure(&faulty);
    let words = ["configuration not reloaded", "policy.q.module", "two and two are five"];
    gateway.stderr.wait(from, &words);
    // Saved again as it was, and the module too: nothing new. The other policy's change shows that it was looked at.
    gateway.configure(&faulty);
    rename_over(&gateway.path("q.wat"), &guest("self_test_fails"));
    rename_over(&gateway.path("p.wat"), &answering(232));
    becomes(&gateway, "/", 232);
    assert_eq!(count(&gateway, from, &words), 1);
    // Only the module is mended, and the configuration is in force.
    rename_over(&gateway.path("q.wat"), &answering(241));
    becomes(&gateway, "/q", 241);
    assert_eq!((count(&gateway, from, &words), gateway.status("/")), (1, 232));
    // Asked for, it is answered each time.
    let broken = format!("{faulty}nonsense = [");
    for _ in 0..2 {
        let from = gateway.reload(&broken);
        gateway.stderr.wait(from, &["configuration not reloaded", "no TOML"]);
    }
    assert_eq!(gateway.status("/q"), 241);
}

#[test]
fn what_changed_takes_effect_and_what_did_not_keeps_its_generation() {
    let folder = folder();
    for (name, text) in [("p.wat", guest("configured")), ("q.wat", answering(231)), ("r.wat", guest("hands_over"))] {
        fs::write(folder.path().join(name), text).expect("written");
    }
    let daemons = ["one", "two"].map(|name| {
        let socket = folder.path().join(format!("{name}.sock"));
        Daemon::start(&socket, "seqpacket", "serve", &[&format!("name={name}")])
    });
    let config = |realm: &str, socket: &str, more: &str| {
        format!(
            "LISTEN\n[target.chat]\nsockets = [\"DIR/{socket}.sock\"]\n\
             [policy.p]\nmodule = \"DIR/p.wat\"\nconfig = {{ realm = \"{realm}\" }}\n\
             [policy.q]\nmodule = \"DIR/q.wat\"\n[policy.r]\nmodule = \"DIR/r.wat\"\n\
             [[route]]\npath = \"/p\"\npolicies = [\"p\"]\n[[route]]\npath = \"/q\"\npolicies = [\"q\"]\n\
             [[route]]\npath = \"/r\"\npolicies = [\"r\"]\n{more}"
        )
    };
    let gateway = Gateway::start_in(folder, &config("first", "one", ""), |command| command);
    let ask = |path: &str| {
        let before = gateway.log().len();
        let body = gateway.ask(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
        let line = gateway.log_line(before + 1);
        assert_eq!(line["target"], path);
        (body.split("\r\n\r\n").nth(1).unwrap_or_default().to_owned(), line["generation"].as_u64().unwrap_or(0))
    };
    assert_eq!(ask("/p"), ("{\"realm\":\"first\"}".into(), 1));
    assert_eq!((ask("/q"), ask("/r")), (("/q".into(), 1), ("from one\n".into(), 1)));

    let more = "[target.more]\nsockets = [\"DIR/one.sock\"]\n[limits]\nheaders_max = 2\n\
                [[route]]\npath = \"/more\"\ndefault = { handoff = \"more\" }\n";
    let from = gateway.reload(&config("second", "two", more));
    gateway.stderr.wait(from, &["configuration reloaded"]);
    assert_eq!(ask("/p"), ("{\"realm\":\"second\"}".into(), 2), "its config is another");
    assert_eq!(ask("/q"), ("/q".into(), 1), "another target is nothing to it");
    assert_eq!(ask("/r"), ("from two\n".into(), 1));
    assert_eq!(ask("/more").0, "from one\n");
    let many = gateway.ask("GET /q HTTP/1.1\r\nHost: x\r\nA: 1\r\nB: 2\r\n\r\n");
    assert!(many.starts_with("HTTP/1.1 431 "), "{many}");

    // Back again, and a route less.
    let from = gateway.reload(&config("second", "one", ""));
    gateway.stderr.wait(from, &["configuration reloaded"]);
    assert_eq!(ask("/p").1, 2);
    assert_eq!((ask("/q").1, ask("/r")), (1, ("from one\n".into(), 1)));
    assert_eq!(gateway.status("/more"), 404);
    drop(daemons);
}

#[test]
fn a_target_that_a_policy_requires_cannot_be_taken_away() {
    // The shipped policy requires its target; nothing in the configuration confines it.
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies/target/bearer-rust.wasm");
    assert!(module.exists(), "{} is not there: run policies/build", module.display());
    let token = "d7ecdf25eaf3deba0f2628771dbdd22d4138ab6cf38f91ed02a2ca0dec7c8ab7";
    let config = |targets: &[&str]| {
        let target = |name: &&str| format!("[target.{name}]\nsockets = [\"DIR/{name}.sock\"]\n");
        format!(
            "LISTEN\n{}[policy.p]\nmodule = \"{}\"\nconfig = {{ target = \"chat\", realm = \"demo\", \
             tokens = {{ {token} = \"alice\" }} }}\n[[route]]\npath = \"/\"\npolicies = [\"p\"]\n",
            targets.iter().map(target).collect::<String>(),
            module.display()
        )
    };
    let gateway = Gateway::start(&config(&["chat"]));
    for (targets, taken) in [(&["chat", "more"][..], true), (&["more"], false), (&["chat"], true)] {
        let from = gateway.reload(&config(targets));
        if taken {
            gateway.stderr.wait(from, &["configuration reloaded"]);
        } else {
            gateway.stderr.wait(from, &["configuration not reloaded", "policy.p.module", "requires target chat"]);
        }
        assert_eq!(gateway.status("/"), 401);
    }
    let generations = || gateway.log().iter().map(|line| line["generation"].clone()).collect::<Vec<_>>();
    eventually("their lines", || (generations() == [1, 1, 1]).then_some(()));
}

/// The address behind the words in the log.
fn listening(gateway: &Gateway, from: usize, name: &str) -> SocketAddr {
    let line = gateway.stderr.wait(from, &["listening on http://", &format!("({name})")]);
    let address = line.split("http://").nth(1).and_then(|rest| rest.split(' ').next()).expect("an address");
    address.parse().expect("an address")
}

#[test]
fn listeners_come_and_go_and_their_clients_stay() {
    let gateway = Gateway::start(&responding(201));
    let before = gateway.descriptors();
    let more = "[[listener]]\nname = \"more\"\naddress = \"127.0.0.1:0\"\n\
                [[listener]]\nname = \"local\"\naddress = \"unix:DIR/local.sock\"\n";
    let from = gateway.reload(&format!("{}{more}", responding(202)));
    gateway.stderr.wait(from, &["configuration reloaded"]);
    let address = listening(&gateway, from, "more");
    gateway.stderr.wait(from, &["listening on unix:", "local.sock (local)"]);
    assert_ne!(address, gateway.address());
    let mut kept = Client::connect(address);
    kept.get("/a");
    assert_eq!(kept.answer().status, 202);
    assert!(gateway.path("local.sock").exists());
    // The first listener was not touched.
    assert_eq!(gateway.status("/a"), 202);

    let from = gateway.reload(&responding(203));
    gateway.stderr.wait(from, &["configuration reloaded"]);
    gateway.stderr.wait(from, &["no longer listening on http://", "(more)"]);
    eventually("nobody listens there", || TcpStream::connect(address).is_err().then_some(()));
    assert!(!gateway.path("local.sock").exists());
    kept.get("/a");
    assert_eq!(kept.answer().status, 203, "a client of the old listener is served by the new configuration");
    drop(kept);
    assert_eq!(gateway.status("/a"), 203);
    gateway.ledger_is_back_to(before);
}

#[test]
fn twenty_reloads_under_load_fail_no_request_and_leave_nothing() {
    const RELOADS: u16 = 20;
    let folder = folder();
    fs::write(folder.path().join("p.wat"), answering(230)).expect("written");
    let daemon = Daemon::start(&folder.path().join("chat.sock"), "seqpacket", "serve", &[]);
    let config = |n: u16| {
        // Each reload has a configuration and a module of its own; the policy's options change every other time.
        format!(
            "{ONE_POLICY}[target.chat]\nsockets = [\"DIR/chat.sock\"]\n[[route]]\npath = \"/chat\"\n\
             default = {{ handoff = \"chat\" }}\n[[route]]\npath = \"/n\"\ndefault = {{ respond = {{ status = {} }} }}\n",
            400 + n
        )
        .replace("deadline = \"50ms\"", &format!("deadline = \"{}ms\"", 5000 + n / 2))
    };
    let gateway = Gateway::start_in(folder, &config(0), |command| command);
    let cycle = |n: u16| {
        rename_over(&gateway.path("p.wat"), &answering(230 + n % 10));
        let from = gateway.reload(&config(n));
        gateway.stderr.wait(from, &["configuration reloaded"]);
        becomes(&gateway, "/n", 400 + n);
    };
    // What is allocated once is allocated by then.
    (0..5).for_each(cycle);
    let (descriptors, memory) = (gateway.descriptors(), gateway.resident_bytes());
    let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for worker in 0..3 {
            let (stop, served, gateway) = (&stop, &served, &gateway);
            scope.spawn(move || {
                let mut kept = gateway.client();
                while !stop.load(Ordering::Relaxed) {
                    kept.get("/");
                    let status = kept.answer().status;
                    assert!((230..240).contains(&status), "{status}");
                    if worker == 0 {
                        assert!(gateway.ask("GET /chat HTTP/1.1\r\nHost: x\r\n\r\n").ends_with("from daemon\n"));
                    } else {
                        let status = gateway.status("/");
                        assert!((230..240).contains(&status), "{status}");
                    }
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let reloads = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (5..5 + RELOADS).for_each(cycle)));
        stop.store(true, Ordering::Relaxed);
        reloads.expect("every reload is taken");
    });
    assert!(served.load(Ordering::Relaxed) > 20, "{served:?}");
    assert_eq!(count(&gateway, 0, &["not reloaded"]), 0);
    assert_eq!(count(&gateway, 0, &["policy failed"]), 0);
    let bad = gateway.log().into_iter().filter(|line| !line["error"].is_null()).collect::<Vec<_>>();
    assert!(bad.is_empty(), "{bad:#?}");
    drop(daemon);
    gateway.ledger_is_back_to(descriptors);
    let after = gateway.resident_bytes();
    assert!(after < memory + (24 << 20), "{memory} to {after} bytes in {RELOADS} generations");
}

/// Threads of the gateway by the beginning of their name: scheduling policy and niceness of each (proc_pid_stat(5)).
fn scheduled(gateway: &Gateway, name: &str) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", gateway.pid())).expect("it runs");
    // One that ends meanwhile is not asked for.
    let stats = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("stat")).ok());
    let found = stats.filter_map(|stat| {
        let (own, rest) = stat.split_once(" (")?.1.rsplit_once(") ")?;
        let fields: Vec<_> = rest.split(' ').collect();
        own.starts_with(name).then(|| (fields[38].to_owned(), fields[16].to_owned()))
    });
    found.collect()
}

#[test]
fn once_clients_are_served_what_compiles_gives_way_to_them() {
    // SCHED_OTHER and SCHED_IDLE, each with its niceness.
    let fair = ("0".to_owned(), "5".to_owned());
    let idle = ("5".to_owned(), "5".to_owned());
    let gateway = start(&answering(231));
    let from = gateway.stderr.count();
    rename_over(&gateway.path("p.wat"), &answering(232));
    gateway.stderr.wait(from, &["policy reloaded"]);
    becomes(&gateway, "/", 232);
    let compilers = scheduled(&gateway, "compile-");
    let count = |wanted| compilers.iter().filter(|compiler: &&(String, String)| **compiler == wanted).count();
    let (idle, fair) = (count(idle), count(fair));
    assert!(idle > 0 && idle == fair && idle + fair == compilers.len(), "{compilers:?}");
    let workers = scheduled(&gateway, "worker-");
    assert!(!workers.is_empty() && workers.iter().all(|worker| worker.0 == "0" && worker.1 == "0"), "{workers:?}");
}
