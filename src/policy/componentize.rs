//! Any module to a component: text is assembled, a core module is wrapped, a component stays as it is.
//!
//! A core module exports hooks by their names in `wit/policy.wit` with `_` for `-` (`on_request`, `configure`), or by
//! their canonical names; a function that frees a hook's result has `_post` behind its hook's name, or is called
//! `cabi_post_…` canonically. It imports by canonical names. The world that it is wrapped with is cut to what it
//! exports, down to single functions of `lifecycle`. Strings are UTF-8, unless the module exports something called
//! `baton_utf16`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use wasmparser::{Encoding, ExternalKind, Parser, Payload};
use wit_component::{ComponentEncoder, StringEncoding};
use wit_parser::{Resolve, WorldId, WorldItem, WorldKey};

use super::error::{LoadError, Stage};

/// The interface that every policy exports.
pub(super) const REQUEST_HOOK: &str = "baton:policy/request-hook@0.1.0";
/// `configure`, `on-tick`, `self-test`.
pub(super) const LIFECYCLE: &str = "baton:policy/lifecycle@0.1.0";

/// Begins every binary, component or core module.
const MAGIC: &[u8] = b"\0asm";
/// A module that exports this passes strings as UTF-16, as AssemblyScript has them.
pub(super) const UTF16_MARK: &str = "baton_utf16";

/// `wit/policy.wit`, and in it the world with everything.
static CONTRACT: LazyLock<(Resolve, WorldId)> = LazyLock::new(|| {
    let mut resolve = Resolve::default();
    let package = resolve
        .push_str("policy.wit", include_str!("../../wit/policy.wit"))
        .expect("the contract is well-formed: bindings.rs is generated from the same file");
    let world = resolve.select_world(&[package], Some("policy-full")).expect("the contract has this world");
    (resolve, world)
});

/// Makes a component of what a file contains.
pub(super) fn componentize(file: &[u8]) -> Result<Vec<u8>, LoadError> {
    let binary = assemble_if_text(file)?;
    if Parser::is_component(&binary) {
        return Ok(binary);
    }
    let fault = |error: anyhow::Error| LoadError::new(Stage::Componentize, format!("{error:#}"));
    let core = Core::read(&binary).map_err(|error| LoadError::new(Stage::Componentize, error))?;
    core.check_imports()?;
    let module = if core.has_contract { binary } else { core.embed_contract()? };
    ComponentEncoder::default().validate(true).module(&module).map_err(fault)?.encode().map_err(fault)
}

/// The binary that a file is, or is the text of.
pub(super) fn assemble_if_text(file: &[u8]) -> Result<Vec<u8>, LoadError> {
    if file.starts_with(MAGIC) { Ok(file.to_vec()) } else { assemble(file) }
}

fn assemble(file: &[u8]) -> Result<Vec<u8>, LoadError> {
    if file.is_empty() {
        return Err(LoadError::new(Stage::Text, "the file is empty"));
    }
    let text = std::str::from_utf8(file)
        .map_err(|_| LoadError::new(Stage::Text, "neither WebAssembly (\\0asm) nor text (UTF-8)"))?;
    wat::parse_str(text).map_err(|error| LoadError::new(Stage::Text, error))
}

/// What matters of a core module here.
struct Core<'a> {
    binary: &'a [u8],
    imports: Vec<(&'a str, &'a str)>,
    exports: BTreeSet<&'a str>,
    /// A toolchain has written the contract into it already, and has named its exports accordingly.
    has_contract: bool,
}

impl<'a> Core<'a> {
    fn read(binary: &'a [u8]) -> wasmparser::Result<Self> {
        let mut core = Self { binary, imports: Vec::new(), exports: BTreeSet::new(), has_contract: false };
        for payload in Parser::new(0).parse_all(binary) {
            match payload? {
                Payload::Version { encoding: Encoding::Component, .. } => {
                    unreachable!("components are told apart by the caller")
                }
                Payload::ImportSection(section) => {
                    for import in section.into_imports() {
                        let import = import?;
                        core.imports.push((import.module, import.name));
                    }
                }
                Payload::ExportSection(section) => {
                    for export in section {
                        core.exports.insert(export?.name);
                    }
                }
                Payload::CustomSection(section) => core.has_contract |= section.name().starts_with("component-type"),
                _ => {}
            }
        }
        Ok(core)
    }

