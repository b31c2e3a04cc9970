//! A client that was handed over: who may touch it, and when.

use std::fmt;
use std::io::PipeReader;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, poll};
use serde_json::{Map, Value};

use super::super::client;
use super::super::dialect::Dialect;
use super::super::message::Message;
use super::body::Input;
use super::channel::Channel;
use super::error::ClientError;
use super::inherited::Client;
use super::offer::Offer;
use super::response::Output;
use super::shared::Shared;
use super::timeout;

/// A client, and what was said of it.
///
/// In the dialect `baton` it is the gateway's until it was [taken](Self::take), which reading its body, writing to it, or asking for its socket does by
/// itself; before that it can be [refused](Self::refuse). In the others it is this process's already, because its message was
/// read. Whoever has served it says so: [`finish`](Self::finish) closes it, [`give_back`](Self::give_back) returns it for its
/// next request. One that is dropped without is refused as `overloaded` if it was not taken, and closed, as an error, if it was.
///
/// The client's socket is as the gateway had it: **non-blocking**, unless the target asks otherwise. O_NONBLOCK belongs to
/// the open file and travels with it. What reads and writes here does not mind; who does so on their own says what they need
/// with [`set_blocking`](Self::set_blocking).
pub struct Handoff {
    /// In one place, so that it can be moved about.
    inner: Box<Inner>,
}

pub(super) struct Inner {
    pub shared: Arc<Shared>,
    /// `None` once it has ended.
    pub client: Option<OwnedFd>,
    /// Where the body is read from, if not from there.
    pub other_input: Option<OwnedFd>,
    pub lease: Lease,
    pub metadata: Map<String, Value>,
    pub data: Vec<u8>,
    /// The request's head, where it was sent along.
    pub head: Vec<u8>,
    pub input: Input,
    pub output: Output,
    pub taken_at: OnceLock<Instant>,
    /// Whether everything about it was said.
    pub is_concluded: bool,
}

/// By what right the client is here.
pub(super) enum Lease {
    /// For ever: reading its message was taking it.
    Alone,
    /// A channel's, until it is taken, and told of afterwards.
    Channel { channel: Arc<Channel>, id: u64, is_revoked: Arc<AtomicBool> },
}

/// Why nobody is there any more; see [`Handoff::wait_until_left`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// The client has left.
    Client,
    /// The gateway wants it to be ended.
    Revoked,
}

impl Handoff {
    fn new(shared: &Arc<Shared>, client: OwnedFd, lease: Lease, data: Vec<u8>) -> Self {
        shared.begin_one();
        Self {
            inner: Box::new(Inner {
                shared: Arc::clone(shared),
                client: Some(client),
                other_input: None,
                lease,
                metadata: Map::new(),
                data,
                head: Vec::new(),
                input: Input::empty(),
                output: Output::new(shared.dialect == Dialect::Fdpass),
                taken_at: OnceLock::new(),
                is_concluded: false,
            }),
        }
    }

    /// One that came with its message.
    pub(super) fn alone(shared: &Arc<Shared>, message: Message, client: OwnedFd) -> Self {
        Self::new(shared, client, Lease::Alone, message.into_data())
    }

    /// One that this process was started for.
    pub(super) fn inherited(shared: &Arc<Shared>, client: Client) -> Self {
        let Client { socket, input, data, metadata, framing, is_head_sent, is_cgi } = client;
        let mut handoff = Self::new(shared, socket, Lease::Alone, data);
        handoff.inner.metadata = metadata;
        handoff.inner.input = Input::new(Vec::new(), framing, None);
        handoff.inner.other_input = input;
        handoff.inner.output = Output::new(is_head_sent);
        handoff.inner.output.is_cgi = is_cgi;
        handoff
    }

