//! The response phase: an upstream's head is here, and the client has seen nothing of it.
//!
//! The policies that were asked about the request are asked about the answer, in their order, each seeing the edits of
//! those before. Then what the application itself says to the server in front of it is done, where the configuration allows
//! that: the client goes to a daemon (`X-Socket-Handoff`, as mod_socket_handoff has it), or another route answers
//! (`X-Accel-Redirect`, as nginx has it).

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};

use super::Serving;
use super::decide::{is_passed_over, is_watched, tell, told};
use super::proxy::Round;
use crate::access_log::micros;
use crate::decision::{Action, Decision, Edits, Field, Handoff, Outcome, Proxy, Respond};
use crate::exchange::{Exchange, UploadError};
use crate::policy::{BodyPort, Generation, UpstreamHead};
use crate::request::Request;
use crate::upstream::{Answer, Upstream};

/// The path of a socket whose daemon takes the client.
const SOCKET: &str = "x-socket-handoff";
/// What it is given along.
const DATA: &str = "x-handoff-data";
/// The path of a route that answers instead.
const REDIRECT: &str = "x-accel-redirect";

/// What becomes of an answer.
pub(super) enum Judged {
    Abort,
    Deliver(Answer),
    Fail(Outcome, u16),
    Handoff(Box<Handoff>, Option<Arc<Generation>>),
    /// Another route answers, of this path and query; these fields of the application's answer stay.
    Internal(String, HeaderMap),
    Proxy(Proxy, Option<Arc<Generation>>),
    Respond(Respond),
}

impl Serving<'_> {
    /// Judges an answer before the client sees it.
    pub(super) async fn judge(
        &mut self,
        exchange: &mut Exchange,
        request: &Arc<Request>,
        upstream: &Upstream,
        mut answer: Answer,
        round: &Round<'_>,
        elapsed: Duration,
    ) -> Judged {
        let decided = match self.ask_about(request, upstream, &mut answer, round, elapsed).await {
            Ok(decided) => decided,
            Err(judged) => return judged,
        };
        let (handoff, by) = match decided {
            Some((Action::Abort, _)) => return Judged::Abort,
            Some((Action::Respond(respond), _)) => return Judged::Respond(respond),
            Some((Action::Proxy(proxy), by)) => return Judged::Proxy(proxy, Some(by)),
            Some((Action::Handoff(handoff), by)) => (handoff, Some(by)),
            Some((Action::Pass(_), _)) | None => match self.handoff_of(request, upstream, &answer.fields) {
                Some(Ok(handoff)) => (handoff, None),
                Some(Err(judged)) => return judged,
                None => {
                    let Some(target) = answer.fields.get(REDIRECT) else { return Judged::Deliver(answer) };
                    let target = escaped(target.as_bytes());
                    return Judged::Internal(target, kept(&answer.fields));
                }
            },
        };
        // What the application still has to say is for nobody, and its worker is to be free.
        answer.body.abandon();
        drop(answer);
        match self.finish_body(exchange).await {
            Ok(()) => Judged::Handoff(Box::new(handoff), by),
            Err((outcome, status)) => Judged::Fail(outcome, status),
        }
    }

    /// Asks the policies that have a word about answers; `None` when none has one about this.
    async fn ask_about(
        &mut self,
        request: &Arc<Request>,
        upstream: &Upstream,
        answer: &mut Answer,
        round: &Round<'_>,
        elapsed: Duration,
    ) -> Result<Option<(Action, Arc<Generation>)>, Judged> {
        for (at, generation) in self.line.responders() {
            let is_decider = round.by.as_ref().is_some_and(|by| Arc::ptr_eq(by, &generation));
            if is_decider && !round.proxy.inspect_response {
                continue;
            }
            let head = Arc::new(UpstreamHead {
                status: answer.status,
                fields: fields_of(&answer.fields),
                upstream: upstream.options().name.as_str().into(),
                elapsed,
            });
            let began = self.line.clock().or_else(|| is_watched().then(Instant::now));
            let (port, peeks) = BodyPort::open();
            let carry = self.line.carry_of(at).to_vec();
            let asking = generation.on_response(self.worker.index, request, &port, &head, &carry);
            // The body has gone to the upstream: there is none to be shown.
            let Ok(result) = self.showing(peeks, None, asking).await else {
                return Err(Judged::Fail(Outcome::PolicyError, 503));
            };
            let decide_us = began.map_or(0, |began| micros(began.elapsed()));
            if is_watched() {
                let (method, target, name) = (request.head.method(), request.head.target(), &upstream.options().name);
                let line = format_args!("{method} {target}, {name} having answered {}", head.status);
                tell(&generation, &request.id, line, result.as_ref().map(told), decide_us);
            }
            self.line.set(|r| r.decide_us = Some(r.decide_us.unwrap_or(0) + decide_us));
            match result.and_then(|decision| self.fitting(&generation, "on-response", decision)) {
                Ok(Decision { action, carry, annotations }) => {
                    self.line.set_carry_of(at, carry);
                    self.line.annotate(annotations);
                    if let Action::Pass(edits) = &action {
                        edit(&mut answer.fields, edits);
                        continue;
                    }
                    self.line.decided_by(at);
                    self.line.set(|r| {
                        (r.policy, r.generation) = (Some(Arc::clone(generation.policy())), Some(generation.number()));
                        r.decision = Some(action.word());
                    });
                    return Ok(Some((action, generation)));
                }
                Err(failure) => {
                    self.policy_failed(&generation, "on-response", request, &failure);
                    if !is_passed_over(&generation, &failure) {
                        return Err(Judged::Fail(Outcome::PolicyError, 503));
                    }
                }
            }
        }
        Ok(None)
    }

    /// The handoff that an application asks for in its answer, where it may.
    fn handoff_of(
        &mut self,
        request: &Request,
        upstream: &Upstream,
        fields: &HeaderMap,
    ) -> Option<Result<Handoff, Judged>> {
        let options = upstream.options();
        let path = fields.get(SOCKET).filter(|_| options.handoff_headers)?;
        // A name of the configuration would be another thing than the path that the prefixes are about.
        let path = path.to_str().ok().filter(|path| path.starts_with('/'));
        let Some(path) = path else {
            let error = "X-Socket-Handoff is no absolute path";
            tracing::warn!(request = %request.id, upstream = %options.name, error, "not handed over");
            self.line.set(|r| r.error = Some(error.to_owned()));
            return Some(Err(Judged::Fail(Outcome::PolicyError, 403)));
        };
        let data = fields.get(DATA).map(|value| value.as_bytes().to_vec()).unwrap_or_default();
        let data = with_response_headers(data, fields, &options.handoff_response_headers);
        Some(Ok(Handoff { target: path.to_owned(), data, ..Handoff::default() }))
    }

    /// Reads what the upstream left of the request's body: whoever gets the client next expects none.
    ///
    /// # Errors
    /// How the request ends instead, and the status for its client.
    pub(super) async fn finish_body(&mut self, exchange: &mut Exchange) -> Result<(), (Outcome, u16)> {
        exchange.finish_body(&self.settings.limits).await.map_err(|error| {
            self.line.set(|r| r.error = Some(format!("{error}, left by the upstream")));
            match error {
                UploadError::Closed => (Outcome::ClientGone, 400),
                error => (Outcome::ClientError, error.status().unwrap_or(413)),
            }
        })
    }
}

