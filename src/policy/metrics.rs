//! The figures of one policy, shared by all of its instances and generations.
//!
//! A series is made by the first call that names it. There are only so many, and names and labels are only so long: what
//! a policy puts into a label often comes from a client.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::metrics::{Exposition, Kind};

/// Bounds of every histogram; the last one is infinite and not listed.
const BOUNDS: [f64; 22] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3,
    2.5e3, 5e3, 1e4,
];
/// Of a name, and of a label's name.
const NAME_BYTES_MAX: usize = 64;
/// Of a label's value.
const VALUE_BYTES_MAX: usize = 256;
/// Of one series.
const LABEL_COUNT_MAX: usize = 8;

type Labels = Vec<(String, String)>;

#[derive(Debug, Default)]
pub(super) struct Metrics {
    series: RwLock<HashMap<Id, Arc<Series>>>,
    /// What a name was used for first, it stays.
    kinds: RwLock<BTreeMap<String, Kind>>,
    /// Calls that would have made one series too many.
    dropped: AtomicU64,
    /// Calls whose name or labels cannot be used.
    refused: AtomicU64,
}

/// Name and labels in the order of their names.
type Id = (String, Labels);

#[derive(Debug)]
enum Series {
    Counter(AtomicU64),
    /// The bits of a floating point number.
    Gauge(AtomicU64),
    Histogram(Histogram),
}

#[derive(Debug, Default)]
struct Histogram {
    /// How many fell below each bound and above the one before; the last has no bound.
    counts: [AtomicU64; BOUNDS.len() + 1],
    /// The bits of a floating point number.
    sum: AtomicU64,
}

/// What is recorded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Event {
    Count(u64),
    Gauge(f64),
    Observe(f64),
}

/// Why nothing was recorded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unrecorded {
    /// `is_first`: it had not happened before in this policy.
    #[error("more series than metric_series_max")]
    Dropped { is_first: bool },
    #[error("{0}")]
    Refused(String),
}

impl Event {
    fn kind(self) -> Kind {
        match self {
            Self::Count(_) => Kind::Counter,
            Self::Gauge(_) => Kind::Gauge,
            Self::Observe(_) => Kind::Histogram,
        }
    }

    /// What cannot be added up is no figure.
    fn is_figure(self) -> bool {
        match self {
            Self::Count(_) => true,
            Self::Gauge(value) => !value.is_nan(),
            Self::Observe(value) => value.is_finite(),
        }
    }
}

impl Metrics {
    /// Records in the series of that name and those labels, which is made if it does not make more than `series_max`.
    pub(super) fn record(
        &self,
        name: String,
        mut labels: Labels,
        event: Event,
        series_max: usize,
    ) -> Result<(), Unrecorded> {
        labels.sort();
        if let Err(reason) = check(&name, &labels) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Unrecorded::Refused(reason));
        }
        let id = (name, labels);
        let known = self.series.read().unwrap_or_else(PoisonError::into_inner).get(&id).map(Arc::clone);
        let series = match known {
            Some(series) => series,
            None if event.is_figure() => self.make(id, event.kind(), series_max)?,
            None => return Ok(()),
        };
        if series.record(event) {
            return Ok(());
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        Err(Unrecorded::Refused("a metric of that name is of another kind".to_owned()))
    }

    fn make(&self, id: Id, kind: Kind, series_max: usize) -> Result<Arc<Series>, Unrecorded> {
        let mut all = self.series.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = all.get(&id) {
            return Ok(Arc::clone(series));
        }
        let mut kinds = self.kinds.write().unwrap_or_else(PoisonError::into_inner);
        if kinds.get(&id.0).is_some_and(|known| *known != kind) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Unrecorded::Refused("a metric of that name is of another kind".to_owned()));
        }
        if all.len() >= series_max {
            let is_first = self.dropped.fetch_add(1, Ordering::Relaxed) == 0;
            return Err(Unrecorded::Dropped { is_first });
        }
        kinds.insert(id.0.clone(), kind);
        let series = Arc::new(match kind {
            Kind::Counter => Series::Counter(AtomicU64::default()),
            Kind::Gauge => Series::Gauge(AtomicU64::default()),
            Kind::Histogram => Series::Histogram(Histogram::default()),
        });
        all.insert(id, Arc::clone(&series));
        Ok(series)
    }
}

