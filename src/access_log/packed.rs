//! A line that waits for a word of a daemon, in as little memory as it can: thousands of streams wait at a time.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::{Line, Pending, Record, Sinks};
use crate::decision::Outcome;

/// A line that is not filled in for the time being. Dropped, it is written with what is known.
#[derive(Debug)]
pub struct PackedLine(Option<Packed>);

#[derive(Debug)]
struct Packed {
    sinks: Sinks,
    time: SystemTime,
    began: Instant,
    listener: Arc<str>,
    route: Option<Arc<str>>,
    policy: Option<Arc<str>>,
    version: Option<&'static str>,
    decision: Option<&'static str>,
    outcome: Outcome,
    status: Option<u16>,
    attempts: u32,
    daemons_tried: u32,
    /// Everything else.
    bytes: Box<[u8]>,
}

impl Line {
    /// Packs it, until more is known.
    pub fn pack(mut self) -> PackedLine {
        PackedLine(self.0.take().map(|pending| Packed::new(*pending)))
    }
}

impl PackedLine {
    /// As it was.
    pub fn unpack(mut self) -> Line {
        Line(self.0.take().map(|packed| Box::new(packed.pending())))
    }
}

impl Drop for PackedLine {
    fn drop(&mut self) {
        if let Some(packed) = self.0.take() {
            drop(Line(Some(Box::new(packed.pending()))));
        }
    }
}

impl Packed {
    fn new(Pending { sinks, record }: Pending) -> Self {
        let Record {
            time, listener, route, policy, version, decision, outcome, status, attempts, daemons_tried, ..
        } = record;
        let mut out = Vec::with_capacity(256);
        let annotations = (!record.annotations.is_empty())
            .then(|| serde_json::to_vec(&record.annotations).expect("a map with text keys is JSON"));
        let texts = [
            Some(record.id.as_bytes()),
            Some(record.client.as_bytes()),
            record.method.as_deref().map(str::as_bytes),
            record.target.as_deref().map(str::as_bytes),
            record.host.as_deref().map(str::as_bytes),
            record.to.as_deref().map(str::as_bytes),
            record.error.as_deref().map(str::as_bytes),
            annotations.as_deref(),
            record.referer.as_deref(),
            record.user_agent.as_deref(),
        ];
        texts.into_iter().for_each(|text| put(&mut out, text));
        let numbers =
            [record.generation, Some(record.bytes_in), Some(record.bytes_out), record.decide_us, record.handoff_us];
        for number in numbers {
            put(&mut out, number.map(u64::to_le_bytes).as_ref().map(<[u8; 8]>::as_slice));
        }
        Self {
            sinks,
            time,
            began: record.began,
            listener,
            route,
            policy,
            version,
            decision,
            outcome,
            status,
            attempts,
            daemons_tried,
            bytes: out.into_boxed_slice(),
        }
    }

    fn pending(self) -> Pending {
        let mut bytes = &self.bytes[..];
        let from = &mut bytes;
        let record = Record {
            time: self.time,
            id: text(from).unwrap_or_default(),
            client: text(from).unwrap_or_default(),
            listener: self.listener,
            method: text(from),
            target: text(from),
            host: text(from),
            to: text(from),
            error: text(from),
            annotations: get(from).and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default(),
            referer: get(from),
            user_agent: get(from),
            generation: number(from),
            bytes_in: number(from).unwrap_or_default(),
            bytes_out: number(from).unwrap_or_default(),
            decide_us: number(from),
            handoff_us: number(from),
            version: self.version,
            route: self.route,
            policy: self.policy,
            decision: self.decision,
            outcome: self.outcome,
            status: self.status,
            attempts: self.attempts,
            daemons_tried: self.daemons_tried,
            duration_us: 0,
            began: self.began,
        };
        Pending { sinks: self.sinks, record }
    }
}

/// Nothing is written as the longest length.
const NOTHING: u32 = u32::MAX;

fn put(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    let length = bytes.map_or(Some(NOTHING), |bytes| u32::try_from(bytes.len()).ok().filter(|l| *l < NOTHING));
    let (length, bytes) = length.map_or((NOTHING, &[][..]), |length| (length, bytes.unwrap_or_default()));
    out.write_all(&length.to_le_bytes()).and_then(|()| out.write_all(bytes)).expect("memory takes what is written");
}

fn get(from: &mut &[u8]) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length).expect("it was packed so");
    let length = u32::from_le_bytes(length);
    if length == NOTHING {
        return None;
    }
    let (bytes, rest) = from.split_at(length as usize);
    *from = rest;
    Some(bytes.to_vec())
}

fn text(from: &mut &[u8]) -> Option<String> {
    get(from).map(|bytes| String::from_utf8(bytes).expect("it was text"))
}

fn number(from: &mut &[u8]) -> Option<u64> {
    get(from).map(|bytes| u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Id, Origin, Peer};

    #[test]
    fn what_is_packed_is_the_same_when_it_is_unpacked() {
        let peer = Peer::Unix { uid: 7, gid: 8, pid: None };
        let origin = Origin { peer, local: "/run/x".into(), listener: "file".into() };
        let mut record = Record::begin(Id::new(), &origin);
        record.target = Some("/é?".repeat(1000));
        (record.method, record.to, record.error) = (Some("GET".into()), Some(String::new()), None);
        (record.status, record.generation, record.decide_us) = (Some(200), Some(u64::MAX), Some(0));
        (record.bytes_in, record.attempts, record.daemons_tried) = (5, 3, 2);
        record.annotations.insert("user".into(), "a\n".into());
        (record.user_agent, record.outcome) = (Some(vec![0xff, 0]), Outcome::HandedOff);
        let before = format!("{record:?}");
        let packed = Packed::new(Pending { sinks: Sinks::default(), record });
        assert_eq!(format!("{:?}", packed.pending().record), before);
    }

    #[test]
    fn a_line_that_waits_is_small() {
        assert!(std::mem::size_of::<Packed>() <= 216, "{}", std::mem::size_of::<Packed>());
    }
}
