//! `baton policy inspect`: what a module is, without running it.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use super::{bytes, print};
use crate::policy::{Engine, inspect};

/// Tells what a module exports, what it wants, and how large it is.
#[derive(Debug, clap::Args)]
pub struct Inspect {
    /// A component, a core module, or text (.wat)
    module: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// The policy engine cannot be made.
pub fn run(args: Inspect) -> anyhow::Result<ExitCode> {
    let name = args.module.display();
    let refused = |reason: &str| {
        crate::cli::say(&format!("baton: {name}: {reason}"));
        ExitCode::from(crate::cli::BAD_CONFIGURATION)
    };
    let file = match std::fs::read(&args.module) {
        Ok(file) => file,
        Err(error) => return Ok(refused(&format!("read: {error}"))),
    };
    let found = match inspect(&Engine::new(1)?, &file) {
        Ok(found) => found,
        Err(error) => return Ok(refused(&error.to_string())),
    };
    let sizes = found.sizes;
    if args.json {
        let object = json!({
            "language": found.language,
            "hooks": found.hooks,
            "imports": found.imports,
            "sizes": {
                "file": sizes.file,
                "code": sizes.code,
                "data": sizes.data,
                "memory_initial": sizes.memory_initial,
                "memory_max": sizes.memory_max,
            },
            "digest": found.digest.to_string(),
        });
        print(&object.to_string());
        return Ok(ExitCode::SUCCESS);
    }
    let most = sizes.memory_max.map_or_else(|| "as much as it may have".to_owned(), bytes);
    let imports = if found.imports.is_empty() { "nothing".to_owned() } else { found.imports.join(", ") };
    print(&format!(
        "{name}\n  language  {}\n  hooks     {}\n  imports   {imports}",
        found.language,
        found.hooks.join(", ")
    ));
    let (file, code, data) = (bytes(sizes.file as u64), bytes(sizes.code as u64), bytes(sizes.data as u64));
    print(&format!("  sizes     file {file}, code {code}, data {data}"));
    print(&format!("  memory    {} at the beginning, at most {most}", bytes(sizes.memory_initial)));
    print(&format!("  digest    {}", found.digest));
    Ok(ExitCode::SUCCESS)
}
