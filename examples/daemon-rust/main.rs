//! A daemon that takes handed-over clients and answers each by its request's path, one thread each.
//! `daemon SOCKET [seqpacket|stream|fdpass|datagram|baton] [--interval MS] [--in-flight-max N]`; `-` is what it was started
//! with: a listener (systemd, or standard input), one connection (`Accept=yes`, inetd), or one request (CGI)

mod paths;

use std::env;
use std::io;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use baton::handoff::{Acceptor, Dialect, Options, Reason};
use nix::sys::signal::{SigSet, Signal};

/// What a client's thread needs, and little more: ten thousand of them are reserved, not used.
const STACK_BYTES: usize = 128 << 10;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

struct Arguments {
    socket: String,
    dialect: Dialect,
    interval: Duration,
    in_flight_max: usize,
}

fn main() -> io::Result<ExitCode> {
    let Some(arguments) = arguments() else {
        eprintln!("usage: daemon SOCKET [seqpacket|stream|fdpass|datagram|baton] [--interval MS] [--in-flight-max N]");
        return Ok(ExitCode::from(2));
    };
    let Arguments { socket, dialect, interval, in_flight_max } = arguments;
    // Before any thread is started, so that each inherits it: one of them waits for it.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block()?;

    let report = |error: &_| eprintln!("dropped a peer: {error}");
    let options = Options { in_flight_max, report, ..Options::default() };
    let is_inherited = socket == "-";
    let mut acceptor =
        if is_inherited { Acceptor::inherited(dialect, options)? } else { Acceptor::bind(&socket, dialect, options)? };
    let stop = acceptor.stop_handle();
    thread::spawn(move || {
        // It fails only for a set that is not blocked.
        let _ = signals.wait();
        stop.stop();
    });
    // Standard output may be somebody's answer.
    if !is_inherited {
        println!("ready {socket}");
    }
    while let Some(handoff) = acceptor.accept()? {
        // A thread that cannot be had drops the handoff, which refuses it: another daemon takes the client.
        let serving = thread::Builder::new().stack_size(STACK_BYTES).spawn(move || paths::serve(handoff, interval));
        if let Err(error) = serving {
            eprintln!("no thread for a client: {error}");
        }
    }
    // Gateways are told, whoever still comes is refused, and whoever was taken is served to the end.
    if !acceptor.drain(DRAIN_TIMEOUT)? {
        eprintln!("cut {} clients", acceptor.in_flight());
    }
    Ok(ExitCode::SUCCESS)
}

/// A word of the protocol.
fn reason(word: &str) -> Option<Reason> {
    [Reason::Denied, Reason::Draining, Reason::Overloaded, Reason::Unsupported]
        .into_iter()
        .find(|own| own.word() == word)
}

fn arguments() -> Option<Arguments> {
    let (mut socket, mut dialect) = (None, Dialect::Seqpacket);
    let (mut interval_ms, mut in_flight_max) = (100, Options::default().in_flight_max);
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--interval" => interval_ms = arguments.next()?.parse().ok()?,
            "--in-flight-max" => in_flight_max = arguments.next()?.parse().ok()?,
            _ if socket.is_none() => socket = Some(argument),
            name => dialect = name.parse().ok()?,
        }
    }
    Some(Arguments { socket: socket?, dialect, interval: Duration::from_millis(interval_ms), in_flight_max })
}