impl Series {
    /// Whether it is of the event's kind.
    fn record(&self, event: Event) -> bool {
        let is_figure = event.is_figure();
        match (self, event) {
            (Self::Counter(counter), Event::Count(delta)) => {
                update(counter, |value| value.saturating_add(delta));
            }
            (Self::Gauge(gauge), Event::Gauge(value)) if is_figure => gauge.store(value.to_bits(), Ordering::Relaxed),
            (Self::Histogram(histogram), Event::Observe(value)) if is_figure => {
                let at = BOUNDS.iter().position(|bound| value <= *bound).unwrap_or(BOUNDS.len());
                histogram.counts[at].fetch_add(1, Ordering::Relaxed);
                update(&histogram.sum, |sum| (f64::from_bits(sum) + value).to_bits());
            }
            (Self::Gauge(_), Event::Gauge(_)) | (Self::Histogram(_), Event::Observe(_)) => {}
            _ => return false,
        }
        true
    }
}

fn update(value: &AtomicU64, change: impl Fn(u64) -> u64) {
    // It always has a new value to give.
    let _ = value.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |value| Some(change(value)));
}

fn check(name: &str, labels: &[(String, String)]) -> Result<(), String> {
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    let is_label =
        |name: &str| is_name(name) && !name.starts_with(|c: char| c.is_ascii_digit()) && !name.starts_with("__");
    if name.len() > NAME_BYTES_MAX || !is_name(name) {
        return Err(format!("a metric's name has 1 to {NAME_BYTES_MAX} of a-z, 0-9 and _"));
    }
    if labels.len() > LABEL_COUNT_MAX {
        return Err(format!("a metric has up to {LABEL_COUNT_MAX} labels"));
    }
    for (at, (name, value)) in labels.iter().enumerate() {
        if name.len() > NAME_BYTES_MAX || !is_label(name) {
            return Err(format!("a label's name has 1 to {NAME_BYTES_MAX} of a-z, 0-9 and _, no digit first, no __"));
        }
        if name == "policy" || name == "le" {
            return Err("the labels policy and le are the gateway's".to_owned());
        }
        if value.len() > VALUE_BYTES_MAX {
            return Err(format!("a label's value has up to {VALUE_BYTES_MAX} bytes"));
        }
        if at > 0 && labels[at - 1].0 == *name {
            return Err("a label stands there twice".to_owned());
        }
    }
    Ok(())
}

