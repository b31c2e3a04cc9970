//! The file of a listening socket: whether somebody is behind it, and whether it still is ours.

use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::{fs, io};

use nix::errno::Errno;

use super::super::dialect::SocketKind;
use super::super::resolved::Resolved;

/// Makes way at `path`, unless somebody listens there.
pub(super) fn remove_stale(path: &Path, kind: SocketKind) -> io::Result<()> {
    let standing = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        standing => standing?,
    };
    if !standing.file_type().is_socket() {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    match Resolved::in_directory(path)?.connect(kind.socket()?.as_fd()) {
        Err(Errno::ECONNREFUSED) => fs::remove_file(path),
        Err(Errno::ENOENT) => Ok(()),
        // EAGAIN is a full backlog, EPROTOTYPE another type of socket, EPERM one that talks to somebody else: all alive.
        Ok(()) | Err(Errno::EAGAIN | Errno::EPERM | Errno::EPROTOTYPE) => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) => Err(error.into()),
    }
}

/// A socket's file, recognised by its inode.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl SocketFile {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let standing = fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_path_buf(), inode: (standing.dev(), standing.ino()) })
    }

    /// Removes it, unless a successor has already put its own in its place. Nobody can be told if that fails, and the
    /// next to bind removes what is left.
    pub(super) fn remove(&self) {
        if Self::of(&self.path).is_ok_and(|standing| standing.inode == self.inode) {
            drop(fs::remove_file(&self.path));
        }
    }
}
