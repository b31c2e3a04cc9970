//! What a gateway knows of one channel: whom it has lent, whom it has given, and what came back. Pure: frames in, events
//! out; whoever holds the descriptors does what they say.
//!
//! | a client is | the gateway | the next word about it |
//! |---|---|---|
//! | lent | owns it and waits | TAKEN, REFUSED; or it is [withdrawn](Ledger::withdraw) |
//! | withdrawn | owns it; it was answered and shut down, or will be | whatever there is: it is too late |
//! | taken | has closed its copy | DONE, RETURN |
//!
//! What is lent is a value of the type `L`, with the client in it: it comes out of the ledger exactly once, by the event
//! that says who owns it from then on. What is kept of a client that was taken, to account for it, is a `K`; it comes a
//! moment later than TAKEN, and the end may be here by then. A client that comes back is a `C`.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::frame::{Frame, Hello, Load, Refusal, Report};
use super::header;

/// One channel's.
#[derive(Debug)]
pub struct Ledger<L, K, C> {
    hello: Option<Hello>,
    load: Option<Load>,
    is_draining: bool,
    has_ended: bool,
    entries: HashMap<u64, Entry<L, C>, Numbers>,
    /// Of clients that were taken: thousands, for hours. So there is nothing else in it, and room for nothing else.
    kept: HashMap<u64, (K, Option<Cookie>), Numbers>,
    last_id: u64,
    in_flight: u64,
}

#[derive(Debug)]
enum Entry<L, C> {
    Lent(L, Option<Cookie>),
    /// Nothing is kept of it yet.
    Taken(Option<Cookie>),
    Over(End<C>),
    Withdrawn(Late),
}

/// Numbers that are given in turn and by nobody else need no more mixing than to fill the high bits too.
type Numbers = BuildHasherDefault<Mixed>;

#[derive(Debug, Default)]
struct Mixed(u64);

