//! Which policies and which default a request gets.

use std::collections::BTreeMap;

use super::Route;
use super::fault::Key;
use super::file::{ConfigFile, DefaultFile, RespondFile, ResponseHeadFile, RouteFile};
use super::resolve::Resolver;
use crate::decision::{Action, Field, Handoff, Proxy, Respond, ResponseHead};
use crate::files::Folder;
use crate::http::fields::is_token_byte;
use crate::http::response::is_framing;
use crate::route::{Fallback, HostPattern, PathPattern, Standard};

impl Resolver<'_> {
    pub(super) fn route(&mut self, at: usize, file: &RouteFile, whole: &ConfigFile) -> Option<Route> {
        let key = Key::of("route").index(at);
        for (name, role) in [("authorizer", &file.authorizer), ("filter", &file.filter)] {
            if let Some(upstream) = role {
                self.has_role(&key.name(name), upstream, Some(name), whole);
            }
        }
        let asked = [
            ("policies", !file.policies.is_empty()),
            ("authorizer", file.authorizer.is_some()),
            ("filter", file.filter.is_some()),
            ("methods", file.methods.is_some()),
        ];
        for (name, _) in asked.iter().filter(|(_, is_written)| *is_written && file.internal == Some(true)) {
            self.fault(
                &key.name(name),
                "an internal route is reached by an application's answer: nobody is asked again",
            );
        }
        self.are_policies(&key.name("policies"), &file.policies, &whole.policy);
        let host = file.host.as_deref().map_or(Ok(HostPattern::Any), HostPattern::parse);
        let host = host.map_err(|message| self.fault(&key.name("host"), message)).ok();
        let default = file.default.as_ref().and_then(|default| self.default(&key.name("default"), default, whole));
        let methods = file.methods.as_ref().filter(|methods| self.methods(&key.name("methods"), methods)).cloned();
        let Some(written) = &file.path else {
            self.fault(&key, "no path");
            return None;
        };
        let path = PathPattern::parse(written).map_err(|message| self.fault(&key.name("path"), message)).ok();
        Some(Route {
            name: written.clone(),
            host: host?,
            path: path?,
            methods,
            policies: file.policies.clone(),
            upgrade: file.upgrade.unwrap_or(true),
            internal: file.internal == Some(true),
            authorizer: file.authorizer.clone(),
            filter: file.filter.clone(),
            default,
        })
    }

    fn methods(&mut self, key: &Key, methods: &[String]) -> bool {
        let is_method = |m: &String| !m.is_empty() && m.bytes().all(is_token_byte);
        let fits = !methods.is_empty() && methods.iter().all(is_method);
        if !fits {
            self.fault(key, "a list of methods, as in [\"GET\", \"POST\"]");
        }
        fits
    }

    fn default(&mut self, key: &Key, file: &DefaultFile, whole: &ConfigFile) -> Option<Standard> {
        if let Some(folder) = &file.file {
            if folder.is_empty() {
                self.fault(&key.name("file"), "empty: a folder, or a file");
            }
            let is_alone = file.handoff.is_none() && file.response_head.is_none() && file.respond.is_none();
            if is_alone {
                let fallback = file.proxy.as_ref().map(|upstream| self.fallback(&key.name("proxy"), upstream, whole));
                return Some(Standard::File(Folder::new(self.path(folder)), fallback));
            }
        }
        self.default_action(key, file, whole).map(Standard::Action)
    }

    fn fallback(&mut self, key: &Key, upstream: &str, whole: &ConfigFile) -> Fallback {
        self.has_role(key, upstream, None, whole);
        let script_suffix = whole.upstream.get(upstream).and_then(Self::script_suffix);
        let proxy = Proxy { upstream: upstream.to_owned(), ..Proxy::default() };
        Fallback { proxy, script_suffix: script_suffix.unwrap_or_default() }
    }

    fn default_action(&mut self, key: &Key, file: &DefaultFile, whole: &ConfigFile) -> Option<Action> {
        let named = [file.handoff.is_some(), file.proxy.is_some(), file.respond.is_some(), file.file.is_some()];
        if named.iter().filter(|named| **named).count() != 1 {
            self.fault(key, "one of file, handoff, proxy and respond, or file and proxy together");
            return None;
        }
        if let Some(upstream) = &file.proxy {
            self.has_role(&key.name("proxy"), upstream, None, whole);
            return Some(Action::Proxy(Proxy { upstream: upstream.clone(), ..Proxy::default() }));
        }
        if let Some(target) = &file.handoff {
            if !whole.target.contains_key(target) {
                self.fault(&key.name("handoff"), format!("no target is called {target:?}"));
            }
            let head = file.response_head.as_ref();
            let response_head = head.map(|head| self.response_head(&key.name("response_head"), head));
            let response_body = head.and_then(|head| head.body.clone()).unwrap_or_default().into_bytes();
            let target = target.clone();
            return Some(Action::Handoff(Handoff { target, response_head, response_body, ..Handoff::default() }));
        }
        if file.response_head.is_some() {
            self.fault(&key.name("response_head"), "it goes with handoff");
        }
        self.respond(&key.name("respond"), file.respond.as_ref()?)
    }

    fn response_head(&mut self, key: &Key, file: &ResponseHeadFile) -> ResponseHead {
        let status = self.status(key, file.status);
        let head = ResponseHead { status, headers: self.fields(&key.name("headers"), &file.headers) };
        if !head.has_body() {
            self.fault(
                &key.name("status"),
                "a response of this status has no body: there is nothing for a daemon to write",
            );
        }
        head
    }

    fn respond(&mut self, key: &Key, file: &RespondFile) -> Option<Action> {
        let status = self.status(key, file.status);
        let headers = self.fields(&key.name("headers"), &file.headers);
        let body = file.body.clone().unwrap_or_default().into_bytes();
        Some(Action::Respond(Respond { status, headers, body }))
    }

    fn status(&mut self, key: &Key, status: Option<u16>) -> u16 {
        let status = status.unwrap_or(200);
        if !(200..=599).contains(&status) {
            self.fault(&key.name("status"), "between 200 and 599");
        }
        status
    }

    fn fields(&mut self, key: &Key, written: &BTreeMap<String, String>) -> Vec<Field> {
        let mut fields = Vec::new();
        for (name, value) in written {
            let key = key.name(name);
            if name.is_empty() || !name.bytes().all(is_token_byte) {
                self.fault(&key, "no field name");
            } else if is_framing(name) {
                self.fault(&key, "the gateway writes this field itself");
            } else if value.bytes().any(|b| b.is_ascii_control() && b != b'\t') {
                self.fault(&key, "a control character in a value");
            } else {
                fields.push(Field { name: name.to_ascii_lowercase(), value: value.clone().into_bytes() });
            }
        }
        fields
    }
}
