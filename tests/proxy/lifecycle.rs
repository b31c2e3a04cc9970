//! What goes on while the gateway is told to stop or to read its configuration again, and whose page a failure shows.

use nix::sys::signal::Signal;

use super::support::upstream::{Serving, Upstream};
use super::support::{Gateway, eventually, folder};
use super::{OK, OK_RELAYED, before, check_closed, check_logged, configuration};

#[test]
fn an_answer_under_way_is_finished_while_the_gateway_drains() {
    let upstream = Upstream::new();
    let mut gateway = before(&upstream, "", "");
    let mut client = gateway.client();
    client.get("/under-way");
    let mut peer = upstream.accept();
    peer.head();
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab");
    client.head();
    // Another one, of which nothing was answered yet; and one connection that is idle.
    let mut waiting = gateway.client();
    waiting.get("/waiting");
    let mut second = upstream.accept();
    second.head();
    gateway.signal(Signal::SIGTERM);
    eventually("it takes nobody any more", || std::net::TcpStream::connect(gateway.address()).is_err().then_some(()));
    peer.send("cd");
    assert_eq!(client.take(4), b"abcd");
    assert_eq!(client.rest(), "");
    second.send(OK);
    assert_eq!(waiting.message(), OK_RELAYED.replace("\r\n\r\nok", "\r\nConnection: close\r\n\r\nok"));
    assert_eq!(gateway.wait().code(), Some(0));
    check_logged(&gateway, "/under-way", "proxied", 200);
    check_logged(&gateway, "/waiting", "proxied", 200);
    check_closed(&mut peer);
}

#[test]
fn a_reload_closes_connections_that_are_idle() {
    let upstream = Upstream::new();
    let gateway = before(&upstream, "", "keep_alive_timeout = \"1h\"");
    let mut client = gateway.client();
    client.get("/idle");
    let mut peer = upstream.accept();
    peer.head();
    peer.send(OK);
    assert_eq!(client.message(), OK_RELAYED);
    // An idle client keeps what it was connected under.
    drop(client);
    gateway.reload(&configuration("", "", "\"http://127.0.0.1:9\"", ""));
    check_closed(&mut peer);
    let mut client = gateway.client();
    client.get("/behind");
    assert_eq!(client.answer().status, 503);
}

#[test]
fn a_reload_leaves_answers_and_tunnels_alone() {
    let upstream = Upstream::new();
    let other = Serving::start(|_, peer| {
        peer.send(OK);
        true
    });
    let gateway = before(&upstream, "", "");
    let mut streaming = gateway.client();
    streaming.get("/stream");
    let mut kept = upstream.accept();
    kept.head();
    kept.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab");
    streaming.head();
    let mut tunnel = gateway.client();
    tunnel.send("GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    let mut server = upstream.accept();
    server.head();
    server.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    tunnel.head();
    let from = gateway.reload(&configuration("", "", &format!("\"{}\"", other.address()), ""));
    gateway.stderr.wait(from, &["configuration reloaded"]);
    assert_eq!((gateway.status("/new"), other.heads().len()), (200, 1));
    kept.send("cd");
    assert_eq!(streaming.take(4), b"abcd");
    tunnel.send("up");
    assert_eq!(server.take(2), b"up");
    server.send("down");
    assert_eq!(tunnel.take(4), b"down");
    drop(tunnel);
    // Nobody has that configuration any more, so nothing of it is kept.
    check_closed(&mut kept);
    check_closed(&mut server);
}

#[test]
fn a_failure_is_told_in_the_form_that_was_asked_for() {
    let folder = folder();
    std::fs::create_dir(folder.path().join("errors")).expect("made");
    std::fs::write(folder.path().join("errors/502.html"), "<h1>broken</h1>").expect("written");
    let upstream = Serving::start(|_, _| false);
    let address = format!("\"{}\"", upstream.address());
    let toml = configuration("", "", &address, "") + "[error_pages]\n502 = \"errors/502.html\"\n";
    let gateway = Gateway::start_in(folder, &toml, |command| command);
    let mut client = gateway.client();
    client.get("/page");
    let page = client.answer();
    assert_eq!((page.status, page.body.as_str()), (502, "<h1>broken</h1>"));
    client.send("GET /problem HTTP/1.1\r\nHost: x\r\nAccept: application/json\r\n\r\n");
    let problem = client.answer();
    assert_eq!((problem.status, problem.header("content-type")), (502, Some("application/problem+json")));
    let value: serde_json::Value = serde_json::from_str(&problem.body).expect("JSON");
    assert_eq!((&value["status"], &value["title"]), (&502.into(), &"Bad Gateway".into()));
    // Of the inside, nothing.
    let port = upstream.address().rsplit_once(':').map(|(_, port)| port.to_owned()).expect("a port");
    for word in [&*port, "app", "connection"] {
        assert!(!problem.body.contains(word) && !page.body.contains(word), "{problem:?}");
    }
}
