//! Files through the real gateway: every byte that a client gets, and what a page of ours is made of.

use std::fs;
use std::os::unix::net::UnixListener;

use serde_json::json;

use crate::support::upstream::undated;
use crate::support::{Client, Gateway, eventually, folder};
use crate::{THEN, THEN_IN_WORDS, date, noise};

/// A gateway whose folder `www` is served below `/`, and once more behind a policy, and with an application for what is not there.
fn gateway() -> Gateway {
    let folder = folder();
    let www = folder.path().join("www");
    fs::create_dir_all(www.join("sub")).unwrap();
    for (name, content) in [
        ("a.txt", &b"0123456789"[..]),
        ("error.css", b"h1 { color: red }\n"),
        ("sub/index.html", b"<p>sub"),
        ("a.php", b"<?php secret"),
    ] {
        fs::write(www.join(name), content).unwrap();
        date(&www.join(name), std::time::SystemTime::UNIX_EPOCH + THEN);
    }
    fs::write(folder.path().join("gone.html"), "<h1>not here</h1>").unwrap();
    Gateway::start_in(
        folder,
        "[gateway]\nworkers = 1\n[limits]\nbody_timeout = \"2s\"\nLISTEN\n[error_pages]\n404 = \"gone.html\"\n\
         [upstream.app]\naddress = \"unix:DIR/app.sock\"\n[upstream.php]\naddress = \"fcgi+unix:DIR/php.sock\"\n\
         [policy.passes]\nmodule = \"POLICIES/passes.wat\"\n\
         [[route]]\npath = \"/\"\ndefault = { file = \"www\" }\n\
         [[route]]\npath = \"/guarded/\"\npolicies = [\"passes\"]\ndefault = { file = \"www\" }\n\
         [[route]]\npath = \"/app/\"\ndefault = { file = \"www\", proxy = \"app\" }\n\
         [[route]]\npath = \"/php/\"\ndefault = { file = \"www\", proxy = \"php\" }\n\
         [[route]]\npath = \"/get\"\nmethods = [\"GET\"]\ndefault = { file = \"www\" }\n",
        |command| command,
    )
}

/// An answer's head in lower case, but for its date, and its body; the connection goes on behind it.
fn exchange(client: &mut Client, request: &str) -> (String, String) {
    client.send(request);
    let head = undated(&client.head()).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |l| l.parse().unwrap());
    let is_empty = request.starts_with("HEAD") || head.starts_with("http/1.1 304");
    let body = client.take(if is_empty { 0 } else { length });
    (head, String::from_utf8(body).unwrap())
}

fn get(target: &str, fields: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: x\r\n{fields}\r\n")
}

#[test]
fn what_is_written_is_a_whole_answer_and_the_connection_goes_on() {
    let gateway = gateway();
    let mut client = gateway.client();
    let (head, body) = exchange(&mut client, &get("/a.txt", ""));
    let tag = head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap().to_owned();
    let whole = format!(
        "HTTP/1.1 200 OK\r\nETag: {tag}\r\nLast-Modified: {THEN_IN_WORDS}\r\nAccept-Ranges: bytes\r\n\
         Content-Type: text/plain; charset=utf-8\r\nContent-Length: 10\r\n\r\n"
    );
    let lines = |head: &str| {
        let mut lines: Vec<_> = head.lines().map(str::to_ascii_lowercase).collect();
        lines.sort_unstable();
        lines
    };
    assert_eq!((lines(&head), &body[..]), (lines(&whole), "0123456789"));
    // The same to HEAD, behind a policy, and where an application stands behind.
    let head_of = |client: &mut Client, target: &str| exchange(client, &get(target, "").replacen("GET", "HEAD", 1));
    assert_eq!(head_of(&mut client, "/a.txt"), (head.clone(), String::new()));
    for target in ["/guarded/a.txt", "/app/a.txt", "/php/a.txt"] {
        assert_eq!(exchange(&mut client, &get(target, "")), (head.clone(), body.clone()), "{target}");
    }
    // A part, what is none, and what the client has already.
    let (part, body) = exchange(&mut client, &get("/a.txt", "Range: bytes=2-4\r\n"));
    assert!(
        part.starts_with("http/1.1 206 partial content\r\n") && part.contains("content-range: bytes 2-4/10\r\n"),
        "{part}"
    );
    assert_eq!(body, "234");
    let (none, page) = exchange(&mut client, &get("/a.txt", "Range: bytes=10-\r\n"));
    assert!(none.starts_with("http/1.1 416 ") && none.contains("content-range: bytes */10\r\n"), "{none}");
    assert!(page.contains("/error.css"), "{page}");
    let (same, body) = exchange(&mut client, &get("/a.txt", &format!("If-None-Match: {tag}\r\n")));
    assert!(same.starts_with("http/1.1 304 not modified\r\n") && same.contains(&tag), "{same}");
    assert!(body.is_empty() && !same.contains("content-length: 0"), "{same}");
    // A folder without its slash, with the query that was asked for.
    let (moved, _) = exchange(&mut client, &get("/sub?a=b&c", ""));
    assert!(moved.starts_with("http/1.1 301 ") && moved.contains("location: /sub/?a=b&c\r\n"), "{moved}");
    assert_eq!(exchange(&mut client, &get("/sub/?a=b&c", "")).1, "<p>sub");
    // HTTP/1.0, which closes.
    let mut old = gateway.client();
    old.send("GET /a.txt HTTP/1.0\r\n\r\n");
    assert!(old.rest().ends_with("\r\n\r\n0123456789"));
    let line = gateway.log_line(1);
    assert_eq!(
        (&line["status"], &line["outcome"], &line["route"], &line["to"]),
        (&json!(200), &json!("responded"), &json!("/"), &json!(null))
    );
}

