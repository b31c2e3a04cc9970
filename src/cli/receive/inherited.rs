//! What `-` is: a socket that was there at the start, on standard input or at 3. It may be on standard output and error too (inetd).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::socket::{getsockopt, sockopt};
use nix::sys::stat::fstat;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

/// A client that is on standard error too must not read the log.
pub(super) fn keep_log_from_client() -> io::Result<()> {
    if is_socket(io::stdin().as_fd()) && is_same(io::stdin().as_fd(), io::stderr().as_fd())? {
        dup2_stderr(null()?)?;
    }
    Ok(())
}

/// Closes what was inherited, now that it was copied: a client ends when its last copy does.
pub(super) fn let_go() -> io::Result<()> {
    if !is_socket(io::stdin().as_fd()) {
        return Ok(());
    }
    if is_same(io::stdin().as_fd(), io::stdout().as_fd())? {
        dup2_stdout(null()?)?;
    }
    dup2_stdin(null()?)?;
    Ok(())
}

fn is_socket(descriptor: BorrowedFd<'_>) -> bool {
    getsockopt(&descriptor, sockopt::SockType).is_ok()
}

fn is_same(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> io::Result<bool> {
    let (one, other) = (fstat(one)?, fstat(other)?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

fn null() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/null")
}
