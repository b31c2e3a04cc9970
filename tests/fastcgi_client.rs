//! `baton::fastcgi` against real programs: libfcgi's FCGI_Accept loops in C (`fastcgi/*.c`) and PHP-FPM; and against what
//! no real program does, by programs of a few bytes each. What the gateway makes of it is shown elsewhere.
#![cfg(feature = "gateway")]

mod support;

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream as Peer};
use std::path::Path;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use baton::fastcgi::record::{self, Kind};
use baton::fastcgi::{
    Facts, Input, Limits, Purpose, Request, Role, Scripts, Settings, Unanswered, Values, Variables, Verdict, ask,
    ask_values, authorize, is_quiet, pairs,
};
use baton::upstream::{Answer, Fault, Piece, Source, feed};
use hyper::body::Bytes;
use support::fastcgi::{PhpFpm, Program};
use support::{eventually, folder, patience};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;

/// Lines that a program wrote to its standard error.
type Lines = Arc<Mutex<Vec<String>>>;

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async { tokio::time::timeout(patience(), future).await.expect("it ends") })
}

fn settings<S>() -> Settings<S> {
    Settings { limits: Limits::default(), complain: Box::new(|_| {}), keep: None }
}

fn listening<S>() -> (Lines, Settings<S>) {
    let lines = Lines::default();
    let sink = Arc::clone(&lines);
    let complain = Box::new(move |line: &str| sink.lock().expect("no panic").push(line.to_owned()));
    (lines, Settings { complain, ..settings() })
}

const FACTS: Facts<'_> = Facts {
    method: "POST",
    target: "/a.php/info?let=alice",
    path: "/a.php/info",
    query: Some("let=alice"),
    protocol: "HTTP/1.1",
    scheme: "https",
    fields: &[],
    body_bytes: None,
    client_address: "192.0.2.7",
    client_port: Some(50_000),
    server_address: "192.0.2.1",
    server_port: Some(443),
    host: "example.org",
    extra: &[],
};

fn responder(facts: &Facts<'_>, root: &Path, stdin: Source) -> Request {
    let scripts = Scripts { root: Some(root.display().to_string()), ..Scripts::default() };
    let facts = Facts { body_bytes: stdin.length().filter(|&length| length > 0), ..*facts };
    let variables = Variables::new(&facts, &scripts, Purpose::Respond).expect("a path");
    request(Role::Responder, &variables, stdin)
}

fn request(role: Role, variables: &Variables, stdin: Source) -> Request {
    let variables = variables.encode().expect("short").into();
    Request { role, variables, stdin: Input::from(stdin), data: Input::empty(), is_head: false }
}

/// A request that nobody looks at closely.
fn plain(stdin: &str) -> Request {
    responder(&FACTS, Path::new("/"), Source::whole(Bytes::copy_from_slice(stdin.as_bytes())))
}

async fn connect(socket: &Path) -> UnixStream {
    UnixStream::connect(socket).await.expect("it listens")
}

/// All data of an answer, and how it ended.
async fn drain(answer: &mut Answer) -> (Vec<u8>, Result<(), Fault>) {
    let mut data = Vec::new();
    loop {
        match poll_fn(|context| answer.body.poll_next(context)).await {
            None => return (data, Ok(())),
            Some(Ok(Piece::Data(bytes))) => data.extend_from_slice(&bytes),
            Some(Ok(Piece::Trailers(fields))) => panic!("{fields:?}"),
            Some(Err(fault)) => return (data, Err(fault)),
        }
    }
}

async fn whole(mut answer: Answer) -> String {
    let (data, end) = drain(&mut answer).await;
    assert_eq!(end, Ok(()), "{}", String::from_utf8_lossy(&data));
    String::from_utf8(data).expect("text")
}

fn field<'a>(answer: &'a Answer, name: &str) -> &'a str {
    answer.fields.get(name).map_or("", |value| value.to_str().expect("text"))
}

// ---- libfcgi ----

#[test]
fn an_unchanged_program_is_told_what_cgi_says_and_sent_the_body() {
    let folder = folder();
    let socket = folder.path().join("echo.sock");
    let _program = Program::spawn("echo", &socket);
    for length in [0, 1, 5, 65_528, 65_529, 70_000, 1_000_000] {
        let body: String = ('a'..='z').cycle().take(length).collect();
        let stdin = Source::whole(Bytes::from(body.clone()));
        let text = run(async {
            let answer = ask(connect(&socket).await, responder(&FACTS, folder.path(), stdin), settings()).await;
            let answer = answer.expect("an answer");
            assert_eq!((answer.status, field(&answer, "content-type")), (200, "text/plain"));
            whole(answer).await
        });
        let (environment, sent) = text.split_once("\n\n").expect("an empty line");
        assert!(sent == body, "{length} bytes became {}", sent.len());
        let lines: Vec<&str> = environment.lines().collect();
        let root = folder.path().display();
        let expected_length = if length == 0 { String::new() } else { length.to_string() };
        for line in [
            format!("SCRIPT_FILENAME={root}/a.php"),
            format!("PATH_TRANSLATED={root}/info"),
            format!("CONTENT_LENGTH={expected_length}"),
            "PATH_INFO=/info".to_owned(),
            "HTTPS=on".to_owned(),
            "FCGI_ROLE=RESPONDER".to_owned(),
            "REQUEST_URI=/a.php/info?let=alice".to_owned(),
        ] {
            assert!(lines.contains(&&line[..]), "{line} in {lines:#?}");
        }
    }
}

