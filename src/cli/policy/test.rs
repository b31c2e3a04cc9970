//! `baton policy test`: what a policy decides about requests in files, and whether that is what was expected.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::{Value, json};
use tracing::Level;

use super::cases::{self, Case, Refused, Set};
use super::request_file::RequestFile;
use super::{Health, Module, decision, print, usage};
use crate::decision::Action;
use crate::log::{Line, capture};
use crate::policy::{
    Engine, FailureStage, HandoffFailure, LoadError, Options, PolicyError, Rehearsal, Rehearsed, Stage,
};

/// Asks a policy about requests, and compares what it decides.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "CASES is a folder of CASE.http and CASE.json, with config.json where the policy needs one, refused/ with \
    configurations that it is to refuse, and further folders of the same kind: its outcome is printed as TAP. \
    --request CASES --expect CASES says the same. Exit codes: 0 as expected, 1 not, or the policy failed, 2 usage, 64 bad \
    policy or request."
)]
pub struct Test {
    #[command(flatten)]
    module: Module,
    /// A folder of cases
    #[arg(required_unless_present = "requests", conflicts_with_all = ["requests", "expect"])]
    cases: Vec<PathBuf>,
    /// A raw HTTP/1.1 request, repeatable
    #[arg(long = "request", value_name = "FILE", num_args = 1..)]
    requests: Vec<PathBuf>,
    /// The decision that is expected: an object, or a list of them, one for each request
    #[arg(long, value_name = "FILE")]
    expect: Option<PathBuf>,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// The policy engine cannot be made.
pub fn run(args: Test) -> anyhow::Result<ExitCode> {
    let is_folder = |paths: &[PathBuf]| paths.iter().any(|path| path.is_dir());
    let sets = match (&args.cases[..], &args.expect) {
        ([], Some(expect)) if is_folder(&args.requests) => {
            args.requests.iter().map(|requests| cases::read(requests, expect)).collect::<Result<Vec<_>, _>>()
        }
        ([], None) if is_folder(&args.requests) => {
            return Ok(usage("a folder of requests needs --expect with a folder of decisions"));
        }
        ([], _) => return Desk::new()?.ask_all(&args),
        (folders, _) => folders.iter().map(|folder| cases::read(folder, folder)).collect(),
    };
    let sets = match sets {
        Ok(sets) => sets.into_iter().flatten().collect::<Vec<_>>(),
        Err(error) => return Ok(usage(&error)),
    };
    Desk::new()?.run_sets(&args, &sets)
}

/// An engine that counts, and something to wait with.
struct Desk {
    engine: Engine,
    runtime: tokio::runtime::Runtime,
}

/// What became of one request.
struct Asked {
    file: RequestFile,
    rehearsed: Rehearsed,
    log: Vec<Line>,
    /// What the failure-hook said, where no daemon took the client.
    failures: Vec<Failed>,
    /// What the gateway would make of the last decision, which it cannot carry out.
    refusal: Option<Refusal>,
}

/// A handoff that failed, and what the policy said to that.
struct Failed {
    target: String,
    rehearsed: Rehearsed,
}

/// Why nobody takes a client.
enum Refusal {
    /// None of the daemons is there.
    Down(Vec<String>),
    /// There is no such target, or not for this policy.
    Unknown(String),
}

impl Desk {
    fn new() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
        Ok(Self { engine: Engine::counting()?, runtime })
    }

    fn load(&self, options: Options) -> (Result<Rehearsal, LoadError>, Vec<Line>) {
        capture(Level::TRACE, || Rehearsal::load(&self.engine, options))
    }

    fn ask(&self, module: &Module, rehearsal: &Rehearsal, file: RequestFile) -> Asked {
        let ((rehearsed, failures, refusal), log) =
            capture(Level::TRACE, || self.runtime.block_on(converse(module, rehearsal, &file)));
        Asked { file, rehearsed, log, failures, refusal }
    }

