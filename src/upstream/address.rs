//! Where an upstream listens: `http://127.0.0.1:9000`, `unix:/run/app.sock` or `unix:/run/app.sock:/inside`.

use std::path::{Path, PathBuf};

use hyper::Uri;

/// An address of a server that speaks HTTP in clear text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Over TCP.
    Tcp {
        /// An address, or a name that is looked up for each connection.
        host: String,
        /// Its port.
        port: u16,
    },
    /// Over a Unix socket.
    Unix {
        /// Of the socket.
        path: PathBuf,
        /// What stands in front of every path there; empty, or without a `/` at its end.
        inside: String,
    },
}

/// Why a text is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Other versions may.
    #[error("{0:?} is not served by this version: write \"http://HOST:PORT\" or \"unix:/PATH\"")]
    NotServed(String),
    /// No version will.
    #[error("{0:?} is no address: write \"http://HOST:PORT\" or \"unix:/PATH\", \"unix:/PATH:/INSIDE\"")]
    Malformed(String),
}

/// Kinds of addresses that are known and not served.
const NOT_SERVED: [&str; 6] = ["https://", "https+unix:", "fcgi://", "fcgi+unix:", "+", "h2"];

impl Address {
    /// Understands a text; a relative path of a socket begins in `folder`.
    ///
    /// # Errors
    /// It is none, or none of this version's.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, AddressError> {
        let malformed = || AddressError::Malformed(text.to_owned());
        if NOT_SERVED.iter().any(|kind| text.starts_with(kind)) {
            return Err(AddressError::NotServed(text.to_owned()));
        }
        if let Some(rest) = text.strip_prefix("unix:") {
            let (path, inside) = rest.split_once(":/").map_or((rest, ""), |(path, inside)| (path, inside));
            let is_path = |b: u8| b.is_ascii_graphic() && !b"?#".contains(&b);
            if path.is_empty() || path.contains('\0') || !inside.bytes().all(is_path) {
                return Err(malformed());
            }
            let inside = format!("/{inside}").trim_end_matches('/').to_owned();
            return Ok(Self::Unix { path: folder.join(path), inside });
        }
        let uri: Uri = text.parse().map_err(|_| malformed())?;
        let (Some("http"), Some(host), "/", None) = (uri.scheme_str(), uri.host(), uri.path(), uri.query()) else {
            return Err(malformed());
        };
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let has_user = authority.contains('@');
        let has_bad_port = uri.port_u16().is_none() && !authority.trim_start_matches(host).is_empty();
        if has_user || has_bad_port || uri.port_u16() == Some(0) {
            return Err(malformed());
        }
        Ok(Self::Tcp { host: host.to_owned(), port: uri.port_u16().unwrap_or(80) })
    }

    /// What a request there says as its Host, unless it says so itself.
    pub(super) fn authority(&self) -> String {
        match self {
            Self::Tcp { host, port } => format!("{host}:{port}"),
            Self::Unix { .. } => "localhost".to_owned(),
        }
    }

    /// That path and query as the server has to be asked for it.
    pub(super) fn target(&self, path_and_query: &str) -> String {
        match self {
            Self::Tcp { .. } => path_and_query.to_owned(),
            Self::Unix { inside, .. } => format!("{inside}{path_and_query}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_what_they_say() {
        let parse = |text: &str| Address::parse(text, Path::new("/etc"));
        let tcp = |host: &str, port| Ok(Address::Tcp { host: host.into(), port });
        let unix = |path: &str, inside: &str| Ok(Address::Unix { path: path.into(), inside: inside.into() });
        assert_eq!(parse("http://127.0.0.1:9000"), tcp("127.0.0.1", 9000));
        assert_eq!(parse("http://[::1]:9000/"), tcp("[::1]", 9000));
        assert_eq!(parse("http://auth.internal"), tcp("auth.internal", 80));
        assert_eq!(parse("unix:/run/app.sock"), unix("/run/app.sock", ""));
        assert_eq!(parse("unix:app.sock:/inside/"), unix("/etc/app.sock", "/inside"));
        assert_eq!(parse("unix:/run/app.sock:/"), unix("/run/app.sock", ""));
        for text in ["https://a:1", "fcgi://127.0.0.1:9000", "fcgi+unix:/run/a", "https+unix:/run/a", "+/run/a:/b"] {
            assert_eq!(parse(text), Err(AddressError::NotServed(text.into())), "{text}");
        }
        for text in [
            "",
            "127.0.0.1:9000",
            "/run/a",
            "unix:",
            "http://",
            "http://a:99999",
            "http://a:x",
            "http://a:0",
            "http://u@a",
            "http://a/b",
            "http://a?b",
            "ftp://a",
            "unix:/a:/b?c",
            "unix:/a:/b c",
        ] {
            assert_eq!(parse(text), Err(AddressError::Malformed(text.into())), "{text}");
        }
    }

    #[test]
    fn a_path_inside_stands_in_front() {
        let address = Address::parse("unix:/run/app.sock:/inside/", Path::new("/")).expect("one");
        assert_eq!((address.target("/a?b"), address.authority()), ("/inside/a?b".into(), "localhost".into()));
    }
}
