//! Descriptors beside bytes, and what the kernel counts on a socket: the only file of the crate with `unsafe` in it.
//!
//! System calls made here, each through an owned or borrowed descriptor and never blocking:
//!
//! | call | for |
//! |---|---|
//! | `sendmsg` with SCM_RIGHTS (unix(7)) | the client, on the first byte of its message |
//! | `recvmsg` with SCM_RIGHTS, MSG_CMSG_CLOEXEC | the same, on the daemon's side; with SCM_CREDENTIALS where they come |
//! | `ioctl(SIOCOUTQ)` (unix(7), tcp(7)) | how much of what was sent is still unread |
//! | `getsockopt(TCP_INFO)` (tcp(7)) | how many bytes anybody has ever written into a client |
//! | `setsockopt(TCP_DEFER_ACCEPT)` (tcp(7)) | clients are accepted when they have said something |
//! | `setsockopt(SO_ATTACH_FILTER)` (socket(7)) | nobody connects in the moment in which a listener closes |
//! | `close_range(CLOSE_RANGE_CLOEXEC)` | programs that are started get no descriptor by accident |
//! | `fcntl(F_DUPFD_CLOEXEC)` | a socket that a service manager passed on, by its number |
//! | `epoll_create1`, `epoll_ctl`, `epoll_wait` (epoll(7)) | a daemon's sockets, behind one descriptor that any runtime can wait for |
//!
//! Receiving does not go through nix's `recvmsg`: it reports a truncated control message as an error and leaves the
//! descriptors that did arrive open and without an owner.
#![expect(clippy::cast_possible_truncation, reason = "sizes of structures, as the C interfaces want them")]
#![expect(
    unsafe_code,
    reason = "received descriptor numbers must be adopted, and two kernel interfaces have no safe form"
)]

use std::io;
#[cfg(feature = "gateway")]
use std::io::IoSlice;
use std::mem::{MaybeUninit, offset_of, size_of};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::libc;
#[cfg(feature = "gateway")]
use nix::unistd::Pid;
#[cfg(feature = "gateway")]
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
#[cfg(feature = "gateway")]
use tokio::io::{Interest, unix::AsyncFd};

/// The most descriptors that one message can carry (SCM_MAX_FD of the kernel). Room for fewer is a trap: the control
/// buffer is padded, so one that was meant for a single descriptor has room for two, and what nobody looks for leaks.
const DESCRIPTORS_MAX: usize = 253;

/// A control buffer for them and for the sender's credentials, in units of its alignment.
const CONTROL_WORDS: usize = {
    // SAFETY: CMSG_SPACE only calculates.
    let rights = unsafe { libc::CMSG_SPACE((DESCRIPTORS_MAX * size_of::<libc::c_int>()) as u32) as usize };
    // SAFETY: as above.
    let credentials = unsafe { libc::CMSG_SPACE(size_of::<libc::ucred>() as u32) as usize };
    (rights + credentials).div_ceil(8)
};

/// What one `recvmsg` brought.
#[derive(Debug)]
pub(super) struct Received {
    /// How many bytes are in the buffer now.
    pub bytes: usize,
    /// Every descriptor that came along, close-on-exec. Whoever drops this closes them.
    pub descriptors: Vec<OwnedFd>,
    /// Whether bytes were cut off: more than there was room for.
    pub is_cut: bool,
    /// Whether descriptors were cut off: more than this process may open, since there was room for all that can come.
    pub lacks_descriptors: bool,
    /// Who sent it, as the kernel vouches for it; on a socket with SO_PASSCRED only.
    pub sender: Option<Sender>,
}

/// Whose process sent something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sender {
    pub uid: u32,
    pub gid: u32,
}