impl Hasher for Mixed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        // 2^64 divided by the golden ratio: neighbours come to lie far apart (Knuth, TAOCP 3, 6.4).
        self.0 = (self.0 ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

/// What the kernel calls a socket (SO_COOKIE, socket(7)): the client that comes back must be the one that went.
pub type Cookie = NonZeroU64;

/// Whether somebody took a client after it was withdrawn. Clones tell the same.
#[derive(Clone, Debug, Default)]
pub struct Late(Arc<AtomicBool>);

impl Late {
    /// Whether somebody did, as far as the channel was read.
    pub fn is_taken(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// How a client's stay with the daemon ended.
#[derive(Debug)]
pub struct End<C> {
    /// What the daemon says of it.
    pub report: Report,
    /// The client, where it comes back, and what was read of it and not used.
    pub back: Option<(C, Vec<u8>)>,
}

/// What a frame means.
#[derive(Debug)]
pub enum Event<L, K, C> {
    /// A client has served its time, and what was kept of it is due.
    Ended(K, End<C>),
    /// The daemon is there: its first word.
    Hello,
    /// The frame is to be sent.
    Answer(Frame),
    /// Nothing that anybody waits for.
    Nothing,
    /// The client is the gateway's; the daemon has not touched it.
    Refused(L, Refusal),
    /// The client is the daemon's: the gateway's copy is to be closed.
    Taken(L),
}

/// Why a channel ends at a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not what a daemon says.
    #[error("{0} from a daemon")]
    Direction(&'static str),
    /// HELLO must be the first word, and the only one.
    #[error("{0}")]
    Hello(&'static str),
    /// Nobody of that name is in that state.
    #[error("{0} for the handoff {1}, {2}")]
    Id(&'static str, u64, &'static str),
    /// Another socket than the one that was handed over.
    #[error("RETURN of the handoff {0} with another socket")]
    OtherSocket(u64),
    /// It may not come back: the gateway wrote the response's head.
    #[error("RETURN of the handoff {0}, whose response had begun")]
    Begun(u64),
}

/// A frame at which the channel ends.
#[derive(Debug)]
pub struct Broken<L> {
    /// Why.
    pub fault: Fault,
    /// A client that was never taken and has been touched all the same: it is not the gateway's any more.
    pub touched: Option<L>,
}

impl<L> From<Fault> for Broken<L> {
    fn from(fault: Fault) -> Self {
        Self { fault, touched: None }
    }
}

/// What is there when a channel ends.
#[derive(Debug)]
pub struct Leftovers<L, K> {
    /// Never taken, as far as the channel was read to its end.
    pub lent: Vec<L>,
    /// Taken: they go on by themselves.
    pub taken: Vec<K>,
}

impl<L, K, C> Default for Ledger<L, K, C> {
    fn default() -> Self {
        Self {
            hello: None,
            load: None,
            is_draining: false,
            has_ended: false,
            entries: HashMap::default(),
            kept: HashMap::default(),
            last_id: 0,
            in_flight: 0,
        }
    }
}

impl<L, K, C> Ledger<L, K, C> {
    /// What the daemon said of itself; `None` before.
    pub fn hello(&self) -> Option<&Hello> {
        self.hello.as_ref()
    }

    /// How busy it says it is.
    pub fn load(&self) -> Option<Load> {
        self.load
    }

    /// Whether it takes nobody any more.
    pub fn is_draining(&self) -> bool {
        self.is_draining
    }

    /// Clients that were handed over and of whom there is no last word.
    pub fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// How many more the daemon can bear.
    pub fn credits(&self) -> u64 {
        match &self.hello {
            Some(hello) if !self.is_draining && !self.has_ended => hello.in_flight_max.saturating_sub(self.in_flight),
            _ => 0,
        }
    }

    /// Whether nobody waits for a word of the daemon.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.kept.is_empty()
    }

    /// The number that the next client gets.
    pub fn next_id(&self) -> u64 {
        self.last_id + 1
    }

    /// Lends a client, whose HANDOFF has been sent with [`next_id`](Self::next_id). Where it may come back, it is known by
    /// its cookie.
    ///
    /// # Panics
    /// The daemon has no [credit](Self::credits) for it.
    pub fn lend(&mut self, lent: L, cookie: Option<Cookie>) -> u64 {
        assert!(self.credits() > 0, "more than the daemon can bear");
        self.last_id += 1;
        self.in_flight += 1;
        self.entries.insert(self.last_id, Entry::Lent(lent, cookie));
        self.last_id
    }

    /// Takes back a client of whom the daemon has not said a word; `None` where it has. Its credit is free when the daemon
    /// speaks of it.
    pub fn withdraw(&mut self, id: u64) -> Option<(L, Late)> {
        match self.entries.remove(&id) {
            Some(Entry::Lent(lent, _)) => {
                let late = Late::default();
                self.entries.insert(id, Entry::Withdrawn(late.clone()));
                Some((lent, late))
            }
            Some(other) => {
                self.entries.insert(id, other);
                None
            }
            None => None,
        }
    }

    /// The end of a client that was taken, if it is here already.
    pub fn end_of(&mut self, id: u64) -> Option<End<C>> {
        match self.entries.remove(&id) {
            Some(Entry::Over(end)) => Some(end),
            Some(other) => {
                self.entries.insert(id, other);
                None
            }
            None => None,
        }
    }

    /// Keeps what is to be kept of a client that was taken, until its [end](Self::end_of) comes.
    ///
    /// # Errors
    /// No word of it will come any more: the channel has ended.
    pub fn keep(&mut self, id: u64, kept: K) -> Result<(), K> {
        match self.entries.remove(&id) {
            Some(Entry::Taken(cookie)) if !self.has_ended => {
                self.kept.insert(id, (kept, cookie));
                Ok(())
            }
            _ => Err(kept),
        }
    }

    /// What is kept of those that were taken, by their numbers.
    pub fn kept(&self) -> impl Iterator<Item = (u64, &K)> {
        self.kept.iter().map(|(id, (kept, _))| (*id, kept))
    }

    /// Reads the daemon's next frame; `back` is the socket that came with it and its cookie.
    ///
    /// # Errors
    /// [`Broken`]: the channel is to be ended.
    pub fn receive(&mut self, frame: Frame, back: Option<(C, Cookie)>) -> Result<Event<L, K, C>, Broken<L>> {
        if self.hello.is_none() && !matches!(frame, Frame::Hello(_)) {
            return Err(Fault::Hello("a word before HELLO").into());
        }
        Ok(match frame {
            Frame::Hello(_) if self.hello.is_some() => return Err(Fault::Hello("a second HELLO").into()),
            Frame::Hello(hello) if !hello.versions.contains(&u64::from(header::VERSION)) => {
                return Err(Fault::Hello("HELLO without a version that is known here").into());
            }
            Frame::Hello(hello) => {
                self.hello = Some(hello);
                Event::Hello
            }
            Frame::Taken { id } => self.taken(id)?,
            Frame::Refused { id, refusal } => self.refused(id, refusal)?,
            Frame::Done { id, report } => self.over("DONE", id, report, None)?,
            Frame::Return { id, report, unread } => {
                self.over("RETURN", id, report, back.map(|(client, cookie)| (client, cookie, unread)))?
            }
            Frame::Load(load) => {
                self.load = Some(load);
                Event::Nothing
            }
            Frame::Draining => {
                self.is_draining = true;
                Event::Nothing
            }
            Frame::Ping(bytes) => Event::Answer(Frame::Pong(bytes)),
            Frame::Pong(_) | Frame::Ignored(_) => Event::Nothing,
            Frame::Handoff { .. } => return Err(Fault::Direction("HANDOFF").into()),
            Frame::Revoke { .. } => return Err(Fault::Direction("REVOKE").into()),
        })
    }

    fn taken(&mut self, id: u64) -> Result<Event<L, K, C>, Broken<L>> {
        let Some(entry) = self.entries.get_mut(&id) else { return Err(self.stray("TAKEN", id).into()) };
        match entry {
            Entry::Withdrawn(late) => {
                late.0.store(true, Ordering::Release);
                Ok(Event::Nothing)
            }
            Entry::Lent(_, cookie) => {
                let cookie = *cookie;
                let Entry::Lent(lent, _) = std::mem::replace(entry, Entry::Taken(cookie)) else {
                    unreachable!("it was looked at above")
                };
                Ok(Event::Taken(lent))
            }
            Entry::Taken(..) | Entry::Over(_) => Err(Fault::Id("TAKEN", id, "which was taken").into()),
        }
    }

    fn refused(&mut self, id: u64, refusal: Refusal) -> Result<Event<L, K, C>, Broken<L>> {
        match self.entries.get(&id) {
            None => Err(self.stray("REFUSED", id).into()),
            Some(Entry::Taken(..) | Entry::Over(_)) => Err(Fault::Id("REFUSED", id, "which was taken").into()),
            Some(Entry::Lent(..) | Entry::Withdrawn(_)) => {
                self.in_flight -= 1;
                match self.entries.remove(&id) {
                    Some(Entry::Lent(lent, _)) => Ok(Event::Refused(lent, refusal)),
                    _ => Ok(Event::Nothing),
                }
            }
        }
    }

    fn over(
        &mut self,
        word: &'static str,
        id: u64,
        report: Report,
        back: Option<(C, Cookie, Vec<u8>)>,
    ) -> Result<Event<L, K, C>, Broken<L>> {
        // A client comes back as the socket that went, and only where it may.
        let fault = |cookie| match (&back, cookie) {
            (Some(_), None) => Some(Fault::Begun(id)),
            (Some((_, found, _)), Some(cookie)) if *found != cookie => Some(Fault::OtherSocket(id)),
            _ => None,
        };
        // Where there is one, it is the daemon's for good.
        let kept = match self.entries.remove(&id) {
            Some(Entry::Over(end)) => {
                self.entries.insert(id, Entry::Over(end));
                return Err(Fault::Id(word, id, "which is over").into());
            }
            Some(Entry::Withdrawn(late)) => {
                late.0.store(true, Ordering::Release);
                self.in_flight -= 1;
                return Ok(Event::Nothing);
            }
            Some(Entry::Lent(lent, _)) => {
                self.in_flight -= 1;
                return Err(Broken { fault: Fault::Id(word, id, "which was not taken"), touched: Some(lent) });
            }
            Some(Entry::Taken(cookie)) => {
                if let Some(fault) = fault(cookie) {
                    self.entries.insert(id, Entry::Taken(None));
                    return Err(fault.into());
                }
                None
            }
            None => {
                let Some((kept, cookie)) = self.kept.remove(&id) else { return Err(unknown(word, id).into()) };
                if let Some(fault) = fault(cookie) {
                    self.kept.insert(id, (kept, None));
                    return Err(fault.into());
                }
                Some(kept)
            }
        };
        self.in_flight -= 1;
        let end = End { report, back: back.map(|(client, _, unread)| (client, unread)) };
        Ok(match kept {
            Some(kept) => Event::Ended(kept, end),
            None => {
                self.entries.insert(id, Entry::Over(end));
                Event::Nothing
            }
        })
    }

    /// A word about nobody who waits for one.
    fn stray(&self, word: &'static str, id: u64) -> Fault {
        if self.kept.contains_key(&id) { Fault::Id(word, id, "which was taken") } else { unknown(word, id) }
    }

    /// Ends it, when the channel was read to its end: nothing is lent any more, and nothing more will be heard.
    pub fn end(&mut self) -> Leftovers<L, K> {
        self.has_ended = true;
        self.in_flight = 0;
        let taken = std::mem::take(&mut self.kept).into_values().map(|(kept, _)| kept).collect();
        let mut left = Leftovers { lent: Vec::new(), taken };
        for (id, entry) in std::mem::take(&mut self.entries) {
            match entry {
                Entry::Lent(lent, _) => left.lent.push(lent),
                // Somebody is about to ask for it.
                over @ Entry::Over(_) => drop(self.entries.insert(id, over)),
                Entry::Taken(_) | Entry::Withdrawn(_) => {}
            }
        }
        left
    }
}

fn unknown(word: &'static str, id: u64) -> Fault {
    Fault::Id(word, id, "which is not under way")
}

#[cfg(test)]
mod tests;
