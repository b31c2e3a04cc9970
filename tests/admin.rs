//! The operator's address: who may ask, what is answered, and what is done to policies.
#![cfg(feature = "gateway")]

mod support;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;
use support::{Answer, Client, Gateway, baton, eventually, folder};

/// A policy that answers with that status.
fn answers(status: u16) -> String {
    format!(
        "(module (memory (export \"memory\") 1) (func (export \"on_request\") (result i32)
        (i32.store8 (i32.const 1024) (i32.const 3)) (i32.store16 (i32.const 1028) (i32.const {status})) (i32.const 1024)))"
    )
}

/// Takes a while to be proved, and says when that begins.
const SLOW: &str = r#"(module
  (import "baton:policy/log@0.1.0" "write" (func $write (param i32 i32 i32 i32 i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "is being proved")
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 8192))
  (func (export "self_test") (result i32)
    (local $left i64)
    (call $write (i32.const 2) (i32.const 0) (i32.const 15) (i32.const 0) (i32.const 0))
    (local.set $left (i64.const 500000000))
    (loop $again (br_if $again (i64.ne (i64.const 0) (local.tee $left (i64.sub (local.get $left) (i64.const 1))))))
    (i32.const 4096))
  (func (export "on_request") (result i32) (i32.const 1024)))"#;

const POLICY: &str = r#"
[gateway]
admin = "127.0.0.1:0"
[policy.a]
module = "DIR/a.wat"
[[route]]
path = "/"
policies = ["a"]
LISTEN
"#;

fn start(toml: &str) -> Gateway {
    let folder = folder();
    fs::write(folder.path().join("a.wat"), answers(240)).expect("written");
    fs::write(folder.path().join("slow.wat"), SLOW).expect("written");
    Gateway::start_in(folder, toml, |command| command)
}

fn admin(gateway: &Gateway) -> SocketAddr {
    let line = gateway.stderr.wait(0, &["admin on http://"]);
    let (_, address) = line.split_once("http://").expect("an address");
    address.trim().parse().expect("an address")
}

fn ask(gateway: &Gateway, line: &str, host: &str) -> Answer {
    let mut client = Client::connect(admin(gateway));
    client.send(format!("{line}\r\n{host}Connection: close\r\n\r\n"));
    client.answer()
}

/// A request of somebody who may ask.
fn local(gateway: &Gateway, line: &str) -> (u16, Value) {
    let answer = ask(gateway, &format!("{line} HTTP/1.1"), "Host: localhost\r\n");
    (answer.status, serde_json::from_str(&answer.body).unwrap_or_default())
}

#[test]
fn whoever_is_led_here_by_a_page_is_refused() {
    let gateway = start(POLICY);
    for (host, expected) in [
        ("Host: localhost\r\n", 200),
        ("Host: LOCALHOST:9901\r\n", 200),
        ("Host: 127.0.0.1\r\n", 200),
        ("Host: [::1]:9901\r\n", 200),
        ("Host: [::1]\r\n", 200),
        ("Host: 127.0.0.1.evil.example\r\n", 403),
        ("Host: localhost.evil.example:9901\r\n", 403),
        ("Host: evil.example@127.0.0.1\r\n", 403),
        ("Host: 127.0.0.1:1:2\r\n", 403),
        ("Host: 0x7f.1\r\n", 403),
        ("Host:\r\n", 403),
        ("", 403),
        ("Host: localhost\r\nOrigin: null\r\n", 403),
        ("Host: localhost\r\nOrigin: http://localhost\r\n", 403),
    ] {
        assert_eq!(ask(&gateway, "GET /healthz HTTP/1.1", host).status, expected, "{host:?}");
        let act = if expected == 200 { 409 } else { 403 };
        assert_eq!(ask(&gateway, "POST /policies/a/rollback HTTP/1.1", host).status, act, "{host:?}");
    }
    assert_eq!(ask(&gateway, "GET /healthz HTTP/1.0", "").status, 403);
    for line in [
        "POST /policies/%2e%2e/reload",
        "POST /policies/../reload",
        "POST /policies//reload",
        "POST /policies/a/x/reload",
        "POST /policies/a/reload/",
        "POST /policies/b/reload",
        "POST /policies/a",
        "GET /etc/passwd",
    ] {
        assert_eq!(local(&gateway, line).0, 404, "{line}");
    }
    for line in ["GET /policies/a/reload", "POST /policies", "DELETE /metrics"] {
        assert_eq!(local(&gateway, line).0, 405, "{line}");
    }
}

