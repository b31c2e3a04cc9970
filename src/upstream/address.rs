//! Where an upstream listens, what it speaks, and where inside of it the route's paths begin.
//!
//! ```text
//! http://127.0.0.1:9000          https://app.internal          fcgi://127.0.0.1:9000
//! http://127.0.0.1:9000/inside   unix:/run/app.sock:/inside    fcgi+unix:/run/php/php-fpm.sock
//! unix:@abstract:/inside         +/run/app.sock:/inside        https+unix:/run/app.sock:/inside
//! ```
//!
//! A path inside, if only `/`, is put in the place of the route's path; without one the target goes through as the client
//! wrote it.

use std::path::{Path, PathBuf};

use hyper::Uri;

/// An address of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The way to it.
    pub transport: Transport,
    /// What it is spoken to in.
    pub protocol: Protocol,
    /// What the route's path is replaced by: empty, or with a `/` at its beginning and none at its end. `None`: a target
    /// goes through as it was written.
    pub inside: Option<String>,
}

/// The way to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Over a Unix socket without a file: its name, without the NUL in front.
    Abstract(Vec<u8>),
    /// Over TCP.
    Tcp {
        /// An address, one of IPv6 without brackets, or a name that is looked up for each connection.
        host: String,
        /// Its port.
        port: u16,
    },
    /// Over a Unix socket.
    Unix(PathBuf),
}

/// What is spoken with a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// FastCGI.
    FastCgi,
    /// HTTP/1.1 in clear text.
    Http,
    /// HTTP/1.1 inside TLS.
    Https,
}

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// A FastCGI address with a path inside.
    #[error("{0:?} has a path inside, and FastCGI has none: write the address alone, and the folder as root")]
    InsideFastCgi(String),
    /// What stands behind the host or the socket is no path.
    #[error(
        "{0:?} has a path inside that is none: visible characters without ? # and without /../, as in \"unix:/PATH:/INSIDE\""
    )]
    Inside(String),
    /// None of the known forms.
    #[error(
        "{0:?} is no address: write \"http://HOST:PORT\", \"https://HOST:PORT\", \"fcgi://HOST:PORT\", \"unix:/PATH\", \
         \"unix:/PATH:/INSIDE\", \"unix:@NAME\", \"https+unix:/PATH\" or \"fcgi+unix:/PATH\""
    )]
    Malformed(String),
    /// An abstract name that no socket can have.
    #[error("{0:?} has a name of {1} bytes, and an abstract socket's has 1 to {NAME_BYTES_MAX}")]
    Name(String, usize),
    /// HTTP/2 by name.
    #[error("{0:?} asks for HTTP/2, which is not spoken to upstreams: write \"http://\", \"https://\" or \"unix:\"")]
    NoHttp2(String),
    /// A port is missing, and there is no usual one.
    #[error("{0:?} has no port, and FastCGI has no usual one: write \"fcgi://HOST:9000\"")]
    Port(String),
}

/// What `sun_path` holds behind its first NUL (unix(7)).
const NAME_BYTES_MAX: usize = 107;

