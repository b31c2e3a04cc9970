//! The two fields are between an application and us: whoever sends them from outside is not heard, and no client sees any,
//! also where what they ask for is not done (A3, CHECKS 16 and 19).

use std::fs;

use super::application::Application;
use super::support::fastcgi::PhpFpm;
use super::support::folder;
use super::{behind, daemon, start};

#[test]
fn a_client_that_sends_them_is_neither_heard_nor_passed_on() {
    let folder = folder();
    let daemon = daemon(&folder, "d", "seqpacket", &[]);
    let socket = folder.path().join("d.sock").display().to_string();
    let fields = format!("X-Socket-Handoff: {socket}\r\nx_socket_handoff: {socket}\r\nX-HANDOFF-DATA: secret\r\n");
    let application = Application::start(|asked| {
        // What it is told, it tells: none of it may come back to us as its own word.
        let told: String = asked
            .head
            .lines()
            .skip(1)
            .filter(|line| line.starts_with(['x', 'X']))
            .map(|l| format!("{l}\r\n"))
            .collect();
        format!("HTTP/1.1 200 OK\r\n{told}Content-Length: 2\r\n\r\nok")
    });
    let gateway = start(folder, &behind(&application, ""));
    let trailers = format!(
        "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n{fields}\r\n0\r\n{fields}\r\n"
    );
    for raw in [format!("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{fields}\r\n"), trailers] {
        let answer = gateway.ask(&raw);
        assert!(answer.ends_with("ok") && !answer.to_ascii_lowercase().contains("handoff"), "{answer}");
    }
    let asked: String =
        application.asked().iter().map(|a| a.head.clone() + &String::from_utf8_lossy(&a.body)).collect();
    assert!(!asked.to_ascii_lowercase().contains("handoff") && !asked.contains("secret"), "{asked}");
    assert!(daemon.events("accepted").is_empty());
}

#[test]
fn no_client_sees_them_where_they_are_heard() {
    let fields = "X-Handoff-Data: secret\r\nx-handoff_data: secret\r\nX_Socket_Handoff: /run/a.sock\r\n\
                  X-Accel-Buffering: no\r\n";
    let application = Application::start(move |asked| {
        let head = |status| format!("HTTP/1.1 {status} Whatever\r\n{fields}");
        match asked.target() {
            "/ok" | "/head" => {
                format!("{}Content-Length: 2\r\n\r\n{}", head(200), if asked.target() == "/ok" { "ok" } else { "" })
            }
            "/error" => format!("{}Content-Length: 2\r\n\r\nok", head(500)),
            "/204" => format!("{}\r\n", head(204)),
            "/304" => format!("{}\r\n", head(304)),
            // Where it is refused, nothing of it is told either.
            _ => format!(
                "HTTP/1.1 200 OK\r\nX-Socket-Handoff: /nowhere/secret.sock\r\n{fields}Content-Length: 0\r\n\r\n"
            ),
        }
    });
    let gateway = start(folder(), &behind(&application, ""));
    for (method, path, status) in [
        ("GET", "/ok", 200),
        ("HEAD", "/head", 200),
        ("GET", "/error", 500),
        ("GET", "/204", 204),
        ("GET", "/304", 304),
        ("GET", "/refused", 403),
    ] {
        let answer = gateway.ask(&format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        let lower = answer.to_ascii_lowercase();
        for word in ["handoff", "secret", "x-accel"] {
            assert!(!lower.contains(word), "{path}: {answer}");
        }
    }
}

/// The program that says whether a request may go on is heard about that alone.
#[test]
fn an_authorizers_refusal_goes_to_the_client_without_them() {
    let folder = folder();
    let daemon = daemon(&folder, "d", "seqpacket", &[]);
    let socket = folder.path().join("d.sock").display().to_string();
    let page = format!(
        "<?php http_response_code(401); header('X-Socket-Handoff: {socket}'); header('X-Handoff-Data: secret');\n\
         header('X-Accel-Redirect: /inside'); header('WWW-Authenticate: Basic realm=\"x\"'); echo 'no';"
    );
    fs::write(folder.path().join("auth.php"), page).expect("written");
    let php = PhpFpm::start(folder.path());
    let php_socket = php.socket.display();
    let gateway = start(
        folder,
        &format!(
            "[gateway]\nworkers = 1\n[handoff]\nallowed_prefixes = [\"DIR/\"]\n[upstream.gate]\naddress = \"fcgi+unix:{php_socket}\"\n\
             role = \"authorizer\"\nroot = \"DIR\"\nscript = \"/auth.php\"\nhandoff_headers = true\n\
             [[route]]\npath = \"/\"\nauthorizer = \"gate\"\ndefault = {{ respond = {{ body = \"in\" }} }}\nLISTEN"
        ),
    );
    let answer = gateway.ask("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 401 ") && answer.contains("\r\nno\r\n"), "{answer}");
    assert!(answer.contains("Basic realm=\"x\""), "{answer}");
    let lower = answer.to_ascii_lowercase();
    assert!(!lower.contains("handoff") && !lower.contains("x-accel"), "{answer}");
    assert!(daemon.events("accepted").is_empty());
    drop(php);
}
