//! The table of targets: names, the daemons behind them, how they are tried, and what policies are told of them.
//!
//! A target is a group with one member for each socket. `chat` names the group and `chat/0` its first member, in a handoff
//! too; no target's name has a `/` in it.

mod status;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use self::status::LastFailure;

use crate::handoff::{
    self, Address, AddressError, Beat, Daemon, Deadlines, Dialect, HeadBytes, Message, Refusal, SendError, Stage, Taken,
};

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

/// Which daemon of a target is tried first; the others follow in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// The one with the fewest handed over and not yet read; among equals in turn.
    LeastInFlight,
    /// In turn.
    RoundRobin,
}

/// A named group of daemons, one for each socket.
#[derive(Debug)]
pub struct Target {
    name: Arc<str>,
    members: Vec<Arc<Member>>,
    balance: Balance,
    turn: AtomicUsize,
}

#[derive(Debug)]
struct Member {
    daemon: Daemon,
    /// Messages that were begun and not yet read.
    in_flight: AtomicU32,
    last_failure: LastFailure,
}

/// What became of a handoff, after all tries.
#[derive(Debug)]
pub struct Tried {
    /// Daemons that were tried.
    pub attempts: u32,
    /// The last one's answer.
    pub result: Result<Taken, SendError>,
}

impl Target {
    /// A target of at least one daemon.
    pub fn new(name: &str, daemons: Vec<Daemon>, balance: Balance) -> Self {
        let member =
            |daemon| Arc::new(Member { daemon, in_flight: AtomicU32::new(0), last_failure: LastFailure::default() });
        Self {
            name: name.into(),
            members: daemons.into_iter().map(member).collect(),
            balance,
            turn: AtomicUsize::new(0),
        }
    }

    /// One member as a target, under its own name.
    fn member(&self, index: usize) -> Option<Self> {
        let members = vec![Arc::clone(self.members.get(index)?)];
        Some(Self { name: self.member_name(index).into(), members, balance: self.balance, turn: AtomicUsize::new(0) })
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
        mut client: OwnedFd,
        message: &Message,
        mut head: Option<&mut HeadBytes>,
        options: &Options,
        until: Option<Instant>,
        beat: &Beat,
    ) -> Tried {
        let mut attempts = 0;
        let mut round = 0;
        loop {
            let first = self.first();
            for at in 0..self.members.len() {
                let member = &self.members[(first + at) % self.members.len()];
                if until.is_some_and(|until| Instant::now() >= until) {
                    let (stage, source) = (Stage::Connect, Refusal::TimedOut);
                    return Tried { attempts, result: Err(SendError::Refused { client, stage, source }) };
                }
                attempts += 1;
                let deadlines = within(&options.deadlines, until);
                let count = InFlight::begin(&member.in_flight);
                let result =
                    handoff::send(client, message, head.as_deref_mut(), &member.daemon, &deadlines, beat).await;
                drop(count);
                member.last_failure.learn(&result);
                match result {
                    Err(SendError::Refused { client: ours, stage, source }) if is_worth_another_try(&source) => {
                        let (path, stage_word) = (member.daemon.address().path().display(), stage.as_str());
                        let error = crate::log::chain(&source);
                        tracing::debug!(target_name = %self.name, daemon = %path, stage = stage_word, error, "not taken");
                        let last = round == options.retries && at + 1 == self.members.len();
                        if last {
                            return Tried { attempts, result: Err(SendError::Refused { client: ours, stage, source }) };
                        }
                        client = ours;
                    }
                    result => return Tried { attempts, result },
                }
            }
            let pause = (BACK_OFF * 2_u32.saturating_pow(round)).min(BACK_OFF_MAX);
            let end = Instant::now() + pause;
            tokio::time::sleep_until(until.map_or(end, |until| end.min(until))).await;
            round += 1;
        }
    }

    fn first(&self) -> usize {
        if self.members.len() == 1 {
            return 0;
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.members.len();
        match self.balance {
            Balance::RoundRobin => turn,
            Balance::LeastInFlight => (0..self.members.len())
                .map(|at| (turn + at) % self.members.len())
                .min_by_key(|&at| self.members[at].in_flight.load(Ordering::Relaxed))
                .unwrap_or(turn),
        }
    }
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

/// Counts a message until it is dropped.
struct InFlight<'a>(&'a AtomicU32);

impl<'a> InFlight<'a> {
    fn begin(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
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
                Some(self.at(Path::new(name)).map_or(Dialect::Auto, |m| m.daemon.dialect()))
            }
            None => None,
        }
    }

    /// The member whose socket has that path, if whoever names a path may mean it: not in the dialects that leave no room
    /// for an application's data.
    fn at(&self, path: &Path) -> Option<&Arc<Member>> {
        let members =
            self.by_name.values().flat_map(|target| target.members.iter().map(|member| (&target.name, member)));
        let takes_data = |member: &Member| !matches!(member.daemon.dialect(), Dialect::Datagram | Dialect::Fdpass);
        let found = members.filter(|(_, member)| takes_data(member) && member.daemon.address().path() == path);
        // Where several have it, the same one each time.
        found.min_by_key(|(name, _)| *name).map(|(_, member)| member)
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
        let (balance, turn) = (Balance::RoundRobin, AtomicUsize::new(0));
        if let Some(member) = self.at(address.path()) {
            return Ok(Arc::new(Target { name: name.into(), members: vec![Arc::clone(member)], balance, turn }));
        }
        Ok(Arc::new(Target::new(name, vec![Daemon::new(address, Dialect::Auto, Vec::new())], balance)))
    }
}
