//! Chunks (RFC 9112 §7.1): bytes in, the body's bytes out. Pure. Extensions and trailers are skipped, within limits.

/// A size line with its extension, or all lines of a trailer.
const LINES_BYTES_MAX: usize = 16 << 10;

/// Where the decoder is.
#[derive(Debug)]
pub(super) struct Chunked {
    state: State,
    /// Of lines, so many bytes have come.
    line_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Digits of a size, and how many.
    Size {
        value: u64,
        digits: usize,
    },
    /// Behind the digits.
    Extension {
        value: u64,
    },
    /// A size line's last byte is still to come.
    SizeEnd {
        value: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    /// In a trailer's line, of which some bytes have come, or none.
    Trailer {
        is_empty: bool,
    },
    /// Behind its CR.
    TrailerLf {
        is_last: bool,
    },
    End,
}

/// These are no chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChunkedError;

impl Default for Chunked {
    fn default() -> Self {
        Self { state: State::Size { value: 0, digits: 0 }, line_bytes: 0 }
    }
}

impl Chunked {
    pub(super) fn is_at_end(&self) -> bool {
        self.state == State::End
    }

    /// Reads from `from` and writes the body's bytes to `to`; says how many were used and how many written. It uses nothing
    /// behind the body, and all of `from` unless `to` is full.
    pub(super) fn decode(&mut self, from: &[u8], to: &mut [u8]) -> Result<(usize, usize), ChunkedError> {
        let (mut used, mut written) = (0, 0);
        while used < from.len() && self.state != State::End {
            if let State::Data { left } = self.state {
                let room = to.len() - written;
                if room == 0 {
                    break;
                }
                let count = usize::try_from(left).unwrap_or(usize::MAX).min(from.len() - used).min(room);
                to[written..written + count].copy_from_slice(&from[used..used + count]);
                used += count;
                written += count;
                let left = left - count as u64;
                self.state = if left == 0 { State::DataCr } else { State::Data { left } };
                continue;
            }
            self.state = self.step(from[used])?;
            used += 1;
        }
        Ok((used, written))
    }

    fn step(&mut self, byte: u8) -> Result<State, ChunkedError> {
        self.line_bytes += 1;
        if self.line_bytes > LINES_BYTES_MAX {
            return Err(ChunkedError);
        }
        let next = match (self.state, byte) {
            (State::Size { value, digits }, _) if byte.is_ascii_hexdigit() && digits < 16 => {
                let digit = char::from(byte).to_digit(16).map_or(0, u64::from);
                State::Size { value: value << 4 | digit, digits: digits + 1 }
            }
            (State::Size { digits: 0, .. }, _) => return Err(ChunkedError),
            (State::Size { value, .. } | State::Extension { value }, b'\r') => State::SizeEnd { value },
            (State::Size { value, .. }, b';' | b' ' | b'\t') => State::Extension { value },
            (State::Extension { value }, b'\t' | b' '..=b'~' | 0x80..) => State::Extension { value },
            (State::SizeEnd { value: 0 }, b'\n') => {
                self.line_bytes = 0;
                State::Trailer { is_empty: true }
            }
            (State::SizeEnd { value }, b'\n') => {
                self.line_bytes = 0;
                State::Data { left: value }
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size { value: 0, digits: 0 },
            (State::Trailer { is_empty }, b'\r') => State::TrailerLf { is_last: is_empty },
            (State::Trailer { .. }, b'\t' | b' '..=b'~' | 0x80..) => State::Trailer { is_empty: false },
            (State::TrailerLf { is_last: true }, b'\n') => State::End,
            (State::TrailerLf { is_last: false }, b'\n') => State::Trailer { is_empty: true },
            _ => return Err(ChunkedError),
        };
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Everything, given in pieces of some size: the body, and how much was used.
    fn decode(bytes: &[u8], piece: usize, room: usize) -> Result<Option<(Vec<u8>, usize)>, ChunkedError> {
        let (mut chunked, mut body, mut at) = (Chunked::default(), Vec::new(), 0);
        let mut end = 0;
        loop {
            let mut to = vec![0; room];
            let (used, written) = chunked.decode(&bytes[at..end], &mut to)?;
            at += used;
            body.extend_from_slice(&to[..written]);
            if chunked.is_at_end() {
                return Ok(Some((body, at)));
            }
            if at == end {
                if end == bytes.len() {
                    return Ok(None);
                }
                end = (end + piece).min(bytes.len());
            }
        }
    }

    #[test]
    fn chunks_are_decoded_in_whatever_pieces_they_come_and_nothing_behind_them_is_used() {
        let bytes = b"5;name=\"v\"\r\nhello\r\n00A \r\n, world!!!\r\n0\r\nTrailer: x\r\n\r\nGET / HTTP/1.1";
        for piece in 1..bytes.len() {
            for room in [1, 3, 100] {
                let (body, used) = decode(bytes, piece, room).unwrap().unwrap();
                assert_eq!((&body[..], &bytes[used..]), (&b"hello, world!!!"[..], &b"GET / HTTP/1.1"[..]));
            }
        }
    }

    #[test]
    fn what_is_no_chunk_is_refused() {
        for bytes in [
            &b"\r\n"[..],
            b"g\r\n",
            b"-1\r\n",
            b"0x5\r\n",
            b"5\nhello",
            b"5\r\nhello!",
            b"5\r\nhello\n",
            b"11111111111111111\r\n",
            b"0\r\nA: \0\r\n\r\n",
            b"0\r\n\n",
        ] {
            assert_eq!(decode(bytes, 1, 8), Err(ChunkedError), "{bytes:?}");
        }
        let long = [b"5;".as_slice(), &[b'x'; LINES_BYTES_MAX]].concat();
        assert_eq!(decode(&long, 1000, 8), Err(ChunkedError));
        assert_eq!(decode(&long[..LINES_BYTES_MAX], 1000, 8), Ok(None));
    }

    proptest! {
        #[test]
        fn what_was_written_in_chunks_is_read(parts: Vec<Vec<u8>>, piece in 1_usize..50, room in 1_usize..50) {
            let mut bytes = Vec::new();
            for part in parts.iter().filter(|part| !part.is_empty()) {
                bytes.extend(format!("{:x}\r\n", part.len()).bytes().chain(part.iter().copied()).chain(*b"\r\n"));
            }
            bytes.extend(b"0\r\n\r\n");
            let used = bytes.len();
            prop_assert_eq!(decode(&bytes, piece, room), Ok(Some((parts.concat(), used))));
        }
    }
}
