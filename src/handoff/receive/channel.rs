//! A gateway's channel, as the daemon's threads share it: what is to be said on it, and whom it has lent.
//!
//! Whoever says something takes the lock for the time of one `sendmsg` that never waits. What nobody is waiting for (DONE,
//! LOAD) may stay behind until something urgent goes out (TAKEN, REFUSED, RETURN) or until whoever serves the channels is
//! about to wait: then one packet carries all of it.

use std::collections::HashMap;
use std::io::IoSlice;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, Shutdown, send, sendmsg, shutdown};

use super::super::native::frame::Frame;
use super::super::native::header::{Header, PACKET_BYTES_MAX};
use super::timeout;

/// A gateway that lets so much wait for it does not read any more.
const UNSENT_BYTES_MAX: usize = 1 << 20;

/// The channel has ended, or what was to be said cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ended;

/// When something has to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Urgency {
    /// With the next thing that cannot wait.
    Later,
    Now,
}

#[derive(Debug)]
pub(super) struct Channel {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// `None` once the channel has ended.
    socket: Option<Arc<OwnedFd>>,
    /// Frames that were not sent yet.
    unsent: Vec<u8>,
    lent: HashMap<u64, Lent>,
}

/// A client that was handed over and of whom the gateway has not heard the end.
#[derive(Debug)]
struct Lent {
    is_taken: bool,
    is_revoked: Arc<AtomicBool>,
}

