//! What may be typed.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::handoff::{Dialect, Options};

/// Runs a program for every client that is handed over at SOCKET.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The program has the client, blocking, on standard input and output; the request's head was read by \
    the gateway, its body was not. What it writes on standard error is logged. Its end is the client's. One that writes nothing is answered \
    for: 502, or 504 when its time is up. Exit codes: 0 asked to stop, 1 failed, 2 usage. More with --help.",
    after_long_help = AFTER_LONG_HELP
)]
pub struct Receive {
    /// Where to listen; a stale socket is replaced. `-`: what this was started with (LISTEN_FDS, inetd, Accept=yes)
    pub(super) socket: PathBuf,
    /// How handoffs arrive: seqpacket, stream, fdpass, datagram or baton
    #[arg(long, default_value = "seqpacket", value_parser = dialect)]
    pub(super) dialect: Dialect,
    /// Programs at a time; more clients are refused in the dialect baton and wait in the backlog in the others
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    #[arg(conflicts_with = "prefork")]
    pub(super) clients_max: u32,
    /// How long a program may run, as in 90s or 5m; unlimited without
    #[arg(long, value_name = "DURATION", value_parser = some_time, conflicts_with = "prefork")]
    pub(super) timeout: Option<Duration>,
    /// How long a client may neither be written a byte nor take or send one
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = some_time, conflicts_with = "prefork")]
    pub(super) stall_timeout: Duration,
    /// Programs that accept clients themselves, in a loop: so many are started, with the listener, and again when they end
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) prefork: Option<u32>,
    /// Permission bits of the socket, octal
    #[arg(long, value_name = "MODE", default_value = "0660", value_parser = mode)]
    pub(super) socket_mode: u32,
    /// User id that may hand over, repeatable; without, one's own and root, or those in BATON_GATEWAY_UIDS
    #[arg(long = "allow-uid", value_name = "UID")]
    pub(super) allow_uids: Vec<u32>,
    /// Group id whose processes may hand over too, repeatable
    #[arg(long = "allow-gid", value_name = "GID", conflicts_with = "prefork")]
    pub(super) allow_gids: Vec<u32>,
    /// How long programs may go on after TERM or INT; a second signal cuts
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub(super) drain_timeout: Duration,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(super) command: Vec<OsString>,
}

const AFTER_LONG_HELP: &str = "\
The program
  has the client, blocking, on standard input and output, and nothing else open but standard error. The request's head was
  read by the gateway, its body was not. Where the gateway had to read some of the body, standard input is a pipe with all of it.
  The program writes the whole answer; its end is the client's. Its standard error is logged, line by line with the
  handoff's id. SIGPIPE ends it when the client has left; what it starts is of its process group and is cut with it.

Its environment
  is a CGI program's as far as the dialect tells (all of it in baton): REQUEST_METHOD, REQUEST_URI, QUERY_STRING, CONTENT_LENGTH,
  CONTENT_TYPE, SERVER_NAME, SERVER_PORT, SERVER_PROTOCOL, REMOTE_ADDR, REMOTE_PORT, HTTPS, HTTP_*. And always:
  HANDOFF_ID         its name in the log
  HANDOFF_ROLE       what it is asked to be
  HANDOFF_DATA       the data of the handoff, where it is without NUL and below 128 KiB; with datagram, the request's head
  HANDOFF_DATA_FILE  a private file with all of it, removed afterwards
  HANDOFF_HEAD_SENT  1 where the gateway wrote the response's head: the program writes the body

How it ends
  exit 0, something written     closed so that it arrives             DONE ok
  exit 0, nothing written       502; behind a gateway's head closed   DONE error, or ok behind a head
  fails, nothing written        502; behind a gateway's head reset    DONE error, `exit status N` or `signal N`
  fails, something written      closed                                DONE error
  the client has left           closed                                DONE client-gone
  --timeout, --stall-timeout    504; reset if something was written   DONE timeout
  revoked, or cut by a drain    503; reset if something was written   DONE revoked, or error
  In the last two it gets TERM, and KILL after 2 s; one that then ends with 0 has written a whole answer. Of a client over
  a Unix socket (a relay) nobody can tell what was written: it is closed.

With --prefork
  programs accept for themselves, as after FCGI_Accept: descriptor 3 listens (LISTEN_FDS=1, LISTEN_PID), and who may hand over is in
  BATON_GATEWAY_UIDS. They are started again when they end, after a pause if they had lived for less than 10 s.

In the place of
  fdrecv PATH CMD               baton receive --dialect fdpass PATH -- CMD
  spawn-fcgi -s PATH -F N CMD   baton receive --prefork N PATH -- CMD, of a program that accepts handoffs
  inetd, stream nowait CMD      baton receive PATH -- CMD, behind a listener of the gateway
  a systemd socket unit         baton receive - -- CMD, of either kind of Accept=

Exit codes: 0 asked to stop, or served the one it was started for; 1 failed; 2 usage.";

impl Receive {
    /// How the daemon's end of the library is to listen for it.
    pub(super) fn options(&self) -> Options {
        Options {
            allow_gids: self.allow_gids.clone(),
            allow_uids: (!self.allow_uids.is_empty()).then(|| self.allow_uids.clone()),
            // A body is read when there is some, and waited for with everything else.
            body_timeout: Duration::ZERO,
            in_flight_max: usize::try_from(self.clients_max).unwrap_or(usize::MAX),
            name: self.command.first().map(|program| program.to_string_lossy().into_owned()),
            socket_mode: self.socket_mode,
            ..Options::default()
        }
    }

    /// Whether the listener is whatever this process was started with.
    pub(super) fn is_inherited(&self) -> bool {
        self.socket.as_os_str() == "-"
    }
}

fn dialect(name: &str) -> Result<Dialect, String> {
    match name.parse() {
        Ok(Dialect::Auto) | Err(_) => Err("seqpacket, stream, fdpass, datagram or baton".to_owned()),
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

fn some_time(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|time| if time.is_zero() { Err("at least 1ms".to_owned()) } else { Ok(time) })
}
