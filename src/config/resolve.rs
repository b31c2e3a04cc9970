//! From what was written to what the program runs on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::fault::{Fault, Faults, Key, Source};
use super::file::{
    BreakerFile, ConfigFile, GatewayFile, HandoffFile, LimitsFile, ListenerFile, LogFormat, OnErrorFile, PolicyFile,
    TargetFile, User,
};
use super::{Config, Listener, Policy, Target};
use crate::handoff::{Address, Daemon, Deadlines, Dialect};
use crate::http::forwarded::TrustedProxies;
use crate::respond::ErrorPages;
use crate::{access_log, connection, http, listener, policy, target};

/// Resolves one file and collects its faults.
pub(super) struct Resolver<'a> {
    source: &'a Source<'a>,
    /// Where relative paths begin.
    folder: PathBuf,
    faults: Vec<Fault>,
}

impl<'a> Resolver<'a> {
    pub(super) fn new(source: &'a Source<'a>, file: &Path) -> Self {
        let absolute = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
        let folder = absolute.parent().map(Path::to_owned).unwrap_or_default();
        Self { source, folder, faults: Vec::new() }
    }

    pub(super) fn resolve(mut self, file: &ConfigFile) -> Result<Config, Faults> {
        let (handoff, prefixes) = self.handoff(&file.handoff, &file.limits);
        let config = Config {
            workers: workers(&file.gateway),
            drain_timeout: file.gateway.drain_timeout.map_or(Duration::from_secs(30), |t| t.0),
            user: file.gateway.user.clone(),
            access_log: self.gateway(&file.gateway),
            admin: self.admin(&file.gateway, &file.listener),
            connections_max: self.connections_max(&file.limits),
            limits: self.limits(&file.limits),
            trusted_proxies: self.trusted_proxies(&file.gateway),
            listeners: self.listeners(&file.listener, &file.policy),
            handoff,
            prefixes,
            targets: file.target.iter().filter_map(|(name, target)| self.target(name, target)).collect(),
            upstreams: file.upstream.iter().filter_map(|(name, upstream)| self.upstream(name, upstream)).collect(),
            policies: file.policy.iter().filter_map(|(name, policy)| self.policy(name, policy, file)).collect(),
            routes: file.route.iter().enumerate().filter_map(|(at, route)| self.route(at, route, file)).collect(),
            pages: self.pages(&file.error_pages),
        };
        if self.faults.is_empty() { Ok(config) } else { Err(Faults(self.faults)) }
    }

    pub(super) fn fault(&mut self, key: &Key, message: impl Into<String>) {
        self.faults.push(self.source.fault(key, message));
    }

    pub(super) fn path(&self, text: &str) -> PathBuf {
        self.folder.join(text)
    }

    fn gateway(&mut self, file: &GatewayFile) -> Option<access_log::Options> {
        let key = Key::of("gateway");
        if file.workers.is_some_and(|workers| workers > WORKERS_MAX) {
            self.fault(&key.name("workers"), format!("at most {WORKERS_MAX}"));
        }
        if let Some(name) = &file.user
            && !matches!(nix::unistd::User::from_name(name), Ok(Some(_)))
        {
            self.fault(&key.name("user"), format!("no user is called {name:?}"));
        }
        let sink = match file.access_log.as_deref()? {
            "" => {
                self.fault(&key.name("access_log"), "empty: name a file, or \"-\" for standard output");
                return None;
            }
            "-" => access_log::Sink::Stdout,
            path => access_log::Sink::File(self.path(path)),
        };
        let format = match file.access_log_format {
            Some(LogFormat::Combined) => access_log::Format::Combined,
            Some(LogFormat::Json) | None => access_log::Format::Json,
        };
        Some(access_log::Options { sink, format })
    }

    fn admin(&mut self, file: &GatewayFile, listeners: &[ListenerFile]) -> Option<(listener::Address, Fault)> {
        let key = Key::of("gateway").name("admin");
        match listener::Address::parse(file.admin.as_deref()?) {
            Ok(address) => {
                let has_port = !matches!(&address, listener::Address::Tcp(a) if a.port() == 0);
                let mut others = listeners.iter().filter_map(|l| listener::Address::parse(l.address.as_deref()?).ok());
                if has_port && others.any(|other| other == address) {
                    self.fault(&key, "a listener has this address: clients would reach what is the operator's");
                }
                Some((address, self.source.fault(&key, "")))
            }
            Err(error) => {
                self.fault(&key, error);
                None
            }
        }
    }

    fn trusted_proxies(&mut self, file: &GatewayFile) -> TrustedProxies {
        let key = Key::of("gateway").name("trusted_proxies");
        for (at, entry) in file.trusted_proxies.iter().enumerate() {
            if let Err(error) = TrustedProxies::parse(&[entry]) {
                self.fault(&key.index(at), error.to_string());
            }
        }
        TrustedProxies::parse(&file.trusted_proxies).unwrap_or_default()
    }

