//! What a client, an upstream and a program behind the gateway must not be able to make of each other: what is cut looks cut,
//! what is withheld stays withheld, nobody waits for somebody who is gone.
#![cfg(feature = "gateway")]

mod support;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::Value;
use support::fastcgi::Program;
use support::upstream::{Serving, Upstream};
use support::{Gateway, eventually, folder, unread_at_the_gateway};

#[track_caller]
fn logged(gateway: &Gateway, target: &str) -> Value {
    eventually(&format!("a line about {target}"), || gateway.log().into_iter().find(|line| line["target"] == target))
}

fn proxying(address: &str, limits: &str, upstream: &str, rest: &str) -> String {
    format!(
        "[gateway]\nworkers = 1\n[limits]\n{limits}\nLISTEN\n[upstream.app]\naddress = \"{address}\"\n{upstream}\n{rest}"
    )
}

const TO_APP: &str = "[[route]]\npath = \"/\"\ndefault = { proxy = \"app\" }\n";

/// A record of request 1.
fn record(kind: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).expect("short").to_be_bytes();
    [&[1, kind, 0, 1, length[0], length[1], 0, 0][..], content].concat()
}

/// A FastCGI program that says the same to everybody; what it was sent until the end of its variables comes out here.
fn program(socket: &Path, says: &'static str) -> Receiver<Vec<u8>> {
    let listener = UnixListener::bind(socket).expect("a free path");
    let (heard, hears) = channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let Some(asked) = variables(&mut stream) else { continue };
            let answer = [record(6, says.as_bytes()), record(6, b""), record(3, &[0; 8])].concat();
            drop(stream.write_all(&answer));
            if heard.send(asked).is_err() {
                return;
            }
        }
    });
    hears
}

fn variables(stream: &mut UnixStream) -> Option<Vec<u8>> {
    let (mut asked, mut piece) = (Vec::new(), [0; 4096]);
    let end = record(4, b"");
    while !asked.windows(end.len()).any(|window| window == end) {
        let count = stream.read(&mut piece).ok().filter(|&count| count > 0)?;
        asked.extend_from_slice(&piece[..count]);
    }
    Some(asked)
}

#[test]
fn what_an_authorizer_tells_the_gateway_does_not_reach_the_client_it_refuses() {
    let folder = folder();
    let _heard = program(
        &folder.path().join("auth.sock"),
        "Status: 401\r\nX-Own: 1\r\nX-Socket-Handoff: /run/secret.sock\r\nX-Handoff-Data: secret\r\n\
         X-Accel-Redirect: /inside\r\n\r\nno",
    );
    let gateway = Gateway::start_in(
        folder,
        "[gateway]\nworkers = 1\nLISTEN\n[upstream.auth]\naddress = \"fcgi+unix:DIR/auth.sock\"\nrole = \"authorizer\"\n\
         [[route]]\npath = \"/\"\nauthorizer = \"auth\"\ndefault = { respond = { body = \"in\" } }\n",
        |command| command,
    );
    let mut client = gateway.client();
    client.send("GET /in HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let answer = client.rest();
    assert!(answer.starts_with("HTTP/1.1 401 ") && answer.contains("X-Own: 1\r\n"), "{answer}");
    for name in ["x-socket-handoff", "x-handoff-data", "x-accel-redirect"] {
        assert!(!answer.to_lowercase().contains(name), "{answer}");
    }
    assert_eq!(logged(&gateway, "/in")["outcome"], "responded");
}

/// Asks the upstream `app`, and sets `x-user` to `us` in the request that it gets.
const EDITS_ITS_PROXY: &str = r#"(module
  (memory (export "memory") 1)
  (data (i32.const 0) "appx-userusx-drop")
  (func (export "on_request") (result i32)
    (memory.fill (i32.const 1024) (i32.const 0) (i32.const 88))
    (i32.store8 (i32.const 1024) (i32.const 2))
    (i32.store (i32.const 1032) (i32.const 3))
    ;; remove
    (i32.store (i32.const 512) (i32.const 11)) (i32.store (i32.const 516) (i32.const 6))
    (i32.store (i32.const 1048) (i32.const 512)) (i32.store (i32.const 1052) (i32.const 1))
    ;; set
    (i32.store (i32.const 520) (i32.const 3)) (i32.store (i32.const 524) (i32.const 6))
    (i32.store (i32.const 528) (i32.const 9)) (i32.store (i32.const 532) (i32.const 2))
    (i32.store (i32.const 1056) (i32.const 520)) (i32.store (i32.const 1060) (i32.const 1))
    (i32.const 1024)))"#;