#[test]
fn what_is_not_there_is_a_page_in_the_form_that_was_asked_for() {
    let gateway = gateway();
    let mut client = gateway.client();
    // Of the operator's.
    let (head, page) = exchange(&mut client, &get("/none", ""));
    assert!(
        head.starts_with("http/1.1 404 not found\r\n") && head.contains("content-type: text/html; charset=utf-8\r\n"),
        "{head}"
    );
    assert_eq!(page, "<h1>not here</h1>");
    let (head, problem) = exchange(&mut client, &get("/none", "Accept: application/json\r\n"));
    assert!(head.contains("content-type: application/problem+json\r\n"), "{head}");
    assert_eq!(serde_json::from_str::<serde_json::Value>(&problem).unwrap()["status"], 404);
    // Of ours, which links a style sheet that the same route serves.
    for (method, target, allow) in
        [("POST", "/a.txt", "get, head"), ("DELETE", "/a.txt", "get, head"), ("OPTIONS", "/none", "get, head")]
    {
        let (head, page) = exchange(&mut client, &get(target, "").replacen("GET", method, 1));
        assert!(head.starts_with("http/1.1 405 ") && head.contains(&format!("allow: {allow}\r\n")), "{method}: {head}");
        assert!(page.contains("href=\"/error.css\""), "{page}");
    }
    let (head, style) = exchange(&mut client, &get("/error.css", ""));
    assert!(head.contains("content-type: text/css; charset=utf-8\r\n"), "{head}");
    assert_eq!(style, "h1 { color: red }\n");
    // A body that nobody asked for is read behind the answer, and the next request is understood.
    client.send("POST /a.txt HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(client.answer().status, 405);
    assert_eq!(exchange(&mut client, &get("/a.txt", "")).1, "0123456789");
}

/// Where an upstream stands behind the files it gets what they are not, and what is never read as one.
#[test]
fn what_no_file_answers_an_upstream_does() {
    let gateway = gateway();
    let mut client = gateway.client();
    // Nobody is there: what would go to an upstream is 503, everything else is a file's.
    for (method, target, status) in [
        ("GET", "/app/a.txt", 200),
        ("HEAD", "/app/a.txt", 200),
        ("GET", "/app/none", 503),
        ("GET", "/app/", 503),
        ("GET", "/app/.hidden", 503),
        ("GET", "/app/sub", 301),
        ("GET", "/app/sub/", 200),
        ("POST", "/app/a.txt", 503),
        ("OPTIONS", "/app/a.txt", 503),
        ("GET", "/app/a.php", 200),
        ("GET", "/php/a.txt", 200),
        ("GET", "/php/a.php", 503),
        ("HEAD", "/php/a.php", 503),
        ("GET", "/php/a.PHP", 503),
        ("GET", "/php/x/../%61.p%68p", 503),
        ("GET", "/php/a.php/", 503),
        ("GET", "/php/a.php/sub", 503),
        ("GET", "/php/sub/", 200),
    ] {
        let (head, _) = exchange(&mut client, &get(target, "").replacen("GET", method, 1));
        assert_eq!(head.split(' ').nth(1), Some(&status.to_string()[..]), "{method} {target}");
    }
    // Somebody is: with the path as it was written, and the body.
    let listener = UnixListener::bind(gateway.path("app.sock")).unwrap();
    client.send("POST /app/a.txt?q HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello");
    let (mut app, _) = listener.accept().unwrap();
    let mut asked = Vec::new();
    while !asked.ends_with(b"\r\n\r\nhello") {
        let mut byte = [0];
        std::io::Read::read_exact(&mut app, &mut byte).unwrap();
        asked.push(byte[0]);
    }
    assert!(asked.starts_with(b"POST /app/a.txt?q HTTP/1.1\r\n"));
    std::io::Write::write_all(&mut app, b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok").unwrap();
    let answer = client.answer();
    assert_eq!((answer.status, &answer.body[..]), (201, "ok"));
    let line = eventually("its line", || gateway.log().into_iter().find(|line| line["status"] == 201));
    assert_eq!((&line["outcome"], &line["to"]), (&json!("proxied"), &json!("app")));
}

/// A file that loses its end under way must not look whole: with a length, the connection is closed before it.
#[test]
fn a_file_that_is_cut_in_the_middle_is_seen_to_be() {
    let gateway = gateway();
    let length = 32 << 20;
    fs::write(gateway.path("www/large"), noise(length)).unwrap();
    let mut client = gateway.client();
    client.send(get("/large", ""));
    let head = client.head();
    assert!(head.to_ascii_lowercase().contains(&format!("content-length: {length}\r\n")), "{head}");
    // Some is on its way, and the rest waits for the client.
    let begun = client.take(64 << 10);
    assert_eq!(begun, noise(length)[..64 << 10]);
    fs::OpenOptions::new().write(true).open(gateway.path("www/large")).unwrap().set_len(1 << 20).unwrap();
    let mut rest = Vec::new();
    let end = std::io::Read::read_to_end(&mut client.stream, &mut rest);
    assert!(begun.len() + rest.len() < length, "{end:?}");
    let line = gateway.log_line(1);
    assert_eq!((&line["outcome"], &line["status"]), (&json!("aborted"), &json!(200)), "{line}");
    assert!(line["error"].as_str().unwrap().starts_with("cut: "), "{line}");
    gateway.stderr.wait(0, &["file not served to its end"]);
    // The next one is served.
    assert_eq!(exchange(&mut gateway.client(), &get("/a.txt", "")).1, "0123456789");
}
