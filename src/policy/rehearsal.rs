//! A policy asked outside of a gateway, by its author: what it decides about a request, and what that takes.
//!
//! The same path as in the gateway, from the file to the decision; only that each question gets a fresh instance, so that
//! an answer depends on nothing that was asked before.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::body::{BodyPort, Peeks};
use super::error::{LoadError, PolicyError};
use super::gauge::Used;
use super::generation::Generation;
use super::hooks::HandoffFailure;
use super::host::Engine;
use super::{Options, read};
use crate::decision::Decision;
use crate::request::Request;

/// A loaded policy that is asked one question at a time.
#[derive(Debug)]
pub struct Rehearsal {
    engine: Engine,
    generation: Generation,
}

/// An answer, and what it took.
#[derive(Debug)]
pub struct Rehearsed {
    /// What it decided, or how it failed.
    pub decision: Result<Decision, PolicyError>,
    /// Zero where it could not even begin.
    pub used: Used,
}

/// How fast a policy decides.
#[derive(Clone, Copy, Debug)]
pub struct Speed {
    /// By one thread.
    pub decisions_per_s: f64,
    /// How many were measured.
    pub decisions: usize,
    /// The time that half of them stayed below.
    pub p50: Duration,
    /// The time that 99 of 100 stayed below.
    pub p99: Duration,
}

/// [`Speed`] with instances that are reused as the gateway does, and with a fresh one for each decision.
#[derive(Clone, Copy, Debug)]
pub struct Speeds {
    /// Reused.
    pub warm: Speed,
    /// Fresh.
    pub fresh: Speed,
}

impl Rehearsal {
    /// Loads and proves a module as the gateway does. `engine` is one that counts ([`Engine::counting`]), or nothing is
    /// measured.
    ///
    /// # Errors
    /// As at any load.
    pub fn load(engine: &Engine, mut options: Options) -> Result<Self, LoadError> {
        let file = read(&options)?;
        options.reuse_max = 0;
        // A hundred cases are no flood.
        options.log_lines_per_second_max = u32::MAX;
        // Nor is a folder of failing cases a reason not to ask on.
        options.breaker.failures = 0;
        let generation = Generation::prove(engine, &options, 1, file, &Arc::default())?;
        Ok(Self { engine: engine.clone(), generation })
    }

    /// What was loaded.
    pub fn generation(&self) -> &Generation {
        &self.generation
    }

    /// Asks about a request whose body is there as a whole.
    ///
    /// # Cancel safety
    /// Dropping it ends the guest where it is.
    pub async fn on_request(&self, request: &Arc<Request>, body: &[u8]) -> Rehearsed {
        let (port, peeks) = BodyPort::open();
        self.showing(body, peeks, self.generation.on_request(0, request, &port)).await
    }

    /// Asks what to do with the client of a request, of whom nothing was handed over.
    ///
    /// # Cancel safety
    /// As [`Rehearsal::on_request`]'s.
    pub async fn on_handoff_failed(
        &self,
        request: &Arc<Request>,
        body: &[u8],
        failure: &HandoffFailure,
        carry: &[u8],
    ) -> Rehearsed {
        let (port, peeks) = BodyPort::open();
        self.showing(body, peeks, self.generation.on_handoff_failed(0, request, &port, failure, carry)).await
    }

    /// Waits for an answer, meanwhile shows the body, and measures.
    async fn showing(
        &self,
        body: &[u8],
        mut peeks: Peeks,
        asking: impl Future<Output = Result<Decision, PolicyError>>,
    ) -> Rehearsed {
        let mut asking = std::pin::pin!(asking);
        if let Some(gauge) = self.engine.gauge() {
            gauge.take();
        }
        let decision = loop {
            tokio::select! {
                biased;
                decision = &mut asking => break decision,
                Some(peek) = peeks.next() => {
                    let prefix = body[..body.len().min(peek.bytes_max())].to_vec();
                    peek.answer(Ok(prefix));
                }
            }
        };
        let used = self.engine.gauge().and_then(|gauge| gauge.take()).unwrap_or_default();
        Rehearsed { decision, used }
    }
}

impl Speeds {
    /// Loads a module into the gateway's own kind of engine and asks it about requests in turn, for `time` warm and for
    /// as long with fresh instances.
    ///
    /// # Errors
    /// It cannot be loaded.
    pub fn measure(
        engine: &Engine,
        options: &Options,
        requests: &[Arc<Request>],
        time: Duration,
    ) -> Result<Result<Self, PolicyError>, LoadError> {
        let file = read(options)?;
        let speed = |reuse_max| {
            let options = Options { reuse_max, ..options.clone() };
            let generation = Generation::prove(engine, &options, 1, Arc::clone(&file), &Arc::default())?;
            Ok(Speed::measure(&generation, requests, time))
        };
        let warm = match speed(options.reuse_max)? {
            Ok(warm) => warm,
            Err(error) => return Ok(Err(error)),
        };
        Ok(speed(0)?.map(|fresh| Self { warm, fresh }))
    }
}

impl Speed {
    /// Decisions that nobody counts, so that processor and caches know the way.
    const WARM_UP_COUNT: usize = 100;
    /// Beyond this the figures say nothing new.
    const COUNT_MAX: usize = 2_000_000;

    fn measure(generation: &Generation, requests: &[Arc<Request>], time: Duration) -> Result<Self, PolicyError> {
        let ask = |at: usize| generation.on_request_at_once(0, &requests[at % requests.len()]).map(drop);
        let began = Instant::now();
        for at in 0..Self::WARM_UP_COUNT {
            ask(at)?;
            if began.elapsed() > time {
                break;
            }
        }
        let mut times = Vec::new();
        let began = Instant::now();
        let mut last = began;
        while last - began < time && times.len() < Self::COUNT_MAX {
            ask(times.len())?;
            let now = Instant::now();
            times.push(now - last);
            last = now;
        }
        let decisions = times.len();
        times.sort_unstable();
        let quantile = |per_cent: usize| times[(decisions * per_cent / 100).min(decisions - 1)];
        #[expect(clippy::cast_precision_loss, reason = "a count of at most two million")]
        let decisions_per_s = decisions as f64 / (last - began).as_secs_f64();
        Ok(Self { decisions_per_s, decisions, p50: quantile(50), p99: quantile(99) })
    }
}
