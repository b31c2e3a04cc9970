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
mod pool;
mod programs;
mod tls;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use hyper::body::Bytes;
use hyper::header::{CONTENT_LENGTH, HeaderName, HeaderValue, InvalidHeaderName, TRANSFER_ENCODING};
use hyper::{HeaderMap, Method, Request, Uri};

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
use crate::http::forward::{self, Onward};
use crate::http::mount;
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
    /// Asked for in place of what the client asked for; its path is normalised first.
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

    fn request(&self, question: &Question<'_>, member: &Member, body: Source) -> Result<Request<Source>, Fault> {
        let head = &question.request.head;
        let address = member.address();
        let target = match question.path_and_query {
            None => mount::target(head, question.mount, address.inside.as_deref()),
            Some(written) => inside(written, question.mount, address).into(),
        };
        let onward = Onward {
            method: question.method.unwrap_or(head.method()),
            version: head.version(),
            client: question.client,
            host: match &self.options.host {
                Some(host) => host,
                None if head.authority().is_empty() => &address.authority(),
                None => head.authority(),
            },
            expect: question.expect,
            upgrade: question.wants_websocket.then_some("websocket"),
        };
        let mut request = Request::new(body);
        *request.method_mut() = Method::from_bytes(onward.method.as_bytes()).map_err(refused)?;
        *request.uri_mut() = uri(&target)?;
        let mut fields = Fields::with_room_for(head.bytes().len());
        let keep = |name: &str, value: &[u8]| fields.put(name, value);
        if !question.edits.is_empty() {
            let mut edited = question.request.clone();
            edited.edit(question.edits);
            let given = edited.fields();
            forward::request(given.iter().map(|(name, value)| (&**name, *value)), &onward, keep).map_err(refused)?;
        } else if question.request.is_edited() {
            let given = question.request.fields();
            forward::request(given.iter().map(|(name, value)| (&**name, *value)), &onward, keep).map_err(refused)?;
        } else {
            forward::request(head.fields(), &onward, keep).map_err(refused)?;
        }
        *request.headers_mut() = fields.into_map();
        for (name, value) in &question.request.variables {
            put(request.headers_mut(), &format!("variable-{name}"), value);
        }
        match request.body().length() {
            // Whoever sends no body with a method that has none says nothing of it.
            Some(0) if matches!(onward.method, "GET" | "HEAD" | "DELETE" | "OPTIONS" | "TRACE") => {}
            Some(length) => drop(request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length))),
            None => drop(request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"))),
        }
        Ok(request)
    }
}

/// What a server is asked for where a policy or an application says it: the address's path inside takes the place of the
/// route's, or stands in front.
fn inside(written: &str, mount: &str, address: &Address) -> String {
    let (path, query) = written.split_once('?').map_or((written, None), |(path, query)| (path, Some(query)));
    match &address.inside {
        Some(inside) => mount::replace(path, query, mount, inside),
        None => written.to_owned(),
    }
}

/// A request target as hyper takes one. The few bytes that stand in no URI (RFC 3986 §2) and that clients send all the
/// same go on escaped.
fn uri(target: &str) -> Result<Uri, Fault> {
    if let Ok(uri) = target.parse() {
        return Ok(uri);
    }
    let mut escaped = String::with_capacity(target.len() + 8);
    for byte in target.bytes() {
        match byte {
            b'<' | b'>' | b'`' | b'"' | b'{' | b'}' | b'^' | b'|' | b'\\' => escaped += &format!("%{byte:02X}"),
            byte => escaped.push(byte.into()),
        }
    }
    escaped.parse().map_err(refused)
}

/// The fields of a request as they are put together. Values become pieces of one buffer: most are short, and memory for
/// each would cost more than they do.
struct Fields {
    names: Vec<(HeaderName, usize)>,
    values: Vec<u8>,
}

impl Fields {
    /// For a head of so many bytes, and what is added to it.
    fn with_room_for(head_bytes: usize) -> Self {
        Self { names: Vec::with_capacity(32), values: Vec::with_capacity(head_bytes + 256) }
    }

    /// Puts a field, but for its length: that is what the body's source says. What hyper refuses is left out.
    fn put(&mut self, name: &str, value: &[u8]) {
        if name.eq_ignore_ascii_case("content-length") {
            return;
        }
        if let Ok(name) = field_name(name) {
            self.values.extend_from_slice(value);
            self.names.push((name, self.values.len()));
        }
    }

    fn into_map(self) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(self.names.len() + 1);
        let (values, mut start) = (Bytes::from(self.values), 0);
        for (name, end) in self.names {
            if let Ok(value) = HeaderValue::from_maybe_shared(values.slice(start..end)) {
                map.append(name, value);
            }
            start = end;
        }
        map
    }
}

/// What every request is given needs no memory of its own.
fn field_name(name: &str) -> Result<HeaderName, InvalidHeaderName> {
    match name {
        "x-forwarded-for" => Ok(const { HeaderName::from_static("x-forwarded-for") }),
        "x-forwarded-proto" => Ok(const { HeaderName::from_static("x-forwarded-proto") }),
        "x-forwarded-host" => Ok(const { HeaderName::from_static("x-forwarded-host") }),
        name => HeaderName::from_bytes(name.as_bytes()),
    }
}

/// Puts a field that was checked where it came in; what hyper refuses all the same is left out.
fn put(fields: &mut HeaderMap, name: &str, value: &[u8]) {
    if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value)) {
        fields.append(name, value);
    }
}

fn no_servers() -> Fault {
    Fault::Unreachable("it has no servers of that kind".to_owned())
}

/// What cannot be sent to any server.
fn refused(error: impl std::error::Error) -> Fault {
    Fault::Broken(format!("the request cannot be sent: {error}"))
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
