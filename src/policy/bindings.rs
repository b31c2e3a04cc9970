//! The contract of `wit/policy.wit` as Rust types, and the one place where a guest's values become ours.
//!
//! A decision that comes out of here can be used as it is: names are lower-case tokens, nothing that goes onto the wire
//! carries a control character, statuses are those of final answers, and framing fields are gone, because framing is the
//! gateway's. Generated names do not leave this folder.

use std::time::Duration;

pub(super) use super::error::BadValue;
use super::hooks::{Admittance, FailureStage, HandoffFailure};
use crate::decision::{Action, Decision, Edits, Field, Handoff, Proxy, RelayMode, Respond, ResponseHead};
use crate::http::fields::is_token_byte;
use crate::request::{Origin, Peer};

#[allow(
    missing_debug_implementations,
    missing_docs,
    unreachable_pub,
    clippy::allow_attributes_without_reason,
    reason = "written by bindgen"
)]
mod generated {
    wasmtime::component::bindgen!({
        path: "wit",
        inline: "
            package baton:host;
            /// What this version offers to policies, and the exports whose types it reads.
            world host {
                import baton:policy/types@0.1.0;
                import baton:policy/request@0.1.0;
                import baton:policy/response@0.1.0;
                import baton:policy/log@0.1.0;
                import baton:policy/metrics@0.1.0;
                import baton:policy/config@0.1.0;
                import baton:policy/clock@0.1.0;
                import baton:policy/random@0.1.0;
                import baton:policy/store@0.1.0;
                import baton:policy/targets@0.1.0;
                import baton:policy/callout@0.1.0;
                export baton:policy/lifecycle@0.1.0;
                export baton:policy/connection-hook@0.1.0;
                export baton:policy/failure-hook@0.1.0;
                export baton:policy/complete-hook@0.1.0;
            }
        ",
        world: "baton:host/host",
        imports: {
            default: trappable,
            "baton:policy/request.body-prefix": async | trappable,
            "baton:policy/callout.fetch": async | trappable,
        },
    });
}

pub(super) use generated::Host_ as World;
pub(super) use generated::baton::policy::{
    callout, clock, config, log, metrics, random, request, response, store, targets, types,
};
pub(super) use generated::exports::baton::policy::complete_hook::Summary;
pub(super) use generated::exports::baton::policy::connection_hook::{Connection, ConnectionAction};
pub(super) use generated::exports::baton::policy::failure_hook::{Failure, Stage};
pub(super) use generated::exports::baton::policy::lifecycle::Requirements;

/// Opaque bytes that a policy hands to its own later hooks.
const CARRY_BYTES_MAX: usize = 64 << 10;
/// They become a part of one line of the access log, which has room for so many bytes of all requests that wait.
const ANNOTATION_BYTES_MAX: usize = 16 << 10;
/// What is longer than any path would be said in both logs.
const TARGET_BYTES_MAX: usize = 16 << 10;
/// The client waits while they are tried in turn, each with its retries, and the log has a line for each.
const ALTERNATE_COUNT_MAX: usize = 16;

