//! A Unix socket's file: bound where nobody listens any more, and removed at the end if it is still ours.

use std::fs::Metadata;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Clients that wait in the kernel until they are accepted; capped by `net.core.somaxconn`.
pub const BACKLOG: i32 = 4096;

/// The file of a socket that we bound. Dropping it removes the file, unless another program has put its own there.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    made: Made,
}

/// Binds `path` and listens. A socket that nobody listens on is replaced; a living one is not taken from its owner.
/// `mode` is what the file's permissions are from its beginning on, less the umask; `None`: all of what the umask leaves.
///
/// # Errors
/// The system's, as bind(2) and listen(2) have it; `AddrInUse` where somebody listens.
pub fn bind(path: &Path, mode: Option<Mode>) -> io::Result<(OwnedFd, SocketFile)> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let new = || rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    if std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket()) {
        match rustix::net::connect(&new()?, &address) {
            Err(Errno::CONNREFUSED) => std::fs::remove_file(path)?,
            Err(Errno::NOENT) => {}
            _ => return Err(io::ErrorKind::AddrInUse.into()),
        }
    }
    let socket = new()?;
    if let Some(mode) = mode {
        // The file gets the mode that the socket has (unix(7)): there is no moment at which others could connect.
        rustix::fs::fchmod(&socket, mode)?;
    }
    rustix::net::bind(&socket, &address)?;
    let file = SocketFile { path: path.to_owned(), made: Made::of(&std::fs::symlink_metadata(path)?) };
    rustix::net::listen(&socket, BACKLOG)?;
    Ok((socket, file))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|file| Made::of(&file) == self.made) {
            // Whoever gave up root for a user may lack the right to the folder; whoever binds it next replaces the file.
            if let Err(error) = std::fs::remove_file(&self.path) {
                tracing::debug!(%error, "{} stays behind", self.path.display());
            }
        }
    }
}

/// Which file it was. A number is given to the next file as soon as its own is gone, so the time of birth belongs to it
/// where the file system knows one: the program that replaces us may have made its socket by the time we end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Made {
    device: u64,
    inode: u64,
    born: Option<SystemTime>,
}

impl Made {
    fn of(file: &Metadata) -> Self {
        Self { device: file.dev(), inode: file.ino(), born: file.created().ok() }
    }
}