impl Address {
    /// Understands a text; a relative path of a socket begins in `folder`.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, AddressError> {
        if text.starts_with("h2") {
            return Err(AddressError::NoHttp2(text.to_owned()));
        }
        for (start, protocol) in [
            ("unix:", Protocol::Http),
            ("http+unix:", Protocol::Http),
            ("https+unix:", Protocol::Https),
            ("fcgi+unix:", Protocol::FastCgi),
        ] {
            if let Some(rest) = text.strip_prefix(start) {
                return Self::unix(text, rest, protocol, folder);
            }
        }
        // The form that libwebsockets has mounts in.
        if let Some(rest) = text.strip_prefix('+').filter(|rest| rest.starts_with(['/', '@'])) {
            return Self::unix(text, rest, Protocol::Http, folder);
        }
        for (start, protocol, usual) in [
            ("http://", Protocol::Http, Some(80)),
            ("https://", Protocol::Https, Some(443)),
            ("fcgi://", Protocol::FastCgi, None),
        ] {
            if let Some(rest) = text.strip_prefix(start) {
                return Self::tcp(text, rest, protocol, usual);
            }
        }
        Err(AddressError::Malformed(text.to_owned()))
    }

    fn unix(text: &str, rest: &str, protocol: Protocol, folder: &Path) -> Result<Self, AddressError> {
        let (path, inside) = match rest.find(":/") {
            Some(at) => (&rest[..at], Some(&rest[at + 1..])),
            None => (rest, None),
        };
        if path.is_empty() || path.contains('\0') || path.ends_with(':') {
            return Err(AddressError::Malformed(text.to_owned()));
        }
        let transport = match path.strip_prefix('@') {
            Some(name) if name.is_empty() || name.len() > NAME_BYTES_MAX => {
                return Err(AddressError::Name(text.to_owned(), name.len()));
            }
            Some(name) => Transport::Abstract(name.as_bytes().to_vec()),
            None => Transport::Unix(folder.join(path)),
        };
        Ok(Self { transport, protocol, inside: inside_of(text, inside, protocol)? })
    }

    fn tcp(text: &str, rest: &str, protocol: Protocol, usual: Option<u16>) -> Result<Self, AddressError> {
        let malformed = || AddressError::Malformed(text.to_owned());
        let (authority, inside) = match rest.find(['/', '?', '#']) {
            Some(at) => (&rest[..at], Some(&rest[at..])),
            None => (rest, None),
        };
        // Whatever the scheme: what stands in front of a path is the same in all of them.
        let uri: Uri = format!("http://{authority}").parse().map_err(|_| malformed())?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(malformed)?;
        let has_bad_port = uri.port_u16().is_none() && authority.len() != host.len();
        if authority.contains('@') || has_bad_port || uri.port_u16() == Some(0) {
            return Err(malformed());
        }
        let port = uri.port_u16().or(usual).ok_or_else(|| AddressError::Port(text.to_owned()))?;
        let host = match host.strip_prefix('[') {
            Some(rest) => {
                let address = rest.strip_suffix(']').ok_or_else(malformed)?;
                address.parse::<std::net::Ipv6Addr>().map_err(|_| malformed())?.to_string()
            }
            None => host.to_owned(),
        };
        Ok(Self { transport: Transport::Tcp { host, port }, protocol, inside: inside_of(text, inside, protocol)? })
    }

    /// What a request there says as its Host, unless it says so itself.
    pub(super) fn authority(&self) -> String {
        match &self.transport {
            Transport::Tcp { host, port } if host.contains(':') => format!("[{host}]:{port}"),
            Transport::Tcp { host, port } => format!("{host}:{port}"),
            Transport::Abstract(_) | Transport::Unix(_) => "localhost".to_owned(),
        }
    }

    /// The path and query of a callout as the server has to be asked for it.
    pub(super) fn target(&self, path_and_query: &str) -> String {
        [self.inside.as_deref().unwrap_or_default(), path_and_query].concat()
    }
}

fn inside_of(text: &str, inside: Option<&str>, protocol: Protocol) -> Result<Option<String>, AddressError> {
    let Some(inside) = inside else { return Ok(None) };
    let is_path = inside.starts_with('/') && inside.bytes().all(|b| b.is_ascii_graphic() && !b"?#".contains(&b));
    // What the client's path is put behind must not be understood in two ways either.
    let is_normal = || crate::http::path::normalise(inside).is_ok_and(|normal| normal == inside);
    if !is_path || !is_normal() {
        return Err(AddressError::Inside(text.to_owned()));
    }
    if protocol == Protocol::FastCgi {
        return Err(AddressError::InsideFastCgi(text.to_owned()));
    }
    Ok(Some(inside.trim_end_matches('/').to_owned()))
}

