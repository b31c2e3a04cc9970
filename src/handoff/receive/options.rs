//! How a daemon listens and whom it believes.

use std::time::Duration;
use std::{env, io};

use super::incoming::ReceiveError;

/// How an [`Acceptor`](super::Acceptor) listens and whom it believes.
#[derive(Clone, Debug)]
pub struct Options {
    /// Who may hand clients over besides those in `allow_uids`, by the group of their process.
    pub allow_gids: Vec<u32>,
    /// Who may hand clients over, by SO_PEERCRED, or with datagrams by SCM_CREDENTIALS (unix(7)). `None`: the uids in the environment variable
    /// `BATON_GATEWAY_UIDS`, separated by commas, or without it this process's own and root.
    pub allow_uids: Option<Vec<u32>>,
    /// Handoffs that may wait to be accepted; net.core.somaxconn bounds it too. Of datagrams as many wait as
    /// net.unix.max_dgram_qlen says.
    pub backlog: u16,
    /// How long a client may take over the next bytes of a body that is being read.
    pub body_timeout: Duration,
    /// The longest data of a handoff, in bytes; of what was read from the client before, the same. In the dialect `baton`, which tells the
    /// gateway.
    pub data_bytes_max: usize,
    /// Clients handed over and not yet refused, finished or given back, at a time: on each channel and over all of them. In
    /// the dialect `baton`, which tells the gateway; what comes beyond it is refused.
    pub in_flight_max: usize,
    /// How long a client whose answer is written may take to read it and close, when bytes of it are unread: a close
    /// would reset it ([`close_gracefully`](super::super::close_gracefully)). [`finish`](super::Handoff::finish) waits for as
    /// long.
    pub linger: Duration,
    /// The longest message, in bytes, in the dialects that have one.
    pub message_bytes_max: usize,
    /// What this daemon is called, for people; `None`: the name of its program.
    pub name: Option<String>,
    /// How long a peer may take from its connection to a whole message, or a gateway to its HELLO. Others are received in the meantime.
    pub receive_timeout: Duration,
    /// Told of every connection that was dropped, and why. Must not call the library.
    pub report: fn(&ReceiveError),
    /// What this daemon does, for people.
    pub roles: Vec<String>,
    /// Permission bits of the socket file. Whoever may write to it may connect; `allow_uids` is asked after that.
    pub socket_mode: u32,
    /// How long a client may take no further byte of what is being written.
    pub write_timeout: Duration,
}

impl Default for Options {
    /// 128 handoffs in the backlog, messages of 1 MiB within 5 s, mode 0660, and nobody told; 100 in flight, data of 1 MiB, 30 s
    /// for a client's next byte in either direction, 2 s for its close.
    fn default() -> Self {
        Self {
            allow_gids: Vec::new(),
            allow_uids: None,
            backlog: 128,
            body_timeout: Duration::from_secs(30),
            data_bytes_max: 1 << 20,
            in_flight_max: 100,
            linger: Duration::from_secs(2),
            message_bytes_max: 1 << 20,
            name: None,
            receive_timeout: Duration::from_secs(5),
            report: |_| {},
            roles: Vec::new(),
            socket_mode: 0o660,
            write_timeout: Duration::from_secs(30),
        }
    }
}

/// Whose handoffs are taken.
#[derive(Debug)]
pub(in super::super) struct Allowed {
    uids: Vec<u32>,
    gids: Vec<u32>,
}

impl Allowed {
    /// Anything unclear is an error: rather nobody than the wrong one.
    pub(super) fn new(options: &Options) -> io::Result<Self> {
        let gids = options.allow_gids.clone();
        if let Some(uids) = &options.allow_uids {
            return Ok(Self { uids: uids.clone(), gids });
        }
        let Some(listed) = env::var_os("BATON_GATEWAY_UIDS") else {
            return Ok(Self { uids: vec![nix::unistd::geteuid().as_raw(), 0], gids });
        };
        let numbers = listed.to_str().and_then(|listed| listed.split(',').map(|uid| uid.trim().parse().ok()).collect());
        let uids = numbers.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "BATON_GATEWAY_UIDS is a list of user ids separated by commas")
        })?;
        Ok(Self { uids, gids })
    }

    /// Where nobody connects.
    pub(super) fn nobody() -> Self {
        Self { uids: Vec::new(), gids: Vec::new() }
    }

    pub(super) fn includes(&self, uid: u32, gid: u32) -> bool {
        self.uids.contains(&uid) || self.gids.contains(&gid)
    }
}
