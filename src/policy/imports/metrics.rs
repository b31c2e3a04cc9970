//! `metrics`: figures of a policy, beside the gateway's own.

use super::Imports;
use crate::policy::bindings::metrics;
use crate::policy::metrics::{Event, Unrecorded};

impl Imports {
    fn record(&mut self, name: String, labels: Vec<(String, String)>, event: Event) {
        self.spoke = true;
        let identity = &*self.identity;
        match identity.shared().metrics.record(name, labels, event, identity.metric_series_max) {
            Ok(()) | Err(Unrecorded::Dropped { is_first: false }) => {}
            Err(error) => identity.warn(&format!("metric not recorded: {error}")),
        }
    }
}

impl metrics::Host for Imports {
    fn count(&mut self, name: String, labels: Vec<(String, String)>, delta: u64) -> wasmtime::Result<()> {
        self.record(name, labels, Event::Count(delta));
        Ok(())
    }

    fn gauge(&mut self, name: String, labels: Vec<(String, String)>, value: f64) -> wasmtime::Result<()> {
        self.record(name, labels, Event::Gauge(value));
        Ok(())
    }

    fn observe(&mut self, name: String, labels: Vec<(String, String)>, value: f64) -> wasmtime::Result<()> {
        self.record(name, labels, Event::Observe(value));
        Ok(())
    }
}
