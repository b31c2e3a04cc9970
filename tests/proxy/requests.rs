//! What an upstream is asked: method, target, fields, to the byte.

use super::support::upstream::{Serving, Upstream, undated};
use super::support::{Gateway, eventually};
use super::{OK, OK_RELAYED, OURS, before, before_serving, check_logged, configuration};

/// A request as it comes in, and its first line and fields as they go on; ours are last.
#[track_caller]
fn check(gateway: &Gateway, upstream: &Upstream, request: &str, line: &str, kept: &str) {
    let mut client = gateway.client();
    client.send(request);
    let mut peer = upstream.accept();
    assert_eq!(peer.head(), format!("{line}\r\nhost: x\r\n{kept}{OURS}\r\n"), "{request}");
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    let head = client.head();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{request}: {head}");
    super::check_closed(&mut peer);
}

#[test]
fn every_method_goes_on_as_it_is() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "");
    for method in [
        "GET",
        "HEAD",
        "OPTIONS",
        "DELETE",
        "PROPFIND",
        "REPORT",
        "M-SEARCH",
        "QUERY",
        "get",
        "PRI",
        "!#$%&'*+.^_`|~09",
    ] {
        let length = if ["GET", "HEAD", "OPTIONS", "DELETE"].contains(&method) { "" } else { "content-length: 0\r\n" };
        let mut client = gateway.client();
        client.send(format!("{method} /m HTTP/1.1\r\nHost: x\r\n\r\n"));
        let mut peer = upstream.accept();
        let head = peer.head();
        assert!(head.starts_with(&format!("{method} /m HTTP/1.1\r\nhost: x\r\n")), "{head}");
        assert_eq!(head.contains("content-length: 0\r\n"), !length.is_empty(), "{method}: {head}");
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        assert!(client.head().starts_with("HTTP/1.1 200 OK\r\n"), "{method}");
    }
    for method in ["POST", "PUT", "PATCH", "DELETE", "GET", "PROPFIND"] {
        let request = format!("{method} /m HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc");
        let mut client = gateway.client();
        client.send(request);
        let mut peer = upstream.accept();
        let message = peer.message();
        assert!(message.starts_with(&format!("{method} /m HTTP/1.1\r\nhost: x\r\n")), "{message}");
        assert!(message.ends_with("content-length: 3\r\n\r\nabc"), "{message}");
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        assert!(client.head().starts_with("HTTP/1.1 200 OK\r\n"), "{method}");
    }
}

#[test]
fn a_target_goes_on_as_the_client_wrote_it() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "");
    for target in [
        "/",
        "/?",
        "//a//b",
        "/a/../b/./c",
        "/b/%2e%2E/%61%2f",
        "/a;b=c,d:e@f!$&'()*+",
        "/?a=b&c=/../?x=%0d%0a",
        "/a?b?c??",
        "/~user/[x]|y",
    ] {
        check(
            &gateway,
            &upstream,
            &format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n"),
            &format!("GET {target} HTTP/1.1"),
            "",
        );
    }
    check(&gateway, &upstream, "GET http://x/a?b HTTP/1.1\r\nHost: x\r\n\r\n", "GET /a?b HTTP/1.1", "");
    check(&gateway, &upstream, "GET http://x HTTP/1.1\r\nHost: x\r\n\r\n", "GET / HTTP/1.1", "");
    // No route has `*`.
    assert!(gateway.ask("OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").starts_with("HTTP/1.1 404 "));
    let long = format!("/{}", "a".repeat(7000));
    check(&gateway, &upstream, &format!("GET {long} HTTP/1.1\r\nHost: x\r\n\r\n"), &format!("GET {long} HTTP/1.1"), "");
}

