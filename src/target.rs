//! The table of targets: names, the daemons behind them, how they are tried, and what policies are told of them.
//!
//! A target is a group with one member for each socket. `chat` names the group and `chat/0` its first member, in a handoff
//! too; no target's name has a `/` in it.

mod lend;
mod member;
mod status;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use self::lend::Queue;
pub use self::lend::Waiting;
use self::member::Member;
pub use self::status::Figures;
use crate::handoff::channel::{self, Begin};
use crate::handoff::{
    self, Address, AddressError, Beat, Daemon, Deadlines, Dialect, HeadBytes, Message, Refusal, SendError, Stage,
};
use crate::policy::Strategy;

/// The pause before the second round over a target's sockets; doubled before each further one.
const BACK_OFF: Duration = Duration::from_millis(10);
/// The longest one.
const BACK_OFF_MAX: Duration = Duration::from_secs(1);

/// How clients are handed over.
#[derive(Clone, Debug)]
pub struct Options {
    /// Of each step.
    pub deadlines: Deadlines,
    /// Rounds over a target's sockets after the first.
    pub retries: u32,
    /// Data that travels with a client.
    pub data_bytes_max: usize,
}

/// A named group of daemons, one for each socket.
#[derive(Debug)]
pub struct Target {
    name: Arc<str>,
    members: Vec<Arc<Member>>,
    balance: Strategy,
    turn: AtomicUsize,
    queue: Arc<Queue>,
}

/// What is handed to a daemon beside the client.
#[derive(Debug)]
pub struct Offer<'a> {
    /// The message of the dialects that have one.
    pub message: &'a Message,
    /// What the native dialect says instead.
    pub native: Option<channel::Parts<'a>>,
    /// What the client is sent first, once.
    pub head: Option<&'a mut HeadBytes>,
    /// What a daemon is chosen by where the target's `balance` is `hash`.
    pub key: Option<&'a str>,
}

/// The worker that hands over.
#[derive(Clone, Copy)]
pub struct Worker<'a> {
    /// From 0.
    pub index: usize,
    /// What it waits by.
    pub beat: &'a Beat,
    /// Begins what reads its channels.
    pub begin: Begin<'a>,
}

impl std::fmt::Debug for Worker<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("index", &self.index).finish_non_exhaustive()
    }
}

/// A daemon has the client.
#[derive(Debug)]
pub enum Taken {
    /// It has read the message, and says nothing more.
    Silently,
    /// It will say how it ended.
    Reporting(channel::Taken),
}

/// What became of a handoff, after all tries.
#[derive(Debug)]
pub struct Tried {
    /// Daemons that were tried.
    pub attempts: u32,
    /// The last one's answer.
    pub result: Result<Taken, SendError>,
    /// The longest time that a daemon has asked to be spared for, in seconds.
    pub retry_after_s: Option<u64>,
}

impl Target {
    /// A target of at least one daemon, for so many workers.
    pub fn new(name: &str, daemons: Vec<Daemon>, balance: Strategy, waiting: Waiting, workers: usize) -> Self {
        Self {
            name: name.into(),
            members: daemons.into_iter().map(|daemon| Arc::new(Member::new(daemon, workers))).collect(),
            balance,
            turn: AtomicUsize::new(0),
            queue: Arc::new(Queue::new(waiting)),
        }
    }

    /// One member as a target, under its own name.
    fn member(&self, index: usize) -> Option<Self> {
        self.members.get(index).map(|member| self.alone(&self.member_name(index), member))
    }

    /// One member as a target of that name.
    fn alone(&self, name: &str, member: &Arc<Member>) -> Self {
        Self {
            name: name.into(),
            members: vec![Arc::clone(member)],
            balance: self.balance,
            turn: AtomicUsize::new(0),
            queue: Arc::clone(&self.queue),
        }
    }

    fn member_name(&self, index: usize) -> String {
        format!("{}/{index}", self.name)
    }

    /// Its name in the configuration, or the path that was named at run time.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How its daemons are spoken to.
    pub fn dialect(&self) -> Dialect {
        self.members.first().map_or(Dialect::Auto, |member| member.daemon.dialect())
    }

    /// Whether its daemons are chosen by a key.
    pub fn wants_key(&self) -> bool {
        self.balance == Strategy::Hash
    }

    /// Hands `client` over to one of the daemons: each is tried once a round, with a pause between rounds. `until` bounds
    /// all of it. A `head` is written once, before the first of them gets the client.
    ///
    /// # Errors
    /// The last daemon's: the client comes back in [`SendError::Refused`] only, and can be answered only if nothing of the
    /// head was written.
    ///
    /// # Cancel safety
    /// As [`handoff::send`]'s: the client is closed, unwritten.
    pub async fn hand_over(
        &self,
        client: OwnedFd,
        offer: Offer<'_>,
        options: &Options,
        until: Option<Instant>,
        worker: Worker<'_>,
    ) -> Tried {
        match self.dialect() {
            // Rare beside the others, and large: so it gets memory of its own.
            Dialect::Baton => Box::pin(self.lend(client, offer, options, until, worker)).await,
            _ => self.send(client, offer, options, until, worker.beat).await,
        }
    }

