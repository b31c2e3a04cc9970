//! A request as policies see it: its head, where it came from, and the edits that policies made so far.
//!
//! Plain data. The client's socket is not here: nobody who holds a [`Request`] can touch the client.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::decision::{Edits, Field};
use crate::http::body::Framing;
use crate::http::fields::list;
use crate::http::forwarded::{self, Node, TrustedProxies};
use crate::http::head::{RequestHead, Version};

/// Names one request in the log, to policies and to daemons: a ULID, sortable by time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id(ulid::Ulid);

impl Id {
    /// A new one; within a thread they ascend.
    pub fn new() -> Self {
        thread_local! {
            static GENERATOR: std::cell::RefCell<ulid::Generator> = const { std::cell::RefCell::new(ulid::Generator::new()) };
        }
        // The generator overflows after 2^80 in one millisecond; a random one is as good then.
        Self(GENERATOR.with_borrow_mut(|g| g.generate()).unwrap_or_else(|_| ulid::Ulid::new()))
    }

    /// Whether that is how it is written.
    pub fn is(self, text: &str) -> bool {
        ulid::Ulid::from_string(text).is_ok_and(|id| id == self.0)
    }
}

impl Default for Id {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(&self.0, f)
    }
}

/// Who is at the other end of a client's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Over TCP.
    Tcp(SocketAddr),
    /// Over a Unix socket (SO_PEERCRED, unix(7)).
    Unix {
        /// Effective user id when it connected.
        uid: u32,
        /// Effective group id when it connected.
        gid: u32,
        /// Process id; `None` where the kernel cannot tell (another pid namespace).
        pid: Option<u32>,
    },
}

/// What is the same for all requests of one connection.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Direct peer of the socket.
    pub peer: Peer,
    /// Address that the client connected to: `ip:port`, or the socket's path.
    pub local: Arc<str>,
    /// Name of the listener in the configuration.
    pub listener: Arc<str>,
}

impl Origin {
    /// The client's address for the log and for policies: an IP address without its port, or `unix:` and the user id.
    pub fn client_ip(&self) -> String {
        match self.peer {
            Peer::Tcp(address) => address.ip().to_canonical().to_string(),
            Peer::Unix { uid, .. } => format!("unix:{uid}"),
        }
    }
}

/// One request, from its complete head on.
#[derive(Clone, Debug)]
pub struct Request {
    /// Unique.
    pub id: Id,
    /// As it was received.
    pub head: RequestHead,
    /// Where it came from.
    pub origin: Arc<Origin>,
    /// The route that it took: its path in the configuration.
    pub route: Option<Arc<str>>,
    /// What an authorizer set: names as it wrote them, without `Variable-`.
    pub variables: Vec<(String, Vec<u8>)>,
    /// Who asks, where proxies in front of us are believed; absent: the peer.
    seen: Option<Box<Seen>>,
    edited: Option<Vec<Field>>,
}

/// What proxies in front of us say of a client.
#[derive(Clone, Debug)]
struct Seen {
    ip: String,
    scheme: &'static str,
}

impl Request {
    /// A request that nobody has edited.
    pub fn new(id: Id, head: RequestHead, origin: Arc<Origin>, route: Option<Arc<str>>) -> Self {
        Self { id, head, origin, route, variables: Vec::new(), seen: None, edited: None }
    }

    /// Believes what proxies in front of us say, as far as they are trusted.
    pub fn believe(&mut self, trusted: &TrustedProxies) {
        if trusted.is_empty() {
            return;
        }
        let client = self.client(trusted);
        let ip = match client.node {
            Node::Ip(ip) => ip.to_string(),
            Node::Unix => self.origin.client_ip(),
        };
        self.seen = Some(Box::new(Seen { ip, scheme: client.scheme }));
    }

    /// The client's address: an IP address without its port, or `unix:` and the user id.
    pub fn client_ip(&self) -> String {
        self.seen.as_ref().map_or_else(|| self.origin.client_ip(), |seen| seen.ip.clone())
    }

