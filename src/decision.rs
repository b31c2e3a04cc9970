//! What a policy decides, and what became of the request.
//!
//! Plain data, used by everything that deals with requests. The words are those of `wit/policy.wit`; values that
//! come from a policy are checked where they enter ([`crate::policy`]), so what stands here can be used as it is.

use std::time::Duration;

/// A header field: name in lower case, value in raw bytes without control characters but tabs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Lower case token (RFC 9110 §5.1).
    pub name: String,
    /// Bytes as they go onto the wire (RFC 9110 §5.5).
    pub value: Vec<u8>,
}

/// Changes to a request that continues on its way; removal happens first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edits {
    /// Names whose fields are all removed.
    pub remove: Vec<String>,
    /// Fields that replace all of the same name.
    pub set: Vec<Field>,
    /// Fields added behind what is there.
    pub append: Vec<Field>,
}

impl Edits {
    /// Whether applying them changes nothing.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.append.is_empty()
    }

    /// Applies them to `fields`, whose names are in lower case.
    pub fn apply(&self, fields: &mut Vec<Field>) {
        fields.retain(|f| !self.remove.contains(&f.name));
        fields.retain(|f| !self.set.iter().any(|s| s.name == f.name));
        fields.extend(self.set.iter().chain(&self.append).cloned());
    }
}

/// Status and fields that the gateway writes before it lets go of the client; the daemon writes the body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// 200 to 599.
    pub status: u16,
    /// Never framing fields: those are the gateway's.
    pub headers: Vec<Field>,
}

impl ResponseHead {
    /// Whether a body may follow (RFC 9110 §15.3.5, §15.3.6, §15.4.5): without one there is nothing for a daemon to do.
    pub fn has_body(&self) -> bool {
        !matches!(self.status, 204 | 205 | 304)
    }
}

/// When a handoff may be a pair of sockets that the gateway translates between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RelayMode {
    /// Even where the client's own socket could be passed.
    Always,
    /// Where the client's own socket cannot be passed.
    #[default]
    IfNeeded,
    /// Then the handoff is refused instead.
    Never,
}

/// Give the client to a named target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handoff {
    /// A target of the configuration, or an absolute socket path below an allowed prefix.
    pub target: String,
    /// Opaque bytes that travel with the descriptor.
    pub data: Vec<u8>,
    /// Travels in the native dialect only.
    pub metadata: Vec<(String, String)>,
    /// Written to the client before the descriptor is sent. In the dialect `fdpass` one is written in any case.
    pub response_head: Option<ResponseHead>,
    /// Deliver the request head exactly as it was received. In the dialect `datagram` it is delivered in any case.
    pub include_head: bool,
    /// Whether a relay is wanted, allowed or forbidden.
    pub relay: RelayMode,
    /// Bounds connect, send and acknowledgement together; `None` is the target's own.
    pub timeout: Option<Duration>,
    /// Targets tried in order when this one did not take the client.
    pub alternates: Vec<String>,
    /// First bytes of the answer's body, written behind `response_head`; empty where there is none.
    pub response_body: Vec<u8>,
}

/// Let a server answer, through us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxy {
    /// An upstream of the configuration.
    pub upstream: String,
    /// Asked for in place of what the client asked for; `None`: the same, at the place that the upstream's address says.
    pub path_and_query: Option<String>,
    /// Changes to the request on its way there.
    pub request: Edits,
    /// Until the answer's head; `None`: the upstream's own.
    pub timeout: Option<Duration>,
    /// Whether the policy that decided so is asked about the answer's head.
    pub inspect_response: bool,
}

/// An answer made here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Respond {
    /// 200 to 599.
    pub status: u16,
    /// Never framing fields: those are the gateway's.
    pub headers: Vec<Field>,
    /// The whole body.
    pub body: Vec<u8>,
}

