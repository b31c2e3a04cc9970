//! A WebSocket through us: behind the answer of 101, bytes both ways until one side ends.
//!
//! Nothing is kept while both are silent: what has been read of one side is written to the other at once, and only what it
//! does not take waits, as long as nothing more is read.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::HeaderMap;
use hyper::body::Bytes;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};

use super::Serving;
use crate::client::Client;
use crate::decision::Outcome;
use crate::exchange::Exchange;
use crate::http::response::put_switch;
use crate::pace::Pace;
use crate::upstream::{Stream, Tunnel};

/// Read at once in one direction.
const PIECE_BYTES: usize = 16 << 10;

/// How long one side may take to read what is left when the other has ended.
const END_TIMEOUT: Duration = Duration::from_secs(5);

impl Serving<'_> {
    /// Tells the client that the protocol is another one from here on, and carries its bytes. Nothing that the client sent
    /// behind its request has gone to the upstream before this.
    pub(super) async fn tunnel(&mut self, exchange: Exchange, fields: &HeaderMap, tunnel: Tunnel, silence: Duration) {
        let mut head = Vec::new();
        put_switch(&mut head, fields.iter().map(|(name, value)| (name.as_str(), value.as_bytes())));
        let mut client = exchange.into_client();
        let sent = client.write_all(&head, &Pace::new(&self.settings.limits)).await;
        // What a drain cuts is left as it stands here.
        self.line.set(|r| (r.outcome, r.status) = (Outcome::Aborted, Some(101)));
        if let Err((_, error)) = sent {
            self.line.set(|r| (r.outcome, r.error) = (Outcome::ClientGone, Some(error.to_string())));
            return;
        }
        let Tunnel { mut stream, ahead } = tunnel;
        let mut carried = Carried { from_upstream: ahead, out: head.len() as u64, ..Carried::default() };
        let end = carried.run(&mut client, &mut stream, silence).await;
        self.line.set(|r| {
            r.outcome = Outcome::Proxied;
            r.bytes_in += carried.taken;
            r.bytes_out += carried.out;
            r.error = end.err();
        });
    }
}

/// What a tunnel has carried, and what waits.
#[derive(Default)]
struct Carried {
    /// Read of the client and not yet written.
    from_client: Bytes,
    /// Read of the upstream and not yet written.
    from_upstream: Bytes,
    /// What was written to the upstream may wait in what encrypts it.
    is_unflushed: bool,
    client_ended: bool,
    upstream_ended: bool,
    /// The end of one side has been told to the other.
    client_told: bool,
    upstream_told: bool,
    /// From the client.
    taken: u64,
    /// To the client.
    out: u64,
}

impl Carried {
    async fn run(&mut self, client: &mut Client, upstream: &mut Stream, silence: Duration) -> Result<(), String> {
        loop {
            let patience = if self.client_ended || self.upstream_ended { END_TIMEOUT.min(silence) } else { silence };
            let moved = poll_fn(|context| self.poll(client, upstream, context));
            match tokio::time::timeout(patience, moved).await {
                Ok(Ok(true)) => tokio::task::coop::consume_budget().await,
                Ok(Ok(false)) => return Ok(()),
                Ok(Err(error)) => return Err(format!("the tunnel broke: {error}")),
                Err(_) if self.client_ended || self.upstream_ended => return Ok(()),
                Err(_) => return Err(format!("silent for {silence:?} (tunnel_timeout)")),
            }
        }
    }

    /// Moves what can be moved; `false` when both sides have ended.
    fn poll(
        &mut self,
        client: &mut Client,
        upstream: &mut Stream,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<bool>> {
        let up = self.poll_up(client, upstream, context)?;
        let down = self.poll_down(client, upstream, context)?;
        if self.client_told && self.upstream_told {
            return Poll::Ready(Ok(false));
        }
        if up.is_ready() || down.is_ready() { Poll::Ready(Ok(true)) } else { Poll::Pending }
    }

    /// From the client to the upstream.
    fn poll_up(
        &mut self,
        client: &mut Client,
        upstream: &mut Stream,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.from_client.is_empty() {
            let count = ready!(Pin::new(upstream).poll_write(context, &self.from_client))?;
            self.is_unflushed = true;
            drop(self.from_client.split_to(count));
            return Poll::Ready(Ok(()));
        }
        if self.is_unflushed {
            ready!(Pin::new(&mut *upstream).poll_flush(context))?;
            self.is_unflushed = false;
        }
        if self.client_ended {
            if self.upstream_told {
                return Poll::Pending;
            }
            ready!(Pin::new(upstream).poll_shutdown(context))?;
            self.upstream_told = true;
            return Poll::Ready(Ok(()));
        }
        let mut buffer = [0; PIECE_BYTES];
        loop {
            match client.read(&mut buffer) {
                Ok(0) => self.client_ended = true,
                Ok(count) => {
                    self.taken += count as u64;
                    let written = match Pin::new(&mut *upstream).poll_write(context, &buffer[..count]) {
                        Poll::Ready(written) => written?,
                        Poll::Pending => 0,
                    };
                    self.is_unflushed = true;
                    self.from_client = Bytes::copy_from_slice(&buffer[written..count]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(client.poll_readable(context))?;
                    continue;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
            return Poll::Ready(Ok(()));
        }
    }

    /// From the upstream to the client.
    fn poll_down(
        &mut self,
        client: &mut Client,
        upstream: &mut Stream,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.from_upstream.is_empty() {
            let count = ready!(client.poll_send(context, &[IoSlice::new(&self.from_upstream)]))?;
            self.out += count as u64;
            drop(self.from_upstream.split_to(count));
            return Poll::Ready(Ok(()));
        }
        if self.upstream_ended {
            if self.client_told {
                return Poll::Pending;
            }
            client.end();
            self.client_told = true;
            return Poll::Ready(Ok(()));
        }
        let mut buffer = [0; PIECE_BYTES];
        let mut read = ReadBuf::new(&mut buffer);
        ready!(Pin::new(upstream).poll_read(context, &mut read))?;
        let read = read.filled();
        if read.is_empty() {
            self.upstream_ended = true;
            return Poll::Ready(Ok(()));
        }
        let written = match client.poll_send(context, &[IoSlice::new(read)]) {
            Poll::Ready(written) => written?,
            Poll::Pending => 0,
        };
        self.out += written as u64;
        self.from_upstream = Bytes::copy_from_slice(&read[written..]);
        Poll::Ready(Ok(()))
    }
}
