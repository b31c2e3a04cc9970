//! A program for one client: how it is started, and how it is watched until it ends.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::arguments::Receive;
use super::feed::Feed;
use super::stderr::Stderr;
use super::stopping::Stopping;
use crate::handoff::{ENVIRONMENT_NAMES, Handoff, progress};

/// From TERM to KILL.
pub(super) const TERM_TO_KILL: Duration = Duration::from_secs(2);
/// A stall is looked for this often within its time, but not more often than
const STALL_LOOKS: u32 = 8;
/// so.
const STALL_LOOK_MIN: Duration = Duration::from_millis(10);

/// Why a program was ended.
#[derive(Debug)]
pub(super) enum Cut {
    /// The request's body cannot be read to its end.
    Body(io::Error),
    /// It still ran when the time to drain was over.
    Drained,
    /// Its client has broken the connection.
    Left,
    /// It ran longer than it may.
    Late,
    /// The gateway asked for it.
    Revoked,
    /// Its client took nothing, or it wrote nothing, for longer than they may.
    Stalled,
}

/// How a program ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// `None`: nobody knows, because whoever began us ignores SIGCHLD.
    pub status: Option<ExitStatus>,
    pub cut: Option<Cut>,
}

impl Ended {
    pub(super) fn is_success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// Its status in words, for people.
    pub(super) fn words(&self) -> String {
        match self.status {
            None => "exit status unknown".to_owned(),
            Some(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("exit status {code}"),
                (None, signal) => format!("signal {}", signal.unwrap_or(0)),
            },
        }
    }

    /// Whether it ended as a program does that finds its client gone.
    pub(super) fn is_of_broken_pipe(&self) -> bool {
        let signal = Signal::SIGPIPE as i32;
        self.status.is_some_and(|status| status.signal() == Some(signal) || status.code() == Some(128 + signal))
    }
}

/// A program that runs.
#[derive(Debug)]
pub(super) struct Program {
    child: Child,
    /// Readable when it has ended.
    process: OwnedFd,
    stderr: Stderr,
    feed: Option<Feed>,
}

impl Program {
    /// Starts it with a client that was taken. `id` is the handoff's name in the log.
    pub(super) fn start(handoff: &Handoff, id: &str, data_file: &Path, command: &[OsString]) -> anyhow::Result<Self> {
        handoff.set_blocking(true).context("cannot make the client blocking")?;
        let copy = || handoff.client().try_clone_to_owned().map(Stdio::from);
        let is_fed = handoff.is_body_beside_client();
        let mut program = command_of(command);
        program.stdin(if is_fed { Stdio::piped() } else { copy()? }).stdout(copy()?).stderr(Stdio::piped());
        program.env("HANDOFF_ID", id).envs(handoff.env()).env("HANDOFF_DATA_FILE", data_file);
        Self::spawn(program, id, &command[0])
    }

    /// Starts one that has no client of its own.
    pub(super) fn spawn(mut command: Command, name: &str, called: &OsStr) -> anyhow::Result<Self> {
        // A group of its own: what the program starts is cut with it, and a terminal's INT is ours alone.
        command.process_group(0);
        let mut child = command.spawn().with_context(|| format!("cannot run {}", called.display()))?;
        let watched = watch(&child).and_then(|process| {
            let feed = child.stdin.take().map(Feed::new).transpose()?;
            Ok((process, feed))
        });
        match watched {
            Ok((process, feed)) => {
                let stderr = Stderr::new(child.stderr.take(), name);
                Ok(Self { child, process, stderr, feed })
            }
            Err(error) => {
                signal_group(&child, Signal::SIGKILL);
                drop(child.wait());
                Err(error).context("cannot watch a program")
            }
        }
    }

