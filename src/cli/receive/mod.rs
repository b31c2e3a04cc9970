//! `baton receive`: the daemon's side for any program. One process per client, the client on its standard input and
//! output; or programs that accept for themselves.

mod arguments;
mod client;
mod feed;
mod folder;
mod inherited;
mod log;
mod prefork;
mod program;
mod seats;
mod stderr;
mod stopping;

use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;

pub use arguments::Receive;
pub use prefork::{Start, start};

use self::folder::PrivateFolder;
use self::program::TERM_TO_KILL;
use self::seats::{Seat, Seats};
use self::stopping::Stopping;
use crate::handoff::{Acceptor, Dialect, Options, close_on_exec_beyond_stderr};

/// How long nothing is accepted after a thread could not be started.
const EXHAUSTED_PAUSE: Duration = Duration::from_secs(1);
/// How long a drain waits between two looks at whether everybody should have ended.
const DRAIN_LOOK: Duration = Duration::from_secs(1);

/// Receives until TERM or INT, then waits for the programs.
///
/// # Errors
/// It cannot listen, or not any more.
pub fn run(arguments: Receive) -> anyhow::Result<ExitCode> {
    close_on_exec_beyond_stderr().context("cannot keep descriptors from programs")?;
    if arguments.is_inherited() {
        inherited::keep_log_from_client()?;
    }
    log::begin()?;
    let stopping = Arc::new(Stopping::new()?);
    let result = match arguments.prefork {
        Some(count) => prefork::run(count, &arguments, &stopping),
        None => receive(arguments, &stopping),
    };
    log::flush();
    result
}

fn receive(arguments: Receive, stopping: &Arc<Stopping>) -> anyhow::Result<ExitCode> {
    let options =
        Options { report: |error| log::say(format!("dropped a handoff: {}", chain(error))), ..arguments.options() };
    let socket = arguments.socket.display();
    let mut acceptor = if arguments.is_inherited() {
        let acceptor = Acceptor::inherited(arguments.dialect, options).context("cannot take what was inherited")?;
        inherited::let_go()?;
        acceptor
    } else {
        Acceptor::bind(&arguments.socket, arguments.dialect, options)
            .with_context(|| format!("cannot listen on {socket}"))?
    };
    let folder = Arc::new(PrivateFolder::new().context("cannot make a folder for handoff data")?);
    let seats = Arc::new(Seats::default());
    let (stop, of_stop, of_cut) = (acceptor.stop_handle(), Arc::clone(&seats), Arc::clone(&seats));
    stopping.listen(
        arguments.drain_timeout,
        move || {
            stop.stop();
            of_stop.close();
        },
        move || match of_cut.taken() {
            0 => {}
            count => log::say(format!("cutting {count} clients")),
        },
    )?;

    log::say(format!("receiving on {socket}"));
    let arguments = Arc::new(arguments);
    loop {
        // A gateway of the native dialect is told how many there may be, and is heard all the time.
        if arguments.dialect != Dialect::Baton {
            seats.wait_for_room(arguments.clients_max);
        }
        let Some(handoff) = acceptor.accept().context("cannot accept")? else { break };
        let seat = Seat::take(&seats);
        let (arguments, folder, own) = (Arc::clone(&arguments), Arc::clone(&folder), Arc::clone(stopping));
        let serving = thread::Builder::new().spawn(move || {
            client::serve(handoff, &arguments, &folder, &own);
            // Whoever waits for the last seat removes the folder.
            drop(folder);
            drop(seat);
        });
        if let Err(error) = serving {
            // The client went down with the thread; the next ones are better left waiting.
            log::say(format!("no thread for a client: {error}"));
            stopping.stop.wait(EXHAUSTED_PAUSE);
        }
    }
    drain(&mut acceptor, stopping, &seats)?;
    Ok(ExitCode::SUCCESS)
}

/// Serves the gateways until the programs have ended. Whoever is cut ends in time, unless the system does not let go of a
/// program.
fn drain(acceptor: &mut Acceptor, stopping: &Stopping, seats: &Seats) -> anyhow::Result<()> {
    let linger = Options::default().linger;
    let mut left = TERM_TO_KILL + linger * 2;
    while !acceptor.drain(DRAIN_LOOK).context("cannot drain")? && !left.is_zero() {
        if stopping.cut.has_happened() {
            left = left.saturating_sub(DRAIN_LOOK);
        }
    }
    // Their clients have ended; what is left is a file each.
    seats.wait_until_empty(linger);
    Ok(())
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