#[test]
fn both_ways_flow_at_once_and_at_any_size() {
    let folder = folder();
    let socket = folder.path().join("echo.sock");
    let _program = Program::spawn("echo", &socket);
    // Many times what fits between us: whoever wrote all before reading would wait for ever.
    let pieces = 256;
    let piece = Bytes::from(vec![b'x'; 64 << 10]);
    let (mut feed, source) = feed(Some(pieces * 64 * 1024));
    let (from_program, _) = run(async {
        let answer = async {
            let answer = ask(connect(&socket).await, responder(&FACTS, folder.path(), source), settings()).await;
            let mut answer = answer.expect("an answer");
            let (data, end) = drain(&mut answer).await;
            assert_eq!(end, Ok(()));
            data.iter().filter(|&&b| b == b'x').count() as u64
        };
        let fill = async {
            for _ in 0..pieces {
                assert!(poll_fn(|context| feed.poll_room(context)).await);
                feed.put(piece.clone());
            }
            assert!(poll_fn(|context| feed.poll_room(context)).await);
            feed.end();
        };
        tokio::join!(answer, fill)
    });
    // A few stand in the environment.
    assert!((pieces * 64 * 1024..pieces * 64 * 1024 + 100).contains(&from_program), "{from_program}");
}

#[test]
fn a_program_that_reads_nothing_is_heard_whole() {
    let folder = folder();
    let socket = folder.path().join("large.sock");
    let _program = Program::spawn("large_head", &socket);
    let expected: String = ('a'..='z').cycle().take(200_000).collect();
    for length in [0, 8 << 20] {
        let stdin = Source::whole(vec![b'x'; length].into());
        run(async {
            let answer = ask(connect(&socket).await, responder(&FACTS, folder.path(), stdin), settings()).await;
            let answer = answer.expect("an answer");
            assert_eq!(field(&answer, "x-large"), expected);
            assert_eq!(whole(answer).await, "body");
        });
    }
    // Its head is "Content-Type: text/plain\n", "X-Large: ", the value and two line breaks.
    let bytes = 25 + 9 + 200_000 + 2;
    for (head_bytes_max, is_answered) in [(bytes, true), (bytes - 1, false)] {
        let limits = Limits { head_bytes_max, ..Limits::default() };
        let answer = run(async { ask(connect(&socket).await, plain(""), Settings { limits, ..settings() }).await });
        match answer {
            Ok(_) => assert!(is_answered, "{head_bytes_max}"),
            Err(Unanswered { fault, .. }) => {
                assert!(!is_answered && fault.status() == Some(502), "{fault}");
                assert_eq!(
                    fault.to_string(),
                    format!("the answer's head has more than {head_bytes_max} bytes (head_bytes_max)")
                );
            }
        }
    }
}

#[test]
fn complaints_are_lines_and_an_exit_status_is_one_of_them() {
    let folder = folder();
    let socket = folder.path().join("complains.sock");
    let _program = Program::spawn("complains", &socket);
    let (lines, settings) = listening();
    run(async {
        let answer = ask(connect(&socket).await, plain(""), settings).await.expect("an answer");
        assert_eq!(answer.status, 500);
        assert_eq!(whole(answer).await, "body");
    });
    assert_eq!(*lines.lock().expect("no panic"), ["before", "in two pieces", "behind", "[it ended with status 3]"]);
}

#[test]
fn an_authorizer_lets_through_with_variables_or_answers_in_our_stead() {
    let folder = folder();
    let socket = folder.path().join("authorizer.sock");
    let _program = Program::spawn("authorizer", &socket);
    let verdict = |query: &str, keep: Option<oneshot::Sender<UnixStream>>| {
        let facts = Facts { query: Some(query), ..FACTS };
        let variables = Variables::new(&facts, &Scripts::default(), Purpose::Authorize).expect("a path");
        let request = request(Role::Authorizer, &variables, Source::empty());
        run(async {
            authorize(connect(&socket).await, request, Settings { keep, ..settings() }).await.expect("a verdict")
        })
    };
    let Verdict::Through(variables) = verdict("let=alice", None) else { panic!("refused") };
    let expected = [("REMOTE_USER", "alice"), ("Role", "AUTHORIZER")];
    assert_eq!(variables, expected.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec())));
    let facts = Facts { query: Some("let=alice"), ..FACTS };
    let variables = Variables::new(&facts, &Scripts::default(), Purpose::Authorize).expect("a path");
    run(async {
        let asked = || request(Role::Authorizer, &variables, Source::empty());
        let refusing = Variables::new(&FACTS_REFUSED, &Scripts::default(), Purpose::Authorize).expect("a path");
        let verdict =
            authorize(connect(&socket).await, request(Role::Authorizer, &refusing, Source::empty()), settings());
        let Verdict::Refused(answer) = verdict.await.expect("a verdict") else { panic!("let through") };
        assert_eq!((answer.status, answer.fields.len()), (403, 1), "{:?}", answer.fields);
        assert_eq!(whole(answer).await, "go away");
        // Without an end of STDIN, which it is not sent, the connection can be used again.
        let mut stream = connect(&socket).await;
        for _ in 0..3 {
            let (keep, kept) = oneshot::channel();
            let verdict = authorize(stream, asked(), Settings { keep: Some(keep), ..settings() }).await;
            assert!(matches!(verdict, Ok(Verdict::Through(_))), "{verdict:?}");
            stream = kept.await.expect("kept");
        }
    });
}

