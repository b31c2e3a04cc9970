//! Where a daemon's socket is, and how to get to it: directly, past the 107 bytes that a socket address holds (unix(7)),
//! or below directories that the configuration allows, for paths that an application or a policy names at run time.
//!
//! Checking a path and then connecting to it by name is a race. A path named at run time is therefore opened first, by
//! `openat2` with RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS and RESOLVE_NO_MAGICLINKS, as a descriptor that is good for nothing
//! but naming the socket (O_PATH); then `/proc/self/fd/N` is connected to, which is that very socket whatever stands at
//! the path by now. The same way lifts the limit on a path's length.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::socket::UnixAddr;
use nix::sys::stat::Mode;

use super::resolved::Resolved;

/// Why there is no way to a path.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// No path: empty, or with a NUL byte in it.
    #[error("not a path: empty, or with a NUL byte")]
    Malformed,
    /// It could not be opened, for example because nothing is there.
    #[error("the path does not open")]
    Open(#[source] io::Error),
    /// It is relative, climbs with `..`, leaves its directory, or is in none of the allowed ones.
    #[error("outside the allowed prefixes")]
    Outside,
    /// One of its parts below the allowed directory, or the last, is a symbolic link.
    #[error("a symbolic link below the allowed prefix")]
    Symlink,
    /// A part or the whole is longer than file systems allow.
    #[error("the path is too long")]
    TooLong,
}

impl AddressError {
    /// Whether whoever named the path may not go there (403), rather than that nobody is there (503).
    pub fn is_forbidden(&self) -> bool {
        !matches!(self, Self::Open(_))
    }
}

/// A path to a Unix socket, and the way to it.
#[derive(Clone, Debug)]
pub struct Address {
    path: PathBuf,
    way: Way,
}

#[derive(Clone, Debug)]
enum Way {
    /// Below this directory, opened anew for each connection, by the rest of the path.
    Beneath { directory: PathBuf, rest: PathBuf },
    /// By an address that was built once.
    Direct(UnixAddr),
    /// Too long for an address.
    Long,
}

impl Address {
    /// The address of a path that the operator wrote. Symbolic links are followed; nothing is opened yet.
    ///
    /// # Errors
    /// [`Malformed`](AddressError::Malformed).
    pub fn new(path: impl Into<PathBuf>) -> Result<Self, AddressError> {
        let path = path.into();
        check_bytes(&path)?;
        let way = match UnixAddr::new(&path) {
            Ok(address) => Way::Direct(address),
            Err(_) => Way::Long,
        };
        Ok(Self { path, way })
    }

    /// The address of a path that somebody named at run time, in one of the directories `prefixes` or below; the
    /// directories themselves may be reached through symbolic links, nothing below them. The path is taken byte by byte:
    /// no decoding, no abstract names. Nothing is opened yet, so a link is only found when the address is used.
    ///
    /// # Errors
    /// [`Malformed`](AddressError::Malformed) and [`Outside`](AddressError::Outside).
    pub fn beneath(path: &[u8], prefixes: &[PathBuf]) -> Result<Self, AddressError> {
        let path = Path::new(OsStr::from_bytes(path));
        check_bytes(path)?;
        if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
            return Err(AddressError::Outside);
        }
        let (directory, rest) = prefixes
            .iter()
            .filter_map(|prefix| Some((prefix, path.strip_prefix(prefix).ok()?)))
            .find(|(_, rest)| !rest.as_os_str().is_empty())
            .ok_or(AddressError::Outside)?;
        let way = Way::Beneath { directory: directory.clone(), rest: rest.to_path_buf() };
        Ok(Self { path: path.to_path_buf(), way })
    }

    /// The path, as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Finds the socket, for one connection.
    ///
    /// # Errors
    /// Any of [`AddressError`].
    pub(super) fn resolve(&self) -> Result<Resolved, AddressError> {
        match &self.way {
            Way::Direct(address) => Ok(Resolved::direct(*address)),
            Way::Beneath { .. } | Way::Long => self.pin(),
        }
    }

    /// Finds the socket and keeps hold of it: what this returns means the same socket whatever happens to the path.
    ///
    /// # Errors
    /// Any of [`AddressError`].
    pub(super) fn pin(&self) -> Result<Resolved, AddressError> {
        let named = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let socket = match &self.way {
            Way::Beneath { directory, rest } => {
                let directory = open(directory, named | OFlag::O_DIRECTORY, Mode::empty()).map_err(opening)?;
                let how = OpenHow::new().flags(named).resolve(
                    ResolveFlag::RESOLVE_BENEATH
                        | ResolveFlag::RESOLVE_NO_SYMLINKS
                        | ResolveFlag::RESOLVE_NO_MAGICLINKS,
                );
                openat2(directory, rest, how).map_err(opening)?
            }
            Way::Direct(_) | Way::Long => open(&self.path, named, Mode::empty()).map_err(opening)?,
        };
        Ok(Resolved::named(socket))
    }
}

