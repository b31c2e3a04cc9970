//! What a process was started with: a listening socket, one connection, or a client.
//!
//! | found | is |
//! |---|---|
//! | `LISTEN_PID` is this process and `LISTEN_FDS` at least 1 (sd_listen_fds(3)) | descriptor 3, as below |
//! | standard input is a socket that listens (FastCGI's way) | a listener |
//! | standard input is a connected Unix socket and `GATEWAY_INTERFACE` is not set (`Accept=yes`) | a gateway's connection: one handoff, then the end |
//! | standard input is another connected stream socket (inetd, `baton receive`) | the client: one handoff |
//! | `GATEWAY_INTERFACE` is set, standard input is no socket (CGI) | the request's body; the answer goes to standard output |

use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::{env, fs, process};

use nix::sys::socket::{SockType, SockaddrLike as _, SockaddrStorage, getsockname, getsockopt, sockopt};
use serde_json::{Map, Value, json};

use super::super::ancillary;
use super::body::Framing;

/// What was found.
pub(super) enum Inherited {
    Listener(OwnedFd),
    Connection(OwnedFd),
    Client(Box<Client>),
}

/// A client that nobody has to be told about.
pub(super) struct Client {
    pub socket: OwnedFd,
    /// Where the body comes from, if from elsewhere.
    pub input: Option<OwnedFd>,
    pub data: Vec<u8>,
    pub metadata: Map<String, Value>,
    pub framing: Framing,
    pub is_head_sent: bool,
    /// Whether a server reads the answer's head and makes one of its own of it (RFC 3875 §6).
    pub is_cgi: bool,
}

/// Looks for what this process was started with, in the order of the table above.
pub(super) fn inherited() -> io::Result<Inherited> {
    let number = |name: &str| env::var(name).ok().and_then(|value| value.parse::<u32>().ok());
    let is_passed = number("LISTEN_PID") == Some(process::id()) && number("LISTEN_FDS").is_some_and(|count| count > 0);
    if is_passed {
        const FIRST: i32 = 3;
        let socket = ancillary::copy_of_inherited(FIRST)?;
        let is_listening = is_listening(&socket);
        return Ok(if is_listening { Inherited::Listener(socket) } else { Inherited::Connection(socket) });
    }
    let stdin = io::stdin().as_fd().try_clone_to_owned()?;
    let is_started_for_one = env::var_os("GATEWAY_INTERFACE").is_some();
    match getsockopt(&stdin, sockopt::SockType) {
        Ok(_) if is_listening(&stdin) || is_datagram(&stdin) => Ok(Inherited::Listener(stdin)),
        Ok(_) if is_unix(&stdin) && !is_started_for_one => Ok(Inherited::Connection(stdin)),
        Ok(SockType::Stream) => Ok(Inherited::Client(Box::new(client(stdin, None)?))),
        Err(_) if is_started_for_one => {
            let stdout = io::stdout().as_fd().try_clone_to_owned()?;
            Ok(Inherited::Client(Box::new(client(stdout, Some(stdin))?)))
        }
        _ => Err(io::Error::new(
            io::ErrorKind::NotFound,
            "neither LISTEN_FDS, nor a socket on standard input, nor GATEWAY_INTERFACE",
        )),
    }
}

fn is_listening(socket: &OwnedFd) -> bool {
    getsockopt(socket, sockopt::AcceptConn).unwrap_or(false)
}

fn is_datagram(socket: &OwnedFd) -> bool {
    getsockopt(socket, sockopt::SockType) == Ok(SockType::Datagram)
}

fn is_unix(socket: &OwnedFd) -> bool {
    use std::os::fd::AsRawFd as _;
    let own = getsockname::<SockaddrStorage>(socket.as_raw_fd());
    own.is_ok_and(|own| own.family() == Some(nix::sys::socket::AddressFamily::Unix))
}

