//! Asking a policy: each hook of `wit/policy.wit` as a function of a [`Generation`], and what is the same for all of them:
//! the breaker, an instance of the worker's pool, one deadline, a second try after a trap that nobody saw.
//!
//! A module that never suspends is asked by a plain call; the others by a future. Both are the same few steps.

use std::future::Future as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use wasmtime::component::{ComponentExportIndex, ComponentNamedList, Lift, Lower};

use super::bindings::{self, types};
use super::body::BodyPort;
use super::breaker::{Breaker, BreakerOptions, Change, Trial};
use super::epoch::Deadline;
use super::error::{BadValue, PolicyError};
use super::generation::Generation;
use super::host::{Instance, Question};
use super::imports::Call;
use super::status::Tally;
use crate::decision::{Decision, Field, Handoff};
use crate::request::{Origin, Request};

/// Calls of `on-complete` that may wait or run at a time, for each generation.
const COMPLETIONS_MAX: usize = 1024;

/// What a connection-hook says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admittance {
    /// The client is served.
    Accept,
    /// Its socket goes to a daemon with everything that is in it.
    Handoff(Box<Handoff>),
    /// It is closed.
    Reject,
}

impl Admittance {
    /// The word for it in the access log.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Handoff(_) => "handoff",
            Self::Reject => "reject",
        }
    }
}

impl std::fmt::Display for Admittance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Handoff(handoff) => handoff.fmt(f),
            Self::Accept | Self::Reject => f.write_str(self.word()),
        }
    }
}

/// How far a handoff came that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureStage {
    /// The message was sent, and was to be read.
    Acknowledge,
    /// The daemon's socket was to be connected to.
    Connect,
    /// Its path was to be found.
    Resolve,
    /// The message was to be sent.
    Send,
    /// It was no target, but an upstream that did not answer.
    Upstream,
}

/// What a failure-hook is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandoffFailure {
    /// The target that failed last.
    pub target: String,
    /// How far it came.
    pub stage: FailureStage,
    /// Linux's number for it, where there is one.
    pub errno: Option<i32>,
    /// What the log says.
    pub message: String,
    /// Of the hook for this request, from 1.
    pub attempt: u32,
    /// Whether anything but `pass` and `abort` can be done.
    pub retryable: bool,
}

/// The head that an upstream has answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamHead {
    /// Its status.
    pub status: u16,
    /// Its fields, names in lower case.
    pub fields: Vec<Field>,
    /// The upstream's name in the configuration.
    pub upstream: Arc<str>,
    /// From the request's last byte to the head's last.
    pub elapsed: Duration,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The request's id.
    pub request_id: String,
    /// The outcome, as in the access log.
    pub action: &'static str,
    /// The target.
    pub target: Option<String>,
    /// The status that the gateway wrote.
    pub status: Option<u16>,
    /// From its first byte.
    pub duration: Duration,
    /// Read from the client.
    pub bytes_in: u64,
    /// Written to the client by the gateway.
    pub bytes_out: u64,
}

impl Generation {
    /// Asks it about a request. Guest code runs on the calling thread and is ended at the deadline; `worker` says whose
    /// warm instances to use, `0..workers` of [`Engine::new`](super::Engine::new). What the guest asks of the body arrives at
    /// the other end of `body`, and must be served while this future is polled.
    ///
    /// # Errors
    /// The instance that failed is gone, and nothing else is changed; [`Generation::on_error`] decides.
    ///
    /// # Cancel safety
    /// Dropping it ends the guest where it is, and its instance with it.
    pub async fn on_request(
        &self,
        worker: usize,
        request: &Arc<Request>,
        body: &BodyPort,
    ) -> Result<Decision, PolicyError> {
        let question = about_request(request, body);
        self.ask(worker, &self.breaker, &question, |given| self.decision(given)).await
    }

