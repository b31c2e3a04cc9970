//! `examples/moving-in`: the configurations of other systems and ours for the same, each before the same daemon or application,
//! which nobody has changed. What a client gets behind both is compared; what differs is written down here, and there.
//!
//! The mount of libwebsockets is in `mounts/`, mod_socket_handoff in `applications/`.
#![cfg(feature = "gateway")]

mod support;

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::unistd::User;
use support::fastcgi::{PhpFpm, Program};
use support::{Client, Gateway, Lines, folder, peers};
use tempfile::TempDir;

fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/moving-in").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A configuration of ours, for a folder in which `/run` and `/var/www` are.
fn gateway(name: &str, folder: TempDir) -> Gateway {
    Gateway::start_in(folder, &here(&example(name)).replace("127.0.0.1:8080", "127.0.0.1:0"), |command| command)
}

fn here(text: &str) -> String {
    text.replace("/run/php/", "DIR/").replace("/run/", "DIR/").replace("/var/www/", "DIR/www/")
}

/// nginx with the block of an example.
fn nginx(folder: &Path, name: &str) -> peers::Peer {
    let text = here(&example(name)).replace("listen 127.0.0.1:8080;", "LISTEN");
    peers::nginx(folder, &text.replace("include fastcgi.conf;", "include /etc/nginx/fastcgi.conf;"))
}

