//! `baton policy bench`: how many decisions a second one thread makes.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;

use super::request_file::RequestFile;
use super::{Module, print};
use crate::log::capture;
use crate::policy::{Engine, Speed, Speeds};

/// Measures how fast a policy decides.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "One thread, the gateway's own engine and limits, and nothing else of a gateway. Warm: instances are \
    reused, as the gateway does. Fresh: one for each decision. Bodies are not shown to the policy. Exit codes: 0 measured, \
    1 the policy failed, 2 usage, 64 bad policy or request."
)]
pub struct Bench {
    #[command(flatten)]
    module: Module,
    /// A raw HTTP/1.1 request, repeatable; several are asked about in turn
    #[arg(long = "request", value_name = "FILE", num_args = 1.., required = true)]
    requests: Vec<PathBuf>,
    /// How long each of the two measurements takes
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = super::time)]
    time: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// The policy engine cannot be made.
pub fn run(args: Bench) -> anyhow::Result<ExitCode> {
    let mut requests = Vec::new();
    for path in &args.requests {
        match RequestFile::read(path) {
            Ok(file) => requests.push(file.request),
            Err(error) => return Ok(super::test::bad_request(&error)),
        }
    }
    let engine = Engine::new(1)?;
    let options = args.module.options(None);
    // What the gateway logs by default is part of what a decision costs.
    let (measured, _) = capture(tracing::Level::INFO, || Speeds::measure(&engine, &options, &requests, args.time));
    let speeds = match measured {
        Ok(Ok(speeds)) => speeds,
        Ok(Err(error)) => anyhow::bail!("{}: {error}", args.module.module.display()),
        Err(error) => return Ok(args.module.refused(&error)),
    };
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    if args.json {
        let object = |speed: Speed| {
            json!({
                "decisions_per_s": speed.decisions_per_s.round(),
                "decisions": speed.decisions,
                "p50_ns": nanos(speed.p50),
                "p99_ns": nanos(speed.p99),
            })
        };
        print(&json!({"warm": object(speeds.warm), "fresh": object(speeds.fresh)}).to_string());
    } else {
        for (name, speed) in [("warm", speeds.warm), ("fresh", speeds.fresh)] {
            let per_s = speed.decisions_per_s.round();
            print(&format!("{name:<5}  {per_s:>9} decisions/s   p50 {:?}   p99 {:?}", speed.p50, speed.p99));
        }
    }
    Ok(ExitCode::SUCCESS)
}
