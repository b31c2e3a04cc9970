//! Who owns a client, as a machine of gateway, daemon and kernel, small enough to be explored to its end.
//!
//! One step of it is one system call of one party, and any party may be next at any time: that is what a scheduler, a
//! stopped process and a crash come to. A daemon that is stopped is one that makes no step for a while; one that is killed
//! makes [`Act::Die`]; a gateway that is killed makes [`Phase::Crashed`].

use std::collections::HashSet;

/// What is sent, as far as it matters to what can be known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Sent {
    /// A packet, or a stream of one byte: read whole or not at all.
    Whole,
    /// A stream of several bytes: the client goes with the first.
    Parts,
}

/// What a daemon, or the client, can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Act {
    /// accept(2).
    Accept,
    /// Reads the message, or the rest of it.
    Read,
    /// Reads one byte of a longer stream.
    ReadPart,
    /// Writes to the client.
    Write,
    /// Closes its copy of the client.
    CloseClient,
    /// Closes its end of the connection.
    CloseConnection,
    /// Says on the connection that it will not write.
    ShutConnection,
    /// Its process ends: everything of it is closed.
    Die,
    /// The client resets its connection.
    Leave,
}

pub(crate) const ACTS: [Act; 9] = [
    Act::Accept,
    Act::Read,
    Act::ReadPart,
    Act::Write,
    Act::CloseClient,
    Act::CloseConnection,
    Act::ShutConnection,
    Act::Die,
    Act::Leave,
];

/// How much of the message was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Message {
    Unread,
    Part,
    Read,
}

/// Where the gateway stands. The message was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    /// It waits for the message to be read.
    Waiting,
    /// It has seen a reset, or the deadline, and is about to ask whether anybody has written.
    Asking { was_reset: bool },
    /// It holds what can be sealed.
    Unread { was_reset: bool },
    /// Sealing: it was not read so far.
    Looked { can_be_read: bool },
    /// Sealing: nobody has written so far.
    Untouched { can_be_read: bool },
    /// Sealing: answered.
    Answered { can_be_read: bool },
    /// Sealing: shut down.
    Shut { can_be_read: bool },
    /// The client is its own to answer, or to hand to somebody else.
    Refused,
    /// It is through.
    Ended(End),
    /// It was killed.
    Crashed,
}

/// What the gateway says became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum End {
    Taken,
    AnsweredRefused,
    Unanswered,
    Sealed,
    Conflict,
    LeftUnwritten,
}

/// What is left out of the gateway's order of looks, to see what it is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Without {
    Nothing,
    /// Whether it was read, before the answer.
    FirstLook,
    /// Whether anybody has written, before the answer.
    FirstCount,
    /// shutdown(2) behind the answer.
    Shutdown,
    /// Whether it was read while it was answered.
    LastLook,
    /// Whether anybody but us has written while it was answered.
    LastCount,
    /// The difference between a stream of several bytes and a packet.
    Doubt,
    /// The seal: what is unread at the deadline is taken for refused.
    Seal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) sent: Sent,
    /// Whether it can be asked how much was written to the client (TCP).
    pub(crate) counts: bool,
    pub(crate) listens: bool,
    pub(crate) accepted: bool,
    /// The daemon's end of the connection, in its backlog or accepted.
    pub(crate) connected: bool,
    pub(crate) message: Message,
    pub(crate) daemon_has_client: bool,
    pub(crate) daemon_wrote: bool,
    pub(crate) gateway_wrote: bool,
    pub(crate) is_shut: bool,
    pub(crate) has_left: bool,
    /// The gateway goes on although it could have known that somebody else has the client.
    pub(crate) is_blind: bool,
    pub(crate) phase: Phase,
}

/// What the kernel tells the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    Read,
    Reset,
    Unread,
}

impl World {
    /// The message was sent and waits in the daemon's backlog.
    pub(crate) fn new(sent: Sent, counts: bool) -> Self {
        Self {
            sent,
            counts,
            listens: true,
            accepted: false,
            connected: true,
            message: Message::Unread,
            daemon_has_client: false,
            daemon_wrote: false,
            gateway_wrote: false,
            is_shut: false,
            has_left: false,
            is_blind: false,
            phase: Phase::Waiting,
        }
    }

    /// What it is after an act; `None` where that is not possible or changes nothing.
    pub(crate) fn act(mut self, act: Act) -> Option<Self> {
        let is_possible = match act {
            Act::Accept => self.listens && self.connected && !self.accepted,
            Act::Read => self.accepted && self.connected && self.message != Message::Read,
            Act::ReadPart => {
                self.accepted && self.connected && self.message == Message::Unread && self.sent == Sent::Parts
            }
            Act::Write => self.daemon_has_client && !self.daemon_wrote,
            Act::CloseClient => self.daemon_has_client,
            Act::CloseConnection | Act::ShutConnection => self.accepted && self.connected,
            Act::Die => self.listens,
            Act::Leave => !self.has_left,
        };
        match act {
            Act::Accept => self.accepted = true,
            Act::Read => {
                self.daemon_has_client |= self.message == Message::Unread;
                self.message = Message::Read;
            }
            Act::ReadPart => (self.daemon_has_client, self.message) = (true, Message::Part),
            // A socket that is dead takes nothing.
            Act::Write => self.daemon_wrote = !self.is_shut && !self.has_left,
            Act::CloseClient => self.daemon_has_client = false,
            Act::CloseConnection => self.connected = false,
            Act::ShutConnection => {}
            Act::Die => (self.listens, self.connected, self.daemon_has_client) = (false, false, false),
            Act::Leave => self.has_left = true,
        }
        is_possible.then_some(self)
    }

