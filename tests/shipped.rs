//! The shipped policies (`policies/`) through the real gateway: their cases, byte by byte, and what no case can say, because
//! it needs time, several clients or a service to ask.
//!
//! `bearer`, which is there in every language, is in `policies.rs`. Modules are those that `policies/build` has made.
#![cfg(feature = "gateway")]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use support::shipped::{cases, files, json, shipped, toml};
use support::{Daemon, Gateway, baton, eventually, folder};

/// A policy `it` in front of everything, and two targets. What it passes is answered 299.
fn configuration(module: &str, config: &Value, rest: &str) -> String {
    let module = shipped(module).display().to_string();
    let config = toml(config);
    format!(
        "[gateway]\nworkers = 1\n[target.chat]\nsockets = [\"DIR/chat.sock\"]\n[target.next]\nsockets = [\"DIR/next.sock\"]\n\
         [policy.it]\nmodule = \"{module}\"\nconfig = {config}\n{rest}\n\
         [[route]]\npath = \"/\"\npolicies = [\"it\"]\ndefault = {{ respond = {{ status = 299 }} }}\nLISTEN"
    )
}

fn start(module: &str, config: &Value, rest: &str) -> Gateway {
    Gateway::start(&configuration(module, config, rest))
}

fn daemon(folder: &Path, name: &str) -> Daemon {
    Daemon::start(&folder.join(name).with_extension("sock"), "seqpacket", "serve", &[])
}

/// Sends every case, in the order of their names, and compares what clients, daemons and the log got. Returns how many.
fn answers_every_case(module: &str, policy: &str, rest: &str) -> usize {
    let folder = folder();
    let daemons = ["chat", "next"].map(|name| (name, daemon(folder.path(), name)));
    let config = configuration(module, &json(&cases(policy).join("config.json")), rest);
    let gateway = Gateway::start_in(folder, &config, |command| command);
    let mut handed_over = [0, 0];
    let files = files(&cases(policy), "http");
    for (at, file) in files.iter().enumerate() {
        let name = format!("{policy}: {}", file.file_stem().expect("a name").display());
        let expected = json(&file.with_extension("json"));
        let mut client = gateway.client();
        client.send(fs::read(file).expect("a case"));
        if expected["action"] == "handoff" {
            let target = daemons.iter().position(|(name, _)| expected["target"] == *name).expect("a target");
            handed_over[target] += 1;
            let got = daemons[target].1.wait("got", handed_over[target]);
            assert_eq!((&got["data"], &got["port"]), (&expected["data"], &client.port().into()), "{name}");
            assert!(client.rest().ends_with("\r\n\r\nfrom daemon\n"), "{name}");
        } else {
            let answer = client.answer();
            let status = if expected["action"] == "pass" { &json!(299) } else { &expected["status"] };
            assert_eq!(answer.status, *status, "{name}: {answer:?}");
            for (header, value) in expected["headers"].as_object().into_iter().flatten() {
                assert_eq!(answer.header(header), value.as_str(), "{name}: {header}");
            }
            assert_eq!(answer.body, expected["body"].as_str().unwrap_or(""), "{name}");
        }
        let line = gateway.log_line(at + 1);
        let annotations = expected.get("annotations").cloned().unwrap_or_else(|| json!({}));
        assert_eq!((&line["annotations"], &line["decision"]), (&annotations, &expected["action"]), "{name}: {line}");
    }
    let got = daemons.each_ref().map(|(_, daemon)| daemon.events("got").len());
    assert_eq!(got, handed_over, "{policy}: nobody was handed over who should not have been");
    files.len()
}

