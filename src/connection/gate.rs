//! Before a client's first byte is looked at: the policies of its listener say whether it is served, closed, or handed over
//! as it is, with everything that is in its socket.
//!
//! Nobody has said a word of HTTP yet. So nothing is answered, whatever fails; the connection ends, and the log has a line.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::account::{Account, say_failed};
use super::decide::{is_passed_over, is_watched, tell};
use super::reported::Reported;
use super::{Settings, Worker, hand_over, metadata};
use crate::access_log::{Line, micros};
use crate::client::Client;
use crate::decision::{Handoff, Outcome, RelayMode};
use crate::drain::Guard;
use crate::handoff::channel;
use crate::handoff::{Dialect, Message, Sealed, SendError};
use crate::log::chain;
use crate::policy::{Admittance, Generation, Policy, PolicyError};
use crate::request::{Id, Origin};
use crate::target::{self, Offer, Taken};

/// Policies that are asked about clients, by the listener's name.
#[derive(Clone, Debug, Default)]
pub struct Gates(Arc<HashMap<Arc<str>, Vec<Arc<Policy>>>>);

impl Gates {
    /// Those of one listener, in the order in which they are asked.
    pub fn set(&mut self, listener: &Arc<str>, policies: Vec<Arc<Policy>>) {
        if !policies.is_empty() {
            Arc::make_mut(&mut self.0).insert(Arc::clone(listener), policies);
        }
    }

    /// Those of one listener.
    pub fn of(&self, listener: &str) -> &[Arc<Policy>] {
        self.0.get(listener).map_or(&[], |policies| policies)
    }

    /// Whether no listener has any.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Asks the policies of the client's listener. Returns the client if it is to be served.
pub(super) async fn pass(worker: &Arc<Worker>, client: Client, origin: &Origin, guard: &Guard) -> Option<Client> {
    let settings = worker.settings.load_full();
    let policies = settings.gates.of(&origin.listener);
    if policies.is_empty() {
        return Some(client);
    }
    // What a request has, a connection has too: it is named in the log by it.
    let id = Id::new();
    let mut line = Line::begin(&settings.sinks, id, origin);
    for policy in policies {
        let generation = policy.current();
        let began = line.clock().or_else(|| is_watched().then(Instant::now));
        let result = generation.on_connect(worker.index, origin).await;
        if is_watched() {
            let decide_us = began.map_or(0, |began| micros(began.elapsed()));
            let told = result.as_ref().map(|admittance| (admittance as &dyn std::fmt::Display, &[][..]));
            tell(&generation, &id, format_args!("client {}", origin.client_ip()), told, decide_us);
        }
        line.set(|r| {
            r.policy = Some(Arc::clone(generation.policy()));
            r.generation = Some(generation.number());
            r.decide_us = Some(r.decide_us.unwrap_or(0) + began.map_or(0, |began| micros(began.elapsed())));
        });
        match result.and_then(|admittance| fitting(&generation, admittance, &settings.targets)) {
            Ok(admittance) => {
                line.set(|r| r.decision = Some(admittance.word()));
                match admittance {
                    Admittance::Accept => {}
                    Admittance::Handoff(handoff) => {
                        let (settings, generation) = (&*settings, &*generation);
                        hand_over(client, &handoff, Asked { worker, settings, generation, id, origin, guard, line })
                            .await;
                        return None;
                    }
                    // A line that says nothing else says `aborted`.
                    Admittance::Reject => return None,
                }
            }
            Err(failure) => {
                let error = failure.to_string();
                say_failed(&generation, "on-connect", &id, &failure, &error);
                line.set(|r| (r.outcome, r.error) = (Outcome::PolicyError, Some(error)));
                if !is_passed_over(&generation, &failure) {
                    return None;
                }
            }
        }
    }
    line.forget();
    Some(client)
}

/// A handoff that cannot be made of a client of whom nothing was read is a value that cannot be used.
fn fitting(
    generation: &Generation,
    admittance: Admittance,
    targets: &target::Table,
) -> Result<Admittance, PolicyError> {
    let reason = match &admittance {
        Admittance::Handoff(handoff) => misfit(handoff, targets),
        Admittance::Accept | Admittance::Reject => None,
    };
    reason.map_or(Ok(admittance), |reason| Err(generation.misfit("on-connect", reason)))
}

fn misfit(handoff: &Handoff, targets: &target::Table) -> Option<&'static str> {
    if handoff.relay == RelayMode::Always {
        return Some("relay always is not offered by this version");
    }
    hand_over::names(handoff).filter_map(|name| targets.dialect(name)).find_map(|dialect| match dialect {
        Dialect::Datagram => Some("the dialect datagram for an untouched connection: its message is a request's head"),
        Dialect::Fdpass if !handoff.data.is_empty() => Some("data in the dialect fdpass"),
        _ => None,
    })
}

