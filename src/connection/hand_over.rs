//! A handoff that was decided: to its target, then to the alternates; and an answer when nobody took the client.
//!
//! Where the gateway writes the response's head, the client is out of reach of any answer from the head's first byte on.
//! So everything that can be judged before is: names, lengths, whether the parts fit each other and every daemon that may
//! be tried. What fails behind the head ends in a reset, which no client takes for a whole response.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::Serving;
use super::account::Account;
use super::metadata::{self, About};
use super::refused::{Held, Refused, UNREAD};
use super::reported::{self, Reported};
use crate::access_log::{Line, micros};
use crate::client::Client;
use crate::decision::{Handoff, Outcome, RelayMode};
use crate::exchange::{Closing, Exchange};
use crate::handoff::channel;
use crate::handoff::native::ledger::End;
use crate::handoff::{AddressError, Dialect, HeadBytes, Message, Refusal, SendError, Stage};
use crate::http::body::Framing;
use crate::http::response::encode_head;
use crate::log::chain;
use crate::pace::Pace;
use crate::policy::Generation;
use crate::request::Request;
use crate::target::{self, NameError, Offer, Taken, Target};

/// How long a connection is read that ended with the answer to a HEAD; in all, and without a byte.
const LINGER: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(5));
/// The same while the gateway drains.
const LINGER_DRAINING: Duration = Duration::from_secs(1);

/// The metadata by which a policy says what a daemon is chosen by.
const HASH_KEY: &str = "hash-key";

/// What became of a handoff.
pub(super) enum Tried {
    /// The request is over. The client is there if its connection goes on.
    Over(Option<Client>),
    /// No daemon took the client.
    Refused(Refused),
}

/// What the parts of a handoff cannot be together, or not with the daemons that it names; `None` when they fit.
pub(super) fn misfit(handoff: &Handoff, targets: &target::Table) -> Option<&'static str> {
    if handoff.relay == RelayMode::Always {
        return Some("relay always is not offered by this version");
    }
    if handoff.include_head && !handoff.data.is_empty() {
        return Some("include-head with data: the message is one or the other");
    }
    if handoff.response_head.as_ref().is_some_and(|head| !head.has_body()) {
        return Some("response-head with a status that has no body: there is nothing for a daemon to write");
    }
    if handoff.response_head.is_none() && !handoff.response_body.is_empty() {
        return Some("response-body without a response-head: it would stand before the daemon's");
    }
    let (mut writes_head, mut leaves_head) = (handoff.response_head.is_some(), false);
    // Names that lead nowhere are another matter, and found later.
    for dialect in names(handoff).filter_map(|name| targets.dialect(name)) {
        match dialect {
            Dialect::Fdpass if handoff.include_head => return Some("include-head in the dialect fdpass"),
            Dialect::Fdpass if !handoff.data.is_empty() => return Some("data in the dialect fdpass"),
            Dialect::Datagram if !handoff.data.is_empty() => {
                return Some("data in the dialect datagram, whose message is the request's head");
            }
            Dialect::Fdpass => writes_head = true,
            _ => leaves_head = handoff.response_head.is_none(),
        }
    }
    (writes_head && leaves_head).then_some(
        "daemons that write the response's head among alternates that do not (fdpass): a response-head makes them alike",
    )
}

pub(super) fn names(handoff: &Handoff) -> impl Iterator<Item = &String> {
    std::iter::once(&handoff.target).chain(&handoff.alternates)
}

/// What of a handoff is the same for every daemon that is tried.
struct Parts<'a> {
    message: Message,
    /// What a datagram is, made when there is one to be sent.
    datagram: Option<Message>,
    /// What the native dialect says, made when there is a daemon that speaks it.
    metadata: Option<Vec<u8>>,
    about: About<'a>,
    head: Option<(u16, HeadBytes)>,
    /// What a daemon is chosen by.
    key: Option<String>,
    until: Option<tokio::time::Instant>,
}