    /// Refuses what cannot be wrapped; whether an interface of the contract is offered is looked at in the component.
    fn check_imports(&self) -> Result<(), LoadError> {
        let (resolve, world) = &*CONTRACT;
        for &(module, name) in &self.imports {
            let known = resolve.worlds[*world].imports.iter().find(|(key, _)| resolve.name_world_key(key) == module);
            let refuse =
                |remedy: &str| Err(LoadError::new(Stage::Imports, format!("imports {module}.{name}: {remedy}")));
            match (module, known) {
                (_, Some((_, WorldItem::Interface { id, .. }))) => {
                    if !resolve.interfaces[*id].functions.contains_key(name) {
                        return refuse("wit/policy.wit has the interface, but not that function");
                    }
                }
                ("env", _) if name == "abort" => {
                    return refuse("compile with --use abort=… and a function of your own (AssemblyScript)");
                }
                (wasi, _) if wasi.starts_with("wasi") => return refuse(WASI_REMEDY),
                _ if self.has_contract => {}
                _ => {
                    return refuse(
                        "the gateway offers the interfaces of wit/policy.wit only, by their canonical names",
                    );
                }
            }
        }
        Ok(())
    }

    /// The module with canonical export names and the contract, cut to what it exports, in a section of its own.
    fn embed_contract(&self) -> Result<Vec<u8>, LoadError> {
        let (mut resolve, world) = CONTRACT.clone();
        let mut canonical_names = BTreeMap::new();
        let mut interfaces = Vec::new();
        for (key, item) in &resolve.worlds[world].exports {
            let WorldItem::Interface { id, .. } = item else { continue };
            let interface = resolve.name_world_key(key);
            let mut present = BTreeSet::new();
            for function in resolve.interfaces[*id].functions.values() {
                let canonical = function.legacy_core_export_name(Some(&interface)).into_owned();
                let friendly = function.name.replace('-', "_");
                if self.exports.contains(&*friendly) && self.exports.contains(&*canonical) {
                    return Err(LoadError::new(
                        Stage::Exports,
                        format!("exports {friendly} and {canonical}, which are the same hook"),
                    ));
                }
                if self.exports.contains(&*friendly) || self.exports.contains(&*canonical) {
                    present.insert(function.name.clone());
                }
                canonical_names.insert(format!("{friendly}_post"), format!("cabi_post_{canonical}"));
                canonical_names.insert(friendly, canonical);
            }
            interfaces.push((key.clone(), *id, present));
        }
        for (key, id, present) in interfaces {
            resolve.interfaces[id].functions.retain(|name, _| present.contains(name));
            if present.is_empty() {
                resolve.worlds[world].exports.shift_remove(&key);
            }
        }
        if !resolve.worlds[world].exports.keys().any(|key| is_request_hook(&resolve, key)) {
            let found = self.exports.iter().copied().collect::<Vec<_>>().join(", ");
            return Err(no_request_hook(&found));
        }
        let mut module = self.rename(&canonical_names).map_err(|error| LoadError::new(Stage::Componentize, error))?;
        let encoding = if self.exports.contains(UTF16_MARK) { StringEncoding::UTF16 } else { StringEncoding::UTF8 };
        wit_component::embed_component_metadata(&mut module, &resolve, world, encoding)
            .map_err(|error| LoadError::new(Stage::Componentize, format!("{error:#}")))?;
        Ok(module)
    }

    fn rename(&self, names: &BTreeMap<String, String>) -> wasmparser::Result<Vec<u8>> {
        let mut module = wasm_encoder::Module::new();
        for payload in Parser::new(0).parse_all(self.binary) {
            let payload = payload?;
            if let Payload::ExportSection(section) = &payload {
                let mut exports = wasm_encoder::ExportSection::new();
                for export in section.clone() {
                    let export = export?;
                    let renamed = (export.kind == ExternalKind::Func).then(|| names.get(export.name)).flatten();
                    exports.export(renamed.map_or(export.name, String::as_str), export.kind.into(), export.index);
                }
                module.section(&exports);
            } else if let Some((id, range)) = payload.as_section() {
                module.section(&wasm_encoder::RawSection { id, data: &self.binary[range] });
            }
        }
        Ok(module.finish())
    }
}

