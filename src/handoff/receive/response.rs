//! Answering a client: a whole response, or a head and then bytes as they come, each with a deadline for the client to take
//! them.

use nix::errno::Errno;
use nix::poll::PollFlags;
use std::fmt::Write as _;
use std::os::fd::AsFd as _;

use super::super::client;
use super::error::ClientError;
use super::handoff::{Handoff, Lease};

/// Up to here a body is sent in one piece with its head.
const GLUED_BYTES_MAX: usize = 64 << 10;

/// What was written to a client.
#[derive(Debug)]
pub(super) struct Output {
    head: Head,
    pub status: Option<u16>,
    pub bytes: u64,
    /// Whether a server makes the head of what it is told.
    pub is_cgi: bool,
}

/// Which head the client has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Head {
    /// None that is known here.
    None,
    /// The gateway's; the body ends with the connection.
    Gateways,
    /// Of a whole response, after which the connection ends.
    Whole,
    /// Of a whole response, after which the next request may come.
    WholeKept,
    /// Of one whose body ends with the connection.
    Begun,
}

/// What becomes of the connection behind a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connection {
    Close,
    KeepAlive,
    /// It is a server's (CGI, RFC 3875 §6), which makes a head of what it is told.
    Servers,
}

impl Output {
    pub(super) fn new(is_head_sent: bool) -> Self {
        Self { head: if is_head_sent { Head::Gateways } else { Head::None }, status: None, bytes: 0, is_cgi: false }
    }

    pub(super) fn is_head_sent(&self) -> bool {
        self.head == Head::Gateways
    }

    /// Whether the end of the connection is the end of the response, so that a cut would look whole.
    pub(super) fn ends_with_connection(&self) -> bool {
        matches!(self.head, Head::Gateways | Head::Begun)
    }

    /// Whether the client may go on with another request, as far as what it got tells.
    pub(super) fn allows_next(&self) -> bool {
        matches!(self.head, Head::None | Head::WholeKept)
    }
}

impl Handoff {
    /// Answers with a whole response, after which the connection ends: `Connection: close` and the body's length are added,
    /// `Content-Length`, `Transfer-Encoding` and `Connection` of `headers` left out. Of a response to HEAD, and of one that has none, the body is
    /// not sent. Behind a head that the gateway has written, the body is all that is sent.
    ///
    /// # Errors
    /// As [`write`](Self::write); [`ClientError::Head`] when `status` is not within 200 to 599 or a field's name or value would end its line.
    pub fn respond(&mut self, status: u16, headers: &[(&str, &str)], body: &[u8]) -> Result<(), ClientError> {
        self.respond_with(status, headers, body, false)
    }

    /// The same, but the client may send its next request: where it [can be given back](Self::give_back), else as
    /// [`respond`](Self::respond).
    ///
    /// # Errors
    /// As [`respond`](Self::respond).
    pub fn respond_keep_alive(
        &mut self,
        status: u16,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<(), ClientError> {
        let is_kept = self.can_come_back();
        self.respond_with(status, headers, body, is_kept)
    }

    fn respond_with(
        &mut self,
        status: u16,
        headers: &[(&str, &str)],
        body: &[u8],
        is_kept: bool,
    ) -> Result<(), ClientError> {
        let has_body = !matches!(status, 204 | 304) && self.method() != Some("HEAD");
        let body = if has_body { body } else { &[] };
        if self.is_head_sent() {
            return self.write(body);
        }
        let length = if status == 204 { None } else { Some(body.len()) };
        let connection = self.connection(is_kept);
        let mut message = head(status, headers, length.filter(|_| has_body), connection).ok_or(ClientError::Head)?;
        let is_glued = body.len() <= GLUED_BYTES_MAX;
        if is_glued {
            message.extend_from_slice(body);
        }
        self.note_head(if is_kept { Head::WholeKept } else { Head::Whole }, status)?;
        self.send_all(&message)?;
        if is_glued { Ok(()) } else { self.send_all(body) }
    }

    /// Begins a response whose body is what is [written](Self::write) and ends with the connection. Behind a head that the
    /// gateway has written, nothing is sent.
    ///
    /// # Errors
    /// As [`respond`](Self::respond).
    pub fn start(&mut self, status: u16, headers: &[(&str, &str)]) -> Result<(), ClientError> {
        if self.is_head_sent() {
            return self.take();
        }
        let message = head(status, headers, None, self.connection(false)).ok_or(ClientError::Head)?;
        self.note_head(Head::Begun, status)?;
        self.send_all(&message)
    }

    fn connection(&self, is_kept: bool) -> Connection {
        match is_kept {
            _ if self.inner().output.is_cgi => Connection::Servers,
            true => Connection::KeepAlive,
            false => Connection::Close,
        }
    }

    fn note_head(&mut self, head: Head, status: u16) -> Result<(), ClientError> {
        self.take()?;
        let output = &mut self.inner_mut().output;
        (output.head, output.status) = (head, Some(status));
        Ok(())
    }

    /// Writes all of `bytes`, as they are. Waits where the client takes them slowly; never raises SIGPIPE.
    ///
    /// # Errors
    /// - [`ClientError::ChannelEnded`]: the client was not taken, cannot be, and was not touched.
    /// - [`ClientError::Gone`]: it has left.
    /// - [`ClientError::Revoked`]: the gateway wants it to be ended.
    /// - [`ClientError::TimedOut`]: it has taken no byte for `write_timeout`.
    ///
    /// Some of `bytes` may have been written then.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        self.send_all(bytes)
    }