/// Sends bytes, at least one, and with the first of them a copy of each of `descriptors`, at most
/// [`DESCRIPTORS_MAX`]; says how many bytes went out. Never raises SIGPIPE.
///
/// # Errors
/// What sendmsg(2) says; nothing was sent then. EAGAIN: there is no room at the moment. ETOOMANYREFS: too many
/// descriptors are on their way already. EMSGSIZE: the packet is larger than the send buffer.
#[cfg(feature = "gateway")]
pub(super) fn send(
    socket: BorrowedFd<'_>,
    bytes: &[IoSlice<'_>],
    descriptors: &[BorrowedFd<'_>],
) -> nix::Result<usize> {
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut room);
    if !descriptors.is_empty() {
        let fits = control.push(SendAncillaryMessage::ScmRights(descriptors));
        assert!(fits, "{} descriptors", descriptors.len());
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    uninterrupted(|| {
        rustix::net::sendmsg(socket, bytes, &mut control, flags).map_err(|error| Errno::from_raw(error.raw_os_error()))
    })
}

/// Receives into `buffer` and adopts every descriptor that comes along, before anybody judges them.
///
/// # Errors
/// What recvmsg(2) says; nothing was received then. EAGAIN: there is nothing at the moment.
pub(super) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> nix::Result<Received> {
    let mut bytes = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut control = [0_u64; CONTROL_WORDS];
    // SAFETY: msghdr consists of integers and pointers, for which all zeroes is a value.
    let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    header.msg_iov = &raw mut bytes;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control) as _;

    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    let received = uninterrupted(|| {
        // SAFETY: `header` points at one iovec over `buffer` and at `control`, with their true lengths; all three outlive
        // the call. An interrupted call has changed nothing.
        Errno::result(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) })
    })?;
    // SAFETY: `header` is as this recvmsg left it and still points at `control`; its descriptors are adopted this once.
    let (descriptors, sender) = unsafe { adopt(&header) };
    Ok(Received {
        bytes: received.cast_unsigned(),
        descriptors,
        is_cut: header.msg_flags & libc::MSG_TRUNC != 0,
        lacks_descriptors: header.msg_flags & libc::MSG_CTRUNC != 0,
        sender,
    })
}