const FACTS_REFUSED: Facts<'_> = Facts { query: None, ..FACTS };

#[test]
fn a_filter_gets_a_body_and_its_data() {
    let folder = folder();
    let socket = folder.path().join("filter.sock");
    let _program = Program::spawn("filter", &socket);
    for length in [0_usize, 5, 300_000] {
        let purpose = Purpose::Filter { data_bytes: length as u64, modified_s: 1_700_000_000 };
        let variables = Variables::new(&FACTS, &Scripts::default(), purpose).expect("a path");
        let data = Input::from(Source::whole(vec![b'x'; length].into()));
        let request = Request { data, ..request(Role::Filter, &variables, Source::whole(Bytes::from_static(b"abc"))) };
        run(async {
            let answer = ask(connect(&socket).await, request, settings()).await.expect("an answer");
            assert_eq!(field(&answer, "x-modified"), "1700000000");
            assert_eq!(whole(answer).await, format!("{} ({length} bytes, 3 in front)", "X".repeat(length)));
        });
    }
}

#[test]
fn a_connection_is_kept_when_it_was_asked_for_and_everything_is_done() {
    let folder = folder();
    let socket = folder.path().join("echo.sock");
    let _program = Program::spawn("echo", &socket);
    run(async {
        let mut stream = connect(&socket).await;
        for count in 1..=5 {
            let (keep, kept) = oneshot::channel();
            let answer =
                ask(stream, plain("body"), Settings { keep: Some(keep), ..settings() }).await.expect("an answer");
            assert_eq!(field(&answer, "x-count"), count.to_string());
            assert!(whole(answer).await.ends_with("\n\nbody"));
            stream = kept.await.expect("kept");
        }
        // The body is not read to its end: the connection goes with it.
        let (keep, kept) = oneshot::channel::<UnixStream>();
        let answer = ask(stream, plain("body"), Settings { keep: Some(keep), ..settings() }).await.expect("an answer");
        drop(answer);
        assert!(kept.await.is_err());
    });
}

#[test]
fn a_kept_connection_is_quiet_until_something_comes_or_it_is_closed() {
    run(async {
        let folder = folder();
        let socket = folder.path().join("echo.sock");
        let program = Program::spawn("echo", &socket);
        let (keep, kept) = oneshot::channel();
        let answer = ask(connect(&socket).await, plain(""), Settings { keep: Some(keep), ..settings() }).await;
        whole(answer.expect("an answer")).await;
        let mut stream = kept.await.expect("kept");
        assert!(is_quiet(&mut stream).await);
        drop(program);
        assert!(!is_quiet(&mut stream).await);
        let (mut ours, mut theirs) = UnixStream::pair().expect("a pair");
        assert!(is_quiet(&mut ours).await);
        tokio::io::AsyncWriteExt::write_all(&mut theirs, b"x").await.expect("room");
        assert!(!is_quiet(&mut ours).await);
    });
}

#[test]
fn web_server_addresses_are_checked_by_the_program() {
    let folder = folder();
    for (allowed, is_answered) in [("127.0.0.1", true), ("192.0.2.1", false)] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let environment = [("FCGI_WEB_SERVER_ADDRS", allowed)];
        let _program = Program::spawn_on("echo", folder.path(), listener.into(), &environment);
        run(async {
            let stream = TcpStream::connect(address).await.expect("it listens");
            let answer = ask(stream, plain(""), settings()).await;
            assert_eq!(answer.is_ok(), is_answered, "{allowed}: {answer:?}");
        });
    }
}

