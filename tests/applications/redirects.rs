//! `X-Accel-Redirect`: an application that has looked at who asks lets another route answer, which no client reaches by
//! itself; as nginx does it, and compared with nginx.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;
use tempfile::TempDir;

use super::application::{Application, Asked};
use super::support::{Client, Gateway, folder, peers};
use super::{daemon, get, start, words};

/// Fields of an application's answer: those that stay, and others.
const FIELDS: &str = "Content-Type: text/x-mine\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Disposition: attachment\r\n\
    Cache-Control: private\r\nExpires: Thu, 01 Jan 2037 00:00:00 GMT\r\nX-Mine: 1\r\nETag: \"mine\"\r\nLink: </x>\r\n\
    Last-Modified: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Language: en\r\nVary: Cookie\r\nX-Accel-Buffering: no\r\n";

fn redirects(target: &str, fields: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nX-Accel-Redirect: {target}\r\n{fields}Content-Length: 6\r\n\r\nsecret")
}

/// Answers with what the query says, letter by letter as a number.
fn by_query(asked: &Asked) -> String {
    let (_, target) = asked.target().split_once("?to=").expect("a query");
    let letter =
        |at: usize| u32::from_str_radix(&target[at..at + 2], 16).ok().and_then(char::from_u32).expect("a letter");
    redirects(&(0..target.len()).step_by(2).map(letter).collect::<String>(), "")
}

fn in_query(target: &str) -> String {
    target.chars().map(|letter| format!("{:02x}", u32::from(letter))).collect()
}

/// Public routes below `/app`, internal ones beside it, and a file.
fn gateway(folder: TempDir, application: &Application, other: &Application) -> Gateway {
    fs::create_dir_all(folder.path().join("www/sub")).expect("a folder");
    fs::write(folder.path().join("www/a.txt"), "file a").expect("written");
    fs::write(folder.path().join("www/sub/b c\u{e9}#.txt"), "file b").expect("written");
    fs::write(folder.path().join("outside.txt"), "outside").expect("written");
    let (app, other) = (application.address(), other.address());
    let internal = [
        ("/files/", "file = \"DIR/www\""),
        ("/other/", "proxy = \"other\""),
        ("/chat", "handoff = \"chat\""),
        ("/head", "handoff = \"chat\", response_head = { status = 203 }"),
        (
            "/said",
            "respond = { status = 203, body = \"said\", headers = { X-Own = \"1\", Content-Type = \"text/own\" } }",
        ),
        ("/nothing", ""),
    ]
    .map(|(path, default)| {
        let default = if default.is_empty() { String::new() } else { format!("default = {{ {default} }}\n") };
        format!("[[route]]\npath = \"{path}\"\ninternal = true\n{default}")
    })
    .concat();
    start(
        folder,
        &format!(
            "{}[target.chat]\nsockets = [\"DIR/chat.sock\"]\n[upstream.app]\naddress = \"{app}\"\n\
             [upstream.other]\naddress = \"{other}\"\n{internal}\
             [[route]]\npath = \"/app\"\ndefault = {{ proxy = \"app\" }}\nLISTEN",
            super::BASIS
        ),
    )
}

#[test]
fn no_client_gets_to_an_internal_route_by_itself() {
    let folder = folder();
    let chat = daemon(&folder, "chat", "seqpacket", &[]);
    let (application, other) = (Application::start(by_query), Application::start(by_query));
    let gateway = gateway(folder, &application, &other);
    for path in [
        "/files/a.txt",
        "/files/",
        "/other/x",
        "/chat",
        "/said",
        "//files/a.txt",
        "/x/../files/a.txt",
        "/%66iles/a.txt",
        "/app/../files/a.txt",
        "/app/..%2ffiles/a.txt?to=2f73616964",
    ] {
        let mut client = gateway.client();
        client.send(get(path));
        let answer = client.answer();
        assert!(
            answer.status == 404 || answer.status == 400 || answer.status == 403 || path.contains("%2f"),
            "{path}: {answer:?}"
        );
        assert!(!answer.body.contains("file a"), "{path}: {answer:?}");
    }
    // Nor by saying what only applications say.
    let mut client = gateway.client();
    client.send("GET /files/a.txt HTTP/1.1\r\nHost: x\r\nX-Accel-Redirect: /files/a.txt\r\n\r\n");
    assert_eq!(client.answer().status, 404);
    assert!(other.asked().is_empty() && chat.events("accepted").is_empty());
}

