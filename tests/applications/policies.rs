//! Policies about answers: each of those that were asked about the request, in their order, with the client still intact.

use serde_json::json;

use super::application::Application;
use super::guests::{Action, Decision, ECHOES, Edits, Guest, SAYS_CARRY_AND_X_ONE, pass, plain};
use super::support::{Daemon, Gateway, eventually, folder};
use super::{daemon, get, start, words};
use tempfile::TempDir;

/// An application and another one.
struct Two {
    app: Application,
    other: Application,
}

const ANSWER: &str = "HTTP/1.1 201 Created\r\nX-One: 1\r\nX-Two: 2\r\nX-Two: 3\r\nContent-Length: 3\r\n\r\napp";

fn two() -> Two {
    Two {
        app: Application::start(|_| ANSWER.to_owned()),
        other: Application::start(|_| {
            "HTTP/1.1 202 Accepted\r\nX-One: other\r\nContent-Length: 5\r\n\r\nother".to_owned()
        }),
    }
}

/// A gateway whose only route asks these policies, and lets `app` answer; `keys` are further keys of each policy.
fn gateway(folder: TempDir, two: &Two, policies: &[&str], keys: &str) -> Gateway {
    let (app, other) = (two.app.address(), two.other.address());
    let tables: String = policies
        .iter()
        .map(|name| format!("[policy.{name}]\nmodule = \"DIR/{name}.wat\"\ndeadline = \"1s\"\n{keys}\n"))
        .collect();
    start(
        folder,
        &format!(
            "{}[target.chat]\nsockets = [\"DIR/chat.sock\"]\n[target.spare]\nsockets = [\"DIR/spare.sock\"]\n\
             [upstream.app]\naddress = \"{app}\"\n[upstream.other]\naddress = \"{other}\"\n{tables}\
             [[route]]\npath = \"/\"\npolicies = {policies:?}\ndefault = {{ proxy = \"app\" }}\nLISTEN",
            super::BASIS
        ),
    )
}

/// What policies said, in the order in which they did.
fn said(gateway: &Gateway) -> Vec<String> {
    let own = |line: &String| Some(line.split_once(" INFO ")?.1.split_once(" policy=\"")?.0.to_owned());
    gateway.stderr.all().iter().filter_map(own).collect()
}

fn close(path: &str) -> String {
    get(path).replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")
}

/// Removed first, then set, then appended; the next one sees what the one before has made of it.
#[test]
fn edits_reach_the_client_and_the_next_policy() {
    let (folder, two) = (folder(), two());
    let edits = Edits {
        remove: &["x-two"],
        set: &[("x-one", "first"), ("x-new", "n")],
        append: &[("x-two", "4"), ("x-one", "again")],
    };
    Guest::new()
        .on_request(&Decision {
            action: Action::Pass(Edits::default()),
            carry: "carry one",
            annotations: &[("a", "request")],
        })
        .on_response(
            SAYS_CARRY_AND_X_ONE,
            &Decision { action: Action::Pass(edits), carry: "one more", annotations: &[("a", "response"), ("b", "1")] },
        )
        .on_complete()
        .write(&folder, "first");
    Guest::new().on_request(&pass()).write(&folder, "between");
    let second =
        Edits { set: &[("x-one", "second"), ("content-length", "99"), ("connection", "x")], ..Edits::default() };
    Guest::new()
        .on_request(&Decision { action: Action::Pass(Edits::default()), carry: "carry two", annotations: &[] })
        .on_response(SAYS_CARRY_AND_X_ONE, &plain(Action::Pass(second)))
        .write(&folder, "second");
    let gateway = gateway(folder, &two, &["first", "between", "second"], "");
    let answer = gateway.ask(&close("/"));
    let lower = answer.to_ascii_lowercase();
    let mut fields: Vec<_> = lower.lines().filter(|line| line.starts_with("x-")).collect();
    fields.sort_unstable();
    assert_eq!(fields, ["x-new: n", "x-one: second", "x-two: 4"], "{answer}");
    assert!(answer.starts_with("HTTP/1.1 201 ") && answer.ends_with("\r\n\r\napp"), "{answer}");
    assert_eq!(answer.to_ascii_lowercase().matches("content-length: 3").count(), 1, "{answer}");
    let line = gateway.log_line(1);
    assert_eq!(line["annotations"], json!({"a": "response", "b": "1"}));
    assert_eq!(words(&line, ["outcome", "decision", "policy", "to"]), ["proxied", "pass", "second", "app"], "{line}");
    eventually("the end was told", || (said(&gateway).len() == 7).then_some(()));
    assert_eq!(said(&gateway), ["carry one", "1", "carry two", "first", "proxied", "app", "one more"]);
}

