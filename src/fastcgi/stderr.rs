//! What a program complains of, line by line, for the log.

use super::client::Complain;

/// Longer lines are cut; a stack trace of PHP has a line for each call.
const LINE_BYTES_MAX: usize = 4096;
/// Lines of one request.
const LINES_MAX: usize = 100;

/// Lines that come in pieces.
pub(super) struct Complaints {
    to: Complain,
    line: Vec<u8>,
    /// What came behind its bound is not kept.
    is_cut: bool,
    count: usize,
}

impl std::fmt::Debug for Complaints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Complaints").field("count", &self.count).finish_non_exhaustive()
    }
}

impl Complaints {
    pub(super) fn new(to: Complain) -> Self {
        Self { to, line: Vec::new(), is_cut: false, count: 0 }
    }

    pub(super) fn push(&mut self, content: &[u8]) {
        if self.count > LINES_MAX {
            return;
        }
        for piece in content.split_inclusive(|&b| b == b'\n') {
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            let room = LINE_BYTES_MAX - self.line.len();
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            self.is_cut |= text.len() > room;
            if text.len() < piece.len() {
                self.end_line();
            }
        }
    }

    /// Nothing follows.
    pub(super) fn end(&mut self) {
        self.end_line();
    }

    /// Says something in the program's stead.
    pub(super) fn say(&mut self, text: &str) {
        self.end_line();
        self.tell(text);
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let is_cut = std::mem::take(&mut self.is_cut);
        let text = String::from_utf8_lossy(line.trim_ascii_end());
        if !text.is_empty() {
            self.tell(&if is_cut { format!("{text} […]").into() } else { text });
        }
    }

    fn tell(&mut self, text: &str) {
        self.count += 1;
        match self.count {
            ..=LINES_MAX => (self.to)(text),
            count if count == LINES_MAX + 1 => (self.to)("[it says more, which is not shown]"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    fn said(pieces: &[&[u8]]) -> Vec<String> {
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let sink = Arc::clone(&lines);
        let mut complaints =
            Complaints::new(Box::new(move |line: &str| sink.lock().expect("no panic").push(line.to_owned())));
        for piece in pieces {
            complaints.push(piece);
        }
        complaints.end();
        lines.lock().expect("no panic").clone()
    }

    #[test]
    fn lines_are_whole_however_they_come() {
        assert_eq!(said(&[b"one\ntw", b"o\r\n\n", b"three"]), ["one", "two", "three"]);
        assert_eq!(said(&[b"\xff\n"]), ["\u{fffd}"]);
    }

    #[test]
    fn lines_are_bounded_in_length_and_number() {
        let longest = vec![b'x'; LINE_BYTES_MAX];
        assert_eq!(said(&[&longest, b"\n"]), [String::from_utf8_lossy(&longest)]);
        assert_eq!(said(&[&longest, b"y\nz\n"]), [format!("{} […]", String::from_utf8_lossy(&longest)), "z".into()]);
        assert_eq!(said(&[&b"x\n".repeat(LINES_MAX)]).len(), LINES_MAX);
        let more = said(&[&b"x\n".repeat(LINES_MAX + 1), &b"x\n".repeat(LINES_MAX)]);
        assert_eq!(more.len(), LINES_MAX + 1);
        assert_eq!(more.last().map(String::as_str), Some("[it says more, which is not shown]"));
    }
}