/// A client with what the environment says of it.
fn client(socket: OwnedFd, input: Option<OwnedFd>) -> io::Result<Client> {
    let is_ours = env::var_os("HANDOFF_ROLE").is_some();
    let data = match (env::var_os("HANDOFF_DATA_FILE"), env::var_os("HANDOFF_DATA")) {
        (Some(file), _) => {
            let mut data = Vec::new();
            fs::File::open(file)?.read_to_end(&mut data)?;
            data
        }
        (None, data) => data.unwrap_or_default().into_vec(),
    };
    let length = env::var("CONTENT_LENGTH").ok().and_then(|length| length.parse().ok());
    Ok(Client {
        socket,
        input,
        data,
        metadata: metadata(env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)))),
        framing: length.map_or(Framing::None, Framing::Length),
        is_head_sent: env::var_os("HANDOFF_HEAD_SENT").is_some(),
        is_cgi: env::var_os("GATEWAY_INTERFACE").is_some() && !is_ours,
    })
}

/// The variables of a request as a gateway would have said them (RFC 3875 §4.1).
fn metadata(variables: impl Iterator<Item = (String, std::ffi::OsString)>) -> Map<String, Value> {
    let (mut request, mut client, mut server) = (Map::new(), Map::new(), Map::new());
    let (mut headers, mut all) = (Vec::new(), Map::new());
    for (name, value) in variables {
        let value = value.to_string_lossy().into_owned();
        let port = || value.parse::<u16>().map_or(Value::Null, Value::from);
        match &*name {
            "REQUEST_METHOD" => drop(request.insert("method".to_owned(), value.into())),
            "REQUEST_URI" => drop(request.insert("target".to_owned(), value.into())),
            "SERVER_PROTOCOL" => {
                drop(request.insert("version".to_owned(), value.trim_start_matches("HTTP/").into()));
            }
            "HTTPS" if value == "on" => drop(request.insert("scheme".to_owned(), "https".into())),
            "REMOTE_ADDR" => drop(client.insert("ip".to_owned(), value.into())),
            "REMOTE_PORT" => drop(client.insert("port".to_owned(), port())),
            "SERVER_PORT" => drop(server.insert("port".to_owned(), port())),
            "HANDOFF_ID" => drop(all.insert("id".to_owned(), value.into())),
            "HANDOFF_ROLE" if value != "responder" => {
                drop(all.insert("metadata".to_owned(), json!({ "role": value })));
            }
            "CONTENT_TYPE" => headers.push(json!(["content-type", value])),
            _ => {
                if let Some(field) = name.strip_prefix("HTTP_") {
                    if field == "HOST" {
                        request.insert("authority".to_owned(), value.clone().into());
                    }
                    headers.push(json!([field.to_ascii_lowercase().replace('_', "-"), value]));
                }
            }
        }
    }
    request.insert("headers".to_owned(), headers.into());
    for (name, object) in [("request", request), ("client", client), ("server", server)] {
        all.insert(name.to_owned(), object.into());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_a_request() {
        let variables = [
            ("REQUEST_METHOD", "POST"),
            ("REQUEST_URI", "/a?b"),
            ("SERVER_PROTOCOL", "HTTP/1.0"),
            ("HTTP_X_Y", "z"),
            ("HTTP_HOST", "example.org"),
            ("CONTENT_TYPE", "text/plain"),
            ("REMOTE_ADDR", "203.0.113.9"),
            ("REMOTE_PORT", "4711"),
            ("HANDOFF_ROLE", "responder"),
            ("HANDOFF_ID", "01J"),
            ("PATH", "/bin"),
        ];
        let all = metadata(variables.into_iter().map(|(name, value)| (name.to_owned(), value.into())));
        let expected = json!({
            "id": "01J",
            "request": {
                "method": "POST", "target": "/a?b", "version": "1.0", "authority": "example.org",
                "headers": [["x-y", "z"], ["host", "example.org"], ["content-type", "text/plain"]],
            },
            "client": {"ip": "203.0.113.9", "port": 4711},
            "server": {},
        });
        assert_eq!(Value::Object(all), expected);
    }
}
