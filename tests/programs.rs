//! FastCGI programs behind the gateway, on the wire: unchanged programs of libfcgi, PHP-FPM, and some that misbehave.
//! What the codec and the client make of records is `fastcgi_client.rs`'s.
#![cfg(feature = "gateway")]

mod support;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::sys::signal::Signal;
use support::fastcgi::{PhpFpm, Program};
use support::peers;
use support::upstream::Serving;
use support::{Answer, Gateway, eventually, folder};

/// A gateway in whose folder the test has something already; `{...}` of its configuration are upstreams and routes.
fn start(folder: tempfile::TempDir, more: &str) -> Gateway {
    let toml = format!("[gateway]\nworkers = 2\nLISTEN\n{more}");
    Gateway::start_in(folder, &toml, |command| command)
}

/// One upstream `app` for everything.
fn all_to(address: &str, settings: &str) -> String {
    format!(
        "[upstream.app]\naddress = {address}\n{settings}\n[[route]]\npath = \"/\"\ndefault = {{ proxy = \"app\" }}\n"
    )
}

#[track_caller]
fn ask(gateway: &Gateway, raw: &str) -> Answer {
    let mut client = gateway.client();
    client.send(raw);
    let text = client.rest();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("an answer: {text:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let body = if head.contains("Transfer-Encoding: chunked") { unchunked(body) } else { body.to_owned() };
    Answer { status, head: head.to_owned(), body }
}

/// Panics where the last chunk is missing.
#[track_caller]
fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n").expect("a chunk's size");
        let size = usize::from_str_radix(size, 16).expect("hexadecimal");
        if size == 0 {
            assert_eq!(rest, "\r\n", "the end");
            return whole;
        }
        whole += &rest[..size];
        body = rest[size..].strip_prefix("\r\n").expect("a chunk's end");
    }
}

/// What `echo.c` says that it was told, and the body that it was sent.
fn told(answer: &Answer) -> (BTreeMap<String, String>, String) {
    let (variables, body) = answer.body.split_once("\n\n").expect("an empty line");
    let pair = |line: &str| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    (variables.lines().filter_map(pair).collect(), body.to_owned())
}

/// The log line of a target.
#[track_caller]
fn logged(gateway: &Gateway, target: &str) -> serde_json::Value {
    eventually(&format!("a line about {target}"), || gateway.log().into_iter().find(|line| line["target"] == target))
}

