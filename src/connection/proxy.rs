//! A request that a server answers through us: asked, its answer judged before the client has seen a byte of it, relayed.
//!
//! Until the first byte of an answer the client can be answered otherwise: by an error, by another server, by a daemon that
//! it is handed over to. From that byte on it gets the rest, or sees that the rest is missing.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use super::Serving;
use super::response::Judged;
use crate::client::Client;
use crate::decision::{Outcome, Proxy};
use crate::exchange::{Asking, CutShort, Exchange, Head, Interrupted};
use crate::http::forward::Expect;
use crate::policy::Generation;
use crate::request::Request;
use crate::respond;
use crate::upstream::{Answer, Body, Fault, Interims, Question, Reply, Source, Upstream};

/// Servers that are asked about one request, one after the other, because an answer, or a policy about it, named the next.
const ROUNDS_MAX: usize = 5;

/// What is to be asked next, of whom.
pub(super) struct Round<'a> {
    pub(super) proxy: Cow<'a, Proxy>,
    /// Who decided so; `None`: the route, or an application.
    pub(super) by: Option<Arc<Generation>>,
    /// The body has gone to somebody before: nothing is left of it, and the method is one that has none.
    pub(super) is_repeated: bool,
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
        let mut exchange = exchange;
        let mut round = Round { proxy: Cow::Borrowed(proxy), by, is_repeated: false };
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
                Err(interrupted) => return self.interrupted(exchange, request, &upstream, interrupted).await,
            };
            match self.judge(&mut exchange, request, &upstream, answer, &round, began.elapsed()).await {
                Judged::Abort => {
                    self.line.set(|r| r.outcome = Outcome::Aborted);
                    return None;
                }
                Judged::Deliver(answer) => return self.deliver(exchange, request, &upstream, answer).await,
                Judged::Fail(outcome, status) => return self.fail(exchange, request, outcome, status).await,
                Judged::Handoff(handoff, by) => {
                    return Box::pin(self.hand_over(exchange, request, &handoff, by.as_ref())).await;
                }
                Judged::Proxy(proxy, by) => {
                    round = Round { proxy: Cow::Owned(proxy), by, is_repeated: true };
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

    /// Asks a server, and does meanwhile what is to be done for the client.
    async fn ask_upstream(
        &mut self,
        exchange: &mut Exchange,
        request: &Arc<Request>,
        upstream: &Upstream,
        round: &Round<'_>,
    ) -> Result<Reply, Interrupted> {
        let options = upstream.options();
        let limits = &self.settings.limits;
        let body = if round.is_repeated { Source::empty() } else { exchange.open_body(limits)? };
        let client = request.client(&self.settings.trusted_proxies);
        let wants_websocket = !round.is_repeated && self.allows_upgrade && request.wants_websocket();
        let question = Question {
            request,
            mount: request.mount(),
            path_and_query: round.proxy.path_and_query.as_deref(),
            method: (round.is_repeated && request.head.method() != "HEAD").then_some("GET"),
            edits: &round.proxy.request,
            client: &client,
            expect: if body.length() == Some(0) { Expect::Drop } else { Expect::Keep },
            wants_websocket,
            attempts: AtomicU32::new(0),
        };
        let interims = Interims::new(options.interim_max);
        let how = Asking {
            head_timeout: round.proxy.timeout.unwrap_or(options.head_timeout),
            interims: interims.clone(),
            is_continue_forwarded: true,
        };
        let result = exchange.asking(upstream.ask(&question, body, &interims), &how, limits).await;
        self.line.set(|r| r.attempts += question.attempts.load(Ordering::Relaxed));
        result
    }

    /// Answers a request that no upstream has answered.
    async fn interrupted(
        &mut self,
        exchange: Exchange,
        request: &Request,
        upstream: &Upstream,
        why: Interrupted,
    ) -> Option<Client> {
        let error = why.to_string();
        let (outcome, status) = match &why {
            Interrupted::ClientGone => (Outcome::ClientGone, None),
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
                let page = self.unavailable(request);
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
        let Answer { status, fields, body } = answer;
        let fields = match crate::upstream::end_to_end(&fields) {
            Ok(fields) => fields,
            Err(error) => {
                let why = Interrupted::Fault(Fault::Broken(error));
                return self.interrupted(exchange, request, upstream, why).await;
            }
        };
        let length = fields.get("content-length").and_then(|value| value.to_str().ok()?.parse().ok());
        let head = Head { status, fields, length, with_trailers: request.takes_trailers() };
        self.relay(exchange, request, upstream, &head, body).await
    }

    async fn relay(
        &mut self,
        exchange: Exchange,
        request: &Request,
        upstream: &Upstream,
        head: &Head,
        body: Box<dyn Body>,
    ) -> Option<Client> {
        let (limits, silence) = (&self.settings.limits, upstream.options().body_timeout);
        let relayed = match exchange.relay(head, body, silence, limits, self.guard).await {
            Ok(relayed) => relayed,
            Err((exchange, fault)) => {
                return self.interrupted(*exchange, request, upstream, Interrupted::Fault(fault)).await;
            }
        };
        self.line.set(|r| {
            (r.outcome, r.status) = (Outcome::Proxied, Some(head.status));
            r.bytes_in += relayed.body_bytes;
            r.bytes_out += relayed.bytes_out;
        });
        match &relayed.cut {
            None => {}
            Some(CutShort::Client(error)) => {
                self.line.set(|r| (r.outcome, r.error) = (Outcome::ClientGone, Some(error.to_string())));
            }
            Some(CutShort::Upstream(fault)) => {
                self.say_fault(request, upstream, fault);
                let error = format!("cut: {fault}");
                self.line.set(|r| (r.outcome, r.error) = (Outcome::UpstreamError, Some(error)));
            }
        }
        self.go_on(relayed.then, relayed.body_bytes).await
    }

    fn say_fault(&self, request: &Request, upstream: &Upstream, fault: &Fault) {
        let (upstream, error) = (&upstream.options().name, fault.to_string());
        tracing::warn!(request = %request.id, upstream = %upstream, error, "upstream failed");
    }
}
