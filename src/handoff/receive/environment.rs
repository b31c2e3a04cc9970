//! What a program may know of its client, as CGI variables (RFC 3875 §4.1), so far as the dialects let it be known: in most
//! of them the request's head stayed in the gateway, so there is no method and no header unless the data tells.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::ffi::OsStringExt as _;

use nix::sys::socket::{SockaddrLike as _, SockaddrStorage, getpeername, getsockname};
use serde_json::{Map, Value};

use super::handoff::Handoff;
use super::request::headers;

/// Every name that [`Handoff::env`](super::Handoff::env) may use, and those that a program started for a client may be
/// given beside them; but for those of the request's fields, which begin with `HTTP_`. Whoever starts one removes them from what it inherits: a value that is not known must not be
/// somebody else's.
pub const ENVIRONMENT_NAMES: [&str; 18] = [
    "CONTENT_LENGTH",
    "CONTENT_TYPE",
    "GATEWAY_INTERFACE",
    "HANDOFF_DATA",
    "HANDOFF_DATA_FILE",
    "HANDOFF_HEAD_SENT",
    "HANDOFF_ID",
    "HANDOFF_ROLE",
    "HTTPS",
    "QUERY_STRING",
    "REMOTE_ADDR",
    "REMOTE_PORT",
    "REQUEST_METHOD",
    "REQUEST_URI",
    "SERVER_NAME",
    "SERVER_PORT",
    "SERVER_PROTOCOL",
    "SERVER_SOFTWARE",
];

/// The longest data that fits into a variable: execve(2) takes strings of 128 KiB, the name, `=` and the final NUL
/// included.
const DATA_BYTES_MAX: usize = (128 << 10) - "HANDOFF_DATA=\0".len();

pub(super) fn environment(handoff: &Handoff) -> Vec<(String, OsString)> {
    let role = Some(handoff.role()).filter(|role| !role.is_empty());
    let mut variables = variables(handoff.client_for_looking(), handoff.data(), handoff.is_head_sent(), role);
    of_request(handoff.metadata(), handoff.input().length(), &mut variables);
    variables
}

/// What is known without metadata.
fn variables(
    client: Option<BorrowedFd<'_>>,
    data: &[u8],
    is_head_sent: bool,
    role: Option<&str>,
) -> Vec<(String, OsString)> {
    let mut variables = Vec::new();
    set(&mut variables, "GATEWAY_INTERFACE", "CGI/1.1");
    set(&mut variables, "SERVER_SOFTWARE", concat!("baton/", env!("CARGO_PKG_VERSION")));
    set(&mut variables, "HANDOFF_ROLE", role.unwrap_or("responder"));
    if is_head_sent {
        set(&mut variables, "HANDOFF_HEAD_SENT", "1");
    }
    let client = client.map(|client| client.as_raw_fd());
    if let Some(remote) = client.and_then(|client| internet(&getpeername(client).ok()?)) {
        set(&mut variables, "REMOTE_ADDR", remote.ip().to_string());
        set(&mut variables, "REMOTE_PORT", remote.port().to_string());
    }
    if let Some(local) = client.and_then(|client| internet(&getsockname(client).ok()?)) {
        // In a URI an IPv6 address stands in brackets, and SERVER_NAME is what belongs there (RFC 3875 §4.1.14).
        let name = match local.ip() {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        set(&mut variables, "SERVER_NAME", name);
        set(&mut variables, "SERVER_PORT", local.port().to_string());
    }
    if data.len() <= DATA_BYTES_MAX && !data.contains(&0) {
        variables.push(("HANDOFF_DATA".to_owned(), OsString::from_vec(data.to_vec())));
    }
    variables
}

/// What the gateway says, which is more than the socket does: one that is relayed has no address, and one behind a trusted proxy another's.
fn of_request(metadata: &Map<String, Value>, length: Option<u64>, variables: &mut Vec<(String, OsString)>) {
    let text = |object: &str, name: &str| metadata.get(object)?.get(name)?.as_str();
    let number = |object: &str, name: &str| Some(metadata.get(object)?.get(name)?.as_u64()?.to_string());
    let mut some = |name: &str, value: Option<&str>| {
        if let Some(value) = value.filter(|value| !value.contains('\0')) {
            set(variables, name, value);
        }
    };
    some("HANDOFF_ID", metadata.get("id").and_then(Value::as_str));
    some("REQUEST_METHOD", text("request", "method"));
    some("REQUEST_URI", text("request", "target"));
    some("QUERY_STRING", text("request", "target").map(|target| target.split_once('?').map_or("", |(_, query)| query)));
    some("SERVER_PROTOCOL", text("request", "version").map(|version| format!("HTTP/{version}")).as_deref());
    some("HTTPS", text("request", "scheme").filter(|scheme| *scheme == "https").map(|_| "on"));
    some("SERVER_NAME", text("request", "authority").map(host).filter(|host| !host.is_empty()));
    some("SERVER_PORT", number("server", "port").as_deref());
    some("REMOTE_ADDR", text("client", "ip"));
    some("REMOTE_PORT", number("client", "port").as_deref());
    some("CONTENT_LENGTH", length.map(|length| length.to_string()).as_deref());
    for (name, value) in headers(metadata) {
        let variable = match name {
            // One is the body's as it is to be read; another sets what many programs take for their own proxy.
            "content-length" | "proxy" => continue,
            "content-type" => "CONTENT_TYPE".to_owned(),
            // Others would stand for each other: both `-` and `_` are written `_`.
            name if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') => {
                format!("HTTP_{}", name.to_ascii_uppercase().replace('-', "_"))
            }
            _ => continue,
        };
        if value.contains(&0) {
            continue;
        }
        let separator = if name == "cookie" { "; " } else { ", " };
        match variables.iter_mut().find(|(own, _)| *own == variable) {
            Some((_, all)) => {
                all.push(separator);
                all.push(OsString::from_vec(value.into_owned()));
            }
            None => variables.push((variable, OsString::from_vec(value.into_owned()))),
        }
    }
}