impl Channel {
    pub(super) fn new(socket: Arc<OwnedFd>) -> Self {
        Self { state: Mutex::new(State { socket: Some(socket), unsent: Vec::new(), lent: HashMap::new() }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is whole before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it. Clients that were taken are not touched by that.
    pub(super) fn end(&self) {
        self.state().give_up();
    }

    pub(super) fn has_ended(&self) -> bool {
        self.state().socket.is_none()
    }

    pub(super) fn lent_count(&self) -> usize {
        self.state().lent.len()
    }

    /// Notes that a client came; the flag is set when the gateway revokes it. `None`: that id is in use.
    pub(super) fn lend(&self, id: u64) -> Option<Arc<AtomicBool>> {
        let mut state = self.state();
        if state.lent.contains_key(&id) {
            return None;
        }
        let is_revoked = Arc::new(AtomicBool::new(false));
        state.lent.insert(id, Lent { is_taken: false, is_revoked: Arc::clone(&is_revoked) });
        Some(is_revoked)
    }

    /// Notes that the gateway wants one to be ended; `false` where it has ended.
    pub(super) fn revoke(&self, id: u64) -> bool {
        self.state().lent.get(&id).map(|lent| lent.is_revoked.store(true, Ordering::Release)).is_some()
    }

    /// Says TAKEN, once. Until this has returned well the client is the gateway's.
    ///
    /// # Errors
    /// The gateway cannot be told by `until`.
    pub(super) fn take(&self, id: u64, until: Instant) -> Result<(), Ended> {
        {
            let mut state = self.state();
            match state.lent.get_mut(&id) {
                None => return Err(Ended),
                Some(lent) if lent.is_taken => return Ok(()),
                Some(lent) => lent.is_taken = true,
            }
            state.append(&Frame::Taken { id })?;
        }
        self.send_all(until)
    }

    /// Says what became of a client, who is not lent any more.
    pub(super) fn conclude(&self, id: u64, frame: &Frame, urgency: Urgency) -> Result<(), Ended> {
        let mut state = self.state();
        state.lent.remove(&id).ok_or(Ended)?;
        state.append(frame)?;
        if urgency == Urgency::Now { state.flush(None).map(drop) } else { Ok(()) }
    }

    /// Says RETURN, with the client.
    ///
    /// # Errors
    /// The gateway cannot be told by `until`: the client is to be closed.
    pub(super) fn give_back(
        &self,
        id: u64,
        frame: &Frame,
        client: BorrowedFd<'_>,
        until: Instant,
    ) -> Result<(), Ended> {
        let bytes = frame.encode();
        loop {
            let socket = {
                let mut state = self.state();
                if !state.lent.contains_key(&id) {
                    return Err(Ended);
                }
                // In a packet with what waits, if there is room for both.
                if state.unsent.len() + bytes.len() > PACKET_BYTES_MAX {
                    state.flush(None)?;
                }
                if state.unsent.len() + bytes.len() <= PACKET_BYTES_MAX {
                    let begun = state.unsent.len();
                    state.unsent.extend_from_slice(&bytes);
                    match state.flush(Some(client)) {
                        Ok(true) => {
                            state.lent.remove(&id);
                            return Ok(());
                        }
                        Ok(false) => state.unsent.truncate(begun),
                        Err(ended) => return Err(ended),
                    }
                }
                state.socket.clone().ok_or(Ended)?
            };
            wait_for_room(&socket, until)?;
        }
    }

    /// Says something that is about no client.
    pub(super) fn say(&self, frame: &Frame, urgency: Urgency) -> Result<(), Ended> {
        let mut state = self.state();
        state.append(frame)?;
        if urgency == Urgency::Now { state.flush(None).map(drop) } else { Ok(()) }
    }

    /// Sends what waits, as far as the gateway has room; says whether that was all.
    pub(super) fn flush(&self) -> Result<bool, Ended> {
        self.state().flush(None)
    }

    /// Sends what waits, and waits for room.
    fn send_all(&self, until: Instant) -> Result<(), Ended> {
        loop {
            let socket = {
                let mut state = self.state();
                if state.flush(None)? {
                    return Ok(());
                }
                state.socket.clone().ok_or(Ended)?
            };
            // What could not be said in time must not be said later: whoever wanted to has gone another way by then.
            wait_for_room(&socket, until).map_err(|Ended| self.state().give_up())?;
        }
    }
}

impl State {
    fn append(&mut self, frame: &Frame) -> Result<(), Ended> {
        if self.socket.is_none() {
            return Err(Ended);
        }
        self.unsent.extend_from_slice(&frame.encode());
        if self.unsent.len() > UNSENT_BYTES_MAX { Err(self.give_up()) } else { Ok(()) }
    }

    /// Sends what waits; `false` when the gateway has no room for all of it. With a descriptor it is one packet.
    fn flush(&mut self, descriptor: Option<BorrowedFd<'_>>) -> Result<bool, Ended> {
        let mut sent = 0;
        while sent < self.unsent.len() {
            let socket = self.socket.as_ref().ok_or(Ended)?;
            let packet = packet(&self.unsent[sent..]);
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            let result = match descriptor {
                None => send(socket.as_raw_fd(), packet, flags),
                Some(client) => {
                    let number = [client.as_raw_fd()];
                    let rights = [ControlMessage::ScmRights(&number)];
                    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(packet)], &rights, flags, None)
                }
            };
            match result {
                // A packet goes whole or not at all.
                Ok(_) => sent += packet.len(),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ETOOMANYREFS) => break,
                Err(_) => return Err(self.give_up()),
            }
        }
        self.unsent.drain(..sent);
        Ok(self.unsent.is_empty())
    }

    /// What was sent before may still be read by the gateway; what it says is not read any more by us. Whoever waits for the
    /// channel is woken.
    fn give_up(&mut self) -> Ended {
        if let Some(socket) = self.socket.take() {
            // It fails only where the gateway was first.
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
        }
        self.unsent = Vec::new();
        self.lent.clear();
        Ended
    }
}

/// As many of the frames as one packet holds.
fn packet(frames: &[u8]) -> &[u8] {
    let mut length = 0;
    while let Ok((_, payload, _)) = Header::split(&frames[length..]) {
        let behind = length + super::super::native::header::HEADER_BYTES + payload.len();
        if behind > PACKET_BYTES_MAX {
            break;
        }
        length = behind;
    }
    &frames[..length]
}

fn wait_for_room(socket: &OwnedFd, until: Instant) -> Result<(), Ended> {
    if until <= Instant::now() {
        return Err(Ended);
    }
    let mut room = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    match poll(&mut room, timeout(Some(until))) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(_) => Err(Ended),
    }
}
