//! Who is chosen.
//!
//! A client has a place between 0 and 10,000 that never changes: the first eight bytes of SHA-256 over the canary's
//! name, a line feed and what the client is known by. Whoever was chosen at 5 percent is chosen at 10; another name
//! chooses others. No place is kept anywhere, so every gateway finds the same one.

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::config::Config;

/// What the daemon is told of the request.
#[derive(Debug, Serialize)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// `None`: the target had no question mark.
    pub query: Option<String>,
}

impl Request {
    /// Data of the handoff.
    pub fn data(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings always have a JSON form")
    }
}

/// Whether a client is chosen.
pub fn is_chosen(config: &Config, client: &str) -> bool {
    place(&config.name, client) < config.places
}

/// 0 to 9,999.
fn place(name: &str, client: &str) -> u64 {
    let digest = Sha256::new().chain_update(name).chain_update("\n").chain_update(client).finalize();
    let first: [u8; 8] = digest[..8].try_into().expect("eight bytes of thirty-two");
    u64::from_be_bytes(first) % 10_000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(name: &str, percent: f64) -> Config {
        Config::parse(&format!(r#"{{"name": "{name}", "percent": {percent}, "target": "next"}}"#)).expect("is good")
    }

    fn chosen(config: &Config) -> Vec<u32> {
        (0..10_000).filter(|client| is_chosen(config, &client.to_string())).collect()
    }

    #[test]
    fn a_place_can_be_computed_elsewhere() {
        // printf 'v2\n192.0.2.1' | sha256sum, its first 16 digits modulo 10,000.
        assert_eq!(place("v2", "192.0.2.1"), 1460);
    }

    #[test]
    fn nobody_at_0_and_everybody_at_100() {
        assert!(chosen(&config("v2", 0.0)).is_empty());
        assert_eq!(chosen(&config("v2", 100.0)).len(), 10_000);
    }

    #[test]
    fn about_as_many_as_were_wanted() {
        for percent in [1.0, 5.0, 50.0] {
            let count = chosen(&config("v2", percent)).len() as f64;
            // Four times the deviation that chance has.
            let expected = percent * 100.0;
            let deviation = (expected * (1.0 - percent / 100.0)).sqrt();
            assert!((count - expected).abs() < 4.0 * deviation, "{percent}: {count}");
        }
    }

    #[test]
    fn who_was_chosen_stays_chosen_when_more_are() {
        let (few, more) = (chosen(&config("v2", 5.0)), chosen(&config("v2", 10.0)));
        assert!(few.iter().all(|client| more.contains(client)) && few.len() < more.len());
    }

    #[test]
    fn another_canary_chooses_others() {
        assert_ne!(chosen(&config("v2", 5.0)), chosen(&config("v3", 5.0)));
    }

    #[test]
    fn the_data_is_json() {
        let request = Request { method: "GET".into(), path: "/\"".into(), query: None };
        assert_eq!(request.data(), br#"{"method":"GET","path":"/\"","query":null}"#);
    }
}
