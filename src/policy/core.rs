//! A core module as the file has it: what it imports and exports, and how it is rewritten for being wrapped.

use std::collections::BTreeMap;

use wasm_encoder::Encode as _;
use wasmparser::{BinaryReader, Encoding, ExternalKind, MemoryType, Parser, Payload, TypeRef};

/// Exported from a module whose allocations are guarded: whether one is under way.
const INSIDE: &str = "baton_inside";
/// `(mut i32) (i32.const 0)`.
const INSIDE_GLOBAL: [u8; 5] = [0x7F, 0x01, 0x41, 0x00, 0x0B];

/// What matters of a core module here.
pub(super) struct Core<'a> {
    binary: &'a [u8],
    pub(super) imports: Vec<Import<'a>>,
    pub(super) exports: BTreeMap<&'a str, (ExternalKind, u32)>,
    /// A toolchain has written the contract into it already, and has named its exports accordingly.
    pub(super) has_contract: bool,
    /// Of its own, or imported.
    pub(super) memories: Vec<MemoryType>,
    /// Number of parameters, by type.
    parameters: Vec<usize>,
    /// Type by function, imported ones first.
    functions: Vec<u32>,
    global_count: u32,
    has_globals: bool,
}

/// Something that a module wants from outside.
pub(super) struct Import<'a> {
    pub(super) module: &'a str,
    pub(super) name: &'a str,
}

impl<'a> Core<'a> {
    /// Reads it; whether it is valid, the compiler will say.
    pub(super) fn read(binary: &'a [u8]) -> wasmparser::Result<Self> {
        let mut core = Self {
            binary,
            imports: Vec::new(),
            exports: BTreeMap::new(),
            has_contract: false,
            memories: Vec::new(),
            parameters: Vec::new(),
            functions: Vec::new(),
            global_count: 0,
            has_globals: false,
        };
        for payload in Parser::new(0).parse_all(binary) {
            match payload? {
                Payload::Version { encoding: Encoding::Component, .. } => {
                    unreachable!("components are told apart by the caller")
                }
                Payload::TypeSection(section) => {
                    for group in section {
                        for sub in group?.into_types() {
                            let function = match &sub.composite_type.inner {
                                wasmparser::CompositeInnerType::Func(function) => function.params().len(),
                                _ => 0,
                            };
                            core.parameters.push(function);
                        }
                    }
                }
                Payload::ImportSection(section) => {
                    for import in section.into_imports() {
                        let import = import?;
                        match import.ty {
                            TypeRef::Func(of) | TypeRef::FuncExact(of) => core.functions.push(of),
                            TypeRef::Global(_) => core.global_count += 1,
                            TypeRef::Memory(memory) => core.memories.push(memory),
                            TypeRef::Table(_) | TypeRef::Tag(_) => {}
                        }
                        core.imports.push(Import { module: import.module, name: import.name });
                    }
                }
                Payload::FunctionSection(section) => {
                    for of in section {
                        core.functions.push(of?);
                    }
                }
                Payload::MemorySection(section) => {
                    for memory in section {
                        core.memories.push(memory?);
                    }
                }
                Payload::GlobalSection(section) => {
                    core.global_count += section.count();
                    core.has_globals = true;
                }
                Payload::ExportSection(section) => {
                    for export in section {
                        let export = export?;
                        core.exports.insert(export.name, (export.kind, export.index));
                    }
                }
                Payload::CustomSection(section) => core.has_contract |= section.name().starts_with("component-type"),
                _ => {}
            }
        }
        Ok(core)
    }

    pub(super) fn exports_function(&self, name: &str) -> bool {
        self.exports.get(name).is_some_and(|(kind, _)| *kind == ExternalKind::Func)
    }

    /// The module with other names for some of its exported functions.
    pub(super) fn renamed(&self, names: &BTreeMap<String, String>) -> wasmparser::Result<Vec<u8>> {
        self.rewritten(names, &[])
    }

