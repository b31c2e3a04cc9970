//! `targets`: how the daemons are, of those targets only that the policy may name.

use super::Imports;
use crate::policy::bindings::targets;
use crate::policy::services::{Health, Strategy, TargetStatus};

impl targets::Host for Imports {
    /// While a module is being proved, the configuration that it will serve under is not in force yet: what is known of a
    /// target then is its name.
    fn status(&mut self, name: String) -> wasmtime::Result<Option<targets::TargetStatus>> {
        self.spoke = true;
        if !self.identity.may_name(&name) {
            return Ok(None);
        }
        if !self.identity.is_in_force() {
            let is_known = self.identity.known_targets.as_ref().is_some_and(|known| known.contains(&name));
            let (health, in_flight) = (targets::Health::Unknown, 0);
            let status = targets::TargetStatus { name, health, in_flight, load: None, last_error: None };
            return Ok(is_known.then_some(status));
        }
        Ok(self.identity.services().and_then(|services| services.targets.status(&name)).map(Into::into))
    }

    fn members(&mut self, group: String) -> wasmtime::Result<Vec<targets::TargetStatus>> {
        self.spoke = true;
        if !self.identity.is_in_force() || !self.identity.may_name(&group) {
            return Ok(Vec::new());
        }
        let members = self.identity.services().map(|services| services.targets.members(&group));
        Ok(members.into_iter().flatten().map(Into::into).collect())
    }

    fn pick(
        &mut self,
        group: String,
        strategy: targets::Strategy,
        key: Option<String>,
    ) -> wasmtime::Result<Option<String>> {
        self.spoke = true;
        if !self.identity.is_in_force() || !self.identity.may_name(&group) {
            return Ok(None);
        }
        let services = self.identity.services();
        Ok(services.and_then(|services| services.targets.pick(&group, strategy.into(), key.as_deref())))
    }

    /// Of the targets that the policy may name, those whose daemons speak the native dialect are asked.
    fn revoke(&mut self, id: String, reason: String) -> wasmtime::Result<bool> {
        self.spoke = true;
        if !self.identity.is_in_force() {
            return Ok(false);
        }
        let may_name = |name: &str| self.identity.may_name(name);
        Ok(self.identity.services().is_some_and(|services| services.targets.revoke(&id, &reason, &may_name)))
    }
}

impl From<TargetStatus> for targets::TargetStatus {
    fn from(status: TargetStatus) -> Self {
        let TargetStatus { name, health, in_flight, load, last_error } = status;
        let health = match health {
            Health::Down => targets::Health::Down,
            Health::Draining => targets::Health::Draining,
            Health::Unknown => targets::Health::Unknown,
            Health::Up => targets::Health::Up,
        };
        Self { name, health, in_flight, load, last_error }
    }
}

impl From<targets::Strategy> for Strategy {
    fn from(strategy: targets::Strategy) -> Self {
        match strategy {
            targets::Strategy::Hash => Self::Hash,
            targets::Strategy::LeastInFlight => Self::LeastInFlight,
            targets::Strategy::LeastLoad => Self::LeastLoad,
            targets::Strategy::RandomTwo => Self::RandomTwo,
            targets::Strategy::RoundRobin => Self::RoundRobin,
        }
    }
}
