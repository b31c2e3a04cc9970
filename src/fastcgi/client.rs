//! Asking a program.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use hyper::HeaderMap;
use hyper::body::Bytes;
use hyper::header::{HeaderName, HeaderValue};
use tokio::io::ReadBuf;
use tokio::sync::oneshot;

use super::exchange::{Event, Exchange, broken};
use super::head::{Field, Head, Limits, Reader};
use super::output::{Content, Output};
use super::record::{Afterwards, Ending, Role};
use super::sending::Sending;
use super::stderr::Complaints;
use super::{Input, Stream};
use crate::http::head::Version;
use crate::upstream::{Answer, Body as _, Fault};

/// What is asked.
#[derive(Debug)]
pub struct Request {
    /// What the program is to be.
    pub role: Role,
    /// What it is told, as [`super::Variables::encode`] writes it.
    pub variables: Bytes,
    /// The request's body, of the length that the variables say; not sent to an authorizer.
    pub stdin: Input,
    /// What a filter filters, of the length that the variables say; not sent to others.
    pub data: Input,
    /// Asked by HEAD: whatever the program writes, the answer has no body.
    pub is_head: bool,
}

/// Where a line goes that a program writes to its standard error; bounded in length and number, control characters in it.
pub type Complain = Box<dyn Fn(&str) + Send>;

/// What belongs to the asking, not to the request.
pub struct Settings<S> {
    /// Of the answer's head.
    pub limits: Limits,
    /// Where the program's complaints go.
    pub complain: Complain,
    /// Asks the program to keep the connection, which comes out here when request and answer are whole and the program is
    /// done with both; otherwise the other end is dropped, and the connection closed.
    pub keep: Option<oneshot::Sender<S>>,
}

impl<S> std::fmt::Debug for Settings<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// There is no answer.
#[derive(Debug, thiserror::Error)]
#[error("{fault}")]
pub struct Unanswered {
    /// Why.
    pub fault: Fault,
    /// The request, if another program may be given it: this one has done nothing with it, and what it was sent of the
    /// bodies is still there.
    pub request: Option<Request>,
}

impl From<Fault> for Unanswered {
    fn from(fault: Fault) -> Self {
        Self { fault, request: None }
    }
}

/// What an authorizer says.
#[derive(Debug)]
pub enum Verdict {
    /// The request may go on, with these variables: names in the case that the program wrote, without `Variable-`.
    Through(Vec<(String, Vec<u8>)>),
    /// It may not; this is for the client, and has no variables in it.
    Refused(Answer),
}

const VARIABLE: &str = "variable-";

/// Asks a responder or a filter; returns as soon as the head of its answer is there. The body sends what is left of the
/// request while it is polled.
///
/// # Errors
/// [`Unanswered`], with the request where it may be sent to somebody else.
///
/// # Cancel safety
/// Dropping it, or the answer's body before its end, asks the program to stop and closes the connection.
pub async fn ask<S: Stream>(stream: S, request: Request, settings: Settings<S>) -> Result<Answer, Unanswered> {
    let is_head = request.is_head;
    let (head, exchange, first) = begin(stream, request, settings).await?;
    Ok(answer(head, exchange, first, is_head)?)
}

/// Asks an authorizer, to its end where it lets the request through: without END_REQUEST it has not.
///
/// # Errors
/// [`Unanswered`]; the request must not go on.
///
/// # Cancel safety
/// As [`ask`].
pub async fn authorize<S: Stream>(stream: S, request: Request, settings: Settings<S>) -> Result<Verdict, Unanswered> {
    let is_head = request.is_head;
    let (mut head, exchange, first) = begin(stream, request, settings).await?;
    let variables = take_variables(&mut head.fields);
    if head.status != 200 {
        return Ok(Verdict::Refused(answer(head, exchange, first, is_head)?));
    }
    // What it writes besides is nobody's (FastCGI 1.0 §6.3).
    let mut output = Output::new(exchange, first, Content::None);
    while let Some(piece) = poll_fn(|context| output.poll_next(context)).await {
        drop(piece?);
    }
    Ok(Verdict::Through(variables))
}