    /// The module with a global `baton_inside`, which is 1 while an exported function runs in which nothing may be
    /// imported: one that allocates for the host, or that frees what it was given.
    pub(super) fn guarded(&self) -> wasmparser::Result<Vec<u8>> {
        let is_guarded = |name: &str| {
            matches!(name, "cabi_realloc" | "canonical_abi_realloc" | "cm32p2_realloc")
                || name.starts_with("cabi_post_")
        };
        let functions = self.exports.iter().filter(|(name, (kind, _))| *kind == ExternalKind::Func && is_guarded(name));
        let guarded: Vec<_> = functions.map(|(name, (_, index))| (*name, *index)).collect();
        self.rewritten(&BTreeMap::new(), &[Guard { inside: self.global_count, guarded }])
    }

    fn rewritten(&self, names: &BTreeMap<String, String>, guard: &[Guard<'_>]) -> wasmparser::Result<Vec<u8>> {
        let guard = guard.first();
        let mut module = wasm_encoder::Module::new();
        for payload in Parser::new(0).parse_all(self.binary) {
            let payload = payload?;
            if let Payload::ExportSection(section) = &payload {
                if let (Some(_), false) = (guard, self.has_globals) {
                    let data = [&[1][..], &INSIDE_GLOBAL].concat();
                    module
                        .section(&wasm_encoder::RawSection { id: wasm_encoder::SectionId::Global.into(), data: &data });
                }
                let mut exports = wasm_encoder::ExportSection::new();
                for export in section.clone() {
                    let export = export?;
                    let renamed = (export.kind == ExternalKind::Func).then(|| names.get(export.name)).flatten();
                    let name = renamed.map_or(export.name, String::as_str);
                    let wrapper = guard.and_then(|guard| guard.wrapper(export.name, self.functions.len()));
                    exports.export(name, export.kind.into(), wrapper.unwrap_or(export.index));
                }
                if let Some(guard) = guard {
                    exports.export(INSIDE, wasm_encoder::ExportKind::Global, guard.inside);
                }
                module.section(&exports);
            } else if let Some((id, range)) = payload.as_section() {
                let data = &self.binary[range];
                let extended = match (&payload, guard) {
                    (Payload::FunctionSection(_), Some(guard)) => Some(guard.functions(&self.functions, data)?),
                    (Payload::GlobalSection(_), Some(_)) => Some(extended(data, 1, &INSIDE_GLOBAL)?),
                    (Payload::CodeSectionStart { .. }, Some(guard)) => Some(guard.code(self, data)?),
                    _ => None,
                };
                module.section(&wasm_encoder::RawSection { id, data: extended.as_deref().unwrap_or(data) });
            }
        }
        Ok(module.finish())
    }
}

/// What is added to a module whose allocations are guarded: behind everything that is there, so that no index changes.
struct Guard<'a> {
    /// The global.
    inside: u32,
    /// Exported functions by name and index. Each is called by a wrapper of the same type, which is exported instead.
    guarded: Vec<(&'a str, u32)>,
}

impl Guard<'_> {
    fn wrapper(&self, export: &str, functions: usize) -> Option<u32> {
        let at = self.guarded.iter().position(|(name, _)| *name == export)?;
        u32::try_from(functions + at).ok()
    }

    fn functions(&self, types: &[u32], section: &[u8]) -> wasmparser::Result<Vec<u8>> {
        let mut added = Vec::new();
        self.guarded.iter().for_each(|(_, index)| types[*index as usize].encode(&mut added));
        extended(section, self.guarded.len(), &added)
    }

    fn code(&self, core: &Core<'_>, section: &[u8]) -> wasmparser::Result<Vec<u8>> {
        let mut added = Vec::new();
        for (_, index) in &self.guarded {
            let mut body = wasm_encoder::Function::new([]);
            let mut code = body.instructions();
            code.i32_const(1).global_set(self.inside);
            let parameters = core.parameters[core.functions[*index as usize] as usize];
            (0..).take(parameters).for_each(|at| {
                code.local_get(at);
            });
            code.call(*index).i32_const(0).global_set(self.inside).end();
            body.encode(&mut added);
        }
        extended(section, self.guarded.len(), &added)
    }
}

/// A section, which begins with a count, and more of what it holds.
fn extended(section: &[u8], count: usize, items: &[u8]) -> wasmparser::Result<Vec<u8>> {
    let mut reader = BinaryReader::new(section, 0);
    let before = reader.read_var_u32()? as usize;
    let mut data = Vec::with_capacity(section.len() + items.len() + 1);
    (before + count).encode(&mut data);
    data.extend(&section[reader.original_position()..]);
    data.extend(items);
    Ok(data)
}
