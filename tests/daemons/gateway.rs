//! A gateway whose every packet is the test's: the pure codec on real sockets, one channel at a time.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use baton::handoff::native::frame::{Frame, Handoff, Hello, Memfds, Refusal, Report};
use baton::handoff::native::header::PACKET_BYTES_MAX;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt};
use nix::sys::stat::fstat;
use nix::sys::time::{TimeVal, TimeValLike as _};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde_json::{Value, json};

use crate::language::Daemon;
use crate::support::{eventually, patience};

/// A channel to a daemon, as a worker of a gateway has it.
pub struct Channel {
    socket: OwnedFd,
    /// The daemon's.
    pub hello: Hello,
    inbox: VecDeque<(Frame, Vec<OwnedFd>)>,
    id: u64,
}

impl Channel {
    /// Connects and says nothing yet.
    pub fn connect(path: &Path) -> OwnedFd {
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
        let timeout = TimeVal::milliseconds(i64::try_from(patience().as_millis()).expect("not for ever"));
        setsockopt(&socket, sockopt::ReceiveTimeout, &timeout).expect("a socket");
        setsockopt(&socket, sockopt::SendTimeout, &timeout).expect("a socket");
        connect(socket.as_raw_fd(), &UnixAddr::new(path).expect("short")).expect("it listens");
        socket
    }

    /// A channel on which both have said HELLO.
    #[track_caller]
    pub fn open(daemon: &Daemon) -> Self {
        Self::greet(Self::connect(&daemon.path))
    }

    #[track_caller]
    pub fn greet(socket: OwnedFd) -> Self {
        let hello = Hello {
            versions: vec![1],
            name: "suite".to_owned(),
            pid: 0,
            in_flight_max: 0,
            data_bytes_max: None,
            roles: Vec::new(),
        };
        let mut channel = Self { socket, hello: hello.clone(), inbox: VecDeque::new(), id: 0 };
        channel.send(&Frame::Hello(hello).encode(), &[]);
        assert!(channel.receive(), "the channel ended before HELLO");
        match channel.inbox.pop_front() {
            Some((Frame::Hello(hello), _)) => channel.hello = hello,
            other => panic!("before HELLO: {other:?}"),
        }
        channel
    }

