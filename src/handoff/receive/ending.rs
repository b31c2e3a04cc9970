//! How a handoff ends: finished, given back, refused, or dropped; and what the gateway is told of it.

use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;

use super::super::client;
use super::super::native::frame::{Frame, Outcome, Reason, Refusal, Report};
use super::super::native::header::{HEADER_BYTES, PACKET_BYTES_MAX};
use super::channel::Urgency;
use super::handoff::{Handoff, Lease};
use super::response::phrase;

/// What a client that was refused without a gateway in between is told, if nothing else is said.
const RETRY_AFTER_S: u64 = 1;
/// Of a message for people, so much is told.
const MESSAGE_BYTES_MAX: usize = 1024;
/// A report with the longest message, each byte of it written as an escape of six.
const REPORT_BYTES_MAX: usize = 6 * MESSAGE_BYTES_MAX + 256;

/// How a client was served; the gateway's access log says it, in the dialect `baton`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Of the response; `None`: what was written here, if anything.
    pub status: Option<u16>,
    /// How it went.
    pub result: Outcome,
    /// For people.
    pub message: Option<String>,
    /// Written to the client; `None`: what was written here.
    pub bytes_out: Option<u64>,
}

/// How a client's connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// So that the last bytes arrive; what it got may be whole.
    Graceful,
    /// So that nothing that it got looks whole. One over a Unix socket sees the end all the same.
    Reset,
}

impl End {
    /// As it should be.
    pub fn ok() -> Self {
        Self::of(Outcome::Ok)
    }

    /// Some other way, with the status that was written here.
    pub fn of(result: Outcome) -> Self {
        Self { status: None, result, message: None, bytes_out: None }
    }

    /// A failure, for people to read.
    pub fn error(message: impl Into<String>) -> Self {
        Self { message: Some(message.into()), ..Self::of(Outcome::Error) }
    }
}

/// As it should be, with that status.
impl From<u16> for End {
    fn from(status: u16) -> Self {
        Self { status: Some(status), ..Self::ok() }
    }
}

/// What an error of reading or writing ends with.
impl From<&super::ClientError> for End {
    fn from(error: &super::ClientError) -> Self {
        use super::ClientError as E;
        let result = match error {
            E::Gone(_) | E::Cut => Outcome::ClientGone,
            E::Revoked => Outcome::Revoked,
            E::TimedOut => Outcome::Timeout,
            E::ChannelEnded | E::Head | E::Io(_) | E::Malformed => Outcome::Error,
        };
        Self { message: Some(error.to_string()), ..Self::of(result) }
    }
}

impl Handoff {
    /// Ends a client: closes it so that the last bytes arrive, for which this waits up to `linger` where the client still
    /// sends, and tells the gateway. A response that ends with the connection and failed (`error`, `timeout`) is reset, because
    /// its end would make it look whole. Nothing is left to be done if the gateway is gone.
    pub fn finish(self, end: impl Into<End>) {
        let end = end.into();
        let is_cut =
            matches!(end.result, Outcome::Error | Outcome::Timeout) && self.inner().output.ends_with_connection();
        self.finish_as(end, if is_cut { Close::Reset } else { Close::Graceful });
    }

    /// The same, where only the caller knows what was written, because it was written by others: a program that was given the
    /// client.
    pub fn finish_as(mut self, end: impl Into<End>, close: Close) {
        let end = end.into();
        if self.take().is_ok() {
            if let Some(socket) = self.inner_mut().client.take() {
                match (close, end.result) {
                    (Close::Reset, _) => client::reset(socket),
                    (Close::Graceful, Outcome::ClientGone) => drop(socket),
                    (Close::Graceful, _) => self.close(socket),
                }
            }
            self.conclude(|handoff, id| Frame::Done { id, report: handoff.report(end) }, Urgency::Later);
        }
    }

    /// Gives a client back, so that it can send its next request, and tells the gateway. What is unread of the request's body is read and dropped, up to
    /// 64 KiB. Where that cannot be (other dialects, a channel that has ended, a body that is longer, a response that did not
    /// allow it, a result that is not `ok`) it is [finished](Self::finish).
    pub fn give_back(mut self, end: impl Into<End>) {
        let end = end.into();
        let may = end.result == Outcome::Ok
            && self.take().is_ok()
            && self.inner().output.allows_next()
            && self.can_come_back()
            && self.discard_body();
        if !may {
            return self.finish(end);
        }
        let unread = self.input_mut().take_unread();
        let report = self.report(end.clone());
        let room = PACKET_BYTES_MAX - HEADER_BYTES - 2 * 4 - REPORT_BYTES_MAX;
        let inner = self.inner_mut();
        let (Lease::Channel { channel, id, .. }, Some(socket)) = (&inner.lease, inner.client.take()) else { return };
        let is_back = unread.len() <= room && {
            let until = Instant::now() + inner.shared.options.write_timeout;
            channel.give_back(*id, &Frame::Return { id: *id, report, unread }, socket.as_fd(), until).is_ok()
        };
        if is_back {
            drop(socket);
            self.end();
        } else {
            inner.client = Some(socket);
            self.finish(end);
        }
    }

