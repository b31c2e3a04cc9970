//! What shall happen with a request: its policies are asked in turn, then its route's default.

use std::sync::Arc;
use std::time::Instant;

use super::account::say_failed;
use super::{Serving, hand_over};
use crate::access_log::micros;
use crate::decision::{Action, Decision, Edits};
use crate::exchange::{Exchange, PrefixError};
use crate::policy::{BodyError, BodyPort, Generation, OnError, Peeks, PolicyError};
use crate::request::{Id, Request};
use crate::route::{Route, Standard};

/// Why there is no decision.
pub(super) enum Undecided {
    /// A policy failed, and a request that it did not judge is not let through.
    Denied,
    /// The client left while a policy waited for somebody.
    Gone,
}

/// The client left while a policy was being asked, which was ended.
pub(super) struct Gone;

/// What was decided, and whose words they are.
pub(super) enum Decided<'a> {
    Policy(Action),
    Route(&'a Standard),
}

impl Serving<'_> {
    /// Asks the route's policies in order until one decides; then its default.
    pub(super) async fn decide<'r>(
        &mut self,
        route: &'r Route,
        request: &mut Arc<Request>,
        exchange: &mut Exchange,
    ) -> Result<(Decided<'r>, Option<Arc<Generation>>), Undecided> {
        for policy in &route.policies {
            let generation = policy.current();
            let began = self.line.clock().or_else(|| is_watched().then(Instant::now));
            let Ok(result) = self.ask(&generation, request, exchange).await else {
                self.line.set(|r| {
                    (r.policy, r.generation) = (Some(Arc::clone(generation.policy())), Some(generation.number()));
                });
                return Err(Undecided::Gone);
            };
            if is_watched() {
                let decide_us = began.map_or(0, |began| micros(began.elapsed()));
                let (method, target) = (request.head.method(), request.head.target());
                tell(&generation, &request.id, format_args!("{method} {target}"), result.as_ref().map(told), decide_us);
            }
            self.line.set(|r| {
                r.policy = Some(Arc::clone(generation.policy()));
                r.generation = Some(generation.number());
                r.decision = None;
                r.decide_us = Some(r.decide_us.unwrap_or(0) + began.map_or(0, |began| micros(began.elapsed())));
            });
            let result = result.and_then(|decision| self.fitting(&generation, "on-request", decision));
            let has_later_hooks =
                generation.completes() || generation.hears_of_failures() || generation.sees_responses();
            let Decision { action, carry, annotations } = match result {
                Ok(decision) => decision,
                Err(failure) => {
                    self.policy_failed(&generation, "on-request", request, &failure);
                    if has_later_hooks {
                        self.line.asked(&generation, Vec::new(), request, self.guard, self.worker.index);
                    }
                    if is_passed_over(&generation, &failure) {
                        continue;
                    }
                    return Err(Undecided::Denied);
                }
            };
            if has_later_hooks {
                self.line.asked(&generation, carry, request, self.guard, self.worker.index);
            }
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
    ) -> Result<Result<Decision, PolicyError>, Gone> {
        if generation.reads_body() {
            // Rare, and large beside the rest of the task: so it gets memory of its own.
            Box::pin(self.ask_and_show(generation, request, exchange)).await
        } else {
            Ok(generation.on_request_at_once(self.worker.index, request))
        }
    }

    /// Asks one policy, and meanwhile shows it the body's beginning when it wants it.
    async fn ask_and_show(
        &self,
        generation: &Generation,
        request: &Arc<Request>,
        exchange: &mut Exchange,
    ) -> Result<Result<Decision, PolicyError>, Gone> {
        let (port, peeks) = BodyPort::open();
        let asking = generation.on_request(self.worker.index, request, &port);
        self.showing(peeks, Some(exchange), asking).await
    }

    /// Waits for a policy that is being asked, and shows it the body where it can be shown.
    ///
    /// # Errors
    /// The client has left meanwhile: the policy, which waits for somebody, is ended.
    pub(super) async fn showing<T>(
        &self,
        mut peeks: Peeks,
        mut exchange: Option<&mut Exchange>,
        asking: impl Future<Output = T>,
    ) -> Result<T, Gone> {
        let mut asking = std::pin::pin!(asking);
        loop {
            let gone = async {
                match &mut exchange {
                    Some(exchange) => exchange.gone().await,
                    None => std::future::pending().await,
                }
            };
            let peek = tokio::select! {
                biased;
                answer = &mut asking => return Ok(answer),
                Some(peek) = peeks.next() => peek,
                () = gone => return Err(Gone),
            };
            let prefix = match &mut exchange {
                Some(exchange) => self.show(exchange, peek.bytes_max()).await,
                None => Err(BodyError::NotAvailable),
            };
            peek.answer(prefix);
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
    pub(super) fn fitting(
        &self,
        generation: &Generation,
        hook: &'static str,
        decision: Decision,
    ) -> Result<Decision, PolicyError> {
        let reason = match &decision.action {
            Action::Handoff(handoff) => hand_over::misfit(handoff, &self.settings.targets),
            _ => None,
        };
        reason.map_or(Ok(decision), |reason| Err(generation.misfit(hook, reason)))
    }

    /// Says that a policy failed, in the log and in the request's line.
    pub(super) fn policy_failed(
        &mut self,
        generation: &Generation,
        hook: &'static str,
        request: &Request,
        failure: &PolicyError,
    ) {
        let error = failure.to_string();
        say_failed(generation, hook, &request.id, failure, &error);
        self.line.set(|r| {
            r.error = Some(match r.error.take() {
                // What the hook was asked about.
                Some(before) if hook == "on-handoff-failed" => format!("{before}; {hook}: {error}"),
                _ => error,
            });
        });
    }
}

/// Whether somebody wants to see decisions as they are made (`baton run --watch-log`).
pub(super) fn is_watched() -> bool {
    tracing::enabled!(target: "decision", tracing::Level::INFO)
}

/// Tells whoever watches what a policy decided about `line`, in words and with annotations.
pub(super) fn tell(
    generation: &Generation,
    id: &Id,
    line: std::fmt::Arguments<'_>,
    result: Result<Told<'_>, &PolicyError>,
    decide_us: u64,
) {
    let (decision, annotations) = match result {
        Ok((decision, annotations)) => (decision.to_string(), annotations),
        Err(error) => (format!("FAILED {error}"), &[][..]),
    };
    let annotations: Vec<_> =
        annotations.iter().map(|(key, value)| format!("{}={}", key.escape_debug(), value.escape_debug())).collect();
    tracing::info!(
        target: "decision",
        policy = &**generation.policy(),
        generation = generation.number(),
        request = %id,
        line,
        decision,
        decide_us,
        annotations = annotations.join(" "),
    );
}

/// A decision in words, and its annotations.
type Told<'a> = (&'a dyn std::fmt::Display, &'a [(String, String)]);

/// What [`tell`] says of a decision.
pub(super) fn told(decision: &Decision) -> Told<'_> {
    (&decision.action, &decision.annotations)
}

/// Whether the next policy is asked although this one failed. Where the gateway had no room for another instance,
/// `on_error = "pass"` would let anybody through who keeps the gateway busy: that failure is always a denial.
pub(super) fn is_passed_over(generation: &Generation, failure: &PolicyError) -> bool {
    generation.on_error() == OnError::Pass && !matches!(failure, PolicyError::Exhausted(_))
}
