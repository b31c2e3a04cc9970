//! The command line: what the commands say, how they end, and what they find wrong with a configuration. And the logs,
//! whatever is at their other end.
#![cfg(feature = "gateway")]

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use baton::config::Config;
use nix::sys::signal::Signal;
use serde_json::Value;
use support::{Gateway, Lines, baton, eventually, folder};

const GOOD: &str =
    "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\npath = \"/\"\ndefault = { respond = { body = \"ok\" } }\n";

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn check(file: &Path) -> Output {
    run(baton().arg("check").arg("-c").arg(file))
}

/// What `baton check` says of that configuration, line by line, without the file's name.
fn faults(toml: &str) -> Vec<String> {
    let folder = folder();
    let file = folder.path().join("try.toml");
    std::fs::write(&file, toml).expect("written");
    let output = check(&file);
    let said = text(&output.stderr);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(64), String::new()), "{toml}\n{said}");
    let name = file.display().to_string();
    said.lines().map(|line| line.strip_prefix(&name).unwrap_or_else(|| panic!("no file: {line}")).to_owned()).collect()
}

#[test]
fn every_command_explains_itself() {
    let help = text(&run(baton().arg("--help")).stdout);
    for code in ["0 asked to stop", "1 failed while running", "2 usage", "64 bad configuration or policy"] {
        assert!(help.contains(code), "{help}");
    }
    for command in ["check", "completions", "demo", "man", "policy", "receive", "run"] {
        let output = run(baton().args([command, "--help"]));
        let own = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{command}");
        assert!(own.contains("Usage: baton ") && own.contains(command) && output.stderr.is_empty(), "{command}: {own}");
        assert!(help.contains(&format!("\n  {command} ")), "{command}: {help}");
    }
    let version = run(baton().arg("--version"));
    assert_eq!(text(&version.stdout), concat!("baton ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn usage_is_2_and_configuration_64() {
    for arguments in [&["nonsense"][..], &[], &["run", "--nonsense"], &["run", "-c"], &["--log-format", "x", "check"]] {
        let output = run(baton().args(arguments));
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains("--help"), "{arguments:?}: {output:?}");
    }
    let output = run(baton().args(["check", "--log-level", "=loud="]));
    assert!(output.status.code() == Some(2) && text(&output.stderr).contains("=loud="), "{output:?}");
    let output = run(baton().arg("check").env("BATON_LOG", "=loud="));
    assert!(output.status.code() == Some(2) && text(&output.stderr).contains("=loud="), "{output:?}");
    for command in ["check", "run"] {
        let output = run(baton().args([command, "-c", "/nonexistent/none.toml"]));
        assert_eq!(output.status.code(), Some(64), "{command}");
        assert!(text(&output.stderr).contains("none.toml"), "{output:?}");
    }
}

#[test]
fn the_configuration_of_this_folder_is_the_default() {
    let folder = folder();
    std::fs::write(folder.path().join("baton.toml"), GOOD).expect("written");
    let output = run(baton().arg("check").current_dir(folder.path()));
    assert_eq!((output.status.code(), output.stdout, output.stderr), (Some(0), vec![], vec![]));
    std::fs::write(folder.path().join("baton.toml"), "x = 1").expect("written");
    let output = run(baton().arg("check").current_dir(folder.path()));
    assert_eq!((output.status.code(), text(&output.stderr).starts_with("baton.toml:1: x: ")), (Some(64), true));
}

const EXAMPLE: &str = include_str!("../examples/gateway.toml");

/// The example, with what is this machine's replaced: users, files, addresses.
fn example() -> String {
    let policies = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/policies");
    let mut text = EXAMPLE.to_owned();
    for (there, here) in [
        ("user = \"baton\"", "user = \"root\""),
        ("\"www-data\"", "\"root\""),
        ("/var/log/baton/access.log", "DIR/access.log"),
        ("127.0.0.1:8080", "127.0.0.1:0"),
        ("unix:/run/baton/http.sock", "unix:DIR/http.sock"),
        ("errors/503.html", "503.html"),
        ("env = \"API_KEY\"", "env = \"PATH\""),
        ("secrets/db", "503.html"),
        ("policies/auth.wasm", &format!("{policies}/passes.wat")),
    ] {
        assert!(text.contains(there), "{there}");
        text = text.replace(there, here);
    }
    text
}

#[test]
fn the_commented_configuration_is_a_good_one() {
    let folder = folder();
    std::fs::write(folder.path().join("503.html"), "later").expect("written");
    let key = rcgen::KeyPair::generate().expect("a key");
    let ca = rcgen::CertificateParams::new(Vec::new()).and_then(|ca| ca.self_signed(&key)).expect("a certificate");
    std::fs::write(folder.path().join("ca.pem"), ca.pem()).expect("written");
    let file = folder.path().join("gateway.toml");
    std::fs::write(&file, example().replace("DIR", &folder.path().display().to_string())).expect("written");
    let output = check(&file);
    assert_eq!(
        (output.status.code(), text(&output.stdout), text(&output.stderr)),
        (Some(0), String::new(), String::new())
    );
}

#[test]
fn the_configurations_of_the_first_page_are_good_ones() {
    let page = include_str!("../README.md");
    let blocks: Vec<_> = page.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(blocks.len() >= 2, "{blocks:?}");
    for block in blocks {
        let read = Config::parse(Path::new("/x/baton.toml"), block);
        assert!(read.is_ok(), "{}\n{block}", read.unwrap_err());
    }
}

/// Written out or left out, it is the same to the program.
#[test]
fn the_commented_configuration_says_what_the_defaults_are() {
    let read = |text: &str| {
        let config = Config::parse(Path::new("/x/gateway.toml"), text).expect("a good one");
        let options: Vec<_> = config.policies.iter().map(|policy| &policy.options).collect();
        let whole = (config.limits, config.handoff, config.prefixes, config.targets, config.upstreams, config.pages);
        format!("{:?} {:?} {whole:?} {options:?}", config.drain_timeout, (config.workers, config.connections_max))
    };
    let mut all: toml::Table = EXAMPLE.parse().expect("TOML");
    let remove = |table: &mut toml::Value, keys: &[&str]| {
        keys.iter().for_each(|key| drop(table.as_table_mut().expect("a table").remove(*key).expect(key)));
    };
    // Examples, and what depends on the machine.
    remove(&mut all["gateway"], &["user", "access_log"]);
    remove(&mut all["target"]["chat"], &["allow_uids"]);
    remove(&mut all["policy"]["auth"], &["secrets"]);
    remove(&mut all["upstream"], &["app", "door", "minify", "php"]);
    all.remove("error_pages");
    all.remove("route");
    let least = "[[listener]]\naddress = \"127.0.0.1:8080\"\n[target.chat]\nsockets = [\"/run/chat/a.sock\", \"/run/chat/b.sock\"]\n\
                 [target.streams]\nsockets = [\"/run/streams.sock\"]\ndialect = \"baton\"\n\
                 [upstream.auth]\naddress = \"http://127.0.0.1:9000\"\n[policy.auth]\nmodule = \"policies/auth.wasm\"\n\
                 config = { realm = \"demo\" }\ntargets = [\"chat\"]\nupstreams = [\"auth\"]\n";
    assert_eq!(read(&all.to_string()), read(least));
}

/// Keys of the schema, from the root: `limits.head_timeout`; `*` stands for a name.
fn keys_of_schema(schema: &Value) -> BTreeSet<String> {
    fn walk(schema: &Value, root: &Value, prefix: &str, keys: &mut BTreeSet<String>) {
        let referred =
            |schema: &Value| schema["$ref"].as_str().map(|r| root.pointer(r.trim_start_matches('#')).expect("defined"));
        if let Some(there) = referred(schema) {
            return walk(there, root, prefix, keys);
        }
        for option in schema["anyOf"].as_array().into_iter().flatten() {
            walk(option, root, prefix, keys);
        }
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            keys.insert(key.clone());
            walk(inner, root, &key, keys);
        }
        if schema["items"].is_object() {
            walk(&schema["items"], root, prefix, keys);
        }
        if schema["additionalProperties"].is_object() {
            walk(&schema["additionalProperties"], root, &format!("{prefix}.*"), keys);
        }
    }
    let mut keys = BTreeSet::new();
    walk(schema, schema, "", &mut keys);
    keys
}

