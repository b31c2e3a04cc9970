//! A client that no daemon took: what the policy that decided makes of it, and what is done without a better word.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use super::Serving;
use super::decide::{Gone, is_watched, tell, told};
use super::hand_over::Tried;
use crate::access_log::micros;
use crate::client::Client;
use crate::decision::{Action, Decision, Outcome};
use crate::exchange::{Exchange, State};
use crate::handoff::{Sealed, Stage, Unread};
use crate::policy::{BodyPort, FailureStage, Generation, HandoffFailure};
use crate::request::Request;
use crate::respond;
use crate::target::Target;

/// Why a client was ended that no daemon is known to have.
pub(super) const UNREAD: &str = "unread at the deadline (ack_timeout)";
/// The same, where a daemon may have had it without writing to it.
const UNKNOWN: &str = "read in part, or lost with its receiver; nobody had written";

/// How often a policy is asked about one request what to do after a failed handoff.
pub const ASKED_COUNT_MAX: u32 = 3;

/// A client that no daemon took, and what the last of them said.
pub(super) struct Refused {
    pub(super) client: Held,
    pub(super) target: Arc<Target>,
    pub(super) stage: Stage,
    pub(super) errno: Option<i32>,
    pub(super) message: String,
    /// How long the daemons ask to be spared for.
    pub(super) retry_after_s: Option<u64>,
}

/// What can still be done with such a client.
pub(super) enum Held {
    /// The response's head was written: nothing can be answered any more, and closing it resets.
    Begun(OwnedFd),
    /// Anything.
    Ours(Exchange),
    /// The message can still be read, so it can only be ended. `true`: it was sent a head.
    Unread(Unread, State, bool),
}

