//! The daemons: how each is built and started, and what is seen of it from outside.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::support::{self, eventually, example, holds};

/// A daemon's program.
#[derive(Clone, Copy)]
pub struct Language {
    pub name: &'static str,
    pub command: fn() -> Command,
    /// What it speaks with the real gateway. With the scripted one it is always `baton`.
    pub kinds: &'static [&'static str],
}

const ALL_KINDS: &[&str] = &["baton", "seqpacket", "stream", "fdpass", "datagram"];

pub const C: Language = Language { name: "c", command: c, kinds: ALL_KINDS };
pub const GO: Language = Language { name: "go", command: go, kinds: ALL_KINDS };
pub const PHP: Language = Language { name: "php", command: php, kinds: ALL_KINDS };
pub const PYTHON: Language = Language { name: "python", command: python, kinds: ALL_KINDS };
pub const RUST: Language = Language { name: "rust", command: rust, kinds: ALL_KINDS };

/// Written from the page alone, by somebody who had seen nothing else: what it cannot do, the page does not say.
pub const RUBY: Language = Language { name: "ruby", command: ruby, kinds: &["baton"] };

/// The examples, and the one from the page.
pub const ALL: &[Language] = &[RUST, GO, PYTHON, PHP, C, RUBY];

/// What the checks are tried on: without a fault it passes them all.
pub const FAULTY: Language = Language { name: "faulty", command: faulty, kinds: &[] };

/// The program that `BATON_DAEMON` names, if it does, and behind the real gateway in the dialects that `BATON_DIALECTS`
/// names.
pub fn stranger() -> Option<Language> {
    std::env::var_os("BATON_DAEMON")?;
    let asked = std::env::var("BATON_DIALECTS").unwrap_or_default();
    let kinds: Vec<_> = ALL_KINDS.iter().copied().filter(|kind| asked.split_whitespace().any(|a| a == *kind)).collect();
    Some(Language { name: "stranger", command: strangers, kinds: kinds.leak() })
}

fn strangers() -> Command {
    let line = std::env::var("BATON_DAEMON").expect("it was asked for");
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().expect("BATON_DAEMON names a program"));
    command.args(words);
    command
}

pub fn examples() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/examples"))
}

fn rust() -> Command {
    Command::new(example("daemon"))
}

fn python() -> Command {
    interpreted("python3", &examples().join("daemon-python/daemon.py"))
}

fn go() -> Command {
    static BUILT: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_folder, program) = BUILT.get_or_init(|| {
        let folder = support::folder();
        let program = folder.path().join("daemon");
        let mut go = Command::new("go");
        go.args(["build", "-o"]).arg(&program).arg(".").current_dir(examples().join("daemon-go"));
        run(&mut go);
        (folder, program)
    });
    Command::new(program)
}

fn php() -> Command {
    interpreted("php", &examples().join("daemon-php/daemon.php"))
}

fn ruby() -> Command {
    interpreted("ruby", &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/daemons/stranger.rb"))
}

fn faulty() -> Command {
    interpreted("python3", &faulty_program())
}

pub fn faulty_program() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/daemons/faulty.py")
}

fn interpreted(interpreter: &str, file: &Path) -> Command {
    let mut command = Command::new(interpreter);
    command.arg(file);
    command
}

fn c() -> Command {
    static BUILT: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_folder, program) = BUILT.get_or_init(|| {
        let folder = support::folder();
        let program = folder.path().join("daemon");
        let mut cc = Command::new("cc");
        cc.args(["-Wall", "-Wextra", "-O2", "-o"]).arg(&program).arg(examples().join("daemon-c/daemon.c"));
        run(&mut cc);
        (folder, program)
    });
    Command::new(program)
}

