//! How a daemon listens and whom it believes.

use std::time::Duration;
use std::{env, io};

use super::incoming::ReceiveError;

/// How an [`Acceptor`](super::Acceptor) listens and whom it believes.
#[derive(Clone, Debug)]
pub struct Options {
    /// Who may hand clients over, by SO_PEERCRED, or with datagrams by SCM_CREDENTIALS (unix(7)). `None`: the uids in the environment variable
    /// `BATON_GATEWAY_UIDS`, separated by commas, or without it this process's own and root.
    pub allow_uids: Option<Vec<u32>>,
    /// Handoffs that may wait to be accepted; net.core.somaxconn bounds it too. Of datagrams as many wait as
    /// net.unix.max_dgram_qlen says.
    pub backlog: u16,
    /// The longest message, in bytes.
    pub message_bytes_max: usize,
    /// How long a peer may take from its connection to a whole message. Others are received in the meantime.
    pub receive_timeout: Duration,
    /// Told of every connection that was dropped, and why.
    pub report: fn(&ReceiveError),
    /// Permission bits of the socket file. Whoever may write to it may connect; `allow_uids` is asked after that.
    pub socket_mode: u32,
}

impl Default for Options {
    /// 128 handoffs in the backlog, messages of 1 MiB within 5 s, mode 0660, and nobody told.
    fn default() -> Self {
        Self {
            allow_uids: None,
            backlog: 128,
            message_bytes_max: 1 << 20,
            receive_timeout: Duration::from_secs(5),
            report: |_| {},
            socket_mode: 0o660,
        }
    }
}

/// Whose handoffs are taken. Anything unclear is an error: rather nobody than the wrong one.
pub(super) fn allowed_uids(options: &Options) -> io::Result<Vec<u32>> {
    if let Some(uids) = &options.allow_uids {
        return Ok(uids.clone());
    }
    let Some(listed) = env::var_os("BATON_GATEWAY_UIDS") else {
        return Ok(vec![nix::unistd::geteuid().as_raw(), 0]);
    };
    let numbers = listed.to_str().and_then(|listed| listed.split(',').map(|uid| uid.trim().parse().ok()).collect());
    numbers.ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, "BATON_GATEWAY_UIDS is a list of user ids separated by commas")
    })
}
