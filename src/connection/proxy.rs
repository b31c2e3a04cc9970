//! A request that a server answers through us: asked, its answer judged before the client has seen a byte of it, relayed.
//!
//! Until the first byte of an answer the client can be answered otherwise: by an error, by another server, by a daemon that
//! it is handed over to. From that byte on it gets the rest, or sees that the rest is missing.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hyper::header::CONTENT_LENGTH;

use super::Serving;
use super::internal::Internal;
use super::refused::ASKED_COUNT_MAX;
use super::response::Judged;
use crate::client::Client;
use crate::decision::{Action, Outcome, Proxy};
use crate::exchange::{Asking, CutShort, Exchange, Head, Interrupted};
use crate::http::body::Framing;
use crate::http::forward::{self, Expect};
use crate::policy::{FailureStage, Generation, HandoffFailure};
use crate::request::Request;
use crate::respond;
use crate::route::Route;
use crate::upstream::{Answer, Fault, Interims, Question, Reply, Source, Upstream};

/// Servers that are asked about one request, one after the other, because an answer, or a policy about it, named the next.
const ROUNDS_MAX: usize = 5;

/// What is to be asked next, of whom.
pub(super) struct Round<'a> {
    pub(super) proxy: Cow<'a, Proxy>,
    /// Who decided so; `None`: the route, or an application.
    pub(super) by: Option<Arc<Generation>>,
    /// The route's path, which an upstream's path inside replaces.
    pub(super) mount: String,
    /// The body has gone to somebody before: nothing is left of it, and the method is one that has none.
    pub(super) is_repeated: bool,
}

/// Who made an answer that is relayed.
struct From<'a> {
    /// `None`: we did.
    upstream: Option<&'a Upstream>,
    silence: Duration,
    outcome: Outcome,
}

