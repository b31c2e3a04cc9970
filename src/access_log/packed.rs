//! A line that waits for a word of a daemon, in as little memory as it can: thousands of streams wait at a time.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::{Line, Pending, Record, Sinks};
use crate::decision::{Action, Outcome};
use crate::http::head::Version;

/// A line that is not filled in for the time being. Dropped, it is written with what is known.
#[derive(Debug)]
pub struct PackedLine(Option<Packed>);

#[derive(Debug)]
struct Packed {
    sinks: Arc<Sinks>,
    time: SystemTime,
    began: Instant,
    listener: Arc<str>,
    route: Option<Arc<str>>,
    policy: Option<Arc<str>>,
    version: Option<Word>,
    decision: Option<Word>,
    outcome: Outcome,
    status: Option<u16>,
    attempts: u32,
    daemons_tried: u32,
    /// Everything else.
    bytes: Box<[u8]>,
}

/// One of a few words, by its place among them.
type Word = u8;

fn place(word: Option<&str>, among: &[&str]) -> Option<Word> {
    let at = among.iter().position(|own| Some(*own) == word)?;
    Word::try_from(at).ok()
}

fn word(place: Option<Word>, among: &[&'static str]) -> Option<&'static str> {
    among.get(usize::from(place?)).copied()
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
            // Most are small: what is in front is left out.
            let digits = number.map(|number| (number.to_le_bytes(), (71 - number.leading_zeros() as usize) / 8));
            put(&mut out, digits.as_ref().map(|(bytes, count)| &bytes[..*count]));
        }
        Self {
            sinks,
            time,
            began: record.began,
            listener,
            route,
            policy,
            version: place(version, &Version::WORDS),
            decision: place(decision, &Action::WORDS),
            outcome,
            status,
            attempts,
            daemons_tried,
            // Copied to its length: what is cut off a longer piece of memory stays lost beside it.
            bytes: Box::from(&out[..]),
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
            version: word(self.version, &Version::WORDS),
            route: self.route,
            policy: self.policy,
            decision: word(self.decision, &Action::WORDS),
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

/// Nothing is written as a length of one byte, and so are most lengths; longer ones in four bytes behind one.
const NOTHING: u8 = 255;
const LONG: u8 = 254;

fn put(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    // Nobody's head is so long.
    let Some((length, bytes)) = bytes.and_then(|bytes| Some((u32::try_from(bytes.len()).ok()?, bytes))) else {
        return out.push(NOTHING);
    };
    match u8::try_from(length) {
        Ok(short) if short < LONG => out.push(short),
        _ => {
            out.push(LONG);
            out.extend_from_slice(&length.to_le_bytes());
        }
    }
    out.extend_from_slice(bytes);
}

fn get(from: &mut &[u8]) -> Option<Vec<u8>> {
    let length = match take::<1>(from) {
        [NOTHING] => return None,
        [LONG] => u32::from_le_bytes(take(from)) as usize,
        [short] => short.into(),
    };
    let (bytes, rest) = from.split_at(length);
    *from = rest;
    Some(bytes.to_vec())
}

fn take<const COUNT: usize>(from: &mut &[u8]) -> [u8; COUNT] {
    let (taken, rest) = from.split_first_chunk().expect("it was packed so");
    *from = rest;
    *taken
}

fn text(from: &mut &[u8]) -> Option<String> {
    get(from).map(|bytes| String::from_utf8(bytes).expect("it was text"))
}

fn number(from: &mut &[u8]) -> Option<u64> {
    get(from).map(|bytes| bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
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
        (record.version, record.decision) = (Some("1.1"), Some("handoff"));
        (record.status, record.generation, record.decide_us) = (Some(200), Some(u64::MAX), Some(0));
        (record.bytes_in, record.attempts, record.daemons_tried) = (5, 3, 2);
        record.annotations.insert("user".into(), "a\n".into());
        (record.user_agent, record.outcome) = (Some(vec![0xff, 0]), Outcome::HandedOff);
        let before = format!("{record:?}");
        let packed = Packed::new(Pending { sinks: Arc::default(), record });
        assert_eq!(format!("{:?}", packed.pending().record), before);
    }

    #[test]
    fn a_line_that_waits_is_small() {
        assert!(std::mem::size_of::<Packed>() <= 128, "{}", std::mem::size_of::<Packed>());
    }
}
