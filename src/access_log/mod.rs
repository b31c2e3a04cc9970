//! Exactly one line for every request, written when the request is over.
//!
//! A [`Line`] is made when a head has begun and written when it is dropped: forgetting to log is impossible, and a task
//! that is cut logs `aborted`. Lines go to a thread of their own over a bounded queue, so that a slow disk or a blocked
//! pipe never holds up a client; lines that do not fit are counted, and the count is logged. So are those that could not be
//! written. A line that is in the file is there whole, even where a disk was full in the middle of it.

mod packed;
mod writer;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

pub use self::packed::PackedLine;
pub use self::writer::{AccessLog, Format, Options, Sink};
use crate::counts::{Counts, Ended};
use crate::decision::Outcome;
use crate::request::Request;

/// What is made of the requests that are over.
#[derive(Clone, Debug, Default)]
pub struct Sinks {
    /// A line for each.
    pub log: Option<AccessLog>,
    /// Figures; those of this worker.
    pub counts: Option<Arc<Counts>>,
}

impl Sinks {
    fn are_there(&self) -> bool {
        self.log.is_some() || self.counts.is_some()
    }
}

/// The line of one request. Written, and counted, when it is dropped.
#[derive(Debug)]
pub struct Line(Option<Box<Pending>>);

/// A record that is being filled in, and what it is for; without any of it, somebody else wants to read it.
#[derive(Debug)]
struct Pending {
    sinks: Arc<Sinks>,
    record: Record,
}

/// What a line says. Times are in microseconds, sizes in bytes.
#[derive(Debug, Serialize)]
pub struct Record {
    #[serde(serialize_with = "rfc3339")]
    time: SystemTime,
    id: String,
    client: String,
    listener: Arc<str>,
    method: Option<String>,
    target: Option<String>,
    host: Option<String>,
    version: Option<&'static str>,
    route: Option<Arc<str>>,
    /// The policy that decided, else the last one asked.
    pub policy: Option<Arc<str>>,
    /// Its generation.
    pub generation: Option<u64>,
    /// What it decided.
    pub decision: Option<&'static str>,
    #[serde(serialize_with = "word")]
    /// What became of the request.
    pub outcome: Outcome,
    /// The status that was written by the gateway.
    pub status: Option<u16>,
    /// The target.
    pub to: Option<String>,
    /// Daemons and servers that were tried.
    pub attempts: u32,
    /// Daemons among them.
    #[serde(skip)]
    pub daemons_tried: u32,
    /// Read from the client.
    pub bytes_in: u64,
    /// Written to the client.
    pub bytes_out: u64,
    /// In policies.
    pub decide_us: Option<u64>,
    /// From the decision to the daemon's reading of the message.
    pub handoff_us: Option<u64>,
    duration_us: u64,
    /// What failed, for the operator.
    pub error: Option<String>,
    annotations: serde_json::Map<String, serde_json::Value>,
    #[serde(skip)]
    began: Instant,
    #[serde(skip)]
    referer: Option<Vec<u8>>,
    #[serde(skip)]
    user_agent: Option<Vec<u8>>,
}

impl Line {
    /// The line of a request that has begun to arrive. Where nobody wants to know it costs nothing.
    pub fn begin(sinks: &Arc<Sinks>, id: crate::request::Id, origin: &crate::request::Origin) -> Self {
        let pending = || Box::new(Pending { sinks: Arc::clone(sinks), record: Record::begin(id, origin) });
        Self(sinks.are_there().then(pending))
    }

    /// One that nobody wants to know of.
    pub fn nobodys() -> Self {
        Self(None)
    }

    /// Keeps a record of the request also where there is no log: somebody will want to [read](Self::record) it.
    pub fn keep(&mut self, request: &Request) {
        if self.0.is_none() {
            self.0 =
                Some(Box::new(Pending { sinks: Arc::default(), record: Record::begin(request.id, &request.origin) }));
            self.request(request);
        }
    }

    /// What is known by now.
    pub fn record(&self) -> Option<&Record> {
        self.0.as_ref().map(|pending| &pending.record)
    }

    /// Drops it unwritten: there was no request.
    pub fn forget(mut self) {
        self.0 = None;
    }

    /// What the head says.
    pub fn request(&mut self, request: &Request) {
        self.set(|r| {
            let head = &request.head;
            r.client = request.client_ip();
            r.method = Some(head.method().to_owned());
            r.target = Some(head.target().to_owned());
            r.host = Some(head.authority().to_owned());
            r.version = Some(head.version().word());
            r.route = request.route.clone();
            r.bytes_in = head.bytes().len() as u64;
            r.referer = head.field_all("referer").next().map(<[u8]>::to_vec);
            r.user_agent = head.field_all("user-agent").next().map(<[u8]>::to_vec);
        });
    }

    /// Fills in what is known by now; where nobody wants to know, `fill` is not called.
    pub fn set(&mut self, fill: impl FnOnce(&mut Record)) {
        if let Some(pending) = &mut self.0 {
            fill(&mut pending.record);
        }
    }

    /// The time, if anybody wants to know how long something took.
    pub fn clock(&self) -> Option<Instant> {
        self.0.is_some().then(Instant::now)
    }

    /// Writes it now.
    pub fn end(&mut self) {
        drop(Self(self.0.take()));
    }

    /// Adds a policy's annotations; the last value of a key wins.
    pub fn annotate(&mut self, annotations: Vec<(String, String)>) {
        self.set(|r| r.annotations.extend(annotations.into_iter().map(|(key, value)| (key, value.into()))));
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let Some(pending) = &mut self.0 else { return };
        let Pending { sinks, record } = &mut **pending;
        if !sinks.are_there() {
            return;
        }
        record.duration_us = micros(record.began.elapsed());
        if let Some(counts) = &sinks.counts {
            counts.count(&record.ended());
        }
        if let Some(log) = &sinks.log {
            log.write(record);
        }
    }
}

