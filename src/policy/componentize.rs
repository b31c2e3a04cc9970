//! Any module to a component: text is assembled, a core module is wrapped, a component stays as it is.
//!
//! A core module exports hooks by their names in `wit/policy.wit` with `_` for `-` (`on_request`, `configure`), or by
//! their canonical names; a function that frees a hook's result has `_post` behind its hook's name, or is called
//! `cabi_post_…` canonically. It imports by canonical names. The world that it is wrapped with is cut to what it
//! exports, down to single functions of `lifecycle`. Strings are UTF-8, unless the module exports something called
//! `baton_utf16`.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use wasmparser::{ExternalKind, Parser, Validator, WasmFeatures};
use wit_component::{ComponentEncoder, StringEncoding};
use wit_parser::{Resolve, WorldId, WorldItem, WorldKey};

use super::core::{Core, Import};
use super::error::{LoadError, Stage};
use super::preview1;

/// A line of the text that is shown with what is wrong with it.
const QUOTED_BYTES_MAX: usize = 256;

/// The interface that every policy exports.
pub(super) const REQUEST_HOOK: &str = "baton:policy/request-hook@0.1.0";
/// `configure`, `on-tick`, `self-test`.
pub(super) const LIFECYCLE: &str = "baton:policy/lifecycle@0.1.0";

/// Begins every binary, component or core module.
const MAGIC: &[u8] = b"\0asm";
/// A module that exports this passes strings as UTF-16, as AssemblyScript has them.
pub(super) const UTF16_MARK: &str = "baton_utf16";

/// All that there is: what of it is offered, the engine says.
const FEATURES: WasmFeatures = WasmFeatures::all();

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
    let malformed = |error| LoadError::new(Stage::Componentize, error);
    Validator::new_with_features(FEATURES).validate_all(&binary).map_err(malformed)?;
    let core = Core::read(&binary).map_err(malformed)?;
    check_imports(&core)?;
    let uses_wasi = core.imports.iter().any(|import| import.module == preview1::MODULE);
    let mut module = if core.has_contract { Cow::Borrowed(&binary) } else { Cow::Owned(embed_contract(&core)?) };
    check_kind(&core)?;
    let mut encoder = ComponentEncoder::default().validate(true);
    if uses_wasi {
        module = Cow::Owned(Core::read(&module).and_then(|core| core.guarded()).map_err(malformed)?);
        encoder = encoder.adapter(preview1::MODULE, &preview1::ADAPTER).map_err(fault)?;
    }
    encoder.module(&module).and_then(|mut encoder| encoder.encode()).map_err(fault)
}

fn fault(error: anyhow::Error) -> LoadError {
    let said = format!("{error:#}");
    let remedy = if said.contains("does not export a function named `cabi_realloc`") {
        "; a policy that takes strings or lists exports it: (old, old-size, align, new-size) -> address, all i32"
    } else {
        ""
    };
    LoadError::new(Stage::Componentize, format!("{said}{remedy}"))
}

/// The binary that a file is, or is the text of.
pub(super) fn assemble_if_text(file: &[u8]) -> Result<Vec<u8>, LoadError> {
    if file.starts_with(MAGIC) { Ok(file.to_vec()) } else { assemble(file) }
}

fn assemble(file: &[u8]) -> Result<Vec<u8>, LoadError> {
    if file.is_empty() {
        return Err(LoadError::new(Stage::Text, "the file is empty"));
    }
    let text = std::str::from_utf8(file).ok().filter(|text| !text.contains('\0'));
    let text = text.ok_or_else(|| LoadError::new(Stage::Text, "neither WebAssembly (\\0asm) nor text (UTF-8)"))?;
    wat::parse_str(text).map_err(|error| {
        let said = error.to_string();
        // The line that is quoted may be as long as the file; the lines before it say what and where.
        let is_short = |line: &&str| line.len() <= QUOTED_BYTES_MAX;
        let said = if said.lines().all(|line| is_short(&line)) {
            said
        } else {
            said.lines().take(2).filter(is_short).collect::<Vec<_>>().join(" ")
        };
        LoadError::new(Stage::Text, said)
    })
}