#[test]
fn the_routes_path_is_replaced_by_the_one_inside() {
    let upstream = Serving::start(|_, peer| {
        peer.send(OK);
        true
    });
    let port = upstream.address();
    let unix = std::path::Path::new("DIR").join("app.sock");
    let folder = super::support::folder();
    let listener = std::os::unix::net::UnixListener::bind(folder.path().join("app.sock")).expect("a socket");
    let route = |path: &str, name: &str| format!("[[route]]\npath = \"{path}\"\ndefault = {{ proxy = \"{name}\" }}\n");
    let socket = unix.display();
    let toml = format!(
        "LISTEN\n[upstream.inside]\naddress = \"unix:{socket}:/inside\"\n[upstream.root]\naddress = \"+{socket}:/\"\n\
         [upstream.plain]\naddress = \"{port}\"\n{}{}{}",
        route("/mount", "inside"),
        route("/off", "root"),
        route("/plain", "plain"),
    );
    let gateway = Gateway::start_in(folder, &toml, |command| command);
    let check = |target: &str, inside: &str| {
        let mut client = gateway.client();
        client.send(format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
        let (mut stream, _) = listener.accept().expect("asked");
        let mut bytes = [0; 4096];
        let count = std::io::Read::read(&mut stream, &mut bytes).expect("a head");
        let head = String::from_utf8_lossy(&bytes[..count]).into_owned();
        assert_eq!(head.lines().next(), Some(&*format!("GET {inside} HTTP/1.1")), "{target}");
        std::io::Write::write_all(&mut stream, b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").expect("read");
        assert!(client.rest().starts_with("HTTP/1.1 204 "), "{target}");
    };
    check("/mount/x?q", "/inside/x?q");
    check("/mount", "/inside");
    check("/mount/", "/inside/");
    check("/mount?q", "/inside?q");
    // Normalised: nothing leads out of what is inside.
    check("/mount//x/%2e/y", "/inside/x/y");
    check("/mount/%2e%2e/mount/z", "/inside/z");
    check("/off/x", "/x");
    check("/off", "/");
    assert_eq!(gateway.status("/plain/x?y"), 200);
    assert!(upstream.heads()[0].starts_with("GET /plain/x?y HTTP/1.1\r\n"));
    assert_eq!(gateway.status("/elsewhere"), 404);
}

#[test]
fn what_is_for_everybody_goes_on_and_what_is_of_the_connection_does_not() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "");
    let get = |fields: &str| format!("GET /f HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
    for (fields, kept) in [
        (
            "Accept: a\r\nX-One: 1\r\nx_two:  2\t\r\nAccept: b\r\nCookie: a=1; b=2\r\nCookie: c=3\r\nX-Empty:\r\nAuthorization: Basic eDp5\r\n",
            "accept: a\r\naccept: b\r\nx-one: 1\r\nx_two: 2\r\ncookie: a=1; b=2\r\ncookie: c=3\r\nx-empty: \r\nauthorization: Basic eDp5\r\n",
        ),
        ("X-Bytes: \u{fc}\r\n", "x-bytes: \u{fc}\r\n"),
        ("Connection: x-a , X-B\r\nX-A: 1\r\nx-b: 2\r\nX-C: 3\r\n", "x-c: 3\r\n"),
        ("Keep-Alive: 5\r\nProxy-Connection: close\r\nProxy-Authorization: x\r\nTrailer: x\r\n", ""),
        ("Proxy: http://evil\r\nX-Socket-Handoff: /run/x\r\nX-Handoff-Data: d\r\nx_socket_handoff: /run/x\r\n", ""),
        (
            "X-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Real-IP: 6.6.6.6\r\n",
            "",
        ),
        ("X-Forwarded-Host: evil\r\nX-Forwarded-Port: 1\r\nVariable-USER: root\r\n", ""),
        ("Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nConnection: Upgrade, HTTP2-Settings\r\n", ""),
        ("Via: 1.0 them\r\n", "via: 1.0 them\r\n"),
    ] {
        let mut client = gateway.client();
        client.send(get(fields));
        let mut peer = upstream.accept();
        let ours = if kept.starts_with("via: ") {
            // One name, in the order of its values.
            OURS.replace("via: 1.1 baton\r\n", "")
        } else {
            OURS.to_owned()
        };
        let kept = if kept.starts_with("via: ") { "via: 1.0 them\r\nvia: 1.1 baton\r\n" } else { kept };
        assert_eq!(peer.head(), format!("GET /f HTTP/1.1\r\nhost: x\r\n{kept}{ours}\r\n"), "{fields}");
        peer.send("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n");
        client.head();
    }
    // Who names fields that everybody needs is refused (CVE-2022-31813).
    let refused =
        gateway.ask(&get("Connection: x-forwarded-for, via, forwarded, X-Forwarded-Host\r\nVia: 1.0 them\r\n"));
    assert!(refused.starts_with("HTTP/1.1 400 "), "{refused}");
    assert!(upstream.try_accept().is_none());
    // A client that understands trailers says so to us; we say it to the upstream.
    let mut client = gateway.client();
    client.send(get("TE: trailers, gzip\r\nConnection: TE\r\n"));
    let head = upstream.accept().head();
    assert_eq!(head, format!("GET /f HTTP/1.1\r\nhost: x\r\n{OURS}te: trailers\r\nconnection: TE\r\n\r\n"));
}

#[test]
fn who_asks_is_said_as_far_as_the_proxies_are_trusted() {
    let upstream = Upstream::new();
    let address = format!("\"{}\"", upstream.address());
    let gateway = Gateway::start(&configuration("trusted_proxies = [\"127.0.0.0/8\"]", "", &address, ""));
    let mut client = gateway.client();
    client.send(
        "GET /believed HTTP/1.1\r\nHost: inner\r\nX-Forwarded-For: 203.0.113.9, 198.51.100.7\r\n\
         X-Forwarded-Proto: https\r\nX-Forwarded-Host: example.org\r\nX-Real-IP: 198.51.100.7\r\n\r\n",
    );
    let mut peer = upstream.accept();
    let head = peer.head();
    for line in [
        "host: inner\r\n",
        "x-real-ip: 198.51.100.7\r\n",
        "x-forwarded-for: 203.0.113.9, 198.51.100.7, 127.0.0.1\r\n",
        "x-forwarded-proto: https\r\n",
        "x-forwarded-host: example.org\r\n",
    ] {
        assert!(head.contains(line), "{line} in {head}");
    }
    peer.send(OK);
    assert_eq!(client.message(), OK_RELAYED);
    let line = check_logged(&gateway, "/believed", "proxied", 200);
    assert!(line["client"].as_str().is_some_and(|client| client.starts_with("198.51.100.7")), "{line}");
}

#[test]
fn a_host_of_the_configurations_is_asked_for() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "host = \"app.internal\"");
    let mut client = gateway.client();
    client.get("/h");
    let head = upstream.accept().head();
    let wanted = format!("GET /h HTTP/1.1\r\nhost: app.internal\r\n{OURS}\r\n");
    assert_eq!(head, wanted);
    // Without one: the client's own, from the target if it is there.
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "");
    for (line, host, wanted) in [
        ("GET /h HTTP/1.1", "Host: Example.ORG:8080\r\n", "Example.ORG:8080"),
        ("GET http://a.example:81/h HTTP/1.1", "Host: a.example:81\r\n", "a.example:81"),
    ] {
        let mut client = gateway.client();
        client.send(format!("{line}\r\n{host}\r\n"));
        let head = upstream.accept().head();
        assert!(
            head.to_ascii_lowercase().contains(&format!("\r\nhost: {}\r\n", wanted.to_ascii_lowercase())),
            "{head}"
        );
    }
}

