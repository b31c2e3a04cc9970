//! A daemon that writes who it is into each answer, beside the mark that its request came with: what a client got is then
//! known to be of one party, and meant for it. `marking-daemon SOCKET NAME REFUSED_PERCENT`; the same in other languages
//! stands beside this.
//!
//! | target | answer |
//! |---|---|
//! | `/short/MARK` | `NAME MARK` and the client back |
//! | `/last/MARK` | the same and the end |
//! | `/stream/MARK` | five lines `NAME MARK n`, one with `end`, and the end |
//! | `/echo/MARK` | `NAME MARK`, the request's body, and the client back |
//! | `/unread/MARK` | as `/short/`, and the request's body is left to the library |
//! | `/late/MARK?MS` | as `/short/`, but the client is taken so late |

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::io::Read as _;
use std::thread;
use std::time::Duration;

use baton::handoff::{Acceptor, ClientError, Dialect, End, Handoff, Options, Reason};
use nix::sys::signal::{SigSet, Signal};

const TEXT: &[(&str, &str)] = &[("Content-Type", "text/plain")];

fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, name, refused_percent] = &arguments[..] else { panic!("SOCKET NAME REFUSED_PERCENT") };
    let refused_percent: u64 = refused_percent.parse().expect("a number");
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    let mut acceptor = Acceptor::bind(socket, Dialect::Baton, Options { in_flight_max: 32, ..Options::default() })?;
    let stop = acceptor.stop_handle();
    thread::spawn(move || {
        // It fails only for a set that is not blocked.
        let _ = signals.wait();
        stop.stop();
    });
    println!("ready {socket}");
    while let Some(handoff) = acceptor.accept()? {
        let name = name.clone();
        let is_refused = RandomState::new().hash_one(()) % 100 < refused_percent;
        let serve = move || serve(handoff, &name, is_refused);
        drop(thread::Builder::new().stack_size(128 << 10).spawn(serve)?);
    }
    acceptor.drain(Duration::from_secs(30))?;
    Ok(())
}

fn serve(mut handoff: Handoff, name: &str, is_refused: bool) {
    if is_refused {
        return drop(handoff.refuse(Reason::Overloaded, None, "by chance"));
    }
    match answer(&mut handoff, name) {
        Ok(true) => handoff.give_back(200),
        Ok(false) => handoff.finish(200),
        Err(ClientError::ChannelEnded) => {}
        Err(error) => handoff.finish(End::from(&error)),
    }
}

/// Says whether the client may go back.
fn answer(handoff: &mut Handoff, name: &str) -> Result<bool, ClientError> {
    let target = handoff.target().unwrap_or_default().to_owned();
    let (path, pause_ms) = target.split_once('?').unwrap_or((&target, ""));
    let (kind, mark) = path[1..].split_once('/').expect("/KIND/MARK");
    let mut body = format!("{name} {mark}\n").into_bytes();
    match kind {
        "last" => {
            handoff.respond(200, TEXT, &body)?;
            return Ok(false);
        }
        "stream" => {
            handoff.start(200, TEXT)?;
            for n in 0..5 {
                handoff.write(format!("{name} {mark} {n}\n").as_bytes())?;
                pause(Duration::from_millis(3));
            }
            handoff.write(format!("{name} {mark} end\n").as_bytes())?;
            return Ok(false);
        }
        "late" => pause(Duration::from_millis(pause_ms.parse().expect("a number"))),
        "echo" => drop(handoff.body().read_to_end(&mut body).map_err(|error| match error.downcast() {
            Ok(error) => error,
            Err(error) => ClientError::Io(error),
        })?),
        _ => {}
    }
    handoff.respond_keep_alive(200, TEXT, &body)?;
    Ok(true)
}

fn pause(time: Duration) {
    #[expect(clippy::disallowed_methods, reason = "the thread is this client's own")]
    thread::sleep(time);
}
