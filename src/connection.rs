//! One client connection: read a head, decide, do it, and again.
//!
//! The only owner of a client's socket. It goes into a function by value and comes back when the gateway still owns it;
//! after a handoff there is nothing left to write to. For all requests there is one `match` over what was decided.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::access_log::{AccessLog, Line, micros};
use crate::arrival::{self, Arrival, Turn};
use crate::client::Client;
use crate::decision::{Action, Decision, Edits, Handoff, Outcome, RelayMode};
use crate::drain::Guard;
use crate::exchange::{Exchange, PrefixError, Then};
use crate::handoff::{Beat, Message, Refusal, Sealed, SendError};
use crate::http::head;
use crate::http::response::Answer;
use crate::listener::Place;
use crate::log::chain;
use crate::policy::{BodyError, BodyPort, Generation, OnError, PolicyError};
use crate::request::{Id, Origin, Request};
use crate::respond::{self, ErrorPages, Form};
use crate::route::{Found, Route, Table};
use crate::target::{self, Target};

/// What connections run on: the configuration, resolved. Swapped whole by a reload; a request keeps the one that it began
/// with.
#[derive(Debug)]
pub struct Settings {
    /// What bounds a client.
    pub limits: Limits,
    /// Which policies and which default a request gets.
    pub routes: Table,
    /// Daemons that take clients.
    pub targets: target::Table,
    /// Pages that replace the built-in ones.
    pub pages: ErrorPages,
    /// Where requests are logged.
    pub log: Option<AccessLog>,
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
    pub settings: Arc<arc_swap::ArcSwap<Settings>>,
    /// What handoffs wait by; whoever runs the worker runs it.
    pub beat: Beat,
}

/// Seconds that a client is told to wait after no daemon took it.
const RETRY_AFTER: &str = "1";

