//! One client connection: read a head, decide, do it, and again.
//!
//! The only owner of a client's socket. It goes into a function by value and comes back when the gateway still owns it;
//! after a handoff there is nothing left to write to. For all requests there is one `match` over what was decided.

mod account;
mod decide;
mod file;
mod gate;
mod hand_over;
mod internal;
mod metadata;
mod programs;
mod proxy;
mod refused;
mod reported;
mod response;
mod tunnel;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use self::account::Account;
use self::decide::{Decided, Undecided};
pub use self::gate::Gates;
use self::programs::Authorized;
pub use self::refused::ASKED_COUNT_MAX;
use crate::access_log::{Line, Sinks};
use crate::admission::{Admission, Place};
use crate::arrival::{self, Arrival, Turn};
use crate::client::Client;
use crate::decision::{Action, Edits, Outcome};
use crate::drain::Guard;
use crate::exchange::{Exchange, Then};
use crate::handoff::Beat;
use crate::http::forwarded::TrustedProxies;
use crate::http::head;
use crate::http::response::Answer;
use crate::request::{Id, Origin, Request};
use crate::respond::{self, ErrorPages, Form};
use crate::route::{Found, Route, Standard, Table};
use crate::target;
use crate::upstream;

/// What connections run on: the configuration, resolved. Swapped whole by a reload; a request keeps the one that it began
/// with. Each worker has one of its own, because every request counts itself into it.
#[derive(Debug)]
pub struct Settings {
    /// What bounds a client.
    pub limits: Limits,
    /// Which policies and which default a request gets.
    pub routes: Table,
    /// Which policies are asked about clients that connect.
    pub gates: Gates,
    /// Daemons that take clients; the same for all workers.
    pub targets: Arc<target::Table>,
    /// Servers that answer through us; the same for all workers, each of which has connections of its own.
    pub upstreams: Arc<upstream::Table>,
    /// Whose word about clients counts.
    pub trusted_proxies: Arc<TrustedProxies>,
    /// Pages that replace the built-in ones.
    pub pages: ErrorPages,
    /// Where requests are logged and counted.
    pub sinks: Arc<Sinks>,
}

/// What bounds a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of a head.
    pub head: head::Limits,
    /// From a head's first byte to its last.
    pub head_timeout: Duration,
    /// From the connection's beginning, or an answer, to the next head's first byte.
    pub keep_alive_timeout: Duration,
    /// Of a body that the gateway reads.
    pub body_bytes_max: u64,
    /// Without a byte of a body read, or of an answer written.
    pub body_timeout: Duration,
    /// Bytes a second of a body that the gateway reads, after its first 10 s.
    pub body_rate_min: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: head::Limits::default(),
            head_timeout: Duration::from_secs(10),
            keep_alive_timeout: Duration::from_secs(60),
            body_bytes_max: 16 << 20,
            body_timeout: Duration::from_secs(30),
            body_rate_min: 500,
        }
    }
}

/// What a worker serves clients with.
#[derive(Debug)]
pub struct Worker {
    /// From 0; names the worker's pool of warm instances.
    pub index: usize,
    /// The settings in force.
    pub settings: arc_swap::ArcSwap<Settings>,
    /// What handoffs wait by; whoever runs the worker runs it.
    pub beat: Beat,
    /// How many policies may wait for bodies at a time: each keeps an instance while it does.
    pub body_waits: Semaphore,
    /// Where clients have their places.
    pub admission: Arc<Admission>,
}

/// Policies that wait for bodies at a time, in all workers together; half of what instances there are for them.
const BODY_WAITS_MAX: usize = 512;

impl Worker {
    /// One of `count` workers.
    pub fn new(index: usize, count: usize, settings: Settings, admission: &Arc<Admission>) -> Self {
        let settings = arc_swap::ArcSwap::from_pointee(settings);
        let body_waits = Semaphore::new((BODY_WAITS_MAX / count).max(1));
        Self { index, settings, beat: Beat::with_rests(), body_waits, admission: Arc::clone(admission) }
    }
}

