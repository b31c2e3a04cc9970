//! A client's socket while the gateway owns it.
//!
//! It is registered with the reactor only when there is something to wait for, and taken out again before it is handed
//! over: a registration belongs to the open file, which lives on in the daemon (epoll(7), question 6).
//!
//! Bytes are looked at first (`MSG_PEEK`) and taken when it is known that they are ours: what follows a head stays in the
//! kernel's buffer for whoever owns the socket next.
//!
//! System calls: recv(2), send(2), shutdown(2), epoll_ctl(2) through tokio.

use std::future::Future;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use crate::pace::Pace;

/// How often a write that waits looks whether the client has taken anything.
pub(crate) const LOOKS_PER_STALL: u32 = 8;

/// A connected, non-blocking stream socket.
#[derive(Debug)]
pub struct Client {
    form: Form,
    /// What a daemon had read and did not use: it comes before what is in the socket.
    preread: Option<Box<Preread>>,
}

#[derive(Debug)]
struct Preread {
    bytes: Vec<u8>,
    /// How many of them were taken; the socket itself is read through a shared reference, too.
    taken: AtomicUsize,
}

#[derive(Debug)]
enum Form {
    Bare(OwnedFd),
    Watched(AsyncFd<OwnedFd>, Interest),
    /// From one to the other.
    Moving,
}

impl Form {
    fn into_socket(self) -> OwnedFd {
        match self {
            Self::Bare(socket) => socket,
            Self::Watched(watch, _) => watch.into_inner(),
            Self::Moving => unreachable!("nothing happens between the two forms"),
        }
    }
}

impl AsFd for Client {
    /// The socket, to ask it something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.form {
            Form::Bare(socket) => socket.as_fd(),
            Form::Watched(watch, _) => watch.as_fd(),
            Form::Moving => unreachable!("nothing happens between the two forms"),
        }
    }
}

impl Client {
    /// Takes a connected, non-blocking stream socket.
    pub fn new(socket: OwnedFd) -> Self {
        Self { form: Form::Bare(socket), preread: None }
    }

    /// The same, of whom somebody has read something already.
    pub fn with_preread(socket: OwnedFd, bytes: Vec<u8>) -> Self {
        let preread = (!bytes.is_empty()).then(|| Box::new(Preread { bytes, taken: AtomicUsize::new(0) }));
        Self { form: Form::Bare(socket), preread }
    }

    /// Gives the socket up, out of the reactor, and what was read of it before and not taken.
    pub fn into_parts(self) -> (OwnedFd, Vec<u8>) {
        let preread = self.preread.map(|mut preread| preread.bytes.split_off(preread.taken.into_inner()));
        (self.form.into_socket(), preread.unwrap_or_default())
    }

    /// Takes what was read before, as far as it goes.
    fn take_preread(&self, buffer: &mut [u8]) -> usize {
        let count = self.peek_preread(buffer);
        if let Some(preread) = &self.preread {
            preread.taken.fetch_add(count, Ordering::Relaxed);
        }
        count
    }

    fn peek_preread(&self, buffer: &mut [u8]) -> usize {
        let preread = self.preread();
        let count = preread.len().min(buffer.len());
        buffer[..count].copy_from_slice(&preread[..count]);
        count
    }

    /// What was read before and is not taken yet.
    fn preread(&self) -> &[u8] {
        self.preread.as_ref().map_or(&[], |preread| &preread.bytes[preread.taken.load(Ordering::Relaxed)..])
    }

    /// The socket's registration, made anew unless it has that interest already: a descriptor has one.
    fn watch(&mut self, interest: Interest) -> io::Result<&AsyncFd<OwnedFd>> {
        let had = match &self.form {
            Form::Watched(_, had) => Some(*had),
            Form::Bare(_) | Form::Moving => None,
        };
        let all = had.map_or(interest, |had| had | interest);
        if had != Some(all) {
            let interest = all;
            let socket = std::mem::replace(&mut self.form, Form::Moving).into_socket();
            match crate::handoff::watch(socket, interest) {
                Ok(watch) => self.form = Form::Watched(watch, interest),
                Err((socket, error)) => {
                    self.form = Form::Bare(socket);
                    return Err(error);
                }
            }
        }
        match &self.form {
            Form::Watched(watch, _) => Ok(watch),
            Form::Bare(_) | Form::Moving => unreachable!("it was registered above"),
        }
    }