/// Serves one client until it leaves, is handed over or is closed. `place` is given back at the end.
///
/// # Cancel safety
/// Dropping it closes the client; a request under way is logged as `aborted`.
pub async fn serve(worker: Arc<Worker>, mut client: Client, origin: Origin, place: Place, mut guard: Guard) {
    let origin = Arc::new(origin);
    let mut turn = Turn::First;
    loop {
        let settings = worker.settings.load_full();
        let id = Id::new();
        let begin = || Line::begin(worker.settings.load().log.as_ref(), id, &origin);
        let (exchange, head, line) = match arrival::next(&mut client, turn, &settings.limits, &mut guard, begin).await {
            Arrival::Fault(fault, mut line) => {
                line.set(|r| r.error = Some(fault.to_string()));
                let page = respond::page(fault.status(), Form::Html, &settings.pages);
                let exchange = Exchange::of_fault(client);
                drop(answer(exchange, &settings, &mut guard, &mut line, Outcome::ClientError, &page).await);
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
        let request = Request::new(id, head, Arc::clone(&origin), None);
        let turn_of = Serving { worker: &worker, settings: &settings, guard: &mut guard, line };
        match turn_of.request(request, exchange).await {
            Some(ours) => client = ours,
            None => break,
        }
        turn = Turn::Later;
        // A client with many requests under way never makes us wait; the others must not.
        tokio::task::yield_now().await;
    }
    drop(place);
}

/// One request's way from its head to its end.
struct Serving<'a> {
    worker: &'a Worker,
    settings: &'a Settings,
    guard: &'a mut Guard,
    line: Line,
}

impl Serving<'_> {
    /// Returns the client when the connection goes on.
    async fn request(mut self, mut request: Request, mut exchange: Exchange) -> Option<Client> {
        let settings = self.settings;
        let found = settings.routes.find(request.head.host(), request.head.path(), request.head.method());
        if let Found::Route(route) = &found {
            request.route = Some(Arc::clone(&route.name));
        }
        self.line.request(&request);
        let mut request = Arc::new(request);
        let (decided, by) = match found {
            Found::Route(route) => match self.decide(route, &mut request, &mut exchange).await {
                Ok(decided) => decided,
                Err(PolicyFailed) => return self.fail(exchange, &request, Outcome::PolicyError, 503).await,
            },
            Found::OtherMethods(allow) => {
                let mut page = respond::page(405, form(&request), &settings.pages);
                page.fields.push(respond::field("allow", &allow));
                return self.answer(exchange, Outcome::Responded, &page).await;
            }
            Found::Nothing => (Decided::Policy(Action::Pass(Edits::default())), None),
        };
        match decided.action() {
            Action::Abort => {
                self.line.set(|r| r.outcome = Outcome::Aborted);
                None
            }
            Action::Handoff(handoff) => self.hand_over(exchange, &request, handoff, by.as_deref()).await,
            Action::Pass(_) => self.fail(exchange, &request, Outcome::Responded, 404).await,
            Action::Respond(respond) => self.answer(exchange, Outcome::Responded, &respond::answer(respond)).await,
        }
    }

    /// Asks the route's policies in order until one decides; then its default.
    async fn decide<'r>(
        &mut self,
        route: &'r Route,
        request: &mut Arc<Request>,
        exchange: &mut Exchange,
    ) -> Result<(Decided<'r>, Option<Arc<Generation>>), PolicyFailed> {
        for policy in &route.policies {
            let generation = policy.current();
            let began = Instant::now();
            let result = self.ask(&generation, request, exchange).await;
            self.line.set(|r| {
                r.policy = Some(Arc::clone(generation.policy()));
                r.generation = Some(generation.number());
                r.decide_us = Some(r.decide_us.unwrap_or(0) + micros(began.elapsed()));
            });
            match result {
                Ok(Decision { action, annotations, .. }) => {
                    self.line.annotate(annotations);
                    self.line.set(|r| r.decision = Some(action.word()));
                    match action {
                        Action::Pass(edits) => {
                            Arc::get_mut(request)
                                .expect("a policy gives the request back when it has decided")
                                .edit(&edits);
                        }
                        action => return Ok((Decided::Policy(action), Some(generation))),
                    }
                }
                Err(error) => {
                    self.policy_failed(&generation, request, &error.to_string());
                    match generation.on_error() {
                        OnError::Deny => return Err(PolicyFailed),
                        OnError::Pass => {}
                    }
                }
            }
        }
        Ok((route.default.as_ref().map_or(Decided::Policy(Action::Pass(Edits::default())), Decided::Route), None))
    }

    /// Asks one policy.
    async fn ask(
        &self,
        generation: &Generation,
        request: &Arc<Request>,
        exchange: &mut Exchange,
    ) -> Result<Decision, PolicyError> {
        if generation.reads_body() {
            // Rare, and large beside the rest of the task: so it gets memory of its own.
            Box::pin(self.ask_and_show(generation, request, exchange)).await
        } else {
            generation.on_request_at_once(self.worker.index, request)
        }
    }

    /// Asks one policy, and meanwhile shows it the body's beginning when it wants it.
    async fn ask_and_show(
        &self,
        generation: &Generation,
        request: &Arc<Request>,
        exchange: &mut Exchange,
    ) -> Result<Decision, PolicyError> {
        let (port, mut peeks) = BodyPort::open();
        let mut decision = std::pin::pin!(generation.on_request(self.worker.index, request, &port));
        loop {
            tokio::select! {
                biased;
                decision = &mut decision => return decision,
                Some(peek) = peeks.next() => {
                    let prefix = exchange.body_prefix(peek.bytes_max(), &self.settings.limits).await;
                    peek.answer(prefix.map_err(|error| match error {
                        PrefixError::Closed => BodyError::Closed,
                        PrefixError::Malformed => BodyError::NotAvailable,
                        PrefixError::TooLarge => BodyError::TooLarge,
                        PrefixError::TimedOut => BodyError::TimedOut,
                    }));
                }
            }
        }
    }

    fn policy_failed(&mut self, generation: &Generation, request: &Request, error: &str) {
        let (policy, number) = (generation.policy(), generation.number());
        tracing::warn!(%policy, generation = number, request = %request.id, error, "policy failed");
        self.line.set(|r| r.error = Some(error.to_owned()));
    }

    /// Hands the client over, to the alternates if need be; answers it when nobody took it.
    async fn hand_over(
        mut self,
        exchange: Exchange,
        request: &Request,
        handoff: &Handoff,
        by: Option<&Generation>,
    ) -> Option<Client> {
        let began = Instant::now();
        let options = &self.settings.targets.options;
        let message = match message(request, handoff) {
            Ok(message) => message,
            Err(reason) => return self.misfit(exchange, request, by, reason).await,
        };
        if message.data().len() > options.data_bytes_max {
            let error = format!(
                "{} bytes of data, over {} (handoff_data_bytes_max)",
                message.data().len(),
                options.data_bytes_max
            );
            tracing::error!(request = %request.id, target_name = handoff.target, error, "not handed over");
            self.line.set(|r| (r.error, r.to) = (Some(error), Some(handoff.target.clone())));
            return self.fail(exchange, request, Outcome::Refused, 500).await;
        }
        let targets = match self.targets(handoff, by) {
            Ok(targets) => targets,
            Err((name, error)) => {
                let error = format!("{name:?}: {error}");
                tracing::warn!(request = %request.id, error, "not handed over");
                self.line.set(|r| (r.error, r.to) = (Some(error), Some(name)));
                return self.fail(exchange, request, Outcome::PolicyError, 403).await;
            }
        };
        if !handoff.metadata.is_empty() {
            tracing::debug!(request = %request.id, "metadata is left out: it travels by the native dialect only");
        }

        let until = handoff.timeout.map(|timeout| tokio::time::Instant::now() + timeout);
        let (mut socket, state) = exchange.release();
        let mut refused = Refused::Unavailable;
        for target in &targets {
            let tried = target.hand_over(socket, &message, options, until, &self.worker.beat).await;
            self.line.set(|r| {
                r.to = Some(target.name().to_owned());
                r.attempts += tried.attempts;
                r.handoff_us = Some(micros(began.elapsed()));
            });
            match tried.result {
                Ok(_) => {
                    self.line.set(|r| (r.outcome, r.error) = (Outcome::HandedOff, None));
                    return None;
                }
                Err(SendError::Refused { client, stage, source }) => {
                    let error = format!("{}: {}", stage.as_str(), chain(&source));
                    tracing::warn!(request = %request.id, target_name = target.name(), error, "no daemon took the client");
                    self.line.set(|r| r.error = Some(error));
                    socket = client;
                    match source {
                        Refusal::TooLarge { .. } => refused = Refused::TooLarge,
                        Refusal::Address(error) if error.is_forbidden() => refused = Refused::Forbidden,
                        _ => continue,
                    }
                    break;
                }
                Err(SendError::Unread(unread)) => {
                    let answer = state.encode_last(&self.unavailable(request));
                    self.sealed(unread.seal(&answer), answer.len(), target, request);
                    return None;
                }
                Err(error) => {
                    let error = chain(&error);
                    tracing::warn!(request = %request.id, target_name = target.name(), error, "fate unknown: closed unwritten");
                    self.line.set(|r| (r.outcome, r.error) = (Outcome::Unanswered, Some(error)));
                    return None;
                }
            }
        }
        let exchange = state.resume(socket);
        match refused {
            Refused::Forbidden => self.fail(exchange, request, Outcome::PolicyError, 403).await,
            Refused::TooLarge => self.fail(exchange, request, Outcome::Refused, 500).await,
            Refused::Unavailable => {
                let page = self.unavailable(request);
                self.answer(exchange, Outcome::Refused, &page).await
            }
        }
    }

    /// The targets that a handoff names, all of them known and allowed, or the first that is not.
    fn targets(
        &self,
        handoff: &Handoff,
        by: Option<&Generation>,
    ) -> Result<Vec<Arc<Target>>, (String, target::NameError)> {
        let may_name = |name: &str| by.is_none_or(|policy| policy.may_name(name));
        let find = |name: &String| self.settings.targets.find(name, may_name).map_err(|error| (name.clone(), error));
        std::iter::once(&handoff.target).chain(&handoff.alternates).map(find).collect()
    }

    /// A handoff whose parts do not fit each other: the policy's fault.
    async fn misfit(
        mut self,
        exchange: Exchange,
        request: &Request,
        by: Option<&Generation>,
        reason: &str,
    ) -> Option<Client> {
        match by {
            Some(generation) => self.policy_failed(generation, request, reason),
            None => self.line.set(|r| r.error = Some(reason.to_owned())),
        }
        self.fail(exchange, request, Outcome::PolicyError, 503).await
    }

    fn sealed(&mut self, sealed: Sealed, length: usize, target: &Target, request: &Request) {
        let (request, target_name) = (request.id, target.name());
        let (outcome, status, bytes, error) = match sealed {
            Sealed::Answered => (Outcome::Refused, Some(503), length as u64, "unread at the deadline (ack_timeout)"),
            // Both may have written. That cannot be undone, so it is said loudly.
            Sealed::Conflict => (Outcome::Unanswered, Some(503), length as u64, "conflict: read while it was answered"),
            Sealed::LeftUnwritten => (Outcome::Unanswered, None, 0, "fate unknown: closed unwritten"),
        };
        match sealed {
            Sealed::Conflict => tracing::error!(%request, target_name, error, "handoff"),
            _ => tracing::warn!(%request, target_name, error, "no daemon took the client"),
        }
        self.line.set(|r| {
            (r.outcome, r.status, r.error) = (outcome, status, Some(error.to_owned()));
            r.bytes_out += bytes;
        });
    }

    fn unavailable(&self, request: &Request) -> Answer {
        let mut page = respond::page(503, form(request), &self.settings.pages);
        page.fields.push(respond::field("retry-after", RETRY_AFTER));
        page
    }

    async fn fail(self, exchange: Exchange, request: &Request, outcome: Outcome, status: u16) -> Option<Client> {
        let page = respond::page(status, form(request), &self.settings.pages);
        self.answer(exchange, outcome, &page).await
    }

    async fn answer(mut self, exchange: Exchange, outcome: Outcome, page: &Answer) -> Option<Client> {
        answer(exchange, self.settings, self.guard, &mut self.line, outcome, page).await
    }
}