/// Seconds that a client is told to wait after no daemon took it.
const RETRY_AFTER_S: u64 = 1;

/// Serves one client until it leaves, is handed over or is closed. `place` is given back at the end.
///
/// # Cancel safety
/// Dropping it closes the client; a request under way is logged as `aborted`.
pub async fn serve(worker: Arc<Worker>, mut client: Client, origin: Origin, place: Place, guard: Guard) {
    let origin = Arc::new(origin);
    if !worker.settings.load().gates.is_empty() {
        // Rare, and large beside the rest of the task: so it gets memory of its own.
        match Box::pin(gate::pass(&worker, client, &origin, &guard)).await {
            Some(ours) => client = ours,
            None => return drop(place),
        }
    }
    requests(&worker, client, &origin, Turn::First, guard, place).await;
}

/// One request after the other, until the client leaves, is handed over or is closed.
async fn requests(
    worker: &Arc<Worker>,
    mut client: Client,
    origin: &Arc<Origin>,
    mut turn: Turn,
    mut guard: Guard,
    place: Place,
) {
    loop {
        let settings = worker.settings.load_full();
        let id = Id::new();
        let begin = || Line::begin(&worker.settings.load().sinks, id, origin);
        let (exchange, head, line) = match arrival::next(&mut client, turn, &settings.limits, &mut guard, begin).await {
            Arrival::Fault(fault, presence, line) => {
                let mut line = Account::new(line);
                line.set(|r| r.error = Some(fault.to_string()));
                let page = respond::page(fault.status(), Form::Html, &settings.pages);
                let exchange = Exchange::of_fault(client, presence);
                drop(Box::pin(answer(exchange, &settings, &mut guard, &mut line, Outcome::ClientError, &page)).await);
                break;
            }
            Arrival::Gone(mut line) => {
                line.set(|r| r.outcome = Outcome::ClientGone);
                break;
            }
            Arrival::Head(head, line) => (Exchange::new(client, &head), head, line),
            Arrival::Nothing => break,
        };
        // Again: the client may have been idle while a reload took place.
        let settings = worker.settings.load_full();
        let mut request = Request::new(id, head, Arc::clone(origin), None);
        request.believe(&settings.trusted_proxies);
        let line = Account::new(line);
        let turn_of = Serving { worker, settings: &settings, guard: &mut guard, line, route: None };
        match turn_of.request(request, exchange).await {
            Some(ours) => client = ours,
            None => break,
        }
        turn = Turn::Later;
        // A client with many requests under way never makes us wait; the others must not.
        tokio::task::yield_now().await;
    }
    // Before the client sees its end: who counts then finds that it has left.
    drop((place, guard));
}

/// One request's way from its head to its end.
struct Serving<'a> {
    worker: &'a Arc<Worker>,
    settings: &'a Settings,
    guard: &'a mut Guard,
    line: Account,
    /// The one that the request takes.
    route: Option<&'a Route>,
}

