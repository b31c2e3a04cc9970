//! The bindings for AssemblyScript: their layouts against the contract, every import and hook through the real gateway, and
//! memory over a million decisions.
//!
//! The guest is `policies/assemblyscript/test/guests/everything.ts`; the packages that compile it are those that
//! `policies/build` has installed.
#![cfg(feature = "gateway")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use baton::http::head::{Limits, RequestHead};
use baton::policy::{Engine, Generation, Options, Policy};
use baton::request::{Id, Origin, Peer, Request};
use nix::time::{ClockId, clock_gettime};
use support::shipped::{cases, files, json, shipped};
use support::{Daemon, Gateway, eventually, folder};
use tempfile::TempDir;
use wit_parser::{Resolve, SizeAlign, Type, TypeDefKind};

fn package() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("policies/assemblyscript")
}

// === Layouts ===

/// The table at the head of `abi.ts`: by the name of a type, its offsets by the names of its fields, and its size.
fn written() -> BTreeMap<String, (BTreeMap<String, usize>, usize)> {
    let text = fs::read_to_string(package().join("assembly/baton/abi.ts")).expect("a file");
    let head = text.split("//   field ").nth(1).expect("the table of records begins there");
    let mut layouts = BTreeMap::new();
    let mut name = "field".to_owned();
    let mut words = Vec::new();
    for line in format!("//   {head}").lines().map_while(|line| line.strip_prefix("//   ")) {
        let mut of_line: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        if !line.starts_with(' ') && !layouts.is_empty() {
            name = of_line.remove(0);
        }
        words.extend(of_line);
        let Some(size) = words.iter().position(|word| word.starts_with('(')) else { continue };
        let pairs: Vec<_> = words.drain(..).take(size + 1).collect();
        let bytes = pairs[size].trim_start_matches('(').parse().expect("a size");
        let offsets = pairs[..size].chunks(2).map(|pair| {
            let offset = pair[0].strip_suffix(':').and_then(|n| n.parse().ok()).expect("an offset");
            (pair[1].clone(), offset)
        });
        layouts.insert(name.clone(), (offsets.collect(), bytes));
    }
    layouts
}

#[test]
fn layouts_are_those_of_the_contract() {
    let mut contract = Resolve::default();
    contract.push_path(Path::new(env!("CARGO_MANIFEST_DIR")).join("wit")).expect("it parses");
    let mut sizes = SizeAlign::default();
    sizes.fill(&contract);
    let written = written();
    let mut compared = Vec::new();
    for (id, kind) in contract.types.iter() {
        let Some((name, (offsets, size))) = kind.name.as_ref().and_then(|name| written.get_key_value(name)) else {
            continue;
        };
        let expected: BTreeMap<_, _> = match &kind.kind {
            TypeDefKind::Record(record) => {
                let offsets = sizes.field_offsets(record.fields.iter().map(|field| &field.ty));
                let names = record.fields.iter().map(|field| field.name.clone());
                names.zip(offsets.into_iter().map(|(offset, _)| offset.size_wasm32())).collect()
            }
            TypeDefKind::Variant(variant) => {
                let cases = variant.cases.iter().map(|case| case.ty.as_ref());
                [("payload".to_owned(), sizes.payload_offset(variant.tag(), cases).size_wasm32())].into()
            }
            // `use` of another interface.
            _ => continue,
        };
        assert_eq!((offsets, *size), (&expected, sizes.size(&Type::Id(id)).size_wasm32()), "{name}");
        compared.push(name.as_str());
    }
    compared.sort_unstable();
    assert_eq!(compared, written.keys().map(String::as_str).collect::<Vec<_>>(), "every type of the table");
    assert_eq!(compared.len(), 18);
}

// === Everything ===

/// The guest that uses everything, compiled once.
fn everything() -> &'static str {
    static BUILT: LazyLock<(TempDir, String)> = LazyLock::new(|| {
        let folder = folder();
        let module = folder.path().join("everything.wasm").display().to_string();
        let compiler = package().join("node_modules/.bin/asc");
        assert!(compiler.exists(), "{} is not there: run policies/build", compiler.display());
        let output = Command::new(compiler)
            .args(["test/guests/everything.ts", "--outFile", &module])
            .current_dir(package())
            .output()
            .expect("Node.js runs it");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (folder, module)
    });
    &BUILT.1
}

