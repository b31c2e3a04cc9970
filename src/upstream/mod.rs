//! Servers that answer through us, by the names of the configuration: HTTP servers, and FastCGI programs.
//!
//! An upstream is one server or several, their limits, and the connections that are kept to them. Each worker keeps its
//! own: a connection lives where it was made. A request takes a connection, or makes one; one that is whole afterwards is
//! kept for the next. Nothing is tried again once a byte of a request went out: only where a server cannot be connected to,
//! where a kept connection turns out to be closed, or where a program says that it has done nothing, another takes its
//! place.

mod address;
mod answer;
mod connect;
mod fault;
mod feed;
mod fetch;
mod http;
mod interim;
mod kept;
mod member;
mod onward;
mod pool;
mod programs;
mod tls;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use hyper::body::Bytes;

pub use self::address::{Address, AddressError, Protocol, Transport};
pub use self::answer::{Answer, Body, Piece, Whole};
pub use self::connect::{ConnectOptions, Stream};
pub use self::fault::Fault;
pub use self::feed::{Cut, Feed, Source, feed};
pub use self::http::{Reply, end_to_end};
pub use self::interim::{Interim, Interims};
use self::member::{Kind, Member};
pub use self::programs::{Data, FastCgi, FastCgiRole, spooled};
pub use self::tls::{Tls, TlsError};
use crate::fastcgi::{self, Verdict};
use crate::http::forward;
use crate::policy::{Callout, CalloutError, Callouts, Fetching};

/// What the configuration says of an upstream.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name there.
    pub name: String,
    /// Its servers: at least one.
    pub servers: Vec<Server>,
    /// Until one of them is connected.
    pub connect_timeout: Duration,
    /// From the request's last byte to the last of the answer's head.
    pub head_timeout: Duration,
    /// Without a byte of the answer's body.
    pub body_timeout: Duration,
    /// Without a byte in either direction, behind an answer of 101.
    pub tunnel_timeout: Duration,
    /// Of an answer.
    pub head_bytes_max: usize,
    /// Fields of an answer.
    pub headers_max: usize,
    /// Interim answers before the answer.
    pub interim_max: usize,
    /// Idle connections that each worker keeps to each server.
    pub keep_alive: usize,
    /// How long an idle connection is kept.
    pub keep_alive_timeout: Duration,
    /// What its servers are asked for as Host; `None`: what the client asked for.
    pub host: Option<String>,
    /// Whether `X-Socket-Handoff` in its answers is acted on.
    pub handoff_headers: bool,
    /// Fields of its answer, in lower case, that travel with such a handoff.
    pub handoff_response_headers: Vec<String>,
    /// What its servers are, where they speak FastCGI.
    pub fastcgi: Option<FastCgi>,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct Server {
    /// Where it listens.
    pub address: Address,
    /// How it is connected to.
    pub connect: ConnectOptions,
}

impl Options {
    /// The documented defaults.
    pub fn new(name: &str, servers: Vec<Server>) -> Self {
        Self {
            name: name.to_owned(),
            servers,
            connect_timeout: Duration::from_secs(1),
            head_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(60),
            tunnel_timeout: Duration::from_secs(60 * 60),
            head_bytes_max: 2 << 20,
            headers_max: 2000,
            interim_max: 100,
            keep_alive: 32,
            keep_alive_timeout: Duration::from_secs(30),
            host: None,
            handoff_headers: false,
            handoff_response_headers: Vec::new(),
            fastcgi: None,
        }
    }
}

/// Servers that are the same to whoever asks.
#[derive(Debug)]
pub struct Upstream {
    options: Arc<Options>,
    members: Vec<Member>,
    turn: AtomicUsize,
}

