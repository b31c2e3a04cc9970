//! A socket address that is ready to be used, past the 107 bytes that one holds too (unix(7)).

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::socket::UnixAddr;
use nix::sys::stat::Mode;

/// Something to connect or bind to.
#[derive(Debug)]
pub(super) struct Resolved {
    address: UnixAddr,
    /// Keeps `/proc/self/fd/N` meaning what it meant.
    _named: Option<OwnedFd>,
}

impl Resolved {
    /// An address that needs nothing to be kept.
    #[cfg(feature = "gateway")]
    pub(super) fn direct(address: UnixAddr) -> Self {
        Self { address, _named: None }
    }

    /// The socket that a descriptor names (O_PATH), whatever path it is at.
    #[cfg(feature = "gateway")]
    pub(super) fn named(socket: OwnedFd) -> Self {
        let address = UnixAddr::new(&Path::new("/proc/self/fd").join(socket.as_raw_fd().to_string()));
        let address = address.expect("a path of a few bytes fits into a socket address");
        Self { address, _named: Some(socket) }
    }

    /// Resolves a path that is to be bound, or whose socket is to be asked whether anybody listens. A long one is reached
    /// through its directory, because there is nothing at the path itself yet.
    pub(super) fn in_directory(path: &Path) -> io::Result<Self> {
        match UnixAddr::new(path) {
            Ok(address) => Ok(Self { address, _named: None }),
            Err(Errno::ENAMETOOLONG) => {
                let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
                let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
                let directory = open(parent, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
                let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
                Ok(Self { address: UnixAddr::new(&short)?, _named: Some(directory) })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// connect(2). On a non-blocking socket a full backlog is EAGAIN at once, never EINPROGRESS.
    pub(super) fn connect(&self, socket: BorrowedFd<'_>) -> nix::Result<()> {
        nix::sys::socket::connect(socket.as_raw_fd(), &self.address)
    }

    /// bind(2).
    pub(super) fn bind(&self, socket: BorrowedFd<'_>) -> nix::Result<()> {
        nix::sys::socket::bind(socket.as_raw_fd(), &self.address)
    }
}