/// Adds the figures of all policies, by name; a family holds those of all policies that have it.
pub(super) fn expose(policies: &[(&str, &Metrics)], out: &mut Exposition) {
    let mut families: BTreeMap<String, (Kind, Vec<Figure<'_>>)> = BTreeMap::new();
    let mut left_out = Vec::new();
    for (policy, metrics) in policies {
        let series = metrics.series.read().unwrap_or_else(PoisonError::into_inner);
        let mut series: Vec<_> = series.iter().map(|(id, series)| (id.clone(), Arc::clone(series))).collect();
        series.sort_by(|(one, _), (other, _)| one.cmp(other));
        let kinds = metrics.kinds.read().unwrap_or_else(PoisonError::into_inner);
        for ((name, labels), series) in series {
            let kind = kinds[&name];
            let (first, figures) = families.entry(name.clone()).or_insert((kind, Vec::new()));
            if *first == kind {
                figures.push((policy, labels, series));
            } else if left_out.last() != Some(&(*policy, name.clone())) {
                left_out.push((policy, name));
            }
        }
    }
    // A histogram x has figures called x_count: another family of that name could not be told from it.
    let is_taken = |name: &str| {
        let base = ["_bucket", "_count", "_sum"].iter().find_map(|suffix| name.strip_suffix(suffix));
        base.and_then(|base| families.get(base)).is_some_and(|(kind, _)| *kind == Kind::Histogram)
    };
    for (name, (kind, figures)) in &families {
        let full = format!("baton_policy_{name}");
        if is_taken(name) {
            out.comment(&format!("{full} is left out: it cannot be told from a histogram's figures"));
            continue;
        }
        out.family(&full, *kind, "Recorded by policies.");
        for (policy, labels, series) in figures {
            expose_series(&full, policy, labels, series, out);
        }
    }
    for (policy, name) in left_out {
        out.comment(&format!("baton_policy_{name} of policy {policy} is left out: another policy has another kind"));
    }
    for (name, help, figure) in [
        (
            "baton_gateway_policy_series_dropped_total",
            "Records of policies without a place for their series (metric_series_max).",
            (|metrics| &metrics.dropped) as fn(&Metrics) -> &AtomicU64,
        ),
        (
            "baton_gateway_policy_metrics_refused_total",
            "Records of policies whose name or labels cannot be used.",
            |m| &m.refused,
        ),
    ] {
        out.family(name, Kind::Counter, help);
        for (policy, metrics) in policies {
            out.count(name, &[("policy", policy)], figure(metrics).load(Ordering::Relaxed));
        }
    }
}

type Figure<'a> = (&'a str, Labels, Arc<Series>);

