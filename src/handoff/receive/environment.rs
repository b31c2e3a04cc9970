//! What a program may know of its client, as CGI variables (RFC 3875 §4.1), so far as the dialects let it be known: the
//! request's head stayed in the gateway, so there is no method and no header here unless the data tells.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::ffi::OsStringExt as _;

use nix::sys::socket::{SockaddrLike as _, SockaddrStorage, getpeername, getsockname};

/// Every name that [`Handoff::env`](super::Handoff::env) may use, and those that a program started for a client may be
/// given beside them. Whoever starts one removes them from what it inherits: a value that is not known must not be
/// somebody else's.
pub const ENVIRONMENT_NAMES: [&str; 10] = [
    "GATEWAY_INTERFACE",
    "HANDOFF_DATA",
    "HANDOFF_DATA_FILE",
    "HANDOFF_HEAD_SENT",
    "HANDOFF_ROLE",
    "REMOTE_ADDR",
    "REMOTE_PORT",
    "SERVER_NAME",
    "SERVER_PORT",
    "SERVER_SOFTWARE",
];

/// The longest data that fits into a variable: execve(2) takes strings of 128 KiB, the name, `=` and the final NUL
/// included.
const DATA_BYTES_MAX: usize = (128 << 10) - "HANDOFF_DATA=\0".len();

pub(super) fn environment(client: BorrowedFd<'_>, data: &[u8], is_head_sent: bool) -> Vec<(&'static str, OsString)> {
    let mut variables: Vec<(&'static str, OsString)> = vec![
        ("GATEWAY_INTERFACE", "CGI/1.1".into()),
        ("SERVER_SOFTWARE", concat!("baton/", env!("CARGO_PKG_VERSION")).into()),
        ("HANDOFF_ROLE", "responder".into()),
    ];
    if is_head_sent {
        variables.push(("HANDOFF_HEAD_SENT", "1".into()));
    }
    let client = client.as_raw_fd();
    if let Some(remote) = getpeername(client).ok().and_then(internet) {
        variables.push(("REMOTE_ADDR", remote.ip().to_string().into()));
        variables.push(("REMOTE_PORT", remote.port().to_string().into()));
    }
    if let Some(local) = getsockname(client).ok().and_then(internet) {
        // In a URI an IPv6 address stands in brackets, and SERVER_NAME is what belongs there (RFC 3875 §4.1.14).
        let name = match local.ip() {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        variables.push(("SERVER_NAME", name.into()));
        variables.push(("SERVER_PORT", local.port().to_string().into()));
    }
    if data.len() <= DATA_BYTES_MAX && !data.contains(&0) {
        variables.push(("HANDOFF_DATA", OsString::from_vec(data.to_vec())));
    }
    variables
}

/// An IPv4 address that an IPv6 socket shows as mapped is shown as itself.
fn internet(address: SockaddrStorage) -> Option<SocketAddr> {
    let address = match address.family()? {
        nix::sys::socket::AddressFamily::Inet => SocketAddr::V4((*address.as_sockaddr_in()?).into()),
        nix::sys::socket::AddressFamily::Inet6 => SocketAddr::V6((*address.as_sockaddr_in6()?).into()),
        _ => return None,
    };
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;
    use std::process::Command;

    use super::*;

    fn value(variables: &[(&'static str, OsString)], name: &str) -> Option<String> {
        let (_, value) = variables.iter().find(|(n, _)| *n == name)?;
        Some(value.clone().into_string().unwrap())
    }

    #[test]
    fn a_tcp_client_has_both_addresses() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (client, _) = listener.accept().unwrap();
        let variables = environment(client.as_fd(), b"{}", true);
        let text = |name| value(&variables, name);
        assert_eq!(text("REMOTE_ADDR").unwrap(), "127.0.0.1");
        assert_eq!(text("REMOTE_PORT").unwrap(), far.local_addr().unwrap().port().to_string());
        assert_eq!(text("SERVER_PORT").unwrap(), listener.local_addr().unwrap().port().to_string());
        assert_eq!(text("HANDOFF_DATA").unwrap(), "{}");
        assert_eq!(text("HANDOFF_HEAD_SENT").unwrap(), "1");
        assert!(variables.iter().all(|(name, _)| ENVIRONMENT_NAMES.contains(name)));
    }

    #[test]
    fn a_unix_client_has_none() {
        let (client, _far) = UnixStream::pair().unwrap();
        let variables = environment(client.as_fd(), b"a\0b", false);
        for name in ["REMOTE_ADDR", "SERVER_NAME", "HANDOFF_DATA", "HANDOFF_HEAD_SENT"] {
            assert_eq!(value(&variables, name), None);
        }
    }

    #[test]
    fn the_longest_data_still_starts_a_program() {
        let (client, _far) = UnixStream::pair().unwrap();
        let started = |bytes| {
            let data = vec![b'x'; bytes];
            let variables = environment(client.as_fd(), &data, false);
            let has_data = value(&variables, "HANDOFF_DATA").is_some();
            (has_data, Command::new("true").env_clear().envs(variables).status().is_ok_and(|status| status.success()))
        };
        assert_eq!(started(DATA_BYTES_MAX), (true, true));
        assert_eq!(started(DATA_BYTES_MAX + 1), (false, true));
    }
}