impl Serving<'_> {
    /// Returns the client when the connection goes on.
    async fn request(mut self, mut request: Request, mut exchange: Exchange) -> Option<Client> {
        let settings = self.settings;
        let found = settings.routes.find(request.head.host(), request.head.path(), request.head.method());
        if let Found::Route(route) = &found {
            request.route = Some(Arc::clone(&route.name));
            self.route = Some(route);
        }
        self.line.request(&request);
        let mut request = Arc::new(request);
        if let Found::Route(Route { authorizer: Some(authorizer), .. }) = &found {
            // Rare, and large beside the rest of the task: so it gets memory of its own.
            match Box::pin(self.authorize(exchange, &mut request, authorizer)).await {
                Authorized::Through(ours) => exchange = *ours,
                Authorized::Over(client) => return client,
            }
        }
        let (decided, by) = match found {
            Found::Route(route) => match self.decide(route, &mut request, &mut exchange).await {
                Ok(decided) => decided,
                Err(Undecided::Denied) => return self.fail(exchange, &request, Outcome::PolicyError, 503).await,
                Err(Undecided::Gone) => {
                    self.line.set(|r| r.outcome = Outcome::ClientGone);
                    return None;
                }
            },
            Found::OtherMethods(allow) => {
                let mut page = respond::page(405, form(&request), &settings.pages);
                page.fields.push(respond::field("allow", &allow));
                return self.answer(exchange, Outcome::Responded, &page).await;
            }
            Found::Nothing => (Decided::Policy(Action::Pass(Edits::default())), None),
        };
        let action = match &decided {
            Decided::Policy(action) | Decided::Route(Standard::Action(action)) => action,
            Decided::Route(Standard::File(folder, fallback)) => {
                let route = self.route.expect("a route's default was found by its route");
                return Box::pin(self.file(exchange, &request, route, folder, fallback.as_ref())).await;
            }
        };
        match action {
            Action::Abort => {
                self.line.set(|r| r.outcome = Outcome::Aborted);
                None
            }
            Action::Handoff(handoff) => self.hand_over(exchange, &request, handoff, by.as_ref()).await,
            Action::Pass(_) => self.fail(exchange, &request, Outcome::Responded, 404).await,
            // Rare among handoffs, and large beside the rest of the task: so it gets memory of its own.
            Action::Proxy(proxy) => Box::pin(self.proxy(exchange, &request, proxy, by)).await,
            Action::Respond(respond) => self.answer(exchange, Outcome::Responded, &respond::answer(respond)).await,
        }
    }

    fn unavailable(&self, request: &Request, retry_after_s: Option<u64>) -> Answer {
        let mut page = respond::page(503, form(request), &self.settings.pages);
        let seconds = retry_after_s.unwrap_or(RETRY_AFTER_S).to_string();
        page.fields.push(respond::field("retry-after", &seconds));
        page
    }

    async fn fail(&mut self, exchange: Exchange, request: &Request, outcome: Outcome, status: u16) -> Option<Client> {
        let page = respond::page(status, form(request), &self.settings.pages);
        self.answer(exchange, outcome, &page).await
    }

    /// In memory of its own: the task of every request that is handed over would have to have room for it.
    async fn answer(&mut self, exchange: Exchange, outcome: Outcome, page: &Answer) -> Option<Client> {
        Box::pin(answer(exchange, self.settings, self.guard, &mut self.line, outcome, page)).await
    }

    /// Does what is left to do behind an answer; `body_bytes` of the request's body are in its line already.
    async fn go_on(&mut self, then: Then, body_bytes: u64) -> Option<Client> {
        go_on(then, body_bytes, self.settings, self.guard, &mut self.line).await
    }
}

/// Answers, logs, and returns the client when the connection goes on.
async fn answer(
    exchange: Exchange,
    settings: &Settings,
    guard: &mut Guard,
    line: &mut Account,
    outcome: Outcome,
    answer: &Answer,
) -> Option<Client> {
    let answered = exchange.answer(answer, &settings.limits, guard).await;
    line.set(|r| {
        (r.outcome, r.status) = (outcome, Some(answer.status));
        r.bytes_in += answered.body_bytes;
        r.bytes_out += answered.bytes_out;
        if let Some(error) = &answered.error {
            (r.outcome, r.error) = (Outcome::ClientGone, Some(error.to_string()));
        }
    });
    go_on(answered.then, answered.body_bytes, settings, guard, line).await
}

async fn go_on(
    then: Then,
    body_bytes: u64,
    settings: &Settings,
    guard: &mut Guard,
    line: &mut Account,
) -> Option<Client> {
    // What is rare, and large beside the rest of the task, gets memory of its own.
    match then {
        Then::Close => None,
        Then::Continue(client) => Some(client),
        Then::Drain(exchange) => {
            let (read, client) = Box::pin(exchange.drain(&settings.limits)).await;
            line.set(|r| r.bytes_in += read - body_bytes);
            client
        }
        Then::Linger(closing) => {
            // The request is over; what follows is the connection's.
            line.end();
            Box::pin(closing.linger(guard)).await;
            None
        }
    }
}

fn form(request: &Request) -> Form {
    Form::wanted(request.field_all("accept"))
}
