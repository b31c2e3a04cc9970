//! A request as it goes on to an HTTP server.

use hyper::body::Bytes;
use hyper::header::{CONTENT_LENGTH, HeaderName, HeaderValue, InvalidHeaderName, TRANSFER_ENCODING};
use hyper::{HeaderMap, Method, Request, Uri};

use super::member::Member;
use super::{Address, Fault, Question, Source, Upstream};
use crate::http::forward::{self, Onward};
use crate::http::mount;
use crate::http::path::normalise;

impl Upstream {
    /// The request for one of its servers.
    pub(super) fn request(
        &self,
        question: &Question<'_>,
        member: &Member,
        body: Source,
    ) -> Result<Request<Source>, Fault> {
        let head = &question.request.head;
        let address = member.address();
        let target = match question.path_and_query {
            None => mount::target(head, question.mount, address.inside.as_deref()),
            Some(written) => inside(written, question.mount, address)?.into(),
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
            let edited = question.edited();
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
/// route's, or stands in front, and nothing in it leads out of there again.
fn inside(written: &str, mount: &str, address: &Address) -> Result<String, Fault> {
    let Some(inside) = &address.inside else { return Ok(written.to_owned()) };
    let (path, query) = written.split_once('?').map_or((written, None), |(path, query)| (path, Some(query)));
    let path = normalise(path).map_err(|error| Fault::BadRequest(error.to_string()))?;
    Ok(mount::replace(&path, query, mount, inside))
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
pub(super) fn put(fields: &mut HeaderMap, name: &str, value: &[u8]) {
    if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value)) {
        fields.append(name, value);
    }
}

/// What cannot be sent to any server.
fn refused(error: impl std::error::Error) -> Fault {
    Fault::Broken(format!("the request cannot be sent: {error}"))
}
