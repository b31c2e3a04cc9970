//! One request and its whole answer.

use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONNECTION, HOST, HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, Request, Response, Uri};
use tokio::time::timeout;

use super::pool::{Connection, unreachable};
use super::{Source, Upstream};
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
        let request = self.request(callout)?;
        let (connection, response) = self.send(request).await?;
        let answer = self.read(response, answer_bytes_max).await?;
        self.pool.keep(connection);
        Ok(answer)
    }

    fn request(&self, callout: Callout) -> Result<Request<Source>, CalloutError> {
        let address = &self.options.address;
        let mut request = Request::new(Source::whole(callout.body.into()));
        *request.method_mut() = Method::from_bytes(callout.method.as_bytes()).map_err(unreachable)?;
        *request.uri_mut() = Uri::try_from(address.target(&callout.path_and_query)).map_err(unreachable)?;
        let headers = request.headers_mut();
        for Field { name, value } in callout.headers {
            let name = HeaderName::try_from(name).map_err(unreachable)?;
            headers.append(name, HeaderValue::try_from(value).map_err(unreachable)?);
        }
        if !headers.contains_key(HOST) {
            headers.insert(HOST, HeaderValue::try_from(address.authority()).map_err(unreachable)?);
        }
        Ok(request)
    }

    async fn send(&self, mut request: Request<Source>) -> Result<(Connection, Response<Incoming>), CalloutError> {
        loop {
            let kept = self.pool.take().await;
            let was_kept = kept.is_some();
            let mut connection = match kept {
                Some(connection) => connection,
                None => within(self.options.connect_timeout, self.pool.connect(&self.options.address)).await??,
            };
            let answer = within(self.options.head_timeout, connection.sender.try_send_request(request)).await?;
            let mut error = match answer {
                Ok(response) => return Ok((connection, response)),
                Err(error) => error,
            };
            match error.take_message() {
                // Closed by the server while it was idle; nothing of the request went out.
                Some(unsent) if was_kept => request = unsent,
                _ => return Err(unreachable(error.into_error())),
            }
        }
    }

    async fn read(&self, response: Response<Incoming>, bytes_max: usize) -> Result<CalloutAnswer, CalloutError> {
        let (head, mut incoming) = response.into_parts();
        // Only somebody who was asked to switch would send it.
        if head.status == 101 {
            return Err(CalloutError::Unreachable("it answered 101 to a request without Upgrade".to_owned()));
        }
        let headers = end_to_end(&head.headers);
        let mut left = bytes_max;
        let take = |left: &mut usize, bytes: usize| {
            *left = left.checked_sub(bytes).ok_or(CalloutError::TooLarge)?;
            Ok(())
        };
        for field in &headers {
            take(&mut left, field.name.len() + field.value.len())?;
        }
        if incoming.size_hint().lower() > left as u64 {
            return Err(CalloutError::TooLarge);
        }
        let mut body = Vec::new();
        while let Some(frame) = within(self.options.body_timeout, incoming.frame()).await? {
            // Trailers are nobody's: they are not merged.
            if let Ok(data) = frame.map_err(unreachable)?.into_data() {
                take(&mut left, data.len())?;
                body.extend_from_slice(&data);
            }
        }
        Ok(CalloutAnswer { status: head.status.as_u16(), headers, body })
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
