//! What is wrong with a configuration, by key and line.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One fault, printed as `baton.toml:12: route[1].default.handoff: no target is called "nowhere"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file, as it was named.
    pub file: PathBuf,
    /// Counted from 1; `None` where the fault is the file's as a whole.
    pub line: Option<usize>,
    /// The key, from the root; empty where none is to blame.
    pub key: String,
    /// What is wrong, for people.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Every fault that was found; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, fault) in self.0.iter().enumerate() {
            write!(f, "{}{fault}", if at == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// A place in the configuration: keys and indices from the root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Key(Vec<Step>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Name(String),
    Index(usize),
}

impl Key {
    /// The root's `name`.
    pub(super) fn of(name: &str) -> Self {
        Self::default().name(name)
    }

    /// This one's `name`.
    pub(super) fn name(&self, name: &str) -> Self {
        let mut key = self.clone();
        key.0.push(Step::Name(name.to_owned()));
        key
    }

    /// This one's entry, counted from 0.
    pub(super) fn index(&self, index: usize) -> Self {
        let mut key = self.clone();
        key.0.push(Step::Index(index));
        key
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.0.iter().enumerate() {
            match step {
                Step::Name(name) => write!(f, "{}{name}", if at == 0 { "" } else { "." })?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// A configuration's text, taken apart so that keys can be found in it.
#[derive(Debug)]
pub(super) struct Source<'a> {
    file: &'a Path,
    text: &'a str,
    root: Spanned<DeTable<'a>>,
}

impl<'a> Source<'a> {
    /// Takes `text` apart.
    ///
    /// # Errors
    /// Every place that is no TOML.
    pub(super) fn parse(file: &'a Path, text: &'a str) -> Result<Self, Faults> {
        let (root, errors) = DeTable::parse_recoverable(text);
        let source = Self { file, text, root };
        if errors.is_empty() {
            return Ok(source);
        }
        let fault = |error: &toml::de::Error| {
            source.fault_at(error.span().unwrap_or_default(), String::new(), format!("no TOML: {}", error.message()))
        };
        Err(Faults(errors.iter().map(fault).collect()))
    }

    /// Reads the text as a `T`, collecting every fault: what is wrong is left out, and the rest tried again.
    ///
    /// # Errors
    /// Every key that is unknown or has a wrong value.
    pub(super) fn read<T: serde::de::DeserializeOwned>(&self) -> Result<T, Faults> {
        let mut root = self.root.clone();
        let mut faults = Vec::new();
        loop {
            let error = match T::deserialize(toml::de::Deserializer::from(root.clone())) {
                Ok(value) if faults.is_empty() => return Ok(value),
                Ok(_) => return Err(Faults(faults)),
                Err(error) => error,
            };
            let span = error.span().unwrap_or_default();
            let key = deepest(root.get_ref(), &span);
            let removed = remove(root.get_mut(), &span);
            faults.push(self.fault_at(span, key, error.message().replace('\n', ", ")));
            if !removed {
                return Err(Faults(faults));
            }
        }
    }

    /// A fault of `key`, found in the text as far as it stands there.
    pub(super) fn fault(&self, key: &Key, message: impl Into<String>) -> Fault {
        let mut span = None;
        let mut table = Some(self.root.get_ref());
        let mut array = None;
        for step in &key.0 {
            let value = match step {
                Step::Name(name) => table.and_then(|t| t.get_key_value(name.as_str())).map(|(key, value)| {
                    span = Some(key.span());
                    value
                }),
                Step::Index(index) => array.and_then(|a: &toml::de::DeArray<'_>| a.get(*index)).inspect(|value| {
                    span = Some(value.span());
                }),
            };
            (table, array) = match value.map(Spanned::get_ref) {
                Some(DeValue::Table(inner)) => (Some(inner), None),
                Some(DeValue::Array(inner)) => (None, Some(inner)),
                _ => (None, None),
            };
        }
        let line = span.map(|span| self.line(span.start));
        Fault { file: self.file.to_owned(), line, key: key.to_string(), message: message.into() }
    }

    fn fault_at(&self, span: Range<usize>, key: String, message: String) -> Fault {
        Fault { file: self.file.to_owned(), line: Some(self.line(span.start)), key, message }
    }

    fn line(&self, offset: usize) -> usize {
        self.text.as_bytes()[..offset.min(self.text.len())].iter().filter(|&&b| b == b'\n').count() + 1
    }
}

/// The key whose name or value covers `span`, from the root.
fn deepest(table: &DeTable<'_>, span: &Range<usize>) -> String {
    let mut key = Key::default();
    find(table, span, &mut key);
    key.to_string()
}

fn find(table: &DeTable<'_>, span: &Range<usize>, key: &mut Key) -> bool {
    for (name, value) in table.iter() {
        let before = key.clone();
        *key = key.name(name.get_ref());
        if find_in(value, span, key) || covers(&name.span(), span) || covers(&value.span(), span) {
            return true;
        }
        *key = before;
    }
    false
}

fn find_in(value: &Spanned<DeValue<'_>>, span: &Range<usize>, key: &mut Key) -> bool {
    match value.get_ref() {
        DeValue::Table(table) => find(table, span, key),
        DeValue::Array(array) => array.iter().enumerate().any(|(at, entry)| {
            let before = key.clone();
            *key = key.index(at);
            if find_in(entry, span, key) || (matches!(entry.get_ref(), DeValue::Table(_)) && entry.span() == *span) {
                return true;
            }
            *key = before;
            false
        }),
        _ => false,
    }
}

/// Takes the smallest entry that covers `span` out of `table`; false where there is none.
fn remove(table: &mut DeTable<'_>, span: &Range<usize>) -> bool {
    let mut at = None;
    for (name, value) in table.iter_mut() {
        let inner = match value.get_mut() {
            DeValue::Table(inner) => remove(inner, span),
            DeValue::Array(array) => array.iter_mut().any(|entry| match entry.get_mut() {
                DeValue::Table(inner) => remove(inner, span),
                _ => false,
            }),
            _ => false,
        };
        if inner {
            return true;
        }
        if covers(&name.span(), span) || covers(&value.span(), span) {
            at = Some(name.get_ref().to_string());
        }
    }
    at.is_some_and(|name| table.remove(name.as_str()).is_some())
}

fn covers(outer: &Range<usize>, inner: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end && !outer.is_empty()
}
