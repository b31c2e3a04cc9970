//! The gateway's own figures: what became of requests, and how long it took.
//!
//! Each worker counts for itself, so that no two write to the same memory; whoever asks gets the sums. Counting begins with
//! the request's line ([`crate::access_log::Line`]) and ends when it is dropped, so that no request can be forgotten and the
//! sums agree with the log. Without an admin address nothing is counted, and no clock is read for it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::decision::Outcome;
use crate::metrics::{Exposition, Kind};

/// Upper bounds of the buckets of durations, in microseconds.
const BOUNDS_US: [u64; 16] = [
    25,
    50,
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    100_000,
    500_000,
    1_000_000,
    5_000_000,
    30_000_000,
    300_000_000,
];
/// The classes of statuses that a client can be answered with.
const CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

/// What one worker has counted since the gateway began.
#[derive(Debug, Default)]
pub struct Counts {
    outcomes: [AtomicU64; Outcome::ALL.len()],
    classes: [AtomicU64; CLASSES.len()],
    attempts: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    request: Durations,
    decide: Durations,
    handoff: Durations,
}

/// One request that is over.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// What became of it.
    pub outcome: Outcome,
    /// The status that was written by the gateway.
    pub status: Option<u16>,
    /// Daemons that were tried.
    pub attempts: u32,
    /// Read from the client.
    pub bytes_in: u64,
    /// Written to the client.
    pub bytes_out: u64,
    /// From its first byte to its end.
    pub duration_us: u64,
    /// In policies.
    pub decide_us: Option<u64>,
    /// From the decision to the daemon's reading of the message.
    pub handoff_us: Option<u64>,
}

/// One of the figures that a worker keeps.
type Of<T> = fn(&Counts) -> &T;

impl Counts {
    /// Counts a request.
    pub fn count(&self, ended: &Ended) {
        let at = Outcome::ALL.iter().position(|outcome| *outcome == ended.outcome);
        add(&self.outcomes[at.expect("all of them are listed")], 1);
        if let Some(class) = ended.status.and_then(|status| self.classes.get(usize::from(status / 100).wrapping_sub(2)))
        {
            add(class, 1);
        }
        add(&self.attempts, ended.attempts.into());
        add(&self.bytes_in, ended.bytes_in);
        add(&self.bytes_out, ended.bytes_out);
        self.request.count(ended.duration_us);
        if let Some(us) = ended.decide_us {
            self.decide.count(us);
        }
        if let Some(us) = ended.handoff_us {
            self.handoff.count(us);
        }
    }

    /// Writes the families of all workers together.
    pub fn expose(workers: &[&Self], out: &mut Exposition) {
        let sum = |of: &dyn Fn(&Self) -> &AtomicU64| workers.iter().map(|counts| get(of(counts))).sum::<u64>();

        let name = "baton_gateway_requests_total";
        out.family(name, Kind::Counter, "Requests that are over, by what became of them, as in the access log.");
        for (at, outcome) in Outcome::ALL.iter().enumerate() {
            out.count(name, &[("outcome", outcome.word())], sum(&|counts| &counts.outcomes[at]));
        }
        let name = "baton_gateway_responses_total";
        out.family(name, Kind::Counter, "Answers whose status the gateway wrote, by its class.");
        for (at, class) in CLASSES.iter().enumerate() {
            out.count(name, &[("class", class)], sum(&|counts| &counts.classes[at]));
        }
        let plain: [(&str, &str, Of<AtomicU64>); 3] = [
            ("baton_gateway_handoff_attempts_total", "Daemons that were tried.", |counts| &counts.attempts),
            ("baton_gateway_received_bytes_total", "Bytes of requests that the gateway read.", |counts| {
                &counts.bytes_in
            }),
            ("baton_gateway_sent_bytes_total", "Bytes that the gateway wrote to clients.", |counts| &counts.bytes_out),
        ];
        for (name, help, of) in plain {
            out.family(name, Kind::Counter, help);
            out.count(name, &[], sum(&of));
        }
        let durations: [(&str, &str, Of<Durations>); 3] = [
            ("baton_gateway_request_duration_seconds", "From a request's first byte to its end.", |counts| {
                &counts.request
            }),
            ("baton_gateway_decide_duration_seconds", "What a request spent in policies.", |counts| &counts.decide),
            (
                "baton_gateway_handoff_duration_seconds",
                "From the decision until the daemon had read the message, or nobody had.",
                |counts| &counts.handoff,
            ),
        ];
        for (name, help, of) in durations {
            out.family(name, Kind::Histogram, help);
            Durations::expose(&workers.iter().map(|counts| of(counts)).collect::<Vec<_>>(), name, out);
        }
    }
}