#[test]
fn what_a_policy_changes_for_an_upstream_a_program_is_told() {
    let folder = folder();
    std::fs::write(folder.path().join("edits.wat"), EDITS_ITS_PROXY).expect("written");
    let heard = program(&folder.path().join("app.sock"), "Content-Length: 2\r\n\r\nok");
    let gateway = Gateway::start_in(
        folder,
        &proxying(
            "fcgi+unix:DIR/app.sock",
            "",
            "",
            "[policy.edits]\nmodule = \"DIR/edits.wat\"\n[[route]]\npath = \"/\"\npolicies = [\"edits\"]\n",
        ),
        |command| command,
    );
    let mut client = gateway.client();
    client.send("GET / HTTP/1.1\r\nHost: x\r\nX-User: root\r\nX-Drop: 1\r\n\r\n");
    assert_eq!(client.answer().status, 200);
    let asked = String::from_utf8_lossy(&heard.recv_timeout(support::patience()).expect("it was asked")).into_owned();
    assert!(asked.contains("HTTP_X_USERus") && !asked.contains("root") && !asked.contains("HTTP_X_DROP"), "{asked:?}");
}

#[test]
fn an_answer_that_ends_with_its_connection_is_reset_where_a_slow_client_is_left() {
    let app = Serving::start(|_, peer| {
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        let chunk = [format!("{:x}\r\n", 1 << 16).as_bytes(), &[b'a'; 1 << 16], b"\r\n"].concat();
        while peer.stream.write_all(&chunk).is_ok() {}
        false
    });
    let gateway = Gateway::start(&proxying(&app.address(), "body_timeout = \"300ms\"", "", TO_APP));
    let mut client = gateway.client();
    client.send("GET /slow HTTP/1.0\r\n\r\n");
    client.head();
    let line = logged(&gateway, "/slow");
    assert_eq!(line["outcome"], "client-gone", "{line}");
    assert!(client.was_reset(), "its end looks like the answer's");
}

#[test]
fn an_answer_that_ends_with_its_connection_is_reset_where_the_drain_cuts_it() {
    let app = Serving::start(|_, peer| {
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
        peer.next_head();
        false
    });
    let text =
        proxying(&app.address(), "", "", TO_APP).replace("[gateway]\n", "[gateway]\ndrain_timeout = \"100ms\"\n");
    let mut gateway = Gateway::start(&text);
    let mut client = gateway.client();
    client.send("GET /cut HTTP/1.0\r\n\r\n");
    client.until("hello");
    gateway.signal(Signal::SIGTERM);
    assert!(client.was_reset(), "its end looks like the answer's");
    gateway.wait();
    assert_eq!(logged(&gateway, "/cut")["outcome"], "aborted");
}

#[test]
fn an_answer_that_ends_with_its_connection_ends_in_good_order() {
    let app = Serving::start(|_, peer| {
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
        true
    });
    let gateway = Gateway::start(&proxying(&app.address(), "", "", TO_APP));
    for _ in 0..3 {
        let mut client = gateway.client();
        client.send("GET / HTTP/1.0\r\n\r\n");
        client.until("hello");
        assert!(!client.was_reset());
    }
}

fn filtering(app: &str, limits: &str, settings: &str) -> (Gateway, Program) {
    let folder = folder();
    let filter = Program::spawn("filter", &folder.path().join("filter.sock"));
    let rest = "[upstream.up]\naddress = \"fcgi+unix:DIR/filter.sock\"\nrole = \"filter\"\n\
                [[route]]\npath = \"/\"\nfilter = \"up\"\ndefault = { proxy = \"app\" }\n";
    (Gateway::start_in(folder, &proxying(app, limits, settings, rest), |command| command), filter)
}

