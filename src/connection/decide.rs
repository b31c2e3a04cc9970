//! What shall happen with a request: its policies are asked in turn, then its route's default.

use std::sync::Arc;
use std::time::Instant;

use super::{Serving, hand_over};
use crate::access_log::micros;
use crate::decision::{Action, Decision, Edits};
use crate::exchange::{Exchange, PrefixError};
use crate::policy::{BodyError, BodyPort, Generation, OnError, PolicyError};
use crate::request::Request;
use crate::route::Route;

/// A policy failed, and a request that it did not judge is not let through.
pub(super) struct Denied;

/// What was decided, and whose words they are.
pub(super) enum Decided<'a> {
    Policy(Action),
    Route(&'a Action),
}

impl Decided<'_> {
    pub(super) fn action(&self) -> &Action {
        match self {
            Self::Policy(action) => action,
            Self::Route(action) => action,
        }
    }
}

impl Serving<'_> {
    /// Asks the route's policies in order until one decides; then its default.
    pub(super) async fn decide<'r>(
        &mut self,
        route: &'r Route,
        request: &mut Arc<Request>,
        exchange: &mut Exchange,
    ) -> Result<(Decided<'r>, Option<Arc<Generation>>), Denied> {
        for policy in &route.policies {
            let generation = policy.current();
            let began = self.line.clock().or_else(|| is_watched().then(Instant::now));
            let result = self.ask(&generation, request, exchange).await;
            if is_watched() {
                tell(&generation, request, &result, began.map_or(0, |began| micros(began.elapsed())));
            }
            self.line.set(|r| {
                r.policy = Some(Arc::clone(generation.policy()));
                r.generation = Some(generation.number());
                r.decision = None;
                r.decide_us = Some(r.decide_us.unwrap_or(0) + began.map_or(0, |began| micros(began.elapsed())));
            });
            let Decision { action, annotations, .. } =
                match result.map_err(Failure::from).and_then(|decision| self.fitting(decision)) {
                    Ok(decision) => decision,
                    Err(failure) => {
                        self.policy_failed(&generation, request, &failure.text);
                        match (generation.on_error(), failure.fault) {
                            (OnError::Pass, Fault::Policys) => continue,
                            _ => return Err(Denied),
                        }
                    }
                };
            self.line.annotate(annotations);
            self.line.set(|r| r.decision = Some(action.word()));
            match action {
                Action::Pass(edits) => {
                    Arc::get_mut(request).expect("a policy gives the request back when it has decided").edit(&edits);
                }
                action => return Ok((Decided::Policy(action), Some(generation))),
            }
        }
        let nothing = || Decided::Policy(Action::Pass(Edits::default()));
        Ok((route.default.as_ref().map_or_else(nothing, Decided::Route), None))
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
                    let prefix = self.show(exchange, peek.bytes_max()).await;
                    peek.answer(prefix);
                }
            }
        }
    }

    /// Shows a policy the body's beginning. Slow clients could otherwise keep all instances waiting, so only so many may.
    async fn show(&self, exchange: &mut Exchange, bytes_max: usize) -> Result<Vec<u8>, BodyError> {
        let _place = self.worker.body_waits.try_acquire().map_err(|_| BodyError::NotAvailable)?;
        exchange.body_prefix(bytes_max, &self.settings.limits).await.map_err(|error| match error {
            PrefixError::Closed => BodyError::Closed,
            PrefixError::Malformed => BodyError::NotAvailable,
            PrefixError::TooLarge(_) => BodyError::TooLarge,
            PrefixError::TimedOut => BodyError::TimedOut,
        })
    }

    /// A handoff whose parts do not fit each other, or its daemons, is a value that cannot be used.
    fn fitting(&self, decision: Decision) -> Result<Decision, Failure> {
        let reason = match &decision.action {
            Action::Handoff(handoff) => hand_over::misfit(handoff, &self.settings.targets),
            _ => None,
        };
        reason.map_or(Ok(decision), |reason| Err(Failure { text: reason.to_owned(), fault: Fault::Policys }))
    }

    /// Says that a policy failed, in the log and in the request's line.
    fn policy_failed(&mut self, generation: &Generation, request: &Request, error: &str) {
        let (policy, number) = (generation.policy(), generation.number());
        tracing::warn!(%policy, generation = number, request = %request.id, error, "policy failed");
        self.line.set(|r| r.error = Some(error.to_owned()));
    }
}

/// Whether somebody wants to see decisions as they are made (`baton run --watch-log`).
fn is_watched() -> bool {
    tracing::enabled!(target: "decision", tracing::Level::INFO)
}

/// Tells whoever watches what a policy decided.
fn tell(generation: &Generation, request: &Request, result: &Result<Decision, PolicyError>, decide_us: u64) {
    let (decision, annotations) = match result {
        Ok(Decision { action, annotations, .. }) => (action.to_string(), &annotations[..]),
        Err(error) => (format!("FAILED {error}"), &[][..]),
    };
    let annotations: Vec<_> =
        annotations.iter().map(|(key, value)| format!("{}={}", key.escape_debug(), value.escape_debug())).collect();
    tracing::info!(
        target: "decision",
        policy = &**generation.policy(),
        generation = generation.number(),
        request = %request.id,
        line = format_args!("{} {}", request.head.method(), request.head.target()),
        decision,
        decide_us,
        annotations = annotations.join(" "),
    );
}

/// Why a policy gave no decision.
struct Failure {
    text: String,
    fault: Fault,
}

/// Whose fault it is. Where the gateway had no room for another instance, `on_error = "pass"` would let anybody through
/// who keeps the gateway busy: that failure is always a denial.
enum Fault {
    Gateways,
    Policys,
}

impl From<PolicyError> for Failure {
    fn from(error: PolicyError) -> Self {
        let fault = if matches!(error, PolicyError::Exhausted(_)) { Fault::Gateways } else { Fault::Policys };
        Self { text: error.to_string(), fault }
    }
}