    async fn send(
        &self,
        mut client: OwnedFd,
        mut offer: Offer<'_>,
        options: &Options,
        until: Option<Instant>,
        beat: &Beat,
    ) -> Tried {
        let mut attempts = 0;
        let mut round = 0;
        loop {
            let first = self.first(offer.key);
            for at in 0..self.members.len() {
                let member = &self.members[(first + at) % self.members.len()];
                if until.is_some_and(|until| Instant::now() >= until) {
                    return Tried::out_of_time(attempts, client);
                }
                attempts += 1;
                let deadlines = within(&options.deadlines, until);
                let count = member.begin();
                let head = offer.head.as_deref_mut();
                let result = handoff::send(client, offer.message, head, &member.daemon, &deadlines, beat).await;
                drop(count);
                let result = result.map(|_| Taken::Silently);
                member.last_failure.learn(&result);
                if result.is_ok() {
                    member.taken.fetch_add(1, Ordering::Relaxed);
                }
                match result {
                    Err(SendError::Refused { client: ours, stage, source }) if is_worth_another_try(&source) => {
                        self.not_taken(member, stage, &source);
                        let last = round == options.retries && at + 1 == self.members.len();
                        if last {
                            let result = Err(SendError::Refused { client: ours, stage, source });
                            return Tried { attempts, result, retry_after_s: None };
                        }
                        client = ours;
                    }
                    result => return Tried { attempts, result, retry_after_s: None },
                }
            }
            pause(round, until).await;
            round += 1;
        }
    }

    fn not_taken(&self, member: &Member, stage: Stage, source: &Refusal) {
        let (path, stage) = (member.daemon.address().path().display(), stage.as_str());
        tracing::debug!(target_name = %self.name, daemon = %path, stage, error = crate::log::chain(source), "not taken");
    }

    /// Which daemon is tried first; the others follow in their order.
    fn first(&self, key: Option<&str>) -> usize {
        let count = self.members.len();
        let turn = || self.turn.fetch_add(1, Ordering::Relaxed) % count;
        match (self.dialect(), self.balance) {
            _ if count == 1 => 0,
            // A daemon that says nothing of itself is asked to find out how it is.
            (Dialect::Baton, _) | (_, Strategy::Hash | Strategy::LeastLoad | Strategy::RandomTwo) => {
                // All are down, as far as is known: each may be up again.
                self.pick(self.balance, key).unwrap_or_else(turn)
            }
            (_, Strategy::RoundRobin) => turn(),
            (_, Strategy::LeastInFlight) => {
                let first = turn();
                let in_turn = (0..count).map(|at| (first + at) % count);
                in_turn.min_by_key(|&at| self.members[at].in_flight()).unwrap_or(first)
            }
        }
    }
}

impl Tried {
    fn out_of_time(attempts: u32, client: OwnedFd) -> Self {
        let (stage, source) = (Stage::Connect, Refusal::TimedOut);
        Self { attempts, result: Err(SendError::Refused { client, stage, source }), retry_after_s: None }
    }
}

/// Between one round over the daemons and the next.
async fn pause(round: u32, until: Option<Instant>) {
    let pause = (BACK_OFF * 2_u32.saturating_pow(round)).min(BACK_OFF_MAX);
    let end = Instant::now() + pause;
    tokio::time::sleep_until(until.map_or(end, |until| end.min(until))).await;
}

/// Another daemon, or the same one in a moment, may take the client: not when the message itself does not fit, nor when
/// the path is forbidden.
fn is_worth_another_try(refusal: &Refusal) -> bool {
    match refusal {
        Refusal::TooLarge { .. } => false,
        Refusal::Address(error) => !error.is_forbidden(),
        _ => true,
    }
}

fn within(deadlines: &Deadlines, until: Option<Instant>) -> Deadlines {
    let Some(until) = until else { return *deadlines };
    let left = until.saturating_duration_since(Instant::now());
    Deadlines {
        connect: deadlines.connect.min(left),
        send: deadlines.send.min(left),
        acknowledge: deadlines.acknowledge.min(left),
        // The client's time, not the daemon's.
        head: deadlines.head,
    }
}

/// Why a name leads to no target; the client is answered 403.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// The policy may not name it.
    #[error("the policy may not name it (policy.targets)")]
    Forbidden,
    /// A path outside the prefixes, or one that leads out of them.
    #[error("no path below handoff.allowed_prefixes")]
    OutsidePrefixes(#[source] AddressError),
    /// Not in the configuration.
    #[error("no such target")]
    Unknown,
}

