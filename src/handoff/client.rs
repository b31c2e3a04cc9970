//! What is done to a client's socket by whoever owns it.

use std::io::{self, Read as _};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::linger;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, MsgFlags, setsockopt, sockopt};
use nix::unistd::{read, write};

/// Makes reads and writes of a socket wait, or not, for every holder of it.
pub(super) fn set_blocking(client: BorrowedFd<'_>, blocking: bool) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(client, FcntlArg::F_GETFL)?);
    let wanted = if blocking { flags - OFlag::O_NONBLOCK } else { flags | OFlag::O_NONBLOCK };
    if wanted != flags {
        fcntl(client, FcntlArg::F_SETFL(wanted))?;
    }
    Ok(())
}

/// Writes what there is room for, without waiting and without SIGPIPE. The pipe of a CGI program may wait.
pub(super) fn send(client: BorrowedFd<'_>, bytes: &[u8]) -> nix::Result<usize> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    match uninterrupted(|| socket::send(client.as_raw_fd(), bytes, flags)) {
        Err(Errno::ENOTSOCK) => uninterrupted(|| write(client, bytes)),
        result => result,
    }
}

/// Reads what is there, without waiting; 0 at the end. The pipe of a CGI program may wait.
pub(super) fn receive(client: BorrowedFd<'_>, buffer: &mut [u8]) -> nix::Result<usize> {
    match uninterrupted(|| socket::recv(client.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)) {
        Err(Errno::ENOTSOCK) => uninterrupted(|| read(client, buffer)),
        result => result,
    }
}

/// Whether somebody is there who could still read: a client that has only ended its sending side looks as if it had left;
/// one that has sent what nobody has read yet has not.
pub(super) fn has_left(client: BorrowedFd<'_>) -> bool {
    // Asked for nothing, it tells of an error, and of an end in both directions.
    let mut seen = [PollFd::new(client, PollFlags::empty())];
    if matches!(poll(&mut seen, PollTimeout::ZERO), Ok(1..)) {
        return true;
    }
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK;
    match uninterrupted(|| socket::recv(client.as_raw_fd(), &mut [0], flags)) {
        Ok(count) => count == 0,
        Err(error) => error != Errno::EAGAIN,
    }
}

/// Closes a client so that nothing that it got looks whole. One over a Unix socket sees the end all the same.
pub(super) fn reset(client: OwnedFd) {
    // Where it fails the client is gone.
    let _ = setsockopt(&client, sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 });
    drop(client);
}

fn uninterrupted<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// Ends a client so that the last bytes arrive, and closes it.
///
/// A close with bytes unread, say the rest of a request's body, makes the kernel send a reset, and a reset can destroy
/// the answer on its way (RFC 9112 §9.6). So this ends the writing side first, then reads and discards until the client
/// has closed too, for at most `patience`. Blocks for as long.
pub fn close_gracefully(client: OwnedFd, patience: Duration) {
    let mut client = TcpStream::from(client);
    let deadline = Instant::now() + patience;
    // Each failure means that the client is gone or is closed hard: dropping it is all that is left.
    if client.shutdown(Shutdown::Write).is_err() || client.set_nonblocking(false).is_err() {
        return;
    }
    let mut discarded = [0; 16 << 10];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || client.set_read_timeout(Some(left)).is_err() {
            return;
        }
        match client.read(&mut discarded) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn an_answer_survives_what_was_left_unread() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut client, _) = listener.accept().unwrap();
        client.set_nonblocking(true).unwrap();
        far.write_all(&[b'x'; 100_000]).unwrap();
        let ended = std::thread::spawn(move || {
            client.write_all(b"answer").unwrap();
            close_gracefully(client.into(), Duration::from_secs(5));
        });
        let mut answer = String::new();
        far.read_to_string(&mut answer).unwrap();
        drop(far);
        ended.join().unwrap();
        assert_eq!(answer, "answer");
    }

    #[test]
    fn a_client_that_stays_is_closed_when_patience_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (client, _) = listener.accept().unwrap();
        let begun = Instant::now();
        close_gracefully(client.into(), Duration::from_millis(20));
        assert!(begun.elapsed() < Duration::from_secs(2));
    }
}
