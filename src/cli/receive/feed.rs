//! A body that is not, or not all of it, in the client's socket: fed to the program by a pipe, piece by piece.

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::process::ChildStdin;

use nix::poll::{PollFd, PollFlags};

use super::stderr::set_nonblocking;
use crate::handoff::Handoff;

const PIECE_BYTES: usize = 64 << 10;

/// The body on its way.
#[derive(Debug)]
pub(super) struct Feed {
    /// `None` when there is nothing more to write, or nobody who reads.
    pipe: Option<ChildStdin>,
    piece: Vec<u8>,
    /// How much of the piece was written.
    at: usize,
    waits_for: Side,
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Program,
}

impl Feed {
    pub(super) fn new(pipe: ChildStdin) -> io::Result<Self> {
        set_nonblocking(pipe.as_fd())?;
        Ok(Self { pipe: Some(pipe), piece: Vec::new(), at: 0, waits_for: Side::Program })
    }

    /// What is waited for before the next [`step`](Self::step).
    pub(super) fn wanted<'a>(&'a self, handoff: &'a Handoff) -> Option<PollFd<'a>> {
        let pipe = self.pipe.as_ref()?;
        Some(match self.waits_for {
            Side::Client => PollFd::new(handoff.client(), PollFlags::POLLIN),
            Side::Program => PollFd::new(pipe.as_fd(), PollFlags::POLLOUT),
        })
    }

    /// Moves what can be moved now.
    ///
    /// # Errors
    /// The body cannot be read to its end: the program must not take it for whole.
    pub(super) fn step(&mut self, handoff: &mut Handoff) -> io::Result<()> {
        let Some(pipe) = &mut self.pipe else { return Ok(()) };
        if self.at == self.piece.len() {
            self.piece.resize(PIECE_BYTES, 0);
            self.at = PIECE_BYTES;
            match handoff.body().read(&mut self.piece) {
                Ok(0) => self.pipe = None,
                Ok(count) => {
                    self.piece.truncate(count);
                    (self.at, self.waits_for) = (0, Side::Program);
                }
                // Nothing of it is here: it is not waited for in there.
                Err(error) if error.kind() == io::ErrorKind::TimedOut => self.waits_for = Side::Client,
                Err(error) => {
                    // Kept open: an end would tell the program that this was all.
                    self.piece.clear();
                    self.at = 0;
                    return Err(error);
                }
            }
            return Ok(());
        }
        match pipe.write(&self.piece[self.at..]) {
            Ok(count) => self.at += count,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            // It has ended, or does not want any more of it.
            Err(_) => self.pipe = None,
        }
        Ok(())
    }
}