/// nginx with the configuration that Debian gives it for FastCGI. It ends with this value.
struct Nginx(std::process::Child);

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its one process: it has no workers of its own.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn variables_are_those_that_nginx_gives() {
    let folder = folder();
    let socket = folder.path().join("echo.sock");
    let _program = Program::spawn("echo", &socket);
    let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
    let root = folder.path().display().to_string();
    let configuration = format!(
        "daemon off; master_process off; pid {root}/pid; error_log {root}/error.log;\nevents {{}}\n\
         http {{ access_log off; client_body_temp_path {root}/b; proxy_temp_path {root}/p; fastcgi_temp_path {root}/f;\n\
         uwsgi_temp_path {root}/u; scgi_temp_path {root}/s;\nserver {{ listen 127.0.0.1:{port}; server_name example.org;\n\
         root {root}; index index.php; location / {{ include /etc/nginx/fastcgi.conf; fastcgi_pass unix:{root}/echo.sock;\n\
         fastcgi_split_path_info ^(.+?[.]php)(/.*)$; fastcgi_index index.php; }} }} }}\n"
    );
    std::fs::write(folder.path().join("nginx.conf"), configuration).expect("written");
    let mut command = std::process::Command::new("nginx");
    command.arg("-p").arg(folder.path()).arg("-c").arg(folder.path().join("nginx.conf"));
    let stderr = std::process::Stdio::null();
    let _nginx = Nginx(command.stderr(stderr).spawn().expect("nginx is installed: apt-get install nginx"));
    let fields = [
        ("Host", "example.org:8080"),
        ("Accept", "a"),
        ("accept", "b"),
        ("Proxy", "http://evil/"),
        ("X_Under", "1"),
        ("X.Dot", "1"),
        ("Cookie", "a=1"),
        ("Cookie", "b=2"),
        ("Content-Type", "text/plain"),
        ("Authorization", "Basic eDp5"),
        ("X-Forwarded-For", "10.0.0.1"),
        ("Connection", "close"),
    ];
    for (method, target, body) in [
        ("GET", "/a.php?x=%20&y", None),
        ("GET", "/a%20b/c.php/in%2Ffo//x/../y?", None),
        ("POST", "/folder.d/a.php", Some("body")),
        ("POST", "/a.php/", Some("")),
        ("DELETE", "/no-script", None),
    ] {
        let mut fields: Vec<(&str, String)> = fields.iter().map(|&(name, value)| (name, value.to_owned())).collect();
        fields.extend(body.map(|body| ("Content-Length", body.len().to_string())));
        let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let mut client = eventually("nginx listens", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
        client.set_read_timeout(Some(patience())).expect("a socket");
        let raw = format!("{method} {target} HTTP/1.1\r\n{lines}\r\n{}", body.unwrap_or_default());
        client.write_all(raw.as_bytes()).expect("it reads");
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("an answer");
        // What changes with each request, is the product's own name, or differs on purpose: nobody has verified
        // REMOTE_USER, and HTTP_PROXY is what somebody else takes for a setting.
        let own = ["SERVER_SOFTWARE", "REMOTE_PORT", "FCGI_ROLE", "HTTP_PROXY", "REMOTE_USER"];
        let mut theirs = BTreeMap::<String, String>::new();
        for (name, value) in answer.lines().filter_map(|line| line.split_once('=')) {
            let is_name = name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
            if is_name && !own.contains(&name) {
                // This nginx sends a variable for each field; programs see one of them. We join them.
                let separator = if name == "HTTP_COOKIE" { "; " } else { ", " };
                let joined = theirs.get(name).map(|before| format!("{before}{separator}{value}"));
                theirs.insert(name.to_owned(), joined.unwrap_or_else(|| value.to_owned()));
            }
        }

        let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        let path = baton::http::path::normalise(path).expect("a path");
        let borrowed: Vec<_> = fields.iter().map(|(name, value)| ((*name).into(), value.as_bytes())).collect();
        let facts = Facts {
            method,
            target,
            path: &path,
            query,
            scheme: "http",
            fields: &borrowed,
            body_bytes: body.map(|body| body.len() as u64),
            client_address: "127.0.0.1",
            server_address: "127.0.0.1",
            server_port: Some(port),
            ..FACTS
        };
        let scripts = Scripts { root: Some(root.clone()), ..Scripts::default() };
        let ours = Variables::new(&facts, &scripts, Purpose::Respond).expect("a path");
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
        let mut ours: BTreeMap<_, _> = ours.iter().map(|(n, v)| (text(n), text(v))).collect();
        // fastcgi.conf does not have the first two; whoever splits paths adds them.
        for name in ["PATH_INFO", "PATH_TRANSLATED", "SERVER_SOFTWARE", "REMOTE_PORT"] {
            ours.remove(name);
        }
        // Ours is the script; that of nginx has what stands behind it, too.
        let theirs_uri = theirs.insert("DOCUMENT_URI".to_owned(), ours["DOCUMENT_URI"].clone());
        assert!(theirs_uri.is_some_and(|uri| uri.starts_with(&ours["DOCUMENT_URI"])));
        assert_eq!(ours, theirs, "{method} {target}\n{answer}");
    }
}

// ---- PHP-FPM ----

/// What came of a request to a script.
struct Said {
    status: u16,
    fields: hyper::HeaderMap,
    body: String,
    lines: Vec<String>,
}

fn ask_php(php_fpm: &PhpFpm, folder: &Path, path: &str, stdin: &str) -> Said {
    let fields = [("content-type".into(), &b"application/x-www-form-urlencoded"[..])];
    let facts = Facts { target: path, path, fields: &fields, ..FACTS };
    let request = responder(&facts, folder, Source::whole(Bytes::copy_from_slice(stdin.as_bytes())));
    let (lines, settings) = listening();
    let (status, fields, body) = run(async {
        let mut answer = ask(connect(&php_fpm.socket).await, request, settings).await.expect("an answer");
        (answer.status, std::mem::take(&mut answer.fields), whole(answer).await)
    });
    let lines = lines.lock().expect("no panic").clone();
    Said { status, fields, body, lines }
}

fn page(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), format!("<?php {text}")).expect("written");
}

