//! `baton completions` and `baton man`: the command line told to shells and to `man`.

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap_complete::Shell;

/// Prints a shell's completions for this program.
#[derive(Debug, clap::Args)]
pub struct Completions {
    /// The shell
    shell: Shell,
}

/// Prints a manual page, for `man -l -`.
#[derive(Debug, clap::Args)]
pub struct Man {
    /// The command, as in `policy test` [default: the program as a whole]
    command: Vec<String>,
}

/// Prints completions for `program`.
///
/// # Errors
/// They cannot be written.
pub fn completions(args: Completions, mut program: clap::Command) -> anyhow::Result<ExitCode> {
    let mut out = Vec::new();
    clap_complete::generate(args.shell, &mut program, "baton", &mut out);
    write(&out)
}

/// Prints the manual page of `program`, or of one of its commands.
///
/// # Errors
/// It cannot be written.
pub fn man(args: Man, mut program: clap::Command) -> anyhow::Result<ExitCode> {
    // Gives each command its whole name.
    program.build();
    let mut command = &program;
    for name in &args.command {
        let Some(found) = command.get_subcommands().find(|c| c.get_name() == name && !c.is_hide_set()) else {
            super::say(&format!("baton: there is no command {:?}; see baton --help", args.command.join(" ")));
            return Ok(ExitCode::from(2));
        };
        command = found;
    }
    let mut out = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut out)?;
    write(&out)
}

/// Whoever reads may have seen enough: that is no failure.
fn write(out: &[u8]) -> anyhow::Result<ExitCode> {
    match io::stdout().write_all(out) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}