/// A gateway with that guest in front of everything; `rest` are further keys of it, `more` further tables.
fn start_in(folder: TempDir, rest: &str, more: &str) -> Gateway {
    let module = everything();
    Gateway::start_in(
        folder,
        &format!(
            "[gateway]\nworkers = 1\n[target.chat]\nsockets = [\"DIR/chat.sock\"]\n[target.nobody]\nsockets = [\"DIR/nobody.sock\"]\n\
             [policy.it]\nmodule = \"{module}\"\nconfig = {{ realm = \"dämo\", list = [1, 2] }}\n{rest}\n{more}\n\
             [[route]]\npath = \"/\"\npolicies = [\"it\"]\ndefault = {{ respond = {{ status = 299 }} }}\nLISTEN"
        ),
        |command| command,
    )
}

fn start(rest: &str, more: &str) -> Gateway {
    start_in(folder(), rest, more)
}

fn body(gateway: &Gateway, path: &str) -> String {
    let mut client = gateway.client();
    client.get(path);
    let answer = client.answer();
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    answer.body
}

#[test]
fn every_getter_of_a_request() {
    let gateway = start("", "");
    let mut client = gateway.client();
    client.send(
        "POST /a/%2e%2e/request?q=%C3%BC&r HTTP/1.1\r\nHost: EXAMPLE.org:81\r\nX-A: erst\u{e9}\r\nX-A: second\r\n\
         Cookie: c=1; d=2\r\nContent-Length: 9\r\n\r\n123456789",
    );
    let port = client.port();
    let answer = client.answer();
    let local = gateway.address();
    let expected = format!(
        "id 26\nmethod POST\nrequest-target /a/%2e%2e/request?q=%C3%BC&r\npath /request\nquery q=%C3%BC&r\n\
         authority example.org:81\nscheme http\nversion 1\nroute /\nparam none\nheader erst\u{e9} none\n\
         header-all erst\u{e9}|second\nheader-many erst\u{e9}|none|EXAMPLE.org:81\n\
         headers host:EXAMPLE.org:81|x-a:erst\u{e9}|x-a:second|cookie:c=1; d=2|content-length:9\nheaders-raw 85\n\
         cookie 1\nquery-param \u{fc}\npeer 127.0.0.1 {port}\nclient-ip 127.0.0.1\nlocal-address {local}\nlistener http\n\
         tls none\nclient-certificate none\npassability 0\ncontent-length 9\nbody-prefix 12345\n"
    );
    assert_eq!(answer.body, expected);
}

#[test]
fn bytes_that_are_no_text_are_no_letters() {
    let gateway = start("", "");
    let mut client = gateway.client();
    // "x" in two bytes, a half of a surrogate, a cut character, one behind the last plane; then one of each length.
    let mut request =
        b"GET /request HTTP/1.1\r\nHost: x\r\nX-A: \xc1\xb8 \xed\xa0\x80 \xe2\x82 \xf4\x90\x80\x80 ".to_vec();
    request.extend("é € 🦀".as_bytes());
    request.extend(b"\r\n\r\n");
    client.send(&request);
    let answer = client.answer();
    let value = "\u{fffd}\u{fffd} \u{fffd}\u{fffd}\u{fffd} \u{fffd} \u{fffd}\u{fffd}\u{fffd}\u{fffd} é € 🦀";
    assert!(answer.body.contains(&format!("\nheader {value} none\n")), "{}", answer.body);
}

#[test]
fn every_action() {
    let folder = folder();
    let chat = Daemon::start(&folder.path().join("chat.sock"), "seqpacket", "serve", &[]);
    let gateway = start_in(folder, "", "");
    assert_eq!(gateway.status("/pass"), 299);
    assert_eq!(gateway.status("/elsewhere"), 404);
    let mut client = gateway.client();
    client.get("/handoff");
    assert!(client.rest().ends_with("from daemon\n"));
    assert_eq!(chat.wait("got", 1)["data"], "{\"wörld\":\"🦀\"}");
    assert_eq!(gateway.log_line(3)["annotations"]["why"], "asked");
    assert_eq!(gateway.ask("GET /abort HTTP/1.1\r\nHost: x\r\n\r\n"), "");
    assert_eq!(gateway.status("/fails"), 503);
    gateway.stderr.wait(0, &["ERROR", "ndex out of range at ~lib/array.ts:"]);
}

