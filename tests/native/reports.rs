//! What a daemon is told, and what its reports become.

use baton::handoff::native::frame::{Frame, Outcome, Report};
use serde_json::json;

use crate::support::native::report;
use crate::{outcome, start};

#[test]
fn a_daemon_is_told_of_the_request_and_its_report_completes_the_line() {
    let (gateway, scripts) = start(1, "");
    let mut client = gateway.client();
    client.send(
        "POST /v1/x?y=1 HTTP/1.1\r\nHost: example.org\r\nX-Raw: caf\u{e9}\r\nx-RAW: 2\r\nContent-Length: 4\r\n\r\nbody",
    );
    let channel = &mut scripts[0].accept(10);
    let lent = channel.lent();
    assert_eq!(lent.id, 1);
    assert_eq!(lent.metadata("/request/method"), "POST");
    assert_eq!(lent.metadata("/request/target"), "/v1/x?y=1");
    assert_eq!(lent.metadata("/request/authority"), "example.org");
    assert_eq!((lent.metadata("/request/scheme"), lent.metadata("/request/version")), (json!("http"), json!("1.1")));
    let fields = json!([["host", "example.org"], ["x-raw", "caf\u{e9}"], ["x-raw", "2"], ["content-length", "4"]]);
    assert_eq!(lent.metadata("/request/headers"), fields);
    assert_eq!(lent.metadata("/client"), json!({ "ip": "127.0.0.1", "port": client.port() }));
    assert_eq!(
        lent.metadata("/server"),
        json!({ "ip": "127.0.0.1", "port": gateway.address().port(), "listener": "http" })
    );
    assert_eq!(lent.metadata("/body"), json!({ "framing": "length", "remaining": 4 }));
    assert_eq!((lent.metadata("/connection"), lent.metadata("/response/head_sent")), (json!("direct"), json!(false)));
    assert_eq!((lent.metadata("/policy"), lent.metadata("/tls")), (json!(null), json!(null)));
    channel.take(&lent);
    // Nothing is held here while it streams.
    let sockets = gateway.sockets();
    lent.write("HTTP/1.1 201 Created\r\nConnection: close\r\n\r\nhello");
    assert_eq!(gateway.log().len(), 0, "its end is not known yet");
    let id = lent.metadata("/id");
    let report = Report { message: Some("fine".into()), ..report(201, 52) };
    channel.done(lent, report);
    assert!(client.rest().ends_with("\r\n\r\nhello"));
    assert_eq!(outcome(&gateway, 1), ("handed-off".into(), Some(201), 1));
    let line = gateway.log_line(1);
    assert_eq!((&line["id"], &line["to"], &line["error"]), (&id, &"chat".into(), &json!(null)));
    assert_eq!((&line["bytes_out"], &line["target"]), (&52.into(), &"/v1/x?y=1".into()));
    assert!(gateway.sockets() <= sockets);
}

#[test]
fn what_a_policy_says_goes_along_byte_by_byte() {
    let (gateway, scripts) = start(1, "");
    let mut client = gateway.client();
    client.send("GET /by-fields HTTP/1.1\r\nHost: x\r\nx-data: some \u{1f600}\r\nx-timeout-ms: 1500\r\nX-Bad: \u{80}");
    client.send(b"\xff\r\n\r\n");
    let channel = &mut scripts[0].accept(10);
    let lent = channel.lent();
    assert_eq!(lent.handoff.data, "some \u{1f600}".as_bytes());
    assert_eq!(lent.metadata("/policy"), json!({ "name": "by-fields", "generation": 1 }));
    assert_eq!(lent.metadata("/deadline_ms"), 1500);
    assert_eq!(lent.metadata("/request/headers/3"), json!(["x-bad", { "base64": "woD/" }]));
    channel.serve(lent, "one", true);
    assert_eq!(client.answer().body, "one");
    // The head goes along, and data that is too long for a packet does so in a file.
    client.send("GET /by-fields HTTP/1.1\r\nHost: x\r\nx-head: 1\r\n\r\nGET /next");
    let lent = channel.lent();
    let head = "GET /by-fields HTTP/1.1\r\nHost: x\r\nx-head: 1\r\n\r\n";
    assert_eq!(lent.handoff.preread, head.as_bytes());
    assert_eq!(lent.metadata("/request/head_bytes"), head.len());
    channel.serve(lent, "two", true);
    assert_eq!(client.answer().body, "two");
    client.send(" HTTP/1.1\r\nHost: x\r\n\r\n");
    let lent = channel.lent();
    assert_eq!(lent.metadata("/request/target"), "/next");
    channel.serve(lent, "three", true);
    assert_eq!(client.answer().body, "three");
    client.send("GET /by-fields HTTP/1.1\r\nHost: x\r\nx-bytes: 1000000\r\n\r\n");
    let lent = channel.lent();
    assert!(lent.handoff.memfds.data && lent.handoff.data.is_empty() && lent.files.len() == 1);
    assert_eq!(lent.file(0), vec![b'd'; 1_000_000]);
    channel.serve(lent, "four", true);
    assert_eq!(client.answer().body, "four");
}

