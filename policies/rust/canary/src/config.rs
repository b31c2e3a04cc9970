//! What the policy is told once, as JSON.
//!
//! ```json
//! {"name": "v2", "percent": 5, "target": "chat-next", "stable": "chat", "cookie": "session"}
//! ```

use settings::{Settings, is_field_name};

/// How many are sent where.
#[derive(Debug)]
pub struct Config {
    /// Decides who is chosen; another name chooses others.
    pub name: String,
    /// Hundredths of a percent.
    pub places: u64,
    /// Where those who are chosen go.
    pub target: String,
    /// Where everybody else goes; `None`: the next policy and the route decide.
    pub stable: Option<String>,
    /// The cookie that a client is known by; without it, its address.
    pub cookie: Option<String>,
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    /// Every fault.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        let mut settings = Settings::parse(text)?;
        let name = settings.text("name");
        let percent = settings.number("percent", 0.0..=100.0);
        let target = settings.text("target");
        let stable = settings.optional_text("stable");
        let cookie = settings.optional_text("cookie");
        // The name of a cookie is a token too (RFC 6265 §4.1.1), in any case.
        if cookie.as_ref().is_some_and(|name| !name.is_empty() && !is_field_name(&name.to_ascii_lowercase())) {
            settings.fault("cookie", "must be the name of a cookie");
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 10,000, by the limits above")]
        let places = (percent * 100.0).round() as u64;
        settings.finish(Self { name, places, target, stable, cookie })
    }
}

#[cfg(test)]
mod tests {
    use super::Config;

    #[test]
    fn a_percentage_has_two_digits_behind_the_point() {
        let places = |percent: &str| {
            Config::parse(&format!(r#"{{"name": "v2", "percent": {percent}, "target": "next"}}"#))
                .map(|config| config.places)
        };
        assert_eq!((places("0.01"), places("12.34"), places("100")), (Ok(1), Ok(1234), Ok(10_000)));
        let fault = Err(vec!["percent: must be a number from 0 to 100".to_owned()]);
        assert_eq!((places("100.01"), places("-1")), (fault.clone(), fault));
    }

    #[test]
    fn a_cookie_has_a_name() {
        let faults = Config::parse(r#"{"name": "v2", "percent": 5, "target": "next", "cookie": "a b"}"#);
        assert_eq!(faults.expect_err("is bad"), ["cookie: must be the name of a cookie"]);
    }
}
