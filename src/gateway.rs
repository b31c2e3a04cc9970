//! The gateway as a whole: its workers, and what changes while they run.
//!
//! One thread for each core serves clients, each with a runtime of its own. The thread that began them loads, reloads and
//! drains; compiling is done beside it, so that a signal is heard at any time.

mod worker;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use self::worker::{WorkerThread, spawn_worker};
use crate::access_log::{self, AccessLog, Sinks};
use crate::admin::{self, Admin};
use crate::admission::Admission;
use crate::config::{self, Config, Fault, Faults};
use crate::connection::{Gates, Settings, Worker};
use crate::counts::Counts;
use crate::drain::{Drain, Guard};
use crate::listener::{self, Listener};
use crate::policy::{Engine, Policy, Services};
use crate::process;
use crate::route::{Route, Table};
use crate::target::{self, Target};
use crate::upstream;

/// Loaded policies by name.
pub type Policies = HashMap<String, Arc<Policy>>;

/// A configuration that was read, its policies loaded and proved, and nothing of it put into force.
#[derive(Debug)]
pub struct Loaded {
    config: Config,
    policies: Policies,
    engine: Engine,
}

/// Loads a configuration's policies. Those that are the same as in `previous` are taken over, and their files are looked
/// at as at any reload; the others are compiled, which blocks: call it off the workers.
///
/// # Errors
/// Every policy's fault.
pub fn load(config: Config, engine: &Engine, previous: &Policies) -> Result<Loaded, Faults> {
    let (mut policies, mut faults) = (Policies::new(), Vec::new());
    for config::Policy { options, module } in &config.policies {
        let before = previous.get(&*options.name);
        if let Some(same) = before.filter(|policy| policy.options() == options) {
            // Its file may have changed all the same. If it is broken, the generation in force stays, as at any time, and
            // the policy has said so.
            drop(same.reload());
            policies.insert(options.name.to_string(), Arc::clone(same));
            continue;
        }
        match Policy::load(engine, options.clone(), before.map(Arc::as_ref)) {
            Ok(policy) => drop(policies.insert(options.name.to_string(), Arc::new(policy))),
            Err(error) => {
                let message = format!("{}: {error}", options.module.display());
                faults.push(Fault { message, ..module.clone() });
            }
        }
    }
    for (name, place) in config.listeners.iter().flat_map(|listener| &listener.policies) {
        if policies.get(name).is_some_and(|policy| !policy.current().hooks().contains(&"on-connect")) {
            faults.push(Fault { message: format!("policy {name:?} has no on-connect"), ..place.clone() });
        }
    }
    if faults.is_empty() { Ok(Loaded { config, policies, engine: engine.clone() }) } else { Err(Faults(faults)) }
}