/// A histogram of durations; the last bucket has no bound.
#[derive(Debug, Default)]
struct Durations {
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Durations {
    fn count(&self, us: u64) {
        add(&self.buckets[BOUNDS_US.partition_point(|bound| *bound < us)], 1);
        add(&self.sum_us, us);
    }

    #[expect(clippy::cast_precision_loss, reason = "a figure for people, exact to the microsecond for 285 years")]
    fn expose(workers: &[&Self], name: &str, out: &mut Exposition) {
        let seconds = |us: u64| us as f64 / 1e6;
        let (bucket, mut below) = (format!("{name}_bucket"), 0);
        for at in 0..=BOUNDS_US.len() {
            below += workers.iter().map(|durations| get(&durations.buckets[at])).sum::<u64>();
            let bound = BOUNDS_US.get(at).map_or("+Inf".to_owned(), |bound| seconds(*bound).to_string());
            out.count(&bucket, &[("le", &bound)], below);
        }
        out.figure(&format!("{name}_sum"), &[], seconds(workers.iter().map(|durations| get(&durations.sum_us)).sum()));
        out.count(&format!("{name}_count"), &[], below);
    }
}

/// One thread writes; an addition that is not atomic as a whole is enough, and costs no locked instruction.
fn add(to: &AtomicU64, count: u64) {
    to.store(to.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
}

fn get(from: &AtomicU64) -> u64 {
    from.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(outcome: Outcome, duration_us: u64) -> Ended {
        Ended {
            outcome,
            status: Some(503),
            attempts: 2,
            bytes_in: 10,
            bytes_out: 100,
            duration_us,
            decide_us: None,
            handoff_us: Some(40),
        }
    }

    #[test]
    fn workers_are_added_up() {
        let workers = [Counts::default(), Counts::default()];
        workers[0].count(&ended(Outcome::Refused, 25));
        workers[1].count(&ended(Outcome::Refused, 26));
        workers[1].count(&ended(Outcome::ClientGone, 400_000_000));
        let mut out = Exposition::default();
        Counts::expose(&workers.iter().collect::<Vec<_>>(), &mut out);
        let text = out.into_text();
        for line in [
            "baton_gateway_requests_total{outcome=\"refused\"} 2",
            "baton_gateway_requests_total{outcome=\"client-gone\"} 1",
            "baton_gateway_requests_total{outcome=\"responded\"} 0",
            "baton_gateway_responses_total{class=\"5xx\"} 3",
            "baton_gateway_handoff_attempts_total 6",
            "baton_gateway_sent_bytes_total 300",
            "baton_gateway_request_duration_seconds_bucket{le=\"0.000025\"} 1",
            "baton_gateway_request_duration_seconds_bucket{le=\"0.00005\"} 2",
            "baton_gateway_request_duration_seconds_bucket{le=\"300\"} 2",
            "baton_gateway_request_duration_seconds_bucket{le=\"+Inf\"} 3",
            "baton_gateway_request_duration_seconds_sum 400.000051",
            "baton_gateway_decide_duration_seconds_count 0",
            "baton_gateway_handoff_duration_seconds_count 3",
        ] {
            assert!(text.lines().any(|got| got == line), "{line} is not in:\n{text}");
        }
    }
}
