//! What the policy is told once, as JSON.
//!
//! ```json
//! {"targets": {"/run/chat.sock": "chat"}, "prefixes": ["/run/app/"], "copy": ["set-cookie"], "into": "data"}
//! ```

use serde_json::Value;
use settings::{Settings, is_field_name, is_printable};

/// Where applications may send clients, and what of their answers goes along.
#[derive(Debug)]
pub struct Config {
    /// What an application may write, and the target of the configuration that it means.
    pub targets: Vec<(String, String)>,
    /// Directories below which it may name any socket; the gateway has its own list, and both must allow it.
    pub prefixes: Vec<String>,
    /// Fields of the answer that the client is to get.
    pub copy: Vec<String>,
    /// How it gets them.
    pub into: Into,
}

/// How fields of an answer reach a client whom a daemon answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Into {
    /// The daemon is told them, as `response_headers` in data that is a JSON object.
    Data,
    /// The gateway writes the head of the response with them, and the daemon its body only.
    Head,
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    /// Every fault.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        let mut settings = Settings::parse(text)?;
        let targets = targets(&mut settings);
        let prefixes = settings.texts("prefixes");
        for prefix in prefixes.iter().filter(|prefix| !prefix.starts_with('/') || !prefix.ends_with('/')) {
            settings.fault("prefixes", &format!("\"{prefix}\" must begin and end with /"));
        }
        if targets.is_empty() && prefixes.is_empty() {
            settings.fault("targets", "must name a target, or prefixes a directory: nobody could be handed over");
        }
        let copy = settings.texts("copy");
        for name in copy.iter().filter(|name| !is_field_name(name)) {
            settings.fault("copy", &format!("\"{name}\" is not the name of a header field in lower case"));
        }
        let into = match settings.optional_text("into").as_deref() {
            None | Some("data" | "") => Into::Data,
            Some("head") => Into::Head,
            Some(_) => {
                settings.fault("into", "must be \"data\" or \"head\"");
                Into::Data
            }
        };
        settings.finish(Self { targets, prefixes, copy, into })
    }

    /// The targets that the policy names: none in particular where it names sockets.
    pub fn required(&self) -> Vec<String> {
        if self.prefixes.is_empty() { self.targets.iter().map(|(_, target)| target.clone()).collect() } else { vec![] }
    }
}

fn targets(settings: &mut Settings) -> Vec<(String, String)> {
    let pairs = match settings.value("targets") {
        None => return vec![],
        Some(Value::Object(pairs)) => pairs,
        Some(_) => {
            settings.fault("targets", "must be an object");
            return vec![];
        }
    };
    let mut targets = vec![];
    for (written, target) in pairs {
        match target {
            Value::String(target) if is_printable(&target) => targets.push((written, target)),
            _ => settings.fault("targets", &format!("\"{}\" must have the name of a target", written.escape_debug())),
        }
    }
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_has_a_default() {
        let config = Config::parse(r#"{"prefixes": ["/run/"]}"#).expect("is good");
        assert_eq!((config.targets, config.copy, config.into), (vec![], vec![], Into::Data));
    }

    #[test]
    fn every_fault_is_said() {
        let text = r#"{"targets": {"/a": 1}, "prefixes": ["run"], "copy": ["Set-Cookie"], "into": "body", "x": 1}"#;
        let faults = Config::parse(text).expect_err("is bad");
        assert_eq!(
            faults,
            [
                "targets: \"/a\" must have the name of a target",
                "prefixes: \"run\" must begin and end with /",
                "copy: \"Set-Cookie\" is not the name of a header field in lower case",
                "into: must be \"data\" or \"head\"",
                "x: unknown key",
            ]
        );
        let faults = Config::parse("{}").expect_err("is bad");
        assert_eq!(faults, ["targets: must name a target, or prefixes a directory: nobody could be handed over"]);
    }

    #[test]
    fn targets_are_required_where_no_socket_is_named() {
        let required = |text: &str| Config::parse(text).expect("is good").required();
        assert_eq!(required(r#"{"targets": {"/a": "chat"}}"#), ["chat"]);
        assert!(required(r#"{"targets": {"/a": "chat"}, "prefixes": ["/run/"]}"#).is_empty());
    }
}
