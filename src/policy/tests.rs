//! Real guests (`tests/policies`), each doing one thing well or badly. After every fault the next call must be served.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::LazyLock;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use super::*;
use crate::decision::{Action, Decision, Field, RelayMode};
use crate::http::head::{Limits, RequestHead};
use crate::request::{Id, Origin, Peer, Request};

pub(super) static ENGINE: LazyLock<Engine> = LazyLock::new(|| Engine::new(2).expect("an engine"));

pub(super) fn options(guest: &str) -> Options {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/policies").join(guest).with_extension("wat");
    // The machine that runs the tests may be busy with others.
    Options { deadline: Duration::from_millis(100), ..Options::new("gate", module) }
}

pub(super) fn load(guest: &str) -> Policy {
    Policy::load(&ENGINE, options(guest), None).unwrap_or_else(|error| panic!("{guest}: {error}"))
}

fn refused(guest: &str) -> String {
    Policy::load(&ENGINE, options(guest), None).expect_err(guest).to_string()
}

fn request(head: &str) -> Arc<Request> {
    let head = RequestHead::parse(head.as_bytes(), Limits::default()).expect("well-formed");
    let peer = Peer::Tcp(SocketAddr::from(([192, 0, 2, 1], 7)));
    let origin = Origin { peer, local: "127.0.0.1:80".into(), listener: "http".into() };
    Arc::new(Request::new(Id::new(), head, Arc::new(origin), None))
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime").block_on(future)
}

pub(super) fn decide(generation: &Generation) -> Result<Decision, PolicyError> {
    let request = request("GET /a//b HTTP/1.1\r\nHost: x\r\nX-Data: payload\r\n\r\n");
    block_on(generation.on_request(0, &request, &BodyPort::empty()))
}

pub(super) fn status(decision: Result<Decision, PolicyError>) -> u16 {
    match decision.expect("it decides").action {
        Action::Respond(respond) => respond.status,
        action => panic!("not an answer: {action:?}"),
    }
}

/// Asks twice: the failure must be the same, because the first one cost nothing but an instance.
fn failing(guest: &str) -> String {
    let generation = load(guest).current();
    let first = decide(&generation).expect_err(guest).to_string();
    let second = decide(&generation).expect_err(guest).to_string();
    assert_eq!(first, second);
    assert_eq!(status(decide(&load("answers").current())), 231);
    first
}

#[test]
fn a_policy_answers_with_what_it_reads() {
    let decision = decide(&load("answers").current()).expect("it decides");
    let Action::Respond(respond) = decision.action else { panic!("not an answer") };
    assert_eq!(respond.body, b"/a/b");
    assert_eq!(respond.headers, [Field { name: "x-policy".into(), value: b"text/plain".to_vec() }]);
}

#[test]
fn a_policy_hands_over() {
    let Action::Handoff(handoff) = decide(&load("hands_over").current()).expect("it decides").action else {
        panic!("not a handoff")
    };
    assert_eq!((&*handoff.target, &*handoff.data, handoff.relay), ("chat", &b"payload"[..], RelayMode::IfNeeded));
    let Action::Handoff(handoff) = decide(&load("utf16").current()).expect("it decides").action else {
        panic!("not a handoff")
    };
    assert_eq!((&*handoff.target, handoff.relay), ("chat", RelayMode::Never));
}

#[test]
fn a_policy_without_an_opinion_passes() {
    let action = decide(&load("passes").current()).expect("it decides").action;
    assert!(matches!(action, Action::Pass(edits) if edits.is_empty()));
}

#[test]
fn a_trap_names_the_functions_it_came_through() {
    assert_eq!(failing("traps"), "trap: wasm `unreachable` instruction executed at give_up < decide");
}

#[test]
fn an_endless_loop_ends_at_the_deadline() {
    let began = Instant::now();
    assert_eq!(failing("spins"), "deadline of 100ms exceeded at decide");
    assert!(began.elapsed() > Duration::from_millis(200), "a deadline is not retried, and not early");
}

#[test]
fn memory_is_bounded_and_the_limit_is_named() {
    let said = failing("eats_memory");
    assert!(said.starts_with("trap: wasm `unreachable` instruction executed (memory_max of 33554432 bytes"), "{said}");
}

