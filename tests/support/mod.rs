//! The harness: the built program, raw clients, daemons that misbehave on request, and what can be counted from outside.
//!
//! Everything is judged by what a stranger sees: the command line, bytes on sockets, lines of the logs, descriptors in
//! `/proc`. Nothing waits a fixed time; what must become true is asked for until it is, with a patience of
//! `BATON_TEST_PATIENCE` seconds (default 20).

#![allow(dead_code, unreachable_pub, unused_imports, reason = "every test program takes what it needs")]

pub mod fastcgi;
pub mod handing_over;
mod kernel;
pub mod load;
pub mod native;
pub mod peers;
#[cfg(feature = "gateway")]
pub mod shipped;
pub mod upstream;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::libc::linger;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

pub use kernel::{are_all, holds, inode_of, is_asleep, unread_at_the_gateway, waiting_at};

/// How long a fact may take to become true.
pub fn patience() -> Duration {
    Duration::from_secs(std::env::var("BATON_TEST_PATIENCE").ok().and_then(|s| s.parse().ok()).unwrap_or(20))
}

/// Asks until there is an answer.
#[track_caller]
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + patience();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "never: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// A fresh folder with a path short enough for sockets.
pub fn folder() -> TempDir {
    tempfile::Builder::new().prefix("bt").tempdir_in("/tmp").expect("a temporary folder")
}

/// The program under test.
pub fn baton() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_baton"));
    // Compiled policies stay with what else was built.
    command.env("CACHE_DIRECTORY", env!("CARGO_TARGET_TMPDIR"));
    command
}

/// A program of ours beside the one under test: an example.
pub fn example(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_baton")).with_file_name("examples").join(name);
    assert!(path.exists(), "{} is not built: cargo build --release --examples", path.display());
    path
}

