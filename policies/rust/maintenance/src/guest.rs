//! The joint between the gateway and the policy.

use std::sync::OnceLock;

use crate::config::Config;
use crate::maintenance::has_to_wait;

wit_bindgen::generate!({
    path: "../../../wit",
    // The hooks that this policy has, and no more: the gateway calls only what a module exports.
    inline: "
        package example:maintenance;
        world maintenance {
            include baton:policy/imports@0.1.0;
            export baton:policy/request-hook@0.1.0;
            export baton:policy/lifecycle@0.1.0;
        }
    ",
    world: "example:maintenance/maintenance",
    generate_all,
});

use baton::policy::request;
use baton::policy::types::{Action, Decision, Edits, Field, Respond};
use exports::baton::policy::lifecycle::{self, Requirements};
use exports::baton::policy::request_hook;

struct Maintenance;

export!(Maintenance);

/// Set once by `configure`; every later instance starts from the memory that it left.
static CONFIG: OnceLock<Config> = OnceLock::new();

impl lifecycle::Guest for Maintenance {
    fn configure(config: String) -> Result<Requirements, Vec<String>> {
        CONFIG.set(Config::parse(&config)?).map_err(|_| vec!["configured twice".to_owned()])?;
        Ok(Requirements { max_reuse: u32::MAX, tick_interval_ms: 0, targets: vec![] })
    }

    fn on_tick() {}

    fn self_test() -> Result<(), String> {
        Ok(())
    }
}

impl request_hook::Guest for Maintenance {
    fn on_request() -> Decision {
        let config = CONFIG.get().expect("configure runs before any request");
        let action = if has_to_wait(config, &request::client_ip()) {
            let header = |name: &str, value: String| Field { name: name.to_owned(), value: value.into_bytes() };
            Action::Respond(Respond {
                status: 503,
                headers: vec![
                    header("retry-after", config.retry_after.to_string()),
                    header("content-type", "text/html; charset=utf-8".to_owned()),
                    // What is true for minutes must not be remembered for longer.
                    header("cache-control", "no-store".to_owned()),
                ],
                body: config.page.clone().into_bytes(),
            })
        } else {
            Action::Pass(Edits { remove: vec![], set: vec![], append: vec![] })
        };
        Decision { action, carry: vec![], annotations: vec![] }
    }
}