/// All targets.
#[derive(Debug)]
pub struct Table {
    by_name: HashMap<Arc<str>, Arc<Target>>,
    prefixes: Vec<PathBuf>,
    /// How clients are handed over.
    pub options: Options,
}

impl Table {
    /// A table of the configuration's targets, and the directories below which paths may be named.
    pub fn new(targets: Vec<Target>, prefixes: Vec<PathBuf>, options: Options) -> Self {
        let by_name = targets.into_iter().map(|target| (Arc::clone(&target.name), Arc::new(target))).collect();
        Self { by_name, prefixes, options }
    }

    /// The same, with the daemons of the table before it that are in this one too: their channels go on.
    #[must_use]
    pub fn after(mut self, before: Option<&Self>) -> Self {
        let old: Vec<_> = before.iter().flat_map(|table| table.by_name.values()).cloned().collect();
        for target in self.by_name.values_mut().filter_map(Arc::get_mut) {
            let same_name = old.iter().filter(|other| other.name == target.name).flat_map(|other| &other.members);
            for member in &mut target.members {
                if let Some(known) = same_name.clone().find(|known| known.daemon.is_same(&member.daemon)) {
                    *member = Arc::clone(known);
                }
            }
        }
        self
    }

    /// Ends the channels of a worker that ends.
    pub fn leave(&self, worker: usize) {
        let members = self.by_name.values().flat_map(|target| &target.members);
        members.for_each(|member| member.leave(worker));
    }

    /// What the operator sees of each daemon.
    pub fn figures(&self) -> Vec<Figures> {
        self.in_order().flat_map(|target| target.figures()).collect()
    }

    /// How many clients wait for each target.
    pub fn waiting(&self) -> Vec<(&str, usize)> {
        self.in_order().map(|target| (target.name(), target.waiting())).collect()
    }

    fn in_order(&self) -> impl Iterator<Item = &Arc<Target>> {
        self.names().into_iter().filter_map(|name| self.by_name.get(name))
    }

    /// The names of all targets of the configuration, in order.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.by_name.keys().map(|name| &**name).collect();
        names.sort_unstable();
        names
    }

    /// How a target's daemons are spoken to, if there is one of that name: those of a path as the target says that has it
    /// among its sockets, any other's in [`Dialect::Auto`].
    pub fn dialect(&self, name: &str) -> Option<Dialect> {
        match self.named(name) {
            Some(target) => Some(target.dialect()),
            None if name.starts_with('/') => {
                Some(self.at(Path::new(name)).map_or(Dialect::Auto, |(_, member)| member.daemon.dialect()))
            }
            None => None,
        }
    }

    /// The member whose socket has that path, if whoever names a path may mean it: not in the dialects that leave no room
    /// for an application's data.
    fn at(&self, path: &Path) -> Option<(&Arc<Target>, &Arc<Member>)> {
        let members =
            self.by_name.values().flat_map(|target| target.members.iter().map(move |member| (target, member)));
        let takes_data = |member: &Member| !matches!(member.daemon.dialect(), Dialect::Datagram | Dialect::Fdpass);
        let found = members.filter(|(_, member)| takes_data(member) && member.daemon.address().path() == path);
        // Where several have it, the same one each time.
        found.min_by_key(|(target, _)| &target.name)
    }

    /// The target of that name, or the member.
    fn named(&self, name: &str) -> Option<Arc<Target>> {
        if let Some(target) = self.by_name.get(name) {
            return Some(Arc::clone(target));
        }
        let (group, index) = name.rsplit_once('/')?;
        self.by_name.get(group)?.member(status::index(index)?).map(Arc::new)
    }

    /// Finds a target or a member by its name, or makes one for an absolute path below an allowed prefix. A path that is a
    /// target's socket is handed over to as that target says: an application that knows paths only (`X-Socket-Handoff`)
    /// needs no change for another dialect. `may_name` says what whoever named it is confined to.
    pub fn find(&self, name: &str, may_name: impl Fn(&str) -> bool) -> Result<Arc<Target>, NameError> {
        if !may_name(name) {
            return Err(NameError::Forbidden);
        }
        if let Some(target) = self.named(name) {
            return Ok(target);
        }
        if !name.starts_with('/') {
            return Err(NameError::Unknown);
        }
        let address = Address::beneath(name.as_bytes(), &self.prefixes).map_err(NameError::OutsidePrefixes)?;
        if let Some((target, member)) = self.at(address.path()) {
            return Ok(Arc::new(target.alone(name, member)));
        }
        let daemons = vec![Daemon::new(address, Dialect::Auto, Vec::new())];
        Ok(Arc::new(Target::new(name, daemons, Strategy::RoundRobin, Waiting::default(), 0)))
    }
}