#[test]
fn a_client_of_http_1_0_is_answered_in_what_it_understands() {
    let upstream = Serving::start(|head, peer| {
        match head {
            head if head.contains("/chunked") => {
                peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
            }
            _ => peer.send(OK),
        }
        true
    });
    let gateway = before_serving(&upstream, "", "");
    assert_eq!(
        undated(&gateway.ask("GET /length HTTP/1.0\r\n\r\n")),
        OK_RELAYED.replace("\r\n\r\nok", "\r\nConnection: close\r\n\r\nok")
    );
    let host = upstream.address().replace("http://", "");
    let head = upstream.heads().remove(0);
    assert!(head.starts_with(&format!("GET /length HTTP/1.1\r\nhost: {host}\r\n")), "{head}");
    assert!(head.ends_with("via: 1.0 baton\r\n\r\n"), "{head}");
    assert_eq!(
        undated(&gateway.ask("GET /chunked HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")),
        "HTTP/1.1 200 OK\r\nVia: 1.1 baton\r\nConnection: close\r\n\r\nabc"
    );
    let mut client = gateway.client();
    for _ in 0..2 {
        client.send("GET /kept HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\n\r\n");
        assert_eq!(client.message(), OK_RELAYED.replace("\r\n\r\nok", "\r\nConnection: keep-alive\r\n\r\nok"));
    }
}