impl Parts<'_> {
    /// What goes to a target: its message, and the response's head that goes before. `preread` is what was read of the
    /// client behind the request's head.
    fn to<'p>(&'p mut self, target: &Target, request: &'p Request, preread: &'p [u8]) -> Offer<'p> {
        let head = self.head.as_mut().map(|(_, head)| head);
        let (about, has_head) = (&self.about, head.is_some());
        let native = (target.dialect() == Dialect::Baton).then(|| channel::Parts {
            metadata: self.metadata.get_or_insert_with(|| metadata::encode(request, about)),
            data: if about.handoff.include_head { &[] } else { &about.handoff.data },
            preread: [if about.handoff.include_head { request.head.bytes() } else { &[] }, preread],
            has_head,
        });
        let message = match target.dialect() {
            Dialect::Datagram => {
                self.datagram.get_or_insert_with(|| Message::new([request.head.bytes(), preread].concat()))
            }
            _ => &self.message,
        };
        Offer { message, native, head, key: self.key.as_deref() }
    }

    /// The status of the head, and how much of it the client was sent; `None` when nothing was.
    fn written(&self) -> Option<(u16, u64)> {
        let (status, head) = self.head.as_ref()?;
        (head.written() > 0).then(|| (*status, head.written() as u64))
    }
}

