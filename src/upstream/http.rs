//! One request to an HTTP server, and the head of its answer.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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
    let (told, head_bytes_max, told_bytes) = (interims.clone(), options.head_bytes_max, AtomicUsize::new(0));
    hyper::ext::on_informational(&mut request, move |head| {
        // They wait here for a client that may not read: together they have as much room as one head.
        let bytes: usize = head.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
        if told_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > head_bytes_max {
            told.refuse(format!("interim answers over {head_bytes_max} bytes (head_bytes_max)"));
        } else if let Ok(fields) = end_to_end(head.headers().clone(), Version::Http11) {
            told.put(Interim { status: head.status().as_u16(), fields });
        }
        // Too many options in its Connection: whatever it says is not understood, so it is not passed on.
    });
    let (connection, mut response) = loop {
        let kept = pool.take();
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
        let fields =
            end_to_end(std::mem::take(response.headers_mut()), Version::Http11).map_err(|error| broken(&error))?;
        let upgraded = hyper::upgrade::on(&mut response).await.map_err(|error| (Fault::Broken(said(&error)), None))?;
        let parts = upgraded.downcast::<TokioIo<InPieces>>().map_err(|_| broken("a connection of another kind"))?;
        return Ok(Reply::Switched(
            fields,
            Tunnel { stream: parts.io.into_inner().into_inner(), ahead: parts.read_buf },
        ));
    }
    check(&response).map_err(|text| broken(&text))?;
    let (head, incoming) = response.into_parts();
    let mut body = HttpBody { incoming, lease: Some((Arc::clone(pool), connection)) };
    if head.status == StatusCode::NO_CONTENT && announces_body(&head.headers) {
        // What it has announced may follow, and would be taken for the next answer.
        body.lease = None;
    }
    let body: Box<dyn Body> = Box::new(body);
    let version = spoken(head.version);
    Ok(Reply::Answer(Answer { version, status: head.status.as_u16(), fields: head.headers, body }))
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

/// Whether a head says that a body follows, though to its status there is none (RFC 9112 §6.3).
fn announces_body(fields: &HeaderMap) -> bool {
    fields.contains_key(TRANSFER_ENCODING) || fields.get(CONTENT_LENGTH).is_some_and(|length| length != "0")
}

fn spoken(version: hyper::Version) -> Version {
    if version == hyper::Version::HTTP_10 { Version::Http10 } else { Version::Http11 }
}

/// The fields of an answer, which came in that version, that go on to the client.
///
/// # Errors
/// They cannot be told from those of the connection.
pub fn end_to_end(mut fields: HeaderMap, version: Version) -> Result<HeaderMap, String> {
    // Most answers say nothing of their connection: then all that there is to do is to say that they came by us.
    if fields.keys().all(|name| forward::is_end_to_end(name.as_str())) {
        fields.append(VIA, HeaderValue::from_static(forward::via(version)));
        return Ok(fields);
    }
    let mut kept = HeaderMap::with_capacity(fields.len() + 1);
    let given: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    let put = |name: &str, value: &[u8]| super::onward::put(&mut kept, name, value);
    forward::answer(given.into_iter(), version, put).map_err(|error| error.to_string())?;
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

impl HttpBody {
    /// It is whole: another request may use its connection.
    fn finish(&mut self) {
        if let Some((pool, connection)) = self.lease.take() {
            pool.keep(connection);
        }
    }
}

impl Drop for HttpBody {
    /// Where there is no body, nobody asks for its end.
    fn drop(&mut self) {
        if self.incoming.is_end_stream() {
            self.finish();
        }
    }
}

impl Body for HttpBody {
    fn abandon(&mut self) {
        self.lease = None;
    }

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
                    self.finish();
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
                    forward::trailers(given, |name, value| super::onward::put(&mut kept, name, value));
                    // Nothing follows, and nobody need ask.
                    if let Poll::Ready(None) = Pin::new(&mut self.incoming).poll_frame(context) {
                        self.finish();
                    }
                    self.lease = None;
                    return Poll::Ready(Some(Ok(Piece::Trailers(kept))));
                }
            }
        }
    }

    fn length(&self) -> Option<u64> {
        self.incoming.size_hint().exact()
    }
}