/// HEAD, 204 and 304 have no body, whatever their fields say; the connection to the upstream lives on behind each of them.
#[test]
fn connections_are_kept_on_both_sides() {
    let upstream = Serving::start(|head, peer| {
        peer.send(match head.split(' ').nth(1).expect("a target") {
            "/204" => "HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n",
            "/304" => "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n",
            "/empty" => "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "/chunked" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            "/head" => "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            "/head-chunked" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            _ => OK,
        });
        true
    });
    let gateway = before_serving(&upstream, "", "");
    let mut client = gateway.client();
    for (method, target, wanted) in [
        ("GET", "/a", OK_RELAYED),
        ("GET", "/204", "HTTP/1.1 204 No Content\r\nX-A: 1\r\nVia: 1.1 baton\r\n\r\n"),
        ("GET", "/304", "HTTP/1.1 304 Not Modified\r\nEtag: \"a\"\r\nVia: 1.1 baton\r\n\r\n"),
        ("GET", "/empty", "HTTP/1.1 200 OK\r\nVia: 1.1 baton\r\nContent-Length: 0\r\n\r\n"),
        ("HEAD", "/head", "HTTP/1.1 200 OK\r\nVia: 1.1 baton\r\nContent-Length: 5\r\n\r\n"),
        ("HEAD", "/head-chunked", "HTTP/1.1 200 OK\r\nVia: 1.1 baton\r\n\r\n"),
        ("GET", "/b", OK_RELAYED),
    ] {
        client.send(format!("{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n"));
        let head = client.head();
        let body = if method == "GET" && wanted.ends_with("ok") { client.take(2) } else { Vec::new() };
        assert_eq!(undated(&head) + &String::from_utf8_lossy(&body), wanted, "{method} {target}");
    }
    client.get("/chunked");
    client.until("\r\n\r\n");
    assert_eq!(client.take(12), b"2\r\nok\r\n0\r\n\r\n");
    // Another client finds the same connection.
    assert_eq!(gateway.status("/c"), 200);
    assert_eq!((upstream.connections(), upstream.heads().len()), (1, 9));
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let upstream = Serving::start(|head, peer| {
        let target = head.split(' ').nth(1).expect("a target").to_owned();
        if head.contains("content-length: 3") {
            peer.take(3);
        }
        let body = target.as_bytes();
        if target.ends_with('1') {
            peer.send(format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{target}\r\n0\r\n\r\n",
                body.len()
            ));
        } else {
            peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{target}", body.len()));
        }
        true
    });
    let gateway = before_serving(&upstream, "", "");
    let mut client = gateway.client();
    let request = |n: usize| match n % 2 {
        0 => format!("GET /{n} HTTP/1.1\r\nHost: x\r\n\r\n"),
        _ => format!("POST /{n} HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"),
    };
    client.send((0..50).map(request).collect::<String>());
    for n in 0..50 {
        let head = client.head();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        let target = format!("/{n}");
        if n % 10 == 1 {
            let chunks = format!("{:x}\r\n{target}\r\n0\r\n\r\n", target.len());
            assert_eq!(String::from_utf8_lossy(&client.take(chunks.len())), chunks);
        } else {
            assert_eq!(String::from_utf8_lossy(&client.take(target.len())), target);
        }
    }
    eventually("every line", || (gateway.log().len() == 50).then_some(()));
    assert_eq!(upstream.connections(), 1);
}

/// Its second request is unread, and that it has closed is known: neither is a reason to look again and again.
#[test]
fn a_client_that_ends_behind_a_second_request_is_waited_for_without_work() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "");
    let mut client = gateway.client();
    client.send("GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n");
    client.stream.shutdown(std::net::Shutdown::Write).expect("connected");
    let mut peer = upstream.accept();
    peer.head();
    // A worker that spins would use all of the time that passes here; one at rest uses hardly any.
    let (ticks, began) = (gateway.cpu_ticks(), std::time::Instant::now());
    while began.elapsed() < std::time::Duration::from_millis(500) {
        std::thread::park_timeout(std::time::Duration::from_millis(50));
    }
    let ticks = gateway.cpu_ticks() - ticks;
    assert!(ticks <= 10, "{ticks} ticks of 10 ms in half a second");
    peer.send(OK);
    assert!(client.head().starts_with("HTTP/1.1 200 OK\r\n"));
    assert_eq!(client.take(2), b"ok");
}
