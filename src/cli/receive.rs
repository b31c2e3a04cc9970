//! `baton receive`: the daemon's side for any program. One process per client, the client on its standard input and
//! output.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::net::TcpStream;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{env, thread};

use crate::handoff::{
    Acceptor, Dialect, ENVIRONMENT_NAMES, Handoff, Options, close_gracefully, close_on_exec_beyond_stderr,
    written_bytes,
};
use anyhow::{Context as _, ensure};
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, mkdtemp};

/// How long a client may take to close once its answer is complete.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);
/// How long nothing is accepted after a thread could not be started.
const EXHAUSTED_PAUSE: Duration = Duration::from_secs(1);

/// Runs a program for every client that is handed over at SOCKET.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The program has the client, blocking, on standard input and output; the request's head was read by \
    the gateway, its body was not. HANDOFF_DATA_FILE names a file with the data of the handoff; in the dialect datagram it \
    is the request's head. A program that writes nothing is answered for: 502, or 504 when its time is up. With \
    HANDOFF_HEAD_SENT=1, in the dialect fdpass, the response's head was written by the gateway: the program writes the \
    body, and where it fails the client is reset. Exit codes: 0 asked to stop, 1 failed, 2 usage."
)]
pub struct Receive {
    /// Where to listen; a stale socket is replaced
    socket: PathBuf,
    /// How handoffs arrive: seqpacket, stream, fdpass or datagram
    #[arg(long, default_value = "seqpacket", value_parser = dialect)]
    dialect: Dialect,
    /// Programs at a time; more clients wait in the backlog
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    clients_max: u32,
    /// How long a program may run, as in 90s or 5m; unlimited without
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    timeout: Option<Duration>,
    /// Permission bits of the socket, octal
    #[arg(long, value_name = "MODE", default_value = "0660", value_parser = mode)]
    socket_mode: u32,
    /// User id that may hand over, repeatable; without, one's own and root, or those in BATON_GATEWAY_UIDS
    #[arg(long = "allow-uid", value_name = "UID")]
    allow_uids: Vec<u32>,
    /// How long programs may go on after TERM or INT; a second signal cuts
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    drain_timeout: Duration,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<std::ffi::OsString>,
}

/// Receives until TERM or INT, then waits for the programs.
///
/// # Errors
/// It cannot listen, or not any more.
pub fn run(arguments: Receive) -> anyhow::Result<ExitCode> {
    close_on_exec_beyond_stderr().context("cannot keep descriptors from programs")?;
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    // Before any thread is started, so that each inherits it; programs get an empty mask from the standard library.
    signals.thread_block()?;

    let options = Options {
        allow_uids: (!arguments.allow_uids.is_empty()).then(|| arguments.allow_uids.clone()),
        report: |error| eprintln!("dropped a handoff: {}", chain(error)),
        socket_mode: arguments.socket_mode,
        ..Options::default()
    };
    let socket = arguments.socket.display();
    let mut acceptor = Acceptor::bind(&arguments.socket, arguments.dialect, options)
        .with_context(|| format!("cannot listen on {socket}"))?;
    let folder = PrivateFolder::new().context("cannot make a folder for handoff data")?;
    let programs = Arc::new(Programs::default());
    let stop = acceptor.stop_handle();
    let watched = Arc::clone(&programs);
    thread::Builder::new().spawn(move || {
        // It fails only for a set that is not blocked.
        while signals.wait().is_ok() {
            stop.stop();
            watched.stop_asked();
        }
    })?;
    if let Some(timeout) = arguments.timeout {
        let watched = Arc::clone(&programs);
        thread::Builder::new().spawn(move || watched.cut_late(timeout))?;
    }

    eprintln!("receiving on {socket}");
    let arguments = Arc::new(arguments);
    let folder = Arc::new(folder);
    for number in 0_u64.. {
        programs.wait_for_room(arguments.clients_max);
        let Some(handoff) = acceptor.accept().context("cannot accept")? else { break };
        let seat = Seat::take(&programs);
        let (arguments, folder) = (Arc::clone(&arguments), Arc::clone(&folder));
        let serving = thread::Builder::new().spawn(move || {
            let data_file = folder.0.join(number.to_string());
            if let Err(error) = serve(handoff, &data_file, &arguments.command, &seat) {
                eprintln!("{error:#}");
            }
            drop(fs::remove_file(data_file));
        });
        if let Err(error) = serving {
            // The client went down with the thread; the next ones are better left waiting.
            eprintln!("no thread for a client: {error}");
            #[expect(
                clippy::disallowed_methods,
                reason = "this thread does nothing but accept, and that is what pauses"
            )]
            thread::sleep(EXHAUSTED_PAUSE);
        }
    }
    drop(acceptor);
    programs.drain(arguments.drain_timeout);
    Ok(ExitCode::SUCCESS)
}

