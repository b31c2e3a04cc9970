//! A handoff that was decided: to its target, then to the alternates; and an answer when nobody took the client.

use std::sync::Arc;
use std::time::Instant;

use super::Serving;
use crate::access_log::micros;
use crate::client::Client;
use crate::decision::{Handoff, Outcome, RelayMode};
use crate::exchange::Exchange;
use crate::handoff::{Message, Refusal, Sealed, SendError};
use crate::log::chain;
use crate::policy::Generation;
use crate::request::Request;
use crate::target::{NameError, Target};

/// Why no daemon took a client that is still ours.
enum Refused {
    Forbidden,
    TooLarge,
    Unavailable,
}

/// What the parts of a handoff cannot be together; `None` when they fit.
pub(super) fn misfit(handoff: &Handoff) -> Option<&'static str> {
    if handoff.response_head.is_some() {
        return Some("response-head needs the dialect fdpass, which this version does not speak");
    }
    if handoff.relay == RelayMode::Always {
        return Some("relay always is not offered by this version");
    }
    (handoff.include_head && !handoff.data.is_empty())
        .then_some("include-head with data: the message is one or the other")
}

impl Serving<'_> {
    /// Hands the client over, to the alternates if need be; answers it when nobody took it. `by` is the policy that decided
    /// so, `None` the route.
    pub(super) async fn hand_over(
        mut self,
        exchange: Exchange,
        request: &Request,
        handoff: &Handoff,
        by: Option<&Generation>,
    ) -> Option<Client> {
        let options = &self.settings.targets.options;
        let data = if handoff.include_head { request.head.bytes() } else { &handoff.data };
        if data.len() > options.data_bytes_max {
            let limit = options.data_bytes_max;
            let error = format!("{} bytes of data, over {limit} (handoff_data_bytes_max)", data.len());
            self.not_handed_over(request, &handoff.target, by, error);
            return self.fail(exchange, request, Outcome::Refused, 500).await;
        }
        let targets = match self.targets(handoff, by) {
            Ok(targets) => targets,
            Err((name, error)) => {
                self.not_handed_over(request, name, by, chain(&error));
                return self.fail(exchange, request, Outcome::PolicyError, 403).await;
            }
        };
        if !handoff.metadata.is_empty() {
            tracing::debug!(request = %request.id, "metadata is left out: it travels by the native dialect only");
        }
        let until = handoff.timeout.map(|timeout| tokio::time::Instant::now() + timeout);
        self.send(exchange, request, &Message::new(data), &targets, until, by).await
    }

    async fn send(
        mut self,
        exchange: Exchange,
        request: &Request,
        message: &Message,
        targets: &[Arc<Target>],
        until: Option<tokio::time::Instant>,
        by: Option<&Generation>,
    ) -> Option<Client> {
        let began = Instant::now();
        let (mut socket, state) = exchange.release();
        let mut refused = Refused::Unavailable;
        for target in targets {
            let tried =
                target.hand_over(socket, message, &self.settings.targets.options, until, &self.worker.beat).await;
            self.line.set(|r| {
                r.to = Some(target.name().to_owned());
                r.attempts += tried.attempts;
                r.handoff_us = Some(micros(began.elapsed()));
            });
            match tried.result {
                Ok(_) => {
                    self.line.set(|r| r.outcome = Outcome::HandedOff);
                    return None;
                }
                Err(SendError::Refused { client, stage, source }) => {
                    let error = format!("{}: {}", stage.as_str(), chain(&source));
                    self.not_handed_over(request, target.name(), by, error);
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
                    self.not_handed_over(request, target.name(), by, chain(&error));
                    self.line.set(|r| r.outcome = Outcome::Unanswered);
                    return None;
                }
            }
        }
        self.answer_refused(state.resume(socket), request, refused).await
    }

    async fn answer_refused(self, exchange: Exchange, request: &Request, refused: Refused) -> Option<Client> {
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
    fn targets<'h>(
        &self,
        handoff: &'h Handoff,
        by: Option<&Generation>,
    ) -> Result<Vec<Arc<Target>>, (&'h str, NameError)> {
        let may_name = |name: &str| by.is_none_or(|policy| policy.may_name(name));
        let find =
            |name: &'h String| self.settings.targets.find(name, may_name).map_err(|error| (name.as_str(), error));
        std::iter::once(&handoff.target).chain(&handoff.alternates).map(find).collect()
    }

    /// Says that a target did not take the client, in the log and in the request's line.
    fn not_handed_over(&mut self, request: &Request, target: &str, by: Option<&Generation>, error: String) {
        let (policy, generation) = (by.map(|g| g.policy().as_ref()), by.map(Generation::number));
        tracing::warn!(policy, generation, request = %request.id, target_name = target, error, "not handed over");
        self.line.set(|r| (r.error, r.to) = (Some(error), Some(target.to_owned())));
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
}