#[test]
fn each_kind_of_route_answers_in_the_applications_place() {
    let folder = folder();
    let chat = daemon(&folder, "chat", "seqpacket", &["body=1"]);
    let application = Application::start(by_query);
    let other = Application::start(|_| "HTTP/1.1 202 Accepted\r\nContent-Length: 5\r\n\r\nother".to_owned());
    let gateway = gateway(folder, &application, &other);
    let mut client = gateway.client();
    for (target, status, body) in [
        ("/files/a.txt", 200, "file a"),
        ("/files/a.txt?x=y", 200, "file a"),
        ("/files/sub/../a.txt", 200, "file a"),
        ("/files/%61.txt", 200, "file a"),
        // Byte by byte, as it comes.
        ("/files/sub/b c\u{e9}#.txt", 200, "file b"),
        ("/files/sub/b%20c%C3%A9%23.txt", 200, "file b"),
        ("/other/x%20y?q=1&r", 202, "other"),
        ("/said", 203, "said"),
    ] {
        client.send(get(&format!("/app?to={}", in_query(target))));
        let answer = client.answer();
        assert_eq!((answer.status, answer.body.as_str()), (status, body), "{target}: {answer:?}");
        assert!(!answer.head.contains("X-Accel"), "{answer:?}");
    }
    assert!(other.asked()[0].head.starts_with("GET /other/x%20y?q=1&r HTTP/1.1\r\n"), "{:?}", other.asked());
    client.send(get(&format!("/app?to={}", in_query("/head"))));
    assert!(client.rest().ends_with("from daemon\n"));
    chat.wait("got", 1);
    let line = gateway.log_line(9);
    let lines = gateway.log();
    let outcomes: Vec<_> = lines.iter().map(|line| words(line, ["outcome"])[0].clone()).collect();
    assert_eq!(
        outcomes[..8],
        ["responded", "responded", "responded", "responded", "responded", "responded", "proxied", "responded"]
    );
    assert_eq!(words(&line, ["outcome", "to"]), ["handed-off", "chat"], "{line}");
}

#[test]
fn what_leads_nowhere_is_404_and_nothing_of_the_answer_is_seen() {
    let (application, other) = (Application::start(by_query), Application::start(by_query));
    let gateway = gateway(folder(), &application, &other);
    let mut client = gateway.client();
    for target in [
        "",
        "files/a.txt",
        "/app",
        "/nowhere",
        "/nothing",
        "/files/none.txt",
        "/files/../../outside.txt",
        "/../outside.txt",
        "/files/..%2f..%2foutside.txt",
        "@named",
        "http://x/files/a.txt",
        "//files/a.txt/",
        "/files/a.txt%00",
        "/%zz",
    ] {
        client.send(get(&format!("/app?to={}", in_query(target))));
        let answer = client.answer();
        assert!([403, 404].contains(&answer.status), "{target}: {answer:?}");
        assert!(!answer.body.contains("secret") && !answer.body.contains("outside"), "{target}: {answer:?}");
    }
}

/// One that leads to an application that leads on comes to an end.
#[test]
fn a_circle_comes_to_an_end() {
    let application = Application::start(by_query);
    let other = Application::start(|_| redirects("/other/again", ""));
    let gateway = gateway(folder(), &application, &other);
    assert_eq!(gateway.status(&format!("/app?to={}", in_query("/other/first"))), 502);
    assert_eq!(other.asked().len(), 4);
    assert_eq!(words(&gateway.log_line(1), ["outcome"]), ["upstream-error"]);
}