#[test]
fn recursion_is_bounded() {
    let said = failing("recurses");
    assert!(said.starts_with("trap: call stack exhausted at dig < dig"), "{said}");
    assert!(said.ends_with("dig < …"), "{said}");
}

#[test]
fn decisions_that_cannot_be_used_are_failures() {
    let bad = "bad value: ";
    assert_eq!(failing("giant"), format!("{bad}the decision is larger than 1048576 bytes (decision_bytes_max)"));
    assert_eq!(failing("bad_status"), format!("{bad}status 999 is outside 200 to 599"));
    assert_eq!(failing("splits"), format!("{bad}value of field x-a contains a control character"));
    let said = failing("bad_text");
    assert!(said.starts_with("bad value: invalid utf-8"), "{said}");
}

#[test]
fn instances_are_reused_as_often_as_both_sides_allow() {
    let asked = |reuse_max| {
        let policy = Policy::load(&ENGINE, Options { reuse_max, ..options("counts") }, None).expect("it loads");
        let generation = policy.current();
        (0..5).map(|_| status(decide(&generation))).collect::<Vec<_>>()
    };
    assert_eq!(asked(1000), [200, 201, 202, 203, 204]);
    assert_eq!(asked(2), [200, 201, 200, 201, 200]);
    assert_eq!(asked(1), [200; 5]);
    assert_eq!(asked(0), [200; 5]);
}

#[test]
fn a_trap_is_tried_again_on_a_fresh_instance_unless_it_spoke() {
    let generation = load("wears_out").current();
    for _ in 0..3 {
        decide(&generation).expect("the second instance decides");
    }
    let generation = load("logs").current();
    decide(&generation).expect("the first call passes");
    decide(&generation).expect_err("what was logged is not logged twice");
    decide(&generation).expect("and the instance is another one");
}

#[test]
fn configure_is_the_template_of_every_instance() {
    let config = serde_json::json!({ "realm": "demo" });
    let policy = Policy::load(&ENGINE, Options { config, ..options("configured") }, None).expect("it loads");
    let generation = policy.current();
    assert_eq!(generation.hooks(), ["on-request", "configure", "self-test"]);
    for _ in 0..5 {
        let Action::Respond(respond) = decide(&generation).expect("it decides").action else { panic!("not an answer") };
        assert_eq!(respond.body, b"{\"realm\":\"demo\"}");
    }
}

#[test]
fn a_snapshot_keeps_the_names_of_functions() {
    // An empty configuration is `{}`, on which this guest gives up.
    assert_eq!(failing("configured"), "trap: wasm `unreachable` instruction executed at oops < decide");
}

#[test]
fn a_module_that_is_not_ready_is_refused_and_says_why() {
    assert_eq!(refused("configure_refuses"), "configure: realm is missing; secret is too short");
    assert_eq!(refused("self_test_fails"), "self-test: two and two are five");
    let said = refused("configure_asks");
    assert!(said.starts_with("configure: trap: request.path was called outside of a hook"), "{said}");
    let said = refused("start_traps");
    assert!(said.starts_with("instantiate: trap: wasm `unreachable` instruction executed at begin"), "{said}");
    let said = refused("needs_memory");
    assert!(said.contains("memory_max of 33554432 bytes was reached: 67108864 bytes were wanted"), "{said}");
    let said = refused("wants_nothing");
    assert!(
        said.starts_with("imports: imports baton:policy/nothing@0.1.0.status: wit/policy.wit has no such interface"),
        "{said}"
    );
    assert!(refused("wrong_world").starts_with("exports: "));
    let said = refused("absent");
    assert!(said.starts_with("read: ") && said.contains("absent.wat"), "{said}");
}

#[test]
fn only_the_state_after_configure_has_to_be_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let module = folder.path().join("p.wat");
    let load = |hook: &str| {
        let table = "(table 1 funcref) (func (table.set (i32.const 0) (ref.null func)))";
        let text = fs::read_to_string(options("configured").module).expect("a guest").replace("\"configure\"", hook);
        fs::write(&module, text.replace("(module", &format!("(module {table}"))).expect("written");
        Policy::load(&ENGINE, Options { module: module.clone(), ..options("configured") }, None)
    };
    let said = load("\"configure\"").expect_err("a table cannot be kept").to_string();
    assert!(said.contains("cannot be kept: unsupported `table.set` instruction; use config.get"), "{said}");
    let said = load("\"not_configure\"").expect_err("it tests whether it was configured").to_string();
    assert_eq!(said, "self-test: ");
}