#[test]
fn an_answer_that_is_cut_on_its_way_into_a_filter_is_502() {
    let app = Upstream::new();
    let (gateway, _filter) = filtering(&app.address(), "", "");
    let mut client = gateway.client();
    client.get("/cut");
    let mut peer = app.accept();
    peer.head();
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nten bytes.");
    drop(peer);
    assert_eq!(client.answer().status, 502);
    assert_eq!(logged(&gateway, "/cut")["outcome"], "upstream-error");
}

#[test]
fn a_client_that_leaves_while_an_answer_is_kept_for_a_filter_ends_it() {
    let app = Upstream::new();
    let (gateway, _filter) = filtering(&app.address(), "", "");
    let mut client = gateway.client();
    client.get("/left");
    let mut peer = app.accept();
    peer.head();
    peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
    drop(client);
    assert_eq!(peer.rest(), "");
    assert_eq!(logged(&gateway, "/left")["outcome"], "client-gone");
}

#[test]
fn a_body_goes_on_to_the_upstream_while_its_answer_is_kept_for_a_filter() {
    let app = Upstream::new();
    let (gateway, _filter) = filtering(&app.address(), "", "");
    let mut client = gateway.client();
    client.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nfirst");
    let mut peer = app.accept();
    peer.head();
    peer.take(5);
    peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n");
    client.send("other");
    assert_eq!(peer.take(5), b"other");
    peer.send("5\r\nother\r\n0\r\n\r\n");
    let answer = client.until("in front)");
    assert!(answer.contains("FIRSTOTHER"), "{answer}");
}

