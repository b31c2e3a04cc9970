//! What the policy is told once, as JSON.
//!
//! ```json
//! {"on": true, "retry_after": 600, "page": "<!doctype html>…", "allow": ["10.0.0.0/8", "::1"]}
//! ```

use std::net::IpAddr;

use ipnet::IpNet;
use settings::Settings;

/// A day: who is asked to come back later than that does not.
const RETRY_AFTER_MAX: u32 = 86_400;

const PAGE: &str = "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Back soon</title>\n\
    <h1>Back soon</h1>\n<p>Something is being mended here.</p>\n</html>\n";

/// Whether there is maintenance, and what those who have to wait are told.
#[derive(Debug)]
pub struct Config {
    pub on: bool,
    /// Seconds.
    pub retry_after: u32,
    /// HTML in UTF-8.
    pub page: String,
    /// Who passes all the same.
    pub allow: Vec<IpNet>,
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    /// Every fault.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        let mut settings = Settings::parse(text)?;
        let on = settings.switch("on");
        let retry_after = settings.whole("retry_after", 1..=RETRY_AFTER_MAX, 300);
        let page = match settings.value("page") {
            None => PAGE.to_owned(),
            Some(value) => value.as_str().map(str::to_owned).unwrap_or_else(|| {
                settings.fault("page", "must be a string");
                String::new()
            }),
        };
        let mut allow = Vec::new();
        for text in settings.texts("allow") {
            match network(&text) {
                Some(network) => allow.push(network),
                None => settings.fault("allow", &format!("\"{text}\" is neither an address nor a network")),
            }
        }
        settings.finish(Self { on, retry_after, page, allow })
    }
}

/// A network, or an address as a network of one.
fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_has_a_default() {
        let config = Config::parse(r#"{"on": true}"#).expect("is good");
        assert!(config.on && config.retry_after == 300 && config.allow.is_empty() && config.page.contains("Back soon"));
    }

    #[test]
    fn every_network_that_is_none_is_named() {
        assert_eq!(
            Config::parse(r#"{"on": true, "allow": ["10.0.0.0/33", "::1", "here"], "retry_after": 0}"#)
                .expect_err("is bad"),
            [
                "retry_after: must be a whole number from 1 to 86400",
                "allow: \"10.0.0.0/33\" is neither an address nor a network",
                "allow: \"here\" is neither an address nor a network",
            ]
        );
    }

    #[test]
    fn a_day_is_the_longest() {
        let at = |seconds: u32| Config::parse(&format!(r#"{{"on": true, "retry_after": {seconds}}}"#)).is_ok();
        assert!(at(1) && at(RETRY_AFTER_MAX) && !at(RETRY_AFTER_MAX + 1));
    }
}