#[test]
fn configure_is_ended_at_its_own_deadline() {
    let configure_deadline = Duration::from_millis(50);
    let options = Options { configure_deadline, ..options("configure_spins") };
    let said = Policy::load(&ENGINE, options, None).expect_err("it never ends").to_string();
    assert!(said.starts_with("configure: deadline of ") && said.contains(" exceeded at read_config"), "{said}");
}

#[test]
fn all_hooks_of_a_module_are_listed() {
    assert_eq!(load("many_hooks").current().hooks(), ["on-request", "on-response", "on-tick"]);
}

#[test]
fn a_hook_of_another_type_than_the_contracts_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let module = folder.path().join("p.wat");
    let text = fs::read_to_string(options("many_hooks").module).expect("a guest");
    for (hook, wrong) in [("on_tick\")", "on_tick\") (param i32)"), ("(param i32 i32) (result i32)", "(param i32)")] {
        assert!(text.contains(hook));
        fs::write(&module, text.replace(hook, wrong)).expect("written");
        let said = Policy::load(&ENGINE, Options::new("gate", module.clone()), None).expect_err(wrong).to_string();
        assert!(said.starts_with("componentize: ") || said.starts_with("exports: "), "{said}");
    }
}

#[test]
fn an_upstreams_head_is_seen_in_on_response_only() {
    let generation = load("sees_response").current();
    let request = request("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    let fields = vec![Field { name: "x-socket-handoff".into(), value: b"/run/a.sock".to_vec() }];
    let elapsed = Duration::from_micros(250);
    let response = Arc::new(UpstreamHead { status: 207, fields, upstream: "app".into(), elapsed });
    let asked = block_on(generation.on_response(0, &request, &BodyPort::empty(), &response, b"carried"));
    let decision = asked.expect("it decides");
    let Action::Respond(respond) = decision.action else { panic!("not an answer") };
    assert_eq!((respond.status, &*respond.body, &*decision.carry), (207, &b"/run/a.sock"[..], &b"carried"[..]));
    let said = decide(&generation).expect_err("there is no response yet").to_string();
    assert!(said.contains("response.status was called outside of on-response"), "{said}");
}

#[test]
fn what_is_known_of_a_policy_can_be_asked() {
    let folder = tempfile::tempdir().expect("a folder");
    let module = folder.path().join("p.wasm");
    let text = |guest: &str| fs::read(options(guest).module).expect("a guest");
    fs::write(&module, text("traps")).expect("written");
    let breaker = BreakerOptions { failures: 3, ..BreakerOptions::default() };
    let options = Options { breaker, deadline: Duration::from_millis(100), ..Options::new("gate", module.clone()) };
    let policy = Policy::load(&ENGINE, options, None).expect("it loads");
    let status = policy.status();
    assert_eq!((&*status.name, status.generation, status.digest), ("gate", 1, policy.current().digest()));
    assert_eq!((status.traps, status.breaker.word(), status.instances), (0, "closed", 0));
    assert_eq!((status.hooks, status.imports), (vec!["on-request"], vec![]));
    assert_eq!((status.last_error, status.last_reload), (None, None));

    for _ in 0..3 {
        decide(&policy.current()).expect_err("it traps");
    }
    assert_eq!(decide(&policy.current()), Err(PolicyError::BreakerOpen));
    let status = policy.status();
    assert_eq!((status.traps, status.breaker.word(), status.instances), (6, "open", 0), "each was tried twice");
    let last = status.last_error.expect("it failed");
    assert_eq!((last.hook, last.generation), ("on-request", 1));
    assert!(last.error.starts_with("trap: "), "{last:?}");

    fs::write(&module, text("answers")).expect("written");
    policy.reload().expect("it can be used");
    decide(&policy.current()).expect("another generation has a breaker of its own");
    let status = policy.status();
    assert_eq!((status.generation, status.breaker.word(), status.instances), (2, "closed", 1));
    assert_eq!(status.imports.iter().map(|name| &name[..20]).collect::<Vec<_>>(), ["baton:policy/request"]);
    assert_eq!(status.last_reload.map(|last| last.result), Some(Ok(2)));
    fs::write(&module, text("start_traps")).expect("written");
    let error = policy.reload().expect_err("it cannot");
    assert_eq!(policy.status().last_reload.map(|last| last.result), Some(Err(error)));
    drop(policy.current());
}

#[test]
fn so_many_calls_of_on_complete_wait_and_one_more_is_counted() {
    let generation = load("many_hooks").current();
    let places: Vec<_> = std::iter::from_fn(|| generation.place_to_complete()).take(2000).collect();
    assert_eq!(places.len(), 1024);
    assert!(generation.place_to_complete().is_none());
    let lines = logged(|| drop(places));
    assert!(lines.len() == 1 && lines[0].contains("left out: over 1024 waited"), "{lines:#?}");
    assert!(lines[0].contains("calls=2") && lines[0].contains("policy=gate generation=1"), "{lines:#?}");
    assert!(generation.place_to_complete().is_some());
}

#[test]
fn ten_thousand_calls_that_fail_leave_no_instance() {
    let breaker = BreakerOptions { failures: 0, ..BreakerOptions::default() };
    let policy = Policy::load(&ENGINE, Options { breaker, ..options("traps") }, None).expect("it loads");
    let request = request("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    for _ in 0..10_000 {
        policy.current().on_request_at_once(0, &request).expect_err("it traps");
    }
    assert_eq!((policy.status().instances, policy.status().traps), (0, 20_000));
}

#[test]
fn required_targets_can_only_narrow() {
    let narrowed = |allowed: Option<&[&str]>, wanted: &[&str]| {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        generation::narrow(allowed.map(owned), None, &owned(wanted))
    };
    assert_eq!(narrowed(Some(&["a", "b"]), &["b"]), Ok(Some(vec!["b".to_owned()])));
    assert_eq!(narrowed(Some(&["a"]), &[]), Ok(Some(vec!["a".to_owned()])));
    assert_eq!(narrowed(None, &["c"]), Ok(Some(vec!["c".to_owned()])));
    assert!(narrowed(Some(&["a"]), &["c"]).is_err());
    let known = ["a".to_owned()];
    assert!(generation::narrow(None, Some(&known), &["c".to_owned()]).is_err());
    let targets = Some(vec!["chat".to_owned()]);
    let policy = Policy::load(&ENGINE, Options { targets, ..options("passes") }, None).expect("it loads");
    let may = |target| policy.current().may_name(target);
    assert_eq!([may("chat"), may("other"), may("/run/a.sock")], [true, false, false]);
}

#[test]
fn a_body_is_seen_through_whoever_holds_the_client() {
    let generation = load("reads_body").current();
    assert!(generation.reads_body() && !load("answers").current().reads_body());
    let request = request("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\n\r\n");
    let asked = |prefix: Result<&'static [u8], BodyError>, wait: Duration| {
        block_on(async {
            let (port, mut peeks) = BodyPort::open();
            let decision = generation.on_request(1, &request, &port);
            let serve = async {
                let peek = peeks.next().await.expect("it asks");
                assert_eq!(peek.bytes_max(), 16);
                tokio::time::sleep(wait).await;
                peek.answer(prefix.map(<[u8]>::to_vec));
            };
            tokio::join!(decision, serve).0
        })
    };
    let Ok(Decision { action: Action::Respond(respond), .. }) = asked(Ok(b"begins so"), Duration::ZERO) else {
        panic!("not an answer")
    };
    assert_eq!((respond.status, &*respond.body), (200, &b"begins so"[..]));
    assert_eq!(status(asked(Err(BodyError::TimedOut), Duration::ZERO)), 501);
    let beyond = 3 * options("reads_body").deadline;
    assert_eq!(status(asked(Ok(b"late"), beyond)), 200, "waiting is not the guest's time");
    assert_eq!(status(decide(&generation)), 200, "a request without a body has an empty one");
}