    fn connections_max(&mut self, file: &LimitsFile) -> usize {
        let max = file.connections_max.unwrap_or(10_000);
        if max == 0 {
            self.fault(&Key::of("limits").name("connections_max"), "at least 1");
        }
        max
    }

    fn limits(&mut self, file: &LimitsFile) -> connection::Limits {
        let key = Key::of("limits");
        let default = connection::Limits::default();
        let head_bytes_max = file.head_bytes_max.map_or(default.head.head_bytes_max, |s| s.0);
        if !HEAD_BYTES.contains(&head_bytes_max) {
            let (least, most) = (HEAD_BYTES.start(), HEAD_BYTES.end());
            self.fault(&key.name("head_bytes_max"), format!("between {least} and {most} bytes"));
        }
        let headers_max = file.headers_max.unwrap_or(default.head.headers_max);
        if !HEADERS.contains(&headers_max) {
            self.fault(&key.name("headers_max"), format!("between {} and {}", HEADERS.start(), HEADERS.end()));
        }
        let timeouts = [
            ("head_timeout", file.head_timeout),
            ("keep_alive_timeout", file.keep_alive_timeout),
            ("body_timeout", file.body_timeout),
        ];
        for (name, _) in timeouts.iter().filter(|(_, time)| time.is_some_and(|t| t.0.is_zero())) {
            self.fault(&key.name(name), "longer than 0");
        }
        connection::Limits {
            head: http::head::Limits { head_bytes_max, headers_max },
            head_timeout: file.head_timeout.map_or(default.head_timeout, |t| t.0),
            keep_alive_timeout: file.keep_alive_timeout.map_or(default.keep_alive_timeout, |t| t.0),
            body_bytes_max: file.body_bytes_max.map_or(default.body_bytes_max, |s| s.0 as u64),
            body_timeout: file.body_timeout.map_or(default.body_timeout, |t| t.0),
            body_rate_min: file.body_rate_min.map_or(default.body_rate_min, |s| s.0 as u64),
        }
    }

    fn listeners(&mut self, files: &[ListenerFile], policies: &BTreeMap<String, PolicyFile>) -> Vec<Listener> {
        let mut listeners: Vec<Listener> = Vec::new();
        for (at, file) in files.iter().enumerate() {
            let key = Key::of("listener").index(at);
            self.are_policies(&key.name("policies"), &file.policies, policies);
            let named =
                |(at, name): (usize, &String)| (name.clone(), self.source.fault(&key.name("policies").index(at), ""));
            let gates = file.policies.iter().enumerate().map(named).collect();
            let Some(text) = &file.address else {
                self.fault(&key, "no address");
                continue;
            };
            let name: Arc<str> = file.name.as_deref().unwrap_or(text).into();
            if listeners.iter().any(|l| l.options.name == name) {
                self.fault(&key.name("name"), format!("another listener is called {name:?}"));
            }
            match listener::Address::parse(text) {
                Ok(address) => {
                    let has_port = !matches!(&address, listener::Address::Tcp(a) if a.port() == 0);
                    if has_port && listeners.iter().any(|l| l.options.address == address) {
                        self.fault(&key.name("address"), "another listener has this address");
                    }
                    let options = listener::Options { name, address };
                    let address = self.source.fault(&key.name("address"), "");
                    listeners.push(Listener { options, address, policies: gates });
                }
                Err(message) => self.fault(&key.name("address"), message),
            }
        }
        if files.is_empty() {
            self.fault(&Key::of("listener"), "nothing listens: write [[listener]] with an address");
        }
        listeners
    }

    fn handoff(&mut self, file: &HandoffFile, limits: &LimitsFile) -> (target::Options, Vec<PathBuf>) {
        let key = Key::of("handoff");
        let prefixes = match &file.allowed_prefixes {
            None => vec![PathBuf::from("/run/")],
            Some(prefixes) => prefixes.iter().map(PathBuf::from).collect(),
        };
        for (at, prefix) in prefixes.iter().enumerate() {
            let climbs = prefix.components().any(|part| part == std::path::Component::ParentDir);
            if !prefix.is_absolute() || climbs {
                self.fault(&key.name("allowed_prefixes").index(at), "an absolute path without ..");
            }
        }
        let timeouts = [
            ("connect_timeout", file.connect_timeout),
            ("send_timeout", file.send_timeout),
            ("ack_timeout", file.ack_timeout),
        ];
        for (name, _) in timeouts.iter().filter(|(_, time)| time.is_some_and(|t| t.0.is_zero())) {
            self.fault(&key.name(name), "longer than 0");
        }
        if file.retries.is_some_and(|retries| retries > RETRIES_MAX) {
            self.fault(&key.name("retries"), format!("at most {RETRIES_MAX}"));
        }
        let time = |time: Option<super::units::Time>, default| time.map_or(Duration::from_millis(default), |t| t.0);
        let deadlines = Deadlines {
            connect: time(file.connect_timeout, 100),
            send: time(file.send_timeout, 200),
            acknowledge: time(file.ack_timeout, 1000),
            head: limits.body_timeout.map_or(connection::Limits::default().body_timeout, |t| t.0),
        };
        let data_bytes_max = limits.handoff_data_bytes_max.map_or(1 << 20, |s| s.0);
        (target::Options { deadlines, retries: file.retries.unwrap_or(2), data_bytes_max }, prefixes)
    }

