//! What is sent to a program, and can be sent to another one as long as nobody has begun to answer.

use std::collections::VecDeque;
use std::task::{Context, Poll, ready};

use hyper::body::Bytes;

use crate::upstream::{Cut, Source};

/// What is kept of an input that was sent, so that it can be sent again: a program refuses before it reads.
const KEPT_BYTES_MAX: usize = 64 << 10;

/// A body of known length on its way to a program.
#[derive(Debug)]
pub struct Input {
    /// What comes before anything of the source.
    ahead: VecDeque<Bytes>,
    source: Source,
    /// What was given out; `None` when it is too much, or not wanted any more.
    given: Option<Vec<Bytes>>,
    given_bytes: usize,
}

impl Input {
    /// Nothing.
    pub fn empty() -> Self {
        Self::from(Source::empty())
    }

    /// Nothing, in the place of something that cannot be had again.
    pub(super) fn lost() -> Self {
        Self { given: None, ..Self::empty() }
    }

    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        let piece = match self.ahead.pop_front() {
            Some(piece) => piece,
            None => match ready!(self.source.poll_next(context)) {
                Some(Ok(piece)) => piece,
                other => return Poll::Ready(other),
            },
        };
        self.given_bytes += piece.len();
        if self.given_bytes > KEPT_BYTES_MAX {
            self.forget();
        }
        if let Some(given) = &mut self.given {
            given.push(piece.clone());
        }
        Poll::Ready(Some(Ok(piece)))
    }

    /// Keeps nothing for a second time.
    pub(super) fn forget(&mut self) {
        self.given = None;
    }

    /// Whether [`Self::rewound`] gives it back.
    pub(super) fn can_be_rewound(&self) -> bool {
        self.given.is_some()
    }

    /// The same from its beginning, if that can be had.
    pub(super) fn rewound(mut self) -> Option<Self> {
        let given = self.given.take()?;
        self.ahead = given.into_iter().chain(self.ahead).collect();
        Some(Self { given: Some(Vec::new()), given_bytes: 0, ..self })
    }
}

impl From<Source> for Input {
    fn from(source: Source) -> Self {
        Self { ahead: VecDeque::new(), source, given: Some(Vec::new()), given_bytes: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::feed;

    fn all(input: &mut Input) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Poll::Ready(Some(Ok(piece))) = input.poll_next(&mut Context::from_waker(std::task::Waker::noop())) {
            bytes.extend_from_slice(&piece);
        }
        bytes
    }

    #[test]
    fn what_was_given_out_can_be_had_again_up_to_a_bound() {
        let (feed, source) = feed(Some(10));
        let mut input = Input::from(source);
        feed.put(Bytes::from_static(b"hello"));
        assert_eq!(all(&mut input), b"hello");
        let mut input = input.rewound().expect("little");
        feed.put(Bytes::from_static(b"world"));
        assert_eq!(all(&mut input), b"helloworld");
        feed.end();
        let mut input = input.rewound().expect("little");
        assert_eq!(all(&mut input), b"helloworld");
        for (length, can) in [(KEPT_BYTES_MAX, true), (KEPT_BYTES_MAX + 1, false)] {
            let mut input = Input::from(Source::whole(vec![0; length].into()));
            assert_eq!(all(&mut input).len(), length);
            assert_eq!(input.rewound().is_some(), can, "{length}");
        }
    }
}