#[test]
fn a_client_that_comes_back_goes_on_with_what_was_read_and_not_used() {
    let (gateway, scripts) = start(1, "");
    let mut client = gateway.client();
    client.get("/one");
    let channel = &mut scripts[0].accept(10);
    for n in 0..50 {
        let lent = channel.lent();
        channel.take(&lent);
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        lent.write(answer);
        // Every other time the daemon has read into the next request, and every fourth time past its end.
        let unread = match n % 4 {
            1 => "GET /ne",
            3 => "GET /next HTTP/1.1\r\nHost: x\r\n\r\nGET /answer HTTP/1.1\r\nHo",
            _ => "",
        };
        channel.give_back(&lent, report(200, answer.len() as u64), unread.as_bytes());
        drop(lent);
        assert_eq!(client.answer().body, "ok");
        match n % 4 {
            1 => client.send("xt HTTP/1.1\r\nHost: x\r\n\r\n"),
            3 => {
                let lent = channel.lent();
                // What cannot stay in the socket goes along, and comes back.
                assert_eq!(lent.handoff.preread, b"GET /answer HTTP/1.1\r\nHo");
                channel.take(&lent);
                lent.write(answer);
                let unread = lent.handoff.preread.clone();
                channel.give_back(&lent, report(200, 1), &unread);
                drop(lent);
                assert_eq!(client.answer().body, "ok");
                client.send("st: x\r\n\r\n");
                assert_eq!(client.answer().body, "answer");
                client.get("/next");
            }
            _ => client.get("/next"),
        }
    }
    let lent = channel.lent();
    channel.serve(lent, "end", false);
    assert_eq!(client.answer().body, "end");
    assert_eq!(client.rest(), "");
    let log = crate::support::eventually("all lines", || Some(gateway.log()).filter(|log| log.len() == 75));
    let count = |outcome: &str| log.iter().filter(|line| line["outcome"] == outcome).count();
    assert_eq!((count("returned"), count("responded"), count("handed-off")), (62, 12, 1));
    assert!(log.iter().all(|line| line["status"] == 200 && line["client"] == "127.0.0.1"), "{log:#?}");
}

#[test]
fn a_client_that_comes_back_is_the_listeners_also_where_nothing_is_logged() {
    let toml = crate::toml(1, "").replace("admin = \"unix:DIR/admin.sock\"", "# no access_log = here");
    let folder = crate::support::folder();
    let script = crate::support::native::Script::listen(&folder.path().join("0.sock"));
    let gateway = crate::support::Gateway::start_in(folder, &toml, |command| command);
    let mut client = gateway.client();
    client.get("/");
    let channel = &mut script.accept(10);
    for _ in 0..3 {
        let lent = channel.lent();
        assert_eq!(lent.metadata("/server/listener"), "http");
        channel.take(&lent);
        // Its task in the gateway has ended by then.
        channel.send(&Frame::Ping(Vec::new()));
        channel.frame();
        lent.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        channel.give_back(&lent, report(200, 40), b"");
        drop(lent);
        assert_eq!(client.answer().body, "ok");
        client.get("/");
    }
}

/// A daemon of another dialect has no place for what was read: that is known before the client is sent a response's head.
#[test]
fn what_was_read_and_cannot_go_along_is_found_out_before_anything_is_written() {
    let (gateway, scripts) = start(1, "[target.old]\nsockets = [\"DIR/old.sock\"]\ndialect = \"seqpacket\"");
    let mut client = gateway.client();
    client.get("/");
    let channel = &mut scripts[0].accept(10);
    let lent = channel.lent();
    channel.take(&lent);
    lent.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let unread =
        "GET /by-fields HTTP/1.1\r\nHost: x\r\nx-status: 200\r\nx-alternate: old\r\n\r\nGET /answer HTTP/1.1\r\nHo";
    channel.give_back(&lent, report(200, 40), unread.as_bytes());
    drop(lent);
    assert_eq!(client.answer().body, "ok");
    assert_eq!(client.answer().status, 413);
    client.send("st: x\r\n\r\n");
    assert_eq!(client.answer().body, "answer");
    let line = gateway.log_line(2);
    assert!(line["error"].as_str().is_some_and(|error| error.contains("24 bytes were read of the client")), "{line}");
}