    /// One packet, whatever it holds.
    #[track_caller]
    pub fn send(&self, packet: &[u8], descriptors: &[BorrowedFd<'_>]) {
        send_on(&self.socket, packet, descriptors).expect("the daemon reads");
    }

    #[track_caller]
    pub fn say(&self, frame: &Frame) {
        self.send(&frame.encode(), &[]);
    }

    /// No more is read here: whatever the daemon sends from now on cannot be sent. It is still told of clients.
    pub fn deafen(&self) {
        nix::sys::socket::shutdown(self.socket.as_raw_fd(), nix::sys::socket::Shutdown::Read).expect("connected");
    }

    /// Waits until the daemon has read everything: from then on it has what was sent.
    #[track_caller]
    pub fn was_read(&self) {
        nix::ioctl_read_bad!(unread, nix::libc::TIOCOUTQ, nix::libc::c_int);
        eventually("the daemon reads", || {
            let mut count = 0;
            #[allow(unsafe_code, reason = "there is no safe form of this ioctl, and no other way to see it")]
            // SAFETY: SIOCOUTQ, which is TIOCOUTQ, writes one int to where the pointer leads.
            unsafe { unread(self.socket.as_raw_fd(), &raw mut count) }.expect("a socket");
            (count == 0).then_some(())
        });
    }

    /// A packet's frames, with their descriptors; `false` at the channel's end.
    #[track_caller]
    fn receive(&mut self) -> bool {
        let Some((packet, mut descriptors)) = receive_on(&self.socket) else { return false };
        let mut rest = &packet[..];
        assert!(!rest.is_empty(), "an empty packet");
        while !rest.is_empty() {
            let frame;
            (frame, rest) = Frame::split(rest).unwrap_or_else(|error| panic!("{error} in {packet:02x?}"));
            assert!(frame.descriptors() <= descriptors.len(), "{frame:?} without its descriptor");
            let own = descriptors.drain(..frame.descriptors()).collect();
            match frame {
                Frame::Load(_) => {}
                Frame::Ping(bytes) => self.say(&Frame::Pong(bytes)),
                frame => self.inbox.push_back((frame, own)),
            }
        }
        assert!(descriptors.is_empty(), "descriptors that belong to no frame");
        true
    }

    /// The first frame that is what is looked for; the others stay.
    #[track_caller]
    fn first(&mut self, what: &str, is_it: impl Fn(&Frame) -> bool) -> (Frame, Vec<OwnedFd>) {
        loop {
            if let Some(at) = self.inbox.iter().position(|(frame, _)| is_it(frame)) {
                return self.inbox.remove(at).expect("it was found");
            }
            assert!(self.receive(), "the channel ended before {what}");
        }
    }

    /// What is said next of a client.
    #[track_caller]
    fn next(&mut self, what: &str, lent: &Lent) -> (Frame, Vec<OwnedFd>) {
        self.first(what, |frame| about(frame) == Some(lent.id))
    }

    #[track_caller]
    pub fn pong(&mut self) -> Vec<u8> {
        match self.first("PONG", |frame| matches!(frame, Frame::Pong(_))).0 {
            Frame::Pong(bytes) => bytes,
            _ => unreachable!("it was looked for"),
        }
    }

    /// The daemon has worked off everything that was sent until now: it answers.
    #[track_caller]
    pub fn is_alive(&mut self) {
        let mark = format!("mark {}", self.id).into_bytes();
        self.say(&Frame::Ping(mark.clone()));
        assert_eq!(self.pong(), mark);
    }

    #[track_caller]
    pub fn draining(&mut self) {
        self.first("DRAINING", |frame| matches!(frame, Frame::Draining));
    }

    /// The daemon has ended the channel, and has said nothing of clients that was not asked for.
    #[track_caller]
    pub fn has_ended(&mut self) {
        while self.receive() {}
        assert!(self.inbox.is_empty(), "{:?}", self.inbox);
    }

    /// The same while a client that was taken is served; that may have been reported.
    #[track_caller]
    pub fn has_ended_but_for(&mut self, taken: &Lent) {
        while self.receive() {}
        self.inbox.retain(|(frame, _)| !matches!(frame, Frame::Done { id, .. } if *id == taken.id));
        assert!(self.inbox.is_empty(), "{:?}", self.inbox);
    }

    /// Why a client is refused; `None` where the channel ends instead.
    #[track_caller]
    pub fn refused_or_ended(&mut self, lent: &Lent) -> Option<Refusal> {
        while self.inbox.is_empty() {
            if !self.receive() {
                return None;
            }
        }
        Some(self.refused(lent))
    }

    /// Lends a new client.
    #[track_caller]
    pub fn hand(&mut self, request: &Request) -> Lent {
        let mut lent = Lent::new(0);
        self.hand_again(&mut lent, request);
        lent
    }

    /// Lends a client that is the gateway's.
    #[track_caller]
    pub fn hand_again(&mut self, lent: &mut Lent, request: &Request) {
        self.id += 1;
        lent.id = self.id;
        lent.at = Instant::now();
        self.send(&request.frame(lent.id), &lent.descriptors(request));
    }

    /// A client with the next id, of which the daemon is not told.
    pub fn prepare(&mut self) -> Lent {
        self.id += 1;
        Lent::new(self.id)
    }

    #[track_caller]
    pub fn taken(&mut self, lent: &mut Lent) {
        let frame = self.next("TAKEN", lent).0;
        assert!(matches!(frame, Frame::Taken { .. }), "for TAKEN: {frame:?}");
        lent.near = None;
    }

    #[track_caller]
    pub fn refused(&mut self, lent: &Lent) -> Refusal {
        match self.next("REFUSED", lent).0 {
            Frame::Refused { refusal, .. } => refusal,
            frame => panic!("for REFUSED: {frame:?}"),
        }
    }

    /// DONE of which it is known that it takes long.
    #[track_caller]
    pub fn done_within(&mut self, lent: &Lent, time: std::time::Duration) -> Report {
        let timeout = TimeVal::milliseconds(i64::try_from(time.as_millis()).expect("not for ever"));
        setsockopt(&self.socket, sockopt::ReceiveTimeout, &timeout).expect("a socket");
        self.done(lent)
    }

    #[track_caller]
    pub fn done(&mut self, lent: &Lent) -> Report {
        match self.next("DONE", lent).0 {
            Frame::Done { report, .. } => self.check_report(lent, report),
            frame => panic!("for DONE: {frame:?}"),
        }
    }

    /// The client comes back: the very socket. Returns what was read of it and not used, too.
    #[track_caller]
    pub fn back(&mut self, lent: &mut Lent) -> (Report, Vec<u8>) {
        let (report, unread, client) = match self.next("RETURN", lent) {
            (Frame::Return { report, unread, .. }, mut own) => (report, unread, own.remove(0)),
            (frame, _) => panic!("for RETURN: {frame:?}"),
        };
        assert_eq!(inode(&client), lent.inode, "another socket came back");
        lent.near = Some(client);
        (self.check_report(lent, report), unread)
    }

    fn check_report(&self, lent: &Lent, report: Report) -> Report {
        let elapsed = lent.at.elapsed().as_micros();
        assert!(u128::from(report.duration_us) <= elapsed, "{} us of {elapsed}", report.duration_us);
        report
    }

    /// The whole way with DONE: everything that the client got, until a clean end, and the report on it.
    #[track_caller]
    pub fn served(&mut self, request: &Request) -> (Vec<u8>, Report) {
        let mut lent = self.hand(request);
        self.taken(&mut lent);
        self.ended(lent)
    }

    /// The rest of it, for a client that was taken.
    #[track_caller]
    pub fn ended(&mut self, mut lent: Lent) -> (Vec<u8>, Report) {
        let answer = lent.far.rest();
        let report = self.done(&lent);
        assert_eq!(report.bytes_out, answer.len() as u64, "bytes_out");
        (answer, report)
    }

    /// The same for one of whose answer something was read before.
    #[track_caller]
    pub fn ended_later(&mut self, mut lent: Lent) -> Report {
        lent.far.rest();
        self.done(&lent)
    }

    /// The whole way with RETURN.
    #[track_caller]
    pub fn answered(&mut self, request: &Request) -> (Response, Lent) {
        let mut lent = self.hand(request);
        (self.answered_again(&mut lent), lent)
    }

    /// The rest of it. Nothing may have been read beyond the body.
    #[track_caller]
    pub fn answered_again(&mut self, lent: &mut Lent) -> Response {
        self.taken(lent);
        let response = lent.far.response();
        let (report, unread) = self.back(lent);
        assert_eq!(report.bytes_out, response.bytes(), "bytes_out");
        assert_eq!(report.result.word(), "ok");
        assert_eq!(report.status, Some(response.status));
        assert!(!response.head.to_ascii_lowercase().contains("connection: close"), "{}", response.head);
        assert_eq!(unread, b"");
        response
    }
}

/// Whom a frame is about.
fn about(frame: &Frame) -> Option<u64> {
    match frame {
        Frame::Taken { id } | Frame::Refused { id, .. } | Frame::Done { id, .. } | Frame::Return { id, .. } => {
            Some(*id)
        }
        _ => None,
    }
}

pub fn send_on(socket: &OwnedFd, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> rustix::io::Result<usize> {
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut room);
    if !descriptors.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    }
    sendmsg(socket, &[IoSlice::new(packet)], &mut control, SendFlags::NOSIGNAL)
}

/// A packet and its descriptors; `None` at the end, also where it comes as a reset: what was sent before that was read.
#[track_caller]
pub fn receive_on(socket: &OwnedFd) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; PACKET_BYTES_MAX];
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => break received,
            // It is told once; what was sent before it comes after it.
            Err(rustix::io::Errno::CONNRESET | rustix::io::Errno::INTR) => {}
            Err(error) => panic!("no packet: {error}"),
        }
    };
    let descriptors: Vec<_> = control
        .drain()
        .flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
            _ => Vec::new(),
        })
        .collect();
    assert!(!received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC), "a packet that is too long");
    bytes.truncate(received.bytes);
    (received.bytes > 0).then_some((bytes, descriptors))
}

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
    at: Instant,
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
    pub fn is_untouched(mut self, daemon: &Daemon, sent: &[u8]) {
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

fn inode(socket: &OwnedFd) -> u64 {
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
    pub fn is_closed(self) {
        let Self { mut end, copy } = self;
        drop(copy);
        fcntl(&end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("open");
        eventually("every copy is closed", || end.read(&mut [0]).is_ok_and(|count| count == 0).then_some(()));
    }
}
