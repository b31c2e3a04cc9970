//! What a module is, without running it.

use std::collections::BTreeSet;

use wasmparser::{Parser, Payload, ProducersSectionReader, TypeRef};

use super::componentize::{self, UTF16_MARK};
use super::error::{LoadError, Stage};
use super::generation::Digest;
use super::host::Engine;
use super::prove;

/// An export that begins so names the language behind it, where a toolchain leaves no mark of its own.
const LANGUAGE_MARK: &str = "baton_language_";

/// What stands in a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// The language that it was written in, as far as its toolchain left a mark.
    pub language: String,
    /// The hooks that it exports, as in `wit/policy.wit`.
    pub hooks: Vec<&'static str>,
    /// Functions that it asks of the gateway, as in `request.header`; those of other modules with the module's name.
    pub imports: Vec<String>,
    /// In bytes.
    pub sizes: Sizes,
    /// Of the file.
    pub digest: Digest,
}

/// Sizes in bytes, over all modules of a component.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// The file.
    pub file: usize,
    /// Functions.
    pub code: usize,
    /// What memories begin with.
    pub data: usize,
    /// Memories at the beginning.
    pub memory_initial: u64,
    /// Beyond which memories cannot grow by their own word; `None` where one has no bound.
    pub memory_max: Option<u64>,
}

/// Looks at a file's content. That it can be loaded is tried as far as that is possible without its configuration.
///
/// # Errors
/// It cannot be loaded.
pub fn inspect(engine: &Engine, file: &[u8]) -> Result<Inspection, LoadError> {
    let binary = componentize::assemble_if_text(file)?;
    let hooks = prove::examine(engine, &componentize::componentize(file)?)?.hooks;
    let mut found = Found::default();
    found.read(&binary).map_err(|error| LoadError::new(Stage::Componentize, error))?;
    let is_text = file.first() != Some(&0);
    let language = if is_text { "WebAssembly text".to_owned() } else { found.language(&binary) };
    let memory_max = if found.unbounded { None } else { Some(found.memory_max) };
    let Found { code, data, memory_initial, imports, .. } = found;
    let sizes = Sizes { file: file.len(), code, data, memory_initial, memory_max };
    Ok(Inspection { language, hooks, imports: imports.into_iter().collect(), sizes, digest: Digest::of(file) })
}

#[derive(Default)]
struct Found {
    code: usize,
    data: usize,
    memory_initial: u64,
    memory_max: u64,
    unbounded: bool,
    imports: BTreeSet<String>,
    languages: BTreeSet<String>,
    tools: BTreeSet<String>,
    exports_utf16_mark: bool,
    mark: Option<String>,
}

impl Found {
    fn read(&mut self, binary: &[u8]) -> wasmparser::Result<()> {
        let is_component = Parser::is_component(binary);
        for payload in Parser::new(0).parse_all(binary) {
            match payload? {
                Payload::CodeSectionStart { size, .. } => self.code += size as usize,
                Payload::DataSection(section) => self.data += section.range().len(),
                Payload::MemorySection(section) => {
                    for memory in section {
                        let memory = memory?;
                        let page = 1_u64 << memory.page_size_log2.unwrap_or(16);
                        self.memory_initial += memory.initial.saturating_mul(page);
                        match memory.maximum {
                            Some(most) => self.memory_max += most.saturating_mul(page),
                            None => self.unbounded = true,
                        }
                    }
                }
                Payload::ImportSection(section) => {
                    for import in section.into_imports() {
                        let import = import?;
                        // A component's modules import of each other too; what leaves it has an interface's name.
                        let leaves = !is_component || import.module.contains('/');
                        if leaves && matches!(import.ty, TypeRef::Func(_)) && !import.name.starts_with('[') {
                            self.imports.insert(short(import.module, import.name));
                        }
                    }
                }
                Payload::ExportSection(section) => {
                    for export in section {
                        let name = export?.name;
                        self.exports_utf16_mark |= name == UTF16_MARK;
                        self.mark = name.strip_prefix(LANGUAGE_MARK).map(str::to_owned).or(self.mark.take());
                    }
                }
                Payload::CustomSection(section) if section.name() == "producers" => {
                    let reader = wasmparser::BinaryReader::new(section.data(), section.data_offset());
                    for field in ProducersSectionReader::new(reader)? {
                        let field = field?;
                        for value in field.values {
                            let name = value?.name.to_owned();
                            if field.name == "language" {
                                self.languages.insert(name);
                            } else {
                                self.tools.insert(name);
                            }
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// An interpreter is written in a language of its own, so whose script it runs is looked for first.
    fn language(&self, binary: &[u8]) -> String {
        let holds = |text: &str| memchr::memmem::find(binary, text.as_bytes()).is_some();
        let made_by = |text: &str| self.tools.iter().any(|tool| tool.to_ascii_lowercase().contains(text));
        let written_in = |text: &str| self.languages.iter().any(|language| language.starts_with(text));
        let marks = [
            ("Python", made_by("componentize-py") || holds("componentize-py") || holds("componentize_py")),
            (
                "JavaScript",
                made_by("componentize-js") || holds("QuickJS") || holds("quickjs") || holds("StarlingMonkey"),
            ),
            ("AssemblyScript", self.exports_utf16_mark || written_in("AssemblyScript")),
            ("Go", written_in("Go") || holds("go.buildinfo") || holds("runtime.gcStart")),
            (
                "Rust",
                written_in("Rust") || made_by("rustc") || made_by("wit-bindgen-rust") || holds("wit-bindgen-rust"),
            ),
            ("C++", written_in("C_plus_plus")),
            ("C", written_in("C") || made_by("clang") || made_by("zig")),
        ];
        if let Some(mark) = &self.mark {
            return mark.clone();
        }
        let found = marks.into_iter().find(|&(_, is_it)| is_it).map(|(language, _)| language.to_owned());
        let named = || self.languages.iter().next().cloned();
        found.or_else(named).unwrap_or_else(|| "unknown".to_owned())
    }
}

/// `request.header` for `baton:policy/request@0.1.0` and `header`.
fn short(module: &str, name: &str) -> String {
    let rest = module.strip_prefix("baton:policy/").and_then(|rest| rest.split('@').next());
    format!("{}.{name}", rest.unwrap_or(module))
}