    /// Each request by itself.
    fn ask_all(&self, args: &Test) -> anyhow::Result<ExitCode> {
        let module = &args.module;
        let mut expected = match args.expect.as_deref().map(super::json).transpose() {
            Ok(expected) => expected.map(|expected| match expected {
                Value::Array(all) => all,
                one => vec![one],
            }),
            Err(error) => return Ok(usage(&error)),
        };
        if let Some(expected) = &mut expected {
            if expected.len() != args.requests.len() {
                let (wanted, given) = (args.requests.len(), expected.len());
                return Ok(usage(&format!(
                    "--expect holds {given} decisions for {wanted} requests: write a list of them"
                )));
            }
            expected.reverse();
        }
        let mut files = Vec::new();
        for path in &args.requests {
            match RequestFile::read(path) {
                Ok(file) => files.push((path, file)),
                Err(error) => return Ok(bad_request(&error)),
            }
        }
        let (rehearsal, log) = self.load(module.options(None));
        let rehearsal = match rehearsal {
            Ok(rehearsal) => rehearsal,
            Err(error) => return Ok(module.refused(&error)),
        };
        if !args.json {
            log.iter().for_each(|line| print(&format!("  {:<7} {} (while it was loaded)", line.level, line.message)));
        }
        let mut all_well = true;
        for (path, file) in files {
            let asked = self.ask(module, &rehearsal, file);
            let differences = expected.as_mut().and_then(Vec::pop).map(|expected| asked.differences(&expected));
            all_well &= asked.is_decided() && differences.as_ref().is_none_or(Vec::is_empty);
            if args.json {
                let mut object = asked.to_json(&module.options(None));
                object["request"] = path.display().to_string().into();
                if let Some(differences) = differences {
                    object["differences"] = differences.into();
                }
                print(&object.to_string());
            } else {
                print(&asked.to_text(path, &module.options(None)));
                for difference in differences.into_iter().flatten() {
                    print(&format!("  DIFFERS {difference}"));
                }
            }
        }
        Ok(if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// All cases, as a test runner.
    fn run_sets(&self, args: &Test, sets: &[Set]) -> anyhow::Result<ExitCode> {
        let mut tap = Tap { json: args.json, count: 0, failed: 0 };
        if !args.json {
            print("TAP version 14");
        }
        for set in sets {
            let options = args.module.options(set.config.as_ref());
            if !set.cases.is_empty() {
                let rehearsal = match self.load(options.clone()).0 {
                    Ok(rehearsal) => rehearsal,
                    Err(error) => {
                        if !args.json {
                            print(&format!("Bail out! {error}"));
                        }
                        return Ok(args.module.refused(&error));
                    }
                };
                for case in &set.cases {
                    let (differences, object) = self.run_case(&args.module, &rehearsal, &options, case);
                    tap.tell(&case.name, &differences, object);
                }
            }
            for case in &set.refused {
                tap.tell(&case.name, &self.run_refused(&args.module, case), json!({}));
            }
        }
        Ok(tap.end())
    }

    fn run_case(&self, module: &Module, rehearsal: &Rehearsal, options: &Options, case: &Case) -> (Vec<String>, Value) {
        match RequestFile::read(&case.request) {
            Ok(file) => {
                let asked = self.ask(module, rehearsal, file);
                (asked.differences(&case.expected), asked.to_json(options))
            }
            Err(error) => (vec![error], json!({})),
        }
    }

    fn run_refused(&self, module: &Module, case: &Refused) -> Vec<String> {
        let expected = case.faults.join("; ");
        match self.load(module.options(Some(&case.config))).0 {
            Ok(_) => vec![format!("faults: expected {expected:?}, found a configuration that is taken")],
            Err(error) if error.stage() == Stage::Configure && is_same(error.reason(), &expected) => Vec::new(),
            Err(error) => vec![format!("faults: expected {expected:?}, found {:?}", error.to_string())],
        }
    }
}

/// White space apart: a reason was made one line of.
fn is_same(found: &str, expected: &str) -> bool {
    found.split_whitespace().eq(expected.split_whitespace())
}

/// A request that the gateway would not show to any policy.
pub(super) fn bad_request(error: &str) -> ExitCode {
    crate::cli::say(&format!("baton: {error}"));
    ExitCode::from(crate::cli::BAD_CONFIGURATION)
}

/// Asks about a request, and as often as the gateway would what to do where no daemon took the client.
async fn converse(
    module: &Module,
    rehearsal: &Rehearsal,
    file: &RequestFile,
) -> (Rehearsed, Vec<Failed>, Option<Refusal>) {
    let rehearsed = rehearsal.on_request(&file.request, &file.body).await;
    let Ok(decision) = &rehearsed.decision else { return (rehearsed, Vec::new(), None) };
    let mut refusal = Refusal::of(module, rehearsal, &decision.action);
    let mut carry = decision.carry.clone();
    let mut failures = Vec::new();
    let attempts = if rehearsal.generation().hears_of_failures() { crate::connection::ASKED_COUNT_MAX } else { 0 };
    for attempt in 1..=attempts {
        let Some(Refusal::Down(tried)) = &refusal else { break };
        let failure = HandoffFailure {
            target: tried.last().cloned().unwrap_or_default(),
            stage: FailureStage::Connect,
            errno: Some(rustix::io::Errno::CONNREFUSED.raw_os_error()),
            message: std::io::Error::from(rustix::io::Errno::CONNREFUSED).to_string(),
            attempt,
            retryable: true,
        };
        let rehearsed = rehearsal.on_handoff_failed(&file.request, &file.body, &failure, &carry).await;
        let mut goes_on = false;
        if let Ok(decision) = &rehearsed.decision {
            carry.clone_from(&decision.carry);
            // No opinion leaves it at what there was.
            if !matches!(decision.action, Action::Pass(_)) {
                refusal = Refusal::of(module, rehearsal, &decision.action);
                goes_on = true;
            }
        }
        failures.push(Failed { target: failure.target, rehearsed });
        if !goes_on {
            break;
        }
    }
    (rehearsed, failures, refusal)
}

impl Refusal {
    /// Why nobody takes the client, if so.
    fn of(module: &Module, rehearsal: &Rehearsal, action: &Action) -> Option<Self> {
        let Action::Handoff(handoff) = action else { return None };
        let names = || std::iter::once(&handoff.target).chain(&handoff.alternates);
        for name in names() {
            if module.health(name).is_none() || !rehearsal.generation().may_name(name) {
                return Some(Self::Unknown(name.clone()));
            }
        }
        let is_up = names().any(|name| module.health(name) == Some(Health::Up));
        (!is_up).then(|| Self::Down(names().cloned().collect()))
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Down(tried) => {
                write!(f, "no daemon takes the client, tried {}: it is answered 503", tried.join(", "))
            }
            Self::Unknown(name) => write!(f, "there is no target {name:?}: the client is answered 403"),
        }
    }
}

impl Failed {
    fn to_json(&self) -> Value {
        let Rehearsed { decision, used } = &self.rehearsed;
        let mut object = json!({
            "target": self.target,
            "decision": decision.as_ref().map_or(Value::Null, decision::to_json),
            "time_us": micros(used.time),
        });
        if let Err(error) = decision {
            object["error"] = error.to_string().into();
        }
        object
    }
}

impl Asked {
    /// Whether every hook came to a decision.
    fn is_decided(&self) -> bool {
        self.rehearsed.decision.is_ok() && self.failures.iter().all(|failed| failed.rehearsed.decision.is_ok())
    }

