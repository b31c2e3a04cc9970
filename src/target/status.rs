//! What policies are told of targets, and how one of their members is picked.
//!
//! A daemon without the native dialect says nothing of itself. It is up until it fails to take a client, then down for a
//! moment, and after that up again: only a client can find out. A failure is the daemon's own: a client that has gone, a
//! message that is too large, or a path that is forbidden says nothing about it. A daemon with the native dialect says when
//! it drains, is asked for a word when it is silent, and is not known before somebody was handed over to it.

use std::hash::{BuildHasher as _, RandomState};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::member::Member;
use super::{Table, Taken, Target, is_worth_another_try};
use crate::handoff::{Dialect, Refusal, SendError, Stage};
use crate::policy::{Health, Strategy, TargetStatus, Targets};

/// How long a daemon that has failed is down.
const DOWN: Duration = Duration::from_secs(1);

/// Why a daemon did not take a client, and when; nothing when it has taken one since.
#[derive(Debug, Default)]
pub(super) struct LastFailure(Mutex<Option<(Instant, String)>>);

impl LastFailure {
    /// What a try says of the daemon.
    pub(super) fn learn(&self, result: &Result<Taken, SendError>) {
        let failure = match result {
            Ok(_) => None,
            // It is well, and says so.
            Err(SendError::Refused { source: Refusal::Daemon(_), .. }) => None,
            Err(SendError::Refused { stage, source, .. }) if is_worth_another_try(source) => {
                return self.set(*stage, source);
            }
            Err(SendError::Unread(_)) => Some("acknowledge: not read in time".to_owned()),
            Err(_) => return,
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = failure.map(|failure| (Instant::now(), failure));
    }

    /// It could not be handed over to.
    pub(super) fn set(&self, stage: Stage, source: &Refusal) {
        let failure = (Instant::now(), format!("{}: {}", stage.as_str(), crate::log::chain(source)));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
    }

    fn look(&self) -> Option<(Instant, String)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Member {
    fn health(&self) -> Health {
        if self.last_failure.look().is_some_and(|(since, _)| since.elapsed() < DOWN) {
            return Health::Down;
        }
        let (mut open, mut draining, mut silent) = (0, 0, 0);
        for status in self.channels() {
            open += 1;
            draining += u32::from(status.is_draining);
            silent += u32::from(status.is_silent);
        }
        match open {
            0 if self.daemon.dialect() == Dialect::Baton => Health::Unknown,
            0 => Health::Up,
            _ if draining == open => Health::Draining,
            _ if silent + draining == open => Health::Down,
            _ => Health::Up,
        }
    }

    /// Whether a client may be handed over to it, as far as is known.
    fn is_well(&self) -> bool {
        matches!(self.health(), Health::Up | Health::Unknown)
    }
}

impl Target {
    /// As a whole: it is as well as the best of its members.
    fn status(&self) -> TargetStatus {
        let healths = || self.members.iter().map(|member| member.health());
        let best = [Health::Up, Health::Unknown, Health::Draining].into_iter();
        let health = best.into_iter().find(|best| healths().any(|health| health == *best));
        let last = self.members.iter().filter_map(|member| member.last_failure.look()).max();
        TargetStatus {
            name: self.name.to_string(),
            health: health.unwrap_or(Health::Down),
            in_flight: self.members.iter().map(|member| member.in_flight()).fold(0, u32::saturating_add),
            load: self.members.iter().filter_map(|member| member.load()).reduce(f64::min),
            last_error: last.map(|(_, error)| error),
        }
    }

    /// The place of the member that a strategy chooses among those that are well.
    pub(super) fn pick(&self, strategy: Strategy, key: Option<&str>) -> Option<usize> {
        let well = || (0..self.members.len()).filter(|&at| self.members[at].is_well());
        let count = well().count();
        if count <= 1 {
            return well().next();
        }
        let turn = || self.turn.fetch_add(1, Ordering::Relaxed) % count;
        // Those behind the one whose turn it is, and then those before it.
        let in_turn = || {
            let first = turn();
            well().skip(first).chain(well().take(first))
        };
        let in_flight = |at: usize| self.members[at].in_flight();
        match (strategy, key) {
            (Strategy::Hash, Some(key)) => well().max_by_key(|&at| {
                let path = self.members[at].daemon.address().path();
                weight(path.as_os_str().as_encoded_bytes(), key.as_bytes())
            }),
            (Strategy::LeastInFlight, _) => in_turn().min_by_key(|&at| in_flight(at)),
            // Of those that say nothing, what each has in flight is the next best.
            (Strategy::LeastLoad, _) => in_turn().min_by(|&one, &other| {
                let load = |at: usize| self.members[at].load().unwrap_or(0.0);
                load(one).total_cmp(&load(other)).then_with(|| in_flight(one).cmp(&in_flight(other)))
            }),
            (Strategy::RandomTwo, _) => {
                let one = random(count);
                let other = (one + 1 + random(count - 1)) % count;
                [one, other].into_iter().filter_map(|place| well().nth(place)).min_by_key(|&at| in_flight(at))
            }
            (Strategy::RoundRobin | Strategy::Hash, _) => well().nth(turn()),
        }
    }

    /// What the operator sees of each daemon.
    pub(super) fn figures(&self) -> impl Iterator<Item = Figures> {
        self.members.iter().enumerate().map(|(at, member)| Figures {
            target: Arc::clone(&self.name),
            name: self.member_name(at),
            path: member.daemon.address().path().to_owned(),
            is_up: member.is_well(),
            in_flight: member.in_flight(),
            load: member.load(),
            channels: member.channels().count() as u64,
            taken: member.taken.load(Ordering::Relaxed),
            refused: member.refused.load(Ordering::Relaxed),
            returned: member.returned(),
            last_error: member.last_failure.look().map(|(_, error)| error),
        })
    }

    /// How many clients wait for one of its daemons.
    pub(super) fn waiting(&self) -> usize {
        self.queue.len()
    }
}

/// What the operator sees of one daemon.
#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    /// Its target.
    pub target: Arc<str>,
    /// As a handoff may name it.
    pub name: String,
    /// Whether it takes clients, as far as is known.
    pub is_up: bool,
    /// Clients handed over and not reported finished.
    pub in_flight: u32,
    /// What it said of itself, 0 to 1.
    pub load: Option<f64>,
    /// Open channels of the native protocol.
    pub channels: u64,
    /// Its socket.
    pub path: PathBuf,
    /// Clients that it has taken since the gateway began.
    pub taken: u64,
    /// Those that it has refused, in words.
    pub refused: u64,
    /// Those that it has given back.
    pub returned: u64,
    /// Why it did not take the last client that it did not take.
    pub last_error: Option<String>,
}

impl Targets for Table {
    fn status(&self, name: &str) -> Option<TargetStatus> {
        self.named(name).map(|target| target.status())
    }

