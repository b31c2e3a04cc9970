//! Where an application's answer leads to another route of ours (`X-Accel-Redirect`).

use std::sync::Arc;

use hyper::HeaderMap;

use super::Serving;
use super::response::fields_of;
use crate::client::Client;
use crate::decision::{Action, Field, Outcome, Proxy, Respond};
use crate::exchange::Exchange;
use crate::files::Refusal;
use crate::http::path::normalise;
use crate::request::Request;
use crate::respond;
use crate::route::{Route, Standard};
use crate::upstream::Answer;

/// What became of it.
pub(super) enum Internal {
    /// The request is over. The client is there if its connection goes on.
    Over(Option<Client>),
    /// An upstream is asked next; beside it the path that its path inside replaces.
    Proxy(Box<Exchange>, Proxy, String),
}

impl Serving<'_> {
    /// Does what the internal route of that path does. What is kept of the application's fields stands in for the route's own.
    pub(super) async fn internal(
        &mut self,
        mut exchange: Exchange,
        request: &Arc<Request>,
        target: &str,
        kept: &HeaderMap,
    ) -> Internal {
        let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        let is_path = path.starts_with('/') && target.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
        let path = if is_path { normalise(path).ok() } else { None };
        let found = path.as_deref().and_then(|path| self.settings.routes.find_internal(request.head.host(), path));
        let (Some(path), Some(route @ Route { default: Some(default), .. })) = (&path, found) else {
            let error = "X-Accel-Redirect leads to no internal route";
            // Its query may be a secret of the application's.
            let path = target.split('?').next().unwrap_or_default();
            tracing::warn!(request = %request.id, path, error, "not redirected");
            self.line.set(|r| r.error = Some(error.to_owned()));
            return Internal::Over(self.fail(exchange, request, Outcome::UpstreamError, 404).await);
        };
        let asked = |proxy: &Proxy| {
            let query = query.map_or_else(String::new, |query| format!("?{query}"));
            (Proxy { path_and_query: Some(format!("{path}{query}")), ..proxy.clone() }, route.mount().to_owned())
        };
        match default {
            Standard::File(_, Some(fallback)) if fallback.is_first("GET", path) => {
                let (proxy, mount) = asked(&fallback.proxy);
                Internal::Proxy(Box::new(exchange), proxy, mount)
            }
            Standard::File(folder, fallback) => match self.file_at(request, route, folder, path).await {
                Ok(mut answer) => {
                    replace(&mut answer, kept);
                    Internal::Over(self.deliver_own(exchange, request, answer).await)
                }
                Err(Refusal { status: 404, error: None, .. }) if fallback.is_some() => {
                    let (proxy, mount) = asked(&fallback.as_ref().expect("it is there").proxy);
                    Internal::Proxy(Box::new(exchange), proxy, mount)
                }
                Err(refusal) => Internal::Over(self.no_file(exchange, request, refusal).await),
            },
            Standard::Action(Action::Proxy(proxy)) => {
                let (proxy, mount) = asked(proxy);
                Internal::Proxy(Box::new(exchange), proxy, mount)
            }
            Standard::Action(Action::Handoff(handoff)) => match self.finish_body(&mut exchange).await {
                Ok(()) => Internal::Over(Box::pin(self.hand_over(exchange, request, handoff, None)).await),
                Err((outcome, status)) => Internal::Over(self.fail(exchange, request, outcome, status).await),
            },
            Standard::Action(Action::Respond(respond)) => {
                let page = respond::answer(&with(respond, kept));
                Internal::Over(self.answer(exchange, Outcome::Responded, &page).await)
            }
            Standard::Action(Action::Abort | Action::Pass(_)) => unreachable!("no configuration says so"),
        }
    }
}

fn replace(answer: &mut Answer, kept: &HeaderMap) {
    for name in kept.keys() {
        answer.fields.remove(name);
    }
    for (name, value) in kept {
        answer.fields.append(name, value.clone());
    }
}

fn with(respond: &Respond, kept: &HeaderMap) -> Respond {
    let mut headers: Vec<Field> =
        respond.headers.iter().filter(|field| !kept.contains_key(&field.name)).cloned().collect();
    headers.extend(fields_of(kept));
    Respond { headers, ..respond.clone() }
}