/// Refuses what cannot be wrapped; whether an interface of the contract is offered is looked at in the component.
fn check_imports(core: &Core<'_>) -> Result<(), LoadError> {
    let (resolve, world) = &*CONTRACT;
    let named = |module: &str| {
        let mut items = resolve.worlds[*world].imports.iter();
        items.find_map(|(key, item)| match item {
            WorldItem::Interface { id, .. } if resolve.name_world_key(key) == module => Some(*id),
            _ => None,
        })
    };
    for &Import { module, name } in &core.imports {
        let remedy = match (module, named(module)) {
            (_, Some(interface)) if resolve.interfaces[interface].functions.contains_key(name) => continue,
            (_, Some(_)) => "wit/policy.wit has the interface, but not that function",
            (preview1::MODULE, _) if preview1::has(name) => continue,
            (preview1::MODULE, _) => "WASI preview 1 has no such function",
            ("env", _) if name == "abort" => "compile with --use abort=… and a function of your own (AssemblyScript)",
            ("env", _) if name == "seed" => "compile with --use seed=… and a function of your own (AssemblyScript)",
            ("env", _) if name == "memory" => {
                "a policy has its own memory; compile without --import-memory (AssemblyScript: --importMemory)"
            }
            ("env", _) => {
                "nobody defines it: link the library that has it (Emscripten: -sSTANDALONE_WASM, and no JavaScript)"
            }
            ("gojs" | "go", _) => "build with GOOS=wasip1, not js",
            _ if module.contains("wbindgen") || module == "wbg" || name.starts_with("__wb") => {
                "wasm-bindgen is for browsers; use wit-bindgen with wit/policy.wit"
            }
            ("wasi_unstable", _) => WASI_REMEDY,
            _ if module.starts_with("baton:policy/") => match module.split_once('@') {
                Some((_, "0.1.0")) => "wit/policy.wit has no such interface",
                _ => VERSION_REMEDY,
            },
            // What its own contract names is looked at in the component.
            _ if core.has_contract => continue,
            _ if module.starts_with("wasi") => WASI_REMEDY,
            _ => FOREIGN_REMEDY,
        };
        return Err(LoadError::new(Stage::Imports, format!("imports {module}.{name}: {remedy}")));
    }
    Ok(())
}

/// Refuses what no component can be made of, by what a toolchain has to be told.
fn check_kind(core: &Core<'_>) -> Result<(), LoadError> {
    let refuse = |reason: &str| Err(LoadError::new(Stage::Componentize, reason));
    if core.memories.iter().any(|memory| memory.shared) {
        return refuse("its memory is shared: compile without threads and atomics");
    }
    if core.memories.iter().any(|memory| memory.memory64) {
        return refuse("its memory has addresses of 64 bits: compile for wasm32");
    }
    if core.exports_function("_start") && !core.exports_function("_initialize") {
        return refuse(
            "it exports _start, which would end before the first request: compile a reactor, which exports _initialize \
             (C: -mexec-model=reactor, Go: -buildmode=c-shared, Rust: crate-type = [\"cdylib\"])",
        );
    }
    if !core.has_contract && !core.exports.get("memory").is_some_and(|(kind, _)| *kind == ExternalKind::Memory) {
        return refuse("it exports no memory under the name `memory` (wasm-ld: without --no-export-memory)");
    }
    Ok(())
}

/// The module with canonical export names and the contract, cut to what it exports, in a section of its own.
fn embed_contract(core: &Core<'_>) -> Result<Vec<u8>, LoadError> {
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
            if core.exports_function(&friendly) && core.exports_function(&canonical) {
                return Err(LoadError::new(
                    Stage::Exports,
                    format!("exports {friendly} and {canonical}, which are the same hook"),
                ));
            }
            if core.exports_function(&friendly) || core.exports_function(&canonical) {
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
        let found = core.exports.keys().copied().collect::<Vec<_>>().join(", ");
        return Err(no_request_hook(&found));
    }
    let mut module = core.renamed(&canonical_names).map_err(|error| LoadError::new(Stage::Componentize, error))?;
    let encoding = if core.exports.contains_key(UTF16_MARK) { StringEncoding::UTF16 } else { StringEncoding::UTF8 };
    wit_component::embed_component_metadata(&mut module, &resolve, world, encoding).map_err(fault)?;
    Ok(module)
}

