//! A daemon that takes handed-over clients and streams to each. `daemon SOCKET [seqpacket|stream|fdpass|datagram]
//! [--interval MS]`

use std::env;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use baton::handoff::{Acceptor, Dialect, Handoff, Options, close_gracefully};

const HEAD: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n";

fn main() -> io::Result<ExitCode> {
    let Some((socket, dialect, interval)) = arguments() else {
        eprintln!("usage: daemon SOCKET [seqpacket|stream|fdpass|datagram] [--interval MS]");
        return Ok(ExitCode::from(2));
    };
    // It removes a stale socket, and takes one descriptor per message, close-on-exec, whatever else is sent along.
    let report = |error: &_| eprintln!("dropped a handoff: {error}");
    let mut acceptor = Acceptor::bind(&socket, dialect, Options { report, ..Options::default() })?;
    println!("ready {socket}");
    // What `accept` returns has been read, which is the acknowledgement: the client is ours, and only ours.
    while let Some(handoff) = acceptor.accept()? {
        thread::spawn(move || {
            if let Err(error) = serve(handoff, interval) {
                eprintln!("client: {error}");
            }
        });
    }
    Ok(ExitCode::SUCCESS)
}

fn serve(handoff: Handoff, interval: Duration) -> io::Result<()> {
    let data = serde_json::to_string(&String::from_utf8_lossy(handoff.data()))?;
    let is_head_sent = handoff.is_head_sent();
    // The client arrives non-blocking; this thread prefers to wait.
    handoff.set_blocking(true)?;
    let mut client = handoff.into_stream();
    // A reader that stops would hold this thread for ever.
    client.set_write_timeout(Some(Duration::from_secs(30)))?;
    if !is_head_sent {
        client.write_all(HEAD)?;
    }
    for n in 1..=10 {
        let text = if n == 1 { &data } else { "\"hello\"" };
        // write_all goes on after a short write, and a client that has left is an error here, not a SIGPIPE.
        client.write_all(format!("data: {{\"n\":{n},\"text\":{text}}}\n\n").as_bytes())?;
        #[expect(clippy::disallowed_methods, reason = "the pace of the stream; the thread is this client's own")]
        thread::sleep(interval);
    }
    client.write_all(b"event: done\ndata: {}\n\n")?;
    // The rest of a request's body may be unread, and a plain close would reset the connection under the answer.
    close_gracefully(client.into(), Duration::from_secs(2));
    Ok(())
}

fn arguments() -> Option<(String, Dialect, Duration)> {
    let (mut socket, mut dialect, mut interval_ms) = (None, Dialect::Seqpacket, 100);
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--interval" => interval_ms = arguments.next()?.parse().ok()?,
            _ if socket.is_none() => socket = Some(argument),
            name => dialect = name.parse().ok()?,
        }
    }
    Some((socket?, dialect, Duration::from_millis(interval_ms)))
}