#[test]
fn php_answers() {
    let folder = folder();
    let php_fpm = PhpFpm::start(folder.path());
    let page = |name: &str, text: &str| page(folder.path(), name, text);
    page("post.php", "echo $_POST['a'], ' ', $_SERVER['PATH_INFO'], ' ', strlen($_POST['b']);");
    page("head.php", "header('X-Large: ' . str_repeat('x', 200000)); http_response_code(201);");
    page("exit.php", "header('X-Socket-Handoff: /run/a'); header('X-Handoff-Data: {\"a\": 1}'); exit;");
    page("log.php", "error_log(\"two\\nlines\"); echo 'said';");
    page("where.php", "header('Location: /elsewhere');");
    page("large.php", "for ($i = 0; $i < 1000; $i++) echo str_repeat('y', 10000);");
    // It is no script, and nothing behind a slash makes it one.
    std::fs::write(folder.path().join("evil.jpg"), "<?php echo 'run';").expect("written");
    let ask = |path: &str, stdin: &str| ask_php(&php_fpm, folder.path(), path, stdin);

    let post = ask("/post.php/more", &format!("a=1&b={}", "z".repeat(300_000)));
    assert_eq!((post.status, &post.body[..]), (200, "1 /more 300000"));
    let head = ask("/head.php", "");
    assert_eq!((head.status, head.fields["x-large"].len()), (201, 200_000));
    let exit = ask("/exit.php", "");
    assert_eq!((&exit.fields["x-socket-handoff"], &exit.body[..]), (&"/run/a".parse().expect("text"), ""));
    assert_eq!(exit.fields["x-handoff-data"], "{\"a\": 1}");
    let log = ask("/log.php", "");
    assert_eq!((&log.body[..], log.lines.len()), ("said", 2), "{:?}", log.lines);
    assert!(log.lines[0].ends_with("two") && log.lines[1].ends_with("lines"), "{:?}", log.lines);
    assert_eq!(ask("/where.php", "").status, 302);
    assert!(ask("/large.php", "").body == "y".repeat(10_000_000));
    assert_eq!(ask("/none.php", "").status, 404);
    assert_eq!(ask("/evil.jpg", "").status, 403);
    assert_ne!(ask("/evil.jpg/x.php", "").body, "run");
}

#[test]
fn a_kept_connection_occupies_a_child_of_php_and_one_that_is_dropped_frees_it() {
    let folder = folder();
    let php_fpm = PhpFpm::start_with(folder.path(), "pm.max_children = 1\n");
    page(folder.path(), "pid.php", "echo getmypid();");
    // Output is what tells PHP that nobody listens.
    page(folder.path(), "endless.php", "while (true) { echo str_repeat('x', 8192); flush(); }");
    let get = |path: &str| responder(&Facts { path, target: path, ..FACTS }, folder.path(), Source::empty());
    run(async {
        let (keep, kept) = oneshot::channel();
        let answer = ask(connect(&php_fpm.socket).await, get("/pid.php"), Settings { keep: Some(keep), ..settings() });
        let first = whole(answer.await.expect("an answer")).await;
        let stream = kept.await.expect("kept");
        // The only child waits on it for the next request, so nobody else is served until it is closed.
        let mut other = Box::pin(ask(connect(&php_fpm.socket).await, get("/pid.php"), settings()));
        let stuck = tokio::time::timeout(Duration::from_millis(200), &mut other).await;
        assert!(stuck.is_err(), "{stuck:?}");
        drop(stream);
        assert_eq!(whole(other.await.expect("an answer")).await, first);
        // Nobody reads to its end.
        let answer = ask(connect(&php_fpm.socket).await, get("/endless.php"), settings()).await.expect("an answer");
        drop(answer);
        let answer = ask(connect(&php_fpm.socket).await, get("/pid.php"), settings()).await.expect("an answer");
        assert_eq!(whole(answer).await, first);
    });
}

#[test]
fn programs_say_what_they_can_do_or_nothing() {
    let folder = folder();
    let php_fpm = PhpFpm::start_with(folder.path(), "pm.max_children = 3\n");
    let socket = folder.path().join("echo.sock");
    let _program = Program::spawn("echo", &socket);
    run(async {
        let values = ask_values(connect(&php_fpm.socket).await).await;
        // How many children it has, it keeps to itself.
        assert_eq!(values, Values { multiplexes: Some(false), ..Values::default() });
        let values = ask_values(connect(&socket).await).await;
        let one = Values { connections_max: Some(1), requests_max: Some(1), multiplexes: Some(false) };
        assert_eq!(values, one);
    });
    let result = {
        let mut content = Vec::new();
        pairs::put(&mut content, b"FCGI_MAX_CONNS", b"7").expect("short");
        stream(Kind::GetValuesResult, 0, &content)
    };
    let unknown = stream(Kind::UnknownType, 0, &[9, 0, 0, 0, 0, 0, 0, 0]);
    let seven = Values { connections_max: Some(7), ..Values::default() };
    for (answer, expected) in [
        (result.clone(), seven),
        ([&unknown[..], &result].concat(), Values::default()),
        (result[..result.len() - 1].to_vec(), Values::default()),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), Values::default()),
        (stream(Kind::GetValuesResult, 0, &[9, 9, 9]), Values::default()),
        (Vec::new(), Values::default()),
    ] {
        let fake = Fake::start(move |peer| {
            read_exactly(peer, 8);
            drop(peer.write_all(&answer));
        });
        assert_eq!(run(async { ask_values(connect(&fake.socket).await).await }), expected);
    }
}

