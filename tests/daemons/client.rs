//! A client that a daemon is told of: both ends of its connection, and what is said of its request.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Instant;

use baton::handoff::native::frame::{Frame, Handoff, Memfds};
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::stat::fstat;
use serde_json::{Value, json};

use crate::language::Daemon;
use crate::support::{eventually, patience};

/// What a client asks for, as the daemon is told.
#[derive(Default)]
pub struct Request {
    pub metadata: Value,
    pub data: Vec<u8>,
    pub preread: Vec<u8>,
    /// What goes in memfds instead: body, data, preread.
    pub memfds: [Option<OwnedFd>; 3],
}

impl Request {
    pub fn get(target: &str) -> Self {
        Self::with("GET", target, json!({"framing": "none", "remaining": 0}))
    }

    /// One with a body of that many bytes on its way.
    pub fn post(target: &str, remaining: usize) -> Self {
        Self::with("POST", target, json!({"framing": "length", "remaining": remaining}))
    }

    pub fn chunked(target: &str) -> Self {
        Self::with("POST", target, json!({"framing": "chunked"}))
    }

    /// One whose body the gateway has read.
    pub fn memfd(target: &str, body: &[u8]) -> Self {
        let mut request = Self::with("POST", target, json!({"framing": "memfd"}));
        request.memfds[0] = Some(memfd(body));
        request
    }

    fn with(method: &str, target: &str, body: Value) -> Self {
        let metadata = json!({
            "id": "01JDSUITE",
            "request": {"method": method, "target": target, "version": "1.1", "scheme": "http", "authority": "a",
                        "headers": [["host", "a"]]},
            "client": {"ip": "127.0.0.1", "port": 1}, "server": {"ip": "127.0.0.1", "port": 80, "listener": "http"},
            "connection": "direct", "body": body, "response": {"head_sent": false}, "metadata": {},
        });
        Self { metadata, ..Self::default() }
    }

    pub fn data(mut self, data: &[u8]) -> Self {
        self.data = data.to_vec();
        self
    }

    pub fn header(mut self, name: &str, value: impl Into<Value>) -> Self {
        let headers = self.metadata["request"]["headers"].as_array_mut().expect("it is made with some");
        headers.push(json!([name, value.into()]));
        self
    }

    pub fn frame(&self, id: u64) -> Vec<u8> {
        let [body, data, preread] = self.memfds.each_ref().map(Option::is_some);
        let handoff = Handoff {
            metadata: self.metadata.as_object().expect("an object").clone(),
            data: self.data.clone(),
            preread: self.preread.clone(),
            memfds: Memfds { body, data, preread },
        };
        Frame::Handoff { id, handoff }.encode()
    }
}

/// A sealed memfd whose position is not at its beginning.
pub fn memfd(bytes: &[u8]) -> OwnedFd {
    let file = memfd_create(c"baton", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).expect("a memfd");
    let mut file = std::fs::File::from(file);
    file.write_all(bytes).expect("memory");
    let seals = SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).expect("it can be sealed");
    file.into()
}

/// A client that the daemon was told of.
pub struct Lent {
    pub id: u64,
    /// The gateway's copy, until TAKEN.
    pub near: Option<OwnedFd>,
    pub far: Far,
    pub inode: u64,
    pub at: Instant,
}

impl Lent {
    /// A client of which no daemon was told.
    pub fn new(id: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let far = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        far.set_nodelay(true).expect("a socket");
        far.set_read_timeout(Some(patience())).expect("a socket");
        far.set_write_timeout(Some(patience())).expect("a socket");
        let (near, _) = listener.accept().expect("it has connected");
        near.set_nonblocking(true).expect("a socket");
        let near = OwnedFd::from(near);
        Self { id, inode: inode(&near), near: Some(near), far: Far(far), at: Instant::now() }
    }