#[test]
fn a_head_and_first_bytes_go_before_the_descriptor() {
    let folder = folder();
    let _chat = Daemon::start(&folder.path().join("chat.sock"), "seqpacket", "serve", &["body=1"]);
    let gateway = start_in(folder, "", "");
    let got = gateway.ask("GET /handoff?head HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(got.starts_with("HTTP/1.1 200 ") && got.to_ascii_lowercase().contains("\r\nx-by: policy\r\n"), "{got}");
    assert!(got.ends_with("\r\n\r\nfirst from daemon\n"), "{got}");
}

#[test]
fn the_hooks_beside_the_request() {
    let folder = folder();
    let chat = Daemon::start(&folder.path().join("chat.sock"), "seqpacket", "serve", &[]);
    let listeners = ["closed", "given"].map(|name| {
        format!("[[listener]]\nname = \"{name}\"\naddress = \"unix:DIR/{name}.sock\"\npolicies = [\"it\"]\n")
    });
    let gateway = start_in(folder, "", &listeners.concat());
    let connect = |name: &str| {
        let mut stream = std::os::unix::net::UnixStream::connect(gateway.path(name)).expect("it listens");
        let mut text = String::new();
        drop(stream.read_to_string(&mut text));
        text
    };
    assert_eq!(connect("closed.sock"), "");
    let uid = nix::unistd::getuid();
    gateway.stderr.wait(0, &["connection", "listener=closed", &format!("peer={uid} ")]);
    assert!(connect("given.sock").ends_with("from daemon\n"));
    assert_eq!(chat.wait("got", 1)["data"], "untouched");

    let mut client = gateway.client();
    client.get("/nobody");
    let answer = client.answer();
    assert_eq!(answer.status, 502, "{answer:?}");
    assert!(answer.body.starts_with("nobody"), "{answer:?}");
    assert!(answer.body.contains("attempt 1 retryable true carry carried 🦀"), "{answer:?}");
    gateway.stderr.wait(0, &["complete", "outcome=responded", "status=502", "carried 🦀"]);
    eventually("ticks", || (body(&gateway, "/ticks").parse::<u32>().expect("a number") > 2).then_some(()));
}

#[test]
fn store_and_targets() {
    let folder = folder();
    let _chat = Daemon::start(&folder.path().join("chat.sock"), "seqpacket", "serve", &[]);
    let gateway = start_in(folder, "", "");
    for _ in 0..2 {
        assert_eq!(body(&gateway, "/store"), "true true true värde false 2 true y 3 1 false 2 true+true+false");
    }
    let targets = body(&gateway, "/targets");
    let lines: Vec<_> = targets.lines().collect();
    assert!(lines[0].starts_with("chat "), "{targets}");
    assert!(lines[1].contains("chat"), "{targets}");
    assert!(lines[2].contains("chat"), "{targets}");
    assert_eq!(lines[3], "true none 0 false");
}

#[test]
fn the_rest_of_the_imports() {
    let folder = folder();
    let key = folder.path().join("key");
    fs::write(&key, "schlüssel").expect("written");
    let secrets = format!("secrets = {{ api = {{ file = \"{}\" }} }}", key.display());
    let gateway = start_in(folder, &secrets, "");
    let before = now_ms();
    let rest = body(&gateway, "/rest");
    let (wall, rest) = rest.split_once(' ').expect("several words");
    let wall: u128 = wall.parse().expect("a number");
    assert!((before..=now_ms()).contains(&wall), "{wall}");
    assert_eq!(rest, "true 16 0 false true schlüssel none dämo [1,2] none true");
}

fn now_ms() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_millis()
}

