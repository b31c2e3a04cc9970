//! What the process may: how many descriptors it has, and whose it is.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Allows as many descriptors as the system lets us have, and returns how many.
pub(crate) fn raise_descriptor_limit() -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    let limit = if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft };
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// Gives up root for good: groups first, because a user cannot (setuid(2)). The threads that exist change with us.
///
/// # Errors
/// There is no such user (ENOENT), or we may not become it.
pub(crate) fn become_user(name: &str) -> nix::Result<()> {
    use nix::unistd::{User, getuid, initgroups, setgid, setuid};
    let user = User::from_name(name)?.ok_or(nix::Error::ENOENT)?;
    if getuid() == user.uid {
        return Ok(());
    }
    let c_name = std::ffi::CString::new(name).map_err(|_| nix::Error::EINVAL)?;
    crate::policy::give_cache(user.uid.as_raw());
    initgroups(&c_name, user.gid)?;
    setgid(user.gid)?;
    setuid(user.uid)
}