    /// The same for a request without a body, where nothing has to be waited for: a plain call for a policy that never
    /// suspends ([`Generation::reads_body`] is false). One that could, and does, fails.
    ///
    /// # Errors
    /// As [`Generation::on_request`].
    pub fn on_request_at_once(&self, worker: usize, request: &Arc<Request>) -> Result<Decision, PolicyError> {
        let body = BodyPort::empty();
        if self.reads_body() {
            let mut asking = std::pin::pin!(self.on_request(worker, request, &body));
            return match asking.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(decision) => decision,
                Poll::Pending => Err(PolicyError::Exhausted("it waits, and nobody may wait here".to_owned())),
            };
        }
        let question = about_request(request, &body);
        self.ask_at_once(worker, &self.breaker, &question, |given| self.decision(given))
    }

    /// Asks whether a client that was accepted, and of whom nothing was read, is served.
    ///
    /// # Errors
    /// As [`Generation::on_request`]; also where the module has no such hook.
    ///
    /// # Cancel safety
    /// As [`Generation::on_request`]'s.
    pub async fn on_connect(&self, worker: usize, origin: &Origin) -> Result<Admittance, PolicyError> {
        let connection = bindings::connection(origin);
        let question = Question {
            hook: "on-connect",
            function: |i: &mut Instance| i.hook::<_, (bindings::ConnectionAction,)>(|e| e.on_connect),
            given: (&connection,),
            call: None,
        };
        let bytes_max = self.options.decision_bytes_max;
        self.ask(worker, &self.breaker, &question, |(given,)| bindings::admittance(given, bytes_max)).await
    }

    /// Asks what to do with a client that no daemon took. `carry` is what the policy gave along with its last decision.
    ///
    /// # Errors
    /// As [`Generation::on_request`].
    ///
    /// # Cancel safety
    /// As [`Generation::on_request`]'s.
    pub async fn on_handoff_failed(
        &self,
        worker: usize,
        request: &Arc<Request>,
        body: &BodyPort,
        failure: &HandoffFailure,
        carry: &[u8],
    ) -> Result<Decision, PolicyError> {
        let failure = bindings::failure(failure);
        let question = Question {
            hook: "on-handoff-failed",
            function: |i: &mut Instance| i.hook::<_, (types::Decision,)>(|e| e.on_handoff_failed),
            given: (&failure, carry),
            call: Some(Call { request: Arc::clone(request), body: body.clone(), response: None }),
        };
        self.ask(worker, &self.breaker, &question, |given| self.decision(given)).await
    }

    /// Asks what to do with the answer of an upstream, of which the client has seen nothing.
    ///
    /// # Errors
    /// As [`Generation::on_request`].
    ///
    /// # Cancel safety
    /// As [`Generation::on_request`]'s.
    pub async fn on_response(
        &self,
        worker: usize,
        request: &Arc<Request>,
        body: &BodyPort,
        response: &Arc<UpstreamHead>,
        carry: &[u8],
    ) -> Result<Decision, PolicyError> {
        let response = Some(Arc::clone(response));
        let question = Question {
            hook: "on-response",
            function: |i: &mut Instance| i.hook::<_, (types::Decision,)>(|e| e.on_response),
            given: (carry,),
            call: Some(Call { request: Arc::clone(request), body: body.clone(), response }),
        };
        self.ask(worker, &self.breaker, &question, |given| self.decision(given)).await
    }

    /// Takes a place for a call of `on-complete`; `None`, and counted, where too many are taken. So that a slow hook cannot
    /// pile up what is over.
    pub fn place_to_complete(self: &Arc<Self>) -> Option<Completion> {
        let take = |count| (count < COMPLETIONS_MAX).then_some(count + 1);
        if self.completions.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(Completion(Arc::clone(self)))
    }

    /// Calls `on-tick` in `background`, which becomes another instance where there is none or it fails.
    pub(super) async fn on_tick(&self, background: &mut Option<Instance>) -> Result<(), PolicyError> {
        let question = Question {
            hook: "on-tick",
            function: |i: &mut Instance| i.hook::<(), ()>(|e| e.on_tick),
            given: (),
            call: None,
        };
        let deadline = self.proven.template.deadline(self.options.deadline);
        // Away while it is asked: one that fails, or is dropped in the middle, does not come back.
        let instance = match background.take() {
            Some(instance) => Ok(instance),
            None => self.proven.template.instantiate(deadline).await,
        };
        let result = match instance {
            Ok(mut instance) => match instance.ask(&question, deadline).await {
                Ok(()) => {
                    *background = Some(instance);
                    Ok(())
                }
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        result.inspect_err(|error| {
            self.tally.count(error);
            self.tally.failed(self.number(), question.hook, error);
        })
    }

    /// What it decided does not fit whoever is to do it, and counts as a failure like any other.
    pub fn misfit(&self, hook: &'static str, reason: &'static str) -> PolicyError {
        let error = PolicyError::Misfit(reason);
        self.settle(&self.breaker, None, hook, &Err::<(), _>(error.clone()));
        error
    }

    fn decision(&self, (given,): (types::Decision,)) -> Result<Decision, BadValue> {
        bindings::decision(given, self.options.decision_bytes_max)
    }

    async fn ask<P, R, T>(
        &self,
        worker: usize,
        breaker: &Breaker,
        question: &Question<P, R>,
        read: impl FnOnce(R) -> Result<T, BadValue>,
    ) -> Result<T, PolicyError>
    where
        P: ComponentNamedList + Lower + Copy + Send + Sync,
        R: ComponentNamedList + Lift + Send + Sync + 'static,
    {
        let trial = breaker.enter()?;
        let answer = self.call(worker, question).await;
        let result = self.read(worker, answer, read);
        self.settle(breaker, trial, question.hook, &result);
        result
    }

    fn ask_at_once<P, R, T>(
        &self,
        worker: usize,
        breaker: &Breaker,
        question: &Question<P, R>,
        read: impl FnOnce(R) -> Result<T, BadValue>,
    ) -> Result<T, PolicyError>
    where
        P: ComponentNamedList + Lower + Copy + Send + Sync,
        R: ComponentNamedList + Lift + Send + Sync + 'static,
    {
        let trial = breaker.enter()?;
        let answer = self.call_at_once(worker, question);
        let result = self.read(worker, answer, read);
        self.settle(breaker, trial, question.hook, &result);
        result
    }

    async fn call<P, R>(&self, worker: usize, question: &Question<P, R>) -> Result<(R, Instance), PolicyError>
    where
        P: ComponentNamedList + Lower + Copy + Send + Sync,
        R: ComponentNamedList + Lift + Send + Sync + 'static,
    {
        let template = &self.proven.template;
        let mut idle = self.take_idle(worker);
        let mut attempt = Attempt::first(template.deadline(self.options.deadline));
        loop {
            let mut instance = match idle.take() {
                Some(instance) => instance,
                None => template.instantiate(attempt.deadline).await?,
            };
            let answer = instance.ask(question, attempt.deadline).await;
            if let Some(answer) = attempt.judge(instance, answer, &self.tally) {
                return answer;
            }
        }
    }

    fn call_at_once<P, R>(&self, worker: usize, question: &Question<P, R>) -> Result<(R, Instance), PolicyError>
    where
        P: ComponentNamedList + Lower + Copy + Send + Sync,
        R: ComponentNamedList + Lift + Send + Sync + 'static,
    {
        let template = &self.proven.template;
        let mut idle = self.take_idle(worker);
        let mut attempt = Attempt::first(template.deadline(self.options.deadline));
        loop {
            let mut instance = match idle.take() {
                Some(instance) => instance,
                None => template.instantiate_at_once(attempt.deadline)?,
            };
            let answer = instance.ask_at_once(question, attempt.deadline);
            if let Some(answer) = attempt.judge(instance, answer, &self.tally) {
                return answer;
            }
        }
    }

    /// What was given as a value of ours; then the instance can be asked again.
    fn read<R, T>(
        &self,
        worker: usize,
        answer: Result<(R, Instance), PolicyError>,
        read: impl FnOnce(R) -> Result<T, BadValue>,
    ) -> Result<T, PolicyError> {
        let (given, instance) = answer?;
        let value = read(given)?;
        self.keep(worker, instance);
        Ok(value)
    }

    /// Tells the breaker how a call ended.
    fn settle<T>(
        &self,
        breaker: &Breaker,
        trial: Option<Trial<'_>>,
        hook: &'static str,
        result: &Result<T, PolicyError>,
    ) {
        let change = match (result, trial) {
            (Ok(_), None) => return,
            (Ok(_), Some(trial)) => trial.end(true, Instant::now()),
            // The gateway's own want of room says nothing of the policy.
            (Err(PolicyError::Exhausted(_)), _) => return,
            (Err(error), trial) => {
                self.tally.failed(self.number(), hook, error);
                trial.map_or_else(|| breaker.failed(Instant::now()), |trial| trial.end(false, Instant::now()))
            }
        };
        let (policy, generation) = (self.policy(), self.number());
        match change {
            Change::Closed => tracing::info!(%policy, generation, hook, "breaker closed: the policy is asked again"),
            Change::Opened => {
                let BreakerOptions { pause, .. } = breaker.options();
                tracing::error!(%policy, generation, hook, "breaker opened: the policy is not asked for {pause:?}");
            }
            Change::Nothing => {}
        }
    }
}

/// What a request-hook is asked.
fn about_request(request: &Arc<Request>, body: &BodyPort) -> Question<(), (types::Decision,)> {
    let call = Some(Call { request: Arc::clone(request), body: body.clone(), response: None });
    Question { hook: "on-request", function: Instance::on_request, given: (), call }
}

/// A call and, at most once, its repetition within the same deadline.
struct Attempt {
    deadline: Deadline,
    is_repeated: bool,
}

impl Attempt {
    fn first(deadline: Deadline) -> Self {
        Self { deadline, is_repeated: false }
    }

    /// What it ended with; `None` when it is made again in a fresh instance: a trap may be the fault of what an earlier
    /// request left behind, and nobody has seen anything of this call.
    fn judge<R>(
        &mut self,
        instance: Instance,
        answer: Result<R, PolicyError>,
        tally: &Tally,
    ) -> Option<Result<(R, Instance), PolicyError>> {
        let error = match answer {
            Ok(given) => return Some(Ok((given, instance))),
            Err(error) => error,
        };
        tally.count(&error);
        if !self.is_repeated && matches!(error, PolicyError::Trap { .. }) && instance.is_repeatable() {
            (self.is_repeated, self.deadline) = (true, instance.deadline());
            return None;
        }
        Some(Err(error))
    }
}

/// A place for a call of `on-complete`.
#[derive(Debug)]
pub struct Completion(Arc<Generation>);

impl Completion {
    /// Tells the policy how a request ended; `carry` is what it gave along last.
    ///
    /// # Errors
    /// As [`Generation::on_request`]; it changes nothing for the request. A breaker of its own ends a storm of them.
    ///
    /// # Cancel safety
    /// As [`Generation::on_request`]'s.
    pub async fn on_complete(self, worker: usize, summary: &Summary, carry: &[u8]) -> Result<(), PolicyError> {
        let generation = &*self.0;
        let summary = bindings::summary(summary);
        let question = Question {
            hook: "on-complete",
            function: |i: &mut Instance| i.hook::<_, ()>(|e| e.on_complete),
            given: (&summary, carry),
            call: None,
        };
        generation.ask(worker, &generation.complete_breaker, &question, |()| Ok(())).await
    }

    /// Whom it is for.
    pub fn generation(&self) -> &Generation {
        &self.0
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        let generation = &*self.0;
        generation.completions.fetch_sub(1, Ordering::Relaxed);
        let calls = generation.left_out.swap(0, Ordering::Relaxed);
        if calls > 0 {
            let (policy, generation) = (generation.policy(), generation.number());
            tracing::warn!(%policy, generation, hook = "on-complete", calls, "left out: over {COMPLETIONS_MAX} waited");
        }
    }
}

/// Whether every hook that is there has the type of the contract.
pub(super) fn check_types(instance: &mut Instance) -> Result<(), PolicyError> {
    let exports = *instance.exports();
    fn check<P, R>(instance: &mut Instance, index: Option<ComponentExportIndex>) -> Result<(), PolicyError>
    where
        P: ComponentNamedList + Lower + Send + Sync,
        R: ComponentNamedList + Lift + Send + Sync + 'static,
    {
        index.map_or(Ok(()), |index| instance.typed::<P, R>(index).map(drop))
    }
    check::<(&bindings::Summary, &[u8]), ()>(instance, exports.on_complete)?;
    check::<(&bindings::Connection,), (bindings::ConnectionAction,)>(instance, exports.on_connect)?;
    check::<(&bindings::Failure, &[u8]), (types::Decision,)>(instance, exports.on_handoff_failed)?;
    check::<(&[u8],), (types::Decision,)>(instance, exports.on_response)?;
    check::<(), ()>(instance, exports.on_tick)
}
