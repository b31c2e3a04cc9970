//! A body whose length has to be known before its first byte is sent: kept in memory, and in a file once it is large.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create, open};

/// What is kept in memory (memfd_create(2)); more goes to a file without a name, in the system's folder for such.
const MEMORY_BYTES_MAX: u64 = 1 << 20;

/// What has been kept so far.
#[derive(Debug)]
pub struct Spool {
    file: File,
    bytes: u64,
    is_in_memory: bool,
}

impl Spool {
    /// Nothing yet.
    ///
    /// # Errors
    /// There is no descriptor to be had.
    pub fn new() -> io::Result<Self> {
        let file = memfd_create(c"baton-body", MemfdFlags::CLOEXEC)?;
        Ok(Self { file: file.into(), bytes: 0, is_in_memory: true })
    }

    /// How much is kept.
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Keeps a piece behind the others. It goes to the page cache; the disk is written later, by the kernel.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn push(&mut self, piece: &[u8]) -> io::Result<()> {
        if self.is_in_memory && self.bytes + piece.len() as u64 > MEMORY_BYTES_MAX {
            let mut file = File::from(unnamed()?);
            copy(&self.file, self.bytes, &mut file)?;
            (self.file, self.is_in_memory) = (file, false);
        }
        self.file.write_all(piece)?;
        self.bytes += piece.len() as u64;
        Ok(())
    }

    /// All of it, to be read from its beginning with [`read`].
    pub fn into_file(self) -> (File, u64) {
        (self.file, self.bytes)
    }
}

/// Reads a piece at `at`, of at most `bytes_max` bytes; empty at the end.
///
/// # Errors
/// The file's.
pub fn read(file: &File, at: u64, bytes_max: usize) -> io::Result<Vec<u8>> {
    use std::os::unix::fs::FileExt as _;
    let mut piece = vec![0; bytes_max];
    let count = file.read_at(&mut piece, at)?;
    piece.truncate(count);
    Ok(piece)
}

fn unnamed() -> io::Result<OwnedFd> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(open(std::env::temp_dir(), flags, Mode::RUSR | Mode::WUSR)?)
}

fn copy(from: &File, bytes: u64, to: &mut File) -> io::Result<()> {
    let mut at = 0;
    while at < bytes {
        let piece = read(from, at, 64 << 10)?;
        if piece.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.write_all(&piece)?;
        at += piece.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_what_was_given_wherever_it_is() {
        for count in [0, 1, 16, 17, 40] {
            let mut spool = Spool::new().expect("a descriptor");
            let piece: Vec<u8> = (0..=255).cycle().take(64 << 10).collect();
            for _ in 0..count {
                spool.push(&piece).expect("room");
            }
            assert_eq!(spool.is_in_memory, count <= 16);
            let (file, bytes) = spool.into_file();
            assert_eq!(bytes, count * (64 << 10));
            for at in 0..count {
                assert_eq!(read(&file, at * (64 << 10), 64 << 10).expect("it is there"), piece);
            }
            assert!(read(&file, bytes, 1).expect("its end").is_empty());
        }
    }
}