/// Hands every answer over to a target that is not there, and wants another upstream asked then.
const TRIES_ANOTHER: &str = r#"(module
  (memory (export "memory") 1)
  (global $free (mut i32) (i32.const 4096))
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    (local $p i32)
    (local.set $p (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
    (global.set $free (i32.add (local.get $p) (local.get 3)))
    (local.get $p))
  (data (i32.const 0) "noneother")
  (func $clear (memory.fill (i32.const 1024) (i32.const 0) (i32.const 88)))
  (func (export "on_request") (result i32) (call $clear) (i32.const 1024))
  (func (export "on_response") (param i32 i32) (result i32)
    (call $clear)
    (i32.store8 (i32.const 1024) (i32.const 1))
    (i32.store (i32.const 1032) (i32.const 4))
    (i32.store8 (i32.const 1069) (i32.const 1))
    (i32.const 1024))
  (func (export "on_handoff_failed") (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
    (call $clear)
    (i32.store8 (i32.const 1024) (i32.const 2))
    (i32.store (i32.const 1028) (i32.const 4))
    (i32.store (i32.const 1032) (i32.const 5))
    (i32.const 1024)))"#;

#[test]
fn a_body_that_an_upstream_has_had_is_not_said_to_be_empty_to_another() {
    let folder = folder();
    std::fs::write(folder.path().join("tries.wat"), TRIES_ANOTHER).expect("written");
    let (app, other) = (Upstream::new(), Upstream::new());
    let rest = format!(
        "[upstream.other]\naddress = \"{}\"\n[target.none]\nsockets = [\"DIR/none.sock\"]\n\
         [policy.tries]\nmodule = \"DIR/tries.wat\"\n\
         [[route]]\npath = \"/\"\npolicies = [\"tries\"]\ndefault = {{ proxy = \"app\" }}\n",
        other.address()
    );
    let gateway = Gateway::start_in(folder, &proxying(&app.address(), "", "", &rest), |command| command);
    let mut client = gateway.client();
    client.send("POST /pay HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello");
    let mut peer = app.accept();
    peer.head();
    assert_eq!(peer.take(5), b"hello");
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    // Asked as after any other answer that led to it: without the body, and by a method that has none.
    let head = other.accept().head();
    assert!(head.starts_with("GET /pay HTTP/1.1\r\n") && !head.contains("content-length"), "{head}");
}

#[test]
fn a_tunnel_that_the_drain_cuts_is_said_to_be_cut() {
    let app = Upstream::new();
    let text =
        proxying(&app.address(), "", "", TO_APP).replace("[gateway]\n", "[gateway]\ndrain_timeout = \"100ms\"\n");
    let mut gateway = Gateway::start(&text);
    let mut client = gateway.client();
    client.send(WANTS);
    let mut peer = app.accept();
    peer.head();
    peer.send(SWITCHES);
    client.head();
    gateway.signal(Signal::SIGTERM);
    gateway.wait();
    let line = logged(&gateway, "/ws");
    assert_eq!((&line["outcome"], &line["status"]), (&"aborted".into(), &101.into()), "{line}");
}

const WANTS: &str = "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const SWITCHES: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";

/// A server in TLS with a certificate that the file beside it leads to.
fn tls_server(folder: &Path) -> tokio_rustls::TlsAcceptor {
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::crypto::ring;
    use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signed");
    std::fs::write(folder.join("ca.pem"), issuer.pem()).expect("written");
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(["app.internal".to_owned()]).expect("a name");
    let certificate = params.signed_by(&key, &issuer).expect("signed").der().clone();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("a pair");
    tokio_rustls::TlsAcceptor::from(Arc::new(config))
}

#[test]
fn all_that_a_client_says_comes_out_of_a_tunnel_in_tls_though_the_server_was_slow() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let folder = folder();
    let acceptor = tls_server(folder.path());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    // What the gateway writes soon finds no room.
    setsockopt(&listener, sockopt::RcvBuf, &8192).expect("a socket");
    listener.set_nonblocking(true).expect("a socket");
    let address = format!("https://127.0.0.1:{}", listener.local_addr().expect("it listens").port());
    let settings = "ca = \"ca.pem\"\nserver_name = \"app.internal\"";
    let gateway = Gateway::start_in(folder, &proxying(&address, "", settings, TO_APP), |command| command);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let _entered = runtime.enter();
    let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
    // The first time finds out how much goes into a tunnel that nobody reads; the second stays a little below that, so that
    // the last of it has left the client, and waits in front of a socket that is full.
    let mut room = usize::MAX;
    for below in [0, 32 << 10] {
        let mut client = gateway.client();
        client.send(WANTS);
        let mut stream = runtime.block_on(async {
            let (stream, _) = listener.accept().await.expect("accepted");
            let mut stream = acceptor.accept(stream).await.expect("the gateway is content");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.expect("a head"));
            }
            stream.write_all(SWITCHES.as_bytes()).await.expect("written");
            stream.flush().await.expect("flushed");
            stream
        });
        client.head();
        let mut said = 0;
        while said < room - below {
            client.send([b'a'; 16 << 10]);
            said += 16 << 10;
            let until = Instant::now() + Duration::from_millis(400);
            while unread_at_the_gateway(&client) != Some(0) && Instant::now() < until {
                std::thread::park_timeout(Duration::from_millis(1));
            }
            if unread_at_the_gateway(&client) != Some(0) {
                break;
            }
        }
        room = room.min(said);
        let heard = runtime.block_on(async {
            let (mut buffer, mut heard) = (vec![0; 1 << 20], 0);
            while heard < said {
                match tokio::time::timeout(Duration::from_secs(3), stream.read(&mut buffer)).await {
                    Ok(Ok(count)) if count > 0 => heard += count,
                    _ => break,
                }
            }
            heard
        });
        assert_eq!(heard, said, "of {room} that find room");
    }
}

#[test]
fn an_answer_goes_on_though_its_client_has_stopped_in_the_middle_of_its_body() {
    let app = Serving::start(|_, peer| {
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        for _ in 0..8 {
            peer.send("5\r\nhello\r\n");
            std::thread::park_timeout(Duration::from_millis(100));
        }
        peer.send("0\r\n\r\n");
        peer.next_head();
        false
    });
    let gateway = Gateway::start(&proxying(&app.address(), "body_timeout = \"200ms\"", "", TO_APP));
    for (target, rest) in [("/waits", "Expect: 100-continue\r\n\r\n"), ("/stops", "\r\nfirst")] {
        let mut client = gateway.client();
        client.send(format!("POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n{rest}"));
        assert_eq!(client.until("\r\n0\r\n\r\n").matches("hello").count(), 8);
        drop(client);
        let line = logged(&gateway, target);
        assert_eq!((&line["outcome"], &line["status"]), (&"proxied".into(), &200.into()), "{line}");
    }
}