/// Lines that a process prints, as they come.
#[derive(Clone, Default)]
pub struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    pub fn read(from: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let sink = lines.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
                sink.0.lock().expect("no panic").push(String::from_utf8_lossy(&line).into_owned());
            }
        });
        lines
    }

    pub fn all(&self) -> Vec<String> {
        self.0.lock().expect("no panic").clone()
    }

    pub fn count(&self) -> usize {
        self.0.lock().expect("no panic").len()
    }

    /// The first line from `from` on that holds all of `words`.
    #[track_caller]
    pub fn wait(&self, from: usize, words: &[&str]) -> String {
        let fits = |line: &&String| words.iter().all(|word| line.contains(word));
        let end = Instant::now() + patience();
        loop {
            if let Some(line) = self.all().iter().skip(from).find(fits) {
                return line.clone();
            }
            assert!(Instant::now() < end, "no line with {words:?} in {:#?}", &self.all()[from..]);
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}

/// A configuration under which every path is answered `ok`, behind a policy that passes, with small limits. One worker: when
/// it has answered a request, it has looked at everything that came before.
pub const OK_EVERYWHERE: &str = r#"
[gateway]
workers = 1
[limits]
head_bytes_max = "2KiB"
headers_max = 20
LISTEN
[policy.passes]
module = "POLICIES/passes.wat"
[[route]]
path = "/"
policies = ["passes"]
default = { respond = { body = "ok" } }
"#;

/// Open descriptors: how many there are of each kind.
pub type Ledger = BTreeMap<String, usize>;

/// `baton run` on a configuration of its own.
pub struct Gateway {
    pub child: Child,
    pub stderr: Lines,
    pub folder: TempDir,
    listeners: Vec<String>,
}

/// Lets the program compile what a configuration names, so that its code is at hand when the gateway starts: an interpreter
/// takes many seconds, for which nobody there is prepared to wait.
pub fn compile(toml: &str, folder: &TempDir) {
    let file = folder.path().join("check.toml");
    std::fs::write(&file, fill(folder, toml)).expect("written");
    let output = baton().args(["check", "-c"]).arg(&file).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

impl Gateway {
    /// Starts it. `LISTEN` stands for a listener called `http` on a free port, `DIR` for its folder, `POLICIES` for
    /// that of the tests' guests. The access log is on, unless it is configured otherwise.
    pub fn start(toml: &str) -> Self {
        Self::start_in(folder(), toml, |command| command)
    }

    /// The same, in a folder that holds files already, and with the command changed.
    pub fn start_in(folder: TempDir, toml: &str, change: impl FnOnce(&mut Command) -> &mut Command) -> Self {
        let file = folder.path().join("baton.toml");
        std::fs::write(&file, fill(&folder, toml)).expect("written");
        let mut command = baton();
        command.arg("run").arg("-c").arg(&file).current_dir(folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = change(&mut command).spawn().expect("the program starts");
        let stderr = Lines::read(child.stderr.take().expect("piped"));
        let listeners = toml.matches("LISTEN").count() + toml.matches("[[listener]]").count();
        let mut gateway = Self { child, stderr, folder, listeners: Vec::new() };
        gateway.listeners = eventually("listening on", || {
            if let Ok(Some(status)) = gateway.child.try_wait() {
                panic!("ended with {status}: {:#?}", gateway.stderr.all());
            }
            let lines = gateway.stderr.all();
            let found: Vec<_> =
                lines.iter().filter_map(|l| l.strip_prefix("listening on ")).map(str::to_owned).collect();
            (found.len() == listeners).then_some(found)
        });
        gateway
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"))
    }

    /// The first TCP listener's address.
    pub fn address(&self) -> SocketAddr {
        let tcp = self.listeners.iter().find_map(|l| l.strip_prefix("http://"));
        tcp.and_then(|l| l.split(' ').next()).and_then(|a| a.parse().ok()).expect("a TCP listener")
    }

    /// A TCP listener's address, by its name.
    pub fn address_of(&self, name: &str) -> SocketAddr {
        let named = self.listeners.iter().find(|l| l.ends_with(&format!(" ({name})")));
        let address = named.and_then(|l| l.strip_prefix("http://")).and_then(|l| l.split(' ').next());
        address.and_then(|a| a.parse().ok()).expect("a TCP listener of that name")
    }

    pub fn client(&self) -> Client {
        Client::connect(self.address())
    }

    /// One request on a connection of its own; everything until the gateway or a daemon closes.
    pub fn ask(&self, raw: &str) -> String {
        let mut client = self.client();
        client.send(raw);
        client.rest()
    }

    /// The status of a GET on a connection of its own.
    pub fn status(&self, path: &str) -> u16 {
        let mut client = self.client();
        client.get(path);
        client.answer().status
    }

    /// Replaces the configuration by rename; returns how many lines the log had before.
    pub fn configure(&self, toml: &str) -> usize {
        let before = self.stderr.count();
        let new = self.path("baton.new");
        std::fs::write(&new, fill(&self.folder, toml)).expect("written");
        std::fs::rename(new, self.path("baton.toml")).expect("renamed");
        before
    }

    /// The same, and HUP.
    pub fn reload(&self, toml: &str) -> usize {
        let before = self.configure(toml);
        self.signal(Signal::SIGHUP);
        before
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("it runs");
    }

    /// Lines of the access log.
    pub fn log(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path("access.log")).unwrap_or_default();
        // The last one may be half there.
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole.map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// The `count`-th line of the access log, from 1, as soon as it is there.
    #[track_caller]
    pub fn log_line(&self, count: usize) -> Value {
        eventually("a line of the access log", || self.log().into_iter().nth(count - 1))
    }

    /// Open descriptors.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).map_or(0, Iterator::count)
    }

    /// Open sockets: unlike all descriptors, their number is settled when it listens.
    pub fn sockets(&self) -> usize {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("it runs").flatten();
        let is_socket =
            |path: PathBuf| std::fs::read_link(path).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"));
        fds.filter(|fd| is_socket(fd.path())).count()
    }

    /// Open descriptors by what they are, without their numbers; not while a policy's file is being looked at.
    #[track_caller]
    pub fn ledger(&self) -> Ledger {
        eventually("nobody reads a module", || {
            Some(self.descriptors_by_kind()).filter(|ledger| !ledger.keys().any(|kind| kind.ends_with(".wasm")))
        })
    }

    fn descriptors_by_kind(&self) -> Ledger {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("it runs").flatten();
        let mut ledger = Ledger::new();
        for kind in fds.filter_map(|fd| std::fs::read_link(fd.path()).ok()) {
            let kind = kind.to_string_lossy();
            let kind = kind.split_once(":[").map_or(&*kind, |(kind, _)| kind).to_owned();
            *ledger.entry(kind).or_default() += 1;
        }
        ledger
    }

    /// Waits until it has no more descriptors of any kind than `before`, when a client that was leaving may have been counted.
    #[track_caller]
    pub fn ledger_is(&self, before: &Ledger) {
        let end = Instant::now() + patience();
        let is_back = |now: Ledger| now.iter().all(|(kind, count)| before.get(kind).is_some_and(|had| count <= had));
        while !is_back(self.ledger()) {
            assert!(Instant::now() < end, "{before:#?} became {:#?}", self.ledger());
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// Waits until it has no more descriptors than `before`: nothing of what happened since is left.
    #[track_caller]
    pub fn ledger_is_back_to(&self, before: usize) {
        eventually("the descriptors are back", || (self.descriptors() <= before).then_some(()));
    }

    /// CPU that it has used, all threads together, in ticks of 10 ms (proc_pid_stat(5)).
    pub fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it runs");
        // Behind the name, which may hold anything but a closing bracket and a space.
        let fields: Vec<_> = stat.rsplit_once(") ").expect("Linux says so").1.split(' ').collect();
        [fields[11], fields[12]].iter().map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
    }

    /// Bytes of memory that are its own.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).expect("Linux says so");
        line.split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok()).expect("a number") * 1024
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        eventually("the program ends", || self.child.try_wait().expect("ours"))
    }
}

fn fill(folder: &TempDir, toml: &str) -> String {
    let dir = folder.path().display().to_string();
    let log = format!("access_log = \"{dir}/access.log\"\n");
    let text = match toml.split_once("[gateway]\n") {
        _ if toml.contains("access_log = ") => toml.to_owned(),
        Some((before, behind)) => format!("{before}[gateway]\n{log}{behind}"),
        None => format!("[gateway]\n{log}\n{toml}"),
    };
    let guests = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/policies");
    let text = text.replace("LISTEN", "[[listener]]\nname = \"http\"\naddress = \"127.0.0.1:0\"\n");
    text.replace("DIR", &dir).replace("POLICIES", guests)
}

impl Drop for Gateway {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            eprintln!("the gateway said: {:#?}", self.stderr.all());
        }
    }
}

