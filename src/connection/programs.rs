//! FastCGI programs that stand around an answer: one that says whether there is to be any, one that changes it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use hyper::header::LAST_MODIFIED;

use super::Serving;
use crate::client::Client;
use crate::exchange::{Asking, Exchange, Interrupted};
use crate::fastcgi::Verdict;
use crate::http::body::Framing;
use crate::request::Request;
use crate::upstream::{Answer, Data, Interims, Question, Source, Upstream, spooled};

/// How long an answer of unknown length may take to be kept for a filter. It is bounded in bytes, and its upstream must not be
/// silent; this is for one that drips.
const KEEPING_MAX: Duration = Duration::from_secs(60 * 60);

/// What an authorizer has decided.
pub(super) enum Authorized {
    /// The request may go on; the exchange does.
    Through(Box<Exchange>),
    /// It may not, and is over. The client is there if its connection goes on.
    Over(Option<Client>),
}

impl Serving<'_> {
    /// Asks an authorizer, before anybody else; what it sets is put into the request. Without its word nobody gets on.
    pub(super) async fn authorize(
        &mut self,
        mut exchange: Exchange,
        request: &mut Arc<Request>,
        name: &str,
    ) -> Authorized {
        let upstream = self.program(name);
        self.line.set(|r| r.to = Some(name.to_owned()));
        let result = {
            let client = request.client(&self.settings.trusted_proxies);
            let question = Question::new(request, &client);
            let options = upstream.options();
            let interims = Interims::new(options.interim_max);
            let how = Asking { head_timeout: options.head_timeout, interims, is_continue_forwarded: true };
            let result = exchange.asking(upstream.authorize(&question), &how, &self.settings.limits).await;
            self.line.set(|r| r.attempts += question.attempts.load(Ordering::Relaxed));
            result
        };
        match result {
            Ok(Verdict::Through(variables)) => {
                // Whatever is said of the request from here on is about somebody else.
                self.line.set(|r| (r.to, r.attempts) = (None, 0));
                Arc::get_mut(request).expect("nobody else has it yet").variables = variables;
                Authorized::Through(Box::new(exchange))
            }
            Ok(Verdict::Refused(answer)) => {
                Authorized::Over(self.deliver_refusal(exchange, request, &upstream, answer).await)
            }
            Err(interrupted) => Authorized::Over(self.interrupted(exchange, request, &upstream, interrupted).await),
        }
    }

    /// Has `data` changed by a filter, and relays what it makes of it. With `has_body` it is given the request's body too.
    pub(super) async fn filter(
        &mut self,
        mut exchange: Exchange,
        request: &Request,
        name: &str,
        data: Data,
        has_body: bool,
    ) -> Option<Client> {
        let upstream = self.program(name);
        self.line.set(|r| r.to = Some(name.to_owned()));
        match self.ask_filter(&mut exchange, request, &upstream, data, has_body).await {
            Ok(answer) => self.deliver(exchange, request, &upstream, answer).await,
            Err(interrupted) => self.interrupted(exchange, request, &upstream, interrupted).await,
        }
    }

    async fn ask_filter(
        &mut self,
        exchange: &mut Exchange,
        request: &Request,
        upstream: &Upstream,
        data: Data,
        has_body: bool,
    ) -> Result<Answer, Interrupted> {
        let body = if has_body { self.body_for(exchange, upstream).await? } else { Source::empty() };
        let client = request.client(&self.settings.trusted_proxies);
        let has_body = has_body && request.head.framing() != Framing::None;
        let question = Question { has_body, ..Question::new(request, &client) };
        let options = upstream.options();
        let interims = Interims::new(options.interim_max);
        let how = Asking { head_timeout: options.head_timeout, interims, is_continue_forwarded: false };
        let result = exchange.asking(upstream.filter(&question, body, data), &how, &self.settings.limits).await;
        self.line.set(|r| r.attempts += question.attempts.load(Ordering::Relaxed));
        result
    }

    /// Has the answer of an upstream changed by a filter.
    pub(super) async fn filter_answer(
        &mut self,
        mut exchange: Exchange,
        request: &Request,
        filter: &str,
        upstream: &Upstream,
        answer: Answer,
    ) -> Option<Client> {
        let Answer { fields, mut body, .. } = answer;
        let date = fields.get(LAST_MODIFIED).and_then(|value| httpdate::parse_http_date(value.to_str().ok()?).ok());
        let modified = date.unwrap_or_else(SystemTime::now);
        let source = match body.length() {
            Some(_) => Source::body(body),
            None => {
                let limits = &self.settings.limits;
                let keeping = spooled(&mut *body, upstream.options().body_timeout, limits.body_bytes_max);
                // Meanwhile the client may leave, and what it still has to say goes on to the upstream.
                let how =
                    Asking { head_timeout: KEEPING_MAX, interims: Interims::new(0), is_continue_forwarded: false };
                match exchange.asking(keeping, &how, limits).await {
                    Ok(source) => source,
                    Err(why) => return self.interrupted(exchange, request, upstream, why).await,
                }
            }
        };
        self.filter(exchange, request, filter, Data { source, modified }, false).await
    }

    /// An upstream that the configuration has named, and was judged by.
    fn program(&self, name: &str) -> Arc<Upstream> {
        Arc::clone(self.settings.upstreams.get(name).expect("the configuration was judged by it"))
    }
}
