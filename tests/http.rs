//! What the gateway makes of requests, judged by the bytes that come back: persistence, bodies that nobody wanted, answers,
//! routes. What is a request at all is in tables: `cases.rs`.
#![cfg(feature = "gateway")]

mod support;

use std::io::Read;

use support::{Answer, Client, Gateway, OK_EVERYWHERE, eventually, folder, unread_at_the_gateway};

/// What comes until the other end closes in good order.
fn end(client: &mut Client) -> Result<String, std::io::ErrorKind> {
    let mut bytes = Vec::new();
    client.stream.read_to_end(&mut bytes).map_err(|error| error.kind())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// An answer to HEAD: its length is not there.
fn head_answer(client: &mut Client) -> Answer {
    let head = client.until("\r\n\r\n");
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status line");
    Answer { status, head, body: String::new() }
}

#[test]
fn an_answer_arrives_whole_though_the_client_is_still_sending() {
    let gateway = Gateway::start(OK_EVERYWHERE);
    let unread = vec![b'a'; 1 << 20];
    for (head, status) in [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1048576\r\n\r\n", 200),
        ("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n100000\r\n", 200),
    ] {
        let mut client = gateway.client();
        client.send(head);
        client.send(&unread);
        let answer = client.answer();
        assert_eq!((answer.status, answer.header("connection")), (status, Some("close")), "{head}");
        assert_eq!(end(&mut client), Ok(String::new()), "{head}: closed in good order");
    }
}

#[test]
fn a_body_that_nobody_wanted_is_read_up_to_256_kib() {
    let gateway = Gateway::start(OK_EVERYWHERE);
    for (length, lives) in [(1_usize, true), (256 << 10, true), ((256 << 10) + 1, false)] {
        let mut client = gateway.client();
        client.send(format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"));
        let answer = client.answer();
        assert_eq!((answer.status, answer.header("connection").is_none()), (200, lives), "{length}");
        client.send(vec![b'a'; length]);
        if lives {
            client.get("/behind");
            assert_eq!(client.answer().status, 200, "{length}");
        } else {
            assert_eq!(end(&mut client), Ok(String::new()), "{length}");
        }
    }
    let log = eventually("every line", || Some(gateway.log()).filter(|log| log.len() == 5));
    let read: Vec<_> = log.iter().filter(|l| l["method"] == "POST").map(|l| l["bytes_in"].as_u64()).collect();
    let head = |length: usize| format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n").len();
    assert_eq!(read[..2], [Some(head(1) as u64 + 1), Some((head(256 << 10) + (256 << 10)) as u64)], "{log:?}");
}

#[test]
fn nobody_is_told_to_continue_when_nobody_reads_on() {
    let gateway = Gateway::start(OK_EVERYWHERE);
    let all = gateway.ask("POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n");
    assert!(all.starts_with("HTTP/1.1 200 OK\r\n") && all.ends_with("\r\n\r\nok"), "{all}");
    assert!(all.contains("\r\nConnection: close\r\n"), "{all}");
}

#[test]
fn fifty_requests_in_one_write_are_answered_in_order() {
    let gateway = Gateway::start(&OK_EVERYWHERE.replace("passes", "answers"));
    let mut client = gateway.client();
    let request = |n: usize| match n % 3 {
        0 => format!("GET /{n} HTTP/1.1\r\nHost: x\r\n\r\n"),
        1 => format!("POST /{n} HTTP/1.1\r\nHost: x\r\nContent-Length: 29\r\n\r\nGET /no HTTP/1.1\r\nHost: x\r\n\r\n"),
        _ => format!("POST /{n} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
    };
    client.send((0..50).map(request).collect::<String>());
    for n in 0..50 {
        let answer = client.answer();
        assert_eq!((answer.status, answer.body), (231, format!("/{n}")));
    }
    let targets: Vec<_> = eventually("every line", || Some(gateway.log()).filter(|log| log.len() == 50));
    assert!(targets.iter().enumerate().all(|(n, line)| line["target"] == format!("/{n}")), "{targets:?}");
}

#[test]
fn what_follows_a_last_request_is_not_answered() {
    let gateway = Gateway::start(OK_EVERYWHERE);
    let last = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let all = gateway.ask(&format!("{last}GET / HTTP/1.1\r\nHost: x\r\n\r\n"));
    assert_eq!(all.matches("HTTP/1.1 ").count(), 1, "{all}");
    // And HTTP/1.0 is told that it may go on, when it asked.
    let mut client = gateway.client();
    client.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!(client.answer().header("connection"), Some("keep-alive"));
    client.send("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(client.answer().header("connection"), Some("close"));
    assert_eq!(end(&mut client), Ok(String::new()));
}

#[test]
fn a_client_that_leaves_within_a_head_is_logged_and_one_that_says_nothing_is_not() {
    let gateway = Gateway::start(OK_EVERYWHERE);
    drop(gateway.client());
    let mut client = gateway.client();
    client.send("\r\n");
    eventually("the empty line is taken", || (unread_at_the_gateway(&client)? == 0).then_some(()));
    drop(client);
    let mut client = gateway.client();
    client.send("\r\n");
    drop(client);
    let mut client = gateway.client();
    client.send("GET / HTTP/1.1\r\nHo");
    client.stream.shutdown(std::net::Shutdown::Write).expect("ours");
    assert_eq!(end(&mut client), Ok(String::new()));
    assert_eq!(gateway.log_line(1)["outcome"], "client-gone");
    // A client may end its side behind a request: it still reads.
    let mut client = gateway.client();
    client.get("/");
    client.stream.shutdown(std::net::Shutdown::Write).expect("ours");
    assert_eq!(client.answer().status, 200);
    assert_eq!(end(&mut client), Ok(String::new()));
    gateway.log_line(2);
    assert_eq!(gateway.log().len(), 2);
}

#[test]
fn answers_have_a_date_a_length_and_no_more_than_they_say() {
    let gateway = Gateway::start(
        r#"
LISTEN
[[route]]
path = "=/plain"
default = { respond = { status = 201, body = "five!", headers = { x-own-field = "v", "Content-Type" = "text/plain" } } }
[[route]]
path = "=/none"
default = { respond = { status = 204, body = "never" } }
[[route]]
path = "=/reset"
default = { respond = { status = 205, body = "never" } }
[[route]]
path = "=/unchanged"
default = { respond = { status = 304, body = "never" } }
[[route]]
path = "=/dated"
default = { respond = { headers = { Date = "Sun, 06 Nov 1994 08:49:37 GMT" } } }
[[route]]
path = "=/odd"
default = { respond = { status = 299 } }
"#,
    );
    let mut client = gateway.client();
    client.get("/plain");
    let answer = client.answer();
    assert!(answer.head.starts_with("HTTP/1.1 201 Created\r\n"), "{answer:?}");
    let fields = ["content-length", "content-type", "x-own-field", "connection", "transfer-encoding"];
    let got = fields.map(|name| answer.header(name));
    assert_eq!(got, [Some("5"), Some("text/plain"), Some("v"), None, None]);
    let date = answer.header("date").expect("RFC 9110 6.6.1");
    let age = httpdate::parse_http_date(date).expect("an IMF-fixdate").elapsed().unwrap_or_default();
    assert!(age < support::patience(), "{date}");

    client.send("HEAD /plain HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(head_answer(&mut client).header("content-length"), Some("5"));
    client.send("HEAD /nowhere HTTP/1.1\r\nHost: x\r\n\r\n");
    let answer = head_answer(&mut client);
    assert!(answer.status == 404 && answer.header("content-length").is_some_and(|l| l != "0"), "{answer:?}");
    // Had any of them content, the next answer would not begin where it does.
    for (path, length) in [("/none", None), ("/reset", Some("0")), ("/unchanged", None)] {
        client.get(path);
        let answer = client.answer();
        assert_eq!((answer.header("content-length"), answer.body.as_str()), (length, ""), "{path}");
    }
    client.get("/dated");
    let answer = client.answer();
    assert_eq!(answer.head.matches("Date: ").count(), 1, "{answer:?}");
    assert_eq!(answer.header("date"), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
    client.get("/odd");
    assert!(client.answer().head.starts_with("HTTP/1.1 299 "));
}

#[test]
fn a_failure_is_told_in_the_form_that_was_asked_for() {
    let folder = folder();
    std::fs::create_dir(folder.path().join("errors")).expect("made");
    std::fs::write(folder.path().join("errors/405.html"), "<h1>not so</h1>").expect("written");
    let gateway = Gateway::start_in(
        folder,
        r#"
LISTEN
[error_pages]
405 = "errors/405.html"
[[route]]
path = "=/get"
methods = ["GET", "DELETE"]
default = { respond = { body = "ok" } }
"#,
        |command| command,
    );
    let mut client = gateway.client();
    client.get("/nowhere");
    let page = client.answer();
    assert_eq!((page.status, page.header("content-type")), (404, Some("text/html; charset=utf-8")));
    assert!(page.body.contains("<title>404 Not Found</title>") && page.body.contains("href=\"/error.css\""));
    let ask = |client: &mut Client, path: &str, accept: &str| {
        client.send(format!("POST {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n"));
        client.answer()
    };
    for accept in ["application/json", "application/problem+json", "text/plain, Application/JSON;q=0.1"] {
        let problem = ask(&mut client, "/nowhere", accept);
        assert_eq!((problem.status, problem.header("content-type")), (404, Some("application/problem+json")));
        let value: serde_json::Value = serde_json::from_str(&problem.body).expect("JSON");
        assert_eq!((&value["status"], &value["title"]), (&404.into(), &"Not Found".into()), "{accept}");
    }
    let browser = ask(&mut client, "/nowhere", "text/html,application/xhtml+xml,application/json;q=0.9,*/*;q=0.8");
    assert_eq!(browser.header("content-type"), Some("text/html; charset=utf-8"));
    // Replaced by status, for people only; Allow stays what it is.
    let replaced = ask(&mut client, "/get", "*/*");
    assert_eq!((replaced.status, replaced.body.as_str()), (405, "<h1>not so</h1>"));
    let allow = replaced.header("allow").expect("RFC 9110 15.5.6");
    let mut allow: Vec<_> = allow.split(", ").collect();
    allow.sort_unstable();
    assert_eq!(allow, ["DELETE", "GET", "HEAD"]);
    assert_eq!(ask(&mut client, "/get", "application/json").header("content-type"), Some("application/problem+json"));
    // Of the inside, nothing.
    let malformed = gateway.ask("GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n");
    let inside = ["Host", "baton", "Baton", gateway.folder.path().to_str().expect("text")];
    assert!(inside.iter().all(|word| !malformed.contains(word)), "{malformed}");
}

#[test]
fn a_route_is_found_by_host_then_path_however_they_are_spelled() {
    let route = |host: &str, path: &str, name: &str| {
        let host = if host.is_empty() { String::new() } else { format!("host = \"{host}\"\n") };
        format!("[[route]]\n{host}path = \"{path}\"\ndefault = {{ respond = {{ body = \"{name}\" }} }}\n")
    };
    let gateway = Gateway::start(&format!(
        "LISTEN\n{}",
        [
            route("", "/", "any"),
            route("", "/admin/", "admin"),
            route("*.example.org", "/", "below"),
            route("www.example.org", "/v1", "exact-v1"),
            route("www.example.org", "=/v1", "exact-v1-only"),
            route("[::1]", "/", "six"),
        ]
        .concat()
    ));
    let mut client = gateway.client();
    for (host, path, wanted) in [
        ("x", "/", "any"),
        ("x", "/admin", "any"),
        ("x", "/admin/", "admin"),
        ("x", "//admin/", "admin"),
        ("x", "/%61dmin/", "admin"),
        ("x", "/x/../admin/", "admin"),
        ("x", "/./admin//x", "admin"),
        ("x", "/x/%2e%2E/%61%64min/y?z=/", "admin"),
        ("x", "http://x/%61dmin/", "admin"),
        ("x", "/admin/..", "any"),
        ("x", "/admin%2F", "any"),
        ("x", "/?/admin/", "any"),
        ("example.org", "/", "any"),
        ("a.example.org", "/", "below"),
        ("a.b.EXAMPLE.org:8080", "/v1", "below"),
        ("a.example.org.", "/", "below"),
        ("aexample.org", "/", "any"),
        ("WWW.Example.Org", "/v1", "exact-v1-only"),
        ("www.example.org:1", "/v1/", "exact-v1"),
        ("www.example.org.:80", "/v1/a", "exact-v1"),
        ("www.example.org", "/v1a", "below"),
        ("www.example.org", "/admin/", "below"),
        ("[::1]:80", "/", "six"),
    ] {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(client.answer().body, wanted, "{host} {path}");
    }
    client.send("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(client.answer().body, "any");
}

/// Whatever a client has sent when it closes its side, it costs the worker nothing from then on.
#[test]
fn a_client_that_half_closes_anywhere_does_not_keep_its_worker() {
    let gateway = Gateway::start(
        "[gateway]\nworkers = 1\nLISTEN\n[[route]]\npath = \"/\"\ndefault = { respond = { status = 200 } }\n",
    );
    let request = "\r\nPOST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody";
    let mut clients: Vec<_> = (0..=request.len()).map(|_| gateway.client()).collect();
    for (at, client) in clients.iter_mut().enumerate() {
        client.send(&request[..at]);
        client.stream.shutdown(std::net::Shutdown::Write).expect("connected");
    }
    for client in &mut clients {
        client.rest();
    }
    assert_eq!(gateway.status("/"), 200);
    // A worker that spins would use all of the time that passes here; one at rest uses hardly any.
    let cpu = || gateway.cpu_ticks();
    let (before, began) = (cpu(), std::time::Instant::now());
    while began.elapsed() < std::time::Duration::from_millis(500) {
        std::thread::park_timeout(std::time::Duration::from_millis(50));
    }
    assert!(cpu() - before <= 10, "{} ticks of 10 ms in half a second", cpu() - before);
}

/// One that never lets the worker wait must not keep it from the others.
#[test]
fn a_client_with_endless_requests_does_not_starve_the_others() {
    let gateway = Gateway::start(
        "[gateway]\nworkers = 1\nLISTEN\n[[route]]\npath = \"/\"\ndefault = { respond = { status = 200 } }\n",
    );
    let greedy = gateway.client();
    let mut answers = greedy.stream.try_clone().expect("a socket");
    let reader = std::thread::spawn(move || std::io::copy(&mut answers, &mut std::io::sink()));
    let requests = "GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(20_000);
    let mut sender = greedy.stream.try_clone().expect("a socket");
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut sender, requests.as_bytes()));
    // Each is answered while the greedy one still has requests under way.
    for _ in 0..20 {
        assert_eq!(gateway.status("/"), 200);
    }
    let served = gateway.log().len();
    assert!(served < 20_000 + 20, "the others had to wait for all {served}");
    greedy.stream.shutdown(std::net::Shutdown::Both).expect("connected");
    drop((reader.join(), writer.join()));
    drop(greedy.stream);
}
