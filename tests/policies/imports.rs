//! Does what it is told by way of every import but `request`, and answers with a line for each thing it did.
//!
//! The field `x-do` holds the commands, `;` between them; the keys `configure` and `test` of the configuration hold those
//! for the hooks of these names. One file and no dependency, as `echo.rs`; values cross as the canonical ABI has it.

#[link(wasm_import_module = "baton:policy/request@0.1.0")]
unsafe extern "C" {
    fn header(name: *const u8, length: usize, at: *mut Answer);
}

#[link(wasm_import_module = "baton:policy/config@0.1.0")]
unsafe extern "C" {
    #[link_name = "get"]
    fn config_get(name: *const u8, length: usize, at: *mut Answer);
    fn secret(name: *const u8, length: usize, at: *mut Answer);
}

#[link(wasm_import_module = "baton:policy/metrics@0.1.0")]
unsafe extern "C" {
    fn count(name: *const u8, length: usize, labels: *const Pair, count: usize, delta: u64);
    fn gauge(name: *const u8, length: usize, labels: *const Pair, count: usize, value: f64);
    fn observe(name: *const u8, length: usize, labels: *const Pair, count: usize, value: f64);
}

#[link(wasm_import_module = "baton:policy/clock@0.1.0")]
unsafe extern "C" {
    #[link_name = "wall-ms"]
    fn wall_ms() -> u64;
    #[link_name = "monotonic-us"]
    fn monotonic_us() -> u64;
}

#[link(wasm_import_module = "baton:policy/random@0.1.0")]
unsafe extern "C" {
    fn bytes(count: u32, at: *mut Answer);
}

#[link(wasm_import_module = "baton:policy/store@0.1.0")]
unsafe extern "C" {
    fn get(key: *const u8, length: usize, at: *mut Answer);
    fn set(key: *const u8, length: usize, value: *const u8, bytes: usize, has_ttl: i32, ttl: u64, at: *mut Answer);
    #[link_name = "compare-and-set"]
    fn compare_and_set(
        key: *const u8,
        length: usize,
        version: u64,
        value: *const u8,
        bytes: usize,
        has_ttl: i32,
        ttl: u64,
        at: *mut Answer,
    );
    fn delete(key: *const u8, length: usize);
    fn increment(key: *const u8, length: usize, delta: i64, has_ttl: i32, ttl: u64, at: *mut Answer);
    fn take(key: *const u8, length: usize, rate: f64, burst: f64, cost: f64) -> i32;
}

#[link(wasm_import_module = "baton:policy/targets@0.1.0")]
unsafe extern "C" {
    fn status(name: *const u8, length: usize, at: *mut Answer);
    fn members(name: *const u8, length: usize, at: *mut Answer);
    fn pick(
        group: *const u8,
        length: usize,
        strategy: i32,
        has_key: i32,
        key: *const u8,
        bytes: usize,
        at: *mut Answer,
    );
    fn revoke(id: *const u8, length: usize, reason: *const u8, bytes: usize) -> i32;
}

#[link(wasm_import_module = "baton:policy/callout@0.1.0")]
unsafe extern "C" {
    fn fetch(
        upstream: *const u8,
        upstream_length: usize,
        method: *const u8,
        method_length: usize,
        path: *const u8,
        path_length: usize,
        headers: *const Pair,
        count: usize,
        body: *const u8,
        bytes: usize,
        timeout: u32,
        at: *mut Answer,
    );
}

/// Two texts.
type Pair = [usize; 4];

/// Room for what a function gives.
#[repr(C, align(8))]
#[derive(Clone, Copy, Default)]
struct Answer([u32; 22]);

impl Answer {
    fn tag(&self) -> u32 {
        self.0[0] & 0xff
    }

    fn text(&self, word: usize) -> String {
        text(self.0[word], self.0[word + 1])
    }

    fn option(&self) -> String {
        if self.tag() == 0 { "none".to_owned() } else { self.text(1) }
    }

    fn long(&self, word: usize) -> u64 {
        u64::from(self.0[word + 1]) << 32 | u64::from(self.0[word])
    }

    /// A result of the store.
    fn result(&self) -> String {
        match self.tag() {
            0 => (self.long(2) as i64).to_string(),
            _ => ["full", "too-large", "conflict"][(self.0[2] & 0xff) as usize].to_owned(),
        }
    }
}

fn text(at: u32, length: u32) -> String {
    String::from_utf8_lossy(unsafe { std::slice::from_raw_parts(at as *const u8, length as usize) }).into_owned()
}

#[unsafe(no_mangle)]
extern "C" fn cabi_realloc(_old: usize, _old_bytes: usize, align: usize, bytes: usize) -> *mut u8 {
    unsafe { std::alloc::alloc(std::alloc::Layout::from_size_align(bytes.max(1), align).unwrap()) }
}