/// Every policy that was asked passed or decided, but one failed and its `on_error` is deny.
struct PolicyFailed;

/// Why no daemon took a client that is still ours.
enum Refused {
    Forbidden,
    TooLarge,
    Unavailable,
}

/// What was decided, and whose words they are.
enum Decided<'a> {
    Policy(Action),
    Route(&'a Action),
}

impl Decided<'_> {
    fn action(&self) -> &Action {
        match self {
            Self::Policy(action) => action,
            Self::Route(action) => action,
        }
    }
}

/// Answers, logs, and returns the client when the connection goes on.
async fn answer(
    exchange: Exchange,
    settings: &Settings,
    guard: &mut Guard,
    line: &mut Line,
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
    // What is rare, and large beside the rest of the task, gets memory of its own.
    match answered.then {
        Then::Close => None,
        Then::Continue(client) => Some(client),
        Then::Drain(exchange) => {
            let (read, client) = Box::pin(exchange.drain(&settings.limits)).await;
            line.set(|r| r.bytes_in += read - answered.body_bytes);
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

/// The bytes that travel with the client: the data, or the head where the policy wants it delivered.
fn message(request: &Request, handoff: &Handoff) -> Result<Message, &'static str> {
    if handoff.response_head.is_some() {
        return Err("response-head needs the dialect fdpass, which this version does not speak");
    }
    if handoff.relay == RelayMode::Always {
        return Err("relay always is not offered by this version");
    }
    match (handoff.include_head, handoff.data.is_empty()) {
        (false, _) => Ok(Message::new(handoff.data.clone())),
        (true, true) => Ok(Message::new(request.head.bytes())),
        (true, false) => Err("include-head with data: the message is one or the other"),
    }
}

fn form(request: &Request) -> Form {
    Form::wanted(request.field_all("accept"))
}