fn write(folder: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        let path = folder.join("www").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

/// Status, Location and body of an answer. Pages that the servers make themselves are each one's own.
fn ask(address: SocketAddr, method: &str, target: &str, body: &str) -> (u16, Option<String>, String) {
    let mut client = Client::connect(address);
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    client.send(format!("{method} {target} HTTP/1.0\r\nHost: example.org\r\n{length}\r\n{body}"));
    let answer = client.rest();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let location = head.lines().find_map(|line| line.strip_prefix("Location: "));
    // nginx writes the whole address, unless it is told not to.
    let location =
        location.map(|to| to.split_once("://").map_or(to, |(_, to)| &to[to.find('/').unwrap_or(0)..]).to_owned());
    (status, location, if status == 301 { String::new() } else { body.to_owned() })
}

/// A script says which it is, what it was asked, and what it knows of its path.
const SCRIPT: &str = "<?php echo str_replace(realpath($_SERVER['DOCUMENT_ROOT']), '', __FILE__), ' ', $_SERVER['REQUEST_METHOD'], ' ', \
                      $_SERVER['REQUEST_URI'], ' ', $_SERVER['SCRIPT_NAME'], ' ', $_SERVER['QUERY_STRING'], ' ', \
                      $_SERVER['PATH_INFO'] ?? '-', ' ', file_get_contents('php://input');\n";

#[test]
fn wordpress_is_entered_by_the_same_scripts() {
    let folder = folder();
    let path = folder.path().to_owned();
    let scripts = [
        "index.php",
        "wp-login.php",
        "wp-cron.php",
        "xmlrpc.php",
        "wp-comments-post.php",
        "wp-config.php",
        "wp-admin/index.php",
        "wp-admin/post.php",
        "wp-admin/network/index.php",
        "wp-content/plugins/a/a.php",
    ];
    let names: Vec<_> = scripts.iter().map(|name| format!("wordpress/{name}")).collect();
    let mut files: Vec<(&str, &str)> = names.iter().map(|name| (&name[..], SCRIPT)).collect();
    files.extend([
        ("wordpress/wp-content/uploads/2026/a.txt", "an upload"),
        ("wordpress/wp-admin/css/a.css", "a style"),
        ("wordpress/readme.html", "read me"),
    ]);
    write(&path, &files);
    let _php = PhpFpm::start(&path);
    let gateway = gateway("php-fpm/wordpress.toml", folder);
    let (ours, theirs) = (gateway.address(), nginx(&path, "php-fpm/wordpress.nginx.conf"));
    for (method, target) in [
        ("GET", "/"),
        ("GET", "/?p=1"),
        ("GET", "/2026/11/hello-world/"),
        ("GET", "/2026/11/hello-world/?a=b&c"),
        ("GET", "/wp-json/wp/v2/posts?per_page=1"),
        ("GET", "/caf%C3%A9/"),
        ("GET", "/index.php"),
        ("GET", "/wp-login.php?action=logout"),
        ("POST", "/wp-login.php"),
        ("POST", "/wp-comments-post.php"),
        ("POST", "/xmlrpc.php"),
        ("GET", "/wp-cron.php?doing_wp_cron"),
        ("GET", "/wp-admin"),
        ("GET", "/wp-admin/"),
        ("GET", "/wp-admin/?a"),
        ("GET", "/wp-admin/post.php?post=1&action=edit"),
        ("GET", "/wp-admin/network/"),
        ("GET", "/wp-admin/css/a.css"),
        ("GET", "/wp-content/uploads/2026/a.txt"),
        ("GET", "/wp-content/uploads/2026/none.txt"),
        ("GET", "/readme.html"),
    ] {
        let body = if method == "POST" { "a=b&c" } else { "" };
        assert_eq!(ask(ours, method, target, body), ask(theirs.address, method, target, body), "{method} {target}");
    }
    // What differs, and is meant to: nginx runs any script that lies about.
    for target in ["/wp-content/plugins/a/a.php", "/wp-config.php"] {
        assert!(ask(theirs.address, "GET", target, "").2.starts_with(target));
        let (status, _, body) = ask(ours, "GET", target, "");
        assert_eq!((status, body.starts_with("/index.php GET ")), (200, true), "{body}");
    }
    // No path shows the source of a script.
    for name in scripts {
        for target in [
            format!("/{name}"),
            format!("/{name}/"),
            format!("/{name}%20"),
            format!("//{name}"),
            format!("/x/..%2F{name}"),
        ] {
            let body = ask(ours, "GET", &target, "").2;
            assert!(!body.contains("<?php"), "{target}: {body}");
        }
    }
}

#[test]
fn laravel_is_one_route() {
    let folder = folder();
    let path = folder.path().to_owned();
    write(
        &path,
        &[
            ("laravel/public/index.php", SCRIPT),
            ("laravel/public/build/app.js", "a script for browsers"),
            ("laravel/public/robots.txt", "for robots"),
            ("laravel/.env", "APP_KEY=secret"),
            ("laravel/public/.env", "APP_KEY=secret"),
        ],
    );
    let _php = PhpFpm::start(&path);
    let gateway = gateway("php-fpm/laravel.toml", folder);
    let (ours, theirs) = (gateway.address(), nginx(&path, "php-fpm/laravel.nginx.conf"));
    for (method, target, body) in [
        ("GET", "/", ""),
        ("GET", "/users/1/edit?tab=2", ""),
        ("POST", "/login", "user=a"),
        ("PUT", "/users/1", "{}"),
        ("DELETE", "/users/1", ""),
        ("GET", "/build/app.js", ""),
        ("GET", "/build/none.js", ""),
        ("GET", "/build", ""),
        ("GET", "/robots.txt", ""),
        ("GET", "/index.php", ""),
    ] {
        assert_eq!(ask(ours, method, target, body), ask(theirs.address, method, target, body), "{method} {target}");
    }
    // A file that begins with a dot is nobody's business, unless somebody has told nginx so; and a method that changes things
    // is the application's, also where a file has the path.
    assert_eq!(ask(theirs.address, "GET", "/.env", "").2, "APP_KEY=secret");
    assert!(ask(ours, "GET", "/.env", "").2.starts_with("/index.php GET /.env"));
    assert_eq!(ask(theirs.address, "POST", "/robots.txt", "a").0, 405);
    assert!(ask(ours, "POST", "/robots.txt", "a").2.starts_with("/index.php POST /robots.txt"));
}

#[test]
fn programs_of_libfcgi_play_their_three_roles() {
    let folder = folder();
    let path = folder.path().to_owned();
    write(&path, &[("notes/a.txt", "a note\n")]);
    let programs = [("echo", "responder"), ("authorizer", "authorizer"), ("filter", "filter")];
    let _programs = programs.map(|(name, role)| Program::spawn(name, &path.join(role).with_extension("sock")));
    let gateway = gateway("libfcgi/baton.toml", folder);
    let (ours, theirs) = (gateway.address(), nginx(&path, "libfcgi/nginx.conf"));
    // The responder is told the same, but for what differs between the servers themselves.
    let told = |address, target| {
        let (status, _, body) = ask(address, "POST", target, "some bytes");
        assert_eq!(status, 200, "{body}");
        let own = ["SERVER_SOFTWARE=", "SERVER_PORT=", "SERVER_NAME=", "REMOTE_PORT="];
        let mut lines: Vec<_> =
            body.lines().filter(|line| !own.iter().any(|own| line.starts_with(own))).map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let (mut ours_said, theirs_said) = (told(ours, "/app/x?let=alice"), told(theirs.address, "/app/x?let=alice"));
    // What an authorizer sets is lost in nginx, unless somebody writes auth_request_set for each name.
    for line in ["REMOTE_USER=alice", "Role=AUTHORIZER"] {
        let at = ours_said.iter().position(|own| own == line).unwrap_or_else(|| panic!("{line}: {ours_said:#?}"));
        ours_said.remove(at);
    }
    let only = |these: &[String], those: &[String]| -> Vec<String> {
        these.iter().filter(|line| !those.contains(line)).cloned().collect()
    };
    // nginx says where the script would be, if there were one; the program has none. Its user is nobody.
    let names = |lines: Vec<String>| -> Vec<String> {
        lines.iter().filter_map(|l| l.split('=').next()).map(str::to_owned).collect()
    };
    assert!(theirs_said.contains(&"REMOTE_USER=".to_owned()));
    assert_eq!(names(only(&theirs_said, &ours_said)), ["DOCUMENT_ROOT", "REMOTE_USER", "SCRIPT_FILENAME"]);
    assert_eq!(only(&ours_said, &theirs_said), Vec::<String>::new());
    // Whoever is not let through gets the authorizer's own answer; behind nginx, nginx's page.
    assert_eq!(ask(ours, "GET", "/app/x", ""), (403, None, "go away".to_owned()));
    let (status, _, page) = ask(theirs.address, "GET", "/app/x", "");
    assert_eq!((status, page.contains("nginx")), (403, true));
    // Files through a filter.
    assert_eq!(ask(ours, "GET", "/notes/a.txt", "").2, "A NOTE\n (7 bytes, 0 in front)");
    assert_eq!(ask(ours, "GET", "/notes/none.txt", "").0, 404);
}

/// A process that ends with its handle.
struct Daemon(Child);

impl Daemon {
    fn start(socket: &Path) -> Self {
        let mut command = Command::new("python3");
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/daemon-python/daemon.py"));
        command.arg(socket).args(["fdpass", "--interval", "1"]).stdin(Stdio::null()).stdout(Stdio::piped());
        // Apache serves as another user, where we are root.
        let own = nix::unistd::geteuid();
        let theirs = if own.is_root() { User::from_name("www-data").unwrap().expect("Debian's").uid } else { own };
        command.env("BATON_GATEWAY_UIDS", format!("{own},{theirs}"));
        let mut child = command.spawn().expect("it starts");
        let said = Lines::read(child.stdout.take().expect("piped"));
        let daemon = Self(child);
        said.wait(0, &["ready"]);
        fs::set_permissions(socket, Permissions::from_mode(0o666)).unwrap();
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn mod_proxy_fdpass_is_a_route() {
    if !peers::is_installed("apache2") {
        return;
    }
    let folder = folder();
    let path = folder.path().to_owned();
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    let gateway = gateway("mod_proxy_fdpass/baton.toml", folder);
    let configuration = example("mod_proxy_fdpass/apache.conf").replace("fd://run/", "fd://");
    let apache = peers::apache(&path, &["proxy", "proxy_fdpass", "headers"], &configuration);
    // What both send, line by line, in whatever order; but who they are, and when.
    let whole = |address: SocketAddr, method: &str, target: &str| {
        let mut client = Client::connect(address);
        client.send(format!("{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n"));
        let answer = client.rest();
        let (head, body) = answer.split_once("\r\n\r\n").map(|(h, b)| (h.to_owned(), b.to_owned())).expect("a head");
        let mut lines: Vec<_> =
            head.lines().filter(|l| !l.starts_with("Date: ") && !l.starts_with("Server: ")).collect();
        lines[1..].sort_unstable();
        (lines.join("\n"), body)
    };
    let daemon = Daemon::start(&path.join("chat.sock"));
    let (head, body) = whole(gateway.address(), "GET", "/chat");
    assert_eq!(head, "HTTP/1.1 200 OK\nCache-Control: no-store\nConnection: close\nContent-Type: text/event-stream");
    assert!(
        body.starts_with("data: {\"n\":1,\"text\":\"\"}\n\n") && body.ends_with("event: done\ndata: {}\n\n"),
        "{body}"
    );
    assert_eq!((head.clone(), body), whole(apache.address, "GET", "/chat"));
    // HEAD is answered, and the daemon spared; Apache lets it write a body that nobody may read as one.
    assert_eq!(whole(gateway.address(), "HEAD", "/chat"), (head.clone(), String::new()));
    assert!(whole(apache.address, "HEAD", "/chat").1.contains("data: "));
    // Without a daemon: 500 there, and the connection is over; here 503 on one that lives.
    drop(daemon);
    assert!(whole(apache.address, "GET", "/chat").0.starts_with("HTTP/1.1 500 "));
    let mut client = gateway.client();
    for _ in 0..2 {
        client.get("/chat");
        let answer = client.answer();
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    }
    let line = gateway.log_line(3);
    assert_eq!(
        (&line["outcome"], &line["status"], &line["to"]),
        (&"refused".into(), &503.into(), &"chat".into()),
        "{line}"
    );
    let _again = Daemon::start(&path.join("chat.sock"));
    client.get("/chat");
    assert!(client.rest().starts_with("HTTP/1.1 200 OK\r\n"));
}
