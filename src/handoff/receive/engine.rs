//! What the acceptor does: accept gateways, read what they say, queue whom they hand over. One thread at a time has it; the
//! others talk on the channels by themselves.

use std::collections::{HashMap, VecDeque};
use std::io::{self, PipeReader, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};

use super::super::ancillary::{Event, Wanted};
use super::super::client::set_blocking;
use super::super::dialect::Dialect;
use super::super::native::frame::{Frame, Load, Reason};
use super::channel::Urgency;
use super::handoff::Handoff;
use super::incoming::{Buffer, Incoming, ReceiveError, read_datagram};
use super::listener::Listener;
use super::options::Allowed;
use super::peer::{Gateway, Heard};
use super::shared::Shared;
use super::timeout_ms;

/// Connections whose message has not arrived yet, at most; more wait in the backlog.
const INCOMING_MAX: usize = 64;
/// How long nothing is accepted or read after this process has run out of descriptors or memory: far less than a gateway
/// waits for its message to be read.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(20);
/// So many packets are read from a channel that has more before the others are looked at.
const PACKETS_MAX: u32 = 16;

const WOKEN: u64 = 0;
const LISTENER: u64 = 1;
const FIRST_PEER: u64 = 2;

#[derive(Debug)]
pub(super) struct Engine {
    listener: Option<Listener>,
    allowed: Allowed,
    buffer: Buffer,
    incoming: HashMap<u64, Incoming>,
    gateways: HashMap<u64, Gateway>,
    next_token: u64,
    ready: VecDeque<Handoff>,
    /// The channel that last had something to say, and how many packets were read from it since the others were looked at.
    busy: Option<(u64, u32)>,
    /// When the listener is looked at again.
    paused_until: Option<Instant>,
    has_stopped: bool,
    /// How many more are given out, where that is bounded.
    left: Option<usize>,
    woken: PipeReader,
}

impl Engine {
    pub(super) fn new(
        shared: &Shared,
        listener: Option<Listener>,
        allowed: Allowed,
        woken: PipeReader,
    ) -> io::Result<Self> {
        set_blocking(woken.as_fd(), false)?;
        shared.epoll.add(woken.as_fd(), WOKEN, Wanted::Read)?;
        if let Some(listener) = &listener {
            listener.socket.set_nonblocking(true)?;
            shared.epoll.add(listener.socket.as_fd(), LISTENER, Wanted::Read)?;
        }
        Ok(Self {
            listener,
            allowed,
            buffer: Buffer::new(match shared.dialect {
                Dialect::Baton => super::super::native::header::PACKET_BYTES_MAX,
                _ => shared.options.message_bytes_max,
            }),
            incoming: HashMap::new(),
            gateways: HashMap::new(),
            next_token: FIRST_PEER,
            ready: VecDeque::new(),
            busy: None,
            paused_until: None,
            has_stopped: false,
            left: None,
            woken,
        })
    }

    /// Gives out this one, then none.
    pub(super) fn give_one(&mut self, handoff: Handoff) {
        self.ready.push_back(handoff);
        self.left = Some(1);
    }

    /// Gives out whom this connection hands over, then none.
    pub(super) fn take_one(&mut self, shared: &Arc<Shared>, connection: OwnedFd) -> io::Result<()> {
        self.left = Some(1);
        self.admit(shared, connection)
    }

    /// The next client, or `None` once asked to stop. Waits for it until then, or not at all; `Pending` when there is none.
    pub(super) fn next(&mut self, shared: &Arc<Shared>, until: Until) -> io::Result<Poll<Option<Handoff>>> {
        loop {
            if shared.is_stopping() || self.left == Some(0) {
                self.stop(shared);
                return Ok(Poll::Ready(None));
            }
            if let Some(handoff) = self.ready.pop_front() {
                self.left = self.left.map(|left| left - 1);
                return Ok(Poll::Ready(Some(handoff)));
            }
            if self.listener.is_none() && self.incoming.is_empty() && self.gateways.is_empty() {
                return Ok(Poll::Ready(None));
            }
            // All there is has to be seen before a runtime is asked to wait: it may be told of what is new only.
            if self.step(shared, until)? == Step::Idle && until == Until::Now && self.ready.is_empty() {
                return Ok(Poll::Pending);
            }
        }
    }

