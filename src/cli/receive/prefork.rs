//! Programs that accept clients themselves, in a loop, as after FCGI_Accept: each has the listener, and is started again when it ends.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, process, thread};

use anyhow::Context as _;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::dup2_stdin;

use super::arguments::Receive;
use super::log;
use super::program::{Ended, Program, command_of};
use super::stopping::Stopping;
use crate::handoff::Listener;

/// The pause before a program that did not live long is started again; twice as long each time that it fails,
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// up to this.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Who has lived for so long is started again at once.
const LONG_LIFE: Duration = Duration::from_secs(10);
/// Where a program looks for its listener (sd_listen_fds(3)).
const LISTENER: i32 = 3;

/// Keeps `count` programs running until asked to stop.
pub(super) fn run(count: u32, arguments: &Receive, stopping: &Arc<Stopping>) -> anyhow::Result<ExitCode> {
    let socket = arguments.socket.display();
    anyhow::ensure!(!arguments.is_inherited(), "--prefork makes its listener itself: it takes a path, not -");
    let listener = Listener::bind(&arguments.socket, arguments.dialect, &arguments.options())
        .with_context(|| format!("cannot listen on {socket}"))?;
    // Whoever loops waits in accept(2); who does not says so.
    let flags = OFlag::from_bits_retain(fcntl(listener.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(listener.as_fd(), FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    stopping.listen(arguments.drain_timeout, || {}, || {})?;
    log::say(format!("receiving on {socket}"));
    thread::scope(|scope| {
        for number in 1..=count {
            let listener = &listener;
            thread::Builder::new().spawn_scoped(scope, move || keep(number, listener.as_fd(), arguments, stopping))?;
        }
        // The file goes at once, the socket when the programs have closed theirs too.
        while !stopping.stop.has_happened() {
            stopping.stop.wait(Duration::from_secs(3600));
        }
        listener.remove();
        Ok::<(), io::Error>(())
    })
    .context("no thread for a program")?;
    Ok(ExitCode::SUCCESS)
}

/// Starts a program again and again.
fn keep(number: u32, listener: BorrowedFd<'_>, arguments: &Receive, stopping: &Stopping) {
    let name = format!("program {number}");
    let mut pause = PAUSE_MIN;
    while !stopping.stop.has_happened() {
        let began = Instant::now();
        let (words, is_success) = match start_one(&name, listener, arguments) {
            Ok(program) => {
                let ended: Ended = program.watch_alone(stopping);
                (ended.words(), ended.is_success())
            }
            Err(error) => (format!("{error:#}"), false),
        };
        if stopping.stop.has_happened() {
            break;
        }
        if began.elapsed() >= LONG_LIFE {
            pause = PAUSE_MIN;
            log::say(format!("[{name}] {words}; started again"));
            continue;
        }
        pause = if is_success { PAUSE_MIN } else { pause };
        log::say(format!("[{name}] {words}; started again in {} ms", pause.as_millis()));
        stopping.stop.wait(pause);
        if !is_success {
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

fn start_one(name: &str, listener: BorrowedFd<'_>, arguments: &Receive) -> anyhow::Result<Program> {
    // LISTEN_PID is known in the process itself only: this program again, which puts everything in its place.
    let mut command = command_of(&["/proc/self/exe".into(), "receive-start".into(), "--".into()]);
    command.arg0("baton").args(&arguments.command);
    if !arguments.allow_uids.is_empty() {
        let uids: Vec<_> = arguments.allow_uids.iter().map(ToString::to_string).collect();
        command.env("BATON_GATEWAY_UIDS", uids.join(","));
    }
    command.stdin(Stdio::from(listener.try_clone_to_owned()?)).stdout(Stdio::null()).stderr(Stdio::piped());
    Program::spawn(command, name, &arguments.command[0])
}

/// Becomes a program that has the listener, which is on standard input, at 3.
#[derive(Debug, clap::Args)]
pub struct Start {
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Becomes the program.
///
/// # Errors
/// It cannot be run.
pub fn start(arguments: Start) -> anyhow::Result<ExitCode> {
    let number = fcntl(io::stdin().as_fd(), FcntlArg::F_DUPFD(LISTENER))?;
    anyhow::ensure!(number == LISTENER, "descriptor {LISTENER} is somebody else's");
    dup2_stdin(OpenOptions::new().read(true).open("/dev/null")?)?;
    let (program, words) = arguments.command.split_first().context("no program")?;
    let mut command = Command::new(program);
    command.args(words).env("LISTEN_FDS", "1").env("LISTEN_PID", process::id().to_string());
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}