    fn target(&mut self, name: &str, file: &TargetFile) -> Option<Target> {
        let key = Key::of("target").name(name);
        if name.contains('/') {
            self.fault(&key, "a / in a name: NAME/0 is how a policy names the first socket");
        }
        if file.sockets.is_empty() {
            self.fault(&key, "no sockets");
        }
        let text = file.dialect.as_deref().unwrap_or("auto");
        let dialect = text.parse::<Dialect>().map_err(|error| format!("{error}, not {text:?}"));
        let dialect = dialect.map_err(|message| self.fault(&key.name("dialect"), message)).unwrap_or_default();
        let balance = match file.balance.as_deref().unwrap_or("least-in-flight") {
            "hash" => Ok(policy::Strategy::Hash),
            "least-in-flight" => Ok(policy::Strategy::LeastInFlight),
            "least-load" => Ok(policy::Strategy::LeastLoad),
            "random-two" => Ok(policy::Strategy::RandomTwo),
            "round-robin" => Ok(policy::Strategy::RoundRobin),
            text => {
                Err(format!("balance is least-in-flight, least-load, round-robin, random-two or hash, not {text:?}"))
            }
        };
        let balance = balance.map_err(|message| self.fault(&key.name("balance"), message));
        let uids = self.uids(&key, file.allow_uids.as_deref()).unwrap_or_default();
        if dialect == Dialect::Datagram && file.allow_uids.is_some() {
            self.fault(&key.name("allow_uids"), "not with datagram: the kernel does not tell whose socket it goes to");
        }
        let mut daemons = Vec::new();
        for (at, socket) in file.sockets.iter().enumerate() {
            match Address::new(self.path(socket)) {
                Ok(address) if !socket.is_empty() => {
                    let daemon = Daemon::new(address, dialect, uids.clone());
                    let blocking = file.blocking == Some(true);
                    daemons.push(if blocking { daemon.with_blocking_clients() } else { daemon });
                }
                Ok(_) => self.fault(&key.name("sockets").index(at), "empty"),
                Err(error) => self.fault(&key.name("sockets").index(at), error.to_string()),
            }
        }
        let waiting = self.waiting(&key, file, dialect);
        Some(Target { name: name.to_owned(), daemons, balance: balance.ok()?, waiting })
    }

    fn waiting(&mut self, key: &Key, file: &TargetFile, dialect: Dialect) -> target::Waiting {
        let default = target::Waiting::default();
        let written = [("queue_timeout", file.queue_timeout.is_some()), ("queue_max", file.queue_max.is_some())];
        for (name, _) in written.iter().filter(|(_, is_written)| *is_written && dialect != Dialect::Baton) {
            self.fault(&key.name(name), "only with dialect = \"baton\": no other daemon says how many it can bear");
        }
        target::Waiting {
            timeout: file.queue_timeout.map_or(default.timeout, |t| t.0),
            max: file.queue_max.unwrap_or(default.max),
        }
    }

    fn uids(&mut self, key: &Key, users: Option<&[User]>) -> Option<Vec<u32>> {
        let users = users?;
        let key = key.name("allow_uids");
        if users.is_empty() {
            self.fault(&key, "empty: nobody could take a client; leave it out to allow any user");
        }
        let mut uids = Vec::new();
        for (at, user) in users.iter().enumerate() {
            match user {
                User::Id(uid) => uids.push(*uid),
                User::Name(name) => match nix::unistd::User::from_name(name) {
                    Ok(Some(user)) => uids.push(user.uid.as_raw()),
                    _ => self.fault(&key.index(at), format!("no user is called {name:?}")),
                },
            }
        }
        Some(uids)
    }

