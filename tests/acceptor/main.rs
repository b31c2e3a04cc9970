//! The library's daemon, in the native protocol, against a gateway that is written here, packet by packet: one that keeps
//! to the protocol, and one that does not.
//!
//! All of it runs one test at a time: descriptors are counted for the whole process.

#[cfg(feature = "gateway")]
mod asynchronous;
mod bodies;
mod channels;
mod endings;
mod hostile;
mod inherited;
mod limits;
mod others;
mod scripted;
mod stopping;

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use baton::handoff::{Acceptor, Dialect, Handoff, Options, ReceiveError};

/// How long a fact may take to become true.
fn patience() -> Duration {
    Duration::from_secs(std::env::var("BATON_TEST_PATIENCE").ok().and_then(|s| s.parse().ok()).unwrap_or(20))
}

static REPORTS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// One test's turn, its folder, and the descriptors that were open when it began.
struct Bench {
    folder: tempfile::TempDir,
    before: BTreeMap<i32, PathBuf>,
    _turn: MutexGuard<'static, ()>,
}

impl Bench {
    fn new() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        REPORTS.lock().unwrap_or_else(PoisonError::into_inner).clear();
        Self { folder: tempfile::tempdir().unwrap(), before: ledger(), _turn: turn }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    fn acceptor(&self) -> Acceptor {
        self.acceptor_with(options())
    }

    fn acceptor_with(&self, options: Options) -> Acceptor {
        Acceptor::bind(self.path(), Dialect::Baton, options).unwrap()
    }

    /// Nothing was left open by what happened since the beginning.
    #[track_caller]
    fn check_ledger(&self) {
        assert_eq!(ledger(), self.before);
    }
}

/// Those of a test: what is dropped is noted, and a client that stays does not hold a test up.
fn options() -> Options {
    let report = |error: &ReceiveError| {
        let mut text = error.to_string();
        if let Some(cause) = std::error::Error::source(error) {
            text = format!("{text}: {cause}");
        }
        REPORTS.lock().unwrap().push(text);
    };
    Options { report, linger: Duration::from_millis(200), ..Options::default() }
}

fn reports() -> Vec<String> {
    REPORTS.lock().unwrap().clone()
}

/// Every open descriptor, and what it is.
fn ledger() -> BTreeMap<i32, PathBuf> {
    let numbers: Vec<i32> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    // The folder itself was open while it was read, and is gone by now.
    let link = |number| Some((number, fs::read_link(format!("/proc/self/fd/{number}")).ok()?));
    numbers.into_iter().filter_map(link).collect()
}

/// Asks until there is an answer.
#[track_caller]
fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + patience();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "never: {what}");
        thread::park_timeout(Duration::from_millis(2));
    }
}

#[track_caller]
fn accept(acceptor: &mut Acceptor) -> Handoff {
    acceptor.accept().unwrap().expect("a client")
}

/// Everything until a clean end; a reset is a failure.
#[track_caller]
fn whole(far: &mut TcpStream) -> String {
    let mut whole = String::new();
    far.read_to_string(&mut whole).unwrap();
    whole
}

/// Whether the client's connection was reset.
#[track_caller]
fn was_reset(far: &mut TcpStream) -> bool {
    match far.read_to_end(&mut Vec::new()) {
        Ok(_) => false,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => true,
        Err(error) => panic!("{error}"),
    }
}
