//! Who may use whom in `src`: what the crate's documentation promises by what is absent.

use std::path::{Path, PathBuf};

/// A source file by its path below `src`, and its lines of code: without comments, and without the tests at its foot.
struct Source {
    path: String,
    lines: Vec<(usize, String)>,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut files: Vec<PathBuf> = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder of src") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    let read = |file: PathBuf| {
        let text = std::fs::read_to_string(&file).expect("a source file");
        let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        // A group would hide from what follows who is meant.
        assert!(file.starts_with(root.join("config")) || !code.contains("use crate::{"), "{}", file.display());
        let lines = code.lines().map(str::trim).enumerate().filter(|(_, line)| !line.starts_with("//"));
        let path = file.strip_prefix(&root).expect("below src").display().to_string();
        Source { path, lines: lines.map(|(at, line)| (at + 1, line.to_owned())).collect() }
    };
    let is_code = |f: &PathBuf| f.extension().is_some_and(|e| e == "rs") && !f.ends_with("tests.rs");
    files.into_iter().filter(is_code).map(read).collect()
}

/// Where `name` stands as a whole word in front of `::`, or behind `use`, in files that `is_meant` picks.
fn uses(sources: &[Source], name: &str, is_meant: impl Fn(&str) -> bool) -> Vec<String> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let names = |line: &str| {
        line.match_indices(name).any(|(at, _)| {
            let free = line[..at].chars().next_back().is_none_or(|c| !is_part(c));
            free && line[at + name.len()..].starts_with("::")
        })
    };
    let found = sources.iter().filter(|s| is_meant(&s.path)).flat_map(|s| {
        s.lines.iter().filter(|(_, line)| names(line)).map(|(at, line)| format!("src/{}:{at}: {line}", s.path))
    });
    found.collect()
}

fn is_in(path: &str, places: &[&str]) -> bool {
    places.iter().any(|place| path == *place || (place.ends_with('/') && path.starts_with(place)))
}

/// What of FastCGI is bytes in, bytes out.
const PURE_FASTCGI: [&str; 6] = [
    "fastcgi/environment.rs",
    "fastcgi/head.rs",
    "fastcgi/naive.rs",
    "fastcgi/pairs.rs",
    "fastcgi/record.rs",
    "fastcgi/script.rs",
];

#[test]
fn what_is_pure_knows_no_socket_no_clock_and_no_guest() {
    let pure = [&["http/", "decision.rs", "handoff/message.rs", "handoff/native/"][..], &PURE_FASTCGI].concat();
    let sources = sources();
    for name in [
        "tokio",
        "nix",
        "rustix",
        "wasmtime",
        "std::fs",
        "std::os",
        "std::process",
        "std::thread",
        "std::time::Instant",
        "std::time::SystemTime",
        "Instant",
        "SystemTime",
        "TcpStream",
        "UnixStream",
    ] {
        let found = uses(&sources, name, |path| is_in(path, &pure));
        assert!(found.is_empty(), "{name} in what is pure:\n{}", found.join("\n"));
    }
}

#[test]
fn what_is_pure_can_be_compiled_without_the_rest() {
    let pure = [&["http/", "decision.rs"][..], &PURE_FASTCGI].concat();
    for source in sources().iter().filter(|source| is_in(&source.path, &pure)) {
        for (at, line) in &source.lines {
            let mut used = line.split("crate::").skip(1);
            let is_pure = used.all(|name| name.starts_with("http::") || name.starts_with("decision::"));
            assert!(is_pure, "src/{}:{at}: {line}", source.path);
        }
    }
}

#[test]
fn handoff_uses_nothing_of_the_crate() {
    let sources = sources();
    let found = uses(&sources, "crate", |path| is_in(path, &["handoff/"]));
    assert!(found.is_empty(), "{}", found.join("\n"));
    // Nor by climbing out of itself.
    for source in sources.iter().filter(|source| is_in(&source.path, &["handoff/"])) {
        let depth = source.path.matches('/').count() + usize::from(!source.path.ends_with("/mod.rs"));
        for (at, line) in &source.lines {
            assert!(!line.contains(&"super::".repeat(depth)), "src/{}:{at}: {line}", source.path);
        }
    }
}

