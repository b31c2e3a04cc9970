//! A file's bytes to a module that is known to work: componentized, compiled, configured and tested before any request
//! sees it. Blocking; runs off the workers.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use wasmtime::component::Component;
use wasmtime::component::types::ComponentItem;

use super::Options;
use super::bindings::Requirements;
use super::body::BodyPort;
use super::componentize::{self, FOREIGN_REMEDY, LIFECYCLE, REQUEST_HOOK, VERSION_REMEDY, WASI_REMEDY};
use super::epoch::Deadline;
use super::error::{LoadError, PolicyError, Stage};
use super::hooks;
use super::host::{self, Engine, Instance, Template};
use super::imports::{Call, Identity};
use super::limits::Limits;
use super::preview1;
use super::snapshot;
use super::status::Tally;
use super::wasi;
use crate::http::head::{self, RequestHead};
use crate::request::{Id, Origin, Peer, Request};

/// Everything that a module may export.
const HOOKS: [(&str, &str); 8] = [
    (CONNECTION_HOOK, "on-connect"),
    (REQUEST_HOOK, "on-request"),
    (RESPONSE_HOOK, "on-response"),
    (FAILURE_HOOK, "on-handoff-failed"),
    (COMPLETE_HOOK, "on-complete"),
    (LIFECYCLE, "configure"),
    (LIFECYCLE, "on-tick"),
    (LIFECYCLE, "self-test"),
];

/// `on-connect`.
pub(super) const CONNECTION_HOOK: &str = "baton:policy/connection-hook@0.1.0";
/// `on-response`.
pub(super) const RESPONSE_HOOK: &str = "baton:policy/response-hook@0.1.0";
/// `on-handoff-failed`.
pub(super) const FAILURE_HOOK: &str = "baton:policy/failure-hook@0.1.0";
/// `on-complete`.
pub(super) const COMPLETE_HOOK: &str = "baton:policy/complete-hook@0.1.0";

/// Interfaces of the contract that can be imported.
const OFFERED: [&str; 11] =
    ["types", "request", "response", "log", "metrics", "config", "clock", "random", "store", "targets", "callout"];
/// Functions of theirs that wait.
const WAITING: [(&str, &str); 2] = [("request", "body-prefix"), ("callout", "fetch")];
/// The contract's own version.
const VERSION: &str = "0.1.0";

/// A module that works.
#[derive(Debug)]
pub(super) struct Proven {
    pub(super) template: Template,
    /// Names of the hooks that it exports, as in `wit/policy.wit`.
    pub(super) hooks: Vec<&'static str>,
    /// Names of the interfaces that it imports.
    pub(super) imports: Vec<String>,
    /// What `configure` asked for.
    pub(super) requirements: Option<Requirements>,
}

impl Proven {
    /// The interval of its ticks, where it asked for any.
    pub(super) fn tick_ms(&self) -> Option<u32> {
        self.requirements.as_ref().map(|requirements| requirements.tick_interval_ms).filter(|&ms| ms > 0)
    }
}

/// Proves the module in `file`.
pub(super) fn prove(
    engine: &Engine,
    options: &Options,
    identity: &Arc<Identity>,
    tally: &Arc<Tally>,
    file: &[u8],
) -> Result<Proven, LoadError> {
    let plain = componentize::componentize(file)?;
    // What is configured is compiled twice: to run `configure`, and with the state that it left.
    let prepared = may_configure(&plain).then(|| snapshot::prepare(&plain));
    let component = engine.compile(match &prepared {
        Some(Ok(prepared)) => &prepared.instrumented,
        _ => &plain,
    })?;
    let suspends = check_imports(&component)?;
    let hooks = find_hooks(&component)?;
    let limits = Limits { memory_bytes_max: options.memory_bytes_max, decision_bytes_max: options.decision_bytes_max };
    let template = |component: &Component| {
        Template::new(engine, component, Arc::clone(identity), Arc::clone(tally), limits, suspends)
    };
    let configures = hooks.contains(&"configure");
    let world = component.component_type();
    let imports = world.imports(component.engine()).map(|(name, _)| name.to_owned());
    // Types alone give nothing.
    let imports = imports.filter(|name| !name.starts_with("baton:policy/types@")).collect();
    let mut proven = Proven { template: template(&component)?, hooks, imports, requirements: None };
    let mut deadline = Deadline::after(options.configure_deadline);
    match prepared {
        Some(prepared) if configures => {
            let prepared = prepared?;
            let mut instance = now(proven.template.instantiate(deadline)).map_err(stage(Stage::Instantiate))?;
            proven.requirements = configure(&mut instance, options, deadline)?;
            let configured = now(prepared.take(&mut instance))?;
            drop(instance);
            // Compiling is not the guest's time.
            proven.template = now(deadline.stopped(async { template(&engine.compile(&configured)?) }))?;
        }
        // It only looked as if.
        Some(Ok(_)) => proven.template = template(&engine.compile(&plain)?)?,
        _ => {}
    }
    identity.set_configured();
    let mut instance = now(proven.template.instantiate(deadline)).map_err(stage(Stage::Instantiate))?;
    hooks::check_types(&mut instance).map_err(stage(Stage::Exports))?;
    match now(instance.self_test(test_call(), deadline)).map_err(stage(Stage::SelfTest))? {
        Ok(()) => Ok(proven),
        Err(fault) => Err(LoadError::new(Stage::SelfTest, fault)),
    }
}

