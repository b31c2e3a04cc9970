//! `baton policy`: an author's tools, none of which needs a gateway that runs.

pub mod bench;
mod cases;
mod decision;
pub mod inspect;
pub mod new;
mod request_file;
pub mod test;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr as _;
use std::time::Duration;

use serde_json::Value;

use crate::config::units::{Size, Time};
use crate::policy::Options;

/// Begins, tries and measures policies.
#[derive(Debug, clap::Args)]
#[command(disable_help_subcommand = true)]
pub struct Policy {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Bench(bench::Bench),
    Inspect(inspect::Inspect),
    New(new::New),
    Test(test::Test),
}

/// Runs the command.
///
/// # Errors
/// What the system refuses.
pub fn run(args: Policy) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Bench(args) => bench::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::New(args) => new::run(args),
        Command::Test(args) => test::run(args),
    }
}

/// A module, and what the configuration would say of it.
#[derive(Debug, clap::Args)]
struct Module {
    /// A component, a core module, or text (.wat)
    module: PathBuf,
    /// The policy's configuration: a JSON object, or a file that holds one [default: {}]
    #[arg(long, value_name = "JSON", value_parser = config)]
    config: Option<Value>,
    /// A target of the configuration, and whether its daemon is there; without any, the policy may name what it wants
    #[arg(long = "target", value_name = "NAME=up|down", value_parser = target)]
    targets: Vec<(String, Health)>,
    /// Guest time of one hook
    #[arg(long, value_name = "DURATION", default_value = "5ms", value_parser = time)]
    deadline: Duration,
    /// Start, configure and self-test together
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = time)]
    configure_deadline: Duration,
    /// Linear memory of one instance
    #[arg(long, value_name = "SIZE", default_value = "32MiB", value_parser = size)]
    memory_max: usize,
}

/// Of a request with its body, an expectation or a configuration.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Whether a target's daemon takes clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Down,
    Up,
}

impl Module {
    /// The policy's options with `config`, or else with what was said on the command line.
    fn options(&self, config: Option<&Value>) -> Options {
        let name = self.module.file_stem().map_or_else(|| "policy".into(), |name| name.to_string_lossy());
        let mut options = Options::new(&name, self.module.clone());
        if let Some(config) = config.or(self.config.as_ref()) {
            options.config = config.clone();
        }
        if !self.targets.is_empty() {
            options.known_targets = Some(self.targets.iter().map(|(name, _)| name.clone()).collect());
        }
        options.deadline = self.deadline;
        options.configure_deadline = self.configure_deadline;
        options.memory_bytes_max = self.memory_max;
        options
    }

    /// Whether a daemon takes clients for that name; `None` where the configuration has no such target.
    fn health(&self, name: &str) -> Option<Health> {
        if self.targets.is_empty() {
            return Some(Health::Up);
        }
        self.targets.iter().rev().find(|(known, _)| known == name).map(|&(_, health)| health)
    }

    /// Says why it cannot be used.
    fn refused(&self, error: &crate::policy::LoadError) -> ExitCode {
        let module = self.module.display().to_string();
        // Reading names the file already.
        let known = error.reason().contains(&module);
        super::say(&if known { format!("baton: {error}") } else { format!("baton: {module}: {error}") });
        ExitCode::from(super::BAD_CONFIGURATION)
    }
}

/// Something is wrong with what was asked for.
fn usage(message: &str) -> ExitCode {
    super::say(&format!("baton: {message}"));
    ExitCode::from(2)
}

/// Prints on standard output. That nobody reads on is no reason to end.
fn print(text: &str) {
    use std::io::Write as _;
    drop(writeln!(std::io::stdout(), "{text}"));
}

fn config(text: &str) -> Result<Value, String> {
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text).map_err(|error| error.to_string());
    }
    json(Path::new(text))
}

/// The JSON in a file.
fn json(file: &Path) -> Result<Value, String> {
    serde_json::from_slice(&read(file)?).map_err(|error| {
        let (line, column, said) = (error.line(), error.column(), error.to_string());
        // It ends with the place, which stands in front here.
        let said = said.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&said);
        format!("{}:{line}:{column}: {said}", file.display())
    })
}

/// Reads what an author has written. A pipe will do; what has no end will not.
fn read(file: &Path) -> Result<Vec<u8>, String> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file);
    let read = opened.and_then(|opened| opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    match read {
        Ok(length) if length as u64 > FILE_BYTES_MAX => {
            Err(format!("{}: is larger than {} MiB", file.display(), FILE_BYTES_MAX >> 20))
        }
        Ok(_) => Ok(bytes),
        Err(error) => Err(format!("{}: {error}", file.display())),
    }
}

fn target(text: &str) -> Result<(String, Health), String> {
    let wrong = || format!("{text:?}: write a target's name and how it is, as in chat=up or chat=down");
    let (name, health) = text.rsplit_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(wrong)?;
    match health {
        "down" => Ok((name.to_owned(), Health::Down)),
        "up" => Ok((name.to_owned(), Health::Up)),
        _ => Err(wrong()),
    }
}

fn time(text: &str) -> Result<Duration, String> {
    Time::from_str(text).map(|Time(duration)| duration)
}

fn size(text: &str) -> Result<usize, String> {
    Size::from_str(text).map(|Size(bytes)| bytes)
}

/// A number of bytes as people read it.
fn bytes(count: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
    let in_units = |unit: u64| count as f64 / unit as f64;
    match count {
        0..1024 => format!("{count} B"),
        1024..0x10_0000 => format!("{:.1} KiB", in_units(1 << 10)),
        _ => format!("{:.1} MiB", in_units(1 << 20)),
    }
}
