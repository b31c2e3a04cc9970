//! WebSocket through a mount, between two ends that are a library's.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use crate::{Client, Lws, Process, gateway, ready, repository};

/// Python's, with the package `websockets`, in an environment of its own that is made once.
fn python() -> Command {
    static MAKING: Mutex<()> = Mutex::new(());
    let _one = MAKING.lock().unwrap();
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("websockets");
    let python = folder.join("bin/python");
    let has_it =
        |python: &Path| Command::new(python).args(["-c", "import websockets.sync"]).status().is_ok_and(|s| s.success());
    if !python.exists() || !has_it(&python) {
        let done = Command::new("python3").args(["-m", "venv"]).arg(&folder).status().unwrap();
        assert!(done.success(), "python3-venv is installed by tests/run");
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "websockets==15.0.1"]);
        assert!(pip.status().unwrap().success(), "websockets can be had from the package index");
    }
    let mut command = Command::new(python);
    command.arg(repository().join("tests/mounts/websocket.py"));
    command
}

fn serve(socket: &Path) -> Process {
    let mut command = python();
    command.arg("serve").arg(socket);
    ready(command).0
}

fn ask(url: &str, more: &[&str]) -> Vec<String> {
    let output = python().args(["ask", url]).args(more).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_websocket_goes_through_the_mount() {
    let gateway = gateway();
    let socket = gateway.path("app.sock");
    let _app = serve(&socket);
    let url = |address| format!("ws://{address}/app/talk?room=1");
    let said = ask(&url(gateway.address()), &[]);
    let sizes = ["5 same", "2 same", "125 same", "70000 same", "3000000 same"];
    assert_eq!(said[..1], ["/inside/talk?room=1"]);
    assert_eq!(said[1..6], sizes);
    assert_eq!(said[6..], ["pong", "1000"]);
    let line = gateway.log_line(1);
    assert_eq!((&line["status"], &line["outcome"], &line["to"]), (&101.into(), &"proxied".into(), &"app".into()));
    if let Some(lws) = Lws::start("/app", &format!("+{}:/inside", socket.display())) {
        let theirs = ask(&url(lws.address), &["small"]);
        assert_eq!(theirs, [&said[..5], &said[6..]].concat(), "behind libwebsockets");
    }
}

/// libwebsockets skips a mount with `no_ws_upgrades` for an Upgrade, as if it were not there; here such a route is asked as
/// for anything else, without the Upgrade.
#[test]
fn where_no_upgrade_is_wanted_it_is_an_ordinary_request() {
    let gateway = gateway();
    let (_app, _) = crate::app(gateway.path("app.sock").to_str().unwrap(), &[]);
    let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let mut client = Client::connect(gateway.address());
    client.send(format!("GET /app/plain/x HTTP/1.1\r\nHost: example.org\r\n{upgrade}\r\n"));
    let answer = client.answer();
    assert_eq!(answer.status, 200);
    let asked: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(asked["target"], "/inside/x");
    assert_eq!(crate::field(&asked, "Upgrade"), None);
}
