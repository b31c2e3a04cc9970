//! A gateway that says what it is told to, made of the pure codec.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::path::Path;

use baton::handoff::native::frame::{Frame, Handoff, Hello, Memfds, Refusal, Report};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, connect, recvmsg,
    sendmsg, socket,
};
use serde_json::{Map, Value, json};

use crate::patience;

pub(crate) struct Gateway {
    pub socket: OwnedFd,
    heard: VecDeque<Frame>,
    greeting: Option<Hello>,
    /// Clients that came back and were not looked at.
    pub descriptors: VecDeque<OwnedFd>,
    /// How many packets came.
    pub packets: usize,
}

impl Gateway {
    /// Connects and says nothing.
    pub(crate) fn connect(path: &Path) -> Self {
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        connect(socket.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
        Self::on(socket)
    }

    /// On a connection that is there.
    pub(crate) fn on(socket: OwnedFd) -> Self {
        Self { socket, heard: VecDeque::new(), greeting: None, descriptors: VecDeque::new(), packets: 0 }
    }

    /// Connects and says HELLO; the daemon's is not waited for.
    pub(crate) fn greet(path: &Path) -> Self {
        let gateway = Self::connect(path);
        gateway.send(&[hello()], &[]);
        gateway
    }

    /// One packet.
    pub(crate) fn send(&self, frames: &[Frame], descriptors: &[BorrowedFd<'_>]) {
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
        self.send_bytes(&bytes, descriptors);
    }

    pub(crate) fn send_bytes(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let numbers: Vec<_> = descriptors.iter().map(|descriptor| descriptor.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let control = if numbers.is_empty() { &[] } else { &rights[..] };
        let flags = MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None).unwrap();
    }

    /// Hands a client over and keeps no copy of it; its far end.
    pub(crate) fn hand_over(&self, id: u64, metadata: Value) -> TcpStream {
        let (client, far) = tcp_client();
        self.send(&[handoff(id, metadata)], &[client.as_fd()]);
        far
    }

    /// What the daemon says next, after its HELLO; `None` at the end.
    #[track_caller]
    pub(crate) fn next(&mut self) -> Option<Frame> {
        loop {
            match self.heard.pop_front() {
                Some(Frame::Hello(hello)) if self.greeting.is_none() => self.greeting = Some(hello),
                Some(frame) => return Some(frame),
                None => {}
            }
            if !self.heard.is_empty() {
                continue;
            }
            let mut ready = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(patience()).unwrap();
            assert_eq!(poll(&mut ready, timeout), Ok(1), "nothing is said");
            if !self.receive() {
                return None;
            }
        }
    }

    /// Whether nothing but HELLO was said so far.
    pub(crate) fn is_silent(&mut self) -> bool {
        let mut ready = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        while poll(&mut ready, PollTimeout::ZERO) != Ok(0) {
            self.receive();
            ready = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            if let Some(Frame::Hello(hello)) = self.heard.front() {
                self.greeting = Some(hello.clone());
                self.heard.pop_front();
            }
            if !self.heard.is_empty() {
                return false;
            }
        }
        self.heard.is_empty()
    }

    pub(crate) fn has_greeting(&mut self) -> bool {
        self.is_silent() && self.greeting.is_some()
    }

    fn receive(&mut self) -> bool {
        let mut bytes = vec![0; 128 << 10];
        let mut control = nix::cmsg_space!([RawFd; 253]);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received = match recvmsg::<()>(self.socket.as_raw_fd(), &mut slices, Some(&mut control), flags) {
            Ok(received) => received,
            // What was queued before is still there.
            Err(nix::errno::Errno::ECONNRESET) => return self.receive(),
            Err(error) => panic!("{error}"),
        };
        for part in received.cmsgs().expect("not truncated") {
            if let ControlMessageOwned::ScmRights(numbers) = part {
                #[allow(unsafe_code, reason = "recvmsg gives new descriptors that nobody else owns")]
                // SAFETY: see the reason.
                self.descriptors.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
            }
        }
        let count = received.bytes;
        let mut rest = &bytes[..count];
        self.packets += usize::from(!rest.is_empty());
        let is_some = !rest.is_empty();
        while !rest.is_empty() {
            let (frame, behind) = Frame::split(rest).expect("a frame");
            self.heard.push_back(frame);
            rest = behind;
        }
        is_some
    }

    /// The daemon's HELLO, once something else was heard too.
    pub(crate) fn greeting(&self) -> &Hello {
        self.greeting.as_ref().expect("it comes first")
    }

    #[track_caller]
    pub(crate) fn taken(&mut self, wanted: u64) {
        match self.next() {
            Some(Frame::Taken { id }) => assert_eq!(id, wanted),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn done(&mut self, wanted: u64) -> Report {
        match self.next() {
            Some(Frame::Done { id, report }) if id == wanted => report,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn refused(&mut self, wanted: u64) -> Refusal {
        match self.next() {
            Some(Frame::Refused { id, refusal }) if id == wanted => refusal,
            other => panic!("{other:?}"),
        }
    }

    /// The report, the bytes that were not used, and the client.
    #[track_caller]
    pub(crate) fn returned(&mut self, wanted: u64) -> (Report, Vec<u8>, TcpStream) {
        match self.next() {
            Some(Frame::Return { id, report, unread }) if id == wanted => {
                (report, unread, self.descriptors.pop_front().expect("the client").into())
            }
            other => panic!("{other:?}"),
        }
    }

    /// The daemon ends the channel, behind whatever it has said.
    #[track_caller]
    pub(crate) fn ended(&mut self) {
        while self.next().is_some() {}
    }
}

pub(crate) fn hello() -> Frame {
    let (versions, name, roles) = (vec![1], "scripted".to_owned(), Vec::new());
    Frame::Hello(Hello { versions, name, pid: 1, in_flight_max: 0, data_bytes_max: None, roles })
}

pub(crate) fn handoff(id: u64, metadata: Value) -> Frame {
    handoff_with(id, metadata, b"", b"", Memfds::default())
}

pub(crate) fn handoff_with(id: u64, metadata: Value, data: &[u8], preread: &[u8], memfds: Memfds) -> Frame {
    let Value::Object(metadata) = metadata else { panic!("an object") };
    let (data, preread) = (data.to_vec(), preread.to_vec());
    Frame::Handoff { id, handoff: Handoff { metadata, data, preread, memfds } }
}

/// What a gateway says of a request.
pub(crate) fn request(method: &str, target: &str, headers: &[(&str, &str)]) -> Value {
    with_body(method, target, headers, json!({"framing": "none"}))
}

pub(crate) fn with_body(method: &str, target: &str, headers: &[(&str, &str)], body: Value) -> Value {
    json!({
        "id": "01JTEST",
        "request": {
            "method": method, "target": target, "version": "1.1", "scheme": "http", "authority": "example.org",
            "headers": headers,
        },
        "client": {"ip": "203.0.113.9", "port": 40312},
        "connection": "direct", "body": body, "response": {"head_sent": false}, "metadata": {},
    })
}

pub(crate) fn get() -> Value {
    request("GET", "/", &[])
}

pub(crate) fn empty() -> Value {
    Value::Object(Map::new())
}

/// A client as the gateway has it, and its far end.
pub(crate) fn tcp_client() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (client, _) = listener.accept().unwrap();
    client.set_nonblocking(true).unwrap();
    far.set_read_timeout(Some(patience())).unwrap();
    (client, far)
}

/// A file in memory, with its position at the end, as whoever fills one leaves it.
pub(crate) fn memfd(bytes: &[u8], is_sealed: bool) -> OwnedFd {
    let descriptor = memfd_create("test", MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_CLOEXEC).unwrap();
    let mut file = File::from(descriptor);
    file.write_all(bytes).unwrap();
    if is_sealed {
        let seals = SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    }
    file.into()
}
