//! What a program says on standard error, line by line with its handoff's name, and not without measure.

use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ChildStderr;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::log;

/// Of one program; more are counted.
const LINES_PER_SECOND_MAX: u32 = 100;
/// A longer line is several.
const LINE_BYTES_MAX: usize = 4096;
/// What is read in one go, so that a program that says much does not keep its watcher from everything else. A pipe holds as much.
const READ_BYTES_MAX: usize = 64 << 10;

/// The other end of a program's standard error.
#[derive(Debug)]
pub(super) struct Stderr {
    pipe: Option<ChildStderr>,
    name: String,
    line: Vec<u8>,
    second: Instant,
    count: u32,
}

impl Stderr {
    pub(super) fn new(pipe: Option<ChildStderr>, name: &str) -> Self {
        let pipe = pipe.filter(|pipe| set_nonblocking(pipe.as_fd()).is_ok());
        Self { pipe, name: name.to_owned(), line: Vec::new(), second: Instant::now(), count: 0 }
    }

    /// Readable when something was said; `None` when nothing will be any more.
    pub(super) fn pipe(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// Logs what was said until now.
    pub(super) fn read(&mut self) {
        let mut buffer = [0; LINE_BYTES_MAX];
        for _ in 0..READ_BYTES_MAX / LINE_BYTES_MAX {
            let Some(pipe) = &mut self.pipe else { return };
            match pipe.read(&mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(count) => buffer[..count].split_inclusive(|byte| *byte == b'\n').for_each(|piece| self.add(piece)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.pipe = None,
            }
        }
    }

    fn add(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() {
            let room = LINE_BYTES_MAX - self.line.len();
            let (now, later) = piece.split_at(room.min(piece.len()));
            self.line.extend_from_slice(now);
            piece = later;
            if self.line.ends_with(b"\n") || self.line.len() == LINE_BYTES_MAX {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        if self.second.elapsed() >= Duration::from_secs(1) {
            self.say_left_out();
            (self.second, self.count) = (Instant::now(), 0);
        }
        self.count = self.count.saturating_add(1);
        if self.count <= LINES_PER_SECOND_MAX {
            log::say(format!("[{}] {}", self.name, text(&self.line)));
        }
        self.line.clear();
    }

    fn say_left_out(&mut self) {
        if let Some(left_out @ 1..) = self.count.checked_sub(LINES_PER_SECOND_MAX) {
            log::say(format!(
                "[{}] {left_out} lines left out: more than {LINES_PER_SECOND_MAX} in a second",
                self.name
            ));
        }
    }
}

impl Drop for Stderr {
    /// The last words, with or without the end of a line. What a process that was left behind says later is not waited for.
    fn drop(&mut self) {
        self.read();
        if !self.line.is_empty() {
            self.end_line();
        }
        self.say_left_out();
    }
}

/// A line as it can stand in a log: control characters escaped, what is not UTF-8 replaced.
fn text(line: &[u8]) -> String {
    let line = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(line));
    let mut text = String::with_capacity(line.len());
    for character in line.chars() {
        if character.is_control() && character != '\t' {
            text.extend(character.escape_default());
        } else {
            text.push(character);
        }
    }
    text
}

/// A pipe's two ends are two open files: the other one stays as it is.
pub(super) fn set_nonblocking(pipe: BorrowedFd<'_>) -> nix::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(pipe, FcntlArg::F_GETFL)?);
    fcntl(pipe, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_cannot_move_the_cursor_or_pretend_to_be_two() {
        assert_eq!(text(b"a\tb\x1b[2J\r\xff\n"), "a\tb\\u{1b}[2J\\r\u{fffd}");
    }
}