impl Record {
    fn ended(&self) -> Ended {
        Ended {
            outcome: self.outcome,
            status: self.status,
            attempts: self.daemons_tried,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            duration_us: self.duration_us,
            decide_us: self.decide_us,
            handoff_us: self.handoff_us,
        }
    }

    fn begin(id: crate::request::Id, origin: &crate::request::Origin) -> Self {
        Self {
            time: SystemTime::now(),
            id: id.to_string(),
            client: origin.client_ip(),
            listener: Arc::clone(&origin.listener),
            method: None,
            target: None,
            host: None,
            version: None,
            route: None,
            policy: None,
            generation: None,
            decision: None,
            outcome: Outcome::Aborted,
            status: None,
            to: None,
            attempts: 0,
            daemons_tried: 0,
            bytes_in: 0,
            bytes_out: 0,
            decide_us: None,
            handoff_us: None,
            duration_us: 0,
            error: None,
            annotations: serde_json::Map::new(),
            began: Instant::now(),
            referer: None,
            user_agent: None,
        }
    }

    /// The request's.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// How long it has taken so far.
    pub fn duration(&self) -> Duration {
        self.began.elapsed()
    }

    fn json(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("strings, numbers and a map with text keys are JSON");
        line.push(b'\n');
        line
    }

    fn combined(&self) -> Vec<u8> {
        // IMF-fixdate has every part that is wanted, at fixed places: "Sun, 06 Nov 1994 08:49:37 GMT".
        let date = httpdate::fmt_http_date(self.time);
        let text = |part: &Option<String>| part.clone().unwrap_or_else(|| "-".into());
        let request = match &self.method {
            Some(method) => format!("{method} {} HTTP/{}", text(&self.target), self.version.unwrap_or("-")),
            None => "-".into(),
        };
        let quoted = |value: &Option<Vec<u8>>| value.as_deref().map_or("-".into(), |v| v.escape_ascii().to_string());
        let status = self.status.map_or("-".into(), |status| status.to_string());
        format!(
            "{} - - [{}/{}/{}:{} +0000] \"{}\" {status} {} \"{}\" \"{}\"\n",
            self.client,
            &date[5..7],
            &date[8..11],
            &date[12..16],
            &date[17..25],
            request.escape_debug(),
            self.bytes_out,
            quoted(&self.referer),
            quoted(&self.user_agent),
        )
        .into_bytes()
    }
}

/// Whole microseconds; a duration that does not fit is as long as can be said.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn rfc3339<S: serde::Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_micros(*time))
}

fn word<S: serde::Serializer>(outcome: &Outcome, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(outcome.word())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Id, Origin, Peer};

    fn origin() -> Origin {
        let address = "192.0.2.1:5000".parse().expect("an address");
        Origin { peer: Peer::Tcp(address), local: "127.0.0.1:80".into(), listener: "http".into() }
    }

    fn lines(options: &Options, path: &std::path::Path, fill: impl FnOnce(&Arc<Sinks>)) -> Vec<String> {
        let log = AccessLog::open(options).expect("a temporary file");
        fill(&Arc::new(Sinks { log: Some(log.clone()), counts: None }));
        log.flush();
        std::fs::read_to_string(path).expect("written").lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_dropped_line_is_written_once_and_says_aborted_unless_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        let options = Options { sink: Sink::File(path.clone()), format: Format::Json };
        let got = lines(&options, &path, |log| {
            drop(Line::begin(log, Id::new(), &origin()));
            let mut line = Line::begin(log, Id::new(), &origin());
            line.annotate(vec![("user".into(), "a".into()), ("user".into(), "b\n".into())]);
            line.set(|r| (r.outcome, r.status) = (Outcome::Responded, Some(200)));
        });
        let parse = |line: &String| serde_json::from_str::<serde_json::Value>(line).expect("JSON");
        let values: Vec<_> = got.iter().map(parse).collect();
        assert_eq!(values.len(), 2);
        assert_eq!((values[0]["outcome"].as_str(), values[0]["client"].as_str()), (Some("aborted"), Some("192.0.2.1")));
        assert_eq!((&values[1]["status"], &values[1]["annotations"]["user"]), (&200.into(), &"b\n".into()));
        let names = "time,id,client,listener,method,target,host,version,route,policy,generation,decision,outcome,status,to,attempts,\
                     bytes_in,bytes_out,decide_us,handoff_us,duration_us,error,annotations";
        let got: Vec<_> = values[0].as_object().expect("an object").keys().map(String::as_str).collect();
        assert_eq!(got.join(","), names);
    }

    #[test]
    fn a_renamed_file_is_written_to_until_the_log_is_opened_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, old) = (folder.path().join("log"), folder.path().join("old"));
        let options = Options { sink: Sink::File(path.clone()), format: Format::Combined };
        let got = lines(&options, &path, |log| {
            drop(Line::begin(log, Id::new(), &origin()));
            log.log.as_ref().expect("there is one").flush();
            std::fs::rename(&path, &old).expect("renamed");
            drop(Line::begin(log, Id::new(), &origin()));
            log.log.as_ref().expect("there is one").reopen();
            drop(Line::begin(log, Id::new(), &origin()));
        });
        assert_eq!((got.len(), std::fs::read_to_string(&old).expect("there").lines().count()), (1, 2));
        assert!(got[0].starts_with("192.0.2.1 - - ["), "{}", got[0]);
        assert!(got[0].ends_with("] \"-\" - 0 \"-\" \"-\""), "{}", got[0]);
    }
}