    /// Looks once at everything, without waiting, for a thread that has something else to do.
    pub(super) fn look(&mut self, shared: &Arc<Shared>) {
        let was_empty = self.ready.is_empty();
        // The socket that failed will fail whoever accepts from it, and that one can say so.
        drop(self.step(shared, Until::Now));
        if was_empty && !self.ready.is_empty() {
            shared.wake();
        }
    }

    /// Serves the channels until nobody is in flight any more; says whether that was so in time.
    pub(super) fn drain(&mut self, shared: &Arc<Shared>, deadline: Instant) -> io::Result<bool> {
        shared.stop();
        self.stop(shared);
        loop {
            if shared.in_flight() == 0 {
                self.flush(shared);
                return Ok(true);
            }
            if deadline <= Instant::now() {
                self.flush(shared);
                return Ok(false);
            }
            self.step(shared, Until::Deadline(deadline))?;
            self.refuse_ready();
        }
    }

    /// Nobody new: the listener is closed, gateways are told, and whoever waits goes back to them.
    pub(super) fn stop(&mut self, shared: &Arc<Shared>) {
        if !std::mem::replace(&mut self.has_stopped, true) {
            if shared.dialect == Dialect::Datagram {
                // What has been sent cannot be taken back by anybody.
                while let Ok(Some(handoff)) = self.read_datagrams(shared) {
                    self.ready.push_back(handoff);
                }
            }
            self.listener = None;
            self.incoming.clear();
            for gateway in self.gateways.values() {
                let _ = gateway.channel.say(&Frame::Draining, Urgency::Now);
            }
            // What has been sent until now is answered at once; a gateway that never stops is heard like any other.
            for token in self.gateways.keys().copied().collect::<Vec<_>>() {
                for _ in 0..=shared.options.in_flight_max {
                    if !self.hear(shared, token) {
                        break;
                    }
                }
            }
        }
        self.refuse_ready();
        shared.set_waiting(true);
        self.flush(shared);
    }

    fn refuse_ready(&mut self) {
        for handoff in self.ready.drain(..) {
            drop(handoff.refuse(Reason::Draining, None, "stopping"));
        }
    }

    /// Reads from the channel that is busy, or waits for whatever comes first.
    fn step(&mut self, shared: &Arc<Shared>, until: Until) -> io::Result<Step> {
        if let Some(load) = shared.take_load() {
            let load = Load { in_flight: shared.in_flight() as u64, load };
            for gateway in self.gateways.values() {
                let _ = gateway.channel.say(&Frame::Load(load), Urgency::Later);
            }
        }
        // While a channel has packets, asking the kernel which channel has some is a call too many.
        if let Some((token, packets)) = self.busy
            && packets < PACKETS_MAX
        {
            self.busy = Some((token, packets + 1));
            if self.hear(shared, token) {
                return Ok(Step::Some);
            }
            self.busy = None;
        }
        let is_busy = self.busy.take().is_some();
        if !is_busy {
            shared.set_waiting(true);
            self.flush(shared);
        }
        let timeout = if is_busy || until == Until::Now { 0 } else { timeout_ms(self.first_deadline(until)) };
        let mut step = Step::Idle;
        for event in shared.epoll.wait(timeout)? {
            step = Step::Some;
            self.handle(shared, event)?;
        }
        self.drop_late(shared);
        // Whoever comes by a runtime waits there, and comes only if there is something.
        if until != Until::Now {
            shared.set_waiting(false);
        }
        Ok(step)
    }

    /// Until when a caller that cannot wait may leave this alone, beside its descriptor.
    pub(super) fn first_deadline(&self, until: Until) -> Option<Instant> {
        let own = match until {
            Until::Deadline(deadline) => Some(deadline),
            Until::Forever | Until::Now => None,
        };
        let incoming = self.incoming.values().map(|incoming| incoming.deadline);
        let silent = self.gateways.values().filter_map(|gateway| gateway.hello_deadline);
        incoming.chain(silent).chain(self.paused_until).chain(own).min()
    }

    fn handle(&mut self, shared: &Arc<Shared>, event: Event) -> io::Result<()> {
        match event.token {
            WOKEN => {
                // As often as somebody called, or until the next time.
                drop((&self.woken).read(&mut [0; 64]));
                Ok(())
            }
            LISTENER if shared.dialect == Dialect::Datagram => {
                // Those behind it stay with the kernel until this one has found somebody.
                let handoff = self.read_datagrams(shared)?;
                self.ready.extend(handoff);
                Ok(())
            }
            LISTENER => self.accept_one(shared),
            token if self.gateways.contains_key(&token) => {
                if event.is_writable {
                    self.flush(shared);
                }
                if self.hear(shared, token) {
                    self.busy = Some((token, 1));
                }
                Ok(())
            }
            token => self.read_on(shared, token),
        }
    }

