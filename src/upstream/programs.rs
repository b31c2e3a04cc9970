//! FastCGI programs as servers of an upstream: how a request is told to them.

use std::future::poll_fn;
use std::io;
use std::time::{Duration, SystemTime};

use hyper::body::Bytes;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::kept::Held;
use super::{Fault, Options, Question, Source};
use crate::fastcgi::{self, Facts, Input, Purpose, Role, Scripts, Settings, Variables};
use crate::http::forward;
use crate::http::forwarded::Node;
use crate::http::head::Version;
use crate::request::Peer;

/// What programs of an upstream are, and where they find their scripts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FastCgi {
    /// What they are asked to be.
    pub role: FastCgiRole,
    /// What they are told of their scripts.
    pub scripts: Scripts,
}

/// What a program is asked to be (FastCGI 1.0 §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FastCgiRole {
    /// It says whether a request may go on.
    Authorizer,
    /// It changes what goes out.
    Filter,
    /// It answers.
    Responder,
}

/// What a filter is given to change.
#[derive(Debug)]
pub struct Data {
    /// Its bytes; the length is known.
    pub source: Source,
    /// When it was changed.
    pub modified: SystemTime,
}

/// The request for a program.
///
/// # Errors
/// Its path can be told to no program: the client is answered 400.
pub(super) fn request(
    question: &Question<'_>,
    scripts: &Scripts,
    role: FastCgiRole,
    stdin: Source,
    data: Option<Data>,
) -> Result<fastcgi::Request, Fault> {
    let variables = variables(question, scripts, role, &stdin, data.as_ref())?;
    let variables = variables.encode().map_err(|error| Fault::Broken(error.to_string()))?;
    let role = match role {
        FastCgiRole::Authorizer => Role::Authorizer,
        FastCgiRole::Filter => Role::Filter,
        FastCgiRole::Responder => Role::Responder,
    };
    Ok(fastcgi::Request {
        role,
        variables: Bytes::from(variables),
        stdin: Input::from(stdin),
        data: data.map_or_else(Input::empty, |data| Input::from(data.source)),
        is_head: question.method.unwrap_or(question.request.head.method()) == "HEAD",
    })
}

fn variables(
    question: &Question<'_>,
    scripts: &Scripts,
    role: FastCgiRole,
    stdin: &Source,
    data: Option<&Data>,
) -> Result<Variables, Fault> {
    let (request, client) = (question.edited(), question.client);
    let (head, origin) = (&request.head, &request.origin);
    let fields: Vec<_> = forward::for_program(request.fields().into_iter(), client).collect();
    let (path, query) = match question.path_and_query {
        None => (head.path().to_owned(), head.query().map(str::to_owned)),
        Some(written) => {
            let (path, query) = written.split_once('?').map_or((written, None), |(path, query)| (path, Some(query)));
            (path.to_owned(), query.map(str::to_owned))
        }
    };
    let port = match (origin.peer, client.node) {
        (Peer::Tcp(address), Node::Ip(ip)) if ip == address.ip().to_canonical() => Some(address.port()),
        _ => None,
    };
    let client_address = match client.node {
        Node::Ip(ip) => ip.to_string(),
        Node::Unix => "unix:".to_owned(),
    };
    let local: Option<std::net::SocketAddr> = origin.local.parse().ok();
    let server_address =
        local.map_or_else(|| format!("unix:{}", origin.local), |local| local.ip().to_canonical().to_string());
    let facts = Facts {
        method: question.method.unwrap_or(head.method()),
        target: question.path_and_query.unwrap_or(head.target()),
        path: &path,
        query: query.as_deref(),
        protocol: match head.version() {
            Version::Http10 => "HTTP/1.0",
            Version::Http11 => "HTTP/1.1",
        },
        scheme: client.scheme,
        fields: &fields,
        body_bytes: if question.has_body { stdin.length() } else { None },
        client_address: &client_address,
        client_port: port,
        server_address: &server_address,
        server_port: local.map(|local| local.port()),
        host: head.host(),
        extra: &request.variables,
    };
    let purpose = match (role, data) {
        (FastCgiRole::Authorizer, _) => Purpose::Authorize,
        (FastCgiRole::Filter, Some(data)) => Purpose::Filter {
            data_bytes: data.source.length().unwrap_or(0),
            modified_s: data.modified.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        },
        (FastCgiRole::Filter | FastCgiRole::Responder, _) => Purpose::Respond,
    };
    Variables::new(&facts, scripts, purpose).map_err(|error| Fault::BadRequest(error.to_string()))
}

/// What belongs to the asking of a program.
pub(super) fn settings(
    options: &Options,
    question: &Question<'_>,
    keep: Option<oneshot::Sender<Held>>,
) -> Settings<Held> {
    let (id, name) = (question.request.id, options.name.clone());
    Settings {
        limits: fastcgi::Limits { head_bytes_max: options.head_bytes_max, headers_max: options.headers_max },
        complain: Box::new(move |line| tracing::warn!(request = %id, upstream = %name, "stderr: {line}")),
        keep,
    }
}

/// Reads a body to its end, and keeps it: its length has to be known before it is sent on.
///
/// # Errors
/// It is cut, or longer than `bytes_max`.
pub async fn spooled(body: &mut dyn super::Body, silence: Duration, bytes_max: u64) -> Result<Source, Fault> {
    let full = |error: io::Error| Fault::Broken(format!("no room for the body: {error}"));
    let mut spool = crate::spool::Spool::new().map_err(full)?;
    loop {
        let next = timeout(silence, poll_fn(|context| body.poll_next(context))).await;
        let piece = next.map_err(|_| Fault::TimedOut { key: "body_timeout", limit: silence })?;
        match piece.transpose()? {
            None => return Ok(Source::spooled(spool)),
            Some(super::Piece::Trailers(_)) => {}
            Some(super::Piece::Data(data)) => {
                if spool.len() + data.len() as u64 > bytes_max {
                    return Err(Fault::Broken(format!("over {bytes_max} bytes to be filtered (body_bytes_max)")));
                }
                spool.push(&data).map_err(full)?;
            }
        }
    }
}
