//! What the policy is told once, as JSON.
//!
//! ```json
//! {"rate": 10, "burst": 20, "ipv6_bits": 64}
//! ```

use settings::Settings;

/// How often one client may ask.
#[derive(Debug, PartialEq)]
pub struct Config {
    /// Requests a second, in the long run.
    pub rate: f64,
    /// How many at once.
    pub burst: f64,
    /// How many bits of an IPv6 address are one client's.
    pub ipv6_bits: u32,
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    /// Every fault.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        let mut settings = Settings::parse(text)?;
        let rate = settings.number("rate", 0.001..=1_000_000.0);
        let burst = settings.number("burst", 1.0..=1_000_000.0);
        let ipv6_bits = settings.whole("ipv6_bits", 1..=128, 64);
        settings.finish(Self { rate, burst, ipv6_bits })
    }

    /// Seconds until there is a token again in a bucket that has none, rounded up.
    pub fn retry_after(&self) -> u64 {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 1000, by the limits above")]
        {
            (1.0 / self.rate).ceil() as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Config;

    #[test]
    fn the_network_has_a_default() {
        let config = Config::parse(r#"{"rate": 0.5, "burst": 3}"#);
        assert_eq!(config, Ok(Config { rate: 0.5, burst: 3.0, ipv6_bits: 64 }));
    }

    #[test]
    fn limits_are_within() {
        let at = |rate: &str, burst: &str, bits: u32| {
            Config::parse(&format!(r#"{{"rate": {rate}, "burst": {burst}, "ipv6_bits": {bits}}}"#)).is_ok()
        };
        assert!(at("0.001", "1", 1) && at("1000000", "1000000", 128));
        assert!(!at("0.0009", "1", 1) && !at("1000001", "1", 1) && !at("1", "0.9", 1) && !at("1", "1000001", 1));
        assert!(!at("1", "1", 0) && !at("1", "1", 129));
    }

    #[test]
    fn who_has_to_wait_is_told_how_long() {
        let after = |rate| Config { rate, burst: 1.0, ipv6_bits: 64 }.retry_after();
        assert_eq!((after(100.0), after(1.0), after(0.3), after(0.001)), (1, 1, 4, 1000));
    }
}