fn keys_of_example() -> BTreeSet<String> {
    fn walk(value: &toml::Value, prefix: &str, keys: &mut BTreeSet<String>) {
        match value {
            toml::Value::Table(table) => {
                for (name, inner) in table {
                    let named = matches!(prefix, "target" | "upstream" | "policy" | "policy.*.secrets" | "error_pages")
                        || prefix.starts_with("route.default.") && prefix.ends_with(".headers");
                    let name = if named { "*" } else { name };
                    let key = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
                    if !named {
                        keys.insert(key.clone());
                    }
                    if key != "policy.*.config" {
                        walk(inner, &key, keys);
                    }
                }
            }
            toml::Value::Array(array) => array.iter().for_each(|inner| walk(inner, prefix, keys)),
            _ => {}
        }
    }
    let mut keys = BTreeSet::new();
    walk(&toml::Value::Table(EXAMPLE.parse().expect("TOML")), "", &mut keys);
    keys
}

#[test]
fn the_schema_and_the_commented_configuration_have_the_same_keys() {
    let output = run(baton().args(["check", "--schema"]));
    assert_eq!(output.status.code(), Some(0));
    let schema: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(schema["additionalProperties"], false);
    let (schema_keys, example) = (keys_of_schema(&schema), keys_of_example());
    assert_eq!(example, schema_keys);
}