/// What shall happen now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Close the connection without an answer.
    Abort,
    /// Give the client to a daemon.
    Handoff(Handoff),
    /// No opinion: the next policy, then the route's default, with these edits. Of an answer: it is delivered with them.
    Pass(Edits),
    /// Let a server answer.
    Proxy(Proxy),
    /// Answer here.
    Respond(Respond),
}

impl Action {
    /// Each word there is for one.
    pub const WORDS: [&str; 5] = ["abort", "handoff", "pass", "proxy", "respond"];

    /// The word for it in the access log.
    pub fn word(&self) -> &'static str {
        Self::WORDS[match self {
            Self::Abort => 0,
            Self::Handoff(_) => 1,
            Self::Pass(_) => 2,
            Self::Proxy(_) => 3,
            Self::Respond(_) => 4,
        }]
    }
}

/// One line for people: what shall happen, and the figures that tell one from the other.
impl std::fmt::Display for Handoff {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "handoff to {} with {} bytes", self.target.escape_debug(), self.data.len())
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Abort => f.write_str("abort"),
            Self::Handoff(handoff) => handoff.fmt(f),
            Self::Pass(edits) if edits.is_empty() => f.write_str("pass"),
            Self::Pass(edits) => {
                let Edits { remove, set, append } = edits;
                write!(f, "pass with {} fields edited", remove.len() + set.len() + append.len())
            }
            Self::Proxy(proxy) => write!(f, "proxy to {}", proxy.upstream.escape_debug()),
            Self::Respond(respond) => write!(f, "respond {} with {} bytes", respond.status, respond.body.len()),
        }
    }
}

/// A policy's answer in one phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What shall happen.
    pub action: Action,
    /// Handed unchanged to the same policy's later hooks of this request; at most 65,536 bytes.
    pub carry: Vec<u8>,
    /// Added to the access log; the last value of a key wins.
    pub annotations: Vec<(String, String)>,
}

/// What became of a request: one case for every way that it can end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Closed without an answer because a policy said so, or because the gateway was stopped.
    Aborted,
    /// The request was at fault and was answered so.
    ClientError,
    /// The client left before it could be answered.
    ClientGone,
    /// A daemon read the message and owns the client.
    HandedOff,
    /// A policy failed and the request was answered so.
    PolicyError,
    /// An upstream answered, through us.
    Proxied,
    /// No daemon took the client; it was answered.
    Refused,
    /// Answered here.
    Responded,
    /// A daemon answered, and gave the client back for its next request.
    Returned,
    /// A daemon may or may not own the client; closed unwritten.
    Unanswered,
    /// An upstream did not answer, or not to its end: the request was answered so, or its answer cut.
    UpstreamError,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Aborted,
        Self::ClientError,
        Self::ClientGone,
        Self::HandedOff,
        Self::PolicyError,
        Self::Proxied,
        Self::Refused,
        Self::Responded,
        Self::Returned,
        Self::Unanswered,
        Self::UpstreamError,
    ];

    /// The stable word for it in the access log.
    pub fn word(self) -> &'static str {
        match self {
            Self::Aborted => "aborted",
            Self::ClientError => "client-error",
            Self::ClientGone => "client-gone",
            Self::HandedOff => "handed-off",
            Self::PolicyError => "policy-error",
            Self::Proxied => "proxied",
            Self::Refused => "refused",
            Self::Responded => "responded",
            Self::Returned => "returned",
            Self::Unanswered => "unanswered",
            Self::UpstreamError => "upstream-error",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(name: &str, value: &str) -> Field {
        Field { name: name.into(), value: value.into() }
    }

    #[test]
    fn edits_remove_first_then_set_then_append() {
        let mut fields = vec![field("a", "1"), field("b", "2"), field("a", "3"), field("c", "4")];
        let edits = Edits {
            remove: vec!["c".into()],
            set: vec![field("a", "5"), field("c", "6")],
            append: vec![field("b", "7")],
        };
        edits.apply(&mut fields);
        assert_eq!(fields, [field("b", "2"), field("a", "5"), field("c", "6"), field("b", "7")]);
    }
}
