//! Who may get a client: users, and paths that a policy names.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::json;

use crate::support::handing_over::{at_rest, fresh, logged};
use crate::support::{Daemon, Gateway, eventually, folder};
use crate::{CASES, check_logged, check_refused_alive, configuration, data_field, from, request};

#[test]
fn a_daemon_of_another_user_gets_nothing() {
    for (kind, data, _) in CASES {
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().expect("has a name");
        let target = |name: &str, uids: &str| {
            format!("[target.{name}]\nsockets = [\"DIR/d.sock\"]\ndialect = \"{kind}\"\nallow_uids = [{uids}]\n")
        };
        let own = format!("54321, {:?}", user.name);
        let gateway = Gateway::start(&configuration("", "", &(target("chat", "54321") + &target("own", &own))));
        let before = at_rest(&gateway);
        let daemon = Daemon::start(&gateway.path("d.sock"), kind, "serve", &[]);
        let path = fresh();
        let mut client = gateway.client();
        client.send(request(&path, &data_field(data)));
        check_refused_alive(&mut client);
        let line = check_logged(&gateway, &path, "refused", &json!(503), 3);
        let error = format!("connect: the daemon runs as uid {}, which is not allowed", user.uid);
        assert_eq!(line["error"], json!(error));
        daemon.wait("accepted", 3);
        // Nothing was sent to it: neither data nor descriptor.
        eventually("it sees only ends", || (daemon.events("no-descriptor").len() == 3).then_some(()));
        assert!(daemon.events("no-descriptor").iter().all(|event| event["data"] == ""));
        drop(client);
        assert_eq!(gateway.ask(&request(&fresh(), "x-target: own\r\n")), from("daemon"));
        gateway.ledger_is_back_to(before);
    }
}

#[test]
fn a_policy_names_paths_below_the_prefixes_and_nothing_else() {
    let folder = folder();
    let dir = folder.path().to_owned();
    fs::create_dir(dir.join("ok")).unwrap();
    fs::create_dir(dir.join("okay")).unwrap();
    fs::create_dir(dir.join("ok/sub")).unwrap();
    let link = |to: &str, at: &str| std::os::unix::fs::symlink(to, dir.join(at)).unwrap();
    link("../out.sock", "ok/out-link.sock");
    link("d.sock", "ok/in-link.sock");
    link("..", "ok/dir-link");
    link("sub", "ok/sub-link");
    link("ok", "prefix-link");
    fs::write(dir.join("ok/file"), "").unwrap();
    let toml = configuration(
        "",
        "allowed_prefixes = [\"DIR/ok/\"]\nretries = 0",
        "[target.chat]\nsockets = [\"DIR/out.sock\"]\n[[listener]]\nname = \"x\"\naddress = \"127.0.0.1:0\"\n\
         [policy.narrow]\nmodule = \"POLICIES/handoff_by_fields.wat\"\ntargets = [\"chat\"]\n[[route]]\npath = \"/narrow\"\npolicies = [\"narrow\"]",
    );
    let gateway = Gateway::start_in(folder, &toml, |command| command);
    let before = at_rest(&gateway);
    let out = Daemon::start(&dir.join("out.sock"), "seqpacket", "serve", &["name=out"]);
    let beside = Daemon::start(&dir.join("okay/d.sock"), "seqpacket", "serve", &["name=beside"]);
    let inside = Daemon::start(&dir.join("ok/d.sock"), "seqpacket", "serve", &["name=in"]);
    let _stream = Daemon::start(&dir.join("ok/sub/s.sock"), "stream", "serve", &["name=sub"]);

    let at = |rest: &str| format!("{}{rest}", dir.display());
    for (target, name) in [("/ok/d.sock", "in"), ("/ok/sub/s.sock", "sub"), ("/ok//./d.sock", "in")] {
        let path = fresh();
        let target = at(target);
        assert_eq!(gateway.ask(&request(&path, &format!("x-target: {target}\r\n"))), from(name));
        let line = logged(&gateway, &path);
        assert_eq!((&line["to"], &line["attempts"]), (&json!(target), &json!(1)));
    }
    inside.wait("got", 2);

    let long = "/x".repeat(5000);
    let forbidden = [
        at("/out.sock"),
        at("/okay/d.sock"),
        at("/ok/../out.sock"),
        at("/ok/sub/../d.sock"),
        at("/ok/sub/../../out.sock"),
        at("/ok/out-link.sock"),
        at("/ok/in-link.sock"),
        at("/ok/dir-link/out.sock"),
        at("/ok/sub-link/s.sock"),
        at("/prefix-link/d.sock"),
        at("/ok"),
        at("/ok/"),
        at(&format!("/ok{long}")),
        at(&format!("/ok/{}", "x".repeat(300))),
        "ok/d.sock".to_owned(),
        "./ok/d.sock".to_owned(),
        "@abstract".to_owned(),
        "/".to_owned(),
        "/etc/passwd".to_owned(),
        "Chat".to_owned(),
        "chat ".trim_end().to_uppercase(),
        "nobody".to_owned(),
    ];
    let mut client = gateway.client();
    for target in forbidden {
        let path = fresh();
        client.send(request(&path, &format!("x-target: {target}\r\n")));
        let answer = client.answer();
        assert_eq!(answer.status, 403, "{target}");
        assert!(!answer.body.contains("sock"), "nothing of the inside is told: {answer:?}");
        let line = logged(&gateway, &path);
        assert_eq!((&line["outcome"], &line["to"]), (&json!("policy-error"), &json!(target)), "{line}");
    }
    // Allowed, and nobody there: not forbidden but unavailable. A path is taken byte by byte, `%2e` is no dot.
    for target in ["/ok/nothing.sock", "/ok/%2e%2e/out.sock", "/ok/nowhere/d.sock", "/ok/file", "/ok/sub"] {
        client.send(request(&fresh(), &format!("x-target: {}\r\n", at(target))));
        check_refused_alive(&mut client);
    }
    // A policy that is confined to targets names no paths, allowed or not.
    client.send(request("/narrow", &format!("x-target: {}\r\n", at("/ok/d.sock"))));
    assert_eq!(client.answer().status, 403);
    // The request itself names nothing: these are fields of applications' answers.
    client.send(request("/hello", &format!("X-Socket-Handoff: {}\r\nX-Handoff-Data: x\r\n", at("/ok/d.sock"))));
    assert_eq!(client.answer().body, "hello");

    assert_eq!(inside.events("accepted").len(), 2);
    assert!(out.events("accepted").is_empty() && beside.events("accepted").is_empty());
    drop(client);
    assert_eq!(gateway.ask(&request("/narrow", "x-target: chat\r\n")), from("out"));
    gateway.ledger_is_back_to(before);
}