/// What can be said of a component that was not run.
pub(super) struct Examined {
    /// Names of the hooks that it exports, as in `wit/policy.wit`.
    pub(super) hooks: Vec<&'static str>,
}

/// Compiles and looks at it: does it export what it must, and import only what it may?
pub(super) fn examine(engine: &Engine, component: &[u8]) -> Result<Examined, LoadError> {
    let component = engine.compile(component)?;
    check_imports(&component)?;
    Ok(Examined { hooks: find_hooks(&component)? })
}

fn configure(
    instance: &mut Instance,
    options: &Options,
    deadline: Deadline,
) -> Result<Option<Requirements>, LoadError> {
    let config = options.config.to_string();
    match now(instance.configure(&config, deadline)).map_err(stage(Stage::Configure))? {
        None => Ok(None),
        Some(Ok(requirements)) => Ok(Some(requirements)),
        Some(Err(faults)) => Err(LoadError::new(Stage::Configure, faults.join("; "))),
    }
}

fn stage(stage: Stage) -> impl Fn(PolicyError) -> LoadError {
    move |error| LoadError::new(stage, error)
}

/// Whether a component may export `configure`: a cheap look that never misses one.
fn may_configure(component: &[u8]) -> bool {
    let contains = |text: &str| memchr::memmem::find(component, text.as_bytes()).is_some();
    contains(LIFECYCLE) && contains("configure")
}

/// Refuses what is not offered, and tells whether anything that is imported waits.
fn check_imports(component: &Component) -> Result<bool, LoadError> {
    let engine = component.engine();
    let mut suspends = false;
    for (name, import) in component.component_type().imports(engine) {
        let refuse = |reason: &str| Err(LoadError::new(Stage::Imports, format!("imports {name}: {reason}")));
        if name == preview1::INTERFACE {
            continue;
        }
        if wasi::is_offered(name) {
            continue;
        }
        let Some(rest) = name.strip_prefix("baton:policy/") else {
            let remedy = if name.starts_with("wasi:") { WASI_REMEDY } else { FOREIGN_REMEDY };
            return refuse(remedy);
        };
        let (interface, version) = rest.split_once('@').unwrap_or((rest, ""));
        if version != VERSION {
            return refuse(VERSION_REMEDY);
        }
        if !OFFERED.contains(&interface) {
            return refuse("this version of the gateway does not offer that interface yet; do without it");
        }
        if let ComponentItem::ComponentInstance(instance) = import.ty {
            let is_there = |function: &str| instance.get_export(engine, function).is_some();
            suspends |= WAITING.iter().any(|(of, function)| *of == interface && is_there(function));
        }
    }
    Ok(suspends)
}

fn find_hooks(component: &Component) -> Result<Vec<&'static str>, LoadError> {
    let found = HOOKS.iter().filter(|(interface, hook)| host::hook(component, interface, hook).is_some());
    let hooks: Vec<_> = found.map(|&(_, hook)| hook).collect();
    if hooks.contains(&"on-request") {
        return Ok(hooks);
    }
    let names: Vec<_> =
        component.component_type().exports(component.engine()).map(|(name, _)| name.to_owned()).collect();
    Err(componentize::no_request_hook(&names.join(", ")))
}

/// `GET /` with nothing in it, from nowhere.
fn test_call() -> Call {
    let text = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let head = RequestHead::parse(text, head::Limits::default()).expect("this head is well-formed");
    let peer = Peer::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let origin = Origin { peer, local: "127.0.0.1:0".into(), listener: "self-test".into() };
    Call {
        request: Arc::new(Request::new(Id::new(), head, Arc::new(origin), None)),
        body: BodyPort::empty(),
        response: None,
    }
}

/// Runs a future that has nothing to wait for: of the imports that wait, `body-prefix` finds an empty body here, and a
/// callout is not allowed.
fn now<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("nothing in a proof waits"),
    }
}
