//! `baton check`: everything that can fail before the first client, tried.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::config::Config;
use crate::gateway::{Policies, load};
use crate::policy::Engine;

/// Reads the configuration, resolves it, loads and proves every policy. Silent when all is well.
#[derive(Debug, clap::Args)]
pub struct Check {
    /// The configuration [default: baton.toml here, else /etc/baton/baton.toml]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the configuration's JSON Schema instead
    #[arg(long, conflicts_with = "config")]
    schema: bool,
}

/// Runs the command.
///
/// # Errors
/// The policy engine cannot be made.
pub fn run(args: Check) -> anyhow::Result<ExitCode> {
    if args.schema {
        println!("{:#}", Config::schema());
        return Ok(ExitCode::SUCCESS);
    }
    let checked = match Config::read(&super::configuration(args.config)) {
        Ok(config) => load(config, &Engine::new(1)?, &Policies::new()),
        Err(faults) => Err(faults),
    };
    Ok(match checked {
        Ok(_) => ExitCode::SUCCESS,
        Err(faults) => super::faults(&faults),
    })
}