#[test]
fn a_program_is_told_of_the_request_and_of_nothing_that_a_client_may_not_say() {
    let folder = folder();
    let _program = Program::spawn("echo", &folder.path().join("echo.sock"));
    let gateway = start(folder, &all_to("\"fcgi+unix:echo.sock\"", "root = \"/srv/www\""));
    let answer = ask(
        &gateway,
        "POST /a%20b.php/in/fo?x=%0a HTTP/1.1\r\nHost: Example.org:80\r\nConnection: close\r\nContent-Length: 5\r\n\
         Content-Type: text/plain\r\nProxy: http://evil/\r\nX-Socket-Handoff: /run/evil\r\nX_Socket_Handoff: /run/evil\r\n\
         X-Handoff-Data: evil\r\nVariable-REMOTE_USER: evil\r\nX-Forwarded-For: 10.9.8.7\r\nForwarded: for=10.9.8.7\r\n\
         X_Under: 1\r\nCookie: a=1\r\nCookie: b=2\r\nX-Two: 1\r\nX-Two: 2\r\n\r\nhello",
    );
    let (variables, body) = told(&answer);
    assert_eq!((answer.status, &*body), (200, "hello"), "{}", answer.head);
    for (name, value) in [
        ("REQUEST_METHOD", "POST"),
        ("REQUEST_URI", "/a%20b.php/in/fo?x=%0a"),
        ("QUERY_STRING", "x=%0a"),
        ("SCRIPT_NAME", "/a b.php"),
        ("SCRIPT_FILENAME", "/srv/www/a b.php"),
        ("PATH_INFO", "/in/fo"),
        ("DOCUMENT_ROOT", "/srv/www"),
        ("CONTENT_LENGTH", "5"),
        ("CONTENT_TYPE", "text/plain"),
        ("REMOTE_ADDR", "127.0.0.1"),
        ("SERVER_NAME", "example.org"),
        ("SERVER_PROTOCOL", "HTTP/1.1"),
        ("GATEWAY_INTERFACE", "CGI/1.1"),
        ("REDIRECT_STATUS", "200"),
        ("HTTP_COOKIE", "a=1; b=2"),
        ("HTTP_X_TWO", "1, 2"),
        ("SERVER_PORT", &gateway.address().port().to_string()),
    ] {
        assert_eq!(variables.get(name).map(String::as_str), Some(value), "{name} in {variables:#?}");
    }
    for name in [
        "HTTPS",
        "HTTP_PROXY",
        "HTTP_X_SOCKET_HANDOFF",
        "HTTP_X_HANDOFF_DATA",
        "HTTP_VARIABLE_REMOTE_USER",
        "REMOTE_USER",
        "HTTP_X_UNDER",
        "HTTP_X_FORWARDED_FOR",
        "HTTP_FORWARDED",
    ] {
        assert_eq!(variables.get(name), None, "{name}");
    }
    let line = logged(&gateway, "/a%20b.php/in/fo?x=%0a");
    assert_eq!(
        (&line["outcome"], &line["to"], &line["attempts"]),
        (&"proxied".into(), &"app".into(), &1.into()),
        "{line}"
    );
    // A line break in a file's name is nobody's.
    let refused = ask(&gateway, "GET /a%0a.php HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!(refused.status, 400);
}

#[test]
fn a_trusted_proxy_says_who_the_client_is() {
    let folder = folder();
    let _program = Program::spawn("echo", &folder.path().join("echo.sock"));
    let toml =
        format!("[gateway]\ntrusted_proxies = [\"127.0.0.1\"]\nLISTEN\n{}", all_to("\"fcgi+unix:echo.sock\"", ""));
    let gateway = Gateway::start_in(folder, &toml, |command| command);
    let answer = ask(
        &gateway,
        "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Forwarded-For: 10.9.8.7\r\nX-Forwarded-Proto: https\r\n\r\n",
    );
    let (variables, _) = told(&answer);
    let of = |name: &str| variables.get(name).map(String::as_str);
    assert_eq!((of("REMOTE_ADDR"), of("HTTPS"), of("REMOTE_PORT")), (Some("10.9.8.7"), Some("on"), Some("")));
    assert_eq!(of("HTTP_X_FORWARDED_FOR"), Some("10.9.8.7"));
    assert_eq!(logged(&gateway, "/")["client"], "10.9.8.7");
}

#[test]
fn a_body_without_a_length_is_kept_until_it_has_one() {
    let folder = folder();
    let _program = Program::spawn("echo", &folder.path().join("echo.sock"));
    let gateway = start(folder, &all_to("\"fcgi+unix:echo.sock\"", ""));
    // In memory, at the bound of it, and in a file.
    for length in [0, 5, 1 << 20, (1 << 20) + 1, 3 << 20] {
        let body = "abcdefgh".repeat(length / 8 + 1)[..length].to_owned();
        let mut raw =
            "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned();
        for piece in body.as_bytes().chunks(100_000) {
            raw += &format!("{:x}\r\n{}\r\n", piece.len(), std::str::from_utf8(piece).expect("text"));
        }
        let (variables, echoed) = told(&ask(&gateway, &(raw + "0\r\nX-Trailer: 1\r\n\r\n")));
        assert_eq!(variables["CONTENT_LENGTH"], length.to_string());
        assert!(!variables.contains_key("HTTP_TRANSFER_ENCODING"), "{variables:#?}");
        assert!(echoed == body, "{length}: {} bytes came back", echoed.len());
    }
    // A client that waits is told to go on.
    let mut client = gateway.client();
    client.send("POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    assert_eq!(client.until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("hello");
    assert!(client.rest().contains("\nhello"), "the body");
}

#[test]
fn what_a_program_complains_of_is_in_the_log_with_the_requests_id() {
    let folder = folder();
    let _program = Program::spawn("complains", &folder.path().join("p.sock"));
    let gateway = start(folder, &all_to("\"fcgi+unix:p.sock\"", ""));
    let answer = ask(&gateway, "GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!((answer.status, &*answer.body), (500, "body"));
    let id = logged(&gateway, "/x")["id"].as_str().expect("an id").to_owned();
    for said in ["stderr: before", "stderr: in two pieces", "stderr: behind", "status 3"] {
        gateway.stderr.wait(0, &[said, &format!("request={id}"), "upstream=app"]);
    }
}

#[test]
fn a_field_of_two_hundred_thousand_bytes_reaches_the_client() {
    let folder = folder();
    let _program = Program::spawn("large_head", &folder.path().join("p.sock"));
    let gateway = start(folder, &all_to("\"fcgi+unix:p.sock\"", ""));
    let answer = ask(&gateway, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!((answer.header("x-large").map(str::len), &*answer.body), (Some(200_000), "body"));
    let before = gateway.reload(&format!(
        "[gateway]\nworkers = 2\nLISTEN\n{}",
        all_to("\"fcgi+unix:p.sock\"", "head_bytes_max = \"100KiB\"")
    ));
    gateway.stderr.wait(before, &["configuration reloaded"]);
    assert_eq!(ask(&gateway, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").status, 502);
}

// === Authorizers ===

/// An authorizer before an HTTP server, a program, and a policy.
fn authorized(http: &str) -> String {
    format!(
        "[upstream.auth]\naddress = \"fcgi+unix:auth.sock\"\nrole = \"authorizer\"\nconnect_timeout = \"1s\"\n\
         [upstream.http]\naddress = \"{http}\"\n[upstream.app]\naddress = \"fcgi+unix:echo.sock\"\n\
         [policy.says]\nmodule = \"POLICIES/says_param.wat\"\n\
         [[route]]\npath = \"/http\"\nauthorizer = \"auth\"\ndefault = {{ proxy = \"http\" }}\n\
         [[route]]\npath = \"/app\"\nauthorizer = \"auth\"\ndefault = {{ proxy = \"app\" }}\n\
         [[route]]\npath = \"/policy\"\nauthorizer = \"auth\"\npolicies = [\"says\"]\n"
    )
}

#[test]
fn an_authorizer_lets_through_with_variables_or_answers_itself() {
    let folder = folder();
    let program = Program::spawn("authorizer", &folder.path().join("auth.sock"));
    let _echo = Program::spawn("echo", &folder.path().join("echo.sock"));
    let http = Serving::start(|head, peer| {
        peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}", head.len()));
        true
    });
    let gateway = start(folder, &authorized(&http.address()));
    let get = |target: &str| {
        let raw =
            format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nVariable-REMOTE_USER: evil\r\n\r\n");
        ask(&gateway, &raw)
    };
    // Its variables reach an HTTP server as fields, a program as variables, a policy as parameters.
    let seen = get("/http?let=anna").body;
    assert!(seen.contains("variable-remote_user: anna\r\n") && !seen.contains("evil"), "{seen}");
    let (variables, _) = told(&get("/app?let=bert"));
    assert_eq!((&*variables["REMOTE_USER"], &*variables["Role"]), ("bert", "AUTHORIZER"));
    let answer = get("/policy?let=carl");
    assert_eq!((answer.status, &*answer.body), (200, "carl"));
    // Whoever is refused gets its answer whole, and nobody else is asked.
    let asked = http.heads().len();
    let refused = get("/http?no");
    assert_eq!((refused.status, &*refused.body, refused.header("content-type")), (403, "go away", Some("text/plain")));
    assert!(!refused.head.to_ascii_lowercase().contains("variable-"), "{}", refused.head);
    assert_eq!(http.heads().len(), asked);
    let line = logged(&gateway, "/http?no");
    assert_eq!(
        (&line["outcome"], &line["to"], &line["policy"]),
        (&"responded".into(), &"auth".into(), &serde_json::Value::Null)
    );
    assert_eq!(get("/policy?no").status, 403);
    // A body is for whoever answers.
    let posted =
        ask(&gateway, "POST /app?let=x HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(told(&posted).1, "hello");
    // Without its word nobody gets on.
    drop(program);
    let down = get("/http?let=anna");
    assert_eq!((down.status, down.header("retry-after").is_some()), (503, true));
    assert_eq!(http.heads().len(), asked);
    assert_eq!(logged(&gateway, "/http?let=anna")["status"], 200, "the first of them");
}

#[test]
fn an_authorizer_that_says_nothing_lets_nobody_through() {
    for (name, said, status) in [
        ("nothing", end(0), 502),
        ("no end", stdout(b"Status: 200 OK\r\n\r\n"), 502),
        ("garbage", b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), 502),
        ("overloaded", end(2), 503),
        ("another role", end(3), 503),
    ] {
        let folder = folder();
        let fake = Fake::start(&folder.path().join("auth.sock"), vec![said]);
        let _echo = Program::spawn("echo", &folder.path().join("echo.sock"));
        let gateway = start(folder, &authorized("http://127.0.0.1:1"));
        let answer = ask(&gateway, "GET /app?let=x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        assert_eq!(answer.status, status, "{name}: {}", answer.body);
        assert!(!answer.body.contains("REQUEST_METHOD"), "{name}");
        fake.join();
    }
}

/// No dialect of these has a place for it; what there would be is named, and no value.
#[test]
fn what_an_authorizer_set_and_that_a_body_was_read_is_metadata_of_a_handoff() {
    let folder = folder();
    let _authorizer = Program::spawn("authorizer", &folder.path().join("auth.sock"));
    let daemon = support::Daemon::start(&folder.path().join("d.sock"), "seqpacket", "serve", &[]);
    let socket = folder.path().join("d.sock").display().to_string();
    let application = Serving::start(move |_, peer| {
        assert_eq!(peer.take(5), b"hello");
        peer.send(format!("HTTP/1.1 200 OK\r\nX-Socket-Handoff: {socket}\r\nContent-Length: 0\r\n\r\n"));
        true
    });
    let toml = format!(
        "LISTEN\n[handoff]\nallowed_prefixes = [\"DIR\"]\n[upstream.auth]\naddress = \"fcgi+unix:auth.sock\"\n\
         role = \"authorizer\"\n[upstream.app]\naddress = \"{}\"\nhandoff_headers = true\n\
         [[route]]\npath = \"/\"\nauthorizer = \"auth\"\ndefault = {{ proxy = \"app\" }}\n",
        application.address()
    );
    let gateway = Gateway::start_in(folder, &toml, |command| command.args(["--log-level", "debug"]));
    gateway.ask("POST /?let=anna HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello");
    let said = gateway.stderr.wait(0, &["metadata is left out"]);
    assert!(said.contains("REMOTE_USER Role request-body") && !said.contains("anna"), "{said}");
    assert_eq!(daemon.events("accepted").len(), 1);
}

// === Filters ===

#[test]
fn a_filter_changes_files_and_answers_of_200() {
    let folder = folder();
    std::fs::create_dir(folder.path().join("www")).expect("a folder");
    std::fs::write(folder.path().join("www/a.txt"), "from a file").expect("written");
    let _filter = Program::spawn("filter", &folder.path().join("filter.sock"));
    let http = Serving::start(|head, peer| {
        let answer = match () {
            () if head.contains("/known") => {
                "HTTP/1.1 200 OK\r\nLast-Modified: Thu, 01 Jan 1970 00:01:40 GMT\r\nContent-Length: 5\r\n\r\nknown"
            }
            () if head.contains("/chunked") => {
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nchu\r\n4\r\nnked\r\n0\r\n\r\n"
            }
            () => "HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnone",
        };
        peer.send(answer);
        true
    });
    let gateway = start(
        folder,
        &format!(
            "[upstream.filter]\naddress = \"fcgi+unix:filter.sock\"\nrole = \"filter\"\n[upstream.http]\naddress = \"{}\"\n\
             [[route]]\npath = \"/file/\"\nfilter = \"filter\"\ndefault = {{ file = \"www\" }}\n\
             [[route]]\npath = \"/\"\nfilter = \"filter\"\ndefault = {{ proxy = \"http\" }}\n",
            http.address()
        ),
    );
    let get = |target: &str, body: &str| {
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        ask(&gateway, &format!("POST {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{length}\r\n{body}"))
    };
    let file = get("/file/a.txt", "abc");
    assert_eq!((file.status, &*file.body), (200, "FROM A FILE (11 bytes, 3 in front)"));
    let known = get("/known", "abc");
    assert_eq!((&*known.body, known.header("x-modified")), ("KNOWN (5 bytes, 0 in front)", Some("100")));
    assert_eq!(get("/chunked", "").body, "CHUNKED (7 bytes, 0 in front)");
    let none = get("/else", "");
    assert_eq!((none.status, &*none.body), (404, "none"));
    assert_eq!(get("/file/none.txt", "").status, 404);
}

// === Connections ===

#[test]
fn a_connection_is_closed_behind_each_request_unless_it_is_to_be_kept() {
    // One process: a connection that were kept would keep everybody else out.
    let socket = |folder: &tempfile::TempDir| folder.path().join("echo.sock");
    let home = folder();
    let _program = Program::spawn("echo", &socket(&home));
    let gateway = start(home, &all_to("\"fcgi+unix:echo.sock\"", ""));
    let get = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    for count in 1..=5 {
        assert_eq!(ask(&gateway, get).header("x-count"), Some(&*count.to_string()));
        let mut another = eventually("the process is free", || UnixStream::connect(gateway.path("echo.sock")).ok());
        another.write_all(&[]).expect("it listens");
    }
    drop(gateway);
    // Kept, it is whoever's needs it, on any worker; and nothing else is opened but the one that asked for the values.
    let home = folder();
    let _program = Program::spawn("echo", &socket(&home));
    let gateway = start(home, &all_to("\"fcgi+unix:echo.sock\"", "keep_alive = 1\nkeep_alive_timeout = \"200ms\""));
    for _ in 0..20 {
        assert_eq!(ask(&gateway, get).status, 200);
    }
    // Its time runs out: the process serves others again.
    let mut other = UnixStream::connect(gateway.path("echo.sock")).expect("it listens");
    other.set_read_timeout(Some(support::patience())).expect("a socket");
    let mut request = vec![1, 1, 0, 1, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    request.extend([1, 4, 0, 1, 0, 0, 0, 0, 1, 5, 0, 1, 0, 0, 0, 0]);
    other.write_all(&request).expect("it reads");
    let mut answer = Vec::new();
    other.read_to_end(&mut answer).expect("an answer");
    assert!(String::from_utf8_lossy(&answer).contains("X-Count: 21"), "{}", String::from_utf8_lossy(&answer));
}

#[test]
fn a_client_that_leaves_is_told_to_the_program() {
    let home = folder();
    let listener = UnixListener::bind(home.path().join("p.sock")).expect("a free path");
    let gateway = start(home, &all_to("\"fcgi+unix:p.sock\"", ""));
    // Before the head, and behind it.
    for begins in [false, true] {
        let mut client = gateway.client();
        client.get(if begins { "/behind" } else { "/before" });
        let (mut program, _) = listener.accept().expect("a connection");
        program.set_read_timeout(Some(support::patience())).expect("a socket");
        let request = read_request(&mut program);
        assert!(!request.is_empty(), "a request");
        if begins {
            program.write_all(&stdout(b"Status: 200 OK\r\n\r\nbegin")).expect("it reads");
            client.until("begin");
        }
        drop(client);
        let mut rest = Vec::new();
        program.read_to_end(&mut rest).expect("its end");
        assert_eq!(rest, [1, 2, 0, 1, 0, 0, 0, 0], "ABORT_REQUEST, and the end");
        let line = logged(&gateway, if begins { "/behind" } else { "/before" });
        assert_eq!(line["outcome"], "client-gone", "{line}");
    }
}

#[test]
fn a_program_that_refuses_is_not_the_only_one() {
    for (status, name) in [(1, "CANT_MPX_CONN"), (2, "OVERLOADED"), (3, "UNKNOWN_ROLE")] {
        let home = folder();
        let fake = Fake::start(&home.path().join("fake.sock"), vec![end(status); 2]);
        let echo = Program::spawn("echo", &home.path().join("echo.sock"));
        let both = all_to("[\"fcgi+unix:fake.sock\", \"fcgi+unix:echo.sock\"]", "");
        let gateway = start(home, &both);
        let body = "0123456789".repeat(3000);
        let raw =
            format!("POST /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let (_, echoed) = told(&ask(&gateway, &raw));
        assert_eq!(echoed.len(), body.len(), "{name}: the body, once and whole");
        assert_eq!(logged(&gateway, "/x")["attempts"], 2, "{name}");
        // The other one alone is in turn; then nobody is left.
        assert_eq!(ask(&gateway, "GET /y HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").status, 200);
        drop(echo);
        let refused = ask(&gateway, "GET /z HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        assert_eq!((refused.status, refused.header("retry-after").is_some()), (503, true), "{name}");
        assert_eq!(logged(&gateway, "/z")["outcome"], "upstream-error");
        fake.join();
    }
}

#[test]
fn an_answer_that_is_cut_never_looks_whole() {
    for (name, said, length) in [
        // More than is waited for before a client is sent the first of it.
        ("no end", [stdout(b"Status: 200 OK\r\n\r\nbegin"), stdout(&[b'x'; 60_000]).repeat(5)].concat(), None),
        ("too short", [stdout(b"Content-Length: 10\r\n\r\nbegin"), end(0)].concat(), Some("10")),
        ("too long", [stdout(b"Content-Length: 3\r\n\r\nbegin"), end(0)].concat(), Some("3")),
    ] {
        let home = folder();
        let fake = Fake::start(&home.path().join("p.sock"), vec![said.clone(), said]);
        let gateway = start(home, &all_to("\"fcgi+unix:p.sock\"", ""));
        let got = gateway.ask("GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        match length {
            Some(_) if got.starts_with("HTTP/1.1 502 ") => {}
            Some(length) => {
                let (head, body) = got.split_once("\r\n\r\n").expect("an answer");
                assert!(head.contains(&format!("Content-Length: {length}")), "{name}: {got}");
                assert!(body.len().to_string() != length, "{name}: {got}");
            }
            None => assert!(got.contains("begin") && !got.ends_with("0\r\n\r\n"), "{name}: {got}"),
        }
        assert_eq!(logged(&gateway, "/x")["outcome"], "upstream-error", "{name}");
        // Where only the end would end it, it is no end.
        let mut old = gateway.client();
        old.send("GET /y HTTP/1.0\r\nHost: x\r\n\r\n");
        if length.is_none() {
            old.until("begin");
            assert!(old.was_reset(), "{name}");
        }
        drop(old);
        fake.join();
    }
}

#[test]
fn a_program_that_checks_addresses_sees_the_configured_one() {
    let home = folder();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it listens");
    let allowed = [("FCGI_WEB_SERVER_ADDRS", "127.0.0.9")];
    let _program = Program::spawn_on("echo", home.path(), listener.into(), &allowed);
    let text =
        |source: &str| format!("[gateway]\nworkers = 2\nLISTEN\n{}", all_to(&format!("\"fcgi://{address}\""), source));
    let gateway = Gateway::start_in(home, &text("source = \"127.0.0.9\""), |command| command);
    let get = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert_eq!(ask(&gateway, get).status, 200);
    let before = gateway.reload(&text(""));
    gateway.stderr.wait(before, &["configuration reloaded"]);
    assert_eq!(ask(&gateway, get).status, 502, "it closes on everybody else");
}

// === Beside nginx, and PHP ===

#[test]
fn a_program_is_told_the_same_behind_us_as_behind_nginx() {
    if !peers::is_installed("nginx") {
        return;
    }
    let home = folder();
    let root = home.path().display().to_string();
    let _program = Program::spawn("echo", &home.path().join("echo.sock"));
    let nginx = peers::nginx(
        home.path(),
        &format!(
            "server {{ LISTEN server_name example.org; root {root}; location / {{ include /etc/nginx/fastcgi.conf; \
             fastcgi_split_path_info ^(.+?[.]php)(/.*)$; fastcgi_param PATH_INFO $fastcgi_path_info; \
             fastcgi_pass unix:{root}/echo.sock; fastcgi_index index.php; }} }}"
        ),
    );
    let gateway = start(home, &all_to("\"fcgi+unix:echo.sock\"", &format!("root = \"{root}\"")));
    for (request, body) in [
        ("GET /a.php?x=%20&y HTTP/1.1", ""),
        ("GET /a%20b/c.php/in%2Ffo//x/../y?a=b HTTP/1.1", ""),
        ("POST /folder.d/ HTTP/1.1", "body"),
        ("PUT /no-script HTTP/1.1", "0123456789"),
        ("DELETE / HTTP/1.0", ""),
    ] {
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let raw = format!(
            "{request}\r\nHost: example.org\r\nConnection: close\r\nAccept: a/b\r\nCookie: a=1\r\nX_Under: 1\r\n\
             User-Agent: u\r\n{length}\r\n{body}"
        );
        let both = [nginx.address, gateway.address()].map(|address| {
            let mut client = support::Client::connect(address);
            client.send(&raw);
            let text = client.rest();
            let (head, body) = text.split_once("\r\n\r\n").expect("an answer");
            let body = if head.contains("chunked") { unchunked(body) } else { body.to_owned() };
            let (mut variables, body) = told(&Answer { status: 0, head: String::new(), body });
            // The product's own name and the connection's own ports; and what is one for a program, set or not.
            for own in ["SERVER_SOFTWARE", "REMOTE_PORT", "SERVER_PORT", "FCGI_ROLE", "PATH_TRANSLATED"] {
                variables.remove(own);
            }
            // Nobody has verified anybody.
            variables.retain(|name, value| !(["PATH_INFO", "REMOTE_USER"].contains(&&**name) && value.is_empty()));
            // Ours is the script's name; theirs has what stands behind it, and lacks the index.
            variables.remove("DOCUMENT_URI");
            (variables, body)
        });
        assert_eq!(both[0], both[1], "{request}: nginx, and we");
    }
}

#[test]
fn a_front_controller_is_the_script_of_every_path() {
    let home = folder();
    let php = PhpFpm::start(home.path());
    std::fs::create_dir(home.path().join("www")).expect("a folder");
    let page = "<?php foreach (['SCRIPT_NAME', 'REQUEST_URI', 'PHP_SELF', 'QUERY_STRING'] as $n) echo $n, '=', $_SERVER[$n], \"\\n\";\
                echo 'PATH_INFO=', $_SERVER['PATH_INFO'] ?? 'none', \"\\n\", file_get_contents('php://input');";
    std::fs::write(home.path().join("www/index.php"), page).expect("written");
    let root = home.path().join("www").display().to_string();
    let settings = format!("root = \"{root}\"\nscript = \"/index.php\"");
    let gateway = start(home, &all_to("\"fcgi+unix:php-fpm.sock\"", &settings));
    let answer = ask(
        &gateway,
        "POST /blog/2026/a-title?x=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody",
    );
    assert_eq!(
        answer.body,
        "SCRIPT_NAME=/index.php\nREQUEST_URI=/blog/2026/a-title?x=1\nPHP_SELF=/index.php\nQUERY_STRING=x=1\nPATH_INFO=none\nbody"
    );
    drop(php);
    assert_eq!(ask(&gateway, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").status, 503);
}

#[test]
fn programs_that_are_killed_in_the_middle_leave_nothing_behind() {
    let home = folder();
    let socket = home.path().join("echo.sock");
    let listener = UnixListener::bind(&socket).expect("a free path");
    let mut program = Program::spawn_on("echo", home.path(), listener.try_clone().expect("a socket").into(), &[]);
    let gateway = start(home, &all_to("\"fcgi+unix:echo.sock\"", "head_timeout = \"2s\""));
    let get = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert_eq!(ask(&gateway, get).status, 200);
    let before = gateway.ledger();
    let mut seen = BTreeMap::<u16, usize>::new();
    for round in 0..300 {
        if round % 10 == 9 {
            program.kill();
            program =
                Program::spawn_on("echo", gateway.folder.path(), listener.try_clone().expect("a socket").into(), &[]);
        }
        *seen.entry(ask(&gateway, get).status).or_default() += 1;
    }
    assert!(seen.keys().all(|status| [200, 502].contains(status)), "{seen:?}");
    assert!(seen[&200] > 200, "{seen:?}");
    gateway.ledger_is(&before);
    gateway.signal(Signal::SIGTERM);
}

// === A program of the test's ===

/// Answers its clients one after the other with given bytes, once it has read their requests, and closes.
struct Fake(std::thread::JoinHandle<()>);

impl Fake {
    fn start(socket: &Path, answers: Vec<Vec<u8>>) -> Self {
        let listener = UnixListener::bind(socket).expect("a free path");
        listener.set_nonblocking(true).expect("a socket");
        Self(std::thread::spawn(move || {
            for answer in answers {
                let (mut peer, _) = eventually("a request for the program", || listener.accept().ok());
                peer.set_nonblocking(false).expect("a socket");
                peer.set_read_timeout(Some(support::patience())).expect("a socket");
                read_request(&mut peer);
                // It may have been told to stop by now.
                drop(peer.write_all(&answer));
            }
        }))
    }

    fn join(self) {
        self.0.join().expect("no panic");
    }
}

/// Everything up to the empty record of STDIN, or of PARAMS where an authorizer is asked.
fn read_request(peer: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    let (mut role, mut is_over) = (1, false);
    while !is_over {
        let mut header = [0; 8];
        if peer.read_exact(&mut header).is_err() {
            return all;
        }
        let length = usize::from(u16::from_be_bytes([header[4], header[5]])) + usize::from(header[6]);
        let mut content = vec![0; length];
        peer.read_exact(&mut content).expect("a whole record");
        match (header[1], length) {
            (1, _) => role = content[1],
            (4, 0) => is_over = role == 2,
            (5, 0) => is_over = true,
            _ => {}
        }
        all.extend(header);
        all.extend(content);
    }
    all
}

fn record(kind: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).expect("short").to_be_bytes();
    [&[1, kind, 0, 1, length[0], length[1], 0, 0], content].concat()
}

fn stdout(content: &[u8]) -> Vec<u8> {
    record(6, content)
}

/// END_REQUEST with a protocol status.
fn end(status: u8) -> Vec<u8> {
    record(3, &[0, 0, 0, 0, status, 0, 0, 0])
}