    /// The gateway's copy.
    pub fn client(&self) -> BorrowedFd<'_> {
        self.near.as_ref().expect("it is the gateway's").as_fd()
    }

    /// The client's socket and what is in memfds.
    pub fn descriptors<'a>(&'a self, request: &'a Request) -> Vec<BorrowedFd<'a>> {
        std::iter::once(self.client()).chain(request.memfds.iter().flatten().map(OwnedFd::as_fd)).collect()
    }

    /// What is still to be read on the gateway's side, until the client's end.
    #[track_caller]
    pub fn read_near(&mut self) -> Vec<u8> {
        let mut near = TcpStream::from(self.near.take().expect("it is the gateway's"));
        near.set_nonblocking(false).expect("a socket");
        near.set_read_timeout(Some(patience())).expect("a socket");
        let mut read = Vec::new();
        near.read_to_end(&mut read).expect("not reset");
        read
    }

    /// The gateway closes the client.
    pub fn end_near(&mut self) {
        self.near.take().expect("it is the gateway's");
    }

    /// The client leaves.
    pub fn leave(&mut self) -> Far {
        // Another end of another connection in its place.
        std::mem::replace(&mut self.far, Self::new(0).far)
    }

    /// Nobody has done anything to the client, and the daemon has it no more: whatever it `sent` is still to be read.
    #[track_caller]
    pub fn check_untouched(mut self, daemon: &Daemon, sent: &[u8]) {
        eventually("the daemon's copy is closed", || (!daemon.holds(self.inode)).then_some(()));
        let near = self.near.take().expect("it is the gateway's");
        let flags = OFlag::from_bits_retain(fcntl(&near, FcntlArg::F_GETFL).expect("open"));
        assert!(flags.contains(OFlag::O_NONBLOCK), "it was made to block");
        let mut near = TcpStream::from(near);
        near.set_nonblocking(false).expect("a socket");
        near.set_read_timeout(Some(patience())).expect("a socket");
        near.write_all(b"from the gateway").expect("nobody has ended it");
        near.shutdown(Shutdown::Write).expect("nobody has ended it");
        assert_eq!(self.far.rest(), b"from the gateway");
        let mut read = Vec::new();
        near.read_to_end(&mut read).expect("not reset");
        assert_eq!(read, sent, "of what the client sent");
    }
}

pub fn inode(socket: &OwnedFd) -> u64 {
    fstat(socket).expect("open").st_ino
}

/// The client's own end.
pub struct Far(pub TcpStream);

/// An answer of known length.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Response {
    /// On the wire.
    pub fn bytes(&self) -> u64 {
        (self.head.len() + self.body.len()) as u64
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let pairs = self.head.lines().filter_map(|line| line.split_once(':'));
        pairs.into_iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

impl Far {
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).expect("the other end reads");
    }

    /// Everything until a clean end, upon which this end closes, too.
    #[track_caller]
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).unwrap_or_else(|error| panic!("{error} after {} bytes", rest.len()));
        // It has ended already where the daemon does not wait.
        drop(self.0.shutdown(Shutdown::Both));
        rest
    }

    /// Up to and with `mark`, not a byte more.
    #[track_caller]
    pub fn until(&mut self, mark: &str) -> String {
        let mut read = Vec::new();
        while !read.ends_with(mark.as_bytes()) {
            let mut byte = [0];
            let what = |error| panic!("{error} before {mark:?}: {:?}", String::from_utf8_lossy(&read));
            self.0.read_exact(&mut byte).unwrap_or_else(what);
            read.push(byte[0]);
        }
        String::from_utf8(read).expect("text")
    }

    /// One response, not a byte more.
    #[track_caller]
    pub fn response(&mut self) -> Response {
        let head = self.until("\r\n\r\n");
        let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).and_then(|s| s.parse().ok());
        let mut response = Response { status: status.expect("a status line"), head, body: Vec::new() };
        let length = response.header("content-length").and_then(|length| length.parse().ok());
        response.body = vec![0; length.unwrap_or_else(|| panic!("no length: {response:?}"))];
        self.0.read_exact(&mut response.body).expect("the whole body");
        response
    }

    /// As much has arrived as there is room for: the count of what is to be read does not grow any more.
    pub fn is_full(&self) -> bool {
        let unread = || rustix::io::ioctl_fionread(&self.0).expect("a socket");
        let before = unread();
        std::thread::park_timeout(std::time::Duration::from_millis(20));
        before > 0 && unread() == before
    }

    /// Leaves by a reset.
    pub fn reset(self) {
        let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&self.0, sockopt::Linger, &linger).expect("a socket");
    }
}

/// A descriptor of which it shows when nobody holds a copy any more.
pub struct Stray {
    end: std::io::PipeReader,
    pub copy: std::io::PipeWriter,
}

impl Stray {
    pub fn new() -> Self {
        let (end, copy) = std::io::pipe().expect("a pipe");
        Self { end, copy }
    }

    #[track_caller]
    pub fn check_closed(self) {
        let Self { mut end, copy } = self;
        drop(copy);
        fcntl(&end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("open");
        eventually("every copy is closed", || end.read(&mut [0]).is_ok_and(|count| count == 0).then_some(()));
    }
}
