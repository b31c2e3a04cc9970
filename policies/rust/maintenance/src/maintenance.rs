//! Who has to wait.

use std::net::IpAddr;

use crate::config::Config;

/// Whether a client gets the page. One without an address (a process behind a Unix socket) can be on no list.
pub fn has_to_wait(config: &Config, client: &str) -> bool {
    if !config.on {
        return false;
    }
    let Ok(client) = client.parse::<IpAddr>().map(|address| address.to_canonical()) else { return true };
    !config.allow.iter().any(|network| network.contains(&client))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_while_it_is_off() {
        let config = Config::parse(r#"{"on": false}"#).expect("is good");
        assert!(!has_to_wait(&config, "192.0.2.1"));
    }

    #[test]
    fn everybody_waits_who_is_not_allowed() {
        let config = Config::parse(r#"{"on": true, "allow": ["192.0.2.0/28", "198.51.100.7", "2001:db8::/32"]}"#)
            .expect("is good");
        for allowed in ["192.0.2.0", "192.0.2.15", "::ffff:192.0.2.3", "198.51.100.7", "2001:db8:ffff::1"] {
            assert!(!has_to_wait(&config, allowed), "{allowed}");
        }
        for waiting in ["192.0.2.16", "192.0.1.255", "198.51.100.8", "2001:db9::", "unix:0", ""] {
            assert!(has_to_wait(&config, waiting), "{waiting}");
        }
    }
}