// ---- what no real program does ----

/// A program in a thread: it serves one connection, then closes it.
struct Fake {
    socket: std::path::PathBuf,
    _folder: tempfile::TempDir,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    fn start(serve: impl FnOnce(&mut Peer) + Send + 'static) -> Self {
        let folder = folder();
        let socket = folder.path().join("fake.sock");
        let listener = UnixListener::bind(&socket).expect("a free path");
        let thread = std::thread::spawn(move || {
            let (mut peer, _) = listener.accept().expect("a client");
            peer.set_read_timeout(Some(patience())).expect("a socket");
            serve(&mut peer);
        });
        Self { socket, _folder: folder, thread: Some(thread) }
    }

    /// One that reads a whole request, and says `answer`.
    fn saying(answer: Vec<u8>) -> Self {
        Self::start(move |peer| {
            read_request(peer);
            drop(peer.write_all(&answer));
        })
    }

    /// What it had to complain of, if its thread panicked.
    fn join(mut self) {
        self.thread.take().expect("once").join().expect("it did as it was told");
    }
}

fn read_exactly(peer: &mut Peer, bytes: usize) -> Vec<u8> {
    let mut buffer = vec![0; bytes];
    peer.read_exact(&mut buffer).expect("so many bytes");
    buffer
}

/// One record: its type and its content; `None` at the end.
fn read_record(peer: &mut Peer) -> Option<(u8, Vec<u8>)> {
    let mut header = [0; 8];
    match peer.read_exact(&mut header) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return None,
        Err(error) => panic!("{error}"),
    }
    let content = read_exactly(peer, usize::from(u16::from_be_bytes([header[4], header[5]])));
    read_exactly(peer, header[6].into());
    Some((header[1], content))
}

/// Reads to the end of STDIN; what it carried.
fn read_request(peer: &mut Peer) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        match read_record(peer) {
            Some((5, content)) if content.is_empty() => return body,
            Some((5, content)) => body.extend(content),
            Some(_) => {}
            None => panic!("cut"),
        }
    }
}

/// Records of a kind that carry the content; at least one, and none to end it.
fn stream(kind: Kind, request: u16, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    record::put_stream(&mut out, kind, request, content);
    if content.is_empty() {
        out.extend_from_slice(&record::header(kind, request, 0));
    }
    out
}

fn stdout(content: &[u8]) -> Vec<u8> {
    stream(Kind::Stdout, 1, content)
}

fn end(status: u8) -> Vec<u8> {
    stream(Kind::EndRequest, 1, &[0, 0, 0, 0, status, 0, 0, 0])
}

/// What comes of `answer`: status and body, or the fault, with whether the request can go elsewhere.
fn outcome(request: Request, answer: Vec<u8>) -> Result<(u16, String), (Fault, bool)> {
    let fake = Fake::saying(answer);
    let outcome = run(async {
        let answer = ask(connect(&fake.socket).await, request, settings()).await;
        let mut answer = answer.map_err(|Unanswered { fault, request }| (fault, request.is_some()))?;
        let (data, end) = drain(&mut answer).await;
        end.map_err(|fault| (fault, false))?;
        Ok((answer.status, String::from_utf8(data).expect("text")))
    });
    fake.join();
    outcome
}

#[track_caller]
fn check_broken(parts: &[&[u8]], words: &str) {
    match outcome(plain("body"), parts.concat()) {
        Err((fault @ Fault::Broken(_), false)) => assert!(fault.to_string().contains(words), "{fault} for {words}"),
        other => panic!("{other:?} instead of {words}"),
    }
}

#[test]
fn a_refusal_gives_the_request_back_whole() {
    for (status, word) in [(1, "CANT_MPX_CONN"), (2, "OVERLOADED"), (3, "UNKNOWN_ROLE")] {
        for answer in [end(status), [stream(Kind::Stderr, 1, b"too much"), end(status)].concat()] {
            let fake = Fake::saying(answer);
            let unanswered = run(async { ask(connect(&fake.socket).await, plain("body"), settings()).await });
            let Unanswered { fault, request } = unanswered.expect_err("refused");
            assert!(matches!(&fault, Fault::Refused(text) if text.contains(word)), "{fault:?}");
            assert_eq!(fault.status(), Some(503));
            let (sender, receiver) = mpsc::channel();
            let other = Fake::start(move |peer| {
                sender.send(read_request(peer)).expect("somebody waits");
                drop(peer.write_all(&[stdout(b"A: 1\n\nyes"), end(0)].concat()));
            });
            run(async {
                let answer = ask(connect(&other.socket).await, request.expect("ours again"), settings()).await;
                assert_eq!(whole(answer.expect("an answer")).await, "yes");
            });
            assert_eq!(receiver.recv().expect("a body"), b"body");
        }
    }
    // Refused before it has read what was sent, or more of it than is kept.
    for (length, is_given_back) in [(64 << 10, true), (8 << 20, false)] {
        let fake = Fake::start(|peer| {
            read_exactly(peer, 100);
            peer.write_all(&end(2)).expect("written");
        });
        let stdin = Source::whole(vec![b'x'; length].into());
        let answer =
            run(async { ask(connect(&fake.socket).await, responder(&FACTS, Path::new("/"), stdin), settings()).await });
        let Unanswered { fault, request } = answer.expect_err("refused");
        assert!(matches!(fault, Fault::Refused(_)), "{fault:?}");
        assert_eq!(request.is_some(), is_given_back, "{length}");
    }
    // Once it has begun to answer, it is too late to refuse.
    check_broken(&[&stdout(b"A: 1\n"), &end(2)], "in the middle of its answer's head");
    check_broken(&[&stdout(b"A: 1\n\nbody"), &end(2)], "Overloaded in the middle");
    check_broken(&[&end(9)], "Unknown(9)");
}