/// The only thing that a policy has to have.
pub(super) fn no_request_hook(found: &str) -> LoadError {
    let found = if found.is_empty() { "nothing" } else { found };
    LoadError::new(
        Stage::Exports,
        format!("exports neither on_request nor {REQUEST_HOOK}, which every policy needs; it exports {found}"),
    )
}

/// What to do about imports of WASI in a version that is not there.
pub(super) const WASI_REMEDY: &str = "of WASI the gateway offers 0.2 to components and preview 1 (wasi_snapshot_preview1) to core modules; build for one";
/// What to do about imports of the contract in another version.
pub(super) const VERSION_REMEDY: &str =
    "this version of the gateway speaks baton:policy@0.1.0; build against its wit/policy.wit";
/// What to do about imports of anything else.
pub(super) const FOREIGN_REMEDY: &str =
    "the gateway offers WASI and the interfaces of wit/policy.wit, by their canonical names, and nothing else";

fn is_request_hook(resolve: &Resolve, key: &WorldKey) -> bool {
    resolve.name_world_key(key) == REQUEST_HOOK
}

#[cfg(test)]
mod tests {
    use wasmparser::{CanonicalFunction, CanonicalOption, Payload};
    use wit_parser::IndexMap;
    use wit_parser::abi::{AbiVariant, WasmType};

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
        let check = |module: &str, name: &str, remedy: &str| {
            let said = refused(&format!(r#"(module (import "{module}" "{name}" (func)) {REQUEST})"#));
            assert!(said.starts_with(&format!("imports: imports {module}.{name}: ")), "{said}");
            assert!(said.contains(remedy), "{said}");
        };
        check("env", "abort", "compile with --use abort=…");
        check("env", "seed", "compile with --use seed=…");
        check("env", "emscripten_notify_memory_growth", "-sSTANDALONE_WASM");
        check("gojs", "runtime.wasmExit", "GOOS=wasip1");
        check("./policy_bg.js", "__wbindgen_throw", "use wit-bindgen");
        check("__wbindgen_placeholder__", "__wbindgen_describe", "use wit-bindgen");
        check("wbg", "__wbg_now", "use wit-bindgen");
        check("wasi_unstable", "fd_write", "preview 1");
        check("wasi_snapshot_preview1", "fd_wirte", "no such function");
        check("wasi:clocks/wall-clock@0.3.0", "now", "0.2 to components");
        check("baton:policy/request@0.1.0", "nmae", "not that function");
        check("baton:policy/requests@0.1.0", "name", "no such interface");
        check("baton:policy/request@0.2.0", "path", "speaks baton:policy@0.1.0");
        check("js", "mem", "the interfaces of wit/policy.wit");
        let said = refused(&format!(r#"(module (import "env" "memory" (memory 1)) {REQUEST})"#));
        assert!(said.contains("imports env.memory: a policy has its own memory; compile without"), "{said}");
    }

    #[test]
    fn what_no_component_can_be_made_of_is_told_what_to_compile() {
        let check = |text: &str, remedy: &str| {
            let said = refused(&format!("(module {text})"));
            assert!(said.starts_with("componentize: ") && said.contains(remedy), "{said}");
        };
        let hook = r#"(func (export "on_request") (result i32) i32.const 0)"#;
        check(hook, "exports no memory under the name `memory`");
        check(&format!(r#"(memory 1) (export "memory" (func 0)) {hook}"#), "exports no memory");
        check(&format!(r#"(memory (export "memory") 1 1 shared) {hook}"#), "without threads");
        check(&format!(r#"(memory (export "memory") i64 1) {hook}"#), "compile for wasm32");
        check(&format!(r#"{REQUEST} (func (export "_start"))"#), "compile a reactor");
        let path = r#"(import "baton:policy/request@0.1.0" "path" (func (param i32)))"#;
        check(&format!("{path} {REQUEST}"), "`cabi_realloc`; a policy that takes strings or lists exports it: (old, ");
        // It may be wrong in any manner: nothing of it is looked at before it is found to be valid.
        check(&format!(r#"{REQUEST} (func (export "cabi_realloc") (result i32) i64.const 0)"#), "type mismatch");
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

    /// Every hook under its friendly name and every import, as the contract has them, in one module.
    #[test]
    fn the_whole_contract_can_be_wrapped_by_friendly_names_in_either_encoding() {
        let (resolve, world) = &*CONTRACT;
        let types = |types: &[WasmType]| -> String {
            let name = |of: &WasmType| match of {
                WasmType::I64 | WasmType::PointerOrI64 => " i64",
                WasmType::F32 => " f32",
                WasmType::F64 => " f64",
                WasmType::I32 | WasmType::Length | WasmType::Pointer => " i32",
            };
            types.iter().map(name).collect()
        };
        let functions = |items: &IndexMap<WorldKey, WorldItem>| -> Vec<(String, wit_parser::Function)> {
            let mut all = Vec::new();
            for (key, item) in items {
                let WorldItem::Interface { id, .. } = item else { continue };
                let functions = resolve.interfaces[*id].functions.values();
                all.extend(functions.map(|function| (resolve.name_world_key(key), function.clone())));
            }
            all
        };
        let mut text = String::new();
        for (interface, function) in functions(&resolve.worlds[*world].imports) {
            let signature = resolve.wasm_signature(AbiVariant::GuestImport, &function);
            let (params, results) = (types(&signature.params), types(&signature.results));
            let name = &function.name;
            text += &format!("(import \"{interface}\" \"{name}\" (func (param{params}) (result{results})))\n");
        }
        let mut hooks = Vec::new();
        for (interface, function) in functions(&resolve.worlds[*world].exports) {
            let signature = resolve.wasm_signature(AbiVariant::GuestExport, &function);
            let (params, results) = (types(&signature.params), types(&signature.results));
            let name = function.name.replace('-', "_");
            text += &format!("(func (export \"{name}\") (param{params}) (result{results}) unreachable)\n");
            if signature.retptr {
                text += &format!("(func (export \"{name}_post\") (param{results}))\n");
            }
            hooks.push((interface, function.name));
        }
        assert_eq!(hooks.len(), 8, "{hooks:?}");
        text += r#"(memory (export "memory") 1)
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) unreachable)"#;
        for mark in ["", r#"(global (export "baton_utf16") i32 (i32.const 1))"#] {
            let component = componentize(format!("(module {text} {mark})").as_bytes()).expect("it can be wrapped");
            let wit_component::DecodedWasm::Component(found, world) =
                wit_component::decode(&component).expect("it is a component")
            else {
                panic!("not a component");
            };
            let names = |items: &IndexMap<WorldKey, WorldItem>| -> BTreeSet<String> {
                items.keys().map(|key| found.name_world_key(key)).collect()
            };
            let (imports, exports) = (names(&found.worlds[world].imports), names(&found.worlds[world].exports));
            assert!(hooks.iter().all(|(interface, _)| exports.contains(interface)), "{exports:?}");
            for key in resolve.worlds[CONTRACT.1].imports.keys() {
                assert!(imports.contains(&resolve.name_world_key(key)), "{imports:?}");
            }
            let mut encodings = BTreeSet::new();
            for payload in Parser::new(0).parse_all(&component) {
                let Payload::ComponentCanonicalSection(section) = payload.expect("well-formed") else { continue };
                for function in section {
                    if let CanonicalFunction::Lift { options, .. } = function.expect("well-formed") {
                        encodings.insert(options.contains(&CanonicalOption::UTF16));
                    }
                }
            }
            assert!(encodings.contains(&!mark.is_empty()) && !(mark.is_empty() && encodings.len() > 1));
        }
    }

    #[test]
    fn a_hook_under_both_names_is_refused() {
        let both = format!("{REQUEST} (export \"{REQUEST_HOOK}#on-request\" (func 0))");
        assert!(refused(&format!("(module {both})")).contains("the same hook"));
    }
}