    fn policy(&mut self, name: &str, file: &PolicyFile, whole: &ConfigFile) -> Option<Policy> {
        let key = Key::of("policy").name(name);
        let targets = &whole.target;
        for (at, target) in file.targets.iter().flatten().enumerate() {
            if !targets.contains_key(target) && !target.starts_with('/') {
                self.fault(&key.name("targets").index(at), format!("no target is called {target:?}"));
            }
        }
        let module = file.module.as_deref().unwrap_or_default();
        if module.is_empty() {
            self.fault(&key, "no module");
        }
        let mut options = policy::Options::new(name, self.path(module));
        if let Some(config) = &file.config {
            options.config = json(config);
        }
        options.on_error = match file.on_error {
            Some(OnErrorFile::Pass) => policy::OnError::Pass,
            Some(OnErrorFile::Deny) | None => policy::OnError::Deny,
        };
        options.deadline = file.deadline.map_or(options.deadline, |t| t.0);
        options.configure_deadline = file.configure_deadline.map_or(options.configure_deadline, |t| t.0);
        options.memory_bytes_max = file.memory_max.map_or(options.memory_bytes_max, |s| s.0);
        options.reuse_max = file.reuse_max.unwrap_or(options.reuse_max);
        options.decision_bytes_max = file.decision_bytes_max.map_or(options.decision_bytes_max, |s| s.0);
        options.log_lines_per_second_max = file.log_lines_per_second.unwrap_or(options.log_lines_per_second_max);
        options.breaker = self.breaker(&key.name("breaker"), file.breaker.as_ref());
        self.services(&key, file, whole, &mut options);
        options.targets.clone_from(&file.targets);
        options.known_targets = Some(targets.keys().cloned().collect());
        for (name, zero) in
            [("deadline", options.deadline.is_zero()), ("configure_deadline", options.configure_deadline.is_zero())]
        {
            if zero {
                self.fault(&key.name(name), "longer than 0");
            }
        }
        Some(Policy { options, module: self.source.fault(&key.name("module"), "") })
    }

    fn breaker(&mut self, key: &Key, file: Option<&BreakerFile>) -> policy::BreakerOptions {
        let default = policy::BreakerOptions::default();
        let Some(file) = file else { return default };
        let failures = file.failures.unwrap_or(default.failures);
        if failures > BREAKER_FAILURES_MAX {
            self.fault(&key.name("failures"), format!("at most {BREAKER_FAILURES_MAX}"));
        }
        for (name, time) in [("within", file.within), ("pause", file.pause)] {
            if time.is_some_and(|time| time.0.is_zero()) {
                self.fault(&key.name(name), "longer than 0");
            }
        }
        policy::BreakerOptions {
            failures,
            within: file.within.map_or(default.within, |t| t.0),
            pause: file.pause.map_or(default.pause, |t| t.0),
        }
    }

    pub(super) fn are_policies(&mut self, key: &Key, names: &[String], policies: &BTreeMap<String, PolicyFile>) {
        for (at, name) in names.iter().enumerate() {
            if !policies.contains_key(name) {
                self.fault(&key.index(at), format!("no policy is called {name:?}"));
            }
        }
    }

    fn pages(&mut self, files: &BTreeMap<String, String>) -> ErrorPages {
        let mut pages = ErrorPages::default();
        for (status, file) in files {
            let key = Key::of("error_pages").name(status);
            match (status.parse::<u16>(), std::fs::read(self.path(file))) {
                (Ok(status @ 400..=599), Ok(page)) => drop(pages.0.insert(status, page)),
                (Ok(400..=599), Err(error)) => self.fault(&key, format!("{file}: {error}")),
                _ => self.fault(&key, "a status between 400 and 599"),
            }
        }
        pages
    }
}

/// With the pauses between rounds, some five seconds: longer is not what a client waits for.
const RETRIES_MAX: u32 = 10;
/// The time of each is remembered.
const BREAKER_FAILURES_MAX: u32 = 10_000;
/// More threads than any machine has cores are a typing error.
const WORKERS_MAX: usize = 1024;
/// Less than a request line and Host is no head; more does not fit a socket's receive buffer.
const HEAD_BYTES: std::ops::RangeInclusive<usize> = 256..=1 << 20;
/// Host alone is one.
const HEADERS: std::ops::RangeInclusive<usize> = 1..=10_000;

/// A value of the configuration as JSON; dates are text, and numbers that JSON does not have are null.
fn json(value: &toml::Value) -> serde_json::Value {
    match value {
        toml::Value::Array(array) => array.iter().map(json).collect(),
        toml::Value::Boolean(boolean) => (*boolean).into(),
        toml::Value::Datetime(date) => date.to_string().into(),
        toml::Value::Float(float) => (*float).into(),
        toml::Value::Integer(integer) => (*integer).into(),
        toml::Value::String(string) => string.clone().into(),
        toml::Value::Table(table) => {
            serde_json::Value::Object(table.iter().map(|(name, value)| (name.clone(), json(value))).collect())
        }
    }
}

fn workers(file: &GatewayFile) -> usize {
    match file.workers {
        Some(workers @ 1..) => workers,
        _ => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
    }
}
