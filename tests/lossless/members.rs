//! Daemons behind one target, in several languages, and what is done to them: killed, stopped, ended, replaced.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::chance::Chance;
use crate::support::{Lines, are_all, eventually, example};

/// A daemon's language, and how its program is started.
#[derive(Clone, Copy)]
pub struct Language {
    pub name: &'static str,
    command: fn(&Path) -> Command,
}

pub const C: Language = Language { name: "c", command: c };
pub const PHP: Language = Language { name: "php", command: |_| interpreted("php", "daemon.php") };
pub const PYTHON: Language = Language { name: "python", command: |_| interpreted("python3", "daemon.py") };
pub const RUST: Language = Language { name: "rust", command: |_| Command::new(example("marking-daemon")) };

fn own(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lossless").join(name)
}

fn interpreted(interpreter: &str, file: &str) -> Command {
    let mut command = Command::new(interpreter);
    command.arg(own(file));
    command
}

fn c(folder: &Path) -> Command {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let program = BUILT.get_or_init(|| {
        // Beside other programs of the tests: it is the same for all that run.
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("marking-daemon-c");
        let new = folder.join("marking-daemon-c");
        let library = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/daemon-c");
        let mut cc = Command::new("cc");
        cc.args(["-Wall", "-Wextra", "-O2", "-pthread", "-I", library, "-o"]).arg(&new).arg(own("daemon.c"));
        let output = cc.output().expect("the compiler is there");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::copy(&new, program.with_extension("new"))
            .and_then(|_| fs::rename(program.with_extension("new"), &program))
            .expect("a folder");
        program
    });
    Command::new(program)
}

/// One of a target's sockets, and who listens there.
pub struct Member {
    language: Language,
    socket: PathBuf,
    refused_percent: u32,
    state: Mutex<State>,
}

struct State {
    /// Who listens, at last those who are about to end.
    running: Vec<Running>,
    number: u32,
    is_stopped: bool,
}

struct Running {
    child: Child,
    said: Lines,
    is_asked_to_end: bool,
}

impl Running {
    /// Once: an interpreter that is about to exit does not listen any more.
    fn ask_to_end(&mut self) {
        if !std::mem::replace(&mut self.is_asked_to_end, true) {
            signal(self.child.id(), Signal::SIGTERM);
        }
    }
}

/// What is done to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deed {
    /// SIGKILL, and somebody new.
    Kill,
    /// SIGSTOP, and SIGCONT before anybody's patience ends, or behind that.
    Stop,
    /// Somebody new takes its place, and it is asked to end.
    Replace,
    /// It is asked to end, and when it has, somebody new takes its place.
    Restart,
}

impl Member {
    pub fn start(language: Language, socket: PathBuf, refused_percent: u32) -> Self {
        let state = State { running: Vec::new(), number: 0, is_stopped: false };
        let member = Self { language, socket, refused_percent, state: Mutex::new(state) };
        member.begin_one(&mut member.state());
        member
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic")
    }