impl Serving<'_> {
    /// Lets a server answer; returns the client when its connection goes on.
    pub(super) async fn proxy(
        &mut self,
        exchange: Exchange,
        request: &Arc<Request>,
        proxy: &Proxy,
        by: Option<Arc<Generation>>,
    ) -> Option<Client> {
        if forward::is_last(request.head.method(), request.head.fields()) {
            // We are who it is for (RFC 9110 §7.6.2), and we have nothing to say of ourselves. TRACE would show what others
            // have added to the request.
            let nothing = crate::http::response::Answer { status: 200, fields: Vec::new(), body: Vec::new() };
            return match request.head.method() {
                "OPTIONS" => self.answer(exchange, Outcome::Responded, &nothing).await,
                _ => self.fail(exchange, request, Outcome::Responded, 501).await,
            };
        }
        let mut exchange = exchange;
        let mount = self.route.map_or("/", Route::mount).to_owned();
        // Behind an answer that led to a handoff which nobody took.
        let is_repeated = exchange.has_no_body_left() && request.head.framing() != Framing::None;
        let mut round = Round { proxy: Cow::Borrowed(proxy), by, mount, is_repeated };
        let mut asked = 0;
        for _ in 0..ROUNDS_MAX {
            let name = &round.proxy.upstream;
            let may_ask = round.by.as_ref().is_none_or(|by| by.may_proxy_to(name));
            let upstream = self.settings.upstreams.get(name).filter(|_| may_ask).map(Arc::clone);
            self.line.set(|r| r.to = Some(name.clone()));
            let Some(upstream) = upstream else {
                let error = if may_ask { "no such upstream" } else { "the policy may not name it (policy.upstreams)" };
                let (policy, generation) =
                    (round.by.as_ref().map(|g| g.policy().as_ref()), round.by.as_ref().map(|g| g.number()));
                tracing::warn!(policy, generation, request = %request.id, upstream = %name, error, "not proxied");
                self.line.set(|r| r.error = Some(error.to_owned()));
                return self.fail(exchange, request, Outcome::PolicyError, 403).await;
            };
            let began = Instant::now();
            let answer = match self.ask_upstream(&mut exchange, request, &upstream, &round).await {
                Ok(Reply::Answer(answer)) => answer,
                Ok(Reply::Switched(fields, tunnel)) => {
                    self.tunnel(exchange, &fields, tunnel, upstream.options().tunnel_timeout).await;
                    return None;
                }
                Err(Interrupted::Fault(fault)) if round.by.as_ref().is_some_and(|by| by.hears_of_failures()) => {
                    match Box::pin(self.after_fault(exchange, request, &upstream, fault, &mut round, &mut asked)).await
                    {
                        Ok(ours) => exchange = *ours,
                        Err(client) => return client,
                    }
                    continue;
                }
                Err(interrupted) => return self.interrupted(exchange, request, &upstream, interrupted).await,
            };
            match self.judge(&mut exchange, request, &upstream, answer, &round, began.elapsed()).await {
                Judged::Abort => {
                    self.line.set(|r| r.outcome = Outcome::Aborted);
                    return None;
                }
                Judged::Deliver(answer) => match self.route.and_then(|route| route.filter.as_deref()) {
                    Some(filter) if answer.status == 200 => {
                        return self.filter_answer(exchange, request, filter, &upstream, answer).await;
                    }
                    _ => return self.deliver(exchange, request, &upstream, answer).await,
                },
                Judged::Fail(outcome, status) => return self.fail(exchange, request, outcome, status).await,
                Judged::Handoff(handoff, by) => {
                    return Box::pin(self.hand_over(exchange, request, &handoff, by.as_ref())).await;
                }
                Judged::Internal(target, kept) => match self.internal(exchange, request, &target, &kept).await {
                    Internal::Over(client) => return client,
                    Internal::Proxy(ours, proxy, mount) => {
                        exchange = *ours;
                        round = Round { proxy: Cow::Owned(proxy), by: None, mount, is_repeated: true };
                    }
                },
                Judged::Proxy(proxy, by) => {
                    let Round { mount, .. } = round;
                    round = Round { proxy: Cow::Owned(proxy), by, mount, is_repeated: true };
                }
                Judged::Respond(respond) => {
                    return self.answer(exchange, Outcome::Responded, &respond::answer(&respond)).await;
                }
            }
        }
        let error = format!("over {ROUNDS_MAX} upstreams, one after the other");
        tracing::warn!(request = %request.id, error, "not proxied");
        self.line.set(|r| r.error = Some(error));
        self.fail(exchange, request, Outcome::UpstreamError, 502).await
    }

    /// Asks the policy that named an upstream what to do now that it has failed. Returns the exchange for the next round.
    ///
    /// # Errors
    /// The request is over. The client is there if its connection goes on.
    async fn after_fault(
        &mut self,
        mut exchange: Exchange,
        request: &Arc<Request>,
        upstream: &Upstream,
        fault: Fault,
        round: &mut Round<'_>,
        asked: &mut u32,
    ) -> Result<Box<Exchange>, Option<Client>> {
        let by = round.by.clone().expect("a policy named it");
        *asked += 1;
        let failure = HandoffFailure {
            target: upstream.options().name.clone(),
            stage: FailureStage::Upstream,
            errno: None,
            message: fault.to_string(),
            attempt: *asked,
            retryable: true,
        };
        let action = match *asked {
            1..=ASKED_COUNT_MAX => self.ask_about_failure(&failure, Some(&mut exchange), request, &by).await,
            _ => Ok(None),
        };
        let Ok(action) = action else {
            self.line.set(|r| r.outcome = Outcome::ClientGone);
            return Err(None);
        };
        if !matches!(action, None | Some(Action::Pass(_))) {
            // Whoever gives up says so itself.
            self.say_fault(request, upstream, &fault);
            self.line.set(|r| r.error = Some(fault.to_string()));
        }
        match action {
            Some(Action::Abort) => {
                self.line.set(|r| r.outcome = Outcome::Aborted);
                Err(None)
            }
            Some(Action::Handoff(handoff)) => match self.finish_body(&mut exchange).await {
                Ok(()) => Err(Box::pin(self.hand_over(exchange, request, &handoff, Some(&by))).await),
                Err((outcome, status)) => Err(self.fail(exchange, request, outcome, status).await),
            },
            // What the first one was sent of a body cannot be sent again.
            Some(Action::Proxy(proxy)) if request.head.framing() == Framing::None => {
                round.proxy = Cow::Owned(proxy);
                Ok(Box::new(exchange))
            }
            Some(Action::Respond(respond)) => {
                Err(self.answer(exchange, Outcome::Responded, &respond::answer(&respond)).await)
            }
            Some(Action::Pass(_) | Action::Proxy(_)) | None => {
                Err(self.interrupted(exchange, request, upstream, fault.into()).await)
            }
        }
    }

    /// Asks a server, and does meanwhile what is to be done for the client.
    async fn ask_upstream(
        &mut self,
        exchange: &mut Exchange,
        request: &Arc<Request>,
        upstream: &Upstream,
        round: &Round<'_>,
    ) -> Result<Reply, Interrupted> {
        let options = upstream.options();
        let body = match round.is_repeated {
            true => Source::empty(),
            false => self.body_for(exchange, upstream).await?,
        };
        let client = request.client(&self.settings.trusted_proxies);
        let may_switch = self.route.is_none_or(|route| route.upgrade);
        let question = Question {
            mount: &round.mount,
            path_and_query: round.proxy.path_and_query.as_deref(),
            method: (round.is_repeated && request.head.method() != "HEAD").then_some("GET"),
            edits: &round.proxy.request,
            expect: if body.length() == Some(0) || upstream.is_fastcgi() { Expect::Drop } else { Expect::Keep },
            has_body: !round.is_repeated && request.head.framing() != Framing::None,
            wants_websocket: !round.is_repeated && may_switch && request.wants_websocket(),
            ..Question::new(request, &client)
        };
        let interims = Interims::new(options.interim_max);
        let how = Asking {
            head_timeout: round.proxy.timeout.unwrap_or(options.head_timeout),
            interims: interims.clone(),
            is_continue_forwarded: !upstream.is_fastcgi(),
        };
        let result = exchange.asking(upstream.ask(&question, body, &interims), &how, &self.settings.limits).await;
        self.line.set(|r| r.attempts += question.attempts.load(Ordering::Relaxed));
        result
    }

    /// The request's body, for an upstream.
    pub(super) async fn body_for(&self, exchange: &mut Exchange, upstream: &Upstream) -> Result<Source, Interrupted> {
        let limits = &self.settings.limits;
        if upstream.is_fastcgi() { exchange.spool_body(limits).await } else { Ok(exchange.open_body(limits)?) }
    }

    /// Answers a request that no upstream has answered.
    pub(super) async fn interrupted(
        &mut self,
        exchange: Exchange,
        request: &Request,
        upstream: &Upstream,
        why: Interrupted,
    ) -> Option<Client> {
        let error = why.to_string();
        let (outcome, status) = match &why {
            Interrupted::ClientGone => (Outcome::ClientGone, None),
            Interrupted::Fault(Fault::BadRequest(_)) => (Outcome::ClientError, Some(400)),
            Interrupted::Fault(fault) => {
                self.say_fault(request, upstream, fault);
                (Outcome::UpstreamError, fault.status())
            }
            Interrupted::Upload(fault) => (Outcome::ClientError, fault.status()),
        };
        self.line.set(|r| (r.error, r.outcome) = (Some(error), outcome));
        match status {
            None => {
                self.line.set(|r| r.outcome = Outcome::ClientGone);
                None
            }
            Some(503) => {
                let page = self.unavailable(request, None);
                self.answer(exchange, outcome, &page).await
            }
            Some(status) => self.fail(exchange, request, outcome, status).await,
        }
    }

    /// Relays an answer to the client.
    pub(super) async fn deliver(
        &mut self,
        exchange: Exchange,
        request: &Request,
        upstream: &Upstream,
        answer: Answer,
    ) -> Option<Client> {
        self.deliver_as(Outcome::Proxied, exchange, request, upstream, answer).await
    }

    /// Relays the answer of an authorizer that does not let the request through.
    pub(super) async fn deliver_refusal(
        &mut self,
        exchange: Exchange,
        request: &Request,
        upstream: &Upstream,
        answer: Answer,
    ) -> Option<Client> {
        self.deliver_as(Outcome::Responded, exchange, request, upstream, answer).await
    }

    /// What an upstream says to us, and not to the client, stays here, whoever it is.
    async fn deliver_as(
        &mut self,
        outcome: Outcome,
        exchange: Exchange,
        request: &Request,
        upstream: &Upstream,
        answer: Answer,
    ) -> Option<Client> {
        let Answer { version, status, fields, body } = answer;
        let fields = match crate::upstream::end_to_end(fields, version) {
            Ok(fields) => fields,
            Err(error) => {
                let why = Interrupted::Fault(Fault::Broken(error));
                return self.interrupted(exchange, request, upstream, why).await;
            }
        };
        let answer = Answer { version, status, fields, body };
        let from = From { upstream: Some(upstream), silence: upstream.options().body_timeout, outcome };
        self.relay(exchange, request, &from, answer).await
    }

    /// Relays an answer of our own, whose body is not there yet.
    pub(super) async fn deliver_own(
        &mut self,
        exchange: Exchange,
        request: &Request,
        answer: Answer,
    ) -> Option<Client> {
        let silence = self.settings.limits.body_timeout;
        let from = From { upstream: None, silence, outcome: Outcome::Responded };
        self.relay(exchange, request, &from, answer).await
    }

    async fn relay(
        &mut self,
        exchange: Exchange,
        request: &Request,
        from: &From<'_>,
        answer: Answer,
    ) -> Option<Client> {
        let Answer { status, fields, body, .. } = answer;
        let length = fields.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let head = Head { status, fields, length, with_trailers: request.takes_trailers() };
        let relayed = match exchange.relay(&head, body, from.silence, &self.settings.limits, self.guard).await {
            Ok(relayed) => relayed,
            Err((exchange, fault)) => {
                return match from.upstream {
                    Some(upstream) => self.interrupted(*exchange, request, upstream, fault.into()).await,
                    None => {
                        let error = fault.to_string();
                        tracing::warn!(request = %request.id, error, "file not served");
                        self.line.set(|r| r.error = Some(error));
                        self.fail(*exchange, request, Outcome::Responded, 503).await
                    }
                };
            }
        };
        self.line.set(|r| {
            (r.outcome, r.status) = (from.outcome, Some(status));
            r.bytes_in += relayed.body_bytes;
            r.bytes_out += relayed.bytes_out;
        });
        match &relayed.cut {
            None => {}
            Some(CutShort::Client(error)) => {
                self.line.set(|r| (r.outcome, r.error) = (Outcome::ClientGone, Some(error.to_string())));
            }
            Some(CutShort::Upstream(fault)) => {
                let error = format!("cut: {fault}");
                let outcome = match from.upstream {
                    Some(upstream) => {
                        self.say_fault(request, upstream, fault);
                        Outcome::UpstreamError
                    }
                    None => {
                        tracing::warn!(request = %request.id, error, "file not served to its end");
                        Outcome::Aborted
                    }
                };
                self.line.set(|r| (r.outcome, r.error) = (outcome, Some(error)));
            }
        }
        self.go_on(relayed.then, relayed.body_bytes).await
    }

    fn say_fault(&self, request: &Request, upstream: &Upstream, fault: &Fault) {
        let (upstream, error) = (&upstream.options().name, fault.to_string());
        tracing::warn!(request = %request.id, upstream = %upstream, error, "upstream failed");
    }
}
