//! The shipped policies, and the cases that they are held to.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// A module that `policies/build` has made.
pub fn shipped(name: &str) -> PathBuf {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies/target").join(name).with_extension("wasm");
    assert!(module.exists(), "{} is not there: run policies/build", module.display());
    module
}

/// The folder of a policy's cases.
pub fn cases(policy: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("policies/cases").join(policy)
}

pub fn json(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).expect("a file")).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

/// The files of a folder with that extension, sorted.
pub fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let mut files: Vec<_> = all.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    files.sort();
    assert!(!files.is_empty(), "{}", folder.display());
    files
}

/// JSON as a value of TOML. There is no null, and a number where none belongs is as wrong.
pub fn toml(json: &Value) -> String {
    match json {
        Value::Null => "0".into(),
        Value::Array(values) => format!("[{}]", values.iter().map(toml).collect::<Vec<_>>().join(", ")),
        Value::Object(values) => {
            let pair = |(key, value): (&String, &Value)| format!("{} = {}", toml(&key.as_str().into()), toml(value));
            format!("{{ {} }}", values.iter().map(pair).collect::<Vec<_>>().join(", "))
        }
        Value::String(text) => toml::Value::from(text.as_str()).to_string(),
        other => other.to_string(),
    }
}
