//! Build script: lists the templates of `baton policy new` for the compiler, as `policies/templates/README.md` has it.
//!
//! A language whose folder is not there is not in the list. A file that a manifest names and that is not there fails the
//! build.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// Languages, as `--lang` has them.
const LANGUAGES: [&str; 6] = ["rust", "go", "assemblyscript", "c", "javascript", "python"];
/// What a build leaves behind.
const LEFT_BEHIND: [&str; 5] = ["target", "node_modules", "build", "__pycache__", ".venv"];

/// Where each file goes in the project, and where it comes from.
type Files = BTreeMap<String, PathBuf>;

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=src/cli/policy/embed.rs");
    if env::var_os("CARGO_FEATURE_GATEWAY").is_none() {
        return Ok(());
    }
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let templates = root.join("policies/templates");
    println!("cargo::rerun-if-changed={}", templates.display());
    let mut out = String::from("&[\n");
    for language in LANGUAGES.iter().filter(|language| templates.join(language).join("manifest").exists()) {
        let mut files = Files::new();
        add(&templates.join("common"), "", &mut files)?;
        add(&templates.join(language), "", &mut files)?;
        let manifest = files.remove("manifest").expect("it was seen");
        for line in fs::read_to_string(&manifest)?.lines() {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            if let (Some(from), Some(into)) = (words.next(), words.next()) {
                let from = root.join(from);
                println!("cargo::rerun-if-changed={}", from.display());
                assert!(from.exists(), "{} names {}, which is not there", manifest.display(), from.display());
                add(&from, into, &mut files)?;
            }
        }
        writeln!(out, "({language:?}, &[").expect("a String takes everything");
        for (into, from) in files {
            let runs = fs::metadata(&from)?.permissions().mode() & 0o100 != 0;
            writeln!(out, "    File {{ path: {into:?}, contents: include_bytes!({from:?}), runs: {runs} }},")
                .expect("a String takes everything");
        }
        out.push_str("]),\n");
    }
    out.push_str("]\n");
    fs::write(Path::new(&env::var_os("OUT_DIR").expect("cargo sets it")).join("templates.rs"), out)
}

/// Adds a file as `into`, or all files of a folder below it.
fn add(from: &Path, into: &str, files: &mut Files) -> io::Result<()> {
    if !from.is_dir() {
        files.insert(into.to_owned(), from.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name().into_string().expect("names of files are text");
        if LEFT_BEHIND.contains(&name.as_str()) || name.ends_with(".wasm") {
            continue;
        }
        let below = if into.is_empty() { name } else { format!("{into}/{name}") };
        add(&entry.path(), &below, files)?;
    }
    Ok(())
}