    pub(crate) fn look(&self) -> Look {
        match self.message {
            Message::Read => Look::Read,
            _ if self.connected => Look::Unread,
            _ => Look::Reset,
        }
    }

    /// Whether it can be shown that no daemon has written to the client.
    fn is_untouched(&self, without: Without) -> bool {
        self.sent == Sent::Whole || without == Without::Doubt || (self.counts && !self.daemon_wrote)
    }

    fn to(self, phase: Phase) -> Self {
        Self { phase, ..self }
    }

    /// Everything that the gateway may do next.
    pub(crate) fn gateway(self, without: Without) -> Vec<Self> {
        let is_certain = self.sent == Sent::Whole || without == Without::Doubt;
        let mut next = match self.phase {
            Phase::Waiting => match self.look() {
                Look::Read => vec![self.to(Phase::Ended(End::Taken))],
                Look::Reset if is_certain => vec![self.to(Phase::Refused)],
                Look::Reset => vec![self.to(Phase::Asking { was_reset: true })],
                // Or it goes on waiting, which is no step.
                Look::Unread if without == Without::Seal => vec![self.to(Phase::Refused)],
                Look::Unread => vec![self.to(Phase::Asking { was_reset: false })],
            },
            Phase::Asking { was_reset } if self.is_untouched(without) => vec![self.to(Phase::Unread { was_reset })],
            Phase::Asking { .. } => vec![self.to(Phase::Ended(End::Unanswered))],
            Phase::Unread { was_reset } => {
                let can_be_read = !was_reset;
                match self.look() {
                    _ if was_reset => vec![self.to(Phase::Looked { can_be_read })],
                    look if without == Without::FirstLook => {
                        vec![Self { is_blind: look == Look::Read, ..self }.to(Phase::Looked { can_be_read })]
                    }
                    Look::Unread => vec![self.to(Phase::Looked { can_be_read: true })],
                    Look::Reset => vec![self.to(Phase::Looked { can_be_read: false })],
                    Look::Read => vec![self.to(Phase::Ended(End::LeftUnwritten))],
                }
            }
            Phase::Looked { can_be_read } if self.is_untouched(without) => {
                vec![self.to(Phase::Untouched { can_be_read })]
            }
            Phase::Looked { can_be_read } if without == Without::FirstCount => {
                vec![Self { is_blind: true, ..self }.to(Phase::Untouched { can_be_read })]
            }
            Phase::Looked { .. } => vec![self.to(Phase::Ended(End::LeftUnwritten))],
            Phase::Untouched { .. } if self.has_left => vec![self.to(Phase::Ended(End::LeftUnwritten))],
            Phase::Untouched { can_be_read } => {
                vec![Self { gateway_wrote: true, ..self }.to(Phase::Answered { can_be_read })]
            }
            Phase::Answered { can_be_read } => {
                vec![Self { is_shut: without != Without::Shutdown, ..self }.to(Phase::Shut { can_be_read })]
            }
            Phase::Shut { can_be_read } => {
                let was_read = can_be_read && self.look() == Look::Read && without != Without::LastLook;
                let was_written = self.sent == Sent::Parts && self.daemon_wrote && without != Without::LastCount;
                vec![self.to(Phase::Ended(if was_read || was_written { End::Conflict } else { End::Sealed }))]
            }
            Phase::Refused => vec![Self { gateway_wrote: true, ..self }.to(Phase::Ended(End::AnsweredRefused))],
            Phase::Ended(_) | Phase::Crashed => Vec::new(),
        };
        if !matches!(self.phase, Phase::Ended(_) | Phase::Crashed) {
            next.push(self.to(Phase::Crashed));
        }
        next
    }

    /// What must never be.
    pub(crate) fn fault(&self) -> Option<&'static str> {
        let could_write = self.daemon_has_client || (self.connected && self.message == Message::Unread);
        match self.phase {
            _ if self.is_blind && self.gateway_wrote => Some("answered, and it could be known that another has it"),
            Phase::Refused if could_write => Some("the client is given to another while a daemon may have it"),
            Phase::Ended(End::Taken) if self.gateway_wrote => Some("written to after it was taken"),
            Phase::Ended(End::Taken) if self.message != Message::Read => Some("taken unread"),
            Phase::Ended(End::Unanswered | End::LeftUnwritten) if self.gateway_wrote => Some("unanswered, and written"),
            Phase::Ended(End::AnsweredRefused | End::Sealed) if self.daemon_wrote && !self.has_left => {
                Some("two have written, and nobody says so")
            }
            Phase::Ended(End::AnsweredRefused | End::Sealed) if !self.gateway_wrote && !self.has_left => {
                Some("called answered, and was not")
            }
            _ => None,
        }
    }
}

/// Every state that can be reached; the way to the first fault, if there is one.
pub(crate) fn explore(first: World, without: Without) -> Result<usize, (&'static str, Vec<World>)> {
    let (mut seen, mut ways) = (HashSet::from([first]), vec![vec![first]]);
    while let Some(way) = ways.pop() {
        let here = *way.last().expect("a way has a beginning");
        if let Some(fault) = here.fault() {
            return Err((fault, way));
        }
        for next in ACTS.into_iter().filter_map(|act| here.act(act)).chain(here.gateway(without)) {
            if seen.insert(next) {
                ways.push(way.iter().copied().chain([next]).collect());
            }
        }
    }
    Ok(seen.len())
}