/// Runs the program for one client, and answers where it did not.
fn serve(handoff: Handoff, data_file: &Path, command: &[std::ffi::OsString], seat: &Seat) -> anyhow::Result<()> {
    let before = written_bytes(handoff.client());
    let is_head_sent = handoff.is_head_sent();
    let started = start(&handoff, data_file, command);
    let client = handoff.into_client();
    let end = match started {
        Ok(child) => seat.watch(child)?,
        Err(error) if is_head_sent => {
            reset(client);
            return Err(error);
        }
        Err(error) => {
            answer(client, before, "502 Bad Gateway");
            return Err(error);
        }
    };
    let status = match end.cut {
        None => "502 Bad Gateway",
        Some(Cut::Drained) => "503 Service Unavailable",
        Some(Cut::Late) => "504 Gateway Timeout",
    };
    let has_failed = end.cut.is_some() || !end.status.success();
    let has_written = written_bytes(client.as_fd()) != before;
    match (is_head_sent, has_written) {
        (_, true) if end.cut.is_some() => reset(client),
        (true, false) if has_failed => reset(client),
        (true, _) => close_gracefully(client, CLOSE_PATIENCE),
        (false, _) => answer(client, before, status),
    }
    ensure!(end.cut != Some(Cut::Late), "{}: ran too long", command[0].display());
    ensure!(end.status.success(), "{}: {}", command[0].display(), end.status);
    Ok(())
}

/// Ends a client whose answer is not whole: a clean end would make it look so where the end is what delimits it. A client
/// over a Unix socket knows no reset; it is closed.
fn reset(client: OwnedFd) {
    // This is about the close only, so a socket that does not know of it is closed all the same.
    let _ = setsockopt(&client, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 });
}

fn start(handoff: &Handoff, data_file: &Path, command: &[std::ffi::OsString]) -> anyhow::Result<Child> {
    handoff.set_blocking(true)?;
    let mut file: File = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(data_file)
        .with_context(|| format!("cannot write {}", data_file.display()))?;
    file.write_all(handoff.data()).with_context(|| format!("cannot write {}", data_file.display()))?;
    let copy = || handoff.client().try_clone_to_owned().map(Stdio::from);
    let mut program = Command::new(&command[0]);
    program.args(&command[1..]).stdin(copy()?).stdout(copy()?);
    for name in ENVIRONMENT_NAMES {
        program.env_remove(name);
    }
    program.envs(handoff.env()).env("HANDOFF_DATA_FILE", data_file);
    // A group of its own: what the program starts is cut with it, and a terminal's INT is ours alone.
    program.process_group(0);
    program.spawn().with_context(|| format!("cannot run {}", command[0].display()))
}

/// Ends a client whose program has ended; with an answer, if nobody has written one. Of a client over a Unix socket that
/// cannot be known, and it is closed.
fn answer(client: OwnedFd, before: Option<u64>, status: &str) {
    if before.is_some() && written_bytes(client.as_fd()) == before {
        let mut stream = TcpStream::from(client);
        let answer = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        // A client that has left needs no answer.
        drop(stream.write_all(answer.as_bytes()));
        close_gracefully(stream.into(), CLOSE_PATIENCE);
    } else {
        close_gracefully(client, CLOSE_PATIENCE);
    }
}

/// The programs that run now.
#[derive(Debug, Default)]
struct Programs {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Clients that have a thread.
    clients: u32,
    /// By process, which is also its group: since when, and why it was cut. A process is in here only
    /// while its number cannot be another's: from its start until it is reaped.
    running: HashMap<i32, (Instant, Option<Cut>)>,
    stops: u32,
}

