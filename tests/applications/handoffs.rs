//! What an application says with `X-Socket-Handoff` and `X-Handoff-Data` is done, with the codes that mod_socket_handoff
//! has (A1, A2, A4, A6, A10).

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;

use super::application::Application;
use super::support::{Client, Daemon, Gateway, folder};
use super::{BASIS, behind, daemon, get, hands_over, start, words};

/// An application that answers every request like this.
fn says(answer: String) -> Application {
    Application::start(move |_| answer.clone())
}

#[test]
fn a_client_goes_to_the_daemon_that_the_application_names() {
    let folder = folder();
    let socket = folder.path().join("d.sock");
    let daemon = daemon(&folder, "d", "seqpacket", &[]);
    let application = says(hands_over(&socket, "who=alice", ""));
    let gateway = start(folder, &behind(&application, ""));
    let mut client = gateway.client();
    client.send(get("/a?b"));
    let event = daemon.wait("got", 1);
    assert_eq!((&event["data"], &event["port"]), (&json!("who=alice"), &json!(client.port())));
    let answer = client.rest();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nfrom daemon\n"), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");

    let line = gateway.log_line(1);
    let found = words(&line, ["outcome", "to", "route", "target"]);
    assert_eq!(found, ["handed-off", socket.to_str().expect("text"), "/", "/a?b"], "{line}");
    // One try of the application, one of the daemon.
    assert_eq!((&line["attempts"], &line["status"], &line["error"]), (&json!(2), &json!(null), &json!(null)), "{line}");
    assert_eq!((&line["policy"], &line["decision"]), (&json!(null), &json!(null)), "{line}");
    let data = gateway.log().iter().map(ToString::to_string).collect::<String>() + &gateway.stderr.all().concat();
    assert!(!data.contains("alice"), "{data}");
    // Its answer was not read to its end: nobody else is asked over that connection.
    application.has_open(0);
}

/// An application knows paths; how the daemon behind one is spoken to, and who may be one, the configuration knows that has
/// it among a target's sockets.
#[test]
fn a_path_that_is_a_targets_socket_is_handed_over_to_as_the_target_says() {
    let folder = folder();
    let _daemons = ["stream", "uid", "fdpass", "other"].map(|name| daemon(&folder, name, "seqpacket", &[]));
    let here = folder.path().to_owned();
    let application =
        Application::start(move |asked| hands_over(&here.join(&asked.target()[1..]).with_extension("sock"), "", ""));
    let others_uid = nix::unistd::getuid().as_raw() + 1;
    let targets = format!(
        "[target.a]\nsockets = [\"DIR/none.sock\", \"DIR/stream.sock\"]\ndialect = \"stream\"\n\
         [target.b]\nsockets = [\"DIR/uid.sock\"]\nallow_uids = [{others_uid}]\n\
         [target.c]\nsockets = [\"DIR/fdpass.sock\"]\ndialect = \"fdpass\"\n"
    );
    let gateway = start(folder, &behind(&application, &targets));
    // These daemons speak seqpacket, which is not tried where the target says another; fdpass leaves no room for data.
    for (at, (path, status)) in
        [("/stream", 503), ("/uid", 503), ("/fdpass", 200), ("/other", 200)].into_iter().enumerate()
    {
        assert_eq!(gateway.status(path), status, "{path}");
        let line = gateway.log_line(at + 1);
        assert!(line["to"].as_str().is_some_and(|to| to.ends_with(&format!("{path}.sock"))), "{line}");
    }
}

