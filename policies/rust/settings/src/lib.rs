//! What a policy is told once, as JSON: read key by key, with every fault named and not only the first, because whoever
//! has to mend it wants to go there once.
//!
//! ```
//! # use settings::Settings;
//! let mut settings = Settings::parse(r#"{"target": "chat", "percent": 5}"#)?;
//! let target = settings.text("target");
//! let percent = settings.number("percent", 0.0..=100.0);
//! let target = settings.finish(target)?;
//! # assert_eq!((&*target, percent), ("chat", 5.0));
//! # Ok::<(), Vec<String>>(())
//! ```

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

/// A configuration that is being read.
#[derive(Debug)]
pub struct Settings {
    object: Map<String, Value>,
    faults: Vec<String>,
}

impl Settings {
    /// Begins to read.
    ///
    /// # Errors
    /// When it is no JSON, or no object.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        match serde_json::from_str::<Value>(text) {
            Ok(Value::Object(object)) => Ok(Self { object, faults: Vec::new() }),
            Ok(_) => Err(vec!["config: must be an object".to_owned()]),
            Err(_) => Err(vec!["config: not JSON".to_owned()]),
        }
    }

    /// Ends it: what is left over nobody knows.
    ///
    /// # Errors
    /// Every fault there was.
    pub fn finish<T>(mut self, value: T) -> Result<T, Vec<String>> {
        self.faults.extend(self.object.keys().map(|key| format!("{key}: unknown key")));
        if self.faults.is_empty() { Ok(value) } else { Err(self.faults) }
    }

    /// Says what is wrong with a key.
    pub fn fault(&mut self, key: &str, fault: &str) {
        self.faults.push(format!("{key}: {fault}"));
    }

    /// Whether a key is there, and has not been read.
    pub fn has(&self, key: &str) -> bool {
        self.object.contains_key(key)
    }

    /// A value as it is.
    pub fn value(&mut self, key: &str) -> Option<Value> {
        self.object.remove(key)
    }

    /// A string that can stand between the quotes of a header field as it is (RFC 9110 §5.6.4).
    pub fn text(&mut self, key: &str) -> String {
        match self.value(key) {
            None => self.fault(key, "missing"),
            Some(Value::String(text)) if is_printable(&text) => return text,
            Some(_) => self.fault(key, "must be a string of printable ASCII without quotes and backslashes"),
        }
        String::new()
    }

    /// The same, when it is there.
    pub fn optional_text(&mut self, key: &str) -> Option<String> {
        self.has(key).then(|| self.text(key))
    }

    /// A list of such strings; empty when it is not there.
    pub fn texts(&mut self, key: &str) -> Vec<String> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let text = |item: &Value| item.as_str().filter(|text| is_printable(text)).map(str::to_owned);
        let texts: Option<_> = value.as_array().and_then(|list| list.iter().map(text).collect());
        texts.unwrap_or_else(|| {
            self.fault(key, "must be a list of strings of printable ASCII without quotes and backslashes");
            Vec::new()
        })
    }

    /// A number within limits.
    pub fn number(&mut self, key: &str, limits: RangeInclusive<f64>) -> f64 {
        match self.value(key) {
            None => self.fault(key, "missing"),
            Some(value) => match value.as_f64().filter(|number| limits.contains(number)) {
                Some(number) => return number,
                None => self.fault(key, &format!("must be a number from {} to {}", limits.start(), limits.end())),
            },
        }
        *limits.start()
    }

    /// A whole number within limits, or the default when it is not there.
    pub fn whole(&mut self, key: &str, limits: RangeInclusive<u32>, default: u32) -> u32 {
        let Some(value) = self.value(key) else { return default };
        let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
        number.filter(|number| limits.contains(number)).unwrap_or_else(|| {
            self.fault(key, &format!("must be a whole number from {} to {}", limits.start(), limits.end()));
            default
        })
    }

    /// `true` or `false`.
    pub fn switch(&mut self, key: &str) -> bool {
        match self.value(key) {
            None => self.fault(key, "missing"),
            Some(Value::Bool(on)) => return on,
            Some(_) => self.fault(key, "must be true or false"),
        }
        false
    }
}

/// Whether a text can stand between quotes as it is, and is not empty.
pub fn is_printable(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\')
}

/// Whether a text is the name of a header field in lower case (RFC 9110 §5.1), as the gateway hands them out.
pub fn is_field_name(text: &str) -> bool {
    let is_token = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_is_no_object_is_one_fault() {
        assert_eq!(Settings::parse("{").expect_err("is cut"), ["config: not JSON"]);
        assert_eq!(Settings::parse("[]").expect_err("is a list"), ["config: must be an object"]);
        assert_eq!(Settings::parse(&"[".repeat(10_000)).expect_err("is deep"), ["config: not JSON"]);
    }

    #[test]
    fn every_fault_is_named_by_its_key() {
        let mut settings =
            Settings::parse(r#"{"a": "\"", "b": 101, "c": -1, "d": 1, "e": ["x", 2], "f": 0}"#).expect("is one");
        settings.text("a");
        settings.number("b", 0.0..=100.0);
        settings.whole("c", 0..=9, 5);
        settings.switch("d");
        settings.texts("e");
        settings.text("g");
        settings.number("h", 1.0..=2.0);
        settings.switch("i");
        assert_eq!(
            settings.finish(()).expect_err("is full of faults"),
            [
                "a: must be a string of printable ASCII without quotes and backslashes",
                "b: must be a number from 0 to 100",
                "c: must be a whole number from 0 to 9",
                "d: must be true or false",
                "e: must be a list of strings of printable ASCII without quotes and backslashes",
                "g: missing",
                "h: missing",
                "i: missing",
                "f: unknown key",
            ]
        );
    }

    #[test]
    fn limits_are_within_and_defaults_are_taken() {
        let mut settings = Settings::parse(r#"{"a": 100, "b": 9, "c": []}"#).expect("is one");
        assert_eq!(settings.number("a", 0.0..=100.0), 100.0);
        assert_eq!((settings.whole("b", 0..=9, 5), settings.whole("b", 0..=9, 5)), (9, 5));
        assert_eq!((settings.texts("c"), settings.texts("c"), settings.optional_text("d")), (vec![], vec![], None));
        assert_eq!(settings.finish(1), Ok(1));
    }

    #[test]
    fn names_of_fields_are_tokens_in_lower_case() {
        assert!(is_field_name("x-user_1") && !is_field_name("X-User") && !is_field_name("") && !is_field_name("a b"));
    }
}