fn set(variables: &mut Vec<(String, OsString)>, name: &str, value: impl Into<OsString>) {
    match variables.iter_mut().find(|(own, _)| own == name) {
        Some((_, own)) => *own = value.into(),
        None => variables.push((name.to_owned(), value.into())),
    }
}

/// An authority without its port.
fn host(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// An IPv4 address that an IPv6 socket shows as mapped is shown as itself.
fn internet(address: &SockaddrStorage) -> Option<SocketAddr> {
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

    fn value(variables: &[(String, OsString)], name: &str) -> Option<String> {
        let (_, value) = variables.iter().find(|(n, _)| *n == name)?;
        Some(value.clone().into_string().unwrap())
    }

    #[test]
    fn a_tcp_client_has_both_addresses() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (client, _) = listener.accept().unwrap();
        let variables = variables(Some(client.as_fd()), b"{}", true, None);
        let text = |name| value(&variables, name);
        assert_eq!(text("REMOTE_ADDR").unwrap(), "127.0.0.1");
        assert_eq!(text("REMOTE_PORT").unwrap(), far.local_addr().unwrap().port().to_string());
        assert_eq!(text("SERVER_PORT").unwrap(), listener.local_addr().unwrap().port().to_string());
        assert_eq!(text("HANDOFF_DATA").unwrap(), "{}");
        assert_eq!(text("HANDOFF_HEAD_SENT").unwrap(), "1");
        assert!(variables.iter().all(|(name, _)| ENVIRONMENT_NAMES.contains(&&**name)));
    }

    #[test]
    fn what_the_gateway_says_goes_before_what_the_socket_shows() {
        let metadata = serde_json::json!({
            "id": "01J", "client": {"ip": "203.0.113.9", "port": 40312}, "server": {"port": 443},
            "request": {
                "method": "POST", "target": "/v1/chat?x=1", "version": "1.1", "scheme": "https", "authority": "[::1]:8443",
                "headers": [
                    ["accept", "a"], ["accept", "b"], ["cookie", "c=1"], ["cookie", "d=2"], ["proxy", "http://evil"],
                    ["x_y", "1"], ["content-type", "text/plain"], ["content-length", "9"], ["x-raw", {"base64": "/w=="}],
                ],
            },
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut all = variables(Some(client.as_fd()), b"", false, Some("filter"));
        of_request(metadata.as_object().unwrap(), Some(5), &mut all);
        for (name, expected) in [
            ("HANDOFF_ID", Some("01J")),
            ("HANDOFF_ROLE", Some("filter")),
            ("REQUEST_METHOD", Some("POST")),
            ("REQUEST_URI", Some("/v1/chat?x=1")),
            ("QUERY_STRING", Some("x=1")),
            ("SERVER_PROTOCOL", Some("HTTP/1.1")),
            ("HTTPS", Some("on")),
            ("SERVER_NAME", Some("[::1]")),
            ("SERVER_PORT", Some("443")),
            ("REMOTE_ADDR", Some("203.0.113.9")),
            ("REMOTE_PORT", Some("40312")),
            ("CONTENT_LENGTH", Some("5")),
            ("CONTENT_TYPE", Some("text/plain")),
            ("HTTP_ACCEPT", Some("a, b")),
            ("HTTP_COOKIE", Some("c=1; d=2")),
            ("HTTP_PROXY", None),
            ("HTTP_X_Y", None),
            ("HTTP_CONTENT_LENGTH", None),
        ] {
            assert_eq!(value(&all, name).as_deref(), expected, "{name}");
        }
        let raw = all.iter().find(|(name, _)| name == "HTTP_X_RAW").unwrap();
        assert_eq!(raw.1.clone().into_vec(), b"\xff");
        let is_known = |name: &str| ENVIRONMENT_NAMES.contains(&name) || name.starts_with("HTTP_");
        assert!(all.iter().all(|(name, _)| is_known(name)));
    }

    #[test]
    fn a_unix_client_has_none() {
        let (client, _far) = UnixStream::pair().unwrap();
        let variables = variables(Some(client.as_fd()), b"a\0b", false, None);
        for name in ["REMOTE_ADDR", "SERVER_NAME", "HANDOFF_DATA", "HANDOFF_HEAD_SENT"] {
            assert_eq!(value(&variables, name), None);
        }
    }

    #[test]
    fn the_longest_data_still_starts_a_program() {
        let (client, _far) = UnixStream::pair().unwrap();
        let started = |bytes| {
            let data = vec![b'x'; bytes];
            let variables = variables(Some(client.as_fd()), &data, false, None);
            let has_data = value(&variables, "HANDOFF_DATA").is_some();
            (has_data, Command::new("true").env_clear().envs(variables).status().is_ok_and(|status| status.success()))
        };
        assert_eq!(started(DATA_BYTES_MAX), (true, true));
        assert_eq!(started(DATA_BYTES_MAX + 1), (false, true));
    }
}
