//! What the policy is told once, as JSON.
//!
//! ```json
//! {"upstream": "auth", "path": "/check", "send": ["authorization", "cookie"], "copy": ["x-user"], "target": "chat"}
//! ```

use settings::{Settings, is_field_name};

/// Who is asked, and what of the answer is passed on.
#[derive(Debug)]
pub struct Config {
    /// An upstream of the gateway's configuration.
    pub upstream: String,
    /// Path and query that are asked for.
    pub path: String,
    /// Fields of the client's request that the service sees.
    pub send: Vec<String>,
    /// Fields of the service's answer that are passed on.
    pub copy: Vec<String>,
    /// Who takes the clients; `None`: the next policy and the route decide.
    pub target: Option<String>,
    pub timeout_ms: u32,
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    /// Every fault.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        let mut settings = Settings::parse(text)?;
        let upstream = settings.text("upstream");
        let path = settings.text("path");
        if !path.is_empty() && (!path.starts_with('/') || path.contains([' ', '#'])) {
            settings.fault("path", "must begin with / and have neither spaces nor #");
        }
        let send = if settings.has("send") { names(&mut settings, "send") } else { default_send() };
        let copy = names(&mut settings, "copy");
        let target = settings.optional_text("target");
        let timeout_ms = settings.whole("timeout_ms", 1..=60_000, 1000);
        settings.finish(Self { upstream, path, send, copy, target, timeout_ms })
    }
}

/// What credentials usually stand in.
fn default_send() -> Vec<String> {
    vec!["authorization".to_owned(), "cookie".to_owned()]
}

fn names(settings: &mut Settings, key: &str) -> Vec<String> {
    let names = settings.texts(key);
    for name in names.iter().filter(|name| !is_field_name(name)) {
        settings.fault(key, &format!("\"{name}\" is not the name of a header field in lower case"));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::Config;

    #[test]
    fn what_is_not_said_has_a_default() {
        let config = Config::parse(r#"{"upstream": "auth", "path": "/check"}"#).expect("is good");
        assert_eq!((config.send, config.copy), (vec!["authorization".to_owned(), "cookie".to_owned()], vec![]));
        assert_eq!((config.target, config.timeout_ms), (None, 1000));
    }

    #[test]
    fn names_and_paths_are_looked_at() {
        let faults = Config::parse(r#"{"upstream": "auth", "path": "check", "send": ["Cookie"], "copy": ["x user"]}"#);
        assert_eq!(
            faults.expect_err("is bad"),
            [
                "path: must begin with / and have neither spaces nor #",
                "send: \"Cookie\" is not the name of a header field in lower case",
                "copy: \"x user\" is not the name of a header field in lower case",
            ]
        );
    }

    #[test]
    fn waiting_has_limits() {
        let at =
            |ms: u32| Config::parse(&format!(r#"{{"upstream": "auth", "path": "/", "timeout_ms": {ms}}}"#)).is_ok();
        assert!(!at(0) && at(1) && at(60_000) && !at(60_001));
    }
}