    /// Does not take a client: the gateway tries another daemon, or answers it with 503 and the largest `Retry-After`. Where
    /// no gateway has it any more (the other dialects) it is answered here: 403 if `denied`, 501 if `unsupported`, else 503; behind a head that the gateway has written,
    /// reset. `message` is for people.
    ///
    /// # Errors
    /// The handoff itself, if it was taken: then it is to be answered.
    pub fn refuse(mut self, reason: Reason, retry_after_s: Option<u64>, message: &str) -> Result<(), Self> {
        if self.is_taken() {
            return Err(self);
        }
        if let Lease::Alone = self.inner().lease {
            self.answer_refusal(reason, retry_after_s);
            if let Some(socket) = self.inner_mut().client.take() {
                client::close_gracefully(socket, self.shared().options.linger);
            }
            self.end();
        } else {
            let message = (!message.is_empty()).then(|| message.to_owned());
            self.send_refusal(Refusal { reason, retry_after_s, message });
        }
        Ok(())
    }

    fn send_refusal(&mut self, refusal: Refusal) {
        let inner = self.inner_mut();
        // Whatever came with it is closed before the gateway hears of it.
        drop(inner.client.take());
        inner.input = super::body::Input::empty();
        self.conclude(|_, id| Frame::Refused { id, refusal }, Urgency::Now);
    }

    /// Writes what fits; a client that was never read from has room for it.
    fn answer_refusal(&mut self, reason: Reason, retry_after_s: Option<u64>) {
        if self.is_head_sent() {
            if let Some(socket) = self.inner_mut().client.take() {
                client::reset(socket);
            }
            return;
        }
        let status = match reason {
            Reason::Denied => 403,
            Reason::Unsupported => 501,
            Reason::Draining | Reason::Overloaded => 503,
        };
        let mut answer = Vec::new();
        // Writing to memory does not fail.
        drop(write!(answer, "HTTP/1.1 {status} {}\r\n", phrase(status)));
        if status == 503 {
            drop(write!(answer, "Retry-After: {}\r\n", retry_after_s.unwrap_or(RETRY_AFTER_S)));
        }
        answer.extend_from_slice(b"Content-Length: 0\r\nConnection: close\r\n\r\n");
        if let Some(socket) = &self.inner().client {
            let _ = client::send(socket.as_fd(), &answer);
        }
    }

    /// Tells the gateway that a client who is somebody else's now was served.
    pub(super) fn conclude_kept(&mut self) {
        self.conclude(|handoff, id| Frame::Done { id, report: handoff.report(End::ok()) }, Urgency::Later);
    }

    /// Says how it ended, once. What nobody waits for is sent with what somebody does, or at the latest before whoever
    /// serves the channels waits.
    fn conclude(&mut self, frame: impl FnOnce(&Self, u64) -> Frame, urgency: Urgency) {
        // A gateway may use the place as soon as it hears of it.
        self.shared().leave_place();
        if let Lease::Channel { channel, id, .. } = &self.inner().lease {
            let frame = frame(self, *id);
            let said = channel.conclude(*id, &frame, urgency);
            if said.is_ok() && urgency == Urgency::Later && self.shared().is_waiting() && channel.flush() == Ok(false) {
                // The gateway has no room: whoever waits has to wait for that too.
                self.shared().wake();
            }
        }
        self.has_ended();
    }

    /// Nothing is left to be said.
    fn end(&mut self) {
        self.shared().leave_place();
        self.has_ended();
    }

    fn has_ended(&mut self) {
        let inner = self.inner_mut();
        inner.is_concluded = true;
        inner.shared.end_one();
    }

    fn report(&self, end: End) -> Report {
        let inner = self.inner();
        let duration = inner.taken_at.get().map_or(std::time::Duration::ZERO, Instant::elapsed);
        Report {
            status: end.status.or(inner.output.status).filter(|_| !inner.output.is_head_sent()),
            bytes_out: end.bytes_out.unwrap_or(inner.output.bytes),
            duration_us: u64::try_from(duration.as_micros()).unwrap_or(u64::MAX),
            result: end.result,
            message: end.message.map(|mut message| {
                message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
                message
            }),
        }
    }

    /// Closes at once where nothing is unread and nothing more is expected; a reset cannot come then.
    fn close(&self, socket: OwnedFd) {
        let is_over = match self.inner().lease {
            Lease::Channel { .. } => !self.input().is_on_socket(),
            Lease::Alone => false,
        };
        if is_over && matches!(client::receive(socket.as_fd(), &mut [0; 64]), Ok(0) | Err(Errno::EAGAIN)) {
            drop(socket);
        } else {
            client::close_gracefully(socket, self.shared().options.linger);
        }
    }
}

impl Drop for Handoff {
    fn drop(&mut self) {
        if self.inner().is_concluded {
            return;
        }
        let is_alone = matches!(self.inner().lease, Lease::Alone);
        if self.is_taken() {
            if let Some(socket) = self.inner_mut().client.take() {
                if !is_alone && self.inner().output.ends_with_connection() {
                    client::reset(socket)
                } else {
                    drop(socket)
                }
            }
            self.conclude(
                |handoff, id| Frame::Done { id, report: handoff.report(End::error("not finished")) },
                Urgency::Later,
            );
        } else if is_alone {
            // Nobody waits here for the client to close, as a refusal does.
            self.answer_refusal(Reason::Overloaded, None);
            self.end();
        } else {
            let message = Some("dropped".to_owned());
            self.send_refusal(Refusal { reason: Reason::Overloaded, retry_after_s: None, message });
        }
    }
}
