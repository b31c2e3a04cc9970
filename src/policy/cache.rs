//! Compiled code, kept in a folder of our own so that a start need not compile again.
//!
//! What is in there is run as it stands: whoever can write to it can do what the gateway can. So the folder is never
//! where policies are, it is made by us, for us alone, and nobody else may be able to put another in its place; where
//! that cannot be had, everything is compiled each time. Its entries are keyed by content, compiler and settings.

use std::env;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use wasmtime::{Cache, CacheConfig};

/// Beyond this, what was not used for longest is removed, within the hour.
const BYTES_MAX: u64 = 512 << 20;
/// The same for their number.
const FILE_COUNT_MAX: u64 = 1000;

/// Why there is none.
#[derive(Debug, thiserror::Error)]
enum CacheError {
    #[error("{0}: {1}")]
    Io(PathBuf, #[source] io::Error),
    #[error("{0} is not a folder (symbolic links are not followed)")]
    NotAFolder(PathBuf),
    #[error("{0} belongs to user {1}")]
    Owner(PathBuf, u32),
    #[error("{0} can be changed by others (mode {1:o})")]
    Open(PathBuf, u32),
    #[error("{0:#}")]
    Unusable(wasmtime::Error),
}

/// The cache of this process; `None` where no folder is to be had, which the log explains.
pub(super) fn open() -> Option<Cache> {
    let folder = folder(|name| env::var_os(name).map(PathBuf::from), nix::unistd::geteuid().is_root())?;
    let opened = prepare(&folder).and_then(|()| {
        let mut config = CacheConfig::new();
        config.with_directory(&folder).with_files_total_size_soft_limit(BYTES_MAX);
        config.with_file_count_soft_limit(FILE_COUNT_MAX);
        Cache::new(config).map_err(CacheError::Unusable)
    });
    match opened {
        Ok(cache) => Some(cache),
        Err(error) => {
            tracing::warn!("compiled policies are not kept: {error}");
            None
        }
    }
}

/// systemd's own folders of the unit, else those of the system or of the user.
fn folder(variable: impl Fn(&str) -> Option<PathBuf>, is_root: bool) -> Option<PathBuf> {
    let absolute = |path: PathBuf| path.is_absolute().then_some(path);
    let first = |name: &str| {
        let paths = variable(name)?;
        env::split_paths(&paths).next().and_then(absolute)
    };
    let base = first("CACHE_DIRECTORY").or_else(|| first("STATE_DIRECTORY")).or_else(|| {
        if is_root {
            return Some("/var/cache/baton".into());
        }
        let caches = variable("XDG_CACHE_HOME").and_then(absolute);
        let caches = caches.or_else(|| Some(variable("HOME").and_then(absolute)?.join(".cache")));
        Some(caches?.join("baton"))
    })?;
    Some(base.join("compiled"))
}

/// Makes the folder where it is missing, for us alone, and looks at who else could change it.
fn prepare(folder: &Path) -> Result<(), CacheError> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|e| CacheError::Io(folder.into(), e))?;
    let own = nix::unistd::geteuid().as_raw();
    for place in folder.ancestors() {
        let is_folder = place == folder;
        let found = if is_folder { fs::symlink_metadata(place) } else { fs::metadata(place) };
        let found = found.map_err(|e| CacheError::Io(place.into(), e))?;
        if !found.is_dir() {
            return Err(CacheError::NotAFolder(place.into()));
        }
        let (owner, mode) = (found.uid(), found.mode() & 0o7777);
        if owner != own && (is_folder || owner != 0) {
            return Err(CacheError::Owner(place.into(), owner));
        }
        // Above it, others may have folders of their own beside ours, where the sticky bit keeps them from ours.
        let is_sticky = mode & 0o1000 != 0;
        if (is_folder && mode & 0o077 != 0) || (!is_folder && mode & 0o022 != 0 && !is_sticky) {
            return Err(CacheError::Open(place.into(), mode));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn chosen(variables: &[(&str, &str)], is_root: bool) -> Option<PathBuf> {
        let variable = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into());
        folder(variable, is_root)
    }

    #[test]
    fn the_folder_is_systemds_or_the_systems_or_the_users() {
        let check = |variables: &[(&str, &str)], is_root, expected: Option<&str>| {
            assert_eq!(chosen(variables, is_root).as_deref(), expected.map(Path::new), "{variables:?}");
        };
        check(&[("CACHE_DIRECTORY", "/c/a:/c/b"), ("STATE_DIRECTORY", "/s")], true, Some("/c/a/compiled"));
        check(&[("STATE_DIRECTORY", "/s"), ("HOME", "/h")], false, Some("/s/compiled"));
        check(&[("HOME", "/root")], true, Some("/var/cache/baton/compiled"));
        check(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], false, Some("/x/baton/compiled"));
        check(&[("HOME", "/h"), ("XDG_CACHE_HOME", "x")], false, Some("/h/.cache/baton/compiled"));
        check(&[], false, None);
    }

    #[test]
    fn only_a_folder_that_is_ours_alone_is_used() {
        let base = tempfile::tempdir().expect("a folder");
        let folder = base.path().join("a/b/compiled");
        prepare(&folder).expect("it is made");
        assert_eq!(fs::metadata(&folder).expect("made").mode() & 0o777, 0o700);
        prepare(&folder).expect("and used again");
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
        let refused = || prepare(&folder).expect_err("it is not private").to_string();
        for mode in [0o701, 0o740, 0o777] {
            set(&folder, mode);
            assert!(refused().ends_with(&format!("can be changed by others (mode {mode:o})")), "{}", refused());
        }
        set(&folder, 0o700);
        let above = folder.parent().expect("b").to_owned();
        set(&above, 0o770);
        assert!(refused().contains("b can be changed by others"), "{}", refused());
        set(&above, 0o1777);
        prepare(&folder).expect("as in /tmp");
        fs::remove_dir(&folder).expect("empty");
        symlink(base.path(), &folder).expect("a link");
        assert!(refused().contains("is not a folder"), "{}", refused());
        fs::remove_file(&folder).expect("a link");
        fs::write(&folder, b"").expect("a file");
        assert!(refused().contains("compiled: "), "{}", refused());
    }
}