/// A path as applications write it who know nginx, which takes it byte by byte.
fn escaped(target: &[u8]) -> String {
    let one = |&byte: &u8| match byte {
        b'!'..=b'~' if byte != b'#' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    target.iter().map(one).collect()
}

/// What of an application's answer stays where another route answers in its place, as in nginx.
fn kept(fields: &HeaderMap) -> HeaderMap {
    let names = ["accept-ranges", "cache-control", "content-disposition", "content-type", "expires", "set-cookie"];
    let mut kept = HeaderMap::new();
    for (name, value) in fields.iter().filter(|(name, _)| names.contains(&name.as_str())) {
        kept.append(name, value.clone());
    }
    kept
}

/// As policies see them.
pub(super) fn fields_of(fields: &HeaderMap) -> Vec<Field> {
    let field = |(name, value): (&HeaderName, &HeaderValue)| Field {
        name: name.as_str().to_owned(),
        value: value.as_bytes().to_vec(),
    };
    fields.iter().map(field).collect()
}

/// Removal happens first. Where the client goes is the application's word, or the policy's own decision, which is held to
/// what the policy may name: as a field it is not.
fn edit(fields: &mut HeaderMap, edits: &Edits) {
    for name in edits.remove.iter().chain(edits.set.iter().map(|field| &field.name)) {
        fields.remove(name);
    }
    let added = edits.set.iter().chain(&edits.append);
    for Field { name, value } in added.filter(|field| !matches!(&*field.name, SOCKET | REDIRECT)) {
        // Both were checked where they came in.
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value)) {
            fields.append(name, value);
        }
    }
}

/// The application's data with chosen fields of its answer beside it, as `response_headers`, where it is a JSON object that
/// has none of that name. Its own bytes stay as they are: whoever wrote them may have signed them, or count digits.
fn with_response_headers(mut data: Vec<u8>, fields: &HeaderMap, names: &[String]) -> Vec<u8> {
    let mut chosen = serde_json::Map::new();
    for name in names {
        let mut values: Vec<serde_json::Value> =
            fields.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into()).collect();
        match values.len() {
            0 => {}
            1 => drop(chosen.insert(name.clone(), values.remove(0))),
            _ => drop(chosen.insert(name.clone(), values.into())),
        }
    }
    let Ok(serde_json::Value::Object(object)) = serde_json::from_slice(&data) else { return data };
    if chosen.is_empty() || object.contains_key("response_headers") {
        return data;
    }
    let end = data.iter().rposition(|&byte| byte == b'}').expect("an object ends with a brace");
    let comma = if object.is_empty() { "" } else { "," };
    let added = format!("{comma}\"response_headers\":{}", serde_json::Value::Object(chosen));
    data.splice(end..end, added.into_bytes());
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_headers_join_what_is_an_object_and_change_nothing_else() {
        let mut fields = HeaderMap::new();
        for (name, value) in [("set-cookie", "a=1"), ("set-cookie", "b=\"2\""), ("x-one", "1")] {
            fields.append(name, HeaderValue::from_static(value));
        }
        let names = ["set-cookie", "x-one", "absent"].map(str::to_owned);
        let with = |data: &str| {
            let joined = with_response_headers(data.as_bytes().to_vec(), &fields, &names);
            String::from_utf8(joined).expect("text")
        };
        let added = r#""response_headers":{"set-cookie":["a=1","b=\"2\""],"x-one":"1"}"#;
        assert_eq!(with("{}"), format!("{{{added}}}"));
        assert_eq!(with("{ \"n\": 1.50 }\n"), format!("{{ \"n\": 1.50 ,{added}}}\n"));
        for data in ["", "[1]", "{\"response_headers\":1}", "{\"a\":1", "hello"] {
            assert_eq!(with(data), data);
        }
    }
}