    fn differences(&self, expected: &Value) -> Vec<String> {
        match &self.rehearsed.decision {
            Ok(found) => {
                let mut found = decision::to_json(found);
                if !self.failures.is_empty() {
                    found["failures"] = self.failures.iter().map(Failed::to_json).collect();
                }
                decision::differences(expected, &found)
            }
            Err(error) => vec![format!("decision: expected {expected}, found {error}")],
        }
    }

    /// What a guest has used since its last call or return is not written down when the deadline ends it.
    fn fuel(&self) -> Option<u64> {
        let ended = matches!(self.rehearsed.decision, Err(PolicyError::Deadline { .. }));
        (!ended).then_some(self.rehearsed.used.fuel)
    }

    fn to_json(&self, options: &Options) -> Value {
        let Rehearsed { decision, used } = &self.rehearsed;
        let log: Vec<_> = self.log.iter().map(|l| json!({"level": l.level, "message": l.message})).collect();
        let mut object = json!({
            "decision": decision.as_ref().map_or(Value::Null, decision::to_json),
            "time_us": micros(used.time),
            "fuel": self.fuel(),
            "memory": used.memory_bytes,
            "limits": {
                "time_us": micros(options.deadline),
                "fuel": null,
                "memory": options.memory_bytes_max,
                "decision_bytes": options.decision_bytes_max,
                "log_lines_per_second": Options::new("", PathBuf::new()).log_lines_per_second_max,
            },
            "log": log,
        });
        if let Err(error) = decision {
            object["error"] = error.to_string().into();
        }
        if !self.failures.is_empty() {
            object["failures"] = self.failures.iter().map(Failed::to_json).collect();
        }
        if let Some(refusal) = &self.refusal {
            object["refusal"] = refusal.to_string().into();
        }
        if let Some(note) = self.file.note {
            object["note"] = note.into();
        }
        object
    }