/// Runs `baton check` on every configuration that has to be refused.
fn refuses_every_faulty_configuration(module: &str, policy: &str, rest: &str) -> usize {
    let folder = folder();
    let file = folder.path().join("baton.toml");
    let check = |config: &Value| {
        let toml = configuration(module, config, rest);
        let listener = "[[listener]]\naddress = \"127.0.0.1:0\"\n";
        fs::write(&file, toml.replace("LISTEN", listener).replace("DIR", "/run")).expect("written");
        let output = baton().args(["check", "-c"]).arg(&file).output().expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let refused = files(&cases(policy).join("refused"), "json");
    for case in &refused {
        let name = format!("{policy}: {}", case.file_stem().expect("a name").display());
        let case = json(case);
        let (code, said) = check(&case["config"]);
        let faults: Vec<_> = case["faults"].as_array().expect("faults").iter().filter_map(Value::as_str).collect();
        assert!(said.contains(&format!(": configure: {}\n", faults.join("; "))), "{name}: {said}");
        assert_eq!(code, Some(64), "{name}: {said}");
    }
    assert_eq!(check(&json(&cases(policy).join("config.json"))), (Some(0), String::new()), "{policy}");
    refused.len()
}

const SECRETS: &str = "secrets = { url-key = { file = \"KEY\" } }";

/// The key of the cases of `signed-url`, in a file, and the setting that names it.
fn secrets(folder: &Path) -> String {
    let secrets = json(&cases("signed-url").join("secrets.json"));
    let file = folder.join("url-key");
    fs::write(&file, secrets["url-key"].as_str().expect("text")).expect("written");
    SECRETS.replace("KEY", &file.display().to_string())
}

const UPSTREAM: &str = "upstreams = [\"auth\"]\n[upstream.auth]\naddress = \"http://ADDRESS\"";

#[test]
fn the_router_answers_every_case() {
    assert_eq!(answers_every_case("router-assemblyscript", "router", ""), 15);
    assert_eq!(refuses_every_faulty_configuration("router-assemblyscript", "router", ""), 4);
}

#[test]
fn canary_answers_every_case() {
    assert_eq!(answers_every_case("canary-rust", "canary", ""), 6);
    assert_eq!(refuses_every_faulty_configuration("canary-rust", "canary", ""), 2);
}

#[test]
fn maintenance_answers_every_case() {
    assert_eq!(answers_every_case("maintenance-rust", "maintenance", ""), 3);
    assert_eq!(refuses_every_faulty_configuration("maintenance-rust", "maintenance", ""), 3);
}

#[test]
fn rate_limit_answers_every_case() {
    assert_eq!(answers_every_case("rate-limit-rust", "rate-limit", ""), 4);
    assert_eq!(refuses_every_faulty_configuration("rate-limit-rust", "rate-limit", ""), 2);
}

#[test]
fn signed_url_answers_every_case() {
    let folder = folder();
    let secrets = secrets(folder.path());
    assert_eq!(answers_every_case("signed-url-rust", "signed-url", &secrets), 17);
    assert_eq!(refuses_every_faulty_configuration("signed-url-rust", "signed-url", &secrets), 2);
}

// === canary ===

#[test]
fn those_who_are_not_chosen_are_left_to_the_route() {
    let config = json!({ "name": "v2", "percent": 0.0, "target": "next", "cookie": "session" });
    let gateway = start("canary-rust", &config, "");
    assert_eq!(gateway.status("/"), 299);
    assert_eq!(gateway.log_line(1)["annotations"], json!({ "canary": "no" }));
}

// === maintenance ===

#[test]
fn maintenance_is_switched_by_the_configuration_and_lets_through_who_mends() {
    let gateway = start("maintenance-rust", &json!({ "on": false }), "");
    assert_eq!(gateway.status("/"), 299);
    gateway.reload(&configuration("maintenance-rust", &json!({ "on": true }), ""));
    eventually("maintenance", || (gateway.status("/") == 503).then_some(()));
    let mut client = gateway.client();
    client.get("/");
    let answer = client.answer();
    assert_eq!(answer.header("retry-after"), Some("300"));
    assert!(answer.body.starts_with("<!doctype html>") && answer.body.contains("Back soon"), "{answer:?}");
    let allow = json!({ "on": true, "allow": ["127.0.0.0/8"] });
    gateway.reload(&configuration("maintenance-rust", &allow, ""));
    eventually("let through", || (gateway.status("/") == 299).then_some(()));
    gateway.reload(&configuration("maintenance-rust", &json!({ "on": false }), ""));
    eventually("it is over", || (gateway.status("/") == 299).then_some(()));
}

// === rate-limit ===

#[test]
fn all_workers_and_generations_count_together() {
    let config = |burst: f64| {
        configuration("rate-limit-rust", &json!({ "rate": 0.001, "burst": burst }), "")
            .replace("workers = 1", "workers = 2")
    };
    let gateway = Gateway::start(&config(5.0));
    let statuses: Vec<_> = (0..40).map(|_| gateway.status("/")).collect();
    assert_eq!(statuses.iter().filter(|&&status| status == 299).count(), 5, "{statuses:?}");
    assert!(statuses.iter().all(|status| [299, 429].contains(status)), "{statuses:?}");
    // Another generation finds the same bucket: it is empty, whatever the new burst is.
    let before = gateway.reload(&config(6.0));
    gateway.stderr.wait(before, &["configuration reloaded"]);
    assert_eq!(gateway.status("/"), 429);
}

#[test]
fn who_waits_may_ask_again() {
    let gateway = start("rate-limit-rust", &json!({ "rate": 5.0, "burst": 1.0 }), "");
    assert_eq!(gateway.status("/"), 299);
    let mut client = gateway.client();
    client.get("/");
    let answer = client.answer();
    assert_eq!((answer.status, answer.header("retry-after")), (429, Some("1")));
    eventually("a token", || (gateway.status("/") == 299).then_some(()));
}

// === signed-url ===

fn sign(key: &str, target: &str) -> String {
    // RFC 2104, for a key that is no longer than a block.
    let pad = |byte: u8| {
        let mut block = [byte; 64];
        block.iter_mut().zip(key.bytes()).for_each(|(pad, key)| *pad ^= key);
        block
    };
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(target).finalize();
    let outer = Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize();
    let hex: String = outer.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{target}&signature={hex}")
}

#[test]
fn a_link_is_good_until_it_expires() {
    let folder = folder();
    let _chat = daemon(folder.path(), "chat");
    let secrets = secrets(folder.path());
    let config = configuration("signed-url-rust", &json!({ "target": "chat", "secret": "url-key" }), &secrets);
    let gateway = Gateway::start_in(folder, &config, |command| command);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let key = json(&cases("signed-url").join("secrets.json"))["url-key"].as_str().expect("text").to_owned();
    let ask = |expires: u64| {
        let link = sign(&key, &format!("/a?user=alice&expires={expires}"));
        gateway.ask(&format!("GET {link} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
    };
    assert!(ask(now + 3600).ends_with("from daemon\n"));
    assert!(ask(now).contains("the link has expired"));
    let soon = now + 2;
    assert!(ask(soon).ends_with("from daemon\n"), "this machine stood still for two seconds");
    eventually("it expires", || ask(soon).contains("the link has expired").then_some(()));
    // The log has the user, and of the key not a word.
    assert_eq!(gateway.log_line(1)["annotations"], json!({ "user": "alice" }));
    assert!(!gateway.stderr.all().join("\n").contains(&key));
    assert!(!fs::read_to_string(gateway.path("access.log")).expect("written").contains(&key));
}

#[test]
fn without_a_key_no_link_is_good() {
    let link = sign("", "/a?user=alice&expires=4102444800");
    let folder = folder();
    let short = folder.path().join("short");
    fs::write(&short, "fifteen bytes..").expect("written");
    for rest in [String::new(), SECRETS.replace("KEY", &short.display().to_string())] {
        let gateway = start("signed-url-rust", &json!({ "target": "chat", "secret": "url-key" }), &rest);
        assert_eq!(gateway.status(&link), 503);
        gateway.stderr.wait(0, &["the secret url-key is absent or shorter than 16 bytes"]);
    }
}

// === auth-request ===

/// A service that answers by the user in `Authorization`, and tells of each request's head.
fn service() -> (SocketAddr, Receiver<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let (told, heads) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("accepted");
            let told = told.clone();
            std::thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().expect("a socket")).lines();
                loop {
                    let head: Vec<_> =
                        lines.by_ref().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
                    if head.is_empty() {
                        return;
                    }
                    let user = head
                        .iter()
                        .find_map(|line| line.to_ascii_lowercase().strip_prefix("authorization: ").map(str::to_owned));
                    drop(told.send(head));
                    let (status, headers) = match user.as_deref() {
                        Some("zoe") => ("204 Nothing", "X-User: Zo\u{eb}\r\nX-Role: admin\r\nX-Inner: 1"),
                        Some("plain") => ("200 OK", "Content-Length: 0"),
                        Some("bob") => ("403 No", "Content-Type: text/plain\r\nServer: inner\r\nContent-Length: 8"),
                        Some("moved") => ("302 There", "Location: /elsewhere\r\nContent-Length: 0"),
                        Some("broken") => ("500 Oh", "Content-Length: 0"),
                        Some("slow") => loop {
                            std::thread::park();
                        },
                        _ => ("401 Who", "WWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 8"),
                    };
                    let body = if headers.ends_with("Length: 8") { "service\n" } else { "" };
                    if write!(stream, "HTTP/1.1 {status}\r\n{headers}\r\n\r\n{body}").is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, heads)
}

fn auth(address: SocketAddr) -> String {
    UPSTREAM.replace("ADDRESS", &address.to_string())
}

#[test]
fn auth_request_refuses_every_faulty_configuration() {
    let rest = auth(SocketAddr::from(([127, 0, 0, 1], 9)));
    assert_eq!(refuses_every_faulty_configuration("auth-request-rust", "auth-request", &rest), 2);
}

#[test]
fn a_service_says_who_may_pass() {
    let folder = folder();
    let chat = daemon(folder.path(), "chat");
    let (address, heads) = service();
    let mut config = json(&cases("auth-request").join("config.json"));
    config["timeout_ms"] = json!(300);
    let gateway =
        Gateway::start_in(folder, &configuration("auth-request-rust", &config, &auth(address)), |command| command);
    let ask = |user: &str| {
        let mut client = gateway.client();
        client.send(format!("POST /v1/chat?q=1 HTTP/1.1\r\nHost: Example.org\r\nAuthorization: {user}\r\nX-Own: 1\r\nContent-Length: 0\r\n\r\n"));
        client
    };

    let mut client = ask("zoe");
    assert!(client.rest().ends_with("from daemon\n"));
    assert_eq!(
        chat.wait("got", 1)["data"],
        r#"{"auth":{"x-role":"admin","x-user":"Zoë"},"method":"POST","path":"/v1/chat","query":"q=1"}"#
    );
    assert_eq!(gateway.log_line(1)["annotations"], json!({ "x-user": "Zoë", "x-role": "admin" }));
    let head = heads.recv().expect("it was asked").iter().map(|line| line.to_ascii_lowercase()).collect::<Vec<_>>();
    assert_eq!(head[0], "get /check?from=gateway http/1.1");
    for field in [
        "x-original-method: post",
        "x-original-uri: /v1/chat?q=1",
        "x-original-host: example.org",
        "x-real-ip: 127.0.0.1",
        "authorization: zoe",
    ] {
        assert!(head.iter().any(|line| line == field), "{field} in {head:?}");
    }
    assert!(!head.iter().any(|line| line.starts_with("x-own")), "{head:?}");

    let answer = ask("nobody").answer();
    assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("Basic realm=\"x\"")));
    assert_eq!(answer.body, "service\n");
    let answer = ask("bob").answer();
    assert_eq!(
        (answer.status, answer.header("content-type"), answer.header("server")),
        (403, Some("text/plain"), None)
    );
    for user in ["moved", "broken"] {
        let answer = ask(user).answer();
        assert_eq!((answer.status, answer.header("location"), answer.header("retry-after")), (500, None, None));
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    }
    gateway.stderr.wait(0, &["the service answered neither 2xx nor 401 nor 403", "status=302"]);
    let answer = ask("slow").answer();
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    gateway.stderr.wait(0, &["the service did not answer"]);
    assert_eq!(chat.events("got").len(), 1, "one was let in, and no more");
}

