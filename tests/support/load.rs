//! Many clients at once, and what each of them got: nothing, one whole answer of one party, or what must never be.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::AddAssign;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt};

use super::patience;

/// `/` asks the policy that does what the request's fields say; `/hello` is answered here.
pub fn configuration(gateway: &str, handoff: &str, tables: &str) -> String {
    let policy = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/policies/handoff_by_fields.wat");
    format!(
        "[gateway]\n{gateway}\nLISTEN\n[handoff]\n{handoff}\n{tables}\n\
         [policy.by-fields]\nmodule = \"{policy}\"\ndeadline = \"1s\"\ndecision_bytes_max = \"8MiB\"\n\
         [[route]]\npath = \"/\"\npolicies = [\"by-fields\"]\n\
         [[route]]\npath = \"/hello\"\ndefault = {{ respond = {{ status = 200, body = \"hello\" }} }}\n"
    )
}

/// One target for each name, at the socket of that name.
pub fn targets(names: &[(&str, &str)]) -> String {
    let table = |(name, dialect): &(&str, &str)| {
        format!("[target.{name}]\nsockets = [\"DIR/{name}.sock\"]\ndialect = \"{dialect}\"\n")
    };
    names.iter().map(table).collect()
}

/// A connection's last request.
pub fn last(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{fields}\r\n")
}

/// What a client got on a connection of its own, from its request to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Got {
    /// The daemon's answer, whole.
    Daemon,
    /// One answer of the gateway, whole, with that status.
    Gateway(u16),
    /// A clean end without a byte.
    Closed,
    /// A reset without a byte.
    Reset,
    /// It did not wait for anything, or found nobody.
    Left,
}

/// How many got what.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Tally(BTreeMap<Got, usize>);

impl Tally {
    pub fn of(&self, got: Got) -> usize {
        self.0.get(&got).copied().unwrap_or(0)
    }

    pub fn total(&self) -> usize {
        self.0.values().sum()
    }

    pub fn add(&mut self, got: Got) {
        *self.0.entry(got).or_default() += 1;
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        for (got, count) in other.0 {
            *self.0.entry(got).or_default() += count;
        }
    }
}

impl fmt::Debug for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One client: connects, sends `request`, which must be its connection's last, and reads to the end.
///
/// Panics at two answers, at half an answer, at an answer of nobody, and where nobody ever ends the connection.
#[track_caller]
pub fn ask(address: SocketAddr, request: &str) -> Got {
    let mut stream = connect(address);
    // Whoever has no answer for it may have closed it already.
    if let Err(error) = stream.write_all(request.as_bytes()) {
        assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
    }
    let mut bytes = Vec::new();
    let end = stream.read_to_end(&mut bytes);
    judge(&bytes, end.map_err(|error| error.kind()))
}

/// The same, where perhaps nobody listens, or soon nobody will: [`Got::Left`] is who found nobody.
#[track_caller]
pub fn ask_whoever_listens(address: SocketAddr, request: &str) -> Got {
    let mut stream = match TcpStream::connect(address) {
        Ok(stream) => stream,
        // Refused, or reset in the middle of the handshake.
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset), "{error}");
            std::thread::park_timeout(Duration::from_millis(2));
            return Got::Left;
        }
    };
    stream.set_read_timeout(Some(patience())).expect("a socket");
    let mut bytes = Vec::new();
    let end = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_end(&mut bytes));
    match end.map_err(|error| error.kind()) {
        Err(ErrorKind::BrokenPipe) if bytes.is_empty() => Got::Reset,
        end => judge(&bytes, end),
    }
}

/// One client that sends its request, waits `pause` and resets its connection.
pub fn leave(address: SocketAddr, request: &str, pause: Duration) -> Got {
    let mut stream = connect(address);
    setsockopt(&stream, sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 }).expect("a socket");
    stream.write_all(request.as_bytes()).expect("a socket with room");
    if !pause.is_zero() {
        std::thread::park_timeout(pause);
    }
    Got::Left
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(patience())).expect("a socket");
    stream.set_write_timeout(Some(patience())).expect("a socket");
    stream
}

/// What the bytes of a whole connection are.
#[track_caller]
pub fn judge(bytes: &[u8], end: Result<usize, ErrorKind>) -> Got {
    let text = String::from_utf8_lossy(bytes);
    match end {
        Ok(_) if bytes.is_empty() => return Got::Closed,
        Err(ErrorKind::ConnectionReset) if bytes.is_empty() => return Got::Reset,
        Ok(_) => {}
        Err(error) => panic!("{error} after {text:?}"),
    }
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no whole answer: {text:?}"));
    // An answer begins nowhere but at the beginning, so that a second one behind or within the first would be seen.
    assert_eq!(text.matches("HTTP/1.").count(), 1, "{text}");
    let length: Option<usize> =
        head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    match length {
        Some(length) => {
            assert_eq!(body.len(), length, "one answer and nothing else: {text}");
            assert!(!body.contains("from "), "{text}");
            Got::Gateway(head[9..12].parse().unwrap_or_else(|_| panic!("no status: {text:?}")))
        }
        None => {
            assert!(body.starts_with("from ") && body.ends_with('\n'), "one answer of a daemon, whole: {text}");
            Got::Daemon
        }
    }
}

/// `count` clients, of which `at_once` are there at any time; `client` plays the n-th.
pub fn clients(count: usize, at_once: usize, client: impl Fn(usize) -> Got + Sync) -> Tally {
    let next = AtomicUsize::new(0);
    while_there_are(at_once, || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < count), client)
}

/// The same without a number, until `ends`.
pub fn clients_until(ends: &AtomicBool, at_once: usize, client: impl Fn(usize) -> Got + Sync) -> Tally {
    let next = AtomicUsize::new(0);
    while_there_are(at_once, || (!ends.load(Ordering::Relaxed)).then(|| next.fetch_add(1, Ordering::Relaxed)), client)
}

fn while_there_are(
    at_once: usize,
    next: impl Fn() -> Option<usize> + Sync,
    client: impl Fn(usize) -> Got + Sync,
) -> Tally {
    let all = Mutex::new(Tally::default());
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            let play = || {
                let mut own = Tally::default();
                while let Some(n) = next() {
                    own.add(client(n));
                }
                *all.lock().expect("no panic") += own;
            };
            std::thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, play).expect("a thread");
        }
    });
    all.into_inner().expect("no panic")
}
