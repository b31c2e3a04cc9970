//! What is kept of a request until it is over: its line in the access log, and which policies are told of its end.

use std::sync::Arc;
use std::time::Instant;

use crate::access_log::{Line, PackedLine, Record};
use crate::drain::{Guard, WeakGuard};
use crate::policy::{Generation, PolicyError, Summary};
use crate::request::Request;

/// A request's account. When it is dropped, the line is written and the policies are told.
#[derive(Debug)]
pub(super) struct Account {
    line: Line,
    /// Only where a policy has more to hear of the request.
    told: Option<Box<Told>>,
}

#[derive(Debug)]
struct Told {
    guard: Guard,
    worker: usize,
    policies: Vec<Asked>,
    /// Which of them decided, where it was not the last.
    decider: Option<usize>,
}

/// A policy that was asked, and what it gave along for its later hooks.
#[derive(Debug)]
struct Asked {
    generation: Arc<Generation>,
    carry: Vec<u8>,
}

impl Account {
    pub(super) fn new(line: Line) -> Self {
        Self { line, told: None }
    }

    /// As [`Line::set`].
    pub(super) fn set(&mut self, fill: impl FnOnce(&mut Record)) {
        self.line.set(fill);
    }

    /// As [`Line::clock`].
    pub(super) fn clock(&self) -> Option<Instant> {
        self.line.clock()
    }

    /// As [`Line::annotate`].
    pub(super) fn annotate(&mut self, annotations: Vec<(String, String)>) {
        self.line.annotate(annotations);
    }

    /// As [`Line::request`].
    pub(super) fn request(&mut self, request: &Request) {
        self.line.request(request);
    }

    /// Remembers a policy that was asked; for those only that have a hook for later.
    pub(super) fn asked(
        &mut self,
        generation: &Arc<Generation>,
        carry: Vec<u8>,
        request: &Request,
        guard: &Guard,
        worker: usize,
    ) {
        if generation.completes() {
            self.line.keep(request);
        }
        let new = || Box::new(Told { guard: guard.clone(), worker, policies: Vec::new(), decider: None });
        let told = self.told.get_or_insert_with(new);
        told.policies.push(Asked { generation: Arc::clone(generation), carry });
    }

    /// The policies that have a word about answers, in the order in which they were asked, by their places.
    pub(super) fn responders(&self) -> Vec<(usize, Arc<Generation>)> {
        let asked = self.told.iter().flat_map(|told| told.policies.iter().enumerate());
        asked.filter(|(_, a)| a.generation.sees_responses()).map(|(at, a)| (at, Arc::clone(&a.generation))).collect()
    }

    /// What the policy at that place gave along; empty where nothing was remembered of it.
    pub(super) fn carry_of(&self, at: usize) -> &[u8] {
        self.told.as_ref().and_then(|told| told.policies.get(at)).map_or(&[], |asked| &asked.carry)
    }

    /// It has been asked again.
    pub(super) fn set_carry_of(&mut self, at: usize, carry: Vec<u8>) {
        if let Some(asked) = self.told.as_mut().and_then(|told| told.policies.get_mut(at)) {
            asked.carry = carry;
        }
    }

    /// The policy at that place is the one that decided.
    pub(super) fn decided_by(&mut self, at: usize) {
        if let Some(told) = &mut self.told {
            told.decider = Some(at);
        }
    }

    /// What the policy that decided gave along.
    pub(super) fn carry(&self) -> &[u8] {
        self.carry_of(self.decider())
    }

    /// It has been asked again.
    pub(super) fn set_carry(&mut self, carry: Vec<u8>) {
        self.set_carry_of(self.decider(), carry);
    }

    /// The place of the policy that decided: the last one's, until an answer was judged.
    fn decider(&self) -> usize {
        let of = |told: &Told| told.decider.unwrap_or(told.policies.len().saturating_sub(1));
        self.told.as_deref().map_or(0, of)
    }

    /// Packs it, until more is known: of the policies only those that are told of the end.
    pub(super) fn pack(mut self) -> PackedAccount {
        let told = self.told.take().map(|mut told| {
            told.policies.retain(|asked| asked.generation.completes());
            told
        });
        let told = told.filter(|told| !told.policies.is_empty());
        let line = std::mem::replace(&mut self.line, Line::nobodys()).pack();
        PackedAccount {
            line,
            told: told.map(|told| (told.guard.downgrade(), told.worker, told.policies)).map(Box::new),
        }
    }

    /// Writes the line and tells the policies now.
    pub(super) fn end(&mut self) {
        if let Some(told) = self.told.take()
            && let Some(record) = self.line.record()
        {
            told.tell(record);
        }
        self.line.end();
    }
}

/// The account of a request whose client a daemon has.
#[derive(Debug)]
pub(super) struct PackedAccount {
    line: PackedLine,
    told: Option<Box<(WeakGuard, usize, Vec<Asked>)>>,
}

impl PackedAccount {
    /// As it was; where the gateway has finished in between, the policies are told no more.
    pub(super) fn unpack(self) -> Account {
        let told = self.told.and_then(|told| {
            let (guard, worker, policies) = *told;
            Some(Box::new(Told { guard: guard.upgrade()?, worker, policies, decider: None }))
        });
        Account { line: self.line.unpack(), told }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.end();
    }
}

impl Told {
    /// Each in a task of its own, when the request's has nothing more to do.
    fn tell(self, record: &Record) {
        let Self { guard, worker, policies, .. } = self;
        for Asked { generation, carry } in policies.into_iter().filter(|asked| asked.generation.completes()) {
            let Some(completion) = generation.place_to_complete() else { continue };
            let summary = summary(record);
            guard.spawn(|guard| async move {
                if let Err(error) = completion.on_complete(worker, &summary, &carry).await {
                    say_failed(&generation, "on-complete", &summary.request_id, &error, &error.to_string());
                }
                // What drains waits for it.
                drop(guard);
            });
        }
    }
}

fn summary(record: &Record) -> Summary {
    Summary {
        request_id: record.id().to_owned(),
        action: record.outcome.word(),
        target: record.to.clone(),
        status: record.status,
        duration: record.duration(),
        bytes_in: record.bytes_in,
        bytes_out: record.bytes_out,
    }
}

/// One line for each failure. That a breaker is open was said when it opened.
pub(super) fn say_failed(
    generation: &Generation,
    hook: &'static str,
    request: &dyn std::fmt::Display,
    failure: &PolicyError,
    error: &str,
) {
    let (policy, number) = (generation.policy(), generation.number());
    match failure {
        PolicyError::BreakerOpen => {
            tracing::warn!(%policy, generation = number, %request, hook, error, "policy not asked");
        }
        _ => tracing::warn!(%policy, generation = number, %request, hook, error, "policy failed"),
    }
}