/// Whatever it answers: also where it was refused, or has failed.
#[test]
fn any_status_hands_over_and_the_first_such_field_counts() {
    let folder = folder();
    let [first, second] = ["first", "second"].map(|name| daemon(&folder, name, "seqpacket", &["name=first"]));
    let [a, b] = ["first", "second"].map(|name| folder.path().join(name).with_extension("sock").display().to_string());
    let application = Application::start(move |asked| {
        let status = asked.target().trim_start_matches('/');
        let length = if matches!(status, "204" | "304") { "" } else { "Content-Length: 0\r\n" };
        format!(
            "HTTP/1.1 {status} Whatever\r\nx-socket-handoff: {a}\r\nX-SOCKET-HANDOFF: {b}\r\n\
             X-Handoff-Data: one\r\nX-Handoff-Data: two\r\n{length}\r\n"
        )
    });
    let gateway = start(folder, &behind(&application, ""));
    let statuses = [200, 201, 204, 206, 302, 304, 400, 401, 403, 404, 500, 502, 503];
    for (at, status) in statuses.iter().enumerate() {
        let answer = gateway.ask(&get(&format!("/{status}")));
        assert!(answer.ends_with("\r\n\r\nfrom first\n"), "{status}: {answer}");
        assert_eq!(first.wait("got", at + 1)["data"], "one", "{status}");
        assert_eq!(gateway.log_line(at + 1)["outcome"], "handed-off");
    }
    assert!(second.events("accepted").is_empty());
}

