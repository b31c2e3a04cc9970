//! Where the data of handoffs lies while their programs run.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::{env, io};

use nix::unistd::mkdtemp;

use super::log;

/// A folder that only this user can look into, removed with everything in it.
#[derive(Debug)]
pub(super) struct PrivateFolder {
    path: PathBuf,
    count: AtomicU64,
}

impl PrivateFolder {
    pub(super) fn new() -> nix::Result<Self> {
        let path = mkdtemp(&env::temp_dir().join("baton-receive.XXXXXX"))?;
        Ok(Self { path, count: AtomicU64::new(0) })
    }

    /// A file that holds this.
    pub(super) fn file(&self, data: &[u8]) -> io::Result<DataFile> {
        let file = DataFile(self.path.join(self.count.fetch_add(1, Ordering::Relaxed).to_string()));
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file.0)?.write_all(data)?;
        Ok(file)
    }
}

impl Drop for PrivateFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            log::say(format!("left {} behind: {error}", self.path.display()));
        }
    }
}

/// One handoff's data, removed when dropped.
#[derive(Debug)]
pub(super) struct DataFile(PathBuf);

impl DataFile {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for DataFile {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}
