//! One request and its whole answer.

use std::future::poll_fn;
use std::time::Duration;

use hyper::header::{CONNECTION, HOST, HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, Request, Uri};
use tokio::time::timeout;

use super::member::Kind;
use super::{Address, Answer, Interims, Piece, Reply, Source, Upstream, http};
use crate::decision::Field;
use crate::http::fields::list;
use crate::policy::{Callout, CalloutAnswer, CalloutError};

/// What is the connection's, and ends with it (RFC 9110 §7.6.1); an answer is given on as a whole, so nothing frames it.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

impl Upstream {
    /// Sends the request and reads all of the answer.
    ///
    /// # Cancel safety
    /// Dropping it closes the connection.
    pub(super) async fn fetch(&self, callout: Callout) -> Result<CalloutAnswer, CalloutError> {
        let answer_bytes_max = callout.answer_bytes_max;
        let interims = Interims::new(self.options.interim_max);
        let mut last = CalloutError::Unreachable("it has no servers".to_owned());
        for member in self.in_turn() {
            let Kind::Http(pool) = member.kind() else {
                return Err(CalloutError::Unreachable("it speaks FastCGI: callouts are of HTTP".to_owned()));
            };
            let request = self.callout_request(&callout, member.address())?;
            let asked = within(self.options.head_timeout, http::ask(pool, &self.options, request, &interims));
            match asked.await? {
                Ok(Reply::Answer(answer)) => {
                    member.is_up();
                    return self.read(answer, answer_bytes_max).await;
                }
                Ok(Reply::Switched(..)) => unreachable!("nobody asked for it"),
                Err((fault, Some(_))) => {
                    member.is_down();
                    last = CalloutError::Unreachable(fault.to_string());
                }
                Err((fault, None)) => return Err(CalloutError::Unreachable(fault.to_string())),
            }
        }
        Err(last)
    }

    fn callout_request(&self, callout: &Callout, address: &Address) -> Result<Request<Source>, CalloutError> {
        let mut request = Request::new(Source::whole(callout.body.clone().into()));
        *request.method_mut() = Method::from_bytes(callout.method.as_bytes()).map_err(unreachable)?;
        *request.uri_mut() = Uri::try_from(address.target(&callout.path_and_query)).map_err(unreachable)?;
        let headers = request.headers_mut();
        for Field { name, value } in &callout.headers {
            let name = HeaderName::try_from(name).map_err(unreachable)?;
            headers.append(name, HeaderValue::try_from(value.clone()).map_err(unreachable)?);
        }
        if !headers.contains_key(HOST) {
            let host = self.options.host.clone().unwrap_or_else(|| address.authority());
            headers.insert(HOST, HeaderValue::try_from(host).map_err(unreachable)?);
        }
        Ok(request)
    }

    async fn read(&self, answer: Answer, bytes_max: usize) -> Result<CalloutAnswer, CalloutError> {
        let Answer { status, fields, body: mut incoming, .. } = answer;
        let headers = end_to_end(&fields);
        let mut left = bytes_max;
        let take = |left: &mut usize, bytes: usize| {
            *left = left.checked_sub(bytes).ok_or(CalloutError::TooLarge)?;
            Ok(())
        };
        for field in &headers {
            take(&mut left, field.name.len() + field.value.len())?;
        }
        if incoming.length().is_some_and(|length| length > left as u64) {
            return Err(CalloutError::TooLarge);
        }
        let mut body = Vec::new();
        let mut next = async || within(self.options.body_timeout, poll_fn(|context| incoming.poll_next(context))).await;
        while let Some(piece) = next().await? {
            // Trailers are nobody's: they are not merged.
            if let Piece::Data(data) = piece.map_err(|fault| CalloutError::Unreachable(fault.to_string()))? {
                take(&mut left, data.len())?;
                body.extend_from_slice(&data);
            }
        }
        Ok(CalloutAnswer { status, headers, body })
    }
}

/// The fields that are not the connection's.
fn end_to_end(headers: &HeaderMap) -> Vec<Field> {
    let named: Vec<_> = headers.get_all(CONNECTION).iter().flat_map(|value| list(value.as_bytes())).collect();
    let is_dropped = |name: &str| {
        HOP_BY_HOP.contains(&name) || named.iter().any(|option| option.eq_ignore_ascii_case(name.as_bytes()))
    };
    let kept = headers.iter().filter(|(name, _)| !is_dropped(name.as_str()));
    kept.map(|(name, value)| Field { name: name.as_str().to_owned(), value: value.as_bytes().to_vec() }).collect()
}

async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Result<T, CalloutError> {
    timeout(limit, future).await.map_err(|_| CalloutError::TimedOut)
}

/// Says why there is no answer, with everything that is behind it.
fn unreachable(error: impl std::error::Error + 'static) -> CalloutError {
    CalloutError::Unreachable(crate::log::chain(&error))
}
