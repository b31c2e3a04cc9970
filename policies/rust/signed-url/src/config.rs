//! What the policy is told once, as JSON.
//!
//! ```json
//! {"target": "files", "secret": "url-key"}
//! ```
//!
//! The key itself is a secret of the gateway (`secrets = { url-key = { file = "…" } }`), so that it stands in no
//! configuration and in no memory that is kept.

use settings::Settings;

/// Whose key, and where to.
#[derive(Debug)]
pub struct Config {
    /// Who takes the clients.
    pub target: String,
    /// The name of the gateway's secret.
    pub secret: String,
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    /// Every fault.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        let mut settings = Settings::parse(text)?;
        let target = settings.text("target");
        let secret = settings.text("secret");
        settings.finish(Self { target, secret })
    }
}
