//! What policies are told of targets, and how one of their members is picked.
//!
//! A daemon without the native dialect says nothing of itself. It is up until it fails to take a client, then down for a
//! moment, and after that up again: only a client can find out. A failure is the daemon's own: a client that has gone, a
//! message that is too large, or a path that is forbidden says nothing about it.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Member, Table, Target, is_worth_another_try};
use crate::handoff::{SendError, Taken};
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
            Err(SendError::Refused { stage, source, .. }) if is_worth_another_try(source) => {
                Some(format!("{}: {}", stage.as_str(), crate::log::chain(source)))
            }
            Err(SendError::Unread(_)) => Some("acknowledge: not read in time".to_owned()),
            Err(_) => return,
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = failure.map(|failure| (Instant::now(), failure));
    }

    fn look(&self) -> Option<(Instant, String)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Member {
    fn is_down(&self) -> bool {
        self.last_failure.look().is_some_and(|(since, _)| since.elapsed() < DOWN)
    }

    fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }
}

impl Target {
    /// As a whole: it takes clients as long as one of its members does.
    fn status(&self) -> TargetStatus {
        let is_down = self.members.iter().all(|member| member.is_down());
        let last = self.members.iter().filter_map(|member| member.last_failure.look()).max();
        TargetStatus {
            name: self.name.to_string(),
            health: if is_down { Health::Down } else { Health::Up },
            in_flight: self.members.iter().map(|member| member.in_flight()).fold(0, u32::saturating_add),
            load: None,
            last_error: last.map(|(_, error)| error),
        }
    }

    fn pick(&self, strategy: Strategy, key: Option<&str>) -> Option<usize> {
        let healthy: Vec<_> = (0..self.members.len()).filter(|&at| !self.members[at].is_down()).collect();
        let turn = || self.turn.fetch_add(1, Ordering::Relaxed);
        let in_flight = |at: usize| self.members[at].in_flight();
        if healthy.len() <= 1 {
            return healthy.first().copied();
        }
        match (strategy, key) {
            (Strategy::Hash, Some(key)) => healthy.into_iter().max_by_key(|&at| {
                let path = self.members[at].daemon.address().path();
                weight(path.as_os_str().as_encoded_bytes(), key.as_bytes())
            }),
            // No daemon reports its load yet. What each has in flight is the next best.
            (Strategy::LeastInFlight | Strategy::LeastLoad, _) => {
                let first = turn() % healthy.len();
                (0..healthy.len()).map(|at| healthy[(first + at) % healthy.len()]).min_by_key(|&at| in_flight(at))
            }
            (Strategy::RandomTwo, _) => {
                let one = random(healthy.len());
                let other = (one + 1 + random(healthy.len() - 1)) % healthy.len();
                [healthy[one], healthy[other]].into_iter().min_by_key(|&at| in_flight(at))
            }
            (Strategy::RoundRobin | Strategy::Hash, _) => Some(healthy[turn() % healthy.len()]),
        }
    }
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
    use crate::handoff::{Address, Daemon, Dialect};
    use crate::target::Balance;

    fn target(sockets: &[&str]) -> Target {
        let daemon = |path: &&str| Daemon::new(Address::new(*path).expect("a path"), Dialect::Auto, Vec::new());
        Target::new("chat", sockets.iter().map(daemon).collect(), Balance::RoundRobin)
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