static mut CONFIGURED: String = String::new();

fn commands(key: &str) -> String {
    let mut answer = Answer::default();
    unsafe { config_get(key.as_ptr(), key.len(), &mut answer) };
    if answer.tag() == 0 { String::new() } else { answer.text(1) }
}

#[unsafe(no_mangle)]
extern "C" fn configure(_config: *const u8, _length: usize) -> *const Answer {
    #[allow(static_mut_refs)]
    unsafe {
        CONFIGURED = run(&commands("configure")).replace('\n', "|");
    }
    Box::leak(Box::new(Answer({
        let mut words = [0; 22];
        words[1] = 1000; // reuse
        words[3] = 4; // an empty list's address
        words
    })))
}

/// Fails with what came of its commands, if there are any.
#[unsafe(no_mangle)]
extern "C" fn self_test() -> *const Answer {
    let came = run(&commands("test"));
    let mut answer = Answer::default();
    if !came.is_empty() {
        let came = came.leak();
        answer.0[..3].copy_from_slice(&[1, came.as_ptr() as u32, came.len() as u32]);
    }
    Box::leak(Box::new(answer))
}

#[unsafe(no_mangle)]
extern "C" fn on_request() -> *const Answer {
    let mut told = Answer::default();
    unsafe { header("x-do".as_ptr(), 4, &mut told) };
    let told = if told.tag() == 0 { String::new() } else { told.text(1) };
    let mut decision = Answer::default();
    if let Some(target) = told.strip_prefix("handoff ") {
        let target = if target.starts_with("pick ") { run(target).trim().to_owned() } else { target.to_owned() }.leak();
        // To that target, without anything.
        decision.0[0] = 1;
        decision.0[1..3].copy_from_slice(&[target.as_ptr() as u32, target.len() as u32]);
        return Box::leak(Box::new(decision));
    }
    let lines = run(&told).leak();
    decision.0[0] = 3; // respond
    decision.0[1] = 200;
    decision.0[4..6].copy_from_slice(&[lines.as_ptr() as u32, lines.len() as u32]);
    Box::leak(Box::new(decision))
}

fn run(commands: &str) -> String {
    let mut lines = String::new();
    for command in commands.split(';').map(str::trim).filter(|command| !command.is_empty()) {
        let words: Vec<_> = command.split(' ').collect();
        lines += &obey(&words);
        lines += "\n";
    }
    lines
}

fn number<T: std::str::FromStr>(word: &str) -> T {
    word.parse().unwrap_or_else(|_| panic!("no number"))
}

/// `*5` is `xxxxx`.
fn value(word: &str) -> String {
    word.strip_prefix('*').map_or_else(|| word.to_owned(), |count| "x".repeat(number(count)))
}

fn ttl(words: &[&str], at: usize) -> (i32, u64) {
    words.get(at).filter(|word| **word != "-").map_or((0, 0), |word| (1, number(word)))
}

fn pairs(words: &[&str]) -> Vec<Pair> {
    let pair = |word: &&str| {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let (name, value) = (self::value(name).leak(), self::value(value).leak());
        [name.as_ptr() as usize, name.len(), value.as_ptr() as usize, value.len()]
    };
    words.iter().map(pair).collect()
}