/// What cannot be had of the system.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The access log's file.
    #[error("gateway.access_log: {0}")]
    AccessLog(String, #[source] io::Error),
    /// An address.
    #[error("{0}")]
    Bind(Fault),
    /// A thread, a runtime, a signal.
    #[error("the system")]
    System(#[from] io::Error),
    /// The user to become.
    #[error("cannot become user {0:?}")]
    User(String, #[source] nix::Error),
}

/// What a configuration needs of the system before anything is served.
#[derive(Debug)]
pub struct Held {
    descriptors: usize,
    log: OpenLog,
    listeners: Vec<(listener::Options, Listener)>,
    admin: Option<(listener::Address, Admin)>,
}

impl Held {
    /// Opens the access log, binds every address, and becomes the configured user for good. Whoever connects from here on
    /// waits.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn take(config: &Config) -> Result<Self, StartError> {
        let descriptors = process::raise_descriptor_limit();
        let log = open_log(config.access_log.as_ref(), None)?;
        let listeners = bind(&config.listeners, &[], config.workers)?;
        let admin = config.admin.as_ref().map(bind_admin).transpose()?;
        if let Some(name) = &config.user {
            let given = admin.as_ref().map_or(Ok(()), |(_, admin)| admin.give_to(name));
            given.and_then(|()| process::become_user(name)).map_err(|error| StartError::User(name.clone(), error))?;
        }
        Ok(Self { descriptors, log, listeners, admin })
    }
}

/// A gateway that serves.
#[derive(Debug)]
pub struct Gateway {
    policies: Policies,
    gates: Gates,
    log: Option<(access_log::Options, AccessLog)>,
    admission: Arc<Admission>,
    listening: Vec<Listening>,
    workers: Vec<WorkerThread>,
    counts: Vec<Arc<Counts>>,
    view: Arc<admin::View>,
    admin: Option<Administered>,
    user: Option<String>,
    drain_timeout: Duration,
    drain: Drain,
    guard: Guard,
}

/// The operator's address while it answers.
#[derive(Debug)]
struct Administered {
    address: listener::Address,
    /// As it is shown to people.
    shown: String,
    stop: Drain,
}

/// An address while it accepts.
#[derive(Debug)]
struct Listening {
    options: listener::Options,
    listener: Listener,
    /// Ends accepting on it, while its clients go on.
    stop: Drain,
}

impl Gateway {
    /// Begins to serve, with what is `held` already, else with what it takes now.
    ///
    /// # Errors
    /// What the system refuses; nothing is left running.
    pub fn start(loaded: Loaded, held: Option<Held>) -> Result<Self, StartError> {
        let Loaded { config, policies, engine } = loaded;
        let Held { descriptors, log, listeners, admin } = match held {
            Some(held) => held,
            None => Held::take(&config)?,
        };
        let (drain, guard) = Drain::new();
        let admission = Arc::new(Admission::new(config.connections_max, descriptors));
        let (user, drain_timeout, count) = (config.user.clone(), config.drain_timeout, config.workers);
        let gates = gates(&config.listeners, &policies, &[], &Gates::default());
        policies.values().for_each(|policy| policy.begin());
        let counts: Vec<_> = (0..count).map(|_| Arc::<Counts>::default()).collect();
        let workers: Vec<_> = settings(config, &policies, log.as_ref(), gates.clone(), &counts, None)
            .enumerate()
            .map(|(index, settings)| spawn_worker(Worker::new(index, count, settings, &admission)))
            .collect::<Result<_, _>>()?;
        let targets = workers.first().map(|w: &WorkerThread| Arc::clone(&w.worker));
        let view =
            Arc::new(admin::View::new(engine, policies.clone(), counts.clone(), Arc::clone(&admission), targets));
        let admin = admin.map(|(address, admin)| Administered::begin(address, admin, &view)).transpose()?;
        let mut gateway = Self {
            policies,
            gates,
            log,
            admission,
            listening: Vec::new(),
            workers,
            counts,
            view,
            admin,
            user,
            drain_timeout,
            drain,
            guard,
        };
        for (options, listener) in listeners {
            gateway.listen(options, listener);
        }
        Ok(gateway)
    }

    /// The addresses that accept clients, as they are shown to people.
    pub fn listening(&self) -> impl Iterator<Item = &Listener> {
        self.listening.iter().map(|l| &l.listener)
    }

    /// The operator's address, as it is shown to people.
    pub fn admin(&self) -> Option<&str> {
        self.admin.as_ref().map(|admin| &*admin.shown)
    }

    /// What the operator is shown.
    pub fn view(&self) -> &Arc<admin::View> {
        &self.view
    }

    /// The policies in force.
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// A way to the access log in force, whatever is reloaded.
    pub fn access_log(&self) -> impl Fn() -> Option<AccessLog> + use<> {
        let worker = self.workers.first().map(|w| Arc::clone(&w.worker));
        move || worker.as_ref()?.settings.load().sinks.log.clone()
    }

    /// Puts another configuration into force, all of it or nothing. Requests under way keep the old one.
    ///
    /// # Errors
    /// What the system refuses, or what cannot change while it runs.
    pub fn replace(&mut self, loaded: Loaded) -> Result<(), StartError> {
        let Loaded { config, policies, engine: _ } = loaded;
        if config.workers != self.workers.len() {
            tracing::warn!("gateway.workers changes with a restart only");
        }
        for l in &self.listening {
            let renamed =
                |other: &config::Listener| other.options.is_same_place(&l.options) && other.options != l.options;
            if config.listeners.iter().any(renamed) {
                tracing::warn!(listener = %l.options.name, "a listener's name changes with a restart only");
            }
        }
        if config.user != self.user {
            tracing::warn!("gateway.user changes with a restart only");
        }
        let log = open_log(config.access_log.as_ref(), self.log.as_ref())?;
        let kept: Vec<_> = self.listening.iter().map(|l| l.options.clone()).collect();
        let added = bind(&config.listeners, &kept, self.workers.len())?;
        let wanted =
            config.admin.as_ref().filter(|(address, _)| self.admin.as_ref().is_none_or(|a| a.address != *address));
        let new = wanted.map(bind_admin).transpose()?;
        let new = new.map(|(address, admin)| Administered::begin(address, admin, &self.view)).transpose()?;

        // Nothing fails from here on.
        let wanted: Vec<_> = config.listeners.iter().map(|l| l.options.clone()).collect();
        self.drain_timeout = config.drain_timeout;
        self.admission.set_max(config.connections_max);
        if let Some(new) = new {
            tracing::info!("admin on {}", new.shown);
            self.admin = Some(new);
        } else if config.admin.is_none() && self.admin.take().is_some() {
            tracing::info!("no admin address any more");
        }
        let gates = gates(&config.listeners, &policies, &self.listening, &self.gates);
        let before = self.workers.first().map(|w| Arc::clone(&w.worker.settings.load().targets));
        let settings = settings(config, &policies, log.as_ref(), gates.clone(), &self.counts, before.as_deref());
        for (WorkerThread { worker, .. }, settings) in self.workers.iter().zip(settings) {
            worker.settings.store(Arc::new(settings));
        }
        let is_kept = |old: &Arc<Policy>| policies.values().any(|new| Arc::ptr_eq(old, new));
        self.policies.values().filter(|old| !is_kept(old)).for_each(|old| old.end());
        (self.policies, self.gates, self.log) = (policies, gates, log);
        self.policies.values().for_each(|policy| policy.begin());
        self.view.policies.store(Arc::new(self.policies.clone()));
        for (options, listener) in added {
            tracing::info!("listening on {listener}");
            self.listen(options, listener);
        }
        self.listening.retain(|l| {
            let stays = wanted.iter().any(|options| options.is_same_place(&l.options));
            if !stays {
                tracing::info!("no longer listening on {}", l.listener);
                l.stop.start();
            }
            stays
        });
        Ok(())
    }

    fn listen(&mut self, options: listener::Options, mut listener: Listener) {
        let (stop, until) = Drain::new();
        for worker in &self.workers {
            if let Some(accept) = listener.socket() {
                // A worker ends after its sender is dropped, not before.
                drop(worker.accepts.send((accept, until.apart(), self.guard.apart())));
            }
        }
        self.listening.push(Listening { options, listener, stop });
    }

    /// Stops accepting, finishes what has begun within the grace period, and ends. Idle connections are closed now; clients
    /// that were handed over are not waited for. `cut` ends the grace period early.
    pub async fn drain(self, cut: impl Future<Output = ()>) {
        let Self { listening, drain, guard, workers, drain_timeout, log, admission, view, admin, .. } = self;
        view.drain();
        // First, so that nobody who is accepted from here on is promised another request.
        drain.start();
        for listening in &listening {
            listening.stop.start();
        }
        drop(guard);
        tokio::select! {
            () = drain.finished() => tracing::debug!("drained"),
            () = tokio::time::sleep(drain_timeout) => {
                tracing::warn!(requests = admission.count(), "cut: still under way after {drain_timeout:?} (drain_timeout)");
            }
            () = cut => tracing::warn!(requests = admission.count(), "cut: told to end a second time"),
        }
        for WorkerThread { accepts, thread, .. } in workers {
            drop(accepts);
            if thread.join().is_err() {
                tracing::error!("a worker had panicked");
            }
        }
        drop((listening, admin));
        if let Some((_, log)) = log {
            log.flush();
        }
    }
}

/// The settings of each of `count` workers. Targets are the same for all, because they count what is in flight; policies
/// are shown them, and the upstreams, from here on.
fn settings<'a>(
    config: Config,
    policies: &'a Policies,
    log: Option<&'a (access_log::Options, AccessLog)>,
    gates: Gates,
    counts: &'a [Arc<Counts>],
    before: Option<&target::Table>,
) -> impl Iterator<Item = Settings> + use<'a> {
    let Config { limits, routes, targets, prefixes, handoff, pages, upstreams, admin, trusted_proxies, .. } = config;
    let (upstreams, trusted_proxies) = (Arc::new(upstream::Table::new(upstreams)), Arc::new(trusted_proxies));
    let workers = counts.len();
    let target = |t: config::Target| Target::new(&t.name, t.daemons, t.balance, t.waiting, workers);
    let targets = target::Table::new(targets.into_iter().map(target).collect(), prefixes, handoff);
    let targets = Arc::new(targets.after(before));
    // All of them run on one engine.
    if let Some(policy) = policies.values().next() {
        let callouts = Arc::<upstream::Table>::clone(&upstreams);
        policy.engine().connect(Services { targets: Arc::<target::Table>::clone(&targets), callouts });
    }
    let route = |r: config::Route| Route {
        name: r.name.into(),
        host: r.host,
        path: r.path,
        methods: r.methods,
        policies: r.policies.iter().filter_map(|name| policies.get(name)).map(Arc::clone).collect(),
        upgrade: r.upgrade,
        internal: r.internal,
        authorizer: r.authorizer,
        filter: r.filter,
        default: r.default,
    };
    counts.iter().map(move |counts| Settings {
        limits: limits.clone(),
        routes: Table::new(routes.iter().cloned().map(route).collect()),
        gates: gates.clone(),
        targets: Arc::clone(&targets),
        upstreams: Arc::clone(&upstreams),
        trusted_proxies: Arc::clone(&trusted_proxies),
        pages: pages.clone(),
        sinks: Arc::new(Sinks {
            log: log.map(|(_, log)| log.clone()),
            counts: admin.is_some().then(|| Arc::clone(counts)),
        }),
    })
}

