//! The joint between the gateway and the policy.

use std::sync::OnceLock;

use crate::config::Config;
use crate::verdict::{self, Verdict, judge};

wit_bindgen::generate!({
    path: "../../../wit",
    // The hooks that this policy has, and no more: the gateway calls only what a module exports.
    inline: "
        package example:auth-request;
        world auth-request {
            include baton:policy/imports@0.1.0;
            export baton:policy/request-hook@0.1.0;
            export baton:policy/lifecycle@0.1.0;
        }
    ",
    world: "example:auth-request/auth-request",
    generate_all,
});

use baton::policy::callout::{self, Answer, Call, CallError};
use baton::policy::log::{self, Level};
use baton::policy::request;
use baton::policy::types::{Action, Decision, Edits, Field, Handoff, RelayMode, Respond};
use exports::baton::policy::lifecycle::{self, Requirements};
use exports::baton::policy::request_hook;

struct AuthRequest;

export!(AuthRequest);

/// Set once by `configure`; every later instance starts from the memory that it left.
static CONFIG: OnceLock<Config> = OnceLock::new();

impl lifecycle::Guest for AuthRequest {
    fn configure(config: String) -> Result<Requirements, Vec<String>> {
        let config = Config::parse(&config)?;
        let targets = config.target.iter().cloned().collect();
        CONFIG.set(config).map_err(|_| vec!["configured twice".to_owned()])?;
        Ok(Requirements { max_reuse: u32::MAX, tick_interval_ms: 0, targets })
    }

    fn on_tick() {}

    fn self_test() -> Result<(), String> {
        Ok(())
    }
}

impl request_hook::Guest for AuthRequest {
    fn on_request() -> Decision {
        let config = CONFIG.get().expect("configure runs before any request");
        match callout::fetch(&question(config)) {
            Ok(answer) => act(config, answer),
            // Somebody has to change the configuration: no use in coming back.
            Err(error @ (CallError::NotAllowed | CallError::TooLarge | CallError::Budget)) => {
                log::write(
                    Level::Error,
                    "the service could not be asked",
                    &[("error".to_owned(), format!("{error:?}"))],
                );
                problem(500, "Internal Server Error")
            }
            Err(error) => {
                log::write(Level::Warn, "the service did not answer", &[("error".to_owned(), format!("{error:?}"))]);
                problem(503, "Service Unavailable")
            }
        }
    }
}

/// What the service is asked. The names are nginx's and those of its users.
fn question(config: &Config) -> Call {
    let header = |name: &str, value: String| Field { name: name.to_owned(), value: value.into_bytes() };
    let mut headers = vec![
        header("x-original-method", request::method()),
        header("x-original-uri", request::request_target()),
        header("x-original-host", request::authority()),
        header("x-real-ip", request::client_ip()),
    ];
    for name in &config.send {
        headers.extend(request::header_all(name).into_iter().map(|value| Field { name: name.clone(), value }));
    }
    Call {
        upstream: config.upstream.clone(),
        method: "GET".to_owned(),
        path_and_query: config.path.clone(),
        headers,
        body: vec![],
        timeout_ms: config.timeout_ms,
    }
}

fn act(config: &Config, answer: Answer) -> Decision {
    let headers: Vec<_> = answer.headers.into_iter().map(|field| (field.name, field.value)).collect();
    match judge(answer.status, &headers, &config.copy) {
        Verdict::Pass(known) => Decision { action: pass(config, &known), carry: vec![], annotations: known },
        Verdict::Answer { status, headers } => {
            let headers = headers.into_iter().map(|(name, value)| Field { name, value }).collect();
            let action = Action::Respond(Respond { status, headers, body: answer.body });
            Decision { action, carry: vec![], annotations: vec![] }
        }
        Verdict::Broken(status) => {
            let status = ("status".to_owned(), status.to_string());
            log::write(Level::Error, "the service answered neither 2xx nor 401 nor 403", &[status]);
            problem(500, "Internal Server Error")
        }
    }
}

fn pass(config: &Config, known: &[(String, String)]) -> Action {
    let Some(target) = &config.target else {
        // The client's own fields of these names go, whether or not there is something to put in their place.
        let set = known.iter().map(|(name, value)| Field { name: name.clone(), value: value.clone().into_bytes() });
        return Action::Pass(Edits { remove: config.copy.clone(), set: set.collect(), append: vec![] });
    };
    Action::Handoff(Handoff {
        target: target.clone(),
        data: verdict::data(known, &request::method(), &request::path(), request::query().as_deref()),
        metadata: vec![],
        response_head: None,
        include_head: false,
        relay: RelayMode::IfNeeded,
        timeout_ms: None,
        alternates: vec![],
        response_body: vec![],
    })
}

/// Problem details (RFC 9457); the texts are ours and need no quoting.
fn problem(status: u16, title: &str) -> Decision {
    let body = format!(r#"{{"title":"{title}","status":{status},"detail":"it could not be found out who you are"}}"#);
    let mut headers = vec![Field { name: "content-type".to_owned(), value: b"application/problem+json".to_vec() }];
    if status == 503 {
        headers.push(Field { name: "retry-after".to_owned(), value: b"1".to_vec() });
    }
    Decision {
        action: Action::Respond(Respond { status, headers, body: body.into_bytes() }),
        carry: vec![],
        annotations: vec![],
    }
}