#[test]
fn nobody_who_was_sent_nothing_has_done_anything() {
    run(async {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        drop(theirs);
        let Unanswered { fault, request } = ask(ours, plain("body"), settings()).await.expect_err("closed");
        assert!(matches!(fault, Fault::Unreachable(_)), "{fault:?}");
        assert!(request.is_some());
    });
    // Closed as soon as something was sent: nobody knows what was done with it.
    let fake = Fake::start(|peer| drop(read_exactly(peer, 1)));
    let unanswered = run(async { ask(connect(&fake.socket).await, plain("body"), settings()).await });
    let Unanswered { fault, request } = unanswered.expect_err("closed");
    assert!(matches!(fault, Fault::Broken(_)) && request.is_none(), "{fault:?}");
}

#[test]
fn an_answer_is_the_same_however_its_records_are_cut() {
    let head = b"Status: 201 Created\r\nX-A: 1\n\r\n";
    let text = [&head[..], b"the body"].concat();
    for cut in 1..text.len() {
        for complaint in [&b""[..], b"oh\n"] {
            let (first, second) = text.split_at(cut);
            let between = if complaint.is_empty() { Vec::new() } else { stream(Kind::Stderr, 1, complaint) };
            let answer = [stdout(first), between, stdout(second), stdout(b""), end(0)].concat();
            assert_eq!(outcome(plain(""), answer), Ok((201, "the body".to_owned())), "{cut}");
        }
    }
    // With padding, byte by byte, in between what belongs to nobody.
    let mut answer = Vec::new();
    for byte in &text {
        answer.extend(record::Header { kind: Kind::Stdout, request: 1, content_bytes: 1, padding_bytes: 255 }.encode());
        answer.push(*byte);
        answer.extend([0xAA; 255]);
    }
    answer.extend(stream(Kind::UnknownType, 0, &[0; 8]));
    answer.extend(end(0));
    let fake = Fake::start(move |peer| {
        read_request(peer);
        answer.chunks(7).for_each(|piece| peer.write_all(piece).expect("it reads"));
    });
    run(async {
        let answer = ask(connect(&fake.socket).await, plain(""), settings()).await.expect("an answer");
        assert_eq!(whole(answer).await, "the body");
    });
}

#[test]
fn what_breaks_the_protocol_is_no_answer() {
    let good = stdout(b"A: 1\n\nbody");
    check_broken(&[], "without END_REQUEST");
    check_broken(&[&good], "without END_REQUEST");
    check_broken(&[&good, &stdout(b"")], "without END_REQUEST");
    check_broken(&[&good, &end(0)[..15]], "without END_REQUEST");
    check_broken(&[&good[..good.len() - 1]], "without END_REQUEST");
    check_broken(&[&end(0)], "without an answer");
    check_broken(&[&stdout(b"A: 1\n"), &end(0)], "in the middle of its answer's head");
    check_broken(&[b"HTTP/1.1 200 OK\r\n\r\n"], "no FastCGI: a record of version 72");
    check_broken(&[&good, b"garbage!"], "a record of version 103");
    check_broken(&[&[1, 99, 0, 1, 0, 0, 0, 0]], "unknown type 99");
    check_broken(&[&stream(Kind::Stdout, 2, b"A: 1\n\n"), &end(0)], "of request 2");
    check_broken(&[&stream(Kind::Stdout, 0, b"A: 1\n\n"), &end(0)], "of request 0");
    check_broken(&[&stream(Kind::Stdin, 1, b"A: 1\n\n"), &end(0)], "a record Stdin");
    check_broken(&[&good, &stdout(b""), &good, &end(0)], "behind its end");
    check_broken(&[&good, &stream(Kind::EndRequest, 1, &[0; 7])], "wrong length");
    check_broken(&[&good, &stream(Kind::EndRequest, 1, &[0; 9])], "wrong length");
    check_broken(&[&stdout(b"Status: 100 Continue\n\n"), &end(0)], "Status");
    check_broken(&[&stdout(b"A: 1\r\0\n\n"), &end(0)], "control character");
    check_broken(&[&stdout(b"Content-Length: 4\nContent-Length: 4\n\nbody"), &end(0)], "Content-Length");
    check_broken(&[&stdout(b"Content-Length: 5\n\nbody"), &end(0)], "1 bytes fewer");
    check_broken(&[&stdout(b"Content-Length: 3\n\nbody"), &end(0)], "more bytes");
    let many = [&b"A: 1\n".repeat(2001)[..], b"\n"].concat();
    check_broken(&[&stdout(&many), &end(0)], "headers_max");
    let most = [&b"A: 1\n".repeat(2000)[..], b"\n"].concat();
    assert_eq!(outcome(plain(""), [stdout(&most), end(0)].concat()), Ok((200, String::new())));
    let exact = [stdout(b"Content-Length: 4\n\nbody"), end(0)].concat();
    assert_eq!(outcome(plain(""), exact), Ok((200, "body".to_owned())));
}