/// Who is asked about the clients of each listener that accepts: by the name that it has since it does. One that is about
/// to close keeps those that it had, because it accepts for another moment.
fn gates(listeners: &[config::Listener], policies: &Policies, listening: &[Listening], before: &Gates) -> Gates {
    let is_same = |l: &&Listening, other: &config::Listener| l.options.is_same_place(&other.options);
    let mut gates = Gates::default();
    for listener in listeners {
        let name = listening.iter().find(|l| is_same(l, listener)).map_or(&listener.options.name, |l| &l.options.name);
        let named = listener.policies.iter().filter_map(|(name, _)| policies.get(name));
        gates.set(name, named.map(Arc::clone).collect());
    }
    for l in listening.iter().filter(|l| !listeners.iter().any(|other| is_same(l, other))) {
        gates.set(&l.options.name, before.of(&l.options.name).to_vec());
    }
    gates
}

impl Administered {
    fn begin(address: listener::Address, admin: Admin, view: &Arc<admin::View>) -> io::Result<Self> {
        let (stop, until) = Drain::new();
        let shown = admin.to_string();
        admin.begin(Arc::clone(view), &until)?;
        Ok(Self { address, shown, stop })
    }
}

impl Drop for Administered {
    fn drop(&mut self) {
        self.stop.start();
    }
}