fn check_bytes(path: &Path) -> Result<(), AddressError> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() || bytes.contains(&0) { Err(AddressError::Malformed) } else { Ok(()) }
}

fn opening(error: Errno) -> AddressError {
    match error {
        Errno::ELOOP => AddressError::Symlink,
        Errno::ENAMETOOLONG => AddressError::TooLong,
        Errno::EXDEV => AddressError::Outside,
        other => AddressError::Open(other.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::super::dialect::SocketKind;
    use super::*;

    /// What becomes of a path below the folder `allowed` of `root`.
    fn try_path(root: &Path, path: &[u8]) -> Result<nix::Result<()>, AddressError> {
        let resolved = Address::beneath(path, &[root.join("allowed")])?.resolve()?;
        Ok(resolved.connect(SocketKind::Stream.socket().unwrap().as_fd()))
    }

    #[test]
    fn only_sockets_below_an_allowed_directory_are_reached() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        std::fs::create_dir_all(root.join("allowed/sub")).unwrap();
        std::fs::create_dir(root.join("allowed-too")).unwrap();
        let _inside = UnixListener::bind(root.join("allowed/sub/s")).unwrap();
        let _outside = UnixListener::bind(root.join("allowed-too/s")).unwrap();
        symlink(root.join("allowed-too/s"), root.join("allowed/link")).unwrap();
        symlink("sub/s", root.join("allowed/link-inside")).unwrap();
        symlink(root.join("allowed-too"), root.join("allowed/folder")).unwrap();

        let at = |rest: &str| [root.as_os_str().as_bytes(), rest.as_bytes()].concat();
        assert!(matches!(try_path(root, &at("/allowed/sub/s")), Ok(Ok(()))));
        assert!(matches!(try_path(root, &at("/allowed//sub/./s")), Ok(Ok(()))));
        for (rest, error) in [
            ("/allowed-too/s", "Outside"),
            ("/allowed", "Outside"),
            ("/allowed/", "Outside"),
            ("/allowed/../allowed-too/s", "Outside"),
            ("/allowed/sub/../sub/s", "Outside"),
            ("/allowed/link", "Symlink"),
            ("/allowed/link-inside", "Symlink"),
            ("/allowed/folder/s", "Symlink"),
            ("/allowed/sub/s\0", "Malformed"),
            ("/allowed/%2e%2e/s", "Open"),
            ("/allowed/none", "Open"),
        ] {
            let got = try_path(root, &at(rest)).expect_err(rest);
            assert!(format!("{got:?}").starts_with(error), "{rest}: {got:?}");
            assert_eq!(got.is_forbidden(), error != "Open", "{rest}");
        }
        for (path, error) in
            [("", "Malformed"), ("@abstract", "Outside"), ("\0abstract", "Malformed"), ("s", "Outside")]
        {
            let got = try_path(root, path.as_bytes()).expect_err(path);
            assert!(format!("{got:?}").starts_with(error), "{path}: {got:?}");
        }
        for long in ["x".repeat(300), "x/".repeat(3000)] {
            assert!(matches!(try_path(root, &at(&format!("/allowed/{long}"))), Err(AddressError::TooLong)));
        }
    }

    #[test]
    fn a_path_swapped_after_it_was_resolved_leads_to_what_was_resolved() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("s");
        let first = UnixListener::bind(&path).unwrap();
        let address = Address::beneath(path.as_os_str().as_bytes(), &[root.path().to_path_buf()]).unwrap();
        let resolved = address.resolve().unwrap();

        std::fs::rename(&path, root.path().join("moved")).unwrap();
        let other = UnixListener::bind(root.path().join("other")).unwrap();
        other.set_nonblocking(true).unwrap();
        symlink(root.path().join("other"), &path).unwrap();

        resolved.connect(SocketKind::Stream.socket().unwrap().as_fd()).unwrap();
        first.accept().unwrap();
        assert_eq!(other.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(matches!(address.resolve(), Err(AddressError::Symlink)));
    }

    #[test]
    fn a_path_longer_than_a_socket_address_is_bound_and_reached() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("x".repeat(120));
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("s");
        let listener = SocketKind::Seqpacket.socket().unwrap();
        Resolved::in_directory(&path).unwrap().bind(listener.as_fd()).unwrap();
        let listener = UnixListener::from(listener);
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
        let connection = SocketKind::Seqpacket.socket().unwrap();
        Address::new(&path).unwrap().resolve().unwrap().connect(connection.as_fd()).unwrap();
        listener.accept().unwrap();
    }
}