#[test]
fn a_client_that_asked_for_the_end_has_it_also_where_the_daemon_gives_it_back() {
    let (gateway, scripts) = start(1, "");
    let mut channel = None;
    for request in ["GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "GET / HTTP/1.0\r\n\r\n"] {
        for is_late in [false, true] {
            let mut client = gateway.client();
            client.send(request);
            let channel = channel.get_or_insert_with(|| scripts[0].accept(10));
            let lent = channel.lent();
            channel.take(&lent);
            lent.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            if is_late {
                // Its task in the gateway has ended by then.
                channel.send(&Frame::Ping(Vec::new()));
                channel.frame();
            }
            channel.give_back(&lent, report(200, 40), b"");
            drop(lent);
            assert!(client.rest().ends_with("\r\n\r\nok"), "{request}");
        }
    }
    assert_eq!(outcome(&gateway, 4).0, "returned");
}

#[test]
fn every_result_has_its_outcome() {
    let (gateway, scripts) = start(1, "");
    let mut channel = None;
    for (count, (result, outcome, error)) in [
        (Outcome::Ok, "handed-off", None),
        (Outcome::ClientGone, "client-gone", Some("the client left the daemon: as said")),
        (Outcome::Error, "handed-off", Some("the daemon failed: as said")),
        (Outcome::Timeout, "handed-off", Some("the daemon gave up: as said")),
        (Outcome::Revoked, "handed-off", Some("revoked: as said")),
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = gateway.client();
        client.get("/");
        let channel = channel.get_or_insert_with(|| scripts[0].accept(10));
        let lent = channel.lent();
        channel.take(&lent);
        channel.done(lent, Report { status: None, result, message: error.map(|_| "as said".into()), ..report(200, 0) });
        assert_eq!(client.rest(), "");
        let line = gateway.log_line(count + 1);
        assert_eq!((&line["outcome"], &line["status"], &line["error"]), (&outcome.into(), &json!(null), &json!(error)));
    }
}

#[test]
fn behind_a_head_of_the_gateways_the_daemon_is_told_so_and_cannot_give_back() {
    let (gateway, scripts) = start(1, "");
    let mut client = gateway.client();
    client.get("/head");
    let channel = &mut scripts[0].accept(10);
    let lent = channel.lent();
    assert_eq!(lent.metadata("/response/head_sent"), true);
    channel.take(&lent);
    lent.write("body");
    channel.done(lent, Report { status: None, ..report(200, 4) });
    let rest = client.rest();
    assert!(rest.contains("X-By: route") && rest.ends_with("\r\n\r\nbody"), "{rest}");
    assert_eq!(outcome(&gateway, 1), ("handed-off".into(), Some(200), 1));

    let mut client = gateway.client();
    client.get("/head");
    let lent = channel.lent();
    channel.take(&lent);
    channel.give_back(&lent, report(200, 0), b"");
    assert!(channel.has_ended());
    lent.write("the daemon's for good");
    drop(lent);
    assert!(client.rest().ends_with("the daemon's for good"));
    gateway.stderr.wait(0, &["the channel was ended", "whose response had begun"]);
    assert_eq!(outcome(&gateway, 2).0, "handed-off");
}

#[test]
fn a_request_is_revoked_by_the_operator() {
    let (gateway, scripts) = start(1, "");
    let mut client = gateway.client();
    client.get("/");
    let channel = &mut scripts[0].accept(10);
    let lent = channel.lent();
    channel.take(&lent);
    let id = lent.metadata("/id").as_str().expect("text").to_owned();
    let path = gateway.path("admin.sock");
    let revoke = |id: &str| {
        crate::support::eventually("it is known", || {
            let (status, body) = crate::admin(&path, "POST", &format!("/handoffs/{id}/revoke"));
            (status != 404).then_some((status, body))
        })
    };
    let (status, _) = revoke(&id);
    assert_eq!(status, 202);
    let (frame, _) = channel.frame();
    let is_it = matches!(&frame, Frame::Revoke { id, .. } if *id == lent.id);
    assert!(is_it, "{frame:?}");
    channel.done(lent, Report { result: Outcome::Revoked, ..report(200, 0) });
    assert_eq!(client.rest(), "");
    assert_eq!(gateway.log_line(1)["error"], "revoked");
    let (status, _) = crate::admin(&path, "POST", &format!("/handoffs/{id}/revoke"));
    assert_eq!(status, 404, "it is over");
}
