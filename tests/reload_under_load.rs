//! Reloading while clients are handed over at full speed, a thousand times and in every manner in which files are replaced:
//! nobody notices but by the answers, and nothing is left of the old generations.
#![cfg(feature = "gateway")]

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use support::load::{self, Got};
use support::shipped::{cases, json, shipped, toml};
use support::{Daemon, Gateway, compile, eventually, folder};

/// A guest's text, a little different each time, so that it is another module.
fn guest(name: &str, version: usize) -> String {
    let path = format!("{}/tests/policies/{name}.wat", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    format!(";; {version}\n{text}")
}

/// A guest that answers with that status.
fn answering(status: usize) -> String {
    guest("answers", status).replace("(i32.const 231)", &format!("(i32.const {status})"))
}

fn rename_over(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).expect("written");
    fs::rename(new, path).expect("renamed");
}

/// Plays clients while `act` is done, and gives what it came to.
fn under_load<T>(client: impl Fn(usize) -> Got + Sync, act: impl FnOnce() -> T) -> (load::Tally, T) {
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients = scope.spawn(|| load::clients_until(&ends, 8, &client));
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
        ends.store(true, Ordering::Relaxed);
        let tally = clients.join().expect("every client got its answer");
        (tally, done.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

#[test]
fn a_thousand_reloads_while_handing_over_at_full_speed_fail_nobody_and_leave_nothing() {
    const RELOADS: usize = 1000;
    /// By then everything is allocated that is allocated once.
    const FIRST: usize = 100;
    /// What nine hundred further generations of two policies may leave behind: far less than one generation is large.
    const GROWTH_BYTES_MAX: u64 = 16 << 20;
    let folder = folder();
    for (name, guest_name) in [("p.wat", "handoff_by_fields"), ("q.wat", "answers")] {
        fs::write(folder.path().join(name), guest(guest_name, 0)).expect("written");
    }
    let _daemon = Daemon::start(&folder.path().join("chat.sock"), "seqpacket", "serve", &["backlog=1000"]);
    // Each reload has modules and a configuration of its own.
    let config = |n: usize| {
        format!(
            "LISTEN\n[limits]\nheaders_max = {}\n[target.chat]\nsockets = [\"DIR/chat.sock\"]\n\
             [handoff]\nack_timeout = \"20s\"\nconnect_timeout = \"20s\"\n\
             [policy.p]\nmodule = \"DIR/p.wat\"\ndeadline = \"5s\"\n[policy.q]\nmodule = \"DIR/q.wat\"\ndeadline = \"5s\"\n\
             [[route]]\npath = \"/p\"\npolicies = [\"p\"]\n[[route]]\npath = \"/q\"\npolicies = [\"q\"]\n",
            100 + n % 50
        )
    };
    let gateway = Gateway::start_in(folder, &config(0), |command| command);
    let reload = |n: usize| {
        rename_over(&gateway.path("p.wat"), &guest("handoff_by_fields", n));
        rename_over(&gateway.path("q.wat"), &guest("answers", n));
        let from = gateway.configure(&config(n));
        gateway.signal(Signal::SIGHUP);
        gateway.stderr.wait(from, &["configuration reloaded"]);
    };
    // Each of these begins a request when its last one has ended, so that what it meets can only become newer.
    let played = AtomicUsize::new(0);
    let client = |_: usize| {
        let me = std::thread::current().id();
        let n = played.fetch_add(1, Ordering::Relaxed);
        let path = ["/p", "/q"][n % 2];
        let got = load::ask(
            gateway.address(),
            &format!("GET {path}?{me:?} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
        );
        assert_eq!(got, [Got::Daemon, Got::Gateway(231)][n % 2]);
        got
    };
    let (first, before) = under_load(client, || {
        (1..=FIRST).for_each(reload);
        (gateway.sockets(), gateway.resident_bytes())
    });
    let (tally, ()) = under_load(client, || (FIRST + 1..=RELOADS).for_each(reload));
    assert_eq!(gateway.stderr.all().iter().filter(|line| line.contains("not reloaded")).count(), 0);
    eventually("no client is left", || (gateway.sockets() <= before.0).then_some(()));
    let after = gateway.resident_bytes();
    println!("{first:?}, then {tally:?}; {} to {} KB resident", before.1 >> 10, after >> 10);
    assert!(after <= before.1 + GROWTH_BYTES_MAX, "{} to {after} bytes", before.1);

    let count = first.total() + tally.total();
    let mut lines = eventually("all lines", || Some(gateway.log()).filter(|lines| lines.len() == count));
    // In the order in which they began: a line is written at the end.
    lines.sort_by(|a, b| a["time"].as_str().cmp(&b["time"].as_str()));
    let mut newest = std::collections::HashMap::<&str, u64>::new();
    for line in &lines {
        assert!(line["error"].is_null(), "{line}");
        let generation = line["generation"].as_u64().expect("a policy decided");
        let before = newest.insert(line["target"].as_str().expect("a target"), generation).unwrap_or(1);
        assert!(before <= generation, "from {before} back to {line}");
    }
    let last = newest.values().max().copied().unwrap_or_default();
    assert!(last > RELOADS as u64 - 10, "the last ones were met: {last}");
}

/// How files come to be others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Written in place.
    InPlace,
    /// Written in place by somebody slow: a while it is only a part.
    Growing,
    /// Renamed over.
    Rename,
    /// Removed, and a while later back.
    Back,
    /// Not to be read for a while.
    Forbidden,
    /// As Kubernetes does: `..data` is swapped for a link to another folder.
    Data,
    /// A link to a link to a folder, of which the one in the middle is swapped.
    Chain,
    /// The folder is moved away and another one moved in.
    Folder,
    /// The folder is removed and made again.
    Remade,
}

/// A configuration and a module.
type Files<'a> = [(&'a str, &'a str); 2];

fn write(folder: &Path, files: Files<'_>) {
    for (name, text) in files {
        fs::write(folder.join(name), text).expect("written");
    }
}

impl Manner {
    /// The files for the first time, so that they are at `live`.
    fn begin(self, root: &Path, files: Files<'_>) {
        let live = root.join("live");
        match self {
            Self::Chain => {
                fs::create_dir(root.join("v0")).expect("made");
                symlink("v0", root.join("middle")).expect("linked");
                symlink("middle", &live).expect("linked");
                write(&live, files);
            }
            Self::Data => {
                fs::create_dir_all(live.join("..v0")).expect("made");
                symlink("..v0", live.join("..data")).expect("linked");
                for (name, _) in files {
                    symlink(Path::new("..data").join(name), live.join(name)).expect("linked");
                }
                write(&live, files);
            }
            _ => {
                fs::create_dir(&live).expect("made");
                write(&live, files);
            }
        }
    }

    /// Replaces them by the n-th. `pause` is a while in which the gateway looks at what is not finished.
    fn replace(self, root: &Path, n: usize, files: Files<'_>, pause: impl Fn()) {
        let live = root.join("live");
        let swap = |at: &Path, to: &str| {
            symlink(to, root.join("link")).expect("linked");
            fs::rename(root.join("link"), at).expect("swapped");
        };
        match self {
            Self::InPlace => write(&live, files),
            Self::Growing => {
                // A part that is no configuration and no module.
                write(&live, files.map(|(name, text)| (name, &text[..text.len() - 20])));
                pause();
                write(&live, files);
            }
            Self::Rename => files.iter().for_each(|(name, text)| rename_over(&live.join(name), text)),
            Self::Back => {
                files.iter().for_each(|(name, _)| fs::remove_file(live.join(name)).expect("there"));
                pause();
                write(&live, files);
            }
            Self::Forbidden => {
                let mode = |mode| {
                    for (name, _) in files {
                        fs::set_permissions(live.join(name), fs::Permissions::from_mode(mode)).expect("ours");
                    }
                };
                mode(0o000);
                pause();
                files.iter().for_each(|(name, _)| fs::remove_file(live.join(name)).expect("there"));
                write(&live, files);
                mode(0o644);
            }
            Self::Data => {
                let new = format!("..v{n}");
                fs::create_dir(live.join(&new)).expect("made");
                write(&live.join(&new), files);
                swap(&live.join("..data"), &new);
                fs::remove_dir_all(live.join(format!("..v{}", n - 1))).expect("there");
            }
            Self::Chain => {
                let new = format!("v{n}");
                fs::create_dir(root.join(&new)).expect("made");
                write(&root.join(&new), files);
                swap(&root.join("middle"), &new);
                fs::remove_dir_all(root.join(format!("v{}", n - 1))).expect("there");
            }
            Self::Folder => {
                let new = root.join("new");
                fs::create_dir(&new).expect("made");
                write(&new, files);
                fs::rename(&live, root.join(format!("old{n}"))).expect("moved away");
                fs::rename(new, &live).expect("moved in");
            }
            Self::Remade => {
                fs::remove_dir_all(&live).expect("there");
                fs::create_dir(&live).expect("made");
                write(&live, files);
            }
        }
    }
}

const IN_EVERY_MANNER: &str = "LISTEN\n[target.chat]\nsockets = [\"DIR/chat.sock\"]\n[policy.p]\nmodule = \"DIR/live/p.wat\"\n\
     deadline = \"5s\"\n[[route]]\npath = \"/p\"\npolicies = [\"p\"]\n[[route]]\npath = \"/chat\"\n\
     default = { handoff = \"chat\" }\n[[route]]\npath = \"/c\"\ndefault = { respond = { status = 299 } } # the end\n";

/// Configuration and module, replaced together, each time by an event and not by the poll.
fn replaced_under_load(manner: Manner) {
    const ROUNDS: usize = 6;
    let folder = folder();
    let root = folder.path().to_owned();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).expect("ours");
    manner.begin(&root, [("baton.toml", ""), ("p.wat", &answering(230))]);
    symlink("live/baton.toml", root.join("baton.toml")).expect("linked");
    let daemon = Daemon::start(&root.join("chat.sock"), "seqpacket", "serve", &[]);
    fs::set_permissions(root.join("chat.sock"), fs::Permissions::from_mode(0o777)).expect("ours");
    // Whoever is root may read everything.
    let is_root = nix::unistd::geteuid().is_root();
    let user = if manner == Manner::Forbidden && is_root { "[gateway]\nuser = \"nobody\"\n" } else { "" };
    let gateway = Gateway::start_in(folder, &format!("{user}{IN_EVERY_MANNER}"), |command| command);
    let text = fs::read_to_string(root.join("baton.toml")).expect("it is there");
    let played = AtomicUsize::new(0);
    let newest = AtomicUsize::new(0);
    let client = |_: usize| {
        let n = played.fetch_add(1, Ordering::Relaxed);
        let path = ["/p", "/c", "/chat"][n % 3];
        let before = newest.load(Ordering::Relaxed);
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let got = load::ask(gateway.address(), &request);
        let base = [230, 260, 0][n % 3];
        match got {
            Got::Daemon => assert_eq!(path, "/chat"),
            Got::Gateway(299) => assert_eq!((path, before), ("/c", 0), "the configuration of the beginning"),
            // Never older than what was known to be in force, and never anything but one of them.
            Got::Gateway(status) => {
                let version = usize::from(status).checked_sub(base).unwrap_or_else(|| panic!("{path}: {status}"));
                assert!(base > 0 && (before..=ROUNDS).contains(&version), "{path}: {status} after {before}");
            }
            other => panic!("{path}: {other:?}"),
        }
        got
    };
    let (tally, ()) = under_load(client, || {
        for n in 1..=ROUNDS {
            let configuration = text.replace("status = 299", &format!("status = {}", 260 + n));
            let from = gateway.stderr.count();
            // What it makes of a part, it says; then it has looked.
            let pause = || {
                gateway.stderr.wait(from, &["policy not reloaded"]);
                gateway.stderr.wait(from, &["configuration not reloaded"]);
            };
            let began = std::time::Instant::now();
            manner.replace(&root, n, [("baton.toml", &configuration), ("p.wat", &answering(230 + n))], pause);
            eventually(&format!("{manner:?}: the {n}th is in force"), || {
                let is = (gateway.status("/p"), gateway.status("/c"));
                let n = u16::try_from(n).expect("a few");
                (is == (230 + n, 260 + n)).then_some(())
            });
            assert!(began.elapsed() < Duration::from_secs(8), "{manner:?}: {:?} is the poll's work", began.elapsed());
            newest.store(n, Ordering::Relaxed);
        }
    });
    println!("{manner:?}: {tally:?}");
    let failed: Vec<_> = gateway.log().into_iter().filter(|line: &Value| !line["error"].is_null()).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    drop(daemon);
}

#[test]
fn files_written_in_place_at_once_or_slowly() {
    replaced_under_load(Manner::InPlace);
    replaced_under_load(Manner::Growing);
}

#[test]
fn files_renamed_over_or_gone_and_back() {
    replaced_under_load(Manner::Rename);
    replaced_under_load(Manner::Back);
}

#[test]
fn files_that_may_not_be_read_for_a_while() {
    replaced_under_load(Manner::Forbidden);
}

#[test]
fn links_swapped_at_the_end_and_in_the_middle() {
    replaced_under_load(Manner::Data);
    replaced_under_load(Manner::Chain);
}

#[test]
fn folders_replaced_by_others() {
    replaced_under_load(Manner::Folder);
}

/// Its number is often the old one's, and the watch on it went with the old one.
#[test]
fn folders_removed_and_made_again() {
    replaced_under_load(Manner::Remade);
}

/// Where the kernel has no watches for us, or nothing that is watched changes, the poll finds it.
#[test]
fn what_no_event_tells_of_is_found_by_the_poll() {
    let start = |limit: Option<&str>, module: &str| {
        let folder = folder();
        fs::create_dir_all(folder.path().join("a/b/c")).expect("made");
        fs::write(folder.path().join(module), answering(230)).expect("written");
        let toml =
            format!("LISTEN\n[policy.p]\nmodule = \"DIR/{module}\"\n[[route]]\npath = \"/p\"\npolicies = [\"p\"]\n");
        Gateway::start_in(folder, &toml, |command| {
            let Some(limit) = limit else { return command };
            // Limits of a namespace of its own.
            let script = format!("echo 0 > /proc/sys/user/{limit} && exec \"$0\" \"$@\"");
            let mut unshare = Command::new("unshare");
            unshare.args(["-Ur", "sh", "-c", &script]).arg(command.get_program()).args(command.get_args());
            unshare.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
            *command = unshare;
            command
        })
    };
    let allowed = Command::new("unshare").args(["-Ur", "true"]).stderr(Stdio::null()).status();
    let mut gateways = vec![start(None, "a/b/c/p.wat")];
    if allowed.is_ok_and(|status| status.success()) {
        gateways.push(start(Some("max_inotify_instances"), "p.wat"));
        gateways.push(start(Some("max_inotify_watches"), "p.wat"));
        gateways[1].stderr.wait(0, &["files are looked at every 10s only"]);
    } else {
        eprintln!("NOT SHOWN: no user namespaces here, so no kernel without watches");
        assert!(std::env::var_os("CI").is_none(), "CI has them");
    }
    for gateway in &gateways {
        assert_eq!(gateway.status("/p"), 230);
    }
    // Two folders above the module, of which only the lower one is watched.
    let root = gateways[0].folder.path();
    fs::create_dir_all(root.join("new/c")).expect("made");
    fs::write(root.join("new/c/p.wat"), answering(231)).expect("written");
    fs::rename(root.join("a/b"), root.join("a/away")).expect("moved away");
    fs::rename(root.join("new"), root.join("a/b")).expect("moved in");
    for gateway in &gateways[1..] {
        rename_over(&gateway.path("p.wat"), &answering(231));
    }
    for gateway in &gateways {
        eventually("the poll finds it", || (gateway.status("/p") == 231).then_some(()));
    }
}

/// The same module once more, but for a custom section at its end.
fn another(module: &[u8], version: usize) -> Vec<u8> {
    let name = format!("version-{version}");
    let length = |text: &str, more: usize| u8::try_from(text.len() + more).expect("a short one");
    let section = [&[0, length(&name, 1), length(&name, 0)], name.as_bytes()].concat();
    [module, &section].concat()
}

#[test]
fn modules_in_every_language_are_reloaded_and_nobody_fails() {
    /// Compiling an interpreter takes the processor for half a minute, and longer where others want it.
    const PATIENCE: Duration = Duration::from_secs(400);
    /// Between two requests of a client: what compiles shall get some of the processor.
    const PAUSE: Duration = Duration::from_millis(5);
    let bearer = [
        ("rust", 10),
        ("rust-wasip2", 3),
        ("assemblyscript", 10),
        ("c", 10),
        ("go", 2),
        ("javascript", 1),
        ("python", 1),
    ];
    for (language, reloads) in bearer {
        let folder = folder();
        let module = fs::read(shipped(&format!("bearer-{language}"))).expect("it is there");
        fs::write(folder.path().join("p.wasm"), &module).expect("written");
        let _daemon = Daemon::start(&folder.path().join("chat.sock"), "seqpacket", "serve", &["backlog=1000"]);
        let config = format!(
            "LISTEN\n[target.chat]\nsockets = [\"DIR/chat.sock\"]\n[handoff]\nack_timeout = \"20s\"\nconnect_timeout = \"20s\"\n\
             [policy.p]\nmodule = \"DIR/p.wasm\"\ndeadline = \"5s\"\nconfigure_deadline = \"300s\"\nmemory_max = \"256MiB\"\n\
             config = {}\n[[route]]\npath = \"/\"\npolicies = [\"p\"]\n",
            toml(&json(&cases("bearer").join("config.json")))
        );
        compile(&config, &folder);
        let gateway = Gateway::start_in(folder, &config, |command| command);
        let client = |_: usize| {
            #[expect(clippy::disallowed_methods, reason = "the pace of the load, nothing is waited for")]
            std::thread::sleep(PAUSE);
            let request =
                "GET /v1/chat HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer open-sesame\r\nConnection: close\r\n\r\n";
            let got = load::ask(gateway.address(), request);
            assert_eq!(got, Got::Daemon, "{language}");
            got
        };
        let (tally, ()) = under_load(client, || {
            for version in 1..=reloads {
                let new = gateway.path("p.new");
                fs::write(&new, another(&module, version)).expect("written");
                fs::rename(new, gateway.path("p.wasm")).expect("renamed");
                gateway.signal(Signal::SIGHUP);
                let until = std::time::Instant::now() + PATIENCE;
                let to = format!("to={}", version + 1);
                while !gateway.stderr.all().iter().any(|l| l.contains("policy reloaded") && l.contains(&to)) {
                    assert!(std::time::Instant::now() < until, "{language}: {:?}", gateway.stderr.all());
                    std::thread::park_timeout(PAUSE);
                }
            }
        });
        println!("{language}: {reloads} reloads, {tally:?}");
        assert_eq!(gateway.stderr.all().iter().filter(|line| line.contains("not reloaded")).count(), 0, "{language}");
        let last = gateway.log();
        let generation = last.iter().filter_map(|line| line["generation"].as_u64()).max();
        assert!(generation >= Some(reloads as u64), "{language}: {generation:?}");
    }
}
