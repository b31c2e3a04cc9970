//! `callout`: one request to a server of the configuration, and its whole answer.
//!
//! The guest is suspended while it waits, its deadline stands still, and the worker serves other clients: what bounds the
//! wait is the call's own timeout.

use std::time::Duration;

use super::Imports;
use crate::decision::Field;
use crate::http::fields::is_token_byte;
use crate::policy::bindings::{self, BadValue, callout, types};
use crate::policy::services::{Callout, CalloutAnswer, CalloutError};

/// The longest that one call can wait, whatever it asks for.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);

impl callout::Host for Imports {
    async fn fetch(&mut self, call: callout::Call) -> wasmtime::Result<Result<callout::Answer, callout::CallError>> {
        self.spoke = true;
        let identity = &self.identity;
        if !identity.may_call(&call.upstream) {
            return Ok(Err(callout::CallError::NotAllowed));
        }
        let callout = checked(call, identity.callout_bytes_max)?;
        let Some(services) = identity.services() else { return Ok(Err(callout::CallError::NotAllowed)) };
        if self.callouts >= identity.callouts_max {
            return Ok(Err(callout::CallError::Budget));
        }
        let Some(_place) = identity.registry().callout_place(identity.shared()) else {
            return Ok(Err(callout::CallError::Budget));
        };
        self.callouts += 1;
        let answer = self.deadline.stopped(services.callouts.fetch(callout)).await;
        Ok(answer.map(Into::into).map_err(Into::into))
    }
}

/// A call that can be sent as it is. What would break its lines is the policy's fault, as it is in a decision.
fn checked(call: callout::Call, answer_bytes_max: usize) -> wasmtime::Result<Callout> {
    let callout::Call { upstream, method, path_and_query, headers, body, timeout_ms } = call;
    if method.is_empty() || !method.bytes().all(is_token_byte) || method.eq_ignore_ascii_case("connect") {
        return Err(wasmtime::format_err!("callout.fetch: method {method:?} is no token, or CONNECT"));
    }
    let is_path = |b: u8| b.is_ascii_graphic() && b != b'#';
    if !path_and_query.starts_with('/') || !path_and_query.bytes().all(is_path) {
        return Err(wasmtime::format_err!(
            "callout.fetch: path-and-query {path_and_query:?} does not begin with / or is not percent-encoded"
        ));
    }
    let headers =
        bindings::fields(headers).map_err(|error: BadValue| wasmtime::format_err!("callout.fetch: {error}"))?;
    if headers.iter().filter(|field| field.name == "host").count() > 1 {
        return Err(wasmtime::format_err!("callout.fetch: more than one host"));
    }
    let timeout = Duration::from_millis(timeout_ms.into()).min(TIMEOUT_MAX);
    Ok(Callout { upstream, method, path_and_query, headers, body, timeout, answer_bytes_max })
}

impl From<CalloutAnswer> for callout::Answer {
    fn from(answer: CalloutAnswer) -> Self {
        let field = |Field { name, value }| types::Field { name, value };
        Self { status: answer.status, headers: answer.headers.into_iter().map(field).collect(), body: answer.body }
    }
}

impl From<CalloutError> for callout::CallError {
    fn from(error: CalloutError) -> Self {
        match error {
            CalloutError::TimedOut => Self::TimedOut,
            CalloutError::TooLarge => Self::TooLarge,
            CalloutError::Unknown => Self::NotAllowed,
            CalloutError::Unreachable(reason) => Self::Unreachable(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(method: &str, path: &str, headers: &[(&str, &[u8])]) -> callout::Call {
        let field = |(name, value): &(&str, &[u8])| types::Field { name: (*name).to_owned(), value: value.to_vec() };
        callout::Call {
            upstream: "app".into(),
            method: method.into(),
            path_and_query: path.into(),
            headers: headers.iter().map(field).collect(),
            body: Vec::new(),
            timeout_ms: u32::MAX,
        }
    }

    #[test]
    fn what_would_break_the_wire_is_refused_and_framing_is_ours() {
        let sent = checked(call("POST", "/a?b", &[("X-A", b"1"), ("Connection", b"x"), ("TE", b"trailers")]), 5)
            .expect("fits");
        assert_eq!(sent.headers, [Field { name: "x-a".into(), value: b"1".to_vec() }]);
        assert_eq!(sent.timeout, TIMEOUT_MAX);
        for (method, path) in [
            ("", "/"),
            ("A B", "/"),
            ("CONNECT", "/"),
            ("GET", ""),
            ("GET", "a"),
            ("GET", "/ "),
            ("GET", "/#"),
            ("GET", "/ü"),
            ("GET", "/\r\n"),
            ("GET", "http://x/"),
        ] {
            assert!(checked(call(method, path, &[]), 5).is_err(), "{method} {path}");
        }
        for field in [("a b", &b"1"[..]), ("a", b"\r\n"), ("a", b"\0"), ("", b"")] {
            assert!(checked(call("GET", "/", &[field]), 5).is_err(), "{field:?}");
        }
        assert!(checked(call("GET", "/", &[("host", b"a"), ("Host", b"b")]), 5).is_err());
    }
}