    fn members(&self, group: &str) -> Vec<TargetStatus> {
        let Some(target) = self.by_name.get(group) else { return Vec::new() };
        (0..target.members.len()).filter_map(|at| target.member(at)).map(|member| member.status()).collect()
    }

    fn pick(&self, group: &str, strategy: Strategy, key: Option<&str>) -> Option<String> {
        let target = self.by_name.get(group)?;
        target.pick(strategy, key).map(|at| target.member_name(at))
    }

    fn revoke(&self, id: &str, reason: &str, may_name: &dyn Fn(&str) -> bool) -> bool {
        let targets = self.by_name.values().filter(|target| may_name(target.name()));
        targets.flat_map(|target| &target.members).any(|member| member.revoke(id, reason))
    }
}

/// The index in a member's name, in the one way in which it is written.
pub(super) fn index(text: &str) -> Option<usize> {
    text.parse().ok().filter(|index: &usize| index.to_string() == text)
}

/// A key goes to the member with the highest weight, so only those of a member that goes or comes move (rendezvous
/// hashing). The same in every process: FNV-1a, and then the bits of a sum of many are mixed once more.
fn weight(member: &[u8], key: &[u8]) -> u64 {
    let bytes = member.iter().chain(&[0]).chain(key);
    let mut hash =
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, &b| (hash ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
    for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
        hash = (hash ^ (hash >> 33)).wrapping_mul(factor);
    }
    hash ^ (hash >> 33)
}

/// Below `end`, which is not 0. The keys of a new hasher are random.
fn random(end: usize) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "any bits of a hash do")]
    let bits = RandomState::new().hash_one(0) as usize;
    bits % end
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::handoff::{Address, Daemon};
    use crate::target::Waiting;

    fn target(sockets: &[&str]) -> Target {
        let daemon = |path: &&str| Daemon::new(Address::new(*path).expect("a path"), Dialect::Auto, Vec::new());
        let daemons = sockets.iter().map(daemon).collect();
        Target::new("chat", daemons, Strategy::RoundRobin, Waiting::default(), 0)
    }

    fn fail(target: &Target, at: usize) {
        let failed = Some((Instant::now(), "connect: refused".to_owned()));
        *target.members[at].last_failure.0.lock().expect("no panic") = failed;
    }

    #[test]
    fn a_key_stays_where_it_is_when_others_come_and_go() {
        let three = target(&["/run/a", "/run/b", "/run/c"]);
        let two = target(&["/run/a", "/run/c"]);
        let mut counts = BTreeMap::new();
        for n in 0..3000 {
            let key = format!("user-{n}");
            let before = three.pick(Strategy::Hash, Some(&key)).expect("healthy");
            let after = two.pick(Strategy::Hash, Some(&key)).expect("healthy");
            *counts.entry(before).or_insert(0) += 1;
            if before != 1 {
                assert_eq!(before / 2, after, "{key}");
            }
        }
        assert!(counts.values().all(|count| (850..1150).contains(count)), "{counts:?}");
    }

    #[test]
    fn what_is_down_is_not_picked_by_any_strategy() {
        let target = target(&["/run/a", "/run/b", "/run/c"]);
        let strategies =
            [Strategy::RoundRobin, Strategy::LeastInFlight, Strategy::LeastLoad, Strategy::Hash, Strategy::RandomTwo];
        for strategy in strategies {
            let picks: Vec<_> = (0..99).filter_map(|n| target.pick(strategy, Some(&n.to_string()))).collect();
            assert!((0..3).all(|at| picks.contains(&at)), "{strategy:?} {picks:?}");
        }
        fail(&target, 1);
        assert_eq!(target.status().health, Health::Up);
        for strategy in strategies {
            assert!((0..99).all(|n| target.pick(strategy, Some(&n.to_string())) != Some(1)), "{strategy:?}");
        }
        target.members[0].in_flight.store(1, Ordering::Relaxed);
        for strategy in [Strategy::LeastInFlight, Strategy::LeastLoad, Strategy::RandomTwo] {
            assert!((0..9).all(|_| target.pick(strategy, None) == Some(2)), "{strategy:?}");
        }
        fail(&target, 0);
        fail(&target, 2);
        assert_eq!(target.pick(Strategy::RoundRobin, None), None);
        let status = target.status();
        assert_eq!((status.health, status.in_flight), (Health::Down, 1));
        assert_eq!(status.last_error.as_deref(), Some("connect: refused"));
    }

    #[test]
    fn a_members_name_has_one_spelling() {
        for (text, expected) in [("0", Some(0)), ("12", Some(12)), ("", None), ("01", None), ("+1", None), ("a", None)]
        {
            assert_eq!(index(text), expected, "{text}");
        }
    }
}