    fn to_text(&self, path: &Path, options: &Options) -> String {
        let Rehearsed { decision, used } = &self.rehearsed;
        let head = &self.file.request.head;
        let mut out = format!("{}: {} {}\n  ", path.display(), head.method(), head.target());
        let said = |decision: &Result<_, PolicyError>| match decision {
            Ok(decision) => decision::sentence(decision),
            Err(error) => format!("FAILED {error}"),
        };
        out += &said(decision);
        for Failed { target, rehearsed } in &self.failures {
            out += &format!("\n  {target} is down, so: {}", said(&rehearsed.decision));
        }
        if let Some(refusal) = &self.refusal {
            out += &format!("\n  but     {refusal}");
        }
        for line in &self.log {
            out += &format!("\n  {:<7} {}", line.level, line.message);
        }
        let bytes = |count: usize| super::bytes(count as u64);
        out += &format!(
            "\n  time    {} µs of {} µs\n  memory  {} of {}\n  fuel    {}",
            micros(used.time),
            micros(options.deadline),
            bytes(used.memory_bytes),
            bytes(options.memory_bytes_max),
            self.fuel().map_or_else(|| "unknown: it never came back".to_owned(), |fuel| format!("{fuel} instructions")),
        );
        if let Some(note) = self.file.note {
            out += &format!("\n  file    {note}");
        }
        out
    }
}

fn micros(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The Test Anything Protocol, version 14, or the same as JSON.
struct Tap {
    json: bool,
    count: usize,
    failed: usize,
}

impl Tap {
    fn tell(&mut self, name: &str, differences: &[String], mut object: Value) {
        self.count += 1;
        let passed = differences.is_empty();
        self.failed += usize::from(!passed);
        if self.json {
            object["case"] = name.into();
            object["passed"] = passed.into();
            object["differences"] = differences.into();
            print(&object.to_string());
            return;
        }
        let word = if passed { "ok" } else { "not ok" };
        // A number sign would begin a directive.
        print(&format!("{word} {} - {}", self.count, name.replace('#', "\\#")));
        for difference in differences {
            print(&format!("# {}", crate::policy::escape(difference)));
        }
    }

    fn end(self) -> ExitCode {
        if !self.json {
            print(&format!("1..{}", self.count));
            print(&format!("# {} passed, {} failed", self.count - self.failed, self.failed));
        }
        if self.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
