//! The gateway's side of the native protocol, word by word: a daemon that a test speaks for, a real gateway, real clients.

#[path = "../support/mod.rs"]
mod support;

mod channel;
mod credits;
mod fate;
mod reports;

use std::fmt::Write as _;

use support::native::Script;
use support::{Gateway, folder};

/// What a configuration says of the daemons: their sockets, and further settings.
fn toml(sockets: usize, more: &str) -> String {
    let paths: Vec<_> = (0..sockets).map(|at| format!("\"DIR/{at}.sock\"")).collect();
    let mut toml = format!(
        "LISTEN\n[gateway]\nworkers = 1\nadmin = \"unix:DIR/admin.sock\"\n[target.chat]\nsockets = [{}]\ndialect = \"baton\"\n",
        paths.join(", ")
    );
    write!(toml, "{more}\n[policy.by-fields]\nmodule = \"POLICIES/handoff_by_fields.wat\"\ndeadline = \"1s\"\n")
        .expect("memory");
    let routes = [
        ("/", "default = { handoff = \"chat\" }"),
        ("/by-fields", "policies = [\"by-fields\"]"),
        ("/answer", "default = { respond = { status = 200, body = \"answer\" } }"),
        (
            "/head",
            "default = { handoff = \"chat\", response_head = { status = 200, headers = { \"x-by\" = \"route\" } } }",
        ),
    ];
    for (path, rest) in routes {
        write!(toml, "[[route]]\npath = \"{path}\"\n{rest}\n").expect("memory");
    }
    toml
}

/// A gateway and the sockets of its daemons.
fn start(sockets: usize, more: &str) -> (Gateway, Vec<Script>) {
    let folder = folder();
    let scripts = (0..sockets).map(|at| Script::listen(&folder.path().join(format!("{at}.sock")))).collect();
    (Gateway::start_in(folder, &toml(sockets, more), |command| command), scripts)
}

/// One line of the log as text: outcome, status, and what was tried.
#[track_caller]
fn outcome(gateway: &Gateway, line: usize) -> (String, Option<u64>, u64) {
    let line = gateway.log_line(line);
    (
        line["outcome"].as_str().expect("text").to_owned(),
        line["status"].as_u64(),
        line["attempts"].as_u64().expect("a number"),
    )
}

/// Asks the admin's socket; status and body.
fn admin(path: &std::path::Path, method: &str, target: &str) -> (u16, String) {
    use std::io::{Read as _, Write as _};
    let mut stream = std::os::unix::net::UnixStream::connect(path).expect("it listens");
    stream.set_read_timeout(Some(support::patience())).expect("a socket");
    write!(stream, "{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        .expect("it reads");
    let mut all = String::new();
    stream.read_to_string(&mut all).expect("it closes");
    let status = all.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line");
    (status, all.split_once("\r\n\r\n").expect("an answer").1.to_owned())
}