/// An answer with `Content-Length`, or one that ends with the connection.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let of = |line: &'_ str| line.split_once(':').filter(|(n, _)| n.eq_ignore_ascii_case(name)).is_some();
        self.head.lines().find(|line| of(line)).and_then(|line| line.split_once(':')).map(|(_, value)| value.trim())
    }
}

/// A raw connection: exact bytes out, exact bytes in.
pub struct Client {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_nodelay(true).expect("a socket");
        stream.set_read_timeout(Some(patience())).expect("a socket");
        stream.set_write_timeout(Some(patience())).expect("a socket");
        Self { stream, buffer: Vec::new() }
    }

    /// Resets the connection, so that writing to it fails.
    pub fn reset(self) {
        setsockopt(&self.stream, sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 }).expect("a socket");
    }

    pub fn port(&self) -> u16 {
        self.stream.local_addr().expect("a socket").port()
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("the other end reads");
    }

    pub fn get(&mut self, path: &str) {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
    }

    /// All bytes until the other end closes or resets; panics when it does neither.
    #[track_caller]
    pub fn rest(&mut self) -> String {
        let mut bytes = std::mem::take(&mut self.buffer);
        match self.stream.read_to_end(&mut bytes) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&bytes)),
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// How the connection ended: `true` by a reset.
    pub fn was_reset(&mut self) -> bool {
        self.stream.read_to_end(&mut Vec::new()).is_err_and(|e| e.kind() == ErrorKind::ConnectionReset)
    }

    /// Everything up to and with `mark`.
    #[track_caller]
    pub fn until(&mut self, mark: &str) -> String {
        let mut chunk = [0; 4096];
        loop {
            if let Some(at) = self.buffer.windows(mark.len()).position(|w| w == mark.as_bytes()) {
                let rest = self.buffer.split_off(at + mark.len());
                return String::from_utf8(std::mem::replace(&mut self.buffer, rest)).expect("text");
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => panic!("closed before {mark:?}: {:?}", String::from_utf8_lossy(&self.buffer)),
                Ok(count) => self.buffer.extend_from_slice(&chunk[..count]),
                Err(error) => panic!("{error} before {mark:?}: {:?}", String::from_utf8_lossy(&self.buffer)),
            }
        }
    }

    /// One answer with `Content-Length`; the connection may go on.
    #[track_caller]
    pub fn answer(&mut self) -> Answer {
        let head = self.until("\r\n\r\n");
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status line");
        let mut answer = Answer { status, head, body: String::new() };
        let length: usize = answer.header("content-length").map_or(0, |l| l.parse().expect("a number"));
        let mut chunk = [0; 4096];
        while self.buffer.len() < length {
            let count = self.stream.read(&mut chunk).expect("the body");
            assert_ne!(count, 0, "cut: {answer:?}");
            self.buffer.extend_from_slice(&chunk[..count]);
        }
        let rest = self.buffer.split_off(length);
        answer.body = String::from_utf8(std::mem::replace(&mut self.buffer, rest)).expect("text");
        answer
    }
}

/// `tests/support/daemon.rs` as a process of its own; what happens there comes as JSON, one event a line.
pub struct Daemon {
    pub child: Child,
    lines: Lines,
}

impl Daemon {
    /// Starts one on `socket`: `kind` is a dialect; `mode` and `options` as that file says.
    pub fn start(socket: &Path, kind: &str, mode: &str, options: &[&str]) -> Self {
        let mut child = Command::new(example("misbehaving-daemon"))
            .arg(socket)
            .args([kind, mode])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the daemon starts");
        let daemon = Self { lines: Lines::read(child.stdout.take().expect("piped")), child };
        daemon.wait("ready", 1);
        daemon
    }

    pub fn events(&self, name: &str) -> Vec<Value> {
        let parse = |line: &String| serde_json::from_str::<Value>(line).expect("JSON");
        self.lines.all().iter().map(parse).filter(|event| event["event"] == name).collect()
    }

    /// The `count`-th event of that name, from 1.
    #[track_caller]
    pub fn wait(&self, name: &str, count: usize) -> Value {
        eventually(&format!("event {name} of the daemon"), || self.events(name).into_iter().nth(count - 1))
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")), signal).expect("it runs");
    }

    /// SIGSTOP, and waits until it has stopped: until then it may still accept.
    pub fn stop(&self) {
        self.signal(Signal::SIGSTOP);
        eventually("the daemon has stopped", || are_all(self.child.id(), 'T').then_some(()));
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        drop(self.child.kill());
        let status = self.child.wait().expect("ours");
        assert!(status.signal().is_some() || !status.success());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
