//! What policies may use besides the request: upstreams, secrets, and how much of each service.

use std::fs::File;
use std::io::Read as _;

use super::fault::Key;
use super::file::{AddressFile, ConfigFile, PolicyFile, SecretFile, UpstreamFile};
use super::resolve::{NOT_SERVED, Resolver};
use crate::policy::{self, Secret};
use crate::upstream::{self, Address};

/// Of one secret. What is longer is no key, but some other file.
const SECRET_BYTES_MAX: u64 = 64 << 10;

impl Resolver<'_> {
    pub(super) fn upstream(&mut self, name: &str, file: &UpstreamFile) -> Option<upstream::Options> {
        let key = Key::of("upstream").name(name);
        let written = [
            ("tunnel_timeout", file.tunnel_timeout.is_some()),
            ("head_bytes_max", file.head_bytes_max.is_some()),
            ("headers_max", file.headers_max.is_some()),
            ("interim_max", file.interim_max.is_some()),
            ("host", file.host.is_some()),
            ("handoff_headers", file.handoff_headers.is_some()),
            ("handoff_response_headers", file.handoff_response_headers.is_some()),
            ("source", file.source.is_some()),
            ("ca", file.ca.is_some()),
            ("server_name", file.server_name.is_some()),
            ("root", file.root.is_some()),
            ("index", file.index.is_some()),
            ("role", file.role.is_some()),
            ("split", file.split.is_some()),
            ("script", file.script.is_some()),
        ];
        self.not_served(&key, &written);
        let timeouts = [
            ("connect_timeout", file.connect_timeout),
            ("head_timeout", file.head_timeout),
            ("body_timeout", file.body_timeout),
            ("keep_alive_timeout", file.keep_alive_timeout),
        ];
        for (name, _) in timeouts.iter().filter(|(_, time)| time.is_some_and(|t| t.0.is_zero())) {
            self.fault(&key.name(name), "longer than 0");
        }
        let address = match &file.address {
            None => {
                self.fault(&key, "no address");
                return None;
            }
            Some(AddressFile::Several(_)) => {
                self.fault(&key.name("address"), format!("a list {NOT_SERVED}: write one address"));
                return None;
            }
            Some(AddressFile::One(text)) => {
                let address = Address::parse(text, &self.path(""));
                address.map_err(|error| self.fault(&key.name("address"), error.to_string())).ok()?
            }
        };
        let default = upstream::Options::new(name, address);
        Some(upstream::Options {
            connect_timeout: file.connect_timeout.map_or(default.connect_timeout, |t| t.0),
            head_timeout: file.head_timeout.map_or(default.head_timeout, |t| t.0),
            body_timeout: file.body_timeout.map_or(default.body_timeout, |t| t.0),
            keep_alive: file.keep_alive.unwrap_or(default.keep_alive),
            keep_alive_timeout: file.keep_alive_timeout.map_or(default.keep_alive_timeout, |t| t.0),
            ..default
        })
    }

    /// Those options of a policy that are about services.
    pub(super) fn services(&mut self, key: &Key, file: &PolicyFile, whole: &ConfigFile, options: &mut policy::Options) {
        for (at, name) in file.upstreams.iter().enumerate() {
            if !whole.upstream.contains_key(name) {
                self.fault(&key.name("upstreams").index(at), format!("no upstream is called {name:?}"));
            }
        }
        options.upstreams.clone_from(&file.upstreams);
        for (name, secret) in &file.secrets {
            match self.secret(secret) {
                Ok(secret) => drop(options.secrets.insert(name.clone(), secret)),
                Err(message) => self.fault(&key.name("secrets").name(name), message),
            }
        }
        options.metric_series_max = file.metric_series_max.unwrap_or(options.metric_series_max);
        options.store_bytes_max = file.store_bytes_max.map_or(options.store_bytes_max, |s| s.0);
        options.callouts_max = file.callouts_max.unwrap_or(options.callouts_max);
        options.callout_bytes_max = file.callout_bytes_max.map_or(options.callout_bytes_max, |s| s.0);
    }

    /// Whatever is wrong with it, nothing of it is said.
    fn secret(&self, written: &SecretFile) -> Result<Secret, String> {
        let text = match (&written.env, &written.file) {
            (Some(name), None) => match std::env::var(name) {
                Ok(text) => text,
                Err(std::env::VarError::NotPresent) => return Err(format!("the environment has no {name}")),
                Err(std::env::VarError::NotUnicode(_)) => return Err(format!("{name} is not UTF-8")),
            },
            (None, Some(file)) => {
                let mut bytes = Vec::new();
                let open = File::open(self.path(file));
                let read = open.and_then(|open| open.take(SECRET_BYTES_MAX + 1).read_to_end(&mut bytes));
                read.map_err(|error| format!("{file}: {error}"))?;
                if bytes.len() as u64 > SECRET_BYTES_MAX {
                    return Err(format!("{file}: more than {SECRET_BYTES_MAX} bytes"));
                }
                let mut text = String::from_utf8(bytes).map_err(|_| format!("{file}: not UTF-8"))?;
                let end = text.strip_suffix('\n').map(|line| line.strip_suffix('\r').unwrap_or(line).len());
                text.truncate(end.unwrap_or(text.len()));
                text
            }
            _ => return Err("either env or file".to_owned()),
        };
        if text.is_empty() { Err("empty".to_owned()) } else { Ok(Secret::new(text)) }
    }
}
