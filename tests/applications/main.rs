//! The response phase, over the wire: an application has answered, the client has seen nothing of it yet, and what becomes
//! of both is said by the application's own fields, or by policies.
//!
//! Applications are real programs behind PHP-FPM, and a server in HTTP whose every byte is the test's.
#![cfg(feature = "gateway")]

#[path = "../support/mod.rs"]
mod support;

mod application;
mod bodies;
mod fields;
mod guests;
mod handoffs;
mod moving_in;
mod paths;
mod php;
mod policies;
mod redirects;
mod shipped;

use std::path::Path;

use application::Application;
use serde_json::Value;
use support::{Daemon, Gateway, folder};
use tempfile::TempDir;

/// The beginning of a configuration: sockets stand in the gateway's folder, nothing is tried twice.
const BASIS: &str = "[gateway]\nworkers = 1\n[handoff]\nallowed_prefixes = [\"DIR/\"]\nretries = 0\n";

/// An application that is heard, behind every path; `rest` are further tables.
fn behind(application: &Application, rest: &str) -> String {
    let address = application.address();
    format!(
        "{BASIS}[upstream.app]\naddress = \"{address}\"\nhandoff_headers = true\nhandoff_response_headers = \
         [\"set-cookie\", \"x-one\"]\n[[route]]\npath = \"/\"\ndefault = {{ proxy = \"app\" }}\n{rest}\nLISTEN"
    )
}

fn start(folder: TempDir, toml: &str) -> Gateway {
    Gateway::start_in(folder, toml, |command| command)
}

/// What an application answers that hands its client over; `fields` are lines.
fn hands_over(socket: &Path, data: &str, fields: &str) -> String {
    let (socket, length) = (socket.display(), "Content-Length: 7");
    format!(
        "HTTP/1.1 200 OK\r\nX-Socket-Handoff: {socket}\r\nX-Handoff-Data: {data}\r\n{fields}{length}\r\n\r\nnothing"
    )
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
}

/// What of a line of the log is text.
fn words<const N: usize>(line: &Value, keys: [&str; N]) -> [String; N] {
    keys.map(|key| line[key].as_str().unwrap_or_default().to_owned())
}

/// A daemon that serves every client, at `NAME.sock`.
fn daemon(folder: &TempDir, name: &str, kind: &str, options: &[&str]) -> Daemon {
    Daemon::start(&folder.path().join(name).with_extension("sock"), kind, "serve", options)
}
