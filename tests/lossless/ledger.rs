//! What clients got, held against what the access log says of them: one line for each request, and the line explains it.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use crate::client::{Asked, Got, Kind};

/// How it comes out.
#[derive(Default)]
pub struct Balance {
    /// What clients got, and what the log says of it.
    pub kinds: BTreeMap<String, usize>,
    /// Whole answers by the daemon's language.
    pub daemons: BTreeMap<String, usize>,
    pub faults: Vec<String>,
}

/// The mark in a target.
fn mark(target: &str) -> Option<&str> {
    target.strip_prefix('/')?.split(['/', '?']).nth(1)
}

pub fn balance(asked: &[Asked], lines: &[Value], may_cut: bool) -> Balance {
    let mut balance = Balance::default();
    let mut by_mark: HashMap<&str, Vec<&Value>> = HashMap::new();
    for line in lines {
        match line["target"].as_str().and_then(mark) {
            Some(mark) => by_mark.entry(mark).or_default().push(line),
            None => balance.faults.push(format!("a line of no request: {line}")),
        }
    }
    let mut before: HashMap<(u16, usize), (&Asked, Option<&Value>)> = HashMap::new();
    for one in asked {
        let own = by_mark.remove(&*one.mark).unwrap_or_default();
        let last = one.nth.checked_sub(1).and_then(|nth| before.get(&(one.port, nth))).copied();
        let (kind, is_fault) = judge(one, &own, last.and_then(|(_, line)| line), may_cut);
        if is_fault {
            balance.faults.push(format!("{kind}: {one:?}\n  {own:?}\n  before it: {last:?}"));
        }
        *balance.kinds.entry(kind).or_default() += 1;
        if let Got::Daemon { name, .. } = &one.got {
            let language = name.split('-').next().unwrap_or_default();
            *balance.daemons.entry(language.to_owned()).or_default() += 1;
        }
        before.insert((one.port, one.nth), (one, own.first().copied()));
    }
    balance.faults.extend(by_mark.values().map(|lines| format!("lines that nobody asked for: {lines:?}")));
    balance
}

/// What it is, in words, and whether it must not be.
fn judge(one: &Asked, lines: &[&Value], before: Option<&Value>, may_cut: bool) -> (String, bool) {
    let line = match (lines, &one.got) {
        ([line], got) if *got != Got::Unheard => *line,
        ([], Got::Unheard) => return ("not heard behind the connection's last answer".to_owned(), false),
        // The end came before it was heard: the line before it must say why there was one.
        ([], Got::Cut { bytes: 0, .. }) => {
            let is_explained = before.is_some_and(is_daemons_end);
            return ("not heard: the daemon of the one before it ended".to_owned(), !is_explained || !may_cut);
        }
        (lines, _) => return (format!("{} lines", lines.len()), true),
    };
    let outcome = line["outcome"].as_str().unwrap_or_default();
    let (status, bytes_out, error) = (line["status"].as_u64(), line["bytes_out"].as_u64(), line["error"].as_str());
    let said = match (status, error) {
        (Some(status), None) => format!("{outcome} {status}"),
        (Some(status), Some(_)) => format!("{outcome} {status} with an error"),
        (None, None) => outcome.to_owned(),
        (None, Some(error)) => format!("{outcome}, {error}"),
    };
    match &one.got {
        Got::Daemon { bytes, .. } => {
            let is_counted = bytes_out == Some(*bytes) && status == Some(200);
            let is_right = match outcome {
                // The daemon's last word did not come: it, or its channel, ended.
                "handed-off" if status.is_none() => may_cut,
                "returned" => is_counted && !matches!(one.kind, Kind::Stream | Kind::Last),
                "handed-off" => is_counted,
                // It had just taken the client when the gateway gave it up, and looked before it wrote.
                "unanswered" => may_cut && error == Some("fate unknown: closed unwritten"),
                _ => false,
            };
            (format!("one daemon's answer: {said}"), !is_right)
        }
        Got::Unavailable { bytes } => {
            let is_right = outcome == "refused" && status == Some(503) && bytes_out == Some(*bytes);
            (format!("the gateway's 503: {outcome} {}", error.unwrap_or_default()), !is_right)
        }
        Got::Cut { bytes, is_reset } => {
            let how = if *is_reset { "reset" } else { "closed" };
            let after = if *bytes == 0 { "without a byte" } else { "within an answer" };
            let is_right = may_cut && is_daemons_end(line);
            (format!("{how} {after}: {said}"), !is_right)
        }
        Got::Both => {
            let is_right =
                may_cut && outcome == "unanswered" && error.is_some_and(|error| error.starts_with("conflict"));
            (format!("TWO VOICES: {said}"), !is_right)
        }
        Got::Unheard => ("heard behind the connection's last answer".to_owned(), true),
    }
}

/// Whether a line says that a daemon had the client, or may have, and did not bring it to an end.
fn is_daemons_end(line: &Value) -> bool {
    line["outcome"] == "unanswered"
        || line["outcome"] == "handed-off" && (line["status"].is_null() || line["error"].is_string())
}