#[test]
fn only_those_who_hold_clients_or_make_their_options_know_of_handing_over() {
    let home = ["background.rs", "cli/", "client.rs", "config/", "connection/", "listener.rs", "target.rs", "target/"];
    let found = uses(&sources(), "crate::handoff", |path| !is_in(path, &home));
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn leaves_do_not_use_each_other_nor_whoever_uses_them() {
    let sources = sources();
    let above = [
        "connection",
        "gateway",
        "listener",
        "arrival",
        "exchange",
        "client",
        "drain",
        "target",
        "upstream",
        "config",
        "cli",
        "reload",
    ];
    for (leaf, others) in [
        ("policy/", &["handoff", "respond", "access_log"][..]),
        ("respond.rs", &["policy", "handoff", "access_log"]),
        ("http/", &["policy", "handoff", "respond", "request", "access_log"]),
    ] {
        for other in others.iter().chain(&above) {
            let found = uses(&sources, &format!("crate::{other}"), |path| is_in(path, &[leaf]));
            assert!(found.is_empty(), "{leaf} uses {other}:\n{}", found.join("\n"));
        }
    }
}

#[test]
fn only_config_and_what_starts_the_program_know_the_configuration() {
    let found = uses(&sources(), "crate::config", |path| !is_in(path, &["config/", "cli/", "gateway.rs", "reload.rs"]));
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn each_outside_crate_has_a_home() {
    let sources = sources();
    for (name, home) in [
        ("anyhow", &["cli/", "main.rs", "policy/componentize.rs"][..]),
        ("arc_swap", &["admin/", "connection/mod.rs", "policy/mod.rs", "policy/shared.rs"]),
        ("clap", &["cli/", "main.rs", "log.rs"]),
        ("getrandom", &["policy/imports/random.rs", "policy/preview1.rs", "policy/wasi.rs"]),
        ("http_body_util", &["admin/", "upstream/"]),
        ("clap_complete", &["cli/completions.rs"]),
        ("clap_mangen", &["cli/completions.rs"]),
        ("httparse", &["http/"]),
        ("httpdate", &["access_log/", "connection/", "exchange/", "files/"]),
        ("humantime", &["access_log/", "admin/"]),
        ("hyper", &["admin/", "connection/", "exchange/", "fastcgi/", "files/", "upstream/"]),
        ("hyper_util", &["admin/", "upstream/"]),
        (
            "nix",
            &[
                "handoff/",
                "admin/",
                "background.rs",
                "cli/receive/",
                "config/resolve.rs",
                "gateway.rs",
                "policy/cache.rs",
                "process.rs",
                "policy/epoch.rs",
                "policy/mod.rs",
            ],
        ),
        ("notify", &["policy/reload.rs"]),
        ("rustc_demangle", &["policy/error.rs"]),
        (
            "rustix",
            &[
                "cli/policy/test.rs",
                "cli/receive/program.rs",
                "admin/",
                "background.rs",
                "client.rs",
                "files/",
                "handoff/ancillary.rs",
                "handoff/head_bytes.rs",
                "listener.rs",
                "spool.rs",
                "unix_socket.rs",
                "upstream/connect.rs",
            ],
        ),
        ("rustls_native_certs", &["upstream/tls.rs"]),
        ("schemars", &["config/"]),
        ("sd_notify", &["cli/run.rs"]),
        ("serde", &["access_log/", "config/"]),
        (
            "serde_json",
            &[
                "access_log/",
                "admin/",
                "cli/",
                "config/",
                "connection/metadata.rs",
                "connection/response.rs",
                "handoff/native/",
                "handoff/receive/",
                "policy/",
                "respond.rs",
            ],
        ),
        ("sha2", &["policy/generation.rs"]),
        ("tokio_rustls", &["upstream/"]),
        ("toml", &["cli/demo.rs", "config/"]),
        ("tracing_appender", &["log.rs", "log/"]),
        ("wasm_encoder", &["policy/componentize.rs", "policy/core.rs"]),
        ("tracing_subscriber", &["log.rs", "log/"]),
        ("ulid", &["request.rs"]),
        ("wasmparser", &["policy/componentize.rs", "policy/core.rs", "policy/inspect.rs"]),
        ("wasmtime", &["policy/"]),
        ("wasmtime_wizer", &["policy/snapshot.rs"]),
        ("wat", &["policy/componentize.rs", "policy/preview1.rs"]),
        ("wit_component", &["policy/componentize.rs", "policy/preview1.rs"]),
        ("wit_parser", &["policy/componentize.rs", "policy/preview1.rs"]),
    ] {
        let found = uses(&sources, name, |path| !is_in(path, home));
        assert!(found.is_empty(), "{name} away from home:\n{}", found.join("\n"));
        assert!(
            !uses(&sources, name, |path| is_in(path, home)).is_empty(),
            "{name} is not used where it lives: mend this list"
        );
    }
}

#[test]
fn unsafe_stands_in_one_file_and_tasks_begin_in_another() {
    for source in sources() {
        for (at, line) in &source.lines {
            if source.path != "handoff/ancillary.rs" {
                assert!(!line.contains("unsafe "), "src/{}:{at}: {line}", source.path);
            }
            // The set of a pool owns its connections' tasks, and ends them with itself.
            if !["upstream/kept.rs", "upstream/pool.rs"].contains(&&*source.path) {
                assert!(!line.contains("JoinSet"), "src/{}:{at}: {line}", source.path);
            }
            if source.path != "drain.rs" {
                let begins = ["tokio::spawn(", "task::spawn(", "spawn_local("].iter().any(|s| line.contains(s));
                assert!(!begins, "src/{}:{at}: {line}", source.path);
            }
        }
    }
}

/// A table of what is shown is worth as much as its names.
#[test]
fn every_test_that_the_page_names_is_there() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let page = std::fs::read_to_string(tests.join("README.md")).expect("the tests' page");
    let named = page.split('`').filter_map(|code| code.split_once(".rs: "));
    let named: Vec<_> = named.filter(|(_, name)| !name.contains(' ')).collect();
    assert!(named.len() > 20, "{named:?}");
    for (file, name) in named {
        let path = tests.join(file).with_extension("rs");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(text.contains(&format!("fn {name}(")), "{} has no {name}", path.display());
    }
}
