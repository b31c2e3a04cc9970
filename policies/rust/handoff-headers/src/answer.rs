//! What an application's answer asks for, and whether it may.

use serde_json::{Map, Value};

use crate::config::{Config, Into};

/// The name of the socket, or of what the configuration knows it by.
pub const SOCKET: &str = "x-socket-handoff";
/// What its daemon is told.
pub const DATA: &str = "x-handoff-data";

/// A header field, its name in lower case.
pub type Field = (String, Vec<u8>);

/// What becomes of the client.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    /// It gets the answer.
    Pass,
    /// It goes to this target, which is told this; the gateway writes a head with these fields before.
    Handoff { target: String, data: Vec<u8>, head: Option<Vec<Field>> },
    /// It is refused: the application names what it may not.
    Forbidden,
}

/// Judges an answer by its fields.
pub fn judge(config: &Config, fields: &[Field]) -> Verdict {
    let first = |asked: &str| fields.iter().find(|(name, _)| name == asked).map(|(_, value)| value);
    let Some(written) = first(SOCKET) else { return Verdict::Pass };
    let Some(target) = std::str::from_utf8(written).ok().and_then(|written| target(config, written)) else {
        return Verdict::Forbidden;
    };
    let data = first(DATA).cloned().unwrap_or_default();
    let chosen: Vec<_> = fields.iter().filter(|(name, _)| config.copy.contains(name)).cloned().collect();
    match config.into {
        Into::Data => Verdict::Handoff { target, data: with_fields(data, &chosen), head: None },
        Into::Head => Verdict::Handoff { target, data, head: Some(chosen) },
    }
}

/// The target that an application means, if it may.
fn target(config: &Config, written: &str) -> Option<String> {
    if let Some((_, target)) = config.targets.iter().find(|(known, _)| known == written) {
        return Some(target.clone());
    }
    let is_beneath = |prefix: &String| written.len() > prefix.len() && written.starts_with(prefix.as_str());
    let climbs = written.split('/').any(|part| part == "..");
    (config.prefixes.iter().any(is_beneath) && !climbs).then(|| written.to_owned())
}

/// The data with fields beside it, where it is a JSON object that has no `response_headers` of its own. What the
/// application wrote stays byte for byte: it may have signed it, or count digits.
fn with_fields(mut data: Vec<u8>, fields: &[Field]) -> Vec<u8> {
    let Ok(Value::Object(object)) = serde_json::from_slice(&data) else { return data };
    if fields.is_empty() || object.contains_key("response_headers") {
        return data;
    }
    let mut joined: Map<String, Value> = Map::new();
    for (name, value) in fields {
        let value = Value::from(String::from_utf8_lossy(value));
        match joined.get_mut(name) {
            None => drop(joined.insert(name.clone(), value)),
            Some(Value::Array(values)) => values.push(value),
            Some(one) => *one = Value::Array(vec![one.take(), value]),
        }
    }
    let end = data.iter().rposition(|&byte| byte == b'}').expect("an object ends with a brace");
    let comma = if object.is_empty() { "" } else { "," };
    let added = format!("{comma}\"response_headers\":{}", Value::Object(joined));
    data.splice(end..end, added.into_bytes());
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(rest: &str) -> Config {
        let text =
            format!(r#"{{"targets": {{"room": "chat"}}, "prefixes": ["/run/app/"], "copy": ["set-cookie"]{rest}}}"#);
        Config::parse(&text).expect("is good")
    }

    fn judged(fields: &[(&str, &str)]) -> Verdict {
        let fields: Vec<_> =
            fields.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect();
        judge(&config(""), &fields)
    }

    fn handoff(target: &str, data: &str) -> Verdict {
        Verdict::Handoff { target: target.to_owned(), data: data.into(), head: None }
    }

    #[test]
    fn an_answer_that_asks_for_nothing_passes() {
        assert_eq!(judged(&[("x-handoff-data", "d"), ("set-cookie", "a=1")]), Verdict::Pass);
    }

    #[test]
    fn what_is_configured_may_be_named_and_nothing_else() {
        for (written, expected) in [
            ("room", Some("chat")),
            ("/run/app/a.sock", Some("/run/app/a.sock")),
            ("chat", None),
            ("", None),
            ("/run/app/", None),
            ("/run/app", None),
            ("/run/apps/a.sock", None),
            ("/run/app/../a.sock", None),
            ("run/app/a.sock", None),
            ("@/run/app/a.sock", None),
        ] {
            let expected = expected.map_or(Verdict::Forbidden, |target| handoff(target, "d"));
            assert_eq!(judged(&[("x-socket-handoff", written), ("x-handoff-data", "d")]), expected, "{written}");
        }
    }

    #[test]
    fn the_first_field_of_its_name_counts() {
        let fields = [
            ("x-socket-handoff", "room"),
            ("x-socket-handoff", "none"),
            ("x-handoff-data", "a"),
            ("x-handoff-data", "b"),
        ];
        assert_eq!(judged(&fields), handoff("chat", "a"));
    }

    #[test]
    fn chosen_fields_join_data_that_is_an_object() {
        let to = |data, cookies: &[&'static str]| {
            let mut fields = vec![("x-socket-handoff", "room"), ("x-handoff-data", data), ("x-other", "1")];
            fields.extend(cookies.iter().map(|cookie| ("set-cookie", *cookie)));
            judged(&fields)
        };
        assert_eq!(to("{}", &["a"]), handoff("chat", r#"{"response_headers":{"set-cookie":"a"}}"#));
        let three = r#"{"n": 1.50 ,"response_headers":{"set-cookie":["a","b\"","c"]}}"#;
        assert_eq!(to(r#"{"n": 1.50 }"#, &["a", "b\"", "c"]), handoff("chat", three));
        for data in ["", "[1]", "plain", r#"{"response_headers":0}"#] {
            assert_eq!(to(data, &["a"]), handoff("chat", data));
        }
        assert_eq!(to("{}", &[]), handoff("chat", "{}"));
    }

    #[test]
    fn or_stand_in_the_head() {
        let fields = [("x-socket-handoff", "room"), ("x-handoff-data", "{}"), ("set-cookie", "a")]
            .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
        let head = Some(vec![("set-cookie".to_owned(), b"a".to_vec())]);
        let expected = Verdict::Handoff { target: "chat".to_owned(), data: b"{}".to_vec(), head };
        assert_eq!(judge(&config(r#", "into": "head""#), &fields), expected);
    }
}
