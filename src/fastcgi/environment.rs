//! What a program is told of a request: the variables of CGI (RFC 3875 §4.1), as the `fastcgi.conf` of nginx has them.
//! Pure: whoever holds the request says what it is.
//!
//! A field of a client becomes a variable only where its name can be read back in one way. `_` and `-` are the same in a
//! variable, so a name with `_` would be one that somebody in front of us vouches for with `-`; `Proxy` would be
//! HTTP_PROXY, which programs take for a setting (httpoxy). Both are dropped, and what nginx drops beside them: any name
//! that has more than letters, digits and hyphens.

use std::borrow::Cow;
use std::collections::HashSet;

use super::pairs::{self, PairError};
use super::script::{DecodeError, Scripts, decode_path};

/// What the request is, to whom it may concern.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// As it was sent.
    pub method: &'a str,
    /// The request target as the client wrote it, in any form.
    pub target: &'a str,
    /// Its path, normalised and percent-encoded ([`crate::http::path::normalise`]).
    pub path: &'a str,
    /// Its query, without the `?`.
    pub query: Option<&'a str>,
    /// `HTTP/1.1`.
    pub protocol: &'a str,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// Fields in order, in any case.
    pub fields: &'a [(Cow<'a, str>, &'a [u8])],
    /// Bytes of the body; `None`: it has none, and no framing.
    pub body_bytes: Option<u64>,
    /// Who asks: an IP address, or `unix:`.
    pub client_address: &'a str,
    /// Its port, over TCP.
    pub client_port: Option<u16>,
    /// Where it asks: an IP address, or `unix:` and a path.
    pub server_address: &'a str,
    /// The port there.
    pub server_port: Option<u16>,
    /// Host without its port.
    pub host: &'a str,
    /// What an authorizer has set; none of it replaces what stands here already.
    pub extra: &'a [(String, Vec<u8>)],
}

/// What the program is to do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Answer.
    Respond,
    /// Say whether it may go on (FastCGI 1.0 §6.3): it is not told of a body, nor of a script that would answer.
    Authorize,
    /// Change what goes out (§6.4).
    Filter {
        /// FCGI_DATA_LENGTH.
        data_bytes: u64,
        /// FCGI_DATA_LAST_MOD, in seconds since 1970.
        modified_s: u64,
    },
}

/// Variables in order; no name twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variables {
    list: Vec<(Vec<u8>, Vec<u8>)>,
    names: HashSet<Vec<u8>>,
}

impl Variables {
    /// All of a request.
    ///
    /// # Errors
    /// Its path cannot be told: the client is answered 400.
    pub fn new(facts: &Facts<'_>, scripts: &Scripts, purpose: Purpose) -> Result<Self, DecodeError> {
        let path = decode_path(facts.path)?;
        let script = scripts.of(&path);
        let is_authorizer = purpose == Purpose::Authorize;
        let below = |root: &str, path: &[u8]| [root.trim_end_matches('/').as_bytes(), path].concat();
        let port = |port: Option<u16>| port.map_or_else(String::new, |port| port.to_string());
        let mut own = Self::default();
        if let Some(root) = &scripts.root {
            own.add("SCRIPT_FILENAME", below(root, &script.name));
        }
        own.add("QUERY_STRING", facts.query.unwrap_or_default());
        own.add("REQUEST_METHOD", facts.method);
        own.add("CONTENT_TYPE", joined(facts.fields, "content-type", b", ").unwrap_or_default());
        if !is_authorizer {
            own.add("CONTENT_LENGTH", facts.body_bytes.map_or_else(String::new, |bytes| bytes.to_string()));
            own.add("SCRIPT_NAME", &script.name[..]);
        }
        own.add("REQUEST_URI", &*origin_form(facts.target));
        own.add("DOCUMENT_URI", if is_authorizer { path } else { script.name });
        if let Some(root) = &scripts.root {
            own.add("DOCUMENT_ROOT", root.trim_end_matches('/'));
        }
        own.add("SERVER_PROTOCOL", facts.protocol);
        own.add("REQUEST_SCHEME", facts.scheme);
        if facts.scheme == "https" {
            own.add("HTTPS", "on");
        }
        own.add("GATEWAY_INTERFACE", "CGI/1.1");
        own.add("SERVER_SOFTWARE", concat!("baton/", env!("CARGO_PKG_VERSION")));
        own.add("REMOTE_ADDR", facts.client_address);
        own.add("REMOTE_PORT", port(facts.client_port));
        own.add("SERVER_ADDR", facts.server_address);
        own.add("SERVER_PORT", port(facts.server_port));
        own.add("SERVER_NAME", facts.host);
        // PHP refuses to run without it where it was built for CGI behind Apache.
        own.add("REDIRECT_STATUS", "200");
        if !is_authorizer && !script.info.is_empty() {
            if let Some(root) = &scripts.root {
                own.add("PATH_TRANSLATED", below(root, &script.info));
            }
            own.add("PATH_INFO", script.info);
        }
        if let Purpose::Filter { data_bytes, modified_s } = purpose {
            own.add("FCGI_DATA_LENGTH", data_bytes.to_string());
            own.add("FCGI_DATA_LAST_MOD", modified_s.to_string());
        }
        for (name, value) in facts.extra {
            own.add(name, &value[..]);
        }
        own.add_fields(facts.fields, is_authorizer);
        Ok(own)
    }

