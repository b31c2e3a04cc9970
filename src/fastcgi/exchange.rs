//! One request and its answer on a connection: writing and reading at the same time, until END_REQUEST.

use std::pin::pin;
use std::task::{Context, Poll, ready};

use hyper::body::Bytes;
use tokio::io::AsyncReadExt as _;
use tokio::sync::oneshot;

use super::record::{Decoder, Ending, Header, Kind, NO_REQUEST, Part};
use super::sending::{REQUEST, Sending};
use super::stderr::Complaints;
use super::{Input, Stream};
use crate::upstream::{Cut, Fault};

/// One read; what nobody polls for waits in here, and in the kernel.
const READ_BYTES: usize = 32 << 10;

/// What comes of it.
#[derive(Debug)]
pub(super) enum Event {
    /// At least a byte of the answer.
    Output(Bytes),
    /// END_REQUEST: nothing follows.
    End(Ending),
}

/// Dropped before its end, the program is asked to stop, and the connection is closed.
#[derive(Debug)]
pub(super) struct Exchange<S: Stream> {
    /// `None` behind the end.
    stream: Option<S>,
    sending: Sending,
    /// What was read and not looked at.
    read: Bytes,
    decoder: Decoder,
    kind: Kind,
    /// Content of END_REQUEST.
    ending: Vec<u8>,
    has_output_ended: bool,
    complaints: Complaints,
    keep: Option<oneshot::Sender<S>>,
}

impl<S: Stream> Exchange<S> {
    pub(super) fn new(stream: S, sending: Sending, complaints: Complaints, keep: Option<oneshot::Sender<S>>) -> Self {
        Self {
            stream: Some(stream),
            sending,
            read: Bytes::new(),
            decoder: Decoder::new(),
            kind: Kind::UnknownType,
            ending: Vec::new(),
            has_output_ended: false,
            complaints,
            keep,
        }
    }

    /// What the program has to say next. Whoever polls this sends the request, too.
    pub(super) fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Result<Event, Fault>> {
        loop {
            let Some(stream) = &mut self.stream else {
                return Poll::Ready(Err(Fault::Broken("nothing follows its end".to_owned())));
            };
            match self.sending.poll(stream, context) {
                Ok(()) => {}
                Err(Cut::Request) => return Poll::Ready(Err(Fault::ClientGone)),
                Err(cut @ Cut::Ours) => return Poll::Ready(Err(broken(cut))),
            }
            if let Some(event) = self.next_read()? {
                return Poll::Ready(Ok(event));
            }
            // Reading costs of the task's budget (tokio's cooperation): a program that floods us cannot stop others.
            ready!(self.poll_read(context))?;
        }
    }

    /// The next event in what was read.
    fn next_read(&mut self) -> Result<Option<Event>, Fault> {
        loop {
            let step = self.decoder.step(&self.read).map_err(broken)?;
            let mut taken = self.read.split_to(step.consumed);
            match step.part {
                None => return Ok(None),
                Some(Part::Header(header)) => self.begin(header)?,
                Some(Part::Content(range)) => {
                    let content = taken.split_to(range.end).split_off(range.start);
                    match self.kind {
                        Kind::Stdout => return Ok(Some(Event::Output(content))),
                        Kind::Stderr => self.complaints.push(&content),
                        Kind::EndRequest => self.ending.extend_from_slice(&content),
                        _ => {}
                    }
                }
                Some(Part::End) if self.kind == Kind::EndRequest => {
                    let ending = Ending::decode(&self.ending).map_err(broken)?;
                    self.end(ending);
                    return Ok(Some(Event::End(ending)));
                }
                Some(Part::End) => {}
            }
        }
    }

    fn begin(&mut self, header: Header) -> Result<(), Fault> {
        self.kind = header.kind;
        match (header.request, header.kind) {
            // What belongs to no request changes nothing about this one.
            (NO_REQUEST, Kind::UnknownType | Kind::GetValuesResult) => Ok(()),
            (REQUEST, Kind::Stdout) if self.has_output_ended => Err(broken("output behind its end")),
            (REQUEST, Kind::Stdout) => {
                self.has_output_ended = header.content_bytes == 0;
                Ok(())
            }
            (REQUEST, Kind::Stderr) => Ok(()),
            (REQUEST, Kind::EndRequest) if header.content_bytes == 8 => Ok(()),
            (REQUEST, Kind::EndRequest) => Err(broken("an END_REQUEST of a wrong length")),
            (request, kind) => Err(Fault::Broken(format!("a record {kind:?} of request {request}"))),
        }
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(Ok(())) };
        // Nothing is held for one that says nothing.
        let mut buffer = Vec::with_capacity(READ_BYTES);
        let count = ready!(pin!(stream.read_buf(&mut buffer)).poll(context));
        Poll::Ready(match count {
            Ok(0) => Err(self.closed("it closed without END_REQUEST")),
            Ok(_) => {
                self.read = Bytes::from(buffer);
                Ok(())
            }
            Err(error) => Err(self.closed(&format!("it closed without END_REQUEST: {error}"))),
        })
    }

    /// Nothing more comes.
    fn closed(&self, text: &str) -> Fault {
        match (self.sending.has_begun(), self.sending.stopped()) {
            (true, _) => Fault::Broken(text.to_owned()),
            (false, Some(error)) => Fault::Unreachable(format!("it closed before anything was sent: {error}")),
            (false, None) => Fault::Unreachable("it closed before anything was sent".to_owned()),
        }
    }

    /// Gives the connection on or closes it.
    fn end(&mut self, ending: Ending) {
        self.complaints.end();
        if let Ending::Complete(status @ 1..) = ending {
            self.complaints.say(&format!("[it ended with status {status}]"));
        }
        let is_clean = self.sending.is_done() && self.read.is_empty() && matches!(ending, Ending::Complete(_));
        let stream = self.stream.take();
        if let Some((stream, keep)) = stream.zip(self.keep.take()).filter(|_| is_clean) {
            // If nobody keeps it, it is closed.
            drop(keep.send(stream));
        }
    }

    /// Nothing is kept for another program: this one answers.
    pub(super) fn forget_input(&mut self) {
        self.sending.forget();
    }

    /// What was to be sent, from its beginning, if that can be had.
    pub(super) fn rewound_input(&mut self) -> Option<(Input, Input)> {
        self.sending.rewound()
    }
}

impl<S: Stream> Drop for Exchange<S> {
    fn drop(&mut self) {
        if let Some(mut stream) = self.stream.take() {
            self.complaints.end();
            self.sending.abort(&mut stream);
        }
    }
}

/// It broke the protocol.
pub(super) fn broken(error: impl std::fmt::Display) -> Fault {
    Fault::Broken(error.to_string())
}