#[test]
fn a_request_that_may_go_no_further_goes_no_further() {
    let app = Serving::start(|head, peer| {
        let count = head.lines().find_map(|line| line.strip_prefix("max-forwards: ")).unwrap_or("none");
        peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{count}", count.len()));
        true
    });
    let gateway = Gateway::start(&proxying(&app.address(), "", "", TO_APP));
    let mut client = gateway.client();
    for (method, count, status, body) in [
        ("OPTIONS", "0", 200, Some("")),
        ("OPTIONS", "1", 200, Some("0")),
        ("TRACE", "0", 501, None),
        ("TRACE", "2", 200, Some("1")),
        ("GET", "0", 200, Some("0")),
    ] {
        client.send(format!("{method} /a HTTP/1.1\r\nHost: x\r\nMax-Forwards: {count}\r\n\r\n"));
        let answer = client.answer();
        assert_eq!(answer.status, status, "{method} {count}");
        assert!(body.is_none_or(|body| answer.body == body), "{method} {count}: {answer:?}");
    }
    assert_eq!(app.heads().len(), 3);
}

/// Asks the upstream `app` for a path that leads out of where it begins.
const LEADS_OUT: &str = r#"(module
  (memory (export "memory") 1)
  (data (i32.const 0) "app/mount/../../secret?q")
  (func (export "on_request") (result i32)
    (memory.fill (i32.const 1024) (i32.const 0) (i32.const 88))
    (i32.store8 (i32.const 1024) (i32.const 2))
    (i32.store (i32.const 1032) (i32.const 3))
    (i32.store8 (i32.const 1036) (i32.const 1))
    (i32.store (i32.const 1040) (i32.const 3))
    (i32.store (i32.const 1044) (i32.const 21))
    (i32.const 1024)))"#;

#[test]
fn a_path_that_a_policy_asks_for_stays_below_the_path_inside() {
    let app = Serving::start(|_, peer| {
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        true
    });
    for (path, status, asked) in [
        ("/mount/../../secret?q", 400, None),
        ("/mount/../secret?q...", 200, Some("GET /inside/secret?q... ")),
        ("/mount/x/./secret?q..", 200, Some("GET /inside/x/secret?q.. ")),
    ] {
        let folder = folder();
        let module = LEADS_OUT.replace("/mount/../../secret?q", path);
        std::fs::write(folder.path().join("leads.wat"), module).expect("written");
        let rest = "[policy.leads]\nmodule = \"DIR/leads.wat\"\n[[route]]\npath = \"/mount\"\npolicies = [\"leads\"]\n";
        let address = format!("{}/inside", app.address());
        let gateway = Gateway::start_in(folder, &proxying(&address, "", "", rest), |command| command);
        assert_eq!(gateway.status("/mount/a"), status, "{path}");
        if let Some(asked) = asked {
            let head = app.heads().pop().expect("it was asked");
            assert!(head.starts_with(asked), "{head}");
        }
    }
}

#[test]
fn a_filter_that_would_never_be_asked_is_refused() {
    let folder = folder();
    let file = folder.path().join("baton.toml");
    let text = "[[listener]]\nname = \"http\"\naddress = \"127.0.0.1:0\"\n\
                [upstream.up]\naddress = \"fcgi://127.0.0.1:9\"\nrole = \"filter\"\n\
                [[route]]\npath = \"/in\"\ninternal = true\nfilter = \"up\"\ndefault = { file = \"in\" }\n";
    for (text, code) in [(text.to_owned(), 64), (text.replace("internal = true\n", ""), 0)] {
        std::fs::write(&file, text).expect("written");
        let output = support::baton().args(["check", "-c"]).arg(&file).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert_eq!(said.contains("filter"), code == 64, "{said}");
    }
}