    /// `http`, or what a proxy in front of us was asked in.
    pub fn scheme(&self) -> &'static str {
        self.seen.as_ref().map_or("http", |seen| seen.scheme)
    }

    /// What an authorizer set by that name.
    pub fn variable(&self, name: &str) -> Option<&[u8]> {
        self.variables.iter().find(|(own, _)| own == name).map(|(_, value)| &value[..])
    }

    /// Applies a policy's edits; the next policy sees them. The head's exact bytes stay what they were.
    pub fn edit(&mut self, edits: &Edits) {
        if edits.is_empty() {
            return;
        }
        let as_received = || {
            let field = |(name, value): (&str, &[u8])| Field { name: name.to_ascii_lowercase(), value: value.to_vec() };
            self.head.fields().map(field).collect()
        };
        let mut fields = self.edited.take().unwrap_or_else(as_received);
        edits.apply(&mut fields);
        self.edited = Some(fields);
    }

    /// Whether its fields are other ones than its head's.
    pub fn is_edited(&self) -> bool {
        self.edited.is_some()
    }

    /// All fields with the edits made so far: name in lower case, in order.
    pub fn fields(&self) -> Vec<(Cow<'_, str>, &[u8])> {
        match &self.edited {
            Some(fields) => fields.iter().map(|f| (Cow::Borrowed(f.name.as_str()), &f.value[..])).collect(),
            None => self.head.fields().map(|(name, value)| (lower_case(name), value)).collect(),
        }
    }

    /// Values of all fields of that name, in any case, with the edits made so far.
    pub fn field_all(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        let edited = self.edited.iter().flatten();
        let edited = edited.filter(move |f| f.name.eq_ignore_ascii_case(name)).map(|f| &f.value[..]);
        let received = self.edited.is_none().then(|| self.head.field_all(name)).into_iter().flatten();
        edited.chain(received)
    }

    /// Who asks, and for what, as far as proxies in front of us are believed. It is about what was received: policies edit
    /// what goes on.
    pub fn client(&self, trusted: &TrustedProxies) -> forwarded::Client<'_> {
        let node = match self.origin.peer {
            Peer::Tcp(address) => Node::ip(address.ip()),
            Peer::Unix { .. } => Node::Unix,
        };
        forwarded::Client::direct(node, "http", self.head.authority()).behind(self.head.fields(), trusted)
    }

    /// Whether it asks for a WebSocket (RFC 6455 §4.1). Any other Upgrade is an ordinary request here.
    pub fn wants_websocket(&self) -> bool {
        let names = |name, option: &str| {
            self.field_all(name).flat_map(list).any(|member| member.eq_ignore_ascii_case(option.as_bytes()))
        };
        let may = self.head.method() == "GET" && self.head.version() == Version::Http11;
        may && self.head.framing() == Framing::None && names("upgrade", "websocket") && names("connection", "upgrade")
    }

    /// Whether fields behind the last chunk of an answer are understood (RFC 9110 §10.1.4).
    pub fn takes_trailers(&self) -> bool {
        self.field_all("te").flat_map(list).any(|coding| coding.eq_ignore_ascii_case(b"trailers"))
    }

    /// The first value of that name.
    pub fn field(&self, name: &str) -> Option<&[u8]> {
        self.field_all(name).next()
    }
}

fn lower_case(name: &str) -> Cow<'_, str> {
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::head::Limits;

    #[test]
    fn edits_are_seen_by_whoever_asks_next_and_the_bytes_stay() {
        let text = b"GET / HTTP/1.1\r\nHost: x\r\nA: 1\r\nA: 2\r\n\r\n";
        let head = RequestHead::parse(text, Limits::default()).expect("well-formed");
        let origin = Origin { peer: Peer::Unix { uid: 0, gid: 0, pid: None }, local: "".into(), listener: "l".into() };
        let mut request = Request::new(Id::new(), head, Arc::new(origin), None);
        assert_eq!(request.field_all("a").collect::<Vec<_>>(), [b"1", b"2"]);
        let set = vec![Field { name: "a".into(), value: b"3".to_vec() }];
        request.edit(&Edits { set, ..Edits::default() });
        assert_eq!(request.field_all("A").collect::<Vec<_>>(), [b"3"]);
        assert_eq!(request.fields().len(), 2);
        request.edit(&Edits { remove: vec!["a".into()], ..Edits::default() });
        assert_eq!(request.field("a"), None);
        assert_eq!(request.head.bytes(), text);
    }

    #[test]
    fn ids_ascend_within_a_thread() {
        let ids: Vec<String> = (0..1000).map(|_| Id::new().to_string()).collect();
        assert!(ids.is_sorted());
        assert_eq!(ids[0].len(), 26);
    }
}