#[test]
fn an_answer_can_be_replaced_and_the_imports_say_what_it_was() {
    let (folder, two) = (folder(), two());
    Guest::new().on_request(&pass()).on_response(ECHOES, &pass()).write(&folder, "echoes");
    let gateway = gateway(folder, &two, &["echoes"], "");
    let mut client = gateway.client();
    for _ in 0..2 {
        client.get("/");
        let answer = client.answer();
        assert_eq!(
            (answer.status, answer.body.as_str(), answer.header("x-one")),
            (202, "app", Some("1")),
            "{answer:?}"
        );
        assert_eq!(answer.head.to_ascii_lowercase().matches("x-two: ").count(), 2, "{answer:?}");
    }
    let line = gateway.log_line(2);
    let found = words(&line, ["outcome", "decision", "policy", "to"]);
    assert_eq!(
        (found, &line["status"]),
        (["responded", "respond", "echoes", "app"].map(str::to_owned), &json!(202)),
        "{line}"
    );
}

#[test]
fn another_upstream_is_asked_without_the_body_that_the_first_one_had() {
    let (folder, two) = (folder(), two());
    let edits = Edits { remove: &["x-mine"], set: &[("x-added", "yes")], append: &[] };
    let next = Action::Proxy { upstream: "other", path: Some("/there?q=1"), edits, inspects: false };
    Guest::new().on_request(&pass()).on_response("", &plain(next)).write(&folder, "moves");
    let gateway = gateway(folder, &two, &["moves"], "");
    for (at, (method, expected)) in [("POST", "GET"), ("HEAD", "HEAD"), ("PUT", "GET")].into_iter().enumerate() {
        let body = if method == "HEAD" { "" } else { "hello" };
        let answer = gateway.ask(&format!(
            "{method} /here HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Mine: 1\r\nContent-Type: text/x\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
        let asked = two.other.asked().swap_remove(at);
        let head = asked.head.to_ascii_lowercase();
        assert!(asked.head.starts_with(&format!("{expected} /there?q=1 HTTP/1.1\r\n")), "{head}");
        assert!(head.contains("x-added: yes\r\n") && !head.contains("x-mine") && asked.body.is_empty(), "{head}");
        // There is none, and none is told of.
        assert!(!head.contains("content-length") && !head.contains("transfer-encoding"), "{head}");
        assert_eq!(two.app.asked()[at].body, body.as_bytes());
        let line = gateway.log_line(at + 1);
        assert_eq!(words(&line, ["outcome", "decision", "to"]), ["proxied", "proxy", "other"], "{line}");
        assert_eq!(line["attempts"], 2, "{line}");
    }
}

/// It would be asked about its own answer for ever.
#[test]
fn one_that_always_has_another_asked_is_stopped() {
    let (folder, two) = (folder(), two());
    let again = Action::Proxy { upstream: "other", path: None, edits: Edits::default(), inspects: true };
    Guest::new().on_request(&pass()).on_response("", &plain(again)).write(&folder, "again");
    let gateway = gateway(folder, &two, &["again"], "");
    assert_eq!(gateway.status("/"), 502);
    assert_eq!((two.app.asked().len(), two.other.asked().len()), (1, 4));
    let line = gateway.log_line(1);
    assert_eq!(words(&line, ["outcome"]), ["upstream-error"], "{line}");
}

#[test]
fn who_proxies_says_whether_it_wants_to_see_the_answer() {
    let (folder, two) = (folder(), two());
    for (name, inspects) in [("looks", true), ("trusts", false)] {
        let other = Action::Proxy { upstream: "other", path: None, edits: Edits::default(), inspects };
        let edits = Edits { set: &[("x-one", "edited")], ..Edits::default() };
        Guest::new().on_request(&plain(other)).on_response("", &plain(Action::Pass(edits))).write(&folder, name);
    }
    let seen = Edits { append: &[("x-seen", "first")], ..Edits::default() };
    Guest::new().on_request(&pass()).on_response("", &plain(Action::Pass(seen))).write(&folder, "first");
    for (name, expected) in [("looks", "x-one: edited"), ("trusts", "x-one: other")] {
        let copy = super::folder();
        for file in [name, "first"].map(|name| format!("{name}.wat")) {
            std::fs::copy(folder.path().join(&file), copy.path().join(&file)).expect("copied");
        }
        let gateway = gateway(copy, &two, &["first", name], "");
        let answer = gateway.ask(&close("/")).to_ascii_lowercase();
        // Whoever passed the request on is asked all the same.
        assert!(answer.contains(expected) && answer.contains("x-seen: first"), "{name}: {answer}");
    }
}

#[test]
fn an_answer_becomes_a_handoff() {
    let (folder, two) = (folder(), two());
    let chat = daemon(&folder, "chat", "seqpacket", &["peek=1"]);
    let handoff = Action::Handoff { target: "chat", data: "from the hook", head: None, alternates: &[] };
    Guest::new().on_request(&pass()).on_response("", &plain(handoff)).on_complete().write(&folder, "hands");
    let gateway = gateway(folder, &two, &["hands"], "");
    let mut client = gateway.client();
    client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhelloGET /next HTTP/1.1\r\n");
    let event = chat.wait("got", 1);
    // The body was the application's, what is behind it is not.
    assert_eq!((&event["data"], &event["first"]), (&json!("from the hook"), &json!("GET /next HTTP/1.1\r\n")));
    let answer = client.rest();
    assert!(answer.ends_with("from daemon\n") && !answer.contains("201"), "{answer}");
    assert_eq!(two.app.asked()[0].body, b"hello");
    two.app.has_open(0);
    let line = gateway.log_line(1);
    assert_eq!(
        words(&line, ["outcome", "decision", "policy", "to"]),
        ["handed-off", "handoff", "hands", "chat"],
        "{line}"
    );
    eventually("the end was told", || (said(&gateway) == ["handed-off", "chat", ""]).then_some(()));
}

#[test]
fn a_handoff_with_a_head_is_a_daemon_that_writes_the_body() {
    let (folder, two) = (folder(), two());
    let chat = daemon(&folder, "chat", "seqpacket", &["body=1"]);
    let head = Some((203, &[("set-cookie", "a=1"), ("x-one", "head")][..]));
    let handoff = Action::Handoff { target: "chat", data: "d", head, alternates: &[] };
    Guest::new().on_request(&pass()).on_response("", &plain(handoff)).write(&folder, "hands");
    let gateway = gateway(folder, &two, &["hands"], "");
    let answer = gateway.ask(&get("/"));
    assert!(answer.starts_with("HTTP/1.1 203 ") && answer.ends_with("\r\n\r\nfrom daemon\n"), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("set-cookie: a=1\r\nx-one: head\r\n"), "{answer}");
    assert_eq!(chat.wait("got", 1)["data"], "d");
    // What a HEAD asks for is there already.
    let answer = gateway.ask("HEAD / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 203 ") && answer.ends_with("\r\n\r\n"), "{answer}");
    assert_eq!(chat.events("accepted").len(), 1);
}

/// The hook that is asked about a failed handoff is that of the policy that decided it, with what that policy carried last.
#[test]
fn the_policy_that_decided_about_the_answer_hears_of_its_failure() {
    let (folder, two) = (folder(), two());
    let spare = daemon(&folder, "spare", "seqpacket", &[]);
    let to = |target, data| Action::Handoff { target, data, head: None, alternates: &[] };
    Guest::new()
        .on_request(&Decision { action: Action::Pass(Edits::default()), carry: "old", annotations: &[] })
        .on_response("", &Decision { action: to("chat", "first"), carry: "new", annotations: &[] })
        .on_handoff_failed(&plain(to("spare", "second")))
        .write(&folder, "decides");
    Guest::new()
        .on_request(&Decision { action: Action::Pass(Edits::default()), carry: "not mine", annotations: &[] })
        .on_response("(unreachable)", &pass())
        .on_handoff_failed(&plain(Action::Abort))
        .write(&folder, "later");
    let gateway = gateway(folder, &two, &["decides", "later"], "");
    assert!(gateway.ask(&get("/")).ends_with("from daemon\n"));
    assert_eq!(spare.wait("got", 1)["data"], "second");
    assert_eq!(said(&gateway), ["new"]);
    let line = gateway.log_line(1);
    assert_eq!(words(&line, ["outcome", "policy", "to"]), ["handed-off", "decides", "spare"], "{line}");
}

#[test]
fn a_handoff_that_nobody_takes_is_answered_503() {
    let (folder, two) = (folder(), two());
    let handoff = Action::Handoff { target: "chat", data: "", head: None, alternates: &["spare"] };
    Guest::new().on_request(&pass()).on_response("", &plain(handoff)).write(&folder, "hands");
    let gateway = gateway(folder, &two, &["hands"], "");
    let mut client = gateway.client();
    for at in 1..3 {
        client.get("/");
        let answer = client.answer();
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{answer:?}");
        let line = gateway.log_line(at);
        assert_eq!(words(&line, ["outcome", "to"]), ["refused", "spare"], "{line}");
    }
}

#[test]
fn abort_closes_and_nothing_of_the_answer_is_seen() {
    let (folder, two) = (folder(), two());
    Guest::new().on_request(&pass()).on_response("", &plain(Action::Abort)).write(&folder, "aborts");
    let gateway = gateway(folder, &two, &["aborts"], "");
    assert_eq!(gateway.ask(&get("/")), "");
    let line = gateway.log_line(1);
    assert_eq!(words(&line, ["outcome", "decision"]), ["aborted", "abort"], "{line}");
    two.app.has_open(0);
}

#[test]
fn one_that_fails_denies_or_is_passed_over() {
    for (on_error, status) in [("deny", 503), ("pass", 201)] {
        for body in ["(unreachable)", "(loop $again (br $again))", "(return (i32.const 3))"] {
            let (folder, two) = (folder(), two());
            Guest::new().on_request(&pass()).on_response(body, &pass()).write(&folder, "fails");
            let edits = Edits { set: &[("x-two", "seen")], ..Edits::default() };
            Guest::new().on_request(&pass()).on_response("", &plain(Action::Pass(edits))).write(&folder, "next");
            let keys = format!("on_error = \"{on_error}\"").replace("1s", "100ms");
            let gateway = gateway(folder, &two, &["fails", "next"], &keys);
            let mut client = gateway.client();
            client.get("/");
            let answer = client.answer();
            assert_eq!(answer.status, status, "{body}: {answer:?}");
            let expected = (status == 201).then_some("seen");
            assert_eq!(answer.header("x-two"), expected, "{answer:?}");
            let line = gateway.log_line(1);
            let outcome = if status == 503 { "policy-error" } else { "proxied" };
            assert_eq!(words(&line, ["outcome"]), [outcome], "{line}");
            assert!(line["error"].is_string(), "{line}");
            gateway.stderr.wait(0, &["policy failed", "hook=\"on-response\""]);
            // The client is ours still.
            client.get("/");
            assert_eq!(client.answer().status, status);
        }
    }
}

/// Also in the response phase a policy reaches only what it was given.
#[test]
fn a_policy_is_held_to_what_it_may_name() {
    let (outside, two) = (folder(), two());
    let evil = Daemon::start(&outside.path().join("d.sock"), "seqpacket", "serve", &[]);
    let there = outside.path().join("d.sock").display().to_string();
    let handoff = |target| Action::Handoff { target, data: "", head: None, alternates: &[] };
    let proxy = |upstream| Action::Proxy { upstream, path: None, edits: Edits::default(), inspects: false };
    let cases = [
        ("forbidden target", handoff("spare")),
        ("unknown target", handoff("nobody")),
        ("outside", handoff(&there)),
        ("forbidden upstream", proxy("other")),
        ("unknown upstream", proxy("nobody")),
    ];
    for (name, action) in cases {
        let folder = super::folder();
        let spare = daemon(&folder, "spare", "seqpacket", &[]);
        Guest::new().on_request(&pass()).on_response("", &plain(action)).write(&folder, "reaches");
        let gateway = gateway(folder, &two, &["reaches"], "targets = [\"chat\"]\nupstreams = [\"app\"]");
        assert_eq!(gateway.status("/"), 403, "{name}");
        assert_eq!(words(&gateway.log_line(1), ["outcome"]), ["policy-error"], "{name}");
        assert!(spare.events("accepted").is_empty(), "{name}");
    }
    assert!(evil.events("accepted").is_empty() && two.other.asked().is_empty());
}

/// Nor by a field that an application may set: the application's word is not the policy's.
#[test]
fn a_policy_cannot_speak_for_the_application() {
    let (folder, two) = (folder(), two());
    let spare = daemon(&folder, "spare", "seqpacket", &[]);
    let path = folder.path().join("spare.sock").display().to_string();
    let fields = [("x-socket-handoff", path.as_str()), ("x-accel-redirect", "/inside")];
    let edits = Edits { set: &fields, append: &fields, ..Edits::default() };
    Guest::new().on_request(&pass()).on_response("", &plain(Action::Pass(edits))).write(&folder, "speaks");
    let (app, keys) = (two.app.address(), "targets = [\"chat\"]");
    let gateway = start(
        folder,
        &format!(
            "{}[target.chat]\nsockets = [\"DIR/chat.sock\"]\n[upstream.app]\naddress = \"{app}\"\nhandoff_headers = true\n\
             [policy.speaks]\nmodule = \"DIR/speaks.wat\"\ndeadline = \"1s\"\n{keys}\n\
             [[route]]\npath = \"/\"\npolicies = [\"speaks\"]\ndefault = {{ proxy = \"app\" }}\n\
             [[route]]\npath = \"/inside\"\ninternal = true\ndefault = {{ respond = {{ body = \"inside\" }} }}\nLISTEN",
            super::BASIS
        ),
    );
    let answer = gateway.ask(&close("/"));
    assert!(answer.ends_with("\r\n\r\napp") && !answer.to_ascii_lowercase().contains("handoff"), "{answer}");
    assert!(spare.events("accepted").is_empty());
}

/// It may take the application's word away.
#[test]
fn a_policy_can_keep_an_application_from_handing_over() {
    let folder = folder();
    let chat = daemon(&folder, "chat", "seqpacket", &[]);
    let socket = folder.path().join("chat.sock");
    let application = Application::start(move |_| super::hands_over(&socket, "d", ""));
    let edits = Edits { remove: &["x-socket-handoff"], ..Edits::default() };
    Guest::new().on_request(&pass()).on_response("", &plain(Action::Pass(edits))).write(&folder, "keeps");
    let rest = "[policy.keeps]\nmodule = \"DIR/keeps.wat\"\ndeadline = \"1s\"\n";
    let toml = super::behind(&application, rest).replace("path = \"/\"\n", "path = \"/\"\npolicies = [\"keeps\"]\n");
    let gateway = start(folder, &toml);
    assert!(gateway.ask(&close("/")).ends_with("\r\n\r\nnothing"));
    assert!(chat.events("accepted").is_empty());
}