impl Programs {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for_room(&self, clients_max: u32) {
        let full = |state: &mut State| state.clients >= clients_max && state.stops == 0;
        drop(self.changed.wait_while(self.state(), full).unwrap_or_else(PoisonError::into_inner));
    }

    fn stop_asked(&self) {
        self.state().stops += 1;
        self.changed.notify_all();
    }

    /// Cuts every program that has run for `timeout`.
    fn cut_late(&self, timeout: Duration) {
        let mut state = self.state();
        loop {
            let now = Instant::now();
            let mut next = timeout;
            for (group, (since, cut)) in &mut state.running {
                let left = timeout.saturating_sub(now - *since);
                if !left.is_zero() {
                    next = next.min(left);
                } else if cut.is_none() {
                    *cut = Some(Cut::Late);
                    kill(*group);
                }
            }
            state = self.changed.wait_timeout(state, next).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for everybody, until time is up or a second signal comes; then cuts.
    fn drain(&self, patience: Duration) {
        let busy = |state: &mut State| state.clients > 0 && state.stops < 2;
        let (mut state, _) =
            self.changed.wait_timeout_while(self.state(), patience, busy).unwrap_or_else(PoisonError::into_inner);
        if state.clients == 0 {
            return;
        }
        eprintln!("cutting {} clients", state.clients);
        for (group, (_, cut)) in &mut state.running {
            *cut = Some(Cut::Drained);
            kill(*group);
        }
        let busy = |state: &mut State| state.clients > 0;
        drop(self.changed.wait_timeout_while(state, CLOSE_PATIENCE * 2, busy));
    }
}

/// Kills a program and what it has started.
fn kill(group: i32) {
    // It fails only when nothing of the group is left.
    let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
}

/// One client's place among [`Programs`], given back when dropped.
#[derive(Debug)]
struct Seat(Arc<Programs>);

/// Why a program was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// It still ran when the time to drain was over.
    Drained,
    /// It ran longer than it may.
    Late,
}

struct End {
    status: ExitStatus,
    cut: Option<Cut>,
}

impl Seat {
    fn take(programs: &Arc<Programs>) -> Self {
        programs.state().clients += 1;
        Self(Arc::clone(programs))
    }

    /// Waits for a program.
    fn watch(&self, mut child: Child) -> anyhow::Result<End> {
        let process = child.id().cast_signed();
        self.0.state().running.insert(process, (Instant::now(), None));
        self.0.changed.notify_all();
        // Ended but not reaped, its number stays its own until nobody can signal it any more.
        let ended = || waitid(Id::Pid(Pid::from_raw(process)), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
        // Any other error: whoever began us ignores SIGCHLD, and it has ended without a word.
        while ended() == Err(Errno::EINTR) {}
        let (_, cut) = self.0.state().running.remove(&process).expect("only this thread takes it out");
        Ok(End { status: child.wait()?, cut })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.state().clients -= 1;
        self.0.changed.notify_all();
    }
}

/// A folder that only this user can look into, removed with everything in it.
#[derive(Debug)]
struct PrivateFolder(PathBuf);

impl PrivateFolder {
    fn new() -> nix::Result<Self> {
        mkdtemp(&env::temp_dir().join("baton-receive.XXXXXX")).map(Self)
    }
}

impl Drop for PrivateFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("left {} behind: {error}", self.0.display());
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn dialect(name: &str) -> Result<Dialect, String> {
    match name.parse() {
        Ok(Dialect::Auto | Dialect::Baton) | Err(_) => Err("seqpacket, stream, fdpass or datagram".to_owned()),
        Ok(dialect) => Ok(dialect),
    }
}

fn mode(octal: &str) -> Result<u32, String> {
    u32::from_str_radix(octal, 8).ok().filter(|mode| *mode <= 0o777).ok_or_else(|| "octal, at most 0777".to_owned())
}

/// "100ms", "30s", "5m", "1h".
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let unit_ms = match &text[digits..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("a number with ms, s, m or h".to_owned()),
    };
    let number = text[..digits].parse::<u64>().ok();
    let duration = number.and_then(|number| number.checked_mul(unit_ms)).map(Duration::from_millis);
    duration.ok_or_else(|| "a number with ms, s, m or h".to_owned())
}