    pub(super) fn send_all(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        self.take()?;
        self.shared().look();
        if self.has_been_revoked() {
            return Err(ClientError::Revoked);
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            match client::send(self.client_socket()?.as_fd(), rest) {
                Ok(count) => {
                    rest = &rest[count..];
                    self.inner_mut().output.bytes += count as u64;
                }
                Err(Errno::EAGAIN) => self.wait_for(PollFlags::POLLOUT, self.shared().options.write_timeout)?,
                Err(error) => return Err(ClientError::of(error)),
            }
        }
        Ok(())
    }

    pub(super) fn has_begun_to_answer(&self) -> bool {
        let output = &self.inner().output;
        output.bytes > 0 || output.head != Head::None
    }

    /// Whether the client can go back to the gateway for its next request, so far.
    pub(super) fn can_come_back(&self) -> bool {
        let Lease::Channel { channel, .. } = &self.inner().lease else { return false };
        let says = |word: &str| {
            let mut words = self.header("connection").unwrap_or_default().into_owned();
            words.make_ascii_lowercase();
            words.split(',').any(|own| own.trim() == word)
        };
        // An old client ends its connection unless it asks for more.
        let asks = if self.request("version") == Some("1.0") { says("keep-alive") } else { !says("close") };
        asks && !self.is_head_sent() && !channel.has_ended() && self.can_read_to_end()
    }
}

/// A response's head. With a length it says so, and whether the next request may follow.
fn head(status: u16, headers: &[(&str, &str)], length: Option<usize>, connection: Connection) -> Option<Vec<u8>> {
    if !(200..600).contains(&status) {
        return None;
    }
    let begins = if connection == Connection::Servers { "Status:" } else { "HTTP/1.1" };
    let mut text = format!("{begins} {status} {}\r\n", phrase(status));
    for (name, value) in headers {
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let ends_line = |byte: u8| matches!(byte, b'\r' | b'\n' | 0);
        if name.is_empty() || !name.bytes().all(is_token) || value.bytes().any(ends_line) {
            return None;
        }
        let framing = ["connection", "content-length", "transfer-encoding"];
        if !framing.iter().any(|own| name.eq_ignore_ascii_case(own)) {
            text.extend([name, ": ", value, "\r\n"]);
        }
    }
    if let Some(length) = length {
        write!(text, "Content-Length: {length}\r\n").ok()?;
    }
    text.push_str(match connection {
        Connection::Close => "Connection: close\r\n\r\n",
        Connection::KeepAlive => "Connection: keep-alive\r\n\r\n",
        Connection::Servers => "\r\n",
    });
    Some(text.into_bytes())
}

/// RFC 9110 §15; others need none.
pub(super) fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_says_what_follows_and_lets_nobody_end_a_line() {
        let text = |length, next| head(200, &[("X-A", "b"), ("content-length", "9")], length, next).unwrap();
        assert_eq!(
            text(Some(5), Connection::Close),
            b"HTTP/1.1 200 OK\r\nX-A: b\r\nContent-Length: 5\r\nConnection: close\r\n\r\n"
        );
        assert_eq!(text(None, Connection::KeepAlive), b"HTTP/1.1 200 OK\r\nX-A: b\r\nConnection: keep-alive\r\n\r\n");
        assert_eq!(text(Some(5), Connection::Servers), b"Status: 200 OK\r\nX-A: b\r\nContent-Length: 5\r\n\r\n");
        for (name, value) in [("", "b"), ("a b", "c"), ("a:", "c"), ("a", "b\r\nc: d"), ("a", "b\0"), ("a\n", "b")] {
            assert_eq!(head(200, &[(name, value)], None, Connection::Close), None);
        }
        assert!([199, 600].into_iter().all(|status| head(status, &[], None, Connection::Close).is_none()));
    }
}
