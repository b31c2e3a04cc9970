//! Lets in whoever has the token, and hands them over to the target `chat`.

use baton::policy::types::{Action, Decision, Edits, Field, Handoff, RelayMode, Respond};
use baton::policy::{config, log, request};

wit_bindgen::generate!({
    path: "wit",
    // The hooks that this policy has: the gateway calls what is exported. `wit/policy.wit` has the others.
    inline: "
        package example:policy;
        world policy {
            include baton:policy/imports@0.1.0;
            export baton:policy/request-hook@0.1.0;
        }
    ",
    world: "example:policy/policy",
    generate_all,
});

struct Policy;

export!(Policy);

impl exports::baton::policy::request_hook::Guest for Policy {
    fn on_request() -> Decision {
        let path = request::path();
        if !path.starts_with("/v1/") {
            return pass();
        }
        let setting = |key, usual: &str| config::get(key).unwrap_or_else(|| usual.to_owned());
        // Bytes, not text: what a client sends need not be UTF-8.
        let authorization = request::header("authorization").unwrap_or_default();
        let Some(token) = bearer(&authorization) else {
            return respond(401, "a bearer token is required\n", &[("www-authenticate", "Bearer")]);
        };
        if token != setting("token", "open-sesame").as_bytes() {
            // Never the token itself: logs are read by more people than secrets are for.
            log::write(log::Level::Info, "refused a token", &[("path".to_owned(), path)]);
            return respond(403, "this token opens nothing here\n", &[]);
        }
        let user = setting("user", "alice");
        // By a serializer: a name with a quotation mark in it must not end the string.
        let (name, path) = (serde_json::Value::from(user.as_str()), serde_json::Value::from(path));
        let mut decision = hand_over("chat", format!(r#"{{"user":{name},"path":{path}}}"#));
        decision.annotations.push(("user".to_owned(), user));
        decision
    }
}

/// The token of an `Authorization` field; the scheme's case does not matter (RFC 9110 §11.1).
fn bearer(field: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = field.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
}

fn pass() -> Decision {
    decide(Action::Pass(Edits { remove: vec![], set: vec![], append: vec![] }))
}

fn hand_over(target: &str, data: String) -> Decision {
    decide(Action::Handoff(Handoff {
        target: target.to_owned(),
        data: data.into_bytes(),
        metadata: vec![],
        response_head: None,
        include_head: false,
        relay: RelayMode::IfNeeded,
        timeout_ms: None,
        alternates: vec![],
        response_body: vec![],
    }))
}

fn respond(status: u16, body: &str, fields: &[(&str, &str)]) -> Decision {
    let field = |&(name, value): &(&str, &str)| Field { name: name.to_owned(), value: value.as_bytes().to_vec() };
    let content_type = [("content-type", "text/plain; charset=utf-8")];
    let headers = fields.iter().chain(&content_type).map(field).collect();
    decide(Action::Respond(Respond { status, headers, body: body.as_bytes().to_vec() }))
}

fn decide(action: Action) -> Decision {
    // `carry` comes back in the later hooks of this request.
    Decision { action, carry: vec![], annotations: vec![] }
}