/// Takes ownership of every descriptor in a received header, and says whom its credentials name.
///
/// # Safety
/// `header` was filled in by a successful `recvmsg`, its control buffer is alive and aligned for `cmsghdr`, and this is
/// called once for it.
unsafe fn adopt(header: &libc::msghdr) -> (Vec<OwnedFd>, Option<Sender>) {
    let mut descriptors = Vec::new();
    let mut sender = None;
    // SAFETY: by this function's contract the kernel wrote the control buffer; CMSG_FIRSTHDR and CMSG_NXTHDR stay within
    // msg_controllen, which the kernel has set to what it wrote, and return null at the end.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    // SAFETY: as above: null, or a cmsghdr that the kernel wrote.
    while let Some(control) = unsafe { next.as_ref() } {
        if (control.cmsg_level, control.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: CMSG_LEN only calculates.
            let length = control.cmsg_len - unsafe { libc::CMSG_LEN(0) } as usize;
            for index in 0..length / size_of::<libc::c_int>() {
                // SAFETY: cmsg_len covers the header and `length` bytes of integers, of which this reads one. Each is a
                // descriptor that the kernel has just opened for us, so nobody else owns it.
                descriptors.push(unsafe {
                    let number = libc::CMSG_DATA(control).cast::<libc::c_int>().add(index).read_unaligned();
                    OwnedFd::from_raw_fd(number)
                });
            }
        }
        // SAFETY: CMSG_LEN only calculates.
        let credentials_length = unsafe { libc::CMSG_LEN(size_of::<libc::ucred>() as u32) } as usize;
        if (control.cmsg_level, control.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_CREDENTIALS)
            && control.cmsg_len >= credentials_length
        {
            // SAFETY: cmsg_len covers the header and a ucred, which consists of integers.
            let libc::ucred { uid, gid, .. } =
                unsafe { libc::CMSG_DATA(control).cast::<libc::ucred>().read_unaligned() };
            sender = Some(Sender { uid, gid });
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        next = unsafe { libc::CMSG_NXTHDR(header, control) };
    }
    (descriptors, sender)
}

/// How much of what was sent on a Unix socket its reader has not yet freed: 0 once everything was read. Counted in
/// memory, not in bytes, and by whole buffers: a stream's reader that takes a part changes nothing.
pub(super) fn unread(socket: BorrowedFd<'_>) -> nix::Result<usize> {
    let mut unread: libc::c_int = 0;
    // SAFETY: SIOCOUTQ, which is TIOCOUTQ, writes one int to where the third argument points.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut unread) })?;
    Ok(usize::try_from(unread).unwrap_or(0))
}

/// How many bytes were ever written into a TCP client, by any holder of its socket, whether they have left this machine
/// or not; `None` for other sockets, and on kernels before 4.19.
///
/// All of it comes from one look under the socket's lock: what was sent, without what was sent again, and what waits to
/// be. Acknowledgements that arrive do not change the sum.
pub fn written_bytes(client: BorrowedFd<'_>) -> Option<u64> {
    tcp_info(client).as_ref().map(written)
}

/// A number that another look gives again only if the client has neither sent nor taken a byte in between, and nobody has
/// written one to it; `None` where that is not known: a Unix socket tells only how much of what was written its other end has not read.
pub fn progress(client: BorrowedFd<'_>) -> Option<u64> {
    match tcp_info(client) {
        Some(info) => Some(written(&info).wrapping_add(info.tcpi_bytes_acked).wrapping_add(info.tcpi_bytes_received)),
        None => unread(client).ok().filter(|unread| *unread > 0).map(|unread| unread as u64),
    }
}

fn written(info: &libc::tcp_info) -> u64 {
    info.tcpi_bytes_sent.wrapping_sub(info.tcpi_bytes_retrans).wrapping_add(u64::from(info.tcpi_notsent_bytes))
}

/// `None` for other sockets, and on kernels before 4.19, which do not tell everything that is asked for here.
fn tcp_info(client: BorrowedFd<'_>) -> Option<libc::tcp_info> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `info`, which has as many, and sets `length` to their number.
    let result = unsafe {
        libc::getsockopt(
            client.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    let needed = offset_of!(libc::tcp_info, tcpi_bytes_retrans) + size_of::<u64>();
    if result != 0 || (length as usize) < needed {
        return None;
    }
    // SAFETY: tcp_info consists of integers, and was zeroed where the kernel wrote nothing.
    Some(unsafe { info.assume_init() })
}

/// What the kernel calls a socket, whoever holds it (SO_COOKIE, socket(7)).
///
/// # Errors
/// What getsockopt(2) says.
#[cfg(feature = "gateway")]
pub(super) fn cookie(socket: BorrowedFd<'_>) -> nix::Result<std::num::NonZeroU64> {
    let cookie = rustix::net::sockopt::socket_cookie(socket).map_err(|error| Errno::from_raw(error.raw_os_error()))?;
    std::num::NonZeroU64::new(cookie).ok_or(Errno::EINVAL)
}

/// A process, whatever becomes of its number: the descriptor is readable when it has ended (pidfd_open(2)).
///
/// # Errors
/// It has ended already, or the kernel is older than 5.3.
#[cfg(feature = "gateway")]
pub(super) fn process(process: Pid) -> io::Result<OwnedFd> {
    let process = rustix::process::Pid::from_raw(process.as_raw()).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty())?)
}

/// Bytes in a file without a name that nobody can change any more (memfd_create(2), its offset 0).
///
/// # Errors
/// The system's.
#[cfg(feature = "gateway")]
pub(super) fn sealed_file(parts: &[&[u8]]) -> io::Result<OwnedFd> {
    use rustix::fs::{MemfdFlags, SealFlags};
    let file = rustix::fs::memfd_create(c"baton", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = std::fs::File::from(file);
    for part in parts {
        io::Write::write_all(&mut file, part)?;
    }
    io::Seek::rewind(&mut file)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    Ok(file.into())
}

/// Leaves a client in the kernel until its first bytes are here, or `seconds` have passed (TCP_DEFER_ACCEPT, tcp(7)): a
/// client that is accepted can then be read at once.
///
/// # Errors
/// What setsockopt(2) says.
#[cfg(feature = "gateway")]
pub fn defer_accept(listener: BorrowedFd<'_>, seconds: i32) -> io::Result<()> {
    set_option(listener, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, &seconds)
}

/// Registers a socket with the reactor of the runtime that this is called in; dropping the result, or taking the socket
/// out of it, ends that.
///
/// # Errors
/// What epoll_ctl(2) says, beside the socket.
#[cfg(feature = "gateway")]
pub fn watch(socket: OwnedFd, interest: Interest) -> Result<AsyncFd<OwnedFd>, (OwnedFd, io::Error)> {
    // SAFETY: the socket stays open, and its number the same, as long as the registration: both are the AsyncFd's, which
    // drops the registration first, and an OwnedFd cannot be made to name another descriptor through a shared reference.
    unsafe { AsyncFd::register_with_interest(socket, interest) }.map_err(|error| error.into_parts())
}

/// Makes a TCP listener deaf to first segments, as if they were lost on their way (SO_ATTACH_FILTER, socket(7)): whoever is in
/// the middle of connecting comes through, and nobody new does.
///
/// # Errors
/// What setsockopt(2) says.
#[cfg(feature = "gateway")]
pub fn ignore_newcomers(listener: BorrowedFd<'_>) -> io::Result<()> {
    const FLAGS_OFFSET: u32 = 13;
    const SYN: u32 = 0x02;
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    // Of the segment, from its TCP header on: its flags; with SYN among them, nothing of it is kept, else all.
    let mut steps = [
        step(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, FLAGS_OFFSET),
        step(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0, 1, SYN),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    set_option(listener, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// setsockopt(2) with a value of the type that the option takes.
#[cfg(feature = "gateway")]
fn set_option<T>(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the kernel reads `length` bytes from a pointer to as many. The two callers give it
    // an integer, and a program whose pointer and length are those of an array that outlives the call.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const *value).cast(), length) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

/// By which rule a thread has the processor (sched(7)).
#[cfg(feature = "gateway")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// By its niceness, in slices of some milliseconds.
    Fair,
    /// When nobody else wants it, and a third of a per cent beside one who does. Whoever wakes up has it at once.
    Idle,
}

/// Sets the rule for a thread of this process. Everybody may choose `Idle`; the way back is RLIMIT_NICE's or a privilege.
///
/// # Errors
/// The system's.
#[cfg(feature = "gateway")]
pub fn set_share(thread: Pid, share: Share) -> io::Result<()> {
    let policy = match share {
        Share::Fair => libc::SCHED_OTHER,
        Share::Idle => libc::SCHED_IDLE,
    };
    let priority: libc::c_int = 0;
    // SAFETY: the kernel reads a sched_param, which is one int, from a pointer to an int. The C library's own function is
    // not to be had everywhere: musl's only fails.
    let done = unsafe { libc::syscall(libc::SYS_sched_setscheduler, thread.as_raw(), policy, &raw const priority) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Marks every descriptor but 0, 1 and 2 close-on-exec, those that this process was started with included: what it starts
/// from now on gets those three only.
///
/// # Errors
/// The kernel is older than 5.11.
pub fn close_on_exec_beyond_stderr() -> io::Result<()> {
    // SAFETY: close_range takes three integers; with CLOSE_RANGE_CLOEXEC it closes nothing and only sets flags.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

/// A copy, close-on-exec, of a descriptor that this process was started with, by the number that its starter has agreed on.
///
/// # Errors
/// Nothing is open there.
pub(super) fn copy_of_inherited(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes integers, and says so where nothing is open; the copy is new, and owned this once.
    let copy = Errno::result(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// What is waited for on many descriptors at once, by the kernel's own table (epoll(7)). It says each time what is true,
/// not what has changed, and is itself a descriptor that is readable when there is something to say.
#[derive(Debug)]
pub(super) struct Epoll(OwnedFd);

/// One thing that is true of a descriptor: its token, and whether it can be written to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event {
    pub token: u64,
    pub is_writable: bool,
}

/// What is waited for on a descriptor, beside its end and errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Nothing,
    Read,
    ReadAndWrite,
}

impl Epoll {
    pub(super) fn new() -> nix::Result<Self> {
        // SAFETY: epoll_create1 takes an integer and returns a new descriptor that nobody else owns, or -1.
        Errno::result(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })
            // SAFETY: as above; it is owned this once.
            .map(|number| Self(unsafe { OwnedFd::from_raw_fd(number) }))
    }

    /// Begins to wait for something; its events carry `token`. Closing the last descriptor of it ends that.
    pub(super) fn add(&self, descriptor: BorrowedFd<'_>, token: u64, wanted: Wanted) -> nix::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, descriptor, token, wanted)
    }

    /// Waits for something else.
    pub(super) fn change(&self, descriptor: BorrowedFd<'_>, token: u64, wanted: Wanted) -> nix::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, descriptor, token, wanted)
    }

    /// Stops waiting for it: needed where others hold it too, because they keep it in the kernel's table.
    pub(super) fn remove(&self, descriptor: BorrowedFd<'_>) -> nix::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, descriptor, 0, Wanted::Nothing)
    }

    fn control(&self, what: libc::c_int, descriptor: BorrowedFd<'_>, token: u64, wanted: Wanted) -> nix::Result<()> {
        let events = match wanted {
            Wanted::Nothing => 0,
            Wanted::Read => libc::EPOLLIN,
            Wanted::ReadAndWrite => libc::EPOLLIN | libc::EPOLLOUT,
        };
        let mut event = libc::epoll_event { events: events.cast_unsigned(), u64: token };
        // SAFETY: both descriptors are open, and the kernel reads one epoll_event from where the last argument points.
        let result = unsafe { libc::epoll_ctl(self.0.as_raw_fd(), what, descriptor.as_raw_fd(), &raw mut event) };
        Errno::result(result).map(drop)
    }

    /// Waits until something is true, at most so many milliseconds, without end if negative. A signal ends it with nothing.
    pub(super) fn wait(&self, timeout_ms: i32) -> nix::Result<impl Iterator<Item = Event> + use<>> {
        const EVENTS: usize = 64;
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS];
        // SAFETY: the kernel writes at most EVENTS events into an array of as many.
        let result =
            unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), EVENTS as libc::c_int, timeout_ms) };
        let count = match Errno::result(result) {
            Ok(count) => count.cast_unsigned() as usize,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error),
        };
        Ok(events
            .into_iter()
            .take(count)
            .map(|event| Event { token: event.u64, is_writable: event.events & libc::EPOLLOUT.cast_unsigned() != 0 }))
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Repeats a call that a signal interrupted.
fn uninterrupted<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}
