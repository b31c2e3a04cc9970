//! FastCGI programs as servers of an upstream: how a request is told to them, and which connections to them are kept.
//!
//! A connection is closed behind each request unless the configuration says otherwise: a kept one occupies a process of
//! PHP-FPM for as long as it is kept. Where it says so, a program is asked once how many connections it takes
//! (FCGI_MAX_CONNS), and no more are kept than that.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::thread::ThreadId;
use std::time::{Duration, SystemTime};

use hyper::body::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OnceCell, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::connect::{Stream, connect};
use super::{Fault, Options, Question, Server, Source};
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

/// A program, and the connections that are kept to it.
#[derive(Debug)]
pub(super) struct Program {
    server: Server,
    kept: Arc<Kept>,
    /// How many it takes; asked once.
    connections_max: OnceCell<usize>,
    tasks: Mutex<JoinSet<()>>,
    keep_alive: usize,
    keep_alive_timeout: Duration,
}

/// Connections that wait for their next request.
#[derive(Debug, Default)]
struct Kept {
    idle: Mutex<VecDeque<Idle>>,
    /// Those, and those that are in use and are to be kept.
    count: AtomicUsize,
}

#[derive(Debug)]
struct Idle {
    /// Told when it is taken, so that its time does not run out.
    taken: oneshot::Sender<()>,
    thread: ThreadId,
    stream: Held,
}

/// A connection that is counted while it is there.
#[derive(Debug)]
pub(super) struct Held {
    stream: Stream,
    counted: Option<Arc<Kept>>,
}

impl Program {
    pub(super) fn new(server: Server, options: &Options) -> Self {
        Self {
            server,
            kept: Arc::default(),
            connections_max: OnceCell::new(),
            tasks: Mutex::default(),
            keep_alive: options.keep_alive,
            keep_alive_timeout: options.keep_alive_timeout,
        }
    }

    /// A connection: one that was kept, or a new one.
    pub(super) async fn connection(&self, options: &Options) -> Result<Held, Fault> {
        while let Some(mut held) = self.kept.take() {
            // What had come would be no answer to the next request.
            if fastcgi::is_quiet(&mut held).await {
                return Ok(held);
            }
        }
        let may_keep = self.keep_alive > 0 && self.connections_max(options).await > 0;
        let stream = self.connect(options.connect_timeout).await?;
        let counted = may_keep && {
            let max = self.connections_max.get().copied().unwrap_or(0).min(self.keep_alive);
            let take = |count| (count < max).then_some(count + 1);
            self.kept.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
        };
        Ok(Held { stream, counted: counted.then(|| Arc::clone(&self.kept)) })
    }

    async fn connect(&self, limit: Duration) -> Result<Stream, Fault> {
        match timeout(limit, connect(&self.server.address, &self.server.connect)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(Fault::Unreachable(crate::log::chain(&error))),
            Err(_) => Err(Fault::Unreachable(format!("not connected within {limit:?} (connect_timeout)"))),
        }
    }

    /// How many connections may be kept. A program that does not say is believed to take as many as the configuration keeps.
    async fn connections_max(&self, options: &Options) -> usize {
        let ask = async || {
            let Ok(stream) = self.connect(options.connect_timeout).await else { return usize::MAX };
            let values = timeout(options.connect_timeout, fastcgi::ask_values(stream)).await.unwrap_or_default();
            values.connections_max.map_or(usize::MAX, |max| usize::try_from(max).unwrap_or(usize::MAX))
        };
        *self.connections_max.get_or_init(ask).await
    }

    /// Where a connection goes that the program has kept; `None` where it is not to.
    pub(super) fn keeping(&self, held: &Held) -> Option<oneshot::Sender<Held>> {
        held.counted.as_ref()?;
        let (sender, receiver) = oneshot::channel::<Held>();
        let (kept, limit) = (Arc::clone(&self.kept), self.keep_alive_timeout);
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            let Ok(stream) = receiver.await else { return };
            let (taken, mut is_taken) = oneshot::channel();
            kept.put(Idle { taken, thread: std::thread::current().id(), stream });
            if timeout(limit, &mut is_taken).await.is_err() {
                is_taken.close();
                kept.forget_abandoned();
            }
        });
        Some(sender)
    }
}

impl Kept {
    fn put(&self, idle: Idle) {
        lock(&self.idle).push_back(idle);
    }

    /// The connection of this thread that was used last.
    fn take(&self) -> Option<Held> {
        let own = std::thread::current().id();
        loop {
            let idle = {
                let mut all = lock(&self.idle);
                let at = all.iter().rposition(|idle| idle.thread == own)?;
                all.remove(at)?
            };
            let Idle { taken, stream, .. } = idle;
            if taken.send(()).is_ok() {
                return Some(stream);
            }
        }
    }

    /// Closes those whose time has run out.
    fn forget_abandoned(&self) {
        lock(&self.idle).retain(|idle| !idle.taken.is_closed());
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(kept) = &self.counted {
            kept.count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl AsyncRead for Held {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Held {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
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
    let (request, client) = (question.request, question.client);
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
