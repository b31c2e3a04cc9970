//! A decision as JSON, as a sentence, and beside what was expected of it.

use serde_json::{Map, Value, json};

use crate::decision::{Action, Decision, Edits, Field, RelayMode};

/// All of it; `policies/README.md` has the form.
pub(super) fn to_json(decision: &Decision) -> Value {
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| drop(out.insert(key.to_owned(), value));
    put("action", decision.action.word().into());
    match &decision.action {
        Action::Abort => {}
        Action::Handoff(handoff) => {
            put("target", (*handoff.target).into());
            put("data", text(&handoff.data));
            put("metadata", pairs(&handoff.metadata));
            let head = handoff.response_head.as_ref();
            put(
                "response_head",
                head.map_or(Value::Null, |h| json!({"status": h.status, "headers": fields(&h.headers)})),
            );
            put("response_body", text(&handoff.response_body));
            put("include_head", handoff.include_head.into());
            let relay = match handoff.relay {
                RelayMode::Always => "always",
                RelayMode::IfNeeded => "if-needed",
                RelayMode::Never => "never",
            };
            put("relay", relay.into());
            put("timeout_ms", millis(handoff.timeout));
            put("alternates", json!(handoff.alternates));
        }
        Action::Pass(Edits { remove, set, append }) => {
            put("remove", json!(remove));
            put("set", fields(set));
            put("append", fields(append));
        }
        Action::Proxy(proxy) => {
            put("upstream", (*proxy.upstream).into());
            put("path_and_query", json!(proxy.path_and_query));
            let Edits { remove, set, append } = &proxy.request;
            put("request", json!({"remove": remove, "set": fields(set), "append": fields(append)}));
            put("timeout_ms", millis(proxy.timeout));
            put("inspect_response", proxy.inspect_response.into());
        }
        Action::Respond(respond) => {
            put("status", respond.status.into());
            put("headers", fields(&respond.headers));
            put("body", text(&respond.body));
        }
    }
    put("carry", text(&decision.carry));
    put("annotations", pairs(&decision.annotations));
    Value::Object(out)
}

/// The parts that matter most, on one line.
pub(super) fn sentence(decision: &Decision) -> String {
    let mut out = decision.action.to_string();
    if let Action::Handoff(handoff) = &decision.action
        && !handoff.data.is_empty()
    {
        out += &format!("\n  data    {}", crate::policy::escape(&String::from_utf8_lossy(&handoff.data)));
    }
    if let Action::Respond(respond) = &decision.action {
        for Field { name, value } in &respond.headers {
            out += &format!("\n  header  {name}: {}", String::from_utf8_lossy(value));
        }
        if !respond.body.is_empty() {
            out += &format!("\n  body    {}", crate::policy::escape(&String::from_utf8_lossy(&respond.body)));
        }
    }
    for (key, value) in &decision.annotations {
        out += &format!("\n  note    {}={}", crate::policy::escape(key), crate::policy::escape(value));
    }
    out
}

/// What of `expected` is not in `found`, one line each: every member that is named must be there and equal, what is not
/// named may be anything.
pub(super) fn differences(expected: &Value, found: &Value) -> Vec<String> {
    let mut out = Vec::new();
    compare("", expected, found, &mut out);
    out
}

fn compare(at: &str, expected: &Value, found: &Value, out: &mut Vec<String>) {
    match (expected, found) {
        (Value::Object(expected), Value::Object(found)) => {
            for (key, value) in expected {
                let at = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                compare(&at, value, found.get(key).unwrap_or(&Value::Null), out);
            }
        }
        (Value::Array(expected), Value::Array(found)) if expected.len() == found.len() => {
            for (index, (expected, found)) in expected.iter().zip(found).enumerate() {
                compare(&format!("{at}.{index}"), expected, found, out);
            }
        }
        _ if expected == found => {}
        _ => {
            let at = if at.is_empty() { "decision" } else { at };
            let found = if found.is_null() { "nothing".to_owned() } else { found.to_string() };
            out.push(format!("{at}: expected {expected}, found {found}"));
        }
    }
}

fn millis(time: Option<std::time::Duration>) -> Value {
    time.map_or(Value::Null, |time| json!(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)))
}

/// Text as it is, and other bytes as `{"hex": …}`.
fn text(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => json!({"hex": bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()}),
    }
}

/// By name; a list where one came more than once.
fn fields(fields: &[Field]) -> Value {
    let mut out = Map::new();
    for Field { name, value } in fields {
        let value = text(value);
        match out.get_mut(name) {
            None => drop(out.insert(name.clone(), value)),
            Some(Value::Array(values)) => values.push(value),
            Some(first) => *first = json!([first.take(), value]),
        }
    }
    Value::Object(out)
}

/// The last value of a key wins.
fn pairs(pairs: &[(String, String)]) -> Value {
    pairs.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str()))).collect::<Map<_, _>>().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::Respond;

    #[test]
    fn what_is_named_must_match_and_the_rest_may_be_anything() {
        let header = |name: &str, value: &[u8]| Field { name: name.into(), value: value.to_vec() };
        let headers = vec![header("a", b"1"), header("b", b"2"), header("b", b"\xFF")];
        let action = Action::Respond(Respond { status: 401, headers, body: b"no\n".to_vec() });
        let found = to_json(&Decision { action, carry: Vec::new(), annotations: vec![("k".into(), "v".into())] });
        assert_eq!(found["headers"], json!({"a": "1", "b": ["2", {"hex": "ff"}]}));
        let same = json!({"action": "respond", "headers": {"a": "1"}, "annotations": {}});
        assert!(differences(&same, &found).is_empty());
        let lists = json!({"headers": {"b": ["3", {"hex": "ff"}], "a": ["1"]}});
        assert_eq!(
            differences(&lists, &found),
            ["headers.b.0: expected \"3\", found \"2\"", "headers.a: expected [\"1\"], found \"1\""]
        );
        let other = json!({"status": 403, "headers": {"b": ["2"], "c": "x"}, "annotations": {"k": "w"}});
        assert_eq!(
            differences(&other, &found),
            [
                "status: expected 403, found 401",
                "headers.b: expected [\"2\"], found [\"2\",{\"hex\":\"ff\"}]",
                "headers.c: expected \"x\", found nothing",
                "annotations.k: expected \"w\", found \"v\"",
            ]
        );
    }
}
