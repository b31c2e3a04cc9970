//! What the operator asks for, and what is answered.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HOST, ORIGIN};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use super::{Rights, View};
use crate::background;
use crate::http::path::{Plus, decode};
use crate::metrics;
use crate::policy::{Policy, Reload, RollbackError, Status};
use crate::target::Figures;

type Answer = Response<Full<Bytes>>;

const JSON: &str = "application/json";
const PROBLEM: &str = "application/problem+json";
const TEXT: &str = "text/plain; charset=utf-8";

const HELP: &str = "\
GET  /healthz                  200 while clients are accepted, 503 while they are not
GET  /metrics                  figures, as Prometheus reads them
GET  /policies                 what runs, since when, and how it fares
GET  /targets                  the daemons, and what they have to do
POST /handoffs/ID/revoke       asks the daemon that has a request's client to end it
POST /policies/NAME/reload     reads the module again; 422 if it cannot be used
POST /policies/NAME/rollback   to the generation before; 409 if there is none
";

/// Answers one request.
pub(super) async fn answer(view: &Arc<View>, rights: Rights, request: &Request<Incoming>) -> Answer {
    if let Err(reason) = is_operators(request.headers(), request.uri().host()) {
        return problem(StatusCode::FORBIDDEN, reason);
    }
    let path = request.uri().path();
    let page = match path {
        "/" => Some(text(StatusCode::OK, TEXT, HELP)),
        "/healthz" if view.is_draining() => Some(text(StatusCode::SERVICE_UNAVAILABLE, TEXT, "draining\n")),
        "/healthz" => Some(text(StatusCode::OK, TEXT, "ok\n")),
        "/metrics" => Some(text(StatusCode::OK, metrics::CONTENT_TYPE, view.figures())),
        "/policies" => Some(policies(view)),
        "/targets" => Some(targets(view)),
        _ => None,
    };
    if let Some(page) = page {
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        return if is_read { page } else { not_allowed("GET, HEAD") };
    }
    if let Some(id) = path.strip_prefix("/handoffs/").and_then(|rest| rest.strip_suffix("/revoke")) {
        return revoke(view, rights, request.method(), &decode(id, Plus::Literal));
    }
    let Some((name, act)) = path.strip_prefix("/policies/").and_then(|rest| rest.rsplit_once('/')) else {
        return problem(StatusCode::NOT_FOUND, "there is nothing here; / lists what there is");
    };
    if !matches!(act, "reload" | "rollback") {
        return problem(StatusCode::NOT_FOUND, "a policy can be told to reload or to rollback");
    }
    if request.method() != Method::POST {
        return not_allowed("POST");
    }
    if rights == Rights::Look {
        return problem(StatusCode::FORBIDDEN, "changes are for a loopback address or a Unix socket");
    }
    // A configuration that is being read would replace the policy that this is done to, and undo it.
    let _turn = view.turn.lock().await;
    let Some(policy) = view.policies.load().get(&decode(name, Plus::Literal)).map(Arc::clone) else {
        return problem(StatusCode::NOT_FOUND, "no policy has that name");
    };
    if act == "reload" { reload(policy).await } else { rollback(policy).await }
}

/// Refuses what a browser sends on behalf of somebody else's page.
fn is_operators(headers: &HeaderMap, authority: Option<&str>) -> Result<(), &'static str> {
    if headers.contains_key(ORIGIN) {
        return Err("requests with an Origin are refused");
    }
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next().map(|host| host.to_str().unwrap_or_default()).or(authority).unwrap_or_default();
    if hosts.next().is_some() {
        return Err("there is one Host");
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let is_address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
    if name.eq_ignore_ascii_case("localhost") || is_address {
        Ok(())
    } else {
        Err("the Host has to be localhost or an address")
    }
}

fn policies(view: &View) -> Answer {
    let all: Vec<_> = view.statuses().iter().map(shown).collect();
    json(StatusCode::OK, JSON, &json!({ "policies": all }))
}