impl std::fmt::Display for Transport {
    /// As the log has it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Abstract(name) => write!(f, "@{}", name.escape_ascii()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Address, AddressError> {
        Address::parse(text, Path::new("/etc"))
    }

    fn tcp(host: &str, port: u16) -> Transport {
        Transport::Tcp { host: host.to_owned(), port }
    }

    fn unix(path: &str) -> Transport {
        Transport::Unix(path.into())
    }

    fn abstract_name(name: &str) -> Transport {
        Transport::Abstract(name.into())
    }

    #[test]
    fn addresses_are_what_they_say() {
        use Protocol::{FastCgi, Http, Https};
        for (text, transport, protocol, inside) in [
            ("http://127.0.0.1:9000", tcp("127.0.0.1", 9000), Http, None),
            ("http://[::1]:9000/", tcp("::1", 9000), Http, Some("")),
            ("http://auth.internal", tcp("auth.internal", 80), Http, None),
            ("http://127.0.0.1:9000/inside/", tcp("127.0.0.1", 9000), Http, Some("/inside")),
            ("https://app.internal", tcp("app.internal", 443), Https, None),
            ("https://app.internal:8443/a/b", tcp("app.internal", 8443), Https, Some("/a/b")),
            ("unix:/run/app.sock", unix("/run/app.sock"), Http, None),
            ("unix:app.sock:/inside/", unix("/etc/app.sock"), Http, Some("/inside")),
            ("unix:/run/app.sock:/", unix("/run/app.sock"), Http, Some("")),
            ("unix:/run/a:b.sock:/c:/d", unix("/run/a:b.sock"), Http, Some("/c:/d")),
            ("http+unix:/run/app.sock:/c", unix("/run/app.sock"), Http, Some("/c")),
            ("unix:@app", abstract_name("app"), Http, None),
            ("unix:@app:/inside", abstract_name("app"), Http, Some("/inside")),
            ("+/run/app.sock:/inside", unix("/run/app.sock"), Http, Some("/inside")),
            ("+/run/app.sock", unix("/run/app.sock"), Http, None),
            ("+@app:/inside", abstract_name("app"), Http, Some("/inside")),
            ("https+unix:/run/app.sock:/inside", unix("/run/app.sock"), Https, Some("/inside")),
            ("https+unix:@app", abstract_name("app"), Https, None),
            ("fcgi://127.0.0.1:9000", tcp("127.0.0.1", 9000), FastCgi, None),
            ("fcgi+unix:/run/php/php-fpm.sock", unix("/run/php/php-fpm.sock"), FastCgi, None),
            ("fcgi+unix:@php", abstract_name("php"), FastCgi, None),
        ] {
            let inside = inside.map(str::to_owned);
            assert_eq!(parse(text), Ok(Address { transport, protocol, inside }), "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_told_what_would_be_one() {
        let check = |text: &str, expected: fn(String) -> AddressError| {
            let error = parse(text).expect_err(text);
            assert_eq!(error, expected(text.to_owned()), "{text}");
            assert!(error.to_string().starts_with(&format!("{text:?} ")), "{error}");
        };
        for text in [
            "",
            "127.0.0.1:9000",
            "/run/a",
            "@a",
            "+a",
            "+",
            "unix:",
            "unix::/a",
            "unix:/a\0b",
            "http://",
            "http:///a",
            "http://:80",
            "http://a:",
            "http://a:99999",
            "http://a:x",
            "http://a:0",
            "http://u@a",
            "http://[x]:80",
            "http://[::1",
            "http://::1:80",
            "http://a b",
            "HTTP://a",
            "ftp://a",
            "fcgi:/run/a",
        ] {
            check(text, AddressError::Malformed);
        }
        for text in [
            "http://a?b",
            "http://a#b",
            "http://a/b?c",
            "unix:/a:/b?c",
            "unix:/a:/b c",
            "unix:/a:/b/../c",
            "unix:/a:/%2e",
        ] {
            check(text, AddressError::Inside);
        }
        for text in ["fcgi://a:9000/b", "fcgi://a:9000/", "fcgi+unix:/a:/b"] {
            check(text, AddressError::InsideFastCgi);
        }
        for text in ["h2://a", "h2c://a", "h2+unix:/a", "h2c+unix:/a"] {
            check(text, AddressError::NoHttp2);
        }
        check("fcgi://127.0.0.1", AddressError::Port);
    }

    #[test]
    fn an_abstract_name_has_as_many_bytes_as_a_socket_address_holds() {
        for (length, is_one) in [(0, false), (1, true), (NAME_BYTES_MAX, true), (NAME_BYTES_MAX + 1, false)] {
            let text = format!("unix:@{}", "a".repeat(length));
            assert_eq!(parse(&text).err(), (!is_one).then_some(AddressError::Name(text, length)));
        }
    }

    #[test]
    fn a_callouts_path_stands_behind_the_one_inside() {
        for (text, target, authority) in [
            ("unix:/run/app.sock:/inside/", "/inside/a?b", "localhost"),
            ("unix:/run/app.sock:/", "/a?b", "localhost"),
            ("unix:@app", "/a?b", "localhost"),
            ("http://[::1]:9000", "/a?b", "[::1]:9000"),
            ("https://app.internal/inside", "/inside/a?b", "app.internal:443"),
        ] {
            let address = parse(text).expect(text);
            assert_eq!((&address.target("/a?b")[..], &address.authority()[..]), (target, authority), "{text}");
        }
    }
}
