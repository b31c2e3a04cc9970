//! Handing over in the native protocol: a daemon is asked while it can bear another client, one that refuses is asked once,
//! and where all have as many as they can bear, the client waits for its turn.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::member::Member;
use super::{Offer, Options, Taken, Target, Tried, Worker, is_worth_another_try, pause, within};
use crate::handoff::channel::{self, Entry, Permit};
use crate::handoff::{Deadlines, HeadBytes, Refusal, SendError, Stage};

/// How long clients wait for a daemon that can bear them, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// From the first time that all are full.
    pub timeout: Duration,
    /// Clients of one target, in all workers.
    pub max: usize,
}

impl Default for Waiting {
    /// 1 s, 1000.
    fn default() -> Self {
        Self { timeout: Duration::from_secs(1), max: 1000 }
    }
}

/// Those who wait for one target.
#[derive(Debug)]
pub(super) struct Queue {
    options: Waiting,
    count: AtomicUsize,
}

/// A place in a queue.
struct Place<'a>(&'a AtomicUsize);

impl Queue {
    pub(super) fn new(options: Waiting) -> Self {
        Self { options, count: AtomicUsize::new(0) }
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    fn enter(&self) -> Option<Place<'_>> {
        let take = |count| (count < self.options.max).then_some(count + 1);
        self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok().map(|_| Place(&self.count))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One client's way through the daemons.
struct Way<'a> {
    target: &'a Target,
    worker: Worker<'a>,
    attempts: u32,
    retry_after_s: Option<u64>,
    /// Those that have said no: they are not asked again.
    refused: Vec<usize>,
    last: Option<(Stage, Refusal)>,
}

/// A step on it.
enum Step {
    /// It is over.
    Over(Result<Taken, SendError>),
    /// The client is ours, and somebody else may take it.
    On(OwnedFd),
}

impl Target {
    /// Lends the client to one daemon after the other, until one takes it.
    pub(super) async fn lend(
        &self,
        mut client: OwnedFd,
        mut offer: Offer<'_>,
        options: &Options,
        until: Option<Instant>,
        worker: Worker<'_>,
    ) -> Tried {
        let mut way = Way { target: self, worker, attempts: 0, retry_after_s: None, refused: Vec::new(), last: None };
        let mut round = 0;
        let mut queue_until = None;
        loop {
            let first = self.first(offer.key);
            let mut is_full = false;
            for at in 0..self.members.len() {
                let index = (first + at) % self.members.len();
                let member = &self.members[index];
                if way.refused.contains(&index) {
                    continue;
                }
                if until.is_some_and(|until| Instant::now() >= until) {
                    return way.out_of_time(client);
                }
                let deadlines = within(&options.deadlines, until);
                let insists = self.members.len() == 1;
                match member.channel(worker.index).enter(&member.daemon, &deadlines, insists, worker.begin).await {
                    Ok(Entry::Free(permit)) => match way.lend(index, permit, client, &mut offer, &deadlines).await {
                        Step::Over(result) => return way.over(result),
                        Step::On(ours) => client = ours,
                    },
                    Ok(Entry::Full) => is_full = true,
                    Err((stage, source)) => way.not_entered(member, stage, source),
                }
            }
            if is_full {
                let end = *queue_until.get_or_insert_with(|| {
                    let end = Instant::now() + self.queue.options.timeout;
                    until.map_or(end, |until| end.min(until))
                });
                match way.wait(end).await {
                    // A daemon that was waited for has gone, or drains: it may have a successor.
                    Ok(None) => continue,
                    Ok(Some((index, permit))) => {
                        let deadlines = within(&options.deadlines, until);
                        match way.lend(index, permit, client, &mut offer, &deadlines).await {
                            Step::Over(result) => return way.over(result),
                            Step::On(ours) => client = ours,
                        }
                        continue;
                    }
                    Err(full) => {
                        return way.over(Err(SendError::Refused { client, stage: Stage::Connect, source: full }));
                    }
                }
            }
            if round == options.retries || way.refused.len() == self.members.len() {
                let (stage, source) = way.last.take().expect("each was asked, and none took the client");
                return way.over(Err(SendError::Refused { client, stage, source }));
            }
            pause(round, until).await;
            round += 1;
        }
    }
}

impl Way<'_> {
    fn over(self, result: Result<Taken, SendError>) -> Tried {
        Tried { attempts: self.attempts, result, retry_after_s: self.retry_after_s }
    }

