//! Interim answers (1xx, RFC 9110 §15.2) on their way from an upstream to the client that waits.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use hyper::HeaderMap;

use super::Fault;

/// What came before the answer; both ends of it.
#[derive(Clone, Debug)]
pub struct Interims(Arc<Mutex<Waiting>>);

#[derive(Debug)]
struct Waiting {
    heads: VecDeque<Interim>,
    /// How many may still come.
    left: usize,
    count_max: usize,
    /// Why there are no more.
    over: Option<String>,
    waker: Option<Waker>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interim {
    /// 100, or 102 to 199.
    pub status: u16,
    /// Without those that are the connection's.
    pub fields: HeaderMap,
}

impl Interims {
    /// None yet, and at most so many.
    pub fn new(count_max: usize) -> Self {
        let waiting = Waiting { heads: VecDeque::new(), left: count_max, count_max, over: None, waker: None };
        Self(Arc::new(Mutex::new(waiting)))
    }

    /// One has come; one too many is the end of the exchange.
    pub(super) fn put(&self, interim: Interim) {
        let mut waiting = self.lock();
        match waiting.left.checked_sub(1) {
            Some(left) => {
                waiting.left = left;
                waiting.heads.push_back(interim);
            }
            None => waiting.over = Some(format!("over {} interim answers (interim_max)", waiting.count_max)),
        }
        waiting.wake();
    }

    /// They are too large; that is the end of the exchange.
    pub(super) fn refuse(&self, why: String) {
        let mut waiting = self.lock();
        waiting.over = Some(why);
        waiting.wake();
    }

    /// The next one.
    ///
    /// # Errors
    /// There were too many.
    pub fn poll_next(&self, context: &mut Context<'_>) -> Poll<Result<Interim, Fault>> {
        let mut waiting = self.lock();
        if let Some(why) = &waiting.over {
            return Poll::Ready(Err(Fault::Broken(why.clone())));
        }
        match waiting.heads.pop_front() {
            Some(interim) => Poll::Ready(Ok(interim)),
            None => {
                waiting.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    /// The next one, if it is there.
    ///
    /// # Errors
    /// There were too many.
    pub fn take(&self) -> Option<Result<Interim, Fault>> {
        match self.poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(interim) => Some(interim),
            Poll::Pending => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_too_many_is_a_fault() {
        let interims = Interims::new(2);
        let next = || interims.poll_next(&mut Context::from_waker(Waker::noop()));
        let interim = Interim { status: 103, fields: HeaderMap::new() };
        assert!(next().is_pending());
        interims.put(interim.clone());
        interims.put(interim.clone());
        assert_eq!(next(), Poll::Ready(Ok(interim.clone())));
        interims.put(interim);
        assert!(matches!(next(), Poll::Ready(Err(Fault::Broken(_)))));
    }
}