impl Serving<'_> {
    /// Asks the policy that named the targets, as long as it names others, and so often; then does what is done without one.
    pub(super) async fn after_refusal(
        &mut self,
        mut refused: Refused,
        request: &Arc<Request>,
        by: Option<&Arc<Generation>>,
    ) -> Option<Client> {
        let Some(by) = by.filter(|by| by.hears_of_failures()) else { return self.give_up(refused, request).await };
        for attempt in 1..=ASKED_COUNT_MAX {
            let Ok(action) = self.ask_after(&mut refused, attempt, request, by).await else {
                self.abort(refused.client, &refused.target, request);
                self.line.set(|r| r.outcome = Outcome::ClientGone);
                return None;
            };
            let exchange = match (action, refused.client) {
                (Some(Action::Abort), held) => {
                    self.abort(held, &refused.target, request);
                    return None;
                }
                (Some(Action::Handoff(handoff)), Held::Ours(exchange)) => {
                    match self.try_targets(exchange, request, &handoff, Some(by)).await {
                        Tried::Over(client) => return client,
                        Tried::Refused(next) => {
                            refused = next;
                            continue;
                        }
                    }
                }
                (Some(Action::Proxy(proxy)), Held::Ours(exchange)) => {
                    return self.proxy(exchange, request, &proxy, Some(Arc::clone(by))).await;
                }
                (Some(Action::Respond(respond)), Held::Ours(exchange)) => {
                    return self.answer(exchange, Outcome::Responded, &respond::answer(&respond)).await;
                }
                (Some(action @ (Action::Handoff(_) | Action::Proxy(_) | Action::Respond(_))), held) => {
                    let (policy, generation) = (by.policy(), by.number());
                    tracing::warn!(
                        %policy, generation, request = %request.id, hook = "on-handoff-failed",
                        "{} cannot be done any more: bytes went to the client, or the message can still be read", action.word()
                    );
                    held
                }
                (Some(Action::Pass(_)) | None, held) => held,
            };
            refused.client = exchange;
            break;
        }
        self.give_up(refused, request).await
    }

    /// Asks a policy about a handoff of its own that failed; `None` where it fails itself.
    ///
    /// # Errors
    /// The client has left meanwhile.
    async fn ask_after(
        &mut self,
        refused: &mut Refused,
        attempt: u32,
        request: &Arc<Request>,
        by: &Generation,
    ) -> Result<Option<Action>, Gone> {
        let failure = HandoffFailure {
            target: refused.target.name().to_owned(),
            stage: match refused.stage {
                Stage::Connect => FailureStage::Connect,
                Stage::Resolve => FailureStage::Resolve,
                Stage::Send => FailureStage::Send,
                _ => FailureStage::Acknowledge,
            },
            errno: refused.errno,
            message: refused.message.clone(),
            attempt,
            retryable: matches!(refused.client, Held::Ours(_)),
        };
        let exchange = match &mut refused.client {
            Held::Ours(exchange) => Some(exchange),
            Held::Begun(_) | Held::Unread(..) => None,
        };
        self.ask_about_failure(&failure, exchange, request, by).await
    }

    /// Asks the policy that named a target, or an upstream, what to do now that it has failed; `None` where the policy fails
    /// itself.
    ///
    /// # Errors
    /// The client has left meanwhile.
    pub(super) async fn ask_about_failure(
        &mut self,
        failure: &HandoffFailure,
        exchange: Option<&mut Exchange>,
        request: &Arc<Request>,
        by: &Generation,
    ) -> Result<Option<Action>, Gone> {
        let began = self.line.clock().or_else(|| is_watched().then(Instant::now));
        let (port, peeks) = BodyPort::open();
        let asking = by.on_handoff_failed(self.worker.index, request, &port, failure, self.line.carry());
        let result = self.showing(peeks, exchange, asking).await?;
        if is_watched() {
            let decide_us = began.map_or(0, |began| micros(began.elapsed()));
            let (method, target) = (request.head.method(), request.head.target());
            let line = format_args!("{method} {target}, {} having failed", failure.target);
            tell(by, &request.id, line, result.as_ref().map(told), decide_us);
        }
        self.line.set(|r| {
            r.decide_us = Some(r.decide_us.unwrap_or(0) + began.map_or(0, |began| micros(began.elapsed())));
        });
        Ok(match result.and_then(|decision| self.fitting(by, "on-handoff-failed", decision)) {
            Ok(Decision { action, carry, annotations }) => {
                self.line.set_carry(carry);
                self.line.annotate(annotations);
                if !matches!(action, Action::Pass(_)) {
                    self.line.set(|r| r.decision = Some(action.word()));
                }
                Some(action)
            }
            Err(failure) => {
                self.policy_failed(by, "on-handoff-failed", request, &failure);
                None
            }
        })
    }

    /// What is done with a client that nobody took and nobody has a better word for.
    async fn give_up(&mut self, refused: Refused, request: &Request) -> Option<Client> {
        match refused.client {
            Held::Begun(socket) => {
                // Closing resets: see `HeadBytes`.
                drop(socket);
                tracing::warn!(request = %request.id, "reset: no daemon took the client, and its response had begun");
                self.line.set(|r| {
                    r.outcome = Outcome::Refused;
                    let error = r.error.as_deref().unwrap_or_default();
                    r.error = Some(format!("{error}; reset behind the response's head"));
                });
                None
            }
            Held::Ours(exchange) => {
                let page = self.unavailable(request, refused.retry_after_s);
                self.answer(exchange, Outcome::Refused, &page).await
            }
            Held::Unread(unread, state, has_head) => {
                self.end_unread(unread, &state, has_head, &refused.target, request);
                None
            }
        }
    }

    /// Closes a client that nobody took, because a policy said so.
    fn abort(&mut self, client: Held, target: &Target, request: &Request) {
        match client {
            Held::Begun(socket) => drop(socket),
            Held::Ours(exchange) => drop(exchange),
            Held::Unread(unread, ..) => match unread.reset() {
                Sealed::Reset => {}
                other => return self.sealed(other, UNREAD, 0, target, request),
            },
        }
        self.line.set(|r| r.outcome = Outcome::Aborted);
    }

    /// Answers, or resets behind a head, a client whose message was not read in time.
    pub(super) fn end_unread(
        &mut self,
        unread: Unread,
        state: &State,
        has_head: bool,
        target: &Target,
        request: &Request,
    ) {
        let reason = if unread.can_be_read() { UNREAD } else { UNKNOWN };
        self.line.set(|r| r.bytes_in += state.body_bytes());
        if has_head {
            self.sealed(unread.reset(), reason, 0, target, request);
        } else {
            let answer = state.encode_last(&self.unavailable(request, None));
            self.sealed(unread.seal(&answer), reason, answer.len(), target, request);
        }
    }

    /// `answer_bytes` is the length of a 503.
    fn sealed(
        &mut self,
        sealed: Sealed,
        reason: &'static str,
        answer_bytes: usize,
        target: &Target,
        request: &Request,
    ) {
        let (request, target_name) = (request.id, target.name());
        let answered = (Some(503), answer_bytes as u64);
        let (outcome, (status, bytes), error) = match sealed {
            Sealed::Answered => (Outcome::Refused, answered, reason.to_owned()),
            Sealed::ClientGone => (Outcome::ClientGone, (None, 0), format!("{reason}; the client has gone")),
            // Both may have written. That cannot be undone, so it is said loudly.
            Sealed::Conflict => (Outcome::Unanswered, answered, "conflict: read while it was answered".to_owned()),
            Sealed::LeftUnwritten => (Outcome::Unanswered, (None, 0), "fate unknown: closed unwritten".to_owned()),
            Sealed::Reset => (Outcome::Refused, (None, 0), format!("{reason}; reset behind the response's head")),
        };
        match sealed {
            Sealed::Conflict => tracing::error!(%request, target_name, error, "handoff"),
            _ => tracing::warn!(%request, target_name, error, "no daemon took the client"),
        }
        self.line.set(|r| {
            (r.outcome, r.error) = (outcome, Some(error));
            r.status = status.or(r.status);
            r.bytes_out += bytes;
        });
    }
}
