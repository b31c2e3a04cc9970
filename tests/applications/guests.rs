//! Policies made by the tests: modules in text whose decisions are constants, written as the contract's records lie in
//! memory (Canonical ABI).

use tempfile::TempDir;

/// A list of fields, or of pairs of texts.
type Pairs<'a> = &'a [(&'a str, &'a str)];

/// A decision.
pub(super) struct Decision<'a> {
    pub(super) action: Action<'a>,
    pub(super) carry: &'a str,
    pub(super) annotations: Pairs<'a>,
}

pub(super) enum Action<'a> {
    Pass(Edits<'a>),
    Handoff { target: &'a str, data: &'a str, head: Option<(u16, Pairs<'a>)>, alternates: &'a [&'a str] },
    Proxy { upstream: &'a str, path: Option<&'a str>, edits: Edits<'a>, inspects: bool },
    Respond { status: u16, headers: Pairs<'a>, body: &'a str },
    Abort,
}

#[derive(Clone, Copy, Default)]
pub(super) struct Edits<'a> {
    pub(super) remove: &'a [&'a str],
    pub(super) set: Pairs<'a>,
    pub(super) append: Pairs<'a>,
}

/// With nothing to carry, and no annotations.
pub(super) fn plain(action: Action<'_>) -> Decision<'_> {
    Decision { action, carry: "", annotations: &[] }
}

pub(super) fn pass() -> Decision<'static> {
    plain(Action::Pass(Edits::default()))
}

/// Size of a decision (wit/policy.wit).
const DECISION_BYTES: usize = 88;

/// A module in the making.
pub(super) struct Guest {
    /// What lies in memory from 4096 on.
    data: Vec<u8>,
    hooks: String,
}

impl Guest {
    pub(super) fn new() -> Self {
        Self { data: Vec::new(), hooks: String::new() }
    }

    /// Decides so about requests.
    pub(super) fn on_request(mut self, decision: &Decision<'_>) -> Self {
        let at = self.decision(decision);
        self.hooks += &format!("(func (export \"on_request\") (result i32) (i32.const {at}))\n");
        self
    }

    /// Decides so about answers, after `body` has run, in which `$carry` and `$length` are what was carried.
    pub(super) fn on_response(mut self, body: &str, decision: &Decision<'_>) -> Self {
        let at = self.decision(decision);
        self.hooks += &format!(
            "(func (export \"on_response\") (param $carry i32) (param $length i32) (result i32) {body} (i32.const {at}))\n"
        );
        self
    }

    /// Decides so about a handoff that failed, and says what it was given to carry.
    pub(super) fn on_handoff_failed(mut self, decision: &Decision<'_>) -> Self {
        let at = self.decision(decision);
        self.hooks += &format!(
            "(func (export \"on_handoff_failed\") (param i32 i32 i32 i32 i32 i32 i32 i32 i32) (param $carry i32) \
             (param $length i32) (result i32) {SAYS_CARRY} (i32.const {at}))\n"
        );
        self
    }

    /// Says how the request ended, where, and what it was given to carry.
    pub(super) fn on_complete(mut self) -> Self {
        self.hooks += &format!(
            "(func (export \"on_complete\") (param i32 i32) (param $action i32) (param $action_length i32) \
             (param $has_target i32) (param $target i32) (param $target_length i32) (param i32 i32 i64 i64 i64) \
             (param $carry i32) (param $length i32) \
             (call $say (local.get $action) (local.get $action_length)) \
             (if (local.get $has_target) (then (call $say (local.get $target) (local.get $target_length)))) {SAYS_CARRY})\n"
        );
        self
    }

    /// Writes it to `NAME.wat` in the folder.
    pub(super) fn write(self, folder: &TempDir, name: &str) {
        let data: String = self.data.iter().map(|byte| format!("\\{byte:02x}")).collect();
        let text = format!("(module {PRELUDE} (data (i32.const {START}) \"{data}\")\n{})", self.hooks);
        std::fs::write(folder.path().join(name).with_extension("wat"), text).expect("written");
    }

    /// Puts bytes into memory, aligned to 8.
    fn put(&mut self, bytes: &[u8]) -> u32 {
        self.data.resize(self.data.len().next_multiple_of(8), 0);
        let at = START + self.data.len();
        self.data.extend_from_slice(bytes);
        u32::try_from(at).expect("small")
    }

    /// Its place and its length.
    fn text(&mut self, text: &str) -> [u8; 8] {
        let at = self.put(text.as_bytes());
        words([at, u32::try_from(text.len()).expect("short")])
    }

    fn texts(&mut self, texts: &[&str]) -> [u8; 8] {
        let list: Vec<_> = texts.iter().flat_map(|text| self.text(text)).collect();
        words([self.put(&list), u32::try_from(texts.len()).expect("few")])
    }

    fn pairs(&mut self, pairs: Pairs<'_>) -> [u8; 8] {
        let list: Vec<_> = pairs.iter().flat_map(|(a, b)| [self.text(a), self.text(b)].concat()).collect();
        words([self.put(&list), u32::try_from(pairs.len()).expect("few")])
    }

    fn edits(&mut self, edits: Edits<'_>) -> Vec<u8> {
        [self.texts(edits.remove), self.pairs(edits.set), self.pairs(edits.append)].concat()
    }

    fn decision(&mut self, decision: &Decision<'_>) -> u32 {
        let mut record = [0; DECISION_BYTES];
        let mut set = |at: usize, bytes: &[u8]| record[at..at + bytes.len()].copy_from_slice(bytes);
        match &decision.action {
            Action::Pass(edits) => set(4, &self.edits(*edits)),
            Action::Handoff { target, data, head, alternates } => {
                set(0, &[1]);
                set(4, &self.text(target));
                set(12, &self.text(data));
                if let Some((status, headers)) = head {
                    set(28, &[1]);
                    set(32, &status.to_le_bytes());
                    set(36, &self.pairs(headers));
                }
                // Relayed if need be.
                set(45, &[1]);
                set(56, &self.texts(alternates));
            }
            Action::Proxy { upstream, path, edits, inspects } => {
                set(0, &[2]);
                set(4, &self.text(upstream));
                if let Some(path) = path {
                    set(12, &[1]);
                    set(16, &self.text(path));
                }
                set(24, &self.edits(*edits));
                set(56, &[u8::from(*inspects)]);
            }
            Action::Respond { status, headers, body } => {
                set(0, &[3]);
                set(4, &status.to_le_bytes());
                set(8, &self.pairs(headers));
                set(16, &self.text(body));
            }
            Action::Abort => set(0, &[4]),
        }
        set(72, &self.text(decision.carry));
        set(80, &self.pairs(decision.annotations));
        self.put(&record)
    }
}

const START: usize = 4096;
const SAYS_CARRY: &str = "(call $say (local.get $carry) (local.get $length))";

/// Imports, memory, and a word in the log; the texts at 0 are names of fields.
const PRELUDE: &str = r#"
  (import "baton:policy/log@0.1.0" "write" (func $write (param i32 i32 i32 i32 i32)))
  (import "baton:policy/response@0.1.0" "status" (func $status (result i32)))
  (import "baton:policy/response@0.1.0" "header" (func $header (param i32 i32 i32)))
  (import "baton:policy/response@0.1.0" "headers" (func $headers (param i32)))
  (import "baton:policy/response@0.1.0" "upstream" (func $upstream (param i32)))
  (import "baton:policy/response@0.1.0" "elapsed-us" (func $elapsed (result i64)))
  (memory (export "memory") 16)
  (global $free (mut i32) (i32.const 131072))
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    (local $p i32)
    (local.set $p (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
    (global.set $free (i32.add (local.get $p) (local.get 3)))
    (local.get $p))
  (data (i32.const 0) "x-one___")
  (func $say (param i32 i32) (call $write (i32.const 2) (local.get 0) (local.get 1) (i32.const 0) (i32.const 0)))
"#;

/// Says what it was given to carry, and what `x-one` is in the answer.
pub(super) const SAYS_CARRY_AND_X_ONE: &str = "(call $say (local.get $carry) (local.get $length))
    (call $header (i32.const 0) (i32.const 5) (i32.const 1024))
    (if (i32.load8_u (i32.const 1024))
      (then (call $say (i32.load (i32.const 1028)) (i32.load (i32.const 1032)))))";

/// Answers with what the imports say: the status and one more, all fields, and the upstream's name as the body. It is
/// written into a respond at 2048, which is returned.
pub(super) const ECHOES: &str = "
    (if (i64.eqz (call $elapsed)) (then (unreachable)))
    (memory.fill (i32.const 2048) (i32.const 0) (i32.const 88))
    (i32.store8 (i32.const 2048) (i32.const 3))
    (i32.store16 (i32.const 2052) (i32.add (call $status) (i32.const 1)))
    (call $headers (i32.const 2056))
    (call $upstream (i32.const 2064))
    (return (i32.const 2048))";

fn words(words: [u32; 2]) -> [u8; 8] {
    let [a, b] = words.map(u32::to_le_bytes);
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]
}
