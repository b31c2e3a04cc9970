//! Which policies and which default a request gets.
//!
//! The host decides first (exact, then wildcard, then any), then an exact path, then the longest prefix, wherever a route
//! stands in the file. Policies and default are the winning route's alone.

use std::sync::Arc;

use crate::decision::{Action, Proxy};
use crate::files::Folder;
use crate::http::path::{Plus, decode};
use crate::policy::Policy;

/// One route.
#[derive(Debug)]
pub struct Route {
    /// Its path as the configuration has it: the name in the log and to policies.
    pub name: Arc<str>,
    /// Requests of which hosts.
    pub host: HostPattern,
    /// Requests for which paths.
    pub path: PathPattern,
    /// In upper case as written; `None`: any.
    pub methods: Option<Vec<String>>,
    /// Asked in this order until one decides.
    pub policies: Vec<Arc<Policy>>,
    /// Whether a WebSocket may begin here; if not, an Upgrade is an ordinary request.
    pub upgrade: bool,
    /// Whether only other routes' answers lead here.
    pub internal: bool,
    /// A FastCGI authorizer that is asked before them: an upstream's name.
    pub authorizer: Option<String>,
    /// A FastCGI filter over what the default yields: an upstream's name.
    pub filter: Option<String>,
    /// What happens when all of them pass.
    pub default: Option<Standard>,
}

/// What a route does when nobody has another opinion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standard {
    /// What a policy could have decided too.
    Action(Action),
    /// A file is served; where there is none, somebody else may answer.
    File(Folder, Option<Fallback>),
}

/// The upstream that answers what no file does, as `try_files` has it in nginx.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// What it is asked.
    pub proxy: Proxy,
    /// How a segment ends that is a script of its own (`split`); empty: none is.
    pub script_suffix: String,
}

impl Fallback {
    /// Whether a request with this normalised path is the upstream's, without a look at the files. A file can only be read;
    /// and the source of a script is for nobody, however its name is written and whether it is there or not.
    pub fn is_first(&self, method: &str, path: &str) -> bool {
        let suffix = self.script_suffix.to_lowercase();
        let is_script = |segment: &str| decode(segment, Plus::Literal).to_lowercase().ends_with(&suffix);
        !matches!(method, "GET" | "HEAD") || (!suffix.is_empty() && path.split('/').any(is_script))
    }
}

/// Which hosts; without port, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostPattern {
    /// Any, and none.
    Any,
    /// What ends in this, which begins with a dot: `*.example.org` is `.example.org`.
    Below(String),
    /// This one.
    Exact(String),
}

/// Which paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathPattern {
    /// This one.
    Exact(String),
    /// This one and what is below it: `/v1` has `/v1/a`, not `/v1a`; `/v1/` has `/v1/a`, not `/v1`.
    Prefix(String),
}

impl HostPattern {
    /// Reads `example.org` or `*.example.org`.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (is_wildcard, name) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None if text.starts_with('*') => return Err("a wildcard is written *.example.org"),
            None => (false, text),
        };
        let has_port = |name: &str| {
            let port = name.rsplit_once(':').filter(|_| !name.ends_with(']')).map(|(_, port)| port);
            port.is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()))
        };
        match crate::http::target::host(name) {
            Some(host) if is_wildcard => Ok(Self::Below(format!(".{host}"))),
            Some(host) => Ok(Self::Exact(host.into_owned())),
            None if has_port(name) => Err("a route's host has no port"),
            None => Err("no host name"),
        }
    }

    fn matches(&self, host: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Below(end) => host.len() > end.len() && host.ends_with(end.as_str()),
            Self::Exact(name) => host == name,
        }
    }
}

