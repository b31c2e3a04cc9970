//! A request on its way out: records in a queue, filled from the bodies as fast as it drains.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::Bytes;

use super::record::{self, Afterwards, CONTENT_BYTES, Kind, Role};
use super::{Input, Stream};
use crate::upstream::Cut;

/// The one request of a connection at a time.
pub(super) const REQUEST: u16 = 1;
/// No more is taken from a body while so much waits.
const QUEUE_BYTES_MAX: usize = 64 << 10;
/// What one write takes.
const SLICES_MAX: usize = 16;

/// What has to be sent, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Stdin,
    Data,
    Done,
}

/// A piece of a record.
#[derive(Debug)]
struct Piece {
    bytes: Bytes,
    /// Behind it another record may begin.
    ends_record: bool,
}

#[derive(Debug)]
pub(super) struct Sending {
    queue: VecDeque<Piece>,
    queue_bytes: usize,
    stage: Stage,
    role: Role,
    stdin: Input,
    data: Input,
    has_begun: bool,
    is_between_records: bool,
    is_flushed: bool,
    /// The program does not take any more, and may answer all the same.
    stopped: Option<io::Error>,
}

impl Sending {
    /// Everything of the request; its variables were taken from it.
    pub(super) fn new(role: Role, variables: &[u8], stdin: Input, data: Input, afterwards: Afterwards) -> Self {
        let mut head = Vec::with_capacity(variables.len() + 64);
        record::put_stream(&mut head, Kind::BeginRequest, REQUEST, &record::begin_request(role, afterwards));
        record::put_stream(&mut head, Kind::Params, REQUEST, variables);
        head.extend_from_slice(&record::header(Kind::Params, REQUEST, 0));
        // An authorizer is sent variables and nothing else (FastCGI 1.0 §6.3).
        let stage = if role == Role::Authorizer { Stage::Done } else { Stage::Stdin };
        Self {
            queue_bytes: head.len(),
            queue: VecDeque::from([Piece { bytes: head.into(), ends_record: true }]),
            stage,
            role,
            stdin,
            data,
            has_begun: false,
            is_between_records: true,
            is_flushed: true,
            stopped: None,
        }
    }

    /// Whether a byte of it went out.
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Whether all of it did.
    pub(super) fn is_done(&self) -> bool {
        self.stage == Stage::Done && self.queue.is_empty() && self.stopped.is_none()
    }

    /// Why the program does not take more of it.
    pub(super) fn stopped(&self) -> Option<&io::Error> {
        self.stopped.as_ref()
    }

    /// Keeps nothing for another program.
    pub(super) fn forget(&mut self) {
        self.stdin.forget();
        self.data.forget();
        self.release();
    }

    /// The bodies from their beginning, if that can be had.
    pub(super) fn rewound(&mut self) -> Option<(Input, Input)> {
        let stdin = std::mem::replace(&mut self.stdin, Input::empty()).rewound()?;
        let data = std::mem::replace(&mut self.data, Input::empty()).rewound()?;
        Some((stdin, data))
    }

    /// Sends what can be sent now; wakes when there is more to do.
    ///
    /// # Errors
    /// A body is cut: the program must not take it for whole.
    pub(super) fn poll<S: Stream>(&mut self, stream: &mut S, context: &mut Context<'_>) -> Result<(), Cut> {
        while self.stopped.is_none() {
            self.fill(context)?;
            let written = if self.queue.is_empty() {
                if self.is_flushed {
                    return Ok(());
                }
                Pin::new(&mut *stream).poll_flush(context).map_ok(|()| self.is_flushed = true)
            } else {
                self.poll_write(stream, context)
            };
            match written {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => self.stop(error),
            }
        }
        Ok(())
    }

    /// Nobody reads any more of it.
    fn stop(&mut self, error: io::Error) {
        self.stopped = Some(error);
        self.queue.clear();
        self.release();
    }

    /// Drops what is neither sent any more nor kept for another program: whoever fills it is told by that.
    fn release(&mut self) {
        for input in [&mut self.stdin, &mut self.data] {
            if self.stopped.is_some() && !input.can_be_rewound() {
                *input = Input::lost();
            }
        }
    }

    fn fill(&mut self, context: &mut Context<'_>) -> Result<(), Cut> {
        while self.queue_bytes < QUEUE_BYTES_MAX {
            let (kind, input, next) = match self.stage {
                Stage::Stdin if self.role == Role::Filter => (Kind::Stdin, &mut self.stdin, Stage::Data),
                Stage::Stdin => (Kind::Stdin, &mut self.stdin, Stage::Done),
                Stage::Data => (Kind::Data, &mut self.data, Stage::Done),
                Stage::Done => return Ok(()),
            };
            match input.poll_next(context) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Some(piece)) => {
                    let mut piece = piece?;
                    while !piece.is_empty() {
                        let content = piece.split_to(piece.len().min(CONTENT_BYTES));
                        self.put(kind, content);
                    }
                }
                Poll::Ready(None) => {
                    self.put(kind, Bytes::new());
                    self.stage = next;
                }
            }
        }
        Ok(())
    }

    fn put(&mut self, kind: Kind, content: Bytes) {
        let header = Bytes::copy_from_slice(&record::header(kind, REQUEST, content.len()));
        self.queue_bytes += header.len() + content.len();
        self.queue.push_back(Piece { bytes: header, ends_record: content.is_empty() });
        if !content.is_empty() {
            self.queue.push_back(Piece { bytes: content, ends_record: true });
        }
    }

    fn poll_write<S: Stream>(&mut self, stream: &mut S, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let count = self.queue.len().min(SLICES_MAX);
        for (slice, piece) in slices.iter_mut().zip(&self.queue) {
            *slice = IoSlice::new(&piece.bytes);
        }
        let written = Pin::new(stream).poll_write_vectored(context, &slices[..count]);
        written.map(|written| match written {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                self.advance(count);
                Ok(())
            }
            Err(error) => Err(error),
        })
    }

    fn advance(&mut self, mut count: usize) {
        self.has_begun = true;
        self.is_flushed = false;
        self.queue_bytes -= count;
        while let Some(front) = self.queue.front_mut().filter(|_| count > 0) {
            let taken = front.bytes.len().min(count);
            drop(front.bytes.split_to(taken));
            count -= taken;
            self.is_between_records = front.bytes.is_empty() && front.ends_record;
            if front.bytes.is_empty() {
                drop(self.queue.pop_front());
            }
        }
    }

    /// Asks the program to end, if that can be said now and without waiting.
    pub(super) fn abort<S: Stream>(&mut self, stream: &mut S) {
        if self.has_begun && self.is_between_records && self.stopped.is_none() {
            let mut context = Context::from_waker(std::task::Waker::noop());
            let record = record::header(Kind::AbortRequest, REQUEST, 0);
            // Whether it is heard or not, the connection is closed next.
            drop(Pin::new(&mut *stream).poll_write(&mut context, &record));
            drop(Pin::new(stream).poll_flush(&mut context));
        }
    }
}
