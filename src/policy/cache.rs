//! Compiled code, kept in a folder of our own so that a start need not compile again.
//!
//! What is in there is run as it stands: whoever can write to it can do what the gateway can. So the folder is never
//! where policies are, it is made by us, for us alone, and nobody else may be able to put another in its place; where
//! that cannot be had, everything is compiled each time. Its entries are keyed by content, compiler and settings.

use std::env;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, lchown};
use std::path::{Path, PathBuf};

use nix::unistd::AccessFlags;
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
    // Unit tests leave nothing behind.
    if cfg!(test) {
        return None;
    }
    let own = nix::unistd::geteuid().as_raw();
    let is_given = |home: &Path| fs::symlink_metadata(home).is_ok_and(|found| found.is_dir() && found.uid() == own);
    let folder = folder(variable, own, is_given)?;
    let opened = prepare(&folder).and_then(|folder| {
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

/// Makes a folder for the compiled code of that user, who could not: beside root's own. Called as root, before it is given
/// up. Where that fails, nothing is kept, which the log explains.
pub fn give(user: u32) {
    let (base, is_systemds) = base(variable);
    let home = base.join(user.to_string());
    let made = DirBuilder::new().recursive(true).mode(0o755).create(&base).and_then(|()| {
        let mode = fs::symlink_metadata(&base)?.mode() & 0o7777;
        if !is_systemds && mode & 0o011 != 0o011 {
            // Root made it for itself: others may pass through now, not look.
            fs::set_permissions(&base, fs::Permissions::from_mode(mode | 0o011))?;
        }
        match DirBuilder::new().mode(0o700).create(&home) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        // What somebody else has put there is not given away; nor is what a link leads to.
        if fs::symlink_metadata(&home)?.uid() == 0 { lchown(&home, Some(user), None) } else { Ok(()) }
    });
    if let Err(error) = made {
        tracing::warn!("no folder for compiled policies: {}: {error}", home.display());
    }
}

fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).map(PathBuf::from)
}

/// Where root keeps it, and whether systemd said so.
fn base(variable: impl Fn(&str) -> Option<PathBuf>) -> (PathBuf, bool) {
    let first = |name: &str| {
        let paths = variable(name)?;
        env::split_paths(&paths).next().filter(|path| path.is_absolute())
    };
    match first("CACHE_DIRECTORY").or_else(|| first("STATE_DIRECTORY")) {
        Some(base) => (base, true),
        None => ("/var/cache/baton".into(), false),
    }
}

/// systemd's own folders of the unit, else those of the system or of the user. In a folder of root's a user has one of its
/// own, [if it was given](give).
fn folder(variable: impl Fn(&str) -> Option<PathBuf>, own: u32, is_given: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let (base, is_systemds) = base(&variable);
    let given = base.join(own.to_string());
    let base = if own == 0 {
        base
    } else if is_given(&given) {
        given
    } else if is_systemds {
        base
    } else {
        let absolute = |name: &str| variable(name).filter(|path| path.is_absolute());
        absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?.join("baton")
    };
    Some(base.join("compiled"))
}

/// Makes the folder where it is missing, for us alone, and looks at who else could change it. Returns its real path,
/// because a link on the way to it could be turned elsewhere later.
fn prepare(folder: &Path) -> Result<PathBuf, CacheError> {
    let fault = |path: &Path, error| CacheError::Io(path.into(), error);
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| fault(folder, error))?;
    if fs::symlink_metadata(folder).map_err(|error| fault(folder, error))?.is_symlink() {
        return Err(CacheError::NotAFolder(folder.into()));
    }
    let real = fs::canonicalize(folder).map_err(|error| fault(folder, error))?;
    let own = nix::unistd::geteuid().as_raw();
    for place in real.ancestors() {
        let is_folder = place == real;
        let found = fs::symlink_metadata(place).map_err(|error| fault(place, error))?;
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
    let access = AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK;
    nix::unistd::eaccess(&real, access).map_err(|error| fault(&real, error.into()))?;
    Ok(real)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn chosen(variables: &[(&str, &str)], own: u32, given: &str) -> Option<PathBuf> {
        let variable = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into());
        folder(variable, own, |home| home == Path::new(given))
    }

    #[test]
    fn the_folder_is_systemds_or_the_systems_or_the_users() {
        let check = |variables: &[(&str, &str)], own, given: &str, expected: Option<&str>| {
            assert_eq!(chosen(variables, own, given).as_deref(), expected.map(Path::new), "{variables:?}");
        };
        check(&[("CACHE_DIRECTORY", "/c/a:/c/b"), ("STATE_DIRECTORY", "/s")], 0, "", Some("/c/a/compiled"));
        check(&[("STATE_DIRECTORY", "/s"), ("HOME", "/h")], 7, "", Some("/s/compiled"));
        check(&[("STATE_DIRECTORY", "/s"), ("HOME", "/h")], 7, "/s/7", Some("/s/7/compiled"));
        check(&[("HOME", "/root")], 0, "/var/cache/baton/0", Some("/var/cache/baton/compiled"));
        check(&[("HOME", "/root")], 7, "/var/cache/baton/7", Some("/var/cache/baton/7/compiled"));
        check(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], 7, "", Some("/x/baton/compiled"));
        check(&[("HOME", "/h"), ("XDG_CACHE_HOME", "x")], 7, "/s/7", Some("/h/.cache/baton/compiled"));
        check(&[], 7, "", None);
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