#[test]
fn an_interim_answer_and_trailers_hand_nobody_over() {
    let folder = folder();
    let daemon = daemon(&folder, "d", "seqpacket", &[]);
    let fields = format!("X-Socket-Handoff: {}\r\nX-Handoff-Data: d\r\n", folder.path().join("d.sock").display());
    let application = Application::start(move |asked| match asked.target() {
        "/interim" => format!("HTTP/1.1 103 Early Hints\r\n{fields}\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        _ => format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n{fields}\r\n"),
    });
    let gateway = start(folder, &behind(&application, ""));
    for path in ["/interim", "/trailers"] {
        let answer =
            gateway.ask(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nConnection: TE, close\r\n\r\n"));
        assert!(answer.contains("ok") && !answer.to_ascii_lowercase().contains("handoff"), "{answer}");
    }
    assert!(daemon.events("accepted").is_empty());
}

#[test]
fn a_head_request_is_handed_over_as_well() {
    let folder = folder();
    let daemon = daemon(&folder, "d", "seqpacket", &[]);
    let socket = folder.path().join("d.sock").display().to_string();
    let application = says(format!("HTTP/1.1 200 OK\r\nX-Socket-Handoff: {socket}\r\nContent-Length: 7\r\n\r\n"));
    let gateway = start(folder, &behind(&application, ""));
    let answer = gateway.ask("HEAD / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(answer.ends_with("from daemon\n"), "{answer}");
    // No data is one NUL byte.
    assert_eq!((&daemon.wait("got", 1)["data"], &daemon.wait("got", 1)["bytes"]), (&json!("\0"), &json!(1)));
}

/// Applications send this much: not a byte of it is lost, and what is past the limit is no half message.
#[test]
fn data_arrives_whole_or_not_at_all() {
    let folder = folder();
    let packets = daemon(&folder, "packets", "seqpacket", &[]);
    let stream = daemon(&folder, "stream", "stream", &[]);
    let at = |name: &str| folder.path().join(name).with_extension("sock");
    let (to_packets, to_stream) = (at("packets"), at("stream"));
    let data =
        |length: usize| (0..length).map(|at| char::from(b'!' + u8::try_from(at * 7 % 94).expect("small"))).collect();
    let application = Application::start(move |asked| {
        let (kind, length) = asked.target()[1..].split_once('/').expect("two");
        let data: String = data(length.parse().expect("a number"));
        hands_over(if kind == "packets" { &to_packets } else { &to_stream }, &data, "")
    });
    let gateway = start(folder, &behind(&application, ""));
    for (count, length) in [1, 200 << 10, 1 << 20].into_iter().enumerate() {
        assert!(gateway.ask(&get(&format!("/stream/{length}"))).ends_with("from daemon\n"), "{length}");
        let event = stream.wait("got", count + 1);
        assert_eq!((&event["bytes"], &event["data"]), (&json!(length), &json!(data(length))));
    }
    assert!(gateway.ask(&get("/packets/150000")).ends_with("from daemon\n"));
    assert_eq!(packets.wait("got", 1)["data"], json!(data(150_000)));

    let over = (1 << 20) + 1;
    let mut client = gateway.client();
    client.send(get(&format!("/stream/{over}")));
    assert_eq!(client.answer().status, 500);
    let line = gateway.log_line(5);
    assert_eq!(words(&line, ["outcome", "to"]), ["refused", &gateway.path("stream.sock").display().to_string()]);
    assert_eq!(line["error"], format!("{over} bytes of data, over 1048576 (handoff_data_bytes_max)"));
    // The client is ours still.
    client.send(get("/stream/1"));
    assert!(client.rest().ends_with("from daemon\n"));
    stream.wait("got", 4);
    assert_eq!((stream.events("got").len(), packets.events("got").len()), (4, 1));
}

#[test]
fn a_smaller_limit_of_data_holds() {
    let folder = folder();
    let daemon = daemon(&folder, "d", "seqpacket", &[]);
    let socket = folder.path().join("d.sock");
    let application = Application::start(move |asked| hands_over(&socket, &asked.target()[1..], ""));
    let gateway = start(folder, &format!("[limits]\nhandoff_data_bytes_max = \"10B\"\n{}", behind(&application, "")));
    assert!(gateway.ask(&get("/123456789a")).ends_with("from daemon\n"));
    assert_eq!(daemon.wait("got", 1)["data"], "123456789a");
    assert_eq!(gateway.status("/123456789ab"), 500);
    assert_eq!(gateway.log_line(2)["error"], "11 bytes of data, over 10 (handoff_data_bytes_max)");
}

/// A6, and what is logged about each.
#[test]
fn what_cannot_be_handed_over_is_answered_and_the_client_goes_on() {
    let folder = folder();
    let outside = super::folder();
    let forbidden = Daemon::start(&outside.path().join("d.sock"), "seqpacket", "serve", &[]);
    let chat = daemon(&folder, "chat", "seqpacket", &[]);
    std::os::unix::fs::symlink(outside.path(), folder.path().join("link")).expect("a link");
    std::os::unix::fs::symlink(folder.path().join("chat.sock"), folder.path().join("linked.sock")).expect("a link");
    fs::write(folder.path().join("file"), "").expect("written");
    let here = folder.path().display().to_string();
    let there = outside.path().display().to_string();
    let cases = [
        ("", 403, "policy-error"),
        ("chat", 403, "policy-error"),
        ("chat/0", 403, "policy-error"),
        ("chat.sock", 403, "policy-error"),
        ("./chat.sock", 403, "policy-error"),
        ("@abstract", 403, "policy-error"),
        (&format!("{there}/d.sock"), 403, "policy-error"),
        (&format!("{here}/../{}/d.sock", &there[5..]), 403, "policy-error"),
        (&format!("{here}/x/../chat.sock"), 403, "policy-error"),
        (&format!("{here}/link/d.sock"), 403, "policy-error"),
        (&format!("{here}/linked.sock"), 403, "policy-error"),
        (&format!("{here}x/chat.sock"), 403, "policy-error"),
        (&here, 403, "policy-error"),
        (&format!("{here}/{}", "x".repeat(300)), 403, "policy-error"),
        (&format!("{here}/%2e%2e/d.sock"), 503, "refused"),
        (&format!("{here}/none.sock"), 503, "refused"),
        (&format!("{here}/file"), 503, "refused"),
        (&format!("unix:{here}/chat.sock"), 403, "policy-error"),
        (&format!("{here}/chat\u{e9}.sock"), 403, "policy-error"),
    ]
    .map(|(path, status, outcome)| (path.to_owned(), status, outcome));
    let paths: Vec<_> = cases.iter().map(|(path, ..)| path.clone()).collect();
    let application = Application::start(move |asked| {
        let path = &paths[asked.target()[1..].parse::<usize>().expect("a number")];
        format!("HTTP/1.1 200 OK\r\nX-Socket-Handoff: {path}\r\nContent-Length: 6\r\n\r\nsecret")
    });
    let targets = "[target.chat]\nsockets = [\"DIR/chat.sock\"]\n";
    let gateway = start(folder, &behind(&application, targets));
    let mut client = gateway.client();
    for (at, (path, status, outcome)) in cases.iter().enumerate() {
        client.get(&format!("/{at}"));
        let answer = client.answer();
        assert_eq!(answer.status, *status, "{path:?}: {answer:?}");
        assert!(!answer.body.contains("secret"), "{answer:?}");
        assert_eq!(answer.header("retry-after"), (*status == 503).then_some("1"), "{path:?}");
        assert_eq!(answer.header("connection"), None, "{path:?}");
        let line = gateway.log_line(at + 1);
        assert_eq!((&line["outcome"], &line["status"]), (&json!(outcome), &json!(status)), "{path:?}: {line}");
        assert!(line["error"].is_string(), "{path:?}: {line}");
        if path.starts_with('/') && path.is_ascii() {
            assert_eq!(line["to"], *path, "{line}");
        }
    }
    assert!(forbidden.events("accepted").is_empty() && chat.events("accepted").is_empty());
}

/// A4: the prefix is `/run/` where nothing is said, for every route and listener.
#[test]
fn the_prefix_has_a_default() {
    let folder = folder();
    let daemon = daemon(&folder, "d", "seqpacket", &[]);
    let socket = folder.path().join("d.sock");
    let application = Application::start(move |asked| match asked.target() {
        "/run" => hands_over(&PathBuf::from("/run/baton-test-none/d.sock"), "", ""),
        _ => hands_over(&socket, "", ""),
    });
    let toml = behind(&application, "").replace("allowed_prefixes = [\"DIR/\"]\n", "");
    let gateway = start(folder, &toml);
    assert_eq!((gateway.status("/run"), gateway.status("/elsewhere")), (503, 403));
    assert!(daemon.events("accepted").is_empty());
}

/// A4: the times and the number of tries are those of `[handoff]`.
#[test]
fn a_daemon_that_does_not_take_the_client_is_tried_again_and_not_for_ever() {
    let folder = folder();
    let drops = Daemon::start(&folder.path().join("drops.sock"), "seqpacket", "drop", &[]);
    let _deaf = Daemon::start(&folder.path().join("deaf.sock"), "seqpacket", "deaf", &[]);
    let here = folder.path().to_owned();
    let application =
        Application::start(move |asked| hands_over(&here.join(&asked.target()[1..]).with_extension("sock"), "", ""));
    let toml = behind(&application, "").replace("retries = 0", "retries = 2\nack_timeout = \"200ms\"");
    let gateway = start(folder, &toml);
    assert_eq!(gateway.status("/drops"), 503);
    drops.wait("accepted", 3);
    // One try of the application, three of the daemon.
    let line = gateway.log_line(1);
    assert_eq!((&line["attempts"], &line["outcome"]), (&json!(4), &json!("refused")), "{line}");

    assert_eq!(gateway.status("/none"), 503);
    assert_eq!(gateway.log_line(2)["attempts"], 4);

    let began = Instant::now();
    let mut client = gateway.client();
    client.get("/deaf");
    let answer = client.answer();
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    // It may still be read: sealed.
    assert_eq!((answer.header("connection"), client.rest().as_str()), (Some("close"), ""));
    assert!(began.elapsed() >= Duration::from_millis(200));
    assert_eq!(drops.events("accepted").len(), 3);
}

/// A10.
#[test]
fn fields_that_the_configuration_names_join_data_that_is_an_object() {
    let folder = folder();
    let daemon = daemon(&folder, "d", "seqpacket", &[]);
    let socket = folder.path().join("d.sock");
    let cases = [
        (
            "{\"room\": 7}",
            "Set-Cookie: a=1; Path=/\r\n",
            "{\"room\": 7,\"response_headers\":{\"set-cookie\":\"a=1; Path=/\"}}",
        ),
        (
            "{}",
            "set-cookie: a=1\r\nX-One: \"1\"\r\nX-Two: 2\r\nSET-COOKIE: b=2\r\n",
            "{\"response_headers\":{\"set-cookie\":[\"a=1\",\"b=2\"],\"x-one\":\"\\\"1\\\"\"}}",
        ),
        ("{\"a\":1.0}", "X-Two: 2\r\n", "{\"a\":1.0}"),
        ("{\"response_headers\":{}}", "X-One: 1\r\n", "{\"response_headers\":{}}"),
        ("[1]", "X-One: 1\r\n", "[1]"),
        ("plain", "X-One: 1\r\n", "plain"),
        ("", "X-One: 1\r\n", "\0"),
    ];
    let application = Application::start(move |asked| {
        let (data, fields, _) = cases[asked.target()[1..].parse::<usize>().expect("a number")];
        hands_over(&socket, data, fields)
    });
    let gateway = start(folder, &behind(&application, ""));
    for (at, (data, _, expected)) in cases.iter().enumerate() {
        assert!(gateway.ask(&get(&format!("/{at}"))).ends_with("from daemon\n"));
        assert_eq!(daemon.wait("got", at + 1)["data"], *expected, "{data}");
    }
}

/// The end of the request is the end of the client's connection; the application's is closed, whatever it still says.
#[test]
fn the_rest_of_the_answer_is_not_waited_for_and_the_connection_to_the_application_is_not_kept() {
    let folder = folder();
    let daemon = Daemon::start(&folder.path().join("d.sock"), "seqpacket", "stream", &[]);
    let socket = folder.path().join("d.sock").display().to_string();
    let application = Application::start(move |asked| match asked.target() {
        // A body that never comes.
        "/over" => format!("HTTP/1.1 200 OK\r\nX-Socket-Handoff: {socket}\r\nContent-Length: 1000000\r\n\r\npart"),
        "/empty" => format!("HTTP/1.1 200 OK\r\nX-Socket-Handoff: {socket}\r\nContent-Length: 0\r\n\r\n"),
        _ => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned(),
    });
    let gateway = start(folder, &behind(&application, ""));
    let sockets_at_rest = gateway.sockets();
    assert_eq!((gateway.status("/plain"), gateway.status("/plain")), (200, 200));
    assert_eq!(application.made(), 1, "a connection is kept");
    application.has_open(1);
    let mut clients = Vec::new();
    for (count, path) in [(1, "/over"), (2, "/empty")] {
        let mut client = gateway.client();
        client.get(path);
        client.until("tick 1\n");
        daemon.wait("got", count);
        application.has_open(0);
        clients.push(client);
    }
    // Both stream, and nothing of them is here.
    super::support::eventually("the sockets are back", || (gateway.sockets() == sockets_at_rest).then_some(()));
    clients.iter_mut().for_each(|client: &mut Client| drop(client.until("tick 5\n")));
    assert_eq!(gateway.status("/plain"), 200);
    assert_eq!(application.made(), 3, "one was used twice, none for another after a handoff");
}

/// A daemon's own head, in the dialects that have the gateway write one, is not for a path that was named at run time.
#[test]
fn it_is_off_unless_the_configuration_says_so() {
    let folder = folder();
    let daemon = daemon(&folder, "d", "seqpacket", &[]);
    let socket = folder.path().join("d.sock");
    let application = says(hands_over(&socket, "secret", ""));
    for setting in ["", "handoff_headers = false\n"] {
        let toml = behind(&application, "").replace("handoff_headers = true\n", setting);
        let gateway: Gateway = start(super::folder(), &toml);
        let answer = gateway.ask("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        assert!(answer.ends_with("\r\n\r\nnothing") && !answer.to_ascii_lowercase().contains("handoff"), "{answer}");
        assert!(!answer.contains("secret"), "{answer}");
        assert_eq!(gateway.log_line(1)["outcome"], "proxied");
    }
    assert!(daemon.events("accepted").is_empty());
    assert!(BASIS.contains("retries = 0"));
}
