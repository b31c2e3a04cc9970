//! Servers that answer through us.

use std::sync::Arc;

use super::fault::Key;
use super::file::{AddressFile, ConfigFile, UpstreamFile};
use super::resolve::Resolver;
use crate::fastcgi::Scripts;
use crate::http::fields::is_token_byte;
use crate::upstream::{Address, ConnectOptions, FastCgi, FastCgiRole, Options, Protocol, Server, Tls};

/// A status line and one field fit; what is longer is no head.
const HEAD_BYTES: std::ops::RangeInclusive<usize> = 256..=64 << 20;
/// hyper counts them with sixteen bits.
const HEADERS: std::ops::RangeInclusive<usize> = 1..=32_000;

impl Resolver<'_> {
    pub(super) fn upstream(&mut self, name: &str, file: &UpstreamFile) -> Option<Options> {
        let key = Key::of("upstream").name(name);
        let timeouts = [
            ("connect_timeout", file.connect_timeout),
            ("head_timeout", file.head_timeout),
            ("body_timeout", file.body_timeout),
            ("tunnel_timeout", file.tunnel_timeout),
            ("keep_alive_timeout", file.keep_alive_timeout),
        ];
        for (name, _) in timeouts.iter().filter(|(_, time)| time.is_some_and(|t| t.0.is_zero())) {
            self.fault(&key.name(name), "longer than 0");
        }
        let addresses = self.addresses(&key, file)?;
        let servers = addresses.into_iter().filter_map(|(key_of, address)| self.server(&key, &key_of, address, file));
        let default = Options::new(name, servers.collect());
        let head_bytes_max = file.head_bytes_max.map_or(default.head_bytes_max, |s| s.0);
        if !HEAD_BYTES.contains(&head_bytes_max) {
            let (least, most) = (HEAD_BYTES.start(), HEAD_BYTES.end());
            self.fault(&key.name("head_bytes_max"), format!("between {least} and {most} bytes"));
        }
        let headers_max = file.headers_max.unwrap_or(default.headers_max);
        if !HEADERS.contains(&headers_max) {
            self.fault(&key.name("headers_max"), format!("between {} and {}", HEADERS.start(), HEADERS.end()));
        }
        if let Some(host) = &file.host
            && !host.bytes().all(|b| b.is_ascii_graphic() && !b"/?#@\\".contains(&b))
        {
            self.fault(&key.name("host"), "a host, with a port or without");
        }
        let response_headers = file.handoff_response_headers.iter().flatten();
        for (at, name) in response_headers.clone().enumerate() {
            if name.is_empty() || !name.bytes().all(is_token_byte) {
                self.fault(&key.name("handoff_response_headers").index(at), "no field name");
            }
        }
        let is_fastcgi = |server: &Server| server.address.protocol == Protocol::FastCgi;
        let fastcgi = default.servers.first().is_some_and(is_fastcgi).then(|| self.fastcgi(&key, file));
        if default.servers.iter().any(|server| is_fastcgi(server) != fastcgi.is_some()) {
            self.fault(&key.name("address"), "FastCGI and HTTP in one list: what is asked differs");
        }
        let scripts = [
            ("root", file.root.is_some()),
            ("index", file.index.is_some()),
            ("role", file.role.is_some()),
            ("split", file.split.is_some()),
            ("script", file.script.is_some()),
        ];
        for (name, _) in scripts.iter().filter(|(_, is_written)| *is_written && fastcgi.is_none()) {
            self.fault(&key.name(name), "it goes with fcgi");
        }
        let is_https = default.servers.iter().any(|server| server.address.protocol == Protocol::Https);
        for (name, is_written) in [("ca", file.ca.is_some()), ("server_name", file.server_name.is_some())] {
            if is_written && !is_https {
                self.fault(&key.name(name), "it goes with https");
            }
        }
        Some(Options {
            connect_timeout: file.connect_timeout.map_or(default.connect_timeout, |t| t.0),
            head_timeout: file.head_timeout.map_or(default.head_timeout, |t| t.0),
            body_timeout: file.body_timeout.map_or(default.body_timeout, |t| t.0),
            tunnel_timeout: file.tunnel_timeout.map_or(default.tunnel_timeout, |t| t.0),
            head_bytes_max,
            headers_max,
            interim_max: file.interim_max.unwrap_or(default.interim_max),
            keep_alive: file.keep_alive.unwrap_or(if fastcgi.is_some() { 0 } else { default.keep_alive }),
            keep_alive_timeout: file.keep_alive_timeout.map_or(default.keep_alive_timeout, |t| t.0),
            host: file.host.clone(),
            handoff_headers: file.handoff_headers == Some(true),
            handoff_response_headers: response_headers.map(|name| name.to_ascii_lowercase()).collect(),
            fastcgi,
            ..default
        })
    }

    fn fastcgi(&mut self, key: &Key, file: &UpstreamFile) -> FastCgi {
        let role = match file.role.as_deref() {
            None | Some("responder") => FastCgiRole::Responder,
            Some("authorizer") => FastCgiRole::Authorizer,
            Some("filter") => FastCgiRole::Filter,
            Some(other) => {
                self.fault(&key.name("role"), format!("responder, authorizer or filter, not {other:?}"));
                FastCgiRole::Responder
            }
        };
        for (name, value) in [("root", &file.root), ("script", &file.script)] {
            if value.as_ref().is_some_and(|value| !value.starts_with('/')) {
                self.fault(&key.name(name), "it begins with /: it is the program that reads it");
            }
        }
        if file.index.as_ref().is_some_and(|index| index.is_empty() || index.contains('/')) {
            self.fault(&key.name("index"), "a file's name");
        }
        let default = Scripts::default();
        let scripts = Scripts {
            root: file.root.clone(),
            index: file.index.clone().unwrap_or(default.index),
            split: file.split.clone().unwrap_or(default.split),
            front: file.script.clone(),
        };
        FastCgi { role, scripts }
    }

    /// Whether that name is one of an upstream whose programs have that role; a fault where it is not.
    pub(super) fn has_role(&mut self, key: &Key, name: &str, role: Option<&str>, whole: &ConfigFile) {
        let Some(file) = whole.upstream.get(name) else {
            return self.fault(key, format!("no upstream is called {name:?}"));
        };
        match (role, is_fastcgi(file), file.role.as_deref().unwrap_or("responder")) {
            (None, false, _) | (None, true, "responder") => {}
            (None, true, own) => self.fault(key, format!("{name:?} is a FastCGI {own}, and a responder is needed")),
            (Some(role), true, own) if role == own => {}
            (Some(role), ..) => self.fault(key, format!("{name:?} is no FastCGI {role}: write role = {role:?} there")),
        }
    }

    /// How a segment of a path ends that is a script of that upstream's; `None`: it has no scripts.
    pub(super) fn script_suffix(file: &UpstreamFile) -> Option<String> {
        is_fastcgi(file).then(|| file.split.clone().unwrap_or(Scripts::default().split))
    }

    fn addresses(&mut self, key: &Key, file: &UpstreamFile) -> Option<Vec<(Key, Address)>> {
        let (key, texts) = match &file.address {
            None => {
                self.fault(key, "no address");
                return None;
            }
            Some(AddressFile::One(text)) => (vec![key.name("address")], std::slice::from_ref(text)),
            Some(AddressFile::Several(texts)) => {
                let key = key.name("address");
                if texts.is_empty() {
                    self.fault(&key, "empty: at least one address");
                }
                ((0..texts.len()).map(|at| key.index(at)).collect(), &texts[..])
            }
        };
        let mut addresses = Vec::new();
        for (key, text) in key.into_iter().zip(texts) {
            match Address::parse(text, &self.path("")) {
                Ok(address) => addresses.push((key, address)),
                Err(error) => self.fault(&key, error.to_string()),
            }
        }
        (!addresses.is_empty()).then_some(addresses)
    }

    fn server(&mut self, key: &Key, key_of: &Key, address: Address, file: &UpstreamFile) -> Option<Server> {
        let source = file.source.as_ref().and_then(|text| {
            let source = text.parse().map_err(|_| self.fault(&key.name("source"), "an IP address"));
            source.ok()
        });
        let tls = match address.protocol {
            Protocol::Https => {
                let ca = file.ca.as_ref().map(|ca| self.path(ca));
                match Tls::new(&address.transport, ca.as_deref(), file.server_name.as_deref()) {
                    Ok(tls) => Some(Arc::new(tls)),
                    Err(error) => {
                        self.fault(key_of, error.to_string());
                        return None;
                    }
                }
            }
            Protocol::FastCgi | Protocol::Http => None,
        };
        Some(Server { address, connect: ConnectOptions { source, tls } })
    }
}

fn is_fastcgi(file: &UpstreamFile) -> bool {
    let address = match &file.address {
        Some(AddressFile::One(text)) => Some(text),
        Some(AddressFile::Several(texts)) => texts.first(),
        None => None,
    };
    address.is_some_and(|text| text.starts_with("fcgi"))
}
