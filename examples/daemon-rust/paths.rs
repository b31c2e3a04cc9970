//! What the daemon answers, by the request's path.

use std::io::Read as _;
use std::thread;
use std::time::Duration;

use baton::handoff::{ClientError, End, Handoff, Left, Outcome, Reason};
use serde_json::{Map, Value, json};

const TEXT: &[(&str, &str)] = &[("Content-Type", "text/plain")];
const JSON: &[(&str, &str)] = &[("Content-Type", "application/json")];
const OCTETS: &[(&str, &str)] = &[("Content-Type", "application/octet-stream")];
const EVENTS: &[(&str, &str)] = &[("Content-Type", "text/event-stream"), ("Cache-Control", "no-store")];

/// How a handoff goes on behind the answer.
enum Next {
    Finish(End),
    GiveBack,
    Drop,
}

/// Serves one client. Whatever fails is told to the gateway: who has left, who was revoked, who made no progress.
pub(crate) fn serve(mut handoff: Handoff, interval: Duration) {
    // In dialects that do not say it everybody asks for this.
    let target = handoff.target().unwrap_or("/").to_owned();
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    if path == "/refuse" {
        let retry_after = parameter(query, "retry_after").and_then(|seconds| seconds.parse().ok());
        let reason = parameter(query, "reason").and_then(super::reason).unwrap_or(Reason::Overloaded);
        // It was not taken: nobody has read from it or written to it.
        return drop(handoff.refuse(reason, retry_after, "as asked"));
    }
    match answer(&mut handoff, path, query, interval) {
        Ok(Next::Finish(end)) => handoff.finish(end),
        Ok(Next::GiveBack) => handoff.give_back(200),
        Ok(Next::Drop) => drop(handoff),
        // The client is the gateway's still.
        Err(ClientError::ChannelEnded) => {}
        Err(error) => handoff.finish(&error),
    }
}

fn answer(handoff: &mut Handoff, path: &str, query: &str, interval: Duration) -> Result<Next, ClientError> {
    match path {
        "/hello" => handoff.respond(200, TEXT, b"hello\n")?,
        "/late" => {
            pause(Duration::from_secs(3));
            handoff.respond(200, TEXT, b"hello\n")?;
        }
        "/return" => return kept(handoff, TEXT, b"returned\n"),
        "/unread" => return kept(handoff, TEXT, b"unread\n"),
        "/echo" => {
            let mut body = Vec::new();
            if let Err(error) = handoff.body().read_to_end(&mut body) {
                return Ok(Next::Finish(
                    error.downcast::<ClientError>().map_or(End::error("unreadable"), |e| End::from(&e)),
                ));
            }
            return kept(handoff, OCTETS, &body);
        }
        "/env" => {
            let variables = handoff.env();
            let lossily = |(name, value): (String, std::ffi::OsString)| (name, value.to_string_lossy().into());
            let object: Map<String, Value> = variables.into_iter().map(lossily).collect();
            return kept(handoff, JSON, Value::Object(object).to_string().as_bytes());
        }
        "/meta" => {
            let metadata = Value::Object(handoff.metadata().clone()).to_string();
            return kept(handoff, JSON, metadata.as_bytes());
        }
        "/data" => {
            let data = handoff.data().to_vec();
            return kept(handoff, OCTETS, &data);
        }
        "/hold" => return hold(handoff),
        "/fail" => {
            handoff.respond(500, TEXT, b"failed\n")?;
            return Ok(Next::Finish(End { status: Some(500), ..End::error("as asked") }));
        }
        "/large" => {
            let bytes = parameter(query, "bytes").and_then(|bytes| bytes.parse().ok()).unwrap_or(0_usize);
            handoff.start(200, OCTETS)?;
            let piece = [b'a'; 16 << 10];
            for begun in (0..bytes).step_by(piece.len()) {
                handoff.write(&piece[..piece.len().min(bytes - begun)])?;
            }
        }
        "/drop" => {
            handoff.take()?;
            return Ok(Next::Drop);
        }
        _ => return stream(handoff, interval),
    }
    Ok(Next::Finish(200.into()))
}

/// Answers so that the client can send its next request, to the gateway.
fn kept(handoff: &mut Handoff, headers: &[(&str, &str)], body: &[u8]) -> Result<Next, ClientError> {
    handoff.respond_keep_alive(200, headers, body)?;
    Ok(Next::GiveBack)
}

fn hold(handoff: &mut Handoff) -> Result<Next, ClientError> {
    handoff.start(200, TEXT)?;
    handoff.write(b"held\n")?;
    // The stream may last for hours: what is not needed any more goes.
    handoff.shrink();
    let result = match handoff.wait_until_left(Duration::MAX) {
        Some(Left::Revoked) => Outcome::Revoked,
        Some(Left::Client) | None => Outcome::ClientGone,
    };
    Ok(Next::Finish(End { status: Some(200), ..End::of(result) }))
}

/// Ten events, the first with the data's text.
fn stream(handoff: &mut Handoff, interval: Duration) -> Result<Next, ClientError> {
    let first = String::from_utf8_lossy(handoff.data()).into_owned();
    handoff.start(200, EVENTS)?;
    for n in 1..=10 {
        let event = json!({ "n": n, "text": if n == 1 { &first } else { "hello" } });
        handoff.write(format!("data: {event}\n\n").as_bytes())?;
        match handoff.wait_until_left(interval) {
            None => {}
            Some(Left::Client) => return Ok(Next::Finish(End::of(Outcome::ClientGone))),
            Some(Left::Revoked) => return Err(ClientError::Revoked),
        }
    }
    handoff.write(b"event: done\ndata: {}\n\n")?;
    Ok(Next::Finish(200.into()))
}

fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

fn pause(time: Duration) {
    #[expect(clippy::disallowed_methods, reason = "the thread is this client's own")]
    thread::sleep(time);
}