    /// Reads one packet of a gateway; `false` when there is none.
    fn hear(&mut self, shared: &Arc<Shared>, token: u64) -> bool {
        let Some(gateway) = self.gateways.get_mut(&token) else { return false };
        let heard = gateway.hear(shared, &mut self.buffer, &mut self.ready, self.has_stopped);
        match heard {
            Ok(Heard::Nothing) => return false,
            Ok(Heard::Packet) => {}
            Ok(Heard::End) => self.end_gateway(shared, token),
            Err(error) => {
                self.end_gateway(shared, token);
                (shared.options.report)(&error);
            }
        }
        true
    }

    /// Those that were not accepted yet go with their channel: they are the gateway's.
    fn end_gateway(&mut self, shared: &Shared, token: u64) {
        let Some(gateway) = self.gateways.remove(&token) else { return };
        let _ = shared.epoll.remove(gateway.socket.as_fd());
        gateway.channel.end();
        self.ready.retain(|handoff| !handoff.is_lent_on(&gateway.channel));
    }

    /// Sends what was left for later; whoever has no room for it is waited for.
    pub(super) fn flush(&mut self, shared: &Shared) {
        let mut ended = Vec::new();
        for (token, gateway) in &mut self.gateways {
            let wanted = match gateway.channel.flush() {
                Ok(true) => Wanted::Read,
                Ok(false) => Wanted::ReadAndWrite,
                Err(_) => {
                    ended.push(*token);
                    continue;
                }
            };
            if wanted != gateway.wanted {
                gateway.wanted = wanted;
                let _ = shared.epoll.change(gateway.socket.as_fd(), *token, wanted);
            }
        }
        for token in ended {
            self.end_gateway(shared, token);
        }
    }

    /// Drops whoever was given time and did not use it, and looks at the listener again when it is time.
    fn drop_late(&mut self, shared: &Arc<Shared>) {
        if self.paused_until.is_none() && self.incoming.is_empty() && self.gateways.values().all(Gateway::has_greeted) {
            return;
        }
        let now = Instant::now();
        if self.paused_until.is_some_and(|until| until <= now) {
            self.paused_until = None;
            self.want_incoming(shared);
        }
        let late: Vec<u64> =
            self.incoming.iter().filter(|(_, one)| one.deadline <= now).map(|(token, _)| *token).collect();
        for token in late {
            self.incoming.remove(&token);
            (shared.options.report)(&ReceiveError::TimedOut);
            self.want_listener(shared);
        }
        let silent =
            self.gateways.iter().filter(|(_, gateway)| gateway.hello_deadline.is_some_and(|until| until <= now));
        let silent: Vec<u64> = silent.map(|(token, _)| *token).collect();
        for token in silent {
            self.end_gateway(shared, token);
            (shared.options.report)(&ReceiveError::TimedOut);
        }
    }

    /// Waits for the listener, or not, as there is room.
    fn want_listener(&self, shared: &Shared) {
        let Some(listener) = &self.listener else { return };
        let has_room = self.incoming.len() < INCOMING_MAX && self.paused_until.is_none();
        let wanted = if has_room { Wanted::Read } else { Wanted::Nothing };
        let _ = shared.epoll.change(listener.socket.as_fd(), LISTENER, wanted);
    }

    /// The same for everybody whose client would need a descriptor.
    fn want_incoming(&self, shared: &Shared) {
        self.want_listener(shared);
        let wanted = if self.paused_until.is_none() { Wanted::Read } else { Wanted::Nothing };
        for (token, one) in &self.incoming {
            let _ = shared.epoll.change(one.connection.as_fd(), *token, wanted);
        }
    }

    fn accept_one(&mut self, shared: &Arc<Shared>) -> io::Result<()> {
        let Some(listener) = &self.listener else { return Ok(()) };
        let connection = match listener.socket.accept() {
            Ok((connection, _)) => OwnedFd::from(connection),
            Err(error) => return self.pause_if_exhausted(shared, error),
        };
        let peer = getsockopt(&connection, sockopt::PeerCredentials)?;
        if self.allowed.includes(peer.uid(), peer.gid()) {
            self.admit(shared, connection)
        } else {
            (shared.options.report)(&ReceiveError::NotAllowed { uid: peer.uid() });
            Ok(())
        }
    }