    /// Watches it with its client, until it has ended or was ended.
    pub(super) fn watch(mut self, handoff: &mut Handoff, arguments: &Receive, stopping: &Stopping) -> Ended {
        let began = Instant::now();
        let late = arguments.timeout.and_then(|timeout| began.checked_add(timeout));
        let stall_look = (arguments.stall_timeout / STALL_LOOKS).clamp(STALL_LOOK_MIN, Duration::from_secs(1));
        let mut moved = (progress(handoff.client()), began);
        let (mut ending, mut is_client_watched) = (Ending::default(), true);
        loop {
            let now = Instant::now();
            let seen = progress(handoff.client());
            if seen.is_none() || seen != moved.0 {
                moved = (seen, now);
            }
            // Asked for first, so that a revocation that comes later ends it.
            let revocation = handoff.revocation();
            if handoff.revoked() {
                ending.cut(&self.child, Cut::Revoked);
            } else if stopping.cut.has_happened() {
                ending.cut(&self.child, Cut::Drained);
            } else if late.is_some_and(|late| late <= now) {
                ending.cut(&self.child, Cut::Late);
            } else if now.duration_since(moved.1) >= arguments.stall_timeout {
                ending.cut(&self.child, Cut::Stalled);
            }
            ending.kill_if_late(&self.child, now);
            let next = match ending.cut {
                Some(_) => ending.kill_at,
                None => [late, Some(now + stall_look)].into_iter().flatten().min(),
            };

            let mut ready = vec![PollFd::new(self.process.as_fd(), PollFlags::POLLIN)];
            let fed = self.feed.as_ref().and_then(|feed| feed.wanted(handoff));
            let fed_at = fed.map(|wanted| push(&mut ready, wanted));
            let said = self.stderr.pipe().map(|pipe| PollFd::new(pipe, PollFlags::POLLIN));
            let said_at = said.map(|wanted| push(&mut ready, wanted));
            let mut left_at = None;
            if ending.cut.is_none() {
                // Asked for nothing, it tells of its end, and does not stop to.
                let client = is_client_watched.then(|| PollFd::new(handoff.client(), PollFlags::empty()));
                left_at = client.map(|client| push(&mut ready, client));
                ready.push(PollFd::new(stopping.cut.as_fd(), PollFlags::POLLIN));
                ready.extend(revocation.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
            }
            // Interrupted, it looks again.
            let _ = poll(&mut ready, until(next));
            let is_ready = |at: Option<usize>| at.is_some_and(|at| ready[at].any() == Some(true));
            let has_ended = is_ready(Some(0));
            let seen = left_at.and_then(|at| ready[at].revents()).unwrap_or(PollFlags::empty());
            let (is_fed, has_said) = (is_ready(fed_at), is_ready(said_at));
            drop(ready);
            if has_said {
                self.stderr.read();
            }
            if has_ended {
                break;
            }
            // An end in both directions, without a reset, is one that the program may have made.
            is_client_watched &= seen.is_empty();
            if seen.contains(PollFlags::POLLERR) {
                ending.cut(&self.child, Cut::Left);
            }
            if is_fed
                && let Some(feed) = &mut self.feed
                && let Err(error) = feed.step(handoff)
            {
                let why = if handoff.revoked() { Cut::Revoked } else { Cut::Body(error) };
                ending.cut(&self.child, why);
                // Its pipe stays open until it has ended.
                ending.broken = self.feed.take();
            }
        }
        self.end(ending)
    }

    /// Watches one that has no client: TERM when it is to stop, KILL when that takes too long.
    pub(super) fn watch_alone(mut self, stopping: &Stopping) -> Ended {
        let (mut ending, mut is_told) = (Ending::default(), false);
        loop {
            if stopping.stop.has_happened() && !std::mem::replace(&mut is_told, true) {
                signal_group(&self.child, Signal::SIGTERM);
            }
            if stopping.cut.has_happened() {
                ending.cut(&self.child, Cut::Drained);
            }
            ending.kill_if_late(&self.child, Instant::now());
            let mut ready = vec![PollFd::new(self.process.as_fd(), PollFlags::POLLIN)];
            let said = self.stderr.pipe().map(|pipe| PollFd::new(pipe, PollFlags::POLLIN));
            let said_at = said.map(|wanted| push(&mut ready, wanted));
            if ending.cut.is_none() {
                let next = if is_told { &stopping.cut } else { &stopping.stop };
                ready.push(PollFd::new(next.as_fd(), PollFlags::POLLIN));
            }
            let _ = poll(&mut ready, until(ending.kill_at));
            let has_ended = ready[0].any() == Some(true);
            let has_said = said_at.is_some_and(|at| ready[at].any() == Some(true));
            drop(ready);
            if has_said {
                self.stderr.read();
            }
            if has_ended {
                return self.end(ending);
            }
        }
    }

    fn end(mut self, ending: Ending) -> Ended {
        if ending.cut.is_some() {
            // Not collected yet, so that the group's number is still its own.
            signal_group(&self.child, Signal::SIGKILL);
        }
        Ended { status: self.child.wait().ok(), cut: ending.cut }
    }
}

/// The end that a program was given, and how far that has come.
#[derive(Debug, Default)]
struct Ending {
    cut: Option<Cut>,
    kill_at: Option<Instant>,
    broken: Option<Feed>,
}

impl Ending {
    /// Once; the first reason counts.
    fn cut(&mut self, child: &Child, why: Cut) {
        if self.cut.is_none() {
            self.cut = Some(why);
            self.kill_at = Some(Instant::now() + TERM_TO_KILL);
            signal_group(child, Signal::SIGTERM);
        }
    }

    fn kill_if_late(&mut self, child: &Child, now: Instant) {
        if self.kill_at.is_some_and(|at| at <= now) {
            self.kill_at = None;
            signal_group(child, Signal::SIGKILL);
        }
    }
}

/// The command in an environment that says nothing of anybody's client or listener.
pub(super) fn command_of(command: &[OsString]) -> Command {
    let mut program = Command::new(&command[0]);
    program.args(&command[1..]);
    let is_of_request = |name: &OsStr| name.to_str().is_some_and(|name| name.starts_with("HTTP_"));
    for (name, _) in env::vars_os().filter(|(name, _)| is_of_request(name)) {
        program.env_remove(name);
    }
    for name in ENVIRONMENT_NAMES.into_iter().chain(["LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID"]) {
        program.env_remove(name);
    }
    program
}

fn watch(child: &Child) -> io::Result<OwnedFd> {
    let process = rustix::process::Pid::from_child(child);
    Ok(rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty())?)
}

/// Signals a program that was not collected yet, and what it has started.
fn signal_group(child: &Child, signal: Signal) {
    // It fails only when nothing of the group is left.
    let _ = killpg(Pid::from_raw(child.id().cast_signed()), signal);
}

fn push<'a>(ready: &mut Vec<PollFd<'a>>, wanted: PollFd<'a>) -> usize {
    ready.push(wanted);
    ready.len() - 1
}

fn until(next: Option<Instant>) -> PollTimeout {
    let Some(next) = next else { return PollTimeout::NONE };
    let left = next.saturating_duration_since(Instant::now());
    // Rounded up, so that nobody wakes just before it.
    PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
}
