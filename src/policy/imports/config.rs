//! `config`: what the configuration says to this policy.

use std::collections::HashMap;

use serde_json::Value;

use super::Imports;
use crate::policy::bindings::config;

/// What `get` answers, by key: strings as they are, everything else as JSON.
pub(super) fn entries(config: &Value) -> HashMap<String, String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let entries = config.as_object().into_iter().flatten();
    entries.map(|(key, value)| (key.clone(), text(value))).collect()
}

impl config::Host for Imports {
    fn get(&mut self, key: String) -> wasmtime::Result<Option<String>> {
        Ok(self.identity.config.get(&key).cloned())
    }

    /// None while the module is configured: what it keeps then is in the memory of every instance.
    fn secret(&mut self, name: String) -> wasmtime::Result<Option<String>> {
        if !self.identity.is_configured() {
            return Ok(None);
        }
        Ok(self.identity.secrets.get(&name).map(|secret| secret.reveal().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_given_as_they_are_and_the_rest_as_json() {
        let entries = entries(&serde_json::json!({ "realm": "a b", "max": 3, "list": ["x"] }));
        assert_eq!(entries["realm"], "a b");
        assert_eq!(entries["max"], "3");
        assert_eq!(entries["list"], "[\"x\"]");
    }
}
