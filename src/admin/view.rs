//! What the operator is shown: the state of everything, and figures.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use tokio::sync::Mutex;

use crate::admission::Admission;
use crate::connection::Worker;
use crate::counts::Counts;
use crate::gateway::Policies;
use crate::metrics::{Exposition, Kind};
use crate::policy::{BreakerState, Engine, Status, Targets as _};
use crate::target::Figures;

/// What the operator is shown. It holds nothing of a client, and nobody waits for it.
#[derive(Debug)]
pub struct View {
    /// The policies in force.
    pub policies: ArcSwap<Policies>,
    /// Configurations that were read while the gateway ran.
    pub configuration: Reloads,
    /// Held by whoever changes what is in force, so that nobody's change is lost in another's.
    pub turn: Mutex<()>,
    engine: Engine,
    counts: Vec<Arc<Counts>>,
    admission: Arc<Admission>,
    /// Any of them knows the settings in force.
    worker: Option<Arc<Worker>>,
    is_draining: AtomicBool,
}

/// How many were put into force, and how many could not be.
#[derive(Debug, Default)]
pub struct Reloads {
    done: AtomicU64,
    failed: AtomicU64,
}

impl Reloads {
    /// Counts one.
    pub fn count(&self, is_done: bool) {
        let counter = if is_done { &self.done } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl View {
    /// A view of a gateway that begins to serve.
    pub fn new(
        engine: Engine,
        policies: Policies,
        counts: Vec<Arc<Counts>>,
        admission: Arc<Admission>,
        worker: Option<Arc<Worker>>,
    ) -> Self {
        let policies = ArcSwap::from_pointee(policies);
        let (configuration, turn, is_draining) = (Reloads::default(), Mutex::default(), AtomicBool::new(false));
        Self { policies, configuration, turn, engine, counts, admission, worker, is_draining }
    }

    /// From now on no client is accepted.
    pub fn drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }

    /// Whether no client is accepted any more.
    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }

    /// Every policy, by name.
    pub fn statuses(&self) -> Vec<Status> {
        let mut all: Vec<_> = self.policies.load().values().map(|policy| policy.status()).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// All figures, as Prometheus reads them.
    pub fn figures(&self) -> String {
        let mut out = Exposition::default();
        let name = "baton_gateway_info";
        out.family(name, Kind::Gauge, "What runs.");
        out.count(name, &[("version", env!("CARGO_PKG_VERSION"))], 1);
        let plain = [
            ("baton_gateway_connections", "Clients that the gateway owns.", self.admission.count()),
            ("baton_gateway_draining", "1 while no client is accepted any more.", usize::from(self.is_draining())),
            ("baton_gateway_workers", "Threads that serve clients.", self.counts.len()),
        ];
        for (name, help, value) in plain {
            out.family(name, Kind::Gauge, help);
            out.count(name, &[], value as u64);
        }
        Counts::expose(&self.counts.iter().map(|counts| &**counts).collect::<Vec<_>>(), &mut out);
        let name = "baton_gateway_configuration_reloads_total";
        out.family(name, Kind::Counter, "Configurations that were read while the gateway ran.");
        for (result, count) in [("done", &self.configuration.done), ("failed", &self.configuration.failed)] {
            out.count(name, &[("result", result)], count.load(Ordering::Relaxed));
        }
        self.targets(&mut out);
        policies(&self.statuses(), &mut out);
        self.engine.expose(&mut out);
        out.into_text()
    }

    fn targets(&self, out: &mut Exposition) {
        let Some(worker) = &self.worker else { return };
        let targets = Arc::clone(&worker.settings.load().targets);
        let members = targets.figures();
        let families: [MemberFamily; 6] = [
            (
                "baton_gateway_target_up",
                Kind::Gauge,
                "1 unless a daemon has just not taken a client, or drains.",
                |m| u64::from(m.is_up),
            ),
            (
                "baton_gateway_target_in_flight",
                Kind::Gauge,
                "Clients on their way to a daemon, or not reported on.",
                |m| m.in_flight.into(),
            ),
            ("baton_gateway_target_channels", Kind::Gauge, "Open channels of the native protocol.", |m| m.channels),
            ("baton_gateway_target_taken_total", Kind::Counter, "Clients that a daemon has taken.", |m| m.taken),
            ("baton_gateway_target_refused_total", Kind::Counter, "Clients that a daemon has refused.", |m| m.refused),
            ("baton_gateway_target_returned_total", Kind::Counter, "Clients that a daemon has given back.", |m| {
                m.returned
            }),
        ];
        for (name, kind, help, of) in families {
            out.family(name, kind, help);
            for member in &members {
                out.count(name, &[("target", &member.target), ("member", &member.name)], of(member));
            }
        }
        let name = "baton_gateway_target_load";
        out.family(name, Kind::Gauge, "How busy a daemon says it is, 0 to 1; of those that say it.");
        for member in &members {
            if let Some(load) = member.load {
                out.value(name, &[("target", &member.target), ("member", &member.name)], load);
            }
        }
        let name = "baton_gateway_target_waiting";
        out.family(name, Kind::Gauge, "Clients that wait until a daemon can bear them.");
        for (target, count) in targets.waiting() {
            out.count(name, &[("target", target)], count as u64);
        }
    }

    /// What the operator sees of every daemon, in the order of their targets' names.
    pub fn targets_now(&self) -> Vec<Figures> {
        self.worker.as_ref().map(|worker| worker.settings.load().targets.figures()).unwrap_or_default()
    }

    /// Asks whoever has the client of that request to end it; whether somebody has.
    pub fn revoke(&self, request: &str) -> bool {
        let revoke = |worker: &Arc<Worker>| {
            let settings = worker.settings.load();
            settings.targets.revoke(request, "the operator asks", &|_| true)
        };
        self.worker.as_ref().is_some_and(revoke)
    }
}

/// Name, kind, help, and the figure of one daemon.
type MemberFamily = (&'static str, Kind, &'static str, fn(&Figures) -> u64);

/// Name, kind, help, and the figure of one policy.
type Family = (&'static str, Kind, &'static str, fn(&Status) -> u64);

fn policies(all: &[Status], out: &mut Exposition) {
    let families: [Family; 5] = [
        ("baton_gateway_policy_generation", Kind::Gauge, "The generation in force.", |p| p.generation),
        ("baton_gateway_policy_instances", Kind::Gauge, "Instances that exist.", |p| p.instances as u64),
        ("baton_gateway_policy_traps_total", Kind::Counter, "Calls that ended in a trap or at the deadline.", |p| {
            p.traps
        }),
        ("baton_gateway_policy_breaker", Kind::Gauge, "0 closed, 1 half-open (one trial), 2 open (not asked).", |p| {
            match p.breaker {
                BreakerState::Closed => 0,
                BreakerState::HalfOpen => 1,
                BreakerState::Open => 2,
            }
        }),
        ("baton_gateway_policy_reload_failed", Kind::Gauge, "1 while the file is one that cannot be used.", |p| {
            u64::from(p.last_reload.as_ref().is_some_and(|last| last.result.is_err()))
        }),
    ];
    for (name, kind, help, of) in families {
        out.family(name, kind, help);
        for policy in all {
            out.count(name, &[("policy", &policy.name)], of(policy));
        }
    }
}