#[test]
fn nobody_passes_while_there_is_no_service_or_it_may_not_be_asked() {
    let absent = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let config = json(&cases("auth-request").join("config.json"));
    let gateway = start("auth-request-rust", &config, &auth(absent));
    assert_eq!(gateway.status("/"), 503);
    gateway.stderr.wait(0, &["the service did not answer"]);
}

#[test]
fn without_a_target_what_the_service_knows_is_put_into_the_request() {
    let (address, _heads) = service();
    let auth_request = shipped("auth-request-rust").display().to_string();
    let router = shipped("router-assemblyscript").display().to_string();
    let rules = json!({ "rules": [
        { "headers": { "x-role": "admin" }, "respond": { "status": 210 } },
        { "headers": { "x-role": "forged" }, "respond": { "status": 211 } },
    ] });
    let gateway = Gateway::start(&format!(
        "[gateway]\nworkers = 1\n[policy.ask]\nmodule = \"{auth_request}\"\n\
         config = {{ upstream = \"auth\", path = \"/check\", copy = [\"x-role\"] }}\n{}\n\
         [policy.see]\nmodule = \"{router}\"\nconfig = {}\n\
         [[route]]\npath = \"/\"\npolicies = [\"ask\", \"see\"]\ndefault = {{ respond = {{ status = 299 }} }}\nLISTEN",
        auth(address),
        toml(&rules),
    ));
    for (user, status) in [("zoe", 210), ("plain", 299), ("nobody", 401)] {
        let mut client = gateway.client();
        client.send(format!("GET / HTTP/1.1\r\nHost: x\r\nAuthorization: {user}\r\nX-Role: forged\r\n\r\n"));
        assert_eq!(client.answer().status, status, "{user}");
    }
}