fn expose_series(name: &str, policy: &str, labels: &[(String, String)], series: &Series, out: &mut Exposition) {
    let mut all = vec![("policy", policy)];
    all.extend(labels.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    match series {
        Series::Counter(value) => out.count(name, &all, value.load(Ordering::Relaxed)),
        Series::Gauge(bits) => out.figure(name, &all, f64::from_bits(bits.load(Ordering::Relaxed))),
        Series::Histogram(histogram) => {
            let mut total = 0;
            for (at, count) in histogram.counts.iter().enumerate() {
                total += count.load(Ordering::Relaxed);
                let bound = BOUNDS.get(at).map_or_else(|| "+Inf".to_owned(), f64::to_string);
                let mut bucket = all.clone();
                bucket.push(("le", &bound));
                out.count(&format!("{name}_bucket"), &bucket, total);
            }
            out.figure(&format!("{name}_sum"), &all, f64::from_bits(histogram.sum.load(Ordering::Relaxed)));
            out.count(&format!("{name}_count"), &all, total);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn text(policies: &[(&str, &Metrics)]) -> String {
        let mut out = Exposition::default();
        expose(policies, &mut out);
        out.into_text()
    }

    #[test]
    fn what_is_recorded_is_shown() {
        let metrics = Metrics::default();
        let record = |name: &str, pairs: &[(&str, &str)], event| {
            metrics.record(name.to_owned(), labels(pairs), event, 10).expect("recorded");
        };
        record("hits", &[("a", "1"), ("b", "\"\n")], Event::Count(2));
        record("hits", &[("b", "\"\n"), ("a", "1")], Event::Count(u64::MAX));
        record("load", &[], Event::Gauge(0.5));
        record("load", &[], Event::Gauge(f64::NAN));
        record("nothing", &[], Event::Observe(f64::NAN));
        for value in [0.001, 0.002, 20_000.0, -1.0, f64::INFINITY] {
            record("seconds", &[], Event::Observe(value));
        }
        let text = text(&[("p", &metrics)]);
        for line in [
            "# TYPE baton_policy_hits counter",
            "baton_policy_hits{policy=\"p\",a=\"1\",b=\"\\\"\\n\"} 18446744073709551615",
            "baton_policy_load{policy=\"p\"} 0.5",
            "# TYPE baton_policy_seconds histogram",
            "baton_policy_seconds_bucket{policy=\"p\",le=\"0.001\"} 2",
            "baton_policy_seconds_bucket{policy=\"p\",le=\"0.0025\"} 3",
            "baton_policy_seconds_bucket{policy=\"p\",le=\"10000\"} 3",
            "baton_policy_seconds_bucket{policy=\"p\",le=\"+Inf\"} 4",
            "baton_policy_seconds_sum{policy=\"p\"} 19999.003",
            "baton_policy_seconds_count{policy=\"p\"} 4",
            "baton_gateway_policy_series_dropped_total{policy=\"p\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "no {line} in {text}");
        }
        assert!(!text.contains("nothing"), "NaN makes no series: {text}");
    }

    #[test]
    fn one_family_holds_all_policies_and_has_one_kind() {
        let (one, other) = (Metrics::default(), Metrics::default());
        for (metrics, name, event) in [
            (&one, "x", Event::Count(1)),
            (&other, "x", Event::Count(2)),
            (&one, "y", Event::Observe(1.0)),
            (&other, "y", Event::Gauge(1.0)),
            (&other, "y_count", Event::Count(1)),
        ] {
            metrics.record(name.to_owned(), Labels::new(), event, 10).expect("recorded");
        }
        let text = text(&[("a", &one), ("b", &other)]);
        assert_eq!(text.matches("# TYPE baton_policy_x counter").count(), 1);
        assert!(text.contains("baton_policy_x{policy=\"a\"} 1\nbaton_policy_x{policy=\"b\"} 2\n"), "{text}");
        assert!(text.contains("# baton_policy_y of policy b is left out"), "{text}");
        assert!(text.contains("# baton_policy_y_count is left out"), "{text}");
        assert_eq!(text.matches("\nbaton_policy_y_count").count(), 1, "{text}");
    }

    #[test]
    fn series_are_made_up_to_the_limit_and_then_dropped() {
        let metrics = Metrics::default();
        let record = |name: String| metrics.record(name, Labels::new(), Event::Count(1), 3);
        for n in 0..3 {
            record(format!("n{n}")).expect("there is room");
        }
        assert_eq!(record("n3".into()), Err(Unrecorded::Dropped { is_first: true }));
        assert_eq!(record("n4".into()), Err(Unrecorded::Dropped { is_first: false }));
        record("n0".into()).expect("it is there already");
        assert!(text(&[("p", &metrics)]).contains("baton_gateway_policy_series_dropped_total{policy=\"p\"} 2\n"));
    }

    #[test]
    fn names_and_labels_are_judged_at_their_limits() {
        let metrics = Metrics::default();
        let record = |name: &str, pairs: &[(&str, &str)]| {
            metrics.record(name.to_owned(), labels(pairs), Event::Count(1), 1000).is_ok()
        };
        let (longest, value) = ("a".repeat(NAME_BYTES_MAX), "v".repeat(VALUE_BYTES_MAX));
        assert!(record(&longest, &[(&longest, &value)]) && record("0_a", &[("_a", "")]));
        for name in ["", "A", "a-b", "ü", "a b", &format!("{longest}a")] {
            assert!(!record(name, &[]), "{name}");
        }
        for pair in
            [("", ""), ("0", ""), ("A", ""), ("le", ""), ("policy", ""), ("__a", ""), ("a", &format!("{value}v"))]
        {
            assert!(!record("x", &[pair]), "{pair:?}");
        }
        assert!(!record("x", &[("a", "1"), ("a", "2")]));
        let many: Vec<_> = "abcdefghi".chars().map(|c| (c.to_string(), String::new())).collect();
        assert!(metrics.record("x".into(), many[..8].to_vec(), Event::Count(1), 1000).is_ok());
        assert!(metrics.record("x".into(), many, Event::Count(1), 1000).is_err());
        assert!(metrics.record("x".into(), Labels::new(), Event::Gauge(1.0), 1000).is_err(), "another kind");
        assert!(text(&[("p", &metrics)]).contains("baton_gateway_policy_metrics_refused_total{policy=\"p\"} 16\n"));
    }
}