fn obey(words: &[&str]) -> String {
    let mut answer = Answer::default();
    let at: *mut Answer = &mut answer;
    let name = value(words.get(1).unwrap_or(&""));
    let (key, length) = (name.as_ptr(), name.len());
    match words[0] {
        #[allow(static_mut_refs)]
        "configured" => return unsafe { CONFIGURED.clone() },
        "panic" => panic!("told to"),
        "spin" => loop {
            std::hint::black_box(0);
        },
        "secret" => {
            unsafe { secret(key, length, at) };
            return answer.option();
        }
        "wall" => return unsafe { wall_ms() }.to_string(),
        "monotonic" => return unsafe { monotonic_us() }.to_string(),
        "random" => {
            unsafe { bytes(number(words[1]), at) };
            let bytes = unsafe { std::slice::from_raw_parts(answer.0[0] as *const u8, answer.0[1] as usize) };
            let hex: String = bytes.iter().take(16).map(|b| format!("{b:02x}")).collect();
            return format!("{} {hex}", bytes.len());
        }
        "count" => {
            let labels = pairs(&words[3..]);
            unsafe { count(key, length, labels.as_ptr(), labels.len(), number(words[2])) };
        }
        "count-many" => {
            for n in 0..number::<u32>(words[2]) {
                let name = format!("{name}{n}");
                unsafe { count(name.as_ptr(), name.len(), 8 as *const Pair, 0, 1) };
            }
        }
        "gauge" => {
            let labels = pairs(&words[3..]);
            unsafe { gauge(key, length, labels.as_ptr(), labels.len(), number(words[2])) };
        }
        "observe" => {
            let labels = pairs(&words[3..]);
            unsafe { observe(key, length, labels.as_ptr(), labels.len(), number(words[2])) };
        }
        "get" => {
            unsafe { get(key, length, at) };
            return if answer.tag() == 0 { "none".into() } else { format!("{}@{}", answer.text(2), answer.long(4)) };
        }
        "set" => {
            let (value, (has_ttl, ttl)) = (value(words[2]), ttl(words, 3));
            unsafe { set(key, length, value.as_ptr(), value.len(), has_ttl, ttl, at) };
            return answer.result();
        }
        "fill" => {
            // Until it is full; how many it were.
            for n in 0.. {
                let key = format!("{name}{n:04}");
                unsafe { set(key.as_ptr(), key.len(), 8 as *const u8, 0, 0, 0, at) };
                if answer.tag() != 0 {
                    return format!("{n} {}", answer.result());
                }
            }
        }
        "cas" => {
            let (value, (has_ttl, ttl)) = (value(words[3]), ttl(words, 4));
            let version = number(words[2]);
            unsafe { compare_and_set(key, length, version, value.as_ptr(), value.len(), has_ttl, ttl, at) };
            return answer.result();
        }
        "delete" => unsafe { delete(key, length) },
        "increment" => {
            let (has_ttl, ttl) = ttl(words, 3);
            unsafe { increment(key, length, number(words[2]), has_ttl, ttl, at) };
            return answer.result();
        }
        "take" => {
            let took = unsafe { take(key, length, number(words[2]), number(words[3]), number(words[4])) };
            return (took != 0).to_string();
        }
        "status" => {
            unsafe { status(key, length, at) };
            return if answer.tag() == 0 { "none".into() } else { self::state(&answer.0[2..]) };
        }
        "members" => {
            unsafe { members(key, length, at) };
            let member = |n: usize| {
                let words = unsafe { *(answer.0[0] as *const [u32; 12]).add(n) };
                self::state(&words)
            };
            return (0..answer.0[1] as usize).map(member).collect::<Vec<_>>().join(", ");
        }
        "pick" => {
            let strategies = ["round-robin", "least-in-flight", "least-load", "hash", "random-two"];
            let strategy = strategies.iter().position(|word| *word == words[2]).expect("a strategy") as i32;
            let word = words.get(3).copied();
            let given = word.unwrap_or_default();
            let has_key = i32::from(word.is_some());
            unsafe { pick(key, length, strategy, has_key, given.as_ptr(), given.len(), at) };
            return answer.option();
        }
        "revoke" => return (unsafe { revoke(key, length, key, length) } != 0).to_string(),
                "fetch" => {
            let (method, path, timeout, body) = (words[2], words[3], number(words[4]), value(words.get(5).unwrap_or(&"")));
            let headers = pairs(words.get(6..).unwrap_or_default());
            unsafe {
                fetch(
                    key,
                    length,
                    method.as_ptr(),
                    method.len(),
                    path.as_ptr(),
                    path.len(),
                    headers.as_ptr(),
                    headers.len(),
                    body.as_ptr(),
                    body.len(),
                    timeout,
                    at,
                );
            }
            return fetched(&answer);
        }
        other => panic!("no command {other}"),
    }
    "done".to_owned()
}

fn fetched(answer: &Answer) -> String {
    if answer.tag() == 1 {
        let reason = |answer: &Answer| format!("unreachable: {}", answer.text(2));
        return match answer.0[1] & 0xff {
            0 => "not-allowed".to_owned(),
            1 => "timed-out".to_owned(),
            2 => reason(answer),
            3 => "too-large".to_owned(),
            _ => "budget".to_owned(),
        };
    }
    let fields = (0..answer.0[3] as usize).map(|n| unsafe { *(answer.0[2] as *const [u32; 4]).add(n) });
    let fields: Vec<_> = fields.map(|[name, length, value, bytes]| text(name, length) + "=" + &text(value, bytes)).collect();
    let body = answer.text(4);
    let body = if body.len() > 200 { format!("{} bytes", body.len()) } else { body };
    format!("{} [{}] {body}", answer.0[1] & 0xffff, fields.join(" "))
}

fn state(words: &[u32]) -> String {
    let health = ["up", "draining", "down", "unknown"][(words[2] & 0xff) as usize];
    let load = if words[4] & 0xff == 0 { "-" } else { "load" };
    let error = if words[8] & 0xff == 0 { "-".to_owned() } else { text(words[9], words[10]) };
    format!("{} {health} {} {load} {error}", text(words[0], words[1]), words[3])
}
