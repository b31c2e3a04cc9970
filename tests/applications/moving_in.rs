//! `examples/moving-in/mod_socket_handoff`: what its users have, and ours for the same, with the page that stands there.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::php::Streaming;
use super::start;
use super::support::fastcgi::PhpFpm;
use super::support::folder;

fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/moving-in/mod_socket_handoff").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// `/run` and `/var/www` are the gateway's folder.
fn here(text: &str, folder: &Path) -> String {
    let folder = folder.display();
    text.replace("/run/php/", &format!("{folder}/"))
        .replace("/run/", &format!("{folder}/"))
        .replace("/var/www", &format!("{folder}/www"))
}

#[test]
fn a_page_behind_mod_socket_handoff_moves_in_unchanged() {
    let folder = folder();
    fs::create_dir(folder.path().join("www")).expect("a folder");
    fs::write(folder.path().join("www/live.php"), here(&example("live.php"), folder.path())).expect("written");
    fs::write(folder.path().join("www/style.css"), "css").expect("written");
    let _php = PhpFpm::start(folder.path());
    let _daemon = Streaming::start_at("python", folder.path(), "chat");
    let toml = here(&example("baton.toml"), folder.path()).replace("127.0.0.1:8080", "127.0.0.1:0");
    let gateway = start(folder, &toml);

    assert_eq!(gateway.status("/live.php"), 401);
    let mut client = gateway.client();
    client.send("GET /live.php?room=7 HTTP/1.1\r\nHost: x\r\nCookie: user=alice\r\n\r\n");
    assert!(client.until("\r\n\r\n").starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream"));
    let event: Value = serde_json::from_str(client.until("\n\n").trim_start_matches("data: ")).expect("JSON");
    let data: Value = serde_json::from_str(event["text"].as_str().expect("text")).expect("JSON");
    assert_eq!(data, json!({"user": "alice", "room": "7", "response_headers": {"set-cookie": "seen=1"}}));
    assert!(client.rest().ends_with("event: done\ndata: {}\n\n"));
    let line = gateway.log_line(2);
    assert_eq!((&line["outcome"], &line["to"]), (&json!("handed-off"), &json!(gateway.path("chat.sock"))), "{line}");

    let answer = gateway.ask("GET /style.css HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(answer.ends_with("\r\n\r\ncss"), "{answer}");
}

/// Each directive has its line, with the same value.
#[test]
fn every_directive_of_theirs_is_named_beside_ours() {
    let (theirs, ours) = (example("apache.conf"), example("baton.toml"));
    let directives: Vec<_> = theirs
        .lines()
        .filter_map(|line| line.trim().split_once(' '))
        .filter(|(name, _)| name.starts_with("SocketHandoff"))
        .collect();
    assert_eq!(directives.len(), 5);
    for (name, value) in directives {
        let line = ours.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{name}"));
        let value = if name.ends_with("Enabled") { "true" } else { value };
        assert!(line.split('#').next().is_some_and(|setting| setting.contains(value)), "{line}: {value}");
    }
}