    fn out_of_time(self, client: OwnedFd) -> Tried {
        Tried { retry_after_s: self.retry_after_s, ..Tried::out_of_time(self.attempts, client) }
    }

    /// A daemon that there is no way to.
    fn not_entered(&mut self, member: &Member, stage: Stage, source: Refusal) {
        self.attempts += 1;
        self.target.not_taken(member, stage, &source);
        if !matches!(source, Refusal::Draining) {
            member.last_failure.set(stage, &source);
        }
        self.last = Some((stage, source));
    }

    /// Lends the client to one daemon.
    async fn lend(
        &mut self,
        index: usize,
        permit: Permit,
        client: OwnedFd,
        offer: &mut Offer<'_>,
        deadlines: &Deadlines,
    ) -> Step {
        let member = &self.target.members[index];
        self.attempts += 1;
        let parts = offer.native.as_ref().expect("whoever hands over to a native daemon has the parts");
        // What can be known before the client is sent a head is.
        let fits = permit.judge(parts);
        if fits.is_ok()
            && let Some(head) = offer.head.as_deref_mut()
            && let Err(source) = write_head(head, &client, deadlines).await
        {
            return Step::Over(Err(SendError::ClientGone { source }));
        }
        let is_blocking = member.daemon.has_blocking_clients();
        let result = match fits {
            Ok(()) => match permit.lend(client, parts, is_blocking, deadlines).await {
                Ok(lease) => lease.settle(deadlines.acknowledge, self.worker.beat).await.map(Taken::Reporting),
                Err(error) => Err(error),
            },
            Err(source) => Err(SendError::Refused { client, stage: Stage::Send, source }),
        };
        member.last_failure.learn(&result);
        if result.is_ok() {
            member.taken.fetch_add(1, Ordering::Relaxed);
        }
        match result {
            Err(SendError::Refused { client, stage, source }) if is_worth_another_try(&source) => {
                self.target.not_taken(member, stage, &source);
                match &source {
                    Refusal::Daemon(refusal) => {
                        self.retry_after_s = self.retry_after_s.max(refusal.retry_after_s);
                        self.refused.push(index);
                        member.refused.fetch_add(1, Ordering::Relaxed);
                    }
                    Refusal::TooMuchData { .. } => self.refused.push(index),
                    _ => {}
                }
                self.last = Some((stage, source));
                Step::On(client)
            }
            result => Step::Over(result),
        }
    }

    /// Waits for a daemon that can bear another client.
    /// `None`: all of them are to be asked again.
    async fn wait(&self, until: Instant) -> Result<Option<(usize, Permit)>, Refusal> {
        let Some(_place) = self.target.queue.enter() else { return Err(Refusal::Full("queue_max")) };
        let members = || self.target.members.iter().enumerate().filter(|(at, _)| !self.refused.contains(at));
        let channels = members().map(|(_, member)| Arc::clone(member.channel(self.worker.index)));
        let permit = timeout_at(until, channel::wait_for_credit(channels)).await;
        let Some(permit) = permit.map_err(|_| Refusal::Full("queue_timeout"))? else { return Ok(None) };
        let mut found = members().filter(|(_, member)| permit.is_of(member.channel(self.worker.index)));
        let index = found.next().map(|(index, _)| index).ok_or(Refusal::Broken)?;
        Ok(Some((index, permit)))
    }
}

async fn write_head(head: &mut HeadBytes, client: &OwnedFd, deadlines: &Deadlines) -> std::io::Result<()> {
    head.write_whole(client, Instant::now() + deadlines.head).await
}