impl PathPattern {
    /// Reads `/prefix` or `=/exact`.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (path, pattern): (&str, fn(String) -> Self) = match text.strip_prefix('=') {
            Some(path) => (path, Self::Exact),
            None => (text, Self::Prefix),
        };
        if !path.starts_with('/') {
            return Err("a path begins with / (a prefix) or =/ (exact)");
        }
        if !path.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'?' | b'#')) {
            return Err("a path is visible ASCII without ? and #; write other characters as %XX");
        }
        // Requests are looked up by their normalised path: another spelling would never match.
        match crate::http::path::normalise(path) {
            Ok(normalised) if normalised == path => Ok(pattern(normalised.into_owned())),
            Ok(_) => Err("the path is not in its normalised form"),
            Err(_) => Err("the path has no single meaning"),
        }
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == exact,
            Self::Prefix(prefix) => path
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || prefix.ends_with('/') || rest.starts_with('/')),
        }
    }

    fn rank(&self) -> (bool, usize) {
        match self {
            Self::Exact(path) => (true, path.len()),
            Self::Prefix(path) => (false, path.len()),
        }
    }
}

impl Route {
    /// The path that an upstream's path inside replaces, and below which files are looked for.
    pub fn mount(&self) -> &str {
        match &self.path {
            PathPattern::Exact(path) | PathPattern::Prefix(path) => path,
        }
    }

    fn allows(&self, method: &str) -> bool {
        match &self.methods {
            None => true,
            Some(methods) => methods.iter().any(|m| m == method || (method == "HEAD" && m == "GET")),
        }
    }
}

/// All routes, the best first.
#[derive(Debug, Default)]
pub struct Table {
    routes: Vec<Route>,
}

/// What a request was found to be.
#[derive(Debug)]
pub enum Found<'a> {
    /// The route that it takes.
    Route(&'a Route),
    /// Its path has routes, none for its method: `Allow` (RFC 9110 §10.2.1).
    OtherMethods(String),
    /// Nothing matches.
    Nothing,
}

impl Table {
    /// Orders the routes; among equals the first in the file wins.
    pub fn new(mut routes: Vec<Route>) -> Self {
        let rank = |route: &Route| {
            let host = match &route.host {
                HostPattern::Any => (0, 0),
                HostPattern::Below(end) => (1, end.len()),
                HostPattern::Exact(_) => (2, 0),
            };
            std::cmp::Reverse((host, route.path.rank()))
        };
        routes.sort_by_key(rank);
        Self { routes }
    }