/// The name is changed between the socket and a link to a socket outside, all the time.
#[test]
fn swapping_a_socket_for_a_link_while_handing_over_leads_nowhere_outside() {
    let folder = folder();
    let dir = folder.path().to_owned();
    fs::create_dir(dir.join("ok")).unwrap();
    let toml = configuration("", "allowed_prefixes = [\"DIR/ok/\"]\nretries = 0", "");
    let gateway = Gateway::start_in(folder, &toml, |command| command);
    let before = at_rest(&gateway);
    let out = Daemon::start(&dir.join("out.sock"), "seqpacket", "serve", &["name=out"]);
    let _inside = Daemon::start(&dir.join("ok/real.sock"), "seqpacket", "serve", &["name=in"]);
    fs::hard_link(dir.join("ok/real.sock"), dir.join("ok/d.sock")).unwrap();

    let ends = AtomicBool::new(false);
    let (mut inside, mut forbidden) = (0, 0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let (new, name) = (dir.join("ok/new"), dir.join("ok/d.sock"));
            while !ends.load(Ordering::Relaxed) {
                std::os::unix::fs::symlink("../out.sock", &new).unwrap();
                fs::rename(&new, &name).unwrap();
                fs::hard_link(dir.join("ok/real.sock"), &new).unwrap();
                fs::rename(&new, &name).unwrap();
            }
        });
        let fields = format!("Connection: close\r\nx-target: {}\r\n", dir.join("ok/d.sock").display());
        for _ in 0..400 {
            let answer = gateway.ask(&request("/hand", &fields));
            match &answer[..12] {
                "HTTP/1.1 200" => inside += u32::from(answer == from("in")),
                "HTTP/1.1 403" => forbidden += 1,
                _ => assert!(answer.starts_with("HTTP/1.1 503"), "{answer}"),
            }
        }
        ends.store(true, Ordering::Relaxed);
    });
    assert!(inside > 0 && forbidden > 0, "both were met: {inside}, {forbidden}");
    assert!(out.events("accepted").is_empty());
    gateway.ledger_is_back_to(before);
}
