//! `baton`: arguments, log, command, exit code.

use std::process::ExitCode;

use baton::cli;
use clap::{CommandFactory as _, Parser};

/// An HTTP front server that hands clients over to daemons, as WebAssembly policies decide.
///
/// Exit codes: 0 asked to stop, 1 failed while running, 2 usage, 64 bad configuration or policy.
/// Signals: TERM and INT drain, a second one cuts; HUP reloads; USR1 opens the access log again.
#[derive(Debug, Parser)]
#[command(name = "baton", version, disable_help_subcommand = true)]
struct Arguments {
    /// The form of the log on standard error
    #[arg(long, global = true, value_enum, default_value_t)]
    log_format: baton::log::Format,
    /// What is logged, as in info or info,policy=debug [default: BATON_LOG, else info, for check warn]
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Check(cli::check::Check),
    Completions(cli::completions::Completions),
    Demo(cli::demo::Demo),
    #[command(hide = true)]
    DemoDaemon(cli::demo::Daemon),
    Man(cli::completions::Man),
    Policy(cli::policy::Policy),
    Receive(cli::receive::Receive),
    #[command(hide = true)]
    ReceiveStart(cli::receive::Start),
    Run(cli::run::Run),
}

fn main() -> ExitCode {
    let Arguments { log_format, log_level, command } = Arguments::parse();
    // A check is silent when all is well, and an author's tools say themselves what there is to say.
    let usual = if matches!(command, Command::Check(_) | Command::Policy(_)) { "warn" } else { "info" };
    let watched = match &command {
        Command::Run(args) => args.watched(),
        _ => None,
    };
    let log = match &command {
        // It writes what it has to say itself, with what its programs say.
        Command::Receive(_) | Command::ReceiveStart(_) => None,
        _ => match baton::log::begin(log_format, log_level.as_deref(), usual, watched) {
            Ok(log) => Some(log),
            Err(error) => {
                eprintln!("baton: {error}");
                return ExitCode::from(2);
            }
        },
    };
    let result = match command {
        Command::Check(args) => cli::check::run(args),
        Command::Completions(args) => cli::completions::completions(args, Arguments::command()),
        Command::Demo(args) => cli::demo::run(args),
        Command::DemoDaemon(args) => cli::demo::daemon(args),
        Command::Man(args) => cli::completions::man(args, Arguments::command()),
        Command::Policy(args) => cli::policy::run(args),
        Command::Receive(args) => cli::receive::run(args),
        Command::ReceiveStart(args) => cli::receive::start(args),
        Command::Run(args) => cli::run::run(args),
    };
    drop(log);
    result.unwrap_or_else(|error| {
        eprintln!("baton: {error:#}");
        ExitCode::FAILURE
    })
}
