//! The joint between the gateway and the policy.

use std::sync::OnceLock;

use crate::answer::{self, Verdict, judge};
use crate::config::Config;

wit_bindgen::generate!({
    path: "../../../wit",
    // The hooks that this policy has, and no more: the gateway calls only what a module exports.
    inline: "
        package example:handoff-headers;
        world handoff-headers {
            include baton:policy/imports@0.1.0;
            export baton:policy/request-hook@0.1.0;
            export baton:policy/response-hook@0.1.0;
            export baton:policy/lifecycle@0.1.0;
        }
    ",
    world: "example:handoff-headers/handoff-headers",
    generate_all,
});

use baton::policy::response;
use baton::policy::types::{Action, Decision, Edits, Field, Handoff, RelayMode, Respond, ResponseHead};
use exports::baton::policy::lifecycle::{self, Requirements};
use exports::baton::policy::{request_hook, response_hook};

struct HandoffHeaders;

export!(HandoffHeaders);

/// Set once by `configure`; every later instance starts from the memory that it left.
static CONFIG: OnceLock<Config> = OnceLock::new();

impl lifecycle::Guest for HandoffHeaders {
    fn configure(config: String) -> Result<Requirements, Vec<String>> {
        let config = Config::parse(&config)?;
        let targets = config.required();
        CONFIG.set(config).map_err(|_| vec!["configured twice".to_owned()])?;
        Ok(Requirements { max_reuse: u32::MAX, tick_interval_ms: 0, targets })
    }

    fn on_tick() {}

    fn self_test() -> Result<(), String> {
        Ok(())
    }
}

impl request_hook::Guest for HandoffHeaders {
    /// The application judges the request.
    fn on_request() -> Decision {
        pass()
    }
}

impl response_hook::Guest for HandoffHeaders {
    fn on_response(_carry: Vec<u8>) -> Decision {
        // Most answers ask for nothing: one look, and nothing of them is copied.
        if response::header(answer::SOCKET).is_none() {
            return pass();
        }
        let config = CONFIG.get().expect("configure runs before any request");
        let fields: Vec<_> = response::headers().into_iter().map(|field| (field.name, field.value)).collect();
        let (action, verdict) = match judge(config, &fields) {
            Verdict::Pass => return pass(),
            Verdict::Handoff { target, data, head } => (hand_over(target, data, head), "handed over"),
            Verdict::Forbidden => {
                (Action::Respond(Respond { status: 403, headers: vec![], body: vec![] }), "forbidden")
            }
        };
        Decision { action, carry: vec![], annotations: vec![("application".to_owned(), verdict.to_owned())] }
    }
}

fn pass() -> Decision {
    let action = Action::Pass(Edits { remove: vec![], set: vec![], append: vec![] });
    Decision { action, carry: vec![], annotations: vec![] }
}

fn hand_over(target: String, data: Vec<u8>, head: Option<Vec<answer::Field>>) -> Action {
    let field = |(name, value)| Field { name, value };
    let status = match response::status() {
        // The daemon writes a body, which these have not.
        204 | 205 | 304 => 200,
        status => status,
    };
    let response_head = head.map(|fields| ResponseHead { status, headers: fields.into_iter().map(field).collect() });
    Action::Handoff(Handoff {
        target,
        data,
        metadata: vec![],
        response_head,
        include_head: false,
        relay: RelayMode::IfNeeded,
        timeout_ms: None,
        alternates: vec![],
        response_body: vec![],
    })
}
