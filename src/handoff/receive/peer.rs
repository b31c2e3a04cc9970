//! A gateway at the other end of a channel: what it says, frame by frame, and what of that it may.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Instant;
use std::{env, process};

use nix::errno::Errno;

use super::super::ancillary::{self, Received, Wanted};
use super::super::native::frame::{self, Frame, Hello, Reason, Refusal};
use super::super::native::header::{PACKET_BYTES_MAX, VERSION};
use super::channel::{Channel, Urgency};
use super::handoff::Handoff;
use super::incoming::{Buffer, ReceiveError};
use super::offer::{Misfit, Offer};
use super::shared::Shared;

#[derive(Debug)]
pub(super) struct Gateway {
    pub socket: Arc<OwnedFd>,
    pub channel: Arc<Channel>,
    /// Until when it must have said HELLO; `None` once it has.
    pub hello_deadline: Option<Instant>,
    /// What is waited for on the socket.
    pub wanted: Wanted,
}

/// What there was to be heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    End,
    Nothing,
    Packet,
}

impl Gateway {
    /// Says HELLO, without waiting for the gateway's.
    pub(super) fn greet(socket: OwnedFd, shared: &Shared, hello_deadline: Instant) -> Self {
        let socket = Arc::new(socket);
        let channel = Arc::new(Channel::new(Arc::clone(&socket)));
        let options = &shared.options;
        let hello = Hello {
            versions: vec![u64::from(VERSION)],
            name: options.name.clone().unwrap_or_else(program),
            pid: u64::from(process::id()),
            in_flight_max: options.in_flight_max as u64,
            data_bytes_max: Some(options.data_bytes_max as u64),
            roles: options.roles.clone(),
        };
        // One that has left already is found out by reading.
        let _ = channel.say(&Frame::Hello(hello), Urgency::Now);
        Self { socket, channel, hello_deadline: Some(hello_deadline), wanted: Wanted::Read }
    }

    pub(super) fn has_greeted(&self) -> bool {
        self.hello_deadline.is_none()
    }

    /// Reads a packet and does what it says; whoever is handed over waits in `ready`.
    ///
    /// # Errors
    /// The gateway broke the protocol: the channel ends, and everything that came with the packet is closed.
    pub(super) fn hear(
        &mut self,
        shared: &Arc<Shared>,
        buffer: &mut Buffer,
        ready: &mut VecDeque<Handoff>,
        is_stopping: bool,
    ) -> Result<Heard, ReceiveError> {
        let received = match ancillary::receive(self.socket.as_fd(), buffer.bytes()) {
            Ok(received) => received,
            Err(Errno::EAGAIN) => return Ok(Heard::Nothing),
            // What it sent before, and what is still to be read, is of no use: nobody can be taken any more.
            Err(_) => return Ok(Heard::End),
        };
        let Received { bytes, descriptors, is_cut, lacks_descriptors, .. } = received;
        if bytes == 0 && descriptors.is_empty() {
            return Ok(Heard::End);
        }
        if is_cut || bytes > PACKET_BYTES_MAX {
            return Err(ReceiveError::TooLarge);
        }
        let frames = frames(&buffer.bytes()[..bytes])?;
        // Where this process may open no more, nobody knows whose descriptors are missing.
        let mut descriptors = if lacks_descriptors { Vec::new() } else { descriptors }.into_iter();
        let wanted: usize = frames.iter().map(Frame::descriptors).sum();
        if !lacks_descriptors && descriptors.len() != wanted {
            return Err(ReceiveError::Protocol("another number of descriptors than its frames have"));
        }
        for frame in frames {
            match frame {
                Frame::Hello(hello) => self.greeted(&hello)?,
                _ if !self.has_greeted() => return Err(ReceiveError::Protocol("something before its HELLO")),
                Frame::Handoff { id, .. } if lacks_descriptors => {
                    self.lend(id)?;
                    self.refuse(id, Reason::Overloaded, "no descriptors are left");
                }
                Frame::Handoff { id, handoff } => {
                    let offered = self.offered(shared, id, handoff, &mut descriptors, is_stopping)?;
                    ready.extend(offered);
                }
                Frame::Revoke { id, .. } => {
                    if self.channel.revoke(id) {
                        shared.tell_of_revocation();
                    }
                }
                Frame::Ping(bytes) => {
                    let _ = self.channel.say(&Frame::Pong(bytes), Urgency::Now);
                }
                Frame::Pong(_) | Frame::Ignored(_) => {}
                Frame::Taken { .. }
                | Frame::Refused { .. }
                | Frame::Done { .. }
                | Frame::Return { .. }
                | Frame::Load(_)
                | Frame::Draining => return Err(ReceiveError::Protocol("what is a daemon's to say")),
            }
        }
        Ok(Heard::Packet)
    }

    fn greeted(&mut self, hello: &Hello) -> Result<(), ReceiveError> {
        if self.hello_deadline.take().is_none() {
            return Err(ReceiveError::Protocol("a second HELLO"));
        }
        if !hello.versions.contains(&u64::from(VERSION)) {
            return Err(ReceiveError::Protocol("no version that is spoken here"));
        }
        Ok(())
    }

    fn lend(&self, id: u64) -> Result<Arc<std::sync::atomic::AtomicBool>, ReceiveError> {
        self.channel
            .lend(id)
            .ok_or(ReceiveError::Protocol("an id that is in flight, or nobody who would be told of it"))
    }

    /// Somebody who can be accepted, or nobody: the gateway was told why.
    fn offered(
        &self,
        shared: &Arc<Shared>,
        id: u64,
        handoff: frame::Handoff,
        descriptors: &mut impl Iterator<Item = OwnedFd>,
        is_stopping: bool,
    ) -> Result<Option<Handoff>, ReceiveError> {
        let is_revoked = self.lend(id)?;
        let offer = match Offer::judge(handoff, descriptors, shared.options.data_bytes_max) {
            Ok(offer) => offer,
            Err(Misfit::TooLarge { bytes }) => {
                let max = shared.options.data_bytes_max;
                self.refuse(id, Reason::Unsupported, &format!("{bytes} bytes of data, at most {max} are taken"));
                return Ok(None);
            }
            Err(Misfit::Wrong(error)) => return Err(error),
        };
        let max = shared.options.in_flight_max;
        let is_full = self.channel.lent_count() > max || shared.places_taken() >= max;
        if is_stopping || is_full {
            // The copy of the client is closed before that is said.
            drop(offer);
            let (reason, why) = if is_stopping {
                (Reason::Draining, "stopping")
            } else {
                (Reason::Overloaded, "as many as can be borne")
            };
            self.refuse(id, reason, why);
            return Ok(None);
        }
        Ok(Some(Handoff::lent(shared, &self.channel, id, is_revoked, offer)))
    }

    fn refuse(&self, id: u64, reason: Reason, message: &str) {
        let refusal = Refusal { reason, retry_after_s: None, message: Some(message.to_owned()) };
        // A gateway that has left has taken everybody back.
        let _ = self.channel.conclude(id, &Frame::Refused { id, refusal }, Urgency::Now);
    }
}

fn frames(packet: &[u8]) -> Result<Vec<Frame>, ReceiveError> {
    let (mut frames, mut rest) = (Vec::new(), packet);
    while !rest.is_empty() {
        let (frame, behind) = Frame::split(rest).map_err(ReceiveError::Frame)?;
        frames.push(frame);
        rest = behind;
    }
    Ok(frames)
}

/// What this program is called.
fn program() -> String {
    let path = env::args_os().next().unwrap_or_default();
    std::path::Path::new(&path).file_name().unwrap_or_default().to_string_lossy().into_owned()
}
