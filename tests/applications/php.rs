//! PHP behind PHP-FPM: a page that looks at who asks, names a daemon and ends. Its worker is free while the client is
//! streamed to.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::start;
use super::support::fastcgi::PhpFpm;
use super::support::{Gateway, Lines, eventually, example, folder};

/// Lets in who has a password, and gives the client to the daemon that the path names.
const PAGE: &str = r#"<?php
if (($_SERVER['PHP_AUTH_PW'] ?? '') !== 'open sesame') {
    http_response_code(401);
    header('WWW-Authenticate: Basic realm="stream"');
    exit("who are you?\n");
}
if (isset($_GET['status'])) {
    http_response_code((int) $_GET['status']);
}
setcookie('seen', '1');
header('X-Socket-Handoff: DIR' . $_SERVER['PATH_INFO'] . '.sock');
header('X-Handoff-Data: ' . json_encode(['user' => $_SERVER['PHP_AUTH_USER'], 'room' => $_GET['room'] ?? null]));
echo "nobody sees this\n";
exit;
"#;

/// An example daemon; it ends with its handle.
pub(super) struct Streaming(Child);

impl Streaming {
    fn start(language: &str, folder: &Path) -> Self {
        Self::start_at(language, folder, language)
    }

    /// The same at `NAME.sock`.
    pub(super) fn start_at(language: &str, folder: &Path, name: &str) -> Self {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
        let mut command = match language {
            "python" => {
                let mut command = Command::new("python3");
                command.arg(examples.join("daemon-python/daemon.py"));
                command
            }
            "rust" => Command::new(example("daemon")),
            _ => {
                let program = folder.join("daemon-c");
                let mut cc = Command::new("cc");
                cc.arg("-O2").arg("-o").arg(&program).arg(examples.join("daemon-c/daemon.c"));
                assert!(cc.status().expect("there is a C compiler").success());
                Command::new(program)
            }
        };
        command.arg(folder.join(name).with_extension("sock")).args(["seqpacket", "--interval", "200"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("it starts");
        let said = Lines::read(child.stdout.take().expect("piped"));
        said.wait(0, &["ready"]);
        Self(child)
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn page(folder: &TempDir) {
    fs::create_dir(folder.path().join("www")).expect("a folder");
    let page = PAGE.replace("DIR", &folder.path().display().to_string());
    fs::write(folder.path().join("www/live.php"), page).expect("written");
}

fn gateway(folder: TempDir, php: &PhpFpm, more: &str) -> Gateway {
    let socket = php.socket.display();
    start(
        folder,
        &format!(
            "[gateway]\nworkers = 1\n[handoff]\nallowed_prefixes = [\"DIR/\"]\n[upstream.php]\naddress = \"fcgi+unix:{socket}\"\n\
             root = \"DIR/www\"\nhandoff_headers = true\n{more}[upstream.fpm]\naddress = \"fcgi+unix:{socket}\"\n\
             root = \"/\"\nscript = \"/status\"\n\
             [[route]]\npath = \"/\"\ndefault = {{ proxy = \"php\" }}\n[[route]]\npath = \"=/status\"\n\
             default = {{ proxy = \"fpm\" }}\nLISTEN"
        ),
    )
}

/// What PHP-FPM says of itself, through us: it needs a worker for that, which is the one that is active.
fn status(gateway: &Gateway) -> Value {
    let answer = gateway.ask("GET /status?json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a head");
    // Its length may have come in chunks.
    let json = &body[body.find('{').expect("JSON")..=body.rfind('}').expect("JSON")];
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {answer}"))
}

fn ask(path: &str) -> String {
    // alice:open sesame
    format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Basic YWxpY2U6b3BlbiBzZXNhbWU=\r\n\r\n")
}

#[test]
fn a_page_hands_over_and_its_worker_is_free_while_each_daemon_streams() {
    let folder = folder();
    page(&folder);
    // One worker: who kept it would keep everybody else out.
    let php = PhpFpm::start_with(folder.path(), "pm.max_children = 1\n");
    let daemons = ["python", "c", "rust"].map(|language| (language, Streaming::start(language, folder.path())));
    let gateway = gateway(folder, &php, "handoff_response_headers = [\"Set-Cookie\"]\n");

    let refused = gateway.ask("GET /live.php/python HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(refused.starts_with("HTTP/1.1 401 ") && refused.contains("who are you?"), "{refused}");
    assert!(refused.contains("Basic realm=\"stream\""), "{refused}");

    let sockets = gateway.sockets();
    let mut clients: Vec<_> = daemons
        .iter()
        .map(|(language, _)| {
            let mut client = gateway.client();
            client.send(ask(&format!("/live.php/{language}?room=7")));
            let head = client.until("\r\n\r\n");
            assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream"), "{language}: {head}");
            let first = client.until("\n\n");
            let event: Value = serde_json::from_str(first.trim_start_matches("data: ")).expect("JSON");
            let data: Value = serde_json::from_str(event["text"].as_str().expect("text")).expect("JSON");
            let cookie = json!({"user": "alice", "room": "7", "response_headers": {"set-cookie": "seen=1"}});
            assert_eq!(data, cookie, "{language}");
            client
        })
        .collect();
    // All three stream, and the only worker there is has time to say so: it is active with that answer alone.
    let said = status(&gateway);
    assert_eq!((&said["active processes"], &said["total processes"]), (&json!(1), &json!(1)), "{said}");
    assert_eq!((&said["listen queue"], &said["max active processes"]), (&json!(0), &json!(1)), "{said}");
    eventually("nothing of them is here", || (gateway.sockets() == sockets).then_some(()));
    for client in &mut clients {
        let rest = client.rest();
        assert!(rest.contains("{\"n\":10,") && rest.ends_with("event: done\ndata: {}\n\n"), "{rest}");
    }
    let handed_off = || gateway.log().iter().filter(|line| line["outcome"] == "handed-off").count();
    eventually("three lines of the log", || (clients.len() == 3 && handed_off() == 3).then_some(()));
}

/// A page that ends in an error hands over too, and one that goes on for long does not keep the client.
#[test]
fn a_page_that_fails_or_goes_on_hands_over_at_once() {
    let folder = folder();
    page(&folder);
    let slow = "<?php header('X-Socket-Handoff: DIR/python.sock'); header('X-Handoff-Data: slow'); ignore_user_abort(false);\n\
                while (true) { echo str_repeat('x', 8192); flush(); usleep(1000); }";
    fs::write(folder.path().join("www/slow.php"), slow.replace("DIR", &folder.path().display().to_string()))
        .expect("written");
    let php = PhpFpm::start_with(folder.path(), "pm.max_children = 1\n");
    let _daemon = Streaming::start("python", folder.path());
    let gateway = gateway(folder, &php, "");
    for code in [401, 500] {
        let mut client = gateway.client();
        client.send(ask(&format!("/live.php/python?status={code}")));
        assert!(client.until("\n\n").contains("alice"), "{code}");
    }
    let mut client = gateway.client();
    client.get("/slow.php");
    assert!(client.until("\r\n\r\n").starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream"));
    assert!(client.until("\n\n").contains("slow"));
    // Told that nobody listens (ABORT, and the connection's end), PHP ends the page: its worker has time for others.
    assert_eq!(status(&gateway)["active processes"], 1);
}

#[test]
fn two_hundred_kilobytes_of_data_come_through_php() {
    let folder = folder();
    fs::create_dir(folder.path().join("www")).expect("a folder");
    let here = folder.path().display();
    let page = format!(
        "<?php header('X-Socket-Handoff: {here}/d.sock'); header('X-Handoff-Data: ' . str_repeat('0123456789', 20480));"
    );
    fs::write(folder.path().join("www/big.php"), page).expect("written");
    let php = PhpFpm::start(folder.path());
    let daemon = super::daemon(&folder, "d", "stream", &[]);
    let gateway = gateway(folder, &php, "");
    assert!(gateway.ask(&super::get("/big.php")).ends_with("from daemon\n"));
    let event = daemon.wait("got", 1);
    assert_eq!((&event["bytes"], &event["data"]), (&json!(204_800), &json!("0123456789".repeat(20480))));
}