fn targets(view: &View) -> Answer {
    let shown = |daemon: &Figures| {
        json!({
            "target": &*daemon.target,
            "member": daemon.name,
            "path": daemon.path.display().to_string(),
            "up": daemon.is_up,
            "in_flight": daemon.in_flight,
            "load": daemon.load,
            "channels": daemon.channels,
            "taken": daemon.taken,
            "refused": daemon.refused,
            "returned": daemon.returned,
            "last_error": daemon.last_error,
        })
    };
    let all: Vec<_> = view.targets_now().iter().map(shown).collect();
    json(StatusCode::OK, JSON, &json!({ "targets": all }))
}

/// The daemon ends the client in its own time, and says so then.
fn revoke(view: &View, rights: Rights, method: &Method, id: &str) -> Answer {
    if method != Method::POST {
        return not_allowed("POST");
    }
    if rights == Rights::Look {
        return problem(StatusCode::FORBIDDEN, "changes are for a loopback address or a Unix socket");
    }
    if view.revoke(id) {
        return json(StatusCode::ACCEPTED, JSON, &json!({ "id": id, "asked": true }));
    }
    problem(StatusCode::NOT_FOUND, "no daemon of the native dialect has the client of a request of that name")
}

fn shown(status: &Status) -> Value {
    json!({
        "name": &*status.name,
        "generation": status.generation,
        "digest": status.digest.to_string(),
        "loaded_at": time(status.loaded_at),
        "hooks": status.hooks,
        "imports": status.imports,
        "instances": status.instances,
        "traps": status.traps,
        "breaker": status.breaker.word(),
        "last_error": status.last_error.as_ref().map(|last| json!({
            "at": time(last.at), "generation": last.generation, "hook": last.hook, "error": last.error,
        })),
        "last_reload": status.last_reload.as_ref().map(|last| match &last.result {
            Ok(generation) => json!({ "at": time(last.at), "generation": generation }),
            Err(error) => json!({ "at": time(last.at), "error": error.to_string() }),
        }),
    })
}

async fn reload(policy: Arc<Policy>) -> Answer {
    let asked = Arc::clone(&policy);
    match background::run("reload", move || asked.reload()).await {
        Some(Ok(done)) => changed(&policy, done),
        Some(Err(error)) => problem(StatusCode::UNPROCESSABLE_ENTITY, &error.to_string()),
        None => problem(StatusCode::INTERNAL_SERVER_ERROR, "it could not be loaded; the log says why"),
    }
}

async fn rollback(policy: Arc<Policy>) -> Answer {
    let asked = Arc::clone(&policy);
    match background::run("rollback", move || asked.rollback()).await {
        Some(Ok(done)) => changed(&policy, done),
        Some(Err(error @ RollbackError::NothingBefore)) => problem(StatusCode::CONFLICT, &error.to_string()),
        Some(Err(error)) => problem(StatusCode::UNPROCESSABLE_ENTITY, &error.to_string()),
        None => problem(StatusCode::INTERNAL_SERVER_ERROR, "it could not be loaded; the log says why"),
    }
}

fn changed(policy: &Policy, done: Reload) -> Answer {
    let current = policy.current();
    let is_changed = done != Reload::Unchanged;
    let body = json!({
        "policy": &*policy.options().name,
        "changed": is_changed,
        "generation": current.number(),
        "digest": current.digest().to_string(),
    });
    json(StatusCode::OK, JSON, &body)
}

fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

fn not_allowed(allow: &'static str) -> Answer {
    let mut answer = problem(StatusCode::METHOD_NOT_ALLOWED, "that method is not for this");
    answer.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static(allow));
    answer
}

fn problem(status: StatusCode, detail: &str) -> Answer {
    let title = status.canonical_reason().unwrap_or_default();
    json(status, PROBLEM, &json!({ "title": title, "status": status.as_u16(), "detail": detail }))
}

fn json(status: StatusCode, media_type: &'static str, body: &Value) -> Answer {
    text(status, media_type, format!("{body:#}\n"))
}

fn text(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let media_type = hyper::header::HeaderValue::from_static(media_type);
    answer.headers_mut().insert(CONTENT_TYPE, media_type);
    answer
}
