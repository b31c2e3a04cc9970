//! The joint between the gateway and the policy.

use std::sync::OnceLock;

use crate::client::bucket;
use crate::config::Config;

wit_bindgen::generate!({
    path: "../../../wit",
    // The hooks that this policy has, and no more: the gateway calls only what a module exports.
    inline: "
        package example:rate-limit;
        world rate-limit {
            include baton:policy/imports@0.1.0;
            export baton:policy/request-hook@0.1.0;
            export baton:policy/lifecycle@0.1.0;
        }
    ",
    world: "example:rate-limit/rate-limit",
    generate_all,
});

use baton::policy::types::{Action, Decision, Edits, Field, Respond};
use baton::policy::{metrics, request, store};
use exports::baton::policy::lifecycle::{self, Requirements};
use exports::baton::policy::request_hook;

struct RateLimit;

export!(RateLimit);

/// Set once by `configure`; every later instance starts from the memory that it left.
static CONFIG: OnceLock<Config> = OnceLock::new();

impl lifecycle::Guest for RateLimit {
    fn configure(config: String) -> Result<Requirements, Vec<String>> {
        CONFIG.set(Config::parse(&config)?).map_err(|_| vec!["configured twice".to_owned()])?;
        Ok(Requirements { max_reuse: u32::MAX, tick_interval_ms: 0, targets: vec![] })
    }

    fn on_tick() {}

    fn self_test() -> Result<(), String> {
        // The store of a self-test is a scratch one.
        if store::take("self-test", 1.0, 1.0, 1.0) { Ok(()) } else { Err("the store gave no token".to_owned()) }
    }
}

impl request_hook::Guest for RateLimit {
    fn on_request() -> Decision {
        let config = CONFIG.get().expect("configure runs before any request");
        let client = bucket(&request::client_ip(), config.ipv6_bits);
        if store::take(&client, config.rate, config.burst, 1.0) {
            let edits = Edits { remove: vec![], set: vec![], append: vec![] };
            return Decision { action: Action::Pass(edits), carry: vec![], annotations: vec![] };
        }
        metrics::count("limited", &[], 1);
        let header = |name: &str, value: String| Field { name: name.to_owned(), value: value.into_bytes() };
        Decision {
            action: Action::Respond(Respond {
                status: 429,
                headers: vec![
                    header("retry-after", config.retry_after().to_string()),
                    header("content-type", "application/problem+json".to_owned()),
                ],
                body: br#"{"title":"Too Many Requests","status":429,"detail":"asked more often than is allowed"}"#
                    .to_vec(),
            }),
            carry: vec![],
            annotations: vec![("limited".to_owned(), client)],
        }
    }
}