/// What an upstream is asked.
#[derive(Debug)]
pub struct Question<'a> {
    /// As the client sent it, with the edits of policies.
    pub request: &'a crate::request::Request,
    /// The route's path, which a path inside of the server replaces.
    pub mount: &'a str,
    /// Asked for in place of what the client asked for; put behind a path inside of the server, its path is normalised first.
    pub path_and_query: Option<&'a str>,
    /// In place of the client's own; `None`: the same.
    pub method: Option<&'static str>,
    /// Changes for this request only.
    pub edits: &'a crate::decision::Edits,
    /// Who asks, as the proxies in front of us say.
    pub client: &'a crate::http::forwarded::Client<'a>,
    /// Whether the server is told that the client waits for `100 Continue`.
    pub expect: forward::Expect,
    /// Whether there is a body, be it an empty one.
    pub has_body: bool,
    /// Whether the server is asked to speak WebSocket.
    pub wants_websocket: bool,
    /// Servers that were tried so far.
    pub attempts: AtomicU32,
}

impl<'a> Question<'a> {
    /// What a client asked, as it asked.
    pub fn new(request: &'a crate::request::Request, client: &'a crate::http::forwarded::Client<'a>) -> Self {
        static NONE: crate::decision::Edits =
            crate::decision::Edits { remove: Vec::new(), set: Vec::new(), append: Vec::new() };
        Self {
            request,
            mount: "/",
            path_and_query: None,
            method: None,
            edits: &NONE,
            client,
            expect: forward::Expect::Drop,
            has_body: false,
            wants_websocket: false,
            attempts: AtomicU32::new(0),
        }
    }

    /// The request with the changes that are for whoever is asked.
    fn edited(&self) -> Cow<'a, crate::request::Request> {
        let mut request = Cow::Borrowed(self.request);
        if !self.edits.is_empty() {
            request.to_mut().edit(self.edits);
        }
        request
    }
}

impl Upstream {
    fn new(options: Options) -> Self {
        let members = options.servers.iter().map(|server| Member::new(server, &options)).collect();
        Self { options: Arc::new(options), members, turn: AtomicUsize::new(0) }
    }

    /// What the configuration says of it.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Whether its servers speak FastCGI: then a body's length must be known.
    pub fn is_fastcgi(&self) -> bool {
        self.options.fastcgi.is_some()
    }

    /// Asks one of its servers, and others where one cannot be connected to.
    ///
    /// # Errors
    /// The last one's, or the first one's that took something of the request.
    ///
    /// # Cancel safety
    /// Dropping it closes the connection: the server sees that nobody waits.
    pub async fn ask(&self, question: &Question<'_>, mut body: Source, interims: &Interims) -> Result<Reply, Fault> {
        if let Some(fastcgi) = &self.options.fastcgi {
            let request = programs::request(question, &fastcgi.scripts, fastcgi.role, body, None)?;
            return self.ask_programs(question, request, fastcgi::ask).await.map(Reply::Answer);
        }
        let mut last = no_servers();
        for member in self.in_turn() {
            let Kind::Http(pool) = member.kind() else { continue };
            question.attempts.fetch_add(1, Ordering::Relaxed);
            let request = self.request(question, member, body)?;
            match http::ask(pool, &self.options, request, interims).await {
                Ok(reply) => {
                    member.is_up();
                    return Ok(reply);
                }
                Err((fault, Some(unsent))) => {
                    member.is_down();
                    body = unsent.into_body();
                    last = fault;
                }
                Err((fault, None)) => return Err(fault),
            }
        }
        Err(last)
    }

    /// Has `data` changed by one of its programs, which are filters.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    ///
    /// # Cancel safety
    /// As [`ask`](Self::ask).
    pub async fn filter(&self, question: &Question<'_>, body: Source, data: Data) -> Result<Answer, Fault> {
        let fastcgi = self.options.fastcgi.as_ref().ok_or_else(no_servers)?;
        let request = programs::request(question, &fastcgi.scripts, FastCgiRole::Filter, body, Some(data))?;
        self.ask_programs(question, request, fastcgi::ask).await
    }

