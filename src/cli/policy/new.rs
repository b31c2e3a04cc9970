//! `baton policy new`: a project that builds and has a test.
//!
//! The files are those of `policies/templates`, put into the program by `embed.rs` beside this file.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;

use super::{print, usage};

/// A file of a template.
struct File {
    /// Below the project's folder.
    path: &'static str,
    contents: &'static [u8],
    /// Whether it is a program.
    runs: bool,
}

/// Languages that this program has a template for, and the files of each.
static TEMPLATES: &[(&str, &[File])] = include!(concat!(env!("OUT_DIR"), "/templates.rs"));

/// Writes a policy project that builds and has a test.
#[derive(Debug, clap::Args)]
pub struct New {
    /// What it is written in
    #[arg(long, value_name = "LANG", value_enum)]
    lang: Language,
    /// Where it goes; the folder is made, or empty
    dir: PathBuf,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Language {
    Rust,
    Go,
    #[value(name = "assemblyscript")]
    AssemblyScript,
    C,
    #[value(name = "javascript")]
    JavaScript,
    Python,
}

/// Runs the command.
///
/// # Errors
/// A file cannot be written.
pub fn run(args: New) -> anyhow::Result<ExitCode> {
    let language = clap::ValueEnum::to_possible_value(&args.lang).map(|value| value.get_name().to_owned());
    let language = language.unwrap_or_default();
    let Some((_, files)) = TEMPLATES.iter().find(|(name, _)| *name == language) else {
        let known: Vec<_> = TEMPLATES.iter().map(|(name, _)| *name).collect();
        return Ok(usage(&format!(
            "this program was built without a template for {language}; it has {}",
            known.join(", ")
        )));
    };
    let dir = args.dir.display();
    match std::fs::read_dir(&args.dir) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                return Ok(usage(&format!("{dir} is not empty; name a folder that is new")));
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Ok(usage(&format!("{dir}: {error}"))),
    }
    for file in *files {
        write(&args.dir, file)?;
    }
    let own = files.iter().map(|file| file.path).filter(|path| !path.starts_with("cases/"));
    print(&format!("{dir}: a policy in {language}, {} files", files.len()));
    print(&format!("  {} cases/", own.collect::<Vec<_>>().join(" ")));
    print(&format!(
        "next:\n  cd {dir}\n  make test   # builds policy.wasm and runs its cases\n  make run    # a gateway that shows each decision"
    ));
    Ok(ExitCode::SUCCESS)
}

fn write(dir: &Path, file: &File) -> anyhow::Result<()> {
    let path = dir.join(file.path);
    let write = || {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&path, file.contents)?;
        if file.runs {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        }
        std::io::Result::Ok(())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