    /// `Name: value` as HTTP_NAME.
    fn add_fields(&mut self, fields: &[(Cow<'_, str>, &[u8])], is_authorizer: bool) {
        let mut seen = HashSet::new();
        for (name, _) in fields {
            let name = name.to_ascii_lowercase();
            let is_dropped = match name.as_str() {
                "proxy" => true,
                // The program gets the body without chunks, and no word of how it came.
                "te" | "trailer" | "transfer-encoding" => true,
                "content-length" => is_authorizer,
                name => name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'),
            };
            if is_dropped || !seen.insert(name.clone()) {
                continue;
            }
            let separator: &[u8] = if name == "cookie" { b"; " } else { b", " };
            let value = joined(fields, &name, separator).unwrap_or_default();
            self.add(&format!("HTTP_{}", name.to_ascii_uppercase().replace('-', "_")), value);
        }
    }

    /// Adds one, unless there is one of that name.
    pub fn add(&mut self, name: &str, value: impl AsRef<[u8]>) {
        if self.names.insert(name.as_bytes().to_vec()) {
            self.list.push((name.as_bytes().to_vec(), value.as_ref().to_vec()));
        }
    }

    /// The value of one.
    pub fn value(&self, name: &str) -> Option<&[u8]> {
        self.list.iter().find(|(own, _)| own == name.as_bytes()).map(|(_, value)| &value[..])
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.list.iter().map(|(name, value)| (&name[..], &value[..]))
    }

    /// As PARAMS carries them.
    ///
    /// # Errors
    /// One is longer than 2 GiB.
    pub fn encode(&self) -> Result<Vec<u8>, PairError> {
        let mut out = Vec::new();
        for (name, value) in &self.list {
            pairs::put(&mut out, name, value)?;
        }
        Ok(out)
    }
}

/// All values of one name, which is in lower case.
fn joined(fields: &[(Cow<'_, str>, &[u8])], name: &str, separator: &[u8]) -> Option<Vec<u8>> {
    let values: Vec<_> = fields.iter().filter(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, v)| *v).collect();
    (!values.is_empty()).then(|| values.join(separator))
}

/// A target without what only its absolute form has: programs know paths.
fn origin_form(target: &str) -> Cow<'_, str> {
    let Some((_, rest)) = target.split_once("://").filter(|_| !target.starts_with('/')) else {
        return Cow::Borrowed(target);
    };
    let rest = &rest[rest.find(['/', '?']).unwrap_or(rest.len())..];
    if rest.starts_with('/') { Cow::Borrowed(rest) } else { Cow::Owned(format!("/{rest}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts<'_> = Facts {
        method: "GET",
        target: "/",
        path: "/",
        query: None,
        protocol: "HTTP/1.1",
        scheme: "http",
        fields: &[],
        body_bytes: None,
        client_address: "192.0.2.7",
        client_port: Some(50_000),
        server_address: "192.0.2.1",
        server_port: Some(80),
        host: "example.org",
        extra: &[],
    };

    fn scripts() -> Scripts {
        Scripts { root: Some("/var/www".to_owned()), ..Scripts::default() }
    }

    fn text(variables: &Variables, name: &str) -> Option<String> {
        variables.value(name).map(|value| String::from_utf8_lossy(value).into_owned())
    }

    fn variables(facts: &Facts<'_>) -> Variables {
        Variables::new(facts, &scripts(), Purpose::Respond).expect("a path")
    }

    #[track_caller]
    fn check(variables: &Variables, expected: &[(&str, Option<&str>)]) {
        for &(name, value) in expected {
            assert_eq!(text(variables, name).as_deref(), value, "{name}");
        }
    }

    #[test]
    fn a_request_is_told_as_nginx_tells_it() {
        let fields = [("host", "example.org:8080"), ("content-type", "text/plain"), ("x-a", "1")];
        let fields = fields.map(|(name, value)| (Cow::Borrowed(name), value.as_bytes()));
        let facts = Facts {
            method: "POST",
            target: "/a%20b/c.php/in/fo?q=1&r",
            path: "/a%20b/c.php/in/fo",
            query: Some("q=1&r"),
            scheme: "https",
            fields: &fields,
            body_bytes: Some(5),
            ..FACTS
        };
        let variables = variables(&facts);
        let all: Vec<_> =
            variables.iter().map(|(n, v)| (n.escape_ascii().to_string(), v.escape_ascii().to_string())).collect();
        let software = concat!("baton/", env!("CARGO_PKG_VERSION"));
        let expected = [
            ("SCRIPT_FILENAME", "/var/www/a b/c.php"),
            ("QUERY_STRING", "q=1&r"),
            ("REQUEST_METHOD", "POST"),
            ("CONTENT_TYPE", "text/plain"),
            ("CONTENT_LENGTH", "5"),
            ("SCRIPT_NAME", "/a b/c.php"),
            ("REQUEST_URI", "/a%20b/c.php/in/fo?q=1&r"),
            ("DOCUMENT_URI", "/a b/c.php"),
            ("DOCUMENT_ROOT", "/var/www"),
            ("SERVER_PROTOCOL", "HTTP/1.1"),
            ("REQUEST_SCHEME", "https"),
            ("HTTPS", "on"),
            ("GATEWAY_INTERFACE", "CGI/1.1"),
            ("SERVER_SOFTWARE", software),
            ("REMOTE_ADDR", "192.0.2.7"),
            ("REMOTE_PORT", "50000"),
            ("SERVER_ADDR", "192.0.2.1"),
            ("SERVER_PORT", "80"),
            ("SERVER_NAME", "example.org"),
            ("REDIRECT_STATUS", "200"),
            ("PATH_TRANSLATED", "/var/www/in/fo"),
            ("PATH_INFO", "/in/fo"),
            ("HTTP_HOST", "example.org:8080"),
            ("HTTP_CONTENT_TYPE", "text/plain"),
            ("HTTP_X_A", "1"),
        ];
        assert_eq!(all, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let encoded = variables.encode().expect("short");
        assert_eq!(pairs::read(&encoded).expect("pairs").len(), expected.len());
    }

    #[test]
    fn what_is_not_there_is_empty_or_absent_as_with_nginx() {
        check(
            &variables(&FACTS),
            &[
                ("CONTENT_TYPE", Some("")),
                ("CONTENT_LENGTH", Some("")),
                ("QUERY_STRING", Some("")),
                ("HTTPS", None),
                ("PATH_INFO", None),
                ("PATH_TRANSLATED", None),
                ("REMOTE_USER", None),
                ("FCGI_DATA_LENGTH", None),
            ],
        );
        let unix = Facts { client_address: "unix:", client_port: None, server_port: None, ..FACTS };
        check(
            &variables(&unix),
            &[("REMOTE_PORT", Some("")), ("SERVER_PORT", Some("")), ("REMOTE_ADDR", Some("unix:"))],
        );
        let bare = Variables::new(&FACTS, &Scripts::default(), Purpose::Respond).expect("a path");
        check(&bare, &[("SCRIPT_FILENAME", None), ("DOCUMENT_ROOT", None), ("SCRIPT_NAME", Some("/index.php"))]);
    }

    #[test]
    fn a_front_controller_is_the_script_of_every_path() {
        let front = Scripts { front: Some("/index.php".to_owned()), ..scripts() };
        for path in ["/", "/blog/2026/x", "/other.php/y"] {
            let facts = Facts { path, target: path, ..FACTS };
            let variables = Variables::new(&facts, &front, Purpose::Respond).expect("a path");
            check(
                &variables,
                &[
                    ("SCRIPT_NAME", Some("/index.php")),
                    ("DOCUMENT_URI", Some("/index.php")),
                    ("SCRIPT_FILENAME", Some("/var/www/index.php")),
                    ("REQUEST_URI", Some(path)),
                    ("PATH_INFO", None),
                ],
            );
        }
        let root = Scripts { root: Some("/".to_owned()), ..Scripts::default() };
        let at_root = Variables::new(&FACTS, &root, Purpose::Respond).expect("a path");
        check(&at_root, &[("SCRIPT_FILENAME", Some("/index.php")), ("DOCUMENT_ROOT", Some(""))]);
    }

    #[test]
    fn targets_lose_what_only_absolute_form_has() {
        for (target, expected) in [
            ("/x?y=http://z/", "/x?y=http://z/"),
            ("http://h/x?y", "/x?y"),
            ("http://h", "/"),
            ("https://h?y", "/?y"),
            ("//h/x", "//h/x"),
        ] {
            check(&variables(&Facts { target, ..FACTS }), &[("REQUEST_URI", Some(expected))]);
        }
    }

    #[test]
    fn fields_are_variables_where_nobody_can_be_misled() {
        let fields = [
            ("Accept", "a"),
            ("Proxy", "http://evil/"),
            ("X_Forwarded_For", "1.1.1.1"),
            ("X.Forwarded.For", "1.1.1.1"),
            ("accept", "b"),
            ("Cookie", "a=1"),
            ("cookie", "b=2"),
            ("Transfer-Encoding", "chunked"),
            ("Content-Length", "3"),
            ("Authorization", "Basic eDp5"),
        ];
        let fields = fields.map(|(name, value)| (Cow::Borrowed(name), value.as_bytes()));
        let facts = Facts { fields: &fields, body_bytes: Some(3), ..FACTS };
        let variables = variables(&facts);
        let names: Vec<_> = variables.iter().filter(|(name, _)| name.starts_with(b"HTTP_")).map(|(n, _)| n).collect();
        let expected = ["HTTP_ACCEPT", "HTTP_COOKIE", "HTTP_CONTENT_LENGTH", "HTTP_AUTHORIZATION"];
        assert_eq!(names, expected.map(str::as_bytes));
        check(&variables, &[("HTTP_ACCEPT", Some("a, b")), ("HTTP_COOKIE", Some("a=1; b=2"))]);
    }

    #[test]
    fn an_authorizer_is_told_of_no_body_and_no_script() {
        let fields = [(Cow::Borrowed("Content-Length"), &b"3"[..])];
        let facts = Facts { path: "/x.php/info", body_bytes: Some(3), fields: &fields, ..FACTS };
        let variables = Variables::new(&facts, &scripts(), Purpose::Authorize).expect("a path");
        for name in ["CONTENT_LENGTH", "PATH_INFO", "PATH_TRANSLATED", "SCRIPT_NAME", "HTTP_CONTENT_LENGTH"] {
            check(&variables, &[(name, None)]);
        }
        check(&variables, &[("DOCUMENT_URI", Some("/x.php/info")), ("REQUEST_METHOD", Some("GET"))]);
    }

    #[test]
    fn a_filter_is_told_of_its_data() {
        let purpose = Purpose::Filter { data_bytes: 12, modified_s: 1_700_000_000 };
        let variables = Variables::new(&FACTS, &scripts(), purpose).expect("a path");
        let expected = [("FCGI_DATA_LENGTH", Some("12")), ("FCGI_DATA_LAST_MOD", Some("1700000000"))];
        check(&variables, &expected);
    }

    #[test]
    fn what_an_authorizer_set_replaces_nothing_of_ours_and_nothing_of_the_client_replaces_it() {
        let extra = [("REMOTE_USER", "alice"), ("REQUEST_METHOD", "PUT"), ("HTTP_X_USER", "alice")];
        let extra = extra.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
        let fields = [(Cow::Borrowed("X-User"), &b"mallory"[..])];
        let variables = variables(&Facts { extra: &extra, fields: &fields, ..FACTS });
        let expected =
            [("REMOTE_USER", Some("alice")), ("REQUEST_METHOD", Some("GET")), ("HTTP_X_USER", Some("alice"))];
        check(&variables, &expected);
        assert_eq!(variables.iter().filter(|(name, _)| *name == b"HTTP_X_USER").count(), 1);
    }
}
