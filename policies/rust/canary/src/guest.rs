//! The joint between the gateway and the policy.

use std::sync::OnceLock;

use crate::canary::{Request, is_chosen};
use crate::config::Config;

wit_bindgen::generate!({
    path: "../../../wit",
    // The hooks that this policy has, and no more: the gateway calls only what a module exports.
    inline: "
        package example:canary;
        world canary {
            include baton:policy/imports@0.1.0;
            export baton:policy/request-hook@0.1.0;
            export baton:policy/lifecycle@0.1.0;
        }
    ",
    world: "example:canary/canary",
    generate_all,
});

use baton::policy::request;
use baton::policy::types::{Action, Decision, Edits, Handoff, RelayMode};
use exports::baton::policy::lifecycle::{self, Requirements};
use exports::baton::policy::request_hook;

struct Canary;

export!(Canary);

/// Set once by `configure`; every later instance starts from the memory that it left.
static CONFIG: OnceLock<Config> = OnceLock::new();

impl lifecycle::Guest for Canary {
    fn configure(config: String) -> Result<Requirements, Vec<String>> {
        let config = Config::parse(&config)?;
        let targets = config.stable.iter().chain([&config.target]).cloned().collect();
        CONFIG.set(config).map_err(|_| vec!["configured twice".to_owned()])?;
        Ok(Requirements { max_reuse: u32::MAX, tick_interval_ms: 0, targets })
    }

    fn on_tick() {}

    fn self_test() -> Result<(), String> {
        Ok(())
    }
}

impl request_hook::Guest for Canary {
    fn on_request() -> Decision {
        let config = CONFIG.get().expect("configure runs before any request");
        let cookie = config.cookie.as_ref().and_then(|name| request::cookie(name));
        let chosen = is_chosen(config, &cookie.unwrap_or_else(request::client_ip));
        let target = if chosen { Some(&config.target) } else { config.stable.as_ref() };
        let action = match target {
            None => Action::Pass(Edits { remove: vec![], set: vec![], append: vec![] }),
            Some(target) => Action::Handoff(Handoff {
                target: target.clone(),
                data: Request { method: request::method(), path: request::path(), query: request::query() }.data(),
                metadata: vec![],
                response_head: None,
                include_head: false,
                relay: RelayMode::IfNeeded,
                timeout_ms: None,
                alternates: vec![],
                response_body: vec![],
            }),
        };
        let annotations = vec![("canary".to_owned(), if chosen { "yes" } else { "no" }.to_owned())];
        Decision { action, carry: vec![], annotations }
    }
}
