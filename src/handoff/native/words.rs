//! What frames say in JSON: who speaks, why somebody is refused, how it went, how busy a daemon is.

use serde_json::{Map, Value, json};

use super::frame::FrameError;

/// Names, roles and messages are for people: what is longer is cut.
const TEXT_BYTES_MAX: usize = 1024;

/// Who speaks, and what it can bear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Those that it speaks.
    pub versions: Vec<u64>,
    /// For people.
    pub name: String,
    /// Of the process.
    pub pid: u64,
    /// Handed over and not yet refused, done or returned, at a time; 0: none.
    pub in_flight_max: u64,
    /// Of one handoff; `None`: whatever comes.
    pub data_bytes_max: Option<u64>,
    /// What the daemon does, for people.
    pub roles: Vec<String>,
}

/// Why a daemon does not want a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For programs.
    pub reason: Reason,
    /// When it may be worth another try.
    pub retry_after_s: Option<u64>,
    /// For people.
    pub message: Option<String>,
}

/// See [`Refusal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Not this client.
    Denied,
    /// No new ones: it is about to end.
    Draining,
    /// Too many already.
    Overloaded,
    /// Not this kind of request.
    Unsupported,
}

/// How a client was served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Of the response, where the daemon wrote one.
    pub status: Option<u16>,
    /// Written to the client by the daemon.
    pub bytes_out: u64,
    /// From TAKEN on.
    pub duration_us: u64,
    /// How it ended.
    pub result: Outcome,
    /// For people.
    pub message: Option<String>,
}

/// See [`Report`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The client left before the end.
    ClientGone,
    /// The daemon failed.
    Error,
    /// As it should.
    Ok,
    /// The gateway asked to end it.
    Revoked,
    /// It took too long.
    Timeout,
}

/// How busy a daemon is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Clients that it has.
    pub in_flight: u64,
    /// 0 to 1.
    pub load: f64,
}

/// A word of the protocol for each case.
macro_rules! words {
    ($kind:ident { $($case:ident = $word:literal),* $(,)? }) => {
        impl $kind {
            /// The word for it in the protocol.
            pub fn word(self) -> &'static str {
                match self { $(Self::$case => $word),* }
            }

            fn of(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$case),)* _ => None }
            }
        }
    };
}

words!(Reason { Denied = "denied", Draining = "draining", Overloaded = "overloaded", Unsupported = "unsupported" });
words!(Outcome { ClientGone = "client-gone", Error = "error", Ok = "ok", Revoked = "revoked", Timeout = "timeout" });

impl Hello {
    pub(super) fn read(object: &Map<String, Value>) -> Result<Self, FrameError> {
        let numbers = |value: &Value| value.as_array().and_then(|all| all.iter().map(Value::as_u64).collect());
        let texts = |value: &Value| -> Vec<String> {
            value.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(cut)).collect()
        };
        Ok(Self {
            versions: object.get("versions").and_then(numbers).ok_or_else(|| wrong("HELLO", "no versions"))?,
            name: text(object, "name").unwrap_or_default(),
            pid: number(object, "pid").unwrap_or(0),
            in_flight_max: number(object, "in_flight_max").ok_or_else(|| wrong("HELLO", "no in_flight_max"))?,
            data_bytes_max: number(object, "data_bytes_max"),
            roles: object.get("roles").map(texts).unwrap_or_default(),
        })
    }

    pub(super) fn write(&self) -> Vec<u8> {
        let Self { versions, name, pid, in_flight_max, data_bytes_max, roles } = self;
        let mut hello = json!({ "versions": versions, "name": name, "pid": pid, "in_flight_max": in_flight_max });
        if let Some(max) = data_bytes_max {
            hello["data_bytes_max"] = (*max).into();
        }
        if !roles.is_empty() {
            hello["roles"] = roles.clone().into();
        }
        bytes(&hello)
    }
}

impl Refusal {
    pub(super) fn read(object: &Map<String, Value>) -> Result<Self, FrameError> {
        let reason = object.get("reason").and_then(|reason| Reason::of(reason.as_str()?));
        Ok(Self {
            reason: reason.ok_or_else(|| wrong("REFUSED", "no reason that is known"))?,
            retry_after_s: number(object, "retry_after_s"),
            message: text(object, "message"),
        })
    }

    pub(super) fn write(&self) -> Vec<u8> {
        let mut refusal = json!({ "reason": self.reason.word() });
        if let Some(seconds) = self.retry_after_s {
            refusal["retry_after_s"] = seconds.into();
        }
        if let Some(message) = &self.message {
            refusal["message"] = cut(message).into();
        }
        bytes(&refusal)
    }
}

impl Report {
    pub(super) fn read(kind: &'static str, object: &Map<String, Value>) -> Result<Self, FrameError> {
        let result = object.get("result").and_then(|result| Outcome::of(result.as_str()?));
        let status = number(object, "status").and_then(|status| u16::try_from(status).ok());
        Ok(Self {
            status: status.filter(|status| (100..=599).contains(status)),
            bytes_out: number(object, "bytes_out").unwrap_or(0),
            duration_us: number(object, "duration_us").unwrap_or(0),
            result: result.ok_or_else(|| wrong(kind, "no result that is known"))?,
            message: text(object, "message"),
        })
    }

    pub(super) fn write(&self) -> Vec<u8> {
        let Self { status, bytes_out, duration_us, result, message } = self;
        let mut report = json!({ "bytes_out": bytes_out, "duration_us": duration_us, "result": result.word() });
        if let Some(status) = status {
            report["status"] = (*status).into();
        }
        if let Some(message) = message {
            report["message"] = cut(message).into();
        }
        bytes(&report)
    }
}

impl Load {
    pub(super) fn read(object: &Map<String, Value>) -> Result<Self, FrameError> {
        let in_flight = number(object, "in_flight").ok_or_else(|| wrong("LOAD", "no in_flight"))?;
        let load = object.get("load").and_then(Value::as_f64).unwrap_or(0.0);
        Ok(Self { in_flight, load: load.clamp(0.0, 1.0) })
    }

    pub(super) fn write(&self) -> Vec<u8> {
        bytes(&json!({ "in_flight": self.in_flight, "load": self.load }))
    }
}

pub(super) fn wrong(kind: &'static str, what: impl Into<String>) -> FrameError {
    FrameError::Json { kind, what: what.into() }
}

pub(super) fn object(kind: &'static str, json: &[u8]) -> Result<Map<String, Value>, FrameError> {
    match serde_json::from_slice(json) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(wrong(kind, "no JSON object")),
        Err(error) => Err(wrong(kind, error.to_string())),
    }
}

pub(super) fn number(object: &Map<String, Value>, name: &str) -> Option<u64> {
    object.get(name)?.as_u64()
}

pub(super) fn text(object: &Map<String, Value>, name: &str) -> Option<String> {
    object.get(name)?.as_str().map(cut)
}

pub(super) fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned()
}

pub(super) fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}
