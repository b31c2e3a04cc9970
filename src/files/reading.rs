//! A file's bytes on their way to a client.
//!
//! What the kernel holds in memory is read at once; what must be fetched from a disk is waited for on a thread of the
//! runtime's, so that no other client waits with it. preadv2(2) with RWF_NOWAIT tells the two apart. One piece is held at a
//! time: a slow client costs no more.

use std::fs::File;
use std::future::Future as _;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hyper::body::Bytes;
use rustix::io::ReadWriteFlags;
use tokio::task::{JoinHandle, coop};

use crate::upstream::{Body, Fault, Piece};

/// What is read at once: large enough that the system calls do not count, small enough for every client to have one.
pub(super) const PIECE_BYTES_MAX: usize = 64 << 10;

/// The bytes of a file from one position to another, both fixed when it was opened: a file that grows is not followed, and
/// one that shrinks is a fault.
#[derive(Debug)]
pub(super) struct Reading {
    file: Arc<File>,
    at: u64,
    end: u64,
    /// Read already, from before `at`.
    held: Option<Bytes>,
    /// Being read from `at`.
    fetched: Option<JoinHandle<io::Result<Bytes>>>,
}

impl Reading {
    /// Begins to read from `begin` until `end`. The first piece is read before this returns: what is wrong with the file
    /// shows before anybody was told that it comes.
    ///
    /// # Errors
    /// As reading files does, and `UnexpectedEof` where it has become shorter.
    ///
    /// # Cancel safety
    /// Dropping it closes the file, once a thread that reads it has read.
    pub(super) async fn begin(file: File, begin: u64, end: u64) -> io::Result<Self> {
        let mut reading = Self { file: Arc::new(file), at: begin, end, held: None, fetched: None };
        if begin < end {
            reading.held = Some(std::future::poll_fn(|context| reading.poll_read(context)).await?);
        }
        Ok(reading)
    }

    /// Reads the next piece; there is one.
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        let fetched = match &mut self.fetched {
            Some(fetched) => fetched,
            None => {
                let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
                let mut buffer = vec![0; left.min(PIECE_BYTES_MAX)];
                let at_once = &mut [IoSliceMut::new(&mut buffer)];
                match rustix::io::preadv2(&self.file, at_once, self.at, ReadWriteFlags::NOWAIT) {
                    Ok(count) if count > 0 => return Poll::Ready(Ok(self.take(buffer, count))),
                    // Not in memory; or a file system that cannot say; or an end, which Linux 5.9 and 5.10 tell of what is
                    // not in memory too (preadv2(2)).
                    _ => {
                        let (file, at) = (Arc::clone(&self.file), self.at);
                        self.fetched.insert(tokio::task::spawn_blocking(move || {
                            let count = file.read_at(&mut buffer, at)?;
                            buffer.truncate(count);
                            Ok(buffer.into())
                        }))
                    }
                }
            }
        };
        let read = ready!(Pin::new(fetched).poll(context)).map_err(io::Error::other).flatten();
        self.fetched = None;
        let piece: Bytes = read?;
        if piece.is_empty() {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        self.at += piece.len() as u64;
        Poll::Ready(Ok(piece))
    }

    fn take(&mut self, mut buffer: Vec<u8>, count: usize) -> Bytes {
        buffer.truncate(count);
        self.at += count as u64;
        buffer.into()
    }
}

impl Body for Reading {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Piece, Fault>>> {
        if let Some(held) = self.held.take() {
            return Poll::Ready(Some(Ok(Piece::Data(held))));
        }
        if self.at == self.end {
            return Poll::Ready(None);
        }
        // A file in memory and a client that is as fast would leave no turn to anybody else.
        let turn = ready!(coop::poll_proceed(context));
        let read = ready!(self.poll_read(context));
        turn.made_progress();
        let broken = |error| Fault::Broken(format!("{} bytes are missing from the file: {error}", self.end - self.at));
        Poll::Ready(Some(read.map(Piece::Data).map_err(broken)))
    }

    fn length(&self) -> Option<u64> {
        Some(self.end - self.at + self.held.as_ref().map_or(0, |held| held.len() as u64))
    }
}