    /// Takes a connection on which somebody hands over, once or from now on.
    pub(super) fn admit(&mut self, shared: &Arc<Shared>, connection: OwnedFd) -> io::Result<()> {
        let token = self.next_token;
        self.next_token += 1;
        let deadline = Instant::now() + shared.options.receive_timeout;
        if shared.dialect == Dialect::Baton {
            set_blocking(connection.as_fd(), false)?;
            if let Err(error) = shared.epoll.add(connection.as_fd(), token, Wanted::Read) {
                // Dropped, it will be back.
                (shared.options.report)(&ReceiveError::Io(error.into()));
                return Ok(());
            }
            let gateway = Gateway::greet(connection, shared, deadline);
            if self.has_stopped {
                let _ = gateway.channel.say(&Frame::Draining, Urgency::Now);
            }
            self.gateways.insert(token, gateway);
            self.busy = Some((token, 0));
            return Ok(());
        }
        // Whoever hands over sends at once: mostly the message is there already, and nobody has to be waited for.
        self.incoming.insert(token, Incoming::new(connection, deadline));
        self.read_on(shared, token)?;
        if let Some(one) = self.incoming.get(&token) {
            let wanted = if self.paused_until.is_none() { Wanted::Read } else { Wanted::Nothing };
            if let Err(error) = shared.epoll.add(one.connection.as_fd(), token, wanted) {
                self.incoming.remove(&token);
                (shared.options.report)(&ReceiveError::Io(error.into()));
            }
            self.want_listener(shared);
        }
        Ok(())
    }

    /// Reads from somebody whose message is not whole, unless there is no descriptor for a client: then it waits a little. A message
    /// that is read while none is free arrives without its client, who is closed for ever, and its reading has told the
    /// gateway that the client is ours.
    fn read_on(&mut self, shared: &Arc<Shared>, token: u64) -> io::Result<()> {
        let Some(one) = self.incoming.get_mut(&token) else { return Ok(()) };
        if let Err(error) = one.connection.try_clone() {
            // The whole table is waited for: this one would be told of again and again.
            return self.pause_if_exhausted(shared, error);
        }
        match one.read_on(shared.dialect, &mut self.buffer) {
            Ok(None) => return Ok(()),
            Ok(Some((message, client))) => self.ready.push_back(Handoff::alone(shared, message, client)),
            Err(error) => (shared.options.report)(&error),
        }
        self.incoming.remove(&token);
        if self.incoming.len() + 1 == INCOMING_MAX {
            self.want_listener(shared);
        }
        Ok(())
    }

    /// Reads what waits in a datagram socket, until one is a client.
    fn read_datagrams(&mut self, shared: &Arc<Shared>) -> io::Result<Option<Handoff>> {
        loop {
            let Some(listener) = &self.listener else { return Ok(None) };
            let socket = listener.socket.as_fd();
            if let Err(error) = socket.try_clone_to_owned() {
                return self.pause_if_exhausted(shared, error).map(|()| None);
            }
            match read_datagram(socket, &self.allowed, &mut self.buffer) {
                Ok(None) => return Ok(None),
                Ok(Some((message, client))) => return Ok(Some(Handoff::alone(shared, message, client))),
                // There is no connection that could have broken: it is the socket itself.
                Err(ReceiveError::Io(error)) => return Err(error),
                Err(error) => (shared.options.report)(&error),
            }
        }
    }

    /// Leaves the listener alone for a while where this process has run out of something, so that others take the clients or
    /// they wait.
    fn pause_if_exhausted(&mut self, shared: &Arc<Shared>, error: io::Error) -> io::Result<()> {
        match error.raw_os_error().map(Errno::from_raw) {
            // Gone again, or taken by another thread or process that listens on the same socket.
            Some(Errno::EAGAIN | Errno::ECONNABORTED | Errno::EINTR | Errno::EPERM) => Ok(()),
            Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => {
                self.paused_until = Some(Instant::now() + EXHAUSTED_PAUSE);
                self.want_incoming(shared);
                Ok(())
            }
            _ => Err(error),
        }
    }
}

/// How long the next client is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    Deadline(Instant),
    Forever,
    Now,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Idle,
    Some,
}
