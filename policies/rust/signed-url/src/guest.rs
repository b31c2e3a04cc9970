//! The joint between the gateway and the policy.

use std::sync::OnceLock;

use crate::config::Config;
use crate::signature::{self, Answer, KEY_BYTES_MIN, Request};

wit_bindgen::generate!({
    path: "../../../wit",
    // The hooks that this policy has, and no more: the gateway calls only what a module exports.
    inline: "
        package example:signed-url;
        world signed-url {
            include baton:policy/imports@0.1.0;
            export baton:policy/request-hook@0.1.0;
            export baton:policy/lifecycle@0.1.0;
        }
    ",
    world: "example:signed-url/signed-url",
    generate_all,
});

use baton::policy::log::{self, Level};
use baton::policy::types::{Action, Decision, Field, Handoff, RelayMode, Respond};
use baton::policy::{clock, config, request};
use exports::baton::policy::lifecycle::{self, Requirements};
use exports::baton::policy::request_hook;

struct SignedUrl;

export!(SignedUrl);

/// Set once by `configure`; every later instance starts from the memory that it left.
static CONFIG: OnceLock<Config> = OnceLock::new();

impl lifecycle::Guest for SignedUrl {
    fn configure(config: String) -> Result<Requirements, Vec<String>> {
        let config = Config::parse(&config)?;
        let targets = vec![config.target.clone()];
        CONFIG.set(config).map_err(|_| vec!["configured twice".to_owned()])?;
        Ok(Requirements { max_reuse: u32::MAX, tick_interval_ms: 0, targets })
    }

    fn on_tick() {}

    fn self_test() -> Result<(), String> {
        signature::self_test()
    }
}

impl request_hook::Guest for SignedUrl {
    fn on_request() -> Decision {
        let config = CONFIG.get().expect("configure runs before any request");
        // Asked for each time: a secret is refused while the memory that every instance starts from is made.
        let key = config::secret(&config.secret).unwrap_or_default();
        if key.len() < KEY_BYTES_MIN {
            let said = format!("the secret {} is absent or shorter than {KEY_BYTES_MIN} bytes", config.secret);
            log::write(Level::Error, &said, &[]);
            return problem(503, "Service Unavailable", "links cannot be checked now");
        }
        let request = Request {
            method: request::method(),
            request_target: request::request_target(),
            path: request::path(),
            user: request::query_param("user"),
            expires: request::query_param("expires"),
        };
        match signature::decide(key.as_bytes(), clock::wall_ms(), &request) {
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
                    response_body: vec![],
                }),
                carry: vec![],
                annotations: user.map(|user| ("user".to_owned(), user.to_owned())).into_iter().collect(),
            },
            Answer::Refuse(detail) => problem(403, "Forbidden", detail),
        }
    }
}

/// Problem details (RFC 9457); the texts are ours and need no quoting.
fn problem(status: u16, title: &str, detail: &str) -> Decision {
    let body = format!(r#"{{"title":"{title}","status":{status},"detail":"{detail}"}}"#);
    let headers = vec![Field { name: "content-type".to_owned(), value: b"application/problem+json".to_vec() }];
    Decision {
        action: Action::Respond(Respond { status, headers, body: body.into_bytes() }),
        carry: vec![],
        annotations: vec![],
    }
}