/// The only thing that a policy has to have.
pub(super) fn no_request_hook(found: &str) -> LoadError {
    let found = if found.is_empty() { "nothing" } else { found };
    LoadError::new(
        Stage::Exports,
        format!("exports neither on_request nor {REQUEST_HOOK}, which every policy needs; it exports {found}"),
    )
}

/// What to do about imports from WASI.
pub(super) const WASI_REMEDY: &str = "this version of the gateway offers no WASI; \
    build for a target without it (Rust: wasm32-unknown-unknown)";

fn is_request_hook(resolve: &Resolve, key: &WorldKey) -> bool {
    resolve.name_world_key(key) == REQUEST_HOOK
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        componentize(text.as_bytes()).expect_err("it is refused").to_string()
    }

    const REQUEST: &str = r#"(memory (export "memory") 1) (func (export "on_request") (result i32) i32.const 0)"#;

    #[test]
    fn what_is_no_module_is_told_so() {
        assert_eq!(refused(""), "text: the file is empty");
        assert!(refused("hello").starts_with("text: "));
        assert!(refused("(module (func").starts_with("text: "));
        let error = componentize(b"\xFF\xFE").expect_err("neither text nor binary");
        assert_eq!(error.stage(), Stage::Text);
        let error = componentize(b"\0asm\x01\0\0\0\x01\xFF").expect_err("cut off");
        assert_eq!(error.stage(), Stage::Componentize);
    }

    #[test]
    fn the_wrong_world_is_told_what_is_missing_and_what_was_found() {
        let said = refused(r#"(module (memory (export "memory") 1) (func (export "other")))"#);
        assert!(said.contains("neither on_request nor baton:policy/request-hook@0.1.0"), "{said}");
        assert!(said.contains("it exports memory, other"), "{said}");
    }

    #[test]
    fn imports_that_nobody_offers_are_named_with_a_remedy() {
        let said = refused(&format!(r#"(module (import "env" "abort" (func)) {REQUEST})"#));
        assert!(said.starts_with("imports: imports env.abort: compile with --use abort="), "{said}");
        let said = refused(&format!(r#"(module (import "wasi_snapshot_preview1" "fd_write" (func)) {REQUEST})"#));
        assert!(said.starts_with("imports: imports wasi_snapshot_preview1.fd_write: this version"), "{said}");
        let said = refused(&format!(r#"(module (import "baton:policy/request@0.1.0" "nmae" (func)) {REQUEST})"#));
        assert!(said.contains("not that function"), "{said}");
        let said = refused(&format!(r#"(module (import "js" "mem" (func)) {REQUEST})"#));
        assert!(said.contains("the interfaces of wit/policy.wit only"), "{said}");
    }

    #[test]
    fn hooks_are_found_by_either_name_and_lifecycle_function_by_function() {
        let exports = |text: String| -> Vec<String> {
            let component = componentize(text.as_bytes()).expect("it can be wrapped");
            let mut names = Vec::new();
            for payload in Parser::new(0).parse_all(&component) {
                if let Payload::ComponentExportSection(section) = payload.expect("well-formed") {
                    names.extend(section.into_iter().map(|export| export.expect("well-formed").name.name.to_owned()));
                }
            }
            names
        };
        assert!(exports(format!("(module {REQUEST})")).contains(&REQUEST_HOOK.to_owned()));
        let canonical = REQUEST.replace("on_request", "baton:policy/request-hook@0.1.0#on-request");
        assert!(exports(format!("(module {canonical})")).contains(&REQUEST_HOOK.to_owned()));
        let found = exports(format!(r#"(module {REQUEST} (func (export "self_test") (result i32) i32.const 0))"#));
        assert!(found.contains(&LIFECYCLE.to_owned()), "{found:?}");
    }

    #[test]
    fn a_hook_under_both_names_is_refused() {
        let both = format!("{REQUEST} (export \"{REQUEST_HOOK}#on-request\" (func 0))");
        assert!(refused(&format!("(module {both})")).contains("the same hook"));
    }
}