#[test]
fn a_client_that_leaves_takes_its_instance_with_it() {
    let generation = load("reads_body").current();
    let request = request("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\n\r\n");
    block_on(async {
        let (port, mut peeks) = BodyPort::open();
        let decision = generation.on_request(0, &request, &port);
        tokio::select! {
            _ = decision => panic!("nobody answered it"),
            peek = peeks.next() => assert!(peek.is_some()),
        }
    });
    assert_eq!(status(decide(&generation)), 200);
}

#[test]
fn when_all_instances_are_taken_the_next_request_fails_and_says_so() {
    let engine = Engine::new(1).expect("an engine");
    let generation = Policy::load(&engine, options("reads_body"), None).expect("it loads").current();
    let waiting_request = request("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\n\r\n");
    let (port, _peeks) = BodyPort::open();
    let mut waiting = Vec::new();
    let error = loop {
        assert!(waiting.len() < 10_000, "there is a bound");
        let mut decision = Box::pin(generation.on_request(0, &waiting_request, &port));
        match decision.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => waiting.push(decision),
            Poll::Ready(decision) => break decision.expect_err("nobody answers"),
        }
    };
    assert!(matches!(&error, PolicyError::Exhausted(said) if said.contains("limit of 1064")), "{error}");
    drop(waiting);
    assert_eq!(status(decide(&generation)), 200);
}

