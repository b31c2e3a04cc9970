//! One request to an HTTP server, and the head of its answer.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hyper::body::{Body as _, Incoming};
use hyper::header::{CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING, UPGRADE, VIA};
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::pool::{Connection, InPieces, Pool};
use super::{Answer, Body, Fault, Interim, Interims, Options, Piece, Source, Tunnel};
use crate::http::forward;
use crate::http::head::Version;

/// What an upstream said to a request.
#[derive(Debug)]
pub enum Reply {
    /// The head of its answer.
    Answer(Answer),
    /// It speaks WebSocket from here on; these are its fields but for those that say so.
    Switched(HeaderMap, Tunnel),
}

/// Sends a request over one of the pool's connections, or a new one.
///
/// # Errors
/// Why there is no answer; the request comes back where nothing of it was sent.
///
/// # Cancel safety
/// Dropping it closes the connection.
pub(super) async fn ask(
    pool: &Arc<Pool>,
    options: &Options,
    mut request: Request<Source>,
    interims: &Interims,
) -> Result<Reply, (Fault, Option<Request<Source>>)> {
    let wants_switch = request.headers().contains_key(UPGRADE);
    let told = interims.clone();
    hyper::ext::on_informational(&mut request, move |head| {
        // Too many options in its Connection: whatever it says is not understood, so it is not passed on.
        if let Ok(fields) = end_to_end(head.headers().clone()) {
            told.put(Interim { status: head.status().as_u16(), fields });
        }
    });
    let (connection, mut response) = loop {
        let kept = pool.take().await;
        let was_kept = kept.is_some();
        let mut connection = match kept {
            Some(connection) => connection,
            None => match connect(pool, options).await {
                Ok(connection) => connection,
                Err(fault) => return Err((fault, Some(request))),
            },
        };
        let mut error = match connection.sender.try_send_request(request).await {
            Ok(response) => break (connection, response),
            Err(error) => error,
        };
        match error.take_message() {
            // Closed by the server while it was idle; nothing of the request went out.
            Some(unsent) if was_kept => request = unsent,
            Some(unsent) => return Err((Fault::Unreachable(said(&error.into_error())), Some(unsent))),
            None => return Err((Fault::Broken(said(&error.into_error())), None)),
        }
    };
    let broken = |text: &str| (Fault::Broken(text.to_owned()), None);
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let is_websocket =
            response.headers().get(UPGRADE).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"websocket"));
        if !wants_switch || !is_websocket {
            return Err(broken("it switched protocols without being asked"));
        }
        let fields = end_to_end(std::mem::take(response.headers_mut())).map_err(|error| broken(&error))?;
        let upgraded = hyper::upgrade::on(&mut response).await.map_err(|error| (Fault::Broken(said(&error)), None))?;
        let parts = upgraded.downcast::<TokioIo<InPieces>>().map_err(|_| broken("a connection of another kind"))?;
        return Ok(Reply::Switched(fields, Tunnel { stream: parts.io.into_inner().0, ahead: parts.read_buf }));
    }
    check(&response).map_err(|text| broken(&text))?;
    let (head, incoming) = response.into_parts();
    let body = HttpBody { incoming, lease: Some((Arc::clone(pool), connection)) };
    let body: Box<dyn Body> = Box::new(body);
    Ok(Reply::Answer(Answer { status: head.status.as_u16(), fields: head.headers, body }))
}

async fn connect(pool: &Pool, options: &Options) -> Result<Connection, Fault> {
    let limit = options.connect_timeout;
    match timeout(limit, pool.connect()).await {
        Ok(result) => result,
        Err(_) => Err(Fault::Unreachable(format!("not connected within {limit:?} (connect_timeout)"))),
    }
}

/// What hyper reads in one way and somebody else might in another (RFC 9112 §6.3).
fn check(response: &Response<Incoming>) -> Result<(), String> {
    let fields = response.headers();
    let mut lengths = fields.get_all(CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        let is_number = !length.is_empty() && length.as_bytes().iter().all(u8::is_ascii_digit);
        if lengths.next().is_some() || !is_number {
            return Err("a Content-Length that is no number, or more than one".to_owned());
        }
        if fields.contains_key(TRANSFER_ENCODING) {
            return Err("Content-Length and Transfer-Encoding together".to_owned());
        }
    }
    let mut codings = fields.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next()
        && (codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
    {
        return Err("a Transfer-Encoding other than chunked".to_owned());
    }
    if response.status().as_u16() > 599 {
        return Err(format!("status {}", response.status().as_u16()));
    }
    Ok(())
}

/// The fields of an answer that go on to the client.
///
/// # Errors
/// They cannot be told from those of the connection.
pub fn end_to_end(mut fields: HeaderMap) -> Result<HeaderMap, String> {
    // Most answers say nothing of their connection: then all that there is to do is to say that they came by us.
    if fields.keys().all(|name| forward::is_end_to_end(name.as_str())) {
        fields.append(VIA, HeaderValue::from_static(forward::via(Version::Http11)));
        return Ok(fields);
    }
    let mut kept = HeaderMap::with_capacity(fields.len() + 1);
    let given: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    let put = |name: &str, value: &[u8]| super::put(&mut kept, name, value);
    forward::answer(given.into_iter(), Version::Http11, put).map_err(|error| error.to_string())?;
    Ok(kept)
}

fn said(error: &(dyn std::error::Error + 'static)) -> String {
    crate::log::chain(error)
}

/// A body that comes over a connection, which is kept for the next request when it has come to its end.
#[derive(Debug)]
struct HttpBody {
    incoming: Incoming,
    lease: Option<(Arc<Pool>, Connection)>,
}

impl Body for HttpBody {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Piece, Fault>>> {
        loop {
            if self.lease.is_none() {
                return Poll::Ready(None);
            }
            let frame = match ready!(Pin::new(&mut self.incoming).poll_frame(context)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    self.lease = None;
                    return Poll::Ready(Some(Err(Fault::Broken(said(&error)))));
                }
                None => {
                    if let Some((pool, connection)) = self.lease.take() {
                        pool.keep(connection);
                    }
                    return Poll::Ready(None);
                }
            };
            match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => return Poll::Ready(Some(Ok(Piece::Data(data)))),
                Err(frame) => {
                    let Ok(trailers) = frame.into_trailers() else { continue };
                    let mut kept = HeaderMap::new();
                    let given = trailers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
                    forward::trailers(given, |name, value| super::put(&mut kept, name, value));
                    // Nothing follows, and nobody need ask.
                    if let (Poll::Ready(None), Some((pool, connection))) =
                        (Pin::new(&mut self.incoming).poll_frame(context), self.lease.take())
                    {
                        pool.keep(connection);
                    }
                    return Poll::Ready(Some(Ok(Piece::Trailers(kept))));
                }
            }
        }
    }

    fn length(&self) -> Option<u64> {
        self.incoming.size_hint().exact()
    }
}
