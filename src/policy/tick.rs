//! `on-tick`: a thread of its own for each generation in force that asked for ticks, with an instance of its own.
//!
//! A hook that fails costs that instance, and the pause until the next tick doubles each time; the log has one line for
//! each failure that is another than the last.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::generation::Generation;

/// The longest pause of a policy whose ticks fail, unless its interval is longer.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// A generation that ticks. Dropped, it ticks no more; a tick that runs is cut where it waits.
#[derive(Debug)]
pub(super) struct Ticks {
    _until: oneshot::Sender<()>,
}

impl Ticks {
    /// Begins; `None` where it asked for none, or where there is no thread to be had, which is logged.
    pub(super) fn begin(generation: &Arc<Generation>) -> Option<Self> {
        let interval = generation.tick_interval()?;
        let (until, end) = oneshot::channel();
        let (policy, number) = (Arc::clone(generation.policy()), generation.number());
        let generation = Arc::clone(generation);
        let begun = tokio::runtime::Builder::new_current_thread().enable_all().build().and_then(|runtime| {
            let tick = move || runtime.block_on(run(&generation, interval, end));
            std::thread::Builder::new().name("policy-tick".into()).spawn(tick)
        });
        match begun {
            Ok(_) => Some(Self { _until: until }),
            Err(error) => {
                tracing::error!(%policy, generation = number, hook = "on-tick", %error, "cannot begin to tick");
                None
            }
        }
    }
}

async fn run(generation: &Generation, interval: Duration, mut end: oneshot::Receiver<()>) {
    let (policy, number) = (generation.policy(), generation.number());
    let mut background = None;
    let mut failed: Option<(String, Duration)> = None;
    let mut next = Instant::now() + interval;
    loop {
        tokio::select! {
            biased;
            _ = &mut end => return,
            () = tokio::time::sleep_until(next) => {}
        }
        let result = tokio::select! {
            biased;
            _ = &mut end => return,
            result = generation.on_tick(&mut background) => result,
        };
        let now = Instant::now();
        match result {
            Ok(()) => {
                failed = None;
                // What was missed is not made up for.
                next = (next + interval).max(now);
            }
            Err(error) => {
                let error = error.to_string();
                let (said, pause) = failed.take().unwrap_or_else(|| (String::new(), interval));
                if said != error {
                    tracing::warn!(%policy, generation = number, hook = "on-tick", error, "policy failed");
                }
                let pause = (pause * 2).min(PAUSE_MAX).max(interval);
                next = now + pause;
                failed = Some((error, pause));
            }
        }
    }
}