#[test]
fn a_component_is_held_to_the_same_imports() {
    let folder = tempfile::tempdir().expect("a folder");
    let refused = |text: &str| {
        let module = folder.path().join("p.wasm");
        fs::write(&module, text).expect("written");
        Policy::load(&ENGINE, Options::new("gate", module), None).expect_err(text).to_string()
    };
    let said = refused(r#"(component (import "wasi:cli/stdout@0.3.0" (instance)))"#);
    assert!(
        said.starts_with("imports: imports wasi:cli/stdout@0.3.0: of WASI the gateway offers 0.2 to comp"),
        "{said}"
    );
    let waits = r#"(export "wait-for" (func async (param "how-long" u64)))"#;
    let said = refused(&format!(r#"(component (import "wasi:clocks/monotonic-clock@0.3.0" (instance {waits})))"#));
    assert!(said.starts_with("compile: ") && said.ends_with("; build for WASI 0.2"), "{said}");
    // It is there, whatever else is missing.
    let said = refused(r#"(component (import "wasi:cli/stdout@0.2.6" (instance)))"#);
    assert!(said.ends_with("it exports nothing"), "{said}");
    let said = refused(r#"(component (import "baton:policy/request@0.2.0" (instance)))"#);
    assert!(said.contains("speaks baton:policy@0.1.0"), "{said}");
    assert!(refused("(component)").ends_with("it exports nothing"));
}

/// What is logged while `run` runs, by line.
pub(super) fn logged(run: impl FnOnce()) -> Vec<String> {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("nobody panicked").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    // With one subscriber alone, whichever thread comes first to a line decides for all whether anybody wants it.
    static ANOTHER: LazyLock<tracing::Dispatch> =
        LazyLock::new(|| tracing::Dispatch::new(tracing_subscriber::fmt().with_writer(std::io::sink).finish()));
    LazyLock::force(&ANOTHER);
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, run);
    let bytes = lines.0.lock().expect("nobody panicked");
    String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect()
}

#[test]
fn a_log_line_says_whose_it_is_and_a_flood_is_cut() {
    let lines = logged(|| {
        let generation = load("logs").current();
        decide(&generation).expect("it passes");
    });
    assert_eq!(lines.len(), 101, "1,000 were written, 100 are allowed in a second");
    let said = r#"WARN policy: first\r\nsecond\u{1b}[31m policy="gate" generation=1 request="#;
    assert!(lines[0].contains(said), "{}", lines[0]);
    assert!(lines[100].contains("900 lines left out: more than 100 in a second"), "{}", lines[100]);
}

#[test]
fn decisions_can_be_made_on_any_task() {
    fn is_send<T: Send>(_: &T) {}
    let generation = load("answers").current();
    let (request, port) = (request("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), BodyPort::empty());
    is_send(&generation.on_request(0, &request, &port));
}
