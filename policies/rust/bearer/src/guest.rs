//! The joint between the gateway and the policy.

use std::sync::OnceLock;

use crate::bearer::{self, Answer, Request};
use crate::config::Config;

wit_bindgen::generate!({
    path: "../../../wit",
    // The hooks that this policy has, and no more: the gateway calls only what a module exports.
    inline: "
        package example:bearer;
        world bearer {
            include baton:policy/imports@0.1.0;
            export baton:policy/request-hook@0.1.0;
            export baton:policy/lifecycle@0.1.0;
        }
    ",
    world: "example:bearer/bearer",
    generate_all,
});

use baton::policy::log::{self, Level};
use baton::policy::request;
use baton::policy::types::{Action, Decision, Field, Handoff, RelayMode, Respond};
use exports::baton::policy::lifecycle::{self, Requirements};
use exports::baton::policy::request_hook;

struct Bearer;

export!(Bearer);

/// Set once by `configure`; every later instance starts from the memory that it left.
static CONFIG: OnceLock<Config> = OnceLock::new();

impl lifecycle::Guest for Bearer {
    fn configure(config: String) -> Result<Requirements, Vec<String>> {
        let config = Config::parse(&config)?;
        log::write(
            Level::Info,
            "configured",
            &[("realm".into(), config.realm.clone()), ("tokens".into(), config.tokens.len().to_string())],
        );
        let targets = vec![config.target.clone()];
        CONFIG.set(config).map_err(|_| vec!["configured twice".to_owned()])?;
        Ok(Requirements { max_reuse: u32::MAX, tick_interval_ms: 0, targets })
    }

    fn on_tick() {}

    fn self_test() -> Result<(), String> {
        bearer::self_test()
    }
}

impl request_hook::Guest for Bearer {
    fn on_request() -> Decision {
        // A trap, if the gateway had not configured us; it then applies `on_error`.
        let config = CONFIG.get().expect("configure runs before any request");
        let request = Request { method: request::method(), path: request::path(), query: request::query() };
        match bearer::decide(config, &request::header_all("authorization"), &request) {
            Answer::HandOver { user, data } => Decision {
                action: Action::Handoff(Handoff {
                    target: config.target.clone(),
                    data,
                    metadata: vec![],
                    response_head: None,
                    include_head: false,
                    relay: RelayMode::IfNeeded,
                    timeout_ms: None,
                    alternates: vec![],
                    response_body: Vec::new(),
                }),
                carry: vec![],
                annotations: vec![("user".to_owned(), user.to_owned())],
            },
            Answer::Refuse(refusal) => {
                // Never the token. The level is asked for first: an attacker decides how often this runs.
                if log::enabled(Level::Debug) {
                    log::write(Level::Debug, refusal.detail, &[]);
                }
                let header = |name: &str, value: String| Field { name: name.to_owned(), value: value.into_bytes() };
                Decision {
                    action: Action::Respond(Respond {
                        status: refusal.status,
                        headers: vec![
                            header("www-authenticate", refusal.challenge(&config.realm)),
                            header("content-type", "application/problem+json".to_owned()),
                        ],
                        body: refusal.body(),
                    }),
                    carry: vec![],
                    annotations: vec![],
                }
            }
        }
    }
}
