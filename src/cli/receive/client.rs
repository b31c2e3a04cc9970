//! One client: its program is started, watched, and answered for where it did not answer.

use std::io::{self, Write as _};
use std::net::TcpStream;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use anyhow::Context as _;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, shutdown};

use super::arguments::Receive;
use super::folder::PrivateFolder;
use super::log;
use super::program::{Cut, Ended, Program};
use super::stopping::Stopping;
use crate::handoff::{Close, End, Handoff, Outcome, Reason, written_bytes};

/// Serves a client to its end, and says what went wrong.
pub(super) fn serve(handoff: Handoff, arguments: &Receive, folder: &PrivateFolder, stopping: &Stopping) {
    let id = handoff.id().into_owned();
    if let Err(error) = try_to_serve(handoff, &id, arguments, folder, stopping) {
        log::say(format!("[{id}] {error:#}"));
    }
}

fn try_to_serve(
    mut handoff: Handoff,
    id: &str,
    arguments: &Receive,
    folder: &PrivateFolder,
    stopping: &Stopping,
) -> anyhow::Result<()> {
    // What can be refused is refused before the client is taken.
    let file = match folder.file(handoff.data()).context("cannot write a file for the data") {
        Ok(file) => file,
        Err(error) => {
            drop(handoff.refuse(Reason::Overloaded, None, "no room for the data"));
            return Err(error);
        }
    };
    // Dropped where that fails: it is the gateway's.
    handoff.take()?;
    if !handoff.is_body_beside_client() {
        // Whoever has left is the program's to notice.
        drop(handoff.invite());
    }
    let before = written_bytes(handoff.client());
    let ended = match Program::start(&handoff, id, file.path(), &arguments.command) {
        Ok(program) => program.watch(&mut handoff, arguments, stopping),
        Err(error) => {
            let message = format!("{error:#}");
            Account { before, is_head_sent: handoff.is_head_sent() }.fail(handoff, message);
            return Err(error);
        }
    };
    drop(file);
    let called = arguments.command[0].display();
    let said = Account { before, is_head_sent: handoff.is_head_sent() }.end(handoff, &ended);
    anyhow::ensure!(said.is_none(), "{called}: {}", said.unwrap_or_default());
    Ok(())
}

/// What is known of what a client got.
struct Account {
    /// Written before its program was started; `None` of a client over a Unix socket.
    before: Option<u64>,
    is_head_sent: bool,
}

impl Account {
    /// What was written since; `None` where nobody knows.
    fn written(&self, handoff: &Handoff) -> Option<u64> {
        Some(written_bytes(handoff.client())?.wrapping_sub(self.before?))
    }

    /// Ends a client whose program could not be started.
    fn fail(&self, handoff: Handoff, message: String) {
        self.finish(handoff, End::error(message), Some("502 Bad Gateway"), true);
    }

    /// Ends a client whose program has ended; says what was wrong with it, if anything.
    fn end(&self, handoff: Handoff, ended: &Ended) -> Option<String> {
        let is_success = ended.is_success();
        let nothing = self.written(&handoff) == Some(0);
        if self.has_left(&handoff, ended) {
            let said = "the client has left".to_owned();
            self.finish(handoff, End { message: Some(said), ..End::of(Outcome::ClientGone) }, None, false);
            return None;
        }
        let (result, status, said) = match &ended.cut {
            None if is_success && (!nothing || self.is_head_sent) => {
                self.finish(handoff, End::ok(), None, false);
                return None;
            }
            None if is_success => (Outcome::Error, "502 Bad Gateway", "nothing was written".to_owned()),
            None => (Outcome::Error, "502 Bad Gateway", ended.words()),
            Some(Cut::Body(error)) => (of_body(error), "400 Bad Request", error.to_string()),
            Some(Cut::Drained) => (Outcome::Error, "503 Service Unavailable", "stopping".to_owned()),
            Some(Cut::Late) => (Outcome::Timeout, "504 Gateway Timeout", "ran too long".to_owned()),
            Some(Cut::Left) => (Outcome::ClientGone, "502 Bad Gateway", "the client has left".to_owned()),
            Some(Cut::Revoked) => (Outcome::Revoked, "503 Service Unavailable", "revoked".to_owned()),
            Some(Cut::Stalled) => (Outcome::Timeout, "504 Gateway Timeout", "stalled".to_owned()),
        };
        // One that was told to end and then ends well has written what it had to write.
        let is_half = ended.cut.is_some() && !is_success;
        let is_reset = if nothing { self.is_head_sent } else { is_half };
        self.finish(handoff, End { message: Some(said.clone()), ..End::of(result) }, Some(status), is_reset);
        Some(said)
    }

    /// Closes a client, behind an answer if it has none, and tells the gateway.
    fn finish(&self, handoff: Handoff, mut end: End, status: Option<&str>, is_reset: bool) {
        let nothing = self.written(&handoff) == Some(0);
        let mut is_reset = is_reset && (self.is_head_sent || !nothing);
        if let Some(status) = status.filter(|_| nothing && !self.is_head_sent) {
            match answer(&handoff, status) {
                Ok(()) => end.status = status.split(' ').next().and_then(|number| number.parse().ok()),
                // It is gone.
                Err(_) => is_reset = true,
            }
        }
        end.bytes_out = self.written(&handoff);
        if !is_reset {
            // Whoever else has a copy, which a program may have left behind, does not keep the client from its end. One that has gone
            // does not mind.
            let _ = shutdown(handoff.client().as_raw_fd(), Shutdown::Write);
        }
        handoff.finish_as(end, if is_reset { Close::Reset } else { Close::Graceful });
    }

    /// Whether the client did not wait for its answer. One that has only ended its sending side has not left.
    fn has_left(&self, handoff: &Handoff, ended: &Ended) -> bool {
        match ended.cut {
            Some(Cut::Left) => true,
            Some(_) => false,
            // An end in both directions is one that its program may have made.
            None if ended.is_success() => seen(handoff.client()).contains(PollFlags::POLLERR),
            None => !seen(handoff.client()).is_empty() || (ended.is_of_broken_pipe() && handoff.client_gone()),
        }
    }
}

fn of_body(error: &io::Error) -> Outcome {
    match error.kind() {
        io::ErrorKind::InvalidData => Outcome::Error,
        _ => Outcome::ClientGone,
    }
}

/// What a connection tells without being asked for anything: POLLHUP has ended in both directions, POLLERR was reset.
fn seen(client: BorrowedFd<'_>) -> PollFlags {
    let mut seen = [PollFd::new(client, PollFlags::empty())];
    let count = poll(&mut seen, PollTimeout::ZERO);
    seen[0].revents().filter(|_| matches!(count, Ok(1..))).unwrap_or(PollFlags::empty())
}

/// Nothing was written before it, so that there is room for it.
fn answer(handoff: &Handoff, status: &str) -> io::Result<()> {
    let mut stream = TcpStream::from(handoff.client().as_fd().try_clone_to_owned()?);
    let answer = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(answer.as_bytes())
}