/// Every kind of fault is found, with its line and its key, all of a file's in one go.
#[test]
fn every_fault_is_named_by_line_and_key() {
    for (toml, wanted) in [
        // Unknown keys and wrong types, several at once.
        (
            "[limits]\nhead_bites_max = 3\nhead_bytes_max = \"many\"\nheaders_max = \"x\"\n[gateway]\nworkers = -1\n\
             drain_timeout = 5\n[[listener]]\naddress = 5\n[nonsense]\n[[route]]\npath = \"/\"\nmethods = \"GET\"\n\
             default = { respond = { status = \"x\", more = 1 } }\n",
            &[
                ":2: limits.head_bites_max: ",
                ":3: limits.head_bytes_max: ",
                ":4: limits.headers_max: ",
                ":6: gateway.workers: ",
                ":7: gateway.drain_timeout: ",
                ":9: listener[0].address: ",
                ":10: nonsense: ",
                ":13: route[0].methods: ",
                ":14: route[0].default.respond.more: ",
                ":14: route[0].default.respond.status: ",
            ][..],
        ),
        // Values that mean nothing.
        (
            "[gateway]\nworkers = 5000\nuser = \"no-such-user\"\naccess_log = \"\"\n\
             [limits]\nconnections_max = 0\nhead_bytes_max = \"1B\"\nheaders_max = 0\nhead_timeout = \"0s\"\n\
             keep_alive_timeout = \"0s\"\nbody_timeout = \"0s\"\n\
             [[listener]]\naddress = \"nowhere\"\n[[listener]]\naddress = \"fd:http\"\n[[listener]]\nname = \"n\"\n\
             [[listener]]\nname = \"a\"\naddress = \"unix:relative\"\n\
             [error_pages]\n99 = \"x\"\n503 = \"none.html\"\n",
            &[
                ":2: gateway.workers: ",
                ":3: gateway.user: ",
                ":4: gateway.access_log: ",
                ":6: limits.connections_max: ",
                ":7: limits.head_bytes_max: ",
                ":8: limits.headers_max: ",
                ":9: limits.head_timeout: ",
                ":10: limits.keep_alive_timeout: ",
                ":11: limits.body_timeout: ",
                ":13: listener[0].address: ",
                ":15: listener[1].address: ",
                ":16: listener[2]: no address",
                ":20: listener[3].address: ",
                ":22: error_pages.99: ",
                ":23: error_pages.503: ",
            ],
        ),
        // Names that nobody has, and what does not fit.
        (
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[handoff]\nallowed_prefixes = [\"run/\", \"/run/../etc/\"]\n\
             [target.none]\n[target.odd]\nsockets = [\"\"]\nallow_uids = []\n[target.bad]\nsockets = [\"/run/a\"]\n\
             dialect = \"telnet\"\n[target.worse]\nsockets = [\"/run/a\"]\nbalance = \"x\"\n\
             [policy.empty]\n[policy.p]\nmodule = \"none.wasm\"\ntargets = [\"nobody\"]\ndeadline = \"0s\"\n\
             [[route]]\npath = \"a\"\nhost = \"a:80\"\nmethods = []\npolicies = [\"nobody\"]\ndefault = { handoff = \"nowhere\" }\n\
             [[route]]\n[[route]]\npath = \"/a/../b\"\ndefault = {}\n\
             [[route]]\npath = \"/\"\ndefault = { respond = { status = 99, headers = { \"a b\" = \"\", Connection = \"x\", x = \"a\\nb\" } } }\n",
            &[
                ":4: handoff.allowed_prefixes[0]: ",
                ":4: handoff.allowed_prefixes[1]: ",
                ":5: target.none: no sockets",
                ":7: target.odd.sockets[0]: ",
                ":8: target.odd.allow_uids: ",
                ":11: target.bad.dialect: ",
                ":14: target.worse.balance: ",
                ":15: policy.empty: no module",
                ":18: policy.p.targets[0]: no target is called \"nobody\"",
                ":19: policy.p.deadline: ",
                ":21: route[0].path: ",
                ":22: route[0].host: ",
                ":23: route[0].methods: ",
                ":24: route[0].policies[0]: no policy is called \"nobody\"",
                ":25: route[0].default.handoff: no target is called \"nowhere\"",
                ":26: route[1]: no path",
                ":28: route[2].path: ",
                ":29: route[2].default: ",
                ":32: route[3].default.respond.status: ",
                ":32: route[3].default.respond.headers.Connection: ",
                ":32: route[3].default.respond.headers.a b: ",
                ":32: route[3].default.respond.headers.x: ",
            ],
        ),
        // A policy that is none is found by loading it.
        (
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[policy.a]\nmodule = \"none.wasm\"\n[policy.b]\nmodule = \"/dev/null\"\n",
            &[":4: policy.a.module: ", ":6: policy.b.module: "],
        ),
        // A response's head goes with a handoff and has a body behind it; a datagram's receiver cannot be checked.
        (
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[target.a]\nsockets = [\"/run/a\"]\ndialect = \"datagram\"\nallow_uids = [0]\n\
             [target.b]\nsockets = [\"/run/b\"]\ndialect = \"fd-pass\"\n[[route]]\npath = \"/\"\n\
             default = { handoff = \"a\", response_head = { status = 204, headers = { Content-Length = \"5\", \"a b\" = \"\" } } }\n\
             [[route]]\npath = \"/x\"\ndefault = { respond = {}, response_head = {} }\n\
             [[route]]\npath = \"/y\"\ndefault = { handoff = \"a\", response_head = { status = 600 } }\n",
            &[
                ":6: target.a.allow_uids: ",
                ":9: target.b.dialect: dialect is seqpacket, stream, fdpass, datagram, baton or auto, not \"fd-pass\"",
                ":12: route[0].default.response_head.status: ",
                ":12: route[0].default.response_head.headers.Content-Length: ",
                ":12: route[0].default.response_head.headers.a b: ",
                ":15: route[1].default.response_head: ",
                ":18: route[2].default.response_head.status: between 200 and 599",
            ],
        ),
        // Upstreams, and what they are to routes.
        (
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[gateway]\ntrusted_proxies = [\"10.0.0.0/33\"]\n[upstream.a]\n[upstream.b]\naddress = \"nowhere\"\n\
             [upstream.c]\naddress = \"http://127.0.0.1:1\"\nroot = \"/x\"\nca = \"ca.pem\"\nheaders_max = 0\nhead_timeout = \"0s\"\n\
             head_bytes_max = \"1B\"\nhost = \"a/b\"\nsource = \"here\"\nhandoff_response_headers = [\"a b\"]\n\
             [upstream.d]\naddress = [\"fcgi://127.0.0.1:1\", \"unix:/run/a\"]\nrole = \"actor\"\nroot = \"www\"\n\
             [upstream.e]\naddress = []\n[upstream.door]\naddress = \"fcgi://127.0.0.1:1\"\nrole = \"authorizer\"\n\
             [[route]]\npath = \"/\"\nauthorizer = \"c\"\nfilter = \"none\"\ndefault = { proxy = \"door\" }\n\
             [[route]]\npath = \"/a\"\ninternal = true\nauthorizer = \"door\"\ndefault = { file = \"/x\", proxy = \"none\" }\n\
             [[route]]\npath = \"/b\"\ndefault = { file = \"/x\", respond = {} }\n\
             [[route]]\npath = \"/c\"\ndefault = { file = \"/x\", proxy = \"c\", response_head = {} }\n\
             [[route]]\npath = \"/d\"\ndefault = { file = \"\" }\n",
            &[
                ":4: gateway.trusted_proxies",
                ":5: upstream.a: no address",
                ":7: upstream.b.address: ",
                ":10: upstream.c.root: it goes with fcgi",
                ":11: upstream.c.ca: it goes with https",
                ":12: upstream.c.headers_max: ",
                ":13: upstream.c.head_timeout: ",
                ":14: upstream.c.head_bytes_max: ",
                ":15: upstream.c.host: ",
                ":16: upstream.c.source: ",
                ":17: upstream.c.handoff_response_headers[0]: ",
                ":19: upstream.d.address: FastCGI and HTTP in one list",
                ":20: upstream.d.role: ",
                ":21: upstream.d.root: ",
                ":23: upstream.e.address: empty",
                ":29: route[0].authorizer: \"c\" is no FastCGI authorizer",
                ":30: route[0].filter: no upstream is called \"none\"",
                ":31: route[0].default.proxy: \"door\" is a FastCGI authorizer",
                ":35: route[1].authorizer: an internal route",
                ":36: route[1].default.proxy: no upstream is called \"none\"",
                ":39: route[2].default: one of file, handoff, proxy and respond",
                ":42: route[3].default: one of file, handoff, proxy and respond",
                ":45: route[4].default.file: ",
            ],
        ),
        // No listener at all, and two of a name.
        ("[[route]]\npath = \"/\"\n", &[": listener: "]),
        (
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n",
            &[":3: listener[1].name: "],
        ),
        // No TOML.
        ("[gateway]\nworkers = 1\nnonsense = [\n", &[":"]),
        ("[gateway]\n\nworkers 1\n", &[":3: "]),
        ("[gateway]\nworkers = 1\nworkers = 2\n", &[":3: "]),
    ] {
        let said = faults(toml);
        let missing: Vec<_> = wanted.iter().filter(|w| !said.iter().any(|line| line.starts_with(**w))).collect();
        assert!(missing.is_empty(), "not said: {missing:#?}\nof {said:#?}");
        let more: Vec<_> = said.iter().filter(|line| !wanted.iter().any(|w| line.starts_with(*w))).collect();
        assert!(more.is_empty(), "said besides: {more:#?}");
    }
}

#[test]
fn what_this_version_does_not_serve_is_refused_by_name() {
    let said = faults("[[listener]]\naddress = \"fd:http\"\n");
    assert!(
        said[0].starts_with(":2: listener[0].address: ") && said[0].contains("not served by this version"),
        "{said:#?}"
    );
}

#[test]
fn a_queue_is_for_daemons_that_say_how_many_they_can_bear() {
    let target = |more: &str| {
        faults(&format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[target.a]\nsockets = [\"/run/a\"]\nqueue_max = 5\nqueue_timeout = \"1s\"\n{more}"
        ))
    };
    let said = target("");
    for key in [":5: target.a.queue_max: only with", ":6: target.a.queue_timeout: only with"] {
        assert!(said.iter().any(|line| line.starts_with(key)), "{key}: {said:#?}");
    }
    // Only what follows is at fault.
    for balance in ["hash", "least-in-flight", "least-load", "random-two", "round-robin"] {
        let said = target(&format!("dialect = \"baton\"\nbalance = \"{balance}\"\nblocking = 5\n"));
        assert!(said.len() == 1 && said[0].starts_with(":9: "), "{said:#?}");
    }
    let said = target("dialect = \"baton\"\nbalance = \"best\"\n");
    assert!(said.len() == 1 && said[0].starts_with(":8: target.a.balance: balance is "), "{said:#?}");
}

const ROUTE: &str = "LISTEN\n[[route]]\npath = \"/\"\ndefault = { respond = { body = \"ok\" } }\n";

#[test]
fn the_log_is_json_where_that_is_wanted_and_as_loud_as_wanted() {
    let gateway = Gateway::start_in(folder(), ROUTE, |command| command.args(["--log-format", "json"]));
    let from = gateway.reload(ROUTE);
    gateway.stderr.wait(from, &["configuration reloaded"]);
    let lines = gateway.stderr.all();
    let said: Vec<Value> = lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert_eq!(
        (lines.len() - said.len(), said[0]["level"].as_str()),
        (1, Some("INFO")),
        "all but `listening`: {lines:?}"
    );
    assert_eq!(said[0]["message"], "configuration reloaded");

    let loud = ["--log-level", "info"];
    for (arguments, is_loud) in [(&[][..], false), (&loud[..], true)] {
        let mut gateway =
            Gateway::start_in(folder(), ROUTE, |command| command.env("BATON_LOG", "warn").args(arguments));
        gateway.reload(&ROUTE.replace("ok", "new"));
        eventually("the new configuration", || gateway.ask("GET / HTTP/1.0\r\n\r\n").ends_with("new").then_some(()));
        // Said after the other, and in any case.
        let from = gateway.reload("nonsense = 1");
        gateway.stderr.wait(from, &["WARN", "not reloaded"]);
        let lines = gateway.stderr.all();
        assert_eq!(lines.iter().any(|line| line.contains("configuration reloaded")), is_loud, "{lines:?}");
        assert!(!lines.iter().any(|line| line.contains('\u{1b}')), "no colour: {lines:?}");
        gateway.signal(Signal::SIGTERM);
        assert_eq!(gateway.wait().code(), Some(0));
    }
}

#[test]
fn the_access_log_goes_to_standard_output_or_has_the_combined_form() {
    let toml = format!("[gateway]\naccess_log = \"-\"\n{ROUTE}");
    let mut gateway = Gateway::start_in(folder(), &toml, |command| command.stdout(Stdio::piped()));
    let out = Lines::read(gateway.child.stdout.take().expect("piped"));
    assert_eq!(gateway.status("/seen"), 200);
    let line: Value = serde_json::from_str(&out.wait(0, &["/seen"])).expect("JSON");
    assert_eq!((&line["status"], &line["outcome"]), (&200.into(), &"responded".into()));

    let gateway = Gateway::start(&format!("[gateway]\naccess_log_format = \"combined\"\n{ROUTE}"));
    let request = b"GET /a\"b HTTP/1.1\r\nHost: x\r\nReferer: http://r/\r\nUser-Agent: me \"and\" \\ you\xff\r\nConnection: close\r\n\r\n";
    let mut client = gateway.client();
    client.send(request);
    assert_eq!(client.answer().status, 200);
    drop(client);
    let file = gateway.path("access.log");
    let line = eventually("a line", || std::fs::read_to_string(&file).ok().filter(|text| text.ends_with('\n')));
    assert!(line.starts_with("127.0.0.1 - - [") && line.contains(" +0000] \"GET /a\\\"b HTTP/1.1\" 200 "), "{line}");
    assert!(line.contains(" \"http://r/\" \"me \\\"and\\\" \\\\ you"), "{line}");
    // Nothing can break out of its quotes.
    let quotes = line.replace("\\\\", "").replace("\\\"", "").matches('"').count();
    assert_eq!((quotes, line.lines().count()), (6, 1), "{line}");
}

#[test]
fn a_log_that_cannot_be_written_stalls_nobody() {
    // A full disk.
    let gateway = Gateway::start(&format!("[gateway]\naccess_log = \"/dev/full\"\n{ROUTE}"));
    for _ in 0..100 {
        assert_eq!(gateway.status("/"), 200);
    }
    gateway.stderr.wait(0, &["access log cannot be written"]);
    let said = |words: &str| gateway.stderr.all().iter().filter(|line| line.contains(words)).count();
    assert_eq!((said("cannot be written"), said("written again")), (1, 0), "{:?}", gateway.stderr.all());

    // A pipe that nobody reads, and one that is closed, for both logs.
    for closed in [false, true] {
        let toml = format!("[gateway]\naccess_log = \"-\"\n{ROUTE}");
        let debug = |command: &mut Command| {
            command.stdout(Stdio::piped()).args(["--log-level", "trace"]);
        };
        let mut gateway = Gateway::start_in(folder(), &toml, |command| {
            debug(command);
            command
        });
        let stdout = gateway.child.stdout.take().expect("piped");
        let stdout = (!closed).then_some(stdout);
        let mut client = gateway.client();
        let target = format!("/{}", "a".repeat(4000));
        // 80 times 4 KB: more than a pipe holds.
        for _ in 0..80 {
            client.get(&target);
            assert_eq!(client.answer().status, 200);
        }
        drop(client);
        gateway.signal(Signal::SIGTERM);
        assert_eq!(gateway.wait().code(), Some(0), "closed: {closed}");
        drop(stdout);
    }
}

#[test]
fn a_closed_standard_error_ends_nothing() {
    let folder = folder();
    let file = folder.path().join("baton.toml");
    let socket = folder.path().join("http.sock");
    let toml = ROUTE.replace("LISTEN", &format!("[[listener]]\naddress = \"unix:{}\"", socket.display()));
    std::fs::write(&file, &toml).expect("written");
    let mut child = baton()
        .args(["run", "-c"])
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    // Somebody reads the first line and leaves.
    let mut line = String::new();
    BufReader::new(child.stderr.take().expect("piped")).read_line(&mut line).expect("said");
    assert!(line.starts_with("listening on unix:"), "{line}");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    std::fs::write(&file, toml.replace("ok", "new")).expect("written");
    nix::sys::signal::kill(pid, Signal::SIGHUP).expect("it runs");
    let ask = || {
        let mut stream = std::os::unix::net::UnixStream::connect(&socket).expect("it listens");
        std::io::Write::write_all(&mut stream, b"GET / HTTP/1.0\r\n\r\n").expect("it reads");
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut stream, &mut answer).expect("it answers");
        answer
    };
    eventually("the new configuration", || ask().ends_with("new").then_some(()));
    nix::sys::signal::kill(pid, Signal::SIGTERM).expect("it runs");
    let status = eventually("the end", || child.try_wait().expect("ours"));
    assert_eq!(status.code(), Some(0));
}
