//! The shipped policy `handoff-headers` (`policies/rust/handoff-headers`): what the gateway does itself with
//! `handoff_headers`, decided by a module, which is where it can be decided otherwise.

use serde_json::{Value, json};

use super::application::Application;
use super::support::shipped::{shipped, toml};
use super::support::{Gateway, folder};
use super::{daemon, get, start, words};
use tempfile::TempDir;

/// The policy in front of an application that is not heard itself.
fn gateway(folder: TempDir, application: &Application, config: &Value, rest: &str) -> Gateway {
    let (module, config) = (shipped("handoff-headers-rust").display().to_string(), toml(config));
    let address = application.address();
    start(
        folder,
        &format!(
            "{}[target.chat]\nsockets = [\"DIR/chat.sock\"]\n[target.spare]\nsockets = [\"DIR/spare.sock\"]\n\
             [upstream.app]\naddress = \"{address}\"\n[policy.it]\nmodule = \"{module}\"\nconfig = {config}\n{rest}\n\
             [[route]]\npath = \"/\"\npolicies = [\"it\"]\ndefault = {{ proxy = \"app\" }}\nLISTEN",
            super::BASIS
        ),
    )
}

/// Answers 201 with the fields that the query has, and a body.
fn application(folder: &TempDir) -> Application {
    let here = folder.path().display().to_string();
    Application::start(move |asked| {
        let (_, fields) = asked.target().split_once('?').unwrap_or_default();
        let fields: String = fields
            .split('&')
            .filter_map(|f| f.split_once('='))
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        format!("HTTP/1.1 201 Created\r\n{}Content-Length: 3\r\n\r\napp", fields.replace("HERE", &here))
    })
}

#[test]
fn it_hands_over_to_what_the_configuration_knows_by_the_applications_name() {
    let folder = folder();
    let chat = daemon(&folder, "chat", "seqpacket", &[]);
    let spare = daemon(&folder, "spare", "seqpacket", &[]);
    let application = application(&folder);
    let config = json!({"targets": {"/old/path.sock": "chat", "room": "chat"}, "copy": ["set-cookie"]});
    let gateway = gateway(folder, &application, &config, "");
    for (at, name) in ["/old/path.sock", "room"].into_iter().enumerate() {
        let answer = gateway.ask(&get(&format!(
            "/?x-socket-handoff={name}&X-Handoff-Data={{\"n\":1}}&Set-Cookie=a&Set-Cookie=b&X-Other=1"
        )));
        assert!(answer.ends_with("from daemon\n"), "{answer}");
        let data = &chat.wait("got", at + 1)["data"];
        assert_eq!(data, "{\"n\":1,\"response_headers\":{\"set-cookie\":[\"a\",\"b\"]}}");
        let line = gateway.log_line(at + 1);
        assert_eq!(
            words(&line, ["outcome", "decision", "policy", "to"]),
            ["handed-off", "handoff", "it", "chat"],
            "{line}"
        );
        assert_eq!(line["annotations"], json!({"application": "handed over"}));
    }
    // An answer that asks for nothing is the client's, without anything of this.
    let mut client = gateway.client();
    client.send(get("/?x-handoff-data=secret"));
    let answer = client.answer();
    assert_eq!(
        (answer.status, answer.body.as_str(), answer.header("x-handoff-data")),
        (201, "app", None),
        "{answer:?}"
    );
    // What else the application names, it may not.
    for name in ["spare", "chat", "HERE/spare.sock", "/old/path.sock/x", ""] {
        client.send(get(&format!("/?x-socket-handoff={name}")));
        let answer = client.answer();
        assert_eq!((answer.status, answer.body.as_str()), (403, ""), "{name}: {answer:?}");
    }
    assert_eq!(gateway.log_line(4)["annotations"], json!({"application": "forbidden"}));
    assert!(spare.events("accepted").is_empty());
}

#[test]
fn it_hands_over_to_sockets_that_both_it_and_the_gateway_allow() {
    let folder = folder();
    std::fs::create_dir(folder.path().join("app")).expect("a folder");
    let inside = daemon(&folder, "app/d", "seqpacket", &[]);
    let outside = daemon(&folder, "spare", "seqpacket", &[]);
    let application = application(&folder);
    let config = json!({"prefixes": [format!("{}/app/", folder.path().display()), "/nowhere/"]});
    let gateway = gateway(folder, &application, &config, "");
    assert!(gateway.ask(&get("/?x-socket-handoff=HERE/app/d.sock")).ends_with("from daemon\n"));
    assert_eq!(inside.wait("got", 1)["data"], "\0");
    for (path, status) in [
        ("HERE/spare.sock", 403),
        ("HERE/app/../spare.sock", 403),
        ("HERE/app/none.sock", 503),
        // The policy allows it, the gateway does not.
        ("/nowhere/d.sock", 403),
    ] {
        assert_eq!(gateway.status(&format!("/?x-socket-handoff={path}")), status, "{path}");
    }
    assert!(outside.events("accepted").is_empty());
}

#[test]
fn it_has_the_head_written_where_the_daemon_writes_a_body_only() {
    let folder = folder();
    let chat = daemon(&folder, "chat", "seqpacket", &["body=1"]);
    let application = application(&folder);
    let config = json!({"targets": {"room": "chat"}, "copy": ["set-cookie", "content-type"], "into": "head"});
    let gateway = gateway(folder, &application, &config, "");
    let answer = gateway
        .ask(&get("/?X-Socket-Handoff=room&X-Handoff-Data={}&Set-Cookie=a&Set-Cookie=b&X-Other=1&Content-Type=text/x"));
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let head = head.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 201 ") && !head.contains("x-other") && !head.contains("handoff"), "{head}");
    assert!(
        ["set-cookie: a\r\n", "set-cookie: b\r\n", "content-type: text/x\r\n"].iter().all(|f| head.contains(f)),
        "{head}"
    );
    assert_eq!((body, &chat.wait("got", 1)["data"]), ("from daemon\n", &json!("{}")));
}

#[test]
fn it_says_what_is_wrong_with_its_configuration() {
    let folder = folder();
    let application = application(&folder);
    let file = folder.path().join("check.toml");
    let module = shipped("handoff-headers-rust").display().to_string();
    for (config, fault) in [
        (json!({}), "targets: must name a target, or prefixes a directory: nobody could be handed over"),
        (json!({"targets": {"a": "chat"}, "into": "x"}), "into: must be \"data\" or \"head\""),
        (json!({"targets": {"a": "nobody"}}), "nobody"),
    ] {
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[target.chat]\nsockets = [\"/run/chat.sock\"]\n[upstream.app]\n\
             address = \"{}\"\n[policy.it]\nmodule = \"{module}\"\nconfig = {}\n[[route]]\npath = \"/\"\npolicies = [\"it\"]\n\
             default = {{ proxy = \"app\" }}\n",
            application.address(),
            toml(&config)
        );
        std::fs::write(&file, text).expect("written");
        let output = super::support::baton().args(["check", "-c"]).arg(&file).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(fault) && output.status.code() == Some(64), "{said}");
    }
}