/// Fields that delimit messages or belong to one connection only: what a policy says of them is dropped.
const FRAMING_FIELDS: [&str; 8] =
    ["connection", "content-length", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"];

/// Checks a guest's decision and makes it ours.
pub(super) fn decision(given: types::Decision, bytes_max: usize) -> Result<Decision, BadValue> {
    let types::Decision { action, carry, annotations } = given;
    if carry.len() > CARRY_BYTES_MAX {
        return Err(BadValue::Carry { bytes: carry.len(), bytes_max: CARRY_BYTES_MAX });
    }
    let bytes = pairs(&annotations);
    if bytes > ANNOTATION_BYTES_MAX {
        return Err(BadValue::Annotations { bytes, bytes_max: ANNOTATION_BYTES_MAX });
    }
    let decision = Decision { action: self::action(action)?, carry, annotations };
    let bytes = size(&decision);
    if bytes > bytes_max {
        return Err(BadValue::Size { bytes_max });
    }
    Ok(decision)
}

/// Checks what a connection-hook said. Nothing has been read of the client and nothing will be written to it: a handoff
/// that has a head of either kind cannot be meant.
pub(super) fn admittance(given: ConnectionAction, bytes_max: usize) -> Result<Admittance, BadValue> {
    Ok(match given {
        ConnectionAction::Accept => Admittance::Accept,
        ConnectionAction::Reject => Admittance::Reject,
        ConnectionAction::Handoff(given) => {
            let has_head = given.response_head.is_some() || !given.response_body.is_empty();
            for (field, is_there) in [("response-head", has_head), ("include-head", given.include_head)] {
                if is_there {
                    return Err(BadValue::Untouched { field });
                }
            }
            let action = Action::Handoff(handoff(given)?);
            if action_size(&action) > bytes_max {
                return Err(BadValue::Size { bytes_max });
            }
            let Action::Handoff(handoff) = action else { unreachable!("it was made above") };
            Admittance::Handoff(Box::new(handoff))
        }
    })
}

/// A client's connection, for a connection-hook.
pub(super) fn connection(origin: &Origin) -> Connection {
    Connection {
        listener: origin.listener.to_string(),
        peer: peer(&origin.peer),
        local_address: origin.local.to_string(),
        // Listeners do not look into TLS in this version.
        sni: None,
        alpn: Vec::new(),
    }
}

/// Who is at the other end.
pub(super) fn peer(peer: &Peer) -> types::PeerAddress {
    match *peer {
        Peer::Tcp(address) => {
            let ip = address.ip().to_canonical().to_string();
            types::PeerAddress::Tcp(types::TcpPeer { ip, port: address.port() })
        }
        Peer::Unix { uid, gid, pid } => types::PeerAddress::Unix(types::UnixPeer { uid, gid, pid }),
    }
}

/// What a failure-hook is told.
pub(super) fn failure(failure: &HandoffFailure) -> Failure {
    Failure {
        target: failure.target.clone(),
        stage: match failure.stage {
            FailureStage::Acknowledge => Stage::Acknowledge,
            FailureStage::Connect => Stage::Connect,
            FailureStage::Resolve => Stage::Resolve,
            FailureStage::Send => Stage::Send,
            FailureStage::Upstream => Stage::Upstream,
        },
        errno: failure.errno,
        message: failure.message.clone(),
        attempt: failure.attempt,
        retryable: failure.retryable,
    }
}

/// What a complete-hook is told.
pub(super) fn summary(summary: &super::Summary) -> Summary {
    Summary {
        request_id: summary.request_id.clone(),
        action: summary.action.to_owned(),
        target: summary.target.clone(),
        status: summary.status,
        duration_us: u64::try_from(summary.duration.as_micros()).unwrap_or(u64::MAX),
        bytes_in: summary.bytes_in,
        bytes_out: summary.bytes_out,
    }
}

fn action(given: types::Action) -> Result<Action, BadValue> {
    Ok(match given {
        types::Action::Abort => Action::Abort,
        types::Action::Handoff(given) => Action::Handoff(handoff(given)?),
        types::Action::Pass(given) => Action::Pass(edits(given)?),
        types::Action::Proxy(given) => Action::Proxy(proxy(given)?),
        types::Action::Respond(given) => Action::Respond(Respond {
            status: status(given.status)?,
            headers: fields(given.headers)?,
            body: given.body,
        }),
    })
}

fn handoff(given: types::Handoff) -> Result<Handoff, BadValue> {
    let (count, count_max) = (given.alternates.len(), ALTERNATE_COUNT_MAX);
    if count > count_max {
        return Err(BadValue::Alternates { count, count_max });
    }
    let response_head = match given.response_head {
        Some(head) => Some(ResponseHead { status: status(head.status)?, headers: fields(head.headers)? }),
        None => None,
    };
    Ok(Handoff {
        target: target(given.target)?,
        data: given.data,
        metadata: given.metadata,
        response_head,
        include_head: given.include_head,
        relay: match given.relay {
            types::RelayMode::Always => RelayMode::Always,
            types::RelayMode::IfNeeded => RelayMode::IfNeeded,
            types::RelayMode::Never => RelayMode::Never,
        },
        timeout: given.timeout_ms.map(|ms| Duration::from_millis(ms.into())),
        alternates: given.alternates.into_iter().map(target).collect::<Result<_, _>>()?,
        response_body: given.response_body,
    })
}

fn proxy(given: types::Proxy) -> Result<Proxy, BadValue> {
    if given.upstream.is_empty() || given.upstream.len() > TARGET_BYTES_MAX || given.upstream.contains('\0') {
        return Err(BadValue::Upstream { upstream: given.upstream });
    }
    let is_target = |text: &String| text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
    if let Some(text) = given.path_and_query.as_ref().filter(|text| !is_target(text)) {
        return Err(BadValue::PathAndQuery { text: text.clone() });
    }
    Ok(Proxy {
        upstream: given.upstream,
        path_and_query: given.path_and_query,
        request: edits(given.request)?,
        timeout: given.timeout_ms.map(|ms| Duration::from_millis(ms.into())),
        inspect_response: given.inspect_response,
    })
}

fn edits(given: types::Edits) -> Result<Edits, BadValue> {
    let mut remove = given.remove.into_iter().map(name).collect::<Result<Vec<_>, _>>()?;
    remove.retain(|name| !is_framing(name));
    Ok(Edits { remove, set: fields(given.set)?, append: fields(given.append)? })
}

pub(super) fn fields(given: Vec<types::Field>) -> Result<Vec<Field>, BadValue> {
    let mut fields = Vec::with_capacity(given.len());
    for types::Field { name, value } in given {
        let name = self::name(name)?;
        if is_framing(&name) {
            continue;
        }
        if value.iter().any(|&byte| byte.is_ascii_control() && byte != b'\t') {
            return Err(BadValue::FieldValue { name });
        }
        fields.push(Field { name, value });
    }
    Ok(fields)
}

fn name(mut given: String) -> Result<String, BadValue> {
    if given.is_empty() || !given.bytes().all(is_token_byte) {
        return Err(BadValue::FieldName { name: given });
    }
    given.make_ascii_lowercase();
    Ok(given)
}

fn is_framing(name: &str) -> bool {
    FRAMING_FIELDS.contains(&name)
}

fn status(given: u16) -> Result<u16, BadValue> {
    if (200..=599).contains(&given) { Ok(given) } else { Err(BadValue::Status { status: given }) }
}

fn target(given: String) -> Result<String, BadValue> {
    if given.is_empty() || given.len() > TARGET_BYTES_MAX || given.contains('\0') {
        return Err(BadValue::Target { target: given });
    }
    Ok(given)
}

/// All strings and lists of a decision together, in bytes.
fn size(decision: &Decision) -> usize {
    action_size(&decision.action) + decision.carry.len() + pairs(&decision.annotations)
}

fn pairs(pairs: &[(String, String)]) -> usize {
    pairs.iter().map(|(key, value)| key.len() + value.len()).sum()
}

fn action_size(action: &Action) -> usize {
    let fields = |fields: &[Field]| fields.iter().map(|f| f.name.len() + f.value.len()).sum::<usize>();
    let names = |names: &[String]| names.iter().map(String::len).sum::<usize>();
    let edits = |edits: &Edits| names(&edits.remove) + fields(&edits.set) + fields(&edits.append);
    match action {
        Action::Abort => 0,
        Action::Handoff(h) => {
            let head = h.response_head.as_ref().map_or(0, |head| fields(&head.headers));
            h.target.len() + h.data.len() + pairs(&h.metadata) + head + names(&h.alternates) + h.response_body.len()
        }
        Action::Pass(given) => edits(given),
        Action::Proxy(proxy) => {
            proxy.upstream.len() + proxy.path_and_query.as_ref().map_or(0, String::len) + edits(&proxy.request)
        }
        Action::Respond(respond) => fields(&respond.headers) + respond.body.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(name: &str, value: &[u8]) -> types::Field {
        types::Field { name: name.into(), value: value.to_vec() }
    }

    fn given(action: types::Action) -> types::Decision {
        types::Decision { action, carry: Vec::new(), annotations: Vec::new() }
    }

    fn respond(status: u16, headers: Vec<types::Field>) -> types::Decision {
        given(types::Action::Respond(types::Respond { status, headers, body: b"body".to_vec() }))
    }

    #[test]
    fn names_become_lower_case_and_framing_fields_are_dropped() {
        let headers = vec![field("X-A", b"1"), field("Content-Length", b"7"), field("CONNECTION", b"close")];
        let Action::Respond(respond) = decision(respond(200, headers), 1 << 20).expect("usable").action else {
            panic!("a respond stays a respond");
        };
        assert_eq!(respond.headers, [Field { name: "x-a".into(), value: b"1".to_vec() }]);
    }

    #[test]
    fn a_status_is_that_of_a_final_answer() {
        for (status, usable) in [(0, false), (101, false), (199, false), (200, true), (599, true), (600, false)] {
            assert_eq!(decision(respond(status, vec![]), 1 << 20).is_ok(), usable, "{status}");
        }
    }

    #[test]
    fn nothing_can_break_a_line_on_the_wire() {
        for value in [&b"a\r"[..], b"a\nb", b"\0", b"\x1b[2J", b"a\x7f"] {
            let decided = decision(respond(200, vec![field("a", value)]), 1 << 20);
            assert_eq!(decided, Err(BadValue::FieldValue { name: "a".into() }));
        }
        for name in ["", "a b", "a\r\nb", "a:", "ü"] {
            let decided = decision(respond(200, vec![field(name, b"")]), 1 << 20);
            assert_eq!(decided, Err(BadValue::FieldName { name: name.into() }));
        }
    }

    #[test]
    fn sizes_are_bounded_at_the_limit_and_not_below() {
        assert!(decision(respond(200, vec![field("ab", b"cd")]), 8).is_ok());
        let over = decision(respond(200, vec![field("ab", b"cde")]), 8);
        assert_eq!(over, Err(BadValue::Size { bytes_max: 8 }));
        let mut carrying = given(types::Action::Abort);
        carrying.carry = vec![0; CARRY_BYTES_MAX + 1];
        assert!(matches!(decision(carrying, 1 << 20), Err(BadValue::Carry { .. })));
        let annotated = |bytes| types::Decision {
            annotations: vec![("k".into(), "v".repeat(bytes - 1))],
            ..given(types::Action::Abort)
        };
        assert!(decision(annotated(ANNOTATION_BYTES_MAX), 1 << 20).is_ok());
        assert!(matches!(decision(annotated(ANNOTATION_BYTES_MAX + 1), 1 << 20), Err(BadValue::Annotations { .. })));
    }

    #[test]
    fn alternates_are_few() {
        let alternates = |count| types::Handoff {
            target: "t".into(),
            data: Vec::new(),
            metadata: Vec::new(),
            response_head: None,
            include_head: false,
            relay: types::RelayMode::Never,
            timeout_ms: None,
            alternates: vec!["t".into(); count],
            response_body: Vec::new(),
        };
        assert!(handoff(alternates(ALTERNATE_COUNT_MAX)).is_ok());
        let (count, count_max) = (ALTERNATE_COUNT_MAX + 1, ALTERNATE_COUNT_MAX);
        assert_eq!(handoff(alternates(count)).err(), Some(BadValue::Alternates { count, count_max }));
    }

    #[test]
    fn a_target_is_a_name() {
        let longest = "a".repeat(TARGET_BYTES_MAX);
        assert_eq!(target(longest.clone()), Ok(longest.clone()));
        for name in ["", "a\0b", &format!("{longest}a")] {
            assert!(matches!(target(name.into()), Err(BadValue::Target { .. })));
        }
    }
}