impl Serving<'_> {
    /// Hands the client over, to the alternates if need be. Where nobody took it, `by`, the policy that decided so (`None`:
    /// the route), is asked what to do; at last the client is answered.
    pub(super) async fn hand_over(
        &mut self,
        exchange: Exchange,
        request: &Arc<Request>,
        handoff: &Handoff,
        by: Option<&Arc<Generation>>,
    ) -> Option<Client> {
        match self.try_targets(exchange, request, handoff, by.map(Arc::as_ref)).await {
            Tried::Over(client) => client,
            // Rare, and large beside the rest of the task: so it gets memory of its own.
            Tried::Refused(refused) => Box::pin(self.after_refusal(refused, request, by)).await,
        }
    }

    /// Hands the client over to the first of the targets that takes it.
    pub(super) async fn try_targets(
        &mut self,
        exchange: Exchange,
        request: &Request,
        handoff: &Handoff,
        by: Option<&Generation>,
    ) -> Tried {
        let options = &self.settings.targets.options;
        let targets = match self.targets(handoff, by) {
            Ok(targets) => targets,
            Err((name, error)) => {
                self.not_handed_over(request, name, by, chain(&error));
                return Tried::Over(self.fail(exchange, request, Outcome::PolicyError, 403).await);
            }
        };
        let has = |dialect| targets.iter().any(|target| target.dialect() == dialect);
        let data = if handoff.include_head { request.head.bytes() } else { &handoff.data };
        let longest = if has(Dialect::Datagram) { data.len().max(request.head.bytes().len()) } else { data.len() };
        if longest > options.data_bytes_max {
            let limit = options.data_bytes_max;
            let error = format!("{longest} bytes of data, over {limit} (handoff_data_bytes_max)");
            self.not_handed_over(request, &handoff.target, by, error);
            return Tried::Over(self.fail(exchange, request, Outcome::Refused, 500).await);
        }
        let has_no_body_left = exchange.has_no_body_left();
        let head = match &handoff.response_head {
            Some(head) => {
                let mut bytes = encode_head(head.status, &head.headers, &date());
                if request.head.method() != "HEAD" {
                    bytes.extend_from_slice(&handoff.response_body);
                }
                Some((head.status, bytes))
            }
            None => has(Dialect::Fdpass).then(|| (200, encode_head(200, &[], &date()))),
        };
        if let Some((status, head)) = &head
            && request.head.method() == "HEAD"
        {
            // Rare, and large beside the rest of the task: so it gets memory of its own.
            return Tried::Over(Box::pin(self.answer_head(exchange, *status, head)).await);
        }
        if !targets.iter().all(|target| target.dialect() == Dialect::Baton) {
            say_what_is_left_out(handoff, request, has_no_body_left);
        }
        let about = About { handoff, by, has_no_body_left, has_head: head.is_some() };
        let is_hashed = targets.iter().any(|target| target.wants_key());
        let parts = Parts {
            message: Message::new(data),
            datagram: None,
            metadata: None,
            about,
            head: head.map(|(status, bytes)| (status, HeadBytes::new(bytes))),
            key: is_hashed.then(|| key(handoff, request)),
            until: handoff.timeout.map(|timeout| tokio::time::Instant::now() + timeout),
        };
        self.send(exchange, request, parts, &targets, by).await
    }

    /// Answers HEAD with the head that a daemon's body would follow. Nobody is handed over.
    async fn answer_head(&mut self, exchange: Exchange, status: u16, head: &[u8]) -> Option<Client> {
        let (socket, _) = exchange.release();
        let mut client = Client::new(socket);
        let sent = client.write_all(head, &Pace::new(&self.settings.limits)).await;
        self.line.set(|r| {
            (r.outcome, r.status) = (Outcome::Responded, Some(status));
            match &sent {
                Ok(()) => r.bytes_out += head.len() as u64,
                Err((count, error)) => {
                    r.bytes_out += *count as u64;
                    (r.outcome, r.error) = (Outcome::ClientGone, Some(error.to_string()));
                }
            }
        });
        self.line.end();
        if sent.is_ok() {
            let guard = &mut *self.guard;
            let stop = async {
                guard.draining().await;
                tokio::time::sleep(LINGER_DRAINING).await;
            };
            client.linger(LINGER.1, LINGER.0, stop).await;
        }
        None
    }

    async fn send(
        &mut self,
        exchange: Exchange,
        request: &Request,
        mut parts: Parts<'_>,
        targets: &[Arc<Target>],
        by: Option<&Generation>,
    ) -> Tried {
        let began = self.line.clock();
        let (mut socket, state) = exchange.release();
        let (mut last, mut retry_after_s) = (None, None);
        let has_no_place = |target: &&Arc<Target>| !matches!(target.dialect(), Dialect::Baton | Dialect::Datagram);
        if !state.preread().is_empty()
            && let Some(target) = targets.iter().find(has_no_place)
        {
            // Its message has no place for what was read.
            let error = format!("{} bytes were read of the client and cannot go along", state.preread().len());
            self.not_handed_over(request, target.name(), by, error);
            return Tried::Over(self.fail(state.resume(socket), request, Outcome::Refused, 413).await);
        }
        for target in targets {
            let until = parts.until;
            let options = &self.settings.targets.options;
            let guard = &*self.guard;
            let begin = |task| guard.attend(task);
            let worker = target::Worker { index: self.worker.index, beat: &self.worker.beat, begin: &begin };
            let offer = parts.to(target, request, state.preread());
            let tried = target.hand_over(socket, offer, options, until, worker).await;
            retry_after_s = retry_after_s.max(tried.retry_after_s);
            let written = parts.written();
            self.line.set(|r| {
                r.to = Some(target.name().to_owned());
                r.attempts += tried.attempts;
                r.daemons_tried += tried.attempts;
                r.handoff_us = began.map(|began| micros(began.elapsed()));
                if let Some((status, bytes)) = written {
                    (r.status, r.bytes_out) = (Some(status), bytes);
                }
            });
            match tried.result {
                Ok(taken) => {
                    self.line.set(|r| {
                        r.outcome = Outcome::HandedOff;
                        r.bytes_in += state.body_bytes();
                    });
                    return Tried::Over(match taken {
                        Taken::Silently => None,
                        Taken::Reporting(taken) => self.taken(taken, request, state.wants_to_go_on()).await,
                    });
                }
                Err(SendError::Refused { client, stage, source }) => {
                    let message = chain(&source);
                    self.not_handed_over(request, target.name(), by, format!("{}: {message}", stage.as_str()));
                    socket = client;
                    let fault = match &source {
                        Refusal::TooLarge { .. } | Refusal::TooMuchData { .. } => Some((Outcome::Refused, 500)),
                        Refusal::Address(error) if error.is_forbidden() => Some((Outcome::PolicyError, 403)),
                        _ => None,
                    };
                    if written.is_none()
                        && let Some((outcome, status)) = fault
                    {
                        let exchange = state.resume(socket);
                        return Tried::Over(self.fail(exchange, request, outcome, status).await);
                    }
                    last = Some((Arc::clone(target), stage, errno(&source), message));
                    if fault.is_some() {
                        break;
                    }
                }
                Err(SendError::Unread(unread)) => {
                    let has_head = written.is_some();
                    // Of unknown fate nobody is asked: what there is to say is said at once or never.
                    if unread.is_fate_unknown() || by.is_none_or(|by| !by.hears_of_failures()) {
                        self.end_unread(unread, &state, has_head, target, request);
                        return Tried::Over(None);
                    }
                    let client = Held::Unread(unread, state, has_head);
                    let (target, message) = (Arc::clone(target), UNREAD.to_owned());
                    let stage = Stage::Acknowledge;
                    return Tried::Refused(Refused { client, target, stage, errno: None, message, retry_after_s });
                }
                Err(error) => {
                    let is_gone = matches!(error, SendError::ClientGone { .. });
                    self.not_handed_over(request, target.name(), by, chain(&error));
                    self.line.set(|r| {
                        r.outcome = if is_gone { Outcome::ClientGone } else { Outcome::Unanswered };
                        r.bytes_in += state.body_bytes();
                    });
                    return Tried::Over(None);
                }
            }
        }
        let (target, stage, errno, message) = last.expect("there is a target, and it has refused");
        let client = if parts.written().is_some() { Held::Begun(socket) } else { Held::Ours(state.resume(socket)) };
        Tried::Refused(Refused { client, target, stage, errno, message, retry_after_s })
    }

    /// What is done about a client that a daemon has and will report on: mostly somebody is left behind to hear it.
    async fn taken(&mut self, mut taken: channel::Taken, request: &Request, goes_on: bool) -> Option<Client> {
        if let Some(End { report, back }) = taken.end() {
            self.line.set(|record| reported::fill(record, &report, back.is_some()));
            self.line.end();
            let (socket, unread) = back?;
            let client = Client::with_preread(socket, unread);
            if goes_on {
                return Some(client);
            }
            // Rare, and large beside the rest of the task: so it gets memory of its own.
            Box::pin(Closing::new(client).linger(self.guard)).await;
            return None;
        }
        let account = std::mem::replace(&mut self.line, Account::new(Line::nobodys()));
        let reported = Reported::new(account, request.id, &request.origin, self.worker, self.guard, goes_on);
        // Where no word will come, the line is written with what is known, by its being dropped.
        drop(taken.keep(Box::new(reported)));
        None
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
        names(handoff).map(find).collect()
    }

    /// Says that a target did not take the client, in the log and in the request's line.
    fn not_handed_over(&mut self, request: &Request, target: &str, by: Option<&Generation>, error: String) {
        let (policy, generation) = (by.map(|g| g.policy().as_ref()), by.map(Generation::number));
        tracing::warn!(policy, generation, request = %request.id, target_name = target, error, "not handed over");
        self.line.set(|r| (r.error, r.to) = (Some(error), Some(target.to_owned())));
    }
}

