//! What policies may use besides the request: upstreams, secrets, and how much of each service.

use std::fs::File;
use std::io::Read as _;

use super::fault::Key;
use super::file::{ConfigFile, PolicyFile, SecretFile};
use super::resolve::Resolver;
use crate::policy::{self, Secret};

/// Of one secret. What is longer is no key, but some other file.
const SECRET_BYTES_MAX: u64 = 64 << 10;

impl Resolver<'_> {
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