    /// One that came on a channel.
    pub(super) fn lent(
        shared: &Arc<Shared>,
        channel: &Arc<Channel>,
        id: u64,
        is_revoked: Arc<AtomicBool>,
        offer: Offer,
    ) -> Self {
        let Offer { client, metadata, data, mut input } = offer;
        let mut handoff =
            Self::new(shared, client, Lease::Channel { channel: Arc::clone(channel), id, is_revoked }, data);
        let number = |object: &str, name: &str| metadata.get(object)?.get(name)?.as_u64();
        let head_bytes = number("request", "head_bytes").and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0);
        let is_head_sent = metadata.get("response").and_then(|response| response.get("head_sent")?.as_bool());
        handoff.inner.head = input.take_head(head_bytes);
        handoff.inner.output = Output::new(is_head_sent.unwrap_or(false));
        handoff.inner.input = input;
        handoff.inner.metadata = metadata;
        handoff
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.inner
    }

    pub(super) fn inner_mut(&mut self) -> &mut Inner {
        &mut self.inner
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }

    pub(super) fn input(&self) -> &Input {
        &self.inner.input
    }

    pub(super) fn input_mut(&mut self) -> &mut Input {
        &mut self.inner.input
    }

    pub(super) fn is_lent_on(&self, channel: &Arc<Channel>) -> bool {
        matches!(&self.inner.lease, Lease::Channel { channel: own, .. } if Arc::ptr_eq(own, channel))
    }

    /// The socket, of a client that was taken.
    pub(super) fn client_socket(&self) -> Result<&OwnedFd, ClientError> {
        self.inner.client.as_ref().ok_or(ClientError::ChannelEnded)
    }

    /// Where its body is read from.
    pub(super) fn input_socket(&self) -> Result<&OwnedFd, ClientError> {
        self.inner.other_input.as_ref().map_or_else(|| self.client_socket(), Ok)
    }

    /// Makes the client this process's: says TAKEN. Once is enough, and whatever reads from or writes to the client does it. In
    /// dialects without it, it always was.
    ///
    /// # Errors
    /// [`ClientError::ChannelEnded`]: the gateway cannot be told. The client is not ours and must not be touched; drop this.
    pub fn take(&self) -> Result<(), ClientError> {
        if self.inner.taken_at.get().is_some() {
            return Ok(());
        }
        if let Lease::Channel { channel, id, .. } = &self.inner.lease {
            let until = Instant::now() + self.inner.shared.options.write_timeout;
            channel.take(*id, until).map_err(|_| ClientError::ChannelEnded)?;
        }
        self.inner.taken_at.get_or_init(Instant::now);
        Ok(())
    }

    /// Whether the client is this process's to answer.
    pub fn is_taken(&self) -> bool {
        self.inner.taken_at.get().is_some()
    }

    /// Whether the gateway has asked to end this one: a policy's or its operator's wish, or a quota. Writing and reading fail
    /// from then on; whoever has something else in mind ends it in their own time.
    pub fn revoked(&self) -> bool {
        self.inner.shared.look();
        self.has_been_revoked()
    }

    pub(super) fn has_been_revoked(&self) -> bool {
        matches!(&self.inner.lease, Lease::Channel { is_revoked, .. } if is_revoked.load(Ordering::Acquire))
    }

    /// What ends (is readable) when this client or another one is revoked, for whoever waits for something of their own beside it: then
    /// [`revoked`](Self::revoked) tells whether it is this one, and if not, another is asked for. To miss none, ask for it first, then
    /// whether it was revoked, then wait. `None` where nobody revokes.
    pub fn revocation(&self) -> Option<Arc<PipeReader>> {
        matches!(self.inner.lease, Lease::Channel { .. }).then(|| self.inner.shared.revocation()).flatten()
    }

    /// Whether the client has left, without writing to it: it has ended, reset or broken its connection. One that has only
    /// ended its sending side looks the same; one of whom bytes are unread is there.
    pub fn client_gone(&self) -> bool {
        self.inner.shared.look();
        self.inner.client.as_ref().is_none_or(|client| client::has_left(client.as_fd()))
    }

    /// Waits until the client has left or the gateway revokes it, at most so long; `None` when neither was so.
    pub fn wait_until_left(&self, patience: Duration) -> Option<Left> {
        let until = Instant::now().checked_add(patience);
        // Where bytes are unread, the end behind them is told of again and again, and is not one.
        let mut wanted = PollFlags::from_bits_retain(libc::POLLRDHUP);
        loop {
            let client = self.inner.client.as_ref()?;
            match self.wait_once(wanted, until) {
                Err(ClientError::Revoked) => return Some(Left::Revoked),
                Err(_) => return None,
                Ok(()) if client::has_left(client.as_fd()) => return Some(Left::Client),
                Ok(()) => wanted = PollFlags::empty(),
            }
        }
    }

    /// Waits until the client can be read from or written to.
    pub(super) fn wait_for(&self, wanted: PollFlags, patience: Duration) -> Result<(), ClientError> {
        self.wait_once(wanted, Instant::now().checked_add(patience))
    }

    fn wait_once(&self, wanted: PollFlags, until: Option<Instant>) -> Result<(), ClientError> {
        let shared = &self.inner.shared;
        let client = if wanted == PollFlags::POLLIN { self.input_socket()? } else { self.client_socket()? };
        let is_lent = matches!(self.inner.lease, Lease::Channel { .. });
        loop {
            // Asked for before the flag is looked at, so that a revocation in between ends it.
            let revocation: Option<Arc<PipeReader>> = if is_lent { shared.revocation() } else { None };
            if self.has_been_revoked() {
                return Err(ClientError::Revoked);
            }
            let serves = is_lent && shared.idle_engine().is_some();
            let mut ready = vec![PollFd::new(client.as_fd(), wanted)];
            ready.extend(revocation.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
            if serves {
                ready.push(PollFd::new(shared.epoll.as_fd(), PollFlags::POLLIN));
            }
            match poll(&mut ready, timeout(until)) {
                Ok(0) => return Err(ClientError::TimedOut),
                // What nix has no name for is something too.
                Ok(_) if ready[0].any() != Some(false) => return Ok(()),
                Ok(_) if serves => shared.look_now(),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(ClientError::Io(error.into())),
            }
        }
    }

    pub(super) fn client_for_looking(&self) -> Option<BorrowedFd<'_>> {
        self.inner.client.as_ref().map(AsFd::as_fd)
    }

    /// The client's socket, kept by the handoff. Whoever reads from it or writes to it [takes](Self::take) the client before;
    /// looking at it, or waiting for it, needs nothing.
    pub fn client(&self) -> BorrowedFd<'_> {
        if matches!(self.inner.lease, Lease::Alone) {
            self.inner.taken_at.get_or_init(Instant::now);
        }
        self.inner.client.as_ref().expect("it is there until this is consumed").as_fd()
    }

    /// The client's socket, now the caller's to close. The gateway is told at once that all is done, because nobody can tell it
    /// later; what is to be told better is written by this handoff. Where it could not be told that the client is taken, the
    /// socket is one of which nobody has the other end.
    pub fn into_client(mut self) -> OwnedFd {
        let taken = self.take();
        let client = self.inner.client.take().expect("it is there until this is consumed");
        if taken.is_ok() {
            self.conclude_kept();
            return client;
        }
        self.inner.shared.replace_by_dead(client)
    }

    /// The client's socket as the standard library reads and writes streams: without SIGPIPE. For a client that came
    /// over a Unix socket, what is about TCP or addresses fails; the rest works. See [`into_client`](Self::into_client).
    pub fn into_stream(self) -> TcpStream {
        self.into_client().into()
    }

    /// Makes reads and writes of the client wait, or not. All holders of this socket share the setting; so the client is
    /// [taken](Self::take).
    ///
    /// # Errors
    /// What fcntl(2) says, or the client cannot be taken.
    pub fn set_blocking(&self, blocking: bool) -> std::io::Result<()> {
        self.take()?;
        client::set_blocking(self.client_socket()?.as_fd(), blocking)
    }

    /// Lets go of the data, the metadata and the request's head: what is left is a few hundred bytes, for streams that last.
    pub fn shrink(&mut self) {
        let inner = &mut *self.inner;
        (inner.data, inner.head, inner.metadata) = (Vec::new(), Vec::new(), Map::new());
    }
}

impl AsFd for Handoff {
    /// As [`client`](Self::client), for runtimes.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.client()
    }
}

impl fmt::Debug for Handoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Handoff");
        out.field("client", &self.inner.client).field("data_bytes", &self.inner.data.len());
        out.field("is_taken", &self.is_taken()).finish_non_exhaustive()
    }
}