#[test]
fn a_policy_is_reloaded_and_rolled_back_and_all_of_it_is_shown() {
    let gateway = start(POLICY);
    let generation = || local(&gateway, "GET /policies").1["policies"][0]["generation"].as_u64();
    assert_eq!(generation(), Some(1));
    assert_eq!(local(&gateway, "POST /policies/a/reload").1["changed"], false);
    fs::write(gateway.path("a.wat"), answers(241)).expect("written");
    // Whoever is first, the operator or the watch on the file.
    eventually("it is reloaded", || (local(&gateway, "POST /policies/a/reload").1["generation"] == 2).then_some(()));
    assert_eq!(gateway.status("/"), 241);
    let (status, back) = local(&gateway, "POST /policies/a/rollback");
    assert_eq!((status, &back["changed"], &back["generation"]), (200, &true.into(), &1.into()), "{back}");
    assert_eq!((gateway.status("/"), generation()), (240, Some(1)));
    // The file is still the one that was rolled back from.
    assert_eq!(local(&gateway, "POST /policies/a/reload").1["changed"], false);
    assert_eq!(local(&gateway, "POST /policies/a/rollback").0, 409);
    fs::write(gateway.path("a.wat"), "(module").expect("written");
    assert_eq!(local(&gateway, "POST /policies/a/reload").0, 422);
    assert_eq!(gateway.status("/"), 240);
    let (_, all) = local(&gateway, "GET /policies");
    assert!(all["policies"][0]["last_reload"]["error"].as_str().is_some_and(|e| e.contains("text")), "{all}");
    let figures = ask(&gateway, "GET /metrics HTTP/1.1", "Host: localhost\r\n").body;
    assert!(figures.contains("baton_gateway_policy_reload_failed{policy=\"a\"} 1\n"), "{figures}");
}

#[test]
fn a_rollback_while_the_configuration_is_read_is_not_lost() {
    let slow = |n: u32| {
        format!(
            "{POLICY}[policy.slow]\nmodule = \"DIR/slow.wat\"\nconfigure_deadline = \"120s\"\nconfig = {{ n = {n} }}\n"
        )
    };
    let gateway = start(&slow(1));
    fs::write(gateway.path("a.wat"), answers(241)).expect("written");
    eventually("it is reloaded", || (gateway.status("/") == 241).then_some(()));
    let before = gateway.reload(&slow(2));
    gateway.stderr.wait(before, &["is being proved"]);
    let (status, back) = local(&gateway, "POST /policies/a/rollback");
    assert_eq!(status, 200, "{back}");
    gateway.stderr.wait(before, &["configuration reloaded"]);
    assert_eq!(gateway.status("/"), 240);
}

#[test]
fn its_unix_socket_is_the_users_own() {
    let gateway = start(&POLICY.replace("127.0.0.1:0", "unix:DIR/admin.sock"));
    gateway.stderr.wait(0, &["admin on unix:"]);
    let mode = fs::metadata(gateway.path("admin.sock")).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut client = std::os::unix::net::UnixStream::connect(gateway.path("admin.sock")).expect("ours");
    std::io::Write::write_all(&mut client, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .expect("sent");
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut client, &mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("ok\n"), "{answer}");
}

#[test]
fn an_address_that_others_can_reach_is_a_fault() {
    let folder = folder();
    let check = |address: &str| {
        let file = folder.path().join("baton.toml");
        fs::write(&file, format!("[gateway]\nadmin = \"{address}\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n"))
            .expect("written");
        let output = baton().arg("check").arg("-c").arg(&file).output().expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for address in ["0.0.0.0:9901", "192.0.2.1:9901", "[::]:9901"] {
        let (code, said) = check(address);
        assert_eq!(code, Some(64), "{address}: {said}");
        let expected = format!("baton.toml:2: gateway.admin: {address} can be reached by others");
        assert!(said.contains(&expected), "{said}");
    }
    for address in ["127.0.0.1:9901", "127.1.2.3:9901", "[::1]:9901", "unix:/run/baton/admin.sock"] {
        assert_eq!(check(address), (Some(0), String::new()), "{address}");
    }
}
