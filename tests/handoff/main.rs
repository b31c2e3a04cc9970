//! Handing over, through the real gateway to real daemon processes: what the daemon gets, what the client gets, and what
//! the gateway is left with, whatever dies, hangs or lies in between.

#[path = "../support/mod.rs"]
mod support;

mod allowed;
mod choice;
mod death;
mod hang;
mod ledger;
mod message;
mod position;
mod refused;
mod taken;
mod unix_client;

use serde_json::{Value, json};
use support::handing_over::{check_alive, logged};
use support::{Client, Gateway, eventually, is_asleep, waiting_at};

const KINDS: [&str; 2] = ["seqpacket", "stream"];

/// A gateway whose `/hand…` asks the policy that does what the request's fields say, and whose `/hello` answers itself.
/// `gateway` and `handoff` are settings of those tables, `targets` is whole tables.
fn configuration(gateway: &str, handoff: &str, targets: &str) -> String {
    let policy = "POLICIES/handoff_by_fields.wat";
    format!(
        "[gateway]\n{gateway}\nLISTEN\n[handoff]\n{handoff}\n{targets}\n\
         [policy.by-fields]\nmodule = \"{policy}\"\ndeadline = \"1s\"\ndecision_bytes_max = \"8MiB\"\n\
         [[route]]\npath = \"/hand\"\npolicies = [\"by-fields\"]\n\
         [[route]]\npath = \"/hello\"\ndefault = {{ respond = {{ status = 200, body = \"hello\" }} }}\n"
    )
}

/// The table of one target `chat` on the socket `d.sock`, of that dialect.
fn chat(dialect: &str) -> String {
    format!("[target.chat]\nsockets = [\"DIR/d.sock\"]\ndialect = \"{dialect}\"\n")
}

/// One target `chat`; nothing but the daemon ends a wait.
fn gateway(dialect: &str) -> Gateway {
    // A head that comes byte by byte, each seen to be taken, takes its time on a busy machine.
    let limits = "[limits]\nhead_timeout = \"60s\"\n";
    Gateway::start(&configuration("", "ack_timeout = \"60s\"", &format!("{limits}{}", chat(dialect))))
}

fn request(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n{fields}\r\n")
}

/// A field of the policy, unless it is empty.
fn data_field(data: &str) -> String {
    if data.is_empty() { String::new() } else { format!("x-data: {data}\r\n") }
}

#[track_caller]
fn check_logged(gateway: &Gateway, path: &str, outcome: &str, status: &Value, attempts: u32) -> Value {
    let line = logged(gateway, path);
    assert_eq!((&line["outcome"], &line["status"]), (&json!(outcome), status), "{line}");
    assert_eq!((&line["attempts"], &line["to"]), (&json!(attempts), &json!("chat")), "{line}");
    line
}

/// 503 on a connection that goes on.
#[track_caller]
fn check_refused_alive(client: &mut Client) {
    let answer = client.answer();
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{answer:?}");
    assert_eq!(answer.header("connection"), None, "{answer:?}");
    check_alive(client);
}

/// The daemon's answer, whole, once, and nothing else.
fn from(name: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nfrom {name}\n")
}

/// The message was sent, and waits with its connection in the daemon's backlog.
#[track_caller]
fn is_in_the_backlog(gateway: &Gateway) {
    let is_sent = || waiting_at(&gateway.path("d.sock")) > 0 && is_asleep(gateway.child.id());
    eventually("the message is in the backlog", || is_sent().then_some(()));
}

/// Each dialect, with no data (one byte) and with some: whether a closed connection proves that nobody has the client.
const CASES: [(&str, &str, bool); 4] =
    [("seqpacket", "", true), ("seqpacket", "some data", true), ("stream", "", true), ("stream", "some data", false)];
