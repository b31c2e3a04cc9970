//! What the service's answer means for the client.

use serde_json::{Map, Value, json};

/// A header field, its name in lower case.
pub type Field = (String, Vec<u8>);

/// What becomes of the client.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    /// It passes; these fields of the answer, in the order of the configuration, are known of it.
    Pass(Vec<(String, String)>),
    /// It gets the service's own answer: status, what it needs to ask better, and body.
    Answer { status: u16, headers: Vec<Field> },
    /// The service said what nobody can act upon.
    Broken(u16),
}

/// Judges an answer.
pub fn judge(status: u16, headers: &[Field], copy: &[String]) -> Verdict {
    match status {
        200..=299 => {
            let value = |name: &String| {
                let (_, value) = headers.iter().find(|(header, _)| header == name)?;
                Some((name.clone(), String::from_utf8_lossy(value).into_owned()))
            };
            Verdict::Pass(copy.iter().filter_map(value).collect())
        }
        401 | 403 => {
            // What belongs to the body, and how to do better. Everything else is between the service and us.
            let kept = ["www-authenticate", "content-type", "content-language", "set-cookie", "cache-control"];
            let is_kept = |(name, _): &&Field| kept.contains(&name.as_str());
            Verdict::Answer { status, headers: headers.iter().filter(is_kept).cloned().collect() }
        }
        _ => Verdict::Broken(status),
    }
}

/// Data of the handoff.
pub fn data(known: &[(String, String)], method: &str, path: &str, query: Option<&str>) -> Vec<u8> {
    let auth: Map<_, _> = known.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect();
    json!({ "auth": auth, "method": method, "path": path, "query": query }).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(name: &str, value: &str) -> Field {
        (name.to_owned(), value.into())
    }

    #[test]
    fn a_success_passes_with_what_was_chosen() {
        let headers =
            [field("x-user", "Zoë"), field("x-user", "second"), field("x-inner", "1"), field("x-role", "admin")];
        let copy = ["x-role".to_owned(), "x-none".to_owned(), "x-user".to_owned()];
        let known = vec![("x-role".to_owned(), "admin".to_owned()), ("x-user".to_owned(), "Zoë".to_owned())];
        for status in [200, 204, 299] {
            assert_eq!(judge(status, &headers, &copy), Verdict::Pass(known.clone()), "{status}");
        }
    }

    #[test]
    fn a_refusal_is_the_clients() {
        let headers = [field("www-authenticate", "Basic"), field("server", "inner/1.0"), field("set-cookie", "a=b")];
        for status in [401, 403] {
            let kept = vec![headers[0].clone(), headers[2].clone()];
            assert_eq!(judge(status, &headers, &[]), Verdict::Answer { status, headers: kept });
        }
    }

    #[test]
    fn anything_else_is_broken() {
        for status in [100, 199, 300, 302, 400, 402, 404, 500, 503] {
            assert_eq!(judge(status, &[], &[]), Verdict::Broken(status));
        }
    }

    #[test]
    fn the_data_is_json() {
        let known = [("x-user".to_owned(), "\"".to_owned())];
        let data = String::from_utf8(data(&known, "GET", "/a", None)).expect("text");
        assert_eq!(data, r#"{"auth":{"x-user":"\""},"method":"GET","path":"/a","query":null}"#);
    }
}