#[test]
fn where_no_body_may_be_there_is_none() {
    let answer =
        |status: &str| [stdout(format!("Status: {status}\nContent-Length: 9\n\nbody").as_bytes()), end(0)].concat();
    for status in ["204 No Content", "304 Not Modified"] {
        assert_eq!(outcome(plain(""), answer(status)), Ok((status[..3].parse().expect("a number"), String::new())));
    }
    let head = Request { is_head: true, ..plain("") };
    assert_eq!(outcome(head, answer("200 OK")), Ok((200, String::new())));
}

#[test]
fn whoever_loses_interest_says_so() {
    // The answer's body is dropped.
    let (sender, receiver) = mpsc::channel();
    let fake = Fake::start(move |peer| {
        read_request(peer);
        peer.write_all(&stdout(b"A: 1\n\nbody")).expect("written");
        sender.send((read_record(peer), read_record(peer))).expect("somebody waits");
    });
    run(async {
        let answer = ask(connect(&fake.socket).await, plain(""), settings()).await.expect("an answer");
        drop(answer);
    });
    assert_eq!(receiver.recv().expect("two records"), (Some((2, Vec::new())), None));
    // Nobody waits for the head any more.
    let (sender, receiver) = mpsc::channel();
    let fake = Fake::start(move |peer| {
        read_request(peer);
        sender.send((read_record(peer), read_record(peer))).expect("somebody waits");
    });
    run(async {
        let asking = ask(connect(&fake.socket).await, plain(""), settings());
        assert!(tokio::time::timeout(Duration::from_millis(50), asking).await.is_err());
    });
    assert_eq!(receiver.recv().expect("two records"), (Some((2, Vec::new())), None));
    // The client's body is cut.
    let (sender, receiver) = mpsc::channel();
    let fake = Fake::start(move |peer| {
        let mut kinds = Vec::new();
        while let Some((kind, content)) = read_record(peer) {
            kinds.push((kind, content.len()));
        }
        sender.send(kinds).expect("somebody waits");
    });
    let (feed, source) = feed(Some(10));
    feed.put(Bytes::from_static(b"half"));
    drop(feed);
    let request = responder(&FACTS, Path::new("/"), source);
    let unanswered = run(async { ask(connect(&fake.socket).await, request, settings()).await });
    assert_eq!(unanswered.expect_err("cut").fault, Fault::ClientGone);
    // No end of STDIN: what it has is not to be taken for whole.
    let kinds = receiver.recv().expect("records");
    assert!(!kinds.contains(&(5, 0)), "{kinds:?}");
}

#[test]
fn a_program_that_only_complains_is_neither_an_answer_nor_an_endless_log() {
    let fake = Fake::start(|peer| {
        read_request(peer);
        let lines = stream(Kind::Stderr, 1, &b"oh no\n".repeat(10_000));
        while peer.write_all(&lines).is_ok() {}
    });
    let (lines, settings) = listening();
    run(async {
        let asking = ask(connect(&fake.socket).await, plain(""), settings);
        // Other tasks are not starved: the time passes.
        assert!(tokio::time::timeout(Duration::from_millis(100), asking).await.is_err());
    });
    let lines = lines.lock().expect("no panic");
    assert_eq!((lines.len(), &lines[0][..]), (101, "oh no"));
    drop(lines);
    fake.join();
}

#[test]
fn what_nobody_takes_is_not_read() {
    let (sender, receiver) = mpsc::channel();
    let fake = Fake::start(move |peer| {
        read_request(peer);
        peer.write_all(&stdout(b"A: 1\n\n")).expect("written");
        peer.set_nonblocking(true).expect("a socket");
        let records = stdout(&[b'x'; 60_000]);
        let mut written = 0;
        while written < 64 << 20 {
            match peer.write(&records[written % records.len()..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    sender.send(written).expect("somebody waits");
                    peer.set_nonblocking(false).expect("a socket");
                    peer.write_all(&records[written % records.len()..]).expect("it reads");
                    break;
                }
                Err(error) => panic!("{error}"),
            }
        }
        peer.write_all(&end(0)).expect("it reads");
    });
    run(async {
        let mut answer = ask(connect(&fake.socket).await, plain(""), settings()).await.expect("an answer");
        let first = poll_fn(|context| answer.body.poll_next(context)).await;
        assert!(matches!(first, Some(Ok(Piece::Data(_)))), "{first:?}");
        let written = eventually("nobody takes any more", || receiver.try_recv().ok());
        // What the kernel holds of a Unix socket, and one buffer of ours.
        assert!(written < 1 << 20, "{written}");
        assert_eq!(drain(&mut answer).await.1, Ok(()));
    });
    fake.join();
}