/// Binds the operator's address.
fn bind_admin((address, place): &(listener::Address, Fault)) -> Result<(listener::Address, Admin), StartError> {
    if let listener::Address::Tcp(address) = address
        && !address.ip().is_loopback()
    {
        tracing::warn!(
            "admin on {address}: whoever reaches it, from other machines too, sees the figures; changes are for loopback and Unix sockets"
        );
    }
    match Admin::bind(address) {
        Ok(admin) => Ok((address.clone(), admin)),
        Err(error) => Err(StartError::Bind(Fault { message: error.to_string(), ..place.clone() })),
    }
}

type OpenLog = Option<(access_log::Options, AccessLog)>;

fn open_log(
    wanted: Option<&access_log::Options>,
    open: Option<&(access_log::Options, AccessLog)>,
) -> Result<OpenLog, StartError> {
    match (wanted, open) {
        (None, _) => Ok(None),
        (Some(options), Some((same, log))) if options == same => Ok(Some((options.clone(), log.clone()))),
        (Some(options), _) => match AccessLog::open(options) {
            Ok(log) => Ok(Some((options.clone(), log))),
            Err(error) => Err(StartError::AccessLog(options.sink.to_string(), error)),
        },
    }
}

/// Binds what is not in `kept`.
fn bind(
    listeners: &[config::Listener],
    kept: &[listener::Options],
    workers: usize,
) -> Result<Vec<(listener::Options, Listener)>, StartError> {
    let all: Vec<_> = listeners.iter().map(|l| l.options.clone()).collect();
    let new = listeners.iter().filter(|l| !kept.iter().any(|kept| kept.is_same_place(&l.options)));
    new.map(|l| match Listener::bind(&l.options, &all, workers) {
        Ok(listener) => Ok((l.options.clone(), listener)),
        Err(error) => Err(StartError::Bind(Fault { message: error.to_string(), ..l.address.clone() })),
    })
    .collect()
}