/// The body was the first one's, who may have left some of it.
#[test]
fn a_request_with_a_body_becomes_a_get_and_the_next_request_follows_it() {
    let (application, other) = (
        Application::start_without_reading(|_| redirects("/other/x", "")),
        Application::start(|_| "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned()),
    );
    let gateway = gateway(folder(), &application, &other);
    let mut client = gateway.client();
    // What nobody reads of the last one may be more than is drained: then its connection ends behind the whole answer.
    for (count, bytes) in [(1, 200 << 10), (2, 200 << 10), (3, 3 << 20)] {
        let body = "b".repeat(bytes);
        client.send(format!("POST /app HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        let answer = client.answer();
        assert_eq!((answer.status, answer.body.as_str()), (200, "ok"), "{answer:?}");
        assert!(count == 3 || answer.header("connection").is_none(), "{answer:?}");
        let asked = other.asked().pop().expect("asked");
        assert!(asked.head.starts_with("GET /other/x HTTP/1.1\r\n") && other.asked().len() == count, "{asked:?}");
        assert!(!asked.head.to_ascii_lowercase().contains("content-"), "{asked:?}");
    }
}

/// The same application behind Debian's nginx and behind us: the same file, the same fields.
#[test]
fn what_the_client_gets_is_what_nginx_gives() {
    if !peers::is_installed("nginx") {
        return;
    }
    let application = Application::start(|asked| match asked.target() {
        "/app/plain" => redirects("/files/a.txt", ""),
        "/app/all" => redirects("/files/a.txt", FIELDS),
        "/app/error" => redirects("/files/a.txt", FIELDS).replace("200 OK", "403 Forbidden"),
        "/app/space" => redirects("/files/sub/b c\u{e9}#.txt", ""),
        "/app/escaped" => redirects("/files/sub/b%20c%C3%A9%23.txt", ""),
        "/app/query" => redirects("/files/a.txt?x", ""),
        "/app/up" => redirects("/files/../outside.txt", ""),
        _ => redirects("/files/none", FIELDS),
    });
    let other = Application::start(by_query);
    let gateway = gateway(folder(), &application, &other);
    let nginx_folder = folder();
    fs::set_permissions(nginx_folder.path(), Permissions::from_mode(0o755)).expect("ours");
    let nginx = peers::nginx(
        nginx_folder.path(),
        &format!(
            "types {{ text/plain txt; }} server {{ LISTEN location /app {{ proxy_pass {}; }} location /files/ {{ internal; alias {}/www/; }} \
             location / {{ return 404; }} }}",
            application.address(),
            gateway.folder.path().display()
        ),
    );
    let mut compared = 0;
    for path in ["plain", "all", "error", "space", "escaped", "query", "up", "none"] {
        for (method, fields) in
            [("GET", ""), ("HEAD", ""), ("POST", "Content-Length: 0\r\n"), ("GET", "Range: bytes=0-2\r\n")]
        {
            let raw = format!("{method} /app/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{fields}\r\n");
            let [theirs, ours] = [nginx.address, gateway.address()].map(|address| {
                let mut client = Client::connect(address);
                client.send(&raw);
                seen(&client.rest())
            });
            assert_eq!(ours, theirs, "{raw}");
            compared += 1;
        }
    }
    assert_eq!(compared, 32);
}

/// Status, the fields that both have reason to send, and the body of what is no error page.
fn seen(answer: &str) -> serde_json::Value {
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).expect("a status");
    let own = ["date", "server", "connection", "etag", "via", "content-length", "transfer-encoding"];
    let is_page = status.starts_with('4');
    let mut fields: Vec<_> = head
        .lines()
        .skip(1)
        .map(|line| line.split_once(": ").expect("a field"))
        .map(|(name, value)| (name.to_ascii_lowercase(), value))
        // Ours says of a file's text that it is UTF-8.
        .map(|(name, value)| (name, value.trim_end_matches("; charset=utf-8")))
        // Its page is each one's own; that of nginx has the application's fields.
        .filter(|(name, _)| !own.contains(&name.as_str()) && !is_page)
        // Of a part we say once more that there are parts.
        .filter(|(name, _)| status != "206" || name != "accept-ranges")
        .collect();
    fields.sort();
    let length = head.to_ascii_lowercase().contains("content-length: ") && !is_page;
    json!([status, fields, length, if is_page { "" } else { body }])
}

/// What would be left undone is refused.
#[test]
fn an_internal_route_asks_nobody_again() {
    let folder = folder();
    let file = folder.path().join("check.toml");
    let check = |setting: &str| {
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[upstream.gate]\naddress = \"fcgi://127.0.0.1:1\"\nrole = \"authorizer\"\n\
             [upstream.change]\naddress = \"fcgi://127.0.0.1:1\"\nrole = \"filter\"\n[policy.p]\nmodule = \"{}/tests/policies/passes.wat\"\n\
             [[route]]\npath = \"/inside\"\ninternal = true\n{setting}\ndefault = {{ respond = {{ status = 200 }} }}\n",
            env!("CARGO_MANIFEST_DIR")
        );
        fs::write(&file, text).expect("written");
        let output = super::support::baton().args(["check", "-c"]).arg(&file).output().expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(check(""), (Some(0), String::new()));
    for setting in ["policies = [\"p\"]", "authorizer = \"gate\"", "filter = \"change\"", "methods = [\"GET\"]"] {
        let (code, said) = check(setting);
        let key = setting.split(' ').next().expect("a key");
        assert!(
            code == Some(64) && said.contains(&format!("route[0].{key}")) && said.contains("nobody is asked again"),
            "{said}"
        );
    }
}
