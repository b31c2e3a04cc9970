//! A folder of cases: requests, what is expected of each, and configurations that are to be refused.
//!
//! `CASE.http` and `CASE.json` belong together; `config.json` is the configuration of all cases beside it; `refused/` holds
//! configurations and their faults. Any other folder below is a set of its own.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// The cases that share a configuration.
#[derive(Debug, Default)]
pub(super) struct Set {
    pub(super) config: Option<Value>,
    pub(super) cases: Vec<Case>,
    pub(super) refused: Vec<Refused>,
}

/// A request and what is expected.
#[derive(Debug)]
pub(super) struct Case {
    /// Its path below the folder, without an ending.
    pub(super) name: String,
    pub(super) request: PathBuf,
    pub(super) expected: Value,
}

/// A configuration that `configure` is to refuse.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) name: String,
    pub(super) config: Value,
    pub(super) faults: Vec<String>,
}

/// Reads requests from one folder and expectations from another, which may be the same, and everything below.
pub(super) fn read(requests: &Path, expectations: &Path) -> Result<Vec<Set>, String> {
    if let Some(file) = [requests, expectations].into_iter().find(|path| path.is_file()) {
        return Err(format!("{}: is no folder of cases; --request FILE asks about one request", file.display()));
    }
    let mut sets = Vec::new();
    read_below(requests, expectations, "", &mut sets)?;
    if sets.is_empty() {
        return Err(format!("{}: no CASE.http in there", requests.display()));
    }
    Ok(sets)
}

fn read_below(requests: &Path, expectations: &Path, prefix: &str, sets: &mut Vec<Set>) -> Result<(), String> {
    let mut set = Set::default();
    let config = expectations.join("config.json");
    if config.exists() {
        set.config = Some(super::json(&config)?);
    }
    let mut below = Vec::new();
    for path in entries(requests)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if name == "refused" {
                set.refused = refused(&path, &format!("{prefix}{name}/"))?;
            } else if !name.starts_with('.') {
                below.push((path, name));
            }
        } else if let Some(case) = name.strip_suffix(".http") {
            let file = expectations.join(format!("{case}.json"));
            let expected =
                super::json(&file).map_err(|error| format!("{}: no expectation: {error}", path.display()))?;
            set.cases.push(Case { name: format!("{prefix}{case}"), request: path, expected });
        }
    }
    // An expectation without a request would never fail.
    for path in entries(expectations)? {
        let is_case = path.extension().is_some_and(|e| e == "json") && path.file_stem().is_some_and(|n| n != "config");
        let request = requests.join(path.file_stem().unwrap_or_default()).with_added_extension("http");
        if is_case && !request.exists() {
            return Err(format!("{}: there is no {} for it", path.display(), request.display()));
        }
    }
    if !set.cases.is_empty() || !set.refused.is_empty() {
        sets.push(set);
    }
    for (path, name) in below {
        read_below(&path, &expectations.join(&name), &format!("{prefix}{name}/"), sets)?;
    }
    Ok(())
}

fn refused(folder: &Path, prefix: &str) -> Result<Vec<Refused>, String> {
    let mut out = Vec::new();
    for path in entries(folder)? {
        let Some(name) = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".json")) else {
            continue;
        };
        let case = super::json(&path)?;
        let faults =
            case["faults"].as_array().map(|all| all.iter().filter_map(Value::as_str).map(str::to_owned).collect());
        match (case.get("config"), faults) {
            (Some(config), Some(faults)) => {
                out.push(Refused { name: format!("{prefix}{name}"), config: config.clone(), faults });
            }
            _ => return Err(format!("{}: has to hold \"config\" and a list \"faults\"", path.display())),
        }
    }
    Ok(out)
}

/// In order, so that a run is like the other.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let fault = |error: std::io::Error| format!("{}: {error}", folder.display());
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fault)? {
        paths.push(entry.map_err(fault)?.path());
    }
    paths.sort();
    Ok(paths)
}
