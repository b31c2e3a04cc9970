//! Whom a bucket is for.

use std::net::{IpAddr, Ipv6Addr};

/// The name of a client's bucket. An IPv6 client has a whole network to choose its address from, usually 64 bits of
/// it, so the network is the client. What is no address (a process behind a Unix socket) is itself.
pub fn bucket(client: &str, ipv6_bits: u32) -> String {
    match client.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(IpAddr::V6(address)) => {
            let kept = u128::MAX.checked_shl(128 - ipv6_bits).unwrap_or(0);
            format!("{}/{ipv6_bits}", Ipv6Addr::from_bits(address.to_bits() & kept))
        }
        Ok(IpAddr::V4(address)) => address.to_string(),
        Err(_) => client.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::bucket;

    #[test]
    fn an_ipv4_client_is_its_address() {
        assert_eq!(bucket("192.0.2.1", 64), "192.0.2.1");
        assert_eq!(bucket("::ffff:192.0.2.1", 64), "192.0.2.1");
    }

    #[test]
    fn an_ipv6_client_is_its_network() {
        assert_eq!(bucket("2001:db8:1:2:3:4:5:6", 64), "2001:db8:1:2::/64");
        assert_eq!(bucket("2001:db8:1:2:ffff::", 64), bucket("2001:db8:1:2::1", 64));
        assert_eq!(bucket("2001:db8:1:2::1", 48), "2001:db8:1::/48");
        assert_eq!(bucket("2001:db8::1", 128), "2001:db8::1/128");
        assert_eq!(bucket("2001:db8::1", 1), "::/1");
    }

    #[test]
    fn a_process_is_itself() {
        assert_eq!(bucket("unix:1000", 64), "unix:1000");
    }
}