    /// It listens beside, and then in the place: at no moment is there nobody.
    fn begin_one(&self, state: &mut State) {
        state.number += 1;
        let name = format!("{}-{}", self.language.name, state.number);
        let new = self.socket.with_extension("new");
        let mut command = (self.language.command)(self.socket.parent().expect("a folder"));
        command.arg(&new).arg(name).arg(self.refused_percent.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let ready = Lines::read(child.stdout.take().expect("piped"));
        let said = Lines::read(child.stderr.take().expect("piped"));
        eventually("the daemon is ready", || {
            let ended = child.try_wait().expect("ours");
            assert!(ended.is_none(), "{}: {ended:?}, {:?}", self.language.name, said.all());
            (ready.count() > 0).then_some(())
        });
        fs::rename(new, &self.socket).expect("one folder");
        state.running.push(Running { child, said, is_asked_to_end: false });
    }

    pub fn suffer(&self, deed: Deed, pause: Duration, chance: &mut Chance) {
        match deed {
            Deed::Kill => {
                let mut state = self.state();
                let mut last = state.running.pop().expect("somebody listens");
                drop(last.child.kill());
                drop(last.child.wait());
                if chance.percent(50) {
                    // Nobody is there for a while.
                    drop(state);
                    std::thread::park_timeout(pause);
                    state = self.state();
                }
                self.begin_one(&mut state);
            }
            Deed::Stop => {
                self.stop(true);
                std::thread::park_timeout(pause);
                self.stop(false);
            }
            Deed::Replace => {
                let mut state = self.state();
                self.begin_one(&mut state);
                let before = state.running.len() - 2;
                state.running[before].ask_to_end();
            }
            Deed::Restart => {
                let last = {
                    let mut state = self.state();
                    let last = state.running.last_mut().expect("somebody listens");
                    last.ask_to_end();
                    last.child.id()
                };
                eventually("it ends", || {
                    self.reap();
                    self.state().running.iter().all(|running| running.child.id() != last).then_some(())
                });
                let mut state = self.state();
                self.begin_one(&mut state);
            }
        }
        self.reap();
    }

    fn stop(&self, is_stopped: bool) {
        let mut state = self.state();
        state.is_stopped = is_stopped;
        let signal_of = if is_stopped { Signal::SIGSTOP } else { Signal::SIGCONT };
        signal(state.running.last().expect("somebody listens").child.id(), signal_of);
    }

    /// Forgets those who have ended, as they should: by themselves.
    fn reap(&self) {
        self.state().running.retain_mut(|running| {
            let Some(status) = running.child.try_wait().expect("ours") else { return true };
            assert_eq!(status.code(), Some(0), "{}: {:?}", self.language.name, running.said.all());
            false
        });
    }

    /// All of them are asked to end, and have.
    pub fn end(&self) {
        self.state().running.iter_mut().for_each(Running::ask_to_end);
        eventually("they end", || {
            self.reap();
            self.state().running.is_empty().then_some(())
        });
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for running in &mut state.running {
            for pid in family(running.child.id()) {
                let _: nix::Result<()> = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
            }
            drop(running.child.wait());
            if std::thread::panicking() {
                eprintln!("{} said: {:?}", self.language.name, running.said.all());
            }
        }
    }
}

fn signal(pid: u32, signal: Signal) {
    // One that has ended is not waited for yet: it still has its number.
    kill(Pid::from_raw(pid.cast_signed()), signal).expect("ours");
}

/// A process and everybody whom it has started.
fn family(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
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

/// All daemons and the gateway, standing still: what each has open is the truth of one moment.
pub struct Still<'a> {
    members: Vec<MutexGuard<'a, State>>,
    /// Who stands still because of us, not because of what is done to it.
    ours: Vec<u32>,
    /// Each process by the daemon that it is of; 0: the gateway.
    pub processes: Vec<(usize, u32)>,
}

/// How long they may take to stand still: on a busy machine a thread may not have its turn for long, and nobody is to be
/// held up by that.
const STAND_PATIENCE: Duration = Duration::from_millis(500);

impl<'a> Still<'a> {
    /// `None` where somebody does not come to stand still in time.
    pub fn stand(gateway: u32, members: &'a [Member]) -> Option<Self> {
        let members: Vec<_> = members.iter().map(Member::state).collect();
        let mut still = Self { members, ours: Vec::new(), processes: vec![(0, gateway)] };
        let mut daemon = 0;
        let mut roots = vec![(0, gateway, false)];
        for state in &still.members {
            let last = state.running.len().wrapping_sub(1);
            for (at, running) in state.running.iter().enumerate() {
                daemon += 1;
                roots.push((daemon, running.child.id(), state.is_stopped && at == last));
            }
        }
        let end = Instant::now() + STAND_PATIENCE;
        let stands = |pid| {
            while !are_all(pid, 'T') && !are_all(pid, 'Z') {
                if Instant::now() > end {
                    return None;
                }
                std::thread::park_timeout(Duration::from_millis(1));
            }
            Some(())
        };
        for (daemon, root, is_stopped) in roots {
            if !is_stopped {
                signal(root, Signal::SIGSTOP);
                still.ours.push(root);
            }
            // Whoever stands still starts nobody.
            stands(root)?;
            let children = family(root).split_off(1);
            for child in children {
                // It may have ended since.
                if kill(Pid::from_raw(child.cast_signed()), Signal::SIGSTOP).is_ok() {
                    still.ours.push(child);
                    stands(child)?;
                    still.processes.push((daemon, child));
                }
            }
            if daemon > 0 {
                still.processes.push((daemon, root));
            }
        }
        Some(still)
    }
}

impl Drop for Still<'_> {
    fn drop(&mut self) {
        for pid in &self.ours {
            let _: nix::Result<()> = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGCONT);
        }
        self.members.clear();
    }
}