    /// Finds the route for a host (lower case, no port), a normalised path and a method.
    pub fn find(&self, host: &str, path: &str, method: &str) -> Found<'_> {
        let mut allow: Vec<&str> = Vec::new();
        let matching = |r: &&Route| !r.internal && r.host.matches(host) && r.path.matches(path);
        for route in self.routes.iter().filter(matching) {
            if route.allows(method) {
                return Found::Route(route);
            }
            for method in route.methods.iter().flatten() {
                let implied = (method == "GET").then_some("HEAD");
                for method in std::iter::once(method.as_str()).chain(implied) {
                    if !allow.contains(&method) {
                        allow.push(method);
                    }
                }
            }
        }
        if allow.is_empty() { Found::Nothing } else { Found::OtherMethods(allow.join(", ")) }
    }

    /// Finds the route that an application's answer leads to: one that nothing else does.
    pub fn find_internal(&self, host: &str, path: &str) -> Option<&Route> {
        self.routes.iter().find(|r| r.internal && r.host.matches(host) && r.path.matches(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(routes: &[(&str, &str, &[&str])]) -> Table {
        let route = |(at, (host, path, methods)): (usize, &(&str, &str, &[&str]))| Route {
            name: at.to_string().into(),
            host: if host.is_empty() { HostPattern::Any } else { HostPattern::parse(host).expect("a host") },
            path: PathPattern::parse(path).expect("a path"),
            methods: (!methods.is_empty()).then(|| methods.iter().map(|&m| m.to_owned()).collect()),
            policies: vec![],
            upgrade: true,
            internal: false,
            authorizer: None,
            filter: None,
            default: None,
        };
        Table::new(routes.iter().enumerate().map(route).collect())
    }

    fn check(table: &Table, host: &str, path: &str, method: &str, expected: &str) {
        let found = match table.find(host, path, method) {
            Found::Route(route) => route.name.to_string(),
            Found::OtherMethods(allow) => allow,
            Found::Nothing => "none".to_owned(),
        };
        assert_eq!(found, expected, "{method} {host} {path}");
    }

    #[test]
    fn host_then_exact_then_longest_wherever_it_stands() {
        let t = table(&[
            ("", "/", &[]),
            ("", "/v1", &[]),
            ("", "=/v1/x", &[]),
            ("*.b.org", "/", &[]),
            ("a.b.org", "/v1", &[]),
            ("*.a.b.org", "/", &[]),
        ]);
        check(&t, "", "/", "GET", "0");
        check(&t, "z", "/v1/x", "GET", "2");
        check(&t, "z", "/v1/x/", "GET", "1");
        check(&t, "z", "/v1a", "GET", "0");
        check(&t, "a.b.org", "/v1/x", "GET", "4");
        check(&t, "a.b.org", "/", "GET", "3");
        check(&t, "c.a.b.org", "/", "GET", "5");
        check(&t, "b.org", "/", "GET", "0");
    }

    #[test]
    fn a_prefix_ends_at_a_segment() {
        let t = table(&[("", "/v1/", &[]), ("", "/w", &[])]);
        for (path, expected) in
            [("/v1/", "0"), ("/v1/a", "0"), ("/v1", "none"), ("/w", "1"), ("/w/", "1"), ("/wa", "none")]
        {
            check(&t, "x", path, "GET", expected);
        }
    }

    #[test]
    fn another_method_takes_the_next_best_route() {
        let t = table(&[("", "/a", &["POST"]), ("", "/", &["GET"])]);
        check(&t, "x", "/a", "POST", "0");
        check(&t, "x", "/a", "GET", "1");
        check(&t, "x", "/a", "HEAD", "1");
        check(&t, "x", "/a", "PUT", "POST, GET, HEAD");
        check(&t, "x", "/", "POST", "GET, HEAD");
    }

    #[test]
    fn what_is_never_a_files_is_the_upstreams_at_once() {
        let fallback = |suffix: &str| Fallback { proxy: Proxy::default(), script_suffix: suffix.to_owned() };
        for (method, path, expected) in [
            ("GET", "/", false),
            ("HEAD", "/a.css", false),
            ("POST", "/a.css", true),
            ("OPTIONS", "*", true),
            ("GET", "/a.php", true),
            ("GET", "/a.PHP", true),
            ("GET", "/a.php/", true),
            ("GET", "/a.php/b.css", true),
            ("GET", "/a.php%2Fb", false),
            ("GET", "/a.phps", false),
            ("GET", "/a.p%68p", true),
        ] {
            assert_eq!(fallback(".php").is_first(method, path), expected, "{method} {path}");
        }
        assert!(!fallback("").is_first("GET", "/a.php"));
    }

    #[test]
    fn patterns_that_could_never_match_are_refused() {
        for path in ["a", "", "=a", "//", "/a/../b", "/%61", "/%zz", "/a b", "/a?b", "/é", "/a#b"] {
            assert!(PathPattern::parse(path).is_err(), "{path}");
        }
        for host in ["", "*", "*x", "a b", "a:80", "*.", "example.org.", "a,b", "a%2eb", "a..b", ".a", "*.[::1]:80"] {
            assert!(HostPattern::parse(host).is_err(), "{host}");
        }
        for host in ["[::1]", "[0::1]"] {
            assert_eq!(HostPattern::parse(host), Ok(HostPattern::Exact("[::1]".into())));
        }
        assert_eq!(HostPattern::parse("*.Example.org"), Ok(HostPattern::Below(".example.org".into())));
    }
}