/// Whether a kept connection can be asked again: the program says nothing on it, and has not closed it. It may still do so
/// a moment later; then nobody can know what it did with the request.
///
/// # Cancel safety
/// Dropping it changes nothing.
pub async fn is_quiet<S: Stream>(stream: &mut S) -> bool {
    // So that what has happened to the socket meanwhile is seen.
    tokio::task::yield_now().await;
    let mut byte = [0];
    let mut buffer = ReadBuf::new(&mut byte);
    poll_fn(|context| Poll::Ready(Pin::new(&mut *stream).poll_read(context, &mut buffer).is_pending())).await
}

/// Sends and reads until the head is there, and what came behind it in one piece.
async fn begin<S: Stream>(
    stream: S,
    request: Request,
    settings: Settings<S>,
) -> Result<(Head, Exchange<S>, Bytes), Unanswered> {
    let Request { role, variables, stdin, data, is_head } = request;
    let afterwards = if settings.keep.is_some() { Afterwards::Keep } else { Afterwards::Close };
    let sending = Sending::new(role, &variables, stdin, data, afterwards);
    let mut exchange = Exchange::new(stream, sending, Complaints::new(settings.complain), settings.keep);
    let mut reader = Reader::new(settings.limits);
    let fault = loop {
        match poll_fn(|context| exchange.poll_event(context)).await {
            Ok(Event::Output(mut bytes)) => match reader.push(&bytes) {
                Ok(None) => {}
                Ok(Some(end)) => {
                    exchange.forget_input();
                    let first = bytes.split_off(end);
                    return Ok((reader.finish().map_err(broken)?, exchange, first));
                }
                Err(error) => break broken(error),
            },
            Ok(Event::End(ending)) => break ended(ending, reader.is_empty()),
            Err(fault) => break fault,
        }
    };
    let rewound = fault.is_before_request().then(|| exchange.rewound_input()).flatten();
    let request = rewound.map(|(stdin, data)| Request { role, variables, stdin, data, is_head });
    Err(Unanswered { fault, request })
}

/// What END_REQUEST means in front of a head.
fn ended(ending: Ending, is_nothing_there: bool) -> Fault {
    match ending {
        Ending::Complete(_) if is_nothing_there => broken("it ended without an answer"),
        _ if !is_nothing_there => broken("it ended in the middle of its answer's head"),
        Ending::CannotMultiplex => Fault::Refused("it serves somebody else on this connection (CANT_MPX_CONN)".into()),
        Ending::Overloaded => Fault::Refused("it is overloaded (OVERLOADED)".into()),
        Ending::UnknownRole => Fault::Refused("it does not know the role (UNKNOWN_ROLE)".into()),
        ending => Fault::Broken(format!("it ended with {ending:?}")),
    }
}

fn answer<S: Stream>(head: Head, exchange: Exchange<S>, first: Bytes, is_head: bool) -> Result<Answer, Fault> {
    let has_body = !is_head && !matches!(head.status, 204 | 304);
    let content = if has_body { Content::Given(head.length) } else { Content::None };
    let mut fields = HeaderMap::with_capacity(head.fields.len());
    for Field { name, value } in head.fields {
        let name = HeaderName::try_from(name).map_err(broken)?;
        let value = HeaderValue::try_from(value).map_err(broken)?;
        fields.try_append(name, value).map_err(broken)?;
    }
    let body = Box::new(Output::new(exchange, first, content));
    Ok(Answer { version: Version::Http11, status: head.status, fields, body })
}

/// What `Variable-NAME` fields say; they are the gateway's, not the client's.
fn take_variables(fields: &mut Vec<Field>) -> Vec<(String, Vec<u8>)> {
    let is_variable =
        |field: &mut Field| field.name.get(..VARIABLE.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(VARIABLE));
    let variables = fields.extract_if(.., is_variable);
    variables.map(|field| (field.name[VARIABLE.len()..].to_owned(), field.value)).collect()
}