    /// Asks one of its programs, which are authorizers, whether the request may go on.
    ///
    /// # Errors
    /// As [`ask`](Self::ask): it may not.
    ///
    /// # Cancel safety
    /// As [`ask`](Self::ask).
    pub async fn authorize(&self, question: &Question<'_>) -> Result<Verdict, Fault> {
        let fastcgi = self.options.fastcgi.as_ref().ok_or_else(no_servers)?;
        let (scripts, role) = (&fastcgi.scripts, FastCgiRole::Authorizer);
        let request = programs::request(question, scripts, role, Source::empty(), None)?;
        self.ask_programs(question, request, fastcgi::authorize).await
    }

    /// Asks its programs until one does something with the request.
    async fn ask_programs<T, F: Future<Output = Result<T, fastcgi::Unanswered>>>(
        &self,
        question: &Question<'_>,
        mut request: fastcgi::Request,
        ask: impl Fn(kept::Held, fastcgi::Request, fastcgi::Settings<kept::Held>) -> F,
    ) -> Result<T, Fault> {
        let mut last = no_servers();
        for member in self.in_turn() {
            let Kind::Program(program) = member.kind() else { continue };
            question.attempts.fetch_add(1, Ordering::Relaxed);
            let held = match program.connection(&self.options).await {
                Ok(held) => held,
                Err(fault) => {
                    member.is_down();
                    last = fault;
                    continue;
                }
            };
            member.is_up();
            let settings = programs::settings(&self.options, question, program.keeping(&held));
            let unanswered = match ask(held, request, settings).await {
                Ok(answer) => return Ok(answer),
                Err(unanswered) => unanswered,
            };
            match unanswered.request {
                Some(untouched) => (request, last) = (untouched, unanswered.fault),
                None => return Err(unanswered.fault),
            }
        }
        Err(last)
    }

    /// Its servers, each once: in turn, and those that could not be connected to a moment ago at last.
    fn in_turn(&self) -> impl Iterator<Item = &Member> {
        let count = self.members.len();
        let first = if count == 1 { 0 } else { self.turn.fetch_add(1, Ordering::Relaxed) % count };
        let all = move || (0..count).map(move |at| &self.members[(first + at) % count]);
        let (up, down): (Vec<_>, Vec<_>) = all().partition(|member| count == 1 || member.seems_up());
        up.into_iter().chain(down)
    }
}

fn no_servers() -> Fault {
    Fault::Unreachable("it has no servers of that kind".to_owned())
}

/// A connection that speaks another protocol than HTTP from here on.
#[derive(Debug)]
pub struct Tunnel {
    /// The connection.
    pub stream: Stream,
    /// What was read of it already.
    pub ahead: Bytes,
}

/// All upstreams of one configuration. When it goes, so do its idle connections.
#[derive(Debug, Default)]
pub struct Table(HashMap<String, Arc<Upstream>>);

impl Table {
    /// A table of the configuration's upstreams.
    pub fn new(upstreams: Vec<Options>) -> Self {
        let upstream = |options: Options| (options.name.clone(), Arc::new(Upstream::new(options)));
        Self(upstreams.into_iter().map(upstream).collect())
    }

    /// The upstream of that name.
    pub fn get(&self, name: &str) -> Option<&Arc<Upstream>> {
        self.0.get(name)
    }
}

impl Callouts for Table {
    fn fetch(&self, callout: Callout) -> Fetching {
        let Some(upstream) = self.0.get(&callout.upstream).map(Arc::clone) else {
            return Box::pin(std::future::ready(Err(CalloutError::Unknown)));
        };
        Box::pin(async move {
            // A timer of no time is looked at after what it is to end, which may be done at once.
            if callout.timeout.is_zero() {
                return Err(CalloutError::TimedOut);
            }
            let answer = tokio::time::timeout(callout.timeout, upstream.fetch(callout));
            answer.await.unwrap_or(Err(CalloutError::TimedOut))
        })
    }
}