#[test]
fn a_callout_brings_an_answer_or_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let service = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("the gateway asks");
        let mut lines = BufReader::new(stream.try_clone().expect("a socket"));
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(lines.read_line(&mut head).expect("a head"), 0, "{head}");
        }
        let mut asked = [0; "höre".len()];
        lines.read_exact(&mut asked).expect("a body");
        let answer = "HTTP/1.1 203 So\r\nX-User: Zo\u{eb}\r\nContent-Length: 7\r\n\r\nh\u{f6}ren\n";
        stream.write_all(answer.as_bytes()).expect("it listens");
        (head, String::from_utf8(asked.to_vec()).expect("text"))
    });
    let upstream = |address: SocketAddr| format!("[upstream.auth]\naddress = \"http://{address}\"");
    let gateway = start("upstreams = [\"auth\"]", &upstream(address));
    assert_eq!(body(&gateway, "/callout"), "203 Zoë none hören\n");
    let (head, asked) = service.join().expect("no panic");
    assert!(head.starts_with("POST /check?"), "{head}");
    assert!(head.to_ascii_lowercase().contains("x-asked: jä\r\n"), "{head}");
    assert_eq!(asked, "höre");
    // Nobody listens there now.
    let said = body(&gateway, "/callout");
    assert!(said.starts_with("error 2 ") && said.len() > "error 2 ".len(), "{said}");
    assert_eq!(body(&start("", &upstream(address)), "/callout"), "error 0 ");
}

// === A million decisions ===

const DECISIONS: u32 = 1_000_000;

/// Bytes of memory that this process has for its own.
fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("Linux says so");
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok()).expect("a number") * 1024
}

/// What this thread has computed for.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("Linux has it").into()
}

fn requests(policy: &str) -> Vec<Arc<Request>> {
    let peer = Peer::Tcp(SocketAddr::from(([127, 0, 0, 1], 7)));
    let origin = Arc::new(Origin { peer, local: "127.0.0.1:80".into(), listener: "http".into() });
    let files = files(&cases(policy), "http");
    let heads =
        files.iter().filter_map(|file| RequestHead::parse(&fs::read(file).expect("a case"), Limits::default()).ok());
    heads.map(|head| Arc::new(Request::new(Id::new(), head, Arc::clone(&origin), None))).collect()
}

fn generation(module: &str, policy: &str, change: impl FnOnce(&mut Options)) -> Arc<Generation> {
    let mut options = Options::new(policy, shipped(module));
    options.config = json(&cases(policy).join("config.json"));
    // The machine may be busy with others.
    options.deadline = Duration::from_millis(100);
    change(&mut options);
    let engine = Engine::new(1).expect("an engine");
    Policy::load(&engine, options, None).unwrap_or_else(|error| panic!("{module}: {error}")).current()
}

/// One instance decides a million times. It may have not a page more than 256 KiB, and a million decisions leave more
/// than a gigabyte behind: a decision that was not collected would end it.
fn decides_a_million_times(module: &str, policy: &str) -> Duration {
    let generation = generation(module, policy, |options| {
        options.reuse_max = DECISIONS + 1;
        options.memory_bytes_max = 256 << 10;
    });
    let requests = requests(policy);
    assert!(requests.len() > 10, "{}", requests.len());
    let decide = |count: u32| {
        for request in requests.iter().cycle().take(count as usize) {
            generation.on_request_at_once(0, request).unwrap_or_else(|error| panic!("{module}: {error}"));
        }
    };
    decide(10_000);
    let before = resident_bytes();
    let began = processor_time();
    decide(DECISIONS - 10_000);
    let took = processor_time() - began;
    let after = resident_bytes();
    assert!(after < before + (8 << 20), "{module}: {before} to {after} bytes");
    took / (DECISIONS - 10_000)
}

/// What a decision costs in an instance that was made for it.
fn decides_afresh(module: &str, policy: &str) -> Duration {
    const COUNT: u32 = 5_000;
    let generation = generation(module, policy, |options| options.reuse_max = 0);
    let requests = requests(policy);
    let began = processor_time();
    for request in requests.iter().cycle().take(COUNT as usize) {
        generation.on_request_at_once(0, request).unwrap_or_else(|error| panic!("{module}: {error}"));
    }
    (processor_time() - began) / COUNT
}

/// With `--nocapture` it says what a decision costs of the processor.
#[test]
fn a_million_decisions_and_memory_stays_what_it_was() {
    for (module, policy) in
        [("bearer-assemblyscript", "bearer"), ("router-assemblyscript", "router"), ("bearer-rust", "bearer")]
    {
        let warm = decides_a_million_times(module, policy);
        println!("{module}: {warm:?} warm, {:?} fresh", decides_afresh(module, policy));
    }
}