    /// Copies what has arrived into `buffer` and leaves it where it is; 0 at the end of what the client sends.
    ///
    /// # Errors
    /// `WouldBlock` where nothing has arrived; otherwise the socket's.
    pub fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.peek_preread(buffer) {
            0 => self.receive(buffer, RecvFlags::PEEK),
            before if before == buffer.len() => Ok(before),
            before => match self.receive(&mut buffer[before..], RecvFlags::PEEK) {
                Ok(count) => Ok(before + count),
                // Whatever is wrong with the socket comes behind what was read.
                Err(_) => Ok(before),
            },
        }
    }

    /// Takes exactly `buffer.len()` bytes that were peeked.
    ///
    /// # Errors
    /// The socket's; `UnexpectedEof` where fewer are there than were peeked, which only a second reader could cause.
    pub fn take(&self, buffer: &mut [u8]) -> io::Result<()> {
        let before = self.take_preread(buffer);
        let rest = &mut buffer[before..];
        if rest.is_empty() {
            return Ok(());
        }
        match self.receive(rest, RecvFlags::empty())? {
            count if count == rest.len() => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Takes what has arrived, up to the length of `buffer`, all of which must be known to be ours; 0 at the end of what the
    /// client sends.
    ///
    /// # Errors
    /// As [`peek`](Self::peek).
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.take_preread(buffer) {
            0 => self.receive(buffer, RecvFlags::empty()),
            count => Ok(count),
        }
    }

    fn receive(&self, buffer: &mut [u8], flags: RecvFlags) -> io::Result<usize> {
        loop {
            match rustix::net::recv(self.as_fd(), &mut *buffer, flags) {
                Ok((count, _)) => return Ok(count),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until more has arrived, or the client has closed, since the last look. What is there already counts when
    /// this is called for the first time.
    ///
    /// # Cancel safety
    /// Dropping it loses nothing: look again.
    pub async fn readable(&mut self) -> io::Result<()> {
        let watch = self.watch(Interest::READABLE)?;
        // Cleared before the caller looks: what arrives after the look is a new event.
        watch.readable().await.map(|mut guard| guard.clear_ready())
    }

    /// As [`readable`](Self::readable), for whoever waits for several things at once: room to write among them.
    pub fn poll_readable(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let watch = self.watch(BOTH)?;
        ready!(watch.poll_read_ready(context))?.clear_ready();
        Poll::Ready(Ok(()))
    }

    /// Waits until the client has gone: nobody reads an answer.
    pub fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Ok(watch) = self.watch(BOTH) else { return Poll::Ready(()) };
        loop {
            let Ok(mut guard) = ready!(watch.poll_read_ready(context)) else { return Poll::Ready(()) };
            // That it has closed its side stays known.
            if guard.ready().is_read_closed() {
                break;
            }
            // Mostly the head, which has been read since.
            guard.clear_ready();
        }
        // As long as something is unread it waits for its answers: then only the end of ours is news.
        while !self.is_gone() {
            if ready!(self.poll_changed(context)).is_err() {
                break;
            }
        }
        Poll::Ready(())
    }

    /// Waits until something changes about whether we can write, as it does with a reset.
    fn poll_changed(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let watch = self.watch(BOTH)?;
        let mut guard = ready!(watch.poll_write_ready(context))?;
        if guard.ready().is_write_closed() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        guard.clear_ready();
        Poll::Ready(Ok(()))
    }

    /// Whether the client has closed its side, with nothing behind it that is unread, or has reset the connection. A client
    /// that has sent more requests before it closed its side may read on.
    pub fn is_gone(&self) -> bool {
        let ends = self.ends();
        ends.contains(PollFlags::HUP) || !ends.is_empty() && !matches!(self.peek(&mut [0]), Ok(1))
    }

    /// Whether the client has closed its side: nothing comes behind what is here already.
    pub fn has_half_closed(&self) -> bool {
        !self.ends().is_empty()
    }

    /// What has ended of the connection: `RDHUP` is the client's side, `HUP` both (poll(2)).
    fn ends(&self) -> PollFlags {
        let mut ask = [PollFd::new(self, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match rustix::event::poll(&mut ask, Some(&now)) {
            Ok(_) => ask[0].revents(),
            Err(_) => PollFlags::empty(),
        }
    }

    /// Writes what there is room for of the slices, in their order; waits where there is none.
    ///
    /// # Errors
    /// The socket's.
    pub fn poll_send(&mut self, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match send(self.as_fd(), slices) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return Poll::Ready(result),
        }
        let watch = self.watch(BOTH)?;
        loop {
            let mut guard = ready!(watch.poll_write_ready(context))?;
            if let Ok(result) = guard.try_io(|socket| send(socket.as_fd(), slices)) {
                return Poll::Ready(result);
            }
        }
    }

    /// Writes all of `bytes`, as long as the client keeps the pace.
    ///
    /// A socket is reported writable only when a third of what it holds has gone, which can be a megabyte. A client that
    /// takes less than that between two deadlines, but steadily, is not stalled: so there is a look at the socket in between.
    ///
    /// # Errors
    /// The socket's, or `TimedOut`; beside it how many bytes were written before.
    ///
    /// # Cancel safety
    /// Dropping it leaves an unknown part written: close the client.
    pub async fn write_all(&mut self, bytes: &[u8], pace: &Pace) -> Result<(), (usize, io::Error)> {
        let mut written = 0;
        let mut end = None;
        while written < bytes.len() {
            match rustix::net::send(self.as_fd(), &bytes[written..], SendFlags::NOSIGNAL) {
                Ok(count) => (written, end) = (written + count, None),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let now = Instant::now();
                    let until = *end.get_or_insert_with(|| pace.deadline(written as u64));
                    if now >= until {
                        return Err((written, io::ErrorKind::TimedOut.into()));
                    }
                    let look = until.min(now + pace.stall() / LOOKS_PER_STALL);
                    let send =
                        std::future::poll_fn(|context| self.poll_send(context, &[IoSlice::new(&bytes[written..])]));
                    if let Ok(result) = tokio::time::timeout_at(look, send).await {
                        (written, end) = (written + result.map_err(|error| (written, error))?, None);
                    }
                }
                Err(error) => return Err((written, error.into())),
            }
        }
        Ok(())
    }

    /// Ends what we send, and nothing else (shutdown(2)).
    pub fn end(&self) {
        // Whoever has gone already need not be told.
        let _: Result<(), Errno> = rustix::net::shutdown(self, Shutdown::Write);
    }

    /// Makes its close a reset (SO_LINGER, socket(7)), which no client takes for the end of an answer. A client over a Unix
    /// socket knows no reset.
    pub fn reset(&self) {
        // A socket that cannot be told is closed in the ordinary way.
        let _: Result<(), Errno> = rustix::net::sockopt::set_socket_linger(self, Some(Duration::ZERO));
    }

    /// Makes its close an ordinary one again.
    pub fn end_in_order(&self) {
        let _: Result<(), Errno> = rustix::net::sockopt::set_socket_linger(self, None);
    }

    /// Ends what we send and reads what the client still sends, so that closing does not reset the connection before the
    /// client has read its answer (RFC 9112 §9.6). Ends when the client closes, after `total`, when nothing comes for
    /// `stall`, or with `stop`.
    pub async fn linger(mut self, stall: Duration, total: Duration, stop: impl Future<Output = ()>) {
        if rustix::net::shutdown(self.as_fd(), Shutdown::Write).is_err() {
            return;
        }
        let read = async {
            let end = Instant::now() + total;
            while let Ok(left) = self.discard() {
                let patience = end.min(Instant::now() + stall);
                match left {
                    Left::Some if Instant::now() < end => tokio::task::yield_now().await,
                    Left::Nothing if tokio::time::timeout_at(patience, self.readable()).await.is_ok() => {}
                    _ => return,
                }
            }
        };
        tokio::select! {
            () = read => {}
            () = stop => {}
        }
    }

    /// Throws away what has arrived; an error at the end of it.
    fn discard(&self) -> io::Result<Left> {
        let mut buffer = [0; 16 << 10];
        // Bounded, so that a client that sends as fast as we read does not keep the worker.
        for _ in 0..16 {
            match self.receive(&mut buffer, RecvFlags::empty()) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Left::Nothing),
                Err(error) => return Err(error),
            }
        }
        Ok(Left::Some)
    }
}

/// For whoever reads and writes at the same time.
const BOTH: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// sendmsg(2).
fn send(socket: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    loop {
        match rustix::net::sendmsg(socket, slices, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

/// What was left in a socket by a bounded look.
enum Left {
    Nothing,
    Some,
}
