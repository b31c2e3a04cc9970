//! Servers that answer through us: every byte that they are asked, every byte that their clients get, and what the gateway
//! is left with, whatever either side does.
#![cfg(feature = "gateway")]

#[path = "../support/mod.rs"]
mod support;

mod answers;
mod bodies;
mod handoff_fields;
mod interim;
mod lifecycle;
mod many;
mod pace;
mod requests;
mod times;
mod websocket;

use serde_json::Value;
use support::upstream::{Serving, Upstream};
use support::{Client, Gateway};

/// Every path is answered by the upstream `app`. One worker: what one request leaves behind, the next one finds. `gateway`,
/// `limits` and `upstream` are settings of those tables.
fn configuration(gateway: &str, limits: &str, address: &str, upstream: &str) -> String {
    format!(
        "[gateway]\nworkers = 1\n{gateway}\n[limits]\n{limits}\nLISTEN\n[upstream.app]\naddress = {address}\n{upstream}\n\
         [[route]]\npath = \"/\"\ndefault = {{ proxy = \"app\" }}\n"
    )
}

/// A gateway before an upstream whose connections the test accepts.
fn before(upstream: &Upstream, limits: &str, settings: &str) -> Gateway {
    Gateway::start(&configuration("", limits, &format!("\"{}\"", upstream.address()), settings))
}

/// A gateway before an upstream that answers by itself.
fn before_serving(upstream: &Serving, limits: &str, settings: &str) -> Gateway {
    Gateway::start(&configuration("", limits, &format!("\"{}\"", upstream.address()), settings))
}

/// What every request of a client at 127.0.0.1 for the host `x` goes on with.
const OURS: &str = "x-forwarded-for: 127.0.0.1\r\nx-forwarded-proto: http\r\nx-forwarded-host: x\r\n\
                    forwarded: for=127.0.0.1;host=x;proto=http\r\nvia: 1.1 baton\r\n";

/// The answer that an upstream gives where the answer does not matter.
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// The same as the client gets it, but for its date.
const OK_RELAYED: &str = "HTTP/1.1 200 OK\r\nVia: 1.1 baton\r\nContent-Length: 2\r\n\r\nok";

/// Whether the other end closes, in good order or not, without a byte more.
#[track_caller]
fn check_closed(peer: &mut Client) {
    assert_eq!(peer.rest(), "");
}

/// The line of the access log about that target, as soon as it is there.
#[track_caller]
fn logged(gateway: &Gateway, target: &str) -> Value {
    support::eventually(&format!("a line about {target}"), || {
        gateway.log().into_iter().find(|line| line["target"] == target)
    })
}

#[track_caller]
fn check_logged(gateway: &Gateway, target: &str, outcome: &str, status: impl Into<Value>) -> Value {
    let line = logged(gateway, target);
    assert_eq!((&line["outcome"], &line["status"]), (&outcome.into(), &status.into()), "{line}");
    line
}