/// Who decided about a connection, and what it is said on.
struct Asked<'a> {
    worker: &'a Arc<Worker>,
    settings: &'a Settings,
    generation: &'a Generation,
    id: Id,
    origin: &'a Origin,
    guard: &'a Guard,
    line: Line,
}

impl Asked<'_> {
    /// Says that a target did not take the client.
    fn not_handed_over(&mut self, target: &str, outcome: Outcome, error: String) {
        let (policy, generation) = (self.generation.policy(), self.generation.number());
        tracing::warn!(%policy, generation, request = %self.id, hook = "on-connect", target_name = target, error, "not handed over");
        self.line.set(|r| (r.outcome, r.error, r.to) = (outcome, Some(error), Some(target.to_owned())));
    }
}

/// Hands the untouched client over, to the alternates if need be. It is closed where nobody takes it.
async fn hand_over(client: Client, handoff: &Handoff, mut asked: Asked<'_>) {
    let (table, worker) = (&asked.settings.targets, asked.worker);
    let options = &table.options;
    let mut targets = Vec::new();
    for name in hand_over::names(handoff) {
        match table.find(name, |name| asked.generation.may_name(name)) {
            Ok(target) => targets.push(target),
            Err(error) => return asked.not_handed_over(name, Outcome::PolicyError, chain(&error)),
        }
    }
    let (bytes, bytes_max) = (handoff.data.len(), options.data_bytes_max);
    if bytes > bytes_max {
        let error = format!("{bytes} bytes of data, over {bytes_max} (handoff_data_bytes_max)");
        return asked.not_handed_over(&handoff.target, Outcome::Refused, error);
    }
    let message = Message::new(&handoff.data[..]);
    let until = handoff.timeout.map(|timeout| tokio::time::Instant::now() + timeout);
    let (began, mut metadata) = (Instant::now(), None);
    // Nobody has read anything of it.
    let (mut socket, _) = client.into_parts();
    for target in targets {
        let begin = |task| asked.guard.attend(task);
        let by = target::Worker { index: worker.index, beat: &worker.beat, begin: &begin };
        let native = (target.dialect() == Dialect::Baton).then(|| channel::Parts {
            metadata: metadata
                .get_or_insert_with(|| metadata::encode_untouched(asked.id, asked.origin, handoff, asked.generation)),
            data: &handoff.data,
            preread: [&[], &[]],
            has_head: false,
        });
        let key = asked.origin.client_ip();
        let offer = Offer { message: &message, native, head: None, key: Some(&key) };
        let tried = target.hand_over(socket, offer, options, until, by).await;
        asked.line.set(|r| {
            r.to = Some(target.name().to_owned());
            r.attempts += tried.attempts;
            r.daemons_tried += tried.attempts;
            r.handoff_us = Some(micros(began.elapsed()));
        });
        match tried.result {
            Ok(taken) => {
                asked.line.set(|r| r.outcome = Outcome::HandedOff);
                if let Taken::Reporting(taken) = taken {
                    let reported =
                        Reported::new(Account::new(asked.line), asked.id, asked.origin, worker, asked.guard, true);
                    // Where no word will come, the line is written with what is known, by its being dropped.
                    drop(taken.keep(Box::new(reported)));
                }
                return;
            }
            Err(SendError::Refused { client, stage, source }) => {
                let error = format!("{}: {}", stage.as_str(), chain(&source));
                asked.not_handed_over(target.name(), Outcome::Refused, error);
                socket = client;
            }
            // Whoever reads the message later shall meet a dead socket.
            Err(SendError::Unread(unread)) => {
                let (outcome, error) = match unread.reset() {
                    Sealed::Reset => (Outcome::Refused, "unread at the deadline (ack_timeout); reset"),
                    Sealed::ClientGone => (Outcome::ClientGone, "unread at the deadline; the client has gone"),
                    _ => (Outcome::Unanswered, "fate unknown: closed"),
                };
                return asked.not_handed_over(target.name(), outcome, error.to_owned());
            }
            Err(error) => return asked.not_handed_over(target.name(), Outcome::Unanswered, chain(&error)),
        }
    }
}