fn run(compiler: &mut Command) {
    let output = compiler.output().expect("the compiler is there");
    assert!(output.status.success(), "{compiler:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A daemon that is ready; it and what it started ends with its handle.
pub struct Daemon {
    pub child: Child,
    pub path: PathBuf,
    folder: TempDir,
}

impl Daemon {
    /// One of `baton`, at a socket of its own, that pauses for 2 ms between events.
    pub fn native(language: Language) -> Self {
        Self::native_with(language, |command| command)
    }

    /// The same with the command changed.
    pub fn native_with(language: Language, change: impl FnOnce(&mut Command) -> &mut Command) -> Self {
        let folder = support::folder();
        let path = folder.path().join("d.sock");
        Self::start_in(folder, language, &path, "baton", 2, change)
    }

    pub fn start(language: Language, path: &Path, kind: &str, interval_ms: u32) -> Self {
        Self::start_with(language, path, kind, interval_ms, |command| command)
    }

    pub fn start_with(
        language: Language,
        path: &Path,
        kind: &str,
        interval_ms: u32,
        change: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Self {
        Self::start_in(support::folder(), language, path, kind, interval_ms, change)
    }

    fn start_in(
        folder: TempDir,
        language: Language,
        path: &Path,
        kind: &str,
        interval_ms: u32,
        change: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Self {
        let file = |name| File::create(folder.path().join(name)).expect("a new file");
        let mut command = (language.command)();
        command.arg(path).arg(kind).args(["--interval", &interval_ms.to_string()]);
        command.env_remove("BATON_GATEWAY_UIDS");
        command.stdin(Stdio::null()).stdout(file("stdout")).stderr(file("stderr"));
        let child = change(&mut command).spawn().expect("it starts");
        let mut daemon = Self { child, path: path.to_owned(), folder };
        let ready = format!("ready {}\n", path.display());
        eventually("it is ready", || {
            let ended = daemon.child.try_wait().expect("ours");
            assert!(ended.is_none(), "{ended:?}: {}", daemon.output());
            daemon.read("stdout").starts_with(&ready).then_some(())
        });
        daemon
    }

    fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.path().join(name)).expect("it is there")).into_owned()
    }

    /// All that it has said.
    pub fn output(&self) -> String {
        self.read("stdout") + &self.read("stderr")
    }

    /// It and everybody whom it has started.
    fn family(&self) -> Vec<u32> {
        let mut all = vec![self.child.id()];
        let mut at = 0;
        while at < all.len() {
            let tasks = fs::read_dir(format!("/proc/{}/task", all[at])).into_iter().flatten().flatten();
            for task in tasks {
                let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
                all.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
            }
            at += 1;
        }
        all
    }

    /// Open descriptors of the program itself.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("it runs").count()
    }

    /// Descriptors when it has nothing to do: their number is asked for until it has stayed the same for a while.
    pub fn descriptors_at_rest(&self) -> usize {
        let (mut last, mut times) = (0, 0);
        eventually("it rests", || {
            let now = self.descriptors();
            times = if now == last { times + 1 } else { 0 };
            last = now;
            (times == 10).then_some(now)
        })
    }

    /// Whether the program, or anybody whom it has started, has the socket with that inode open.
    pub fn holds(&self, inode: u64) -> bool {
        self.family().into_iter().any(|pid| holds(pid, inode))
    }

    /// Memory that is its own.
    pub fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("Linux says so");
        line.split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok()).expect("a number") * 1024
    }

    pub fn terminate(&self) {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).expect("it runs");
    }

    /// Waits until it has ended by itself, as it should.
    #[track_caller]
    pub fn has_ended_well(&mut self) {
        let status = eventually("it ends", || self.child.try_wait().expect("ours"));
        assert_eq!(status.code(), Some(0), "{}", self.output());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let family = self.family();
        drop(self.child.kill());
        for pid in &family[1..] {
            // Gone by itself, where it has noticed.
            let _: nix::Result<()> = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
        drop(self.child.wait());
        if std::thread::panicking() {
            eprintln!("the daemon said: {}", self.output());
        }
    }
}
