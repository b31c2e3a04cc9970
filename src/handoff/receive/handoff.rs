//! A client that was handed over.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use super::super::client;
use super::super::message::Message;
use super::environment::environment;

/// A client, and what was said of it. Dropping it closes the client.
///
/// The client's socket is as the gateway had it: **non-blocking**, unless the target asks otherwise. O_NONBLOCK belongs to
/// the open file and travels with it, so say what you need with [`set_blocking`](Self::set_blocking).
pub struct Handoff {
    message: Message,
    client: OwnedFd,
    is_head_sent: bool,
}

impl Handoff {
    pub(super) fn new(message: Message, client: OwnedFd, is_head_sent: bool) -> Self {
        Self { message, client, is_head_sent }
    }

    /// The data that a policy or an application sent along; in the dialect `datagram` the request's head, as it came.
    pub fn data(&self) -> &[u8] {
        self.message.data()
    }

    /// Whether the gateway has written the response's head, so that what is written now is its body: in the dialect
    /// `fdpass`. Others cannot tell; there the daemon writes the head, unless whoever configured both ends says otherwise.
    pub fn is_head_sent(&self) -> bool {
        self.is_head_sent
    }

    /// The client's socket, kept by the handoff.
    pub fn client(&self) -> BorrowedFd<'_> {
        self.client.as_fd()
    }

    /// The client's socket, now the caller's to close.
    pub fn into_client(self) -> OwnedFd {
        self.client
    }

    /// The client's socket as the standard library reads and writes streams: without SIGPIPE. For a client that came
    /// over a Unix socket, what is about TCP or addresses fails; the rest works.
    pub fn into_stream(self) -> TcpStream {
        self.client.into()
    }

    /// Makes reads and writes of the client wait, or not. All holders of this socket share the setting.
    ///
    /// # Errors
    /// What fcntl(2) says.
    pub fn set_blocking(&self, blocking: bool) -> io::Result<()> {
        client::set_blocking(self.client.as_fd(), blocking)
    }

    /// What is known of the client as CGI variables (RFC 3875), for a program to be started with. Owned: nothing is put
    /// into this process's environment. HANDOFF_DATA is missing when the data has a NUL byte or is longer than 131,058
    /// bytes, which no variable can hold.
    pub fn env(&self) -> Vec<(&'static str, OsString)> {
        environment(self.client.as_fd(), self.data(), self.is_head_sent)
    }
}

impl fmt::Debug for Handoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handoff").field("message", &self.message).field("client", &self.client).finish()
    }
}
