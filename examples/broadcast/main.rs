//! A daemon that holds any number of streams in one thread: each line of its standard input goes to every client that is
//! there. `broadcast SOCKET`
//!
//! A thread for each stream costs memory that a stream does not need. Whoever only writes when there is something to say
//! keeps the handoffs in a list, and waits for all of them at once: for gateways, which the acceptor's descriptor is ready
//! for, and for the next line. Who has left is found when it is written to.

use std::collections::VecDeque;
use std::io::{self, BufRead as _, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::task::Poll;
use std::time::{Duration, Instant};

use baton::handoff::{Acceptor, ClientError, Dialect, Handoff, Options};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A client that does not read is not waited for: what is written fits its socket, or it is let go.
const WRITE_TIMEOUT: Duration = Duration::from_millis(10);
const HEADERS: &[(&str, &str)] = &[("Content-Type", "text/event-stream"), ("Cache-Control", "no-store")];

fn main() -> io::Result<()> {
    let Some(socket) = std::env::args().nth(1) else {
        eprintln!("usage: broadcast SOCKET");
        return Ok(());
    };
    let options =
        Options { in_flight_max: 1_000_000, write_timeout: WRITE_TIMEOUT, backlog: 1024, ..Options::default() };
    let mut acceptor = Acceptor::bind(&socket, Dialect::Baton, options)?;
    println!("ready {socket}");
    let mut input = lines()?;
    let (mut pending, mut clients) = (VecDeque::new(), Vec::new());
    loop {
        while let Poll::Ready(accepted) = acceptor.try_accept()? {
            let Some(mut handoff) = accepted else { return Ok(()) };
            match begin(&mut handoff) {
                Ok(()) => clients.push(handoff),
                Err(ClientError::ChannelEnded) => {}
                Err(error) => handoff.finish(&error),
            }
        }
        if let Some(line) = pending.pop_front() {
            let event = format!("data: {line}\n\n");
            tell(&mut clients, event.as_bytes());
            println!("told {}", clients.len());
            continue;
        }
        // Before it waits elsewhere: what is said of clients that have ended is kept back until then.
        acceptor.flush();
        let timeout = acceptor.deadline().map_or(PollTimeout::NONE, |until| {
            PollTimeout::try_from(until.saturating_duration_since(Instant::now())).unwrap_or(PollTimeout::MAX)
        });
        let mut ready =
            [PollFd::new(acceptor.as_fd(), PollFlags::POLLIN), PollFd::new(input.as_fd(), PollFlags::POLLIN)];
        poll(&mut ready, timeout)?;
        if ready[1].any() == Some(true) && !read_lines(&mut input, &mut pending)? {
            break;
        }
    }
    clients.into_iter().for_each(|handoff| handoff.finish(200));
    acceptor.drain(Duration::from_secs(5))?;
    Ok(())
}

fn begin(handoff: &mut Handoff) -> Result<(), ClientError> {
    handoff.start(200, HEADERS)?;
    handoff.write(b": welcome\n\n")?;
    // The stream may last for hours: what is not needed any more goes.
    handoff.shrink();
    Ok(())
}

/// Writes to everybody; those who are gone, or do not read, are let go.
fn tell(clients: &mut Vec<Handoff>, event: &[u8]) {
    let all = std::mem::take(clients);
    for mut handoff in all {
        match handoff.write(event) {
            Ok(()) => clients.push(handoff),
            Err(error) => handoff.finish(&error),
        }
    }
}

/// Standard input as something that can be waited for, whatever it is.
fn lines() -> io::Result<UnixStream> {
    let (near, far) = UnixStream::pair()?;
    near.set_nonblocking(true)?;
    std::thread::Builder::new().stack_size(64 << 10).spawn(move || {
        // Until either end has gone.
        drop(io::copy(&mut io::stdin().lock(), &mut &far));
    })?;
    Ok(near)
}

/// Reads what is there; `false` at the end.
fn read_lines(input: &mut UnixStream, pending: &mut VecDeque<String>) -> io::Result<bool> {
    let mut bytes = vec![0; 64 << 10];
    let count = match input.read(&mut bytes) {
        Ok(0) => return Ok(false),
        Ok(count) => count,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
        Err(error) => return Err(error),
    };
    for line in bytes[..count].lines() {
        pending.push_back(line?);
    }
    Ok(true)
}
