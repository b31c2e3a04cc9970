//! A socket that clients are handed over on, and its file.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::sys::socket::{Backlog, listen, setsockopt, sockopt};
use nix::sys::stat::{Mode, fchmod};

use super::super::dialect::{Dialect, SocketKind};
use super::super::resolved::Resolved;
use super::options::Options;
use super::socket_file::{SocketFile, remove_stale};

/// A socket that clients are handed over on, for a process that accepts from it ([`Acceptor`](super::Acceptor) has its own) or that
/// passes it on to those that do. Dropping it closes it and removes its file, if it is still the one that was bound. It is non-blocking and close-on-exec.
#[derive(Debug)]
pub struct Listener {
    /// In the dialect `datagram` nothing is accepted from it: it is read.
    pub(super) socket: UnixListener,
    pub(super) file: Option<SocketFile>,
}

impl Listener {
    /// Listens at `path`, with the mode and the backlog of `options`. A socket file that nobody listens on any more is
    /// replaced; a live one is not.
    ///
    /// # Errors
    /// AddrInUse when somebody listens there, or something else than a socket stands there; otherwise what the system says.
    pub fn bind(path: impl AsRef<Path>, dialect: Dialect, options: &Options) -> io::Result<Self> {
        let (path, kind) = (path.as_ref(), SocketKind::of(dialect));
        remove_stale(path, kind)?;
        let listener = kind.socket()?;
        if kind == SocketKind::Datagram {
            // The kernel says who sent a datagram if it was asked to before that.
            setsockopt(&listener, sockopt::PassCred, &true)?;
        }
        // The file is made with no more than this, whatever the umask is, so that nobody slips in before it has its mode.
        fchmod(&listener, Mode::from_bits_truncate(options.socket_mode))?;
        Resolved::in_directory(path)?.bind(listener.as_fd())?;
        let file = SocketFile::of(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(options.socket_mode))?;
        if kind != SocketKind::Datagram {
            listen(&listener, Backlog::new(i32::from(options.backlog))?)?;
        }
        Ok(Self { socket: UnixListener::from(listener), file: Some(file) })
    }
}

impl Listener {
    /// Removes its file, so that nobody new comes, while it is still listened on.
    pub fn remove(&self) {
        if let Some(file) = &self.file {
            file.remove();
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.remove();
    }
}