/// Names what a daemon would know of in the native dialect, and does not in another.
fn say_what_is_left_out(handoff: &Handoff, request: &Request, has_no_body_left: bool) {
    let said = handoff.metadata.iter().map(|(name, _)| name);
    let names = said.chain(request.variables.iter().map(|(name, _)| name)).map(|name| name.escape_debug().to_string());
    let is_consumed = has_no_body_left && request.head.framing() != Framing::None;
    let names: Vec<_> = names.chain(is_consumed.then(|| "request-body".to_owned())).collect();
    if !names.is_empty() {
        let left_out = "metadata is left out: it travels by the native dialect only";
        tracing::debug!(request = %request.id, names = names.join(" "), "{left_out}");
    }
}

/// What a daemon is chosen by where `balance` is `hash`: the policy's word for it, else who asks.
fn key(handoff: &Handoff, request: &Request) -> String {
    let said = handoff.metadata.iter().find(|(name, _)| name == HASH_KEY);
    said.map_or_else(|| request.client_ip(), |(_, value)| value.clone())
}

fn errno(refusal: &Refusal) -> Option<i32> {
    match refusal {
        Refusal::Address(AddressError::Open(error)) | Refusal::Io(error) => error.raw_os_error(),
        _ => None,
    }
}

fn date() -> String {
    httpdate::fmt_http_date(SystemTime::now())
}
